//! Who got which message, where somebody wants to know: the shards that deliver it tell the message's home, which remembers it for a
//! while, and holds against it what those who got it say.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Shard;
use super::parcel::{Confirm, Origin, Parcel, Publish, Sent};
use super::recent::Recent;
use crate::dialect::{Confirmation, Progress};
use crate::fault::DropReason;
use crate::frame::Receipt;
use crate::ids::{EndpointId, Room, UserId};
use crate::limits::{RECEIPT_BYTES_PER_SHARD_MAX, RECEIPTS_MS, RECEIPTS_PER_SHARD_MAX};
use crate::time::Now;

/// What a message takes besides the names in it, in bytes: its places in map and order, and the allocations of its names.
const MESSAGE_BYTES: usize = 200;
/// The same of one who got it.
const USER_BYTES: usize = 56;

/// Bounds of what one shard remembers.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    messages: usize,
    bytes: usize,
}

/// A message of which somebody wants to know who got it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Awaited {
    to: UserId,
    sent_unix_ms: u64,
    /// Sorted; with what each has said, a bit for each [`Progress`].
    users: Vec<(UserId, u8)>,
    bytes: usize,
}

impl Awaited {
    /// Adds those who got it on one more shard.
    fn add(&mut self, users: Vec<UserId>) {
        self.users.extend(users.into_iter().map(|user| (user, 0)));
        // Of two entries of one user the one that has said more comes first, and stays.
        self.users.sort_unstable_by(|one, other| one.0.cmp(&other.0).then(other.1.cmp(&one.1)));
        self.users.dedup_by(|one, other| one.0 == other.0);
    }

    fn count_bytes(&mut self, key: &Room) -> usize {
        let users: usize = self.users.iter().map(|(user, _)| USER_BYTES + user.len()).sum();
        self.bytes = MESSAGE_BYTES + key.name.len() + self.to.len() + users;
        self.bytes
    }
}

/// The messages whose home is here.
#[derive(Debug)]
pub(crate) struct Receipts {
    messages: Recent<Room, Awaited>,
    bytes: usize,
    bounds: Bounds,
}

impl Default for Receipts {
    fn default() -> Self {
        let bounds = Bounds { messages: RECEIPTS_PER_SHARD_MAX, bytes: RECEIPT_BYTES_PER_SHARD_MAX };
        Receipts { messages: Recent::default(), bytes: 0, bounds }
    }
}

impl Receipts {
    /// Remembers who got a message; calls `forgotten` with each one that has to make room.
    fn sent(&mut self, key: &Room, to: UserId, users: Vec<UserId>, unix_ms: u64, mut forgotten: impl FnMut(&Room)) {
        if self.messages.get(key).is_none() {
            self.messages.insert(key.clone(), Awaited { to, sent_unix_ms: unix_ms, users: Vec::new(), bytes: 0 });
        }
        if let Some(awaited) = self.messages.get_mut(key) {
            self.bytes -= awaited.bytes;
            awaited.add(users);
            self.bytes += awaited.count_bytes(key);
        }
        while self.messages.len() > self.bounds.messages || self.bytes > self.bounds.bytes {
            let Some((key, awaited)) = self.messages.pop_oldest_if(|_| true) else { break };
            self.bytes -= awaited.bytes;
            forgotten(&key);
        }
    }

    /// A user says that he got a message. `None`: as far as is known he did not. Else who is to be told, if it is news.
    fn confirm(&mut self, key: &Room, user: &UserId, progress: Progress) -> Option<Option<UserId>> {
        let awaited = self.messages.get_mut(key)?;
        let at = awaited.users.binary_search_by(|(other, _)| other.cmp(user)).ok()?;
        let bit = match progress {
            Progress::Delivered => 1,
            Progress::Read => 2,
        };
        let said = &mut awaited.users[at].1;
        let is_news = *said & bit == 0;
        *said |= bit;
        Some(is_news.then(|| awaited.to.clone()))
    }

    /// As plain data, oldest first.
    pub(crate) fn freeze(&self) -> Vec<(u8, Arc<str>, Awaited)> {
        self.messages.iter().map(|(message, awaited)| (message.endpoint.0, message.name.clone(), awaited.clone())).collect()
    }

    /// Remembers one again.
    pub(crate) fn restore(&mut self, message: Room, awaited: Awaited) {
        self.bytes += awaited.bytes;
        self.messages.insert(message, awaited);
    }

    /// Forgets what is too old.
    pub(crate) fn sweep(&mut self, unix_ms: u64) {
        while let Some((_, awaited)) = self.messages.pop_oldest_if(|awaited| awaited.sent_unix_ms + RECEIPTS_MS <= unix_ms) {
            self.bytes -= awaited.bytes;
        }
    }
}

impl Shard {
    /// Tells the message's home who got it here, if somebody wants to know. It leaves before anything that they say of it can.
    pub(super) fn note_sent(&mut self, endpoint: EndpointId, receipt: Option<&Receipt>, mut users: Vec<UserId>) {
        // Who has not said who he is has no name.
        users.retain(|user| !user.is_empty());
        if let Some(receipt) = receipt.filter(|_| !users.is_empty()) {
            self.post(Parcel::Sent(Box::new(Sent { endpoint, receipt: receipt.clone(), users })));
        }
    }

