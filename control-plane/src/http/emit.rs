//! `POST /v1/emit`: an event of the back end to connections of an endpoint, and `POST /v1/batch`, many of them.
//!
//! | member | is |
//! |---|---|
//! | `endpoint` | its name |
//! | `to` | `{all:true}`, or lists of names: `{rooms}`, `{users}` or `{connections}` |
//! | `except` | ids of connections that do not get it, or rooms whose members do not |
//! | `event`, `data` or `args` | its name, and its argument or the list of them (plain WebSocket: `data` only) |
//! | `volatile` | true: rather dropped than made to wait |
//! | `ack` | `{timeoutMs}`: acknowledgements are asked for and counted until then |
//! | `id` | delivered once however often it is sent within five minutes |
//!
//! The arguments go out as they stand in the body, so that no number changes on its way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use engine::config::Endpoint;
use engine::dialect;
use engine::ids::{Sid, checked_name};
use engine::json::{Scratch, Value};
use engine::relay::handle;
use engine::time::Now;
use engine::wire::sio::RESERVED_EVENTS;
use engine::{Answer, Emit, Emitted, Question, Selection, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa::openapi::{Object, ObjectBuilder, Type};

use super::admin::{Missing, answer, endpoint_named};
use super::problem::{Problem, whole_body};
use super::shapes::Name;
use super::{App, monotonic_ms, unix_ms};
use crate::bridge::{ANSWER_WAIT, Asked, Gathered};

/// Paths.
pub const EMIT: &str = "/v1/emit";
/// See [`EMIT`].
pub const BATCH: &str = "/v1/batch";

/// Bytes of one emit: as much as a message of a client may have by default.
pub const EMIT_BYTES_MAX: usize = 1_000_000;

/// Bytes of a batch.
pub const BATCH_BYTES_MAX: usize = 8_000_000;

/// Time to answer: the longest wait for acknowledgements, and some for everything else.
pub const ANSWER_TIME: Duration = Duration::from_millis(ACK_MS_MAX + 7_000);

/// Milliseconds to wait for acknowledgements: as long as a connection of the admin part lives.
const ACK_MS_MAX: u64 = 60_000;

/// Milliseconds that a batch may take at most when nobody acknowledges: some less than [`ANSWER_TIME`], so that its answer comes. Before it
/// begins other hosts may be asked for its ids, a second for each of two questions.
const BATCH_MS_MAX: u64 = ACK_MS_MAX + 4_000;

/// How long it is waited for what comes of an emit with an id when its answer has been given up: as long as the acknowledgements may
/// take, and a minute in which a shard may be stuck. Then it is remembered as one that reached nobody, with all shards missing.
const LATE_WAIT: Duration = Duration::from_millis(ACK_MS_MAX + 60_000);

/// Emits of one batch (contract).
const BATCH_MAX: usize = 1_000;

/// Emits of a batch under way at once: less than a lane to a shard takes, so that none is lost when they come faster than it turns.
const UNDER_WAY_MAX: usize = 128;

/// Milliseconds for which an id is known (contract).
const ID_AGE_MS: u64 = 5 * 60 * 1_000;

/// How long the relay may take to say whether another host has an id.
const CLAIM_WAIT: Duration = ANSWER_WAIT;

/// Ids that are known; each takes up to half a kilobyte. Beyond it the oldest are forgotten early.
const IDS_MAX: usize = 100_000;

/// The first member of `to` says who is meant.
const TARGETS: [&str; 4] = ["all", "rooms", "users", "connections"];

const MEMBERS: [&str; 9] = ["endpoint", "to", "except", "event", "data", "args", "volatile", "id", "ack"];

/// Sends an event to connections of an endpoint.
#[utoipa::path(post, path = EMIT, tag = "emit", request_body = EmitBody, responses(
    (status = 200, description = "who got it", body = EmitOutcome),
    (status = 404, description = "no endpoint has the name"),
    (status = 409, description = "an emit with the same id is under way"),
    (status = 503, description = "no shard answered in time; the same id can be tried again, and is a conflict until it is known what came of it"),
))]
pub async fn emit(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let body = body(request, EMIT_BYTES_MAX).await?;
    let order = {
        let mut scratch = Scratch::default();
        let doc = scratch.parse(&body).map_err(|_| Problem::bad_request("the body is not JSON"))?;
        Order::read(&app, doc.root())?
    };
    let outcome = Outcome::of(perform(app, vec![order]).await?.pop());
    outcome.map(Outcome::response)
}

