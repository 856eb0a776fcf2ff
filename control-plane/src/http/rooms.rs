//! `/v1/rooms`: rooms that the back end makes, looks at and ends. A room that clients made by entering it is shown as well.
//!
//! Who is in them is the business of [`super::members`], what is said of [`super::messages`].

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::config::DialectKind;
use engine::ids::{EndpointId, Room, Sid, new_message_id};
use engine::json::Scratch;
use engine::limits::{ROOM_MEMBERS_SHOWN_MAX, ROOM_METADATA_BYTES_MAX};
use engine::{Answer, NewRoom, Question, RoomAnswer, RoomCall, RoomFault, RoomInfo, dialect};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::admin::{self, BODY_BYTES_MAX, LIST_DEFAULT, Missing, NoQuery, answer, endpoint_named, first_rooms_endpoint};
use super::emit::body;
use super::problem::{Params, Problem, Segment};
use super::shapes::{Name, raw, rfc3339};
use super::{App, Gathered};

/// A room to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RoomBody {
    /// Name of the endpoint; if it is not said, the first of `rooms`.
    endpoint: Option<String>,
    /// Its id; a UUIDv7 if it is not said.
    #[schema(value_type = Option<Name>)]
    id: Option<String>,
    /// Its name for people.
    #[schema(value_type = Name)]
    name: String,
    /// An attribute to list rooms by; `default` if it is not said.
    #[schema(value_type = Option<Name>)]
    namespace: Option<String>,
    /// By whom it is made.
    #[schema(value_type = Option<Name>)]
    created_by: Option<String>,
    /// Whatever there is to say of it, at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
}

/// The endpoint of a room.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RoomQuery {
    /// The room's endpoint; if it is not said, the first of `rooms`.
    pub(super) endpoint: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RoomsQuery {
    /// The rooms' endpoint; if it is not said, the first of `rooms`.
    endpoint: Option<String>,
    /// Only those of this namespace.
    #[param(value_type = Option<Name>)]
    namespace: Option<String>,
    /// How many at most; 100 if it is not said. A page may have fewer and be followed by more.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the page before ended: the `cursor` of its answer.
    cursor: Option<String>,
}

/// A room, in the shape of its endpoint's dialect.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum RoomShown {
    Room(RoomRecord),
    Chat(ChatRoom),
}

/// A room.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RoomRecord {
    id: String,
    /// Its name for people; the id where clients made it.
    name: String,
    /// An attribute to list rooms by.
    namespace: String,
    /// Connections in it.
    member_count: u32,
    /// Their ids, of very large rooms not all: the list of members has them.
    members: Vec<String>,
    /// What was said of it when it was made.
    #[schema(value_type = Object)]
    metadata: Box<RawValue>,
    /// RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
    /// By whom it was made, if that was said.
    created_by: Option<String>,
}

/// A room of an endpoint of chat.
#[derive(Serialize, ToSchema)]
// No more than these, so that it is told from the other shapes of its answer.
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ChatRoom {
    /// Its id.
    name: String,
    /// Connections in it.
    member_count: u32,
    /// Their ids, of very large rooms not all: the list of members has them.
    members: Vec<String>,
    /// RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
}

/// A page of rooms, by id.
#[derive(Serialize, ToSchema)]
pub(super) struct RoomList {
    rooms: Vec<RoomShown>,
    /// For the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// How a room does.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RoomStats {
    room_id: String,
    /// Connections in it.
    member_count: u32,
    /// Messages that are kept of it.
    message_count: usize,
    /// RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
    /// When somebody last came, went or said something, RFC 3339.
    #[schema(format = DateTime)]
    last_activity: String,
}

/// A room has ended.
#[derive(Serialize, ToSchema)]
pub(super) struct Deleted {
    /// Always true.
    deleted: bool,
}

