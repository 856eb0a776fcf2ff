//! Plain data that travels between shards, and between a shard and the control plane. A cast from elsewhere is delivered, never forwarded.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::consult::Findings;
use super::handover::{Fetched, Missed};
use super::history::{Past, Range, Ticket};
use super::inquiry::Ruling;
use super::luggage::Luggage;
use super::outward::Made;
use super::peers::Inspection;
use super::recollection::Recollection;
use super::room_calls::{RoomAnswer, RoomCall};
use super::tides::Tide;
use crate::auth::{Details, Identity};
use crate::dialect::{Change, EnterFault, Keep, Progress, RoomView};
use crate::event::Event;
use crate::frame::{Frame, Receipt};
use crate::ids::{ConnId, EndpointId, LinkKey, MessageId, Room, ShardId, Sid, UserId};
use crate::wire::sio::Offset;

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
        /// From [`Enter::again`].
        again: bool,
        /// How it is in the room now, or why not.
        outcome: Result<RoomView, EnterFault>,
        /// From [`Enter::note`].
        note: Option<Box<str>>,
    },
    /// To a room's home: a connection is out.
    Leave(Box<Leave>),
    /// From the home: it is counted out, and [`Parcel::Left`] follows when other hosts have been asked. A room that nobody is counted in may be
    /// gone, and another of its name begin, before that.
    Out {
        /// Who asked.
        conn: ConnId,
        /// The room.
        room: Room,
    },
    /// From the home: the room after that.
    Left {
        /// Who asked.
        conn: ConnId,
        /// The room.
        room: Room,
        /// True exactly when [`Parcel::Out`] has come before.
        is_out: bool,
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
    /// From a store of history that is not in this process, to the shard that asked: what was read. See [`super::history`].
    Recollected {
        /// Which read it answers.
        ticket: Ticket,
        /// What was found.
        recollection: Recollection,
    },
    /// From the relay, to the home that asked: what was found beyond this host.
    Consulted {
        /// From [`super::consult::Consult::ticket`].
        ticket: u64,
        /// What was found.
        findings: Box<Findings>,
    },
    /// To a room's home: number it, keep it, cast it.
    Publish(Box<Publish>),
    /// From the home: deliver it to the members here.
    Cast(Box<Cast>),
    /// From another host: to a room's home, or where there is none, to every shard.
    Arrival(Arc<Arrival>),
    /// From the relay, and on from each shard to all: see [`super::tides`].
    Tide {
        /// The shard by way of which it comes; none from the relay.
        from: Option<ShardId>,
        /// The tide.
        tide: Tide,
    },
    /// From the relay: what has been found of a session.
    Fetched {
        /// The shard's number for it.
        ask: u64,
        /// What.
        fetched: Fetched,
    },
    /// From the relay: what a connection that is being restored has missed; nothing where not all of it is known.
    Missed {
        /// Who.
        conn: ConnId,
        /// What.
        missed: Option<Box<Missed>>,
    },
    /// From the relay: which rooms the back end has made is compared with what all hosts know.
    Roll(Box<Roll>),
    /// From the relay, to a room's home: all hosts know now that the back end has made it, or that it has ended.
    Registered {
        /// The room.
        room: Room,
    },
    /// From the relay: what another Socket.IO server wants of the connections here. It is answered with an
    /// [`super::outward::Outward`] of this number.
    Inspect {
        /// The asker's number.
        ask: u64,
        /// What is wanted.
        inspection: Arc<Inspection>,
    },
    /// From the relay: something has happened of which the program is to be told.
    Tell(Box<Event>),
    /// From a user's home: his connections on this shard enter a room, or leave it, by the back end's will.
    Grant(Box<Grant>),
    /// From shard to shard: an answer that is given when they all have handled what they were sent before.
    Round(Box<Round>),
    /// To a message's home: these got it.
    Sent(Box<Sent>),
    /// To a message's home: somebody says that he got it.
    Confirm(Box<Confirm>),
    /// From the home: the answer.
    Confirmed {
        /// Who said so.
        conn: ConnId,
        /// True exactly when his user was sent it.
        was_sent: bool,
        /// From [`Confirm::told`], if it is news.
        told: Option<Box<Event>>,
        /// From [`Confirm::note`].
        note: Box<str>,
    },
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
    /// To a room's home: a connection that was away is back.
    Return(Box<Return>),
    /// To a room's home: a connection that was away will not come back.
    GiveUp {
        /// The room.
        room: Room,
        /// Where the connection was.
        shard: ShardId,
    },
    /// To the shard with a session's past: the session itself, to go on there.
    Settle(Box<Luggage>),
    /// To the shard that a session's id names: it is over, wherever it was.
    Forget {
        /// The session.
        sid: Sid,
    },
    /// From a room's home: it has ended, and its members on this shard leave it.
    Dissolve {
        /// The room.
        room: Room,
    },
    /// To the shard that was asked: what it answers, found elsewhere.
    Answered {
        /// The shard.
        to: ShardId,
        /// The asker's number.
        ask: u64,
        /// The answer.
        answer: Box<Answer>,
    },
    /// From the control plane.
    Ask {
        /// The asker's number for it.
        ask: u64,
        /// What is asked.
        question: Question,
    },
    /// From the back end, by way of the control plane: the answer to an inquiry.
    Ruled {
        /// The inquiry's number.
        number: u64,
        /// The answer.
        ruling: Box<Ruling>,
    },
    /// From the relay: the answer to an inquiry of the kind [`super::inquiry::About::Blocked`]. Where there is none, a ruling comes.
    Blocked {
        /// The inquiry's number.
        number: u64,
        /// The users.
        blocked: Vec<String>,
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
            Parcel::Entered { outcome: Ok(view), .. } => {
                let granted = view.of_user.as_ref().map_or(&[][..], |of_user| &of_user.granted);
                view.history.iter().chain(granted).map(|text| text.len()).sum::<usize>() + view.online.len() * 16
            }
            Parcel::Left { view, .. } => view.online.len() * 16,
            Parcel::Recalled { kept, .. } => kept.iter().map(|text| text.len()).sum(),
            Parcel::Recollected { recollection, .. } => recollection.bytes(),
            Parcel::Consulted { findings, .. } => findings.bytes(),
            Parcel::Publish(publish) => publish.frame.bytes().len(),
            Parcel::Cast(cast) => cast.frame.bytes().len(),
            Parcel::Arrival(arrival) => arrival.bytes(),
            Parcel::Fetched { fetched: Fetched::Session(found), .. } => found.raw.len() + found.session.bytes(),
            Parcel::Missed { missed, .. } => missed.as_ref().map_or(0, |missed| missed.bytes()),
            Parcel::Tide { .. } | Parcel::Fetched { .. } => 0,
            Parcel::Poll(poll) => match &poll.call {
                Call::Say(body) => body.len(),
                Call::Listen | Call::Fatal(_) | Call::Unknown => 0,
            },
            Parcel::Sent(sent) => sent.users.len() * 16,
            Parcel::Confirm(confirm) => confirm.frame.bytes().len(),
            Parcel::PollAnswer { content, .. } => content.1.len(),
            Parcel::Return(returning) => frame(returning.announce.as_ref().map(|a| &a.frame)),
            Parcel::Settle(luggage) => luggage.bytes(),
            Parcel::PollAborted { .. } | Parcel::Out { .. } | Parcel::GiveUp { .. } | Parcel::Forget { .. } => 0,
            Parcel::Dissolve { .. } | Parcel::Answered { .. } => 0,
            Parcel::Ask { question: Question::Room(RoomCall::Say(saying)), .. } => saying.message.bytes(),
            Parcel::Ask { question: Question::Emit(emit), .. } => emit.bytes(),
            Parcel::Ask { question: Question::Post(post), .. } => post.bytes(),
            Parcel::Ask { question: Question::Revise(revision), .. } => revision.bytes(),
            Parcel::Entered { .. } | Parcel::Recall { .. } | Parcel::Ask { .. } | Parcel::Drain { .. } => 0,
            Parcel::Ruled { ruling, .. } => ruling.bytes(),
            Parcel::Roll(roll) => {
                if let Roll::Room(made) = &**roll {
                    made.new.bytes()
                } else {
                    0
                }
            }
            Parcel::Registered { room } => room.name.len(),
            Parcel::Blocked { blocked, .. } => blocked.iter().map(|user| 16 + user.len()).sum(),
            Parcel::Tell(event) => event.bytes(),
            Parcel::Grant(_) | Parcel::Round(_) | Parcel::Confirmed { .. } | Parcel::Inspect { .. } => 0,
        }
    }
}