/// Sends many events in order. Everything is checked before the first is sent.
#[utoipa::path(post, path = BATCH, tag = "emit", request_body = BatchBody, responses(
    (status = 200, description = "what came of each", body = BatchOutcome),
    (status = 404, description = "no endpoint has the name"),
))]
pub async fn batch(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let body = body(request, BATCH_BYTES_MAX).await?;
    let orders = {
        let mut scratch = Scratch::default();
        let doc = scratch.parse(&body).map_err(|_| Problem::bad_request("the body is not JSON"))?;
        if !doc.root().is_array() || doc.root().items().count() > BATCH_MAX {
            return Err(Problem::bad_request(format!("the body is a list of at most {BATCH_MAX}")));
        }
        let read = |(at, item)| {
            Order::read(&app, item).map_err(|problem| Problem { detail: format!("number {at}: {}", problem.detail), ..problem })
        };
        doc.root().items().enumerate().map(read).collect::<Result<Vec<_>, _>>()?
    };
    let longest_ms = longest_ms(orders.iter().map(|order| order.emit.ack_ms));
    if longest_ms > BATCH_MS_MAX {
        let detail = format!("the acknowledgements of this batch may take {longest_ms} ms, allowed are {BATCH_MS_MAX}");
        return Err(Problem::bad_request(detail));
    }
    let outcomes = perform(app, orders).await?;
    let missing = outcomes.iter().flatten().map(|outcome| outcome.missing).fold(Missing::default(), Missing::max);
    let results = outcomes.into_iter().map(|outcome| match outcome {
        Ok(outcome) => BatchResult::Sent(outcome.shown()),
        Err(Problem { status, detail }) => BatchResult::Refused(BatchRefusal { status: status.as_u16(), detail }),
    });
    Ok(answer(missing, BatchOutcome { results: results.collect() }))
}

/// An emit, as the document describes it. It is read by [`Order::read`], so that the arguments keep their text.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the document is made from it")]
struct EmitBody {
    /// Name of the endpoint.
    endpoint: String,
    to: EmitTarget,
    /// Ids of connections that do not get it, or rooms whose members do not.
    #[schema(nullable = false)]
    except: Option<Vec<RoomName>>,
    /// Its name. The names that the library keeps for itself (`connect`, `disconnect` and so on) are refused.
    event: String,
    /// Its argument, where it has one. Not together with `args`. On an endpoint of collab an object.
    data: Option<serde_json::Value>,
    /// Its arguments. Socket.IO only.
    #[schema(nullable = false)]
    args: Option<Vec<serde_json::Value>>,
    /// Whether it is rather dropped than made to wait.
    #[schema(nullable = false)]
    volatile: Option<bool>,
    /// Delivered once however often it is sent within five minutes.
    #[schema(nullable = false)]
    id: Option<Name>,
    #[schema(nullable = false)]
    ack: Option<AckWanted>,
}

/// Emits, in order.
#[derive(Deserialize, ToSchema)]
#[schema(max_items = 1000)]
#[expect(dead_code, reason = "the document is made from it")]
struct BatchBody(Vec<EmitBody>);

/// Who is meant.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the document is made from it")]
enum EmitTarget {
    /// Every connection of the endpoint.
    All(ToAll),
    /// The members of any of these rooms.
    Rooms(ToRooms),
    /// All connections of these users.
    Users(ToUsers),
    /// These connections.
    Connections(ToConnections),
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the document is made from it")]
struct ToAll {
    /// Always true.
    #[schema(schema_with = always_true)]
    all: bool,
}
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the document is made from it")]
struct ToRooms {
    rooms: Vec<RoomName>,
}
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the document is made from it")]
struct ToUsers {
    users: Vec<Name>,
}
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the document is made from it")]
struct ToConnections {
    connections: Vec<String>,
}

/// Name of a room. A user's own is `U+0001`, `u:` and his id.
#[derive(Deserialize, ToSchema)]
#[schema(value_type = String, min_length = 1, pattern = r"^(\u0001u:)?[^\u0000-\u001f\u007f-\u009f]{1,255}$")]
#[expect(dead_code, reason = "the document is made from it")]
struct RoomName(String);

fn always_true() -> Object {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true])).build()
}

/// Acknowledgements are asked for and counted. Socket.IO only.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "the document is made from it")]
struct AckWanted {
    /// How long, in milliseconds.
    #[schema(minimum = 1, maximum = 60000)]
    timeout_ms: u64,
}

/// Who got an emit.
#[derive(Serialize, ToSchema)]
pub(super) struct EmitOutcome {
    /// Connections that it was sent to.
    recipients: u64,
    /// How many of them acknowledged it in time, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    acks: Option<u64>,
}

/// What came of one emit of a batch.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum BatchResult {
    /// It was sent.
    Sent(EmitOutcome),
    /// It was not.
    Refused(BatchRefusal),
}

/// Why one emit of a batch was not sent.
#[derive(Serialize, ToSchema)]
struct BatchRefusal {
    /// The status that it would have been answered with alone.
    status: u16,
    /// What a person should read.
    detail: String,
}

/// What came of a batch.
#[derive(Serialize, ToSchema)]
struct BatchOutcome {
    /// In the order of the emits.
    results: Vec<BatchResult>,
}

pub(super) async fn body(request: Request, bytes_max: usize) -> Result<String, Problem> {
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::bad_request("the call takes no query parameters: everything stands in its body"));
    }
    let bytes = whole_body(request, bytes_max).await?;
    String::from_utf8(bytes.into()).map_err(|_| Problem::bad_request("the body is not UTF-8"))
}

