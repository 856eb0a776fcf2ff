//! Two hosts with two shards each, a Redis of the test's own between them and a server of another kind that talks along, and clients that break off
//! and come back, on this host or the other. Everything between is delivered at random: parcels on their lanes, what shards say to the relay,
//! requests and answers of Redis, which also goes away for a while and may or may not have done what it was asked. Whatever happens, a
//! client hears what each of three speakers says without a gap and without hearing anything twice, or it is told that it starts anew.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::core::{Core, Tag};
use super::fake::Fake;
use super::frozen::FrozenRelay;
use super::handle;
use super::host::{self, Got, Host};
use super::request::{Kind, Lost, Push, Reply, Request};
use super::words::{Hello, HostId};
use crate::config::{DialectKind, Endpoint, Relay, RelayMode};
use crate::ids::{EndpointId, ShardId};
use crate::shard::outward::Outward;
use crate::shard::parcel::Parcel;
use crate::stats::RelayStats;

const HOSTS: usize = 2;
const SHARDS: usize = 2;
const CLIENTS: usize = 4;
const STEPS: usize = 1_500;
const JOIN: &str = r#"["room:join",{"roomId":"r"}]"#;

struct Site {
    host: Host,
    own: Hello,
    random: [u8; 32],
    core: Core,
    _handle: handle::FleetHandle,
    /// By shard: what it has said to the relay.
    outward: Vec<VecDeque<Outward>>,
    /// By shard: what the relay has sent it.
    inward: Vec<VecDeque<Parcel>>,
    /// What Redis has not been asked yet, and what it has answered.
    asked: VecDeque<(Tag, Request)>,
    answered: VecDeque<(Tag, Result<Vec<Reply>, Lost>)>,
    /// What it listens to, and what it has not heard yet.
    listened: HashSet<Vec<u8>>,
    pushed: VecDeque<Push>,
    reading: Option<Request>,
    read: Option<Result<Vec<Reply>, Lost>>,
    is_connected: bool,
    teller: usize,
    told: u64,
}

/// A client as the library would be: what it knows of itself is what it has heard.
#[derive(Default)]
struct Client {
    at: Option<(usize, usize)>,
    pid: String,
    sid: String,
    offset: String,
    /// The host where it was last.
    site: usize,
    last: HashMap<String, u64>,
    heard_of_own: u64,
    recovered: u64,
    moved: u64,
}

struct Fleet {
    seed: u64,
    random: StdRng,
    redis: Fake,
    sites: Vec<Site>,
    clients: Vec<Client>,
    other: u64,
    reloads: u64,
}

impl Site {
    fn new(seed: u64, number: usize) -> Site {
        let rooms = Endpoint { recovery_ms: 60_000, ..host::endpoint("rooms", DialectKind::Rooms, "/") };
        let config = crate::config::Config { relay: Some(settings()), ..host::config(SHARDS, vec![rooms]) };
        let host = Host::new(config, seed * 10 + number as u64);
        let own = Hello::new(HostId::new(seed * 10 + number as u64 + 1), SHARDS, "", ["rooms".to_owned()]);
        let mut random = [number as u8 + 1; 32];
        random[..8].copy_from_slice(&seed.to_le_bytes());
        let (core, handle) = core_of(&host, &own, random);
        Site {
            host,
            own,
            random,
            core,
            _handle: handle,
            outward: (0..SHARDS).map(|_| VecDeque::new()).collect(),
            inward: (0..SHARDS).map(|_| VecDeque::new()).collect(),
            asked: VecDeque::new(),
            answered: VecDeque::new(),
            listened: HashSet::new(),
            pushed: VecDeque::new(),
            reading: None,
            read: None,
            is_connected: false,
            teller: 0,
            told: 0,
        }
    }

    fn connect(&mut self) {
        self.is_connected = true;
        self.core.handle_connected(self.host.now);
        self.core.handle_reader_connected();
    }

