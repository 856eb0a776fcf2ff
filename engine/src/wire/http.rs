//! HTTP/1.1 request heads, and the few responses that the engine writes itself. httparse reads the syntax; on top of it stands what keeps two
//! readers of one request from seeing two requests: line ends, lengths and the headers that decide may not be ambiguous. Bodies are read by
//! `body`.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::mem::MaybeUninit;

use tungstenite::handshake::derive_accept_key;

use crate::limits::HEADERS_MAX;

/// How a head tells where its body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Sized(usize),
    /// With the last chunk.
    Chunked,
    /// Nobody can tell.
    Unclear,
}

/// What [`parse`] found.
#[derive(Debug)]
pub enum Head<'b> {
    /// The head is not all there yet, and may still be a good one.
    Incomplete,
    /// A whole head.
    Complete {
        /// Its length, the empty line included.
        bytes: usize,
        /// What it says.
        request: Request<'b>,
    },
    /// To be answered with this status and closed: 431 when over a limit, else 400.
    Bad {
        /// The status.
        status: u16,
    },
}

/// Reads the head at the beginning of `buf`. More than `head_max` bytes of it or [`HEADERS_MAX`] fields are 431.
pub fn parse(buf: &[u8], head_max: usize) -> Head<'_> {
    // Bytes beyond the limit are not looked at, so that the answer does not depend on how much came in one read.
    let window = &buf[..buf.len().min(head_max)];
    // Not filled in beforehand: that would cost more than to read the few that there are.
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(window, &mut fields) {
        Err(httparse::Error::TooManyHeaders) => Head::Bad { status: 431 },
        Err(_) => Head::Bad { status: 400 },
        Ok(httparse::Status::Partial) if buf.len() >= head_max => Head::Bad { status: 431 },
        Ok(httparse::Status::Partial) => Head::Incomplete,
        Ok(httparse::Status::Complete(bytes)) => match Request::checked(&parsed, &window[..bytes]) {
            Some(request) => Head::Complete { bytes, request },
            None => Head::Bad { status: 400 },
        },
    }
}

