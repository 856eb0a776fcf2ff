//! Plain data that travels between shards, and between a shard and the control plane. A cast from elsewhere is delivered, never forwarded.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::dialect::{EnterFault, RoomView};
use crate::frame::Frame;
use crate::ids::{ConnId, EndpointId, LinkKey, Room, ShardId, Sid, UserId};

/// A message to another shard.
#[derive(Debug)]
pub enum Parcel {
    /// To a room's home: a connection wants in.
    Enter(Box<Enter>),
    /// From the home: the answer. What the room casts after it, the connection gets; what it cast before, it does not.
    Entered {
        /// Who asked.
        conn: ConnId,
        /// The room.
        room: Room,
        /// How it is in the room now, or why not.
        outcome: Result<RoomView, EnterFault>,
        /// From [`Enter::note`].
        note: Option<Box<str>>,
    },
    /// To a room's home: a connection is out.
    Leave(Box<Leave>),
    /// From the home: the room after that.
    Left {
        /// Who asked.
        conn: ConnId,
        /// The room.
        room: Room,
        /// Who is still in.
        view: RoomView,
        /// From [`Leave::note`].
        note: Box<str>,
    },
    /// To a room's home: what is kept?
    Recall {
        /// Who asks.
        conn: ConnId,
        /// The room.
        room: Room,
    },
    /// From the home: this is.
    Recalled {
        /// Who asked.
        conn: ConnId,
        /// The room.
        room: Room,
        /// Oldest first.
        kept: Vec<Arc<str>>,
    },
    /// To a room's home: number it, keep it, cast it.
    Publish(Box<Publish>),
    /// From the home: deliver it to the members here.
    Cast(Box<Cast>),
    /// To a long-polling session: a request for it came here.
    Poll(Box<Poll>),
    /// From the session: the answer.
    PollAnswer {
        /// Who asked.
        to: Requester,
        /// HTTP status.
        status: u16,
        /// Content type and body.
        content: (&'static str, String),
    },
    /// To the session: the requester is gone.
    PollAborted {
        /// The session.
        sid: Sid,
        /// Who asked.
        from: Requester,
    },
    /// From the control plane.
    Ask {
        /// The asker's number for it.
        ask: u64,
        /// What is asked.
        question: Question,
    },
    /// From the control plane: stop accepting, close everybody within so many milliseconds.
    Drain {
        /// The time to spread the closing over, in milliseconds.
        over_ms: u64,
    },
}

impl Parcel {
    /// Bytes of messages it holds on to, for the bound of a lane.
    pub fn bytes(&self) -> usize {
        let frame = |frame: Option<&Frame>| frame.map_or(0, |frame| frame.bytes().len());
        128 + match self {
            Parcel::Enter(enter) => frame(enter.announce.as_ref().map(|a| &a.frame)),
            Parcel::Leave(leave) => frame(leave.announce.as_ref().map(|a| &a.frame)),
            Parcel::Entered { outcome: Ok(view), .. } => view.history.iter().map(|text| text.len()).sum::<usize>() + view.online.len() * 16,
            Parcel::Left { view, .. } => view.online.len() * 16,
            Parcel::Recalled { kept, .. } => kept.iter().map(|text| text.len()).sum(),
            Parcel::Publish(publish) => publish.frame.bytes().len(),
            Parcel::Cast(cast) => cast.frame.bytes().len(),
            Parcel::Poll(poll) => match &poll.call {
                Call::Say(body) => body.len(),
                Call::Listen | Call::Fatal(_) | Call::Unknown => 0,
            },
            Parcel::PollAnswer { content, .. } => content.1.len(),
            Parcel::PollAborted { .. } => 0,
            Parcel::Entered { .. } | Parcel::Recall { .. } | Parcel::Ask { .. } | Parcel::Drain { .. } => 0,
        }
    }
}

/// Something others hear because somebody came or went.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Who hears it.
    pub to: Room,
    /// What they hear.
    pub frame: Frame,
}

/// An HTTP request, on the shard whose socket it came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requester {
    /// Where.
    pub shard: ShardId,
    /// Which link there.
    pub link: LinkKey,
    /// Which of its requests, counted over the shard's.
    pub number: u32,
}

/// See [`Parcel::Poll`].
#[derive(Debug)]
pub struct Poll {
    /// The session.
    pub sid: Sid,
    /// Who wants the answer.
    pub from: Requester,
    /// What for.
    pub call: Call,
}

/// What a request wants of a long-polling session.
#[derive(Debug)]
pub enum Call {
    /// GET: what is said to it.
    Listen,
    /// POST: to say this.
    Say(String),
    /// Nothing but trouble: the session ends, and this is the answer's status.
    Fatal(u16),
    /// A method that no session knows.
    Unknown,
}