/// Makes a room. It exists without members until it is deleted.
#[utoipa::path(post, path = "/v1/rooms", tag = "rooms", request_body = RoomBody, responses(
    (status = 201, description = "the room", body = RoomShown),
    (status = 404, description = "no endpoint has the name"),
    (status = 409, description = "there is a room of this id, the id is a connection's, or there are as many rooms as may be"),
))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Params(NoQuery {}): Params<NoQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let body: RoomBody = read(request, BODY_BYTES_MAX).await?;
    let endpoint = endpoint_or_default(&app, body.endpoint.as_deref())?;
    // One that is made up here is nobody else's.
    let is_given = body.id.is_some();
    let id = body.id.unwrap_or_else(|| new_message_id(unix_ms(), &rand::random()).to_string());
    if !has_room(&app, endpoint, &id) {
        admin::name(id, "id")?;
        return Err(Problem::bad_request("id: the endpoint's rooms are named otherwise"));
    }
    let new = NewRoom {
        room: Room::named(endpoint, &id),
        name: admin::name(body.name, "name")?,
        namespace: body.namespace.map(|namespace| admin::name(namespace, "namespace")).transpose()?,
        created_by: body.created_by.map(|by| admin::name(by, "createdBy")).transpose()?,
        metadata: object(body.metadata)?.unwrap_or_else(|| "{}".into()),
    };
    if new.metadata.len() > ROOM_METADATA_BYTES_MAX {
        return Err(Problem::bad_request(format!("metadata has at most {ROOM_METADATA_BYTES_MAX} bytes")));
    }
    if is_given && of_home(app.ask_hosts(Question::Room(RoomCall::Stats { room: new.room.clone() }), None).await).is_ok() {
        return Err(refusal(RoomFault::Exists));
    }
    // Every host keeps a record of it. That a host cannot, or has been quicker, is no reason to have none here.
    let gathered = app.ask(Question::Room(RoomCall::Create(Arc::new(new)))).await;
    let missing = Missing::of(&gathered);
    match of_home(Gathered { hosts: Vec::new(), ..gathered })? {
        Told { answer: RoomAnswer::Room(info, members), .. } => {
            let shown = answer(missing, RoomShown::new(&app, endpoint, *info, &members));
            Ok((StatusCode::CREATED, shown).into_response())
        }
        told => Err(told.unexpected()),
    }
}

/// Rooms by their ids, also those that clients made.
#[utoipa::path(get, path = "/v1/rooms", tag = "rooms", params(RoomsQuery), responses(
    (status = 200, description = "a page of them", body = RoomList),
    (status = 404, description = "no endpoint has the name"),
))]
pub(super) async fn list(State(app): State<Arc<App>>, Params(query): Params<RoomsQuery>) -> Result<Response, Problem> {
    let limit = admin::limit(query.limit, LIST_DEFAULT)?;
    let endpoint = endpoint_or_default(&app, query.endpoint.as_deref())?;
    let namespace = query.namespace.map(|namespace| admin::name(namespace, "namespace")).transpose()?;
    let after = query.cursor.map(|cursor| after_cursor(&cursor, |id| has_room(&app, endpoint, id))).transpose()?;
    // One more than is shown tells whether there is a next page.
    let gathered = app.ask(Question::Room(RoomCall::List { endpoint, namespace, after, limit: limit + 1 })).await;
    let missing = Missing::of(&gathered);
    let (infos, cursor) = page(gathered, limit);
    let rooms: Arc<[Room]> = infos.iter().map(|info| Room { endpoint, name: info.id.clone() }).collect();
    let members = app.ask(Question::Room(RoomCall::Members { rooms })).await;
    let missing = missing.max(Missing::of(&members));
    let members = members_of(members, infos.len());
    let rooms = infos.into_iter().zip(&members).map(|(info, members)| RoomShown::new(&app, endpoint, info, members));
    Ok(answer(missing, RoomList { rooms: rooms.collect(), cursor }))
}

/// One room.
#[utoipa::path(get, path = "/v1/rooms/{id}", tag = "rooms", params(("id" = Name, Path, description = "Its id."), RoomQuery), responses(
    (status = 200, description = "the room", body = RoomShown),
    (status = 404, description = "no room has the id, or no endpoint the name"),
))]
pub(super) async fn show(State(app): State<Arc<App>>, Segment(id): Segment, Params(query): Params<RoomQuery>) -> Result<Response, Problem> {
    let room = room_of(&app, query.endpoint.as_deref(), id)?;
    let endpoint = room.endpoint;
    match of_home(app.ask(Question::Room(RoomCall::Show { room })).await)? {
        Told { answer: RoomAnswer::Room(info, members), missing } => Ok(answer(missing, RoomShown::new(&app, endpoint, *info, &members))),
        told => Err(told.unexpected()),
    }
}

/// Ends a room. Its members are out of it, all at once and without a word to them, and what was kept of it is gone. Users who were put there
/// enter it no more, also if there is no such room now.
#[utoipa::path(delete, path = "/v1/rooms/{id}", tag = "rooms", params(("id" = Name, Path, description = "Its id."), RoomQuery), responses(
    (status = 200, description = "it is no more", body = Deleted),
    (status = 404, description = "no room has the id, or no endpoint the name"),
))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(query): Params<RoomQuery>,
) -> Result<Response, Problem> {
    let room = room_of(&app, query.endpoint.as_deref(), id)?;
    let told = of_home(app.ask(Question::Room(RoomCall::Delete { room })).await)?;
    Ok(answer(told.missing, Deleted { deleted: true }))
}

/// How a room does.
#[utoipa::path(get, path = "/v1/rooms/{id}/stats", tag = "rooms", params(("id" = Name, Path, description = "Its id."), RoomQuery),
    responses(
        (status = 200, description = "the numbers", body = RoomStats),
        (status = 404, description = "no room has the id, or no endpoint the name"),
    ))]
