//! The memory contract: what connections hold together, in all shards, stays under `limits.memory`. Nothing is counted where messages pass. Every
//! [`MEMORY_LOOK_MS`] a shard looks through its links, tells the others by one number what it holds, and reads theirs. When that is too much
//! together, each sheds its part of the excess: the links that hold most are ended first, by the rule for slow readers.
//!
//! What counts: frames that wait to be written with their places in queues, a frame for which several links wait once; what was read and is not
//! whole yet (frames, fragments, attachments, bodies of long-polling, packets that wait for an answer); handshakes that wait at the door; events
//! kept for clients that come back; histories. The latter two have at most half of it ([`Limits::kept`]), so that they never cost a connection.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Shard;
use super::links::{Link, State};
use crate::fault::CloseReason;
use crate::ids::ShardId;
use crate::limits::{LINKS_PER_LOOK_MS, Limits, MEMORY_LOOK_MS, MEMORY_SHED_TENTHS};
use crate::time::Now;

/// What each shard held when it last looked. Written by one and read by all, some times a second.
#[derive(Debug)]
pub(super) struct Ledger(Box<[Entry]>);

/// Alone in its cache line.
#[derive(Default, Debug)]
#[repr(align(128))]
struct Entry(AtomicUsize);

impl Ledger {
    pub(super) fn new(shards: usize) -> Ledger {
        Ledger((0..shards).map(|_| Entry::default()).collect())
    }

    /// Notes what one shard holds, and returns what all do.
    fn note(&self, shard: ShardId, bytes: usize) -> usize {
        self.0[usize::from(shard.0)].0.store(bytes, Relaxed);
        self.0.iter().map(|entry| entry.0.load(Relaxed)).sum()
    }
}

impl Limits {
    /// Bytes of history or of events for clients that come back, of which so many were asked for: each has at most a quarter of what
    /// connections may hold.
    pub(crate) fn kept(&self, bytes: usize) -> usize {
        if self.memory == 0 { bytes } else { bytes.min(self.memory / 4) }
    }
}

impl Link {
    /// Bytes that were read of it and wait for something.
    fn input_bytes(&self) -> usize {
        let of_state = match &self.state {
            State::SocketIo(socket) => socket.assembly.as_ref().map_or(0, |assembly| assembly.bytes()),
            State::Body(post) => post.held_bytes(),
            _ => 0,
        };
        self.partial.bytes() + self.decoder.held_bytes() + of_state + self.polling.as_ref().map_or(0, |polling| polling.inbox.bytes())
    }

    /// True exactly when its peer takes nothing of what waits for it.
    fn is_unread(&self) -> bool {
        self.outbox.blocked || self.polling.as_ref().is_some_and(|polling| polling.poll.is_none() && !polling.is_over)
    }
}

impl Shard {
    /// Looks how much is held, where that is bounded, and ends links when it is too much.
    pub(super) fn look_at_memory(&mut self, now: Now) {
        let bytes_max = self.world.config.limits.memory;
        if bytes_max == 0 || now.ms() < self.memory_look_ms {
            return;
        }
        self.memory_look_ms = now.ms() + MEMORY_LOOK_MS.max(self.links.len() as u64 / LINKS_PER_LOOK_MS);
        let of_links: usize = self.links.iter().map(|(_, link)| link.input_bytes() + link.outbox.share()).sum();
        let held = of_links + self.memory.bytes() + self.homes.history_bytes() + self.door.bytes();
        self.stats.memory_held.set(held as u64);
        let total = self.world.ledger.note(self.id, held);
        if total > bytes_max {
            // In proportion, so that all shards together come to what is wanted without asking each other.
            let wanted = bytes_max as u128 * MEMORY_SHED_TENTHS as u128 / 10 * held as u128 / total as u128;
            self.shed(now, held - wanted as usize);
        }
    }

    /// Ends links until so many bytes are given back, those first that give back most. Whose peer takes what it is sent stays.
    fn shed(&mut self, now: Now, mut excess: usize) {
        let weigh = |(slot, link): (u32, &Link)| {
            let unread = if link.is_unread() { link.outbox.share() } else { 0 };
            Some((link.input_bytes() + unread, slot)).filter(|(bytes, _)| *bytes > 0)
        };
        let mut heaviest: Vec<(usize, u32)> = self.links.iter().filter_map(weigh).collect();
        heaviest.sort_unstable_by(|a, b| b.cmp(a));
        for (bytes, slot) in heaviest {
            if excess == 0 {
                return;
            }
            excess = excess.saturating_sub(bytes);
            self.stats.memory_shed.add(1);
            self.stats.memory_shed_bytes.add(bytes as u64);
            self.shed_link(now, slot);
        }
    }

    fn shed_link(&mut self, now: Now, slot: u32) {
        let is_open = |slot: &u32| self.conns.get(*slot).is_none_or(|conn| conn.opening.is_none());
        match self.links.get(slot).map(|link| &link.state) {
            // It is no WebSocket yet, so there is no close frame for it.
            Some(State::Body(_) | State::Polled(_)) => self.lose(now, slot, CloseReason::SlowReader),
            Some(State::Plain { conn }) if !is_open(conn) => self.lose(now, slot, CloseReason::SlowReader),
            _ => self.too_slow(now, slot),
        }
    }
}
