//! Connection state recovery (Socket.IO 4.6): a connection that broke off stays, away, in its place in the table and in its rooms'
//! indexes, so that its id stays its own and the rooms' homes go on casting to this shard; what is said meanwhile is in the backlog.
//! A client that comes back with the connection's secret id and the offset of the last event it heard gets the events after that,
//! then its CONNECT, and goes on. What cannot be given without a gap is not given at all: the client starts anew.
//!
//! Unlike Node's: a session has one connection at any time. Who comes back while the old one still seems to live waits until that one
//! has answered a ping (then the newcomer is a copy, and starts anew) or has not (then it takes over).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::Shard;
use super::backlog::{Backlog, Bounds, Event, To};
use super::freeze::Frames;
use super::handover::{Fetched, Found, Restoring};
use super::links::{Conn, Link, Stage, State};
use super::parcel::{Announcement, Leave, Parcel, Return};
use super::table::Table;
use crate::dialect::Profile;
use crate::event::What;
use crate::fault::{CloseReason, RecoveryFault};
use crate::frame::Frame;
use crate::ids::{ConnId, EndpointId, LinkKey, Room, Sid};
use crate::limits::{PAST_STAYS_MAX, TAKEOVER_MS};
use crate::shard::frozen::{FrozenBacklog, FrozenRecovery};
use crate::time::Now;
use crate::wire::sio::{self, Offset};

/// Slot of no link: where the connections are that are away.
pub(super) const NO_LINK: u32 = u32::MAX;

/// Entries of the list of those that are away beyond twice their number before it is looked through.
const AWAY_SLACK: usize = 64;

/// What a connection has that can be recovered.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// The secret with which its client comes back.
    pid: Sid,
    /// The rooms it is and was in, by the backlog's positions.
    stays: Vec<Stay>,
    /// Before this position it is not known any more what it was entitled to.
    floor: u64,
    /// The client has everything before this position: it answered a ping that was sent after it.
    heard: u64,
    /// The same for the ping that is on its way.
    pinged: u64,
    /// Until when it can come back, monotonic milliseconds; 0 while it is here.
    away_until_ms: u64,
    /// Somebody who says that he is this client.
    challenger: Option<Box<Challenger>>,
    /// True exactly when the relay has been told of it, so that another host may have it.
    pub(super) is_shared: bool,
    /// There while it comes here from another host.
    pub(super) restoring: Option<Box<Restoring>>,
    /// Events that stand in no stream and may be the last that its client has heard: the last one said to it alone, and the one it came from
    /// another host with.
    pub(super) anchors: [Option<Offset>; 2],
    /// Number of the offset that its client had when it started anew here; 0: none. A client that has heard nothing since names that one still, and the event may
    /// have come here meanwhile.
    brought: u64,
    /// Where events that were said to it again when it had come from another host are in the backlog.
    replayed: HashMap<Offset, u64, RandomState>,
}

#[derive(Debug)]
struct Stay {
    room: Arc<str>,
    from: u64,
    /// `u64::MAX` while it is in.
    to: u64,
    /// The last tide that had come before it entered.
    tide: u64,
}

/// A link whose CONNECT waits for the old connection's answer to a ping. Its debug form does not show the CONNECT, in which a token may be.
struct Challenger {
    link: LinkKey,
    packet: Box<str>,
    deadline_ms: u64,
}

impl fmt::Debug for Challenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenger").field("link", &self.link).field("deadline_ms", &self.deadline_ms).finish_non_exhaustive()
    }
}

/// What the endpoints of a shard remember.
#[derive(Debug)]
pub(super) struct Memory {
    /// By endpoint; `None` where nothing is recovered.
    endpoints: Vec<Option<Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    backlog: Backlog,
    /// Connections that are away, the first to be given up in front; an entry may be out of date.
    away: std::collections::VecDeque<(u64, ConnId)>,
    /// How many are away.
    sessions: usize,
    window_ms: u64,
    sessions_max: usize,
}

impl Memory {
    pub(super) fn new(config: &crate::config::Config) -> Memory {
        let shards = config.shards.len();
        let remembering = config.endpoints.iter().filter(|endpoint| endpoint.recovery_ms > 0).count().max(1);
        let (limits, share) = (&config.limits, shards * remembering);
        let of_endpoint = |endpoint: &crate::config::Endpoint| {
            let bounds = Bounds {
                age_ms: endpoint.recovery_ms,
                events: limits.recovery_events / share,
                bytes: limits.kept(limits.recovery_bytes) / share,
            };
            (endpoint.recovery_ms > 0).then(|| Remembered {
                backlog: Backlog::new(bounds),
                away: std::collections::VecDeque::new(),
                sessions: 0,
                window_ms: endpoint.recovery_ms,
                sessions_max: (limits.recovery_sessions / share).max(1),
            })
        };
        Memory { endpoints: config.endpoints.iter().map(of_endpoint).collect() }
    }

