//! Questions of rooms' homes on their way to Redis and back ([`Consult`]): several in one transaction, which ends with a mark on a channel of
//! our own. The mark comes by the connection that brings what other hosts say, and so gives what was found its place among that: what came
//! before it was said before, what comes after it was not. Answer and mark come by two connections; whichever is first waits for the other.
//!
//! In the reliable mode the transaction ends with a look at how far the streams are: what stands there was said before. An entry that is read
//! while an answer is awaited waits for it, because the answer may have to come first.
//!
//! It knows neither what is asked nor how, and no clock.

use std::collections::VecDeque;

use super::request::{Call, Push, Reply};
use super::waiting::Entries;
use crate::ids::ShardId;
use crate::limits::{CONSULT_MS, CONSULT_REQUESTS_MAX, CONSULTS_PER_REQUEST_MAX, HELD_BACK_BYTES_MAX, RECALL_BYTES_MAX};
use crate::shard::consult::Consult;
use crate::wire::sio::EntryId;

/// A question, and who asks.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) shard: ShardId,
    pub(crate) consult: Box<Consult>,
    /// Commands that it was made into; their answers stand together.
    pub(crate) calls: usize,
}

/// What has become of the questions of one transaction.
#[derive(Debug)]
pub(crate) struct Concluded {
    pub(crate) asked: Vec<Asked>,
    /// One for each command of each question, in order; `None` where nobody knows.
    pub(crate) replies: Option<Vec<Reply>>,
}

#[derive(Debug)]
struct Queued {
    asked: Asked,
    /// What was said before it goes out before it; see [`super::waiting::Waiting::place`].
    place: u64,
    /// And so do the entries up to these.
    after: Entries,
}

/// What gives an answer its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Marking {
    /// A message on this channel of our own.
    Channel(String),
    /// Where the streams of these keys end.
    Streams([String; 2]),
    /// Nothing, where no transaction is possible (a cluster): answers take effect as they come.
    None,
}

/// A transaction that Redis has been sent.
#[derive(Debug)]
struct Batch {
    number: u64,
    sent_ms: u64,
    asked: Vec<Asked>,
    /// Bytes of messages that the answer may have.
    bytes: usize,
    /// There when the answer has come; empty inside where there will be none.
    replies: Option<Option<Vec<Reply>>>,
    /// Where the streams ended, if that is what marks it.
    ends: Option<[EntryId; 2]>,
    is_marked: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Consults {
    marking: Marking,
    /// True exactly when marks are heard.
    is_heard: bool,
    queue: VecDeque<Queued>,
    batches: VecDeque<Batch>,
    next: u64,
    /// What came after a mark whose answer has not come.
    held_back: VecDeque<Push>,
    held_back_bytes: usize,
    /// Until when, monotonic milliseconds; `None`: nothing is held back.
    held_back_until_ms: Option<u64>,
}

impl Consults {
    pub(crate) fn new(marking: Marking) -> Consults {
        Consults {
            is_heard: marking == Marking::None,
            marking,
            queue: VecDeque::new(),
            batches: VecDeque::new(),
            next: 0,
            held_back: VecDeque::new(),
            held_back_bytes: 0,
            held_back_until_ms: None,
        }
    }

    /// Where the marks come, if they come by a channel.
    pub(crate) fn channel(&self) -> Option<&str> {
        if let Marking::Channel(channel) = &self.marking { Some(channel) } else { None }
    }

