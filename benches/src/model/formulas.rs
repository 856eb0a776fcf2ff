//! The model on paper: how much of each resource a workload takes, and what follows from it. Plain arithmetic; the names are those of the
//! formulas in CAPACITY.md, and `simulation` looks whether they hold where things queue.

use super::constants::{Constants, ETHERNET_BYTES, SEGMENT_BYTES, TCP_IP_BYTES, TLS_BYTES, WIRE_BYTES_MIN};
use super::workload::{Fleet, Machine, WAITING_BYTES_MAX, WAITING_SECONDS, Way, Workload, hosts_of};

/// How much of one resource is used.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) resource: &'static str,
    pub(crate) used: f64,
    pub(crate) there_is: f64,
    pub(crate) unit: &'static str,
}

impl Use {
    pub(crate) fn share(&self) -> f64 {
        self.used / self.there_is
    }
}

/// What is used most first.
pub(crate) fn fullest_first(mut uses: Vec<Use>) -> Vec<Use> {
    uses.sort_by(|a, b| b.share().total_cmp(&a.share()));
    uses
}

/// Bytes on the wire of one WebSocket frame of a server that travels alone in its TLS record.
pub(crate) fn wire_bytes(payload: f64) -> f64 {
    let header = if payload < 126.0 { 2.0 } else { 4.0 };
    let bytes = payload + header + TLS_BYTES;
    let segments = (bytes / SEGMENT_BYTES).ceil().max(1.0);
    (bytes + segments * (ETHERNET_BYTES + TCP_IP_BYTES)).max(WIRE_BYTES_MIN)
}

/// CPU of one delivery where `batch` connections of a host get the same: many together cost less each. Between a room of 10 and one of
/// 1,000 nothing was measured.
pub(crate) fn delivery_us(constants: &Constants, batch: f64) -> f64 {
    let Constants { delivery_small_us: small, delivery_large_us: large, .. } = constants;
    large + (small - large) * (10.0 / batch).min(1.0)
}

/// CPU of letting in one client. Where hosts are joined, the relay and Redis have a part in it.
pub(crate) fn join_us(constants: &Constants, workload: &Workload, hosts: f64) -> f64 {
    let alone = if workload.socket_io { constants.accept_us_socketio } else { constants.accept_us_plain };
    if hosts > 1.0 { alone + constants.fleet_join_us } else { alone }
}

/// What happens on one host of `hosts`, per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) connections: f64,
    /// Messages that its own clients say.
    pub(crate) said: f64,
    /// Messages of other hosts that its relay gets, and those of them that somebody here hears.
    pub(crate) relayed: f64,
    pub(crate) arriving: f64,
    pub(crate) deliveries: f64,
    /// CPU of one of these.
    pub(crate) delivery_us: f64,
    pub(crate) broadcasts: f64,
    pub(crate) heartbeats: f64,
    pub(crate) joins: f64,
    /// CPU of one of these.
    pub(crate) join_us: f64,
    /// Deliveries of somebody's coming or going.
    pub(crate) told: f64,
}

impl Flow {
    pub(crate) fn of(constants: &Constants, workload: &Workload, hosts: f64, way: Way) -> Self {
        let said = workload.messages();
        let heard_on = workload.rooms.per_message(|size| hosts_of(size, hosts));
        let heard_by = workload.rooms.per_message(|size| size);
        // Work that a message's deliveries take on all hosts, divided by how many they are.
        let work = workload.rooms.per_message(|size| size * delivery_us(constants, size / hosts_of(size, hosts)));
        let connections = workload.connections / hosts;
        let elsewhere = said * (hosts - 1.0) / hosts;
        Self {
            connections,
            said: said / hosts,
            relayed: match way {
                Way::Everyone => elsewhere,
                Way::WhoHasIt => said * (heard_on - 1.0) / hosts,
            },
            arriving: said * (heard_on - 1.0) / hosts,
            deliveries: said * heard_by / hosts,
            delivery_us: work / heard_by,
            broadcasts: workload.broadcasts_per_minute / 60.0 * connections,
            heartbeats: connections / workload.ping_seconds,
            joins: workload.turnover() / hosts,
            join_us: join_us(constants, workload, hosts),
            told: if workload.told_to_all { 2.0 * workload.turnover() * connections } else { 0.0 },
        }
    }

