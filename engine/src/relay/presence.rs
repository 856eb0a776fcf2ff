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

use foldhash::fast::RandomState;

use super::request::{Call, Reply};
use super::socketio::Post;
use crate::config::{Config, DialectKind, Relay, RelayMode};
use crate::dialect::Sight;
use crate::ids::{Room, UserId};
use crate::limits::SEEN_MS;
use crate::shard::consult::{Consult, Findings, Step};

/// Somebody comes: 1 if no other host has him. Keys: present, seen, at, online; of these `at` and `online` may be missing.
const COME: &str = "\
local first, hosts = 1, ARGV[1]
for host in string.gmatch(redis.call('HGET', KEYS[1], ARGV[2]) or '', '[^,]+') do
  if host ~= ARGV[1] then first = 0; hosts = hosts .. ',' .. host end
end
redis.call('HSET', KEYS[1], ARGV[2], hosts)
if KEYS[3] then redis.call('SADD', KEYS[3], ARGV[3]) end
if KEYS[4] then redis.call('SADD', KEYS[4], ARGV[2]) end
if first == 1 and ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return first";

/// Somebody goes: 1 if no other host has him. Keys as above.
const GO: &str = "\
local last, hosts = 1, ''
for host in string.gmatch(redis.call('HGET', KEYS[1], ARGV[2]) or '', '[^,]+') do
  if host ~= ARGV[1] then last = 0; hosts = hosts .. (hosts == '' and '' or ',') .. host end
end
if last == 1 then
  redis.call('HDEL', KEYS[1], ARGV[2])
  if KEYS[4] then redis.call('SREM', KEYS[4], ARGV[2]) end
  if ARGV[6] ~= '' then redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[7]) end
  if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
else
  redis.call('HSET', KEYS[1], ARGV[2], hosts)
end
if KEYS[3] then redis.call('SREM', KEYS[3], ARGV[3]) end
return last";

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

#[derive(Debug)]
struct Served {
    name: String,
    is_community: bool,
    is_watched: bool,
}

impl Presence {
    pub(crate) fn new(config: &Config, settings: &Relay, host: &str) -> Presence {
        let endpoints = config.endpoints.iter().map(|endpoint| Served {
            name: endpoint.name.clone(),
            is_community: endpoint.dialect == DialectKind::Community,
            is_watched: crate::dialect::of(endpoint.dialect).is_watched(),
        });
        Presence {
            prefix: settings.prefix.clone(),
            host: host.to_owned(),
            is_cluster: settings.redis.is_cluster,
            tells_itself: !settings.redis.is_cluster && settings.mode == RelayMode::PubSub,
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
        let at = format!("{}:at:{}", self.prefix, self.host);
        let line = format!("{}\n{}\n{}", self.of(room).name, room.name, step.presence);
        let online = self.online_key(room);
        let mut keys = vec![self.key(room, "present"), self.key(room, "seen")];
        if !self.is_cluster {
            keys.push(at.clone());
            keys.extend(online.clone());
        }
        let mut call = Call::new("EVAL").arg(if step.comes { COME } else { GO }).number(keys.len() as u64);
        keys.iter().for_each(|key| call.push(key));
        let (channel, payload) = post.map_or(("", &[][..]), |post| (&post.channel, &post.payload));
        let seen = if self.of(room).is_watched && room.is_user() && !step.comes { step.unix_ms.to_string() } else { String::new() };
        let call = call.arg(&self.host).arg(&*step.presence).arg(&line).arg(channel).arg(payload).arg(seen).number(SEEN_MS);
        if !self.is_cluster {
            return vec![call];
        }
        // Their keys are on other nodes. The index is never without what is in the others.
        let index = if step.comes { ("SADD", 0) } else { ("SREM", 1) };
        let mut calls = vec![call];
        calls.insert(index.1, Call::new(index.0).arg(at).arg(line));
        calls
    }

    /// What was found; `replies` are those to [`Self::calls`].
    pub(crate) fn findings(&self, consult: &Consult, replies: &[Reply]) -> Findings {
        let mut replies = replies.iter();
        let mut findings = Findings::default();
        if let Some(step) = &consult.step {
            if self.is_cluster && step.comes {
                replies.next();
            }
            findings.is_only = replies.next().and_then(Reply::int).map(|only| only == 1);
            if self.is_cluster && !step.comes {
                replies.next();
            }
        }
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
