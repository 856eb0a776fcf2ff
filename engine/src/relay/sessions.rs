//! Sessions on their way from host to host, in the reliable mode: written to Redis when a connection has broken off, fetched once when its
//! client comes back, and given what it has missed. In Redis they have the form of `@socket.io/redis-streams-adapter`, so that Node's servers
//! take them too, and we theirs; one member more, `uringcast`, is for hosts of our own.
//!
//! | key | holds |
//! |---|---|
//! | `sio:session:PID` | a session, until its window is over |
//! | `PREFIX:revoked:ENDPOINT:ROOM` | when sessions in that room were revoked, milliseconds since 1970; for the longest window |
//!
//! What a restored connection has missed is exact because of tides ([`crate::shard::tides`]): they are sent from here.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use super::core::{Core, Tag};
use super::format::{self, streams};
use super::frozen::{FrozenPending, FrozenSessions, Successors};
use super::journal::Journal;
use super::request::{Call, Reply, Request};
use super::streams::EVENTS;
use crate::auth::{Details, Identity};
use crate::config::{Config, Relay};
use crate::dialect::Profile;
use crate::frame::{Frame, Mark, Packet};
use crate::ids::{EndpointId, ShardId, Sid};
use crate::json::Scratch;
use crate::limits::{
    FETCH_AGAIN_MS, FETCH_MS, RELAY_JOURNAL_BYTES_MAX, RELAY_JOURNAL_CARRIED_BYTES_MAX, SESSION_EVENTS_MAX, SESSIONS_LATER_MAX,
    SESSIONS_PENDING_BYTES_MAX, TIDE_MS,
};
use crate::shard::handover::{Fetched, Found, Missed, Past, Session, Since, Told, ToldKind, Wanted};
use crate::shard::outward::Outward;
use crate::shard::parcel::{Arrival, Parcel};
use crate::shard::tides::Tide;
use crate::time::Now;
use crate::wire::sio::{EntryId, Offset};

/// Begins the keys of sessions: the adapter's option `sessionKeyPrefix`.
const SESSION_KEY: &str = "sio:session:";
/// The member of a session that is for our own hosts.
const MEMBER: &str = "uringcast";

/// What a request about sessions was for.
#[derive(Debug)]
pub(crate) enum SessionTag {
    /// To take a session out, for the fetch of this number.
    Fetch(u64, Sid),
    /// Whether it may be taken up, for the same.
    Check(u64),
    /// How far the stream is, for the wish of this number.
    Last(u64),
    /// It does not matter what is answered.
    Written,
}

/// A session that is not written yet, because this host's own events before it are not.
#[derive(Debug)]
struct Pending {
    /// The tide that has to come back first: what its client has heard may still be on its way from another shard to the relay.
    tide: u64,
    /// Number of the last of them, once that is known.
    after: Option<u64>,
    pid: Sid,
    endpoint: EndpointId,
    left_unix_ms: u64,
    value: String,
}

#[derive(Debug)]
struct Fetch {
    shard: ShardId,
    ask: u64,
    endpoint: EndpointId,
    pid: Sid,
    is_away: bool,
    deadline_ms: u64,
    /// When it is tried once more; `u64::MAX` where it is not.
    again_ms: u64,
    is_second: bool,
    found: Option<(Session, Box<[u8]>)>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    wanted: Wanted,
    /// The tide that must be done.
    tide: u64,
    /// The entry up to which the stream must have been read; `None` until it is known.
    last: Option<EntryId>,
    deadline_ms: u64,
}

/// Where the tides are.
#[derive(Default, Debug)]
struct Tides {
    /// Number of the last that was sent.
    number: u64,
    is_under_way: bool,
    answered: usize,
    /// When it is looked whether another is due.
    look_ms: u64,
    mark: EntryId,
    done: u64,
    /// True exactly when the next is not to wait.
    is_urgent: bool,
    /// Those that have come back, and how many questions with an announcement had come by then, which is told when they are done with.
    ending: VecDeque<(u64, u64)>,
    /// Those that have come back, and the number of our last entry at that time.
    ended: VecDeque<(u64, u64)>,
}

