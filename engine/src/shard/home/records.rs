//! Rooms as the back end sees them: those that it made, which exist without members until it deletes them, the list of all, and how a room
//! ends by its will.

use std::ops::Bound;

use super::{HomeRoom, Homes};
use crate::ids::{EndpointId, Room, ShardId};
use crate::limits::{ENDS_UNTOLD_MAX, ROLL_ROOMS, ROOM_RECORDS_BYTES_MAX, ROOMS_LISTED_BYTES_MAX, ROOMS_LOOKED_AT_MAX};
use crate::shard::frozen::FrozenRecord;
use crate::shard::outward::Made;
use crate::shard::room_calls::{NewRoom, RoomFault, RoomInfo};
use crate::stats::ShardStats;

/// Namespace of a room that was given none.
pub(in crate::shard) const NAMESPACE: &str = "default";

/// What the back end said of a room when it made it.
#[derive(Debug)]
pub(super) struct Record {
    name: Box<str>,
    namespace: Box<str>,
    created_by: Option<Box<str>>,
    /// A JSON object as it came.
    metadata: Box<str>,
    /// True exactly when hosts that come later learn of it.
    is_registered: bool,
    /// The last roll call that it was there for, or made in.
    seen: u64,
}

impl Record {
    fn new(new: &NewRoom) -> Record {
        Record {
            name: new.name.as_str().into(),
            namespace: new.namespace.as_deref().unwrap_or(NAMESPACE).into(),
            created_by: new.created_by.as_deref().map(Box::from),
            metadata: new.metadata.as_str().into(),
            is_registered: false,
            seen: 0,
        }
    }

    /// What was said of the room.
    fn new_room(&self, room: &Room) -> NewRoom {
        NewRoom {
            room: room.clone(),
            name: self.name.to_string(),
            namespace: Some(self.namespace.to_string()),
            created_by: self.created_by.as_deref().map(str::to_owned),
            metadata: self.metadata.to_string(),
        }
    }

    /// As plain data.
    pub(super) fn freeze(&self) -> FrozenRecord {
        let Record { name, namespace, created_by, metadata, is_registered, .. } = self;
        let (name, namespace, metadata) = (name.clone(), namespace.clone(), metadata.clone());
        FrozenRecord { name, namespace, created_by: created_by.clone(), metadata, is_registered: *is_registered }
    }

    /// The opposite of [`Self::freeze`].
    pub(super) fn thaw(frozen: FrozenRecord) -> Record {
        let FrozenRecord { name, namespace, created_by, metadata, is_registered } = frozen;
        Record { name, namespace, created_by, metadata, is_registered, seen: 0 }
    }

    /// The name for people.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Record>()
            + self.name.len()
            + self.namespace.len()
            + self.metadata.len()
            + self.created_by.as_ref().map_or(0, |by| by.len())
    }
}

/// A room that was deleted and whose members have not all left yet: until they have, nobody enters one of this name.
#[derive(Debug)]
pub(super) struct Ending {
    home: HomeRoom,
    /// The questions that are answered when it is over.
    asks: Vec<u64>,
}

impl Ending {
    pub(super) fn home(&mut self) -> &mut HomeRoom {
        &mut self.home
    }
}

/// A part of the list of rooms.
#[derive(Default, Debug)]
pub(crate) struct Listed {
    pub(crate) rooms: Vec<RoomInfo>,
    /// The last name that was looked at, where more follow that were not.
    pub(crate) until: Option<String>,
}

