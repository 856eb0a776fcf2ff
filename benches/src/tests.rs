//! Each scenario for a moment against a tiny server of another make (threads and tungstenite), in both dialects; and proof that a
//! message that is dropped, doubled, swapped or sent astray is found and named.

mod tiny_server;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use serde_json::Value;

use crate::options::Options;
use crate::report;
use crate::run;
use tiny_server::{Mischief, TinyServer};

const SECRET: &str = "a-secret-of-the-tests";

fn measure(server: &TinyServer, line: &str) -> Result<Value, String> {
    let line = format!("{line} --url {} --secret {SECRET} --warmup 0.1 --seconds 0.3 --settle 0.1", server.address());
    run::run(&options(&line)?)
}

fn options(line: &str) -> Result<Options, String> {
    Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
}

fn measure_with(mischief: Mischief, line: &str) -> Value {
    measure(&TinyServer::start(mischief), line).expect("a result")
}

#[test]
fn every_scenario_runs_in_community() {
    run_every_scenario("community");
}

#[test]
fn every_scenario_runs_in_rooms() {
    run_every_scenario("rooms");
}

fn run_every_scenario(dialect: &str) {
    for line in [
        "connect --connections 20 --rooms 4",
        "fan-out --connections 20 --rate 2000",
        "fan-out --connections 20 --rate max",
        "rooms --connections 20 --rooms 4 --rate 1000",
        "rooms --connections 20 --rooms 4 --rate max",
        "echo --connections 10 --rate 500",
        "echo --connections 10 --rate max --window 10",
    ] {
        let result = measure_with(Mischief::None, &format!("{line} --dialect {dialect}"));
        assert!(report::is_clean(&result), "{line} {dialect}: {result}");
        let [rate, cost] = if line.starts_with("connect") {
            ["connections_per_second", "server_cpu_us_per_connection"]
        } else {
            ["deliveries_per_second", "server_cpu_us_per_delivery"]
        };
        for figure in [rate, cost, "generator_cpu_share"] {
            assert!(result[figure].as_f64().is_some_and(|figure| figure > 0.0), "{line} {dialect}, {figure}: {result}");
        }
    }
}

#[test]
fn a_fixed_rate_is_kept() {
    let result = measure_with(Mischief::None, "fan-out --connections 10 --rate 2000 --payload 300");
    let rate = result["deliveries_per_second"].as_f64().expect("a number");
    assert!((1_500.0..2_500.0).contains(&rate), "{result}");
    assert!(result["latency_us"]["p50"].as_f64().is_some_and(|latency| latency > 0.0), "{result}");
}

#[test]
fn dropped_messages_are_lost() {
    let result = measure_with(Mischief::DropEvery(50), "fan-out --connections 5 --rate 2000");
    let lost = result["lost"].as_u64().expect("a number");
    assert!(lost > 0, "{result}");
    assert_eq!((&result["doubled"], &result["misordered"]), (&0.into(), &0.into()), "{result}");
    assert!(!report::is_clean(&result));
}

#[test]
fn a_closed_loop_survives_losses() {
    let result = measure_with(Mischief::DropEvery(10), "rooms --connections 10 --rooms 2 --rate max --window 4");
    assert!(result["lost"].as_u64().is_some_and(|lost| lost > 0), "{result}");
}

#[test]
fn doubled_messages_are_doubled() {
    let result = measure_with(Mischief::DoubleEvery(50), "fan-out --connections 5 --rate 2000");
    assert!(result["doubled"].as_u64().is_some_and(|doubled| doubled > 0), "{result}");
    assert_eq!((&result["lost"], &result["misordered"]), (&0.into(), &0.into()), "{result}");
}

#[test]
fn swapped_messages_are_misordered() {
    let result = measure_with(Mischief::SwapEvery(50), "fan-out --connections 5 --rate 2000");
    assert!(result["misordered"].as_u64().is_some_and(|misordered| misordered > 0), "{result}");
    assert_eq!(&result["doubled"], &0, "{result}");
}

#[test]
fn messages_of_another_room_are_foreign() {
    let result = measure_with(Mischief::Astray, "rooms --connections 6 --rooms 2 --rate 500");
    assert!(result["foreign"].as_u64().is_some_and(|foreign| foreign > 0), "{result}");
}

#[test]
fn doubled_and_dropped_answers_are_found_too() {
    for dialect in ["community", "rooms"] {
        let doubled = measure_with(Mischief::DoubleEvery(20), &format!("echo --connections 4 --rate 400 --dialect {dialect}"));
        assert!(doubled["doubled"].as_u64().is_some_and(|doubled| doubled > 0), "{doubled}");
        let dropped = measure_with(Mischief::DropEvery(20), &format!("echo --connections 4 --rate 400 --dialect {dialect}"));
        assert!(dropped["lost"].as_u64().is_some_and(|lost| lost > 0), "{dropped}");
    }
}

#[test]
fn a_cut_connection_is_told_with_its_reason() {
    let result = measure_with(Mischief::HangUpAfter(30), "fan-out --connections 4 --rate 2000");
    assert!(result["disconnected"].as_u64().is_some_and(|disconnected| disconnected > 0), "{result}");
    assert!(result["first_fault"].is_string(), "{result}");
}

#[test]
fn a_room_split_between_two_threads_adds_up() {
    let cpus: Vec<String> = crate::net::allowed_cpus().iter().take(2).map(ToString::to_string).collect();
    for line in ["fan-out --connections 20 --rate max", "fan-out --connections 20 --rate 2000", "rooms --connections 20 --rooms 4"] {
        let result = measure_with(Mischief::None, &format!("{line} --cpus {}", cpus.join(",")));
        assert!(report::is_clean(&result), "{result}");
        assert!(result["deliveries"].as_u64().is_some_and(|deliveries| deliveries > 0), "{result}");
    }
}

#[test]
fn a_refused_upgrade_is_told_with_its_status() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let _ = socket.read(&mut [0; 2048]);
            let _ = socket.write_all(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n");
        }
    });
    let options = options(&format!("echo --url {address} --secret wrong --connections 1")).expect("valid");
    let error = run::run(&options).expect_err("a refusal");
    assert!(error.contains("401 Unauthorized"), "{error}");
}

#[test]
fn a_process_that_is_gone_is_an_error() {
    let address = TinyServer::start(Mischief::None).address();
    let options = options(&format!("echo --url {address} --secret s --pid {} --connections 1", u32::MAX)).expect("valid");
    assert!(run::run(&options).is_err_and(|error| error.contains("is gone")));
}
