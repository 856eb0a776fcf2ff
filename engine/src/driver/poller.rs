//! How a shard learns that a socket is ready, and how it sends many writes at once: a second io_uring beside monoio's, or epoll where the
//! kernel forbids io_uring. One file, so that it is the only one to know.
//!
//! On the ring a link costs one multishot poll: no task and no buffer per connection. Writes are batches of `send` entries that the
//! kernel completes within the one `io_uring_enter` that submits them, because each says `MSG_DONTWAIT`: nothing is ever in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use super::sys;
use crate::config::Io;
use crate::ids::LinkKey;
use crate::limits::EVENTS_PER_TURN;
use crate::shard::Span;

/// What a readiness event is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    Link(LinkKey),
    Listener,
    Inbox,
    Alarm,
}

/// Something is ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has ended its direction, or the socket has failed: read until that shows.
    pub(crate) ended: bool,
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) link: LinkKey,
    pub(crate) socket: RawFd,
    pub(crate) span: Span,
}

const KIND_READ: u64 = 0;
const KIND_WRITE: u64 = 1;
const KIND_SEND: u64 = 2;
const KIND_OTHER: u64 = 3;
const SLOT_LISTENER: u32 = 0;
const SLOT_INBOX: u32 = 1;
const SLOT_CANCEL: u32 = 2;
const SLOT_ALARM: u32 = 3;
const GENERATION_MASK: u32 = 0x3fff_ffff;

/// Kind in the upper 2 bits, 30 bits of the generation, slot in the lower 32.
fn pack(kind: u64, slot: u32, generation: u32) -> u64 {
    kind << 62 | u64::from(generation & GENERATION_MASK) << 32 | u64::from(slot)
}

/// The user data of the poll that tells of bytes or connections.
fn data_of(token: Token) -> u64 {
    match token {
        Token::Listener => pack(KIND_OTHER, SLOT_LISTENER, 0),
        Token::Inbox => pack(KIND_OTHER, SLOT_INBOX, 0),
        Token::Alarm => pack(KIND_OTHER, SLOT_ALARM, 0),
        Token::Link(key) => pack(KIND_READ, key.slot, key.generation),
    }
}

fn key_of(data: u64) -> LinkKey {
    LinkKey { slot: data as u32, generation: (data >> 32) as u32 & GENERATION_MASK }
}

/// True exactly when a key that went through [`pack`] is this one.
pub(crate) fn same(packed: LinkKey, key: LinkKey) -> bool {
    packed.slot == key.slot && packed.generation == key.generation & GENERATION_MASK
}

/// Readiness and writes of one shard.
pub(crate) enum Poller {
    Ring(Box<Ring>),
    Epoll(Epoll),
}

impl Poller {
    /// The kernel interface that was asked for, or epoll with the reason why it had to be.
    pub(crate) fn choose(io: Io) -> io::Result<(Io, Option<String>)> {
        match io {
            Io::Epoll => Ok((Io::Epoll, None)),
            Io::Uring => Ring::new().map(|_| (Io::Uring, None)),
            Io::Auto => Ok(match Ring::new() {
                Ok(_) => (Io::Uring, None),
                Err(error) => {
                    (Io::Epoll, Some(format!("io_uring is not available ({error}; see sysctl kernel.io_uring_disabled): using epoll")))
                }
            }),
        }
    }

    /// `io` has been through [`Self::choose`].
    pub(crate) fn new(io: Io) -> io::Result<Poller> {
        if io == Io::Epoll { Epoll::new().map(Poller::Epoll) } else { Ring::new().map(|ring| Poller::Ring(Box::new(ring))) }
    }

    /// Becomes readable when there are events.
    pub(crate) fn fd(&self) -> RawFd {
        match self {
            Poller::Ring(ring) => ring.ring.as_raw_fd(),
            Poller::Epoll(epoll) => epoll.fd.as_raw_fd(),
        }
    }

