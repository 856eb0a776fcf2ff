//! Runs a transcript: performs its deeds on a [`Host`] and holds what clients received against what its lines expect.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use engine::config::{AuthMode, Config, DialectKind, Endpoint, Membership};
use engine::ids::{EndpointId, Sid};
use engine::shard::parcel::Parcel;
use engine::{Answer, Emit, Emitted, Question, Selection, Target};

use super::pattern::{self, Captured};
use super::script::{self, Deed, Expect, Line, Meaning, Wanted};
use crate::host::{self, Got, Host};

/// The text with a word in place of every connection's id.
fn without_ids(text: &str) -> String {
    let is_of_id = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let words = text.split_inclusive(|c| !is_of_id(c)).map(|word| {
        let id = word.trim_end_matches(|c| !is_of_id(c));
        if Sid::parse(id).is_some() { word.replace(id, "ID") } else { word.to_owned() }
    });
    words.collect()
}

/// What came of a transcript.
pub(crate) struct Played {
    /// Each begins with file and line.
    pub(crate) failures: Vec<String>,
    /// The transcript as it should be if the server is right.
    pub(crate) blessed: String,
}

/// With `reloads` the process is replaced after every deed; nobody may notice.
pub(crate) fn run(name: &str, text: &str, reloads: bool) -> Played {
    let lines = match script::read(text) {
        Ok(lines) => lines,
        Err(fault) => return Played { failures: vec![format!("{name}:{fault}")], blessed: text.into() },
    };
    let mut play = Play { reloads, ..Play::new(name) };
    let mut written = Vec::new();
    let raw: Vec<&str> = text.lines().collect();
    for Line { number, meaning } in lines {
        match meaning {
            Meaning::Nothing => written.push(raw[number - 1].to_owned()),
            Meaning::Expect(expect) => play.expect(number, raw[number - 1], &expect, &mut written),
            Meaning::Deed(deed) => {
                play.clear(number, &mut written);
                written.push(raw[number - 1].to_owned());
                if let Err(fault) = play.perform(deed) {
                    play.failures.push(format!("{name}:{number}: {fault}"));
                    // What follows would only fail for the same reason.
                    return Played { failures: play.failures, blessed: text.into() };
                }
            }
        }
    }
    play.clear(raw.len() + 1, &mut written);
    let mut blessed = written.join("\n");
    blessed.push('\n');
    Played { failures: play.failures, blessed }
}

struct Play<'a> {
    name: &'a str,
    settings: Settings,
    host: Option<Host>,
    /// Index of each client, by name, in the order of their coming.
    clients: Vec<(String, usize)>,
    /// What each client, or `admin`, has received and no line has expected yet, as the lines say it.
    received: HashMap<String, VecDeque<String>>,
    captured: Captured,
    /// How many answers of the back end's question are to come, and what came.
    pending: HashMap<u64, (usize, Vec<Answer>)>,
    asks: u64,
    failures: Vec<String>,
    reloads: bool,
}

/// How the host will be set up.
struct Settings {
    config: Config,
}

