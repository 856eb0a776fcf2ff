//! What the relay knows and decides: what shards say becomes requests to Redis, and what Redis brings becomes parcels for shards. Sans-IO:
//! it has no connection, no clock and no thread, so that several hosts and a Redis of a test's own can run side by side.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::channels::{Channels, Heard};
use super::consults::{Consults, Marking};
use super::fleet::HostAnswers;
use super::format::{Envelope, Message};
use super::handle::{FleetPort, Order, ToRelay};
use super::history::Store;
use super::hosts::{HostTag, Hosts, Outcome};
use super::peers::{Output, Peers, Setting};
use super::presence::Presence;
use super::request::{Call, Kind, Lost, Push, Reply, Request};
use super::rooms::Rooms;
use super::sessions::{SessionTag, Sessions};
use super::socketio::{ENTRY, Place, Post, SocketIo, TOLD, random_uid};
use super::streams::{EVENTS, PLAIN, Streams};
use super::waiting::{OVERHEAD_BYTES, Publication, Waiting};
use super::words::{Hello, HostId, Wish};
use crate::Notice;
use crate::config::{Relay, RelayMode};
use crate::fault::RelayDrop;
use crate::ids::{EndpointId, MessageId, Room, ShardId, UserId};
use crate::limits::{LISTENED_AT_ONCE_MAX, PEER_HELD_BYTES_MAX, RELAY_BATCH_BYTES_MAX, RELAY_IN_FLIGHT_MAX, TYPING_MS};
use crate::shard::World;
use crate::shard::consult::Consult;
use crate::shard::outward::{Outward, Published, is_of_peer};
use crate::shard::parcel::{Answer, Arrival, Emit, Parcel, Question};
use crate::stats::RelayStats;
use crate::time::Now;
use crate::wire::sio::Offset;

mod asking;
#[cfg(test)]
mod captured;
mod keeping;
pub(super) mod looking;
mod remembering;
mod resting;

use asking::{Hearing, Named};
use keeping::{Errand, Keeping};
use looking::{Look, Looking};

/// What a request was for; comes back with its replies.
#[derive(Debug)]
pub(crate) enum Tag {
    /// These were told.
    Published(Vec<Publication>),
    /// Entries were added to the stream of this index.
    Appended(usize),
    /// About sessions.
    Session(SessionTag),
    /// The questions of this number.
    Consulted(u64),
    /// In which room a message is that somebody asks for.
    RoomFound { shard: ShardId, consult: Box<Consult>, id: MessageId },
    /// What the message is.
    MessageFound { shard: ShardId, consult: Box<Consult>, room: Room },
    /// A step of the roll call of this number.
    Roll(u64),
    /// What keeps other hosts' knowledge of this one true, and this one's of them.
    Kept(Errand),
    /// Redis does not want these names to be listened to.
    Unheard(Vec<String>),
    /// Sets of the back end.
    Looked(Look),
    /// It does not matter what is answered.
    Noted,
    /// Whether Redis answers; asked then, monotonic nanoseconds.
    Ping(u64),
    /// For the other hosts.
    Host(HostTag),
    /// How many hosts are back.
    Gathered,
    /// How many servers these namespaces have.
    Servers(Vec<EndpointId>),
    /// How many servers a namespace has, for a request of ours to them.
    Asked(EndpointId, String),
}

/// What is to be listened to from now on, or no longer.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<String>,
    pub(crate) is_on: bool,
}

/// See the module.
pub(crate) struct Core {
    pub(super) world: Arc<World>,
    pub(super) stats: Arc<RelayStats>,
    pub(super) socket_io: SocketIo,
    pub(super) peers: Peers,
    pub(super) channels: Channels,
    presence: Presence,
    store: Store,
    rooms: Rooms,
    pub(super) consults: Consults,
    /// Counts the questions of rooms' homes; and those with an announcement that is not told yet.
    pub(super) asked: u64,
    pub(super) unannounced: BTreeSet<u64>,
    is_cluster: bool,
    hosts: Hosts,
    /// Channels of rooms that are not heard yet, and what waits for that.
    hearings: BTreeMap<String, Hearing>,
    named: Named,
    keeping: Keeping,
    looking: Looking,
    random: StdRng,
    /// True exactly when there is a connection, whether Redis answers or not.
    is_connected: bool,
    /// There in the reliable mode.
    pub(super) streams: Option<Streams>,
    /// There in the reliable mode, if connections can be recovered.
    pub(super) sessions: Option<Sessions>,
    pub(super) is_up: bool,
    gathering: Option<Gathering>,
    /// Other hosts that there were when that was last known.
    known_hosts: usize,
    waiting: Waiting,
    /// Requests with messages that Redis has not confirmed, and these messages.
    in_flight: usize,
    unconfirmed: usize,
    /// True exactly when nothing new is to be begun, because of a reload.
    pub(super) is_resting: bool,
    pub(super) requests: VecDeque<(Tag, Request)>,
    listenings: VecDeque<Listening>,
    /// All that is to be listened to, for when a connection is new.
    listened: HashSet<(Kind, String)>,
    pub(super) parcels: VecDeque<(ShardId, Parcel)>,
    notices: VecDeque<Notice>,
    /// What has come for a namespace while connections of its were moved, and its bytes, by the namespace.
    held: HashMap<EndpointId, Held>,
    ping_due_ms: u64,
    beat_due_ms: u64,
}

