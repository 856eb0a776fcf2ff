//! What waits for a store of history that does not answer at once. A parcel that needs the past of a room is set aside as it is and goes on
//! when the past has come; the shard serves everybody else meanwhile.
//!
//! Each of them is somebody who waits: a connection whose link is held, or a question that its asker gives up after a second. So there are
//! no more than there are connections and questions.

use std::collections::HashMap;

use super::Shard;
use super::history::{Found, Past, Range, Reading, Ticket};
use super::parcel::{Enter, Parcel, Question};
use crate::ids::{ConnId, Room};
use crate::time::Now;

/// What a store found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recollection {
    /// By [`super::history::History::read`].
    Past(Past),
    /// By [`super::history::History::find`].
    Found(Option<Found>),
}

impl Recollection {
    /// Bytes of messages in it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Recollection::Past(past) => past.kept.iter().map(|kept| kept.text.len()).sum(),
            Recollection::Found(found) => found.as_ref().map_or(0, |found| found.kept.text.len()),
        }
    }
}

/// The parcels that wait.
#[derive(Default, Debug)]
pub(crate) struct Recollections {
    waiting: HashMap<Ticket, Parcel>,
}

impl Shard {
    /// A connection wants in, and to know what was said before.
    pub(super) fn home_enter(&mut self, now: Now, enter: Box<Enter>) {
        if enter.history == 0 || self.world.config.relay.is_some() {
            // Where other hosts may have to be asked first, the past is looked up after that: it ends where the present begins.
            return self.enter_home(now, *enter, None);
        }
        let range = self.newest_range(enter.history);
        match self.homes.history().read(&enter.room, range, now.unix_ms) {
            Reading::Now(past) => self.enter_home(now, *enter, Some(past)),
            Reading::Later(ticket) => self.set_aside(ticket, Parcel::Enter(enter)),
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
        match self.homes.history().read(room, range, now.unix_ms) {
            Reading::Now(past) => past,
            Reading::Later(_) => Past::default(),
        }
    }

    /// A connection wants to know all that was said.
    pub(super) fn home_recall(&mut self, now: Now, conn: ConnId, room: Room) {
        match self.homes.history().read(&room, Range::ALL, now.unix_ms) {
            Reading::Now(past) => self.post(Parcel::Recalled { conn, room, kept: past.texts() }),
            Reading::Later(ticket) => self.set_aside(ticket, Parcel::Recall { conn, room }),
        }
    }

    /// Keeps a parcel until the store has answered.
    pub(super) fn set_aside(&mut self, ticket: Ticket, parcel: Parcel) {
        self.recollections.waiting.insert(ticket, parcel);
    }

    /// The store has answered: what was set aside goes on.
    pub(super) fn recollected(&mut self, now: Now, ticket: Ticket, recollection: Recollection) {
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

    use super::super::history::{History, Kept};
    use super::super::tests::shard;
    use super::*;
    use crate::dialect::Keep;
    use crate::frame::Frame;
    use crate::ids::{EndpointId, MessageId, ShardId};
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
}
