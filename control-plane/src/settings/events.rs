//! How much of what happens is kept, and where it is sent: how the settings of the events go together.

use std::time::Duration;

use engine::event::EventType;

use super::sources::{Environment, Gathered};
use super::{secret, warn_of_short};
use crate::events::Bounds;
use crate::events::webhook::Webhook;

/// Bounds of the journal.
pub(super) fn journal(gathered: &Gathered) -> Bounds {
    let number = |key| gathered.integer(key).unwrap_or_default() as usize;
    Bounds { events: number("events.buffer_events"), bytes: number("events.buffer_bytes") }
}

/// The webhook, if there is one: whoever gets its requests must be able to tell who sent them, so it needs a secret.
pub(super) fn webhook(gathered: &mut Gathered, environment: &Environment) -> Option<Webhook> {
    let url = gathered.text("events.webhook_url")?.parse().ok()?;
    let secret = secret(gathered, environment, "events.webhook_secret", "events.webhook_secret_file", "events_webhook_secret");
    warn_of_short(gathered, "events.webhook_secret", secret.as_ref());
    // Where one was given that cannot be used, that has been said.
    if secret.is_none() && !gathered.problems.iter().any(|problem| problem.key.starts_with("events.webhook_secret")) {
        let reason = "events.webhook_url needs it: set it, events.webhook_secret_file or the systemd credential events_webhook_secret";
        gathered.complain("events.webhook_secret", reason);
    }
    let number = |key| gathered.integer(key).unwrap_or_default();
    Some(Webhook {
        url,
        secret: secret?,
        types: gathered.list("events.webhook_types").iter().filter_map(|name| EventType::named(name)).collect(),
        batch_events: number("events.webhook_batch_events") as usize,
        batch_bytes: number("events.webhook_batch_bytes") as usize,
        timeout: Duration::from_millis(number("events.webhook_timeout_ms")),
        retry: Duration::from_secs(number("events.webhook_retry_seconds")),
    })
}
