//! A whole host without a socket: shards, the lanes between them, and clients whose bytes are vectors. Used by the transcripts and the
//! simulation; the test decides what happens when.
#![allow(dead_code, reason = "each test binary uses its part")]
#![expect(unreachable_pub, reason = "a module of test binaries, which export nothing")]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use engine::config::{Config, DialectKind, Endpoint};
use engine::event::Event;
use engine::ids::{LinkKey, ShardId};
use engine::limits::Limits;
use engine::shard::address::Addresses;
use engine::shard::frozen::{Frozen, FrozenEndpoint, FrozenShard};
use engine::shard::parcel::Parcel;
use engine::shard::thaw::{self, Thawed};
use engine::shard::{Arena, Command, Shard, World, Written};
use engine::stats::ShardStats;
use engine::time::Now;
use engine::{Answer, Inquiry, Ruling, auth, wire};

pub const SECRET: &[u8] = b"a secret for tests only, 32 bytes";
/// 2024-01-01T00:00:00Z, where every test's wall clock starts.
pub const START_UNIX_MS: u64 = 1_704_067_200_000;

pub fn endpoint(name: &str, dialect: DialectKind, bind: &str) -> Endpoint {
    Endpoint { auto_create: true, ..Endpoint::new(name, dialect, bind) }
}

pub fn config(shards: usize, endpoints: Vec<Endpoint>) -> Config {
    Config {
        origins: vec!["https://app.example.com".into()],
        verifier: Some(
            auth::Verifier::new(auth::Key::Hs256(SECRET.to_vec())).expect("a good secret").with_leeway_s(0).keeping_claims(true),
        ),
        ..Config::new(([127, 0, 0, 1], 0), shards, endpoints)
    }
}

/// A token with these claims, which are JSON.
pub fn token(claims: &serde_json::Value) -> String {
    auth::mint(SECRET, claims).expect("claims are an object")
}

/// What a client has got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Got {
    /// An HTTP answer: status and body. 101 has an empty body.
    Http(u16, String),
    Text(String),
    Binary(Vec<u8>),
    Ping,
    Pong,
    Close(Option<u16>, String),
    /// The socket has ended; true for a reset.
    End(bool),
}

pub struct Client {
    pub shard: usize,
    pub link: LinkKey,
    /// Bytes the "socket buffer" takes before it is full.
    pub capacity: usize,
    pub taken: Vec<u8>,
    /// Everything it was ever sent, as it was on the wire.
    pub raw: Vec<u8>,
    /// Writes that took.
    pub writes: usize,
    /// Heads and bodies of all HTTP answers, as they came.
    pub answers: Vec<(String, Vec<u8>)>,
    /// True exactly when the answer to HEAD is awaited, which has no body.
    pub asks_head: bool,
    /// What was read and not used when the socket was handed over.
    pub unread: Vec<u8>,
    upgraded: bool,
    pub got: VecDeque<Got>,
    pub open: bool,
    pub handed_over: bool,
}

impl Client {
    fn new(shard: usize, link: LinkKey) -> Client {
        Client {
            shard,
            link,
            capacity: usize::MAX,
            taken: Vec::new(),
            raw: Vec::new(),
            writes: 0,
            answers: Vec::new(),
            asks_head: false,
            unread: Vec::new(),
            upgraded: false,
            got: VecDeque::new(),
            open: true,
            handed_over: false,
        }
    }
}

pub struct Host {
    pub shards: Vec<Shard>,
    pub stats: Vec<Arc<ShardStats>>,
    /// `lanes[from][to]`.
    pub lanes: Vec<Vec<VecDeque<Parcel>>>,
    pub clients: Vec<Client>,
    pub answers: Vec<(usize, u64, Answer)>,
    /// Events that were told, and how many were not.
    pub events: Vec<Event>,
    pub events_dropped: u64,
    pub world: Arc<World>,
    /// Questions to the back end, with the shards that ask and their numbers there.
    pub inquiries: Vec<(usize, u64, Inquiry)>,
    pub generation: u8,
    pub now: Now,
    /// What is written goes through here; made once, because it is large.
    arena: Option<Arena>,
}

