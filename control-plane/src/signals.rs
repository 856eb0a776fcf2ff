//! The signals that stop and reload the server, taken synchronously by one thread. They are blocked before any other thread exists, so
//! that every thread inherits the mask and none is ever interrupted by them; a signal that comes early waits until it is taken.
#![expect(unsafe_code, reason = "the standard library has no signal masks")]

use std::io;
use std::time::Duration;

/// What arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM: the service manager stops us.
    Terminate,
    /// SIGINT: a person at the terminal stops us.
    Interrupt,
    /// SIGHUP: reload.
    Hangup,
}

/// Proof that the signals are blocked, and the set to take them from.
pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and those it starts from now on.
    pub fn block() -> io::Result<Signals> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the whole set it is given, which the three `sigaddset` and `assume_init` need; the pointers
        // live through the calls. `pthread_sigmask` reads the set and writes no old mask.
        let (set, failure) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let set = set.assume_init();
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))
        };
        // pthread functions return the error instead of setting errno.
        if failure == 0 { Ok(Signals { set }) } else { Err(io::Error::from_raw_os_error(failure)) }
    }

    /// Takes the next signal; `None` when none came in time (or the wait was interrupted, which to callers that loop is the same).
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> Option<Signal> {
        let at_most = libc::timespec {
            tv_sec: libc::time_t::try_from(at_most.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(at_most.subsec_nanos().cast_signed()),
        };
        // SAFETY: both pointers are to initialised values that outlive the call; a null `info` is allowed.
        match unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const at_most) } {
            libc::SIGTERM => Some(Signal::Terminate),
            libc::SIGINT => Some(Signal::Interrupt),
            libc::SIGHUP => Some(Signal::Hangup),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signals_wait_until_they_are_taken() {
        let signals = Signals::block().expect("these signals can be blocked");
        assert_eq!(signals.wait(Duration::ZERO), None);
        // SAFETY: `raise` sends to this thread only, where the signal is blocked.
        unsafe { libc::raise(libc::SIGHUP) };
        assert_eq!(signals.wait(Duration::from_secs(5)), Some(Signal::Hangup));
        assert_eq!(signals.wait(Duration::ZERO), None);
    }
}
