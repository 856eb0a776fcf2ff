//! The fleet, its Redis, its clients and the dice: what happens next, and who hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::client::{At, Client};
use super::plan::{Plan, ROOMS, SHARDS_MAX};
use super::site::{Link, Site};
use super::talk::{Heard, Talk};
use crate::config::RelayMode;
use crate::relay::fake::Fake;
use crate::relay::host;
use crate::relay::request::Push;
use crate::stats::RelayStats;
use crate::time::Now;

/// Parcels on a lane from which on no client of the host is read: what the driver does by bytes.
const LANE_PARCELS_FULL: usize = 64;

/// The number of a server that is no host of ours.
pub(super) const OTHER: u32 = 0;

/// How the life of a host has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Alive,
    /// It has taken its leave, or is doing so.
    Drained,
    Vanished,
}

/// What is remembered of a host, also when it is no more.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) fate: Fate,
    /// By dialect and room: what is said there in the order in which its witness has heard it.
    pub(super) orders: [Vec<u32>; Talk::ALL.len() * ROOMS],
    /// By dialect: messages that its clients have got.
    pub(super) delivered: [u64; Talk::ALL.len()],
}

/// Something said in a room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    /// The host where it was said.
    pub(super) origin: u32,
    pub(super) place: usize,
    pub(super) step: u64,
    pub(super) by: usize,
    /// Over which connection to that host: what was said over two comes over two lanes.
    pub(super) over: usize,
}

/// What has happened how often, so that it is seen that a run tests something.
#[derive(Default, Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) runs: u64,
    pub(super) steps: u64,
    pub(super) said: u64,
    pub(super) heard: u64,
    pub(super) recovered: u64,
    pub(super) moved: u64,
    pub(super) reloads: u64,
    pub(super) deaths: u64,
    pub(super) drains: u64,
    pub(super) cuts: u64,
    pub(super) outages: u64,
}

impl std::ops::Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            runs: self.runs + other.runs,
            steps: self.steps + other.steps,
            said: self.said + other.said,
            heard: self.heard + other.heard,
            recovered: self.recovered + other.recovered,
            moved: self.moved + other.moved,
            reloads: self.reloads + other.reloads,
            deaths: self.deaths + other.deaths,
            drains: self.drains + other.drains,
            cuts: self.cuts + other.cuts,
            outages: self.outages + other.outages,
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        *self = *self + other;
    }
}

/// See the module.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) dice: StdRng,
    pub(super) redis: Fake,
    pub(super) redis_away_until_ms: u64,
    pub(super) slots: Vec<Option<Site>>,
    pub(super) records: Vec<Record>,
    /// By host: what its relay has counted.
    pub(super) relay_stats: Vec<Arc<RelayStats>>,
    pub(super) clients: Vec<Client>,
    pub(super) said: Vec<Said>,
    pub(super) step: u64,
    pub(super) counts: Counts,
    /// True exactly when something was said or heard that a replay must say and hear too.
    pub(super) trace: Trace,
    /// True exactly when no client comes or acts any more of its own accord.
    pub(super) is_quiet: bool,
    /// True exactly when everybody leaves, and nobody comes.
    pub(super) is_over: bool,
    tokens: Vec<String>,
    /// By user: the hosts where he has ever been.
    pub(super) haunts: BTreeMap<usize, BTreeSet<u32>>,
}

/// A number that all that is heard changes (FNV-1a).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trace(pub(super) u64);

impl Trace {
    /// Lists have no order: they are left out.
    pub(super) fn note_heard(&mut self, who: usize, heard: &Heard) {
        self.note(&who.to_le_bytes());
        match heard {
            Heard::Message { room, number } => self.note(&[0, *room as u8, *number as u8, (*number >> 8) as u8]),
            Heard::Entered { room, past, .. } => self.note(&[1, *room as u8, past.as_ref().map_or(0, Vec::len) as u8]),
            Heard::Left { room } => self.note(&[2, *room as u8]),
            Heard::Came { user, .. } | Heard::Went { user, .. } => self.note(user.as_bytes()),
            Heard::Connected { sid, .. } => self.note(sid.as_bytes()),
            Heard::Refused => self.note(&[3]),
            Heard::Goodbye => self.note(&[4]),
            Heard::Ping => self.note(&[5]),
            Heard::Other => self.note(&[6]),
        }
    }

    pub(super) fn note(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }
}

