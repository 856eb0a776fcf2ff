//! One client's transport and one client: the two records a shard keeps of everybody connected to it. Plain data.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::Ticket;
use super::assembly::Assembly;
use super::engine_http::{Post, Reply};
use super::handover::{Fetched, Fetching};
use super::lean::{Few, Seldom};
use super::membership::Seats;
use super::old_clients::Old;
use super::outbox::Outbox;
use super::parcel::Requester;
use super::rate::Rate;
use super::recovery::Recovery;
use super::table::Record;
use crate::auth::{AuthFault, Identity};
use crate::dialect::Profile;
use crate::ids::{ConnId, EndpointId, LinkKey, Room, Sid};
use crate::limits::HELD_SILENCE_MS;
use crate::time::Now;
use crate::wire::http::Request;
use crate::wire::{eio, ws};

/// A transport: a WebSocket connection, or one that has not said yet what it is. Its debug form shows nothing of what was sent.
pub(crate) struct Link {
    pub(crate) generation: u32,
    pub(crate) state: State,
    /// Peer address; behind a trusted proxy the client's.
    pub(crate) peer: Peer,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) outbox: Outbox,
    /// Bytes read but not yet consumed: an incomplete frame, or whatever came while the link waits.
    pub(crate) partial: Seldom<u8>,
    pub(crate) decoder: ws::Decoder,
    /// Answers of other shards that must come before the next message is looked at.
    pub(crate) waiting: u32,
    /// True exactly when the last of them has come and what was read meanwhile is looked at next.
    pub(crate) resuming: bool,
    /// True exactly when nothing is written yet although something is queued: a plain connection is told that it is connected when the
    /// rooms of its handshake have let it in, so that whatever is said after that is said to it too.
    pub(crate) corked: bool,
    /// The earliest alarm that is armed, milliseconds; `u64::MAX` for none.
    pub(crate) alarm_ms: u64,
    pub(crate) rate: Rate,
    pub(crate) heartbeat: Heartbeat,
    /// There exactly when the link is a long-polling session, which has no socket of its own (or was one a moment ago).
    pub(crate) polling: Option<Box<Polling>>,
    /// Id of the long-polling session that it is or was, if that began on another shard.
    pub(crate) guest: Option<Box<Sid>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Link");
        shown.field("generation", &self.generation).field("state", &self.state).field("peer", &self.peer);
        shown.field("partial_bytes", &self.partial.len()).field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// What a link is doing.
#[derive(Debug)]
pub(crate) enum State {
    /// Reading a request head; never looked at while an earlier answer is still being written.
    Head {
        deadline_ms: u64,
        /// True exactly when a request was answered and nothing of the next is here.
        idle: bool,
        /// False exactly when the process was full when it came: it is told so.
        welcome: bool,
    },
    /// A plain WebSocket with its one connection.
    Plain { conn: u32 },
    /// A Socket.IO WebSocket.
    SocketIo(Box<SocketIoLink>),
    /// Reading the body of a POST.
    Body(Box<Post>),
    /// An HTTP request of a long-polling session, waiting for the session's answer. Boxed is what would make every link larger.
    Polled(Box<Polled>),
    /// A WebSocket that is to take over a long-polling session of this shard.
    Probe(Box<Probe>),
    /// Saying goodbye; what still comes in is thrown away.
    Closing {
        deadline_ms: u64,
        /// True exactly when the peer has said goodbye too, so that nothing is left to wait for.
        peer_done: bool,
        /// True exactly when the socket is reset as soon as it takes no more.
        impatient: bool,
    },
}

/// An HTTP request of a long-polling session.
#[derive(Debug)]
pub(crate) struct Polled {
    pub(crate) sid: Sid,
    /// Number of the request.
    pub(crate) number: u32,
    pub(crate) reply: Reply,
    pub(crate) deadline_ms: u64,
}

/// A WebSocket that is to take over a session.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) session: LinkKey,
    pub(crate) deadline_ms: u64,
}

/// A peer's address without what IPv6 has besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer { ip: address.ip(), port: address.port() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(Peer { ip, port }: Peer) -> SocketAddr {
        SocketAddr::new(ip, port)
    }
}

/// What a Socket.IO link has beyond a plain one.
#[derive(Debug)]
pub(crate) struct SocketIoLink {
    /// Slots of its connections, one per joined namespace.
    pub(crate) conns: Few<u32, 5>,
    /// A namespace must be joined by then; `u64::MAX` once one is.
    pub(crate) connect_deadline_ms: u64,
    /// True exactly when it has asked for a namespace.
    pub(crate) has_tried: bool,
    /// True exactly when it has come in by the door: its next CONNECT does not wait there.
    pub(crate) has_entered: bool,
    /// The packet whose attachments are still to come, if there is one.
    pub(crate) assembly: Option<Box<Assembly>>,
    /// True exactly when it came from another shard: it goes to no third one.
    pub(crate) has_moved: bool,
    /// False exactly when its next CONNECT starts anew, because whom it wanted to replace is alive.
    pub(crate) may_recover: bool,
    /// Query of the request without its token; links with the same share it.
    pub(crate) query: Arc<str>,
    rare: Option<Box<Rare>>,
}

