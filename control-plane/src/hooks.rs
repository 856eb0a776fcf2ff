//! Webhooks the engine asks: its inquiries become signed POSTs to the back end, and the answers rulings. Each hook of each endpoint has bounds of
//! its own, so that a back end that hangs for one holds up no other; whatever fails is a refusal, and counted.

mod cache;
mod words;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::ids::EndpointId;
use engine::stats::Histogram;
use engine::{About, Changes, Inquiry, OpenInquiry, Ruling};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::outbound::{Bounds, Outbound, OutboundFault, SIGNATURE, Url, sign};
use crate::secret::Secret;
use cache::{Cache, Key, Lookup};
use words::Answer;

/// Questions on their way from the bridge. Each is taken out at once, so more than a burst of one turn of every shard is a control plane
/// that does not run.
const QUEUE_MAX: usize = 4 * 1024;

/// Questions of one hook that are waited for, those included that wait for a place or for the same answer. With 64 at once and 20 ms an
/// answer a third of a second; what comes beyond is refused at once instead of too late.
const WAITING_MAX: usize = 1_024;

/// Bytes of an answer, beside the data of a message where one is asked about.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// URLs of one endpoint.
#[derive(Clone, Default, Debug)]
pub struct Urls {
    /// Asked who may connect.
    pub connect: Option<Url>,
    /// Asked who may enter rooms.
    pub join: Option<Url>,
    /// Asked what clients may say.
    pub publish: Option<Url>,
}

/// What is configured.
#[derive(Clone)]
pub struct HookSettings {
    /// Name and URLs, in the order of the endpoints' ids.
    pub endpoints: Vec<(String, Urls)>,
    /// Signs what is sent.
    pub secret: Secret,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long one to `join` counts for the same user and room.
    pub cache: Duration,
    /// How many of those are kept.
    pub cache_entries: usize,
    /// Requests of one hook at once.
    pub concurrency: usize,
    /// Bytes of a client's message, which an answer may contain.
    pub message_bytes: usize,
}

/// What became of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The back end said yes.
    Allowed,
    /// It said no.
    Denied,
    /// It had said so a moment ago, or was being asked the same.
    Cached,
    /// It said nothing in time.
    Timeout,
    /// It could not be reached, or broke off.
    Unreachable,
    /// It answered with a status that is not 2xx.
    Status,
    /// It answered something that is no answer.
    BadAnswer,
    /// Too many questions were under way.
    Busy,
}

impl Outcome {
    const ALL: [Outcome; 8] = [
        Outcome::Allowed,
        Outcome::Denied,
        Outcome::Cached,
        Outcome::Timeout,
        Outcome::Unreachable,
        Outcome::Status,
        Outcome::BadAnswer,
        Outcome::Busy,
    ];

    /// The metric's `outcome` label.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::Cached => "cached",
            Outcome::Timeout => "timeout",
            Outcome::Unreachable => "unreachable",
            Outcome::Status => "status",
            Outcome::BadAnswer => "bad_answer",
            Outcome::Busy => "busy",
        }
    }
}

/// One URL of one endpoint.
struct Hook {
    endpoint: String,
    name: &'static str,
    url: Url,
    places: Semaphore,
    /// Shared, because an asking task keeps its place whoever of those that wait for it hangs up.
    waiting: Arc<AtomicUsize>,
    counts: [AtomicU64; Outcome::ALL.len()],
    /// Written by the control plane's thread only, like everything that answers.
    seconds: Histogram,
}

impl Hook {
    fn new(endpoint: &str, name: &'static str, url: &Url, concurrency: usize) -> Hook {
        Hook {
            endpoint: endpoint.to_owned(),
            name,
            url: url.clone(),
            places: Semaphore::new(concurrency),
            waiting: Arc::default(),
            counts: Default::default(),
            seconds: Histogram::default(),
        }
    }

