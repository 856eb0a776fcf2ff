//! What an idle connection holds on to, counted and not estimated: the blocks that a shard has allocated and not freed when thousands of
//! clients have connected, shown a token, joined rooms of ten and gone silent.
//!
//! Blocks count as mimalloc hands them out, which the binary uses. It is a binary of its own, because its allocator is the whole
//! process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use engine::auth;
use engine::config::{Config, DialectKind, Endpoint};
use engine::ids::{LinkKey, ShardId};
use engine::shard::address::Addresses;
use engine::shard::{Arena, Command, Shard, World};
use engine::stats::ShardStats;
use engine::time::Now;

/// As many as in the measurements beside other servers.
const CONNECTIONS: usize = 15_000;
/// Sizes of blocks that are told apart; what is larger belongs to tables.
const SIZES: usize = 1 << 12;

struct Counting;

static HANDED_OUT: AtomicUsize = AtomicUsize::new(0);
static LIVE: [AtomicUsize; SIZES] = [const { AtomicUsize::new(0) }; SIZES];

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What mimalloc hands out for so many bytes: sixteens up to 64, then four sizes for each power of two.
fn rounded(bytes: usize) -> usize {
    match bytes {
        0..=8 => 8,
        9..=64 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of((bytes - 1).next_power_of_two() / 8),
    }
}

fn note(bytes: usize, is_new: bool) {
    let (of_size, total) = (LIVE.get(bytes), rounded(bytes));
    if is_new {
        of_size.map(|count| count.fetch_add(1, Relaxed));
        HANDED_OUT.fetch_add(total, Relaxed);
    } else {
        of_size.map(|count| count.fetch_sub(1, Relaxed));
        HANDED_OUT.fetch_sub(total, Relaxed);
    }
}

// SAFETY: every call is passed on as it came; the counting allocates nothing.
#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), true);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(layout.size(), false);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

const SECRET: &[u8] = b"a secret for tests only, 32 bytes";
const UNIX_MS: u64 = 1_704_067_200_000;

/// One shard and what its driver would do.
struct Bed {
    shard: Shard,
    now: Now,
    arena: Arena,
}

impl Bed {
    fn new(endpoint: Endpoint) -> Bed {
        let verifier = auth::Verifier::new(auth::Key::Hs256(SECRET.to_vec())).expect("a good secret");
        let mut config = Config { verifier: Some(verifier), ..Config::new(([127, 0, 0, 1], 0), 1, vec![endpoint]) };
        config.limits.handshakes_per_address = u32::MAX;
        config.limits.handshakes_per_second = 0;
        config.limits.connections_per_address = u32::MAX;
        config.limits.connections_per_user = 1_000;
        let addresses = Addresses::new(&config.limits, 1_000_000);
        let now = Now { ns: 1_000_000_000, unix_ms: UNIX_MS };
        let world = Arc::new(World::new(config, addresses, 0));
        let shard = Shard::new(ShardId(0), world, Arc::new(ShardStats::new(1)), [0; 32], now);
        Bed { shard, now, arena: Arena::new(1 << 20) }
    }

    /// Takes everything that is written, and does what is asked for.
    fn settle(&mut self) {
        loop {
            while let Some(link) = self.shard.poll_dirty() {
                self.arena.clear();
                if let Some(span) = self.shard.transmit(link, &mut self.arena) {
                    let _ = self.shard.handle_sent(link, span.len, span.len as i32);
                }
            }
            self.shard.handle_batch_end(self.now);
            let _ = self.shard.poll_delivered().count();
            match self.shard.poll_command() {
                Some(Command::Resume(link)) => self.shard.handle_resume(self.now, link),
                Some(command) => panic!("nobody was to leave: {command:?}"),
                None => return,
            }
        }
    }

    fn write(&mut self, link: LinkKey, bytes: &mut [u8]) {
        self.shard.handle_bytes(self.now, link, bytes);
        self.settle();
    }

