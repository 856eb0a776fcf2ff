//! The way from the shards to the relay: one bounded lane, a batch for each turn of a shard that has something to say. It knows of what it
//! carries only the size.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc;

use crate::ids::ShardId;
use crate::limits::{LANE_BYTES_MAX, OUTWARD_BATCHES_MAX};
use crate::shard::outward::Outward;

/// What one shard said in one turn.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) shard: ShardId,
    pub(crate) outwards: VecDeque<Outward>,
    bytes: usize,
}

/// A shard's end.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    lane: mpsc::Sender<Batch>,
    bytes: Arc<AtomicUsize>,
}

/// The relay's end.
#[derive(Debug)]
pub(crate) struct Inlet {
    lane: mpsc::Receiver<Batch>,
    bytes: Arc<AtomicUsize>,
}

/// A lane.
pub(crate) fn lane() -> (Outlet, Inlet) {
    let (sender, receiver) = mpsc::channel(OUTWARD_BATCHES_MAX);
    let bytes = Arc::<AtomicUsize>::default();
    (Outlet { lane: sender, bytes: bytes.clone() }, Inlet { lane: receiver, bytes })
}

impl Outlet {
    /// Sends a batch, and wakes the relay if it sleeps.
    ///
    /// # Errors
    /// Gives it back when the lane is full. Where the relay has ended it is gone: nobody could take it any more.
    pub(crate) fn send(&self, shard: ShardId, outwards: VecDeque<Outward>) -> Result<(), VecDeque<Outward>> {
        if self.bytes.load(Relaxed) >= LANE_BYTES_MAX {
            return Err(outwards);
        }
        let bytes = outwards.iter().map(Outward::bytes).sum();
        self.bytes.fetch_add(bytes, Relaxed);
        match self.lane.try_send(Batch { shard, outwards, bytes }) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(batch)) => {
                self.bytes.fetch_sub(bytes, Relaxed);
                Err(batch.outwards)
            }
        }
    }
}

impl Inlet {
    /// The next batch; `None` when all shards have ended. Dropped while it waits, nothing is lost.
    pub(crate) async fn recv(&mut self) -> Option<Batch> {
        let batch = self.lane.recv().await?;
        self.bytes.fetch_sub(batch.bytes, Relaxed);
        Some(batch)
    }

    /// The next batch that is there already.
    pub(crate) fn try_recv(&mut self) -> Option<Batch> {
        let batch = self.lane.try_recv().ok()?;
        self.bytes.fetch_sub(batch.bytes, Relaxed);
        Some(batch)
    }
}
