//! Lists of operations against a host of two shards: those that the fuzzer begins with, and some at random. A failure prints the list's seed, which
//! replays it: `OPERATIONS_SEED=N cargo test -p engine --test operations`.

mod host;
#[path = "operations/mod.rs"]
mod operations;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Lists, and operations of the longest.
const LISTS: u64 = 60;
const OPERATIONS_MAX: usize = 400;

fn at_random(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let length = random.random_range(2..2 * OPERATIONS_MAX);
    let list: Vec<u8> = (0..length).map(|_| random.random()).collect();
    let outcome = std::panic::catch_unwind(|| operations::run(&list));
    assert!(outcome.is_ok(), "OPERATIONS_SEED={seed}");
}

#[test]
fn lists_of_operations_leave_nothing_behind() {
    if let Some(seed) = std::env::var("OPERATIONS_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return at_random(seed);
    }
    // Anew with each run of the suite; the seed is in the message of a failure.
    let first = rand::random::<u32>();
    (0..LISTS).for_each(|number| at_random(u64::from(first) + number));
}

#[test]
fn the_fuzzers_seeds_leave_nothing_behind() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/shard_operations");
    let seeds: Vec<_> = std::fs::read_dir(folder).expect("the seeds are there").flatten().collect();
    assert!(seeds.len() >= 4);
    for seed in seeds {
        let list = std::fs::read(seed.path()).expect("a file");
        eprintln!("{}", seed.path().display());
        operations::run(&list);
    }
}
