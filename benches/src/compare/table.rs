//! The Markdown page of a comparison: how we stand in each row, everybody's figures, the runs that do not count, the conditions.

use std::fmt::Write;

use super::plan::{Figure, Judged, ROWS, Row};
use super::record::{self, Reached, Record, TWICE};
use super::servers::{PLAIN, SERVERS, SOCKET_IO, Server};

/// What stands on the page beside the figures.
pub(crate) struct Conditions {
    pub(crate) title: String,
    /// A name and what it was, one line each.
    pub(crate) lines: Vec<(String, String)>,
    pub(crate) missing: Vec<Missing>,
}

/// A server that could not be had.
pub(crate) struct Missing {
    pub(crate) server: &'static str,
    pub(crate) reason: String,
}

/// The whole page.
pub(crate) fn page(records: &[Record], conditions: &Conditions) -> String {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| records.iter().any(|record| record.load == row.load)).collect();
    let mut page = format!("# {}\n\n", conditions.title);
    page.push_str(
        "How to read and repeat it: benches/README.md. A ratio is ours divided by the best of all others in the row, in the same round; then the\n\
         median over the rounds. The others look at no token and do no more than pass messages on.\n\n",
    );
    push_standings(&mut page, records, &rows);
    push_figures(&mut page, records, &rows);
    push_voids(&mut page, records);
    push_conditions(&mut page, conditions);
    page
}

fn push_standings(page: &mut String, records: &[Record], rows: &[&Row]) {
    page.push_str("## How we stand\n\n| scenario | judged by | best other | plain WebSocket | | Socket.IO | | must | aim |\n");
    page.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for row in rows {
        let plain = record::standing(records, row, PLAIN);
        let socket_io = record::standing(records, row, SOCKET_IO);
        let rival = plain.as_ref().or(socket_io.as_ref()).and_then(|standing| standing.rival.clone()).unwrap_or_default();
        let judged = match row.judged {
            Judged::Ratio => format!("ratio of {}", row.figure.unit()),
            Judged::Value => row.figure.unit().to_owned(),
        };
        let better = if row.figure.more_is_better() { "≥" } else { "≤" };
        let goal = |plain: f64, socket_io: f64| {
            if plain == socket_io {
                format!("{better} {}", short(plain))
            } else {
                format!("{better} {} / {}", short(plain), short(socket_io))
            }
        };
        let cells =
            [(plain, row.must.plain, row.aim.plain), (socket_io, row.must.socket_io, row.aim.socket_io)].map(|(standing, must, aim)| {
                let Some(standing) = standing else { return "- | -".to_owned() };
                let reached = Reached::of(standing.median, must, aim, row.figure.more_is_better());
                format!("{} | {}", with_spread(standing.median, &standing.values), reached.word())
            });
        push_line(
            page,
            [
                row.title,
                &judged,
                &rival,
                &cells[0],
                &cells[1],
                &goal(row.must.plain, row.must.socket_io),
                &goal(row.aim.plain, row.aim.socket_io),
            ],
        );
    }
    page.push('\n');
}

fn push_figures(page: &mut String, records: &[Record], rows: &[&Row]) {
    let took_part = |server: &&Server| records.iter().any(|record| record.server == server.name);
    let servers: Vec<&Server> = SERVERS.iter().filter(took_part).collect();
    page.push_str(
        "## Figures\n\nMedians (lowest and highest) of the runs that count. `+`: the generator was the limit in one of them, the server can do more.\n\
         `!`: the server fell behind the rate asked in one of them, so this is the figure of a smaller load.\n\n",
    );
    push_line(page, ["scenario", "unit"].into_iter().chain(servers.iter().map(|server| server.title)));
    push_line(page, std::iter::repeat_n("---", servers.len() + 2));
    for row in rows {
        let cells: Vec<String> = servers.iter().map(|server| figures(records, row, server.name)).collect();
        push_line(page, [row.title, row.figure.unit()].into_iter().chain(cells.iter().map(String::as_str)));
    }
    page.push('\n');
}

/// A server's cell; where two shards were measured beside one, both.
fn figures(records: &[Record], row: &Row, server: &str) -> String {
    let one = figures_of(records, row, server);
    let twice = format!("{server}{TWICE}");
    if records.iter().any(|record| record.load == row.load && record.server == twice) {
        return format!("{one}, with two {}", figures_of(records, row, &twice));
    }
    one
}

fn figures_of(records: &[Record], row: &Row, server: &str) -> String {
    let figures = record::figures(records, row, server);
    let Some(median) = record::median(&figures.counted) else {
        return if figures.runs == 0 { "-".into() } else { "none counts".into() };
    };
    let void = figures.runs - figures.counted.len();
    let void = if void > 0 { format!(", {void} of {} do not count", figures.runs) } else { String::new() };
    // Only where a rate was sought does it matter that the generator was the limit.
    let more = if figures.generator_bound && row.figure == Figure::Throughput { "+" } else { "" };
    let behind = if figures.fell_behind { "!" } else { "" };
    format!("{}{more}{behind}{void}", with_spread(median, &figures.counted))
}

