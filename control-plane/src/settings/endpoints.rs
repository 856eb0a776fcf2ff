//! The `[[endpoint]]` tables: which dialect is bound where, with defaults that depend on the dialect and on `--dev`. Without any
//! table the endpoints of the contract are served. Each key has a variable here too: `URINGCAST_ENDPOINT_{NAME}_{KEY}`.

use std::collections::BTreeMap;

use engine::config::{AuthMode, DialectKind, Endpoint, Membership};
use engine::limits::ENDPOINTS_MAX;

use super::problem::{Origin, Problem};
use super::sources::{Environment, File, Given, read};
use super::table::{Setting, endpoint_settings};
use super::value::{Raw, Value, is_plain_path};
use crate::hooks::Urls;
use crate::http::{community, health};
use crate::outbound::Url;
use crate::secret::Secret;

/// Bytes of an endpoint's name: it is a label of every metric.
const NAME_BYTES_MAX: usize = 64;

/// What is served when no table says so: name, dialect, bind.
const DEFAULTS: [(&str, &str, &str); 8] = [
    ("community", "community", "/api/community/ws"),
    ("fabric", "collab", "/ws/fabric"),
    ("agent", "collab", "/ws/agent"),
    ("workflow", "collab", "/ws/workflow"),
    ("notifications", "collab", "/ws/notifications"),
    ("rooms", "rooms", "/"),
    ("chat", "chat", "/chat"),
    ("notify", "notify", "/notify"),
];

/// The endpoints, resolved.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    /// In the order of the file; those with problems are left out.
    pub(crate) list: Vec<Endpoint>,
    /// Their webhooks, in the same order.
    pub(crate) hooks: Vec<Urls>,
    names: Vec<String>,
}

impl Endpoints {
    /// All variables that mean something for these endpoints.
    pub(crate) fn variables(&self) -> impl Iterator<Item = String> {
        self.names
            .iter()
            .flat_map(|name| endpoint_settings().into_iter().filter(is_adjustable).map(move |setting| variable(name, setting.key())))
    }
}

/// Name and dialect make the endpoint what it is; a variable can change the rest.
fn is_adjustable(setting: &Setting) -> bool {
    !matches!(setting.key(), "name" | "dialect")
}

fn variable(name: &str, key: &str) -> String {
    format!("URINGCAST_ENDPOINT_{name}_{key}").replace('-', "_").to_ascii_uppercase()
}

/// Reads the tables, or the defaults where there are none.
pub(crate) fn resolve(file: &File, environment: &Environment, dev: bool, problems: &mut Vec<Problem>) -> Endpoints {
    let mut endpoints = Endpoints::default();
    for (place, table, origin) in tables(file, problems) {
        let mut draft = Draft { place, given: BTreeMap::new(), problems: Vec::new() };
        draft.read(&table, &origin, environment);
        endpoints.names.extend(draft.text("name").map(str::to_owned));
        let endpoint = draft.endpoint(dev, &endpoints.list);
        problems.append(&mut draft.problems);
        if let Some(endpoint) = endpoint {
            endpoints.list.push(endpoint);
            endpoints.hooks.push(draft.hooks());
        }
    }
    endpoints
}

/// Each table with its place in messages and its origin.
fn tables(file: &File, problems: &mut Vec<Problem>) -> Vec<(String, toml::Table, Origin)> {
    let Some(value) = file.table.get("endpoint") else {
        return DEFAULTS.iter().map(|endpoint| (format!("endpoint {}", endpoint.0), default_table(*endpoint), Origin::Default)).collect();
    };
    let tables: Option<Vec<&toml::Table>> = value.as_array().and_then(|items| items.iter().map(toml::Value::as_table).collect());
    match tables {
        Some(tables) if (1..=ENDPOINTS_MAX).contains(&tables.len()) => {
            let name = |table: &toml::Table| table.get("name").and_then(toml::Value::as_str).map(|name| name.escape_debug().to_string());
            let place = |(at, table)| format!("endpoint {}", name(table).unwrap_or_else(|| format!("number {}", at + 1)));
            tables.into_iter().enumerate().map(|(at, table)| (place((at, table)), table.clone(), file.origin())).collect()
        }
        _ => {
            let reason = format!("must be 1 to {ENDPOINTS_MAX} tables: [[endpoint]]");
            problems.push(Problem { key: "endpoint".into(), value: None, origin: Some(file.origin().to_string()), reason });
            Vec::new()
        }
    }
}

