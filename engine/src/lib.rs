//! The engine: holds a host's WebSocket and Socket.IO connections on one io_uring runtime per core and moves their messages.
//!
//! [`start`] takes a complete [`config::Config`] and returns an [`Engine`] to ask and stop, and the stream of [`Notice`]s: answers to
//! questions, and connections of the public port that speak plain HTTP and belong to whoever serves that. When it has returned, clients
//! are served; nothing more is needed than somebody who takes the notices.
//! The way through the code is told in `ARCHITECTURE.md`.
//!
//! # What a program that embeds it does
//!
//! | to | use |
//! |---|---|
//! | say what is served | [`config::Config::new`], [`config::Endpoint::new`], [`limits::Limits`], [`auth::Verifier`] |
//! | serve a dialect of its own | [`dialect::Dialect`], bound as a [`config::OwnDialect`] |
//! | take notices, gather answers | [`Calls`], or by hand: [`Engine::ask`] and [`Notice::Answer`] |
//! | say who may connect, enter and publish | [`Notice::Inquiry`], where [`config::Endpoint`] says that it is asked |
//! | say something to clients | [`Engine::event`], put as [`Question::Emit`] |
//! | see who is connected, and close | [`Question::Connections`], [`Question::CloseUser`] and their like |
//! | hear what happens | [`Engine::want_events`], [`Engine::events`] |
//! | ask other hosts | [`Question::scope`] says what goes to them by itself; [`Calls::ask_hosts`], and [`Notice::Note`] for what theirs asks |
//! | count | [`Engine::stats`], [`stats::ShardStats`]: one set of counters a shard, to be summed |
//! | stop | [`Engine::drain`], then [`Engine::join`]; a drop stops too, without a word to clients |
//!
//! Each function of the HTTP API is one of these with the same meaning: an emit is an [`Emit`], a call with one of several shards is a
//! [`Question`], and what the HTTP API sums over them [`Gathered`] sums here. What is HTTP's own is not here: problem documents, the cursor's
//! form, idempotent ids.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use engine::config::{Config, DialectKind, Endpoint};
//! use engine::{Calls, Emit, Question, Selection, Target, auth};
//!
//! let secret = b"of the login service, 32 bytes or more".to_vec();
//! let mut config = Config::new(([127, 0, 0, 1], 0), 1, vec![Endpoint::new("chat", DialectKind::Chat, "/")]);
//! config.verifier = Some(auth::Verifier::new(auth::Key::Hs256(secret))?);
//! let (engine, notices) = engine::start(config)?;
//! let calls = Arc::new(Calls::default());
//! let taker = std::thread::spawn({
//!     let calls = calls.clone();
//!     move || calls.run(&notices, drop)
//! });
//!
//! // To all devices of alice, one of which may be asleep: who has not acknowledged in 2 s does not count.
//! let chat = engine.endpoint("chat").expect("it is configured");
//! let to = Selection::of(chat, vec![Target::user("alice")]);
//! let news = Emit { ack_ms: Some(2_000), ..engine.event(to, "news", r#"{"unread":3}"#)? };
//! let gathered = calls.ask(&engine, &Question::Emit(Arc::new(news))).within(Duration::from_millis(2_000 + 1_000));
//! assert_eq!(gathered.missing, 0, "every shard has answered");
//! let emitted = gathered.emitted();
//! assert_eq!((emitted.recipients, emitted.acks), (0, 0), "alice is not here");
//!
//! engine.join();
//! taker.join().expect("it does not panic")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Shapes, units, errors
//!
//! - Messages are JSON texts as they go over the wire; the engine takes them as text and relays them byte for byte. Where several are given
//!   they are joined by commas (`args`). Binary data is attached to a Socket.IO event or is a message of a plain WebSocket.
//! - A name's last word is its unit: `_ms` (wall clock: `unix_ms`, since 1970), `_ns`, `_us`, `_bytes`, `_max`. Without one it is a count.
//! - Ids are types: [`ids::Sid`] is a connection's public id, [`ids::EndpointId`] the index of an endpoint, [`ids::ShardId`] that of a shard.
//!   Names of rooms and users are texts that went through [`ids::checked_name`].
//! - Errors are an enum each, named by whose fault it was: [`StartError`] and [`config::ConfigFault`] at the start, [`BadEvent`] for what no
//!   client could read, [`auth::AuthFault`] for tokens, [`EngineLost`] for ourselves. What clients do wrong is answered by their dialect and
//!   counted ([`fault`]); a program hears nothing of it.
//! - Nothing here waits but [`start`] (until all shards run), [`Asked::within`] (as long as it is told), [`Calls::run`] (for the engine's life),
//!   [`Engine::drain`] (a second, for a shard that hangs) and [`Engine::join`] (for the shards' current turn).
//! - Every queue has a bound, told with its reason in [`limits`]. What is lost to one is counted.
//!
//! # Plain HTTP
//!
//! A request on the public port that is neither an upgrade to a WebSocket nor one of Engine.IO comes as a [`Handover`] with its socket and the
//! bytes that were read. A program with an HTTP server gives it those; one without drops it, which closes the connection without an answer.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

