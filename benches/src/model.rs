//! `benches model`: what a million connections on one host and a hundred million on a fleet would take, from the measured cost of one of
//! everything. It measures nothing and opens nothing: constants, formulas, a simulation that checks them, and tables of what they say.

mod constants;
mod formulas;
mod simulation;
mod workload;

use std::fmt::Write as _;

use crate::options::Said;
use constants::Constants;
use formulas::{
    Broadcast, Flow, Redis, Use, fleet_uses, fullest_first, host_uses, join_us, message_us, storm_seconds, told_max, wait_seconds,
};
use workload::{Fleet, Machine, Way, Workload};

/// The text of `benches model --help`.
pub(crate) const USAGE: &str = "\
usage: benches model [options]          tables of benches/CAPACITY.md: one host, a fleet, and both simulated

options
  --set NAME=VALUE     another value for one of the constants, which the first table lists; may be said again
  --host N             connections on one host                         (1000000)
  --fleet N            connections on a fleet                          (100000000)
  --hosts N            hosts of the fleet                              (100)
  --redis N            nodes of its Redis Cluster                      (16)
  --seed N             of the simulation                               (1)
";

/// Connections that may wait to be let in: `listen`'s backlog, `net.core.somaxconn` being 4,096.
const BACKLOG: f64 = 4_096.0;
/// Ports that a proxy's address has for connections to one address and port of ours: `net.ipv4.ip_local_port_range` as it comes.
const PORTS: f64 = 28_232.0;
const REDIS_NIC_BITS: f64 = 25e9;
/// Fleets are simulated for so long, and so many connections at most: what follows is the same per message.
const SIMULATED_SECONDS: f64 = 1.0;
const SIMULATED_MESSAGES: f64 = 60_000.0;
/// Connections of `busy` that leave a usual machine some room.
const HOST_SIMULATED: f64 = 400_000.0;
const SIMULATED_CLIENTS: u32 = 1_000_000;

