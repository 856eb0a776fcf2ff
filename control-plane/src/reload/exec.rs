//! The system calls of a process that replaces itself. The standard library's `exec` empties the signal mask, and a SIGHUP that waits would then end the process;
//! it also knows no descriptor without a path, by which the way back leads to a program that was replaced on disk.
#![expect(unsafe_code, reason = "system calls without a safe wrapper in std")]

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;

/// What a program is started with.
#[derive(Debug)]
pub(super) struct Call {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Call {
    /// `environment` has `NAME=VALUE` each. A text with a zero byte cannot come from this process's own call.
    pub(super) fn new(arguments: Vec<OsString>, environment: Vec<OsString>) -> io::Result<Call> {
        let texts = |texts: Vec<OsString>| texts.into_iter().map(|text| Ok(CString::new(text.into_vec())?)).collect::<io::Result<Vec<_>>>();
        Ok(Call { arguments: texts(arguments)?, environment: texts(environment)? })
    }
}

/// Replaces this process by a program. It returns only when that fails, and then nothing has changed.
pub(super) fn replace(program: &CStr, call: &Call) -> io::Result<Infallible> {
    let (arguments, environment) = (pointers(&call.arguments), pointers(&call.environment));
    // SAFETY: `program` and all texts end with a zero byte and outlive the call, and both lists end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// The same by a program of which only a descriptor is known.
pub(super) fn replace_by(program: RawFd, call: &Call) -> io::Result<Infallible> {
    let (arguments, environment) = (pointers(&call.arguments), pointers(&call.environment));
    // SAFETY: as in `replace`; the path is empty, so that the descriptor is the program.
    // The kernel writes none of the texts, whatever the declaration says.
    unsafe { libc::execveat(program, c"".as_ptr(), arguments.as_ptr().cast(), environment.as_ptr().cast(), libc::AT_EMPTY_PATH) };
    Err(io::Error::last_os_error())
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// A file without a name, in memory, closed on exec.
pub(super) fn memory_file() -> io::Result<File> {
    // SAFETY: takes a text with a zero byte at its end, and flags.
    owned(unsafe { libc::memfd_create(c"uringcast-state".as_ptr(), libc::MFD_CLOEXEC) }).map(File::from)
}

/// This process's program, which stays what it is whatever is put in its place; closed on exec.
pub(super) fn own_program() -> io::Result<OwnedFd> {
    // SAFETY: takes a text with a zero byte at its end, and flags.
    owned(unsafe { libc::open(c"/proc/self/exe".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that the former process has left, if it is open; closed on exec from now on.
pub(super) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers; whoever is no open descriptor is told so.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the former process has named it for us in the environment or in its state, each number once, and it is open.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of one's own of what the former process has left; closed on exec.
pub(super) fn copy(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: duplicating a descriptor takes integers; the copy is ours alone.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })
}

/// Sends SIGHUP to a process.
pub(super) fn hang_up(pid: i32) -> io::Result<()> {
    // SAFETY: takes two integers.
    if unsafe { libc::kill(pid, libc::SIGHUP) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Nanoseconds of the clock that goes on over a replacement.
pub(super) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, which only writes it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Keeps these open over a replacement, until dropped.
pub(super) struct KeptOpen(Vec<RawFd>);

impl KeptOpen {
    pub(super) fn new(descriptors: Vec<RawFd>) -> KeptOpen {
        engine::keep_open(&descriptors, true);
        KeptOpen(descriptors)
    }
}

impl Drop for KeptOpen {
    fn drop(&mut self) {
        engine::keep_open(&self.0, false);
    }
}

/// The number of a descriptor.
pub(super) fn number(fd: &impl std::os::fd::AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
