//! How the relay comes to rest before a reload, is written down, and goes on: as the same host, with the same numbers, so that nobody in the fleet notices. At rest Redis has confirmed what
//! was said, or cannot be reached, and nothing that was heard is still to be handed to shards.

use std::collections::HashSet;

use super::super::frozen::{self, FrozenPublication, FrozenPush, FrozenRelay, Successors};
use super::super::request::{Kind, Push};
use super::super::socketio::Namespace;
use super::super::streams::Streams;
use super::super::waiting::{OVERHEAD_BYTES, Publication};
use super::Core;
use super::asking::Hearing;
use crate::config::Relay;
use crate::fault::RelayDrop;
use crate::ids::{EndpointId, Room};
use crate::relay::beats::Beats;
use crate::relay::request::Call;
use crate::time::Now;

impl Core {
    /// From now on nothing new is begun, or it is again.
    pub(crate) fn set_resting(&mut self, is_resting: bool) {
        self.is_resting = is_resting;
    }

    /// True exactly when something that rests nowhere waits for what Redis says by itself.
    pub(crate) fn awaits_pushes(&self) -> bool {
        let is_waiting = self.hearings.values().any(Hearing::has_waiting);
        self.is_up && (is_waiting || !self.consults.is_idle() || self.gathering.is_some())
    }

    /// True exactly when nothing is under way between shards and other hosts.
    pub(crate) fn is_at_rest(&self) -> bool {
        let is_heard = self.parcels.is_empty() && self.held.is_empty() && !self.looking.is_asked() && !self.consults.has_held_back();
        is_heard && self.consults.is_idle() && self.named.is_idle() && self.streams.as_ref().is_none_or(Streams::has_taken_all)
    }

    /// True exactly when Redis has been told everything, or cannot be.
    pub(crate) fn is_told(&self) -> bool {
        let entries = self.streams.as_ref().map_or(0, |streams| streams.waiting().0);
        !self.is_up || (entries == 0 && self.waiting.is_empty() && self.in_flight == 0 && self.requests.is_empty())
    }

    /// Goes on without what has not been answered.
    pub(crate) fn wait_no_longer(&mut self, now: Now) {
        self.end_consults(now);
        self.end_looks(now, true);
        self.end_searches(now);
        self.peers.lose();
        self.do_for_peers(now);
        let held: Vec<EndpointId> = self.held.keys().copied().collect();
        held.into_iter().for_each(|endpoint| self.release_of(now, endpoint, true));
        self.conclude(now);
    }

    /// Everything that goes on, at rest; `heard` has come since and was not looked at.
    pub(crate) fn freeze<'p>(&self, settings: &Relay, heard: impl Iterator<Item = &'p Push>) -> FrozenRelay {
        let (appenders, readers) = self.streams.as_ref().map(Streams::freeze).unwrap_or_default();
        let appended = self.streams.as_ref().map_or(0, |streams| streams.appended(super::EVENTS));
        let fixed = self.fixed_channels();
        let channels = self.listened.iter().filter(|(kind, channel)| *kind == Kind::Sharded && !fixed.contains(channel));
        FrozenRelay {
            place: frozen::place(settings),
            host: self.hosts.own().as_str().to_owned(),
            is_up: self.is_up,
            uids: self.socket_io.namespaces.iter().map(|namespace| (namespace.endpoint.0, namespace.uid.clone())).collect(),
            beats: self.hosts.frozen_beats(),
            hosts: self.hosts.freeze(),
            numbers: [self.asked, self.consults.last_sent(), self.named.last()],
            mark: self.rooms.mark().cloned(),
            present: self.presence.freeze(),
            channels: channels.map(|(_, channel)| channel.clone()).collect(),
            waiting: self.waiting.freeze(),
            unconfirmed: self.unconfirmed as u64,
            appenders,
            readers,
            sessions: self.sessions.as_ref().map(|sessions| sessions.freeze(appended)),
            heard: heard.filter_map(freeze_push).collect(),
        }
    }

    /// Goes on from what another process had, before there is a connection. What it had heard is heard now.
    pub(crate) fn thaw(&mut self, now: Now, frozen: FrozenRelay, successor: Successors<'_>) {
        let room = |endpoint, name| Some(Room { endpoint: successor(endpoint)?, name });
        for (endpoint, uid) in frozen.uids {
            if let Some(namespace) = successor(endpoint).and_then(|endpoint| self.socket_io.of_mut(endpoint)) {
                namespace.rename(uid);
            }
        }
        self.listened.clear();
        self.listen_always();
        for (endpoint, name, present) in frozen.present {
            let Some(room) = room(endpoint, name) else { continue };
            if let Some(channel) = self.channels.channel_of(&room) {
                self.listened.insert((Kind::Channel, channel));
            }
            self.presence.remember(room, present);
        }
        let socket_io = &self.socket_io;
        let channels = frozen.channels.into_iter().filter(|channel| socket_io.place(channel).is_some());
        self.listened.extend(channels.map(|channel| (Kind::Sharded, channel)));
        self.hosts.thaw(frozen.hosts, Beats::thaw(frozen.beats));
        let [asked, consulted, named] = frozen.numbers;
        self.asked = asked;
        self.consults.go_on_from(consulted);
        self.named.go_on_from(named);
        self.rooms.set_mark(frozen.mark);
        if let Some(streams) = &mut self.streams {
            streams.thaw(frozen.appenders, frozen.readers);
        }
        if let Some((sessions, frozen)) = self.sessions.as_mut().zip(frozen.sessions) {
            sessions.thaw(frozen, successor);
        }
        for FrozenPublication { calls, told, confirmed, after, said_ms, is_for_all } in frozen.waiting {
            let confirmed = confirmed.and_then(|(endpoint, name)| room(endpoint, name)).map(|room| (self.world.home_of(&room), room));
            let bytes = calls.iter().map(Call::bytes).sum::<usize>() + OVERHEAD_BYTES;
            if !self.waiting.push(Publication { calls, told, confirmed, after, said_ms, bytes, is_for_all }) {
                self.drop_message(RelayDrop::Overflow, 1);
            }
        }
        self.drop_message(RelayDrop::Unconfirmed, frozen.unconfirmed);
        frozen.heard.into_iter().for_each(|push| self.handle_push(now, thaw_push(push)));
    }

    /// What is listened to whoever is in.
    fn fixed_channels(&self) -> HashSet<String> {
        self.socket_io.namespaces.iter().flat_map(Namespace::listened).map(|(_, channel)| channel).collect()
    }
}

fn freeze_push(push: &Push) -> Option<FrozenPush> {
    let Push::Message { kind, channel, payload, .. } = push else { return None };
    let kind = match kind {
        Kind::Channel => 0,
        Kind::Pattern => 1,
        Kind::Sharded => 2,
    };
    Some(FrozenPush { kind, channel: channel.clone().into(), payload: payload.clone().into() })
}

fn thaw_push(FrozenPush { kind, channel, payload }: FrozenPush) -> Push {
    let kind = match kind {
        0 => Kind::Channel,
        1 => Kind::Pattern,
        _ => Kind::Sharded,
    };
    Push::Message { kind, channel: channel.into_vec(), pattern: None, payload: payload.into_vec() }
}
