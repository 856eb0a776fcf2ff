//! What keeps a host in order: `POST /v1/cleanup {inactiveMinutes?, endpoint?}` closes connections to which nothing but heartbeats came
//! for so long, `POST /v1/drain {seconds?, hosts?}` stops this server as SIGTERM does, or others of its fleet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::relay::handle::FleetHandle;
use engine::relay::words::HostId;
use engine::{Answer, Question};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::admin::{Missing, NoQuery, answer, endpoint_named};
use super::problem::{Body, Params, Problem, present};
use super::shapes::Closed;
use crate::lifecycle::Wanted;
use crate::settings::DRAIN_SECONDS_MAX;

/// Path of the call that may take long.
pub const CLEANUP: &str = "/v1/cleanup";

#[cfg(test)]
const DRAIN: &str = "/v1/drain";

/// Minutes without a message (contract).
const INACTIVE_MINUTES: f64 = 30.0;

/// Connections closed at once on each shard: at 20 µs each its other clients wait 20 ms.
const CLOSED_AT_ONCE: usize = 1_000;

/// How often a drain is looked for that was asked for.
const GLANCE: Duration = Duration::from_millis(10);

/// What is to be closed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Cleanup {
    /// Where nothing but heartbeats came for so many minutes; 30 if it is not said.
    #[schema(minimum = 0, nullable = false)]
    #[serde(default, deserialize_with = "present")]
    inactive_minutes: Option<f64>,
    /// Only at the endpoint of this name.
    #[schema(nullable = false)]
    #[serde(default, deserialize_with = "present")]
    endpoint: Option<String>,
}

/// Closes connections that are inactive.
///
/// A part is closed and then the next asked for, until no shard has more: a client that hangs up ends it there.
#[utoipa::path(post, path = CLEANUP, tag = "process", request_body = Cleanup,
    responses((status = 200, description = "they are being closed", body = Closed), (status = 404, description = "no endpoint has the name")))]
pub(super) async fn cleanup(
    State(app): State<Arc<App>>,
    Params(NoQuery {}): Params<NoQuery>,
    Body(order): Body<Cleanup>,
) -> Result<Response, Problem> {
    let minutes = order.inactive_minutes.unwrap_or(INACTIVE_MINUTES);
    if minutes < 0.0 {
        return Err(Problem::bad_request("inactiveMinutes is 0 or more"));
    }
    let endpoint = order.endpoint.map(|name| endpoint_named(&app, &name)).transpose()?;
    let started = Instant::now();
    let (mut count, mut missing) = (0, Missing::default());
    loop {
        // As seen from when it was asked for: who has come meanwhile is not meant, or this would never end.
        let inactive = Duration::try_from_secs_f64(minutes * 60.0).unwrap_or(Duration::MAX).saturating_add(started.elapsed());
        let inactive_ms = u64::try_from(inactive.as_millis()).unwrap_or(u64::MAX);
        let gathered = app.ask(Question::CloseInactive { endpoint, inactive_ms, limit: CLOSED_AT_ONCE }).await;
        count += gathered.closed();
        missing = missing.max(Missing::of(&gathered));
        let has_more = |answer: &Answer| matches!(answer, Answer::Closed(closed) if *closed >= CLOSED_AT_ONCE as u64);
        if !gathered.all().any(has_more) {
            return Ok(answer(missing, Closed { closed: count }));
        }
    }
}

/// How the server is to stop.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// Closing all connections is spread over so many seconds; over those of the configuration if it is not said.
    #[schema(minimum = 0, maximum = 3600, nullable = false)]
    #[serde(default, deserialize_with = "present")]
    seconds: Option<f64>,
    /// Which servers stop; the one that is asked if it is not said.
    #[schema(nullable = false)]
    #[serde(default, deserialize_with = "present")]
    hosts: Option<DrainHosts>,
}

/// Which servers stop.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum DrainHosts {
    /// All of the fleet.
    All(AllHosts),
    /// Those with these ids, see `GET /v1/hosts`.
    These(Vec<String>),
}

/// All of them.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AllHosts {
    /// Always `all`.
    All,
}

/// How the server stops.
#[derive(Serialize, ToSchema)]
pub(super) struct Draining {
    /// Closing all connections is spread over so many seconds.
    seconds: f64,
    /// The servers that stop now, where the call says which.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    hosts: Option<Vec<String>>,
}