/// See the module.
pub(super) struct Sessions {
    host: String,
    prefix: String,
    /// Names of the endpoints, and milliseconds for which they remember; none where nobody comes back.
    endpoints: Vec<(String, u64)>,
    scratch: Scratch,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// Commands for when Redis is there again.
    later: VecDeque<Call>,
    /// Those that Redis has not answered.
    writing: usize,
    fetches: BTreeMap<u64, Fetch>,
    waiting: Vec<Waiting>,
    next: u64,
    tides: Tides,
    pub(super) journal: Journal,
}

impl Sessions {
    /// Nothing where no endpoint remembers connections that broke off.
    pub(super) fn new(config: &Config, settings: &Relay, host: &str) -> Option<Sessions> {
        let of = |endpoint: &crate::config::Endpoint| {
            (endpoint.name.clone(), if endpoint.dialect.is_socket_io() { endpoint.recovery_ms } else { 0 })
        };
        let endpoints: Vec<(String, u64)> = config.endpoints.iter().map(of).collect();
        endpoints.iter().any(|(_, window_ms)| *window_ms > 0).then(|| Sessions {
            host: host.to_owned(),
            prefix: settings.prefix.clone(),
            endpoints,
            scratch: format::scratch(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            later: VecDeque::new(),
            writing: 0,
            fetches: BTreeMap::new(),
            waiting: Vec::new(),
            next: 0,
            tides: Tides::default(),
            journal: Journal::new(RELAY_JOURNAL_BYTES_MAX),
        })
    }

    fn window_ms(&self, endpoint: EndpointId) -> u64 {
        self.endpoints.get(usize::from(endpoint.0)).map_or(0, |(_, window_ms)| *window_ms)
    }

    /// The command that keeps a session for the rest of its time; nothing when that is over.
    fn set(&self, now: Now, endpoint: EndpointId, pid: Sid, value: impl AsRef<[u8]>, left_unix_ms: u64) -> Option<Call> {
        let left = if left_unix_ms == 0 { now.unix_ms } else { left_unix_ms };
        let rest_ms = self.window_ms(endpoint).checked_sub(now.unix_ms.saturating_sub(left)).filter(|rest_ms| *rest_ms > 0)?;
        Some(Call::new("SET").arg(key(pid)).arg(value).arg("PX").number(rest_ms as i128))
    }

    fn do_later(&mut self, call: Call) {
        if self.later.len() >= SESSIONS_LATER_MAX {
            self.later.pop_front();
        }
        self.later.push_back(call);
    }

    fn pend(&mut self, session: &Session) {
        let Some(value) = self.value_of(session) else { return };
        self.unpend(session.pid);
        self.pending_bytes += value.len();
        let Session { pid, endpoint, left_unix_ms, .. } = *session;
        self.pending.push_back(Pending { tide: self.tides.number + 1, after: None, pid, endpoint, left_unix_ms, value });
        while self.pending_bytes > SESSIONS_PENDING_BYTES_MAX
            && let Some(oldest) = self.pending.pop_front()
        {
            self.pending_bytes -= oldest.value.len();
        }
    }

    /// What goes on after a reload, when all that shards have said has come; `appended`: number of the last of our entries. Tides begin anew: what was before
    /// the reload is before the first.
    pub(super) fn freeze(&self, appended: u64) -> FrozenSessions {
        let pending = |pending: &Pending| FrozenPending {
            after: pending.after.unwrap_or(appended),
            pid: pending.pid,
            endpoint: pending.endpoint.0,
            left_unix_ms: pending.left_unix_ms,
            value: pending.value.clone(),
        };
        let (floor, journal) = self.journal.freeze(RELAY_JOURNAL_CARRIED_BYTES_MAX);
        FrozenSessions { pending: self.pending.iter().map(pending).collect(), later: self.later.iter().cloned().collect(), floor, journal }
    }

    pub(super) fn thaw(&mut self, frozen: FrozenSessions, successor: Successors<'_>) {
        let pending = |pending: FrozenPending| {
            let FrozenPending { after, pid, endpoint, left_unix_ms, value } = pending;
            Some(Pending { tide: 0, after: Some(after), pid, endpoint: successor(endpoint)?, left_unix_ms, value })
        };
        self.pending = frozen.pending.into_iter().filter_map(pending).collect();
        self.pending_bytes = self.pending.iter().map(|pending| pending.value.len()).sum();
        self.later = frozen.later.into();
        self.journal.begin(frozen.floor);
        for (id, mut arrival) in frozen.journal {
            let Some(endpoint) = successor(arrival.emit.to.endpoint.0) else { continue };
            if arrival.emit.to.endpoint != endpoint {
                Arc::make_mut(&mut arrival).emit.to.endpoint = endpoint;
            }
            self.journal.note(id, arrival);
        }
    }

    /// True exactly when it was not written yet, and will not be.
    fn unpend(&mut self, pid: Sid) -> bool {
        let Some(at) = self.pending.iter().position(|pending| pending.pid == pid) else { return false };
        if let Some(gone) = self.pending.remove(at) {
            self.pending_bytes -= gone.value.len();
        }
        true
    }

    /// The next session that can be written.
    fn next_written(&mut self, now: Now, confirmed: u64) -> Option<Call> {
        while let Some(pending) = self.pending.pop_front_if(|first| first.after.is_some_and(|after| after <= confirmed)) {
            self.pending_bytes -= pending.value.len();
            let call = self.set(now, pending.endpoint, pending.pid, &pending.value, pending.left_unix_ms);
            if call.is_some() {
                return call;
            }
        }
        None
    }

    fn value_of(&mut self, session: &Session) -> Option<String> {
        let words = Words::of(session, &self.host, &self.endpoints[usize::from(session.endpoint.0)].0)?;
        let own = serde_json::to_string(&words).ok()?;
        let session = streams::Session {
            sid: session.sid.to_string(),
            pid: session.pid.to_string(),
            rooms: session.rooms.iter().map(|name| name.to_string()).collect(),
            data_json: "{}".to_owned(),
            others: vec![(MEMBER.to_owned(), own)],
        };
        streams::encode_session(&mut self.scratch, &session).ok()
    }

    /// What was found under a key, and the host that wrote it if it is one of ours.
    fn read(&mut self, endpoint: EndpointId, pid: Sid, value: &[u8]) -> Option<(Session, Option<String>)> {
        let read = streams::decode_session(&mut self.scratch, value).ok()?;
        let sid = Sid::parse(&read.sid)?;
        if Sid::parse(&read.pid)? != pid {
            return None;
        }
        let rooms = read.rooms.iter().map(|name| name.as_str().into()).collect();
        let session = Session { endpoint, sid, pid, rooms, left_unix_ms: 0, past: None };
        let Some((_, own)) = read.others.iter().find(|(member, _)| member == MEMBER) else {
            // Names that no client of ours could give are no rooms of ours.
            let rooms = session.rooms.iter().filter(|name| crate::ids::checked_name(name).is_ok()).cloned().collect();
            return Some((Session { rooms, ..session }, None));
        };
        let words: Words = serde_json::from_str(own).ok()?;
        if words.endpoint != self.endpoints.get(usize::from(endpoint.0))?.0 || words.tail.len() > SESSION_EVENTS_MAX {
            return None;
        }
        let (left_unix_ms, host) = (words.left, words.host.clone());
        Some((Session { left_unix_ms, past: Some(words.past(endpoint)?), ..session }, Some(host)))
    }

    fn revoked_key(&self, endpoint: EndpointId, room: &str) -> String {
        let name = self.endpoints.get(usize::from(endpoint.0)).map_or("", |(name, _)| name);
        format!("{}:revoked:{name}:{room}", self.prefix)
    }

    /// Keys that say whether a session may be taken up.
    fn revoked_keys(&self, session: &Session) -> Vec<String> {
        let user = session.past.as_ref().map(|past| crate::ids::Room::user(session.endpoint, &past.profile.user).name);
        let names: HashSet<&str> = session.rooms.iter().chain(&user).map(|name| &**name).chain([""]).collect();
        names.into_iter().map(|name| self.revoked_key(session.endpoint, name)).collect()
    }

    /// The last tide before which everything of ours stands in what was read.
    fn done(&mut self, read: u64) -> u64 {
        let ended = &mut self.tides.ended;
        while ended.get(1).is_some_and(|(_, last)| *last <= read) {
            ended.pop_front();
        }
        ended.front().filter(|(_, last)| *last <= read).map_or(self.tides.done, |(number, _)| *number)
    }

    /// When something is due, monotonic milliseconds.
    pub(super) fn poll_timeout(&self) -> u64 {
        let of_fetches = self.fetches.values().map(|fetch| fetch.deadline_ms.min(fetch.again_ms)).min();
        let of_waiting = self.waiting.iter().map(|waiting| waiting.deadline_ms).min();
        of_fetches.into_iter().chain(of_waiting).min().unwrap_or(u64::MAX).min(self.tides.look_ms)
    }
}

fn key(pid: Sid) -> String {
    format!("{SESSION_KEY}{pid}")
}

impl Core {
    /// What shards say of sessions; true when it was that.
    pub(super) fn handle_of_sessions(&mut self, now: Now, shard: ShardId, outward: Outward) {
        let is_up = self.is_up;
        let Some(sessions) = &mut self.sessions else {
            // Nobody remembers anything, so nobody can be waiting.
            return;
        };
        match outward {
            Outward::Tide { number } => {
                let tides = &mut sessions.tides;
                tides.answered += usize::from(number == tides.number);
                if tides.is_under_way && tides.answered >= self.world.config.shards.len() {
                    tides.is_under_way = false;
                    tides.ending.push_back((number, self.asked));
                }
            }
            Outward::Session(mut session) => {
                let namespace = self.socket_io.of(session.endpoint);
                let outside = |name: &Arc<str>| namespace.map_or_else(|| name.clone(), |namespace| namespace.name_outside(name).into());
                session.rooms = session.rooms.iter().map(outside).collect();
                sessions.pend(&session);
                sessions.tides.is_urgent = true;
            }
            Outward::Fetch { ask, endpoint, pid, is_away } => {
                let was_pending = sessions.unpend(pid);
                if was_pending || !is_up {
                    let fetched = match (is_away, was_pending) {
                        (false, _) => Fetched::Nothing,
                        (true, true) => Fetched::Local,
                        (true, false) => Fetched::Unknown,
                    };
                    self.parcels.push_back((shard, Parcel::Fetched { ask, fetched }));
                } else {
                    sessions.next += 1;
                    let (number, deadline_ms) = (sessions.next, now.ms() + FETCH_MS);
                    let (again_ms, is_second, found) = (u64::MAX, is_away, None);
                    sessions.fetches.insert(number, Fetch { shard, ask, endpoint, pid, is_away, deadline_ms, again_ms, is_second, found });
                    self.take_out(number, pid);
                }
            }
            Outward::PutBack(found) => self.put_back(now, &found.session, &found.raw),
            Outward::Wanted(mut wanted) => {
                // Other servers call some of the rooms by another name.
                if let Some(namespace) = self.socket_io.of(wanted.endpoint) {
                    let outside: Vec<Arc<str>> = wanted.names.iter().map(|name| namespace.name_outside(name).into()).collect();
                    wanted.names.extend(outside);
                }
                sessions.next += 1;
                let (number, tide) = (sessions.next, sessions.tides.number + 1);
                let deadline_ms = now.ms() + FETCH_MS;
                sessions.waiting.push(Waiting { number, wanted: *wanted, tide, last: None, deadline_ms });
                sessions.tides.is_urgent = true;
                let stream = self.streams.as_ref().map_or("", |streams| streams.key(EVENTS));
                let last = Call::new("XREVRANGE").arg(stream).arg("+").arg("-").arg("COUNT").number(1);
                self.requests.push_back((Tag::Session(SessionTag::Last(number)), last.into()));
            }
            Outward::Revoke { endpoint, rooms } => {
                let window_ms = sessions.window_ms(endpoint);
                for room in rooms {
                    let key = sessions.revoked_key(endpoint, &room);
                    sessions.do_later(Call::new("SET").arg(key).number(now.unix_ms as i128).arg("PX").number(window_ms as i128));
                }
            }
            _ => {}
        }
        self.go_on_with_sessions(now);
    }