    /// By endpoint: the backlog's next position; 0 where nothing is recovered.
    pub(super) fn positions(&self) -> Box<[u64]> {
        self.endpoints.iter().map(|remembered| remembered.as_ref().map_or(0, |remembered| remembered.backlog.next())).collect()
    }

    /// How many connections may be away.
    pub(super) fn sessions_max(&self, endpoint: EndpointId) -> usize {
        self.endpoints[usize::from(endpoint.0)].as_ref().map_or(0, |remembered| remembered.sessions_max)
    }

    /// Bytes of all that is remembered.
    pub(super) fn bytes(&self) -> usize {
        self.endpoints.iter().flatten().map(|remembered| remembered.backlog.usage().1).sum()
    }

    pub(super) fn backlog(&self, endpoint: EndpointId) -> Option<&Backlog> {
        self.endpoints[usize::from(endpoint.0)].as_ref().map(|remembered| &remembered.backlog)
    }

    pub(super) fn backlog_mut(&mut self, endpoint: EndpointId) -> Option<&mut Backlog> {
        self.of(endpoint).map(|remembered| &mut remembered.backlog)
    }

    fn of(&mut self, endpoint: EndpointId) -> Option<&mut Remembered> {
        self.endpoints[usize::from(endpoint.0)].as_mut()
    }
}

/// What a client asks that comes back.
pub(super) struct Comeback {
    pub(super) pid: Sid,
    pub(super) offset: Offset,
}

impl Comeback {
    /// What the CONNECT's payload says; `None` when it does not ask, or not in our words.
    pub(super) fn asked(auth: Option<crate::json::Value<'_>>) -> Option<Comeback> {
        let auth = auth?;
        let pid = Sid::parse(auth.get("pid")?.as_str()?)?;
        Some(Comeback { pid, offset: last_heard(Some(auth))? })
    }
}

/// The last event that a client has heard, by the CONNECT's payload. It names that also when it can go on with nothing.
pub(super) fn last_heard(auth: Option<crate::json::Value<'_>>) -> Option<Offset> {
    Offset::parse(auth?.get("offset")?.as_str()?)
}

/// What becomes of a wish to come back.
pub(super) enum Verdict {
    /// This connection is taken up again, from this position of the backlog on.
    Granted { conn: u32, from: u64 },
    /// Somebody else is asked first: the old connection, or the relay.
    Wait,
    /// This session of another host is restored here.
    Restore(Box<Found>),
    /// The link goes to the shard that remembers.
    Moving,
    /// It starts anew.
    Refused,
}

impl Shard {
    /// What a new connection of the endpoint has, if it can be recovered.
    pub(super) fn new_recovery(&mut self, endpoint: EndpointId, slot: u32) -> Option<Box<Recovery>> {
        let next = self.memory.of(endpoint)?.backlog.next();
        // Both of its ids lead to the same shard, however many there are.
        let shard = self.conns.get(slot)?.sid.shard();
        let pid = Sid::new(shard, slot, self.random_id());
        let (stays, challenger) = (Vec::new(), None);
        Some(Box::new(Recovery {
            pid,
            stays,
            floor: next,
            heard: next,
            pinged: next,
            away_until_ms: 0,
            challenger,
            is_shared: false,
            restoring: None,
            anchors: [None; 2],
            brought: 0,
            replayed: HashMap::default(),
        }))
    }

