//! The relay's thread: it owns the clock, the connection to Redis and the lanes, and decides nothing; what is decided, [`super::core`] does
//! without any of them.
//!
//! It wakes when shards have said something, when Redis has, or when something is due, handles everything that is there, and sends what
//! follows from it: requests to Redis in as few writes as there are, parcels to each shard in one batch.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;

use super::core::{Core, Listening, Tag};
use super::frozen::FrozenRelay;
use super::handle::{FleetPort, ToRelay};
use super::lane::{self, Inlet};
use super::link::{self, Address, Backoff, Certificates, Link, Servers};
use super::reader::{Happening, Reader};
use super::request::{Ended, Lost, Push, Reply, Unheard};
use super::status::{Status, complaint};
use super::words::Hello;
use crate::Notice;
use crate::config;
use crate::driver::{Moved, read_clock};
use crate::fault::RelayDrop;
use crate::ids::{EndpointId, Room, UserId};
use crate::limits::{GOODBYE_MS, RELAY_OUTWARDS_PER_TURN, RELAY_PUSHES_PER_TURN, RELAY_RETURN_MS};
use crate::mesh::{Outlets, Port};
use crate::shard::World;
use crate::stats::RelayStats;
use crate::time::Now;

mod resting;

pub(crate) use resting::{Report, Resting};

/// Everything the relay's thread starts with.
pub(crate) struct Setup {
    pub(crate) world: Arc<World>,
    pub(crate) settings: config::Relay,
    pub(crate) address: Address,
    pub(crate) own: Hello,
    pub(crate) port: FleetPort,
    pub(crate) stats: Arc<RelayStats>,
    pub(crate) inlet: Inlet,
    pub(crate) ports: Vec<Arc<Port<Moved>>>,
    /// Zero of the monotonic clock, the same as the shards'.
    pub(crate) epoch: Instant,
    pub(crate) random: [u8; 32],
    pub(crate) resting: Resting,
    /// What the relay of a former process has left.
    pub(crate) frozen: Option<FrozenRelay>,
    /// By former index: the endpoint now.
    pub(crate) successors: Vec<Option<EndpointId>>,
    /// Who is where already, where no relay knew.
    pub(crate) present: Vec<(Room, UserId)>,
    /// True exactly when an end of the shards is one, and not that of a start which has failed.
    pub(crate) may_leave: bool,
}

/// Milliseconds after which parcels are offered again to a shard whose lane was full.
const RETRY_MS: u64 = 1;

/// Refusals of subscriptions that wait to be looked at; what comes beyond says the same.
const REFUSALS_MAX: usize = 16;

/// What an attempt to connect came to, with what Redis says by itself from then on.
type Attempt = Result<(Link, link::Pushes), link::LinkFault>;

/// What a request was for, and what came of it.
type Answered = (Tag, Result<Vec<Reply>, Lost>);

struct Thread {
    core: Core,
    address: Address,
    backoff: Backoff,
    random: StdRng,
    link: Option<(Link, link::Pushes)>,
    attempts: (mpsc::Sender<Attempt>, mpsc::Receiver<Attempt>),
    /// As many as there are requests in flight, which the core bounds.
    replies: (mpsc::UnboundedSender<Answered>, mpsc::UnboundedReceiver<Answered>),
    /// What Redis said to wishes to listen that it refused.
    refusals: (mpsc::Sender<String>, mpsc::Receiver<String>),
    /// There in the reliable mode.
    reader: Option<Reader>,
    status: Status,
    notices: crossbeam_channel::Sender<Notice>,
    inlet: Inlet,
    outlets: Outlets<Moved>,
    stats: Arc<RelayStats>,
    epoch: Instant,
    settings: config::Relay,
    resting: Resting,
    /// Requests that Redis has not answered.
    asked: usize,
    /// True exactly when something has come from shards or gone to them since that was asked last.
    has_moved_parcels: bool,
    /// What Redis has said since a reload has begun.
    heard: VecDeque<Push>,
    /// Until when what shards say waits for a connection, monotonic milliseconds.
    waits_until_ms: Option<u64>,
    /// See [`Setup::may_leave`].
    may_leave: bool,
}

/// The relay's thread, until all shards have ended. Whatever ends it before is told, a panic too.
pub(crate) fn live(setup: Setup, notices: &crossbeam_channel::Sender<Notice>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(setup, notices.clone())));
    let Err(reason) = outcome.unwrap_or_else(|_| Err(io::Error::other("it panicked"))) else { return };
    // Where nobody takes notices any more, nobody needs this one.
    let _ = notices.try_send(Notice::RelayLost { reason });
}