    pub(super) fn remember_sent(&mut self, now: Now, sent: Sent) {
        let Sent { endpoint, receipt, users } = sent;
        let stats = &self.stats;
        let forgotten = |key: &Room| stats.endpoints[usize::from(key.endpoint.0)].dropped[DropReason::Receipt.index()].add(1);
        self.receipts.sent(&Room::message(endpoint, &receipt.message), receipt.to, users, now.unix_ms, forgotten);
    }

    /// A client says that it got a message.
    pub(super) fn confirm(&mut self, slot: u32, confirmation: Confirmation) {
        let Some(conn) = self.conns.get(slot) else { return };
        let Confirmation { message, progress, frame, told, note } = confirmation;
        let (id, user, message) = (self.conn_id(slot, conn), conn.profile.user.clone(), Room::message(conn.endpoint, &message));
        self.hold(slot);
        self.post(Parcel::Confirm(Box::new(Confirm { conn: id, user, message, progress, frame, told, note })));
    }

    /// The one place that knows a receipt to be good and new. The back end is told by the connection's shard, as of all that it does.
    pub(super) fn home_confirm(&mut self, now: Now, confirm: Confirm) {
        let Confirm { conn, user, message, progress, frame, told, note } = confirm;
        let known = self.receipts.confirm(&message, &user, progress);
        let was_sent = known.is_some();
        let told = told.filter(|_| known.as_ref().is_some_and(Option::is_some));
        if let Some(to) = known.flatten() {
            let room = Room::user(message.endpoint, &to);
            self.post(Parcel::Publish(Box::new(Publish {
                room,
                frame,
                except: None,
                hidden_from: None,
                keep: None,
                read_ns: now.ns,
                origin: Origin::HERE,
            })));
        }
        self.post(Parcel::Confirmed { conn, was_sent, told, note });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Room {
        Room::message(EndpointId(0), &n.to_string())
    }

    fn receipts(messages: usize, bytes: usize) -> Receipts {
        Receipts { bounds: Bounds { messages, bytes }, ..Receipts::default() }
    }

    #[test]
    fn each_who_got_it_counts_once_for_each_step() {
        let (mut receipts, nobody) = (receipts(9, 9_999), |_: &Room| panic!("nothing is forgotten"));
        receipts.sent(&key(1), "alice".into(), vec!["bob".into(), "bob".into()], 0, nobody);
        assert_eq!(receipts.confirm(&key(1), &"bob".into(), Progress::Read), Some(Some("alice".into())));
        receipts.sent(&key(1), "alice".into(), vec!["carl".into(), "bob".into()], 5, nobody);
        assert_eq!(receipts.confirm(&key(1), &"bob".into(), Progress::Read), Some(None), "said before the second shard told");
        assert_eq!(receipts.confirm(&key(1), &"bob".into(), Progress::Delivered), Some(Some("alice".into())));
        assert_eq!(receipts.confirm(&key(1), &"carl".into(), Progress::Delivered), Some(Some("alice".into())));
        assert_eq!(receipts.confirm(&key(1), &"eve".into(), Progress::Delivered), None);
        assert_eq!(receipts.confirm(&key(2), &"bob".into(), Progress::Delivered), None);
    }

    #[test]
    fn the_oldest_make_room_by_count_and_by_bytes() {
        let mut gone = Vec::new();
        let mut few = receipts(2, 99_999);
        for n in 0..3 {
            few.sent(&key(n), "alice".into(), vec!["bob".into()], 0, |key| gone.push(key.clone()));
        }
        assert_eq!((gone, few.messages.len()), (vec![key(0)], 2));
        let mut gone = Vec::new();
        let mut small = receipts(99, 1_000);
        for n in 0..50 {
            small.sent(&key(n), "alice".into(), vec!["bob".into()], 0, |key| gone.push(key.clone()));
            assert!(small.bytes <= 1_000, "{} bytes", small.bytes);
        }
        assert!(gone.len() > 40 && gone[0] == key(0) && small.messages.len() >= 2);
        small.sent(&key(99), "alice".into(), (0..100).map(|n| n.to_string().into()).collect(), 0, |_| {});
        assert_eq!((small.messages.len(), small.bytes), (0, 0), "one that is larger than all that may be is not kept");
    }

    #[test]
    fn a_day_later_nothing_is_known() {
        let mut receipts = Receipts::default();
        receipts.sent(&key(1), "alice".into(), vec!["bob".into()], 1_000, |_| {});
        receipts.sent(&key(2), "alice".into(), vec!["bob".into()], 2_000, |_| {});
        receipts.sweep(RECEIPTS_MS + 1_000);
        assert_eq!((receipts.messages.len(), receipts.messages.get(&key(1)).is_none()), (1, true));
        receipts.sweep(RECEIPTS_MS + 2_000);
        assert_eq!((receipts.messages.len(), receipts.bytes), (0, 0));
    }
}
