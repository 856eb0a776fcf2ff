//! The thread of one shard: the only place with sockets, clocks and an await. It reads what is ready, hands bytes, parcels and the time
//! to the [`Shard`], writes what the shard has queued, and sleeps. Everything happens in turns: all input first, then one write per
//! socket, then one batch of parcels per neighbour.

use std::fs::File;
use std::io::{self, Read as _};
use std::mem::ManuallyDrop;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::config::Io;
use crate::event::EventBatch;
use crate::ids::{LinkKey, ShardId};
use crate::limits::{ACCEPT_PAUSE_MS, ACCEPTS_PER_TURN, READ_BUFFER_BYTES, SENDS_PER_BATCH, TICK_MS};
use crate::mesh::{Delivery, Inbox, Outlets, Port};
use crate::relay::lane::Outlet;
use crate::shard::inquiry::{OpenInquiry, Ruling};
use crate::shard::parcel::Parcel;
use crate::shard::thaw::Portion;
use crate::shard::{Arena, Command, Luggage, Shard, World, Written};
use crate::stats::ShardStats;
use crate::time::Now;
use crate::{Handover, Notice};

mod farewell;
mod keep;
mod poller;
mod rest;
pub(crate) mod sys;

pub use farewell::{Farewells, Left, say_farewell};
pub(crate) use keep::Keeper;
pub(crate) use poller::Poller;
use poller::{Event, Token, Write};
pub(crate) use rest::{Order, Report};

/// Batches of parcels taken in one turn, so that a flood from a neighbour does not keep the sockets waiting.
const BATCHES_PER_TURN: usize = 64;
/// The longest sleep: a shard shows at least this often that it lives.
const SLEEP_MS_MAX: u64 = 1_000;
/// Turns after which the runtime has one. It has nothing to do here but to run the shard, so it need not be asked more often.
const TURNS_PER_YIELD: u32 = 64;
/// How long a drained shard keeps its end to itself for whoever takes the last events; who lives takes them within milliseconds.
const LAST_EVENTS_WAIT_MS: u64 = 5_000;
/// Bytes of the arena in which small frames are joined.
const ARENA_BYTES: usize = 1024 * 1024;

/// Everything a shard's thread starts with.
pub(crate) struct Setup {
    pub(crate) id: ShardId,
    pub(crate) cpu: Option<usize>,
    pub(crate) io: Io,
    /// The shard's own, and those of shards that there were before the process was reloaded with fewer: what waits in them must be taken.
    pub(crate) listeners: Vec<TcpListener>,
    /// How many shards whom this one accepts are shared out among: one, or all where some share a listener.
    pub(crate) spread_over: u8,
    pub(crate) inbox: Inbox<Moved>,
    /// The eventfd of the inbox.
    pub(crate) bell: File,
    pub(crate) outlets: Outlets<Moved>,
    pub(crate) world: Arc<World>,
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) notices: Sender<Notice>,
    /// Apart from the notices, so that no number of events keeps an answer out.
    pub(crate) events: Sender<EventBatch>,
    /// To other hosts, if there may be some.
    pub(crate) relay: Option<Outlet>,
    /// Told once, when everything that can fail at the start has not failed; dropped without a word otherwise.
    pub(crate) ready: Sender<()>,
    pub(crate) stop: Arc<AtomicBool>,
    /// True exactly when the shard is to rest, see [`rest`].
    pub(crate) rest: Arc<AtomicBool>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) reports: Sender<(ShardId, Report)>,
    /// There exactly when copies of the sockets are to outlive the process.
    pub(crate) keeper: Option<Box<Keeper>>,
    /// What it takes over, once it is told to go on; until then nothing is touched, so that another process can have it.
    pub(crate) portion: Option<Portion>,
    /// Zero of the monotonic clock, the same for all shards.
    pub(crate) epoch: Instant,
    pub(crate) random: [u8; 32],
}

