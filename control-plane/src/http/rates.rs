//! What happened in the last minute, from samples of counters that only grow. It has no clock: times come with the samples.

use std::collections::VecDeque;

/// Length of the window in milliseconds.
pub const WINDOW_MS: u64 = 60_000;

/// Samples kept: one a second for the window, and some to spare for a clock that ticks early.
const SAMPLES_MAX: usize = 64;

/// The counters at one moment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Monotonic milliseconds.
    pub at_ms: u64,
    /// Messages received since the start.
    pub messages: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Heartbeat round trips since the start.
    pub round_trips: u64,
    /// Microseconds they took together.
    pub round_trip_us: u64,
}

/// The samples of the last minute, oldest first.
#[derive(Default, Debug)]
pub struct Rates {
    samples: VecDeque<Sample>,
}

impl Rates {
    /// Adds a sample and forgets those that no window needs any more.
    pub fn push(&mut self, sample: Sample) {
        // The newest sample outside the window is where the window begins, so it stays.
        while self.samples.len() >= SAMPLES_MAX || self.samples.get(1).is_some_and(|next| next.at_ms + WINDOW_MS <= sample.at_ms) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// What came since about [`WINDOW_MS`] before `now`; everything since the start while the process is younger than that.
    #[must_use]
    pub fn since_window(&self, now: Sample) -> Sample {
        let inside = self.samples.partition_point(|sample| sample.at_ms + WINDOW_MS <= now.at_ms);
        let start = match inside {
            0 => Sample::default(),
            count => self.samples[count - 1],
        };
        Sample {
            at_ms: now.at_ms.saturating_sub(start.at_ms),
            messages: now.messages.wrapping_sub(start.messages),
            bytes: now.bytes.wrapping_sub(start.bytes),
            round_trips: now.round_trips.wrapping_sub(start.round_trips),
            round_trip_us: now.round_trip_us.wrapping_sub(start.round_trip_us),
        }
    }
}

impl Sample {
    /// Mean round trip in milliseconds, two decimals; 0 when there was none.
    #[must_use]
    pub fn latency_ms(&self) -> f64 {
        if self.round_trips == 0 { 0.0 } else { two_decimals(self.round_trip_us as f64 / self.round_trips as f64 / 1_000.0) }
    }
}

/// Rounded as the contract wants averages.
#[must_use]
pub fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Sample {
        Sample {
            at_ms: seconds * 1_000,
            messages: seconds * 10,
            bytes: seconds * 100,
            round_trips: seconds,
            round_trip_us: seconds * 1_500,
        }
    }

    #[test]
    fn a_young_process_counts_from_its_start() {
        let mut rates = Rates::default();
        assert_eq!(rates.since_window(at(5)).messages, 50);
        rates.push(at(3));
        assert_eq!((rates.since_window(at(5)).messages, rates.since_window(at(5)).bytes), (50, 500));
    }

    #[test]
    fn an_old_process_counts_the_last_minute_and_keeps_a_bounded_number_of_samples() {
        let mut rates = Rates::default();
        for second in 0..1_000 {
            rates.push(at(second));
            assert!(rates.samples.len() <= SAMPLES_MAX);
        }
        let minute = rates.since_window(at(1_000));
        assert_eq!((minute.messages, minute.bytes, minute.at_ms), (600, 6_000, 60_000));
        assert!((minute.latency_ms() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_flood_of_samples_is_bounded_and_silence_is_zero() {
        let mut rates = Rates::default();
        for _ in 0..10_000 {
            rates.push(at(1));
        }
        assert_eq!(rates.samples.len(), SAMPLES_MAX);
        let still = Sample { at_ms: 500_000, ..at(1) };
        assert_eq!(rates.since_window(still).messages, 0);
        assert!(rates.since_window(still).latency_ms().abs() < 1e-9);
    }

    #[test]
    fn averages_have_two_decimals() {
        for (value, text) in [(1.25, "1.25"), (1.0, "1.0"), (10.0 / 3.0, "3.33"), (0.0, "0.0")] {
            assert_eq!(serde_json::to_string(&two_decimals(value)).expect("a number"), text);
        }
    }
}
