//! `benches counts`: how many instructions the engine's pure layers need for one of a thing, counted by callgrind and compared with what is
//! committed. No clock is in it, so a busy machine counts the same as a quiet one and a change of two per cent shows. The only part of this
//! program that calls the engine. How to read it: benches/README.md.

mod baseline;
mod callgrind;
mod host;
mod operations;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::compare::command::repository;
use crate::net;
use crate::options::Said;
use baseline::{Conditions, Counts, TOLERANCE_PERCENT, Verdict, verdict};
use callgrind::Count;
use operations::{OPERATIONS, Operation};

/// The text of `benches counts --help`.
pub(crate) const USAGE: &str = "\
usage: cargo run --release -p benches -- counts [options]        instructions of each operation; see benches/README.md

options
  --check          exit with 1 when one differs from the committed count by more than 2 %
  --renew          write what was counted to benches/results/counts.json; commit it with the change that made it so
  --only LIST      operations (their names or how these begin); the others keep their committed counts
  --alone NAME     one operation here and now, uncounted: what runs under valgrind

It needs valgrind (Debian package `valgrind`) and a release build.
";

/// Where the committed counts are.
const BASELINE: &str = "benches/results/counts.json";

/// What to do.
#[derive(Debug)]
pub(crate) struct Command {
    operations: Vec<&'static Operation>,
    check: bool,
    renew: bool,
    alone: bool,
}

impl Command {
    /// Reads the arguments behind `counts`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let said = Said::parse(arguments, USAGE, &["--check", "--renew"])?;
        let is = |name| said.text(name).is_some();
        let alone = said.text("--alone");
        let words: Vec<&str> = alone.or(said.text("--only")).unwrap_or_default().split(',').filter(|word| !word.is_empty()).collect();
        let names = |word: &str, operation: &Operation| operation.name == word || (alone.is_none() && operation.name.starts_with(word));
        if let Some(word) = words.iter().find(|word| !OPERATIONS.iter().any(|operation| names(word, operation))) {
            return Err(format!("{word}: no operation"));
        }
        let operations = OPERATIONS.iter().filter(|operation| words.is_empty() || words.iter().any(|word| names(word, operation)));
        let command = Self { operations: operations.collect(), check: is("--check"), renew: is("--renew"), alone: alone.is_some() };
        match command {
            Self { check: true, renew: true, .. } => Err("--check compares and --renew replaces: one of them".into()),
            Self { alone: true, ref operations, .. } if operations.len() != 1 => Err("--alone: one operation".into()),
            command => Ok(command),
        }
    }
}

/// Counts, prints and compares. True when nothing is to be complained of.
pub(crate) fn counts(command: &Command) -> Result<bool, String> {
    if command.alone {
        return alone(command.operations[0]).map(|()| true);
    }
    if cfg!(debug_assertions) {
        return Err("this is a debug build, whose counts mean nothing: cargo run --release -p benches -- counts".into());
    }
    let counted = count(&command.operations)?;
    let path = repository().join(BASELINE);
    let before = read(&path)?;
    print(&command.operations, &counted, before.as_ref())?;
    if command.renew {
        let mut renewed = counted;
        if let Some(before) = before
            && before.conditions == renewed.conditions
        {
            // Those that were left out this time.
            renewed.instructions = before.instructions.into_iter().chain(renewed.instructions).collect();
        }
        renewed.instructions.retain(|name, _| OPERATIONS.iter().any(|operation| operation.name == name));
        write(&path, &renewed)?;
        return Ok(true);
    }
    Ok(is_as_before(&counted, before.as_ref()) || !command.check)
}

/// What runs under valgrind.
fn alone(operation: &Operation) -> Result<(), String> {
    let times = (operation.run)();
    let said = serde_json::json!({ "times": times, "cpu": cpu() });
    writeln!(io::stdout(), "{said}").map_err(|error| format!("stdout: {error}"))
}

/// What the program may use of the processor. Valgrind shows the same one wherever there is AVX2, and none with more.
fn cpu() -> String {
    #[cfg(target_arch = "x86_64")]
    let has_avx2 = is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let has_avx2 = false;
    format!("{}{}", env::consts::ARCH, if has_avx2 { " avx2" } else { "" })
}

/// As many at once as there are cores: counts do not mind.
fn count(operations: &[&'static Operation]) -> Result<Counts, String> {
    let valgrind = callgrind::version()?;
    let folder = env::temp_dir().join(format!("uringcast-counts-{}", process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(operation) = operations.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((*operation, callgrind::count(operation, &folder)));
        }
        done
    };
    let done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = net::allowed_cpus().iter().map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker only waits for valgrind")).collect()
    });
    // The files have told what they can.
    let _ = fs::remove_dir_all(&folder);
    let (mut instructions, mut cpu) = (std::collections::BTreeMap::new(), String::new());
    for (operation, count) in done {
        let Count { instructions: each, cpu: seen } = count?;
        instructions.insert(operation.name.to_owned(), (each * 100.0).round() / 100.0);
        cpu = seen;
    }
    let conditions = Conditions { compiler: env!("COMPILER").into(), libc: libc_version(), cpu, valgrind };
    Ok(Counts { conditions, instructions })
}

