//! Socket.IO endpoints and the other servers of their namespaces: what a host says becomes the adapters' messages, and theirs become arrivals.
//! It holds who we are in each namespace and which adapter's form is spoken; bytes are [`super::format`]'s, who asks whom what is
//! [`super::peers`]', and what is done with it all is [`super::core`]'s.

use std::borrow::Cow;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

use super::format::{self, Envelope, Fault, Flags, Message, Options, Payload, RemoteSocket, classic, sharded, streams};
use super::request::{Call, Kind};
use crate::config::{Adapter, Config, DialectKind, Relay, RelayMode};
use crate::dialect;
use crate::frame::{Frame, Packet};
use crate::ids::{EndpointId, Room};
use crate::json::{self, Object, Scratch, Value};
use crate::shard::outward::Published;
use crate::shard::parcel::{Arrival, Emit, Selection, Target};
use crate::shard::peers::Socket;
use crate::wire::http;
use crate::wire::sio::{self, Offset};

/// Characters of an adapter's id, and of a request's.
const UID_CHARS: usize = 6;
const UID_ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// First character of the ids under which uringcast hosts say what they have told each other in another way.
pub(crate) const TOLD: char = '~';

/// First character of the ids of uringcast hosts; those of Node servers have none but letters and digits.
pub(crate) const OURS: char = '-';

/// Which rooms have channels of their own where the sharded adapter is spoken: its default.
const SUBSCRIPTION: sharded::Subscription = sharded::Subscription::Dynamic;

/// What says that something is an entry of a stream: the stream, fields and values follow.
pub(crate) const ENTRY: &str = "XADD";

/// One namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) endpoint: EndpointId,
    pub(crate) name: String,
    /// Our adapter's id in it.
    pub(crate) uid: String,
    /// Our other id in it; see [`TOLD`].
    pub(crate) told_uid: String,
    /// Its servers, this one among them, when they were counted last.
    pub(crate) servers: u64,
    dialect: DialectKind,
    wire: Wire,
}

/// How its servers talk.
#[derive(Debug)]
enum Wire {
    Classic(classic::Channels),
    Sharded(sharded::Channels),
    /// Of the reliable mode: requests and answers on channels, everything else in the stream of that name.
    Streams(sharded::Channels, String),
}

/// A message for a channel.
#[derive(Debug)]
pub(crate) struct Post {
    /// The command that says it: `PUBLISH`, or `SPUBLISH` for a channel that lives on one node of a cluster.
    pub(crate) verb: &'static str,
    pub(crate) channel: String,
    pub(crate) payload: Vec<u8>,
    /// Of an entry of a stream, whose name is the channel: its fields.
    pub(crate) fields: Vec<(&'static str, String)>,
}

impl Post {
    /// For a channel that all nodes know.
    pub(crate) fn new(channel: String, payload: Vec<u8>) -> Post {
        Post { verb: "PUBLISH", channel, payload, fields: Vec::new() }
    }

    /// What says it. An entry of a stream is numbered before it goes out: [`super::append`].
    pub(crate) fn call(&self) -> Call {
        if !self.fields.is_empty() {
            let call = Call::new(ENTRY).arg(&self.channel);
            return self.fields.iter().fold(call, |call, (field, value)| call.arg(field).arg(value));
        }
        Call::new(self.verb).arg(&self.channel).arg(&self.payload)
    }
}

/// As whom something is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum As<'u> {
    /// For all servers.
    Ourselves,
    /// For those only that are no uringcast hosts: see [`TOLD`].
    Told,
    /// In the name of an adapter of this id, so that this host hears it as well.
    Another(&'u str),
}

/// What a channel of a namespace is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'c> {
    pub(crate) endpoint: EndpointId,
    /// True exactly when answers to our requests come there.
    pub(crate) is_for_answers: bool,
    /// Index in [`SocketIo::namespaces`].
    namespace: usize,
    classic: Option<classic::Kind<'c>>,
}

