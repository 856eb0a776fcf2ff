//! What a room's home asks of what lies beyond this host before it goes on: whether a user who comes is anywhere else already, who is in over
//! all hosts, how a user is. The parcel that needs it is set aside and goes on when the answer has come, or after a second without: then what
//! this host knows alone is what counts. Nobody else waits, and where no other host is reached nothing is asked.
//!
//! The home counts at once and only its words wait: so its counts are right whatever is under way, and what is said of one room is said in
//! the order in which it was decided. It knows no Redis; the relay does.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use super::history::{Range, Recall, Ticket};
use super::outward::{Outward, Published};
use super::parcel::{Enter, Leave, Parcel, Return};
use super::recollection::Recollection;
use super::{Shard, World};
use crate::dialect::{EnterFault, Sight};
use crate::ids::{Room, Sid, UserId};
use crate::limits::{CONSULT_MS, CONSULTS_WAITING_MAX, RECALL_BYTES_MAX};
use crate::time::Now;

/// A question of a room's home. Its parts are asked together, at one moment, and that moment has a place among what comes from other hosts:
/// what came before the answer to this shard was said before it, what comes after it was not.
#[derive(Debug)]
pub struct Consult {
    /// Comes back with the answer; `None` where nobody waits for one.
    pub ticket: Option<u64>,
    /// The relay's own number for it.
    pub number: u64,
    /// What it is about. To learn how a user is, his own room.
    pub room: Room,
    /// Who has come, or gone.
    pub step: Option<Box<Step>>,
    /// True exactly when it is wanted who is in, over all hosts.
    pub online: bool,
    /// True exactly when it is wanted how the user is whose room it is.
    pub sight: bool,
    /// What is wanted of what rooms keep.
    pub recall: Option<Recall>,
    /// Asked alone: whether this is the id of a live connection.
    pub connection: Option<Sid>,
}

/// The first of a presence has come on this host, or the last has gone.
#[derive(Debug)]
pub struct Step {
    /// Present as.
    pub presence: UserId,
    /// True exactly when he comes.
    pub comes: bool,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What other hosts are told if he is, or was, on none of them. Whoever gets the consult sees to that, whatever becomes of it.
    pub announcement: Option<Published>,
}

impl Consult {
    /// A question about a room that asks nothing yet.
    pub fn about(room: Room) -> Consult {
        Consult { ticket: None, number: 0, room, step: None, online: false, sight: false, recall: None, connection: None }
    }

    /// Bytes of messages it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let announcement = self.step.as_ref().and_then(|step| step.announcement.as_ref());
        self.room.name.len() + announcement.map_or(0, |published| published.frame.bytes().len())
    }
}

impl Consult {
    /// Bytes of messages that the answer may have.
    pub(crate) fn answer_bytes(&self) -> usize {
        match self.recall {
            Some(Recall::Past(Range::Newest { limit: 0, .. })) | Some(Recall::Found(_)) | None => 0,
            Some(Recall::Past(Range::Newest { bytes_max, .. })) => bytes_max.min(RECALL_BYTES_MAX),
            // A page of short ones.
            Some(Recall::Past(Range::Before { .. })) => RECALL_BYTES_MAX / 16,
        }
    }
}

/// What was found. Whatever was not asked, and whatever nobody could say, is `None`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Findings {
    /// True exactly when no other host has the presence.
    pub is_only: Option<bool>,
    /// Who is in, each once.
    pub online: Option<Vec<UserId>>,
    /// How the user is on all hosts together.
    pub sight: Option<Sight>,
    /// Of what rooms keep, [`Consult::recall`].
    pub recollection: Option<Recollection>,
    /// Whether another host has the connection; known to be none of theirs only when all that live have said so.
    pub is_connection: Option<bool>,
}

impl Findings {
    /// Bytes it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let online = self.online.as_ref().map_or(0, |online| online.iter().map(|user| 16 + user.len()).sum());
        online + self.recollection.as_ref().map_or(0, Recollection::bytes)
    }
}