impl<'a> Play<'a> {
    fn new(name: &'a str) -> Play<'a> {
        Play {
            name,
            settings: Settings { config: host::config(1, Vec::new()) },
            host: None,
            clients: Vec::new(),
            received: HashMap::new(),
            captured: Captured::new(),
            pending: HashMap::new(),
            asks: 0,
            failures: Vec::new(),
            reloads: false,
        }
    }

    fn host(&mut self) -> &mut Host {
        let config = &mut self.settings.config;
        self.host.get_or_insert_with(|| Host::new(std::mem::replace(config, host::config(1, Vec::new())), 7))
    }

    /// Holds the next thing received against a line; in the blessed text stands what came.
    fn expect(&mut self, number: usize, raw: &str, expect: &Expect<'_>, written: &mut Vec<String>) {
        let mut all_right = true;
        for _ in 0..expect.times {
            let Some(actual) = self.received.get_mut(expect.who).and_then(VecDeque::pop_front) else {
                self.fail(number, raw, "nothing");
                return;
            };
            // Another process makes other ids.
            let is_same = |wanted: &str, text: &str| self.reloads && without_ids(wanted) == without_ids(text);
            let is_it = match (expect.what, actual.strip_prefix("< ")) {
                (Wanted::Text(wanted), Some(text)) => is_same(wanted, text) || pattern::matches(wanted, text, &mut self.captured),
                (Wanted::Other(wanted), None) => is_same(wanted, &actual) || pattern::matches(wanted, &actual, &mut self.captured),
                _ => false,
            };
            if !is_it {
                self.fail(number, raw, &speak(expect.who, &actual));
                written.push(pattern::generalise(&speak(expect.who, &actual), &self.captured));
                all_right = false;
            }
        }
        if all_right {
            written.push(raw.to_owned());
        }
    }

    /// Fails for everything that was received and not expected.
    fn clear(&mut self, number: usize, written: &mut Vec<String>) {
        let names: Vec<String> = self.clients.iter().map(|(name, _)| name.clone()).chain(["admin".to_owned()]).collect();
        for name in names {
            for actual in std::mem::take(self.received.entry(name.clone()).or_default()) {
                self.fail(number, "nothing", &speak(&name, &actual));
                let line = pattern::generalise(&speak(&name, &actual), &self.captured);
                // Blank lines and comments between belong to what comes next.
                let place = written.iter().rposition(|line| !line.is_empty() && !line.starts_with('#')).map_or(0, |last| last + 1);
                written.insert(place, line);
            }
        }
    }

    fn fail(&mut self, number: usize, expected: &str, got: &str) {
        let mut told = format!("{}:{number}:", self.name);
        let _ = write!(told, "\n  expected  {}\n  got       {}", short(expected), short(got));
        self.failures.push(told);
    }

    fn perform(&mut self, deed: Deed<'_>) -> Result<(), String> {
        let now = self.host.as_ref().map_or(host::START_UNIX_MS, |host| host.now.unix_ms);
        match deed {
            Deed::Setting { word, rest } => return self.settings.set(word, rest),
            Deed::Connects { who, rest, headers } => self.connect(who, rest, &headers, true)?,
            Deed::Requests { who, rest, headers } => self.connect(who, rest, &headers, false)?,
            Deed::Opens { who, rest } => {
                let shard = shard_of(rest.split_whitespace());
                let client = self.host().connect(shard, "");
                self.enlist(who, client);
            }
            Deed::Says { who, what } => {
                let (client, what) = (self.client(who)?, pattern::fill(what, &self.captured, now)?);
                self.say(client, &what)?;
            }
            Deed::Reads { who, what } => {
                let client = self.client(who)?;
                let bytes = match what {
                    "nothing" => 0,
                    "again" => usize::MAX,
                    count => count.split(' ').next().and_then(|count| count.parse().ok()).ok_or("not a number of bytes")?,
                };
                match what.ends_with("unnoticed") {
                    true => self.host().clients[client].capacity = bytes,
                    false => self.host().unblock(client, bytes),
                }
            }
            Deed::HangsUp { who } => {
                let client = self.client(who)?;
                self.host().hang_up(client);
            }
            Deed::Passes { ms } => self.host().advance(ms),
            Deed::Kicks { whom } => self.kick(whom)?,
            Deed::Asks { what } => self.ask_connections(what)?,
            Deed::Emits { what } => self.emit(what)?,
            Deed::Grants { what, is_member } => self.grant(what, is_member)?,
            Deed::Drain { ms } => {
                let host = self.host();
                for shard in 0..host.shards.len() {
                    host.shards[shard].handle_parcel(host.now, Parcel::Drain { over_ms: ms });
                }
                // It is time that closes them.
                host.advance(1);
            }
        }
        if let Some(host) = self.host.as_mut().filter(|host| self.reloads && self.pending.is_empty() && !host.shards[0].is_draining()) {
            host.reload(host.shards.len());
        }
        self.collect();
        Ok(())
    }

    fn client(&self, who: &str) -> Result<usize, String> {
        let found = self.clients.iter().find(|(name, _)| name == who);
        found.map(|(_, client)| *client).ok_or_else(|| format!("{who} has not connected"))
    }

    /// A name may come again: it is another connection then.
    fn enlist(&mut self, who: &str, client: usize) {
        self.clients.retain(|(name, _)| name != who);
        self.clients.push((who.to_owned(), client));
    }

    /// `TARGET [on SHARD] [claims]` with the claims' token in the query.
    fn connect(&mut self, who: &str, rest: &str, headers: &[&str], upgrade: bool) -> Result<(), String> {
        let now = self.host().now.unix_ms;
        let rest = pattern::fill(rest, &self.captured, now)?;
        let mut words = rest.split_whitespace();
        let mut target = words.next().ok_or("no path")?.to_owned();
        let shard = shard_of(words.clone());
        let claims: Vec<&str> = words.filter(|word| word.contains('=')).collect();
        if !claims.is_empty() {
            let separator = if target.contains('?') { '&' } else { '?' };
            let _ = write!(target, "{separator}token={}", pattern::token(claims.into_iter(), now)?);
        }
        let mut lines = String::new();
        for header in headers {
            let _ = write!(lines, "{}\r\n", pattern::fill(header, &self.captured, now)?);
        }
        let head = match upgrade {
            true => Host::upgrade_head(&target, &lines),
            false => format!("GET {target} HTTP/1.1\r\nHost: test\r\n{lines}\r\n"),
        };
        let client = self.host().connect(shard, &head);
        self.enlist(who, client);
        Ok(())
    }

    fn say(&mut self, client: usize, what: &str) -> Result<(), String> {
        let host = self.host();
        let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
        match word {
            "binary" => host.frame(client, 2, &hex(rest)?),
            "raw" => host.write(client, &hex(rest)?),
            "http" => host.write(client, rest.replace("\\r\\n", "\r\n").as_bytes()),
            "ping" => host.frame(client, 9, rest.as_bytes()),
            "pong" => host.frame(client, 10, rest.as_bytes()),
            "close" => {
                let code = rest.parse::<u16>().map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
                host.frame(client, 8, &code);
            }
            "together" => {
                let frames: Vec<u8> = rest.split(" || ").flat_map(|text| host::masked(1, text.as_bytes())).collect();
                host.write(client, &frames);
            }
            "repeat" => {
                let (times, text) = rest.split_once(' ').ok_or("repeat N TEXT")?;
                for _ in 0..times.parse().map_err(|_| "not a number")? {
                    host.say(client, text);
                    host.settle();
                }
            }
            "\"\"" => host.say(client, ""),
            _ => host.say(client, what),
        }
        Ok(())
    }

    /// `user NAME ["reason"]` or `connection ID ["reason"]`.
    fn kick(&mut self, whom: &str) -> Result<(), String> {
        let whom = pattern::fill(whom, &self.captured, 0)?;
        let (target, reason) = whom.split_once(" \"").unwrap_or((&whom, ""));
        let reason = (!reason.is_empty()).then(|| reason.trim_end_matches('"').to_owned());
        match target.split_once(' ') {
            Some(("user", user)) => self.ask(&Question::CloseUser { endpoint: None, user: user.to_owned(), reason }),
            Some(("connection", id)) => {
                let id = Sid::parse(id).ok_or("not an id")?;
                self.ask(&Question::CloseConnection { id, reason });
            }
            _ => return Err("user NAME or connection ID".into()),
        }
        Ok(())
    }

    /// `connections [user=NAME] [room=NAME]` or `connection ID`.
    fn ask_connections(&mut self, what: &str) -> Result<(), String> {
        let what = pattern::fill(what, &self.captured, 0)?;
        if let Some(id) = what.strip_prefix("connection ") {
            let id = Sid::parse(id).ok_or("not an id")?;
            self.ask(&Question::Connection { id });
            return Ok(());
        }
        let filter = |name: &str| what.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
        self.ask(&Question::Connections { endpoint: None, user: filter("user="), room: filter("room="), after: None, limit: 1_000 });
        Ok(())
    }

    /// `[endpoint=N] [except=NAME,...] [volatile] [ack=TIME] WHO,... EVENT [ARGUMENTS]`, see the README.
    fn emit(&mut self, what: &str) -> Result<(), String> {
        let what = pattern::fill(what, &self.captured, 0)?;
        let mut rest = what.as_str();
        let mut emit = Emit {
            to: Selection { endpoint: EndpointId(0), targets: Vec::new(), except: Vec::new() },
            event: String::new(),
            args: String::new(),
            volatile: false,
            ack_ms: None,
            offset: 0x0102_0304_0506_0708.into(),
            unix_ms: self.host.as_ref().map_or(0, |host| host.now.unix_ms),
            attachments: Vec::new(),
            is_elsewhere: false,
        };
        let targets = |names: &str| -> Vec<Target> { names.split(',').map(target).collect() };
        loop {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            match word.split_once('=') {
                Some(("endpoint", index)) => emit.to.endpoint = EndpointId(index.parse().map_err(|_| "not an index")?),
                Some(("except", rooms)) => emit.to.except = targets(rooms),
                Some(("ack", time)) => emit.ack_ms = Some(script::milliseconds(time).ok_or("not a time")?),
                _ if word == "volatile" => emit.volatile = true,
                _ => {
                    let (event, args) = after.split_once(' ').unwrap_or((after, ""));
                    (emit.to.targets, emit.event, emit.args) = (targets(word), event.into(), args.into());
                    break;
                }
            }
            rest = after;
        }
        self.ask(&Question::Emit(Arc::new(emit)));
        Ok(())
    }

    /// `ROOM to USER` or `ROOM of USER`, on the first endpoint.
    fn grant(&mut self, what: &str, is_member: bool) -> Result<(), String> {
        let (room, user) = what.split_once(if is_member { " to " } else { " of " }).ok_or("ROOM to USER, ROOM of USER")?;
        let (endpoint, room, user) = (EndpointId(0), room.to_owned(), user.to_owned());
        self.ask(&if is_member { Question::Grant { endpoint, room, user } } else { Question::Revoke { endpoint, room, user } });
        Ok(())
    }

    fn ask(&mut self, question: &Question) {
        self.asks += 1;
        let ask = self.asks;
        let host = self.host();
        for shard in 0..host.shards.len() {
            host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask, question: question.clone() });
        }
        let shards = host.shards.len();
        self.pending.insert(ask, (shards, Vec::new()));
    }

    /// Lets everything move and notes what everybody has received.
    fn collect(&mut self) {
        let clients = self.clients.clone();
        let host = self.host();
        host.settle();
        let handed_over: Vec<bool> = clients.iter().map(|(_, client)| host.clients[*client].handed_over).collect();
        let got: Vec<Vec<Got>> = clients.iter().map(|(_, client)| host.take(*client)).collect();
        let answers = std::mem::take(&mut host.answers);
        for (((name, _), got), handed_over) in clients.into_iter().zip(got).zip(handed_over) {
            self.received.entry(name).or_default().extend(told(&got, handed_over));
        }
        for (_, ask, answer) in answers {
            self.answered(ask, answer);
        }
    }

    fn answered(&mut self, ask: u64, answer: Answer) {
        let Some((missing, answers)) = self.pending.get_mut(&ask) else { return };
        *missing -= 1;
        answers.push(answer);
        if *missing == 0 {
            let told = format!("gets {}", tell_answers(answers));
            self.pending.remove(&ask);
            self.received.entry("admin".into()).or_default().push_back(told);
        }
    }
}

