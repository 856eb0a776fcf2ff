//! What happens on this host, for back ends that want to follow it: the shards tell it in batches, a bounded [`journal`] keeps the latest,
//! and readers go along it, each at its own pace: streams of server-sent events ([`sse`]) and the webhook ([`webhook`]). A reader is a
//! number and no more; whoever falls behind what is kept is told how much he missed. Nobody waits for a reader: the thread that takes the
//! shards' batches only writes into the journal.
//!
//! | type | told when | adds |
//! |---|---|---|
//! | `connection` | a connection is let in, or is back after it broke off and could be recovered; `user` is null while nobody knows him (notify) | |
//! | `disconnect` | it has ended or broken off, after a `room:leave` for each of its rooms | `reason` |
//! | `message` | a client or the back end published: community `CHAT_MESSAGE`, collab `update` and `steps`, rooms and chat `message` | `message`, as the clients get it |
//! | `room:join`, `room:leave` | a connection is in a room, or not any more, by whoever's will | |
//! | `authenticated` | a connection showed a good token after connecting, for the first time (notify) or again | |
//! | `receipt` | a user said, each once, that he got or read a message | `messageId`, `conversationId`, `status` |
//! | `server:event` | reserved: comes with the relay between hosts | `event`, `args` |
//! | `dropped` | events are missing here: those that the reader asked for and was too slow for, or, of whatever types, those that a shard had no place for or that made way while nobody read | `count`, and `uncounted: true` where nobody could count all of them |
//!
//! `reason` is `transport close` (socket ended, or the client closed it), `transport error` (too large), `ping timeout`, `parse error`, `client
//! namespace disconnect`, `server namespace disconnect` (by the back end) or `server shutting down`, all words of Node's server; and of our
//! own `slow reader`, `rate limit exceeded`, `token expired`, `authentication timeout`, `unauthorized`, `forbidden`, `too many connections`.
//!
//! Ids are `START-NUMBER`: when the process started, and a number that counts by one through all that is told on this host. Types that nobody
//! asks for are not recorded: the shards do not even make them. What a reader asked for is recorded for five more minutes when he has
//! gone, so that he can come back.

pub mod journal;
pub mod shape;
pub mod sse;
pub mod webhook;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, select};
use engine::event::{Event, EventBatch, EventType, EventTypes};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::bridge::Host;
pub use journal::Bounds;
use journal::{Journal, Missed, Told, Weight};

/// How long what a reader asked for is recorded when he has gone.
const LINGER: Duration = Duration::from_secs(5 * 60);

/// How often it is looked whether that time is over.
const GLANCE: Duration = Duration::from_secs(1);

/// Readers at once. The webhook is one; the admin listener has twice as many places, so that other calls find some.
const READERS_MAX: usize = 32;

/// What happens, and who follows it.
pub struct Events {
    host: Arc<dyn Host>,
    /// When the process started, milliseconds since 1970; the first half of each id.
    start: u64,
    /// Number of the first entry of this process.
    begin: u64,
    /// Recorded whoever reads.
    always: EventTypes,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
    /// Number of the last entry that the webhook is done with.
    settled: AtomicU64,
    /// What a former process had not sent to the webhook, until it is sent.
    carried: Mutex<Vec<Unsent>>,
    /// What `/metrics` tells.
    pub counts: Counts,
}

/// An event as the webhook gets it, which it has not got yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unsent {
    /// Its number.
    pub(crate) number: u64,
    /// JSON.
    pub(crate) text: String,
    /// False for a word on missing ones.
    pub(crate) is_event: bool,
}

/// Where a process that is replaced has come to. Readers of streams begin anew; the webhook gets everything.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Past {
    start: u64,
    next: u64,
    unsent: Vec<Unsent>,
}

struct State {
    journal: Journal,
    readers: HashMap<u64, Reader>,
    next_reader: u64,
    /// Types that are recorded until then although nobody reads them, by [`EventType::index`].
    lingering: [Option<Instant>; EventType::ALL.len()],
    recorded: EventTypes,
    is_closed: bool,
}

