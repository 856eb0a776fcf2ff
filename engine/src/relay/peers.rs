//! Socket.IO servers of other programs in the fleet, most of them Node's: what they ask of this host, which its shards answer, and what this
//! host asks of them. It owns the bookkeeping of both, has neither a socket nor a clock, and what it wants done is taken from
//! [`Peers::poll_output`].
//!
//! ```text
//! their request -> Inspection or Question, put to every shard -> what the shards tell -> one answer (of acknowledgements one for each)
//! the program's question -> their requests -> their answers -> Told
//! ```
//!
//! | they ask | we do |
//! |---|---|
//! | which sockets, which rooms | answer within [`PEER_ANSWER_MS`], with what is known then |
//! | enter and leave rooms | what the back end's call does; what is said in the namespace after that waits until it is done |
//! | disconnect | what the back end's call does |
//! | server-side emit | an event of the back end's event stream; an answer that is wanted is `null`, at once |
//! | broadcast with acknowledgements | say how many get it, and each acknowledgement as it comes |
//!
//! Every subscriber of a namespace's requests counts as a server that answers, other uringcast hosts too. What those have been told in another
//! way they answer with nothing, at once, so that all who are counted answer.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::format::{Message, Options, Payload, RemoteSocket};
use super::socketio::{As, Post, SocketIo, TOLD, random_id, selection};
use crate::config::Config;
use crate::dialect;
use crate::event::{Event, ServerCall, What};
use crate::fault::RelayDrop;
use crate::ids::{EndpointId, Room, ShardId, Sid, checked_name};
use crate::json::Scratch;
use crate::limits::{PEER_ACK_BYTES_MAX, PEER_ACK_MS, PEER_ANSWER_BYTES_MAX, PEER_ANSWER_MS, PEER_ASK_MS, PEER_ASKS_MAX, PEER_ERRANDS_MAX};
use crate::shard::outward::PEER_ASK;
use crate::shard::parcel::{Answer, Emit, Emitted, Parcel, Question, Selection, Target};
use crate::shard::peers::{Inspection, Told};
use crate::shard::room_calls::{RoomAnswer, RoomCall};
use crate::time::Now;
use rand::rngs::StdRng;

/// Bit of the first errand's number: the acknowledgement ids that clients see are the lower 31 bits, and so stay apart from those of the
/// program's own emits and of other hosts' for half a billion requests.
const FIRST: u64 = PEER_ASK | 1 << 29;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Output {
    /// Redis is to be told, in order with everything else that is published.
    Say(Post),
    /// A parcel for a shard.
    Put(ShardId, Parcel),
    /// It is to be asked how many servers of a namespace there are; [`Peers::counted`] is called with this name.
    Count(EndpointId, String),
    /// The answer to the program's question.
    Told {
        /// Its number.
        ask: u64,
        /// What the other servers together answer.
        answer: Answer,
        /// True exactly when all of them have.
        is_whole: bool,
    },
    /// So much was left out.
    Dropped(RelayDrop, u64),
}

/// A request of another server.
#[derive(Debug)]
struct Errand {
    endpoint: EndpointId,
    /// Where the answer goes; everybody hears it without.
    asker: Option<String>,
    /// What the answer names; none is wanted without.
    request: Option<String>,
    deadline_ms: u64,
    /// Shards that have not told.
    pending: usize,
    work: Work,
}

/// What has come of it.
#[derive(Debug)]
enum Work {
    Sockets {
        sockets: Vec<RemoteSocket>,
        bytes: usize,
    },
    Ids(Vec<String>),
    Rooms {
        names: BTreeSet<Arc<str>>,
        bytes: usize,
    },
    /// Something was done to so many; `is_move`: to what rooms they are in.
    Done {
        count: u64,
        is_move: bool,
    },
    /// Acknowledgements are held back until all shards have told how many there may be.
    Broadcast {
        clients: u64,
        acks: u64,
        held: Vec<Payload>,
        bytes: usize,
        ack_deadline_ms: u64,
        is_counted: bool,
    },
}

/// A request of ours.
#[derive(Debug)]
struct Own {
    /// The program's question.
    ask: u64,
    deadline_ms: u64,
    /// Servers that answer, when they have been counted.
    expected: Option<u64>,
    answered: u64,
    clients: u64,
    with_acks: bool,
    acks: u64,
    answers: Vec<String>,
    bytes: usize,
}

/// A question of the program's that other servers answer with one or several requests.
#[derive(Debug)]
struct Asked {
    /// Requests that are under way.
    open: usize,
    form: Form,
    clients: u64,
    acks: u64,
    answers: Vec<String>,
    is_whole: bool,
}

/// How the answer to the program's question looks.
#[derive(Clone, Copy, Debug)]
enum Form {
    Emitted,
    Closed,
    Granted,
    Moved,
}