pub(super) async fn stats(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(query): Params<RoomQuery>,
) -> Result<Response, Problem> {
    let room = room_of(&app, query.endpoint.as_deref(), id)?;
    match of_home(app.ask(Question::Room(RoomCall::Stats { room })).await)? {
        Told { answer: RoomAnswer::Stats(info, message_count), missing } => {
            let (room_id, created_at) = (info.id.to_string(), rfc3339(info.created_unix_ms));
            let last_activity = rfc3339(info.active_unix_ms);
            Ok(answer(missing, RoomStats { room_id, member_count: info.members, message_count, created_at, last_activity }))
        }
        told => Err(told.unexpected()),
    }
}

impl RoomShown {
    fn new(app: &App, endpoint: EndpointId, info: RoomInfo, members: &[Sid]) -> RoomShown {
        let mut members: Vec<String> = members.iter().map(ToString::to_string).collect();
        members.sort_unstable();
        members.truncate(ROOM_MEMBERS_SHOWN_MAX);
        let (id, created_at) = (info.id.to_string(), rfc3339(info.created_unix_ms));
        let dialect = app.host.endpoints().get(usize::from(endpoint.0)).map(|endpoint| endpoint.dialect);
        if dialect == Some(DialectKind::Chat) {
            return RoomShown::Chat(ChatRoom { name: id, member_count: info.members, members, created_at });
        }
        let RoomInfo { name, namespace, created_by, metadata, members: member_count, .. } = info;
        RoomShown::Room(RoomRecord { id, name, namespace, member_count, members, metadata: raw(&metadata), created_at, created_by })
    }
}

/// What was answered to a call about a room.
#[derive(Debug)]
pub(super) struct Told {
    /// What counts: of each host the room's home, or the connection's shard, decides, and these are made one.
    pub(super) answer: RoomAnswer,
    /// What did not answer in time.
    pub(super) missing: Missing,
}

impl Told {
    /// An answer to another question than was asked: nobody can cause that.
    pub(super) fn unexpected(self) -> Problem {
        Problem { status: StatusCode::INTERNAL_SERVER_ERROR, detail: "a shard answered something else".into() }
    }
}

/// Why there is no answer that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Undone {
    /// It does not happen.
    Refused(RoomFault),
    /// Nobody can tell what has happened.
    Silent,
}

impl From<Undone> for Problem {
    fn from(undone: Undone) -> Problem {
        match undone {
            Undone::Refused(fault) => refusal(fault),
            Undone::Silent => Problem::unavailable("a shard did not answer in time"),
        }
    }
}

/// What all hosts answered, as one. Of this host somebody must have decided; another host counts as far as it answers.
pub(super) fn decided(gathered: Gathered) -> Result<Told, Undone> {
    let missing = Missing::of(&gathered);
    let is_asked_here = gathered.missing > 0 || !gathered.answers.is_empty();
    let here = decisive(gathered.answers);
    if is_asked_here && here.is_none() {
        return Err(Undone::Silent);
    }
    let others = gathered.hosts.into_iter().filter_map(|host| decisive(host.answers));
    match here.into_iter().chain(others).reduce(as_one) {
        Some(RoomAnswer::Refused(fault)) => Err(Undone::Refused(fault)),
        Some(answer) => Ok(Told { answer, missing }),
        None => Err(Undone::Silent),
    }
}

/// The same, for calls that have nothing else to try.
pub(super) fn of_home(gathered: Gathered) -> Result<Told, Problem> {
    Ok(decided(gathered)?)
}

/// Of the answers of one host's shards one counts. Members on the others are added where those were asked for.
pub(super) fn decisive(answers: Vec<Answer>) -> Option<RoomAnswer> {
    let (mut decisive, mut elsewhere) = (None, Vec::new());
    for answer in answers {
        match answer {
            Answer::Room(RoomAnswer::Elsewhere) => {}
            Answer::Room(RoomAnswer::Members(lists)) => elsewhere.extend(lists.into_iter().flatten()),
            Answer::Room(answer) => decisive = Some(answer),
            _ => {}
        }
    }
    if let Some(RoomAnswer::Room(_, members)) = &mut decisive {
        members.extend(elsewhere);
    }
    decisive
}

