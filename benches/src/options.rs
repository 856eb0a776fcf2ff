//! The command line: what was said becomes what it means, once. Every option is listed in `USAGE`, which is also what `--help` prints.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::dialect::Dialect;
use crate::net;
use crate::scenario::{Plan, Scenario};
use crate::verify::MARK_LENGTH;

/// The text of `--help`.
pub(crate) const USAGE: &str = "\
usage: benches SCENARIO [options]        measures a running server; see benches/README.md
       benches compare [options]         our server beside others, all started by us; see benches compare --help
       benches counts [options]          instructions of the engine's pure layers; see benches counts --help
       benches capacity [options]        servers of ours, started by us, full of idle connections; see benches capacity --help
       benches model [options]           what millions of them would take, computed; see benches model --help

scenarios
  connect   open connections, verify the token, join a room, stay idle
  fan-out   one sender, every connection of one room hears it
  rooms     1,000 rooms of 10, all members send in turn
  echo      a question and its answer on each connection

options
  --url HOST:PORT      the server                                    (127.0.0.1:3000)
  --dialect NAME       community or rooms                            (community)
  --path PATH          the endpoint's path                           (the dialect's own)
  --secret TEXT        secret of the HS256 tokens                    (the variable JWT_SECRET)
  --secret-file FILE   the same, from a file
  --pid N              the server's process                          (whoever listens on the port)
  --connections N      how many                                      (connect 5000, fan-out and echo 1000, rooms 10 a room)
  --rooms N            how many rooms                                (rooms 1000, connect a tenth of the connections)
  --per-user N         connections that share one user               (community 1, rooms 100)
  --opening N          connections opened at once                    (64)
  --rate N             deliveries per second, or `max`               (10000)
  --window N           with `max`: messages unanswered at once       (fan-out 8, rooms and echo 256)
  --payload BYTES      length of a message's content                 (128)
  --warmup SECONDS     load before the measured window               (2)
  --seconds SECONDS    length of the measured window                 (10)
  --settle SECONDS     connect: idle time before memory is read      (3)
  --cpus LIST          one generator thread pinned to each, as 1,2   (the last core of the affinity mask)
  --label TEXT         copied into the result
  --json FILE          append the result there as well
";

/// Deliveries per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// On a fixed schedule, whatever the server does.
    Fixed(f64),
    /// As fast as the window allows.
    Max,
}

/// Everything a run needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) plan: Plan,
    pub(crate) dialect: Dialect,
    pub(crate) target: SocketAddr,
    /// The address as written, for the `Host` header.
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) secret: Vec<u8>,
    pub(crate) pid: Option<u32>,
    pub(crate) per_user: u32,
    pub(crate) opening: u32,
    pub(crate) rate: Rate,
    pub(crate) window: u64,
    pub(crate) payload_bytes: usize,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) settle: Duration,
    pub(crate) cpus: Vec<usize>,
    pub(crate) label: String,
    pub(crate) json: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments behind the program's name.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let (scenario, rest) = arguments.split_first().ok_or("no scenario given")?;
        let scenario = Scenario::parse(scenario).ok_or_else(|| format!("unknown scenario {scenario}: connect, fan-out, rooms or echo"))?;
        let said = Said::parse(rest, USAGE, &[])?;
        let dialect = match said.text("--dialect") {
            None => Dialect::Community,
            Some(name) => Dialect::parse(name).ok_or_else(|| format!("unknown dialect {name}: community or rooms"))?,
        };
        let cpus = cpus(said.text("--cpus"))?;
        let plan = Plan::new(scenario, said.number("--connections")?, said.number("--rooms")?, cpus.len() as u32);
        if plan.connections() == 0 {
            return Err("fewer connections than rooms".into());
        }
        let host = said.text("--url").unwrap_or("127.0.0.1:3000").trim_start_matches("http://").trim_start_matches("ws://");
        let payload_bytes = said.number("--payload")?.unwrap_or(128) as usize;
        if payload_bytes < MARK_LENGTH {
            return Err(format!("--payload must be at least {MARK_LENGTH}, the length of the mark in every message"));
        }
        Ok(Self {
            plan,
            dialect,
            target: resolve(host)?,
            host: host.to_owned(),
            path: said.text("--path").unwrap_or(dialect.default_path()).to_owned(),
            secret: secret(&said)?,
            pid: said.number("--pid")?,
            // Socket.IO rooms tells every connection of every user's coming: one user each would make opening quadratic.
            // 100 connections is what the server allows a user.
            per_user: said.number("--per-user")?.unwrap_or(if dialect == Dialect::Rooms { 100 } else { 1 }).max(1),
            opening: said.number("--opening")?.unwrap_or(64).max(1),
            rate: rate(said.text("--rate"))?,
            window: said.number("--window")?.map_or(scenario.default_window(), u64::from).max(1),
            payload_bytes,
            warmup: said.seconds("--warmup", 2.0)?,
            measured: said.seconds("--seconds", 10.0)?,
            settle: said.seconds("--settle", 3.0)?,
            cpus,
            label: said.text("--label").unwrap_or_default().to_owned(),
            json: said.text("--json").map(PathBuf::from),
        })
    }
}

