//! A shard comes to rest and becomes plain data, for the process that this one becomes at a reload. At rest nothing is under way: whatever was asked has been
//! answered, or is gone on without, so that what is left is what connections and rooms are. Nothing is changed by being written down: a process
//! that cannot be replaced goes on.

use std::collections::HashMap;
use std::os::fd::RawFd;

use foldhash::fast::RandomState;

use super::Shard;
use super::links::{Conn, Link, Polling, SocketIoLink, Stage, State};
use super::recovery::NO_LINK;
use crate::frame::{Frame, FrozenFrame};
use crate::ids::LinkKey;
use crate::shard::frozen::{FrozenConn, FrozenLink, FrozenPolling, FrozenShard, FrozenSocketIo, FrozenState};
use crate::stats::EndpointStats;
use crate::time::Now;

/// The frames that are referred to, each once however many wait for it.
#[derive(Default)]
pub(crate) struct Frames {
    indices: HashMap<usize, u32, RandomState>,
    frames: Vec<FrozenFrame>,
}

impl Frames {
    /// The frame's index.
    pub(crate) fn put(&mut self, frame: &Frame) -> u32 {
        *self.indices.entry(frame.address()).or_insert_with(|| {
            self.frames.push(frame.freeze());
            self.frames.len() as u32 - 1
        })
    }
}

impl Shard {
    /// Does what must be done before it can rest, while nothing is read: what is held goes out, and requests of long-polling sessions that wait for something to be
    /// said are answered with nothing. True exactly when nothing is under way any more; what is still under way needs parcels.
    pub fn come_to_rest(&mut self, now: Now) -> bool {
        self.let_go_of_held();
        let waiting = |(slot, link): (u32, &Link)| link.polling.as_ref().is_some_and(|polling| polling.poll.is_some()).then_some(slot);
        let waiting: Vec<u32> = self.links.iter().filter_map(waiting).collect();
        for slot in &waiting {
            self.answer_with_nothing(*slot);
        }
        self.settle(now);
        waiting.is_empty() && self.is_at_rest()
    }

    /// Goes on without whatever others have not answered: the back end, other hosts, clients that are to acknowledge.
    pub fn wait_no_longer(&mut self, now: Now) {
        self.end_waiting(now, u64::MAX);
        self.end_fetching(now);
        self.settle(now);
    }

    fn is_at_rest(&self) -> bool {
        let lists = [self.loopback.len(), self.outgoing.len(), self.commands.len(), self.answers.len(), self.polls.len()];
        let questions = [self.ghosts.len(), self.hooks.len(), self.consults.len(), self.fetching.len(), self.restoring.len()];
        lists.iter().chain(&questions).all(|len| *len == 0)
            && self.recollections.is_empty()
            && self.emits.is_empty()
            && self.homes.are_settled()
            && !self.has_outward()
            && !self.has_events()
            && self.conns.iter().all(|(_, conn)| is_settled(conn))
            && self.links.iter().all(|(_, link)| !matches!(link.state, State::Polled(_)) && !link.resuming)
    }

    /// Everything as plain data, for a shard at rest. `socket` finds the descriptor of a link.
    pub fn freeze(&self, socket: impl Fn(LinkKey) -> Option<RawFd>) -> FrozenShard {
        let mut frames = Frames::default();
        let links = self.links.iter().map(|(slot, link)| freeze_link(slot, link, &mut frames, &socket)).collect();
        let conns = self.conns.iter().map(|(slot, conn)| self.freeze_conn(slot, conn)).collect();
        let backlogs = self.memory.freeze(&mut frames);
        let (rooms, seq_floor) = self.homes.freeze();
        FrozenShard {
            shard: self.id.0,
            link_generation: self.links.generations(),
            conn_generation: self.conns.generations(),
            frames: frames.frames,
            links,
            conns,
            upgraded: self.upgraded.iter().collect(),
            requests: self.requests,
            at_door: self.door.freeze(|key| self.links.holds(key.slot, key.generation)),
            backlogs,
            rooms,
            seq_floor,
            ends_untold: self.homes.ends_untold().map(|room| (room.endpoint.0, room.name.clone())).collect(),
            diaries: self.homes.kept().freeze(),
            grants: self.grants.freeze(),
            absences: self.absences.freeze(),
            receipts: self.receipts.freeze(),
            counted: self.stats.endpoints.iter().map(EndpointStats::freeze).collect(),
        }
    }

