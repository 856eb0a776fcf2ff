//! Three shards, dozens of clients, one seed: joins, leaves, messages, hang-ups and slow readers in random order, with every parcel between
//! shards delayed at random. The oracle: every member gets every message of a room once, in the room's one order; nobody else gets any;
//! comings and goings are told once per user; what a joiner is shown of the past ends where its present begins; all counters add up.
//!
//! A failure prints its seed. `URINGCAST_SIM_SEED=n cargo test -p engine --test simulation` replays it, `URINGCAST_SIM_SEEDS=n` runs more.

mod host;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use engine::config::DialectKind;
use host::{Got, Host};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const SHARDS: usize = 3;
const ROOMS: usize = 4;
const STEPS: usize = 4_000;
const CLIENTS_MAX: usize = 40;
const SEEDS: u64 = 100;

/// How a dialect says what the simulation needs.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Talk {
    Community,
    Rooms,
}

/// What a client hears, with the dialect taken off.
#[derive(Debug)]
enum Heard {
    Message { room: usize, id: String },
    Entered { room: usize, past: Option<Vec<String>> },
    Left { room: usize },
    Came { room: usize, user: String },
    Went { room: usize, user: String },
    Refused,
    Ping,
    Other,
}

impl Talk {
    fn head(self, user: &str) -> String {
        let token = host::token(&json!({ "sub": user }));
        match self {
            Talk::Community => Host::upgrade_head(&format!("/api/community/ws?token={token}"), ""),
            Talk::Rooms => Host::upgrade_head(&format!("/socket.io/?EIO=4&transport=websocket&token={token}"), ""),
        }
    }