    /// CPU seconds of the shards per second, which is cores.
    pub(crate) fn cores(&self, constants: &Constants) -> f64 {
        let us = (self.said + self.arriving) * constants.message_us
            + self.deliveries * self.delivery_us
            + self.broadcasts * constants.delivery_large_us
            + self.heartbeats * constants.heartbeat_us
            + self.joins * self.join_us
            // Comings are so many where they count that each write has several: the cheapest there is.
            + self.told * constants.delivery_more_us;
        us / 1e6
    }

    /// Bits per second that leave, on the wire.
    pub(crate) fn bits_out(&self, constants: &Constants, workload: &Workload) -> f64 {
        let message = wire_bytes(workload.payload_bytes + constants.frame_bytes);
        // A ping, and the acknowledgement of its pong.
        let heartbeat = wire_bytes(0.0) + WIRE_BYTES_MIN;
        let told = constants.status_bytes + 2.0;
        8.0 * ((self.deliveries + self.broadcasts) * message + self.heartbeats * heartbeat + self.told * told)
    }

    /// What waits for one client that reads nothing: what it would have heard until its heartbeat is missed, frame by frame in the socket's
    /// buffer.
    pub(crate) fn waiting_bytes(&self, constants: &Constants) -> f64 {
        let heard = (self.deliveries + self.broadcasts + self.told) / self.connections;
        (heard * WAITING_SECONDS * constants.skb_bytes).min(WAITING_BYTES_MAX)
    }

    /// Packets per second in the busier direction: a delivery and its acknowledgement are one each.
    pub(crate) fn packets(&self) -> f64 {
        self.deliveries + self.broadcasts + 2.0 * self.heartbeats + self.said + 6.0 * self.joins + self.told * 60.0 / SEGMENT_BYTES
    }
}

/// What a workload takes of each of the machines it is spread over.
pub(crate) fn host_uses(constants: &Constants, workload: &Workload, machine: &Machine, hosts: f64, way: Way) -> Vec<Use> {
    let flow = Flow::of(constants, workload, hosts, way);
    let engine_bytes = if workload.socket_io { constants.engine_bytes_socketio } else { constants.engine_bytes_plain };
    let fleet_bytes = if hosts > 1.0 { constants.fleet_bytes } else { 0.0 };
    let bytes = flow.connections * (engine_bytes + fleet_bytes + constants.kernel_bytes + workload.slow * flow.waiting_bytes(constants));
    let of = |resource, used, there_is, unit| Use { resource, used, there_is, unit };
    vec![
        of("descriptors", flow.connections + 256.0, machine.descriptors, ""),
        of("tracked connections", flow.connections, machine.tracked, ""),
        of("memory", bytes, machine.memory_bytes, "B"),
        of("CPU of the shards", flow.cores(constants), machine.cores, " cores"),
        of("network out", flow.bits_out(constants, workload), machine.nic_bits, "bit/s"),
        of("packets", flow.packets(), machine.nic_packets, "/s"),
    ]
}

/// What the fleet takes of what joins it.
pub(crate) fn fleet_uses(constants: &Constants, workload: &Workload, fleet: &Fleet) -> Vec<Use> {
    let Fleet { hosts, way, redis_nodes, redis_nic_bits } = *fleet;
    let flow = Flow::of(constants, workload, hosts, way);
    let (talk, to_all) = (workload.messages(), workload.broadcasts_per_minute / 60.0);
    let coming_and_going = if workload.told_to_all { 2.0 * workload.turnover() } else { 0.0 };
    let redis = Redis::of(constants, workload, fleet);
    // What everybody hears has one channel, and a channel is on one node; each host says there once a second how it is.
    let to_each_host = constants.redis_publish_us + hosts * constants.redis_listener_us;
    let on_one_node = (to_all + coming_and_going + hosts) * to_each_host;
    let questions = 2.0 * workload.turnover() * constants.redis_consult_us;
    let nodes_of_messages = if way == Way::Everyone { 1.0 } else { redis_nodes };
    let of = |resource, used, there_is, unit| Use { resource, used, there_is, unit };
    let busiest_us = talk * redis.us / nodes_of_messages + on_one_node + questions / redis_nodes;
    vec![
        of("CPU of Redis", busiest_us / 1e6, 1.0, " core a node"),
        of("network out of Redis", 8.0 * talk * redis.bytes_out / nodes_of_messages, redis_nic_bits, "bit/s a node"),
        of("relay, sending", (talk + coming_and_going) / hosts * constants.relay_send_us / 1e6, 1.0, " core a host"),
        of("relay, receiving", (flow.relayed + coming_and_going) * constants.relay_receive_us / 1e6, 1.0, " core a host"),
        of("hosts known", hosts, 1_024.0, ""),
    ]
}

