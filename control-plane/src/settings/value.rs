//! Kinds of values: how each is read from a text (flag, variable) or from TOML, what is allowed, and how it is shown.
//! A value that passed here is right for its kind; nobody checks it again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;

use crate::outbound::Url;
use crate::secret::Secret;

/// Servers of a list: a few of a cluster's nodes are enough to find the others.
const SERVERS_MAX: usize = 64;

/// Characters of a value that a problem shows; the rest is cut.
const SHOWN_CHARS_MAX: usize = 80;

/// Where the control plane's own listener is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlListen {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A value of one [`Kind`].
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Integer(u64),
    Boolean(bool),
    Text(String),
    List(Vec<String>),
    Address(SocketAddr),
    Control(ControlListen),
    /// The URL of a Redis server, which may hold a password.
    Server(String),
    /// Several of those.
    Servers(Vec<String>),
    Secret(Secret),
}

/// What a setting takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Integer {
        min: u64,
        max: u64,
    },
    Boolean,
    Choice(&'static [&'static str]),
    /// A file's path.
    File,
    /// Text that its own room checks further (an endpoint's name and bind).
    Word,
    /// The Socket.IO request path; a missing slash at the end is added, because clients add it too.
    RequestPath,
    Address,
    Control,
    Origins,
    Addresses,
    /// The URL of one Redis server.
    Redis,
    /// URLs of several that are on the network.
    Servers,
    /// A URL that is asked over HTTP.
    Url,
    /// Some of these words.
    Choices(&'static [&'static str]),
    Secret,
}

