//! Who watches whom, where a user's coming and going is told to those who asked for it: they are members of a room of their own, at home
//! where the user is, so that how he is now and what changes after that reach them in one order.

use std::sync::Arc;

use super::Shard;
use super::parcel::Enter;
use super::recent::Recent;
use crate::dialect::{EnterFault, OfUser, Sight};
use crate::ids::{Room, UserId};
use crate::limits::ABSENCES_PER_SHARD_MAX;
use crate::time::Now;

/// Since when users whose home is here have no connection: by their own rooms, milliseconds since 1970.
#[derive(Default, Debug)]
pub(crate) struct Absences(Recent<Room, u64>);

impl Absences {
    /// The last connection of a user has gone.
    pub(crate) fn begin(&mut self, user: &Room, unix_ms: u64) {
        self.0.insert(user.clone(), unix_ms);
        if self.0.len() > ABSENCES_PER_SHARD_MAX {
            self.0.pop_oldest_if(|_| true);
        }
    }

    /// As plain data, longest absent first.
    pub(crate) fn freeze(&self) -> Vec<(u8, Arc<str>, u64)> {
        self.0.iter().map(|(user, unix_ms)| (user.endpoint.0, user.name.clone(), *unix_ms)).collect()
    }

    /// A user has a connection again.
    pub(crate) fn end(&mut self, user: &Room) {
        self.0.remove(user);
    }
}

impl Shard {
    /// What the answer of a room of a user says of him; `None` when there is nothing to say. `elsewhere`: how he is on all hosts, where that
    /// is known.
    pub(super) fn of_user(&self, room: &Room, elsewhere: Option<Sight>) -> Option<Box<OfUser>> {
        if let Some(user) = room.watched() {
            let here = self.sight(&Room::user(room.endpoint, user));
            let sight = elsewhere.filter(|_| here != Sight::Here).unwrap_or(here);
            return Some(Box::new(OfUser { granted: Vec::new(), sight }));
        }
        let granted = self.grants.of(room);
        (!granted.is_empty()).then(|| Box::new(OfUser { granted, sight: Sight::Here }))
    }

    /// How a user is whose home is here; `user` is his own room.
    fn sight(&self, user: &Room) -> Sight {
        match self.absences.0.get(user) {
            // Who is away is not here, though his room is.
            _ if self.homes.members(user) > 0 => Sight::Here,
            Some(unix_ms) => Sight::Gone { unix_ms: *unix_ms },
            None => Sight::Unknown,
        }
    }

    /// Asks the homes of these users how they are, and to hear of what changes. All of them, or none when there would be too many.
    pub(super) fn watch(&mut self, now: Now, slot: u32, users: &[UserId], note: Box<str>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let rooms: Vec<Room> = users.iter().map(|user| Room::watchers(conn.endpoint, user)).collect();
        let watched = conn.seats.iter().filter(|seat| self.membership.room(seat.room).is_some_and(|room| room.watched().is_some())).count();
        let more = rooms.iter().filter(|room| self.seat_of(conn, room).is_none()).count();
        if watched + more > self.world.config.limits.rooms_per_connection {
            let refused = Err(EnterFault::TooMany);
            return self.consult(now, slot, |dialect, cx, _, acts| dialect.watched(cx, refused, Some(&note), acts));
        }
        let last = rooms.len().saturating_sub(1);
        let mut note = Some(note);
        for (index, room) in rooms.into_iter().enumerate() {
            let Some(conn) = self.conns.get(slot) else { return };
            let enter = Enter {
                conn: self.conn_id(slot, conn),
                presence: conn.profile.presence().clone(),
                again: self.seat_of(conn, &room).is_some(),
                room,
                create: true,
                members_max: u32::MAX,
                announce: None,
                history: 0,
                online: false,
                note: if index == last { note.take() } else { None },
            };
            self.ask_home(slot, enter, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EndpointId;

    #[test]
    fn the_longest_gone_are_forgotten_first() {
        let mut absences = Absences::default();
        let user = |n: usize| Room::user(EndpointId(0), &n.to_string());
        for n in 0..=ABSENCES_PER_SHARD_MAX {
            absences.begin(&user(n), n as u64);
        }
        assert_eq!(absences.0.len(), ABSENCES_PER_SHARD_MAX);
        assert_eq!((absences.0.get(&user(0)), absences.0.get(&user(1))), (None, Some(&1)));
        absences.end(&user(1));
        assert_eq!(absences.0.get(&user(1)), None);
    }
}
