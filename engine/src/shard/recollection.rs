//! What waits for a store of history that does not answer at once. A parcel that needs the past of a room is set aside as it is and goes on
//! when the past has come; the shard serves everybody else meanwhile.
//!
//! Each of them is somebody who waits: a connection whose link is held, or a question that its asker gives up after a second. So there are
//! no more than there are connections and questions.

use std::collections::HashMap;

use super::Shard;
use super::consult::{Consult, SetAside};
use super::history::{Found, Past, Range, Reading, Recall, Ticket, Told};
use super::parcel::{Enter, Parcel, Question};
use crate::ids::{ConnId, Room};
use crate::time::Now;

/// What a store found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recollection {
    /// By [`super::history::History::read`].
    Past(Past),
    /// The same, before what this shard has handed on meanwhile is in it ([`super::history::History::settle`]).
    Told(Told),
    /// By [`super::history::History::find`].
    Found(Option<Found>),
}

impl Recollection {
    /// Bytes of messages in it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Recollection::Past(past) | Recollection::Told(Told { past, .. }) => past.kept.iter().map(|kept| kept.text.len()).sum(),
            Recollection::Found(found) => found.as_ref().map_or(0, |found| found.kept.text.len()),
        }
    }
}

/// The parcels that wait.
#[derive(Default, Debug)]
pub(crate) struct Recollections {
    waiting: HashMap<Ticket, Parcel>,
}

impl Recollections {
    /// True exactly when none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Shard {
    /// A connection wants in, and to know what was said before.
    pub(super) fn home_enter(&mut self, now: Now, enter: Box<Enter>) {
        if let Some(connection) = self.may_be_theirs(&enter) {
            let consult = Consult { connection: Some(connection), ..Consult::about(enter.room.clone()) };
            return self.consult_others(now, consult, None, SetAside::Named(enter));
        }
        if enter.history == 0 || self.world.config.relay.is_some() {
            // Where other hosts may have to be asked first, the past is looked up after that: it ends where the present begins.
            return self.enter_home(now, *enter, None);
        }
        let range = self.newest_range(enter.history);
        match self.homes.history().read(&enter.room, range, now.unix_ms) {
            Reading::Now(past) => self.enter_home(now, *enter, Some(past)),
            Reading::Later(ticket) => {
                let room = enter.room.clone();
                self.set_aside(now, ticket, Parcel::Enter(enter), room, Recall::Past(range));
            }
        }
    }

    fn newest_range(&self, limit: usize) -> Range {
        // Half of what may wait for a connection: an answer must not be what makes it a slow reader.
        Range::Newest { skip: 0, limit, bytes_max: self.world.config.limits.outbox_bytes / 2 }
    }

    /// What a newcomer gets to know of what was said, as far as this process has it at hand.
    pub(super) fn newest(&mut self, now: Now, room: &Room, limit: usize) -> Past {
        if limit == 0 {
            return Past::default();
        }
        let range = self.newest_range(limit);
        self.homes.history().at_hand(room, range, now.unix_ms)
    }

    /// What is to be asked of a store that all hosts share about what a newcomer gets to know, if it has to be asked.
    pub(super) fn ask_newest(&mut self, now: Now, room: &Room, limit: usize) -> Option<(Recall, Ticket)> {
        let range = self.newest_range(limit);
        if limit == 0 {
            return None;
        }
        match self.homes.history().read(room, range, now.unix_ms) {
            Reading::Now(_) => None,
            Reading::Later(ticket) => Some((Recall::Past(range), ticket)),
        }
    }

    /// A connection wants to know all that was said.
    pub(super) fn home_recall(&mut self, now: Now, conn: ConnId, room: Room) {
        match self.homes.history().read(&room, Range::ALL, now.unix_ms) {
            Reading::Now(past) => self.post(Parcel::Recalled { conn, room, kept: past.texts() }),
            Reading::Later(ticket) => {
                self.set_aside(now, ticket, Parcel::Recall { conn, room: room.clone() }, room, Recall::Past(Range::ALL));
            }
        }
    }

    /// Keeps a parcel until the store has answered. One that all hosts share is asked for `recall` by way of the relay.
    pub(super) fn set_aside(&mut self, now: Now, ticket: Ticket, parcel: Parcel, room: Room, recall: Recall) {
        self.recollections.waiting.insert(ticket, parcel);
        if self.world.config.relay.is_some() {
            let consult = Consult { recall: Some(recall), ..Consult::about(room) };
            self.consult_others(now, consult, None, SetAside::Recall(ticket));
        }
    }

