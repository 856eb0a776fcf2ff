//! What the back end says to many connections at once, and has done to them. An emit to one room (a user and everybody are rooms) goes
//! through that room's home, so it has its place in the room's one order and in what the room keeps; an emit to several has no one order to be in and is delivered by
//! every shard as it comes, and one to a connection by the shard that is its home anyway. In any case each shard answers once: how many got
//! it and, where that was asked for, how many acknowledged it in time.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::Shard;
use super::backlog::{Event, To};
use super::history::Record;
use super::links::{Conn, PendingAck};
use super::outward::{Outward, is_of_peer};
use super::parcel::{Answer, Cast, Emit, Emitted, Parcel, Selection, Target};
use super::peers::Told;
use crate::dialect::{self, Keep, Outgoing};
use crate::event::{self, EventType, What};
use crate::fault::{CloseReason, DropReason};
use crate::frame::{Frame, Mark, Packet};
use crate::ids::{MessageId, Room, ShardId};
use crate::limits::{ACK_BYTES_MAX, ACK_BYTES_PER_SHARD_MAX, EMITS_WAITING_MAX, PENDING_ACKS_MAX};
use crate::time::Now;
use crate::wire::{sio, ws};

/// Clients in other languages read an acknowledgement's id as a signed number of 32 bits.
const WIRE_ID_MASK: u64 = 0x7fff_ffff;

/// The number of what nobody waits for an answer to.
pub(super) const NOBODY: u64 = u64::MAX;

/// The acknowledgement id that clients see of an emit. All of its receivers see the same, as with the Node server.
pub(super) fn wire_id(ask: u64) -> u64 {
    ask & WIRE_ID_MASK
}

/// Emits that wait for acknowledgements, by deadline and number.
#[derive(Default, Debug)]
pub(super) struct Emits {
    waiting: BTreeMap<(u64, u64), Waiting>,
    /// Bytes of all that is kept of acknowledgements.
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    emitted: Emitted,
    /// Acknowledgements that may still come.
    missing: u64,
    /// Bytes of [`Emitted::answers`].
    bytes: usize,
}

impl Emits {
    /// True exactly when none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the next of them has waited long enough.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|((deadline_ms, _), _)| *deadline_ms)
    }

    /// Notes an acknowledgement, or that it will not come. The emit's answer, if this was the last.
    fn take(&mut self, ack: PendingAck, said: Option<String>) -> Option<Emitted> {
        let key = (ack.deadline_ms, ack.ask);
        // Gone, if it was the first to go when there were too many.
        let waiting = self.waiting.get_mut(&key)?;
        waiting.missing -= 1;
        if let Some(said) = said {
            waiting.emitted.acks += 1;
            if waiting.bytes + said.len() <= ACK_BYTES_MAX && self.bytes + said.len() <= ACK_BYTES_PER_SHARD_MAX {
                waiting.bytes += said.len();
                self.bytes += said.len();
                waiting.emitted.answers.push(said);
            }
        }
        if waiting.missing > 0 {
            return None;
        }
        let waiting = self.waiting.remove(&key)?;
        self.bytes -= waiting.bytes;
        Some(waiting.emitted)
    }

    /// The first emit that has waited until then.
    fn expire(&mut self, now_ms: u64) -> Option<(u64, Emitted)> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= now_ms)?;
        let ((_, ask), waiting) = first.remove_entry();
        self.bytes -= waiting.bytes;
        Some((ask, waiting.emitted))
    }
}

impl Shard {
    /// The back end emits. Every shard is told.
    pub(super) fn emit(&mut self, now: Now, ask: u64, emit: &Arc<Emit>) {
        let is_known = usize::from(emit.to.endpoint.0) < self.world.config.endpoints.len();
        let Some((frame, is_kept)) = is_known.then(|| self.frame_of(ask, emit)).flatten() else {
            return self.answer_emit(ask, Emitted::default());
        };
        match emit.to.room() {
            // What its home casts comes to this shard too, and then it is answered.
            Some(room) if self.home_of(&room) == self.id => self.cast_emit(now, ask, emit, &room, &frame, is_kept),
            Some(_) => {}
            None => self.deliver_emit(now, ask, emit, frame, false),
        }
    }

    /// The home of the only room that is meant: gives the emit its number, keeps it, and casts it to all shards, since all answer.
    fn cast_emit(&mut self, now: Now, ask: u64, emit: &Arc<Emit>, room: &Room, frame: &Frame, is_kept: bool) {
        let keep = if is_kept { self.note_message(now, emit, room, frame) } else { None };
        // 0 where there is no such room, which has no members then but may be the name of a connection.
        let mut seq = 0;
        let _ = self.homes.publish(room, keep, now.unix_ms, &self.stats, |_, number| seq = number);
        for shard in 0..self.world.config.shards.len() {
            let (room, frame, emit) = (room.clone(), frame.clone(), Some((ask, emit.clone())));
            let cast = Cast { room, seq, frame, except: None, hidden_from: None, read_ns: now.ns, emit };
            self.post_to(ShardId(shard as u8), Parcel::Cast(Box::new(cast)));
        }
    }

