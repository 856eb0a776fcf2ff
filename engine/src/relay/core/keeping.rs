//! What keeps the hosts' knowledge of each other true: this host's lease, the leases of the others, what is found out about one whose lease has
//! ended (the users whom it had are gone), and telling everything anew when Redis has lost its data or could not be told for a while.
//!
//! A dead host's users leave in its name and in their dialect's words; one of the living sees to that, a few at a time. Whoever stops in good
//! order takes its leave itself.

use super::super::presence::Moved;
use super::super::request::{Call, Reply, Request};
use super::super::socketio::Post;
use super::super::words::Hello;
use super::{Core, Tag};
use crate::config::Relay;
use crate::ids::{Room, UserId};
use crate::limits::PRESENCES_PER_REQUEST_MAX;
use crate::time::Now;

/// What was asked, and what for.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Whether our lease was there when it was renewed.
    Renew,
    /// It is there now.
    Begin,
    /// Which hosts there are.
    Hosts,
    /// Which of these live.
    Leases(Vec<String>),
    /// Whether it is us who see to what a dead host had.
    Claim(String),
    /// Some of what it had.
    Estate(String),
    /// These have been taken from it.
    Reaped(String, Vec<Gone>),
    /// A part of what Redis believes to be here.
    Index,
    /// A part of what is here has been told.
    Told,
    /// These have been taken out of what Redis believes.
    Compared(Vec<(Room, UserId)>),
    /// A part of our leave, and of whom it is.
    Goodbye(Vec<(Room, UserId)>),
    /// A set of the contract's has followed; who has gone is not in it any more, and may leave his host's index.
    Followed(Option<Box<Left>>),
    /// Somebody has left an index.
    Unlisted,
}

/// Somebody whom a host has not any more.
#[derive(Debug)]
pub(crate) struct Left {
    host: String,
    room: Room,
    presence: UserId,
}

/// Somebody whom a host had that is dead.
#[derive(Debug)]
pub(crate) struct Gone {
    room: Room,
    presence: UserId,
    /// What is said of it, where the script could not say it.
    post: Option<Post>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeping {
    prefix: String,
    host: String,
    /// What our lease says.
    text: String,
    lease_ms: u64,
    renew_due_ms: u64,
    look_due_ms: u64,
    /// Presences that are to be told anew, while that goes on.
    telling: Option<Vec<(Room, UserId)>>,
    /// The dead host that we see to.
    reaping: Option<String>,
    /// True exactly when what Redis believes of us may be wrong.
    is_unsure: bool,
    is_leaving: bool,
    /// Requests under way since [`Core::take_leave`].
    farewells: usize,
    is_signed_off: bool,
}

/// Longest time between two looks at whether our lease is still there, in milliseconds: all of it is to be written again within 10 s.
const RENEW_MS: u64 = 3_000;

impl Keeping {
    pub(super) fn new(settings: &Relay, own: &Hello) -> Keeping {
        Keeping {
            prefix: settings.prefix.clone(),
            host: own.host.as_str().to_owned(),
            text: own.text(),
            lease_ms: settings.lease_ms,
            renew_due_ms: 0,
            look_due_ms: 0,
            telling: None,
            reaping: None,
            is_unsure: true,
            is_leaving: false,
            farewells: 0,
            is_signed_off: false,
        }
    }

    /// Redis can be reached (again): what it believes of us may be wrong. What was under way is not any more.
    pub(super) fn begin(&mut self, now_ms: u64) {
        (self.telling, self.reaping, self.is_unsure) = (None, None, true);
        (self.renew_due_ms, self.look_due_ms) = (now_ms, now_ms + self.lease_ms / 3);
    }

    /// When something is due, monotonic milliseconds.
    pub(super) fn next_ms(&self) -> u64 {
        self.renew_due_ms.min(self.look_due_ms)
    }