    fn say(&mut self, link: LinkKey, text: &str) {
        let length = match text.len() {
            short @ 0..126 => vec![0x80 | short as u8],
            long => [&[0x80 | 126][..], &(long as u16).to_be_bytes()].concat(),
        };
        self.write(link, &mut [&[0x81], &length[..], &[0; 4], text.as_bytes()].concat());
    }

    fn connect(&mut self, target: &str) -> LinkKey {
        let link = self.shard.handle_accept(self.now, ([127, 0, 0, 1], 40_000).into()).expect("a place");
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: 127.0.0.1:3100\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dXJpbmdjYXN0LWJlbmNoLg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        self.write(link, &mut head.into_bytes());
        link
    }

    fn pass(&mut self, ms: u64) {
        self.now.ns += ms * 1_000_000;
        self.now.unix_ms += ms;
        self.shard.handle_timeouts(self.now);
        self.settle();
    }
}

fn token(user: usize, room: &str) -> String {
    let user = format!("b01234567-u{user:06}");
    let claims = serde_json::json!({ "sub": user, "name": user, "iat": UNIX_MS / 1_000, "exp": UNIX_MS / 1_000 + 86_400, "rooms": [room] });
    auth::mint(SECRET, &claims).expect("an object")
}

fn room(connection: usize, connections: usize) -> String {
    format!("b01234567-r{:06}", connection % (connections / 10))
}

fn community(bed: &mut Bed, connection: usize, connections: usize) {
    let room = room(connection, connections);
    let link = bed.connect(&format!("/api/community/ws?token={}", token(connection, &room)));
    bed.say(link, &format!(r#"{{"type":"SUBSCRIBE","payload":{{"roomId":"{room}"}}}}"#));
}

fn rooms(bed: &mut Bed, connection: usize, connections: usize) {
    let room = room(connection, connections);
    let link = bed.connect("/socket.io/?EIO=4&transport=websocket");
    bed.say(link, &format!(r#"40{{"token":"{}"}}"#, token(connection % (connections / 100), &room)));
    bed.say(link, &format!(r#"420["room:join",{{"roomId":"{room}"}}]"#));
}

/// Bytes per connection that `connections` of them hold on to when all is quiet.
fn held(endpoint: Endpoint, connect: fn(&mut Bed, usize, usize), connections: usize) -> usize {
    let mut bed = Bed::new(endpoint);
    let before = HANDED_OUT.load(Relaxed);
    let blocks: Vec<usize> = LIVE.iter().map(|count| count.load(Relaxed)).collect();
    for connection in 0..connections {
        connect(&mut bed, connection, connections);
        bed.pass(1);
    }
    bed.pass(5_000);
    assert_eq!(bed.shard.links(), connections);
    let held = (HANDED_OUT.load(Relaxed) - before) / connections;
    // What is told when a test fails, and with `--nocapture`: where the bytes are.
    let each = |size: usize, count: &AtomicUsize| count.load(Relaxed).saturating_sub(blocks[size]) as f64 / connections as f64;
    for (size, count) in LIVE.iter().enumerate().map(|(size, count)| (size, each(size, count))).filter(|(_, count)| *count > 0.005) {
        eprintln!("{count:.3} blocks of {size} bytes: {:.1} bytes of each connection", count * rounded(size) as f64);
    }
    eprintln!("{held} bytes each, with the tables");
    held
}

/// Both in one test, because the counters are the process's. The bounds are what was measured, rounded up: whoever must raise one says why.
#[test]
fn an_idle_connection_holds_on_to_little() {
    let endpoint = Endpoint { client_publish: true, ..Endpoint::new("community", DialectKind::Community, "/api/community/ws") };
    let plain = held(endpoint, community, CONNECTIONS);
    assert!(plain <= 910, "{plain} bytes of a plain connection whose user has no other");
    let endpoint = Endpoint { auto_create: true, ..Endpoint::new("rooms", DialectKind::Rooms, "/") };
    let socket_io = held(endpoint, rooms, CONNECTIONS);
    assert!(socket_io <= 760, "{socket_io} bytes of a Socket.IO connection whose user has a hundred");
}
