//! `errors-and-edge-cases`: raw requests with the raw answers, and packets on a WebSocket with what came back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::host::{Got, Host};
use crate::{capture, config, http, without_sids};

pub(crate) const NAME: &str = "errors-and-edge-cases";

/// Where our answer is another one on purpose.
const DIFFERENT: [(&str, &str); 23] = [
    ("allowRequest-refused-polling", "there is no hook of this kind"),
    ("allowRequest-refused-ws", "there is no hook of this kind"),
    ("ws-no-EIO", "Node upgrades first and writes HTTP into the WebSocket then; here the refusal comes instead of the upgrade"),
    ("ws-upgrade-on-polling-transport", "likewise: Node upgrades and closes"),
    ("ws-bad-version", "426 with the version that is spoken, as RFC 6455 asks"),
    ("ws-bad-key", "other words"),
    ("ws-ok-with-deflate-enabled", "no compression inside WebSockets; it is off in Node too unless asked for"),
    ("ws-other-path", "404 is an answer; Node hangs up after a second"),
    ("http-other-path", "goes to the control plane, which is not here"),
    ("path-no-trailing-slash", "goes to the control plane, which is not here"),
    ("custom-path-no-trailing-slash", "paths end with a slash"),
    ("sid-PUT", "400: it is the client's fault and not the server's"),
    ("sid-OPTIONS", "400: it is the client's fault and not the server's"),
    ("post-too-large", "the status has a newer name"),
    ("cors-preflight", "there is no list of methods; those allowed are Node's default"),
    ("cookie-options", "of a cookie only the name can be set"),
    ("wsonly-polling", "transports cannot be switched off"),
    ("allowUpgrades-false", "upgrades cannot be switched off"),
    ("client-bundle", "goes to the control plane, where there is a folder for it"),
    ("client-bundle-304", "goes to the control plane, where there is a folder for it"),
    ("jsonp-eio4", "JSONP, for browsers without CORS, is not spoken"),
    ("ws:ws-engine-close", "whoever says goodbye is let go at once; Node waits for the heartbeat"),
    ("ws:sio-huge-ack-id", "the captured application asks for an acknowledgement in turn"),
];