    /// What ends a transaction; nothing where there is none.
    pub(crate) fn mark(&self, number: u64) -> Vec<Call> {
        let end = |key: &String| Call::new("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").number(1);
        match &self.marking {
            Marking::Channel(channel) => vec![Call::new("PUBLISH").arg(channel).number(number)],
            Marking::Streams(keys) => keys.iter().map(end).collect(),
            Marking::None => Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, shard: ShardId, consult: Box<Consult>, place: u64, after: Entries) {
        self.queue.push_back(Queued { asked: Asked { shard, consult, calls: 0 }, place, after });
    }

    /// No entry after these may be done before the next question; `None` where none is ready.
    pub(crate) fn entries(&self) -> Option<Entries> {
        self.queue.front().filter(|_| self.is_ready()).map(|first| first.after)
    }

    /// The place among what is said before which nothing more is to go out than is before it; `None` where no question is ready.
    pub(crate) fn place(&self) -> Option<u64> {
        self.queue.front().filter(|_| self.is_ready()).map(|first| first.place)
    }

    fn is_ready(&self) -> bool {
        let bytes = || self.batches.iter().map(|batch| batch.bytes).sum::<usize>();
        self.is_heard && self.batches.len() < CONSULT_REQUESTS_MAX && bytes() < RECALL_BYTES_MAX
    }

    /// The next questions for one transaction, all of whose places have been passed.
    pub(crate) fn take(&mut self, has_passed: impl Fn(u64, Entries) -> bool) -> Vec<Asked> {
        let (mut taken, mut bytes) = (Vec::<Asked>::new(), 0);
        while taken.len() < CONSULTS_PER_REQUEST_MAX
            && bytes < RECALL_BYTES_MAX
            && self.is_ready()
            && let Some(first) = self.queue.pop_front_if(|first| has_passed(first.place, first.after))
        {
            bytes += first.asked.consult.answer_bytes();
            taken.push(first.asked);
        }
        taken
    }

    /// They are sent: the transaction's number, which its mark has to say.
    pub(crate) fn sent(&mut self, now_ms: u64, asked: Vec<Asked>) -> u64 {
        self.next += 1;
        let bytes = asked.iter().map(|asked| asked.consult.answer_bytes()).sum();
        self.batches.push_back(Batch {
            number: self.next,
            sent_ms: now_ms,
            asked,
            bytes,
            replies: None,
            ends: None,
            is_marked: self.marking == Marking::None,
        });
        self.next
    }

    /// Marks are heard from now on, or no longer.
    pub(crate) fn set_heard(&mut self, is_heard: bool) {
        self.is_heard = is_heard || self.marking == Marking::None;
    }

    /// The answer to a transaction has come, or never will.
    pub(crate) fn answered(&mut self, number: u64, replies: Option<Vec<Reply>>) {
        let Some(batch) = self.batches.iter_mut().find(|batch| batch.number == number) else { return };
        if matches!(self.marking, Marking::Streams(_)) {
            batch.ends = replies.as_deref().and_then(|replies| match replies {
                [.., one, other] => Some([end_of(one)?, end_of(other)?]),
                _ => None,
            });
            batch.is_marked |= batch.ends.is_none();
        }
        batch.replies = Some(replies);
    }

    /// The streams have been taken up to here.
    pub(crate) fn reach(&mut self, taken: [EntryId; 2]) {
        for batch in &mut self.batches {
            batch.is_marked |= batch.ends.is_some_and(|ends| ends[0] <= taken[0] && ends[1] <= taken[1]);
        }
    }

    /// After a reload: numbers go on, so that a mark of before names nothing of now.
    pub(crate) fn go_on_from(&mut self, number: u64) {
        self.next = number;
    }

    /// True exactly when something is held back.
    pub(crate) fn has_held_back(&self) -> bool {
        !self.held_back.is_empty()
    }

    /// Number of the last transaction that was sent.
    pub(crate) fn last_sent(&self) -> u64 {
        self.next
    }

    /// True exactly when an entry of a stream comes next, which was read when `sent` was [`Self::last_sent`].
    pub(crate) fn lets_pass(&self, stream: usize, id: EntryId, sent: u64) -> bool {
        self.batches.iter().take_while(|batch| batch.number <= sent).all(|batch| match (&batch.replies, batch.ends) {
            (None, _) => false,
            (Some(_), Some(ends)) => batch.is_marked || id <= ends[stream],
            (Some(_), None) => true,
        })
    }

    /// The mark of a transaction has come; what follows is held back until its answer has, too.
    pub(crate) fn marked(&mut self, now_ms: u64, payload: &[u8]) {
        let Some(number) = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<u64>().ok()) else { return };
        // They come in order: one that is missing will not come any more.
        let mut is_awaited = false;
        for batch in self.batches.iter_mut().take_while(|batch| batch.number <= number) {
            batch.is_marked = true;
            is_awaited |= batch.replies.is_none();
        }
        if is_awaited {
            self.held_back_until_ms = Some(now_ms + CONSULT_MS);
        }
    }

    /// True exactly when a push has to wait.
    pub(crate) fn holds_back(&self) -> bool {
        self.held_back_until_ms.is_some()
    }

    /// Keeps a push for later; false when that is too much: then no answer is waited for any more.
    #[must_use]
    pub(crate) fn hold_back(&mut self, push: Push) -> bool {
        self.held_back_bytes += if let Push::Message { channel, payload, .. } = &push { channel.len() + payload.len() + 64 } else { 64 };
        self.held_back.push_back(push);
        if self.held_back_bytes > HELD_BACK_BYTES_MAX {
            self.give_up();
            return false;
        }
        true
    }

