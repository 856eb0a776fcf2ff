//! What goes wrong, by chance: links, Redis, hosts, clocks. And what is well in itself, but bad for whoever keeps something: drains and reloads.

use rand::RngExt as _;

use super::plan::SHARDS_MAX;
use super::site::Link;
use super::world::{Fate, World};
use crate::config::RelayMode;
use crate::shard::parcel::Parcel;

/// How long a host that drains may take beyond the time that it is given: clients that do not answer its goodbye are waited for.
const DRAIN_GRACE_MS: u64 = 10_000;

impl World {
    /// Something goes wrong with a host, if this run has such faults.
    pub(super) fn misbehave(&mut self, slot: usize) {
        let faults = self.plan.faults;
        if self.slots[slot].is_none() {
            return self.give_birth(slot);
        }
        match self.pick(12) {
            0..3 if faults.cuts => self.cut(slot),
            3 if faults.cuts && self.plan.mode == RelayMode::Streams => {
                if let Some(site) = &mut self.slots[slot] {
                    site.lose_reader();
                }
            }
            4 if faults.cuts => {
                let until_ms = self.now_ms() + self.dice.random_range(100..9_000);
                if let Some(site) = self.slots[slot].as_mut().filter(|site| site.link == Link::Up) {
                    site.set_silent(Some(until_ms));
                }
            }
            5 if faults.outages && self.seldom(3) => self.lose_redis(),
            6 if faults.deaths && self.seldom(3) => self.kill(slot),
            7 if faults.drains && self.seldom(3) => self.drain(slot),
            8 | 9 if faults.reloads => self.reload(slot),
            10 if faults.clocks => {
                let ms = self.dice.random_range(1..3_600_000);
                let is_back = self.seldom(2);
                if let Some(site) = &mut self.slots[slot] {
                    let unix_ms = &mut site.host.now.unix_ms;
                    *unix_ms = if is_back { *unix_ms - ms } else { *unix_ms + ms };
                }
            }
            11 if faults.clocks => {
                let until_ms = self.now_ms() + self.dice.random_range(200..2 * self.plan.lease_ms);
                if let Some(site) = &mut self.slots[slot] {
                    site.stopped_until_ms = until_ms;
                }
            }
            _ => {}
        }
    }

    fn cut(&mut self, slot: usize) {
        let until_ms = self.now_ms() + if self.seldom(2) { 0 } else { self.dice.random_range(0..2 * self.plan.lease_ms) };
        let done = self.pick(4);
        self.counts.cuts += 1;
        let World { slots, redis, .. } = self;
        if let Some(site) = &mut slots[slot] {
            site.lose(redis, done, until_ms);
        }
        self.after(slot);
    }

    fn lose_redis(&mut self) {
        let until_ms = self.now_ms() + self.dice.random_range(0..2 * self.plan.lease_ms);
        self.redis_away_until_ms = until_ms;
        self.counts.outages += 1;
        for slot in 0..self.slots.len() {
            let done = self.pick(4);
            let World { slots, redis, .. } = self;
            if let Some(site) = &mut slots[slot] {
                site.lose(redis, done, until_ms);
            }
            self.after(slot);
        }
    }

    /// A host is no more, and nobody was told.
    fn kill(&mut self, slot: usize) {
        let done = self.pick(4);
        self.counts.deaths += 1;
        self.listen(slot);
        if let Some(site) = self.slots[slot].take() {
            let record = &mut self.records[site.number as usize];
            record.fate = if record.fate == Fate::Alive { Fate::Vanished } else { record.fate };
            drop(site.vanish(&mut self.redis, done));
        }
        self.leave_behind(slot);
    }

    /// Who was there is nowhere now.
    fn leave_behind(&mut self, slot: usize) {
        for client in self.clients.iter_mut().filter(|client| client.at.is_some_and(|at| at.slot == slot)) {
            client.lose_transport();
        }
        self.publish();
    }

    fn drain(&mut self, slot: usize) {
        let over_ms = self.dice.random_range(0..5_000);
        let until_ms = self.now_ms() + over_ms + DRAIN_GRACE_MS;
        let Some(site) = self.slots[slot].as_mut().filter(|site| site.drains_until_ms.is_none()) else { return };
        self.counts.drains += 1;
        self.records[site.number as usize].fate = Fate::Drained;
        site.drains_until_ms = Some(until_ms);
        let now = site.host.now;
        for shard in 0..site.shards() {
            site.host.shards[shard].handle_parcel(now, Parcel::Drain { over_ms });
            site.collect_shard(shard);
        }
        self.after(slot);
    }

    /// A host that drains may have ended.
    pub(super) fn go_on_draining(&mut self, slot: usize) {
        let Some(site) = &self.slots[slot] else { return };
        let Some(until_ms) = site.drains_until_ms else { return };
        if until_ms > self.redis.now_ms && !site.host.shards.iter().all(crate::shard::Shard::is_drained) {
            return;
        }
        self.listen(slot);
        if let Some(mut site) = self.slots[slot].take() {
            site.take_leave(&mut self.redis);
            drop(site.vanish(&mut self.redis, 0));
        }
        self.leave_behind(slot);
    }

    /// One host's process is replaced, while the others go on.
    fn reload(&mut self, slot: usize) {
        if self.is_stopped(slot) || self.slots[slot].as_ref().is_none_or(|site| site.drains_until_ms.is_some()) {
            return;
        }
        let shards = 1 + self.pick(SHARDS_MAX);
        // Where nothing is wrong with Redis it has answered before the process is replaced.
        let rounds = if !self.plan.faults.spares_redis() && self.seldom(3) { 0 } else { 100 };
        let done = self.pick(4);
        self.counts.reloads += 1;
        let World { slots, redis, .. } = self;
        if let Some(site) = &mut slots[slot] {
            site.reload(redis, shards, rounds, done);
        }
        self.after(slot);
    }
}
