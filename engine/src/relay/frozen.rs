//! What a relay hands on to the one of the process that this one becomes at a reload, as plain data: whoever reads its words, its entries and its lease finds the same host.
//! It knows how it is written down and nothing of how a relay works; `core/resting.rs` does.
//!
//! Written down it is a list of fields, as [`crate::shard::frozen`] tells: a field may be appended with a default. Endpoints are indices into what was
//! served, times monotonic milliseconds. What cannot be read is dropped, and then the relay begins as at any start: nobody is worse off than before there were reloads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::request::Call;
use super::waiting::Entries;
use crate::config::Relay;
use crate::ids::{EndpointId, Sid};
use crate::shard::parcel::Arrival;
use crate::wire::sio::EntryId;

/// Everything.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct FrozenRelay {
    /// Where Redis is, and what is meant there: a relay of another place has nothing to do with this one.
    pub(crate) place: String,
    /// The host's id.
    pub(crate) host: String,
    /// True exactly when Redis could be reached.
    pub(crate) is_up: bool,
    /// Ids of the host as an adapter, by endpoint.
    pub(crate) uids: Vec<(u8, String)>,
    pub(crate) beats: FrozenBeats,
    /// Leases of the other hosts and when they were seen, milliseconds since 1970.
    pub(crate) hosts: Vec<(String, u64)>,
    /// Numbers that go on: questions with an announcement, transactions, questions to other hosts.
    pub(crate) numbers: [u64; 3],
    /// Of the roll call: by what it is known that Redis has lost nothing.
    pub(crate) mark: Option<String>,
    /// Who is here, by endpoint and room.
    pub(crate) present: Vec<(u8, Arc<str>, Vec<Arc<str>>)>,
    /// Rooms' own channels that are listened to.
    pub(crate) channels: Vec<String>,
    pub(crate) waiting: Vec<FrozenPublication>,
    /// Messages of which nobody knows whether Redis has got them.
    pub(crate) unconfirmed: u64,
    /// In the order of the streams; none where there are no streams.
    pub(crate) appenders: Vec<FrozenAppender>,
    pub(crate) readers: Vec<FrozenReader>,
    pub(crate) sessions: Option<FrozenSessions>,
    /// What was published and not looked at yet.
    pub(crate) heard: Vec<FrozenPush>,
}

/// See `beats.rs`.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct FrozenBeats {
    pub(crate) told: u64,
    pub(crate) hearts: Vec<(String, u64, u64)>,
    pub(crate) owners: Vec<(String, String)>,
}

/// See `waiting.rs`.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenPublication {
    pub(crate) calls: Vec<Call>,
    pub(crate) told: Option<usize>,
    /// The room whose home is to hear of it.
    pub(crate) confirmed: Option<(u8, Arc<str>)>,
    pub(crate) after: Option<Entries>,
    pub(crate) said_ms: u64,
    pub(crate) is_for_all: bool,
}

/// See `append.rs`.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct FrozenAppender {
    pub(crate) next: u64,
    /// Not confirmed: numbers and words.
    pub(crate) queue: Vec<(u64, Call)>,
    /// Confirmed, and when.
    pub(crate) kept: Vec<(u64, Call, u64)>,
    pub(crate) has_hole: bool,
}

/// See `read.rs`.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct FrozenReader {
    pub(crate) cursor: Option<EntryId>,
    pub(crate) past: Option<(EntryId, EntryId)>,
    pub(crate) recent: Vec<EntryId>,
    pub(crate) known: Vec<EntryId>,
    pub(crate) numbers: Vec<(Arc<str>, u64)>,
}

/// See `sessions.rs`.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct FrozenSessions {
    pub(crate) pending: Vec<FrozenPending>,
    pub(crate) later: Vec<Call>,
    /// Nothing is missing in the journal after this entry.
    pub(crate) floor: EntryId,
    pub(crate) journal: Vec<(EntryId, Arc<Arrival>)>,
}

/// A session that is not written to Redis yet.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenPending {
    /// Number of the last entry before it.
    pub(crate) after: u64,
    pub(crate) pid: Sid,
    pub(crate) endpoint: u8,
    pub(crate) left_unix_ms: u64,
    pub(crate) value: String,
}

/// Something that was published.
#[derive(Serialize, Deserialize)]
pub(crate) struct FrozenPush {
    /// 0: an ordinary channel, 1: one that was heard by a pattern, 2: one of a cluster's node.
    pub(crate) kind: u8,
    pub(crate) channel: ByteBuf,
    pub(crate) payload: ByteBuf,
}

impl FrozenRelay {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let written = rmp_serde::to_vec(self);
        debug_assert!(written.is_ok(), "{:?}", written.as_ref().err());
        written.unwrap_or_default()
    }

    /// Of a relay with these settings; `None` where there is nothing of one.
    pub(crate) fn decode(bytes: &[u8], settings: &Relay) -> Option<FrozenRelay> {
        let frozen: FrozenRelay = rmp_serde::from_slice(bytes).ok()?;
        (frozen.place == place(settings)).then_some(frozen)
    }
}

/// What makes two relays the same one: where Redis is, but neither users nor passwords there, and how what is said is written.
pub(crate) fn place(settings: &Relay) -> String {
    let Relay { redis, mode, adapter, prefix, socket_io_key, .. } = settings;
    let without_user = |url: &String| {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let rest = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        // A Unix socket's user stands in the query.
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let database = query.split('&').find(|pair| pair.starts_with("db=")).unwrap_or_default();
        format!("{scheme}://{place}{database}")
    };
    let urls: Vec<String> = redis.urls.iter().map(without_user).collect();
    let (master, is_cluster) = (redis.master.as_deref().unwrap_or_default(), redis.is_cluster);
    format!("{}\n{master}\n{is_cluster}\n{mode:?}\n{adapter:?}\n{prefix}\n{socket_io_key}", urls.join(" "))
}

/// The endpoint that goes on for a former one, by its index.
pub(crate) type Successors<'s> = &'s dyn Fn(u8) -> Option<EndpointId>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_password_is_the_same_place_and_another_database_is_not() {
        let of = |url: &str| place(&Relay::new(url));
        assert_eq!(of("redis://u:a%40b@host:1/2"), of("redis://v:c@host:1/2"));
        assert_ne!(of("redis://host:1/2"), of("redis://host:1/3"));
        assert_eq!(of("unix:///run/r?user=a&pass=b"), of("unix:///run/r?pass=c"));
        assert_ne!(of("unix:///run/r?db=1"), of("unix:///run/r?db=2"));
    }

    #[test]
    fn what_another_relay_has_left_is_passed_over() {
        let settings = Relay::new("redis://host");
        let frozen = FrozenRelay { place: place(&settings), host: "h".into(), ..FrozenRelay::default() };
        assert!(FrozenRelay::decode(&frozen.encode(), &settings).is_some_and(|read| read.host == "h"));
        assert!(FrozenRelay::decode(&frozen.encode(), &Relay::new("redis://other")).is_none());
        assert!(FrozenRelay::decode(&[], &settings).is_none() && FrozenRelay::decode(b"\x93", &settings).is_none());
    }
}
