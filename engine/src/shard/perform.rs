//! What dialects want done becomes state here: every [`Act`] of a connection is performed in this one place.

use std::sync::Arc;

use super::Shard;
use super::links::{Conn, Entering, Typing};
use super::membership::Seats;
use super::parcel::{Announcement, Enter, Leave, Origin, Parcel, Publish};
use super::recovery::NO_LINK;
use crate::dialect::{self, Act, Cx, Dialect, EnterFault, Entry, Publication, RoomView};
use crate::ids::{ConnId, EndpointId, Room};
use crate::json::Scratch;
use crate::limits::TYPING_MS;
use crate::stats::EndpointStats;
use crate::time::Now;

impl Shard {
    /// Performs one act of a connection. The one place where clients' wishes become state.
    pub(super) fn perform(&mut self, now: Now, slot: u32, act: Act) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (id, endpoint) = (self.conn_id(slot, conn), conn.endpoint);
        match act {
            // What was sent before has shown it to be a slow reader: who is away changes nothing, and asks nothing.
            Act::Enter(_)
            | Act::Leave { .. }
            | Act::Recall { .. }
            | Act::Typing { .. }
            | Act::Identify { .. }
            | Act::Watch { .. }
            | Act::Confirm(_)
                if conn.link == NO_LINK => {}
            Act::Send(frame) => self.say(now, slot, frame),
            Act::Publish(mut publication) => {
                if self.hides(endpoint) {
                    publication.hidden_from = self.hidden_from(slot);
                    if let Some(keep) = &mut publication.keep {
                        keep.hidden_from = publication.hidden_from.clone();
                    }
                }
                self.tell_of_message(now, slot, &publication);
                self.publish(endpoint, id, publication);
            }
            Act::Stir(room) => self.homes.touch(&Room { endpoint, name: room }, now.unix_ms),
            Act::Enter(entry) => self.enter(now, slot, entry),
            Act::Leave { room, note } => self.leave(now, slot, Room { endpoint, name: room }, note),
            Act::Recall { room } => {
                self.hold(slot);
                self.post(Parcel::Recall { conn: id, room: Room { endpoint, name: room } });
            }
            Act::Typing { room, on } => self.types(now, slot, room, on),
            Act::Refresh(identity) => self.refresh(now, slot, identity),
            Act::Identify { profile, note } => self.identify(now, slot, *profile, note),
            Act::Watch { users, note } if self.conns.get(slot).is_some_and(|conn| self.asks_of_rooms(conn)) => {
                self.inquire_watch(now, slot, users, note);
            }
            Act::Watch { users, note } => self.watch(now, slot, &users, note),
            Act::Confirm(confirmation) => self.confirm(slot, *confirmation),
            Act::Heartbeat => {
                if let Some(conn) = self.conns.get_mut(slot) {
                    conn.heard_tenths = self.heard_before;
                }
            }
            Act::Drop(reason) => self.counters(endpoint).dropped[reason.index()].add(1),
            Act::Close(reason) => self.disconnect(now, slot, reason, None),
        }
    }

    pub(super) fn publish(&mut self, endpoint: EndpointId, id: ConnId, publication: Publication) {
        let Publication { room, frame, to_self, keep, hidden_from, told: _, submission: _ } = publication;
        let except = (!to_self).then_some(id);
        let room = Room { endpoint, name: room };
        // What a user tells everybody goes by way of his own home, as his coming and going does: neither overtakes the other.
        let user = self.conns.get(id.slot).filter(|_| room.name.is_empty()).map(|conn| Room::user(endpoint, &conn.profile.user));
        let to = self.home_of(user.as_ref().unwrap_or(&room));
        let sender = self.conns.get(id.slot).filter(|_| !to_self).map(|conn| conn.sid);
        let origin = Origin::Here { except: sender };
        self.post_to(to, Parcel::Publish(Box::new(Publish { room, frame, except, hidden_from, keep, read_ns: self.read_ns, origin })));
    }

    pub(super) fn enter(&mut self, now: Now, slot: u32, entry: Entry) {
        let rooms_max = self.world.config.limits.rooms_per_connection;
        let Some(conn) = self.conns.get(slot) else { return };
        let room = Room { endpoint: conn.endpoint, name: entry.room };
        if !room.is_public() {
            // Users' rooms and everybody's are entered by who is in them by nature, which only the engine knows.
            return self.consult(now, slot, |dialect, cx, _, acts| {
                dialect.entered(cx, &room.name, Err(EnterFault::NoRoom), entry.note.as_deref(), acts);
            });
        }
        let again = self.seat_of(conn, &room).is_some();
        // The user's own room and everybody's do not count.
        let public = conn.seats.iter().filter(|seat| self.membership.room(seat.room).is_some_and(Room::is_public)).count();
        if !again && public + conn.entering.len() + conn.asked_rooms as usize >= rooms_max {
            let note = entry.note;
            return self.consult(now, slot, |dialect, cx, _, acts| {
                dialect.entered(cx, &room.name, Err(EnterFault::TooMany), note.as_deref(), acts);
            });
        }
        if !again && self.asks_of_rooms(conn) {
            return self.inquire_entry(now, slot, Entry { room: room.name, ..entry });
        }
        self.enter_allowed(slot, Entry { room: room.name, ..entry });
    }

    /// Enters a room that nobody has to be asked about any more.
    pub(super) fn enter_allowed(&mut self, slot: u32, entry: Entry) {
        let Some(conn) = self.conns.get(slot) else { return };
        let room = Room { endpoint: conn.endpoint, name: entry.room };
        // The back end may have put it in while it was asked about it: then the room's answer is all that is left to wait for.
        let again = self.seat_of(conn, &room).is_some() || conn.awaits(&room).is_some();
        let announce = entry.announce.filter(|_| !again).map(|frame| Announcement { to: room.clone(), frame });
        let enter = Enter {
            conn: self.conn_id(slot, conn),
            room,
            presence: conn.profile.presence().clone(),
            again,
            create: entry.create,
            members_max: u32::MAX,
            announce,
            history: entry.history,
            online: entry.online,
            note: entry.note,
        };
        self.ask_home(slot, enter, false);
    }

    /// Sends a wish to enter to the room's home; the link waits for the answer. `is_granted`: the wish is the back end's.
    pub(super) fn ask_home(&mut self, slot: u32, enter: Enter, is_granted: bool) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if !enter.again {
            conn.entering.push(Entering { room: enter.room.clone(), is_granted, is_revoked: false, asks: Vec::new() });
        }
        self.hold(slot);
        self.post(Parcel::Enter(Box::new(enter)));
    }

    /// Asks the room's home to take the connection out. It keeps its seat until the answer comes, so it misses nothing that the room
    /// heard before.
    pub(super) fn leave(&mut self, now: Now, slot: u32, room: Room, note: Box<str>) {
        let Some(conn) = self.conns.get(slot) else { return };
        if !room.is_public() {
            return self.consult(now, slot, |dialect, cx, _, acts| dialect.left(cx, &room.name, &RoomView::default(), &note, acts));
        }
        let is_in = self.seat_of(conn, &room).is_some();
        if is_in {
            self.stop_typing_in(now, slot, &room.name);
        }
        self.hold(slot);
        self.send_leave(now, slot, room.clone(), is_in, Some(note));
        if let Some(conn) = self.conns.get_mut(slot).filter(|_| is_in) {
            conn.leaving = Some(Box::new(room));
        }
    }

    /// Tells the home that a connection is out, and what others hear if it was the last of its presence.
    pub(super) fn send_leave(&mut self, now: Now, slot: u32, room: Room, was_in: bool, note: Option<Box<str>>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let parting = self.parting(now, self.conn_id(slot, conn), conn, room, was_in, note);
        self.post(Parcel::Leave(parting));
    }

    pub(super) fn parting(&self, now: Now, id: ConnId, conn: &Conn, room: Room, was_in: bool, note: Option<Box<str>>) -> Box<Leave> {
        let cx = self.context(now, conn);
        let announce = if room.is_public() {
            let frame = self.dialect(conn.endpoint).farewell(&cx, &room.name);
            frame.map(|frame| Announcement { to: room.clone(), frame })
        } else {
            self.presence_news(&cx, false).filter(|_| room.is_user())
        };
        let (presence, unix_ms) = (conn.profile.presence().clone(), now.unix_ms);
        Box::new(Leave { conn: id, room, presence, was_in, away: false, announce, unix_ms, note, ask: None })
    }

    /// What is told of a user who comes or goes, and to whom.
    pub(super) fn presence_news(&self, cx: &Cx<'_>, online: bool) -> Option<Announcement> {
        let dialect = self.dialect(cx.endpoint_id);
        let (endpoint, user) = (cx.endpoint_id, &cx.profile.user);
        let to = if dialect.is_watched() { Room::watchers(endpoint, user) } else { Room::everybody(endpoint) };
        dialect.presence(cx, online).map(|frame| Announcement { to, frame })
    }

    pub(super) fn types(&mut self, now: Now, slot: u32, room: Arc<str>, on: bool) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if !on {
            return conn.typing.retain(|typing| typing.room != room);
        }
        let until_ms = now.ms() + TYPING_MS;
        match conn.typing.iter_mut().find(|typing| typing.room == room) {
            Some(typing) => typing.until_ms = until_ms,
            None => conn.typing.push(Typing { room, until_ms }),
        }
        let link = conn.link;
        self.arm(link, until_ms);
    }

    /// Asks the connection's dialect and performs what it wants.
    pub(super) fn consult(&mut self, now: Now, slot: u32, ask: impl FnOnce(&dyn Dialect, &Cx<'_>, &mut Scratch, &mut Vec<Act>)) {
        let acts = self.wishes(now, slot, ask);
        self.perform_all(now, slot, acts);
    }

    /// Asks the connection's dialect what it wants. Whoever asks performs it ([`Self::perform_all`]) or gives it back
    /// ([`Self::keep_acts`]), so that the next one who asks needs no new list.
    pub(super) fn wishes(&mut self, now: Now, slot: u32, ask: impl FnOnce(&dyn Dialect, &Cx<'_>, &mut Scratch, &mut Vec<Act>)) -> Vec<Act> {
        let mut acts = std::mem::take(&mut self.acts);
        let Some(conn) = self.conns.get(slot) else { return acts };
        let mut scratch = std::mem::take(&mut self.scratch);
        let membership = &self.membership;
        let find = |name: &str| {
            let mut rooms = conn.seats.iter().filter_map(|seat| membership.room(seat.room));
            rooms.find(|room| room.is_public() && *room.name == *name)
        };
        let inside = |name: &str| find(name).map(|room| &room.name);
        let is_alone_in = |name: &str| find(name).is_some_and(|room| self.has_one_member(room));
        let mut cx = self.context(now, conn);
        (cx.inside, cx.is_alone_in) = (&inside, &is_alone_in);
        ask(self.dialect(conn.endpoint), &cx, &mut scratch, &mut acts);
        self.scratch = scratch;
        acts
    }

    /// Performs what the connection's dialect wants.
    pub(super) fn perform_all(&mut self, now: Now, slot: u32, mut acts: Vec<Act>) {
        let Some(id) = self.conns.get(slot).map(|conn| self.conn_id(slot, conn)) else { return self.keep_acts(acts) };
        for act in acts.drain(..) {
            // One that has ended, by an act before, may have a successor in its slot already.
            if self.conns.holds(id.slot, id.generation) {
                self.perform(now, slot, act);
            }
        }
        self.keep_acts(acts);
    }

    /// Throws away what is left of a dialect's wishes, and keeps the list.
    pub(super) fn keep_acts(&mut self, mut acts: Vec<Act>) {
        acts.clear();
        self.acts = acts;
    }

    /// True exactly when it is known here that a room has one member and no more, one that may come back counted too.
    fn has_one_member(&self, room: &Room) -> bool {
        self.world.config.relay.is_none() && self.home_of(room) == self.id && self.homes.has_one_member(room)
    }

    /// The connection's circumstances but for the rooms it is in.
    pub(super) fn context<'a>(&'a self, now: Now, conn: &'a Conn) -> Cx<'a> {
        Cx {
            now,
            endpoint_id: conn.endpoint,
            endpoint: &self.world.config.endpoints[usize::from(conn.endpoint.0)],
            sid: conn.sid,
            profile: &conn.profile,
            inside: &|_| None,
            is_alone_in: &|_| false,
            verifier: self.world.config.verifier.as_ref(),
            limits: &self.world.config.limits,
            rate_wait_ms: self.links.get(conn.link).map_or(0, |link| link.rate.wait_ms(&self.world.config.limits)),
            entropy: &self.entropy,
            attachments: &self.attachments,
            wanted: &self.world.wanted,
            reason: self.hooks.reason.as_deref(),
        }
    }

    /// True exactly when the endpoint's rooms come into being by being entered.
    pub(super) fn creates_rooms(&self, endpoint: EndpointId) -> bool {
        self.dialect(endpoint).creates_rooms(&self.world.config.endpoints[usize::from(endpoint.0)])
    }

    pub(super) fn dialect(&self, endpoint: EndpointId) -> &'static dyn Dialect {
        dialect::of(self.world.config.endpoints[usize::from(endpoint.0)].dialect)
    }

    pub(super) fn counters(&self, endpoint: EndpointId) -> &EndpointStats {
        &self.stats.endpoints[usize::from(endpoint.0)]
    }

    pub(super) fn conn_id(&self, slot: u32, conn: &Conn) -> ConnId {
        ConnId { shard: self.id, slot, generation: conn.generation }
    }

    /// Index of the connection's seat in a room.
    pub(super) fn seat_of(&self, conn: &Conn, room: &Room) -> Option<usize> {
        let slot = self.membership.find(room)?;
        conn.seats.iter().position(|seat| seat.room == slot)
    }

    pub(super) fn vacate(&mut self, slot: u32, seat: usize) {
        let room =
            self.conns.get(slot).filter(|conn| conn.recovery.is_some()).and_then(|conn| self.membership.room(conn.seats.get(seat)?.room));
        if let Some(room) = room.cloned() {
            self.note_departure(slot, &room);
        }
        let Some(mut seats) = self.conns.get_mut(slot).map(|conn| std::mem::replace(&mut conn.seats, Seats::new())) else { return };
        let conns = &mut self.conns;
        self.membership.leave(&mut seats, seat, |other, seat, at| {
            // The other one is never this connection: its seat in this room is the one that goes.
            if let Some(moved) = conns.get_mut(other).and_then(|conn| conn.seats.get_mut(seat as usize)) {
                moved.moved_to(at);
            }
        });
        if let Some(conn) = self.conns.get_mut(slot) {
            conn.seats = seats;
        }
    }
}
