//! What a process hands on to the one that it becomes at a reload: everything of its shards but their sockets, as plain data. Sockets are numbers
//! here; they stay open over `execve`. It knows how it is written down and nothing of how a shard works; `shard/freeze.rs` and `shard/thaw.rs` do.
//!
//! Written down it is MessagePack, a record being the list of its fields. So a field may be **appended** with `#[serde(default)]`, and what an older
//! version wrote can still be read. Any other change needs a new [`VERSION`], and a look at [`OLDEST`].
//!
//! What clients have said and shown stands in it, so nothing of it has a debug form.
//!
//! Times are monotonic milliseconds or nanoseconds since the engine's zero, which is moved so that the pause does not count. An endpoint is an index into
//! [`Frozen::endpoints`], since the new configuration may have others in another order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::assembly::Assembly;
use super::backlog::To;
use super::engine_http::Reply;
use super::history::Kept;
use super::links::{Heartbeat, Inbox, Ruled, Visitor};
use super::rate::Rate;
use super::receipts::Awaited;
use crate::auth::{AuthFault, Identity};
use crate::dialect::Profile;
use crate::frame::FrozenFrame;
use crate::ids::{ConnId, Sid};
use crate::wire::body::Body;
use crate::wire::sio::Offset;
use crate::wire::ws::Decoder;

/// What this version writes.
pub const VERSION: u32 = 2;
/// The oldest that it reads.
pub const OLDEST: u32 = 1;

/// The first bytes of what is written down, before the version's four (little endian).
const MAGIC: &[u8; 8] = b"uringcst";

/// Bytes that a connection, a link or a room takes at most, as a rule.
const LINK_BYTES: usize = 512;

/// Why what another version wrote cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum NotThawed {
    /// It is no such thing.
    #[error("this is no state of a running server")]
    NoState,
    /// It is of a version that is not known.
    #[error("the state has version {0}, and versions {OLDEST} to {VERSION} can be taken over")]
    Version(u32),
    /// It does not say what its version says it does.
    #[error("the state cannot be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    /// It cannot be served here.
    #[error("the state does not fit: {0}")]
    Unfit(&'static str),
}

/// Everything.
#[derive(Default, Serialize, Deserialize)]
pub struct Frozen {
    /// How often the process has been reloaded when somebody has taken this over.
    pub generation: u64,
    /// Nanoseconds since the engine's zero at the moment of the freeze.
    pub elapsed_ns: u64,
    /// Key of the hash that gives rooms their homes.
    pub seed: u64,
    /// Handshakes and calls that were counted lately, by the places of their addresses' counters.
    pub addresses: [Vec<(u16, u64)>; 2],
    /// True exactly when several of the listening sockets are one and the same, which the process was given.
    pub shares: bool,
    /// Which events somebody wanted, until somebody says what he wants now.
    pub wanted: u16,
    /// Descriptors of the listening sockets of the public port, one for each shard.
    pub listeners: Vec<i32>,
    /// By index.
    pub endpoints: Vec<FrozenEndpoint>,
    /// One [`FrozenShard`] each, written down by its own thread.
    pub shards: Vec<ByteBuf>,
    /// The way to other hosts, written down by its own thread; empty where there is none.
    pub relay: ByteBuf,
    /// What the program around the engine hands on to itself.
    pub program: ByteBuf,
}

impl Frozen {
    /// Writes it down, in small pieces but for what the shards have.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        rmp_serde::encode::write(to, self).map_err(io::Error::other)
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are of another version, or nothing of this kind.
    pub fn decode(bytes: &[u8]) -> Result<Frozen, NotThawed> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(NotThawed::NoState)?;
        let (version, rest) = rest.split_first_chunk().ok_or(NotThawed::NoState)?;
        match u32::from_le_bytes(*version) {
            OLDEST..=VERSION => Ok(rmp_serde::from_slice(rest)?),
            other => Err(NotThawed::Version(other)),
        }
    }
}

impl FrozenShard {
    /// From one of [`Frozen::shards`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn decode(part: &[u8]) -> Result<FrozenShard, NotThawed> {
        Ok(rmp_serde::from_slice(part)?)
    }

    /// For one of [`Frozen::shards`].
    pub fn encode(&self) -> Vec<u8> {
        // Rather too much than to copy all of it whenever it has grown: what is not touched costs nothing.
        let frames: usize = self.frames.iter().map(FrozenFrame::len).sum();
        let mut bytes = Vec::with_capacity(frames + LINK_BYTES * (self.links.len() + self.conns.len() + self.rooms.len()));
        let written = rmp_serde::encode::write(&mut bytes, self);
        debug_assert!(written.is_ok(), "into memory: {written:?}");
        bytes
    }
}

