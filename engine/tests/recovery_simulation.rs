//! Clients that break off and come back at random, over lanes that deliver at random, on a host of three shards: by WebSocket or by
//! long-polling with requests to any shard, some upgrading in between, each in two namespaces. Whatever happens, a client hears the numbers
//! that its rooms are told, by another client and by the back end, without a gap and without hearing one twice, or it is told that it
//! starts anew. `URINGCAST_SIM_SEED=n` repeats one seed, `URINGCAST_SIM_SEEDS=n` runs so many.

mod host;

use std::collections::HashMap;
use std::sync::Arc;

use engine::config::{DialectKind, Endpoint};
use engine::ids::EndpointId;
use engine::shard::parcel::{Emit, Parcel, Question, Selection, Target};
use engine::stats::EndpointStats;
use host::{Got, Host};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const SHARDS: usize = 3;
const CLIENTS: usize = 4;
const STEPS: usize = 600;
const NAMESPACES: [&str; 2] = ["", "/a,"];
const JOIN: &str = r#"["room:join",{"roomId":"r"}]"#;

/// A client in one namespace as the library would be: what it knows of itself is what it has heard.
#[derive(Default)]
struct Space {
    pid: String,
    offset: String,
    /// The last number it heard by event; none after it has started anew, until the first one.
    last: HashMap<String, u64>,
    recovered: u64,
}

impl Space {
    fn hear_event(&mut self, event: &str, seed: u64) {
        let mut event: Vec<Value> = serde_json::from_str(event).expect("an array");
        self.offset = event.pop().and_then(|offset| offset.as_str().map(str::to_owned)).expect("an offset");
        let name = event[0].as_str().expect("a name").to_owned();
        let Some(number) = event[1]["content"].as_str().and_then(|content| content.parse::<u64>().ok()) else { return };
        if name == "blink" {
            return;
        }
        if let Some(last) = self.last.insert(name.clone(), number) {
            assert_eq!(number, last + 1, "seed {seed}: a gap in {name}, or twice");
        }
    }

    /// True exactly when it starts anew.
    fn hear_connect(&mut self, connected: &str) -> bool {
        let connected: Value = serde_json::from_str(connected).expect("an object");
        let pid = connected["pid"].as_str().expect("pid").to_owned();
        let is_new = self.pid != pid;
        if is_new {
            self.last.clear();
        } else {
            self.recovered += 1;
        }
        self.pid = pid;
        is_new
    }
}

/// How a client talks to the host.
#[derive(Default, Debug)]
enum Transport {
    #[default]
    None,
    WebSocket(usize),
    Polling(Polling),
}

/// The library's polling transport: one GET and one POST at a time, each over a connection of its own.
#[derive(Default, Debug)]
struct Polling {
    /// Empty until the handshake is answered.
    sid: String,
    get: Option<usize>,
    post: Option<usize>,
    /// What waits for the next POST.
    unsent: Vec<String>,
    /// The WebSocket that is to take over, and whether it has been probed.
    upgrade: Option<(usize, bool)>,
}

#[derive(Default)]
struct Client {
    transport: Transport,
    spaces: [Space; 2],
}

struct World {
    seed: u64,
    random: StdRng,
    host: Host,
    teller: usize,
    told: [u64; 2],
    /// By namespace and event.
    emitted: HashMap<(usize, &'static str), u64>,
    clients: Vec<Client>,
}

fn target(transport: &str, sid: &str) -> String {
    let sid = if sid.is_empty() { String::new() } else { format!("&sid={sid}") };
    format!("/socket.io/?EIO=4&transport={transport}{sid}")
}

impl World {
    fn new(seed: u64) -> World {
        let rooms = |bind: &str| Endpoint { recovery_ms: 60_000, ..host::endpoint(bind, DialectKind::Rooms, bind) };
        let mut host = Host::new(host::config(SHARDS, ["/", "/a"].map(rooms).into()), seed);
        let teller = host.connect(1, &Host::upgrade_head(&target("websocket", ""), ""));
        for namespace in NAMESPACES {
            host.say(teller, &connect("teller", namespace, &Space::default()));
            host.settle();
            host.say(teller, &format!("42{namespace}{JOIN}"));
            host.settle();
        }
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        World { seed, random: StdRng::seed_from_u64(seed), host, teller, told: [0; 2], emitted: HashMap::new(), clients }
    }