fn push_voids(page: &mut String, records: &[Record]) {
    page.push_str("## Runs that do not count\n\n");
    let faults: Vec<_> = records.iter().filter_map(|record| Some((record, record.fault()?))).collect();
    if faults.is_empty() {
        page.push_str("None: everything arrived once and in order in every run.\n\n");
        return;
    }
    for (record, fault) in faults {
        // The text is another program's: it may not end the line or the cell.
        let fault = fault.replace(['\n', '|', '<'], " ");
        let _ = writeln!(page, "- {}, {}, round {}: {fault}", record.load, record.server, record.round);
    }
    page.push('\n');
}

fn push_conditions(page: &mut String, conditions: &Conditions) {
    page.push_str("## Conditions\n\n");
    for (name, text) in &conditions.lines {
        let _ = writeln!(page, "- {name}: {text}");
    }
    for Missing { server, reason } in &conditions.missing {
        let _ = writeln!(page, "- left out: {server}: {}", reason.replace('\n', " "));
    }
}

fn push_line<'a>(page: &mut String, cells: impl IntoIterator<Item = &'a str>) {
    for cell in cells {
        let _ = write!(page, "| {cell} ");
    }
    page.push_str("|\n");
}

/// A median and, where there were several values, the lowest and the highest.
fn with_spread(median: f64, values: &[f64]) -> String {
    if values.len() < 2 {
        return short(median);
    }
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({}-{})", short(median), short(lowest), short(highest))
}

/// Three digits that count: the noise leaves no more.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::record::tests::run;

    fn conditions() -> Conditions {
        Conditions {
            title: "Comparison".into(),
            lines: vec![("kernel".into(), "6.18".into())],
            missing: vec![Missing { server: "bun", reason: "no program".into() }],
        }
    }

    fn line_of<'a>(page: &'a str, start: &str) -> &'a str {
        page.lines().find(|line| line.starts_with(start)).unwrap_or_default()
    }

    #[test]
    fn a_page_tells_standing_figures_and_conditions() {
        let records = [run(PLAIN, 1, 4.0), run(SOCKET_IO, 1, 6.0), run("ws", 1, 10.0), run("fastwebsockets", 1, 5.0)];
        let page = page(&records, &conditions());
        assert_eq!(
            line_of(&page, "| fan-out 1 to 1,000, 20k/s | ratio of CPU"),
            "| fan-out 1 to 1,000, 20k/s | ratio of CPU µs per delivery | fastwebsockets | 0.80 | aim | 1.20 | **no** | ≤ 1.00 | ≤ 0.85 |"
        );
        assert_eq!(
            line_of(&page, "| fan-out 1 to 1,000, 20k/s | CPU"),
            "| fan-out 1 to 1,000, 20k/s | CPU µs per delivery | 4.00 | 6.00 | 5.00 | 10.0 |"
        );
        for part in ["None: everything arrived", "- kernel: 6.18", "- left out: bun: no program", "latency p99"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("saturated"), "a row without a run: {page}");
    }

    #[test]
    fn every_line_of_a_table_has_as_many_cells_as_its_head() {
        let records = [run(PLAIN, 1, 4.0), run("ws", 1, 10.0), run(PLAIN, 2, 5.0)];
        let page = page(&records, &conditions());
        for table in page.split("\n\n").filter(|part| part.starts_with('|')) {
            let cells: Vec<usize> = table.lines().map(|line| line.matches('|').count()).collect();
            assert!(cells.iter().all(|count| *count == cells[0]), "{table}");
        }
    }

    #[test]
    fn what_does_not_count_is_told() {
        let mut lossy = run("ws", 2, 10.0);
        lossy.result.as_mut().expect("a result")["doubled"] = 2.into();
        let broken = Record { result: Err("no\n|way".into()), ..run("bun", 1, 1.0) };
        let page = page(&[run(PLAIN, 1, 4.0), run("ws", 1, 8.0), lossy, broken], &conditions());
        assert!(page.contains("- fan-out-20k, ws, round 2: doubled 2"), "{page}");
        assert!(page.contains("- fan-out-20k, bun, round 1: no  way"), "{page}");
        assert!(page.contains("8.00, 1 of 2 do not count") && page.contains("none counts"), "{page}");
    }

    #[test]
    fn two_shards_stand_beside_one() {
        let with = |server: &str, rate: f64| {
            let mut record = run(server, 1, 1.0);
            record.load = "shards-rooms".into();
            record.result.as_mut().expect("a result")["deliveries_per_second"] = rate.into();
            record
        };
        let page = page(&[with(PLAIN, 200e3), with(&format!("{PLAIN}{TWICE}"), 380e3)], &conditions());
        assert!(page.contains("| 200, with two 380 |") && page.contains("| 1.90 | must |"), "{page}");
    }

    #[test]
    fn three_digits_count() {
        assert_eq!([0.456, 5.678, 45.67, 456.7].map(short), ["0.46", "5.68", "45.7", "457"]);
    }
}