impl Host {
    pub fn new(config: Config, seed: u64) -> Host {
        let now = Now { ns: 1_000_000_000, unix_ms: START_UNIX_MS };
        let addresses = Addresses::seeded(&config.limits, config.limits.connections.unwrap_or(1_000_000), seed);
        Host::of(Arc::new(World::new(config, addresses, seed)), now, 0)
    }

    /// `generation` counts the reloads before.
    fn of(world: Arc<World>, now: Now, generation: u8) -> Host {
        let (shards, endpoints, seed) = (world.config.shards.len(), world.config.endpoints.len(), world.seed);
        let stats: Vec<_> = (0..shards).map(|_| Arc::new(ShardStats::new(endpoints))).collect();
        let make = |(id, stats): (usize, &Arc<ShardStats>)| {
            let mut random = [id as u8 + 1; 32];
            random[..8].copy_from_slice(&seed.to_le_bytes());
            random[31] ^= generation;
            Shard::new(ShardId(id as u8), world.clone(), stats.clone(), random, now)
        };
        Host {
            shards: stats.iter().enumerate().map(make).collect(),
            lanes: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            stats,
            clients: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            events_dropped: 0,
            world,
            inquiries: Vec::new(),
            generation,
            now,
            arena: None,
        }
    }

    /// Connects and sends a request head.
    pub fn connect(&mut self, shard: usize, head: &str) -> usize {
        let peer = ([127, 0, 0, 1], 1000 + self.clients.len() as u16).into();
        let link = self.shards[shard].handle_accept(self.now, peer).expect("a table with room");
        self.clients.push(Client::new(shard, link));
        self.write(self.clients.len() - 1, head.as_bytes());
        self.clients.len() - 1
    }