    fn shard(&mut self) -> usize {
        self.random.random_range(0..SHARDS)
    }

    fn step(&mut self) {
        let who = self.random.random_range(0..CLIENTS);
        let space = self.random.random_range(0..2);
        match self.random.random_range(0..24) {
            0..4 => self.tell(space),
            4..6 => {
                let room = |name: &str| Target::Room(name.into());
                let (to, event) = match self.random.random_range(0..3) {
                    0 => (vec![room("r")], "news"),
                    1 => (vec![room("r"), room("nowhere")], "both"),
                    _ => (vec![Target::all()], "all"),
                };
                self.emit(space, to, event);
            }
            6..9 => self.come(who),
            9 => self.break_off(who),
            // Gone, and the server does not know: nobody reads there any more.
            10 => self.clients[who].transport = Transport::None,
            11 => self.host.advance(self.random.random_range(1..1_800)),
            12 => self.host.settle(),
            13 => self.upgrade(who),
            _ => {
                let (from, to) = (self.shard(), self.shard());
                self.host.pump(from);
                self.host.step(from, to);
            }
        }
        // Whoever is there answers pings.
        self.listen();
    }

    fn tell(&mut self, space: usize) {
        self.told[space] += 1;
        let message = json!(["message", {"roomId": "r", "content": self.told[space].to_string()}]);
        self.host.say(self.teller, &format!("42{}{message}", NAMESPACES[space]));
    }

    fn emit(&mut self, space: usize, targets: Vec<Target>, event: &'static str) {
        let number = self.emitted.entry((space, event)).or_default();
        // One in four comes only if it fits just now; it bears an offset as well.
        let volatile = self.random.random_range(0..4) == 0;
        *number += u64::from(!volatile);
        let args = json!({"content": number.to_string()}).to_string();
        let emit = Arc::new(Emit {
            to: Selection { endpoint: EndpointId(space as u8), targets, except: Vec::new() },
            event: if volatile { "blink" } else { event }.into(),
            args,
            ack_ms: None,
            volatile,
            offset: self.random.random::<u64>().into(),
            unix_ms: self.host.now.unix_ms,
            attachments: Vec::new(),
            is_elsewhere: false,
        });
        for shard in &mut self.host.shards {
            shard.handle_parcel(self.host.now, Parcel::Ask { ask: 1, question: Question::Emit(emit.clone()) });
        }
        self.host.answers.clear();
    }

    fn come(&mut self, who: usize) {
        if !matches!(self.clients[who].transport, Transport::None) {
            return;
        }
        let shard = self.shard();
        if self.random.random() {
            let at = self.host.connect(shard, &Host::upgrade_head(&target("websocket", ""), ""));
            for packet in self.connects(who) {
                self.host.say(at, &packet);
            }
            self.clients[who].transport = Transport::WebSocket(at);
        } else {
            let get = Some(self.request(shard, "GET", &target("polling", ""), ""));
            let unsent = self.connects(who);
            self.clients[who].transport = Transport::Polling(Polling { get, unsent, ..Polling::default() });
        }
    }

    fn connects(&self, who: usize) -> Vec<String> {
        let spaces = NAMESPACES.iter().zip(&self.clients[who].spaces);
        spaces.map(|(namespace, space)| connect(&format!("user-{who}"), namespace, space)).collect()
    }

    fn request(&mut self, shard: usize, method: &str, target: &str, body: &str) -> usize {
        let length = body.len();
        self.host.connect(
            shard,
            &format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"),
        )
    }