    fn count(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Relaxed);
    }

    /// A place among those that wait, if there is one.
    fn enter(&self) -> Option<Place> {
        let place = Place(self.waiting.clone());
        let is_full = self.waiting.fetch_add(1, Relaxed) >= WAITING_MAX;
        (!is_full).then_some(place)
    }
}

/// Counts down when it is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The hooks of one endpoint.
#[derive(Default)]
struct OfEndpoint {
    connect: Option<Hook>,
    join: Option<Hook>,
    publish: Option<Hook>,
}

/// Asks the back end.
pub struct Hooks {
    endpoints: Vec<OfEndpoint>,
    names: Vec<String>,
    outbound: Outbound,
    secret: Secret,
    time: Duration,
    message_bytes: usize,
    cache: Mutex<Cache>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("endpoints", &self.names).finish_non_exhaustive()
    }
}

/// Where the bridge puts inquiries. It never waits.
#[derive(Clone, Debug)]
pub struct Queue {
    inquiries: mpsc::Sender<OpenInquiry>,
    hooks: Arc<Hooks>,
}

impl Queue {
    /// Passes one on; one for which there is no place is refused.
    pub fn put(&self, inquiry: OpenInquiry) {
        if let Err(mpsc::error::TrySendError::Full(inquiry)) = self.inquiries.try_send(inquiry)
            && let Some(hook) = self.hooks.hook_of(inquiry.inquiry())
        {
            hook.count(Outcome::Busy);
        }
    }
}

impl Hooks {
    /// Hooks that have asked nothing yet, and the queue of their questions.
    pub fn new(settings: &HookSettings, outbound: Outbound) -> (Arc<Hooks>, Queue, mpsc::Receiver<OpenInquiry>) {
        let of_endpoint = |(endpoint, urls): &(String, Urls)| {
            let hook = |name, url: &Option<Url>| url.as_ref().map(|url| Hook::new(endpoint, name, url, settings.concurrency));
            OfEndpoint { connect: hook("connect", &urls.connect), join: hook("join", &urls.join), publish: hook("publish", &urls.publish) }
        };
        let hooks = Arc::new(Hooks {
            endpoints: settings.endpoints.iter().map(of_endpoint).collect(),
            names: settings.endpoints.iter().map(|(name, _)| name.clone()).collect(),
            outbound,
            secret: settings.secret.clone(),
            time: settings.timeout,
            message_bytes: settings.message_bytes,
            cache: Mutex::new(Cache::new(settings.cache, settings.cache_entries)),
        });
        let (inquiries, queue) = mpsc::channel(QUEUE_MAX);
        (hooks.clone(), Queue { inquiries, hooks }, queue)
    }

    /// Answers inquiries until nobody can make any more.
    pub async fn serve(self: Arc<Hooks>, mut queue: mpsc::Receiver<OpenInquiry>) {
        while let Some(inquiry) = queue.recv().await {
            let hooks = self.clone();
            // Bounded by the places of its hook: where there is none it ends at once.
            tokio::spawn(async move {
                let ruling = hooks.rule(inquiry.inquiry()).await;
                inquiry.answer(ruling);
            });
        }
    }

    /// Whether somebody is let in, and as whom, for those who do not come by a connection.
    pub async fn may_connect(&self, endpoint: EndpointId, caller: &engine::Caller) -> Ruling {
        let Some(hook) = self.of(endpoint).and_then(|it| it.connect.as_ref()) else { return Ruling::Unavailable };
        let Some(_place) = hook.enter() else { return busy(hook) };
        ruling(self.ask(hook, words::connect(&hook.endpoint, caller), ANSWER_BYTES_MAX).await)
    }