impl Place<'_> {
    /// True exactly when it is of the classic form, whose channels all servers listen to.
    pub(crate) fn is_classic(&self) -> bool {
        self.classic.is_some()
    }

    /// True exactly when it is a classic channel of broadcasts.
    pub(crate) fn is_broadcast(&self) -> bool {
        matches!(self.classic, Some(classic::Kind::Broadcast { .. }))
    }
}

/// As whom those are told that are no uringcast hosts.
fn told_uid(uid: &str) -> String {
    format!("{TOLD}{}", uid.get(1..).unwrap_or_default())
}

/// All namespaces that this host serves.
pub(crate) struct SocketIo {
    pub(crate) namespaces: Vec<Namespace>,
    /// The path of their clients' requests.
    path: String,
    scratch: Scratch,
}

impl Namespace {
    fn new(endpoint: EndpointId, name: &str, dialect: DialectKind, settings: &Relay, random: &mut StdRng) -> Namespace {
        let key = &*settings.socket_io_key;
        let sharded = |random: &mut StdRng| (format!("{OURS}{:015x}", random.next_u64() >> 4), sharded::Channels::new(key, name));
        let (uid, wire) = match (settings.mode, settings.adapter) {
            (RelayMode::Streams, _) => {
                let (uid, channels) = sharded(random);
                (uid, Wire::Streams(channels, key.to_owned()))
            }
            (RelayMode::PubSub, Adapter::Classic) => (random_uid(random), Wire::Classic(classic::Channels::new(key, name))),
            (RelayMode::PubSub, Adapter::Sharded) => {
                let (uid, channels) = sharded(random);
                (uid, Wire::Sharded(channels))
            }
        };
        let told_uid = told_uid(&uid);
        Namespace { endpoint, name: name.to_owned(), uid, told_uid, servers: 0, dialect, wire }
    }

    /// Goes on as the adapter of this id, which others know from before a reload.
    pub(crate) fn rename(&mut self, uid: String) {
        (self.told_uid, self.uid) = (told_uid(&uid), uid);
    }

    /// What is listened to all the time.
    pub(crate) fn listened(&self) -> Vec<(Kind, String)> {
        match &self.wire {
            Wire::Classic(channels) => {
                let mut listened = vec![(Kind::Pattern, channels.pattern())];
                for channel in channels.subscribed(&self.uid).into_iter().chain(channels.subscribed(&self.told_uid)) {
                    if !listened.iter().any(|(_, known)| *known == channel) {
                        listened.push((Kind::Channel, channel));
                    }
                }
                listened
            }
            Wire::Sharded(channels) | Wire::Streams(channels, _) => {
                let kind = if matches!(self.wire, Wire::Sharded(_)) { Kind::Sharded } else { Kind::Channel };
                let own = [channels.common().to_owned(), channels.own(&self.uid), channels.own(&self.told_uid)];
                own.into_iter().map(|channel| (kind, channel)).collect()
            }
        }
    }

    /// What asks how many servers there are, which is how many listen to the one channel that all listen to.
    pub(crate) fn count_call(&self) -> Call {
        match &self.wire {
            Wire::Classic(channels) => Call::new("PUBSUB").arg("NUMSUB").arg(channels.request()),
            Wire::Sharded(channels) => Call::new("PUBSUB").arg("SHARDNUMSUB").arg(channels.common()),
            Wire::Streams(channels, _) => Call::new("PUBSUB").arg("NUMSUB").arg(channels.common()),
        }
    }

    /// What other servers call a room. A user's has the name that the old server of its dialect gave it, where that had one.
    pub(crate) fn name_outside(&self, name: &str) -> String {
        let own = name.strip_prefix("\u{1}u:").and_then(|user| dialect::of(self.dialect).own_room(user));
        own.unwrap_or_else(|| name.to_owned())
    }

