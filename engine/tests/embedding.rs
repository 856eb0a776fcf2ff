//! A program that embeds the engine, with real sockets: the example as it stands, own dialects asked and told by the back end's questions,
//! and what becomes of a dialect that breaks. Runs with io_uring, or where the kernel forbids it with epoll.

#[expect(dead_code, reason = "its main is for people")]
#[path = "../examples/own_dialect.rs"]
mod example;

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::config::{AuthMode, Config, ConfigFault, Endpoint, OwnDialect};
use engine::dialect::{Act, Cx, Dialect, Entry, Publication, Said};
use engine::ids::{Sid, checked_name};
use engine::json::Scratch;
use engine::{BadEvent, Calls, Emit, Engine, EngineLost, Notice, Notices, Question, Selection, StartError, Target};
use tungstenite::{Message, WebSocket};

/// Far more than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Over Socket.IO: `enter` with a room, acknowledged; whatever else is said goes to the room that is its first argument.
struct Relay;

impl Dialect for Relay {
    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let (Said::Event { name, args, ack }, Some(room)) = (said, said.argument()) else { return };
        let Some(room) = room.as_exact_str().and_then(|room| checked_name(room).ok()) else { return };
        match name {
            "break" => panic!("a dialect that breaks"),
            "enter" => acts.push(Act::Enter(Entry { note: ack.map(Box::from), ..Entry::new(room.into()) })),
            _ => acts.push(Act::Publish(Publication::to_all(
                room.into(),
                cx.event(name, &args.items().skip(2).map(|word| word.raw()).collect::<Vec<_>>().join(",")),
            ))),
        }
    }

    fn entered(
        &self,
        cx: &Cx<'_>,
        _room: &str,
        _outcome: Result<&engine::dialect::RoomView, engine::dialect::EnterFault>,
        note: Option<&str>,
        acts: &mut Vec<Act>,
    ) {
        acts.extend(note.map(|ack| cx.acknowledge(ack, "")));
    }
}

/// A running engine, its calls and who takes its notices.
struct Program {
    engine: Engine,
    calls: Arc<Calls>,
    taker: JoinHandle<Result<(), EngineLost>>,
    drained: mpsc::Receiver<u8>,
}

impl Program {
    fn of((engine, notices): (Engine, Notices)) -> Program {
        let calls = Arc::new(Calls::default());
        let (told, drained) = mpsc::channel();
        let taker = std::thread::spawn({
            let calls = calls.clone();
            move || {
                calls.run(&notices, |notice| {
                    if let Notice::Drained { shard } = notice {
                        told.send(shard.0).expect("the test waits");
                    }
                })
            }
        });
        Program { engine, calls, taker, drained }
    }

    fn with_relay(shards: usize) -> Program {
        let relay = Endpoint { auth: AuthMode::None, ..Endpoint::new("relay", OwnDialect::socket_io("relay", &Relay), "/") };
        Program::of(started(|| engine::start(Config::new(([127, 0, 0, 1], 0), shards, vec![relay]))).expect("it starts"))
    }

    fn client(&self, target: &str) -> Client {
        let stream = TcpStream::connect(self.engine.local_addr()).expect("the public port accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        let opened = tungstenite::client(format!("ws://{}{target}", self.engine.local_addr()), stream);
        Client(opened.unwrap_or_else(|error| panic!("the upgrade to {target} is refused: {error}")).0)
    }

    /// A Socket.IO client, and its id.
    fn guest(&self) -> (Client, Sid) {
        let mut client = self.client("/socket.io/?EIO=4&transport=websocket");
        assert!(client.hear().starts_with("0{"));
        client.say("40");
        let connected = client.hear();
        (client, Sid::parse(&connected[10..30]).expect("CONNECT brings an id"))
    }

    /// A guest in a room, on this shard, to which the kernel has given its connection. Those that came to others were never in it.
    fn guest_on(&self, shard: u8, room: &str) -> (Client, Sid) {
        let found = (0..200).map(|_| self.guest()).find(|(_, id)| id.shard().0 == shard);
        let (mut client, id) = found.expect("one of 200 connections comes to each shard");
        client.say(&format!("421[\"enter\",\"{room}\"]"));
        assert_eq!(client.hear(), "431[]");
        (client, id)
    }

    fn ask(&self, question: &Question) -> engine::Gathered {
        self.calls.ask(&self.engine, question).within(PATIENCE)
    }

    fn emit(&self, target: Target, change: impl FnOnce(&mut Emit)) -> engine::Emitted {
        let relay = self.engine.endpoint("relay").expect("it is served");
        let mut emit = self.engine.event(Selection::of(relay, vec![target]), "news", r#"{"n":1},2"#).expect("a good event");
        change(&mut emit);
        let gathered = self.ask(&Question::Emit(Arc::new(emit)));
        assert_eq!(gathered.missing, 0, "every shard answers");
        gathered.emitted()
    }
}

/// Starts in a thread of its own: the ring that is tried out is taken apart in the name of the thread that made it, and would interrupt
/// what that does next.
fn started<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(start).join().expect("starting does not panic"))
}

