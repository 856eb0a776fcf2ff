//! Parcels arriving at a shard: the home's side (enter, leave, publish) and the members' side (answers and casts).

use std::rc::Rc;

use super::backlog::{Event, To};
use super::consult::{Consult, Findings, SetAside, Step};
use super::history::Past;
use super::links::{Conn, Stage};
use super::outward::Published;
use super::parcel::{Announcement, Answer, Cast, Enter, Leave, Origin, Parcel, Publish, Return};
use super::recovery::NO_LINK;
use super::room_calls::{RoomAnswer, RoomFault};
use super::{Shard, deadlines};
use crate::auth::Identity;
use crate::dialect::{EnterFault, RoomView, Sight};
use crate::event::What;
use crate::fault::DropReason;
use crate::ids::{ConnId, Room, Sid, UserId};
use crate::time::Now;

impl Shard {
    pub(super) fn receive(&mut self, now: Now, parcel: Parcel) {
        match parcel {
            Parcel::Enter(enter) => self.home_enter(now, enter),
            Parcel::Leave(leave) => self.home_leave(now, *leave),
            Parcel::Publish(publish) => match self.number(now, *publish) {
                // Nothing is to be handled before it: it need not queue.
                Some(cast) if self.loopback.is_empty() => self.deliver(now, &cast),
                cast => self.loopback.extend(cast.map(|cast| Parcel::Cast(Box::new(cast)))),
            },
            Parcel::Recall { conn, room } => self.home_recall(now, conn, room),
            Parcel::Consulted { ticket, findings } => self.consulted(now, ticket, *findings),
            Parcel::Recollected { ticket, recollection } => self.recollected(now, ticket, Some(recollection)),
            Parcel::Entered { conn, room, again, outcome, note } => self.entered(now, conn, &room, again, &outcome, note.as_deref()),
            Parcel::Out { conn, room } => {
                if let Some(slot) = self.asker(conn) {
                    self.vacate_room(now, slot, &room);
                }
            }
            Parcel::Left { conn, room, is_out, view, note } => {
                if let Some(slot) = self.asker(conn) {
                    if !is_out {
                        self.vacate_room(now, slot, &room);
                    }
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
            Parcel::Tide { from: None, tide } => self.pass_tide_on(tide),
            Parcel::Tide { from: Some(from), tide } => self.take_tide(now, from, tide),
            Parcel::Fetched { ask, fetched } => self.fetched(now, ask, fetched),
            Parcel::Missed { conn, missed } => self.take_missed(now, conn, missed),
            Parcel::Inspect { ask, inspection } => self.inspect(now, ask, &inspection),
            Parcel::Tell(event) => {
                if self.wants(event.kind()) {
                    self.tell_event(*event);
                }
            }
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
            Parcel::Blocked { number, blocked } => self.looked_up(now, number, blocked),
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

    /// A connection wants in; `past` is what it gets to know of what was said before, where that has been looked up. It is counted in at once,
    /// so that whoever of its presence leaves meanwhile is not the last; what is said of it waits for what other hosts know, where that matters.
    pub(super) fn enter_home(&mut self, now: Now, enter: Enter, past: Option<Past>) {
        let Enter { conn, ref room, ref presence, again, create, members_max, .. } = enter;
        // Only live connections have such a name, and this shard is their home.
        let taken = Sid::parse(&room.name).is_some_and(|sid| self.find(sid).is_some());
        let entered = match (taken, again) {
            (true, _) => Err(EnterFault::IsConnection),
            (_, true) if self.homes.has(room) => Ok(false),
            (_, true) => Err(EnterFault::NoRoom),
            (_, false) => self.homes.enter(room, conn.shard, presence, create, members_max, &self.stats),
        };
        let is_first = match entered {
            Ok(is_first) => is_first,
            Err(fault) => return self.post(Parcel::Entered { conn, room: enter.room, again, outcome: Err(fault), note: enter.note }),
        };
        if is_first {
            self.absences.end(room);
        }
        if !again {
            self.homes.touch(room, now.unix_ms);
        }
        if self.world.config.relay.is_none() {
            return self.finish_enter(now, enter, past, is_first, Findings::default());
        }
        let (recall, ticket) = self.ask_newest(now, &enter.room, enter.history).unzip();
        let mut consult = Consult { recall, ..self.question_of(now, &enter, is_first) };
        let is_shared = self.is_shared(&consult.room);
        if !is_shared {
            (consult.step, consult.online, consult.sight) = (None, false, false);
        }
        // Whoever is not the first hears no earlier that he is in than the first, who may still wait.
        let waits = consult.online || consult.sight || self.consults.concern(&consult.room) || (is_first && enter.is_told());
        if ticket.is_none() && (!is_shared || !waits) {
            if is_shared {
                self.tell_step(consult);
            }
            return self.finish_enter(now, enter, past, is_first, Findings::default());
        }
        let comer = (is_first && is_shared).then(|| enter.presence.clone());
        self.consult_others(now, consult, comer, SetAside::Enter { enter: Box::new(enter), is_first, past: ticket });
    }

    /// What other hosts are asked about somebody who wants in.
    fn question_of(&self, now: Now, enter: &Enter, is_first: bool) -> Consult {
        let room = &enter.room;
        if let Some(user) = room.watched() {
            let user = Room::user(room.endpoint, user);
            let is_here = self.homes.members(&user) > 0;
            return Consult { sight: !is_here, ..Consult::about(user) };
        }
        let step = is_first.then(|| step(now.unix_ms, &enter.presence, true, enter.announce.as_ref()));
        Consult { step, online: enter.online, ..Consult::about(room.clone()) }
    }

    /// Answers a connection that is counted in, unless its room has ended meanwhile.
    pub(super) fn finish_enter(&mut self, now: Now, enter: Enter, past: Option<Past>, is_first: bool, findings: Findings) {
        let Enter { conn, room, presence, again, announce, history, online, note, .. } = enter;
        // Who was in already may have been taken out meanwhile, and the room have ended and be there again.
        if !self.homes.has(&room) || (again && !self.homes.has_present(&room, &presence)) {
            if !again {
                self.uncount(now, &room, conn, &presence);
            }
            return self.post(Parcel::Entered { conn, room, again, outcome: Err(EnterFault::NoRoom), note });
        }
        // The others hear it before the one who enters is told: he is not among them yet.
        if let (true, Some(announcement)) = (is_first && findings.is_only != Some(false), announce) {
            self.announce(now, conn, announcement);
        }
        let history = past.unwrap_or_else(|| self.newest(now, &room, history)).texts();
        let mut view = RoomView { of_user: self.of_user(&room, findings.sight), history, ..self.homes.view(&room, false) };
        if online {
            view.online = self.online_of(&room, &presence, findings.online);
        }
        self.post(Parcel::Entered { conn, room, again, outcome: Ok(view), note });
    }

    /// Takes out of a room that has ended whom it had counted in and never answered.
    fn uncount(&mut self, now: Now, room: &Room, conn: ConnId, presence: &UserId) {
        if self.homes.leave(room, conn.shard, presence, false, &self.stats) && self.is_shared(room) {
            self.tell_step(Consult { step: Some(step(now.unix_ms, presence, false, None)), ..Consult::about(room.clone()) });
        }
        self.answer_ended_rooms();
    }

    fn home_leave(&mut self, now: Now, leave: Leave) {
        let Leave { conn, ref room, ref presence, was_in, away, unix_ms, ask, .. } = leave;
        if let Some(ask) = ask {
            let is_known = self.homes.has(room) || self.creates_rooms(room.endpoint);
            let answer = if was_in || is_known { RoomAnswer::Done } else { RoomAnswer::Refused(RoomFault::NoRoom) };
            self.post(Parcel::Answered { to: conn.shard, ask, answer: Box::new(Answer::Room(answer)) });
        }
        // Nobody is left to hear who leaves a room that has ended.
        let is_ending = self.homes.is_ending(room);
        let is_last = was_in && self.homes.leave(room, conn.shard, presence, away, &self.stats);
        if is_last && room.is_user() && self.dialect(room.endpoint).is_watched() {
            self.absences.begin(room, unix_ms);
        }
        if was_in {
            self.homes.touch(room, unix_ms);
            self.answer_ended_rooms();
        }
        let online = leave.note.is_some() && self.dialect(room.endpoint).shows_who_is_left();
        if !self.is_shared(room) || !(is_last || online) {
            return self.finish_leave(now, leave, is_last && !is_ending, false, Findings::default());
        }
        let announcement = leave.announce.as_ref().filter(|_| !is_ending);
        let step = is_last.then(|| step(unix_ms, presence, false, announcement));
        let consult = Consult { step, online, ..Consult::about(room.clone()) };
        if announcement.is_none() && leave.note.is_none() {
            self.tell_step(consult);
            return self.finish_leave(now, leave, false, false, Findings::default());
        }
        if leave.note.is_some() {
            self.post(Parcel::Out { conn, room: room.clone() });
        }
        self.consult_others(now, consult, None, SetAside::Leave { leave: Box::new(leave), is_last: is_last && !is_ending });
    }

    /// Tells of somebody who was counted out, and answers him.
    pub(super) fn finish_leave(&mut self, now: Now, leave: Leave, is_last: bool, is_out: bool, findings: Findings) {
        let Leave { conn, room, presence, announce, note, .. } = leave;
        if let (true, Some(announcement)) = (is_last && findings.is_only != Some(false), announce) {
            self.announce(now, conn, announcement);
        }
        if let Some(note) = note {
            let mut view = self.homes.view(&room, false);
            view.online = self.online_of(&room, &presence, findings.online);
            self.post(Parcel::Left { conn, room, is_out, view, note });
        }
    }

    fn home_return(&mut self, now: Now, returning: Return) {
        let Return { ref room, ref presence, ref announce, .. } = returning;
        if !self.homes.come_back(room, presence, &self.stats) {
            return;
        }
        self.absences.end(room);
        if !self.is_shared(room) {
            return self.finish_return(now, returning, &Findings::default());
        }
        let announcement = announce.as_ref().filter(|_| !self.homes.is_ending(room));
        let step = Some(step(now.unix_ms, presence, true, announcement));
        let consult = Consult { step, ..Consult::about(room.clone()) };
        let comer = Some(presence.clone());
        self.consult_others(now, consult, comer, SetAside::Return(Box::new(returning)));
    }

    /// Tells of somebody who is back.
    pub(super) fn finish_return(&mut self, now: Now, returning: Return, findings: &Findings) {
        let Return { conn, room, announce, .. } = returning;
        if let (true, Some(announcement)) = (findings.is_only != Some(false) && self.homes.has(&room), announce) {
            self.announce(now, conn, announcement);
        }
    }

    /// Tells a room here of somebody's coming or going. Other hosts are told with the consult, or have nothing to be told.
    fn announce(&mut self, now: Now, conn: ConnId, announcement: Announcement) {
        let Announcement { to, frame } = announcement;
        if !to.name.is_empty() && !self.homes.has(&to) {
            // Nobody is left to tell, the last one has gone and the room with him, or nobody watches: nothing is lost.
            return;
        }
        let (except, origin) = (Some(conn), Origin::Elsewhere);
        self.home_publish(now, Publish { room: to, frame, except, hidden_from: None, keep: None, read_ns: now.ns, origin });
    }

    /// Casts a publication where its room is at home here, else passes it on, which happens once: an addressee turns out to be a user of
    /// another home, or a user's home tells everybody.
    pub(super) fn home_publish(&mut self, now: Now, publish: Publish) {
        let cast = self.number(now, publish);
        self.loopback.extend(cast.map(|cast| Parcel::Cast(Box::new(cast))));
    }

    /// The same; the cast to this shard's own members is returned, where there are some.
    fn number(&mut self, now: Now, mut publish: Publish) -> Option<Cast> {
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
            self.post(Parcel::Publish(Box::new(publish)));
            return None;
        }
        if let Some(slot) = connection {
            self.deliver_to(now, slot, publish);
            return None;
        }
        let is_told = self.tell_other_hosts(now, &publish, None);
        let Publish { room, frame, except, hidden_from, keep, read_ns, origin } = publish;
        let Shard { id, homes, stats, outgoing, .. } = self;
        let mut here = None;
        let cast = |shard, seq| {
            if shard == *id {
                here = Some(seq);
                return;
            }
            let (room, frame, hidden_from) = (room.clone(), frame.clone(), hidden_from.clone());
            let cast = Cast { room, seq, frame, except, hidden_from, read_ns, emit: None };
            outgoing.push_back((shard, Parcel::Cast(Box::new(cast))));
        };
        let found = homes.publish(&room, keep, now.unix_ms, stats, cast);
        if found.is_none() && frame.endpoint().is_some() && !is_told && origin != Origin::Elsewhere {
            self.counters(room.endpoint).dropped[DropReason::NoRoom.index()].add(1);
        }
        here.map(|seq| Cast { room, seq, frame, except, hidden_from, read_ns, emit: None })
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
        let pace = self.membership.arrived(now, room, cast.seq);
        let holds = self.holds(self.membership.members(room).len(), pace);
        let mut got = Vec::new();
        let except = cast.except.filter(|except| except.shard == self.id).map(|except| (except.slot, except.generation));
        let (membership, mut queues, conns) = self.split();
        for member in membership.members(room) {
            if except.is_some_and(|(slot, generation)| slot == member.conn && conns.generation(slot) == generation) {
                continue;
            }
            if let Some(author) = &cast.hidden_from
                && conns.get(member.conn).is_some_and(|conn| blocks(author, conn))
            {
                continue;
            }
            queues.push(member.link, frame.clone(), holds);
            if frame.receipt().is_some() && member.link != NO_LINK {
                got.extend(conns.get(member.conn).map(|conn| conn.profile.user.clone()));
            }
        }
        self.note_sent(cast.room.endpoint, frame.receipt(), got);
        self.delivered_cast(now, cast.read_ns, holds);
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
        if waited.is_some() && outcome.is_ok() {
            self.membership.join(room, slot, conn.link, &mut conn.seats);
            self.note_stay(slot, room);
            if !self.is_restoring(slot) {
                self.tell_of_room(now, slot, room, What::RoomJoin);
            }
        }
        // Where other hosts were asked meanwhile, the room may have ended, and who was in is out: he is not told that he is in another of its name.
        let is_out = || self.conns.get(slot).is_some_and(|conn| self.seat_of(conn, room).is_none());
        let is_late = again && self.world.config.relay.is_some() && is_out();
        let outcome = outcome.as_ref().map_err(|fault| *fault).and_then(|view| if is_late { Err(EnterFault::NoRoom) } else { Ok(view) });
        let (is_granted, is_revoked) = waited.as_ref().map_or((false, false), |waited| (waited.is_granted, waited.is_revoked));
        let moved = outcome.map_or_else(|fault| RoomAnswer::Refused(fault.into()), |_| RoomAnswer::Done);
        self.answers.extend(waited.into_iter().flat_map(|waited| waited.asks).map(|ask| (ask, Answer::Room(moved.clone()))));
        if is_revoked {
            self.expel(now, slot, room, None);
        }
        if self.is_restoring(slot) {
            self.release(id);
            return self.entered_again(now, slot, outcome.map(|_| ()));
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

/// Who has come or gone, and what other hosts are told of it.
fn step(unix_ms: u64, presence: &UserId, comes: bool, announcement: Option<&Announcement>) -> Box<Step> {
    let announcement = announcement.map(|Announcement { to, frame }| Published {
        room: to.clone(),
        addressee: None,
        frame: frame.clone(),
        except: None,
        hidden_from: None,
        unix_ms,
        record: None,
    });
    Box::new(Step { presence: presence.clone(), comes, unix_ms, announcement })
}

/// Whether the author has blocked the connection's user.
pub(super) fn blocks(author: &Identity, conn: &Conn) -> bool {
    author.has_blocked(&conn.profile.user)
}
