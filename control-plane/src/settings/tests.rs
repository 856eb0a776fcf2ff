//! The settings as a whole: precedence, every kind of problem, `--dev`, and the reference that `print-config` writes. The
//! environment is a map and the file lies in a directory of its own: no test touches what the process has.

use engine::config::{Adapter, AuthMode, DialectKind, Io, Membership, RelayMode};
use engine::event::{EventType, EventTypes};
use engine::limits::Limits;

use super::scratch::Scratch;
use super::table::{Setting, settings};
use super::*;

const SECRET: &str = "a secret for tests only";

/// A certificate and its key, which tests of TLS have.
struct Tls {
    certificate: &'static str,
    key: &'static str,
}

const TLS: Tls = Tls {
    certificate: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/certificate.pem"),
    key: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/key.pem"),
};

/// A file, variables, and what is expected of them.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// Settings from a file's text and variables, to which a token secret is added.
fn load(file: &str, pairs: &[(&str, &str)]) -> Result<Settings, Problems> {
    load_with(file, pairs, Flags::default())
}

fn load_with(file: &str, pairs: &[(&str, &str)], flags: Flags) -> Result<Settings, Problems> {
    let file = Scratch::file(file);
    let mut environment = environment(pairs);
    environment.insert("JWT_SECRET".into(), SECRET.into());
    Settings::load(&Flags { config: Some(file.path().to_owned()), ..flags }, &environment)
}

fn dev() -> Flags {
    Flags { dev: true, ..Flags::default() }
}

/// What is said about a file and variables, a line per problem.
fn complaints(file: &str, pairs: &[(&str, &str)]) -> String {
    load(file, pairs).expect_err("problems").to_string()
}

fn verifies(settings: &Settings, secret: &str) -> bool {
    let token = engine::auth::mint(secret.as_bytes(), &serde_json::json!({"sub": "alice"})).expect("an object");
    settings.engine.verifier.as_ref().expect("a verifier").verify(&token, 0).is_ok()
}

/// Where Redis is, as the engine is told.
fn redis_urls(settings: &Settings) -> Vec<String> {
    settings.engine.relay.as_ref().map(|relay| relay.redis.urls.clone()).unwrap_or_default()
}

#[test]
fn without_a_word_the_contract_holds() {
    let settings = load("", &[]).expect("good settings");
    let engine = &settings.engine;
    assert_eq!(engine.listen.to_string(), "0.0.0.0:3000");
    assert_eq!(settings.control_listen, ControlListen::Tcp(([127, 0, 0, 1], 9464).into()));
    assert_eq!(format!("{:?}", engine.limits), format!("{:?}", Limits::default()));
    assert_eq!(format!("{:?}", engine.socket_io), format!("{:?}", SocketIo::default()));
    assert_eq!((engine.io, settings.drain, settings.any_origin, settings.dev), (Io::Auto, Duration::from_secs(10), false, false));
    assert!(engine.origins.is_empty() && engine.trusted_proxies.is_empty() && settings.warnings.is_empty());
    assert!(settings.admin_token.is_none() && settings.dev_secret.is_none() && settings.redis.is_none());
    assert!(!engine.shards.is_empty() && engine.shards.iter().all(Option::is_some));
    assert!(verifies(&settings, SECRET) && !verifies(&settings, "another secret"));
    let bound: Vec<_> = engine.endpoints.iter().map(|one| (one.name.as_str(), one.bind.as_str(), one.membership, one.auth)).collect();
    let expected = [
        ("community", "/api/community/ws", Membership::Auto, AuthMode::Token),
        ("fabric", "/ws/fabric", Membership::Claims, AuthMode::Token),
        ("agent", "/ws/agent", Membership::Claims, AuthMode::Token),
        ("workflow", "/ws/workflow", Membership::Claims, AuthMode::Token),
        ("notifications", "/ws/notifications", Membership::Claims, AuthMode::Token),
        ("rooms", "/", Membership::Open, AuthMode::Token),
        ("chat", "/chat", Membership::Open, AuthMode::Token),
        ("notify", "/notify", Membership::Open, AuthMode::Token),
    ];
    assert_eq!(bound, expected);
    assert!(engine.endpoints.iter().all(|one| one.cookies == (one.dialect != DialectKind::Notify)
        && !one.client_publish
        && !one.auto_create
        && one.require_membership
        && one.retain == 0));
}

#[test]
fn the_flag_wins_over_the_variable_over_the_old_one_over_the_file() {
    let file = "[server]\nlisten = '10.0.0.1:1'\nshards = 3\n[limits]\nmessage_bytes = 300";
    let (new, old) = (("URINGCAST_SERVER_LISTEN", "10.0.0.2:2"), ("PORT", "80"));
    let listen = |pairs: &[(&str, &str)], flags: Flags| load_with(file, pairs, flags).expect("good settings").engine.listen.to_string();
    let flag = Flags { listen: Some("10.0.0.3:3".into()), ..Flags::default() };
    assert_eq!(listen(&[new, old], flag), "10.0.0.3:3");
    assert_eq!(listen(&[new, old], Flags::default()), "10.0.0.2:2");
    assert_eq!(listen(&[old], Flags::default()), "10.0.0.1:80", "the old variable sets the port alone");
    assert_eq!(listen(&[("WEBSOCKET_PORT", "81"), old], Flags::default()), "10.0.0.1:81");
    assert_eq!(listen(&[("WEBSOCKET_PORT", ""), old], Flags::default()), "10.0.0.1:80", "an empty one is not set");
    assert_eq!(listen(&[], Flags::default()), "10.0.0.1:1");

    let message_bytes = |pairs: &[(&str, &str)]| load(file, pairs).expect("good settings").engine.limits.message_bytes;
    let (new, old) = (("URINGCAST_LIMITS_MESSAGE_BYTES", "100"), ("WEBSOCKET_MAX_BUFFER_SIZE", "200"));
    assert_eq!((message_bytes(&[new, old]), message_bytes(&[old]), message_bytes(&[])), (100, 200, 300));

    let shards = |pairs: &[(&str, &str)], flags: Flags| load_with(file, pairs, flags).expect("good settings").engine.shards.len();
    let flag = Flags { shards: Some("5".into()), ..Flags::default() };
    assert_eq!((shards(&[("URINGCAST_SERVER_SHARDS", "4")], flag), shards(&[], Flags::default())), (5, 3));
}

