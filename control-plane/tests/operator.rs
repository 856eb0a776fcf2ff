//! The operator's commands of the built binary against a running server, over TCP and over a Unix socket.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::raw::Raw;
use support::{ADMIN_TOKEN, PATIENCE, SECRET, Server, Setup};

/// What a command said and how it ended.
struct Said {
    status: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{} {}", self.out, self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("not JSON: {}", self.out))
    }

    /// What it printed, after it went well.
    fn good(&self) -> &str {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "{}", self.out);
        &self.out
    }

    /// What it complained of, after it ended with this status and printed nothing.
    fn bad(&self, status: i32) -> &str {
        assert_eq!((self.status, self.out.as_str()), (status, ""), "{}", self.err);
        assert!(!self.err.contains(ADMIN_TOKEN), "{}", self.err);
        &self.err
    }
}

/// Runs the binary with an environment of these variables only.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringcast"));
    let output = command.args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null()).output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    Said { status: output.status.code().expect("no signal"), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A command for this server, with its token.
fn ask(server: &Server, arguments: &[&str]) -> Said {
    let control = server.control.to_string();
    run(&[arguments, &["--control", &control]].concat(), &[("ADMIN_TOKEN", ADMIN_TOKEN)])
}

#[test]
fn an_operator_sees_sends_and_closes() {
    let mut server = Server::start(&Setup::default());
    let nobody = ask(&server, &["connections"]);
    assert_eq!(nobody.good(), "ID  ENDPOINT  USER  NAME  SINCE  ROOMS\n");

    let (mut alice, mut bob) = (Raw::talk(&server, "alice", "den"), Raw::talk(&server, "bob", "hall"));
    let stats = ask(&server, &["stats"]);
    assert!(stats.good().contains("active connections   2\n"), "{}", stats.out);
    assert_eq!(ask(&server, &["stats", "--json"]).json()["activeConnections"], json!(2));

    let all = ask(&server, &["connections", "--endpoint", "talk"]);
    assert_eq!((all.good().lines().count(), all.out.matches("talk").count()), (3, 2), "{}", all.out);
    let one = ask(&server, &["connections", "--user", "alice", "--room", "room:den", "--json"]).json();
    let id = one["connections"][0]["id"].as_str().expect("an id").to_owned();
    assert!(all.out.contains(&id) && one["connections"].as_array().is_some_and(|list| list.len() == 1), "{one}");

    let sent = ask(&server, &["emit", "--endpoint", "talk", "--room", "room:den", "--room", "nowhere", "NEWS", r#"{"n":1.0e+10}"#]);
    assert_eq!(sent.good(), "1 connection reached\n");
    assert!(alice.text_with("NEWS").contains("1.0e+10"), "no number changes on its way");
    let sent = ask(&server, &["emit", "--endpoint", "talk", "--all", "--except", &id, "LATER", "[]", "--json"]).json();
    assert_eq!(sent, json!({"recipients": 1}));
    bob.text_with("LATER");

    let closed = ask(&server, &["kick", "user", "alice", "--reason", "good night"]);
    assert_eq!(closed.good(), "1 connection closed\n");
    assert_eq!(alice.close_code(), Some(4403));
    assert_eq!(ask(&server, &["kick", "user", "alice", "--json"]).json(), json!({"closed": 0}));
    let rest = ask(&server, &["connections", "--json"]).json();
    let bobs = rest["connections"][0]["id"].as_str().expect("an id");
    assert_eq!(ask(&server, &["kick", "connection", bobs]).good(), "1 connection closed\n");
    assert_eq!(bob.close_code(), Some(4403));
    assert!(ask(&server, &["kick", "connection", bobs]).bad(1).contains("no such connection"));
    server.assert_well();
}

/// Makes a room of `fixed`, as a back end does.
fn make_room(server: &Server, id: &str, namespace: &str) {
    let body = json!({"endpoint": "fixed", "id": id, "name": format!("The {id}"), "namespace": namespace, "createdBy": "boss"}).to_string();
    let headers = format!("Authorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: {}\r\n", body.len());
    let answer = support::ask(server.control, "POST", "/v1/rooms", &format!("{headers}\r\n{body}"));
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

#[test]
fn rooms_are_listed_and_shown_with_who_is_in() {
    let mut server = Server::start(&Setup::default());
    assert_eq!(ask(&server, &["rooms"]).good(), "ID  NAME  NAMESPACE  MEMBERS  CREATED  BY\n");
    for (id, namespace) in [("a", "shop"), ("b", "shop"), ("c", "yard")] {
        make_room(&server, id, namespace);
    }
    let ids = |said: &Said| said.good().lines().skip(1).filter_map(|line| line.split(' ').next().map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(ids(&ask(&server, &["rooms", "--endpoint", "fixed"])), ["a", "b", "c"]);
    assert_eq!(ids(&ask(&server, &["rooms", "--endpoint", "fixed", "--namespace", "shop"])), ["a", "b"]);
    assert_eq!(ids(&ask(&server, &["rooms"])), [""; 0], "of the first endpoint of rooms");
    let some = ask(&server, &["rooms", "--endpoint", "fixed", "--limit", "2"]);
    assert_eq!((some.status, some.out.lines().count()), (0, 3), "{}", some.out);
    assert!(some.err.contains("--all"), "{}", some.err);
    let all = ask(&server, &["rooms", "--endpoint", "fixed", "--json"]).json();
    assert_eq!((all["rooms"].as_array().map(Vec::len), &all["rooms"][2]["createdBy"]), (Some(3), &json!("boss")));
    let made = ask(&server, &["rooms", "show", "c", "--endpoint", "fixed"]);
    assert!(made.good().contains("The c") && made.out.ends_with("\nID  ENDPOINT  USER  NAME  SINCE  ROOMS\n"), "{}", made.out);

    let _inside: Vec<Raw> = ["alice", "bob"].map(|user| Raw::talk(&server, user, "den")).into();
    let listed = ask(&server, &["rooms", "--endpoint", "talk"]);
    assert!(
        listed.good().lines().any(|line| line.starts_with("room:den ") && line.split_whitespace().any(|word| word == "2")),
        "{}",
        listed.out
    );
    let shown = ask(&server, &["rooms", "show", "room:den", "--endpoint", "talk"]);
    let (_, members) = shown.good().split_once("\n\n").expect("the room, an empty line and its members");
    assert!(members.lines().count() == 3 && members.contains(" alice ") && members.contains(" bob "), "{}", shown.out);
    let told = ask(&server, &["rooms", "show", "room:den", "--endpoint", "talk", "--json"]).json();
    assert_eq!(told["members"].as_array().map(Vec::len), Some(2), "{told}");

    assert!(ask(&server, &["rooms", "show", "nowhere", "--endpoint", "fixed"]).bad(1).contains("no such room"));
    assert!(ask(&server, &["rooms", "--endpoint", "nothing"]).bad(1).contains("no such endpoint"));
    for wrong in [&["rooms", "show"][..], &["rooms", "--limit", "0"], &["rooms", "--all", "show", "c"], &["rooms", "hide", "c"]] {
        ask(&server, wrong).bad(2);
    }
    server.assert_well();
}

#[test]
fn one_endpoint_has_numbers_of_its_own() {
    let server = Server::start(&Setup::default());
    let _inside = Raw::talk(&server, "alice", "den");
    let connections = |endpoint: &str| ask(&server, &["stats", "--endpoint", endpoint, "--json"]).json()["totalConnections"].clone();
    assert_eq!((connections("talk"), connections("fabric")), (json!(1), json!(0)));
    let shown = ask(&server, &["stats", "--endpoint", "talk"]);
    assert!(shown.good().lines().any(|line| line.starts_with("total connections ") && line.ends_with(" 1")), "{}", shown.out);
    assert!(ask(&server, &["stats", "--endpoint", "nothing"]).bad(1).contains("no such endpoint"));
}

#[test]
fn an_operator_sees_the_hosts_and_drains_them_by_name() {
    let mut server = Server::start(&Setup::default());
    let _inside = Raw::talk(&server, "alice", "den");
    let hosts = ask(&server, &["hosts", "--json"]).json()["hosts"].clone();
    let id = hosts[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!((hosts.as_array().map(Vec::len), id.len(), &hosts[0]["connections"]), (Some(1), 16, &json!(1)));
    let shown = ask(&server, &["hosts"]);
    let lines: Vec<_> = shown.good().lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["ID", "SHARDS", "VERSION", "CONNECTIONS", "STATE", "LAST", "SEEN"]);
    assert_eq!((lines[1][0], lines[1][3], lines[1][4], lines.len()), (id.as_str(), "1", "serving", 2), "{}", shown.out);
    let drained = ask(&server, &["drain", "--host", &id, "--seconds", "0"]);
    assert!(drained.good().starts_with(&format!("draining {id}: ")), "{}", drained.out);
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());

    let mut server = Server::start(&Setup::default());
    assert!(ask(&server, &["drain", "--all-hosts", "--seconds", "0"]).good().starts_with("draining "));
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
}

#[test]
fn a_drained_server_ends_and_both_say_so() {
    let mut server = Server::start(&Setup::default());
    let mut client = Raw::talk(&server, "alice", "den");
    ask(&server, &["drain", "--seconds", "-1"]).bad(2);
    ask(&server, &["drain", "--seconds", "100000"]).bad(1);
    ask(&server, &["drain", "--all-hosts", "--host", "0123456789abcdef"]).bad(2);
    ask(&server, &["drain", "--host", "0123456789abcdef"]).bad(1);
    assert_eq!(support::get(server.control, "/readyz").0, 200, "it goes on");
    assert!(ask(&server, &["drain", "--seconds", "0"]).good().starts_with("draining: "));
    assert_eq!(client.close_code(), Some(1001));
    assert_eq!(server.exit(PATIENCE).code(), Some(0), "{}", server.said());
    ask(&server, &["drain"]).bad(69);

    // Who asks again while it lasts is told that it does.
    let server = Server::start(&Setup::default());
    let _clients: Vec<Raw> = (0..2).map(|number| Raw::talk(&server, &format!("client{number}"), "den")).collect();
    assert!(ask(&server, &["drain", "--seconds", "3600", "--json"]).json().is_object());
    assert_eq!(support::get(server.control, "/readyz").0, 503);
    ask(&server, &["drain"]).bad(1);
}

#[test]
fn long_lists_come_page_by_page() {
    let server = Server::start(&Setup::default());
    let guests: Vec<Raw> = (0..5).map(|number| Raw::talk(&server, &format!("guest{number}"), "den")).collect();
    let some = ask(&server, &["connections", "--limit", "2"]);
    assert_eq!((some.status, some.out.lines().count()), (0, 3), "{}", some.out);
    assert!(some.err.contains("--all"), "{}", some.err);
    assert!(ask(&server, &["connections", "--limit", "2", "--json"]).json()["cursor"].is_string());
    for all in [&["connections", "--all"][..], &["connections", "--limit", "5"]] {
        assert_eq!(ask(&server, all).good().lines().count(), 6);
    }
    let all = ask(&server, &["connections", "--all", "--json"]).json();
    assert_eq!((all["connections"].as_array().map(Vec::len), all.get("cursor")), (Some(5), None));
    drop(guests);
}

#[test]
fn names_cannot_take_over_the_terminal() {
    let server = Server::start(&Setup::default());
    let hostile = "al\u{202e}ice\u{200b}";
    let _alice = Raw::open(&server, &format!("/talk?token={}", support::token(hostile)));
    let seen = ask(&server, &["connections"]);
    assert!(seen.good().contains(r"al\u{202e}ice\u{200b}"), "{}", seen.out);
    let raw = ask(&server, &["connections", "--json"]);
    assert!(raw.out.is_ascii() || !raw.out.contains(['\u{202e}', '\u{200b}']), "{}", raw.out);
    assert_eq!(raw.json()["connections"][0]["userId"], json!(hostile));
}

#[test]
fn what_goes_wrong_is_told_with_its_status() {
    let server = Server::start(&Setup::default());
    let control = server.control.to_string();
    let at = |address: &str, variables: &[(&str, &str)]| run(&["stats", "--control", address], variables);
    assert!(at(&control, &[("ADMIN_TOKEN", "wrong")]).bad(77).contains("variable ADMIN_TOKEN"));
    assert!(at(&control, &[]).bad(77).contains("ADMIN_TOKEN"), "it says what to set");
    assert!(at("127.0.0.1:1", &[]).bad(69).contains("127.0.0.1:1 (flag --control)"));
    assert!(at("unix:/nonexistent/socket", &[]).bad(69).contains("unix:/nonexistent/socket"));
    // The public port speaks HTTP too.
    assert!(at(&server.public.to_string(), &[]).bad(69).contains("not a uringcast"));
    assert!(at("nonsense", &[]).bad(78).contains("control.listen"));
    assert!(run(&["stats", "--config", "/nonexistent"], &[]).bad(78).contains("/nonexistent"));
    assert!(ask(&server, &["emit", "--endpoint", "nothing", "--all", "e"]).bad(1).contains("no such endpoint"));
    assert!(ask(&server, &["emit", "--endpoint", "talk", "--all", "e", "hi"]).bad(2).contains("JSON"));
    for wrong in [
        &["emit", "--endpoint", "talk", "e"][..],
        &["emit", "--endpoint", "talk", "--all", "--user", "a", "e"],
        &["emit", "--all", "e"],
        &["emit", "--endpoint", "talk", "--all", "--ack-timeout", "0", "e"],
        &["kick", "alice"],
        &["connections", "--limit", "0"],
        &["connections", "--limit", "5", "--all"],
    ] {
        ask(&server, wrong).bad(2);
    }
}

/// A server that listens on a Unix socket, without an admin token.
struct Local(Child);

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_unix_socket_needs_no_token_and_can_stand_in_the_configuration() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("operator-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    // A socket's path has about 100 bytes at most, and the folder's may be long.
    let socket = std::env::temp_dir().join(format!("uringcast-operator-{}", std::process::id()));
    let file = folder.join("uringcast.toml");
    std::fs::write(&file, format!("[control]\nlisten = 'unix:{}'\n", socket.display())).expect("the folder is ours");
    let config = file.to_str().expect("UTF-8");
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringcast"));
    command.args(["--shards", "1", "--listen", "127.0.0.1:0", "--config", config]).env_clear().env("JWT_SECRET", SECRET);
    let local = Local(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    let end = Instant::now() + PATIENCE;
    let stats = loop {
        let said = run(&["stats", "--json", "--config", config], &[]);
        if said.status == 0 {
            break said.json();
        }
        assert!(said.status == 69 && Instant::now() < end, "{}", said.err);
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(stats["activeConnections"], json!(0));
    let address = format!("unix:{}", socket.display());
    assert!(run(&["connections"], &[("URINGCAST_CONTROL_LISTEN", &address)]).good().starts_with("ID"));
    drop(local);
    // What it left behind is the file of a dead server.
    assert!(run(&["stats"], &[("URINGCAST_CONTROL_LISTEN", &address)]).bad(69).contains(&address));
    let _ = std::fs::remove_file(&socket);
    let _ = std::fs::remove_dir_all(&folder);
}
