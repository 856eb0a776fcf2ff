//! Asking the back end before a connection is let in, enters a room or says something (webhooks). The shard queues an [`Inquiry`] and goes on; the
//! link of the connection waits for the [`Ruling`] as it does for the answers of other shards, so a client's messages keep their order. It
//! fails closed: what is not allowed in time is refused, and so is what there is no place for. How the back end is reached nobody here knows.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shard;
use super::inquiry::{About, Inquiry, Ruling};
use super::links::Conn;
use super::outward::Outward;
use super::parcel::Parcel;
use super::submissions::Held;
use crate::config::{Config, DialectKind, Membership};
use crate::dialect::{EnterFault, Entry, UNAVAILABLE};
use crate::fault::DropReason;
use crate::ids::{ConnId, EndpointId, Room, UserId};
use crate::limits::{INQUIRIES_PER_HOOK_MAX, INQUIRY_BYTES_PER_SHARD_MAX};
use crate::time::Now;

/// Bytes that one question costs beside its message.
const INQUIRY_BYTES: usize = 512;

/// Questions under way.
pub(super) struct Hooks {
    waiting: HashMap<u64, Waiting>,
    /// When each is given up, in the order in which they were asked; those that were answered are passed over.
    deadlines: VecDeque<(u64, u64)>,
    next: u64,
    /// By endpoint and kind of question.
    under_way: Vec<[UnderWay; About::KINDS]>,
    /// Bytes that each kind of each endpoint may hold.
    bytes_max: usize,
    outgoing: VecDeque<(u64, Inquiry)>,
    /// What the back end said to what is being refused now.
    pub(super) reason: Option<Box<str>>,
}

/// Questions of one kind of one endpoint.
#[derive(Clone, Copy, Default)]
struct UnderWay {
    /// Several rooms count as many.
    questions: usize,
    bytes: usize,
}

/// A connection that waits for a ruling.
struct Waiting {
    conn: ConnId,
    endpoint: EndpointId,
    kind: usize,
    weight: usize,
    bytes: usize,
    wish: Wish,
}

/// What happens when it is allowed.
pub(super) enum Wish {
    /// It is let in; see [`super::links::Opening`].
    Connect,
    /// It is who it says.
    Identify { note: Box<str> },
    /// It enters a room.
    Enter(Entry),
    /// It watches users.
    Watch { users: Vec<UserId>, note: Box<str> },
    /// It has said this.
    Say(Box<Held>),
    /// It has said this text, and whom its user has blocked is looked up.
    Hear(Box<str>),
}

impl Hooks {
    pub(super) fn new(config: &Config) -> Hooks {
        let asks = |endpoint: &crate::config::Endpoint| {
            let is_asked = matches!(endpoint.membership, Membership::Webhook | Membership::Redis | Membership::Auto);
            let hides = config.relay.is_some() && endpoint.dialect == DialectKind::Community;
            [
                endpoint.connect_hook,
                is_asked && (config.relay.is_some() || endpoint.membership == Membership::Webhook),
                endpoint.publish_hook,
                hides,
            ]
            .into_iter()
            .filter(|asks| *asks)
            .count()
        };
        let hooks: usize = config.endpoints.iter().map(asks).sum();
        Hooks {
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            next: 0,
            under_way: vec![Default::default(); config.endpoints.len()],
            bytes_max: INQUIRY_BYTES_PER_SHARD_MAX / hooks.max(1),
            outgoing: VecDeque::new(),
            reason: None,
        }
    }

    /// When the first question is given up, monotonic milliseconds.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.deadlines.front().map(|(at_ms, _)| *at_ms)
    }

    /// Questions under way.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn has_place(&self, endpoint: EndpointId, kind: usize, weight: usize, bytes: usize) -> bool {
        let under_way = self.under_way[usize::from(endpoint.0)][kind];
        // One question is always asked, however large it is.
        under_way.questions == 0 || (under_way.questions + weight <= INQUIRIES_PER_HOOK_MAX && under_way.bytes + bytes <= self.bytes_max)
    }

    fn keep(&mut self, waiting: Waiting) -> u64 {
        self.next += 1;
        let under_way = &mut self.under_way[usize::from(waiting.endpoint.0)][waiting.kind];
        under_way.questions += waiting.weight;
        under_way.bytes += waiting.bytes;
        self.waiting.insert(self.next, waiting);
        self.next
    }

    fn take(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        let under_way = &mut self.under_way[usize::from(waiting.endpoint.0)][waiting.kind];
        under_way.questions -= waiting.weight;
        under_way.bytes -= waiting.bytes;
        while self.deadlines.pop_front_if(|(_, number)| !self.waiting.contains_key(number)).is_some() {}
        Some(waiting)
    }
}

