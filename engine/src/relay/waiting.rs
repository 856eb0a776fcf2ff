//! What is to be told other hosts and has not been yet: in the order in which it was said, bounded by bytes and, where that is wanted, by
//! age. What does not fit is counted and gone: the oldest for its age, the newest for want of place, so that what is told has no hole in
//! its middle for want of place.

use std::collections::VecDeque;

use super::frozen::FrozenPublication;
use super::request::Call;
use crate::ids::{Room, ShardId};

/// One message on its way to Redis.
#[derive(Debug)]
pub(crate) struct Publication {
    /// What Redis is told, all at one moment where it can do that.
    pub(crate) calls: Vec<Call>,
    /// The one of them by which other hosts are told, if there is one.
    pub(crate) told: Option<usize>,
    /// Who is to hear of it when Redis has done it.
    pub(crate) confirmed: Option<(ShardId, Room)>,
    /// There where it must not be done before the entries up to these numbers, by stream, or after later ones.
    pub(crate) after: Option<Entries>,
    /// When it was said, monotonic milliseconds.
    pub(crate) said_ms: u64,
    /// Bytes it holds on to.
    pub(crate) bytes: usize,
    /// True exactly when every host listens to where it goes.
    pub(crate) is_for_all: bool,
}

/// Bytes that one waiting message takes besides its own, so that many short ones are bounded too.
pub(crate) const OVERHEAD_BYTES: usize = 128;

/// Numbers of entries, by stream.
pub(crate) type Entries = [u64; 2];

/// Messages that wait. See the module.
#[derive(Debug)]
pub(crate) struct Waiting {
    queue: VecDeque<Publication>,
    /// [`Publication::after`] of those that have it.
    after: VecDeque<Entries>,
    bytes: usize,
    bytes_max: usize,
    /// True from a message that found no place until a quarter of it is free again: so a flood is turned away in whole stretches, each of its
    /// messages at the cost of a look.
    is_choked: bool,
    /// Milliseconds; `None`: however old.
    age_max_ms: Option<u64>,
    /// Messages that ever came, and those that are here no longer.
    came: u64,
    gone: u64,
}

impl Waiting {
    pub(crate) fn new(bytes_max: usize, age_max_ms: Option<u64>) -> Waiting {
        Waiting { queue: VecDeque::new(), after: VecDeque::new(), bytes: 0, bytes_max, is_choked: false, age_max_ms, came: 0, gone: 0 }
    }

    /// Keeps a message; false when there is no place for it. One alone always has place.
    #[must_use]
    pub(crate) fn push(&mut self, publication: Publication) -> bool {
        self.is_choked |= self.bytes + publication.bytes > self.bytes_max && !self.queue.is_empty();
        if self.is_choked {
            return false;
        }
        self.bytes += publication.bytes;
        self.came += 1;
        self.after.extend(publication.after);
        self.queue.push_back(publication);
        true
    }

    /// Takes out what is too old; how many that were.
    pub(crate) fn expire(&mut self, now_ms: u64) -> u64 {
        let Some(age_max_ms) = self.age_max_ms else { return 0 };
        let mut gone = 0;
        while let Some(first) = self.queue.pop_front_if(|first| now_ms.saturating_sub(first.said_ms) > age_max_ms) {
            self.bytes -= first.bytes;
            gone += 1;
            if first.after.is_some() {
                self.after.pop_front();
            }
        }
        self.gone += gone;
        self.breathe();
        gone
    }

    /// What waits, for after a reload.
    pub(crate) fn freeze(&self) -> Vec<FrozenPublication> {
        let frozen = |publication: &Publication| {
            let Publication { calls, told, confirmed, after, said_ms, is_for_all, .. } = publication;
            let confirmed = confirmed.as_ref().map(|(_, room)| (room.endpoint.0, room.name.clone()));
            let (calls, is_for_all) = (calls.clone(), *is_for_all);
            FrozenPublication { calls, told: *told, confirmed, after: *after, said_ms: *said_ms, is_for_all }
        };
        self.queue.iter().map(frozen).collect()
    }

    /// True exactly when the next message finds no place.
    pub(crate) fn is_choked(&self) -> bool {
        self.is_choked
    }