impl Homes {
    /// Makes a room that exists without members.
    pub(crate) fn establish(&mut self, new: &NewRoom, unix_ms: u64, stats: &ShardStats) -> Result<(), RoomFault> {
        let room = &new.room;
        if self.rooms.contains(room) || self.ending.contains_key(room) {
            return Err(RoomFault::Exists);
        }
        let record = Box::new(Record { seen: self.rolls, ..Record::new(new) });
        if self.record_bytes + record.bytes() > ROOM_RECORDS_BYTES_MAX {
            return Err(RoomFault::Full);
        }
        self.create(room, stats).map_err(|_| RoomFault::Full)?;
        // It is no end any more that others have to be told of.
        self.ends_untold.retain(|ended| ended != room);
        self.record_bytes += record.bytes();
        if let Some(public) = self.rooms.get_mut(room).and_then(|home| home.public.as_mut()) {
            public.record = Some(record);
        }
        self.touch(room, unix_ms);
        Ok(())
    }

    fn record(&mut self, room: &Room) -> Option<&mut Record> {
        self.rooms.get_mut(room)?.public.as_mut()?.record.as_deref_mut()
    }

    /// Hosts that come later learn of the room, or that it is no more.
    pub(crate) fn registered(&mut self, room: &Room) {
        match self.record(room) {
            Some(record) => record.is_registered = true,
            None => self.ends_untold.retain(|ended| ended != room),
        }
    }

    /// Remembers that a room has ended until all hosts know.
    pub(crate) fn remember_end(&mut self, room: &Room) {
        if self.ends_untold.len() >= ENDS_UNTOLD_MAX {
            self.ends_untold.pop_front();
        }
        self.ends_untold.push_back(room.clone());
    }

    /// The rooms that have ended and of which not all hosts know yet.
    pub(crate) fn ends_untold(&self) -> impl Iterator<Item = &Room> {
        self.ends_untold.iter()
    }

    /// A roll call begins.
    pub(crate) fn begin_roll(&mut self) {
        self.rolls += 1;
    }

    /// The next rooms that the back end has made, all of them or those of which not all hosts know; where to go on, if there are more.
    pub(crate) fn made_after(&self, all: bool, after: Option<&Room>) -> (Vec<Made>, Option<Room>) {
        let start = after.map_or(Bound::Unbounded, |room| Bound::Excluded(room.clone()));
        let mut made = Vec::new();
        let mut looked_at = 0;
        for room in self.names.range((start, Bound::Unbounded)) {
            let public = self.rooms.get(room).and_then(|home| home.public.as_deref());
            let Some((public, record)) = public.and_then(|public| Some((public, public.record.as_deref()?))) else { continue };
            looked_at += 1;
            if all || !record.is_registered {
                made.push(Made { new: record.new_room(room), unix_ms: public.created_unix_ms, is_news: false });
            }
            if looked_at == ROLL_ROOMS {
                return (made, Some(room.clone()));
            }
        }
        (made, None)
    }

    /// There is a room that the back end has made, on whichever host.
    pub(crate) fn acknowledge(&mut self, made: &Made, stats: &ShardStats) -> Result<(), RoomFault> {
        let (room, rolls) = (&made.new.room, self.rolls);
        if self.ends_untold.contains(room) {
            // It has ended here and is about to end there.
            return Ok(());
        }
        if self.record(room).is_none() {
            match self.establish(&made.new, made.unix_ms, stats) {
                Err(RoomFault::Exists) => self.adopt(&made.new)?,
                outcome => outcome?,
            }
        }
        if let Some(record) = self.record(room) {
            (record.is_registered, record.seen) = (true, rolls);
        }
        Ok(())
    }

    /// A room that came into being by being entered turns out to be one that the back end has made.
    fn adopt(&mut self, new: &NewRoom) -> Result<(), RoomFault> {
        let record = Box::new(Record::new(new));
        let bytes = self.record_bytes + record.bytes();
        let public = self.rooms.get_mut(&new.room).and_then(|home| home.public.as_mut()).ok_or(RoomFault::Exists)?;
        if bytes > ROOM_RECORDS_BYTES_MAX {
            return Err(RoomFault::Full);
        }
        public.record = Some(record);
        self.record_bytes = bytes;
        Ok(())
    }

