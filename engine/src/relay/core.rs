//! What the relay knows and decides: what shards say becomes requests to Redis, and what Redis brings becomes parcels for shards. Sans-IO:
//! it has no connection, no clock and no thread, so that several hosts and a Redis of a test's own can run side by side.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::channels::{Channels, Heard};
use super::consults::{Asked, Concluded, Consults};
use super::format::{Envelope, Message};
use super::handle::{FleetPort, ToRelay};
use super::hosts::{HostTag, Hosts, Outcome};
use super::presence::Presence;
use super::request::{Call, Kind, Lost, Push, Reply, Request};
use super::sessions::{SessionTag, Sessions};
use super::socketio::{Post, SocketIo, TOLD};
use super::streams::Streams;
use super::waiting::{OVERHEAD_BYTES, Publication, Waiting};
use super::words::Hello;
use crate::Notice;
use crate::config::{Relay, RelayMode};
use crate::fault::RelayDrop;
use crate::ids::{EndpointId, ShardId};
use crate::limits::{RELAY_BATCH_BYTES_MAX, RELAY_IN_FLIGHT_MAX};
use crate::shard::World;
use crate::shard::consult::{Consult, Findings};
use crate::shard::outward::{Outward, Published};
use crate::shard::parcel::{Arrival, Parcel};
use crate::stats::RelayStats;
use crate::time::Now;
use crate::wire::sio::Offset;

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
    /// Whether Redis answers; asked then, monotonic nanoseconds.
    Ping(u64),
    /// For the other hosts.
    Host(HostTag),
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
    pub(super) channels: Channels,
    presence: Presence,
    consults: Consults,
    /// Questions of rooms' homes that have come, and those of them that are done with, which is in their order.
    pub(super) consulted: u64,
    pub(super) concluded: u64,
    hosts: Hosts,
    random: StdRng,
    /// There in the reliable mode.
    pub(super) streams: Option<Streams>,
    /// There in the reliable mode, if connections can be recovered.
    pub(super) sessions: Option<Sessions>,
    pub(super) is_up: bool,
    waiting: Waiting,
    /// Requests with messages that Redis has not confirmed.
    in_flight: usize,
    pub(super) requests: VecDeque<(Tag, Request)>,
    listenings: VecDeque<Listening>,
    /// All that is to be listened to, for when a connection is new.
    listened: HashSet<(Kind, String)>,
    pub(super) parcels: VecDeque<(ShardId, Parcel)>,
    notices: VecDeque<Notice>,
    ping_due_ms: u64,
}

/// Milliseconds between two looks at whether Redis answers.
const PING_EVERY_MS: u64 = 1_000;

impl Core {
    /// `random` seeds its secure random source; `own` is what this host says of itself.
    pub(crate) fn new(world: Arc<World>, stats: Arc<RelayStats>, settings: &Relay, own: Hello, port: FleetPort, random: [u8; 32]) -> Core {
        let host = own.host.clone();
        let host = host.as_str();
        let mut random = StdRng::from_seed(random);
        let socket_io = SocketIo::new(&world.config, &settings.socket_io_key, &mut random);
        let streams = (settings.mode == RelayMode::Streams).then(|| Streams::new(settings, host));
        let sessions = streams.as_ref().and_then(|_| Sessions::new(&world.config, settings, host));
        let channels = Channels::new(&world.config, &settings.prefix, host, streams.is_some());
        let presence = Presence::new(&world.config, settings, host);
        let consults = Consults::new(format!("{}#mark#{host}#", settings.prefix), !settings.redis.is_cluster);
        let mut core = Core {
            waiting: Waiting::new(settings.buffer_bytes, Some(settings.buffer_ms)),
            world,
            stats,
            socket_io,
            channels,
            presence,
            consults,
            consulted: 0,
            concluded: 0,
            hosts: Hosts::new(own, port, settings),
            random,
            streams,
            sessions,
            is_up: false,
            in_flight: 0,
            requests: VecDeque::new(),
            listenings: VecDeque::new(),
            listened: HashSet::new(),
            parcels: VecDeque::new(),
            notices: VecDeque::new(),
            ping_due_ms: 0,
        };
        core.listen_always();
        core
    }

