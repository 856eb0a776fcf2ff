//! One generator thread: it opens its share of the connections, sends what is due and listens, all on one epoll set. It learns the
//! stage from the board and writes its counters there; what the counters mean is decided elsewhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::board::{Board, Column, Stage};
use crate::client::{Client, Fault, Setup, Tally};
use crate::net::{self, Poller};
use crate::options::{Options, Rate};
use crate::scenario::Plan;

/// The stage is looked at this often when nothing else happens.
const IDLE_WAIT: Duration = Duration::from_millis(5);
/// Where other threads hear parts of what we send, their progress is looked at this often.
const SPLIT_WAIT: Duration = Duration::from_micros(500);
/// Messages sent in one turn at most, so that a schedule that has fallen behind does not stop us from listening.
const BURST_MAX: u32 = 256;
/// Under `--rate max`: a full window in which nothing arrives for so long is given up as lost, and the next one begins.
const STALL_NANOSECONDS: u64 = 1_000_000_000;
/// Connections from one source address. The server allows an address 1,000 handshakes in 10 s and 10,000 connections.
const CONNECTIONS_PER_SOURCE: u32 = 900;

/// What a worker hands back at the end.
pub(crate) struct Outcome {
    pub(crate) clients: Vec<Client>,
    pub(crate) tally: Tally,
    pub(crate) disconnected: u64,
    pub(crate) first_fault: Option<String>,
}

/// One generator thread's world.
pub(crate) struct Worker {
    number: u32,
    plan: Plan,
    target: SocketAddr,
    opening_max: usize,
    setup: Arc<Setup>,
    board: Arc<Board>,
    poller: Poller,
    /// Connections of ours, the first `clients.len()` of which have been opened.
    seats: Vec<u32>,
    clients: Vec<Client>,
    joined: usize,
    /// Our senders (places in `clients`), ordered so that messages in a row go to different rooms.
    senders: Vec<usize>,
    turn: usize,
    pace: Pace,
    tally: Tally,
    sent: u64,
    disconnected: u64,
    first_fault: Option<String>,
}

impl Worker {
    pub(crate) fn new(number: u32, options: &Options, setup: Arc<Setup>, board: Arc<Board>) -> Result<Self, String> {
        let plan = options.plan;
        let seats = plan.connections_of(number);
        let mut senders: Vec<usize> = (0..seats.len()).filter(|place| plan.is_sender(seats[*place])).collect();
        senders.sort_by_key(|place| (seats[*place] % plan.members, seats[*place]));
        let share = plan.share_of(senders.len());
        let poller = Poller::new().map_err(|error| format!("no epoll set: {error}"))?;
        Ok(Self {
            number,
            plan,
            target: options.target,
            opening_max: options.opening.div_ceil(plan.workers) as usize,
            setup,
            board,
            poller,
            seats,
            clients: Vec::new(),
            joined: 0,
            senders,
            turn: 0,
            pace: Pace::new(options, share),
            tally: Tally::new(),
            sent: 0,
            disconnected: 0,
            first_fault: None,
        })
    }

    /// Runs until the board says done; a failure is told there.
    pub(crate) fn run(mut self) -> Outcome {
        self.column().thread.store(net::thread_id(), Relaxed);
        let mut ready = Vec::new();
        while self.board.stage() != Stage::Done {
            if let Err(reason) = self.turn(&mut ready) {
                self.board.fail(reason);
                break;
            }
        }
        Outcome { clients: self.clients, tally: self.tally, disconnected: self.disconnected, first_fault: self.first_fault }
    }

    fn column(&self) -> &Column {
        &self.board.columns[self.number as usize]
    }

    fn turn(&mut self, ready: &mut Vec<net::Readiness>) -> Result<(), String> {
        self.tally.window = self.board.window();
        let wait = match self.board.stage() {
            Stage::Opening => self.open_more()?,
            Stage::Sending => self.send_due(),
            Stage::Draining | Stage::Done => IDLE_WAIT,
        };
        ready.clear();
        self.poller.wait(wait, ready).map_err(|error| format!("epoll: {error}"))?;
        for event in ready.iter() {
            self.handle(*event)?;
        }
        self.publish();
        Ok(())
    }

