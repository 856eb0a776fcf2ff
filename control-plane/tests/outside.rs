//! What happens around the built binary: a log that nobody reads or that cannot be written, a process that is stopped, a shard that does not
//! run. Clients are served meanwhile, or go on afterwards with nothing lost.

mod support;

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::load::{Load, Plan};
use support::raw::{Neighbours, Raw, upgrade};
use support::{PATIENCE, SECRET, Server, Setup, aloud, get, token};

const SECOND: Duration = Duration::from_secs(1);

fn free_port() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port")
}

/// A server with such a standard error: it serves, and ends when it is told to.
fn serves_and_stops(what: &str, binary: &mut Command, stderr: Stdio) {
    let (public, control) = (free_port(), free_port());
    let arguments = ["--shards", "2", "--listen", &public.to_string(), "--control", &control.to_string()];
    binary
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("JWT_SECRET", SECRET)
        .env("URINGCAST_SERVER_DRAIN_SECONDS", "0")
        .env("WEBSOCKET_CORS_ORIGIN", "https://app.example");
    let mut child = binary.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("it starts");
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(control).is_err() {
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{what}: it never listens");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(control, "/healthz").0, 200, "{what}");
    let mut client = Raw::connect(public);
    client.send(upgrade(&format!("/api/community/ws?token={}", token("alice"))).as_bytes());
    assert_eq!(client.status(), Some(101), "{what}");
    client.say(r#"{"type":"PING"}"#);
    client.text_with("PONG");
    // Each is told in a line.
    for _ in 0..3 {
        kill(&child, Signal::HUP);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(control, "/readyz").0, 200, "{what}");
    kill(&child, Signal::TERM);
    assert_eq!(client.close_code(), Some(1001), "{what}");
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{what}: it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{what}: {status}");
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("our child");
}

/// A pipe that is full, and its other end, which nobody reads.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe");
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe");
    (reader, writer)
}

#[test]
fn a_log_that_nobody_takes_holds_up_nothing() {
    let binary = || Command::new(env!("CARGO_BIN_EXE_uringcast"));
    let (reader, writer) = full_pipe();
    serves_and_stops("a full pipe", &mut binary(), writer.into());
    drop(reader);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    drop(reader);
    serves_and_stops("a reader that has gone", &mut binary(), writer.into());
    let full_disk = File::options().write(true).open("/dev/full").expect("Linux has it");
    serves_and_stops("a full disk", &mut binary(), full_disk.into());
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&-", env!("CARGO_BIN_EXE_uringcast")]);
    serves_and_stops("no standard error", &mut shell, Stdio::null());
}

/// Clients of one server who speak all the time and book what they hear.
fn loaded(server: &Server, clients: usize, every: Duration) -> Load {
    Load::start(Plan { hosts: vec![server.public], clients_per_host: clients, rooms: 10, every })
}

/// Nothing is lost, doubled, out of order or cut.
fn assert_whole(load: Load, what: &str) {
    let book = load.finish();
    aloud(&format!(
        "{what}: {} messages, {} of {} deliveries lost, the slowest {} ms; doubled {}, misordered {}, cut {}",
        book.sent,
        book.local_lost,
        book.local,
        book.local_latency_max.as_millis(),
        book.doubled,
        book.misordered,
        book.cut
    ));
    assert!(book.local > 1_000, "{} deliveries test little", book.local);
    assert_eq!((book.local_lost, book.doubled, book.misordered, book.cut), (0, 0, 0, 0));
}

const MANY: &str = "rate_messages = 1000000\nhandshakes_per_address = 1000000\nconnections_per_user = 1000000\n";
/// Open rooms, as the load wants them.
const OPEN: &[(&str, &str)] = &[("URINGCAST_ENDPOINT_COMMUNITY_MEMBERSHIP", "open"), ("URINGCAST_ENDPOINT_TALK_MEMBERSHIP", "open")];

fn stopped_for(time: Duration, clients: usize, variables: &'static [(&'static str, &'static str)]) {
    let mut server = Server::start(&Setup { limits: MANY, variables, ..Setup::default() });
    let load = loaded(&server, clients, SECOND / 10);
    std::thread::sleep(SECOND);
    server.signal(Signal::STOP);
    std::thread::sleep(time);
    server.signal(Signal::CONT);
    std::thread::sleep(3 * SECOND);
    assert_whole(load, &format!("stopped for {} s with {clients} clients", time.as_secs()));
    server.assert_well();
}

#[test]
fn a_process_that_is_stopped_goes_on_where_it_was() {
    stopped_for(4 * SECOND, 200, OPEN);
}

#[test]
#[ignore = "35 s: the figure of the fault table"]
fn a_process_that_is_stopped_for_30_s_goes_on_where_it_was() {
    stopped_for(30 * SECOND, 1_000, OPEN);
}

/// A group of the freezer that holds one thread. Dropping it thaws the thread.
struct Frozen(std::path::PathBuf);

impl Frozen {
    /// `None` where there is no such controller, or it may not be used.
    fn thread(thread: &str) -> Option<Frozen> {
        let group = std::path::Path::new("/sys/fs/cgroup/freezer").join(format!("uringcast-test-{}", std::process::id()));
        std::fs::create_dir(&group).ok()?;
        let frozen = Frozen(group);
        std::fs::write(frozen.0.join("tasks"), thread).ok()?;
        std::fs::write(frozen.0.join("freezer.state"), "FROZEN").ok()?;
        Some(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        let parent = self.0.parent().unwrap_or(&self.0).join("tasks");
        for thread in std::fs::read_to_string(self.0.join("tasks")).unwrap_or_default().lines() {
            let _ = File::options().write(true).open(&parent).and_then(|mut file| file.write_all(thread.as_bytes()));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// From outside a shard that turns in circles is one that does not run: its thread is frozen.
#[test]
fn a_shard_that_does_not_run_is_told_and_the_others_go_on() {
    let mut server = Server::start(&Setup { limits: MANY, variables: OPEN, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    let load = loaded(&server, 100, SECOND / 10);
    std::thread::sleep(SECOND);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs");
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let shard = tasks.flatten().find(|task| name(task).trim() == "shard-1").expect("there are two shards");
    let Some(frozen) = Frozen::thread(&shard.file_name().to_string_lossy()) else {
        aloud("SKIPPED: a shard that does not run, because the freezer of cgroup v1 cannot be used here");
        return;
    };
    let end = Instant::now() + PATIENCE;
    while !get(server.control, "/readyz").1.contains(r#""responsive":false"#) {
        assert!(Instant::now() < end, "it is told that a shard does not respond");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Who is on the other one, in a room whose home is there, is served.
    let served = (0..40).filter(|number| is_served(&server, *number)).count();
    assert!(served > 0, "nobody is served by the shard that runs");
    drop(frozen);
    std::thread::sleep(3 * SECOND);
    assert!(!get(server.control, "/readyz").1.contains(r#""responsive":false"#));
    assert_whole(load, &format!("one shard of two frozen; {served} of 40 newcomers were let in meanwhile"));
    neighbours.assert_well();
    server.assert_well();
}

/// Whether a newcomer is let in and answered at once.
fn is_served(server: &Server, number: usize) -> bool {
    let Ok(mut stream) = TcpStream::connect(server.public) else { return false };
    let request = upgrade(&format!("/ws/open?documentId=d{number}&clientID=c{number}"));
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    let _ = stream.write_all(request.as_bytes());
    let mut answer = [0; 512];
    std::io::Read::read(&mut stream, &mut answer).is_ok_and(|length| answer[..length].starts_with(b"HTTP/1.1 101"))
}