pub mod auth;
mod calls;
pub mod config;
pub mod dialect;
mod driver;
pub mod event;
pub mod fault;
pub mod frame;
pub mod ids;
pub mod json;
pub mod limits;
mod mesh;
// Public for fuzzers and for tests against a real Redis. It promises nothing to others.
#[doc(hidden)]
pub mod relay;
mod reload;
// Public for the tests that run a host without a socket. It promises nothing to others.
#[doc(hidden)]
pub mod shard;
pub mod stats;
pub mod time;
// Public for the fuzzers of the parsers and for the control plane, which shares words with it. It promises nothing to others.
#[doc(hidden)]
pub mod wire;

// The harness of the tests that run a host without a socket is used by unit tests too.
#[cfg(test)]
extern crate self as engine;

use auth::{AuthFault, Identity};
pub use calls::{Asked, Calls, EngineLost, Gathered};
use config::{Config, ConfigFault, Endpoint, Io};
pub use dialect::BadEvent;
pub use driver::{Farewells, Left, say_farewell};
use driver::{Keeper, Poller};
use event::{EventBatch, EventTypes};
use ids::{EndpointId, ShardId};
use mesh::{Inbox, Outlets, Port};
pub use relay::RelayState;
pub use relay::fleet::HostAnswers;
pub use relay::handle::{Claim, FleetHandle, Others};
pub use relay::words::{Hello, HostId, Wish};
pub use reload::{NotFrozen, keep_open};
use shard::World;
use shard::address::Addresses;
pub use shard::frozen::{Frozen, NotThawed};
pub use shard::history::{Kept, Past, Range};
pub use shard::inquiry::{About, Caller, Changes, Inquiry, OpenInquiry, Proposal, Ruling};
pub use shard::parcel::{
    Answer, ConnectionInfo, Emit, Emitted, GrantFault, NotAuthor, Post, Question, Revision, Selection, Standing, Target,
};
pub use shard::room_calls::{NewRoom, RoomAnswer, RoomCall, RoomFault, RoomInfo, Saying};
pub use shard::scope::Scope;
use shard::thaw;
use stats::{RelayStats, ShardStats};

