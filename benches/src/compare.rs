//! `benches compare`: starts our server and others one after another, pinned to a core of their own, runs each load against each of them
//! in turn, round by round, and writes what came out as raw JSON lines, a table and plots. It measures with the same generator as all
//! other commands; what the loads are is in `plan`, who takes part in `servers`, what follows from the runs in `record`.

pub(crate) mod command;
mod plan;
mod plot;
mod progress;
mod record;
mod servers;
mod table;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::net;
use crate::options::Options;
use crate::run;
use command::{Command, repository};
use plan::{Figure, IDLE, Load};
use progress::{Progress, in_words};
use record::{Record, TWICE};
use servers::{SECRET, Server, Workshop};
use table::{Conditions, Missing};

/// Start, quiet before the load, drain and end of a run.
const AROUND_A_RUN: Duration = Duration::from_millis(1_800);
/// What opening a connection takes in the mean, for the time left only.
const OPENING: Duration = Duration::from_micros(150);

/// Does what the command line says.
pub(crate) fn compare(command: &Command) -> Result<(), String> {
    fs::create_dir_all(&command.output).map_err(|error| format!("{}: {error}", command.output.display()))?;
    if let Some(file) = &command.redraw {
        return redraw(file);
    }
    net::raise_descriptor_limit().map_err(|error| format!("the limit of descriptors: {error}"))?;
    let workshop = Workshop::prepare(command, |what| eprintln!("benches compare: {what}"))?;
    let (servers, missing) = have(&workshop, command)?;
    let stem = free_stem(&command.output, &command.name.clone().unwrap_or_else(|| format!("{}-compare", today())));
    let conditions = conditions(command, &stem, missing);
    let turns = turns(command, &servers);
    let total = turns.iter().map(|turn| turn.expected(command)).sum();
    eprintln!("benches compare: {} runs, about {}; results in {}.*", turns.len(), in_words(total), stem.display());
    net::keep_on(&command.generator_cpus).map_err(|error| format!("cannot run on cores {:?}: {error}", command.generator_cpus))?;
    let mut progress = Progress::start(total);
    let mut records = Vec::new();
    for (place, turn) in turns.iter().enumerate() {
        progress.begin(&turn.to_string());
        let record = turn.take(command, &workshop);
        append(&beside(&stem, ".jsonl"), &record.line())?;
        progress.end(turn.expected(command), &told(turn, &record));
        records.push(record);
        // After each round, so that a comparison that is broken off leaves what it has.
        if turns.get(place + 1).is_none_or(|next| next.round != turn.round) {
            write_results(&stem, &records, &conditions)?;
        }
    }
    progress.finish();
    eprintln!("{}", table::page(&records, &conditions));
    Ok(())
}

/// One server under one load in one round.
struct Turn<'a> {
    round: u32,
    load: &'static Load,
    server: &'static Server,
    cores: &'a [usize],
}

/// All turns in their order: round by round, load by load, each round beginning with another server, so that none always comes first.
fn turns<'a>(command: &'a Command, servers: &[&'static Server]) -> Vec<Turn<'a>> {
    let (one, all) = (&command.server_cpus[..1], &command.server_cpus[..]);
    let mut turns = Vec::new();
    for round in 1..=command.rounds {
        for load in &command.loads {
            if load.two_shards {
                let ours = servers.iter().filter(|server| server.is_ours());
                turns.extend(ours.flat_map(|server| [one, all].map(|cores| Turn { round, load, server, cores })));
                continue;
            }
            let first = (round as usize - 1) % servers.len();
            let in_turn = servers.iter().cycle().skip(first).take(servers.len());
            turns.extend(in_turn.map(|server| Turn { round, load, server, cores: one }));
        }
    }
    turns
}

impl std::fmt::Display for Turn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "round {}, {}, {}", self.round, self.load.name, self.name())
    }
}

