//! How one endpoint does: `GET /v1/endpoints/{name}/stats` in the shape of its dialect's page, `GET /v1/endpoints/{name}/metrics` in one
//! shape for all. The numbers are of all hosts of the fleet.
//!
//! | member | is |
//! |---|---|
//! | `totalConnections` | connections open now; beside `activeConnections` all that entered since the start |
//! | `uniqueUsers`, `authenticatedUsers` | users with a connection |
//! | `averageConnectionsPerUser` | connections whose user is known, by user |
//! | `totalRooms` | rooms that exist |
//! | `messagesPerMinute`, `bytesPerMinute`, `messagesPerSecond` | what clients said in the last minute |
//! | `avgLatency`, `averageLatency` | mean round trip of the last minute's heartbeats, milliseconds |
//! | `errorRate` | share of the last minute's messages that were refused (wrong shape, not allowed, over the rate), 0 to 1 |

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use engine::config::DialectKind;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::admin::{NoQuery, answer, endpoint_named};
use super::fleet::Totals;
use super::problem::{Params, Problem, Segment};
use super::rates::average;
use super::shapes::Stats;

/// Numbers of an endpoint, as the page of its dialect has them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum OwnStats {
    /// Of community.
    Community(CommunityStats),
    /// Of notify.
    Notify(NotifyStats),
    /// Of rooms.
    Rooms(Stats),
    /// Of collab and chat.
    Counts(Counts),
}

/// Numbers of an endpoint of community.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CommunityStats {
    /// Connections that are open.
    total_connections: u64,
    /// Users with one.
    unique_users: u64,
    /// Connections by user, two decimals.
    average_connections_per_user: f64,
}

/// Numbers of an endpoint of notify.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NotifyStats {
    /// Connections that are open, whether they have said who they are or not.
    total_connections: u64,
    /// Users with a connection that has.
    authenticated_users: u64,
    /// Of these the connections by user, two decimals.
    average_connections_per_user: f64,
}

/// Numbers of an endpoint of collab or chat.
#[derive(Serialize, ToSchema)]
// No more than these, so that it is told from the other shapes of its answer.
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Counts {
    /// Connections since the start.
    total_connections: u64,
    /// Connections that are open.
    active_connections: u64,
    /// Rooms, or documents, that exist.
    total_rooms: u64,
}

/// How an endpoint does.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Health {
    /// Connections since the start.
    total_connections: u64,
    /// Connections that are open.
    active_connections: u64,
    /// Rooms that exist.
    total_rooms: u64,
    /// What clients said in the last minute, by second.
    messages_per_second: f64,
    /// Mean time of a ping and its answer in the last minute, milliseconds.
    average_latency: f64,
    /// Share of the last minute's messages that were refused (wrong shape, not allowed, over the rate).
    #[schema(minimum = 0, maximum = 1)]
    error_rate: f64,
    /// Now, RFC 3339.
    #[schema(format = DateTime)]
    timestamp: String,
}

/// Numbers of an endpoint, in the shape of its dialect.
#[utoipa::path(get, path = "/v1/endpoints/{name}/stats", tag = "stats", params(("name" = String, Path, description = "The endpoint's name.")),
    responses((status = 200, description = "the numbers", body = OwnStats), (status = 404, description = "no endpoint has the name")))]
pub(super) async fn stats(
    State(app): State<Arc<App>>,
    Segment(name): Segment,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Response, Problem> {
    let index = usize::from(endpoint_named(&app, &name)?.0);
    let (totals, missing) = app.numbers(Some(index)).await;
    let Totals { accepted, connections, authenticated, users, rooms, .. } = totals;
    let shown = match app.host.endpoints()[index].dialect {
        DialectKind::Community => OwnStats::Community(CommunityStats {
            total_connections: connections,
            unique_users: users,
            average_connections_per_user: average(connections, users),
        }),
        DialectKind::Notify => OwnStats::Notify(NotifyStats {
            total_connections: connections,
            authenticated_users: users,
            average_connections_per_user: average(authenticated, users),
        }),
        DialectKind::Collab | DialectKind::Chat => {
            OwnStats::Counts(Counts { total_connections: accepted, active_connections: connections, total_rooms: rooms })
        }
        DialectKind::Rooms | DialectKind::Echo | DialectKind::Own(_) => OwnStats::Rooms(Stats::new(&totals)),
    };
    Ok(answer(missing, shown))
}

/// How an endpoint does, in one shape for all dialects.
#[utoipa::path(get, path = "/v1/endpoints/{name}/metrics", tag = "stats", params(("name" = String, Path, description = "The endpoint's name.")),
    responses((status = 200, description = "the numbers", body = Health), (status = 404, description = "no endpoint has the name")))]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    Segment(name): Segment,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Response, Problem> {
    let index = usize::from(endpoint_named(&app, &name)?.0);
    let (totals, missing) = app.numbers(Some(index)).await;
    let health = Health {
        total_connections: totals.accepted,
        active_connections: totals.connections,
        total_rooms: totals.rooms,
        messages_per_second: totals.messages_per_second,
        average_latency: totals.figures.latency_ms(),
        error_rate: totals.figures.refused_share(),
        timestamp: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
    };
    Ok(answer(missing, health))
}