    /// Something was not done: it begins anew when it is due.
    fn fail(&mut self, errand: &Errand) {
        match errand {
            Errand::Estate(_) | Errand::Reaped(..) => self.reaping = None,
            Errand::Index | Errand::Compared(_) | Errand::Told | Errand::Begin => (self.telling, self.is_unsure) = (None, true),
            Errand::Followed(_) | Errand::Unlisted => self.is_unsure = true,
            Errand::Renew | Errand::Hosts | Errand::Leases(_) | Errand::Claim(_) | Errand::Goodbye(_) => {}
        }
    }

    /// Something of what Redis is told was lost, though the connection goes on: all of it is told again with the next renewal.
    pub(super) fn doubt(&mut self) {
        self.is_unsure = true;
    }

    fn reap_key(&self, host: &str) -> String {
        format!("{}:reap:{host}", self.prefix)
    }
}

impl Core {
    /// What is due.
    pub(super) fn keep(&mut self, now: Now) {
        if self.keeping.is_leaving {
            return;
        }
        let lease_ms = self.keeping.lease_ms;
        if self.keeping.renew_due_ms <= now.ms() {
            self.keeping.renew_due_ms = now.ms() + RENEW_MS.min(lease_ms / 3);
            let renew = self.lease_call().arg("XX");
            self.run(Errand::Renew, vec![renew]);
        }
        if self.keeping.look_due_ms <= now.ms() {
            self.keeping.look_due_ms = now.ms() + lease_ms / 3;
            let hosts = Call::new("SMEMBERS").arg(self.presence.hosts_key());
            self.run(Errand::Hosts, vec![hosts]);
        }
    }

    fn lease_call(&self) -> Call {
        let keeping = &self.keeping;
        Call::new("SET").arg(self.presence.lease_key(&keeping.host)).arg(&keeping.text).arg("PX").number(keeping.lease_ms)
    }

    fn run(&mut self, errand: Errand, calls: Vec<Call>) {
        self.requests.push_back((Tag::Kept(errand), Request::several(calls)));
    }

    /// Redis has answered, or never will: then it begins anew with the next connection.
    pub(super) fn kept(&mut self, now: Now, errand: Errand, replies: Option<Vec<Reply>>) {
        if let Errand::Goodbye(gone) = &errand {
            return self.said_goodbye(gone, replies.as_deref());
        }
        if self.keeping.is_leaving {
            return;
        }
        let Some(replies) = replies else { return self.keeping.fail(&errand) };
        let first = replies.first();
        match errand {
            // The first of a connection finds none as well: then it is the first of all, or has just been lost.
            Errand::Renew if first == Some(&Reply::Nil) => {
                let calls = vec![self.lease_call(), self.presence.listed(&self.keeping.host)];
                self.run(Errand::Begin, calls);
                self.tell_anew();
            }
            // Whoever had taken us for dead may have struck us off after we were back, and who stands on no list is missed by nobody when he dies.
            Errand::Renew => {
                let listed = self.presence.listed(&self.keeping.host);
                self.requests.push_back((Tag::Noted, listed.into()));
                if self.keeping.is_unsure {
                    self.tell_anew();
                }
            }
            Errand::Hosts => self.look_at(first),
            Errand::Leases(hosts) => self.look_for_dead(&hosts, &replies),
            Errand::Claim(dead) if first.and_then(Reply::text) == Some("OK") && self.keeping.reaping.is_none() => {
                self.keeping.reaping = Some(dead.clone());
                self.open_estate(dead);
            }
            Errand::Estate(dead) => self.reap(now, dead, &replies),
            Errand::Reaped(dead, gone) => self.reaped(now, dead, gone, &replies),
            Errand::Index => self.compare(first),
            Errand::Told => self.tell_more(),
            Errand::Compared(gone) => self.follow_gone(&gone, &replies),
            Errand::Begin => {
                self.hosts.announce();
                self.take_outcomes();
            }
            // What is not allowed will not be the next time either.
            Errand::Followed(_) | Errand::Unlisted if first.is_some_and(|reply| reply.error().is_some() && !reply.is_error("NOPERM")) => {
                self.keeping.doubt();
            }
            Errand::Followed(Some(left)) => self.unlist(&left),
            Errand::Claim(_) | Errand::Goodbye(_) | Errand::Followed(None) | Errand::Unlisted => {}
        }
    }