/// A value as it was given.
#[derive(Clone, Copy)]
pub(crate) enum Raw<'a> {
    Text(&'a str),
    Toml(&'a toml::Value),
}

impl Kind {
    /// Reads a value; `None` when it is not what [`Kind::allowed`] says.
    pub(crate) fn read(self, raw: Raw<'_>) -> Option<Value> {
        match self {
            Kind::Integer { min, max } => raw.integer().filter(|number| (min..=max).contains(number)).map(Value::Integer),
            Kind::Boolean => raw.boolean().map(Value::Boolean),
            Kind::Choice(words) => raw.word().filter(|word| words.contains(word)).map(|word| Value::Text(word.to_owned())),
            Kind::File | Kind::Word => raw.word().map(|word| Value::Text(word.to_owned())),
            Kind::RequestPath => raw.word().and_then(request_path).map(Value::Text),
            Kind::Address => raw.word()?.parse().ok().map(Value::Address),
            Kind::Control => raw.word().and_then(control).map(Value::Control),
            Kind::Origins => raw.list()?.into_iter().map(origin).collect::<Option<_>>().map(Value::List),
            Kind::Addresses => raw.list()?.into_iter().map(address).collect::<Option<_>>().map(Value::List),
            Kind::Redis => raw.word().filter(|url| is_redis_url(url)).map(|url| Value::Server(url.to_owned())),
            Kind::Servers => {
                let urls = raw.list()?.into_iter().map(|url| (is_redis_url(url) && !is_unix(url)).then(|| url.to_owned()));
                urls.collect::<Option<Vec<_>>>().filter(|urls| urls.len() <= SERVERS_MAX).map(Value::Servers)
            }
            Kind::Url => raw.word().filter(|url| Url::from_str(url).is_ok()).map(|url| Value::Text(url.to_owned())),
            Kind::Choices(words) => {
                let chosen = raw.list()?.into_iter().map(|word| words.contains(&word).then(|| word.to_owned()));
                chosen.collect::<Option<_>>().map(Value::List)
            }
            Kind::Secret => Secret::new(raw.text()?.as_bytes()).ok().map(Value::Secret),
        }
    }

    /// What is allowed, to follow "must be".
    pub(crate) fn allowed(self) -> String {
        match self {
            Kind::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Boolean => "true or false".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::File => "the path of a file".to_owned(),
            Kind::Word => "text that is not empty, without control characters".to_owned(),
            Kind::RequestPath => "a path such as /socket.io/ of visible ASCII without ? # % and empty parts".to_owned(),
            Kind::Address => "IP:PORT, such as 0.0.0.0:3000 or [::]:3000".to_owned(),
            Kind::Control => "IP:PORT or unix:/PATH".to_owned(),
            Kind::Origins => "a list of origins such as https://app.example.com (no path), or *".to_owned(),
            Kind::Addresses => "a list of IP addresses".to_owned(),
            Kind::Redis => "redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://... or unix:///PATH".to_owned(),
            Kind::Servers => format!("a list of at most {SERVERS_MAX} redis://[USER:PASSWORD@]HOST[:PORT] or rediss://..."),
            Kind::Url => "http://HOST[:PORT]/PATH or https://..., without a user or password".to_owned(),
            Kind::Choices(words) => format!("a list of {}", words.join(", ")),
            Kind::Secret => "text that is not empty".to_owned(),
        }
    }

    /// How a bad value may be shown: not at all where it is a secret or may hold one (a URL that cannot be read: who knows which
    /// part of it is the password).
    pub(crate) fn shown(self, raw: Raw<'_>) -> Option<String> {
        match self {
            Kind::Secret | Kind::Redis | Kind::Servers | Kind::Url => None,
            _ => Some(raw.shown()),
        }
    }
}

impl<'a> Raw<'a> {
    fn integer(self) -> Option<u64> {
        match self {
            // `parse` alone would take a plus sign.
            Raw::Text(text) => text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten(),
            Raw::Toml(value) => value.as_integer().and_then(|number| number.try_into().ok()),
        }
    }

    fn boolean(self) -> Option<bool> {
        match self {
            Raw::Text(text) => text.parse().ok(),
            Raw::Toml(value) => value.as_bool(),
        }
    }

    fn text(self) -> Option<&'a str> {
        match self {
            Raw::Text(text) => Some(text),
            Raw::Toml(value) => value.as_str(),
        }
    }

    /// A text that is not empty and has no control characters.
    fn word(self) -> Option<&'a str> {
        self.text().filter(|text| !text.is_empty() && !text.chars().any(char::is_control))
    }

    /// An array of texts, or a text with commas between them.
    fn list(self) -> Option<Vec<&'a str>> {
        match self {
            Raw::Text(text) => Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
            Raw::Toml(value) => value.as_array()?.iter().map(toml::Value::as_str).collect(),
        }
    }

    /// The value as TOML, cut when it is long.
    pub(crate) fn shown(self) -> String {
        match self {
            Raw::Text(text) => quoted(text),
            Raw::Toml(toml::Value::String(text)) => quoted(text),
            Raw::Toml(toml::Value::Integer(number)) => number.to_string(),
            Raw::Toml(toml::Value::Float(number)) => number.to_string(),
            Raw::Toml(toml::Value::Boolean(truth)) => truth.to_string(),
            Raw::Toml(toml::Value::Datetime(time)) => time.to_string(),
            Raw::Toml(toml::Value::Array(items)) => {
                let items: Vec<String> = items.iter().take(8).map(|item| Raw::Toml(item).shown()).collect();
                cut(&format!("[{}]", items.join(", ")))
            }
            Raw::Toml(toml::Value::Table(_)) => "a table".to_owned(),
        }
    }
}

impl Value {
    /// The value as TOML, or `None` where it must not be shown.
    pub(crate) fn toml(&self) -> Option<String> {
        match self {
            Value::Integer(number) => Some(number.to_string()),
            Value::Boolean(truth) => Some(truth.to_string()),
            Value::Text(text) => Some(toml_text(text)),
            Value::List(items) => Some(list(items)),
            Value::Address(address) => Some(toml_text(&address.to_string())),
            Value::Control(ControlListen::Tcp(address)) => Some(toml_text(&address.to_string())),
            Value::Control(ControlListen::Unix(path)) => Some(toml_text(&format!("unix:{}", path.display()))),
            Value::Server(url) => (!has_credentials(url)).then(|| toml_text(url)),
            Value::Servers(urls) => (!urls.iter().any(|url| has_credentials(url))).then(|| list(urls)),
            Value::Secret(_) => None,
        }
    }

