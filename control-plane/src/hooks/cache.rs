//! What the back end said lately of who may enter which room, yes and no, for a bounded time and in a bounded number; and who waits for an
//! answer that is under way, so that the same is never asked twice at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use engine::Ruling;
use engine::ids::EndpointId;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Who wants to go where.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) endpoint: EndpointId,
    pub(super) user: Arc<str>,
    pub(super) room: Arc<str>,
}

/// Whether it was allowed, and what was said to that.
type Verdict = (bool, Option<Box<str>>);

/// What is known.
pub(super) enum Lookup {
    /// This.
    Known(Ruling),
    /// It is being asked.
    Asked(oneshot::Receiver<Ruling>),
    /// Nothing: whoever hears this asks, and lands the answer.
    Unknown(oneshot::Receiver<Ruling>),
}

/// See the module.
pub(super) struct Cache {
    keeps: Duration,
    entries_max: usize,
    known: HashMap<Key, Verdict>,
    /// All of the known, the oldest in front: all are kept for the same time.
    order: VecDeque<(Instant, Key)>,
    /// As many waiters as their hook lets wait.
    asked: HashMap<Key, Vec<oneshot::Sender<Ruling>>>,
}

impl Cache {
    pub(super) fn new(keeps: Duration, entries_max: usize) -> Cache {
        Cache { keeps, entries_max, known: HashMap::new(), order: VecDeque::new(), asked: HashMap::new() }
    }

    pub(super) fn look_up(&mut self, key: &Key, now: Instant) -> Lookup {
        self.expire(now);
        if let Some(verdict) = self.known.get(key) {
            return Lookup::Known(ruling(Some(verdict)));
        }
        let (tell, wait) = oneshot::channel();
        match self.asked.get_mut(key) {
            Some(waiters) => {
                // Those who have hung up make way.
                waiters.retain(|waiter| !waiter.is_closed());
                waiters.push(tell);
                Lookup::Asked(wait)
            }
            None => {
                self.asked.insert(key.clone(), vec![tell]);
                Lookup::Unknown(wait)
            }
        }
    }

    /// The answer, or `None` where there is none: that is told and not kept. A second one for the same question changes nothing.
    pub(super) fn land(&mut self, key: &Key, verdict: Option<Verdict>, now: Instant) {
        let Some(waiters) = self.asked.remove(key) else { return };
        for waiter in waiters {
            // Who has hung up meanwhile need not know.
            let _ = waiter.send(ruling(verdict.as_ref()));
        }
        let Some(verdict) = verdict.filter(|_| !self.keeps.is_zero() && self.entries_max > 0) else { return };
        self.known.insert(key.clone(), verdict);
        self.order.push_back((now + self.keeps, key.clone()));
        self.expire(now);
    }

    /// Questions under way.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.asked.len()
    }

    fn expire(&mut self, now: Instant) {
        while self.order.len() > self.entries_max || self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, key)) = self.order.pop_front() else { return };
            self.known.remove(&key);
        }
    }
}

fn ruling(verdict: Option<&Verdict>) -> Ruling {
    match verdict {
        Some((true, _)) => Ruling::allowed(),
        Some((false, reason)) => Ruling::Refused(reason.clone()),
        None => Ruling::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key { endpoint: EndpointId(0), user: "alice".into(), room: n.to_string().into() }
    }

    #[tokio::test]
    async fn answers_count_for_their_time_and_the_oldest_make_way() {
        let (mut cache, start) = (Cache::new(Duration::from_secs(10), 3), Instant::now());
        for n in 0..4 {
            assert!(matches!(cache.look_up(&key(n), start), Lookup::Unknown(_)));
            cache.land(&key(n), Some((n % 2 == 0, Some("why".into()))), start);
        }
        assert!(matches!(cache.look_up(&key(0), start), Lookup::Unknown(_)), "the oldest");
        cache.land(&key(0), None, start);
        let just_before = start + Duration::from_millis(9_999);
        assert!(matches!(cache.look_up(&key(1), just_before), Lookup::Known(Ruling::Refused(Some(why))) if &*why == "why"));
        assert!(matches!(cache.look_up(&key(2), just_before), Lookup::Known(Ruling::Allowed(_))));
        assert!(matches!(cache.look_up(&key(2), start + Duration::from_secs(10)), Lookup::Unknown(_)));
        assert!(cache.known.is_empty() && cache.order.is_empty());
    }

    #[tokio::test]
    async fn all_who_wait_hear_the_one_answer_and_a_failure_is_not_kept() {
        let (mut cache, now) = (Cache::new(Duration::from_secs(10), 3), Instant::now());
        for verdict in [None, Some((true, None))] {
            let Lookup::Unknown(first) = cache.look_up(&key(1), now) else { panic!("nobody knows") };
            let Lookup::Asked(second) = cache.look_up(&key(1), now) else { panic!("it is asked") };
            drop(cache.look_up(&key(1), now));
            let is_known = verdict.is_some();
            cache.land(&key(1), verdict, now);
            for wait in [first, second] {
                assert_eq!(matches!(wait.await, Ok(Ruling::Allowed(_))), is_known);
            }
            // The guard of a question that has landed.
            cache.land(&key(1), None, now);
            assert!(cache.asked.is_empty());
        }
        assert!(matches!(cache.look_up(&key(1), now), Lookup::Known(Ruling::Allowed(_))));
    }

    #[tokio::test]
    async fn a_time_of_zero_keeps_nothing() {
        for mut cache in [Cache::new(Duration::ZERO, 3), Cache::new(Duration::from_secs(1), 0)] {
            let now = Instant::now();
            let _wait = cache.look_up(&key(1), now);
            cache.land(&key(1), Some((true, None)), now);
            assert!(cache.known.is_empty() && cache.order.is_empty());
        }
    }
}
