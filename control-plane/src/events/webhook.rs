//! The events as signed POSTs: in order, one batch at a time, each tried until it is answered with 2xx or has grown too old. The body of a
//! batch is made once, so that a repetition is one: receivers know by the ids what they have. What the receiver is too slow for falls out
//! of the journal and is told in the next batch, as is what was given up. What it answers with 413 comes again in halves; a single event that
//! is too large for it is given up at once.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::StatusCode;
use engine::event::EventTypes;
use rand::RngExt as _;

use super::{Events, Item, Reading, Unsent, shape};
use crate::log;
use crate::outbound::{Bounds, Outbound, OutboundFault, Reply, SIGNATURE, Url, sign};
use crate::secret::Secret;

/// Wait before the second try; it doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// It doubles up to this: a receiver that is back gets what it missed within a minute.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Bytes of an answer: nothing in it matters.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Where events go, and how.
#[derive(Clone)]
pub struct Webhook {
    /// Where.
    pub url: Url,
    /// Signs what is sent.
    pub secret: Secret,
    /// Of these types.
    pub types: EventTypes,
    /// Events in one request, at most.
    pub batch_events: usize,
    /// Bytes after which a batch is closed; one event more is always in it.
    pub batch_bytes: usize,
    /// For one try.
    pub timeout: Duration,
    /// From the first try of a batch to giving it up.
    pub retry: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("url", &self.url).finish_non_exhaustive()
    }
}

/// One event, or a word on missing ones, as a request carries it.
struct Piece {
    /// Of the entry that it tells of.
    number: u64,
    text: String,
    is_event: bool,
    /// What is to be told as missing if it is given up: itself, or what it tells of as missing.
    gap: Gap,
}

/// What one request carries.
struct Batch {
    pieces: Vec<Piece>,
    body: Bytes,
}

/// What came of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Taken,
    /// The receiver says that it never takes so much at once.
    TooLarge,
    /// It was tried for long enough.
    GivenUp,
}

/// What has not been told and will not be.
#[derive(Clone, Copy, Default, Debug)]
struct Gap {
    count: u64,
    /// True exactly when there may be more.
    is_more: bool,
}

impl Gap {
    fn and(self, other: Gap) -> Gap {
        Gap { count: self.count + other.count, is_more: self.is_more || other.is_more }
    }
}

/// Sends what happens until the journal is closed and all is sent. `reading` begins where the process did.
pub async fn deliver(events: Arc<Events>, mut reading: Reading, webhook: Webhook, outbound: Outbound) {
    // Given up, and not told yet; read, and not sent yet: what is left of one reading.
    let mut owed = Gap::default();
    let carried = events.carried_over();
    let mut waiting: VecDeque<Vec<Piece>> =
        carried.chunks(webhook.batch_events.max(1)).map(|part| part.iter().cloned().map(Piece::carried).collect()).collect();
    loop {
        let next = match waiting.pop_front() {
            Some(pieces) => Some(pieces),
            None => next_pieces(&events, &mut reading, &webhook).await,
        };
        let Some(pieces) = next else { return };
        let mut batch = Batch::new(&events, std::mem::take(&mut owed), pieces);
        let last = batch.pieces.last().map_or(0, |last| last.number);
        match send(&events, &webhook, &outbound, &batch).await {
            Outcome::Taken => events.settle(last),
            Outcome::TooLarge if batch.pieces.len() > 1 => {
                let second = batch.pieces.split_off(batch.pieces.len() / 2);
                waiting.push_front(second);
                waiting.push_front(batch.pieces);
            }
            Outcome::TooLarge | Outcome::GivenUp => {
                owed = batch.give_up(&events);
                events.settle(last);
            }
        }
    }
}

/// What has happened since the last one; waits for something to happen.
async fn next_pieces(events: &Events, reading: &mut Reading, webhook: &Webhook) -> Option<Vec<Piece>> {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    std::future::poll_fn(|cx| {
        reading.poll(cx, |number, item| {
            let piece = Piece::new(events, number, &item);
            bytes += piece.text.len();
            pieces.push(piece);
            pieces.len() < webhook.batch_events && bytes < webhook.batch_bytes
        })
    })
    .await?;
    Some(pieces)
}

