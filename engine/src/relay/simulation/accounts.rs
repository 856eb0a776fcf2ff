//! What must hold all the time (bounds), and what must come out even in the end: who is where, and all counters.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{ROOMS, SHARDS_MAX};
use super::talk::Talk;
use super::world::World;
use crate::config::RelayMode;
use crate::fault::CloseReason;
use crate::stats::{EndpointStats, ShardStats};

/// Bytes of the longest message between hosts here, with its place in a queue.
const MESSAGE_BYTES_MAX: u64 = 2_000;
/// Bytes of a goodbye, which is said to whoever is cut because too much waits for it.
const GOODBYE_BYTES_MAX: u64 = 100;

impl World {
    /// Nowhere more waits than may.
    pub(super) fn judge_bounds(&self) {
        let limits = &self.plan.limits;
        for site in self.slots.iter().flatten() {
            let sum = |of: &dyn Fn(&ShardStats) -> u64| site.host.stats.iter().map(|stats| of(stats)).sum::<u64>();
            let blocked = site.host.clients.iter().filter(|client| client.open && client.capacity < usize::MAX / 2).count() as u64;
            let queued = sum(&|stats| stats.outbox_bytes.read());
            let queued_max = blocked * (limits.outbox_bytes as u64 + GOODBYE_BYTES_MAX);
            assert!(queued <= queued_max, "host {}: {queued} bytes wait for {blocked} clients that read slowly", site.number);
            let endpoints = |of: &dyn Fn(&EndpointStats) -> u64| sum(&|stats| stats.endpoints.iter().map(of).sum());
            let backlog = endpoints(&|stats| stats.backlog_events.read());
            let shards = site.shards() as u64;
            assert!(backlog <= (limits.recovery_events as u64).max(shards), "host {}: {backlog} events are remembered", site.number);
            let away = endpoints(&|stats| stats.recoverable.read());
            // Each shard may keep one; and a reload to fewer shards leaves together what was apart, until the next one breaks off.
            assert!(away <= (limits.recovery_sessions as u64).max(SHARDS_MAX as u64), "host {}: {away} are away", site.number);
            let kept = endpoints(&|stats| stats.history_messages.read());
            let kept_max = (limits.history_messages * ROOMS * Talk::ALL.len()) as u64;
            assert!(kept <= kept_max, "host {}: {kept} messages are kept", site.number);
            // Two streams, and what is not told by a stream.
            let waiting_max = 3 * (self.plan.relay().buffer_bytes as u64 + MESSAGE_BYTES_MAX);
            let waiting = site.stats.waiting_bytes.read();
            assert!(waiting <= waiting_max, "host {}: {waiting} bytes wait for Redis", site.number);
        }
    }

    /// Who is in which room by what clients were told: by the name of the room in Redis and the user, the hosts.
    fn present(&self) -> BTreeMap<(String, String), BTreeSet<String>> {
        let mut present: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for client in self.clients.iter().filter(|client| client.is_in) {
            let Some(site) = client.at.and_then(|at| self.slots[at.slot].as_ref()) else { continue };
            for room in (0..ROOMS).filter(|room| client.is_inside(*room)) {
                let name = match client.talk {
                    Talk::Community => format!("uringcast:{{community/room:r{room}}}:present"),
                    Talk::Rooms => format!("uringcast:{{rooms/r{room}}}:present"),
                };
                let user = format!("u{}", client.user);
                present.entry((name, user)).or_default().insert(site.own.host.as_str().to_owned());
            }
        }
        present
    }

