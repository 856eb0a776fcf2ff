//! The lanes between shards: bounded channels of parcels, and the wake of a sleeping receiver. Knows nothing of what it carries but its size.
//!
//! A receiver is woken (one eventfd write) only when it sleeps: it says so, looks at its lane once more, and only then waits; a sender
//! puts its batch into the lane first and looks at the sleeper's word afterwards. Whichever comes second sees the other.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::ids::ShardId;
use crate::limits::{LANE_BATCHES_MAX, LANE_BYTES_MAX};
use crate::shard::parcel::Parcel;

/// Parcels of one turn of one sender to one receiver.
#[derive(Debug)]
pub(crate) struct Batch<S> {
    pub(crate) parcels: Vec<Parcel>,
    /// Sockets that move to the receiver; after the parcels.
    pub(crate) sockets: Vec<S>,
    bytes: usize,
}

impl<S> Default for Batch<S> {
    fn default() -> Self {
        Batch { parcels: Vec::new(), sockets: Vec::new(), bytes: 0 }
    }
}

/// The way into a shard, shared by all that send to it.
#[derive(Debug)]
pub(crate) struct Port<S> {
    lane: Sender<Batch<S>>,
    /// Bytes of the batches in the lane.
    bytes: AtomicUsize,
    sleeping: AtomicBool,
    /// True exactly when the receiver is gone for good: its shard has ended, so nothing that is sent will ever be taken out.
    gone: AtomicBool,
    bell: File,
}

/// What a delivery came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    /// The receiver was awake.
    Queued,
    /// The receiver was woken.
    Woken,
    /// There is no receiver any more; the parcels were dropped. To keep them for ever would hold up the sender's own clients.
    Gone,
}

impl<S> Port<S> {
    /// A lane with `bell`, an eventfd in non-blocking mode.
    pub(crate) fn new(bell: File) -> (Arc<Port<S>>, Inbox<S>) {
        let (lane, batches) = bounded(LANE_BATCHES_MAX);
        let port =
            Arc::new(Port { lane, bytes: AtomicUsize::new(0), sleeping: AtomicBool::new(false), gone: AtomicBool::new(false), bell });
        (port.clone(), Inbox { batches, port })
    }

    /// Sends one parcel from outside the shards (the control plane); false when the lane is full. What a dead shard does not get is no
    /// failure: nobody can do anything about it.
    pub(crate) fn send(&self, parcel: Parcel) -> bool {
        let bytes = parcel.bytes();
        self.deliver(Batch { parcels: vec![parcel], sockets: Vec::new(), bytes }).is_ok()
    }

    fn deliver(&self, batch: Batch<S>) -> Result<Delivery, Batch<S>> {
        // Asked first: a lane that was full when its receiver ended stays full.
        if self.gone.load(Ordering::Acquire) {
            return Ok(Delivery::Gone);
        }
        if self.bytes.load(Ordering::Relaxed) >= LANE_BYTES_MAX {
            return Err(batch);
        }
        self.bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        match self.lane.try_send(batch) {
            Ok(()) => Ok(if self.wake() { Delivery::Woken } else { Delivery::Queued }),
            Err(TrySendError::Full(batch)) => {
                self.bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
                Err(batch)
            }
            Err(TrySendError::Disconnected(_)) => Ok(Delivery::Gone),
        }
    }

    /// Wakes the receiver if it sleeps; true when that was needed.
    pub(crate) fn wake(&self) -> bool {
        fence(Ordering::SeqCst);
        let asleep = self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel);
        if asleep {
            // A counter that is already high rings just as well, so a full one is no failure.
            let _ = (&self.bell).write(&1u64.to_ne_bytes());
        }
        asleep
    }
}

/// The receiving end of a [`Port`].
#[derive(Debug)]
pub(crate) struct Inbox<S> {
    batches: Receiver<Batch<S>>,
    port: Arc<Port<S>>,
}

impl<S> Inbox<S> {
    /// The next batch.
    pub(crate) fn next(&self) -> Option<Batch<S>> {
        let batch = self.batches.try_recv().ok()?;
        self.port.bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        Some(batch)
    }

    /// The way into it.
    pub(crate) fn port(&self) -> Arc<Port<S>> {
        self.port.clone()
    }

    /// Says that the receiver is about to wait. True exactly when it may: nothing has come meanwhile.
    pub(crate) fn sleep(&self) -> bool {
        self.port.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.batches.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// Says that the receiver looks at its lane again anyway.
    pub(crate) fn awake(&self) {
        self.port.sleeping.store(false, Ordering::Relaxed);
    }

    /// Takes back the ring of the bell.
    pub(crate) fn silence(&self) {
        let _ = (&self.port.bell).read(&mut [0; 8]);
    }
}

impl<S> Drop for Inbox<S> {
    fn drop(&mut self) {
        self.port.gone.store(true, Ordering::Release);
    }
}

/// One shard's ways to all others, with what could not be sent yet.
#[derive(Debug)]
pub(crate) struct Outlets<S> {
    ports: Vec<Arc<Port<S>>>,
    pending: Vec<Batch<S>>,
    /// True exactly when a lane was full at the last flush.
    is_full: bool,
    /// How many shards of the process are in that state.
    congested: Arc<AtomicUsize>,
}

impl<S> Outlets<S> {
    /// `congested` is the same for all shards of the process.
    pub(crate) fn new(ports: Vec<Arc<Port<S>>>, congested: Arc<AtomicUsize>) -> Outlets<S> {
        let pending = ports.iter().map(|_| Batch::default()).collect();
        Outlets { ports, pending, is_full: false, congested }
    }

