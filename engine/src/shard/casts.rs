//! Parcels arriving at a shard: the home's side (enter, leave, publish) and the members' side (answers and casts).

use std::rc::Rc;

use super::backlog::{Event, To};
use super::history::Past;
use super::links::{Conn, Stage};
use super::parcel::{Announcement, Answer, Cast, Enter, Leave, Origin, Parcel, Publish, Return};
use super::recovery::NO_LINK;
use super::room_calls::{RoomAnswer, RoomFault};
use super::{Shard, deadlines};
use crate::auth::Identity;
use crate::dialect::{EnterFault, RoomView, Sight};
use crate::event::What;
use crate::fault::DropReason;
use crate::ids::{ConnId, Room, Sid};
use crate::time::Now;

impl Shard {
    pub(super) fn receive(&mut self, now: Now, parcel: Parcel) {
        match parcel {
            Parcel::Enter(enter) => self.home_enter(now, enter),
            Parcel::Leave(leave) => self.home_leave(now, *leave),
            Parcel::Publish(publish) => self.home_publish(now, *publish),
            Parcel::Recall { conn, room } => self.home_recall(now, conn, room),
            Parcel::Recollected { ticket, recollection } => self.recollected(now, ticket, recollection),
            Parcel::Entered { conn, room, again, outcome, note } => self.entered(now, conn, &room, again, &outcome, note.as_deref()),
            Parcel::Left { conn, room, view, note } => {
                if let Some(slot) = self.asker(conn) {
                    self.vacate_room(now, slot, &room);
                    self.consult(now, slot, |dialect, cx, _, acts| dialect.left(cx, &room.name, &view, &note, acts));
                    self.release(conn);
                }
            }
            Parcel::Recalled { conn, room, kept } => {
                if let Some(slot) = self.asker(conn) {
                    self.consult(now, slot, |dialect, cx, _, acts| dialect.recalled(cx, &room.name, &kept, acts));
                    self.release(conn);
                }
            }
            Parcel::Cast(cast) => self.deliver(now, &cast),
            Parcel::Roll(roll) => self.roll(*roll),
            Parcel::Registered { room } => self.homes.registered(&room),
            Parcel::Arrival(arrival) => self.arrive_from_elsewhere(now, &arrival),
            Parcel::Grant(grant) => self.granted(now, &grant),
            Parcel::Round(round) => self.go_round(round),
            Parcel::Sent(sent) => self.remember_sent(now, *sent),
            Parcel::Confirm(confirm) => self.home_confirm(now, *confirm),
            Parcel::Confirmed { conn, was_sent, told, note } => {
                // Also if the connection has ended meanwhile: the user has it all the same.
                told.into_iter().for_each(|event| self.tell_event(*event));
                if let Some(slot) = self.asker(conn) {
                    self.consult(now, slot, |dialect, cx, _, acts| dialect.confirmed(cx, was_sent, &note, acts));
                    self.release(conn);
                }
            }
            Parcel::Poll(poll) => self.take_poll(now, *poll),
            Parcel::PollAborted { sid, from } => self.poll_aborted(now, sid, from),
            Parcel::PollAnswer { to, status, content } => self.send_poll_answer(now, to, status, &content),
            Parcel::Return(returning) => self.home_return(now, *returning),
            Parcel::GiveUp { room, shard } => {
                self.homes.give_up(&room, shard, &self.stats);
                self.answer_ended_rooms();
            }
            Parcel::Dissolve { room } => self.dissolve(now, &room),
            Parcel::Answered { ask, answer, .. } => self.answers.push_back((ask, *answer)),
            Parcel::Settle(luggage) => self.take_in(now, *luggage),
            Parcel::Forget { sid } => drop(self.moved_away.remove(&sid)),
            Parcel::Ask { ask, question } => self.answer(now, ask, question),
            Parcel::Ruled { number, ruling } => self.ruled(now, number, *ruling),
            Parcel::Drain { over_ms } => self.drain = Some(deadlines::Drain::new(now, over_ms, self.links.len())),
        }
    }