/// What was served.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct FrozenEndpoint {
    /// Its name.
    pub name: String,
    /// Its dialect's.
    pub dialect: String,
    /// Its path or namespace.
    pub bind: String,
}

/// Everything of one shard.
#[derive(Default, Serialize, Deserialize)]
pub struct FrozenShard {
    /// Its index.
    pub(crate) shard: u8,
    /// No slot has been used more often: what names a link or a connection that is gone names none that comes.
    pub(crate) link_generation: u32,
    pub(crate) conn_generation: u32,
    /// Everything that waits to be said or may be said again, each once.
    pub(crate) frames: Vec<FrozenFrame>,
    pub(crate) links: Vec<FrozenLink>,
    pub(crate) conns: Vec<FrozenConn>,
    /// Long-polling sessions that WebSockets have taken over, with the slots of these.
    pub(crate) upgraded: Vec<(Sid, u32)>,
    pub(crate) requests: u32,
    /// Who waits at the door, in order: whether he resumes, the slot of his link, and his CONNECT.
    pub(crate) at_door: Vec<(bool, u32, Option<Box<str>>)>,
    pub(crate) backlogs: Vec<FrozenBacklog>,
    pub(crate) rooms: Vec<FrozenRoom>,
    pub(crate) seq_floor: u64,
    /// Rooms that have ended without all hosts knowing yet.
    pub(crate) ends_untold: Vec<(u8, Arc<str>)>,
    pub(crate) diaries: Vec<FrozenDiary>,
    /// Users' own rooms with the rooms into which the back end has put them.
    pub(crate) grants: Vec<(u8, Arc<str>, Vec<Arc<str>>)>,
    /// Users' own rooms and since when they are away, longest first.
    pub(crate) absences: Vec<(u8, Arc<str>, u64)>,
    /// Messages of which somebody wants to know who got them, oldest first.
    pub(crate) receipts: Vec<(u8, Arc<str>, Awaited)>,
    /// What was counted of each endpoint, and last of what reached none. Of version 2 on.
    #[serde(default)]
    pub(crate) counted: Vec<Vec<(String, u64)>>,
}

/// A transport.
#[derive(Serialize, Deserialize)]
pub struct FrozenLink {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    /// Its socket; none for a long-polling session.
    pub(crate) socket: Option<i32>,
    pub(crate) peer: SocketAddr,
    /// Whether its address's bound counts it.
    pub(crate) is_counted: bool,
    /// Indices of frames, and how many bytes of the first are written.
    pub(crate) outbox: Vec<u32>,
    pub(crate) written: u64,
    /// True exactly when the socket takes no more.
    pub(crate) blocked: bool,
    #[serde(with = "serde_bytes")]
    pub(crate) partial: Vec<u8>,
    pub(crate) decoder: Decoder,
    pub(crate) waiting: u32,
    pub(crate) corked: bool,
    pub(crate) rate: Rate,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) polling: Option<FrozenPolling>,
    /// Id of the long-polling session that it is or was, where that names another place.
    pub(crate) guest: Option<Sid>,
    pub(crate) state: FrozenState,
}

/// See `shard/links.rs`, `State`. A request of a long-polling session is always answered before a freeze.
#[derive(Serialize, Deserialize)]
pub(crate) enum FrozenState {
    Head { deadline_ms: u64, idle: bool, welcome: bool },
    Plain { conn: u32 },
    SocketIo(Box<FrozenSocketIo>),
    Body { sid: Sid, reply: Reply, body: Body, is_binary: bool, deadline_ms: u64 },
    Probe { session: u32, deadline_ms: u64 },
    Closing { deadline_ms: u64, peer_done: bool, impatient: bool },
}