    /// The rooms that all hosts knew of once and that were not there for the last roll call.
    pub(crate) fn absent(&self) -> Vec<Room> {
        let record = |room: &Room| self.rooms.get(room)?.public.as_deref()?.record.as_deref();
        let is_absent = |room: &&Room| record(room).is_some_and(|record| record.is_registered && record.seen < self.rolls);
        self.names.iter().filter(is_absent).cloned().collect()
    }

    /// Something happened in a room.
    pub(crate) fn touch(&mut self, room: &Room, unix_ms: u64) {
        let Some(public) = self.rooms.get_mut(room).and_then(|home| home.public.as_mut()) else { return };
        public.active_unix_ms = unix_ms;
        if public.created_unix_ms == 0 {
            public.created_unix_ms = unix_ms;
        }
    }

    /// A room as the back end sees it.
    pub(crate) fn info(&self, room: &Room) -> Option<RoomInfo> {
        let home = self.rooms.get(room)?;
        let public = home.public.as_deref()?;
        let record = public.record.as_deref();
        Some(RoomInfo {
            id: room.name.clone(),
            name: record.map_or(&*room.name, Record::name).to_owned(),
            namespace: record.map_or(NAMESPACE, |record| &record.namespace).to_owned(),
            created_by: record.and_then(|record| record.created_by.as_deref()).map(str::to_owned),
            metadata: record.map_or("{}", |record| &record.metadata).to_owned(),
            created_unix_ms: public.created_unix_ms,
            active_unix_ms: public.active_unix_ms,
            members: home.members,
        })
    }

    /// The first rooms of an endpoint after a name, in the order of their names. However few are of the namespace that is wanted, and
    /// however much is said of them, not more are looked at or copied than a shard has time for.
    pub(crate) fn list(&self, endpoint: EndpointId, namespace: Option<&str>, after: Option<&str>, limit: usize) -> Listed {
        let start = match after {
            Some(after) => Bound::Excluded(Room::named(endpoint, after)),
            None => Bound::Included(Room::everybody(endpoint)),
        };
        let (mut rooms, mut bytes, mut last) = (Vec::new(), 0, None::<&std::sync::Arc<str>>);
        let names = self.names.range((start, Bound::Unbounded)).take_while(|room| room.endpoint == endpoint);
        for (looked_at, room) in names.enumerate() {
            if looked_at == ROOMS_LOOKED_AT_MAX || bytes > ROOMS_LISTED_BYTES_MAX {
                return Listed { rooms, until: last.map(|name| name.to_string()) };
            }
            // Only what follows it may be missing.
            last = Some(&room.name);
            if namespace.is_some_and(|wanted| self.namespace(room) != Some(wanted)) {
                continue;
            }
            let Some(info) = self.info(room) else { continue };
            bytes += info.metadata.len() + info.name.len();
            rooms.push(info);
            if rooms.len() >= limit {
                break;
            }
        }
        Listed { rooms, until: None }
    }

    fn namespace(&self, room: &Room) -> Option<&str> {
        let public = self.rooms.get(room)?.public.as_deref()?;
        Some(public.record.as_deref().map_or(NAMESPACE, |record| &record.namespace))
    }

    /// Ends a room: it is gone at once, with all it keeps, and `ask` is answered when the last member has left. The shards that have
    /// members; `None` when there is no such room.
    pub(crate) fn end(&mut self, room: &Room, ask: u64, stats: &ShardStats) -> Option<Vec<ShardId>> {
        if let Some(ending) = self.ending.get_mut(room) {
            ending.asks.push(ask);
            return Some(Vec::new());
        }
        let shards = self.shards_of(room);
        let home = self.remove(room, stats)?;
        self.ending.insert(room.clone(), Ending { home, asks: vec![ask] });
        self.tidy_ending(room);
        Some(shards)
    }

    /// Forgets an ended room that nobody is in any more.
    pub(super) fn tidy_ending(&mut self, room: &Room) {
        if self.ending.get(room).is_none_or(|ending| ending.home.members > 0 || ending.home.away > 0) {
            return;
        }
        self.ended.extend(self.ending.remove(room).into_iter().flat_map(|ending| ending.asks));
    }

