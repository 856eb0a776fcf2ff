//! The model in motion: the same workloads as in `formulas`, but with messages that come at random, find queues, and wait. Seeded, so that a
//! run can be repeated; two parts, traffic in a fleet and clients that come back after a cut.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use super::constants::Constants;
use super::formulas::{BACKOFF_SECONDS, JITTER, delivery_us, wire_bytes};
use super::workload::{Fleet, Machine, Way, Workload};

/// Random numbers that are the same for the same seed everywhere (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.share() * bound as f64) as usize
    }

    /// Seconds to the next of something that comes at random so many times a second.
    fn until_next(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.share()).ln() / per_second
    }

    fn jittered(&mut self, seconds: f64) -> f64 {
        seconds * (1.0 - JITTER + 2.0 * JITTER * self.share())
    }
}

/// Something that happens at a time. Earlier comes first, and of one moment what was put in first.
struct Event<T> {
    at: f64,
    order: u64,
    what: T,
}

impl<T> Ord for Event<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}

impl<T> PartialOrd for Event<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Event<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Event<T> {}

/// What is to come, in order of time.
struct Agenda<T> {
    events: BinaryHeap<Event<T>>,
    count: u64,
}

impl<T> Agenda<T> {
    fn new() -> Self {
        Self { events: BinaryHeap::new(), count: 0 }
    }

    fn put(&mut self, at: f64, what: T) {
        self.count += 1;
        self.events.push(Event { at, order: self.count, what });
    }

    fn take(&mut self) -> Option<(f64, T)> {
        self.events.pop().map(|event| (event.at, event.what))
    }
}

/// One after the other, first come, first served.
#[derive(Clone, Copy, Default)]
struct Queue {
    free_at: f64,
    busy: f64,
    waited: f64,
    served: u64,
}

impl Queue {
    /// When what comes `now` and takes `seconds` is done.
    fn serve(&mut self, now: f64, seconds: f64) -> f64 {
        let start = self.free_at.max(now);
        self.waited += start - now;
        self.busy += seconds;
        self.served += 1;
        self.free_at = start + seconds;
        self.free_at
    }
}

/// What was seen of the traffic, shares of the time as they are of each resource in the mean over hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) messages: u64,
    pub(crate) deliveries: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) network_out: f64,
    pub(crate) relay_sending: f64,
    pub(crate) relay_receiving: f64,
    pub(crate) redis: f64,
    /// Seconds that a message waited for the shards of a host in the mean.
    pub(crate) cpu_wait: f64,
    /// The same for Redis.
    pub(crate) redis_wait: f64,
    /// Seconds from being said to being on the wire for the last member.
    pub(crate) latency_p50: f64,
    pub(crate) latency_p99: f64,
}

/// A host of the simulation. Its cores are taken as one that is as fast as all of them.
#[derive(Clone, Copy, Default)]
struct Host {
    cpu: Queue,
    network: Queue,
    sending: Queue,
    receiving: Queue,
}

enum Step {
    /// The next message is said.
    Said,
    /// It leaves the host that it was said on, is at Redis, and is at the relay of another host.
    Sends(usize),
    AtRedis(usize),
    Arrives(usize, usize),
    /// The shards of a host deliver it, and the last frame is on the wire.
    Delivers(usize, usize),
    Written(usize),
}

/// One message under way.
struct Message {
    said_at: f64,
    /// Hosts with members, and how many.
    members: Vec<(usize, u32)>,
    from: usize,
    /// Hosts that have not written it yet.
    left: usize,
}

