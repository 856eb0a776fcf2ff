//! One core's whole world: its links and connections, the rooms at home here, and what is due. Sans-IO: bytes, parcels and the time come
//! in through `handle_*`, writes, parcels and commands go out through `poll_*` and `transmit`; there is no socket, no clock, no lock and
//! no await in here. Everything that changes state is an [`Act`](crate::dialect::Act) and ends in [`Shard::perform`].

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::config::Config;
use crate::dialect::{self, Act, Cx, Dialect, EnterFault, Entry, Publication};
use crate::fault::CloseReason;
use crate::frame::Frame;
use crate::ids::{ConnId, EndpointId, LinkKey, Room, ShardId, Sid};
use crate::json::Scratch;
use crate::limits::{LINKS_PER_SHARD_MAX, TYPING_MS};
use crate::stats::{EndpointStats, ShardStats};
use crate::time::Now;

pub mod address;
mod casts;
mod clock;
mod home;
mod intake;
mod lifecycle;
mod links;
mod membership;
mod outbox;
pub mod parcel;
mod polling;
mod questions;
mod rate;
mod socket_io;
mod table;

use address::Addresses;
use clock::Wheel;
use home::{Bounds, Homes};
use links::{Conn, Heartbeat, Link, State, Typing};
use membership::Membership;
pub use outbox::Span;
use parcel::{Answer, Enter, Leave, Parcel, Publish};
use rate::Rate;
use table::Table;

/// What all shards of a process share; nothing in it changes but counters.
#[derive(Debug)]
pub struct World {
    /// What is served.
    pub config: Config,
    /// Who may come in.
    pub addresses: Addresses,
    /// Key of the hash that gives rooms their homes.
    pub seed: u64,
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
            Command::Move { link, peer, to, read } => {
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
    /// Connections that ended while a room had not answered them: number of answers to come.
    ghosts: HashMap<ConnId, (u32, Conn)>,
    membership: Membership,
    homes: Homes,
    wheel: Wheel,
    /// For texts of plain WebSockets and for Socket.IO packets: an event's arguments live in one while the dialect may use the other.
    scratch: Scratch,
    packets: Scratch,
    entropy: RefCell<StdRng>,
    acts: Vec<Act>,
    /// Parcels to this shard itself, handled before the call that made them returns.
    loopback: VecDeque<Parcel>,
    outgoing: VecDeque<(ShardId, Parcel)>,
    commands: VecDeque<Command>,
    answers: VecDeque<(u64, Answer)>,
    dirty: VecDeque<u32>,
    /// Long-polling sessions that have something to say.
    polls: Vec<u32>,
    /// Links over their bound, and links whose socket failed, to be ended when no list or batch is being walked.
    slow: Vec<u32>,
    failed: Vec<LinkKey>,
    /// Read times of the casts delivered here since they were last asked for.
    delivered: Vec<u64>,
    /// Time of the read being handled.
    read_ns: u64,
    drain: Option<lifecycle::Drain>,
    alarms: Vec<clock::Alarm>,
    swept_ms: u64,
    home_hash: foldhash::quality::FixedState,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).field("links", &self.links.len()).finish_non_exhaustive()
    }
}

impl Shard {
    /// An empty shard. `random` seeds its secure random source.
    pub fn new(id: ShardId, world: Arc<World>, stats: Arc<ShardStats>, random: [u8; 32], now: Now) -> Shard {
        let shards = world.config.shards.len();
        assert!(usize::from(id.0) < shards && stats.endpoints.len() == world.config.endpoints.len() + 1);
        Shard {
            id,
            stats,
            links: Table::new(),
            conns: Table::new(),
            ghosts: HashMap::new(),
            membership: Membership::new(),
            homes: Homes::new(Bounds::new(&world.config.limits, shards), shards),
            wheel: Wheel::new(now.ms()),
            scratch: Scratch::default(),
            packets: Scratch::default(),
            entropy: RefCell::new(StdRng::from_seed(random)),
            acts: Vec::new(),
            loopback: VecDeque::new(),
            outgoing: VecDeque::new(),
            commands: VecDeque::new(),
            answers: VecDeque::new(),
            dirty: VecDeque::new(),
            polls: Vec::new(),
            slow: Vec::new(),
            failed: Vec::new(),
            delivered: Vec::new(),
            read_ns: now.ns,
            drain: None,
            alarms: Vec::new(),
            swept_ms: now.ms(),
            home_hash: foldhash::quality::FixedState::with_seed(world.seed),
            world,
        }
    }