    /// Whom a selection means, for other servers; `None` when it is nobody.
    pub(crate) fn options_of(&self, who: &Selection) -> Option<Options> {
        let name = |target: &Target| match target {
            Target::Room(name) => Some(self.name_outside(name)),
            Target::Connection(sid) => Some(sid.to_string()),
            // No dialect of this protocol has names of that kind.
            Target::Present { .. } => None,
        };
        let (mut rooms, except): (Vec<_>, Vec<_>) =
            (who.targets.iter().filter_map(name).collect(), who.except.iter().filter_map(name).collect());
        // To nobody, and to no room in particular, which is everybody, look the same on the wire.
        if rooms.is_empty() || except.iter().any(String::is_empty) {
            return None;
        }
        if rooms.iter().any(String::is_empty) {
            rooms.clear();
        }
        rooms.sort_unstable();
        rooms.dedup();
        Some(Options { rooms, except, flags: Flags::default() })
    }

    fn is_ours(&self, uid: &str) -> bool {
        uid == self.uid || uid == self.told_uid
    }
}

impl SocketIo {
    pub(crate) fn new(config: &Config, settings: &Relay, random: &mut StdRng) -> SocketIo {
        let served = config.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.dialect.is_socket_io());
        let namespaces =
            served.map(|(index, served)| Namespace::new(EndpointId(index as u8), &served.bind, served.dialect, settings, random));
        SocketIo { namespaces: namespaces.collect(), path: config.socket_io.path.clone(), scratch: format::scratch() }
    }

    /// The namespace of an endpoint.
    pub(crate) fn of(&self, endpoint: EndpointId) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.endpoint == endpoint)
    }

    /// The namespace of an endpoint, to be changed.
    pub(crate) fn of_mut(&mut self, endpoint: EndpointId) -> Option<&mut Namespace> {
        self.namespaces.iter_mut().find(|namespace| namespace.endpoint == endpoint)
    }

    /// The channel of a room that is listened to while somebody is in it; `None` where there is none of its own.
    pub(crate) fn channel_of(&self, room: &Room) -> Option<String> {
        let namespace = self.of(room.endpoint)?;
        let Wire::Sharded(channels) = &namespace.wire else { return None };
        let name = namespace.name_outside(&room.name);
        SUBSCRIPTION.has_channel(&name).then(|| channels.own(&name))
    }

    /// What says something to the other servers of a namespace, an answer to its `asker`; `None` where their form has no such message.
    pub(crate) fn say(&mut self, endpoint: EndpointId, who: As<'_>, message: Message, asker: Option<&str>) -> Option<Post> {
        let namespace = self.namespaces.iter().find(|namespace| namespace.endpoint == endpoint)?;
        let uid = match who {
            As::Ourselves => &*namespace.uid,
            As::Told => &namespace.told_uid,
            As::Another(uid) => uid,
        };
        let envelope = Envelope { uid: uid.to_owned(), nsp: namespace.name.clone(), message };
        let (verb, channel, payload) = match &namespace.wire {
            Wire::Streams(channels, _) if streams::is_published(&envelope.message) => {
                // Static: no room has a channel of its own.
                let channel = channels.of(&envelope.message, sharded::Subscription::Static, asker);
                ("PUBLISH", channel, streams::encode_published(&mut self.scratch, &envelope).ok()?)
            }
            Wire::Streams(_, stream) => {
                let fields = streams::encode(&mut self.scratch, &envelope).ok()?.to_vec();
                return Some(Post { fields, ..Post::new(stream.clone(), Vec::new()) });
            }
            Wire::Classic(channels) => {
                ("PUBLISH", channels.of(&envelope.message, asker), classic::encode(&mut self.scratch, &envelope).ok()?)
            }
            Wire::Sharded(channels) => {
                let channel = channels.of(&envelope.message, SUBSCRIPTION, asker);
                ("SPUBLISH", channel, sharded::encode(&mut self.scratch, &envelope).ok()?)
            }
        };
        Some(Post { verb, channel, payload, fields: Vec::new() })
    }

    /// What the adapters of other hosts are told of a publication, by us or an adapter of another id; `None` where it is not one of this
    /// protocol's events.
    pub(crate) fn broadcast(&mut self, published: &Published, uid: Option<&str>) -> Option<Post> {
        let endpoint = published.room.endpoint;
        let namespace = self.of(endpoint)?;
        let packet = event_of(&published.frame)?;
        let addressee = published.addressee.iter().map(|sid| sid.to_string());
        let room = (!published.room.name.is_empty()).then(|| namespace.name_outside(&published.room.name));
        let rooms: Vec<String> = addressee.chain(room).collect();
        let flags = Flags { volatile: published.frame.mark().volatile, ..Flags::default() };
        let options = Options { rooms, except: published.except.iter().map(|sid| sid.to_string()).collect(), flags };
        let message = Message::Broadcast { packet, options, request: None };
        let mut post = self.say(endpoint, uid.map_or(As::Ourselves, As::Another), message, None)?;
        if !post.fields.is_empty() {
            post.fields.extend(published.frame.mark().offset.map(|offset| ("o", offset.text())));
            let blocked = published.hidden_from.as_ref().map(|author| &author.blocked);
            post.fields.extend(blocked.and_then(|blocked| Some(("b", serde_json::to_string(blocked).ok()?))));
        }
        Some(post)
    }

    /// An entry that tells other servers what the back end says; `None` where they could not understand it.
    pub(crate) fn told(&mut self, emit: &Emit) -> Option<Post> {
        let options = self.of(emit.to.endpoint)?.options_of(&emit.to)?;
        let options = Options { flags: Flags { volatile: emit.volatile, ..Flags::default() }, ..options };
        let mut json = String::from("[");
        json::quote(&mut json, &emit.event);
        if !emit.args.is_empty() {
            json.push(',');
            json.push_str(&emit.args);
        }
        json.push(']');
        let packet = Payload { json, attachments: emit.attachments.clone() };
        let message = Message::Broadcast { packet, options, request: None };
        let mut post = self.say(emit.to.endpoint, As::Told, message, None)?;
        post.fields.push(("o", emit.offset.text()));
        Some(post)
    }

    /// Reads a stream's entry; `None` when it is for none of our namespaces.
    pub(crate) fn read_entry<'f>(
        &mut self,
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])>,
    ) -> Option<(EndpointId, Result<Envelope, Fault>)> {
        let envelope = match streams::decode(&mut self.scratch, fields) {
            Ok(envelope) => envelope,
            Err(fault) => return Some((EndpointId(0), Err(fault))),
        };
        let namespace = self.namespaces.iter().find(|namespace| namespace.name == envelope.nsp)?;
        Some((namespace.endpoint, Ok(envelope)))
    }

    /// What a channel is; `None` when it is the channel of none of our namespaces.
    pub(crate) fn place<'c>(&self, channel: &'c str) -> Option<Place<'c>> {
        self.namespaces.iter().enumerate().find_map(|(index, namespace)| {
            let (is_for_answers, classic) = match &namespace.wire {
                Wire::Classic(channels) => {
                    let kind = channels.kind(channel.as_bytes())?;
                    (matches!(kind, classic::Kind::Response { .. }), Some(kind))
                }
                Wire::Sharded(channels) | Wire::Streams(channels, _) => {
                    (channels.owner(channel.as_bytes())?.is_some_and(|name| namespace.is_ours(name)), None)
                }
            };
            Some(Place { endpoint: namespace.endpoint, is_for_answers, namespace: index, classic })
        })
    }

    /// Reads what came there.
    ///
    /// # Errors
    /// When it is none of the messages that are sent there.
    pub(crate) fn read(&mut self, place: Place<'_>, payload: &[u8]) -> Result<Envelope, Fault> {
        let name = &self.namespaces[place.namespace].name;
        match place.classic {
            Some(kind) => classic::decode(&mut self.scratch, name, kind, payload),
            None => {
                let envelope = sharded::decode(&mut self.scratch, payload)?;
                if envelope.nsp == *name { Ok(envelope) } else { Err(Fault::OtherNamespace) }
            }
        }
    }

    /// True exactly when this host has said it.
    pub(crate) fn is_ours(&self, endpoint: EndpointId, uid: &str) -> bool {
        self.of(endpoint).is_some_and(|namespace| namespace.is_ours(uid))
    }

    /// What a broadcast of another host says to clients here; `None` for a form that no client could read. `uid` is that host's.
    pub(crate) fn arrival(
        &mut self,
        endpoint: EndpointId,
        uid: &str,
        packet: Payload,
        options: &Options,
        offset: impl Into<Offset>,
        unix_ms: u64,
    ) -> Option<Arrival> {
        let (event, args) = split_event(&packet.json, &mut self.scratch)?;
        if sio::RESERVED_EVENTS.contains(&&*event) {
            return None;
        }
        let to = selection(endpoint, options);
        let emit =
            Emit { volatile: options.flags.volatile, attachments: packet.attachments, ..Emit::new(to, &event, &args, offset, unix_ms) };
        Some(Arrival { emit: Emit { is_elsewhere: true, ..emit }, text: None, hidden_from: None, is_foreign: !uid.starts_with(OURS) })
    }

    /// The name and the arguments, a JSON array, of what a server says to servers. What is binary is spelled out.
    pub(crate) fn call_of(&mut self, packet: &Payload) -> Option<(String, String)> {
        let text = self.spelled(packet);
        let (event, args) = split_event(&text, &mut self.scratch)?;
        Some((event, format!("[{args}]")))
    }

    /// The first of a client's words in an acknowledgement, which is all that is passed on; `null` where there is none.
    pub(crate) fn first_of(&mut self, json: &str, mut attachments: Vec<Vec<u8>>) -> Payload {
        let Ok(doc) = self.scratch.parse(json) else { return Payload::from("null") };
        let root = doc.root();
        let Some(first) = root.items().next() else { return Payload::from("null") };
        if attachments.is_empty() {
            return Payload::from(first.raw());
        }
        // Clients number what is binary in the order of the text, so that what belongs to the first comes first.
        let (mut numbers, mut is_in_order) = (0, true);
        first.visit(|value| {
            let is_placeholder = value.get("_placeholder").and_then(Value::as_bool) == Some(true);
            if is_placeholder {
                is_in_order &= value.get("num").and_then(Value::as_u64) == Some(numbers);
                numbers += 1;
            }
            !is_placeholder
        });
        if !is_in_order {
            return Payload { json: sio::spelled_out(first, &attachments), attachments: Vec::new() };
        }
        attachments.truncate(numbers as usize);
        Payload { json: first.raw().to_owned(), attachments }
    }

    /// One value as JSON alone.
    pub(crate) fn spelled(&mut self, value: &Payload) -> String {
        let doc = self.scratch.parse(&value.json);
        doc.map_or_else(|_| "null".to_owned(), |doc| sio::spelled_out(doc.root(), &value.attachments))
    }

    /// A connection as other servers are told of it: what is known, and no token or cookie.
    pub(crate) fn remote_socket(&self, endpoint: EndpointId, socket: &Socket) -> RemoteSocket {
        let Socket { info, query } = socket;
        let id = info.id.to_string();
        let user_room = self.of(endpoint).map(|namespace| namespace.name_outside(&Room::user(endpoint, &info.user).name));
        let mut rooms = vec![id.clone()];
        rooms.extend(info.rooms.iter().cloned());
        rooms.extend(user_room.filter(|room| !info.rooms.contains(room)));
        let mut asked = Object::new();
        for (name, value) in query_members(query) {
            asked = asked.str(&name, &value);
        }
        let mark = if query.is_empty() { "" } else { "?" };
        let handshake = Object::new()
            .raw("headers", "{}")
            .str("time", &script_date(info.connected_unix_ms))
            .str("address", &info.address.ip().to_string())
            .bool("xdomain", false)
            .bool("secure", false)
            .num("issued", info.connected_unix_ms)
            .str("url", &format!("{}{mark}{query}", self.path))
            .raw("query", &asked.finish())
            .raw("auth", "{}");
        let data = Object::new()
            .str("userId", &info.user)
            .opt_str("username", info.username.as_deref())
            .opt_str("email", info.email.as_deref())
            .opt_str("clientID", info.client_id.as_deref())
            .opt_raw("metadata", info.metadata.as_deref());
        RemoteSocket { id, handshake_json: handshake.finish(), rooms, data_json: data.finish() }
    }
}