    /// The connections go; of what was asked some was done.
    fn lose(&mut self, redis: &mut Fake, done: usize) {
        self.is_connected = false;
        self.listened.clear();
        self.pushed.clear();
        for (at, (_, request)) in self.asked.iter().enumerate() {
            if at < done {
                let _ = redis.perform(request);
            }
        }
        let lost = self.answered.drain(..).map(|(tag, _)| tag).chain(self.asked.drain(..).map(|(tag, _)| tag)).collect::<Vec<_>>();
        self.core.handle_lost(self.host.now);
        self.core.handle_reader_lost();
        for tag in lost {
            self.core.handle_reply(self.host.now, tag, Err(Lost::Connection));
        }
        if self.reading.take().is_some() || self.read.take().is_some() {
            self.core.handle_read(self.host.now, Err(Lost::Connection));
        }
    }

    /// Nothing is taken in, what is under way is finished, or given up after so many rounds; of what Redis is asked then some is done.
    fn come_to_rest(&mut self, redis: &mut Fake, rounds: usize, done: usize) {
        self.core.set_resting(true);
        for round in 0.. {
            assert!(round < 1_000, "no rest: {:?}", self.host.shards);
            let (now, is_last) = (self.host.now, round >= rounds);
            let mut has_moved = false;
            for shard in 0..SHARDS {
                if is_last {
                    self.host.shards[shard].wait_no_longer(now);
                }
                has_moved |= !self.host.shards[shard].come_to_rest(now);
                for other in 0..SHARDS {
                    for what in 0..5 {
                        has_moved |= (!is_last || what < 3) && self.go_on(redis, what, shard, other);
                    }
                }
            }
            if is_last {
                self.core.wait_no_longer(now);
            }
            self.collect();
            has_moved |= self.inward.iter().any(|parcels| !parcels.is_empty()) || self.outward.iter().any(|said| !said.is_empty());
            if !has_moved && self.core.is_at_rest() && (is_last || self.core.is_told()) {
                break;
            }
        }
        for (_, request) in self.asked.drain(..).take(done) {
            let _ = redis.perform(&request);
        }
    }

    /// The process is replaced. Its connections are not there yet.
    fn reload(&mut self, redis: &mut Fake, rounds: usize, done: usize) {
        self.come_to_rest(redis, rounds, done);
        let written = self.core.freeze(&settings(), self.pushed.iter()).encode();
        // What the old one has of the world must go with it.
        self.core = core_of(&Host::new(host::config(1, Vec::new()), 0), &self.own, self.random).0;
        self.host.reload(SHARDS);
        self.random[31] = self.random[31].wrapping_add(7);
        let frozen = FrozenRelay::decode(&written, &settings()).expect("it was just written");
        assert_eq!(frozen.host, self.own.host.as_str());
        (self.core, self._handle) = core_of(&self.host, &self.own, self.random);
        self.host.world.is_relayed.store(frozen.is_up, std::sync::atomic::Ordering::Relaxed);
        self.core.thaw(self.host.now, frozen, &|endpoint| Some(EndpointId(endpoint)));
        (self.reading, self.read) = (None, None);
        self.listened.clear();
        self.pushed.clear();
        self.asked.clear();
        self.answered.clear();
    }

    /// What shards and the relay have made goes onto its way.
    fn collect(&mut self) {
        for shard in 0..SHARDS {
            self.host.pump(shard);
            if let Some(said) = self.host.shards[shard].poll_outward() {
                self.outward[shard].extend(said);
            }
        }
        while let Some((ShardId(to), parcel)) = self.core.poll_parcel() {
            self.inward[usize::from(to)].push_back(parcel);
        }
        while let Some(listening) = self.core.poll_listening() {
            for name in listening.names.into_iter().map(String::into_bytes).filter(|_| listening.is_on) {
                self.listened.insert(name.clone());
                self.pushed.push_back(Push::Subscribed { kind: listening.kind, name });
            }
        }
        if self.is_connected {
            while let Some(request) = self.core.poll_request(self.host.now) {
                self.asked.push_back(request);
            }
            if self.reading.is_none() && self.read.is_none() {
                self.reading = self.core.poll_read(self.host.now);
            }
        }
    }