/// The steps by which a host that comes, or comes back, learns which rooms there are, in their order.
#[derive(Clone, Debug)]
pub enum Roll {
    /// Tell of your rooms, some at a time; answered by [`super::outward::Outward::Called`].
    Call {
        /// True exactly when all are wanted, because Redis may have lost them; else those that it may not have been told of.
        all: bool,
        /// Where to go on; the beginning if there is none.
        after: Option<Room>,
    },
    /// There is this one; to its home.
    Room(Made),
    /// That were all. With `is_whole` those that nobody has told of have ended meanwhile.
    End {
        /// See above.
        is_whole: bool,
    },
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

/// What a request wants of a long-polling session. Its debug form shows how much a client said and not what: a CONNECT carries a token.
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

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Listen => f.write_str("Listen"),
            Call::Say(body) => write!(f, "Say({} bytes)", body.len()),
            Call::Fatal(status) => write!(f, "Fatal({status})"),
            Call::Unknown => f.write_str("Unknown"),
        }
    }
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

impl Enter {
    /// True exactly when somebody hears of it if it is the first of its presence: the room's others, or the room's own channel has to be
    /// listened to from then on.
    pub(crate) fn is_told(&self) -> bool {
        self.announce.is_some() || self.room.is_public()
    }
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
    /// True exactly when it may come back: the room's casts go on coming to its shard.
    pub away: bool,
    /// Told when it was the last of this presence.
    pub announce: Option<Announcement>,
    /// When it left, milliseconds since 1970.
    pub unix_ms: u64,
    /// Asks for [`Parcel::Left`]; `None` when the connection has ended.
    pub note: Option<Box<str>>,
    /// The back end's question that is answered with this.
    pub ask: Option<u64>,
}