    /// What is like a client's message, for all members of a room that has a name: it is told, and kept for those who come later where the
    /// endpoint keeps such; a room that nobody is in is made for that.
    fn note_message(&mut self, now: Now, emit: &Emit, room: &Room, frame: &Frame) -> Option<Keep> {
        let messages_max = self.world.config.endpoints[usize::from(room.endpoint.0)].retain;
        let is_for_all = matches!(emit.to.targets[..], [Target::Room(_)]) && emit.to.except.is_empty();
        if !is_for_all || !room.is_public() || self.connection_of(room).is_some() {
            return None;
        }
        if messages_max == 0 && !self.wants(EventType::Message) {
            return None;
        }
        let text = frame.packets().find_map(|packet| if let Packet::Text(text) = packet { Some(text) } else { None })?;
        let text: Arc<str> = text.into();
        if self.wants(EventType::Message) {
            let (name, what) = (Some(room.name.clone()), What::Message { message: text.clone() });
            let (endpoint, unix_ms) = (room.endpoint, now.unix_ms);
            // The back end is no user.
            self.tell_event(event::Event { endpoint, connection: None, user: None, room: name, unix_ms, what });
        }
        if messages_max == 0 {
            return None;
        }
        if self.homes.ensure(room, now.unix_ms, &self.stats).is_err() {
            self.counters(room.endpoint).dropped[DropReason::NoRoom.index()].add(1);
            return None;
        }
        // The same on every host that is asked.
        let id = self.world.config.relay.is_some().then(|| MessageId::from_u64_pair(emit.unix_ms, emit.offset.number()));
        let keep = Keep { id, by_id: false, author: "".into(), text, hidden_from: None, messages_max };
        self.record(room, Record::append(&keep, now.unix_ms, true));
        Some(keep)
    }

    /// An emit from the home of its room.
    pub(super) fn deliver_emit_cast(&mut self, now: Now, cast: &Cast, ask: u64, emit: &Emit) {
        let room = self.membership.find(&cast.room).filter(|_| cast.seq > 0);
        let holds = room.is_some_and(|room| {
            let pace = self.membership.arrived(now, room, cast.seq);
            // Whoever asks for acknowledgements waits for them.
            emit.ack_ms.is_none() && self.holds(self.membership.members(room).len(), pace)
        });
        self.deliver_emit(now, ask, emit, cast.frame.clone(), holds);
        self.delivered_cast(now, cast.read_ns, holds);
    }

    /// The frame of an emit, and whether its room keeps it; `None` when its dialect refuses it, which whoever asked was told before.
    pub(super) fn frame_of(&mut self, ask: u64, emit: &Emit) -> Option<(Frame, bool)> {
        let world = self.world.clone();
        let endpoint = &world.config.endpoints[usize::from(emit.to.endpoint.0)];
        let dialect = self.dialect(emit.to.endpoint);
        // The asker's time, so that all shards say the same.
        let asked = Now { ns: 0, unix_ms: emit.unix_ms };
        let Outgoing { args, receipt, is_kept } = dialect.outgoing(asked, &emit.event, &emit.args, &mut self.scratch).ok()?;
        let ack = emit.ack_ms.map(|_| wire_id(ask));
        // As in Node, what is to be acknowledged cannot be made up for: its asker waits for now.
        let offset = (endpoint.recovery_ms > 0 && ack.is_none()).then_some(emit.offset);
        let mark = Mark { volatile: emit.volatile, offset };
        let (args, attachments) = (args.as_deref().unwrap_or(&emit.args), &emit.attachments[..]);
        let said = dialect::Emission { event: &emit.event, args, attachments, ack, mark };
        let frame = dialect::emission(emit.to.endpoint, endpoint, &said, &mut self.scratch);
        let frame = match receipt {
            Some(receipt) => frame.with_receipt(receipt),
            None => frame,
        };
        Some((frame, is_kept))
    }

