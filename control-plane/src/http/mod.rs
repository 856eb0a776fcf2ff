//! The control plane's HTTP server: the admin part on its own listener, and the public part, which answers what the engine's public port
//! receives and does not speak itself. Both are axum routers over one [`App`]; neither knows how the other is reached.

pub mod admin;
pub mod bundle;
pub mod community;
pub mod connection;
pub mod emit;
pub mod endpoints;
pub mod fleet;
pub mod health;
pub mod lingering;
pub mod listener;
pub mod maintenance;
pub mod members;
pub mod messages;
pub mod openapi;
pub mod pause;
pub mod prefixed;
pub mod problem;
pub mod public;
pub mod rates;
pub mod reloading;
pub mod rooms;
mod shapes;
pub mod steps;
pub mod throttle;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use engine::config::DialectKind;
use engine::event::EventTypes;
use engine::fault::DropReason;
use engine::relay::words::HostId;
use engine::stats::EndpointStats;
use engine::{Question, Wish};

use crate::bridge::{Gathered, Host, Pending};
use crate::events::webhook::Webhook;
use crate::events::{Bounds, Events, Past};
use crate::hooks::Hooks;
use crate::jwks::Watch;
use crate::lifecycle::Wanted;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::reload::Reloads;
use crate::secret::Secret;
use crate::token::Claims;
use bundle::Bundle;
use emit::Recent;
use pause::Pause;
use rates::{Figures, Minute, Rates, Sample};
use throttle::{Allowance, Throttle};

/// The room of the demo page.
const DEMO_ROOM: &str = "lobby";

/// Why a message that a client sent is refused.
const CLIENTS_FAULT: [DropReason; 3] = [DropReason::Invalid, DropReason::Forbidden, DropReason::Rate];

/// A day's work; the secret is gone with the process anyway.
const DEV_TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// What both parts share.
pub struct App {
    /// The engine.
    pub host: Arc<dyn Host>,
    /// Questions under way.
    pub pending: Arc<Pending>,
    /// What happens on this host.
    pub events: Arc<Events>,
    /// `/metrics`.
    pub metrics: Metrics,
    /// What was configured.
    pub terms: Terms,
    /// Whether everything that speaks HTTP pauses.
    pub pause: Arc<Pause>,
    /// How reloads went.
    pub reloads: Arc<Reloads>,
    rates: Mutex<Rates>,
    /// Emits that have an id.
    recent: Mutex<Recent>,
    throttle: Mutex<Throttle>,
    started: Instant,
    /// The host's id where there is no relay that has given it one.
    id: HostId,
}

/// What the settings mean for HTTP.
pub struct Terms {
    /// Who may use `/v1`.
    pub admission: Admission,
    /// Origins that browsers may call the public part from.
    pub origins: Origins,
    /// The Socket.IO client's files.
    pub bundle: Option<Bundle>,
    /// How the key set does, where there is one.
    pub jwks: Option<Arc<Watch>>,
    /// How much of what happens is kept.
    pub journal: Bounds,
    /// Where it is sent.
    pub webhook: Option<Webhook>,
    /// What only `--dev` serves.
    pub dev: Option<Dev>,
    /// Asks the back end, where that is configured.
    pub hooks: Option<Arc<Hooks>>,
    /// Time over which a drain closes connections if nobody says otherwise.
    pub drain: Duration,
    /// How fast one user may call the public part.
    pub allowance: Allowance,
    /// Where a drain is asked for, with its time; it has room for one.
    pub stop: Sender<Wanted>,
}

/// Who may use `/v1`.
pub enum Admission {
    /// Who shows this token.
    Token(Secret),
    /// Anybody who reaches the listener: a Unix socket, or `--dev`.
    Anybody,
    /// Nobody: a TCP listener without a configured token.
    Nobody,
}

/// Origins that may read our answers across sites.
pub enum Origins {
    /// All, without credentials (`*`).
    Any,
    /// These, as browsers send them.
    Listed(Vec<String>),
}

/// What only `--dev` serves.
pub struct Dev {
    /// Signs the demo page's tokens; `None` where tokens are verified with a public key, so that nobody here can make one.
    pub secret: Option<Secret>,
}

impl Dev {
    /// A token for a user of this id and name, who may enter the demo page's room.
    pub fn token(&self, user: &str) -> Option<String> {
        let claims = Claims { rooms: Some(vec![DEMO_ROOM.into()]), ..Claims::of_user(user, user) };
        claims.sign(self.secret.as_ref()?, DEV_TOKEN_LIFETIME).ok()
    }
}