/// What a body asks for.
struct Order {
    emit: Emit,
    id: Option<Arc<str>>,
}

impl Order {
    fn read(app: &App, body: Value<'_>) -> Result<Order, Problem> {
        if !body.is_object() {
            return Err(Problem::bad_request("an emit is an object"));
        }
        if let Some(member) = body.members().find(|member| !MEMBERS.contains(&member.key)) {
            return Err(Problem::bad_request(format!("an emit has no member {:?}", member.key)));
        }
        let endpoint_id = endpoint_named(app, text(body, "endpoint")?)?;
        let endpoint = &app.host.endpoints()[usize::from(endpoint_id.0)];
        let event = text(body, "event")?;
        if RESERVED_EVENTS.contains(&event) {
            return Err(Problem::bad_request(format!("event: {event} is an event of the library's own")));
        }
        let ack_ms = ack_ms(body)?;
        if ack_ms.is_some() && !endpoint.dialect.is_socket_io() {
            return Err(Problem::bad_request("ack: the endpoint's clients do not acknowledge"));
        }
        let to = Selection { endpoint: endpoint_id, targets: targets(body)?, except: except(body)? };
        let args = args(body, endpoint)?;
        let id = body.get("id").map(|_| name(text(body, "id")?, "id").map(Arc::from)).transpose()?;
        let unix_ms = unix_ms();
        // The shards ask it again; here it can still be told what is wrong.
        let checked = dialect::of(endpoint.dialect).outgoing(Now { ns: 0, unix_ms }, event, &args, &mut Scratch::default());
        checked.map_err(|fault| Problem::bad_request(format!("data: {fault}")))?;
        let volatile = flag(body, "volatile")?;
        let emit = Emit {
            to,
            event: event.to_owned(),
            args,
            volatile,
            ack_ms,
            offset: rand::random::<u64>().into(),
            unix_ms,
            attachments: Vec::new(),
            is_elsewhere: false,
        };
        Ok(Order { emit, id })
    }
}

pub(super) fn text<'a>(body: Value<'a>, key: &str) -> Result<&'a str, Problem> {
    let value = body.get(key).ok_or_else(|| Problem::bad_request(format!("{key} is missing")))?;
    value.as_exact_str().ok_or_else(|| Problem::bad_request(format!("{key} is a text")))
}

fn flag(body: Value<'_>, key: &str) -> Result<bool, Problem> {
    let value = body.get(key).map_or(Some(false), Value::as_bool);
    value.ok_or_else(|| Problem::bad_request(format!("{key} is true or false")))
}

pub(super) fn name<'a>(text: &'a str, what: &str) -> Result<&'a str, Problem> {
    checked_name(text).map_err(|fault| Problem::bad_request(format!("{what}: {fault}")))
}

/// The name of a room; a user's own begins with what no client can write.
fn room<'a>(text: &'a str, what: &str) -> Result<&'a str, Problem> {
    name(text.strip_prefix("\u{1}u:").unwrap_or(text), what).map(|_| text)
}

/// The texts of a list.
fn texts<'a>(list: Value<'a>, what: &str) -> Result<Vec<&'a str>, Problem> {
    let wrong = || Problem::bad_request(format!("{what} is a list of texts"));
    if !list.is_array() {
        return Err(wrong());
    }
    list.items().map(|item| item.as_exact_str().ok_or_else(wrong)).collect()
}

fn targets(body: Value<'_>) -> Result<Vec<Target>, Problem> {
    let wrong = || Problem::bad_request("to is {all:true} or an object with one of rooms, users and connections, a list");
    let to = body.get("to").filter(|to| to.is_object()).ok_or_else(wrong)?;
    let mut members = to.members();
    let member = members.next().filter(|member| TARGETS.contains(&member.key)).ok_or_else(wrong)?;
    if members.next().is_some() {
        return Err(wrong());
    }
    if member.key == "all" {
        return if member.value.as_bool() == Some(true) { Ok(vec![Target::all()]) } else { Err(wrong()) };
    }
    let what = format!("to.{}", member.key);
    let listed = texts(member.value, &what)?;
    match member.key {
        "rooms" => listed.into_iter().map(|text| room(text, &what).map(|name| Target::Room(name.into()))).collect(),
        "users" => listed.into_iter().map(|text| name(text, &what).map(Target::user)).collect(),
        // Any other text is the id of no connection.
        _ => Ok(listed.into_iter().filter_map(Sid::parse).map(Target::Connection).collect()),
    }
}

fn except(body: Value<'_>) -> Result<Vec<Target>, Problem> {
    let Some(list) = body.get("except") else { return Ok(Vec::new()) };
    // A connection is in the room of its id.
    texts(list, "except")?.into_iter().map(|text| room(text, "except").map(|name| Target::Room(name.into()))).collect()
}