/// Something the engine tells. It must be taken without long waits: see [`Notices`].
#[derive(Debug)]
pub enum Notice {
    /// One shard's answer to a question.
    Answer {
        /// The asker's number.
        ask: u64,
        /// The shard.
        shard: ShardId,
        /// Its answer.
        answer: Answer,
    },
    /// Another host's answers to a question, or that it will not answer: one for each host that was asked.
    HostAnswer {
        /// The asker's number.
        ask: u64,
        /// Its answers.
        answers: HostAnswers,
    },
    /// The program of another host asks this one ([`Wish::Program`]); the answer is given with [`FleetHandle::reply`].
    Note {
        /// The number to answer under.
        ask: u64,
        /// What it says: whatever the two programs agree on.
        text: Arc<str>,
    },
    /// A question to the back end, where the configuration says that it is asked. Dropped, it is refused.
    Inquiry(OpenInquiry),
    /// A connection of the public port that is plain HTTP.
    Handover(Handover),
    /// A draining shard has closed its last connection.
    Drained {
        /// The shard.
        shard: ShardId,
    },
    /// A shard has ended although nobody stopped it: the kernel refused what it cannot go on without, or a dialect panicked. A host without one of its shards answers some clients and not others: better to
    /// end the process and have it started again.
    ShardLost {
        /// The shard.
        shard: ShardId,
        /// What it ended with.
        reason: io::Error,
    },
    /// The connection to Redis has changed, or Redis refuses something. It is told once for each change and not for each attempt.
    Relay(RelayState),
    /// The relay has ended although nobody stopped it: no other host is reached any more, and clients go on talking to half of a fleet. As
    /// with a shard, it is better to end the process.
    RelayLost {
        /// What it ended with.
        reason: io::Error,
    },
}

/// A connection of the public port that the engine does not serve. Its debug form shows how much was read and not what: heads carry
/// tokens.
pub struct Handover {
    /// Its socket, non-blocking.
    pub fd: OwnedFd,
    /// The client's address.
    pub peer: SocketAddr,
    /// What was read of it: begins with the whole request head.
    pub read: Vec<u8>,
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Handover { fd, peer, read } = self;
        f.debug_struct("Handover").field("fd", fd).field("peer", peer).field("read_bytes", &read.len()).finish()
    }
}

/// What the engine tells, in the order in which each shard does. At most [`limits::NOTICES_MAX`] wait: where nobody takes them, answers are
/// lost and connections that are to be handed over are closed. The stream ends when the engine has.
pub type Notices = Receiver<Notice>;

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be served.
    #[error("the configuration is wrong: {0}")]
    Config(#[from] ConfigFault),
    /// What is said of Redis cannot be.
    #[error("redis: {0}")]
    Redis(#[from] relay::link::AddressFault),
    /// The public port cannot be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The kernel interface that was asked for cannot be had.
    #[error("io_uring was asked for and is not available: {0}")]
    Io(io::Error),
    /// What the former process has left cannot be taken over.
    #[error(transparent)]
    State(#[from] NotThawed),
    /// More listening sockets were passed than there are shards to serve them.
    #[error("{passed} listening sockets were passed, and each needs a shard: there are {shards}")]
    Listeners {
        /// How many were passed.
        passed: usize,
        /// How many could be served.
        shards: usize,
    },
    /// Anything else the kernel refused.
    #[error("cannot start the shards: {0}")]
    System(#[from] io::Error),
    /// A shard did not come as far as its first turn.
    #[error("shard {} cannot run: {reason}", .shard.0)]
    Shard {
        /// The shard.
        shard: ShardId,
        /// What stopped it.
        reason: io::Error,
    },
}

/// Whom a question has reached.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Reached {
    /// Shards of this host that have it in their lanes.
    pub shards: usize,
    /// Other hosts.
    pub others: Others,
}

/// One of the engine's threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Worker {
    /// That of a shard.
    Shard(ShardId),
    /// The one that speaks with Redis.
    Relay,
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Worker::Shard(shard) => write!(f, "shard {}", shard.0),
            Worker::Relay => f.write_str("the relay"),
        }
    }
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    world: Arc<World>,
    local_addr: SocketAddr,
    io: Io,
    io_note: Option<String>,
    ports: Vec<Arc<Port<driver::Moved>>>,
    stats: Vec<Arc<ShardStats>>,
    events: Receiver<EventBatch>,
    threads: Vec<JoinHandle<()>>,
    relay: Option<RelayEnd>,
    stop: Arc<AtomicBool>,
    draining: AtomicBool,
    epoch: Instant,
    /// How often the process has been reloaded.
    generation: u64,
    rest: reload::Rest,
    /// True exactly when shards share listening sockets that this process was given.
    shares: bool,
    /// Ends of the queues in which copies of the shards' sockets are.
    kept: Vec<OwnedFd>,
}

/// What the engine has of its relay.
#[derive(Debug)]
struct RelayEnd {
    fleet: FleetHandle,
    stats: Arc<RelayStats>,
}

