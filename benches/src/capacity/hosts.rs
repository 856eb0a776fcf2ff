//! The servers of a capacity run: started, read together, and ended with this value. They are not joined by a Redis, so each is a host
//! of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::command::Command;
use crate::compare::command::repository;
use crate::dialect::Dialect;
use crate::net;
use crate::server::{Reading, Server};

/// Secret of the tokens; long enough for our server, and no secret at all.
pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// What opens the admin API of servers that only this machine can reach.
const ADMIN_TOKEN: &str = "capacity-runs-on-loopback-only";
/// A server that does not listen after so long will not.
const START_MAX: Duration = Duration::from_secs(15);
const GLANCE: Duration = Duration::from_millis(20);

/// All servers of a run.
pub(super) struct Fleet {
    hosts: Vec<Host>,
}

/// One server.
pub(super) struct Host {
    child: Child,
    pub(super) address: SocketAddr,
    pub(super) control: SocketAddr,
    server: Option<Server>,
}

impl Fleet {
    pub(super) fn start(command: &Command) -> Result<Self, String> {
        let mut fleet = Self { hosts: Vec::new() };
        for number in 0..command.processes {
            fleet.hosts.push(Host::start(command, number)?);
        }
        for host in &mut fleet.hosts {
            host.wait_until_it_listens()?;
        }
        Ok(fleet)
    }

    pub(super) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// All servers together. What the kernel's threads did is of the core, and counted once.
    pub(super) fn reading(&self) -> Result<Reading, String> {
        let mut sum = Reading::default();
        for host in &self.hosts {
            let server = host.server.as_ref().ok_or("a server has not begun to listen")?;
            let reading = server.reading().map_err(|error| format!("the server's process {} is gone: {error}", server.pid()))?;
            sum = sum.plus(reading);
        }
        Ok(sum)
    }
}

impl Host {
    fn start(command: &Command, number: u32) -> Result<Self, String> {
        let [port, control] = ports(command, number).map_err(|error| format!("no free port: {error}"))?;
        let log = log_of(number)?;
        let mut process = Process::new(&command.server);
        process.arg("--config").arg(repository().join("benches/results/one-shard.toml"));
        process.args(["--listen", &format!("127.0.0.1:{port}"), "--control", &format!("127.0.0.1:{control}"), "--shards", "1"]);
        process.args(command.redis.iter().flat_map(|url| ["--redis", url]));
        process.env("JWT_SECRET", SECRET).env("URINGCAST_CONTROL_TOKEN", ADMIN_TOKEN);
        process.env("URINGCAST_SOCKET_IO_PING_INTERVAL_MS", command.ping.as_millis().to_string());
        process.stdin(Stdio::null()).stdout(Stdio::null());
        process.stderr(fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?);
        net::end_with_us(&mut process);
        // A process is born where its parent runs.
        let core = command.server_cpus[number as usize % command.server_cpus.len()];
        let child = net::keep_on(&[core]).and_then(|()| process.spawn());
        let child = child.map_err(|error| format!("{}: {error} (cargo build --release -p control-plane)", command.server.display()))?;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self { child, address: at(port), control: at(control), server: None })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_it_listens(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("a server ended with {status} before it listened; see target/capacity/*.log"));
            }
            if started.elapsed() > START_MAX {
                return Err(format!("a server does not listen after {START_MAX:?}; see target/capacity/*.log"));
            }
            thread::sleep(GLANCE);
        }
        self.server = Some(Server::of_pid(self.pid()));
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(number: u32) -> Result<PathBuf, String> {
    let directory = repository().join("target/capacity");
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory.join(format!("{number}.log")))
}

fn ports(command: &Command, number: u32) -> std::io::Result<[u16; 2]> {
    if let Some(first) = command.port {
        let port = first.saturating_add(2 * number as u16);
        return Ok([port, port.saturating_add(1)]);
    }
    // Both are held at once, so that they are two.
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}

/// One event to every connection of the endpoint, asked of the admin API. `text` is made when the request can leave, so that the time it
/// tells is the time of leaving.
pub(super) fn emit_to_all(control: SocketAddr, dialect: Dialect, text: impl FnOnce() -> String) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(control)?;
    let event = if dialect == Dialect::Rooms { "message" } else { "CHAT_MESSAGE" };
    let body = format!(r#"{{"endpoint":"{}","to":{{"all":true}},"event":"{event}","data":{{"content":"{}"}}}}"#, dialect.name(), text());
    let request = format!(
        "POST /v1/emit HTTP/1.1\r\nHost: {control}\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// What the admin API answered: true when it knew who got the event, false when the shard was too busy telling everybody to say so in
/// time; an error when the event was not taken.
pub(super) fn answer_to_emit(mut stream: TcpStream) -> Result<bool, String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("the admin API: {error}"))?;
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(true),
        Some("503") => Ok(false),
        _ => Err(format!("the admin API: {answer}")),
    }
}
