//! Endpoints of plain WebSockets and the channels on which other hosts and other programs speak to their clients: JSON texts as the
//! contract's pages have them. A host marks what it says with its id (`o`), which readers take out.

use crate::config::{Config, DialectKind};
use crate::ids::{EndpointId, Room, checked_name};
use crate::json::{Object, Scratch, Value};
use crate::shard::outward::Published;
use crate::shard::parcel::{Arrival, Emit, Selection, Target};

use super::socketio::{Post, TOLD};

/// The member that names the host.
const ORIGIN: &str = "o";
/// collab: the one client that is meant.
const TO_CLIENT: &str = "toClientID";

/// What a message on a channel is for this host.
#[derive(Debug)]
pub(crate) enum Heard {
    /// For clients here.
    Arrival(Box<Arrival>),
    /// Our own words, or what we have been told another way.
    Known,
    /// Nothing that anybody here could read.
    Malformed,
}

/// All endpoints of plain WebSockets.
pub(crate) struct Channels {
    /// This host.
    host: String,
    /// By the endpoint: how its channels are named.
    served: Vec<(EndpointId, Naming)>,
    /// True exactly when other hosts of ours are heard by way of a stream, and what they publish is for others.
    has_stream: bool,
    scratch: Scratch,
}

/// How an endpoint's channels are named.
#[derive(Debug)]
enum Naming {
    /// As its rooms (community).
    Rooms,
    /// One for all documents (collab): this.
    Updates(String),
    /// One for all rooms of a dialect that no page describes: this.
    Own(String),
}

impl Channels {
    pub(crate) fn new(config: &Config, prefix: &str, host: &str, has_stream: bool) -> Channels {
        let served = config.endpoints.iter().enumerate().filter_map(|(index, endpoint)| {
            let naming = match endpoint.dialect {
                DialectKind::Community => Naming::Rooms,
                DialectKind::Collab => Naming::Updates(format!("{}:updates", endpoint.name)),
                DialectKind::Own(own) if !own.is_socket_io() => Naming::Own(format!("{prefix}#plain#{}#", endpoint.name)),
                _ => return None,
            };
            Some((EndpointId(index as u8), naming))
        });
        Channels { host: host.to_owned(), served: served.collect(), has_stream, scratch: Scratch::default() }
    }