/// What a question of the program's is for other servers of one namespace.
struct Deed {
    endpoint: EndpointId,
    /// What is said to them.
    message: Message,
    /// Who is counted; nobody where the message's own answers say it, or nobody wants to know.
    counted: Option<Options>,
}

/// What is to be known to ask other servers.
pub(crate) struct Setting<'s> {
    pub(crate) config: &'s Config,
    /// Endpoints in whose namespaces there are servers that are no uringcast hosts.
    pub(crate) peered: &'s [EndpointId],
    pub(crate) random: &'s mut StdRng,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peers {
    shards: usize,
    errands: HashMap<u64, Errand>,
    /// By when they are answered.
    errand_deadlines: BTreeSet<(u64, u64)>,
    next: u64,
    /// Requests that change who is in which room, by the endpoint.
    moving: HashMap<EndpointId, usize>,
    own: HashMap<String, Own>,
    own_deadlines: BTreeSet<(u64, String)>,
    asked: HashMap<u64, Asked>,
    outputs: VecDeque<Output>,
}

impl Peers {
    /// Of a host of so many shards.
    pub(crate) fn new(shards: usize) -> Peers {
        Peers {
            shards,
            errands: HashMap::new(),
            errand_deadlines: BTreeSet::new(),
            next: FIRST,
            moving: HashMap::new(),
            own: HashMap::new(),
            own_deadlines: BTreeSet::new(),
            asked: HashMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// What is to be done next.
    #[must_use]
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// True exactly when connections of an endpoint are entering or leaving rooms by another server's will: what is said to them after
    /// that is for those who are in then.
    pub(crate) fn is_moving(&self, endpoint: EndpointId) -> bool {
        self.moving.contains_key(&endpoint)
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    pub(crate) fn next_ms(&self) -> u64 {
        let errand = self.errand_deadlines.first().map_or(u64::MAX, |(at_ms, _)| *at_ms);
        self.own_deadlines.first().map_or(u64::MAX, |(at_ms, _)| *at_ms).min(errand)
    }

    /// Answers what has waited long enough.
    pub(crate) fn handle_timeouts(&mut self, now: Now, socket_io: &mut SocketIo) {
        while let Some((at_ms, ask)) = self.errand_deadlines.first().copied().filter(|(at_ms, _)| *at_ms <= now.ms()) {
            self.errand_deadlines.remove(&(at_ms, ask));
            if let Some(errand) = self.errands.get_mut(&ask) {
                errand.pending = 0;
            }
            self.answer(now, socket_io, ask);
        }
        while let Some((_, request)) = self.own_deadlines.first().cloned().filter(|(at_ms, _)| *at_ms <= now.ms()) {
            self.close(&request, false);
        }
    }

    /// The connection to Redis is lost: nobody answers any more.
    pub(crate) fn lose(&mut self) {
        let open: Vec<String> = self.own.keys().cloned().collect();
        for request in open {
            self.close(&request, false);
        }
    }

    // ---- their requests

    /// A request of another server, or its broadcast that is to be acknowledged. `offset` is a random number.
    pub(crate) fn handle_request(
        &mut self,
        now: Now,
        socket_io: &mut SocketIo,
        endpoint: EndpointId,
        uid: &str,
        message: Message,
        offset: u64,
    ) {
        let asker = (!uid.is_empty()).then(|| uid.to_owned());
        if uid.starts_with(TOLD) {
            return self.answer_nothing(socket_io, endpoint, asker.as_deref(), message);
        }
        let done = |is_move| Work::Done { count: 0, is_move };
        let (request, work, put) = match message {
            Message::Sockets { request, rooms } => {
                let who = selection(endpoint, &Options { rooms, ..Options::default() });
                (Some(request), Work::Ids(Vec::new()), Put::Inspect(Inspection::Sockets(who)))
            }
            Message::AllRooms { request } => {
                (Some(request), Work::Rooms { names: BTreeSet::new(), bytes: 0 }, Put::Inspect(Inspection::Rooms(endpoint)))
            }
            Message::Fetch { request, options } => {
                let work = Work::Sockets { sockets: Vec::new(), bytes: 0 };
                (Some(request), work, Put::Inspect(Inspection::Sockets(selection(endpoint, &options))))
            }
            Message::Join { options, rooms } => (None, done(true), Put::moving(selection(endpoint, &options), &rooms, true)),
            Message::Leave { options, rooms } => (None, done(true), Put::moving(selection(endpoint, &options), &rooms, false)),
            Message::JoinOne { request, sid, room } => (request, done(true), Put::moving(one(endpoint, &sid), &[room], true)),
            Message::LeaveOne { request, sid, room } => (request, done(true), Put::moving(one(endpoint, &sid), &[room], false)),
            Message::Disconnect { options, close } => {
                let question = Question::Disconnect { from: selection(endpoint, &options), transport: close };
                (None, done(false), Put::Ask(question))
            }
            Message::DisconnectOne { request, sid, close } => {
                (request, done(false), Put::Ask(Question::Disconnect { from: one(endpoint, &sid), transport: close }))
            }
            Message::ServerSideEmit { request, packet } => {
                return self.tell_program(now, socket_io, endpoint, asker.as_deref(), request, &packet);
            }
            Message::Broadcast { packet, options, request: Some(request) } => {
                let ack_ms = options.flags.timeout_ms.unwrap_or(PEER_ACK_MS.0).clamp(1, PEER_ACK_MS.1);
                let ack_deadline_ms = now.ms().saturating_add(ack_ms);
                let work = Work::Broadcast { clients: 0, acks: 0, held: Vec::new(), bytes: 0, ack_deadline_ms, is_counted: false };
                let Some(arrival) = socket_io.arrival(endpoint, uid, packet, &options, offset, now.unix_ms) else {
                    return self.outputs.push_back(Output::Dropped(RelayDrop::Malformed, 1));
                };
                let emit = Emit { ack_ms: Some(ack_ms), ..arrival.emit };
                (Some(request), work, Put::Ask(Question::Emit(Arc::new(emit))))
            }
            // Answers and what asks for nothing.
            _ => return,
        };
        if self.errands.len() >= PEER_ERRANDS_MAX {
            return self.outputs.push_back(Output::Dropped(RelayDrop::Busy, 1));
        }
        if matches!(work, Work::Done { is_move: true, .. }) {
            *self.moving.entry(endpoint).or_insert(0) += 1;
        }
        let ask = self.next;
        // A number's lower half wraps around long after its errand has ended.
        self.next = PEER_ASK | (self.next + 1) & 0xff_ffff_ffff_ffff;
        let deadline_ms = now.ms() + PEER_ANSWER_MS;
        let errand = Errand { endpoint, asker, request, deadline_ms, pending: self.shards, work };
        self.errand_deadlines.insert((deadline_ms, ask));
        self.errands.insert(ask, errand);
        self.put(ask, put);
    }

    fn put(&mut self, ask: u64, put: Put) {
        let shards = (0..self.shards).map(|shard| ShardId(shard as u8));
        match put {
            Put::Inspect(inspection) => {
                let inspection = Arc::new(inspection);
                self.outputs.extend(shards.map(|shard| Output::Put(shard, Parcel::Inspect { ask, inspection: inspection.clone() })));
            }
            Put::Ask(question) => {
                self.outputs.extend(shards.map(|shard| Output::Put(shard, Parcel::Ask { ask, question: question.clone() })));
            }
        }
    }

    /// What another uringcast host asks of servers that are none: there are no such clients here.
    fn answer_nothing(&mut self, socket_io: &mut SocketIo, endpoint: EndpointId, asker: Option<&str>, message: Message) {
        let answer = match message {
            Message::Fetch { request, .. } => Message::FetchAnswer { request, sockets: Vec::new() },
            Message::Broadcast { request: Some(request), .. } => Message::ClientCount { request, count: 0 },
            _ => return,
        };
        self.say(socket_io, endpoint, As::Told, answer, asker);
    }

    /// Another server says something to the servers: the program is told, once a host. Nobody here answers for the program.
    fn tell_program(
        &mut self,
        now: Now,
        socket_io: &mut SocketIo,
        endpoint: EndpointId,
        asker: Option<&str>,
        request: Option<String>,
        packet: &Payload,
    ) {
        match socket_io.call_of(packet) {
            Some((event, args)) => {
                let call = Box::new(ServerCall { event: event.into(), args: args.into() });
                let what = What::ServerEvent { call };
                let event = Event { endpoint, connection: None, user: None, room: None, unix_ms: now.unix_ms, what };
                self.outputs.push_back(Output::Put(ShardId(0), Parcel::Tell(Box::new(event))));
            }
            None => self.outputs.push_back(Output::Dropped(RelayDrop::Malformed, 1)),
        }
        if let Some(request) = request {
            let answer = Message::ServerSideEmitAnswer { request, packet: Payload::from("null") };
            self.say(socket_io, endpoint, As::Ourselves, answer, asker);
        }
    }

    /// What a shard tells of a request.
    pub(crate) fn handle_told(&mut self, now: Now, socket_io: &mut SocketIo, ask: u64, told: Told) {
        let Some(errand) = self.errands.get_mut(&ask) else { return };
        let mut left_out = 0;
        match (told, &mut errand.work) {
            (Told::Sockets { sockets: told, left_out: more }, Work::Sockets { sockets, bytes }) => {
                left_out = more;
                for socket in &told {
                    let socket = socket_io.remote_socket(errand.endpoint, socket);
                    let size = socket.handshake_json.len()
                        + socket.data_json.len()
                        + socket.rooms.iter().map(|room| room.len() + 3).sum::<usize>();
                    if *bytes + size > PEER_ANSWER_BYTES_MAX {
                        left_out += 1;
                        continue;
                    }
                    *bytes += size;
                    sockets.push(socket);
                }
            }
            (Told::Sockets { sockets, left_out: more }, Work::Ids(ids)) => {
                left_out = more;
                ids.extend(sockets.iter().map(|socket| socket.info.id.to_string()));
            }
            (Told::Rooms { names: told, left_out: more }, Work::Rooms { names, bytes }) => {
                left_out = more;
                for name in told {
                    let size = name.len() + 3;
                    if *bytes + size > PEER_ANSWER_BYTES_MAX {
                        left_out += 1;
                    } else if names.insert(name) {
                        *bytes += size;
                    }
                }
            }
            (Told::Recipients(count), Work::Broadcast { clients, .. }) => *clients += count,
            (Told::Ack { json, attachments }, Work::Broadcast { .. }) => return self.acknowledge(socket_io, ask, &json, attachments),
            _ => return,
        }
        errand.pending = errand.pending.saturating_sub(1);
        let is_due = errand.pending == 0;
        if left_out > 0 {
            self.outputs.push_back(Output::Dropped(RelayDrop::Answer, left_out));
        }
        if is_due {
            self.answer(now, socket_io, ask);
        }
    }

    /// What a shard answers a question that another server's request was.
    pub(crate) fn handle_answer(&mut self, now: Now, socket_io: &mut SocketIo, ask: u64, answer: &Answer) {
        let Some(errand) = self.errands.get_mut(&ask) else { return };
        let Work::Done { count, .. } = &mut errand.work else { return };
        *count += match answer {
            Answer::Closed(closed) => *closed,
            Answer::Granted(Some(Ok(moved))) => u64::from(*moved),
            _ => 0,
        };
        errand.pending = errand.pending.saturating_sub(1);
        if errand.pending == 0 {
            self.answer(now, socket_io, ask);
        }
    }

    /// One client has acknowledged.
    fn acknowledge(&mut self, socket_io: &mut SocketIo, ask: u64, json: &str, attachments: Vec<Vec<u8>>) {
        let packet = socket_io.first_of(json, attachments);
        let Some(errand) = self.errands.get_mut(&ask) else { return };
        let Work::Broadcast { clients, acks, held, bytes, .. } = &mut errand.work else { return };
        *acks += 1;
        if errand.pending > 0 {
            // The count comes first.
            *bytes += packet.json.len() + packet.attachments.iter().map(Vec::len).sum::<usize>();
            if *bytes <= PEER_ACK_BYTES_MAX {
                held.push(packet);
            } else {
                self.outputs.push_back(Output::Dropped(RelayDrop::Answer, 1));
            }
            return;
        }
        let (is_last, endpoint, asker, request) = (acks == clients, errand.endpoint, errand.asker.clone(), errand.request.clone());
        if is_last {
            self.forget(ask);
        }
        if let Some(request) = request {
            self.say(socket_io, endpoint, As::Ourselves, Message::Ack { request, packet }, asker.as_deref());
        }
    }

    /// All shards have told, or the time is over.
    fn answer(&mut self, now: Now, socket_io: &mut SocketIo, ask: u64) {
        let Some(errand) = self.errands.get_mut(&ask) else { return };
        let (endpoint, asker) = (errand.endpoint, errand.asker.clone());
        if let Work::Broadcast { clients, acks, held, ack_deadline_ms, is_counted, .. } = &mut errand.work {
            if std::mem::replace(is_counted, true) {
                // Its acknowledgements are waited for no longer.
                return self.forget(ask);
            }
            let (clients, acks, held, ack_deadline_ms) = (*clients, *acks, std::mem::take(held), *ack_deadline_ms);
            let counted_by_ms = std::mem::replace(&mut errand.deadline_ms, ack_deadline_ms);
            let request = errand.request.clone().unwrap_or_default();
            self.errand_deadlines.remove(&(counted_by_ms, ask));
            self.say(
                socket_io,
                endpoint,
                As::Ourselves,
                Message::ClientCount { request: request.clone(), count: clients },
                asker.as_deref(),
            );
            for packet in held {
                self.say(socket_io, endpoint, As::Ourselves, Message::Ack { request: request.clone(), packet }, asker.as_deref());
            }
            if acks == clients || ack_deadline_ms <= now.ms() {
                return self.forget(ask);
            }
            self.errand_deadlines.insert((ack_deadline_ms, ask));
            return;
        }
        let Some(errand) = self.forget_errand(ask) else { return };
        let Some(request) = errand.request else { return };
        let answer = match errand.work {
            Work::Sockets { sockets, .. } => Message::FetchAnswer { request, sockets },
            Work::Ids(ids) => Message::SocketsAnswer { request, ids },
            Work::Rooms { names, .. } => Message::RoomsAnswer { request, rooms: names.iter().map(|name| name.to_string()).collect() },
            // Only who has the client answers.
            Work::Done { count, .. } if count > 0 => Message::Done { request },
            Work::Done { .. } | Work::Broadcast { .. } => return,
        };
        self.say(socket_io, endpoint, As::Ourselves, answer, asker.as_deref());
    }

    fn forget(&mut self, ask: u64) {
        drop(self.forget_errand(ask));
    }

    fn forget_errand(&mut self, ask: u64) -> Option<Errand> {
        let errand = self.errands.remove(&ask)?;
        self.errand_deadlines.remove(&(errand.deadline_ms, ask));
        if matches!(errand.work, Work::Done { is_move: true, .. })
            && let Some(count) = self.moving.get_mut(&errand.endpoint)
        {
            *count -= 1;
            if *count == 0 {
                self.moving.remove(&errand.endpoint);
            }
        }
        Some(errand)
    }

    fn say(&mut self, socket_io: &mut SocketIo, endpoint: EndpointId, who: As<'_>, message: Message, asker: Option<&str>) {
        match socket_io.say(endpoint, who, message, asker) {
            Some(post) => self.outputs.push_back(Output::Say(post)),
            None => self.outputs.push_back(Output::Dropped(RelayDrop::Unspeakable, 1)),
        }
    }

    // ---- our questions

    /// The program asks something that concerns other servers as well: they are told, and where there are some, counted. True when
    /// [`Output::Told`] will come.
    pub(crate) fn ask(&mut self, now: Now, socket_io: &mut SocketIo, setting: Setting<'_>, ask: u64, question: &Question) -> bool {
        let Setting { config, peered, random } = setting;
        let Some((form, deeds)) = deeds_of(socket_io, config, random, question) else { return false };
        let mut asked = Asked { open: 0, form, clients: 0, acks: 0, answers: Vec::new(), is_whole: true };
        for Deed { endpoint, message, counted } in deeds {
            let is_counted = peered.contains(&endpoint) && self.own.len() < PEER_ASKS_MAX && !self.asked.contains_key(&ask);
            let with_acks = match &message {
                Message::Broadcast { request: Some(request), options, .. } => Some((request.clone(), options.flags.timeout_ms)),
                _ => None,
            };
            let counted = counted.filter(|_| is_counted).map(|options| (random_id(random), options));
            let request =
                with_acks.as_ref().map(|(request, _)| request.clone()).or_else(|| counted.as_ref().map(|(request, _)| request.clone()));
            if let Some(request) = request.filter(|_| is_counted) {
                let ack_ms = with_acks.as_ref().and_then(|(_, timeout_ms)| *timeout_ms).unwrap_or(0);
                let deadline_ms = now.ms() + if with_acks.is_some() { ack_ms } else { PEER_ASK_MS };
                let own = Own {
                    ask,
                    deadline_ms,
                    expected: None,
                    answered: 0,
                    clients: 0,
                    with_acks: with_acks.is_some(),
                    acks: 0,
                    answers: Vec::new(),
                    bytes: 0,
                };
                self.own_deadlines.insert((deadline_ms, request.clone()));
                self.own.insert(request.clone(), own);
                self.outputs.push_back(Output::Count(endpoint, request));
                asked.open += 1;
            }
            // Before it happens: who is disconnected then is there no longer.
            if let Some((request, options)) = counted {
                self.say(socket_io, endpoint, As::Told, Message::Fetch { request, options }, None);
            }
            self.say(socket_io, endpoint, As::Told, message, None);
        }
        let is_asked = asked.open > 0;
        if is_asked {
            self.asked.insert(ask, asked);
        }
        is_asked
    }

    /// So many servers are there, this one among them; `None` where nobody could say.
    pub(crate) fn counted(&mut self, request: &str, servers: Option<u64>) {
        match (servers, self.own.get_mut(request)) {
            (Some(servers), Some(own)) => own.expected = Some(servers.saturating_sub(1)),
            (None, Some(_)) => return self.close(request, false),
            (_, None) => return,
        }
        self.close_if_complete(request);
    }

    /// An answer to a request of ours.
    pub(crate) fn handle_answered(&mut self, socket_io: &mut SocketIo, message: Message) {
        let request = match message {
            Message::FetchAnswer { request, sockets } => {
                let Some(own) = self.own.get_mut(&request) else { return };
                own.answered += 1;
                own.clients += sockets.len() as u64;
                request
            }
            Message::ClientCount { request, count } => {
                let Some(own) = self.own.get_mut(&request) else { return };
                own.answered += 1;
                own.clients += count;
                request
            }
            Message::Ack { request, packet } => {
                let Some(own) = self.own.get_mut(&request) else { return };
                own.acks += 1;
                let said = format!("[{}]", socket_io.spelled(&packet));
                if own.bytes + said.len() <= PEER_ACK_BYTES_MAX {
                    own.bytes += said.len();
                    own.answers.push(said);
                }
                request
            }
            _ => return,
        };
        self.close_if_complete(&request);
    }

    fn close_if_complete(&mut self, request: &str) {
        let is_complete = |own: &Own| {
            let have_answered = own.expected.is_some_and(|expected| own.answered >= expected);
            have_answered && (!own.with_acks || own.acks >= own.clients)
        };
        if self.own.get(request).is_some_and(is_complete) {
            self.close(request, true);
        }
    }

    /// A request of ours is over. One whose acknowledgements did not all come in time is whole all the same.
    fn close(&mut self, request: &str, is_complete: bool) {
        let Some(own) = self.own.remove(request) else { return };
        self.own_deadlines.remove(&(own.deadline_ms, request.to_owned()));
        let Some(asked) = self.asked.get_mut(&own.ask) else { return };
        asked.open -= 1;
        asked.clients += own.clients;
        asked.acks += own.acks;
        asked.answers.extend(own.answers);
        asked.is_whole &= is_complete || (own.with_acks && own.expected.is_some_and(|expected| own.answered >= expected));
        if asked.open > 0 {
            return;
        }
        let Some(Asked { form, clients, acks, answers, is_whole, .. }) = self.asked.remove(&own.ask) else { return };
        let answer = match form {
            Form::Emitted => Answer::Emitted(Emitted { recipients: clients, acks, answers }),
            Form::Closed => Answer::Closed(clients),
            Form::Granted => Answer::Granted(Some(Ok(u32::try_from(clients).unwrap_or(u32::MAX)))),
            Form::Moved => Answer::Room(if clients > 0 { RoomAnswer::Done } else { RoomAnswer::Elsewhere }),
        };
        self.outputs.push_back(Output::Told { ask: own.ask, answer, is_whole });
    }
}

/// What is put to the shards.
enum Put {
    Inspect(Inspection),
    Ask(Question),
}

impl Put {
    /// A name that no room can have is passed over.
    fn moving(who: Selection, rooms: &[String], is_in: bool) -> Put {
        let rooms = rooms.iter().filter_map(|name| checked_name(name).ok()).map(Arc::from).collect();
        Put::Inspect(Inspection::Move { who, rooms, is_in })
    }
}

/// One client, if it is a client of this host.
fn one(endpoint: EndpointId, sid: &str) -> Selection {
    Selection::of(endpoint, Sid::parse(sid).map(Target::Connection).into_iter().collect())
}

/// What a question of the program's is for other servers; `None` where it is nothing to them.
fn deeds_of(socket_io: &SocketIo, config: &Config, random: &mut StdRng, question: &Question) -> Option<(Form, Vec<Deed>)> {
    let of = |who: &Selection| socket_io.of(who.endpoint)?.options_of(who);
    let disconnect = |who: &Selection, close| {
        let options = of(who)?;
        Some(Deed { endpoint: who.endpoint, message: Message::Disconnect { options: options.clone(), close }, counted: Some(options) })
    };
    let moving = |who: &Selection, room: &str, is_in: bool| {
        let (options, rooms) = (of(who)?, vec![room.to_owned()]);
        let counted = Some(options.clone());
        let message = if is_in { Message::Join { options, rooms } } else { Message::Leave { options, rooms } };
        Some(Deed { endpoint: who.endpoint, message, counted })
    };
    let everywhere = |wanted: Option<EndpointId>| {
        let all = socket_io.namespaces.iter().map(|namespace| namespace.endpoint);
        all.filter(move |endpoint| wanted.is_none_or(|wanted| wanted == *endpoint))
    };
    Some(match question {
        Question::Emit(emit) => {
            let mut options = of(&emit.to)?;
            options.flags.volatile = emit.volatile;
            options.flags.timeout_ms = emit.ack_ms;
            let kind = config.endpoints[usize::from(emit.to.endpoint.0)].dialect;
            let asked = Now { ns: 0, unix_ms: emit.unix_ms };
            let outgoing = dialect::of(kind).outgoing(asked, &emit.event, &emit.args, &mut Scratch::default()).ok()?;
            let args = outgoing.args.as_deref().unwrap_or(&emit.args);
            let mut json = String::from("[");
            crate::json::quote(&mut json, &emit.event);
            json.extend([if args.is_empty() { "" } else { "," }, args, "]"]);
            let packet = Payload { json, attachments: emit.attachments.clone() };
            let (request, counted) = match emit.ack_ms {
                Some(_) => (Some(random_id(random)), None),
                None => (None, Some(Options { flags: Default::default(), ..options.clone() })),
            };
            (Form::Emitted, vec![Deed { endpoint: emit.to.endpoint, message: Message::Broadcast { packet, options, request }, counted }])
        }
        Question::Disconnect { from, transport } => (Form::Closed, vec![disconnect(from, *transport)?]),
        Question::CloseUser { endpoint, user, .. } => {
            let all = everywhere(*endpoint).filter_map(|endpoint| disconnect(&Selection::of(endpoint, vec![Target::user(user)]), false));
            (Form::Closed, all.collect())
        }
        Question::CloseConnection { id, .. } => {
            let all = everywhere(None).filter_map(|endpoint| disconnect(&Selection::of(endpoint, vec![Target::Connection(*id)]), false));
            (Form::Closed, all.collect())
        }
        Question::Grant { endpoint, room, user } => {
            (Form::Granted, vec![moving(&Selection::of(*endpoint, vec![Target::user(user)]), room, true)?])
        }
        Question::Revoke { endpoint, room, user } => {
            (Form::Granted, vec![moving(&Selection::of(*endpoint, vec![Target::user(user)]), room, false)?])
        }
        Question::Room(RoomCall::Enter { room: Room { endpoint, name }, connection }) => {
            (Form::Moved, vec![moving(&Selection::of(*endpoint, vec![Target::Connection(*connection)]), name, true)?])
        }
        Question::Room(RoomCall::Leave { room: Room { endpoint, name }, connection }) => {
            (Form::Moved, vec![moving(&Selection::of(*endpoint, vec![Target::Connection(*connection)]), name, false)?])
        }
        // It ends for those who are in it; nobody need be.
        Question::Room(RoomCall::Delete { room: Room { endpoint, name } }) => {
            let deed = moving(&Selection::of(*endpoint, vec![Target::Room(name.clone())]), name, false)?;
            (Form::Moved, vec![Deed { counted: None, ..deed }])
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::config::{DialectKind, Endpoint};

    const ROOT: EndpointId = EndpointId(0);

    fn config() -> Config {
        Config::new(([127, 0, 0, 1], 0), 2, vec![Endpoint::new("root", DialectKind::Rooms, "/")])
    }

    fn at(ms: u64) -> Now {
        Now { ns: ms * 1_000_000, unix_ms: ms }
    }

    fn socket_io() -> SocketIo {
        SocketIo::new(&config(), &crate::config::Relay::new("redis://localhost"), &mut StdRng::from_seed([1; 32]))
    }

    /// What is said, as text, and what is put to shards, by their numbers.
    fn outputs(peers: &mut Peers) -> (Vec<String>, Vec<u64>, u64) {
        let (mut said, mut put, mut left_out) = (Vec::new(), Vec::new(), 0);
        while let Some(output) = peers.poll_output() {
            match output {
                Output::Say(post) => said.push(String::from_utf8_lossy(&post.payload).into_owned()),
                Output::Put(_, Parcel::Ask { ask, .. } | Parcel::Inspect { ask, .. }) => put.push(ask),
                Output::Dropped(_, count) => left_out += count,
                Output::Put(..) | Output::Count(..) | Output::Told { .. } => {}
            }
        }
        (said, put, left_out)
    }

    fn request(peers: &mut Peers, socket_io: &mut SocketIo, message: Message) -> Option<u64> {
        peers.handle_request(at(1_000), socket_io, ROOT, "abcdef", message, 1);
        outputs(peers).1.first().copied()
    }

    fn rooms(names: &[&str]) -> Told {
        Told::Rooms { names: names.iter().map(|name| Arc::from(*name)).collect(), left_out: 0 }
    }

    #[test]
    fn who_asks_has_an_answer_in_time_whatever_a_shard_does() {
        let (mut peers, mut io) = (Peers::new(2), socket_io());
        let ask = request(&mut peers, &mut io, Message::AllRooms { request: "one".into() }).expect("put to shards");
        peers.handle_told(at(1_001), &mut io, ask, rooms(&["b", "a"]));
        assert!(outputs(&mut peers).0.is_empty());
        assert_eq!(peers.next_ms(), 1_000 + PEER_ANSWER_MS);
        peers.handle_timeouts(at(1_999), &mut io);
        assert!(outputs(&mut peers).0.is_empty());
        peers.handle_timeouts(at(2_000), &mut io);
        assert_eq!(outputs(&mut peers).0, [r#"{"requestId":"one","rooms":["a","b"]}"#]);
        peers.handle_told(at(2_001), &mut io, ask, rooms(&["late"]));
        assert_eq!((outputs(&mut peers).0.len(), peers.next_ms(), peers.errands.len()), (0, u64::MAX, 0));
    }

    #[test]
    fn answers_and_requests_under_way_are_bounded_and_what_is_left_out_is_counted() {
        let (mut peers, mut io) = (Peers::new(1), socket_io());
        let ask = request(&mut peers, &mut io, Message::AllRooms { request: "one".into() }).expect("put to shards");
        let name = "x".repeat(PEER_ANSWER_BYTES_MAX / 2);
        peers.handle_told(at(1_001), &mut io, ask, rooms(&[&name, "short", &format!("{name}y")]));
        let (said, _, left_out) = outputs(&mut peers);
        assert_eq!((said.len(), left_out), (1, 1));
        assert!(said[0].len() < PEER_ANSWER_BYTES_MAX, "and the short one is in it");
        for _ in 0..PEER_ERRANDS_MAX {
            assert!(request(&mut peers, &mut io, Message::AllRooms { request: "more".into() }).is_some());
        }
        peers.handle_request(at(1_000), &mut io, ROOT, "abcdef", Message::AllRooms { request: "no".into() }, 1);
        assert_eq!((outputs(&mut peers).2, peers.errands.len()), (1, PEER_ERRANDS_MAX));
    }

    #[test]
    fn what_is_said_while_others_are_moved_waits_a_second_at_most() {
        let (mut peers, mut io) = (Peers::new(2), socket_io());
        let join = || Message::Join { options: Options::default(), rooms: vec!["r".into()] };
        let ask = request(&mut peers, &mut io, join()).expect("put to shards");
        let other = request(&mut peers, &mut io, join()).expect("put to shards");
        for ask in [ask, ask, other] {
            assert!(peers.is_moving(ROOT));
            peers.handle_answer(at(1_001), &mut io, ask, &Answer::Granted(Some(Ok(1))));
        }
        assert!(peers.is_moving(ROOT) && !peers.is_moving(EndpointId(1)));
        peers.handle_timeouts(at(1_000 + PEER_ANSWER_MS), &mut io);
        assert!(!peers.is_moving(ROOT));
    }

    fn told(peers: &mut Peers) -> Option<(u64, bool)> {
        while let Some(output) = peers.poll_output() {
            if let Output::Told { answer: Answer::Closed(count), is_whole, .. } = output {
                return Some((count, is_whole));
            }
        }
        None
    }

    fn ask(peers: &mut Peers, io: &mut SocketIo, peered: &[EndpointId]) -> Option<String> {
        let setting = Setting { config: &config(), peered, random: &mut StdRng::from_seed([2; 32]) };
        let question = Question::CloseUser { endpoint: None, user: "alice".into(), reason: None };
        let is_asked = peers.ask(at(1_000), io, setting, 7, &question);
        let request = peers.own.keys().next().cloned();
        assert_eq!(is_asked, request.is_some());
        request
    }

    #[test]
    fn other_servers_are_counted_and_waited_for_as_long_as_the_program_waits() {
        let (mut peers, mut io) = (Peers::new(2), socket_io());
        assert_eq!(ask(&mut peers, &mut io, &[]), None);
        assert_eq!(outputs(&mut peers).0.len(), 1, "they are told all the same");

        let socket = || RemoteSocket { id: "one".into(), handshake_json: "{}".into(), rooms: Vec::new(), data_json: "{}".into() };
        let answer = |request: &str, sockets| Message::FetchAnswer { request: request.to_owned(), sockets };
        let request = ask(&mut peers, &mut io, &[ROOT]).expect("counted");
        peers.handle_answered(&mut io, answer(&request, vec![socket(), socket()]));
        assert_eq!(told(&mut peers), None, "nobody has said how many there are");
        peers.counted(&request, Some(3));
        assert_eq!(told(&mut peers), None);
        peers.handle_answered(&mut io, answer(&request, vec![socket()]));
        assert_eq!(told(&mut peers), Some((3, true)));

        let request = ask(&mut peers, &mut io, &[ROOT]).expect("counted");
        peers.counted(&request, Some(3));
        peers.handle_answered(&mut io, answer(&request, vec![socket()]));
        peers.handle_timeouts(at(1_000 + PEER_ASK_MS), &mut io);
        assert_eq!(told(&mut peers), Some((1, false)), "one is silent");

        ask(&mut peers, &mut io, &[ROOT]).expect("counted");
        peers.lose();
        assert_eq!((told(&mut peers), peers.next_ms()), (Some((0, false)), u64::MAX));
    }

    #[test]
    fn another_host_of_our_kind_is_answered_at_once_that_there_is_nobody() {
        let (mut peers, mut io) = (Peers::new(2), socket_io());
        let fetch = Message::Fetch { request: "one".into(), options: Options::default() };
        peers.handle_request(at(1_000), &mut io, ROOT, "~bcdef", fetch, 1);
        let join = Message::Join { options: Options::default(), rooms: vec!["r".into()] };
        peers.handle_request(at(1_000), &mut io, ROOT, "~bcdef", join, 1);
        let (said, put, _) = outputs(&mut peers);
        assert_eq!((said, put), (vec![r#"{"requestId":"one","sockets":[]}"#.to_owned()], Vec::new()));
    }
}