/// Channels and what came there, and their bytes.
#[derive(Default)]
struct Held {
    words: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
}

/// While the hosts come back that were there before Redis was away.
#[derive(Debug)]
struct Gathering {
    /// Then it begins without those that are missing, monotonic milliseconds.
    until_ms: u64,
    look_ms: u64,
}

/// Longest wait for them, in milliseconds: about as long as the longest pause between two attempts of theirs.
const GATHER_MS: u64 = 5_000;
const GATHER_LOOK_MS: u64 = 100;

/// Milliseconds between two looks at whether Redis answers.
const PING_EVERY_MS: u64 = 1_000;

/// Names in one command that changes what is listened to.
const NAMES_PER_LISTENING_MAX: usize = 1_000;

impl Core {
    /// `random` seeds its secure random source; `own` is what this host says of itself.
    pub(crate) fn new(world: Arc<World>, stats: Arc<RelayStats>, settings: &Relay, own: &Hello, port: FleetPort, random: [u8; 32]) -> Core {
        let host = own.host.clone();
        let host = host.as_str();
        let mut random = StdRng::from_seed(random);
        let socket_io = SocketIo::new(&world.config, settings, &mut random);
        let streams = (settings.mode == RelayMode::Streams).then(|| Streams::new(settings, host));
        let sessions = streams.as_ref().and_then(|_| Sessions::new(&world.config, settings, host));
        let channels = Channels::new(&world.config, &settings.prefix, host, streams.is_some());
        // What is kept besides a message is as reliable as that.
        let age_max_ms = streams.is_none().then_some(settings.buffer_ms);
        let presence = Presence::new(&world.config, settings, host);
        let marking = match &streams {
            _ if settings.redis.is_cluster => Marking::None,
            Some(streams) => Marking::Streams(streams.keys()),
            None => Marking::Channel(format!("{}#mark#{host}#", settings.prefix)),
        };
        let consults = Consults::new(marking);
        let (store, rooms) = (Store::new(&world.config, &settings.prefix), Rooms::new(&world.config, &settings.prefix));
        let mut core = Core {
            waiting: Waiting::new(settings.buffer_bytes, age_max_ms),
            peers: Peers::new(world.config.shards.len()),
            world,
            stats,
            socket_io,
            channels,
            presence,
            store,
            rooms,
            consults,
            asked: 0,
            unannounced: BTreeSet::new(),
            is_cluster: settings.redis.is_cluster,
            hosts: Hosts::new(own.clone(), port, settings),
            hearings: BTreeMap::new(),
            keeping: Keeping::new(settings, own),
            named: Named::default(),
            looking: Looking::default(),
            random,
            is_connected: false,
            streams,
            sessions,
            is_up: false,
            gathering: None,
            known_hosts: 0,
            in_flight: 0,
            unconfirmed: 0,
            is_resting: false,
            requests: VecDeque::new(),
            listenings: VecDeque::new(),
            listened: HashSet::new(),
            parcels: VecDeque::new(),
            notices: VecDeque::new(),
            held: HashMap::new(),
            ping_due_ms: 0,
            beat_due_ms: 0,
        };
        core.listen_always();
        core
    }

    /// What is listened to whoever is connected.
    fn listen_always(&mut self) {
        for namespace in &self.socket_io.namespaces {
            self.listened.extend(namespace.listened());
        }
        for channel in self.channels.fixed().chain(self.consults.channel()).chain(self.hosts.channels()) {
            self.listened.insert((Kind::Channel, channel.to_owned()));
        }
    }

    /// A connection is new: everything is listened to again, and what has waited goes out.
    pub(crate) fn handle_connected(&mut self, now: Now) {
        self.listenings.clear();
        for kind in [Kind::Channel, Kind::Pattern, Kind::Sharded] {
            let mut names: Vec<String> = self.listened.iter().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect();
            // In the same order whenever the same happens: a simulation is to be played again.
            names.sort_unstable();
            for names in names.chunks(LISTENED_AT_ONCE_MAX) {
                self.listenings.push_back(Listening { kind, names: names.to_vec(), is_on: true });
            }
        }
        self.expect_all_rooms();
        self.is_connected = true;
        self.stats.connects.add(1);
        self.stats.subscriptions.set(self.listened.len() as u64);
        // At once, so that whoever looks finds a measurement.
        self.ping_due_ms = now.ms();
        self.consults.set_heard(false);
        if let Some(streams) = &mut self.streams {
            streams.handle_connected();
        }
        // What stands in a stream is heard whenever one comes.
        if self.known_hosts > 0 && self.streams.is_none() {
            // They lost it at the same moment, and each comes back at its own time: what waits is told when they can hear it.
            self.gathering = Some(Gathering { until_ms: now.ms() + GATHER_MS, look_ms: now.ms() });
            return self.handle_timeouts(now);
        }
        self.begin(now);
    }

