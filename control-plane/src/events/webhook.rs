//! The events as signed POSTs: in order, one batch at a time, each tried until it is answered with 2xx or has grown too old. The body of a
//! batch is made once, so that a repetition is one: receivers know by the ids what they have. What the receiver is too slow for falls out
//! of the journal and is told in the next batch, as is what was given up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::StatusCode;
use engine::event::EventTypes;
use rand::RngExt as _;

use super::{Events, Item, Reading, shape};
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

/// What one request carries.
struct Batch {
    body: Bytes,
    /// Events in it.
    events: u64,
    /// What is to be told as missing if it is given up: these, and what it tells of as missing itself.
    owed: Gap,
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
    // Given up, and not told yet.
    let mut owed = Gap::default();
    while let Some(batch) = next_batch(&events, &mut reading, &webhook, owed).await {
        owed = if send(&events, &webhook, &outbound, &batch).await { Gap::default() } else { batch.owed };
    }
}

/// What has happened since the last one; waits for something to happen.
async fn next_batch(events: &Events, reading: &mut Reading, webhook: &Webhook, owed: Gap) -> Option<Batch> {
    let mut batch = Batch { body: Bytes::new(), events: 0, owed };
    let (mut list, mut items) = (String::new(), 0);
    let gave_up = Item::Dropped { count: owed.count, is_more: owed.is_more, unix_ms: super::unix_ms() };
    let first = (owed.count > 0 || owed.is_more).then(|| shape::nested(events.host.endpoints(), &reading.position(), &gave_up));
    std::future::poll_fn(|cx| {
        reading.poll(cx, |number, item| {
            if items == 0
                && let Some(first) = &first
            {
                list.push_str(first);
            }
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&shape::nested(events.host.endpoints(), &events.id(number), &item));
            items += 1;
            batch.owed = batch.owed.and(match item {
                Item::Event(_) => {
                    batch.events += 1;
                    Gap { count: 1, is_more: false }
                }
                Item::Dropped { count, is_more, .. } => Gap { count, is_more },
            });
            items < webhook.batch_events && list.len() < webhook.batch_bytes
        })
    })
    .await?;
    batch.body = format!("{{\"events\":[{list}]}}").into();
    Some(batch)
}

/// Tries until it is taken. False when it was given up.
async fn send(events: &Events, webhook: &Webhook, outbound: &Outbound, batch: &Batch) -> bool {
    let (begun, mut wait, mut has_complained) = (Instant::now(), RETRY_FIRST, false);
    loop {
        let outcome = post(webhook, outbound, batch).await;
        if matches!(&outcome, Ok(reply) if reply.status.is_success()) {
            events.counts.webhook_deliveries.fetch_add(1, Relaxed);
            if has_complained {
                log::info(format_args!("events webhook {}: taken again", webhook.url));
            }
            return true;
        }
        events.counts.webhook_failures.fetch_add(1, Relaxed);
        if !std::mem::replace(&mut has_complained, true) {
            log::warning(format_args!("events webhook {}: {}; it is tried again", webhook.url, told(&outcome)));
        }
        if begun.elapsed() >= webhook.retry {
            events.counts.missed_by_webhook.fetch_add(batch.events, Relaxed);
            log::warning(format_args!("events webhook {}: {} events given up: {}", webhook.url, batch.events, told(&outcome)));
            return false;
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
