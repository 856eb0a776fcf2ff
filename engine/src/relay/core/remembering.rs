//! What rooms keep and which rooms the back end has made, as the core has them from Redis: answers become findings and steps of the roll
//! call. What is asked and how, [`crate::relay::history`] and [`crate::relay::rooms`] know.

use super::{Core, Tag};
use crate::fault::RelayDrop;
use crate::ids::{MessageId, Room, ShardId, checked_name};
use crate::relay::history::Reading;
use crate::relay::request::{Lost, Reply};
use crate::relay::rooms::To;
use crate::relay::waiting::Publication;
use crate::shard::consult::{Consult, Findings};
use crate::shard::history::{Found, Told};
use crate::shard::parcel::{Parcel, Roll};
use crate::shard::recollection::Recollection;
use crate::time::Now;

impl Core {
    /// What Redis says of a room's past; `None` where it refuses to.
    pub(super) fn read(&mut self, reply: &Reply, unix_ms: u64) -> Option<Told> {
        let Reading { told, malformed } = self.store.told(reply, unix_ms);
        self.drop_message(RelayDrop::Malformed, malformed);
        if told.is_none() {
            self.drop_message(RelayDrop::Refused, 1);
        }
        told
    }

    /// Somebody looks for a message by its id. It has no place among what others say, and its answer is another question.
    pub(super) fn search(&mut self, shard: ShardId, consult: Box<Consult>, id: MessageId) {
        let call = self.store.room_of(consult.room.endpoint, id);
        self.requests.push_back((Tag::RoomFound { shard, consult, id }, call.into()));
    }

    /// Redis knows in which room a message is, or not.
    pub(super) fn room_found(&mut self, now: Now, shard: ShardId, consult: Box<Consult>, id: MessageId, reply: Option<&Reply>) {
        let name = reply.and_then(Reply::text).filter(|name| checked_name(name).is_ok());
        if let Some(name) = name {
            let room = Room::named(consult.room.endpoint, name);
            let call = self.store.find(&room, id, now.unix_ms);
            return self.requests.push_back((Tag::MessageFound { shard, consult, room }, call.into()));
        }
        let recollection = matches!(reply, Some(Reply::Nil)).then_some(Recollection::Found(None));
        self.answer(shard, &consult, Findings { recollection, ..Findings::default() });
    }

    /// Redis has looked for a message.
    pub(super) fn message_found(&mut self, now: Now, shard: ShardId, consult: &Consult, room: Room, reply: Option<&Reply>) {
        let told = reply.and_then(|reply| self.read(reply, now.unix_ms));
        let found = |told: Told| told.past.kept.into_iter().next().map(|kept| Found { room, kept });
        let recollection = told.map(|told| Recollection::Found(found(told)));
        self.answer(shard, consult, Findings { recollection, ..Findings::default() });
    }

    /// Nobody can be asked any more.
    pub(super) fn end_searches(&mut self, now: Now) {
        let is_search = |tag: &Tag| matches!(tag, Tag::RoomFound { .. } | Tag::MessageFound { .. });
        let (unasked, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.requests).into_iter().partition(|(tag, _)| is_search(tag));
        self.requests = others.into();
        for (tag, _) in unasked {
            self.handle_reply(now, tag, Err(Lost::Connection));
        }
    }

    /// A shard has told of some of its rooms.
    pub(super) fn called(&mut self, shard: ShardId, after: Option<Room>) {
        if let Some((to, roll)) = self.rooms.told(shard, after, self.waiting.place()) {
            self.call_roll(to, roll);
        }
    }

    /// Redis has answered a step of a roll call, or will not.
    pub(super) fn rolled(&mut self, number: u64, replies: Option<&[Reply]>) {
        let called = self.rooms.answered(number, replies, self.world.config.shards.len());
        self.drop_message(RelayDrop::Malformed, called.malformed);
        for (to, roll) in called.rolls {
            self.call_roll(to, roll);
        }
    }

    fn call_roll(&mut self, to: To, roll: Roll) {
        let shards = self.world.config.shards.len();
        let to = match to {
            To::Shard(shard) => shard,
            To::Home(room) => self.world.home_of(&room),
            To::All => {
                let parcel = |shard| (ShardId(shard as u8), Parcel::Roll(Box::new(roll.clone())));
                return self.parcels.extend((0..shards).map(parcel));
            }
        };
        self.parcels.push_back((to, Parcel::Roll(Box::new(roll))));
    }

    /// Redis has done what was to be told.
    pub(super) fn told(&mut self, told: Vec<Publication>, replies: &[Reply]) {
        let mut replies = replies.iter();
        // This one and the others, and who knows who else.
        let hosts = self.hosts.count() as i64 + 1;
        for Publication { calls, told, confirmed, is_for_all, .. } in told {
            let mut refused = 0;
            for at in 0..calls.len() {
                match replies.next() {
                    None | Some(Reply::Error(_)) => refused += 1,
                    Some(heard) if told == Some(at) => {
                        self.stats.published.add(1);
                        // A cluster's node counts its own listeners only.
                        let is_short = is_for_all && !self.is_cluster && heard.int().is_some_and(|heard| heard < hosts);
                        self.drop_message(RelayDrop::Unheard, u64::from(is_short));
                    }
                    Some(_) => {}
                }
            }
            self.drop_message(RelayDrop::Refused, refused);
            if let Some((shard, room)) = confirmed.filter(|_| refused == 0) {
                self.parcels.push_back((shard, Parcel::Registered { room }));
            }
        }
    }
}