fn ack_ms(body: Value<'_>) -> Result<Option<u64>, Problem> {
    let Some(ack) = body.get("ack") else { return Ok(None) };
    let timeout = ack.get("timeoutMs").filter(|_| ack.members().count() == 1).and_then(Value::as_u64);
    let timeout = timeout.filter(|ms| (1..=ACK_MS_MAX).contains(ms));
    timeout.map(Some).ok_or_else(|| Problem::bad_request(format!("ack is {{timeoutMs}}, 1 to {ACK_MS_MAX}")))
}

/// The event's arguments, JSON texts with commas between them.
fn args(body: Value<'_>, endpoint: &Endpoint) -> Result<String, Problem> {
    let (data, args) = (body.get("data"), body.get("args"));
    match (data, args) {
        (Some(_), Some(_)) => Err(Problem::bad_request("an emit has data or args, not both")),
        (_, Some(_)) if !endpoint.dialect.is_socket_io() => Err(Problem::bad_request("args: the endpoint's events have data")),
        (_, Some(args)) if !args.is_array() => Err(Problem::bad_request("args is a list")),
        (Some(data), _) => Ok(data.raw().to_owned()),
        (None, Some(args)) => Ok(args.items().map(Value::raw).collect::<Vec<_>>().join(",")),
        (None, None) => Ok(String::new()),
    }
}

/// What came of an emit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    recipients: u64,
    acks: Option<u64>,
    /// What did not answer in time.
    missing: Missing,
}

impl Outcome {
    /// What an emit came to; that there is one is certain where one was asked for.
    fn of(outcome: Option<Result<Outcome, Problem>>) -> Result<Outcome, Problem> {
        outcome.unwrap_or_else(|| Err(Problem::unavailable("nothing was sent")))
    }

    pub(super) fn sum(gathered: &Gathered, with_acks: bool) -> Outcome {
        let here =
            |answer: &Answer| if let Answer::Emitted(Emitted { recipients, acks, .. }) = answer { (*recipients, *acks) } else { (0, 0) };
        let (recipients, acks) = gathered.all().map(here).fold((0, 0), |sum, here| (sum.0 + here.0, sum.1 + here.1));
        Outcome { recipients, acks: with_acks.then_some(acks), missing: Missing::of(gathered) }
    }

    fn shown(self) -> EmitOutcome {
        EmitOutcome { recipients: self.recipients, acks: self.acks }
    }

    pub(super) fn response(self) -> Response {
        answer(self.missing, self.shown())
    }
}

/// How far one of several emits has come.
enum Step<'a> {
    UnderWay(UnderWay<'a>),
    /// The same id was sent before, here or in another request.
    Sent(Arc<str>),
    Done(Outcome),
    /// Another host has the id, and does not say what came of it.
    Elsewhere,
}

/// What is to be done with an order.
enum Licence {
    Send,
    /// See [`Step::Sent`].
    Sent(Arc<str>),
    Done(Outcome),
    /// See [`Step::Elsewhere`].
    Elsewhere,
}

/// What a host knows of an emit with an id, for other hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Known {
    /// It is under way.
    UnderWay,
    /// This came of it.
    Done {
        /// Connections that it was sent to.
        recipients: u64,
        /// How many of them acknowledged it, where that was asked for.
        acks: Option<u64>,
    },
}

/// An emit that the shards were asked for.
struct UnderWay<'a> {
    asked: Asked<'a>,
    id: Option<Arc<str>>,
    ack_ms: Option<u64>,
}

impl UnderWay<'_> {
    /// What came of it, which is remembered if it has an id.
    fn outcome(self, app: &App) -> Outcome {
        let outcome = Outcome::sum(&self.asked.gathered(), self.ack_ms.is_some());
        if let Some(id) = &self.id {
            app.recent().done(id, outcome);
        }
        outcome
    }
}

/// Sends all in order; what came of each. It goes on when the client hangs up, and after the answer where that came too early: what has been
/// delivered must be remembered, or its retry would be delivered again.
async fn perform(app: Arc<App>, orders: Vec<Order>) -> Result<Vec<Result<Outcome, Problem>>, Problem> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (outcomes, late) = send(&app, orders).await;
        // Whoever has hung up asks again.
        let _ = tell.send(outcomes);
        let until = Instant::now() + LATE_WAIT;
        for mut under_way in late {
            under_way.asked.wait(until).await;
            under_way.outcome(&app);
        }
    });
    told.await.map_err(|_| Problem::unavailable("the server is stopping"))
}

/// What came of each, and those with ids of which that is not known yet.
async fn send(app: &App, orders: Vec<Order>) -> (Vec<Result<Outcome, Problem>>, Vec<UnderWay<'_>>) {
    let (mut outcomes, mut late) = (Vec::with_capacity(orders.len()), Vec::new());
    let mut steps = VecDeque::new();
    let licences = licences(app, &orders).await;
    for (order, licence) in orders.into_iter().zip(licences) {
        if steps.len() >= UNDER_WAY_MAX
            && let Some(step) = steps.pop_front()
        {
            outcomes.push(finish(app, step, &mut late).await);
        }
        steps.push_back(begin(app, order, licence));
    }
    while let Some(step) = steps.pop_front() {
        outcomes.push(finish(app, step, &mut late).await);
    }
    (outcomes, late)
}

