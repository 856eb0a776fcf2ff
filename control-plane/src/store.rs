//! The service manager's descriptor store (FileDescriptorStoreMax= of systemd.service(5)): it keeps the ends of the shards' queues, and with them the WebSockets' sockets, over a crash
//! of this process. A few descriptors, however many sockets there are: systemd compares each that comes with all that it has, which is seconds of process 1 for thousands.

use std::fmt;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use engine::{Left, say_farewell};

use crate::{lifecycle, log};

/// What the store calls what is ours.
pub(crate) const NAME: &str = "connections";

/// What it calls a descriptor by which it is tried out.
const TRIAL: &str = "trial";

/// How long it may take to work off what it was told: systemd has seconds of work at a start of the machine.
const TRIAL_TIME: Duration = Duration::from_secs(5);

/// Why nothing can be kept.
#[derive(Debug, thiserror::Error)]
pub enum NoStore {
    /// `NOTIFY_SOCKET` is not set.
    #[error("nobody has said where to (NOTIFY_SOCKET)")]
    Nobody,
    /// As where `FileDescriptorStoreMax=` is 0, which is its default: what is sent is dropped, and nobody tells us.
    #[error(
        "the service manager does not keep what it is given: FileDescriptorStoreMax= of the unit says how much it may, and is 0 by default"
    )]
    Dropped,
    /// It is asked whether it has done what it was told, and says nothing.
    #[error("the service manager has not answered within {} s", TRIAL_TIME.as_secs())]
    Silent,
    /// The kernel refuses.
    #[error("the service manager cannot be told: {0}")]
    Told(#[from] io::Error),
}

/// Whether descriptors are kept at all. systemd before 254 does not say so, thus one is given to it and looked after.
///
/// # Errors
/// When they are not, with the reason.
pub fn try_out() -> Result<(), NoStore> {
    let socket = lifecycle::listener_of_states()?.ok_or(NoStore::Nobody)?;
    let (mut ours, given) = UnixStream::pair()?;
    store(&socket, TRIAL, given.as_fd())?;
    drop(given);
    wait_until_heard(&socket)?;
    ours.set_nonblocking(true)?;
    let outcome = match ours.read(&mut [0]) {
        Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => Ok(()),
        // The other end is nobody's any more.
        _ => Err(NoStore::Dropped),
    };
    remove(&socket, TRIAL)?;
    outcome
}

/// Waits until everything is done that was sent before: the descriptor that goes with this word is closed then.
fn wait_until_heard(socket: &UnixDatagram) -> Result<(), NoStore> {
    let (mut ours, given) = UnixStream::pair()?;
    engine::send_descriptor(socket, "BARRIER=1", given.as_fd())?;
    drop(given);
    ours.set_read_timeout(Some(TRIAL_TIME))?;
    match ours.read(&mut [0]) {
        Ok(_) => Ok(()),
        Err(fault) if matches!(fault.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(NoStore::Silent),
        Err(fault) => Err(fault.into()),
    }
}

/// Has the store hold these, and nothing else that is ours.
pub fn renew(kept: &[OwnedFd]) {
    let told = lifecycle::listener_of_states().and_then(|socket| {
        let Some(socket) = socket else { return Ok(()) };
        // They are done in the order in which they are sent.
        remove(&socket, NAME)?;
        kept.iter().try_for_each(|end| store(&socket, NAME, end.as_fd()))
    });
    if let Err(fault) = told {
        log::warning(format_args!("the connections of this process are not kept over a crash: {fault}"));
    }
}

/// FDPOLL=0: with this process its own end is gone, and the store would drop what has nobody at its other end.
fn store(socket: &UnixDatagram, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    engine::send_descriptor(socket, &format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), descriptor)
}

fn remove(socket: &UnixDatagram, name: &str) -> io::Result<()> {
    socket.send(format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes()).map(drop)
}

/// Says goodbye on what a process has left that was here before, on a thread of its own. Where none can be had all of it is closed without a word.
pub fn say_goodbye(left: Vec<Left>) {
    let say = move || {
        let began = Instant::now();
        let said = say_farewell(left);
        let seconds = began.elapsed().as_secs_f32();
        log::info(Said(said, seconds));
    };
    if let Err(fault) = std::thread::Builder::new().name("farewell".into()).spawn(say) {
        log::warning(format_args!("the clients of the former process are told nothing: {fault}"));
    }
}

struct Said(engine::Farewells, f32);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Said(engine::Farewells { told, untold }, seconds) = self;
        write!(
            f,
            "the process before this one ended without a word: {told} of its clients were told, {untold} were gone or could not be, within {seconds:.1} s"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_drops_what_it_is_given_is_found_out() {
        let (socket, manager) = UnixDatagram::pair().expect("a pair");
        let (mut ours, given) = UnixStream::pair().expect("a pair");
        store(&socket, TRIAL, given.as_fd()).expect("somebody listens");
        drop(given);
        ours.set_nonblocking(true).expect("a socket");
        // In flight it is open.
        assert_eq!(ours.read(&mut [0]).map_err(|fault| fault.kind()), Err(io::ErrorKind::WouldBlock));
        // Taken without a place for descriptors it is closed, as by who drops it.
        let mut heard = [0; 64];
        let count = manager.recv(&mut heard).expect("a datagram");
        assert_eq!(&heard[..count], b"FDSTORE=1\nFDNAME=trial\nFDPOLL=0");
        assert_eq!(ours.read(&mut [0]).ok(), Some(0));
    }
}