/// A parcel that waits, with what the home has done about it already.
#[derive(Debug)]
pub(super) enum SetAside {
    /// Somebody wants in; he is counted in, unless he was in already.
    Enter {
        enter: Box<Enter>,
        /// True exactly when he is the first of his presence on this host.
        is_first: bool,
        /// What he gets to know of what was said before.
        past: Option<Ticket>,
    },
    /// Somebody has left, and is counted out.
    Leave {
        leave: Box<Leave>,
        /// True exactly when he was the last of his presence on this host.
        is_last: bool,
    },
    /// Somebody wants to make a room whose name may be the id of another host's connection; he is not counted in.
    Named(Box<Enter>),
    /// Somebody is back, and counted in; the first of his presence on this host.
    Return(Box<Return>),
    /// Something else waits for this part of what rooms keep.
    Recall(Ticket),
}

/// What has to be known of one room's questions.
#[derive(Default, Debug)]
struct Pending {
    /// Under way.
    consults: usize,
    /// Of whom the others have not heard yet.
    comers: Vec<UserId>,
}

#[derive(Debug)]
struct Waiting {
    room: Room,
    comer: Option<UserId>,
    set_aside: SetAside,
}

/// Questions under way.
#[derive(Default, Debug)]
pub(super) struct Consults {
    waiting: HashMap<u64, Waiting>,
    rooms: HashMap<Room, Pending>,
    /// When each is given up, monotonic milliseconds, in the order in which they were asked; those that were answered are passed over.
    deadlines: VecDeque<(u64, u64)>,
    next: u64,
}

impl Consults {
    /// When the first is given up, monotonic milliseconds.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.deadlines.front().map(|(at_ms, _)| *at_ms)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True exactly when something about the room is under way: what is decided now must be said after it.
    pub(super) fn concern(&self, room: &Room) -> bool {
        self.rooms.contains_key(room)
    }

    /// Who has come into a room without the others having heard of it.
    fn comers(&self, room: &Room) -> &[UserId] {
        self.rooms.get(room).map_or(&[], |pending| &pending.comers)
    }

    fn keep(&mut self, now: Now, room: &Room, comer: Option<UserId>, set_aside: SetAside) -> u64 {
        self.next += 1;
        let pending = self.rooms.entry(room.clone()).or_default();
        pending.consults += 1;
        pending.comers.extend(comer.clone());
        self.waiting.insert(self.next, Waiting { room: room.clone(), comer, set_aside });
        self.deadlines.push_back((now.ms() + CONSULT_MS, self.next));
        self.next
    }

    fn take(&mut self, ticket: u64) -> Option<SetAside> {
        let Waiting { room, comer, set_aside } = self.waiting.remove(&ticket)?;
        if let Some(pending) = self.rooms.get_mut(&room) {
            pending.consults -= 1;
            if let Some(place) = comer.and_then(|comer| pending.comers.iter().position(|other| *other == comer)) {
                pending.comers.swap_remove(place);
            }
            if pending.consults == 0 {
                self.rooms.remove(&room);
            }
        }
        while self.deadlines.pop_front_if(|(_, ticket)| !self.waiting.contains_key(ticket)).is_some() {}
        Some(set_aside)
    }
}

impl World {
    /// See [`Shard::is_shared`].
    pub(crate) fn tells_others_of(&self, room: &Room) -> bool {
        let dialect = || crate::dialect::of(self.config.endpoints[usize::from(room.endpoint.0)].dialect);
        self.config.relay.is_some() && (room.is_public() && dialect().tells_of_rooms() || room.is_user() && dialect().tells_of_users())
    }
}

impl Shard {
    /// True exactly when other hosts have to know who is in a room, or that a user is there.
    pub(super) fn is_shared(&self, room: &Room) -> bool {
        self.world.tells_others_of(room)
    }

    /// Asks, and sets the parcel aside; where nobody can be asked it goes on at once, but never before another about the same room.
    /// `comer`: of whom the others are to hear then.
    pub(super) fn consult_others(&mut self, now: Now, consult: Consult, comer: Option<UserId>, set_aside: SetAside) {
        let is_relayed = self.world.is_relayed.load(Ordering::Relaxed);
        if !is_relayed && !self.consults.concern(&consult.room) {
            self.tell_step(consult);
            return self.go_on(now, set_aside, Findings::default());
        }
        if self.consults.len() >= CONSULTS_WAITING_MAX {
            self.stats.consults_unasked.add(1);
            self.tell_step(consult);
            return self.go_on(now, set_aside, Findings::default());
        }
        let ticket = self.consults.keep(now, &consult.room, comer, set_aside);
        self.send_out(Outward::Consult(Box::new(Consult { ticket: Some(ticket), ..consult })));
    }

