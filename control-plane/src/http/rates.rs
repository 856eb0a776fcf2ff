//! What happened in the last minute, from samples of counters that only grow. It has no clock: times come with the samples.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Length of the window in milliseconds.
pub const WINDOW_MS: u64 = 60_000;

/// Samples kept: one a second for the window, and some to spare for a clock that ticks early. With all the endpoints that there can be
/// they take 640 kB.
const SAMPLES_MAX: usize = 64;

/// Counters of the host or of one endpoint; all since the start, or all in a window.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Messages received.
    pub messages: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Those of them that were refused: of a wrong shape, not allowed, or over the rate.
    pub refused: u64,
    /// Heartbeat round trips.
    pub round_trips: u64,
    /// Microseconds they took together.
    pub round_trip_us: u64,
}

/// The counters at one moment.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Monotonic milliseconds.
    pub at_ms: u64,
    /// Of the whole host.
    pub host: Figures,
    /// Of each endpoint, in the configuration's order.
    pub endpoints: Box<[Figures]>,
}

/// The samples of the last minute, oldest first.
#[derive(Default, Debug)]
pub struct Rates {
    samples: VecDeque<Sample>,
}

/// What came in the last minute, or since the start where that is later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Minute {
    /// How much.
    pub figures: Figures,
    /// In how many milliseconds.
    pub ms: u64,
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

    /// What came since about [`WINDOW_MS`] before `now`, at the host or at one endpoint.
    pub fn since_window(&self, now: &Sample, endpoint: Option<usize>) -> Minute {
        let inside = self.samples.partition_point(|sample| sample.at_ms + WINDOW_MS <= now.at_ms);
        let start = inside.checked_sub(1).map(|last| &self.samples[last]);
        let before = start.map(|start| start.figures(endpoint)).unwrap_or_default();
        Minute { figures: now.figures(endpoint).since(before), ms: now.at_ms.saturating_sub(start.map_or(0, |start| start.at_ms)) }
    }
}

impl Sample {
    /// Of the host or of one endpoint.
    fn figures(&self, endpoint: Option<usize>) -> Figures {
        endpoint.map_or(self.host, |index| self.endpoints.get(index).copied().unwrap_or_default())
    }
}

impl Figures {
    fn since(self, before: Figures) -> Figures {
        Figures {
            messages: self.messages.wrapping_sub(before.messages),
            bytes: self.bytes.wrapping_sub(before.bytes),
            refused: self.refused.wrapping_sub(before.refused),
            round_trips: self.round_trips.wrapping_sub(before.round_trips),
            round_trip_us: self.round_trip_us.wrapping_sub(before.round_trip_us),
        }
    }

    /// Those of two hosts together.
    #[must_use]
    pub fn plus(self, other: Figures) -> Figures {
        Figures {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
            refused: self.refused.saturating_add(other.refused),
            round_trips: self.round_trips.saturating_add(other.round_trips),
            round_trip_us: self.round_trip_us.saturating_add(other.round_trip_us),
        }
    }

    /// Mean round trip in milliseconds, two decimals; 0 when there was none.
    #[must_use]
    pub fn latency_ms(&self) -> f64 {
        if self.round_trips == 0 { 0.0 } else { two_decimals(self.round_trip_us as f64 / self.round_trips as f64 / 1_000.0) }
    }

    /// The share of the messages that were refused, 0 to 1, four decimals; 0 when there were none.
    #[must_use]
    pub fn refused_share(&self) -> f64 {
        // The two counters are read one after the other.
        let share = if self.messages == 0 { 0.0 } else { (self.refused as f64 / self.messages as f64).min(1.0) };
        (share * 10_000.0).round() / 10_000.0
    }
}

impl Minute {
    /// Messages a second, two decimals.
    #[must_use]
    pub fn messages_per_second(&self) -> f64 {
        // A process of some milliseconds has no rate yet.
        two_decimals(self.figures.messages as f64 * 1_000.0 / self.ms.max(1_000) as f64)
    }
}

/// Rounded as the contract wants averages.
#[must_use]
pub fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `whole / parts` with two decimals; 0 when there are no parts.
#[must_use]
pub fn average(whole: u64, parts: u64) -> f64 {
    if parts == 0 { 0.0 } else { two_decimals(whole as f64 / parts as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Sample {
        let figures = |each: u64| Figures {
            messages: seconds * each,
            bytes: seconds * each * 10,
            refused: seconds * each / 10,
            round_trips: seconds,
            round_trip_us: seconds * 1_500,
        };
        Sample { at_ms: seconds * 1_000, host: figures(10), endpoints: [figures(3), figures(7)].into() }
    }

    #[test]
    fn a_young_process_counts_from_its_start() {
        let mut rates = Rates::default();
        assert_eq!(rates.since_window(&at(5), None).figures.messages, 50);
        rates.push(at(3));
        let minute = rates.since_window(&at(5), None);
        assert_eq!((minute.figures.messages, minute.figures.bytes, minute.ms), (50, 500, 5_000));
    }

    #[test]
    fn an_old_process_counts_the_last_minute_and_keeps_a_bounded_number_of_samples() {
        let mut rates = Rates::default();
        for second in 0..1_000 {
            rates.push(at(second));
            assert!(rates.samples.len() <= SAMPLES_MAX);
        }
        for (endpoint, messages, per_second) in [(None, 600, 10.0), (Some(0), 180, 3.0), (Some(1), 420, 7.0), (Some(2), 0, 0.0)] {
            let minute = rates.since_window(&at(1_000), endpoint);
            assert_eq!((minute.figures.messages, minute.figures.bytes, minute.ms), (messages, messages * 10, 60_000));
            assert!((minute.messages_per_second() - per_second).abs() < 1e-9);
        }
        let minute = rates.since_window(&at(1_000), None).figures;
        assert!((minute.latency_ms() - 1.5).abs() < 1e-9);
        assert!((minute.refused_share() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_flood_of_samples_is_bounded_and_silence_is_zero() {
        let mut rates = Rates::default();
        for _ in 0..10_000 {
            rates.push(at(1));
        }
        assert_eq!(rates.samples.len(), SAMPLES_MAX);
        let still = rates.since_window(&Sample { at_ms: 500_000, ..at(1) }, None);
        assert_eq!(still.figures, Figures::default());
        for zero in [still.figures.latency_ms(), still.figures.refused_share(), still.messages_per_second()] {
            assert!(zero.abs() < 1e-9);
        }
        let odd = Figures { messages: 1, refused: 2, ..Figures::default() };
        assert!((odd.refused_share() - 1.0).abs() < 1e-9, "counters that are read one after the other");
    }

    #[test]
    fn averages_have_two_decimals() {
        for (value, text) in [(1.25, "1.25"), (1.0, "1.0"), (10.0 / 3.0, "3.33"), (0.0, "0.0")] {
            assert_eq!(serde_json::to_string(&two_decimals(value)).expect("a number"), text);
        }
        assert_eq!([average(10, 3), average(5, 0)].map(|it| it.to_string()), ["3.33", "0"]);
    }
}
