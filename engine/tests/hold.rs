//! Casts of busy rooms wait for further ones: for how long, in which order, and what never waits.

mod host;

use engine::config::{AuthMode, DialectKind, Endpoint};
use engine::limits::{HOLD_CASTS_MAX, HOLD_MEMBERS_MIN};
use host::Host;

const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";
/// Long enough to be taken for busy.
const WARM: usize = 40;

/// A shard, and a room of so many, who have heard nothing yet.
fn room_of(members: usize, hold_ms: u64) -> (Host, Vec<usize>) {
    let mut config = host::config(1, vec![Endpoint { auth: AuthMode::None, ..host::endpoint("/", DialectKind::Rooms, "/") }]);
    (config.limits.hold_ms, config.limits.rate_messages) = (hold_ms, 1_000_000);
    let mut host = Host::new(config, 7);
    let clients: Vec<usize> = (0..members).map(|_| host.connect(0, &Host::upgrade_head(WEBSOCKET, ""))).collect();
    for client in &clients {
        host.say(*client, "40");
        host.settle();
        host.say(*client, r#"42["room:join",{"roomId":"r"}]"#);
        host.settle();
    }
    host.advance(1_000);
    forget(&mut host, &clients);
    (host, clients)
}

fn forget(host: &mut Host, clients: &[usize]) {
    for client in clients {
        host.take(*client);
        host.clients[*client].writes = 0;
    }
}

fn message(host: &mut Host, client: usize, number: usize) {
    host.say(client, &format!(r#"42["message",{{"roomId":"r","content":"{number}"}}]"#));
    host.settle();
}

/// One message a millisecond.
fn busy(host: &mut Host, client: usize, numbers: std::ops::Range<usize>) {
    for number in numbers {
        host.advance(1);
        message(host, client, number);
    }
}

/// Numbers of the messages among what a client has got.
fn heard(host: &mut Host, client: usize) -> Vec<usize> {
    let number = |text: &String| text.split(r#""content":""#).nth(1)?.split('"').next()?.parse().ok();
    host.texts(client).iter().filter_map(number).collect()
}

#[test]
fn a_busy_room_is_written_to_less_often_and_hears_everything_within_its_time() {
    let (mut host, clients) = room_of(HOLD_MEMBERS_MIN, 2);
    busy(&mut host, clients[0], 0..WARM);
    host.advance(2);
    forget(&mut host, &clients);
    let mut got = Vec::new();
    for number in 0..100 {
        host.advance(1);
        message(&mut host, clients[0], number);
        got.extend(heard(&mut host, clients[1]));
        assert!(got.len() + 2 > number, "{number} was said and {} of them heard", got.len());
    }
    host.advance(2);
    got.extend(heard(&mut host, clients[1]));
    assert_eq!(got, (0..100).collect::<Vec<_>>());
    for client in &clients[2..] {
        assert_eq!(heard(&mut host, *client), got);
        assert!(host.clients[*client].writes <= 55, "{} writes", host.clients[*client].writes);
    }
    assert!(host.stats[0].held_casts.read() >= 100);
}

#[test]
fn what_comes_slowly_or_to_few_never_waits() {
    for (members, hold_ms, gap_ms) in [(HOLD_MEMBERS_MIN, 2, 10), (HOLD_MEMBERS_MIN - 1, 2, 1), (HOLD_MEMBERS_MIN, 0, 1)] {
        let (mut host, clients) = room_of(members, hold_ms);
        for number in 0..2 * WARM {
            host.advance(gap_ms);
            message(&mut host, clients[0], number);
            assert_eq!(heard(&mut host, clients[1]), [number], "{members} members, at most {hold_ms} ms, one every {gap_ms} ms");
        }
        assert_eq!(host.stats[0].held_casts.read(), 0);
    }
}

#[test]
fn an_answer_takes_along_what_was_held_before_it() {
    let (mut host, clients) = room_of(HOLD_MEMBERS_MIN, 10);
    busy(&mut host, clients[0], 0..WARM);
    host.advance(10);
    forget(&mut host, &clients);
    message(&mut host, clients[0], 1);
    assert!(host.texts(clients[1]).is_empty(), "held");
    host.say(clients[1], r#"427["typing",{"roomId":"r","isTyping":true}]"#);
    host.settle();
    let texts = host.texts(clients[1]);
    assert!(texts.len() == 2 && texts[0].contains(r#""content":"1""#) && texts[1].starts_with("437["), "{texts:?}");
    assert_eq!(host.clients[clients[1]].writes, 1);
    host.advance(10);
    assert!(heard(&mut host, clients[1]).is_empty(), "not again");
    assert_eq!(heard(&mut host, clients[2]), [1]);
}

#[test]
fn as_many_as_are_held_at_most_go_before_the_time_is_over() {
    let (mut host, clients) = room_of(HOLD_MEMBERS_MIN, 10);
    busy(&mut host, clients[0], 0..WARM);
    host.advance(10);
    forget(&mut host, &clients);
    for number in 0..HOLD_CASTS_MAX - 1 {
        message(&mut host, clients[0], number);
    }
    let now = host.now;
    host.shards[0].handle_timeouts(now);
    host.settle();
    assert!(heard(&mut host, clients[1]).is_empty(), "there is place for one more");
    message(&mut host, clients[0], HOLD_CASTS_MAX - 1);
    assert!(host.shards[0].poll_hold().is_some_and(|due_ns| due_ns <= host.now.ns));
    host.shards[0].handle_timeouts(now);
    host.settle();
    assert_eq!(heard(&mut host, clients[1]), (0..HOLD_CASTS_MAX).collect::<Vec<_>>());
    assert_eq!(host.clients[clients[1]].writes, 1);
}

#[test]
fn whoever_leaves_with_something_held_leaves_nothing_behind() {
    let (mut host, clients) = room_of(HOLD_MEMBERS_MIN + 1, 10);
    busy(&mut host, clients[0], 0..WARM);
    message(&mut host, clients[0], WARM);
    host.hang_up(clients[5]);
    host.settle();
    let newcomer = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(newcomer, "40");
    host.settle();
    host.advance(20);
    assert!(heard(&mut host, newcomer).is_empty(), "who has the place of the one who left hears nothing of it");
    assert_eq!(heard(&mut host, clients[6]).last(), Some(&WARM));
}
