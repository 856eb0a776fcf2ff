//! The hosts of a fleet as an operator sees them (`GET /v1/hosts`), and what the control planes of these hosts ask each other: numbers that are
//! summed over all of them, what came of an emit, and to stop. The engine carries these words ([`Wish::Program`]) and does not know them.
//!
//! Words that a control plane does not know (of a newer host) it does not answer, and its host is missing in the answer then.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use engine::relay::words::HostId;
use engine::stats::EndpointStats;
use engine::{Answer, Wish};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::admin::{Missing, NoQuery, answer};
use super::emit::Known;
use super::problem::{Params, Problem};
use super::rates::{Figures, Minute, two_decimals};
use super::shapes::rfc3339;
use crate::lifecycle::Wanted;
use crate::settings::DRAIN_SECONDS_MAX;

/// Ids of emits in one question: those of a batch.
const OUTCOMES_MAX: usize = 1_000;

/// What one control plane asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call {
    /// How is the host?
    Numbers,
    /// It is to stop.
    Drain {
        /// The time over which connections are closed, in milliseconds; that of its configuration if there is none.
        over_ms: Option<u64>,
        /// Who is meant; everybody if there are none.
        hosts: Option<Vec<HostId>>,
    },
    /// What came of the emits with these ids?
    Outcomes {
        /// The ids.
        ids: Vec<Arc<str>>,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// To [`Call::Numbers`].
    Numbers(Numbers),
    /// To [`Call::Drain`]: true exactly when it begins now, and had not begun before.
    Draining(bool),
    /// To [`Call::Outcomes`], in their order; `None` where the host knows nothing of it.
    Outcomes(Vec<Option<Known>>),
}

/// How a host does: counters, and what came in the last minute.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Numbers {
    /// Whether it lets new connections in.
    accepting: bool,
    /// Of all endpoints together. A transport of several namespaces makes one round trip.
    minute: Minute,
    /// Of each endpoint.
    endpoints: Vec<EndpointNumbers>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct EndpointNumbers {
    name: String,
    accepted: u64,
    connections: u64,
    authenticated: u64,
    users: u64,
    rooms: u64,
    minute: Minute,
}

/// Numbers of one endpoint or of all, summed over hosts.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Totals {
    /// Connections since the start.
    pub(super) accepted: u64,
    /// Connections that are open.
    pub(super) connections: u64,
    /// Those of them that have said who they are.
    pub(super) authenticated: u64,
    /// Users with a connection. Who has connections on two hosts counts on both: a host knows its own users only, and to send all their names for a
    /// number would cost too much. A presence that all hosts share would know; this is the one place that would ask it.
    pub(super) users: u64,
    /// Rooms that exist. A room with members on two hosts has a home on both, and counts on both.
    pub(super) rooms: u64,
    /// What came in the last minute.
    pub(super) figures: Figures,
    /// Messages of clients by second.
    pub(super) messages_per_second: f64,
}

impl Numbers {
    fn of(app: &App) -> Numbers {
        let endpoints = app.host.endpoints().iter().enumerate().map(|(index, endpoint)| {
            let sum = |read: fn(&EndpointStats) -> u64| app.sum_of(|other| other == index, read);
            EndpointNumbers {
                name: endpoint.name.clone(),
                accepted: sum(|it| it.accepted.read()),
                connections: sum(|it| it.connections.read()),
                authenticated: sum(|it| it.authenticated.read()),
                users: sum(|it| it.users.read()),
                rooms: sum(|it| it.rooms.read()),
                minute: app.minute(Some(index)),
            }
        });
        Numbers { accepting: app.host.accepting(), minute: app.minute(None), endpoints: endpoints.collect() }
    }

    /// Connections that are open, on all endpoints.
    fn connections(&self) -> u64 {
        self.endpoints.iter().map(|endpoint| endpoint.connections).sum()
    }
}