    /// From now on everything goes to Redis.
    fn begin(&mut self, now: Now) {
        self.gathering = None;
        self.set_up(now, true);
        self.hosts.connected(now);
        self.handle_timeouts(now);
    }

    /// Looks whether as many hosts are back as there were.
    fn gather(&mut self, now: Now) {
        let Some(gathering) = &mut self.gathering else { return };
        if gathering.until_ms <= now.ms() {
            return self.begin(now);
        }
        if gathering.look_ms <= now.ms() {
            gathering.look_ms = now.ms() + GATHER_LOOK_MS;
            let [channel, ..] = self.hosts.channels();
            self.requests.push_back((Tag::Gathered, Call::new("PUBSUB").arg("NUMSUB").arg(channel).into()));
        }
    }

    /// The connection is gone. What was in flight comes back with [`Self::handle_reply`].
    pub(crate) fn handle_lost(&mut self, now: Now) {
        self.is_connected = false;
        self.set_up(now, false);
        self.requests.clear();
        self.listenings.clear();
        self.gathering = None;
        self.known_hosts = self.known_hosts.max(self.hosts.count());
        self.hosts.lost();
        self.take_outcomes();
        self.consults.set_heard(false);
        self.peers.lose();
        self.do_for_peers(now);
        self.stats.subscriptions.set(0);
    }

    /// A part of a cluster is another node's now, or was away: what this host has told it is told again.
    pub(crate) fn handle_replaced(&mut self, now: Now) {
        if let Some(streams) = &mut self.streams {
            streams.handle_replaced();
        }
        // Whoever is not there yet begins with it.
        if self.is_up {
            self.begin_anew(now);
        }
    }

    fn begin_anew(&mut self, now: Now) {
        self.keeping.begin(now.ms());
        let (number, request) = self.rooms.begin(&mut self.random);
        self.requests.push_back((Tag::Roll(number), request));
    }

    /// Redis does not answer, or does so again; the connection is still there.
    pub(crate) fn set_up(&mut self, now: Now, is_up: bool) {
        if (is_up && self.gathering.is_some()) || std::mem::replace(&mut self.is_up, is_up) == is_up {
            return;
        }
        self.stats.connected.set(u64::from(is_up));
        if !is_up {
            // What was measured before is no measurement of now.
            self.stats.round_trip_us.set(0);
        }
        self.world.is_relayed.store(is_up, Ordering::Relaxed);
        if is_up {
            self.begin_anew(now);
        } else {
            self.end_consults(now);
            self.end_looks(now, true);
            self.conclude(now);
            self.end_searches(now);
        }
    }

    /// After a reload shards may believe that Redis can be reached because it could be before.
    pub(crate) fn tell_whether_up(&self) {
        self.world.is_relayed.store(self.is_up, Ordering::Relaxed);
    }

    /// Who was somewhere before there was a relay.
    pub(crate) fn remember(&mut self, present: Vec<(Room, UserId)>) {
        for (room, presence) in present {
            if let Some(channel) = self.channels.channel_of(&room) {
                self.listened.insert((Kind::Channel, channel));
            }
            self.presence.remember(room, [presence]);
        }
    }

    /// Something of a shard's.
    pub(crate) fn handle_outward(&mut self, now: Now, shard: ShardId, outward: Outward) {
        match outward {
            Outward::Publish(published) => self.publish(now, &published),
            Outward::Told { ask, told } => {
                self.peers.handle_told(now, &mut self.socket_io, ask, told);
                self.peers_have_changed(now);
            }
            Outward::Answer { ask, answer } if is_of_peer(ask) => {
                self.peers.handle_answer(now, &mut self.socket_io, ask, &answer);
                self.peers_have_changed(now);
            }
            Outward::Consult(consult) => self.consult(now, shard, consult),
            Outward::Record { room, record } => {
                let calls = self.store.record(&room, &record);
                self.enqueue_all(now, calls, None, None);
            }
            Outward::Made(made) => {
                let calls = vec![self.rooms.made(&made)];
                self.enqueue_all(now, calls, None, Some((shard, made.new.room)));
            }
            Outward::Forget { room } => {
                let calls = vec![self.store.forget(&room), self.rooms.ended(&room)];
                self.enqueue_all(now, calls, None, Some((shard, room)));
            }
            Outward::Called { after } => self.called(shard, after),
            Outward::Inhabited { room, is_inhabited } => self.listen_to_room(&room, is_inhabited),
            Outward::Inquiry { number, inquiry } => self.look_for(now, shard, number, &inquiry),
            Outward::Answer { ask, answer } => {
                self.hosts.answered(ask, answer);
                self.take_outcomes();
            }
            outward @ (Outward::Tide { .. }
            | Outward::Session(_)
            | Outward::Fetch { .. }
            | Outward::PutBack(_)
            | Outward::Wanted(_)
            | Outward::Revoke { .. }) => self.handle_of_sessions(now, shard, outward),
        }
    }

