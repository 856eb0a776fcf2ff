//! `/metrics`: the engine's counters in the Prometheus text format, gathered anew at each scrape. No label carries a user, a room or a
//! connection. The endpoint label is empty for what reached no endpoint.
//!
//! | metric (prefix `uringcast_`) | type | labels | what it tells |
//! |---|---|---|---|
//! | `connections` | gauge | endpoint, transport, shard | open now |
//! | `connections_accepted_total` | counter | endpoint, shard | entered since the start |
//! | `messages_received_total` | counter | endpoint, shard | read from clients |
//! | `messages_delivered_total` | counter | endpoint, shard | written to clients, one per receiver |
//! | `connections_closed_total` | counter | endpoint, reason | ended connections |
//! | `handshakes_refused_total` | counter | endpoint, reason | connections that never entered |
//! | `messages_dropped_total` | counter | endpoint, reason | messages delivered to nobody, or not to one that was gone |
//! | `rooms` | gauge | endpoint | rooms that exist |
//! | `history_messages` | gauge | endpoint | messages kept for late joiners |
//! | `rate_limited_total` | counter | endpoint | messages, and calls of users over HTTP, refused for the rate |
//! | `recoverable_connections` | gauge | endpoint | connections that broke off and can be recovered |
//! | `recoveries_total` | counter | endpoint | connections that were recovered |
//! | `recoveries_restored_total` | counter | endpoint | those of them that had broken off on another host |
//! | `recoveries_unshared_total` | counter | endpoint | connections that broke off and could come back here only, because too much was uncertain to tell other hosts |
//! | `recoveries_refused_total` | counter | endpoint, reason | wishes to recover that were not granted |
//! | `recovery_events` | gauge | endpoint | events remembered for those who come back |
//! | `recovery_bytes` | gauge | endpoint | bytes of those |
//! | `webhook_requests_total` | counter | endpoint, hook, outcome | questions to the back end; `cached`: it had just said so; but for `allowed`, `denied` and `cached` refused |
//! | `webhook_seconds` | histogram | endpoint, hook | how long its answers took, waiting for a place included |
//! | `webhooks_unasked_total` | counter | endpoint | questions refused unasked because too many were under way on a shard |
//! | `webhooks_unanswered_total` | counter | endpoint | questions that nobody answered within the timeout and a margin |
//! | `outbox_bytes` | gauge | shard | bytes queued for sockets that take no more |
//! | `memory_held_bytes` | gauge | shard | bytes that connections hold; 0 unless `limits.memory` is set |
//! | `memory_shed_total` | counter | shard | connections ended as slow readers because all together held more than `limits.memory` |
//! | `memory_shed_bytes_total` | counter | shard | bytes that those held |
//! | `handshakes_waiting` | gauge | shard | handshakes that wait to be let in (`limits.handshakes_per_second`) |
//! | `handshakes_delayed_total` | counter | shard | handshakes that had to wait; those told to come again are `handshakes_refused_total{reason="busy"}` |
//! | `mesh_parcels_total` | counter | shard | parcels sent to other shards |
//! | `mesh_wakes_total` | counter | shard | other shards woken to fetch them |
//! | `held_casts_total` | counter | shard | messages of busy rooms that waited for further ones, at most `limits.hold_ms` |
//! | `webhook_answers_lost_total` | counter | shard | answers of webhooks lost because the shard's lane was full; their questions end as unanswered |
//! | `mesh_full_total` | counter | shard | turns that ended with a full lane, so that reading paused |
//! | `accept_paused_total` | counter | shard | times accepting paused for want of file descriptors |
//! | `kept_sockets` | gauge | shard | WebSockets of which a copy is kept for the case of a crash; 0 without `server.keep_sockets` |
//! | `keep_refused_total` | counter | shard | times the kernel took no such copies, because too many were in flight; they are offered again |
//! | `event_readers` | gauge | | who follows what happens now: streams, and the webhook |
//! | `events_total` | counter | type | events recorded because somebody wants them |
//! | `events_dropped_total` | counter | reason | events for which a shard had no place, a reader was too slow, or that the webhook did not take |
//! | `event_webhook_requests_total` | counter | outcome | requests of the webhook that were taken (2xx), and those that were not |
//! | `handed_over_total` | counter | shard | plain HTTP connections given to the control plane |
//! | `shard_loop_seconds` | histogram | shard | length of one turn of the loop |
//! | `delivery_seconds` | histogram | | from the read of a message to the end of the turn that wrote the last of its cast |
//! | `relay_connected` | gauge | | 1 while Redis answers and the relay turns; 0 where none is configured, here and below |
//! | `relay_connects_total` | counter | | times that a connection to Redis was made |
//! | `relay_round_trip_seconds` | gauge | | last round trip to Redis, measured once a second; 0 while it is away |
//! | `relay_hosts` | gauge | | other uringcast hosts of the fleet that are alive |
//! | `relay_published_total` | counter | | messages that Redis has confirmed |
//! | `relay_received_total` | counter | | messages of other hosts and programs for clients here |
//! | `relay_dropped_total` | counter | reason | messages lost on the way to or from Redis: `overflow` (away, and too much was said meanwhile), `age` (away for too long), `unconfirmed` (sent, perhaps delivered), `unheard` (fewer hosts listened than there are), `missed` (another host sent it and it did not come), `refused`, `malformed`, `unspeakable`, `shard` (a shard's lane was full), `flood` (Redis sent too fast), `lane` (the relay's own lane was full) |
//! | `relay_questions_unanswered_total` | counter | | questions about other hosts (who is first, last, in) that were not answered within a second, or not asked because too many were: then this host's own knowledge counted |
//! | `relay_blocklists_unknown_total` | counter | | times it could not be looked up in Redis whom an author has blocked: then his token counted |
//! | `relay_waiting_messages` | gauge | | messages that wait for Redis |
//! | `relay_waiting_bytes` | gauge | | bytes of those |
//! | `relay_stream_read_total` | counter | | entries read from streams; 0 without the reliable mode, here and below |
//! | `relay_stream_missed_total` | counter | | entries of other hosts that this one will never read: trimmed before it could, lost by Redis, or dropped where they were said because too much waited; a gap of unknown size counts one |
//! | `relay_stream_doubled_total` | counter | | entries that came again, and were left out |
//! | `relay_stream_refusals_total` | counter | | times that Redis refused entries, which are tried again |
//! | `relay_journal_bytes` | gauge | | bytes of the stream's last events, kept for clients that come back |
//! | `jwks_keys` | gauge | | keys of the key set that verify tokens; 0 where none is configured, here and below |
//! | `jwks_age_seconds` | gauge | | since the key set was last found in order |
//! | `jwks_failures_total` | counter | | times that its file or URL gave none |
//! | `jwks_unknown_kids_total` | counter | | tokens that named a key which is not in it |
//! | `reloads_total` | counter | outcome | reloads since the process was started: `done`, and `refused`, after which it went on as it was |
//! | `reload_pause_seconds` | gauge | | for how long clients were not heard in the last one; 0 before the first |
//! | `build_info` | gauge | version, io | always 1 |
//!
//! Beside them, without the prefix, `process_*` of the usual collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use engine::event::EventType;
use engine::fault::{CloseReason, DropReason, RecoveryFault, Refusal, RelayDrop};
use engine::stats::{EndpointStats, HISTOGRAM_BOUNDS_NS, Histogram, RelayStats, ShardStats};
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{self, Bucket, LabelPair, Metric, MetricFamily, MetricType};

