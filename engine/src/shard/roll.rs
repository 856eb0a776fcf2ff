//! Which rooms the back end has made is known to all hosts: this shard tells of those that it was asked to make or end, and a host that comes, or
//! comes back, goes through a roll call. It knows no Redis; the relay calls.

use std::sync::atomic::Ordering;

use super::Shard;
use super::emits::NOBODY;
use super::outward::{Made, Outward, RELAY_ASK};
use super::parcel::Roll;
use super::room_calls::NewRoom;
use crate::fault::DropReason;
use crate::ids::Room;
use crate::time::Now;

impl Shard {
    /// The back end has made a room. The host that it asked tells of it.
    pub(super) fn register(&mut self, now: Now, ask: u64, new: &NewRoom) {
        if self.world.config.relay.is_none() {
            return;
        }
        if ask & RELAY_ASK != 0 {
            return self.homes.registered(&new.room);
        }
        if self.world.is_relayed.load(Ordering::Relaxed) {
            self.send_out(Outward::Made(Box::new(Made { new: new.clone(), unix_ms: now.unix_ms, is_news: true })));
        }
    }

    /// The back end ends a room, whether it is here or not.
    pub(super) fn unregister(&mut self, ask: u64, room: &Room) {
        if self.world.config.relay.is_none() || ask & RELAY_ASK != 0 {
            return;
        }
        self.homes.remember_end(room);
        if self.world.is_relayed.load(Ordering::Relaxed) {
            self.send_out(Outward::Forget { room: room.clone() });
        }
    }

    /// A step of a roll call.
    pub(super) fn roll(&mut self, roll: Roll) {
        match roll {
            Roll::Call { all, after } => {
                if after.is_none() {
                    self.homes.begin_roll();
                    let ends: Vec<Room> = self.homes.ends_untold().cloned().collect();
                    ends.into_iter().for_each(|room| self.send_out(Outward::Forget { room }));
                }
                let (made, after) = self.homes.made_after(all, after.as_ref());
                made.into_iter().for_each(|made| self.send_out(Outward::Made(Box::new(made))));
                self.send_out(Outward::Called { after });
            }
            Roll::Room(made) => {
                if self.homes.acknowledge(&made, &self.stats).is_err() {
                    self.counters(made.new.room.endpoint).dropped[DropReason::NoRoom.index()].add(1);
                }
            }
            Roll::End { is_whole } => {
                let absent = if is_whole { self.homes.absent() } else { Vec::new() };
                for room in absent {
                    self.grants.forget(&room);
                    let _ = self.end_room(NOBODY, &room);
                }
            }
        }
    }
}