    /// One thing goes on; false when there was nothing of that kind.
    fn go_on(&mut self, redis: &mut Fake, what: usize, shard: usize, other: usize) -> bool {
        self.collect();
        let now = self.host.now;
        match what {
            0 => self.host.step(shard, other),
            1 => match self.outward[shard].pop_front() {
                Some(outward) => {
                    self.core.handle_outward(now, ShardId(shard as u8), outward);
                    true
                }
                None => false,
            },
            2 => match self.inward[shard].pop_front() {
                Some(parcel) => {
                    self.host.shards[shard].handle_parcel(now, parcel);
                    true
                }
                None => false,
            },
            3 => match self.asked.pop_front() {
                Some((tag, request)) => {
                    let replies = redis.perform(&request);
                    self.answered.push_back((tag, Ok(replies)));
                    true
                }
                None => false,
            },
            4 => match self.answered.pop_front() {
                Some((tag, replies)) => {
                    self.core.handle_reply(now, tag, replies);
                    true
                }
                None => false,
            },
            5 => match self.reading.take() {
                Some(request) => {
                    let replies = redis.perform(&request);
                    // It waits until there is something.
                    if replies == [Reply::Nil] {
                        self.reading = Some(request);
                        return false;
                    }
                    self.read = Some(Ok(replies));
                    true
                }
                None => false,
            },
            6 => match self.pushed.pop_front() {
                Some(push) => {
                    self.core.handle_push(now, push);
                    true
                }
                None => false,
            },
            _ => match self.read.take() {
                Some(replies) => {
                    self.core.handle_read(now, replies);
                    true
                }
                None => false,
            },
        }
    }
}

