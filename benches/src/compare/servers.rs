//! Who is compared, and how each of them is made, started and ended. What is installed or built stays below `target/peers`; the sources are
//! in benches/peers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::command::{Command, repository};
use crate::dialect::Dialect;
use crate::net;

/// Secret of the tokens; long enough for our server, and no secret at all.
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// A server that does not listen after so long will not.
const START_MAX: Duration = Duration::from_secs(15);
const GLANCE: Duration = Duration::from_millis(20);
/// What is shown of the output of a server that failed.
const TOLD_BYTES: usize = 600;

/// How a server is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Ours: `cargo build`, or a binary that is there.
    Ours,
    /// A script for Node, in benches/peers/node.
    Node(&'static str),
    /// A script for Bun, which comes as an npm package.
    Bun(&'static str),
    /// A binary of benches/peers/rust.
    Rust(&'static str),
}

/// One column of the table.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) dialect: Dialect,
    kind: Kind,
}

/// Everybody; ours first.
pub(crate) const SERVERS: &[Server] = &[
    Server { name: PLAIN, title: "uringcast, plain", dialect: Dialect::Community, kind: Kind::Ours },
    Server { name: SOCKET_IO, title: "uringcast, Socket.IO", dialect: Dialect::Rooms, kind: Kind::Ours },
    Server {
        name: "fastwebsockets",
        title: "fastwebsockets (Rust)",
        dialect: Dialect::Community,
        kind: Kind::Rust("fastwebsockets-rooms"),
    },
    Server { name: "bun", title: "Bun", dialect: Dialect::Community, kind: Kind::Bun("bun.mjs") },
    Server { name: "ws", title: "ws (Node)", dialect: Dialect::Community, kind: Kind::Node("ws.mjs") },
    Server { name: "socketioxide", title: "socketioxide (Rust)", dialect: Dialect::Rooms, kind: Kind::Rust("socketioxide-rooms") },
    Server { name: "bun-engine", title: "Socket.IO (Bun)", dialect: Dialect::Rooms, kind: Kind::Bun("bun-engine.mjs") },
    Server { name: "socket.io", title: "Socket.IO (Node)", dialect: Dialect::Rooms, kind: Kind::Node("socket-io.mjs") },
];

/// Ours over plain WebSocket.
pub(crate) const PLAIN: &str = "uringcast-plain";
/// Ours over Socket.IO.
pub(crate) const SOCKET_IO: &str = "uringcast-socketio";

impl Server {
    pub(crate) fn is_ours(&self) -> bool {
        self.kind == Kind::Ours
    }
}

/// What has been built and installed: where the programs are, or why they are not.
pub(crate) struct Workshop {
    binary: Result<PathBuf, String>,
    rust: Result<PathBuf, String>,
    /// Where the scripts and their packages are.
    node: Result<PathBuf, String>,
    bun: Result<PathBuf, String>,
    logs: PathBuf,
}

impl Workshop {
    /// Builds and installs what the chosen servers need; `tell` hears what is done.
    pub(crate) fn prepare(command: &Command, tell: impl Fn(&str)) -> Result<Self, String> {
        let needs = |wanted: fn(Kind) -> bool| command.servers.iter().any(|server| wanted(server.kind));
        let target = repository().join("target");
        let logs = target.join("peers/logs");
        fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        let unused = || Err("not asked for".to_owned());
        let binary = match &command.binary {
            Some(binary) => Ok(binary.clone()),
            None => {
                tell("building uringcast");
                let built = cargo(&["build", "--release", "-p", "control-plane", "--bin", "uringcast"]);
                built.map(|()| target.join("release/uringcast"))
            }
        };
        let rust = if needs(|kind| matches!(kind, Kind::Rust(_))) {
            tell("building the peers in Rust");
            let directory = target.join("peers/rust");
            let manifest = repository().join("benches/peers/rust/Cargo.toml");
            let arguments: [&OsStr; 7] = [
                "build".as_ref(),
                "--release".as_ref(),
                "--locked".as_ref(),
                "--manifest-path".as_ref(),
                manifest.as_os_str(),
                "--target-dir".as_ref(),
                directory.as_os_str(),
            ];
            cargo(&arguments).map(|()| directory.join("release"))
        } else {
            unused()
        };
        let node = if needs(|kind| matches!(kind, Kind::Node(_) | Kind::Bun(_))) {
            tell("installing the peers of JavaScript");
            install(&target.join("peers/node"))
        } else {
            unused()
        };
        let bun = node.clone().and_then(|node| {
            let bun = node.join("node_modules/.bin/bun");
            run(Process::new(&bun).arg("--version")).map(|()| bun).map_err(|reason| format!("the npm package bun has no program: {reason}"))
        });
        Ok(Self { binary, rust, node, bun, logs })
    }

    /// Whether a server can be started at all.
    pub(crate) fn missing(&self, server: &Server) -> Option<String> {
        self.process(server, 0, 1).err()
    }

    /// Starts a server on these cores, and waits until it listens. Our own has a shard per core.
    pub(crate) fn start(&self, server: &Server, cores: &[usize], generator: &[usize]) -> Result<Running, String> {
        let port = free_port().map_err(|error| format!("no free port: {error}"))?;
        let mut process = self.process(server, port, cores.len())?;
        let path = self.logs.join(format!("{}.log", server.name));
        let log = File::create(&path).and_then(|log| Ok((log.try_clone()?, log)));
        let (log, second) = log.map_err(|error| format!("{}: {error}", path.display()))?;
        process.env("PORT", port.to_string()).env("JWT_SECRET", SECRET).env("NODE_ENV", "production");
        process.stdin(Stdio::null()).stdout(log).stderr(second);
        net::end_with_us(&mut process);
        // A process is born where its parent runs.
        let child = net::keep_on(cores).and_then(|()| process.spawn());
        net::keep_on(generator).map_err(|error| format!("cannot run on cores {generator:?}: {error}"))?;
        let child = child.map_err(|error| format!("{}: {error}", process.get_program().display()))?;
        let mut running = Running { child, address: SocketAddr::from(([127, 0, 0, 1], port)), log: path };
        running.wait_until_it_listens()?;
        Ok(running)
    }

    fn process(&self, server: &Server, port: u16, shards: usize) -> Result<Process, String> {
        match server.kind {
            Kind::Ours => {
                let mut process = Process::new(self.binary.as_ref()?);
                process.arg("--config").arg(repository().join("benches/results/one-shard.toml"));
                process.args(["--listen", &format!("127.0.0.1:{port}"), "--control", "127.0.0.1:0", "--shards", &shards.to_string()]);
                Ok(process)
            }
            Kind::Rust(name) => Ok(Process::new(self.rust.as_ref()?.join(name))),
            Kind::Node(script) => {
                let mut process = Process::new("node");
                process.arg(self.node.as_ref()?.join(script));
                Ok(process)
            }
            Kind::Bun(script) => {
                let mut process = Process::new(self.bun.as_ref()?);
                process.arg(self.node.as_ref()?.join(script));
                Ok(process)
            }
        }
    }
}

/// A server that listens; it ends with this value.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_it_listens(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if let Some(status) = ended {
                return Err(format!("ended with {status} before it listened: {}", self.told()));
            }
            if started.elapsed() > START_MAX {
                return Err(format!("does not listen after {START_MAX:?}: {}", self.told()));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// The end of what it has written.
    pub(crate) fn told(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(TOLD_BYTES)..]).trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn cargo(arguments: &[impl AsRef<OsStr>]) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Process::new(cargo).args(arguments).current_dir(repository()))
}