    fn take_out(&mut self, number: u64, pid: Sid) {
        let calls = vec![Call::new("GET").arg(key(pid)), Call::new("DEL").arg(key(pid))];
        self.requests.push_back((Tag::Session(SessionTag::Fetch(number, pid)), Request::atomic(calls)));
    }

    fn put_back(&mut self, now: Now, session: &Session, raw: &[u8]) {
        let Some(sessions) = &mut self.sessions else { return };
        if let Some(call) = sessions.set(now, session.endpoint, session.pid, raw, session.left_unix_ms) {
            sessions.do_later(call);
        }
    }

    /// Redis has answered a request about sessions, or never will.
    pub(super) fn replied_of_sessions(&mut self, now: Now, tag: &SessionTag, replies: Option<&[Reply]>) {
        match *tag {
            SessionTag::Fetch(number, pid) => self.taken_out(now, number, pid, replies.and_then(|replies| replies.first())),
            SessionTag::Check(number) => self.checked(now, number, replies),
            SessionTag::Last(number) => {
                let last = replies.and_then(|replies| match replies.first()?.list().first() {
                    Some(entry) => EntryId::parse(entry.list().first()?.text()?),
                    None => Some(EntryId::default()),
                });
                let Some(sessions) = &mut self.sessions else { return };
                if let Some(waiting) = sessions.waiting.iter_mut().find(|waiting| waiting.number == number) {
                    match last {
                        Some(last) => waiting.last = Some(last),
                        None => waiting.deadline_ms = 0,
                    }
                }
            }
            SessionTag::Written => {
                if let Some(sessions) = &mut self.sessions {
                    // Never again, also if Redis may not have done it: a session that is written twice could be taken twice.
                    sessions.writing = sessions.writing.saturating_sub(1);
                }
            }
        }
        self.go_on_with_sessions(now);
    }

