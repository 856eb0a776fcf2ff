//! Rooms into which the back end puts users. A user's home remembers them where the dialect asks for that, so that his later connections
//! enter as well; his connections on every shard are told by parcels.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::Shard;
use super::parcel::{Announcement, Answer, Enter, Grant, GrantFault, Leave, Parcel, Round};
use crate::event::What;
use crate::ids::{EndpointId, Room};
use crate::limits::{GRANTS_PER_SHARD_MAX, GRANTS_PER_USER_MAX};
use crate::time::Now;

/// The rooms of the users whose home is here.
#[derive(Default, Debug)]
pub(crate) struct Grants {
    /// Names of rooms by the user's own room.
    by_user: HashMap<Room, Vec<Arc<str>>, RandomState>,
    /// The users' own rooms by the room: the same places, for when a room ends.
    users: HashMap<Room, HashSet<Room, RandomState>, RandomState>,
    places: usize,
}

impl Grants {
    /// The rooms of a user, who is given as his own room; any other room has none.
    pub(crate) fn of(&self, user: &Room) -> Vec<Arc<str>> {
        self.by_user.get(user).cloned().unwrap_or_default()
    }

    fn add(&mut self, user: &Room, name: &Arc<str>) -> Result<(), GrantFault> {
        let rooms = self.by_user.get(user).map_or(&[][..], |rooms| rooms);
        if rooms.contains(name) {
            return Ok(());
        }
        if rooms.len() >= GRANTS_PER_USER_MAX {
            return Err(GrantFault::OfUser);
        }
        if self.places >= GRANTS_PER_SHARD_MAX {
            return Err(GrantFault::OfHost);
        }
        self.places += 1;
        self.by_user.entry(user.clone()).or_default().push(name.clone());
        self.users.entry(Room { name: name.clone(), ..*user }).or_default().insert(user.clone());
        Ok(())
    }

    fn remove(&mut self, user: &Room, name: &Arc<str>) {
        let Some(rooms) = self.by_user.get_mut(user) else { return };
        if let Some(place) = rooms.iter().position(|room| room == name) {
            rooms.swap_remove(place);
            self.places -= 1;
        }
        if rooms.is_empty() {
            self.by_user.remove(user);
        }
        let room = Room { name: name.clone(), ..*user };
        let Some(users) = self.users.get_mut(&room) else { return };
        users.remove(user);
        if users.is_empty() {
            self.users.remove(&room);
        }
    }

    /// As plain data.
    pub(crate) fn freeze(&self) -> Vec<(u8, Arc<str>, Vec<Arc<str>>)> {
        self.by_user.iter().map(|(user, rooms)| (user.endpoint.0, user.name.clone(), rooms.clone())).collect()
    }

    /// Remembers a user's rooms again; what a smaller bound has no place for is forgotten.
    pub(crate) fn restore(&mut self, user: &Room, rooms: &[Arc<str>]) {
        for room in rooms {
            let _ = self.add(user, room);
        }
    }

    /// Nobody belongs into a room any more.
    pub(crate) fn forget(&mut self, room: &Room) {
        for user in self.users.remove(room).unwrap_or_default() {
            self.remove(&user, &room.name);
        }
    }
}

impl Shard {
    /// Puts a user into a room or takes him out, if this is his home; the answer is the number of his connections, which are in by then.
    pub(super) fn grant(&mut self, ask: u64, endpoint: EndpointId, room: &str, user: &str, is_member: bool) {
        let (home, room) = (Room::user(endpoint, user), Room::named(endpoint, room));
        let outcome = self.grant_from_home(&home, &room, user, is_member);
        let mut way = Vec::new();
        if outcome.is_some_and(|outcome| outcome.is_ok()) {
            // Parcels from one shard to another keep their order: a shard that has the round has asked the room's home for its connections,
            // the home that has it has answered, and the shard that has it again has the answers.
            let room_home = self.home_of(&room);
            way.extend(self.homes.shards_of(&home).into_iter().flat_map(|shard| [self.id, shard, room_home, shard]));
        }
        self.go_round(Box::new(Round { way, ask, answer: Answer::Granted(outcome) }));
    }

    /// Sends an answer on, or gives it.
    pub(super) fn go_round(&mut self, mut round: Box<Round>) {
        match round.way.pop() {
            Some(next) => self.post_to(next, Parcel::Round(round)),
            None => self.answers.push_back((round.ask, round.answer)),
        }
    }

    fn grant_from_home(&mut self, home: &Room, room: &Room, user: &str, is_member: bool) -> Option<Result<u32, GrantFault>> {
        let endpoint = room.endpoint;
        // The user's home goes on all the same: nobody enters what is not there.
        if self.home_of(room) == self.id && !self.homes.has(room) && !self.creates_rooms(endpoint) {
            return Some(Err(GrantFault::NoRoom));
        }
        if self.home_of(home) != self.id {
            return None;
        }
        if self.dialect(endpoint).keeps_grants() {
            if !is_member {
                self.grants.remove(home, &room.name);
            } else if let Err(fault) = self.grants.add(home, &room.name) {
                return Some(Err(fault));
            }
        }
        // A connection that the home has let in a moment ago has the list as it was; this reaches its shard after that answer.
        for shard in self.homes.shards_of(home) {
            self.post_to(shard, Parcel::Grant(Box::new(Grant { user: user.into(), room: room.clone(), is_member })));
        }
        Some(Ok(self.homes.members(home)))
    }

