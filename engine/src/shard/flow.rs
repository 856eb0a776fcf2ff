//! What flows through a shard and out of it: where parcels go, what waits for answers, what is queued for which link.

use std::collections::VecDeque;
use std::rc::Rc;

use super::hold::Held;
use super::links::{Conn, Link, State};
use super::membership::Membership;
use super::outbox::Spares;
use super::parcel::Parcel;
use super::table::Table;
use super::{Command, Shard};
use crate::frame::Frame;
use crate::ids::{ConnId, LinkKey, Room, ShardId, Sid};
use crate::stats::ShardStats;
use crate::time::Now;

impl Shard {
    /// The live connection of a public id.
    pub(super) fn find(&self, id: Sid) -> Option<u32> {
        // What another host made keeps its id.
        let slot = self.strangers.get(&id).copied().unwrap_or(id.slot());
        (self.shard_of_past(id) == self.id && self.conns.get(slot).is_some_and(|conn| conn.sid == id)).then_some(slot)
    }

    pub(super) fn home_of(&self, room: &Room) -> ShardId {
        self.world.home_of(room)
    }

    /// Sends a parcel to where it belongs.
    pub(super) fn post(&mut self, parcel: Parcel) {
        let to = match &parcel {
            Parcel::Enter(enter) => self.home_of(&enter.room),
            Parcel::Leave(leave) => self.home_of(&leave.room),
            Parcel::Publish(publish) => self.home_of(&publish.room),
            Parcel::Recall { room, .. } => self.home_of(room),
            Parcel::Poll(poll) => self.shard_of_session(poll.sid),
            Parcel::PollAborted { sid, .. } => self.shard_of_session(*sid),
            Parcel::Return(returning) => self.home_of(&returning.room),
            Parcel::GiveUp { room, .. } => self.home_of(room),
            Parcel::PollAnswer { to, .. } => to.shard,
            Parcel::Answered { to, .. } => *to,
            Parcel::Sent(sent) => self.home_of(&Room::message(sent.endpoint, &sent.receipt.message)),
            Parcel::Confirm(confirm) => self.home_of(&confirm.message),
            Parcel::Entered { conn, .. }
            | Parcel::Out { conn, .. }
            | Parcel::Left { conn, .. }
            | Parcel::Recalled { conn, .. }
            | Parcel::Confirmed { conn, .. } => conn.shard,
            // These are made by the control plane or sent with an address.
            Parcel::Cast(_)
            | Parcel::Arrival(_)
            | Parcel::Inspect { .. }
            | Parcel::Tell(_)
            | Parcel::Grant(_)
            | Parcel::Round(_)
            | Parcel::Dissolve { .. }
            | Parcel::Tide { .. }
            | Parcel::Fetched { .. }
            | Parcel::Missed { .. }
            | Parcel::Settle(_)
            | Parcel::Forget { .. }
            | Parcel::Roll(_)
            | Parcel::Registered { .. } => self.id,
            Parcel::Recollected { .. }
            | Parcel::Consulted { .. }
            | Parcel::Blocked { .. }
            | Parcel::Ruled { .. }
            | Parcel::Ask { .. }
            | Parcel::Drain { .. } => self.id,
        };
        self.post_to(to, parcel);
    }

    pub(super) fn post_to(&mut self, to: ShardId, parcel: Parcel) {
        if to == self.id {
            self.loopback.push_back(parcel);
        } else {
            self.outgoing.push_back((to, parcel));
        }
    }

    /// Handles the parcels this shard sent to itself, until there are none.
    pub(super) fn settle(&mut self, now: Now) {
        loop {
            while let Some(parcel) = self.loopback.pop_front() {
                self.receive(now, parcel);
            }
            // Their answers are parcels again, for this shard or another.
            match self.polls.pop() {
                Some(slot) => self.answer_poll(slot),
                None if self.slow.is_empty() => return,
                None => self.cut_slow(now),
            }
        }
    }

    /// The next message of the connection's link waits for one more answer.
    pub(super) fn hold(&mut self, conn: u32) {
        let Some(conn) = self.conns.get_mut(conn) else { return };
        conn.waiting += 1;
        if let Some(link) = self.links.get_mut(conn.link) {
            link.waiting += 1;
        }
    }

    /// One of the answers has come. A connection that has ended meanwhile took its share off the link then.
    pub(super) fn release(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut_of(id.slot, id.generation) else { return };
        conn.waiting -= 1;
        let link = conn.link;
        self.unwait(link, 1);
    }

