//! What the relay knows and decides: what shards say becomes requests to Redis, and what Redis brings becomes parcels for shards. Sans-IO:
//! it has no connection, no clock and no thread, so that several hosts and a Redis of a test's own can run side by side.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::channels::{Channels, Heard};
use super::consults::{Asked, Concluded, Consults};
use super::format::Message;
use super::history::{Reading, Store};
use super::presence::Presence;
use super::request::{Call, Kind, Lost, Push, Reply, Request};
use super::rooms::{Rooms, To};
use super::socketio::{Post, SocketIo, TOLD};
use super::waiting::{OVERHEAD_BYTES, Publication, Waiting};
use crate::config::Relay;
use crate::fault::RelayDrop;
use crate::ids::{MessageId, Room, ShardId, checked_name};
use crate::limits::{RELAY_BATCH_BYTES_MAX, RELAY_IN_FLIGHT_MAX};
use crate::shard::World;
use crate::shard::consult::{Consult, Findings};
use crate::shard::history::{Found, Recall, Told};
use crate::shard::outward::{Outward, Published};
use crate::shard::parcel::{Arrival, Parcel, Roll};
use crate::shard::recollection::Recollection;
use crate::stats::RelayStats;
use crate::time::Now;

/// What a request was for; comes back with its replies.
#[derive(Debug)]
pub(crate) enum Tag {
    /// These were told.
    Published(Vec<Publication>),
    /// The questions of this number.
    Consulted(u64),
    /// In which room a message is that somebody asks for.
    RoomFound { shard: ShardId, consult: Box<Consult>, id: MessageId },
    /// What the message is.
    MessageFound { shard: ShardId, consult: Box<Consult>, room: Room },
    /// A step of the roll call of this number.
    Roll(u64),
    /// Whether Redis answers; asked then, monotonic nanoseconds.
    Ping(u64),
}

impl Tag {
    /// True exactly when somebody waits for a message that is looked for by its id.
    fn is_search(&self) -> bool {
        matches!(self, Tag::RoomFound { .. } | Tag::MessageFound { .. })
    }
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
    world: Arc<World>,
    stats: Arc<RelayStats>,
    socket_io: SocketIo,
    channels: Channels,
    presence: Presence,
    store: Store,
    rooms: Rooms,
    consults: Consults,
    is_cluster: bool,
    random: StdRng,
    is_up: bool,
    waiting: Waiting,
    /// Requests with messages that Redis has not confirmed.
    in_flight: usize,
    requests: VecDeque<(Tag, Request)>,
    listenings: VecDeque<Listening>,
    /// All that is to be listened to, for when a connection is new.
    listened: HashSet<(Kind, String)>,
    parcels: VecDeque<(ShardId, Parcel)>,
    ping_due_ms: u64,
}

/// Milliseconds between two looks at whether Redis answers.
const PING_EVERY_MS: u64 = 1_000;

impl Core {
    /// `random` seeds its secure random source; `host` is this host's id.
    pub(crate) fn new(world: Arc<World>, stats: Arc<RelayStats>, settings: &Relay, host: &str, random: [u8; 32]) -> Core {
        let mut random = StdRng::from_seed(random);
        let socket_io = SocketIo::new(&world.config, &settings.socket_io_key, &mut random);
        let channels = Channels::new(&world.config, &settings.prefix, host);
        let presence = Presence::new(&world.config, settings, host);
        let consults = Consults::new(format!("{}#mark#{host}#", settings.prefix), !settings.redis.is_cluster);
        let (store, rooms) = (Store::new(&world.config, &settings.prefix), Rooms::new(&world.config, &settings.prefix));
        let mut core = Core {
            waiting: Waiting::new(settings.buffer_bytes, Some(settings.buffer_ms)),
            world,
            stats,
            socket_io,
            channels,
            presence,
            store,
            rooms,
            consults,
            is_cluster: settings.redis.is_cluster,
            random,
            is_up: false,
            in_flight: 0,
            requests: VecDeque::new(),
            listenings: VecDeque::new(),
            listened: HashSet::new(),
            parcels: VecDeque::new(),
            ping_due_ms: 0,
        };
        core.listen_always();
        core
    }

