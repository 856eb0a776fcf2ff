//! Entries of one stream on their way into it, each exactly once: they are numbered as they come, and a script in Redis that keeps the last
//! number adds only what is new. So whatever became of a request whose answer was lost, it can be made again. It knows what an entry's
//! words are worth in bytes and nothing else of them.
//!
//! Redis may also have gone back: a replica takes over that had not got everything yet, or a file that was not written to its end. So entries
//! are kept for a while after Redis has confirmed them, and are added again where it does not have their numbers any more; who has read them
//! before knows them by their numbers.

use std::collections::VecDeque;

use super::frozen::FrozenAppender;
use super::request::{Call, Lost, Reply};
use super::waiting::OVERHEAD_BYTES;
use crate::limits::{RELAY_BATCH_BYTES_MAX, RELAY_BATCH_ENTRIES_MAX, RELAY_GAPS_MAX, RELAY_KEPT_BYTES_MAX, RELAY_KEPT_MS, RELAY_RETRY_MS};

/// `KEYS`: the stream, and where this host's last number is. `ARGV`: the first number, 1 where a hole before it is known of, about how many
/// entries the stream has at most, milliseconds for which the number is kept; then for each entry of how many parts it is, and for each part how
/// many words it has, and the words: first the entry's fields, then commands that are done at the same moment and just as often, once.
/// A script cannot run another with EVAL, so it makes a function of it. What fails of commands makes nothing else fail.
/// Answers the last number that is in the stream, which is less than the first given where nothing was added because of a hole; and how many
/// commands failed.
pub(super) const SCRIPT: &str = "\
local made = {}
local function run(words)
  if words[1] ~= 'EVAL' then return redis.call(unpack(words)) end
  made[words[2]] = made[words[2]] or loadstring('local KEYS, ARGV = ... ' .. words[2])
  local keys, argv, last = {}, {}, 3 + tonumber(words[3])
  for at = 4, #words do
    if at <= last then keys[#keys + 1] = words[at] else argv[#argv + 1] = words[at] end
  end
  return made[words[2]](keys, argv)
end
local failed = 0
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local number, at = tonumber(ARGV[1]), 5
if last < number - 1 and ARGV[2] ~= '1' then return {last, 0} end
local top = last
while at <= #ARGV do
  local parts = tonumber(ARGV[at])
  at = at + 1
  for part = 1, parts do
    local words = tonumber(ARGV[at])
    if number > last and part == 1 then
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, at + 1, at + words))
      top = number
    elseif number > last and not pcall(run, {unpack(ARGV, at + 1, at + words)}) then
      failed = failed + 1
    end
    at = at + 1 + words
  end
  number = number + 1
end
if number - 1 > top then top = number - 1 end
if top > last then redis.call('SET', KEYS[2], string.format('%.0f', top), 'PX', ARGV[4]) end
return {top, failed}";

/// The field of an entry that stands for others: they found no place before it.
pub(super) const GAP: &str = "gap";

/// Milliseconds for which Redis keeps the number of a host that says nothing.
const NUMBER_KEPT_MS: u64 = 24 * 3_600_000;

#[derive(Debug)]
struct Entry {
    number: u64,
    /// Its part of `ARGV`.
    words: Call,
    bytes: usize,
    confirmed_ms: u64,
}

/// What an answer of Redis came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Confirmed {
    /// Entries that are in the stream now and were not known to be.
    pub(super) entries: u64,
    /// Commands besides that failed.
    pub(super) failed: u64,
    /// True exactly when Redis has lost entries that are not kept any more.
    pub(super) has_hole: bool,
    /// True exactly when Redis refused, and is asked again.
    pub(super) is_refused: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Appender {
    stream: String,
    numbers: String,
    /// About how many entries the stream has at most.
    entries_max: usize,
    /// Number of the next entry that comes.
    next: u64,
    /// Not confirmed, in the order of their numbers, without a hole.
    queue: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// As with what waits for a Redis without streams: see [`super::waiting`].
    is_choked: bool,
    /// Number of the last entry that stands for what found no place; 0: none.
    gap: u64,
    /// How many of those stand there one behind the other.
    gaps: usize,
    /// Number of the last entry that Redis has ever been sent: it may have it, whatever became of the connection.
    offered: u64,
    /// Confirmed lately; their numbers end where the queue's begin.
    kept: VecDeque<Entry>,
    kept_bytes: usize,
    is_in_flight: bool,
    /// Number of the last entry that Redis was sent, or has.
    sent: u64,
    /// True exactly when what Redis has of it is not known, because the connection is new.
    is_unsure: bool,
    has_hole: bool,
    retry_ms: u64,
}

