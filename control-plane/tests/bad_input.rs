//! Mischief against the built binary, raw bytes on the socket: each gets the answer of the wire contract, and neighbours who were there
//! before notice nothing. Upper bounds of time are generous; nothing here measures.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use support::raw::{Neighbours, Next, Raw, TEXT, frame, header, upgrade};
use support::{MANY, PATIENCE, Server, Setup, all_descriptors, aloud, token};

/// [`MANY`], with a handshake time that a test can wait for.
const HASTY: &str = "connections_per_address = 1000000\nhandshakes_per_address = 1000000\nrate_messages = 1000000\nhandshake_ms = 500\n";
/// [`MANY`] for more connections than there are descriptors, so that the kernel is the one who refuses.
const UNCOUNTED: &str =
    "connections_per_address = 1000000\nhandshakes_per_address = 1000000\nrate_messages = 1000000\nconnections = 100000\n";

/// A server, its neighbours, the mischief, and the look around afterwards.
fn mischief(limits: &'static str, act: impl FnOnce(&Server, &mut Neighbours)) {
    let mut server = Server::start(&Setup { limits, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    act(&server, &mut neighbours);
    neighbours.assert_well();
    server.assert_well();
}

/// Sends each of these on a connection of its own, and expects one of these close codes.
fn closes_with(codes: &[u16], cases: &[(&str, Vec<u8>)]) {
    mischief(MANY, |server, _| {
        for (what, bytes) in cases {
            // Shown if the test fails, wherever it does.
            eprintln!("{what}");
            let mut eve = Raw::talk(server, "eve", "den");
            eve.send(bytes);
            let code = eve.close_code();
            assert!(code.is_some_and(|code| codes.contains(&code)), "{what}: closed with {code:?}, not {codes:?}");
            assert!(eve.ends(), "{what}: the connection ends");
        }
    });
}

// ---- frames

#[test]
fn bad_utf8_is_closed_with_1007() {
    let close = [&1000_u16.to_be_bytes()[..], b"\xff\xfe"].concat();
    closes_with(
        &[1007],
        &[
            ("a lone byte", frame(TEXT, b"\xff")),
            ("a broken sequence", frame(TEXT, b"{\"type\":\"\xc3\x28\"}")),
            ("a surrogate", frame(TEXT, b"\xed\xa0\x80")),
            ("beyond Unicode", frame(TEXT, b"\xf4\x90\x80\x80")),
            ("an overlong slash", frame(TEXT, b"\xc0\xaf")),
            ("an end within a character", frame(TEXT, b"abc\xe2\x82")),
            ("broken over two fragments", [frame(0x01, b"\xe2"), frame(0x80, b"\x28\xa1")].concat()),
            ("a close reason", frame(0x88, &close)),
        ],
    );
}

#[test]
fn unmasked_frames_are_closed_with_1002() {
    let unmasked = |first: u8, payload: &[u8]| [header(first, 0, payload.len() as u64), payload.to_vec()].concat();
    closes_with(
        &[1002],
        &[
            ("text", unmasked(TEXT, b"{}")),
            ("empty text", unmasked(TEXT, b"")),
            ("ping", unmasked(0x89, b"x")),
            ("close", unmasked(0x88, &[3, 232])),
        ],
    );
}

#[test]
fn reserved_bits_and_opcodes_are_closed_with_1002() {
    let bits = [("RSV1", 0x40), ("RSV2", 0x20), ("RSV3", 0x10)].map(|(name, bit)| (name, frame(TEXT | bit, b"{}")));
    closes_with(&[1002], &bits);
    let opcodes = [3, 7, 0xb, 0xf].map(|opcode| ("reserved opcode", frame(0x80 | opcode, b"{}")));
    closes_with(&[1002], &opcodes);
}

#[test]
fn reserved_bits_right_behind_the_handshake() {
    mischief(MANY, |server, _| {
        let mut eve = Raw::connect(server.public);
        let request = upgrade(&format!("/talk?token={}", token("eve")));
        eve.send(&[request.as_bytes(), &frame(TEXT | 0x70, b"{}")].concat());
        assert_eq!(eve.status(), Some(101), "the handshake itself was good");
        assert_eq!(eve.close_code(), Some(1002), "the frame was not");
    });
}

#[test]
fn frames_out_of_place_are_closed_with_1002() {
    let fragment = |first: u8| frame(first, b"x");
    closes_with(
        &[1002],
        &[
            ("a continuation of nothing", fragment(0x80)),
            ("a new message within another", [fragment(0x01), fragment(TEXT)].concat()),
            ("a ping in fragments", fragment(0x09)),
            ("a ping of 126 bytes", frame(0x89, &[b'x'; 126])),
            ("a close of one byte", frame(0x88, &[3])),
            ("close code 999", frame(0x88, &999_u16.to_be_bytes())),
            ("close code 1005", frame(0x88, &1005_u16.to_be_bytes())),
            ("close code 1016", frame(0x88, &1016_u16.to_be_bytes())),
            ("a length longer than it needs to be", [&[TEXT, 0x80 | 126, 0, 5, 0, 0, 0, 0][..], b"hello"].concat()),
        ],
    );
}

#[test]
fn oversize_is_closed_with_1009_before_it_has_come() {
    let announced_as = |first: u8, length: u64| [header(first, 0x80, length), vec![0; 4]].concat();
    let announced = |length: u64| announced_as(TEXT, length);
    let over = vec![b'x'; 400_000];
    let fragments = [frame(0x01, &over), frame(0x00, &over), announced_as(0x80, 400_000)].concat();
    closes_with(&[1009], &[("one byte too long", announced(1_000_001)), ("2^62 bytes", announced(1 << 62)), ("by fragments", fragments)]);
    // The highest bit of the length must be 0: a bad frame or an oversize one, as one likes.
    closes_with(&[1002, 1009], &[("2^63 bytes", announced(1 << 63)), ("2^64-1 bytes", announced(u64::MAX))]);
}

#[test]
fn endless_tiny_fragments_end() {
    mischief(MANY, |server, neighbours| {
        let mut eve = Raw::talk(server, "eve", "den");
        let thousand: Vec<u8> = std::iter::repeat_n(frame(0x00, b""), 1_000).flatten().collect();
        eve.send(&frame(0x01, b""));
        for _ in 0..200 {
            eve.send(&thousand);
        }
        neighbours.assert_well();
        assert!(eve.ends(), "200,000 empty fragments are no message");
    });
}

// ---- JSON

#[test]
fn deep_json_is_answered() {
    mischief(MANY, |server, _| {
        let deep = "[".repeat(100_000);
        let closed = format!("{deep}{}", "]".repeat(100_000));
        let objects = r#"{"a":"#.repeat(100_000);
        let shapes =
            [deep.clone(), closed.clone(), objects, format!(r#"{{"type":"PING","payload":{closed}}}"#), format!(r#"{{"type":{closed}}}"#)];
        let mut eve = Raw::talk(server, "eve", "den");
        for shape in &shapes {
            eve.say(shape);
            assert!(eve.text().contains(r#""code":"INVALID_MESSAGE""#), "{}…", &shape[..40]);
        }
        let mut collab = Raw::open(server, "/ws/open?documentId=d&clientID=eve");
        assert!(collab.text().contains("connected"), "the greeting");
        for shape in &shapes {
            collab.say(shape);
            let answer = collab.text();
            assert!(answer.contains("Invalid message format") || answer.contains("Unknown message type"), "{answer}");
        }
        let mut guest = socket_io(server);
        guest.say(&format!(r#"42["message",{closed}]"#));
        guest.say(&format!("42{deep}"));
        // Refused or closed; the neighbours tell whether it did harm.
        guest.next();
    });
}

/// A Socket.IO client in the namespace `/guests`.
fn socket_io(server: &Server) -> Raw {
    let mut guest = Raw::open(server, "/socket.io/?EIO=4&transport=websocket");
    assert!(guest.text().starts_with('0'), "the open packet");
    guest.say("40/guests,");
    guest.text_with("40/guests,");
    guest
}

#[test]
fn a_megabyte_of_json_is_answered() {
    mischief(MANY, |server, _| {
        let fill =
            |head: &str, unit: &str, tail: &str| format!("{head}{}{tail}", unit.repeat((1_000_000 - head.len() - tail.len()) / unit.len()));
        let shapes = [
            fill("[", "1,", "1]"),
            fill("[", "\"\\u00fc\",", "1]"),
            fill("{", "\"a\":{},", "\"b\":1}"),
            fill(r#"{"type":""#, "x", r#""}"#),
            fill("[", "1e308,", "1]"),
            fill("", "9", ""),
            fill("", " ", ""),
            fill("\"", "\\\\", "\""),
        ];
        let mut eve = Raw::talk(server, "eve", "den");
        for shape in &shapes {
            eve.say(shape);
            assert!(eve.text().contains(r#""code":"INVALID_MESSAGE""#), "{}…", &shape[..20]);
        }
    });
}

#[test]
fn wrong_types_are_answered() {
    mischief(MANY, |server, _| {
        let mut eve = Raw::talk(server, "eve", "den");
        let values = ["null", "true", "7", "-0.0", "1e999", "\"\"", "[]", "{}", "[[]]", "\"\\u0000\"", "\"\\ud800\""];
        for value in values {
            for shape in [
                format!(r#"{{"type":{value}}}"#),
                format!(r#"{{"type":"SUBSCRIBE","payload":{{"roomId":{value}}}}}"#),
                format!(r#"{{"type":"UNSUBSCRIBE","payload":{{"groupId":{value}}}}}"#),
                format!(r#"{{"type":"TYPING","payload":{{"roomId":{value},"isTyping":true}}}}"#),
                format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":{value},"content":"x"}}}}"#),
                value.to_owned(),
            ] {
                eve.say(&shape);
                let answer = eve.text();
                assert!(answer.contains(r#""code":"INVALID_MESSAGE""#), "{shape} was answered {answer}");
            }
        }
        for value in values {
            let mut guest = socket_io(server);
            guest.say(&format!(r#"42/guests,1["room:join",{{"roomId":{value}}}]"#));
            guest.text_with(r#"43/guests,1[{"success":false"#);
            guest.say(&format!(r#"42/guests,2["message",{value}]"#));
            guest.text_with(r#"43/guests,2[{"success":false"#);
            // An event whose name is no string ends the connection or is ignored; never the process.
            guest.say(&format!("42/guests,[{value}]"));
        }
    });
}

// ---- slow and silent

#[test]
fn half_open_handshakes_are_cut() {
    mischief(HASTY, |server, _| {
        let request = upgrade(&format!("/talk?token={}", token("eve")));
        let parts = ["", "G", "GET /talk HTTP/1.1\r\n", &request[..request.len() - 2]];
        let mut halves: Vec<Raw> = parts
            .iter()
            .map(|part| {
                let mut half = Raw::connect(server.public);
                half.send(part.as_bytes());
                half
            })
            .collect();
        for (half, part) in halves.iter_mut().zip(parts) {
            let status = half.status();
            assert!(matches!(status, None | Some(408)), "{part:?}: answered {status:?}");
            assert!(half.ends(), "{part:?}: cut");
        }
    });
}

#[test]
fn a_slow_header_sender_is_cut() {
    mischief(HASTY, |server, neighbours| {
        let mut eve = Raw::connect(server.public);
        let end = Instant::now() + PATIENCE;
        let mut cut = false;
        for byte in b"GET /talk HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'x')) {
            // The first byte after the cut is answered by a reset, the second fails.
            if eve.stream.write_all(&[*byte]).is_err() {
                cut = true;
                break;
            }
            if Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(cut, "one byte in 20 ms is no way to send a head that has 500 ms");
        neighbours.assert_well();
    });
}

#[test]
fn a_reader_that_stops_reading_is_cut_and_nobody_else_waits() {
    mischief(MANY, |server, _| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // A small window, so that the server's queue fills soon.
        socket.set_recv_buffer_size(4096).expect("a socket");
        socket.connect(&server.public.into()).expect("the server listens");
        let mut stuck = Raw::over(TcpStream::from(socket));
        stuck.send(upgrade(&format!("/talk?token={}&roomId=flood", token("stuck"))).as_bytes());
        assert_eq!(stuck.status(), Some(101));
        stuck.text_with("USER_JOINED");

        let mut readers: Vec<Raw> = (0..4).map(|number| Raw::talk(server, &format!("reader{number}"), "flood")).collect();
        let filler = "x".repeat(3_900);
        let mut told = 0;
        let slow = [("reason", "slow_reader")];
        while server.metric("uringcast_connections_closed_total", &slow) < 1.0 {
            assert!(told < 20_000, "80 MB were queued for one who does not read");
            for number in told..told + 100 {
                readers[0].say(&format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"flood","content":"{number} {filler}"}}}}"#));
                for reader in &mut readers {
                    reader.text_with(&format!(r#""content":"{number} x"#));
                }
            }
            told += 100;
        }
        // Its own end: 4408 if the socket took it, else a reset.
        let code = stuck.close_code();
        assert!(matches!(code, None | Some(4408)), "closed with {code:?}");
    });
}

// ---- crowds

#[test]
fn ten_thousand_connections_opened_and_reset_at_once() {
    let descriptors = all_descriptors();
    let crowd = usize::try_from(descriptors.saturating_sub(1_000).min(10_000)).unwrap_or(10_000);
    if crowd < 10_000 {
        aloud(&format!("SKIPPED in part: {crowd} connections instead of 10,000, for the limit is {descriptors} descriptors"));
    }
    mischief(MANY, |server, neighbours| {
        let before = server.metric("process_open_fds", &[]);
        let request = upgrade(&format!("/talk?token={}&roomId=crowd", token("crowd")));
        let streams: Vec<TcpStream> = (0..crowd)
            .map(|number| {
                let mut stream = TcpStream::connect(server.public).expect("the server listens");
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
                // A third says nothing, a third half a request, a third a whole one.
                let length = [0, request.len() / 2, request.len()][number % 3];
                // What was refused already is reset all the same.
                let _ = stream.write_all(&request.as_bytes()[..length]);
                stream
            })
            .collect();
        drop(streams);
        neighbours.assert_well();
        server.until_metric("uringcast_connections", &[], |open| (open - 6.0).abs() < 0.5);
        server.until_metric("process_open_fds", &[], |now| now < before + 20.0);
        let mut normal = Raw::talk(server, "normal", "den");
        normal.say(r#"{"type":"PING"}"#);
        normal.text_with("PONG");
    });
}

#[test]
fn more_connections_than_descriptors_from_the_start() {
    let mut server = Server::start(&Setup { limits: UNCOUNTED, descriptors: Some(400), ..Setup::default() });
    crowd_beyond_descriptors(&mut server);
}

#[test]
fn a_silent_crowd_leaves_descriptors_to_the_control_plane() {
    let mut server = Server::start(&Setup { limits: UNCOUNTED, descriptors: Some(500), ..Setup::default() });
    let crowd: Vec<TcpStream> =
        (0..900).map(|_| TcpStream::connect_timeout(&server.public, PATIENCE).expect("the kernel's backlog takes it")).collect();
    server.until_metric("uringcast_handshakes_refused_total", &[("reason", "full")], |refused| refused > 0.5);
    server.assert_well();
    drop(crowd);
}

#[test]
fn out_of_descriptors_pauses_accepting_only() {
    // The limit falls while it runs, so that no count made at the start keeps the kernel from refusing.
    let mut server = Server::start(&Setup { limits: UNCOUNTED, ..Setup::default() });
    server.leave_descriptors(100);
    crowd_beyond_descriptors(&mut server);
    assert!(server.metric("uringcast_accept_paused_total", &[]) >= 1.0, "accepting has paused");
}

/// Whatever the start runs out of: a process that stays has all its shards, and any other says so by its exit status at once.
#[test]
fn too_few_descriptors_for_all_shards_end_the_process() {
    let refused = (20..36).step_by(2).filter(|limit| !serves_or_ends(*limit)).count();
    assert!(refused > 0, "some of these limits are too low for three shards");
}

/// Starts three shards with so many descriptors; true exactly when they serve.
fn serves_or_ends(limit: u32) -> bool {
    let script = format!("ulimit -n {limit} && exec \"$0\" --dev --shards 3 --listen 127.0.0.1:0 --control 127.0.0.1:0");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_uringcast")]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = shell.spawn().expect("the built binary starts");
    let mut greeting = String::new();
    // The greeting comes when the server is ready; a process that ends closes its output without one.
    let _ = BufReader::new(child.stdout.take().expect("it was piped")).take(1_000).read_line(&mut greeting);
    let serves = !greeting.is_empty();
    let end = Instant::now() + PATIENCE;
    if serves {
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().expect("our child").is_none(), "with {limit} descriptors it greeted and ended");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).expect("our child");
    }
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("with {limit} descriptors it neither serves nor ends");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.success(), serves, "with {limit} descriptors: {status}");
    serves
}

/// More clients than there are descriptors: those who are in keep talking, and when the crowd has gone, new ones get in.
fn crowd_beyond_descriptors(server: &mut Server) {
    let mut neighbours = Neighbours::move_in(server);
    let request = upgrade("/ws/open?documentId=d&clientID=crowd");
    let crowd: Vec<TcpStream> = (0..700)
        .map(|_| {
            // The kernel completes connections that nobody accepts, up to the backlog.
            let mut stream = TcpStream::connect_timeout(&server.public, PATIENCE).expect("the kernel's backlog takes it");
            // What was refused already counts as well.
            let _ = stream.write_all(request.as_bytes());
            stream
        })
        .collect();
    for _ in 0..5 {
        neighbours.assert_well();
        std::thread::sleep(Duration::from_millis(100));
    }
    server.assert_well();
    drop(crowd);
    let end = Instant::now() + PATIENCE * 2;
    while !gets_in(server) {
        assert!(Instant::now() < end, "nobody gets in after the crowd has gone");
        std::thread::sleep(Duration::from_millis(100));
    }
    server.until_metric("uringcast_connections", &[], |open| (open - 6.0).abs() < 0.5);
    neighbours.assert_well();
    server.assert_well();
}

/// True exactly when a newcomer is upgraded and greeted.
fn gets_in(server: &Server) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&server.public, Duration::from_secs(2)) else { return false };
    let mut newcomer = Raw::over(stream);
    newcomer.send(upgrade("/ws/open?documentId=e&clientID=newcomer").as_bytes());
    newcomer.status() == Some(101) && matches!(newcomer.next(), Next::Frame(1, _))
}

// ---- request heads

/// Sends a head on a connection of its own: the status it is answered with.
fn status_of(server: &Server, head: &[u8]) -> Option<u16> {
    let mut eve = Raw::connect(server.public);
    eve.send(head);
    eve.status()
}

#[test]
fn too_many_or_too_large_headers_are_431() {
    mischief(MANY, |server, _| {
        let path = format!("/talk?token={}", token("eve"));
        let with = |lines: &str| {
            let request = upgrade(&path);
            format!("{}{lines}\r\n", &request[..request.len() - 2])
        };
        let short: String = (0..200).map(|number| format!("x{number}: y\r\n")).collect();
        assert_eq!(status_of(server, with(&short).as_bytes()), Some(431), "200 short headers");
        // What goes on coming after the refusal makes the kernel reset the connection, which may overtake the answer.
        let many: String = (0..2_000).map(|number| format!("x-header-{number}: {number}\r\n")).collect();
        for (what, lines) in [("2,000 headers", many), ("a header of 1 MB", format!("x: {}\r\n", "y".repeat(1_000_000)))] {
            let status = status_of(server, with(&lines).as_bytes());
            assert!(matches!(status, Some(431) | None), "{what}: answered {status:?}");
        }
        let target = upgrade(&format!("/{}", "y".repeat(100_000)));
        let status = status_of(server, target.as_bytes());
        assert!(matches!(status, Some(400 | 414 | 431) | None), "a target of 100 kB: answered {status:?}");
    });
}

#[test]
fn smuggling_shapes_are_400() {
    mischief(MANY, |server, _| {
        let shapes = [
            ("length and chunked", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            ("two lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
            ("a length with a sign", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx"),
            ("a length that is none", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx"),
            ("a length beyond 64 bits", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nx"),
            ("chunked not last", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
            ("an unknown coding", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            ("a space before the colon", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\nx"),
            ("a folded line", "GET /x HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
            ("a line without colon", "GET /x HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n"),
            ("NUL in a value", "GET /x HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
            ("CR in a value", "GET /x HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n"),
            ("no host", "GET /x HTTP/1.1\r\n\r\n"),
            ("two hosts", "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            ("a space in the target", "GET /x y HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("no HTTP", "hello\r\n\r\n"),
            ("a TLS greeting", "\x16\x03\x01\x02\x00\x01\x00\x01\x7e\x03\x03\r\n\r\n"),
        ];
        for (what, head) in shapes {
            assert_eq!(status_of(server, head.as_bytes()), Some(400), "{what}");
        }
        // The same on an upgrade: a body has no place there.
        for line in ["Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "Content-Length: 1\r\nContent-Length: 2\r\n"] {
            let request = upgrade(&format!("/talk?token={}", token("eve")));
            let head = format!("{}{line}\r\n", &request[..request.len() - 2]);
            assert_eq!(status_of(server, head.as_bytes()), Some(400), "upgrade with {line}");
        }
    });
}

#[test]
fn upgrades_that_are_none_get_an_answer() {
    mischief(MANY, |server, _| {
        let path = format!("/talk?token={}", token("eve"));
        let good = upgrade(&path);
        let cases = [
            ("no key", good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")),
            ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")),
            ("two keys", good.replace("Sec-WebSocket-Version", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version")),
            ("version 8", good.replace("Version: 13", "Version: 8")),
            ("POST", good.replace("GET ", "POST ")),
            ("HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0")),
            ("h2c", good.replace("Upgrade: websocket", "Upgrade: h2c")),
        ];
        for (what, head) in cases {
            let status = status_of(server, head.as_bytes());
            assert!(status.is_some_and(|status| (400..500).contains(&status)), "{what}: answered {status:?}");
        }
        // CVE-2022-41940: an upgrade to something else, then a reset.
        for _ in 0..50 {
            let mut eve = Raw::connect(server.public);
            eve.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n");
            SockRef::from(&eve.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
        }
    });
}
