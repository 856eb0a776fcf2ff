//! Names of things: shards, links, connections, rooms, users. Every id is a type of its own, so that two of them are never swapped;
//! a text from outside becomes one of these once, and after that the type is the proof.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One core's whole world: its index among the shards of this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ShardId(pub u8);

/// Index of an endpoint in [`crate::config::Config::endpoints`]. Written out it means nothing without the names of those endpoints: another
/// host may have them in another order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct EndpointId(pub u8);

impl EndpointId {
    /// Of another host's connection whose endpoint this host does not have.
    pub const UNKNOWN: EndpointId = EndpointId(u8::MAX);
}

const _: () = assert!(crate::limits::ENDPOINTS_MAX <= u8::MAX as usize);

/// One client's transport on its shard. The generation tells a reused slot from the link that had it before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct LinkKey {
    /// Index in the shard's table of links.
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

/// One connection anywhere in this process, as parcels name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ConnId {
    /// The shard that owns it.
    pub shard: ShardId,
    /// Index in that shard's table of connections.
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

/// The public id of a connection (Socket.IO `socket.id`): 20 URL-safe characters, 15 bytes.
///
/// Bytes 0 to 3 name the owning shard and slot, so that any core finds the owner without a shared table; the other 11 are from the
/// secure random source, so that an id cannot be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sid([u8; 15]);

/// Random bytes in a [`Sid`].
pub const SID_RANDOM_BYTES: usize = 11;

impl Sid {
    /// The id of `slot` on `shard`; of the slot 24 bits count (`limits::LINKS_PER_SHARD_MAX`).
    pub fn new(shard: ShardId, slot: u32, random: [u8; SID_RANDOM_BYTES]) -> Sid {
        let mut bytes = [0; 15];
        bytes[0] = shard.0;
        bytes[1..4].copy_from_slice(&slot.to_be_bytes()[1..]);
        bytes[4..].copy_from_slice(&random);
        Sid(bytes)
    }

    /// Reads the 20 characters; `None` for any other text.
    pub fn parse(text: &str) -> Option<Sid> {
        let mut bytes = [0; 15];
        (text.len() == 20 && URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) == Ok(15)).then_some(Sid(bytes))
    }

    /// The shard that made it, if it was made by this process.
    pub fn shard(&self) -> ShardId {
        ShardId(self.0[0])
    }

    /// The slot on that shard.
    pub fn slot(&self) -> u32 {
        u32::from_be_bytes([0, self.0[1], self.0[2], self.0[3]])
    }

    /// The 20 characters.
    pub fn text(&self) -> SidText {
        let mut text = [0; 20];
        // 15 bytes are exactly 20 characters, so the slice always fits.
        let _ = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text);
        SidText(text)
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

impl Serialize for Sid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text().as_str())
    }
}

impl<'de> Deserialize<'de> for Sid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sid, D::Error> {
        let text = String::deserialize(deserializer)?;
        Sid::parse(&text).ok_or_else(|| serde::de::Error::custom("not the id of a connection"))
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text of a [`Sid`] without an allocation. Its order is that of the texts, not of the ids' bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SidText([u8; 20]);

impl SidText {
    /// The 20 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A user's id: the verified token's `sub`, or what the endpoint's `auth = "none"` puts in its place.
pub type UserId = Arc<str>;

/// A message's id: a UUIDv7, so that ids are in the order of their time.
pub type MessageId = uuid::Uuid;

/// A new UUIDv7 of this time and these random bytes.
pub fn new_message_id(unix_ms: u64, random: &[u8; 10]) -> MessageId {
    uuid::Builder::from_unix_timestamp_millis(unix_ms, random).into_uuid()
}

/// Why a text is no name. The message says what is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a name is 1 to 255 bytes of UTF-8 without control characters")]
pub struct BadName;

/// A name that a client may give: of a room, group, document or user. 1 to 255 bytes, no U+0000-1F, no U+007F-9F.
pub fn checked_name(text: &str) -> Result<&str, BadName> {
    if text.is_empty() || text.len() > crate::limits::NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(BadName);
    }
    Ok(text)
}

/// Something addressable: a name with members, within one endpoint. Everything is a room: see [`Room::user`] and [`Room::everybody`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Room {
    /// Rooms of different endpoints never mix.
    pub endpoint: EndpointId,
    /// The name; clients' names went through [`checked_name`], so the reserved forms below cannot be theirs.
    pub name: Arc<str>,
}

