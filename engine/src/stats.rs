//! Counters of one shard. The shard alone writes them, with plain loads and stores (no lock, no shared cache line); the control plane
//! reads them whenever it likes. A reader may see one counter a little ahead of another.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::fault::{CloseReason, DropReason, RecoveryFault, Refusal, RelayDrop};

/// A number that one thread writes and others read; counts up, or moves both ways as a gauge.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning shard calls this: a load and a store, not a locked instruction.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Subtracts `n` (gauges).
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the histogram buckets, in nanoseconds; one more bucket takes what is above.
pub const HISTOGRAM_BOUNDS_NS: [u64; 15] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
];

/// Durations by bucket.
#[derive(Default, Debug)]
pub struct Histogram {
    buckets: [Counter; HISTOGRAM_BOUNDS_NS.len() + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, ns: u64) {
        let bucket = HISTOGRAM_BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].add(1);
        self.sum_ns.add(ns);
    }

    /// Observations per bucket (not cumulative), the last one above all bounds.
    pub fn buckets(&self) -> [u64; HISTOGRAM_BOUNDS_NS.len() + 1] {
        std::array::from_fn(|i| self.buckets[i].read())
    }

    /// Sum of all observations, nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.read()
    }
}

/// What one shard counts for one endpoint.
#[derive(Default, Debug)]
pub struct EndpointStats {
    /// Connections open now.
    pub connections: Counter,
    /// Those of them that use long-polling now.
    pub polling: Counter,
    /// Those whose user is known: all but the ones that were let in and have not said yet who they are.
    pub authenticated: Counter,
    /// Users with a connection, counted on the users' home shards: sum over shards for the host.
    pub users: Counter,
    /// Connections that entered.
    pub accepted: Counter,
    /// Messages read from clients.
    pub received: Counter,
    /// Bytes of those.
    pub received_bytes: Counter,
    /// Messages written to clients, one per receiver.
    pub delivered: Counter,
    /// Bytes of those.
    pub delivered_bytes: Counter,
    /// Public rooms whose home is here.
    pub rooms: Counter,
    /// Messages kept in the histories here.
    pub history_messages: Counter,
    /// Messages refused for the rate.
    pub rate_limited: Counter,
    /// Sum of the round trips of its connections' heartbeats, microseconds. A transport with several namespaces counts for each of them.
    pub round_trip_us: Counter,
    /// Number of those.
    pub round_trips: Counter,
    /// Ended connections by [`CloseReason::index`].
    pub closed: [Counter; CloseReason::ALL.len()],
    /// Connections that broke off and can be recovered now.
    pub recoverable: Counter,
    /// Connections that were recovered.
    pub recovered: Counter,
    /// Those of them that came from another host.
    pub restored: Counter,
    /// Connections that broke off of which other hosts were not told, because too much was uncertain.
    pub unshared: Counter,
    /// Wishes to recover that were not granted, by [`RecoveryFault::index`].
    pub unrecovered: [Counter; RecoveryFault::ALL.len()],
    /// Events remembered for those who come back.
    pub backlog_events: Counter,
    /// Bytes of those.
    pub backlog_bytes: Counter,
    /// Questions to the back end that were not asked because too many were under way.
    pub unasked: Counter,
    /// Questions to the back end that nobody answered in time.
    pub unanswered: Counter,
    /// Refused handshakes by [`Refusal::index`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Dropped messages by [`DropReason::index`].
    pub dropped: [Counter; DropReason::ALL.len()],
}

impl EndpointStats {
    /// What only grows, each under a name of its own.
    fn totals(&self) -> impl Iterator<Item = (String, &Counter)> {
        let alone = [
            ("accepted", &self.accepted),
            ("received", &self.received),
            ("received_bytes", &self.received_bytes),
            ("delivered", &self.delivered),
            ("delivered_bytes", &self.delivered_bytes),
            ("rate_limited", &self.rate_limited),
            ("round_trip_us", &self.round_trip_us),
            ("round_trips", &self.round_trips),
            ("recovered", &self.recovered),
            ("restored", &self.restored),
            ("unshared", &self.unshared),
            ("unasked", &self.unasked),
            ("unanswered", &self.unanswered),
        ];
        let alone = alone.into_iter().map(|(name, counter)| (name.to_owned(), counter));
        let closed = CloseReason::ALL.iter().map(|it| (format!("closed {}", it.label()), &self.closed[it.index()]));
        let unrecovered = RecoveryFault::ALL.iter().map(|it| (format!("unrecovered {}", it.label()), &self.unrecovered[it.index()]));
        let refused = Refusal::ALL.iter().map(|it| (format!("refused {}", it.label()), &self.refused[it.index()]));
        let dropped = DropReason::ALL.iter().map(|it| (format!("dropped {}", it.label()), &self.dropped[it.index()]));
        alone.chain(closed).chain(unrecovered).chain(refused).chain(dropped)
    }

    /// As plain data: what only grows and is not zero. Scrapers see no reset then when the process is replaced.
    pub(crate) fn freeze(&self) -> Vec<(String, u64)> {
        self.totals().map(|(name, counter)| (name, counter.read())).filter(|(_, count)| *count > 0).collect()
    }

    /// Goes on counting from there. What is counted no longer is forgotten.
    pub(crate) fn thaw(&self, counted: &[(String, u64)]) {
        for (name, counter) in self.totals() {
            let before = counted.iter().find(|(other, _)| *other == name).map_or(0, |(_, count)| *count);
            counter.add(before);
        }
    }
}

