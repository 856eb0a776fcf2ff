//! Messages of community over HTTP, on the public port. The endpoint that is bound at `P/ws` has them at `P/messages` (one that is bound
//! elsewhere, at `B`, at `B/messages`).
//!
//! | call | answer |
//! |---|---|
//! | `POST P/messages {content, roomId or groupId}` | 201, the message, kept and then told to the channel |
//! | `PATCH P/messages/{id} {content}` | 200, the message, told to the channel; by its author, while he may enter the channel |
//! | `DELETE P/messages/{id}` | 200, taken back, told to the channel; by its author only |
//! | `GET P/messages?roomId= or groupId=&limit=&before=` | 200, messages, newest first |
//! | `OPTIONS` of both | 204, what pages of other origins may do |
//!
//! A caller shows `Authorization: Bearer` with a token as clients have, there and nowhere else: no page can make a browser send one that
//! its user did not give it. Into which channels he may write, and of which he may read, is decided as for SUBSCRIBE. What he has said he
//! may take back, also where he is no member any more.
//! Where a webhook decides who connects, it is asked for each call, too, and what it says of the caller counts.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, Request};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use engine::auth::{AuthFault, Identity};
use engine::config::{DialectKind, Membership};
use engine::dialect::Change;
use engine::dialect::community::{Author, Broadcast, CONTENT, Channel, Message, content};
use engine::ids::{EndpointId, MessageId, Room, checked_name, new_message_id};
use engine::json::{Object, Scratch, Value};
use engine::{Answer, NotAuthor, Post, Proposal, Question, Range, Revision, Ruling, Standing};
use serde_json::json;

use super::admin::bearer;
use super::problem::whole_body;
use super::public::refusal;
use super::{App, monotonic_ms, unix_ms};
use crate::bridge::{ANSWER_WAIT, Gathered};

/// Bytes of a body: a content of as many characters as are allowed, each written as two escapes, and some for the rest.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Messages of one list (contract).
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 100;

const LIMIT_FAULT: Fault = Fault::Invalid("limit is 1 to 100");
const CONTENT_FAULT: Fault = Fault::Invalid("content is a text of 1 to 4000 characters");

const NOT_TO_BE_SAID: Fault = Fault::Forbidden("Not allowed to send this message");

/// Seconds for which browsers remember what they may do: what is configured changes with a restart.
const PREFLIGHT_SECONDS: &str = "600";

/// Where an endpoint that is bound there has its messages.
pub fn path_of(dialect: DialectKind, bind: &str) -> Option<String> {
    (dialect == DialectKind::Community).then(|| format!("{}/messages", bind.strip_suffix("/ws").unwrap_or(bind)))
}

/// True exactly when a path is one of those that begin with `messages`.
pub fn is_below(path: &str, messages: &str) -> bool {
    path.strip_prefix(messages).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where a request goes.
struct Place {
    endpoint: EndpointId,
    /// Of one message; all of them if there is none.
    id: Option<String>,
}

impl Place {
    fn of(app: &App, path: &str) -> Option<Place> {
        app.host.endpoints().iter().enumerate().find_map(|(index, endpoint)| {
            let rest = path.strip_prefix(&path_of(endpoint.dialect, &endpoint.bind)?)?;
            let id = if rest.is_empty() { None } else { Some(rest.strip_prefix('/')?.to_owned()) };
            Some(Place { endpoint: EndpointId(u8::try_from(index).ok()?), id })
        })
    }

    /// The methods it takes, as `Allow` lists them.
    fn methods(&self) -> &'static str {
        if self.id.is_some() { "PATCH, DELETE, OPTIONS" } else { "GET, POST, OPTIONS" }
    }
}

/// Who calls.
struct Caller {
    endpoint: EndpointId,
    identity: Arc<Identity>,
}

/// Why a call is refused.
#[derive(Debug)]
enum Fault {
    /// The request's own words are wrong.
    Invalid(&'static str),
    /// No token, or a bad one.
    Unauthorized(AuthFault),
    /// Not a channel that he may enter, or not his message.
    Forbidden(&'static str),
    /// The same, in the back end's words.
    Denied(Box<str>),
    /// No message has the id.
    NotFound,
    /// The path does not take this method.
    Method(&'static str),
    /// The body is too large.
    TooLarge,
    /// Over the rate; so many milliseconds to wait.
    TooMany(u64),
    /// A shard did not answer, or the host keeps as many rooms as it may: the same call may succeed later.
    Unavailable,
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let (status, code, message) = match &self {
            Fault::Invalid(message) => (StatusCode::BAD_REQUEST, "INVALID_MESSAGE", *message),
            Fault::Unauthorized(AuthFault::Missing) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "Authentication token required"),
            Fault::Unauthorized(AuthFault::Invalid) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "Invalid authentication token"),
            Fault::Unauthorized(AuthFault::Expired) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "Authentication token expired"),
            Fault::Denied(message) => (StatusCode::FORBIDDEN, "FORBIDDEN", &**message),
            Fault::Forbidden(message) => (StatusCode::FORBIDDEN, "FORBIDDEN", *message),
            Fault::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND", "No such message"),
            Fault::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "Method not allowed"),
            Fault::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", "The body is too large"),
            Fault::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "RATE_LIMIT_EXCEEDED", "Rate limit exceeded"),
            Fault::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "Try again later"),
        };
        let mut response = refusal(status, code, message);
        let header = match self {
            Fault::Unauthorized(_) => Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Fault::Method(allowed) => Some((header::ALLOW, HeaderValue::from_static(allowed))),
            Fault::TooMany(wait_ms) => Some((header::RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1_000)))),
            Fault::Unavailable => Some((header::RETRY_AFTER, HeaderValue::from(1))),
            _ => None,
        };
        response.headers_mut().extend(header);
        response
    }
}

