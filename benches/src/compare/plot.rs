//! Bar charts of the figures as SVG: one panel per row of the table, one bar per server (its median), one dot per round. Plain text, so that
//! it needs no library and a diff shows what changed.

use std::fmt::Write;

use super::plan::{Figure, ROWS, Row};
use super::record::{self, Record};
use super::servers::{SERVERS, Server};
use super::table::short;

const WIDTH: f64 = 760.0;
/// Where the bars begin and how long the longest may be; names stand to the left, numbers to the right.
const BARS_FROM: f64 = 180.0;
const BARS_WIDTH: f64 = 500.0;
const BAR_STEP: f64 = 22.0;
const BAR_HEIGHT: f64 = 15.0;
const PANEL_HEAD: f64 = 40.0;

/// The chart of all rows with this figure; `None` where nothing was measured.
pub(crate) fn chart(records: &[Record], figure: Figure) -> Option<String> {
    let mut panels = String::new();
    let mut top = 0.0;
    for row in ROWS.iter().filter(|row| row.figure == figure) {
        top += push_panel(&mut panels, records, row, top);
    }
    (top > 0.0).then(|| {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{panels}</svg>\n",
            height = top + 12.0
        )
    })
}

/// Draws a row's panel and tells its height, 0 where the row has no figures.
fn push_panel(out: &mut String, records: &[Record], row: &Row, top: f64) -> f64 {
    let all: Vec<(&Server, Vec<f64>)> = SERVERS.iter().map(|server| (server, record::figures(records, row, server.name).counted)).collect();
    let bars: Vec<&(&Server, Vec<f64>)> = all.iter().filter(|(_, values)| !values.is_empty()).collect();
    let longest = bars.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
    if longest <= 0.0 {
        return 0.0;
    }
    let better = if row.figure.more_is_better() { "more is better" } else { "less is better" };
    let title = escaped(&format!("{}: {} ({better})", row.title, row.figure.unit()));
    let _ = writeln!(out, "<text x=\"12\" y=\"{}\" font-weight=\"bold\">{title}</text>", top + 26.0);
    for (place, (server, values)) in bars.iter().enumerate() {
        push_bar(out, server, values, longest, top + PANEL_HEAD + place as f64 * BAR_STEP);
    }
    PANEL_HEAD + bars.len() as f64 * BAR_STEP
}

fn push_bar(out: &mut String, server: &Server, values: &[f64], longest: f64, top: f64) {
    // A growth of memory can be negative; a bar cannot.
    let length = |value: f64| value.max(0.0) / longest * BARS_WIDTH;
    let median = record::median(values).unwrap_or_default();
    let (colour, baseline) = (if server.is_ours() { "#c2410c" } else { "#7c8ba1" }, top + 12.0);
    let _ = writeln!(out, "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>", BARS_FROM - 8.0, escaped(server.title));
    let _ =
        writeln!(out, "<rect x=\"{BARS_FROM}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>", length(median));
    for value in values {
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{}\" r=\"2.5\" fill=\"black\" fill-opacity=\"0.6\"/>",
            BARS_FROM + length(*value),
            top + BAR_HEIGHT / 2.0
        );
    }
    let rightmost = values.iter().copied().fold(0.0, f64::max);
    let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{baseline}\">{}</text>", BARS_FROM + length(rightmost) + 8.0, short(median));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::record::tests::run;
    use crate::compare::servers::PLAIN;

    #[test]
    fn a_bar_per_server_a_dot_per_round_and_the_longest_bar_fills_the_width() {
        let records = [run(PLAIN, 1, 5.0), run(PLAIN, 2, 5.0), run("ws", 1, 10.0)];
        let chart = chart(&records, Figure::Cpu).expect("figures");
        assert_eq!(chart.matches("<circle").count(), 3);
        assert!(chart.contains("width=\"250.0\"") && chart.contains("width=\"500.0\""), "{chart}");
        assert!(chart.contains("fan-out 1 to 1,000, 20k/s: CPU") && chart.contains(">5.00<") && chart.contains(">10.0<"), "{chart}");
        // As many tags closed as opened.
        assert_eq!(chart.matches("<text").count(), chart.matches("</text>").count());
        assert!(chart.starts_with("<svg") && chart.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_measured_is_no_chart() {
        assert!(chart(&[run(PLAIN, 1, 5.0)], Figure::Memory).is_none());
        let void = Record { result: Err("gone".into()), ..run(PLAIN, 1, 5.0) };
        assert!(chart(&[void], Figure::Cpu).is_none());
        assert_eq!(escaped("a<b & c"), "a&lt;b &amp; c");
    }
}