    /// A question about the end of a room whose last member has left since this was last asked.
    pub(crate) fn next_ended(&mut self) -> Option<u64> {
        self.ended.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Limits, ROOM_METADATA_BYTES_MAX};

    fn homes(rooms: usize) -> (Homes, ShardStats) {
        (Homes::new(&Limits { rooms, ..Limits::default() }, 1), ShardStats::new(1))
    }

    fn new(name: &str, metadata_bytes: usize) -> NewRoom {
        let metadata = "x".repeat(metadata_bytes);
        NewRoom { room: Room::named(EndpointId(0), name), name: name.into(), namespace: None, created_by: None, metadata }
    }

    fn enter(homes: &mut Homes, name: &str, stats: &ShardStats) -> bool {
        homes.enter(&Room::named(EndpointId(0), name), ShardId(0), &"a".into(), true, 9, stats).is_ok()
    }

    #[test]
    fn made_rooms_stay_and_are_bounded_by_number_and_bytes() {
        let (mut homes, stats) = homes(2);
        assert_eq!((homes.establish(&new("a", 2), 1, &stats), homes.establish(&new("a", 2), 1, &stats)), (Ok(()), Err(RoomFault::Exists)));
        assert!(enter(&mut homes, "b", &stats));
        assert_eq!(homes.establish(&new("c", 2), 1, &stats), Err(RoomFault::Full));
        assert!(!enter(&mut homes, "c", &stats), "a room that the back end made does not make way");
        let ask = |homes: &mut Homes, name: &str| homes.end(&Room::named(EndpointId(0), name), 7, &stats);
        assert_eq!((ask(&mut homes, "a"), homes.next_ended(), homes.record_bytes), (Some(vec![]), Some(7), 0));
        assert_eq!(ask(&mut homes, "b"), Some(vec![ShardId(0)]));
        assert!(homes.next_ended().is_none() && !enter(&mut homes, "b", &stats), "its member has not left yet");
        assert_eq!(homes.establish(&new("b", 2), 1, &stats), Err(RoomFault::Exists));
        homes.leave(&Room::named(EndpointId(0), "b"), ShardId(0), &"a".into(), false, &stats);
        assert_eq!((homes.next_ended(), homes.ending.len(), homes.names.len()), (Some(7), 0, 0));
        assert!(enter(&mut homes, "b", &stats));

        let (mut homes, stats) = self::homes(1_000_000);
        let made =
            (0..).take_while(|number: &usize| homes.establish(&new(&number.to_string(), ROOM_METADATA_BYTES_MAX), 1, &stats).is_ok());
        assert!((7_000..8_192).contains(&made.count()));
        assert!(homes.record_bytes <= ROOM_RECORDS_BYTES_MAX);
    }

    #[test]
    fn of_a_made_room_that_is_empty_only_the_past_makes_way() {
        let (mut homes, stats) = homes(9);
        let room = Room::named(EndpointId(0), "a");
        homes.establish(&new("a", 2), 1, &stats).expect("place");
        let keep =
            crate::dialect::Keep { id: None, by_id: false, author: "a".into(), text: "m".into(), hidden_from: None, messages_max: 9 };
        assert!(enter(&mut homes, "a", &stats));
        homes.publish(&room, Some(keep), 5, &stats, |_, _| {}).expect("exists");
        homes.leave(&room, ShardId(0), &"a".into(), false, &stats);
        assert!(homes.history().holds(&room, 5) && homes.evict_past(&stats));
        assert!(!homes.history().holds(&room, 5) && homes.has(&room) && !homes.evict_past(&stats));
        assert_eq!(homes.info(&room).map(|info| (info.created_unix_ms, info.active_unix_ms)), Some((1, 5)));
    }

