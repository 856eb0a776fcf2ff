//! The health documents of the replaced servers on the public port, each where its load balancers look. All of them are 503 while new
//! connections are turned away or a shard does not respond, and 200 else: a relay that is down only degrades, because what happens on
//! this host goes on.
//!
//! A document counts what is its dialect's, on all endpoints bound to it: each old server knew only its own clients, and whoever reads
//! its page (an alarm, a graph, a count of users) expects these numbers to stay what they were. Whether the process is well is one
//! answer for all.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use engine::config::DialectKind;
use serde_json::{Value, json};

use super::App;
use super::rates::average;
use crate::relay::Relay;

/// Where load balancers of the old community server look.
pub const COMMUNITY_PATH: &str = "/api/community/ws/health";

/// Where those of the old chat server look.
pub const CHAT_PATH: &str = "/ready";

/// Where those of the old notify server look.
pub const NOTIFY_PATH: &str = "/health";

/// All of them; nothing else may be bound there.
pub const PATHS: [&str; 3] = [COMMUNITY_PATH, CHAT_PATH, NOTIFY_PATH];

/// The three documents.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route(COMMUNITY_PATH, get(community)).route(CHAT_PATH, get(chat)).route(NOTIFY_PATH, get(notify))
}

impl App {
    /// True exactly when new connections are let in and every shard turns.
    fn is_well(&self) -> bool {
        self.host.accepting() && self.all_responsive()
    }
}

