//! One host of the fleet and its links: between its shards, between them and its relay, and from there to Redis. Each link keeps its order, and
//! moves when the simulation says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::plan::Plan;
use super::talk::Talk;
use crate::ids::{EndpointId, ShardId};
use crate::limits::RELAY_RETURN_MS;
use crate::relay::core::{Core, Listening, Tag};
use crate::relay::fake::{Fake, sort};
use crate::relay::frozen::FrozenRelay;
use crate::relay::handle::{self, FleetHandle};
use crate::relay::host::{self, Host};
use crate::relay::request::{Lost, Push, Reply, Request};
use crate::relay::words::{Hello, HostId};
use crate::shard::outward::Outward;
use crate::shard::parcel::Parcel;
use crate::stats::RelayStats;

/// Things that move on a host.
pub(super) const WAYS: usize = 9;
const LANES: usize = 0;
const OUTWARD: usize = 1;
const INWARD: usize = 2;
const ASKED: usize = 3;
const ANSWERED: usize = 4;
const READING: usize = 5;
const PUSHED: usize = 6;
const READ: usize = 7;
const LISTENING: usize = 8;

/// How its connections to Redis are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// Until then nobody can connect.
    Cut {
        until_ms: u64,
    },
    Up,
    /// Connected, and Redis says nothing.
    Silent {
        until_ms: u64,
    },
}

/// See the module.
pub(super) struct Site {
    /// Hosts are numbered as they are born.
    pub(super) number: u32,
    pub(super) host: Host,
    pub(super) own: Hello,
    pub(super) core: Core,
    pub(super) stats: Arc<RelayStats>,
    pub(super) link: Link,
    /// There in streams mode: the connection that reads.
    pub(super) is_reader_up: bool,
    /// It stands still until then.
    pub(super) stopped_until_ms: u64,
    /// It ends in good order, at this moment at the latest.
    pub(super) drains_until_ms: Option<u64>,
    /// By way: nothing moves there before this step.
    pub(super) stuck: [u64; WAYS],
    /// By room of the simulation: who hears everything there.
    pub(super) witnesses: [usize; Talk::ALL.len()],
    seed: u64,
    random: [u8; 32],
    plan: Plan,
    _handle: FleetHandle,
    /// What shards have said waits for a first connection after a reload until then.
    returns_until_ms: Option<u64>,
    /// By shard: what it has said to the relay, and what the relay has sent it.
    outward: Vec<VecDeque<Outward>>,
    inward: Vec<VecDeque<Parcel>>,
    /// What Redis has not been asked yet, and what it has answered.
    asked: VecDeque<(Tag, Request)>,
    answered: VecDeque<(Tag, Result<Vec<Reply>, Lost>)>,
    listening: VecDeque<Listening>,
    pushed: VecDeque<Push>,
    reading: Option<Request>,
    read: Option<Result<Vec<Reply>, Lost>>,
}

