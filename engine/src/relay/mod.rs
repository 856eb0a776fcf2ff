//! The relay: one thread a host, which passes on to other hosts what is said here, and back. This file is its thread: it owns the clock, the
//! connection to Redis and the lanes, and decides nothing; what is decided, [`core`] does without any of them.
//!
//! It wakes when shards have said something, when Redis has, or when something is due, handles everything that is there, and sends what
//! follows from it: requests to Redis in as few writes as there are, parcels to each shard in one batch.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;

use crate::Notice;
use crate::config;
use crate::driver::{Moved, read_clock};
use crate::fault::RelayDrop;
use crate::limits::{RELAY_BATCHES_PER_TURN, RELAY_PUSHES_PER_TURN};
use crate::mesh::{Outlets, Port};
use crate::shard::World;
use crate::stats::RelayStats;
use crate::time::Now;

mod append;
mod channels;
mod core;
pub mod format;
pub(crate) mod guard;
pub(crate) mod lane;
pub mod link;
mod read;
mod reader;
pub mod request;
mod socketio;
mod streams;
mod waiting;

use self::core::{Core, Listening, Tag};
use lane::Inlet;
use link::{Address, Backoff, Certificates, Link, Servers};
use reader::{Happening, Reader};
use request::{Ended, Lost, Push, Reply};

/// Everything the relay's thread starts with.
pub(crate) struct Setup {
    pub(crate) world: Arc<World>,
    pub(crate) settings: config::Relay,
    pub(crate) address: Address,
    pub(crate) host: String,
    pub(crate) stats: Arc<RelayStats>,
    pub(crate) inlet: Inlet,
    pub(crate) ports: Vec<Arc<Port<Moved>>>,
    /// Zero of the monotonic clock, the same as the shards'.
    pub(crate) epoch: Instant,
    pub(crate) random: [u8; 32],
}

/// Milliseconds after which parcels are offered again to a shard whose lane was full.
const RETRY_MS: u64 = 1;

/// What an attempt to connect came to, with what Redis says by itself from then on.
type Attempt = Result<(Link, link::Pushes), link::LinkFault>;

struct Thread {
    core: Core,
    address: Address,
    backoff: Backoff,
    random: StdRng,
    link: Option<(Link, link::Pushes)>,
    attempts: (mpsc::Sender<Attempt>, mpsc::Receiver<Attempt>),
    /// As many as there are requests in flight, which the core bounds.
    replies: (mpsc::UnboundedSender<(Tag, Result<Vec<Reply>, Lost>)>, mpsc::UnboundedReceiver<(Tag, Result<Vec<Reply>, Lost>)>),
    /// There in the reliable mode.
    reader: Option<Reader>,
    inlet: Inlet,
    outlets: Outlets<Moved>,
    stats: Arc<RelayStats>,
    epoch: Instant,
}

/// The relay's thread, until all shards have ended. Whatever ends it before is told, a panic too.
pub(crate) fn live(setup: Setup, notices: &crossbeam_channel::Sender<Notice>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(setup)));
    let Err(reason) = outcome.unwrap_or_else(|_| Err(io::Error::other("it panicked"))) else { return };
    // Where nobody takes notices any more, nobody needs this one.
    let _ = notices.try_send(Notice::RelayLost { reason });
}

fn run(setup: Setup) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Thread::new(setup).live());
    Ok(())
}

/// Where the settings say that Redis is.
pub(crate) fn address_of(settings: &config::Relay) -> Result<Address, link::AddressFault> {
    let config::Redis { urls, master, node, is_cluster, system_der, ca, identity } = settings.redis.clone();
    let servers = match master {
        Some(master) => Servers::Sentinel { sentinels: urls, master, node },
        None if is_cluster => Servers::Cluster(urls),
        None => Servers::Single(urls.into_iter().next().unwrap_or_default()),
    };
    Address::new(&servers, &Certificates { system_der, authority_pem: ca, client_pem: identity })
}

impl Thread {
    fn new(setup: Setup) -> Thread {
        let Setup { world, settings, address, host, stats, inlet, ports, epoch, random } = setup;
        let mut seeds = StdRng::from_seed(random);
        let core = Core::new(world, stats.clone(), &settings, &host, seeds.random());
        let reader = (settings.mode == config::RelayMode::Streams).then(|| Reader::new(address.clone(), seeds.random()));
        // Its own count: shards need not stop reading their clients because one of them takes nothing from other hosts.
        let outlets = Outlets::new(ports, Arc::<AtomicUsize>::default());
        let (attempts, replies) = (mpsc::channel(1), mpsc::unbounded_channel());
        Thread {
            core,
            address,
            backoff: Backoff::default(),
            random: seeds,
            link: None,
            attempts,
            replies,
            reader,
            inlet,
            outlets,
            stats,
            epoch,
        }
    }

    async fn live(mut self) {
        self.connect_after(Duration::ZERO);
        if let Some(reader) = &mut self.reader {
            reader.connect_after(Duration::ZERO);
        }
        loop {
            let are_sent = self.send();
            if are_sent {
                self.read();
            }
            let due_ms = self.core.poll_timeout().saturating_sub(self.now().ms()).max(1);
            let wait = Duration::from_millis(if are_sent { due_ms } else { RETRY_MS });
            tokio::select! {
                batch = self.inlet.recv() => match batch {
                    Some(batch) => self.take_outwards(batch),
                    None => return,
                },
                Some((tag, replies)) = self.replies.1.recv() => self.take_reply(tag, replies),
                Some(attempt) = self.attempts.1.recv() => self.take_attempt(attempt),
                push = next_push(&mut self.link), if are_sent => self.take_pushes(push),
                happening = next_happening(&mut self.reader), if are_sent => self.take_happening(happening),
                () = tokio::time::sleep(wait) => {}
            }
            let now = self.now();
            self.core.handle_timeouts(now);
        }
    }