    /// Whether a user may enter a room, for those who do not come by a connection. The answer may be one that was given a moment ago.
    pub async fn may_join(self: &Arc<Hooks>, endpoint: EndpointId, user: &str, connection: Option<&str>, room: &str) -> Ruling {
        let Some(hook) = self.of(endpoint).and_then(|it| it.join.as_ref()) else { return Ruling::Unavailable };
        let key = Key { endpoint, user: user.into(), room: room.into() };
        let (wait, is_first) = match self.cache().look_up(&key, Instant::now()) {
            Lookup::Known(ruling) => {
                hook.count(Outcome::Cached);
                return ruling;
            }
            Lookup::Asked(wait) => (wait, false),
            Lookup::Unknown(wait) => (wait, true),
        };
        let Some(place) = hook.enter() else {
            if is_first {
                self.cache().land(&key, None, Instant::now());
            }
            return busy(hook);
        };
        let mut own_place = None;
        if is_first {
            // A task of its own, with the place: whoever asks first may hang up, and others wait for the same answer.
            let (hooks, connection) = (self.clone(), connection.map(str::to_owned));
            tokio::spawn(async move { hooks.ask_to_join(key, connection.as_deref(), place).await });
        } else {
            hook.count(Outcome::Cached);
            own_place = Some(place);
        }
        let ruling = wait.await.unwrap_or(Ruling::Unavailable);
        drop(own_place);
        ruling
    }

    /// Whether a user may say something, for those who do not come by a connection.
    pub async fn may_publish(&self, endpoint: EndpointId, proposal: &engine::Proposal) -> Ruling {
        let Some(hook) = self.of(endpoint).and_then(|it| it.publish.as_ref()) else { return Ruling::Unavailable };
        let Some(_place) = hook.enter() else { return busy(hook) };
        let body = words::publish(&hook.endpoint, proposal);
        ruling(self.ask(hook, body, self.message_bytes.saturating_add(ANSWER_BYTES_MAX)).await)
    }

    /// Numbers of all hooks: endpoint, hook, outcome.
    pub fn counts(&self) -> impl Iterator<Item = (&str, &'static str, &'static str, u64)> {
        let outcomes = |hook: &'_ Hook| Outcome::ALL.map(|outcome| (outcome.label(), hook.counts[outcome as usize].load(Relaxed)));
        self.all().flat_map(move |hook| outcomes(hook).map(|(outcome, count)| (hook.endpoint.as_str(), hook.name, outcome, count)))
    }

    /// How long the answers of all hooks took: endpoint, hook.
    pub fn seconds(&self) -> impl Iterator<Item = (&str, &'static str, &Histogram)> {
        self.all().map(|hook| (hook.endpoint.as_str(), hook.name, &hook.seconds))
    }

    fn all(&self) -> impl Iterator<Item = &Hook> {
        self.endpoints.iter().flat_map(|it| [&it.connect, &it.join, &it.publish]).flatten()
    }

    fn of(&self, endpoint: EndpointId) -> Option<&OfEndpoint> {
        self.endpoints.get(usize::from(endpoint.0))
    }