/// What few Socket.IO links have.
#[derive(Debug)]
pub(crate) struct Rare {
    /// There exactly when the client speaks Engine.IO 3.
    pub(crate) old: Option<Old>,
    /// The connection whose answer its CONNECT waits for.
    pub(crate) challenged: Option<ConnId>,
    /// There while its CONNECT waits for the relay.
    pub(crate) fetching: Option<Box<Fetching>>,
    /// The connection of another host that its CONNECT waits for.
    pub(crate) restored: Option<ConnId>,
    /// What the relay has answered, for the next CONNECT.
    pub(crate) fetched: Option<Fetched>,
    /// What the token of the request's header or query said.
    pub(crate) token: Result<Arc<Identity>, AuthFault>,
    /// What the session cookie said, for endpoints that look at cookies.
    pub(crate) cookie: Result<Arc<Identity>, AuthFault>,
    /// There where the back end is asked who may connect.
    pub(crate) visitor: Option<Box<Visitor>>,
}

impl Rare {
    const NONE: Rare = Rare {
        old: None,
        challenged: None,
        fetching: None,
        restored: None,
        fetched: None,
        token: Err(AuthFault::Missing),
        cookie: Err(AuthFault::Missing),
        visitor: None,
    };
}

impl SocketIoLink {
    /// One that has not joined a namespace.
    pub(crate) fn new(query: Arc<str>) -> SocketIoLink {
        SocketIoLink {
            conns: Few::new(),
            connect_deadline_ms: u64::MAX,
            has_tried: false,
            has_entered: false,
            assembly: None,
            has_moved: false,
            may_recover: true,
            query,
            rare: None,
        }
    }

    /// What few have, if it has any of it.
    pub(crate) fn rare(&self) -> &Rare {
        const NONE: &Rare = &Rare::NONE;
        self.rare.as_deref().unwrap_or(NONE)
    }

    /// The same, to be changed where it is there.
    pub(crate) fn rare_if_any(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// The same, to be made.
    pub(crate) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(|| Box::new(Rare::NONE))
    }
}

/// What a request says of the program it comes from. Its debug form shows nothing of it.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Visitor {
    pub(crate) origin: Option<Box<str>>,
    pub(crate) user_agent: Option<Box<str>>,
}

impl Visitor {
    pub(crate) fn of(request: &Request<'_>) -> Visitor {
        Visitor { origin: request.header("origin").map(Box::from), user_agent: request.header("user-agent").map(Box::from) }
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").finish_non_exhaustive()
    }
}

/// The long-polling side of a session. Its debug form shows nothing of what was sent.
pub(crate) struct Polling {
    /// The session's secret id.
    pub(crate) sid: Sid,
    /// The GET that waits for something to be said.
    pub(crate) poll: Option<Requester>,
    /// The last GET that was answered.
    pub(crate) answered: Option<Requester>,
    /// Packets that came and wait because an answer must come first.
    pub(crate) inbox: Inbox,
    /// The WebSocket that has probed: polls are answered with nothing, and what is said waits for it.
    pub(crate) probe: Option<LinkKey>,
    /// WebSockets that ask for the session.
    pub(crate) probers: u32,
    /// A packet that is looked at when none of them does any more.
    pub(crate) held: Option<Box<str>>,
    /// True exactly when that WebSocket has taken over and only the inbox is left.
    pub(crate) is_over: bool,
}

impl fmt::Debug for Polling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Polling");
        shown.field("poll", &self.poll).field("inbox_bytes", &self.inbox.bytes()).field("probers", &self.probers);
        shown.field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

/// Bodies of POSTs as they came: a packet is cut off when its turn has come.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Inbox {
    bodies: VecDeque<String>,
    /// Bytes of the first body that are done with; its packets and their separators.
    done: usize,
}

impl Inbox {
    pub(crate) fn push(&mut self, body: String) {
        self.bodies.push_back(body);
    }

    /// Puts a packet back before all others.
    pub(crate) fn push_front(&mut self, packet: String) {
        if let Some(first) = self.bodies.front_mut() {
            first.drain(..self.done);
        }
        self.done = 0;
        self.bodies.push_front(packet);
    }