/// What one shard counts. Aligned so that two shards never write one cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardStats {
    /// By endpoint, in the configuration's order; the last one is for what reached no endpoint.
    pub endpoints: Box<[EndpointStats]>,
    /// Bytes queued for connections whose sockets take no more.
    pub outbox_bytes: Counter,
    /// Bytes that its connections hold; 0 where that is not bounded.
    pub memory_held: Counter,
    /// Connections ended because all together held too much.
    pub memory_shed: Counter,
    /// Bytes that those held.
    pub memory_shed_bytes: Counter,
    /// Handshakes that wait to be let in.
    pub handshakes_waiting: Counter,
    /// Handshakes that had to wait.
    pub handshakes_delayed: Counter,
    /// Parcels sent to other shards.
    pub mesh_parcels: Counter,
    /// Wakes of other shards (eventfd writes).
    pub mesh_wakes: Counter,
    /// Casts of busy rooms that waited for further ones.
    pub held_casts: Counter,
    /// Turns that ended with a full lane, so that reading paused.
    pub mesh_full: Counter,
    /// Answers of the back end (webhooks) that were lost because the lane was full; their questions end as unanswered.
    pub rulings_lost: Counter,
    /// Connections handed to the control plane's HTTP server.
    pub handed_over: Counter,
    /// Times accepting paused for want of file descriptors.
    pub accept_paused: Counter,
    /// WebSockets that are open and of which a copy is kept for the case of a crash.
    pub kept_sockets: Counter,
    /// Times the kernel took no such copies; they are offered again.
    pub keep_refused: Counter,
    /// Events for which there was no place because nobody took them.
    pub events_dropped: Counter,
    /// Messages for other hosts for which there was no place, because the relay did not take them.
    pub outward_dropped: Counter,
    /// Questions about other hosts that were not asked because too many were under way.
    pub consults_unasked: Counter,
    /// Questions about other hosts that were not answered in time.
    pub consults_unanswered: Counter,
    /// Times it could not be looked up whom a user has blocked.
    pub blocklists_unknown: Counter,
    /// Time of one turn of the loop.
    pub loop_time: Histogram,
    /// From the read of a message to the last write of its cast on this shard.
    pub delivery: Histogram,
    /// Sum of heartbeat round trips, microseconds.
    pub round_trip_us: Counter,
    /// Number of those.
    pub round_trips: Counter,
    /// Monotonic milliseconds of the last turn: tells whether the shard responds.
    pub last_turn_ms: Counter,
}

/// What the relay counts; its thread alone writes it.
#[derive(Default, Debug)]
pub struct RelayStats {
    /// 1 while Redis answers, else 0.
    pub connected: Counter,
    /// Times a connection to Redis was made.
    pub connects: Counter,
    /// Messages that Redis has confirmed.
    pub published: Counter,
    /// Messages of other hosts and programs that were for clients here.
    pub received: Counter,
    /// Messages that did not pass, by [`RelayDrop::index`].
    pub dropped: [Counter; RelayDrop::ALL.len()],
    /// Bytes of messages that wait for Redis, or for its confirmation.
    pub waiting_bytes: Counter,
    /// Number of those messages.
    pub waiting: Counter,
    /// Last round trip to Redis, microseconds; 0 while none was measured of this connection.
    pub round_trip_us: Counter,
    /// Channels and patterns subscribed to.
    pub subscriptions: Counter,
    /// Entries read from streams.
    pub read: Counter,
    /// Entries of other hosts that this one will never read: trimmed before it could, or lost by Redis. A gap of unknown size counts one.
    pub gaps: Counter,
    /// Bytes of the stream's last events, kept for clients that come back.
    pub journal_bytes: Counter,
    /// Entries that came again, and were left out.
    pub doubles: Counter,
    /// Times Redis refused entries, which are tried again.
    pub refusals: Counter,
    /// Times it could not be looked up whom the author of a message of another program has blocked.
    pub blocklists_unknown: Counter,
    /// Other uringcast hosts with a live lease.
    pub hosts: Counter,
    /// Monotonic milliseconds of its last turn: tells whether it responds.
    pub last_turn_ms: Counter,
}

impl ShardStats {
    /// Zeros for `endpoints` endpoints.
    pub fn new(endpoints: usize) -> ShardStats {
        ShardStats {
            endpoints: (0..=endpoints).map(|_| EndpointStats::default()).collect(),
            outbox_bytes: Counter::default(),
            memory_held: Counter::default(),
            memory_shed: Counter::default(),
            memory_shed_bytes: Counter::default(),
            handshakes_waiting: Counter::default(),
            handshakes_delayed: Counter::default(),
            mesh_parcels: Counter::default(),
            mesh_wakes: Counter::default(),
            held_casts: Counter::default(),
            mesh_full: Counter::default(),
            rulings_lost: Counter::default(),
            handed_over: Counter::default(),
            accept_paused: Counter::default(),
            kept_sockets: Counter::default(),
            keep_refused: Counter::default(),
            events_dropped: Counter::default(),
            outward_dropped: Counter::default(),
            consults_unasked: Counter::default(),
            consults_unanswered: Counter::default(),
            blocklists_unknown: Counter::default(),
            loop_time: Histogram::default(),
            delivery: Histogram::default(),
            round_trip_us: Counter::default(),
            round_trips: Counter::default(),
            last_turn_ms: Counter::default(),
        }
    }

    /// The counters of what reached no endpoint.
    pub fn unrouted(&self) -> &EndpointStats {
        &self.endpoints[self.endpoints.len() - 1]
    }
}