    /// Too much waits for answers: none is waited for any more.
    pub(crate) fn let_all_pass(&mut self) {
        for batch in &mut self.batches {
            batch.is_marked = true;
        }
        self.give_up();
    }

    /// The next push that was held back and need not be any more.
    pub(crate) fn next_held_back(&mut self) -> Option<Push> {
        if self.holds_back() {
            return None;
        }
        let push = self.held_back.pop_front();
        if push.is_none() {
            self.held_back_bytes = 0;
        }
        push
    }

    /// The next transaction that is done with, in their order.
    pub(crate) fn next_concluded(&mut self) -> Option<Concluded> {
        let first = self.batches.pop_front_if(|first| first.is_marked && first.replies.is_some());
        if !self.batches.iter().any(|batch| batch.is_marked && batch.replies.is_none()) {
            self.held_back_until_ms = None;
        }
        first.map(|Batch { asked, replies, .. }| Concluded { asked, replies: replies.flatten() })
    }

    /// Gives up what has waited too long for its mark or its answer; both come within a moment of each other.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        if self.held_back_until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
            self.give_up();
        }
        // A mark that was lost: what was found is true all the same. And entries wait for no answer for longer.
        let has_streams = matches!(self.marking, Marking::Streams(_));
        for batch in self.batches.iter_mut().filter(|batch| now_ms.saturating_sub(batch.sent_ms) > CONSULT_MS) {
            batch.is_marked |= batch.replies.is_some() || has_streams;
            if has_streams {
                batch.replies.get_or_insert(None);
            }
        }
    }

    fn give_up(&mut self) {
        for batch in self.batches.iter_mut().filter(|batch| batch.is_marked && batch.replies.is_none()) {
            batch.replies = Some(None);
        }
    }

    /// Nothing is waited for any more: those that were sent, and those that were not.
    pub(crate) fn end(&mut self) -> (Vec<Asked>, Vec<Asked>) {
        self.held_back_until_ms = None;
        let sent = std::mem::take(&mut self.batches).into_iter().flat_map(|batch| batch.asked).collect();
        (sent, std::mem::take(&mut self.queue).into_iter().map(|queued| queued.asked).collect())
    }

    /// When [`Self::expire`] has something to do, monotonic milliseconds.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        let first = self.batches.front().map(|batch| batch.sent_ms + CONSULT_MS + 1);
        first.into_iter().chain(self.held_back_until_ms).min()
    }

    /// True exactly when nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.batches.is_empty()
    }
}