impl Settings {
    fn set(&mut self, word: &str, rest: &str) -> Result<(), String> {
        let config = &mut self.config;
        match word {
            "shards" => config.shards = vec![None; rest.parse().map_err(|_| "not a number of shards")?],
            "origins" => config.origins = rest.split_whitespace().map(str::to_owned).collect(),
            "proxies" => config.trusted_proxies = rest.split_whitespace().filter_map(|proxy| proxy.parse().ok()).collect(),
            "leeway" => {
                let seconds = script::milliseconds(rest).ok_or("not a time")? / 1_000;
                config.verifier = config.verifier.take().map(|verifier| verifier.with_leeway_s(seconds));
            }
            "endpoint" => config.endpoints.push(endpoint(rest)?),
            _ => {
                for pair in rest.split_whitespace() {
                    let (key, value) = pair.split_once('=').ok_or("key=value")?;
                    let value = value.parse().map_err(|_| format!("not a number: {value}"))?;
                    number(config, key, value)?;
                }
            }
        }
        Ok(())
    }
}

fn number(config: &mut Config, key: &str, value: u64) -> Result<(), String> {
    let (limits, socket_io) = (&mut config.limits, &mut config.socket_io);
    match key {
        "message_bytes" => limits.message_bytes = value as usize,
        "outbox_bytes" => limits.outbox_bytes = value as usize,
        "rate_messages" => limits.rate_messages = value as u32,
        "rate_window_ms" => limits.rate_window_ms = value,
        "rooms_per_connection" => limits.rooms_per_connection = value as usize,
        "connections_per_user" => limits.connections_per_user = value as u32,
        "connections_per_address" => limits.connections_per_address = value as u32,
        "handshakes_per_address" => limits.handshakes_per_address = value as u32,
        "handshakes_per_second" => limits.handshakes_per_second = value as u32,
        "memory" => limits.memory = value as usize,
        "connections" => limits.connections = Some(value as usize),
        "head_bytes" => limits.head_bytes = value as usize,
        "history_messages" => limits.history_messages = value as usize,
        "history_age_ms" => limits.history_age_ms = value,
        "rooms" => limits.rooms = value as usize,
        "ping_interval_ms" => socket_io.ping_interval_ms = value,
        "ping_timeout_ms" => socket_io.ping_timeout_ms = value,
        "connect_timeout_ms" => socket_io.connect_timeout_ms = value,
        _ => return Err(format!("unknown setting {key}")),
    }
    Ok(())
}