#[test]
fn old_variables_are_understood() {
    let pairs = [
        ("WEBSOCKET_CORS_ORIGIN", "https://a.example.com, https://b.example.com/"),
        ("FRONTEND_URL", "https://c.example.com/app?x=1"),
        ("WEBSOCKET_PATH", "/realtime"),
        ("WEBSOCKET_PING_TIMEOUT", "2000"),
        ("WEBSOCKET_PING_INTERVAL", "1000"),
        ("WEBSOCKET_MAX_BUFFER_SIZE", "100000000"),
        ("WEBSOCKET_MAX_CONNECTIONS", "5000"),
        ("WEBSOCKET_RATE_LIMIT_WINDOW", "60000"),
        ("REDIS_HOST", "redis"),
        ("REDIS_PORT", "6380"),
        ("REDIS_PASSWORD", "p@ss"),
        ("ADMIN_TOKEN", "an admin token"),
    ];
    let problems = complaints("", &pairs);
    assert!(problems.contains("control.token") && problems.contains("visible ASCII") && !problems.contains("an admin"), "{problems}");
    let settings = load("", &[&pairs[..11], &[("ADMIN_TOKEN", "an-admin-token-of-length")]].concat()).expect("good settings");
    let engine = &settings.engine;
    assert_eq!(engine.origins, ["https://a.example.com", "https://b.example.com", "https://c.example.com"]);
    assert_eq!(
        (engine.socket_io.path.as_str(), engine.socket_io.ping_interval_ms, engine.socket_io.ping_timeout_ms),
        ("/realtime/", 1_000, 2_000)
    );
    assert_eq!((engine.limits.message_bytes, engine.limits.outbox_bytes), (100_000_000, 100_000_000), "the queue grows with the message");
    assert_eq!((engine.limits.connections, engine.limits.rate_window_ms), (Some(5_000), 60_000));
    assert_eq!(redis_urls(&settings), ["redis://:p%40ss@redis:6380"]);
    assert_eq!(settings.redis.as_deref(), Some("redis://...@redis:6380"));
    assert!(settings.admin_token.as_ref().is_some_and(|token| token.matches(b"an-admin-token-of-length")));
    assert_eq!(settings.warnings.len(), 1, "that the password is not hidden: {:?}", settings.warnings);
    assert!(!format!("{settings:?}").contains("p%40ss"));
}

#[test]
fn old_variables_count_alone_and_in_their_order() {
    let origins = |pairs: &[(&str, &str)]| {
        let settings = load("", pairs).expect("good settings");
        (settings.engine.origins, settings.any_origin)
    };
    let list = |text: &str| vec![text.to_owned()];
    assert_eq!(origins(&[("WEBSOCKET_CORS_ORIGIN", "http://localhost:3000")]), (list("http://localhost:3000"), false));
    assert_eq!(origins(&[("FRONTEND_URL", "http://localhost:5173")]), (list("http://localhost:5173"), false));
    assert_eq!(
        origins(&[("WEBSOCKET_CORS_ORIGIN", "*"), ("FRONTEND_URL", "http://localhost:5173")]),
        (list("http://localhost:5173"), true)
    );
    let redis = |pairs: &[(&str, &str)]| redis_urls(&load("", pairs).expect("good settings")).pop();
    let (url, host) = (("REDIS_URL", "redis://localhost:6379"), ("REDIS_HOST", "other"));
    assert_eq!(redis(&[url, host, ("REDIS_PASSWORD", "x")]).as_deref(), Some("redis://localhost:6379"));
    assert_eq!(redis(&[host]).as_deref(), Some("redis://other:6379"));
    assert_eq!(redis(&[("REDIS_PORT", "6379"), ("REDIS_PASSWORD", "x"), ("REDIS_URL", "")]), None, "without a host there is none");
    // As they stand in the documents of the replaced servers.
    let path = |text: &str| load("", &[("WEBSOCKET_PATH", text)]).expect("good settings").engine.socket_io.path;
    assert_eq!((path("/socket.io"), path("/socket.io/"), path("")), ("/socket.io/".into(), "/socket.io/".into(), "/socket.io/".into()));
}

#[test]
fn every_old_variable_is_named_in_the_reference() {
    let printed = print(&Flags::default(), &Environment::new()).expect("no problems");
    for name in [
        "WEBSOCKET_PORT",
        "PORT",
        "JWT_SECRET",
        "NEXTAUTH_SECRET",
        "AUTH_SECRET",
        "ADMIN_TOKEN",
        "WEBSOCKET_CORS_ORIGIN",
        "FRONTEND_URL",
        "WEBSOCKET_PATH",
        "WEBSOCKET_PING_TIMEOUT",
        "WEBSOCKET_PING_INTERVAL",
        "WEBSOCKET_MAX_BUFFER_SIZE",
        "WEBSOCKET_MAX_CONNECTIONS",
        "WEBSOCKET_RATE_LIMIT_WINDOW",
        "REDIS_URL",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_PASSWORD",
    ] {
        assert!(printed.contains(name), "{name} is missing");
    }
}

#[test]
fn every_setting_has_a_variable() {
    let pairs = [
        ("URINGCAST_SERVER_PIN", "false"),
        ("URINGCAST_SERVER_IO", "epoll"),
        ("URINGCAST_SERVER_DRAIN_SECONDS", "0"),
        ("URINGCAST_SERVER_TRUSTED_PROXIES", "10.0.0.1, ::1"),
        ("URINGCAST_CONTROL_LISTEN", "unix:/run/uringcast/control.sock"),
        ("URINGCAST_CONTROL_TOKEN", "0123456789abcdef"),
        ("URINGCAST_ORIGINS_ALLOWED", "*,https://a.example.com"),
        ("URINGCAST_ENDPOINT_FABRIC_RETAIN", "50"),
        ("URINGCAST_ENDPOINT_COMMUNITY_CLIENT_PUBLISH", "true"),
        ("URINGCAST_ENDPOINT_ROOMS_BIND", "/rooms"),
        ("URINGCAST_ENDPOINT_CHAT_REQUIRE_MEMBERSHIP", "false"),
    ];
    let settings = load("", &pairs).expect("good settings");
    let engine = &settings.engine;
    assert_eq!((engine.io, settings.drain, settings.any_origin), (Io::Epoll, Duration::ZERO, true));
    assert_eq!(engine.origins, ["https://a.example.com"], "the star is no name");
    assert_eq!(engine.trusted_proxies.len(), 2);
    assert_eq!(settings.control_listen, ControlListen::Unix("/run/uringcast/control.sock".into()));
    assert!(engine.shards.iter().all(Option::is_none));
    let endpoint = |name: &str| engine.endpoints.iter().find(|one| one.name == name).expect("a default endpoint");
    assert!(endpoint("fabric").retain == 50 && endpoint("agent").retain == 0 && endpoint("community").client_publish);
    assert_eq!(endpoint("rooms").bind, "/rooms");
    assert!(!endpoint("chat").require_membership);
    for setting in settings_with_a_simple_default() {
        let text = setting.default.as_ref().and_then(Value::toml).expect("a default that can be shown");
        let text = text.trim_matches(['"', '[', ']']).replace("\", \"", ",");
        assert!(load("", &[(&setting.variable(), &text)]).is_ok(), "{}={text}", setting.variable());
    }
}

fn settings_with_a_simple_default() -> impl Iterator<Item = Setting> {
    settings().into_iter().filter(|setting| setting.default.is_some())
}

