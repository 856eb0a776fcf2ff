//! One core's whole world: its links and connections, the rooms at home here, and what is due. Sans-IO: bytes, parcels and the time come
//! in through `handle_*`, writes, parcels and commands go out through `poll_*` and `transmit`; there is no socket, no clock, no lock and
//! no await in here. Everything that changes state is an [`Act`] and ends in `Shard::perform`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::config::{Adapter, Config};
use crate::dialect::Act;
use crate::event::Wanted;
use crate::fault::{CloseReason, Refusal};
use crate::ids::{ConnId, LinkKey, Room, ShardId, Sid};
use crate::json::Scratch;
use crate::limits::{LINKS_PER_SHARD_MAX, PIPELINED_BYTES_MAX};
use crate::stats::ShardStats;
use crate::time::Now;

pub mod address;
mod assembly;
mod backlog;
mod blocklists;
mod callers;
mod casts;
mod chunks;
mod clock;
pub mod consult;
mod deadlines;
mod door;
mod echo;
mod emits;
mod engine_http;
pub(crate) mod farewell;
mod flow;
pub mod freeze;
pub mod frozen;
mod grants;
pub mod handover;
pub mod history;
mod hold;
mod home;
mod hooks;
mod identity;
pub mod inquiry;
mod intake;
mod lean;
mod lifecycle;
mod links;
mod luggage;
mod membership;
mod memory;
mod named;
mod obituary;
mod old_clients;
mod outbox;
pub mod outward;
pub mod parcel;
pub mod peers;
mod perform;
mod polling;
mod posts;
mod questions;
mod rate;
mod receipts;
pub(crate) mod recent;
pub mod recollection;
mod recovery;
mod roll;
pub mod room_calls;
pub mod scope;
mod socket_io;
mod submissions;
mod table;
mod telling;
pub mod thaw;
pub mod tides;
mod upgraded;
mod watching;

use address::Addresses;
use blocklists::Blocklists;
use clock::Wheel;
use consult::Consults;
use door::Door;
use emits::{Emits, NOBODY};
use grants::Grants;
use history::shared::Shared;
use history::{Bounds, Memory};
use hold::Held;
use home::Homes;
use hooks::Hooks;
use links::{Conn, Link, State};
pub use luggage::Luggage;
use membership::Membership;
use memory::Ledger;
use outbox::Spares;
pub use outbox::{Arena, Span};
use outward::{Outward, Outwards, RELAY_ASK, is_of_peer};
use parcel::{Answer, Parcel};
use peers::Moves;
use rate::Rate;
use receipts::Receipts;
use recollection::Recollections;
use table::Table;
use telling::Telling;
use tides::Tides;
use upgraded::Upgraded;
use watching::Absences;

/// What all shards of a process share; nothing in it changes but numbers.
#[derive(Debug)]
pub struct World {
    /// What is served.
    pub config: Config,
    /// Who may come in.
    pub addresses: Addresses,
    /// Key of the hash that gives rooms their homes.
    pub seed: u64,
    /// Which events somebody wants to be told of.
    pub wanted: Wanted,
    /// What each shard's connections hold.
    ledger: Ledger,
    /// Whether the relay reaches other hosts; false too where there is none.
    pub is_relayed: AtomicBool,
}

impl World {
    /// Nobody wants events, and no other host is reached.
    pub fn new(config: Config, addresses: Addresses, seed: u64) -> World {
        let ledger = Ledger::new(config.shards.len());
        World { config, addresses, seed, wanted: Wanted::default(), ledger, is_relayed: AtomicBool::new(false) }
    }

    /// The shard that an id leads to, whichever host made it and however many shards there were then.
    pub fn shard_of(&self, sid: Sid) -> ShardId {
        ShardId((usize::from(sid.shard().0) % self.config.shards.len()) as u8)
    }

    /// The shard that is a room's home.
    pub fn home_of(&self, room: &Room) -> ShardId {
        let shards = self.config.shards.len();
        if shards == 1 {
            return ShardId(0);
        }
        match Sid::parse(room.addressee().unwrap_or(&room.name)) {
            // A connection's own room lives with it, which is how its name is known to be taken.
            // What another host made lives by the same rule, if it comes here.
            Some(sid) => self.shard_of(sid),
            _ if room.addressee().is_some() => self.home_of(&room.resolved(false)),
            _ if let Some(user) = room.watched() => self.home_of(&Room::user(room.endpoint, user)),
            _ => {
                let hash = foldhash::quality::FixedState::with_seed(self.seed).hash_one((room.endpoint.0, &*room.name));
                ShardId((hash % shards as u64) as u8)
            }
        }
    }
}

