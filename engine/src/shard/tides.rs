//! How far what other hosts and this one have said has come: the relay sends a tide through all shards now and then, and each passes it on to all
//! others, so that it comes everywhere behind everything that went before it. When it has come by way of all of them, a shard knows: whatever
//! stands in the stream up to its mark, and was for somebody here, has been delivered here. And whatever was delivered here before the tide
//! that is named as done, stands in the stream up to that mark, or never will.
//!
//! It makes what is told of a connection that broke off exact: which events its client may still have to hear, here or elsewhere.

use std::collections::VecDeque;

use super::Shard;
use super::outward::Outward;
use super::parcel::Parcel;
use crate::ids::{EndpointId, ShardId};
use crate::time::Now;
use crate::wire::sio::EntryId;

/// What the relay sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tide {
    /// Counts from 1.
    pub number: u64,
    /// The stream was read up to here before it was sent.
    pub mark: EntryId,
    /// What this host's shards had handed to the relay before they saw the tide of this number, stands in the stream up to the mark; 0: none.
    pub done: u64,
}

/// A tide that has come to this shard.
#[derive(Debug)]
struct Begun {
    tide: Tide,
    /// By endpoint: the backlog's next position when it first came.
    positions: Box<[u64]>,
}

/// What has been reached here.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    /// What stands in the stream up to here has been delivered.
    pub(super) mark: EntryId,
    /// By endpoint: what the backlog has before this position stands in the stream up to the mark, or does not stand there at all.
    positions: Box<[u64]>,
    /// Number of the tide that says so: what was said in a room before somebody here entered it, and he entered before this came, too.
    pub(super) done: u64,
}

impl Reached {
    pub(super) fn position(&self, endpoint: EndpointId) -> u64 {
        self.positions.get(usize::from(endpoint.0)).copied().unwrap_or(0)
    }
}

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Tides {
    /// By shard: the number of the last tide that came by way of it.
    latest: Box<[u64]>,
    begun: VecDeque<Begun>,
    mark: Option<EntryId>,
    reached: Option<Reached>,
}

impl Tides {
    /// Up to here the stream's events have been delivered here; `None` before the first tide.
    pub(super) fn mark(&self) -> Option<EntryId> {
        self.mark
    }

    /// Number of the last tide that has come by any way.
    pub(super) fn begun(&self) -> u64 {
        self.begun.back().map_or(0, |last| last.tide.number)
    }

    /// The same, with what is known of this host's own events; `None` before that is known.
    pub(super) fn reached(&self) -> Option<&Reached> {
        self.reached.as_ref()
    }

    /// A tide comes by way of a shard. True when it has come by way of all.
    fn come(&mut self, shards: usize, from: ShardId, tide: Tide, positions: impl FnOnce() -> Box<[u64]>) -> bool {
        if self.latest.is_empty() {
            self.latest = vec![0; shards].into();
        }
        if self.begun.back().is_none_or(|last| last.tide.number < tide.number) {
            self.begun.push_back(Begun { tide, positions: positions() });
        }
        let Some(latest) = self.latest.get_mut(usize::from(from.0)) else { return false };
        *latest = tide.number;
        if self.latest.iter().any(|number| *number < tide.number) {
            return false;
        }
        self.mark = Some(tide.mark);
        while self.begun.front().is_some_and(|first| first.tide.number < tide.done) {
            self.begun.pop_front();
        }
        if let Some(first) = self.begun.front().filter(|first| first.tide.number == tide.done) {
            self.reached = Some(Reached { mark: tide.mark, positions: first.positions.clone(), done: tide.done });
        }
        true
    }
}

impl Shard {
    /// A tide of the relay's: it goes on to all shards, and back to the relay behind everything that was handed to it.
    pub(super) fn pass_tide_on(&mut self, tide: Tide) {
        self.send_out(Outward::Tide { number: tide.number });
        for shard in 0..self.world.config.shards.len() {
            self.post_to(ShardId(shard as u8), Parcel::Tide { from: Some(self.id), tide });
        }
    }

    pub(super) fn take_tide(&mut self, now: Now, from: ShardId, tide: Tide) {
        let (shards, memory) = (self.world.config.shards.len(), &self.memory);
        if self.tides.come(shards, from, tide, || memory.positions()) {
            self.go_on_restoring(now);
            self.share_early_leavers(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tide(number: u64, ms: u64, done: u64) -> Tide {
        Tide { number, mark: EntryId { ms, number: 0 }, done }
    }

    #[test]
    fn a_mark_counts_when_it_has_come_by_way_of_all() {
        let mut tides = Tides::default();
        let mut position = 0;
        let mut come = |tides: &mut Tides, from: u8, tide: Tide| {
            position += 10;
            tides.come(2, ShardId(from), tide, || [position].into())
        };
        assert!(!come(&mut tides, 0, tide(1, 5, 0)) && tides.mark().is_none());
        assert!(come(&mut tides, 1, tide(1, 5, 0)));
        assert!(tides.mark().is_some_and(|mark| mark.ms == 5) && tides.reached().is_none());
        assert!(!come(&mut tides, 1, tide(2, 7, 1)));
        assert_eq!(tides.mark().map(|mark| mark.ms), Some(5));
        assert!(come(&mut tides, 0, tide(2, 7, 1)));
        let reached = tides.reached().expect("the first is done");
        assert_eq!(
            (reached.mark.ms, reached.position(EndpointId(0)), reached.position(EndpointId(9))),
            (7, 10, 0),
            "where the first came first"
        );
        for number in 3..100 {
            for from in [0, 1] {
                let _ = come(&mut tides, from, tide(number, number, number - 1));
            }
        }
        assert!(tides.begun.len() <= 2, "what is over is forgotten");
    }
}