impl Appender {
    /// An appender to `stream`; `numbers` is the key of this host's last number.
    pub(super) fn new(stream: String, numbers: String, entries_max: usize, bytes_max: usize) -> Appender {
        Appender {
            stream,
            numbers,
            entries_max,
            next: 1,
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
            is_choked: false,
            gap: 0,
            gaps: 0,
            offered: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            is_in_flight: false,
            sent: 0,
            is_unsure: false,
            has_hole: false,
            retry_ms: 0,
        }
    }

    /// What goes on after a reload, with the same numbers: an entry that Redis has already got is not added again.
    pub(super) fn freeze(&self) -> FrozenAppender {
        FrozenAppender {
            next: self.next,
            queue: self.queue.iter().map(|entry| (entry.number, entry.words.clone())).collect(),
            kept: self.kept.iter().map(|entry| (entry.number, entry.words.clone(), entry.confirmed_ms)).collect(),
            has_hole: self.has_hole,
        }
    }

    pub(super) fn thaw(&mut self, frozen: FrozenAppender) {
        let entry = |number, words: Call, confirmed_ms| Entry { number, bytes: words.bytes() + OVERHEAD_BYTES, words, confirmed_ms };
        self.next = frozen.next.max(1);
        self.queue = frozen.queue.into_iter().map(|(number, words)| entry(number, words, 0)).collect();
        self.kept = frozen.kept.into_iter().map(|(number, words, confirmed_ms)| entry(number, words, confirmed_ms)).collect();
        self.bytes = self.queue.iter().map(|entry| entry.bytes).sum();
        self.kept_bytes = self.kept.iter().map(|entry| entry.bytes).sum();
        self.has_hole = frozen.has_hole;
        self.sent = self.confirmed();
    }

    /// Its stream's key.
    pub(super) fn stream(&self) -> &str {
        &self.stream
    }

    /// Number of the entry that came last; 0 before the first.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Number of the last entry that Redis has confirmed.
    pub(super) fn confirmed(&self) -> u64 {
        self.queue.front().map_or(self.next, |first| first.number) - 1
    }