    /// Tells of `token` whenever bytes (or connections) arrive at `fd`, until [`Self::forget`].
    pub(crate) fn watch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        match self {
            Poller::Ring(ring) => ring.watch(fd, token),
            Poller::Epoll(epoll) => epoll.watch(fd, token),
        }
    }

    /// Tells once that the link's socket takes bytes again.
    pub(crate) fn watch_writable(&mut self, fd: RawFd, link: LinkKey) {
        if let Poller::Ring(ring) = self {
            ring.watch_writable(fd, link);
        }
        // epoll tells each time it becomes so.
    }

    /// No longer watches `fd`, which is `token`'s. Call [`Self::submit`] before closing it: a poll that is still armed keeps the
    /// connection open.
    pub(crate) fn forget(&mut self, fd: RawFd, token: Token) {
        match self {
            Poller::Ring(ring) => ring.forget(token),
            Poller::Epoll(epoll) => sys::epoll_remove(epoll.fd.as_raw_fd(), fd),
        }
    }

    /// Lets the kernel see what was asked for.
    pub(crate) fn submit(&mut self) {
        if let Poller::Ring(ring) = self {
            ring.submit();
        }
    }

    /// True exactly when [`Self::take`] has something that [`Self::fd`] will not tell of: it came while a batch was being sent.
    pub(crate) fn has_early(&self) -> bool {
        match self {
            Poller::Ring(ring) => !ring.early.is_empty() || !ring.lapsed.is_empty(),
            Poller::Epoll(_) => false,
        }
    }

    /// Waits in the kernel until there may be an event. False where that is not to be had: then [`Self::fd`] is to be waited for.
    pub(crate) fn wait(&mut self) -> bool {
        match self {
            Poller::Ring(ring) => {
                // What came with a read or a batch of this turn is there already, and needs no call.
                if ring.ring.completion().is_empty() {
                    ring.wait_for_one();
                }
                true
            }
            Poller::Epoll(_) => false,
        }
    }

    /// Appends at most [`EVENTS_PER_TURN`] events.
    pub(crate) fn take(&mut self, events: &mut Vec<Event>) {
        match self {
            Poller::Ring(ring) => ring.take(events),
            Poller::Epoll(epoll) => epoll.take(events),
        }
    }

    /// Makes all writes at once. `results[i]` is what became of `writes[i]`: bytes taken, or a negative errno.
    pub(crate) fn send(&mut self, writes: &[Write], results: &mut Vec<i32>) {
        results.clear();
        match self {
            Poller::Ring(ring) => ring.send(writes, results),
            Poller::Epoll(_) => results.extend(writes.iter().map(|write| sys::send(write.socket, write.span))),
        }
    }
}

/// What is armed for one socket: its descriptor, the generation of its link, by which its polls are named, and which of them there are.
#[derive(Clone, Copy)]
struct Watched {
    fd: RawFd,
    generation: u32,
    reads: bool,
    writes: bool,
}

impl Watched {
    const NOTHING: Watched = Watched { fd: -1, generation: 0, reads: false, writes: false };

    /// True exactly when these are polls of that use of the slot.
    fn is_of(&self, token: Token) -> bool {
        match token {
            Token::Link(key) => self.generation & GENERATION_MASK == key.generation & GENERATION_MASK,
            Token::Listener | Token::Inbox | Token::Alarm => true,
        }
    }
}

/// The second ring of a shard.
pub(crate) struct Ring {
    ring: io_uring::IoUring,
    /// Events that came while the results of a batch were read.
    early: VecDeque<(u64, i32, u32)>,
    /// Multishot polls that the kernel ended; armed again with the next submission.
    lapsed: Vec<u64>,
    /// By slot of the link.
    sockets: Vec<Watched>,
    listener: Watched,
    inbox: Watched,
    alarm: Watched,
}

impl Ring {
    /// Only COOP_TASKRUN: with plain flags completions interrupt the thread (two to three times the CPU), with DEFER_TASKRUN the
    /// ring's descriptor does not become readable. The large completion queue keeps multishot polls from being ended by overflow.
    fn new() -> io::Result<Ring> {
        let ring = io_uring::IoUring::builder().setup_coop_taskrun().setup_cqsize(16_384).dontfork().build(1_024)?;
        Ok(Ring {
            ring,
            early: VecDeque::new(),
            lapsed: Vec::new(),
            sockets: Vec::new(),
            listener: Watched::NOTHING,
            inbox: Watched::NOTHING,
            alarm: Watched::NOTHING,
        })
    }