    /// The value as TOML with what must not be shown left out; `None` where nothing of it can be shown.
    pub(crate) fn redacted(&self) -> Option<String> {
        match self {
            Value::Server(url) => Some(toml_text(&without_credentials(url))),
            Value::Servers(urls) => Some(list(&urls.iter().map(|url| without_credentials(url)).collect::<Vec<_>>())),
            _ => self.toml(),
        }
    }
}

fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| toml_text(item)).collect::<Vec<_>>().join(", "))
}

/// A TOML basic string. Control characters were refused when the value was read.
pub(crate) fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A text from outside for a terminal: quoted, escaped, cut.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn control(text: &str) -> Option<ControlListen> {
    match text.strip_prefix("unix:") {
        Some(path) => path.starts_with('/').then(|| ControlListen::Unix(path.into())),
        None => text.parse().ok().map(ControlListen::Tcp),
    }
}

fn request_path(text: &str) -> Option<String> {
    let inner = text.strip_prefix('/')?;
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    is_plain_path(inner).then(|| format!("/{inner}/"))
}

/// True exactly when `path` (without its first slash) can stand in a request line as it is: what would be a query, a fragment
/// or an escape there never equals a path that is compared as bytes.
pub(crate) fn is_plain_path(path: &str) -> bool {
    !path.is_empty()
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%'))
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// An origin as browsers send it: lower case, no path, no port that the scheme implies. One slash at the end is forgiven.
fn origin(text: &str) -> Option<String> {
    if text == "*" {
        return Some(text.to_owned());
    }
    let text = text.to_ascii_lowercase();
    let (scheme, host) = text.strip_suffix('/').unwrap_or(&text).split_once("://")?;
    let host = match scheme {
        "https" => host.strip_suffix(":443").unwrap_or(host),
        "http" => host.strip_suffix(":80").unwrap_or(host),
        _ => host,
    };
    let scheme_is_good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'.' | b'-'));
    (scheme_is_good && is_host_and_port(host)).then(|| format!("{scheme}://{host}"))
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')),
    };
    host_is_good && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn address(text: &str) -> Option<String> {
    text.parse::<IpAddr>().ok().map(|address| address.to_string())
}

/// True exactly when it names a Unix socket.
pub(crate) fn is_unix(url: &str) -> bool {
    url.starts_with("unix:") || url.starts_with("redis+unix:")
}

pub(crate) fn is_redis_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let before_query = rest.split(['?', '#']).next().unwrap_or_default();
    match scheme {
        "redis" | "rediss" => {
            let (authority, database) = before_query.split_once('/').unwrap_or((before_query, ""));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            is_host_and_port(host) && (database.is_empty() || database.parse::<u32>().is_ok())
        }
        "unix" | "redis+unix" => before_query.len() > 1 && before_query.starts_with('/'),
        _ => false,
    }
}

fn has_credentials(url: &str) -> bool {
    without_credentials(url) != url
}