    fn hook_of(&self, inquiry: &Inquiry) -> Option<&Hook> {
        let hooks = self.of(inquiry.endpoint)?;
        match inquiry.about {
            About::Connect(_) => hooks.connect.as_ref(),
            About::Join { .. } => hooks.join.as_ref(),
            About::Publish(_) => hooks.publish.as_ref(),
            // The relay knows, or nobody does.
            About::Blocked { .. } => None,
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn rule(self: &Arc<Hooks>, inquiry: &Inquiry) -> Ruling {
        match &inquiry.about {
            About::Connect(caller) => self.may_connect(inquiry.endpoint, caller).await,
            About::Join { user, conn, rooms } => self.rule_joins(inquiry.endpoint, user, conn.text().as_str(), rooms).await,
            About::Publish(proposal) => self.may_publish(inquiry.endpoint, proposal).await,
            About::Blocked { .. } => Ruling::Unavailable,
        }
    }

    /// All of the rooms or none.
    async fn rule_joins(self: &Arc<Hooks>, endpoint: EndpointId, user: &str, connection: &str, rooms: &[Arc<str>]) -> Ruling {
        if let [room] = rooms {
            return self.may_join(endpoint, user, Some(connection), room).await;
        }
        let mut asked = JoinSet::new();
        for room in rooms {
            let (hooks, user, connection, room) = (self.clone(), user.to_owned(), connection.to_owned(), room.clone());
            asked.spawn(async move { hooks.may_join(endpoint, &user, Some(&connection), &room).await });
        }
        // All are awaited whatever the first says: what has been asked for goes on, and a client that is answered at once could ask for
        // more of it than its turn lets it.
        let mut all = Ruling::allowed();
        while let Some(ruling) = asked.join_next().await {
            let ruling = ruling.unwrap_or(Ruling::Unavailable);
            // A word of the back end tells more than that there is none.
            if matches!(
                (&all, &ruling),
                (Ruling::Allowed(_), Ruling::Refused(_) | Ruling::Unavailable) | (Ruling::Unavailable, Ruling::Refused(_))
            ) {
                all = ruling;
            }
        }
        all
    }

    /// Asks whether a user may enter a room, and tells all who wait for that. Failures are told and not remembered.
    async fn ask_to_join(self: Arc<Hooks>, key: Key, connection: Option<&str>, _place: Place) {
        let flight = Flight { hooks: &self, key: &key };
        let Some(hook) = self.of(key.endpoint).and_then(|it| it.join.as_ref()) else { return };
        let body = words::join(&hook.endpoint, &key.user, connection, &key.room);
        let answer = self.ask(hook, body, ANSWER_BYTES_MAX).await;
        flight.land(answer);
    }

    /// One question, counted.
    async fn ask(&self, hook: &Hook, body: String, answer_bytes: usize) -> Result<Answer, Outcome> {
        let began = Instant::now();
        let answer = timeout(self.time, self.post(hook, body, answer_bytes)).await.unwrap_or(Err(Outcome::Timeout));
        hook.seconds.observe(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        hook.count(match &answer {
            Ok(answer) if answer.allow => Outcome::Allowed,
            Ok(_) => Outcome::Denied,
            Err(outcome) => *outcome,
        });
        answer
    }

    async fn post(&self, hook: &Hook, body: String, answer_bytes: usize) -> Result<Answer, Outcome> {
        let _place = hook.places.acquire().await.map_err(|_| Outcome::Busy)?;
        let signature = sign(&self.secret, unix_s(), body.as_bytes());
        let bounds = Bounds { time: self.time, answer_bytes };
        let reply = self.outbound.post_json(&hook.url, body, &[(SIGNATURE, signature)], bounds).await.map_err(|fault| match fault {
            OutboundFault::Timeout => Outcome::Timeout,
            OutboundFault::TooLarge(_) => Outcome::BadAnswer,
            OutboundFault::Connect(_) | OutboundFault::Tls(_) | OutboundFault::Broken => Outcome::Unreachable,
        })?;
        if !reply.status.is_success() {
            return Err(Outcome::Status);
        }
        Answer::read(&reply.body).ok_or(Outcome::BadAnswer)
    }
}

/// A question under way that several wait for. However it ends, nobody waits for ever.
struct Flight<'a> {
    hooks: &'a Hooks,
    key: &'a Key,
}

impl Flight<'_> {
    fn land(&self, answer: Result<Answer, Outcome>) {
        let verdict = answer.map(|answer| (answer.allow, answer.reason)).ok();
        self.hooks.cache().land(self.key, verdict, Instant::now());
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.hooks.cache().land(self.key, None, Instant::now());
    }
}

fn busy(hook: &Hook) -> Ruling {
    hook.count(Outcome::Busy);
    Ruling::Unavailable
}

fn ruling(answer: Result<Answer, Outcome>) -> Ruling {
    match answer {
        Ok(Answer { allow: true, user, name, rooms, data, .. }) => Ruling::Allowed(Changes { user, name, rooms, data }),
        Ok(Answer { reason, .. }) => Ruling::Refused(reason),
        Err(_) => Ruling::Unavailable,
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
