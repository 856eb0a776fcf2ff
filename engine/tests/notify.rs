//! The notify dialect on three shards, with every parcel between them delayed at random: connections that say later who they are, end at any
//! moment, watch each other, are put into conversations and taken out, and confirm what they got. The oracle: who watches a user is told
//! of his coming and going in turns, and the truth at the end; everybody is where the back end wants him; whoever got a message can say
//! so, nobody else, and who waits for it hears it once; and when all have gone, nothing is left.
//!
//! A failure prints its seed. `URINGCAST_SIM_SEED=n cargo test -p engine --test notify` replays it.

mod host;

use std::collections::{BTreeMap, BTreeSet};

use engine::config::DialectKind;
use engine::frame::{Frame, Mark, Receipt};
use engine::ids::{EndpointId, Room};
use engine::shard::parcel::{Origin, Parcel, Publish};
use engine::{Answer, Question, wire};
use host::Host;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const SHARDS: usize = 3;
const USERS: usize = 4;
const CONVERSATIONS: usize = 3;
const STEPS: usize = 1_500;
const CLIENTS_MAX: usize = 14;
const SEEDS: u64 = 60;
const ENDPOINT: EndpointId = EndpointId(0);
/// The user who waits for receipts; he stays.
const SENDER: &str = "sender";

#[derive(Default, Debug)]
struct Guest {
    client: usize,
    user: String,
    /// Exactly when it has been told so.
    is_authenticated: bool,
    has_asked: bool,
    is_gone: bool,
    /// What it was told of each user it watches, in order.
    told: BTreeMap<String, Vec<String>>,
    watches: BTreeSet<String>,
    got: BTreeSet<String>,
    /// Acknowledgements to come: whether they must be of success.
    asked: BTreeMap<u64, bool>,
    acks: u64,
}

struct World {
    host: Host,
    random: StdRng,
    guests: Vec<Guest>,
    /// Who is in which conversation by the back end's will.
    granted: BTreeSet<(String, String)>,
    /// To which user each message was sent.
    messages: Vec<String>,
    confirmed: BTreeSet<(String, &'static str)>,
    updates: Vec<(String, String)>,
    asks: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let config = host::config(SHARDS, vec![host::endpoint("notify", DialectKind::Notify, "/")]);
        let mut world = World {
            host: Host::new(config, seed),
            random: StdRng::seed_from_u64(seed),
            guests: Vec::new(),
            granted: BTreeSet::new(),
            messages: Vec::new(),
            confirmed: BTreeSet::new(),
            updates: Vec::new(),
            asks: 0,
        };
        world.connect(SENDER.into(), true);
        world.settle();
        world
    }