/// How long [`send`] takes when every shard and every client is as slow as may be.
fn longest_ms(acks_ms: impl Iterator<Item = Option<u64>>) -> u64 {
    let (mut now_ms, mut ends) = (0, VecDeque::<u64>::new());
    for ack_ms in acks_ms {
        if ends.len() >= UNDER_WAY_MAX
            && let Some(end) = ends.pop_front()
        {
            now_ms = end.max(now_ms);
        }
        ends.push_back(now_ms + ANSWER_WAIT.as_millis() as u64 + ack_ms.unwrap_or(0));
    }
    ends.into_iter().max().unwrap_or(0)
}

/// Which of these may be sent. An id is claimed here first, and then of all hosts at once, so that a batch waits for one answer and not for a
/// thousand. Where nobody can tell (no Redis), what this host knows decides.
async fn licences(app: &App, orders: &[Order]) -> Vec<Licence> {
    let (mut licences, mut claimed) = (Vec::with_capacity(orders.len()), Vec::new());
    for order in orders {
        licences.push(match &order.id {
            None => Licence::Send,
            Some(id) => match app.recent().claim(id, monotonic_ms()) {
                Claim::First => {
                    let told = app.host.fleet().map(|fleet| fleet.claim(id.clone(), ID_AGE_MS));
                    claimed.extend(told.map(|told| (licences.len(), id.clone(), told)));
                    Licence::Send
                }
                Claim::UnderWay => Licence::Sent(id.clone()),
                Claim::Done(outcome) => Licence::Done(outcome),
            },
        });
    }
    let (until, mut taken) = (Instant::now() + CLAIM_WAIT, Vec::new());
    for (at, id, told) in claimed {
        if let Ok(Ok(handle::Claim::Taken)) = tokio::time::timeout_at(until, told).await {
            taken.push((at, id));
        }
    }
    if taken.is_empty() {
        return licences;
    }
    let ids: Vec<Arc<str>> = taken.iter().map(|(_, id)| id.clone()).collect();
    let known = app.outcomes_elsewhere(&ids).await;
    let mut unknown = Vec::new();
    for ((at, id), known) in taken.into_iter().zip(known) {
        licences[at] = match known {
            Some(Known::Done { recipients, acks }) => {
                let outcome = Outcome { recipients, acks, missing: Missing::default() };
                app.recent().done(&id, outcome);
                Licence::Done(outcome)
            }
            Some(Known::UnderWay) | None => {
                unknown.push(id);
                Licence::Elsewhere
            }
        };
    }
    // To be asked again at the next try.
    app.recent().forget(&unknown);
    licences
}

fn begin(app: &App, order: Order, licence: Licence) -> Step<'_> {
    match licence {
        Licence::Send => {}
        Licence::Sent(id) => return Step::Sent(id),
        Licence::Done(outcome) => return Step::Done(outcome),
        Licence::Elsewhere => return Step::Elsewhere,
    }
    let Order { emit, id } = order;
    let ack_ms = emit.ack_ms;
    Step::UnderWay(UnderWay { asked: app.pending.begin(&*app.host, Question::Emit(Arc::new(emit))), id, ack_ms })
}

async fn finish<'a>(app: &App, step: Step<'a>, late: &mut Vec<UnderWay<'a>>) -> Result<Outcome, Problem> {
    match step {
        Step::Done(outcome) => Ok(outcome),
        Step::Elsewhere => Err(Problem::conflict("id: another host has sent the same, and what came of it is not known yet")),
        // Earlier in the same batch: it is done by now.
        Step::Sent(id) => app.recent().outcome(&id).ok_or_else(|| Problem::conflict("id: the same is under way")),
        Step::UnderWay(UnderWay { asked, id, .. }) if !asked.is_taken() => {
            // Nothing is done and nothing will be, so that the same id can be tried again.
            if let Some(id) = id {
                app.recent().forget(std::slice::from_ref(&id));
                app.host.fleet().inspect(|fleet| fleet.release(id));
            }
            Err(Problem::unavailable("the shards take no more for now"))
        }
        Step::UnderWay(mut under_way) => {
            under_way.asked.wait(Instant::now() + ANSWER_WAIT + Duration::from_millis(under_way.ack_ms.unwrap_or(0))).await;
            if !under_way.asked.is_unanswered() {
                return Ok(under_way.outcome(app));
            }
            // It lies in the shards' lanes and will be delivered when they turn again.
            if under_way.id.is_some() {
                late.push(under_way);
            }
            Err(Problem::unavailable("no shard answered in time"))
        }
    }
}

/// Ids of the last emits, so that a retry is harmless: what came of each is told again.
#[derive(Default)]
pub struct Recent {
    outcomes: HashMap<Arc<str>, Option<Outcome>>,
    /// When each was claimed, oldest first.
    order: VecDeque<(u64, Arc<str>)>,
}