impl Turn<'_> {
    fn name(&self) -> String {
        format!("{}{}", self.server.name, if self.cores.len() > 1 { TWICE } else { "" })
    }

    fn expected(&self, command: &Command) -> Duration {
        if self.load.name == IDLE {
            return AROUND_A_RUN + OPENING * command.idle_connections + command.settle;
        }
        AROUND_A_RUN + OPENING * self.load.connections + command.warmup + command.measured
    }

    fn take(&self, command: &Command, workshop: &Workshop) -> Record {
        let result = workshop.start(self.server, self.cores, &command.generator_cpus).and_then(|running| {
            let options = Options::parse(&self.arguments(command, &running))?;
            run::run(&options).map_err(|reason| format!("{reason}; the server said: {}", running.told()))
        });
        Record { load: self.load.name.to_owned(), server: self.name(), round: self.round, result }
    }

    /// The command line of the generator.
    fn arguments(&self, command: &Command, running: &servers::Running) -> Vec<String> {
        let mut arguments: Vec<String> = self.load.arguments.iter().map(ToString::to_string).collect();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("--dialect", self.server.dialect.name().to_owned());
        add("--url", running.address.to_string());
        add("--pid", running.pid().to_string());
        add("--secret", SECRET.to_owned());
        add("--label", self.name());
        add("--warmup", command.warmup.as_secs_f64().to_string());
        add("--seconds", command.measured.as_secs_f64().to_string());
        add("--settle", command.settle.as_secs_f64().to_string());
        add("--cpus", listed(&command.generator_cpus));
        if self.load.name == IDLE {
            add("--connections", command.idle_connections.to_string());
        }
        arguments
    }
}

/// The servers that can be started; it is an error when ours is not among them.
fn have(workshop: &Workshop, command: &Command) -> Result<(Vec<&'static Server>, Vec<Missing>), String> {
    let mut servers = Vec::new();
    let mut missing = Vec::new();
    for server in &command.servers {
        match workshop.missing(server) {
            None => servers.push(*server),
            Some(reason) if server.is_ours() => return Err(reason),
            Some(reason) => {
                eprintln!("benches compare: left out: {}: {reason}", server.title);
                missing.push(Missing { server: server.title, reason });
            }
        }
    }
    Ok((servers, missing))
}

fn told(turn: &Turn<'_>, record: &Record) -> String {
    let figures = Figure::ALL.iter().filter_map(|figure| Some(format!("{} {}", table::short(record.figure(*figure)?), figure.unit())));
    match record.fault() {
        Some(fault) => format!("{turn}: does not count: {fault}"),
        None => format!("{turn}: {}", figures.collect::<Vec<_>>().join(", ")),
    }
}

fn write_results(stem: &Path, records: &[Record], conditions: &Conditions) -> Result<(), String> {
    write(&beside(stem, ".md"), &table::page(records, conditions))?;
    for figure in Figure::ALL {
        if let Some(chart) = plot::chart(records, figure) {
            write(&beside(stem, &format!("-{}.svg", figure.name())), &chart)?;
        }
    }
    Ok(())
}

/// Table and plots anew from the raw lines of an earlier comparison, beside them. The conditions are in the page that was written then.
fn redraw(file: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let records: Vec<Record> = text.lines().filter_map(Record::parse).collect();
    if records.is_empty() {
        return Err(format!("{}: no line of a comparison", file.display()));
    }
    let stem = file.with_extension("");
    let page = fs::read_to_string(stem.with_extension("md")).unwrap_or_default();
    let lines = page.lines().skip_while(|line| *line != "## Conditions").filter_map(|line| line.strip_prefix("- ")?.split_once(": "));
    let lines = lines.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    write_results(&stem, &records, &Conditions { title: title(&stem), lines, missing: Vec::new() })
}

fn conditions(command: &Command, stem: &Path, missing: Vec<Missing>) -> Conditions {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let processor =
        read("/proc/cpuinfo").lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name.to_owned());
    let ours = match &command.binary {
        Some(binary) => format!("{}, sources at commit {}", binary.display(), commit()),
        None => format!("built from commit {}", commit()),
    };
    let versions: Vec<String> = servers::versions().iter().map(|(name, version)| format!("{name} {version}")).collect();
    let lines = [
        ("machine", format!("{} cores, {}", net::allowed_cpus().len(), processor.unwrap_or_default())),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load of the machine when it began (1, 5, 15 minutes)", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(", ")),
        ("cores", format!("servers {}, generator {}", listed(&command.server_cpus), listed(&command.generator_cpus))),
        (
            "each run",
            format!(
                "a fresh server, {} s of load before a window of {} s; idle: {} connections, {} s of rest",
                command.warmup.as_secs_f64(),
                command.measured.as_secs_f64(),
                command.idle_connections,
                command.settle.as_secs_f64()
            ),
        ),
        ("rounds", command.rounds.to_string()),
        ("uringcast", format!("{ours}, benches/results/one-shard.toml")),
        ("others", format!("{}, Node {}", versions.join(", "), output_of(Process::new("node").arg("--version")))),
    ];
    let lines = lines.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
    Conditions { title: title(stem), lines, missing }
}