    fn enter(self, room: usize) -> String {
        match self {
            Talk::Community => json!({"type": "SUBSCRIBE", "payload": {"roomId": format!("r{room}")}}).to_string(),
            Talk::Rooms => format!(r#"421{room}["room:join",{{"roomId":"r{room}"}}]"#),
        }
    }

    fn leave(self, room: usize) -> String {
        match self {
            Talk::Community => json!({"type": "UNSUBSCRIBE", "payload": {"roomId": format!("r{room}")}}).to_string(),
            Talk::Rooms => format!(r#"422{room}["room:leave",{{"roomId":"r{room}"}}]"#),
        }
    }

    fn message(self, room: usize, id: &str) -> String {
        match self {
            Talk::Community => json!({"type": "CHAT_MESSAGE", "payload": {"roomId": format!("r{room}"), "content": id}}).to_string(),
            Talk::Rooms => format!(r#"42["message",{{"roomId":"r{room}","content":"{id}"}}]"#),
        }
    }

    fn hear(self, text: &str) -> Heard {
        match self {
            Talk::Community => Talk::hear_community(&serde_json::from_str(text).expect("the server sends JSON")),
            Talk::Rooms => Talk::hear_rooms(text),
        }
    }

    fn hear_community(said: &Value) -> Heard {
        let payload = &said["payload"];
        let room = payload["roomId"].as_str().and_then(|room| room.strip_prefix('r')?.parse::<usize>().ok());
        let user = || payload["userId"].as_str().expect("a user id").to_owned();
        match (said["type"].as_str().expect("a type"), room) {
            ("CHAT_MESSAGE", Some(room)) => Heard::Message { room, id: payload["content"].as_str().expect("content").into() },
            ("SUBSCRIBED", Some(room)) => Heard::Entered { room, past: None },
            ("UNSUBSCRIBED", Some(room)) => Heard::Left { room },
            ("USER_JOINED", Some(room)) => Heard::Came { room, user: user() },
            ("USER_LEFT", Some(room)) => Heard::Went { room, user: user() },
            ("ERROR", _) => Heard::Refused,
            _ => Heard::Other,
        }
    }

    fn hear_rooms(text: &str) -> Heard {
        if text == "2" {
            return Heard::Ping;
        }
        // Open and CONNECT packets are no events.
        let Some(start) = text.find('[').filter(|_| text.starts_with("42") || text.starts_with("43")) else { return Heard::Other };
        let args: Value = serde_json::from_str(&text[start..]).expect("the server sends JSON");
        let number = |room: &Value| room.as_str().and_then(|room| room.strip_prefix('r')?.parse::<usize>().ok());
        let room = number(&args[1]["roomId"]).unwrap_or(usize::MAX);
        if let Some(id) = text.strip_prefix("43") {
            // Acknowledgement ids are the action and the room.
            let room: usize = id[1..=1].parse().expect("own id");
            if args[0]["success"] != true {
                return Heard::Other;
            }
            if id.starts_with('2') {
                return Heard::Left { room };
            }
            let past = args[0]["history"].as_array().expect("history").iter();
            return Heard::Entered { room, past: Some(past.map(|m| m["content"].as_str().expect("content").into()).collect()) };
        }
        let user = || args[1]["userId"].as_str().expect("a user id").to_owned();
        match args[0].as_str().expect("an event") {
            "message" => Heard::Message { room, id: args[1]["content"].as_str().expect("content").into() },
            "user:joined" => Heard::Came { room, user: user() },
            "user:left" => Heard::Went { room, user: user() },
            "error" => Heard::Refused,
            _ => Heard::Other,
        }
    }
}

/// One stay in a room, as the client saw it.
#[derive(Debug)]
struct Stay {
    heard: Vec<String>,
    /// Everything said by anybody from this step on is meant for it.
    since: usize,
    /// False exactly when it went on until the end.
    ended: bool,
    past: Option<Vec<String>>,
}

#[derive(Default, Debug)]
struct Guest {
    user: String,
    stays: HashMap<usize, Vec<Stay>>,
    /// Rooms it is in according to its own words, so that it acts sensibly.
    inside: BTreeSet<usize>,
    witness: bool,
    closed: bool,
    texts: u64,
    presence: HashMap<usize, Vec<(bool, String)>>,
}

struct Simulation {
    talk: Talk,
    host: Host,
    dice: StdRng,
    guests: Vec<Guest>,
    step: usize,
    /// How many there are; every reload may change that.
    shards: usize,
    /// Messages said, with the step and the room: each once.
    said: BTreeMap<String, (usize, usize)>,
    refused: u64,
}

impl Simulation {
    fn new(talk: Talk, seed: u64) -> Simulation {
        let mut community = host::endpoint("community", DialectKind::Community, "/api/community/ws");
        community.client_publish = true;
        let rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
        let mut config = host::config(SHARDS, vec![community, rooms]);
        config.limits.outbox_bytes = 4_000;
        config.limits.rate_messages = 1_000_000;
        let mut simulation = Simulation {
            talk,
            host: Host::new(config, seed),
            dice: StdRng::seed_from_u64(seed),
            guests: Vec::new(),
            step: 0,
            shards: SHARDS,
            said: BTreeMap::new(),
            refused: 0,
        };
        // One witness in every room from before the first message to after the last: it hears the room's one order.
        for room in 0..ROOMS {
            let witness = simulation.connect(format!("witness{room}"));
            simulation.guests[witness].witness = true;
            simulation.act(witness, |talk| talk.enter(room));
        }
        simulation.host.settle();
        simulation.listen_all();
        simulation
    }

    fn pick(&mut self, range: Range<usize>) -> usize {
        self.dice.random_range(range)
    }

    fn connect(&mut self, user: String) -> usize {
        let shard = self.pick(0..self.shards);
        let client = self.host.connect(shard, &self.talk.head(&user));
        if self.talk == Talk::Rooms {
            self.host.say(client, "40");
        }
        self.guests.push(Guest { user, ..Guest::default() });
        client
    }

    fn act(&mut self, client: usize, text: impl Fn(Talk) -> String) {
        let text = text(self.talk);
        self.host.say(client, &text);
    }

    fn run(&mut self) {
        for step in 1..=STEPS {
            self.step = step;
            match self.pick(0..100) {
                0..45 => {
                    let (from, to) = (self.pick(0..self.shards), self.pick(0..self.shards));
                    for _ in 0..self.pick(1..6) {
                        self.host.step(from, to);
                    }
                }
                45..60 => {
                    let shard = self.pick(0..self.shards);
                    self.host.pump(shard);
                    self.listen_all();
                }
                60..62 => {
                    let ms = self.pick(1..200) as u64;
                    self.host.now.ns += ms * 1_000_000;
                    self.host.now.unix_ms += ms;
                    let shard = self.pick(0..self.shards);
                    self.host.shards[shard].handle_timeouts(self.host.now);
                }
                // One in a hundred steps would leave nothing to happen in between.
                64 if self.pick(0..20) == 0 => {
                    self.shards = self.pick(1..SHARDS + 1);
                    self.host.reload(self.shards);
                    self.listen_all();
                }
                62..64 if self.live() < CLIENTS_MAX => {
                    // Few users for many connections, so that comings and goings overlap.
                    let user = format!("user{}", self.pick(0..CLIENTS_MAX / 3));
                    self.connect(user);
                }
                _ => self.act_somehow(),
            }
        }
        // Everybody reads on, everything in flight arrives.
        for client in 0..self.guests.len() {
            self.host.unblock(client, usize::MAX);
        }
        self.host.settle();
        self.listen_all();
        self.host.settle();
        self.listen_all();
    }

    fn live(&self) -> usize {
        self.guests.iter().filter(|guest| !guest.closed).count()
    }

    fn act_somehow(&mut self) {
        let client = self.pick(0..self.guests.len());
        let room = self.pick(0..ROOMS);
        let (witness, closed, inside) = {
            let guest = &self.guests[client];
            (guest.witness, guest.closed, guest.inside.contains(&room))
        };
        if closed || !self.host.clients[client].open {
            return;
        }
        match self.pick(0..100) {
            0..15 if !witness && !inside => self.act(client, |talk| talk.enter(room)),
            15..22 if !witness && inside => {
                self.guests[client].inside.remove(&room);
                self.act(client, |talk| talk.leave(room));
            }
            22..24 if !witness => {
                self.host.hang_up(client);
                self.guests[client].closed = true;
            }
            24..28 if !witness => self.host.clients[client].capacity = self.dice.random_range(0..3_000),
            28..40 => {
                let capacity = self.dice.random_range(0..20_000);
                self.host.unblock(client, if witness { usize::MAX } else { capacity });
            }
            // Now and then into a room it is not in: refused, and heard by nobody.
            40.. if inside || self.pick(0..10) == 0 => {
                let id = format!("{client}.{}", self.said.len());
                self.said.insert(id.clone(), (self.step, room));
                self.act(client, |talk| talk.message(room, &id));
            }
            _ => {}
        }
    }

    /// Every client takes in what it was sent.
    fn listen_all(&mut self) {
        for client in 0..self.guests.len() {
            for got in self.host.take(client) {
                match got {
                    Got::Text(text) => self.listen(client, &text),
                    Got::Ping => self.host.frame(client, 10, b""),
                    Got::Close(..) | Got::End(_) => self.guests[client].closed = true,
                    Got::Http(status, body) => assert_eq!(status, 101, "{body}"),
                    Got::Pong => {}
                    Got::Binary(_) => panic!("nobody says anything binary here"),
                }
            }
        }
    }

    fn listen(&mut self, client: usize, text: &str) {
        // Engine.IO and CONNECT packets are no messages.
        let counts = self.talk == Talk::Community || text.starts_with("42") || text.starts_with("43");
        self.guests[client].texts += u64::from(counts);
        let step = self.step;
        match self.talk.hear(text) {
            Heard::Entered { room, past } => {
                let guest = &mut self.guests[client];
                guest.inside.insert(room);
                let stays = guest.stays.entry(room).or_default();
                if stays.last().is_none_or(|stay| stay.ended) {
                    stays.push(Stay { heard: Vec::new(), since: step, ended: false, past });
                }
            }
            Heard::Left { room } => {
                let guest = &mut self.guests[client];
                guest.inside.remove(&room);
                if let Some(stay) = guest.stays.get_mut(&room).and_then(|stays| stays.last_mut()) {
                    stay.ended = true;
                }
            }
            Heard::Message { room, id } => {
                let stay = self.guests[client].stays.get_mut(&room).and_then(|stays| stays.last_mut());
                let stay = stay.filter(|stay| !stay.ended).unwrap_or_else(|| panic!("client {client} is not in r{room} and got {id}"));
                stay.heard.push(id);
            }
            Heard::Came { room, user } => self.guests[client].presence.entry(room).or_default().push((true, user)),
            Heard::Went { room, user } => self.guests[client].presence.entry(room).or_default().push((false, user)),
            Heard::Refused => self.refused += 1,
            Heard::Ping => self.host.say(client, "3"),
            Heard::Other => {}
        }
    }

    fn judge(&mut self) {
        let mut accepted = 0;
        for room in 0..ROOMS {
            let order = self.guests[room].stays[&room][0].heard.clone();
            accepted += order.len();
            self.judge_order(room, &order);
            for (client, guest) in self.guests.iter().enumerate() {
                for stay in guest.stays.get(&room).into_iter().flatten() {
                    let whole = !guest.closed && !stay.ended;
                    self.judge_stay(client, room, &order, stay, whole);
                }
            }
            self.judge_own_words(&order);
            self.judge_presence(room);
        }
        let refused_by_closed = self.said.len() - accepted - self.refused as usize;
        let closed_silently = self.guests.iter().filter(|guest| guest.closed).count();
        assert!(refused_by_closed == 0 || closed_silently > 0, "{refused_by_closed} messages neither heard nor refused");
        self.judge_counters();
    }

    /// The room's order: no message twice, each from the room it was said in, each sender's in its own order.
    fn judge_order(&self, room: usize, order: &[String]) {
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), order.len(), "r{room}: twice");
        let mut last: HashMap<&str, u64> = HashMap::new();
        for id in order {
            assert_eq!(self.said.get(id).map(|(_, room)| *room), Some(room), "{id} was not said in r{room}");
            let (sender, number) = id.split_once('.').expect("own id");
            let number = number.parse().expect("own id");
            let before = last.insert(sender, number).unwrap_or(0);
            assert!(before <= number, "r{room}: {sender} was reordered");
        }
    }

    fn judge_stay(&self, client: usize, room: usize, order: &[String], stay: &Stay, whole: bool) {
        let place = |id: &String| order.iter().position(|other| other == id).unwrap_or_else(|| panic!("{id} is not in r{room}'s order"));
        let first = stay.heard.first().map(place);
        if let Some(first) = first {
            let expected = &order[first..(first + stay.heard.len()).min(order.len())];
            assert_eq!(stay.heard, expected, "client {client} in r{room}: a gap, a double or another order");
            if whole {
                assert_eq!(first + stay.heard.len(), order.len(), "client {client} in r{room} missed the end");
            }
        }
        // Whatever was said after it knew that it was in is for it.
        let due = order.iter().position(|id| self.said[id].0 > stay.since);
        if let (Some(due), true) = (due, whole) {
            assert!(first.is_some_and(|first| first <= due), "client {client} in r{room} missed {}", order[due]);
        }
        if let Some(past) = &stay.past {
            let begins = first.or(if whole { Some(order.len()) } else { None });
            if let Some(begins) = begins {
                let expected = &order[begins.saturating_sub(50)..begins];
                // What an answer may weigh here (half of `outbox_bytes`) holds at least nine messages.
                let shown = &expected[expected.len().saturating_sub(past.len())..];
                assert!(past.len() >= expected.len().min(9), "client {client} in r{room} was shown {} of the past", past.len());
                assert_eq!(past, shown, "client {client} in r{room}: the past does not end where the present begins");
            }
        }
    }

    /// Whoever said something that the room heard heard it too, unless he was gone before it could reach him.
    fn judge_own_words(&self, order: &[String]) {
        for id in order {
            let sender: usize = id.split_once('.').and_then(|(sender, _)| sender.parse().ok()).expect("own id");
            let guest = &self.guests[sender];
            let heard = guest.stays.values().flatten().any(|stay| stay.heard.contains(id));
            assert!(heard || guest.closed, "client {sender} did not hear its own {id}");
        }
    }

    /// The witness hears each user come and go in turn, and in the end knows exactly who is there.
    fn judge_presence(&self, room: usize) {
        let mut here: BTreeSet<&str> = BTreeSet::new();
        for (came, user) in self.guests[room].presence.get(&room).into_iter().flatten() {
            let changed = if *came { here.insert(user) } else { here.remove(&**user) };
            assert!(changed, "r{room}: {user} {} twice", if *came { "came" } else { "went" });
        }
        let is_in = |guest: &&Guest| !guest.closed && guest.stays.get(&room).is_some_and(|stays| stays.iter().any(|stay| !stay.ended));
        let really: BTreeSet<&str> = self.guests.iter().filter(is_in).map(|guest| &*guest.user).collect();
        let me = format!("witness{room}");
        assert_eq!(here, really.into_iter().filter(|user| *user != me).collect(), "r{room}: who is there");
    }

    fn judge_counters(&mut self) {
        let endpoint = usize::from(self.talk == Talk::Rooms);
        let sum = |of: &dyn Fn(&engine::stats::ShardStats) -> u64| self.host.stats.iter().map(|stats| of(stats)).sum::<u64>();
        let delivered = sum(&|stats| stats.endpoints[endpoint].delivered.read());
        assert_eq!(delivered, self.guests.iter().map(|guest| guest.texts).sum::<u64>(), "delivered");
        let open = self.live() as u64;
        assert_eq!(sum(&|stats| stats.endpoints[endpoint].connections.read()), open, "connections");
        let closed = sum(&|stats| stats.endpoints[endpoint].closed.iter().map(|counter| counter.read()).sum());
        assert_eq!(sum(&|stats| stats.endpoints[endpoint].accepted.read()), open + closed, "accepted");
        assert_eq!(sum(&|stats| stats.outbox_bytes.read()), 0, "bytes queued");
        let users: BTreeSet<&str> = self.guests.iter().filter(|guest| !guest.closed).map(|guest| &*guest.user).collect();
        assert_eq!(sum(&|stats| stats.endpoints[endpoint].users.read()), users.len() as u64, "users");
        assert_eq!(sum(&|stats| stats.endpoints[endpoint].received.read()), self.texts_sent(), "received");
    }

    fn texts_sent(&self) -> u64 {
        self.host.stats.iter().map(|stats| stats.endpoints[usize::from(self.talk == Talk::Rooms)].received.read()).sum()
    }
}

fn seeds() -> Vec<u64> {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(seed) = variable("URINGCAST_SIM_SEED") {
        return vec![seed];
    }
    (0..variable("URINGCAST_SIM_SEEDS").unwrap_or(SEEDS)).collect()
}

fn simulate(talk: Talk) {
    for seed in seeds() {
        let run = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(talk, seed);
            simulation.run();
            simulation.judge();
            (simulation.said.len(), simulation.guests.len())
        });
        let (said, guests) = run.unwrap_or_else(|_| panic!("{talk:?}: URINGCAST_SIM_SEED={seed} replays this"));
        assert!(said > 100 && guests > ROOMS, "{talk:?} seed {seed} hardly did anything: {said} messages, {guests} clients");
    }
}

