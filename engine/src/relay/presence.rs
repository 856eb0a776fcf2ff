//! Who is where: which host has which presence in which room, kept in Redis so that the first who comes and the last who goes are known over
//! all hosts. This file has the keys, the scripts that decide, and what this host itself has in them; it sends nothing.
//!
//! | key (after the prefix) | is |
//! |---|---|
//! | `{ENDPOINT/ROOM}:present` | hash: presence -> ids of the hosts that have it, joined by commas |
//! | `{ENDPOINT/ROOM}:seen` | when a watched user's last connection ended, milliseconds since 1970 |
//! | `at:HOST` | set: what a host has in the others, lines `ENDPOINT`, `ROOM`, `PRESENCE` |
//!
//! Without prefix those of the contract: `users:online` and `CHANNEL:online`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::channels::first_community;
use super::request::{Call, Reply};
use super::socketio::Post;
use crate::config::{Adapter, Config, Relay, RelayMode};
use crate::dialect::Sight;
use crate::ids::{EndpointId, Room, UserId};
use crate::limits::SEEN_MS;
use crate::shard::consult::{Consult, Findings, Step};

/// Somebody comes: 1 if no other host has him. Keys: present, seen, at, lease, hosts, online; the last, or the last four, may be missing.
/// Arguments: host, presence, line of the index, channel and what is said there, when he went, for how long that is kept, `strict`, the
/// command that says it. A host without a lease may have been taken for dead and struck off the list of hosts while this was on its way: it
/// stands there again, so that somebody looks after what it leaves.
pub(super) const COME: &str = "\
local first, hosts = 1, ARGV[1]
for host in string.gmatch(redis.call('HGET', KEYS[1], ARGV[2]) or '', '[^,]+') do
  if host ~= ARGV[1] then first = 0; hosts = hosts .. ',' .. host end
end
redis.call('HSET', KEYS[1], ARGV[2], hosts)
if KEYS[3] then
  redis.call('SADD', KEYS[3], ARGV[3])
  if redis.call('EXISTS', KEYS[4]) == 0 then redis.call('SADD', KEYS[5], ARGV[1]) end
end
if KEYS[6] then redis.call('SADD', KEYS[6], ARGV[2]) end
if first == 1 and ARGV[4] ~= '' then redis.call(ARGV[9], ARGV[4], ARGV[5]) end
return first";

/// Somebody goes: 1 if no other host has him. Keys and arguments as above. `strict`: -1, and nothing is done, where the host does not have him
/// or lives.
pub(super) const GO: &str = "\
local last, hosts, had = 1, '', false
for host in string.gmatch(redis.call('HGET', KEYS[1], ARGV[2]) or '', '[^,]+') do
  if host == ARGV[1] then had = true else last = 0; hosts = hosts .. (hosts == '' and '' or ',') .. host end
end
if ARGV[8] == 'strict' then
  if KEYS[4] and redis.call('EXISTS', KEYS[4]) == 1 then return -1 end
  if not had then
    if KEYS[3] then redis.call('SREM', KEYS[3], ARGV[3]) end
    return -1
  end
end
if last == 1 then
  redis.call('HDEL', KEYS[1], ARGV[2])
  if KEYS[6] then redis.call('SREM', KEYS[6], ARGV[2]) end
  if ARGV[6] ~= '' then redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[7]) end
  if ARGV[4] ~= '' then redis.call(ARGV[9], ARGV[4], ARGV[5]) end
else
  redis.call('HSET', KEYS[1], ARGV[2], hosts)
end
if KEYS[3] then redis.call('SREM', KEYS[3], ARGV[3]) end
return last";

/// A dead host is struck off the list of hosts, unless it has got something meanwhile. Keys: at, hosts. Argument: host.
pub(super) const STRIKE_OFF: &str = "\
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
return redis.call('SREM', KEYS[2], ARGV[1])";

/// See the module.
#[derive(Debug)]
pub(crate) struct Presence {
    prefix: String,
    host: String,
    is_cluster: bool,
    /// True exactly when the scripts can tell other hosts what they have decided.
    tells_itself: bool,
    endpoints: Vec<Served>,
    /// What this host has, by its homes' words.
    here: HashMap<Room, HashSet<UserId, RandomState>, RandomState>,
}

/// A host gets a presence, or loses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved<'a> {
    pub(crate) host: &'a str,
    pub(crate) room: &'a Room,
    pub(crate) presence: &'a UserId,
    pub(crate) comes: bool,
    /// When, milliseconds since 1970, where that is to be remembered.
    pub(crate) unix_ms: Option<u64>,
    /// True exactly when it is nobody's wish, but found out.
    pub(crate) is_strict: bool,
}

#[derive(Debug)]
struct Served {
    name: String,
    is_community: bool,
    is_watched: bool,
}