/// A URL with nothing in it that could be a password: not what stands before the last `@`, and no query.
pub(crate) fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (before_query, query) = rest.split_once('?').map_or((rest, ""), |(before, _)| (before, "?..."));
    let (credentials, place) = before_query.rsplit_once('@').map_or(("", before_query), |(_, place)| ("...@", place));
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{credentials}{place}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(kind: Kind, text: &str) -> bool {
        kind.read(Raw::Text(text)).is_some()
    }

    #[test]
    fn numbers_and_truths_are_exact() {
        let kind = Kind::Integer { min: 1, max: 10 };
        assert!(reads(kind, "1") && reads(kind, "10") && reads(kind, "007"));
        for bad in ["", "0", "11", "+1", "-1", "1.0", "1e1", " 1", "1_0", "ten", "99999999999999999999999"] {
            assert!(!reads(kind, bad), "{bad:?}");
        }
        assert!(reads(Kind::Boolean, "true") && reads(Kind::Boolean, "false"));
        assert!(!reads(Kind::Boolean, "1") && !reads(Kind::Boolean, "yes") && !reads(Kind::Boolean, ""));
        assert!(kind.read(Raw::Toml(&toml::Value::Integer(5))).is_some());
        assert!(kind.read(Raw::Toml(&toml::Value::Integer(-5))).is_none());
        assert!(kind.read(Raw::Toml(&toml::Value::Float(5.0))).is_none());
        assert!(kind.read(Raw::Toml(&toml::Value::String("5".into()))).is_none());
    }

    #[test]
    fn origins_are_as_browsers_send_them() {
        let cases = [
            ("https://App.Example.com", Some("https://app.example.com")),
            ("https://app.example.com/", Some("https://app.example.com")),
            ("https://app.example.com:443", Some("https://app.example.com")),
            ("http://localhost:3000", Some("http://localhost:3000")),
            ("http://[::1]:8080", Some("http://[::1]:8080")),
            ("capacitor://localhost", Some("capacitor://localhost")),
            ("*", Some("*")),
            ("app.example.com", None),
            ("https://", None),
            ("https://a/b", None),
            ("https://a?b", None),
            ("https://u@a", None),
            ("https://a:0", None),
            ("https://a b", None),
            ("://a", None),
            ("null", None),
        ];
        for (text, expected) in cases {
            assert_eq!(origin(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn redis_urls_are_checked_and_shown_without_credentials() {
        for good in [
            "redis://localhost",
            "rediss://:pw@r.example.com:6380/2",
            "redis://user:p%40w@[::1]:6379",
            "unix:///run/redis.sock",
            "redis+unix:///r?db=1",
        ] {
            assert!(is_redis_url(good), "{good}");
        }
        for bad in [
            "",
            "localhost:6379",
            "http://localhost",
            "redis://",
            "redis://h:0",
            "redis://h:x",
            "redis://h/name",
            "unix://",
            "unix://run",
            "redis://@",
        ] {
            assert!(!is_redis_url(bad), "{bad}");
        }
        assert_eq!(without_credentials("redis://u:p@ss@host:1/2"), "redis://...@host:1/2");
        assert_eq!(without_credentials("redis+unix:///r?pass=secret"), "redis+unix:///r?...");
        assert_eq!(without_credentials("u:p@host"), "...@host");
        assert_eq!(Kind::Redis.shown(Raw::Text("redis//:pw")), None);
        assert!(reads(Kind::Servers, "redis://a:1, rediss://u:p@b") && reads(Kind::Servers, ""));
        assert!(!reads(Kind::Servers, "redis://a,b") && !reads(Kind::Servers, "unix:///r"));
        assert!(!reads(Kind::Servers, &vec!["redis://a"; SERVERS_MAX + 1].join(",")));
        assert_eq!(Kind::Servers.shown(Raw::Text("redis//:pw,redis://:pw@a")), None);
        assert_eq!(Value::Servers(vec!["redis://a".into(), "redis://:pw@b".into()]).toml(), None);
    }

    #[test]
    fn paths_and_addresses() {
        assert_eq!(request_path("/socket.io").as_deref(), Some("/socket.io/"));
        assert_eq!(request_path("/a/b/").as_deref(), Some("/a/b/"));
        for bad in ["", "/", "//", "socket.io", "/a//b", "/a?b", "/a%20", "/ä", "/a b", "/../a"] {
            assert_eq!(request_path(bad), None, "{bad}");
        }
        assert_eq!(control("unix:/run/x.sock"), Some(ControlListen::Unix("/run/x.sock".into())));
        assert!(control("unix:x.sock").is_none() && control("localhost:1").is_none() && control("[::1]:1").is_some());
    }

    #[test]
    fn what_is_shown_is_escaped_and_cut() {
        assert_eq!(quoted("a\u{1b}[31m\n"), r#""a\u{1b}[31m\n""#);
        assert_eq!(quoted(&"ä".repeat(100)).chars().count(), SHOWN_CHARS_MAX + 5);
        assert_eq!(Kind::Secret.shown(Raw::Text("hunter2")), None);
        assert_eq!(toml_text(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
