//! What one server did under one load in one round, and what follows from all of them: figures, ratios against the best peer of the same
//! round, and whether a goal is reached. A run in which anything was lost, doubled or misordered has no figure.

use serde_json::{Value, json};

use super::plan::{Figure, Judged, LOADS, Row};
use super::servers::SERVERS;
use crate::report;

/// One run. `server` is a name of `SERVERS`; what ran on two cores has `TWICE` behind it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) load: String,
    pub(crate) server: String,
    pub(crate) round: u32,
    /// What the generator measured, or why it could not.
    pub(crate) result: Result<Value, String>,
}

/// Stands behind a server's name when it ran with two shards on two cores.
pub(crate) const TWICE: &str = " x2";

/// A server that delivers a smaller share of the rate asked has fallen behind. The window's edges alone can cost one message of a fan-out.
const RATE_KEPT: f64 = 0.9;

impl Record {
    /// The line kept for machines: what the generator told, with what it was asked for.
    pub(crate) fn line(&self) -> String {
        let mut value = match &self.result {
            Ok(result) => result.clone(),
            Err(reason) => json!({ "error": reason }),
        };
        value["compare"] = json!({ "load": self.load, "server": self.server, "round": self.round });
        value.to_string()
    }

    /// The inverse of `line`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let about = &value["compare"];
        let text = |name: &str| about[name].as_str().map(str::to_owned);
        let result = match value["error"].as_str() {
            Some(reason) => Err(reason.to_owned()),
            None => Ok(value.clone()),
        };
        Some(Self { load: text("load")?, server: text("server")?, round: about["round"].as_u64()? as u32, result })
    }

    /// Why this run does not count, `None` when it does.
    pub(crate) fn fault(&self) -> Option<String> {
        match &self.result {
            Err(reason) => Some(reason.clone()),
            Ok(result) => (!report::is_clean(result)).then(|| report::told(result)),
        }
    }

    /// The figure, `None` where the run does not count.
    pub(crate) fn figure(&self, figure: Figure) -> Option<f64> {
        let result = self.result.as_ref().ok().filter(|result| report::is_clean(result))?;
        figure.of(result).filter(|figure| figure.is_finite())
    }

    fn generator_was_the_limit(&self) -> bool {
        self.result.as_ref().is_ok_and(|result| result["generator_bound"] == true)
    }

    /// True exactly when the server delivered clearly less than was asked of it: its figures are those of another load.
    fn fell_behind(&self) -> bool {
        let number = |name: &str| self.result.as_ref().ok().and_then(|result| result[name].as_f64());
        matches!((number("rate_asked"), number("deliveries_per_second")), (Some(asked), Some(kept)) if kept < asked * RATE_KEPT)
    }
}

/// One server's figures of one row over the rounds.
#[derive(Debug, PartialEq)]
pub(crate) struct Figures {
    /// Those of the runs that count, in the order of the rounds.
    pub(crate) counted: Vec<f64>,
    /// How many runs there were.
    pub(crate) runs: usize,
    /// True exactly when in one of the counted runs the generator, not the server, was the limit.
    pub(crate) generator_bound: bool,
    /// True exactly when in one of the counted runs the server did not keep the rate that was asked.
    pub(crate) fell_behind: bool,
}

/// The figures of a server in a row.
pub(crate) fn figures(records: &[Record], row: &Row, server: &str) -> Figures {
    let runs: Vec<&Record> = records.iter().filter(|record| record.load == row.load && record.server == server).collect();
    let any = |is: fn(&Record) -> bool| runs.iter().any(|record| record.fault().is_none() && is(record));
    Figures {
        counted: runs.iter().filter_map(|record| record.figure(row.figure)).collect(),
        runs: runs.len(),
        generator_bound: any(Record::generator_was_the_limit),
        fell_behind: any(Record::fell_behind),
    }
}