/// Answers a request for messages; gives back one that is for something else.
pub async fn answer(app: &App, request: Request) -> Result<Response, Request> {
    let Some(place) = Place::of(app, request.uri().path()) else { return Err(request) };
    if request.method() == Method::OPTIONS {
        return Ok(preflight(place.methods()));
    }
    Ok(called(app, &place, request).await.unwrap_or_else(IntoResponse::into_response))
}

/// What a browser asks before it calls for a page of another origin. Whether that origin may is said on every answer.
fn preflight(methods: &'static str) -> Response {
    let headers = [
        (header::ALLOW, methods),
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

async fn called(app: &App, place: &Place, request: Request) -> Result<Response, Fault> {
    let (id, method) = (place.id.as_deref(), request.method().clone());
    if !matches!((id, &method), (None, &Method::POST | &Method::GET) | (Some(_), &Method::PATCH | &Method::DELETE)) {
        return Err(Fault::Method(place.methods()));
    }
    let mut caller = Caller { endpoint: place.endpoint, identity: identity(app, &request)? };
    if let Err(wait_ms) = app.throttle().take(&caller.identity.user, monotonic_ms()) {
        app.metrics.count_rate_limited(usize::from(place.endpoint.0));
        return Err(Fault::TooMany(wait_ms));
    }
    if app.host.endpoints()[usize::from(place.endpoint.0)].connect_hook {
        let visitor = visitor(&caller, &request);
        caller = ruled(app, caller, visitor).await?;
    }
    if method != Method::GET && request.uri().query().is_some_and(|query| !query.is_empty()) {
        return Err(Fault::Invalid("There are no parameters here"));
    }
    if method != Method::GET {
        caller = hiding(app, caller).await;
    }
    match (id, method) {
        (None, Method::POST) => post(app, &caller, &body(request).await?).await,
        (None, _) => list(app, &caller, request.uri()).await,
        (Some(id), Method::PATCH) => edit(app, &caller, message_id(id)?, &body(request).await?).await,
        (Some(id), _) => remove(app, &caller, message_id(id)?).await,
    }
}

/// Whose token the request shows; in its header, for a cookie or a link may be another site's doing.
fn identity(app: &App, request: &Request) -> Result<Arc<Identity>, Fault> {
    let missing = Fault::Unauthorized(AuthFault::Missing);
    let mut shown = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (shown.next(), shown.next()) else { return Err(missing) };
    let token = bearer(only.as_bytes()).ok_or(missing)?;
    let token = std::str::from_utf8(token).map_err(|_| Fault::Unauthorized(AuthFault::Invalid))?;
    app.host.verify(token).map(Arc::new).map_err(Fault::Unauthorized)
}

/// What the back end is told of a caller.
fn visitor(caller: &Caller, request: &Request) -> engine::Caller {
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(Box::from);
    engine::Caller {
        origin: text(header::ORIGIN),
        user_agent: text(header::USER_AGENT),
        claims: caller.identity.claims().map(Box::from),
        ..engine::Caller::default()
    }
}

/// Who the back end says the caller is, where it decides who may be here: it is asked for every call, as for every connection.
async fn ruled(app: &App, caller: Caller, visitor: engine::Caller) -> Result<Caller, Fault> {
    let refused = Fault::Forbidden("Not allowed to connect");
    let Some(hooks) = &app.terms.hooks else { return Err(refused) };
    match hooks.may_connect(caller.endpoint, &visitor).await {
        Ruling::Allowed(changes) => {
            let dialect = app.host.endpoints()[usize::from(caller.endpoint.0)].dialect;
            Ok(Caller { identity: Arc::new(changes.applied_to(&caller.identity, dialect)), ..caller })
        }
        Ruling::Refused(reason) => Err(reason.map_or(refused, Fault::Denied)),
        Ruling::Unavailable => Err(Fault::Unavailable),
    }
}

async fn body(request: Request) -> Result<String, Fault> {
    let bytes = whole_body(request, BODY_BYTES_MAX).await.map_err(|problem| match problem.status {
        StatusCode::PAYLOAD_TOO_LARGE => Fault::TooLarge,
        _ => Fault::Invalid("The body is not whole"),
    })?;
    String::from_utf8(bytes.into()).map_err(|_| Fault::Invalid("The body is not UTF-8"))
}

/// Any other text is the id of no message.
fn message_id(text: &str) -> Result<MessageId, Fault> {
    MessageId::try_parse(text).ok().filter(|id| id.to_string() == text).ok_or(Fault::NotFound)
}

/// Whether the endpoint's membership source lets the caller into a channel, to write and to read: as for SUBSCRIBE.
async fn may_enter(app: &App, caller: &Caller, channel: Channel<'_>) -> Result<(), Fault> {
    let endpoint = &app.host.endpoints()[usize::from(caller.endpoint.0)];
    let refused = Fault::Forbidden("Not a member of this channel");
    if in_redis(app, caller) {
        let answer = app.host.fleet().map(|fleet| fleet.is_member(channel.room(), caller.identity.user.clone()));
        return match within(answer).await {
            Some(true) => Ok(()),
            Some(false) => Err(refused),
            None => Err(Fault::Unavailable),
        };
    }
    if endpoint.membership != Membership::Webhook {
        return if channel.admits(endpoint, Some(&caller.identity)) { Ok(()) } else { Err(refused) };
    }
    // Where nobody can be asked, nobody is let in.
    let Some(hooks) = &app.terms.hooks else { return Err(refused) };
    match hooks.may_join(caller.endpoint, &caller.identity.user, None, &channel.room()).await {
        Ruling::Allowed(_) => Ok(()),
        Ruling::Refused(reason) => Err(reason.map_or(refused, Fault::Denied)),
        Ruling::Unavailable => Err(Fault::Unavailable),
    }
}

/// True exactly when a set in Redis says who may enter a channel.
fn in_redis(app: &App, caller: &Caller) -> bool {
    let endpoint = &app.host.endpoints()[usize::from(caller.endpoint.0)];
    let has_lists = caller.identity.rooms().is_some() || caller.identity.groups().is_some();
    endpoint.membership.is_in_redis(has_lists, app.host.fleet().is_some())
}

/// What the relay has found; `None` where it does not know, or not in time.
async fn within<T>(answer: Option<tokio::sync::oneshot::Receiver<T>>) -> Option<T> {
    tokio::time::timeout(ANSWER_WAIT, answer?).await.ok()?.ok()
}

/// The caller with all whom he has blocked: by his token, and by what stands in Redis. Where that is not known, his token is what counts.
async fn hiding(app: &App, caller: Caller) -> Caller {
    let answer = app.host.fleet().map(|fleet| fleet.blocked_by(caller.identity.user.clone()));
    match within(answer).await {
        Some(blocked) if !blocked.is_empty() => Caller { identity: Arc::new(caller.identity.blocking(&blocked)), ..caller },
        _ => caller,
    }
}

/// What the caller may say: his own words or the back end's, where it is asked.
async fn may_say<'a>(app: &App, caller: &Caller, room: Option<Arc<str>>, event: &str, data: &'a str) -> Result<Cow<'a, str>, Fault> {
    if !app.host.endpoints()[usize::from(caller.endpoint.0)].publish_hook {
        return Ok(Cow::Borrowed(data));
    }
    let Some(hooks) = &app.terms.hooks else { return Err(NOT_TO_BE_SAID) };
    let proposal = Proposal { user: caller.identity.user.clone(), conn: None, room, event: event.into(), data: data.into() };
    match hooks.may_publish(caller.endpoint, &proposal).await {
        Ruling::Allowed(changes) => Ok(changes.data.map_or(Cow::Borrowed(data), |data| Cow::Owned(data.into()))),
        Ruling::Refused(reason) => Err(reason.map_or(NOT_TO_BE_SAID, Fault::Denied)),
        Ruling::Unavailable => Err(Fault::Unavailable),
    }
}

