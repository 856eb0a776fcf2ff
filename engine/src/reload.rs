//! Reload in place: all shards of a running engine come to rest together and are written down, for the process that this one becomes by `execve`. Who replaces the process is not
//! known here; when that fails, the shards go on where they were.
//!
//! Rest is found in rounds. In each every shard handles what others have sent it, reads nothing from clients, and says whether anything is under way; when nobody has
//! anything, and no parcel has come or gone, nothing can come any more. What is waited for from outside (the back end, other hosts, acknowledgements) is waited for a while, and then
//! gone on without, as if it had not come in time.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_bytes::ByteBuf;

use crate::Engine;
use crate::driver::{Order, Report, sys};
use crate::ids::ShardId;
use crate::limits::{REST_CONFIRM_MS, REST_ROUND_MS, REST_SURPLUS_MS};
use crate::relay;
use crate::shard::World;
use crate::shard::frozen::{Frozen, FrozenEndpoint, FrozenShard, NotThawed};
use crate::shard::thaw::{self, Portion};

/// Why an engine cannot be written down now. It goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotFrozen {
    /// It is closing its connections.
    #[error("the server is stopping")]
    Draining,
    /// A shard has not said anything for too long.
    #[error("shard {} does not answer", .0.0)]
    Silent(ShardId),
    /// The relay has not.
    #[error("the relay does not answer")]
    SilentRelay,
    /// Something goes on being under way.
    #[error("the shards did not come to rest in time")]
    Restless,
}

/// The threads' word that they rest, and how they are told what to do.
#[derive(Debug)]
pub(crate) struct Rest {
    flag: Arc<AtomicBool>,
    orders: Vec<Sender<Order>>,
    reports: Receiver<(ShardId, Report)>,
    /// There where there is a relay.
    relay: Option<RelayRest>,
}

/// The shards' ends of it, and the relay's.
pub(crate) struct Resting {
    pub(crate) orders: Vec<Receiver<Order>>,
    pub(crate) reports: Sender<(ShardId, Report)>,
    pub(crate) relay: Option<relay::Resting>,
}

/// The same of the relay, which waits for several things at once.
#[derive(Debug)]
struct RelayRest {
    orders: tokio::sync::mpsc::Sender<Order>,
    reports: Receiver<relay::Report>,
}

/// Orders that may wait for the relay: one, and that it is to go on, whatever became of that.
const RELAY_ORDERS_MAX: usize = 2;

impl RelayRest {
    fn new() -> (RelayRest, relay::Resting) {
        let (orders, ordered) = tokio::sync::mpsc::channel(RELAY_ORDERS_MAX);
        let (reports, reported) = bounded(RELAY_ORDERS_MAX);
        (RelayRest { orders, reports: reported }, relay::Resting { orders: ordered, reports })
    }

    fn ask(&self, order: Order) -> Result<relay::Report, NotFrozen> {
        // What a failed attempt has left.
        self.reports.try_iter().for_each(drop);
        self.orders.try_send(order).map_err(|_| NotFrozen::SilentRelay)?;
        self.reports.recv_timeout(Duration::from_millis(REST_ROUND_MS)).map_err(|_| NotFrozen::SilentRelay)
    }
}

impl Rest {
    pub(crate) fn new(shards: usize, has_relay: bool) -> (Rest, Resting) {
        let (orders, receivers) = (0..shards).map(|_| bounded(1)).unzip();
        // Each says one thing to each order, and what a failed attempt has left is taken out before the next.
        let (sender, reports) = bounded(2 * shards);
        let (relay, relay_resting) = has_relay.then(RelayRest::new).unzip();
        let rest = Rest { flag: Arc::default(), orders, reports, relay };
        (rest, Resting { orders: receivers, reports: sender, relay: relay_resting })
    }

    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// Lets everybody go on.
    pub(crate) fn resume(&self) {
        self.flag.store(false, Ordering::Release);
        for orders in &self.orders {
            // A shard that hangs finds the order when it looks.
            let _ = orders.send_timeout(Order::Resume, Duration::from_millis(REST_ROUND_MS));
        }
        if let Some(relay) = &self.relay {
            // One that has not taken the last order yet takes this one next.
            let _ = relay.orders.try_send(Order::Resume);
        }
    }

    /// True exactly when the relay has nothing under way any more, or there is none. It is to be asked when the shards rest: what it hands to them wakes them.
    fn relay_rests(&self, is_last: bool) -> Result<bool, NotFrozen> {
        let Some(relay) = &self.relay else { return Ok(true) };
        Ok(matches!(relay.ask(Order::Round { is_last })?, relay::Report::Rests(true)))
    }

    /// What the resting relay has; nothing where there is none.
    fn frozen_relay(&self) -> Result<Vec<u8>, NotFrozen> {
        match self.relay.as_ref().map(|relay| relay.ask(Order::Freeze)).transpose()? {
            Some(relay::Report::Frozen(bytes)) => Ok(bytes),
            Some(relay::Report::Rests(_)) => Err(NotFrozen::Restless),
            None => Ok(Vec::new()),
        }
    }

    /// Gives everybody an order, and gathers what they say to it, in the order of the shards.
    fn ask(&self, order: Order) -> Result<Vec<Report>, NotFrozen> {
        let until = Instant::now() + Duration::from_millis(REST_ROUND_MS);
        for (index, orders) in self.orders.iter().enumerate() {
            orders.send_deadline(order, until).map_err(|_| NotFrozen::Silent(ShardId(index as u8)))?;
        }
        let mut said: Vec<Option<Report>> = self.orders.iter().map(|_| None).collect();
        while let Some(silent) = said.iter().position(Option::is_none) {
            let (shard, report) = self.reports.recv_deadline(until).map_err(|_| NotFrozen::Silent(ShardId(silent as u8)))?;
            said[usize::from(shard.0)] = Some(report);
        }
        Ok(said.into_iter().flatten().collect())
    }
}