/// Runs a shard on the calling thread until it is told to stop.
pub(crate) fn run(setup: Setup) -> io::Result<()> {
    if let Some(cpu) = setup.cpu {
        sys::pin(cpu)?;
    }
    let (ready, mut setup) = (setup.ready.clone(), setup);
    let portion = setup.portion.take();
    let driver = Driver::new(setup)?;
    match driver.poller {
        Poller::Ring(_) => {
            // Without COOP_TASKRUN completions interrupt the thread; with DEFER_TASKRUN monoio's own submit starves I/O.
            let mut ring = io_uring_06::IoUring::builder();
            ring.setup_coop_taskrun().setup_cqsize(1_024);
            let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().uring_builder(ring).with_entries(256).build()?;
            runtime.block_on(driver.serve(ready, portion))
        }
        Poller::Epoll(_) => {
            let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build()?;
            runtime.block_on(driver.serve(ready, portion))
        }
    }
}

/// A socket on its way to another shard.
#[derive(Debug)]
pub(crate) struct Moved {
    socket: Handover,
    /// What it is, if it has said that already.
    luggage: Option<Box<Luggage>>,
}

struct Socket {
    stream: TcpStream,
    key: LinkKey,
    /// The turn of its last read. It counts anew after four thousand million, and then who was read that long ago may wait for the next one.
    read_turn: u32,
    /// True exactly when it is in [`Driver::unread`].
    listed: bool,
    /// True exactly when the keeper has a copy.
    kept: bool,
    /// True exactly when it was to be read while its link waited, and has not been since.
    skipped: bool,
}

impl Socket {
    fn new(stream: TcpStream, key: LinkKey) -> Socket {
        Socket { stream, key, read_turn: 0, listed: false, kept: false, skipped: false }
    }
}

struct Driver {
    id: ShardId,
    shard: Shard,
    poller: Poller,
    /// By slot of the link.
    sockets: Vec<Option<Socket>>,
    listeners: Vec<TcpListener>,
    spread_over: u8,
    /// The shard that the last accepted connection was given to.
    given_to: u8,
    inbox: Inbox<Moved>,
    /// Kept open: the poller watches it.
    _bell: File,
    outlets: Outlets<Moved>,
    /// Wakes the shard when something is due.
    alarm: OwnedFd,
    /// What it is set to, monotonic nanoseconds; `u64::MAX` when to nothing.
    alarm_ns: u64,
    stats: Arc<ShardStats>,
    notices: Sender<Notice>,
    events_out: Sender<EventBatch>,
    relay: Option<Outlet>,
    stop: Arc<AtomicBool>,
    rest: Arc<AtomicBool>,
    orders: Receiver<Order>,
    reports: Sender<(ShardId, Report)>,
    keeper: Option<Box<Keeper>>,
    /// True exactly while the shard rests: nothing is read or accepted.
    resting: bool,
    /// True exactly when the sockets stay open should the process be replaced.
    stays_open: bool,
    /// True exactly when parcels have come or gone since this was last looked at.
    has_moved_parcels: bool,
    epoch: Instant,
    /// The core's one read buffer: no connection owns one.
    buffer: Box<[u8]>,
    arena: Arena,
    events: Vec<Event>,
    writes: Vec<Write>,
    results: Vec<i32>,
    /// Links with bytes in their sockets that nothing will tell of again; each at most once.
    unread: Vec<LinkKey>,
    /// Counts the turns.
    turns: u32,
    /// True exactly when the listener may have more connections waiting.
    accept_more: bool,
    /// Accepting rests until then, monotonic milliseconds.
    accept_after_ms: u64,
    told_drained: bool,
    /// Since when the shard is drained, monotonic milliseconds.
    drained_at_ms: Option<u64>,
}