impl Totals {
    /// Of the endpoint with this name, or of all. It is another host's text: what it says may be anything.
    fn add(&mut self, numbers: &Numbers, endpoint: Option<&str>) {
        let chosen = numbers.endpoints.iter().filter(|it| endpoint.is_none_or(|wanted| wanted == it.name));
        let mut minutes = Vec::new();
        for it in chosen {
            let pairs = [
                (&mut self.accepted, it.accepted),
                (&mut self.connections, it.connections),
                (&mut self.authenticated, it.authenticated),
                (&mut self.users, it.users),
                (&mut self.rooms, it.rooms),
            ];
            for (sum, number) in pairs {
                *sum = sum.saturating_add(number);
            }
            minutes.push(it.minute);
        }
        if endpoint.is_none() {
            minutes = vec![numbers.minute];
        }
        for minute in minutes {
            self.figures = self.figures.plus(minute.figures);
            self.messages_per_second = two_decimals(self.messages_per_second + minute.messages_per_second());
        }
    }
}

impl App {
    /// The id of this host.
    pub(super) fn own_id(&self) -> HostId {
        self.host.fleet().map_or_else(|| self.id.clone(), |fleet| fleet.own().host.clone())
    }

    /// Asks the control planes of all other hosts.
    async fn ask_programs(&self, call: &Call) -> (Vec<(HostId, Reply)>, Missing) {
        // The words have no keys but texts, so they can be written.
        let Ok(text) = serde_json::to_string(call) else { return (Vec::new(), Missing::default()) };
        let gathered = self.pending.ask_hosts(&*self.host, Wish::Program(text.into()), None).await;
        let mut missing = Missing::of(&gathered);
        let mut replies = Vec::new();
        for host in gathered.hosts.into_iter().filter(|host| host.is_whole) {
            let reply =
                host.answers.first().and_then(|it| if let Answer::Program(text) = it { serde_json::from_str(text).ok() } else { None });
            match reply {
                Some(reply) => replies.push((host.host, reply)),
                None => missing.hosts += 1,
            }
        }
        (replies, missing)
    }

    /// What another control plane wants to know, as an answer to it. Called from the thread that takes the engine's notices: it waits for nothing.
    pub fn answer_program(&self, text: &str) -> Option<String> {
        let reply = match serde_json::from_str::<Call>(text).ok()? {
            Call::Numbers => Reply::Numbers(Numbers::of(self)),
            Call::Drain { over_ms, hosts } => {
                let is_meant = hosts.is_none_or(|hosts| hosts.contains(&self.own_id()));
                let longest = Duration::from_secs(DRAIN_SECONDS_MAX);
                let over = over_ms.map_or(self.terms.drain, |over_ms| Duration::from_millis(over_ms).min(longest));
                let stops = is_meant && self.host.accepting();
                // Where there is no place for a wish it is not known yet whether we stop: whoever asks hears nothing, and asks again.
                if stops && self.terms.stop.try_send(Wanted::Stop(over)).is_err() {
                    return None;
                }
                Reply::Draining(stops)
            }
            Call::Outcomes { ids } if ids.len() <= OUTCOMES_MAX => {
                let recent = self.recent();
                Reply::Outcomes(ids.iter().map(|id| recent.known(id)).collect())
            }
            Call::Outcomes { .. } => return None,
        };
        serde_json::to_string(&reply).ok()
    }

    /// Numbers of one endpoint, or of all, over all hosts that answer.
    pub(super) async fn numbers(&self, endpoint: Option<usize>) -> (Totals, Missing) {
        let name = endpoint.and_then(|index| self.host.endpoints().get(index)).map(|endpoint| endpoint.name.as_str());
        let mut totals = Totals::default();
        totals.add(&Numbers::of(self), name);
        let (replies, missing) = self.ask_programs(&Call::Numbers).await;
        for (_, reply) in replies {
            if let Reply::Numbers(numbers) = reply {
                totals.add(&numbers, name);
            }
        }
        (totals, missing)
    }