    /// A new socket. `None` when the shard's table is full (the driver closes it).
    pub fn handle_accept(&mut self, now: Now, peer: SocketAddr) -> Option<LinkKey> {
        let limits = &self.world.config.limits;
        let welcome = self.world.addresses.enter();
        let deadline_ms = now.ms() + limits.handshake_ms;
        let rate = Rate::new(limits, now.ms());
        let inserted = self.links.insert(LINKS_PER_SHARD_MAX, |_, generation| Link {
            generation,
            state: State::Head { deadline_ms, welcome },
            peer,
            ticket: None,
            outbox: outbox::Outbox::default(),
            partial: Vec::new(),
            decoder: crate::wire::ws::Decoder::default(),
            waiting: 0,
            corked: false,
            alarm_ms: u64::MAX,
            rate,
            heartbeat: Heartbeat::NEVER,
            polling: None,
        });
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

    /// The link's next write; see [`Span`]. `None` also when `arena` has no space left: write what is there, clear it and come again.
    pub fn transmit(&self, key: LinkKey, arena: &mut Vec<u8>) -> Option<Span> {
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
        link.outbox.sent(taken, |frame| {
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
        if let State::Closing { peer_done, .. } = link.state {
            let command = if peer_done { Command::Close { link: key, reset: false } } else { Command::HalfClose(key) };
            self.commands.push_back(command);
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
        let command = self.commands.pop_front()?;
        if let Command::Close { link, .. } | Command::HandOver { link, .. } | Command::Move { link, .. } = &command {
            self.forget(*link);
        }
        Some(command)
    }

    /// The next parcel for another shard.
    pub fn poll_parcel(&mut self) -> Option<(ShardId, Parcel)> {
        self.outgoing.pop_front()
    }

    /// The next answer to the control plane.
    pub fn poll_answer(&mut self) -> Option<(u64, Answer)> {
        self.answers.pop_front()
    }

    /// Read times (monotonic nanoseconds) of the casts delivered since the last call; the driver asks when all is written.
    pub fn poll_delivered(&mut self) -> std::vec::Drain<'_, u64> {
        self.delivered.drain(..)
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        self.wheel.next_ms()
    }

    /// True exactly when the link's bytes should not be read now: an answer must come first.
    pub fn is_waiting(&self, key: LinkKey) -> bool {
        self.links.get(key.slot).is_some_and(|link| link.generation == key.generation && link.waiting > 0)
    }

    /// Number of links, whatever their state.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Performs one act of a connection. The one place where clients' wishes become state.
    fn perform(&mut self, now: Now, slot: u32, act: Act) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (id, endpoint, link) = (self.conn_id(slot, conn), conn.endpoint, conn.link);
        match act {
            Act::Send(frame) => self.push(now, link, frame),
            Act::Publish(publication) => self.publish(endpoint, id, publication),
            Act::Enter(entry) => self.enter(now, slot, entry),
            Act::Leave { room, note } => self.leave(now, slot, Room { endpoint, name: room }, note),
            Act::Recall { room } => {
                self.hold(slot);
                self.post(Parcel::Recall { conn: id, room: Room { endpoint, name: room } });
            }
            Act::Typing { room, on } => self.types(now, slot, room, on),
            Act::Refresh(identity) => self.refresh(now, slot, identity),
            Act::Drop(reason) => self.counters(endpoint).dropped[reason.index()].add(1),
            Act::Close(reason) => self.disconnect(now, slot, reason, None),
        }
    }

    fn publish(&mut self, endpoint: EndpointId, id: ConnId, publication: Publication) {
        let Publication { room, frame, to_self, keep, hidden_from } = publication;
        let except = (!to_self).then_some(id);
        let room = Room { endpoint, name: room };
        // What a user tells everybody goes by way of his own home, as his coming and going does: neither overtakes the other.
        let user = self.conns.get(id.slot).filter(|_| room.name.is_empty()).map(|conn| Room::user(endpoint, &conn.profile.user));
        let to = self.home_of(user.as_ref().unwrap_or(&room));
        self.post_to(to, Parcel::Publish(Box::new(Publish { room, frame, except, hidden_from, keep, read_ns: self.read_ns })));
    }

    fn enter(&mut self, now: Now, slot: u32, entry: Entry) {
        let rooms_max = self.world.config.limits.rooms_per_connection;
        let Some(conn) = self.conns.get(slot) else { return };
        let room = Room { endpoint: conn.endpoint, name: entry.room };
        let again = self.seat_of(conn, &room).is_some();
        // The user's own room and everybody's do not count.
        let public = conn.seats.iter().filter(|seat| self.membership.room(seat.room).is_some_and(Room::is_public)).count();
        if !again && public + conn.entering.len() >= rooms_max {
            let note = entry.note;
            return self.consult(now, slot, |dialect, cx, _, acts| {
                dialect.entered(cx, &room.name, Err(EnterFault::TooMany), note.as_deref(), acts);
            });
        }
        let announce = entry.announce.filter(|_| !again).map(|frame| parcel::Announcement { to: room.clone(), frame });
        let enter = Enter {
            conn: self.conn_id(slot, conn),
            room,
            presence: conn.profile.presence.clone(),
            again,
            create: entry.create,
            members_max: u32::MAX,
            announce,
            history: entry.history,
            online: entry.online,
            note: entry.note,
        };
        self.ask_home(slot, enter);
    }

    /// Sends a wish to enter to the room's home; the link waits for the answer.
    fn ask_home(&mut self, slot: u32, enter: Enter) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if !enter.again {
            conn.entering.push(enter.room.clone());
        }
        self.hold(slot);
        self.post(Parcel::Enter(Box::new(enter)));
    }

    /// Asks the room's home to take the connection out. It keeps its seat until the answer comes, so it misses nothing that the room
    /// heard before.
    fn leave(&mut self, now: Now, slot: u32, room: Room, note: Box<str>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let is_in = self.seat_of(conn, &room).is_some();
        if is_in {
            self.stop_typing_in(now, slot, &room.name);
        }
        self.hold(slot);
        self.send_leave(now, slot, room.clone(), is_in, Some(note));
        if let Some(conn) = self.conns.get_mut(slot).filter(|_| is_in) {
            conn.leaving = Some(room);
        }
    }

    /// Tells the home that a connection is out, and what others hear if it was the last of its presence.
    fn send_leave(&mut self, now: Now, slot: u32, room: Room, was_in: bool, note: Option<Box<str>>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let leave = self.leave_parcel(now, self.conn_id(slot, conn), conn, room, was_in, note);
        self.post(leave);
    }

    fn leave_parcel(&self, now: Now, id: ConnId, conn: &Conn, room: Room, was_in: bool, note: Option<Box<str>>) -> Parcel {
        let cx = self.context(now, conn, &|_| false);
        let (to, frame) = if room.is_public() {
            (room.clone(), self.dialect(conn.endpoint).farewell(&cx, &room.name))
        } else {
            (Room::everybody(room.endpoint), self.dialect(conn.endpoint).presence(&cx, false))
        };
        let announce = frame.map(|frame| parcel::Announcement { to, frame });
        Parcel::Leave(Box::new(Leave { conn: id, room, presence: conn.profile.presence.clone(), was_in, announce, note }))
    }

    fn types(&mut self, now: Now, slot: u32, room: Arc<str>, on: bool) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        conn.typing.retain(|typing| typing.room != room);
        if on {
            let until_ms = now.ms() + TYPING_MS;
            conn.typing.push(Typing { room, until_ms });
            let link = conn.link;
            self.arm(link, until_ms);
        }
    }

