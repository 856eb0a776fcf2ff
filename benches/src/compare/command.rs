//! The command line of `compare`: what was said becomes what it means, once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::plan::{LOADS, Load};
use super::servers::{SERVERS, Server};
use crate::net;
use crate::options::{self, Said};

/// The text of `benches compare --help`.
pub(crate) const USAGE: &str = "\
usage: benches compare [options]        builds, starts and measures our server and others in turn; see benches/README.md

options
  --rounds N           how often each server takes its turn in each scenario                   (3)
  --only LIST          scenarios (their names or how these begin) and servers; ours is always in  (all)
  --seconds SECONDS    length of each measured window                                          (4)
  --warmup SECONDS     load before it                                                          (2)
  --settle SECONDS     idle time before memory is read                                         (3)
  --idle N             connections in the scenario idle                                        (15000)
  --quick              one round, short windows, 2,000 idle connections: to see that it works, not how fast
  --server PATH        our binary, instead of building it
  --server-cpus LIST   the servers' cores, the first alone where there is one shard             (the first)
  --cpus LIST          the generator's cores                                                   (the last)
  --output DIR         where the results go                                                    (benches/results)
  --name TEXT          how their files begin                                                   (today's date)
  --redraw FILE        measure nothing: table and plots of the raw lines in FILE

scenarios: idle, fan-out-20k, fan-out-100k, fan-out-10000, rooms-20k, rooms-50k, echo-20k, echo-max, busy-room,
           fan-out-max, and with four cores or more shards-rooms, shards-fan-out
servers:   uringcast-plain, uringcast-socketio, fastwebsockets, bun, ws, socketioxide, bun-engine, socket.io
";

/// Everything a comparison needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) rounds: u32,
    pub(crate) loads: Vec<&'static Load>,
    pub(crate) servers: Vec<&'static Server>,
    pub(crate) measured: Duration,
    pub(crate) warmup: Duration,
    pub(crate) settle: Duration,
    pub(crate) idle_connections: u32,
    pub(crate) binary: Option<PathBuf>,
    pub(crate) server_cpus: Vec<usize>,
    pub(crate) generator_cpus: Vec<usize>,
    pub(crate) output: PathBuf,
    pub(crate) name: Option<String>,
    pub(crate) redraw: Option<PathBuf>,
}

impl Command {
    /// Reads the arguments behind `compare`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        Self::parse_on(arguments, &net::allowed_cpus())
    }

    /// The same on a machine with these cores.
    pub(super) fn parse_on(arguments: &[String], cores: &[usize]) -> Result<Self, String> {
        let said = Said::parse(arguments, USAGE, &["--quick"])?;
        let quick = said.text("--quick").is_some();
        let default = |usual: f64, short: f64| if quick { short } else { usual };
        let two_shards = cores.len() >= 4;
        let (loads, servers) = chosen(said.text("--only"), two_shards)?;
        let redraw = said.text("--redraw").map(PathBuf::from);
        let [first, .., last] = *cores else {
            return Err("one core is too few: server and generator need one each".into());
        };
        let server_cpus = match said.text("--server-cpus") {
            None if two_shards => cores[..2].to_vec(),
            None => vec![first],
            list => options::cpus(list)?,
        };
        let generator_cpus = match said.text("--cpus") {
            None => vec![last],
            list => options::cpus(list)?,
        };
        if server_cpus.iter().any(|core| generator_cpus.contains(core)) {
            return Err(format!("servers on {server_cpus:?} and generator on {generator_cpus:?}: they may not share a core"));
        }
        Ok(Self {
            rounds: said.number("--rounds")?.unwrap_or(if quick { 1 } else { 3 }).max(1),
            loads,
            servers,
            measured: said.seconds("--seconds", default(4.0, 1.0))?,
            warmup: said.seconds("--warmup", default(2.0, 0.5))?,
            settle: said.seconds("--settle", default(3.0, 0.5))?,
            idle_connections: said.number("--idle")?.unwrap_or(if quick { 2_000 } else { 15_000 }),
            binary: said.text("--server").map(PathBuf::from),
            server_cpus,
            generator_cpus,
            output: said.text("--output").map_or_else(|| repository().join("benches/results"), PathBuf::from),
            name: said.text("--name").map(str::to_owned),
            redraw,
        })
    }
}

/// Where the sources are from which this program was built: those of the peers are beside them.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// The scenarios and servers of a list; where it names none of a kind, all of them.
fn chosen(list: Option<&str>, two_shards: bool) -> Result<(Vec<&'static Load>, Vec<&'static Server>), String> {
    let words: Vec<&str> = list.unwrap_or_default().split(',').filter(|word| !word.is_empty()).collect();
    let is_server = |word: &str| SERVERS.iter().any(|server| server.name == word);
    let (server_words, load_words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| is_server(word));
    if let Some(word) = load_words.iter().find(|word| !LOADS.iter().any(|load| load.name.starts_with(**word))) {
        return Err(format!("--only {word}: neither a scenario nor a server"));
    }
    let named = |load: &&Load| load_words.is_empty() || load_words.iter().any(|word| load.name.starts_with(word));
    let loads = LOADS.iter().filter(named).filter(|load| two_shards || !load.two_shards).collect();
    let servers = SERVERS.iter().filter(|server| server.is_ours() || server_words.is_empty() || server_words.contains(&server.name));
    Ok((loads, servers.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, cores: &[usize]) -> Result<Command, String> {
        Command::parse_on(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), cores)
    }

    #[test]
    fn two_cores_measure_everything_but_two_shards() {
        let command = parse("", &[0, 1]).expect("valid");
        assert!(command.loads.iter().all(|load| !load.two_shards));
        assert_eq!((command.server_cpus, command.generator_cpus), (vec![0], vec![1]));
        assert_eq!((command.servers.len(), command.rounds, command.idle_connections), (SERVERS.len(), 3, 15_000));
        let command = parse("--quick", &[0, 1, 2, 3]).expect("valid");
        assert!(command.loads.iter().any(|load| load.two_shards));
        assert_eq!((command.server_cpus.len(), command.rounds), (2, 1));
    }

    #[test]
    fn a_list_chooses_scenarios_and_servers_and_ours_stays() {
        let command = parse("--only fan-out,ws --rounds 5", &[0, 1]).expect("valid");
        assert!(command.loads.iter().all(|load| load.name.starts_with("fan-out")));
        assert!(command.loads.len() > 2);
        assert_eq!(command.servers.iter().map(|server| server.name).collect::<Vec<_>>(), ["uringcast-plain", "uringcast-socketio", "ws"]);
        assert_eq!(command.rounds, 5);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, cores, part) in
            [("--only nginx", &[0, 1][..], "--only nginx"), ("--fast", &[0, 1], "unknown option --fast"), ("", &[0], "one core is too few")]
        {
            let error = parse(line, cores).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_lists_every_scenario_and_server() {
        for name in LOADS.iter().map(|load| load.name).chain(SERVERS.iter().map(|server| server.name)) {
            assert!(USAGE.contains(name), "{name}");
        }
    }
}