impl Driver {
    fn new(setup: Setup) -> io::Result<Driver> {
        let Setup {
            id,
            io,
            listeners,
            spread_over,
            inbox,
            bell,
            outlets,
            world,
            stats,
            notices,
            events,
            relay,
            stop,
            rest,
            orders,
            reports,
            keeper,
            ..
        } = setup;
        let Setup { epoch, random, .. } = setup;
        let mut poller = Poller::new(io)?;
        for listener in &listeners {
            poller.watch(listener.as_raw_fd(), Token::Listener)?;
        }
        poller.watch(bell.as_raw_fd(), Token::Inbox)?;
        let alarm = sys::timer()?;
        poller.watch(alarm.as_raw_fd(), Token::Alarm)?;
        poller.submit();
        let shard = Shard::new(id, world, stats.clone(), random, read_clock(epoch));
        Ok(Driver {
            id,
            shard,
            poller,
            sockets: Vec::new(),
            listeners,
            spread_over,
            given_to: id.0,
            inbox,
            _bell: bell,
            outlets,
            alarm,
            alarm_ns: u64::MAX,
            stats,
            notices,
            events_out: events,
            relay,
            stop,
            rest,
            orders,
            reports,
            keeper,
            resting: false,
            stays_open: false,
            has_moved_parcels: false,
            epoch,
            buffer: vec![0; READ_BUFFER_BYTES].into(),
            arena: Arena::new(ARENA_BYTES),
            events: Vec::new(),
            writes: Vec::new(),
            results: Vec::new(),
            unread: Vec::new(),
            turns: 0,
            accept_more: false,
            accept_after_ms: 0,
            told_drained: false,
            drained_at_ms: None,
        })
    }

    /// The thread's life: a turn, then a sleep until something is ready or due.
    async fn serve(mut self, started: Sender<()>, portion: Option<Portion>) -> io::Result<()> {
        // Not for monoio to drop: it closes through its ring, and the kernel closes no ring that way.
        let ready = ManuallyDrop::new(monoio::net::TcpStream::from_std(sys::waitable(self.poller.fd())?)?);
        // Always readable: waiting for it lets monoio run its loop once. Waking oneself would starve everything else.
        let token = sys::eventfd(1)?;
        let yielding = monoio::net::TcpStream::from_std(TcpStream::from(token))?;
        // The starter may have given up on another shard meanwhile.
        let _ = started.send(());
        drop(started);
        if let Some(portion) = portion {
            // Nobody goes on before everybody can.
            let Ok(Order::Resume) = self.orders.recv() else { return Ok(()) };
            self.thaw(portion);
        }
        loop {
            if self.rest.load(Ordering::Acquire) {
                self.rest();
            }
            let more = self.turn();
            if self.stop.load(Ordering::Acquire) {
                self.let_go();
                sys::close(ready.as_raw_fd());
                return Ok(());
            }
            if self.turns.is_multiple_of(TURNS_PER_YIELD) {
                yielding.readable(false).await?;
            }
            if !more && self.inbox.sleep() {
                if !self.poller.wait() {
                    ready.readable(false).await?;
                }
                self.inbox.awake();
            }
        }
    }

    /// Ends the watch over every socket, so that dropping it closes its connection at once: a poll that is still armed holds it until the
    /// kernel has taken the ring apart, and a listener that is held so takes connections for nobody.
    fn let_go(&mut self) {
        let listeners = self.listeners.iter().map(|listener| (listener.as_raw_fd(), Token::Listener));
        let sockets = self.sockets.iter().flatten().map(|socket| (socket.stream.as_raw_fd(), Token::Link(socket.key)));
        for (fd, token) in listeners.chain(sockets) {
            self.poller.forget(fd, token);
        }
        self.poller.submit();
    }

    /// Sets the alarm for when there is something to do though nothing comes. It is set when that is earlier than what it is set for, or that is over,
    /// and not with every sleep; and it is a timer of the kernel's, because the runtime's last whole milliseconds, which is too coarse for what is held
    /// for two.
    fn set_alarm(&mut self, now_ns: u64) {
        let due_ns = self.shard.poll_hold().unwrap_or(u64::MAX).min(self.sleep_until_ms(now_ns / 1_000_000) * 1_000_000);
        if due_ns < self.alarm_ns || self.alarm_ns <= now_ns {
            self.alarm_ns = due_ns;
            sys::set_timer(self.alarm.as_raw_fd(), due_ns.saturating_sub(now_ns));
        }
    }