    /// What is listened to whoever is connected.
    fn listen_always(&mut self) {
        for namespace in &self.socket_io.namespaces {
            self.listened.insert((Kind::Pattern, namespace.channels.pattern()));
            self.listened.extend(namespace.channels.subscribed(&namespace.uid).map(|channel| (Kind::Channel, channel)));
        }
        for channel in self.channels.fixed().chain(self.consults.channel()) {
            self.listened.insert((Kind::Channel, channel.to_owned()));
        }
    }

    /// A connection is new: everything is listened to again, and what has waited goes out.
    pub(crate) fn handle_connected(&mut self, now: Now) {
        self.listenings.clear();
        for kind in [Kind::Channel, Kind::Pattern, Kind::Sharded] {
            let names: Vec<String> = self.listened.iter().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect();
            if !names.is_empty() {
                self.listenings.push_back(Listening { kind, names, is_on: true });
            }
        }
        self.stats.connects.add(1);
        self.stats.subscriptions.set(self.listened.len() as u64);
        self.ping_due_ms = now.ms() + PING_EVERY_MS;
        self.consults.set_heard(false);
        self.set_up(now, true);
        let (number, request) = self.rooms.begin(&mut self.random);
        self.requests.push_back((Tag::Roll(number), request));
        self.handle_timeouts(now);
    }

    /// The connection is gone. What was in flight comes back with [`Self::handle_reply`].
    pub(crate) fn handle_lost(&mut self, now: Now) {
        self.set_up(now, false);
        self.requests.clear();
        self.listenings.clear();
        self.consults.set_heard(false);
    }

    /// Nobody can be asked: what waits for an answer gets none, in the order in which it was asked.
    fn end_consults(&mut self, now: Now) {
        let (sent, unsent) = self.consults.end();
        let told = sent.iter().filter(|asked| asked.consult.step.as_ref().is_some_and(|step| step.announcement.is_some())).count();
        // They may have been delivered or not: to send them again could deliver them twice.
        self.drop_message(RelayDrop::Unconfirmed, told as u64);
        for Asked { shard, consult, .. } in sent {
            self.answer(shard, &consult, Findings::default());
        }
        for Asked { shard, consult, .. } in unsent {
            self.answer_unknown(now, shard, consult);
        }
    }

    /// Redis does not answer, or does so again; the connection is still there.
    pub(crate) fn set_up(&mut self, now: Now, is_up: bool) {
        self.is_up = is_up;
        self.stats.connected.set(u64::from(is_up));
        self.world.is_relayed.store(is_up, Ordering::Relaxed);
        if !is_up {
            self.end_consults(now);
            let (unanswered, others) = std::mem::take(&mut self.requests).into_iter().partition(|(tag, _)| tag.is_search());
            self.requests = others;
            for (tag, _) in Vec::from(unanswered) {
                self.handle_reply(now, tag, Err(Lost::Connection));
            }
        }
    }

    /// Something of a shard's.
    pub(crate) fn handle_outward(&mut self, now: Now, shard: ShardId, outward: Outward) {
        match outward {
            Outward::Publish(published) => self.publish(now, &published),
            Outward::Consult(consult) => self.consult(now, shard, consult),
            Outward::Record { room, record } => {
                let calls = self.store.record(&room, &record);
                self.enqueue(now, calls, None, None);
            }
            Outward::Made(made) => {
                let calls = vec![self.rooms.made(&made)];
                self.enqueue(now, calls, None, Some((shard, made.new.room)));
            }
            Outward::Forget { room } => {
                let calls = vec![self.store.forget(&room), self.rooms.ended(&room)];
                self.enqueue(now, calls, None, Some((shard, room)));
            }
            Outward::Called { after } => {
                if let Some((to, roll)) = self.rooms.told(shard, after, self.waiting.place()) {
                    self.call_roll(to, roll);
                }
            }
            Outward::Answer { .. } => {}
        }
    }

    /// A room's home asks. What has changed is true from now on, whether Redis can be told now or not.
    fn consult(&mut self, now: Now, shard: ShardId, consult: Box<Consult>) {
        self.presence.note(&consult);
        if !self.is_up {
            return self.answer_unknown(now, shard, consult);
        }
        if let Some(Recall::Found(id)) = consult.recall {
            // It has no place among what others say, and its answer is another question.
            let call = self.store.room_of(consult.room.endpoint, id);
            return self.requests.push_back((Tag::RoomFound { shard, consult, id }, call.into()));
        }
        self.consults.push(shard, consult, self.waiting.place());
    }

