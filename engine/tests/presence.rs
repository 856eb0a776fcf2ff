//! Who is where over three hosts: their shards, and between them a relay made up here, which decides as Redis would and answers late, in bursts,
//! or not at all. The oracle where it answers: everybody who is in a room hears of each user's first coming and last going over all hosts,
//! once, and all hear it in the order in which it was decided; what a newcomer is shown is who was in at that moment. Whatever happens:
//! nobody waits for ever, nobody is left behind, and in the end all counts are right.
//!
//! A failure prints its seed. `URINGCAST_SIM_SEED=n cargo test -p engine --test presence` replays it, `URINGCAST_SIM_SEEDS=n` runs more.

mod host;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::config::{DialectKind, Endpoint, Membership, Relay};
use engine::dialect::Sight;
use engine::ids::{EndpointId, Room, ShardId, UserId};
use engine::shard::consult::{Consult, Findings};
use engine::shard::outward::{Outward, Published};
use engine::shard::parcel::{Arrival, Emit, Parcel, Selection, Target};
use engine::{About, Answer, Question, RoomAnswer, RoomCall, Ruling};
use host::Host;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const HOSTS: usize = 3;
const SHARDS: usize = 2;
const ROOMS: usize = 3;
const USERS: usize = 6;
const STEPS: usize = 2_500;
const CLIENTS_MAX: usize = 24;
const SEEDS: u64 = 60;

/// What comes to a host from Redis, in Redis' order.
#[derive(Debug)]
enum Pushed {
    Said(Arc<Published>),
    Found { shard: usize, ticket: u64, findings: Findings },
    Ruled { shard: usize, parcel: Parcel },
}

/// What Redis would have: by room and presence the hosts.
#[derive(Default)]
struct Redis {
    present: BTreeMap<(String, String), BTreeSet<usize>>,
    /// Who came and went, as it was decided.
    decided: Vec<(String, bool, String)>,
}

impl Redis {
    fn decide(&mut self, host: usize, consult: &Consult) -> Findings {
        let mut findings = Findings::default();
        let room = consult.room.name.to_string();
        if let Some(step) = &consult.step {
            let hosts = self.present.entry((room.clone(), step.presence.to_string())).or_default();
            if step.comes {
                hosts.insert(host);
                findings.is_only = Some(hosts.len() == 1);
            } else {
                hosts.remove(&host);
                findings.is_only = Some(hosts.is_empty());
            }
            if findings.is_only == Some(true) && step.announcement.is_some() {
                self.decided.push((room.clone(), step.comes, step.presence.to_string()));
            }
        }
        self.present.retain(|_, hosts| !hosts.is_empty());
        let of_room = |((of, user), _): (&(String, String), &BTreeSet<usize>)| (*of == room).then(|| UserId::from(user.as_str()));
        let online: Vec<UserId> = self.present.iter().filter_map(of_room).collect();
        findings.sight = (consult.sight && !online.is_empty()).then_some(Sight::Here);
        findings.online = consult.online.then_some(online);
        findings
    }
}

/// How the relay is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mood {
    /// Every question is answered, some of them late.
    Late,
    /// Some are not, and now and then nobody can be asked; rooms end.
    Faulty,
}

#[derive(Default, Debug)]
struct Guest {
    host: usize,
    client: usize,
    user: String,
    inside: BTreeSet<usize>,
    /// Answers to come.
    waits: usize,
    is_witness: bool,
    is_closed: bool,
    /// What it heard of others' coming and going.
    heard: Vec<(String, bool, String)>,
}

struct Simulation {
    mood: Mood,
    /// True exactly when some answers never come.
    loses: bool,
    hosts: Vec<Host>,
    /// To Redis, from each host, in order.
    outwards: Vec<VecDeque<(usize, Outward)>>,
    pushes: Vec<VecDeque<Pushed>>,
    redis: Redis,
    dice: StdRng,
    guests: Vec<Guest>,
}

