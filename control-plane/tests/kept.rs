//! A killed process whose connections a service manager has kept (`server.keep_sockets`): the manager is this test, which hears what systemd would, holds what it is given and passes it to
//! the next process. With systemd itself it is a case of `systemd_boot`.

mod support;

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal, kill_process};
use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::raw::{Next, Raw, upgrade};
use support::{PATIENCE, SECRET, aloud, get, token};

/// What a manager with a place for descriptors knows of a service.
#[derive(Default)]
struct Known {
    kept: Vec<(String, OwnedFd)>,
    said: Vec<String>,
}

/// A service manager.
struct Manager {
    path: PathBuf,
    known: Arc<Mutex<Known>>,
}

impl Manager {
    /// `has_place`: otherwise it drops what it is given without a word.
    fn start(name: &str, has_place: bool) -> Manager {
        let path = std::env::temp_dir().join(format!("uringcast-kept-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a free path");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("ours");
        let known = Arc::<Mutex<Known>>::default();
        let own = known.clone();
        std::thread::spawn(move || {
            loop {
                hear(&socket, &own, has_place);
            }
        });
        Manager { path, known }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nobody panics with it")
    }

    fn count(&self) -> usize {
        self.known().kept.len()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn hear(socket: &UnixDatagram, known: &Mutex<Known>, has_place: bool) {
    let (mut text, mut space) = ([0; 512], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [std::io::IoSliceMut::new(&mut text)];
    let Ok(message) = rustix::net::recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC) else { return };
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|part| if let RecvAncillaryMessage::ScmRights(descriptors) = part { Some(descriptors) } else { None })
        .flatten()
        .collect();
    let text = String::from_utf8_lossy(&text[..message.bytes]).into_owned();
    let mut known = known.lock().expect("nobody panics with it");
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
    if text.contains("FDSTOREREMOVE=1") {
        known.kept.retain(|(kept, _)| *kept != name);
    } else if text.contains("FDSTORE=1") && has_place {
        assert!(text.contains("FDPOLL=0"), "or it is dropped when the process ends");
        known.kept.extend(descriptors.into_iter().map(|descriptor| (name.clone(), descriptor)));
    }
    known.said.push(text);
}

struct Service {
    child: Child,
    public: SocketAddr,
    control: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Service {
    /// With what the manager has kept, at most two, by the numbers that follow the usual ones.
    fn start(manager: &Manager, addresses: [SocketAddr; 2]) -> Service {
        Service::start_as(manager, addresses, &[], "")
    }

    /// `before` is done in its shell first; `run` is the program that runs the shell.
    fn start_as(manager: &Manager, [public, control]: [SocketAddr; 2], run: &[&str], before: &str) -> Service {
        let mut kept: VecDeque<_> = manager.known().kept.iter().map(|(_, end)| end.try_clone().expect("a descriptor")).collect();
        let names = vec!["connections"; kept.len()].join(":");
        let script = match kept.len() {
            0 => format!("{before} exec \"$0\" \"$@\" </dev/null"),
            count => format!(
                "export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}; exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null >/dev/null"
            ),
        };
        let words = [run, &["sh"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["-c", &script, env!("CARGO_BIN_EXE_uringcast"), "--shards", "2"]);
        command.args(["--listen", &public.to_string(), "--control", &control.to_string()]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("JWT_SECRET", SECRET);
        command.env("NOTIFY_SOCKET", &manager.path).env("URINGCAST_SERVER_KEEP_SOCKETS", "true");
        let mut place = || kept.pop_front().map_or_else(Stdio::null, Stdio::from);
        command.stdin(place()).stdout(place()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("there is a shell");
        let stderr = BufReader::new(child.stderr.take().expect("it was piped"));
        let said = Arc::<Mutex<String>>::default();
        let own = said.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                own.lock().expect("nobody panics with it").push_str(&(line + "\n"));
            }
        });
        let service = Service { child, public, control, said };
        service.until("it serves", || service.said().contains("serves: public"));
        service
    }

    fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").clone()
    }

    fn until(&self, what: &str, wanted: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !wanted() {
            assert!(Instant::now() < end, "not in time: {what}; it has said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let body = get(self.control, "/metrics").1;
        let sample = |line: &str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit(' ').next()?.parse::<f64>().ok();
        body.lines().filter_map(sample).sum()
    }

    fn until_kept(&self, count: u32) {
        self.until("copies are kept", || self.metric("uringcast_kept_sockets") == f64::from(count));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
    }

    fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    fn client(&self, path: &str) -> Raw {
        let mut client = Raw::connect(self.public);
        client.send(upgrade(path).as_bytes());
        assert_eq!(client.status(), Some(101), "{path}");
        client
    }

    fn community(&self) -> Raw {
        let mut client = self.client(&format!("/api/community/ws?token={}", token("alice")));
        client.text_with("USER_JOINED");
        client
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            aloud(&format!("---- the server had said:\n{}----", self.said()));
        }
    }
}

fn addresses() -> [SocketAddr; 2] {
    // Both at once, or they are one.
    let taken = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    taken.map(|listener| listener.local_addr().expect("bound"))
}

/// Payload of the close frame that comes before the end.
fn goodbye(mut client: Raw) -> Vec<u8> {
    loop {
        match client.next() {
            Next::Frame(8, payload) => {
                client.send(&support::raw::frame(0x88, &payload));
                assert_eq!(client.next(), Next::End);
                return payload;
            }
            Next::Frame(..) => {}
            Next::End => panic!("it ended without a goodbye"),
        }
    }
}

#[test]
fn the_next_process_says_goodbye_for_one_that_was_killed() {
    let (manager, addresses) = (Manager::start("killed", true), addresses());
    let mut service = Service::start(&manager, addresses);
    service.until("one queue for each shard is kept", || manager.count() == 2);
    let plain: Vec<_> = (0..10).map(|_| service.community()).collect();
    let engine_io: Vec<_> = (0..3).map(|_| service.client("/socket.io/?EIO=4&transport=websocket")).collect();
    let closed = service.community();
    service.until_kept(14);
    drop(closed);
    service.until_kept(13);
    // Copies go over a reload as well.
    service.signal(Signal::HUP);
    service.until("it has reloaded", || service.said().contains("reloaded (number 1)"));
    service.until_kept(13);
    service.until("those of before are gone", || manager.count() == 2);
    service.kill();
    for client in &plain {
        client.stream.set_nonblocking(true).expect("a socket");
        assert!(client.stream.peek(&mut [0]).is_err(), "it is open, and nothing is said");
        client.stream.set_nonblocking(false).expect("a socket");
    }
    let mut service = Service::start(&manager, addresses);
    for client in plain {
        assert_eq!(goodbye(client), [0x03, 0xf4], "service restart");
    }
    for client in engine_io {
        assert!(goodbye(client).is_empty());
    }
    service.until("it says so", || service.said().contains("13 of its clients were told, 0 were gone"));
    service.until("only the new ones are kept", || manager.count() == 2);
    let client = service.community();
    service.until_kept(1);
    service.signal(Signal::TERM);
    assert_eq!(goodbye(client), [0x03, 0xe9], "a stop has its own goodbye");
    assert!(service.child.wait().expect("our child").success());
    let end = Instant::now() + PATIENCE;
    while manager.count() > 0 {
        assert!(Instant::now() < end, "an orderly stop leaves nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// 200 of `ws`, and those of `socket.io-client` on all its transports, as they are.
#[test]
fn clients_of_others_are_told_and_come_back() {
    let modules = target_folder().join("clients/node_modules");
    let Some(node) = in_path("node") else { return skip("clients of a killed process", "node") };
    if ["ws", "socket.io-client"].iter().any(|package| !modules.join(package).exists()) {
        return skip("clients of a killed process", "ws and socket.io-client in target/clients/node_modules");
    }
    let (manager, addresses) = (Manager::start("others", true), addresses());
    let mut service = Service::start(&manager, addresses);
    let mut clients = Command::new(node);
    clients
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/kept.mjs"))
        .env("CLIENT_MODULES", target_folder().join("clients"))
        .env("SECRET", SECRET);
    clients.env("PORT", addresses[0].port().to_string()).env("CONTROL", addresses[1].port().to_string());
    let log = std::env::temp_dir().join(format!("uringcast-kept-clients-{}", std::process::id()));
    let output = std::fs::File::create(&log).expect("a folder for such things");
    clients.stdin(Stdio::null()).stdout(output.try_clone().expect("a descriptor")).stderr(output).process_group(0);
    let mut clients = clients.spawn().expect("it is in the path");
    let told = || std::fs::read_to_string(&log).unwrap_or_default();
    let end = Instant::now() + 4 * PATIENCE;
    while !told().contains("ready") && clients.try_wait().expect("our child").is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    if told().contains("ready") {
        service.until_kept(220);
        service.kill();
        service = Service::start(&manager, addresses);
    }
    assert_success("the clients", outcome(&mut clients), &log);
    let _ = std::fs::remove_file(&log);
    assert!(service.said().contains("220 of its clients were told, 0 were gone"), "{}", service.said());
}

/// What is in flight counts against the user's descriptors (RLIMIT_NOFILE), for everybody but the administrator.
#[test]
fn what_is_closed_makes_room_when_the_kernel_takes_no_more() {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && in_path("setpriv").is_none() {
        return skip("the bound of what is in flight", "setpriv");
    }
    // Somebody who has no other process.
    let user = format!("--reuid={}", 3_000_000 + std::process::id());
    let run = if is_root { &["setpriv", &user, "--clear-groups"][..] } else { &[] };
    let manager = Manager::start("bounded", true);
    let service = Service::start_as(&manager, addresses(), run, "ulimit -n 400;");
    let open = || (0..250).map(|_| service.client("/socket.io/?EIO=4&transport=websocket")).collect::<Vec<_>>();
    // The kernel looks at what is in flight before a message, however much is in that; and who is closed leaves by himself after a while. So it may take some rounds.
    let is_refused = (0..20).any(|_| {
        let clients = open();
        service.until_kept(250);
        drop(clients);
        service.until_kept(0);
        service.metric("uringcast_keep_refused_total") > 0.0
    });
    assert!(is_refused, "250 that were closed, and as many again and again, are not in flight together");
}

#[test]
fn a_manager_without_a_place_is_found_out() {
    let (manager, addresses) = (Manager::start("placeless", false), addresses());
    let mut service = Service::start(&manager, addresses);
    assert!(
        service.said().contains("server.keep_sockets has no effect: the service manager does not keep what it is given"),
        "{}",
        service.said()
    );
    let client = service.community();
    service.kill();
    let mut client = client;
    assert_eq!(client.next(), Next::End, "the kernel closes it");
    let said = &manager.known().said;
    assert!(!said.iter().any(|text| text.contains("FDNAME=connections")), "{said:?}");
}

#[test]
fn nobody_to_keep_them_is_said() {
    let nowhere = Manager { path: Path::new("/nonexistent/notify").to_owned(), known: Arc::default() };
    let service = Service::start(&nowhere, addresses());
    assert!(service.said().contains("server.keep_sockets has no effect: the service manager cannot be told"), "{}", service.said());
}