/// A request's head. Its debug form shows no headers and no query: both carry tokens.
pub struct Request<'b> {
    /// The method, as it was.
    pub method: &'b str,
    /// The request target, as it was.
    pub target: &'b str,
    /// The target's path, not decoded.
    pub path: &'b str,
    /// The target's query without `?`, not decoded; empty when there is none.
    pub query: &'b str,
    /// 1 for HTTP/1.1, 0 for HTTP/1.0.
    minor_version: u8,
    headers: Vec<httparse::Header<'b>>,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl<'b> Request<'b> {
    /// The request, unless the head is one that two readers could read differently.
    fn checked(parsed: &httparse::Request<'_, 'b>, head: &[u8]) -> Option<Request<'b>> {
        let (method, target, minor_version) = (parsed.method?, parsed.path?, parsed.version?);
        let (path, query) = split_target(target);
        let request = Request { method, target, path, query, minor_version, headers: parsed.headers.to_vec() };
        (!has_bare_line_feed(head) && request.has_clear_host() && request.has_clear_length() && request.has_clear_upgrade())
            .then_some(request)
    }

    fn fields(&self, name: &str) -> impl DoubleEndedIterator<Item = &'b [u8]> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.trim_ascii())
    }

    fn count(&self, name: &str) -> usize {
        self.fields(name).count()
    }

    /// One `Host`; HTTP/1.0 knew none yet.
    fn has_clear_host(&self) -> bool {
        match self.count("Host") {
            0 => self.minor_version == 0,
            hosts => hosts == 1,
        }
    }

    /// Where the body ends.
    pub fn framing(&self) -> Framing {
        let mut encodings = self.fields("Transfer-Encoding");
        match (encodings.next(), encodings.next()) {
            // No other coding can be told from its end, and HTTP/1.0 knew none.
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") && self.minor_version == 1 => Framing::Chunked,
            (Some(_), _) => Framing::Unclear,
            (None, _) => match self.header("Content-Length") {
                // All digits, so that one that cannot be read is one that is too large.
                Some(length) => Framing::Sized(length.parse().unwrap_or(usize::MAX)),
                None => Framing::None,
            },
        }
    }

    /// True exactly when nothing but the next request can follow the head.
    pub fn is_bodiless(&self) -> bool {
        matches!(self.framing(), Framing::None | Framing::Sized(0))
    }

    /// True exactly when the client waits to be told before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.minor_version == 1 && self.lists("Expect", "100-continue")
    }

    /// True exactly when the client would send its next request over the same connection.
    pub fn persists(&self) -> bool {
        !self.lists("Connection", "close") && (self.minor_version == 1 || self.lists("Connection", "keep-alive"))
    }

    /// True exactly when the answer may be compressed with gzip: it is named, or else everything is, and not with a weight of 0.
    pub fn accepts_gzip(&self) -> bool {
        let lines = self.fields("Accept-Encoding").filter_map(|line| std::str::from_utf8(line).ok());
        let (mut gzip, mut rest) = (None, None);
        for item in lines.flat_map(|line| line.split(',')) {
            let mut parts = item.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let refused = parts.filter_map(|part| part.split_once('=')).any(|(name, value)| {
                name.trim().eq_ignore_ascii_case("q") && value.trim().parse::<f32>().map_or(true, |weight| weight <= 0.0)
            });
            match coding {
                "*" => rest = rest.or(Some(!refused)),
                coding if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") => gzip = gzip.or(Some(!refused)),
                _ => {}
            }
        }
        gzip.or(rest).unwrap_or(false)
    }

    /// At most one way to tell where the body ends.
    fn has_clear_length(&self) -> bool {
        let mut lengths = self.fields("Content-Length");
        let Some(first) = lengths.next() else { return true };
        let is_number = !first.is_empty() && first.iter().all(u8::is_ascii_digit);
        is_number && lengths.all(|other| other == first) && self.count("Transfer-Encoding") == 0
    }

    /// The first header of this name in any case, without the blanks around it; `None` also when it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&'b str> {
        std::str::from_utf8(self.fields(name).next()?).ok()
    }

    /// All headers of this name, as [`Request::header`] gives the first: `None` for one that is not UTF-8.
    pub fn headers(&self, name: &str) -> impl DoubleEndedIterator<Item = Option<&'b str>> {
        self.fields(name).map(|value| std::str::from_utf8(value).ok())
    }

    /// The first query value of this name, decoded (`+` is a blank); `None` also when what it decodes to is not UTF-8.
    pub fn query_value(&self, name: &str) -> Option<Cow<'b, str>> {
        query_value(self.query, name)
    }

    /// All query values of this name, decoded, without those that are not UTF-8.
    pub fn query_values(&self, name: &str) -> Vec<String> {
        query_values(self.query, name)
    }

    /// The first cookie of this name, without quotes around it.
    pub fn cookie(&self, name: &str) -> Option<&'b str> {
        let lines = self.fields("Cookie").filter_map(|line| std::str::from_utf8(line).ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| key.trim_ascii() == name)?;
        let value = value.trim_ascii();
        Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
    }

    /// The token of `Authorization: Bearer TOKEN`.
    pub fn bearer(&self) -> Option<&'b str> {
        let (scheme, token) = self.header("Authorization")?.split_once(' ')?;
        let token = token.trim_ascii();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    }

    /// False when the headers of an upgrade are there twice: a proxy before us may have read the other one.
    fn has_clear_upgrade(&self) -> bool {
        ["Sec-WebSocket-Key", "Sec-WebSocket-Version"].iter().all(|name| self.count(name) <= 1)
    }

    /// True exactly when it asks to become a WebSocket: GET of HTTP/1.1, `Connection` names `upgrade`, `Upgrade` names `websocket`.
    pub fn wants_websocket(&self) -> bool {
        self.method == "GET" && self.minor_version == 1 && self.lists("Connection", "upgrade") && self.lists("Upgrade", "websocket")
    }

    /// True exactly when a comma-separated header has this token, in any case.
    fn lists(&self, name: &str, token: &str) -> bool {
        self.fields(name).flat_map(|list| list.split(|&b| b == b',')).any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// `Sec-WebSocket-Key`, or the status to refuse with: 426 when the version is not 13, 400 when the key is missing or not 16 bytes of base64,
    /// or when a body comes with it.
    pub fn websocket_key(&self) -> Result<&'b str, u16> {
        if self.header("Sec-WebSocket-Version") != Some("13") {
            return Err(426);
        }
        if !self.is_bodiless() {
            // To a proxy before us its bytes are a body, here they would be frames.
            return Err(400);
        }
        self.header("Sec-WebSocket-Key").filter(|key| is_websocket_key(key)).ok_or(400)
    }

    /// The `Sec-WebSocket-Protocol` offered first, if it is one that may be answered.
    pub fn first_protocol(&self) -> Option<&'b str> {
        let first = self.header("Sec-WebSocket-Protocol")?.split(',').next()?.trim_ascii();
        (!first.is_empty() && first.bytes().all(is_token_byte)).then_some(first)
    }
}