/// Whose an id is.
#[derive(PartialEq, Eq, Debug)]
enum Claim {
    First,
    UnderWay,
    Done(Outcome),
}

impl Recent {
    fn claim(&mut self, id: &Arc<str>, now_ms: u64) -> Claim {
        while self.order.front().is_some_and(|(at_ms, _)| now_ms.saturating_sub(*at_ms) > ID_AGE_MS || self.order.len() >= IDS_MAX) {
            if let Some((_, id)) = self.order.pop_front() {
                self.outcomes.remove(&id);
            }
        }
        match self.outcomes.get(id) {
            Some(Some(outcome)) => Claim::Done(*outcome),
            Some(None) => Claim::UnderWay,
            None => {
                self.outcomes.insert(id.clone(), None);
                self.order.push_back((now_ms, id.clone()));
                Claim::First
            }
        }
    }

    fn done(&mut self, id: &str, outcome: Outcome) {
        if let Some(known) = self.outcomes.get_mut(id) {
            *known = Some(outcome);
        }
    }

    fn forget(&mut self, ids: &[Arc<str>]) {
        if ids.is_empty() {
            return;
        }
        for id in ids {
            self.outcomes.remove(id);
        }
        // A walk through all of them, but only when the lanes of all shards are full, or another host has been quicker.
        let outcomes = &self.outcomes;
        self.order.retain(|(_, known)| outcomes.contains_key(known));
    }

    /// What other hosts are told of it.
    pub(super) fn known(&self, id: &str) -> Option<Known> {
        self.outcomes.get(id).map(|outcome| match outcome {
            Some(Outcome { recipients, acks, .. }) => Known::Done { recipients: *recipients, acks: *acks },
            None => Known::UnderWay,
        })
    }