fn title(stem: &Path) -> String {
    format!("uringcast beside others: {}", stem.file_name().unwrap_or_default().display())
}

fn commit() -> String {
    let git = |arguments: &[&str]| output_of(Process::new("git").args(arguments).current_dir(repository()));
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " with changes" };
    format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]))
}

/// What a program writes; nothing where it is not there.
fn output_of(process: &mut Process) -> String {
    let output = process.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn listed(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The name without an ending under which no comparison lies yet: raw lines are never written over.
fn free_stem(directory: &Path, name: &str) -> PathBuf {
    let stem = |attempt: u32| directory.join(if attempt == 1 { name.to_owned() } else { format!("{name}-{attempt}") });
    (1..).map(stem).find(|stem| !beside(stem, ".jsonl").exists()).expect("the numbers do not end")
}

/// A file whose name goes on where the stem ends.
fn beside(stem: &Path, ending: &str) -> PathBuf {
    let mut name = stem.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    stem.with_file_name(name)
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

fn append(file: &Path, line: &str) -> Result<(), String> {
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened.and_then(|mut file| writeln!(file, "{line}")).map_err(|error| format!("{}: {error}", file.display()))
}

/// Today in UTC as YYYY-MM-DD.
fn today() -> String {
    date_of(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400)
}

/// The date so many days after 1970-01-01. Counted in eras of 400 years that begin in March, so that a leap day is the last of its year.
fn date_of(days: u64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str, cores: usize) -> Command {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Command::parse_on(&words, &(0..cores).collect::<Vec<_>>()).expect("valid")
    }

    #[test]
    fn two_shards_and_one_follow_each_other_and_nobody_else_takes_part() {
        let command = command("--only shards-rooms --rounds 1", 4);
        let turns = turns(&command, &command.servers);
        let names: Vec<String> = turns.iter().map(Turn::name).collect();
        assert_eq!(names, ["uringcast-plain", "uringcast-plain x2", "uringcast-socketio", "uringcast-socketio x2"]);
        assert_eq!((turns[0].cores, turns[1].cores), (&[0][..], &[0, 1][..]));
    }

    #[test]
    fn every_server_takes_its_turn_once_a_round_and_the_rounds_begin_differently() {
        let command = command("--only echo-20k,fan-out-20k,ws,bun --rounds 2", 2);
        let turns = turns(&command, &command.servers);
        assert_eq!(turns.len(), 2 * 2 * 4);
        for round in 1..=2 {
            for load in ["echo-20k", "fan-out-20k"] {
                let mut names: Vec<String> =
                    turns.iter().filter(|turn| turn.round == round && turn.load.name == load).map(Turn::name).collect();
                names.sort();
                names.dedup();
                assert_eq!(names.len(), 4, "{names:?}");
            }
        }
        assert!(turns[0].round == 1 && turns.last().is_some_and(|turn| turn.round == 2));
        assert_ne!(turns[0].name(), turns[8].name());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, date) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_785, "2026-11-28"), (47_540, "2100-02-28")]
        {
            assert_eq!(date_of(days), date);
        }
    }

    #[test]
    fn raw_lines_are_never_written_over() {
        let directory = std::env::temp_dir().join(format!("benches-compare-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory of our own");
        let first = free_stem(&directory, "a.b");
        append(&beside(&first, ".jsonl"), "{}").expect("writable");
        let second = free_stem(&directory, "a.b");
        fs::remove_dir_all(&directory).expect("it was ours");
        assert_eq!((first, second), (directory.join("a.b"), directory.join("a.b-2")));
    }
}