use crate::bridge::Host;
use crate::events::Events;
use crate::hooks::Hooks;
use crate::jwks::Watch;
use crate::relay::Relay;
use crate::reload::Reloads;

/// Makes the text of `/metrics`.
pub struct Metrics {
    host: Arc<dyn Host>,
    jwks: Option<Arc<Watch>>,
    hooks: Option<Arc<Hooks>>,
    events: Arc<Events>,
    reloads: Arc<Reloads>,
    process: ProcessCollector,
    /// Calls refused for the rate, by endpoint: nobody but a shard writes its counters.
    rate_limited: Box<[AtomicU64]>,
}

impl Metrics {
    /// Metrics of `host`, of the key set, of webhooks, of the events, of reloads and of this process.
    pub fn new(
        host: Arc<dyn Host>,
        jwks: Option<Arc<Watch>>,
        hooks: Option<Arc<Hooks>>,
        events: Arc<Events>,
        reloads: Arc<Reloads>,
    ) -> Metrics {
        let rate_limited = host.endpoints().iter().map(|_| AtomicU64::new(0)).collect();
        Metrics { host, jwks, hooks, events, reloads, process: ProcessCollector::for_self(), rate_limited }
    }

    /// Counts a call of a user that was refused for the rate.
    pub fn count_rate_limited(&self, endpoint: usize) {
        if let Some(count) = self.rate_limited.get(endpoint) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// All metrics as they are now.
    pub fn render(&self) -> prometheus::Result<String> {
        let mut families = self.of_endpoints();
        families.extend(self.of_webhooks());
        families.extend(self.of_shards());
        families.extend(self.of_the_host());
        families.extend(self.of_the_relay());
        families.extend(self.of_the_key_set());
        families.extend(self.of_events());
        families.extend(self.process.collect());
        TextEncoder::new().encode_to_string(&families)
    }

    fn of_endpoints(&self) -> Vec<MetricFamily> {
        let connections = |transport, read: fn(&EndpointStats) -> u64| {
            self.by_shard("connections", MetricType::GAUGE, "Connections open now.", &[("transport", transport)], read)
        };
        // The two are read one after the other, so one may be a little ahead.
        let mut open = connections("websocket", |it| it.connections.read().saturating_sub(it.polling.read()));
        let mut polling = connections("polling", |it| it.polling.read());
        let mut both = open.take_metric();
        both.extend(polling.take_metric());
        open.set_metric(both);
        vec![
            open,
            self.by_shard("connections_accepted_total", MetricType::COUNTER, "Connections that entered.", &[], |it| it.accepted.read()),
            self.by_shard("messages_received_total", MetricType::COUNTER, "Messages read from clients.", &[], |it| it.received.read()),
            self.by_shard("messages_delivered_total", MetricType::COUNTER, "Messages written to clients, one per receiver.", &[], |it| {
                it.delivered.read()
            }),
            self.by_reason("connections_closed_total", "Ended connections.", CloseReason::ALL, CloseReason::label, |it, reason| {
                it.closed[reason.index()].read()
            }),
            self.by_reason("handshakes_refused_total", "Connections that never entered.", Refusal::ALL, Refusal::label, |it, reason| {
                it.refused[reason.index()].read()
            }),
            self.by_reason("messages_dropped_total", "Messages not delivered.", DropReason::ALL, DropReason::label, |it, reason| {
                it.dropped[reason.index()].read()
            }),
            self.by_endpoint("rooms", MetricType::GAUGE, "Rooms that exist.", |it| it.rooms.read()),
            self.by_endpoint("history_messages", MetricType::GAUGE, "Messages kept in histories.", |it| it.history_messages.read()),
            self.rate_limited(),
            self.by_endpoint("recoverable_connections", MetricType::GAUGE, "Connections that broke off and can be recovered.", |it| {
                it.recoverable.read()
            }),
            self.by_endpoint("recoveries_total", MetricType::COUNTER, "Connections that were recovered.", |it| it.recovered.read()),
            self.by_endpoint("recoveries_restored_total", MetricType::COUNTER, "Those that had broken off on another host.", |it| {
                it.restored.read()
            }),
            self.by_endpoint("recoveries_unshared_total", MetricType::COUNTER, "Broken off, and unknown to other hosts.", |it| {
                it.unshared.read()
            }),
            self.by_reason(
                "recoveries_refused_total",
                "Wishes to recover that were not granted.",
                RecoveryFault::ALL,
                RecoveryFault::label,
                |it, reason| it.unrecovered[reason.index()].read(),
            ),
            self.by_endpoint("recovery_events", MetricType::GAUGE, "Events remembered for those who come back.", |it| {
                it.backlog_events.read()
            }),
            self.by_endpoint("recovery_bytes", MetricType::GAUGE, "Bytes of those events.", |it| it.backlog_bytes.read()),
        ]
    }

    fn of_webhooks(&self) -> [MetricFamily; 4] {
        let labels = |endpoint, hook| [("endpoint", endpoint), ("hook", hook)];
        let (mut requests, mut seconds) = (Vec::new(), Vec::new());
        for (endpoint, hook, outcome, count) in self.hooks.iter().flat_map(|hooks| hooks.counts()) {
            let [endpoint, hook] = labels(endpoint, hook);
            requests.push(sample(MetricType::COUNTER, &[endpoint, hook, ("outcome", outcome)], count));
        }
        for (endpoint, hook, answers) in self.hooks.iter().flat_map(|hooks| hooks.seconds()) {
            seconds.push(histogram(&labels(endpoint, hook), [answers]));
        }
        if requests.is_empty() {
            // The format knows no metric without a sample.
            requests.push(sample(MetricType::COUNTER, &[("endpoint", ""), ("hook", ""), ("outcome", "")], 0));
            seconds.push(histogram(&labels("", ""), []));
        }
        [
            family("webhook_requests_total", MetricType::COUNTER, "Questions to the back end.", requests),
            family("webhook_seconds", MetricType::HISTOGRAM, "How long the back end's answers took.", seconds),
            self.by_endpoint("webhooks_unasked_total", MetricType::COUNTER, "Questions refused unasked.", |it| it.unasked.read()),
            self.by_endpoint("webhooks_unanswered_total", MetricType::COUNTER, "Questions that nobody answered.", |it| {
                it.unanswered.read()
            }),
        ]
    }

    fn rate_limited(&self) -> MetricFamily {
        let samples = self.endpoints().map(|(index, endpoint)| {
            let calls = self.rate_limited.get(index).map_or(0, |count| count.load(Relaxed));
            let messages = self.summed(index, |it| it.rate_limited.read());
            sample(MetricType::COUNTER, &[("endpoint", endpoint)], messages.wrapping_add(calls))
        });
        family("rate_limited_total", MetricType::COUNTER, "Messages and calls refused for the rate.", samples.collect())
    }

    fn of_shards(&self) -> Vec<MetricFamily> {
        let by_shard = |name, kind, help, read: fn(&ShardStats) -> u64| {
            let stats = self.host.stats().iter().enumerate();
            family(name, kind, help, stats.map(|(shard, stats)| sample(kind, &[("shard", &shard.to_string())], read(stats))).collect())
        };
        let turns = self.host.stats().iter().enumerate();
        let turns = turns.map(|(shard, stats)| histogram(&[("shard", &shard.to_string())], [&stats.loop_time])).collect();
        vec![
            by_shard("outbox_bytes", MetricType::GAUGE, "Bytes queued for sockets that take no more.", |it| it.outbox_bytes.read()),
            by_shard("memory_held_bytes", MetricType::GAUGE, "Bytes that connections hold.", |it| it.memory_held.read()),
            by_shard("memory_shed_total", MetricType::COUNTER, "Connections ended because all held too much.", |it| it.memory_shed.read()),
            by_shard("memory_shed_bytes_total", MetricType::COUNTER, "Bytes that those held.", |it| it.memory_shed_bytes.read()),
            by_shard("handshakes_waiting", MetricType::GAUGE, "Handshakes that wait to be let in.", |it| it.handshakes_waiting.read()),
            by_shard("handshakes_delayed_total", MetricType::COUNTER, "Handshakes that had to wait.", |it| it.handshakes_delayed.read()),
            by_shard("mesh_parcels_total", MetricType::COUNTER, "Parcels sent to other shards.", |it| it.mesh_parcels.read()),
            by_shard("mesh_wakes_total", MetricType::COUNTER, "Wakes of other shards.", |it| it.mesh_wakes.read()),
            by_shard("held_casts_total", MetricType::COUNTER, "Messages of busy rooms that waited for further ones.", |it| {
                it.held_casts.read()
            }),
            by_shard("webhook_answers_lost_total", MetricType::COUNTER, "Answers of webhooks lost in a full lane.", |it| {
                it.rulings_lost.read()
            }),
            by_shard("mesh_full_total", MetricType::COUNTER, "Turns that ended with a full lane.", |it| it.mesh_full.read()),
            by_shard("accept_paused_total", MetricType::COUNTER, "Pauses of accepting for want of file descriptors.", |it| {
                it.accept_paused.read()
            }),
            by_shard("kept_sockets", MetricType::GAUGE, "WebSockets of which a copy is kept for the case of a crash.", |it| {
                it.kept_sockets.read()
            }),
            by_shard("keep_refused_total", MetricType::COUNTER, "Times the kernel took no such copies.", |it| it.keep_refused.read()),
            by_shard("handed_over_total", MetricType::COUNTER, "Plain HTTP connections handed to the control plane.", |it| {
                it.handed_over.read()
            }),
            family("shard_loop_seconds", MetricType::HISTOGRAM, "Length of one turn of the loop.", turns),
        ]
    }

    fn of_the_host(&self) -> Vec<MetricFamily> {
        let delivery = histogram(&[], self.host.stats().iter().map(|shard| &shard.delivery));
        let build = [("version", env!("CARGO_PKG_VERSION")), ("io", self.host.io_name())];
        let reloads = [("done", &self.reloads.done), ("refused", &self.reloads.refused)];
        let reloads = reloads.map(|(outcome, count)| sample(MetricType::COUNTER, &[("outcome", outcome)], count.load(Relaxed)));
        let pause = gauge_of_us(self.reloads.pause_us.load(Relaxed));
        vec![
            family(
                "delivery_seconds",
                MetricType::HISTOGRAM,
                "From the read of a message to the end of the turn that wrote the last of its cast.",
                vec![delivery],
            ),
            family("reloads_total", MetricType::COUNTER, "Reloads since the process was started.", reloads.into()),
            family("reload_pause_seconds", MetricType::GAUGE, "For how long clients were not heard in the last reload.", vec![pause]),
            family("build_info", MetricType::GAUGE, "Always 1.", vec![sample(MetricType::GAUGE, &build, 1)]),
        ]
    }

    /// Zeros where this host is alone.
    fn of_the_relay(&self) -> Vec<MetricFamily> {
        let stats = self.host.relay_stats();
        let one = |name, kind, help, read: fn(&RelayStats) -> u64| family(name, kind, help, vec![sample(kind, &[], stats.map_or(0, read))]);
        let is_connected = matches!(Relay::of(&*self.host), Relay::Connected { .. });
        let of_lanes = self.host.stats().iter().fold(0_u64, |sum, shard| sum.wrapping_add(shard.outward_dropped.read()));
        let dropped = RelayDrop::ALL.iter().map(|reason| (reason.label(), stats.map_or(0, |stats| stats.dropped[reason.index()].read())));
        let dropped = dropped.chain([("lane", of_lanes)]).map(|(reason, count)| sample(MetricType::COUNTER, &[("reason", reason)], count));
        let measured = gauge_of_us(stats.map_or(0, |stats| stats.round_trip_us.read()));
        let (gauge, counter) = (MetricType::GAUGE, MetricType::COUNTER);
        let shards = |read: fn(&ShardStats) -> u64| self.host.stats().iter().fold(0_u64, |sum, shard| sum.wrapping_add(read(shard)));
        let unanswered = shards(|shard| shard.consults_unanswered.read().wrapping_add(shard.consults_unasked.read()));
        let unanswered = sample(counter, &[], unanswered);
        let unknown = shards(|shard| shard.blocklists_unknown.read());
        let unknown = sample(counter, &[], unknown.wrapping_add(stats.map_or(0, |stats| stats.blocklists_unknown.read())));
        vec![
            family("relay_connected", gauge, "1 while Redis answers.", vec![sample(gauge, &[], u64::from(is_connected))]),
            one("relay_connects_total", counter, "Connections made to Redis.", |it| it.connects.read()),
            family("relay_round_trip_seconds", gauge, "Last round trip to Redis.", vec![measured]),
            one("relay_hosts", gauge, "Other hosts of the fleet.", |it| it.hosts.read()),
            one("relay_published_total", counter, "Messages that Redis has confirmed.", |it| it.published.read()),
            one("relay_received_total", counter, "Messages of others for clients here.", |it| it.received.read()),
            family("relay_dropped_total", counter, "Messages lost on the way to or from Redis.", dropped.collect()),
            family("relay_questions_unanswered_total", counter, "Questions about other hosts without an answer.", vec![unanswered]),
            family("relay_blocklists_unknown_total", counter, "Lists of blocked users that could not be read.", vec![unknown]),
            one("relay_waiting_messages", gauge, "Messages that wait for Redis.", |it| it.waiting.read()),
            one("relay_waiting_bytes", gauge, "Bytes of messages that wait for Redis.", |it| it.waiting_bytes.read()),
            one("relay_stream_read_total", counter, "Entries read from streams.", |it| it.read.read()),
            one("relay_stream_missed_total", counter, "Entries that will never be read.", |it| it.gaps.read()),
            one("relay_stream_doubled_total", counter, "Entries that came again, and were left out.", |it| it.doubles.read()),
            one("relay_stream_refusals_total", counter, "Times that Redis refused entries.", |it| it.refusals.read()),
            one("relay_journal_bytes", gauge, "Bytes kept of the stream's last events.", |it| it.journal_bytes.read()),
        ]
    }

    fn of_the_key_set(&self) -> Vec<MetricFamily> {
        let one = |name, kind, help, read: fn(&Watch) -> u64| {
            family(name, kind, help, vec![sample(kind, &[], self.jwks.as_deref().map_or(0, read))])
        };
        vec![
            one("jwks_keys", MetricType::GAUGE, "Keys of the key set that verify tokens.", Watch::keys),
            one("jwks_age_seconds", MetricType::GAUGE, "Since the key set was last found in order.", Watch::age_s),
            one("jwks_failures_total", MetricType::COUNTER, "Times that the key set's file or URL gave none.", Watch::failures),
            one(
                "jwks_unknown_kids_total",
                MetricType::COUNTER,
                "Tokens that named a key which is not in the key set.",
                Watch::unknown_kids,
            ),
        ]
    }

    fn of_events(&self) -> Vec<MetricFamily> {
        let (counts, count) = (&self.events.counts, |labels: &[(&str, &str)], value| sample(MetricType::COUNTER, labels, value));
        let by = |label, values: &[(&str, u64)]| values.iter().map(|(name, value)| count(&[(label, name)], *value)).collect();
        let recorded = EventType::ALL.map(|kind| (kind.name(), counts.recorded[kind.index()].load(Relaxed)));
        let dropped = [
            ("shard", self.events.dropped_by_shards()),
            ("reader", counts.missed_by_readers.load(Relaxed)),
            ("webhook", counts.missed_by_webhook.load(Relaxed)),
        ];
        let requests = [("taken", counts.webhook_deliveries.load(Relaxed)), ("failed", counts.webhook_failures.load(Relaxed))];
        let readers = vec![sample(MetricType::GAUGE, &[], self.events.readers() as u64)];
        vec![
            family("event_readers", MetricType::GAUGE, "Who follows what happens now.", readers),
            family("events_total", MetricType::COUNTER, "Events recorded.", by("type", &recorded)),
            family("events_dropped_total", MetricType::COUNTER, "Events that somebody did not get.", by("reason", &dropped)),
            family("event_webhook_requests_total", MetricType::COUNTER, "Requests of the events webhook.", by("outcome", &requests)),
        ]
    }

    /// Each endpoint with its index in the counters; last, nameless, what reached none.
    fn endpoints(&self) -> impl Iterator<Item = (usize, &str)> {
        self.host.endpoints().iter().map(|endpoint| endpoint.name.as_str()).chain([""]).enumerate()
    }

    fn by_shard(
        &self,
        name: &str,
        kind: MetricType,
        help: &str,
        also: &[(&str, &str)],
        read: impl Fn(&EndpointStats) -> u64,
    ) -> MetricFamily {
        let mut samples = Vec::new();
        for (shard, stats) in self.host.stats().iter().enumerate() {
            let shard = shard.to_string();
            for (index, endpoint) in self.endpoints() {
                let mut labels = vec![("endpoint", endpoint), ("shard", &shard)];
                labels.extend_from_slice(also);
                samples.push(sample(kind, &labels, read(&stats.endpoints[index])));
            }
        }
        family(name, kind, help, samples)
    }

    fn by_endpoint(&self, name: &str, kind: MetricType, help: &str, read: impl Fn(&EndpointStats) -> u64) -> MetricFamily {
        let samples = self.endpoints().map(|(index, endpoint)| sample(kind, &[("endpoint", endpoint)], self.summed(index, &read)));
        family(name, kind, help, samples.collect())
    }

    fn by_reason<R: Copy>(
        &self,
        name: &str,
        help: &str,
        reasons: &[R],
        label: impl Fn(R) -> &'static str,
        read: impl Fn(&EndpointStats, R) -> u64,
    ) -> MetricFamily {
        let mut samples = Vec::new();
        for (index, endpoint) in self.endpoints() {
            for reason in reasons {
                let count = self.summed(index, |it| read(it, *reason));
                samples.push(sample(MetricType::COUNTER, &[("endpoint", endpoint), ("reason", label(*reason))], count));
            }
        }
        family(name, MetricType::COUNTER, help, samples)
    }

    /// One endpoint's number over all shards. Wrapping: a gauge may be lowered on another shard than the one that raised it.
    fn summed(&self, index: usize, read: impl Fn(&EndpointStats) -> u64) -> u64 {
        self.host.stats().iter().fold(0, |sum: u64, shard| sum.wrapping_add(read(&shard.endpoints[index])))
    }
}

fn family(name: &str, kind: MetricType, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("uringcast_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

/// A gauge of seconds, of microseconds.
fn gauge_of_us(us: u64) -> Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(us as f64 / 1e6);
    let mut metric = labelled(&[]);
    metric.set_gauge(gauge);
    metric
}

fn sample(kind: MetricType, labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    if kind == MetricType::GAUGE {
        let mut gauge = proto::Gauge::default();
        // Read between the two halves of a change a gauge is below zero, which as an unsigned number would be a spike.
        gauge.set_value(value.cast_signed().max(0) as f64);
        metric.set_gauge(gauge);
    } else {
        let mut counter = proto::Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
    }
    metric
}

/// The sum of `parts`, with cumulative buckets in seconds as the format wants them.
fn histogram<'a>(labels: &[(&str, &str)], parts: impl IntoIterator<Item = &'a Histogram>) -> Metric {
    let mut counts = [0_u64; HISTOGRAM_BOUNDS_NS.len() + 1];
    let mut sum_ns = 0_u64;
    for part in parts {
        for (count, more) in counts.iter_mut().zip(part.buckets()) {
            *count += more;
        }
        sum_ns = sum_ns.wrapping_add(part.sum_ns());
    }
    let mut cumulative = 0;
    let bucket = |(bound_ns, count): (&u64, &u64)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(seconds(*bound_ns));
        bucket.set_cumulative_count(cumulative);
        bucket
    };
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(HISTOGRAM_BOUNDS_NS.iter().zip(&counts).map(bucket).collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(seconds(sum_ns));
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use engine::event::EventTypes;

    use super::*;
    use crate::events::Bounds;
    use crate::http::testing::FakeHost;

    fn metrics(host: Arc<FakeHost>) -> Metrics {
        let bounds = Bounds { events: 1, bytes: 1 };
        Metrics::new(host.clone(), None, None, Arc::new(Events::new(host, bounds, EventTypes::NONE)), Arc::default())
    }

    /// Name, type and labels as the table at the top of this file has them.
    fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
        let rows = include_str!("metrics.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
        rows.map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let labels = cells[2].split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect();
            (format!("uringcast_{}", cells[0].trim_end_matches('`')), (cells[1].to_owned(), labels))
        })
        .collect()
    }

    /// The same from the text that scrapers get.
    fn exposed(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
        let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
                found.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            } else if !line.starts_with('#') {
                let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().expect("a name"), ""));
                let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                let labels = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
                found.get_mut(name).expect("typed before").1.extend(labels.filter(|label| label != "le"));
            }
        }
        found
    }

    #[test]
    fn the_table_and_the_output_agree() {
        let text = metrics(Arc::new(FakeHost::new(2))).render().expect("encodes");
        let mut exposed = exposed(&text);
        assert!(exposed.contains_key("process_resident_memory_bytes") && exposed.contains_key("process_cpu_seconds_total"));
        exposed.retain(|name, _| !name.starts_with("process_"));
        assert_eq!(exposed, documented());
        for (name, (kind, labels)) in &exposed {
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            assert!(labels.iter().all(|label| !["user", "room", "connection"].contains(&label.as_str())), "{name}");
        }
    }

    #[test]
    fn numbers_come_out_as_they_were_counted() {
        let host = Arc::new(FakeHost::new(2).relayed());
        let (one, two) = (&host.stats()[0], &host.stats()[1]);
        let relay = host.relay_stats().expect("it has one");
        relay.connected.set(1);
        relay.round_trip_us.set(1_500);
        relay.published.add(6);
        relay.dropped[RelayDrop::Overflow.index()].add(8);
        one.outward_dropped.add(4);
        two.outward_dropped.add(5);
        one.endpoints[0].connections.add(3);
        two.endpoints[0].connections.sub(1);
        one.endpoints[2].rooms.add(2);
        two.endpoints[2].rooms.add(5);
        one.unrouted().refused[Refusal::Timeout.index()].add(4);
        one.delivery.observe(70_000);
        two.delivery.observe(10_000_000_000);
        two.loop_time.observe(1);
        let text = metrics(host.clone()).render().expect("encodes");
        for line in [
            "uringcast_connections{endpoint=\"community\",shard=\"0\",transport=\"websocket\"} 3",
            "uringcast_connections{endpoint=\"community\",shard=\"1\",transport=\"websocket\"} 0",
            "uringcast_rooms{endpoint=\"rooms\"} 7",
            "uringcast_handshakes_refused_total{endpoint=\"\",reason=\"timeout\"} 4",
            "uringcast_connections_closed_total{endpoint=\"fabric\",reason=\"slow_reader\"} 0",
            "uringcast_delivery_seconds_bucket{le=\"0.00005\"} 0",
            "uringcast_delivery_seconds_bucket{le=\"0.0001\"} 1",
            "uringcast_delivery_seconds_bucket{le=\"5\"} 1",
            "uringcast_delivery_seconds_bucket{le=\"+Inf\"} 2",
            "uringcast_delivery_seconds_count 2",
            "uringcast_delivery_seconds_sum 10.00007",
            "uringcast_shard_loop_seconds_count{shard=\"1\"} 1",
            "uringcast_relay_connected 1",
            "uringcast_relay_round_trip_seconds 0.0015",
            "uringcast_relay_published_total 6",
            "uringcast_relay_dropped_total{reason=\"overflow\"} 8",
            "uringcast_relay_dropped_total{reason=\"lane\"} 9",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")) && text.contains("io=\"io_uring\""));
    }
}
