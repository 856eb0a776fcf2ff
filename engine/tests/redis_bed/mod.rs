//! Real Redis servers for tests: private ones on free loopback ports, with their files in a folder of their own, gone when dropped. Which
//! server is told by `URINGCAST_REDIS_SERVER` (a name or a path; else `redis-server`), so that Valkey can be tested too; `redis-cli` is
//! asked by hand. It needs the standard library only, so that tests of both crates can include it.
#![allow(dead_code, reason = "each of the test programs uses a part of it")]

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No local server takes this long for anything, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> OsString {
    std::env::var_os("URINGCAST_REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// Waits until `is_so`, and fails the test when that takes too long.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("loopback has a free port").port()
}

/// A folder that goes with its owner.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("uringcast-redis-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a server is to be. Without any it keeps nothing and asks for nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    lines: Vec<String>,
    password: Option<String>,
    is_tls: bool,
    is_sentinel: bool,
    is_cluster: bool,
}

impl Setup {
    /// With a line of `redis.conf`.
    #[must_use]
    pub(crate) fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// The default user has this password.
    #[must_use]
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.line(&format!("requirepass {password}"))
    }

    /// A user more, with the rules of `ACL SETUSER`.
    #[must_use]
    pub(crate) fn user(self, name: &str, rules: &str) -> Self {
        self.line(&format!("user {name} {rules}"))
    }

    /// What is written is still there after [`Redis::kill`] and [`Redis::restart`].
    #[must_use]
    pub(crate) fn append_only(self) -> Self {
        self.line("appendonly yes").line("appendfsync always")
    }

    /// Only TLS, with a certificate for `127.0.0.1` and `localhost` that [`Redis::authority`] signed, and only for clients with one.
    #[must_use]
    pub(crate) fn tls(mut self) -> Self {
        self.is_tls = true;
        self
    }

    fn sentinel(mut self) -> Self {
        self.is_sentinel = true;
        self
    }

    fn cluster(mut self) -> Self {
        self.is_cluster = true;
        self
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(self) -> Redis {
        let folder = Folder::new();
        if self.is_tls {
            certificates(&folder.0);
        }
        // Another process may take the port in between.
        for _ in 0..5 {
            let mut redis =
                Redis { setup: self.clone(), folder: Folder(folder.0.clone()), port: free_port(), bus: free_port(), child: None };
            redis.write_configuration();
            if redis.spawn() {
                std::mem::forget(folder);
                return redis;
            }
            std::mem::forget(redis);
        }
        panic!("no server starts; it says:\n{}", fs::read_to_string(folder.0.join("log")).unwrap_or_default());
    }
}

/// A server that runs, unless it was killed.
#[derive(Debug)]
pub(crate) struct Redis {
    setup: Setup,
    folder: Folder,
    port: u16,
    /// A cluster's other port.
    bus: u16,
    child: Option<Child>,
}