impl Shard {
    /// The next question to the back end, and its number: [`Parcel::Ruled`] brings the answer.
    pub fn poll_inquiry(&mut self) -> Option<(u64, Inquiry)> {
        self.hooks.outgoing.pop_front()
    }

    /// Asks; the connection's link waits. Where there is no place the answer is no, and comes the same way.
    pub(super) fn inquire(&mut self, now: Now, slot: u32, about: About, wish: Wish) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (id, endpoint) = (self.conn_id(slot, conn), conn.endpoint);
        let asking = conn.opening.as_ref().and_then(|opening| opening.asking.as_ref());
        let auth_bytes = asking.and_then(|asking| asking.auth.as_ref()).map_or(0, |auth| auth.len());
        let (weight, bytes) = match (&about, &wish) {
            (About::Join { rooms, .. }, _) => (rooms.len(), rooms.iter().map(|room| room.len()).sum()),
            (About::Blocked { .. }, Wish::Hear(text)) => (1, text.len()),
            (About::Publish(proposal), Wish::Say(held)) => (1, proposal.data.len() + held.bytes()),
            // What is told is kept by the connection as well.
            (About::Connect(caller), _) => (1, 2 * caller.bytes() + auth_bytes),
            _ => (1, 0),
        };
        let bytes = bytes + INQUIRY_BYTES * weight;
        let kind = about.kind();
        let has_place = self.hooks.has_place(endpoint, kind, weight, bytes);
        let number = self.hooks.keep(Waiting { conn: id, endpoint, kind, weight, bytes, wish });
        self.hold(slot);
        let is_for_relay = match &about {
            About::Join { .. } => self.world.config.endpoints[usize::from(endpoint.0)].membership != Membership::Webhook,
            About::Blocked { .. } => true,
            About::Connect(_) | About::Publish(_) => false,
        };
        if is_for_relay && has_place && self.world.is_relayed.load(Ordering::Relaxed) {
            self.hooks.deadlines.push_back((now.ms() + self.world.config.limits.inquiry_ms, number));
            self.send_out(Outward::Inquiry { number, inquiry: Box::new(Inquiry { endpoint, about }) });
        } else if is_for_relay {
            self.post(Parcel::Ruled { number, ruling: Box::new(Ruling::Unavailable) });
        } else if has_place {
            self.hooks.deadlines.push_back((now.ms() + self.world.config.limits.inquiry_ms, number));
            self.hooks.outgoing.push_back((number, Inquiry { endpoint, about }));
        } else {
            self.counters(endpoint).unasked.add(1);
            self.post(Parcel::Ruled { number, ruling: Box::new(Ruling::Unavailable) });
        }
    }

    /// The back end has answered, or nobody will. An answer that comes too late finds nothing; one for a connection that has ended
    /// changes nothing.
    pub(super) fn ruled(&mut self, now: Now, number: u64, ruling: Ruling) {
        let Some(Waiting { conn: id, wish, .. }) = self.hooks.take(number) else { return };
        let Some(slot) = self.asker(id) else { return };
        let is_unavailable = matches!(ruling, Ruling::Unavailable);
        let (allowed, reason) = match ruling {
            Ruling::Allowed(changes) => (Some(changes), None),
            Ruling::Refused(reason) => (None, reason),
            Ruling::Unavailable => (None, Some(UNAVAILABLE.into())),
        };
        self.hooks.reason = reason;
        match (wish, allowed) {
            (Wish::Connect, _) if is_unavailable => {
                let refused = self.conns.get(slot).map(|conn| self.dialect(conn.endpoint).unavailable(now));
                if let Some(refused) = refused {
                    self.turn_away(now, slot, refused);
                }
            }
            (Wish::Connect, allowed) => self.let_in_ruled(now, slot, allowed),
            (Wish::Identify { note }, Some(changes)) => {
                self.change_profile(slot, changes, true);
                self.ask_user_home(now, slot, Some(note));
            }
            (Wish::Identify { note }, None) => {
                self.consult(now, slot, |dialect, cx, _, acts| dialect.identified(cx, Err(EnterFault::Refused), &note, acts));
            }
            (Wish::Enter(entry), allowed) => self.enter_ruled(now, slot, entry, allowed.is_some()),
            (Wish::Watch { users, note }, Some(_)) => self.watch(now, slot, &users, note),
            (Wish::Watch { note, .. }, None) => {
                let refused = Err(EnterFault::Refused);
                self.consult(now, slot, |dialect, cx, _, acts| dialect.watched(cx, refused, Some(&note), acts));
            }
            (Wish::Hear(text), _) => self.hear_looked_up(now, slot, &text, None),
            (Wish::Say(held), allowed) => self.say_ruled(now, slot, *held, allowed.as_ref()),
        }
        self.hooks.reason = None;
        self.release(id);
    }

    /// It is known whom the user of a connection has blocked that waits with what it has said.
    pub(super) fn looked_up(&mut self, now: Now, number: u64, blocked: Vec<String>) {
        let Some(Waiting { conn: id, wish: Wish::Hear(text), .. }) = self.hooks.take(number) else { return };
        let Some(slot) = self.asker(id) else { return };
        self.hear_looked_up(now, slot, &text, Some(blocked));
        self.release(id);
    }

    /// A connection breaks off while the back end is asked about what it has said: that is dropped, like what was on its way, so that
    /// the connection can be taken up again.
    pub(super) fn drop_saying(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot).filter(|conn| conn.waiting == 1) else { return };
        let (id, endpoint) = (self.conn_id(slot, conn), conn.endpoint);
        // As many as wait, and only for who breaks off in such a moment.
        let is_it = |waiting: &Waiting| waiting.conn == id && matches!(waiting.wish, Wish::Say(_) | Wish::Hear(_));
        let Some(number) = self.hooks.waiting.iter().find(|(_, waiting)| is_it(waiting)).map(|(number, _)| *number) else { return };
        self.hooks.take(number);
        self.counters(endpoint).dropped[DropReason::Unsent.index()].add(1);
        self.release(id);
    }

    /// Gives up what was not answered in time.
    pub(super) fn end_waiting_inquiries(&mut self, now: Now, until_ms: u64) {
        while let Some((_, number)) = self.hooks.deadlines.pop_front_if(|(at_ms, _)| *at_ms <= until_ms) {
            let Some(waiting) = self.hooks.waiting.get(&number) else { continue };
            self.counters(waiting.endpoint).unanswered.add(1);
            self.ruled(now, number, Ruling::Unavailable);
        }
    }

    /// Whether the back end is asked whether a connection may enter a room, or a set that it keeps in Redis.
    pub(super) fn asks_of_rooms(&self, conn: &Conn) -> bool {
        let membership = self.world.config.endpoints[usize::from(conn.endpoint.0)].membership;
        let has_lists = conn.profile.identity.as_ref().is_some_and(|identity| identity.rooms().is_some() || identity.groups().is_some());
        membership == Membership::Webhook || membership.is_in_redis(has_lists, self.world.config.relay.is_some())
    }

    /// Asks whether a connection may enter a room.
    pub(super) fn inquire_entry(&mut self, now: Now, slot: u32, entry: Entry) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        conn.asked_rooms += 1;
        let about = About::Join { user: conn.profile.user.clone(), conn: conn.sid, rooms: vec![entry.room.clone()] };
        self.inquire(now, slot, about, Wish::Enter(entry));
    }

    fn enter_ruled(&mut self, now: Now, slot: u32, entry: Entry, is_allowed: bool) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        conn.asked_rooms -= 1;
        if is_allowed {
            return self.enter_allowed(slot, entry);
        }
        let (room, note) = (entry.room, entry.note);
        self.consult(now, slot, |dialect, cx, _, acts| dialect.entered(cx, &room, Err(EnterFault::Refused), note.as_deref(), acts));
    }

    /// Asks whether a connection may watch users; each is a room of the name that is his own.
    pub(super) fn inquire_watch(&mut self, now: Now, slot: u32, users: Vec<UserId>, note: Box<str>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let dialect = self.dialect(conn.endpoint);
        let name = |user: &UserId| dialect.own_room(user).map_or_else(|| Room::user(conn.endpoint, user).name, Arc::from);
        let about = About::Join { user: conn.profile.user.clone(), conn: conn.sid, rooms: users.iter().map(name).collect() };
        self.inquire(now, slot, about, Wish::Watch { users, note });
    }
}