struct Reader {
    types: EventTypes,
    waker: Option<Waker>,
}

/// Counters of the control plane's side.
#[derive(Default, Debug)]
pub struct Counts {
    /// Events recorded, by [`EventType::index`].
    pub recorded: [AtomicU64; EventType::ALL.len()],
    /// Events that readers of a stream were too slow for.
    pub missed_by_readers: AtomicU64,
    /// Events that the webhook did not get: it was too slow for them, or gave them up.
    pub missed_by_webhook: AtomicU64,
    /// Requests of the webhook that were answered with 2xx.
    pub webhook_deliveries: AtomicU64,
    /// Those that were not.
    pub webhook_failures: AtomicU64,
}

/// There are as many readers as there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("as many readers follow the events as may do so at once")]
pub struct TooManyReaders;

/// What a reader gets.
#[derive(Debug)]
pub enum Item<'a> {
    /// Something happened.
    Event(&'a Event),
    /// Something is missing here.
    Dropped {
        /// How much of it was counted.
        count: u64,
        /// True exactly when there may be more.
        is_more: bool,
        /// When it is told, milliseconds since 1970.
        unix_ms: u64,
    },
}

impl Events {
    /// An empty journal. Events of the types `always` are recorded from now on.
    pub fn new(host: Arc<dyn Host>, bounds: Bounds, always: EventTypes) -> Events {
        Events::after(host, bounds, always, Past { start: unix_ms(), next: 1, unsent: Vec::new() })
    }

    /// The same, going on from where a former process has come to.
    pub fn after(host: Arc<dyn Host>, bounds: Bounds, always: EventTypes, past: Past) -> Events {
        host.want_events(always);
        let Past { start, next, unsent } = past;
        let settled = unsent.first().map_or(next - 1, |first| first.number.saturating_sub(1));
        let state = State {
            journal: Journal::new(bounds, next),
            readers: HashMap::new(),
            next_reader: 0,
            lingering: [None; EventType::ALL.len()],
            recorded: always,
            is_closed: false,
        };
        let (closed, _) = watch::channel(false);
        let (settled, carried) = (AtomicU64::new(settled), Mutex::new(unsent));
        Events { host, start, begin: next, always, state: Mutex::new(state), closed, settled, carried, counts: Counts::default() }
    }

    /// Where it has come to, for the process that this one becomes.
    pub fn past(&self) -> Past {
        let settled = self.settled.load(Relaxed);
        let state = self.lock();
        let mut unsent: Vec<Unsent> = self.carried().iter().filter(|unsent| unsent.number > settled).cloned().collect();
        for number in state.journal.first().max(settled + 1)..state.journal.next() {
            let item = match state.journal.get(number) {
                Some(Told::Event(event)) if self.always.has(event.kind()) => Item::Event(event),
                Some(Told::Dropped { count, unix_ms }) => Item::Dropped { count: *count, is_more: false, unix_ms: *unix_ms },
                _ => continue,
            };
            let (text, is_event) = (shape::nested(self.host.endpoints(), &self.id(number), &item), matches!(item, Item::Event(_)));
            unsent.push(Unsent { number, text, is_event });
        }
        // Without a webhook nobody is to be sent anything.
        let unsent = if self.always == EventTypes::NONE { Vec::new() } else { unsent };
        Past { start: self.start, next: state.journal.next(), unsent }
    }

    fn carried(&self) -> MutexGuard<'_, Vec<Unsent>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a former process has left to be sent.
    pub(crate) fn carried_over(&self) -> Vec<Unsent> {
        self.carried().clone()
    }