    /// What nobody was asked: the other hosts hear of it as of any message.
    fn answer_unknown(&mut self, now: Now, shard: ShardId, mut consult: Box<Consult>) {
        if let Some(published) = consult.step.as_mut().and_then(|step| step.announcement.take()) {
            self.publish(now, &published);
        }
        self.answer(shard, &consult, Findings::default());
    }

    fn answer(&mut self, shard: ShardId, consult: &Consult, findings: Findings) {
        if let Some(ticket) = consult.ticket {
            self.parcels.push_back((shard, Parcel::Consulted { ticket, findings: Box::new(findings) }));
        }
    }

    /// The next questions as one request.
    fn next_consults(&mut self, now: Now) -> Option<(Tag, Request)> {
        let waiting = &self.waiting;
        let mut asked = self.consults.take(|place| waiting.has_passed(place));
        if asked.is_empty() {
            return None;
        }
        let mut calls = Vec::new();
        for Asked { consult, calls: count, .. } in &mut asked {
            let composed = self.compose(consult, now.unix_ms);
            *count = composed.len();
            calls.extend(composed);
        }
        let number = self.consults.sent(now.ms(), asked);
        let Some(channel) = self.consults.channel() else { return Some((Tag::Consulted(number), Request::several(calls))) };
        calls.push(Call::new("PUBLISH").arg(channel).number(number));
        Some((Tag::Consulted(number), Request::atomic(calls)))
    }

    /// What Redis is asked for one question. Whose part is whose, [`Self::findings`] knows.
    fn compose(&mut self, consult: &Consult, unix_ms: u64) -> Vec<Call> {
        let told = consult.step.as_ref().and_then(|step| step.announcement.as_ref()).filter(|_| self.presence.tells_itself());
        let post = told.and_then(|published| self.post_of(published));
        let mut calls = self.presence.calls(consult, post.as_ref());
        if let Some(Recall::Past(range)) = consult.recall {
            calls.push(self.store.read(&consult.room, range, unix_ms));
        }
        calls
    }

    /// What Redis has answered to [`Self::compose`].
    fn findings(&mut self, consult: &Consult, replies: &[Reply], unix_ms: u64) -> Findings {
        let findings = self.presence.findings(consult, replies);
        let recollection = consult.recall.and(replies.last()).and_then(|reply| self.read(reply, unix_ms)).map(Recollection::Told);
        Findings { recollection, ..findings }
    }

    /// What Redis says of a room's past; `None` where it refuses to.
    fn read(&mut self, reply: &Reply, unix_ms: u64) -> Option<Told> {
        let Reading { told, malformed } = self.store.told(reply, unix_ms);
        self.drop_message(RelayDrop::Malformed, malformed);
        if told.is_none() {
            self.drop_message(RelayDrop::Refused, 1);
        }
        told
    }

    /// Redis knows in which room a message is, or not.
    fn room_found(&mut self, now: Now, shard: ShardId, consult: Box<Consult>, id: MessageId, reply: Option<&Reply>) {
        let endpoint = consult.room.endpoint;
        match reply {
            Some(reply) if let Some(name) = reply.text().filter(|name| checked_name(name).is_ok()) => {
                let room = Room::named(endpoint, name);
                let call = self.store.find(&room, id, now.unix_ms);
                self.requests.push_back((Tag::MessageFound { shard, consult, room }, call.into()));
            }
            reply => {
                let recollection = matches!(reply, Some(Reply::Nil)).then_some(Recollection::Found(None));
                self.answer(shard, &consult, Findings { recollection, ..Findings::default() });
            }
        }
    }

    /// Redis has looked for a message.
    fn message_found(&mut self, now: Now, shard: ShardId, consult: &Consult, room: Room, reply: Option<&Reply>) {
        let told = reply.and_then(|reply| self.read(reply, now.unix_ms));
        let found = |told: Told| told.past.kept.into_iter().next().map(|kept| Found { room, kept });
        let recollection = told.map(|told| Recollection::Found(found(told)));
        self.answer(shard, consult, Findings { recollection, ..Findings::default() });
    }