    /// Redis knows exactly who is where: no ghost, and nobody is missing.
    pub(super) fn judge_presence(&self) {
        let mut known: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for (key, hash) in self.redis.hashes(":present") {
            let key = String::from_utf8_lossy(key).into_owned();
            if !key.contains("/r0}") && !key.contains("/r1}") && !key.contains("/room:") {
                continue;
            }
            for (user, hosts) in hash {
                let hosts = String::from_utf8_lossy(hosts).split(',').map(str::to_owned).collect();
                known.insert((key.clone(), String::from_utf8_lossy(user).into_owned()), hosts);
            }
        }
        let present = self.present();
        let ghosts: Vec<_> = known.iter().filter(|(key, hosts)| present.get(key) != Some(hosts)).collect();
        let missing: Vec<_> = present.iter().filter(|(key, hosts)| known.get(key) != Some(hosts)).collect();
        assert!(ghosts.is_empty() && missing.is_empty(), "in Redis: {ghosts:?}\nreally: {missing:?}");
        // What is published while a relay is not there it misses, in streams one that has just come may look at Redis before it reads, and whoever stands still or has a
        // clock of his own seems to be dead to others.
        let faults = &self.plan.faults;
        if !faults.spares_redis() || faults.reloads || faults.clocks || self.plan.mode == RelayMode::Streams {
            return;
        }
        // Nothing that was told of coming and going was lost, so whoever was shown who is there knows it still. But what two hosts tell of one user's going and
        // coming may change places: Redis decides in one order, and each tells when it knows.
        let stays =
            |user: &String| user[1..].parse().ok().and_then(|user: usize| self.haunts.get(&user)).is_none_or(|hosts| hosts.len() < 2);
        for (who, client) in self.clients.iter().enumerate().filter(|(_, it)| it.is_witness && it.is_in && it.talk == Talk::Community) {
            for room in (0..ROOMS).filter(|room| client.is_inside(*room)) {
                let name = format!("uringcast:{{community/room:r{room}}}:present");
                let really = present.keys().filter(|(key, user)| *key == name && stays(user)).map(|(_, user)| user.clone());
                let really: BTreeSet<String> = really.collect();
                let mut told: BTreeSet<String> = client.present[room].iter().filter(|user| stays(user)).cloned().collect();
                told.extend(Some(format!("u{}", client.user)).filter(stays));
                if client.is_shown_in_part[room] {
                    // A home that got no answer within a second has gone on with what its host knows: those of other hosts need not be known.
                    let own = client.at.and_then(|at| self.slots[at.slot].as_ref()).map_or("", |site| site.own.host.as_str());
                    let is_here = |user: &String| present.get(&(name.clone(), user.clone())).is_some_and(|hosts| hosts.contains(own));
                    told.extend(really.iter().filter(|user| !is_here(user)).cloned());
                }
                assert_eq!(told, really, "witness {who} in r{room} was told who is there, {:?}", self.plan);
            }
        }
    }

    /// What was counted is what has happened.
    pub(super) fn judge_counters(&self) {
        for site in self.slots.iter().flatten() {
            let record = &self.records[site.number as usize];
            for talk in Talk::ALL {
                let sum =
                    |of: &dyn Fn(&EndpointStats) -> u64| site.host.stats.iter().map(|it| of(&it.endpoints[talk.index()])).sum::<u64>();
                let what = format!("host {} {talk:?}", site.number);
                assert_eq!(sum(&|stats| stats.delivered.read()), record.delivered[talk.index()], "{what}: delivered");
                let open = self.clients.iter().filter(|client| client.talk == talk && client.is_in);
                let open = open.filter(|client| client.at.is_some_and(|at| at.number == site.number));
                let users: BTreeSet<usize> = open.clone().map(|client| client.user).collect();
                assert_eq!(sum(&|stats| stats.connections.read()), open.count() as u64, "{what}: connections");
                assert_eq!(sum(&|stats| stats.users.read()), users.len() as u64, "{what}: users");
                let closed = sum(&|stats| CloseReason::ALL.iter().map(|reason| stats.closed[reason.index()].read()).sum());
                let (accepted, open) = (sum(&|stats| stats.accepted.read()), sum(&|stats| stats.connections.read()));
                assert_eq!(accepted, open + closed, "{what}: accepted");
            }
        }
    }

    /// Everybody has gone, and nobody can come back any more.
    pub(super) fn judge_emptiness(&self) {
        for site in self.slots.iter().flatten() {
            for (shard, stats) in site.host.shards.iter().zip(&site.host.stats) {
                let what = format!("host {}: {shard:?}", site.number);
                assert_eq!((shard.links(), stats.outbox_bytes.read(), stats.handshakes_waiting.read()), (0, 0, 0), "{what}");
                let debug = format!("{shard:?}");
                assert!(debug.contains("inquiries: 0, consults: 0,") && debug.contains("signposts: 0, ghosts: 0"), "{what}");
                for endpoint in &stats.endpoints {
                    let gauges =
                        [&endpoint.connections, &endpoint.polling, &endpoint.authenticated, &endpoint.recoverable, &endpoint.users];
                    assert_eq!(gauges.map(crate::stats::Counter::read), [0; 5], "{what}");
                }
            }
            assert_eq!((site.stats.waiting.read(), site.stats.waiting_bytes.read()), (0, 0), "host {}: waits for Redis", site.number);
        }
        let left: Vec<_> = self.redis.hashes(":present").map(|(key, _)| String::from_utf8_lossy(key)).collect();
        assert!(left.is_empty(), "still present: {left:?}");
    }
}