/// Lets the users of a workload talk for some seconds. What they talk about is messages alone: no heartbeats, no coming and going.
pub(crate) fn traffic(constants: &Constants, workload: &Workload, machine: &Machine, fleet: &Fleet, seconds: f64, seed: u64) -> Traffic {
    let mut random = Random::new(seed);
    let count = fleet.hosts as usize;
    let (mut hosts, mut redis) = (vec![Host::default(); count], vec![Queue::default(); fleet.redis_nodes as usize]);
    let talk = workload.rooms.talk();
    let (mut agenda, mut messages, mut latencies) = (Agenda::new(), Vec::<Message>::new(), Vec::new());
    let (per_second, mut deliveries) = (workload.messages(), 0);
    let frame_seconds = 8.0 * wire_bytes(workload.payload_bytes + constants.frame_bytes) / machine.nic_bits;
    agenda.put(random.until_next(per_second), Step::Said);
    while let Some((now, step)) = agenda.take() {
        match step {
            Step::Said if now >= seconds => {}
            Step::Said => {
                agenda.put(now + random.until_next(per_second), Step::Said);
                let at = random.share();
                let size = talk[talk.partition_point(|(up_to, _)| *up_to < at).min(talk.len() - 1)].1;
                let members = placed(&mut random, size, count);
                // Whoever says it is one of them.
                let from = members[weighted(&mut random, &members, size)].0;
                let number = messages.len();
                messages.push(Message { said_at: now, left: members.len(), members, from });
                agenda.put(now, Step::Delivers(number, from));
                if count > 1 {
                    agenda.put(now, Step::Sends(number));
                }
            }
            Step::Sends(number) => {
                let done = hosts[messages[number].from].sending.serve(now, constants.relay_send_us / 1e6);
                agenda.put(done, Step::AtRedis(number));
            }
            Step::AtRedis(number) => {
                let message = &messages[number];
                // One channel is on one node, whatever the number of nodes; those of rooms are on all of them alike.
                let (listeners, node) = match fleet.way {
                    Way::Everyone => ((0..count).collect::<Vec<_>>(), 0),
                    Way::WhoHasIt => (message.members.iter().map(|(host, _)| *host).collect(), random.below(redis.len())),
                };
                let us = constants.redis_publish_us + constants.redis_listener_us * listeners.len() as f64;
                let done = redis[node].serve(now, us / 1e6);
                listeners.into_iter().filter(|host| *host != message.from).for_each(|host| agenda.put(done, Step::Arrives(number, host)));
            }
            Step::Arrives(number, host) => {
                let done = hosts[host].receiving.serve(now, constants.relay_receive_us / 1e6);
                if messages[number].members.iter().any(|(with, _)| *with == host) {
                    agenda.put(done, Step::Delivers(number, host));
                }
            }
            Step::Delivers(number, host) => {
                let here = messages[number].members.iter().find(|(with, _)| *with == host).map_or(0, |(_, members)| *members);
                deliveries += u64::from(here);
                let us = constants.message_us + f64::from(here) * delivery_us(constants, f64::from(here));
                let encoded = hosts[host].cpu.serve(now, us / 1e6 / machine.cores);
                let written = hosts[host].network.serve(encoded, f64::from(here) * frame_seconds);
                agenda.put(written, Step::Written(number));
            }
            Step::Written(number) => {
                let message = &mut messages[number];
                message.left -= 1;
                if message.left == 0 {
                    latencies.push(now - message.said_at);
                    message.members = Vec::new();
                }
            }
        }
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0.0);
    let mean = |queue: fn(&Host) -> &Queue| hosts.iter().map(|host| queue(host).busy).sum::<f64>() / seconds / count as f64;
    let at_redis: u64 = redis.iter().map(|node| node.served).sum();
    // One channel makes one node busy; what matters then is that one.
    let nodes = if fleet.way == Way::Everyone { 1.0 } else { fleet.redis_nodes };
    Traffic {
        messages: messages.len() as u64,
        deliveries,
        seconds,
        cpu: mean(|host| &host.cpu),
        network_out: mean(|host| &host.network),
        relay_sending: mean(|host| &host.sending),
        relay_receiving: mean(|host| &host.receiving),
        redis: redis.iter().map(|node| node.busy).sum::<f64>() / seconds / nodes,
        cpu_wait: hosts.iter().map(|host| host.cpu.waited).sum::<f64>()
            / hosts.iter().map(|host| host.cpu.served).sum::<u64>().max(1) as f64,
        redis_wait: redis.iter().map(|node| node.waited).sum::<f64>() / at_redis.max(1) as f64,
        latency_p50: at(0.5),
        latency_p99: at(0.99),
    }
}

/// The members of a room, each on a host taken at random: how many are where.
fn placed(random: &mut Random, size: u32, hosts: usize) -> Vec<(usize, u32)> {
    let mut at: Vec<usize> = (0..size).map(|_| random.below(hosts)).collect();
    at.sort_unstable();
    let mut members: Vec<(usize, u32)> = Vec::new();
    for host in at {
        match members.last_mut() {
            Some((last, count)) if *last == host => *count += 1,
            _ => members.push((host, 1)),
        }
    }
    members
}

/// Where one member taken at random is, as a place in the list.
fn weighted(random: &mut Random, members: &[(usize, u32)], size: u32) -> usize {
    let mut left = random.below(size as usize) as u32;
    members
        .iter()
        .position(|(_, count)| {
            let here = left < *count;
            left = left.saturating_sub(*count);
            here
        })
        .unwrap_or(0)
}

/// What was seen of clients that come back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storm {
    /// From the cut until the last is back.
    pub(crate) seconds: f64,
    /// Tries that found no place, per client.
    pub(crate) refused: f64,
}

/// All clients are cut at one moment and come back as Socket.IO's do. The server lets in so many a second; so many may wait for that, and
/// whoever finds no place among these is refused at once and tries again later.
pub(crate) fn storm(clients: u32, per_second: f64, waiting: usize, seed: u64) -> Storm {
    let mut random = Random::new(seed);
    let (first, longest) = BACKOFF_SECONDS;
    let mut agenda = Agenda::new();
    (0..clients).for_each(|_| agenda.put(random.jittered(first), 1));
    // When those who have found a place are in.
    let mut line = VecDeque::new();
    let (mut door, mut refused) = (Queue::default(), 0u64);
    while let Some((now, tries)) = agenda.take() {
        while line.front().is_some_and(|done| *done <= now) {
            line.pop_front();
        }
        if line.len() > waiting {
            refused += 1;
            let wait = (first * f64::powi(2.0, tries)).min(longest);
            agenda.put(now + random.jittered(wait), tries + 1);
        } else {
            line.push_back(door.serve(now, 1.0 / per_second));
        }
    }
    Storm { seconds: door.free_at, refused: refused as f64 / f64::from(clients.max(1)) }
}