/// See [`Parcel::Return`].
#[derive(Debug)]
pub struct Return {
    /// Who.
    pub conn: ConnId,
    /// To where.
    pub room: Room,
    /// Present as.
    pub presence: UserId,
    /// Told when it is the first of this presence.
    pub announce: Option<Announcement>,
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
    /// What history keeps.
    pub keep: Option<Keep>,
    /// When it was read, monotonic nanoseconds.
    pub read_ns: u64,
    /// On which host it was said.
    pub origin: Origin,
}

/// Where something was said. What comes from another host is delivered here and goes no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// On this host: the others are told, but not for the connection that is named.
    Here {
        /// [`Publish::except`] as other hosts know it.
        except: Option<Sid>,
    },
    /// On another.
    Elsewhere,
}

impl Origin {
    /// On this host, for everybody.
    pub const HERE: Origin = Origin::Here { except: None };
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
    /// The back end's emit that it is, and its number: then it goes to every shard, and each answers.
    pub emit: Option<(u64, Arc<Emit>)>,
}

/// Connections of one endpoint that the back end means.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Selection {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Who is meant; who is meant several times is meant once.
    pub targets: Vec<Target>,
    /// Who is not, however else he is meant.
    pub except: Vec<Target>,
}

impl Selection {
    /// These, without exception.
    pub fn of(endpoint: EndpointId, targets: Vec<Target>) -> Selection {
        Selection { endpoint, targets, except: Vec::new() }
    }

    /// The only room in which all are that are meant: what is said to them has a place in its order.
    pub fn room(&self) -> Option<Room> {
        match &self.targets[..] {
            [Target::Room(name) | Target::Present { room: name, .. }] => Some(Room { endpoint: self.endpoint, name: name.clone() }),
            _ => None,
        }
    }
}

/// Some of an endpoint's connections.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// The members of the room of this name; a user's and everybody's are rooms too. A connection is in a room that is named by its id.
    Room(Arc<str>),
    /// Of the members of this room those that are present in it as this: collab's `clientID`, elsewhere the user.
    Present {
        /// The room.
        room: Arc<str>,
        /// The name they are present under.
        presence: UserId,
    },
    /// One connection.
    Connection(Sid),
}

impl Target {
    /// Everybody.
    pub fn all() -> Target {
        Target::Room("".into())
    }

    /// A user's connections.
    pub fn user(user: &str) -> Target {
        Target::Room(Room::user(EndpointId(0), user).name)
    }

    fn bytes(&self) -> usize {
        std::mem::size_of::<Target>()
            + match self {
                Target::Room(name) => name.len(),
                Target::Present { room, presence } => room.len() + presence.len(),
                Target::Connection(_) => 0,
            }
    }
}

/// An event of the back end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Emit {
    /// Whom it is for.
    pub to: Selection,
    /// Its name.
    pub event: String,
    /// Its arguments: raw JSON texts joined by commas. Dialects of plain WebSockets have one.
    pub args: String,
    /// True exactly when it is rather dropped than made to wait.
    pub volatile: bool,
    /// Milliseconds to wait for acknowledgements; `None` where none are asked for.
    pub ack_ms: Option<u64>,
    /// By what connections that can be recovered find it again.
    pub offset: Offset,
    /// When it was asked for, milliseconds since 1970.
    pub unix_ms: u64,
    /// Binary data that placeholders in the arguments number; dialects of plain WebSockets have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Vec<u8>>,
    /// True exactly when another host was asked: that one keeps it and tells of it.
    #[serde(skip)]
    pub is_elsewhere: bool,
}