impl Room {
    /// The room of a name that was checked.
    pub fn named(endpoint: EndpointId, name: &str) -> Room {
        Room { endpoint, name: name.into() }
    }

    /// All connections of one user: `"\u{1}u:{user}"`.
    pub fn user(endpoint: EndpointId, user: &str) -> Room {
        Room { endpoint, name: format!("\u{1}u:{user}").into() }
    }

    /// Those who watch one user's coming and going: `"\u{1}p:{user}"`. It is at home where the user is, so that both have one order.
    pub fn watchers(endpoint: EndpointId, user: &str) -> Room {
        Room { endpoint, name: format!("\u{1}p:{user}").into() }
    }

    /// Of a room made by [`Self::watchers`]: the user.
    pub fn watched(&self) -> Option<&str> {
        self.name.strip_prefix("\u{1}p:")
    }

    /// A message of which somebody wants to know who got it: `"\u{1}m:{id}"`. It has no members, but a home that remembers.
    pub fn message(endpoint: EndpointId, id: &str) -> Room {
        Room { endpoint, name: format!("\u{1}m:{id}").into() }
    }

    /// True exactly for a room made by [`Self::user`].
    pub fn is_user(&self) -> bool {
        self.name.starts_with("\u{1}u:")
    }

    /// Whoever a client's `to` means: `"\u{1}t:{to}"`. It has no members; see [`Self::addressee`].
    pub fn addressed(endpoint: EndpointId, to: &str) -> Room {
        Room { endpoint, name: format!("\u{1}t:{to}").into() }
    }

    /// Of a room made by [`Self::addressed`]: the id of a live connection, or else of a user.
    pub fn addressee(&self) -> Option<&str> {
        self.name.strip_prefix("\u{1}t:")
    }

    /// The room that an addressee has: his connection's own if he is one, else his user's. Any other room is itself.
    pub fn resolved(&self, is_connection: bool) -> Room {
        match self.addressee() {
            Some(id) if is_connection => Room::named(self.endpoint, id),
            Some(user) => Room::user(self.endpoint, user),
            None => self.clone(),
        }
    }

    /// All connections of the endpoint: the empty name.
    pub fn everybody(endpoint: EndpointId) -> Room {
        Room { endpoint, name: "".into() }
    }

    /// True exactly when the name is one that clients and the back end use (no reserved form, not everybody).
    pub fn is_public(&self) -> bool {
        !self.name.is_empty() && !self.name.starts_with('\u{1}')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sid_carries_shard_and_slot_through_its_text() {
        let sid = Sid::new(ShardId(3), 0x0012_3456, [0xfe; 11]);
        let text = sid.text();
        assert_eq!(text.as_str().len(), 20);
        let back = Sid::parse(text.as_str()).expect("own text");
        assert_eq!((back, back.shard(), back.slot()), (sid, ShardId(3), 0x0012_3456));
        for bad in ["", "short", "12345678901234567890=", "+/345678901234567890", "é345678901234567890"] {
            assert_eq!(Sid::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_bounded_and_printable() {
        assert!(checked_name("a").is_ok() && checked_name(&"x".repeat(255)).is_ok() && checked_name("räume 😀").is_ok());
        for bad in ["", &"x".repeat(256), "a\u{0}", "a\nb", "\u{7f}", "\u{85}", "\u{1}u:alice"] {
            assert_eq!(checked_name(bad), Err(BadName), "{bad:?}");
        }
    }
}