#[test]
fn community_keeps_order_and_loses_nothing() {
    simulate(Talk::Community);
}

#[test]
fn rooms_keep_order_and_lose_nothing() {
    simulate(Talk::Rooms);
}

/// What a user tells everybody arrives in the order in which he said it, and before the news that he has gone, however the lanes between
/// the shards drag.
#[test]
fn a_leaving_overtakes_no_last_words() {
    for seed in seeds() {
        let mut config = host::config(SHARDS, vec![host::endpoint("chat", DialectKind::Chat, "/")]);
        config.limits.rate_messages = 1_000_000;
        let (mut host, mut dice) = (Host::new(config, seed), StdRng::seed_from_u64(seed));
        let mut enter = |host: &mut Host, user: &str| {
            let client = host.connect(dice.random_range(0..SHARDS), &Talk::Rooms.head(user));
            host.say(client, "40");
            host.settle();
            client
        };
        let (watcher, leaver) = (enter(&mut host, "watcher"), enter(&mut host, &format!("leaver{seed}")));
        host.texts(watcher);
        for said in [r#"42["message",{"content":"bye"}]"#, r#"42["presence-update","busy"]"#, r#"42["typing-start",{}]"#] {
            host.say(leaver, said);
        }
        host.hang_up(leaver);
        for _ in 0..200 {
            let (from, to) = (dice.random_range(0..SHARDS), dice.random_range(0..SHARDS));
            host.pump(from);
            host.step(from, to);
        }
        host.settle();
        let heard: Vec<String> = host.texts(watcher);
        let told = |text: &str| heard.iter().position(|heard| heard.contains(text)).unwrap_or_else(|| panic!("{text} in {heard:?}"));
        let places = [r#""bye""#, r#""busy""#, "typing-start", "typing-stop", "offline"].map(told);
        assert!(places.is_sorted() && heard.len() == 5, "seed {seed}: {heard:?}");
    }
}
