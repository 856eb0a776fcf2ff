//! Clients that others wrote (`ws` and `socket.io-client` from npm, `websockets`, `python-socketio` and `schemathesis` from PyPI, a browser) against the
//! built binary with two or three shards. The scripts are in `clients/`; what they need is installed by `.ci/test`. Where it is missing, a test says aloud what it
//! skipped, or fails if `URINGCAST_TEST_CLIENTS` asks for it.

mod support;

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::{ADMIN_TOKEN, SECRET, Server, Setup};

const STANDARD: Setup = Setup {
    limits: "",
    dev: false,
    profile: None,
    descriptors: None,
    shards: None,
    variables: &[],
    redis: None,
    sections: "",
    network: None,
};
/// More shards than most things need, so that what comes back comes to another one as a rule.
const THREE_SHARDS: Setup = Setup { shards: Some(3), ..STANDARD };

/// With few messages and calls for each user, and as many requests from one address as it takes.
const CALLERS: Setup = Setup { limits: "handshakes_per_address = 1000000\nrate_messages = 300\nrate_window_ms = 10000\n", ..STANDARD };

/// As many handshakes and messages as it takes.
const CALLERS_UNBOUND: Setup = Setup { limits: "handshakes_per_address = 1000000\nrate_messages = 1000000\n", ..STANDARD };

/// With clients of Engine.IO 3 beside the others.
const OLD_CLIENTS: Setup =
    Setup { variables: &[("URINGCAST_ENDPOINT_ROOMS_EIO3", "true"), ("URINGCAST_ENDPOINT_CHAT_EIO3", "true")], ..THREE_SHARDS };

/// The lines end the section of limits and begin another.
const HTTP: &str =
    concat!("[socket_io]\ncookie = 'io'\nbundle = '", env!("CARGO_TARGET_TMPDIR"), "/../clients/node_modules/socket.io-client/dist'\n");

/// Few events are kept, and whoever publishes may do so without pause.
const EVENTS: Setup = Setup { limits: "rate_messages = 1000000\n", variables: &[("URINGCAST_EVENTS_BUFFER_EVENTS", "4000")], ..STANDARD };

/// Defines one test for each script: its name, how the server is set up.
macro_rules! scripts {
    ($($test:ident: $script:literal, $setup:expr;)+) => { $(
        #[test]
        fn $test() {
            script($script, &$setup);
        }
    )+ };
}

scripts! {
    ws_one_order: "order_ws.mjs", STANDARD;
    socket_io_one_order: "order_sio.mjs", STANDARD;
    websockets_from_python: "order_py.py", STANDARD;
    community_page: "community_page.mjs", STANDARD;
    collab_page: "collab_page.mjs", STANDARD;
    rooms_page: "rooms_page.mjs", STANDARD;
    chat_page: "chat_page.mjs", STANDARD;
    notify_page: "notify_page.mjs", STANDARD;
    transports: "transports.mjs", STANDARD;
    binary: "binary.mjs", STANDARD;
    matrix: "matrix.mjs", OLD_CLIENTS;
    matrix_python: "matrix_py.py", THREE_SHARDS;
    recovery: "recovery.mjs", THREE_SHARDS;
    browser_recovery: "page_recovery.mjs", THREE_SHARDS;
    http: "http.mjs", Setup { limits: HTTP, ..STANDARD };
    admin: "admin.mjs", STANDARD;
    emits: "emits.mjs", STANDARD;
    rooms_api: "rooms_api.mjs", STANDARD;
    openapi: "openapi.py", STANDARD;
    events: "events.mjs", EVENTS;
    back_end: "back_end.mjs", STANDARD;
    session_cookies: "session_cookies.mjs", STANDARD;
    expiry: "expiry.mjs", Setup { variables: &[("URINGCAST_ENDPOINT_NOTIFY_COOKIES", "true")], ..STANDARD };
    community_rest: "community_rest.mjs", CALLERS;
    rate: "rate.mjs", Setup { limits: "rate_messages = 20\nrate_window_ms = 500\n", ..STANDARD };
    profile_engine_io: "profile.mjs", Setup { profile: Some("engine.io"), ..STANDARD };
    profile_socket_io: "profile.mjs", Setup { profile: Some("socket.io"), ..STANDARD };
    browser: "page_chat.mjs", Setup { dev: true, ..STANDARD };
    reload: "page_reload.mjs", CALLERS_UNBOUND;
}