    /// The webhook is done with everything up to this number.
    pub(crate) fn settle(&self, number: u64) {
        self.settled.fetch_max(number, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what a shard told.
    pub fn record(&self, batch: EventBatch) {
        let EventBatch { events, dropped, .. } = batch;
        let mut state = self.lock();
        for event in events {
            self.counts.recorded[event.kind().index()].fetch_add(1, Relaxed);
            state.journal.push(Told::Event(event));
        }
        if dropped > 0 {
            state.journal.push(Told::Dropped { count: dropped, unix_ms: unix_ms() });
        }
        state.wake();
    }

    /// Events for which shards had no place.
    pub fn dropped_by_shards(&self) -> u64 {
        self.host.stats().iter().map(|shard| shard.events_dropped.read()).sum()
    }

    /// Readers there are now, the webhook among them.
    pub fn readers(&self) -> usize {
        self.lock().readers.len()
    }

    /// No more is recorded: readers get what is there, and then the end.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.wake();
        drop(state);
        self.closed.send_replace(true);
    }

    /// Returns when it is closed.
    pub async fn closed(&self) {
        // The sender lives as long as we do.
        let _ = self.closed.subscribe().wait_for(|is_closed| *is_closed).await;
    }

    /// Returns when nobody reads any more.
    pub async fn unread(&self) {
        while self.readers() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new reader of these types: after the event with the id `after`, or of what happens from now on. An id of another process or of
    /// nobody stands for the beginning of what is kept, and for not knowing what was before that.
    pub fn read(self: &Arc<Events>, types: EventTypes, after: Option<&str>) -> Result<Reading, TooManyReaders> {
        let mut state = self.lock();
        if state.readers.len() >= READERS_MAX {
            return Err(TooManyReaders);
        }
        let key = state.next_reader;
        state.next_reader += 1;
        let (first, next) = (state.journal.first(), state.journal.next());
        let (mut cursor, is_lost) = match after.map(|id| self.number_of(id).filter(|number| *number < next)) {
            None => (next, false),
            Some(Some(number)) => (number + 1, false),
            Some(None) => (first, true),
        };
        state.readers.insert(key, Reader { types, waker: None });
        self.choose(&mut state);
        if after.is_none() {
            // What was not recorded until now is nothing that it missed.
            cursor = state.journal.next();
        }
        let seen = state.journal.before(cursor);
        drop(state);
        Ok(Reading { events: self.clone(), key, types, cursor, seen, is_lost, missed: |counts| &counts.missed_by_readers })
    }

    /// The webhook's own reading: from the first event on, though clients may have come before it was made.
    pub fn read_for_webhook(self: &Arc<Events>, types: EventTypes) -> Result<Reading, TooManyReaders> {
        let mut reading = self.read(types, None)?;
        reading.cursor = self.begin;
        reading.seen = Some(Weight::default());
        reading.missed = |counts| &counts.missed_by_webhook;
        Ok(reading)
    }

    /// The id of a number.
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.start)
    }

    /// The number in an id of this process.
    fn number_of(&self, id: &str) -> Option<u64> {
        let (start, number) = id.split_once('-')?;
        (start.parse() == Ok(self.start)).then(|| number.parse().ok()).flatten()
    }

    /// Lets the shards make what somebody wants, and nothing else.
    fn choose(&self, state: &mut State) {
        let now = Instant::now();
        let lingering = EventType::ALL.into_iter().filter(|kind| state.lingering[kind.index()].is_some_and(|until| until > now));
        let wanted = state.readers.values().fold(self.always.and(lingering.collect()), |all, reader| all.and(reader.types));
        if wanted == state.recorded {
            return;
        }
        let types: EventTypes = EventType::ALL.into_iter().filter(|kind| wanted.has(*kind) && !state.recorded.has(*kind)).collect();
        if !types.is_empty() {
            state.journal.push(Told::Pause { types, unix_ms: unix_ms() });
        }
        state.recorded = wanted;
        self.host.want_events(wanted);
    }
}

impl State {
    /// Wakes all readers who wait.
    fn wake(&mut self) {
        self.readers.values_mut().filter_map(|reader| reader.waker.take()).for_each(Waker::wake);
    }
}

