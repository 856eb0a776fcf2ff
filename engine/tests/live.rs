//! The engine in this process, through its public words, with real sockets: what a simulation without sockets cannot see. Each test runs
//! with io_uring and with epoll; where the kernel forbids io_uring its half says so and does nothing.

mod host;
mod sockets;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use engine::config::Io;
use engine::event::{EventType, EventTypes, What};
use engine::ids::{EndpointId, ShardId};
use engine::limits::EVENT_BYTES_WAITING_MAX;
use engine::{Answer, Emit, Emitted, Notice, PassedListener, Question, Ruling, Selection, StartError, Target};
use sockets::{Client, Flood, Live, PATIENCE, config};
use tungstenite::protocol::frame::coding::CloseCode;

/// Runs each test under both kernel interfaces.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod io_uring {
            $(#[test] fn $test() { super::beside_others(|| super::$test(super::Io::Uring)); })*
        }
        mod epoll {
            $(#[test] fn $test() { super::beside_others(|| super::$test(super::Io::Epoll)); })*
        }
    };
}

on_both!(
    clients_talk_across_shards,
    acknowledgements_go_both_ways,
    accepted_sockets_are_closed_on_exec,
    a_flood_stops_neither_deadlines_nor_newcomers,
    a_flood_does_not_starve_a_neighbour,
    who_reads_nothing_is_cut,
    who_never_stops_talking_is_cut,
    an_idle_shard_wakes_for_every_message,
    what_comes_while_a_link_waits_is_read_when_it_goes_on,
    the_second_of_two_requests_is_answered_on_an_idle_shard,
    plain_http_is_handed_over,
    http_connections_stay_until_another_server_needs_them,
    events_come_out_and_no_client_waits_for_their_taker,
    a_drained_shard_has_passed_on_its_last_events,
    draining_says_goodbye_to_everybody,
    dropping_the_engine_ends_everything,
    passed_listeners_outlive_the_engine,
    every_passed_listener_is_served,
);

/// Held for reading by every test but the one that measures this process and wants it for itself.
static PROCESS: RwLock<()> = RwLock::new(());

fn beside_others(test: impl FnOnce()) {
    let _shared = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    test();
}

fn clients_talk_across_shards(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let (mut anna, mut bert) = (live.community_on(0), live.community_on(1));
    anna.ping();
    bert.ping();
    // Several rooms, so that both shards are home to some.
    for room in ["r0", "r1", "r2", "r3", "r4", "r5"] {
        anna.subscribe(room);
        bert.subscribe(room);
        anna.chat(room, "hello");
        bert.chat(room, "hi");
        let heard = [anna.hear_chat(), anna.hear_chat()];
        assert_eq!(heard, [bert.hear_chat(), bert.hear_chat()], "both hear both in one order");
        let mut words: Vec<_> = heard.iter().map(|(_, content)| content.as_str()).collect();
        words.sort_unstable();
        assert_eq!(words, ["hello", "hi"]);
    }
}

