//! `/v1/rooms/{id}/members` and `/v1/rooms/{id}/users`: who is in a room, and connections and users that the back end moves into one or out
//! of it. The others hear of it as if they had come and gone by themselves; those who are moved hear nothing.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use engine::GrantFault;
use engine::config::DialectKind;
use engine::ids::Room;
use engine::{Answer, Question, RoomCall};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::admin::{self, LIST_DEFAULT, Missing, answer};
use super::problem::{Params, Problem, Segment, Segments};
use super::rooms::{RoomQuery, of_home, room_of};
use super::shapes::{Connection, Name, Placed};
use super::{App, Gathered};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MembersQuery {
    /// The room's endpoint; if it is not said, the first of `rooms`.
    endpoint: Option<String>,
    /// How many at most; 100 if it is not said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the page before ended: the `cursor` of its answer.
    cursor: Option<String>,
}

/// A page of a room's members, by id.
#[derive(Serialize, ToSchema)]
pub(super) struct Members {
    members: Vec<Connection>,
    /// For the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// Connections in a room, by id.
#[utoipa::path(get, path = "/v1/rooms/{id}/members", tag = "rooms", params(("id" = Name, Path, description = "The room's id."), MembersQuery),
    responses(
        (status = 200, description = "a page of them", body = Members),
        (status = 404, description = "no room has the id, or no endpoint the name"),
    ))]
pub(super) async fn members(
    State(app): State<Arc<App>>,
    Segment(id): Segment,
    Params(query): Params<MembersQuery>,
) -> Result<Response, Problem> {
    let limit = admin::limit(query.limit, LIST_DEFAULT)?;
    let room = room_of(&app, query.endpoint.as_deref(), id)?;
    let after = query.cursor.map(|cursor| admin::after_cursor(&cursor)).transpose()?;
    of_home(app.ask(Question::Room(RoomCall::Stats { room: room.clone() })).await)?;
    let (endpoint, room) = (Some(room.endpoint), Some(room.name.to_string()));
    let gathered = app.ask(Question::Connections { endpoint, user: None, room, after, limit: limit + 1 }).await;
    let missing = Missing::of(&gathered);
    let mut found = gathered.connections();
    let cursor = (found.len() > limit).then(|| admin::cursor(&found[limit - 1].id));
    found.truncate(limit);
    Ok(answer(missing, Members { members: Connection::list(&app, &found), cursor }))
}

/// Puts one connection into a room. It is in when this is answered.
#[utoipa::path(put, path = "/v1/rooms/{id}/members/{connectionId}", tag = "rooms",
    params(("id" = Name, Path, description = "The room's id."), ("connectionId" = String, Path, description = "The connection's id."), RoomQuery),
    responses(
        (status = 200, description = "it is in", body = Placed),
        (status = 404, description = "no room or connection has the id, or no endpoint the name"),
        (status = 409, description = "the room's id is a connection's, there are as many rooms as may be, or it is not known yet whose the connection is"),
    ))]
pub(super) async fn enter(
    State(app): State<Arc<App>>,
    Segments((room, id)): Segments<(String, String)>,
    Params(query): Params<RoomQuery>,
) -> Result<Json<Placed>, Problem> {
    let (room, connection) = (room_of(&app, query.endpoint.as_deref(), room)?, admin::sid(&id)?);
    of_home(app.ask(Question::Room(RoomCall::Enter { room, connection })).await)?;
    Ok(Json(Placed { connections: 1 }))
}

/// Takes one connection out of a room. It is out when this is answered, or a moment later where another call puts it in at the same time; on
/// an endpoint of collab it is closed, for it has no other.
#[utoipa::path(delete, path = "/v1/rooms/{id}/members/{connectionId}", tag = "rooms",
    params(("id" = Name, Path, description = "The room's id."), ("connectionId" = String, Path, description = "The connection's id."), RoomQuery),
    responses(
        (status = 200, description = "it is out, or was never in", body = Placed),
        (status = 404, description = "no room or connection has the id, or no endpoint the name"),
        (status = 409, description = "it is not known yet whose the connection is"),
    ))]