    #[test]
    fn a_page_of_rooms_of_which_much_is_said_is_short() {
        let (mut homes, stats) = homes(1_000);
        for number in 0..200 {
            homes.establish(&new(&format!("{number:03}"), ROOM_METADATA_BYTES_MAX), 1, &stats).expect("place");
        }
        let (mut seen, mut after, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let listed = homes.list(EndpointId(0), Some(NAMESPACE), after.as_deref(), 1_000);
            assert!(listed.rooms.iter().map(|room| room.metadata.len()).sum::<usize>() <= ROOMS_LISTED_BYTES_MAX + ROOM_METADATA_BYTES_MAX);
            seen.extend(listed.rooms.into_iter().map(|room| room.id));
            pages += 1;
            after = listed.until;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((seen.len(), seen.is_sorted_by(|one, other| one < other), pages), (200, true, 4));
    }

    #[test]
    fn a_room_that_finds_no_place_costs_made_rooms_nothing() {
        let (mut homes, stats) = homes(3);
        let keep = || {
            Some(crate::dialect::Keep { id: None, by_id: false, author: "a".into(), text: "m".into(), hidden_from: None, messages_max: 9 })
        };
        let room = |name: &str| Room::named(EndpointId(0), name);
        for name in ["a", "b"] {
            homes.establish(&new(name, 2), 1, &stats).expect("place");
            homes.publish(&room(name), keep(), 1, &stats, |_, _| {}).expect("exists");
        }
        homes.ensure(&room("kept"), 1, &stats).expect("place");
        homes.publish(&room("kept"), keep(), 1, &stats, |_, _| {}).expect("exists");
        assert!(enter(&mut homes, "c", &stats) && !homes.has(&room("kept")), "what is there only for its history makes way");
        assert_eq!((enter(&mut homes, "d", &stats), homes.establish(&new("d", 2), 1, &stats)), (false, Err(RoomFault::Full)));
        assert!(["a", "b"].iter().all(|name| homes.history().holds(&room(name), 1)));
        assert!(homes.evict_past(&stats) && !homes.history().holds(&room("a"), 1) && homes.history().holds(&room("b"), 1));
    }

    #[test]
    fn nothing_is_kept_of_a_room_that_is_ending() {
        let (mut homes, stats) = homes(3);
        let room = Room::named(EndpointId(0), "a");
        assert!(enter(&mut homes, "a", &stats));
        homes.end(&room, 7, &stats).expect("exists");
        assert_eq!(homes.ensure(&room, 1, &stats), Err(crate::dialect::EnterFault::NoRoom));
        homes.leave(&room, ShardId(0), &"a".into(), false, &stats);
        assert_eq!((homes.next_ended(), homes.ensure(&room, 1, &stats)), (Some(7), Ok(())));
    }

    #[test]
    fn a_list_of_few_among_many_is_found_step_by_step() {
        let (mut homes, stats) = homes(1_000_000);
        for number in 0..2 * ROOMS_LOOKED_AT_MAX + 5 {
            let namespace = (number % 7_000 == 6_999).then(|| "rare".to_owned());
            homes.establish(&NewRoom { namespace, ..new(&format!("{number:08}"), 2) }, 1, &stats).expect("place");
        }
        homes.establish(&NewRoom { room: Room::named(EndpointId(1), "0"), ..new("0", 2) }, 1, &ShardStats::new(2)).expect("place");
        let (mut found, mut after, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let listed = homes.list(EndpointId(0), Some("rare"), after.as_deref(), 9);
            found.extend(listed.rooms.iter().map(|room| room.id.to_string()));
            pages += 1;
            after = listed.until;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((found, pages), (vec!["00006999".to_owned(), "00013999".to_owned()], 3));
        let exactly = homes.list(EndpointId(0), None, Some("00000004"), ROOMS_LOOKED_AT_MAX);
        assert_eq!((exactly.rooms.len(), exactly.until), (ROOMS_LOOKED_AT_MAX, None));
    }
}