/// True exactly when some line ends without CR: httparse takes that, a proxy before us may not.
fn has_bare_line_feed(head: &[u8]) -> bool {
    // Without a branch a byte, which the compiler makes comparisons of vectors: heads have no such line, so all of them are looked through.
    let pairs = head.iter().zip(head.iter().skip(1));
    head.first() == Some(&b'\n') || pairs.fold(false, |found, (before, byte)| found | ((*byte == b'\n') & (*before != b'\r')))
}

/// Path and query of a target, also of one in absolute form (`http://host/path`), which servers must take (RFC 9112 section 3.2.2).
fn split_target(target: &str) -> (&str, &str) {
    let origin = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    match origin.split_once('?') {
        Some(("", query)) => ("/", query),
        Some(parts) => parts,
        None => (origin, ""),
    }
}

/// The first value of this name in a query string, decoded (`+` is a blank); `None` also when what it decodes to is not UTF-8.
pub fn query_value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    decoded(raw_query_values(query, name).next()?)
}

/// All values of this name in a query string, decoded, without those that are not UTF-8.
pub fn query_values(query: &str, name: &str) -> Vec<String> {
    raw_query_values(query, name).filter_map(decoded).map(Cow::into_owned).collect()
}

/// Names and values of a query string in their order, decoded, without those that are not UTF-8.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let (name, value) = split_pair(pair);
        Some((decoded(name)?, decoded(value)?))
    })
}

fn raw_query_values<'q>(query: &'q str, name: &str) -> impl Iterator<Item = &'q str> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = split_pair(pair);
        // Decoding never lengthens.
        let may_be = key.len() >= name.len() && !pair.is_empty();
        (may_be && decoded(key).is_some_and(|key| key == name)).then_some(value)
    })
}

/// The name of one pair of a query string, decoded; `None` when it is not UTF-8.
pub fn query_name(pair: &str) -> Option<Cow<'_, str>> {
    decoded(split_pair(pair).0)
}

/// Name and value. Names are short: byte by byte they are at their end before a search by words has begun.
fn split_pair(pair: &str) -> (&str, &str) {
    let end = pair.bytes().position(|byte| byte == b'=');
    end.map_or((pair, ""), |end| (&pair[..end], &pair[end + 1..]))
}