/// What the driver has to do for the shard. Its debug form shows how much was read of a connection and not what: heads carry tokens.
pub enum Command {
    /// Everything is written: end our direction of the connection.
    HalfClose(LinkKey),
    /// Close the socket; with `reset` nothing unsent is kept.
    Close {
        /// The link, which the shard has forgotten.
        link: LinkKey,
        /// Whether the peer gets a reset.
        reset: bool,
    },
    /// Give the socket to the control plane's HTTP server.
    HandOver {
        /// The link, which the shard has forgotten.
        link: LinkKey,
        /// Peer address.
        peer: SocketAddr,
        /// What was read of it.
        read: Vec<u8>,
    },
    /// Read again: the link no longer waits.
    Resume(LinkKey),
    /// Give the socket to another shard, which takes it as if it had accepted it and read `read`.
    Move {
        /// The link, which the shard has forgotten.
        link: LinkKey,
        /// Peer address.
        peer: SocketAddr,
        /// The other shard.
        to: ShardId,
        /// What was read of it.
        read: Vec<u8>,
        /// What it is, if it has said that already.
        luggage: Option<Box<Luggage>>,
    },
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::HalfClose(key) => f.debug_tuple("HalfClose").field(key).finish(),
            Command::Close { link, reset } => f.debug_struct("Close").field("link", link).field("reset", reset).finish(),
            Command::HandOver { link, peer, read } => {
                f.debug_struct("HandOver").field("link", link).field("peer", peer).field("read_bytes", &read.len()).finish()
            }
            Command::Resume(key) => f.debug_tuple("Resume").field(key).finish(),
            Command::Move { link, peer, to, read, .. } => {
                let mut shown = f.debug_struct("Move");
                shown.field("link", link).field("peer", peer).field("to", to).field("read_bytes", &read.len()).finish()
            }
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Written {
    /// Nothing is left.
    All,
    /// More is queued.
    More,
    /// The socket is full: say when it takes more.
    Blocked,
}

/// One core's whole world. See the module.
pub struct Shard {
    id: ShardId,
    world: Arc<World>,
    stats: Arc<ShardStats>,
    links: Table<Link>,
    conns: Table<Conn>,
    /// Connections that ended while a room had not answered them.
    ghosts: HashMap<ConnId, Conn>,
    membership: Membership,
    homes: Homes,
    /// What waits for a store of history to answer.
    recollections: Recollections,
    /// What waits for the relay to say what is beyond this host.
    consults: Consults,
    memory: recovery::Memory,
    /// Long-polling sessions that live on another shard than their id says: where; and those that live here, with their slots.
    moved_away: HashMap<Sid, ShardId>,
    /// Slots of connections that another host made, by their ids and by their secrets.
    strangers: HashMap<Sid, u32>,
    /// Slots of those that are coming from another host.
    restoring: Vec<u32>,
    /// Those that left just after they had entered a room.
    early_leavers: Vec<ConnId>,
    /// Links that wait for the relay to fetch a session, by the numbers of these.
    fetching: BTreeMap<u64, LinkKey>,
    early: Vec<handover::Early>,
    fetches: u64,
    tides: Tides,
    guests: HashMap<Sid, u32>,
    emits: Emits,
    hooks: Hooks,
    blocklists: Blocklists,
    /// Of the users and messages whose home is here.
    grants: Grants,
    absences: Absences,
    receipts: Receipts,
    wheel: Wheel,
    /// For texts of plain WebSockets and for Socket.IO packets: an event's arguments live in one while the dialect may use the other.
    scratch: Scratch,
    packets: Scratch,
    /// Binary arguments of the packet being heard; empty at all other times.
    attachments: Vec<Vec<u8>>,
    entropy: RefCell<StdRng>,
    acts: Vec<Act>,
    /// Parcels to this shard itself, handled before the call that made them returns.
    loopback: VecDeque<Parcel>,
    outgoing: VecDeque<(ShardId, Parcel)>,
    commands: VecDeque<Command>,
    answers: VecDeque<(u64, Answer)>,
    outwards: Outwards,
    moves: Moves,
    telling: Telling,
    dirty: VecDeque<u32>,
    /// Query of the last Socket.IO link.
    last_query: Arc<str>,
    spares: Spares,
    held: Held,
    /// Long-polling sessions that have something to say.
    polls: Vec<u32>,
    /// Counts the requests for sessions.
    requests: u32,
    /// Bytes of unfinished request bodies.
    bodies: Rc<Cell<usize>>,
    upgraded: Upgraded,
    /// Links over their bound, and links whose socket failed, to be ended when no list or batch is being walked.
    slow: Vec<u32>,
    failed: Vec<LinkKey>,
    /// Read times of the casts delivered here since they were last asked for.
    delivered: Vec<u64>,
    /// Connections that a test profile has not greeted yet, and when it will.
    late: Vec<(u64, ConnId)>,
    /// Time of the read being handled.
    read_ns: u64,
    /// When whoever is being heard was heard before, see [`Act::Heartbeat`].
    heard_before: u32,
    drain: Option<deadlines::Drain>,
    door: Door,
    /// When it is looked again how much connections hold.
    memory_look_ms: u64,
    /// When it last looked at the time, and until when nobody is judged because that was too long ago.
    timed_ms: u64,
    patient_until_ms: u64,
    alarms: Vec<clock::Alarm>,
    swept_ms: u64,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Shard");
        shown.field("inquiries", &self.hooks.len()).field("consults", &self.consults.len());
        shown.field("id", &self.id).field("links", &self.links.len()).field("conns", &self.conns.len());
        shown.field("signposts", &(self.moved_away.len() + self.guests.len())).field("ghosts", &self.ghosts.len()).finish_non_exhaustive()
    }
}

