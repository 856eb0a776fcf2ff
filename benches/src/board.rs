//! What the threads of one run tell each other: the stage, the counters, the first failure. The coordinator moves the stage and reads
//! the counters; each worker writes its own column.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What the workers are to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Open connections and join.
    Opening,
    /// Send as the rate says.
    Sending,
    /// Send nothing more, but listen.
    Draining,
    /// Hand everything back.
    Done,
}

const STAGES: [Stage; 4] = [Stage::Opening, Stage::Sending, Stage::Draining, Stage::Done];

/// One worker's counters, written by it alone.
#[derive(Default)]
pub(crate) struct Column {
    /// Kernel number of the worker's thread.
    pub(crate) thread: AtomicI32,
    /// Connections that are in their room.
    pub(crate) joined: AtomicU64,
    /// When the last of them joined, on the run's clock.
    pub(crate) joined_at: AtomicU64,
    /// Frames heard, of whatever kind.
    pub(crate) frames: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) delivered: AtomicU64,
    /// When the last of these came, on the run's clock.
    pub(crate) delivered_at: AtomicU64,
}

/// The shared state of one run. All of it is advisory counting, so relaxed order is enough; threads are joined before results are read.
pub(crate) struct Board {
    started: Instant,
    stage: AtomicU8,
    /// Messages due in [from, until) are the measured ones.
    from: AtomicU64,
    until: AtomicU64,
    failure: Mutex<Option<String>>,
    pub(crate) columns: Vec<Column>,
}

impl Board {
    pub(crate) fn new(workers: u32) -> Self {
        Self {
            started: Instant::now(),
            stage: AtomicU8::new(Stage::Opening as u8),
            from: AtomicU64::new(u64::MAX),
            until: AtomicU64::new(u64::MAX),
            failure: Mutex::new(None),
            columns: (0..workers).map(|_| Column::default()).collect(),
        }
    }

    /// Nanoseconds of the run's clock.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    pub(crate) fn stage(&self) -> Stage {
        STAGES[usize::from(self.stage.load(Relaxed))]
    }

    pub(crate) fn move_to(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    pub(crate) fn begin_window(&self) {
        self.from.store(self.now(), Relaxed);
    }

    pub(crate) fn end_window(&self) {
        self.until.store(self.now(), Relaxed);
    }

    pub(crate) fn window(&self) -> (u64, u64) {
        (self.from.load(Relaxed), self.until.load(Relaxed))
    }

    /// Ends the run; the first reason given stands.
    pub(crate) fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A counter of all workers together.
    pub(crate) fn sum(&self, counter: impl Fn(&Column) -> &AtomicU64) -> u64 {
        self.columns.iter().map(|column| counter(column).load(Relaxed)).sum()
    }
}