    /// The program that the engine is embedded in wants something of other hosts.
    pub(crate) fn handle_order(&mut self, now: Now, order: ToRelay) {
        if let ToRelay::Ask(Order { wish: Wish::Shards(Question::Emit(emit)), to: None, .. }) = &order {
            self.tell_channels(now, emit);
            self.tell_stream(now, emit);
        }
        if let ToRelay::Ask(Order { ask, wish: Wish::Shards(question), to: None, has_peers, .. }) = &order
            && question.concerns_peers()
        {
            let is_asked = self.handle_question(now, *ask, question);
            if *has_peers && !is_asked {
                // There are none on that endpoint.
                self.tell_peers_answer(*ask, Vec::new(), true);
            }
        }
        self.hosts.ordered(now, order);
        self.take_outcomes();
    }

    /// Orders of that program, for whoever waits for them.
    pub(crate) fn port(&mut self) -> &mut FleetPort {
        self.hosts.port()
    }

    /// Other programs hear on a plain endpoint's channels what the back end emits; uringcast hosts are asked.
    fn tell_channels(&mut self, now: Now, emit: &Emit) {
        let world = self.world.clone();
        let Some(endpoint) = world.config.endpoints.get(usize::from(emit.to.endpoint.0)) else { return };
        if endpoint.dialect.is_socket_io() {
            return;
        }
        for post in self.channels.told(endpoint, emit) {
            self.enqueue(now, post.call());
        }
    }

    fn take_outcomes(&mut self) {
        while let Some(outcome) = self.hosts.poll() {
            match outcome {
                // Nobody could be told: who asked has a deadline of his own.
                Outcome::Request(..) if !self.is_up => {}
                Outcome::Request(tag, request) => self.requests.push_back((Tag::Host(tag), request)),
                Outcome::Put(ask, question) => {
                    let shards = self.world.config.shards.len();
                    let parcel = |shard| (ShardId(shard as u8), Parcel::Ask { ask, question: question.clone() });
                    self.parcels.extend((0..shards).map(parcel));
                    self.hosts.put(ask, shards);
                }
                Outcome::Told(ask, answers) => self.told_whose(ask, &answers),
                Outcome::Notice(notice) => self.notices.push_back(notice),
            }
        }
    }

    /// What other hosts are told of a publication, and where; `None` where they are not told of such.
    fn post_of(&mut self, published: &Published) -> Option<Post> {
        self.post_as(published, None)
    }

    /// The same in the name of another host: then this one hears it too.
    fn post_as(&mut self, published: &Published, other: Option<&str>) -> Option<Post> {
        let endpoint = &self.world.config.endpoints[usize::from(published.room.endpoint.0)];
        if endpoint.dialect.is_socket_io() {
            let uid = other.map(|_| random_uid(&mut self.random));
            self.socket_io.broadcast(published, uid.as_deref())
        } else {
            self.channels.publication(published, other)
        }
    }

    fn publish(&mut self, now: Now, published: &Published) {
        if let Some((room, user, on)) = self.channels.typing(published).filter(|_| self.is_up) {
            self.requests.push_back((Tag::Noted, Request::several(typing(&room, &user, on, now.unix_ms))));
        }
        // What finds no place is not made ready either: a flood would leave no time for what does.
        let is_socket_io = self.world.config.endpoints[usize::from(published.room.endpoint.0)].dialect.is_socket_io();
        let stream = if is_socket_io { EVENTS } else { PLAIN };
        let is_choked = match &self.streams {
            Some(streams) => streams.is_choked(stream),
            None => self.waiting.is_choked(),
        };
        if is_choked {
            return self.overflow(stream);
        }
        let mut calls = Vec::new();
        if let Some(record) = &published.record {
            calls = self.store.record(&published.room, record);
        }
        // Last: where the two cannot be done at one moment, what is heard is to be found already.
        let told = calls.len();
        match self.post_of(published) {
            Some(post) => {
                calls.push(post.call());
                self.enqueue_all(now, calls, Some(told), None);
            }
            None => {
                self.drop_message(RelayDrop::Unspeakable, 1);
                self.mark_gap(stream);
                self.enqueue_all(now, calls, None, None);
            }
        }
    }

    /// A room's own channel is listened to while somebody is in.
    fn listen_to_room(&mut self, room: &Room, is_on: bool) {
        let Some(channel) = self.socket_io.channel_of(room) else { return };
        let key = (Kind::Sharded, channel);
        let has_changed = if is_on { self.listened.insert(key.clone()) } else { self.listened.remove(&key) };
        self.stats.subscriptions.set(self.listened.len() as u64);
        // Without a connection it is listened to as soon as there is one.
        if !has_changed || !self.is_connected {
            return;
        }
        match self.listenings.back_mut() {
            Some(last) if last.kind == Kind::Sharded && last.is_on == is_on && last.names.len() < NAMES_PER_LISTENING_MAX => {
                last.names.push(key.1);
            }
            _ => self.listenings.push_back(Listening { kind: Kind::Sharded, names: vec![key.1], is_on }),
        }
    }

    pub(super) fn enqueue(&mut self, now: Now, call: Call) {
        self.enqueue_all(now, vec![call], Some(0), None);
    }

