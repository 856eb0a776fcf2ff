//! Casts of busy rooms wait a moment for further ones: a write costs about the same whatever it carries, so that two casts in one write cost half.
//! Only where a room's casts come closer together than they may wait is anything held; a lone message never is.

use super::Shard;
use super::links::Link;
use crate::limits::{HOLD_CASTS_MAX, HOLD_MEMBERS_MIN};
use crate::time::Now;

/// Microseconds at which a gap between two casts counts as silence.
const GAP_US_MAX: u64 = 100_000;

/// How fast a room's casts come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    last_ns: u64,
    /// Mean of the gaps, the latest of which counts an eighth.
    gap_us: u32,
}

impl Pace {
    pub(super) const SLOW: Pace = Pace { last_ns: 0, gap_us: GAP_US_MAX as u32 };

    /// A cast comes.
    pub(super) fn note(&mut self, now: Now) {
        let gap_us = (now.ns.saturating_sub(self.last_ns) / 1_000).min(GAP_US_MAX) as u32;
        self.last_ns = now.ns;
        self.gap_us = self.gap_us - self.gap_us / 8 + gap_us / 8;
    }

    /// True exactly when another cast is to be expected within so many milliseconds.
    fn is_within(&self, ms: u64) -> bool {
        u64::from(self.gap_us) < ms * 1_000
    }
}

/// What waits.
#[derive(Debug)]
pub(super) struct Held {
    /// How long it may, milliseconds; 0 for never.
    hold_ms: u64,
    /// Slots of the links that have something.
    links: Vec<u32>,
    casts: usize,
    /// Until then, monotonic nanoseconds; `u64::MAX` when there is nothing.
    until_ns: u64,
    /// Read times of the casts.
    read_ns: Vec<u64>,
}

impl Held {
    pub(super) fn new(hold_ms: u64) -> Held {
        Held { hold_ms, links: Vec::new(), casts: 0, until_ns: u64::MAX, read_ns: Vec::new() }
    }

    /// What is queued for the link is written when the hold ends, if nothing else is written to it before.
    pub(super) fn list(&mut self, link: &mut Link, slot: u32) {
        if !link.outbox.dirty && !std::mem::replace(&mut link.outbox.held, true) {
            self.links.push(slot);
        }
    }

    /// When it has waited long enough, monotonic nanoseconds.
    pub(super) fn next_ns(&self) -> Option<u64> {
        (self.until_ns < u64::MAX).then_some(self.until_ns)
    }
}

impl Shard {
    /// Whether a cast that has just come to so many members is to wait for further ones.
    pub(super) fn holds(&self, members: usize, pace: Pace) -> bool {
        members >= HOLD_MEMBERS_MIN && pace.is_within(self.held.hold_ms)
    }

    /// A cast that was read then is queued for all its receivers, or is held.
    pub(super) fn delivered_cast(&mut self, now: Now, read_ns: u64, holds: bool) {
        if !holds {
            return self.delivered.push(read_ns);
        }
        let held = &mut self.held;
        held.casts += 1;
        held.read_ns.push(read_ns);
        held.until_ns = held.until_ns.min(now.ns + held.hold_ms * 1_000_000);
        if held.casts >= HOLD_CASTS_MAX {
            held.until_ns = 0;
        }
        self.stats.held_casts.add(1);
    }

    /// Lets go what has waited long enough.
    pub(super) fn end_hold(&mut self, now: Now) {
        if now.ns >= self.held.until_ns {
            self.let_go_of_held();
        }
    }

    /// The same, however long it has waited.
    pub(super) fn let_go_of_held(&mut self) {
        let mut links = std::mem::take(&mut self.held.links);
        for slot in links.drain(..) {
            if let Some(link) = self.links.get_mut(slot) {
                link.outbox.held = false;
                self.mark_dirty(slot);
            }
        }
        let Held { read_ns, .. } = &mut self.held;
        self.delivered.append(read_ns);
        (self.held.links, self.held.casts, self.held.until_ns) = (links, 0, u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_fast_is_waited_for() {
        let mut pace = Pace::SLOW;
        let mut now = Now { ns: 0, unix_ms: 0 };
        let mut after = |pace: &mut Pace, us: u64, count: usize| {
            for _ in 0..count {
                now.ns += us * 1_000;
                pace.note(now);
            }
            pace.is_within(2)
        };
        assert!(!after(&mut pace, 10_000, 1_000), "100 a second come 10 ms apart");
        assert!(after(&mut pace, 1_000, 50), "1,000 a second");
        assert!(!after(&mut pace, 3_600_000_000, 1), "after an hour of silence");
        assert!(!after(&mut pace, 2_500, 1_000), "400 a second");
        assert!(!Pace { gap_us: 0, ..Pace::SLOW }.is_within(0), "never");
    }
}
