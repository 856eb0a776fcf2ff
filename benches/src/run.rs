//! The coordinator: starts the workers, moves the board through the stages, reads /proc at the two ends of the measured window and
//! settles the ledgers when all is over.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::board::{Board, Stage};
use crate::client::{Setup, Tally};
use crate::net;
use crate::options::Options;
use crate::report::{self, Connected, Loaded, Verdict};
use crate::scenario::{Plan, Scenario};
use crate::server::{Reading, Server, own_thread_cpu};
use crate::worker::{Outcome, Worker};

/// Opening that makes no progress for so long has failed.
const OPENING_STALL: Duration = Duration::from_secs(15);
/// Joining tells others of it; the load begins when nothing has been heard for so long.
const QUIET: Duration = Duration::from_millis(300);
/// What has not arrived when nothing arrived for so long after the last sending is lost.
const DRAIN_STALL: Duration = Duration::from_millis(1_500);
/// How often the coordinator looks up; it shares the generator's cores.
const GLANCE: Duration = Duration::from_millis(20);

/// Measures the running server as the options say.
pub(crate) fn run(options: &Options) -> Result<Value, String> {
    let server = match options.pid {
        Some(pid) => Ok(Server::of_pid(pid)),
        None => Server::listening_on(options.target.port()),
    };
    let server = server.map_err(|error| format!("the server's process: {error}"))?;
    let run = Run::start(options, &server)?;
    let measured = run.measure();
    // The workers end whether it went well or not.
    let outcomes = run.finish();
    measured.map(|measured| match measured {
        Measured::Connected(connected) => report::connect(options, &server, &connected, &Verdict::of(options, &outcomes, 0)),
        Measured::Loaded(loaded) => report::load(options, &server, &loaded, &Verdict::of(options, &outcomes, 0)),
    })
}

enum Measured {
    Connected(Connected),
    Loaded(Loaded),
}

/// One run under way: the workers and what they share.
pub(crate) struct Run<'a> {
    options: &'a Options,
    server: &'a Server,
    board: Arc<Board>,
    workers: Vec<JoinHandle<Outcome>>,
    before: Reading,
}

impl<'a> Run<'a> {
    /// Starts the workers, which begin at once to open connections.
    pub(crate) fn start(options: &'a Options, server: &'a Server) -> Result<Self, String> {
        let board = Arc::new(Board::new(options.plan.workers));
        let setup = Arc::new(setup(options));
        let before = read(server)?;
        let mut run = Self { options, server, board, workers: Vec::new(), before };
        for (number, cpu) in options.cpus.iter().enumerate() {
            let worker = Worker::new(number as u32, options, Arc::clone(&setup), Arc::clone(&run.board))?;
            run.workers.push(spawn(worker, *cpu, Arc::clone(&run.board))?);
        }
        Ok(run)
    }

    fn measure(&self) -> Result<Measured, String> {
        self.wait_until_open()?;
        if self.options.plan.scenario == Scenario::Connect {
            return self.measure_idle().map(Measured::Connected);
        }
        self.wait_until_quiet()?;
        self.measure_load().map(Measured::Loaded)
    }

    /// Waits until every connection has joined; an error when they stop coming.
    pub(crate) fn wait_until_open(&self) -> Result<(), String> {
        let wanted = u64::from(self.options.plan.connections());
        let opened = self.wait_while_moving(OPENING_STALL, || {
            let joined = self.board.sum(|column| &column.joined);
            (joined == wanted, joined)
        })?;
        let joined = self.board.sum(|column| &column.joined);
        if opened { Ok(()) } else { Err(format!("{joined} of {wanted} connections joined, then nothing for {OPENING_STALL:?}")) }
    }

    fn wait_until_quiet(&self) -> Result<(), String> {
        self.wait_while_moving(QUIET, || (false, self.board.sum(|column| &column.frames))).map(drop)
    }

    fn measure_idle(&self) -> Result<Connected, String> {
        let opened = read(self.server)?.since(self.before);
        let last = self.board.columns.iter().map(|column| column.joined_at.load(Relaxed)).max().unwrap_or(0);
        let generator_share = self.generator_share(Duration::from_nanos(last));
        self.sleep(self.options.settle)?;
        let settled = read(self.server)?;
        Ok(Connected { took: Duration::from_nanos(last), server: opened, before: self.before, settled, generator_share })
    }

    fn measure_load(&self) -> Result<Loaded, String> {
        self.board.move_to(Stage::Sending);
        self.sleep(self.options.warmup)?;
        self.board.begin_window();
        let start = self.sample()?;
        self.sleep(self.options.measured)?;
        self.board.end_window();
        let end = self.sample()?;
        self.board.move_to(Stage::Draining);
        self.wait_until_drained()?;
        let took = end.at - start.at;
        Ok(Loaded {
            took,
            server: end.server.since(start.server),
            sent: end.sent - start.sent,
            delivered: end.delivered - start.delivered,
            generator_share: self.generator_shares(&start.generator, took),
        })
    }

    fn wait_until_drained(&self) -> Result<(), String> {
        let copies = u64::from(self.options.plan.copies());
        let drained = || {
            let (sent, delivered) = (self.board.sum(|column| &column.sent), self.board.sum(|column| &column.delivered));
            (delivered >= sent * copies, delivered)
        };
        // The workers' last turn of sending must be on the board before it can be compared.
        self.sleep(GLANCE)?;
        self.wait_while_moving(DRAIN_STALL, drained)?;
        // What comes twice comes after everything has come once.
        self.sleep(QUIET)
    }