    /// True exactly when a lane was full at the last flush.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// True exactly when clients must not be read: a lane of this shard or of any other is full. Of any, because a shard always drains
    /// its own lane: one between a stalled shard and its busy senders would otherwise collect what they go on sending, without bound.
    pub(crate) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed) > 0
    }

    /// True exactly when something has found no place in its lane yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.iter().any(|batch| !batch.parcels.is_empty() || !batch.sockets.is_empty())
    }

    pub(crate) fn add(&mut self, to: ShardId, parcel: Parcel) {
        let batch = &mut self.pending[usize::from(to.0)];
        batch.bytes += parcel.bytes();
        batch.parcels.push(parcel);
    }

    /// `bytes`: what it holds on to, for the bound of the lane.
    pub(crate) fn add_socket(&mut self, to: ShardId, socket: S, bytes: usize) {
        let batch = &mut self.pending[usize::from(to.0)];
        batch.bytes += bytes;
        batch.sockets.push(socket);
    }

    /// Sends what is pending, calling `delivered` with parcels and outcome of each batch; false when a lane was full and its parcels
    /// stay. Nothing to a living shard is lost or overtaken: the caller stops taking in new work until it is sent.
    pub(crate) fn flush(&mut self, mut delivered: impl FnMut(usize, Delivery)) -> bool {
        let mut all = true;
        for (port, pending) in self.ports.iter().zip(&mut self.pending) {
            if pending.parcels.is_empty() && pending.sockets.is_empty() {
                continue;
            }
            let count = pending.parcels.len();
            match port.deliver(std::mem::take(pending)) {
                Ok(delivery) => delivered(count, delivery),
                Err(batch) => {
                    *pending = batch;
                    all = false;
                }
            }
        }
        if self.is_full == all {
            self.is_full = !all;
            if all {
                self.congested.fetch_sub(1, Ordering::Relaxed)
            } else {
                self.congested.fetch_add(1, Ordering::Relaxed)
            };
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (Arc<Port<()>>, Inbox<()>) {
        Port::new(File::from(crate::driver::sys::eventfd(0).expect("eventfd")))
    }

    #[test]
    fn a_sleeper_is_woken_once_and_the_awake_never() {
        let (port, inbox) = port();
        let drain = || Parcel::Drain { over_ms: 0 };
        let batch = || Batch { parcels: vec![drain()], sockets: Vec::new(), bytes: 1 };
        assert_eq!(port.deliver(batch()).ok(), Some(Delivery::Queued));
        assert!(!inbox.sleep(), "something is there");
        while inbox.next().is_some() {}
        assert!(inbox.sleep());
        assert_eq!(port.deliver(batch()).ok(), Some(Delivery::Woken));
        assert_eq!(port.deliver(batch()).ok(), Some(Delivery::Queued));
    }

    #[test]
    fn one_full_lane_stops_the_reading_of_all_shards_until_it_has_drained() {
        let (port, inbox) = port();
        let congested = Arc::<AtomicUsize>::default();
        let mut sender = Outlets::new(vec![port.clone()], congested.clone());
        let bystander: Outlets<()> = Outlets::new(Vec::new(), congested);
        assert!(!bystander.is_congested());
        loop {
            sender.add(ShardId(0), Parcel::Drain { over_ms: 0 });
            if !sender.flush(|_, _| {}) {
                break;
            }
        }
        assert!(sender.is_congested() && bystander.is_congested());
        assert!(!sender.flush(|_, _| {}), "counted once however often it is tried");
        while inbox.next().is_some() {}
        assert!(sender.flush(|_, _| {}));
        assert!(!sender.is_congested() && !bystander.is_congested());
    }

    #[test]
    fn a_full_lane_keeps_order_and_loses_nothing() {
        let (port, inbox) = port();
        let mut outlets = Outlets::new(vec![port], Arc::default());
        let mut sent = 0;
        let mut refused = false;
        while !refused {
            outlets.add(ShardId(0), Parcel::Drain { over_ms: sent });
            sent += 1;
            refused = !outlets.flush(|_, _| {});
            assert!(sent <= LANE_BATCHES_MAX as u64 + 1, "the lane is bounded");
        }
        outlets.add(ShardId(0), Parcel::Drain { over_ms: sent });
        let mut seen = 0;
        loop {
            while let Some(batch) = inbox.next() {
                for parcel in batch.parcels {
                    assert!(matches!(parcel, Parcel::Drain { over_ms } if over_ms == seen), "{parcel:?} is not number {seen}");
                    seen += 1;
                }
            }
            let before = seen;
            assert!(outlets.flush(|_, _| {}));
            if seen > sent || before > sent {
                break;
            }
        }
        assert_eq!(seen, sent + 1);
    }

    #[test]
    fn a_lane_without_a_receiver_takes_everything_and_holds_up_nobody() {
        let (port, inbox) = port();
        let mut outlets = Outlets::new(vec![port.clone()], Arc::default());
        let full = Batch { parcels: Vec::new(), sockets: Vec::new(), bytes: LANE_BYTES_MAX };
        assert!(port.deliver(full).is_ok());
        outlets.add(ShardId(0), Parcel::Drain { over_ms: 0 });
        assert!(!outlets.flush(|_, _| {}), "full, and somebody is there to empty it");
        drop(inbox);
        let mut heard = Vec::new();
        assert!(outlets.flush(|parcels, delivery| heard.push((parcels, delivery))));
        assert_eq!(heard, [(1, Delivery::Gone)]);
        assert!(port.send(Parcel::Drain { over_ms: 0 }), "nobody waits for a dead shard");
    }
}