    /// Bytes it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        self.bodies.iter().map(String::len).sum()
    }

    /// The next packet.
    pub(crate) fn next(&mut self) -> Option<String> {
        let rest = &self.bodies.front()?[self.done..];
        let (packet, is_last) = match rest.split_once(eio::SEPARATOR) {
            Some((packet, _)) => (packet.to_owned(), false),
            None => (rest.to_owned(), true),
        };
        if is_last {
            self.bodies.pop_front();
            self.done = 0;
        } else {
            self.done += packet.len() + eio::SEPARATOR.len_utf8();
        }
        Some(packet)
    }
}

impl Link {
    /// One that has not said yet what it is, and has no deadline.
    pub(crate) fn new(generation: u32, peer: SocketAddr, rate: Rate) -> Link {
        Link {
            generation,
            state: State::Head { deadline_ms: u64::MAX, idle: false, welcome: true },
            peer: peer.into(),
            ticket: None,
            outbox: Outbox::default(),
            partial: Seldom::new(),
            decoder: ws::Decoder::default(),
            waiting: 0,
            resuming: false,
            corked: false,
            alarm_ms: u64::MAX,
            rate,
            heartbeat: Heartbeat::NEVER,
            polling: None,
            guest: None,
        }
    }

    /// True exactly when the answer to an HTTP request is due or being written: what comes next waits.
    pub(crate) fn is_answering(&self) -> bool {
        match self.state {
            State::Polled(_) => true,
            State::Head { .. } => !self.outbox.is_empty(),
            _ => false,
        }
    }

    /// True exactly when what its peer says is not looked at, so that an answer to a heartbeat may lie behind it.
    pub(crate) fn is_held(&self) -> bool {
        self.waiting > 0 || self.resuming
    }

    /// True exactly when a heartbeat that was not answered may still be, because the peer was not heard all the time.
    pub(crate) fn is_excused(&self, now: Now) -> bool {
        self.heartbeat.awaiting && now.ns.saturating_sub(self.heartbeat.sent_ns) / 1_000_000 < HELD_SILENCE_MS
    }

    /// True exactly when nothing is due but a heartbeat to be sent.
    pub(crate) fn is_only_asked(&self, now_ms: u64) -> bool {
        let is_expected = matches!(&self.state, State::SocketIo(socket) if socket.connect_deadline_ms <= now_ms);
        self.heartbeat.at_ms <= now_ms && !self.heartbeat.awaiting && !is_expected
    }

    /// True exactly when it is a long-polling session now.
    pub(crate) fn is_polling(&self) -> bool {
        self.polling.as_ref().is_some_and(|polling| !polling.is_over)
    }
}

impl Record for Link {
    fn generation(&self) -> u32 {
        self.generation
    }
}

/// When the next ping or the end of the wait for a pong is due.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Heartbeat {
    pub(crate) at_ms: u64,
    /// True exactly when a ping was sent that has not been answered.
    pub(crate) awaiting: bool,
    pub(crate) sent_ns: u64,
    /// Pings that were sent after that one, while its answer could not be heard.
    pub(crate) more: u8,
    /// Answers to such pings that are still to come; they say nothing about later ones.
    pub(crate) owed: u8,
}

impl Heartbeat {
    pub(crate) const NEVER: Heartbeat = Heartbeat { at_ms: u64::MAX, awaiting: false, sent_ns: 0, more: 0, owed: 0 };

    pub(crate) fn starting(at_ms: u64) -> Heartbeat {
        Heartbeat { at_ms, ..Heartbeat::NEVER }
    }
}

/// One connected client.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) generation: u32,
    pub(crate) link: u32,
    pub(crate) endpoint: EndpointId,
    pub(crate) sid: Sid,
    pub(crate) profile: Profile,
    pub(crate) connected_unix_ms: u64,
    /// When something came that was no heartbeat, [`Now::tenths`].
    pub(crate) heard_tenths: u32,
    /// Places in the membership index.
    pub(crate) seats: Seats,
    /// True exactly when it is counted among those that use long-polling.
    pub(crate) is_polling: bool,
    /// Its share of the answers that the link waits for.
    pub(crate) waiting: u32,
    /// How far it is with who it is.
    pub(crate) stage: Stage,
    /// Rooms that were asked for and have not answered.
    pub(crate) entering: Seldom<Entering>,
    /// The room it is leaving, until its home has answered; the link waits, so there is at most one.
    pub(crate) leaving: Option<Box<Room>>,
    /// There until the user's own room has let it in.
    pub(crate) opening: Option<Box<Opening>>,
    /// Rooms it types in.
    pub(crate) typing: Seldom<Typing>,
    /// Acknowledgements the back end waits for.
    pub(crate) acks: Seldom<PendingAck>,
    /// Rooms about which the back end is being asked.
    pub(crate) asked_rooms: u32,
    /// There exactly when the back end has said that it may be let in.
    pub(crate) ruled: Option<Ruled>,
    /// There exactly when it can be taken up again after it broke off.
    pub(crate) recovery: Option<Box<Recovery>>,
}

