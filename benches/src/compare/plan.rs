//! What is compared: the loads that are run, and the rows of the table that are read off them, each with what it must reach and what it
//! aims at. Plain data; a new row is one entry here.

use serde_json::Value;

/// One load, which every server takes in turn.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// What is asked of the generator, beside what is the same for all.
    pub(crate) arguments: &'static [&'static str],
    /// Connections that it opens, as far as they are fixed: so long does opening take.
    pub(crate) connections: u32,
    /// True exactly when it compares our server on two cores with itself on one.
    pub(crate) two_shards: bool,
}

const fn load(name: &'static str, arguments: &'static [&'static str], connections: u32) -> Load {
    Load { name, arguments, connections, two_shards: false }
}

/// All loads, in the order in which they are run.
pub(crate) const LOADS: &[Load] = &[
    load(IDLE, &["connect"], 15_000),
    load("fan-out-20k", &["fan-out", "--rate", "20000"], 1_000),
    load("fan-out-100k", &["fan-out", "--rate", "100000"], 1_000),
    // Few users: who comes into a room of 10,000 users would be told of all of them, which is not what is measured here.
    load("fan-out-10000", &["fan-out", "--rate", "100000", "--connections", "10000", "--per-user", "1000"], 10_000),
    load("rooms-20k", &["rooms", "--rate", "20000"], 10_000),
    load("rooms-50k", &["rooms", "--rate", "50000"], 10_000),
    load("echo-20k", &["echo", "--rate", "20000"], 1_000),
    // One question open on each connection.
    load("echo-max", &["echo", "--rate", "max", "--window", "1000"], 1_000),
    // 1,000 messages a second to 1,000 members: whoever writes each by itself needs five cores for it.
    load("busy-room", &["fan-out", "--rate", "1000000"], 1_000),
    // Enough messages under way that a server which gathers them can.
    load("fan-out-max", &["fan-out", "--rate", "max", "--window", "64"], 1_000),
    Load { two_shards: true, ..load("shards-rooms", &["rooms", "--rate", "max", "--window", "1000"], 10_000) },
    Load { two_shards: true, ..load("shards-fan-out", &["fan-out", "--rate", "max", "--window", "64"], 1_000) },
];

/// The load without messages, of which memory and the cost of joining are read.
pub(crate) const IDLE: &str = "idle";

/// What is read off a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Server CPU per delivery, the kernel's threads for it included, µs.
    Cpu,
    /// The part of it in user mode, µs.
    UserCpu,
    /// Server CPU per connection opened, identified and joined, µs.
    JoinCpu,
    /// Resident memory per idle connection, KB of 1,000 bytes.
    Memory,
    /// Deliveries per second, thousands.
    Throughput,
    /// 99th percentile of the latency, ms.
    Latency,
}

impl Figure {
    pub(crate) const ALL: [Self; 6] = [Self::Cpu, Self::UserCpu, Self::JoinCpu, Self::Memory, Self::Throughput, Self::Latency];

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "CPU µs per delivery",
            Self::UserCpu => "user CPU µs per delivery",
            Self::JoinCpu => "CPU µs per connection",
            Self::Memory => "resident KB per connection",
            Self::Throughput => "thousand deliveries per second",
            Self::Latency => "latency p99, ms",
        }
    }

    /// A word for file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::UserCpu => "user-cpu",
            Self::JoinCpu => "join",
            Self::Memory => "memory",
            Self::Throughput => "throughput",
            Self::Latency => "latency",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    /// The figure of one result of the generator.
    pub(crate) fn of(self, result: &Value) -> Option<f64> {
        let number = |name: &str| result[name].as_f64();
        match self {
            Self::Cpu => Some(number("server_cpu_us_per_delivery")? + number("kernel_threads_cpu_us_per_delivery")?),
            Self::UserCpu => number("server_cpu_user_us_per_delivery"),
            Self::JoinCpu => Some(number("server_cpu_us_per_connection")? + number("kernel_threads_cpu_us_per_connection")?),
            Self::Memory => Some(number("resident_bytes_per_idle_connection")? / 1e3),
            Self::Throughput => Some(number("deliveries_per_second")? / 1e3),
            Self::Latency => Some(result["latency_us"]["p99"].as_f64()? / 1e3),
        }
    }
}

/// What a row is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Our figure divided by the best peer's of the same round.
    Ratio,
    /// Our figure itself.
    Value,
}

/// What is to be reached, over plain WebSocket and over Socket.IO.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) plain: f64,
    pub(crate) socket_io: f64,
}