/// Ours against the others in one row.
#[derive(Debug, PartialEq)]
pub(crate) struct Standing {
    /// What is judged: ratios, or our figures themselves, in the order of the rounds.
    pub(crate) values: Vec<f64>,
    pub(crate) median: f64,
    /// Who was the best of the others most often.
    pub(crate) rival: Option<String>,
}

/// How our server `ours` stands in a row; `None` where no round has both ours and a rival.
pub(crate) fn standing(records: &[Record], row: &Row, ours: &str) -> Option<Standing> {
    let is_two_shards = LOADS.iter().any(|load| load.name == row.load && load.two_shards);
    let (mine, rivals): (String, Vec<&str>) = if is_two_shards {
        (format!("{ours}{TWICE}"), vec![ours])
    } else {
        (ours.to_owned(), SERVERS.iter().filter(|server| !server.is_ours()).map(|server| server.name).collect())
    };
    let mut values = Vec::new();
    let mut bests: Vec<&str> = Vec::new();
    for record in records.iter().filter(|record| record.load == row.load && record.server == mine) {
        let Some(figure) = record.figure(row.figure) else { continue };
        let best = best(records, row, &rivals, record.round);
        bests.extend(best.map(|(rival, _)| rival));
        match (row.judged, best) {
            (Judged::Value, _) => values.push(figure),
            (Judged::Ratio, Some((_, rival))) => values.push(figure / rival),
            (Judged::Ratio, None) => {}
        }
    }
    let rival = bests.iter().max_by_key(|name| bests.iter().filter(|other| other == name).count()).map(ToString::to_string);
    median(&values).map(|median| Standing { values, median, rival })
}

fn best<'a>(records: &[Record], row: &Row, rivals: &[&'a str], round: u32) -> Option<(&'a str, f64)> {
    let of_round = records.iter().filter(|record| record.load == row.load && record.round == round);
    let figures = of_round.filter_map(|record| {
        let rival = rivals.iter().find(|rival| **rival == record.server)?;
        Some((*rival, record.figure(row.figure)?))
    });
    figures.reduce(|one, other| if (other.1 < one.1) != row.figure.more_is_better() { other } else { one })
}

/// The middle value, the mean of the two middle ones where there are two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Which of the two goals a value reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Aim,
    Must,
    Neither,
}