fn status(well: bool) -> StatusCode {
    if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

async fn community(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let connections = app.sum(Some(DialectKind::Community), |it| it.connections.read());
    let users = app.sum(Some(DialectKind::Community), |it| it.users.read());
    let well = app.is_well();
    let websocket = json!({"totalConnections": connections, "uniqueUsers": users, "averageConnectionsPerUser": average(connections, users), "isHealthy": well});
    // Without Redis neither is connected, and that is its healthy state. This process is one subscriber: a channel is one subscription.
    let relay = app.relay();
    let (is_connected, subscriptions) = match relay {
        Relay::Connected { subscriptions, .. } => (true, subscriptions),
        Relay::Down | Relay::NotConfigured => (false, 0),
    };
    let pubsub = json!({"isHealthy": relay != Relay::Down, "publisherConnected": is_connected, "subscriberConnected": is_connected,
        "subscribedChannels": subscriptions, "totalSubscriptions": subscriptions});
    (status(well), Json(json!({"success": true, "data": {"websocket": websocket, "pubsub": pubsub, "timestamp": now()}})))
}

async fn chat(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let well = app.is_well();
    let relay = app.relay();
    let state = match (well, relay) {
        (false, _) => "unhealthy",
        (true, Relay::Down) => "degraded",
        (true, Relay::NotConfigured | Relay::Connected { .. }) => "healthy",
    };
    let mut websocket = json!({
        "status": state,
        "connections": app.sum(Some(DialectKind::Chat), |it| it.connections.read()),
        "rooms": app.sum(Some(DialectKind::Chat), |it| it.rooms.read()),
        "uptime": app.uptime_ms(),
        "timestamp": now(),
    });
    // Where nobody has answered yet there is no number: it would be a measurement.
    let (is_connected, latency_ms) = match relay {
        Relay::Connected { latency_ms, .. } => (true, latency_ms),
        Relay::Down | Relay::NotConfigured => (false, None),
    };
    if relay != Relay::NotConfigured {
        websocket["redis"] = json!({"connected": is_connected, "latency": latency_ms});
    }
    let ready = if well { "ready" } else { "not_ready" };
    // There is no database of ours that could be missing; the cache of the old server was its Redis.
    (status(well), Json(json!({"database": true, "cache": is_connected, "websocket": websocket, "status": ready})))
}

async fn notify(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let well = app.is_well();
    let (redis, redis_is_well) = match app.relay() {
        Relay::NotConfigured => ("not_configured", true),
        Relay::Down => ("disconnected", false),
        Relay::Connected { .. } => ("connected", true),
    };
    let websocket = json!({
        "status": "active",
        "connections": app.sum(Some(DialectKind::Notify), |it| it.connections.read()),
        "authenticatedUsers": app.sum(Some(DialectKind::Notify), |it| it.users.read()),
    });
    let services = json!({"database": "not_configured", "redis": redis, "websocket": websocket});
    let state = if well && redis_is_well { "ok" } else { "degraded" };
    (status(well), Json(json!({"status": state, "timestamp": now(), "services": services})))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use axum::http::Method;

    use super::super::testing::{FakeHost, Heard, app, call, terms};
    use super::super::{Origins, Terms, public};
    use super::*;
    use crate::bridge::Host as _;

    /// Two shards that count something on every endpoint, each in its own power of ten.
    fn busy() -> Arc<FakeHost> {
        let host = Arc::new(FakeHost::new(2));
        for (shard, stats) in host.stats().iter().enumerate() {
            for (index, endpoint) in stats.endpoints.iter().enumerate() {
                let digit = 10_u64.pow(index as u32);
                endpoint.connections.add(digit * (3 - shard as u64));
                endpoint.users.add(digit * (2 * shard as u64 + 1));
                endpoint.rooms.add(digit);
            }
        }
        host
    }

    fn plain(host: &Arc<FakeHost>) -> Router {
        public::router(Arc::new(app(host.clone(), Arc::default())))
    }

    fn with(host: &Arc<FakeHost>, terms: Terms) -> Router {
        public::router(Arc::new(App::new(host.clone(), Arc::default(), terms)))
    }

    /// The document, after its time has been looked at and taken out.
    fn timeless(heard: &Heard, pointer: &str) -> Value {
        let mut body = heard.json();
        let timestamp = body.pointer_mut(pointer).expect("a time").take();
        let timestamp = timestamp.as_str().expect("text");
        assert_eq!((timestamp.len(), &timestamp[23..]), (24, "Z"), "{timestamp}");
        body
    }

    async fn get(router: &Router, path: &str) -> Heard {
        call(router, Method::GET, path, &[]).await
    }

    #[tokio::test]
    async fn community_is_the_old_servers_document() {
        let host = busy();
        let router = plain(&host);
        let heard = get(&router, COMMUNITY_PATH).await;
        let websocket = json!({"totalConnections": 5, "uniqueUsers": 4, "averageConnectionsPerUser": 1.25, "isHealthy": true});
        let pubsub = json!({"isHealthy": true, "publisherConnected": false, "subscriberConnected": false, "subscribedChannels": 0,
            "totalSubscriptions": 0});
        assert_eq!(heard.status, StatusCode::OK);
        let expected = json!({"success": true, "data": {"websocket": websocket, "pubsub": pubsub, "timestamp": null}});
        assert_eq!(timeless(&heard, "/data/timestamp"), expected);

        host.responsive.store(false, Relaxed);
        let ill = get(&router, COMMUNITY_PATH).await;
        assert_eq!(ill.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((&ill.json()["success"], &ill.json()["data"]["websocket"]["isHealthy"]), (&json!(true), &json!(false)));
        let of_many = Arc::new(FakeHost::new(1).relayed());
        let pubsub = async || get(&plain(&of_many), COMMUNITY_PATH).await.json()["data"]["pubsub"].take();
        assert_eq!(pubsub().await["isHealthy"], json!(false), "Redis is not reached");
        let relay = of_many.relay_stats().expect("it has one");
        relay.connected.set(1);
        relay.subscriptions.set(5);
        let expected = json!({"isHealthy": true, "publisherConnected": true, "subscriberConnected": true, "subscribedChannels": 5,
            "totalSubscriptions": 5});
        assert_eq!(pubsub().await, expected);
        let empty = get(&plain(&Arc::new(FakeHost::new(1))), COMMUNITY_PATH).await;
        assert_eq!(empty.json()["data"]["websocket"]["averageConnectionsPerUser"], json!(0.0));
    }

    #[tokio::test]
    async fn ready_is_the_chat_servers_document() {
        let host = busy();
        let heard = get(&plain(&host), CHAT_PATH).await;
        let mut body = timeless(&heard, "/websocket/timestamp");
        assert!(body["websocket"]["uptime"].take().as_u64().is_some_and(|ms| ms < 60_000));
        let websocket = json!({"status": "healthy", "connections": 5_000, "rooms": 2_000, "uptime": null, "timestamp": null});
        assert_eq!(heard.status, StatusCode::OK);
        assert_eq!(body, json!({"database": true, "cache": false, "websocket": websocket, "status": "ready"}));

        let host = Arc::new(FakeHost::new(2).relayed());
        let router = plain(&host);
        let degraded = get(&router, CHAT_PATH).await;
        let body = degraded.json();
        assert_eq!((degraded.status, &body["websocket"]["status"]), (StatusCode::OK, &json!("degraded")));
        assert_eq!((&body["status"], &body["cache"]), (&json!("ready"), &json!(false)));
        assert_eq!(body["websocket"]["redis"], json!({"connected": false, "latency": null}));
        let relay = host.relay_stats().expect("it has one");
        relay.connected.set(1);
        let body = get(&router, CHAT_PATH).await.json();
        assert_eq!(body["websocket"]["redis"], json!({"connected": true, "latency": null}));
        relay.round_trip_us.set(1_234);
        let body = get(&router, CHAT_PATH).await.json();
        assert_eq!((&body["websocket"]["status"], &body["cache"]), (&json!("healthy"), &json!(true)));
        assert_eq!(body["websocket"]["redis"], json!({"connected": true, "latency": 1.234}));
        host.accepting.store(false, Relaxed);
        let ill = get(&router, CHAT_PATH).await;
        let body = ill.json();
        assert_eq!((ill.status, &body["websocket"]["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unhealthy")));
        assert_eq!(body["status"], json!("not_ready"));
    }

    #[tokio::test]
    async fn health_is_the_notify_servers_document() {
        let host = busy();
        let heard = get(&plain(&host), NOTIFY_PATH).await;
        let websocket = json!({"status": "active", "connections": 50_000, "authenticatedUsers": 40_000});
        let services = json!({"database": "not_configured", "redis": "not_configured", "websocket": websocket});
        assert_eq!(heard.status, StatusCode::OK);
        assert_eq!(timeless(&heard, "/timestamp"), json!({"status": "ok", "timestamp": null, "services": services}));

        let of_many = Arc::new(FakeHost::new(1).relayed());
        let degraded = get(&plain(&of_many), NOTIFY_PATH).await;
        let body = degraded.json();
        assert_eq!((degraded.status, &body["status"]), (StatusCode::OK, &json!("degraded")));
        assert_eq!(body["services"]["redis"], json!("disconnected"));
        of_many.relay_stats().expect("it has one").connected.set(1);
        let body = get(&plain(&of_many), NOTIFY_PATH).await.json();
        assert_eq!((&body["status"], &body["services"]["redis"]), (&json!("ok"), &json!("connected")));
        host.responsive.store(false, Relaxed);
        let ill = get(&plain(&host), NOTIFY_PATH).await;
        assert_eq!((ill.status, &ill.json()["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("degraded")));
    }

    #[tokio::test]
    async fn all_documents_answer_head_and_allowed_origins() {
        let host = busy();
        let router = with(&host, Terms { origins: Origins::Listed(vec!["https://app.example".into()]), ..terms() });
        for path in PATHS {
            let head = call(&router, Method::HEAD, path, &[]).await;
            assert_eq!((head.status, head.body.as_str(), head.header("content-type")), (StatusCode::OK, "", "application/json"), "{path}");
            assert_ne!(head.header("content-length"), "", "{path}");
            let wrong_method = call(&router, Method::POST, path, &[]).await;
            assert_eq!((wrong_method.status, wrong_method.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD"));
            for (origin, allowed) in [("https://app.example", "https://app.example"), ("https://app.example.evil", ""), ("null", "")] {
                let heard = call(&router, Method::GET, path, &[("origin", origin)]).await;
                let headers = [heard.header("access-control-allow-origin"), heard.header("vary"), heard.header("cache-control")];
                assert_eq!(headers, [allowed, "Origin", "no-store"], "{path}");
            }
        }
    }
}
