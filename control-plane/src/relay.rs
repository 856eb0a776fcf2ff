//! How the relay does, for load balancers and people: what `/readyz` and the health documents say, and the log. It knows nothing of what
//! passes through.

use engine::RelayState;
use engine::config::{self, Adapter, RelayMode};
use tokio::sync::mpsc;

use crate::bridge::Host;
use crate::log;

/// Changes that wait to be logged. The engine tells at most one a second and a few refusals.
pub const STATES_MAX: usize = 64;

/// State of the connection to other hosts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Relay {
    /// No Redis in the configuration.
    NotConfigured,
    /// Configured, but not reached, or the relay hangs.
    Down,
    /// Reached.
    Connected {
        /// The last measured round trip to Redis in milliseconds; `None` before the first.
        latency_ms: Option<f64>,
        /// Channels and patterns that are listened to.
        subscriptions: u64,
    },
}

impl Relay {
    /// How it is now.
    pub fn of(host: &dyn Host) -> Relay {
        let Some(stats) = host.relay_stats() else { return Relay::NotConfigured };
        if stats.connected.read() == 0 || !host.is_relay_responsive() {
            return Relay::Down;
        }
        let measured = Some(stats.round_trip_us.read()).filter(|us| *us > 0);
        Relay::Connected { latency_ms: measured.map(|us| us as f64 / 1_000.0), subscriptions: stats.subscriptions.read() }
    }

    /// The word for it in `/readyz`.
    pub fn label(self) -> &'static str {
        match self {
            Relay::NotConfigured => "not_configured",
            Relay::Down => "down",
            Relay::Connected { .. } => "connected",
        }
    }
}

/// What is logged of it at the start; `place` has no password.
pub fn introduction(place: &str, relay: &config::Relay) -> String {
    let how = match (relay.mode, relay.adapter) {
        (RelayMode::Streams, _) => "streams",
        (RelayMode::PubSub, Adapter::Classic) => "pubsub, classic adapter",
        (RelayMode::PubSub, Adapter::Sharded) => "pubsub, sharded adapter",
    };
    format!("Redis {place} ({how})")
}

/// Logs what the engine tells, a line for each change, until it tells no more.
pub async fn keep_log(mut states: mpsc::Receiver<RelayState>) {
    while let Some(state) = states.recv().await {
        match line(&state) {
            (true, text) => log::info(text),
            (false, text) => log::warning(text),
        }
    }
}

/// The text, and whether it is good news.
fn line(state: &RelayState) -> (bool, String) {
    match state {
        RelayState::Up => (true, "relay: Redis is reached".to_owned()),
        RelayState::Down { reason } => (false, format!("relay: {reason}; only this host's clients reach each other until Redis is back")),
        RelayState::Refused { reason } => (false, format!("relay: Redis refuses something that is needed: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::http::testing::FakeHost;

    #[test]
    fn a_relay_that_hangs_is_down_whatever_it_counted() {
        assert_eq!(Relay::of(&FakeHost::new(1)), Relay::NotConfigured);
        let host = FakeHost::new(1).relayed();
        let stats = host.relay_stats().expect("it has one");
        assert_eq!(Relay::of(&host), Relay::Down);
        stats.connected.set(1);
        stats.subscriptions.set(3);
        assert_eq!(Relay::of(&host), Relay::Connected { latency_ms: None, subscriptions: 3 });
        stats.round_trip_us.set(1_250);
        assert_eq!(Relay::of(&host), Relay::Connected { latency_ms: Some(1.25), subscriptions: 3 });
        host.relay_responsive.store(false, Relaxed);
        assert_eq!(Relay::of(&host), Relay::Down);
    }

    #[test]
    fn what_is_logged_says_what_it_means() {
        let down = line(&RelayState::Down { reason: "Redis closed the connection".into() });
        assert_eq!(
            down,
            (false, "relay: Redis closed the connection; only this host's clients reach each other until Redis is back".into())
        );
        assert!(line(&RelayState::Up).0 && !line(&RelayState::Refused { reason: "NOPERM".into() }).0);
        let relay = config::Relay::new("redis://:HUSH@h");
        assert_eq!(introduction("redis://...@h", &relay), "Redis redis://...@h (pubsub, classic adapter)");
    }
}
