//! What the relay knows and decides: what shards say becomes requests to Redis, and what Redis brings becomes parcels for shards. Sans-IO:
//! it has no connection, no clock and no thread, so that several hosts and a Redis of a test's own can run side by side.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::channels::{Channels, Heard};
use super::format::{Envelope, Message};
use super::request::{Call, Kind, Lost, Push, Reply, Request};
use super::socketio::{Post, SocketIo, TOLD};
use super::streams::Streams;
use super::waiting::{OVERHEAD_BYTES, Publication, Waiting};
use crate::config::{Relay, RelayMode};
use crate::fault::RelayDrop;
use crate::ids::{EndpointId, ShardId};
use crate::limits::{RELAY_BATCH_BYTES_MAX, RELAY_IN_FLIGHT_MAX};
use crate::shard::World;
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
    /// Whether Redis answers; asked then, monotonic nanoseconds.
    Ping(u64),
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
    random: StdRng,
    /// There in the reliable mode.
    pub(super) streams: Option<Streams>,
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
        let streams = (settings.mode == RelayMode::Streams).then(|| Streams::new(settings, host));
        let channels = Channels::new(&world.config, &settings.prefix, host, streams.is_some());
        let mut core = Core {
            waiting: Waiting::new(settings.buffer_bytes, Some(settings.buffer_ms)),
            world,
            stats,
            socket_io,
            channels,
            random,
            streams,
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
        // Servers that are told of each other by streams do not count those that listen to the classic channels.
        let namespaces = if self.streams.is_some() { &[][..] } else { &self.socket_io.namespaces };
        for namespace in namespaces {
            self.listened.insert((Kind::Pattern, namespace.channels.pattern()));
            self.listened.extend(namespace.channels.subscribed(&namespace.uid).map(|channel| (Kind::Channel, channel)));
        }
        for channel in self.channels.fixed() {
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
        if let Some(streams) = &mut self.streams {
            streams.handle_connected();
        }
        self.set_up(true);
        self.handle_timeouts(now);
    }

    /// The connection is gone. What was in flight comes back with [`Self::handle_reply`].
    pub(crate) fn handle_lost(&mut self) {
        self.set_up(false);
        self.requests.clear();
        self.listenings.clear();
    }

    /// Redis does not answer, or does so again; the connection is still there.
    pub(crate) fn set_up(&mut self, is_up: bool) {
        self.is_up = is_up;
        self.stats.connected.set(u64::from(is_up));
        self.world.is_relayed.store(is_up, Ordering::Relaxed);
    }

    /// Something of a shard's.
    pub(crate) fn handle_outward(&mut self, now: Now, _shard: ShardId, outward: Outward) {
        match outward {
            Outward::Publish(published) => self.publish(now, &published),
            Outward::Answer { .. } => {}
        }
    }

    fn publish(&mut self, now: Now, published: &Published) {
        let endpoint = &self.world.config.endpoints[usize::from(published.room.endpoint.0)];
        if self.streams.is_some() {
            let is_plain = !endpoint.dialect.is_socket_io();
            if !self.append(published) {
                return self.drop_message(RelayDrop::Unspeakable, 1);
            }
            // Programs that know no stream hear of it as ever.
            let post = if is_plain { self.channels.publication(published) } else { None };
            return post.into_iter().for_each(|post| self.post(now, &post));
        }
        let post = if endpoint.dialect.is_socket_io() { self.socket_io.broadcast(published) } else { self.channels.publication(published) };
        match post {
            Some(post) => self.post(now, &post),
            None => self.drop_message(RelayDrop::Unspeakable, 1),
        }
    }

    fn post(&mut self, now: Now, post: &Post) {
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
        let Push::Message { channel, payload, .. } = push else { return };
        let Ok(channel) = String::from_utf8(channel) else { return self.drop_message(RelayDrop::Malformed, 1) };
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
                self.arrive(*arrival);
            }
            Heard::Known => {}
            Heard::Malformed => self.drop_message(RelayDrop::Malformed, 1),
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
            (Tag::Ping(asked_ns), Ok(_)) => self.stats.round_trip_us.set(now.ns.saturating_sub(asked_ns) / 1_000),
            (Tag::Ping(_), Err(_)) => {}
        }
    }

    /// What is due.
    pub(crate) fn handle_timeouts(&mut self, now: Now) {
        let old = self.waiting.expire(now.ms());
        self.drop_message(RelayDrop::Age, old);
        if let Some(streams) = &mut self.streams {
            streams.handle_timeouts(now);
        }
        if self.is_up && self.ping_due_ms <= now.ms() {
            self.ping_due_ms = now.ms() + PING_EVERY_MS;
            self.requests.push_back((Tag::Ping(now.ns), Call::new("PING").into()));
        }
        self.stats.last_turn_ms.set(now.ms());
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    pub(crate) fn poll_timeout(&self) -> u64 {
        self.streams.as_ref().map_or(u64::MAX, Streams::poll_timeout).min(self.ping_due_ms)
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
        if self.waiting.is_empty() || self.in_flight >= RELAY_IN_FLIGHT_MAX {
            return None;
        }
        let told = self.waiting.take(RELAY_BATCH_BYTES_MAX);
        self.in_flight += 1;
        let calls = told.iter().map(|publication| publication.call.clone()).collect();
        Some((Tag::Published(told), Request::several(calls)))
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
        let (entries, bytes) = self.streams.as_ref().map_or((0, 0), Streams::waiting);
        self.stats.waiting.set((self.waiting.len() + entries) as u64);
        self.stats.waiting_bytes.set((self.waiting.bytes() + bytes) as u64);
    }
}