/// The room of a message that somebody wants to post.
fn room_of(body: &str) -> Result<(&'static str, String), Fault> {
    let mut scratch = Scratch::default();
    let doc = scratch.parse(body).map_err(|_| Fault::Invalid("The body is not JSON"))?;
    let root = object(doc.root(), &[CONTENT, Channel::ROOM, Channel::GROUP])?;
    let channel = Channel::of(Some(root)).ok_or(Fault::Invalid("Either roomId or groupId is a name"))?;
    content(root).ok_or(CONTENT_FAULT)?;
    Ok((channel.key, channel.id.to_owned()))
}

/// The new content of a message that somebody wants to edit, JSON.
fn new_content(body: &str) -> Result<String, Fault> {
    let mut scratch = Scratch::default();
    let doc = scratch.parse(body).map_err(|_| Fault::Invalid("The body is not JSON"))?;
    let root = object(doc.root(), &[CONTENT])?;
    Ok(content(root).ok_or(CONTENT_FAULT)?.to_string())
}

async fn post(app: &App, caller: &Caller, body: &str) -> Result<Response, Fault> {
    let (key, id) = room_of(body)?;
    let channel = Channel { key, id: &id };
    may_enter(app, caller, channel).await?;
    let said = may_say(app, caller, Some(channel.room()), "CHAT_MESSAGE", body).await?;
    if matches!(said, Cow::Owned(_)) && !room_of(&said).is_ok_and(|other| other == (key, id.clone())) {
        // The back end has made another message of it, or none.
        return Err(NOT_TO_BE_SAID);
    }
    let message = {
        let mut scratch = Scratch::default();
        let doc = scratch.parse(&said).map_err(|_| NOT_TO_BE_SAID)?;
        let content = content(doc.root()).ok_or(CONTENT_FAULT)?;
        let now_unix_ms = unix_ms();
        let (id, author) = (new_message_id(now_unix_ms, &rand::random()), Author::of(&caller.identity));
        let hidden_from = (!caller.identity.blocked.is_empty()).then(|| caller.identity.clone());
        Message { id, author, channel, content, unix_ms: now_unix_ms, hidden_from }.broadcast(caller.endpoint)
    };
    let text = message.keep.text.clone();
    let Broadcast { room, frame, keep } = message;
    let gathered = app.ask(Question::Post(Arc::new(Post { room, frame, keep }))).await;
    let outcome = gathered.answers.into_iter().find_map(|answer| if let Answer::Posted(outcome) = answer { outcome } else { None });
    match outcome {
        Some(Ok(())) => Ok(success(StatusCode::CREATED, &text)),
        Some(Err(_)) | None => Err(Fault::Unavailable),
    }
}

