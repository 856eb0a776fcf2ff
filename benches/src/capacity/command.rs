//! The command line of `capacity`: what was said becomes what it means, once.

use std::path::PathBuf;
use std::time::Duration;

use crate::compare::command::repository;
use crate::dialect::Dialect;
use crate::net;
use crate::options::{self, Said};
use crate::verify::MARK_LENGTH;

/// The text of `benches capacity --help`.
pub(crate) const USAGE: &str = "\
usage: benches capacity [options]       starts servers of ours and fills them with idle connections; see benches/CAPACITY.md

options
  --connections N      how many, in rooms of 10                        (15000)
  --processes N        servers, and generators, each with its share    (as many as the limit of descriptors demands)
  --dialect NAME       community or rooms                              (community)
  --per-user N         connections that share one user                 (community 1, rooms 1000)
  --opening N          connections opened at once, on all servers      (64)
  --ping SECONDS       interval of Socket.IO's heartbeat               (25; plain WebSocket has 30, which stands in the contract)
  --settle SECONDS     quiet time before memory is read                (4)
  --idle SECONDS       how long heartbeats are watched                 (60: two intervals of either)
  --broadcasts N       messages to everybody                           (5)
  --payload BYTES      length of a message's content                   (128)
  --redis URL          joins the server to a fleet: one process, or no broadcasts, which all would hear of all
  --server PATH        the server's binary                             (target/release/uringcast)
  --port N             the first of 2 ports for each server            (free ones)
  --server-cpus LIST   cores of the servers, in turn                   (the first)
  --cpus LIST          cores of the generators                         (the last)
  --label TEXT         copied into the result
  --json FILE          append the result there as well
";

/// Descriptors of a process that are no connections: of the server's what it reserves, of ours a few.
const DESCRIPTORS_ASIDE: u64 = 1_000;
/// The interval of pings to plain WebSockets, in milliseconds. It is a part of the contract and no setting.
const PLAIN_PING_MS: u64 = 30_000;

/// Everything a run needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) connections: u32,
    pub(crate) processes: u32,
    pub(crate) dialect: Dialect,
    pub(crate) per_user: u32,
    pub(crate) opening: u32,
    pub(crate) ping: Duration,
    pub(crate) settle: Duration,
    pub(crate) idle: Duration,
    pub(crate) broadcasts: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) redis: Option<String>,
    pub(crate) server: PathBuf,
    pub(crate) port: Option<u16>,
    pub(crate) server_cpus: Vec<usize>,
    pub(crate) cpus: Vec<usize>,
    pub(crate) label: String,
    pub(crate) json: Option<PathBuf>,
}

impl Command {
    /// Reads the arguments behind `capacity`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let limit = net::descriptor_limit().map_err(|error| format!("the limit of descriptors: {error}"))?;
        Self::parse_under(arguments, limit)
    }

    /// The same where a process may hold `limit` descriptors.
    fn parse_under(arguments: &[String], limit: u64) -> Result<Self, String> {
        let said = Said::parse(arguments, USAGE, &[])?;
        let dialect = match said.text("--dialect") {
            None => Dialect::Community,
            Some(name) => Dialect::parse(name).ok_or_else(|| format!("unknown dialect {name}: community or rooms"))?,
        };
        let wanted = said.number("--connections")?.unwrap_or(15_000);
        let room = limit.saturating_sub(DESCRIPTORS_ASIDE).max(10);
        let fewest = u64::from(wanted).div_ceil(room).max(1) as u32;
        let processes = said.number("--processes")?.unwrap_or(fewest);
        if processes < fewest {
            return Err(format!("--processes {processes}: {wanted} connections need {fewest}, because one may hold {limit} descriptors"));
        }
        // Every process has the same number, in full rooms.
        let share = wanted / processes / 10 * 10;
        if share == 0 {
            return Err(format!("{wanted} connections on {processes} processes are not one room of 10 each"));
        }
        let payload_bytes = said.number("--payload")?.unwrap_or(128);
        if (payload_bytes as usize) < MARK_LENGTH {
            return Err(format!("--payload must be at least {MARK_LENGTH}, the length of the mark in every message"));
        }
        let (redis, broadcasts) = (said.text("--redis").map(str::to_owned), said.number("--broadcasts")?.unwrap_or(5));
        if redis.is_some() && processes > 1 && broadcasts > 0 {
            return Err("--redis: with several processes only --broadcasts 0, because each would hear what is said to the others".into());
        }
        let first = net::allowed_cpus().first().copied();
        Ok(Self {
            connections: share * processes,
            processes,
            dialect,
            // Everybody is told of each user of `rooms`: one user each would make opening quadratic.
            per_user: said.number("--per-user")?.unwrap_or(if dialect == Dialect::Rooms { 1_000 } else { 1 }).max(1),
            opening: said.number("--opening")?.unwrap_or(64).max(1),
            ping: said.seconds("--ping", 25.0)?,
            settle: said.seconds("--settle", 4.0)?,
            idle: said.seconds("--idle", 60.0)?,
            broadcasts,
            payload_bytes,
            redis,
            server: said.text("--server").map_or_else(|| repository().join("target/release/uringcast"), PathBuf::from),
            port: said.number("--port")?.map(|port| port as u16),
            server_cpus: said.text("--server-cpus").map_or_else(|| Ok(first.into_iter().collect()), |list| options::cpus(Some(list)))?,
            cpus: options::cpus(said.text("--cpus"))?,
            label: said.text("--label").unwrap_or_default().to_owned(),
            json: said.text("--json").map(PathBuf::from),
        })
    }

    /// Connections of one process.
    pub(crate) fn share(&self) -> u32 {
        self.connections / self.processes
    }

    pub(crate) fn ping_interval_ms(&self) -> u64 {
        if self.dialect == Dialect::Rooms { self.ping.as_millis() as u64 } else { PLAIN_PING_MS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse_under(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), 20_000)
    }

    #[test]
    fn as_many_processes_as_descriptors_demand() {
        let command = parse("").expect("valid");
        assert_eq!((command.connections, command.processes, command.ping_interval_ms()), (15_000, 1, 30_000));
        let command = parse("--connections 100000 --dialect rooms --ping 5").expect("valid");
        assert_eq!((command.connections, command.processes, command.share()), (99_960, 6, 16_660));
        assert_eq!(command.ping_interval_ms(), 5_000);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("--connections 100000 --processes 2", "need 6"),
            ("--connections 9", "not one room"),
            ("--payload 10", "--payload"),
            ("--redis redis://r --processes 2", "--broadcasts 0"),
            ("--rate 3", "unknown option --rate"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