    fn open_more(&mut self) -> Result<Duration, String> {
        while self.clients.len() < self.seats.len() && self.clients.len() - self.joined < self.opening_max {
            let number = self.seats[self.clients.len()];
            let socket = net::connect(self.target, source_of(self.target, number, self.setup.nonce));
            let socket = socket.map_err(|error| format!("connection {number}: {error}"))?;
            let added = self.poller.add(&socket, self.clients.len(), true);
            added.map_err(|error| format!("connection {number}: epoll: {error}"))?;
            let room = self.plan.room_of(number);
            let name = self.setup.room_name(room);
            self.clients.push(Client::new(number, self.plan.first_of(room), name, self.plan.senders, socket, self.board.now()));
        }
        Ok(IDLE_WAIT)
    }

    /// Sends what is due and tells how long there is nothing to send.
    fn send_due(&mut self) -> Duration {
        for _ in 0..BURST_MAX {
            let now = self.board.now();
            let delivered = self.delivered_in_reach();
            match self.pace.next(now, self.sent, delivered) {
                Due::At(stamp) => {
                    if !self.send_one(stamp) {
                        return IDLE_WAIT;
                    }
                }
                Due::Later(wait) if self.plan.splits_rooms() => return wait.min(SPLIT_WAIT),
                Due::Later(wait) => return wait.min(IDLE_WAIT),
            }
        }
        Duration::ZERO
    }

    /// Deliveries that answer to what we sent: ours, or everybody's where rooms are split between the workers.
    fn delivered_in_reach(&self) -> u64 {
        if !self.plan.splits_rooms() {
            return self.tally.delivered;
        }
        let others = self.board.sum(|column| &column.delivered) - self.column().delivered.load(Relaxed);
        others + self.tally.delivered
    }

    /// Sends one message from the next sender that can; false when none can.
    fn send_one(&mut self, stamp: u64) -> bool {
        for _ in 0..self.senders.len() {
            let place = self.senders[self.turn % self.senders.len()];
            self.turn += 1;
            if !self.clients[place].can_send() {
                continue;
            }
            self.sent += 1;
            self.pace.sent();
            let outcome = self.clients[place].send(&self.setup, stamp);
            self.settle(place, true, outcome.err());
            return true;
        }
        false
    }

    fn handle(&mut self, event: net::Readiness) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(event.key) else { return Ok(()) };
        if client.socket().is_none() {
            return Ok(());
        }
        let had_joined = client.has_joined();
        let outcome = client.handle(event, &self.setup, &mut self.tally, self.board.now());
        if client.has_joined() && !had_joined {
            self.joined += 1;
            self.column().joined_at.store(self.board.now(), Relaxed);
        }
        match outcome.err() {
            Some(fault) if !self.clients[event.key].has_joined() => Err(format!("connection {}: {fault}", self.seats[event.key])),
            fault => {
                self.settle(event.key, event.writable, fault);
                Ok(())
            }
        }
    }

    /// After a connection did something: note its end, or watch for writing exactly when it has something to write.
    fn settle(&mut self, place: usize, may_have_changed: bool, fault: Option<Fault>) {
        let client = &mut self.clients[place];
        if let Some(fault) = fault {
            client.end();
            self.disconnected += 1;
            self.first_fault.get_or_insert_with(|| fault.to_string());
            return;
        }
        let writes = client.wants_to_write();
        if let Some(socket) = client.socket().filter(|_| may_have_changed || writes) {
            // It fails only for a descriptor that is not in the set, and this one is.
            let _ = self.poller.change(socket, place, writes);
        }
    }

    fn publish(&self) {
        let column = self.column();
        column.joined.store(self.joined as u64, Relaxed);
        column.frames.store(self.tally.frames, Relaxed);
        column.sent.store(self.sent, Relaxed);
        if column.delivered.load(Relaxed) != self.tally.delivered {
            column.delivered_at.store(self.board.now(), Relaxed);
            column.delivered.store(self.tally.delivered, Relaxed);
        }
    }
}

/// When the next message is due.
enum Due {
    At(u64),
    Later(Duration),
}