async fn edit(app: &App, caller: &Caller, id: MessageId, body: &str) -> Result<Response, Fault> {
    let content = new_content(body)?;
    let Standing { room, .. } = revise(app, caller, id, None).await?;
    let channel = Channel::from_room(&room).ok_or(Fault::NotFound)?;
    may_enter(app, caller, channel).await?;
    let data = Object::new().str("messageId", &id.to_string()).raw("content", &content).finish();
    let content = match may_say(app, caller, Some(room.clone()), "MESSAGE_EDIT", &data).await? {
        Cow::Borrowed(_) => content,
        Cow::Owned(data) => edited(&data).ok_or(NOT_TO_BE_SAID)?,
    };
    let Standing { text, .. } = revise(app, caller, id, Some(Change::Edit(content.into()))).await?;
    Ok(success(StatusCode::OK, text.as_deref().unwrap_or("null")))
}

/// The content that the back end has put in the place of the caller's.
fn edited(data: &str) -> Option<String> {
    let mut scratch = Scratch::default();
    let doc = scratch.parse(data).ok()?;
    content(doc.root()).map(|content| content.to_string())
}

async fn remove(app: &App, caller: &Caller, id: MessageId) -> Result<Response, Fault> {
    revise(app, caller, id, Some(Change::Remove)).await?;
    Ok(Json(json!({"success": true})).into_response())
}

/// How the message stands then.
async fn revise(app: &App, caller: &Caller, id: MessageId, change: Option<Change>) -> Result<Standing, Fault> {
    let revision = Revision { endpoint: caller.endpoint, id, by: caller.identity.clone(), change };
    let Gathered { answers, missing, .. } = app.ask(Question::Revise(Arc::new(revision.clone()))).await;
    let outcome = match revised(&answers) {
        None if missing > 0 => return Err(Fault::Unavailable),
        None => revise_elsewhere(app, revision).await?,
        outcome => outcome,
    };
    match outcome {
        Some(Ok(standing)) => Ok(standing),
        Some(Err(NotAuthor)) => Err(Fault::Forbidden("Only the author may change a message")),
        None => Err(Fault::NotFound),
    }
}

fn revised(answers: &[Answer]) -> Option<Result<Standing, NotAuthor>> {
    answers.iter().find_map(|answer| if let Answer::Revised(outcome) = answer { outcome.clone() } else { None })
}

/// Where this host does not keep the message, one that does changes it: the others hear of that from there.
async fn revise_elsewhere(app: &App, revision: Revision) -> Result<Option<Result<Standing, NotAuthor>>, Fault> {
    let look = Revision { change: None, ..revision.clone() };
    let found = app.ask_hosts(Question::Revise(Arc::new(look)), None).await;
    let having = found.hosts.into_iter().filter_map(|host| Some((revised(&host.answers)?, host.host)));
    let Some((standing, host)) = having.min_by(|(_, one), (_, other)| one.cmp(other)) else { return Ok(None) };
    if revision.change.is_none() || standing.is_err() {
        return Ok(Some(standing));
    }
    let changed = app.ask_hosts(Question::Revise(Arc::new(revision)), Some(&host)).await;
    match changed.hosts.first().and_then(|host| revised(&host.answers)) {
        None if changed.hosts_missing > 0 => Err(Fault::Unavailable),
        outcome => Ok(outcome),
    }
}

async fn list(app: &App, caller: &Caller, uri: &Uri) -> Result<Response, Fault> {
    let wish = Wish::read(uri)?;
    let channel = Channel { key: wish.key, id: &wish.id };
    may_enter(app, caller, channel).await?;
    let mut range = match wish.before {
        Some(id) => Range::Before { id, limit: wish.limit },
        None => Range::Newest { skip: 0, limit: wish.limit, bytes_max: usize::MAX },
    };
    let room = Room { endpoint: caller.endpoint, name: channel.room() };
    let (mut texts, mut asked_for) = (Vec::new(), wish.limit);
    loop {
        let gathered = app.ask(Question::Past { room: room.clone(), range }).await;
        let past = gathered.answers.into_iter().find_map(|answer| if let Answer::Past(past) = answer { past } else { None });
        let kept = past.ok_or(Fault::Unavailable)?.kept;
        let shown = kept.iter().rev().filter(|kept| !kept.is_hidden_from(&caller.identity.user));
        texts.extend(shown.map(|kept| kept.text.clone()).take(wish.limit - texts.len()));
        // A list that is not full is the last: what is not shown does not make it short.
        let oldest = kept.first().filter(|_| kept.len() == asked_for && texts.len() < wish.limit).and_then(|kept| kept.id);
        let Some(id) = oldest else { break };
        // A channel keeps so few that a handful of these sees them all.
        (range, asked_for) = (Range::Before { id, limit: LIMIT_MAX }, LIMIT_MAX);
    }
    Ok(success(StatusCode::OK, &format!("[{}]", texts.join(","))))
}

