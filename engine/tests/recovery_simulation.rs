//! Clients that break off and come back at random, over lanes that deliver at random, on a host of three shards. Whatever happens, a
//! client hears the numbers that its room is told without a gap and without hearing one twice, or it is told that it starts anew.
//! `URINGCAST_SIM_SEED=n` repeats one seed, `URINGCAST_SIM_SEEDS=n` runs so many.

mod host;

use engine::config::DialectKind;
use host::{Got, Host};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const SHARDS: usize = 3;
const CLIENTS: usize = 4;
const STEPS: usize = 400;

/// A client as the library would be: what it knows of itself is what it has heard.
#[derive(Default)]
struct Client {
    at: Option<usize>,
    sid: String,
    pid: String,
    offset: String,
    /// The last number it heard; `None` until the first one after it has entered anew.
    last: Option<u64>,
    recovered: u64,
}

impl Client {
    fn hear(&mut self, text: &str, seed: u64) {
        if let Some(connected) = text.strip_prefix("40") {
            let connected: Value = serde_json::from_str(connected).expect("an object");
            let pid = connected["pid"].as_str().expect("pid").to_owned();
            if self.pid == pid {
                self.recovered += 1;
            } else {
                self.last = None;
            }
            (self.pid, self.sid) = (pid, connected["sid"].as_str().expect("sid").to_owned());
        } else if let Some(event) = text.strip_prefix("42") {
            let mut event: Vec<Value> = serde_json::from_str(event).expect("an array");
            self.offset = event.pop().and_then(|offset| offset.as_str().map(str::to_owned)).expect("an offset");
            if event[0] != "message" {
                return;
            }
            let number: u64 = event[1]["content"].as_str().and_then(|content| content.parse().ok()).expect("a number");
            if let Some(last) = self.last {
                assert_eq!(number, last + 1, "seed {seed}: a gap, or twice");
            }
            self.last = Some(number);
        }
    }
}

struct World {
    seed: u64,
    random: StdRng,
    host: Host,
    teller: usize,
    told: u64,
    clients: Vec<Client>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
        rooms.recovery_ms = 60_000;
        let mut host = Host::new(host::config(SHARDS, vec![rooms]), seed);
        let teller = connect(&mut host, 1, "teller", None);
        host.settle();
        host.say(teller, r#"42["room:join",{"roomId":"r"}]"#);
        host.settle();
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        World { seed, random: StdRng::seed_from_u64(seed), host, teller, told: 0, clients }
    }

    fn step(&mut self) {
        let who = self.random.random_range(0..CLIENTS);
        match self.random.random_range(0..20) {
            0..6 => {
                self.told += 1;
                self.host.say(self.teller, &format!(r#"42["message",{{"roomId":"r","content":"{}"}}]"#, self.told));
            }
            6..8 => self.come(who),
            8 => {
                // Broken off, and the server knows.
                if let Some(at) = self.clients[who].at.take() {
                    self.listen_to(who, at);
                    self.host.hang_up(at);
                }
            }
            // Gone, and the server does not know: nobody reads there any more.
            9 => self.clients[who].at = None,
            10 => self.host.advance(self.random.random_range(1..1_800)),
            11 => self.listen(),
            12 => self.host.settle(),
            _ => {
                let (from, to) = (self.random.random_range(0..SHARDS), self.random.random_range(0..SHARDS));
                self.host.pump(from);
                self.host.step(from, to);
            }
        }
        // Whoever is there answers pings.
        self.listen();
    }

    fn come(&mut self, who: usize) {
        if self.clients[who].at.is_some() {
            return;
        }
        let shard = self.random.random_range(0..SHARDS);
        let client = &mut self.clients[who];
        let back = (!client.pid.is_empty() && !client.offset.is_empty()).then(|| (client.pid.clone(), client.offset.clone()));
        let at = connect(&mut self.host, shard, &format!("user-{who}"), back);
        client.at = Some(at);
    }

    fn listen(&mut self) {
        for who in 0..CLIENTS {
            if let Some(at) = self.clients[who].at {
                self.listen_to(who, at);
            }
        }
        if self.host.texts(self.teller).iter().any(|text| text == "2") {
            self.host.say(self.teller, "3");
        }
    }

    fn listen_to(&mut self, who: usize, at: usize) {
        for got in self.host.take(at) {
            let text = match got {
                Got::Text(text) => text,
                Got::End(_) => {
                    // The server has cut it, for a copy that came late or because it answered too late.
                    self.clients[who].at = self.clients[who].at.filter(|now| *now != at);
                    continue;
                }
                _ => continue,
            };
            if text == "2" {
                self.host.say(at, "3");
            }
            let before = self.clients[who].pid.clone();
            self.clients[who].hear(&text, self.seed);
            if text.starts_with("40") && self.clients[who].pid != before {
                self.host.say(at, r#"42["room:join",{"roomId":"r"}]"#);
            }
        }
    }

    fn finish(mut self) -> u64 {
        for _ in 0..20 {
            for who in 0..CLIENTS {
                self.come(who);
            }
            self.host.advance(400);
            self.listen();
        }
        self.told += 1;
        self.host.say(self.teller, &format!(r#"42["message",{{"roomId":"r","content":"{}"}}]"#, self.told));
        self.host.settle();
        self.listen();
        for (who, client) in self.clients.iter().enumerate() {
            assert_eq!(client.last, Some(self.told), "seed {}: client {who} does not hear", self.seed);
        }
        let counters = self.host.stats.clone();
        let stats = |of: fn(&engine::stats::EndpointStats) -> u64| counters.iter().map(|shard| of(&shard.endpoints[0])).sum::<u64>();
        let away = stats(|counters| counters.recoverable.read());
        self.host.advance(400_000);
        self.host.settle();
        // Everybody was cut for want of an answer, and then given up.
        assert_eq!(stats(|counters| counters.connections.read()), 0, "seed {}", self.seed);
        assert_eq!(stats(|counters| counters.recoverable.read()), 0, "seed {}: {away} were away", self.seed);
        assert_eq!(stats(|counters| counters.users.read()), 0, "seed {}", self.seed);
        assert_eq!(stats(|counters| counters.rooms.read()), 1, "seed {}: kept for its history", self.seed);
        self.clients.iter().map(|client| client.recovered).sum()
    }
}

fn connect(host: &mut Host, shard: usize, user: &str, back: Option<(String, String)>) -> usize {
    let at = host.connect(shard, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    let mut auth = json!({"token": host::token(&json!({"sub": user, "exp": 4_000_000_000_u64}))});
    if let Some((pid, offset)) = back {
        (auth["pid"], auth["offset"]) = (json!(pid), json!(offset));
    }
    host.say(at, &format!("40{auth}"));
    at
}

#[test]
fn nobody_misses_or_hears_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("URINGCAST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("URINGCAST_SIM_SEEDS").unwrap_or(60),
    };
    let (runs, mut recovered) = (seeds.clone().count(), 0);
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        recovered += world.finish();
    }
    assert!(runs < 10 || recovered > runs as u64, "{recovered} recoveries in {runs} runs test nothing");
}
