//! One generator process of a capacity run, and how the coordinator talks to all of them: a word on the part's standard input, a JSON line
//! on its standard output. A process of its own, because a process may hold only so many descriptors.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::command::Command;
use super::hosts::{Fleet, SECRET, answer_to_emit, emit_to_all};
use crate::net;
use crate::options::Options;
use crate::report::{self, FAULTS};
use crate::run::Run;
use crate::server::{Reading, Server};
use crate::verify::{BROADCASTER, Mark};

/// The command under which a part is started. It is not for people.
pub(crate) const NAME: &str = "capacity-part";
/// What has not arrived when nothing arrived for so long is lost.
const STALL: Duration = Duration::from_secs(3);
/// How exactly the moment of the last delivery is seen.
const GLANCE: Duration = Duration::from_micros(500);

/// All parts of a run.
pub(super) struct Parts(Vec<Part>);

struct Part {
    child: Child,
    process: Server,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What became of a message to everybody.
pub(super) struct Heard {
    pub(super) delivered: u64,
    /// From its leaving until the last one had it.
    pub(super) last: Duration,
    /// Servers whose admin API gave up waiting for their shard, while that was delivering.
    pub(super) answers_late: u64,
}

impl Parts {
    pub(super) fn start(command: &Command, fleet: &Fleet) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
        let opening = command.opening.div_ceil(command.processes);
        let mut parts = Self(Vec::new());
        for (number, host) in fleet.hosts().iter().enumerate() {
            let mut process = Process::new(&program);
            process.args([NAME, &host.control.to_string(), "connect", "--secret", SECRET, "--dialect", command.dialect.name()]);
            let cpu = command.cpus[number % command.cpus.len()];
            let numbers = [
                ("--connections", command.share()),
                ("--rooms", command.share() / 10),
                ("--per-user", command.per_user),
                ("--opening", opening),
                ("--payload", command.payload_bytes),
                ("--pid", host.pid()),
                ("--cpus", cpu as u32),
            ];
            for (name, value) in numbers {
                process.args([name, &value.to_string()]);
            }
            process.args(["--url", &host.address.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
            net::end_with_us(&mut process);
            let mut child = process.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
            let (Some(words), Some(answers)) = (child.stdin.take(), child.stdout.take()) else { return Err("a part without pipes".into()) };
            let process = Server::of_pid(child.id());
            parts.0.push(Part { child, process, words, answers: BufReader::new(answers) });
        }
        parts.ask("ready")?;
        Ok(parts)
    }

    /// Opens everything; tells how much of their cores the generators used, all together.
    pub(super) fn open(&mut self) -> Result<f64, String> {
        Ok(sum(&self.ask("open")?, "generator_share"))
    }

    /// Frames that all clients together have heard.
    pub(super) fn frames(&mut self) -> Result<u64, String> {
        Ok(sum(&self.ask("frames")?, "frames") as u64)
    }

    /// A message to everybody.
    pub(super) fn broadcast(&mut self) -> Result<Heard, String> {
        let answers = self.ask("broadcast")?;
        let last = answers.iter().filter_map(|answer| answer["last_ns"].as_u64()).max().unwrap_or(0);
        Ok(Heard {
            delivered: sum(&answers, "delivered") as u64,
            last: Duration::from_nanos(last),
            answers_late: sum(&answers, "answers_late") as u64,
        })
    }

    /// All parts together.
    pub(super) fn reading(&self) -> Result<Reading, String> {
        let readings = self.0.iter().map(|part| part.process.reading().map_err(|error| format!("a part is gone: {error}")));
        readings.into_iter().try_fold(Reading::default(), |sum, reading| Ok(sum.plus(reading?)))
    }

    /// Ends the parts; the fields that say whether everybody got everything once.
    pub(super) fn end(mut self) -> Result<Value, String> {
        let answers = self.ask("end")?;
        let mut fields = Map::new();
        for name in FAULTS {
            fields.insert(name.into(), json!(sum(&answers, name) as u64));
        }
        for name in ["first_refusal", "first_fault"] {
            let first = answers.iter().map(|answer| &answer[name]).find(|text| text.is_string());
            fields.insert(name.into(), first.cloned().unwrap_or_default());
        }
        // Percentiles of parts cannot be added; of equal parts the slowest one bounds them.
        for name in ["p50", "p99", "max"] {
            let slowest = answers.iter().filter_map(|answer| answer["latency_us"][name].as_f64()).fold(0.0, f64::max);
            fields.insert(format!("broadcast_{name}_ms"), json!(report::round(slowest / 1e3)));
        }
        Ok(Value::Object(fields))
    }

    /// Says one word to all parts at the same moment and waits for all answers.
    fn ask(&mut self, word: &str) -> Result<Vec<Value>, String> {
        for part in &mut self.0 {
            part.words.write_all(format!("{word}\n").as_bytes()).map_err(|error| format!("a part is gone: {error}"))?;
        }
        self.0.iter_mut().map(Part::answer).collect()
    }
}

impl Part {
    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| format!("a part is gone: {error}"))?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| format!("a part ended: {line}"))?;
        answer["failure"].as_str().map_or(Ok(answer.clone()), |failure| Err(failure.to_owned()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sum(answers: &[Value], name: &str) -> f64 {
    answers.iter().filter_map(|answer| answer[name].as_f64()).sum()
}

/// What a part does: it answers words until its input ends. `arguments` are the server's control address and a line of `connect`.
pub(crate) fn answer_words(arguments: &[String]) -> Result<(), String> {
    let (control, rest) = arguments.split_first().ok_or("no control address")?;
    let control: SocketAddr = control.parse().map_err(|_| format!("{control}: no address"))?;
    let options = Options::parse(rest)?;
    net::raise_descriptor_limit().map_err(|error| format!("the limit of descriptors: {error}"))?;
    let server = Server::of_pid(options.pid.unwrap_or_default());
    let mut run = None;
    let mut broadcasts = 0;
    for word in std::io::stdin().lines() {
        let word = word.map_err(|error| format!("standard input: {error}"))?;
        let answer = match (word.as_str(), run.as_ref()) {
            ("open", None) => Run::start(&options, &server).and_then(|started| open(run.insert(started))),
            ("frames", Some(run)) => Ok(json!({ "frames": run.board().sum(|column| &column.frames) })),
            ("broadcast", Some(run)) => {
                broadcasts += 1;
                broadcast(run, &options, control, broadcasts - 1)
            }
            ("end", Some(_)) => {
                let verdict = run.take().map(|run| run.settle(broadcasts)).unwrap_or_default();
                Ok(report::verdict(&verdict))
            }
            _ => Ok(json!({})),
        };
        let answer = answer.unwrap_or_else(|failure| json!({ "failure": failure }));
        let mut out = std::io::stdout();
        out.write_all(format!("{answer}\n").as_bytes()).map_err(|error| format!("standard output: {error}"))?;
    }
    Ok(())
}

fn open(run: &Run<'_>) -> Result<Value, String> {
    let started = Instant::now();
    run.wait_until_open()?;
    let share = run.generator_share(started.elapsed());
    run.board().begin_window();
    Ok(json!({ "generator_share": share }))
}

/// One message to everybody on this part's server: how many of its connections got it, and when the last one did.
fn broadcast(run: &Run<'_>, options: &Options, control: SocketAddr, sequence: u32) -> Result<Value, String> {
    let delivered = || run.board().sum(|column| &column.delivered);
    let before = delivered();
    let wanted = u64::from(options.plan.connections());
    let mut stamp = 0;
    let text = || {
        stamp = run.board().now();
        let mark = Mark { sender: BROADCASTER, sequence, stamp };
        let filler = crate::client::Setup::filler_of(options.payload_bytes);
        String::from_utf8_lossy(&[&mark.write(), filler.as_slice()].concat()).into_owned()
    };
    let stream = emit_to_all(control, options.dialect, text).map_err(|error| format!("the admin API: {error}"))?;
    let (mut moved, mut last) = (Instant::now(), 0);
    while delivered() - before < wanted && moved.elapsed() < STALL {
        thread::sleep(GLANCE);
        if delivered() != last {
            (moved, last) = (Instant::now(), delivered());
        }
    }
    let heard_at = run.board().columns.iter().map(|column| column.delivered_at.load(Relaxed)).max().unwrap_or(0);
    let late = u32::from(!answer_to_emit(stream)?);
    Ok(json!({ "delivered": delivered() - before, "last_ns": heard_at.saturating_sub(stamp), "answers_late": late }))
}