    /// Everything that is here is told, and what Redis believes besides is taken back.
    fn tell_anew(&mut self) {
        self.keeping.is_unsure = false;
        self.keeping.telling = Some(self.presence.all());
        self.scan("0");
    }

    fn scan(&mut self, cursor: &str) {
        let scan = Call::new("SSCAN").arg(self.presence.at_key(&self.keeping.host)).arg(cursor).arg("COUNT");
        self.run(Errand::Index, vec![scan.number(PRESENCES_PER_REQUEST_MAX as u64)]);
    }

    /// A part of what Redis believes to be here.
    fn compare(&mut self, reply: Option<&Reply>) {
        let Some([cursor, lines]) = reply.map(Reply::list) else { return self.tell_more() };
        let read = lines.list().iter().filter_map(Reply::text).filter_map(|line| self.presence.read_line(line));
        let gone: Vec<(Room, UserId)> = read.filter(|(room, presence)| !self.presence.is_here(room, presence)).collect();
        let calls: Vec<Call> =
            gone.iter().flat_map(|(room, presence)| self.presence.moved(&self.own_step(room, presence, false), None)).collect();
        if !calls.is_empty() {
            self.run(Errand::Compared(gone), calls);
        }
        match cursor.text() {
            Some(cursor) if cursor != "0" => self.scan(cursor),
            _ => self.tell_more(),
        }
    }