/// See [`Parcel::Enter`].
#[derive(Debug)]
pub struct Enter {
    /// Who.
    pub conn: ConnId,
    /// Where.
    pub room: Room,
    /// Present as.
    pub presence: UserId,
    /// True exactly when the connection is in already: nothing changes, the answer is all.
    pub again: bool,
    /// True exactly when a missing room is created.
    pub create: bool,
    /// Refused when the room has this many connections.
    pub members_max: u32,
    /// Told when it is the first of this presence.
    pub announce: Option<Announcement>,
    /// Kept messages wanted.
    pub history: usize,
    /// Whether the list of who is in is wanted.
    pub online: bool,
    /// Comes back.
    pub note: Option<Box<str>>,
}

/// See [`Parcel::Leave`].
#[derive(Debug)]
pub struct Leave {
    /// Who.
    pub conn: ConnId,
    /// From where.
    pub room: Room,
    /// Present as.
    pub presence: UserId,
    /// False exactly when the connection was not in: nothing changes, the answer is all.
    pub was_in: bool,
    /// Told when it was the last of this presence.
    pub announce: Option<Announcement>,
    /// Asks for [`Parcel::Left`]; `None` when the connection has ended.
    pub note: Option<Box<str>>,
}

/// See [`Parcel::Publish`].
#[derive(Debug)]
pub struct Publish {
    /// Where.
    pub room: Room,
    /// What.
    pub frame: Frame,
    /// The one connection that does not get it.
    pub except: Option<ConnId>,
    /// Whose `blocked` users do not get it.
    pub hidden_from: Option<Arc<Identity>>,
    /// What history keeps, and how many at most.
    pub keep: Option<(Arc<str>, usize)>,
    /// When it was read, monotonic nanoseconds.
    pub read_ns: u64,
}

/// See [`Parcel::Cast`].
#[derive(Debug)]
pub struct Cast {
    /// Where.
    pub room: Room,
    /// The room's number for it, counting from 1.
    pub seq: u64,
    /// What.
    pub frame: Frame,
    /// The one connection that does not get it.
    pub except: Option<ConnId>,
    /// Whose `blocked` users do not get it.
    pub hidden_from: Option<Arc<Identity>>,
    /// When it was read, monotonic nanoseconds.
    pub read_ns: u64,
}

/// What the control plane wants of every shard.
#[derive(Clone, Debug)]
pub enum Question {
    /// Connections that match all given filters, in the order of their ids.
    Connections {
        /// Of this endpoint.
        endpoint: Option<EndpointId>,
        /// Of this user.
        user: Option<String>,
        /// In this room.
        room: Option<String>,
        /// With a greater id than this.
        after: Option<String>,
        /// At most so many from each shard.
        limit: usize,
    },
    /// This one connection.
    Connection {
        /// Its id.
        id: Sid,
    },
    /// Emit an event to one Socket.IO connection and wait for its acknowledgement.
    Emit {
        /// Its id.
        id: Sid,
        /// Name of the event.
        event: String,
        /// Its arguments: raw JSON texts joined by commas.
        args: String,
    },
    /// Close this one connection.
    CloseConnection {
        /// Its id.
        id: Sid,
        /// Text of the close frame.
        reason: Option<String>,
    },
    /// Close all connections of a user.
    CloseUser {
        /// Only on this endpoint.
        endpoint: Option<EndpointId>,
        /// The user.
        user: String,
        /// Text of the close frame.
        reason: Option<String>,
    },
}

/// One shard's answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Question::Connections`] and [`Question::Connection`].
    Connections(Vec<ConnectionInfo>),
    /// To [`Question::Emit`]: the raw JSON array of the acknowledgement; `None` when the connection is not here or ended first.
    Acknowledged(Option<String>),
    /// How many connections were closed.
    Closed(u64),
}

/// What the admin API tells of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Its id.
    pub id: Sid,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its user.
    pub user: UserId,
    /// Name shown to others.
    pub username: Option<String>,
    /// Mail address.
    pub email: Option<String>,
    /// collab's `clientID`.
    pub client_id: Option<String>,
    /// Since when, milliseconds since 1970.
    pub connected_unix_ms: u64,
    /// Names of the public rooms it is in.
    pub rooms: Vec<String>,
    /// Raw JSON that the client gave about itself.
    pub metadata: Option<String>,
    /// Peer address (of the client, behind a trusted proxy).
    pub address: SocketAddr,
    /// `websocket`.
    pub transport: &'static str,
}
