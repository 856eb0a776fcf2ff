//! Socket.IO servers of other programs, as [`super::super::peers`] keeps book of them: what comes from them and goes to them, how many there
//! are, and the channels of rooms that are listened to while somebody is in, where their form has such.

use std::collections::{HashMap, VecDeque};

use rand::Rng as _;

use super::super::channels::Heard;
use super::super::fleet::HostAnswers;
use super::super::format::Message;
use super::super::handle::Order;
use super::super::peers::{Output, Peers};
use super::super::request::{Call, Kind, Reply, Request};
use super::super::socketio::{Place, TOLD};
use super::super::waiting::{OVERHEAD_BYTES, Publication};
use super::super::words::{HostId, Wish};
use super::{Core, Listening, Tag};
use crate::Notice;
use crate::ids::{EndpointId, Room};
use crate::limits::{LISTENED_AT_ONCE_MAX, PEER_HELD_BYTES_MAX};
use crate::shard::parcel::{Answer, Question};
use crate::shard::peers::Told;
use crate::time::Now;

/// What the core knows of such servers.
pub(super) struct Peering {
    pub(super) peers: Peers,
    /// What has come for a namespace while connections of its were moved.
    held: HashMap<EndpointId, Held>,
    /// True exactly when there is a connection, whether Redis answers or not.
    is_connected: bool,
}

/// See [`Peering::held`].
#[derive(Default)]
struct Held {
    /// Channels and what came there.
    words: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
}

/// What Redis was asked of them.
#[derive(Debug)]
pub(crate) enum PeerTag {
    /// How many servers these namespaces have.
    Servers(Vec<EndpointId>),
    /// How many servers a namespace has, for a request of ours to them.
    Asked(EndpointId, String),
}

impl Peering {
    /// Of a host of so many shards.
    pub(super) fn new(shards: usize) -> Peering {
        Peering { peers: Peers::new(shards), held: HashMap::new(), is_connected: false }
    }
}

impl Core {
    /// A connection is new, or lost.
    pub(super) fn peers_connected(&mut self, now: Now, is_connected: bool) {
        self.peering.is_connected = is_connected;
        if !is_connected {
            for namespace in &mut self.socket_io.namespaces {
                namespace.servers = 0;
            }
            self.peering.peers.lose();
            self.peers_have_changed(now);
            self.tell_of_peers();
        }
    }

    /// What is due: every now and then the servers are counted.
    pub(super) fn keep_peers(&mut self, now: Now, is_time_to_count: bool) {
        if is_time_to_count && self.is_up {
            self.count_servers();
        }
        self.peering.peers.handle_timeouts(now, &mut self.socket_io);
        self.peers_have_changed(now);
    }

    /// A shard tells something that another server wants to know.
    pub(super) fn told_for_peers(&mut self, now: Now, ask: u64, told: Told) {
        self.peering.peers.handle_told(now, &mut self.socket_io, ask, told);
        self.peers_have_changed(now);
    }

    /// A shard answers a question that another server's request was.
    pub(super) fn answered_for_peers(&mut self, now: Now, ask: u64, answer: &Answer) {
        self.peering.peers.handle_answer(now, &mut self.socket_io, ask, answer);
        self.peers_have_changed(now);
    }

    /// Redis has answered what it was asked of them, or never will.
    pub(super) fn replied_of_peers(&mut self, now: Now, tag: PeerTag, replies: Option<&[Reply]>) {
        match tag {
            PeerTag::Servers(endpoints) => {
                for (endpoint, reply) in endpoints.into_iter().zip(replies.unwrap_or_default()) {
                    self.note_servers(endpoint, reply);
                }
                self.tell_of_peers();
            }
            PeerTag::Asked(endpoint, request) => {
                let servers = replies.and_then(|replies| self.note_servers(endpoint, replies.first()?));
                self.peering.peers.counted(&request, servers);
                self.do_for_peers(now);
            }
        }
    }

