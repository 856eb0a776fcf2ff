//! The messages that Socket.IO servers on several hosts send each other through Redis, and what they mean: broadcasts, requests and answers
//! of `@socket.io/redis-adapter` 8 ([`classic`] and [`sharded`]), of `@socket.io/redis-streams-adapter` 0.3 ([`streams`]) and of
//! `@socket.io/redis-emitter` 5, which speaks as the classic adapter does. Bytes become an [`Envelope`] and an envelope becomes bytes; nothing
//! here knows a connection to Redis, a clock or who has to answer.
//!
//! Every message is one JSON value. Where an adapter writes it as MessagePack, that is translated as a whole ([`msgpack`]), so each form is
//! read and written in one place. What comes is another program's: it is refused with a [`Fault`] and never trusted, its nesting is
//! bounded by [`limits::RELAY_DEPTH_MAX`], its size by [`limits::RELAY_MESSAGE_BYTES_MAX`].
//!
//! All of it was held against messages that these packages were seen to send (`engine/tests/adapter_vectors.rs`).

pub mod classic;
mod fields;
pub mod msgpack;
pub mod sharded;
pub mod streams;

use std::fmt;

use crate::json::Scratch;
use crate::limits;

/// Buffers for the readers and writers of this room: one set is enough for all of them, one message at a time.
pub fn scratch() -> Scratch {
    Scratch::with_depth_max(limits::RELAY_DEPTH_MAX)
}

/// What is sent and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Whose adapter sent it; one has another id in every namespace. Empty where the wire does not tell: answers of the classic form, and
    /// requests of an emitter.
    pub uid: String,
    /// Namespace, with its slash.
    pub nsp: String,
    /// What it says.
    pub message: Message,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// An event for clients.
    Broadcast {
        /// The event's array: its name and arguments.
        packet: Payload,
        /// For whom.
        options: Options,
        /// Where acknowledgements are wanted: what the answers name. They are a [`Message::ClientCount`] and as many [`Message::Ack`].
        request: Option<String>,
    },
    /// Clients enter rooms.
    Join {
        /// Which clients.
        options: Options,
        /// The rooms.
        rooms: Vec<String>,
    },
    /// Clients leave rooms.
    Leave {
        /// Which clients.
        options: Options,
        /// The rooms.
        rooms: Vec<String>,
    },
    /// Clients are taken out of the namespace.
    Disconnect {
        /// Which clients.
        options: Options,
        /// True exactly when their connections are closed too.
        close: bool,
    },
    /// Of adapters before version 6: one client enters a room. Who has it answers [`Message::Done`].
    JoinOne {
        /// What the answer names; none is wanted without it.
        request: Option<String>,
        /// The client's id.
        sid: String,
        /// The room.
        room: String,
    },
    /// As [`Message::JoinOne`]: one client leaves a room.
    LeaveOne {
        /// What the answer names.
        request: Option<String>,
        /// The client's id.
        sid: String,
        /// The room.
        room: String,
    },
    /// As [`Message::JoinOne`]: one client is taken out of the namespace.
    DisconnectOne {
        /// What the answer names.
        request: Option<String>,
        /// The client's id.
        sid: String,
        /// True exactly when its connection is closed too.
        close: bool,
    },
    /// Of adapters before version 6: the ids of the clients in these rooms, or of all where none is named. Answered by
    /// [`Message::SocketsAnswer`].
    Sockets {
        /// What the answer names.
        request: String,
        /// The rooms.
        rooms: Vec<String>,
    },
    /// The names of all rooms. Answered by [`Message::RoomsAnswer`].
    AllRooms {
        /// What the answer names.
        request: String,
    },
    /// Clients and what is known of them. Answered by [`Message::FetchAnswer`].
    Fetch {
        /// What the answer names.
        request: String,
        /// Which clients.
        options: Options,
    },
    /// An event for the servers' programs.
    ServerSideEmit {
        /// Where an answer is wanted, what it names: a [`Message::ServerSideEmitAnswer`] of every server.
        request: Option<String>,
        /// The event's array: its name and arguments.
        packet: Payload,
    },
    /// Answer to a [`Message::Broadcast`]: so many clients here got it. Every server gives it once, also with none.
    ClientCount {
        /// Whose answer it is.
        request: String,
        /// Clients.
        count: u64,
    },
    /// Answer to a [`Message::Broadcast`]: one client's acknowledgement.
    Ack {
        /// Whose answer it is.
        request: String,
        /// Its first argument, `null` when there was none.
        packet: Payload,
    },
    /// Answer to [`Message::Sockets`].
    SocketsAnswer {
        /// Whose answer it is.
        request: String,
        /// The clients' ids. An answer without any is read as a [`Message::FetchAnswer`] without any: on the wire they are the same.
        ids: Vec<String>,
    },
    /// Answer to [`Message::AllRooms`].
    RoomsAnswer {
        /// Whose answer it is.
        request: String,
        /// The rooms.
        rooms: Vec<String>,
    },
    /// Answer to [`Message::Fetch`].
    FetchAnswer {
        /// Whose answer it is.
        request: String,
        /// The clients.
        sockets: Vec<RemoteSocket>,
    },
    /// Answer to [`Message::ServerSideEmit`].
    ServerSideEmitAnswer {
        /// Whose answer it is.
        request: String,
        /// One value, `null` when there was none.
        packet: Payload,
    },
    /// Answer to the requests about one client.
    Done {
        /// Whose answer it is.
        request: String,
    },
    /// What adapters tell each other about being there (heartbeats, their end): it asks for nothing.
    Presence,
}

