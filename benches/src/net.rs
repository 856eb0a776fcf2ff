//! The system calls that the standard library lacks: an epoll set, sockets with a chosen source address, pinning to cores, limits, another
//! process's CPU clock. The only file with `unsafe`; it knows no protocol.
#![expect(unsafe_code, reason = "epoll, CPU affinity, timer slack and CPU clocks have no safe interface in std")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Events taken in one wait: enough that a broadcast to a thousand is few system calls, small enough that sending stays punctual.
const EVENTS_MAX: usize = 512;

/// What a descriptor is ready for.
#[derive(Clone, Copy)]
pub(crate) struct Readiness {
    /// The number given when it was added.
    pub(crate) key: usize,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

/// One epoll set, level-triggered.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer; the result is checked before it is used.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }

    /// Starts to watch a socket for reading, and for writing too where asked.
    pub(crate) fn add(&self, socket: &TcpStream, key: usize, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, key, writable)
    }

    /// Changes whether a watched socket is watched for writing.
    pub(crate) fn change(&self, socket: &TcpStream, key: usize, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, key, writable)
    }

    fn control(&self, operation: i32, socket: &TcpStream, key: usize, writable: bool) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLRDHUP | if writable { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: interest as u32, u64: key as u64 };
        // SAFETY: both descriptors are open for the length of the call, and the kernel only reads `event`.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, socket.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits until something is ready or the time is over, and appends what is ready to `ready`.
    pub(crate) fn wait(&mut self, timeout: Duration, ready: &mut Vec<Readiness>) -> io::Result<()> {
        let time = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos().into() };
        // SAFETY: `events` has room for EVENTS_MAX entries, `time` lives through the call, and no signal mask is given.
        let count = check(unsafe {
            libc::epoll_pwait2(self.epoll.as_raw_fd(), self.events.as_mut_ptr(), EVENTS_MAX as i32, &time, std::ptr::null())
        });
        let count = match count {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        ready.extend(self.events[..count].iter().map(|event| {
            // Hang-ups and errors are learnt by reading.
            let write_only = event.events & !(libc::EPOLLOUT as u32) == 0;
            Readiness { key: event.u64 as usize, readable: !write_only, writable: event.events & libc::EPOLLOUT as u32 != 0 }
        }));
        Ok(())
    }
}

/// A non-blocking socket on its way to `target`, from `source` where one is given. Writable means connected or refused.
pub(crate) fn connect(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// The cores this process may run on.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and its true size is passed.
    let found = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    let known = if found == 0 { libc::CPU_SETSIZE as usize } else { 0 };
    // SAFETY: every index is below CPU_SETSIZE.
    (0..known).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Keeps the calling thread, and those it starts later, on these cores, and lets its timers end on time instead of 50 µs late.
pub(crate) fn pin(cpus: &[usize]) -> io::Result<()> {
    keep_on(cpus)?;
    // SAFETY: PR_SET_TIMERSLACK takes one integer and touches no memory. A refusal only costs punctuality.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    Ok(())
}

/// Keeps the calling thread, and the threads and processes it starts later, on these cores.
pub(crate) fn keep_on(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the index is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: `set` lives through the call and its true size is passed; 0 means the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// How many descriptors this process may be allowed to hold.
pub(crate) fn descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the length of the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(limit.rlim_max)
}

/// Lets this process, and those it starts later, hold as many descriptors as it is allowed at all.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the length of the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel only reads `limit`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(())
}

/// Lets a process end with the thread that starts it, so that no server goes on when we are killed.
pub(crate) fn end_with_us(command: &mut Command) {
    let dies_with_its_parent = || {
        // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
    };
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(dies_with_its_parent) };
}

/// The kernel's number of the calling thread, under which /proc lists it.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// CPU time that a process has used since its start, all threads together, those that have ended included.
pub(crate) fn process_cpu(pid: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is writable for the length of the call.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable for the length of the call; a clock whose process is gone is an error, checked here.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