/// What one message takes of Redis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Redis {
    pub(crate) us: f64,
    /// The mean of the square, for the wait of what comes at random.
    pub(crate) us_squared: f64,
    pub(crate) bytes_out: f64,
}

impl Redis {
    pub(crate) fn of(constants: &Constants, workload: &Workload, fleet: &Fleet) -> Self {
        let listeners = |size: f64| match fleet.way {
            Way::Everyone => fleet.hosts,
            Way::WhoHasIt => hosts_of(size, fleet.hosts),
        };
        let us = |size| constants.redis_publish_us + constants.redis_listener_us * listeners(size);
        let bytes = workload.payload_bytes + constants.relay_bytes + ETHERNET_BYTES + TCP_IP_BYTES;
        Self {
            us: workload.rooms.per_message(us),
            us_squared: workload.rooms.per_message(|size| us(size).powi(2)),
            bytes_out: workload.rooms.per_message(listeners) * bytes,
        }
    }
}

/// CPU of a message on a host where it is said and all of its members are, with the mean of its square; µs.
pub(crate) fn message_us(constants: &Constants, workload: &Workload) -> (f64, f64) {
    let us = |size| constants.message_us + size * delivery_us(constants, size);
    (workload.rooms.per_message(us), workload.rooms.per_message(|size| us(size).powi(2)))
}

/// Seconds that what comes at random waits for one server in the mean (Pollaczek and Khinchine), while it is not full.
pub(crate) fn wait_seconds(per_second: f64, us: f64, us_squared: f64) -> f64 {
    let busy = per_second * us / 1e6;
    if busy >= 1.0 { f64::INFINITY } else { per_second * us_squared / 1e12 / (2.0 * (1.0 - busy)) }
}

/// How clients come back: Socket.IO's own defaults. The first try waits 1 s, each further one twice as long, 5 s at most, all of them
/// half as much more or less.
pub(crate) const BACKOFF_SECONDS: (f64, f64) = (1.0, 5.0);
/// Half as much more or less.
pub(crate) const JITTER: f64 = 0.5;

/// Seconds from a cut of all `clients` until the last is back, where `per_second` can be let in and `waiting` may wait for it.
pub(crate) fn storm_seconds(clients: f64, per_second: f64, waiting: f64) -> f64 {
    let (first, longest) = BACKOFF_SECONDS;
    let (earliest, latest) = (first * (1.0 - JITTER), first * (1.0 + JITTER));
    if clients <= per_second * (latest - earliest) {
        return latest;
    }
    let served = earliest + clients / per_second;
    if clients <= per_second * (latest - earliest) + waiting {
        return served;
    }
    // The server is full until as many are left as come by themselves in one wait. The last of these has just begun the longest one.
    served + longest * JITTER
}

/// Seconds and bytes of one message to everybody on a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broadcast {
    pub(crate) cpu_seconds: f64,
    pub(crate) wire_seconds: f64,
    /// Kernel memory of what is not acknowledged yet, with 100 ms to and back.
    pub(crate) unacknowledged_bytes: f64,
}

impl Broadcast {
    pub(crate) fn of(constants: &Constants, connections: f64, payload: f64, machine: &Machine) -> Self {
        let cpu_seconds = connections * constants.delivery_large_us / 1e6 / machine.cores;
        let wire_seconds = 8.0 * connections * wire_bytes(payload + constants.frame_bytes) / machine.nic_bits;
        let under_way = (0.1 / cpu_seconds.max(wire_seconds)).min(1.0);
        Self { cpu_seconds, wire_seconds, unacknowledged_bytes: connections * under_way * constants.skb_bytes }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.cpu_seconds.max(self.wire_seconds)
    }
}