    /// Entries that are not confirmed, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.queue.len(), self.bytes)
    }

    /// True exactly when the entry of this number is in Redis, or is before everything that Redis is sent from now on. While Redis refuses, nobody
    /// waits for that.
    pub(super) fn has_passed(&self, number: u64) -> bool {
        self.sent >= number || self.retry_ms > 0
    }

    /// Takes an entry, which also gets its number as field `n`, and what is to be done besides; false when there is no place for it. One alone
    /// always has place.
    #[must_use]
    pub(super) fn push<'f>(&mut self, fields: impl IntoIterator<Item = (&'f str, &'f str)>, besides: &[Call]) -> bool {
        let words = self.words(fields, besides);
        let bytes = words.bytes() + OVERHEAD_BYTES;
        self.is_choked |= self.bytes + bytes > self.bytes_max && !self.queue.is_empty();
        if self.is_choked {
            return false;
        }
        self.queue_up(words, bytes);
        true
    }

    /// Something found no place. An entry stands for it, so that whoever reads the stream knows of it; `h` is this host. There is always place for
    /// that one: another comes behind it only where Redis may have it already, and not beyond [`RELAY_GAPS_MAX`] that are not confirmed.
    pub(super) fn mark_gap(&mut self, h: &str) {
        let is_behind_another = self.gap == self.last() && self.gap > self.confirmed();
        if is_behind_another && (self.gap > self.offered || self.gaps >= RELAY_GAPS_MAX) {
            return;
        }
        self.gaps = if is_behind_another { self.gaps + 1 } else { 1 };
        let words = self.words([(GAP, "1"), ("h", h)], &[]);
        let bytes = words.bytes() + OVERHEAD_BYTES;
        self.queue_up(words, bytes);
        self.gap = self.last();
    }

    fn queue_up(&mut self, words: Call, bytes: usize) {
        self.queue.push_back(Entry { number: self.next, words, bytes, confirmed_ms: 0 });
        self.next += 1;
        self.bytes += bytes;
    }

    /// The next entry's part of `ARGV`.
    fn words<'f>(&self, fields: impl IntoIterator<Item = (&'f str, &'f str)>, besides: &[Call]) -> Call {
        let fields: Vec<(&str, &str)> = fields.into_iter().collect();
        let mut words = Call::new(&(1 + besides.len()).to_string()).arg((2 * fields.len() + 2).to_string());
        for (field, value) in fields {
            words.push(field);
            words.push(value);
        }
        words = words.arg("n").number(self.next as i128);
        for call in besides {
            words.push(call.words().len().to_string());
            call.words().for_each(|word| words.push(word));
        }
        words
    }

    /// The connection is new: what was under way may have been done or not, and what was done may be gone.
    pub(super) fn handle_connected(&mut self) {
        (self.is_in_flight, self.is_unsure, self.retry_ms, self.sent) = (false, self.next > 1, 0, self.confirmed());
    }

    /// What Redis has is not known any more, though the connection goes on.
    pub(super) fn handle_replaced(&mut self) {
        self.is_unsure = self.next > 1;
    }

    /// When a batch that was refused or lost is tried again; `u64::MAX` where none was.
    pub(super) fn retry_ms(&self) -> u64 {
        if self.retry_ms == 0 { u64::MAX } else { self.retry_ms }
    }

    /// The next command, if one is due, with no entry beyond the number `until`. There is one at a time: a later one that is done where an
    /// earlier one was refused would make a hole.
    pub(super) fn poll(&mut self, now_ms: u64, until: u64) -> Option<Call> {
        let is_wanted = self.is_unsure || self.queue.front().is_some_and(|first| first.number <= until);
        if self.is_in_flight || now_ms < self.retry_ms || !is_wanted {
            return None;
        }
        self.retry_ms = 0;
        let first = self.queue.front().map_or(self.next, |first| first.number);
        let mut call = Call::new("EVAL").arg(SCRIPT).number(2).arg(&self.stream).arg(&self.numbers);
        call = call
            .number(first as i128)
            .number(i128::from(u8::from(self.has_hole)))
            .number(self.entries_max as i128)
            .number(NUMBER_KEPT_MS as i128);
        let (mut bytes, mut entries) = (0, 0);
        for entry in self.queue.iter().take_while(|entry| entry.number <= until) {
            if entries > 0 && (bytes + entry.bytes > RELAY_BATCH_BYTES_MAX || entries >= RELAY_BATCH_ENTRIES_MAX) {
                break;
            }
            entry.words.words().for_each(|word| call.push(word));
            (bytes, entries) = (bytes + entry.bytes, entries + 1);
        }
        (self.is_in_flight, self.sent) = (true, first + entries as u64 - 1);
        self.offered = self.offered.max(self.sent);
        Some(call)
    }

    /// Redis has answered, or never will.
    pub(super) fn handle_reply(&mut self, now_ms: u64, reply: Result<&Reply, Lost>) -> Confirmed {
        self.is_in_flight = false;
        let mut confirmed = Confirmed::default();
        let last = match reply {
            // It is made again when there is a connection; in a cluster there may be one all the time.
            Err(_) => {
                (self.is_unsure, self.retry_ms, self.sent) = (self.next > 1, now_ms + RELAY_RETRY_MS, self.confirmed());
                return confirmed;
            }
            Ok(reply) => reply.list().first().and_then(Reply::int).and_then(|last| u64::try_from(last).ok()),
        };
        let Some(last) = last else {
            (self.retry_ms, self.sent) = (now_ms + RELAY_RETRY_MS, self.confirmed());
            if !self.is_unsure {
                // It has taken nothing.
                self.offered = self.confirmed();
            }
            return Confirmed { is_refused: true, ..confirmed };
        };
        confirmed.failed = reply.ok().and_then(|reply| reply.list().get(1)?.int()).map_or(0, i64::unsigned_abs);
        (self.is_unsure, self.has_hole) = (false, false);
        if last < self.confirmed() {
            confirmed.has_hole = self.go_back(last);
            return confirmed;
        }
        while let Some(mut entry) = self.queue.pop_front_if(|first| first.number <= last) {
            confirmed.entries += 1;
            entry.confirmed_ms = now_ms;
            self.bytes -= entry.bytes;
            self.kept_bytes += entry.bytes;
            self.kept.push_back(entry);
        }
        self.sent = self.sent.max(self.confirmed());
        self.is_choked &= self.bytes > self.bytes_max / 4 * 3 && !self.queue.is_empty();
        self.forget(now_ms);
        confirmed
    }

    /// True exactly when the next entry finds no place.
    pub(super) fn is_choked(&self) -> bool {
        self.is_choked
    }

    /// Forgets what is kept for too long or is too much.
    pub(super) fn forget(&mut self, now_ms: u64) {
        let is_over =
            |bytes: usize, first: &Entry| bytes > RELAY_KEPT_BYTES_MAX || now_ms.saturating_sub(first.confirmed_ms) > RELAY_KEPT_MS;
        let mut bytes = self.kept_bytes;
        while let Some(first) = self.kept.pop_front_if(|first| is_over(bytes, first)) {
            bytes -= first.bytes;
        }
        self.kept_bytes = bytes;
    }

    /// Redis has nothing after `last` any more: what is kept of that comes again. True when that is not all.
    fn go_back(&mut self, last: u64) -> bool {
        while let Some(entry) = self.kept.pop_back_if(|entry| entry.number > last) {
            self.kept_bytes -= entry.bytes;
            self.bytes += entry.bytes;
            self.queue.push_front(entry);
        }
        self.is_unsure = true;
        self.has_hole = self.confirmed() > last;
        self.sent = self.confirmed();
        // A number that Redis has forgotten because nothing was said for so long is no loss; nobody can tell the one from the other.
        self.has_hole && last > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appender(bytes_max: usize) -> Appender {
        Appender::new("s".into(), "n".into(), 100, bytes_max)
    }

    fn added(last: i64) -> Reply {
        Reply::List(vec![Reply::Int(last), Reply::Int(0)])
    }

    fn push(appender: &mut Appender, count: usize) {
        for _ in 0..count {
            assert!(appender.push([("data", "x")], &[]));
        }
    }

    /// First number and number of entries of a command.
    fn batch(call: &Call) -> (u64, usize) {
        let words: Vec<&[u8]> = call.words().collect();
        let first = std::str::from_utf8(words[5]).expect("text").parse().expect("a number");
        (first, (words.len() - 9) / 6)
    }

    #[test]
    fn what_was_not_confirmed_is_sent_again_and_what_was_is_not() {
        let mut appender = appender(usize::MAX);
        assert!(appender.poll(0, u64::MAX).is_none(), "nothing to add");
        push(&mut appender, 3);
        assert_eq!(appender.poll(0, u64::MAX).map(|call| batch(&call)), Some((1, 3)));
        push(&mut appender, 1);
        assert!(appender.poll(0, u64::MAX).is_none(), "one at a time");
        assert_eq!(appender.handle_reply(0, Err(Lost::Connection)), Confirmed::default());
        appender.handle_connected();
        assert_eq!(appender.poll(0, u64::MAX).map(|call| batch(&call)), Some((1, 4)));
        assert_eq!(appender.handle_reply(0, Ok(&added(4))).entries, 4);
        assert_eq!((appender.poll(0, u64::MAX).is_none(), appender.waiting(), appender.confirmed(), appender.last()), (true, (0, 0), 4, 4));
    }

    #[test]
    fn a_refused_batch_waits_and_comes_again() {
        let mut appender = appender(usize::MAX);
        push(&mut appender, 1);
        assert!(appender.poll(0, u64::MAX).is_some());
        let refused = appender.handle_reply(10, Ok(&Reply::Error("OOM command not allowed".into())));
        assert!(refused.is_refused && appender.poll(10, u64::MAX).is_none() && appender.retry_ms() == 10 + RELAY_RETRY_MS);
        assert_eq!(appender.poll(10 + RELAY_RETRY_MS, u64::MAX).map(|call| batch(&call)), Some((1, 1)));
    }

    #[test]
    fn a_redis_that_went_back_gets_again_what_is_kept() {
        let mut appender = appender(usize::MAX);
        push(&mut appender, 5);
        assert!(appender.poll(0, u64::MAX).is_some());
        assert_eq!(appender.handle_reply(0, Ok(&added(5))).entries, 5);
        appender.handle_connected();
        assert_eq!(appender.poll(0, u64::MAX).map(|call| batch(&call)), Some((6, 0)), "it asks what Redis has");
        assert!(!appender.handle_reply(0, Ok(&added(3))).has_hole);
        assert_eq!(appender.poll(0, u64::MAX).map(|call| batch(&call)), Some((4, 2)));
        assert_eq!(appender.handle_reply(0, Ok(&added(5))).entries, 2);
        appender.forget(RELAY_KEPT_MS + 1);
        appender.handle_connected();
        push(&mut appender, 1);
        assert!(appender.poll(0, u64::MAX).is_some());
        assert!(appender.handle_reply(0, Ok(&added(3))).has_hole, "4 and 5 are not kept any more");
        let forced = appender.poll(0, u64::MAX).expect("it goes on all the same");
        assert_eq!((batch(&forced), forced.word(6)), ((6, 1), &b"1"[..]));
    }

    #[test]
    fn there_is_no_more_than_may_wait() {
        let mut appender = appender(2 * (OVERHEAD_BYTES + 20));
        push(&mut appender, 2);
        assert!(!appender.push([("data", "x")], &[]));
        assert_eq!(appender.last(), 2, "what is dropped takes no number");
        for _ in 0..3 {
            appender.mark_gap("host");
        }
        assert_eq!(appender.last(), 3, "one mark stands for all");
        assert!(appender.poll(0, 2).is_some());
        appender.mark_gap("host");
        assert_eq!(appender.last(), 3);
        let _ = appender.handle_reply(0, Err(Lost::Connection));
        appender.handle_connected();
        let call = appender.poll(0, u64::MAX).expect("it is due");
        let words: Vec<_> = call.words().skip(21).map(String::from_utf8_lossy).collect();
        assert_eq!(words.join(" "), "1 6 gap 1 h host n 3");
        appender.mark_gap("host");
        assert_eq!(appender.last(), 4, "what is lost while Redis has that one comes after it");
        assert!(appender.handle_reply(0, Ok(&added(3))).entries == 3 && appender.poll(0, u64::MAX).is_some());
        let _ = appender.handle_reply(0, Err(Lost::Connection));
        appender.handle_connected();
        appender.mark_gap("host");
        assert_eq!(appender.last(), 5, "Redis may have the one before, though nobody knows");
        for _ in 0..2 * RELAY_GAPS_MAX {
            let _ = (appender.poll(0, u64::MAX), appender.handle_reply(0, Err(Lost::Connection)));
            appender.handle_connected();
            appender.mark_gap("host");
        }
        assert_eq!(appender.last(), 2 + RELAY_GAPS_MAX as u64, "there is an end to that");
        let last = appender.last() as i64;
        assert!(appender.poll(0, u64::MAX).is_some() && appender.handle_reply(0, Ok(&added(last))).entries > 0);
        push(&mut appender, 2);
        appender.mark_gap("host");
        assert!(appender.poll(0, u64::MAX).is_some());
        let refused = appender.handle_reply(0, Ok(&Reply::Error("OOM".into())));
        appender.mark_gap("host");
        assert!(refused.is_refused && appender.last() == last as u64 + 3, "a refused one was taken by nobody");
        let mut appender = self::appender(1);
        push(&mut appender, 1);
    }

    #[test]
    fn no_more_is_sent_than_may_be_and_that_is_known_at_once() {
        let mut appender = appender(usize::MAX);
        push(&mut appender, 3);
        assert!(appender.poll(0, 0).is_none() && !appender.has_passed(1));
        assert_eq!(appender.poll(0, 2).map(|call| batch(&call)), Some((1, 2)));
        assert!(appender.has_passed(2) && !appender.has_passed(3) && appender.confirmed() == 0);
        let _ = appender.handle_reply(0, Err(Lost::Connection));
        appender.handle_connected();
        assert!(!appender.has_passed(1), "nobody knows");
        assert!(appender.poll(0, 0).is_some_and(|call| batch(&call) == (1, 0)), "it asks");
        let _ = appender.handle_reply(0, Ok(&added(1)));
        assert!(appender.has_passed(1) && !appender.has_passed(2));
        assert!(appender.poll(0, 3).is_some());
        let _ = appender.handle_reply(0, Ok(&Reply::Error("OOM".into())));
        assert!(appender.has_passed(3), "nobody waits while Redis refuses");
    }

    #[test]
    fn what_is_done_besides_goes_with_the_entry() {
        let mut appender = appender(usize::MAX);
        let besides = [Call::new("SET").arg("k").arg("v"), Call::new("DEL").arg("d")];
        assert!(appender.push([("data", "x")], &besides));
        let call = appender.poll(0, u64::MAX).expect("it is due");
        let words: Vec<_> = call.words().skip(9).map(String::from_utf8_lossy).collect();
        assert_eq!(words.join(" "), "3 4 data x n 1 3 SET k v 2 DEL d");
        let failed = Reply::List(vec![Reply::Int(1), Reply::Int(2)]);
        assert_eq!(appender.handle_reply(0, Ok(&failed)), Confirmed { entries: 1, failed: 2, ..Confirmed::default() });
    }

    #[test]
    fn batches_are_bounded() {
        let mut appender = appender(usize::MAX);
        push(&mut appender, RELAY_BATCH_ENTRIES_MAX + 1);
        assert_eq!(appender.poll(0, u64::MAX).map(|call| batch(&call)), Some((1, RELAY_BATCH_ENTRIES_MAX)));
    }
}
