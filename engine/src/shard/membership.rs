//! Who on this shard is in which room: the index that casts walk. It knows slots, not connections.

use super::hold::Pace;
use super::lean::Few;
use super::named::Named;
use crate::ids::{EndpointId, Room};
use crate::time::Now;

/// A connection in a room: enough to deliver without looking at the connection.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Member {
    /// Slot of the connection.
    pub(crate) conn: u32,
    /// Slot of its link.
    pub(crate) link: u32,
    /// Index in the connection's list of seats.
    seat: u32,
}

/// The other end of a [`Member`], kept by the connection.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Seat {
    /// Slot of the room in the index.
    pub(crate) room: u32,
    /// Index among its members.
    at: u32,
}

/// A connection's seats. Most have three, which need no block of their own: everybody's, their user's, and one of a room.
pub(crate) type Seats = Few<Seat, 3>;

#[derive(Debug)]
struct LocalRoom {
    /// That of a user has one, as a rule, who needs no block of his own.
    members: Few<Member, 1>,
    /// Number of the last cast, to assert the room's order.
    last_seq: u64,
    pace: Pace,
}

/// The rooms that have members on this shard.
#[derive(Debug)]
pub(crate) struct Membership {
    rooms: Named<LocalRoom>,
}

impl Membership {
    pub(crate) fn new() -> Self {
        Membership { rooms: Named::new() }
    }

    /// Slot of a room with members here.
    pub(crate) fn find(&self, room: &Room) -> Option<u32> {
        self.rooms.find(room)
    }

    /// The room of a slot.
    pub(crate) fn room(&self, slot: u32) -> Option<&Room> {
        self.rooms.room(slot)
    }

    /// The rooms of an endpoint that have members here, in no order.
    pub(crate) fn names(&self, endpoint: EndpointId) -> impl Iterator<Item = &Room> {
        self.rooms.rooms().filter(move |room| room.endpoint == endpoint)
    }

    pub(crate) fn members(&self, slot: u32) -> &[Member] {
        self.rooms.at(slot).map_or(&[], |local| &local.members)
    }

    /// Puts the connection in; the caller has checked that it is not.
    pub(crate) fn join(&mut self, room: &Room, conn: u32, link: u32, seats: &mut Seats) {
        let member = Member { conn, link, seat: seats.len() as u32 };
        let slot = self
            .rooms
            .find(room)
            .unwrap_or_else(|| self.rooms.insert(room.clone(), LocalRoom { members: Few::new(), last_seq: 0, pace: Pace::SLOW }));
        let Some(local) = self.rooms.at_mut(slot) else { return };
        seats.push(Seat { room: slot, at: local.members.len() as u32 });
        local.members.push(member);
    }

    /// The connection's link has another slot now.
    pub(crate) fn relink(&mut self, seat: Seat, link: u32) {
        if let Some(member) = self.rooms.at_mut(seat.room).and_then(|local| local.members.get_mut(seat.at as usize)) {
            member.link = link;
        }
    }

    /// Takes the seat `index` away. `seats_of` finds the seats of another connection, whose indices move when gaps are closed.
    pub(crate) fn leave(&mut self, seats: &mut Seats, index: usize, mut moved: impl FnMut(u32, u32, u32)) {
        let seat = seats.swap_remove(index);
        if let Some(shifted) = seats.get(index)
            && let Some(local) = self.rooms.at_mut(shifted.room)
        {
            local.members[shifted.at as usize].seat = index as u32;
        }
        let Some(local) = self.rooms.at_mut(seat.room) else { return };
        local.members.swap_remove(seat.at as usize);
        if let Some(member) = local.members.get(seat.at as usize) {
            // The last member now sits where the leaving one sat; its own seat must say so.
            moved(member.conn, member.seat, seat.at);
        }
        if local.members.is_empty()
            && let Some(room) = self.rooms.room(seat.room).cloned()
        {
            self.rooms.remove(&room);
        }
    }

    /// A cast has arrived; returns how fast they come. Asserts that they come in the room's order.
    pub(crate) fn arrived(&mut self, now: Now, slot: u32, seq: u64) -> Pace {
        let Some(local) = self.rooms.at_mut(slot) else { return Pace::SLOW };
        assert!(seq > local.last_seq, "room order broken: {seq} after {}", local.last_seq);
        local.last_seq = seq;
        local.pace.note(now);
        local.pace
    }
}

impl Seat {
    /// Another member took this place.
    pub(crate) fn moved_to(&mut self, at: u32) {
        self.at = at;
    }
}
