//! Who may connect by the back end's will, and as whom: what it is told of a client, and what its word makes of the connection, for as long as
//! that lasts. Where the dialect lets clients in before they say who they are, it is asked when they have.

use std::sync::Arc;

use super::Shard;
use super::hooks::Wish;
use super::inquiry::{About, Caller, Changes};
use super::links::{Ruled, Stage, State, Visitor};
use crate::auth::{AuthFault, Details, Identity};
use crate::config::{AuthMode, DialectKind, Endpoint};
use crate::dialect::{Hello, Profile};
use crate::ids::EndpointId;
use crate::json::{self, Scratch};
use crate::limits::IDENTIFY_MS;
use crate::time::Now;

impl Shard {
    /// Whether the back end is asked who may connect here, before there is a connection.
    pub(super) fn asks_callers(&self, endpoint: EndpointId) -> bool {
        let endpoint = &self.world.config.endpoints[usize::from(endpoint.0)];
        endpoint.connect_hook && !endpoint.dialect.identifies_later()
    }

    /// Asks whether a connection that has brought a good token, or none, may be let in.
    pub(super) fn inquire_caller(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let Some(asking) = conn.opening.as_ref().and_then(|opening| Some((opening.asking.as_ref()?, &opening.query))) else { return };
        let (asking, query) = asking;
        let claims = asking.token.as_ref().ok().and_then(|identity| identity.claims().map(Box::from));
        let caller = self.caller(slot, query.as_str().into(), asking.visitor.clone(), claims);
        self.inquire(now, slot, About::Connect(Box::new(caller)), Wish::Connect);
    }

    /// Asks whether a connection may be who it says.
    pub(super) fn inquire_identity(&mut self, now: Now, slot: u32, note: Box<str>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (query, visitor) = match self.links.get(conn.link).map(|link| &link.state) {
            Some(State::SocketIo(socket)) => ((*socket.query).into(), socket.rare().visitor.as_deref().cloned().unwrap_or_default()),
            _ => Default::default(),
        };
        let claims = conn.profile.identity.as_ref().and_then(|identity| identity.claims().map(Box::from));
        let caller = self.caller(slot, query, visitor, claims);
        self.inquire(now, slot, About::Connect(Box::new(caller)), Wish::Identify { note });
    }

    fn caller(&self, slot: u32, query: Box<str>, visitor: Visitor, claims: Option<Box<str>>) -> Caller {
        let conn = self.conns.get(slot);
        let address = conn.and_then(|conn| self.links.get(conn.link)).map(|link| link.peer.ip.to_canonical());
        let Visitor { origin, user_agent } = visitor;
        Caller { id: conn.map(|conn| conn.sid), address, origin, query, user_agent, claims }
    }

    /// The back end has said whether a connection is let in: its dialect and the user's home have a say, too.
    pub(super) fn let_in_ruled(&mut self, now: Now, slot: u32, allowed: Option<Changes>) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let (endpoint_id, sid) = (conn.endpoint, conn.sid);
        let Some(opening) = conn.opening.as_mut() else { return };
        let (Some(asking), query) = (opening.asking.take(), opening.query.clone()) else { return };
        let world = self.world.clone();
        let endpoint = &world.config.endpoints[usize::from(endpoint_id.0)];
        let Some(changes) = allowed else {
            let refused = self.dialect(endpoint_id).turned_down(now, self.hooks.reason.as_deref());
            return self.turn_away(now, slot, refused);
        };
        let mut scratch = Scratch::default();
        let auth = asking.auth.as_deref().and_then(|auth| scratch.parse(auth).ok());
        let auth = auth.as_ref().map(json::Doc::root);
        let has_token = asking.token.is_ok();
        let token = changed_token(asking.token, &changes, endpoint);
        match self.dialect(endpoint_id).admit(&Hello { now, endpoint, sid, query: &query, auth, token }) {
            Err(refused) => self.turn_away(now, slot, refused),
            Ok(profile) => {
                let Some(conn) = self.conns.get_mut(slot) else { return };
                conn.profile = profile;
                if conn.profile.unproven.is_some() {
                    // A dialect of its own that hears later who it is: the back end, which has let it in, is asked again when it has
                    // said so, and its word on that is what counts.
                    conn.stage = Stage::Unknown { until_ms: now.ms() + IDENTIFY_MS };
                    return self.let_in_unknown(slot);
                }
                self.change_profile(slot, changes, has_token);
                self.ask_user_home(now, slot, None);
            }
        }
    }

    /// Forgets the claims where nobody is told of them: others than this endpoint's may ask for them.
    pub(super) fn forget_claims(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if !self.world.config.endpoints[usize::from(conn.endpoint.0)].connect_hook {
            conn.profile.identity = conn.profile.identity.take().map(Identity::without_claims);
        }
    }

    /// Puts the back end's word in the place of the token's.
    pub(super) fn change_profile(&mut self, slot: u32, changes: Changes, has_token: bool) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let dialect = self.world.config.endpoints[usize::from(conn.endpoint.0)].dialect;
        let Changes { user, name, rooms, .. } = changes;
        let profile = &mut conn.profile;
        if let Some(user) = user {
            if let Some(own) = profile.own.as_mut().filter(|own| !own.has_client_id) {
                own.presence = user.clone();
            }
            profile.user = user;
        }
        if let Some(name) = name {
            profile.own().username = Some((&*name).into());
        }
        conn.ruled = Some(Ruled { lists: rooms.is_some(), has_token });
        if profile.identity.is_some() || rooms.is_some() {
            // The claims were for the back end, which has seen them.
            let of_user = || Details { user: profile.user.clone(), ..Details::default() };
            let mut details = profile.identity.as_ref().map_or_else(of_user, |identity| identity.details());
            details.claims = None;
            set_lists(&mut details, rooms, dialect);
            profile.identity = Some(Arc::new(details.into()));
        }
    }

    /// What a fresh token makes of a connection that the back end has let in: lists that are its own stay.
    pub(super) fn refreshed(&self, slot: u32, fresh: Arc<Identity>) -> Arc<Identity> {
        let Some(conn) = self.conns.get(slot).filter(|conn| conn.ruled.is_some()) else { return fresh.without_claims() };
        let mut details = Details { claims: None, ..fresh.details() };
        if let Some(old) = conn.profile.identity.as_ref().filter(|_| conn.ruled.is_some_and(|ruled| ruled.lists)) {
            let Details { rooms, documents, .. } = old.details();
            (details.rooms, details.documents) = (rooms, documents);
        }
        Arc::new(details.into())
    }

    /// Who a connection is that the back end has let in and that its client takes up again: the back end is not asked anew. A token that
    /// comes must be of the same user; where there was none, none is needed. `None` where the dialect decides as for anybody.
    pub(super) fn ruled_comeback(&self, now: Now, slot: u32, token: &Result<Arc<Identity>, AuthFault>) -> Option<Profile> {
        let conn = self.conns.get(slot)?;
        let (ruled, old) = (conn.ruled?, &conn.profile);
        let endpoint = &self.world.config.endpoints[usize::from(conn.endpoint.0)];
        let needs_none = !ruled.has_token || endpoint.dialect.identifies_later();
        match token {
            _ if endpoint.auth == AuthMode::None => Some(old.clone()),
            Err(AuthFault::Missing) if needs_none && !old.has_expired(now) => Some(old.clone()),
            Ok(identity) if old.identity.as_ref().is_some_and(|known| known.user == identity.user) => {
                let mut profile = old.clone();
                profile.renew(self.refreshed(slot, identity.clone()));
                Some(profile)
            }
            _ => None,
        }
    }
}

