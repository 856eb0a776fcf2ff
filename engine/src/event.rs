//! What the engine tells whoever wants to follow what happens: the events of the old servers' `EventEmitter`. Plain data. It knows nothing
//! of how an event travels, nor who listens; where nobody wants a type of event, making one costs the look at a number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::ids::{EndpointId, ShardId, Sid, UserId};

/// A type of event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventType {
    /// A connection was let in, or is back after it broke off.
    Connection,
    /// A connection has ended, or broke off.
    Disconnect,
    /// A client or the back end published a message.
    Message,
    /// A connection is in a room.
    RoomJoin,
    /// A connection has left a room.
    RoomLeave,
    /// A connection has proved after connecting who it is, for the first time or again.
    Authenticated,
    /// A user has said of a message that he got it or read it.
    Receipt,
    /// Another server of the fleet says something to the servers.
    ServerEvent,
}

impl EventType {
    /// All of them, in the order of [`Self::index`].
    pub const ALL: [EventType; 8] = [
        EventType::Connection,
        EventType::Disconnect,
        EventType::Message,
        EventType::RoomJoin,
        EventType::RoomLeave,
        EventType::Authenticated,
        EventType::Receipt,
        EventType::ServerEvent,
    ];

    /// Position in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The contract's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            EventType::Connection => "connection",
            EventType::Disconnect => "disconnect",
            EventType::Message => "message",
            EventType::RoomJoin => "room:join",
            EventType::RoomLeave => "room:leave",
            EventType::Authenticated => "authenticated",
            EventType::Receipt => "receipt",
            EventType::ServerEvent => "server:event",
        }
    }

    /// The type of this name.
    pub fn named(name: &str) -> Option<EventType> {
        EventType::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A set of types.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct EventTypes(u16);

impl EventTypes {
    /// None of them.
    pub const NONE: EventTypes = EventTypes(0);
    /// All of them.
    pub const ALL: EventTypes = EventTypes((1 << EventType::ALL.len()) - 1);

    /// These and one more.
    #[must_use]
    pub fn with(self, kind: EventType) -> EventTypes {
        EventTypes(self.0 | 1 << kind.index())
    }

    /// Those of both.
    #[must_use]
    pub fn and(self, other: EventTypes) -> EventTypes {
        EventTypes(self.0 | other.0)
    }

    /// True exactly when the type is among them.
    pub fn has(self, kind: EventType) -> bool {
        self.0 & 1 << kind.index() != 0
    }

    /// True exactly when there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<EventType> for EventTypes {
    fn from_iter<I: IntoIterator<Item = EventType>>(types: I) -> EventTypes {
        types.into_iter().fold(EventTypes::NONE, EventTypes::with)
    }
}

/// The types that somebody wants. All shards look at the same one; what is wanted since a moment ago they may learn a moment later.
#[derive(Default, Debug)]
pub struct Wanted(AtomicU16);

impl Wanted {
    /// True exactly when somebody wants events of this type.
    pub fn has(&self, kind: EventType) -> bool {
        EventTypes(self.0.load(Relaxed)).has(kind)
    }

    /// All of them, as a number that means nothing to another version.
    pub(crate) fn bits(&self) -> u16 {
        self.0.load(Relaxed)
    }

    /// The opposite of [`Self::bits`].
    pub(crate) fn set_bits(&self, bits: u16) {
        self.0.store(bits, Relaxed);
    }

    /// From now on these are wanted, and no others.
    pub fn set(&self, types: EventTypes) {
        self.0.store(types.0, Relaxed);
    }
}

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where.
    pub endpoint: EndpointId,
    /// To which connection; `None` where the back end did it.
    pub connection: Option<Sid>,
    /// Of which user; `None` while nobody knows.
    pub user: Option<UserId>,
    /// In which room, if it is one that clients and the back end know by its name.
    pub room: Option<Arc<str>>,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub what: What,
}

impl Event {
    /// Its type.
    pub fn kind(&self) -> EventType {
        self.what.kind()
    }

    /// Bytes of what it holds on to, beside itself and names that others hold on to as well.
    pub fn bytes(&self) -> usize {
        match &self.what {
            What::Message { message } => message.len(),
            What::Receipt { receipt } => receipt.message.len() + receipt.conversation.len(),
            What::ServerEvent { call } => call.event.len() + call.args.len(),
            _ => 0,
        }
    }
}

/// What has happened, with what its type adds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// See [`EventType::Connection`].
    Connection,
    /// See [`EventType::Disconnect`].
    Disconnect {
        /// Why, see [`crate::fault::CloseReason::told`].
        reason: &'static str,
    },
    /// See [`EventType::Message`].
    Message {
        /// The message as the clients get it, JSON.
        message: Arc<str>,
    },
    /// See [`EventType::RoomJoin`].
    RoomJoin,
    /// See [`EventType::RoomLeave`].
    RoomLeave,
    /// See [`EventType::Authenticated`].
    Authenticated,
    /// See [`EventType::Receipt`].
    Receipt {
        /// Of which message, and how far it has come. Boxed: there are few, and every event is as large as the largest.
        receipt: Box<Receipted>,
    },
    /// See [`EventType::ServerEvent`].
    ServerEvent {
        /// What it says. Boxed as a receipt is.
        call: Box<ServerCall>,
    },
}

impl What {
    /// Its type.
    pub fn kind(&self) -> EventType {
        match self {
            What::Connection => EventType::Connection,
            What::Disconnect { .. } => EventType::Disconnect,
            What::Message { .. } => EventType::Message,
            What::RoomJoin => EventType::RoomJoin,
            What::RoomLeave => EventType::RoomLeave,
            What::Authenticated => EventType::Authenticated,
            What::Receipt { .. } => EventType::Receipt,
            What::ServerEvent { .. } => EventType::ServerEvent,
        }
    }
}

/// What another server says to the servers of its fleet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerCall {
    /// Name of its event.
    pub event: Box<str>,
    /// A JSON array; binary data in it is spelled out as `JSON.stringify` does.
    pub args: Box<str>,
}

/// What a user says of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipted {
    /// Its id, JSON: a text or a number.
    pub message: Box<str>,
    /// Id of its conversation, JSON as well.
    pub conversation: Box<str>,
    /// `delivered` or `read`.
    pub status: &'static str,
}

/// Events of one shard, in their order: those of a connection come all from one shard.
#[derive(Debug)]
pub struct EventBatch {
    /// Which.
    pub shard: ShardId,
    /// What has happened.
    pub events: Vec<Event>,
    /// How many happened after these for which there was no place.
    pub dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_names_and_sets() {
        for (index, kind) in EventType::ALL.into_iter().enumerate() {
            assert_eq!((kind.index(), EventType::named(kind.name())), (index, Some(kind)));
            let only = EventTypes::NONE.with(kind);
            assert!(EventType::ALL.into_iter().all(|other| only.has(other) == (other == kind)));
            assert!(EventTypes::ALL.has(kind) && !EventTypes::NONE.has(kind));
        }
        assert_eq!(EventType::ALL.into_iter().collect::<EventTypes>(), EventTypes::ALL);
        assert_eq!(EventType::named("dropped"), None);
    }

    #[test]
    fn events_are_small() {
        // Thousands of them wait; the message they tell of is somebody else's.
        assert!(size_of::<Event>() <= 112, "{} bytes", size_of::<Event>());
    }
}