    /// The user's connections here enter a room or leave it.
    pub(super) fn granted(&mut self, now: Now, grant: &Grant) {
        let Grant { user, room, is_member } = grant;
        let Some(own) = self.membership.find(&Room::user(room.endpoint, user)) else { return };
        let slots: Vec<u32> = self.membership.members(own).iter().map(|member| member.conn).collect();
        for slot in slots {
            if self.conns.get(slot).is_some_and(|conn| !conn.is_here()) {
                // What it may hear is no longer what it was: when it comes back it starts anew.
                self.give_up(slot);
            } else if *is_member {
                self.enter_granted(now, slot, room);
            } else {
                self.expel(now, slot, room, None);
            }
        }
    }

    /// Enters a room because the back end says so: without the bound on what a client may enter, and without a word to the client.
    pub(super) fn enter_granted(&mut self, now: Now, slot: u32, room: &Room) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if let Some(waited) = conn.awaits(room) {
            conn.entering[waited].is_revoked = false;
            return;
        }
        let Some(conn) = self.conns.get(slot) else { return };
        if self.seat_of(conn, room).is_some() && conn.leaving.as_deref() != Some(room) {
            return;
        }
        let welcome = self.dialect(conn.endpoint).welcome(&self.context(now, conn), &room.name);
        let enter = Enter {
            conn: self.conn_id(slot, conn),
            room: room.clone(),
            presence: conn.profile.presence().clone(),
            again: false,
            create: self.creates_rooms(room.endpoint),
            members_max: u32::MAX,
            announce: welcome.map(|frame| Announcement { to: room.clone(), frame }),
            history: 0,
            online: false,
            note: None,
        };
        self.ask_home(slot, enter, true);
    }

    /// Takes a connection out of a room without a word to the client; one that has not been let in yet, as soon as it is. `ask` is answered
    /// then.
    pub(super) fn expel(&mut self, now: Now, slot: u32, room: &Room, ask: Option<u64>) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if let Some(waited) = conn.awaits(room) {
            conn.entering[waited].is_revoked = true;
            conn.entering[waited].asks.extend(ask);
            return;
        }
        // If it is leaving by itself, that is enough.
        let is_leaving = conn.leaving.as_deref() == Some(room);
        let seat = self.conns.get(slot).and_then(|conn| self.seat_of(conn, room)).filter(|_| !is_leaving);
        if let Some(seat) = seat {
            self.vacate(slot, seat);
            self.tell_of_room(now, slot, room, What::RoomLeave);
            self.stop_typing_in(now, slot, &room.name);
        }
        let Some(conn) = self.conns.get(slot).filter(|_| seat.is_some() || ask.is_some()) else { return };
        let parting = self.parting(now, self.conn_id(slot, conn), conn, room.clone(), seat.is_some(), None);
        self.post(Parcel::Leave(Box::new(Leave { ask, ..*parting })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_of_a_user_are_bounded_and_each_counts_once() {
        let mut grants = Grants::default();
        let alice = Room::user(EndpointId(0), "alice");
        let name = |n: usize| Arc::<str>::from(format!("r{n}"));
        for n in (0..GRANTS_PER_USER_MAX).chain(0..GRANTS_PER_USER_MAX) {
            assert_eq!(grants.add(&alice, &name(n)), Ok(()));
        }
        assert_eq!(grants.add(&alice, &name(GRANTS_PER_USER_MAX)), Err(GrantFault::OfUser));
        assert_eq!((grants.of(&alice).len(), grants.places), (GRANTS_PER_USER_MAX, GRANTS_PER_USER_MAX));
        grants.remove(&alice, &name(0));
        grants.remove(&alice, &name(0));
        assert_eq!(grants.add(&alice, &name(GRANTS_PER_USER_MAX)), Ok(()));
        for n in 0..=GRANTS_PER_USER_MAX {
            grants.remove(&alice, &name(n));
        }
        for user in ["alice", "bob"] {
            assert_eq!(grants.add(&Room::user(EndpointId(0), user), &name(0)), Ok(()));
        }
        assert_eq!(grants.add(&alice, &name(1)), Ok(()));
        grants.forget(&Room::named(EndpointId(1), "r0"));
        assert_eq!(grants.places, 3, "that is another endpoint's");
        grants.forget(&Room::named(EndpointId(0), "r0"));
        assert_eq!((grants.of(&alice), grants.places), (vec![name(1)], 1));
        grants.remove(&alice, &name(1));
        assert_eq!((grants.by_user.len(), grants.users.len(), grants.places), (0, 0, 0), "a user without rooms leaves nothing behind");
        grants.places = GRANTS_PER_SHARD_MAX;
        assert_eq!(grants.add(&alice, &name(0)), Err(GrantFault::OfHost));
    }
}