/// A random id as the adapters use, which shows to others like us whose it is.
pub(crate) fn random_uid(random: &mut StdRng) -> String {
    format!("{OURS}{}", &random_id(random)[1..])
}

/// Whom options mean.
pub(crate) fn selection(endpoint: EndpointId, options: &Options) -> Selection {
    let targets = |names: &[String]| names.iter().map(|name| Target::Room(name.as_str().into())).collect::<Vec<_>>();
    let everybody = options.rooms.is_empty().then(Target::all);
    Selection { endpoint, targets: targets(&options.rooms).into_iter().chain(everybody).collect(), except: targets(&options.except) }
}

/// Names and values of a query, each name once: of several values the last.
fn query_members(query: &str) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let mut members: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
    for (name, value) in http::query_pairs(query) {
        match members.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => members.push((name, value)),
        }
    }
    members
}

/// A time as `Date.prototype.toString` writes it where the clock shows UTC.
fn script_date(unix_ms: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // `2026-11-20T17:57:03.123Z`
    let text = crate::time::rfc3339(unix_ms);
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    let month = part(5..7).parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1))).unwrap_or(&"Jan");
    let day = DAYS[(unix_ms / 86_400_000 % 7) as usize];
    format!("{day} {month} {} {} {} GMT+0000 (Coordinated Universal Time)", part(8..10), part(0..4), part(11..19))
}

