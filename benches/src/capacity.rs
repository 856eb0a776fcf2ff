//! `benches capacity`: how many idle connections cost what. It starts one or several servers of ours, opens the connections from as many
//! generator processes, and reads what both kinds of memory, the joining, the heartbeats and a message to everybody take. Several
//! processes are needed because each may hold only so many descriptors; they share the server's core and are counted together.

pub(crate) mod command;
mod hosts;
mod kernel;
pub(crate) mod part;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::net;
use crate::report;
use crate::server::Reading;
use command::Command;
use hosts::Fleet;
use kernel::Kernel;
use part::Parts;

/// What servers do of themselves after their start is over.
const AFTER_START: Duration = Duration::from_secs(2);
/// How long servers without connections are watched, to know what waiting itself costs.
const EMPTY_WATCH: Duration = Duration::from_secs(3);
/// Between two messages to everybody: whatever the first one set off is over.
const BETWEEN_BROADCASTS: Duration = Duration::from_secs(1);

/// Measures as the command says; the result is one JSON object.
pub(crate) fn capacity(command: &Command) -> Result<Value, String> {
    net::raise_descriptor_limit().map_err(|error| format!("the limit of descriptors: {error}"))?;
    let fleet = Fleet::start(command)?;
    net::keep_on(&command.cpus).map_err(|error| format!("cannot run on cores {:?}: {error}", command.cpus))?;
    let mut parts = Parts::start(command, &fleet)?;
    std::thread::sleep(AFTER_START);
    let empty = watch(&fleet, &mut parts, EMPTY_WATCH)?;
    let (kernel_before, before, generators_before) = (Kernel::read(), fleet.reading()?, parts.reading()?);

    let started = Instant::now();
    let opened = parts.open()?;
    let took = started.elapsed();
    let opening = fleet.reading()?.since(before);

    std::thread::sleep(command.settle);
    let (kernel_settled, settled, generators_settled) = (Kernel::read(), fleet.reading()?, parts.reading()?);
    let idle = watch(&fleet, &mut parts, command.idle)?;
    let broadcasts = (0..command.broadcasts).map(|_| broadcast(&fleet, &mut parts)).collect::<Result<Vec<_>, _>>()?;
    let after = fleet.reading()?;
    let verdict = parts.end()?;

    let count = f64::from(command.connections);
    let per_connection = |bytes: f64| (bytes / count).round();
    let grown = |now: u64, before: u64| per_connection(now as f64 - before as f64);
    let mut result = json!({
        "bench": "capacity",
        "dialect": command.dialect.name(),
        "label": command.label,
        "unix_seconds": SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "server_cpus": command.server_cpus,
        "generator_cpus": command.cpus,
        "connections": command.connections,
        "server_processes": command.processes,
        "redis": command.redis.is_some(),
        "connections_per_user": command.per_user,
        "ping_interval_ms": command.ping_interval_ms(),
        "payload_bytes": command.payload_bytes,
        "settle_seconds": command.settle.as_secs_f64(),
        "connections_per_second": report::round(count / took.as_secs_f64()),
        "server_cpu_us_per_connection": report::round(opening.cpu as f64 / 1e3 / count),
        "kernel_threads_cpu_us_per_connection": report::round(opening.kernel as f64 / 1e3 / count),
        "opened_at_once": command.opening,
        "opening_server_share": report::round(opening.cpu as f64 / took.as_nanos() as f64),
        "opening_generator_share": report::round(opened),
        "resident_bytes_per_connection": grown(settled.resident_bytes, before.resident_bytes),
        "server_resident_bytes_before": before.resident_bytes,
        "server_resident_bytes": settled.resident_bytes,
        "server_resident_bytes_after_broadcasts": after.resident_bytes,
        "generator_resident_bytes_per_connection": grown(generators_settled.resident_bytes, generators_before.resident_bytes),
        "kernel_memory": kernel_settled.since(&kernel_before, count),
        "empty_server_cpu_ms_per_second": report::round(empty.server.cpu as f64 / 1e6 / empty.took.as_secs_f64()),
        "idle": idle.less(&empty).value(command),
        "broadcasts": broadcasts,
    });
    if let (Value::Object(fields), Value::Object(verdict)) = (&mut result, verdict) {
        fields.extend(verdict);
    }
    Ok(result)
}