impl App {
    /// An app that has measured nothing yet.
    pub fn new(host: Arc<dyn Host>, pending: Arc<Pending>, terms: Terms) -> App {
        App::after(host, pending, terms, None)
    }

    /// The same, where events go on from what a former process had.
    pub fn after(host: Arc<dyn Host>, pending: Arc<Pending>, terms: Terms, past: Option<Past>) -> App {
        let recorded = terms.webhook.as_ref().map_or(EventTypes::NONE, |webhook| webhook.types);
        let events = Arc::new(match past {
            Some(past) => Events::after(host.clone(), terms.journal, recorded, past),
            None => Events::new(host.clone(), terms.journal, recorded),
        });
        let reloads = Arc::<Reloads>::default();
        App {
            metrics: Metrics::new(host.clone(), terms.jwks.clone(), terms.hooks.clone(), events.clone(), reloads.clone()),
            events,
            host,
            pending,
            throttle: Mutex::new(Throttle::new(terms.allowance)),
            terms,
            pause: Arc::default(),
            reloads,
            rates: Mutex::default(),
            recent: Mutex::default(),
            started: Instant::now(),
            id: HostId::new(rand::random()),
        }
    }

    /// Asks all shards, and other hosts where it concerns them.
    pub async fn ask(&self, question: Question) -> Gathered {
        self.pending.ask(&*self.host, question).await
    }

    /// Asks the shards of other hosts, of all or of this one, and none here.
    pub async fn ask_hosts(&self, question: Question, to: Option<&HostId>) -> Gathered {
        self.pending.ask_hosts(&*self.host, Wish::Shards(question), to).await
    }

    /// Milliseconds since the start.
    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes one sample of the counters; called about once a second.
    pub fn sample(&self, now_ms: u64) {
        let sample = self.totals(now_ms);
        self.rates().push(sample);
    }

    /// What came in the last minute, at one endpoint or at all.
    fn minute(&self, endpoint: Option<usize>) -> Minute {
        self.rates().since_window(&self.totals(monotonic_ms()), endpoint)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters that rates are made of, over all shards and endpoints.
    fn totals(&self, at_ms: u64) -> Sample {
        let sum = |index: usize, read: fn(&EndpointStats) -> u64| self.sum_of(|endpoint| endpoint == index, read);
        let endpoints: Box<[Figures]> = (0..self.host.endpoints().len())
            .map(|index| Figures {
                messages: sum(index, |it| it.received.read()),
                bytes: sum(index, |it| it.received_bytes.read()),
                refused: sum(index, |it| CLIENTS_FAULT.iter().map(|reason| it.dropped[reason.index()].read()).sum()),
                round_trips: sum(index, |it| it.round_trips.read()),
                round_trip_us: sum(index, |it| it.round_trip_us.read()),
            })
            .collect();
        let mut host = Figures::default();
        for of_endpoint in &endpoints {
            host.messages = host.messages.wrapping_add(of_endpoint.messages);
            host.bytes = host.bytes.wrapping_add(of_endpoint.bytes);
            host.refused = host.refused.wrapping_add(of_endpoint.refused);
        }
        // A transport with several namespaces has made one round trip.
        for shard in self.host.stats() {
            host.round_trips = host.round_trips.wrapping_add(shard.round_trips.read());
            host.round_trip_us = host.round_trip_us.wrapping_add(shard.round_trip_us.read());
        }
        Sample { at_ms, host, endpoints }
    }

    /// One number summed over the shards, of all endpoints or those of one dialect.
    fn sum(&self, dialect: Option<DialectKind>, read: impl Fn(&EndpointStats) -> u64) -> u64 {
        let endpoints = self.host.endpoints();
        self.sum_of(|index| dialect.is_none_or(|wanted| endpoints[index].dialect == wanted), read)
    }

    /// One number summed over the shards, of the endpoints that are chosen by their index.
    fn sum_of(&self, chosen: impl Fn(usize) -> bool, read: impl Fn(&EndpointStats) -> u64) -> u64 {
        let total = self.host.stats().iter().fold(0_u64, |sum, shard| {
            (0..self.host.endpoints().len())
                .filter(|index| chosen(*index))
                .filter_map(|index| shard.endpoints.get(index))
                .fold(sum, |sum, it| sum.wrapping_add(read(it)))
        });
        // A gauge that one shard raised and another lowered is seen a moment below zero.
        if total.cast_signed() < 0 { 0 } else { total }
    }

    /// How the connection to other hosts does.
    fn relay(&self) -> Relay {
        Relay::of(&*self.host)
    }

    /// True exactly when every shard turned lately.
    fn all_responsive(&self) -> bool {
        (0..self.host.stats().len()).all(|shard| self.host.is_responsive(shard))
    }
}

/// The wall clock, milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Milliseconds of the monotonic clock since the first call.
pub fn monotonic_ms() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// An engine made of a table and a function, and requests without a socket.
#[cfg(test)]
pub(crate) mod testing {
    use std::collections::VecDeque;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    use std::sync::{Arc, Mutex, OnceLock};
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use axum::http::{HeaderMap, Method, Request, StatusCode};
    use engine::auth::{AuthFault, Identity, Key, Verifier};
    use engine::config::{DialectKind, Endpoint};
    use engine::event::EventTypes;
    use engine::ids::{EndpointId, ShardId, Sid};
    use engine::relay::fleet::{Channel, Fleet, Output, Seen};
    use engine::relay::handle::{Claim, FleetHandle, ToRelay};
    use engine::relay::words::{Hello, HostId};
    use engine::stats::{RelayStats, ShardStats};
    use engine::{Answer, ConnectionInfo, Question, Reached, Scope, Wish};
    use tower::ServiceExt;

