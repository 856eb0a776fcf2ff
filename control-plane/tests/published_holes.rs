//! Published holes of socket.io, engine.io, ws, tungstenite and others, tried on the built binary: each is what brought one of them down, or let
//! it grow, and each costs this one nothing that its neighbours notice.

mod support;

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use support::raw::{Neighbours, Next, Raw, SOCKET_IO, TEXT, frame, upgrade};
use support::{MANY, PATIENCE, Server, Setup, get, token};

/// Tries something and looks around afterwards.
fn hole(act: impl FnOnce(&Server, &mut Neighbours)) {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    act(&server, &mut neighbours);
    neighbours.assert_well();
    server.assert_well();
}

fn head(path: &str, lines: &str) -> String {
    let request = upgrade(path);
    format!("{}{lines}\r\n", &request[..request.len() - 2])
}

fn status(server: &Server, head: &str) -> Option<u16> {
    let mut eve = Raw::connect(server.public);
    eve.send(head.as_bytes());
    eve.status()
}

/// ws died of more headers than Node's limit.
#[test]
fn cve_2024_37890_two_thousand_headers() {
    hole(|server, _| {
        let lines: String = (0..2_000).map(|number| format!("x-{number}: y\r\n")).collect();
        for path in ["/talk", SOCKET_IO] {
            assert!(matches!(status(server, &head(path, &lines)), Some(431) | None));
        }
    });
}

/// tungstenite spent minutes on one header.
#[test]
fn cve_2023_43669_a_huge_header() {
    hole(|server, _| {
        let began = Instant::now();
        for length in [20_000, 2_000_000] {
            assert!(matches!(status(server, &head("/talk", &format!("x: {}\r\n", "y".repeat(length)))), Some(431) | None));
        }
        // Byte by byte it is the same: what is there is not looked through from its beginning each time.
        let mut eve = Raw::connect(server.public);
        for byte in format!("GET /talk HTTP/1.1\r\nHost: a\r\nx: {}", "y".repeat(15_000)).bytes() {
            eve.send(&[byte]);
        }
        assert!(began.elapsed() < PATIENCE);
    });
}

/// ws took time quadratic in the blanks of a protocol.
#[test]
fn cve_2021_32640_blanks_in_a_protocol() {
    hole(|server, _| {
        let began = Instant::now();
        for name in ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Connection", "X-Forwarded-For", "Cookie", "Accept-Encoding"] {
            for filler in [" ", "\t", ", ", "a ", ";", "=\""] {
                let line = format!("{name}: b{}x\r\n", filler.repeat(12_000 / filler.len()));
                let path = format!("/talk?token={}", token("eve"));
                assert!(status(server, &head(&path, &line)).is_some(), "{name}");
                assert!(status(server, &head(SOCKET_IO, &line)).is_some(), "{name}");
            }
        }
        assert!(began.elapsed() < PATIENCE);
    });
}

/// Node's process ended by an event's name that was none, and by one that it has a meaning for.
#[test]
fn cve_2023_32695_and_2024_38355_names_of_events() {
    hole(|server, neighbours| {
        for name in [
            r#"{"toString":"x"}"#,
            r#"{"toString":1}"#,
            "null",
            "true",
            "[]",
            "[[\"x\"]]",
            "{}",
            "-1",
            "1e400",
            r#""error""#,
            r#""__proto__""#,
            r#""constructor""#,
            r#""hasOwnProperty""#,
            r#""toString""#,
            r#""newListener""#,
            r#""connect_error""#,
            r#""""#,
        ] {
            for packet in [format!("42/guests,[{name}]"), format!("42/guests,7[{name},{{}}]"), format!("43/guests,7[{name}]")] {
                let mut eve = Raw::guest(server);
                eve.say(&packet);
                eve.say(&packet);
            }
            neighbours.assert_well();
        }
    });
}