    fn taken_out(&mut self, now: Now, number: u64, pid: Sid, reply: Option<&Reply>) {
        let Some(sessions) = &mut self.sessions else { return };
        let value = reply.and_then(Reply::bytes);
        let Some(fetch) = sessions.fetches.get_mut(&number) else {
            // Nobody waits for it any more.
            let endpoint = (0..sessions.endpoints.len()).map(|index| EndpointId(index as u8)).find(|id| sessions.window_ms(*id) > 0);
            if let Some(call) = value.zip(endpoint).and_then(|(value, endpoint)| sessions.set(now, endpoint, pid, value, 0)) {
                sessions.do_later(call);
            }
            return;
        };
        let (endpoint, is_away, is_second) = (fetch.endpoint, fetch.is_away, fetch.is_second);
        let Some(value) = value else {
            match reply {
                // Its old host may not have noticed yet that it has gone.
                Some(Reply::Nil) if !is_second => (fetch.again_ms, fetch.is_second) = (now.ms() + FETCH_AGAIN_MS, true),
                Some(Reply::Nil) => self.answer_fetch(number, Fetched::Nothing),
                // What Redis did nobody knows.
                _ => self.answer_fetch(number, if is_away { Fetched::Unknown } else { Fetched::Nothing }),
            }
            return;
        };
        let raw: Box<[u8]> = value.into();
        match sessions.read(endpoint, pid, &raw) {
            None => self.answer_fetch(number, Fetched::Nothing),
            Some((_, Some(host))) if is_away && host == sessions.host => self.answer_fetch(number, Fetched::Local),
            Some((session, _)) => {
                let keys = sessions.revoked_keys(&session);
                if let Some(fetch) = sessions.fetches.get_mut(&number) {
                    fetch.found = Some((session, raw));
                }
                let calls = keys.into_iter().map(|key| Call::new("GET").arg(key)).collect();
                self.requests.push_back((Tag::Session(SessionTag::Check(number)), Request::several(calls)));
            }
        }
    }

