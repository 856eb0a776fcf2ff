//! The rooms whose home is this shard: their order, their members by shard and presence, what they keep. It decides; it delivers nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::dialect::{EnterFault, RoomView};
use crate::ids::{EndpointId, Room, ShardId, UserId};
use crate::limits::Limits;
use crate::stats::ShardStats;

/// Share of the process-wide bounds that one shard may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) rooms: usize,
    pub(crate) history_bytes: usize,
    pub(crate) history_messages: usize,
    pub(crate) history_age_ms: u64,
}

impl Bounds {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Bounds {
        Bounds {
            rooms: limits.rooms.div_ceil(shards),
            history_bytes: limits.history_bytes / shards,
            history_messages: limits.history_messages,
            history_age_ms: limits.history_age_ms,
        }
    }
}

/// One room's history takes at most this part of what all of a shard may take.
const ROOM_SHARE: usize = 16;
/// Entries of the list of empty rooms beyond twice the rooms before it is looked through.
const EMPTY_SLACK: usize = 64;

#[derive(Debug)]
struct Kept {
    unix_ms: u64,
    text: Arc<str>,
}

/// One room at home. Every user has one, so what only public rooms need is apart.
#[derive(Debug)]
struct HomeRoom {
    seq: u64,
    /// By shard, the connections for which it wants the room's casts: members, and those that broke off and may come back.
    shards: Box<[u32]>,
    members: u32,
    /// Those that may come back: nobody sees them, but what is said meanwhile is kept for them where they were.
    away: u32,
    public: Option<Box<PublicPart>>,
}

/// What a room has that people enter by its name.
#[derive(Default, Debug)]
struct PublicPart {
    /// Connections by presence. In a user's own room all are the same.
    present: HashMap<UserId, u32, RandomState>,
    history: VecDeque<Kept>,
    history_bytes: usize,
    /// Stamp of the room's entry in the list of empty rooms; an entry with another stamp is out of date.
    emptied: u64,
}

/// All rooms at home here.
#[derive(Debug)]
pub(crate) struct Homes {
    rooms: HashMap<Room, HomeRoom, RandomState>,
    bounds: Bounds,
    shards: usize,
    public_rooms: usize,
    history_bytes: usize,
    /// Empty rooms that are kept for their history, longest empty first.
    empty: VecDeque<(Room, u64)>,
    stamps: u64,
}

impl Homes {
    pub(crate) fn new(bounds: Bounds, shards: usize) -> Homes {
        Homes { rooms: HashMap::default(), bounds, shards, public_rooms: 0, history_bytes: 0, empty: VecDeque::new(), stamps: 0 }
    }

    /// Counts a connection in; true when it is the first of its presence.
    pub(crate) fn enter(
        &mut self,
        room: &Room,
        shard: ShardId,
        presence: &UserId,
        create: bool,
        members_max: u32,
        stats: &ShardStats,
    ) -> Result<bool, EnterFault> {
        self.admit(room, create, members_max, stats)?;
        if let Some(home) = self.rooms.get_mut(room) {
            home.shards[usize::from(shard.0)] += 1;
        }
        Ok(self.appear(room, presence, stats))
    }

    /// A connection that was away is back; true when it is the first of its presence.
    pub(crate) fn come_back(&mut self, room: &Room, presence: &UserId, stats: &ShardStats) -> bool {
        let Some(home) = self.rooms.get_mut(room).filter(|home| home.away > 0) else { return false };
        home.away -= 1;
        self.appear(room, presence, stats)
    }

    /// A connection that was away will not come back.
    pub(crate) fn give_up(&mut self, room: &Room, shard: ShardId, stats: &ShardStats) {
        let Some(home) = self.rooms.get_mut(room).filter(|home| home.away > 0) else { return };
        home.away -= 1;
        home.shards[usize::from(shard.0)] -= 1;
        self.tidy(room, stats);
    }

    /// Makes sure that there is a room with a place.
    fn admit(&mut self, room: &Room, create: bool, members_max: u32, stats: &ShardStats) -> Result<(), EnterFault> {
        if !self.rooms.contains_key(room) {
            if !create {
                return Err(EnterFault::NoRoom);
            }
            self.create(room, stats)?;
        }
        match self.rooms.get(room) {
            Some(home) if home.members < members_max => Ok(()),
            Some(_) => Err(EnterFault::UserLimit),
            None => Err(EnterFault::NoRoom),
        }
    }

    /// One member more; true when it is the first of its presence.
    fn appear(&mut self, room: &Room, presence: &UserId, stats: &ShardStats) -> bool {
        let Some(home) = self.rooms.get_mut(room) else { return false };
        home.members += 1;
        let of_presence = match &mut home.public {
            Some(public) => {
                let count = public.present.entry(presence.clone()).or_insert(0);
                *count += 1;
                *count == 1
            }
            None => home.members == 1,
        };
        if of_presence && room.is_user() {
            endpoint(stats, room.endpoint).users.add(1);
        }
        of_presence
    }

