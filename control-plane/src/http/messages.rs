//! `/v1/rooms/{id}/messages`: what the back end says in a room, in the name of a user, and what is kept of what was said.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::dialect::{self, BackEndMessage};
use engine::ids::{Room, new_message_id};
use engine::{Question, RoomAnswer, RoomCall, RoomFault, Saying};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::admin::{self, NoQuery, answer};
use super::emit::EMIT_BYTES_MAX;
use super::problem::{Params, Problem, Segment};
use super::rooms::{Told, Undone, decided, decisive, object, of_home, read, room_of, unix_ms};
use super::shapes::{Name, raw};

/// Messages shown when the call does not say how many.
const LIST_DEFAULT: usize = 50;

/// Messages that can be passed over: more than are kept of any room.
const OFFSET_MAX: usize = 1_000_000_000;

/// True exactly when a path may be one whose body is a message.
pub(super) fn is_path(path: &str) -> bool {
    path.starts_with("/v1/rooms/") && path.ends_with("/messages")
}

/// Something to be said.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct MessageBody {
    /// Name of the room's endpoint; if it is not said, the first of `rooms`.
    endpoint: Option<String>,
    /// Who says it.
    #[schema(value_type = Name)]
    user_id: String,
    /// What. On an endpoint of community 1 to 4,000 characters.
    content: String,
    /// `text` if it is not said; `image`, `file` or `system`, and on an endpoint of chat `notification`. On one of community only `text`.
    #[schema(value_type = Option<Kind>)]
    r#type: Option<String>,
    /// Whatever else there is to say. Not on an endpoint of community.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
}

/// Kinds of messages, for the document; which of them an endpoint has is its dialect's to say.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Text,
    Image,
    File,
    System,
    Notification,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MessagesQuery {
    /// The room's endpoint; if it is not said, the first of `rooms`.
    endpoint: Option<String>,
    /// How many at most; 50 if it is not said. Fewer come where they are large, but at least one: go on with `offset` and how many came
    /// until none does.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// How many of the newest are passed over; none if it is not said.
    #[param(maximum = 1_000_000_000)]
    offset: Option<usize>,
}

/// Messages, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Messages {
    /// As the endpoint's clients heard them.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Box<RawValue>>,
}

/// Says something in a room: all members hear it, in the room's order, and it is kept.
///
/// A 503 says that nobody knows whether it was said: a shard that was slow may still say it.
#[utoipa::path(post, path = "/v1/rooms/{id}/messages", tag = "rooms", params(("id" = Name, Path, description = "The room's id.")),
    request_body = MessageBody, responses(
        (status = 201, description = "the message as the members hear it", body = Object),
        (status = 404, description = "no room has the id, or no endpoint the name"),
    ))]
pub(super) async fn say(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(NoQuery {}): Params<NoQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let body: MessageBody = read(request, EMIT_BYTES_MAX).await?;
    let room = room_of(&app, body.endpoint.as_deref(), id)?;
    let unix_ms = unix_ms();
    let message = BackEndMessage {
        id: new_message_id(unix_ms, &rand::random()),
        user: admin::name(body.user_id, "userId")?.into(),
        content: body.content,
        kind: body.r#type,
        metadata: object(body.metadata)?,
        unix_ms,
    };
    checked(&app, &room, &message)?;
    let saying = Arc::new(Saying { room, message, offset: rand::random::<u64>().into() });
    let said = match decided(app.ask(Question::Room(RoomCall::Say(saying.clone()))).await) {
        Err(Undone::Refused(RoomFault::NoRoom)) => say_elsewhere(&app, saying).await,
        said => said,
    };
    match said? {
        Told { answer: RoomAnswer::Said(message), .. } => Ok((StatusCode::CREATED, Json(raw(&message))).into_response()),
        told => Err(told.unexpected()),
    }
}

/// Where this host has no such room, one that has says it: the others hear it from there.
async fn say_elsewhere(app: &App, saying: Arc<Saying>) -> Result<Told, Undone> {
    let gathered = app.ask_hosts(Question::Room(RoomCall::Stats { room: saying.room.clone() }), None).await;
    let members = |answers| match decisive(answers) {
        Some(RoomAnswer::Stats(info, _)) => Some(info.members),
        _ => None,
    };
    let having = gathered.hosts.into_iter().filter_map(|host| Some((members(host.answers)?, host.host)));
    // The same one for every message, as long as its members do not go.
    let (_, host) = having.max().ok_or(Undone::Refused(RoomFault::NoRoom))?;
    decided(app.ask_hosts(Question::Room(RoomCall::Say(saying)), Some(&host)).await)
}

/// The room's home asks its dialect again; here it can still be told what is wrong.
fn checked(app: &App, room: &Room, message: &BackEndMessage) -> Result<(), Problem> {
    let dialect = dialect::of(app.host.endpoints()[usize::from(room.endpoint.0)].dialect);
    let composed = dialect.back_end_message(&room.name, message);
    composed.map(drop).map_err(|fault| Problem::bad_request(fault.to_string()))
}

/// What is kept of what was said in a room, newest first.
#[utoipa::path(get, path = "/v1/rooms/{id}/messages", tag = "rooms", params(("id" = Name, Path, description = "The room's id."), MessagesQuery),
    responses(
        (status = 200, description = "the messages", body = Messages),
        (status = 404, description = "no room has the id, or no endpoint the name"),
    ))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(query): Params<MessagesQuery>,
) -> Result<Response, Problem> {
    let limit = admin::limit(query.limit, LIST_DEFAULT)?;
    let room = room_of(&app, query.endpoint.as_deref(), id)?;
    let skip = query.offset.unwrap_or(0);
    if skip > OFFSET_MAX {
        return Err(Problem::bad_request(format!("offset is {skip}, allowed are 0 to {OFFSET_MAX}")));
    }
    match of_home(app.ask(Question::Room(RoomCall::Messages { room, skip, limit })).await)? {
        Told { answer: RoomAnswer::Messages(messages), missing } => {
            Ok(answer(missing, Messages { messages: messages.iter().map(|message| raw(message)).collect() }))
        }
        told => Err(told.unexpected()),
    }
}
