//! The built binary under test: started on free ports with a written configuration, stopped and cleaned up whatever happens.
//! Several test programs use it, so each leaves some of it unused.
#![allow(dead_code, reason = "each of the test programs uses a part of it")]

pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod programs;
pub(crate) mod raw;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Resource, Rlimit, Signal};

/// HS256 secret of every server started here.
pub(crate) const SECRET: &str = "a-secret-for-tests-only-of-more-than-32-bytes";
/// Its admin token.
pub(crate) const ADMIN_TOKEN: &str = "an-admin-token-for-tests-only";
/// Lines of the section `[limits]`: bounds that count clients are lifted, for every client of a test has the same address.
pub(crate) const MANY: &str = "connections_per_address = 1000000\nhandshakes_per_address = 1000000\nrate_messages = 1000000\n";
/// No answer of a local server takes this long, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// What the endpoints of a test server are. `/talk` lets clients publish, `/ws/fabric` retains, `/ws/open` and `/guests` ask for no
/// token, `/fixed` makes no rooms by joining, `/lobby` asks for no token
/// and lets everybody send to every room, `/kept` gives back connections that broke off.
const ENDPOINTS: &str = r#"
[[endpoint]]
name = "community"
dialect = "community"
bind = "/api/community/ws"

[[endpoint]]
name = "talk"
dialect = "community"
bind = "/talk"
client_publish = true

[[endpoint]]
name = "fabric"
dialect = "collab"
bind = "/ws/fabric"
retain = 100

[[endpoint]]
name = "agent"
dialect = "collab"
bind = "/ws/agent"

[[endpoint]]
name = "open"
dialect = "collab"
bind = "/ws/open"
auth = "none"
membership = "open"

[[endpoint]]
name = "rooms"
dialect = "rooms"
bind = "/"
auto_create = true

[[endpoint]]
name = "fixed"
dialect = "rooms"
bind = "/fixed"

[[endpoint]]
name = "guests"
dialect = "rooms"
bind = "/guests"
auth = "none"
auto_create = true

[[endpoint]]
name = "chat"
dialect = "chat"
bind = "/chat"

[[endpoint]]
name = "lobby"
dialect = "chat"
bind = "/lobby"
auth = "none"
require_membership = false

[[endpoint]]
name = "kept"
dialect = "rooms"
bind = "/kept"
auto_create = true
recovery_ms = 60000

[[endpoint]]
name = "notify"
dialect = "notify"
bind = "/notify"
"#;

/// The file of a server's configuration, in its folder.
const CONFIGURATION: &str = "uringcast.toml";

/// How a server is started; `Setup::default()` is two shards with the endpoints above and the contract's limits.
#[derive(Default)]
pub(crate) struct Setup {
    /// Lines of the section `[limits]`.
    pub(crate) limits: &'static str,
    /// Start with `--dev` instead of a configuration file and secrets.
    pub(crate) dev: bool,
    /// Start with `--test-profile` and this, instead of a configuration file and secrets.
    pub(crate) profile: Option<&'static str>,
    /// Descriptors the process may have.
    pub(crate) descriptors: Option<u32>,
    /// Its shards, two if it is not said.
    pub(crate) shards: Option<u32>,
    /// Variables it finds in its environment.
    pub(crate) variables: &'static [(&'static str, &'static str)],
    /// URL of the Redis that joins it with others.
    pub(crate) redis: Option<&'static str>,
    /// Further sections of its configuration.
    pub(crate) sections: &'static str,
    /// The network namespace that it runs in, and its address there.
    pub(crate) network: Option<(&'static str, std::net::Ipv4Addr)>,
}

/// A running server. Dropping it kills it; a failed test then shows what it had said.
pub(crate) struct Server {
    child: Child,
    said: Arc<Mutex<String>>,
    folder: PathBuf,
    /// Where clients connect.
    pub(crate) public: SocketAddr,
    /// Where health, metrics and the admin API are.
    pub(crate) control: SocketAddr,
}

impl Server {
    pub(crate) fn start(setup: &Setup) -> Server {
        let folder = fresh_folder();
        let mut command = command(setup, &folder);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("RUST_BACKTRACE", "1");
        if !setup.dev && setup.profile.is_none() {
            command.env("JWT_SECRET", SECRET).env("ADMIN_TOKEN", ADMIN_TOKEN).env("WEBSOCKET_CORS_ORIGIN", "https://app.example");
        }
        command.envs(setup.variables.iter().copied());
        let mut child = command.spawn().expect("the built binary starts");
        let stderr = child.stderr.take().expect("it was piped");
        let said = Arc::new(Mutex::new(String::new()));
        let (sender, addresses) = mpsc::channel();
        let log = said.clone();
        std::thread::spawn(move || listen(stderr, &log, &sender));
        let mut server = Server { child, said, folder, public: ([127, 0, 0, 1], 0).into(), control: ([127, 0, 0, 1], 0).into() };
        match addresses.recv_timeout(PATIENCE) {
            Ok((public, control)) => (server.public, server.control) = (public, control),
            Err(_) => panic!("the server did not say its addresses; it said:\n{}", server.said()),
        }
        server
    }

