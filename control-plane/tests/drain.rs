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

#[test]
fn a_signal_cuts_a_long_drain_short() {
    let mut server = Server::start(&Setup::default());
    let _clients: Vec<Raw> = (0..2).map(|number| Raw::talk(&server, &format!("client{number}"), "den")).collect();
    assert_eq!(drain(&server, r#"{"seconds":3600}"#), 202);
    assert_eq!(support::get(server.control, "/readyz").0, 503);
    assert_eq!(drain(&server, "{}"), 409);
    server.signal(Signal::TERM);
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
    // Its last words may still be on their way to us.
    let end = Instant::now() + PATIENCE;
    while !server.said().contains("stopped before all connections were closed") {
        assert!(Instant::now() < end, "it said:\n{}", server.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}