#[cfg(test)]
mod tests {
    use axum::http::{Method, StatusCode};
    use serde_json::json;

    use super::super::admin::router;
    use super::super::testing::{BEARER, FakeHost, app, call};
    use super::*;
    use crate::bridge::Host as _;
    use engine::fault::DropReason;

    #[tokio::test]
    async fn each_dialect_has_its_own_stats() {
        let host = Arc::new(FakeHost::new(2));
        for (shard, stats) in host.stats().iter().enumerate() {
            for (index, endpoint) in stats.endpoints.iter().enumerate() {
                let each = index as u64 + 1;
                endpoint.accepted.add(100 * each);
                endpoint.connections.add(10 * each);
                endpoint.authenticated.add(9 * each);
                // Counted up on the home of the user, wherever his connections are.
                endpoint.users.add(8 * each * shard as u64);
                endpoint.rooms.add(each);
                endpoint.received.add(1_000 * each);
                endpoint.received_bytes.add(5_000 * each);
                endpoint.round_trips.add(4);
                endpoint.round_trip_us.add(10_000 * each);
                endpoint.dropped[DropReason::Invalid.index()].add(each);
                endpoint.dropped[DropReason::Rate.index()].add(each);
                endpoint.dropped[DropReason::Forbidden.index()].add(8 * each);
                // Not the client's fault.
                endpoint.dropped[DropReason::Unsent.index()].add(500);
            }
        }
        let router = router(Arc::new(app(host, Arc::default())));
        for (name, expected) in [
            ("community", json!({"totalConnections": 20, "uniqueUsers": 8, "averageConnectionsPerUser": 2.5})),
            ("fabric", json!({"totalConnections": 400, "activeConnections": 40, "totalRooms": 4})),
            (
                "rooms",
                json!({"totalConnections": 600, "activeConnections": 60, "totalRooms": 6, "messagesPerMinute": 6_000,
                    "bytesPerMinute": 30_000, "avgLatency": 7.5}),
            ),
            ("chat", json!({"totalConnections": 800, "activeConnections": 80, "totalRooms": 8})),
            ("notify", json!({"totalConnections": 100, "authenticatedUsers": 40, "averageConnectionsPerUser": 2.25})),
        ] {
            let heard = call(&router, Method::GET, &format!("/v1/endpoints/{name}/stats"), &[BEARER]).await;
            assert_eq!((heard.status, heard.json()), (StatusCode::OK, expected), "{name}");
        }
        let heard = call(&router, Method::GET, "/v1/endpoints/chat/metrics", &[BEARER]).await;
        let mut body = heard.json();
        assert!(body["messagesPerSecond"].take().as_f64().is_some_and(|rate| rate > 0.0));
        assert_eq!(body["timestamp"].take().as_str().map(str::len), Some(24));
        let expected = json!({"totalConnections": 800, "activeConnections": 80, "totalRooms": 8, "messagesPerSecond": null,
            "averageLatency": 10.0, "errorRate": 0.01, "timestamp": null});
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn wrong_questions_are_problems() {
        let router = router(Arc::new(app(Arc::new(FakeHost::new(1)), Arc::default())));
        for what in ["stats", "metrics"] {
            for (path, status) in [
                (format!("/v1/endpoints/nothing/{what}"), 404),
                (format!("/v1/endpoints/chat/{what}?verbose=1"), 400),
                (format!("/v1/endpoints/%ff/{what}"), 400),
                (format!("/v1/endpoints//{what}"), 404),
                (format!("/v1/endpoints/chat/{what}/x"), 404),
            ] {
                let heard = call(&router, Method::GET, &path, &[BEARER]).await;
                assert_eq!((heard.status.as_u16(), &heard.json()["status"]), (status, &json!(status)), "{path}");
            }
            let path = format!("/v1/endpoints/chat/{what}");
            assert_eq!(call(&router, Method::GET, &path, &[]).await.status, StatusCode::UNAUTHORIZED);
            assert_eq!(call(&router, Method::POST, &path, &[BEARER]).await.status, StatusCode::METHOD_NOT_ALLOWED);
        }
    }
}
