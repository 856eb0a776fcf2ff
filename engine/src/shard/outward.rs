//! What a shard says to other hosts, and what other hosts say to it: the shard's side of the relay. It knows no Redis and no wire format.
//!
//! Everything is local first: a room's home numbers and casts at once, and hands the same frame to the relay. What comes from another host
//! goes to the room's home here, which numbers and casts it as its own, and never hands it on.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Shard;
use super::consult::Consult;
use super::emits::NOBODY;
use super::handover::{Found, Session, Wanted};
use super::parcel::{Answer, Arrival, Origin, Publish, Target};
use crate::frame::Frame;
use crate::ids::{EndpointId, Room, Sid};
use crate::limits::OUTWARD_BYTES_MAX;
use crate::time::Now;

/// Questions that the relay puts to the shards have numbers with this bit; their answers are the relay's.
pub const RELAY_ASK: u64 = 1 << 63;

/// Something for the relay.
#[derive(Debug)]
pub enum Outward {
    /// Other hosts' clients get it too.
    Publish(Box<Published>),
    /// A room's home asks, and goes on when [`super::parcel::Parcel::Consulted`] has come.
    Consult(Box<Consult>),
    /// The answer to a question of the relay's.
    Answer {
        /// Its number.
        ask: u64,
        /// This shard's answer.
        answer: Answer,
    },
    /// A tide has come by here: whatever was handed over before this was so before it.
    Tide {
        /// Its number.
        number: u64,
    },
    /// A connection broke off, and may come back on another host.
    Session(Box<Session>),
    /// Somebody comes back who is not here, or who may be elsewhere as well. Answered by [`super::parcel::Parcel::Fetched`].
    Fetch {
        /// The shard's number for it.
        ask: u64,
        /// The endpoint.
        endpoint: EndpointId,
        /// The secret.
        pid: Sid,
        /// True exactly when it is away here.
        is_away: bool,
    },
    /// What was fetched is not wanted after all.
    PutBack(Box<Found>),
    /// A connection is in its rooms again and lacks what it has missed. Answered by [`super::parcel::Parcel::Missed`].
    Wanted(Box<Wanted>),
    /// Sessions in these rooms that have broken off by now must not be taken up.
    Revoke {
        /// The endpoint.
        endpoint: EndpointId,
        /// Names of rooms.
        rooms: Vec<Arc<str>>,
    },
}

/// What a room's home has cast here.
#[derive(Debug)]
pub struct Published {
    /// The room.
    pub room: Room,
    /// The connection that is meant if it is another host's, besides the room.
    pub addressee: Option<Sid>,
    /// What its members hear.
    pub frame: Frame,
    /// The one connection that does not get it.
    pub except: Option<Sid>,
    /// True exactly when some users do not get it, because its author has blocked them.
    pub is_hidden: bool,
    /// When it was cast, milliseconds since 1970.
    pub unix_ms: u64,
}

impl Outward {
    /// Bytes of messages it holds on to.
    pub fn bytes(&self) -> usize {
        128 + match self {
            Outward::Publish(published) => published.frame.bytes().len(),
            Outward::Consult(consult) => consult.bytes(),
            Outward::Session(session) => session.bytes(),
            Outward::PutBack(found) => found.raw.len() + found.session.bytes(),
            Outward::Wanted(wanted) => (wanted.names.len() + wanted.events.len()) * 32,
            Outward::Answer { .. } | Outward::Tide { .. } | Outward::Fetch { .. } | Outward::Revoke { .. } => 0,
        }
    }
}

/// What waits for the relay to take it.
#[derive(Default, Debug)]
pub(super) struct Outwards {
    queue: VecDeque<Outward>,
    bytes: usize,
}

impl Shard {
    /// Hands a publication to the relay, if it was made here and there is one; false when nobody else hears of it.
    pub(super) fn tell_other_hosts(&mut self, now: Now, publish: &Publish, addressee: Option<Sid>) -> bool {
        let Origin::Here { except } = publish.origin else { return false };
        if self.world.config.relay.is_none() || publish.frame.endpoint().is_none() {
            return false;
        }
        let (room, frame, is_hidden) = (publish.room.clone(), publish.frame.clone(), publish.hidden_from.is_some());
        self.send_out(Outward::Publish(Box::new(Published { room, addressee, frame, except, is_hidden, unix_ms: now.unix_ms })));
        true
    }

    /// Queues something for the relay. Beyond its bound, which only a relay that takes nothing any more lets it reach, the newest is dropped and counted.
    /// False for what was dropped.
    pub(super) fn send_out(&mut self, outward: Outward) -> bool {
        if self.outwards.bytes >= OUTWARD_BYTES_MAX {
            self.stats.outward_dropped.add(1);
            return false;
        }
        self.outwards.bytes += outward.bytes();
        self.outwards.queue.push_back(outward);
        true
    }

    /// What is to go to the relay, all at once; the driver takes it at the end of a turn.
    pub fn poll_outward(&mut self) -> Option<VecDeque<Outward>> {
        if self.outwards.queue.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut self.outwards).queue)
    }

    /// Takes back what could not be passed on; nothing has happened since it was given.
    pub fn restore_outward(&mut self, queue: VecDeque<Outward>) {
        self.outwards = Outwards { bytes: queue.iter().map(Outward::bytes).sum(), queue };
    }

    /// True exactly when something waits for the relay.
    pub fn has_outward(&self) -> bool {
        !self.outwards.queue.is_empty()
    }

    /// Something from another host, for connections here. What has a place in a room's order comes to the room's home only.
    pub(super) fn arrive_from_elsewhere(&mut self, now: Now, arrival: &Arc<Arrival>) {
        let emit = &arrival.emit;
        if usize::from(emit.to.endpoint.0) >= self.world.config.endpoints.len() {
            return;
        }
        let Some(frame) = self.frame_of_arrival(arrival) else { return };
        let Some(room) = arrival.room() else { return self.deliver_emit(now, NOBODY, emit, frame) };
        let (except, hidden_from, keep) = (None, arrival.hidden_from.clone(), None);
        self.home_publish(now, Publish { room, frame, except, hidden_from, keep, read_ns: now.ns, origin: Origin::Elsewhere });
    }

    pub(super) fn frame_of_arrival(&mut self, arrival: &Arrival) -> Option<Frame> {
        let emit = &arrival.emit;
        match &arrival.text {
            Some(text) => Some(Frame::text(emit.to.endpoint, text)),
            None => self.frame_of(NOBODY, emit).map(|(frame, _)| frame),
        }
    }
}

impl Arrival {
    /// The one room in whose order it has its place; `None` where it is for several, or not for all of one.
    pub fn room(&self) -> Option<Room> {
        let to = &self.emit.to;
        match (&to.targets[..], &to.except[..]) {
            ([Target::Room(name)], []) => Some(Room { endpoint: to.endpoint, name: name.clone() }),
            _ => None,
        }
    }
}