    /// The home has taken the connection out of a room.
    fn vacate_room(&mut self, now: Now, slot: u32, room: &Room) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        conn.leaving = None;
        let seat = self.conns.get(slot).and_then(|conn| self.seat_of(conn, room));
        if let Some(seat) = seat {
            self.vacate(slot, seat);
            self.tell_of_room(now, slot, room, What::RoomLeave);
        }
    }

    /// The connection that waits for an answer, if it is still there.
    pub(super) fn asker(&self, conn: ConnId) -> Option<u32> {
        self.conns.holds(conn.slot, conn.generation).then_some(conn.slot)
    }

    /// Answers a connection that wants in; `past` is what it gets to know of what was said before.
    pub(super) fn enter_home(&mut self, now: Now, enter: Enter, past: Past) {
        let Enter { conn, room, presence, again, create, members_max, announce, online, note, .. } = enter;
        // Only live connections have such a name, and this shard is their home.
        let taken = Sid::parse(&room.name).is_some_and(|sid| self.find(sid).is_some());
        let entered = match (taken, again) {
            (true, _) => Err(EnterFault::IsConnection),
            (_, true) if self.homes.has(&room) => Ok(false),
            (_, true) => Err(EnterFault::NoRoom),
            (_, false) => self.homes.enter(&room, conn.shard, &presence, create, members_max, &self.stats),
        };
        let history = past.texts();
        let outcome = entered.map(|_| RoomView { of_user: self.of_user(&room), history, ..self.homes.view(&room, online) });
        let first = entered == Ok(true);
        if first {
            self.absences.end(&room);
        }
        if entered.is_ok() && !again {
            self.homes.touch(&room, now.unix_ms);
        }
        // The others hear it before the one who enters is told: he is not among them yet.
        if let (true, Some(Announcement { to, frame })) = (first, announce) {
            self.announce(now, conn, to, frame);
        }
        self.post(Parcel::Entered { conn, room, again, outcome, note });
    }

    fn home_leave(&mut self, now: Now, leave: Leave) {
        let Leave { conn, room, presence, was_in, away, announce, unix_ms, note, ask } = leave;
        if let Some(ask) = ask {
            let is_known = self.homes.has(&room) || self.creates_rooms(room.endpoint);
            let answer = if was_in || is_known { RoomAnswer::Done } else { RoomAnswer::Refused(RoomFault::NoRoom) };
            self.post(Parcel::Answered { to: conn.shard, ask, answer: Box::new(Answer::Room(answer)) });
        }
        let last = was_in && self.homes.leave(&room, conn.shard, &presence, away, &self.stats);
        if last && room.is_user() && self.dialect(room.endpoint).is_watched() {
            self.absences.begin(&room, unix_ms);
        }
        if let (true, Some(Announcement { to, frame })) = (last, announce) {
            self.announce(now, conn, to, frame);
        }
        if was_in {
            self.homes.touch(&room, unix_ms);
            self.answer_ended_rooms();
        }
        if let Some(note) = note {
            let view = self.homes.view(&room, true);
            self.post(Parcel::Left { conn, room, view, note });
        }
    }

    fn home_return(&mut self, now: Now, returning: Return) {
        let Return { conn, room, presence, announce } = returning;
        let first = self.homes.come_back(&room, &presence, &self.stats);
        if first {
            self.absences.end(&room);
        }
        if let (true, Some(Announcement { to, frame })) = (first, announce) {
            self.announce(now, conn, to, frame);
        }
    }

    /// Tells a room of somebody's coming or going.
    fn announce(&mut self, now: Now, conn: ConnId, to: Room, frame: crate::frame::Frame) {
        if !to.name.is_empty() && !self.homes.has(&to) {
            // Nobody is left to tell, the last one has gone and the room with him, or nobody watches: nothing is lost.
            return;
        }
        self.home_publish(
            now,
            Publish { room: to, frame, except: Some(conn), hidden_from: None, keep: None, read_ns: now.ns, origin: Origin::HERE },
        );
    }

    /// Casts a publication where its room is at home here, else passes it on, which happens once: an addressee turns out to be a user of
    /// another home, or a user's home tells everybody.
    pub(super) fn home_publish(&mut self, now: Now, mut publish: Publish) {
        let connection = self.connection_of(&publish.room);
        if let Some(addressee) = publish.room.addressee() {
            let stranger = Sid::parse(addressee).filter(|_| connection.is_none());
            publish.room = publish.room.resolved(connection.is_some());
            if stranger.is_some() {
                // A connection of another host may be meant, which is nobody's user room.
                self.tell_other_hosts(now, &publish, stranger);
                publish.origin = Origin::Elsewhere;
            }
        }
        if self.home_of(&publish.room) != self.id {
            return self.post(Parcel::Publish(Box::new(publish)));
        }
        if let Some(slot) = connection {
            return self.deliver_to(now, slot, publish);
        }
        let is_told = self.tell_other_hosts(now, &publish, None);
        let Publish { room, frame, except, hidden_from, keep, read_ns, origin } = publish;
        let mut casts = Vec::new();
        let found = self.homes.publish(&room, keep, now.unix_ms, &self.stats, |shard, seq| casts.push((shard, seq)));
        if found.is_none() && frame.endpoint().is_some() && !is_told && origin != Origin::Elsewhere {
            self.counters(room.endpoint).dropped[DropReason::NoRoom.index()].add(1);
        }
        for (shard, seq) in casts {
            let (room, frame, hidden_from) = (room.clone(), frame.clone(), hidden_from.clone());
            self.post_to(shard, Parcel::Cast(Box::new(Cast { room, seq, frame, except, hidden_from, read_ns, emit: None })));
        }
    }

    /// The open connection whose own room this is, or who is addressed by it.
    pub(super) fn connection_of(&self, room: &Room) -> Option<u32> {
        let slot = self.find(Sid::parse(room.addressee().unwrap_or(&room.name))?)?;
        self.conns.get(slot).is_some_and(|conn| conn.endpoint == room.endpoint && conn.opening.is_none()).then_some(slot)
    }

    /// Queues a publication for the one connection whose room it is for: a room of one has no members to walk.
    fn deliver_to(&mut self, now: Now, slot: u32, publish: Publish) {
        let Some(conn) = self.conns.get(slot) else { return };
        let is_hidden = publish.hidden_from.is_some_and(|author| blocks(&author, conn));
        if is_hidden || publish.except == Some(self.conn_id(slot, conn)) {
            return;
        }
        // Whoever is away gets it when he comes back, and is told of then.
        let (endpoint, users) = (conn.endpoint, if conn.is_here() { vec![conn.profile.user.clone()] } else { Vec::new() });
        self.note_sent(endpoint, publish.frame.receipt(), users);
        self.say(now, slot, publish.frame);
        self.delivered.push(publish.read_ns);
    }

    /// Queues a cast for the members on this shard: a reference count each, nothing is allocated or copied per receiver.
    fn deliver(&mut self, now: Now, cast: &Cast) {
        if let Some((ask, emit)) = &cast.emit {
            return self.deliver_emit_cast(now, cast, *ask, emit);
        }
        let frame = Rc::new(cast.frame.clone());
        self.remember(now, cast.room.endpoint, || {
            let (except, hidden_from) = (cast.except, cast.hidden_from.clone());
            Some(Event { except, hidden_from, ..Event::new(now.ms(), To::Room(cast.room.name.clone()), &frame)? })
        });
        let Some(room) = self.membership.find(&cast.room) else { return };
        self.membership.arrived(room, cast.seq);
        let mut got = Vec::new();
        let except = cast.except.filter(|except| except.shard == self.id).map(|except| (except.slot, except.generation));
        for i in 0..self.membership.members(room).len() {
            let member = self.membership.members(room)[i];
            if except.is_some_and(|(slot, generation)| slot == member.conn && self.conns.generation(slot) == generation) {
                continue;
            }
            if let Some(author) = &cast.hidden_from
                && self.conns.get(member.conn).is_some_and(|conn| blocks(author, conn))
            {
                continue;
            }
            self.push_shared(member.link, frame.clone());
            if frame.receipt().is_some() && member.link != NO_LINK {
                got.extend(self.conns.get(member.conn).map(|conn| conn.profile.user.clone()));
            }
        }
        self.note_sent(cast.room.endpoint, frame.receipt(), got);
        self.delivered.push(cast.read_ns);
        self.cut_slow(now);
    }

    fn entered(&mut self, now: Now, id: ConnId, room: &Room, again: bool, outcome: &Result<RoomView, EnterFault>, note: Option<&str>) {
        let Some(slot) = self.asker(id) else {
            if !again {
                self.entered_too_late(now, id, room, outcome.is_ok());
            }
            return;
        };
        let Some(conn) = self.conns.get_mut(slot) else { return };
        // What is said to one who was in already is no answer to another wish to enter, which came when it had been taken out.
        let waited = conn.awaits(room).filter(|_| !again).map(|waited| conn.entering.swap_remove(waited));
        if conn.entering.is_empty() {
            conn.entering = Vec::new();
        }
        if waited.is_some() && outcome.is_ok() {
            self.membership.join(room, slot, conn.link, &mut conn.seats);
            self.note_stay(slot, room);
            self.tell_of_room(now, slot, room, What::RoomJoin);
        }
        let outcome = outcome.as_ref().map_err(|fault| *fault);
        let (is_granted, is_revoked) = waited.as_ref().map_or((false, false), |waited| (waited.is_granted, waited.is_revoked));
        let moved = outcome.map_or_else(|fault| RoomAnswer::Refused(fault.into()), |_| RoomAnswer::Done);
        self.answers.extend(waited.into_iter().flat_map(|waited| waited.asks).map(|ask| (ask, Answer::Room(moved.clone()))));
        if is_revoked {
            self.expel(now, slot, room, None);
        }
        if is_granted {
            if outcome.is_err() {
                self.counters(room.endpoint).dropped[DropReason::NoRoom.index()].add(1);
            }
            self.arrive(now, slot);
        } else if room.is_public() {
            self.consult(now, slot, |dialect, cx, _, acts| dialect.entered(cx, &room.name, outcome, note, acts));
        } else if let Some(user) = room.watched() {
            let seen = outcome.map(|view| (user, view.of_user.as_ref().map_or(Sight::Unknown, |of_user| of_user.sight)));
            self.consult(now, slot, |dialect, cx, _, acts| dialect.watched(cx, seen, note, acts));
        } else if self.conns.get(slot).is_some_and(|conn| matches!(conn.stage, Stage::Asked)) {
            self.identified(now, slot, outcome, note.unwrap_or_default());
        } else {
            self.admitted(now, slot, outcome.map(|_| ()));
        }
        self.release(id);
    }

    /// The connection ended while it waited: if the room let it in, it leaves now.
    fn entered_too_late(&mut self, now: Now, id: ConnId, room: &Room, is_in: bool) {
        let Some(mut ghost) = self.ghosts.remove(&id) else { return };
        if let Some(waited) = ghost.awaits(room) {
            let asks = ghost.entering.swap_remove(waited).asks;
            self.answers.extend(asks.into_iter().map(|ask| (ask, Answer::Room(RoomAnswer::Refused(RoomFault::NoConnection)))));
            if is_in {
                let parting = self.parting(now, id, &ghost, room.clone(), true, None);
                self.post(Parcel::Leave(parting));
            }
        }
        self.keep_ghost(id, ghost);
    }

    /// Keeps an ended connection until the rooms it asked for have answered.
    pub(super) fn keep_ghost(&mut self, id: ConnId, conn: Conn) {
        if !conn.entering.is_empty() {
            self.ghosts.insert(id, conn);
        }
    }
}

/// Whether the author has blocked the connection's user.
pub(super) fn blocks(author: &Identity, conn: &Conn) -> bool {
    author.has_blocked(&conn.profile.user)
}