#[test]
fn a_bad_value_is_told_with_key_value_origin_and_what_is_allowed() {
    let cases: [Case<'_>; 22] = [
        ("[limits]\nrooms = 0", &[], "limits.rooms = 0 (file "),
        ("[limits]\nrooms = 0", &[], "must be a whole number from 1 to 100000000 (rooms)"),
        ("[limits]\nrooms = '5'", &[], "limits.rooms = \"5\" (file "),
        ("[limits]\nrooms = 1.5", &[], "limits.rooms = 1.5 (file "),
        ("[limits]\nrooms = [1, 'a']", &[], "limits.rooms = [1, \"a\"] (file "),
        ("", &[("URINGCAST_LIMITS_ROOMS", "many")], "limits.rooms = \"many\" (variable URINGCAST_LIMITS_ROOMS): must be a whole number"),
        ("", &[("WEBSOCKET_PING_TIMEOUT", "1")], "socket_io.ping_timeout_ms = \"1\" (variable WEBSOCKET_PING_TIMEOUT): must be"),
        ("", &[("PORT", "99999")], "server.listen = \"99999\" (variable PORT): must be a port"),
        ("", &[("URINGCAST_SERVER_LISTEN", "localhost:1")], "(variable URINGCAST_SERVER_LISTEN): must be IP:PORT"),
        ("[server]\nio = 'kqueue'", &[], "must be one of auto, uring, epoll"),
        ("[server]\npin = 'yes'", &[], "must be true or false"),
        ("[server]\ntrusted_proxies = ['10.0.0.0/8']", &[], "server.trusted_proxies = [\"10.0.0.0/8\"]"),
        ("[origins]\nallowed = ['example.com']", &[], "must be a list of origins"),
        ("[redis]\nurl = 'redis:6379'", &[], "redis.url (file "),
        ("[control]\nlisten = '9464'", &[], "must be IP:PORT or unix:/PATH"),
        ("[limits]\noutbox_bytes = 1000", &[], "limits.outbox_bytes = 1000 (file "),
        ("[limits]\nroom = 1", &[], "limits.room (file "),
        ("[limit]\nrooms = 1", &[], "limit (file "),
        ("limits = 1", &[], "limits (file "),
        ("listen = '0.0.0.0:1'", &[], "unknown; known are [server], [control]"),
        ("", &[("URINGCAST_LIMIT_ROOMS", "1")], "URINGCAST_LIMIT_ROOMS (variable): unknown"),
        ("", &[("URINGCAST_ENDPOINT_FABRIC_NAME", "x")], "URINGCAST_ENDPOINT_FABRIC_NAME (variable): unknown"),
    ];
    for (file, pairs, expected) in cases {
        let said = complaints(file, pairs);
        assert!(said.contains(expected) && said.lines().count() == 1, "{file} {pairs:?} said: {said}");
    }
}

#[test]
fn all_problems_are_told_at_once_and_losers_too() {
    let file = "typo = 1\n[server]\nshards = 256\n[limits]\nrooms = -1\n[[endpoint]]\nname = 'a'";
    let said = complaints(file, &[("URINGCAST_SERVER_SHARDS", "2"), ("URINGCAST_TYPO", "x")]);
    for expected in ["typo ", "server.shards = 256 ", "limits.rooms = -1 ", "endpoint a: dialect", "endpoint a: bind", "URINGCAST_TYPO"] {
        assert!(said.contains(expected), "{expected} is missing in: {said}");
    }
    assert_eq!(said.lines().count(), 6, "{said}");
}

#[test]
fn variables_that_kubernetes_sets_are_nobodys_mistake() {
    let pairs = [
        ("URINGCAST_PORT", "tcp://10.0.0.1:3000"),
        ("URINGCAST_PORT_3000_TCP_ADDR", "10.0.0.1"),
        ("URINGCAST_SERVICE_HOST", "10.0.0.1"),
        ("URINGCAST_SERVICE_PORT_HTTP", "3000"),
    ];
    assert!(load("", &pairs).is_ok());
}

#[test]
fn files_that_are_no_configuration_are_told_without_their_lines() {
    let said = complaints("[auth]\nsecret = \"hunter2", &[]);
    assert!(said.contains("line 2") && !said.contains("hunter2"), "{said}");
    assert!(complaints("[limits]\nrooms = 1\nrooms = 2", &[]).contains("line 3"));
    let missing = Flags { config: Some("/nonexistent/uringcast.toml".into()), ..dev() };
    let said = Settings::load(&missing, &Environment::new()).expect_err("no file").to_string();
    assert!(said.contains("--config (file /nonexistent/uringcast.toml): cannot be read"), "{said}");
    let endless = Flags { config: Some("/dev/zero".into()), ..dev() };
    assert!(Settings::load(&endless, &Environment::new()).is_err());
}

#[test]
fn endpoints_are_checked_one_by_one_and_against_each_other() {
    let good = "[[endpoint]]\nname = 'one'\ndialect = 'collab'\nbind = '/ws/one'\n";
    let cases = [
        ("[[endpoint]]\nname = 'a b'\ndialect = 'rooms'\nbind = '/'", "name = \"a b\""),
        ("[[endpoint]]\nname = 'One'\ndialect = 'collab'\nbind = '/ws/two'", "is taken by endpoint one"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'community'\nbind = '/ws/one'", "bind = \"/ws/one\""),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = 'ws'", "must be a path"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/ws/'", "must be a path"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/socket.io'", "must not contain the path of endpoint two"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/ready'", "is the path of a health document"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'community'\nbind = '/health'", "is the path of a health document"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/api/community/ws/health'", "is the path of a health document"),
        (
            concat!(
                "[[endpoint]]\nname = 'talk'\ndialect = 'community'\nbind = '/a/ws'\n",
                "[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/a/messages'"
            ),
            "clashes with endpoint talk",
        ),
        (
            concat!(
                "[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/a/messages/x'\n",
                "[[endpoint]]\nname = 'talk'\ndialect = 'community'\nbind = '/a'"
            ),
            "clashes with endpoint two",
        ),
        (
            concat!(
                "[[endpoint]]\nname = 'talk'\ndialect = 'community'\nbind = '/a/ws'\n",
                "[[endpoint]]\nname = 'two'\ndialect = 'community'\nbind = '/a'"
            ),
            "clashes with endpoint talk",
        ),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/a,b'", "must be a namespace"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'talk'\nbind = '/chat'", "must be one of community, collab, rooms"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/'\nretain = 5", "means nothing for dialect rooms"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/'\nclient_publish = true", "means nothing for dialect rooms"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/'\nrequire_membership = true", "means nothing for dialect rooms"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/two'\nauto_create = true", "means nothing for dialect collab"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'collab'\nbind = '/two'\nauth = 'none'", "nobody has claims"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'community'\nbind = '/two'\nauth = 'none'", "must be token"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/'\nmembership = 'auto'", "auto is for community"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/'\ncookies = 1", "endpoint two: cookies = 1"),
        ("[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/'\ncolour = 'red'", "endpoint two: colour"),
        ("[[endpoint]]\ndialect = 'rooms'\nbind = '/'", "endpoint number 2: name: is required"),
    ];
    for (bad, expected) in cases {
        let said = complaints(&format!("{good}{bad}"), &[]);
        assert!(said.contains(expected) && said.lines().count() == 1, "{bad} said: {said}");
    }
    for bad in ["endpoint = []", "endpoint = 1", "[endpoint]\nname = 'a'", "endpoint = [1]"] {
        assert!(complaints(bad, &[]).contains("must be 1 to 255 tables"), "{bad}");
    }
    let file = format!(
        "{good}[[endpoint]]\nname = 'main'\ndialect = 'rooms'\nbind = '/ws/one'\nmembership = 'claims'\ncookies = false\nauto_create = true"
    );
    let settings =
        load(&file, &[("URINGCAST_ENDPOINT_ONE_AUTH", "none"), ("URINGCAST_ENDPOINT_ONE_MEMBERSHIP", "open")]).expect("good settings");
    let namespace = format!("{good}[[endpoint]]\nname = 'two'\ndialect = 'rooms'\nbind = '/health'");
    assert!(load(&namespace, &[]).is_ok(), "a namespace is no path");
    let [one, main] = settings.engine.endpoints.as_slice() else { panic!("two endpoints") };
    assert_eq!((one.auth, one.membership, one.dialect), (AuthMode::None, Membership::Open, DialectKind::Collab));
    assert_eq!((main.membership, main.cookies, main.auto_create, main.bind.as_str()), (Membership::Claims, false, true, "/ws/one"));
}