    /// What is to be told, all at one moment: the one call by which others hear of it, and who is to know when it is done.
    fn enqueue_all(&mut self, now: Now, mut calls: Vec<Call>, mut told: Option<usize>, confirmed: Option<(ShardId, Room)>) {
        // What others are not told has its place among the entries, too: a room's past ends behind the last message.
        let after = (self.streams.is_some() && told.is_none()).then(|| self.last_entries());
        if let Some(at) = told.filter(|_| self.streams.is_some()) {
            // What hosts of ours are to hear goes by way of a stream, and at the same moment what is kept of it, where that is possible.
            let told_call = calls.remove(at);
            let besides = if self.is_cluster { Vec::new() } else { std::mem::take(&mut calls) };
            let is_entry = self.append(&told_call, &besides);
            if !is_entry {
                calls.extend(besides);
            }
            told = (!is_entry || told_call.word(0) != ENTRY.as_bytes()).then(|| {
                calls.push(told_call);
                calls.len() - 1
            });
        }
        if calls.is_empty() {
            return;
        }
        let bytes = calls.iter().map(Call::bytes).sum::<usize>() + OVERHEAD_BYTES;
        let publish = told.and_then(|told| calls.get(told)).filter(|call| call.word(0) == b"PUBLISH");
        let is_for_all = publish.is_some_and(|call| self.all_listen_to(call.word(1)));
        if !self.waiting.push(Publication { calls, told, confirmed, after, said_ms: now.ms(), bytes, is_for_all }) {
            self.drop_message(RelayDrop::Overflow, 1);
        }
    }

    /// True exactly when every uringcast host listens to a channel, whoever is connected there.
    fn all_listen_to(&self, channel: &[u8]) -> bool {
        let Ok(channel) = std::str::from_utf8(channel) else { return false };
        self.channels.fixed().any(|fixed| fixed == channel)
            || self.socket_io.place(channel).is_some_and(|place| !place.is_for_answers && place.is_classic())
    }

    /// True exactly when it is a broadcast that every host hears whose namespace it is.
    fn is_broadcast(&self, publication: &Publication) -> bool {
        let channel = publication.told.and_then(|told| publication.calls.get(told)).map(|call| call.word(1));
        let place = channel.and_then(|channel| self.socket_io.place(std::str::from_utf8(channel).ok()?));
        publication.is_for_all && place.is_some_and(|place| place.is_broadcast())
    }

    pub(super) fn drop_message(&self, reason: RelayDrop, count: u64) {
        self.stats.dropped[reason.index()].add(count);
    }

    /// Something on a channel that is listened to.
    pub(crate) fn handle_push(&mut self, now: Now, push: Push) {
        if self.consults.holds_back() || self.looking.holds_back() {
            if !self.consults.hold_back(push) {
                self.end_looks(now, true);
            }
        } else {
            self.take_push(now, push);
        }
        self.conclude(now);
    }

    fn take_push(&mut self, now: Now, push: Push) {
        let (channel, payload) = match push {
            Push::Message { channel, payload, .. } => (channel, payload),
            Push::Subscribed { name, .. } => return self.hear_name(&name),
            Push::Interrupted { kind, names } => return names.iter().for_each(|name| self.miss_name(kind, name)),
            Push::Unsubscribed { .. } => return,
            Push::Replaced | Push::Silent | Push::Answering | Push::Gone(_) => return,
        };
        let Ok(channel) = String::from_utf8(channel) else { return self.drop_message(RelayDrop::Malformed, 1) };
        if self.consults.channel() == Some(&*channel) {
            return self.consults.marked(now.ms(), &payload);
        }
        if self.hosts.heard(now, &channel, &payload) {
            let missed = self.hosts.take_missed();
            self.drop_message(RelayDrop::Missed, missed);
            return self.take_outcomes();
        }
        let offset = self.random.next_u64();
        let heard = self
            .channels
            .heard(&channel, &payload, false, offset, now.unix_ms)
            .unwrap_or_else(|| self.heard_of_socket_io(now, &channel, &payload));
        self.take_heard(now, heard);
    }

    pub(super) fn take_heard(&mut self, now: Now, heard: Heard) {
        match heard {
            Heard::Arrival(arrival) => {
                self.stats.received.add(1);
                self.arrive(*arrival);
            }
            Heard::Of(author, arrival) => {
                self.stats.received.add(1);
                self.arrive_of(now, author, arrival);
            }
            Heard::Known => {}
            Heard::Malformed => self.drop_message(RelayDrop::Malformed, 1),
        }
    }

    fn heard_of_socket_io(&mut self, now: Now, channel: &str, payload: &[u8]) -> Heard {
        let Some(place) = self.socket_io.place(channel) else { return Heard::Malformed };
        if !place.is_for_answers && self.peers.is_moving(place.endpoint) {
            if self.hold(place.endpoint, channel, payload) {
                return Heard::Known;
            }
            self.release_of(now, place.endpoint, true);
        }
        self.take_word(now, place, payload)
    }

    /// Holds back what has come for a namespace; false where that would be too much.
    fn hold(&mut self, endpoint: EndpointId, channel: &str, payload: &[u8]) -> bool {
        let Held { words, bytes } = self.held.entry(endpoint).or_default();
        let size = channel.len() + payload.len() + OVERHEAD_BYTES;
        if *bytes + size > PEER_HELD_BYTES_MAX {
            return false;
        }
        *bytes += size;
        words.push_back((channel.to_owned(), payload.to_owned()));
        true
    }