    fn checked(&mut self, now: Now, number: u64, replies: Option<&[Reply]>) {
        let Some(fetch) = self.sessions.as_mut().and_then(|sessions| sessions.fetches.get_mut(&number)) else { return };
        let Some((session, raw)) = fetch.found.take() else { return };
        let Some(replies) = replies else {
            self.put_back(now, &session, &raw);
            return self.answer_fetch(number, Fetched::Nothing);
        };
        let is_revoked = |reply: &Reply| reply.int().is_some_and(|at| at >= 0 && at as u64 >= session.left_unix_ms);
        let fetched = if replies.iter().any(is_revoked) { Fetched::Nothing } else { Fetched::Session(Box::new(Found { session, raw })) };
        self.answer_fetch(number, fetched);
    }

    fn answer_fetch(&mut self, number: u64, fetched: Fetched) {
        if let Some(Fetch { shard, ask, .. }) = self.sessions.as_mut().and_then(|sessions| sessions.fetches.remove(&number)) {
            let is_found = matches!(fetched, Fetched::Session(_));
            self.parcels.push_back((shard, Parcel::Fetched { ask, fetched }));
            if let Some(sessions) = self.sessions.as_mut().filter(|_| is_found) {
                // The shard may have to know first how far it has been read here.
                sessions.tides.is_urgent = true;
            }
        }
    }