    use super::throttle::Allowance;
    use super::{Admission, App, Origins, Terms};
    use crate::bridge::{Host, Pending};
    use crate::events::Bounds;
    use crate::secret::Secret;

    pub(crate) type Answering = Box<dyn Fn(usize, &Question) -> Option<Answer> + Send + Sync>;

    pub(crate) struct FakeHost {
        endpoints: Vec<Endpoint>,
        stats: Vec<Arc<ShardStats>>,
        pub(crate) accepting: AtomicBool,
        pub(crate) responsive: AtomicBool,
        pub(crate) relay_responsive: AtomicBool,
        relay: Option<RelayStats>,
        pub(crate) wanted: Mutex<EventTypes>,
        /// True exactly when no shard takes a question.
        pub(crate) is_full: AtomicBool,
        /// The number of the last question.
        pub(crate) asked: AtomicU64,
        verifier: Verifier,
        answers: Option<(Arc<Pending>, Answering)>,
        /// The way to other hosts, if there are any.
        pub(crate) fleet: OnceLock<FleetHandle>,
    }

    impl FakeHost {
        pub(crate) fn new(shards: usize) -> FakeHost {
            let endpoints = vec![
                Endpoint::new("community", DialectKind::Community, "/api/community/ws"),
                Endpoint::new("fabric", DialectKind::Collab, "/ws/fabric"),
                Endpoint::new("rooms", DialectKind::Rooms, "/"),
                Endpoint::new("chat", DialectKind::Chat, "/chat"),
                Endpoint::new("notify", DialectKind::Notify, "/notify"),
            ];
            FakeHost {
                stats: (0..shards).map(|_| Arc::new(ShardStats::new(endpoints.len()))).collect(),
                endpoints,
                accepting: AtomicBool::new(true),
                responsive: AtomicBool::new(true),
                relay_responsive: AtomicBool::new(true),
                relay: None,
                wanted: Mutex::default(),
                is_full: AtomicBool::new(false),
                asked: AtomicU64::new(0),
                verifier: Verifier::new(Key::Hs256(SECRET.to_vec())).expect("a good secret"),
                answers: None,
                fleet: OnceLock::new(),
            }
        }

        /// With other hosts, which are not reached yet.
        pub(crate) fn relayed(self) -> FakeHost {
            FakeHost { relay: Some(RelayStats::default()), ..self }
        }

        /// Answers at once, from the asking thread; `None` is a shard that stays silent.
        pub(crate) fn answering(
            mut self,
            pending: &Arc<Pending>,
            answer: impl Fn(usize, &Question) -> Option<Answer> + Send + Sync + 'static,
        ) -> FakeHost {
            self.answers = Some((pending.clone(), Box::new(answer)));
            self
        }
    }