impl Emit {
    /// An event that asks for nothing beyond its delivery. `args` are raw JSON texts joined by commas.
    pub fn new(to: Selection, event: &str, args: &str, offset: impl Into<Offset>, unix_ms: u64) -> Emit {
        let (event, args, attachments) = (event.to_owned(), args.to_owned(), Vec::new());
        let offset = offset.into();
        Emit { to, event, args, volatile: false, ack_ms: None, offset, unix_ms, attachments, is_elsewhere: false }
    }

    fn bytes(&self) -> usize {
        let of_list = |list: &[Target]| list.iter().map(Target::bytes).sum::<usize>();
        let attached = self.attachments.iter().map(Vec::len).sum::<usize>();
        self.event.len() + self.args.len() + attached + of_list(&self.to.targets) + of_list(&self.to.except)
    }
}

/// What another host, or another program, says to clients of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// To whom, and what, unless [`Self::text`] says it.
    pub emit: Emit,
    /// Of a plain WebSocket endpoint: the message as its clients get it.
    pub text: Option<Box<str>>,
    /// Whose `blocked` users do not get it.
    pub hidden_from: Option<Arc<Identity>>,
    /// True exactly when no uringcast host has said it: none has kept it then.
    pub is_foreign: bool,
}

impl Arrival {
    pub(crate) fn bytes(&self) -> usize {
        self.emit.bytes() + self.text.as_ref().map_or(0, |text| text.len())
    }
}

/// See [`Parcel::Grant`].
#[derive(Debug)]
pub struct Grant {
    /// The user.
    pub user: UserId,
    /// The room.
    pub room: Room,
    /// True exactly when they enter.
    pub is_member: bool,
}

/// See [`Parcel::Round`].
#[derive(Debug)]
pub struct Round {
    /// Where it still goes, the last first; from there the answer is given.
    pub way: Vec<ShardId>,
    /// The asker's number.
    pub ask: u64,
    /// The answer.
    pub answer: Answer,
}

/// See [`Parcel::Sent`].
#[derive(Debug)]
pub struct Sent {
    /// Rooms and messages of different endpoints never mix.
    pub endpoint: EndpointId,
    /// The message, and who wants to know.
    pub receipt: Receipt,
    /// Who got it on one shard; a user as often as he has connections there.
    pub users: Vec<UserId>,
}

/// See [`Parcel::Confirm`].
#[derive(Debug)]
pub struct Confirm {
    /// Who.
    pub conn: ConnId,
    /// His user.
    pub user: UserId,
    /// Of a room made by [`Room::message`].
    pub message: Room,
    /// What he says.
    pub progress: Progress,
    /// What whoever wants to know hears.
    pub frame: Frame,
    /// What the back end is told.
    pub told: Option<Box<Event>>,
    /// Comes back.
    pub note: Box<str>,
}