    /// The store has answered, or (`None`) will not: what was set aside goes on.
    pub(super) fn recollected(&mut self, now: Now, ticket: Ticket, recollection: Option<Recollection>) {
        let Some(recollection) = self.homes.history().settle(ticket, recollection, now.unix_ms) else { return };
        match (self.recollections.waiting.remove(&ticket), recollection) {
            (Some(Parcel::Enter(enter)), Recollection::Past(past)) => self.enter_home(now, *enter, Some(past)),
            (Some(Parcel::Recall { conn, room }), Recollection::Past(past)) => {
                self.post(Parcel::Recalled { conn, room, kept: past.texts() });
            }
            (Some(Parcel::Ask { ask, question: Question::Room(call) }), Recollection::Past(past)) => {
                let answer = self.room_call_with(&call, past);
                self.answers.extend(answer.map(|answer| (ask, answer)));
            }
            (Some(Parcel::Ask { ask, question: Question::Past { .. } }), Recollection::Past(past)) => self.told_past(ask, past),
            (Some(Parcel::Ask { ask, question: Question::Revise(revision) }), Recollection::Found(found)) => {
                self.revise_found(now, ask, &revision, found);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    use super::super::consult::Findings;
    use super::super::history::{History, Kept, Record};
    use super::super::outward::Outward;
    use super::super::tests::shard;
    use super::*;
    use crate::config::{AuthMode, Config, DialectKind, Endpoint, Relay};
    use crate::dialect::Keep;
    use crate::frame::Frame;
    use crate::ids::{EndpointId, MessageId, ShardId};
    use crate::shard::World;
    use crate::shard::address::Addresses;
    use crate::shard::frozen::FrozenDiary;
    use crate::shard::parcel::{Origin, Publish};
    use crate::stats::ShardStats;

    /// A store that answers when it is told to: ticket by ticket, what there is then.
    #[derive(Clone, Default, Debug)]
    struct Far(Rc<RefCell<(Vec<Kept>, u64)>>);

    impl Far {
        fn answer(&self, ticket: u64) -> Parcel {
            let kept = self.0.borrow().0.clone();
            let past = Past { total: kept.len(), kept };
            Parcel::Recollected { ticket: Ticket(ticket), recollection: Recollection::Past(past) }
        }
    }

    impl History for Far {
        fn append(&mut self, _: &Room, keep: Keep, unix_ms: u64, _: &ShardStats) {
            let Keep { id, author, text, hidden_from, .. } = keep;
            self.0.borrow_mut().0.push(Kept { id, author, unix_ms, text, hidden_from });
        }
        fn read(&mut self, _: &Room, _: Range, _: u64) -> Reading<Past> {
            self.0.borrow_mut().1 += 1;
            Reading::Later(Ticket(self.0.borrow().1))
        }
        fn find(&mut self, _: EndpointId, _: MessageId, _: u64) -> Reading<Option<Found>> {
            Reading::Now(None)
        }
        fn edit(&mut self, _: &Room, _: MessageId, _: Arc<str>, _: &ShardStats) {}
        fn remove(&mut self, _: &Room, _: MessageId, _: &ShardStats) {}
        fn forget(&mut self, _: &Room, _: &ShardStats) {}
        fn holds(&self, _: &Room, _: u64) -> bool {
            false
        }
        fn is_full_for(&self, _: &Keep) -> bool {
            false
        }
        fn freeze(&self) -> Vec<FrozenDiary> {
            Vec::new()
        }
        fn restore(&mut self, _: &Room, _: Vec<(Kept, bool)>, _: &ShardStats) {}
    }

    fn says(now: Now, room: &Room, text: &str) -> Parcel {
        let frame = Frame::text(room.endpoint, text);
        let keep = Keep { id: None, by_id: false, author: "a".into(), text: text.into(), hidden_from: None, messages_max: 9 };
        Parcel::Publish(Box::new(Publish {
            room: room.clone(),
            frame,
            except: None,
            hidden_from: None,
            keep: Some(keep),
            read_ns: now.ns,
            origin: Origin::HERE,
        }))
    }

    fn wants_in(slot: u32, room: &Room, history: usize) -> Parcel {
        Parcel::Enter(Box::new(Enter {
            // Of another shard, so that the answers can be seen.
            conn: ConnId { shard: ShardId(1), slot, generation: 0 },
            room: room.clone(),
            presence: slot.to_string().as_str().into(),
            again: false,
            create: true,
            members_max: 9,
            announce: None,
            history,
            online: false,
            note: None,
        }))
    }

    #[test]
    fn what_needs_a_late_past_waits_for_it_and_nothing_else_does() {
        let now = Now { ns: 0, unix_ms: 0 };
        let mut shard = shard(now, 2);
        let far = Far::default();
        shard.homes.set_history(Box::new(far.clone()));
        let room = (0..).map(|n| Room::named(EndpointId(0), &format!("r{n}"))).find(|room| shard.home_of(room) == ShardId(0));
        let room = room.expect("half of all names are at home here");
        let heard = |shard: &mut Shard| {
            let mut heard = Vec::new();
            while let Some((_, parcel)) = shard.poll_parcel() {
                heard.push(match parcel {
                    Parcel::Entered { conn, outcome: Ok(view), .. } => format!("entered {} {}", conn.slot, view.history.join("")),
                    Parcel::Recalled { conn, kept, .. } => format!("recalled {} {}", conn.slot, kept.join("")),
                    Parcel::Cast(cast) => String::from_utf8_lossy(cast.frame.payload()).into_owned(),
                    other => format!("{other:?}"),
                });
            }
            heard
        };
        shard.handle_parcel(now, wants_in(1, &room, 0));
        shard.handle_parcel(now, says(now, &room, "a"));
        shard.handle_parcel(now, wants_in(2, &room, 5));
        shard.handle_parcel(now, Parcel::Recall { conn: ConnId { shard: ShardId(1), slot: 3, generation: 0 }, room: room.clone() });
        shard.handle_parcel(now, says(now, &room, "b"));
        assert_eq!(heard(&mut shard), ["entered 1 ", "a", "b"], "the room goes on");
        assert_eq!(shard.homes.members(&room), 1, "who waits is not in");
        shard.handle_parcel(now, far.answer(2));
        shard.handle_parcel(now, far.answer(1));
        shard.handle_parcel(now, far.answer(1));
        shard.handle_parcel(now, far.answer(7));
        shard.handle_parcel(now, says(now, &room, "c"));
        assert_eq!(heard(&mut shard), ["recalled 3 ab", "entered 2 ab", "c"], "the past ends where the present begins");
        assert_eq!((shard.homes.members(&room), shard.recollections.waiting.len()), (2, 0));
    }

    /// A shard of a host that others are joined to, and a room that is at home on it.
    fn relayed(now: Now) -> (Shard, Room) {
        let endpoint = Endpoint { auth: AuthMode::None, auto_create: true, ..Endpoint::new("rooms", DialectKind::Rooms, "/") };
        let mut config = Config::new(([127, 0, 0, 1], 0), 2, vec![endpoint]);
        config.relay = Some(Relay::new("redis://127.0.0.1:1"));
        let addresses = Addresses::new(&config.limits, 10);
        let world = Arc::new(World::new(config, addresses, 0));
        world.is_relayed.store(true, std::sync::atomic::Ordering::Relaxed);
        let shard = Shard::new(ShardId(0), world, Arc::new(ShardStats::new(1)), [0; 32], now);
        let room = (0..).map(|n| Room::named(EndpointId(0), &format!("r{n}"))).find(|room| shard.home_of(room) == ShardId(0));
        let room = room.expect("half of all names are at home here");
        (shard, room)
    }

    /// The tickets that were asked under, and what was handed on to be kept.
    fn outwards(shard: &mut Shard) -> (Vec<u64>, Vec<String>) {
        let (mut tickets, mut kept) = (Vec::new(), Vec::new());
        for outward in shard.poll_outward().into_iter().flatten() {
            match outward {
                Outward::Consult(consult) => tickets.extend(consult.ticket.filter(|_| consult.recall.is_some())),
                Outward::Publish(published) => {
                    let record = published.record.expect("what is said here is kept");
                    let Record::Append { kept: Kept { id: Some(_), text, .. }, is_shared: false, .. } = record else {
                        panic!("{record:?}")
                    };
                    kept.push(text.to_string());
                }
                _ => {}
            }
        }
        (tickets, kept)
    }

    fn consulted(ticket: u64, texts: Option<&[&str]>) -> Parcel {
        let kept = |text: &&str| Kept { id: None, author: "a".into(), unix_ms: 0, text: (*text).into(), hidden_from: None };
        let told = texts.map(|texts| Told { past: Past { kept: texts.iter().map(kept).collect(), total: texts.len() }, whole_since: None });
        let findings = Findings { recollection: told.map(Recollection::Told), ..Findings::default() };
        Parcel::Consulted { ticket, findings: Box::new(findings) }
    }

    /// What the newcomers got to know, with their slots.
    fn entered(shard: &mut Shard) -> Vec<(u32, String)> {
        let mut entered = Vec::new();
        while let Some((_, parcel)) = shard.poll_parcel() {
            if let Parcel::Entered { conn, outcome: Ok(view), .. } = parcel {
                entered.push((conn.slot, view.history.join("")));
            }
        }
        entered
    }

    #[test]
    fn who_enters_gets_what_all_hosts_keep_and_what_was_said_here_since_he_asked() {
        let now = Now { ns: 0, unix_ms: 0 };
        let (mut shard, room) = relayed(now);
        shard.handle_parcel(now, wants_in(1, &room, 9));
        let (tickets, _) = outwards(&mut shard);
        shard.handle_parcel(now, consulted(tickets[0], Some(&["x"])));
        shard.handle_parcel(now, says(now, &room, "a"));
        shard.handle_parcel(now, wants_in(2, &room, 9));
        shard.handle_parcel(now, says(now, &room, "b"));
        shard.handle_parcel(now, wants_in(3, &room, 2));
        shard.handle_parcel(now, says(now, &room, "c"));
        let (tickets, kept) = outwards(&mut shard);
        assert_eq!((tickets.len(), kept.concat()), (2, "abc".to_owned()));
        assert_eq!(entered(&mut shard), [(1, "x".to_owned())], "who waits is not told");
        shard.handle_parcel(now, consulted(tickets[0], Some(&["x", "a", "y"])));
        shard.handle_parcel(now, says(now, &room, "d"));
        shard.handle_parcel(now, consulted(tickets[1], Some(&["a", "b"])));
        shard.handle_parcel(now, consulted(tickets[1], Some(&["z"])));
        assert_eq!(entered(&mut shard), [(2, "xaybc".to_owned()), (3, "cd".to_owned())]);
    }

    #[test]
    fn who_gets_no_answer_gets_what_this_host_keeps() {
        let mut now = Now { ns: 0, unix_ms: 0 };
        let (mut shard, room) = relayed(now);
        shard.handle_parcel(now, wants_in(1, &room, 0));
        shard.handle_parcel(now, says(now, &room, "a"));
        let (tickets, _) = outwards(&mut shard);
        assert!(tickets.is_empty(), "who wants to know nothing of the past does not ask for it");
        shard.handle_parcel(now, wants_in(2, &room, 9));
        let (tickets, _) = outwards(&mut shard);
        shard.handle_parcel(now, consulted(tickets[0], None));
        shard.handle_parcel(now, wants_in(3, &room, 9));
        shard.handle_parcel(now, Parcel::Recall { conn: ConnId { shard: ShardId(1), slot: 4, generation: 0 }, room: room.clone() });
        now.ns += (crate::limits::CONSULT_MS + 1) * 1_000_000;
        shard.handle_timeouts(now);
        let mut told = Vec::new();
        while let Some((_, parcel)) = shard.poll_parcel() {
            match parcel {
                Parcel::Entered { conn, outcome: Ok(view), .. } => told.push((conn.slot, view.history.join(""))),
                Parcel::Recalled { conn, kept, .. } => told.push((conn.slot, kept.concat())),
                _ => {}
            }
        }
        told.sort_unstable();
        let all = |slot| (slot, "a".to_owned());
        assert_eq!(told, [(1, String::new()), all(2), all(3), all(4)]);
        assert_eq!(outwards(&mut shard).0.len(), 2);
        shard.world.is_relayed.store(false, std::sync::atomic::Ordering::Relaxed);
        shard.handle_parcel(now, wants_in(5, &room, 9));
        assert_eq!((entered(&mut shard), outwards(&mut shard).0), (vec![all(5)], vec![]), "nobody is asked where nobody can be");
    }
}