fn endpoint() -> Endpoint {
    // What Redis says of members is another matter.
    let membership = Membership::Open;
    Endpoint { client_publish: true, membership, ..host::endpoint("community", DialectKind::Community, "/api/community/ws") }
}

fn room_name(room: usize) -> String {
    format!("room:r{room}")
}

impl Simulation {
    fn new(mood: Mood, seed: u64) -> Simulation {
        let host = |index: usize| {
            let mut config = host::config(SHARDS, vec![endpoint()]);
            config.relay = Some(Relay::new("redis://127.0.0.1:1"));
            config.limits.rate_messages = 1_000_000;
            let host = Host::new(config, seed * 10 + index as u64);
            host.world.is_relayed.store(true, Ordering::Relaxed);
            host
        };
        let mut simulation = Simulation {
            mood,
            loses: mood == Mood::Faulty,
            hosts: (0..HOSTS).map(host).collect(),
            outwards: (0..HOSTS).map(|_| VecDeque::new()).collect(),
            pushes: (0..HOSTS).map(|_| VecDeque::new()).collect(),
            redis: Redis::default(),
            dice: StdRng::seed_from_u64(seed),
            guests: Vec::new(),
        };
        for room in 0..ROOMS {
            for host in 0..HOSTS {
                let witness = simulation.connect(host, format!("witness{room}of{host}"));
                simulation.guests[witness].is_witness = true;
                simulation.enter(witness, room);
                simulation.rest();
            }
        }
        simulation.redis.decided.clear();
        for guest in &mut simulation.guests {
            guest.heard.clear();
        }
        simulation
    }

    fn pick(&mut self, range: Range<usize>) -> usize {
        self.dice.random_range(range)
    }

    fn connect(&mut self, host: usize, user: String) -> usize {
        let shard = self.pick(0..SHARDS);
        let token = host::token(&json!({ "sub": user }));
        let client = self.hosts[host].connect(shard, &Host::upgrade_head(&format!("/api/community/ws?token={token}"), ""));
        self.guests.push(Guest { host, client, user, ..Guest::default() });
        self.guests.len() - 1
    }

    fn say(&mut self, guest: usize, kind: &str, room: usize) {
        let (host, client) = (self.guests[guest].host, self.guests[guest].client);
        self.hosts[host].say(client, &json!({"type": kind, "payload": {"roomId": format!("r{room}")}}).to_string());
    }

    fn enter(&mut self, guest: usize, room: usize) {
        self.guests[guest].waits += 1;
        self.say(guest, "SUBSCRIBE", room);
    }

    /// Takes what a host's shards have made: for Redis, for each other, for clients.
    fn pump(&mut self, host: usize) {
        for shard in 0..SHARDS {
            self.hosts[host].pump(shard);
            if let Some(batch) = self.hosts[host].shards[shard].poll_outward() {
                self.outwards[host].extend(batch.into_iter().map(|outward| (shard, outward)));
            }
        }
    }

    /// Redis does the next thing that a host asks for.
    fn ask_redis(&mut self, host: usize) -> bool {
        let Some((shard, outward)) = self.outwards[host].pop_front() else { return false };
        match outward {
            Outward::Publish(published) => self.tell_others(host, &Arc::new(*published)),
            Outward::Consult(mut consult) => {
                let findings = self.redis.decide(host, &consult);
                let told = consult.step.as_mut().and_then(|step| step.announcement.take());
                if let Some(published) = told.filter(|_| findings.is_only == Some(true)) {
                    self.tell_others(host, &Arc::new(published));
                }
                let is_lost = self.loses && self.pick(0..20) == 0;
                if let Some(ticket) = consult.ticket.filter(|_| !is_lost) {
                    self.pushes[host].push_back(Pushed::Found { shard, ticket, findings });
                }
            }
            // Everybody is a member, and nobody has blocked anybody.
            Outward::Inquiry { number, inquiry } => {
                let parcel = match inquiry.about {
                    About::Blocked { .. } => Parcel::Blocked { number, blocked: Vec::new() },
                    _ => Parcel::Ruled { number, ruling: Box::new(Ruling::allowed()) },
                };
                if !self.loses || self.pick(0..20) > 0 {
                    self.pushes[host].push_back(Pushed::Ruled { shard, parcel });
                }
            }
            // What ends for good is forgotten everywhere, which is no business of this Redis.
            Outward::Forget { .. } => {}
            // No channel has to be listened to.
            Outward::Inhabited { .. } => {}
            other => panic!("nobody asked for {other:?}"),
        }
        true
    }