/// What a list is asked for.
struct Wish {
    key: &'static str,
    id: String,
    limit: usize,
    before: Option<MessageId>,
}

impl Wish {
    fn read(uri: &Uri) -> Result<Wish, Fault> {
        if uri.query().is_some_and(|query| !is_text(query)) {
            return Err(Fault::Invalid("The query is not UTF-8"));
        }
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| Fault::Invalid("The query is not one"))?;
        let (mut channel, mut limit, mut before) = (None, None, None);
        for (key, value) in pairs {
            let is_first = match key.as_str() {
                Channel::ROOM => channel.replace((Channel::ROOM, value)).is_none(),
                Channel::GROUP => channel.replace((Channel::GROUP, value)).is_none(),
                "limit" => limit.replace(value.parse().map_err(|_| LIMIT_FAULT)?).is_none(),
                "before" => before.replace(message_id(&value).map_err(|_| Fault::Invalid("before is the id of a message"))?).is_none(),
                _ => false,
            };
            if !is_first {
                return Err(Fault::Invalid("A parameter is unknown or is there twice; roomId and groupId exclude each other"));
            }
        }
        let (key, id) = channel.filter(|(_, id)| checked_name(id).is_ok()).ok_or(Fault::Invalid("Either roomId or groupId is a name"))?;
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(LIMIT_FAULT);
        }
        Ok(Wish { key, id, limit, before })
    }
}

/// True exactly when what is percent-encoded is UTF-8: the parser would put other characters in the place of what is not.
fn is_text(query: &str) -> bool {
    let mut rest = query.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        let pair = after.get(..2).filter(|_| first == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.filter(|pair| !pair.starts_with('+')).and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &after[2..]).1,
            None => (bytes.push(first), rest = after).1,
        }
    }
    std::str::from_utf8(&bytes).is_ok()
}

/// An object with no other members than these.
fn object<'d>(root: Value<'d>, members: &[&str]) -> Result<Value<'d>, Fault> {
    if !root.is_object() {
        return Err(Fault::Invalid("The body is not an object"));
    }
    if root.members().any(|member| !members.contains(&member.key)) {
        return Err(Fault::Invalid("The body has an unknown member"));
    }
    Ok(root)
}

