//! A fleet under one seed: up to four hosts with up to four shards each, a Redis of the test's own between them in either mode, and clients of two
//! dialects that come, enter rooms, speak, leave, break off and come back on whichever host. Everything between is delivered at random: parcels on
//! their lanes, what shards say to their relay, requests and answers of Redis, what it says by itself. Links drag and break, Redis is away, hosts stand
//! still, vanish, drain and are born, processes are replaced by others with another number of shards, wall clocks jump, clients read slowly or not at
//! all, and what may wait is little.
//!
//! | file | has |
//! |---|---|
//! | `plan` | what a seed chooses: the fleet's size, bounds, which faults there are |
//! | `site` | one host and its links |
//! | `talk`, `client` | the dialects' words; what a client knows |
//! | `world`, `hearing`, `faults` | what happens next, who hears of it, what goes wrong |
//! | `oracle` | who had to hear what, in which order |
//! | `accounts` | bounds, presence, counters |
//!
//! A failure prints its seed and the command that replays it.

mod accounts;
mod client;
mod faults;
mod hearing;
mod oracle;
mod plan;
mod site;
mod talk;
mod world;

use std::collections::BTreeMap;

use plan::ROOMS;
use site::Link;
use world::{Counts, World};

/// Steps of a run before everything comes to rest.
const STEPS: u64 = 6_000;

/// One run; what has happened, and a number that everything heard has changed.
fn run(seed: u64) -> (Counts, u64) {
    let mut world = World::new(seed);
    while world.step < STEPS {
        world.act();
    }
    world.come_to_rest();
    world.judge_words();
    world.judge_presence();
    world.judge_counters();
    world.end();
    world.judge_emptiness();
    world.counts.runs = 1;
    world.counts.moved = world.clients.iter().map(|client| client.moved).sum();
    (world.counts, world.trace.0)
}

impl World {
    /// Nothing goes wrong any more: everybody is there, reads, and says a last word, and all leases of the dead have ended.
    fn come_to_rest(&mut self) {
        self.is_quiet = true;
        self.redis_away_until_ms = 0;
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_none() {
                self.give_birth(slot);
            }
            let Some(site) = &mut self.slots[slot] else { continue };
            site.stuck = [0; site::WAYS];
            site.stopped_until_ms = 0;
            if let Link::Cut { until_ms } = &mut site.link {
                *until_ms = 0;
            }
        }
        for who in 0..self.clients.len() {
            self.set_capacity(who, usize::MAX, false);
        }
        let lease_ms = self.plan.lease_ms;
        self.pass(5_000 + lease_ms);
        let before = self.unanswered();
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_none() {
                self.give_birth(slot);
            }
        }
        self.pass(5_000);
        for who in 0..self.plan.clients {
            let slot = self.pick(self.slots.len());
            if self.clients[who].at.is_none() && self.is_ready(slot) {
                self.come(who, slot);
            }
        }
        self.pass(4 * lease_ms + 5_000);
        for who in 0..self.clients.len() {
            for room in 0..ROOMS {
                if self.clients[who].is_in && self.clients[who].is_inside(room) {
                    self.speak(who, room);
                }
            }
        }
        self.pass(3_000);
        let mut unanswered = self.unanswered();
        unanswered.retain(|number, count| *count > before.get(number).copied().unwrap_or(0));
        assert!(unanswered.is_empty(), "nothing is slow any more, and by host so many questions were not answered: {unanswered:?}");
    }

    /// By host: questions of rooms' homes that went on without an answer.
    fn unanswered(&self) -> BTreeMap<u32, u64> {
        self.slots.iter().flatten().map(|site| (site.number, site.unanswered())).collect()
    }

    fn pass(&mut self, ms: u64) {
        let until_ms = self.now_ms() + ms;
        while self.now_ms() < until_ms {
            self.settle();
            self.advance(250);
        }
        self.settle();
    }

    /// Everybody leaves.
    fn end(&mut self) {
        self.is_over = true;
        for who in 0..self.clients.len() {
            self.break_off(who);
        }
        self.pass(2 * self.plan.recovery_ms + 70_000);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    /// Runs of the plain `cargo test`.
    const SEEDS: u64 = 24;

    fn variable(name: &str) -> Option<u64> {
        std::env::var(name).ok().and_then(|text| text.parse().ok())
    }

    /// One run that says, when it fails, how it is played again.
    fn play(seed: u64) -> (Counts, u64) {
        catch_unwind(|| run(seed)).unwrap_or_else(|_| {
            let release = if cfg!(debug_assertions) { "" } else { "--release " };
            panic!("URINGCAST_SIM_SEED={seed} cargo test {release}-p engine --lib relay::simulation -- --nocapture replays this")
        })
    }

    /// Seeds one after the other on each core, until time is over.
    fn play_for(seconds: u64, first: u64) -> Counts {
        let (next, until) = (AtomicU64::new(first), Instant::now() + Duration::from_secs(seconds));
        let work = || {
            let mut counts = Counts::default();
            while Instant::now() < until {
                counts += play(next.fetch_add(1, Ordering::Relaxed)).0;
            }
            counts
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a seed failed: see above")).fold(Counts::default(), |all, one| all + one)
        })
    }

    /// `URINGCAST_SIM_SEED` plays one seed, `URINGCAST_SIM_SEEDS` so many from 0 on, `URINGCAST_SIM_SECONDS` as many as there is time for, from
    /// `URINGCAST_SIM_FIRST` or a number that the clock gives.
    #[test]
    fn a_fleet_keeps_its_word() {
        let begun = Instant::now();
        let mut counts = Counts::default();
        if let Some(seed) = variable("URINGCAST_SIM_SEED") {
            let trace;
            (counts, trace) = play(seed);
            eprintln!("seed {seed}: trace {trace:016x}");
        } else if let Some(seconds) = variable("URINGCAST_SIM_SECONDS") {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let first = variable("URINGCAST_SIM_FIRST").unwrap_or(clock * 1_000);
            eprintln!("seeds from {first} on");
            counts = play_for(seconds, first);
        } else {
            (0..variable("URINGCAST_SIM_SEEDS").unwrap_or(SEEDS)).for_each(|seed| counts += play(seed).0);
            let Counts { recovered, moved, reloads, deaths, drains, cuts, outages, .. } = counts;
            let tested = [recovered, moved, reloads, deaths, drains, cuts, outages];
            assert!(counts.runs < SEEDS || tested.iter().all(|count| *count > 0), "this tests little: {counts:?}");
        }
        let minutes = begun.elapsed().as_secs_f64() / 60.0;
        eprintln!("{counts:?}: {:.2} million steps a minute", counts.steps as f64 / 1e6 / minutes);
    }

    #[test]
    fn a_seed_is_played_again_as_it_was() {
        for seed in 0..4 {
            let (one, other) = (play(seed), play(seed));
            assert_eq!((one.1, one.0.steps), (other.1, other.0.steps), "seed {seed}");
        }
    }
}