    fn tell_others(&mut self, host: usize, published: &Arc<Published>) {
        for other in (0..HOSTS).filter(|other| *other != host) {
            self.pushes[other].push_back(Pushed::Said(published.clone()));
        }
    }

    /// The next thing from Redis comes to a host.
    fn hear_redis(&mut self, host: usize) -> bool {
        let Some(pushed) = self.pushes[host].pop_front() else { return false };
        let now = self.hosts[host].now;
        match pushed {
            Pushed::Found { shard, ticket, findings } => {
                let parcel = Parcel::Consulted { ticket, findings: Box::new(findings) };
                self.hosts[host].shards[shard].handle_parcel(now, parcel);
            }
            Pushed::Ruled { shard, parcel } => self.hosts[host].shards[shard].handle_parcel(now, parcel),
            Pushed::Said(published) => {
                let Room { endpoint, name } = published.room.clone();
                let to = Selection::of(endpoint, vec![Target::Room(name)]);
                let emit = Emit { is_elsewhere: true, ..Emit::new(to, "", "", 0, now.unix_ms) };
                let text = String::from_utf8(published.frame.payload().to_vec()).expect("a text");
                let arrival = Arc::new(Arrival { emit, text: Some(text.into()), hidden_from: None, is_foreign: false });
                // Every shard of a host may get it: only the room's home makes something of it, and only it can know that it is one.
                let home = self.home_of(host, &published.room);
                self.hosts[host].shards[usize::from(home.0)].handle_parcel(now, Parcel::Arrival(arrival));
            }
        }
        true
    }

    fn home_of(&self, host: usize, room: &Room) -> ShardId {
        self.hosts[host].world.home_of(room)
    }

    /// One thing somewhere.
    fn step(&mut self) {
        match self.pick(0..12) {
            0..=1 => self.act(),
            2..=4 => {
                let (host, from, to) = (self.pick(0..HOSTS), self.pick(0..SHARDS), self.pick(0..SHARDS));
                self.hosts[host].step(from, to);
            }
            5..=6 => {
                let host = self.pick(0..HOSTS);
                self.ask_redis(host);
            }
            7..=8 => {
                let host = self.pick(0..HOSTS);
                self.hear_redis(host);
            }
            9 => {
                // A burst.
                let host = self.pick(0..HOSTS);
                while self.ask_redis(host) {}
                while self.hear_redis(host) {}
            }
            10 if self.mood == Mood::Faulty => self.misbehave(),
            _ => {}
        }
        for host in 0..HOSTS {
            self.pump(host);
        }
        self.listen();
    }

    fn act(&mut self) {
        let open: Vec<usize> = (0..self.guests.len()).filter(|i| !self.guests[*i].is_witness && !self.guests[*i].is_closed).collect();
        let dice = self.pick(0..10);
        if open.is_empty() || (dice < 2 && open.len() < CLIENTS_MAX) {
            let (host, user) = (self.pick(0..HOSTS), self.pick(0..USERS));
            self.connect(host, format!("u{user}"));
            return;
        }
        let at = self.pick(0..open.len());
        let (guest, room) = (open[at], self.pick(0..ROOMS));
        match dice {
            2..=5 => self.enter(guest, room),
            6..=7 => {
                self.guests[guest].waits += 1;
                self.say(guest, "UNSUBSCRIBE", room);
            }
            8 => {
                let (host, client) = (self.guests[guest].host, self.guests[guest].client);
                self.guests[guest].is_closed = true;
                self.hosts[host].hang_up(client);
            }
            _ => {}
        }
    }