#[test]
fn requests_are_answered_as_by_node() {
    let mut wrong = Vec::new();
    for case in cases().iter().filter(|case| case["request"].is_string()) {
        let mut host = Host::new(with_options(&case["server_options"]), 1);
        let request = with_session(&mut host, text(&case["request"]));
        let client = host.connect(0, &request);
        host.settle();
        let expected: Vec<u8> = text(&case["response"]).chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect();
        check(text(&case["name"]), &http::shown(&expected), &http::shown(&host.clients[client].raw), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn packets_are_answered_as_by_node() {
    let mut wrong = Vec::new();
    for case in cases().iter().filter(|case| case["client_sends"].is_array()) {
        let mut host = Host::new(config(), 1);
        let client = host.connect(0, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
        host.settle();
        host.take(client);
        for packet in case["client_sends"].as_array().expect("a list") {
            match packet.as_str() {
                Some(text) => host.say(client, &text.replace("[\"echo\"", "[\"message\"")),
                None => host.frame(client, 2, &STANDARD.decode(text(&packet["b64"])).expect("base64")),
            }
            host.settle();
        }
        let mut said = String::new();
        for got in host.take(client) {
            match got {
                Got::Text(text) => said.push_str(&format!("{}\n", without_sids(&text).replace("\"message-back\"", "\"echoed\""))),
                Got::Close(code, _) => said.push_str(&format!("closed {}\n", code.unwrap_or(1005))),
                Got::End(_) => {}
                other => said.push_str(&format!("{other:?}\n")),
            }
        }
        let mut expected: String =
            case["server_sends"].as_array().expect("a list").iter().map(|sent| format!("{}\n", text(sent))).collect();
        if let Some(code) = case["closed"].as_u64() {
            expected.push_str(&format!("closed {code}\n"));
        }
        check(text(&case["name"]), &expected, &said, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What no single pair can show: two requests of a session at a time, and one that is given up.
#[test]
fn requests_that_meet_are_answered_as_by_node() {
    let cases = cases();
    let case = |name: &str| cases.iter().find(|case| case["name"] == name).expect("it is captured");
    let answer = |value: &Value| http::shown(text(&value["response"]).as_bytes());
    let get = |sid: &str| format!("GET /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: localhost\r\n\r\n");

    let mut host = Host::new(config(), 1);
    let sid = open(&mut host);
    let [first, second, after] = [0, 1, 0].map(|shard| {
        let client = host.connect(shard, &get(&sid));
        host.settle();
        client
    });
    let overlapping = case("overlapping-GET");
    for (client, name) in [(first, "first"), (second, "second"), (after, "after")] {
        assert_eq!(http::shown(&host.clients[client].raw), answer(&overlapping[name]), "overlapping-GET, {name}");
    }

    let sid = open(&mut host);
    let post = |body: &str| {
        format!("POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n{body}")
    };
    let [first, second, after] = [post("42"), post("42[]"), get(&sid)].map(|request| {
        let client = host.connect(0, &request);
        host.settle();
        client
    });
    // Node refuses the second and ends the session. Here a POST comes to its session when all of it is there, so the second is the first,
    // and a client that sends two at a time has chosen that their order does not matter.
    let statuses = [first, second, after].map(|client| host.clients[client].got.front().cloned());
    assert_eq!(statuses[0], None, "the first POST still waits for its body");
    assert_eq!(statuses[1], Some(Got::Http(200, "ok".to_owned())), "overlapping-POST, second");
    assert_ne!(case("overlapping-POST")["second"], Value::Null);

    let sid = open(&mut host);
    let given_up = host.connect(1, &get(&sid));
    host.settle();
    host.hang_up(given_up);
    host.settle();
    let after = host.connect(0, &get(&sid));
    host.settle();
    assert_eq!(http::shown(&host.clients[after].raw), answer(&case("aborted-GET-closes-session")["after"]), "aborted-GET");
}

#[test]
fn what_is_too_large_is_refused_as_by_node() {
    let mut host = Host::new(config(), 1);
    let client = host.connect(0, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    host.say(client, &"4".repeat(1_000_001));
    host.settle();
    let code = host.take(client).into_iter().find_map(|got| if let Got::Close(code, _) = got { code } else { None });
    let case = cases().into_iter().find(|case| case["name"] == "ws-too-large").expect("it is captured");
    assert_eq!(code.map(u64::from), case["result"]["code"].as_u64());

    let mut config = config();
    config.limits.message_bytes = 5_000;
    let mut host = Host::new(config, 1);
    let sid = open(&mut host);
    let statuses = [6_001, 2].map(|bytes| {
        let body = if bytes == 2 { "40".to_owned() } else { "4".repeat(bytes) };
        let head = format!("POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: localhost\r\n");
        let client = host.connect(0, &format!("{head}Content-Length: {bytes}\r\n\r\n{body}"));
        host.settle();
        host.take(client).into_iter().find_map(|got| if let Got::Http(status, _) = got { Some(status) } else { None })
    });
    assert_eq!(statuses, [Some(413), Some(400)], "413-session-survives: Node goes on, here a session ends as a WebSocket does");
}

fn check(name: &str, expected: &str, got: &str, wrong: &mut Vec<String>) {
    let reason = DIFFERENT.iter().find(|(case, _)| *case == name).map(|(_, reason)| *reason);
    match (expected == got, reason) {
        (true, None) | (false, Some(_)) => {}
        (true, Some(reason)) => wrong.push(format!("{name}: no longer differs ({reason})")),
        (false, None) => wrong.push(format!("{name}\n  expected {expected:?}\n  got      {got:?}")),
    }
}

fn cases() -> Vec<Value> {
    capture(NAME)["cases"].as_array().expect("a list").clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The options of the Node server that we have too.
fn with_options(options: &Value) -> engine::config::Config {
    let mut config = config();
    match &options["cors"]["origin"] {
        Value::Array(origins) => config.origins = origins.iter().map(|origin| text(origin).to_owned()).collect(),
        Value::String(_) => config.any_origin = true,
        _ => {}
    }
    config.socket_io.cookie = match &options["cookie"] {
        Value::Bool(true) => Some("io".to_owned()),
        Value::Object(cookie) => Some(text(&cookie["name"]).to_owned()),
        _ => None,
    };
    if let Some(path) = options["path"].as_str() {
        config.socket_io.path = format!("{path}/");
    }
    if let Some(bytes) = options["maxHttpBufferSize"].as_u64() {
        config.limits.message_bytes = bytes as usize;
    }
    config
}

/// A captured id of a session stands for one that is opened here.
fn with_session(host: &mut Host, request: &str) -> String {
    let Some(captured) = request.split_once("&sid=").map(|(_, rest)| &rest[..rest.find(' ').unwrap_or(0)]).filter(|sid| sid.len() == 20)
    else {
        return request.to_owned();
    };
    let sid = open(host);
    request.replace(captured, &sid)
}

fn open(host: &mut Host) -> String {
    let client = host.connect(1, "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: localhost\r\n\r\n");
    host.settle();
    match host.take(client).first() {
        Some(Got::Http(200, greeting)) => greeting[9..29].to_owned(),
        other => panic!("the handshake was answered with {other:?}"),
    }
}