    impl Host for FakeHost {
        fn endpoints(&self) -> &[Endpoint] {
            &self.endpoints
        }
        fn stats(&self) -> &[Arc<ShardStats>] {
            &self.stats
        }
        fn ask(&self, ask: u64, question: Question) -> Reached {
            if self.is_full.load(Relaxed) {
                return Reached::default();
            }
            self.asked.store(ask, Relaxed);
            let answers = self.answers.iter().flat_map(|(pending, answer)| {
                (0..self.stats.len()).filter_map(|shard| answer(shard, &question)).map(move |answer| (pending, answer))
            });
            answers.for_each(|(pending, answer)| pending.deliver(ask, answer));
            let fleet = self.fleet.get().filter(|_| question.scope() == Scope::Fleet);
            let others = fleet.map(|fleet| fleet.ask(ask, Wish::Shards(question.clone()), None));
            Reached { shards: self.stats.len(), others: others.unwrap_or_default() }
        }
        fn fleet(&self) -> Option<&FleetHandle> {
            self.fleet.get()
        }
        fn accepting(&self) -> bool {
            self.accepting.load(Relaxed)
        }
        fn is_responsive(&self, shard: usize) -> bool {
            shard == 0 || self.responsive.load(Relaxed)
        }
        fn relay_stats(&self) -> Option<&RelayStats> {
            self.relay.as_ref()
        }
        fn is_relay_responsive(&self) -> bool {
            self.relay_responsive.load(Relaxed)
        }
        fn io_name(&self) -> &'static str {
            "io_uring"
        }
        fn want_events(&self, types: EventTypes) {
            *self.wanted.lock().expect("no panic before") = types;
        }
        fn verify(&self, token: &str) -> Result<Identity, AuthFault> {
            self.verifier.verify(token, super::unix_ms())
        }
    }

    /// Signs the tokens of users.
    pub(crate) const SECRET: &[u8] = b"a secret for tests only, 32 bytes";

    pub(crate) const TOKEN: &str = "correct horse";
    pub(crate) const BEARER: (&str, &str) = ("authorization", "Bearer correct horse");

    /// The admin token is [`TOKEN`], nothing else is configured.
    pub(crate) fn terms() -> Terms {
        Terms {
            admission: Admission::Token(Secret::new(TOKEN.as_bytes()).expect("not empty")),
            origins: Origins::Listed(Vec::new()),
            bundle: None,
            jwks: None,
            journal: Bounds { events: 100, bytes: 1 << 20 },
            webhook: None,
            dev: None,
            hooks: None,
            drain: Duration::from_secs(10),
            allowance: Allowance { calls: 1_000, window_ms: 10_000 },
            stop: crossbeam_channel::bounded(1).0,
        }
    }

    /// An app on [`terms`].
    pub(crate) fn app(host: Arc<FakeHost>, pending: Arc<Pending>) -> App {
        App::new(host, pending, terms())
    }

    /// Connection `slot` of `shard`, of user `user`.
    pub(crate) fn connection(shard: u8, slot: u32, user: &str) -> ConnectionInfo {
        ConnectionInfo {
            id: Sid::new(ShardId(shard), slot, [7; 11]),
            endpoint: EndpointId(2),
            user: user.into(),
            username: Some("Alice".into()),
            email: None,
            client_id: None,
            connected_unix_ms: 1_704_067_200_000,
            rooms: vec!["lobby".into()],
            metadata: None,
            address: SocketAddr::from(([127, 0, 0, 1], 5)),
            transport: "websocket",
        }
    }

    /// One of several hosts that are [`joined`].
    pub(crate) struct Member {
        pub(crate) host: Arc<FakeHost>,
        pub(crate) pending: Arc<Pending>,
        pub(crate) app: Arc<App>,
        pub(crate) router: Router,
        /// Where it is told to stop.
        pub(crate) wishes: crossbeam_channel::Receiver<super::Wanted>,
    }

    /// What stands between the hosts.
    #[derive(Default)]
    pub(crate) struct Between {
        /// Ids of emits that have been claimed.
        pub(crate) claims: Mutex<Vec<Arc<str>>>,
        /// True exactly when nobody can be asked for them.
        pub(crate) is_forgetful: AtomicBool,
    }

