//! How fast one client may talk: a token bucket, and how many windows in a row it overran.

use serde::{Deserialize, Serialize};

use crate::limits::{Limits, RATE_WINDOWS_OVER_MAX};

/// The bucket of one link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Tokens left, in thousandths.
    tokens: u32,
    /// When they were counted, in milliseconds (wraps after 49 days; the difference is what counts).
    at_ms: u32,
    /// The last window in which it was over.
    window: u32,
    /// How many in a row.
    windows: u8,
}

/// What to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Within,
    /// Refuse it.
    Over,
    /// Refuse it and close: over in three windows in a row.
    Enough,
}

impl Rate {
    pub(crate) fn new(limits: &Limits, now_ms: u64) -> Rate {
        Rate { tokens: limits.rate_messages.saturating_mul(1_000), at_ms: now_ms as u32, window: 0, windows: 0 }
    }

    pub(crate) fn take(&mut self, limits: &Limits, now_ms: u64) -> Verdict {
        let window_ms = limits.rate_window_ms.max(1);
        let full = u64::from(limits.rate_messages) * 1_000;
        // After a whole window the bucket is full; more time than that adds nothing and could overflow.
        let elapsed = u64::from((now_ms as u32).wrapping_sub(self.at_ms)).min(window_ms);
        let grown = elapsed * full / window_ms;
        if grown > 0 {
            self.tokens = (u64::from(self.tokens) + grown).min(full).min(u64::from(u32::MAX)) as u32;
            // Time that made no whole thousandth yet goes on counting.
            let spent = if elapsed == window_ms { u64::from((now_ms as u32).wrapping_sub(self.at_ms)) } else { grown * window_ms / full };
            self.at_ms = self.at_ms.wrapping_add(spent as u32);
        }
        if self.tokens >= 1_000 {
            self.tokens -= 1_000;
            return Verdict::Within;
        }
        // Windows count from 1, so that 0 means never.
        let window = (now_ms / limits.rate_window_ms.max(1)) as u32 + 1;
        if window != self.window {
            self.windows = if window == self.window.wrapping_add(1) && self.window != 0 { self.windows + 1 } else { 1 };
            self.window = window;
        }
        if u32::from(self.windows) >= RATE_WINDOWS_OVER_MAX { Verdict::Enough } else { Verdict::Over }
    }

    /// Milliseconds from the last [`Self::take`] until the next one is within the rate.
    pub(crate) fn wait_ms(&self, limits: &Limits) -> u64 {
        let missing = u64::from(1_000u32.saturating_sub(self.tokens));
        (missing * limits.rate_window_ms).div_ceil(u64::from(limits.rate_messages.max(1)) * 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_then_the_end() {
        let limits = Limits { rate_messages: 10, rate_window_ms: 1_000, ..Limits::default() };
        let mut rate = Rate::new(&limits, 5_000);
        let burst = (0..20).filter(|_| rate.take(&limits, 5_000) == Verdict::Within).count();
        assert_eq!(burst, 10);
        assert_eq!(rate.take(&limits, 5_100), Verdict::Within, "one token in 100 ms");
        assert_eq!(rate.wait_ms(&limits), 100, "the bucket is empty");
        assert_eq!(rate.take(&limits, 5_100), Verdict::Over);
        assert_eq!((rate.take(&limits, 5_130), rate.wait_ms(&limits)), (Verdict::Over, 70));
        assert_eq!(Rate::new(&limits, 0).wait_ms(&limits), 0);
        let flood = |rate: &mut Rate, at| (0..50).map(|_| rate.take(&limits, at)).find(|v| *v != Verdict::Within);
        assert_eq!(flood(&mut rate, 6_000), Some(Verdict::Over));
        assert_eq!(flood(&mut rate, 7_000), Some(Verdict::Enough), "third window in a row");
        let mut calm = Rate::new(&limits, 0);
        for window in [0, 2_000, 4_000, 6_000] {
            assert_eq!(flood(&mut calm, window), Some(Verdict::Over), "never two in a row");
        }
    }
}