/// A turn longer ago than this, in milliseconds, is no sign of life: a shard turns at least once a second, and so does the relay.
const RESPONSIVE_MS: u64 = 2_000;

/// How long [`Engine::drain`] tries to reach a shard whose lane is full, in milliseconds: one that has not made room by then hangs.
const DRAIN_TRIES_MS: u64 = 1_000;

/// How long the end of a shard waits for its place among the notices. Who takes them never waits, so it is a matter of microseconds.
const LOST_WAIT: Duration = Duration::from_secs(10);

/// Keeps transparent huge pages out of this process, for as long as it lasts. For a program whose allocator asks for them, as mimalloc does: the first byte
/// in two megabytes then takes all of them, which is more than a thousand idle connections need. It is of use where nothing is allocated yet.
pub fn without_huge_pages() {
    driver::sys::without_huge_pages();
}

/// A listening socket that was bound before this process began, for [`start_on`].
#[derive(Debug)]
pub struct PassedListener(TcpListener);

impl PassedListener {
    /// The one that was passed to this process by its number, as systemd does.
    ///
    /// # Errors
    /// When it is no TCP socket that listens.
    pub fn numbered(fd: RawFd) -> io::Result<PassedListener> {
        driver::sys::inherit(fd).map(PassedListener)
    }
}

/// Sends a text and a copy of a descriptor to whom the socket is connected with, as a service manager's protocol has it.
///
/// # Errors
/// When the kernel refuses.
pub fn send_descriptor(socket: &UnixDatagram, text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    driver::sys::send_with(socket.as_raw_fd(), text.as_bytes(), &[descriptor.as_raw_fd()])
}

/// Starts the shards. When this returns every one of them serves; the public port accepts.
///
/// # Errors
/// When the configuration cannot be served ([`Config::check`]), when the port cannot be bound, when the kernel interface that was asked for is not there, when threads or descriptors run out, or
/// when one of the shards cannot be built. Those that could are stopped then.
pub fn start(config: Config) -> Result<(Engine, Notices), StartError> {
    start_on(config, &[])
}

/// Starts the shards as [`start`] does, on these listening sockets of the public port, if there are any, instead of [`Config::listen`]: at most one for each shard.
/// Where there are fewer, shards share them, and give each other their due of the connections. All are served, because with one that is closed go
/// the connections that wait in it.
///
/// # Errors
/// As [`start`], and when there are more of them than shards.
pub fn start_on(config: Config, passed: &[PassedListener]) -> Result<(Engine, Notices), StartError> {
    launch(config, passed, None)
}

/// Starts the shards as [`start`] does, going on from what the process was before it was reloaded ([`Engine::freeze`]). What the configuration says counts from now on: connections of
/// endpoints that it does not name, by name and dialect, are told goodbye. Sockets are taken over when nothing can fail any more; until then another process can have them.
///
/// # Errors
/// As [`start`], and when what is given cannot be read or does not fit.
pub fn start_from(config: Config, frozen: &Frozen) -> Result<(Engine, Notices), StartError> {
    launch(config, &[], Some(frozen))
}