    /// Broken off, and the server knows.
    fn break_off(&mut self, who: usize) {
        self.listen_to(who);
        match std::mem::take(&mut self.clients[who].transport) {
            Transport::WebSocket(at) => self.host.hang_up(at),
            Transport::Polling(polling) => {
                for at in polling.get.into_iter().chain(polling.post).chain(polling.upgrade.map(|(at, _)| at)) {
                    self.host.hang_up(at);
                }
            }
            Transport::None => {}
        }
    }

    fn upgrade(&mut self, who: usize) {
        let shard = self.shard();
        if let Transport::Polling(polling) = &mut self.clients[who].transport
            && !polling.sid.is_empty()
            && polling.upgrade.is_none()
        {
            let socket = self.host.connect(shard, &Host::upgrade_head(&target("websocket", &polling.sid), ""));
            polling.upgrade = Some((socket, false));
        }
    }

    fn listen(&mut self) {
        for who in 0..CLIENTS {
            self.listen_to(who);
        }
        if self.host.texts(self.teller).iter().any(|text| text == "2") {
            self.host.say(self.teller, "3");
        }
    }

    fn listen_to(&mut self, who: usize) {
        self.clients[who].transport = match std::mem::take(&mut self.clients[who].transport) {
            Transport::None => Transport::None,
            Transport::WebSocket(at) => self.listen_to_socket(who, at),
            Transport::Polling(polling) => self.listen_to_polling(who, polling),
        };
    }

    fn listen_to_socket(&mut self, who: usize, at: usize) -> Transport {
        let mut is_open = true;
        for got in self.host.take(at) {
            match got {
                Got::Text(text) => {
                    for answer in self.hear(who, &text) {
                        self.host.say(at, &answer);
                    }
                }
                // The server has cut it, for a copy that came late or because it answered too late.
                Got::End(_) => is_open = false,
                _ => {}
            }
        }
        if is_open { Transport::WebSocket(at) } else { Transport::None }
    }

    /// What a request was answered: `Some(None)` for nothing good.
    fn answer(&mut self, at: usize) -> Option<Option<String>> {
        self.host.take(at).into_iter().find_map(|got| match got {
            Got::Http(200, body) => Some(Some(body)),
            Got::Http(..) | Got::End(_) => Some(None),
            _ => None,
        })
    }

    fn listen_to_polling(&mut self, who: usize, mut polling: Polling) -> Transport {
        for get in polling.get.take().into_iter().collect::<Vec<_>>() {
            match self.answer(get) {
                None => polling.get = Some(get),
                Some(None) => return Transport::None,
                Some(Some(body)) => {
                    for packet in body.split('\u{1e}') {
                        if packet == "1" {
                            return Transport::None;
                        }
                        if packet.starts_with("0{") {
                            polling.sid = packet[9..29].to_owned();
                        }
                        let answers = self.hear(who, packet);
                        polling.unsent.extend(answers);
                    }
                }
            }
        }
        if let Some(post) = polling.post.take() {
            match self.answer(post) {
                None => polling.post = Some(post),
                Some(None) => return Transport::None,
                Some(Some(_)) => {}
            }
        }
        if let Some((socket, is_probed)) = &mut polling.upgrade {
            for got in self.host.take(*socket) {
                match got {
                    Got::Http(101, _) => self.host.say(*socket, "2probe"),
                    Got::Text(text) if text == "3probe" => *is_probed = true,
                    Got::Close(..) | Got::End(_) | Got::Http(..) => {
                        polling.upgrade = None;
                        break;
                    }
                    _ => {}
                }
            }
        }
        self.go_on_polling(polling)
    }