fn default_table((name, dialect, bind): (&str, &str, &str)) -> toml::Table {
    [("name", name), ("dialect", dialect), ("bind", bind)]
        .map(|(key, text)| (key.to_owned(), toml::Value::String(text.to_owned())))
        .into_iter()
        .collect()
}

/// One endpoint while it is read.
struct Draft {
    place: String,
    given: BTreeMap<&'static str, Given>,
    problems: Vec<Problem>,
}

impl Draft {
    fn read(&mut self, table: &toml::Table, origin: &Origin, environment: &Environment) {
        let known = endpoint_settings();
        let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default();
        let before = self.problems.len();
        for setting in &known {
            let variable = variable(name, setting.key());
            let said = environment.get(&variable).filter(|_| is_adjustable(setting));
            let new = said.and_then(|text| read(setting, Raw::Text(text), Origin::Variable(variable), &mut self.problems));
            let old = table.get(setting.key()).and_then(|value| read(setting, Raw::Toml(value), origin.clone(), &mut self.problems));
            if let Some(given) = new.or(old) {
                self.given.insert(setting.key(), given);
            }
        }
        for problem in &mut self.problems[before..] {
            problem.key = problem.key.replacen("endpoint.", &format!("{}: ", self.place), 1);
        }
        let keys: Vec<&str> = known.iter().map(Setting::key).collect();
        for key in table.keys().filter(|key| !keys.contains(&key.as_str())) {
            let reason = format!("unknown; known are {}", keys.join(", "));
            let key = format!("{}: {}", self.place, key.escape_debug());
            self.problems.push(Problem { key, value: None, origin: Some(origin.to_string()), reason });
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match &self.given.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn boolean(&self, key: &str) -> Option<bool> {
        match self.given.get(key)?.value {
            Value::Boolean(truth) => Some(truth),
            _ => None,
        }
    }

    fn integer(&self, key: &str) -> Option<u64> {
        match self.given.get(key)?.value {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    fn url(&self, key: &str) -> Option<Url> {
        // Its kind has been checked.
        self.text(key)?.parse().ok()
    }

    fn hooks(&self) -> Urls {
        Urls { connect: self.url("webhook_connect"), join: self.url("webhook_join"), publish: self.url("webhook_publish") }
    }

    fn complain(&mut self, key: &str, reason: impl Into<String>) {
        let given = self.given.get(key);
        self.problems.push(Problem {
            key: format!("{}: {key}", self.place),
            value: given.and_then(|given| given.value.toml()),
            origin: given.map(|given| given.origin.to_string()),
            reason: reason.into(),
        });
    }

    /// The endpoint, when nothing is wrong with it beside `others`.
    fn endpoint(&mut self, dev: bool, others: &[Endpoint]) -> Option<Endpoint> {
        for key in ["name", "dialect", "bind"] {
            let said_badly = self.problems.iter().any(|problem| problem.key.ends_with(&format!(": {key}")));
            if self.text(key).is_none() && !said_badly {
                self.complain(key, "is required");
            }
        }
        let dialect = dialect(self.text("dialect")?);
        let (name, bind) = (self.text("name")?.to_owned(), self.text("bind")?.to_owned());
        self.check_name(&name, others);
        self.check_bind(dialect, &bind, others);
        self.check_dialect_keys(dialect);
        let (auth, membership) = self.doors(dialect, dev);
        let endpoint = Endpoint {
            name,
            dialect,
            bind,
            auth,
            membership,
            cookies: self.boolean("cookies").unwrap_or(dialect != DialectKind::Notify),
            client_publish: self.boolean("client_publish").unwrap_or(dev && dialect == DialectKind::Community),
            auto_create: self.boolean("auto_create").unwrap_or(dev && dialect == DialectKind::Rooms),
            require_membership: self.boolean("require_membership").unwrap_or(true),
            retain: self.integer("retain").unwrap_or(0) as usize,
            recovery_ms: self.integer("recovery_ms").unwrap_or(0),
            eio3: self.boolean("eio3").unwrap_or(false),
            connect_hook: self.url("webhook_connect").is_some(),
            publish_hook: self.url("webhook_publish").is_some(),
        };
        self.problems.is_empty().then_some(endpoint)
    }

    fn check_name(&mut self, name: &str, others: &[Endpoint]) {
        let is_good = name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !is_good {
            self.complain("name", format!("must be 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, - and _"));
        }
        // Compared as variables spell them, where two names that differ only in case or dashes would be one.
        if let Some(other) = others.iter().find(|other| variable(&other.name, "") == variable(name, "")) {
            self.complain("name", format!("is taken by endpoint {} (case, - and _ make no difference)", other.name));
        }
    }

    fn check_bind(&mut self, dialect: DialectKind, bind: &str, others: &[Endpoint]) {
        let inner = bind.strip_prefix('/');
        if dialect.is_socket_io() {
            // A comma ends the namespace in a Socket.IO packet.
            if bind != "/" && !inner.is_some_and(|inner| is_plain_path(inner) && !inner.contains(',')) {
                self.complain("bind", "must be a namespace: / or /NAME of visible ASCII without , ? # %");
            }
        } else if !inner.is_some_and(is_plain_path) {
            self.complain("bind", "must be a path such as /ws/NAME of visible ASCII without ? # % and without a slash at its end");
        }
        // There the health documents answer what is no WebSocket, where 426 is due.
        if !dialect.is_socket_io() && health::PATHS.contains(&bind) {
            self.complain("bind", "is the path of a health document");
        }
        if let Some(other) = others.iter().find(|other| messages_clash((dialect, bind), (other.dialect, &other.bind))) {
            self.complain(
                "bind",
                format!("clashes with endpoint {}: messages of community are at P/messages where P/ws is bound", other.name),
            );
        }
        let is_same = |other: &&Endpoint| other.bind == bind && other.dialect.is_socket_io() == dialect.is_socket_io();
        if let Some(other) = others.iter().find(is_same) {
            self.complain("bind", format!("is taken by endpoint {}", other.name));
        }
    }

    /// A key that means nothing for the dialect is a misunderstanding, not decoration.
    fn check_dialect_keys(&mut self, dialect: DialectKind) {
        for setting in endpoint_settings() {
            if self.given.contains_key(setting.key()) && !applies(setting.key(), dialect) {
                self.complain(setting.key(), format!("means nothing for dialect {}", dialect.name()));
            }
        }
    }

    /// Who may connect, and who may enter rooms.
    fn doors(&mut self, dialect: DialectKind, dev: bool) -> (AuthMode, Membership) {
        let auth = match self.text("auth") {
            Some("none") => AuthMode::None,
            Some(_) => AuthMode::Token,
            None if dev && dialect == DialectKind::Rooms => AuthMode::None,
            None => AuthMode::Token,
        };
        let membership = match (self.text("membership"), dialect) {
            (Some("auto"), _) => Membership::Auto,
            (Some("claims"), _) => Membership::Claims,
            (Some("webhook"), _) => Membership::Webhook,
            (Some("redis"), _) => Membership::Redis,
            (Some(_), _) => Membership::Open,
            // Own dialects come in no file.
            (None, DialectKind::Rooms | DialectKind::Chat | DialectKind::Notify | DialectKind::Echo | DialectKind::Own(_)) => {
                Membership::Open
            }
            (None, DialectKind::Community) => Membership::Auto,
            (None, DialectKind::Collab) if dev => Membership::Open,
            (None, DialectKind::Collab) => Membership::Claims,
        };
        if auth == AuthMode::None && dialect == DialectKind::Community {
            self.complain("auth", "must be token: community knows its users by their token only");
        }
        if membership == Membership::Auto && dialect != DialectKind::Community {
            self.complain("membership", "must be one of open, claims: auto is for community");
        }
        let has_join = self.given.contains_key("webhook_join");
        if membership == Membership::Webhook && !has_join {
            self.complain("membership", "needs webhook_join: the URL that is asked");
        } else if membership != Membership::Webhook && has_join {
            self.complain("webhook_join", "means nothing unless membership is webhook");
        }
        if auth == AuthMode::None && membership == Membership::Claims {
            self.complain("membership", "must be set to open: with auth = \"none\" nobody has claims, so nobody could enter");
        }
        (auth, membership)
    }
}

/// True exactly when one of two endpoints is bound where the other's messages are, or both have theirs in one place.
fn messages_clash(one: (DialectKind, &str), other: (DialectKind, &str)) -> bool {
    let (ones, others) = (community::path_of(one.0, one.1), community::path_of(other.0, other.1));
    let hides = |messages: &Option<String>, (dialect, bind): (DialectKind, &str)| {
        !dialect.is_socket_io() && messages.as_ref().is_some_and(|messages| community::is_below(bind, messages))
    };
    let is_within = |inner: &Option<String>, outer: &Option<String>| {
        inner.as_ref().zip(outer.as_ref()).is_some_and(|(inner, outer)| community::is_below(inner, outer))
    };
    hides(&ones, other) || hides(&others, one) || is_within(&ones, &others) || is_within(&others, &ones)
}

fn dialect(word: &str) -> DialectKind {
    match word {
        "community" => DialectKind::Community,
        "collab" => DialectKind::Collab,
        "rooms" => DialectKind::Rooms,
        "chat" => DialectKind::Chat,
        "notify" => DialectKind::Notify,
        other => unreachable!("the table allows no dialect {other:?}"),
    }
}

/// True exactly when an endpoint of `dialect` has the key.
fn applies(key: &str, dialect: DialectKind) -> bool {
    match key {
        "client_publish" => dialect == DialectKind::Community,
        "auto_create" => dialect == DialectKind::Rooms,
        "require_membership" => dialect == DialectKind::Chat,
        "retain" => dialect == DialectKind::Collab,
        "webhook_publish" => dialect != DialectKind::Notify,
        "recovery_ms" | "eio3" => dialect.is_socket_io(),
        _ => true,
    }
}

/// The keys of an endpoint and their values, in the order of the table: what the file would say.
pub(crate) fn described(endpoint: &Endpoint, hooks: &Urls) -> Vec<(&'static str, Value)> {
    let word = |text: &str| Value::Text(text.to_owned());
    let auth = match endpoint.auth {
        AuthMode::Token => "token",
        AuthMode::None => "none",
    };
    let membership = match endpoint.membership {
        Membership::Auto => "auto",
        Membership::Open => "open",
        Membership::Claims => "claims",
        Membership::Webhook => "webhook",
        Membership::Redis => "redis",
    };
    // A query may hold a secret, so the whole is one.
    let shown = |url: &Url| if url.has_query() { Secret::new(b"hidden").ok().map(Value::Secret) } else { Some(word(&url.to_string())) };
    let url = |key, url: &Option<Url>| Some((key, shown(url.as_ref()?)?));
    let hooks = [url("webhook_connect", &hooks.connect), url("webhook_join", &hooks.join), url("webhook_publish", &hooks.publish)];
    let all = vec![
        ("name", word(&endpoint.name)),
        ("dialect", word(endpoint.dialect.name())),
        ("bind", word(&endpoint.bind)),
        ("auth", word(auth)),
        ("membership", word(membership)),
        ("cookies", Value::Boolean(endpoint.cookies)),
        ("client_publish", Value::Boolean(endpoint.client_publish)),
        ("auto_create", Value::Boolean(endpoint.auto_create)),
        ("require_membership", Value::Boolean(endpoint.require_membership)),
        ("retain", Value::Integer(endpoint.retain as u64)),
        ("recovery_ms", Value::Integer(endpoint.recovery_ms)),
        ("eio3", Value::Boolean(endpoint.eio3)),
    ];
    all.into_iter().chain(hooks.into_iter().flatten()).filter(|(key, _)| applies(key, endpoint.dialect)).collect()
}