    /// Something of another server of a namespace.
    fn take_word(&mut self, now: Now, place: Place<'_>, payload: &[u8]) -> Heard {
        let endpoint = place.endpoint;
        let Ok(envelope) = self.socket_io.read(place, payload) else { return Heard::Malformed };
        if self.socket_io.is_ours(endpoint, &envelope.uid) {
            return Heard::Known;
        }
        if matches!(envelope.message, Message::Broadcast { request: None, .. }) {
            self.hosts.beats().hear(&envelope.uid);
        }
        let offset = Offset::Own(self.random.next_u64());
        self.take_envelope(now, endpoint, envelope, offset, place.is_for_answers)
    }

    /// What another server of a namespace says, whichever way it came.
    pub(super) fn take_envelope(&mut self, now: Now, endpoint: EndpointId, envelope: Envelope, offset: Offset, is_answer: bool) -> Heard {
        match envelope.message {
            Message::Broadcast { request: None, .. } if envelope.uid.starts_with(TOLD) => Heard::Known,
            Message::Broadcast { packet, options, request: None } => {
                match self.socket_io.arrival(endpoint, &envelope.uid, packet, &options, offset, now.unix_ms) {
                    Some(arrival) => Heard::Arrival(Box::new(arrival)),
                    None => Heard::Malformed,
                }
            }
            message => {
                if is_answer {
                    self.peers.handle_answered(&mut self.socket_io, message);
                } else {
                    let number = self.random.next_u64();
                    self.peers.handle_request(now, &mut self.socket_io, endpoint, &envelope.uid, message, number);
                }
                self.do_for_peers(now);
                Heard::Known
            }
        }
    }

    /// Something has come of what other servers want.
    fn peers_have_changed(&mut self, now: Now) {
        self.do_for_peers(now);
        self.release(now);
    }

    /// Handles what was held back for namespaces in which nobody is moved any more.
    fn release(&mut self, now: Now) {
        if self.held.is_empty() {
            return;
        }
        let free: Vec<EndpointId> = self.held.keys().copied().filter(|endpoint| !self.peers.is_moving(*endpoint)).collect();
        for endpoint in free {
            self.release_of(now, endpoint, false);
        }
    }

    /// Handles what was held back for a namespace, until somebody is moved again; all of it where there is no more place.
    fn release_of(&mut self, now: Now, endpoint: EndpointId, is_full: bool) {
        while is_full || !self.peers.is_moving(endpoint) {
            let Some(Held { words, bytes }) = self.held.get_mut(&endpoint) else { return };
            let Some((channel, payload)) = words.pop_front() else {
                self.held.remove(&endpoint);
                return;
            };
            *bytes -= channel.len() + payload.len() + OVERHEAD_BYTES;
            let Some(place) = self.socket_io.place(&channel) else { continue };
            let heard = self.take_word(now, place, &payload);
            self.take_heard(now, heard);
        }
    }

    pub(super) fn arrive(&mut self, arrival: impl Into<Arc<Arrival>>) {
        let arrival = arrival.into();
        match arrival.room() {
            Some(room) => self.parcels.push_back((self.world.home_of(&room), Parcel::Arrival(arrival))),
            None => {
                let shards = self.world.config.shards.len();
                self.parcels.extend((0..shards).map(|shard| (ShardId(shard as u8), Parcel::Arrival(arrival.clone()))));
            }
        }
    }