    /// Asks the connection's dialect and performs what it wants.
    fn consult(&mut self, now: Now, slot: u32, ask: impl FnOnce(&dyn Dialect, &Cx<'_>, &mut Scratch, &mut Vec<Act>)) {
        let Some(conn) = self.conns.get(slot) else { return };
        let mut acts = std::mem::take(&mut self.acts);
        let mut scratch = std::mem::take(&mut self.scratch);
        let membership = &self.membership;
        let is_in = |name: &str| {
            conn.seats.iter().any(|seat| membership.room(seat.room).is_some_and(|room| room.is_public() && *room.name == *name))
        };
        ask(self.dialect(conn.endpoint), &self.context(now, conn, &is_in), &mut scratch, &mut acts);
        for act in acts.drain(..) {
            self.perform(now, slot, act);
        }
        self.scratch = scratch;
        self.acts = acts;
    }

    fn context<'a>(&'a self, now: Now, conn: &'a Conn, is_in: &'a dyn Fn(&str) -> bool) -> Cx<'a> {
        Cx {
            now,
            endpoint_id: conn.endpoint,
            endpoint: &self.world.config.endpoints[usize::from(conn.endpoint.0)],
            sid: conn.sid,
            profile: &conn.profile,
            is_in,
            verifier: self.world.config.verifier.as_ref(),
            limits: &self.world.config.limits,
            rate_wait_ms: self.links.get(conn.link).map_or(0, |link| link.rate.wait_ms(&self.world.config.limits)),
            entropy: &self.entropy,
        }
    }

    fn dialect(&self, endpoint: EndpointId) -> &'static dyn Dialect {
        dialect::of(self.world.config.endpoints[usize::from(endpoint.0)].dialect)
    }

    fn counters(&self, endpoint: EndpointId) -> &EndpointStats {
        &self.stats.endpoints[usize::from(endpoint.0)]
    }

    fn conn_id(&self, slot: u32, conn: &Conn) -> ConnId {
        ConnId { shard: self.id, slot, generation: conn.generation }
    }

    /// Index of the connection's seat in a room.
    fn seat_of(&self, conn: &Conn, room: &Room) -> Option<usize> {
        let slot = self.membership.find(room)?;
        conn.seats.iter().position(|seat| seat.room == slot)
    }

    fn vacate(&mut self, slot: u32, seat: usize) {
        let Some(mut seats) = self.conns.get_mut(slot).map(|conn| std::mem::take(&mut conn.seats)) else { return };
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

    /// The live connection of a public id.
    fn find(&self, id: Sid) -> Option<u32> {
        let slot = id.slot();
        (id.shard() == self.id && self.conns.get(slot).is_some_and(|conn| conn.sid == id)).then_some(slot)
    }

    fn home_of(&self, room: &Room) -> ShardId {
        let shards = self.world.config.shards.len();
        match Sid::parse(room.addressee().unwrap_or(&room.name)) {
            // A connection's own room lives with it, which is how its name is known to be taken.
            Some(sid) if usize::from(sid.shard().0) < shards => sid.shard(),
            _ if room.addressee().is_some() => self.home_of(&room.resolved(false)),
            _ => ShardId((self.home_hash.hash_one((room.endpoint.0, &*room.name)) % shards as u64) as u8),
        }
    }

    /// Sends a parcel to where it belongs.
    fn post(&mut self, parcel: Parcel) {
        let to = match &parcel {
            Parcel::Enter(enter) => self.home_of(&enter.room),
            Parcel::Leave(leave) => self.home_of(&leave.room),
            Parcel::Publish(publish) => self.home_of(&publish.room),
            Parcel::Recall { room, .. } => self.home_of(room),
            Parcel::Poll(poll) => poll.sid.shard(),
            Parcel::PollAborted { sid, .. } => sid.shard(),
            Parcel::PollAnswer { to, .. } => to.shard,
            Parcel::Entered { conn, .. } | Parcel::Left { conn, .. } | Parcel::Recalled { conn, .. } => conn.shard,
            // These are made by the control plane or sent with an address.
            Parcel::Cast(_) | Parcel::Ask { .. } | Parcel::Drain { .. } => self.id,
        };
        self.post_to(to, parcel);
    }

    fn post_to(&mut self, to: ShardId, parcel: Parcel) {
        if to == self.id {
            self.loopback.push_back(parcel);
        } else {
            self.outgoing.push_back((to, parcel));
        }
    }

    /// Handles the parcels this shard sent to itself, until there are none.
    fn settle(&mut self, now: Now) {
        loop {
            while let Some(parcel) = self.loopback.pop_front() {
                self.receive(now, parcel);
            }
            // Their answers are parcels again, for this shard or another.
            match self.polls.pop() {
                Some(slot) => self.answer_poll(slot),
                None if self.slow.is_empty() => return,
                None => self.cut_slow(now),
            }
        }
    }

    /// The next message of the connection's link waits for one more answer.
    fn hold(&mut self, conn: u32) {
        let Some(conn) = self.conns.get_mut(conn) else { return };
        conn.waiting += 1;
        if let Some(link) = self.links.get_mut(conn.link) {
            link.waiting += 1;
        }
    }

    /// One of the answers has come. A connection that has ended meanwhile took its share off the link then.
    fn release(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut_of(id.slot, id.generation) else { return };
        conn.waiting -= 1;
        let link = conn.link;
        self.unwait(link, 1);
    }

    /// The link waits for so many answers less.
    fn unwait(&mut self, slot: u32, answers: u32) {
        let Some(link) = self.links.get_mut(slot).filter(|_| answers > 0) else { return };
        link.waiting -= answers;
        if link.waiting == 0 {
            let uncorked = std::mem::take(&mut link.corked);
            self.commands.push_back(Command::Resume(LinkKey { slot, generation: link.generation }));
            if uncorked {
                self.mark_dirty(slot);
            }
        }
    }

    /// Queues a frame for one link.
    fn push(&mut self, now: Now, slot: u32, frame: Frame) {
        self.push_shared(slot, Rc::new(frame));
        self.cut_slow(now);
    }

    /// Queues a frame; a link that is over its bound goes on the list of slow ones.
    fn push_shared(&mut self, slot: u32, frame: Rc<Frame>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        if matches!(link.state, State::Closing { .. }) {
            return;
        }
        self.stats.outbox_bytes.add(frame.bytes().len() as u64);
        link.outbox.push(frame);
        // A session whose client does not poll is a reader that reads nothing.
        let unread = link.polling.as_ref().is_some_and(|polling| polling.poll.is_none() && !polling.is_over);
        if link.outbox.blocked || unread {
            if link.outbox.is_over(self.world.config.limits.outbox_bytes) {
                self.slow.push(slot);
            }
        } else {
            self.mark_dirty(slot);
        }
    }

    fn mark_dirty(&mut self, slot: u32) {
        if let Some(link) = self.links.get(slot)
            && link.is_polling()
        {
            // Without a poll there is nobody to tell; the next one looks for itself.
            if link.polling.as_ref().is_some_and(|polling| polling.poll.is_some()) {
                self.polls.push(slot);
            }
            return;
        }
        if let Some(link) = self.links.get_mut(slot)
            && !link.outbox.dirty
            && !link.corked
        {
            link.outbox.dirty = true;
            self.dirty.push_back(slot);
        }
    }

    fn cut_slow(&mut self, now: Now) {
        while let Some(slot) = self.slow.pop() {
            self.too_slow(now, slot);
        }
    }

    /// Makes sure that the link's deadlines are looked at then, or earlier.
    fn arm(&mut self, slot: u32, at_ms: u64) {
        if let Some(link) = self.links.get_mut(slot)
            && at_ms < link.alarm_ms
        {
            link.alarm_ms = at_ms;
            self.wheel.arm(slot, link.generation, at_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthMode, DialectKind, Endpoint, Io, Membership, SocketIo};

    fn shard(now: Now) -> Shard {
        let endpoint = Endpoint {
            name: "rooms".into(),
            dialect: DialectKind::Rooms,
            bind: "/".into(),
            auth: AuthMode::None,
            membership: Membership::Open,
            cookies: false,
            client_publish: false,
            auto_create: true,
            require_membership: true,
            retain: 0,
        };
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            shards: vec![None],
            io: Io::Auto,
            endpoints: vec![endpoint],
            socket_io: SocketIo::default(),
            origins: Vec::new(),
            any_origin: false,
            trusted_proxies: Vec::new(),
            limits: crate::limits::Limits::default(),
            verifier: None,
        };
        let addresses = Addresses::new(&config.limits, 10);
        let world = Arc::new(World { config, addresses, seed: 0 });
        Shard::new(ShardId(0), world, Arc::new(ShardStats::new(1)), [0; 32], now)
    }

    fn masked(text: &str) -> Vec<u8> {
        // A mask of zeros leaves the text as it is.
        [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
    }

    #[test]
    fn a_day_of_heartbeats_leaves_one_alarm() {
        let mut now = Now { ns: 0, unix_ms: 0 };
        let mut shard = shard(now);
        let link = shard.handle_accept(now, ([127, 0, 0, 1], 1).into()).expect("room for one");
        let head = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        shard.handle_bytes(now, link, &mut head.to_vec());
        shard.handle_bytes(now, link, &mut masked("40"));
        while now.ms() < 24 * 3_600_000 {
            now.ns = shard.poll_timeout().expect("a heartbeat is always due") * 1_000_000;
            shard.handle_timeouts(now);
            shard.handle_bytes(now, link, &mut masked("3"));
            let mut arena = Vec::with_capacity(1 << 16);
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