impl Shard {
    /// An empty shard. `random` seeds its secure random source.
    pub fn new(id: ShardId, world: Arc<World>, stats: Arc<ShardStats>, random: [u8; 32], now: Now) -> Shard {
        let shards = world.config.shards.len();
        assert!(usize::from(id.0) < shards && stats.endpoints.len() == world.config.endpoints.len() + 1);
        let mut homes = Homes::new(&world.config.limits, shards);
        if world.config.relay.is_some() {
            let memory = Memory::new(Bounds::new(&world.config.limits, shards));
            homes.set_history(Box::new(Shared::new(memory, world.clone())));
        }
        // Only there a room has a channel of its own, which is listened to while somebody is in.
        if world.config.relay.as_ref().is_some_and(|relay| relay.adapter == Adapter::Sharded) {
            homes.note_inhabited();
        }
        Shard {
            id,
            stats,
            links: Table::new(),
            conns: Table::new(),
            ghosts: HashMap::new(),
            membership: Membership::new(),
            memory: recovery::Memory::new(&world.config),
            moved_away: HashMap::new(),
            strangers: HashMap::new(),
            restoring: Vec::new(),
            early_leavers: Vec::new(),
            fetching: BTreeMap::new(),
            early: Vec::new(),
            fetches: 0,
            tides: Tides::default(),
            guests: HashMap::new(),
            homes,
            recollections: Recollections::default(),
            consults: Consults::default(),
            emits: Emits::default(),
            hooks: Hooks::new(&world.config),
            blocklists: Blocklists::default(),
            grants: Grants::default(),
            absences: Absences::default(),
            receipts: Receipts::default(),
            wheel: Wheel::new(now.ms(), deadlines::tick_ms(&world.config.socket_io)),
            scratch: Scratch::default(),
            packets: Scratch::default(),
            attachments: Vec::new(),
            entropy: RefCell::new(StdRng::from_seed(random)),
            acts: Vec::new(),
            loopback: VecDeque::new(),
            outgoing: VecDeque::new(),
            commands: VecDeque::new(),
            answers: VecDeque::new(),
            outwards: Outwards::default(),
            moves: Moves::default(),
            telling: Telling::default(),
            dirty: VecDeque::new(),
            last_query: Arc::default(),
            spares: Spares::default(),
            held: Held::new(world.config.limits.hold_ms),
            polls: Vec::new(),
            requests: 0,
            bodies: Rc::default(),
            upgraded: Upgraded::default(),
            slow: Vec::new(),
            failed: Vec::new(),
            delivered: Vec::new(),
            late: Vec::new(),
            read_ns: now.ns,
            heard_before: 0,
            drain: None,
            door: Door::new(&world.config.limits),
            memory_look_ms: 0,
            timed_ms: now.ms(),
            patient_until_ms: 0,
            alarms: Vec::new(),
            swept_ms: now.ms(),
            world,
        }
    }