    fn breathe(&mut self) {
        self.is_choked &= self.bytes > self.bytes_max / 4 * 3 && !self.queue.is_empty();
    }

    /// The next messages, of at most so many bytes together, but none beyond a place in their order, and none before entries that come first; at
    /// least one if there is one.
    pub(crate) fn take(&mut self, bytes_max: usize, until: u64, has_passed: impl Fn(Entries) -> bool) -> Vec<Publication> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while self.gone < until
            && let Some(first) = self
                .queue
                .pop_front_if(|first| (taken.is_empty() || bytes + first.bytes <= bytes_max) && first.after.is_none_or(&has_passed))
        {
            self.gone += 1;
            if first.after.is_some() {
                self.after.pop_front();
            }
            bytes += first.bytes;
            self.bytes -= first.bytes;
            taken.push(first);
        }
        self.breathe();
        taken
    }

    /// No entry after these may be done before what waits; `None` where none has to wait.
    pub(crate) fn entries(&self) -> Option<Entries> {
        self.after.front().copied()
    }

    /// The place in the order behind all that waits now.
    pub(crate) fn place(&self) -> u64 {
        self.came
    }

    /// True exactly when everything before this place has been taken or is gone.
    pub(crate) fn has_passed(&self, place: u64) -> bool {
        self.gone >= place
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(bytes: usize, said_ms: u64) -> Publication {
        Publication { calls: vec![Call::new("PING")], told: None, confirmed: None, after: None, said_ms, bytes, is_for_all: false }
    }

    #[test]
    fn the_bounds_hold_and_what_goes_is_counted() {
        let mut waiting = Waiting::new(100, Some(1_000));
        assert!(waiting.push(publication(500, 0)), "one alone has place");
        assert!(!waiting.push(publication(1, 0)));
        assert_eq!((waiting.expire(1_000), waiting.expire(1_001), waiting.bytes()), (0, 1, 0));
        for at in 0..10 {
            assert!(waiting.push(publication(10, at)));
        }
        assert!(!waiting.push(publication(1, 10)));
        assert_eq!(waiting.take(35, u64::MAX, |_| true).len(), 3);
        assert_eq!(waiting.take(1, u64::MAX, |_| true).len(), 1, "never nothing");
        assert_eq!(waiting.expire(1_005), 1);
        assert!(!waiting.has_passed(waiting.place()) && waiting.take(9_999, 0, |_| true).is_empty());
        assert_eq!((waiting.len(), waiting.bytes(), waiting.is_empty()), (5, 50, false));
    }

    #[test]
    fn what_has_its_place_among_entries_waits_for_them_and_they_for_it() {
        let mut waiting = Waiting::new(usize::MAX, None);
        assert!(waiting.push(publication(1, 0)) && waiting.entries().is_none());
        assert!(waiting.push(Publication { after: Some([3, 0]), ..publication(1, 0) }));
        assert!(waiting.push(Publication { after: Some([5, 0]), ..publication(1, 0) }));
        assert_eq!((waiting.entries(), waiting.take(99, u64::MAX, |after| after[0] <= 2).len()), (Some([3, 0]), 1));
        assert_eq!((waiting.take(99, u64::MAX, |after| after[0] <= 4).len(), waiting.entries()), (1, Some([5, 0])));
        assert_eq!((waiting.take(99, u64::MAX, |_| true).len(), waiting.entries()), (1, None));
    }

    #[test]
    fn a_flood_is_turned_away_until_a_quarter_is_free() {
        let mut waiting = Waiting::new(100, None);
        assert!(!waiting.is_choked());
        let kept = (0..1_000).filter(|at| waiting.push(publication(10, *at))).count();
        assert!(kept == 10 && waiting.is_choked());
        assert_eq!(waiting.take(20, u64::MAX, |_| true).len(), 2);
        assert!(waiting.is_choked() && !waiting.push(publication(10, 0)), "80 of 100 bytes wait");
        assert_eq!(waiting.take(10, u64::MAX, |_| true).len(), 1);
        assert!(!waiting.is_choked() && waiting.push(publication(10, 0)));
    }
}