    /// Tells who has come or gone, and waits for no answer.
    pub(super) fn tell_step(&mut self, consult: Consult) {
        if consult.step.is_some() {
            self.send_out(Outward::Consult(Box::new(Consult { ticket: None, online: false, sight: false, recall: None, ..consult })));
        }
    }

    /// The answer has come. One that comes too late finds nothing.
    pub(super) fn consulted(&mut self, now: Now, ticket: u64, findings: Findings) {
        if let Some(set_aside) = self.consults.take(ticket) {
            self.go_on(now, set_aside, findings);
        }
    }

    /// Gives up what was not answered in time.
    pub(super) fn end_waiting_consults(&mut self, now: Now, until_ms: u64) {
        while let Some((_, ticket)) = self.consults.deadlines.pop_front_if(|(at_ms, _)| *at_ms <= until_ms) {
            if self.consults.waiting.contains_key(&ticket) {
                self.stats.consults_unanswered.add(1);
                self.consulted(now, ticket, Findings::default());
            }
        }
    }

    fn go_on(&mut self, now: Now, set_aside: SetAside, mut findings: Findings) {
        match set_aside {
            SetAside::Enter { enter, is_first, past } => {
                let told = findings.recollection.take();
                let past = past.and_then(|ticket| self.homes.history().settle(ticket, told, now.unix_ms));
                let past = past.and_then(|past| if let Recollection::Past(past) = past { Some(past) } else { None });
                self.finish_enter(now, *enter, past, is_first, findings);
            }
            SetAside::Recall(ticket) => self.recollected(now, ticket, findings.recollection),
            SetAside::Leave { leave, is_last } => self.finish_leave(now, *leave, is_last, true, findings),
            SetAside::Named(enter) => self.enter_named(now, *enter, findings.is_connection),
            SetAside::Return(returning) => self.finish_return(now, *returning, &findings),
        }
    }

    /// Whether other hosts are to be asked first whether a room's name is the id of a connection of theirs.
    pub(super) fn may_be_theirs(&self, enter: &Enter) -> Option<Sid> {
        let is_new = !enter.again && enter.create && enter.room.is_public() && !self.homes.has(&enter.room);
        if !is_new || !self.world.is_relayed.load(Ordering::Relaxed) {
            return None;
        }
        Sid::parse(&enter.room.name).filter(|sid| self.find(*sid).is_none())
    }

    /// Makes a room for somebody if its name is nobody's id. While nobody can be asked, what this host knows is what counts.
    fn enter_named(&mut self, now: Now, enter: Enter, is_theirs: Option<bool>) {
        let fault = match is_theirs {
            Some(true) => EnterFault::IsConnection,
            None if self.world.is_relayed.load(Ordering::Relaxed) => EnterFault::Refused,
            Some(false) | None => return self.enter_home(now, enter, None),
        };
        let Enter { conn, room, again, note, .. } = enter;
        self.post(Parcel::Entered { conn, room, again, outcome: Err(fault), note });
    }

    /// Who is in over all hosts, as a newcomer is to be told: what Redis says, and those here of whom it may not know yet; but nobody of
    /// whom he will hear that he comes.
    pub(super) fn online_of(&self, room: &Room, myself: &UserId, findings: Option<Vec<UserId>>) -> Vec<UserId> {
        let mut here = self.homes.view(room, true).online;
        let Some(mut online) = findings else { return here };
        let comers = self.consults.comers(room);
        here.retain(|user| user == myself || !comers.contains(user));
        if online.len() + here.len() <= 8 {
            here.retain(|user| !online.contains(user));
        } else {
            let known: std::collections::HashSet<&UserId, foldhash::fast::RandomState> = online.iter().collect();
            here.retain(|user| !known.contains(user));
        }
        online.append(&mut here);
        online
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Config, DialectKind, Endpoint, Relay};
    use crate::frame::Frame;
    use crate::ids::{ConnId, EndpointId, ShardId};
    use crate::shard::World;
    use crate::shard::address::Addresses;
    use crate::shard::parcel::{Announcement, Question};
    use crate::shard::room_calls::RoomCall;
    use crate::stats::ShardStats;