/// Puts scripts and packages together below `target`. What is there already and up to date is left.
fn install(directory: &Path) -> Result<PathBuf, String> {
    run(Process::new("node").arg("--version")).map_err(|reason| format!("install Node.js 20 or newer (apt install nodejs): {reason}"))?;
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let sources = repository().join("benches/peers/node");
    let lock = fs::read(sources.join("package-lock.json")).map_err(|error| format!("package-lock.json: {error}"))?;
    // Copied last, after everything else went well.
    let done = directory.join("installed-package-lock.json");
    let files = fs::read_dir(&sources).map_err(|error| format!("{}: {error}", sources.display()))?;
    for file in files.flatten() {
        fs::copy(file.path(), directory.join(file.file_name())).map_err(|error| format!("{}: {error}", file.path().display()))?;
    }
    if fs::read(&done).is_ok_and(|installed| installed == lock) {
        return Ok(directory.to_owned());
    }
    let installed = run(Process::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(directory));
    installed.map_err(|reason| format!("install npm 10 or newer (apt install npm) and let it reach its registry: {reason}"))?;
    fs::write(&done, lock).map_err(|error| format!("{}: {error}", done.display()))?;
    Ok(directory.to_owned())
}

/// Runs a program to its end; the end of what it wrote is the reason when it fails.
fn run(process: &mut Process) -> Result<(), String> {
    let program = process.get_program().display().to_string();
    let output = process.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&text[text.len().saturating_sub(TOLD_BYTES)..]).trim().to_owned();
    Err(format!("{program} ended with {}: {told}", output.status))
}