    fn connect(&mut self, user: String, at_once: bool) {
        let shard = self.random.random_range(0..SHARDS);
        let client = self.host.connect(shard, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
        let token = host::token(&json!({ "sub": user }));
        self.host.say(client, &if at_once { format!(r#"40{{"token":"{token}"}}"#) } else { "40".to_owned() });
        self.guests.push(Guest { client, user, has_asked: at_once, ..Guest::default() });
    }

    fn ask(&mut self, question: &Question) {
        self.asks += 1;
        for shard in 0..SHARDS {
            // They reach the shards one after the other, with anything in between.
            self.host.shards[shard].handle_parcel(self.host.now, Parcel::Ask { ask: self.asks, question: question.clone() });
            self.wander();
        }
    }

    /// A few parcels move, of any lanes.
    fn wander(&mut self) {
        for _ in 0..self.random.random_range(0..25) {
            let (from, to) = (self.random.random_range(0..SHARDS), self.random.random_range(0..SHARDS));
            self.host.pump(from);
            self.host.step(from, to);
        }
        self.listen();
    }

    fn settle(&mut self) {
        self.host.settle();
        self.listen();
    }

    fn anybody(&mut self) -> Option<usize> {
        let alive: Vec<usize> = (1..self.guests.len()).filter(|guest| !self.guests[*guest].is_gone).collect();
        (!alive.is_empty()).then(|| alive[self.random.random_range(0..alive.len())])
    }

    fn step(&mut self) {
        let user = format!("u{}", self.random.random_range(0..USERS));
        let room = format!("conversation:c{}", self.random.random_range(0..CONVERSATIONS));
        match self.random.random_range(0..100) {
            0..12 if self.guests.iter().filter(|guest| !guest.is_gone).count() < CLIENTS_MAX => {
                let at_once = self.random.random();
                self.connect(user, at_once);
            }
            12..24 => self.authenticate(),
            24..32 => self.hang_up(),
            32..44 => self.subscribe(&user),
            44..52 => {
                self.granted.insert((user.clone(), room.clone()));
                self.ask(&Question::Grant { endpoint: ENDPOINT, room, user });
            }
            52..60 => {
                self.granted.remove(&(user.clone(), room.clone()));
                self.ask(&Question::Revoke { endpoint: ENDPOINT, room, user });
            }
            60..68 => self.publish(user),
            68..84 => self.confirm(),
            _ => {}
        }
        self.wander();
    }

    fn authenticate(&mut self) {
        let Some(guest) = self.anybody().filter(|guest| !self.guests[*guest].has_asked) else { return };
        self.guests[guest].has_asked = true;
        let token = host::token(&json!({ "sub": self.guests[guest].user }));
        self.host.say(self.guests[guest].client, &format!(r#"42["authenticate",{{"token":"{token}"}}]"#));
    }

    fn hang_up(&mut self) {
        let Some(guest) = self.anybody() else { return };
        self.guests[guest].is_gone = true;
        self.host.hang_up(self.guests[guest].client);
    }

    /// Each user once, so that whatever comes after the first answer is a change.
    fn subscribe(&mut self, user: &str) {
        let Some(guest) = self.anybody() else { return };
        let guest = &mut self.guests[guest];
        if guest.has_asked && guest.watches.insert(user.to_owned()) {
            self.host.say(guest.client, &format!(r#"42["presence:subscribe",{{"userIds":["{user}"]}}]"#));
        }
    }

    /// To the user's own room or to his public one.
    fn publish(&mut self, user: String) {
        let id = format!("m{}", self.messages.len());
        let text = wire::sio::event("/", None, "new_message", &format!(r#"{{"message":{{"id":"{id}"}}}}"#));
        let receipt = Receipt { message: id.as_str().into(), to: SENDER.into() };
        let frame = Frame::event(ENDPOINT, &text, &[], Mark::default()).with_receipt(receipt);
        let own = self.random.random();
        let room = if own { Room::user(ENDPOINT, &user) } else { Room::named(ENDPOINT, &format!("user:{user}")) };
        self.messages.push(user);
        let publish = Publish { room, frame, except: None, hidden_from: None, keep: None, read_ns: self.host.now.ns, origin: Origin::HERE };
        let shard = self.random.random_range(0..SHARDS);
        self.host.shards[shard].handle_parcel(self.host.now, Parcel::Publish(Box::new(publish)));
    }

    /// Of a message that it got, or of one that was for somebody else.
    fn confirm(&mut self) {
        let Some(guest) = self.anybody().filter(|guest| self.guests[*guest].is_authenticated) else { return };
        let read = self.random.random();
        let word = if read { "read" } else { "delivered" };
        let of_own = self.random.random_range(0..4) > 0;
        let guest = &mut self.guests[guest];
        let others = (0..self.messages.len()).filter(|id| self.messages[*id] != guest.user).map(|id| format!("m{id}"));
        let known: Vec<String> = if of_own { guest.got.iter().cloned().collect() } else { others.collect() };
        if known.is_empty() {
            return;
        }
        let id = known[self.random.random_range(0..known.len())].clone();
        let was_sent = guest.got.contains(&id);
        if was_sent {
            self.confirmed.insert((id.clone(), word));
        }
        guest.acks += 1;
        guest.asked.insert(guest.acks, was_sent);
        let text = format!(r#"42{}["message_{word}",{{"messageId":"{id}","conversationId":"c"}}]"#, guest.acks);
        self.host.say(guest.client, &text);
    }

    fn listen(&mut self) {
        for index in 0..self.guests.len() {
            let client = self.guests[index].client;
            for text in self.host.texts(client) {
                self.hear(index, &text);
            }
        }
    }

    fn hear(&mut self, index: usize, text: &str) {
        let guest = &mut self.guests[index];
        if guest.is_gone {
            return;
        }
        let Some(start) = text.find('[').filter(|_| text.starts_with("42") || text.starts_with("43")) else { return };
        let said: Value = serde_json::from_str(&text[start..]).expect("the server sends JSON");
        if text.starts_with("43") {
            let ack = text[2..start].parse().expect("own number");
            let was_sent = guest.asked.remove(&ack).expect("asked");
            assert_eq!(said[0]["success"], was_sent, "{guest:?}: {text}");
            return;
        }
        let text_of = |value: &Value| value.as_str().expect("text").to_owned();
        match said[0].as_str().expect("an event") {
            "authenticated" => {
                assert_eq!(said[1]["userId"], guest.user.as_str());
                guest.is_authenticated = true;
            }
            "presence" => guest.told.entry(text_of(&said[1]["userId"])).or_default().push(text_of(&said[1]["status"])),
            "new_message" => {
                assert!(guest.has_asked, "nobody knows who it is, and it hears something");
                guest.got.insert(text_of(&said[1]["message"]["id"]));
            }
            "message_status_update" => {
                assert_eq!(guest.user, SENDER);
                self.updates.push((text_of(&said[1]["messageId"]), text_of(&said[1]["status"])));
            }
            // A receipt that was refused, whose acknowledgement says so too.
            "error" => assert_eq!(said[1]["code"], "FORBIDDEN", "{guest:?}: {text}"),
            other => panic!("unexpected {other}"),
        }
    }

    fn check(&mut self) {
        let online: BTreeSet<String> =
            self.guests.iter().filter(|guest| guest.is_authenticated && !guest.is_gone).map(|guest| guest.user.clone()).collect();
        for guest in self.guests.iter().filter(|guest| !guest.is_gone) {
            assert!(guest.asked.is_empty(), "unanswered: {guest:?}");
            assert_eq!(guest.is_authenticated, guest.has_asked, "{guest:?}");
            for user in &guest.watches {
                let told = guest.told.get(user).unwrap_or_else(|| panic!("{user} is watched and nothing was told: {guest:?}"));
                assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{user} comes and goes in turns: {guest:?}");
                let truth = if online.contains(user) { "online" } else { "offline" };
                assert_eq!(told.last().map(String::as_str), Some(truth), "{user}: {guest:?}");
            }
        }
        let mut updates = self.updates.clone();
        updates.sort();
        let confirmed: Vec<(String, String)> = self.confirmed.iter().map(|(id, word)| (id.clone(), (*word).to_owned())).collect();
        // What was said before a hang-up may have been lost with it; nothing is told twice, and nothing that was not said.
        assert!(updates.windows(2).all(|pair| pair[0] != pair[1]), "told twice: {updates:?}");
        assert!(updates.iter().all(|update| confirmed.contains(update)), "{updates:?} of {confirmed:?}");
        self.check_rooms();
    }

    fn check_rooms(&mut self) {
        self.host.answers.clear();
        self.ask(&Question::Connections { endpoint: None, user: None, room: None, after: None, limit: 1_000 });
        self.settle();
        let answers = std::mem::take(&mut self.host.answers);
        let mut found = 0;
        for info in answers.iter().flat_map(|(_, _, answer)| if let Answer::Connections(list) = answer { &list[..] } else { &[] }) {
            found += 1;
            let mut rooms: Vec<String> =
                self.granted.iter().filter(|(user, _)| **user == *info.user).map(|(_, room)| room.clone()).collect();
            rooms.extend((!info.user.is_empty()).then(|| format!("user:{}", info.user)));
            assert_eq!(info.rooms, rooms, "of {}", info.user);
        }
        assert_eq!(found, self.guests.iter().filter(|guest| !guest.is_gone).count());
    }

    fn end(&mut self) {
        let sum = |host: &Host, read: fn(&engine::stats::EndpointStats) -> u64| {
            host.stats.iter().fold(0_u64, |sum, stats| sum.wrapping_add(read(&stats.endpoints[0])))
        };
        let known = self.guests.iter().filter(|guest| guest.is_authenticated && !guest.is_gone).count();
        assert_eq!(sum(&self.host, |it| it.authenticated.read()), known as u64);
        for guest in 0..self.guests.len() {
            if !self.guests[guest].is_gone {
                self.host.hang_up(self.guests[guest].client);
            }
        }
        self.host.settle();
        let left = [
            sum(&self.host, |it| it.connections.read()),
            sum(&self.host, |it| it.authenticated.read()),
            sum(&self.host, |it| it.users.read()),
            sum(&self.host, |it| it.rooms.read()),
        ];
        assert_eq!(left, [0; 4], "connections, authenticated ones, users, rooms");
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for step in 0..STEPS {
        world.step();
        if step % 300 == 299 {
            world.settle();
            world.check();
        }
    }
    world.settle();
    world.check();
    let updates = world.updates.len();
    assert!(updates > 10 && world.messages.len() > 50, "{updates} receipts were no test");
    world.end();
}

#[test]
fn everybody_hears_what_is_for_him_in_order() {
    let seeds = match std::env::var("URINGCAST_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    };
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("URINGCAST_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn who_is_not_known_hears_nothing_also_by_the_name_of_his_connection() {
    use engine::{Emit, Selection, Target};
    let mut world = World::new(1);
    world.connect("u0".into(), false);
    world.settle();
    let id = |host: &Host| {
        let raw = String::from_utf8_lossy(&host.clients[1].raw).into_owned();
        let at = raw.find("40{\"sid\":\"").expect("connected") + 10;
        engine::ids::Sid::parse(&raw[at..at + 20]).expect("an id")
    };
    let to = Selection { endpoint: ENDPOINT, targets: vec![Target::Connection(id(&world.host))], except: Vec::new() };
    let emit = Emit {
        to: to.clone(),
        event: "new_message".into(),
        args: r#"{"message":{"id":"m"}}"#.into(),
        volatile: false,
        ack_ms: None,
        offset: 0.into(),
        unix_ms: 0,
        attachments: Vec::new(),
        is_elsewhere: false,
    };
    let recipients = |world: &mut World| {
        world.host.settle();
        let answers = world.host.answers.drain(..);
        answers.map(|(_, _, answer)| if let Answer::Emitted(emitted) = answer { emitted.recipients } else { 0 }).sum::<u64>()
    };
    world.ask(&Question::Emit(std::sync::Arc::new(emit.clone())));
    assert_eq!(recipients(&mut world), 0);
    assert!(!String::from_utf8_lossy(&world.host.clients[1].raw).contains("new_message"));
    let token = host::token(&json!({"sub": "u0"}));
    world.guests[1].has_asked = true;
    world.host.say(1, &format!(r#"42["authenticate",{{"token":"{token}"}}]"#));
    world.settle();
    world.ask(&Question::Emit(std::sync::Arc::new(emit)));
    assert_eq!(recipients(&mut world), 1);
}

#[test]
fn names_that_are_said_often_are_watched_once() {
    let mut world = World::new(2);
    let ids = vec![r#""u1""#; 100_000].join(",");
    world.host.say(0, &format!(r#"427["presence:subscribe",{{"userIds":["sender",{ids}]}}]"#));
    world.host.settle();
    let heard = world.host.texts(0).join("\n");
    assert_eq!((heard.matches("[\"presence\",").count(), heard.contains(r#"437[{"success":true}]"#)), (2, true), "{heard}");
}