/// Users of whom everybody can be told, on hosts of one kind, before CPU or network is full with nothing else: the deliveries on a host grow
/// with the users on it times those of the fleet.
pub(crate) fn told_max(constants: &Constants, workload: &Workload, machine: &Machine, hosts: f64) -> f64 {
    let per_second = (machine.cores / (constants.delivery_more_us / 1e6)).min(machine.nic_bits / 8.0 / (constants.status_bytes + 2.0));
    (per_second * hosts * workload.session_minutes * 60.0 / 2.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: Constants = Constants::NOW;

    #[test]
    fn a_frame_on_the_wire_is_what_the_standards_add_up_to() {
        // 2 of WebSocket, 22 of TLS, 52 of TCP and IP, 38 of Ethernet.
        assert_eq!(wire_bytes(0.0), 114.0);
        assert_eq!(wire_bytes(300.0), 300.0 + 4.0 + 22.0 + 90.0);
        assert_eq!(wire_bytes(2_000.0), 2_000.0 + 4.0 + 22.0 + 180.0);
    }

    #[test]
    fn one_host_has_nothing_from_elsewhere_and_every_delivery_is_somewhere() {
        let workload = Workload::chat(1e6);
        let alone = Flow::of(&C, &workload, 1.0, Way::Everyone);
        assert_eq!((alone.relayed, alone.arriving), (0.0, 0.0));
        let spread = Flow::of(&C, &workload, 10.0, Way::WhoHasIt);
        assert!((spread.deliveries * 10.0 / alone.deliveries - 1.0).abs() < 1e-9);
        assert!(spread.delivery_us > alone.delivery_us && spread.relayed < Flow::of(&C, &workload, 10.0, Way::Everyone).relayed);
    }

    #[test]
    fn what_everybody_is_told_grows_with_the_square() {
        let told = |users| Flow::of(&C, &Workload::told(users), 1.0, Way::Everyone).told;
        assert!((told(2e5) / told(1e5) - 4.0).abs() < 1e-9);
        let most = told_max(&C, &Workload::told(1.0), &Machine::LARGE, 1.0);
        let full = Workload { active: 0.0, ping_seconds: 1e9, ..Workload::told(most) };
        let uses = fullest_first(host_uses(&C, &full, &Machine::LARGE, 1.0, Way::Everyone));
        assert!((uses[0].share() - 1.0).abs() < 0.05, "{uses:?}");
    }

    #[test]
    fn the_tables_say_what_is_full_first() {
        let first = |workload: Workload, machine| fullest_first(host_uses(&C, &workload, &machine, 1.0, Way::Everyone))[0].resource;
        assert_eq!(first(Workload::chat(1e6), Machine::USUAL), "tracked connections");
        assert_eq!(first(Workload::told(1e6), Machine::LARGE), "network out");
        let fleet = Fleet { hosts: 100.0, way: Way::Everyone, redis_nodes: 1.0, redis_nic_bits: 25e9 };
        assert_eq!(fullest_first(fleet_uses(&C, &Workload::chat(1e8), &fleet))[0].resource, "CPU of Redis");
    }

    #[test]
    fn a_storm_is_over_with_the_first_try_or_with_the_last_client() {
        assert_eq!(storm_seconds(1e3, 2e4, 4e3), 1.5);
        assert_eq!(storm_seconds(2.2e4, 2e4, 4e3), 0.5 + 1.1);
        assert_eq!(storm_seconds(1e6, 2e4, 4e3), 0.5 + 50.0 + 2.5);
    }

    #[test]
    fn a_full_server_makes_wait_for_ever() {
        assert!(wait_seconds(1e6, 1.0, 1.0).is_infinite());
        // Half full, all alike: half a service in the mean.
        assert!((wait_seconds(0.5e6, 1.0, 1.0) - 0.5e-6).abs() < 1e-12);
    }
}