/// Versions of what was measured, as far as the lock files name them.
pub(crate) fn versions() -> Vec<(&'static str, String)> {
    let npm = fs::read_to_string(repository().join("benches/peers/node/package.json")).unwrap_or_default();
    let crates = fs::read_to_string(repository().join("benches/peers/rust/Cargo.lock")).unwrap_or_default();
    versions_in(&npm, &crates)
}

fn versions_in(npm: &str, crates: &str) -> Vec<(&'static str, String)> {
    let npm: serde_json::Value = serde_json::from_str(npm).unwrap_or_default();
    let mut lines = crates.lines().peekable();
    let mut locked = HashMap::new();
    while let Some(line) = lines.next() {
        if let (Some(name), Some(next)) = (line.strip_prefix("name = "), lines.peek()) {
            locked.insert(name.trim_matches('"'), next.trim_start_matches("version = ").trim_matches('"'));
        }
    }
    let of_npm = ["ws", "socket.io", "bun", "@socket.io/bun-engine"].map(|name| (name, npm["dependencies"][name].as_str()));
    let of_crates = ["fastwebsockets", "socketioxide", "tokio", "hyper"].map(|name| (name, locked.get(name).copied()));
    of_npm.into_iter().chain(of_crates).filter_map(|(name, version)| Some((name, version?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_and_program_of_a_server_has_its_source() {
        let peers = repository().join("benches/peers");
        for server in SERVERS {
            let source = match server.kind {
                Kind::Ours => continue,
                Kind::Node(script) | Kind::Bun(script) => peers.join("node").join(script),
                Kind::Rust(name) => peers.join(format!("rust/src/bin/{name}.rs")),
            };
            assert!(source.exists(), "{}", source.display());
        }
        assert_eq!(versions().len(), 8, "{:?}", versions());
    }

    #[test]
    fn versions_are_read_from_both_kinds_of_files() {
        let found = versions_in(r#"{"dependencies":{"ws":"8.1.0"}}"#, "[[package]]\nname = \"tokio\"\nversion = \"1.2.3\"\n");
        assert_eq!(found, [("ws", "8.1.0".to_owned()), ("tokio", "1.2.3".to_owned())]);
    }

    #[test]
    fn a_program_that_is_not_there_or_fails_is_told() {
        assert!(run(&mut Process::new("/no/such/program")).is_err_and(|reason| reason.contains("/no/such/program")));
        assert!(run(Process::new("sh").args(["-c", "echo broken; exit 3"])).is_err_and(|reason| reason.contains("broken")));
    }
}