impl Presence {
    pub(crate) fn new(config: &Config, settings: &Relay, host: &str) -> Presence {
        let first = first_community(config);
        let endpoints = config.endpoints.iter().enumerate().map(|(index, endpoint)| Served {
            name: endpoint.name.clone(),
            is_community: first == Some(index),
            is_watched: crate::dialect::of(endpoint.dialect).is_watched(),
        });
        Presence {
            prefix: settings.prefix.clone(),
            host: host.to_owned(),
            is_cluster: settings.redis.is_cluster,
            // The scripts know `PUBLISH` alone.
            tells_itself: !settings.redis.is_cluster && settings.mode == RelayMode::PubSub && settings.adapter == Adapter::Classic,
            endpoints: endpoints.collect(),
            here: HashMap::default(),
        }
    }

    /// True exactly when what the scripts decide to tell is told by them: in the same breath, so that it has the same order for everybody.
    pub(crate) fn tells_itself(&self) -> bool {
        self.tells_itself
    }

    /// Remembers what a home has said.
    pub(crate) fn note(&mut self, consult: &Consult) {
        let Some(step) = &consult.step else { return };
        if step.comes {
            self.here.entry(consult.room.clone()).or_default().insert(step.presence.clone());
            return;
        }
        let Some(present) = self.here.get_mut(&consult.room) else { return };
        present.remove(&step.presence);
        if present.is_empty() {
            self.here.remove(&consult.room);
        }
    }

    /// Remembers who is somewhere without being told by a consult: it was known before a reload.
    pub(crate) fn remember(&mut self, room: Room, present: impl IntoIterator<Item = UserId>) {
        self.here.entry(room).or_default().extend(present);
    }

    /// Who is where, for after a reload.
    pub(crate) fn freeze(&self) -> Vec<(u8, Arc<str>, Vec<UserId>)> {
        self.here.iter().map(|(room, present)| (room.endpoint.0, room.name.clone(), present.iter().cloned().collect())).collect()
    }

    fn of(&self, room: &Room) -> &Served {
        &self.endpoints[usize::from(room.endpoint.0)]
    }

    fn key(&self, room: &Room, what: &str) -> String {
        format!("{}:{{{}/{}}}:{what}", self.prefix, self.of(room).name, room.name)
    }

    /// The contract's own set, where the room has one.
    fn online_key(&self, room: &Room) -> Option<String> {
        let is_community = self.of(room).is_community;
        if is_community && room.is_user() {
            return Some("users:online".to_owned());
        }
        (is_community && room.is_public()).then(|| format!("{}:online", room.name))
    }

    /// What Redis is asked; what it tells others if the script decides so, where [`Self::tells_itself`].
    pub(crate) fn calls(&self, consult: &Consult, post: Option<&Post>) -> Vec<Call> {
        let room = &consult.room;
        let mut calls = Vec::new();
        if let Some(step) = &consult.step {
            calls.extend(self.step(room, step, post));
        }
        if consult.online {
            calls.push(Call::new("HKEYS").arg(self.key(room, "present")));
        }
        if consult.sight {
            calls.push(Call::new("HLEN").arg(self.key(room, "present")));
            calls.push(Call::new("GET").arg(self.key(room, "seen")));
        }
        calls
    }

    fn step(&self, room: &Room, step: &Step, post: Option<&Post>) -> Vec<Call> {
        let Step { presence, comes, unix_ms, .. } = step;
        self.moved(&Moved { host: &self.host, room, presence, comes: *comes, unix_ms: Some(*unix_ms), is_strict: false }, post)
    }

    /// The commands by which a host gets a presence, or loses it. Where the index is on another node, it comes before what is in the others, and
    /// what goes from it goes when that is done ([`Self::unlisted`]): whatever is lost between the two, the index has it.
    pub(crate) fn moved(&self, moved: &Moved<'_>, post: Option<&Post>) -> Vec<Call> {
        let Moved { host, room, presence, comes, unix_ms, is_strict } = *moved;
        let at = self.at_key(host);
        let line = format!("{}\n{}\n{presence}", self.of(room).name, room.name);
        let mut keys = vec![self.key(room, "present"), self.key(room, "seen")];
        if !self.is_cluster {
            keys.extend([at.clone(), self.lease_key(host), self.hosts_key()]);
            keys.extend(self.online_key(room));
        }
        let mut call = Call::new("EVAL").arg(if comes { COME } else { GO }).number(keys.len() as u64);
        keys.iter().for_each(|key| call.push(key));
        let (verb, channel, payload) = post.map_or(("", "", &[][..]), |post| (post.verb, &post.channel, &post.payload));
        let is_seen = self.of(room).is_watched && room.is_user() && !comes;
        let seen = unix_ms.filter(|_| is_seen).map_or_else(String::new, |unix_ms| unix_ms.to_string());
        let strict = if is_strict { "strict" } else { "" };
        let call = call.arg(host).arg(&**presence).arg(&line).arg(channel).arg(payload).arg(seen).number(SEEN_MS).arg(strict).arg(verb);
        if !self.is_cluster {
            return vec![call];
        }
        if comes { vec![Call::new("SADD").arg(at).arg(line), self.listed(host), call] } else { vec![call] }
    }