    /// Later than now, monotonic milliseconds.
    fn sleep_until_ms(&self, now_ms: u64) -> u64 {
        let due = self.shard.poll_timeout().unwrap_or(u64::MAX);
        let accept = if self.accept_more { self.accept_after_ms } else { u64::MAX };
        let drain = if self.shard.is_draining() { now_ms + TICK_MS } else { u64::MAX };
        // A full lane does not ring when it has drained.
        let mesh = if self.outlets.is_congested() { now_ms + 1 } else { u64::MAX };
        // Nor does whoever takes the events.
        let events = if self.shard.has_events() || self.shard.has_outward() { now_ms + TICK_MS } else { u64::MAX };
        let keep = self.keeper.as_ref().map_or(u64::MAX, |keeper| now_ms.saturating_add(keeper.rest_ms(now_ms)));
        (now_ms + SLEEP_MS_MAX).min(due).min(accept).min(drain).min(mesh).min(events).min(keep).max(now_ms + 1)
    }

    /// One turn; true exactly when there is more to do at once.
    fn turn(&mut self) -> bool {
        let started = self.now();
        self.turns = self.turns.wrapping_add(1);
        // First, so that a link of the list is read once a turn and not by an event as well.
        self.read_unread();
        let events = self.take_events(started);
        let batches = self.take_parcels(started);
        self.accept(started);
        if !self.resting {
            // While it rests answers to heartbeats are not read, so nobody can be blamed for them.
            self.shard.handle_timeouts(started);
        }
        self.obey();
        self.flush(started);
        self.obey();
        // Before the parcels: what follows from them elsewhere is told after what they follow from.
        self.tell_events();
        self.send_parcels();
        self.poller.submit();
        self.tell();
        self.tell_relay();
        if !self.resting {
            self.keep(started.ms());
        }
        let ended_ns = self.ns();
        self.shard.poll_delivered().for_each(|read_ns| self.stats.delivery.observe(ended_ns.saturating_sub(read_ns)));
        let ended_ms = ended_ns / 1_000_000;
        self.set_alarm(ended_ns);
        self.stats.loop_time.observe(ended_ns - started.ns);
        self.stats.last_turn_ms.add(ended_ms.saturating_sub(self.stats.last_turn_ms.read()));
        let accept_now = self.accept_more && self.accept_after_ms <= ended_ms;
        // Who went on after the flush has answered after it, and nothing may come that would wake the shard for that.
        let answers = self.shard.has_dirty();
        events || batches || accept_now || answers || self.poller.has_early() || (!self.unread.is_empty() && !self.outlets.is_congested())
    }