impl Redis {
    /// One that keeps nothing and asks for nothing.
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    fn write_configuration(&self) {
        let port = self.port;
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            "daemonize no".to_owned(),
            format!("dir {}", self.folder.0.display()),
            format!("logfile {}", self.folder.0.join("log").display()),
        ];
        if self.setup.is_tls {
            let file = |name: &str| self.folder.0.join(name).display().to_string();
            lines.push("port 0".to_owned());
            lines.push(format!("tls-port {port}"));
            lines.push(format!("tls-cert-file {}", file("server.pem")));
            lines.push(format!("tls-key-file {}", file("server.key")));
            lines.push(format!("tls-ca-cert-file {}", file("authority.pem")));
        } else {
            lines.push(format!("port {port}"));
        }
        if !self.setup.is_sentinel {
            lines.push("save \"\"".to_owned());
            lines.push(format!("unixsocket {}", self.socket().display()));
        }
        if self.setup.is_cluster {
            lines.push("cluster-enabled yes".to_owned());
            lines.push(format!("cluster-port {}", self.bus));
        }
        lines.extend(self.setup.lines.iter().cloned());
        fs::write(self.folder.0.join("conf"), lines.join("\n") + "\n").expect("its folder is writable");
    }

    /// False when it ended at once.
    fn spawn(&mut self) -> bool {
        let mut command = Command::new(program());
        command.arg(self.folder.0.join("conf"));
        if self.setup.is_sentinel {
            command.arg("--sentinel");
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.unwrap_or_else(|error| {
            panic!("{} does not start ({error}): these tests need the package redis-server", program().to_string_lossy())
        });
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if child.try_wait().expect("it is our child").is_some() {
                return false;
            }
            if TcpStream::connect(address).is_ok() {
                self.child = Some(child);
                return true;
            }
            assert!(Instant::now() < deadline, "a server that started does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.0.join("socket")
    }

    /// The authority that signed its certificate, in PEM.
    pub(crate) fn authority(&self) -> Vec<u8> {
        fs::read(self.folder.0.join("authority.pem")).expect("it was started with TLS")
    }

    /// A client's certificate and key that it takes, in PEM.
    pub(crate) fn client(&self) -> (Vec<u8>, Vec<u8>) {
        let file = |name: &str| fs::read(self.folder.0.join(name)).expect("it was started with TLS");
        (file("client.pem"), file("client.key"))
    }

    /// Where it is, with the default user's password.
    pub(crate) fn url(&self) -> String {
        match &self.setup.password {
            Some(password) => self.url_as(&format!(":{password}@")),
            None => self.url_as(""),
        }
    }

    /// Where it is, for somebody: `user:password@`.
    pub(crate) fn url_as(&self, user: &str) -> String {
        let scheme = if self.setup.is_tls { "rediss" } else { "redis" };
        format!("{scheme}://{user}127.0.0.1:{}", self.port)
    }

    /// What `redis-cli` prints for a command, without the last line's end.
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string(), "--raw"]);
        if let Some(password) = &self.setup.password {
            command.args(["--no-auth-warning", "-a", password]);
        }
        if self.setup.is_tls {
            let file = |name: &str| self.folder.0.join(name);
            command.arg("--tls").arg("--cacert").arg(file("authority.pem"));
            command.arg("--cert").arg(file("client.pem")).arg("--key").arg(file("client.key"));
        }
        let output = command.args(words).stdin(Stdio::null()).output().expect("redis-cli comes with redis-server (package redis-tools)");
        String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        until("a killed server starts on its old port", || self.spawn());
    }

    /// True exactly when it was not killed.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Stops its process: it keeps its connections and answers nothing.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let Some(child) = &self.child else { return };
        // The shell's own: a small Debian has no other.
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status();
        assert!(status.is_ok_and(|status| status.success()), "it is our child and runs");
    }

    /// Closes the connections of a type of `CLIENT KILL TYPE` (`normal`, `pubsub`); how many there were.
    pub(crate) fn drop_clients(&self, of: &str) -> usize {
        self.cli(&["CLIENT", "KILL", "TYPE", of]).parse().expect("a count of clients")
    }

    /// Clients that are connected, in the words of `CLIENT LIST`, without the one that asks.
    pub(crate) fn clients(&self) -> Vec<String> {
        self.cli(&["CLIENT", "LIST"]).lines().filter(|line| !line.contains("cmd=client")).map(str::to_owned).collect()
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.0.join("log")).unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster: its masters first, then a replica for each where there are any.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Its nodes.
    pub(crate) nodes: Vec<Redis>,
}

/// Slots of a cluster.
const SLOTS: usize = 16_384;

