//! `GET /v1/events?types=`: the events as a stream that has no end, for `EventSource` and its like. A stream costs its place in the journal and
//! the chunk that its connection has not taken yet; while that waits nothing is made for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use engine::event::{EventType, EventTypes};
use hyper::body::Frame;
use serde::Deserialize;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use utoipa::IntoParams;

use super::{Events, Reading, shape};
use crate::http::App;
use crate::http::connection::Stay;
use crate::http::problem::{Params, Problem};

/// Bytes after which a chunk is closed; one event more is always in it.
const CHUNK_BYTES: usize = 16 * 1024;

/// Time between two comments, each with the place of the reader, that keep proxies from taking the connection for dead, and show us whether it is.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long a reader may take nothing before his place is given to others: twenty heartbeats.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How long a client should wait before it comes back, in milliseconds.
const RETRY_MS: u64 = 1_000;

/// The header by which a client says what it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// Types with commas between them: connection, disconnect, message, room:join, room:leave, authenticated, receipt, server:event. All of
    /// them if it is not said.
    types: Option<String>,
}

/// What happens on this host, as server-sent events that have no end.
///
/// `event` is the type, `id` where a client that comes back with `Last-Event-ID` goes on, and `data` an object with `endpoint`, `connection` (null
/// where the back end did it), `user` (null while nobody knows him), `time`, `room` where there is one, and what the type adds: `reason`
/// of a disconnect, the `message`, or `messageId`, `conversationId` and `status` of a receipt. Where events are missing stands one of type
/// `dropped` with their `count`; with `uncounted` there may be more than that.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client has got.")),
    responses((status = 200, description = "the stream", body = String, content_type = "text/event-stream")))]
pub(crate) async fn follow(
    State(app): State<Arc<App>>,
    stay: Option<Extension<Stay>>,
    Params(query): Params<EventsQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let types = query.types.map_or(Ok(EventTypes::ALL), |list| types(&list))?;
    let head = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    if method == Method::HEAD {
        // Nobody would read: it takes no place, and nothing is recorded for it.
        return Ok((head, Body::empty()).into_response());
    }
    // One that is no text is none of ours, as any other that we do not know.
    let after = headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default());
    let reading = app.events.read(types, after).map_err(|fault| Problem::unavailable(fault.to_string()))?;
    let stay = stay.map(|Extension(stay)| stay).unwrap_or_default();
    Ok((head, Body::new(EventStream::new(app.events.clone(), reading, stay))).into_response())
}

fn types(list: &str) -> Result<EventTypes, Problem> {
    let named = |name: &str| EventType::named(name).ok_or_else(|| Problem::bad_request(format!("types: {name:?} is no type of event")));
    list.split(',').map(named).collect()
}

/// The body of an answer that goes on until somebody hangs up.
struct EventStream {
    events: Arc<Events>,
    reading: Reading,
    stay: Stay,
    heartbeat: Interval,
    /// Told first.
    opening: Option<String>,
}

impl EventStream {
    fn new(events: Arc<Events>, reading: Reading, stay: Stay) -> EventStream {
        // An id without data is no event, but from now on the client knows where it is, though nothing may happen for long.
        let opening = Some(format!("retry: {RETRY_MS}\nid: {}\n\n", reading.position()));
        let mut heartbeat = interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        EventStream { events, reading, stay, heartbeat, opening }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        if let Some(opening) = self.opening.take() {
            return Poll::Ready(Some(opening));
        }
        let EventStream { events, reading, heartbeat, .. } = self;
        let mut chunk = String::new();
        let polled = reading.poll(cx, |number, item| {
            let data = one_line(shape::flat(events.host.endpoints(), &item));
            chunk.push_str(&format!("event: {}\nid: {}\ndata: {data}\n\n", shape::kind(&item), events.id(number)));
            chunk.len() < CHUNK_BYTES
        });
        match polled {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(())) => Poll::Ready(Some(chunk)),
            Poll::Pending => {
                ready!(heartbeat.poll_tick(cx));
                // With the place, so that who asked for what seldom happens comes back to where he is, not to his last event.
                Poll::Ready(Some(format!(": alive\nid: {}\n\n", reading.position())))
            }
        }
    }
}

/// JSON with no line breaks. They stand only between its parts, where a blank means the same: texts have them escaped.
fn one_line(json: String) -> String {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ") } else { json }
}

impl hyper::body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Whoever asks for more has taken what was before.
        self.stay.until(tokio::time::Instant::now() + PATIENCE);
        self.poll_chunk(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk.into()))))
    }
}

#[cfg(test)]
mod tests {
    use engine::event::{Event, EventBatch, What};
    use engine::ids::{EndpointId, ShardId};

    use super::*;
    use crate::bridge::Pending;
    use crate::events::Bounds;
    use crate::http::testing::{BEARER, FakeHost, app, call_with};

    #[test]
    fn only_types_that_there_are_can_be_asked_for() {
        assert_eq!(types("message,room:join").ok(), Some(EventTypes::NONE.with(EventType::Message).with(EventType::RoomJoin)));
        for bad in ["", "messages", "message,", "message, receipt", "dropped", "MESSAGE"] {
            assert!(types(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_says_how_far_the_reader_is() {
        let host = Arc::new(FakeHost::new(1));
        let events = Arc::new(Events::new(host, Bounds { events: 10, bytes: 1 << 20 }, EventTypes::ALL));
        let reading = events.read(EventTypes::NONE.with(EventType::Receipt), None).expect("a place");
        let mut stream = EventStream::new(events.clone(), reading, Stay::default());
        let mut next = async || std::future::poll_fn(|cx| stream.poll_chunk(cx)).await;
        assert_eq!(next().await, Some(format!("retry: {RETRY_MS}\nid: {}\n\n", events.id(0))));
        // Of another type, more of them than are kept.
        let event = || Event { endpoint: EndpointId(0), connection: None, user: None, room: None, unix_ms: 0, what: What::Connection };
        for _ in 0..25 {
            events.record(EventBatch { shard: ShardId(0), events: vec![event()], dropped: 0 });
        }
        let heartbeat = next().await.expect("it goes on");
        assert_eq!(heartbeat, format!(": alive\nid: {}\n\n", events.id(25)));
    }

    #[tokio::test]
    async fn head_is_answered_without_a_reader() {
        let pending = Arc::new(Pending::default());
        let app = Arc::new(app(Arc::new(FakeHost::new(1)), pending));
        let router = crate::http::admin::router(app.clone());
        let heard = call_with(&router, Method::HEAD, "/v1/events", &[BEARER], "").await;
        assert_eq!((heard.status.as_u16(), heard.header("content-type")), (200, "text/event-stream"));
        assert_eq!(call_with(&router, Method::HEAD, "/v1/events?types=x", &[BEARER], "").await.status, 400);
        assert_eq!((app.events.readers(), app.events.lock().lingering.iter().flatten().count()), (0, 0));
    }

    #[test]
    fn data_is_one_line() {
        assert_eq!(one_line("{\"a\":\r\n[1,\n2],\"b\":\"\\n\"}".into()), "{\"a\":  [1, 2],\"b\":\"\\n\"}");
    }
}