    /// Queues an emit for those it is for on this shard, and answers or waits for their acknowledgements.
    pub(super) fn deliver_emit(&mut self, now: Now, ask: u64, emit: &Emit, frame: Frame, holds: bool) {
        let is_socket_io = self.world.config.endpoints[usize::from(emit.to.endpoint.0)].dialect.is_socket_io();
        let deadline_ms = emit.ack_ms.filter(|_| is_socket_io).map(|ack_ms| now.ms().saturating_add(ack_ms));
        let (frame, mut recipients, mut got) = (Rc::new(frame), 0, Vec::new());
        let mut meant = self.selected(&emit.to);
        // Who has not said who he is hears nothing, also when he is meant by his connection's id.
        meant.retain(|slot| self.conns.get(*slot).is_some_and(Conn::is_authenticated));
        if self.remembers(emit.to.endpoint) && frame.mark().offset.is_some() {
            let to = self.remembered_as(&emit.to, &meant);
            self.remember(now, emit.to.endpoint, || Event::new(now.ms(), to, &frame));
        }
        for slot in meant {
            let Some(link) = self.conns.get(slot).filter(|conn| conn.is_here()).map(|conn| conn.link) else { continue };
            if frame.mark().volatile && !self.takes_now(link) {
                self.counters(emit.to.endpoint).dropped[DropReason::Volatile.index()].add(1);
                continue;
            }
            if let Some(deadline_ms) = deadline_ms {
                self.expect_ack(now, slot, PendingAck { ask, deadline_ms });
            }
            self.push_cast(link, frame.clone(), holds);
            recipients += 1;
            if let (Some(_), Some(conn)) = (frame.receipt(), self.conns.get(slot)) {
                got.push(conn.profile.user.clone());
            }
        }
        self.note_sent(emit.to.endpoint, frame.receipt(), got);
        let emitted = Emitted { recipients, ..Emitted::default() };
        match deadline_ms.filter(|_| recipients > 0) {
            _ if ask == NOBODY => {}
            // What is acknowledged to another server is passed on as it comes, and nobody waits for the last.
            Some(deadline_ms) if !is_of_peer(ask) => self.wait_for_acks((deadline_ms, ask), emitted),
            _ => self.answer_emit(ask, emitted),
        }
        // Only now: who is cut here is one of those that are waited for.
        self.cut_slow(now);
    }

    fn answer_emit(&mut self, ask: u64, emitted: Emitted) {
        if is_of_peer(ask) {
            self.send_out(Outward::Told { ask, told: Told::Recipients(emitted.recipients) });
        } else {
            self.answers.push_back((ask, Answer::Emitted(emitted)));
        }
    }

    /// For whom an emit is remembered. Those in one room need no list, which for everybody would take more than all that may be remembered.
    fn remembered_as(&self, who: &Selection, meant: &[u32]) -> To {
        if let ([Target::Room(name)], []) = (&who.targets[..], &who.except[..]) {
            let room = Room { endpoint: who.endpoint, name: name.clone() };
            if self.connection_of(&room).is_none() {
                return To::Room(room.name);
            }
        }
        let mut ids: Vec<_> = meant.iter().filter_map(|slot| self.conns.get(*slot).map(|conn| self.conn_id(*slot, conn))).collect();
        ids.sort_unstable();
        To::These(ids.into())
    }

    /// Slots of the connections here that are meant, each once.
    pub(super) fn selected(&self, who: &Selection) -> Vec<u32> {
        let slots = |targets: &[Target]| {
            let mut slots = Vec::new();
            for target in targets {
                match target {
                    Target::Connection(id) => slots.extend(self.connection_of(&Room::named(who.endpoint, id.text().as_str()))),
                    Target::Room(name) => {
                        let room = Room { endpoint: who.endpoint, name: name.clone() };
                        slots.extend(self.members_here(&room).chain(self.connection_of(&room)));
                    }
                    Target::Present { room: name, presence } => {
                        let room = Room { endpoint: who.endpoint, name: name.clone() };
                        let is_it = |slot: &u32| self.conns.get(*slot).is_some_and(|conn| conn.profile.presence() == presence);
                        slots.extend(self.members_here(&room).chain(self.connection_of(&room)).filter(is_it));
                    }
                }
            }
            slots.sort_unstable();
            slots
        };
        let (mut meant, barred) = (slots(&who.targets), slots(&who.except));
        meant.dedup();
        meant.retain(|slot| barred.binary_search(slot).is_err());
        meant
    }

    /// Slots of the members of a room on this shard.
    fn members_here(&self, room: &Room) -> impl Iterator<Item = u32> {
        let members = self.membership.find(room).map_or(&[][..], |found| self.membership.members(found));
        members.iter().map(|member| member.conn)
    }

    /// True exactly when what is queued for the link now goes out at once.
    fn takes_now(&self, slot: u32) -> bool {
        self.links.get(slot).is_some_and(|link| {
            let has_reader = link.polling.as_ref().is_none_or(|polling| polling.is_over || polling.poll.is_some());
            // What is held could go at once.
            has_reader && (link.outbox.is_empty() || link.outbox.held) && !link.outbox.blocked && !link.corked
        })
    }

