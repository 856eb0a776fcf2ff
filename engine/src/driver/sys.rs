//! The system calls that the standard library has no safe word for. Each is one call with its argument checked here, and nothing else.
#![expect(unsafe_code, reason = "system calls without a safe wrapper in std, socket2 or monoio")]

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use crate::limits::KEPT_PER_MESSAGE;
use crate::shard::Span;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An eventfd, non-blocking and closed on exec.
pub(crate) fn eventfd(initial: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    owned(unsafe { libc::eventfd(initial, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// A timer that becomes readable when it is over, non-blocking and closed on exec.
pub(crate) fn timer() -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })
}

/// Sets a timer of [`timer`] to be over in so many nanoseconds, at least one; whether it was over before is forgotten.
pub(crate) fn set_timer(timer: RawFd, ns: u64) {
    let ns = ns.max(1);
    let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value = libc::timespec { tv_sec: (ns / 1_000_000_000) as libc::time_t, tv_nsec: (ns % 1_000_000_000) as libc::c_long };
    let setting = libc::itimerspec { it_interval: once, it_value: value };
    // SAFETY: `setting` outlives the call, which writes nothing because the old setting is not asked for.
    let result = unsafe { libc::timerfd_settime(timer, 0, &raw const setting, std::ptr::null_mut()) };
    debug_assert!(result == 0, "the descriptor is a timer's, and the nanoseconds are below a second");
}

/// A listening socket that was passed to this process, by a descriptor of its own: non-blocking, and closed on exec as the number it came by is from now on.
/// It is a copy, so that whoever closes that number takes nothing away.
pub(crate) fn inherit(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: sets a flag of a descriptor by two integers; a number that is none is refused.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: duplicating a descriptor takes two integers; the copy is ours alone.
    let socket = socket2::Socket::from(owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?);
    let is_ip = socket.local_addr()?.as_socket().is_some();
    if !is_ip || socket.r#type()? != socket2::Type::STREAM || !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no TCP socket that listens"));
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Takes a waiting connection of a non-blocking listener; the socket is non-blocking and closed on exec from its first moment.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    // SAFETY: an all-zero `sockaddr_storage` is a valid value of that plain C struct.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let address = (&raw mut storage).cast::<libc::sockaddr>();
    // SAFETY: `address` points to `len` writable bytes that outlive the call.
    let socket = owned(unsafe { libc::accept4(listener.as_raw_fd(), address, &raw mut len, flags) })?;
    // SAFETY: the kernel has filled in an address of the family it names.
    let peer = unsafe { socket2::SockAddr::new(std::mem::transmute::<libc::sockaddr_storage, socket2::SockAddrStorage>(storage), len) };
    let peer = peer.as_socket().ok_or_else(|| io::Error::other("a peer without an IP address"))?;
    Ok((socket.into(), peer))
}

/// Sends a span without waiting: bytes taken, or a negative errno, as a completion of the ring would say it.
pub(crate) fn send(socket: RawFd, span: Span) -> i32 {
    // SAFETY: the caller of the batch keeps the span's bytes in place until all results are told (see `Outbox::next_span`).
    let sent = unsafe { libc::send(socket, span.start.cast(), span.len, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { sent.min(i32::MAX as isize) as i32 }
}

/// An epoll instance, closed on exec.
pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: takes one integer.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// Watches a descriptor for `events`, which come back with `token`.
pub(crate) fn epoll_add(epoll: RawFd, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: `event` outlives the call, which only reads it.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
}

/// No longer watches a descriptor.
pub(crate) fn epoll_remove(epoll: RawFd, fd: RawFd) {
    // SAFETY: the event argument is ignored for this operation and may be null.
    let _ = check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) });
}

/// Fills `events` with what is ready and returns how many, without waiting.
pub(crate) fn epoll_poll(epoll: RawFd, events: &mut [libc::epoll_event]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live slice.
    check(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), events.len() as libc::c_int, 0) }).map(|count| count as usize)
}

/// Lets the calling thread run on one CPU only.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::other("no such CPU"));
    }
    // SAFETY: an all-zero `cpu_set_t` is the empty set; `CPU_SET` stays inside it because `cpu` is below `CPU_SETSIZE`.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: `set` outlives the call, and its size is given.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) }).map(drop)
}

/// Keeps transparent huge pages out of the process.
pub(crate) fn without_huge_pages() {
    // SAFETY: takes integers, and changes with what the kernel backs memory, not what is in it.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// How many descriptors the process may have.
pub(crate) fn descriptors_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call, which only writes it.
    let got = check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) });
    if got.is_ok() { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 }
}