/// `DIALECT BIND key=value...`.
fn endpoint(rest: &str) -> Result<Endpoint, String> {
    let mut words = rest.split_whitespace();
    let dialect = match words.next() {
        Some("community") => DialectKind::Community,
        Some("collab") => DialectKind::Collab,
        Some("rooms") => DialectKind::Rooms,
        Some("chat") => DialectKind::Chat,
        Some("notify") => DialectKind::Notify,
        _ => return Err("unknown dialect".into()),
    };
    let bind = words.next().ok_or("endpoint DIALECT PATH-OR-NAMESPACE")?;
    let mut endpoint = host::endpoint(bind, dialect, bind);
    for pair in words {
        match pair {
            "auth=none" => endpoint.auth = AuthMode::None,
            "membership=open" => endpoint.membership = Membership::Open,
            "membership=claims" => endpoint.membership = Membership::Claims,
            "cookies=false" => endpoint.cookies = false,
            "client_publish=true" => endpoint.client_publish = true,
            "require_membership=false" => endpoint.require_membership = false,
            "auto_create=false" => endpoint.auto_create = false,
            other => match other.strip_prefix("retain=").and_then(|retain| retain.parse().ok()) {
                Some(retain) => endpoint.retain = retain,
                None => return Err(format!("unknown setting {other}")),
            },
        }
    }
    Ok(endpoint)
}