    /// The connection is in a room from now on.
    pub(super) fn note_stay(&mut self, slot: u32, room: &Room) {
        let tide = self.tides.begun();
        let Some(remembered) = self.memory.of(room.endpoint) else { return };
        let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) else { return };
        let (first, next) = (remembered.backlog.first(), remembered.backlog.next());
        recovery.stays.retain(|stay| stay.to > first);
        recovery.stays.push(Stay { room: room.name.clone(), from: next, to: u64::MAX, tide });
        // Whoever goes in and out all the time is not remembered further back than this.
        let past = recovery.stays.iter().filter(|stay| stay.to < u64::MAX).count();
        if past > PAST_STAYS_MAX
            && let Some(oldest) = recovery.stays.iter().position(|stay| stay.to < u64::MAX)
        {
            recovery.floor = recovery.floor.max(recovery.stays.remove(oldest).to);
        }
    }

    /// The connection is in a room no longer.
    pub(super) fn note_departure(&mut self, slot: u32, room: &Room) {
        let Some(remembered) = self.memory.of(room.endpoint) else { return };
        let next = remembered.backlog.next();
        let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) else { return };
        if let Some(stay) = recovery.stays.iter_mut().find(|stay| stay.to == u64::MAX && stay.room == room.name) {
            stay.to = next;
        }
    }

    /// True exactly when connections of the endpoint can be recovered.
    pub(super) fn remembers(&self, endpoint: EndpointId) -> bool {
        self.memory.endpoints[usize::from(endpoint.0)].is_some()
    }

    /// Remembers an event that is delivered here; `make` completes it.
    pub(super) fn remember(&mut self, now: Now, endpoint: EndpointId, make: impl FnOnce() -> Option<Event>) {
        let Some(remembered) = self.memory.of(endpoint) else { return };
        let Some(event) = make() else { return };
        remembered.backlog.push(event);
        remembered.backlog.expire(now.ms());
    }

    /// Queues an event for one connection, and remembers it where it can be recovered.
    pub(super) fn say(&mut self, now: Now, slot: u32, frame: Frame) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (id, link, endpoint) = (self.conn_id(slot, conn), conn.link, conn.endpoint);
        if let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) {
            recovery.anchors[0] = frame.mark().offset.or(recovery.anchors[0]);
        }
        let frame = std::rc::Rc::new(frame);
        self.remember(now, endpoint, || Event::new(now.ms(), To::Conn(id), &frame));
        self.push_shared(link, frame);
        self.cut_slow(now);
    }

    /// A ping goes out: whoever answers it has heard everything before it.
    pub(super) fn note_ping(&mut self, link: u32) {
        for slot in self.conns_of(link) {
            let Some(conn) = self.conns.get_mut(slot) else { continue };
            let (Some(remembered), Some(recovery)) = (self.memory.of(conn.endpoint), &mut conn.recovery) else { continue };
            recovery.pinged = remembered.backlog.next();
        }
    }

    /// The ping was answered; so the link lives, and whoever wanted to take it over is somebody else.
    pub(super) fn note_pong(&mut self, now: Now, link: u32) {
        for slot in self.conns_of(link) {
            let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) else { continue };
            recovery.heard = recovery.pinged;
            if !recovery.replayed.is_empty() && recovery.replayed.values().all(|position| *position < recovery.heard) {
                recovery.replayed = HashMap::default();
            }
            if let Some(challenger) = recovery.challenger.take() {
                self.answer_challenger(now, *challenger, false);
            }
        }
    }

    /// The old connection cannot be asked: it counts as alive.
    pub(super) fn refuse_challenger(&mut self, now: Now, slot: u32) {
        let Some(recovery) = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()) else { return };
        if let Some(challenger) = recovery.challenger.take() {
            self.answer_challenger(now, *challenger, false);
        }
    }

    /// When the old connections of a link have had their time to answer; `u64::MAX`: nobody asks.
    pub(super) fn challenge_deadline(&self, slot: u32) -> u64 {
        let challenger = self.conns.get(slot).and_then(|conn| conn.recovery.as_ref()?.challenger.as_ref());
        challenger.map_or(u64::MAX, |challenger| challenger.deadline_ms)
    }

    /// The connection has ended for good: whoever wanted to take it up starts anew.
    pub(super) fn dismiss(&mut self, now: Now, recovery: Option<Box<Recovery>>) {
        if let Some(challenger) = recovery.and_then(|recovery| recovery.challenger) {
            self.answer_challenger(now, *challenger, true);
        }
    }

    fn answer_challenger(&mut self, now: Now, challenger: Challenger, granted: bool) {
        let Challenger { link, packet, .. } = challenger;
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut_of(link.slot, link.generation) else { return };
        (socket.may_recover, socket.rare_mut().challenged) = (granted, None);
        self.take_packet(now, link.slot, &packet);
        self.unwait(link.slot, 1);
    }

    /// Keeps a connection that ends, away, if its client may come back; false when it ends for good.
    pub(super) fn keep_away(&mut self, now: Now, slot: u32, reason: CloseReason) -> bool {
        let is_cut = matches!(reason, CloseReason::Transport | CloseReason::Client | CloseReason::Heartbeat | CloseReason::SlowReader);
        let Some(conn) = self.conns.get(slot) else { return false };
        // Who is sent away because this host stops can come back on another.
        let is_cut = is_cut || (matches!(reason, CloseReason::Shutdown) && self.shares_sessions());
        if is_cut && conn.recovery.is_some() && conn.link != NO_LINK {
            self.drop_saying(slot);
        }
        let Some(conn) = self.conns.get(slot) else { return false };
        let is_known = conn.opening.is_none() && matches!(conn.stage, Stage::Known);
        let is_settled = is_known && conn.waiting == 0 && conn.entering.is_empty() && conn.leaving.is_none();
        if !is_cut || !is_settled || conn.recovery.is_none() || conn.link == NO_LINK {
            return false;
        }
        let endpoint = conn.endpoint;
        self.one_more_away(endpoint);
        self.stay_away(now, slot);
        true
    }

    /// One connection more is away.
    pub(super) fn one_more_away(&mut self, endpoint: EndpointId) {
        if let Some(remembered) = self.memory.of(endpoint) {
            remembered.sessions += 1;
        }
        self.counters(endpoint).recoverable.add(1);
    }

    /// A connection that is counted among those that are away is so from now on.
    pub(super) fn stay_away(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (endpoint, id) = (conn.endpoint, self.conn_id(slot, conn));
        let Some(remembered) = self.memory.of(endpoint) else { return };
        let until_ms = now.ms() + remembered.window_ms;
        remembered.away.push_back((until_ms, id));
        self.step_away(now, slot);
        self.share_session(now, slot);
        let challenger = self.conns.get_mut(slot).and_then(|conn| conn.recovery.as_mut()).and_then(|recovery| {
            recovery.away_until_ms = until_ms;
            recovery.challenger.take()
        });
        self.give_up_surplus(endpoint);
        self.give_up_surplus_of_user(slot);
        if let Some(challenger) = challenger {
            self.answer_challenger(now, *challenger, true);
        }
    }

    /// The connection leaves its rooms for everybody to see, but keeps its places.
    fn step_away(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        for ack in conn.acks.take() {
            self.acknowledged(ack, None);
        }
        for room in self.rooms_of(slot) {
            let Some(conn) = self.conns.get(slot) else { return };
            let id = self.conn_id(slot, conn);
            let parting = self.parting(now, id, conn, room, true, None);
            self.post(Parcel::Leave(Box::new(Leave { away: true, ..*parting })));
        }
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let link = std::mem::replace(&mut conn.link, NO_LINK);
        let was_polling = std::mem::take(&mut conn.is_polling);
        let endpoint = conn.endpoint;
        for seat in conn.seats.iter() {
            self.membership.relink(*seat, NO_LINK);
        }
        if was_polling {
            self.counters(endpoint).polling.sub(1);
        }
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(link) {
            socket.conns.remove(slot);
        }
    }

    /// The rooms of a connection that have a home; public ones first: others hear that somebody left a room before they hear that he is
    /// offline.
    pub(super) fn rooms_of(&self, slot: u32) -> Vec<Room> {
        let seats = self.conns.get(slot).map_or(&[][..], |conn| &conn.seats);
        let mut rooms: Vec<Room> = seats.iter().filter_map(|seat| self.membership.room(seat.room).cloned()).collect();
        rooms.retain(|room| !room.name.is_empty());
        rooms.sort_by_key(|room| !room.is_public());
        rooms
    }

    /// Gives up the connections that were away too long, and events that nobody needs any more.
    pub(super) fn sweep_memory(&mut self, now: Now) {
        self.sweep_restoring(now);
        for index in 0..self.memory.endpoints.len() {
            while let Some((until_ms, id)) = self.memory.endpoints[index].as_mut().and_then(|remembered| {
                remembered.backlog.expire(now.ms());
                remembered.away.pop_front_if(|(until_ms, _)| *until_ms <= now.ms())
            }) {
                self.give_up_if(id, until_ms);
            }
            if let Some(remembered) = &self.memory.endpoints[index] {
                let (events, bytes) = remembered.backlog.usage();
                let counters = &self.stats.endpoints[index];
                counters.backlog_events.set(events as u64);
                counters.backlog_bytes.set(bytes as u64);
            }
        }
    }

    fn give_up_if(&mut self, id: ConnId, until_ms: u64) {
        if is_away(&self.conns, id, until_ms) {
            self.give_up(id.slot);
        }
    }

    /// Of too many the first to be given up makes way. Only those that are away count: who comes and goes all the time leaves entries
    /// behind, and must not push out the others with them.
    pub(super) fn give_up_surplus(&mut self, endpoint: EndpointId) {
        while let Some((until_ms, id)) = self.memory.of(endpoint).and_then(|remembered| {
            let is_full = remembered.sessions > remembered.sessions_max;
            is_full.then(|| remembered.away.pop_front()).flatten()
        }) {
            self.give_up_if(id, until_ms);
        }
        let conns = &self.conns;
        if let Some(remembered) = self.memory.endpoints[usize::from(endpoint.0)].as_mut()
            && remembered.away.len() > 2 * remembered.sessions + AWAY_SLACK
        {
            remembered.away.retain(|(until_ms, id)| is_away(conns, *id, *until_ms));
        }
    }

    /// Of one user no more are kept here than he may have connections: all of them may come back, and are not counted again then.
    fn give_up_surplus_of_user(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let own = self.membership.find(&Room::user(conn.endpoint, &conn.profile.user));
        let members = own.map_or(&[][..], |own| self.membership.members(own)).iter().map(|member| member.conn);
        let until_ms =
            |slot: u32| self.conns.get(slot).and_then(|conn| conn.recovery.as_ref()).map_or(0, |recovery| recovery.away_until_ms);
        let away: Vec<(u64, u32)> = members.map(|member| (until_ms(member), member)).filter(|(until_ms, _)| *until_ms > 0).collect();
        if away.len() > self.world.config.limits.connections_per_user as usize
            && let Some((_, first)) = away.iter().min()
        {
            self.give_up(*first);
        }
    }

    /// The connection that is away will not come back.
    pub(super) fn give_up(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot).filter(|conn| conn.link == NO_LINK) else { return };
        let endpoint = conn.endpoint;
        if self.is_restoring(slot) {
            return self.spoil(slot);
        }
        let rooms = self.rooms_of(slot);
        while let Some(last) = self.conns.get(slot).and_then(|conn| conn.seats.len().checked_sub(1)) {
            self.vacate(slot, last);
        }
        for room in rooms {
            self.post(Parcel::GiveUp { room, shard: self.id });
        }
        if let Some(conn) = self.conns.remove(slot) {
            self.forget_stranger(&conn);
        }
        self.no_longer_away(endpoint);
    }

    pub(super) fn no_longer_away(&mut self, endpoint: EndpointId) {
        if let Some(remembered) = self.memory.of(endpoint) {
            remembered.sessions -= 1;
        }
        self.counters(endpoint).recoverable.sub(1);
    }

    /// Whether the client of a link may take a connection up again.
    pub(super) fn may_come_back(&mut self, now: Now, link: u32, endpoint: EndpointId, comeback: &Comeback, packet: &str) -> Verdict {
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(link) else { return Verdict::Refused };
        // An answer counts once.
        let may_recover = std::mem::replace(&mut socket.may_recover, true);
        let (is_free, has_moved, fetched) =
            (socket.conns.is_empty(), socket.has_moved, socket.rare_if_any().and_then(|rare| rare.fetched.take()));
        let shard = self.shard_of_past(comeback.pid);
        if !may_recover {
            return self.refuse_comeback(endpoint, RecoveryFault::InUse);
        }
        if shard != self.id {
            // The link can go there as long as nothing else is on it.
            if !is_free || has_moved {
                return self.refuse_comeback(endpoint, RecoveryFault::Elsewhere);
            }
            return if self.send_link(link, shard, packet) {
                Verdict::Moving
            } else {
                self.refuse_comeback(endpoint, RecoveryFault::Elsewhere)
            };
        }
        let conn = self.slot_of_past(comeback.pid);
        let found = self.conns.get(conn).filter(|conn| conn.endpoint == endpoint);
        let recovery = found.and_then(|conn| conn.recovery.as_ref()).filter(|recovery| recovery.pid == comeback.pid);
        let is_restoring = recovery.is_some_and(|recovery| recovery.restoring.is_some());
        let is_away = recovery.is_some_and(|recovery| recovery.away_until_ms > 0 && !is_restoring);
        let is_shared = is_away && recovery.is_some_and(|recovery| recovery.is_shared);
        let is_here = recovery.is_some();
        match fetched {
            Some(Fetched::Session(found)) => {
                if is_away {
                    // What is here is older.
                    self.give_up(conn);
                }
                return Verdict::Restore(found);
            }
            Some(Fetched::Nothing | Fetched::Unknown) if is_shared => {
                // It has been continued elsewhere, or may have been.
                self.give_up(conn);
                return self.refuse_comeback(endpoint, RecoveryFault::Unknown);
            }
            Some(Fetched::Nothing | Fetched::Local | Fetched::Unknown) => {}
            None if is_restoring => return self.come_again(now, conn, link, comeback, packet),
            None if is_shared || !is_here => {
                if let Some(verdict) = self.fetch_session(link, endpoint, comeback, is_away, packet) {
                    return verdict;
                }
            }
            None => {}
        }
        let found = self.conns.get(conn).filter(|conn| conn.endpoint == endpoint);
        let Some(recovery) = found.and_then(|conn| conn.recovery.as_ref()).filter(|recovery| recovery.pid == comeback.pid) else {
            return self.refuse_comeback(endpoint, RecoveryFault::Unknown);
        };
        if is_restoring {
            return self.refuse_comeback(endpoint, RecoveryFault::InUse);
        }
        if recovery.away_until_ms == 0 {
            return self.challenge(now, conn, link, packet);
        }
        if recovery.away_until_ms <= now.ms() {
            self.give_up(conn);
            return self.refuse_comeback(endpoint, RecoveryFault::Unknown);
        }
        match self.position_of(conn, comeback.offset) {
            Some(from) => Verdict::Granted { conn, from },
            None => {
                self.give_up(conn);
                self.refuse_comeback(endpoint, RecoveryFault::Forgotten)
            }
        }
    }

    pub(super) fn refuse_comeback(&self, endpoint: EndpointId, fault: RecoveryFault) -> Verdict {
        self.counters(endpoint).unrecovered[fault.index()].add(1);
        Verdict::Refused
    }

    /// Asks the old connection whether it lives; the newcomer waits.
    fn challenge(&mut self, now: Now, conn: u32, link: u32, packet: &str) -> Verdict {
        let Some(old) = self.conns.get_mut(conn) else { return Verdict::Refused };
        let (endpoint, old_link) = (old.endpoint, old.link);
        let id = ConnId { shard: self.id, slot: conn, generation: old.generation };
        let is_settled = old.opening.is_none() && old.waiting == 0;
        let Some(recovery) = old.recovery.as_mut().filter(|_| is_settled) else {
            return self.refuse_comeback(endpoint, RecoveryFault::InUse);
        };
        let mut deadline_ms = now.ms() + TAKEOVER_MS;
        if let Some(first) = &recovery.challenger {
            let waits = self.links.get_mut_of(first.link.slot, first.link.generation);
            if waits.is_some_and(|link| matches!(link.state, State::SocketIo(_))) {
                return self.refuse_comeback(endpoint, RecoveryFault::InUse);
            }
            // The client has broken off once more, and the old connection has been asked already.
            deadline_ms = first.deadline_ms;
        }
        let Some(newcomer) = self.links.get_mut(link) else { return Verdict::Refused };
        let State::SocketIo(socket) = &mut newcomer.state else { return Verdict::Refused };
        socket.rare_mut().challenged = Some(id);
        newcomer.waiting += 1;
        let key = LinkKey { slot: link, generation: newcomer.generation };
        recovery.challenger = Some(Box::new(Challenger { link: key, packet: packet.into(), deadline_ms }));
        if self.links.get(old_link).is_some_and(|old| !old.heartbeat.awaiting) {
            self.beat(now, old_link);
        }
        self.arm(old_link, deadline_ms);
        Verdict::Wait
    }

    /// A WebSocket has taken the place of a session: if that waits for the answer of an old connection, the answer goes here.
    pub(super) fn take_challenge_over(&mut self, slot: u32) {
        self.take_waits_over(slot);
        let Some(Link { state: State::SocketIo(socket), generation, .. }) = self.links.get(slot) else { return };
        let (link, challenged) = (LinkKey { slot, generation: *generation }, socket.rare().challenged);
        let conn = challenged.and_then(|id| self.conns.get_mut_of(id.slot, id.generation));
        if let Some(challenger) = conn.and_then(|conn| conn.recovery.as_mut()?.challenger.as_mut()) {
            challenger.link = link;
        }
    }

    /// Where the events begin that the connection's client has not heard.
    fn position_of(&mut self, conn: u32, offset: Offset) -> Option<u64> {
        let conn = self.conns.get(conn)?;
        let (recovery, backlog) = (conn.recovery.as_ref()?, &self.memory.of(conn.endpoint)?.backlog);
        // Whatever was heard after the last answered ping is in the backlog; so an event that is not there was heard before that.
        // And whoever names an event from before that has it from an earlier connection, or has heard more than he says.
        let position = recovery.replayed.get(&offset).copied().or_else(|| backlog.find(offset));
        if recovery.has_brought(offset) && position.is_some_and(|position| position >= recovery.heard) {
            // It may have heard all before that here, or nothing.
            return None;
        }
        // An event from before its time here says nothing of what came to it here, though it is the last before that: on another shard more came behind it.
        let own = position.filter(|heard| *heard >= recovery.floor);
        let from = own.map_or(0, |heard| heard + 1).max(recovery.heard);
        (from >= recovery.floor && from >= backlog.first()).then_some(from)
    }

    /// Takes the connection up on a link: what it missed, its CONNECT, and from now on everything as it comes. `None` when that would be
    /// more than may wait for a connection.
    pub(super) fn take_up(&mut self, now: Now, link: u32, slot: u32, from: u64, profile: Profile) -> Option<()> {
        let missed = self.missed(link, slot, from)?;
        self.unshare_session(slot);
        self.take_up_with(now, link, slot, from, profile, missed, false)
    }

    /// The same with what it missed; one that `is_restored` is in its rooms already.
    #[expect(clippy::too_many_arguments, reason = "it is what makes one connection of another")]
    pub(super) fn take_up_with(
        &mut self,
        now: Now,
        link: u32,
        slot: u32,
        from: u64,
        profile: Profile,
        missed: Vec<std::rc::Rc<Frame>>,
        is_restored: bool,
    ) -> Option<()> {
        let conn = self.conns.get(slot)?;
        let (endpoint, sid) = (conn.endpoint, conn.sid);
        let is_polling = self.links.get(link)?.is_polling();
        let conn = self.conns.get_mut(slot)?;
        (conn.link, conn.profile, conn.is_polling) = (link, profile, is_polling);
        conn.note_life(now);
        for seat in conn.seats.iter() {
            self.membership.relink(*seat, link);
        }
        let recovery = conn.recovery.as_mut()?;
        // A ping that is on its way on this link was sent before what comes now.
        (recovery.away_until_ms, recovery.heard, recovery.pinged) = (0, from, from);
        let pid = recovery.pid;
        self.no_longer_away(endpoint);
        let counters = &self.stats.endpoints[usize::from(endpoint.0)];
        counters.recovered.add(1);
        counters.connections.add(1);
        counters.accepted.add(1);
        counters.authenticated.add(1);
        if is_polling {
            counters.polling.add(1);
        }
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(link) {
            socket.conns.push(slot);
            socket.connect_deadline_ms = u64::MAX;
        }
        let user = self.conns.get(slot)?.profile.user.clone();
        for frame in missed {
            self.note_sent(endpoint, frame.receipt(), vec![user.clone()]);
            self.push_shared(link, frame);
        }
        let namespace = &self.world.config.endpoints[usize::from(endpoint.0)].bind;
        let connected = sio::connect(namespace, sid.text().as_str(), Some(pid.text().as_str()));
        self.push_shared(link, std::rc::Rc::new(Frame::control_text(&connected)));
        if !is_restored {
            self.return_to_rooms(now, slot);
        }
        self.tell(now, slot, None, What::Connection);
        self.tell_of_rooms(now, slot, &What::RoomJoin);
        self.arm_next(now, link);
        // Only now: whoever is cut here leaves the rooms after he has returned to them.
        self.cut_slow(now);
        Some(())
    }

    /// The events from a position on that the connection was entitled to; `None` when they are too much.
    fn missed(&mut self, link: u32, slot: u32, from: u64) -> Option<Vec<std::rc::Rc<Frame>>> {
        // With what other namespaces missed half of what may wait for a link: coming back must not be what makes it a slow reader.
        let waits = self.links.get(link)?.outbox.bytes();
        let bytes_max = (self.world.config.limits.outbox_bytes / 2).saturating_sub(waits);
        let conn = self.conns.get(slot)?;
        let id = self.conn_id(slot, conn);
        let endpoint = conn.endpoint;
        let events = self.memory.of(endpoint)?.backlog.since(from);
        let conn = self.conns.get(slot)?;
        let recovery = conn.recovery.as_ref()?;
        let stays = recovery.stays_by_room();
        let mut missed = Vec::new();
        let mut bytes = 0;
        for (position, event) in events {
            debug_assert!(position >= from);
            let Some(frame) = event.frame.as_ref().filter(|_| is_entitled(&stays, id, conn, position, event)) else { continue };
            bytes += frame.bytes().len();
            if bytes > bytes_max {
                return None;
            }
            missed.push(frame.clone());
        }
        Some(missed)
    }

    /// Tells the rooms' homes, and with them the others, that the connection is back.
    fn return_to_rooms(&mut self, now: Now, slot: u32) {
        let mut rooms = self.rooms_of(slot);
        // He is online before he is in a room.
        rooms.reverse();
        for room in rooms {
            let Some(conn) = self.conns.get(slot) else { return };
            let cx = self.context(now, conn);
            let dialect = self.dialect(conn.endpoint);
            let announcement = if room.is_public() {
                dialect.welcome(&cx, &room.name).map(|frame| Announcement { to: room.clone(), frame })
            } else {
                self.presence_news(&cx, true).filter(|_| room.is_user())
            };
            let (conn, presence) = (self.conn_id(slot, conn), conn.profile.presence().clone());
            self.post(Parcel::Return(Box::new(Return { conn, room, presence, announce: announcement })));
        }
    }
}