/// Stops the server as SIGTERM does, or servers of its fleet.
///
/// When it answers, readiness of the server that was asked is 503 and nobody new is let in; another one may take a moment longer.
#[utoipa::path(post, path = "/v1/drain", tag = "process", request_body = Drain, responses(
    (status = 202, description = "it has begun", body = Draining),
    (status = 404, description = "no server of the fleet has the id"),
    (status = 409, description = "the server is stopping already"),
    (status = 503, description = "something that was wished before has not begun yet, or the server is being replaced: ask again"),
))]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Params(NoQuery {}): Params<NoQuery>,
    Body(order): Body<Drain>,
) -> Result<Response, Problem> {
    let said = match order.seconds {
        None => None,
        Some(seconds) if (0.0..=DRAIN_SECONDS_MAX as f64).contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
        Some(_) => return Err(Problem::bad_request(format!("seconds is 0 to {DRAIN_SECONDS_MAX}"))),
    };
    let over = said.unwrap_or(app.terms.drain);
    let Some(hosts) = order.hosts else {
        stop_here(&app, over).await?;
        return Ok((StatusCode::ACCEPTED, Json(Draining { seconds: over.as_secs_f64(), hosts: None })).into_response());
    };
    let (is_here, (mut began, missing)) = match hosts {
        DrainHosts::All(AllHosts::All) => (true, app.drain_others(said, None).await),
        DrainHosts::These(ids) => {
            let (own, others) = hosts_named(&app, &ids)?;
            (own, app.drain_others(said, Some(others)).await)
        }
    };
    // The last: it would be the end of the way to the others.
    match if is_here { stop_here(&app, over).await } else { Err(Problem::conflict("the servers are stopping already")) } {
        Ok(()) => began.push(app.own_id()),
        Err(problem) if began.is_empty() && missing == Missing::default() => return Err(problem),
        Err(_) => {}
    }
    let hosts = Some(began.iter().map(ToString::to_string).collect());
    Ok((StatusCode::ACCEPTED, answer(missing, Draining { seconds: over.as_secs_f64(), hosts })).into_response())
}

/// Has this server stop, and returns when that has begun.
async fn stop_here(app: &App, over: Duration) -> Result<(), Problem> {
    if !app.host.accepting() {
        return Err(Problem::conflict("the server is stopping already"));
    }
    if app.terms.stop.try_send(Wanted::Stop(over)).is_err() {
        return Err(Problem::unavailable("the server is about to stop or to reload already: ask again in a second"));
    }
    while app.host.accepting() {
        tokio::time::sleep(GLANCE).await;
    }
    Ok(())
}