/// What the control plane wants of every shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Emit an event.
    Emit(Arc<Emit>),
    /// End connections; what their clients see is a disconnect by the server.
    Disconnect {
        /// Which.
        from: Selection,
        /// True exactly when the other namespaces of their transports end with them.
        transport: bool,
    },
    /// Put a user's connections into a room; where the dialect keeps that, those that come later enter as well.
    Grant {
        /// Of this endpoint.
        endpoint: EndpointId,
        /// The room.
        room: String,
        /// The user.
        user: String,
    },
    /// Something about rooms.
    Room(RoomCall),
    /// Take a user's connections out of a room.
    Revoke {
        /// Of this endpoint.
        endpoint: EndpointId,
        /// The room.
        room: String,
        /// The user.
        user: String,
    },
    /// Something is said in a room by a user who need not be connected. Stays on this host.
    #[serde(skip)]
    Post(Arc<Post>),
    /// A kept message that can be found by its id is changed.
    Revise(Arc<Revision>),
    /// A part of what a room keeps. Stays on this host.
    #[serde(skip)]
    Past {
        /// The room.
        room: Room,
        /// Which part.
        range: Range,
    },
    /// Close connections to which nothing but heartbeats came for so long.
    CloseInactive {
        /// Only on this endpoint.
        endpoint: Option<EndpointId>,
        /// Milliseconds; 0 means all of them.
        inactive_ms: u64,
        /// At most so many on each shard, so that its clients do not wait long: ask again for the others.
        limit: usize,
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Connections`] and [`Question::Connection`].
    Connections(Vec<ConnectionInfo>),
    /// To [`Question::Emit`].
    Emitted(Emitted),
    /// To [`Question::CloseConnection`], [`Question::CloseUser`] and [`Question::Disconnect`]: how many connections were closed.
    Closed(u64),
    /// To [`Question::Post`]. `None` from the shards that are not the room's home.
    #[serde(skip)]
    Posted(Option<Result<(), EnterFault>>),
    /// To [`Question::Revise`]: how the message stands now. `None` from the shards that are not its room's home, and where there is no
    /// such message.
    Revised(Option<Result<Standing, NotAuthor>>),
    /// To [`Question::Past`]. `None` from the shards that are not the room's home.
    #[serde(skip)]
    Past(Option<Past>),
    /// To [`Question::Grant`] and [`Question::Revoke`]: how many connections of the user this reaches, from his home; what the room's home
    /// objects to. `None` from the other shards.
    Granted(Option<Result<u32, GrantFault>>),
    /// To [`Question::Room`].
    Room(RoomAnswer),
    /// Of the program that another host's engine is embedded in, to [`crate::Wish::Program`].
    Program(Arc<str>),
}

/// Something said in a room by a user who need not be connected.
#[derive(Clone, Debug)]
pub struct Post {
    /// The room, which is made if it is not there.
    pub room: Room,
    /// What its members hear.
    pub frame: Frame,
    /// What it keeps, which also says to whom it is not told.
    pub keep: Keep,
}

impl Post {
    fn bytes(&self) -> usize {
        self.frame.bytes().len() + self.keep.text.len()
    }
}

/// What somebody wants of a kept message, whose author he must be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "RevisionWords", into = "RevisionWords")]
pub struct Revision {
    /// Messages of different endpoints never mix.
    pub endpoint: EndpointId,
    /// Which message.
    pub id: MessageId,
    /// Who wants it, and whose `blocked` users do not hear of it.
    pub by: Arc<Identity>,
    /// What; nothing but to learn where it is, if there is none.
    pub change: Option<Change>,
}

impl Revision {
    fn bytes(&self) -> usize {
        if let Some(Change::Edit(content)) = &self.change { content.len() } else { 0 }
    }
}

/// A [`Revision`] as it is written: of its author what it takes to change a message, and not what else his token says.
#[derive(Serialize, Deserialize)]
struct RevisionWords {
    endpoint: EndpointId,
    id: MessageId,
    by: UserId,
    blocked: Vec<String>,
    change: Option<Change>,
}

impl From<Revision> for RevisionWords {
    fn from(revision: Revision) -> RevisionWords {
        let Revision { endpoint, id, by, change } = revision;
        RevisionWords { endpoint, id, by: by.user.clone(), blocked: by.blocked.to_vec(), change }
    }
}

impl From<RevisionWords> for Revision {
    fn from(words: RevisionWords) -> Revision {
        let RevisionWords { endpoint, id, by, blocked, change } = words;
        Revision { endpoint, id, by: Arc::new(Details { user: by, blocked, ..Details::default() }.into()), change }
    }
}

/// How a kept message stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// Name of its room.
    pub room: Arc<str>,
    /// What is kept of it, if it is still there.
    pub text: Option<Arc<str>>,
}

/// Only its author may change a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("the message is another user's")]
pub struct NotAuthor;

/// Why a user is not put into a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum GrantFault {
    /// There is none, and the endpoint's rooms do not come into being by being entered.
    #[error("no such room")]
    NoRoom,
    /// This user.
    #[error("the user is in as many rooms as one may be put into")]
    OfUser,
    /// All of them.
    #[error("no more places in rooms can be remembered")]
    OfHost,
}

/// What became of an event on one shard.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Emitted {
    /// Connections it was queued for.
    pub recipients: u64,
    /// Those of them that acknowledged it in time.
    pub acks: u64,
    /// What they said, raw JSON arrays, as far as [`crate::limits::ACK_BYTES_MAX`] allows.
    pub answers: Vec<String>,
}

/// What the admin API tells of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// `websocket` or `polling`.
    #[serde(deserialize_with = "transport")]
    pub transport: TransportName,
}

/// `websocket` or `polling`. An alias, because what is read is no part of the text it is read from.
type TransportName = &'static str;

fn transport<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(if name == "polling" { "polling" } else { "websocket" })
}