fn acknowledgements_go_both_ways(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let mut client = live.rooms();
    client.say(r#"42817["room:join",{"roomId":"a"}]"#);
    let answer = client.hear_start("43");
    assert!(answer.starts_with(r#"43817[{"success":true,"#), "{answer}");

    let owner = usize::from(client.shard().0);
    let to = Selection { endpoint: EndpointId(1), targets: vec![Target::Connection(client.sid())], except: Vec::new() };
    let (event, args) = ("sure?".into(), r#"{"really":true}"#.into());
    let question = Question::Emit(Arc::new(Emit {
        to,
        event,
        args,
        volatile: false,
        ack_ms: Some(10_000),
        offset: 0.into(),
        unix_ms: 0,
        attachments: Vec::new(),
        is_elsewhere: false,
    }));
    live.engine.ask(7, &question);
    let (other, early) = live.answer(7);
    assert_ne!(usize::from(other.0), owner, "the owner waits for the client");
    assert!(matches!(early, Answer::Emitted(Emitted { recipients: 0, .. })), "{early:?}");
    let event = client.hear_start("42");
    let number =
        event.strip_prefix("42").and_then(|rest| rest.strip_suffix(r#"["sure?",{"really":true}]"#)).expect("the event with a number");
    client.say(&format!(r#"43{number}["yes",{{"n":1}}]"#));
    let (shard, answer) = live.answer(7);
    assert_eq!(usize::from(shard.0), owner);
    let Answer::Emitted(Emitted { recipients: 1, acks: 1, answers }) = answer else { panic!("{answer:?}") };
    assert_eq!(answers, [r#"["yes",{"n":1}]"#]);

    live.engine.ask(8, &question);
    client.hear_start("42");
    drop(client);
    for answer in live.answers(8) {
        assert!(matches!(answer, Answer::Emitted(Emitted { acks: 0, .. })), "a connection that ended answers nothing: {answer:?}");
    }
}

fn accepted_sockets_are_closed_on_exec(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let clients: Vec<Client> = (0..8).map(|_| live.community()).collect();
    for client in &clients {
        let descriptor = descriptor_of(live.address(), client.peer());
        assert!(is_closed_on_exec(descriptor), "descriptor {descriptor} would live on in another program");
    }
    // The options of a socket can be asked of the one that is given away.
    let stream = live.stream();
    (&stream).write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("a live socket");
    let handover = live.handover();
    assert!(is_closed_on_exec(handover.fd.as_raw_fd()));
    assert!(socket2::SockRef::from(&handover.fd).tcp_nodelay().expect("a TCP socket"), "small messages must not wait");
}

/// The descriptor in this process of the connection from `peer` to `local`.
fn descriptor_of(local: SocketAddr, peer: SocketAddr) -> i32 {
    let hex = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let table = fs::read_to_string("/proc/self/net/tcp").expect("the table of connections");
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row[1] == hex(local) && row[2] == hex(peer));
    let wanted = format!("socket:[{}]", row.expect("the connection is in the table")[9]);
    let descriptors = fs::read_dir("/proc/self/fd").expect("the descriptors of this process");
    let names = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    let found = names.filter(|path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == wanted.as_str())).collect::<Vec<_>>();
    let [path] = &found[..] else { panic!("{wanted} is held by {found:?}") };
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a number")
}

fn is_closed_on_exec(descriptor: i32) -> bool {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("an open descriptor");
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags");
    i32::from_str_radix(flags.trim(), 8).expect("an octal number") & libc::O_CLOEXEC != 0
}

/// A shard that is never out of work must still look at its clock and at its listener.
fn a_flood_stops_neither_deadlines_nor_newcomers(io: Io) {
    let mut config = config(io, 1);
    config.limits.handshake_ms = 300;
    config.limits.outbox_bytes = 1 << 30;
    let Some(live) = Live::start(config) else { return };
    let flood = Flood::start(&live, 3);
    let mut half_open = live.stream();
    half_open.write_all(b"GET /api/community/ws HT").expect("a live socket");
    let mut newcomer = live.community();
    newcomer.ping();
    let mut told = String::new();
    half_open.read_to_string(&mut told).expect("it is cut while the others flood");
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    live.community().ping();
    flood.end();
    newcomer.ping();
}

fn a_flood_does_not_starve_a_neighbour(io: Io) {
    let mut config = config(io, 1);
    config.limits.outbox_bytes = 1 << 30;
    let Some(live) = Live::start(config) else { return };
    let mut neighbour = live.community();
    let flood = Flood::start(&live, 1);
    let pause = || std::thread::sleep(Duration::from_millis(5));
    let worst = (0..60).inspect(|_| pause()).map(|_| neighbour.ping()).max().unwrap_or_default();
    flood.end();
    eprintln!("{}: worst round trip beside a flood {worst:?}", live.engine.io_name());
    assert!(worst < Duration::from_secs(2), "a neighbour waited {worst:?}");
}

/// A socket that takes no more is watched for the moment it does, and that watch must not keep it open when it is reset.
fn who_reads_nothing_is_cut(io: Io) {
    let mut config = config(io, 1);
    config.limits.outbox_bytes = 64 * 1_024;
    let Some(live) = Live::start(config) else { return };
    let (mut idler, mut speaker) = (live.community(), live.community());
    idler.subscribe("r");
    speaker.subscribe("r");
    let content = "x".repeat(4_000);
    let connections = || live.engine.stats()[0].endpoints[0].connections.read();
    // Beyond what the socket buffers of both ends can hold.
    for _ in 0..20_000 {
        if connections() == 1 {
            break;
        }
        speaker.chat("r", &content);
        speaker.hear_chat();
    }
    assert_eq!(connections(), 1, "the idler is let go");
    assert!(idler.ends(), "and its socket is closed");
    speaker.ping();
}

/// The watch over a socket must not outlive it, also when it has something to tell at the very moment of the close.
fn who_never_stops_talking_is_cut(io: Io) {
    let mut config = config(io, 1);
    config.limits.close_ms = 50;
    let Some(live) = Live::start(config) else { return };
    for _ in 0..10 {
        let mut talkers: Vec<TcpStream> = (0..60).map(|_| live.stream()).collect();
        for talker in &mut talkers {
            talker.write_all(b"nonsense\r\n\r\n").expect("a live socket");
            talker.set_nonblocking(true).expect("a live socket");
        }
        let end = Instant::now() + PATIENCE;
        while !talkers.is_empty() {
            // A socket that is full is one that nobody reads any more: it must be cut all the same.
            talkers.retain_mut(|talker| talker.write(b"x").map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |_| true));
            assert!(Instant::now() < end, "{} connections are held by nobody", talkers.len());
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Between two messages the receiving shard has gone to sleep: each wake must come through.
fn an_idle_shard_wakes_for_every_message(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let mut clients = [live.community_on(0), live.community_on(1)];
    let rooms = ["r0", "r1", "r2", "r3"];
    for room in rooms {
        clients[0].subscribe(room);
        clients[1].subscribe(room);
    }
    for round in 0..200_usize {
        let (room, content) = (rooms[round % rooms.len()], format!("round {round}"));
        let (from, to) = (round / rooms.len() % 2, 1 - round / rooms.len() % 2);
        clients[from].chat(room, &content);
        let heard = (room.to_owned(), content);
        assert_eq!(clients[to].hear_chat(), heard);
        assert_eq!(clients[from].hear_chat(), heard, "the sender hears it too");
        std::thread::sleep(Duration::from_millis(1 + round as u64 % 5));
    }
}

fn what_comes_while_a_link_waits_is_read_when_it_goes_on(io: Io) {
    let mut config = config(io, 1);
    config.endpoints[0].publish_hook = true;
    let Some(live) = Live::start(config) else { return };
    let (mut anna, mut bert) = (live.community(), live.community());
    let asked = |live: &Live| match live.notice() {
        Notice::Inquiry(inquiry) => inquiry,
        other => panic!("the back end should be asked, not {other:?}"),
    };
    for words in ["hello", "hello again"] {
        anna.subscribe("r");
        anna.chat("r", words);
        let inquiry = asked(&live);
        anna.say(r#"{"type":"PING"}"#);
        // The shard is told of the PING while Anna's link waits: Bert's comes and goes after it.
        bert.ping();
        inquiry.answer(Ruling::allowed());
        assert_eq!(anna.hear_chat().1, words);
        anna.hear_type("PONG");
    }
    // An end is no less than bytes.
    anna.chat("r", "bye");
    let inquiry = asked(&live);
    let mut stream = anna.into_stream();
    stream.shutdown(Shutdown::Write).expect("a live socket");
    bert.ping();
    inquiry.answer(Ruling::allowed());
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the engine closes what its client has ended");
}

fn the_second_of_two_requests_is_answered_on_an_idle_shard(io: Io) {
    let Some(live) = Live::start(config(io, 1)) else { return };
    let mut stream = live.stream();
    let request = "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: test\r\n\r\n";
    let begun = Instant::now();
    for _ in 0..40 {
        stream.write_all([request, request].concat().as_bytes()).expect("a live socket");
        for _ in 0..2 {
            assert!(http_answer(&mut stream).contains("pingInterval"));
        }
    }
    // What is only written because something else wakes the shard takes up to a second each time.
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

fn plain_http_is_handed_over(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let request = b"POST /api/community/messages HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    let mut client = live.stream();
    client.write_all(request).expect("a live socket");
    let handover = live.handover();
    assert_eq!(handover.peer, client.local_addr().expect("a connected socket"));
    assert!(request.starts_with(&handover.read) && handover.read.len() >= request.len() - 5, "{:?}", handover.read);
    let mut server = TcpStream::from(handover.fd);
    server.set_nonblocking(false).expect("a live socket");
    let mut rest = vec![0; request.len() - handover.read.len()];
    server.read_exact(&mut rest).expect("what was not read yet is still there");
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("a live socket");
    // The shard must have let go of it: its end is the server's alone to give.
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer, then the end");
    assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
    live.community().ping();
}

fn http_connections_stay_until_another_server_needs_them(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let mut kept = live.stream();
    let mut ask = |request: &str| {
        kept.write_all(request.as_bytes()).expect("a live socket");
        http_answer(&mut kept)
    };
    let polling = "/socket.io/?EIO=4&transport=polling";
    let opened: Vec<String> = (0..8)
        .map(|_| {
            let greeting = ask(&format!("GET {polling} HTTP/1.1\r\nHost: test\r\n\r\n"));
            greeting.split('"').nth(3).expect("its id").to_owned()
        })
        .collect();
    for sid in &opened {
        let session = format!("{polling}&sid={sid} HTTP/1.1\r\nHost: test\r\n");
        assert!(ask(&format!("POST {session}Transfer-Encoding: chunked\r\n\r\n2\r\n40\r\n0\r\n\r\n")).ends_with("ok"));
        assert!(ask(&format!("GET {session}\r\n")).contains("\r\n\r\n40{"));
    }
    // A poll that waits on another connection ends with it, and its session too. Nobody came online after the last.
    let aborted = format!("GET {polling}&sid={} HTTP/1.1\r\nHost: test\r\n\r\n", opened[7]);
    (&live.stream()).write_all(aborted.as_bytes()).expect("a live socket");
    let end = Instant::now() + PATIENCE;
    let nothing = format!("POST {}Content-Length: 1\r\n\r\n6", &aborted[4..aborted.len() - 2]);
    loop {
        let mut stream = live.stream();
        stream.write_all(nothing.as_bytes()).expect("a live socket");
        if http_answer(&mut stream).contains("Session ID unknown") {
            break;
        }
        assert!(Instant::now() < end, "the session lives on");
    }
    // What comes ahead waits for the answer, then goes to whoever serves it.
    let other = "GET /other HTTP/1.1\r\nHost: test\r\n\r\n";
    assert!(ask(&format!("GET /socket.io/ HTTP/1.1\r\nHost: test\r\n\r\n{other}")).contains("Transport unknown"));
    let handover = live.handover();
    assert_eq!(String::from_utf8_lossy(&handover.read), other);
    assert_eq!(handover.peer, kept.local_addr().expect("a connected socket"));
}

/// One whole answer, head and body.
fn http_answer(stream: &mut TcpStream) -> String {
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a whole head");
        heard.push(byte[0]);
    }
    let head = String::from_utf8(heard).expect("a head is text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a whole body");
    head + &String::from_utf8(body).expect("text")
}

fn events_come_out_and_no_client_waits_for_their_taker(io: Io) {
    let Some(live) = Live::start(config(io, 1)) else { return };
    let (events, sent) = (live.engine.events(), EVENT_BYTES_WAITING_MAX / 3_000 + 1_000);
    let content = |number: usize| format!("{number:0>3000}");
    let mut anna = live.community_on(0);
    live.engine.want_events(EventTypes::NONE.with(EventType::Message));
    anna.subscribe("r");
    // Nobody takes them.
    for first in (0..sent).step_by(100) {
        let some = first..sent.min(first + 100);
        some.clone().for_each(|number| anna.chat("r", &content(number)));
        some.for_each(|number| assert_eq!(anna.hear_chat().1, content(number)));
    }
    let (mut told, mut missing) = (Vec::new(), 0);
    while told.len() as u64 + missing < sent as u64 {
        let batch = events.recv_timeout(PATIENCE).expect("the rest is told");
        missing += batch.dropped;
        told.extend(batch.events.iter().map(|event| match &event.what {
            What::Message { message } => serde_json::from_str::<serde_json::Value>(message).expect("JSON")["content"].to_string(),
            what => panic!("{what:?}"),
        }));
    }
    assert!(missing > 0, "more than could wait");
    assert_eq!(live.engine.stats()[0].events_dropped.read(), missing);
    assert!(told.iter().enumerate().all(|(number, told)| *told == format!("\"{}\"", content(number))), "the first ones, in order");
}

fn a_drained_shard_has_passed_on_its_last_events(io: Io) {
    let Some(live) = Live::start(config(io, 1)) else { return };
    let events = live.engine.events();
    let mut client = live.community_on(0);
    live.engine.want_events(EventTypes::ALL);
    // More turns with events than there is place for batches: some wait in the shard.
    for number in 0..10 {
        client.subscribe(&number.to_string());
    }
    live.engine.drain(Duration::ZERO);
    assert_eq!(client.hear_close(), Some(CloseCode::Away));
    assert!(client.ends());
    drop(client);
    let early = live.notices.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "nobody has taken the last events yet: {early:?}");
    let taker = std::thread::spawn(move || events.iter().flat_map(|batch| batch.events).map(|event| event.what).collect::<Vec<_>>());
    assert!(matches!(live.notice(), Notice::Drained { .. }));
    live.engine.join();
    drop(live.notices);
    let told = taker.join().expect("it does not panic");
    assert!(matches!(told.last(), Some(What::Disconnect { .. })), "{told:?}");
    assert_eq!(told.iter().filter(|what| matches!(what, What::RoomLeave)).count(), 10, "{told:?}");
}

fn draining_says_goodbye_to_everybody(io: Io) {
    let Some(live) = Live::start(config(io, 2)) else { return };
    let address = live.address();
    let plain: Vec<Client> = (0..20).map(|_| live.community()).collect();
    let mut socket_io = live.rooms();
    let mut half_open = live.stream();
    half_open.write_all(b"GET / HT").expect("a live socket");
    // It is accepted for certain when a later connection of each shard has been answered.
    let _ = (live.community_on(0), live.community_on(1));
    live.engine.drain(Duration::from_millis(300));
    assert!(!live.engine.accepting());
    // Each goes when it has seen the end, as clients do.
    for mut client in plain {
        assert_eq!(client.hear_close(), Some(CloseCode::Away));
        assert!(client.ends());
    }
    assert_eq!(socket_io.hear_close(), None, "an engine close has no code");
    assert!(socket_io.ends());
    drop(socket_io);
    let mut told = String::new();
    half_open.read_to_string(&mut told).expect("an answer, then the end");
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    drop(half_open);
    let mut drained: Vec<u8> = (0..2)
        .map(|_| match live.notice() {
            Notice::Drained { shard } => shard.0,
            other => panic!("a shard should be drained, not {other:?}"),
        })
        .collect();
    drained.sort_unstable();
    assert_eq!(drained, [0, 1]);
    let refused = TcpStream::connect_timeout(&address, PATIENCE).expect_err("nobody listens any more");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    live.engine.join();
}

fn dropping_the_engine_ends_everything(io: Io) {
    let Some(Live { engine, notices }) = Live::start(config(io, 2)) else { return };
    let address = engine.local_addr();
    let mut clients: Vec<Client> = (0..10).map(|_| Client::open(address, "/api/community/ws")).collect();
    let mut half_open = sockets::connect(address);
    half_open.write_all(b"GET / HT").expect("a live socket");
    drop(engine);
    let end = notices.recv_timeout(PATIENCE).expect_err("nobody is left to tell anything");
    assert!(end.is_disconnected(), "every shard's thread has dropped its end");
    for client in &mut clients {
        assert!(client.ends(), "a dropped engine closes its sockets");
    }
    let ended = half_open.read(&mut [0; 16]);
    assert!(!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "that of a half-open one too");
    assert!(gives_way(|| TcpStream::connect_timeout(&address, PATIENCE).is_err()), "the port is free");
}

/// A listener as systemd passes it: copied into this process, and kept by whoever passed it.
fn passed(listener: &TcpListener) -> PassedListener {
    PassedListener::numbered(listener.as_raw_fd()).expect("it listens")
}

fn passed_listeners_outlive_the_engine(io: Io) {
    let kept = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = kept.local_addr().expect("bound");
    for _ in 0..2 {
        // It comes while there is no server.
        let early = thread::spawn(move || Client::open(address, "/api/community/ws").greeted());
        let Some(live) = Live::start_on(config(io, 2), vec![passed(&kept)]) else { return };
        early.join().expect("it was waited for").ping();
        assert_eq!(live.address(), address);
        // Whichever shard comes first to a newcomer, each gets its share of them.
        let mut clients: Vec<_> = (0..40).map(|_| live.community()).collect();
        let first = clients.iter().filter(|client| client.shard() == ShardId(0)).count();
        assert!((18..=22).contains(&first), "{first} of 40 are on one of two shards");
        for client in &mut clients {
            client.ping();
        }
    }
}

fn every_passed_listener_is_served(io: Io) {
    let kept: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let all = || kept.iter().map(passed).collect::<Vec<_>>();
    let refused = engine::start_on(config(io, 1), &all());
    assert!(matches!(refused, Err(StartError::Listeners { passed: 2, shards: 1 })), "one shard serves one listener");
    let Some(_live) = Live::start_on(config(io, 3), all()) else { return };
    for listener in &kept {
        Client::open(listener.local_addr().expect("bound"), "/api/community/ws").greeted().ping();
    }
}

/// Whether something becomes true in good time: what the kernel takes apart after the last close has no event to wait for.
fn gives_way(mut is_true: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if is_true() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn the_choice_of_interface_is_told() {
    beside_others(|| {
        let live = Live::start(config(Io::Auto, 1)).expect("auto always starts");
        assert_eq!(live.engine.io_name() == "io_uring", live.engine.io_note().is_none(), "a fallback says why");
        let live = Live::start(config(Io::Epoll, 1)).expect("epoll always starts");
        assert_eq!((live.engine.io_name(), live.engine.io_note()), ("epoll", None), "who asks for epoll is told nothing");
    });
}

/// Both interfaces in one test, because it needs the process for itself.
#[test]
fn an_idle_connection_owns_no_buffer() {
    let _alone = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    for io in [Io::Uring, Io::Epoll] {
        idle_bytes(io);
    }
}

fn idle_bytes(io: Io) {
    const WANTED: usize = 3_000;
    const BYTES_MAX: usize = 6 * 1024;
    // Both ends of every connection are in this process.
    let connections = WANTED.min(descriptors_max().saturating_sub(400) / 2);
    if connections < WANTED {
        eprintln!("SKIPPED in part: {connections} instead of {WANTED} connections, because descriptors are few (ulimit -n)");
    }
    let Some(live) = Live::start(config(io, 2)) else { return };
    let mut clients = Vec::with_capacity(connections);
    let warm: Vec<_> = (0..50).map(|_| idle_client(&live)).collect();
    let before = resident_bytes();
    clients.extend((0..connections - warm.len()).map(|_| idle_client(&live)));
    let each = resident_bytes().saturating_sub(before) / clients.len();
    eprintln!("{}: {each} bytes resident per idle connection ({} of them)", live.engine.io_name(), clients.len());
    assert!(each < BYTES_MAX, "{each} bytes per idle connection are a buffer");
    let mut last = clients.pop().expect("there are many");
    ping_in_pieces(&mut last);
}

/// Connected, upgraded, and silent after a message that came in two pieces: whatever the engine kept for it must be gone.
fn idle_client(live: &Live) -> TcpStream {
    let mut stream = live.stream();
    stream.write_all(host::Host::upgrade_head("/api/community/ws", "").as_bytes()).expect("a live socket");
    read_until(&mut stream, b"Connected to WebSocket server");
    ping_in_pieces(&mut stream);
    stream
}

fn ping_in_pieces(stream: &mut TcpStream) {
    let frame = sockets::frame(r#"{"type":"PING"}"#);
    let (first, second) = frame.split_at(9);
    stream.write_all(first).expect("a live socket");
    stream.write_all(second).expect("a live socket");
    read_until(stream, b"PONG");
}

/// Reads until this has come.
fn read_until(stream: &mut TcpStream, end: &[u8]) {
    let (mut heard, mut buffer) = (Vec::new(), [0; 2_048]);
    while !heard.windows(end.len()).any(|window| window == end) {
        let read = stream.read(&mut buffer).expect("the server answers");
        assert!(read > 0, "it ended after {}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&buffer[..read]);
    }
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident set");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of kB") * 1_024
}

fn descriptors_max() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").expect("this process");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("its descriptors");
    line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(usize::MAX)
}