fn run(setup: Setup, notices: crossbeam_channel::Sender<Notice>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Thread::new(setup, notices).live());
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
    fn new(setup: Setup, notices: crossbeam_channel::Sender<Notice>) -> Thread {
        let Setup { world, settings, address, own, port, stats, inlet, ports, epoch, random, resting, frozen, successors, present, .. } =
            setup;
        let may_leave = setup.may_leave;
        let mut seeds = StdRng::from_seed(random);
        let mut core = Core::new(world, stats.clone(), &settings, &own, port, seeds.random());
        core.remember(present);
        let now = read_clock(epoch);
        let waits_until_ms = frozen.as_ref().filter(|frozen| frozen.is_up).map(|_| now.ms() + RELAY_RETURN_MS);
        if let Some(frozen) = frozen {
            core.thaw(now, frozen, &|former| successors.get(usize::from(former)).copied().flatten());
        }
        let reader = (settings.mode == config::RelayMode::Streams).then(|| Reader::new(address.clone(), seeds.random()));
        // Its own count: shards need not stop reading their clients because one of them takes nothing from other hosts.
        let outlets = Outlets::new(ports, Arc::<AtomicUsize>::default());
        Thread {
            core,
            address,
            backoff: Backoff::default(),
            random: seeds,
            link: None,
            attempts: mpsc::channel(1),
            replies: mpsc::unbounded_channel(),
            refusals: mpsc::channel(REFUSALS_MAX),
            reader,
            status: Status::default(),
            notices,
            inlet,
            outlets,
            stats,
            epoch,
            settings,
            resting,
            asked: 0,
            has_moved_parcels: false,
            heard: VecDeque::new(),
            waits_until_ms,
            may_leave,
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
                batch = self.inlet.recv(), if self.waits_until_ms.is_none() => match batch {
                    Some(batch) => self.take_outwards(batch),
                    None if self.may_leave => return self.take_leave().await,
                    None => return,
                },
                Some(order) = self.resting.orders.recv() => self.rest(order).await,
                Some((tag, replies)) = self.replies.1.recv() => self.take_reply(tag, replies),
                Some(order) = next_order(&mut self.core) => self.take_orders(order),
                Some(attempt) = self.attempts.1.recv() => self.take_attempt(attempt),
                push = next_push(&mut self.link), if are_sent && self.takes_in_pushes() => self.take_pushes(push),
                happening = next_happening(&mut self.reader), if are_sent && !self.core.is_resting => self.take_happening(happening),
                () = tokio::time::sleep(wait) => {}
            }
            let now = self.now();
            if self.waits_until_ms.is_some_and(|until_ms| until_ms <= now.ms()) {
                self.wait_no_longer();
            }
            self.core.handle_timeouts(now);
            self.tell(now);
            // While there is always something here, nothing else of this thread would be done: what goes to Redis and comes from it is.
            tokio::task::yield_now().await;
        }
    }

    /// While it rests, only what somebody waits for.
    fn takes_in_pushes(&self) -> bool {
        !self.core.is_resting || self.core.awaits_pushes()
    }

    /// After a reload Redis is not there, or is: what shards say is looked at.
    fn wait_no_longer(&mut self) {
        self.waits_until_ms = None;
        self.core.tell_whether_up();
    }

    /// Tells how the connection does, if that has changed. Where there is no place for it, it is told in a later turn.
    fn tell(&mut self, now: Now) {
        while let Ok(text) = self.refusals.1.try_recv() {
            self.status.refused(now.ms(), &text);
        }
        while let Some(state) = self.status.poll(now.ms()) {
            if self.notices.try_send(Notice::Relay(state.clone())).is_err() {
                return;
            }
            self.status.told(now.ms(), state);
        }
    }

    /// All shards have ended: the others are told that nobody is here any more, if Redis takes that within a second.
    async fn take_leave(mut self) {
        let now = self.now();
        self.core.take_leave(now);
        let end = tokio::time::Instant::now() + Duration::from_millis(GOODBYE_MS);
        loop {
            self.send();
            if self.core.has_left() {
                return;
            }
            tokio::select! {
                Some((tag, replies)) = self.replies.1.recv() => self.take_reply(tag, replies),
                push = next_push(&mut self.link) => self.take_pushes(push),
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    /// Asks for what is to be read.
    fn read(&mut self) {
        let now = self.now();
        let Some(reader) = self.reader.as_ref().filter(|_| !self.core.is_resting) else { return };
        if let Some(request) = self.core.poll_read(now) {
            reader.ask(&request);
        }
    }

    fn take_happening(&mut self, happening: Happening) {
        let now = self.now();
        match happening {
            Happening::Connected => self.core.handle_reader_connected(),
            Happening::Lost => self.core.handle_reader_lost(),
            Happening::Replaced => self.core.handle_reader_replaced(),
            Happening::Replied(replies) => {
                for text in replies.iter().flatten().filter_map(complaint) {
                    self.status.refused(now.ms(), text);
                }
                self.core.handle_read(now, replies);
            }
        }
    }

    /// Sends what the core has for Redis and for the shards; false when a shard's lane was full, and its parcels wait.
    fn send(&mut self) -> bool {
        let now = self.now();
        if let Some((link, _)) = &self.link {
            while let Some(listening) = self.core.poll_listening() {
                listen(link, listening, self.refusals.0.clone(), &self.replies.0);
            }
            while let Some((tag, request)) = self.core.poll_request(now) {
                let (answer, replies) = (link.send(&request), self.replies.0.clone());
                self.asked += 1;
                tokio::spawn(async move {
                    // Whoever would take it has ended with the thread.
                    let _ = replies.send((tag, answer.await));
                });
            }
        }
        while let Some((to, parcel)) = self.core.poll_parcel() {
            self.outlets.add(to, parcel);
            self.has_moved_parcels = true;
        }
        while let Some(notice) = self.core.poll_notice() {
            // Nobody listens, or too slowly: the asker has a deadline of its own.
            let _ = self.notices.try_send(notice);
        }
        self.core.count();
        self.outlets.flush(|_, _| {})
    }

    fn take_orders(&mut self, order: ToRelay) {
        let now = self.now();
        self.core.handle_order(now, order);
        while let Ok(order) = self.core.port().orders.try_recv() {
            self.core.handle_order(now, order);
        }
    }

    fn take_outwards(&mut self, batch: lane::Batch) {
        let now = self.now();
        self.has_moved_parcels = true;
        let (mut next, mut handled) = (Some(batch), 0);
        while let Some(batch) = next {
            handled += batch.outwards.len();
            for outward in batch.outwards {
                self.core.handle_outward(now, batch.shard, outward);
            }
            next = if handled < RELAY_OUTWARDS_PER_TURN { self.inlet.try_recv() } else { None };
        }
    }

    fn take_reply(&mut self, tag: Tag, replies: Result<Vec<Reply>, Lost>) {
        let now = self.now();
        let mut next = Some((tag, replies));
        while let Some((tag, replies)) = next {
            for text in replies.iter().flatten().filter_map(complaint) {
                self.status.refused(now.ms(), text);
            }
            // What Redis refuses to let be listened to was no request.
            self.asked = self.asked.saturating_sub(usize::from(!matches!(tag, Tag::Unheard(_))));
            self.core.handle_reply(now, tag, replies);
            next = self.replies.1.try_recv().ok();
        }
    }

    fn take_pushes(&mut self, first: Option<Push>) {
        let now = self.now();
        let mut next = first;
        for _ in 0..RELAY_PUSHES_PER_TURN {
            if !self.take_push(now, next) {
                return;
            }
            next = self.link.as_mut().and_then(|(_, pushes)| pushes.try_next());
            if next.is_none() {
                return;
            }
        }
        self.take_push(now, next);
    }

    /// False when it was the last.
    fn take_push(&mut self, now: Now, push: Option<Push>) -> bool {
        match push {
            None => self.lose(Ended::Closed),
            Some(Push::Gone(ended)) => self.lose(ended),
            Some(Push::Silent) => {
                self.core.set_up(now, false);
                self.status.down(Ended::Silent);
            }
            Some(Push::Answering) => {
                self.core.set_up(now, true);
                self.status.up();
            }
            Some(Push::Replaced) => self.core.handle_replaced(now),
            Some(push) => self.core.handle_push(now, push),
        }
        self.link.is_some()
    }

    fn take_attempt(&mut self, attempt: Attempt) {
        match attempt {
            Ok(link) => {
                self.link = Some(link);
                self.backoff.reset();
                let now = self.now();
                self.core.handle_connected(now);
                self.status.up();
            }
            Err(fault) => {
                self.status.down(fault);
                self.connect_soon();
            }
        }
        self.wait_no_longer();
    }

    /// The connection is over; the next is tried soon.
    fn lose(&mut self, why: Ended) {
        if why == Ended::Flooded {
            self.stats.dropped[RelayDrop::Flood.index()].add(1);
        }
        self.status.down(why);
        self.link = None;
        let now = self.now();
        self.core.handle_lost(now);
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

/// The next order of the program; `None` when it has gone.
async fn next_order(core: &mut Core) -> Option<ToRelay> {
    core.port().orders.recv().await
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

/// Changes what is listened to. What Redis refuses nobody has to wait for; what it says to that goes to `refusals`.
fn listen(link: &Link, listening: Listening, refusals: mpsc::Sender<String>, replies: &mpsc::UnboundedSender<Answered>) {
    let Listening { kind, names, is_on } = listening;
    let bytes: Vec<Vec<u8>> = names.iter().map(|name| name.clone().into_bytes()).collect();
    if is_on {
        let (confirmed, replies) = (link.subscribe(kind, &bytes), replies.clone());
        tokio::spawn(async move {
            if let Err(Unheard::Refused(text)) = confirmed.await {
                // Where there is no place for it, others wait that say the same.
                let _ = refusals.try_send(text);
                // Whoever would take it has ended with the thread.
                let _ = replies.send((Tag::Unheard(names), Ok(Vec::new())));
            }
        });
    } else {
        let confirmed = link.unsubscribe(kind, &bytes);
        tokio::spawn(async move { drop(confirmed.await) });
    }
}