    /// Waits until `look` says true or its number has stood still for `stall`; tells which.
    fn wait_while_moving(&self, stall: Duration, look: impl Fn() -> (bool, u64)) -> Result<bool, String> {
        let mut last = (Instant::now(), 0);
        loop {
            let (finished, number) = look();
            if finished {
                return Ok(true);
            }
            if number != last.1 {
                last = (Instant::now(), number);
            }
            if last.0.elapsed() > stall {
                return Ok(false);
            }
            self.sleep(GLANCE.min(stall))?;
        }
    }

    /// Sleeps, but not longer than the run can still succeed.
    fn sleep(&self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        loop {
            if let Some(failure) = self.board.failure() {
                return Err(failure);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(GLANCE));
        }
    }

    fn sample(&self) -> Result<Sample, String> {
        Ok(Sample {
            at: Instant::now(),
            sent: self.board.sum(|column| &column.sent),
            delivered: self.board.sum(|column| &column.delivered),
            server: read(self.server)?,
            generator: self.board.columns.iter().map(|column| own_thread_cpu(column.thread.load(Relaxed))).collect(),
        })
    }

    /// How much of its core the busiest worker has used since `earlier`.
    fn generator_shares(&self, earlier: &[u64], took: Duration) -> f64 {
        let used = self.board.columns.iter().zip(earlier).map(|(column, earlier)| {
            own_thread_cpu(column.thread.load(Relaxed)).saturating_sub(*earlier) as f64 / took.as_nanos().max(1) as f64
        });
        used.fold(0.0, f64::max)
    }

    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// How much of its core the busiest worker has used in all, set against a time.
    pub(crate) fn generator_share(&self, took: Duration) -> f64 {
        self.generator_shares(&vec![0; self.board.columns.len()], took)
    }

    /// Ends the workers, and tells whether everybody got everything: what was sent, and so many messages to everybody.
    pub(crate) fn settle(self, broadcasts: u32) -> Verdict {
        let options = self.options;
        Verdict::of(options, &self.finish(), broadcasts)
    }

    fn finish(self) -> Vec<Outcome> {
        self.board.move_to(Stage::Done);
        self.workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    }
}

/// Everything counted at one moment.
struct Sample {
    at: Instant,
    sent: u64,
    delivered: u64,
    server: Reading,
    generator: Vec<u64>,
}

impl Verdict {
    /// Settles what every receiver heard against what every sender sent.
    fn of(options: &Options, outcomes: &[Outcome], broadcasts: u32) -> Self {
        let plan = &options.plan;
        let mut verdict = Self::default();
        let mut sent = vec![0; plan.connections() as usize];
        for client in outcomes.iter().flat_map(|outcome| &outcome.clients) {
            sent[client.number as usize] = client.sent;
        }
        let mut orders = vec![HashSet::new(); plan.rooms as usize];
        for client in outcomes.iter().flat_map(|outcome| &outcome.clients) {
            let room = plan.room_of(client.number);
            let senders = (0..plan.senders).map(|sender| client.ledger.lost(sender, sent[(plan.first_of(room) + sender) as usize]));
            verdict.lost += senders.sum::<u64>() + client.ledger.lost_broadcasts(broadcasts);
            verdict.doubled += client.ledger.doubled;
            verdict.misordered += client.ledger.misordered;
            verdict.foreign += client.ledger.foreign;
            orders[room as usize].insert(client.ledger.order);
        }
        // Only where everybody heard everything once does a different order mean a different order.
        if verdict.lost + verdict.doubled + verdict.foreign == 0 {
            verdict.disordered_rooms = orders.iter().filter(|orders| orders.len() > 1).count() as u64;
        }
        outcomes.iter().for_each(|outcome| verdict.add(outcome));
        verdict
    }

    fn add(&mut self, outcome: &Outcome) {
        let Tally { latency, opening, refused, first_refusal, .. } = &outcome.tally;
        self.latency.merge(latency);
        self.opening.merge(opening);
        self.refused += refused;
        self.disconnected += outcome.disconnected;
        self.first_refusal = self.first_refusal.take().or_else(|| first_refusal.clone());
        self.first_fault = self.first_fault.take().or_else(|| outcome.first_fault.clone());
    }
}

fn setup(options: &Options) -> Setup {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Setup {
        dialect: options.dialect,
        host: options.host.clone(),
        path: options.path.clone(),
        secret: options.secret.clone(),
        nonce: since.subsec_nanos() ^ (since.as_secs() as u32).rotate_left(16) ^ std::process::id().rotate_left(8),
        users: users(&options.plan, options.per_user),
        started: since.as_secs(),
        filler: Setup::filler_of(options.payload_bytes),
        echo: options.plan.scenario == Scenario::Echo,
    }
}

fn users(plan: &Plan, per_user: u32) -> u32 {
    plan.connections().div_ceil(per_user)
}

fn spawn(worker: Worker, cpu: usize, board: Arc<Board>) -> Result<JoinHandle<Outcome>, String> {
    let body = move || {
        if let Err(error) = net::pin(&[cpu]) {
            board.fail(format!("cannot run on core {cpu}: {error}"));
        }
        worker.run()
    };
    thread::Builder::new().name(format!("generator-{cpu}")).spawn(body).map_err(|error| format!("no thread: {error}"))
}

fn read(server: &Server) -> Result<Reading, String> {
    server.reading().map_err(|error| format!("the server's process {} is gone: {error}", server.pid()))
}