/// JSON text and the binary data in it, as our own frames carry it: the text has `{"_placeholder":true,"num":N}` where `attachments[N]`
/// belongs (Socket.IO protocol 5). Without attachments such an object is nothing special. Its debug form shows sizes only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload {
    /// An event's array, or one value.
    pub json: String,
    /// At most [`crate::wire::sio::ATTACHMENTS_MAX`].
    pub attachments: Vec<Vec<u8>>,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Payload { json, attachments } = self;
        let sizes: Vec<_> = attachments.iter().map(Vec::len).collect();
        f.debug_struct("Payload").field("json_bytes", &json.len()).field("attachment_bytes", &sizes).finish()
    }
}

impl From<&str> for Payload {
    fn from(json: &str) -> Payload {
        Payload { json: json.to_owned(), attachments: Vec::new() }
    }
}

/// Which clients are meant, and how.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Who is in one of these; with none of them, everybody of the namespace. A number on the wire is its text here.
    pub rooms: Vec<String>,
    /// But nobody who is in one of these.
    pub except: Vec<String>,
    /// How a broadcast is delivered.
    pub flags: Flags,
}

/// How a broadcast is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flags {
    /// True exactly when a client that cannot take it at once need not get it.
    pub volatile: bool,
    /// Whether to compress it, where that was said.
    pub compress: Option<bool>,
    /// How long acknowledgements are waited for.
    pub timeout_ms: Option<u64>,
}

/// A client of another server, as [`Message::FetchAnswer`] tells of it. Its debug form shows no more than its id: handshakes carry tokens.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct RemoteSocket {
    /// Its id.
    pub id: String,
    /// A JSON object: `headers`, `time`, `address`, `xdomain`, `secure`, `issued`, `url`, `query`, `auth`.
    pub handshake_json: String,
    /// The rooms it is in, one of them named as its id.
    pub rooms: Vec<String>,
    /// JSON, usually an object: what its server's program has put there. Binary data in it is spelled out as `JSON.stringify` does.
    pub data_json: String,
}

impl fmt::Debug for RemoteSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteSocket").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a message was not understood. The sender is another program or another version: it is counted and dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Neither JSON nor MessagePack, longer or deeper nested than what is read, or more than one value.
    #[error("neither JSON nor MessagePack within the bounds")]
    Unreadable,
    /// A field is missing, or has another type than it should.
    #[error("a field is missing or of another type")]
    Shape,
    /// A kind of message that the packages named above do not send.
    #[error("an unknown type of message")]
    UnknownType,
    /// A broadcast that says it is for another namespace than its channel's.
    #[error("for another namespace than its channel's")]
    OtherNamespace,
    /// Binary data in more pieces than a client takes, or beside data that a client would take for a piece.
    #[error("binary data that no client could take")]
    Attachments,
}

/// Why a message of ours cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsendable {
    /// The adapter has no such message.
    #[error("the adapter has no such message")]
    NoForm,
    /// A payload that is not JSON within the bounds, or whose placeholders are not its attachments'.
    #[error("a payload that is not what it should be")]
    BadPayload,
}