    fn outcome(&self, id: &str) -> Option<Outcome> {
        self.outcomes.get(id).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::Ordering::Relaxed;

    use serde_json::json;

    use axum::Router;
    use axum::http::{Method, StatusCode};

    use super::super::testing::{FakeHost, Heard, app, call_with, connection};
    use super::*;
    use crate::bridge::Pending;

    type Asked = Arc<Mutex<Vec<Arc<Emit>>>>;

    /// Two shards that answer every emit with two recipients and one acknowledgement each.
    fn router() -> (Asked, Router) {
        let asked = Asked::default();
        let (list, pending) = (asked.clone(), Arc::new(Pending::default()));
        let host = FakeHost::new(2).answering(&pending, move |shard, question| {
            let Question::Emit(emit) = question else { return None };
            if shard == 0 {
                list.lock().expect("one thread").push(emit.clone());
            }
            Some(Answer::Emitted(Emitted { recipients: 2, acks: 1, answers: Vec::new() }))
        });
        (asked, super::super::admin::router(Arc::new(app(Arc::new(host), pending))))
    }

    async fn post(router: &Router, path: &str, body: &str) -> Heard {
        call_with(router, Method::POST, path, &[("authorization", "Bearer correct horse")], body).await
    }

    #[tokio::test]
    async fn an_emit_reaches_the_engine_word_by_word() {
        let (asked, router) = router();
        let id = connection(1, 5, "alice").id.to_string();
        let body = format!(
            r#" {{"endpoint":"rooms","to":{{"rooms":["r","\u0001u:alice","{id}"]}},"except":["{id}","s"],"event":"e",
                "args":[1e+100, {{"a" : -0}}],"volatile":true,"ack":{{"timeoutMs":5}}}} "#
        );
        let heard = post(&router, EMIT, &body).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 4, "acks": 2})));
        let named = |names: &[&str]| names.iter().map(|name| Target::Room((*name).into())).collect::<Vec<_>>();
        for (to, targets) in [
            (r#"{"all":true}"#.to_owned(), vec![Target::all()]),
            (r#"{"users":["bob","é"]}"#.into(), vec![Target::user("bob"), Target::user("é")]),
            (format!(r#"{{"connections":["{id}","r"]}}"#), vec![Target::Connection(Sid::parse(&id).expect("an id"))]),
            (r#"{"rooms":[]}"#.into(), vec![]),
        ] {
            let heard = post(&router, EMIT, &format!(r#"{{"endpoint":"rooms","to":{to},"event":"e","data":"x"}}"#)).await;
            assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 4})), "{to}");
            let emit = asked.lock().expect("one thread").pop().expect("asked");
            assert_eq!((&emit.to.targets, emit.args.as_str(), emit.ack_ms, emit.volatile), (&targets, r#""x""#, None, false), "{to}");
        }
        let emit = asked.lock().expect("one thread").pop().expect("asked");
        assert_eq!((emit.to.targets.clone(), emit.to.except.clone()), (named(&["r", "\u{1}u:alice", &id]), named(&[&id, "s"])));
        assert_eq!((emit.args.as_str(), emit.ack_ms, emit.volatile), (r#"1e+100,{"a" : -0}"#, Some(5), true));
    }

    #[tokio::test]
    async fn wrong_emits_are_problems_and_reach_nobody() {
        let (asked, router) = router();
        let with = |member: &str| format!(r#"{{"endpoint":"rooms","to":{{"all":true}},"event":"e",{member}}}"#);
        let to = |to: &str| format!(r#"{{"endpoint":"rooms","event":"e","to":{to}}}"#);
        let mut bad = vec![
            String::new(),
            "[]".into(),
            "{".into(),
            r#"{"to":{"all":true},"event":"e"}"#.into(),
            r#"{"endpoint":"rooms","event":"e"}"#.into(),
            r#"{"endpoint":"rooms","to":{"all":true}}"#.into(),
            r#"{"endpoint":1,"to":{"all":true},"event":"e"}"#.into(),
            r#"{"endpoint":"rooms","to":{"all":true},"event":7}"#.into(),
            r#"{"endpoint":"community","to":{"all":true},"event":"e","args":[1]}"#.into(),
            r#"{"endpoint":"community","to":{"all":true},"event":"e","ack":{"timeoutMs":5}}"#.into(),
            r#"{"endpoint":"fabric","to":{"all":true},"event":"e","data":[1]}"#.into(),
        ];
        bad.extend(RESERVED_EVENTS.map(|event| format!(r#"{{"endpoint":"rooms","to":{{"all":true}},"event":"{event}"}}"#)));
        bad.extend(
            ["[]", "{}", r#"{"all":false}"#, r#"{"all":true,"rooms":[]}"#, r#"{"room":["r"]}"#, r#"{"rooms":"r"}"#, r#"{"rooms":[1]}"#]
                .map(to),
        );
        bad.extend(
            [r#"{"rooms":[""]}"#, r#"{"rooms":["a\nb"]}"#, r#"{"rooms":["\u0001t:x"]}"#, r#"{"users":[""]}"#, r#"{"users":["\u0001u:x"]}"#]
                .map(to),
        );
        bad.extend(
            [
                r#""data":1,"args":[]"#,
                r#""args":{}"#,
                r#""volatile":1"#,
                r#""ack":{}"#,
                r#""ack":{"timeoutMs":0}"#,
                r#""ack":{"timeoutMs":60001}"#,
                r#""ack":{"timeoutMs":"5"}"#,
                r#""ack":{"timeoutMs":5,"x":1}"#,
                r#""ack":5"#,
                r#""id":"""#,
                r#""id":5"#,
                r#""except":"x""#,
                r#""except":[{}]"#,
                r#""colour":"red""#,
            ]
            .map(with),
        );
        for body in bad {
            let heard = post(&router, EMIT, &body).await;
            assert_eq!((heard.status, heard.header("content-type")), (StatusCode::BAD_REQUEST, "application/problem+json"), "{body}");
            let heard = post(&router, BATCH, &format!("[{},{body}]", with(r#""data":1"#))).await;
            // An empty text is no item, and a list may end with a comma nowhere.
            assert_eq!(heard.status, StatusCode::BAD_REQUEST, "{body}");
        }
        let unknown = post(&router, EMIT, r#"{"endpoint":"nothing","to":{"all":true},"event":"e"}"#).await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        let large = post(&router, EMIT, &with(&format!(r#""data":"{}""#, "x".repeat(EMIT_BYTES_MAX)))).await;
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
        let many = format!("[{}1]", "1,".repeat(BATCH_MAX));
        assert_eq!(post(&router, BATCH, &many).await.status, StatusCode::BAD_REQUEST);
        assert_eq!(call_with(&router, Method::GET, EMIT, &[("authorization", "Bearer correct horse")], "").await.status, 405);
        assert!(asked.lock().expect("one thread").is_empty(), "nothing was sent");
    }

    #[tokio::test]
    async fn an_id_is_delivered_once() {
        let (asked, router) = router();
        let body = r#"{"endpoint":"rooms","to":{"all":true},"event":"e","id":"one","ack":{"timeoutMs":5}}"#;
        for _ in 0..3 {
            assert_eq!(post(&router, EMIT, body).await.json(), json!({"recipients": 4, "acks": 2}));
        }
        assert_eq!(asked.lock().expect("one thread").len(), 1);
        let other = body.replace("one", "two");
        let batch = post(&router, BATCH, &format!("[{body},{other},{other}]")).await;
        let told = json!({"recipients": 4, "acks": 2});
        assert_eq!((batch.status, batch.json()), (StatusCode::OK, json!({"results": [told, told, told]})));
        assert_eq!(asked.lock().expect("one thread").len(), 2);
        assert_eq!(post(&router, BATCH, "[]").await.json(), json!({"results": []}));
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_of_what_is_under_way_is_a_conflict_also_after_its_client_has_gone() {
        let pending = Arc::new(Pending::default());
        let host = FakeHost::new(2).answering(&pending, |shard, _| (shard == 0).then(|| Answer::Emitted(Emitted::default())));
        let router = super::super::admin::router(Arc::new(app(Arc::new(host), pending)));
        let body = r#"{"endpoint":"rooms","to":{"all":true},"event":"e","id":"one","ack":{"timeoutMs":3000}}"#;
        let hung_up = tokio::time::timeout(Duration::from_millis(10), post(&router, EMIT, body)).await;
        assert!(hung_up.is_err(), "a shard is silent");
        assert_eq!(post(&router, EMIT, body).await.status, StatusCode::CONFLICT);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let heard = post(&router, EMIT, body).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 0, "acks": 0})));
        assert_eq!(heard.header("uringcast-missing-shards"), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_shard_answered_is_under_way_until_it_is_known_what_came_of_it() {
        let pending = Arc::new(Pending::default());
        let host = Arc::new(FakeHost::new(2).answering(&pending, |_, _| None));
        let router = super::super::admin::router(Arc::new(app(host.clone(), pending.clone())));
        let emit = |id: &str| format!(r#"{{"endpoint":"rooms","to":{{"all":true}},"event":"e","id":"{id}"}}"#);
        let batch = post(&router, BATCH, &format!("[{0},{0}]", emit("one"))).await.json();
        assert_eq!([&batch["results"][0]["status"], &batch["results"][1]["status"]], [&json!(503), &json!(409)]);
        let asked = host.asked.load(Relaxed);
        assert_eq!(post(&router, EMIT, &emit("one")).await.status, StatusCode::CONFLICT);
        assert_eq!(host.asked.load(Relaxed), asked, "it lies in the lanes: nobody is asked again");
        // The shards turn again.
        for _ in 0..2 {
            pending.deliver(asked, Answer::Emitted(Emitted { recipients: 3, acks: 0, answers: Vec::new() }));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let heard = post(&router, EMIT, &emit("one")).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 6})));

        assert_eq!(post(&router, EMIT, &emit("two")).await.status, StatusCode::SERVICE_UNAVAILABLE);
        tokio::time::sleep(LATE_WAIT + Duration::from_secs(1)).await;
        let heard = post(&router, EMIT, &emit("two")).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 0})), "nobody will ever know");
        assert_eq!(heard.header("uringcast-missing-shards"), "2");
        assert!(LATE_WAIT < Duration::from_millis(ID_AGE_MS));
    }

    #[tokio::test]
    async fn what_no_shard_took_can_be_tried_again() {
        let pending = Arc::new(Pending::default());
        let host = Arc::new(FakeHost::new(2).answering(&pending, |_, _| Some(Answer::Emitted(Emitted::default()))));
        let router = super::super::admin::router(Arc::new(app(host.clone(), pending)));
        let body = r#"{"endpoint":"rooms","to":{"all":true},"event":"e","id":"one"}"#;
        host.is_full.store(true, Relaxed);
        for _ in 0..2 {
            assert_eq!(post(&router, EMIT, body).await.status, StatusCode::SERVICE_UNAVAILABLE);
        }
        host.is_full.store(false, Relaxed);
        assert_eq!(post(&router, EMIT, body).await.json(), json!({"recipients": 0}));
    }

    #[tokio::test]
    async fn a_batch_that_would_outlast_its_answer_is_refused() {
        let (asked, router) = router();
        let emit = |ack_ms: u64| format!(r#"{{"endpoint":"rooms","to":{{"all":true}},"event":"e","ack":{{"timeoutMs":{ack_ms}}}}}"#);
        let batch = |ack_ms, count| format!("[{}]", vec![emit(ack_ms); count].join(","));
        for (ack_ms, count, status) in [(60_000, 128, 200), (60_000, 129, 400), (7_000, 1_000, 200), (7_001, 1_000, 400)] {
            let heard = post(&router, BATCH, &batch(ack_ms, count)).await;
            assert_eq!(heard.status, status, "{ack_ms} ms, {count} times");
        }
        assert_eq!(asked.lock().expect("one thread").len(), 128 + 1_000);
        assert!(Duration::from_millis(BATCH_MS_MAX) < ANSWER_TIME);
    }

    #[test]
    fn ids_are_known_for_five_minutes_and_are_bounded() {
        let mut recent = Recent::default();
        let outcome = Outcome { recipients: 1, acks: None, missing: Missing::default() };
        let id = |number: usize| Arc::<str>::from(number.to_string());
        assert_eq!((recent.claim(&id(0), 0), recent.claim(&id(0), 1)), (Claim::First, Claim::UnderWay));
        recent.done("0", outcome);
        assert_eq!(recent.claim(&id(0), ID_AGE_MS), Claim::Done(outcome));
        assert_eq!(recent.claim(&id(0), ID_AGE_MS + 1), Claim::First);
        for number in 1..=IDS_MAX {
            assert_eq!(recent.claim(&id(number), ID_AGE_MS + 2), Claim::First);
        }
        assert_eq!((recent.outcomes.len(), recent.order.len()), (IDS_MAX, IDS_MAX));
        assert_eq!(recent.claim(&id(0), ID_AGE_MS + 3), Claim::First, "the oldest made way");
    }
}
