//! Turns what was measured into one JSON line for machines and one line for people. Field names end in their unit and are explained in
//! benches/README.md.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::histogram::Histogram;
use crate::options::{Options, Rate};
use crate::server::{Reading, Server};

/// A generator busier than this may itself have been the limit.
const GENERATOR_BOUND: f64 = 0.9;

/// What the scenario `connect` measured.
pub(crate) struct Connected {
    /// From the first connection's SYN to the last one's joining.
    pub(crate) took: Duration,
    /// What the server did in that time.
    pub(crate) server: Reading,
    /// The server before the first connection, and after the last had been idle.
    pub(crate) before: Reading,
    pub(crate) settled: Reading,
    pub(crate) generator_share: f64,
}

/// What the other scenarios measured, in the window.
pub(crate) struct Loaded {
    pub(crate) took: Duration,
    pub(crate) server: Reading,
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    /// Share of its core that the busiest generator thread used.
    pub(crate) generator_share: f64,
}

/// Whether everybody got everything, over the whole run.
pub(crate) struct Verdict {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) misordered: u64,
    pub(crate) foreign: u64,
    /// Rooms whose members did not all hear the same order.
    pub(crate) disordered_rooms: u64,
    pub(crate) refused: u64,
    pub(crate) disconnected: u64,
    pub(crate) first_refusal: Option<String>,
    pub(crate) first_fault: Option<String>,
    pub(crate) latency: Histogram,
    pub(crate) opening: Histogram,
}

impl Default for Verdict {
    fn default() -> Self {
        Self {
            lost: 0,
            doubled: 0,
            misordered: 0,
            foreign: 0,
            disordered_rooms: 0,
            refused: 0,
            disconnected: 0,
            first_refusal: None,
            first_fault: None,
            latency: Histogram::new(),
            opening: Histogram::new(),
        }
    }
}

/// The result of `connect`.
pub(crate) fn connect(options: &Options, server: &Server, measured: &Connected, verdict: &Verdict) -> Value {
    let count = f64::from(options.plan.connections());
    let grown = measured.settled.resident_bytes as f64 - measured.before.resident_bytes as f64;
    let mut fields = conditions(options, server);
    add(
        &mut fields,
        json!({
            "connections_per_second": round(count / measured.took.as_secs_f64()),
            "server_cpu_us_per_connection": round(measured.server.cpu as f64 / 1e3 / count),
            "kernel_threads_cpu_us_per_connection": round(measured.server.kernel as f64 / 1e3 / count),
            "resident_bytes_per_idle_connection": (grown / count).round(),
            "server_resident_bytes_before": measured.before.resident_bytes,
            "opening_us": quantiles(&verdict.opening),
            "opened_at_once": options.opening,
            "settle_seconds": options.settle.as_secs_f64(),
        }),
    );
    add(&mut fields, about_server(measured.server, measured.settled.resident_bytes, measured.took));
    add(&mut fields, faults(verdict));
    add(&mut fields, about_generator(measured.generator_share));
    Value::Object(fields)
}

/// The result of a scenario with a load.
pub(crate) fn load(options: &Options, server: &Server, measured: &Loaded, verdict: &Verdict) -> Value {
    let seconds = measured.took.as_secs_f64();
    let mut fields = conditions(options, server);
    let asked = match options.rate {
        Rate::Fixed(rate) => json!(rate),
        Rate::Max => json!("max"),
    };
    add(
        &mut fields,
        json!({
            "rate_asked": asked,
            "window": if options.rate == Rate::Max { json!(options.window) } else { Value::Null },
            "payload_bytes": options.payload_bytes,
            "seconds": round(seconds),
            "warmup_seconds": options.warmup.as_secs_f64(),
            "sent": measured.sent,
            "deliveries": measured.delivered,
            "deliveries_per_second": round(measured.delivered as f64 / seconds),
            "server_cpu_us_per_delivery": round(measured.server.cpu as f64 / 1e3 / measured.delivered as f64),
            "server_cpu_user_us_per_delivery": round(measured.server.user as f64 / 1e3 / measured.delivered as f64),
            "kernel_threads_cpu_us_per_delivery": round(measured.server.kernel as f64 / 1e3 / measured.delivered as f64),
            "latency_us": quantiles(&verdict.latency),
        }),
    );
    add(&mut fields, about_server(measured.server, measured.server.resident_bytes, measured.took));
    add(&mut fields, faults(verdict));
    add(&mut fields, about_generator(measured.generator_share));
    Value::Object(fields)
}

