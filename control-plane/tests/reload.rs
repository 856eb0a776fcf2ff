//! Reloads of the built binary that change something or cannot be done: other programs in its place, other configurations, another number of shards, a state that the next program does not
//! take. Whatever comes of it, a client that was there stays, and is answered. That clients of others notice nothing is shown by `real_clients`.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use support::raw::{Raw, TEXT, frame, upgrade};
use support::{ADMIN_TOKEN, PATIENCE, SECRET, Server, Setup, get, token};

/// Held while a program is written or started: a child that is just being started has what is being written open too, and for so long nobody can run it
/// (ETXTBSY).
static PROGRAMS: Mutex<()> = Mutex::new(());

fn programs() -> MutexGuard<'static, ()> {
    PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server whose program and configuration stand in a folder of their own.
struct Place {
    folder: PathBuf,
    child: Child,
    public: SocketAddr,
    control: SocketAddr,
    said: Arc<Mutex<String>>,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

impl Place {
    fn start(name: &str) -> Place {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("reload-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        let (public, control) = (free_address(), free_address());
        let child = {
            let _alone = programs();
            Command::new("true").spawn().expect("it is everywhere")
        };
        let mut place = Place { child, folder, public, control, said: Arc::default() };
        let _ = place.child.wait();
        place.put_program(Path::new(env!("CARGO_BIN_EXE_uringcast")));
        place.configure(2, "");
        let starting = programs();
        let mut child = Command::new(place.program())
            .arg("--config")
            .arg(place.folder.join("uringcast.toml"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("JWT_SECRET", SECRET)
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the built binary starts");
        drop(starting);
        let stderr = BufReader::new(child.stderr.take().expect("it was piped"));
        let said = place.said.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                said.lock().expect("nobody panics with it").push_str(&(line + "\n"));
            }
        });
        place.child = child;
        place.until(|place| place.said().contains("serves: public"));
        place
    }

    fn program(&self) -> PathBuf {
        self.folder.join("uringcast")
    }

    /// Puts a program in the place, as packages do: beside it first, and then by its name.
    fn put_program(&self, program: &Path) {
        let _alone = programs();
        let beside = self.folder.join("uringcast.new");
        std::fs::copy(program, &beside).expect("a readable program");
        std::fs::rename(beside, self.program()).expect("the folder is ours");
    }

    fn put_script(&self, text: &str) {
        let _alone = programs();
        let beside = self.folder.join("script");
        std::fs::write(&beside, text).expect("the folder is ours");
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        std::fs::rename(beside, self.program()).expect("the folder is ours");
    }

    fn configure(&self, shards: u32, more: &str) {
        let Place { public, control, .. } = self;
        let text = format!(
            "[server]\nlisten = '{public}'\nshards = {shards}\n[control]\nlisten = '{control}'\n{more}\n[[endpoint]]\nname = 'community'\ndialect = 'community'\nbind = '/ws'\n"
        );
        std::fs::write(self.folder.join("uringcast.toml"), text).expect("the folder is ours");
    }

    fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").clone()
    }