    /// What other hosts know of the emits with these ids, in their order.
    pub(super) async fn outcomes_elsewhere(&self, ids: &[Arc<str>]) -> Vec<Option<Known>> {
        let mut known = vec![None; ids.len()];
        let (replies, _) = self.ask_programs(&Call::Outcomes { ids: ids.to_vec() }).await;
        for (_, reply) in replies {
            let Reply::Outcomes(theirs) = reply else { continue };
            for (known, theirs) in known.iter_mut().zip(theirs) {
                *known = known.or(theirs);
            }
        }
        known
    }

    /// Has these other hosts stop, or all of them: those that begin now, and what did not answer.
    pub(super) async fn drain_others(&self, over: Option<Duration>, hosts: Option<Vec<HostId>>) -> (Vec<HostId>, Missing) {
        if hosts.as_ref().is_some_and(Vec::is_empty) {
            return (Vec::new(), Missing::default());
        }
        let over_ms = over.map(|over| u64::try_from(over.as_millis()).unwrap_or(u64::MAX));
        let (replies, mut missing) = self.ask_programs(&Call::Drain { over_ms, hosts: hosts.clone() }).await;
        if let Some(hosts) = hosts {
            // That one is silent who is not meant, is nobody's concern.
            missing.hosts = hosts.iter().filter(|host| !replies.iter().any(|(told, _)| told == *host)).count();
        }
        let began = replies.into_iter().filter(|(_, reply)| matches!(reply, Reply::Draining(true))).map(|(host, _)| host);
        (began.collect(), missing)
    }
}

/// A host of the fleet.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostShown {
    /// 16 characters; another one after each start.
    id: String,
    /// Whether it is the one that was asked.
    #[serde(rename = "self")]
    is_self: bool,
    /// How many shards it has.
    shards: usize,
    /// Its release.
    version: String,
    /// Connections that are open; absent where it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    connections: Option<u64>,
    /// Whether it lets new connections in; absent where it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    accepting: Option<bool>,
    /// When its sign of life was last seen, RFC 3339; absent for the one that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    last_seen: Option<String>,
}

/// The hosts of the fleet.
#[derive(Serialize, ToSchema)]
pub(super) struct Hosts {
    /// The one that was asked first, then the others by id.
    hosts: Vec<HostShown>,
}

/// The hosts of the fleet: those that share the Redis with this one and live.
#[utoipa::path(get, path = "/v1/hosts", tag = "process", responses((status = 200, description = "all of them", body = Hosts)))]
pub(super) async fn hosts(State(app): State<Arc<App>>, Params(NoQuery {}): Params<NoQuery>) -> Result<Response, Problem> {
    let own = Numbers::of(&app);
    let mut hosts = vec![HostShown {
        id: app.own_id().to_string(),
        is_self: true,
        shards: app.host.stats().len(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        connections: Some(own.connections()),
        accepting: Some(own.accepting),
        last_seen: None,
    }];
    let (replies, missing) = app.ask_programs(&Call::Numbers).await;
    let others = app.host.fleet().map(engine::relay::handle::FleetHandle::others).unwrap_or_default();
    for seen in others.iter() {
        let hello = &seen.hello;
        let numbers = replies.iter().find_map(|(host, reply)| match reply {
            Reply::Numbers(numbers) if *host == hello.host => Some(numbers),
            _ => None,
        });
        hosts.push(HostShown {
            id: hello.host.to_string(),
            is_self: false,
            shards: hello.shards,
            version: hello.version.clone(),
            connections: numbers.map(Numbers::connections),
            accepting: numbers.map(|numbers| numbers.accepting),
            last_seen: Some(rfc3339(seen.seen_unix_ms)),
        });
    }
    Ok(answer(missing, Hosts { hosts }))
}

#[cfg(test)]
mod tests;