/// True exactly when nothing was lost, doubled, misordered, misdelivered, refused or cut.
pub(crate) fn is_clean(result: &Value) -> bool {
    FAULTS.iter().all(|name| result[*name] == 0)
}

/// One line for people.
pub(crate) fn line(result: &Value) -> String {
    let text = |name: &str| result[name].as_str().map_or_else(|| result[name].to_string(), str::to_owned);
    let head = format!("{} {} x {}:", text("bench"), text("dialect"), text("connections"));
    let figures = if result["bench"] == "connect" {
        format!(
            "{} connections/s, {} µs CPU and {} bytes each",
            text("connections_per_second"),
            text("server_cpu_us_per_connection"),
            text("resident_bytes_per_idle_connection")
        )
    } else {
        let latency = &result["latency_us"];
        format!(
            "{} deliveries/s, {} µs CPU each, latency µs p50 {} p99 {} p99.9 {} max {}",
            text("deliveries_per_second"),
            text("server_cpu_us_per_delivery"),
            latency["p50"],
            latency["p99"],
            latency["p99_9"],
            latency["max"]
        )
    };
    format!("{head} {figures}; {}{}", told(result), if result["generator_bound"] == true { "; GENERATOR BOUND" } else { "" })
}

/// The fields that are 0 when everything went well.
pub(crate) const FAULTS: [&str; 7] = ["lost", "doubled", "misordered", "foreign", "disordered_rooms", "refused", "disconnected"];

/// What went wrong, in words.
pub(crate) fn told(result: &Value) -> String {
    let wrong: Vec<String> = FAULTS.iter().filter(|name| result[**name] != 0).map(|name| format!("{name} {}", result[*name])).collect();
    let reasons = ["first_refusal", "first_fault"].iter().filter_map(|name| result[*name].as_str()).map(|text| format!(" ({text})"));
    if wrong.is_empty() {
        "nothing lost, doubled or misordered".into()
    } else {
        format!("{}{}", wrong.join(", "), reasons.collect::<String>())
    }
}

fn conditions(options: &Options, server: &Server) -> Map<String, Value> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut fields = Map::new();
    add(
        &mut fields,
        json!({
            "bench": options.plan.scenario.name(),
            "dialect": options.dialect.name(),
            "label": options.label,
            "unix_seconds": since.as_secs(),
            "kernel": kernel.trim(),
            "generator_cpus": options.cpus,
            "server_pid": server.pid(),
            "server_processes": server.processes(),
            "connections": options.plan.connections(),
            "rooms": options.plan.rooms,
            "connections_per_user": options.per_user,
        }),
    );
    fields
}

fn about_server(used: Reading, resident_bytes: u64, took: Duration) -> Value {
    let split = (used.user + used.system).max(1) as f64;
    json!({
        "server_cpu_cores": round(used.cpu as f64 / took.as_nanos().max(1) as f64),
        "server_cpu_user_share": round(used.user as f64 / split),
        "server_voluntary_switches_per_second": round(used.voluntary_switches as f64 / took.as_secs_f64()),
        "server_involuntary_switches_per_second": round(used.involuntary_switches as f64 / took.as_secs_f64()),
        "server_threads": used.threads,
        "server_resident_bytes": resident_bytes,
    })
}

fn faults(verdict: &Verdict) -> Value {
    json!({
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "misordered": verdict.misordered,
        "foreign": verdict.foreign,
        "disordered_rooms": verdict.disordered_rooms,
        "refused": verdict.refused,
        "first_refusal": verdict.first_refusal,
        "disconnected": verdict.disconnected,
        "first_fault": verdict.first_fault,
    })
}

/// Whether everybody got everything, and when.
pub(crate) fn verdict(verdict: &Verdict) -> Value {
    let mut fields = Map::new();
    add(&mut fields, faults(verdict));
    add(&mut fields, json!({ "latency_us": quantiles(&verdict.latency) }));
    Value::Object(fields)
}

fn about_generator(share: f64) -> Value {
    json!({ "generator_cpu_share": round(share), "generator_bound": share > GENERATOR_BOUND })
}

fn quantiles(histogram: &Histogram) -> Value {
    let microseconds = |time: Duration| round(time.as_nanos() as f64 / 1e3);
    json!({
        "count": histogram.count(),
        "p50": microseconds(histogram.quantile(0.5)),
        "p99": microseconds(histogram.quantile(0.99)),
        "p99_9": microseconds(histogram.quantile(0.999)),
        "max": microseconds(histogram.max()),
    })
}

fn add(fields: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        fields.extend(more);
    }
}

/// Three decimals are more than the noise leaves.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