/// One reader's way along the journal. Dropped, it has gone.
pub struct Reading {
    events: Arc<Events>,
    key: u64,
    types: EventTypes,
    /// Number of the next entry to look at.
    cursor: u64,
    /// What is before that. `None` when it came back to where nobody knows any more.
    seen: Option<Weight>,
    /// True exactly when it has yet to be told that it does not know what was before.
    is_lost: bool,
    /// Where what it missed is counted.
    missed: fn(&Counts) -> &AtomicU64,
}

impl Reading {
    /// The id of the last entry that it has looked at.
    pub fn position(&self) -> String {
        self.events.id(self.cursor - 1)
    }

    /// Gives what is there, each with its number, until `take` says `false`: it has enough for now. `None` when it was the last;
    /// pending when there is nothing yet.
    pub fn poll(&mut self, cx: &mut Context<'_>, mut take: impl FnMut(u64, Item<'_>) -> bool) -> Poll<Option<()>> {
        let events = self.events.clone();
        let mut state = events.lock();
        let missed = self.skip(&state.journal);
        let (count, is_more) = (missed.events + missed.dropped, std::mem::take(&mut self.is_lost) || missed.is_more);
        let (mut has_given, mut goes_on) = (count > 0 || is_more, true);
        if has_given {
            // What shards had no place for is counted there.
            (self.missed)(&events.counts).fetch_add(missed.events, Relaxed);
            goes_on = take(self.cursor - 1, Item::Dropped { count, is_more, unix_ms: unix_ms() });
        }
        while goes_on && let Some(told) = state.journal.get(self.cursor) {
            let item = match told {
                Told::Event(event) => self.types.has(event.kind()).then_some(Item::Event(event)),
                Told::Dropped { count, unix_ms } => Some(Item::Dropped { count: *count, is_more: false, unix_ms: *unix_ms }),
                Told::Pause { types, unix_ms } => {
                    let concerns = EventType::ALL.into_iter().any(|kind| types.has(kind) && self.types.has(kind));
                    concerns.then_some(Item::Dropped { count: 0, is_more: true, unix_ms: *unix_ms })
                }
            };
            if let Some(item) = item {
                has_given = true;
                goes_on = take(self.cursor, item);
            }
            if let Some(seen) = &mut self.seen {
                seen.add(told);
            }
            self.cursor += 1;
        }
        if has_given {
            return Poll::Ready(Some(()));
        }
        if state.is_closed {
            return Poll::Ready(None);
        }
        if let Some(reader) = state.readers.get_mut(&self.key) {
            reader.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Goes on to what is kept; what it missed by that.
    fn skip(&mut self, journal: &Journal) -> Missed {
        if self.cursor >= journal.first() {
            return Missed::default();
        }
        let gone = journal.gone();
        let missed = self.seen.map_or_else(|| journal.gone_since(self.cursor), |seen| gone.since(&seen, self.types));
        self.cursor = journal.first();
        self.seen = Some(*gone);
        missed
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.events.lock();
        state.readers.remove(&self.key);
        let until = Instant::now() + LINGER;
        for kind in EventType::ALL.into_iter().filter(|kind| self.types.has(*kind)) {
            state.lingering[kind.index()] = Some(until);
        }
    }
}

/// Takes what the shards tell until the engine is gone or `stop` is, and closes. What is told then has been taken.
#[expect(clippy::needless_pass_by_value, reason = "the thread owns its ends of the channels")]
pub fn run(told: Receiver<EventBatch>, stop: Receiver<()>, events: Arc<Events>) {
    loop {
        select! {
            recv(told) -> batch => match batch {
                Ok(batch) => events.record(batch),
                Err(_) => break,
            },
            recv(stop) -> _ => {
                told.try_iter().for_each(|batch| events.record(batch));
                break;
            }
            default(GLANCE) => {}
        }
        events.choose_if_due();
    }
    events.close();
}

impl Events {
    /// Stops recording what nobody has wanted for long enough.
    fn choose_if_due(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.lingering.iter().any(|until| until.is_some_and(|until| until <= now)) {
            for until in &mut state.lingering {
                until.take_if(|until| *until <= now);
            }
            self.choose(&mut state);
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests;