/// What servers did in a time without messages.
struct Watched {
    took: Duration,
    server: Reading,
    /// What the clients heard: heartbeats, nothing else.
    heard: u64,
    /// CPU that the same time would have cost without connections, in nanoseconds.
    unloaded: f64,
}

impl Watched {
    fn less(self, empty: &Self) -> Self {
        let unloaded = empty.server.cpu as f64 / empty.took.as_secs_f64() * self.took.as_secs_f64();
        Self { unloaded, ..self }
    }

    fn value(&self, command: &Command) -> Value {
        let seconds = self.took.as_secs_f64();
        let cpu = self.server.cpu as f64 - self.unloaded;
        json!({
            "seconds": report::round(seconds),
            "heartbeats_per_second": report::round(self.heard as f64 / seconds),
            "heartbeats_expected_per_second": report::round(f64::from(command.connections) * 1e3 / command.ping_interval_ms() as f64),
            "server_cpu_ms_per_second": report::round(self.server.cpu as f64 / 1e6 / seconds),
            "kernel_threads_cpu_ms_per_second": report::round(self.server.kernel as f64 / 1e6 / seconds),
            "server_cpu_us_per_heartbeat": if self.heard == 0 { Value::Null } else { json!(report::round(cpu / 1e3 / self.heard as f64)) },
            "server_voluntary_switches_per_second": report::round(self.server.voluntary_switches as f64 / seconds),
        })
    }
}

fn watch(fleet: &Fleet, parts: &mut Parts, time: Duration) -> Result<Watched, String> {
    let (started, before, heard) = (Instant::now(), fleet.reading()?, parts.frames()?);
    std::thread::sleep(time);
    let (server, frames) = (fleet.reading()?.since(before), parts.frames()?);
    Ok(Watched { took: started.elapsed(), server, heard: frames - heard, unloaded: 0.0 })
}

/// One message to everybody, on every server at the same moment.
fn broadcast(fleet: &Fleet, parts: &mut Parts) -> Result<Value, String> {
    std::thread::sleep(BETWEEN_BROADCASTS);
    let (before, generators_before) = (fleet.reading()?, parts.reading()?);
    let heard = parts.broadcast()?;
    let (server, generators) = (fleet.reading()?.since(before), parts.reading()?.since(generators_before));
    let delivered = heard.delivered;
    let each = |nanoseconds: u64| report::round(nanoseconds as f64 / 1e3 / delivered.max(1) as f64);
    Ok(json!({
        "delivered": delivered,
        "last_ms": report::round(heard.last.as_secs_f64() * 1e3),
        "answers_late": heard.answers_late,
        "server_cpu_us_per_delivery": each(server.cpu),
        "server_cpu_user_us_per_delivery": each(server.user),
        "kernel_threads_cpu_us_per_delivery": each(server.kernel),
        "generator_cpu_us_per_delivery": each(generators.cpu),
    }))
}

/// One line for people.
pub(crate) fn line(result: &Value) -> String {
    let of = |value: &Value| value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number:.1}"));
    let broadcasts = result["broadcasts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let slowest = broadcasts.iter().filter_map(|one| one["last_ms"].as_f64()).fold(0.0, f64::max);
    format!(
        "capacity {} x {} on {}: {} connections/s, {} µs each, {} + {} bytes each (resident + kernel), {} µs a heartbeat, {slowest:.0} ms to everybody; {}",
        result["dialect"].as_str().unwrap_or_default(),
        result["connections"],
        result["server_processes"],
        of(&result["connections_per_second"]),
        of(&result["server_cpu_us_per_connection"]),
        of(&result["resident_bytes_per_connection"]),
        of(&result["kernel_memory"]["slab_bytes_server_side"]),
        of(&result["idle"]["server_cpu_us_per_heartbeat"]),
        report::told(result),
    )
}