    /// Whatever has been answered goes to who asked, and then what was held back meanwhile.
    fn conclude(&mut self, now: Now) {
        loop {
            while let Some(Concluded { asked, replies }) = self.consults.next_concluded() {
                let mut from = 0;
                for Asked { shard, mut consult, calls } in asked {
                    let own = replies.as_ref().and_then(|replies| replies.get(from..from + calls));
                    from += calls;
                    let findings = own.map(|replies| self.findings(&consult, replies, now.unix_ms)).unwrap_or_default();
                    let told = consult.step.as_mut().and_then(|step| step.announcement.take());
                    match told {
                        // Redis could not do it in the same breath.
                        Some(published) if !self.presence.tells_itself() && findings.is_only != Some(false) => {
                            self.publish(now, &published)
                        }
                        Some(_) if own.is_none() => self.drop_message(RelayDrop::Unconfirmed, 1),
                        _ => {}
                    }
                    self.answer(shard, &consult, findings);
                }
            }
            let Some(push) = self.consults.next_held_back() else { return };
            self.take_push(now, push);
        }
    }

    /// What other hosts are told of a publication, and where; `None` where they are not told of such.
    fn post_of(&mut self, published: &Published) -> Option<Post> {
        let endpoint = &self.world.config.endpoints[usize::from(published.room.endpoint.0)];
        if endpoint.dialect.is_socket_io() { self.socket_io.broadcast(published) } else { self.channels.publication(published) }
    }

    fn publish(&mut self, now: Now, published: &Published) {
        let mut calls = Vec::new();
        if let Some(record) = &published.record {
            calls = self.store.record(&published.room, record);
        }
        // Last: where the two cannot be done at one moment, what is heard is to be found already.
        let told = calls.len();
        match self.post_of(published) {
            Some(Post { channel, payload }) => {
                calls.push(Call::new("PUBLISH").arg(&channel).arg(&payload));
                self.enqueue(now, calls, Some(told), None);
            }
            None => {
                self.drop_message(RelayDrop::Unspeakable, 1);
                self.enqueue(now, calls, None, None);
            }
        }
    }

    fn enqueue(&mut self, now: Now, calls: Vec<Call>, told: Option<usize>, confirmed: Option<(ShardId, Room)>) {
        if calls.is_empty() {
            return;
        }
        let bytes = calls.iter().map(Call::bytes).sum::<usize>() + OVERHEAD_BYTES;
        if !self.waiting.push(Publication { calls, told, confirmed, said_ms: now.ms(), bytes }) {
            self.drop_message(RelayDrop::Overflow, 1);
        }
    }

    fn drop_message(&self, reason: RelayDrop, count: u64) {
        self.stats.dropped[reason.index()].add(count);
    }

    /// Something on a channel that is listened to.
    pub(crate) fn handle_push(&mut self, now: Now, push: Push) {
        if self.consults.holds_back() {
            self.consults.hold_back(push);
        } else {
            self.take_push(now, push);
        }
        self.conclude(now);
    }

    fn take_push(&mut self, now: Now, push: Push) {
        let (channel, payload) = match push {
            Push::Message { channel, payload, .. } => (channel, payload),
            Push::Subscribed { name, .. } => return self.heard_of_name(&name, true),
            Push::Unsubscribed { name, .. } => return self.heard_of_name(&name, false),
            Push::Interrupted { names, .. } => return names.iter().for_each(|name| self.heard_of_name(name, false)),
            Push::Silent | Push::Answering | Push::Gone(_) => return,
        };
        let Ok(channel) = String::from_utf8(channel) else { return self.drop_message(RelayDrop::Malformed, 1) };
        if self.consults.channel() == Some(&*channel) {
            return self.consults.marked(now.ms(), &payload);
        }
        let offset = self.random.next_u64();
        let heard = self
            .channels
            .heard(&channel, &payload, offset, now.unix_ms)
            .unwrap_or_else(|| self.heard_of_socket_io(now, &channel, &payload));
        match heard {
            Heard::Arrival(arrival) => {
                self.stats.received.add(1);
                self.arrive(*arrival);
            }
            Heard::Known => {}
            Heard::Malformed => self.drop_message(RelayDrop::Malformed, 1),
        }
    }

    /// What is published under a name is heard from here on, or no longer.
    fn heard_of_name(&mut self, name: &[u8], is_heard: bool) {
        if self.consults.channel().is_some_and(|channel| channel.as_bytes() == name) {
            self.consults.set_heard(is_heard);
        }
    }