impl Reached {
    pub(crate) fn of(value: f64, must: f64, aim: f64, more_is_better: bool) -> Self {
        let reaches = |goal: f64| if more_is_better { value >= goal } else { value <= goal };
        match (reaches(aim), reaches(must)) {
            (true, _) => Self::Aim,
            (_, true) => Self::Must,
            _ => Self::Neither,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Aim => "aim",
            Self::Must => "must",
            Self::Neither => "**no**",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compare::plan::ROWS;
    use crate::compare::servers::PLAIN;

    /// A clean run of the fan-out of 20,000 with this CPU.
    pub(crate) fn run(server: &str, round: u32, cpu: f64) -> Record {
        let mut result = json!({
            "server_cpu_us_per_delivery": cpu, "kernel_threads_cpu_us_per_delivery": 0.0, "generator_bound": false,
            "latency_us": { "p99": 2000.0 * cpu },
        });
        for fault in report::FAULTS {
            result[fault] = 0.into();
        }
        Record { load: "fan-out-20k".into(), server: server.into(), round, result: Ok(result) }
    }

    fn row() -> &'static Row {
        ROWS.iter().find(|row| row.load == "fan-out-20k" && row.figure == Figure::Cpu).expect("it is in the table")
    }

    #[test]
    fn a_ratio_is_of_runs_of_the_same_round_and_against_the_best() {
        let records =
            [run(PLAIN, 1, 4.0), run("ws", 1, 10.0), run("bun", 1, 5.0), run(PLAIN, 2, 12.0), run("ws", 2, 10.0), run("bun", 2, 20.0)];
        let standing = standing(&records, row(), PLAIN).expect("both were there");
        assert_eq!(standing.values, [0.8, 1.2]);
        assert_eq!(standing.median, 1.0);
    }

    #[test]
    fn a_run_with_losses_has_no_figure_and_no_ratio() {
        let mut lossy = run("bun", 1, 1.0);
        lossy.result.as_mut().expect("a result")["lost"] = 3.into();
        assert!(lossy.fault().is_some_and(|fault| fault.contains("lost 3")));
        let broken = Record { result: Err("it hung up".into()), ..run("bun", 2, 1.0) };
        let records = [run(PLAIN, 1, 4.0), lossy, run("ws", 1, 8.0), run(PLAIN, 2, 4.0), broken];
        let standing = standing(&records, row(), PLAIN).expect("one round is whole");
        assert_eq!((standing.values.as_slice(), standing.rival.as_deref()), (&[0.5][..], Some("ws")));
        assert_eq!(figures(&records, row(), "bun"), Figures { counted: vec![], runs: 2, generator_bound: false, fell_behind: false });
    }

    #[test]
    fn a_server_that_falls_behind_is_marked() {
        let with = |server: &str, kept: f64| {
            let mut record = run(server, 1, 1.0);
            let result = record.result.as_mut().expect("a result");
            (result["rate_asked"], result["deliveries_per_second"]) = (20_000.0.into(), kept.into());
            record
        };
        let records = [with("ws", 12_000.0), with("bun", 19_000.0)];
        assert!(figures(&records, row(), "ws").fell_behind && !figures(&records, row(), "bun").fell_behind);
    }

    #[test]
    fn throughput_is_better_when_it_is_more() {
        let row = ROWS.iter().find(|row| row.load == "fan-out-max").expect("it is in the table");
        let with = |server: &str, rate: f64| {
            let mut record = run(server, 1, 1.0);
            record.load = "fan-out-max".into();
            record.result.as_mut().expect("a result")["deliveries_per_second"] = rate.into();
            record
        };
        let standing = standing(&[with(PLAIN, 3e6), with("ws", 1e5), with("bun", 2e6)], row, PLAIN).expect("both were there");
        assert_eq!((standing.median, standing.rival.as_deref()), (1.5, Some("bun")));
        assert_eq!(Reached::of(standing.median, row.must.plain, row.aim.plain, true), Reached::Aim);
    }

    #[test]
    fn two_shards_are_measured_by_one() {
        let row = ROWS.iter().find(|row| row.load == "shards-rooms").expect("it is in the table");
        let with = |server: &str, rate: f64| {
            let mut record = run(server, 1, 1.0);
            record.load = "shards-rooms".into();
            record.result.as_mut().expect("a result")["deliveries_per_second"] = rate.into();
            record
        };
        let records = [with(PLAIN, 100.0), with("uringcast-plain x2", 190.0), with("ws", 1.0)];
        assert_eq!(standing(&records, row, PLAIN).map(|standing| standing.median), Some(1.9));
    }

    #[test]
    fn a_record_survives_its_line() {
        let record = run("ws", 7, 2.5);
        let again = Record::parse(&record.line()).expect("our own line");
        assert_eq!((again.load, again.server, again.round), (record.load, record.server, 7));
        assert_eq!(Figure::Cpu.of(&again.result.expect("a result")), Some(2.5));
        let failed = Record { result: Err("gone".into()), ..run("ws", 1, 1.0) };
        assert_eq!(Record::parse(&failed.line()).and_then(|record| record.result.err()).as_deref(), Some("gone"));
        assert!(Record::parse("{}").is_none() && Record::parse("nothing").is_none());
    }

    #[test]
    fn medians_and_goals() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (None, Some(2.0), Some(2.5)));
        for (value, reached) in [(0.8, Reached::Aim), (0.9, Reached::Must), (1.0, Reached::Must), (1.01, Reached::Neither)] {
            assert_eq!(Reached::of(value, 1.0, 0.85, false), reached, "{value}");
        }
    }
}