/// A room of a dialect, as one number.
pub(super) fn place(talk: Talk, room: usize) -> usize {
    talk.index() * ROOMS + room
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut dice = StdRng::seed_from_u64(seed);
        let plan = Plan::choose(&mut dice);
        let mut world = World {
            seed,
            dice,
            redis: Fake::new(host::START_UNIX_MS),
            redis_away_until_ms: 0,
            slots: (0..plan.hosts).map(|_| None).collect(),
            records: Vec::new(),
            relay_stats: Vec::new(),
            clients: Vec::new(),
            said: Vec::new(),
            step: 0,
            counts: Counts::default(),
            trace: Trace(0xcbf2_9ce4_8422_2325),
            is_quiet: false,
            is_over: false,
            tokens: (0..plan.users).map(|user| Talk::token(&format!("u{user}"))).collect(),
            haunts: BTreeMap::new(),
            plan,
        };
        // The first stands for a server of another kind.
        world.remember_host(Arc::default());
        for _ in 0..world.plan.clients {
            let talk = Talk::ALL[world.pick(Talk::ALL.len())];
            let user = world.pick(world.plan.users);
            world.clients.push(Client::new(talk, user, false));
        }
        for slot in 0..world.plan.hosts {
            world.give_birth(slot);
        }
        world
    }

    pub(super) fn pick(&mut self, end: usize) -> usize {
        self.dice.random_range(0..end)
    }

    /// One in so many times.
    pub(super) fn seldom(&mut self, one_in: u32) -> bool {
        self.dice.random_range(0..one_in) == 0
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.redis.now_ms
    }

    /// A host comes to the fleet, and with it those who hear everything there.
    pub(super) fn give_birth(&mut self, slot: usize) {
        let number = self.records.len() as u32;
        let shards = 1 + self.pick(SHARDS_MAX);
        let since_ms = self.now_ms() - host::START_UNIX_MS;
        let now = Now { ns: (1_000 + since_ms) * 1_000_000, unix_ms: self.now_ms() };
        let mut site = Site::new(&self.plan, shards, self.seed, number, now);
        self.remember_host(site.stats.clone());
        for talk in Talk::ALL {
            let who = self.clients.len();
            site.witnesses[talk.index()] = who;
            self.clients.push(Client::new(talk, self.tokens.len(), true));
            self.tokens.push(Talk::token(&format!("u{}", self.tokens.len())));
        }
        self.slots[slot] = Some(site);
    }

    fn remember_host(&mut self, stats: Arc<RelayStats>) {
        self.relay_stats.push(stats);
        self.records.push(Record { fate: Fate::Alive, orders: Default::default(), delivered: Default::default() });
    }

    /// A server of another kind says something in a room, by the stream.
    pub(super) fn speak_as_other(&mut self) {
        let (room, number) = (self.pick(ROOMS), self.said.len() as u32);
        let place = place(Talk::Rooms, room);
        self.said.push(Said { origin: OTHER, place, step: self.step, by: usize::MAX, over: 0 });
        self.records[OTHER as usize].orders[place].push(number);
        let event = format!(r#"["message",{{"roomId":"r{room}","content":"m{number}"}}]"#);
        let data = format!(r#"{{"packet":{{"type":2,"data":{event},"nsp":"/"}},"opts":{{"rooms":["r{room}"],"except":[]}}}}"#);
        self.redis.add("socket.io", &[("uid", "a-node-server-id"), ("nsp", "/"), ("type", "3"), ("data", &data)]);
    }

    /// True exactly when clients may come: it is heard from the beginning what they hear.
    pub(super) fn is_ready(&self, slot: usize) -> bool {
        let Some(site) = &self.slots[slot] else { return false };
        site.drains_until_ms.is_none() && site.witnesses.iter().all(|who| self.clients[*who].open.iter().all(Option::is_some))
    }

    pub(super) fn is_stopped(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_none_or(|site| site.stopped_until_ms > self.now_ms())
    }

    /// One thing happens somewhere.
    pub(super) fn act(&mut self) {
        self.step += 1;
        self.counts.steps += 1;
        let slot = self.pick(self.slots.len());
        match self.dice.random_range(0..1_000) {
            100..250 | 0..60 => {
                let who = self.pick(self.plan.clients);
                self.do_something(who);
            }
            60..72 => {
                let ms = self.dice.random_range(1..250);
                self.advance(ms);
            }
            72..76 => self.misbehave(slot),
            76..78 => {
                // For a while one link drags.
                let (way, steps) = (self.pick(super::site::WAYS), self.dice.random_range(10..400));
                let until = self.step + steps;
                if let Some(site) = &mut self.slots[slot] {
                    site.stuck[way] = until;
                }
            }
            78 => self.settle(),
            // For a while nothing is in anybody's way.
            80..86 => {
                for _ in 0..4 {
                    self.settle();
                    let ms = self.dice.random_range(100..300);
                    self.advance(ms);
                }
                self.settle();
            }
            79 if self.plan.mode == RelayMode::Streams => self.speak_as_other(),
            _ => {
                self.deliver(slot);
            }
        }
    }

    fn deliver(&mut self, slot: usize) -> bool {
        if self.is_stopped(slot) {
            return false;
        }
        let step = self.step;
        let World { slots, redis, dice, .. } = self;
        let has_moved = slots[slot].as_mut().is_some_and(|site| site.go_on_somewhere(redis, dice, step));
        if has_moved {
            self.after(slot);
        }
        has_moved
    }

    /// Something has moved on a host.
    pub(super) fn after(&mut self, slot: usize) {
        self.publish();
        self.listen(slot);
    }

    /// What was published is on its way to who listens.
    pub(super) fn publish(&mut self) {
        if self.redis.published.is_empty() {
            return;
        }
        for published in std::mem::take(&mut self.redis.published) {
            self.trace.note(&published.payload);
            let key = (crate::relay::fake::sort(published.kind), published.channel);
            let Some(listeners) = self.redis.listeners.get(&key).filter(|listeners| !listeners.is_empty()) else { continue };
            for site in self.slots.iter_mut().flatten().filter(|site| listeners.contains(&(site.number as usize))) {
                let (channel, payload) = (key.1.clone(), published.payload.clone());
                site.hear(Push::Message { kind: published.kind, channel, pattern: None, payload });
            }
        }
    }

    /// Time passes everywhere, but on hosts that stand still.
    pub(super) fn advance(&mut self, ms: u64) {
        self.redis.now_ms += ms;
        let (now_ms, since_ms) = (self.now_ms(), self.now_ms() - host::START_UNIX_MS);
        for slot in 0..self.slots.len() {
            if self.is_stopped(slot) {
                continue;
            }
            let Some(site) = &mut self.slots[slot] else { continue };
            // Who has stood still finds all of the time gone at once; the wall clock may be another's.
            let ns = (1_000 + since_ms) * 1_000_000;
            site.host.now.unix_ms += (ns - site.host.now.ns) / 1_000_000;
            site.host.now.ns = ns;
            site.handle_timeouts();
            self.reconnect(slot, now_ms);
            self.go_on_draining(slot);
            self.call_witnesses(slot);
            self.after(slot);
        }
        self.judge_bounds();
    }

    /// Witnesses come as soon as the host hears the others; also those who were told to come again later.
    fn call_witnesses(&mut self, slot: usize) {
        let is_wanted = |site: &&Site| site.drains_until_ms.is_none() && !self.is_over && site.hears_others();
        let Some(site) = self.slots[slot].as_ref().filter(is_wanted) else { return };
        for who in site.witnesses {
            if self.clients[who].at.is_none() {
                self.come(who, slot);
            }
        }
    }

    /// What is cut may be there again.
    fn reconnect(&mut self, slot: usize, now_ms: u64) {
        let may = self.redis_away_until_ms <= now_ms && (self.is_quiet || self.seldom(3));
        let may_read = self.plan.mode == RelayMode::Streams && self.redis_away_until_ms <= now_ms && (self.is_quiet || self.seldom(3));
        let Some(site) = &mut self.slots[slot] else { return };
        match site.link {
            Link::Cut { until_ms } if until_ms <= now_ms && may => site.connect(),
            Link::Silent { until_ms } if until_ms <= now_ms => site.set_silent(None),
            _ => {}
        }
        let is_cut = matches!(site.link, Link::Cut { until_ms } if until_ms > now_ms);
        if may_read && !is_cut && !site.is_reader_up {
            site.connect_reader();
        }
    }

    /// Until nothing moves any more that can.
    pub(super) fn settle(&mut self) {
        loop {
            let mut has_moved = false;
            for slot in 0..self.slots.len() {
                if self.is_stopped(slot) {
                    continue;
                }
                let mut here = false;
                for way in 0..super::site::WAYS {
                    let World { slots, redis, counts, .. } = self;
                    let Some(site) = &mut slots[slot] else { continue };
                    for shard in 0..site.shards() {
                        for other in 0..site.shards() {
                            while site.go_on(redis, way, shard, other) {
                                here = true;
                                counts.steps += 1;
                            }
                        }
                    }
                }
                if here {
                    self.after(slot);
                }
                has_moved |= here;
            }
            if !has_moved {
                return;
            }
        }
    }

    /// A client comes to a host, with what it remembers.
    pub(super) fn come(&mut self, who: usize, slot: usize) {
        let Some(site) = &mut self.slots[slot] else { return };
        let client = &mut self.clients[who];
        let token = &self.tokens[client.user];
        let shard = self.dice.random_range(0..site.shards());
        let at = site.host.connect(shard, &client.talk.head(token));
        client.at = Some(At { slot, number: site.number, client: at });
        self.haunts.entry(client.user).or_default().insert(site.number);
        if let Some(text) = client.talk.connect(token, &client.pid, &client.offset) {
            site.host.say(at, &text);
        }
        let shard = site.host.clients[at].shard;
        site.collect_shard(shard);
        self.after(slot);
    }

    /// A client says something to its host, if that reads at all; false when it is not there or does not.
    pub(super) fn say(&mut self, who: usize, text: &str) -> bool {
        let Some(at) = self.clients[who].at else { return false };
        let Some(site) = self.slots[at.slot].as_mut().filter(|site| site.number == at.number) else { return false };
        if site.longest_lane() >= LANE_PARCELS_FULL {
            return false;
        }
        site.host.say(at.client, text);
        let shard = site.host.clients[at.client].shard;
        site.collect_shard(shard);
        true
    }

    fn do_something(&mut self, who: usize) {
        let room = self.pick(ROOMS);
        let dice = self.pick(100);
        let Some(at) = self.clients[who].at else {
            let slot = self.pick(self.slots.len());
            if dice < 70 && self.is_ready(slot) && !self.is_stopped(slot) {
                self.come(who, slot);
            }
            return;
        };
        if self.is_stopped(at.slot) {
            return;
        }
        let (is_in, is_inside) = (self.clients[who].is_in, self.clients[who].is_inside(room));
        match dice {
            0..3 => self.break_off(who),
            3..6 if self.plan.faults.slow => {
                // Also one that reads nothing any more.
                let capacity = if self.seldom(2) { 0 } else { self.pick(3_000) };
                self.set_capacity(who, capacity, true);
            }
            6..9 => self.set_capacity(who, usize::MAX, false),
            9..40 if is_in && !is_inside && !self.clients[who].entering[room] => self.enter(who, room),
            40..46 if is_in && is_inside => self.leave(who, room),
            // Now and then into a room it is not in: refused, and heard by nobody.
            46..100 if is_in && (is_inside || self.seldom(20)) => self.speak(who, room),
            _ => {}
        }
    }

    pub(super) fn enter(&mut self, who: usize, room: usize) {
        let text = self.clients[who].talk.enter(room);
        self.clients[who].entering[room] = true;
        if !self.say(who, &text) {
            self.clients[who].entering[room] = false;
        } else if let Some(at) = self.clients[who].at {
            self.after(at.slot);
        }
    }

    fn leave(&mut self, who: usize, room: usize) {
        let text = self.clients[who].talk.leave(room);
        if self.say(who, &text) {
            if let Some(stay) = self.clients[who].stay(room) {
                stay.leaves = true;
            }
            let slot = self.clients[who].at.map(|at| at.slot);
            slot.into_iter().for_each(|slot| self.after(slot));
        }
    }

    pub(super) fn speak(&mut self, who: usize, room: usize) {
        let Some(at) = self.clients[who].at else { return };
        let number = self.said.len() as u32;
        let filling = self.pick(300);
        let talk = self.clients[who].talk;
        self.said.push(Said { origin: at.number, place: place(talk, room), step: self.step, by: who, over: at.client });
        self.clients[who].said.push(number);
        self.counts.said += 1;
        if !self.say(who, &talk.message(room, number, filling)) {
            // Nobody has read it.
            self.said.pop();
            self.clients[who].said.pop();
            self.counts.said -= 1;
            return;
        }
        self.after(at.slot);
    }

    pub(super) fn break_off(&mut self, who: usize) {
        let Some(at) = self.clients[who].at else { return };
        self.listen_to(who);
        if let Some(site) = self.slots[at.slot].as_mut().filter(|site| site.number == at.number && self.clients[who].at.is_some()) {
            let shard = site.host.clients[at.client].shard;
            site.host.hang_up(at.client);
            site.collect_shard(shard);
            self.clients[who].lose_transport();
        }
        self.after(at.slot);
    }

    pub(super) fn set_capacity(&mut self, who: usize, capacity: usize, is_slow: bool) {
        let Some(at) = self.clients[who].at else { return };
        self.clients[who].is_slow = is_slow;
        let Some(site) = self.slots[at.slot].as_mut().filter(|site| site.number == at.number) else { return };
        site.host.unblock(at.client, capacity);
        let shard = site.host.clients[at.client].shard;
        site.collect_shard(shard);
        self.after(at.slot);
    }
}
