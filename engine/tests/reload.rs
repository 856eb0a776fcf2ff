//! A host is written down and another goes on from there: with other endpoints, with more and with fewer shards, and from what an older version has written down. That
//! nobody notices a reload at any moment is the business of the simulation and of the transcripts, which are played with a reload after each deed.

mod host;

use std::path::Path;

use engine::config::{Config, DialectKind, Endpoint};
use engine::shard::frozen::{Frozen, NotThawed, VERSION};
use engine::time::Now;
use host::{Got, Host};
use serde_json::json;

const LATER: Now = Now { ns: 20_000_000_000, unix_ms: host::START_UNIX_MS + 19_000 };

fn everything(shards: usize) -> Config {
    let recoverable = Endpoint { recovery_ms: 120_000, retain: 10, ..host::endpoint("chat", DialectKind::Chat, "/chat") };
    host::config(
        shards,
        vec![
            host::endpoint("community", DialectKind::Community, "/api/community/ws"),
            host::endpoint("fabric", DialectKind::Collab, "/ws/fabric"),
            host::endpoint("rooms", DialectKind::Rooms, "/"),
            recoverable,
            host::endpoint("notify", DialectKind::Notify, "/notify"),
        ],
    )
}

fn token(user: &str) -> String {
    host::token(&json!({ "sub": user, "rooms": ["r"], "documents": ["d"], "exp": 4_000_000_000_u64 }))
}

fn socket_io(host: &mut Host, shard: usize, user: &str, namespace: &str) -> usize {
    let head = Host::upgrade_head(&format!("/socket.io/?EIO=4&transport=websocket&token={}", token(user)), "");
    let client = host.connect(shard, &head);
    host.say(client, &format!("40{namespace}"));
    host.settle();
    client
}

