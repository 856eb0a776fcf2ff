//! A host without sockets, as the engine's tests have one, but lean: what it does itself is counted with what the shards do. A turn is as
//! in the driver: everything is written in batches, then parcels go, and nothing waits.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::auth::{Key, Verifier};
use engine::config::{Config, Endpoint};
use engine::ids::{LinkKey, ShardId};
use engine::limits::{Limits, SENDS_PER_BATCH};
use engine::shard::address::Addresses;
use engine::shard::parcel::Parcel;
use engine::shard::{Arena, Command, Shard, World};
use engine::stats::{Counter, ShardStats};
use engine::time::Now;

/// The secret of its tokens.
pub(super) const SECRET: &[u8] = b"of these counts only, 32 bytes or more";
/// 2024-01-01T00:00:00Z, where the wall clock starts.
pub(super) const START_UNIX_MS: u64 = 1_704_067_200_000;
/// Key of the hash that gives rooms their homes, and seed of the shards' random sources: every run is the same.
const SEED: u64 = 6;
/// As many links as the largest operation has, and some.
const CONNECTIONS_MAX: usize = 20_000;
/// Messages that are kept of a room: few, so that each new one pushes an old one out, as in a server that has run for a while.
const HISTORY_MESSAGES: usize = 50;
/// As the driver's.
const ARENA_BYTES: usize = 1024 * 1024;

/// One connected client.
#[derive(Clone, Copy)]
pub(super) struct Client {
    shard: usize,
    link: LinkKey,
}

/// Shards and the lanes between them.
pub(super) struct Host {
    shards: Vec<Shard>,
    stats: Vec<Arc<ShardStats>>,
    /// What waits for each shard.
    lanes: Vec<VecDeque<Parcel>>,
    arena: Arena,
    batch: Vec<(LinkKey, usize)>,
    now: Now,
    accepted: u32,
    /// Writes to sockets, had there been any.
    pub(super) writes: u64,
}

impl Host {
    /// One endpoint on so many shards.
    pub(super) fn new(endpoint: Endpoint, shards: usize) -> Host {
        let mut config = Config::new(([127, 0, 0, 1], 0), shards, vec![endpoint]);
        config.verifier = Some(Verifier::new(Key::Hs256(SECRET.to_vec())).expect("the secret is long enough"));
        config.limits = Limits { history_messages: HISTORY_MESSAGES, handshakes_per_second: 0, ..Limits::default() };
        config.check().expect("one endpoint, bound to a path");
        let addresses = Addresses::new(&config.limits, CONNECTIONS_MAX);
        let world = Arc::new(World::new(config, addresses, SEED));
        let now = Now { ns: 1_000_000_000, unix_ms: START_UNIX_MS };
        let stats: Vec<_> = (0..shards).map(|_| Arc::new(ShardStats::new(1))).collect();
        let shard = |(id, stats): (usize, &Arc<ShardStats>)| {
            Shard::new(ShardId(id as u8), world.clone(), stats.clone(), [SEED as u8 + id as u8; 32], now)
        };
        Host {
            shards: stats.iter().enumerate().map(shard).collect(),
            stats,
            lanes: (0..shards).map(|_| VecDeque::new()).collect(),
            arena: Arena::new(ARENA_BYTES),
            batch: Vec::with_capacity(SENDS_PER_BATCH),
            now,
            accepted: 0,
            writes: 0,
        }
    }

    /// A client comes with the head of its request, from an address that it shares with 255 others.
    pub(super) fn connect(&mut self, shard: usize, head: &mut [u8]) -> Client {
        let [_, b, c, _] = self.accepted.to_be_bytes();
        self.accepted += 1;
        let link = self.shards[shard].handle_accept(self.now, ([10, 0, b, c], 1).into()).expect("a table with room");
        let client = Client { shard, link };
        self.say(client, head);
        client
    }

    /// Bytes of a client, and everything that follows from them.
    pub(super) fn say(&mut self, client: Client, bytes: &mut [u8]) {
        self.shards[client.shard].handle_bytes(self.now, client.link, bytes);
        self.turn();
    }

    /// The client's socket has ended.
    pub(super) fn end(&mut self, client: Client) {
        self.shards[client.shard].handle_end(self.now, client.link);
        self.turn();
    }

    /// A parcel of the control plane or of another shard.
    pub(super) fn put(&mut self, shard: usize, parcel: Parcel) {
        self.shards[shard].handle_parcel(self.now, parcel);
        self.turn();
    }

    /// The clock goes on, and nobody looks at it yet.
    pub(super) fn wait(&mut self, ms: u64) {
        self.now = Now { ns: self.now.ns + ms * 1_000_000, unix_ms: self.now.unix_ms + ms };
    }

    /// What is due by now.
    pub(super) fn look_at_the_clock(&mut self) {
        for shard in &mut self.shards {
            shard.handle_timeouts(self.now);
        }
        self.turn();
    }

    /// Messages written to clients so far.
    pub(super) fn delivered(&self) -> u64 {
        self.stats.iter().map(|stats| stats.endpoints[0].delivered.read()).sum()
    }

    /// Messages of clients that were not passed on, whatever the reason.
    pub(super) fn refused(&self) -> u64 {
        let refused = |stats: &Arc<ShardStats>| stats.endpoints[0].dropped.iter().map(Counter::read).sum::<u64>();
        self.stats.iter().map(refused).sum()
    }

    /// Links there are.
    pub(super) fn links(&self) -> usize {
        self.shards.iter().map(Shard::links).sum()
    }

    /// Until nothing moves any more.
    fn turn(&mut self) {
        let mut moves = true;
        while moves {
            moves = false;
            for id in 0..self.shards.len() {
                moves |= self.obey(id);
                moves |= self.flush(id);
                moves |= self.obey(id);
                while let Some((to, parcel)) = self.shards[id].poll_parcel() {
                    self.lanes[usize::from(to.0)].push_back(parcel);
                }
                // Answers to the control plane: nobody is there.
                while self.shards[id].poll_answer().is_some() {}
            }
            for (shard, lane) in self.shards.iter_mut().zip(&mut self.lanes) {
                while let Some(parcel) = lane.pop_front() {
                    moves = true;
                    shard.handle_parcel(self.now, parcel);
                }
            }
        }
    }

    fn obey(&mut self, id: usize) -> bool {
        let mut has_obeyed = false;
        while let Some(command) = self.shards[id].poll_command() {
            has_obeyed = true;
            match command {
                Command::Resume(link) => self.shards[id].handle_resume(self.now, link),
                Command::HalfClose(link) => self.shards[id].handle_end(self.now, link),
                Command::Close { .. } => {}
                Command::HandOver { .. } | Command::Move { .. } => panic!("no client here changes its place: {command:?}"),
            }
        }
        has_obeyed
    }

    fn flush(&mut self, id: usize) -> bool {
        let shard = &mut self.shards[id];
        let mut has_written = false;
        loop {
            self.arena.clear();
            while self.batch.len() < SENDS_PER_BATCH && self.arena.has_space() {
                let Some(link) = shard.poll_dirty() else { break };
                if let Some(span) = shard.transmit(link, &mut self.arena) {
                    self.batch.push((link, span.len));
                }
            }
            if self.batch.is_empty() {
                let _ = shard.poll_delivered();
                return has_written;
            }
            has_written = true;
            self.writes += self.batch.len() as u64;
            for (link, bytes) in self.batch.drain(..) {
                let _ = shard.handle_sent(link, bytes, bytes as i32);
            }
            shard.handle_batch_end(self.now);
        }
    }
}
