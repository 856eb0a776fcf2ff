//! What a seed chooses before anything happens: how large the fleet is, how hosts hear of each other, which bounds are small, and which faults
//! there are. Not all of them at once: a run without cuts can be held to what only holds without them.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::talk::Talk;
use crate::config::{Config, DialectKind, Endpoint, Membership, Relay, RelayMode};
use crate::limits::Limits;
use crate::relay::host;

pub(super) const HOSTS_MAX: usize = 4;
pub(super) const SHARDS_MAX: usize = 4;
/// Rooms of each dialect.
pub(super) const ROOMS: usize = 2;

/// Which faults a run has.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Faults {
    /// One host's connections to Redis break, or Redis is silent for it.
    pub(super) cuts: bool,
    /// Redis is away for everybody.
    pub(super) outages: bool,
    /// Hosts vanish, and others are born.
    pub(super) deaths: bool,
    pub(super) drains: bool,
    pub(super) reloads: bool,
    /// Clients that read slowly, or not at all.
    pub(super) slow: bool,
    /// Wall clocks jump; hosts stand still.
    pub(super) clocks: bool,
    /// Little may wait for Redis.
    pub(super) small_buffer: bool,
    /// Little may be kept for those who come back.
    pub(super) small_backlog: bool,
    /// What connections hold together is bounded, and little.
    pub(super) small_memory: bool,
    /// Handshakes are let in slowly.
    pub(super) narrow_door: bool,
}

impl Faults {
    fn choose(dice: &mut StdRng) -> Faults {
        // Now and then nothing goes wrong at all.
        if dice.random_range(0..8) == 0 {
            return Faults::default();
        }
        let mut some = || dice.random_range(0..2) == 0;
        Faults {
            cuts: some(),
            outages: some(),
            deaths: some(),
            drains: some() && some(),
            reloads: some(),
            slow: some(),
            clocks: some(),
            small_buffer: some() && some(),
            small_backlog: some() && some(),
            small_memory: some() && some() && some(),
            narrow_door: some() && some() && some(),
        }
    }

    /// True exactly when Redis is there for everybody all the time.
    pub(super) fn spares_redis(&self) -> bool {
        !self.cuts && !self.outages
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) mode: RelayMode,
    pub(super) hosts: usize,
    pub(super) clients: usize,
    pub(super) users: usize,
    pub(super) faults: Faults,
    pub(super) lease_ms: u64,
    /// 0: nobody comes back to what he had.
    pub(super) recovery_ms: u64,
    pub(super) limits: Limits,
}

impl Plan {
    pub(super) fn choose(dice: &mut StdRng) -> Plan {
        let faults = Faults::choose(dice);
        let clients = dice.random_range(4..17);
        let mode = if dice.random() { RelayMode::Streams } else { RelayMode::PubSub };
        let limits = Limits {
            outbox_bytes: if faults.slow { 1_500 } else { 4_000 },
            rate_messages: 1_000_000,
            handshakes_per_address: 1_000_000,
            history_messages: dice.random_range(4..60),
            memory: if faults.small_memory { 40_000 } else { 0 },
            handshakes_per_second: if faults.narrow_door { 16 } else { 1_000_000 },
            recovery_sessions: if faults.small_backlog { 2 } else { 1_000 },
            recovery_events: if faults.small_backlog { 16 } else { 100_000 },
            ..Limits::default()
        };
        Plan {
            mode,
            hosts: dice.random_range(1..=HOSTS_MAX),
            clients,
            users: dice.random_range(1..=clients),
            faults,
            lease_ms: dice.random_range(3_000..10_000),
            recovery_ms: if dice.random_range(0..4) == 0 { 0 } else { 20_000 },
            limits,
        }
    }

    pub(super) fn relay(&self) -> Relay {
        let buffer_bytes = if self.faults.small_buffer { 4_000 } else { 16_000_000 };
        Relay { mode: self.mode, lease_ms: self.lease_ms, buffer_bytes, ..Relay::new("redis://localhost") }
    }

    pub(super) fn config(&self, shards: usize) -> Config {
        let community = Endpoint {
            client_publish: true,
            membership: Membership::Open,
            ..host::endpoint(Talk::Community.name(), DialectKind::Community, "/api/community/ws")
        };
        let rooms = Endpoint { recovery_ms: self.recovery_ms, ..host::endpoint(Talk::Rooms.name(), DialectKind::Rooms, "/") };
        Config { relay: Some(self.relay()), limits: self.limits.clone(), ..host::config(shards, vec![community, rooms]) }
    }
}