    /// Counts a connection out, or `away`; true when it was the last of its presence.
    pub(crate) fn leave(&mut self, room: &Room, shard: ShardId, presence: &UserId, away: bool, stats: &ShardStats) -> bool {
        let Some(home) = self.rooms.get_mut(room) else { return false };
        home.members -= 1;
        if away {
            home.away += 1;
        } else {
            home.shards[usize::from(shard.0)] -= 1;
        }
        let of_presence = match &mut home.public {
            Some(public) => {
                let left = public.present.get_mut(presence).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    public.present.remove(presence);
                }
                left == 0
            }
            None => home.members == 0,
        };
        if of_presence && room.is_user() {
            endpoint(stats, room.endpoint).users.sub(1);
        }
        self.tidy(room, stats);
        of_presence
    }

    /// A room that nobody is in any more goes, or on the list of those that are kept for their history.
    fn tidy(&mut self, room: &Room, stats: &ShardStats) {
        let Some(home) = self.rooms.get_mut(room).filter(|home| home.members == 0 && home.away == 0) else { return };
        match home.public.as_mut().filter(|public| !public.history.is_empty()) {
            None => self.remove(room, stats),
            Some(public) => {
                self.stamps += 1;
                public.emptied = self.stamps;
                self.empty.push_back((room.clone(), self.stamps));
                self.tidy_empty();
            }
        }
    }

    /// True exactly when the room exists.
    pub(crate) fn has(&self, room: &Room) -> bool {
        self.rooms.contains_key(room)
    }

    /// Connections in a room.
    pub(crate) fn members(&self, room: &Room) -> u32 {
        self.rooms.get(room).map_or(0, |home| home.members)
    }

    /// The shards with members of a room.
    pub(crate) fn shards_of(&self, room: &Room) -> Vec<ShardId> {
        let shards = self.rooms.get(room).map_or(&[][..], |home| &home.shards);
        shards.iter().enumerate().filter(|(_, members)| **members > 0).map(|(shard, _)| ShardId(shard as u8)).collect()
    }

    /// How a room is now.
    pub(crate) fn view(&self, room: &Room, history: usize, history_bytes: usize, online: bool, unix_ms: u64) -> RoomView {
        let Some(home) = self.rooms.get(room) else { return RoomView::default() };
        let Some(public) = &home.public else { return RoomView { members: home.members, ..RoomView::default() } };
        let oldest = unix_ms.saturating_sub(self.bounds.history_age_ms);
        let fresh = public.history.partition_point(|kept| kept.unix_ms < oldest);
        let mut first = fresh.max(public.history.len().saturating_sub(history));
        let mut bytes = public.history.range(first..).map(|kept| kept.text.len()).sum::<usize>();
        // The newest that fit: a past with its beginning cut off still ends where the present begins.
        while bytes > history_bytes {
            bytes -= public.history[first].text.len();
            first += 1;
        }
        RoomView {
            members: home.members,
            online: if online { public.present.keys().cloned().collect() } else { Vec::new() },
            history: public.history.range(first..).map(|kept| kept.text.clone()).collect(),
            ..RoomView::default()
        }
    }

    /// Numbers a message and keeps it; calls `cast` for each shard with members. `None`: no such room.
    pub(crate) fn publish(
        &mut self,
        room: &Room,
        keep: Option<(Arc<str>, usize)>,
        unix_ms: u64,
        stats: &ShardStats,
        mut cast: impl FnMut(ShardId, u64),
    ) -> Option<()> {
        // Everybody is in the room of everybody, on every shard; nobody enters it.
        let everybody = room.name.is_empty();
        if everybody && !self.rooms.contains_key(room) {
            self.create(room, stats).ok()?;
        }
        let home = self.rooms.get_mut(room)?;
        home.seq += 1;
        for (shard, members) in home.shards.iter().enumerate() {
            if everybody || *members > 0 {
                cast(ShardId(shard as u8), home.seq);
            }
        }
        if let Some((text, messages_max)) = keep {
            self.keep(room, text, messages_max, unix_ms, stats);
        }
        Some(())
    }

    fn keep(&mut self, room: &Room, text: Arc<str>, messages_max: usize, unix_ms: u64, stats: &ShardStats) {
        while self.history_bytes + text.len() > self.bounds.history_bytes && self.evict_empty(stats) {}
        let Some(public) = self.rooms.get_mut(room).and_then(|home| home.public.as_mut()) else { return };
        let counted = &endpoint(stats, room.endpoint).history_messages;
        let oldest = unix_ms.saturating_sub(self.bounds.history_age_ms);
        let messages_max = messages_max.min(self.bounds.history_messages);
        let share = self.bounds.history_bytes / ROOM_SHARE;
        self.history_bytes += text.len();
        public.history_bytes += text.len();
        public.history.push_back(Kept { unix_ms, text });
        counted.add(1);
        while let Some(first) = public.history.front() {
            let fits = public.history.len() <= messages_max
                && self.history_bytes <= self.bounds.history_bytes
                && public.history_bytes <= share.max(first.text.len());
            if fits && first.unix_ms >= oldest {
                break;
            }
            self.history_bytes -= first.text.len();
            public.history_bytes -= first.text.len();
            public.history.pop_front();
            counted.sub(1);
        }
    }

    /// Removes empty rooms whose newest message is too old.
    pub(crate) fn sweep(&mut self, unix_ms: u64, stats: &ShardStats) {
        let oldest = unix_ms.saturating_sub(self.bounds.history_age_ms);
        while let Some((room, stamp)) = self.empty.front() {
            let stale = self.empty_since(room, *stamp).is_none_or(|public| public.history.back().is_none_or(|kept| kept.unix_ms < oldest));
            if !stale {
                break;
            }
            let Some((room, stamp)) = self.empty.pop_front() else { break };
            if self.empty_since(&room, stamp).is_some() {
                self.remove(&room, stats);
            }
        }
    }

    /// Rooms and bytes of history here.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.rooms.len(), self.history_bytes)
    }

    /// Rooms that are entered and left again and again leave entries behind that are no longer true.
    fn tidy_empty(&mut self) {
        if self.empty.len() > 2 * self.rooms.len() + EMPTY_SLACK {
            let mut empty = std::mem::take(&mut self.empty);
            empty.retain(|(room, stamp)| self.empty_since(room, *stamp).is_some());
            self.empty = empty;
        }
    }

    /// The room that this entry of the list of empty rooms is about, if it is still true.
    fn empty_since(&self, room: &Room, stamp: u64) -> Option<&PublicPart> {
        let home = self.rooms.get(room).filter(|home| home.members == 0 && home.away == 0)?;
        home.public.as_deref().filter(|public| public.emptied == stamp)
    }

    fn create(&mut self, room: &Room, stats: &ShardStats) -> Result<(), EnterFault> {
        if room.is_public() {
            while self.public_rooms >= self.bounds.rooms {
                if !self.evict_empty(stats) {
                    return Err(EnterFault::Full);
                }
            }
            self.public_rooms += 1;
            endpoint(stats, room.endpoint).rooms.add(1);
        }
        let home =
            HomeRoom { seq: 0, shards: vec![0; self.shards].into(), members: 0, away: 0, public: room.is_public().then(Box::default) };
        self.rooms.insert(room.clone(), home);
        Ok(())
    }

    /// Removes the room that has been empty longest; false when there is none.
    fn evict_empty(&mut self, stats: &ShardStats) -> bool {
        while let Some((room, stamp)) = self.empty.pop_front() {
            if self.empty_since(&room, stamp).is_some() {
                self.remove(&room, stats);
                return true;
            }
        }
        false
    }

    fn remove(&mut self, room: &Room, stats: &ShardStats) {
        let Some(home) = self.rooms.remove(room) else { return };
        let counters = endpoint(stats, room.endpoint);
        if let Some(public) = home.public {
            self.history_bytes -= public.history.iter().map(|kept| kept.text.len()).sum::<usize>();
            counters.history_messages.sub(public.history.len() as u64);
            self.public_rooms -= 1;
            counters.rooms.sub(1);
        }
    }
}

