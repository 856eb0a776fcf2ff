//! How the program that the engine is embedded in reaches other hosts: a bounded lane of orders to whoever runs the relay, and a list of the
//! hosts that live, which he keeps true. It waits for nothing. Answers come back as [`crate::Notice`]s.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::fleet::Seen;
use super::words::{Hello, HostId, Wish};
use crate::limits::{FLEET_ANSWER_MS, FLEET_ORDERS_MAX};

/// What the program wants of the relay.
#[derive(Debug)]
pub enum ToRelay {
    /// Something is asked of other hosts: [`super::fleet::Fleet::ask`].
    Ask(Order),
    /// The answer to a [`crate::Notice::Note`]: [`super::fleet::Fleet::handle_reply`].
    Reply {
        /// The number that the note had.
        ask: u64,
        /// The answer.
        text: Arc<str>,
    },
    /// An emit's id is to be claimed for five minutes: `SET {prefix}:emit:{id} {host} NX PX {age_ms}`. To drop `answer` says that nobody knows.
    Claim {
        /// The id.
        id: Arc<str>,
        /// How long it is claimed, in milliseconds.
        age_ms: u64,
        /// Where the answer goes.
        answer: oneshot::Sender<Claim>,
    },
    /// Whether a user is in a room's set of members. To drop `answer` says that nobody knows.
    Member {
        /// The room's name.
        room: Arc<str>,
        /// The user.
        user: Arc<str>,
        /// Where the answer goes.
        answer: oneshot::Sender<bool>,
    },
    /// Whom a user has blocked, by the back end's word. To drop `answer` says that nobody knows.
    Blocked {
        /// The user.
        user: Arc<str>,
        /// Where the answer goes.
        answer: oneshot::Sender<Vec<String>>,
    },
    /// An emit whose id was claimed was not sent: `DEL {prefix}:emit:{id}`.
    Release {
        /// The id.
        id: Arc<str>,
    },
}

/// A question to other hosts.
#[derive(Debug)]
pub struct Order {
    /// The asker's number.
    pub ask: u64,
    /// What is asked.
    pub wish: Wish,
    /// The one host that is asked; all if there is none.
    pub to: Option<HostId>,
    /// Those who are expected to answer.
    pub expected: Arc<[HostId]>,
    /// True exactly when the servers that are no uringcast hosts are asked as well; their answer comes as one of [`HostId::peers`].
    pub has_peers: bool,
    /// How long is waited for them, in milliseconds.
    pub wait_ms: u64,
}

/// Whose an emit's id is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Nobody had it: it is the caller's now.
    Fresh,
    /// An emit with this id was sent within the time.
    Taken,
    /// There is nobody who could tell: what this host knows counts.
    Unknown,
}

/// How many other hosts a question goes to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Others {
    /// Hosts that will be told of with a [`crate::Notice::HostAnswer`] each, whether they answer or not.
    pub asked: usize,
    /// Hosts that live and are not asked, because the relay has too much to do.
    pub unasked: usize,
}

/// The program's end.
#[derive(Clone)]
pub struct FleetHandle {
    own: Arc<Hello>,
    others: Arc<ArcSwap<Vec<Seen>>>,
    orders: mpsc::Sender<ToRelay>,
    peers: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
}

impl fmt::Debug for FleetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetHandle").field("own", &self.own.host).finish_non_exhaustive()
    }
}

/// The relay's end.
#[derive(Debug)]
pub struct FleetPort {
    /// What the program wants, in order.
    pub orders: mpsc::Receiver<ToRelay>,
    others: Arc<ArcSwap<Vec<Seen>>>,
    peers: Arc<AtomicBool>,
}

impl FleetPort {
    /// Whether there are servers that are no uringcast hosts.
    pub fn set_peers(&self, are_there: bool) {
        self.peers.store(are_there, Relaxed);
    }

    /// The other hosts that live; none while the relay is known to be down.
    pub fn set_hosts(&self, others: Vec<Seen>) {
        self.others.store(Arc::new(others));
    }
}

/// Both ends, for a host that is this.
pub fn channel(own: Hello) -> (FleetHandle, FleetPort) {
    let (sender, orders) = mpsc::channel(FLEET_ORDERS_MAX);
    let others = Arc::new(ArcSwap::default());
    let peers = Arc::<AtomicBool>::default();
    let handle = FleetHandle { own: Arc::new(own), others: others.clone(), orders: sender, peers: peers.clone(), lost: Arc::default() };
    (handle, FleetPort { orders, others, peers })
}

impl FleetHandle {
    /// This host.
    pub fn own(&self) -> &Hello {
        &self.own
    }

    /// The other hosts that live, by id. A look at the list, and no lock.
    pub fn others(&self) -> Arc<Vec<Seen>> {
        self.others.load_full()
    }

    /// Asks all other hosts, or one of them.
    pub fn ask(&self, ask: u64, wish: Wish, to: Option<&HostId>) -> Others {
        let others = self.others();
        let hosts = others.iter().map(|seen| &seen.hello.host).filter(|host| to.is_none_or(|to| to == *host));
        let expected: Arc<[HostId]> = hosts.cloned().collect();
        // They are told whether any are known or not: one may have come a moment ago. So are other programs that listen.
        let concerns_peers = to.is_none() && matches!(&wish, Wish::Shards(question) if question.concerns_peers());
        let has_peers = concerns_peers && self.peers.load(Relaxed);
        let hosts = expected.len() + usize::from(has_peers);
        if hosts == 0 && !concerns_peers {
            return Others::default();
        }
        let wait_ms = FLEET_ANSWER_MS + wish.wait_ms();
        match self.order(ToRelay::Ask(Order { ask, wish, to: to.cloned(), expected, has_peers, wait_ms })) {
            true => Others { asked: hosts, unasked: 0 },
            false => Others { asked: 0, unasked: hosts },
        }
    }

    /// Answers a [`crate::Notice::Note`].
    pub fn reply(&self, ask: u64, text: Arc<str>) {
        // The asker's time runs out where it is lost, and that is counted there.
        let _ = self.order(ToRelay::Reply { ask, text });
    }

    /// Claims an emit's id. Where nothing comes, or the way ends, it is [`Claim::Unknown`].
    pub fn claim(&self, id: Arc<str>, age_ms: u64) -> oneshot::Receiver<Claim> {
        let (answer, told) = oneshot::channel();
        let _ = self.order(ToRelay::Claim { id, age_ms, answer });
        told
    }

    /// Whether a user is in a room's set of members in Redis. Where nothing comes, or the way ends, nobody knows.
    pub fn is_member(&self, room: Arc<str>, user: Arc<str>) -> oneshot::Receiver<bool> {
        let (answer, told) = oneshot::channel();
        let _ = self.order(ToRelay::Member { room, user, answer });
        told
    }

    /// Whom a user has blocked by what stands in Redis. Where nothing comes, or the way ends, nobody knows.
    pub fn blocked_by(&self, user: Arc<str>) -> oneshot::Receiver<Vec<String>> {
        let (answer, told) = oneshot::channel();
        let _ = self.order(ToRelay::Blocked { user, answer });
        told
    }

    /// Gives an id back: nothing was sent.
    pub fn release(&self, id: Arc<str>) {
        let _ = self.order(ToRelay::Release { id });
    }

    /// Orders for which there was no place, since the start.
    pub fn orders_lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn order(&self, order: ToRelay) -> bool {
        let is_taken = self.orders.try_send(order).is_ok();
        if !is_taken {
            self.lost.fetch_add(1, Relaxed);
        }
        is_taken
    }
}