    /// What is listened to whoever is connected.
    fn listen_always(&mut self) {
        // Servers that are told of each other by streams do not count those that listen to the classic channels.
        let namespaces = if self.streams.is_some() { &[][..] } else { &self.socket_io.namespaces };
        for namespace in namespaces {
            self.listened.insert((Kind::Pattern, namespace.channels.pattern()));
            self.listened.extend(namespace.channels.subscribed(&namespace.uid).map(|channel| (Kind::Channel, channel)));
        }
        for channel in self.channels.fixed().chain(self.consults.channel()).chain(self.hosts.channels()) {
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
        if let Some(streams) = &mut self.streams {
            streams.handle_connected();
        }
        // At once, so that whoever looks finds a measurement.
        self.ping_due_ms = now.ms();
        self.consults.set_heard(false);
        self.set_up(now, true);
        self.hosts.connected(now);
        self.handle_timeouts(now);
    }

    /// The connection is gone. What was in flight comes back with [`Self::handle_reply`].
    pub(crate) fn handle_lost(&mut self, now: Now) {
        self.set_up(now, false);
        self.requests.clear();
        self.listenings.clear();
        self.hosts.lost();
        self.take_outcomes();
        self.consults.set_heard(false);
        self.stats.subscriptions.set(0);
    }

    /// Nobody can be asked: what waits for an answer gets none, in the order in which it was asked.
    pub(super) fn end_consults(&mut self, now: Now) {
        let (sent, unsent) = self.consults.end();
        let told = sent.iter().filter(|asked| asked.consult.step.as_ref().is_some_and(|step| step.announcement.is_some())).count();
        // They may have been delivered or not: to send them again could deliver them twice. Where Redis does not tell them, they were not.
        let tells_itself = self.tells_itself();
        self.drop_message(RelayDrop::Unconfirmed, if tells_itself { told as u64 } else { 0 });
        for Asked { shard, consult, .. } in sent {
            if tells_itself {
                self.answer(shard, &consult, Findings::default());
            } else {
                self.answer_unknown(now, shard, consult);
            }
        }
        for Asked { shard, consult, .. } in unsent {
            self.answer_unknown(now, shard, consult);
        }
    }

    /// Redis does not answer, or does so again; the connection is still there.
    pub(crate) fn set_up(&mut self, now: Now, is_up: bool) {
        self.is_up = is_up;
        self.stats.connected.set(u64::from(is_up));
        if !is_up {
            // What was measured before is no measurement of now.
            self.stats.round_trip_us.set(0);
        }
        self.world.is_relayed.store(is_up, Ordering::Relaxed);
        if !is_up {
            self.end_consults(now);
        }
    }

    /// Something of a shard's.
    pub(crate) fn handle_outward(&mut self, now: Now, shard: ShardId, outward: Outward) {
        match outward {
            Outward::Publish(published) => self.publish(now, &published),
            Outward::Consult(consult) => self.consult(now, shard, consult),
            Outward::Answer { ask, answer } => {
                self.hosts.answered(ask, answer);
                self.take_outcomes();
            }
            outward => self.handle_of_sessions(now, shard, outward),
        }
    }

    /// The program that the engine is embedded in wants something of other hosts.
    pub(crate) fn handle_order(&mut self, now: Now, order: ToRelay) {
        if let ToRelay::Ask(order) = &order {
            self.append_order(order);
        }
        self.hosts.ordered(now, order);
        self.take_outcomes();
    }

    /// Orders of that program, for whoever waits for them.
    pub(crate) fn port(&mut self) -> &mut FleetPort {
        self.hosts.port()
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
                Outcome::Notice(notice) => self.notices.push_back(notice),
            }
        }
    }

    /// A room's home asks. What has changed is true from now on, whether Redis can be told now or not.
    fn consult(&mut self, now: Now, shard: ShardId, consult: Box<Consult>) {
        self.presence.note(&consult);
        self.consulted += 1;
        if !self.is_up {
            return self.answer_unknown(now, shard, consult);
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
        self.concluded += 1;
        if let Some(ticket) = consult.ticket {
            self.parcels.push_back((shard, Parcel::Consulted { ticket, findings: Box::new(findings) }));
        }
    }

    /// The next questions as one request.
    fn next_consults(&mut self, now_ms: u64) -> Option<(Tag, Request)> {
        let waiting = &self.waiting;
        let mut asked = self.consults.take(|place| waiting.has_passed(place));
        if asked.is_empty() {
            return None;
        }
        let mut calls = Vec::new();
        for Asked { consult, calls: count, .. } in &mut asked {
            let composed = self.compose(consult);
            *count = composed.len();
            calls.extend(composed);
        }
        let number = self.consults.sent(now_ms, asked);
        let Some(channel) = self.consults.channel() else { return Some((Tag::Consulted(number), Request::several(calls))) };
        calls.push(Call::new("PUBLISH").arg(channel).number(number));
        Some((Tag::Consulted(number), Request::atomic(calls)))
    }

    /// What Redis is asked for one question. Whose part is whose, [`Self::findings`] knows.
    fn compose(&mut self, consult: &Consult) -> Vec<Call> {
        let told = consult.step.as_ref().and_then(|step| step.announcement.as_ref()).filter(|_| self.tells_itself());
        let post = told.and_then(|published| self.post_of(published));
        self.presence.calls(consult, post.as_ref())
    }

    /// What Redis has answered to [`Self::compose`].
    fn findings(&mut self, consult: &Consult, replies: &[Reply]) -> Findings {
        self.presence.findings(consult, replies)
    }

    /// Whatever has been answered goes to who asked, and then what was held back meanwhile.
    fn conclude(&mut self, now: Now) {
        loop {
            while let Some(Concluded { asked, replies }) = self.consults.next_concluded() {
                let mut from = 0;
                for Asked { shard, mut consult, calls } in asked {
                    let own = replies.as_ref().and_then(|replies| replies.get(from..from + calls));
                    from += calls;
                    let findings = own.map(|replies| self.findings(&consult, replies)).unwrap_or_default();
                    let told = consult.step.as_mut().and_then(|step| step.announcement.take());
                    match told {
                        // Redis could not do it in the same breath.
                        Some(published) if !self.tells_itself() && findings.is_only != Some(false) => self.publish(now, &published),
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

    /// True exactly when Redis tells the others itself of who comes and goes, in the same breath in which it counts them.
    fn tells_itself(&self) -> bool {
        self.streams.is_none() && self.presence.tells_itself()
    }

    fn publish(&mut self, now: Now, published: &Published) {
        if self.streams.is_some() {
            return self.append(now, published);
        }
        match self.post_of(published) {
            Some(post) => self.post(now, &post),
            None => self.drop_message(RelayDrop::Unspeakable, 1),
        }
    }

    pub(super) fn post(&mut self, now: Now, post: &Post) {
        let Post { channel, payload } = post;
        let bytes = channel.len() + payload.len() + OVERHEAD_BYTES;
        let call = Call::new("PUBLISH").arg(channel).arg(payload);
        self.enqueue(Publication { call, said_ms: now.ms(), bytes });
    }

    fn enqueue(&mut self, publication: Publication) {
        if !self.waiting.push(publication) {
            self.drop_message(RelayDrop::Overflow, 1);
        }
    }

    pub(super) fn drop_message(&self, reason: RelayDrop, count: u64) {
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
        if self.hosts.heard(now, &channel, &payload) {
            return self.take_outcomes();
        }
        let offset = self.random.next_u64();
        let heard = self
            .channels
            .heard(&channel, &payload, false, offset, now.unix_ms)
            .unwrap_or_else(|| self.heard_of_socket_io(now, &channel, &payload));
        self.take_heard(heard);
    }

    pub(super) fn take_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Arrival(arrival) => {
                self.stats.received.add(1);
                self.arrive(Arc::new(*arrival));
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
        let offset = self.random.next_u64();
        self.heard_of_envelope(now, endpoint, envelope, offset.into())
    }

    /// What another server says in a namespace, whichever way it came.
    pub(super) fn heard_of_envelope(&mut self, now: Now, endpoint: EndpointId, envelope: Envelope, offset: Offset) -> Heard {
        match envelope.message {
            Message::Broadcast { packet, options, request: None } => {
                match self.socket_io.arrival(endpoint, packet, &options, offset, now.unix_ms) {
                    Some(arrival) => Heard::Arrival(Box::new(arrival)),
                    None => Heard::Malformed,
                }
            }
            _ => Heard::Known,
        }
    }

    pub(super) fn arrive(&mut self, arrival: Arc<Arrival>) {
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
                    Ok(replies) => {
                        let refused = replies.iter().filter(|reply| matches!(reply, Reply::Error(_))).count() as u64;
                        self.drop_message(RelayDrop::Refused, refused);
                        self.stats.published.add((replies.len() as u64).saturating_sub(refused));
                    }
                    // They may have been delivered or not: to send them again could deliver them twice.
                    Err(_) => self.drop_message(RelayDrop::Unconfirmed, told.len() as u64),
                }
            }
            (Tag::Appended(stream), replies) => self.handle_appended(now, stream, replies),
            (Tag::Session(tag), replies) => self.replied_of_sessions(now, tag, replies),
            (Tag::Consulted(number), replies) => {
                self.consults.answered(number, replies.ok());
                self.conclude(now);
            }
            (Tag::Ping(asked_ns), Ok(_)) if self.is_up => self.stats.round_trip_us.set((now.ns.saturating_sub(asked_ns) / 1_000).max(1)),
            (Tag::Ping(_), _) => {}
            (Tag::Host(tag), replies) => {
                self.hosts.replied(now, tag, replies.ok().as_deref());
                self.take_outcomes();
            }
        }
    }

    /// What is due.
    pub(crate) fn handle_timeouts(&mut self, now: Now) {
        self.consults.expire(now.ms());
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
            }
        }
        self.hosts.handle_timeouts(now);
        self.take_outcomes();
        self.stats.last_turn_ms.set(now.ms());
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    pub(crate) fn poll_timeout(&self) -> u64 {
        let of_streams =
            self.streams.as_ref().map(Streams::poll_timeout).into_iter().chain(self.sessions.as_ref().map(Sessions::poll_timeout));
        self.consults
            .next_ms()
            .into_iter()
            .chain(of_streams)
            .chain([self.ping_due_ms, self.hosts.next_ms()])
            .min()
            .unwrap_or(self.ping_due_ms)
    }

    /// The next request to Redis.
    pub(crate) fn poll_request(&mut self, now: Now) -> Option<(Tag, Request)> {
        if !self.is_up {
            return None;
        }
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        if let Some(append) = self.streams.as_mut().and_then(|streams| streams.poll_append(now)) {
            return Some(append);
        }
        if let Some(request) = self.next_of_sessions(now) {
            return Some(request);
        }
        if let Some(request) = self.next_consults(now.ms()) {
            return Some(request);
        }
        if self.waiting.is_empty() || self.in_flight >= RELAY_IN_FLIGHT_MAX {
            return None;
        }
        let told = self.waiting.take(RELAY_BATCH_BYTES_MAX, self.consults.place().unwrap_or(u64::MAX));
        self.in_flight += 1;
        let calls = told.iter().map(|publication| publication.call.clone()).collect();
        Some((Tag::Published(told), Request::several(calls)))
    }

    /// True exactly when something waits for Redis to take it.
    pub(crate) fn has_unsent(&self) -> bool {
        let entries = self.streams.as_ref().map_or(0, |streams| streams.waiting().0);
        entries > 0 || self.sessions_pending() > 0 || !self.waiting.is_empty() || self.in_flight > 0
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
        self.stats.waiting.set((self.waiting.len() + entries) as u64);
        self.stats.waiting_bytes.set((self.waiting.bytes() + bytes) as u64);
    }
}
