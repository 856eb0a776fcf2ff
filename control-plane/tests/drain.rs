//! How the process ends when it is asked to over HTTP: exit status and time, and what a signal meanwhile does.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::raw::Raw;
use support::{ADMIN_TOKEN, PATIENCE, Server, Setup, ask};

/// `POST /v1/drain` and the status of its answer.
fn drain(server: &Server, body: &str) -> u16 {
    let headers = format!("Authorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: {}\r\n", body.len());
    let answer = ask(server.control, "POST", "/v1/drain", &format!("{headers}\r\n{body}"));
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[test]
fn an_empty_server_is_gone_at_once() {
    let mut server = Server::start(&Setup::default());
    assert_eq!(drain(&server, r#"{"seconds":3600}"#), 202);
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
}

#[test]
fn the_time_of_the_call_counts_and_not_the_configured_one() {
    let mut server = Server::start(&Setup::default());
    let mut clients: Vec<Raw> = (0..4).map(|number| Raw::talk(&server, &format!("client{number}"), "den")).collect();
    let began = Instant::now();
    assert_eq!(drain(&server, r#"{"seconds":0}"#), 202);
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
    assert!(began.elapsed() < Duration::from_secs(10), "the default is ten seconds");
    for client in &mut clients {
        assert_eq!(client.close_code(), Some(1001));
    }
}

/// Its last words may still be on their way to us.
fn hear(server: &Server, words: &str) {
    let end = Instant::now() + PATIENCE;
    while !server.said().contains(words) {
        assert!(Instant::now() < end, "it said:\n{}", server.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_first_signal_shortens_a_long_drain_and_everybody_is_told() {
    let mut server = Server::start(&Setup { variables: &[("URINGCAST_SERVER_DRAIN_SECONDS", "1")], ..Setup::default() });
    let mut clients: Vec<Raw> = (0..4).map(|number| Raw::talk(&server, &format!("client{number}"), "den")).collect();
    assert_eq!(drain(&server, r#"{"seconds":3600}"#), 202);
    assert_eq!(support::get(server.control, "/readyz").0, 503);
    assert_eq!(drain(&server, "{}"), 409);
    server.signal(Signal::TERM);
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
    for client in &mut clients {
        assert_eq!(client.close_code(), Some(1001));
    }
    hear(&server, "stopping sooner: closing all connections within 1 s");
    assert!(!server.said().contains("stopped before all connections were closed"), "{}", server.said());
}

#[test]
fn the_next_signal_cuts_it_short() {
    let mut server = Server::start(&Setup { variables: &[("URINGCAST_SERVER_DRAIN_SECONDS", "30")], ..Setup::default() });
    let _clients: Vec<Raw> = (0..2).map(|number| Raw::talk(&server, &format!("client{number}"), "den")).collect();
    assert_eq!(drain(&server, r#"{"seconds":3600}"#), 202);
    server.signal(Signal::TERM);
    // Two at once would be one.
    hear(&server, "stopping sooner");
    server.signal(Signal::TERM);
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
    hear(&server, "stopped before all connections were closed");
}