struct Client(WebSocket<TcpStream>);

impl Client {
    fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).expect("the connection takes a message");
    }

    fn hear(&mut self) -> String {
        loop {
            match self.0.read().expect("something is heard") {
                Message::Text(text) => return text.to_string(),
                Message::Close(frame) => panic!("closed with {frame:?}"),
                _ => {}
            }
        }
    }

    fn hear_close(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.0.read().expect("the end is told") {
                return frame.map(|frame| frame.code.into());
            }
        }
    }
}

#[test]
fn the_example_shouts_and_ends_in_order() {
    let program = Program::of(started(|| example::serve(0)).expect("it starts"));
    let mut clients: Vec<Client> = (0..4).map(|_| program.client("/shout")).collect();
    // Who is not in yet may miss what is said.
    let everybody = Question::Connections { endpoint: None, user: None, room: Some("square".into()), after: None, limit: 10 };
    let begun = Instant::now();
    while program.ask(&everybody).connections().len() < clients.len() {
        assert!(begun.elapsed() < PATIENCE, "all enter");
    }
    clients[0].say("hello");
    clients[3].say("good bye");
    let heard: Vec<[String; 2]> = clients.iter_mut().map(|client| [client.hear(), client.hear()]).collect();
    assert!(heard.iter().all(|both| *both == heard[0]), "one order: {heard:?}");
    assert!(heard[0].contains(&"HELLO".to_owned()) && heard[0].contains(&"GOOD BYE".to_owned()), "{heard:?}");

    program.engine.drain(Duration::from_millis(100));
    for client in &mut clients {
        assert_eq!(client.hear_close(), Some(1001));
    }
    drop(clients);
    let mut drained: Vec<u8> = (0..2).map(|_| program.drained.recv_timeout(PATIENCE).expect("each shard tells")).collect();
    drained.sort_unstable();
    assert_eq!(drained, [0, 1]);
    program.engine.join();
    program.taker.join().expect("no panic").expect("no shard was lost");
}

