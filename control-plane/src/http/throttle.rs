//! How fast users may call: a token bucket each, as clients have for their messages. It has no clock: times come with the calls.

use std::collections::HashMap;
use std::sync::Arc;

/// Buckets kept, 100 bytes each and the user's id. Those that are full again are forgotten first; with more users at once than this all
/// begin anew, rather than that anybody is refused for what he did not do.
const BUCKETS_MAX: usize = 100_000;

/// How many calls in which time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Calls in one window, which may come all at once.
    pub calls: u32,
    /// The window, in milliseconds.
    pub window_ms: u64,
}

/// The buckets of all users.
#[derive(Debug)]
pub struct Throttle {
    allowance: Allowance,
    buckets: HashMap<Arc<str>, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    calls: f64,
    at_ms: u64,
}

impl Throttle {
    /// Everybody's bucket is full.
    pub fn new(allowance: Allowance) -> Throttle {
        Throttle { allowance, buckets: HashMap::new() }
    }

    /// One call of this user; or how many milliseconds he has to wait.
    pub fn take(&mut self, user: &Arc<str>, now_ms: u64) -> Result<(), u64> {
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(user) {
            let allowance = self.allowance;
            self.buckets.retain(|_, bucket| !bucket.is_full(allowance, now_ms));
            if self.buckets.len() >= BUCKETS_MAX {
                self.buckets.clear();
            }
        }
        let Allowance { calls, window_ms } = self.allowance;
        let bucket = self.buckets.entry(user.clone()).or_insert(Bucket { calls: f64::from(calls), at_ms: now_ms });
        *bucket = Bucket { calls: bucket.level(self.allowance, now_ms), at_ms: now_ms };
        if bucket.calls < 1.0 {
            let wait_ms = (1.0 - bucket.calls) * window_ms as f64 / f64::from(calls.max(1));
            return Err(wait_ms.ceil() as u64);
        }
        bucket.calls -= 1.0;
        Ok(())
    }
}

impl Bucket {
    fn level(self, Allowance { calls, window_ms }: Allowance, now_ms: u64) -> f64 {
        let grown = now_ms.saturating_sub(self.at_ms) as f64 * f64::from(calls) / window_ms.max(1) as f64;
        (self.calls + grown).min(f64::from(calls))
    }

    fn is_full(self, allowance: Allowance, now_ms: u64) -> bool {
        self.level(allowance, now_ms) >= f64::from(allowance.calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { calls: 10, window_ms: 1_000 };

    #[test]
    fn a_burst_then_the_rate_each_for_himself() {
        let mut throttle = Throttle::new(ALLOWANCE);
        let (alice, bob) = (Arc::from("alice"), Arc::from("bob"));
        assert_eq!((0..20).filter(|_| throttle.take(&alice, 5_000).is_ok()).count(), 10);
        assert_eq!((throttle.take(&alice, 5_000), throttle.take(&bob, 5_000)), (Err(100), Ok(())));
        assert_eq!((throttle.take(&alice, 5_040), throttle.take(&alice, 5_100)), (Err(60), Ok(())));
        assert_eq!((0..20).filter(|_| throttle.take(&alice, 60_000).is_ok()).count(), 10, "it holds no more than a window's");
    }

    #[test]
    fn it_is_bounded_and_forgets_the_quiet_first() {
        let mut throttle = Throttle::new(ALLOWANCE);
        let user = |number: usize| Arc::<str>::from(number.to_string());
        let busy = user(0);
        for number in 0..BUCKETS_MAX {
            assert_eq!(throttle.take(&user(number), 0), Ok(()));
        }
        while throttle.take(&busy, 150).is_ok() {}
        assert_eq!(throttle.take(&user(BUCKETS_MAX), 150), Ok(()));
        assert_eq!(throttle.buckets.len(), 2, "all others were full again");
        assert!(throttle.take(&busy, 150).is_err(), "he is remembered");
        for number in 0..2 * BUCKETS_MAX {
            assert!(throttle.take(&user(number + 1_000_000), 160).is_ok() && throttle.buckets.len() <= BUCKETS_MAX);
        }
    }
}