/// What two hosts say of one room, or of one connection. Each host has a home of its own for a room, with its own members; who has no such thing
/// has nothing to say.
fn as_one(first: RoomAnswer, second: RoomAnswer) -> RoomAnswer {
    match (first, second) {
        // The connection's host says why not, where the others know no such connection.
        (RoomAnswer::Refused(RoomFault::NoConnection), other) => other,
        (RoomAnswer::Refused(first), RoomAnswer::Refused(_)) => RoomAnswer::Refused(first),
        (RoomAnswer::Refused(_), other) | (other, RoomAnswer::Refused(_)) => other,
        (RoomAnswer::Room(info, mut members), RoomAnswer::Room(other, more)) => {
            members.extend(more);
            RoomAnswer::Room(Box::new(one_room(*info, *other)), members)
        }
        // All of them keep the same messages, as far as they have heard them.
        (RoomAnswer::Stats(info, kept), RoomAnswer::Stats(other, more)) => {
            RoomAnswer::Stats(Box::new(one_room(*info, *other)), kept.max(more))
        }
        (RoomAnswer::Messages(kept), RoomAnswer::Messages(more)) if more.len() > kept.len() => RoomAnswer::Messages(more),
        (first, _) => first,
    }
}

/// The records of one room on two hosts. What the back end said of it counts; a host where clients were quicker does not have that.
fn one_room(first: RoomInfo, second: RoomInfo) -> RoomInfo {
    let is_bare = |info: &RoomInfo| *info.name == *info.id && info.created_by.is_none() && info.metadata == "{}";
    let members = first.members.saturating_add(second.members);
    let created_unix_ms = first.created_unix_ms.min(second.created_unix_ms);
    let active_unix_ms = first.active_unix_ms.max(second.active_unix_ms);
    let info = if is_bare(&first) && !is_bare(&second) { second } else { first };
    RoomInfo { members, created_unix_ms, active_unix_ms, ..info }
}

fn refusal(fault: RoomFault) -> Problem {
    let status = match fault {
        RoomFault::NoRoom | RoomFault::NoConnection => StatusCode::NOT_FOUND,
        RoomFault::Exists | RoomFault::IsConnection | RoomFault::Full | RoomFault::Unproven => StatusCode::CONFLICT,
        RoomFault::Bound => StatusCode::BAD_REQUEST,
    };
    Problem { status, detail: fault.to_string() }
}

/// The first `limit` rooms of all shards' lists, and where to go on.
fn page(gathered: Gathered, limit: usize) -> (Vec<RoomInfo>, Option<String>) {
    let (mut found, mut horizon) = (Vec::new(), None::<String>);
    for answer in gathered.into_all() {
        let Answer::Room(RoomAnswer::Rooms { rooms, until }) = answer else { continue };
        found.extend(rooms);
        horizon = horizon.into_iter().chain(until).min();
    }
    // Stable: of the records of one room this host's comes first.
    found.sort_by(|one: &RoomInfo, other| one.id.cmp(&other.id));
    found = found.into_iter().fold(Vec::new(), |mut found, info| {
        let same = found.pop_if(|last: &mut RoomInfo| last.id == info.id);
        found.push(same.map_or_else(|| info.clone(), |same| one_room(same, info.clone())));
        found
    });
    // What lies beyond it some shard has not looked at.
    found.retain(|info| horizon.as_deref().is_none_or(|horizon| &*info.id <= horizon));
    let last = (found.len() > limit).then(|| found[limit - 1].id.to_string()).or(horizon);
    found.truncate(limit);
    (found, last.map(|last| cursor(&last)))
}

fn members_of(gathered: Gathered, rooms: usize) -> Vec<Vec<Sid>> {
    let mut members = vec![Vec::new(); rooms];
    for answer in gathered.into_all() {
        let Answer::Room(RoomAnswer::Members(lists)) = answer else { continue };
        for (all, here) in members.iter_mut().zip(lists) {
            all.extend(here);
        }
    }
    members
}

/// A list goes on after the id that its cursor wraps. Wrapped, so that nobody builds one: what is in it may change.
fn cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("2{last}"))
}

fn after_cursor(cursor: &str, is_id: impl Fn(&str) -> bool) -> Result<String, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let id = text.as_deref().and_then(|text| text.strip_prefix('2')).filter(|id| is_id(id));
    id.map(str::to_owned).ok_or_else(|| Problem::bad_request("cursor is not one of ours"))
}

/// The room that a call is about; whether it exists is another matter.
pub(super) fn room_of(app: &App, endpoint: Option<&str>, id: String) -> Result<Room, Problem> {
    let endpoint = endpoint_or_default(app, endpoint)?;
    if !has_room(app, endpoint, &id) {
        admin::name(id, "room")?;
        return Err(refusal(RoomFault::NoRoom));
    }
    Ok(Room::named(endpoint, &id))
}

/// True exactly when an endpoint's room can have this id. Of community it is a name with something before it, so it may be longer than one.
fn has_room(app: &App, endpoint: EndpointId, id: &str) -> bool {
    dialect::of(app.host.endpoints()[usize::from(endpoint.0)].dialect).has_room(id)
}

