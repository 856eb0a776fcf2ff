//! How a shard's thread comes to rest before a reload, is written down, and how it goes on: in the process that this one becomes, or, when there is no such process, here. The
//! thread stays in one call all the while: no socket, poll or task is dropped, and whatever the kernel has to tell is still told afterwards.

use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, RawFd};

use super::{Driver, Socket, Token, sys};
use crate::ids::LinkKey;
use crate::shard::thaw::{Portion, Thawed};

/// What a resting shard is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Handle what has come from others, and say whether anything is left. Nothing is read from clients.
    Round {
        /// Go on without what others have not answered.
        is_last: bool,
    },
    /// Write down what there is.
    Freeze,
    /// Go on as before.
    Resume,
}

/// What it says to that.
#[derive(Debug)]
pub(crate) enum Report {
    /// True exactly when nothing is under way here and no parcel has come or gone.
    Rests(bool),
    /// What there is.
    Frozen(Part),
}

/// One shard, written down.
#[derive(Debug)]
pub(crate) struct Part {
    /// A [`crate::shard::frozen::FrozenShard`].
    pub(crate) bytes: Vec<u8>,
    pub(crate) listeners: Vec<RawFd>,
}

impl Driver {
    /// Rests until told to go on. An end of the orders is such a word: whoever gave them is gone.
    pub(super) fn rest(&mut self) {
        self.resting = true;
        while let Ok(order) = self.orders.recv() {
            let report = match order {
                Order::Round { is_last } => Report::Rests(self.round(is_last)),
                Order::Freeze => self.freeze(),
                Order::Resume => break,
            };
            if self.reports.send((self.id, report)).is_err() {
                break;
            }
        }
        if std::mem::take(&mut self.stays_open) {
            self.keep_open(false);
        }
        self.resting = false;
    }

    fn round(&mut self, is_last: bool) -> bool {
        self.has_moved_parcels = false;
        let now = self.now();
        if is_last {
            self.shard.wait_no_longer(now);
        }
        let rests = self.shard.come_to_rest(now);
        self.turn();
        // What the turn has brought may be something to do.
        rests && !self.has_moved_parcels && !self.outlets.is_pending() && self.shard.come_to_rest(self.now())
    }

    fn freeze(&mut self) -> Report {
        // Each shard for its own, because a system call a socket takes a while.
        self.keep_open(true);
        self.stays_open = true;
        let socket = |key: LinkKey| {
            let socket = self.sockets.get(key.slot as usize)?.as_ref()?;
            (socket.key == key).then(|| socket.stream.as_raw_fd())
        };
        let bytes = self.shard.freeze(socket).encode();
        Report::Frozen(Part { bytes, listeners: self.listeners.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect() })
    }

    /// Says whether the sockets stay open when the process is replaced.
    fn keep_open(&self, stay: bool) {
        self.sockets.iter().flatten().for_each(|socket| sys::set_close_on_exec(socket.stream.as_raw_fd(), !stay));
    }

    /// Takes over what another process had.
    pub(super) fn thaw(&mut self, portion: Portion) {
        let now = self.now();
        for Thawed { link: key, socket, is_blocked } in self.shard.thaw(now, portion) {
            let slot = key.slot as usize;
            if self.sockets.len() <= slot {
                self.sockets.resize_with(slot + 1, || None);
            }
            let stream = TcpStream::from(sys::adopt(socket));
            let fd = stream.as_raw_fd();
            let watched = self.poller.watch(fd, Token::Link(key));
            self.sockets[slot] = Some(Socket::new(stream, key));
            if watched.is_err() {
                self.shard.handle_end(now, key);
            } else if is_blocked {
                self.poller.watch_writable(fd, key);
            }
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.note_fresh();
        }
        self.poller.submit();
    }
}
