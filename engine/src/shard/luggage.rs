//! Links that change shards, because what their client wants to go on with lives there. A WebSocket takes its socket along. A long-polling
//! session has none; its id goes on naming the shard where it began, which from then on shows its requests the way.

use std::fmt;
use std::net::SocketAddr;

use super::links::{Heartbeat, Link, Polling, SocketIoLink, State};
use super::outbox::Outbox;
use super::parcel::Parcel;
use super::rate::Rate;
use super::{Command, Shard};
use crate::frame::Frame;
use crate::ids::{LinkKey, ShardId, Sid};
use crate::limits::LINKS_PER_SHARD_MAX;
use crate::time::Now;
use crate::wire::ws;

/// Everything of a Socket.IO link but its socket. Its debug form shows nothing of it.
pub struct Luggage {
    socket: Box<SocketIoLink>,
    /// Not sent yet.
    frames: Vec<Frame>,
    /// Bytes of the first that are.
    written: usize,
    rate: Rate,
    heartbeat: Heartbeat,
    ticket: Option<super::address::Ticket>,
    peer: SocketAddr,
    /// Of a long-polling session.
    polling: Option<Box<Polling>>,
}

impl fmt::Debug for Luggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Luggage").field("frames", &self.frames.len()).finish_non_exhaustive()
    }
}

impl Luggage {
    /// Bytes of messages it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.bytes().len()).sum::<usize>() + self.polling.as_ref().map_or(0, |it| it.inbox.bytes())
    }
}

impl Shard {
    /// Sends a link that has no connection to another shard, where `packet` is looked at again. False when it cannot go. While a
    /// WebSocket is taking a session over, the packet waits for that to end.
    pub(super) fn send_link(&mut self, slot: u32, to: ShardId, packet: &str) -> bool {
        let Some(link) = self.links.get_mut(slot) else { return false };
        if let Some(polling) = link.polling.as_mut().filter(|polling| !polling.is_over && polling.probers > 0) {
            polling.held = Some(packet.into());
            link.waiting += 1;
            return true;
        }
        let is_polling = link.is_polling();
        let over = State::Closing { deadline_ms: u64::MAX, peer_done: true, impatient: false };
        let State::SocketIo(mut socket) = std::mem::replace(&mut link.state, over) else { return false };
        (socket.has_moved, socket.has_tried) = (true, false);
        let unsent = link.outbox.bytes();
        let (frames, written) = link.outbox.pack();
        let (rate, heartbeat, peer) = (link.rate, std::mem::replace(&mut link.heartbeat, Heartbeat::NEVER), link.peer.into());
        let mut polling = link.polling.take();
        let (ticket, key) = (link.ticket.take(), LinkKey { slot, generation: link.generation });
        if !is_polling {
            // Nothing more is read until the driver has taken the socket.
            link.waiting += 1;
        }
        self.stats.outbox_bytes.sub(unsent as u64);
        // What came by POST comes before what the WebSocket says that has taken the session over; the packet is the first of all.
        let read = match polling.as_mut() {
            Some(polling) => {
                polling.inbox.push_front(packet.to_owned());
                Vec::new()
            }
            None => as_read(packet),
        };
        let sid = polling.as_ref().map(|polling| polling.sid);
        let luggage = Box::new(Luggage { socket, frames, written, rate, heartbeat, ticket, peer, polling });
        match sid {
            Some(sid) if is_polling => {
                self.moved_away.insert(sid, to);
                self.post_to(to, Parcel::Settle(luggage));
                self.finish(slot, false);
            }
            _ => self.commands.push_back(Command::Move { link: key, peer, to, read, luggage: Some(luggage) }),
        }
        true
    }

    /// The upgrade for whose end a packet waited is over.
    pub(super) fn go_on_after_upgrade(&mut self, now: Now, slot: u32) {
        let polling = self.links.get_mut(slot).and_then(|link| link.polling.as_mut());
        if let Some(packet) = polling.filter(|polling| polling.is_over || polling.probers == 0).and_then(|polling| polling.held.take()) {
            self.unwait(slot, 1);
            self.take_packet(now, slot, &packet);
        }
    }

    /// A link of another shard; what was read of it, maybe nothing, is given to [`Self::handle_bytes`] next. `None` when the shard's table is
    /// full.
    pub fn handle_arrival(&mut self, now: Now, luggage: Luggage) -> Option<LinkKey> {
        let Luggage { socket, frames, written, rate, heartbeat, ticket, peer, polling } = luggage;
        // It was let in where it came from.
        let _ = self.world.addresses.enter();
        let outbox = Outbox::unpack(frames, written);
        let bytes = outbox.bytes() as u64;
        let session = polling.as_ref().filter(|polling| !polling.is_over).map(|polling| polling.sid);
        let guest = session.filter(|sid| self.shard_of_past(*sid) != self.id);
        let inserted = self.links.insert(LINKS_PER_SHARD_MAX, |_, generation| Link {
            state: State::SocketIo(socket),
            outbox,
            heartbeat,
            ticket,
            polling,
            guest: guest.map(Box::new),
            ..Link::new(generation, peer, rate)
        });
        let Some((slot, generation)) = inserted else {
            self.world.addresses.leave();
            if let Some(ticket) = ticket {
                self.world.addresses.close(ticket);
            }
            return None;
        };
        self.stats.outbox_bytes.add(bytes);
        if let Some(sid) = guest {
            self.guests.insert(sid, slot);
        }
        self.mark_dirty(slot);
        self.arm_next(now, slot);
        self.drain_inbox(now, slot);
        Some(LinkKey { slot, generation })
    }

    /// A long-polling session of another shard: it lives here from now on.
    pub(super) fn take_in(&mut self, now: Now, luggage: Luggage) {
        let sid = luggage.polling.as_ref().map(|polling| polling.sid);
        let poll = luggage.polling.as_ref().and_then(|polling| polling.poll);
        if self.handle_arrival(now, luggage).is_none() {
            if let Some(poll) = poll {
                self.respond_gone(poll);
            }
            if let Some(sid) = sid {
                self.post_to(self.shard_of_past(sid), Parcel::Forget { sid });
            }
        }
    }

    /// The shard on which a session lives.
    pub(super) fn shard_of_session(&self, sid: Sid) -> ShardId {
        if self.guests.contains_key(&sid) {
            return self.id;
        }
        self.moved_away.get(&sid).copied().unwrap_or_else(|| self.shard_of_past(sid))
    }

    /// A link ends: if it was a session that began elsewhere, that shard need not show the way any longer.
    pub(super) fn leave_guesthouse(&mut self, guest: Option<Sid>) {
        if let Some(sid) = guest {
            self.guests.remove(&sid);
            self.post_to(self.shard_of_past(sid), Parcel::Forget { sid });
        }
    }
}

/// A packet as its client would have sent it, masked with zeros.
fn as_read(packet: &str) -> Vec<u8> {
    let (mut header, used) = ws::header(1, packet.len());
    header[1] |= 0x80;
    [&header[..used], &[0; 4], packet.as_bytes()].concat()
}