    fn watch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let generation = if let Token::Link(key) = token { key.generation } else { 0 };
        *self.place(token) = Watched { fd, generation, reads: true, writes: false };
        self.arm(fd, data_of(token));
        Ok(())
    }

    fn place(&mut self, token: Token) -> &mut Watched {
        match token {
            Token::Listener => &mut self.listener,
            Token::Inbox => &mut self.inbox,
            Token::Alarm => &mut self.alarm,
            Token::Link(key) => {
                let slot = key.slot as usize;
                if self.sockets.len() <= slot {
                    self.sockets.resize(slot + 1, Watched::NOTHING);
                }
                &mut self.sockets[slot]
            }
        }
    }

    fn arm(&mut self, fd: RawFd, data: u64) {
        let flags = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let poll = io_uring::opcode::PollAdd::new(io_uring::types::Fd(fd), flags).multi(true).build();
        self.push(&poll.user_data(data));
    }

    fn watch_writable(&mut self, fd: RawFd, link: LinkKey) {
        let place = self.place(Token::Link(link));
        if !place.is_of(Token::Link(link)) || std::mem::replace(&mut place.writes, true) {
            // Armed already. A second one of the same name would outlive the first one's removal.
            return;
        }
        let poll = io_uring::opcode::PollAdd::new(io_uring::types::Fd(fd), libc::POLLOUT as u32).build();
        self.push(&poll.user_data(pack(KIND_WRITE, link.slot, link.generation)));
    }

    /// Polls are named by their user data: the kernel hashes that, and would look through all polls of the ring for a descriptor. They are
    /// cancelled and not removed: a removal is refused (EALREADY) while the poll has something to tell that it has not told yet, and the
    /// poll of a peer that never stops talking would keep the connection open for good.
    fn forget(&mut self, token: Token) {
        let watched = std::mem::replace(self.place(token), Watched::NOTHING);
        let read = watched.reads.then(|| data_of(token));
        let write = if let Token::Link(key) = token { Some(pack(KIND_WRITE, key.slot, key.generation)) } else { None };
        for data in read.into_iter().chain(write.filter(|_| watched.writes)) {
            self.push(&io_uring::opcode::AsyncCancel::new(data).build().user_data(pack(KIND_OTHER, SLOT_CANCEL, 0)));
        }
    }

    #[expect(unsafe_code, reason = "a submission entry is an unchecked promise about what it points to")]
    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        if self.ring.submission().is_full() {
            self.submit();
        }
        // SAFETY: polls and cancels point to nothing. A send points to a span whose bytes stay in place until its completion has been
        // read, which `send` does before it returns. After a submission the queue has room, so the push cannot fail.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "the submission queue was just emptied");
    }

    fn submit(&mut self) {
        let queue = self.ring.submission();
        if queue.is_empty() && !queue.cq_overflow() {
            return;
        }
        drop(queue);
        loop {
            match self.ring.submit() {
                Ok(_) => return,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The completion queue is full: what it holds is taken first.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => self.stash(),
                Err(error) => panic!("io_uring_enter: {error}"),
            }
        }
    }

    fn stash(&mut self) {
        let early = &mut self.early;
        early.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
    }

    fn take(&mut self, events: &mut Vec<Event>) {
        for data in std::mem::take(&mut self.lapsed) {
            self.rearm(data);
        }
        if self.ring.submission().cq_overflow() {
            self.submit();
        }
        for _ in 0..EVENTS_PER_TURN {
            let next = self.early.pop_front().or_else(|| {
                let entry = self.ring.completion().next()?;
                Some((entry.user_data(), entry.result(), entry.flags()))
            });
            let Some((data, result, flags)) = next else { break };
            self.note(data, result, flags, events);
        }
    }

    fn note(&mut self, data: u64, result: i32, flags: u32, events: &mut Vec<Event>) {
        let slot = data as u32;
        let token = match (data >> 62, slot) {
            (KIND_READ | KIND_WRITE, _) => Token::Link(key_of(data)),
            (KIND_OTHER, SLOT_LISTENER) => Token::Listener,
            (KIND_OTHER, SLOT_INBOX) => Token::Inbox,
            (KIND_OTHER, SLOT_ALARM) => Token::Alarm,
            _ => return,
        };
        if data >> 62 == KIND_WRITE {
            let place = self.place(token);
            if place.is_of(token) {
                place.writes = false;
            }
            let writable = result != -libc::ECANCELED;
            events.push(Event { token, readable: false, writable, ended: false });
            return;
        }
        if !io_uring::cqueue::more(flags) && result != -libc::ECANCELED {
            self.lapsed.push(data);
        }
        if result >= 0 {
            let ended = result & i32::from(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0;
            events.push(Event { token, readable: true, writable: false, ended });
        }
    }

    /// Arms a poll again that the kernel ended, unless nobody asks for it any more: by then its descriptor may be another socket's.
    fn rearm(&mut self, data: u64) {
        let (watched, token) = match (data >> 62, data as u32) {
            (KIND_READ, slot) => (self.sockets.get(slot as usize).copied().unwrap_or(Watched::NOTHING), Token::Link(key_of(data))),
            (_, SLOT_LISTENER) => (self.listener, Token::Listener),
            (_, SLOT_ALARM) => (self.alarm, Token::Alarm),
            _ => (self.inbox, Token::Inbox),
        };
        if watched.reads && watched.is_of(token) {
            self.arm(watched.fd, data);
        }
    }

    fn send(&mut self, writes: &[Write], results: &mut Vec<i32>) {
        results.resize(writes.len(), 0);
        for (index, write) in writes.iter().enumerate() {
            let len = u32::try_from(write.span.len).unwrap_or(u32::MAX);
            let entry = io_uring::opcode::Send::new(io_uring::types::Fd(write.socket), write.span.start, len)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build();
            self.push(&entry.user_data(pack(KIND_SEND, index as u32, 0)));
        }
        self.submit();
        let mut missing = writes.len();
        loop {
            let early = std::mem::take(&mut self.early);
            for (data, result, flags) in early {
                if data >> 62 == KIND_SEND {
                    results[data as u32 as usize] = result;
                    missing -= 1;
                } else {
                    self.early.push_back((data, result, flags));
                }
            }
            if missing == 0 {
                return;
            }
            let before = self.early.len();
            self.stash();
            if self.early.len() == before {
                // With MSG_DONTWAIT every send completes at once; only an overflown queue still holds a result back.
                self.wait_for_one();
            }
        }
    }

    /// Until something is in the completion queue, or a signal came.
    fn wait_for_one(&mut self) {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => panic!("io_uring_enter: {error}"),
        }
    }
}