#[test]
fn what_the_engine_could_not_keep_is_told() {
    let endpoint = |retain: u32| format!("[[endpoint]]\nname = 'one'\ndialect = 'collab'\nbind = '/ws/one'\nretain = {retain}\n");
    for (limits, retain) in [("", 1_001), ("[limits]\nhistory_messages = 10\n", 11)] {
        let said = complaints(&format!("{limits}{}", endpoint(retain)), &[]);
        assert!(said.contains(&format!("at least the {retain} that endpoint one has")) && said.lines().count() == 1, "{said}");
        assert!(load(&format!("{limits}{}", endpoint(retain - 1)), &[]).is_ok());
    }
    assert!(complaints("[limits]\nrate_messages = 4000001", &[]).contains("limits.rate_messages"));
    assert!(load("[limits]\nrate_messages = 4000000", &[]).is_ok());
}

#[test]
fn names_of_cookies_and_folders_of_files_are_checked() {
    let settings = load("[socket_io]\ncookie = 'io.sid-1'", &[]).expect("a good name");
    assert_eq!(settings.engine.socket_io.cookie.as_deref(), Some("io.sid-1"));
    for bad in ["a b", "a;b", "a=b", "\u{e9}", "a,b", "\\"] {
        let said = complaints(&format!("[socket_io]\ncookie = '{bad}'"), &[]);
        assert!(said.contains("must be a cookie's name") && said.lines().count() == 1, "{bad}: {said}");
    }
    let folder = Scratch::named("socket.io.js", "io");
    let file = |folder: &Path| format!("[socket_io]\nbundle = '{}'", folder.display());
    let settings = load(&file(folder.directory()), &[]).expect("a good folder");
    assert!(settings.bundle.is_some() && settings.engine.socket_io.bundle);
    for bad in [folder.path(), &folder.directory().join("nothing")] {
        assert!(complaints(&file(bad), &[]).contains("socket_io.bundle"), "{}", bad.display());
    }
}

#[test]
fn secrets_come_from_the_strongest_place() {
    let in_file = Scratch::file("secret of the file\n");
    let path = in_file.path().to_str().expect("UTF-8");
    let credentials = Scratch::named("jwt_secret", "secret of systemd\n");
    let directory = credentials.directory().to_str().expect("UTF-8");
    std::fs::write(credentials.directory().join("admin_token"), "token-of-systemd\n").expect("a file");
    let file_key = format!("[auth]\nsecret_file = '{path}'");
    let cases: [Case<'_>; 7] = [
        ("", &[("CREDENTIALS_DIRECTORY", directory)], "secret of systemd"),
        (&file_key, &[("CREDENTIALS_DIRECTORY", directory)], "secret of the file"),
        (&file_key, &[("AUTH_SECRET", "third"), ("NEXTAUTH_SECRET", "second")], "second"),
        (&file_key, &[("AUTH_SECRET", "third"), ("NEXTAUTH_SECRET", "second"), ("JWT_SECRET", "first")], "first"),
        ("[auth]\nsecret = 'plain'", &[("JWT_SECRET", "")], "plain"),
        ("[auth]\nsecret = 'plain'", &[("URINGCAST_AUTH_SECRET_FILE", path), ("JWT_SECRET", "old")], "secret of the file"),
        (&file_key, &[("URINGCAST_AUTH_SECRET", "new"), ("JWT_SECRET", "old")], "new"),
    ];
    for (text, pairs, expected) in cases {
        let file = Scratch::file(text);
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        let settings = Settings::load(&flags, &environment(pairs)).expect("good settings");
        assert!(verifies(&settings, expected), "{text} {pairs:?}");
        let signing = Settings::signing_secret(&flags, &environment(pairs), None).expect("a secret");
        assert!(signing.matches(expected.as_bytes()), "{text} {pairs:?}");
    }
    let settings = load("", &[("CREDENTIALS_DIRECTORY", directory)]).expect("good settings");
    assert!(settings.admin_token.is_some_and(|token| token.matches(b"token-of-systemd")));
}

#[test]
fn without_a_usable_secret_nothing_starts() {
    let said = |pairs: &[(&str, &str)]| Settings::load(&Flags::default(), &environment(pairs)).expect_err("no secret").to_string();
    for pairs in [&[][..], &[("JWT_SECRET", "")], &[("CREDENTIALS_DIRECTORY", "/nonexistent")]] {
        let said = said(pairs);
        assert!(said.contains("auth.secret: there is no token secret") && said.contains("--dev") && said.lines().count() == 1, "{said}");
    }
    assert!(
        said(&[("URINGCAST_AUTH_SECRET", "")]).contains("auth.secret (variable URINGCAST_AUTH_SECRET): must be text that is not empty")
    );
    let empty = Scratch::named("jwt_secret", "\n");
    let directory = empty.directory().to_str().expect("UTF-8");
    let path = empty.path().to_str().expect("UTF-8");
    assert!(said(&[("CREDENTIALS_DIRECTORY", directory)]).contains("systemd credential: must not be empty"));
    assert!(said(&[("URINGCAST_AUTH_SECRET_FILE", path)]).contains("must not be empty"));
    assert!(said(&[("URINGCAST_AUTH_SECRET_FILE", "/nonexistent")]).contains("cannot be read"));
    let both = said(&[("URINGCAST_AUTH_SECRET_FILE", path), ("URINGCAST_AUTH_SECRET", "hunter2hunter2hunter2")]);
    assert!(both.contains("set one of them") && !both.contains("hunter2"), "{both}");
    assert!(said(&[("URINGCAST_AUTH_SECRET", "-----BEGIN PUBLIC KEY-----")]).contains("PEM key"));
}

#[test]
fn public_keys_need_their_algorithm_and_the_other_way_round() {
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAT7su9R7JUP4cZ14SjGbHGXQ9llSBd787pJ2q678iNjM=\n-----END PUBLIC KEY-----\n";
    let file = Scratch::file(pem);
    let path = ("URINGCAST_AUTH_PUBLIC_KEY_FILE", file.path().to_str().expect("UTF-8"));
    let eddsa = ("URINGCAST_AUTH_ALGORITHM", "EdDSA");
    let load = |pairs: &[(&str, &str)], flags: &Flags| Settings::load(flags, &environment(pairs));
    let settings = load(&[path, eddsa], &Flags::default()).expect("good settings");
    assert_eq!(format!("{:?}", settings.engine.verifier), "Some(Verifier([EdDSA]))");
    assert!(load(&[path, eddsa], &dev()).expect("good settings").dev_secret.is_none(), "nothing to sign with");
    let said = |pairs: &[(&str, &str)]| load(pairs, &Flags::default()).expect_err("problems").to_string();
    assert!(said(&[path]).contains("needs auth.algorithm"));
    assert!(said(&[eddsa]).contains("needs one of auth.public_key_file, auth.jwks_file, auth.jwks_url"));
    assert!(said(&[path, ("URINGCAST_AUTH_ALGORITHM", "RS256")]).contains("does not belong to the algorithm"));
    assert!(said(&[path, ("URINGCAST_AUTH_ALGORITHM", "none")]).contains("must be one of HS256, RS256, ES256, EdDSA"));
    assert!(said(&[("URINGCAST_AUTH_PUBLIC_KEY_FILE", "/nonexistent"), eddsa]).contains("cannot be read"));
    let signing = Settings::signing_secret(&Flags::default(), &environment(&[path, eddsa]), None).expect_err("no secret key");
    assert!(signing.to_string().contains("HS256 only"), "{signing}");
}