    fn heard_of_socket_io(&mut self, now: Now, channel: &str, payload: &[u8]) -> Heard {
        let (endpoint, envelope) = match self.socket_io.heard(channel, payload) {
            Some((endpoint, Ok(envelope))) => (endpoint, envelope),
            Some((_, Err(_))) | None => return Heard::Malformed,
        };
        if envelope.uid.starts_with(TOLD) || self.socket_io.of(endpoint).is_some_and(|namespace| namespace.uid == envelope.uid) {
            return Heard::Known;
        }
        match envelope.message {
            Message::Broadcast { packet, options, request: None } => {
                let offset = self.random.next_u64();
                match self.socket_io.arrival(endpoint, &envelope.uid, packet, &options, offset, now.unix_ms) {
                    Some(arrival) => Heard::Arrival(Box::new(arrival)),
                    None => Heard::Malformed,
                }
            }
            _ => Heard::Known,
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        let arrival = Arc::new(arrival);
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
                match replies {
                    Ok(replies) => self.told(told, &replies),
                    // They may have been delivered or not: to send them again could deliver them twice.
                    Err(_) => self.drop_message(RelayDrop::Unconfirmed, told.len() as u64),
                }
            }
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
            (Tag::Roll(number), replies) => {
                let called = self.rooms.answered(number, replies.as_deref().ok(), self.world.config.shards.len());
                self.drop_message(RelayDrop::Malformed, called.malformed);
                for (to, roll) in called.rolls {
                    self.call_roll(to, roll);
                }
            }
            (Tag::Ping(asked_ns), Ok(_)) => self.stats.round_trip_us.set(now.ns.saturating_sub(asked_ns) / 1_000),
            (Tag::Ping(_), Err(_)) => {}
        }
    }

    fn call_roll(&mut self, to: To, roll: Roll) {
        let shards = self.world.config.shards.len();
        let to = match to {
            To::Shard(shard) => shard,
            To::Home(room) => self.world.home_of(&room),
            To::All => {
                let parcel = |shard| (ShardId(shard as u8), Parcel::Roll(Box::new(roll.clone())));
                return self.parcels.extend((0..shards).map(parcel));
            }
        };
        self.parcels.push_back((to, Parcel::Roll(Box::new(roll))));
    }

    /// Redis has done what was to be told.
    fn told(&mut self, told: Vec<Publication>, replies: &[Reply]) {
        let mut replies = replies.iter();
        for Publication { calls, told, confirmed, .. } in told {
            let mut refused = 0;
            for at in 0..calls.len() {
                match replies.next() {
                    None | Some(Reply::Error(_)) => refused += 1,
                    Some(_) if told == Some(at) => self.stats.published.add(1),
                    Some(_) => {}
                }
            }
            self.drop_message(RelayDrop::Refused, refused);
            if let Some((shard, room)) = confirmed.filter(|_| refused == 0) {
                self.parcels.push_back((shard, Parcel::Registered { room }));
            }
        }
    }

    /// What is due.
    pub(crate) fn handle_timeouts(&mut self, now: Now) {
        self.consults.expire(now.ms());
        self.conclude(now);
        let old = self.waiting.expire(now.ms());
        self.drop_message(RelayDrop::Age, old);
        if self.is_up && self.ping_due_ms <= now.ms() {
            self.ping_due_ms = now.ms() + PING_EVERY_MS;
            self.requests.push_back((Tag::Ping(now.ns), Call::new("PING").into()));
        }
        self.stats.last_turn_ms.set(now.ms());
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    pub(crate) fn poll_timeout(&self) -> u64 {
        self.consults.next_ms().into_iter().chain([self.ping_due_ms]).min().unwrap_or(self.ping_due_ms)
    }

    /// The next request to Redis.
    pub(crate) fn poll_request(&mut self, now: Now) -> Option<(Tag, Request)> {
        if !self.is_up {
            return None;
        }
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        if let Some(request) = self.next_consults(now) {
            return Some(request);
        }
        let waiting = &self.waiting;
        if let Some((number, request)) = self.rooms.next_request(|place| waiting.has_passed(place)) {
            return Some((Tag::Roll(number), request));
        }
        if self.waiting.is_empty() || self.in_flight >= RELAY_IN_FLIGHT_MAX {
            return None;
        }
        let told = self.waiting.take(RELAY_BATCH_BYTES_MAX, self.consults.place().unwrap_or(u64::MAX));
        self.in_flight += 1;
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

    /// Gauges, once a turn.
    pub(crate) fn count(&self) {
        self.stats.waiting.set(self.waiting.len() as u64);
        self.stats.waiting_bytes.set(self.waiting.bytes() as u64);
    }
}