    /// From now on the connection's acknowledgement counts. Of too many the one that would be given up first makes way.
    fn expect_ack(&mut self, now: Now, slot: u32, ack: PendingAck) {
        self.forget_late_acks(now, slot);
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let full = conn.acks.len() >= PENDING_ACKS_MAX;
        let first = conn.acks.iter().enumerate().min_by_key(|(_, ack)| ack.deadline_ms).map(|(at, _)| at);
        let given_up = first.filter(|_| full).map(|at| conn.acks.swap_remove(at));
        conn.acks.push(ack);
        if let Some(given_up) = given_up {
            self.acknowledged(given_up, None);
        }
    }

    /// Nobody waits any more for what has not come by now.
    pub(super) fn forget_late_acks(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot).filter(|conn| !conn.acks.is_empty()) else { return };
        // Their emits are answered by the clock.
        conn.acks.retain(|ack| ack.deadline_ms > now.ms());
    }

    fn wait_for_acks(&mut self, key: (u64, u64), emitted: Emitted) {
        if self.emits.waiting.len() >= EMITS_WAITING_MAX
            && let Some((ask, emitted)) = self.emits.expire(u64::MAX)
        {
            self.answers.push_back((ask, Answer::Emitted(emitted)));
        }
        self.emits.waiting.insert(key, Waiting { missing: emitted.recipients, emitted, bytes: 0 });
    }

    /// An acknowledgement that was waited for has come, or (`None`) will not come any more.
    pub(super) fn acknowledged(&mut self, ack: PendingAck, said: Option<String>) {
        if let Some(emitted) = self.emits.take(ack, said) {
            self.answers.push_back((ack.ask, Answer::Emitted(emitted)));
        }
    }

    /// Answers the emits that have waited long enough.
    pub(super) fn end_waiting_emits(&mut self, until_ms: u64) {
        while let Some((ask, emitted)) = self.emits.expire(until_ms) {
            self.answers.push_back((ask, Answer::Emitted(emitted)));
        }
    }

    /// Ends the connections that are meant, or their whole transports; returns how many were meant.
    pub(super) fn disconnect_selected(&mut self, now: Now, who: &Selection, transport: bool) -> u64 {
        let mut ended = 0;
        for slot in self.selected(who) {
            // Whoever is away is not disconnected, but will not come back either.
            ended += u64::from(self.conns.get(slot).is_some_and(Conn::is_here));
            if transport {
                self.leave_all_namespaces(now, slot);
            }
            self.disconnect(now, slot, CloseReason::Admin, None);
        }
        ended
    }

    /// Takes the connection's transport out of all its namespaces and closes it, as Node's `disconnect(true)` does. A plain connection has
    /// none.
    fn leave_all_namespaces(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let link = conn.link;
        let is_plain = !self.world.config.endpoints[usize::from(conn.endpoint.0)].dialect.is_socket_io();
        if is_plain {
            return;
        }
        for slot in self.conns_of(link) {
            let Some(conn) = self.conns.get(slot) else { continue };
            let namespace = &self.world.config.endpoints[usize::from(conn.endpoint.0)].bind;
            let goodbye = Frame::control_text(&sio::disconnect(namespace));
            self.push(now, link, goodbye);
        }
        self.close_link(now, link, CloseReason::Admin, Some(ws::empty_close_frame()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_take_no_more_than_they_may() {
        let mut emits = Emits::default();
        let (emitted, half) = (Emitted::default(), "x".repeat(ACK_BYTES_MAX / 2));
        let asks = 2 * (ACK_BYTES_PER_SHARD_MAX / ACK_BYTES_MAX) as u64;
        for ask in 0..asks {
            emits.waiting.insert((9, ask), Waiting { emitted: emitted.clone(), missing: 4, bytes: 0 });
            for _ in 0..3 {
                assert!(emits.take(PendingAck { ask, deadline_ms: 9 }, Some(half.clone())).is_none());
            }
            assert!(emits.bytes <= ACK_BYTES_PER_SHARD_MAX);
        }
        let kept = |emits: &Emits, ask| emits.waiting.get(&(9, ask)).map(|it| (it.emitted.acks, it.emitted.answers.len()));
        assert_eq!((kept(&emits, 0), kept(&emits, asks - 1)), (Some((3, 2)), Some((3, 0))), "all are counted");
        assert!(emits.take(PendingAck { ask: 0, deadline_ms: 9 }, None).is_some());
        while emits.expire(9).is_some() {}
        assert_eq!((emits.waiting.len(), emits.bytes), (0, 0));
    }
}