#[test]
fn key_sets_need_an_algorithm_too_and_stand_alone() {
    let jwks =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"aJCchsS7-Ct3Hp9tVrmTINPlFmgb4Dw8j7kpqoHJbag","kid":"a"},{"kty":"oct"},{"kty":1}]}"#;
    let file = Scratch::file(jwks);
    let file_variable = ("URINGCAST_AUTH_JWKS_FILE", file.path().to_str().expect("UTF-8"));
    let url = ("URINGCAST_AUTH_JWKS_URL", "https://login.example/keys?hush");
    let eddsa = ("URINGCAST_AUTH_ALGORITHM", "EdDSA");
    let load = |pairs: &[(&str, &str)]| Settings::load(&Flags::default(), &environment(pairs));
    let settings = load(&[file_variable, eddsa]).expect("good settings");
    assert_eq!(settings.jwks.as_ref().expect("a keeper").watch().keys(), 1);
    assert_eq!(settings.warnings, ["auth.jwks_file: key 3 is not used: malformed"], "that another is for another algorithm is usual");
    let settings = load(&[url, eddsa]).expect("an URL is not fetched here");
    assert_eq!((settings.jwks.expect("a keeper").watch().keys(), settings.warnings.len()), (0, 0));
    for (exposed, warnings) in
        [("http://login.example/keys", 1), ("http://127.0.0.1:9/k", 0), ("http://[::1]/k", 0), ("http://localhost/k", 0)]
    {
        assert_eq!(load(&[("URINGCAST_AUTH_JWKS_URL", exposed), eddsa]).expect("good settings").warnings.len(), warnings, "{exposed}");
    }
    let said = |pairs: &[(&str, &str)]| load(pairs).expect_err("problems").to_string();
    assert!(said(&[url]).contains("auth.jwks_url") && said(&[url]).contains("needs auth.algorithm"), "{}", said(&[url]));
    assert!(said(&[file_variable, ("URINGCAST_AUTH_ALGORITHM", "HS256")]).contains("auth.jwks_file"));
    assert!(said(&[file_variable, url, eddsa]).contains("auth.jwks_file is set too: set one of them"));
    assert!(said(&[file_variable, ("URINGCAST_AUTH_ALGORITHM", "ES256")]).contains("no usable key: the first is for another algorithm"));
    assert!(said(&[("URINGCAST_AUTH_JWKS_FILE", "/nonexistent"), eddsa]).contains("cannot be read"));
    for bad in ["login.example/keys", "ftp://login.example/", "https://user:hush@login.example/", "https://"] {
        let said = said(&[("URINGCAST_AUTH_JWKS_URL", bad), eddsa]);
        assert!(said.contains("must be http://HOST") && !said.contains("hush"), "{said}");
    }
    let page = print(&Flags::default(), &environment(&[url, eddsa])).expect("good settings");
    assert!(
        page.contains("# jwks_url = \"https://login.example/keys?...\" (credentials hidden)")
            && page.contains("jwks_refresh_seconds = 600")
    );
}

#[test]
fn beside_a_public_key_the_secret_is_for_cookies() {
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAT7su9R7JUP4cZ14SjGbHGXQ9llSBd787pJ2q678iNjM=\n-----END PUBLIC KEY-----\n";
    let file = Scratch::file(pem);
    let keyed = [("URINGCAST_AUTH_PUBLIC_KEY_FILE", file.path().to_str().expect("UTF-8")), ("URINGCAST_AUTH_ALGORITHM", "EdDSA")];
    let load = |secret| Settings::load(&Flags::default(), &environment(&[keyed[0], keyed[1], ("AUTH_SECRET", secret)]));
    // Made by next-auth with this secret.
    let cookie = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..Zxj6KQvde98bUCv-.JwEcOb2D8e2bBctuIx_L4TiCP8s2XNkqzipD5qmxSURHaoMtj62oDEyPvA9iLIYJ_ySNIV6RvrLQvN2OcvcnMGO0ZXSs9qCu4qVgLqQnYHZm1xE12Nisn-LB-38CHvYmj7qi-JLN-lHaTzJa-G4c01Fs003j_iD-AKWAtj6JP7PoW915bbcq_dpS8FnvnYEJGerq6A.bFDZU-IdlUkKCFigGraNlg";
    let reads = |settings: &Settings| {
        let verifier = settings.engine.verifier.as_ref().expect("a verifier");
        verifier.verify_cookie(engine::auth::SessionCookie::NextAuth, cookie, 0).is_ok()
    };
    let settings = load(SECRET).expect("good settings");
    assert!(reads(&settings) && !verifies(&settings, SECRET) && settings.dev_secret.is_none());
    const OTHER: &str = "another secret for tests";
    assert!(!reads(&load(OTHER).expect("good settings")));
    assert!(load(pem).expect_err("problems").to_string().contains("the secret is a PEM key"));

    // Left over from days of HS256 it opens nothing, and hides neither of the libraries' own secrets nor the file's.
    let load = |pair, text: &str| {
        let file = Scratch::file(text);
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        Settings::load(&flags, &environment(&[keyed[0], keyed[1], pair, ("JWT_SECRET", OTHER)])).expect("good settings")
    };
    let settings = Settings::load(&Flags::default(), &environment(&[keyed[0], keyed[1], ("JWT_SECRET", SECRET)])).expect("good settings");
    assert!(!reads(&settings) && !verifies(&settings, SECRET));
    assert!(settings.warnings.iter().any(|warning| warning.contains("JWT_SECRET is not used") && !warning.contains(SECRET)));
    for variable in ["NEXTAUTH_SECRET", "AUTH_SECRET", "URINGCAST_AUTH_SECRET"] {
        assert!(reads(&load((variable, SECRET), "")), "{variable}");
    }
    assert!(reads(&load(("PORT", "1"), &format!("[auth]\nsecret = '{SECRET}'"))));
}

#[test]
fn short_secrets_are_taken_with_a_warning() {
    let settings = load("", &[("URINGCAST_AUTH_SECRET", "short"), ("ADMIN_TOKEN", "short")]).expect("good settings");
    assert_eq!(settings.warnings.len(), 2);
    assert!(settings.warnings.iter().all(|warning| warning.contains("shorter than 16 bytes") && !warning.contains("\"short\"")));
}