pub(super) async fn leave(
    State(app): State<Arc<App>>,
    Segments((room, id)): Segments<(String, String)>,
    Params(query): Params<RoomQuery>,
) -> Result<Json<Placed>, Problem> {
    let (room, connection) = (room_of(&app, query.endpoint.as_deref(), room)?, admin::sid(&id)?);
    of_home(app.ask(Question::Room(RoomCall::Leave { room, connection })).await)?;
    Ok(Json(Placed { connections: 1 }))
}

/// Puts all connections of a user into a room; it answers when they are in. On endpoints of notify his later ones enter too.
#[utoipa::path(put, path = "/v1/rooms/{id}/users/{userId}", tag = "rooms",
    params(("id" = Name, Path, description = "The room's id."), ("userId" = Name, Path, description = "The user's id."), RoomQuery),
    responses(
        (status = 200, description = "done", body = Placed),
        (status = 404, description = "no room has the id, or no endpoint the name"),
        (status = 409, description = "the user was put into as many rooms as is allowed"),
    ))]
pub(super) async fn enter_user(
    State(app): State<Arc<App>>,
    Segments((room, user)): Segments<(String, String)>,
    Params(query): Params<RoomQuery>,
) -> Result<Response, Problem> {
    let (room, user) = (room_of(&app, query.endpoint.as_deref(), room)?, admin::name(user, "user")?);
    unbound(&app, &room)?;
    let (endpoint, room) = (room.endpoint, room.name.to_string());
    granted(&app.ask(Question::Grant { endpoint, room, user }).await)
}

/// Takes all connections of a user out of a room; it answers when they are out.
#[utoipa::path(delete, path = "/v1/rooms/{id}/users/{userId}", tag = "rooms",
    params(("id" = Name, Path, description = "The room's id."), ("userId" = Name, Path, description = "The user's id."), RoomQuery),
    responses(
        (status = 200, description = "done", body = Placed),
        (status = 404, description = "no room has the id, or no endpoint the name"),
    ))]
pub(super) async fn leave_user(
    State(app): State<Arc<App>>,
    Segments((room, user)): Segments<(String, String)>,
    Params(query): Params<RoomQuery>,
) -> Result<Response, Problem> {
    let (room, user) = (room_of(&app, query.endpoint.as_deref(), room)?, admin::name(user, "user")?);
    unbound(&app, &room)?;
    let (endpoint, room) = (room.endpoint, room.name.to_string());
    granted(&app.ask(Question::Revoke { endpoint, room, user }).await)
}

/// Connections of collab have no business outside the document that they came for, and a user may have several.
fn unbound(app: &App, room: &Room) -> Result<(), Problem> {
    match app.host.endpoints()[usize::from(room.endpoint.0)].dialect {
        DialectKind::Collab => Err(Problem::bad_request("the endpoint's connections stay in the document they asked for")),
        _ => Ok(()),
    }
}

/// Of the answers of one host's shards one counts, that of the user's home, unless the room's home objects.
fn granted_by(answers: &[Answer]) -> Option<Result<u32, GrantFault>> {
    let outcomes = answers.iter().filter_map(|answer| if let Answer::Granted(outcome) = answer { *outcome } else { None });
    outcomes.min_by_key(Result::is_ok)
}

/// The user has homes on all hosts, and so has the room: where one objects others may do it.
fn granted(gathered: &Gathered) -> Result<Response, Problem> {
    let here = granted_by(&gathered.answers).ok_or_else(|| Problem::unavailable("a shard did not answer in time"))?;
    let others = gathered.hosts.iter().filter_map(|host| granted_by(&host.answers));
    let all = others.fold(here.map(u64::from), |sum, host| match (sum, host.map(u64::from)) {
        (Ok(sum), Ok(here)) => Ok(sum + here),
        // That the room is not there is no objection where it is on another host; that there is no place for the user is one anywhere.
        (Err(GrantFault::NoRoom), host) => host,
        (sum, Err(GrantFault::NoRoom)) | (sum @ Err(_), _) => sum,
        (Ok(_), fault) => fault,
    });
    match all {
        Ok(connections) => Ok(answer(Missing::of(gathered), Placed { connections })),
        Err(GrantFault::NoRoom) => Err(Problem::not_found(GrantFault::NoRoom.to_string())),
        Err(fault) => Err(Problem { status: StatusCode::CONFLICT, detail: fault.to_string() }),
    }
}