    fn go_on_polling(&mut self, mut polling: Polling) -> Transport {
        if let Some((socket, true)) = polling.upgrade {
            // It pauses, and goes over when nothing is under way.
            if polling.get.is_some() || polling.post.is_some() {
                return Transport::Polling(polling);
            }
            self.host.say(socket, "5");
            for packet in polling.unsent {
                self.host.say(socket, &packet);
            }
            return Transport::WebSocket(socket);
        }
        if polling.sid.is_empty() {
            return Transport::Polling(polling);
        }
        let (get_at, post_at, target) = (self.shard(), self.shard(), target("polling", &polling.sid));
        if polling.post.is_none() && !polling.unsent.is_empty() {
            let body = std::mem::take(&mut polling.unsent).join("\u{1e}");
            polling.post = Some(self.request(post_at, "POST", &target, &body));
        }
        if polling.get.is_none() {
            polling.get = Some(self.request(get_at, "GET", &target, ""));
        }
        Transport::Polling(polling)
    }

    /// One packet; what the client says to it.
    fn hear(&mut self, who: usize, packet: &str) -> Vec<String> {
        if packet == "2" {
            return vec!["3".to_owned()];
        }
        let Some((kind, rest)) = packet.split_at_checked(2) else { return Vec::new() };
        let space = usize::from(rest.starts_with("/a,"));
        let rest = rest.strip_prefix("/a,").unwrap_or(rest);
        let of = &mut self.clients[who].spaces[space];
        match kind {
            // Its wish to enter may have been lost with the transport: it says so again until it hears something.
            "40" if of.hear_connect(rest) || !of.last.contains_key("message") => vec![format!("42{}{JOIN}", NAMESPACES[space])],
            "42" => {
                of.hear_event(rest, self.seed);
                Vec::new()
            }
            "44" | "41" => panic!("seed {}: {packet}", self.seed),
            _ => Vec::new(),
        }
    }

    fn finish(mut self) -> u64 {
        for round in 0..100 {
            for who in 0..CLIENTS {
                self.come(who);
            }
            self.host.advance(if round < 20 { 400 } else { 50 });
            self.listen();
        }
        for space in 0..2 {
            self.tell(space);
        }
        for _ in 0..4 {
            self.host.settle();
            self.listen();
        }
        for (who, client) in self.clients.iter().enumerate() {
            for (space, told) in client.spaces.iter().zip(self.told) {
                assert_eq!(
                    space.last.get("message"),
                    Some(&told),
                    "seed {}: client {who} does not hear: {:?}",
                    self.seed,
                    client.transport
                );
            }
        }
        // Everybody is cut for want of an answer, and then given up.
        self.host.advance(400_000);
        self.host.settle();
        let counters = self.host.stats.clone();
        for (index, name) in NAMESPACES.into_iter().enumerate() {
            let stats = |of: fn(&EndpointStats) -> u64| counters.iter().map(|shard| of(&shard.endpoints[index])).sum::<u64>();
            let gauges: [fn(&EndpointStats) -> u64; 6] = [
                |counters| counters.connections.read(),
                |counters| counters.recoverable.read(),
                |counters| counters.users.read(),
                |counters| counters.polling.read(),
                |counters| counters.authenticated.read(),
                // One is kept for its history.
                |counters| counters.rooms.read(),
            ];
            assert_eq!(gauges.map(stats), [0, 0, 0, 0, 0, 1], "seed {} {name}", self.seed);
        }
        for (shard, stats) in self.host.shards.iter().zip(&counters) {
            assert_eq!((shard.links(), stats.outbox_bytes.read()), (0, 0), "seed {}", self.seed);
            assert!(format!("{shard:?}").contains("signposts: 0,"), "seed {}: {shard:?}", self.seed);
        }
        self.clients.iter().flat_map(|client| &client.spaces).map(|space| space.recovered).sum()
    }
}

fn connect(user: &str, namespace: &str, space: &Space) -> String {
    let mut auth = json!({"token": host::token(&json!({"sub": user, "exp": 4_000_000_000_u64}))});
    if !space.pid.is_empty() && !space.offset.is_empty() {
        (auth["pid"], auth["offset"]) = (json!(space.pid), json!(space.offset));
    }
    format!("40{namespace}{auth}")
}

#[test]
fn nobody_misses_or_hears_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("URINGCAST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("URINGCAST_SIM_SEEDS").unwrap_or(40),
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
