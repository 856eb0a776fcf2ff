//! Copies of the WebSockets' sockets that outlive the engine, and the goodbyes on them. What holds the ends of the queues here is this test; a killed process is in the control plane's
//! tests.

mod host;
#[expect(dead_code, reason = "clients here are streams, so that their last bytes are seen")]
mod sockets;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use engine::config::{Config, Io};
use engine::limits::KEPT_DEAD_SPARE;
use engine::{Farewells, Left, say_farewell};
use sockets::{Live, PATIENCE, config};

/// Messages of this many and more make the queue begin anew.
const MANY: usize = KEPT_DEAD_SPARE + 300;

fn keeping(io: Io, shards: usize) -> Option<Live> {
    Live::start(Config { keep_sockets: true, ..config(io, shards) })
}

/// The ends that a service manager would hold.
fn ends(live: &Live) -> Vec<OwnedFd> {
    live.engine.kept().iter().map(|end| end.try_clone().expect("a descriptor")).collect()
}

fn goodbyes(ends: Vec<OwnedFd>) -> Farewells {
    say_farewell(ends.into_iter().map(Left::of).collect())
}

fn kept(live: &Live) -> u64 {
    live.engine.stats().iter().map(|stats| stats.kept_sockets.read()).sum()
}

fn until_kept(live: &Live, count: u64) {
    let end = Instant::now() + 4 * PATIENCE;
    while kept(live) != count {
        assert!(Instant::now() < end, "{} are kept, and not {count}", kept(live));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A connection that is upgraded, and of whose bytes nothing is left unread.
fn upgraded(live: &Live, path: &str, greeting: &str) -> TcpStream {
    let mut stream = live.stream();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it is open");
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&said).contains(greeting) {
        stream.read_exact(&mut byte).expect("a greeting");
        said.push(byte[0]);
    }
    stream
}

fn community(live: &Live) -> TcpStream {
    upgraded(live, "/api/community/ws", "USER_JOINED")
}

/// Everything that is said until the end.
fn last_words(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("an end without a reset");
    said
}

#[test]
fn who_comes_afterwards_says_goodbye() {
    for io in [Io::Uring, Io::Epoll] {
        let Some(live) = keeping(io, 2) else { continue };
        let plain: Vec<_> = (0..20).map(|_| community(&live)).collect();
        let engine_io: Vec<_> = (0..5).map(|_| upgraded(&live, "/socket.io/?EIO=4&transport=websocket", "pingTimeout")).collect();
        let mut http = live.stream();
        http.write_all(b"GET /soc").expect("it is open");
        until_kept(&live, 25);
        let ends = ends(&live);
        drop(live);
        // What is said meanwhile is read by nobody.
        for mut stream in &plain {
            stream.write_all(&[0x89, 0x80, 1, 2, 3, 4]).expect("it is open still");
        }
        assert_eq!(http.read(&mut [0]).ok(), Some(0), "what is no WebSocket is closed with its process");
        let clients = std::thread::spawn(move || {
            for stream in plain {
                let closed = last_words(stream);
                assert_eq!(closed[closed.len() - 4..], [0x88, 2, 0x03, 0xf4], "service restart, after {closed:?}");
            }
            for stream in engine_io {
                let closed = last_words(stream);
                assert_eq!(closed[closed.len() - 2..], [0x88, 0], "{closed:?}");
            }
        });
        assert_eq!(goodbyes(ends), Farewells { told: 25, untold: 0 });
        clients.join().expect("they have heard it");
    }
}

#[test]
fn a_copy_keeps_nobody_connected() {
    let Some(live) = keeping(Io::Epoll, 1) else { return };
    let (mut rude, polite) = (community(&live), community(&live));
    until_kept(&live, 2);
    // A frame that is not masked: the server closes.
    rude.write_all(&[0x81, 1, b'x']).expect("it is open");
    rude.shutdown(Shutdown::Write).expect("it is open");
    let told = last_words(rude);
    assert!(told.windows(2).any(|two| two == [0x03, 0xea]), "a wrong frame is told: {told:?}");
    // The client closes, without a word.
    polite.shutdown(Shutdown::Write).expect("it is open");
    last_words(polite);
    until_kept(&live, 0);
}

#[test]
fn what_is_closed_leaves_the_queue() {
    let Some(live) = keeping(Io::Epoll, 1) else { return };
    let mut clients: Vec<_> = (0..MANY + 50).map(|_| community(&live)).collect();
    until_kept(&live, clients.len() as u64);
    let staying = clients.split_off(MANY);
    // Some of those that were sent first stay, and some of the last.
    drop(clients.split_off(10));
    until_kept(&live, 60);
    std::thread::sleep(Duration::from_millis(500));
    let ends = ends(&live);
    drop(live);
    let said = goodbyes(ends);
    assert_eq!((said.told, clients.len() + staying.len()), (60, 60));
    assert!((said.untold as usize) < MANY / 2, "{} that were closed are in the queue", said.untold);
}

#[test]
fn nothing_is_kept_unless_it_is_wanted() {
    let Some(live) = Live::start(config(Io::Epoll, 1)) else { return };
    let client = community(&live);
    assert!(live.engine.kept().is_empty());
    drop(live);
    drop(client);
}