impl Memory {
    /// As plain data.
    pub(super) fn freeze(&self, frames: &mut Frames) -> Vec<FrozenBacklog> {
        let remembering = self.endpoints.iter().enumerate().filter_map(|(index, it)| Some((index, it.as_ref()?)));
        let freeze = |(index, it): (usize, &Remembered)| FrozenBacklog {
            endpoint: index as u8,
            first: it.backlog.first(),
            events: it.backlog.freeze(frames),
            away: it.away.iter().copied().collect(),
        };
        remembering.map(freeze).collect()
    }

    /// Remembers again what an endpoint's backlog had.
    pub(super) fn thaw(&mut self, endpoint: EndpointId, frozen: FrozenBacklog, frames: &[std::rc::Rc<Frame>]) {
        if let Some(remembered) = self.of(endpoint) {
            remembered.backlog.thaw(frozen.first, frozen.events, frames);
            remembered.away = frozen.away.into();
        }
    }

    /// A connection is away that was before. One that has come from another shard takes its place among those that are to be given up; those of this one
    /// have it already.
    pub(super) fn keep_away(&mut self, endpoint: EndpointId, newcomer: Option<(u64, ConnId)>) {
        let Some(remembered) = self.of(endpoint) else { return };
        remembered.sessions += 1;
        if let Some((until_ms, id)) = newcomer {
            let at = remembered.away.partition_point(|(other_ms, _)| *other_ms <= until_ms);
            remembered.away.insert(at, (until_ms, id));
        }
    }
}