    /// What is due, or has become possible.
    pub(super) fn go_on_with_sessions(&mut self, now: Now) {
        let Some((sessions, streams)) = self.sessions.as_mut().zip(self.streams.as_ref()) else { return };
        let late: Vec<(u64, bool)> = sessions
            .fetches
            .iter()
            .filter(|(_, fetch)| fetch.deadline_ms <= now.ms() || !self.is_up)
            .map(|(number, fetch)| (*number, fetch.is_away))
            .collect();
        let again: Vec<(u64, Sid)> =
            sessions.fetches.iter().filter(|(_, fetch)| fetch.again_ms <= now.ms()).map(|(number, fetch)| (*number, fetch.pid)).collect();
        let (cursor, read, appended) = (streams.cursor(), streams.read_back(), streams.appended(EVENTS));
        while let Some((number, _)) =
            sessions.tides.ending.pop_front_if(|(_, asked)| self.unannounced.first().is_none_or(|first| first > asked))
        {
            sessions.tides.ended.push_back((number, appended));
            sessions.pending.iter_mut().filter(|pending| pending.tide <= number).for_each(|pending| {
                pending.after.get_or_insert(appended);
            });
        }
        let done = sessions.done(read);
        let waiting: Vec<Waiting> = sessions
            .waiting
            .extract_if(.., |waiting| {
                let is_ready = waiting.last.is_some_and(|last| cursor.is_some_and(|cursor| cursor >= last)) && waiting.tide <= done;
                is_ready || waiting.deadline_ms <= now.ms()
            })
            .collect();
        for waiting in waiting {
            let is_late = waiting.last.is_none() || waiting.tide > done;
            let missed = if is_late { None } else { cursor.and_then(|cursor| sessions.journal.missed(&waiting.wanted, cursor)) };
            let conn = waiting.wanted.conn;
            self.parcels.push_back((conn.shard, Parcel::Missed { conn, missed: missed.map(Box::new) }));
            sessions.tides.is_urgent = true;
        }
        for (number, is_away) in late {
            let found = self.sessions.as_mut().and_then(|sessions| sessions.fetches.get_mut(&number)?.found.take());
            if let Some((session, raw)) = found {
                self.put_back(now, &session, &raw);
            }
            self.answer_fetch(number, if is_away { Fetched::Unknown } else { Fetched::Nothing });
        }
        for (number, pid) in again {
            if let Some(fetch) = self.sessions.as_mut().and_then(|sessions| sessions.fetches.get_mut(&number)) {
                fetch.again_ms = u64::MAX;
                self.take_out(number, pid);
            }
        }
        self.send_tide(now, cursor, done);
    }

