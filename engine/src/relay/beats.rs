//! What this host has missed of the others' words without anybody's fault: pub/sub forgets who does not listen at that moment. Each host says
//! once a second how many broadcasts it has sent until then; whoever has heard fewer since its last word has missed the rest, and counts it.
//! It knows no channel and no clock.
//!
//! A beat is `HOST TOLD UID,UID…`: the host, the broadcasts it has sent to all hosts since its start, and the ids it has as an adapter.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::frozen::FrozenBeats;
use crate::limits::BEATING_HOSTS_MAX;

/// What is known of one other host's words.
#[derive(Debug)]
struct Heart {
    /// What it had sent by its last beat.
    told: u64,
    /// What has been heard of it since.
    heard: u64,
}

/// See the module.
#[derive(Default, Debug)]
pub(crate) struct Beats {
    /// Broadcasts that this host has sent.
    told: u64,
    hearts: HashMap<String, Heart>,
    /// Whose an adapter's id is.
    owners: HashMap<String, String>,
}

impl Beats {
    /// This host sends so many broadcasts.
    pub(crate) fn tell(&mut self, count: u64) {
        self.told += count;
    }

    /// This host's beat.
    pub(crate) fn text<'u>(&self, host: &str, uids: impl Iterator<Item = &'u str>) -> String {
        let mut text = format!("{host} {} ", self.told);
        for (index, uid) in uids.enumerate() {
            // A `String` takes whatever is written.
            let _ = write!(text, "{}{uid}", if index == 0 { "" } else { "," });
        }
        text
    }

    /// What goes on after a reload: what was missed meanwhile is counted with the next beat.
    pub(crate) fn freeze(&self) -> FrozenBeats {
        let hearts = self.hearts.iter().map(|(host, heart)| (host.clone(), heart.told, heart.heard)).collect();
        let owners = self.owners.iter().map(|(uid, host)| (uid.clone(), host.clone())).collect();
        FrozenBeats { told: self.told, hearts, owners }
    }

    pub(crate) fn thaw(frozen: FrozenBeats) -> Beats {
        let hearts = frozen.hearts.into_iter().map(|(host, told, heard)| (host, Heart { told, heard })).collect();
        Beats { told: frozen.told, hearts, owners: frozen.owners.into_iter().collect() }
    }

    /// A broadcast of an adapter was heard.
    pub(crate) fn hear(&mut self, uid: &str) {
        if let Some(heart) = self.owners.get(uid).and_then(|host| self.hearts.get_mut(host)) {
            heart.heard += 1;
        }
    }

    /// Another host's beat: how many of its broadcasts were missed since the one before.
    pub(crate) fn beat(&mut self, text: &str) -> u64 {
        let mut words = text.split(' ');
        let (Some(host), Some(Ok(told)), Some(uids)) = (words.next(), words.next().map(str::parse::<u64>), words.next()) else { return 0 };
        let Some(heart) = self.hearts.get_mut(host) else {
            // Of a host that is not known yet nothing was missed. Those that were are forgotten when there are too many: a fleet has fewer.
            if self.hearts.len() >= BEATING_HOSTS_MAX {
                (self.hearts, self.owners) = (HashMap::new(), HashMap::new());
            }
            self.owners.extend(uids.split(',').take(BEATING_HOSTS_MAX).map(|uid| (uid.to_owned(), host.to_owned())));
            self.hearts.insert(host.to_owned(), Heart { told, heard: 0 });
            return 0;
        };
        let missed = told.saturating_sub(heart.told).saturating_sub(heart.heard);
        *heart = Heart { told, heard: 0 };
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_two_beats_was_heard_or_missed() {
        let (mut here, mut there) = (Beats::default(), Beats::default());
        there.tell(7);
        let beat = |there: &Beats| there.text("h2", ["uid", "~id"].into_iter());
        assert_eq!(beat(&there), "h2 7 uid,~id");
        assert_eq!(here.beat(&beat(&there)), 0, "what was before nobody was there for");
        there.tell(3);
        here.hear("uid");
        here.hear("~id");
        here.hear("other");
        assert_eq!(here.beat(&beat(&there)), 1);
        assert_eq!(here.beat(&beat(&there)), 0);
        for hostile in ["", "h2", "h2 x u", "h2 -1 u", "h2 99999999999999999999 u", "h2  "] {
            assert_eq!(here.beat(hostile), 0, "{hostile:?}");
        }
        for host in 0..3 * BEATING_HOSTS_MAX {
            here.beat(&format!("h{host} 1 u{host}"));
        }
        assert!(here.hearts.len() <= BEATING_HOSTS_MAX && here.owners.len() <= 2 * BEATING_HOSTS_MAX);
    }
}