impl Fleet {
    fn new(seed: u64) -> Fleet {
        let mut fleet = Fleet {
            seed,
            random: StdRng::seed_from_u64(seed),
            redis: Fake::new(host::START_UNIX_MS),
            sites: (0..HOSTS).map(|number| Site::new(seed, number)).collect(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            other: 0,
            reloads: 0,
        };
        for site in 0..HOSTS {
            fleet.sites[site].connect();
            fleet.settle();
            let teller = fleet.sites[site].host.connect(1, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
            fleet.sites[site].teller = teller;
            fleet.sites[site].host.say(teller, &connect(&format!("teller-{site}"), &Client::default()));
            fleet.settle();
            fleet.sites[site].host.say(teller, &format!("42{JOIN}"));
            fleet.settle();
        }
        fleet
    }

    fn step(&mut self) {
        let (site, who) = (self.random.random_range(0..HOSTS), self.random.random_range(0..CLIENTS));
        match self.random.random_range(0..120) {
            0..3 => self.tell(site),
            3 => self.tell_as_other(),
            4..6 => self.come(who, site),
            6 => self.break_off(who),
            7 => self.clients[who].at = None,
            8 => self.advance(1, 400),
            9 if self.random.random_range(0..10) == 0 => {
                let done = self.random.random_range(0..4);
                let Fleet { sites, redis, .. } = self;
                if sites[site].is_connected {
                    sites[site].lose(redis, done);
                } else {
                    sites[site].connect();
                }
            }
            10 if self.random.random_range(0..4) == 0 && !self.sites[site].is_connected => self.sites[site].connect(),
            11 => self.settle(),
            // For a while nothing is in anybody's way.
            13..16 => {
                for _ in 0..4 {
                    self.settle();
                    self.advance(100, 300);
                    self.listen();
                }
                self.settle();
            }
            16..18 => self.reload(site),
            // It asks for something that is said to it alone.
            12 => self.ask(who),
            _ => {
                let (what, shard, other) =
                    (self.random.random_range(0..8), self.random.random_range(0..SHARDS), self.random.random_range(0..SHARDS));
                let Fleet { sites, redis, .. } = self;
                sites[site].go_on(redis, what, shard, other);
            }
        }
        self.publish();
        self.listen();
    }

    /// One host's process is replaced, and the others go on meanwhile.
    fn reload(&mut self, site: usize) {
        let rounds = if self.random.random_range(0..3) == 0 { 0 } else { 100 };
        let (done, pause) = (self.random.random_range(0..4), self.random.random_range(0..40));
        let was_connected = self.sites[site].is_connected;
        let Fleet { sites, redis, .. } = self;
        sites[site].reload(redis, rounds, done);
        sites[site].is_connected = false;
        for _ in 0..pause {
            let (what, shard, other) =
                (self.random.random_range(0..8), self.random.random_range(0..SHARDS), self.random.random_range(0..SHARDS));
            if self.random.random_range(0..20) == 0 {
                self.tell((site + 1) % HOSTS);
                self.tell_as_other();
            }
            let Fleet { sites, redis, .. } = self;
            sites[(site + 1) % HOSTS].go_on(redis, what, shard, other);
            self.publish();
        }
        if was_connected {
            self.sites[site].connect();
        }
        self.sites[site].core.tell_whether_up();
        self.reloads += 1;
    }

    /// What was published is on its way to who listens.
    fn publish(&mut self) {
        for (channel, payload) in std::mem::take(&mut self.redis.published) {
            for site in self.sites.iter_mut().filter(|site| site.listened.contains(&channel)) {
                let (channel, payload) = (channel.clone(), payload.clone());
                site.pushed.push_back(Push::Message { kind: Kind::Channel, channel, pattern: None, payload });
            }
        }
    }

    fn advance(&mut self, from_ms: u64, to_ms: u64) {
        let ms = self.random.random_range(from_ms..to_ms);
        self.redis.now_ms += ms;
        for site in &mut self.sites {
            site.host.now.ns += ms * 1_000_000;
            site.host.now.unix_ms += ms;
            let now = site.host.now;
            site.host.shards.iter_mut().for_each(|shard| shard.handle_timeouts(now));
            site.core.handle_timeouts(now);
        }
    }

    fn settle(&mut self) {
        loop {
            let mut has_moved = false;
            for site in &mut self.sites {
                for what in 0..8 {
                    for shard in 0..SHARDS {
                        for other in 0..SHARDS {
                            has_moved |= site.go_on(&mut self.redis, what, shard, other);
                        }
                    }
                }
            }
            self.publish();
            if !has_moved {
                return;
            }
        }
    }

    fn tell(&mut self, site: usize) {
        let site = &mut self.sites[site];
        site.told += 1;
        let message = json!(["message", {"roomId": "r", "content": site.told.to_string()}]);
        site.host.say(site.teller, &format!("42{message}"));
    }

    /// A server of another kind says something in the room.
    fn tell_as_other(&mut self) {
        self.other += 1;
        let packet = json!(["other", {"content": self.other.to_string()}]);
        let data = json!({"packet": {"type": 2, "data": packet, "nsp": "/"}, "opts": {"rooms": ["r"], "except": []}}).to_string();
        self.redis.add("socket.io", &[("uid", "a-node-server-id"), ("nsp", "/"), ("type", "3"), ("data", &data)]);
    }

    fn ask(&mut self, who: usize) {
        if let Some((site, at)) = self.clients[who].at {
            self.sites[site].host.say(at, r#"42["room:leave",{"roomId":"nowhere"}]"#);
        }
    }

    fn come(&mut self, who: usize, site: usize) {
        if self.clients[who].at.is_some() {
            return;
        }
        let shard = self.random.random_range(0..SHARDS);
        let packet = connect(&format!("user-{who}"), &self.clients[who]);
        let host = &mut self.sites[site].host;
        let at = host.connect(shard, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
        host.say(at, &packet);
        self.clients[who].at = Some((site, at));
    }

    fn break_off(&mut self, who: usize) {
        self.listen_to(who);
        if let Some((site, at)) = self.clients[who].at.take() {
            self.sites[site].host.hang_up(at);
        }
    }

    fn listen(&mut self) {
        for who in 0..CLIENTS {
            self.listen_to(who);
        }
        for site in &mut self.sites {
            if site.host.texts(site.teller).iter().any(|text| text == "2") {
                site.host.say(site.teller, "3");
            }
        }
    }

    fn listen_to(&mut self, who: usize) {
        let Some((site, at)) = self.clients[who].at else { return };
        for got in self.sites[site].host.take(at) {
            match got {
                Got::Text(text) => {
                    for answer in self.hear(who, site, &text) {
                        self.sites[site].host.say(at, &answer);
                    }
                }
                Got::End(_) => self.clients[who].at = None,
                _ => {}
            }
        }
    }

    fn hear(&mut self, who: usize, site: usize, packet: &str) -> Vec<String> {
        let (seed, client) = (self.seed, &mut self.clients[who]);
        if packet == "2" {
            return vec!["3".to_owned()];
        }
        let Some((kind, rest)) = packet.split_at_checked(2) else { return Vec::new() };
        match kind {
            "40" => {
                let connected: Value = serde_json::from_str(rest).expect("an object");
                let (pid, sid) = (connected["pid"].as_str().expect("pid"), connected["sid"].as_str().expect("sid"));
                let is_new = client.pid != pid;
                if is_new {
                    client.last.clear();
                } else {
                    assert_eq!(client.sid, sid, "seed {seed}: it keeps its id");
                    client.recovered += 1;
                    client.moved += u64::from(client.site != site);
                }
                (client.pid, client.sid, client.site) = (pid.to_owned(), sid.to_owned(), site);
                // Its wish to enter may have been lost with the transport: it says so again until it hears something.
                if is_new || client.last.is_empty() { vec![format!("42{JOIN}")] } else { Vec::new() }
            }
            "42" => {
                let mut event: Vec<Value> = serde_json::from_str(rest).expect("an array");
                client.offset = event.pop().and_then(|offset| offset.as_str().map(str::to_owned)).expect("an offset");
                client.heard_of_own += u64::from(event[0] == "error");
                let Some(number) = event[1]["content"].as_str().and_then(|content| content.parse::<u64>().ok()) else { return Vec::new() };
                let speaker = event[1]["userId"].as_str().unwrap_or("other").to_owned();
                if let Some(last) = client.last.insert(speaker.clone(), number) {
                    assert_eq!(number, last + 1, "seed {seed}: a gap in what {speaker} says to {who}, or twice");
                }
                Vec::new()
            }
            "44" | "41" => panic!("seed {seed}: {packet}"),
            _ => Vec::new(),
        }
    }

    /// How often clients were recovered, and of these on another host than where they were.
    fn finish(mut self) -> (u64, u64) {
        for site in &mut self.sites {
            if !site.is_connected {
                site.connect();
            }
        }
        for _ in 0..60 {
            for who in 0..CLIENTS {
                let site = self.random.random_range(0..HOSTS);
                self.come(who, site);
            }
            self.settle();
            self.advance(300, 600);
            self.settle();
            self.listen();
        }
        for site in 0..HOSTS {
            self.tell(site);
        }
        self.tell_as_other();
        for _ in 0..4 {
            self.settle();
            self.advance(200, 300);
            self.listen();
        }
        for (who, client) in self.clients.iter().enumerate() {
            assert!(client.at.is_some(), "seed {}: {who} is not there", self.seed);
            let told = |speaker: &str| client.last.get(speaker).copied();
            let all = (self.sites[0].told, self.sites[1].told, self.other);
            assert_eq!(
                (told("teller-0"), told("teller-1"), told("other")),
                (Some(all.0), Some(all.1), Some(all.2)),
                "seed {}: {who}",
                self.seed
            );
        }
        self.clients.iter().fold((0, 0), |(recovered, moved), client| (recovered + client.recovered, moved + client.moved))
    }
}

fn settings() -> Relay {
    Relay { mode: RelayMode::Streams, ..Relay::new("redis://localhost") }
}

fn core_of(host: &Host, own: &Hello, random: [u8; 32]) -> (Core, handle::FleetHandle) {
    let (handle, port) = handle::channel(own.clone());
    (Core::new(host.world.clone(), Arc::<RelayStats>::default(), &settings(), own, port, random), handle)
}

fn connect(user: &str, client: &Client) -> String {
    let claims = json!({"sub": user, "exp": host::START_UNIX_MS / 1_000 + 100_000});
    let mut auth = json!({"token": host::token(&claims)});
    if !client.pid.is_empty() && !client.offset.is_empty() {
        (auth["pid"], auth["offset"]) = (json!(client.pid), json!(client.offset));
    }
    format!("40{auth}")
}

#[test]
fn nobody_misses_or_hears_twice_on_whichever_host() {
    let (mut recovered, mut moved, mut reloads) = (0, 0, 0);
    let seeds = option_env!("URINGCAST_SIM_SEEDS").and_then(|text| text.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        let mut fleet = Fleet::new(seed);
        for _ in 0..STEPS {
            fleet.step();
        }
        reloads += fleet.reloads;
        let counted = fleet.finish();
        (recovered, moved) = (recovered + counted.0, moved + counted.1);
    }
    assert!(recovered > 2 * seeds && moved > seeds / 2, "{recovered} recoveries, {moved} on another host, in {seeds} runs test little");
    assert!(reloads > 10 * seeds, "{reloads} reloads in {seeds} runs test little");
}
