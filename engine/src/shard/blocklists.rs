//! Whom users have blocked by the back end's word, where it keeps that in Redis: looked up before something is said, at most a moment old, and
//! united with what the user's token says. Where it cannot be looked up, the token is what counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shard;
use super::hooks::Wish;
use super::inquiry::About;
use super::recent::Recent;
use crate::auth::Identity;
use crate::config::DialectKind;
use crate::dialect::{Act, Said};
use crate::ids::{EndpointId, UserId};
use crate::limits::{BLOCKLIST_MS, BLOCKLISTS_MAX};
use crate::time::Now;

/// What was found of the users who have said something lately.
#[derive(Default, Debug)]
pub(super) struct Blocklists(Recent<UserId, Blocklist>);

#[derive(Debug)]
struct Blocklist {
    /// Until when it counts as new, monotonic milliseconds.
    until_ms: u64,
    /// Sorted, each once.
    blocked: Vec<String>,
    /// An identity that was united with it, and what came of that.
    united: Option<(Arc<Identity>, Arc<Identity>)>,
}

impl Identity {
    /// The same user, who has blocked these as well.
    #[must_use]
    pub fn blocking(&self, more: &[String]) -> Identity {
        let mut blocked = [&self.blocked[..], more].concat();
        blocked.sort_unstable();
        blocked.dedup();
        let mut united = self.clone();
        united.blocked = blocked.into();
        united
    }
}

impl Shard {
    /// True exactly when the endpoint's messages are not for those whom their authors have blocked in Redis.
    pub(super) fn hides(&self, endpoint: EndpointId) -> bool {
        self.world.config.relay.is_some() && self.world.config.endpoints[usize::from(endpoint.0)].dialect == DialectKind::Community
    }

    /// Whose `blocked` users do not get what a connection says; `None` where there are none.
    pub(super) fn hidden_from(&mut self, slot: u32) -> Option<Arc<Identity>> {
        let conn = self.conns.get(slot)?;
        let own = conn.profile.identity.clone();
        let hides = |identity: &Arc<Identity>| !identity.blocked.is_empty();
        let Some(list) = self.blocklists.0.get_mut(&conn.profile.user).filter(|list| !list.blocked.is_empty()) else {
            return own.filter(hides);
        };
        let own = own.unwrap_or_else(|| Arc::new(Identity::of_user(conn.profile.user.clone())));
        if let Some((of, united)) = &list.united
            && Arc::ptr_eq(of, &own)
        {
            return Some(united.clone());
        }
        let united = Arc::new(own.blocking(&list.blocked));
        list.united = Some((own, united.clone()));
        Some(united)
    }

    /// Hears a text; what others would hear of it waits until it is known for whom it is not. The dialect is asked again then: it is pure.
    pub(super) fn hear_and_look_up(&mut self, now: Now, slot: u32, said: Said<'_>) {
        let Some(user) = self.conns.get(slot).map(|conn| conn.profile.user.clone()) else { return };
        let is_new = self.blocklists.0.get(&user).is_some_and(|list| now.ms() < list.until_ms);
        let Said::Text(text) = said else { return self.hear_within(now, slot, said) };
        if is_new || !self.world.is_relayed.load(Ordering::Relaxed) {
            return self.hear_within(now, slot, said);
        }
        let acts = self.wishes(now, slot, |dialect, cx, scratch, acts| dialect.message(cx, said, scratch, acts));
        if !acts.iter().any(|act| matches!(act, Act::Publish(_))) {
            return self.perform_all(now, slot, acts);
        }
        self.keep_acts(acts);
        self.inquire(now, slot, About::Blocked { user }, Wish::Hear(text.into()));
    }

    /// It is known whom the user has blocked, or nobody could say.
    pub(super) fn hear_looked_up(&mut self, now: Now, slot: u32, text: &str, blocked: Option<Vec<String>>) {
        let Some(user) = self.conns.get(slot).map(|conn| conn.profile.user.clone()) else { return };
        if blocked.is_none() {
            self.stats.blocklists_unknown.add(1);
        }
        let mut blocked = blocked.unwrap_or_default();
        blocked.sort_unstable();
        blocked.dedup();
        self.blocklists.0.insert(user, Blocklist { until_ms: now.ms() + BLOCKLIST_MS, blocked, united: None });
        if self.blocklists.0.len() > BLOCKLISTS_MAX {
            self.blocklists.0.pop_oldest_if(|_| true);
        }
        self.hear_within(now, slot, Said::Text(text));
    }
}
