//! What the calls of the admin part answer, as types that are both written out and described in the document.

use std::time::{Duration, SystemTime};

use engine::ConnectionInfo;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::App;
use super::fleet::Totals;

/// Name of a room, user or whatever else clients name: 1 to 255 bytes of UTF-8 without control characters. A schema counts characters, so
/// that one of several bytes each may be too long all the same.
#[derive(Deserialize, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 255, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
#[expect(dead_code, reason = "only the document has it; `engine::ids::checked_name` is what reads names")]
pub(super) struct Name(String);

/// Milliseconds since 1970 as RFC 3339.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

/// JSON that goes out as it is: no number changes on its way. `null` for what is none, which the engine never has.
pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The process answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    pub(super) status: &'static str,
}

/// Whether clients can come.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready`, `degraded` or `not_ready`.
    pub(super) status: &'static str,
    /// Whether new connections are let in.
    pub(super) accepting: bool,
    /// `connected`, `down` or `not_configured`.
    pub(super) relay: &'static str,
    /// Each of them.
    pub(super) shards: Vec<ShardState>,
}

/// One shard's sign of life.
#[derive(Serialize, ToSchema)]
pub(super) struct ShardState {
    /// Its number, from 0.
    pub(super) id: usize,
    /// Whether it turned within the last two seconds.
    pub(super) responsive: bool,
}

/// Numbers of the fleet, or of an endpoint of rooms.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    /// Connections since the start.
    pub(super) total_connections: u64,
    /// Connections that are open.
    pub(super) active_connections: u64,
    /// Rooms that exist, with members or without.
    pub(super) total_rooms: u64,
    /// Messages of clients in the last minute.
    pub(super) messages_per_minute: u64,
    /// Their bytes.
    pub(super) bytes_per_minute: u64,
    /// Mean time of a ping and its answer in the last minute, milliseconds.
    pub(super) avg_latency: f64,
}

impl Stats {
    /// Of one endpoint, or of all.
    pub(super) fn new(totals: &Totals) -> Stats {
        let Totals { accepted, connections, rooms, figures, .. } = *totals;
        Stats {
            total_connections: accepted,
            active_connections: connections,
            total_rooms: rooms,
            messages_per_minute: figures.messages,
            bytes_per_minute: figures.bytes,
            avg_latency: figures.latency_ms(),
        }
    }
}

/// One connection.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection {
    /// 20 characters.
    pub(super) id: String,
    /// The same.
    pub(super) socket_id: String,
    /// Name of the endpoint it came to.
    pub(super) endpoint: String,
    /// Whose it is.
    pub(super) user_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) email: Option<String>,
    /// Only on endpoints of collab.
    #[serde(skip_serializing_if = "Option::is_none", rename = "clientID")]
    #[schema(nullable = false)]
    pub(super) client_id: Option<String>,
    /// When it came, RFC 3339.
    #[schema(format = DateTime)]
    pub(super) connected_at: String,
    /// Where it is.
    pub(super) rooms: Vec<String>,
    /// What the client said of itself.
    #[schema(value_type = Object)]
    pub(super) metadata: Box<RawValue>,
}

impl Connection {
    pub(super) fn new(app: &App, info: &ConnectionInfo) -> Connection {
        let text = |value: &Option<_>| value.as_ref().map(ToString::to_string);
        Connection {
            id: info.id.to_string(),
            socket_id: info.id.to_string(),
            endpoint: app.host.endpoints().get(usize::from(info.endpoint.0)).map_or_else(String::new, |endpoint| endpoint.name.clone()),
            user_id: info.user.to_string(),
            username: text(&info.username),
            email: text(&info.email),
            client_id: text(&info.client_id),
            connected_at: rfc3339(info.connected_unix_ms),
            rooms: info.rooms.iter().map(ToString::to_string).collect(),
            metadata: raw(info.metadata.as_deref().unwrap_or("{}")),
        }
    }

    pub(super) fn list(app: &App, found: &[ConnectionInfo]) -> Vec<Connection> {
        found.iter().map(|info| Connection::new(app, info)).collect()
    }
}

/// A page of connections, by id.
#[derive(Serialize, ToSchema)]
pub(super) struct Connections {
    pub(super) connections: Vec<Connection>,
    /// For the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) cursor: Option<String>,
}

/// A user's connections.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    /// Whether there are any.
    pub(super) online: bool,
    /// At most 1,000 of them.
    pub(super) connections: Vec<Connection>,
}

/// What was closed.
#[derive(Serialize, ToSchema)]
pub(super) struct Closed {
    /// How many connections.
    pub(super) closed: u64,
}

/// Who was put somewhere, or taken out.
#[derive(Serialize, ToSchema)]
pub(super) struct Placed {
    /// How many connections the user has.
    pub(super) connections: u64,
}
