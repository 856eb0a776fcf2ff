//! What a room's home asks of what lies beyond this host before it goes on: whether a user who comes is anywhere else already, who is in over
//! all hosts, how a user is. The parcel that needs it is set aside and goes on when the answer has come, or after a second without: then what
//! this host knows alone is what counts. Nobody else waits, and where no other host is reached nothing is asked.
//!
//! The home counts at once and only its words wait: so its counts are right whatever is under way, and what is said of one room is said in
//! the order in which it was decided. It knows no Redis; the relay does.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use super::Shard;
use super::outward::{Outward, Published};
use super::parcel::{Enter, Leave, Return};
use crate::dialect::Sight;
use crate::ids::{Room, UserId};
use crate::limits::{CONSULT_MS, CONSULTS_WAITING_MAX};
use crate::time::Now;

/// A question of a room's home. Its parts are asked together, at one moment, and that moment has a place among what comes from other hosts:
/// what came before the answer to this shard was said before it, what comes after it was not.
#[derive(Debug)]
pub struct Consult {
    /// Comes back with the answer; `None` where nobody waits for one.
    pub ticket: Option<u64>,
    /// What it is about. To learn how a user is, his own room.
    pub room: Room,
    /// Who has come, or gone.
    pub step: Option<Box<Step>>,
    /// True exactly when it is wanted who is in, over all hosts.
    pub online: bool,
    /// True exactly when it is wanted how the user is whose room it is.
    pub sight: bool,
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
        Consult { ticket: None, room, step: None, online: false, sight: false }
    }

    /// Bytes of messages it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let announcement = self.step.as_ref().and_then(|step| step.announcement.as_ref());
        self.room.name.len() + announcement.map_or(0, |published| published.frame.bytes().len())
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
}

impl Findings {
    /// Bytes it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        self.online.as_ref().map_or(0, |online| online.iter().map(|user| 16 + user.len()).sum())
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
    },
    /// Somebody has left, and is counted out.
    Leave {
        leave: Box<Leave>,
        /// True exactly when he was the last of his presence on this host.
        is_last: bool,
    },
    /// Somebody is back, and counted in; the first of his presence on this host.
    Return(Box<Return>),
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

impl Shard {
    /// True exactly when other hosts have to know who is in a room, or that a user is there.
    pub(super) fn is_shared(&self, room: &Room) -> bool {
        let dialect = || self.dialect(room.endpoint);
        self.world.config.relay.is_some()
            && (room.is_public() && dialect().tells_of_rooms() || room.is_user() && dialect().tells_of_users())
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
            self.send_out(Outward::Consult(Box::new(Consult { ticket: None, online: false, sight: false, ..consult })));
        }
    }

    /// The answer has come. One that comes too late finds nothing.
    pub(super) fn consulted(&mut self, now: Now, ticket: u64, findings: Findings) {
        if let Some(set_aside) = self.consults.take(ticket) {
            self.go_on(now, set_aside, findings);
        }
    }

    /// Gives up what was not answered in time.
    pub(super) fn end_waiting_consults(&mut self, now: Now) {
        while let Some((_, ticket)) = self.consults.deadlines.pop_front_if(|(at_ms, _)| *at_ms <= now.ms()) {
            if self.consults.waiting.contains_key(&ticket) {
                self.stats.consults_unanswered.add(1);
                self.consulted(now, ticket, Findings::default());
            }
        }
    }

    fn go_on(&mut self, now: Now, set_aside: SetAside, findings: Findings) {
        match set_aside {
            SetAside::Enter { enter, is_first } => self.finish_enter(now, *enter, None, is_first, findings),
            SetAside::Leave { leave, is_last } => self.finish_leave(now, *leave, is_last, findings),
            SetAside::Return(returning) => self.finish_return(now, *returning, &findings),
        }
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