    /// Takes `[channel, subscribers]`.
    fn note_servers(&mut self, endpoint: EndpointId, reply: &Reply) -> Option<u64> {
        let servers = u64::try_from(reply.list().get(1)?.int()?).ok()?;
        self.socket_io.of_mut(endpoint)?.servers = servers;
        Some(servers)
    }

    /// Asks how many servers there are.
    fn count_servers(&mut self) {
        let (endpoints, calls): (Vec<_>, Vec<_>) =
            self.socket_io.namespaces.iter().map(|namespace| (namespace.endpoint, namespace.count_call())).unzip();
        if !calls.is_empty() {
            self.requests.push_back((Tag::Peers(PeerTag::Servers(endpoints)), Request::several(calls)));
        }
    }

    /// Namespaces with servers that are no uringcast hosts.
    fn peered(&self) -> Vec<EndpointId> {
        let hosts = self.hosts.count() as u64 + 1;
        let namespaces = self.socket_io.namespaces.iter().filter(|namespace| self.is_up && namespace.servers > hosts);
        namespaces.map(|namespace| namespace.endpoint).collect()
    }

    /// The program learns whether there are such servers.
    pub(super) fn tell_of_peers(&mut self) {
        let has_peers = !self.peered().is_empty();
        self.hosts.port().set_peers(has_peers);
    }

    /// An order of the program's: whatever of it concerns such servers is passed on to them.
    pub(super) fn order_peers(&mut self, now: Now, order: &Order) {
        let Order { ask, wish: Wish::Shards(question), concerns_peers: true, awaits_peers, .. } = order else { return };
        let is_asked = self.ask_peers(now, *ask, question);
        if *awaits_peers && !is_asked {
            self.tell_answer_of_peers(*ask, None, true);
        }
    }

    /// True when their answer will come.
    pub(super) fn ask_peers(&mut self, now: Now, ask: u64, question: &Question) -> bool {
        let peered = self.peered();
        let has_peers = |endpoint| peered.contains(&endpoint);
        let is_asked = self.peering.peers.ask(now, &mut self.socket_io, &self.world.config, &mut self.random, has_peers, ask, question);
        self.do_for_peers(now);
        is_asked
    }

    fn tell_answer_of_peers(&mut self, ask: u64, answer: Option<Answer>, is_whole: bool) {
        let answers = HostAnswers { host: HostId::peers(), answers: answer.into_iter().collect(), is_whole };
        self.notices.push_back(Notice::HostAnswer { ask, answers });
    }

    /// Something has come of what other servers want.
    fn peers_have_changed(&mut self, now: Now) {
        self.do_for_peers(now);
        if self.peering.held.is_empty() {
            return;
        }
        let Peering { peers, held, .. } = &self.peering;
        let free: Vec<EndpointId> = held.keys().copied().filter(|endpoint| !peers.is_moving(*endpoint)).collect();
        for endpoint in free {
            self.release(now, endpoint, false);
        }
    }

    /// Does what the bookkeeping of other servers wants done.
    fn do_for_peers(&mut self, now: Now) {
        while let Some(output) = self.peering.peers.poll_output() {
            match output {
                Output::Say(post) => self.enqueue_call(now, post.call()),
                Output::Put(shard, parcel) => self.parcels.push_back((shard, parcel)),
                Output::Count(endpoint, request) => {
                    if let Some(namespace) = self.socket_io.of(endpoint) {
                        self.requests.push_back((Tag::Peers(PeerTag::Asked(endpoint, request)), namespace.count_call().into()));
                    }
                }
                Output::Told { ask, answer, is_whole } => self.tell_answer_of_peers(ask, Some(answer), is_whole),
                Output::Dropped(reason, count) => self.drop_message(reason, count),
            }
        }
    }

