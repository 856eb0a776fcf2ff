//! The admin part: probes and metrics for anybody who reaches the listener, `/v1` for who shows the admin token.
//!
//! Each call is documented above its handler; [`super::openapi`] says how.
//!
//! | call | answer |
//! |---|---|
//! | `GET /openapi.json` | this API, for programs |
//! | `GET /healthz`, `/readyz`, `/metrics` | is the process there, does it take connections, how does it do |
//! | `GET /v1/stats` | numbers of all hosts |
//! | `GET /v1/hosts` | who they are, see [`super::fleet`] |
//! | `GET /v1/events?types=` | what happens, as a stream: [`crate::events`] |
//! | `GET /v1/connections?endpoint=&user=&room=&limit=&cursor=` | connections that match all filters, by id |
//! | `GET`, `DELETE /v1/connections/{id}?reason=` | one connection; close it |
//! | `GET`, `DELETE /v1/users/{id}?reason=` | a user's connections; close them |
//! | `GET /v1/endpoints/{name}/stats`, `/metrics` | numbers of an endpoint, see [`super::endpoints`] |
//! | `POST /v1/endpoints/{name}/documents/{id}/steps` | the back end's steps, see [`super::steps`] |
//! | `POST /v1/cleanup`, `/v1/drain` | close what is inactive; stop, see [`super::maintenance`] |
//! | `POST`, `GET /v1/reload` | reload in place, and how that went, see [`super::reloading`] |
//! | `POST /v1/emit`, `/v1/batch` | an event to connections, see [`super::emit`]; many of them |
//! | `POST`, `GET /v1/rooms`, `GET`, `DELETE /v1/rooms/{id}`, `GET /v1/rooms/{id}/stats` | rooms, see [`super::rooms`] |
//! | `GET`, `PUT`, `DELETE /v1/rooms/{id}/members/{connectionId}`, `/v1/rooms/{id}/users/{userId}` | who is in, see [`super::members`] |
//! | `POST`, `GET /v1/rooms/{id}/messages` | what is said, see [`super::messages`] |

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::Question;
use engine::config::DialectKind;
use engine::ids::{EndpointId, Sid, checked_name};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Params, Problem, Segment};
use super::shapes::{Alive, Closed, Connection, Connections, Name, Readiness, ShardState, Stats, User};
use super::{Admission, App, Gathered, emit, endpoints, fleet, maintenance, members, messages, openapi, reloading, rooms, steps};
use crate::events::sse;
use crate::relay::Relay;

/// Time to make an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Bytes of a request body, where a call does not say otherwise.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;

/// Entries of a list, when the call says nothing and at most.
pub(super) const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1_000;

/// Connections shown of one user, ten times what a user may have on an endpoint by default.
const USER_CONNECTIONS_MAX: usize = 1_000;

/// Says how many shards of this host did not answer in time, on an answer made of what the others said.
pub(crate) const INCOMPLETE: &str = "uringcast-missing-shards";

/// Says how many other hosts of the fleet did not answer in time, or not all of them.
pub(crate) const HOSTS_MISSING: &str = "uringcast-missing-hosts";

/// What did not answer in time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Missing {
    /// Shards of this host.
    pub(super) shards: usize,
    /// Other hosts.
    pub(super) hosts: usize,
}

impl Missing {
    pub(super) fn of(gathered: &Gathered) -> Missing {
        Missing { shards: gathered.missing, hosts: gathered.hosts_missing }
    }

    /// Of two answers that are made one.
    pub(super) fn max(self, other: Missing) -> Missing {
        Missing { shards: self.shards.max(other.shards), hosts: self.hosts.max(other.hosts) }
    }
}

