//! Copies of the connections' sockets where they outlive the process, so that whoever comes after a crash can say goodbye on them. They lie in the queue of a pair of Unix
//! sockets whose receiving end somebody else holds as well: a descriptor in flight has a number in no process, and lives as long as the queue does. What has ended leaves the queue by
//! being left out when the oldest messages are sent anew. The other side is [`super::farewell`].

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use socket2::{Domain, Socket, Type};

use super::{Driver, sys};
use crate::ids::LinkKey;
use crate::limits::{
    KEEP_AGAIN_MS, KEEP_BUFFER_BYTES, KEEP_EVERY_MS, KEEP_MESSAGES_SPARE, KEEP_NEXT_MS, KEPT_DEAD_MS, KEPT_DEAD_SPARE, KEPT_PER_MESSAGE,
};
use crate::shard::farewell::Farewell;

/// A shard's copies.
pub(crate) struct Keeper {
    near: Socket,
    /// Our own of the receiving end: what has been sent anew is taken out by it.
    far: Socket,
    /// What is in the queue, oldest first.
    messages: VecDeque<Box<[LinkKey]>>,
    /// Sockets in it, and those of them whose connections are over.
    kept: usize,
    dead: usize,
    /// Messages that are still to be sent anew.
    to_renew: usize,
    /// True exactly when there may be sockets whose turn has not come.
    has_fresh: bool,
    /// The slot that is looked at next.
    next_slot: usize,
    due_ms: u64,
    /// When the dead leave although they are few; `u64::MAX` while there are none.
    renew_ms: u64,
}

/// One batch of copies.
#[derive(Default)]
struct Batch {
    keys: Vec<LinkKey>,
    sockets: Vec<RawFd>,
    words: Vec<u8>,
    /// How many of the oldest messages are in it with all that lives of them.
    renewed: usize,
}

impl Batch {
    fn add(&mut self, key: LinkKey, socket: RawFd, word: Farewell) {
        self.keys.push(key);
        self.sockets.push(socket);
        self.words.push(word as u8);
    }
}

impl Keeper {
    /// A keeper, and the end of its queue that is to be given to whoever outlives this process.
    pub(crate) fn new() -> io::Result<(Keeper, OwnedFd)> {
        let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        // The kernel gives what the machine allows (net.core.wmem_max).
        near.set_send_buffer_size(KEEP_BUFFER_BYTES)?;
        let end = far.try_clone()?.into();
        let keeper = Keeper {
            near,
            far,
            messages: VecDeque::new(),
            kept: 0,
            dead: 0,
            to_renew: 0,
            has_fresh: false,
            next_slot: 0,
            due_ms: 0,
            renew_ms: u64::MAX,
        };
        Ok((keeper, end))
    }

    /// There is a socket that may be kept.
    pub(super) fn note_fresh(&mut self) {
        self.has_fresh = true;
    }

    /// A socket that is in the queue is let go of.
    pub(super) fn note_end(&mut self, now_ms: u64) {
        self.dead += 1;
        self.renew_ms = self.renew_ms.min(now_ms + KEPT_DEAD_MS);
    }

    /// How long nothing is to be done here, milliseconds.
    pub(super) fn rest_ms(&self, now_ms: u64) -> u64 {
        let due = if self.has_fresh || self.to_renew > 0 || self.is_mostly_dead() { self.due_ms } else { self.renew_ms };
        due.saturating_sub(now_ms)
    }

    fn living(&self) -> usize {
        self.kept - self.dead
    }

    fn is_mostly_dead(&self) -> bool {
        self.dead > KEPT_DEAD_SPARE.max(self.living() / 2)
    }

    /// Begins to send all anew when too much of it is dead, for too long, or scattered over too many messages.
    fn look_at_dead(&mut self, now_ms: u64) {
        let messages_max = 2 * self.living().div_ceil(KEPT_PER_MESSAGE) + KEEP_MESSAGES_SPARE;
        if self.is_mostly_dead() || self.messages.len() > messages_max || self.renew_ms <= now_ms {
            self.to_renew = self.messages.len();
            self.renew_ms = u64::MAX;
        }
    }

    /// The oldest message leaves the queue: the descriptors for which no place is given are closed by the kernel.
    fn forget_oldest(&mut self) -> Box<[LinkKey]> {
        let mut byte = [MaybeUninit::uninit()];
        let taken = self.far.recv(&mut byte);
        debug_assert!(taken.is_ok(), "every message in the queue is listed, and nobody else takes them while this process lives");
        let keys = self.messages.pop_front().unwrap_or_default();
        self.kept -= keys.len();
        self.to_renew = self.to_renew.saturating_sub(1);
        keys
    }
}

