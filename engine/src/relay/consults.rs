//! Questions of rooms' homes on their way to Redis and back ([`Consult`]): several in one transaction, which ends with a mark on a channel of
//! our own. The mark comes by the connection that brings what other hosts say, and so gives what was found its place among that: what came
//! before it was said before, what comes after it was not. Answer and mark come by two connections; whichever is first waits for the other.
//!
//! It knows neither what is asked nor how, and no clock.

use std::collections::VecDeque;

use super::request::{Push, Reply};
use crate::ids::ShardId;
use crate::limits::{CONSULT_MS, CONSULT_REQUESTS_MAX, CONSULTS_PER_REQUEST_MAX, HELD_BACK_BYTES_MAX, RECALL_BYTES_MAX};
use crate::shard::consult::Consult;

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
    is_marked: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Consults {
    /// The mark's channel.
    channel: String,
    /// False where no transaction is possible (a cluster): answers take effect as they come.
    is_marked: bool,
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
    /// `channel` is this host's own. `is_marked`: whether transactions are possible.
    pub(crate) fn new(channel: String, is_marked: bool) -> Consults {
        Consults {
            channel,
            is_marked,
            is_heard: !is_marked,
            queue: VecDeque::new(),
            batches: VecDeque::new(),
            next: 0,
            held_back: VecDeque::new(),
            held_back_bytes: 0,
            held_back_until_ms: None,
        }
    }

    /// Where the marks come, if there are any.
    pub(crate) fn channel(&self) -> Option<&str> {
        self.is_marked.then_some(&*self.channel)
    }

    pub(crate) fn push(&mut self, shard: ShardId, consult: Box<Consult>, place: u64) {
        self.queue.push_back(Queued { asked: Asked { shard, consult, calls: 0 }, place });
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
    pub(crate) fn take(&mut self, has_passed: impl Fn(u64) -> bool) -> Vec<Asked> {
        let (mut taken, mut bytes) = (Vec::<Asked>::new(), 0);
        while taken.len() < CONSULTS_PER_REQUEST_MAX
            && bytes < RECALL_BYTES_MAX
            && self.is_ready()
            && let Some(first) = self.queue.pop_front_if(|first| has_passed(first.place))
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
        self.batches.push_back(Batch { number: self.next, sent_ms: now_ms, asked, bytes, replies: None, is_marked: !self.is_marked });
        self.next
    }

    /// Marks are heard from now on, or no longer.
    pub(crate) fn set_heard(&mut self, is_heard: bool) {
        self.is_heard = is_heard || !self.is_marked;
    }

    /// The answer to a transaction has come, or never will.
    pub(crate) fn answered(&mut self, number: u64, replies: Option<Vec<Reply>>) {
        if let Some(batch) = self.batches.iter_mut().find(|batch| batch.number == number) {
            batch.replies = Some(replies);
        }
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
        // A mark that was lost: what was found is true all the same.
        for batch in &mut self.batches {
            batch.is_marked |= batch.replies.is_some() && now_ms.saturating_sub(batch.sent_ms) > CONSULT_MS;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EndpointId, Room};

    fn consults() -> Consults {
        let mut consults = Consults::new("u#mark#h#".into(), true);
        for ticket in 1..4 {
            let consult = Consult { ticket: Some(ticket), ..Consult::about(Room::named(EndpointId(0), "r")) };
            consults.push(ShardId(0), Box::new(consult), 10 * ticket);
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
        assert!(consults.take(|_| true).is_empty() && consults.place().is_none());
        consults.set_heard(true);
        assert_eq!(consults.place(), Some(10));
        let taken = consults.take(|place| place <= 20);
        assert_eq!(taken.len(), 2);
        assert_eq!((consults.sent(0, taken), consults.place()), (1, Some(30)));
    }

    #[test]
    fn an_answer_waits_for_its_mark_and_what_follows_a_mark_for_the_answer() {
        let mut consults = consults();
        consults.set_heard(true);
        for place in [10, 20, 30] {
            let taken = consults.take(|other| other <= place);
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
        let taken = consults.take(|place| place <= 10);
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
        let taken = consults.take(|place| place <= 20);
        consults.sent(0, taken);
        consults.answered(2, Some(vec![]));
        consults.expire(CONSULT_MS + 1);
        assert_eq!(tickets(consults.next_concluded()), Some(vec![2]));
        assert_eq!((consults.end().1.len(), consults.is_idle()), (1, true));
    }
}