    fn own_step<'a>(&'a self, room: &'a Room, presence: &'a UserId, comes: bool) -> Moved<'a> {
        Moved { host: &self.keeping.host, room, presence, comes, unix_ms: None, is_strict: false }
    }

    fn follow_gone(&mut self, gone: &[(Room, UserId)], replies: &[Reply]) {
        let mut from = 0;
        for (room, presence) in gone {
            let (outcome, count) = self.presence.outcome(false, replies.get(from..).unwrap_or_default());
            from += count;
            if let Some(outcome) = outcome {
                let left = Left { host: self.keeping.host.clone(), room: room.clone(), presence: presence.clone() };
                self.follow_left(left, outcome == 1);
            }
        }
    }

    /// The next of those who are to be told.
    fn tell_more(&mut self) {
        while let Some(mut telling) = self.keeping.telling.take().filter(|telling| !telling.is_empty()) {
            let some = telling.split_off(telling.len().saturating_sub(PRESENCES_PER_REQUEST_MAX));
            self.keeping.telling = Some(telling);
            let mut calls = Vec::new();
            // Who has gone meanwhile is not there any more.
            for (room, presence) in some.iter().filter(|(room, presence)| self.presence.is_here(room, presence)) {
                calls.extend(self.presence.moved(&self.own_step(room, presence, true), None));
                calls.extend(self.presence.followed(room, presence, true));
            }
            if !calls.is_empty() {
                return self.run(Errand::Told, calls);
            }
        }
    }

    fn look_at(&mut self, reply: Option<&Reply>) {
        let hosts = reply.map_or(&[][..], Reply::list).iter().filter_map(Reply::text);
        let hosts: Vec<String> = hosts.filter(|host| *host != self.keeping.host).map(str::to_owned).collect();
        if !hosts.is_empty() {
            let calls = hosts.iter().map(|host| Call::new("EXISTS").arg(self.presence.lease_key(host))).collect();
            self.run(Errand::Leases(hosts), calls);
        }
    }

    fn look_for_dead(&mut self, hosts: &[String], replies: &[Reply]) {
        if self.keeping.reaping.is_some() {
            return;
        }
        for (host, _) in hosts.iter().zip(replies).filter(|(_, reply)| reply.int() == Some(0)) {
            let claim = Call::new("SET").arg(self.keeping.reap_key(host)).arg(&self.keeping.host).arg("NX").arg("PX");
            let claim = claim.number(self.keeping.lease_ms / 3);
            self.run(Errand::Claim(host.clone()), vec![claim]);
        }
    }

    fn open_estate(&mut self, dead: String) {
        let some = Call::new("SRANDMEMBER").arg(self.presence.at_key(&dead)).number(PRESENCES_PER_REQUEST_MAX as u64);
        let claim = Call::new("PEXPIRE").arg(self.keeping.reap_key(&dead)).number(self.keeping.lease_ms / 3);
        let lease = Call::new("EXISTS").arg(self.presence.lease_key(&dead));
        self.run(Errand::Estate(dead), vec![some, claim, lease]);
    }

    /// Some of what a dead host had is taken from it, and told.
    fn reap(&mut self, now: Now, dead: String, replies: &[Reply]) {
        if replies.get(2).and_then(Reply::int) != Some(0) {
            // It was only slow.
            self.keeping.reaping = None;
            return;
        }
        let lines: Vec<String> = replies.first().map_or(&[][..], Reply::list).iter().filter_map(Reply::text).map(str::to_owned).collect();
        if lines.is_empty() {
            self.keeping.reaping = None;
            let calls = vec![self.presence.struck_off(&dead), Call::new("DEL").arg(self.keeping.reap_key(&dead))];
            self.requests.push_back((Tag::Noted, Request::several(calls)));
            return;
        }
        let (mut gone, mut calls, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
        for line in &lines {
            let Some((room, presence)) = self.presence.read_line(line) else {
                // Of an endpoint that is not served here: nobody could be told.
                foreign.push(Call::new("SREM").arg(self.presence.at_key(&dead)).arg(line));
                continue;
            };
            let published = self.world.farewell(now, &room, &presence, &mut self.random);
            let post = published.and_then(|published| self.post_as(&published, Some(&dead)));
            let told = post.as_ref().filter(|_| self.presence.tells_itself());
            let unix_ms = Some(now.unix_ms);
            let moved = Moved { host: &dead, room: &room, presence: &presence, comes: false, unix_ms, is_strict: true };
            calls.extend(self.presence.moved(&moved, told));
            gone.push(Gone { room, presence, post: post.filter(|_| !self.presence.tells_itself()) });
        }
        if !foreign.is_empty() {
            self.requests.push_back((Tag::Noted, Request::several(foreign)));
        }
        if gone.is_empty() {
            return self.open_estate(dead);
        }
        self.run(Errand::Reaped(dead, gone), calls);
    }

    fn reaped(&mut self, now: Now, dead: String, gone: Vec<Gone>, replies: &[Reply]) {
        if replies.iter().any(|reply| reply.error().is_some()) {
            // As it is, it would go on for ever.
            self.keeping.reaping = None;
            return;
        }
        let mut from = 0;
        for Gone { room, presence, post } in gone {
            let (outcome, count) = self.presence.outcome(false, replies.get(from..).unwrap_or_default());
            from += count;
            let Some(outcome) = outcome else { continue };
            self.follow_left(Left { host: dead.clone(), room, presence }, outcome == 1);
            if outcome != 1 {
                continue;
            }
            if let Some(post) = post {
                self.enqueue(now, post.call());
            }
        }
        self.open_estate(dead);
    }

    /// What could not be changed in the same breath when somebody came or went here, as Redis has found (`is_only`: nobody else has him).
    pub(super) fn follow(&mut self, room: &Room, presence: &UserId, comes: bool, is_only: Option<bool>) {
        if is_only.is_none() && self.is_cluster {
            self.keeping.doubt();
        }
        if comes {
            if let Some(call) = self.presence.followed(room, presence, true) {
                self.run(Errand::Followed(None), vec![call]);
            }
        } else if let Some(is_only) = is_only {
            self.follow_left(Left { host: self.keeping.host.clone(), room: room.clone(), presence: presence.clone() }, is_only);
        }
    }

    /// Somebody has gone: first the contract's set follows, then the index.
    fn follow_left(&mut self, left: Left, is_only: bool) {
        if self.is_back(&left) {
            return;
        }
        let call = self.presence.followed(&left.room, &left.presence, false).filter(|_| is_only);
        match call {
            Some(call) if self.keeping.is_leaving => self.farewell(Vec::new(), vec![call]),
            Some(call) => self.run(Errand::Followed(Some(Box::new(left))), vec![call]),
            None => self.unlist(&left),
        }
    }

    fn unlist(&mut self, left: &Left) {
        // Whose host leaves, leaves with its index.
        if self.is_back(left) || self.keeping.is_leaving {
            return;
        }
        if let Some(call) = self.presence.unlisted(&left.host, &left.room, &left.presence) {
            self.run(Errand::Unlisted, vec![call]);
        }
    }

    /// True exactly when he is here again, and what is still to be said of his going would come after his coming.
    fn is_back(&self, left: &Left) -> bool {
        left.host == self.keeping.host && !self.keeping.is_leaving && self.presence.is_here(&left.room, &left.presence)
    }

    /// All shards have ended. Nobody is here any more, and the others are told.
    pub(crate) fn take_leave(&mut self, now: Now) {
        self.keeping.is_leaving = true;
        self.handle_end_of_shards(now);
        if self.keeping.telling.is_some() {
            // Not all that Redis believes of us has been compared: whoever is there for it alone is left to the others, with the index.
            self.keeping.doubt();
        }
        if !self.is_up {
            return;
        }
        let mut all = self.presence.all();
        let lease = Call::new("DEL").arg(self.presence.lease_key(&self.keeping.host));
        self.farewell(Vec::new(), vec![lease]);
        while !all.is_empty() {
            let some = all.split_off(all.len().saturating_sub(PRESENCES_PER_REQUEST_MAX));
            let mut calls = Vec::new();
            for (room, presence) in &some {
                let published = self.world.farewell(now, room, presence, &mut self.random);
                let post = published.and_then(|published| self.post_of(&published));
                let moved = Moved { unix_ms: Some(now.unix_ms), is_strict: true, ..self.own_step(room, presence, false) };
                calls.extend(self.presence.moved(&moved, post.as_ref().filter(|_| self.presence.tells_itself())));
            }
            self.farewell(some, calls);
        }
    }

    fn farewell(&mut self, gone: Vec<(Room, UserId)>, calls: Vec<Call>) {
        self.keeping.farewells += 1;
        self.run(Errand::Goodbye(gone), calls);
    }

    /// A part of our leave was taken. Where all of it was, nothing is left to be found out about this host.
    fn said_goodbye(&mut self, gone: &[(Room, UserId)], replies: Option<&[Reply]>) {
        self.keeping.farewells = self.keeping.farewells.saturating_sub(1);
        self.keeping.is_unsure |= replies.is_none();
        self.follow_gone(gone, replies.unwrap_or_default());
        if self.keeping.farewells == 0 && !self.keeping.is_unsure && !std::mem::replace(&mut self.keeping.is_signed_off, true) {
            let hosts = Call::new("SREM").arg(self.presence.hosts_key()).arg(&self.keeping.host);
            let index = Call::new("DEL").arg(self.presence.at_key(&self.keeping.host));
            self.farewell(Vec::new(), vec![index, hosts]);
        }
    }

    /// True exactly when nothing is left to be told.
    pub(crate) fn has_left(&self) -> bool {
        let has_entries = self.streams.as_ref().is_some_and(|streams| streams.waiting().0 > 0) || self.sessions_pending() > 0;
        let is_told = !has_entries && self.waiting.is_empty() && self.in_flight == 0 && self.consults.is_idle() && self.requests.is_empty();
        !self.is_up || (self.keeping.farewells == 0 && is_told)
    }
}
