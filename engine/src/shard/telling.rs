//! What a shard has to tell of what has happened, until the driver takes it. The queue is bounded: whoever takes too slowly, or not at
//! all, misses events and is told how many, and the shard goes on.

use super::Shard;
use crate::dialect::Publication;
use crate::event::{Event, EventBatch, EventType, What};
use crate::ids::Room;
use crate::limits::{EVENT_BYTES_WAITING_MAX, EVENTS_WAITING_MAX};
use crate::time::Now;

/// Events that wait.
#[derive(Default, Debug)]
pub(super) struct Telling {
    events: Vec<Event>,
    /// Bytes of what they hold on to.
    bytes: usize,
    /// Those for which there was no place.
    dropped: u64,
}

impl Telling {
    /// Keeps an event; false when there is no place. After one that was dropped all are until these have been taken, so that the gap is one
    /// and its place is known. A single event always has place, however large its message.
    fn push(&mut self, event: Event) -> bool {
        let bytes = event.bytes();
        let fits = self.events.len() < EVENTS_WAITING_MAX && self.bytes + bytes <= EVENT_BYTES_WAITING_MAX;
        if self.dropped > 0 || (!fits && !self.events.is_empty()) {
            self.dropped += 1;
            return false;
        }
        self.bytes += bytes;
        self.events.push(event);
        true
    }
}

impl Shard {
    /// True exactly when somebody wants events of this type.
    pub(super) fn wants(&self, kind: EventType) -> bool {
        self.world.wanted.has(kind)
    }

    /// Tells what has happened to a connection, if somebody wants to know.
    pub(super) fn tell(&mut self, now: Now, slot: u32, room: Option<&Room>, what: What) {
        if !self.wants(what.kind()) {
            return;
        }
        let Some(conn) = self.conns.get(slot) else { return };
        let event = Event {
            endpoint: conn.endpoint,
            connection: Some(conn.sid),
            user: conn.is_authenticated().then(|| conn.profile.user.clone()),
            room: room.map(|room| room.name.clone()),
            unix_ms: now.unix_ms,
            what,
        };
        self.tell_event(event);
    }

    /// Tells an event that somebody wants.
    pub(super) fn tell_event(&mut self, event: Event) {
        if !self.telling.push(event) {
            self.stats.events_dropped.add(1);
        }
    }

    /// Tells what a connection publishes, if it is a message that somebody wants to know of.
    pub(super) fn tell_of_message(&mut self, now: Now, slot: u32, publication: &Publication) {
        let Some(message) = &publication.told else { return };
        let room = self.conns.get(slot).map(|conn| Room { endpoint: conn.endpoint, name: publication.room.clone() });
        let what = What::Message { message: message.clone() };
        self.tell(now, slot, room.as_ref().filter(|room| room.is_public()), what);
    }

    /// Tells that a connection is in a room now, or no longer, if it is a room that has a name.
    pub(super) fn tell_of_room(&mut self, now: Now, slot: u32, room: &Room, what: What) {
        if room.is_public() {
            self.tell(now, slot, Some(room), what);
        }
    }

    /// Tells that a connection leaves all its rooms, or is back in them.
    pub(super) fn tell_of_rooms(&mut self, now: Now, slot: u32, what: &What) {
        if self.wants(what.kind()) {
            for room in self.rooms_of(slot) {
                self.tell_of_room(now, slot, &room, what.clone());
            }
        }
    }

    /// The events since the last call.
    pub fn poll_events(&mut self) -> Option<EventBatch> {
        if !self.has_events() {
            return None;
        }
        let Telling { events, dropped, .. } = std::mem::take(&mut self.telling);
        Some(EventBatch { shard: self.id, events, dropped })
    }

    /// Takes back events that could not be passed on; nothing has happened since they were given.
    pub fn restore_events(&mut self, batch: EventBatch) {
        let EventBatch { events, dropped, .. } = batch;
        self.telling = Telling { bytes: events.iter().map(Event::bytes).sum(), events, dropped };
    }

    /// True exactly when events wait.
    pub fn has_events(&self) -> bool {
        !self.telling.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EndpointId;

    fn event(message: &str) -> Event {
        let what = What::Message { message: message.into() };
        Event { endpoint: EndpointId(0), connection: None, user: None, room: None, unix_ms: 0, what }
    }

    #[test]
    fn the_queue_is_bounded_by_number_and_bytes_and_its_gap_is_one() {
        let mut many = Telling::default();
        let kept = (0..EVENTS_WAITING_MAX + 5).filter(|_| many.push(event(""))).count();
        assert_eq!((kept, many.dropped), (EVENTS_WAITING_MAX, 5));

        let mut large = Telling::default();
        let message = "x".repeat(EVENT_BYTES_WAITING_MAX / 2);
        assert!(large.push(event(&message)) && large.push(event(&message)) && !large.push(event("x")) && !large.push(event("")));
        assert_eq!((large.events.len(), large.dropped), (2, 2));

        let mut one = Telling::default();
        assert!(one.push(event(&"x".repeat(EVENT_BYTES_WAITING_MAX + 1))), "none is too large to be told");
        assert!(!one.push(event("x")));
    }
}