/// Percent-decodes as browsers do: what is no escape stays. `None` when the result is not UTF-8.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    // Tokens are long and have none: looked through without a branch a byte.
    if !text.bytes().fold(false, |found, byte| found | (byte == b'%') | (byte == b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = if *first == b'%' { escaped_byte(after) } else { None };
        bytes.push(match (first, escaped) {
            (_, Some(byte)) => byte,
            (b'+', None) => b' ',
            (&byte, None) => byte,
        });
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// The byte of the two hexadecimal digits at the beginning.
fn escaped_byte(text: &[u8]) -> Option<u8> {
    let [high, low, ..] = text else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

/// 16 bytes are 22 characters of base64 and two of padding. As in Node, the four bits left over may be anything.
fn is_websocket_key(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|data| data.len() == 22 && data.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/'))
}

/// A `tchar` of RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The answer that makes the connection a WebSocket. `extra` are more headers.
pub fn switching_protocols(key: &str, protocol: Option<&str>, extra: &[(&str, &str)]) -> Vec<u8> {
    let mut out = String::with_capacity(160);
    out.push_str("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    push_header(&mut out, "Sec-WebSocket-Accept", &derive_accept_key(key.as_bytes()));
    if let Some(protocol) = protocol {
        push_header(&mut out, "Sec-WebSocket-Protocol", protocol);
    }
    finish(out, extra, &[])
}

/// A whole response, after which the connection closes. 426 says what it asks for.
pub fn response(status: u16, content_type: &str, extra: &[(&str, &str)], body: &str) -> Vec<u8> {
    Response { status, content_type, body: body.as_bytes(), keep_alive_s: None, without_body: false }.bytes(extra)
}

/// A whole response.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Its status. 426 says what it asks for.
    pub status: u16,
    /// What the body is; empty: not said.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// For how many seconds the connection stays for another request; `None`: it closes.
    pub keep_alive_s: Option<u64>,
    /// True exactly when it answers HEAD: the body is measured and not sent.
    pub without_body: bool,
}

impl Response<'_> {
    /// As it is sent, with these headers too.
    pub fn bytes(&self, extra: &[(&str, &str)]) -> Vec<u8> {
        let Response { status, content_type, body, keep_alive_s, without_body } = *self;
        let mut out = String::with_capacity(256 + body.len());
        // Writing to a string cannot fail.
        let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason(status));
        let _ = match keep_alive_s {
            Some(seconds) => write!(out, "Connection: keep-alive\r\nKeep-Alive: timeout={seconds}\r\n"),
            None => write!(out, "Connection: {}\r\n", if status == 426 { "close, Upgrade" } else { "close" }),
        };
        if !content_type.is_empty() {
            push_header(&mut out, "Content-Type", content_type);
        }
        push_header(&mut out, "Content-Length", &body.len().to_string());
        if status == 426 {
            out.push_str("Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n");
        }
        finish(out, extra, if without_body { &[] } else { body })
    }
}

fn finish(mut out: String, extra: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    for (name, value) in extra {
        push_header(&mut out, name, value);
    }
    out.push_str("\r\n");
    let mut bytes = out.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Adds one header. Control characters are left out, so that no value from a request can begin another header.
fn push_header(out: &mut String, name: &str, value: &str) {
    push_printable(out, name);
    out.push_str(": ");
    push_printable(out, value);
    out.push_str("\r\n");
}

/// Control characters, which could end the line, are left out.
fn push_printable(out: &mut String, text: &str) {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        out.push_str(text);
    } else {
        out.extend(text.chars().filter(|c| !c.is_control()));
    }
}

/// The words beside a status; clients ignore them.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 16 * 1024;

    /// What a head is, for comparing.
    fn outcome(buf: &[u8], head_max: usize) -> Result<Option<usize>, u16> {
        match parse(buf, head_max) {
            Head::Incomplete => Ok(None),
            Head::Complete { bytes, .. } => Ok(Some(bytes)),
            Head::Bad { status } => Err(status),
        }
    }

    /// Reads it whole, and in every shorter part first; the first answer that is not "incomplete" must be the one of the whole.
    fn read(buf: &[u8]) -> Result<Option<usize>, u16> {
        let whole = outcome(buf, MAX);
        let first = (0..=buf.len()).map(|len| outcome(&buf[..len], MAX)).find(|part| *part != Ok(None)).unwrap_or(Ok(None));
        assert_eq!(first, whole, "{:?}", String::from_utf8_lossy(buf));
        whole
    }

    fn with<T>(text: &str, look: impl FnOnce(Request<'_>) -> T) -> T {
        match parse(text.as_bytes(), MAX) {
            Head::Complete { request, .. } => look(request),
            other => panic!("{other:?} from {text:?}"),
        }
    }

    /// A request with these lines after its request line and `Host`.
    fn get(target: &str, lines: &[&str]) -> String {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
    }

    const HANDSHAKE: [&str; 4] =
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="];

    #[test]
    fn a_handshake_is_read() {
        let text = get("/socket.io/?EIO=4&transport=websocket", &HANDSHAKE);
        assert_eq!(read(text.as_bytes()), Ok(Some(text.len())));
        let more = text.clone() + "early bytes\r\n";
        assert_eq!(outcome(more.as_bytes(), MAX), Ok(Some(text.len())), "what follows is not the head's");
        with(&text, |request| {
            assert_eq!((request.method, request.target), ("GET", "/socket.io/?EIO=4&transport=websocket"));
            assert_eq!((request.path, request.query), ("/socket.io/", "EIO=4&transport=websocket"));
            assert!(request.wants_websocket());
            assert_eq!(request.websocket_key(), Ok("dGhlIHNhbXBsZSBub25jZQ=="));
            assert_eq!(request.header("hOsT"), Some("localhost"));
            assert_eq!(format!("{request:?}"), "GET /socket.io/");
        });
    }

    #[test]
    fn targets_have_a_path_and_a_query() {
        let cases = [
            ("/", "/", ""),
            ("/a?b?c", "/a", "b?c"),
            ("/a?", "/a", ""),
            ("http://h/p?q", "/p", "q"),
            ("HTTPS://h:1", "/", ""),
            ("http://h?q=/", "/", "q=/"),
            ("/x://y", "/x://y", ""),
            ("*", "*", ""),
        ];
        for (target, path, query) in cases {
            with(&get(target, &[]), |request| assert_eq!((request.target, request.path, request.query), (target, path, query)));
        }
    }

    #[test]
    fn query_values_are_decoded() {
        let text = get("/?a=1&b=x%20y+z&a=2&%61=3&c&d=%ff&e=%zz%4&=f&g=%C3%A9%F0%9F%98%80&&h=a=b&d=ok", &[]);
        with(&text, |request| {
            let value = |name| request.query_value(name);
            assert_eq!(value("a").as_deref(), Some("1"));
            assert!(matches!(value("a"), Some(Cow::Borrowed(_))));
            assert_eq!(request.query_values("a"), ["1", "2", "3"]);
            assert_eq!(value("b").as_deref(), Some("x y z"));
            assert_eq!(value("c").as_deref(), Some(""));
            assert_eq!((value("d"), request.query_values("d")), (None, vec!["ok".to_owned()]), "not UTF-8");
            assert_eq!(value("e").as_deref(), Some("%zz%4"));
            assert_eq!(value("").as_deref(), Some("f"));
            assert_eq!(value("g").as_deref(), Some("é😀"));
            assert_eq!(value("h").as_deref(), Some("a=b"));
            assert_eq!(value("nope"), None);
        });
        with(&get("/", &[]), |request| assert_eq!(request.query_value(""), None));
    }

    #[test]
    fn headers_cookies_and_tokens_are_found() {
        let lines = [
            "X-A:  one \t",
            "x-a: two",
            "Cookie: a=1; session=\"tok=en\" ;b",
            "cookie: c=3; a=9",
            "Authorization: bEARER  abc.def ",
            "X-Bytes: \u{e9}",
            "X-Empty:",
        ];
        with(&get("/", &lines), |request| {
            assert_eq!(request.header("x-A"), Some("one"));
            assert_eq!(request.header("X-Bytes"), Some("é"));
            assert_eq!((request.header("X-Empty"), request.header("X-None")), (Some(""), None));
            assert!(request.headers("x-a").rev().eq([Some("two"), Some("one")]));
            assert_eq!(
                [request.cookie("a"), request.cookie("session"), request.cookie("c"), request.cookie("b")],
                [Some("1"), Some("tok=en"), Some("3"), None]
            );
            assert_eq!(request.bearer(), Some("abc.def"));
        });
        let latin = [b"GET / HTTP/1.1\r\nHost: h\r\nX-Bytes: \xe9\r\n\r\n".as_slice()].concat();
        let Head::Complete { request, .. } = parse(&latin, MAX) else { panic!("bytes above 127 are allowed") };
        assert_eq!(request.header("X-Bytes"), None);
        for line in ["Authorization: Basic abc", "Authorization: Bearer", "Authorization: Bearer ", "X: y"] {
            with(&get("/", &[line]), |request| assert_eq!(request.bearer(), None));
        }
    }

    #[test]
    fn only_a_whole_upgrade_is_one() {
        let [connection, upgrade, version, key] = HANDSHAKE;
        let wants = |lines: &[&str]| with(&get("/", lines), |request| request.wants_websocket());
        assert!(wants(&["Connection: keep-alive, UPGRADE", "upgrade: WebSocket"]));
        assert!(wants(&["Connection: keep-alive", connection, upgrade]), "a list may come in two lines");
        assert!(
            !wants(&[connection])
                && !wants(&[upgrade])
                && !wants(&["Connection: upgraded", upgrade])
                && !wants(&[connection, "Upgrade: h2c"])
        );
        let post = get("/", &HANDSHAKE).replacen("GET", "POST", 1);
        assert!(!with(&post, |request| request.wants_websocket()));
        let old = get("/", &HANDSHAKE).replacen("HTTP/1.1", "HTTP/1.0", 1);
        assert!(!with(&old, |request| request.wants_websocket()));

        let key_of = |lines: &[&str]| with(&get("/", lines), |request| request.websocket_key().map(str::len));
        assert_eq!(key_of(&[version, key]), Ok(24));
        assert_eq!(key_of(&[key]), Err(426));
        assert_eq!(key_of(&["Sec-WebSocket-Version: 12", key]), Err(426));
        assert_eq!(key_of(&[version]), Err(400));
        assert_eq!(key_of(&[version, key, "Content-Length: 0"]), Ok(24));
        for body in ["Content-Length: 6", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"] {
            assert_eq!(key_of(&[version, key, body]), Err(400), "{body}");
        }
        for bad in
            ["short", "", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZQ===", "dGhlIHNhbXBsZSBub25jZ-==", "dGhlIHNhbXBsZSBub25jZQAA"]
        {
            assert_eq!(key_of(&[version, &format!("Sec-WebSocket-Key: {bad}")]), Err(400), "{bad}");
        }
    }

    #[test]
    fn the_first_protocol_is_a_token_or_none() {
        let first =
            |offer: &str| with(&get("/", &[&format!("Sec-WebSocket-Protocol: {offer}")]), |r| r.first_protocol().map(str::to_owned));
        assert_eq!(first("foo, bar").as_deref(), Some("foo"));
        assert_eq!(first("v1.x-y").as_deref(), Some("v1.x-y"));
        for offer in ["", ", foo", "a b, foo", "\"a\"", "é"] {
            assert_eq!(first(offer), None, "{offer}");
        }
        with(&get("/", &[]), |request| assert_eq!(request.first_protocol(), None));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_400() {
        let lines: [&[&str]; 11] = [
            &["Host: other"],
            &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
            &["Content-Length: 1", "Transfer-Encoding: chunked"],
            &["Content-Length: 1", "Content-Length: 2"],
            &["Content-Length: 1, 1"],
            &["Content-Length: -1"],
            &["Content-Length:"],
            &["X-A : space before the colon"],
            &["X-A: folded", " line"],
            &["X\u{0}A: b"],
            &["no colon"],
        ];
        for lines in lines {
            assert_eq!(read(get("/", lines).as_bytes()), Err(400), "{lines:?}");
        }
        let texts = [
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /\r\nHost: h\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "G\u{0}T / HTTP/1.1\r\nHost: h\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01",
            "{}",
        ];
        for text in texts {
            assert_eq!(read(text.as_bytes()), Err(400), "{text:?}");
        }
        for text in ["\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
            assert_eq!(read(text.as_bytes()), Ok(Some(text.len())), "{text:?}");
        }
    }

    #[test]
    fn the_end_of_a_body_is_told_in_one_way() {
        let framing = |lines: &[&str]| with(&get("/", lines), |request| request.framing());
        assert_eq!((framing(&[]), framing(&["Content-Length: 7"])), (Framing::None, Framing::Sized(7)));
        assert_eq!(framing(&["Content-Length: 99999999999999999999999"]), Framing::Sized(usize::MAX));
        assert_eq!(framing(&["Transfer-Encoding: Chunked"]), Framing::Chunked);
        for lines in [&["Transfer-Encoding: gzip, chunked"][..], &["Transfer-Encoding: identity"], &["Transfer-Encoding: chunked"; 2]] {
            assert_eq!(framing(lines), Framing::Unclear, "{lines:?}");
        }
        let old = get("/", &["Transfer-Encoding: chunked"]).replacen("HTTP/1.1", "HTTP/1.0", 1);
        assert_eq!(with(&old, |request| request.framing()), Framing::Unclear);
        assert!(with(&get("/", &["Content-Length: 0"]), |request| request.is_bodiless()));
    }

    #[test]
    fn connections_persist_as_their_version_says() {
        let persists = |version: &str, lines: &[&str]| {
            with(&get("/", lines).replacen("HTTP/1.1", version, 1), |request| (request.persists(), request.expects_continue()))
        };
        assert_eq!(persists("HTTP/1.1", &["Expect: 100-Continue"]), (true, true));
        assert_eq!(persists("HTTP/1.1", &["Connection: x, Close"]), (false, false));
        assert_eq!(persists("HTTP/1.0", &["Expect: 100-continue"]), (false, false));
        assert_eq!(persists("HTTP/1.0", &["Connection: Keep-Alive"]), (true, false));
        assert_eq!(persists("HTTP/1.0", &["Connection: keep-alive, close"]), (false, false));
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        let accepts = |value: &str| with(&get("/", &[&format!("Accept-Encoding: {value}")]), |request| request.accepts_gzip());
        for value in ["gzip", "deflate, GZIP;q=0.5", "*", "x-gzip", "br;q=1.0, *;q=0.1", "gzip; q=1"] {
            assert!(accepts(value), "{value}");
        }
        for value in ["", "br", "gzip;q=0", "gzip; Q=0.000", "*;q=0", "gzip;q=0, *", "*, gzip;q=0", "gzip;q=no", "gzipped"] {
            assert!(!accepts(value), "{value}");
        }
        with(&get("/", &[]), |request| assert!(!request.accepts_gzip()));
    }

    #[test]
    fn heads_are_bounded_inclusively() {
        let text = get("/", &["X-A: b"]);
        assert_eq!(outcome(text.as_bytes(), text.len()), Ok(Some(text.len())));
        for len in 0..=text.len() {
            let expected = if len < text.len() - 1 { Ok(None) } else { Err(431) };
            assert_eq!(outcome(&text.as_bytes()[..len], text.len() - 1), expected, "{len} bytes");
        }
        let fields = |count: usize| get("/", &vec!["X-A: b"; count - 1]);
        assert!(matches!(read(fields(HEADERS_MAX).as_bytes()), Ok(Some(_))));
        assert_eq!(read(fields(HEADERS_MAX + 1).as_bytes()), Err(431));
        let endless = format!("GET /{}", "x".repeat(2 * MAX));
        assert_eq!(read(endless.as_bytes()), Err(431));
        assert_eq!(outcome(b"", 0), Err(431));
    }

    #[test]
    fn responses_are_whole_and_cannot_be_split() {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        assert_eq!(
            text(switching_protocols("dGhlIHNhbXBsZSBub25jZQ==", None, &[])),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
        let evil = text(switching_protocols("a\r\nX: 1", Some("p\r\nX: 2\r\n\r\n"), &[("Vary\r\nX", "O\nX: 3")]));
        assert!(evil.contains("Sec-WebSocket-Protocol: pX: 2\r\nVaryX: OX: 3\r\n\r\n"), "{evil}");
        assert_eq!(evil.matches('\n').count(), evil.matches("\r\n").count());
        assert_eq!((evil.matches("\r\n").count(), evil.find("\r\n\r\n")), (7, Some(evil.len() - 4)));
        assert_eq!(
            text(response(401, "text/plain", &[("Vary", "Origin")], "é")),
            "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nVary: Origin\r\n\r\né"
        );
        let upgrade = text(response(426, "text/plain", &[], ""));
        assert!(upgrade.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{upgrade}");
        assert!(upgrade.contains("\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n"), "{upgrade}");
        assert!(upgrade.contains("\r\nConnection: close, Upgrade\r\n"), "{upgrade}");
        let kept = Response { status: 200, content_type: "", body: b"hello", keep_alive_s: Some(75), without_body: true };
        assert_eq!(
            text(kept.bytes(&[])),
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\nContent-Length: 5\r\n\r\n"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), lines in proptest::collection::vec("[\\PC\t]{0,40}", 0..6), target in "/[!-~]{0,30}") {
            let _ = parse(&bytes, 150);
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            if let Head::Complete { request, .. } = parse(get(&target, &lines).as_bytes(), MAX) {
                let _ = (request.query_value("a"), request.cookie("a"), request.bearer(), request.first_protocol());
            }
        }

        #[test]
        fn a_head_in_parts_is_the_head(lines in proptest::collection::vec("[A-C]{1,2}[: \r\n]{0,3}[a-c,\r\n]{0,4}", 0..5)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let _ = read(get("/", &lines).as_bytes());
        }

        #[test]
        fn query_values_come_back(value in any::<String>()) {
            let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            with(&get(&format!("/?a={encoded}"), &[]), |request| assert_eq!(request.query_value("a").as_deref(), Some(value.as_str())));
        }
    }
}
