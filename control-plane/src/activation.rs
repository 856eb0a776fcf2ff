//! What systemd passes to this process (sd_listen_fds(3)): sockets that it bound before the process began and keeps while it is restarted, so that clients that come meanwhile
//! wait in them instead of being refused; and what a process that was here before has put into its descriptor store. Read before the first thread starts.

use std::io;
use std::os::fd::RawFd;

use engine::limits::SHARDS_MAX;
use engine::{Left, PassedListener};

use crate::store;

/// The first descriptor that is passed, as systemd has it.
const FIRST: RawFd = 3;

/// What `FileDescriptorName=` calls the public port.
const PUBLIC: &str = "public";

/// A listening socket and the end of a queue for each shard.
const PASSED_MAX: usize = 2 * SHARDS_MAX;

/// Why what was passed cannot be served. Closing it instead would lose who waits in it.
#[derive(Debug, thiserror::Error)]
pub enum ActivationFault {
    /// Not a number, or none that could be meant.
    #[error("LISTEN_FDS is {0:?}, which is no number from 1 to {PASSED_MAX}")]
    Count(String),
    /// For something that is not served on a passed socket.
    #[error("a socket named {0:?} was passed, and only the public one can be: FileDescriptorName={PUBLIC}")]
    Name(String),
    /// A connection (Accept=yes), a datagram socket, a file.
    #[error("descriptor {0} that was passed cannot be served: {1}")]
    Unusable(RawFd, io::Error),
}

/// What was passed to this process.
#[derive(Default, Debug)]
pub struct Passed {
    /// Sockets of the public port.
    pub listeners: Vec<PassedListener>,
    /// What a former process has left of its connections.
    pub left: Vec<Left>,
}

/// What was passed to this process; nothing where it is started without.
pub fn passed() -> Result<Passed, ActivationFault> {
    let (listeners, left) = descriptors(|name| std::env::var(name).ok(), std::process::id())?;
    let unusable = |fd| move |fault| ActivationFault::Unusable(fd, fault);
    let listeners = listeners.into_iter().map(|fd| PassedListener::numbered(fd).map_err(unusable(fd)));
    let left = left.into_iter().map(|fd| Left::numbered(fd).map_err(unusable(fd)));
    Ok(Passed { listeners: listeners.collect::<Result<_, _>>()?, left: left.collect::<Result<_, _>>()? })
}

/// Which numbers they have: those of sockets, and those of the store. Variables that were meant for another process, and came here by inheritance, say nothing.
fn descriptors(variable: impl Fn(&str) -> Option<String>, own: u32) -> Result<(Vec<RawFd>, Vec<RawFd>), ActivationFault> {
    let is_ours = variable("LISTEN_PID").is_some_and(|pid| pid == own.to_string());
    let Some(count) = variable("LISTEN_FDS").filter(|_| is_ours) else { return Ok(Default::default()) };
    let Some(number) = count.parse().ok().filter(|number| (1..=PASSED_MAX).contains(number)) else {
        return Err(ActivationFault::Count(count));
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    if let Some(other) = names.iter().find(|name| !is_public(name) && **name != store::NAME) {
        return Err(ActivationFault::Name((*other).to_owned()));
    }
    let is_left = |fd: &RawFd| names.get((fd - FIRST) as usize) == Some(&store::NAME);
    Ok((FIRST..FIRST + number as RawFd).partition(|fd| !is_left(fd)))
}

/// Without a name of its own a socket has that of its unit; `unknown` is what other programs that pass sockets say.
fn is_public(name: &str) -> bool {
    matches!(name, PUBLIC | "" | "unknown") || name.ends_with(".socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(pid: &str, count: &str, names: &str) -> Result<(Vec<RawFd>, Vec<RawFd>), ActivationFault> {
        let variable = |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_owned()),
            "LISTEN_FDS" => Some(count.to_owned()),
            "LISTEN_FDNAMES" => Some(names.to_owned()).filter(|names| !names.is_empty()),
            _ => None,
        };
        descriptors(variable, 17)
    }

    #[test]
    fn only_what_was_passed_to_us_counts() {
        assert_eq!(passed("17", "2", "public:public").ok(), Some((vec![3, 4], vec![])));
        assert_eq!(passed("17", "1", "uringcast.socket").ok(), Some((vec![3], vec![])));
        assert_eq!(passed("17", "1", "").ok(), Some((vec![3], vec![])));
        assert_eq!(passed("17", "3", "public:connections:connections").ok(), Some((vec![3], vec![4, 5])));
        assert_eq!(passed("17", "2", "connections:connections").ok(), Some((vec![], vec![3, 4])), "the service binds its port itself");
        assert_eq!(passed("18", "2", "public:public").ok(), Some((vec![], vec![])), "another process's");
        assert_eq!(descriptors(|_| None, 17).ok(), Some((vec![], vec![])));
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        for (count, names) in [("0", ""), ("-1", ""), ("511", ""), ("two", ""), ("", ""), ("2", "public:control")] {
            assert!(passed("17", count, names).is_err(), "{count} {names}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_listener_is_refused() {
        use std::os::fd::AsRawFd as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let file = std::fs::File::open("/dev/null").expect("it is there");
        assert!(PassedListener::numbered(listener.as_raw_fd()).is_ok());
        for other in [client.as_raw_fd(), datagrams.as_raw_fd(), file.as_raw_fd(), RawFd::MAX] {
            assert!(PassedListener::numbered(other).is_err());
            assert!(Left::numbered(other).is_err(), "nor the end of a queue");
        }
    }
}
