//! Between the service manager and us: what systemd is told about our state, and the order in which a stop happens. It knows nothing of
//! HTTP; what it stops is behind [`Stop`].

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use engine::ids::ShardId;

use crate::log;
use crate::signals::{Signal, Signals};

/// How long after the drain time shards may still be busy before we leave without them.
const HARD_STOP_AFTER: Duration = Duration::from_secs(10);

/// How often a wait looks at something else.
const GLANCE: Duration = Duration::from_millis(100);

/// How often the wait for a signal looks for a wish to stop: whoever wishes it waits so long for his answer.
const WISH_GLANCE: Duration = Duration::from_millis(250);

/// Tells systemd a state (`READY=1`), where `NOTIFY_SOCKET` says that it listens. Failing to tell is logged and no more.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(fault) = send(path.as_encoded_bytes(), state) {
        log::warning(format_args!("cannot tell systemd {state}: {fault}"));
    }
}

/// A socket whose other end hears states, for more than a text; `None` where nobody does.
pub(crate) fn listener_of_states() -> io::Result<Option<UnixDatagram>> {
    std::env::var_os("NOTIFY_SOCKET").map(|path| connected(path.as_encoded_bytes())).transpose()
}

fn send(path: &[u8], state: &str) -> io::Result<()> {
    connected(path)?.send(state.as_bytes()).map(|_| ())
}

/// A path that begins with `@` names an abstract socket.
fn connected(path: &[u8]) -> io::Result<UnixDatagram> {
    use std::os::unix::ffi::OsStrExt;
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// Tells systemd that we are stopping and how long that may take, since its own patience is for the configured drain.
pub fn notify_stopping(over: Duration) {
    notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", (over + 2 * HARD_STOP_AFTER).as_micros()));
}

/// Tells systemd that we reload, or that it is over.
pub fn notify_reloading(now_ns: u64) {
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", now_ns / 1_000));
}

/// Why the server stops, or is to be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Not at all: it reloads.
    Reload,
    /// A signal.
    Signalled,
    /// The admin API, closing connections over this time.
    Asked(Duration),
    /// What the engine reports to is gone: a shard has ended.
    Lost,
}

/// What the admin API wishes of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// It is to stop, closing connections over this time.
    Stop(Duration),
    /// It is to reload.
    Reload,
}

/// Waits until the server has a reason to stop, or to reload. `wishes` are those of the admin API; `alive` says whether the engine still reports; `glance` is
/// called all the while.
pub fn wait_for_stop(signals: &Signals, wishes: &Receiver<Wanted>, alive: impl Fn() -> bool, glance: &mut dyn FnMut()) -> Stop {
    loop {
        glance();
        match signals.wait(WISH_GLANCE) {
            Some(Signal::Terminate | Signal::Interrupt) => return Stop::Signalled,
            Some(Signal::Hangup) => return Stop::Reload,
            None if !alive() => return Stop::Lost,
            None => {}
        }
        match wishes.try_recv() {
            Ok(Wanted::Stop(over)) => return Stop::Asked(over),
            Ok(Wanted::Reload) => return Stop::Reload,
            Err(_) => {}
        }
    }
}

/// How a wait for a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drain {
    /// Every shard has closed its connections.
    Complete,
    /// Some had not when the time was over.
    CutShort,
    /// Somebody asked once more.
    Signalled,
    /// A shard ended before it was empty.
    Lost,
}

/// A drain under way.
pub struct Draining<'a> {
    signals: &'a Signals,
    drained: &'a Receiver<ShardId>,
    /// Shards that have not said that they are empty; each says it once.
    left: usize,
}

impl<'a> Draining<'a> {
    /// `shards` shards were told to drain.
    pub fn new(signals: &'a Signals, drained: &'a Receiver<ShardId>, shards: usize) -> Draining<'a> {
        Draining { signals, drained, left: shards }
    }

    /// Waits until all shards are empty, at most the drain time and [`HARD_STOP_AFTER`] more. After a signal it may be called again. `glance`
    /// is called all the while.
    pub fn wait(&mut self, over: Duration, glance: &mut dyn FnMut()) -> Drain {
        let deadline = Instant::now() + over + HARD_STOP_AFTER;
        while self.left > 0 {
            glance();
            match self.drained.recv_timeout(GLANCE) {
                Ok(_) => self.left -= 1,
                Err(RecvTimeoutError::Disconnected) => return Drain::Lost,
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return Drain::CutShort,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(Signal::Terminate | Signal::Interrupt) = self.signals.wait(Duration::ZERO) {
                        return Drain::Signalled;
                    }
                }
            }
        }
        Drain::Complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_hears_us_on_both_kinds_of_socket() {
        let name = format!("uringcast-notify-test-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let sockets = [
            (format!("@{name}"), UnixDatagram::bind_addr(&abstract_address).expect("a free name")),
            (path.display().to_string(), UnixDatagram::bind(&path).expect("a free path")),
        ];
        for (address, socket) in sockets {
            send(address.as_bytes(), "READY=1").expect("somebody listens");
            let mut heard = [0; 16];
            let count = socket.recv(&mut heard).expect("a datagram");
            assert_eq!(&heard[..count], b"READY=1");
        }
        std::fs::remove_file(&path).expect("ours");
        assert!(send(path.as_os_str().as_encoded_bytes(), "READY=1").is_err());
    }

    #[test]
    fn a_wish_stops_the_server_with_its_own_time() {
        let signals = Signals::block().expect("these signals can be blocked");
        let (wish, wishes) = crossbeam_channel::bounded(1);
        wish.send(Wanted::Stop(Duration::from_millis(7))).expect("room");
        assert_eq!(wait_for_stop(&signals, &wishes, || true, &mut || {}), Stop::Asked(Duration::from_millis(7)));
        drop(wish);
        assert_eq!(wait_for_stop(&signals, &wishes, || false, &mut || {}), Stop::Lost);
    }

    #[test]
    fn a_drain_ends_when_every_shard_is_empty_or_one_is_gone() {
        let signals = Signals::block().expect("these signals can be blocked");
        let (sender, drained) = crossbeam_channel::bounded(2);
        sender.send(ShardId(0)).expect("room");
        sender.send(ShardId(1)).expect("room");
        assert_eq!(Draining::new(&signals, &drained, 2).wait(Duration::ZERO, &mut || {}), Drain::Complete);
        drop(sender);
        assert_eq!(Draining::new(&signals, &drained, 2).wait(Duration::ZERO, &mut || {}), Drain::Lost);
    }
}