    /// Reloads it to another number of shards, as the configuration of `setup` has it else, and waits until that is done. A machine that has no time for it makes
    /// the server refuse; it is asked again then.
    pub(crate) fn reload(&self, setup: &Setup, shards: u32) {
        configure(setup, &self.folder, shards);
        let count = |outcome| self.metric("uringcast_reloads_total", &[("outcome", outcome)]);
        let done = count("done");
        for _ in 0..5 {
            let refused = count("refused");
            self.signal(Signal::HUP);
            let end = Instant::now() + PATIENCE;
            while count("refused") == refused {
                if count("done") == done + 1.0 {
                    return;
                }
                assert!(Instant::now() < end, "neither reloaded nor refused");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        panic!("it is refused again and again");
    }

    /// Everything it has written to stderr.
    pub(crate) fn said(&self) -> String {
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small")).expect("and not 0");
        rustix::process::kill_process(pid, signal).expect("the server is our child");
    }

    /// Lowers its limit of descriptors to this many more than it has open.
    pub(crate) fn leave_descriptors(&self, more: u64) {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count() as u64;
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small"));
        let limit = Rlimit { current: Some(open + more), maximum: Some(open + more) };
        rustix::process::prlimit(pid, Resource::Nofile, limit).expect("the server is our child");
    }

    /// Bytes of memory that it has.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("Linux tells it");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1_024
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < end, "the server still runs after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails if it has died or panicked.
    pub(crate) fn assert_well(&mut self) {
        if let Some(status) = self.child.try_wait().expect("our child") {
            panic!("the server is gone ({status}); it said:\n{}", self.said());
        }
        assert!(!self.said().contains("panicked at"), "the server panicked:\n{}", self.said());
    }

    /// Sum of a metric over the samples that carry all these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (status, body) = get(self.control, "/metrics");
        assert_eq!(status, 200, "metrics");
        let fits = |line: &&str| {
            let inside = line.strip_prefix(name);
            inside.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
        };
        body.lines().filter(fits).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric satisfies a condition.
    pub(crate) fn until_metric(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(name, labels);
            if wanted(value) {
                return;
            }
            assert!(Instant::now() < end, "{name}{labels:?} stays at {value}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            aloud(&format!("---- the server had said:\n{}----", self.said()));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A folder of this process and call alone.
fn fresh_folder() -> PathBuf {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("server-{}-{serial}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

fn command(setup: &Setup, folder: &std::path::Path) -> Command {
    let binary = env!("CARGO_BIN_EXE_uringcast");
    let mut command = match setup.descriptors {
        None if let Some((namespace, _)) = setup.network => {
            let mut within = Command::new("ip");
            within.args(["netns", "exec", namespace, binary]);
            within
        }
        None => Command::new(binary),
        Some(limit) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\""), binary]);
            shell
        }
    };
    let listen = setup.network.map_or_else(|| "127.0.0.1:0".to_owned(), |(_, address)| format!("{address}:0"));
    let shards = setup.shards.unwrap_or(2);
    command.args(["--listen", &listen, "--control", &listen]);
    if let Some(url) = setup.redis {
        command.args(["--redis", url]);
    }
    if setup.dev || setup.profile.is_some() {
        command.args(["--shards", &shards.to_string()]);
    }
    if setup.dev {
        command.arg("--dev");
    } else if let Some(profile) = setup.profile {
        command.args(["--test-profile", profile]);
    } else {
        configure(setup, folder, shards);
        command.arg("--config").arg(folder.join(CONFIGURATION));
    }
    command
}

fn configure(setup: &Setup, folder: &std::path::Path, shards: u32) {
    let Setup { limits, sections, .. } = setup;
    let text = format!("[server]\nshards = {shards}\n[auth]\nleeway_seconds = 0\n\n[limits]\n{limits}\n{sections}\n{ENDPOINTS}");
    std::fs::write(folder.join(CONFIGURATION), text).expect("the folder is ours");
}

/// Keeps what the server says; its start line goes to `addresses`.
fn listen(stderr: impl std::io::Read, said: &Mutex<String>, addresses: &mpsc::Sender<(SocketAddr, SocketAddr)>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Some(found) = start_line(&line) {
            // Nobody waits for a second one.
            let _ = addresses.send(found);
        }
        if let Ok(mut said) = said.lock() {
            let _ = writeln!(said, "{line}");
        }
    }
}

/// `uringcast: public http://ADDR control http://ADDR`
fn start_line(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let after = |word: &str| line.split_once(word)?.1.split_whitespace().next()?.trim_end_matches('/').parse().ok();
    Some((after("public http://")?, after("control http://")?))
}

/// Writes past the capture of the test harness: what is skipped must be seen.
pub(crate) fn aloud(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A token for this user, with further claims.
pub(crate) fn token(user: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = serde_json::json!({ "sub": user, "name": user, "exp": now + 3600, "documents": ["d"] });
    engine::auth::mint(SECRET.as_bytes(), &claims).expect("plain claims can be signed")
}

/// A plain request without a body on a connection of its own, and the whole answer; `headers` are whole lines.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a valid time");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").expect("it reads requests");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A plain GET on a connection of its own: status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = ask(address, "GET", path, "");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { joined_chunks(body) } else { body.to_owned() })
}

/// The data of a chunked body.
fn joined_chunks(mut body: &str) -> String {
    let mut data = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        data.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    data
}

/// Raises the soft limit of descriptors to the hard one (a server started later inherits it); how many there are.
pub(crate) fn all_descriptors() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).expect("up to the hard limit is allowed");
    limit.maximum.unwrap_or(u64::MAX)
}