/// The tables, as Markdown.
pub(crate) fn model(arguments: &[String]) -> Result<String, String> {
    let said = Said::parse(arguments, USAGE, &[])?;
    let mut constants = Constants::NOW;
    for setting in said.all("--set") {
        let (name, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: NAME=VALUE"))?;
        let value = value.parse().map_err(|_| format!("--set {setting}: not a number"))?;
        if !constants.set(name, value) {
            return Err(format!("--set {setting}: no such constant"));
        }
    }
    let number = |name, usual: u32| said.number(name).map(|number| f64::from(number.unwrap_or(usual).max(1)));
    let (host, fleet, hosts) = (number("--host", 1_000_000)?, number("--fleet", 100_000_000)?, number("--hosts", 100)?);
    let redis_nodes = number("--redis", 16)?;
    let seed = u64::from(said.number("--seed")?.unwrap_or(1));
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = tell(&mut page, &constants, [host, fleet, hosts, redis_nodes], seed);
    Ok(page)
}

fn tell(page: &mut String, constants: &Constants, [host, fleet, hosts, redis_nodes]: [f64; 4], seed: u64) -> std::fmt::Result {
    writeln!(page, "### Constants\n\n| name | value | unit | from |\n|---|---|---|---|")?;
    for row in constants.rows() {
        writeln!(page, "| `{}` | {} | {} | {} |", row.name, short(row.value), row.unit, row.source)?;
    }
    writeln!(page, "\n### Workloads\n\n| name | is |\n|---|---|")?;
    for workload in Workload::all(host) {
        writeln!(page, "| {} | {} |", workload.name, workload.says)?;
    }
    for (title, machine) in [("a usual machine", Machine::USUAL), ("a large machine", Machine::LARGE)] {
        writeln!(page, "\n### {} connections on {title}: {}\n", short(host), machine_line(&machine))?;
        uses_table(page, &Workload::all(host), |workload| host_uses(constants, workload, &machine, 1.0, Way::Everyone))?;
        host_lines(page, constants, host, &machine)?;
    }
    let each = Fleet { hosts, way: Way::Everyone, redis_nodes: 1.0, redis_nic_bits: REDIS_NIC_BITS };
    let fleets = [each, Fleet { way: Way::WhoHasIt, redis_nodes, ..each }];
    for fleet_kind in &fleets {
        let way = match fleet_kind.way {
            Way::Everyone => "one channel that all hosts hear, on one Redis".to_owned(),
            Way::WhoHasIt => format!("a channel per room, on {redis_nodes} nodes of a Redis Cluster"),
        };
        writeln!(page, "\n### {} connections on {hosts} large machines: {way}\n", short(fleet))?;
        uses_table(page, &Workload::all(fleet), |workload| {
            let mut uses = fleet_uses(constants, workload, fleet_kind);
            uses.extend(host_uses(constants, workload, &Machine::LARGE, hosts, fleet_kind.way));
            uses
        })?;
    }
    fleet_lines(page, constants, &Workload::chat(fleet), &fleets)?;
    writeln!(page, "\n### Simulated, seed {seed}\n\n| what | formula | simulated | difference |\n|---|---|---|---|")?;
    host_rows(page, constants, seed)?;
    for fleet_kind in &fleets {
        traffic_rows(page, constants, &Workload::chat(fleet), fleet_kind, seed)?;
    }
    storm_rows(page, constants, seed)
}

/// A line per workload: what is fullest, and what follows.
fn uses_table(page: &mut String, workloads: &[Workload], uses: impl Fn(&Workload) -> Vec<Use>) -> std::fmt::Result {
    writeln!(page, "| workload | full first | then | then | all of it holds up to |\n|---|---|---|---|---|")?;
    for workload in workloads {
        let fullest = fullest_first(uses(workload));
        let cell = |place: usize| {
            let one = &fullest[place];
            format!("{} {} ({} of {}{})", one.resource, percent(one.share()), short(one.used), short(one.there_is), one.unit)
        };
        let holds = holds_up_to(workload, &uses);
        writeln!(page, "| {} | **{}** | {} | {} | {} |", workload.name, cell(0), cell(1), cell(2), short(holds))?;
    }
    Ok(())
}

/// Connections of a workload with which its fullest resource is just full; not all grow in proportion, so it is searched.
fn holds_up_to(workload: &Workload, uses: &impl Fn(&Workload) -> Vec<Use>) -> f64 {
    let is_full = |connections: f64| uses(&Workload { connections, ..workload.clone() }).iter().any(|one| one.share() > 1.0);
    let (mut fits, mut full) = (0.0, workload.connections * 1e3);
    for _ in 0..60 {
        let middle = (fits + full) / 2.0;
        if is_full(middle) { full = middle } else { fits = middle }
    }
    fits
}

fn host_lines(page: &mut String, constants: &Constants, host: f64, machine: &Machine) -> std::fmt::Result {
    let broadcast = Broadcast::of(constants, host, 128.0, machine);
    let per_second = machine.cores * 1e6 / constants.accept_us_socketio;
    let told = Workload { connections: host, ..Workload::told(host) };
    let busy = Flow::of(constants, &Workload::busy(host), 1.0, Way::Everyone);
    let bytes = host * (constants.engine_bytes_plain + constants.kernel_bytes);
    writeln!(
        page,
        "\n- Memory idle: {}B. One in a hundred who reads nothing adds {}B under `busy`, and {}B where each has all that may wait for one.",
        short(bytes),
        short(host * 0.01 * busy.waiting_bytes(constants)),
        short(host * 0.01 * workload::WAITING_BYTES_MAX)
    )?;
    writeln!(
        page,
        "- A message to everybody: {:.2} s (CPU {:.2}, wire {:.2}); {}B wait for acknowledgement at 100 ms to and back.",
        broadcast.seconds(),
        broadcast.cpu_seconds,
        broadcast.wire_seconds,
        short(broadcast.unacknowledged_bytes)
    )?;
    let half = storm_seconds(host, per_second / 2.0, BACKLOG * machine.cores);
    writeln!(
        page,
        "- All cut at once: {} a second can be let in; all are back after {:.1} s, and after {half:.1} s where half of the cores go on with their work. TLS would take {:.1} s of all cores.",
        short(per_second),
        storm_seconds(host, per_second, BACKLOG * machine.cores),
        host * constants.tls_us / 1e6 / machine.cores
    )?;
    writeln!(
        page,
        "- Where everybody is told of everybody (`rooms`, sessions of 30 minutes): {} users at most, {} deliveries a second at {}. After a cut that is {} deliveries.",
        short(told_max(constants, &told, machine, 1.0)),
        short(Flow::of(constants, &told, 1.0, Way::Everyone).told),
        short(host),
        short(host * host / 2.0)
    )?;
    writeln!(page, "- Behind a proxy: {} source addresses, because one has {} ports.", (host / PORTS).ceil(), short(PORTS))?;
    let raised = Machine { descriptors: f64::INFINITY, tracked: f64::INFINITY, ..*machine };
    let uses = |workload: &Workload| host_uses(constants, workload, &raised, 1.0, Way::Everyone);
    let holds = |workload: Workload| {
        let most = holds_up_to(&workload, &uses);
        let fullest = fullest_first(uses(&Workload { connections: most, ..workload.clone() }));
        format!("{} {} ({})", workload.name, short(most), fullest[0].resource)
    };
    let all: Vec<String> = Workload::all(host).into_iter().map(holds).collect();
    writeln!(page, "- With descriptors raised and nothing tracked it holds up to: {}.", all.join(", "))
}

fn fleet_lines(page: &mut String, constants: &Constants, chat: &Workload, fleets: &[Fleet; 2]) -> std::fmt::Result {
    let hosts = fleets[0].hosts;
    let each = chat.connections / hosts;
    let join_us = join_us(constants, chat, hosts);
    let per_second = Machine::LARGE.cores * 1e6 / join_us;
    let returning = each / (hosts - 1.0).max(1.0);
    writeln!(
        page,
        "\n- One host fails: {} clients come back to {} others, {} each, which takes {:.2} s of one core there; Redis answers {} questions, {:.0} s of one node or {:.1} s of {} nodes. Every host needs {} of its room free.",
        short(each),
        hosts - 1.0,
        short(returning),
        returning * join_us / 1e6,
        short(2.0 * each),
        2.0 * each * constants.redis_consult_us / 1e6,
        2.0 * each * constants.redis_consult_us / 1e6 / fleets[1].redis_nodes,
        fleets[1].redis_nodes,
        percent(1.0 / hosts)
    )?;
    writeln!(
        page,
        "- All are cut: {:.1} s for the hosts, but {} questions about who is first in a room are {:.0} s of {} nodes.",
        storm_seconds(each, per_second, BACKLOG * Machine::LARGE.cores),
        short(chat.connections),
        chat.connections * constants.redis_consult_us / 1e6 / fleets[1].redis_nodes,
        fleets[1].redis_nodes
    )?;
    let drain = 60.0;
    writeln!(
        page,
        "- Replacing the program, one host after the other, each drained in {drain} s: {:.1} hours, {} joins a second elsewhere meanwhile.",
        hosts * drain / 3600.0,
        short(each / drain)
    )?;
    writeln!(
        page,
        "- Beats: {} a second are heard in all; at the bound of 1,024 hosts {}, {:.1} cores of one Redis.",
        short(hosts * hosts),
        short(1_024.0 * 1_024.0),
        1_024.0 * 1_024.0 * constants.redis_listener_us / 1e6
    )
}

/// One usual machine under half a load of `busy`, formula and simulation side by side.
fn host_rows(page: &mut String, constants: &Constants, seed: u64) -> std::fmt::Result {
    let (machine, alone) = (Machine::USUAL, Fleet { hosts: 1.0, way: Way::Everyone, redis_nodes: 1.0, redis_nic_bits: REDIS_NIC_BITS });
    let workload = Workload { ping_seconds: 1e12, session_minutes: 1e12, ..Workload::busy(HOST_SIMULATED) };
    let seen = simulation::traffic(constants, &workload, &machine, &alone, 5.0 * SIMULATED_SECONDS, seed);
    let flow = Flow::of(constants, &workload, 1.0, alone.way);
    let told = format!("one usual machine, busy, {} connections", short(HOST_SIMULATED));
    let (us, us_squared) = message_us(constants, &workload);
    // All cores together are taken as one that is as fast.
    let wait = wait_seconds(workload.messages(), us / machine.cores, us_squared / machine.cores.powi(2));
    let mut row = |what: &str, computed: f64, seen: f64, unit: &str| {
        let difference = (seen - computed) / computed;
        writeln!(page, "| {told}: {what} | {}{unit} | {}{unit} | {} |", short(computed), short(seen), percent(difference))
    };
    row("deliveries/s", flow.deliveries, seen.deliveries as f64 / seen.seconds, "")?;
    row("CPU", 100.0 * flow.cores(constants) / machine.cores, 100.0 * seen.cpu, " %")?;
    row("network out", 100.0 * flow.bits_out(constants, &workload) / machine.nic_bits, 100.0 * seen.network_out, " %")?;
    row("wait for the shards", 1e6 * wait, 1e6 * seen.cpu_wait, " µs")?;
    writeln!(page, "| {told}: until the last has it | | p50 {:.2}, p99 {:.2} ms | |", seen.latency_p50 * 1e3, seen.latency_p99 * 1e3)
}

/// Formula and simulation side by side. Only as much of the fleet's talk is simulated as leaves Redis some room, and as much as is quick.
fn traffic_rows(page: &mut String, constants: &Constants, workload: &Workload, fleet: &Fleet, seed: u64) -> std::fmt::Result {
    let redis = Redis::of(constants, workload, fleet);
    let nodes = if fleet.way == Way::Everyone { 1.0 } else { fleet.redis_nodes };
    // Three quarters of what Redis can do, which is less than the workload asks where Redis is what is full first.
    let most = 0.75 * nodes * 1e6 / redis.us;
    let messages = workload.messages().min(most).min(SIMULATED_MESSAGES / SIMULATED_SECONDS);
    let quiet = Workload {
        ping_seconds: 1e12,
        session_minutes: 1e12,
        connections: workload.connections * messages / workload.messages(),
        ..workload.clone()
    };
    let seen = simulation::traffic(constants, &quiet, &Machine::LARGE, fleet, SIMULATED_SECONDS, seed);
    let flow = Flow::of(constants, &quiet, fleet.hosts, fleet.way);
    let way = if fleet.way == Way::Everyone { "one channel" } else { "channel per room" };
    let told = format!("{way}, {} messages/s", short(messages));
    let mut row = |what: &str, computed: f64, seen: f64, unit: &str| {
        let difference = (seen - computed) / computed;
        writeln!(page, "| {told}: {what} | {}{unit} | {}{unit} | {} |", short(computed), short(seen), percent(difference))
    };
    row("messages", messages * seen.seconds, seen.messages as f64, "")?;
    row("deliveries/s", flow.deliveries * fleet.hosts, seen.deliveries as f64 / seen.seconds, "")?;
    row("CPU of a host", 100.0 * flow.cores(constants) / Machine::LARGE.cores, 100.0 * seen.cpu, " %")?;
    row("network of a host", 100.0 * flow.bits_out(constants, &quiet) / Machine::LARGE.nic_bits, 100.0 * seen.network_out, " %")?;
    row("relay, sending", 100.0 * messages / fleet.hosts * constants.relay_send_us / 1e6, 100.0 * seen.relay_sending, " %")?;
    row("relay, receiving", 100.0 * flow.relayed * constants.relay_receive_us / 1e6, 100.0 * seen.relay_receiving, " %")?;
    row("CPU of Redis", 100.0 * messages * redis.us / 1e6 / nodes, 100.0 * seen.redis, " %")?;
    row("wait for Redis", 1e6 * wait_seconds(messages / nodes, redis.us, redis.us_squared), 1e6 * seen.redis_wait, " µs")?;
    writeln!(page, "| {told}: until the last has it | | p50 {:.2}, p99 {:.2} ms | |", seen.latency_p50 * 1e3, seen.latency_p99 * 1e3)
}

fn storm_rows(page: &mut String, constants: &Constants, seed: u64) -> std::fmt::Result {
    for machine in [Machine::USUAL, Machine::LARGE] {
        for share in [1.0, 0.5, 0.1] {
            let per_second = share * machine.cores * 1e6 / constants.accept_us_socketio;
            let waiting = BACKLOG * machine.cores;
            let seen = simulation::storm(SIMULATED_CLIENTS, per_second, waiting as usize, seed);
            let computed = storm_seconds(f64::from(SIMULATED_CLIENTS), per_second, waiting);
            writeln!(
                page,
                "| {} cut, {} a second let in | {computed:.1} s | {:.1} s, {:.1} refusals each | {} |",
                short(f64::from(SIMULATED_CLIENTS)),
                short(per_second),
                seen.seconds,
                seen.refused,
                percent((seen.seconds - computed) / computed)
            )?;
        }
    }
    Ok(())
}

fn machine_line(machine: &Machine) -> String {
    format!(
        "{} cores, {}B, {}bit/s, {} descriptors, {} tracked connections",
        machine.cores,
        short(machine.memory_bytes),
        short(machine.nic_bits),
        short(machine.descriptors),
        short(machine.tracked)
    )
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent.abs() < 10.0 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

/// Three digits and a letter, as people read large numbers.
fn short(value: f64) -> String {
    let (scaled, letter) = match value.abs() {
        size if size >= 1e15 => (value / 1e15, " P"),
        size if size >= 1e12 => (value / 1e12, " T"),
        size if size >= 1e9 => (value / 1e9, " G"),
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        size if size >= 100.0 || size == size.trunc() => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model_of(line: &str) -> Result<String, String> {
        model(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.0, "0"), (2.5, "2.50"), (28_232.0, "28.2 k"), (1e6, "1 M"), (5e11, "500 G"), (3_890.0, "3890")] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in
            [("--set luck=1", "no such constant"), ("--set kernel_bytes", "NAME=VALUE"), ("--speed 3", "unknown option --speed")]
        {
            let error = model_of(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_search_finds_where_something_is_full() {
        let uses = |workload: &Workload| host_uses(&Constants::NOW, workload, &Machine::USUAL, 1.0, Way::Everyone);
        let holds = holds_up_to(&Workload::chat(1e6), &uses);
        assert!((holds - 262_144.0).abs() < 1.0, "{holds}");
    }
}