impl Cluster {
    /// So many masters which share the slots evenly, and a replica for each if wanted; ready.
    pub(crate) fn start(masters: usize, has_replicas: bool) -> Self {
        // What fails is noticed and replaced after a second.
        let setup = Setup::default().cluster().line("cluster-node-timeout 1000").line("repl-diskless-sync-delay 0");
        let count = if has_replicas { masters * 2 } else { masters };
        let nodes: Vec<_> = (0..count).map(|_| setup.clone().start()).collect();
        for (at, node) in nodes.iter().enumerate() {
            if at < masters {
                let (start, end) = (SLOTS * at / masters, SLOTS * (at + 1) / masters - 1);
                assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", &start.to_string(), &end.to_string()]), "OK");
            }
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if at > 0 {
                let first = &nodes[0];
                node.cli(&["CLUSTER", "MEET", "127.0.0.1", &first.port.to_string(), &first.bus.to_string()]);
            }
        }
        let knows = |node: &Redis| node.cli(&["CLUSTER", "NODES"]).lines().filter(|line| !line.contains("handshake")).count() == count;
        until("all nodes know each other", || nodes.iter().all(knows));
        for at in masters..count {
            let master = nodes[at - masters].cli(&["CLUSTER", "MYID"]);
            until("a replica finds its master", || nodes[at].cli(&["CLUSTER", "REPLICATE", &master]) == "OK");
        }
        until("the cluster is ready", || nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")));
        for node in &nodes[masters..] {
            until("a replica is in step", || node.cli(&["INFO", "replication"]).contains("master_link_status:up"));
        }
        Self { nodes }
    }

    /// All nodes' URLs.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// The slot of a key.
    pub(crate) fn slot(&self, key: &str) -> u16 {
        self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().expect("a slot")
    }

    /// The index of the master that has a slot, as the node at `asked` sees it.
    pub(crate) fn owner(&self, asked: usize, slot: u16) -> usize {
        self.owner_for(&self.nodes[asked], slot)
    }

    /// The same, as one of its nodes sees it.
    pub(crate) fn owner_for(&self, node: &Redis, slot: u16) -> usize {
        let nodes = node.cli(&["CLUSTER", "NODES"]);
        let has = |part: &str| {
            let (start, end) = part.split_once('-').unwrap_or((part, part));
            matches!((start.parse::<u16>(), end.parse::<u16>()), (Ok(start), Ok(end)) if (start..=end).contains(&slot))
        };
        let line = nodes.lines().find(|line| line.split(' ').skip(8).any(has)).expect("somebody has the slot");
        let port = line.split(' ').nth(1).and_then(|address| address.split(['@', ':']).nth(1)).expect("an address");
        self.nodes.iter().position(|node| node.port.to_string() == port).expect("a node of this cluster")
    }

    /// Moves an empty slot from one master to another.
    pub(crate) fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let (slot, target) = (slot.to_string(), self.nodes[to].cli(&["CLUSTER", "MYID"]));
        let source = self.nodes[from].cli(&["CLUSTER", "MYID"]);
        assert_eq!(self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]), "OK");
        assert_eq!(self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]), "OK");
        assert_eq!(self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]), "OK");
        assert_eq!(self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]), "OK");
    }
}

/// A master with one replica, and those who watch them.
#[derive(Debug)]
pub(crate) struct Sentinels {
    /// The master at first, then the replica.
    pub(crate) nodes: Vec<Redis>,
    /// The sentinels; most of them must agree.
    pub(crate) sentinels: Vec<Redis>,
}

impl Sentinels {
    /// What the sentinels call the master.
    pub(crate) const MASTER: &str = "heart";

    /// Starts all, with so many sentinels, and waits until these know everybody.
    pub(crate) fn start(sentinels: usize) -> Self {
        let master = Setup::default().line("repl-diskless-sync-delay 0").start();
        let replica = Setup::default().line(&format!("replicaof 127.0.0.1 {}", master.port)).start();
        until("the replica is in step", || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
        let (name, port, quorum) = (Self::MASTER, master.port, sentinels / 2 + 1);
        let setup = Setup::default()
            .sentinel()
            .line(&format!("sentinel monitor {name} 127.0.0.1 {port} {quorum}"))
            .line(&format!("sentinel down-after-milliseconds {name} 1000"))
            .line(&format!("sentinel failover-timeout {name} 3000"));
        let sentinels: Vec<_> = (0..sentinels).map(|_| setup.clone().start()).collect();
        let others = format!("num-other-sentinels\n{}", sentinels.len() - 1);
        let knows_all = |sentinel: &Redis| {
            let said = sentinel.cli(&["SENTINEL", "MASTER", name]);
            said.contains("num-slaves\n1\n") && said.contains(&others)
        };
        until("the sentinels know everybody", || sentinels.iter().all(knows_all));
        Self { nodes: vec![master, replica], sentinels }
    }

    /// The sentinels' URLs.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Redis::url).collect()
    }
}

/// An authority, and a server's and a client's certificate that it signed. Keys on a curve, because those are made in no time.
fn certificates(folder: &Path) {
    let openssl = |words: &[&str]| {
        let output = Command::new("openssl").args(words).current_dir(folder).output().expect("the package openssl is installed");
        assert!(output.status.success(), "openssl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let mut extensions = fs::File::create(folder.join("extensions")).expect("its folder is writable");
    writeln!(extensions, "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE").expect("so is the file");
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=authority of a test", "-keyout", "authority.key", "-out", "authority.pem"];
    openssl(&[&authority[..], &curve].concat());
    for name in ["server", "client"] {
        let (subject, key, request, certificate) =
            (format!("/CN={name}"), format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        openssl(&[&["req", "-subj", &subject, "-keyout", &key, "-out", &request][..], &curve].concat());
        openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &request,
            "-CA",
            "authority.pem",
            "-CAkey",
            "authority.key",
            "-CAcreateserial",
            "-extfile",
            "extensions",
            "-out",
            &certificate,
        ]);
    }
}