/// A random id as the adapters use, for an adapter or a request.
pub(crate) fn random_id(random: &mut StdRng) -> String {
    (0..UID_CHARS).map(|_| char::from(UID_ALPHABET[random.random_range(0..UID_ALPHABET.len())])).collect()
}

/// The event of a frame, without the offset that it may end with.
fn event_of(frame: &Frame) -> Option<Payload> {
    let (mut text, mut attachments) = (None, Vec::new());
    for packet in frame.packets() {
        match packet {
            Packet::Text(first) if text.is_none() => text = Some(first),
            Packet::Binary(data) => attachments.push(data.to_vec()),
            Packet::Text(_) => return None,
        }
    }
    let packet = sio::parse(text?.strip_prefix('4')?).ok()?;
    let mut json = packet.payload.to_owned();
    if let Some(offset) = frame.mark().offset {
        let mut ending = ",".to_owned();
        json::quote(&mut ending, &offset.text());
        ending.push(']');
        json.truncate(json.strip_suffix(&ending)?.len());
        json.push(']');
    }
    Some(Payload { json, attachments })
}

/// The name of an event, and its arguments as raw texts joined by commas. Names that are numbers are given as their text.
fn split_event(json: &str, scratch: &mut Scratch) -> Option<(String, String)> {
    let doc = scratch.parse(json).ok()?;
    let root = doc.root();
    let mut items = root.items();
    let first = items.next().filter(|_| root.is_array())?;
    let name = match first.as_exact_str() {
        Some(name) => name.to_owned(),
        None => first.as_f64().map(|_| first.raw().to_owned())?,
    };
    let args: Vec<&str> = items.map(|item| item.raw()).collect();
    Some((name, args.join(",")))
}
