//! The rooms whose home is this shard: their order, their members by shard and presence, what they keep. It decides; it delivers nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::history::{Bounds, History, Memory};
use super::named::Named;
use crate::dialect::{EnterFault, Keep, OfRoom, RoomView};
use crate::ids::{EndpointId, Room, ShardId, UserId};
use crate::limits::Limits;
use crate::shard::frozen::FrozenRoom;
use crate::stats::ShardStats;

mod counts;
mod records;

use counts::Counts;
pub(super) use records::NAMESPACE;
use records::{Ending, Record};

/// Places in [`Homes::empty`].
const KEPT: usize = 0;
const MADE: usize = 1;

/// Entries of a list of empty rooms beyond twice the rooms before it is looked through.
const EMPTY_SLACK: usize = 64;

/// One room at home. Every user has one, so what only public rooms need is apart.
#[derive(Debug)]
struct HomeRoom {
    seq: u64,
    /// By shard, the connections for which it wants the room's casts: members, and those that broke off and may come back.
    shards: Counts,
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
    /// Stamp of the room's entry in a list of empty rooms; an entry with another stamp is out of date.
    emptied: u64,
    /// Since when there is this room, milliseconds since 1970.
    created_unix_ms: u64,
    /// When somebody last came, went or said something, milliseconds since 1970.
    active_unix_ms: u64,
    /// There exactly when the back end made the room: it stays until the back end deletes it.
    record: Option<Box<Record>>,
}

/// All rooms at home here.
#[derive(Debug)]
pub(crate) struct Homes {
    rooms: Named<HomeRoom>,
    history: Box<dyn History>,
    /// Public rooms that may be here, and that are.
    rooms_max: usize,
    public_rooms: usize,
    shards: usize,
    /// Empty rooms that are kept for their history, longest empty first: at [`KEPT`] those that go with it, at [`MADE`] those that the back
    /// end made, which stay without it.
    empty: [VecDeque<(Room, u64)>; 2],
    stamps: u64,
    /// The public rooms in the order of their names.
    names: BTreeSet<Room>,
    /// Bytes of what the back end said of rooms when it made them.
    record_bytes: usize,
    ending: HashMap<Room, Ending, RandomState>,
    /// Questions about rooms that have ended.
    ended: Vec<u64>,
    /// What is said in a room that is there again has greater numbers than before: who has left waits for the answer, and is still a member on
    /// his shard until it comes.
    seq_floor: u64,
    /// Roll calls that have begun.
    rolls: u64,
    /// Rooms that have ended without all hosts knowing yet.
    ends_untold: VecDeque<Room>,
    /// Rooms that have got their first member or lost their last and of which the relay has not been told; `None` where it need not be.
    inhabited: Option<HashMap<Room, bool, RandomState>>,
}

impl Homes {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Homes {
        let memory = Memory::new(Bounds::new(limits, shards));
        Homes {
            rooms: Named::new(),
            history: Box::new(memory),
            rooms_max: limits.rooms.div_ceil(shards),
            public_rooms: 0,
            shards,
            empty: Default::default(),
            stamps: 0,
            names: BTreeSet::new(),
            record_bytes: 0,
            ending: HashMap::default(),
            ended: Vec::new(),
            seq_floor: 0,
            rolls: 0,
            ends_untold: VecDeque::new(),
            inhabited: None,
        }
    }

    /// From now on it is noted which rooms have members, for [`Self::next_inhabited`].
    pub(crate) fn note_inhabited(&mut self) {
        self.inhabited = Some(HashMap::default());
    }

    /// A room that has got its first member (true) or lost its last, those that may come back counted too, since it was told last.
    pub(crate) fn next_inhabited(&mut self) -> Option<(Room, bool)> {
        let inhabited = self.inhabited.as_mut()?;
        let room = inhabited.keys().next().cloned()?;
        inhabited.remove_entry(&room)
    }

    /// Notes how it is with a room that has just changed.
    fn note_change(&mut self, room: &Room) {
        if self.inhabited.is_none() || !(room.is_public() || room.is_user()) {
            return;
        }
        let count = self.counted(room).map_or(0, |home| home.members + home.away);
        if let (0 | 1, Some(inhabited)) = (count, &mut self.inhabited) {
            inhabited.insert(room.clone(), count > 0);
        }
    }