    /// Asks for what is to be read.
    fn read(&mut self) {
        let now = self.now();
        let Some(reader) = &self.reader else { return };
        if let Some(request) = self.core.poll_read(now) {
            reader.ask(&request);
        }
    }

    fn take_happening(&mut self, happening: Happening) {
        match happening {
            Happening::Connected => self.core.handle_reader_connected(),
            Happening::Lost => self.core.handle_reader_lost(),
            Happening::Replied(replies) => self.core.handle_read(self.now(), replies),
        }
    }

    /// Sends what the core has for Redis and for the shards; false when a shard's lane was full, and its parcels wait.
    fn send(&mut self) -> bool {
        let now = self.now();
        if let Some((link, _)) = &self.link {
            while let Some(listening) = self.core.poll_listening() {
                listen(link, listening);
            }
            while let Some((tag, request)) = self.core.poll_request(now) {
                let (answer, replies) = (link.send(&request), self.replies.0.clone());
                tokio::spawn(async move {
                    // Whoever would take it has ended with the thread.
                    let _ = replies.send((tag, answer.await));
                });
            }
        }
        while let Some((to, parcel)) = self.core.poll_parcel() {
            self.outlets.add(to, parcel);
        }
        self.core.count();
        self.outlets.flush(|_, _| {})
    }

    fn take_outwards(&mut self, batch: lane::Batch) {
        let now = self.now();
        let mut next = Some(batch);
        for _ in 0..RELAY_BATCHES_PER_TURN {
            let Some(batch) = next else { return };
            for outward in batch.outwards {
                self.core.handle_outward(now, batch.shard, outward);
            }
            next = self.inlet.try_recv();
        }
        if let Some(batch) = next {
            for outward in batch.outwards {
                self.core.handle_outward(now, batch.shard, outward);
            }
        }
    }

    fn take_reply(&mut self, tag: Tag, replies: Result<Vec<Reply>, Lost>) {
        let now = self.now();
        self.core.handle_reply(now, tag, replies);
        while let Ok((tag, replies)) = self.replies.1.try_recv() {
            self.core.handle_reply(now, tag, replies);
        }
    }

    fn take_pushes(&mut self, first: Option<Push>) {
        let now = self.now();
        let mut next = first;
        for _ in 0..RELAY_PUSHES_PER_TURN {
            match next {
                None | Some(Push::Gone(_)) => return self.lose(next),
                Some(Push::Silent) => self.core.set_up(false),
                Some(Push::Answering) => self.core.set_up(true),
                Some(push) => self.core.handle_push(now, push),
            }
            next = self.link.as_mut().and_then(|(_, pushes)| pushes.try_next());
            if next.is_none() {
                return;
            }
        }
        if let Some(push) = next {
            self.core.handle_push(now, push);
        }
    }

    fn take_attempt(&mut self, attempt: Attempt) {
        match attempt {
            Ok(link) => {
                self.link = Some(link);
                self.backoff.reset();
                let now = self.now();
                self.core.handle_connected(now);
            }
            Err(_) => {
                self.connect_soon();
            }
        }
    }

    /// The connection is over; the next is tried soon.
    fn lose(&mut self, why: Option<Push>) {
        if let Some(Push::Gone(Ended::Flooded)) = why {
            self.stats.dropped[RelayDrop::Flood.index()].add(1);
        }
        self.link = None;
        self.core.handle_lost();
        self.connect_soon();
    }

    fn connect_soon(&mut self) {
        let wait_ms = self.backoff.next_ms(self.random.next_u64());
        self.connect_after(Duration::from_millis(wait_ms));
    }

    fn connect_after(&mut self, wait: Duration) {
        let (address, attempts) = (self.address.clone(), self.attempts.0.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            // Whoever would take it has ended with the thread.
            let _ = attempts.send(Link::connect(&address).await).await;
        });
    }

    fn now(&self) -> Now {
        read_clock(self.epoch)
    }
}

/// The next thing that Redis says by itself; never, while there is no connection.
async fn next_push(link: &mut Option<(Link, link::Pushes)>) -> Option<Push> {
    match link {
        Some((_, pushes)) => pushes.next().await,
        None => std::future::pending().await,
    }
}

/// What happens to the connection for reading; nothing, where there is none.
async fn next_happening(reader: &mut Option<Reader>) -> Happening {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

/// Changes what is listened to. What Redis refuses is told with the pushes, by what does not come.
fn listen(link: &Link, listening: Listening) {
    let Listening { kind, names, is_on } = listening;
    let names: Vec<Vec<u8>> = names.into_iter().map(String::into_bytes).collect();
    if is_on {
        let confirmed = link.subscribe(kind, &names);
        tokio::spawn(async move { drop(confirmed.await) });
    } else {
        let confirmed = link.unsubscribe(kind, &names);
        tokio::spawn(async move { drop(confirmed.await) });
    }
}