fn libc_version() -> String {
    let output = process::Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The table, on stdout.
fn print(operations: &[&'static Operation], counted: &Counts, before: Option<&Counts>) -> Result<(), String> {
    let Conditions { compiler, libc, cpu, valgrind } = &counted.conditions;
    let mut text = format!("{compiler}, {libc}, {cpu}, {valgrind}\n\n{:<22}{:>12}{:>12}  of one\n", "operation", "committed", "now");
    for operation in operations {
        let now = counted.instructions[operation.name];
        let then = before.and_then(|before| before.instructions.get(operation.name)).copied();
        let then_text = then.map_or("-".into(), |then| format!("{then:.1}"));
        let Operation { name, unit, .. } = operation;
        let _ = writeln!(text, "{name:<22}{then_text:>12}{now:>12.1}  {unit:<64}{}", verdict(now, then).text());
    }
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("stdout: {error}"))
}

/// Whether the committed counts still tell what is; says on stderr where not, and what to do.
fn is_as_before(counted: &Counts, before: Option<&Counts>) -> bool {
    let how = format!("cargo run --release -p benches -- counts --renew, and commit {BASELINE} with the reason");
    let Some(before) = before else {
        eprintln!("\nThere is no {BASELINE}: {how}.");
        return false;
    };
    let differences = counted.conditions.differences(&before.conditions);
    if !differences.is_empty() {
        eprintln!("\nNOT JUDGED, because counts depend on it: {}. To judge again here: {how}.", differences.join("; "));
        return true;
    }
    let judged = counted.instructions.iter().map(|(name, now)| (name, verdict(*now, before.instructions.get(name).copied())));
    let faults: Vec<(&String, Verdict)> = judged.filter(|(_, verdict)| verdict.is_fault()).collect();
    if faults.is_empty() {
        eprintln!("\nAll within {TOLERANCE_PERCENT} % of what is committed.");
        return true;
    }
    eprintln!("\n{} of {} differ from {BASELINE} by more than {TOLERANCE_PERCENT} %:", faults.len(), counted.instructions.len());
    for (name, verdict) in faults {
        eprintln!("  {name}: {}", verdict.text());
    }
    eprintln!("If more was not meant, find it: benches/README.md says how. If it is right, more or less: {how}.");
    false
}

fn read(path: &Path) -> Result<Option<Counts>, String> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| format!("{}: {error}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn write(path: &PathBuf, counts: &Counts) -> Result<(), String> {
    let text = serde_json::to_string_pretty(counts).map_err(|error| error.to_string())?;
    fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("\nWritten to {}.", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn names(line: &str) -> Vec<&'static str> {
        parse(line).expect("a good line").operations.iter().map(|operation| operation.name).collect()
    }

    /// Each proves for itself that its work was done.
    #[test]
    fn every_operation_does_its_work() {
        for operation in &OPERATIONS {
            assert!((operation.run)() > 0, "{}", operation.name);
        }
    }

    #[test]
    fn operations_are_chosen_by_how_they_begin() {
        assert_eq!(names("").len(), OPERATIONS.len());
        assert_eq!(names("--only echo,token --check"), ["token", "echo-plain", "echo-socket-io"]);
        assert_eq!(names("--alone cast-plain"), ["cast-plain"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("--only dance", "dance: no operation"),
            ("--alone echo", "echo: no operation"),
            ("--check --renew", "one of them"),
            ("--dance", "unknown option --dance"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_change_is_a_fault_and_another_compiler_is_not() {
        let counts = |compiler: &str, frame: f64| Counts {
            conditions: Conditions { compiler: compiler.into(), libc: "l".into(), cpu: "c".into(), valgrind: "v".into() },
            instructions: [("frame".to_owned(), frame)].into(),
        };
        let before = counts("rustc 1", 100.0);
        assert!(is_as_before(&counts("rustc 1", 101.0), Some(&before)));
        assert!(!is_as_before(&counts("rustc 1", 103.0), Some(&before)), "more");
        assert!(!is_as_before(&counts("rustc 1", 97.0), Some(&before)), "less, which the next change could lose unseen");
        assert!(is_as_before(&counts("rustc 2", 200.0), Some(&before)), "not judged");
        assert!(!is_as_before(&before, None), "nothing to compare with");
    }
}
