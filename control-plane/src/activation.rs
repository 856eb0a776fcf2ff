//! Sockets that systemd bound before this process began and keeps while it is restarted (sd_listen_fds(3)): clients that come meanwhile
//! wait in them instead of being refused. Read before the first thread starts; what the sockets serve is the engine's.

use std::io;
use std::os::fd::RawFd;

use engine::PassedListener;
use engine::limits::SHARDS_MAX;

/// The first descriptor that is passed, as systemd has it.
const FIRST: RawFd = 3;

/// What `FileDescriptorName=` calls the public port.
const PUBLIC: &str = "public";

/// Why what was passed cannot be served. Closing it instead would lose who waits in it.
#[derive(Debug, thiserror::Error)]
pub enum ActivationFault {
    /// Not a number, or none that could be meant.
    #[error("LISTEN_FDS is {0:?}, which is no number from 1 to {SHARDS_MAX}")]
    Count(String),
    /// For something that is not served on a passed socket.
    #[error("a socket named {0:?} was passed, and only the public one can be: FileDescriptorName={PUBLIC}")]
    Name(String),
    /// A connection (Accept=yes), a datagram socket, a file.
    #[error("descriptor {0} that was passed cannot be served: {1}")]
    Unusable(RawFd, io::Error),
}

/// The sockets of the public port that were passed to this process; none where it is started without.
pub fn listeners() -> Result<Vec<PassedListener>, ActivationFault> {
    let descriptors = descriptors(|name| std::env::var(name).ok(), std::process::id())?;
    descriptors.map(|fd| PassedListener::numbered(fd).map_err(|fault| ActivationFault::Unusable(fd, fault))).collect()
}

/// Which numbers they have. Variables that were meant for another process, and came here by inheritance, say nothing.
fn descriptors(variable: impl Fn(&str) -> Option<String>, own: u32) -> Result<std::ops::Range<RawFd>, ActivationFault> {
    let is_ours = variable("LISTEN_PID").is_some_and(|pid| pid == own.to_string());
    let Some(count) = variable("LISTEN_FDS").filter(|_| is_ours) else { return Ok(0..0) };
    let Some(number) = count.parse().ok().filter(|number| (1..=SHARDS_MAX as RawFd).contains(number)) else {
        return Err(ActivationFault::Count(count));
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    match names.split(':').find(|name| !is_public(name)) {
        Some(other) => Err(ActivationFault::Name(other.to_owned())),
        None => Ok(FIRST..FIRST + number),
    }
}

/// Without a name of its own a socket has that of its unit; `unknown` is what other programs that pass sockets say.
fn is_public(name: &str) -> bool {
    matches!(name, PUBLIC | "" | "unknown") || name.ends_with(".socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(pid: &str, count: &str, names: &str) -> Result<std::ops::Range<RawFd>, ActivationFault> {
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
        assert_eq!(passed("17", "2", "public:public").ok(), Some(3..5));
        assert_eq!(passed("17", "1", "uringcast.socket").ok(), Some(3..4));
        assert_eq!(passed("17", "1", "").ok(), Some(3..4));
        assert_eq!(passed("18", "2", "public:public").ok(), Some(0..0), "another process's");
        assert_eq!(descriptors(|_| None, 17).ok(), Some(0..0));
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        for (count, names) in [("0", ""), ("-1", ""), ("256", ""), ("two", ""), ("", ""), ("2", "public:control")] {
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
        }
    }
}