/// Rooms are those of the first `rooms` endpoint if none is named.
pub(super) fn endpoint_or_default(app: &App, name: Option<&str>) -> Result<EndpointId, Problem> {
    name.map_or_else(|| first_rooms_endpoint(app), |name| endpoint_named(app, name))
}

/// A JSON body of a known shape.
pub(super) async fn read<T: DeserializeOwned>(request: Request, bytes_max: usize) -> Result<T, Problem> {
    let text = body(request, bytes_max).await?;
    // What is relayed out of it must not be nested deeper than clients can read.
    Scratch::default().parse(&text).map_err(|_| Problem::bad_request("the body is not JSON"))?;
    serde_json::from_str(&text).map_err(|fault| Problem::bad_request(fault.to_string()))
}

/// The text of a JSON object.
pub(super) fn object(metadata: Option<Box<RawValue>>) -> Result<Option<String>, Problem> {
    match metadata {
        Some(metadata) if !metadata.get().starts_with('{') => Err(Problem::bad_request("metadata is an object")),
        metadata => Ok(metadata.map(|metadata| metadata.get().to_owned())),
    }
}

/// Now, milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::http::Method;
    use engine::Saying;
    use engine::ids::MessageId;
    use serde_json::{Value, json};

    use super::super::testing::{FakeHost, Heard, app, call_with, connection};
    use super::*;
    use crate::bridge::Pending;

    const BEARER: (&str, &str) = ("authorization", "Bearer correct horse");

    type Asked = Arc<Mutex<Vec<RoomCall>>>;

    /// Two shards of which the second is the home of every room and answers like this; what they were asked.
    fn answering(answer: impl Fn(&RoomCall) -> RoomAnswer + Send + Sync + 'static) -> (Asked, Router) {
        let asked = Asked::default();
        let (list, pending) = (asked.clone(), Arc::new(Pending::default()));
        let host = FakeHost::new(2).answering(&pending, move |shard, question| match question {
            Question::Room(call) if shard == 1 => {
                list.lock().expect("one thread").push(call.clone());
                Some(Answer::Room(answer(call)))
            }
            Question::Room(RoomCall::Show { .. }) => Some(Answer::Room(RoomAnswer::Members(vec![vec![connection(0, 1, "a").id]]))),
            Question::Room(_) => Some(Answer::Room(RoomAnswer::Elsewhere)),
            _ => Some(Answer::Connections(Vec::new())),
        });
        (asked, admin::router(Arc::new(app(Arc::new(host), pending))))
    }

    async fn send(router: &Router, method: Method, path: &str, body: &str) -> Heard {
        call_with(router, method, path, &[BEARER], body).await
    }

    fn info(id: &str) -> RoomInfo {
        RoomInfo {
            id: id.into(),
            name: format!("the {id}"),
            namespace: "ns".into(),
            created_by: None,
            metadata: r#"{"n":1.50}"#.into(),
            created_unix_ms: 1_704_067_200_000,
            active_unix_ms: 1_704_067_201_000,
            members: 2,
        }
    }

    #[tokio::test]
    async fn a_room_is_made_as_the_body_says_and_shown_in_its_dialects_shape() {
        let (asked, router) = answering(|call| match call {
            RoomCall::Create(new) => {
                RoomAnswer::Room(Box::new(RoomInfo { metadata: new.metadata.clone(), ..info(&new.room.name) }), Vec::new())
            }
            RoomCall::Stats { room } => RoomAnswer::Stats(Box::new(info(&room.name)), 7),
            _ => RoomAnswer::Room(Box::new(info("r 1")), vec![connection(1, 2, "b").id]),
        });
        let heard = send(&router, Method::POST, "/v1/rooms", r#"{"id":"r","name":"R","metadata":{"n":1e400}}"#).await;
        assert_eq!(heard.status, StatusCode::CREATED);
        let text = r#"{"id":"r","name":"the r","namespace":"ns","memberCount":2,"members":[],"metadata":{"n":1e400},"createdAt":"2024-01-01T00:00:00.000Z","createdBy":null}"#;
        assert_eq!(heard.body, text);
        let heard = send(&router, Method::POST, "/v1/rooms", r#"{"name":"R","namespace":"n","createdBy":"me","endpoint":"chat"}"#).await;
        assert_eq!((heard.status, &heard.json()["memberCount"]), (StatusCode::CREATED, &json!(2)));
        let asked = asked.lock().expect("one thread").clone();
        let [RoomCall::Create(first), RoomCall::Create(second)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!((first.room.endpoint, &*first.metadata, &first.created_by), (EndpointId(2), r#"{"n":1e400}"#, &None));
        assert_eq!((second.room.endpoint, &*second.metadata, second.created_by.as_deref()), (EndpointId(3), "{}", Some("me")));
        let id = MessageId::parse_str(&second.room.name).expect("a UUID");
        assert_eq!(id.get_version_num(), 7);

        let [first, second] = [connection(0, 1, "a").id.to_string(), connection(1, 2, "b").id.to_string()];
        let shown = send(&router, Method::GET, "/v1/rooms/r%201", "").await;
        assert_eq!((shown.status, &shown.json()["members"]), (StatusCode::OK, &json!([first, second])));
        let chat = send(&router, Method::GET, "/v1/rooms/r%201?endpoint=chat", "").await.json();
        let expected = json!({"name": "r 1", "memberCount": 2, "members": [first, second], "createdAt": "2024-01-01T00:00:00.000Z"});
        assert_eq!(chat, expected);
        let stats = send(&router, Method::GET, "/v1/rooms/r/stats", "").await.json();
        let expected = json!({"roomId": "r", "memberCount": 2, "messageCount": 7, "createdAt": "2024-01-01T00:00:00.000Z",
            "lastActivity": "2024-01-01T00:00:01.000Z"});
        assert_eq!(stats, expected);
    }

    #[tokio::test]
    async fn a_message_reaches_the_engine_as_it_was_written_and_the_kept_ones_go_out_so() {
        let (asked, router) = answering(|call| match call {
            RoomCall::Say(_) => RoomAnswer::Said(r#"{"id":"1","n":1e400}"#.into()),
            _ => RoomAnswer::Messages(vec![r#"{"n":-0}"#.into(), r#"{"n":1e400}"#.into()]),
        });
        let body = r#"{"userId":"bot","content":"hi \u00e9","type":"system","metadata":{"a" : 1e400}}"#;
        let heard = send(&router, Method::POST, "/v1/rooms/r/messages", body).await;
        assert_eq!((heard.status, &*heard.body), (StatusCode::CREATED, r#"{"id":"1","n":1e400}"#));
        let RoomCall::Say(saying) = asked.lock().expect("one thread").pop().expect("asked") else { panic!("said") };
        let Saying { room, message, .. } = &*saying;
        assert_eq!((&*room.name, &*message.user, &*message.content), ("r", "bot", "hi é"));
        assert_eq!((message.kind.as_deref(), message.metadata.as_deref()), (Some("system"), Some(r#"{"a" : 1e400}"#)));
        let heard = send(&router, Method::GET, "/v1/rooms/r/messages?offset=3", "").await;
        assert_eq!(heard.body, r#"{"messages":[{"n":-0},{"n":1e400}]}"#);
        let Some(RoomCall::Messages { skip, limit, .. }) = asked.lock().expect("one thread").pop() else { panic!("listed") };
        assert_eq!((skip, limit), (3, 50));
    }

    #[tokio::test]
    async fn pages_of_rooms_follow_each_other_also_where_a_shard_has_not_looked_at_all() {
        let names: Vec<String> = (10..30).map(|number| format!("r{number}")).collect();
        let (_, router) = answering(move |call| match call {
            RoomCall::List { after, limit, .. } => {
                // It looks at six at a time.
                let later: Vec<&String> = names.iter().filter(|name| after.as_ref().is_none_or(|after| *name > after)).take(6).collect();
                let until = later.last().filter(|last| later.len() == 6 && ***last != "r29").map(|last| (*last).clone());
                let rooms: Vec<RoomInfo> = later.iter().filter(|name| name.ends_with(['0', '5', '6'])).map(|name| info(name)).collect();
                let is_full = rooms.len() >= *limit;
                RoomAnswer::Rooms { rooms: rooms.into_iter().take(*limit).collect(), until: until.filter(|_| !is_full) }
            }
            RoomCall::Members { rooms } => RoomAnswer::Members(vec![vec![connection(1, 1, "a").id]; rooms.len()]),
            other => panic!("{other:?}"),
        });
        let (mut ids, mut path) = (Vec::new(), "/v1/rooms?limit=1&namespace=ns".to_owned());
        loop {
            let page = send(&router, Method::GET, &path, "").await.json();
            let rooms = page["rooms"].as_array().expect("a list");
            assert!(rooms.len() <= 1 && rooms.iter().all(|room| room["members"].as_array().is_some_and(|members| members.len() == 1)));
            ids.extend(rooms.iter().map(|room| room["id"].as_str().expect("text").to_owned()));
            let Some(cursor) = page.get("cursor").and_then(Value::as_str) else { break };
            path = format!("/v1/rooms?limit=1&namespace=ns&cursor={cursor}");
        }
        assert_eq!(ids, ["r10", "r15", "r16", "r20", "r25", "r26"]);
    }

    #[tokio::test]
    async fn what_the_engine_refuses_is_told_with_a_status() {
        let id = connection(0, 1, "a").id;
        for (fault, status) in [
            (RoomFault::NoRoom, 404),
            (RoomFault::NoConnection, 404),
            (RoomFault::Exists, 409),
            (RoomFault::IsConnection, 409),
            (RoomFault::Full, 409),
            (RoomFault::Unproven, 409),
            (RoomFault::Bound, 400),
        ] {
            let (_, router) = answering(move |_| RoomAnswer::Refused(fault));
            for (method, path, body) in [
                (Method::POST, "/v1/rooms".to_owned(), r#"{"name":"n"}"#),
                (Method::GET, "/v1/rooms/r".into(), ""),
                (Method::DELETE, "/v1/rooms/r".into(), ""),
                (Method::GET, "/v1/rooms/r/stats".into(), ""),
                (Method::GET, "/v1/rooms/r/members".into(), ""),
                (Method::PUT, format!("/v1/rooms/r/members/{id}"), ""),
                (Method::DELETE, format!("/v1/rooms/r/members/{id}"), ""),
                (Method::GET, "/v1/rooms/r/messages".into(), ""),
                (Method::POST, "/v1/rooms/r/messages".into(), r#"{"userId":"u","content":"c"}"#),
            ] {
                let heard = send(&router, method.clone(), &path, body).await;
                assert_eq!((heard.status.as_u16(), &heard.json()["detail"]), (status, &json!(fault.to_string())), "{method} {path}");
            }
        }
        let (_, silent) = answering(|_| RoomAnswer::Elsewhere);
        assert_eq!(send(&silent, Method::GET, "/v1/rooms/r", "").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn wrong_calls_are_problems_and_reach_nobody() {
        let (asked, router) = answering(|_| RoomAnswer::Done);
        let long = "x".repeat(256);
        let deep = format!("{{\"name\":\"n\",\"metadata\":{{\"a\":{}{}}}}}", "[".repeat(200), "]".repeat(200));
        let large = format!(r#"{{"name":"n","metadata":{{"a":"{}"}}}}"#, "x".repeat(ROOM_METADATA_BYTES_MAX));
        let long_content = format!(r#"{{"endpoint":"community","userId":"u","content":"{}"}}"#, "x".repeat(4_001));
        let rooms = [
            "",
            "[]",
            "null",
            "{",
            r#"{"id":"r"}"#,
            r#"{"name":""}"#,
            r#"{"name":5}"#,
            r#"{"name":"n","id":""}"#,
            r#"{"name":"n","id":"\u0001u:a"}"#,
            r#"{"name":"n","id":7}"#,
            r#"{"name":"n","namespace":""}"#,
            r#"{"name":"n","createdBy":["a"]}"#,
            r#"{"name":"n","metadata":5}"#,
            r#"{"name":"n","metadata":[]}"#,
            r#"{"name":"n","colour":"red"}"#,
            r#"{"name":"n","name":"m"}"#,
            r#"{"name":"n","endpoint":1}"#,
            r#"{"name":"n","id":"lobby","endpoint":"community"}"#,
            r#"{"name":"n","id":"room:","endpoint":"community"}"#,
            &deep,
            &large,
        ];
        for body in rooms {
            let heard = send(&router, Method::POST, "/v1/rooms", body).await;
            assert_eq!((heard.status, heard.header("content-type")), (StatusCode::BAD_REQUEST, "application/problem+json"), "{body}");
        }
        let messages = [
            "",
            "{}",
            r#"{"userId":"u"}"#,
            r#"{"content":"c"}"#,
            r#"{"userId":"","content":"c"}"#,
            r#"{"userId":"a\nb","content":"c"}"#,
            r#"{"userId":"u","content":5}"#,
            r#"{"userId":"u","content":"c","type":"shout"}"#,
            r#"{"userId":"u","content":"c","type":"notification"}"#,
            r#"{"userId":"u","content":"c","metadata":"m"}"#,
            r#"{"userId":"u","content":"c","to":"x"}"#,
            r#"{"endpoint":"community","userId":"u","content":""}"#,
            r#"{"endpoint":"community","userId":"u","content":"c","metadata":{}}"#,
            r#"{"endpoint":"community","userId":"u","content":"c","type":"system"}"#,
            r#"{"endpoint":"notify","userId":"u","content":"c"}"#,
            r#"{"endpoint":"fabric","userId":"u","content":"c"}"#,
            &long_content,
        ];
        for body in messages {
            let heard = send(&router, Method::POST, "/v1/rooms/room:r/messages", body).await;
            assert_eq!((heard.status, &heard.json()["status"]), (StatusCode::BAD_REQUEST, &json!(400)), "{body}");
        }
        for (method, path, status) in [
            (Method::GET, "/v1/rooms?limit=0".to_owned(), 400),
            (Method::GET, "/v1/rooms?limit=1001".into(), 400),
            (Method::GET, "/v1/rooms?cursor=MQ".into(), 400),
            (Method::GET, "/v1/rooms?namespace=".into(), 400),
            (Method::GET, "/v1/rooms?x=1".into(), 400),
            (Method::GET, "/v1/rooms?endpoint=nothing".into(), 404),
            (Method::POST, "/v1/rooms?x=1".into(), 400),
            (Method::GET, "/v1/rooms/a%0ab".into(), 400),
            (Method::GET, format!("/v1/rooms/{long}"), 400),
            (Method::GET, "/v1/rooms/r?endpoint=community".into(), 404),
            (Method::DELETE, "/v1/rooms/r?x=1".into(), 400),
            (Method::GET, "/v1/rooms/r/stats?endpoint=nothing".into(), 404),
            (Method::GET, "/v1/rooms/r/members?limit=0".into(), 400),
            (Method::GET, "/v1/rooms/r/members?cursor=x".into(), 400),
            (Method::PUT, "/v1/rooms/r/members/short".into(), 404),
            (Method::DELETE, "/v1/rooms/r/members/short".into(), 404),
            (Method::PUT, "/v1/rooms/d/users/u?endpoint=fabric".into(), 400),
            (Method::PUT, "/v1/rooms/d/users/u?endpoint=community".into(), 404),
            (Method::GET, "/v1/rooms/r/messages?limit=1001".into(), 400),
            (Method::GET, "/v1/rooms/r/messages?offset=-1".into(), 400),
            (Method::GET, "/v1/rooms/r/messages?offset=99999999999999999999".into(), 400),
            (Method::PUT, "/v1/rooms/r".into(), 405),
            (Method::PUT, "/v1/rooms/r/members".into(), 405),
        ] {
            let heard = send(&router, method.clone(), &path, "").await;
            assert_eq!((heard.status.as_u16(), &heard.json()["status"]), (status, &json!(status)), "{method} {path}");
        }
        let body = format!(r#"{{"userId":"u","content":"{}"}}"#, "x".repeat(1_000_000));
        for (path, body) in [("/v1/rooms", "x".repeat(BODY_BYTES_MAX + 1)), ("/v1/rooms/r/messages", body)] {
            assert_eq!(send(&router, Method::POST, path, &body).await.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        }
        for path in ["/v1/rooms", "/v1/rooms/r", "/v1/rooms/r/stats", "/v1/rooms/r/members", "/v1/rooms/r/messages"] {
            assert_eq!(call_with(&router, Method::GET, path, &[], "").await.status, StatusCode::UNAUTHORIZED, "{path}");
        }
        assert!(asked.lock().expect("one thread").is_empty(), "nothing was asked of the engine");
    }

    #[tokio::test]
    async fn a_channel_of_the_longest_name_is_a_room_like_others() {
        let long = format!("group:{}", "x".repeat(255));
        let listed = long.clone();
        let (asked, router) = answering(move |call| match call {
            RoomCall::List { .. } => RoomAnswer::Rooms { rooms: vec![info(&listed), info("room:a")], until: None },
            RoomCall::Members { .. } => RoomAnswer::Members(vec![Vec::new()]),
            RoomCall::Delete { .. } => RoomAnswer::Done,
            call => panic!("{call:?}"),
        });
        let heard = send(&router, Method::GET, "/v1/rooms?endpoint=community&limit=1", "").await;
        let cursor = heard.json()["cursor"].as_str().expect("more follow").to_owned();
        let next = format!("/v1/rooms?endpoint=community&limit=1&cursor={cursor}");
        assert_eq!(send(&router, Method::GET, &next, "").await.status, StatusCode::OK);
        assert_eq!(send(&router, Method::DELETE, &format!("/v1/rooms/{long}?endpoint=community"), "").await.status, StatusCode::OK);
        let asked = asked.lock().expect("one thread").split_off(2);
        assert!(matches!(&asked[0], RoomCall::List { after: Some(after), .. } if *after == long), "{asked:?}");
        assert!(matches!(asked.last(), Some(RoomCall::Delete { room }) if *room.name == *long), "{asked:?}");
        for (path, status) in [(format!("room:{long}?endpoint=community"), 400), (format!("{long}?endpoint=rooms"), 400)] {
            assert_eq!(send(&router, Method::DELETE, &format!("/v1/rooms/{path}"), "").await.status.as_u16(), status, "{path}");
        }
    }

    #[test]
    fn a_cursor_is_only_what_we_made() {
        let is_id = |id: &str| engine::ids::checked_name(id).is_ok();
        assert_eq!(after_cursor(&cursor("räume"), is_id), Ok("räume".to_owned()));
        for bad in ["", "Mg", "MQ", &URL_SAFE_NO_PAD.encode("1r"), &URL_SAFE_NO_PAD.encode("2a\nb"), &URL_SAFE_NO_PAD.encode([0x32, 0xff])]
        {
            assert!(after_cursor(bad, is_id).is_err(), "{bad}");
        }
    }
}