const fn both(value: f64) -> Goal {
    Goal { plain: value, socket_io: value }
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) load: &'static str,
    pub(crate) title: &'static str,
    pub(crate) figure: Figure,
    pub(crate) judged: Judged,
    pub(crate) must: Goal,
    pub(crate) aim: Goal,
}

const fn row(load: &'static str, title: &'static str, figure: Figure, must: f64, aim: f64) -> Row {
    Row { load, title, figure, judged: Judged::Ratio, must: both(must), aim: both(aim) }
}

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        judged: Judged::Value,
        must: Goal { plain: 1.2, socket_io: 1.6 },
        aim: Goal { plain: 0.45, socket_io: 0.6 },
        ..row(IDLE, "idle connection", Figure::Memory, 0.0, 0.0)
    },
    row(IDLE, "connect, token, join", Figure::JoinCpu, 1.5, 1.0),
    row("fan-out-20k", "fan-out 1 to 1,000, 20k/s", Figure::Cpu, 1.0, 0.85),
    row("fan-out-20k", "fan-out 1 to 1,000, 20k/s", Figure::Latency, 1.0, 0.8),
    row("fan-out-100k", "fan-out 1 to 1,000, 100k/s", Figure::Cpu, 1.0, 0.85),
    Row { judged: Judged::Value, ..row("fan-out-100k", "fan-out 1 to 1,000, 100k/s", Figure::UserCpu, 0.5, 0.25) },
    row("fan-out-10000", "fan-out 1 to 10,000, 100k/s", Figure::Cpu, 1.0, 0.85),
    row("rooms-20k", "1,000 rooms of 10, 20k/s", Figure::Cpu, 1.0, 0.85),
    row("rooms-20k", "1,000 rooms of 10, 20k/s", Figure::Latency, 1.0, 0.8),
    row("rooms-50k", "1,000 rooms of 10, 50k/s", Figure::Cpu, 1.0, 0.85),
    row("echo-20k", "echo, 20k/s", Figure::Cpu, 1.1, 0.95),
    row("echo-20k", "echo, 20k/s", Figure::Latency, 1.0, 0.8),
    // The echo's 1.1 and 0.95 of CPU, as throughput of one core.
    row("echo-max", "echo, closed loop", Figure::Throughput, 1.0 / 1.1, 1.0 / 0.95),
    row("busy-room", "busy room, 1,000 members, 1,000 messages/s", Figure::Cpu, 0.5, 0.2),
    // How long messages may be held. Half of it is our own aim.
    Row { judged: Judged::Value, ..row("busy-room", "busy room, 1,000 members, 1,000 messages/s", Figure::Latency, 10.0, 5.0) },
    row("fan-out-max", "saturated fan-out", Figure::Throughput, 1.0, 1.3),
    row("shards-rooms", "two shards against one, rooms of 10", Figure::Throughput, 1.8, 1.95),
    row("shards-fan-out", "two shards against one, fan-out", Figure::Throughput, 1.8, 1.95),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_row_has_a_load_that_the_generator_understands_and_every_load_a_row() {
        for row in ROWS {
            assert!(LOADS.iter().any(|load| load.name == row.load), "{}", row.load);
        }
        for load in LOADS {
            assert!(ROWS.iter().any(|row| row.load == load.name), "{}", load.name);
            let arguments = load.arguments.iter().chain(&["--secret", "s"]).map(ToString::to_string).collect::<Vec<_>>();
            let options = crate::options::Options::parse(&arguments).expect(load.name);
            assert!(load.name == IDLE || options.plan.connections() == load.connections, "{}", load.name);
        }
    }

    #[test]
    fn an_aim_is_never_easier_than_a_must() {
        for row in ROWS {
            for (must, aim) in [(row.must.plain, row.aim.plain), (row.must.socket_io, row.aim.socket_io)] {
                assert!(if row.figure.more_is_better() { aim > must } else { aim < must }, "{} {}", row.title, row.figure.unit());
            }
        }
    }

    #[test]
    fn the_kernels_part_is_counted() {
        let result =
            json!({ "server_cpu_us_per_delivery": 5.0, "kernel_threads_cpu_us_per_delivery": 0.25, "latency_us": { "p99": 1500.0 } });
        assert_eq!((Figure::Cpu.of(&result), Figure::Latency.of(&result), Figure::Memory.of(&result)), (Some(5.25), Some(1.5), None));
    }
}