    /// The channels that are listened to all the time.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = &str> {
        self.served.iter().filter_map(|(_, naming)| match naming {
            Naming::Rooms => None,
            Naming::Updates(channel) | Naming::Own(channel) => Some(&**channel),
        })
    }

    /// The channel of a room that is listened to while somebody is in; `None` where there is none of its own.
    pub(crate) fn channel_of(&self, room: &Room) -> Option<String> {
        let naming = self.naming(room.endpoint)?;
        (matches!(naming, Naming::Rooms) && room.is_public()).then(|| room.name.to_string())
    }

    /// What other hosts are told of a publication; `None` where they are not told of such.
    pub(crate) fn publication(&mut self, published: &Published) -> Option<Post> {
        let text = std::str::from_utf8(published.frame.payload()).ok()?;
        let room = &published.room;
        match self.naming(room.endpoint)? {
            Naming::Rooms => {
                let channel = self.channel_of(room)?;
                Some(Post { channel, payload: marked(text, &self.host)?.into_bytes() })
            }
            Naming::Updates(channel) => Some(Post { channel: channel.clone(), payload: marked(text, &self.host)?.into_bytes() }),
            Naming::Own(channel) => {
                let payload = Object::new().str("room", &room.name).str("text", text).str(ORIGIN, &self.host).finish();
                Some(Post { channel: channel.clone(), payload: payload.into_bytes() })
            }
        }
    }

    /// What a message on a channel says; `None` for a channel that is not one of these. `is_of_stream`: it was not published there, but read in
    /// the stream of another host's words.
    pub(crate) fn heard(&mut self, channel: &str, payload: &[u8], is_of_stream: bool, offset: u64, unix_ms: u64) -> Option<Heard> {
        let is_updates = |naming: &Naming| matches!(naming, Naming::Updates(own) | Naming::Own(own) if own == channel);
        let endpoint = self.served.iter().find(|(_, naming)| is_updates(naming)).or_else(|| {
            let is_room = channel.starts_with("room:") || channel.starts_with("group:");
            self.served.iter().find(|(_, naming)| is_room && matches!(naming, Naming::Rooms))
        });
        let (endpoint, naming) = endpoint?;
        let Ok(text) = std::str::from_utf8(payload) else { return Some(Heard::Malformed) };
        let Ok(doc) = self.scratch.parse(text) else { return Some(Heard::Malformed) };
        let message = doc.root();
        if !message.is_object() {
            return Some(Heard::Malformed);
        }
        let origin = message.get(ORIGIN).and_then(Value::as_str);
        // Where there is a stream, what hosts of ours publish is for others.
        if !is_of_stream && origin.is_some_and(|origin| self.has_stream || origin == self.host || origin.starts_with(TOLD)) {
            return Some(Heard::Known);
        }
        let read = match naming {
            Naming::Rooms => of_community(channel, message),
            Naming::Updates(_) => of_collab(message),
            Naming::Own(_) => of_own(message),
        };
        let Some((target, text)) = read else { return Some(Heard::Malformed) };
        let to = Selection::of(*endpoint, vec![target]);
        let emit = Emit { is_elsewhere: true, ..Emit::new(to, "", "", offset, unix_ms) };
        Some(Heard::Arrival(Box::new(Arrival { emit, text: Some(text.into()), hidden_from: None })))
    }

    fn naming(&self, endpoint: EndpointId) -> Option<&Naming> {
        self.served.iter().find(|(served, _)| *served == endpoint).map(|(_, naming)| naming)
    }
}

/// The text of an object with one member more.
fn marked(text: &str, host: &str) -> Option<String> {
    let open = text.trim_end().strip_suffix('}')?;
    let comma = if open.trim_end().ends_with('{') { "" } else { "," };
    Some(format!("{open}{comma}\"{ORIGIN}\":\"{host}\"}}"))
}

/// The text of an object without the members of these names.
fn without(message: Value<'_>, names: &[&str]) -> String {
    let mut out = Object::with_capacity(message.raw().len());
    for member in message.members().filter(|member| !names.contains(&member.key)) {
        out = out.raw(member.key, member.value.raw());
    }
    out.finish()
}

fn of_community(channel: &str, message: Value<'_>) -> Option<(Target, String)> {
    message.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty())?;
    if message.get("payload").is_some_and(|payload| !payload.is_object()) {
        return None;
    }
    Some((Target::Room(checked_name(channel).ok()?.into()), without(message, &[ORIGIN])))
}

fn of_collab(message: Value<'_>) -> Option<(Target, String)> {
    let document = checked_name(message.get("documentId")?.as_exact_str()?).ok()?;
    message.get("type").and_then(Value::as_str)?;
    let client = message.get(TO_CLIENT);
    let target = match client {
        Some(client) => Target::Present { room: document.into(), presence: client.as_exact_str()?.into() },
        None => Target::Room(document.into()),
    };
    // Steps of a back end name a client for each; a client's own name the one.
    let is_of_back_end = message.get("clientIDs").is_some() && message.get("clientID").is_none();
    let hidden: &[&str] = if is_of_back_end { &[ORIGIN, TO_CLIENT, "documentId"] } else { &[ORIGIN, TO_CLIENT] };
    Some((target, without(message, hidden)))
}

fn of_own(message: Value<'_>) -> Option<(Target, String)> {
    let room = message.get("room")?.as_exact_str()?;
    Some((Target::Room(room.into()), message.get("text")?.as_exact_str()?.to_owned()))
}