    /// Whether a new socket is to be closed unheard, because too many are being turned away already. Counts it then.
    pub fn turns_away(&self) -> bool {
        let is_flooded = self.world.addresses.is_flooded();
        if is_flooded {
            self.stats.unrouted().refused[Refusal::Full.index()].add(1);
        }
        is_flooded
    }

    /// A new socket. `None` when the shard's table is full (the driver closes it).
    pub fn handle_accept(&mut self, now: Now, peer: SocketAddr) -> Option<LinkKey> {
        let limits = &self.world.config.limits;
        let welcome = self.world.addresses.enter();
        let deadline_ms = now.ms() + limits.handshake_ms;
        let rate = Rate::new(limits, now.ms());
        let state = State::Head { deadline_ms, idle: false, welcome };
        let inserted = self.links.insert(LINKS_PER_SHARD_MAX, |_, generation| Link { state, ..Link::new(generation, peer, rate) });
        let Some((slot, generation)) = inserted else {
            self.world.addresses.leave();
            return None;
        };
        self.arm(slot, deadline_ms);
        Some(LinkKey { slot, generation })
    }

    /// A parcel from another shard or the control plane.
    pub fn handle_parcel(&mut self, now: Now, parcel: Parcel) {
        self.receive(now, parcel);
        self.settle(now);
    }

    /// The socket takes bytes again.
    pub fn handle_writable(&mut self, key: LinkKey) {
        if let Some(link) = self.links.get_mut_of(key.slot, key.generation) {
            link.outbox.blocked = false;
            self.mark_dirty(key.slot);
        }
    }

    /// The next link with something to write. It stays listed until [`Self::handle_sent`] says that nothing is left.
    pub fn poll_dirty(&mut self) -> Option<LinkKey> {
        while let Some(slot) = self.dirty.pop_front() {
            if let Some(link) = self.links.get_mut(slot) {
                link.outbox.dirty = false;
                if !link.outbox.is_empty() && !link.outbox.blocked {
                    return Some(LinkKey { slot, generation: link.generation });
                }
            }
        }
        None
    }

    /// True exactly when [`Self::poll_dirty`] may have one.
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The link's next write; see [`Span`]. `None` also when `arena` has no space left: write what is there, clear it and come again.
    pub fn transmit(&self, key: LinkKey, arena: &mut Arena) -> Option<Span> {
        self.links.get(key.slot).filter(|link| link.generation == key.generation)?.outbox.next_span(arena)
    }

    /// What the socket said to a write of `asked` bytes: bytes taken, or a negative errno. What follows for the link and its
    /// neighbours waits for [`Self::handle_batch_end`], because other writes of the batch still point into their queues.
    pub fn handle_sent(&mut self, key: LinkKey, asked: usize, result: i32) -> Written {
        let Some(link) = self.links.get_mut_of(key.slot, key.generation) else { return Written::All };
        if result < 0 && result != -libc::EAGAIN {
            self.failed.push(key);
            return Written::All;
        }
        let taken = result.max(0) as usize;
        let stats = &self.stats;
        link.outbox.sent(taken, &mut self.spares, |frame| {
            if let Some(endpoint) = frame.endpoint() {
                let counters = &stats.endpoints[usize::from(endpoint.0)];
                counters.delivered.add(1);
                counters.delivered_bytes.add(frame.payload().len() as u64);
            }
        });
        stats.outbox_bytes.sub(taken as u64);
        if taken < asked {
            link.outbox.blocked = true;
            if link.outbox.is_over(self.world.config.limits.outbox_bytes) || matches!(link.state, State::Closing { impatient: true, .. }) {
                self.slow.push(key.slot);
            }
            return Written::Blocked;
        }
        if !link.outbox.is_empty() {
            self.mark_dirty(key.slot);
            return Written::More;
        }
        match link.state {
            State::Closing { peer_done: true, .. } => self.commands.push_back(Command::Close { link: key, reset: false }),
            State::Closing { .. } => self.commands.push_back(Command::HalfClose(key)),
            // The request that came before this answer was written.
            State::Head { .. } if !link.partial.is_empty() => self.commands.push_back(Command::Resume(key)),
            _ => {}
        }
        Written::All
    }