/// All calls, with what the document says of them. There are no others: a handler without a description cannot be registered.
pub(super) fn calls() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(openapi::openapi))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(stats))
        .routes(routes!(fleet::hosts))
        .routes(routes!(sse::follow))
        .routes(routes!(connections))
        .routes(routes!(connection, close_connection))
        .routes(routes!(user, close_user))
        .routes(routes!(emit::emit))
        .routes(routes!(emit::batch))
        .routes(routes!(endpoints::stats))
        .routes(routes!(endpoints::metrics))
        .routes(routes!(steps::steps))
        .routes(routes!(maintenance::cleanup))
        .routes(routes!(maintenance::drain))
        .routes(routes!(reloading::reload, reloading::reloads))
        .routes(routes!(rooms::create, rooms::list))
        .routes(routes!(rooms::show, rooms::delete))
        .routes(routes!(rooms::stats))
        .routes(routes!(members::members))
        .routes(routes!(members::enter, members::leave))
        .routes(routes!(members::enter_user, members::leave_user))
        .routes(routes!(messages::say, messages::list))
}

/// The server of all calls.
pub fn router(app: Arc<App>) -> Router {
    let (calls, _) = calls().split_for_parts();
    calls
        .fallback(|| async { Problem::not_found("no such path") })
        .method_not_allowed_fallback(|| async {
            Problem { status: StatusCode::METHOD_NOT_ALLOWED, detail: "the path does not take this method".into() }
        })
        .layer(from_fn_with_state(app.clone(), admit))
        .layer(from_fn(bound))
        .with_state(app)
}

/// Keeps a request within its bounds, and answers out of caches.
async fn bound(request: Request, next: Next) -> Response {
    let (bytes_max, time) = match request.uri().path() {
        emit::EMIT => (emit::EMIT_BYTES_MAX, emit::ANSWER_TIME),
        emit::BATCH => (emit::BATCH_BYTES_MAX, emit::ANSWER_TIME),
        path if request.method() == Method::POST && messages::is_path(path) => (emit::EMIT_BYTES_MAX, ANSWER_TIME),
        // A crowd is closed part by part.
        maintenance::CLEANUP => (BODY_BYTES_MAX, emit::ANSWER_TIME),
        path if path.ends_with(steps::STEPS_END) => (emit::EMIT_BYTES_MAX, ANSWER_TIME),
        _ => (BODY_BYTES_MAX, ANSWER_TIME),
    };
    let body_bytes = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if body_bytes.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Problem::too_large(bytes_max).into_response();
    }
    let answer = tokio::time::timeout(time, next.run(request)).await;
    let mut response = answer.unwrap_or_else(|_| Problem::unavailable("the answer took too long").into_response());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Lets through what needs no token, and who has it. It stands before the routes, so that without the token nobody learns which exist.
async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let guarded = path == "/v1" || path.starts_with("/v1/");
    match if guarded { admitted(&app.terms.admission, request.headers()) } else { Ok(()) } {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn admitted(admission: &Admission, headers: &HeaderMap) -> Result<(), Problem> {
    let expected = match admission {
        Admission::Anybody => return Ok(()),
        Admission::Nobody => return Err(Problem::unauthorized("no admin token is configured; use the Unix socket or configure one")),
        Admission::Token(token) => token,
    };
    let shown = headers.get(header::AUTHORIZATION).ok_or_else(|| Problem::unauthorized("Authorization: Bearer TOKEN is missing"))?;
    let token = bearer(shown.as_bytes()).ok_or_else(|| Problem::unauthorized("Authorization is not of the form Bearer TOKEN"))?;
    if expected.matches(token) { Ok(()) } else { Err(Problem::unauthorized("the token is wrong")) }
}

/// The token of an `Authorization` value; the scheme's case does not matter (RFC 9110 section 11.1).
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The process is there.
#[utoipa::path(get, path = "/healthz", tag = "process", responses((status = 200, description = "it answers", body = Alive)))]
async fn healthz() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Whether clients can come.
#[utoipa::path(get, path = "/readyz", tag = "process", responses(
    (status = 200, description = "new connections are let in", body = Readiness),
    (status = 503, description = "they are not", body = Readiness),
))]
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, Json<Readiness>) {
    let (accepting, relay) = (app.host.accepting(), app.relay());
    let status = match (accepting, app.all_responsive() && relay != Relay::Down) {
        (false, _) => "not_ready",
        (true, false) => "degraded",
        (true, true) => "ready",
    };
    let shards = (0..app.host.stats().len()).map(|id| ShardState { id, responsive: app.host.is_responsive(id) }).collect();
    let code = if accepting { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { status, accepting, relay: relay.label(), shards }))
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "process", responses(
    (status = 200, description = "Prometheus's text format", body = String, content_type = "text/plain"),
    (status = 500, description = "they cannot be gathered"),
))]
async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(fault) => Problem { status: StatusCode::INTERNAL_SERVER_ERROR, detail: fault.to_string() }.into_response(),
    }
}