    /// Sends a tide if one is due.
    fn send_tide(&mut self, now: Now, cursor: Option<EntryId>, done: u64) {
        let Some(tides) = self.sessions.as_mut().map(|sessions| &mut sessions.tides) else { return };
        let is_time = now.ms() >= tides.look_ms;
        if is_time {
            tides.look_ms = now.ms() + TIDE_MS;
        }
        // At rest nothing new has come, and shards are not to be moved by it.
        let Some(mark) = cursor.filter(|_| !self.is_resting) else { return };
        let is_news = tides.mark != mark || tides.done != done || tides.number == 0;
        if tides.is_under_way || !(tides.is_urgent || (is_news && is_time)) {
            return;
        }
        let number = tides.number + 1;
        *tides = Tides {
            number,
            is_under_way: true,
            answered: 0,
            look_ms: now.ms() + TIDE_MS,
            mark,
            done,
            is_urgent: false,
            ending: std::mem::take(&mut tides.ending),
            ended: std::mem::take(&mut tides.ended),
        };
        let tide = Tide { number, mark, done };
        let shards = self.world.config.shards.len();
        self.parcels.extend((0..shards).map(|shard| (ShardId(shard as u8), Parcel::Tide { from: None, tide })));
    }

    /// The next request about sessions.
    pub(super) fn next_of_sessions(&mut self, now: Now) -> Option<(Tag, Request)> {
        let confirmed = self.streams.as_ref()?.confirmed(EVENTS);
        let sessions = self.sessions.as_mut()?;
        let call = sessions.later.pop_front().or_else(|| sessions.next_written(now, confirmed))?;
        sessions.writing += 1;
        Some((Tag::Session(SessionTag::Written), call.into()))
    }

    /// All shards have ended, and have said what they had to say.
    pub(crate) fn handle_end_of_shards(&mut self, now: Now) {
        self.end_consults(now);
        let appended = self.streams.as_ref().map_or(0, |streams| streams.appended(EVENTS));
        if let Some(sessions) = &mut self.sessions {
            sessions.pending.iter_mut().for_each(|pending| {
                pending.after.get_or_insert(appended);
            });
        }
    }

    /// Sessions that are not written yet.
    pub(super) fn sessions_pending(&self) -> usize {
        self.sessions.as_ref().map_or(0, |sessions| sessions.pending.len() + sessions.later.len() + sessions.writing)
    }

    /// An event was read in the stream, whoever it is from.
    pub(super) fn note_event(&mut self, id: EntryId, arrival: Arc<Arrival>) {
        if let Some(sessions) = &mut self.sessions {
            sessions.journal.note(id, arrival);
        }
    }
}

impl Journal {
    /// What a connection has missed up to here; `None` when it is not all known.
    fn missed(&self, wanted: &Wanted, until: EntryId) -> Option<Missed> {
        let mark = match wanted.since {
            Since::Entry(mark) => mark,
            Since::Event(offset) => self.entry(offset)?,
        };
        if let Some(heard) = wanted.heard
            && self.entry(heard).is_none_or(|heard| heard > mark)
        {
            return None;
        }
        let names: HashSet<&str> = wanted.names.iter().map(|name| &**name).collect();
        let events = wanted.events.iter().map(|offset| self.find(*offset).cloned()).collect::<Option<Vec<_>>>()?;
        Some(Missed { until, events, others: self.since(mark, wanted.endpoint, &names)? })
    }
}

/// The member of a session that is for hosts of our own.
#[derive(Serialize, Deserialize)]
struct Words {
    host: String,
    endpoint: String,
    left: u64,
    mark: String,
    user: String,
    presence: String,
    username: Option<String>,
    email: Option<String>,
    identity: Option<Claims>,
    tail: Vec<Item>,
}

/// What is known of a user by his token, which itself goes nowhere.
#[derive(Serialize, Deserialize)]
struct Claims {
    name: Option<String>,
    email: Option<String>,
    picture: Option<String>,
    rooms: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    documents: Option<Vec<String>>,
    blocked: Vec<String>,
    expires: Option<u64>,
    claims: Option<String>,
}

/// An event of the tail: its offset, with `~` before it where it is only known; or offset, text and attachments of one that stands nowhere else.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Item {
    Offset(String),
    Own(String, String, Vec<String>),
}

