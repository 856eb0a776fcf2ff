//! The public part: what the engine's public port hands over because it is plain HTTP. Each connection gets one answer and is closed.
//!
//! | request | answer |
//! |---|---|
//! | `GET /api/community/ws/health`, `/ready`, `/health` | the health documents of the replaced servers ([`super::health`]) |
//! | `/api/community/messages` | messages of community ([`super::community`]) |
//! | a WebSocket path without an upgrade | 426 |
//! | a file of the Socket.IO client | that file, where a folder with them is configured |
//! | `GET /`, `GET /dev/token?sub=` | the demo page and its tokens, only in `--dev` |
//! | anything else | 404 |

use std::net::TcpStream;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::Handover;
use engine::ids::checked_name;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::community;
use super::connection::{self, PUBLIC};
use super::health;
use super::pause::Pause;
use super::prefixed::Prefixed;
use super::problem::Params;
use super::{App, Origins};
use crate::bridge::HANDOVERS_MAX;

/// Two tabs that chat, in one file. `NONCE` in it stands for the one random value of each answer.
const DEMO: &str = include_str!("../../web/demo.html");

/// Serves handed-over connections until nobody hands over any more.
pub async fn serve(mut handovers: mpsc::Receiver<Handover>, router: Router, pause: Arc<Pause>) {
    let places = Arc::new(Semaphore::new(HANDOVERS_MAX));
    while let (Ok(place), Some(handover)) = (places.clone().acquire_owned().await, handovers.recv().await) {
        let stream = TcpStream::from(handover.fd);
        // Fails only for a descriptor that is no socket any more; then there is nobody to answer.
        let Ok(stream) = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) else { continue };
        let (router, pause) = (router.clone(), pause.clone());
        tokio::spawn(async move {
            connection::serve(Prefixed::new(handover.read, stream), router, PUBLIC, &pause).await;
            drop(place);
        });
    }
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    let mut router = health::routes();
    if app.terms.dev.is_some() {
        router = router.route("/", get(demo)).route("/dev/token", get(dev_token));
    }
    router
        .fallback(unserved)
        .method_not_allowed_fallback(|| async { refusal(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "Method not allowed") })
        .layer(from_fn_with_state(app.clone(), finish))
        .with_state(app)
}

/// The old REST servers' form of an error.
pub(super) fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({"success": false, "error": {"code": code, "message": message}}))).into_response()
}

/// What every answer carries: no guessing of its type, no cache unless it says so itself, and whether other sites may read it.
async fn finish(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let readable_elsewhere = !request.uri().path().starts_with("/dev/");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if readable_elsewhere {
        allow_origin(&app.terms.origins, origin, headers);
    }
    response
}