impl Engine {
    /// How often the process has been reloaded.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Brings everything to rest and writes it down. For `patience` what is under way outside is waited for, and as long as `is_busy` says that somebody still
    /// waits for answers. On success nothing goes on until [`Self::resume`], and until then the connections' sockets stay open when the process is replaced; on failure it
    /// goes on at once.
    ///
    /// # Errors
    /// When there is no rest to be found.
    pub fn freeze(&self, patience: Duration, is_busy: impl Fn() -> bool) -> Result<Frozen, NotFrozen> {
        if !self.accepting() {
            return Err(NotFrozen::Draining);
        }
        let frozen = self.rest_and_freeze(patience, is_busy);
        if frozen.is_err() {
            self.resume();
        }
        frozen
    }

    fn rest_and_freeze(&self, patience: Duration, is_busy: impl Fn() -> bool) -> Result<Frozen, NotFrozen> {
        self.rest.reports.try_iter().for_each(drop);
        self.rest.flag.store(true, Ordering::Release);
        for port in &self.ports {
            let _ = port.wake();
        }
        let begun = Instant::now();
        let (last, confirmed) = (begun + patience, begun + patience.min(Duration::from_millis(REST_CONFIRM_MS)));
        let end = last + Duration::from_millis(REST_SURPLUS_MS);
        loop {
            let now = Instant::now();
            let said = self.rest.ask(Order::Round { is_last: now >= last })?;
            let rests = said.iter().all(|report| matches!(report, Report::Rests(true)));
            if rests && (now >= last || !is_busy()) && self.rest.relay_rests(now >= confirmed)? {
                break;
            }
            if now >= end {
                return Err(NotFrozen::Restless);
            }
            if rests {
                // Somebody outside is waited for.
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        let elapsed_ns = self.epoch.elapsed().as_nanos() as u64;
        let said = self.rest.ask(Order::Freeze)?;
        let (mut shards, mut listeners) = (Vec::new(), Vec::new());
        for report in said {
            if let Report::Frozen(part) = report {
                shards.push(ByteBuf::from(part.bytes));
                listeners.extend(part.listeners);
            }
        }
        let named = |endpoint: &crate::config::Endpoint| FrozenEndpoint {
            name: endpoint.name.clone(),
            dialect: endpoint.dialect.name().to_owned(),
            bind: endpoint.bind.clone(),
        };
        Ok(Frozen {
            generation: self.generation + 1,
            elapsed_ns,
            seed: self.world.seed,
            shares: self.shares,
            addresses: self.world.addresses.freeze(),
            wanted: self.world.wanted.bits(),
            listeners,
            endpoints: self.endpoints().iter().map(named).collect(),
            shards,
            // Last: what other hosts say is heard until then.
            relay: self.rest.frozen_relay()?.into(),
            ..Frozen::default()
        })
    }

    /// Lets the shards go on after [`Self::freeze`], as if nothing had been.
    pub fn resume(&self) {
        self.rest.resume();
    }
}

/// Gives every shard its portion of what the former process had.
///
/// # Errors
/// When something of it cannot be read.
pub(crate) fn portions(frozen: &Frozen, world: &World) -> Result<Vec<Portion>, NotThawed> {
    if frozen.shards.is_empty() {
        return Err(NotThawed::Unfit("it has no shard"));
    }
    // What each shard had is read and divided by a thread of its own: the pause is as long as this takes.
    let divided = std::thread::scope(|scope| {
        let divide = |part| FrozenShard::decode(part).map(|part| thaw::pieces(frozen, part, world));
        let threads: Vec<_> = frozen.shards.iter().map(|part| scope.spawn(move || divide(part))).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let ended = |_| NotThawed::Unfit("a shard's part ended its reader");
    let divided = divided.into_iter().map(|pieces| pieces.map_err(ended)?).collect::<Result<Vec<_>, _>>()?;
    Ok(thaw::portions(divided))
}

/// Says whether these descriptors stay open when the process is replaced.
pub fn keep_open(descriptors: &[RawFd], stay: bool) {
    descriptors.iter().for_each(|fd| sys::set_close_on_exec(*fd, !stay));
}

/// The listening sockets by shard; `shares`: several may have the same. Those that are inherited are all listened to, also when there are fewer shards than before: in one that was closed, connections might
/// be waiting.
pub(crate) fn listeners(address: SocketAddr, shards: usize, inherited: &[RawFd], shares: bool) -> io::Result<Vec<Vec<TcpListener>>> {
    let copies = inherited.iter().map(|fd| sys::listener(*fd)).collect::<io::Result<Vec<_>>>()?;
    // Another address is another port to listen on; what waits at the old one is told that nobody is there.
    let is_here = |bound: SocketAddr| bound == address || (address.port() == 0 && bound.ip() == address.ip());
    let copies = if copies.iter().all(|copy| copy.local_addr().is_ok_and(is_here)) { copies } else { Vec::new() };
    let bound = copies.first().map_or(Ok(address), TcpListener::local_addr)?;
    let mut by_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    let missing = shards.saturating_sub(copies.len());
    // What this process was given it cannot bind once more.
    let more = if shares && !copies.is_empty() {
        copies.iter().cycle().take(missing).map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?
    } else {
        crate::listeners(bound, missing)?
    };
    for (index, listener) in copies.into_iter().chain(more).enumerate() {
        by_shard[index % shards].push(listener);
    }
    Ok(by_shard)
}

/// Closes descriptors of the former process of which this one has copies.
pub(crate) fn close(inherited: &[RawFd]) {
    inherited.iter().for_each(|fd| drop(sys::adopt(*fd)));
}
