//! Gathers what was said: per setting the flag, else its variable, else an old variable, else the file, else the default. What is
//! there but loses is checked all the same, so that a bad line in the file is found before the day it counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::endpoints::{self, Endpoints};
use super::problem::{Origin, Problem};
use super::table::{Setting, settings};
use super::value::{ControlListen, Kind, Raw, Value};
use crate::secret::Secret;

/// Bytes of a configuration file; a larger one is something else by mistake.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The environment, as an argument: tests bring their own.
pub type Environment = BTreeMap<String, String>;

/// What the command line says about settings.
#[derive(Clone, Default, Debug)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<String>,
    /// `--control`.
    pub control: Option<String>,
    /// `--shards`.
    pub shards: Option<String>,
    /// `--redis`.
    pub redis: Option<String>,
    /// `--dev`.
    pub dev: bool,
    /// Text to be taken for the configuration file's: what this process had before a newer program could not take over.
    pub configuration: Option<String>,
    /// What the secrets of `--dev` were made of before a reload; without it they are new.
    pub dev_seed: Option<Secret>,
}

impl Flags {
    fn text(&self, flag: &str) -> Option<&str> {
        match flag {
            "--listen" => self.listen.as_deref(),
            "--control" => self.control.as_deref(),
            "--shards" => self.shards.as_deref(),
            "--redis" => self.redis.as_deref(),
            _ => None,
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// The old servers' secret of HS256.
const TOKEN_SECRET: &str = "JWT_SECRET";

/// Everything that was said, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// By path; settings without value and default are absent.
    values: BTreeMap<&'static str, Given>,
    pub(crate) endpoints: Endpoints,
    /// The configuration file as it was read.
    pub(crate) configuration: Option<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
}

impl Gathered {
    /// Reads all sources.
    pub(crate) fn gather(flags: &Flags, environment: &Environment) -> Gathered {
        let mut gathered = Gathered::default();
        let file = gathered.file(flags.config.as_deref(), flags.configuration.clone());
        for setting in settings() {
            gathered.resolve(&setting, flags, environment, &file);
        }
        gathered.old_port(environment);
        if flags.dev {
            gathered.stay_local();
        }
        gathered.endpoints = endpoints::resolve(&file, environment, flags.dev, &mut gathered.problems);
        gathered.unknown_keys(&file);
        gathered.unknown_variables(environment);
        gathered
    }

    pub(crate) fn given(&self, path: &str) -> Option<&Given> {
        self.values.get(path)
    }

    pub(crate) fn integer(&self, path: &str) -> Option<u64> {
        match self.value(path)? {
            Value::Integer(number) => Some(*number),
            other => unreachable!("the table says that {path} is a number, not {other:?}"),
        }
    }

    pub(crate) fn boolean(&self, path: &str) -> bool {
        matches!(self.value(path), Some(Value::Boolean(true)))
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        match self.value(path)? {
            Value::Text(text) => Some(text),
            other => unreachable!("the table says that {path} is a text, not {other:?}"),
        }
    }

    pub(crate) fn list(&self, path: &str) -> &[String] {
        match self.value(path) {
            Some(Value::List(items)) => items,
            other => unreachable!("the table says that {path} is a list with a default, not {other:?}"),
        }
    }

    /// URLs of Redis; none where nothing was said.
    pub(crate) fn servers(&self, path: &str) -> &[String] {
        match self.value(path) {
            Some(Value::Servers(urls)) => urls,
            Some(Value::Server(url)) => std::slice::from_ref(url),
            None => &[],
            other => unreachable!("the table says that {path} is of Redis, not {other:?}"),
        }
    }

    /// True exactly when somebody said something about `setting` that does not hold anyway: a list of all defaults says nothing.
    pub(crate) fn is_said(&self, setting: &Setting) -> bool {
        let default = setting.default.as_ref().and_then(Value::toml);
        self.given(setting.path)
            .is_some_and(|given| given.origin != Origin::Default && (default.is_none() || given.value.toml() != default))
    }

    pub(crate) fn address(&self, path: &str) -> SocketAddr {
        match self.value(path) {
            Some(Value::Address(address)) => *address,
            other => unreachable!("the table says that {path} is an address with a default, not {other:?}"),
        }
    }

    pub(crate) fn control(&self, path: &str) -> &ControlListen {
        match self.value(path) {
            Some(Value::Control(listen)) => listen,
            other => unreachable!("the table says that {path} is a listener with a default, not {other:?}"),
        }
    }

    fn value(&self, path: &str) -> Option<&Value> {
        self.values.get(path).map(|given| &given.value)
    }

    /// Notes that something is wrong with what is in force for `path`.
    pub(crate) fn complain(&mut self, path: &str, reason: impl Into<String>) {
        let given = self.values.get(path);
        self.problems.push(Problem {
            key: path.to_owned(),
            value: given.and_then(|given| given.value.toml()),
            origin: given.map(|given| given.origin.to_string()),
            reason: reason.into(),
        });
    }

    fn file(&mut self, path: Option<&Path>, instead: Option<String>) -> File {
        let Some(path) = path else { return File::default() };
        let name = path.display().to_string();
        let text = instead.map_or_else(|| read_text(path), Ok);
        match text.and_then(|text| Ok((parse(&text)?, text))) {
            Ok((table, text)) => {
                self.configuration = Some(text);
                File { name, table }
            }
            Err(reason) => {
                self.problems.push(Problem { key: "--config".into(), value: None, origin: Some(format!("file {name}")), reason });
                File::default()
            }
        }
    }

    fn resolve(&mut self, setting: &Setting, flags: &Flags, environment: &Environment, file: &File) {
        let variable = setting.variable();
        let flag = setting.flag.and_then(|name| Some((Origin::Flag(name), flags.text(name)?)));
        let new = environment.get(&variable).map(|text| (Origin::Variable(variable), text.as_str()));
        let mut winner = None;
        for (origin, text) in flag.into_iter().chain(new) {
            winner = winner.or(read(setting, Raw::Text(text), origin, &mut self.problems));
        }
        if winner.is_none()
            && let Some((variable, text)) = self.old_variable(setting, environment)
        {
            winner = read(setting, Raw::Text(&text), Origin::OldVariable(variable), &mut self.problems);
        }
        if let Some(value) = file.value(setting) {
            winner = winner.or(read(setting, Raw::Toml(value), file.origin(), &mut self.problems));
        }
        let default = || setting.default.clone().map(|value| Given { value, origin: Origin::Default });
        if let Some(given) = winner.or_else(default) {
            self.values.insert(setting.path, given);
        }
    }

    /// The old variable in force for a setting. Beside a public key `JWT_SECRET` is none: it was for signing tokens, and one that was left
    /// over must not open doors as the secret of session cookies, for which the libraries have variables of their own.
    fn old_variable(&mut self, setting: &Setting, environment: &Environment) -> Option<(String, String)> {
        let is_keyed = setting.path == "auth.secret" && self.text("auth.algorithm").is_some_and(|algorithm| algorithm != "HS256");
        if !is_keyed {
            return old_variable(setting, environment);
        }
        if set(TOKEN_SECRET, environment).is_some() {
            self.warnings.push(format!(
                "the variable {TOKEN_SECRET} is not used: tokens are verified with a public key; a secret for encrypted session cookies \
                 is set with auth.secret_file, auth.secret, NEXTAUTH_SECRET or AUTH_SECRET"
            ));
        }
        let others: Vec<_> = setting.old.iter().copied().filter(|name| *name != TOKEN_SECRET).collect();
        first_set(&others, environment).map(|(name, text)| (name.to_owned(), text.to_owned()))
    }

    /// The old servers' variables for the port leave the address as the file or the default has it.
    fn old_port(&mut self, environment: &Environment) {
        let Some(given) = self.values.get_mut("server.listen") else { return };
        let Some((name, text)) = first_set(&["WEBSOCKET_PORT", "PORT"], environment) else { return };
        let old = Origin::OldVariable(name.to_owned());
        if given.origin.rank() < old.rank() {
            return;
        }
        let Value::Address(address) = &mut given.value else { return };
        match (Kind::Integer { min: 0, max: u64::from(u16::MAX) }.read(Raw::Text(text)), text.parse::<u16>()) {
            (Some(_), Ok(port)) => {
                address.set_port(port);
                given.origin = old;
            }
            _ => self.problems.push(Problem {
                key: "server.listen".into(),
                value: Some(Raw::Text(text).shown()),
                origin: Some(format!("variable {name}")),
                reason: "must be a port from 0 to 65535".into(),
            }),
        }
    }

    /// `--dev` opens doors, so it listens where nobody else can knock; only a flag, said in the same breath, overrules that.
    fn stay_local(&mut self) {
        for path in ["server.listen", "control.listen"] {
            let Some(Given { value, origin }) = self.values.get_mut(path) else { continue };
            let (Value::Address(address) | Value::Control(ControlListen::Tcp(address))) = value else { continue };
            if address.ip().is_loopback() || matches!(origin, Origin::Flag(_)) {
                continue;
            }
            let said = *address;
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            // An old variable said nothing about the address.
            if !matches!(origin, Origin::Default | Origin::OldVariable(_)) {
                self.warnings.push(format!("--dev: {path} is {address} instead of {said} ({origin})"));
            }
        }
    }

    fn unknown_keys(&mut self, file: &File) {
        let known = settings();
        for (section, content) in file.table.iter().filter(|(name, _)| *name != "endpoint") {
            let keys: Vec<&str> = known.iter().filter(|setting| setting.section() == section).map(Setting::key).collect();
            match content.as_table() {
                _ if keys.is_empty() => self.unknown(section, file, format!("unknown; known are {} and [[endpoint]]", sections(&known))),
                None => self.unknown(section, file, format!("must be a table: [{section}]")),
                Some(table) => {
                    for key in table.keys().filter(|key| !keys.contains(&key.as_str())) {
                        self.unknown(&format!("{section}.{key}"), file, format!("unknown; known are {}", keys.join(", ")));
                    }
                }
            }
        }
    }

    /// The value is not shown: an unknown key may be a misspelt secret.
    fn unknown(&mut self, key: &str, file: &File, reason: String) {
        self.problems.push(Problem { key: key.escape_debug().to_string(), value: None, origin: Some(file.origin().to_string()), reason });
    }

    fn unknown_variables(&mut self, environment: &Environment) {
        let known: Vec<String> = settings().iter().map(Setting::variable).chain(self.endpoints.variables()).collect();
        for name in environment.keys().filter(|name| name.starts_with("URINGCAST_") && !known.contains(name) && !is_service_link(name)) {
            self.problems.push(Problem {
                key: name.escape_debug().to_string(),
                value: None,
                origin: Some("variable".into()),
                reason: "unknown; `uringcast print-config` names all variables".into(),
            });
        }
    }
}

/// The configuration file's content; empty where there is none.
#[derive(Debug, Default)]
pub(crate) struct File {
    name: String,
    pub(crate) table: toml::Table,
}

impl File {
    pub(crate) fn origin(&self) -> Origin {
        Origin::File(self.name.clone())
    }

    fn value(&self, setting: &Setting) -> Option<&toml::Value> {
        self.table.get(setting.section())?.as_table()?.get(setting.key())
    }
}

/// Reads one value; a bad one becomes a problem.
pub(crate) fn read(setting: &Setting, raw: Raw<'_>, origin: Origin, problems: &mut Vec<Problem>) -> Option<Given> {
    let read = setting.kind.read(raw);
    if read.is_none() {
        problems.push(Problem {
            key: setting.path.to_owned(),
            value: setting.kind.shown(raw),
            origin: Some(origin.to_string()),
            reason: format!("must be {}", allowed(setting)),
        });
    }
    read.map(|value| Given { value, origin })
}

/// What a setting takes, with its unit.
pub(crate) fn allowed(setting: &Setting) -> String {
    let unit = if setting.unit.is_empty() { String::new() } else { format!(" ({})", setting.unit) };
    format!("{}{unit}", setting.kind.allowed())
}

fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<toml::Table, String> {
    // The error's own text would quote the line, and the line may hold a secret.
    text.parse().map_err(|error: toml::de::Error| match error.span() {
        Some(span) => format!("is not TOML: line {}: {}", 1 + text[..span.start].matches('\n').count(), error.message()),
        None => format!("is not TOML: {}", error.message()),
    })
}

fn sections(settings: &[Setting]) -> String {
    let mut names: Vec<String> = settings.iter().map(|setting| format!("[{}]", setting.section())).collect();
    names.dedup();
    names.join(", ")
}

/// The old variable in force and its text. The simple ones are asked in the order of the table; an empty one counts as not set, as
/// it did for the servers that read them.
fn old_variable(setting: &Setting, environment: &Environment) -> Option<(String, String)> {
    match setting.path {
        "server.listen" => None,
        "origins.allowed" => old_origins(environment),
        "redis.url" => old_redis(environment),
        _ => first_set(setting.old, environment).map(|(name, text)| (name.to_owned(), text.to_owned())),
    }
}

fn first_set<'a>(names: &[&'static str], environment: &'a Environment) -> Option<(&'static str, &'a str)> {
    names.iter().find_map(|name| Some((*name, set(name, environment)?)))
}