/// Ends a connection of which there may be a copy, as closing its last descriptor would. The copy alone would keep it open.
pub(super) fn end(stream: &TcpStream, resets: bool) {
    if resets {
        sys::disconnect(stream.as_raw_fd());
    } else {
        // Who is gone already has nothing to be told.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Driver {
    /// Puts a batch of copies into the queue when it is time to.
    pub(super) fn keep(&mut self, now_ms: u64) {
        let Some(mut keeper) = self.keeper.take_if(|keeper| keeper.rest_ms(now_ms) == 0) else { return };
        if keeper.to_renew == 0 {
            keeper.look_at_dead(now_ms);
        }
        let batch = self.gather(&mut keeper);
        let has_more = keeper.to_renew > batch.renewed || batch.keys.len() == KEPT_PER_MESSAGE;
        if batch.keys.is_empty() {
            self.take_out(&mut keeper, batch.renewed);
        } else {
            match sys::send_with(keeper.near.as_raw_fd(), &batch.words, &batch.sockets) {
                Ok(()) => self.note_kept(&mut keeper, batch),
                Err(_) => self.make_room(&mut keeper, now_ms),
            }
        }
        keeper.due_ms = keeper.due_ms.max(now_ms + if has_more { KEEP_NEXT_MS } else { KEEP_EVERY_MS });
        self.stats.kept_sockets.set(keeper.living() as u64);
        self.keeper = Some(keeper);
    }

    /// What lives of the oldest messages, where these are to be sent anew, and as many fresh ones as find place.
    fn gather(&self, keeper: &mut Keeper) -> Batch {
        let mut batch = Batch::default();
        for message in keeper.messages.iter().take(keeper.to_renew) {
            let living = message.iter().filter_map(|key| Some((*key, self.kept_socket(*key)?)));
            if batch.keys.len() + living.clone().count() > KEPT_PER_MESSAGE {
                break;
            }
            living.for_each(|(key, socket)| batch.add(key, socket, self.shard.farewell(key).unwrap_or(Farewell::None)));
            batch.renewed += 1;
        }
        if keeper.has_fresh {
            self.gather_fresh(keeper, &mut batch);
        }
        batch
    }

    fn gather_fresh(&self, keeper: &mut Keeper, batch: &mut Batch) {
        keeper.has_fresh = false;
        while let Some(place) = self.sockets.get(keeper.next_slot) {
            if batch.keys.len() == KEPT_PER_MESSAGE {
                keeper.has_fresh = true;
                return;
            }
            keeper.next_slot += 1;
            let Some(socket) = place.as_ref().filter(|socket| !socket.kept) else { continue };
            match self.shard.farewell(socket.key) {
                Some(word) => batch.add(socket.key, socket.stream.as_raw_fd(), word),
                // It may become a WebSocket yet.
                None => keeper.has_fresh = true,
            }
        }
        keeper.next_slot = 0;
    }

    /// The descriptor of a link of the queue; `None` when it is over.
    fn kept_socket(&self, key: LinkKey) -> Option<RawFd> {
        let socket = self.sockets.get(key.slot as usize)?.as_ref()?;
        (socket.key == key && socket.kept).then(|| socket.stream.as_raw_fd())
    }

    fn note_kept(&mut self, keeper: &mut Keeper, batch: Batch) {
        self.take_out(keeper, batch.renewed);
        for key in &batch.keys {
            if let Some(Some(socket)) = self.sockets.get_mut(key.slot as usize) {
                socket.kept = true;
            }
        }
        keeper.kept += batch.keys.len();
        keeper.messages.push_back(batch.keys.into());
    }

    /// The oldest messages have been sent anew, or nothing of them lives.
    fn take_out(&self, keeper: &mut Keeper, messages: usize) {
        for _ in 0..messages {
            let keys = keeper.forget_oldest();
            keeper.dead -= keys.iter().filter(|key| self.is_over(**key)).count();
        }
    }

    fn is_over(&self, key: LinkKey) -> bool {
        !matches!(self.sockets.get(key.slot as usize), Some(Some(socket)) if socket.key == key)
    }

    /// The kernel takes no more: too much is in the queue, or in flight for this user. What is being sent anew makes room for itself, and is looked for again.
    fn make_room(&mut self, keeper: &mut Keeper, now_ms: u64) {
        self.stats.keep_refused.add(1);
        if keeper.to_renew > 0 {
            let keys = keeper.forget_oldest();
            for key in keys {
                match self.sockets.get_mut(key.slot as usize) {
                    Some(Some(socket)) if socket.key == key => socket.kept = false,
                    _ => keeper.dead -= 1,
                }
            }
        } else if keeper.dead > 0 {
            keeper.to_renew = keeper.messages.len();
        } else {
            keeper.due_ms = now_ms + KEEP_AGAIN_MS;
        }
        // From the beginning, so that those of this batch are found.
        (keeper.has_fresh, keeper.next_slot) = (true, 0);
    }
}
