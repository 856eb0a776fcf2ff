//! Endpoints of plain WebSockets and the channels on which other hosts and other programs speak to their clients: JSON texts as the
//! contract's pages have them. A host marks what it says with its id (`o`), which readers take out.

use std::sync::Arc;

use crate::auth::{Details, Identity};
use crate::config::{Config, DialectKind, Endpoint};
use crate::dialect;
use crate::frame::Mark;
use crate::ids::{EndpointId, Room, checked_name};
use crate::json::{self, Object, Scratch, Value};
use crate::shard::outward::Published;
use crate::shard::parcel::{Arrival, Emit, Selection, Target};

use super::socketio::{Post, TOLD};

/// The member that names the host.
const ORIGIN: &str = "o";
/// collab: the one client that is meant.
const TO_CLIENT: &str = "toClientID";
/// community: users who do not get it; there only where [`ORIGIN`] is.
const BLOCKED: &str = "b";
/// community: how the text begins by which somebody types.
const TYPING: &[u8] = br#"{"type":"TYPING""#;

/// What a message on a channel is for this host.
#[derive(Debug)]
pub(crate) enum Heard {
    /// For clients here.
    Arrival(Box<Arrival>),
    /// The same by a program that does not know whom this author has blocked.
    Of(String, Box<Arrival>),
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
        let first = first_community(config);
        let served = config.endpoints.iter().enumerate().filter_map(|(index, endpoint)| {
            let naming = match endpoint.dialect {
                DialectKind::Community if first == Some(index) => Naming::Rooms,
                // Names without an endpoint's can be those of one endpoint only.
                DialectKind::Community => Naming::Own(format!("{prefix}#plain#{}#", endpoint.name)),
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

    /// What other hosts are told of a publication, in our name or another host's; `None` where they are not told of such.
    pub(crate) fn publication(&mut self, published: &Published, other: Option<&str>) -> Option<Post> {
        let host = other.unwrap_or(&self.host);
        let text = std::str::from_utf8(published.frame.payload()).ok()?;
        let room = &published.room;
        match self.naming(room.endpoint)? {
            Naming::Rooms => {
                let channel = self.channel_of(room)?;
                Some(Post::new(channel, marked(text, host, published.hidden_from.as_deref())?.into_bytes()))
            }
            Naming::Updates(channel) => Some(Post::new(channel.clone(), marked(text, host, None)?.into_bytes())),
            Naming::Own(channel) => {
                let payload = Object::new().str("room", &room.name).str("text", text).str(ORIGIN, host);
                let blocked = published.hidden_from.as_ref().map(|author| list(&author.blocked));
                let payload = payload.opt_raw(BLOCKED, blocked.as_deref()).finish();
                Some(Post::new(channel.clone(), payload.into_bytes()))
            }
        }
    }

    /// Of a message by which a user says that he types, or no longer does: where, who, and which of the two.
    pub(crate) fn typing(&mut self, published: &Published) -> Option<(Arc<str>, String, bool)> {
        let text = published.frame.payload().strip_prefix(TYPING).map(|_| published.frame.payload())?;
        matches!(self.naming(published.room.endpoint)?, Naming::Rooms).then_some(())?;
        let doc = self.scratch.parse(std::str::from_utf8(text).ok()?).ok()?;
        let payload = doc.root().get("payload")?;
        let (user, on) = (payload.get("userId")?.as_str()?.to_owned(), payload.get("isTyping")?.raw() == "true");
        Some((published.room.name.clone(), user, on))
    }

    /// What other programs are told of an event of the back end: uringcast hosts hear of it another way, and pass over it.
    pub(crate) fn told(&mut self, endpoint: &Endpoint, emit: &Emit) -> Vec<Post> {
        let host = format!("{TOLD}{}", self.host);
        let said = dialect::Emission { event: &emit.event, args: &emit.args, attachments: &[], ack: None, mark: Mark::default() };
        let frame = dialect::emission(emit.to.endpoint, endpoint, &said, &mut self.scratch);
        let Ok(text) = std::str::from_utf8(frame.payload()) else { return Vec::new() };
        let posts = emit.to.targets.iter().filter_map(|target| {
            let (name, client) = match target {
                Target::Room(name) => (name, None),
                Target::Present { room, presence } => (room, Some(presence)),
                Target::Connection(_) => return None,
            };
            let room = Room { endpoint: emit.to.endpoint, name: name.clone() };
            let channel = match self.naming(room.endpoint).filter(|_| room.is_public())? {
                Naming::Rooms => return Some(Post::new(self.channel_of(&room)?, marked(text, &host, None)?.into_bytes())),
                Naming::Updates(channel) => channel.clone(),
                Naming::Own(_) => return None,
            };
            // Clients know which document they are in; other programs do not.
            let about = Object::new().str("documentId", name).opt_str(TO_CLIENT, client.map(|client| &**client)).finish();
            let rest = text.trim_start().strip_prefix('{')?;
            let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
            let text = format!("{}{comma}{rest}", about.strip_suffix('}')?);
            Some(Post::new(channel, marked(&text, &host, None)?.into_bytes()))
        });
        posts.collect()
    }

    /// Whose channel it is.
    fn of_channel(&self, channel: &str) -> Option<&(EndpointId, Naming)> {
        let is_updates = |naming: &Naming| matches!(naming, Naming::Updates(own) | Naming::Own(own) if own == channel);
        self.served.iter().find(|(_, naming)| is_updates(naming)).or_else(|| {
            let is_room = channel.starts_with("room:") || channel.starts_with("group:");
            self.served.iter().find(|(_, naming)| is_room && matches!(naming, Naming::Rooms))
        })
    }

    /// True exactly when what is said on a channel is for clients of one of these endpoints.
    pub(crate) fn serves(&self, channel: &str) -> bool {
        self.of_channel(channel).is_some()
    }

    /// What a message on a channel says; `None` for a channel that is not one of these. `is_of_stream`: it was not published there, but read in
    /// the stream of what hosts of ours say.
    pub(crate) fn heard(&mut self, channel: &str, payload: &[u8], is_of_stream: bool, offset: u64, unix_ms: u64) -> Option<Heard> {
        let endpoint = self.of_channel(channel).map(|(endpoint, _)| *endpoint)?;
        let Ok(text) = std::str::from_utf8(payload) else { return Some(Heard::Malformed) };
        let Ok(doc) = self.scratch.parse(text) else { return Some(Heard::Malformed) };
        let message = doc.root();
        if !message.is_object() {
            return Some(Heard::Malformed);
        }
        let origin = message.get(ORIGIN).and_then(Value::as_str);
        let is_known = |origin: &str| (self.has_stream && !is_of_stream) || origin == self.host || origin.starts_with(TOLD);
        if origin.is_some_and(is_known) {
            return Some(Heard::Known);
        }
        let naming = self.served.iter().find(|(served, _)| *served == endpoint).map(|(_, naming)| naming)?;
        let read = match naming {
            Naming::Rooms => of_community(channel, message),
            Naming::Updates(_) => of_collab(message),
            Naming::Own(_) => of_own(message),
        };
        let Some((target, text)) = read else { return Some(Heard::Malformed) };
        let to = Selection::of(endpoint, vec![target]);
        let emit = Emit { is_elsewhere: true, ..Emit::new(to, "", "", offset, unix_ms) };
        let hidden_from = origin.and_then(|_| hidden_from(message));
        let arrival = Box::new(Arrival { emit, text: Some(text.into()), hidden_from, is_foreign: origin.is_none() });
        match author_of(message).filter(|_| origin.is_none() && matches!(naming, Naming::Rooms)) {
            Some(author) => Some(Heard::Of(author, arrival)),
            None => Some(Heard::Arrival(arrival)),
        }
    }

    fn naming(&self, endpoint: EndpointId) -> Option<&Naming> {
        self.served.iter().find(|(served, _)| *served == endpoint).map(|(_, naming)| naming)
    }
}

/// The first endpoint of the community dialect: the channels and keys of the contract's page are its own.
pub(crate) fn first_community(config: &Config) -> Option<usize> {
    config.endpoints.iter().position(|endpoint| endpoint.dialect == DialectKind::Community)
}

/// The text of an object with one member more.
fn marked(text: &str, host: &str, hidden_from: Option<&Identity>) -> Option<String> {
    let open = text.trim_end().strip_suffix('}')?;
    let comma = if open.trim_end().ends_with('{') { "" } else { "," };
    let blocked = hidden_from.map_or_else(String::new, |author| format!(",\"{BLOCKED}\":{}", list(&author.blocked)));
    Some(format!("{open}{comma}\"{ORIGIN}\":\"{host}\"{blocked}}}"))
}

/// A JSON list of texts.
fn list(texts: &[String]) -> String {
    let mut list = "[".to_owned();
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            list.push(',');
        }
        json::quote(&mut list, text);
    }
    list.push(']');
    list
}

/// Whose blocked users do not get a message that a host of our kind has marked.
fn hidden_from(message: Value<'_>) -> Option<Arc<Identity>> {
    let blocked: Vec<String> = message.get(BLOCKED)?.items().filter_map(|user| Some(user.as_str()?.to_owned())).collect();
    (!blocked.is_empty()).then(|| Arc::new(Details { blocked, ..Details::default() }.into()))
}

/// The text of an object without the members of these names.
fn without(message: Value<'_>, names: &[&str]) -> String {
    let mut out = Object::with_capacity(message.raw().len());
    for member in message.members().filter(|member| !names.contains(&member.key)) {
        out = out.raw(member.key, member.value.raw());
    }
    out.finish()
}

/// Whose message it is, where it says so.
fn author_of(message: Value<'_>) -> Option<String> {
    let payload = message.get("payload")?;
    let author = match message.get("type")?.as_str()? {
        "TYPING" => payload.get("userId"),
        _ => payload.get("authorId"),
    };
    author?.as_exact_str().and_then(|author| checked_name(author).ok()).map(str::to_owned)
}

fn of_community(channel: &str, message: Value<'_>) -> Option<(Target, String)> {
    message.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty())?;
    if message.get("payload").is_some_and(|payload| !payload.is_object()) {
        return None;
    }
    // What a foreign program calls so is its own.
    let hidden: &[&str] = if message.get(ORIGIN).is_some() { &[ORIGIN, BLOCKED] } else { &[] };
    Some((Target::Room(checked_name(channel).ok()?.into()), without(message, hidden)))
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