    fn until(&self, wanted: impl Fn(&Place) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !wanted(self) {
            assert!(Instant::now() < end, "it has said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many reloads were done and refused.
    fn reloads(&self) -> [u64; 2] {
        let body = get(self.control, "/metrics").1;
        ["done", "refused"].map(|outcome| {
            let name = format!("uringcast_reloads_total{{outcome=\"{outcome}\"}} ");
            body.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
        })
    }

    /// Asks for a reload.
    fn hang_up(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small")).expect("and not 0");
        rustix::process::kill_process(pid, Signal::HUP).expect("the server is our child");
    }

    /// Reloads, and returns what came of it: true when it was done.
    fn reload(&self) -> bool {
        let before = self.said().matches("reloaded").count();
        self.hang_up();
        self.until(|place| place.said().matches("reloaded").count() > before);
        !self.said().lines().rfind(|line| line.contains("reloaded")).expect("it was just there").contains("not reloaded")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            support::aloud(&format!("---- the server had said:\n{}----", self.said()));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A client that is asked whether it is still there.
struct Client(TcpStream);

impl Client {
    fn new(place: &Place, user: &str) -> Client {
        let stream = TcpStream::connect(place.public).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a valid time");
        let mut client = Client(stream);
        client.0.write_all(upgrade(&format!("/ws?token={}", token(user))).as_bytes()).expect("it reads");
        client.until("Connected to WebSocket server");
        client
    }

    fn until(&mut self, wanted: &str) {
        let (mut heard, mut bytes) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&heard).contains(wanted) {
            let count = self.0.read(&mut bytes).expect("the connection lives");
            assert!(count > 0, "the connection has ended; it had heard {:?}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&bytes[..count]);
        }
    }

    fn ping(&mut self) {
        self.0.write_all(&frame(TEXT, br#"{"type":"PING"}"#)).expect("the connection lives");
        self.until("PONG");
    }
}

#[test]
fn a_new_program_and_another_number_of_shards_take_over() {
    let place = Place::start("upgrade");
    let mut clients: Vec<Client> = (0..8).map(|number| Client::new(&place, &format!("user{number}"))).collect();
    for (round, shards) in [3, 1, 2].into_iter().enumerate() {
        // The same program once more, but another file, as after an upgrade.
        place.put_program(Path::new(env!("CARGO_BIN_EXE_uringcast")));
        place.configure(shards, "");
        assert!(place.reload(), "{}", place.said());
        clients.iter_mut().for_each(Client::ping);
        clients.push(Client::new(&place, &format!("late{round}")));
        let program = std::fs::read_link(format!("/proc/{}/exe", place.child.id())).expect("it runs");
        assert_eq!(program, place.program(), "the program that stands there now");
        let ready = get(place.control, "/readyz").1;
        assert_eq!(ready.matches("\"responsive\":true").count(), shards as usize, "{ready}");
    }
    assert_eq!(place.reloads(), [3, 0]);
}

#[test]
fn what_the_next_program_would_refuse_is_refused_before_anything_stops() {
    let place = Place::start("refused");
    let mut client = Client::new(&place, "alice");
    let script = |text: &str| place.put_script(text);
    let bad: [(&str, &dyn Fn()); 5] = [
        ("nonsense", &|| place.configure(2, "[nonsense]\nkey = 1")),
        ("cannot be read", &|| std::fs::remove_file(place.folder.join("uringcast.toml")).expect("it is there")),
        ("versions 3 to 4", &|| script("#!/bin/sh\necho 'the state has version 2, and versions 3 to 4 can be taken over' >&2\nexit 78\n")),
        ("signal", &|| script("#!/bin/sh\nkill -SEGV $$\n")),
        ("Exec format error", &|| script("\u{7f}ELF and nothing more")),
    ];
    for (number, (reason, spoil)) in bad.into_iter().enumerate() {
        spoil();
        assert!(!place.reload(), "{reason}");
        assert!(
            place.said().lines().rfind(|line| line.contains("not reloaded")).is_some_and(|line| line.contains(reason)),
            "{reason}: {}",
            place.said()
        );
        client.ping();
        assert_eq!(place.reloads(), [0, number as u64 + 1]);
        place.configure(2, "");
        place.put_program(Path::new(env!("CARGO_BIN_EXE_uringcast")));
    }
    assert!(place.reload(), "when all is well again it is done: {}", place.said());
    client.ping();
}

#[test]
fn a_program_that_cannot_take_over_gives_the_process_back() {
    let mut place = Place::start("given-back");
    let mut client = Client::new(&place, "alice");
    // It is right to look at, but somebody has that port: the next program finds out when it is too late to say no.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let control = place.control;
    place.control = taken.local_addr().expect("bound");
    place.configure(2, "");
    place.control = control;
    assert!(!place.reload());
    assert!(place.said().contains("Address already in use"), "{}", place.said());
    client.ping();
    Client::new(&place, "bob").ping();
    assert_eq!(place.reloads(), [0, 1]);
    place.configure(2, "");
    assert!(place.reload(), "and it can reload again: {}", place.said());
    client.ping();
}

#[test]
fn whom_the_next_program_leaves_behind_is_not_waited_for() {
    let place = Place::start("left-behind");
    let mut client = Client::new(&place, "alice");
    // It is gone at once, but somebody whom it has started has its standard error, and goes on talking.
    let talks = "while sleep 0.1 && echo more; do :; done >&2 & echo 'no such state' >&2; exit 78";
    place.put_script(&format!("#!/bin/sh\ntimeout 20 sh -c '{}'\n", talks.replace('\'', "'\\''")));
    let began = Instant::now();
    assert!(!place.reload());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(place.said().contains("no such state"), "{}", place.said());
    client.ping();
}

/// A stop that is wished while a reload is under way goes before it: whoever has wished it may not find the server serving on.
#[test]
fn a_drain_that_is_wished_during_a_reload_is_not_forgotten() {
    let wish = format!(
        "POST /v1/drain HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{{\"seconds\":0}}"
    );
    let (head, body) = wish.split_at(wish.len() - 5);
    // While the next program is asked whether it can take over, and when clients are not heard any more.
    for (name, checking_s) in [("drained-check", 1), ("drained-pause", 0)] {
        let mut place = Place::start(name);
        let beside = place.folder.join("uringcast.real");
        {
            let _alone = programs();
            std::fs::copy(place.program(), &beside).expect("a readable program");
        }
        place.put_script(&format!(
            "#!/bin/sh\ncase \"$*\" in *check-config*) sleep {checking_s};; esac\nexec '{}' \"$@\"\n",
            beside.display()
        ));
        let mut asking = TcpStream::connect(place.control).expect("it listens");
        asking.set_read_timeout(Some(PATIENCE)).expect("a valid time");
        asking.write_all(head.as_bytes()).expect("it reads");
        std::thread::sleep(Duration::from_millis(200));
        place.hang_up();
        // In the second case the pause has begun, and lasts until the rest of the request has come or a second is over.
        std::thread::sleep(Duration::from_millis(400));
        asking.write_all(body.as_bytes()).expect("it reads");
        let mut answer = String::new();
        asking.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 202"), "{name}: {answer:?}");
        let end = Instant::now() + PATIENCE;
        while place.child.try_wait().expect("our child").is_none() {
            assert!(Instant::now() < end, "{name}: it serves on; it has said:\n{}", place.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(place.said().contains("not reloaded: the server is to stop"), "{name}: {}", place.said());
    }
}

#[test]
fn what_dev_has_made_up_stays_good() {
    let starting = programs();
    let server = Server::start(&Setup { dev: true, ..Setup::default() });
    drop(starting);
    let page = get(server.public, "/dev/token?sub=alice").1;
    let token = page.split('"').nth(3).expect("{\"token\":\"...\"}");
    let enter = || Raw::open(&server, &format!("/api/community/ws?token={token}")).text();
    let greeting = enter();
    server.signal(Signal::HUP);
    server.until_metric("uringcast_reloads_total", &[("outcome", "done")], |done| done == 1.0);
    assert_eq!(enter().split(',').next(), greeting.split(',').next());
}