fn allow_origin(origins: &Origins, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
    match origins {
        Origins::Any => drop(headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"))),
        Origins::Listed(listed) => {
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
            let Some(origin) = origin.filter(|origin| listed.iter().any(|it| it.as_bytes() == origin.as_bytes())) else { return };
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

async fn unserved(State(app): State<Arc<App>>, request: Request) -> Response {
    if let Some(file) = app.terms.bundle.as_ref().and_then(|bundle| bundle.answer(&request)) {
        return file;
    }
    let request = match community::answer(&app, request).await {
        Ok(answer) => return answer,
        Err(request) => request,
    };
    let path = request.uri().path();
    let upgrades = app.host.endpoints().iter().any(|endpoint| !endpoint.dialect.is_socket_io() && endpoint.bind == path);
    match (upgrades, request.method()) {
        (false, _) => refusal(StatusCode::NOT_FOUND, "NOT_FOUND", "Not found"),
        (true, &Method::GET | &Method::HEAD) => {
            let mut response = refusal(StatusCode::UPGRADE_REQUIRED, "UPGRADE_REQUIRED", "This path speaks WebSocket");
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade, close"));
            response
        }
        (true, _) => {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "Method not allowed");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            response
        }
    }
}

async fn demo() -> Response {
    let nonce = STANDARD.encode(rand::random::<[u8; 16]>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, DEMO.replace("NONCE", &nonce)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenQuery {
    sub: String,
}

/// A token for anybody who asks by name: the page's, and only in `--dev`. Pages of other sites are turned away, although browsers would
/// not let them read the answer.
async fn dev_token(State(app): State<Arc<App>>, headers: HeaderMap, Params(query): Params<TokenQuery>) -> Response {
    let site = headers.get("sec-fetch-site").map_or(&b"none"[..], HeaderValue::as_bytes);
    let Some(dev) = app.terms.dev.as_ref().filter(|_| site == b"none" || site == b"same-origin") else {
        return refusal(StatusCode::FORBIDDEN, "FORBIDDEN", "Only for the demo page");
    };
    let sub = match checked_name(&query.sub) {
        Ok(sub) => sub,
        Err(fault) => return refusal(StatusCode::BAD_REQUEST, "INVALID_NAME", &fault.to_string()),
    };
    match dev.token(sub) {
        Some(token) => Json(json!({"token": token})).into_response(),
        None => refusal(StatusCode::NOT_IMPLEMENTED, "NO_SECRET", "Tokens are verified with a public key: bring your own"),
    }
}

#[cfg(test)]
mod tests {

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::testing::{FakeHost, app, call, terms};
    use super::super::{Dev, Terms};
    use super::*;
    use crate::secret::Secret;

    fn plain(host: &Arc<FakeHost>) -> Router {
        router(Arc::new(app(host.clone(), Arc::default())))
    }

    fn with(terms: Terms) -> Router {
        router(Arc::new(App::new(Arc::new(FakeHost::new(1)), Arc::default(), terms)))
    }

    fn dev() -> Router {
        let secret = Secret::new(b"only for this test").expect("not empty");
        with(Terms { dev: Some(Dev { secret: Some(secret) }), origins: Origins::Any, ..terms() })
    }

    #[tokio::test]
    async fn what_is_not_spoken_here_is_told_so() {
        let router = plain(&Arc::new(FakeHost::new(1)));
        for path in ["/api/community/ws", "/api/community/ws?token=x", "/ws/fabric"] {
            let heard = call(&router, Method::GET, path, &[]).await;
            assert_eq!((heard.status, heard.header("upgrade")), (StatusCode::UPGRADE_REQUIRED, "websocket"), "{path}");
            assert_eq!(call(&router, Method::POST, path, &[]).await.header("allow"), "GET");
        }
        for path in ["/", "/dev/token?sub=alice", "/nothing", "/ws", "/ws/fabric/", "/v1/stats", "/metrics", "/healthz"] {
            let heard = call(&router, Method::GET, path, &[]).await;
            assert_eq!((heard.status, &heard.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("NOT_FOUND")), "{path}");
        }
        let wrong_method = call(&router, Method::POST, health::COMMUNITY_PATH, &[]).await;
        assert_eq!((wrong_method.status, wrong_method.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD"));
    }

    #[tokio::test]
    async fn the_demo_page_runs_only_its_own_code() {
        let router = dev();
        let one = call(&router, Method::GET, "/", &[]).await;
        let two = call(&router, Method::GET, "/", &[]).await;
        let policy = one.header("content-security-policy");
        let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
        assert_ne!(policy, two.header("content-security-policy"));
        assert_eq!((one.header("x-content-type-options"), one.header("content-type")), ("nosniff", "text/html; charset=utf-8"));
        assert_eq!(one.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "one style and one script");
        assert_eq!((one.body.matches("<script").count(), one.body.matches("<style").count()), (1, 1));
        assert!(!one.body.contains("NONCE") && !one.body.contains("https://") && !one.body.contains("innerHTML"));
        for attribute in [" style=", " onclick=", " onload=", " onsubmit=", " oninput="] {
            assert!(!one.body.contains(attribute), "{attribute} would need a weaker policy");
        }
    }

    #[tokio::test]
    async fn dev_tokens_are_for_names_and_for_our_own_page() {
        let router = dev();
        let token = call(&router, Method::GET, "/dev/token?sub=alice", &[("sec-fetch-site", "same-origin"), ("origin", "http://x")]).await;
        assert_eq!(token.status, StatusCode::OK);
        assert_eq!(token.json()["token"].as_str().map(|token| token.split('.').count()), Some(3));
        assert_eq!(token.header("access-control-allow-origin"), "");
        let foreign = call(&router, Method::GET, "/dev/token?sub=alice", &[("sec-fetch-site", "cross-site")]).await;
        assert_eq!(foreign.status, StatusCode::FORBIDDEN);
        for bad in ["/dev/token", "/dev/token?sub=", "/dev/token?sub=a%00b", "/dev/token?sub=a&admin=1"] {
            assert_eq!(call(&router, Method::GET, bad, &[]).await.status, StatusCode::BAD_REQUEST, "{bad}");
        }
        let keyed = with(Terms { dev: Some(Dev { secret: None }), ..terms() });
        assert_eq!(call(&keyed, Method::GET, "/dev/token?sub=alice", &[]).await.status, StatusCode::NOT_IMPLEMENTED);
    }

    #[tokio::test]
    async fn only_allowed_origins_may_read() {
        let any = call(&dev(), Method::GET, health::COMMUNITY_PATH, &[("origin", "http://x")]).await;
        assert_eq!((any.header("access-control-allow-origin"), any.header("access-control-allow-credentials")), ("*", ""));
        let router = with(Terms { origins: Origins::Listed(vec!["https://app.example".into()]), ..terms() });
        for (origin, allowed) in [("https://app.example", "https://app.example"), ("https://app.example.evil", ""), ("null", "")] {
            let heard = call(&router, Method::GET, health::COMMUNITY_PATH, &[("origin", origin)]).await;
            assert_eq!((heard.header("access-control-allow-origin"), heard.header("vary")), (allowed, "Origin"));
        }
    }

    #[tokio::test]
    async fn a_handed_over_socket_gets_one_answer_to_what_was_read_before() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let (handovers, queue) = mpsc::channel(4);
        let server = tokio::spawn(serve(queue, plain(&Arc::new(FakeHost::new(1))), Arc::default()));
        for (read, later, status) in [
            ("GET /ws/fabric HTTP/1.1\r\nhost: x\r\n\r\n", "", "HTTP/1.1 426 Upgrade Required"),
            ("GET /api/community/ws/health HTTP/1.1\r\nho", "st: x\r\n\r\n", "HTTP/1.1 200 OK"),
        ] {
            let mut client = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a listener");
            let (stream, peer) = listener.accept().expect("a client");
            handovers.send(Handover { fd: stream.into(), peer, read: read.as_bytes().to_vec() }).await.expect("served");
            client.write_all(later.as_bytes()).await.expect("open");
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.expect("text");
            assert!(heard.starts_with(status) && heard.to_lowercase().contains("close\r\n"), "{heard}");
        }
        drop(handovers);
        server.await.expect("ends with its queue");
    }
}