    const NOW: Now = Now { ns: 1_000_000_000, unix_ms: 0 };

    /// The first of two shards of a host with a relay, and a room that is at home there.
    fn home() -> (Shard, Room) {
        let endpoint = Endpoint { auto_create: true, ..Endpoint::new("rooms", DialectKind::Rooms, "/") };
        let config = Config { relay: Some(Relay::new("redis://127.0.0.1")), ..Config::new(([127, 0, 0, 1], 0), 2, vec![endpoint]) };
        let addresses = Addresses::new(&config.limits, 10);
        let world = Arc::new(World::new(config, addresses, 0));
        world.is_relayed.store(true, Ordering::Relaxed);
        let shard = Shard::new(ShardId(0), world, Arc::new(ShardStats::new(1)), [0; 32], NOW);
        let room = (0..).map(|n| Room::named(EndpointId(0), &format!("r{n}"))).find(|room| shard.home_of(room) == ShardId(0));
        (shard, room.expect("half of all names"))
    }

    /// Of the other shard, so that what it is told can be seen.
    fn conn(slot: u32) -> ConnId {
        ConnId { shard: ShardId(1), slot, generation: 0 }
    }

    fn announcement(room: &Room, text: &str) -> Option<Announcement> {
        Some(Announcement { to: room.clone(), frame: Frame::text(room.endpoint, text) })
    }

    fn enter(room: &Room, slot: u32, user: &str, online: bool) -> Parcel {
        Parcel::Enter(Box::new(Enter {
            conn: conn(slot),
            room: room.clone(),
            presence: user.into(),
            again: false,
            create: true,
            members_max: u32::MAX,
            announce: announcement(room, &format!("+{user}")),
            history: 0,
            online,
            note: None,
        }))
    }

    fn leave(room: &Room, slot: u32, user: &str, away: bool) -> Parcel {
        let (conn, presence, announce) = (conn(slot), user.into(), announcement(room, &format!("-{user}")));
        let room = room.clone();
        Parcel::Leave(Box::new(Leave { conn, room, presence, was_in: true, away, announce, unix_ms: 0, note: None, ask: None }))
    }

    /// Tickets of what was asked.
    fn tickets(shard: &mut Shard) -> Vec<u64> {
        let asked = shard.poll_outward().into_iter().flatten();
        asked.filter_map(|outward| if let Outward::Consult(consult) = outward { consult.ticket } else { None }).collect()
    }

    fn told(shard: &mut Shard) -> Vec<String> {
        std::iter::from_fn(|| shard.poll_parcel())
            .filter_map(|(_, parcel)| match parcel {
                Parcel::Cast(cast) => Some(String::from_utf8_lossy(cast.frame.payload()).into_owned()),
                Parcel::Entered { conn, outcome: Ok(view), .. } => Some(format!("{} in {}", conn.slot, view.online.join(","))),
                Parcel::Entered { conn, outcome: Err(fault), .. } => Some(format!("{} {fault:?}", conn.slot)),
                _ => None,
            })
            .collect()
    }

    fn only(shard: &mut Shard, ticket: u64, is_only: bool) {
        let findings = Box::new(Findings { is_only: Some(is_only), ..Findings::default() });
        shard.handle_parcel(NOW, Parcel::Consulted { ticket, findings });
    }