    /// Handles what is ready; true when there may be more.
    fn take_events(&mut self, now: Now) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.poller.take(&mut events);
        let full = events.len() >= crate::limits::EVENTS_PER_TURN;
        for event in events.drain(..) {
            match event.token {
                Token::Listener => self.accept_more = true,
                Token::Inbox => self.inbox.silence(),
                // It is over, and the turn has begun that it was set for.
                Token::Alarm => self.alarm_ns = u64::MAX,
                Token::Link(packed) => {
                    let Some(key) = self.live(packed) else { continue };
                    if event.writable {
                        self.shard.handle_writable(key);
                    }
                    if event.readable {
                        self.read(now, key, event.ended);
                    }
                }
            }
        }
        self.events = events;
        full
    }

    /// The key of a live link that the poller told of.
    fn live(&self, packed: LinkKey) -> Option<LinkKey> {
        let socket = self.sockets.get(packed.slot as usize)?.as_ref()?;
        poller::same(packed, socket.key).then_some(socket.key)
    }

    fn read_unread(&mut self) {
        if self.outlets.is_congested() || self.resting {
            return;
        }
        for key in std::mem::take(&mut self.unread) {
            if let Some(Some(socket)) = self.sockets.get_mut(key.slot as usize)
                && socket.key == key
            {
                socket.listed = false;
                self.read(self.now(), key, true);
            }
        }
    }

    /// Lists a link to be read in the next turn, and from then on until its socket has nothing more.
    fn list(&mut self, key: LinkKey) {
        if let Some(Some(socket)) = self.sockets.get_mut(key.slot as usize)
            && socket.key == key
            && !std::mem::replace(&mut socket.listed, true)
        {
            self.unread.push(key);
        }
    }

    /// Reads once, and at most once a turn: the ring tells of every arrival, so a turn may bring hundreds of events for one fast sender,
    /// and a buffer full for each would keep all others waiting for seconds. `to_the_end`: comes back until the socket has nothing more,
    /// because nothing will tell of it again.
    fn read(&mut self, turn: Now, key: LinkKey, to_the_end: bool) {
        let Some(Some(socket)) = self.sockets.get_mut(key.slot as usize) else { return };
        if socket.key != key || socket.listed {
            return;
        }
        if self.shard.is_waiting(key) {
            socket.skipped = true;
            return;
        }
        if self.outlets.is_congested() || self.resting || socket.read_turn == self.turns {
            return self.list(key);
        }
        (socket.read_turn, socket.skipped) = (self.turns, false);
        match (&socket.stream).read(&mut self.buffer) {
            Ok(0) => self.shard.handle_end(turn, key),
            Ok(n) => {
                let now = Now { unix_ms: turn.unix_ms, ns: self.ns() };
                self.shard.handle_bytes(now, key, &mut self.buffer[..n]);
                if to_the_end || n == self.buffer.len() {
                    self.list(key);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.list(key),
            Err(_) => self.shard.handle_end(turn, key),
        }
    }

    fn take_parcels(&mut self, now: Now) -> bool {
        for _ in 0..BATCHES_PER_TURN {
            let Some(batch) = self.inbox.next() else { return false };
            self.has_moved_parcels = true;
            for parcel in batch.parcels {
                self.shard.handle_parcel(now, parcel);
            }
            for moved in batch.sockets {
                self.adopt(now, moved);
            }
        }
        true
    }

    fn accept(&mut self, now: Now) {
        if self.shard.is_draining() && !self.listeners.is_empty() {
            for listener in &self.listeners {
                self.poller.forget(listener.as_raw_fd(), Token::Listener);
            }
            self.poller.submit();
            self.listeners.clear();
            self.accept_more = false;
        }
        if !self.accept_more || self.accept_after_ms > now.ms() || self.resting {
            return;
        }
        let mut from = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = self.listeners.get(from) else {
                self.accept_more = false;
                return;
            };
            match sys::accept(listener) {
                // The drop closes it.
                Ok(_) if self.shard.turns_away() => {}
                Ok((stream, peer)) => match self.next_host() {
                    to if to == self.id => {
                        // `None`: the table is full, and the drop closes it.
                        let _ = self.welcome(now, stream, peer);
                    }
                    to => {
                        let _ = stream.set_nodelay(true);
                        let socket = Handover { fd: stream.into(), peer, read: Vec::new() };
                        self.outlets.add_socket(to, Moved { socket, luggage: None }, 0);
                    }
                },
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => from += 1,
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.stats.accept_paused.add(1);
                        self.accept_after_ms = now.ms() + ACCEPT_PAUSE_MS;
                        return;
                    }
                    // The peer was gone before we came (ECONNABORTED and the like): the next one.
                    _ => {}
                },
            }
        }
    }

    /// The shard that takes the next connection. Of shards that share a listener mostly the same one comes to it first, so it gives to each in turn; while lanes
    /// are full it keeps what it accepts.
    fn next_host(&mut self) -> ShardId {
        if self.spread_over == 1 || self.outlets.is_congested() {
            return self.id;
        }
        self.given_to = (self.given_to + 1) % self.spread_over;
        ShardId(self.given_to)
    }

    /// Takes a socket that another shard accepted, as if this one had, and had read what that one did.
    fn adopt(&mut self, now: Now, Moved { socket: Handover { fd, peer, mut read }, luggage }: Moved) {
        let key = match luggage {
            Some(luggage) => self.shard.handle_arrival(now, *luggage),
            None => self.shard.handle_accept(now, peer),
        };
        if let Some(key) = key.and_then(|key| self.register(now, TcpStream::from(fd), key)) {
            self.shard.handle_bytes(now, key, &mut read);
            // What came while it was on its way is told of by nothing else.
            self.list(key);
        }
    }

    /// Registers a connection in the same breath in which it is accepted: at no await is there a socket that no table knows.
    fn welcome(&mut self, now: Now, stream: TcpStream, peer: SocketAddr) -> Option<LinkKey> {
        // Small messages must not wait for acknowledgements of earlier ones. A socket that refuses is already dead and will say so. The listener cannot be
        // told for all: whoever stands in its queue has what it was when he came, which with a passed one was before this process.
        let _ = stream.set_nodelay(true);
        let key = self.shard.handle_accept(now, peer)?;
        self.register(now, stream, key)
    }

    /// Watches the socket of a link.
    fn register(&mut self, now: Now, stream: TcpStream, key: LinkKey) -> Option<LinkKey> {
        let slot = key.slot as usize;
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        let fd = stream.as_raw_fd();
        self.sockets[slot] = Some(Socket::new(stream, key));
        if let Some(keeper) = &mut self.keeper {
            keeper.note_fresh();
        }
        if self.poller.watch(fd, Token::Link(key)).is_err() {
            self.shard.handle_end(now, key);
            return None;
        }
        Some(key)
    }

    /// Does what the shard has asked for.
    fn obey(&mut self) {
        let mut closed: Vec<(TcpStream, bool)> = Vec::new();
        let mut handed: Vec<Handover> = Vec::new();
        let mut moved: Vec<(ShardId, Moved)> = Vec::new();
        while let Some(command) = self.shard.poll_command() {
            match command {
                Command::HalfClose(key) => {
                    if let Some(Some(socket)) = self.sockets.get(key.slot as usize)
                        && socket.key == key
                    {
                        // A peer that is gone already has nothing to be told.
                        let _ = socket.stream.shutdown(Shutdown::Write);
                    }
                }
                Command::Close { link, reset } => closed.extend(self.take_socket(link).map(|stream| (stream, reset))),
                Command::HandOver { link, peer, read } => {
                    handed.extend(self.take_socket(link).map(|stream| Handover { fd: stream.into(), peer, read }));
                }
                Command::Move { link, peer, to, read, luggage } => {
                    let socket = self.take_socket(link).map(|stream| Handover { fd: stream.into(), peer, read });
                    moved.extend(socket.map(|socket| (to, Moved { socket, luggage })));
                }
                Command::Resume(key) => {
                    let now = self.now();
                    self.shard.handle_resume(now, key);
                    // Nothing tells again of what has come while it waited.
                    if self.sockets.get(key.slot as usize).is_some_and(|place| place.as_ref().is_some_and(|socket| socket.skipped)) {
                        self.list(key);
                    }
                }
            }
        }
        if closed.is_empty() && handed.is_empty() && moved.is_empty() {
            return;
        }
        // The cancelled polls must reach the kernel before the descriptors are closed.
        self.poller.submit();
        for (stream, reset) in closed {
            if reset {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            if self.keeper.is_some() {
                keep::end(&stream, reset);
            }
        }
        for (to, moved) in moved {
            let bytes = moved.socket.read.len() + moved.luggage.as_ref().map_or(0, |luggage| luggage.bytes());
            self.outlets.add_socket(to, moved, bytes);
        }
        for socket in handed {
            // A full queue means that the control plane is overrun; the drop closes the connection, its client comes again.
            let _ = self.notices.try_send(Notice::Handover(socket));
        }
    }

    fn take_socket(&mut self, key: LinkKey) -> Option<TcpStream> {
        let place = self.sockets.get_mut(key.slot as usize)?;
        let socket = place.take_if(|socket| socket.key == key)?;
        if let Some(keeper) = self.keeper.as_mut().filter(|_| socket.kept) {
            keeper.note_end(read_clock(self.epoch).ms());
            self.stats.kept_sockets.sub(1);
        }
        self.poller.forget(socket.stream.as_raw_fd(), Token::Link(key));
        Some(socket.stream)
    }

    /// Writes everything that is queued: per link one write for all its frames, many links per system call.
    fn flush(&mut self, now: Now) {
        loop {
            self.writes.clear();
            self.arena.clear();
            while self.writes.len() < SENDS_PER_BATCH && self.arena.has_space() {
                let Some(link) = self.shard.poll_dirty() else { break };
                let Some(Some(socket)) = self.sockets.get(link.slot as usize) else { continue };
                if let (true, Some(span)) = (socket.key == link, self.shard.transmit(link, &mut self.arena)) {
                    self.writes.push(Write { link, socket: socket.stream.as_raw_fd(), span });
                }
            }
            if self.writes.is_empty() {
                break;
            }
            self.poller.send(&self.writes, &mut self.results);
            for (write, result) in self.writes.iter().zip(&self.results) {
                if self.shard.handle_sent(write.link, write.span.len, *result) == Written::Blocked {
                    self.poller.watch_writable(write.socket, write.link);
                }
            }
            self.shard.handle_batch_end(now);
        }
    }

    fn send_parcels(&mut self) {
        while let Some((to, parcel)) = self.shard.poll_parcel() {
            self.has_moved_parcels = true;
            self.outlets.add(to, parcel);
        }
        let (stats, was_full) = (&self.stats, self.outlets.is_full());
        let all = self.outlets.flush(|parcels, delivery| {
            if delivery != Delivery::Gone {
                stats.mesh_parcels.add(parcels as u64);
            }
            if delivery == Delivery::Woken {
                stats.mesh_wakes.add(1);
            }
        });
        if !all && !was_full {
            stats.mesh_full.add(1);
        }
    }

    fn tell_events(&mut self) {
        // Asked first: giving back what another shard was quicker with is a walk along all of it.
        if self.events_out.is_full() {
            return;
        }
        let Some(batch) = self.shard.poll_events() else { return };
        if let Err(TrySendError::Full(batch)) = self.events_out.try_send(batch) {
            self.shard.restore_events(batch);
        }
    }

    /// Passes on what other hosts are to hear. What finds no place now does later.
    fn tell_relay(&mut self) {
        let Some(relay) = &self.relay else { return };
        if let Some(outwards) = self.shard.poll_outward()
            && let Err(outwards) = relay.send(self.id, outwards)
        {
            self.shard.restore_outward(outwards);
        }
    }

    fn tell(&mut self) {
        while let Some((ask, answer)) = self.shard.poll_answer() {
            // Nobody listens, or too slowly: the asker has a deadline of its own.
            let _ = self.notices.try_send(Notice::Answer { ask, shard: self.id, answer });
        }
        while let Some((number, inquiry)) = self.shard.poll_inquiry() {
            let (port, stats) = (self.inbox.port(), self.stats.clone());
            let reply = move |ruling| carry_back(&port, &stats, number, ruling);
            // What does not fit is dropped, and with that refused.
            let _ = self.notices.try_send(Notice::Inquiry(OpenInquiry::new(inquiry, reply)));
        }
        if self.shard.is_drained() && !self.told_drained {
            let now_ms = self.now().ms();
            let since_ms = *self.drained_at_ms.get_or_insert(now_ms);
            // Whoever hears it may end the thread, and with it the events of the last goodbyes.
            if !self.shard.has_events() || now_ms.saturating_sub(since_ms) >= LAST_EVENTS_WAIT_MS {
                self.told_drained = self.notices.try_send(Notice::Drained { shard: self.id }).is_ok();
            }
        }
    }

    fn now(&self) -> Now {
        read_clock(self.epoch)
    }

    /// The monotonic clock alone.
    fn ns(&self) -> u64 {
        ns_since(self.epoch)
    }
}

/// Carries the back end's answer to the shard that asked.
fn carry_back<S>(port: &Port<S>, stats: &ShardStats, number: u64, ruling: Ruling) {
    if !port.send(Parcel::Ruled { number, ruling: Box::new(ruling) }) {
        // A full lane: the shard has a deadline of its own, and refuses then.
        stats.rulings_lost.add(1);
    }
}

pub(crate) fn read_clock(epoch: Instant) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { ns: ns_since(epoch), unix_ms: unix.as_millis() as u64 }
}

fn ns_since(epoch: Instant) -> u64 {
    epoch.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LANE_BATCHES_MAX;

    #[test]
    fn an_answer_of_the_back_end_that_finds_no_place_is_counted() {
        let (port, _inbox) = Port::<()>::new(File::from(sys::eventfd(0).expect("eventfd")));
        let stats = ShardStats::new(1);
        for number in 0..LANE_BATCHES_MAX as u64 + 3 {
            carry_back(&port, &stats, number, Ruling::allowed());
        }
        assert_eq!(stats.rulings_lost.read(), 3);
    }
}