#[cfg(test)]
mod tests {
    use super::super::formulas::{Flow, Redis, fleet_uses, message_us, storm_seconds, wait_seconds};
    use super::*;

    const C: Constants = Constants::NOW;

    /// Fails where what was seen is further from what was computed than the share says.
    fn agree(what: &str, seen: f64, computed: f64, within: f64) {
        assert!((seen - computed).abs() <= within * computed, "{what}: seen {seen}, computed {computed}");
    }

    #[test]
    fn traffic_takes_what_the_formulas_say() {
        for (seed, way, nodes) in [(1, Way::Everyone, 1.0), (2, Way::WhoHasIt, 1.0), (3, Way::WhoHasIt, 3.0)] {
            let fleet = Fleet { hosts: 8.0, way, redis_nodes: nodes, redis_nic_bits: 25e9 };
            let workload = Workload { ping_seconds: 1e12, session_minutes: 1e12, ..Workload::busy(8e5) };
            let seen = traffic(&C, &workload, &Machine::USUAL, &fleet, 1.0, seed);
            let flow = Flow::of(&C, &workload, fleet.hosts, way);
            agree("messages", seen.messages as f64, workload.messages(), 0.02);
            agree("deliveries", seen.deliveries as f64, flow.deliveries * fleet.hosts, 0.06);
            agree("cpu", seen.cpu, flow.cores(&C) / Machine::USUAL.cores, 0.06);
            agree("network", seen.network_out, flow.bits_out(&C, &workload) / Machine::USUAL.nic_bits, 0.06);
            let uses = fleet_uses(&C, &workload, &fleet);
            let share = |name| uses.iter().find(|one| one.resource == name).map_or(0.0, super::super::formulas::Use::share);
            agree("sending", seen.relay_sending, share("relay, sending"), 0.06);
            agree("receiving", seen.relay_receiving, share("relay, receiving"), 0.06);
            let redis = Redis::of(&C, &workload, &fleet);
            agree("redis", seen.redis, workload.messages() * redis.us / 1e6 / nodes, 0.06);
        }
    }

    #[test]
    fn a_message_waits_for_redis_as_long_as_the_formula_says() {
        // 60 % of one node. What comes has been ordered a little by the relays before, so it waits a little less.
        let fleet = Fleet { hosts: 8.0, way: Way::WhoHasIt, redis_nodes: 1.0, redis_nic_bits: 25e9 };
        let workload = Workload::busy(1e6);
        let redis = Redis::of(&C, &workload, &fleet);
        let workload = Workload { connections: 1e6 * 0.6 / (workload.messages() * redis.us / 1e6), ..workload };
        let computed = wait_seconds(workload.messages(), redis.us, redis.us_squared);
        for seed in 1..4 {
            let seen = traffic(&C, &workload, &Machine::LARGE, &fleet, 2.0, seed);
            agree("wait", seen.redis_wait, computed, 0.15);
        }
    }

    #[test]
    fn a_message_waits_for_the_shards_as_long_as_the_formula_says() {
        let alone = Fleet { hosts: 1.0, way: Way::Everyone, redis_nodes: 1.0, redis_nic_bits: 25e9 };
        let workload = Workload::busy(2e5);
        let (us, us_squared) = message_us(&C, &workload);
        let computed = wait_seconds(workload.messages(), us / Machine::USUAL.cores, us_squared / Machine::USUAL.cores.powi(2));
        let seen = traffic(&C, &workload, &Machine::USUAL, &alone, 5.0, 1);
        agree("wait", seen.cpu_wait, computed, 0.15);
        assert_eq!((seen.redis, seen.relay_receiving), (0.0, 0.0));
    }

    #[test]
    fn clients_come_back_when_the_formula_says() {
        // Where the door is open for 2 to 20 s, those who were refused come back in waves, and it stands idle between them.
        for (clients, per_second, waiting, within) in [
            (1_000, 5_000.0, 100, 0.02),
            (6_000, 5_000.0, 2_000, 0.1),
            (60_000, 5_000.0, 500, 0.25),
            (100_000, 10_000.0, 4_096, 0.25),
            (100_000, 2_500.0, 4_096, 0.05),
        ] {
            let computed = storm_seconds(f64::from(clients), per_second, waiting as f64);
            for seed in 1..4 {
                let seen = storm(clients, per_second, waiting, seed);
                agree(&format!("{clients} clients"), seen.seconds, computed, within);
            }
        }
    }

    #[test]
    fn a_seed_repeats_itself() {
        let once = |seed| storm(2_000, 500.0, 50, seed).seconds;
        assert_eq!(once(7).to_bits(), once(7).to_bits());
        assert_ne!(once(7).to_bits(), once(8).to_bits());
    }
}
