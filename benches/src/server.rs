//! What the kernel tells about the server's processes (and our own threads): CPU time, resident bytes, context switches, who listens on
//! a port, and what the kernel's own threads do on the server's cores. It only reads, and asks nothing of the server itself.

use std::collections::HashSet;
use std::fs;
use std::io;

use crate::net;

/// State number of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";
/// /proc/PID/stat counts user and system time in ticks of this many nanoseconds (USER_HZ is 100 on every Linux).
const TICK_NANOSECONDS: u64 = 10_000_000;

/// The process that is measured, with those it started, and the kernel's threads that share its cores.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pid: u32,
    /// The process itself first. Found once: a server starts its workers before it listens.
    family: Vec<u32>,
    /// Found once, so that reading them costs a moment and not a walk through all of /proc.
    kernel_threads: Vec<u32>,
}

/// Everything read about it at one moment. Times and switches count from the process's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// CPU of all threads, in nanoseconds and exact. io_uring's worker threads are among them, ksoftirqd is not.
    pub(crate) cpu: u64,
    /// CPU of the kernel's threads on the server's cores. 0 where the server may use every core: then nobody can tell whom they worked for.
    pub(crate) kernel: u64,
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
            kernel: self.kernel.saturating_sub(earlier.kernel),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            voluntary_switches: self.voluntary_switches.saturating_sub(earlier.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(earlier.involuntary_switches),
            ..self
        }
    }
}

impl Reading {
    /// Two servers on one core together. What the kernel's threads did there is read with each of them, and counts once.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            kernel: self.kernel.max(other.kernel),
            user: self.user + other.user,
            system: self.system + other.system,
            resident_bytes: self.resident_bytes + other.resident_bytes,
            voluntary_switches: self.voluntary_switches + other.voluntary_switches,
            involuntary_switches: self.involuntary_switches + other.involuntary_switches,
            threads: self.threads + other.threads,
        }
    }
}

impl Server {
    pub(crate) fn of_pid(pid: u32) -> Self {
        let (family, kernel_threads) = (family_of(pid), kernel_threads_beside(pid));
        Self { pid, family, kernel_threads }
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
        Ok(Self::of_pid(pid))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn processes(&self) -> usize {
        self.family.len()
    }

    pub(crate) fn reading(&self) -> io::Result<Reading> {
        let mut reading = Reading::default();
        for pid in &self.family {
            reading.add_process(*pid)?;
        }
        reading.kernel = self.kernel_threads.iter().map(|thread| scheduled(&format!("/proc/{thread}"))).sum();
        Ok(reading)
    }
}

impl Reading {
    fn add_process(&mut self, pid: u32) -> io::Result<()> {
        let process = format!("/proc/{pid}");
        // The process's own clock, not the sum over /proc/PID/task: that sum shrinks when a thread ends.
        self.cpu += net::process_cpu(pid)?.as_nanos() as u64;
        for task in fs::read_dir(format!("{process}/task"))?.flatten() {
            // A thread may end between the listing and the reading.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            self.voluntary_switches += number_after(&status, "voluntary_ctxt_switches:");
            self.involuntary_switches += number_after(&status, "nonvoluntary_ctxt_switches:");
            self.threads += 1;
        }
        let (user, system) = user_and_system(&fs::read_to_string(format!("{process}/stat"))?);
        self.user += user;
        self.system += system;
        self.resident_bytes += number_after(&fs::read_to_string(format!("{process}/status"))?, "VmRSS:") * 1024;
        Ok(())
    }
}

/// CPU nanoseconds of one of our own threads.
pub(crate) fn own_thread_cpu(thread: i32) -> u64 {
    scheduled(&format!("/proc/self/task/{thread}"))
}

/// CPU nanoseconds of a thread since its start, 0 when it is gone.
fn scheduled(thread: &str) -> u64 {
    let schedstat = fs::read_to_string(format!("{thread}/schedstat")).unwrap_or_default();
    schedstat.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(0)
}

/// A process and all that it and its children started, itself first.
fn family_of(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let found: Vec<u32> =
            children.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
        family.extend(found);
        next += 1;
    }
    family
}

/// The kernel's threads that do deferred work on the cores to which a process is bound; none where it may use every core.
fn kernel_threads_beside(pid: u32) -> Vec<u32> {
    let allowed = |process: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        cores_of(list)
    };
    // The first process may run wherever anything may.
    let (cores, all) = (allowed(&pid.to_string()), allowed("1"));
    if cores.len() >= all.len() {
        return Vec::new();
    }
    let threads = fs::read_dir("/proc").into_iter().flatten().flatten();
    let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    threads.filter(|thread| fs::read_to_string(format!("/proc/{thread}/comm")).is_ok_and(|name| defers_work_on(&name, &cores))).collect()
}

/// The cores of a list as the kernel writes it: `0-2,5`.
fn cores_of(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// True exactly for the softirq thread and the ordinary work queues of one of the cores. The urgent queues (`kworker/0:1H`) serve disks.
fn defers_work_on(name: &str, cores: &[usize]) -> bool {
    let name = name.trim_end();
    if let Some(core) = name.strip_prefix("ksoftirqd/") {
        return core.parse().is_ok_and(|core| cores.contains(&core));
    }
    let Some((core, queue)) = name.strip_prefix("kworker/").and_then(|rest| rest.split_once(':')) else { return false };
    let urgent = queue.split('-').next().is_some_and(|queue| queue.ends_with('H'));
    !urgent && core.parse().is_ok_and(|core| cores.contains(&core))
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
    fn children_belong_to_the_process() {
        let mut child = std::process::Command::new("sleep").arg("10").spawn().expect("sleep is there");
        assert!(Server::of_pid(std::process::id()).family.contains(&child.id()));
        child.kill().expect("it runs");
        child.wait().expect("it was ours");
    }

    #[test]
    fn deferred_work_is_told_by_its_name() {
        assert_eq!(cores_of("\t0-2,5\n"), [0, 1, 2, 5]);
        for (name, counts) in [
            ("ksoftirqd/1\n", true),
            ("kworker/1:2-events", true),
            ("kworker/1:0", true),
            ("kworker/1:1H-kblockd", false),
            ("kworker/0:2-events", false),
            ("kworker/u8:0-ext4", false),
            ("kworker/R-netns", false),
            ("uringcast", false),
        ] {
            assert_eq!(defers_work_on(name, &[1]), counts, "{name}");
        }
    }

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0";
        assert_eq!(user_and_system(stat), (700 * TICK_NANOSECONDS, 30 * TICK_NANOSECONDS));
    }
}