/// The fallback.
pub(crate) struct Epoll {
    fd: OwnedFd,
    ready: Vec<libc::epoll_event>,
}

impl Epoll {
    fn new() -> io::Result<Epoll> {
        Ok(Epoll { fd: sys::epoll_create()?, ready: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_TURN] })
    }

    fn watch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        // Edges, as the multishot poll has them: the driver remembers what it has not read to the end.
        let events = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET | if matches!(token, Token::Link(_)) { libc::EPOLLOUT } else { 0 };
        sys::epoll_add(self.fd.as_raw_fd(), fd, events as u32, data_of(token))
    }

    fn take(&mut self, events: &mut Vec<Event>) {
        let count = sys::epoll_poll(self.fd.as_raw_fd(), &mut self.ready).unwrap_or(0);
        for ready in &self.ready[..count] {
            let (data, flags) = (ready.u64, ready.events as i32);
            let token = match (data >> 62, data as u32) {
                (KIND_OTHER, SLOT_LISTENER) => Token::Listener,
                (KIND_OTHER, SLOT_ALARM) => Token::Alarm,
                (KIND_OTHER, _) => Token::Inbox,
                _ => Token::Link(key_of(data)),
            };
            let ended = flags & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
            let readable = flags & libc::EPOLLIN != 0 || ended;
            events.push(Event { token, readable, writable: flags & libc::EPOLLOUT != 0, ended });
        }
    }
}