/// Clients of all dialects in the midst of what they do, in the order in which the tests name them.
fn lively(shards: usize) -> Host {
    let mut host = Host::new(everything(shards), 5);
    let alice = host.connect(0, &Host::upgrade_head(&format!("/api/community/ws?token={}", token("alice")), ""));
    host.say(alice, r#"{"type":"SUBSCRIBE","payload":{"roomId":"r"}}"#);
    let drawer = host.connect(1 % shards, &Host::upgrade_head(&format!("/ws/fabric?documentId=d&clientID=c1&token={}", token("bob")), ""));
    let member = socket_io(&mut host, 1 % shards, "carol", "");
    host.say(member, r#"420["room:join",{"roomId":"r"}]"#);
    let chatter = socket_io(&mut host, 0, "dave", "/chat,");
    host.say(chatter, r#"42/chat,["join-room","r"]"#);
    host.settle();
    host.say(member, r#"421["message",{"roomId":"r","content":"before"}]"#);
    host.settle();
    for client in [alice, drawer, member, chatter] {
        host.take(client);
    }
    // Half of a message, and half of a frame.
    host.write(
        member,
        &host::masked(1, br#"42["message",{"roomId":"r","content":"one "#)
            .iter()
            .enumerate()
            .map(|(i, byte)| if i == 0 { byte & 0x7f } else { *byte })
            .collect::<Vec<u8>>(),
    );
    let whole = host::masked(1, br#"{"type":"PING"}"#);
    host.write(alice, &whole[..5]);
    host
}

/// What was begun is ended, and answered as if nothing had been.
fn goes_on(host: &mut Host) {
    let (alice, member) = (0, 2);
    let whole = host::masked(1, br#"{"type":"PING"}"#);
    host.write(alice, &whole[5..]);
    host.frame(member, 0, br#"two"}]"#);
    host.settle();
    assert!(host.texts(alice).iter().any(|text| text.contains("PONG")));
    let heard = host.texts(member);
    assert!(heard.iter().any(|text| text.contains(r#""content":"one two""#)), "{heard:?}");
    let late = socket_io(host, 0, "erin", "");
    host.say(late, r#"420["room:join",{"roomId":"r"}]"#);
    host.settle();
    let joined = host.texts(late).concat();
    let places = ["before", "one two"].map(|said| joined.find(said).unwrap_or_else(|| panic!("{said} in {joined}")));
    assert!(places.is_sorted() && joined.contains(r#""memberCount":2"#), "{joined}");
    let heard = host.texts(member);
    assert!(heard.iter().any(|text| text.contains("user:joined") && text.contains("erin")), "{heard:?}");
}

#[test]
fn a_state_goes_on_with_any_number_of_shards() {
    for (before, after) in [(2, 2), (2, 3), (3, 1), (1, 4)] {
        let mut host = lively(before);
        host.reload(after);
        goes_on(&mut host);
        let connections: u64 = host.stats.iter().flat_map(|shard| &shard.endpoints).map(|endpoint| endpoint.connections.read()).sum();
        assert_eq!((connections, host.shards.len()), (5, after), "{before} to {after} shards");
    }
}

#[test]
fn whose_endpoint_is_served_no_longer_is_told_goodbye() {
    let mut host = lively(2);
    let both = socket_io(&mut host, 0, "frank", "/chat,");
    host.say(both, "40");
    host.settle();
    let state = host.freeze();
    let mut config = everything(2);
    config.endpoints.retain(|endpoint| !["community", "chat"].contains(&&*endpoint.name));
    let mut host = Host::thawed(&state, config, host.now, 1, std::mem::take(&mut host.clients));
    host.settle();
    assert!(host.take(0).iter().any(|got| matches!(got, Got::Close(Some(1001), _))), "community");
    assert!(host.clients[1].open && host.clients[2].open, "the others go on");
    let chatter = host.take(3);
    assert!(chatter.contains(&Got::Text("41/chat,".into())) && chatter.iter().any(|got| matches!(got, Got::Close(..))), "{chatter:?}");
    let both_namespaces = host.take(both);
    assert!(both_namespaces.contains(&Got::Text("41/chat,".into())) && host.clients[both].open, "{both_namespaces:?}");
    let connections: u64 = host.stats.iter().flat_map(|shard| &shard.endpoints).map(|endpoint| endpoint.connections.read()).sum();
    assert_eq!(connections, 3, "bob, carol and frank in the main namespace");
}

#[test]
fn what_is_no_state_or_of_another_version_is_refused() {
    let state = lively(1).freeze();
    assert!(matches!(Frozen::decode(b""), Err(NotThawed::NoState)));
    assert!(matches!(Frozen::decode(b"something else"), Err(NotThawed::NoState)));
    let mut newer = state.clone();
    newer[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
    assert!(matches!(Frozen::decode(&newer), Err(NotThawed::Version(version)) if version == VERSION + 1));
    for end in (12..state.len()).step_by(97) {
        assert!(matches!(Frozen::decode(&state[..end]), Err(NotThawed::Unreadable(_))), "cut at {end} of {}", state.len());
    }
}

fn state_of(version: u32) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/states/{version}.bin"))
}

/// States of all versions that can be taken over are kept beside the tests. `URINGCAST_WRITE_STATE=1 cargo test -p engine --test reload states` writes that of a new version.
#[test]
fn states_of_older_versions_are_taken_over() {
    if std::env::var_os("URINGCAST_WRITE_STATE").is_some() {
        std::fs::write(state_of(VERSION), lively(2).freeze()).expect("a writable folder");
    }
    for version in engine::shard::frozen::OLDEST..=VERSION {
        let state = std::fs::read(state_of(version)).unwrap_or_else(|fault| panic!("the state of version {version}: {fault}"));
        assert_eq!(state[8..12], version.to_le_bytes());
        let mut host = Host::thawed(&state, everything(2), LATER, 1, Vec::new());
        host.settle();
        goes_on(&mut host);
    }
}