impl Piece {
    /// One that a former process has not sent.
    fn carried(unsent: Unsent) -> Piece {
        let Unsent { number, text, is_event } = unsent;
        Piece { number, text, is_event, gap: Gap { count: u64::from(is_event), is_more: !is_event } }
    }

    fn new(events: &Events, number: u64, item: &Item<'_>) -> Piece {
        let (is_event, gap) = match *item {
            Item::Event(_) => (true, Gap { count: 1, is_more: false }),
            Item::Dropped { count, is_more, .. } => (false, Gap { count, is_more }),
        };
        Piece { number, text: shape::nested(events.host.endpoints(), &events.id(number), item), is_event, gap }
    }
}

impl Batch {
    /// These pieces, after a word on what is missing before them.
    fn new(events: &Events, owed: Gap, mut pieces: Vec<Piece>) -> Batch {
        if owed.count > 0 || owed.is_more {
            let gave_up = Item::Dropped { count: owed.count, is_more: owed.is_more, unix_ms: super::unix_ms() };
            let before = pieces.first().map_or(0, |first| first.number.saturating_sub(1));
            pieces.insert(0, Piece::new(events, before, &gave_up));
        }
        let texts: Vec<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
        let body = format!("{{\"events\":[{}]}}", texts.join(",")).into();
        Batch { pieces, body }
    }

    fn events(&self) -> u64 {
        self.pieces.iter().filter(|piece| piece.is_event).count() as u64
    }

    /// What is to be told as missing now.
    fn give_up(&self, events: &Events) -> Gap {
        events.counts.missed_by_webhook.fetch_add(self.events(), Relaxed);
        self.pieces.iter().fold(Gap::default(), |gap, piece| gap.and(piece.gap))
    }
}

/// Tries until it is taken, or never will be.
async fn send(events: &Events, webhook: &Webhook, outbound: &Outbound, batch: &Batch) -> Outcome {
    let (begun, mut wait, mut has_complained) = (Instant::now(), RETRY_FIRST, false);
    loop {
        let outcome = post(webhook, outbound, batch).await;
        if matches!(&outcome, Ok(reply) if reply.status.is_success()) {
            events.counts.webhook_deliveries.fetch_add(1, Relaxed);
            if has_complained {
                log::info(format_args!("events webhook {}: taken again", webhook.url));
            }
            return Outcome::Taken;
        }
        events.counts.webhook_failures.fetch_add(1, Relaxed);
        if matches!(&outcome, Ok(reply) if reply.status == StatusCode::PAYLOAD_TOO_LARGE) {
            // The same bytes would be too many tomorrow as well, and nothing behind them would ever be sent.
            if batch.pieces.len() == 1 {
                let bytes = batch.body.len();
                log::warning(format_args!("events webhook {}: given up: one event, {bytes} bytes: {}", webhook.url, told(&outcome)));
            }
            return Outcome::TooLarge;
        }
        if !std::mem::replace(&mut has_complained, true) {
            log::warning(format_args!("events webhook {}: {}; it is tried again", webhook.url, told(&outcome)));
        }
        if begun.elapsed() >= webhook.retry {
            log::warning(format_args!("events webhook {}: {} events given up: {}", webhook.url, batch.events(), told(&outcome)));
            return Outcome::GivenUp;
        }
        // Between half of it and all of it, so that hosts that failed together do not come back together.
        let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
        wait = (wait * 2).min(RETRY_MAX);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            // A server that stops has little time left; the next tries come quickly, until it is over.
            () = events.closed() => {
                wait = RETRY_FIRST;
                tokio::time::sleep(RETRY_FIRST).await;
            }
        }
    }
}

async fn post(webhook: &Webhook, outbound: &Outbound, batch: &Batch) -> Result<Reply, OutboundFault> {
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let headers = [(SIGNATURE, sign(&webhook.secret, unix_s, &batch.body))];
    let bounds = Bounds { time: webhook.timeout, answer_bytes: ANSWER_BYTES_MAX };
    outbound.post_json(&webhook.url, batch.body.clone(), &headers, bounds).await
}

fn told(outcome: &Result<Reply, OutboundFault>) -> String {
    match outcome {
        Ok(Reply { status, .. }) => format!("answered with {}", StatusCode::as_u16(status)),
        Err(fault) => fault.to_string(),
    }
}