    fn freeze_conn(&self, slot: u32, conn: &Conn) -> FrozenConn {
        FrozenConn {
            slot,
            generation: conn.generation,
            link: (conn.link != NO_LINK).then_some(conn.link),
            endpoint: conn.endpoint.0,
            sid: conn.sid,
            profile: conn.profile.clone(),
            connected_unix_ms: conn.connected_unix_ms,
            heard_tenths: conn.heard_tenths,
            rooms: conn.seats.iter().filter_map(|seat| self.membership.room(seat.room)).map(|room| room.name.clone()).collect(),
            is_polling: conn.is_polling,
            waiting: conn.waiting,
            unknown_until_ms: if let Stage::Unknown { until_ms } = conn.stage { Some(until_ms) } else { None },
            typing: conn.typing.iter().map(|typing| (typing.room.clone(), typing.until_ms)).collect(),
            ruled: conn.ruled,
            recovery: conn.recovery.as_ref().map(|recovery| recovery.freeze(|key| self.links.holds(key.slot, key.generation))),
        }
    }
}

/// True exactly when nothing that was asked for a connection is still to be answered.
fn is_settled(conn: &Conn) -> bool {
    let is_known = matches!(conn.stage, Stage::Known | Stage::Unknown { .. });
    is_known && conn.waiting == 0 && conn.entering.is_empty() && conn.leaving.is_none() && conn.opening.is_none() && conn.asked_rooms == 0
}

fn freeze_link(slot: u32, link: &Link, frames: &mut Frames, socket: impl Fn(LinkKey) -> Option<RawFd>) -> FrozenLink {
    let (waiting, written) = link.outbox.frames();
    FrozenLink {
        slot,
        generation: link.generation,
        socket: socket(LinkKey { slot, generation: link.generation }),
        peer: link.peer.into(),
        is_counted: link.ticket.is_some(),
        outbox: waiting.map(|frame| frames.put(frame)).collect(),
        written: written as u64,
        blocked: link.outbox.blocked,
        partial: link.partial.to_vec(),
        decoder: link.decoder.clone(),
        waiting: link.waiting,
        corked: link.corked,
        rate: link.rate,
        heartbeat: link.heartbeat,
        polling: link.polling.as_deref().map(freeze_polling),
        guest: link.guest.as_deref().copied(),
        state: freeze_state(&link.state),
    }
}

fn freeze_polling(polling: &Polling) -> FrozenPolling {
    let Polling { sid, inbox, probe, probers, held, is_over, .. } = polling;
    let (inbox, probe, held) = (inbox.clone(), probe.map(|key| key.slot), held.clone());
    FrozenPolling { sid: *sid, inbox, probe, probers: *probers, held, is_over: *is_over }
}

fn freeze_state(state: &State) -> FrozenState {
    match state {
        State::Head { deadline_ms, idle, welcome } => FrozenState::Head { deadline_ms: *deadline_ms, idle: *idle, welcome: *welcome },
        State::Plain { conn } => FrozenState::Plain { conn: *conn },
        State::SocketIo(socket) => FrozenState::SocketIo(Box::new(freeze_socket_io(socket))),
        State::Body(post) => post.freeze(),
        State::Probe(probe) => FrozenState::Probe { session: probe.session.slot, deadline_ms: probe.deadline_ms },
        // It is answered before a freeze; who is not waits for nothing and comes again.
        State::Polled(polled) => FrozenState::Closing { deadline_ms: polled.deadline_ms, peer_done: false, impatient: false },
        State::Closing { deadline_ms, peer_done, impatient } => {
            FrozenState::Closing { deadline_ms: *deadline_ms, peer_done: *peer_done, impatient: *impatient }
        }
    }
}

fn freeze_socket_io(socket: &SocketIoLink) -> FrozenSocketIo {
    let rare = socket.rare();
    FrozenSocketIo {
        conns: socket.conns.to_vec(),
        connect_deadline_ms: socket.connect_deadline_ms,
        has_tried: socket.has_tried,
        has_entered: socket.has_entered,
        assembly: socket.assembly.as_deref().cloned(),
        has_moved: socket.has_moved,
        may_recover: socket.may_recover,
        query: socket.query.clone(),
        old: rare.old.as_ref().map(|old| old.promise()),
        challenged: rare.challenged.map(|id| id.slot),
        token: rare.token.clone(),
        cookie: rare.cookie.clone(),
        visitor: rare.visitor.as_deref().cloned(),
    }
}