    #[test]
    fn what_is_said_waits_and_keeps_its_order_and_counts_do_not_wait() {
        let (mut shard, room) = home();
        shard.handle_parcel(NOW, enter(&room, 0, "witness", false));
        only(&mut shard, 1, true);
        assert_eq!(told(&mut shard), ["+witness", "0 in "]);
        shard.handle_parcel(NOW, enter(&room, 1, "ann", false));
        // Her second connection hears no earlier that it is in than the first.
        shard.handle_parcel(NOW, enter(&room, 2, "ann", false));
        shard.handle_parcel(NOW, leave(&room, 1, "ann", false));
        assert_eq!((shard.homes.members(&room), tickets(&mut shard), told(&mut shard)), (2, vec![1, 2, 3], vec![]));
        shard.handle_parcel(NOW, leave(&room, 2, "ann", true));
        let returning = Return { conn: conn(2), room: room.clone(), presence: "ann".into(), announce: announcement(&room, "+ann") };
        shard.handle_parcel(NOW, Parcel::Return(Box::new(returning)));
        assert_eq!((tickets(&mut shard), told(&mut shard)), (vec![4, 5], vec![]));
        for (ticket, is_only) in [(2, true), (3, true), (4, false), (5, false)] {
            only(&mut shard, ticket, is_only);
        }
        assert_eq!(told(&mut shard), ["+ann", "1 in ", "2 in "], "on another host she went on being in");
        only(&mut shard, 5, true);
        assert_eq!((told(&mut shard), shard.consults.len(), shard.consults.rooms.len()), (vec![], 0, 0));
    }

    #[test]
    fn a_newcomer_is_shown_nobody_of_whom_he_will_hear_that_he_comes() {
        let (mut shard, room) = home();
        shard.handle_parcel(NOW, enter(&room, 0, "witness", false));
        only(&mut shard, 1, true);
        shard.handle_parcel(NOW, enter(&room, 1, "ann", true));
        shard.handle_parcel(NOW, enter(&room, 2, "bob", true));
        let _ = told(&mut shard);
        let found = |users: &[&str]| Some(users.iter().map(|user| UserId::from(*user)).collect());
        let findings = Findings { is_only: Some(true), online: found(&["far", "ann"]), ..Findings::default() };
        shard.handle_parcel(NOW, Parcel::Consulted { ticket: 2, findings: Box::new(findings) });
        assert_eq!(told(&mut shard), ["+ann", "1 in far,ann,witness"], "Redis has lost the witness, who is here all the same");
        // Nobody knows: this host's own knowledge counts.
        shard.handle_timeouts(Now { ns: NOW.ns + CONSULT_MS * 1_000_000, ..NOW });
        let mut last = told(&mut shard);
        let mut online: Vec<&str> = last[1].strip_prefix("2 in ").expect("bob").split(',').collect();
        online.sort_unstable();
        assert_eq!((online, &*last[0]), (vec!["ann", "bob", "witness"], "+bob"));
        last.clear();
        assert_eq!(shard.stats.consults_unanswered.read(), 1);
    }

    #[test]
    fn whoever_waits_for_a_room_that_ends_is_counted_out_and_refused() {
        let (mut shard, room) = home();
        shard.handle_parcel(NOW, enter(&room, 0, "witness", false));
        only(&mut shard, 1, true);
        shard.handle_parcel(NOW, enter(&room, 1, "ann", false));
        let question = Question::Room(RoomCall::Delete { room: room.clone() });
        shard.handle_parcel(NOW, Parcel::Ask { ask: 7, question });
        shard.handle_parcel(NOW, leave(&room, 0, "witness", false));
        let _ = (told(&mut shard), tickets(&mut shard));
        assert!(shard.poll_answer().is_none(), "one is still counted");
        only(&mut shard, 2, true);
        assert_eq!(told(&mut shard), ["1 NoRoom"]);
        assert!(matches!(shard.poll_answer(), Some((7, _))), "now it has ended");
        let steps: Vec<bool> = shard
            .poll_outward()
            .into_iter()
            .flatten()
            .filter_map(|outward| match outward {
                Outward::Consult(consult) => consult.step.map(|step| step.comes),
                _ => None,
            })
            .collect();
        assert_eq!(steps, [false], "Redis hears that she has gone");
    }

    #[test]
    fn too_many_questions_are_not_asked_and_nobody_waits() {
        let (mut shard, room) = home();
        for slot in 0..CONSULTS_WAITING_MAX as u32 {
            shard.handle_parcel(NOW, enter(&room, slot, &slot.to_string(), false));
        }
        assert_eq!(told(&mut shard).len(), 0);
        shard.handle_parcel(NOW, enter(&room, u32::MAX, "late", false));
        assert!(told(&mut shard).contains(&format!("{} in ", u32::MAX)));
        assert_eq!((shard.consults.len(), shard.stats.consults_unasked.read()), (CONSULTS_WAITING_MAX, 1));
    }
}