    /// What the rooms keep.
    pub(crate) fn history(&mut self) -> &mut dyn History {
        &mut *self.history
    }

    /// The same, to be looked at.
    pub(crate) fn kept(&self) -> &dyn History {
        &*self.history
    }

    /// Bytes of the histories of this shard's rooms.
    pub(crate) fn history_bytes(&self) -> usize {
        self.history.bytes()
    }

    /// Puts another store in the memory's place.
    pub(crate) fn set_history(&mut self, history: Box<dyn History>) {
        self.history = history;
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
            home.shards.add(shard, self.shards);
        }
        let is_first = self.appear(room, presence, stats);
        self.note_change(room);
        Ok(is_first)
    }

    /// A connection that was away is back; true when it is the first of its presence.
    pub(crate) fn come_back(&mut self, room: &Room, presence: &UserId, stats: &ShardStats) -> bool {
        let Some(home) = self.counted(room).filter(|home| home.away > 0) else { return false };
        home.away -= 1;
        self.appear(room, presence, stats)
    }

    /// A connection that was away will not come back.
    pub(crate) fn give_up(&mut self, room: &Room, shard: ShardId, stats: &ShardStats) {
        let counts = |home: &&mut HomeRoom| home.away > 0 && home.shards.of(shard) > 0;
        let Some(home) = self.counted(room).filter(counts) else { return };
        home.away -= 1;
        home.shards.sub(shard);
        self.note_change(room);
        self.tidy(room, stats);
    }

    /// A room that connections are counted in, also when it has ended and they are still leaving.
    fn counted(&mut self, room: &Room) -> Option<&mut HomeRoom> {
        match self.rooms.get_mut(room) {
            Some(home) => Some(home),
            None => self.ending.get_mut(room).map(Ending::home),
        }
    }

    /// Makes sure that there is a room with a place.
    fn admit(&mut self, room: &Room, create: bool, members_max: u32, stats: &ShardStats) -> Result<(), EnterFault> {
        if !self.rooms.contains(room) {
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
        let Some(home) = self.counted(room) else { return false };
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
        let counts = |home: &&mut HomeRoom| home.members > 0 && (away || home.shards.of(shard) > 0);
        let Some(home) = self.counted(room).filter(counts) else { return false };
        home.members -= 1;
        if away {
            home.away += 1;
        } else {
            home.shards.sub(shard);
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
        self.note_change(room);
        self.tidy(room, stats);
        of_presence
    }

    /// A room that nobody is in any more goes, or on the list of those that are kept for their history.
    pub(crate) fn tidy(&mut self, room: &Room, stats: &ShardStats) {
        if !self.ending.is_empty() {
            self.tidy_ending(room);
        }
        let Some(home) = self.rooms.get_mut(room).filter(|home| home.members == 0 && home.away == 0) else { return };
        match &mut home.public {
            Some(public) if self.history.holds(room, 0) => {
                self.stamps += 1;
                public.emptied = self.stamps;
                let list = if public.record.is_some() { MADE } else { KEPT };
                self.empty[list].push_back((room.clone(), self.stamps));
                self.tidy_empty(list);
            }
            Some(public) if public.record.is_some() => {}
            _ => drop(self.remove(room, stats)),
        }
    }

    /// True exactly when the room exists.
    pub(crate) fn has(&self, room: &Room) -> bool {
        self.rooms.contains(room)
    }

    /// True exactly when somebody is present as this in the room.
    pub(crate) fn has_present(&self, room: &Room, presence: &UserId) -> bool {
        let Some(home) = self.rooms.get(room) else { return false };
        home.public.as_ref().map_or(home.members > 0, |public| public.present.contains_key(presence))
    }

    /// True exactly when a room of this name has ended whose members have not all left.
    pub(crate) fn is_ending(&self, room: &Room) -> bool {
        self.ending.contains_key(room)
    }

    /// True exactly when a room has one member, one that may come back counted too, and nobody is being taken out of one of its name.
    pub(crate) fn has_one_member(&self, room: &Room) -> bool {
        self.ending.is_empty() && self.rooms.get(room).is_some_and(|home| home.members + home.away == 1)
    }

    /// Connections in a room.
    pub(crate) fn members(&self, room: &Room) -> u32 {
        self.rooms.get(room).map_or(0, |home| home.members)
    }

    /// The shards with members of a room.
    pub(crate) fn shards_of(&self, room: &Room) -> Vec<ShardId> {
        self.rooms.get(room).into_iter().flat_map(|home| home.shards.holders()).collect()
    }

    /// How a room is now, without its past.
    pub(crate) fn view(&self, room: &Room, online: bool) -> RoomView {
        let Some(home) = self.rooms.get(room) else { return RoomView::default() };
        let present = home.public.as_ref().filter(|_| online).into_iter().flat_map(|public| public.present.keys());
        let record = home.public.as_ref().and_then(|public| public.record.as_ref());
        let of_room = record.map(|record| Box::new(OfRoom { name: record.name().into() }));
        RoomView { members: home.members, online: present.cloned().collect(), of_room, ..RoomView::default() }
    }

    /// Numbers a message and keeps it; calls `cast` for each shard with members. `None`: no such room.
    pub(crate) fn publish(
        &mut self,
        room: &Room,
        keep: Option<Keep>,
        unix_ms: u64,
        stats: &ShardStats,
        mut cast: impl FnMut(ShardId, u64),
    ) -> Option<()> {
        // Everybody is in the room of everybody, on every shard; nobody enters it.
        let everybody = room.name.is_empty();
        if everybody && !self.rooms.contains(room) {
            self.create(room, stats).ok()?;
        }
        let home = self.rooms.get_mut(room)?;
        home.seq += 1;
        if let Some(public) = &mut home.public {
            public.active_unix_ms = unix_ms;
        }
        if everybody {
            (0..self.shards).for_each(|shard| cast(ShardId(shard as u8), home.seq));
        } else {
            home.shards.holders().for_each(|shard| cast(shard, home.seq));
        }
        if let Some((keep, public)) = keep.zip(home.public.as_mut()) {
            let is_empty = home.members == 0 && home.away == 0;
            if is_empty {
                // Until it is tidied it is on no list, so that it is not itself what makes way for what it is to keep.
                self.stamps += 1;
                public.emptied = self.stamps;
            }
            while self.history.is_full_for(&keep) && self.evict_past(stats) {}
            self.history.append(room, keep, unix_ms, stats);
            if is_empty {
                self.tidy(room, stats);
            }
        }
        Some(())
    }

    /// Makes sure that there is a room to keep something in, though nobody is in it. It lasts as long as what [`Self::publish`] then keeps.
    pub(crate) fn ensure(&mut self, room: &Room, unix_ms: u64, stats: &ShardStats) -> Result<(), EnterFault> {
        if !self.rooms.contains(room) {
            self.create(room, stats)?;
        }
        self.touch(room, unix_ms);
        Ok(())
    }

    /// True exactly when no room is ending whose members are still being counted out.
    pub(crate) fn are_settled(&self) -> bool {
        self.ending.is_empty() && self.ended.is_empty()
    }

    /// As plain data: the rooms without their members, and a number that is greater than all of theirs that are gone.
    pub(crate) fn freeze(&self) -> (Vec<FrozenRoom>, u64) {
        let freeze = |room: &Room| {
            let home = self.rooms.get(room)?;
            let public = home.public.as_deref();
            let emptied = public.map_or(0, |public| public.emptied);
            Some(FrozenRoom {
                endpoint: room.endpoint.0,
                name: room.name.clone(),
                seq: home.seq,
                created_unix_ms: public.map_or(0, |public| public.created_unix_ms),
                active_unix_ms: public.map_or(0, |public| public.active_unix_ms),
                emptied: if self.is_empty_since(room, emptied) { emptied } else { 0 },
                record: public.and_then(|public| public.record.as_deref()).map(Record::freeze),
            })
        };
        (self.rooms.rooms().filter_map(freeze).collect(), self.seq_floor)
    }

    /// Puts a room back, without members. The bounds on rooms were held when it was made.
    pub(crate) fn restore(&mut self, room: &Room, frozen: FrozenRoom, stats: &ShardStats) {
        if self.rooms.contains(room) {
            return;
        }
        if room.is_public() {
            self.public_rooms += 1;
            self.names.insert(room.clone());
            endpoint(stats, room.endpoint).rooms.add(1);
        }
        let FrozenRoom { seq, created_unix_ms, active_unix_ms, record, .. } = frozen;
        let record = record.map(Record::thaw).map(Box::new);
        self.record_bytes += record.as_ref().map_or(0, |record| record.bytes());
        let public = PublicPart { present: HashMap::default(), emptied: 0, created_unix_ms, active_unix_ms, record };
        let public = room.is_public().then(|| Box::new(public));
        self.rooms.insert(room.clone(), HomeRoom { seq, shards: Counts::NONE, members: 0, away: 0, public });
    }

    /// Numbers of rooms that come back must be greater than this.
    pub(crate) fn restore_floor(&mut self, seq_floor: u64) {
        self.seq_floor = self.seq_floor.max(seq_floor);
    }

    /// Counts a member in again, or one that is away.
    pub(crate) fn seat(&mut self, room: &Room, shard: ShardId, presence: &UserId, is_away: bool, stats: &ShardStats) {
        let shards = self.shards;
        let Some(home) = self.rooms.get_mut(room) else { return };
        home.shards.add(shard, shards);
        if is_away {
            home.away += 1;
        } else {
            self.appear(room, presence, stats);
        }
        self.note_change(room);
    }

    /// Removes empty rooms whose newest message is too old.
    pub(crate) fn sweep(&mut self, unix_ms: u64, stats: &ShardStats) {
        for list in [KEPT, MADE] {
            while self.longest_empty(list).is_some() {
                if self.empty[list].front().is_some_and(|(room, _)| self.history.holds(room, unix_ms)) {
                    break;
                }
                self.evict_first(list, stats);
            }
        }
    }

    /// Rooms that are entered and left again and again leave entries behind that are no longer true.
    fn tidy_empty(&mut self, list: usize) {
        if self.empty[list].len() > 2 * self.rooms.len() + EMPTY_SLACK {
            let mut empty = std::mem::take(&mut self.empty[list]);
            empty.retain(|(room, stamp)| self.is_empty_since(room, *stamp));
            self.empty[list] = empty;
        }
    }

    /// True exactly when this entry of a list of empty rooms is still true.
    fn is_empty_since(&self, room: &Room, stamp: u64) -> bool {
        let home = self.rooms.get(room).filter(|home| home.members == 0 && home.away == 0);
        home.and_then(|home| home.public.as_ref()).is_some_and(|public| public.emptied == stamp)
    }

    fn create(&mut self, room: &Room, stats: &ShardStats) -> Result<(), EnterFault> {
        if self.ending.contains_key(room) {
            // Those who are still leaving are counted out of the room that has ended.
            return Err(EnterFault::NoRoom);
        }
        if room.is_public() {
            while self.public_rooms >= self.rooms_max {
                if self.longest_empty(KEPT).is_none() {
                    return Err(EnterFault::Full);
                }
                self.evict_first(KEPT, stats);
            }
            self.public_rooms += 1;
            self.names.insert(room.clone());
            endpoint(stats, room.endpoint).rooms.add(1);
        }
        let public = room.is_public().then(Box::default);
        let home = HomeRoom { seq: self.seq_floor, shards: Counts::NONE, members: 0, away: 0, public };
        self.rooms.insert(room.clone(), home);
        Ok(())
    }

    /// Since which stamp the first room of a list of empty ones is empty; `None` when there is none. What is out of date goes.
    fn longest_empty(&mut self, list: usize) -> Option<u64> {
        loop {
            let (room, stamp) = self.empty[list].front()?;
            if self.is_empty_since(room, *stamp) {
                return Some(*stamp);
            }
            self.empty[list].pop_front();
        }
    }

    /// Makes place for bytes at the cost of the room that has been empty longest; false when there is none.
    fn evict_past(&mut self, stats: &ShardStats) -> bool {
        let first = [KEPT, MADE].into_iter().filter_map(|list| Some((self.longest_empty(list)?, list))).min();
        if let Some((_, list)) = first {
            self.evict_first(list, stats);
        }
        first.is_some()
    }

    /// Takes the first room off a list of empty ones; one that the back end made loses only its history.
    fn evict_first(&mut self, list: usize, stats: &ShardStats) {
        let Some((room, _)) = self.empty[list].pop_front() else { return };
        if list == MADE {
            self.history.forget(&room, stats);
        } else {
            self.remove(&room, stats);
        }
    }

    fn remove(&mut self, room: &Room, stats: &ShardStats) -> Option<HomeRoom> {
        let home = self.rooms.remove(room)?;
        self.seq_floor = self.seq_floor.max(home.seq);
        if let Some(public) = &home.public {
            self.history.forget(room, stats);
            self.names.remove(room);
            self.record_bytes -= public.record.as_ref().map_or(0, |record| record.bytes());
            self.public_rooms -= 1;
            endpoint(stats, room.endpoint).rooms.sub(1);
        }
        Some(home)
    }
}

fn endpoint(stats: &ShardStats, id: EndpointId) -> &crate::stats::EndpointStats {
    &stats.endpoints[usize::from(id.0)]
}

#[cfg(test)]
mod tests {
    use super::super::history::{Past, Range, Reading};
    use super::*;

    fn homes(rooms: usize) -> (Homes, ShardStats) {
        let limits = Limits { rooms: 2 * rooms, history_messages: 3, history_age_ms: 1_000, ..Limits::default() };
        (Homes::new(&limits, 2), ShardStats::new(1))
    }

    fn keep(text: &str) -> Keep {
        Keep { id: None, by_id: false, author: "alice".into(), text: text.into(), hidden_from: None, messages_max: usize::MAX }
    }

    /// How many messages are kept of a room.
    fn kept(homes: &mut Homes, name: &str) -> usize {
        match homes.history().read(&room(name), Range::ALL, 0) {
            Reading::Now(past) => past.total,
            Reading::Later(_) => unreachable!("memory is at hand"),
        }
    }

    fn room(name: &str) -> Room {
        Room::named(EndpointId(0), name)
    }

    #[test]
    fn presence_changes_with_the_first_and_the_last() {
        let (mut homes, stats) = homes(10);
        let (r, alice) = (room("r"), UserId::from("alice"));
        let first = |homes: &mut Homes, shard| homes.enter(&r, ShardId(shard), &alice, true, u32::MAX, &stats).expect("open");
        assert!(first(&mut homes, 0));
        assert!(!first(&mut homes, 1));
        assert!(!homes.leave(&r, ShardId(0), &alice, false, &stats));
        assert!(homes.leave(&r, ShardId(1), &alice, false, &stats));
        assert_eq!(homes.rooms.len(), 0, "an empty room without history is gone");
        assert_eq!(homes.enter(&r, ShardId(0), &alice, false, 9, &stats), Err(EnterFault::NoRoom));
    }

    #[test]
    fn casts_go_only_to_shards_with_members() {
        let (mut homes, stats) = homes(10);
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
    fn coming_back_keeps_the_neighbours_history_and_leaves_no_trace() {
        let (mut homes, stats) = homes(10);
        let visit = |homes: &mut Homes, name: &str| {
            homes.enter(&room(name), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("open");
            homes.publish(&room(name), Some(keep("m")), 0, &stats, |_, _| {});
            homes.leave(&room(name), ShardId(0), &"a".into(), false, &stats);
        };
        visit(&mut homes, "a");
        visit(&mut homes, "b");
        homes.enter(&room("a"), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("open");
        homes.sweep(0, &stats);
        assert_eq!(kept(&mut homes, "b"), 1, "b is empty, not forgotten");
        for _ in 0..10_000 {
            visit(&mut homes, "b");
        }
        assert!(homes.empty[KEPT].len() <= 2 * 2 + EMPTY_SLACK + 1, "{} entries for two rooms", homes.empty[KEPT].len());
    }

    #[test]
    fn empty_rooms_with_history_go_when_room_is_needed_or_time_has_passed() {
        let (mut homes, stats) = homes(2);
        let visit = |homes: &mut Homes, name: &str, now| {
            let entered = homes.enter(&room(name), ShardId(0), &"a".into(), true, u32::MAX, &stats);
            if entered.is_ok() {
                homes.publish(&room(name), Some(keep("m")), now, &stats, |_, _| {});
                homes.leave(&room(name), ShardId(0), &"a".into(), false, &stats);
            }
            entered
        };
        for (now, name) in ["a", "b", "c"].into_iter().enumerate() {
            visit(&mut homes, name, now as u64).expect("the longest empty one makes place");
        }
        assert_eq!((homes.rooms.len(), kept(&mut homes, "a"), kept(&mut homes, "c")), (2, 0, 1));
        homes.enter(&room("d"), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("evicts b");
        homes.enter(&room("e"), ShardId(0), &"a".into(), true, u32::MAX, &stats).expect("evicts c");
        assert_eq!(visit(&mut homes, "f", 3), Err(EnterFault::Full), "rooms with members stay");
        homes.leave(&room("d"), ShardId(0), &"a".into(), false, &stats);
        visit(&mut homes, "g", 5).expect("d is gone");
        homes.sweep(2_000, &stats);
        assert_eq!((homes.rooms.len(), kept(&mut homes, "g")), (1, 0));
        assert_eq!(stats.endpoints[0].rooms.read(), 1);
    }

    #[test]
    fn the_longest_empty_room_loses_its_history_first_when_there_is_no_place_for_bytes() {
        let (mut homes, stats) = homes(9);
        homes.history = Box::new(Memory::new(Bounds { bytes: 1_000, messages: 9, age_ms: 9 }));
        let enter = |homes: &mut Homes, name: &str| homes.enter(&room(name), ShardId(0), &"a".into(), true, 9, &stats).expect("open");
        let say = |homes: &mut Homes, name: &str, bytes| {
            homes.publish(&room(name), Some(keep(&"x".repeat(bytes))), 0, &stats, |_, _| {}).expect("exists");
        };
        for name in ["full", "first", "second"] {
            enter(&mut homes, name);
            say(&mut homes, name, 200);
        }
        for name in ["first", "second"] {
            homes.leave(&room(name), ShardId(0), &"a".into(), false, &stats);
        }
        say(&mut homes, "full", 300);
        assert_eq!((homes.rooms.len(), kept(&mut homes, "first"), kept(&mut homes, "second"), kept(&mut homes, "full")), (2, 0, 1, 1));
        homes.publish(&Room::everybody(EndpointId(0)), Some(keep("m")), 0, &stats, |_, _| {}).expect("always there");
        assert_eq!(homes.history().read(&Room::everybody(EndpointId(0)), Range::ALL, 0), Reading::Now(Past::default()));
    }

    #[test]
    fn what_is_said_in_the_longest_empty_room_does_not_cost_it_its_place() {
        let (mut homes, stats) = homes(9);
        homes.history = Box::new(Memory::new(Bounds { bytes: 1_000, messages: 9, age_ms: 9 }));
        let say = |homes: &mut Homes, name: &str| homes.publish(&room(name), Some(keep(&"x".repeat(200))), 7, &stats, |_, _| {});
        for name in ["first", "second", "third"] {
            homes.ensure(&room(name), 7, &stats).expect("place");
            say(&mut homes, name).expect("exists");
        }
        say(&mut homes, "first").expect("exists");
        assert_eq!((homes.has(&room("first")), homes.has(&room("second")), kept(&mut homes, "first")), (true, false, 1));
        assert_eq!(homes.info(&room("first")).map(|info| info.created_unix_ms), Some(7), "since it was spoken in");
        homes.sweep(17, &stats);
        let counters = &stats.endpoints[0];
        assert_eq!((homes.rooms.len(), counters.rooms.read(), counters.history_messages.read()), (0, 0, 0));
    }

    #[test]
    fn counting_out_whom_nobody_counted_in_changes_nothing() {
        let (mut homes, stats) = homes(9);
        let (r, alice) = (room("r"), UserId::from("alice"));
        homes.enter(&r, ShardId(0), &alice, true, 9, &stats).expect("open");
        assert!(!homes.leave(&r, ShardId(1), &alice, false, &stats));
        homes.give_up(&r, ShardId(0), &stats);
        assert_eq!((homes.members(&r), homes.shards_of(&r)), (1, vec![ShardId(0)]));
        homes.ensure(&room("kept"), 0, &stats).expect("place");
        for away in [false, true] {
            assert!(!homes.leave(&room("kept"), ShardId(0), &alice, away, &stats));
        }
        assert_eq!(homes.members(&room("kept")), 0);
    }
}