/// No parameter at all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// Numbers of all hosts, over all endpoints.
#[utoipa::path(get, path = "/v1/stats", tag = "stats", responses((status = 200, description = "the numbers", body = Stats)))]
async fn stats(State(app): State<Arc<App>>, Params(NoQuery {}): Params<NoQuery>) -> Response {
    let (totals, missing) = app.numbers(None).await;
    answer(missing, Stats::new(&totals))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ConnectionsQuery {
    /// Only those of the endpoint with this name.
    endpoint: Option<String>,
    /// Only those of this user.
    #[param(value_type = Option<Name>)]
    user: Option<String>,
    /// Only those in this room.
    #[param(value_type = Option<Name>)]
    room: Option<String>,
    /// How many at most; 100 if it is not said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the page before ended: the `cursor` of its answer.
    cursor: Option<String>,
}

/// Connections that match all filters, by id.
#[utoipa::path(get, path = "/v1/connections", tag = "connections", params(ConnectionsQuery), responses(
    (status = 200, description = "a page of them", body = Connections),
    (status = 404, description = "no endpoint has the name"),
))]
async fn connections(State(app): State<Arc<App>>, Params(query): Params<ConnectionsQuery>) -> Result<Response, Problem> {
    let limit = limit(query.limit, LIST_DEFAULT)?;
    let endpoint = query.endpoint.map(|name| endpoint_named(&app, &name)).transpose()?;
    let user = query.user.map(|user| name(user, "user")).transpose()?;
    let room = query.room.map(|room| name(room, "room")).transpose()?;
    let after = query.cursor.map(|cursor| after_cursor(&cursor)).transpose()?;
    // One more than is shown tells whether there is a next page.
    let gathered = app.ask(Question::Connections { endpoint, user, room, after, limit: limit + 1 }).await;
    let missing = Missing::of(&gathered);
    let mut found = gathered.connections();
    let cursor = (found.len() > limit).then(|| cursor(&found[limit - 1].id));
    found.truncate(limit);
    Ok(answer(missing, Connections { connections: Connection::list(&app, &found), cursor }))
}

/// One connection.
#[utoipa::path(get, path = "/v1/connections/{id}", tag = "connections", params(("id" = String, Path, description = "Its id.")), responses(
    (status = 200, description = "the connection", body = Connection),
    (status = 404, description = "no connection has the id"),
))]
async fn connection(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Json<Connection>, Problem> {
    let gathered = app.ask(Question::Connection { id: sid(&id)? }).await;
    let missing = Missing::of(&gathered);
    match gathered.connections().first() {
        Some(found) => Ok(Json(Connection::new(&app, found))),
        None => Err(no_connection(missing)),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CloseQuery {
    /// What the client is told. A close frame takes 123 bytes of it; if it is not said, "Disconnected by administrator".
    reason: Option<String>,
}

/// Closes one connection.
#[utoipa::path(delete, path = "/v1/connections/{id}", tag = "connections", params(("id" = String, Path, description = "Its id."), CloseQuery),
    responses((status = 200, description = "it is being closed", body = Closed), (status = 404, description = "no connection has the id")))]
async fn close_connection(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(query): Params<CloseQuery>,
) -> Result<Json<Closed>, Problem> {
    let gathered = app.ask(Question::CloseConnection { id: sid(&id)?, reason: query.reason }).await;
    match gathered.closed() {
        0 => Err(no_connection(Missing::of(&gathered))),
        closed => Ok(Json(Closed { closed })),
    }
}

/// A user's connections.
#[utoipa::path(get, path = "/v1/users/{id}", tag = "users", params(("id" = Name, Path, description = "The user's id.")),
    responses((status = 200, description = "the user, who may be offline", body = User)))]