    /// The link waits for so many answers less.
    pub(super) fn unwait(&mut self, slot: u32, answers: u32) {
        let Some(link) = self.links.get_mut(slot).filter(|_| answers > 0) else { return };
        link.waiting -= answers;
        if link.waiting == 0 {
            link.resuming = true;
            let uncorked = std::mem::take(&mut link.corked);
            self.commands.push_back(Command::Resume(LinkKey { slot, generation: link.generation }));
            if uncorked {
                self.mark_dirty(slot);
            }
        }
    }

    /// Queues a frame for one link.
    pub(super) fn push(&mut self, now: Now, slot: u32, frame: Frame) {
        self.push_shared(slot, Rc::new(frame));
        self.cut_slow(now);
    }

    /// Queues a frame.
    pub(super) fn push_shared(&mut self, slot: u32, frame: Rc<Frame>) {
        self.push_cast(slot, frame, false);
    }

    /// Queues a frame that many get; `holds`: it may wait for further ones.
    pub(super) fn push_cast(&mut self, slot: u32, frame: Rc<Frame>, holds: bool) {
        self.split().1.push(slot, frame, holds);
    }

    /// What a walk along a room's members needs, apart from each other: who they are, where frames are queued, and their connections.
    pub(super) fn split(&mut self) -> (&Membership, Queues<'_>, &Table<Conn>) {
        let Shard { membership, conns, links, spares, stats, slow, dirty, polls, held, world, .. } = self;
        let bytes_max = world.config.limits.outbox_bytes;
        (membership, Queues { links, spares, stats, slow, dirty, polls, held, bytes_max }, conns)
    }

    pub(super) fn mark_dirty(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot) else { return };
        list_dirty(link, slot, &mut self.dirty, &mut self.polls);
    }

    pub(super) fn cut_slow(&mut self, now: Now) {
        while let Some(slot) = self.slow.pop() {
            self.too_slow(now, slot);
        }
    }

    /// Makes sure that the link's deadlines are looked at then, or earlier.
    pub(super) fn arm(&mut self, slot: u32, at_ms: u64) {
        if let Some(link) = self.links.get_mut(slot)
            && at_ms < link.alarm_ms
        {
            link.alarm_ms = at_ms;
            self.wheel.arm(slot, link.generation, at_ms);
        }
    }
}

/// What queueing a frame reads and changes.
pub(super) struct Queues<'s> {
    links: &'s mut Table<Link>,
    spares: &'s mut Spares,
    stats: &'s ShardStats,
    slow: &'s mut Vec<u32>,
    dirty: &'s mut VecDeque<u32>,
    polls: &'s mut Vec<u32>,
    held: &'s mut Held,
    bytes_max: usize,
}

impl Queues<'_> {
    /// Queues a frame for one link, which is looked for once; `holds`: it may wait for further ones. A link that is over its bound goes on the list of slow
    /// ones.
    pub(super) fn push(&mut self, slot: u32, frame: Rc<Frame>, holds: bool) {
        let Some(link) = self.links.get_mut(slot) else { return };
        if matches!(link.state, State::Closing { .. }) {
            return;
        }
        let frame = match &link.state {
            State::SocketIo(socket) if frame.has_attachments() && socket.rare().old.is_some() && !link.is_polling() => {
                Rc::new(frame.marked())
            }
            _ => frame,
        };
        self.stats.outbox_bytes.add(frame.bytes().len() as u64);
        link.outbox.push(frame, self.spares);
        // A session whose client does not poll is a reader that reads nothing.
        let unread = link.polling.as_ref().is_some_and(|polling| polling.poll.is_none() && !polling.is_over);
        if link.outbox.blocked || unread {
            if link.outbox.is_over(self.bytes_max) {
                self.slow.push(slot);
            }
        } else if holds && !link.is_polling() {
            self.held.list(link, slot);
        } else {
            list_dirty(link, slot, self.dirty, self.polls);
        }
    }
}

/// Lists a link that has something to write.
fn list_dirty(link: &mut Link, slot: u32, dirty: &mut VecDeque<u32>, polls: &mut Vec<u32>) {
    if link.is_polling() {
        // Without a poll there is nobody to tell; the next one looks for itself.
        if link.polling.as_ref().is_some_and(|polling| polling.poll.is_some()) {
            polls.push(slot);
        }
    } else if !link.outbox.dirty && !link.corked {
        link.outbox.dirty = true;
        dirty.push_back(slot);
    }
}