/// A descriptor as the stream type that monoio waits for; only its readiness is ever used.
pub(crate) fn waitable(fd: RawFd) -> io::Result<TcpStream> {
    // SAFETY: duplicating a descriptor takes two integers; the copy is ours alone.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }).map(TcpStream::from)
}

/// Says whether a descriptor is closed when the process is replaced. One that is not open has nothing to be said of.
pub(crate) fn set_close_on_exec(fd: RawFd, closes: bool) {
    // SAFETY: takes three integers and changes a flag of a descriptor.
    let _ = unsafe { libc::fcntl(fd, libc::F_SETFD, if closes { libc::FD_CLOEXEC } else { 0 }) };
}

/// A descriptor that the former process has left to this one, closed on exec from now on.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    set_close_on_exec(fd, true);
    // SAFETY: the number stands in what the former process has written down, once; it kept exactly those descriptors open over `execve`, and
    // nothing in this process owns one of them.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A listening socket that the former process has left, by a copy of its descriptor: should this process not be able to go on, the other is still open.
pub(crate) fn listener(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: duplicating a descriptor takes two integers; the copy is ours alone.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }).map(TcpListener::from)
}

/// Closes what [`waitable`] has given, once nothing waits for it any more and nobody else will close it.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the caller says that the descriptor is open and nobody's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// Sends a message and copies of descriptors. They are in flight then until somebody takes them, or the queue goes.
pub(crate) fn send_with(socket: RawFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let mut control = Control::new();
    let payload_bytes = u32::try_from(size_of_val(descriptors)).unwrap_or(u32::MAX);
    if descriptors.len() > KEPT_PER_MESSAGE {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero `msghdr` is a valid value of that plain C struct. `control` has room for the header and as many descriptors as were just
    // counted, so what the macros point to lies in it.
    let message = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = libc::CMSG_SPACE(payload_bytes) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(payload_bytes) as usize;
        std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), libc::CMSG_DATA(header), payload_bytes as usize);
        message
    };
    // SAFETY: everything that `message` points to outlives the call, which only reads it.
    let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a message and its descriptors, closed on exec, without waiting. How many bytes it had; 0 at the end of the queue. Descriptors for which the process has no place are lost.
pub(crate) fn receive_with(socket: RawFd, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control::new();
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero `msghdr` is a valid value of that plain C struct.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: everything that `message` points to outlives the call, with the lengths that it says.
    let taken = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) };
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in headers that lie in `control`; the macros stay inside what it says it has written.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: as above; `header` is not null.
        let (kind, start, next) = unsafe { (*header, libc::CMSG_DATA(header), libc::CMSG_NXTHDR(&raw const message, header)) };
        if (kind.cmsg_level, kind.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: takes an integer.
            let header_bytes = unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..(kind.cmsg_len - header_bytes) / size_of::<RawFd>() {
                // SAFETY: so many descriptors lie there, unaligned maybe, and the kernel has just given them to us; nobody else has them.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(start.cast::<RawFd>().add(index).read_unaligned()) });
            }
        }
        header = next;
    }
    Ok(taken.cast_unsigned())
}

/// Room for the header and the descriptors of one message, aligned as the header must be.
#[repr(C, align(8))]
struct Control([u8; 16 + KEPT_PER_MESSAGE * size_of::<RawFd>() + 4]);

impl Control {
    fn new() -> Control {
        Control([0; size_of::<Control>()])
    }
}

const _: () = assert!(size_of::<libc::cmsghdr>() == 16 && align_of::<libc::cmsghdr>() <= 8 && size_of::<Control>() == 16 + 1_016);

/// Ends a TCP connection by a reset, whoever else has a descriptor of it; nothing unsent is kept.
pub(crate) fn disconnect(socket: RawFd) {
    // SAFETY: an all-zero `sockaddr` is a valid value of that plain C struct.
    let mut nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    nowhere.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: `nowhere` outlives the call, which only reads it, and its size is given.
    let _ = unsafe { libc::connect(socket, &raw const nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
}

/// The end of a queue of descriptors that was passed to this process by its number, which is used up.
pub(crate) fn inherit_queue(fd: RawFd) -> io::Result<socket2::Socket> {
    // SAFETY: sets a flag of a descriptor by two integers; a number that is none is refused.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: duplicating a descriptor takes two integers; the copy is ours alone.
    let socket = socket2::Socket::from(owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?);
    if !socket.local_addr()?.is_unix() || socket.r#type()? != socket2::Type::SEQPACKET {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no Unix socket of packets"));
    }
    close(fd);
    Ok(socket)
}