/// A placeholder's number reached any property of the attachments.
#[test]
fn cve_2022_2421_placeholders() {
    hole(|server, _| {
        for number in
            [r#""splice""#, r#""length""#, r#""__proto__""#, "-1", "1", "0.5", "1e400", "18446744073709551616", "null", "[0]", "{}"]
        {
            let mut eve = Raw::guest(server);
            eve.say(&format!(r#"451-/guests,["message",{{"roomId":"r","content":{{"_placeholder":true,"num":{number}}}}}]"#));
            eve.send(&frame(0x82, b"data"));
            assert!(eve.ends(), "{number}");
        }
    });
}

/// engine.io ended by a bad frame right behind the handshake.
#[test]
fn cve_2022_21676_reserved_bits_in_the_first_frame() {
    hole(|server, neighbours| {
        for bits in [0x10, 0x20, 0x40, 0x70] {
            for path in [SOCKET_IO.to_owned(), format!("/talk?token={}", token("eve"))] {
                let mut eve = Raw::connect(server.public);
                eve.send(&[upgrade(&path).as_bytes(), &frame(TEXT | bits, b"40")].concat());
                assert_eq!(eve.status(), Some(101));
                assert_eq!(eve.close_code(), Some(1002), "{bits:#x}");
            }
        }
        neighbours.assert_well();
    });
}

/// A transport's name reached any property of the table of transports.
#[test]
fn cve_2023_31125_odd_transports() {
    hole(|server, _| {
        for transport in
            ["constructor", "__proto__", "toString", "", "webtransport", "WEBSOCKET", "polling%00", "polling&transport=websocket"]
        {
            for target in [
                format!("/socket.io/?EIO=4&transport={transport}"),
                format!("/socket.io/?EIO=4&transport[]={transport}"),
                format!("/socket.io/?EIO={transport}&transport=polling"),
            ] {
                let plain = get(server.public, &target).0;
                assert!((200..500).contains(&plain), "{target}: {plain}");
                let upgraded = status(server, &upgrade(&target));
                assert!(upgraded.is_some_and(|status| status == 101 || (400..500).contains(&status)), "{target}: {upgraded:?}");
            }
        }
    });
}

/// engine.io ended when the socket of an upgrade to something else was reset.
#[test]
fn cve_2022_41940_an_upgrade_to_h2c_and_a_reset() {
    hole(|server, neighbours| {
        for number in 0..200 {
            let mut stream = TcpStream::connect(server.public).expect("the server listens");
            let path = if number % 2 == 0 { "/socket.io/?EIO=4&transport=polling" } else { "/" };
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("it reads");
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
        }
        neighbours.assert_well();
    });
}

/// Fragments of nothing cost memory and time without end.
#[test]
fn cve_2026_48779_and_2026_62389_tiny_fragments() {
    hole(|server, neighbours| {
        let before = server.resident();
        for payload in [&b""[..], b"x"] {
            let mut eves: Vec<Raw> = (0..8).map(|number| Raw::talk(server, &format!("eve{number}"), "den")).collect();
            let thousand: Vec<u8> = std::iter::repeat_n(frame(0x00, payload), 1_000).flatten().collect();
            for eve in &mut eves {
                eve.send(&frame(0x01, b""));
                for _ in 0..20 {
                    eve.send(&thousand);
                }
            }
            neighbours.assert_well();
            for eve in &mut eves {
                assert_eq!(eve.close_code(), Some(1009), "20,000 fragments are no message");
            }
        }
        let grown = server.resident().saturating_sub(before);
        assert!(grown < 32 << 20, "grown by {grown} bytes");
    });
}

/// What was answered to one who never reads was kept without a bound.
#[test]
fn rustsec_2020_0043_answers_that_nobody_reads() {
    hole(|server, neighbours| {
        let before = server.resident();
        let stuck: Vec<std::thread::JoinHandle<()>> = (0..8)
            .map(|number| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.set_recv_buffer_size(4096).expect("a socket");
                socket.connect(&server.public.into()).expect("the server listens");
                let mut eve = Raw::over(TcpStream::from(socket));
                eve.send(upgrade(&format!("/talk?token={}", token(&format!("eve{number}")))).as_bytes());
                assert_eq!(eve.status(), Some(101));
                let ping = frame(0x89, &[b'x'; 125]);
                let question = frame(TEXT, br#"{"type":"PING"}"#);
                let many: Vec<u8> = std::iter::repeat_n([&ping[..], &question].concat(), 1_000).flatten().collect();
                std::thread::spawn(move || {
                    // As much as it takes, or until it cuts: its answers are never read.
                    eve.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a valid time");
                    for _ in 0..200 {
                        if eve.stream.write_all(&many).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        stuck.into_iter().for_each(|thread| thread.join().expect("it only writes"));
        neighbours.assert_well();
        let grown = server.resident().saturating_sub(before);
        assert!(grown < 64 << 20, "grown by {grown} bytes, with a bound of 1 MB for each of eight");
    });
}

/// Parsers that call themselves for what is inside died of what is deep.
#[test]
fn rustsec_2024_0437_deep_messages() {
    hole(|server, neighbours| {
        for unit in ["[", r#"{"a":"#, r#"[{"a":"#] {
            let deep = unit.repeat(900_000 / unit.len());
            let mut eve = Raw::guest(server);
            eve.say(&format!(r#"42/guests,["message",{deep}]"#));
            let mut auth = Raw::open(server, SOCKET_IO);
            auth.say(&format!(r#"40/guests,{{"token":{deep}}}"#));
            let mut talk = Raw::talk(server, "eve", "den");
            talk.say(&format!(r#"{{"type":"CHAT_MESSAGE","payload":{deep}"#));
            assert!(matches!(talk.next(), Next::Frame(1, _)));
            neighbours.assert_well();
        }
    });
}