    /// Something to be published.
    pub(super) fn enqueue_call(&mut self, now: Now, call: Call) {
        let bytes = call.bytes() + OVERHEAD_BYTES;
        self.enqueue(Publication { call, said_ms: now.ms(), bytes });
    }

    /// Something on a channel of other servers.
    pub(super) fn heard_of_socket_io(&mut self, now: Now, channel: &str, payload: &[u8]) -> Heard {
        let Some(place) = self.socket_io.place(channel) else { return Heard::Malformed };
        if !place.is_for_answers && self.peering.peers.is_moving(place.endpoint) {
            if self.hold(place.endpoint, channel, payload) {
                return Heard::Known;
            }
            self.release(now, place.endpoint, true);
        }
        self.take_word(now, place, payload)
    }

    /// Holds back what has come for a namespace; false where that would be too much.
    fn hold(&mut self, endpoint: EndpointId, channel: &str, payload: &[u8]) -> bool {
        let held = self.peering.held.entry(endpoint).or_default();
        let size = channel.len() + payload.len() + OVERHEAD_BYTES;
        if held.bytes + size > PEER_HELD_BYTES_MAX {
            return false;
        }
        held.bytes += size;
        held.words.push_back((channel.to_owned(), payload.to_owned()));
        true
    }

    /// Handles what was held back for a namespace, until somebody is moved again; all of it where there is no more place.
    fn release(&mut self, now: Now, endpoint: EndpointId, is_full: bool) {
        while is_full || !self.peering.peers.is_moving(endpoint) {
            let Some(held) = self.peering.held.get_mut(&endpoint) else { return };
            let Some((channel, payload)) = held.words.pop_front() else {
                self.peering.held.remove(&endpoint);
                return;
            };
            held.bytes -= channel.len() + payload.len() + OVERHEAD_BYTES;
            let Some(place) = self.socket_io.place(&channel) else { continue };
            let heard = self.take_word(now, place, &payload);
            self.take_heard(heard);
        }
    }

    fn take_word(&mut self, now: Now, place: Place<'_>, payload: &[u8]) -> Heard {
        let endpoint = place.endpoint;
        let Ok(envelope) = self.socket_io.read(place, payload) else { return Heard::Malformed };
        if self.socket_io.is_ours(endpoint, &envelope.uid) {
            return Heard::Known;
        }
        let offset = self.random.next_u64();
        match envelope.message {
            Message::Broadcast { request: None, .. } if envelope.uid.starts_with(TOLD) => Heard::Known,
            Message::Broadcast { packet, options, request: None } => {
                match self.socket_io.arrival(endpoint, packet, &options, offset, now.unix_ms) {
                    Some(arrival) => Heard::Arrival(Box::new(arrival)),
                    None => Heard::Malformed,
                }
            }
            message => {
                if place.is_for_answers {
                    self.peering.peers.handle_answered(&mut self.socket_io, message);
                } else {
                    self.peering.peers.handle_request(now, &mut self.socket_io, endpoint, &envelope.uid, message, offset);
                }
                self.do_for_peers(now);
                Heard::Known
            }
        }
    }

    /// A room's own channel is listened to while somebody is in.
    pub(super) fn listen_to_room(&mut self, room: &Room, is_on: bool) {
        let Some(channel) = self.socket_io.channel_of(room) else { return };
        let key = (Kind::Sharded, channel.clone());
        let has_changed = if is_on { self.listened.insert(key) } else { self.listened.remove(&key) };
        self.stats.subscriptions.set(self.listened.len() as u64);
        // Without a connection it is listened to as soon as there is one.
        if !has_changed || !self.peering.is_connected {
            return;
        }
        match self.listenings.back_mut() {
            Some(last) if last.kind == Kind::Sharded && last.is_on == is_on && last.names.len() < LISTENED_AT_ONCE_MAX => {
                last.names.push(channel);
            }
            _ => self.listenings.push_back(Listening { kind: Kind::Sharded, names: vec![channel], is_on }),
        }
    }
}