fn launch(config: Config, passed: &[PassedListener], frozen: Option<&Frozen>) -> Result<(Engine, Notices), StartError> {
    config.check()?;
    if passed.len() > config.shards.len() {
        return Err(StartError::Listeners { passed: passed.len(), shards: config.shards.len() });
    }
    let (io, io_note) = Poller::choose(config.io).map_err(StartError::Io)?;
    let left = frozen.map_or(&[][..], |frozen| &frozen.listeners);
    let shares = frozen.is_some_and(|frozen| frozen.shares) || (!passed.is_empty() && passed.len() < config.shards.len());
    let listeners = match passed {
        [] => {
            reload::listeners(config.listen, config.shards.len(), left, shares).map_err(|error| StartError::Listen(config.listen, error))?
        }
        passed => shared(passed, config.shards.len())?.into_iter().map(|listener| vec![listener]).collect(),
    };
    let local_addr = listeners[0][0].local_addr()?;
    let seed = frozen.map_or_else(rand::random, |frozen| frozen.seed);
    let addresses = Addresses::seeded(&config.limits, connections_max(&config), seed);
    if let Some(frozen) = frozen {
        addresses.thaw(&frozen.addresses);
    }
    let address = config.relay.as_ref().map(relay::address_of).transpose()?;
    let world = Arc::new(World::new(config, addresses, seed));
    let shards = world.config.shards.len();
    world.wanted.set_bits(frozen.map_or(0, |frozen| frozen.wanted));
    let (notices, told) = bounded(limits::NOTICES_MAX);
    let (happenings, events) = bounded(shards * limits::EVENT_BATCHES_PER_SHARD_MAX);
    // The pause has not been: nothing has become due in it.
    let epoch = Instant::now().checked_sub(Duration::from_nanos(frozen.map_or(0, |frozen| frozen.elapsed_ns)));
    let epoch = epoch.ok_or(NotThawed::Unfit("it is of a time before this machine was started"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let congested = Arc::<AtomicUsize>::default();
    let stats: Vec<_> = (0..shards).map(|_| Arc::new(ShardStats::new(world.config.endpoints.len()))).collect();
    let lanes = (0..shards).map(|_| lane()).collect::<io::Result<Vec<_>>>()?;
    let ports: Vec<_> = lanes.iter().map(|(port, _, _)| port.clone()).collect();
    let (ready, started) = bounded(shards);
    let draining = AtomicBool::new(false);
    let (rest, mut resting) = reload::Rest::new(shards, address.is_some());
    let (outlet, relay) = match address.zip(world.config.relay.clone()).zip(resting.relay.take()) {
        Some(((address, settings), resting)) => {
            let (outlet, inlet) = relay::lane::lane();
            let stats = Arc::<RelayStats>::default();
            let endpoints = world.config.endpoints.iter().map(|endpoint| endpoint.name.clone());
            let left = frozen.and_then(|frozen| relay::FrozenRelay::decode(&frozen.relay, &settings));
            let former = left.as_ref().and_then(|left| HostId::parse(&left.host));
            let own = Hello::new(former.unwrap_or_else(|| HostId::new(rand::random())), shards, &settings.version, endpoints);
            let (fleet, port) = relay::handle::channel(own.clone());
            let end = RelayEnd { fleet, stats: stats.clone() };
            // What connections ask of other hosts from the first moment on waits for the connection to Redis.
            world.is_relayed.store(left.as_ref().is_some_and(|left| left.is_up), Ordering::Relaxed);
            let successors = frozen.map_or_else(Vec::new, |frozen| thaw::successors(&frozen.endpoints, &world.config.endpoints));
            let (world, ports, random, may_leave) = (world.clone(), ports.clone(), rand::random(), frozen.is_none());
            let present = Vec::new();
            let setup = relay::Setup {
                world,
                settings,
                address,
                own,
                port,
                stats,
                inlet,
                ports,
                epoch,
                random,
                resting,
                frozen: left,
                successors,
                present,
                may_leave,
            };
            (Some(outlet), Some((end, setup)))
        }
        None => (None, None),
    };
    let (relay, mut relay_setup) = relay.unzip();
    let keepers = (0..shards).filter(|_| world.config.keep_sockets).map(|_| Keeper::new()).collect::<io::Result<Vec<_>>>()?;
    let (keepers, kept): (Vec<_>, Vec<_>) = keepers.into_iter().unzip();
    let mut keepers = keepers.into_iter();
    // Before the first thread: whatever fails from here on drops it, and that stops those that run.
    let mut engine = Engine {
        world: world.clone(),
        local_addr,
        io,
        io_note,
        ports,
        stats,
        events,
        threads: Vec::new(),
        relay,
        stop: stop.clone(),
        draining,
        epoch,
        generation: frozen.map_or(0, |frozen| frozen.generation),
        rest,
        shares,
        kept,
    };
    if let Some(setup) = relay_setup.take_if(|setup| setup.frozen.is_some()) {
        // What is published while it is not there it misses, so it is the first; what it hears waits in the shards' lanes.
        engine.threads.push(start_relay(setup, notices.clone())?);
    }
    let portions = frozen.map(|frozen| reload::portions(frozen, &world)).transpose()?;
    let is_thawed = portions.is_some();
    if let Some(setup) = &mut relay_setup {
        setup.present = portions.iter().flatten().flat_map(|portion| portion.present(&world)).collect();
    }
    let mut portions = portions.into_iter().flatten();
    for (index, ((_, inbox, bell), listeners)) in lanes.into_iter().zip(listeners).enumerate() {
        let setup = driver::Setup {
            id: ShardId(index as u8),
            cpu: world.config.shards[index],
            io,
            listeners,
            spread_over: if shares { shards as u8 } else { 1 },
            inbox,
            bell,
            outlets: Outlets::new(engine.ports.clone(), congested.clone()),
            world: world.clone(),
            stats: engine.stats[index].clone(),
            notices: notices.clone(),
            events: happenings.clone(),
            relay: outlet.clone(),
            ready: ready.clone(),
            stop: stop.clone(),
            rest: engine.rest.flag(),
            orders: resting.orders.remove(0),
            reports: resting.reports.clone(),
            keeper: keepers.next().map(Box::new),
            portion: portions.next(),
            epoch,
            random: rand::random(),
        };
        engine.threads.push(std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || live(setup))?);
    }
    // With the last shard's end of the lane the relay ends too.
    drop((ready, outlet));
    if let Some(setup) = relay_setup {
        engine.threads.push(start_relay(setup, notices.clone())?);
    }
    wait_until_ready(&started, &told, shards)?;
    if is_thawed {
        engine.rest.resume();
        reload::close(left);
    }
    Ok((engine, told))
}

fn start_relay(setup: relay::Setup, notices: crossbeam_channel::Sender<Notice>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("relay".into()).spawn(move || relay::live(setup, &notices))
}

/// Whether the URLs and certificates of these settings can be used, as [`start`] will find them. Nobody is called.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_relay(relay: &config::Relay) -> Result<(), relay::link::AddressFault> {
    relay::address_of(relay).map(drop)
}