    /// The host stands on the list of those that somebody looks after.
    pub(crate) fn listed(&self, host: &str) -> Call {
        Call::new("SADD").arg(self.hosts_key()).arg(host)
    }

    /// A dead host that has nothing any more is not looked after any longer. In a cluster the two keys are on different nodes, and what the
    /// dead has said last may come between the look and this: a moment, a whole lease after its last sign of life.
    pub(crate) fn struck_off(&self, host: &str) -> Call {
        if self.is_cluster {
            return Call::new("SREM").arg(self.hosts_key()).arg(host);
        }
        Call::new("EVAL").arg(STRIKE_OFF).number(2).arg(self.at_key(host)).arg(self.hosts_key()).arg(host)
    }

    /// In a cluster: what takes somebody who has gone out of his host's index.
    pub(crate) fn unlisted(&self, host: &str, room: &Room, presence: &UserId) -> Option<Call> {
        let line = format!("{}\n{}\n{presence}", self.of(room).name, room.name);
        self.is_cluster.then(|| Call::new("SREM").arg(self.at_key(host)).arg(line))
    }

    /// What the script of [`Self::moved`] has answered, and how many answers belong to it.
    pub(crate) fn outcome(&self, comes: bool, replies: &[Reply]) -> (Option<i64>, usize) {
        let (at, count) = if self.is_cluster && comes { (2, 3) } else { (0, 1) };
        (replies.get(at).and_then(Reply::int), count)
    }

    /// In a cluster the contract's sets are on other nodes: they follow.
    pub(crate) fn followed(&self, room: &Room, presence: &UserId, comes: bool) -> Option<Call> {
        let key = self.online_key(room).filter(|_| self.is_cluster)?;
        Some(Call::new(if comes { "SADD" } else { "SREM" }).arg(key).arg(&**presence))
    }

    pub(crate) fn at_key(&self, host: &str) -> String {
        format!("{}:at:{host}", self.prefix)
    }

    pub(crate) fn hosts_key(&self) -> String {
        format!("{}:hosts", self.prefix)
    }

    pub(crate) fn lease_key(&self, host: &str) -> String {
        format!("{}:host:{host}", self.prefix)
    }

    /// Rooms in which somebody is here.
    pub(crate) fn rooms(&self) -> impl Iterator<Item = &Room> {
        self.here.keys()
    }

    /// True exactly when somebody is in a room here.
    pub(crate) fn has(&self, room: &Room) -> bool {
        self.here.contains_key(room)
    }

    /// True exactly when this host has a presence.
    pub(crate) fn is_here(&self, room: &Room, presence: &UserId) -> bool {
        self.here.get(room).is_some_and(|present| present.contains(presence))
    }

    /// Everything that this host has.
    pub(crate) fn all(&self) -> Vec<(Room, UserId)> {
        let here = self.here.iter();
        let mut all: Vec<_> = here.flat_map(|(room, present)| present.iter().map(|presence| (room.clone(), presence.clone()))).collect();
        // What is told of them has an order, which is to be the same whenever the same happens.
        all.sort_unstable();
        all
    }

    /// A line of an index; `None` of an endpoint that is not served here.
    pub(crate) fn read_line(&self, line: &str) -> Option<(Room, UserId)> {
        let mut parts = line.splitn(3, '\n');
        let (name, room, presence) = (parts.next()?, parts.next()?, parts.next()?);
        let endpoint = self.endpoints.iter().position(|served| served.name == name)?;
        Some((Room { endpoint: EndpointId(endpoint as u8), name: room.into() }, presence.into()))
    }

    /// What was found; `replies` are those to [`Self::calls`].
    pub(crate) fn findings(&self, consult: &Consult, replies: &[Reply]) -> Findings {
        let mut findings = Findings::default();
        let mut from = 0;
        if let Some(step) = &consult.step {
            let (outcome, count) = self.outcome(step.comes, replies);
            (findings.is_only, from) = (outcome.map(|only| only == 1), count);
        }
        let mut replies = replies.iter().skip(from);
        if consult.online {
            findings.online = replies
                .next()
                .filter(|reply| reply.error().is_none())
                .map(|reply| reply.list().iter().filter_map(Reply::text).map(UserId::from).collect());
        }
        if consult.sight {
            let (present, seen) = (replies.next().and_then(Reply::int), replies.next().and_then(Reply::int));
            findings.sight = match (present, seen) {
                (Some(hosts), _) if hosts > 0 => Some(Sight::Here),
                (Some(_), Some(unix_ms)) => Some(Sight::Gone { unix_ms: unix_ms.max(0) as u64 }),
                _ => None,
            };
        }
        findings
    }
}