    /// All writes of a batch have been told: links whose socket failed or that read too slowly are ended.
    pub fn handle_batch_end(&mut self, now: Now) {
        while let Some(key) = self.failed.pop() {
            if self.links.holds(key.slot, key.generation) {
                self.lose(now, key.slot, CloseReason::Transport);
            }
        }
        self.cut_slow(now);
        self.settle(now);
    }

    /// The next thing the driver has to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        let mut command = self.commands.pop_front()?;
        if let Command::Move { link, read, luggage: Some(_), .. } = &mut command
            && let Some(link) = self.links.get_mut_of(link.slot, link.generation)
        {
            read.append(&mut link.partial.take());
        }
        if let Command::Close { link, .. } | Command::HandOver { link, .. } | Command::Move { link, .. } = &command {
            self.forget(*link);
        }
        Some(command)
    }

    /// The next parcel for another shard.
    pub fn poll_parcel(&mut self) -> Option<(ShardId, Parcel)> {
        self.outgoing.pop_front()
    }

    /// The next answer to the control plane. Those to the relay go its way.
    pub fn poll_answer(&mut self) -> Option<(u64, Answer)> {
        loop {
            match self.answers.pop_front()? {
                (NOBODY, _) => {}
                (ask, Answer::Room(_)) if is_of_peer(ask) => self.has_moved(ask),
                (ask, answer) if ask & RELAY_ASK != 0 => self.send_out(Outward::Answer { ask, answer }),
                answer => return Some(answer),
            }
        }
    }

    /// Read times (monotonic nanoseconds) of the casts delivered since the last call; the driver asks when all is written.
    pub fn poll_delivered(&mut self) -> std::vec::Drain<'_, u64> {
        self.delivered.drain(..)
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let asked = self.emits.next_ms().into_iter().chain(self.hooks.next_ms()).chain(self.consults.next_ms()).chain(self.door.next_ms());
        self.wheel.next_ms().into_iter().chain(asked).min()
    }

    /// When [`Self::handle_timeouts`] is to let go what is held, monotonic nanoseconds.
    #[must_use]
    pub fn poll_hold(&self) -> Option<u64> {
        self.held.next_ns()
    }

    /// True exactly when the link's bytes should not be read now: an answer must come first.
    pub fn is_waiting(&self, key: LinkKey) -> bool {
        let link = self.links.get(key.slot).filter(|link| link.generation == key.generation);
        link.is_some_and(|link| link.waiting > 0 || (link.is_answering() && link.partial.len() > PIPELINED_BYTES_MAX))
    }

    /// Number of links, whatever their state.
    pub fn links(&self) -> usize {
        self.links.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthMode, DialectKind, Endpoint};

    /// One of `shards` shards.
    pub(super) fn shard(now: Now, shards: usize) -> Shard {
        let endpoint = Endpoint { auth: AuthMode::None, auto_create: true, ..Endpoint::new("rooms", DialectKind::Rooms, "/") };
        let config = Config::new(([127, 0, 0, 1], 0), shards, vec![endpoint]);
        let addresses = Addresses::new(&config.limits, 10);
        let world = Arc::new(World::new(config, addresses, 0));
        Shard::new(ShardId(0), world, Arc::new(ShardStats::new(1)), [0; 32], now)
    }

    fn masked(text: &str) -> Vec<u8> {
        // A mask of zeros leaves the text as it is.
        [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
    }

    #[test]
    fn a_day_of_heartbeats_leaves_one_alarm() {
        let mut now = Now { ns: 0, unix_ms: 0 };
        let mut shard = shard(now, 1);
        let link = shard.handle_accept(now, ([127, 0, 0, 1], 1).into()).expect("room for one");
        let head = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        shard.handle_bytes(now, link, &mut head.to_vec());
        shard.handle_bytes(now, link, &mut masked("40"));
        while now.ms() < 24 * 3_600_000 {
            now.ns = shard.poll_timeout().expect("a heartbeat is always due") * 1_000_000;
            shard.handle_timeouts(now);
            shard.handle_bytes(now, link, &mut masked("3"));
            let mut arena = Arena::new(1 << 16);
            while let Some(key) = shard.poll_dirty() {
                arena.clear();
                if let Some(span) = shard.transmit(key, &mut arena) {
                    let _ = shard.handle_sent(key, span.len, span.len as i32);
                }
            }
        }
        assert_eq!(shard.links(), 1, "it lives");
        assert!(shard.armed() <= 4, "{} alarms", shard.armed());
    }
}