async fn user(State(app): State<Arc<App>>, Segment(id): Segment, Params(NoQuery {}): Params<NoQuery>) -> Result<Response, Problem> {
    let user = Some(name(id, "user")?);
    let question = Question::Connections { endpoint: None, user, room: None, after: None, limit: USER_CONNECTIONS_MAX };
    let gathered = app.ask(question).await;
    let missing = Missing::of(&gathered);
    let mut found = gathered.connections();
    found.truncate(USER_CONNECTIONS_MAX);
    Ok(answer(missing, User { online: !found.is_empty(), connections: Connection::list(&app, &found) }))
}

/// Closes all connections of a user.
#[utoipa::path(delete, path = "/v1/users/{id}", tag = "users", params(("id" = Name, Path, description = "The user's id."), CloseQuery),
    responses((status = 200, description = "they are being closed", body = Closed)))]
async fn close_user(State(app): State<Arc<App>>, Segment(id): Segment, Params(query): Params<CloseQuery>) -> Result<Response, Problem> {
    let gathered = app.ask(Question::CloseUser { endpoint: None, user: name(id, "user")?, reason: query.reason }).await;
    Ok(answer(Missing::of(&gathered), Closed { closed: gathered.closed() }))
}

/// The number of entries that is wanted of a list.
pub(super) fn limit(said: Option<usize>, default: usize) -> Result<usize, Problem> {
    let limit = said.unwrap_or(default);
    if (1..=LIST_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::bad_request(format!("limit is {limit}, allowed are 1 to {LIST_MAX}")))
}

/// 200, saying so when something is missing in it.
pub(super) fn answer(missing: Missing, body: impl Serialize) -> Response {
    let mut response = Json(body).into_response();
    for (name, number) in [(INCOMPLETE, missing.shards), (HOSTS_MISSING, missing.hosts)] {
        if number > 0 {
            response.headers_mut().insert(name, HeaderValue::from(number));
        }
    }
    response
}

/// While a shard is silent nobody can know that the connection is not there. What another host has counts as far as it answers.
fn no_connection(missing: Missing) -> Problem {
    match missing {
        Missing { shards: 1.., .. } => Problem::unavailable("a shard did not answer in time"),
        Missing { hosts: 1.., .. } => Problem::not_found("no such connection on the hosts that answered in time"),
        _ => Problem::not_found("no such connection"),
    }
}

pub(super) fn sid(text: &str) -> Result<Sid, Problem> {
    // Any other text is the id of no connection, which is what the caller wants to know.
    Sid::parse(text).ok_or_else(|| Problem::not_found("no such connection"))
}

pub(super) fn name(text: String, what: &str) -> Result<String, Problem> {
    match checked_name(&text) {
        Ok(_) => Ok(text),
        Err(fault) => Err(Problem::bad_request(format!("{what}: {fault}"))),
    }
}

pub(super) fn endpoint_named(app: &App, name: &str) -> Result<EndpointId, Problem> {
    let index = app.host.endpoints().iter().position(|endpoint| endpoint.name == name);
    let id = index.and_then(|index| u8::try_from(index).ok()).map(EndpointId);
    id.ok_or_else(|| Problem::not_found("no such endpoint"))
}

pub(super) fn first_rooms_endpoint(app: &App) -> Result<EndpointId, Problem> {
    let index = app.host.endpoints().iter().position(|endpoint| endpoint.dialect == DialectKind::Rooms);
    let id = index.and_then(|index| u8::try_from(index).ok()).map(EndpointId);
    id.ok_or_else(|| Problem::not_found("there is no rooms endpoint; say which one with endpoint="))
}