fn shard_of<'w>(mut words: impl Iterator<Item = &'w str>) -> usize {
    words.find(|word| *word == "on").and_then(|_| words.next()).and_then(|shard| shard.parse().ok()).unwrap_or(0)
}

/// What a client has got, as a line tells it after the name. The answer 101 goes without saying, and so does the end of a socket
/// after a goodbye.
fn told(got: &[Got], handed_over: bool) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for got in got {
        let said_goodbye = lines.last().is_some_and(|last| last.starts_with("closed") || last.starts_with("http"));
        lines.push(match got {
            Got::Http(101, _) => continue,
            Got::Http(status, body) if body.is_empty() => format!("http {status}"),
            Got::Http(status, body) => format!("http {status} {body}"),
            Got::Text(text) => format!("< {text}"),
            Got::Binary(bytes) if bytes.is_empty() => "< binary".into(),
            Got::Binary(bytes) => format!("< binary {}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
            Got::Ping => "ping".into(),
            Got::Pong => "pong".into(),
            Got::Close(None, _) => "closed".into(),
            Got::Close(Some(code), reason) if reason.is_empty() => format!("closed {code}"),
            Got::Close(Some(code), reason) => format!("closed {code} \"{reason}\""),
            Got::End(true) => "reset".into(),
            Got::End(false) if said_goodbye => continue,
            Got::End(false) if handed_over => "handed over".into(),
            Got::End(false) => "ends".into(),
        });
    }
    lines
}