    /// Redis has answered a request, or never will.
    pub(crate) fn handle_reply(&mut self, now: Now, tag: Tag, replies: Result<Vec<Reply>, Lost>) {
        match (tag, replies) {
            (Tag::Published(told), replies) => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.unconfirmed = self.unconfirmed.saturating_sub(told.len());
                match replies {
                    Ok(replies) => self.told(told, &replies),
                    // They may have been delivered or not: to send them again could deliver them twice.
                    Err(_) => self.drop_message(RelayDrop::Unconfirmed, told.len() as u64),
                }
            }
            (Tag::Appended(stream), replies) => self.handle_appended(now, stream, replies.as_deref().map_err(|lost| *lost)),
            (Tag::Session(tag), replies) => self.replied_of_sessions(now, &tag, replies.as_deref().ok()),
            (Tag::Consulted(number), replies) => {
                self.consults.answered(number, replies.ok());
                self.conclude(now);
            }
            (Tag::RoomFound { shard, consult, id }, replies) => {
                self.room_found(now, shard, consult, id, replies.ok().as_ref().and_then(|replies| replies.first()));
            }
            (Tag::MessageFound { shard, consult, room }, replies) => {
                self.message_found(now, shard, &consult, room, replies.ok().as_ref().and_then(|replies| replies.first()));
            }
            (Tag::Roll(number), replies) => self.rolled(number, replies.as_deref().ok()),
            (Tag::Kept(errand), replies) => self.kept(now, errand, replies.ok()),
            (Tag::Unheard(names), _) => names.iter().for_each(|name| self.hear_name(name.as_bytes())),
            (Tag::Looked(look), replies) => self.looked(now, &look, replies.ok().as_deref()),
            (Tag::Noted, _) => {}
            (Tag::Ping(asked_ns), Ok(_)) if self.is_up => self.stats.round_trip_us.set((now.ns.saturating_sub(asked_ns) / 1_000).max(1)),
            (Tag::Ping(_), _) => {}
            (Tag::Gathered, replies) => {
                let hosts = replies.ok().and_then(|replies| replies.first()?.list().get(1)?.int());
                if self.gathering.is_some() && hosts.is_some_and(|hosts| hosts > self.known_hosts as i64) {
                    self.begin(now);
                }
            }
            (Tag::Host(tag), replies) => {
                self.hosts.replied(now, tag, replies.ok().as_deref());
                self.take_outcomes();
            }
            (Tag::Servers(endpoints), replies) => {
                for (endpoint, reply) in endpoints.into_iter().zip(replies.unwrap_or_default()) {
                    self.note_servers(endpoint, &reply);
                }
            }
            (Tag::Asked(endpoint, request), replies) => {
                let servers = replies.ok().and_then(|replies| self.note_servers(endpoint, replies.first()?));
                self.peers.counted(&request, servers);
                self.do_for_peers(now);
            }
        }
    }

    /// Takes `[channel, subscribers]`.
    fn note_servers(&mut self, endpoint: EndpointId, reply: &Reply) -> Option<u64> {
        let servers = u64::try_from(reply.list().get(1)?.int()?).ok()?;
        self.socket_io.of_mut(endpoint)?.servers = servers;
        let hosts = self.hosts.count() as u64 + 1;
        let has_peers = self.socket_io.namespaces.iter().any(|namespace| namespace.servers > hosts);
        self.hosts.port().set_peers(has_peers);
        Some(servers)
    }

    /// Asks how many servers there are.
    fn count_servers(&mut self) {
        let (endpoints, calls): (Vec<_>, Vec<_>) =
            self.socket_io.namespaces.iter().map(|namespace| (namespace.endpoint, namespace.count_call())).unzip();
        if !calls.is_empty() {
            self.requests.push_back((Tag::Servers(endpoints), Request::several(calls)));
        }
    }

    /// A question of the program's: whatever of it concerns servers that are no uringcast hosts is passed on to them. True when their answer
    /// will come.
    pub(crate) fn handle_question(&mut self, now: Now, ask: u64, question: &Question) -> bool {
        let hosts = self.hosts.count() as u64 + 1;
        let (socket_io, is_up) = (&mut self.socket_io, self.is_up);
        let peered: Vec<EndpointId> = socket_io.namespaces.iter().filter(|it| is_up && it.servers > hosts).map(|it| it.endpoint).collect();
        let setting = Setting { config: &self.world.config, peered: &peered, random: &mut self.random };
        let is_asked = self.peers.ask(now, socket_io, setting, ask, question);
        self.do_for_peers(now);
        is_asked
    }

    /// The program is told what servers answer that are no uringcast hosts.
    fn tell_peers_answer(&mut self, ask: u64, answers: Vec<Answer>, is_whole: bool) {
        let answers = HostAnswers { host: HostId::peers(), answers, is_whole };
        self.notices.push_back(Notice::HostAnswer { ask, answers });
    }

    /// Does what the bookkeeping of other servers wants done.
    fn do_for_peers(&mut self, now: Now) {
        while let Some(output) = self.peers.poll_output() {
            match output {
                // What the back end says has gone there already, with its offset.
                Output::Say(post) if post.fields.iter().any(|field| field.0 == "type" && field.1 == "3") => {}
                Output::Say(post) => self.enqueue(now, post.call()),
                Output::Put(shard, parcel) => self.parcels.push_back((shard, parcel)),
                Output::Count(endpoint, request) => {
                    if let Some(namespace) = self.socket_io.of(endpoint) {
                        self.requests.push_back((Tag::Asked(endpoint, request), namespace.count_call().into()));
                    }
                }
                Output::Told { ask, answer, is_whole } => self.tell_peers_answer(ask, vec![answer], is_whole),
                Output::Dropped(reason, count) => self.drop_message(reason, count),
            }
        }
    }

    /// What is due.
    pub(crate) fn handle_timeouts(&mut self, now: Now) {
        self.consults.expire(now.ms());
        self.end_looks(now, false);
        self.conclude(now);
        let old = self.waiting.expire(now.ms());
        self.drop_message(RelayDrop::Age, old);
        if let Some(streams) = &mut self.streams {
            streams.handle_timeouts(now);
        }
        self.go_on_with_sessions(now);
        // Also while there is nobody to ask: this is what the thread wakes for, and a time in the past would wake it for ever.
        if self.ping_due_ms <= now.ms() {
            self.ping_due_ms = now.ms() + PING_EVERY_MS;
            if self.is_up {
                self.requests.push_back((Tag::Ping(now.ns), Call::new("PING").into()));
                self.count_servers();
            }
        }
        self.gather(now);
        if self.is_up {
            self.keep(now);
            self.known_hosts = self.hosts.count().max(if self.hosts.count() == 0 { self.known_hosts } else { 0 });
        }
        self.hosts.handle_timeouts(now);
        self.take_outcomes();
        self.peers.handle_timeouts(now, &mut self.socket_io);
        self.peers_have_changed(now);
        self.stats.last_turn_ms.set(now.ms());
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    pub(crate) fn poll_timeout(&self) -> u64 {
        let kept_ms = if self.is_up { self.keeping.next_ms() } else { u64::MAX };
        let gathering_ms = self.gathering.as_ref().map_or(u64::MAX, |gathering| gathering.look_ms.min(gathering.until_ms));
        let due = [gathering_ms, self.ping_due_ms, self.hosts.next_ms(), kept_ms, self.peers.next_ms(), self.looking.next_ms()];
        let of_streams = self
            .streams
            .as_ref()
            .map(|streams| streams.poll_timeout(self.is_up))
            .into_iter()
            .chain(self.sessions.as_ref().map(Sessions::poll_timeout));
        self.consults.next_ms().into_iter().chain(of_streams).chain(due).min().unwrap_or(self.ping_due_ms)
    }

    /// The next request to Redis.
    pub(crate) fn poll_request(&mut self, now: Now) -> Option<(Tag, Request)> {
        if !self.is_up && self.gathering.is_none() {
            return None;
        }
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        if !self.is_up {
            return None;
        }
        let before = self.consults.entries().into_iter().chain(self.waiting.entries());
        let until = before.reduce(|one, other| [one[0].min(other[0]), one[1].min(other[1])]).unwrap_or([u64::MAX; 2]);
        if let Some(append) = self.streams.as_mut().and_then(|streams| streams.poll_append(now, until)) {
            return Some(append);
        }
        if let Some(request) = self.next_of_sessions(now) {
            return Some(request);
        }
        if let Some(request) = self.next_consults(now) {
            return Some(request);
        }
        let waiting = &self.waiting;
        if let Some((number, request)) = self.rooms.next_request(|place| waiting.has_passed(place)) {
            return Some((Tag::Roll(number), request));
        }
        if self.beat_due_ms <= now.ms() {
            // Made now and not when it was due: it stands behind what it counts.
            self.beat_due_ms = now.ms() + PING_EVERY_MS;
            let uids = self.socket_io.namespaces.iter().flat_map(|namespace| [&*namespace.uid, &*namespace.told_uid]);
            return Some((Tag::Noted, self.hosts.beat(uids).into()));
        }
        // What a cluster's node refuses because it is the wrong one is sent again: nothing may overtake it.
        let in_flight_max = if self.is_cluster { 1 } else { RELAY_IN_FLIGHT_MAX };
        if self.waiting.is_empty() || self.in_flight >= in_flight_max {
            return None;
        }
        let streams = &self.streams;
        let has_passed = |after| streams.as_ref().is_none_or(|streams| streams.has_passed(after));
        let told = self.waiting.take(RELAY_BATCH_BYTES_MAX, self.consults.place().unwrap_or(u64::MAX), has_passed);
        if told.is_empty() {
            return None;
        }
        self.in_flight += 1;
        self.unconfirmed += told.len();
        let broadcasts = told.iter().filter(|publication| self.is_broadcast(publication)).count();
        self.hosts.beats().tell(broadcasts as u64);
        let calls = told.iter().flat_map(|publication| &publication.calls).cloned().collect();
        // Whoever enters on another host finds a message in the room's past or hears it, and never both.
        let is_atomic = !self.is_cluster && told.iter().any(|publication| publication.calls.len() > 1);
        Some((Tag::Published(told), Request { calls, is_atomic }))
    }

    /// The next change of what is listened to.
    pub(crate) fn poll_listening(&mut self) -> Option<Listening> {
        self.listenings.pop_front()
    }

    /// The next parcel for a shard.
    pub(crate) fn poll_parcel(&mut self) -> Option<(ShardId, Parcel)> {
        self.parcels.pop_front()
    }

    /// The next thing that the program is told.
    pub(crate) fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Gauges, once a turn.
    pub(crate) fn count(&self) {
        self.stats.hosts.set(self.hosts.count() as u64);
        let (entries, bytes) = self.streams.as_ref().map_or((0, 0), Streams::waiting);
        self.stats.journal_bytes.set(self.sessions.as_ref().map_or(0, |sessions| sessions.journal.bytes()) as u64);
        self.stats.waiting.set((self.waiting.len() + entries) as u64);
        self.stats.waiting_bytes.set((self.waiting.bytes() + bytes) as u64);
    }
}

/// Who types in a channel, for programs that look.
fn typing(channel: &str, user: &str, on: bool, unix_ms: u64) -> Vec<Call> {
    let key = format!("{channel}:typing");
    if !on {
        return vec![Call::new("HDEL").arg(key).arg(user)];
    }
    vec![Call::new("HSET").arg(&key).arg(user).number(unix_ms), Call::new("PEXPIRE").arg(&key).number(TYPING_MS)]
}

#[cfg(test)]
mod tests;