impl Conn {
    /// Something came that is no heartbeat.
    pub(crate) fn note_life(&mut self, now: Now) {
        self.heard_tenths = now.tenths();
    }

    /// Milliseconds for which nothing but heartbeats came, to a tenth of a second.
    pub(crate) fn inactive_ms(&self, now: Now) -> u64 {
        u64::from(now.tenths().saturating_sub(self.heard_tenths)) * 100
    }

    /// True exactly when it is let in and not away.
    pub(crate) fn is_here(&self) -> bool {
        self.opening.is_none() && self.link != super::recovery::NO_LINK
    }
}

impl Record for Conn {
    fn generation(&self) -> u32 {
        self.generation
    }
}

/// How far it is with who a connection is. Most know it before they are connections.
#[derive(Debug)]
pub(crate) enum Stage {
    /// It must say so by then.
    Unknown { until_ms: u64 },
    /// The user's home has been asked.
    Asked,
    /// The user's home has let it in, and it waits for the rooms that are his.
    Arriving { note: Box<Box<str>> },
    /// All is settled.
    Known,
}

/// What the back end's word has made of a connection.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ruled {
    /// True exactly when the rooms it may enter are the back end's, so that a fresh token does not change them.
    pub(crate) lists: bool,
    /// False exactly when its client brought no token.
    pub(crate) has_token: bool,
}

/// A room that was asked for.
#[derive(Debug)]
pub(crate) struct Entering {
    pub(crate) room: Room,
    /// True exactly when the back end asked, and not the connection's dialect.
    pub(crate) is_granted: bool,
    /// True exactly when the back end has changed its mind: it leaves as soon as it is in.
    pub(crate) is_revoked: bool,
    /// Questions of the back end that are answered when the home has answered: requests under way, each of which is given up after a second.
    pub(crate) asks: Vec<u64>,
}

impl Conn {
    /// True exactly when it counts among those whose user is known.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.opening.is_none() && matches!(self.stage, Stage::Arriving { .. } | Stage::Known)
    }

    /// Index of a room among those asked for.
    pub(crate) fn awaits(&self, room: &Room) -> Option<usize> {
        self.entering.iter().position(|entering| entering.room == *room)
    }
}

/// What is left to do when a connection is let in. Its debug form does not show the query, in which a token may be.
pub(crate) struct Opening {
    /// The answer to the upgrade; `None` for Socket.IO, whose link is open already.
    pub(crate) response: Option<Vec<u8>>,
    /// Query of the request.
    pub(crate) query: String,
    /// There until the back end has said whether it may be let in, where that is asked.
    pub(crate) asking: Option<Box<Asking>>,
}

/// What a dialect needs to say who a connection is, kept while the back end is asked.
pub(crate) struct Asking {
    /// What became of the token: it is good, or there is none.
    pub(crate) token: Result<Arc<Identity>, AuthFault>,
    /// What the client gave as Socket.IO `auth`, JSON; only where no token is asked for.
    pub(crate) auth: Option<Box<str>>,
    pub(crate) visitor: Visitor,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let response_bytes = self.response.as_ref().map(Vec::len);
        f.debug_struct("Opening").field("response_bytes", &response_bytes).field("query_bytes", &self.query.len()).finish()
    }
}

/// See [`crate::dialect::Act::Typing`].
#[derive(Debug)]
pub(crate) struct Typing {
    pub(crate) room: Arc<str>,
    pub(crate) until_ms: u64,
}

/// An acknowledgement that an emit waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingAck {
    /// Number of the emit.
    pub(crate) ask: u64,
    /// Nobody waits for it any more then.
    pub(crate) deadline_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_form_of_a_session_shows_neither_its_id_nor_what_was_sent() {
        let sid = Sid::new(crate::ids::ShardId(0), 1, [7; 11]);
        let mut inbox = Inbox::default();
        inbox.push("40{\"token\":\"HUSH\"}".to_owned());
        let held = Some("40HUSH".into());
        let polling = Polling { sid, poll: None, answered: None, inbox, probe: None, probers: 0, held, is_over: false };
        let shown = format!("{polling:?} {:?}", super::super::parcel::Call::Say("40HUSH".to_owned()));
        assert!(!shown.contains("HUSH") && !shown.contains(sid.text().as_str()), "{shown}");
    }

    #[test]
    fn the_debug_form_of_an_opening_shows_no_token() {
        let shown = format!("{:?}", Opening { response: None, query: "token=HUSH".to_owned(), asking: None });
        assert_eq!(shown, "Opening { response_bytes: None, query_bytes: 10 }");
    }
}