/// The token's identity after the back end's word. Where there is no token, the back end may say who it is.
fn changed_token(token: Result<Arc<Identity>, AuthFault>, changes: &Changes, endpoint: &Endpoint) -> Result<Arc<Identity>, AuthFault> {
    let identity = match (token, &changes.user) {
        (Ok(identity), _) => identity,
        (Err(AuthFault::Missing), Some(user)) if endpoint.auth == AuthMode::Token => Arc::new(Identity::of_user(user.clone())),
        (Err(fault), _) => return Err(fault),
    };
    let Some(rooms) = &changes.rooms else { return Ok(identity) };
    let mut details = identity.details();
    set_lists(&mut details, Some(rooms.clone()), endpoint.dialect);
    Ok(Arc::new(details.into()))
}

impl Changes {
    /// Who somebody with this token is when the back end has said so, for those who do not come by a connection.
    pub fn applied_to(self, identity: &Identity, dialect: DialectKind) -> Identity {
        let mut details = Details { claims: None, ..identity.details() };
        details.user = self.user.unwrap_or(details.user);
        details.name = self.name.map(String::from).or(details.name);
        set_lists(&mut details, self.rooms, dialect);
        details.into()
    }
}

/// Rooms that the back end names; collab's are documents, and looked at to let somebody in.
fn set_lists(details: &mut Details, rooms: Option<Vec<String>>, dialect: DialectKind) {
    let list = if dialect == DialectKind::Collab { &mut details.documents } else { &mut details.rooms };
    *list = rooms.or(list.take());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::{Key, Verifier, mint};
    use crate::config::Config;
    use crate::ids::ShardId;
    use crate::shard::{Addresses, World};
    use crate::stats::ShardStats;

    #[test]
    fn claims_are_kept_only_where_the_back_end_is_told_of_them() {
        let secret = b"0123456789abcdef0123456789abcdef";
        let now = Now { ns: 0, unix_ms: 1_700_000_000_000 };
        let endpoint =
            |name: &str, connect_hook| Endpoint { connect_hook, ..Endpoint::new(name, DialectKind::Community, &format!("/{name}")) };
        let mut config = Config::new(([127, 0, 0, 1], 0), 1, vec![endpoint("asked", true), endpoint("other", false)]);
        config.verifier = Some(Verifier::new(Key::Hs256(secret.to_vec())).expect("a good secret").keeping_claims(true));
        let addresses = Addresses::new(&config.limits, 10);
        let world = Arc::new(World::new(config, addresses, 0));
        let mut shard = Shard::new(ShardId(0), world, Arc::new(ShardStats::new(2)), [0; 32], now);
        let token = mint(secret, &serde_json::json!({"sub": "alice"})).expect("an object");
        for (name, is_asked) in [("asked", true), ("other", false)] {
            let link = shard.handle_accept(now, ([127, 0, 0, 1], 1).into()).expect("room for one");
            let head = format!(
                "GET /{name}?token={token} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            shard.handle_bytes(now, link, &mut head.into_bytes());
            let conn = shard.conns_of(link.slot).first().and_then(|slot| shard.conns.get(*slot)).expect("a connection");
            let asking = conn.opening.as_ref().and_then(|opening| opening.asking.as_ref());
            let told = asking.and_then(|asking| asking.token.as_ref().ok()?.claims());
            assert_eq!(told.is_some(), is_asked, "{name}");
            assert!(is_asked || conn.profile.identity.as_ref().is_some_and(|identity| identity.claims().is_none()), "{name}");
        }
    }
}