fn tell_answers(answers: &[Answer]) -> String {
    let mut connections = Vec::new();
    let (mut closed, mut emitted, mut granted) = (None, None, None);
    for answer in answers {
        match answer {
            Answer::Connections(found) => {
                connections.extend(found.iter().map(|info| {
                    let rooms = info.rooms.join(",");
                    let client_id = info.client_id.as_ref().map(|id| format!(" clientID={id}")).unwrap_or_default();
                    format!("{} user={}{client_id} rooms={rooms}", info.id, info.user)
                }));
            }
            Answer::Closed(count) => closed = Some(closed.unwrap_or(0) + count),
            Answer::Emitted(here) => {
                let all = emitted.get_or_insert_with(Emitted::default);
                (all.recipients, all.acks) = (all.recipients + here.recipients, all.acks + here.acks);
                all.answers.extend(here.answers.iter().cloned());
            }
            Answer::Granted(Some(Ok(count))) => granted = Some(format!("{count} connections")),
            Answer::Granted(Some(Err(fault))) => granted = Some(fault.to_string()),
            Answer::Granted(None) | Answer::Room(_) | Answer::Posted(_) | Answer::Revised(_) | Answer::Past(_) => {}
            Answer::Program(_) => {}
        }
    }
    match (closed, emitted) {
        (Some(count), _) => format!("{count} closed"),
        (_, Some(Emitted { recipients, acks, mut answers })) => {
            answers.sort_unstable();
            let told = [format!("to {recipients}, {acks} acknowledged")];
            told.into_iter().chain(answers).collect::<Vec<_>>().join(" ")
        }
        _ if connections.is_empty() => granted.unwrap_or_else(|| "nothing".into()),
        _ => connections.join("; "),
    }
}

/// Who is meant by `all`, `room:NAME`, `user:NAME`, or a connection's id.
fn target(word: &str) -> Target {
    match (word.split_once(':'), Sid::parse(word)) {
        (Some(("user", name)), _) => Target::user(name),
        (Some(("room", name)), _) => Target::Room(name.into()),
        (_, Some(id)) => Target::Connection(id),
        _ => Target::all(),
    }
}

fn speak(who: &str, what: &str) -> String {
    if what.starts_with('<') { format!("{who}{what}") } else { format!("{who} {what}") }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    digits.chunks(2).map(|pair| byte(pair).ok_or_else(|| format!("not hexadecimal: {text}"))).collect()
}