impl Recovery {
    /// As plain data. What it is said to have come from another host with has been settled before. `is_there` knows links: a challenger whose own has ended goes no further,
    /// because his slot may be another's by now.
    pub(super) fn freeze(&self, is_there: impl Fn(LinkKey) -> bool) -> FrozenRecovery {
        let challenger =
            self.challenger.as_ref().filter(|it| is_there(it.link)).map(|it| (it.link.slot, it.packet.clone(), it.deadline_ms));
        FrozenRecovery {
            pid: self.pid,
            stays: self.stays.iter().map(|stay| (stay.room.clone(), stay.from, stay.to)).collect(),
            floor: self.floor,
            heard: self.heard,
            pinged: self.pinged,
            away_until_ms: self.away_until_ms,
            challenger,
            is_shared: self.is_shared,
            anchors: self.anchors,
            brought: self.brought,
            replayed: self.replayed.iter().map(|(offset, position)| (*offset, *position)).collect(),
        }
    }

    /// The opposite of [`Self::freeze`]; `link` finds the link of a slot.
    pub(super) fn thaw(frozen: FrozenRecovery, link: impl Fn(u32) -> Option<LinkKey>) -> Recovery {
        let FrozenRecovery { pid, stays, floor, heard, pinged, away_until_ms, challenger, is_shared, anchors, replayed, brought } = frozen;
        // Tides are counted anew: all that has begun had begun before the first.
        let stays = stays.into_iter().map(|(room, from, to)| Stay { room, from, to, tide: 0 }).collect();
        let challenger =
            challenger.and_then(|(slot, packet, deadline_ms)| Some(Box::new(Challenger { link: link(slot)?, packet, deadline_ms })));
        let replayed = replayed.into_iter().collect();
        Recovery { pid, stays, floor, heard, pinged, away_until_ms, challenger, is_shared, restoring: None, anchors, brought, replayed }
    }

