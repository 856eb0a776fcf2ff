//! The engine: holds a host's WebSocket and Socket.IO connections on one io_uring runtime per core and moves their messages.
//!
//! [`start`] takes a complete [`config::Config`] and returns an [`Engine`] to ask and stop, and the stream of [`Notice`]s: answers to
//! questions, and connections of the public port that speak plain HTTP and belong to whoever serves that.
//! The way through the code is told in `ARCHITECTURE.md`.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

pub mod auth;
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
pub mod shard;
pub mod stats;
pub mod time;
pub mod wire;

use config::{Config, Endpoint, Io};
use driver::Poller;
use event::{EventBatch, EventTypes, Wanted};
use ids::ShardId;
use mesh::{Inbox, Outlets, Port};
use shard::World;
use shard::address::Addresses;
pub use shard::inquiry::{About, Caller, Changes, Inquiry, OpenInquiry, Proposal, Ruling};
pub use shard::parcel::{Answer, ConnectionInfo, Emit, Emitted, Question, Selection, Target};
use stats::ShardStats;

/// Something the engine tells.
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
    /// A question to the back end, where the configuration says that it is asked. Dropped, it is refused.
    Inquiry(OpenInquiry),
    /// A connection of the public port that is plain HTTP.
    Handover(Handover),
    /// A draining shard has closed its last connection.
    Drained {
        /// The shard.
        shard: ShardId,
    },
    /// A shard has ended although nobody stopped it. A host without one of its shards answers some clients and not others: better to
    /// end the process and have it started again.
    ShardLost {
        /// The shard.
        shard: ShardId,
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

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The public port cannot be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The kernel interface that was asked for cannot be had.
    #[error("io_uring was asked for and is not available: {0}")]
    Io(io::Error),
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
    stop: Arc<AtomicBool>,
    draining: AtomicBool,
    epoch: Instant,
}

/// A turn longer ago than this, in milliseconds, is no sign of life: a shard turns at least once a second.
const RESPONSIVE_MS: u64 = 2_000;

/// How long [`Engine::drain`] tries to reach a shard whose lane is full, in milliseconds: one that has not made room by then hangs.
const DRAIN_TRIES_MS: u64 = 1_000;

/// How long the end of a shard waits for its place among the notices. Who takes them never waits, so it is a matter of microseconds.
const LOST_WAIT: Duration = Duration::from_secs(10);

/// Starts the shards. When this returns every one of them serves; the public port accepts.
///
/// # Errors
/// When the port cannot be bound, when the kernel interface that was asked for is not there, when threads or descriptors run out, or
/// when one of the shards cannot be built. Those that could are stopped then.
pub fn start(config: Config) -> Result<(Engine, Receiver<Notice>), StartError> {
    assert!((1..=limits::SHARDS_MAX).contains(&config.shards.len()), "1 to 255 shards");
    assert!((1..=limits::ENDPOINTS_MAX).contains(&config.endpoints.len()), "1 to 255 endpoints");
    let (io, io_note) = Poller::choose(config.io).map_err(StartError::Io)?;
    let listeners = listeners(config.listen, config.shards.len()).map_err(|error| StartError::Listen(config.listen, error))?;
    let local_addr = listeners[0].local_addr()?;
    let addresses = Addresses::new(&config.limits, connections_max(&config));
    let world = Arc::new(World { addresses, seed: rand::random(), wanted: Wanted::default(), config });
    let shards = world.config.shards.len();
    let (notices, told) = bounded(limits::NOTICES_MAX);
    let (happenings, events) = bounded(shards * limits::EVENT_BATCHES_PER_SHARD_MAX);
    let (stop, epoch) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let congested = Arc::<AtomicUsize>::default();
    let stats: Vec<_> = (0..shards).map(|_| Arc::new(ShardStats::new(world.config.endpoints.len()))).collect();
    let lanes = (0..shards).map(|_| lane()).collect::<io::Result<Vec<_>>>()?;
    let ports: Vec<_> = lanes.iter().map(|(port, _, _)| port.clone()).collect();
    let (ready, started) = bounded(shards);
    let draining = AtomicBool::new(false);
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
        stop: stop.clone(),
        draining,
        epoch,
    };
    for (index, ((_, inbox, bell), listener)) in lanes.into_iter().zip(listeners).enumerate() {
        let setup = driver::Setup {
            id: ShardId(index as u8),
            cpu: world.config.shards[index],
            io,
            listener,
            inbox,
            bell,
            outlets: Outlets::new(engine.ports.clone(), congested.clone()),
            world: world.clone(),
            stats: engine.stats[index].clone(),
            notices: notices.clone(),
            events: happenings.clone(),
            ready: ready.clone(),
            stop: stop.clone(),
            epoch,
            random: rand::random(),
        };
        engine.threads.push(std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || live(setup))?);
    }
    drop(ready);
    wait_until_ready(&started, &told, shards)?;
    Ok((engine, told))
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

    /// Asks every shard; each answers with one [`Notice::Answer`] that has the number `ask`. An answer may fail to come (a full
    /// lane), so the asker needs a deadline.
    pub fn ask(&self, ask: u64, question: &Question) {
        for port in &self.ports {
            // A full lane is a shard that cannot answer in time anyway.
            let _ = port.send(shard::parcel::Parcel::Ask { ask, question: question.clone() });
        }
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

    /// Stops accepting and closes everybody, spread over the time given; each shard says [`Notice::Drained`] when it is done.
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

    /// True exactly when new connections are taken.
    pub fn accepting(&self) -> bool {
        !self.draining.load(Ordering::Acquire)
    }

    /// True exactly when the shard has turned lately.
    pub fn is_responsive(&self, shard: usize) -> bool {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        self.stats.get(shard).is_some_and(|stats| now_ms.saturating_sub(stats.last_turn_ms.read()) < RESPONSIVE_MS)
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