fn set<'a>(name: &str, environment: &'a Environment) -> Option<&'a str> {
    environment.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

/// Both variables count. `FRONTEND_URL` is a URL, whose path is no part of an origin.
fn old_origins(environment: &Environment) -> Option<(String, String)> {
    let list = set("WEBSOCKET_CORS_ORIGIN", environment);
    let frontend = set("FRONTEND_URL", environment).map(|url| match url.find("://").map(|colon| (colon + 3, &url[colon + 3..])) {
        Some((host, rest)) => &url[..host + rest.find(['/', '?', '#']).unwrap_or(rest.len())],
        None => url,
    });
    match (list, frontend) {
        (None, None) => None,
        (Some(list), None) => Some(("WEBSOCKET_CORS_ORIGIN".into(), list.into())),
        (None, Some(url)) => Some(("FRONTEND_URL".into(), url.into())),
        (Some(list), Some(url)) => Some(("WEBSOCKET_CORS_ORIGIN and FRONTEND_URL".into(), format!("{list},{url}"))),
    }
}

fn old_redis(environment: &Environment) -> Option<(String, String)> {
    if let Some(url) = set("REDIS_URL", environment) {
        return Some(("REDIS_URL".into(), url.into()));
    }
    let host = set("REDIS_HOST", environment)?;
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let port = set("REDIS_PORT", environment).unwrap_or("6379");
    let password = set("REDIS_PASSWORD", environment).map(|password| format!(":{}@", percent_encoded(password))).unwrap_or_default();
    Some(("REDIS_HOST with REDIS_PORT and REDIS_PASSWORD".into(), format!("redis://{password}{host}:{port}")))
}

/// For a part of a URL.
pub(crate) fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Kubernetes sets such variables in every pod beside a service called `uringcast`; nobody chose them.
fn is_service_link(name: &str) -> bool {
    name == "URINGCAST_PORT"
        || ["URINGCAST_PORT_", "URINGCAST_SERVICE_HOST", "URINGCAST_SERVICE_PORT"].iter().any(|link| name.starts_with(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_becomes_part_of_a_url() {
        let environment = Environment::from([("REDIS_HOST".into(), "::1".into()), ("REDIS_PASSWORD".into(), "p@s:/ä".into())]);
        assert_eq!(old_redis(&environment).map(|(_, url)| url).as_deref(), Some("redis://:p%40s%3A%2F%C3%A4@[::1]:6379"));
    }
}