/// A shard's thread. Whatever ends it but a stop is told, a panic too: its message is on stderr already.
fn live(setup: driver::Setup) {
    let (shard, notices) = (setup.id, setup.notices.clone());
    // What the panic leaves half done is dropped with the setup, unseen by anybody.
    let outcome = catch_unwind(AssertUnwindSafe(|| driver::run(setup)));
    let Err(reason) = outcome.unwrap_or_else(|_| Err(io::Error::other("it panicked"))) else { return };
    // Where nobody takes notices any more, nobody needs this one.
    let _ = notices.send_timeout(Notice::ShardLost { shard, reason }, LOST_WAIT);
}

/// Waits until every shard has said that it is ready. One that ends first drops its way to say so, and its notice has the reason.
fn wait_until_ready(started: &Receiver<()>, told: &Receiver<Notice>, shards: usize) -> Result<(), StartError> {
    if started.iter().take(shards).count() == shards {
        return Ok(());
    }
    let lost = told.iter().find_map(|notice| match notice {
        Notice::ShardLost { shard, reason } => Some(StartError::Shard { shard, reason }),
        _ => None,
    });
    Err(lost.unwrap_or_else(|| io::Error::other("a shard ended without a reason").into()))
}

impl Engine {
    /// The public port that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Why epoll is used although io_uring would be better; `None` when nothing is to be said.
    pub fn io_note(&self) -> Option<&str> {
        self.io_note.as_deref()
    }