#[test]
fn webhooks() {
    // The script listens there; nobody else takes a port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    // A few bytes, for as long as the test runs.
    let leaked = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let mut variables = vec![
        ("URINGCAST_WEBHOOKS_SECRET", SECRET),
        ("URINGCAST_WEBHOOKS_TIMEOUT_MS", "1000"),
        ("URINGCAST_WEBHOOKS_CACHE_MS", "3000"),
        ("BACK_END", leaked(free.port().to_string())),
    ];
    for endpoint in ["TALK", "FABRIC", "ROOMS", "CHAT", "NOTIFY"] {
        variables.push((leaked(format!("URINGCAST_ENDPOINT_{endpoint}_MEMBERSHIP")), "webhook"));
        for hook in ["connect", "join", "publish"] {
            if (endpoint, hook) == ("NOTIFY", "publish") {
                continue;
            }
            let url = format!("http://{free}/{hook}?key=HUSH");
            variables.push((leaked(format!("URINGCAST_ENDPOINT_{endpoint}_WEBHOOK_{}", hook.to_ascii_uppercase())), leaked(url)));
        }
    }
    let server = script("webhooks.mjs", &Setup { variables: variables.leak(), ..STANDARD });
    assert!(server.is_none_or(|server| !server.said().contains("HUSH")), "no log shows a query");
}

#[test]
fn drain_on_sigterm() {
    leaves_well("drain.mjs");
}

#[test]
fn drain_on_call() {
    leaves_well("drain_call.mjs");
}

/// Runs a script that has the server stop.
fn leaves_well(name: &str) {
    if let Some(mut server) = script(name, &STANDARD) {
        let status = server.exit(Duration::from_secs(30));
        assert_eq!(status.code(), Some(0), "exit status; it had said:\n{}", server.said());
    }
}

/// Runs one script against a server of its own, which it gives back; `None` if the tools are missing.
fn script(name: &str, setup: &Setup) -> Option<Server> {
    let interpreter = match tools(name) {
        Ok(interpreter) => interpreter,
        Err(missing) => {
            skip(name, &missing);
            return None;
        }
    };
    let mut server = Server::start(setup);
    let profile = setup.profile.unwrap_or_default();
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}{profile}.log"));
    let mut client = client(&interpreter, name, setup, &server, &log);
    assert_success(name, outcome(&mut client), &log);
    if !name.starts_with("drain") {
        server.assert_well();
    }
    Some(server)
}

/// Starts the script in a process group of its own, which takes a browser's many processes along when it is ended.
fn client(interpreter: &Path, name: &str, setup: &Setup, server: &Server, log: &Path) -> Child {
    let file = std::fs::File::create(log).expect("the target folder can be written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    Command::new(interpreter)
        .arg(script)
        .envs(setup.variables.iter().copied())
        .env("PORT", server.public.port().to_string())
        .env("CONTROL", server.control.port().to_string())
        .env("PROFILE", setup.profile.unwrap_or_default())
        .env("SECRET", SECRET)
        .env("ADMIN_TOKEN", ADMIN_TOKEN)
        .env("PID", server.pid().to_string())
        .env("BINARY", env!("CARGO_BIN_EXE_uringcast"))
        .env("CLIENT_MODULES", clients_folder())
        .env("SCREENSHOT", clients_folder().join(name).with_extension("png"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("one more descriptor"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("the interpreter is there")
}

/// `target/clients`, where `.ci/test` installs packages.
fn clients_folder() -> PathBuf {
    target_folder().join("clients")
}

/// The interpreter for a script, or what is missing.
fn tools(script: &str) -> Result<PathBuf, String> {
    if script.ends_with(".py") {
        let python = clients_folder().join("venv/bin/python3");
        let imports = Command::new(&python).args(["-c", "import websockets, socketio, schemathesis"]).stderr(Stdio::null()).status();
        let is_complete = imports.is_ok_and(|status| status.success());
        return if is_complete { Ok(python) } else { Err("Python's websockets, socketio and schemathesis in target/clients/venv".into()) };
    }
    let node = in_path("node").ok_or("node")?;
    for package in ["ws", "socket.io-client", "socket.io-client-3", "socket.io-client-2", "playwright-core", "next-auth", "@auth/core"] {
        if !clients_folder().join("node_modules").join(package).exists() {
            return Err(format!("{package} in target/clients/node_modules"));
        }
    }
    if script.starts_with("page_") && !Path::new("/usr/bin/chromium").exists() {
        return Err("/usr/bin/chromium".into());
    }
    Ok(node)
}
