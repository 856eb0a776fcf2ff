//! What clocks do to a host without sockets: the wall clock is set forward and back under connections, and the shards themselves do not run for
//! longer than a heartbeat. Whoever is there stays, and what is said arrives once and in order.

#[path = "recovery/client.rs"]
mod client;
mod host;

use client::{Client, counts, pair};
use engine::fault::CloseReason;
use host::Host;
use serde_json::json;

const DAY_MS: u64 = 24 * 3_600_000;

fn closed(host: &Host) -> u64 {
    CloseReason::ALL.iter().map(|reason| counts(host, |stats| stats.closed[reason.index()].read())).sum()
}

fn talk(host: &mut Host, from: &mut Client, to: &mut Client, words: &[&str]) {
    words.iter().for_each(|word| from.tell(host, word));
    let wanted: Vec<_> = words.iter().map(|word| json!(word)).collect();
    assert_eq!(from.take(host), wanted);
    assert_eq!(to.take(host), wanted);
}

#[test]
fn a_wall_clock_that_is_set_cuts_nobody() {
    let mut host = client::host();
    let (mut alice, mut bob) = pair(&mut host);
    talk(&mut host, &mut alice, &mut bob, &["before"]);
    for (unix_ms, words) in [(host.now.unix_ms + DAY_MS, ["a day later", "still"]), (host.now.unix_ms - DAY_MS, ["a day earlier", "yet"])] {
        host.now.unix_ms = unix_ms;
        host.advance(5_000);
        talk(&mut host, &mut alice, &mut bob, &words);
        talk(&mut host, &mut bob, &mut alice, &words);
    }
    // Who breaks off before it is set comes back after.
    alice.break_off(&mut host);
    host.now.unix_ms += DAY_MS;
    bob.tell(&mut host, "missed");
    host.advance(1_000);
    alice.return_to(&mut host, 2);
    assert!(alice.recovered);
    assert_eq!(alice.take(&mut host), [json!("missed"), json!("CONNECT")]);
    assert_eq!(counts(&host, |stats| stats.connections.read()), 2);
}

#[test]
fn a_token_expires_by_the_wall_clock_wherever_that_is_set() {
    let mut host = client::host();
    let at = client::open(&mut host, 0);
    let exp = host.now.unix_ms / 1_000 + 3_600;
    host.say(at, &format!("40{}", json!({"token": host::token(&json!({"sub": "eve", "exp": exp}))})));
    host.settle();
    host.advance(1_000);
    assert_eq!(closed(&host), 0);
    host.now.unix_ms += 2 * 3_600_000;
    // A clock that is set is noticed with the next look at the connection, at its heartbeat.
    for _ in 0..30 {
        host.advance(1_000);
        host.say(at, "3");
    }
    assert_eq!(counts(&host, |stats| stats.closed[CloseReason::TokenExpired.index()].read()), 1);
}

/// The process was stopped, or the machine stood still: heartbeats were answered meanwhile, and the answers are not read yet.
#[test]
fn who_answered_while_the_shards_did_not_run_stays() {
    let mut host = client::host();
    let (mut alice, mut bob) = pair(&mut host);
    let silent = Client::come(&mut host, 2, "silent");
    bob.take(&mut host);
    // Until the pings are out.
    let is_pinged = |host: &mut Host, at: usize| host.texts(at).contains(&"2".to_owned());
    let mut pinged = [false; 3];
    for _ in 0..300 {
        host.advance(100);
        for (pinged, at) in pinged.iter_mut().zip([alice.at, bob.at, silent.at]) {
            *pinged |= is_pinged(&mut host, at);
        }
        if pinged == [true; 3] {
            break;
        }
    }
    assert_eq!(pinged, [true; 3]);
    host.now.ns += 90_000_000_000;
    host.now.unix_ms += 90_000;
    for shard in 0..3 {
        host.shards[shard].handle_timeouts(host.now);
    }
    host.settle();
    assert_eq!(closed(&host), 0, "nobody is judged at once");
    for at in [alice.at, bob.at] {
        host.say(at, "3");
    }
    host.advance(3_000);
    assert_eq!(counts(&host, |stats| stats.closed[CloseReason::Heartbeat.index()].read()), 1, "but who said nothing is gone");
    // They have heard of that.
    alice.take(&mut host);
    bob.take(&mut host);
    talk(&mut host, &mut alice, &mut bob, &["one", "two"]);
}