    /// An upgrade request for a path with a query.
    pub fn upgrade_head(target: &str, headers: &str) -> String {
        format!(
            "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        )
    }

    /// Raw bytes from a client.
    pub fn write(&mut self, client: usize, bytes: &[u8]) {
        // A socket is read once a turn, and a turn ends with what the shard wants done: it may go to another.
        self.obey(self.clients[client].shard);
        let Client { shard, link, open, .. } = self.clients[client];
        if open {
            self.shards[shard].handle_bytes(self.now, link, &mut bytes.to_vec());
        }
    }

    /// One masked frame from a client.
    pub fn frame(&mut self, client: usize, opcode: u8, payload: &[u8]) {
        let frame = masked(opcode, payload);
        self.write(client, &frame);
    }

    pub fn say(&mut self, client: usize, text: &str) {
        self.frame(client, 1, text.as_bytes());
    }

    /// The client's socket ends.
    pub fn hang_up(&mut self, client: usize) {
        let Client { shard, link, open, .. } = self.clients[client];
        if open {
            self.clients[client].open = false;
            self.shards[shard].handle_end(self.now, link);
            self.obey(shard);
        }
    }

    /// Moves what a shard has made: writes to clients, parcels into lanes. True when it may have made another shard move.
    pub fn pump(&mut self, shard: usize) -> bool {
        let mut has_obeyed = self.obey(shard);
        // What is written may let a link go on that has more to write.
        while self.flush(shard) {
            has_obeyed |= self.obey(shard);
        }
        if let Some(batch) = self.shards[shard].poll_events() {
            self.events.extend(batch.events);
            self.events_dropped += batch.dropped;
        }
        while let Some((to, parcel)) = self.shards[shard].poll_parcel() {
            self.lanes[shard][usize::from(to.0)].push_back(parcel);
        }
        while let Some((ask, answer)) = self.shards[shard].poll_answer() {
            self.answers.push((shard, ask, answer));
        }
        while let Some((number, inquiry)) = self.shards[shard].poll_inquiry() {
            self.inquiries.push((shard, number, inquiry));
        }
        let _ = self.shards[shard].poll_delivered().count();
        has_obeyed
    }

    /// The back end answers a question of a shard.
    pub fn rule(&mut self, shard: usize, number: u64, ruling: Ruling) {
        self.shards[shard].handle_parcel(self.now, Parcel::Ruled { number, ruling: Box::new(ruling) });
    }

    /// Delivers one parcel of a lane; false when it is empty.
    pub fn step(&mut self, from: usize, to: usize) -> bool {
        let Some(parcel) = self.lanes[from][to].pop_front() else { return false };
        self.shards[to].handle_parcel(self.now, parcel);
        true
    }

    /// Runs until nothing moves any more.
    pub fn settle(&mut self) {
        loop {
            let mut moved = false;
            for shard in 0..self.shards.len() {
                moved |= self.pump(shard);
            }
            for from in 0..self.shards.len() {
                for to in 0..self.shards.len() {
                    moved |= self.step(from, to);
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// The process is replaced by one with so many shards, as by `execve`: nothing goes on but what is written down, and clients notice nothing.
    pub fn reload(&mut self, shards: usize) {
        let state = self.freeze();
        self.shards.clear();
        let blank = Arc::new(World::new(config(1, Vec::new()), Addresses::new(&Limits::default(), 1), 0));
        let World { config, .. } = Arc::into_inner(std::mem::replace(&mut self.world, blank)).expect("the shards are gone");
        self.generation = self.generation.wrapping_add(1).max(1);
        let host = Host::thawed(
            &state,
            Config { shards: vec![None; shards], ..config },
            self.now,
            self.generation,
            std::mem::take(&mut self.clients),
        );
        *self = Host {
            answers: std::mem::take(&mut self.answers),
            events: std::mem::take(&mut self.events),
            inquiries: std::mem::take(&mut self.inquiries),
            events_dropped: self.events_dropped,
            ..host
        };
        self.settle();
    }

    /// Everything at rest, as it is handed on. A client's socket is its index.
    pub fn freeze(&mut self) -> Vec<u8> {
        self.come_to_rest();
        let sockets: HashMap<(usize, LinkKey), i32> =
            self.clients.iter().enumerate().filter(|(_, it)| it.open).map(|(index, it)| ((it.shard, it.link), index as i32)).collect();
        let freeze = |(index, shard): (usize, &Shard)| shard.freeze(|link| sockets.get(&(index, link)).copied()).encode().into();
        let of = |endpoint: &Endpoint| {
            let (name, dialect, bind) = (endpoint.name.clone(), endpoint.dialect.name().to_owned(), endpoint.bind.clone());
            FrozenEndpoint { name, dialect, bind }
        };
        let frozen = Frozen {
            seed: self.world.seed,
            shards: self.shards.iter().enumerate().map(freeze).collect(),
            endpoints: self.world.config.endpoints.iter().map(of).collect(),
            addresses: self.world.addresses.freeze(),
            ..Frozen::default()
        };
        let mut state = Vec::new();
        frozen.write(&mut state).expect("memory to write to");
        state
    }

    /// A host that goes on from there.
    pub fn thawed(state: &[u8], config: Config, now: Now, generation: u8, clients: Vec<Client>) -> Host {
        let frozen = Frozen::decode(state).expect("a state");
        let parts = frozen.shards.iter().map(|part| FrozenShard::decode(part).expect("a shard's part"));
        let addresses = Addresses::seeded(&config.limits, config.limits.connections.unwrap_or(1_000_000), frozen.seed);
        addresses.thaw(&frozen.addresses);
        let mut host = Host { clients, ..Host::of(Arc::new(World::new(config, addresses, frozen.seed)), now, generation) };
        let portions = thaw::portions(parts.map(|part| thaw::pieces(&frozen, part, &host.world)));
        for (index, portion) in portions.into_iter().enumerate() {
            for Thawed { link, socket, .. } in host.shards[index].thaw(now, portion) {
                while host.clients.len() <= socket as usize {
                    host.clients.push(Client { open: false, upgraded: true, ..Client::new(index, link) });
                }
                let client = &mut host.clients[socket as usize];
                (client.shard, client.link, client.open) = (index, link, true);
            }
        }
        host
    }

    /// Nothing is read while shards answer each other, until nothing is under way. The back end's answers are not waited for for ever.
    fn come_to_rest(&mut self) {
        for round in 0.. {
            assert!(round < 1_000, "no rest: {:?}", self.shards);
            let mut rests = true;
            for shard in 0..self.shards.len() {
                if round == 100 {
                    self.shards[shard].wait_no_longer(self.now);
                }
                rests &= self.shards[shard].come_to_rest(self.now);
                rests &= !self.pump(shard);
            }
            for from in 0..self.shards.len() {
                for to in 0..self.shards.len() {
                    while self.step(from, to) {
                        rests = false;
                    }
                }
            }
            if rests {
                return;
            }
        }
    }

    /// Lets time pass in small steps, so that everything due in between happens in order.
    pub fn advance(&mut self, ms: u64) {
        let end = self.now.ns + ms * 1_000_000;
        while self.now.ns < end {
            let step = (end - self.now.ns).min(50_000_000);
            self.now.ns += step;
            self.now.unix_ms += step / 1_000_000;
            for shard in 0..self.shards.len() {
                self.shards[shard].handle_timeouts(self.now);
            }
            self.settle();
        }
    }

    fn obey(&mut self, shard: usize) -> bool {
        let mut has_obeyed = false;
        while let Some(command) = self.shards[shard].poll_command() {
            has_obeyed = true;
            let (key, end) = match command {
                Command::Resume(key) => {
                    self.shards[shard].handle_resume(self.now, key);
                    continue;
                }
                Command::Move { link, peer, to, read, luggage } => {
                    let Some(client) = self.client_of(shard, link) else { continue };
                    let to = usize::from(to.0);
                    // As on a lane: what was sent before the socket arrives before it.
                    while let Some((to, parcel)) = self.shards[shard].poll_parcel() {
                        self.lanes[shard][usize::from(to.0)].push_back(parcel);
                    }
                    while self.step(shard, to) {}
                    let arrived = match luggage {
                        Some(luggage) => self.shards[to].handle_arrival(self.now, *luggage),
                        None => self.shards[to].handle_accept(self.now, peer),
                    };
                    let link = arrived.expect("a table with room");
                    (self.clients[client].shard, self.clients[client].link) = (to, link);
                    self.shards[to].handle_bytes(self.now, link, &mut read.clone());
                    self.pump(to);
                    continue;
                }
                // The peer of a test ends its side as soon as ours has ended.
                Command::HalfClose(key) => {
                    self.shards[shard].handle_end(self.now, key);
                    (key, None)
                }
                Command::Close { link, reset } => (link, Some(reset)),
                Command::HandOver { link, read, .. } => {
                    if let Some(client) = self.client_of(shard, link) {
                        (self.clients[client].handed_over, self.clients[client].unread) = (true, read);
                    }
                    (link, Some(false))
                }
            };
            if let (Some(client), Some(reset)) = (self.client_of(shard, key), end) {
                self.clients[client].open = false;
                self.clients[client].got.push_back(Got::End(reset));
            }
        }
        has_obeyed
    }

    fn client_of(&self, shard: usize, link: LinkKey) -> Option<usize> {
        self.clients.iter().position(|client| client.open && client.shard == shard && client.link == link)
    }

    /// Writes what is queued; false when nothing was.
    fn flush(&mut self, shard: usize) -> bool {
        let mut has_written = false;
        let mut arena = self.arena.take().unwrap_or_else(|| Arena::new(1 << 20));
        while let Some(link) = self.shards[shard].poll_dirty() {
            arena.clear();
            has_written = true;
            let Some(span) = self.shards[shard].transmit(link, &mut arena) else { continue };
            let bytes = read_span(span);
            let Some(client) = self.client_of(shard, link) else {
                let _ = self.shards[shard].handle_sent(link, span.len, -32);
                self.shards[shard].handle_batch_end(self.now);
                continue;
            };
            let takes = self.clients[client].capacity.min(bytes.len());
            self.clients[client].capacity -= takes;
            self.clients[client].taken.extend_from_slice(&bytes[..takes]);
            self.clients[client].raw.extend_from_slice(&bytes[..takes]);
            self.clients[client].writes += usize::from(takes > 0);
            let result = if takes == 0 { -11 } else { takes as i32 };
            let written: Written = self.shards[shard].handle_sent(link, span.len, result);
            assert_eq!(written == Written::Blocked, takes < bytes.len() && self.clients[client].open, "{written:?}");
            self.shards[shard].handle_batch_end(self.now);
            self.digest(client);
        }
        self.arena = Some(arena);
        has_written
    }

    /// A slow client reads again.
    pub fn unblock(&mut self, client: usize, capacity: usize) {
        self.clients[client].capacity = capacity;
        let Client { shard, link, open, .. } = self.clients[client];
        if open {
            self.shards[shard].handle_writable(link);
        }
    }

    /// Turns what a client has received into [`Got`]s.
    fn digest(&mut self, index: usize) {
        let client = &mut self.clients[index];
        loop {
            let used = if client.upgraded { server_frame(&client.taken, &mut client.got) } else { http_answer(client) };
            match used {
                0 => return,
                n => drop(client.taken.drain(..n)),
            }
        }
    }

    /// Everything a client has got since the last call.
    pub fn take(&mut self, client: usize) -> Vec<Got> {
        self.clients[client].got.drain(..).collect()
    }

    /// Texts among that.
    pub fn texts(&mut self, client: usize) -> Vec<String> {
        let texts = self.take(client).into_iter().filter_map(|got| if let Got::Text(text) = got { Some(text) } else { None });
        texts.collect()
    }
}

#[expect(unsafe_code, reason = "a span is read the way the kernel reads it")]
fn read_span(span: engine::shard::Span) -> Vec<u8> {
    // SAFETY: the span points into the shard's queue or the arena, and neither is touched before the bytes are copied.
    unsafe { std::slice::from_raw_parts(span.start, span.len) }.to_vec()
}

fn http_answer(client: &mut Client) -> usize {
    let Some(end) = client.taken.windows(4).position(|four| four == b"\r\n\r\n") else { return 0 };
    let head = String::from_utf8_lossy(&client.taken[..end]).to_string();
    let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    let length = head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let (start, length) = (end + 4, if client.asks_head { 0 } else { length.unwrap_or(0) });
    if client.taken.len() < start + length {
        return 0;
    }
    client.answers.push((head, client.taken[start..start + length].to_vec()));
    client.got.push_back(Got::Http(status, String::from_utf8_lossy(&client.taken[start..start + length]).to_string()));
    client.upgraded = status == 101;
    start + length
}

/// Reads one server frame: never masked, never fragmented. Returns the bytes it took.
fn server_frame(bytes: &[u8], got: &mut VecDeque<Got>) -> usize {
    let (Some(first), Some(second)) = (bytes.first(), bytes.get(1)) else { return 0 };
    let (start, length) = match second {
        126 if bytes.len() >= 4 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 if bytes.len() >= 10 => (10, u64::from_be_bytes(bytes[2..10].try_into().expect("eight bytes")) as usize),
        126 | 127 => return 0,
        length => (2, usize::from(*length)),
    };
    if bytes.len() < start + length {
        return 0;
    }
    let payload = &bytes[start..start + length];
    got.push_back(match first {
        0x81 => Got::Text(String::from_utf8(payload.to_vec()).expect("server text is UTF-8")),
        0x82 => Got::Binary(payload.to_vec()),
        0x88 if payload.is_empty() => Got::Close(None, String::new()),
        0x88 => {
            let code = u16::from_be_bytes([payload[0], payload[1]]);
            Got::Close(Some(code), String::from_utf8_lossy(&payload[2..]).to_string())
        }
        0x89 => Got::Ping,
        0x8a => Got::Pong,
        other => panic!("a server never sends {other:#x}"),
    });
    start + length
}

/// A masked client frame.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let (header, length) = wire::ws::header(opcode, payload.len());
    let mut frame = header[..length].to_vec();
    frame[1] |= 0x80;
    let mask = [0x12, 0x34, 0x56, 0x78];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
    frame
}