impl Words {
    fn of(session: &Session, host: &str, endpoint: &str) -> Option<Words> {
        let Past { profile, mark, tail } = session.past.as_ref()?;
        let item = |told: &Told| {
            let offset = told.offset.text();
            match &told.kind {
                ToldKind::Known => Item::Offset(format!("~{offset}")),
                ToldKind::Streamed => Item::Offset(offset),
                ToldKind::Own(frame) => {
                    let (mut text, mut attachments) = (String::new(), Vec::new());
                    for packet in frame.packets() {
                        match packet {
                            Packet::Text(own) => own.clone_into(&mut text),
                            Packet::Binary(data) => attachments.push(STANDARD_NO_PAD.encode(data)),
                        }
                    }
                    Item::Own(offset, text, attachments)
                }
            }
        };
        let claims = |identity: &Arc<Identity>| {
            let Details { user: _, name, email, picture, rooms, groups, documents, blocked, expires_unix_ms, claims } = identity.details();
            let (expires, claims) = (expires_unix_ms, claims.map(Into::into));
            Claims { name, email, picture, rooms, groups, documents, blocked, expires, claims }
        };
        Some(Words {
            host: host.to_owned(),
            endpoint: endpoint.to_owned(),
            left: session.left_unix_ms,
            mark: mark.to_string(),
            user: profile.user.to_string(),
            presence: profile.presence().to_string(),
            username: profile.username().map(str::to_owned),
            email: profile.email().map(str::to_owned),
            identity: profile.identity.as_ref().map(claims),
            tail: tail.iter().map(item).collect(),
        })
    }

    fn past(self, endpoint: EndpointId) -> Option<Past> {
        let Words { mark, user, presence, username, email, identity, tail, .. } = self;
        let told = |item: Item| {
            Some(match item {
                Item::Offset(text) => match text.strip_prefix('~') {
                    Some(known) => Told { offset: Offset::parse(known)?, kind: ToldKind::Known },
                    None => Told { offset: Offset::parse(&text)?, kind: ToldKind::Streamed },
                },
                Item::Own(offset, text, attachments) => {
                    let offset = Offset::parse(&offset)?;
                    let decoded = attachments.iter().map(|data| STANDARD_NO_PAD.decode(data).ok()).collect::<Option<Vec<_>>>()?;
                    let frame = Frame::event(endpoint, &text, &decoded, Mark { volatile: false, offset: Some(offset) });
                    Told { offset, kind: ToldKind::Own(frame) }
                }
            })
        };
        let identity = identity.map(|claims| {
            let Claims { name, email, picture, rooms, groups, documents, blocked, expires, claims } = claims;
            let (user, claims) = (user.as_str().into(), claims.map(Into::into));
            let expires_unix_ms = expires;
            let details = Details { user, name, email, picture, rooms, groups, documents, blocked, expires_unix_ms, claims };
            Arc::new(Identity::from(details))
        });
        let profile = Profile { identity, ..Profile::named(&user) };
        let mut profile = profile.with_username(username.as_deref()).with_email(email.as_deref());
        if **profile.presence() != *presence {
            profile.own().presence = presence.into();
        }
        Some(Past { profile, mark: EntryId::parse(&mark)?, tail: tail.into_iter().map(told).collect::<Option<_>>()? })
    }
}