fn endpoint(stats: &ShardStats, id: EndpointId) -> &crate::stats::EndpointStats {
    &stats.endpoints[usize::from(id.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(rooms: usize, history_bytes: usize) -> (Homes, ShardStats) {
        let bounds = Bounds { rooms, history_bytes, history_messages: 3, history_age_ms: 1_000 };
        (Homes::new(bounds, 2), ShardStats::new(1))
    }

    fn room(name: &str) -> Room {
        Room::named(EndpointId(0), name)
    }

    #[test]
    fn presence_changes_with_the_first_and_the_last() {
        let (mut homes, stats) = homes(10, 1_000);
        let (r, alice) = (room("r"), UserId::from("alice"));
        let first = |homes: &mut Homes, shard| homes.enter(&r, ShardId(shard), &alice, true, u32::MAX, &stats).expect("open");
        assert!(first(&mut homes, 0));
        assert!(!first(&mut homes, 1));
        assert!(!homes.leave(&r, ShardId(0), &alice, false, &stats));
        assert!(homes.leave(&r, ShardId(1), &alice, false, &stats));
        assert_eq!(homes.usage().0, 0, "an empty room without history is gone");
        assert_eq!(homes.enter(&r, ShardId(0), &alice, false, 9, &stats), Err(EnterFault::NoRoom));
    }

    #[test]
    fn casts_go_only_to_shards_with_members() {
        let (mut homes, stats) = homes(10, 1_000);
        let r = room("r");
        homes.enter(&r, ShardId(1), &"a".into(), true, u32::MAX, &stats).expect("open");
        let mut casts = Vec::new();
        for _ in 0..2 {
            homes.publish(&r, None, 0, &stats, |shard, seq| casts.push((shard.0, seq))).expect("exists");
        }
        assert_eq!(casts, [(1, 1), (1, 2)]);
        assert!(homes.publish(&room("other"), None, 0, &stats, |_, _| {}).is_none());
    }

    #[test]
    fn history_is_bounded_by_count_age_and_bytes() {
        // A room's share is a sixteenth.
        let (mut homes, stats) = homes(10, 30 * ROOM_SHARE);
        let r = room("r");
        homes.enter(&r, ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("open");
        let texts =
            |homes: &Homes, now| homes.view(&r, 50, usize::MAX, false, now).history.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        for i in 0..5 {
            homes.publish(&r, Some((format!("{i}").into(), usize::MAX)), i, &stats, |_, _| {}).expect("exists");
        }
        assert_eq!(texts(&homes, 5), ["2", "3", "4"]);
        assert_eq!(texts(&homes, 1_003), ["3", "4"], "too old is not shown");
        homes.publish(&r, Some(("x".repeat(29).into(), usize::MAX)), 6, &stats, |_, _| {}).expect("exists");
        assert_eq!(texts(&homes, 6).len(), 2, "bytes bound: {:?}", texts(&homes, 6));
        assert!(homes.usage().1 <= 30);
        assert_eq!(stats.endpoints[0].history_messages.read(), 2);
    }

    #[test]
    fn a_view_brings_the_newest_that_fit() {
        let (mut homes, stats) = homes(10, 100_000);
        let r = room("r");
        homes.enter(&r, ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("open");
        for text in ["aaaa", "bbb", "cc"] {
            homes.publish(&r, Some((text.into(), usize::MAX)), 0, &stats, |_, _| {}).expect("exists");
        }
        let fitting = |bytes| homes.view(&r, 50, bytes, false, 0).history.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        assert_eq!(fitting(8), ["bbb", "cc"]);
        assert_eq!(fitting(1), [""; 0]);
    }

    #[test]
    fn coming_back_keeps_the_neighbours_history_and_leaves_no_trace() {
        let (mut homes, stats) = homes(10, 100_000);
        let visit = |homes: &mut Homes, name: &str| {
            homes.enter(&room(name), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("open");
            homes.publish(&room(name), Some(("m".into(), 9)), 0, &stats, |_, _| {});
            homes.leave(&room(name), ShardId(0), &"a".into(), false, &stats);
        };
        visit(&mut homes, "a");
        visit(&mut homes, "b");
        homes.enter(&room("a"), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("open");
        homes.sweep(0, &stats);
        assert_eq!(homes.view(&room("b"), 50, usize::MAX, false, 0).history.len(), 1, "b is empty, not forgotten");
        for _ in 0..10_000 {
            visit(&mut homes, "b");
        }
        assert!(homes.empty.len() <= 2 * 2 + EMPTY_SLACK + 1, "{} entries for two rooms", homes.empty.len());
    }

    #[test]
    fn empty_rooms_with_history_go_when_room_is_needed_or_time_has_passed() {
        let (mut homes, stats) = homes(2, 1_000);
        let visit = |homes: &mut Homes, name: &str, now| {
            let entered = homes.enter(&room(name), ShardId(0), &"a".into(), true, u32::MAX, &stats);
            if entered.is_ok() {
                homes.publish(&room(name), Some(("m".into(), 9)), now, &stats, |_, _| {});
                homes.leave(&room(name), ShardId(0), &"a".into(), false, &stats);
            }
            entered
        };
        for (now, name) in ["a", "b", "c"].into_iter().enumerate() {
            visit(&mut homes, name, now as u64).expect("the longest empty one makes place");
        }
        assert_eq!(homes.usage(), (2, 2));
        homes.enter(&room("d"), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("evicts b");
        homes.enter(&room("e"), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("evicts c");
        assert_eq!(visit(&mut homes, "f", 3), Err(EnterFault::Full), "rooms with members stay");
        homes.leave(&room("d"), ShardId(0), &"a".into(), false, &stats);
        visit(&mut homes, "g", 5).expect("d is gone");
        homes.sweep(2_000, &stats);
        assert_eq!(homes.usage(), (1, 0));
        assert_eq!(stats.endpoints[0].rooms.read(), 1);
    }
}