    /// `io_uring` or `epoll`.
    pub fn io_name(&self) -> &'static str {
        if self.io == Io::Epoll { "epoll" } else { "io_uring" }
    }

    /// Counters, one per shard.
    pub fn stats(&self) -> &[Arc<ShardStats>] {
        &self.stats
    }

    /// The endpoints, in the order of their ids.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.world.config.endpoints
    }

    /// The id of the endpoint of this name.
    pub fn endpoint(&self, name: &str) -> Option<EndpointId> {
        self.endpoints().iter().position(|endpoint| endpoint.name == name).map(|index| EndpointId(index as u8))
    }

    /// An event for these connections, checked; to be put as [`Question::Emit`]. `args` are JSON texts joined by commas, at most one where
    /// the endpoint is of plain WebSocket. Nothing is asked for beyond its delivery: what is to differ is changed in what is returned.
    ///
    /// # Errors
    /// When there is no such endpoint, or its clients could not read the event.
    pub fn event(&self, to: Selection, event: &str, args: &str) -> Result<Emit, BadEvent> {
        let endpoint = self.endpoints().get(usize::from(to.endpoint.0)).ok_or(BadEvent::NoEndpoint)?;
        let now = driver::read_clock(self.epoch);
        dialect::check_event(endpoint, now, event, args)?;
        let (event, args) = (event.to_owned(), args.to_owned());
        Ok(Emit {
            to,
            event,
            args,
            volatile: false,
            ack_ms: None,
            offset: rand::random::<u64>().into(),
            unix_ms: now.unix_ms,
            attachments: Vec::new(),
            is_elsewhere: false,
        })
    }

    /// Asks every shard; each answers with one [`Notice::Answer`] that has the number `ask`. An answer may fail to come (a full
    /// lane), so the asker needs a deadline. [`Calls`] gathers them. How many shards have it in their lanes is the result: those do what it
    /// asks, sooner or later, also when the asker has ceased to wait; the others never do. What concerns the whole fleet
    /// ([`Question::scope`]) is asked of the other hosts, too; each is told of with one [`Notice::HostAnswer`].
    pub fn ask(&self, ask: u64, question: &Question) -> Reached {
        // A full lane is a shard that cannot answer in time anyway.
        let shards = self.ports.iter().filter(|port| port.send(shard::parcel::Parcel::Ask { ask, question: question.clone() })).count();
        let fleet = self.fleet().filter(|_| question.scope() == Scope::Fleet);
        let others = fleet.map(|fleet| fleet.ask(ask, Wish::Shards(question.clone()), None));
        Reached { shards, others: others.unwrap_or_default() }
    }

    /// The way to other hosts; `None` where there is no relay.
    pub fn fleet(&self) -> Option<&FleetHandle> {
        self.relay.as_ref().map(|relay| &relay.fleet)
    }

    /// What the relay counts; `None` where this host is alone.
    pub fn relay_stats(&self) -> Option<&RelayStats> {
        self.relay.as_ref().map(|relay| &*relay.stats)
    }

    /// True exactly when the relay has turned lately, or there is none. One that hangs reaches no other host, whatever it counted last.
    pub fn is_relay_responsive(&self) -> bool {
        self.relay.as_ref().is_none_or(|relay| self.is_lately(relay.stats.last_turn_ms.read()))
    }

    /// This host's id among those that share a Redis: 16 hexadecimal characters, another one with every start. `None` where it is alone.
    pub fn host_id(&self) -> Option<&str> {
        self.fleet().map(|fleet| fleet.own().host.as_str())
    }

    /// From now on events of these types are told, and no others; at the start none is. Shards learn it in a moment.
    pub fn want_events(&self, types: EventTypes) {
        self.world.wanted.set(types);
    }

    /// Where the events come out, for one taker: two would share them. What is taken too slowly is dropped and counted
    /// ([`EventBatch::dropped`]); no client waits for it. It ends when the engine has.
    pub fn events(&self) -> Receiver<EventBatch> {
        self.events.clone()
    }

    /// Ends of the queues in which copies of the WebSockets' sockets are, one for each shard; none unless [`config::Config::keep_sockets`] says so. Whoever gets a copy of them and outlives
    /// this process keeps the connections open over its end, for [`say_farewell`].
    pub fn kept(&self) -> &[OwnedFd] {
        &self.kept
    }

    /// Stops accepting and closes everybody, spread over the time given; each shard says [`Notice::Drained`] when it is done, once. Called
    /// again, whoever is left is closed over the new time.
    pub fn drain(&self, over: Duration) {
        self.draining.store(true, Ordering::Release);
        let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        for port in &self.ports {
            for _ in 0..DRAIN_TRIES_MS {
                if port.send(shard::parcel::Parcel::Drain { over_ms }) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Whom a token names, as it would be for a client that shows it at that time, milliseconds since 1970.
    ///
    /// # Errors
    /// When it is none, has expired, or there is nothing to verify it with.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthFault> {
        self.world.config.verifier.as_ref().ok_or(AuthFault::Invalid)?.verify(token, now_unix_ms)
    }

    /// True exactly when new connections are taken.
    pub fn accepting(&self) -> bool {
        !self.draining.load(Ordering::Acquire)
    }

    /// True exactly when the shard has turned lately.
    pub fn is_responsive(&self, shard: usize) -> bool {
        self.stats.get(shard).is_some_and(|stats| self.is_lately(stats.last_turn_ms.read()))
    }

    /// Which of the engine's threads has not turned for longest, and for how long: in an idle engine at most a second.
    pub fn longest_silence(&self) -> (Worker, Duration) {
        let shards = self.stats.iter().enumerate().map(|(index, stats)| (Worker::Shard(ShardId(index as u8)), stats.last_turn_ms.read()));
        let relay = self.relay.iter().map(|relay| (Worker::Relay, relay.stats.last_turn_ms.read()));
        let (worker, turn_ms) = shards.chain(relay).min_by_key(|(_, turn_ms)| *turn_ms).expect("there is a shard");
        (worker, Duration::from_millis(self.ms_since(turn_ms)))
    }

    fn is_lately(&self, turn_ms: u64) -> bool {
        self.ms_since(turn_ms) < RESPONSIVE_MS
    }

    fn ms_since(&self, turn_ms: u64) -> u64 {
        (self.epoch.elapsed().as_millis() as u64).saturating_sub(turn_ms)
    }

    /// Stops the shards where they are and waits for their threads.
    pub fn join(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Release);
        for port in &self.ports {
            port.wake();
        }
        for thread in self.threads.drain(..) {
            // A panic of a shard does not come as far as this.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.halt();
    }
}

fn lane() -> io::Result<(Arc<Port<driver::Moved>>, Inbox<driver::Moved>, File)> {
    let bell = File::from(driver::sys::eventfd(0)?);
    let (port, inbox) = Port::new(bell.try_clone()?);
    Ok((port, inbox, bell))
}

/// One listener per shard on the same port: the kernel spreads connections over them.
fn listeners(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    let mut bound = address;
    let mut listeners = Vec::new();
    for _ in 0..shards {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // Only our own shards may share the port: the first socket is bound without having looked whether another process has it.
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&bound.into())?;
        socket.listen(4_096)?;
        let listener = TcpListener::from(socket);
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A listener for each shard out of at least one and at most as many. Shards that share one are all woken by a connection, and the first takes it.
fn shared(passed: &[PassedListener], shards: usize) -> io::Result<Vec<TcpListener>> {
    passed.iter().cycle().take(shards).map(|passed| passed.0.try_clone()).collect()
}

/// How many connections the process may hold.
fn connections_max(config: &Config) -> usize {
    let descriptors = driver::sys::descriptors_max();
    let reserved = limits::DESCRIPTORS_RESERVED.min(descriptors / 4);
    config.limits.connections.unwrap_or(usize::MAX).min(descriptors - reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_form_shows_what_a_client_sent() {
        let read = b"GET /?token=HUSH HTTP/1.1".to_vec();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let command = shard::Command::HandOver { link: ids::LinkKey { slot: 1, generation: 2 }, peer, read: read.clone() };
        let fd = driver::sys::eventfd(0).expect("eventfd");
        let notice = Notice::Handover(Handover { fd, peer, read });
        for shown in [format!("{command:?}"), format!("{notice:?}")] {
            // As text, and as the numbers a vector of bytes shows.
            assert!(!shown.contains("HUSH") && !shown.contains("72, 85"), "{shown}");
        }
        assert!(format!("{notice:?}").contains("read_bytes: 25"), "{notice:?}");
    }
}