/// What a Socket.IO link has.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenSocketIo {
    pub(crate) conns: Vec<u32>,
    pub(crate) connect_deadline_ms: u64,
    pub(crate) has_tried: bool,
    pub(crate) has_entered: bool,
    pub(crate) assembly: Option<Assembly>,
    pub(crate) has_moved: bool,
    pub(crate) may_recover: bool,
    pub(crate) query: Arc<str>,
    /// There exactly when the client speaks Engine.IO 3: the id that its next connection was told to have.
    pub(crate) old: Option<Option<Sid>>,
    /// Slot of the connection whose answer its CONNECT waits for.
    pub(crate) challenged: Option<u32>,
    pub(crate) token: Result<Arc<Identity>, AuthFault>,
    pub(crate) cookie: Result<Arc<Identity>, AuthFault>,
    pub(crate) visitor: Option<Visitor>,
}

/// The long-polling side of a session, whose waiting GET has been answered.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenPolling {
    pub(crate) sid: Sid,
    pub(crate) inbox: Inbox,
    /// Slot of the WebSocket that has probed.
    pub(crate) probe: Option<u32>,
    pub(crate) probers: u32,
    pub(crate) held: Option<Box<str>>,
    pub(crate) is_over: bool,
}

/// A client.
#[derive(Serialize, Deserialize)]
pub struct FrozenConn {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    /// Slot of its link; none while it is away.
    pub(crate) link: Option<u32>,
    pub(crate) endpoint: u8,
    pub(crate) sid: Sid,
    pub(crate) profile: Profile,
    pub(crate) connected_unix_ms: u64,
    pub(crate) heard_tenths: u32,
    /// Names of the rooms it is in, everybody's too.
    pub(crate) rooms: Vec<Arc<str>>,
    pub(crate) is_polling: bool,
    pub(crate) waiting: u32,
    /// Until when it must say who it is, if it has not.
    pub(crate) unknown_until_ms: Option<u64>,
    pub(crate) typing: Vec<(Arc<str>, u64)>,
    pub(crate) ruled: Option<Ruled>,
    pub(crate) recovery: Option<FrozenRecovery>,
}

/// See `shard/recovery.rs`.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenRecovery {
    pub(crate) pid: Sid,
    /// Rooms, from which position of the backlog to which.
    pub(crate) stays: Vec<(Arc<str>, u64, u64)>,
    pub(crate) floor: u64,
    pub(crate) heard: u64,
    pub(crate) pinged: u64,
    pub(crate) away_until_ms: u64,
    /// Slot of the link of who says that he is this client, his CONNECT, and until when he waits.
    pub(crate) challenger: Option<(u32, Box<str>, u64)>,
    pub(crate) is_shared: bool,
    pub(crate) anchors: [Option<Offset>; 2],
    pub(crate) replayed: Vec<(Offset, u64)>,
    #[serde(default)]
    pub(crate) brought: u64,
}

/// The events of an endpoint for those who come back.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenBacklog {
    pub(crate) endpoint: u8,
    /// Position of the first.
    pub(crate) first: u64,
    pub(crate) events: Vec<FrozenEvent>,
    /// Until when connections are away, and which, the first to be given up in front.
    pub(crate) away: Vec<(u64, ConnId)>,
}

/// One of them.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenEvent {
    /// Index of its frame.
    pub(crate) frame: Option<u32>,
    pub(crate) to: To,
    pub(crate) except: Option<ConnId>,
    pub(crate) hidden_from: Option<Arc<Identity>>,
    pub(crate) ms: u64,
    pub(crate) offset: Offset,
    /// True exactly when its offset stands for it, and not for the same event said again.
    pub(crate) is_known: bool,
}

/// A room at home. Its members are counted again.
#[derive(Serialize, Deserialize)]
pub struct FrozenRoom {
    pub(crate) endpoint: u8,
    pub(crate) name: Arc<str>,
    pub(crate) seq: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) active_unix_ms: u64,
    /// Its place among those that are kept for their history; 0 for none.
    pub(crate) emptied: u64,
    pub(crate) record: Option<FrozenRecord>,
}

/// What the back end said of a room when it made it.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenRecord {
    pub(crate) name: Box<str>,
    pub(crate) namespace: Box<str>,
    pub(crate) created_by: Option<Box<str>>,
    pub(crate) metadata: Box<str>,
    pub(crate) is_registered: bool,
}

/// What is kept of a room, oldest first; with each message whether it can be found by its id.
#[derive(Serialize, Deserialize)]
pub struct FrozenDiary {
    pub(crate) endpoint: u8,
    pub(crate) room: Arc<str>,
    pub(crate) kept: Vec<(Kept, bool)>,
}
