//! Socket.IO endpoints and the other servers of their namespaces: what a host says becomes the adapters' messages, and theirs become arrivals.
//! It holds who we are in each namespace; bytes are [`super::format`]'s, and what is done with it all is [`super::core`]'s.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::format::{self, Envelope, Fault, Flags, Message, Options, Payload, classic, streams};
use crate::config::Config;
use crate::frame::{Frame, Packet};
use crate::ids::EndpointId;
use crate::json::{self, Scratch};
use crate::shard::outward::Published;
use crate::shard::parcel::{Arrival, Emit, Selection, Target};
use crate::wire::sio::{self, Offset};

/// Characters of an adapter's id, and of a request's.
const UID_CHARS: usize = 6;
const UID_ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// First character of the ids under which uringcast hosts say what they have told each other in another way.
pub(crate) const TOLD: char = '~';

/// One namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) endpoint: EndpointId,
    pub(crate) name: String,
    /// Our adapter's id in it.
    pub(crate) uid: String,
    pub(crate) channels: classic::Channels,
}

/// A message for a channel.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) channel: String,
    pub(crate) payload: Vec<u8>,
}

/// All namespaces that this host serves.
pub(crate) struct SocketIo {
    pub(crate) namespaces: Vec<Namespace>,
    scratch: Scratch,
}

impl SocketIo {
    pub(crate) fn new(config: &Config, key: &str, random: &mut StdRng) -> SocketIo {
        let served = config.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.dialect.is_socket_io());
        let namespaces = served.map(|(index, endpoint)| Namespace {
            endpoint: EndpointId(index as u8),
            name: endpoint.bind.clone(),
            uid: random_uid(random),
            channels: classic::Channels::new(key, &endpoint.bind),
        });
        SocketIo { namespaces: namespaces.collect(), scratch: format::scratch() }
    }

    /// The namespace of an endpoint.
    pub(crate) fn of(&self, endpoint: EndpointId) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.endpoint == endpoint)
    }

    /// What the adapters of other hosts are told of a publication by PUBLISH; `None` where it is not one of this protocol's events.
    pub(crate) fn broadcast(&mut self, published: &Published) -> Option<Post> {
        let message = message_of(published)?;
        let namespace = self.of(published.room.endpoint)?;
        let channel = namespace.channels.of(&message, None);
        let envelope = Envelope { uid: namespace.uid.clone(), nsp: namespace.name.clone(), message };
        Some(Post { channel, payload: classic::encode(&mut self.scratch, &envelope).ok()? })
    }

    /// The fields of a stream's entry that tells of a publication; `None` where it is not one of this protocol's events.
    pub(crate) fn entry(&mut self, published: &Published, uid: &str) -> Option<[(&'static str, String); 4]> {
        let (message, namespace) = (message_of(published)?, self.of(published.room.endpoint)?);
        let envelope = Envelope { uid: uid.to_owned(), nsp: namespace.name.clone(), message };
        streams::encode(&mut self.scratch, &envelope).ok()
    }

    /// The fields of a stream's entry that tells of what the back end says; `None` where other servers could not understand it.
    pub(crate) fn told(&mut self, emit: &Emit, uid: &str) -> Option<[(&'static str, String); 4]> {
        let namespace = self.of(emit.to.endpoint)?;
        let names = |targets: &[Target]| targets.iter().map(name_of).collect::<Option<Vec<String>>>();
        let (rooms, except) = (names(&emit.to.targets)?, names(&emit.to.except)?);
        // Everybody is in the room without a name, which has none there.
        let rooms = if rooms.iter().any(String::is_empty) { Vec::new() } else { rooms };
        let mut json = String::from("[");
        json::quote(&mut json, &emit.event);
        if !emit.args.is_empty() {
            json.push(',');
            json.push_str(&emit.args);
        }
        json.push(']');
        let packet = Payload { json, attachments: emit.attachments.clone() };
        let options = Options { rooms, except, flags: Flags { volatile: emit.volatile, ..Flags::default() } };
        let message = Message::Broadcast { packet, options, request: None };
        let envelope = Envelope { uid: uid.to_owned(), nsp: namespace.name.clone(), message };
        streams::encode(&mut self.scratch, &envelope).ok()
    }

    /// Reads a stream's entry; `None` when it is for none of our namespaces.
    pub(crate) fn read<'f>(
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

    /// Reads what came on a channel; `None` when it is the channel of none of our namespaces.
    pub(crate) fn heard(&mut self, channel: &str, payload: &[u8]) -> Option<(EndpointId, Result<Envelope, Fault>)> {
        let of = |namespace: &&Namespace| namespace.channels.kind(channel.as_bytes()).is_some();
        let namespace = self.namespaces.iter().find(of)?;
        let kind = namespace.channels.kind(channel.as_bytes())?;
        Some((namespace.endpoint, classic::decode(&mut self.scratch, &namespace.name, kind, payload)))
    }

    /// What a broadcast of another host says to clients here; `None` for a form that no client could read.
    pub(crate) fn arrival(
        &mut self,
        endpoint: EndpointId,
        packet: Payload,
        options: &Options,
        offset: Offset,
        unix_ms: u64,
    ) -> Option<Arrival> {
        let (event, args) = split_event(&packet.json, &mut self.scratch)?;
        if sio::RESERVED_EVENTS.contains(&&*event) {
            return None;
        }
        let targets = |names: &[String]| names.iter().map(|name| Target::Room(name.as_str().into())).collect::<Vec<_>>();
        let everybody = options.rooms.is_empty().then(Target::all);
        let to = Selection {
            endpoint,
            targets: targets(&options.rooms).into_iter().chain(everybody).collect(),
            except: targets(&options.except),
        };
        let emit =
            Emit { volatile: options.flags.volatile, attachments: packet.attachments, ..Emit::new(to, &event, &args, offset, unix_ms) };
        Some(Arrival { emit: Emit { is_elsewhere: true, ..emit }, text: None, hidden_from: None })
    }
}

/// The room of a target, as other servers know it.
fn name_of(target: &Target) -> Option<String> {
    match target {
        Target::Room(name) => Some(name.to_string()),
        Target::Connection(sid) => Some(sid.to_string()),
        Target::Present { .. } => None,
    }
}

/// What a publication says to the clients of other hosts.
fn message_of(published: &Published) -> Option<Message> {
    let packet = event_of(&published.frame)?;
    let addressee = published.addressee.iter().map(|sid| sid.to_string());
    let room = (!published.room.name.is_empty()).then(|| published.room.name.to_string());
    let rooms: Vec<String> = addressee.chain(room).collect();
    let flags = Flags { volatile: published.frame.mark().volatile, ..Flags::default() };
    let options = Options { rooms, except: published.except.iter().map(|sid| sid.to_string()).collect(), flags };
    Some(Message::Broadcast { packet, options, request: None })
}

/// A random id as the adapters use.
pub(crate) fn random_uid(random: &mut StdRng) -> String {
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