    fn misbehave(&mut self) {
        let host = self.pick(0..HOSTS);
        match self.pick(0..40) {
            // It takes longer than anybody waits.
            0 => self.advance(1_100),
            1 => {
                let is_relayed = !self.hosts[host].world.is_relayed.load(Ordering::Relaxed);
                self.hosts[host].world.is_relayed.store(is_relayed, Ordering::Relaxed);
            }
            2 => {
                let room = self.pick(0..ROOMS);
                self.end_room(host, room);
            }
            _ => {}
        }
    }

    fn end_room(&mut self, host: usize, room: usize) {
        let question = Question::Room(RoomCall::Delete { room: Room::named(EndpointId(0), &room_name(room)) });
        for shard in 0..SHARDS {
            let (now, question) = (self.hosts[host].now, question.clone());
            self.hosts[host].shards[shard].handle_parcel(now, Parcel::Ask { ask: 1, question });
        }
    }

    fn advance(&mut self, ms: u64) {
        for host in &mut self.hosts {
            host.advance(ms);
        }
    }

    /// Until nothing moves any more.
    fn rest(&mut self) {
        loop {
            let mut moved = false;
            for host in 0..HOSTS {
                self.hosts[host].settle();
                self.pump(host);
                moved |= self.ask_redis(host);
                moved |= self.hear_redis(host);
            }
            if !moved {
                break;
            }
        }
        self.listen();
    }