    /// Hosts of two shards each that answer so, and know each other as they would by their leases. Their fleets' texts are carried from memory
    /// to memory.
    pub(crate) fn joined(answers: Vec<Answering>) -> (Vec<Member>, Arc<Between>) {
        let (mut members, mut ports, between) = (Vec::new(), Vec::new(), Arc::<Between>::default());
        for (number, answer) in (1..).zip(answers) {
            let pending = Arc::new(Pending::default());
            let host = FakeHost::new(2).answering(&pending, answer);
            let names = host.endpoints.iter().map(|endpoint| endpoint.name.clone());
            let (handle, port) = engine::relay::handle::channel(Hello::new(HostId::new(number), 2, env!("CARGO_PKG_VERSION"), names));
            host.fleet.set(handle).expect("the first");
            let (host, (stop, wishes)) = (Arc::new(host), crossbeam_channel::bounded(1));
            let app = Arc::new(App::new(host.clone(), pending.clone(), Terms { stop, ..terms() }));
            let router = super::admin::router(app.clone());
            members.push(Member { host, pending, app, router, wishes });
            ports.push(port);
        }
        let hellos = members.iter().filter_map(|member| member.host.fleet.get()).map(|fleet| fleet.own().clone());
        let seen: Vec<Seen> = hellos.map(|hello| Seen { hello, seen_unix_ms: 1_704_067_200_000 }).collect();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut joints = Vec::new();
        for (index, mut port) in ports.into_iter().enumerate() {
            let mut fleet = Fleet::new(seen[index].hello.clone());
            fleet.saw_hosts(seen.clone());
            port.set_hosts(fleet.others());
            let (host, pending, app) = (members[index].host.clone(), members[index].pending.clone(), members[index].app.clone());
            joints.push(Joint { fleet, host, pending, app });
            let tell = tell.clone();
            tokio::spawn(async move {
                while let Some(order) = port.orders.recv().await {
                    let _ = tell.send((index, order));
                }
            });
        }
        let shared = between.clone();
        tokio::spawn(async move {
            let (started, mut ticks) = (tokio::time::Instant::now(), tokio::time::interval(Duration::from_millis(50)));
            loop {
                let order = tokio::select! {
                    order = told.recv() => order,
                    _ = ticks.tick() => None,
                };
                let now_ms = started.elapsed().as_millis() as u64;
                match order {
                    Some((index, ToRelay::Ask(order))) => joints[index].fleet.ask(now_ms, order),
                    Some((index, ToRelay::Reply { ask, text })) => joints[index].fleet.handle_reply(ask, text),
                    Some((_, ToRelay::Claim { id, answer, .. })) => shared.claim(&id, answer),
                    Some((_, ToRelay::Release { id })) => shared.claims.lock().expect("no panic before").retain(|claimed| *claimed != id),
                    // Nobody knows.
                    Some((_, ToRelay::Member { .. } | ToRelay::Blocked { .. })) => {}
                    None => joints.iter_mut().for_each(|joint| joint.fleet.handle_timeouts(now_ms)),
                }
                carry(&mut joints, now_ms);
            }
        });
        (members, between)
    }

    impl Between {
        fn claim(&self, id: &Arc<str>, answer: tokio::sync::oneshot::Sender<Claim>) {
            if self.is_forgetful.load(Relaxed) {
                return;
            }
            let mut claims = self.claims.lock().expect("no panic before");
            let claim = if claims.contains(id) { Claim::Taken } else { Claim::Fresh };
            claims.push(id.clone());
            let _ = answer.send(claim);
        }
    }

    /// A host where the texts arrive.
    struct Joint {
        fleet: Fleet,
        host: Arc<FakeHost>,
        pending: Arc<Pending>,
        app: Arc<App>,
    }

    /// Until nothing is to be done any more.
    fn carry(joints: &mut [Joint], now_ms: u64) {
        let mut texts = VecDeque::new();
        loop {
            for Joint { fleet, host, pending, app } in joints.iter_mut() {
                while let Some(output) = fleet.poll_output() {
                    match output {
                        Output::Publish { channel, text } => texts.push_back((channel, text)),
                        Output::Put { ask, question } => {
                            fleet.put(ask, host.stats.len());
                            let answers = host.answers.iter().flat_map(|(_, answer)| (0..2).filter_map(|shard| answer(shard, &question)));
                            answers.for_each(|answer| fleet.handle_shard_answer(ask, answer));
                        }
                        Output::Note { ask, text } => {
                            let reply = app.answer_program(&text).filter(|_| host.responsive.load(Relaxed));
                            reply.into_iter().for_each(|reply| fleet.handle_reply(ask, reply.into()));
                        }
                        Output::Told { ask, answers } => pending.deliver_host(ask, answers),
                    }
                }
            }
            let Some((channel, text)) = texts.pop_front() else { return };
            for joint in joints.iter_mut() {
                match &channel {
                    Channel::Ask => joint.fleet.handle_ask(now_ms, &text),
                    Channel::Answer(to) if *to == joint.fleet.hello().host => joint.fleet.handle_answered(&text),
                    Channel::Answer(_) => {}
                }
            }
        }
    }

    pub(crate) struct Heard {
        pub(crate) status: StatusCode,
        pub(crate) headers: HeaderMap,
        pub(crate) body: String,
    }

    impl Heard {
        pub(crate) fn json(&self) -> serde_json::Value {
            serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
        }

        pub(crate) fn header(&self, name: &str) -> &str {
            self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
        }
    }

    /// One request with these headers and no body.
    pub(crate) async fn call(router: &Router, method: Method, path: &str, headers: &[(&str, &str)]) -> Heard {
        call_with(router, method, path, headers, "").await
    }

    /// One request with a body.
    pub(crate) async fn call_with(router: &Router, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Heard {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = router.clone().oneshot(request).await.expect("infallible");
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
        Heard { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).expect("text") }
    }
}