/// The data as it is kept, so that no number changes on its way.
fn success(status: StatusCode, data: &str) -> Response {
    let body = format!("{{\"success\":true,\"data\":{data}}}");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use engine::{Kept, Past, auth};

    use super::super::testing::{FakeHost, Heard, SECRET, app, call_with, terms};
    use super::super::throttle::Allowance;
    use super::super::{Origins, Terms, public};
    use super::*;
    use crate::bridge::Pending;

    const PATH: &str = "/api/community/messages";
    const ID: &str = "018cc251-f400-7000-8000-000000000001";

    type Asked = Arc<Mutex<Vec<Question>>>;

    /// Two shards, of which the second is everything's home: `ID` is ann's, `kept` is what every channel keeps.
    fn served(terms: Terms) -> (Asked, Router) {
        let asked = Asked::default();
        let (list, pending) = (asked.clone(), Arc::new(Pending::default()));
        let kept = ["{\"n\":1e+100}", "{\"n\":2}"];
        let kept = kept.map(|text| Kept { id: None, author: "ann".into(), unix_ms: 0, text: text.into(), hidden_from: None });
        let host = FakeHost::new(2).answering(&pending, move |shard, question| {
            let is_home = shard == 1;
            if is_home {
                list.lock().expect("one thread").push(question.clone());
            }
            Some(match question {
                Question::Post(_) => Answer::Posted(is_home.then_some(Ok(()))),
                Question::Past { .. } => Answer::Past(is_home.then(|| Past { kept: kept.to_vec(), total: 2 })),
                Question::Revise(revision) if revision.id.to_string() != ID => Answer::Revised(None),
                Question::Revise(revision) if *revision.by.user != *"ann" => Answer::Revised(is_home.then_some(Err(NotAuthor))),
                Question::Revise(revision) => Answer::Revised(is_home.then(|| {
                    let text = (!matches!(revision.change, Some(Change::Remove))).then(|| "{\"now\":1}".into());
                    Ok(Standing { room: "room:r".into(), text })
                })),
                _ => return None,
            })
        });
        (asked, public::router(Arc::new(App::new(Arc::new(host), pending, terms))))
    }

    fn token(claims: &serde_json::Value) -> String {
        format!("Bearer {}", auth::mint(SECRET, claims).expect("an object"))
    }

    fn ann() -> String {
        token(&json!({"sub": "ann", "name": "Ann", "rooms": ["r", "é"], "blocked": ["eve"]}))
    }

    async fn send(router: &Router, method: Method, path: &str, token: &str, body: &str) -> Heard {
        call_with(router, method, path, &[("authorization", token)], body).await
    }

    #[tokio::test]
    async fn a_message_is_posted_edited_taken_back_and_listed() {
        let (asked, router) = served(terms());
        let heard = send(&router, Method::POST, PATH, &ann(), r#" {"roomId":"\u00e9", "content":"a\u0062"} "#).await;
        let mut body = heard.json();
        let id = body["data"]["id"].take();
        assert!(body["data"]["createdAt"].take().as_str().is_some_and(|time| time.len() == 24));
        let message = json!({"id": null, "content": "ab", "roomId": "é", "authorId": "ann", "authorName": "Ann", "isEdited": false,
            "createdAt": null});
        assert_eq!((heard.status, body), (StatusCode::CREATED, json!({"success": true, "data": message})));
        assert!(heard.body.contains(r#""content":"a\u0062""#), "{}", heard.body);
        let Some(Question::Post(post)) = asked.lock().expect("one thread").pop() else { panic!("asked") };
        assert_eq!((&*post.room.name, post.keep.id.map(|id| id.to_string().into())), ("room:é", Some(id)));
        assert_eq!(post.keep.hidden_from.as_ref().map(|by| by.blocked.to_vec()), Some(vec!["eve".to_owned()]));
        assert!(heard.body.contains(&*post.keep.text), "what is answered is what is kept");

        let one = format!("{PATH}/{ID}");
        let heard = send(&router, Method::PATCH, &one, &ann(), r#"{"content":"c"}"#).await;
        assert_eq!((heard.status, heard.body.as_str()), (StatusCode::OK, r#"{"success":true,"data":{"now":1}}"#));
        let heard = send(&router, Method::DELETE, &one, &ann(), "").await;
        assert_eq!((heard.status, heard.body.as_str()), (StatusCode::OK, r#"{"success":true}"#));
        asked.lock().expect("one thread").clear();

        let heard = send(&router, Method::GET, &format!("{PATH}?roomId=r&limit=2&before={ID}"), &ann(), "").await;
        assert_eq!((heard.status, heard.body.as_str()), (StatusCode::OK, r#"{"success":true,"data":[{"n":2},{"n":1e+100}]}"#));
        assert_eq!(send(&router, Method::GET, &format!("{PATH}?roomId=r"), &ann(), "").await.status, StatusCode::OK);
        let asked = format!("{:?}", asked.lock().expect("one thread"));
        for part in [&format!("Before {{ id: {ID}, limit: 2 }}"), "Newest { skip: 0, limit: 50", "room:r"] {
            assert!(asked.contains(part), "{part} in {asked}");
        }
    }

    #[tokio::test]
    async fn a_list_is_full_although_not_all_is_shown() {
        let (asked, pending) = (Asked::default(), Arc::new(Pending::default()));
        let author =
            Arc::new(Identity::from(auth::Details { user: "eve".into(), blocked: vec!["ann".into()], ..auth::Details::default() }));
        // Of 250 messages ann sees every tenth.
        let kept = (0_u8..250).map(|number| Kept {
            id: Some(new_message_id(u64::from(number), &[0; 10])),
            author: "eve".into(),
            unix_ms: 0,
            text: number.to_string().into(),
            hidden_from: (number % 10 > 0).then(|| author.clone()),
        });
        let (list, kept): (_, Vec<Kept>) = (asked.clone(), kept.collect());
        let host = FakeHost::new(1).answering(&pending, move |_, question| {
            let Question::Past { range, .. } = question else { return None };
            list.lock().expect("one thread").push(question.clone());
            let (end, limit) = match *range {
                Range::Newest { limit, .. } => (kept.len(), limit),
                Range::Before { id, limit } => (kept.iter().position(|kept| kept.id == Some(id))?, limit),
            };
            Some(Answer::Past(Some(Past { kept: kept[end.saturating_sub(limit)..end].to_vec(), total: kept.len() })))
        });
        let router = public::router(Arc::new(App::new(Arc::new(host), pending, terms())));
        let bob = token(&json!({"sub": "bob", "rooms": ["r"]}));
        for (caller, limit, expected, questions) in [
            (&bob, 3, vec![249, 248, 247], 1),
            (&ann(), 3, vec![240, 230, 220], 2),
            (&ann(), 1, vec![240], 2),
            (&ann(), 20, (5..25).rev().map(|ten| ten * 10).collect(), 3),
            (&ann(), 50, (0..25).rev().map(|ten| ten * 10).collect(), 4),
        ] {
            let heard = send(&router, Method::GET, &format!("{PATH}?roomId=r&limit={limit}"), caller, "").await;
            assert_eq!((heard.status, heard.json()["data"].clone()), (StatusCode::OK, json!(expected)));
            assert_eq!(asked.lock().expect("one thread").drain(..).count(), questions, "{limit}");
        }
    }

    #[tokio::test]
    async fn wrong_calls_are_told_and_nothing_happens() {
        let (asked, router) = served(terms());
        let (one, long) = (format!("{PATH}/{ID}"), "é".repeat(4_001));
        let (with_query, one_with_query) = (format!("{PATH}?roomId=r"), format!("{one}?colour=red"));
        let text = |content: &str| format!(r#"{{"roomId":"r","content":{content}}}"#);
        let mut cases = vec![
            (Method::PUT, PATH, String::new(), 405, "METHOD_NOT_ALLOWED"),
            (Method::HEAD, PATH, String::new(), 405, ""),
            (Method::GET, &one, String::new(), 405, "METHOD_NOT_ALLOWED"),
            (Method::POST, &one, text("\"x\""), 405, "METHOD_NOT_ALLOWED"),
            (Method::POST, PATH, r#"{"roomId":"s","content":"x"}"#.to_owned(), 403, "FORBIDDEN"),
            (Method::POST, PATH, r#"{"groupId":"r","content":"x"}"#.to_owned(), 403, "FORBIDDEN"),
            (Method::POST, PATH, format!("{{{}}}", " ".repeat(BODY_BYTES_MAX)), 413, "PAYLOAD_TOO_LARGE"),
            (Method::PATCH, &one, r#"{"content":"x","roomId":"r"}"#.to_owned(), 400, "INVALID_MESSAGE"),
            (Method::PATCH, &one, "{}".to_owned(), 400, "INVALID_MESSAGE"),
            (Method::PATCH, &one, "null".to_owned(), 400, "INVALID_MESSAGE"),
            (Method::POST, &with_query, text("\"x\""), 400, "INVALID_MESSAGE"),
            (Method::PATCH, &one_with_query, r#"{"content":"x"}"#.to_owned(), 400, "INVALID_MESSAGE"),
            (Method::DELETE, &one_with_query, String::new(), 400, "INVALID_MESSAGE"),
        ];
        for content in ["\"\"", "7", "null", "[\"x\"]", "{}", &format!("\"{long}\"")] {
            cases.push((Method::POST, PATH, text(content), 400, "INVALID_MESSAGE"));
            cases.push((Method::PATCH, &one, format!(r#"{{"content":{content}}}"#), 400, "INVALID_MESSAGE"));
        }
        for body in [
            "",
            "{",
            "[]",
            "\"x\"",
            "{}",
            r#"{"content":"x"}"#,
            r#"{"roomId":"r"}"#,
            r#"{"roomId":"r","groupId":"r","content":"x"}"#,
            r#"{"roomId":7,"content":"x"}"#,
            r#"{"roomId":"","content":"x"}"#,
            r#"{"roomId":"a\nb","content":"x"}"#,
            r#"{"roomId":null,"content":"x"}"#,
            r#"{"roomId":"r","content":"x","authorId":"eve"}"#,
        ] {
            cases.push((Method::POST, PATH, body.to_owned(), 400, "INVALID_MESSAGE"));
        }
        let queries: Vec<(String, u16)> = [
            ("", 400),
            ("?roomId=", 400),
            ("?roomId=a%0ab", 400),
            ("?roomId=r&groupId=r", 400),
            ("?roomId=r&roomId=r", 400),
            ("?roomId=r&limit=0", 400),
            ("?roomId=r&limit=101", 400),
            ("?roomId=r&limit=ten", 400),
            ("?roomId=r&limit=", 400),
            ("?roomId=r&limit=1&limit=1", 400),
            ("?roomId=r&before=x", 400),
            ("?roomId=%ff", 400),
            ("?roomId=r%c3", 400),
            ("?roomId=%c3%a", 400),
            ("?roomId=r&colour=red", 400),
            ("?roomId=r&token=x", 400),
            ("?roomId=s", 403),
            ("?groupId=r", 403),
        ]
        .map(|(query, status)| (format!("{PATH}{query}"), status))
        .into();
        for (path, status) in &queries {
            cases.push((Method::GET, path, String::new(), *status, if *status == 403 { "FORBIDDEN" } else { "INVALID_MESSAGE" }));
        }
        for (method, path, body, status, code) in cases {
            let heard = send(&router, method.clone(), path, &ann(), &body).await;
            let shown: String = body.chars().take(80).collect();
            assert_eq!(heard.status.as_u16(), status, "{method} {path} {shown}");
            if !code.is_empty() {
                assert_eq!(
                    (&heard.json()["success"], &heard.json()["error"]["code"]),
                    (&json!(false), &json!(code)),
                    "{method} {path} {shown}"
                );
                assert!(heard.json()["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
            }
        }
        assert!(asked.lock().expect("one thread").is_empty(), "nothing was asked for");
        for (path, user, status) in [
            (format!("{PATH}/{}", ID.replace("0001", "0002")), "ann", 404),
            (format!("{PATH}/x"), "ann", 404),
            (format!("{PATH}/{}", ID.to_uppercase()), "ann", 404),
            (format!("{PATH}/"), "ann", 404),
            (format!("{PATH}/{ID}/x"), "ann", 404),
            (one.clone(), "bob", 403),
        ] {
            for (method, body) in [(Method::PATCH, r#"{"content":"x"}"#), (Method::DELETE, "")] {
                let heard = send(&router, method, &path, &token(&json!({"sub": user})), body).await;
                assert_eq!(heard.status.as_u16(), status, "{path}");
            }
        }
        assert_eq!(send(&router, Method::GET, "/api/community/messagesx", &ann(), "").await.status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn who_has_lost_a_channel_changes_nothing_there_and_may_take_his_words_back() {
        let (asked, router) = served(terms());
        let one = format!("{PATH}/{ID}");
        let lost = token(&json!({"sub": "ann", "rooms": ["s"]}));
        let heard = send(&router, Method::PATCH, &one, &lost, r#"{"content":"x"}"#).await;
        assert_eq!((heard.status, &heard.json()["error"]["code"]), (StatusCode::FORBIDDEN, &json!("FORBIDDEN")));
        let is_look = |question: &Question| matches!(question, Question::Revise(revision) if revision.change.is_none());
        assert!(asked.lock().expect("one thread").drain(..).all(|question| is_look(&question)));
        assert_eq!(send(&router, Method::DELETE, &one, &lost, "").await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_token_counts_in_its_header_and_nowhere_else() {
        let (asked, router) = served(terms());
        let good = ann();
        let bare = good.trim_start_matches("Bearer ");
        let cookie = format!("next-auth.session-token={bare}");
        let expired = token(&json!({"sub": "ann", "exp": 1}));
        let body = r#"{"roomId":"r","content":"x"}"#;
        for (path, headers) in [
            (PATH.to_owned(), vec![]),
            (PATH.to_owned(), vec![("authorization", "")]),
            (PATH.to_owned(), vec![("authorization", bare)]),
            (PATH.to_owned(), vec![("authorization", "Bearer nonsense")]),
            (PATH.to_owned(), vec![("authorization", expired.as_str())]),
            (PATH.to_owned(), vec![("authorization", good.as_str()), ("authorization", good.as_str())]),
            (PATH.to_owned(), vec![("cookie", cookie.as_str()), ("origin", "https://app.example")]),
            (format!("{PATH}?token={bare}"), vec![]),
        ] {
            let heard = call_with(&router, Method::POST, &path, &headers, body).await;
            assert_eq!((heard.status, heard.header("www-authenticate")), (StatusCode::UNAUTHORIZED, "Bearer"), "{headers:?}");
            assert_eq!(heard.json()["error"]["code"], "UNAUTHORIZED");
            assert!(!heard.body.contains(bare));
        }
        assert!(asked.lock().expect("one thread").is_empty());
        assert_eq!(send(&router, Method::POST, PATH, &good.replace("Bearer", "bearer"), body).await.status, StatusCode::CREATED);
    }

    #[tokio::test]
    async fn each_user_has_his_rate() {
        let (_, router) = served(Terms { allowance: Allowance { calls: 2, window_ms: 600_000 }, ..terms() });
        let list = format!("{PATH}?roomId=r");
        for (user, statuses) in [("ann", [200, 200, 429, 429]), ("bob", [200, 200, 429, 429])] {
            for status in statuses {
                let heard = send(&router, Method::GET, &list, &token(&json!({"sub": user})), "").await;
                assert_eq!(heard.status.as_u16(), status);
                if status == 429 {
                    assert_eq!(heard.json()["error"]["code"], "RATE_LIMIT_EXCEEDED");
                    assert!(heard.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=300).contains(&seconds)));
                }
            }
        }
    }

    #[tokio::test]
    async fn browsers_of_allowed_origins_are_told_what_they_may() {
        let (asked, router) = served(Terms { origins: Origins::Listed(vec!["https://app.example".into()]), ..terms() });
        for (path, methods) in [(PATH.to_owned(), "GET, POST, OPTIONS"), (format!("{PATH}/{ID}"), "PATCH, DELETE, OPTIONS")] {
            for (origin, allowed) in [("https://app.example", "https://app.example"), ("https://evil.example", "")] {
                let headers =
                    [("origin", origin), ("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")];
                let heard = call_with(&router, Method::OPTIONS, &path, &headers, "").await;
                assert_eq!((heard.status, heard.body.as_str(), heard.header("vary")), (StatusCode::NO_CONTENT, "", "Origin"));
                assert_eq!(heard.header("access-control-allow-origin"), allowed);
                assert_eq!(heard.header("access-control-allow-methods"), methods);
                assert_eq!(heard.header("access-control-allow-headers"), "authorization, content-type");
            }
        }
        let headers = [("origin", "https://app.example"), ("authorization", "Bearer nonsense")];
        let refused = call_with(&router, Method::POST, PATH, &headers, "{}").await;
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (StatusCode::UNAUTHORIZED, "https://app.example"));
        assert!(asked.lock().expect("one thread").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_home_is_no_answer() {
        let pending = Arc::new(Pending::default());
        let host = FakeHost::new(2).answering(&pending, |shard, question| {
            (shard == 0).then_some(match question {
                Question::Revise(_) => Answer::Revised(None),
                Question::Post(_) => Answer::Posted(None),
                _ => Answer::Past(None),
            })
        });
        let router = public::router(Arc::new(app(Arc::new(host), pending)));
        let (one, list) = (format!("{PATH}/{ID}"), format!("{PATH}?roomId=r"));
        for (method, path, body) in [
            (Method::POST, PATH, r#"{"roomId":"r","content":"x"}"#),
            (Method::PATCH, &one, r#"{"content":"x"}"#),
            (Method::DELETE, &one, ""),
            (Method::GET, &list, ""),
        ] {
            let heard = send(&router, method, path, &ann(), body).await;
            assert_eq!((heard.status, heard.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
        }
    }

    #[test]
    fn messages_are_beside_the_socket() {
        for (bind, path) in [("/api/community/ws", PATH), ("/ws", "/messages"), ("/talk", "/talk/messages"), ("/x/wws", "/x/wws/messages")]
        {
            assert_eq!(path_of(DialectKind::Community, bind).as_deref(), Some(path));
        }
        assert_eq!(path_of(DialectKind::Collab, "/ws/fabric"), None);
        assert!(is_below("/m", "/m") && is_below("/m/x", "/m") && !is_below("/mx", "/m") && !is_below("/", "/m"));
    }
}