/// Option names and their values, as they were said.
pub(crate) struct Said<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Said<'a> {
    /// The names in the usage text are what is allowed; `flags` are those that take no value.
    pub(crate) fn parse(arguments: &'a [String], usage: &str, flags: &[&str]) -> Result<Self, String> {
        let mut pairs = Vec::new();
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            let known = name.starts_with("--") && usage.split_whitespace().any(|word| word == name);
            if !known {
                return Err(format!("unknown option {name}"));
            }
            if flags.contains(&name.as_str()) {
                pairs.push((name.as_str(), ""));
                continue;
            }
            pairs.push((name.as_str(), rest.next().ok_or_else(|| format!("{name} needs a value"))?.as_str()));
        }
        Ok(Self(pairs))
    }

    /// The last value given for an option.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(said, _)| *said == name).map(|(_, value)| *value)
    }

    /// Every value given for an option.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(said, _)| *said == name).map(|(_, value)| *value)
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u32>, String> {
        let parse = |value: &str| value.replace('_', "").parse().map_err(|_| format!("{name} {value}: not a whole number"));
        self.text(name).map(parse).transpose()
    }

    pub(crate) fn seconds(&self, name: &str, default: f64) -> Result<Duration, String> {
        let value = self.text(name).map_or(Ok(default), |value| value.parse().map_err(|_| format!("{name} {value}: not a number")))?;
        Duration::try_from_secs_f64(value).map_err(|error| format!("{name} {value}: {error}"))
    }
}

fn resolve(host: &str) -> Result<SocketAddr, String> {
    let addresses = host.trim_end_matches('/').to_socket_addrs();
    addresses.ok().and_then(|mut all| all.next()).ok_or_else(|| format!("--url {host}: not HOST:PORT"))
}

fn secret(said: &Said<'_>) -> Result<Vec<u8>, String> {
    if let Some(file) = said.text("--secret-file") {
        let text = std::fs::read_to_string(file).map_err(|error| format!("--secret-file {file}: {error}"))?;
        return Ok(text.trim_end().as_bytes().to_vec());
    }
    let text = said.text("--secret").map(str::to_owned).or_else(|| std::env::var("JWT_SECRET").ok());
    text.map(String::into_bytes).ok_or_else(|| "no token secret: give --secret, --secret-file or JWT_SECRET".into())
}

fn rate(text: Option<&str>) -> Result<Rate, String> {
    match text {
        None => Ok(Rate::Fixed(10_000.0)),
        Some("max") => Ok(Rate::Max),
        Some(number) => match number.replace('_', "").parse() {
            Ok(rate) if rate > 0.0 => Ok(Rate::Fixed(rate)),
            _ => Err(format!("--rate {number}: a positive number or max")),
        },
    }
}

pub(crate) fn cpus(text: Option<&str>) -> Result<Vec<usize>, String> {
    let allowed = net::allowed_cpus();
    let Some(text) = text else { return Ok(allowed.last().copied().into_iter().collect()) };
    let parse =
        |word: &str| word.parse().ok().filter(|cpu| allowed.contains(cpu)).ok_or_else(|| format!("core {word}: not one of {allowed:?}"));
    text.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_full_line_is_understood() {
        let options =
            parse("rooms --secret s --dialect rooms --rooms 20 --rate max --payload 64 --url ws://127.0.0.1:3999").expect("valid");
        assert_eq!((options.plan.rooms, options.plan.members, options.window), (20, 10, 256));
        assert_eq!((options.rate, options.target.port(), options.per_user), (Rate::Max, 3999, 100));
        assert_eq!(options.path, "/socket.io/");
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("", "no scenario"),
            ("dance", "unknown scenario dance"),
            ("echo --secret s --sleep 3", "unknown option --sleep"),
            ("echo --secret s --rate", "--rate needs a value"),
            ("echo --secret s --rate -1", "--rate -1"),
            ("echo --secret s --payload 10", "--payload"),
            ("rooms --secret s --rooms 20 --connections 10", "fewer connections than rooms"),
            ("echo --secret s --url nowhere", "--url nowhere"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