    /// It is on another shard than before, whose backlog has another past: from this position on it is known what it is entitled to. What it has heard
    /// of the time before nobody knows, so it is whole again when it has answered a ping, or heard something of the time after.
    pub(super) fn begin_anew(&mut self, next: u64) {
        self.stays.retain(|stay| stay.to == u64::MAX);
        self.stays.iter_mut().for_each(|stay| stay.from = next);
        (self.floor, self.heard, self.pinged, self.replayed) = (next.max(1), 0, 0, HashMap::default());
    }

    /// Its client starts anew and has heard this last.
    pub(super) fn bring(&mut self, offset: Offset) {
        self.brought = offset.number();
    }

    /// True exactly when its client had heard this last when it started anew.
    pub(super) fn has_brought(&self, offset: Offset) -> bool {
        self.brought != 0 && self.brought == offset.number()
    }

    pub(super) fn pid(&self) -> Sid {
        self.pid
    }

    /// Until when it may come back, if it is away; monotonic milliseconds.
    pub(super) fn away_until_ms(&self) -> u64 {
        self.away_until_ms
    }

    /// The client has everything before this position.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// True exactly when it is not known any more what it was entitled to from this position on.
    pub(super) fn is_uncertain(&self, from: u64) -> bool {
        from < self.floor
    }