/// The last entry's id, of a look at it; the first of all where there is none.
fn end_of(reply: &Reply) -> Option<EntryId> {
    match (reply, reply.list().first()) {
        (Reply::Error(_), _) => None,
        (_, Some(entry)) => EntryId::parse(entry.list().first()?.text()?),
        (_, None) => Some(EntryId::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EndpointId, Room};

    fn consults() -> Consults {
        consults_marked(Marking::Channel("u#mark#h#".into()))
    }

    fn consults_marked(marking: Marking) -> Consults {
        let mut consults = Consults::new(marking);
        for ticket in 1..4 {
            let consult = Consult { ticket: Some(ticket), ..Consult::about(Room::named(EndpointId(0), "r")) };
            consults.push(ShardId(0), Box::new(consult), 10 * ticket, [ticket, 0]);
        }
        consults
    }

    fn push(n: u8) -> Push {
        Push::Message { kind: super::super::request::Kind::Channel, channel: b"c".to_vec(), pattern: None, payload: vec![n] }
    }

    fn tickets(concluded: Option<Concluded>) -> Option<Vec<u64>> {
        concluded.map(|concluded| concluded.asked.iter().filter_map(|asked| asked.consult.ticket).collect())
    }

    #[test]
    fn a_question_waits_for_what_was_said_before_it_and_for_marks_to_be_heard() {
        let mut consults = consults();
        assert!(consults.take(|_, _| true).is_empty() && consults.place().is_none());
        consults.set_heard(true);
        assert_eq!(consults.place(), Some(10));
        let taken = consults.take(|place, _| place <= 20);
        assert_eq!(taken.len(), 2);
        assert_eq!((consults.sent(0, taken), consults.place()), (1, Some(30)));
    }

    #[test]
    fn an_answer_waits_for_its_mark_and_what_follows_a_mark_for_the_answer() {
        let mut consults = consults();
        consults.set_heard(true);
        for place in [10, 20, 30] {
            let taken = consults.take(|other, _| other <= place);
            consults.sent(0, taken);
        }
        consults.answered(1, Some(vec![]));
        assert_eq!(tickets(consults.next_concluded()), None, "its mark has not come");
        consults.marked(0, b"1");
        assert!(!consults.holds_back());
        assert_eq!(tickets(consults.next_concluded()), Some(vec![1]));
        consults.marked(0, b"2");
        assert!(consults.holds_back());
        assert!(consults.hold_back(push(7)));
        assert_eq!((consults.next_held_back(), tickets(consults.next_concluded())), (None, None));
        consults.answered(2, None);
        assert_eq!((tickets(consults.next_concluded()), consults.next_held_back()), (Some(vec![2]), Some(push(7))));
        // An answer that does not come.
        consults.marked(5, b"3");
        consults.expire(5 + CONSULT_MS - 1);
        assert_eq!(tickets(consults.next_concluded()), None);
        consults.expire(5 + CONSULT_MS);
        assert_eq!(tickets(consults.next_concluded()), Some(vec![3]));
        assert!(consults.is_idle() && !consults.holds_back());
    }

    #[test]
    fn what_is_held_back_is_bounded_and_a_lost_mark_holds_nothing_up() {
        let mut consults = consults();
        consults.set_heard(true);
        let taken = consults.take(|place, _| place <= 10);
        consults.sent(0, taken);
        consults.marked(0, b"1");
        let large = Push::Message {
            kind: super::super::request::Kind::Channel,
            channel: vec![],
            pattern: None,
            payload: vec![0; HELD_BACK_BYTES_MAX],
        };
        assert!(!consults.hold_back(large));
        assert_eq!(tickets(consults.next_concluded()), Some(vec![1]));
        assert!(consults.next_held_back().is_some());
        let taken = consults.take(|place, _| place <= 20);
        consults.sent(0, taken);
        consults.answered(2, Some(vec![]));
        consults.expire(CONSULT_MS + 1);
        assert_eq!(tickets(consults.next_concluded()), Some(vec![2]));
        assert_eq!((consults.end().1.len(), consults.is_idle()), (1, true));
    }

    fn ends(ms: [u64; 2]) -> Option<Vec<Reply>> {
        let end = |ms: u64| {
            let entry = Reply::List(vec![Reply::Bytes(format!("{ms}-0").into_bytes()), Reply::List(vec![])]);
            Reply::List(if ms == 0 { vec![] } else { vec![entry] })
        };
        Some(ms.into_iter().map(end).collect())
    }

    #[test]
    fn in_the_reliable_mode_an_answer_has_its_place_among_the_entries() {
        let id = |ms: u64| EntryId { ms, number: 0 };
        let mut consults = consults_marked(Marking::Streams(["a".into(), "b".into()]));
        consults.set_heard(true);
        assert_eq!(consults.entries(), Some([1, 0]));
        assert!(consults.take(|_, after| after[0] < 1).is_empty());
        let taken = consults.take(|_, after| after[0] <= 1);
        assert_eq!(consults.sent(0, taken), 1);
        let words: Vec<String> = consults.mark(1).iter().map(|call| String::from_utf8_lossy(call.word(1)).into_owned()).collect();
        assert_eq!(words, ["a", "b"]);
        assert!(!consults.lets_pass(0, id(1), 1), "the answer may have to come first");
        assert!(consults.lets_pass(0, id(1), 0), "it was read before the question was sent");
        consults.answered(1, ends([5, 0]));
        assert!(consults.lets_pass(0, id(5), 1) && !consults.lets_pass(0, id(6), 1) && !consults.lets_pass(1, id(1), 1));
        consults.reach([id(4), id(9)]);
        assert_eq!(tickets(consults.next_concluded()), None);
        consults.reach([id(5), id(0)]);
        assert_eq!(tickets(consults.next_concluded()), Some(vec![1]));
        assert!(consults.lets_pass(0, id(6), 1));
        // An answer that comes late, and one that says nothing.
        for (number, place) in [(2, 20), (3, 30)] {
            let taken = consults.take(|other, _| other <= place);
            assert_eq!(consults.sent(0, taken), number);
        }
        consults.expire(CONSULT_MS + 1);
        assert!(consults.lets_pass(0, id(9), 3));
        assert_eq!((tickets(consults.next_concluded()), tickets(consults.next_concluded())), (Some(vec![2]), Some(vec![3])));
        assert!(consults.is_idle());
    }
}