impl Site {
    pub(super) fn new(plan: &Plan, shards: usize, seed: u64, number: u32, now: crate::time::Now) -> Site {
        let mut host = Host::new(plan.config(shards), seed.wrapping_mul(1_000).wrapping_add(u64::from(number)));
        host.now = now;
        let names = Talk::ALL.map(|talk| talk.name().to_owned());
        let own = Hello::new(HostId::new(seed.wrapping_mul(1_000).wrapping_add(u64::from(number) + 1)), shards, "", names);
        let mut random = [number as u8 + 1; 32];
        random[..8].copy_from_slice(&seed.to_le_bytes());
        random[8..12].copy_from_slice(&number.to_le_bytes());
        let stats = Arc::<RelayStats>::default();
        let (core, handle) = core_of(plan, &host, &own, &stats, random);
        Site {
            number,
            host,
            own,
            core,
            stats,
            link: Link::Cut { until_ms: 0 },
            is_reader_up: false,
            stopped_until_ms: 0,
            drains_until_ms: None,
            stuck: [0; WAYS],
            witnesses: [usize::MAX; Talk::ALL.len()],
            seed,
            random,
            plan: plan.clone(),
            _handle: handle,
            returns_until_ms: None,
            outward: (0..shards).map(|_| VecDeque::new()).collect(),
            inward: (0..shards).map(|_| VecDeque::new()).collect(),
            asked: VecDeque::new(),
            answered: VecDeque::new(),
            listening: VecDeque::new(),
            pushed: VecDeque::new(),
            reading: None,
            read: None,
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.host.shards.len()
    }

    /// True exactly when what others say from now on is heard here.
    pub(super) fn hears_others(&self) -> bool {
        self.core.is_up && self.core.streams.as_ref().is_none_or(|streams| streams.taken().is_some())
    }

    /// Questions of rooms' homes that went on without an answer.
    pub(super) fn unanswered(&self) -> u64 {
        self.host.stats.iter().map(|stats| stats.consults_unanswered.read() + stats.consults_unasked.read()).sum()
    }

    pub(super) fn connect(&mut self) {
        let now = self.host.now;
        self.link = Link::Up;
        self.core.handle_connected(now);
        self.return_now();
        self.collect_core();
    }

    pub(super) fn connect_reader(&mut self) {
        self.is_reader_up = true;
        self.core.handle_reader_connected();
        self.collect_core();
    }

    fn return_now(&mut self) {
        if self.returns_until_ms.take().is_some() {
            self.core.tell_whether_up();
        }
    }

    /// The connections go; of what was asked some was done.
    pub(super) fn lose(&mut self, redis: &mut Fake, done: usize, until_ms: u64) {
        self.lose_reader();
        if matches!(self.link, Link::Cut { .. }) {
            self.link = Link::Cut { until_ms };
            return;
        }
        self.link = Link::Cut { until_ms };
        self.unlisten(redis);
        for (_, request) in self.asked.iter().take(done) {
            let _ = redis.perform(request);
        }
        let lost = self.answered.drain(..).map(|(tag, _)| tag).chain(self.asked.drain(..).map(|(tag, _)| tag)).collect::<Vec<_>>();
        let now = self.host.now;
        self.core.handle_lost(now);
        for tag in lost {
            self.core.handle_reply(now, tag, Err(Lost::Connection));
        }
        self.collect_core();
    }

    pub(super) fn lose_reader(&mut self) {
        if std::mem::replace(&mut self.is_reader_up, false) {
            self.core.handle_reader_lost();
            if self.reading.take().is_some() || self.read.take().is_some() {
                self.core.handle_read(self.host.now, Err(Lost::Connection));
            }
            self.collect_core();
        }
    }

    /// Redis says nothing any more, or speaks again.
    pub(super) fn set_silent(&mut self, until_ms: Option<u64>) {
        self.link = until_ms.map_or(Link::Up, |until_ms| Link::Silent { until_ms });
        self.core.set_up(self.host.now, until_ms.is_none());
        self.collect_core();
    }

    pub(super) fn unlisten(&mut self, redis: &mut Fake) {
        let number = self.number as usize;
        for listeners in redis.listeners.values_mut() {
            listeners.remove(&number);
        }
        self.listening.clear();
        self.pushed.clear();
    }

    /// It vanishes; of what it had asked some is done.
    pub(super) fn vanish(mut self, redis: &mut Fake, done: usize) -> Site {
        self.unlisten(redis);
        for (_, request) in self.asked.drain(..).take(done) {
            let _ = redis.perform(&request);
        }
        self
    }

    /// Time has come so far.
    pub(super) fn handle_timeouts(&mut self) {
        let now = self.host.now;
        for shard in 0..self.shards() {
            self.host.shards[shard].handle_timeouts(now);
            self.collect_shard(shard);
        }
        if self.returns_until_ms.is_some_and(|until_ms| until_ms <= now.ms()) {
            self.return_now();
        }
        self.core.handle_timeouts(now);
        self.collect_core();
        self.core.count();
    }

    /// Nothing is taken in, what is under way is finished, or given up after so many rounds; of what Redis is asked then some is done.
    fn come_to_rest(&mut self, redis: &mut Fake, rounds: usize, done: usize) {
        self.core.set_resting(true);
        let shards = self.shards();
        for round in 0.. {
            assert!(round < 1_000, "no rest: {:?}", self.host.shards);
            let (now, is_last) = (self.host.now, round >= rounds);
            let mut has_moved = false;
            for shard in 0..shards {
                if is_last {
                    self.host.shards[shard].wait_no_longer(now);
                }
                has_moved |= !self.host.shards[shard].come_to_rest(now);
                self.collect_shard(shard);
                for other in 0..shards {
                    for way in [LANES, OUTWARD, INWARD, ASKED, ANSWERED] {
                        has_moved |= (!is_last || way <= INWARD) && self.go_on(redis, way, shard, other);
                    }
                }
            }
            if is_last {
                self.core.wait_no_longer(now);
            }
            self.collect_core();
            has_moved |= self.inward.iter().any(|parcels| !parcels.is_empty());
            has_moved |= self.returns_until_ms.is_none() && self.outward.iter().any(|said| !said.is_empty());
            if !has_moved && self.core.is_at_rest() && (is_last || self.core.is_told()) {
                break;
            }
        }
        for (_, request) in self.asked.drain(..).take(done) {
            let _ = redis.perform(&request);
        }
    }

    /// The process is replaced by one of so many shards. Its connections to Redis are not there yet.
    pub(super) fn reload(&mut self, redis: &mut Fake, shards: usize, rounds: usize, done: usize) {
        // A process that has just come goes on first.
        self.return_now();
        self.come_to_rest(redis, rounds, done);
        let settings = self.plan.relay();
        let written = self.core.freeze(&settings, self.pushed.iter()).encode();
        // What the old one has of the world must go with it.
        let nobody = Host::new(host::config(1, Vec::new()), 0);
        self.core = core_of(&self.plan, &nobody, &self.own, &self.stats, self.random).0;
        self.host.reload(shards);
        self.random[31] = self.random[31].wrapping_add(7);
        let frozen = FrozenRelay::decode(&written, &settings).expect("it was just written");
        assert_eq!(frozen.host, self.own.host.as_str());
        let names = Talk::ALL.map(|talk| talk.name().to_owned());
        self.own = Hello::new(self.own.host.clone(), shards, "", names);
        (self.core, self._handle) = core_of(&self.plan, &self.host, &self.own, &self.stats, self.random);
        let now = self.host.now;
        self.returns_until_ms = frozen.is_up.then(|| now.ms() + RELAY_RETURN_MS);
        self.host.world.is_relayed.store(frozen.is_up, Ordering::Relaxed);
        (self.link, self.is_reader_up) = (Link::Cut { until_ms: 0 }, false);
        self.unlisten(redis);
        self.core.thaw(now, frozen, &|endpoint| Some(EndpointId(endpoint)));
        (self.reading, self.read) = (None, None);
        self.asked.clear();
        self.answered.clear();
        self.outward = (0..shards).map(|_| VecDeque::new()).collect();
        self.inward = (0..shards).map(|_| VecDeque::new()).collect();
        self.collect_all();
    }

    pub(super) fn collect_all(&mut self) {
        for shard in 0..self.shards() {
            self.collect_shard(shard);
        }
        self.collect_core();
    }

    /// What a shard has made goes onto its way.
    pub(super) fn collect_shard(&mut self, shard: usize) {
        // Whose connection had ended before a reload may have been on one that is no more.
        if shard >= self.shards() {
            return;
        }
        self.host.pump(shard);
        if let Some(said) = self.host.shards[shard].poll_outward() {
            self.outward[shard].extend(said);
        }
    }

    /// What the relay has made goes onto its way.
    pub(super) fn collect_core(&mut self) {
        while let Some((ShardId(to), parcel)) = self.core.poll_parcel() {
            self.inward[usize::from(to)].push_back(parcel);
        }
        while self.core.poll_notice().is_some() {}
        if self.link == Link::Up {
            while let Some(listening) = self.core.poll_listening() {
                self.listening.push_back(listening);
            }
            while let Some(request) = self.core.poll_request(self.host.now) {
                self.asked.push_back(request);
            }
        }
        if self.is_reader_up && self.reading.is_none() && self.read.is_none() && !self.core.is_resting {
            self.reading = self.core.poll_read(self.host.now);
        }
    }

    /// One thing goes on somewhere; false when there was nothing to go on.
    pub(super) fn go_on_somewhere(&mut self, redis: &mut Fake, dice: &mut StdRng, step: u64) -> bool {
        for _ in 0..6 {
            let way = dice.random_range(0..WAYS);
            let (shard, other) = (dice.random_range(0..self.shards()), dice.random_range(0..self.shards()));
            if self.stuck[way] <= step && self.go_on(redis, way, shard, other) {
                return true;
            }
        }
        false
    }

    /// One thing goes on; false when there was nothing of that kind.
    pub(super) fn go_on(&mut self, redis: &mut Fake, way: usize, shard: usize, other: usize) -> bool {
        let now = self.host.now;
        match way {
            LANES => {
                let has_moved = self.host.step(shard, other);
                if has_moved {
                    self.collect_shard(other);
                }
                return has_moved;
            }
            INWARD => {
                let Some(parcel) = self.inward[shard].pop_front() else { return false };
                self.host.shards[shard].handle_parcel(now, parcel);
                self.collect_shard(shard);
                return true;
            }
            OUTWARD if self.returns_until_ms.is_none() => {
                let Some(outward) = self.outward[shard].pop_front() else { return false };
                self.core.handle_outward(now, ShardId(shard as u8), outward);
            }
            ASKED if self.link == Link::Up => {
                let Some((tag, request)) = self.asked.pop_front() else { return false };
                let replies = redis.perform(&request);
                self.answered.push_back((tag, Ok(replies)));
                return true;
            }
            ANSWERED if self.link == Link::Up => {
                let Some((tag, replies)) = self.answered.pop_front() else { return false };
                self.core.handle_reply(now, tag, replies);
            }
            LISTENING if self.link == Link::Up => return self.listen(redis),
            PUSHED if self.link == Link::Up => {
                let Some(push) = self.pushed.pop_front() else { return false };
                self.core.handle_push(now, push);
            }
            READING => {
                let Some(request) = self.reading.take() else { return false };
                let replies = redis.perform(&request);
                // It waits until there is something.
                if replies == [Reply::Nil] {
                    self.reading = Some(request);
                    return false;
                }
                self.read = Some(Ok(replies));
                return true;
            }
            READ => {
                let Some(replies) = self.read.take() else { return false };
                self.core.handle_read(now, replies);
            }
            _ => return false,
        }
        self.collect_core();
        true
    }

    /// Redis takes a wish to listen.
    fn listen(&mut self, redis: &mut Fake) -> bool {
        let Some(Listening { kind, names, is_on }) = self.listening.pop_front() else { return false };
        for name in names.into_iter().map(String::into_bytes) {
            let listeners = redis.listeners.entry((sort(kind), name.clone())).or_default();
            if is_on {
                listeners.insert(self.number as usize);
                self.pushed.push_back(Push::Subscribed { kind, name });
            } else {
                listeners.remove(&(self.number as usize));
                self.pushed.push_back(Push::Unsubscribed { kind, name });
            }
        }
        true
    }

    pub(super) fn hear(&mut self, push: Push) {
        self.pushed.push_back(push);
    }

    /// All shards have ended: it takes its leave of the fleet, as far as Redis hears it.
    pub(super) fn take_leave(&mut self, redis: &mut Fake) {
        self.collect_all();
        for _ in 0..1_000 {
            let mut has_moved = false;
            for shard in 0..self.shards() {
                for other in 0..self.shards() {
                    for way in [LANES, OUTWARD] {
                        has_moved |= self.go_on(redis, way, shard, other);
                    }
                }
            }
            if !has_moved {
                break;
            }
        }
        self.core.take_leave(self.host.now);
        for _ in 0..1_000 {
            self.collect_core();
            if self.core.has_left() {
                return;
            }
            let has_asked = self.go_on(redis, ASKED, 0, 0);
            let has_heard = self.go_on(redis, ANSWERED, 0, 0) | self.go_on(redis, LISTENING, 0, 0) | self.go_on(redis, PUSHED, 0, 0);
            if !has_asked && !has_heard {
                return;
            }
        }
        panic!("seed {}: it never leaves", self.seed);
    }

    /// Bytes that wait on the fullest lane are counted in parcels here.
    pub(super) fn longest_lane(&self) -> usize {
        self.host.lanes.iter().flatten().map(VecDeque::len).max().unwrap_or(0)
    }
}

fn core_of(plan: &Plan, host: &Host, own: &Hello, stats: &Arc<RelayStats>, random: [u8; 32]) -> (Core, FleetHandle) {
    let (handle, port) = handle::channel(own.clone());
    (Core::new(host.world.clone(), stats.clone(), &plan.relay(), own, port, random), handle)
}