    /// True exactly when it entered all its rooms before this tide came.
    pub(super) fn has_been_in_since(&self, tide: u64) -> bool {
        self.stays.iter().all(|stay| stay.to < u64::MAX || stay.tide < tide)
    }

    /// It comes from another host, with its secret.
    pub(super) fn begin_restoring(&mut self, pid: Sid, restoring: Box<Restoring>) {
        (self.pid, self.restoring) = (pid, Some(restoring));
    }

    /// What it missed has these positions now, from `floor` on; what is said to its rooms counts from `next` on.
    pub(super) fn has_been_restored(&mut self, floor: u64, next: u64, replayed: HashMap<Offset, u64, RandomState>, tide: u64) {
        (self.floor, self.heard, self.pinged, self.replayed) = (floor, floor, floor, replayed);
        self.stays.retain(|stay| stay.to == u64::MAX);
        self.stays.iter_mut().for_each(|stay| (stay.from, stay.tide) = (next, tide));
    }

    /// Its stays, to be asked once for each event of a long backlog.
    pub(super) fn stays_by_room(&self) -> Stays<'_> {
        let mut stays = Stays::default();
        for stay in &self.stays {
            stays.entry(&stay.room).or_default().push((stay.from, stay.to));
        }
        stays
    }
}

/// True exactly when the connection is away since the time to which this belongs.
fn is_away(conns: &Table<Conn>, id: ConnId, until_ms: u64) -> bool {
    let conn = conns.get(id.slot).filter(|conn| conn.generation == id.generation);
    conn.and_then(|conn| conn.recovery.as_ref()).is_some_and(|recovery| recovery.away_until_ms == until_ms)
}

/// From where to where a connection was in which room.
pub(super) type Stays<'a> = HashMap<&'a str, Vec<(u64, u64)>, RandomState>;

/// Whether the connection got the event, or would have.
pub(super) fn is_entitled(stays: &Stays<'_>, id: ConnId, conn: &Conn, position: u64, event: &Event) -> bool {
    let is_for_it = match &event.to {
        To::Conn(only) => *only == id,
        To::These(list) => list.binary_search(&id).is_ok(),
        To::Room(room) => stays.get(&**room).is_some_and(|stays| stays.iter().any(|(from, to)| (*from..*to).contains(&position))),
    };
    is_for_it && event.except != Some(id) && !event.hidden_from.as_ref().is_some_and(|author| super::casts::blocks(author, conn))
}