/// The two ways to pace a load.
enum Pace {
    /// A schedule. A message carries the time it was due, not the time we got to it, so a stalled server cannot hide its delay.
    Schedule { interval: f64, started: Option<u64>, sent: u64 },
    /// As many unanswered messages as the window allows.
    Window { size: u64, copies: u64, forgiven: u64, last_delivered: u64, moved_at: u64 },
}

impl Pace {
    fn new(options: &Options, share: f64) -> Self {
        let copies = u64::from(options.plan.copies());
        match options.rate {
            Rate::Fixed(deliveries) => {
                let interval = copies as f64 * 1e9 / (deliveries * share);
                Self::Schedule { interval, started: None, sent: 0 }
            }
            Rate::Max => {
                let size = ((options.window as f64 * share).ceil() as u64).max(1);
                Self::Window { size, copies, forgiven: 0, last_delivered: 0, moved_at: 0 }
            }
        }
    }

    fn sent(&mut self) {
        if let Self::Schedule { sent, .. } = self {
            *sent += 1;
        }
    }

    fn next(&mut self, now: u64, all_sent: u64, delivered: u64) -> Due {
        match self {
            Self::Schedule { interval, started, sent } => {
                let due = *started.get_or_insert(now) + (*sent as f64 * *interval) as u64;
                if due <= now { Due::At(due) } else { Due::Later(Duration::from_nanos(due - now)) }
            }
            Self::Window { size, copies, forgiven, last_delivered, moved_at } => {
                if delivered != *last_delivered || *moved_at == 0 {
                    (*last_delivered, *moved_at) = (delivered, now);
                }
                let unanswered = all_sent.saturating_sub(*forgiven + delivered / *copies);
                if unanswered < *size {
                    return Due::At(now);
                }
                if now - *moved_at > STALL_NANOSECONDS {
                    *forgiven += unanswered;
                    *moved_at = now;
                }
                Due::Later(IDLE_WAIT)
            }
        }
    }
}

/// The source address of a connection to a loopback target: the server limits what one address may do, and so does TCP with its ports. Each
/// run begins at another address, so that runs in a row do not meet the limits of the one before.
fn source_of(target: SocketAddr, connection: u32, nonce: u32) -> Option<Ipv4Addr> {
    let SocketAddr::V4(target) = target else { return None };
    if !target.ip().is_loopback() {
        return None;
    }
    let first = u32::from(Ipv4Addr::new(127, 0, 0, 2));
    let base = (nonce % 0x3FFF) << 8;
    Some(Ipv4Addr::from(first + base + connection / CONNECTIONS_PER_SOURCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_change_with_the_connection_and_stay_on_loopback() {
        let target = "127.0.0.1:3000".parse().expect("an address");
        assert_eq!(source_of(target, 0, 0), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(source_of(target, 900, 0), Some(Ipv4Addr::new(127, 0, 0, 3)));
        assert!(source_of(target, u32::MAX, u32::MAX).is_some_and(|source| source.is_loopback()));
        assert_eq!(source_of("10.0.0.1:3000".parse().expect("an address"), 0, 0), None);
    }

    #[test]
    fn a_late_schedule_keeps_its_due_times() {
        let mut pace = Pace::Schedule { interval: 100.0, started: Some(0), sent: 0 };
        pace.sent();
        assert!(matches!(pace.next(1_000, 1, 0), Due::At(100)));
        pace.sent();
        assert!(matches!(pace.next(150, 2, 0), Due::Later(wait) if wait.as_nanos() == 50));
    }

    #[test]
    fn a_window_fills_and_is_given_up_when_nothing_comes() {
        let mut pace = Pace::Window { size: 2, copies: 10, forgiven: 0, last_delivered: 0, moved_at: 0 };
        assert!(matches!(pace.next(1, 1, 9), Due::At(1)));
        assert!(matches!(pace.next(2, 2, 9), Due::Later(_)));
        assert!(matches!(pace.next(3, 2, 10), Due::At(3)));
        assert!(matches!(pace.next(4, 3, 10), Due::Later(_)));
        assert!(matches!(pace.next(STALL_NANOSECONDS + 9, 3, 10), Due::Later(_)));
        assert!(matches!(pace.next(STALL_NANOSECONDS + 10, 3, 10), Due::At(_)));
    }
}
