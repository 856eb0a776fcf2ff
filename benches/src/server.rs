//! What the kernel tells about the server's process (and our own threads): CPU time, resident bytes, context switches, who listens on a
//! port. It only reads, and asks nothing of the server itself.

use std::collections::HashSet;
use std::fs;
use std::io;

use crate::net;

/// State number of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";
/// /proc/PID/stat counts user and system time in ticks of this many nanoseconds (USER_HZ is 100 on every Linux).
const TICK_NANOSECONDS: u64 = 10_000_000;

/// The process that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pid: u32,
}

/// Everything read about it at one moment. Times and switches count from the process's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// CPU of all threads, in nanoseconds and exact. io_uring's worker threads are among them, ksoftirqd is not.
    pub(crate) cpu: u64,
    /// The part spent in user mode, to 10 ms.
    pub(crate) user: u64,
    /// The part spent in the kernel, to 10 ms.
    pub(crate) system: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
    pub(crate) threads: u64,
}

impl Reading {
    /// What happened since `earlier`; resident bytes and threads stay as they are now.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            voluntary_switches: self.voluntary_switches.saturating_sub(earlier.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(earlier.involuntary_switches),
            ..self
        }
    }
}

impl Server {
    pub(crate) fn of_pid(pid: u32) -> Self {
        Self { pid }
    }

    /// The process that listens on a TCP port of this host.
    pub(crate) fn listening_on(port: u16) -> io::Result<Self> {
        let inodes: HashSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(table).ok())
            .flat_map(|table| table.lines().filter_map(|line| listener_inode(line, port)).collect::<Vec<_>>())
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        let nobody = || io::Error::new(io::ErrorKind::NotFound, format!("no process of ours listens on port {port}; give --pid"));
        let pid = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid: &u32| holds_one_of(*pid, &inodes))
            .ok_or_else(nobody)?;
        Ok(Self { pid })
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    pub(crate) fn reading(self) -> io::Result<Reading> {
        let process = format!("/proc/{}", self.pid);
        // The process's own clock, not the sum over /proc/PID/task: that sum shrinks when a thread ends.
        let mut reading = Reading { cpu: net::process_cpu(self.pid)?.as_nanos() as u64, ..Reading::default() };
        for task in fs::read_dir(format!("{process}/task"))?.flatten() {
            // A thread may end between the listing and the reading.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            reading.voluntary_switches += number_after(&status, "voluntary_ctxt_switches:");
            reading.involuntary_switches += number_after(&status, "nonvoluntary_ctxt_switches:");
            reading.threads += 1;
        }
        (reading.user, reading.system) = user_and_system(&fs::read_to_string(format!("{process}/stat"))?);
        reading.resident_bytes = number_after(&fs::read_to_string(format!("{process}/status"))?, "VmRSS:") * 1024;
        Ok(reading)
    }
}

/// CPU nanoseconds of one of our own threads.
pub(crate) fn own_thread_cpu(thread: i32) -> u64 {
    let schedstat = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap_or_default();
    schedstat.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(0)
}

/// The inode of a line of /proc/net/tcp when it is a listener on `port`.
fn listener_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == LISTENING && u16::from_str_radix(local_port, 16) == Ok(port);
    listens.then(|| fields.get(9).map(ToString::to_string))?
}

fn holds_one_of(pid: u32, sockets: &HashSet<String>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|link| link.to_str().is_some_and(|name| sockets.contains(name)))
}

/// The number behind a line's name, 0 where the line is missing.
fn number_after(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Fields 14 and 15 of /proc/PID/stat in nanoseconds, counted behind the name, which may contain anything.
fn user_and_system(stat: &str) -> (u64, u64) {
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = behind_name.split_whitespace().skip(11).map(|field| field.parse().unwrap_or(0) * TICK_NANOSECONDS);
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_the_process_behind_a_port_and_reads_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let server = Server::listening_on(port).expect("this process");
        assert_eq!(server.pid(), std::process::id());
        let before = server.reading().expect("readable");
        let work: u64 = (0..30_000_000u64).map(std::hint::black_box).sum();
        assert_ne!(work, 0);
        let used = server.reading().expect("readable").since(before);
        assert!(used.cpu > 0 && used.resident_bytes > 0 && used.threads > 0);
        drop(listener);
        assert!(Server::listening_on(port).is_err());
    }

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0";
        assert_eq!(user_and_system(stat), (700 * TICK_NANOSECONDS, 30 * TICK_NANOSECONDS));
    }
}