/// Whether this server is among those with these ids, and the others; each once.
fn hosts_named(app: &App, ids: &[String]) -> Result<(bool, Vec<HostId>), Problem> {
    let (own, others) = (app.own_id(), app.host.fleet().map(FleetHandle::others).unwrap_or_default());
    let (mut is_here, mut named) = (false, BTreeSet::new());
    for id in ids {
        let host = HostId::parse(id).filter(|host| *host == own || others.iter().any(|seen| seen.hello.host == *host));
        match host.ok_or_else(|| Problem::not_found("no server of the fleet has the id"))? {
            host if host == own => is_here = true,
            host => drop(named.insert(host)),
        }
    }
    if !is_here && named.is_empty() {
        return Err(Problem::bad_request("hosts is \"all\" or a list of at least one id"));
    }
    Ok((is_here, named.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::Ordering::Relaxed;

    use axum::Router;
    use axum::http::Method;
    use engine::ids::EndpointId;
    use serde_json::json;

    use super::super::testing::{BEARER, FakeHost, Heard, app, call_with, terms};
    use super::super::{Terms, admin};
    use super::*;
    use crate::bridge::Pending;

    type Asked = Arc<Mutex<Vec<(Option<EndpointId>, u64)>>>;

    /// Two shards with so many inactive connections.
    fn shards(mut inactive: [u64; 2]) -> (Asked, Router) {
        let asked = Asked::default();
        let (list, pending) = (asked.clone(), Arc::new(Pending::default()));
        let left = Mutex::new(move |shard: usize, limit: usize| {
            let closed = inactive[shard].min(limit as u64);
            inactive[shard] -= closed;
            closed
        });
        let host = FakeHost::new(2).answering(&pending, move |shard, question| {
            let Question::CloseInactive { endpoint, inactive_ms, limit } = question else { return None };
            if shard == 0 {
                list.lock().expect("one thread").push((*endpoint, *inactive_ms));
            }
            Some(Answer::Closed((left.lock().expect("one thread"))(shard, *limit)))
        });
        (asked, admin::router(Arc::new(app(Arc::new(host), pending))))
    }

    async fn post(router: &Router, path: &str, body: &str) -> Heard {
        call_with(router, Method::POST, path, &[BEARER], body).await
    }

    #[tokio::test]
    async fn what_is_inactive_is_closed_in_parts() {
        let (asked, router) = shards([2_500, 10]);
        let heard = post(&router, CLEANUP, r#"{"inactiveMinutes":0.5,"endpoint":"chat"}"#).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"closed": 2_510})));
        let asked = asked.lock().expect("one thread");
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|(endpoint, ms)| *endpoint == Some(EndpointId(3)) && (30_000..60_000).contains(ms)), "{asked:?}");
    }

    #[tokio::test]
    async fn half_an_hour_on_all_endpoints_if_nothing_is_said() {
        for body in ["{}", " {} "] {
            let (asked, router) = shards([1, 1]);
            let heard = post(&router, CLEANUP, body).await;
            assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"closed": 2})), "{body:?}");
            let (endpoint, ms) = asked.lock().expect("one thread")[0];
            assert!(endpoint.is_none() && (1_800_000..1_810_000).contains(&ms), "{ms}");
        }
        let (asked, router) = shards([0, 0]);
        for (body, at_least) in [(r#"{"inactiveMinutes":0}"#, 0), (r#"{"inactiveMinutes":1e300}"#, u64::MAX)] {
            assert_eq!(post(&router, CLEANUP, body).await.json(), json!({"closed": 0}));
            assert!(asked.lock().expect("one thread").pop().is_some_and(|(_, ms)| ms >= at_least));
        }
    }

    #[tokio::test]
    async fn wrong_orders_are_problems_and_nothing_happens() {
        let (asked, cleaning) = shards([5, 5]);
        let (stop, wishes) = crossbeam_channel::bounded(1);
        let host = Arc::new(FakeHost::new(1));
        let draining = admin::router(Arc::new(App::new(host, Arc::default(), Terms { stop, ..terms() })));
        for (router, path, body, status) in [
            (&cleaning, CLEANUP, "", 400),
            (&cleaning, CLEANUP, "[]", 400),
            (&cleaning, CLEANUP, "{", 400),
            (&cleaning, CLEANUP, "null", 400),
            (&cleaning, CLEANUP, "\u{feff}{}", 400),
            (&cleaning, CLEANUP, r#"{"inactiveMinutes":-1}"#, 400),
            (&cleaning, CLEANUP, r#"{"inactiveMinutes":"30"}"#, 400),
            (&cleaning, CLEANUP, r#"{"inactiveMinutes":null}"#, 400),
            (&cleaning, CLEANUP, r#"{"inactiveMinutes":1e999}"#, 400),
            (&cleaning, CLEANUP, r#"{"inactiveMinutes":1,"inactiveMinutes":2}"#, 400),
            (&cleaning, CLEANUP, r#"{"endpoint":7}"#, 400),
            (&cleaning, CLEANUP, r#"{"endpoint":"nothing"}"#, 404),
            (&cleaning, CLEANUP, r#"{"minutes":1}"#, 400),
            (&cleaning, "/v1/cleanup?endpoint=chat", "{}", 400),
            (&draining, DRAIN, "", 400),
            (&draining, DRAIN, "[]", 400),
            (&draining, DRAIN, r#"{"seconds":-1}"#, 400),
            (&draining, DRAIN, r#"{"seconds":3601}"#, 400),
            (&draining, DRAIN, r#"{"seconds":"10"}"#, 400),
            (&draining, DRAIN, r#"{"seconds":null}"#, 400),
            (&draining, DRAIN, r#"{"second":1}"#, 400),
            (&draining, DRAIN, r#"{"hosts":null}"#, 400),
            (&draining, DRAIN, r#"{"hosts":"some"}"#, 400),
            (&draining, DRAIN, r#"{"hosts":[]}"#, 400),
            (&draining, DRAIN, r#"{"hosts":[7]}"#, 400),
            (&draining, DRAIN, r#"{"hosts":["0000000000000000"]}"#, 404),
            (&draining, DRAIN, r#"{"hosts":["x"]}"#, 404),
            (&draining, "/v1/drain?seconds=1", "{}", 400),
        ] {
            let heard = post(router, path, body).await;
            assert_eq!((heard.status.as_u16(), &heard.json()["status"]), (status, &json!(status)), "{path} {body}");
            let unsigned = call_with(router, Method::POST, path, &[], body).await;
            assert_eq!(unsigned.status, StatusCode::UNAUTHORIZED);
        }
        let large = format!("{{{}}}", " ".repeat(64 * 1024));
        for path in [CLEANUP, DRAIN] {
            assert_eq!(post(&cleaning, path, &large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(call_with(&cleaning, Method::GET, path, &[BEARER], "").await.status, StatusCode::METHOD_NOT_ALLOWED);
        }
        assert!(asked.lock().expect("one thread").is_empty() && wishes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_answered_when_it_has_begun_and_begins_once() {
        for (body, over) in [("{}", Duration::from_secs(10)), (r#"{"seconds":0.25}"#, Duration::from_millis(250))] {
            let (stop, wishes) = crossbeam_channel::bounded(1);
            let host = Arc::new(FakeHost::new(1));
            let router = admin::router(Arc::new(App::new(host.clone(), Arc::default(), Terms { stop, ..terms() })));
            let asked = tokio::spawn({
                let router = router.clone();
                async move { post(&router, DRAIN, body).await }
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!asked.is_finished(), "nobody has begun");
            // Full: the wish of another has not been seen yet, and it may be one to reload, over which this one would be forgotten.
            assert_eq!(post(&router, DRAIN, "{}").await.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(wishes.try_recv(), Ok(Wanted::Stop(over)));
            host.accepting.store(false, Relaxed);
            let heard = asked.await.expect("no panic");
            assert_eq!((heard.status, heard.json()), (StatusCode::ACCEPTED, json!({"seconds": over.as_secs_f64()})));
            assert_eq!(post(&router, DRAIN, "{}").await.status, StatusCode::CONFLICT);
            assert!(wishes.is_empty());
        }
    }
}