#[test]
fn plain_http_is_closed_by_who_drops_it() {
    use std::io::{Read as _, Write as _};
    let program = Program::of(started(|| example::serve(0)).expect("it starts"));
    let mut stream = TcpStream::connect(program.engine.local_addr()).expect("the public port accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("a live socket");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("an end without a word");
    assert!(heard.is_empty(), "{heard:?}");
}

#[test]
fn clients_of_an_own_dialect_over_socket_io_talk_across_shards() {
    let program = Program::with_relay(2);
    let mut clients = [program.guest_on(0, "r").0, program.guest_on(1, "r").0];
    for round in 0..20 {
        clients[0].say(&format!("42[\"said\",\"r\",{{\"by\":0,\"round\":{round}}}]"));
        clients[1].say(&format!("42[\"said\",\"r\",{{\"by\":1,\"round\":{round}}}]"));
    }
    let heard: Vec<Vec<String>> = clients.iter_mut().map(|client| (0..40).map(|_| client.hear()).collect()).collect();
    assert_eq!(heard[0], heard[1], "one order");
    for by in 0..2 {
        let own: Vec<String> = (0..20).map(|round| format!("42[\"said\",{{\"by\":{by},\"round\":{round}}}]")).collect();
        let of_sender = heard[0].iter().filter(|text| text.contains(&format!("\"by\":{by},"))).cloned().collect::<Vec<_>>();
        assert_eq!(of_sender, own, "a sender's own order");
    }
}

#[test]
fn the_back_ends_calls_reach_clients_of_an_own_dialect() {
    let program = Program::with_relay(2);
    let ((mut anna, anna_id), (mut bert, bert_id)) = (program.guest_on(0, "anna"), program.guest_on(1, "r"));
    for (target, recipients) in [(Target::Room("r".into()), 1), (Target::user(&bert_id.to_string()), 1), (Target::Connection(bert_id), 1)] {
        assert_eq!(program.emit(target.clone(), |_| {}).recipients, recipients, "{target:?}");
        assert_eq!(bert.hear(), r#"42["news",{"n":1},2]"#);
    }
    let but_bert = |emit: &mut Emit| emit.to.except.push(Target::Connection(bert_id));
    assert!(program.emit(Target::all(), but_bert).recipients >= 1);
    assert_eq!(anna.hear(), r#"42["news",{"n":1},2]"#);

    // Asked from one thread while another answers as the client.
    let answerer = std::thread::spawn(move || {
        let event = bert.hear();
        let number: String = event[2..].chars().take_while(char::is_ascii_digit).collect();
        bert.say(&format!("43{number}[\"yes\"]"));
        bert
    });
    let emitted = program.emit(Target::Connection(bert_id), |emit| emit.ack_ms = Some(PATIENCE.as_millis() as u64));
    assert_eq!((emitted.recipients, emitted.acks, emitted.answers), (1, 1, vec![r#"["yes"]"#.to_owned()]));
    let mut bert = answerer.join().expect("the client has answered");

    let page = |after, limit| {
        let question = Question::Connections { endpoint: None, user: None, room: Some("r".into()), after, limit };
        let mut found = program.ask(&question).connections();
        found.truncate(limit);
        found
    };
    let all = page(None, 1_000);
    assert!(all.len() == 1 && all[0].id == bert_id && all[0].rooms == ["r"], "{all:?}");
    assert!(page(Some(bert_id.to_string()), 1).is_empty(), "nobody comes after the last");

    let closed = program.ask(&Question::CloseConnection { id: bert_id, reason: None });
    assert_eq!(closed.closed(), 1);
    assert_eq!(bert.hear(), "41", "a disconnect by the server");
    let closed = program.ask(&Question::CloseUser { endpoint: None, user: anna_id.to_string(), reason: None });
    assert_eq!((closed.closed(), anna.hear().as_str()), (1, "41"));
    assert!(program.calls.is_idle());
}

#[test]
fn events_that_no_client_could_read_are_refused() {
    let program = Program::with_relay(1);
    let relay = program.engine.endpoint("relay").expect("it is served");
    let check =
        |endpoint, event: &str, args: &str| program.engine.event(Selection::of(endpoint, vec![Target::all()]), event, args).map(drop);
    assert_eq!(program.engine.endpoint("other"), None);
    assert_eq!(check(engine::ids::EndpointId(7), "e", ""), Err(BadEvent::NoEndpoint));
    assert_eq!(check(relay, "disconnect", ""), Err(BadEvent::Reserved));
    for args in ["{", "1,", "1],[2", "\"", "nothing"] {
        assert_eq!(check(relay, "e", args), Err(BadEvent::BadArguments), "{args}");
    }
    for args in ["", "1", r#"{"a":[1,2]}, "b""#] {
        assert_eq!(check(relay, "e", args), Ok(()), "{args}");
    }
    let program = Program::of(started(|| example::serve(0)).expect("it starts"));
    let shout = program.engine.endpoint("shout").expect("it is served");
    let event = |args| program.engine.event(Selection::of(shout, vec![Target::all()]), "e", args).map(drop);
    assert_eq!((event("1"), event("1,2")), (Ok(()), Err(BadEvent::BadArguments)), "a plain WebSocket's message has one payload");
}

#[test]
fn a_dialect_that_panics_costs_its_shard_and_the_program_hears_of_it() {
    let program = Program::with_relay(2);
    let (mut client, id) = program.guest_on(1, "r");
    client.say(r#"42["break","r"]"#);
    let lost = program.taker.join().expect("the taker itself does not panic").expect_err("a shard is lost");
    assert_eq!(lost.to_string(), format!("shard {} ended by itself: it panicked", id.shard().0));
}

#[test]
fn what_cannot_be_served_is_told_at_the_start() {
    let start = |shards, endpoints| started(move || engine::start(Config::new(([127, 0, 0, 1], 0), shards, endpoints)));
    let Err(StartError::Config(fault)) = start(1, vec![]) else { panic!("there is no endpoint") };
    assert_eq!(fault, ConfigFault::Endpoints);
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut config = Config::new(occupied.local_addr().expect("bound"), 1, vec![]);
    config.endpoints.push(Endpoint::new("relay", OwnDialect::socket_io("relay", &Relay), "/"));
    assert!(matches!(started(|| engine::start(config)), Err(StartError::Listen(..))));
}

/// The README shows the example as it is.
#[test]
fn the_readme_shows_the_example() {
    let (readme, example) = (include_str!("../../README.md"), include_str!("../examples/own_dialect.rs"));
    let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of Rust");
    let code = example.split_once("\n\n").map(|(_, code)| code);
    assert_eq!(Some(shown), code, "everything below its first comment");
}