#[test]
fn dev_opens_the_doors_at_home_only() {
    let settings = Settings::load(&dev(), &environment(&[("PORT", "4000")])).expect("good settings");
    assert_eq!((settings.engine.listen.to_string().as_str(), settings.any_origin, settings.dev), ("127.0.0.1:4000", true, true));
    let secret = settings.dev_secret.as_ref().expect("generated");
    assert!(verifies(&settings, std::str::from_utf8(secret.reveal()).expect("ASCII")));
    assert!(settings.admin_token.is_some() && settings.warnings.is_empty());
    let reloaded = Settings::load(&Flags { dev_seed: settings.dev_seed.clone(), ..dev() }, &Environment::new()).expect("good settings");
    let is_kept =
        |of: fn(&Settings) -> Option<&Secret>| of(&settings).zip(of(&reloaded)).is_some_and(|(one, other)| one.matches(other.reveal()));
    assert!(is_kept(|it| it.admin_token.as_ref()) && is_kept(|it| it.dev_secret.as_ref()), "what was shown stays good over a reload");
    for one in &settings.engine.endpoints {
        let (auth, membership) = match one.dialect {
            DialectKind::Community => (AuthMode::Token, Membership::Auto),
            DialectKind::Collab => (AuthMode::Token, Membership::Open),
            DialectKind::Rooms => (AuthMode::None, Membership::Open),
            DialectKind::Chat | DialectKind::Notify | DialectKind::Echo | DialectKind::Own(_) => (AuthMode::Token, Membership::Open),
        };
        assert_eq!((one.auth, one.membership), (auth, membership), "{}", one.name);
        assert_eq!((one.client_publish, one.auto_create), (one.dialect == DialectKind::Community, one.dialect == DialectKind::Rooms));
    }
    let file = "[server]\nlisten = '0.0.0.0:5000'\n[control]\nlisten = '[::]:5001'\n[origins]\nallowed = ['https://a.example.com']\n\
                [[endpoint]]\nname = 'r'\ndialect = 'rooms'\nbind = '/'\nauth = 'token'\nauto_create = false";
    let settings = load_with(file, &[], dev()).expect("good settings");
    assert_eq!(settings.engine.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(settings.control_listen, ControlListen::Tcp(([127, 0, 0, 1], 5001).into()));
    assert!(settings.warnings.len() == 2 && !settings.any_origin);
    assert!(settings.engine.endpoints[0].auth == AuthMode::Token && !settings.engine.endpoints[0].auto_create);
    let flags = Flags { listen: Some("0.0.0.0:1".into()), control: Some("unix:/tmp/c".into()), ..dev() };
    let settings = load_with(file, &[], flags).expect("good settings");
    assert_eq!(settings.engine.listen.to_string(), "0.0.0.0:1");
    assert_eq!(settings.control_listen, ControlListen::Unix("/tmp/c".into()));
}

#[test]
fn the_events_webhook_needs_a_secret_from_somewhere() {
    let plain = load("", &[]).expect("good settings");
    assert!(plain.webhook.is_none());
    assert_eq!(plain.journal, Bounds { events: 10_000, bytes: 64 << 20 });
    let url = "[events]\nwebhook_url = 'https://app.example.com/hook?key=hunter2'\n";
    let said = complaints(url, &[]);
    assert!(said.contains("events.webhook_secret: events.webhook_url needs it") && said.lines().count() == 1, "{said}");
    let credentials = Scratch::named("events_webhook_secret", "of systemd, and long enough\n");
    let directory = credentials.directory().to_str().expect("UTF-8");
    let in_file = Scratch::file("of the file, and long enough\n");
    let file = format!("{url}webhook_secret_file = '{}'", in_file.path().display());
    let cases: [Case<'_>; 3] = [
        (url, &[("CREDENTIALS_DIRECTORY", directory)], "of systemd, and long enough"),
        (&file, &[("CREDENTIALS_DIRECTORY", directory)], "of the file, and long enough"),
        (&file, &[("URINGCAST_EVENTS_WEBHOOK_SECRET", "of the variable, and long")], "of the variable, and long"),
    ];
    for (text, pairs, expected) in cases {
        let webhook = load(text, pairs).expect("good settings").webhook.expect("a webhook");
        assert!(webhook.secret.matches(expected.as_bytes()) && webhook.types == EventTypes::ALL);
        assert_eq!(format!("{webhook:?}"), "Webhook { url: \"https://app.example.com/hook\", .. }");
    }
    let some = load(&format!("{url}webhook_types = ['message', 'room:join']\nwebhook_secret = 'short'"), &[]).expect("good settings");
    assert_eq!(some.webhook.map(|webhook| webhook.types), Some(EventTypes::NONE.with(EventType::Message).with(EventType::RoomJoin)));
    assert!(some.warnings.iter().any(|warning| warning.starts_with("events.webhook_secret is shorter")));
    let wrong = complaints("[events]\nwebhook_url = 'ftp://hunter2@x'\nwebhook_types = ['messages']", &[]);
    assert!(wrong.contains("events.webhook_url") && wrong.contains("a list of connection, ") && !wrong.contains("hunter2"), "{wrong}");
}

#[test]
fn a_redis_is_named_in_one_of_three_ways() {
    let relay = |file: &str| load(file, &[]).expect("good settings").engine.relay.expect("a relay");
    let single = relay("[redis]\nurl = 'redis://u:p@127.0.0.1/2'");
    assert_eq!((single.redis.urls, single.redis.master, single.redis.is_cluster), (vec!["redis://u:p@127.0.0.1/2".into()], None, false));
    let sentinels = "sentinels = ['redis://a', 'redis://:s@[::1]', 'rediss://c:1/0']\nmaster = 'm'\n";
    let plain = relay(&format!("[redis]\n{sentinels}ca_file = '{}'", TLS.certificate)).redis;
    assert_eq!(plain.urls, ["redis://a:26379", "redis://:s@[::1]:26379", "rediss://c:1/0"]);
    assert_eq!((plain.master.as_deref(), &*plain.node, plain.is_cluster), (Some("m"), "redis://localhost", false));
    assert_eq!(
        relay(&format!("[redis]\n{sentinels}url = 'redis://u:p@-/3'\nca_file = '{}'", TLS.certificate)).redis.node,
        "redis://u:p@-/3"
    );
    let cluster = relay("[redis]\nurl = 'redis://u:p@x'\ncluster = ['redis://a:1', 'redis://v:q@b']").redis;
    assert_eq!((cluster.urls, cluster.is_cluster), (vec!["redis://u:p@a:1".into(), "redis://v:q@b".into()], true));
    assert_eq!(relay("[redis]\nurl = 'redis://x/0'\ncluster = ['redis://a:1']").redis.urls, ["redis://a:1"]);
    assert_eq!(relay("[redis]\nurl = 'unix:///run/redis.sock?db=1&pass=p'").redis.urls, ["unix:///run/redis.sock?db=1&pass=p"]);
    let by_variable = [("URINGCAST_REDIS_CLUSTER", "redis://a:1, redis://b:2"), ("URINGCAST_REDIS_PREFIX", "two")];
    let settings = load("", &by_variable).expect("good settings");
    assert_eq!((redis_urls(&settings).len(), settings.redis.as_deref()), (2, Some("cluster of redis://a:1, redis://b:2")));
    assert_eq!(settings.engine.relay.map(|relay| relay.prefix).as_deref(), Some("two"));
}

#[test]
fn the_relay_is_as_it_is_said_and_as_the_contract_has_it() {
    let relay =
        |file: &str| load(&format!("redis.url = 'redis://localhost'\n{file}"), &[]).expect("good settings").engine.relay.expect("a relay");
    let words = |relay: &Relay| (relay.mode, relay.adapter, relay.prefix.clone(), relay.socket_io_key.clone());
    let numbers = |relay: &Relay| (relay.buffer_bytes, relay.buffer_ms, relay.stream_entries, relay.lease_ms);
    let (told, default) = (relay(""), Relay::new("redis://localhost"));
    assert_eq!((words(&told), numbers(&told)), (words(&default), numbers(&default)));
    assert_eq!(words(&told), (RelayMode::PubSub, Adapter::Classic, "uringcast".into(), "socket.io".into()));
    assert_eq!(numbers(&told), (16_000_000, 30_000, 10_000, 30_000));
    let other = relay(
        "redis.prefix = 'p'\nredis.socket_io_key = 'k'\n[relay]\nadapter = 'sharded'\nbuffer_bytes = 5\nbuffer_ms = 6\nstream_entries = 7\nlease_ms = 8000",
    );
    assert_eq!(words(&other), (RelayMode::PubSub, Adapter::Sharded, "p".into(), "k".into()));
    assert_eq!(numbers(&other), (5, 6, 7, 8_000));
    let streams = load("redis.url = 'redis://localhost'\nrelay.mode = 'streams'", &[]).expect("good settings");
    assert!(streams.warnings.iter().any(|warning| warning.contains("appendonly yes")), "{:?}", streams.warnings);
    let streams = streams.engine.relay.expect("a relay");
    assert_eq!((streams.mode, streams.buffer_bytes), (RelayMode::Streams, 64_000_000));
    let early = load("[relay]\nmode = 'streams'", &[]).expect("good settings");
    assert!(early.engine.relay.is_none() && early.warnings[0].starts_with("relay.mode means nothing yet"), "{:?}", early.warnings);
}

#[test]
fn what_does_not_go_together_about_redis_is_told_without_its_password() {
    let (certificate, key) = (TLS.certificate, TLS.key);
    let tls = "url = 'rediss://:HUSH@h'\n";
    let cases = [
        ("master = 'm'", "redis.master", "means nothing without redis.sentinels"),
        ("master = 'm'\nurl = 'redis://:HUSH@h'", "redis.master", "means nothing without redis.sentinels"),
        ("sentinels = ['redis://:HUSH@a']", "redis.master", "is needed by redis.sentinels"),
        ("sentinels = ['redis://a']\nmaster = 'm'\ncluster = ['redis://b']", "redis.sentinels", "a cluster has no sentinels"),
        ("sentinels = ['redis://a']\nmaster = 'm'\nurl = 'unix:///r?pass=HUSH'", "redis.url", "the master is on the network"),
        ("sentinels = ['unix:///HUSH']\nmaster = 'm'", "redis.sentinels", "must be a list of"),
        ("cluster = ['redis://a']\nurl = 'unix:///r?pass=HUSH'", "redis.url", "the nodes are on the network"),
        ("cluster = ['redis://:HUSH@a/3']", "redis.cluster", "no database number"),
        ("cluster = ['redis://a']\nurl = 'redis://:HUSH@h/3'", "redis.url", "a cluster has only one"),
        ("cluster = ['redis://a']\nurl = 'rediss://:HUSH@h'", "redis.cluster", "must have the scheme of redis.url"),
        ("url = 'rediss://:HUSH@h/#insecure'", "redis.url", "#insecure is not supported"),
        ("url = 'redis://:HUSH@h'\nca_file = '/x'", "redis.ca_file", "means nothing without a rediss:// URL"),
        (&format!("{tls}ca_file = '/nonexistent'"), "redis.ca_file", "cannot be read"),
        (&format!("{tls}ca_file = '/dev/zero'"), "redis.ca_file", "is larger than"),
        (&format!("{tls}ca_file = '{key}'"), "redis.ca_file", "no authority is trusted"),
        (&format!("{tls}ca_file = '{certificate}'\ncertificate_file = '{certificate}'"), "redis.certificate_file", "needs redis.key_file"),
        (&format!("{tls}ca_file = '{certificate}'\nkey_file = '{key}'"), "redis.key_file", "means nothing without"),
        (
            &format!("{tls}ca_file = '{certificate}'\ncertificate_file = '{certificate}'\nkey_file = '{certificate}'"),
            "redis.certificate_file",
            "not readable PEM",
        ),
        ("url = 'redis://h'\nprefix = 'a*'", "redis.prefix", "mean something to Redis"),
        ("url = 'redis://h'\nsocket_io_key = 'a?'", "redis.socket_io_key", "mean something to Redis"),
        ("prefix = 'a'", "redis.prefix", "means nothing without redis.url"),
        ("url = 'redis://:HUSH@h'\nurl_file = '/x'", "redis.url_file", "redis.url is set in the same place"),
        ("url_file = '/nonexistent'", "redis.url_file", "cannot be read"),
        (&format!("url_file = '{certificate}'"), "redis.url_file", "the file does not hold redis://"),
        ("url = 'redis://h'\n[relay]\nmode = 'streams'\nadapter = 'sharded'", "relay.adapter", "means nothing with relay.mode"),
        ("url = 'redis://h'\n[relay]\nmode = 'streams'\nbuffer_ms = 1", "relay.buffer_ms", "means nothing with relay.mode"),
        ("url = 'redis://h'\n[relay]\nlease_ms = 10", "relay.lease_ms", "must be a whole number from 3000"),
    ];
    for (file, key, words) in cases {
        let said = complaints(&format!("[redis]\n{file}"), &[]);
        assert!(said.starts_with(key) && said.contains(words) && said.lines().count() == 1, "{file} said: {said}");
        assert!(!said.contains("HUSH") && !said.contains("BEGIN"), "{said}");
    }
    let whole = format!("[redis]\n{tls}ca_file = '{certificate}'\ncertificate_file = '{certificate}'\nkey_file = '{key}'");
    let settings = load(&whole, &[]).expect("good settings");
    let redis = &settings.engine.relay.as_ref().expect("a relay").redis;
    assert!(redis.ca.is_some() && redis.identity.is_some() && redis.system_der.is_empty() && settings.warnings.is_empty());
    assert!(!format!("{settings:?}").contains("HUSH"));
    // Certificates of the system only where somebody shows one; whether there are any is the machine's affair.
    assert!(load("[redis]\nurl = 'redis://h'", &[]).expect("good").engine.relay.expect("a relay").redis.system_der.is_empty());
}

#[test]
fn the_url_of_redis_comes_from_the_strongest_place() {
    let credentials = Scratch::named("redis_url", "redis://:of-systemd@localhost\n");
    let directory = credentials.directory().to_str().expect("UTF-8");
    let in_file = Scratch::file("redis://:of-a-file@localhost\n");
    let file = format!("[redis]\nurl_file = '{}'", in_file.path().display());
    let cases: [Case<'_>; 5] = [
        ("", &[("CREDENTIALS_DIRECTORY", directory)], "redis://:of-systemd@localhost"),
        (&file, &[("CREDENTIALS_DIRECTORY", directory)], "redis://:of-a-file@localhost"),
        (&file, &[("REDIS_URL", "redis://localhost")], "redis://localhost"),
        (
            "",
            &[("REDIS_URL", "redis://a"), ("URINGCAST_REDIS_URL_FILE", in_file.path().to_str().expect("UTF-8"))],
            "redis://:of-a-file@localhost",
        ),
        ("[redis]\nurl = 'redis://a'", &[("CREDENTIALS_DIRECTORY", directory)], "redis://a"),
    ];
    for (text, pairs, expected) in cases {
        assert_eq!(redis_urls(&load(text, pairs).expect("good settings")), [expected], "{text} {pairs:?}");
    }
    let bad = Scratch::named("redis_url", "HUSH");
    let said = complaints("", &[("CREDENTIALS_DIRECTORY", bad.directory().to_str().expect("UTF-8"))]);
    assert!(said.contains("redis.url") && said.contains("credential redis_url") && !said.contains("HUSH"), "{said}");
}

#[test]
fn a_password_in_the_clear_is_warned_of_where_others_can_read_it() {
    let warned = |redis: &str| {
        let settings = load(&format!("[redis]\n{redis}"), &[]).expect("good settings");
        assert!(settings.warnings.iter().all(|warning| !warning.contains("HUSH")));
        settings.warnings.iter().any(|warning| warning.contains("in the clear"))
    };
    for url in ["redis://:HUSH@r.example", "redis://u:HUSH@10.0.0.1:1/2", "redis://:HUSH@[2001:db8::1]"] {
        assert!(warned(&format!("url = '{url}'")), "{url}");
    }
    for url in
        ["redis://r.example", "redis://:HUSH@localhost", "redis://:HUSH@127.0.0.1:1", "redis://:HUSH@[::1]:1/2", "unix:///r?pass=HUSH"]
    {
        assert!(!warned(&format!("url = '{url}'")), "{url}");
    }
    assert!(!warned(&format!("url = 'rediss://:HUSH@r.example'\nca_file = '{}'", TLS.certificate)));
    assert!(warned("sentinels = ['redis://a']\nmaster = 'm'\nurl = 'redis://:HUSH@x'"));
    assert!(!warned("sentinels = ['redis://127.0.0.1']\nmaster = 'm'\nurl = 'redis://:HUSH@x'"));
    assert!(warned("cluster = ['redis://a']\nurl = 'redis://:HUSH@x'"));
}

#[test]
fn print_config_can_be_loaded_again_and_means_the_same() {
    let printed = print(&Flags::default(), &Environment::new()).expect("no problems");
    let (plain, again) = (load("", &[]).expect("defaults"), load(&printed, &[]).expect("its own output"));
    assert_eq!(format!("{:?} {:?}", plain, plain.drain), format!("{:?} {:?}", again, again.drain));
    for setting in settings() {
        for part in [setting.doc, setting.key(), setting.unit, &setting.variable(), &setting.kind.allowed()] {
            assert!(printed.contains(part), "{}: {part:?} is missing", setting.path);
        }
    }
    assert!(!printed.contains("set by"));
    let odd = [
        ("URINGCAST_CONTROL_LISTEN", "unix:/run/a \"b\"\\c"),
        ("URINGCAST_ORIGINS_ALLOWED", "https://a,https://b"),
        ("URINGCAST_LIMITS_CONNECTIONS", "7"),
        ("URINGCAST_ENDPOINT_AGENT_RETAIN", "9"),
        ("URINGCAST_REDIS_URL", "redis://localhost:6380"),
        ("URINGCAST_REDIS_CLUSTER", "redis://a:1,redis://b:2"),
    ];
    let printed = print(&Flags::default(), &environment(&odd)).expect("no problems");
    let (said, again) = (load("", &odd).expect("good"), load(&printed, &[]).expect("its own output"));
    assert_eq!(format!("{said:?}"), format!("{again:?}"));
    assert!(printed.contains("# set by variable URINGCAST_CONTROL_LISTEN"));
}

#[test]
fn print_config_shows_no_secret() {
    let pairs = [
        ("JWT_SECRET", "hunter2"),
        ("ADMIN_TOKEN", "hunter2"),
        ("REDIS_URL", "redis://u:hunter2@h"),
        ("URINGCAST_REDIS_CLUSTER", "redis://a:1,redis://:hunter2@b"),
        ("URINGCAST_AUTH_LEEWAY_SECONDS", "7"),
    ];
    let printed = print(&Flags::default(), &environment(&pairs)).expect("no problems");
    assert!(!printed.contains("hunter2") && printed.contains("# secret = (hidden)") && printed.contains("set by variable JWT_SECRET"));
    assert!(printed.contains("# cluster = [\"redis://a:1\", \"redis://...@b\"] (credentials hidden)"));
    assert!(printed.contains("# url = \"redis://...@h\" (credentials hidden)") && printed.contains("leeway_seconds = 7"));
    assert!(load(&printed, &[]).is_ok());
}

#[test]
fn webhooks_need_a_secret_and_membership_its_url() {
    let endpoint = "[[endpoint]]\nname = 'r'\ndialect = 'rooms'\nbind = '/'\n";
    let secret = "[webhooks]\nsecret = 'a secret for webhooks only'\ntimeout_ms = 700\n";
    let all = "membership = 'webhook'\nwebhook_connect = 'https://b/c'\nwebhook_join = 'http://b:8080/j?key=HUSH'\nwebhook_publish = 'http://b/p'\n";
    let settings = load(&format!("{secret}{endpoint}{all}"), &[]).expect("good settings");
    let (engine, hooks) = (&settings.engine, settings.hooks.as_ref().expect("there are some"));
    let served = &engine.endpoints[0];
    assert!(served.connect_hook && served.publish_hook && served.membership == Membership::Webhook);
    assert_eq!((engine.limits.inquiry_ms, hooks.timeout), (700 + INQUIRY_MARGIN_MS, Duration::from_millis(700)));
    assert_eq!(
        (hooks.endpoints[0].0.as_str(), hooks.endpoints[0].1.join.as_ref().map(ToString::to_string)),
        ("r", Some("http://b:8080/j".into()))
    );
    assert!(settings.warnings.iter().any(|warning| warning.contains("endpoint r has a webhook that is not https")));
    assert!(load(endpoint, &[]).expect("good settings").hooks.is_none());
    let by_variable = [("URINGCAST_ENDPOINT_R_WEBHOOK_CONNECT", "http://b/"), ("URINGCAST_WEBHOOKS_SECRET", "a secret for webhooks only")];
    assert!(load(endpoint, &by_variable).expect("good settings").engine.endpoints[0].connect_hook);

    for (keys, key, words) in [
        ("membership = 'webhook'", "membership", "needs webhook_join: the URL that is asked"),
        ("webhook_join = 'http://b/'", "webhook_join", "means nothing unless membership is webhook"),
        ("webhook_connect = 'http://u:HUSH@b/'", "webhook_connect", "must be http://HOST"),
        ("webhook_connect = 'b/HUSH'", "webhook_connect", "must be http://HOST"),
        ("webhook_publish = ''", "webhook_publish", "must be http://HOST"),
    ] {
        let said = complaints(&format!("{secret}{endpoint}{keys}"), &[]);
        assert!(said.contains(&format!("endpoint r: {key}")) && said.contains(words), "{keys}: {said}");
        assert!(!said.contains("HUSH"), "{said}");
    }
    let said = complaints(&format!("{endpoint}webhook_connect = 'http://b/'"), &[]);
    assert!(said.contains("webhooks.secret") && said.contains("credential webhook_secret"), "{said}");
    let said = complaints("[[endpoint]]\nname = 'n'\ndialect = 'notify'\nbind = '/'\nwebhook_publish = 'http://b/'", &[]);
    assert!(said.contains("webhook_publish") && said.contains("means nothing for dialect notify"), "{said}");

    let file = Scratch::file(format!("{secret}{endpoint}{all}"));
    let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
    let page = print(&flags, &environment(&[("JWT_SECRET", SECRET)])).expect("good settings");
    assert!(page.contains("webhook_connect = \"https://b/c\"") && page.contains("# webhook_join = (hidden)"), "{page}");
    assert!(!page.contains("HUSH") && !page.contains("a secret for webhooks only"));
}