    fn listen(&mut self) {
        for guest in &mut self.guests {
            for text in self.hosts[guest.host].texts(guest.client) {
                let said: Value = serde_json::from_str(&text).expect("the server sends JSON");
                let payload = &said["payload"];
                let Some(room) = payload["roomId"].as_str().and_then(|room| room.strip_prefix('r')?.parse::<usize>().ok()) else {
                    continue;
                };
                let user = || payload["userId"].as_str().expect("a user").to_owned();
                match said["type"].as_str().expect("a type") {
                    "SUBSCRIBED" => {
                        guest.waits -= 1;
                        guest.inside.insert(room);
                        let online: Vec<&str> = payload["online"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
                        let each: BTreeSet<&str> = online.iter().copied().collect();
                        assert_eq!(each.len(), online.len(), "each once: {text}");
                        assert!(each.contains(&*guest.user), "himself too: {text}");
                    }
                    "UNSUBSCRIBED" => {
                        guest.waits -= 1;
                        guest.inside.remove(&room);
                    }
                    "ERROR" => guest.waits -= 1,
                    "USER_JOINED" => guest.heard.push((room_name(room), true, user())),
                    "USER_LEFT" => guest.heard.push((room_name(room), false, user())),
                    _ => {}
                }
            }
        }
    }

    /// Who is in a room on any host.
    fn inside(&self, room: usize) -> BTreeSet<String> {
        let open = self.guests.iter().filter(|guest| !guest.is_closed && guest.inside.contains(&room));
        open.map(|guest| guest.user.clone()).collect()
    }

    /// Everything is answered and as it should be.
    fn judge(&mut self) {
        self.loses = false;
        for host in &self.hosts {
            host.world.is_relayed.store(true, Ordering::Relaxed);
        }
        self.rest();
        for _ in 0..3 {
            self.advance(1_100);
            self.rest();
        }
        for (index, guest) in self.guests.iter().enumerate() {
            assert!(guest.is_closed || guest.waits == 0, "guest {index} of {} waits for {} answers", guest.user, guest.waits);
        }
        if self.mood == Mood::Late {
            self.judge_what_was_heard();
            for room in 0..ROOMS {
                let newcomer = self.connect(0, "newcomer".into());
                self.rest();
                let (host, client) = (self.guests[newcomer].host, self.guests[newcomer].client);
                self.say(newcomer, "SUBSCRIBE", room);
                self.hosts[host].settle();
                while {
                    self.pump(host);
                    self.ask_redis(host) || self.hear_redis(host)
                } {
                    self.hosts[host].settle();
                }
                let texts = self.hosts[host].texts(client);
                let subscribed = texts.iter().find(|text| text.contains("SUBSCRIBED")).expect("an answer");
                let subscribed: Value = serde_json::from_str(subscribed).expect("JSON");
                let online: BTreeSet<String> = subscribed["payload"]["online"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|user| user.as_str().expect("a text").to_owned())
                    .collect();
                let mut expected = self.inside(room);
                expected.insert("newcomer".into());
                assert_eq!(online, expected, "who is in room {room}");
                self.guests[newcomer].is_closed = true;
                self.hosts[host].hang_up(client);
            }
        }
        for guest in 0..self.guests.len() {
            let Guest { host, client, .. } = self.guests[guest];
            self.guests[guest].is_closed = true;
            self.hosts[host].hang_up(client);
        }
        self.rest();
        self.advance(1_100);
        self.rest();
        if self.mood == Mood::Late {
            assert_eq!(self.redis.present, BTreeMap::new(), "no ghosts");
        }
        for host in 0..HOSTS {
            let shown = format!("{:?}", self.hosts[host].shards);
            assert!(!shown.contains("consults: ") || shown.matches("consults: 0").count() == SHARDS, "{shown}");
            for room in 0..ROOMS {
                self.assert_gone(host, room);
            }
            let users: u64 = self.hosts[host].stats.iter().map(|stats| stats.endpoints[0].users.read()).sum();
            assert_eq!(users, 0, "users of host {host}");
        }
    }

    fn judge_what_was_heard(&self) {
        assert!(self.redis.decided.len() > 20, "only {} comings and goings", self.redis.decided.len());
        for witness in self.guests.iter().filter(|guest| guest.is_witness) {
            let room = room_name(*witness.inside.first().expect("in one"));
            let decided: Vec<_> = self.redis.decided.iter().filter(|(of, _, _)| *of == room).collect();
            assert_eq!(witness.heard.iter().collect::<Vec<_>>(), decided, "what {} heard, and what was decided", witness.user);
            let mut here: HashMap<&str, bool> = HashMap::new();
            for (_, came, user) in &witness.heard {
                assert_ne!(here.insert(user, *came), Some(*came), "{} heard twice of {user}", witness.user);
            }
        }
    }

    fn assert_gone(&mut self, host: usize, room: usize) {
        let question = Question::Room(RoomCall::Show { room: Room::named(EndpointId(0), &room_name(room)) });
        self.hosts[host].answers.clear();
        for shard in 0..SHARDS {
            let (now, question) = (self.hosts[host].now, question.clone());
            self.hosts[host].shards[shard].handle_parcel(now, Parcel::Ask { ask: 9, question });
        }
        self.hosts[host].settle();
        for (_, ask, answer) in self.hosts[host].answers.drain(..).filter(|(_, ask, _)| *ask == 9) {
            let Answer::Room(answer) = answer else { panic!("{ask}: {answer:?}") };
            match answer {
                RoomAnswer::Members(members) => assert!(members.iter().all(Vec::is_empty), "{members:?}"),
                RoomAnswer::Refused(_) => {}
                other => panic!("host {host} still has room {room}: {other:?}"),
            }
        }
    }
}

fn simulate(mood: Mood) {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match read("URINGCAST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..read("URINGCAST_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(mood, seed);
            for _ in 0..STEPS {
                simulation.step();
            }
            simulation.judge();
        });
        if let Err(panic) = outcome {
            eprintln!("{mood:?}: URINGCAST_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn first_and_last_are_told_once_over_all_hosts_in_one_order() {
    simulate(Mood::Late);
}

#[test]
fn nobody_waits_for_ever_and_nobody_stays_whatever_the_relay_does() {
    simulate(Mood::Faulty);
}