/// A list goes on after the id that its cursor wraps. Wrapped, so that nobody builds one: what is in it may change.
pub(super) fn cursor(last: &Sid) -> String {
    URL_SAFE_NO_PAD.encode(format!("1{last}"))
}

pub(super) fn after_cursor(cursor: &str) -> Result<String, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let id = text.as_deref().and_then(|text| text.strip_prefix('1')).filter(|id| Sid::parse(id).is_some());
    id.map(str::to_owned).ok_or_else(|| Problem::bad_request("cursor is not one of ours"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::Ordering::Relaxed;

    use serde_json::json;

    use super::super::Terms;
    use super::super::testing::{BEARER, FakeHost, Heard, TOKEN, app, call, connection, terms};
    use super::*;
    use crate::bridge::Host as _;
    use crate::bridge::Pending;
    use engine::{Answer, GrantFault};

    fn quiet(shards: usize) -> (Arc<FakeHost>, Router) {
        let host = Arc::new(FakeHost::new(shards));
        (host.clone(), router(Arc::new(app(host, Arc::default()))))
    }

    fn answering(answer: impl Fn(usize, &Question) -> Option<Answer> + Send + Sync + 'static) -> Router {
        let pending = Arc::new(Pending::default());
        let host = Arc::new(FakeHost::new(2).answering(&pending, answer));
        router(Arc::new(app(host, pending)))
    }

    async fn get_with_token(router: &Router, path: &str) -> Heard {
        call(router, Method::GET, path, &[BEARER]).await
    }

    #[tokio::test]
    async fn nothing_under_v1_is_said_without_the_token() {
        let (_, router) = quiet(1);
        let paths = [
            "/v1",
            "/v1/",
            "/v1/emit",
            "/v1/batch",
            "/v1/stats",
            "/v1/connections",
            "/v1/connections/x",
            "/v1/users/x",
            "/v1/users/x?reason=y",
            "/v1/nothing",
        ];
        let wrong = [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer wrong horse"),
            Some("Bearer correct hors"),
            Some("Bearer correct horse2"),
            Some("Basic correct horse"),
            Some("correct horse"),
        ];
        for path in paths {
            for method in [Method::GET, Method::DELETE, Method::POST, Method::PUT, Method::OPTIONS] {
                for value in wrong {
                    let headers: Vec<(&str, &str)> = value.map(|value| ("authorization", value)).into_iter().collect();
                    let heard = call(&router, method.clone(), path, &headers).await;
                    assert_eq!(heard.status, StatusCode::UNAUTHORIZED, "{method} {path} {value:?}");
                    assert_eq!(heard.header("www-authenticate"), "Bearer realm=\"uringcast\"");
                    assert_eq!(heard.json()["status"], 401);
                }
            }
        }
        let in_the_query = call(&router, Method::GET, &format!("/v1/stats?token={}", "correct%20horse"), &[]).await;
        assert_eq!(in_the_query.status, StatusCode::UNAUTHORIZED);
        let any_case = call(&router, Method::GET, "/v1/stats", &[("authorization", &format!("bearer {TOKEN}"))]).await;
        assert_eq!(any_case.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn without_a_configured_token_the_listener_decides() {
        for (admission, status) in [(Admission::Nobody, StatusCode::UNAUTHORIZED), (Admission::Anybody, StatusCode::OK)] {
            let app = App::new(Arc::new(FakeHost::new(1)), Arc::default(), Terms { admission, ..terms() });
            let router = router(Arc::new(app));
            assert_eq!(call(&router, Method::GET, "/v1/stats", &[]).await.status, status);
            assert_eq!(call(&router, Method::GET, "/healthz", &[]).await.status, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn probes_need_no_token() {
        let (host, router) = quiet(2);
        assert_eq!(call(&router, Method::GET, "/healthz", &[]).await.body, r#"{"status":"ok"}"#);
        let ready = call(&router, Method::GET, "/readyz", &[]).await;
        assert_eq!(ready.status, StatusCode::OK);
        let shards = json!([{"id": 0, "responsive": true}, {"id": 1, "responsive": true}]);
        assert_eq!(ready.json(), json!({"status": "ready", "accepting": true, "relay": "not_configured", "shards": shards}));

        let of_many = Arc::new(FakeHost::new(1).relayed());
        let router_of_many = super::router(Arc::new(app(of_many.clone(), Arc::default())));
        let relay = of_many.relay_stats().expect("it has one");
        for (connected, responsive, words) in
            [(0, true, ("degraded", "down")), (1, true, ("ready", "connected")), (1, false, ("degraded", "down"))]
        {
            relay.connected.set(connected);
            of_many.relay_responsive.store(responsive, Relaxed);
            let ready = call(&router_of_many, Method::GET, "/readyz", &[]).await;
            let said = ready.json();
            assert_eq!((ready.status, &said["status"], &said["relay"]), (StatusCode::OK, &json!(words.0), &json!(words.1)));
        }

        host.responsive.store(false, Relaxed);
        let degraded = call(&router, Method::GET, "/readyz", &[]).await;
        assert_eq!((degraded.status, &degraded.json()["status"]), (StatusCode::OK, &json!("degraded")));
        assert_eq!(degraded.json()["shards"][1], json!({"id": 1, "responsive": false}));

        host.accepting.store(false, Relaxed);
        let stopping = call(&router, Method::GET, "/readyz", &[]).await;
        assert_eq!((stopping.status, &stopping.json()["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("not_ready")));
        assert_eq!(call(&router, Method::GET, "/healthz", &[]).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn wrong_requests_are_problems() {
        let (_, router) = quiet(1);
        let long = "x".repeat(256);
        let bad = [
            "/v1/stats?verbose=1".to_owned(),
            "/v1/connections?limit=0".into(),
            "/v1/connections?limit=1001".into(),
            "/v1/connections?limit=-1".into(),
            "/v1/connections?limit=ten".into(),
            "/v1/connections?limit=1&limit=2".into(),
            "/v1/connections?colour=red".into(),
            "/v1/connections?cursor=MQ".into(),
            "/v1/connections?cursor=%20".into(),
            "/v1/connections?user=".into(),
            format!("/v1/connections?room={long}"),
            "/v1/users/a%0ab".into(),
            "/v1/users/%ff".into(),
            format!("/v1/users/{long}"),
        ];
        for (room, user) in [("r", "a%0ab"), ("r%01", "a"), (&long, "a"), ("%ff", "a"), ("r", &long)] {
            let heard = call(&router, Method::PUT, &format!("/v1/rooms/{room}/users/{user}"), &[BEARER]).await;
            assert_eq!((heard.status, &heard.json()["status"]), (StatusCode::BAD_REQUEST, &json!(400)), "{room} {user}");
        }
        for (method, query, status) in
            [(Method::PUT, "endpoint=nothing", 404), (Method::DELETE, "endpoint=nothing", 404), (Method::PUT, "x=1", 400)]
        {
            let heard = call(&router, method, &format!("/v1/rooms/r/users/a?{query}"), &[BEARER]).await;
            assert_eq!((heard.status.as_u16(), &heard.json()["status"]), (status, &json!(status)), "{query}");
        }
        for path in bad {
            let heard = get_with_token(&router, &path).await;
            assert_eq!((heard.status, heard.header("content-type")), (StatusCode::BAD_REQUEST, "application/problem+json"), "{path}");
            assert!(!heard.json()["detail"].as_str().unwrap_or("").is_empty(), "{path}");
        }
        for path in ["/", "/v1", "/v1/nothing", "/v1/connections/short", "/v1/connections?endpoint=nothing", "/stats"] {
            let heard = get_with_token(&router, path).await;
            assert_eq!((heard.status, &heard.json()["title"]), (StatusCode::NOT_FOUND, &json!("Not Found")), "{path}");
        }
        for (method, path, allow) in [(Method::POST, "/v1/stats", "GET,HEAD"), (Method::PUT, "/v1/users/x", "GET,HEAD,DELETE")] {
            let heard = call(&router, method, path, &[BEARER]).await;
            assert_eq!((heard.status, heard.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, allow));
            assert_eq!(heard.json()["status"], 405);
        }
        let large = call(&router, Method::DELETE, "/v1/users/x", &[BEARER, ("content-length", "65537")]).await;
        assert_eq!((large.status, &large.json()["status"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!(413)));
    }

    #[tokio::test]
    async fn a_connection_is_shown_as_the_contract_says() {
        let router = answering(|shard, _| {
            let found = if shard == 1 { vec![connection(1, 5, "alice")] } else { Vec::new() };
            Some(Answer::Connections(found))
        });
        let id = connection(1, 5, "alice").id.to_string();
        let heard = get_with_token(&router, &format!("/v1/connections/{id}")).await;
        let expected = json!({"id": id, "socketId": id, "endpoint": "rooms", "userId": "alice", "username": "Alice",
            "connectedAt": "2024-01-01T00:00:00.000Z", "rooms": ["lobby"], "metadata": {}});
        assert_eq!(heard.json(), expected);
        let user = get_with_token(&router, "/v1/users/alice").await;
        assert_eq!(user.json(), json!({"online": true, "connections": [expected]}));
    }

    #[tokio::test]
    async fn pages_cover_everything_once_in_order() {
        let router = answering(|shard, question| {
            let Question::Connections { after, limit, .. } = question else { return None };
            let shard = u8::try_from(shard).expect("two");
            let mut all: Vec<_> = (0..7).map(|slot| connection(shard, slot, "u")).collect();
            all.sort_by_key(|it| it.id.to_string());
            let later = all.into_iter().filter(|it| after.as_deref().is_none_or(|after| it.id.to_string().as_str() > after));
            Some(Answer::Connections(later.take(*limit).collect()))
        });
        let (mut ids, mut path, mut pages) = (Vec::new(), "/v1/connections?limit=4".to_owned(), 0);
        loop {
            let page = get_with_token(&router, &path).await.json();
            ids.extend(page["connections"].as_array().expect("a list").iter().map(|it| it["id"].as_str().expect("text").to_owned()));
            pages += 1;
            let Some(cursor) = page.get("cursor") else { break };
            path = format!("/v1/connections?limit=4&cursor={}", cursor.as_str().expect("text"));
        }
        assert_eq!((ids.len(), pages), (14, 4));
        assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
        let exactly = get_with_token(&router, "/v1/connections?limit=14").await.json();
        assert!(exactly.get("cursor").is_none(), "the last page has no cursor");
    }

    #[tokio::test]
    async fn filters_and_reasons_reach_the_engine() {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let list = asked.clone();
        let router = answering(move |shard, question| {
            if shard == 0 {
                list.lock().expect("one thread").push(format!("{question:?}"));
            }
            Some(match question {
                Question::Connections { .. } | Question::Connection { .. } => Answer::Connections(Vec::new()),
                Question::CloseConnection { .. } | Question::CloseUser { .. } => Answer::Closed(shard as u64),
                Question::Grant { .. } | Question::Revoke { .. } => Answer::Granted((shard == 1).then_some(Ok(3))),
                Question::Room(_) => Answer::Room(engine::RoomAnswer::Elsewhere),
                _ => return None,
            })
        });
        let id = connection(0, 1, "alice").id;
        get_with_token(&router, "/v1/connections?endpoint=fabric&user=al%20ice&room=a&limit=5").await;
        let one = call(&router, Method::DELETE, &format!("/v1/connections/{id}?reason=spam%20bot"), &[BEARER]).await;
        assert_eq!((one.status, one.json()), (StatusCode::OK, json!({"closed": 1})));
        let all = call(&router, Method::DELETE, "/v1/users/alice", &[BEARER]).await;
        assert_eq!((all.status, all.json()), (StatusCode::OK, json!({"closed": 1})));
        for (method, query) in [(Method::PUT, "?endpoint=notify"), (Method::DELETE, "")] {
            let heard = call(&router, method, &format!("/v1/rooms/conversation:c%201/users/b%20b{query}"), &[BEARER]).await;
            assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"connections": 3})));
        }
        let asked = asked.lock().expect("one thread").join("\n");
        for part in [
            "EndpointId(1)",
            "al ice",
            "limit: 6",
            "Some(\"spam bot\")",
            "user: \"alice\", reason: None",
            "Grant { endpoint: EndpointId(4), room: \"conversation:c 1\", user: \"b b\" }",
            "Revoke { endpoint: EndpointId(2), room: \"conversation:c 1\", user: \"b b\" }",
        ] {
            assert!(asked.contains(part), "{part} in {asked}");
        }
        let offline = get_with_token(&router, "/v1/users/nobody").await;
        assert_eq!((offline.status, offline.json()), (StatusCode::OK, json!({"online": false, "connections": []})));
        let gone = get_with_token(&router, &format!("/v1/connections/{id}")).await;
        assert_eq!(gone.status, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_shard_is_told_and_not_hidden() {
        let router = answering(|shard, _| (shard == 0).then(|| Answer::Connections(vec![connection(0, 1, "alice")])));
        let list = get_with_token(&router, "/v1/connections").await;
        assert_eq!((list.status, list.header(INCOMPLETE)), (StatusCode::OK, "1"));
        let silent = answering(|_, _| None);
        let id = connection(0, 1, "alice").id;
        assert_eq!(get_with_token(&silent, &format!("/v1/connections/{id}")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_is_put_into_rooms_by_his_home_or_not_at_all() {
        let put = async |router: &Router| call(router, Method::PUT, "/v1/rooms/r/users/a", &[BEARER]).await;
        let full = answering(|shard, _| Some(Answer::Granted((shard == 0).then_some(Err(GrantFault::OfUser)))));
        let heard = put(&full).await;
        assert_eq!((heard.status, &heard.json()["detail"]), (StatusCode::CONFLICT, &json!(GrantFault::OfUser.to_string())));
        let silent = answering(|shard, _| (shard == 0).then_some(Answer::Granted(None)));
        assert_eq!(put(&silent).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn stats_are_the_rooms_shape_over_all_endpoints() {
        use crate::bridge::Host as _;
        let (host, router) = quiet(2);
        for (shard, stats) in host.stats().iter().enumerate() {
            for endpoint in &stats.endpoints[..3] {
                endpoint.accepted.add(10);
                endpoint.connections.add(2 + shard as u64);
                endpoint.rooms.add(1);
                endpoint.received.add(5);
                endpoint.received_bytes.add(50);
            }
            stats.round_trips.add(2);
            stats.round_trip_us.add(2_500);
        }
        let heard = get_with_token(&router, "/v1/stats").await;
        let expected = json!({"totalConnections": 60, "activeConnections": 15, "totalRooms": 6, "messagesPerMinute": 30,
            "bytesPerMinute": 300, "avgLatency": 1.25});
        assert_eq!(heard.json(), expected);
        assert_eq!(heard.header("cache-control"), "no-store");
    }

    #[test]
    fn a_cursor_is_only_what_we_made() {
        let id = connection(1, 2, "a").id;
        assert_eq!(after_cursor(&cursor(&id)), Ok(id.to_string()));
        for bad in ["", "MQ", &id.to_string(), &URL_SAFE_NO_PAD.encode(id.to_string()), &URL_SAFE_NO_PAD.encode([0xff; 21])] {
            assert!(after_cursor(bad).is_err(), "{bad}");
        }
    }
}
