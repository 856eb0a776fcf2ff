//! Text for a terminal: columns that stand below each other, and nothing of what users named themselves that a terminal would obey.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

/// Characters of a cell; what is longer ends with an ellipsis. Ids, which one wants to copy, stand in the first column, and that is whole.
const CELL_MAX: usize = 40;

/// Cells are this far from each other.
const GAP: &str = "  ";

/// The text with everything written out that a terminal might obey or hide: control characters, also those of 8 bits, line separators,
/// and what turns the direction of writing or has no width.
pub(super) fn safe(text: &str) -> String {
    text.chars()
        .map(|character| if is_dangerous(character) { character.escape_unicode().to_string() } else { character.to_string() })
        .collect()
}

/// JSON keeps its meaning: what stands for itself in a text can stand there as an escape too. Between values only white space can be
/// dangerous, and there a blank is as good; line ends are kept.
pub(super) fn safe_json(json: &str) -> String {
    let (mut safe, mut is_text, mut is_escape) = (String::with_capacity(json.len()), false, false);
    for character in json.chars() {
        match character {
            _ if is_text && is_dangerous(character) => safe.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ if is_dangerous(character) && character != '\n' => safe.push(' '),
            _ => safe.push(character),
        }
        is_text ^= character == '"' && !is_escape;
        is_escape = is_text && character == '\\' && !is_escape;
    }
    safe
}

/// The members of an object, of which those that are too large for a number here are shown as they are written.
pub(super) fn members(json: &str) -> serde_json::Result<Value> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(json)?;
    let value = |text: &RawValue| serde_json::from_str(text.get()).unwrap_or_else(|_| Value::String(text.get().to_owned()));
    Ok(Value::Object(members.into_iter().map(|(name, text)| (name, value(text))).collect()))
}

fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Rows that come page by page; columns never become narrower again.
pub(super) struct Table {
    headings: &'static [&'static str],
    widths: Vec<usize>,
    is_begun: bool,
}

impl Table {
    pub(super) fn new(headings: &'static [&'static str]) -> Table {
        Table { headings, widths: headings.iter().map(|heading| heading.len()).collect(), is_begun: false }
    }

    /// The rows, below the headings if these are the first.
    pub(super) fn rows(&mut self, rows: Vec<Vec<String>>) -> String {
        let cell = |(column, text): (usize, String)| if column == 0 { safe(&text) } else { cut(safe(&text)) };
        let headings = if self.is_begun { Vec::new() } else { vec![self.headings.iter().map(ToString::to_string).collect()] };
        let rows: Vec<Vec<String>> =
            headings.into_iter().chain(rows.into_iter().map(|row| row.into_iter().enumerate().map(cell).collect())).collect();
        self.is_begun = true;
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        rows.iter().map(|row| line(row, &self.widths)).collect()
    }
}

/// A line without spaces at its end.
fn line(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", cells.join(GAP).trim_end())
}

fn cut(text: String) -> String {
    if text.chars().count() <= CELL_MAX { text } else { text.chars().take(CELL_MAX - 1).chain(['…']).collect() }
}

/// What an object says, a line for each member: its name in words and its value; members of objects in it stand below them.
pub(super) fn facts(object: &Value) -> String {
    let mut found = Vec::new();
    collect(object, "", &mut found);
    let width = found.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    found.iter().map(|(name, value)| format!("{name:<width$}{GAP}{value}\n")).collect()
}

fn collect(object: &Value, before: &str, found: &mut Vec<(String, String)>) {
    for (name, value) in object.as_object().into_iter().flatten() {
        let name = format!("{before}{}", safe(&words(name)));
        if value.as_object().is_some_and(|inner| !inner.is_empty()) {
            collect(value, &format!("{name}: "), found);
        } else {
            found.push((name, safe(&shown(value))));
        }
    }
}

/// A value without the quotation marks and brackets of JSON, where it is plain.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
            if items.is_empty() { "-".to_owned() } else { items.join(", ") }
        }
        // Means have more digits than anybody reads.
        Value::Number(number) if number.is_f64() => format!("{:.2}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// `avgLatency` as `avg latency`.
fn words(name: &str) -> String {
    let mut words = String::new();
    let mut before = ' ';
    for character in name.chars() {
        if character.is_uppercase() && before.is_lowercase() {
            words.push(' ');
        }
        words.extend(character.to_lowercase());
        before = character;
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn columns_stand_below_each_other_and_long_cells_are_cut() {
        let mut table = Table::new(&["ID", "USER", "ROOMS"]);
        let long = "x".repeat(60);
        let first = table.rows(vec![row(&["1", "alice", "den, hall"]), row(&[&long, "bob", &long])]);
        let cut = format!("{}…", "x".repeat(39));
        let expected = [
            format!("ID{}  USER   ROOMS", " ".repeat(58)),
            format!("1{}  alice  den, hall", " ".repeat(59)),
            format!("{long}  bob    {cut}"),
        ];
        assert_eq!(first.lines().collect::<Vec<_>>(), expected);
        assert_eq!(table.rows(vec![row(&["2", "c", ""])]), format!("2{}  c\n", " ".repeat(59)), "no second heading, no spaces at the end");
        assert_eq!(Table::new(&["ID", "USER"]).rows(Vec::new()), "ID  USER\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (hostile, seen) in [
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("a\rb\nc\td\u{7f}\u{0}", "a\\u{d}b\\u{a}c\\u{9}d\\u{7f}\\u{0}"),
            ("\u{9b}31m\u{85}", "\\u{9b}31m\\u{85}"),
            ("\u{202e}evil\u{2066}\u{200b}\u{feff}\u{2028}", "\\u{202e}evil\\u{2066}\\u{200b}\\u{feff}\\u{2028}"),
            ("ünïcödé 漢字 🙂 \\", "ünïcödé 漢字 🙂 \\"),
        ] {
            assert_eq!(safe(hostile), seen);
            let json = json!({ "a": hostile });
            let text = safe_json(&format!("{json}\n"));
            assert!(text.trim_end_matches('\n').chars().all(|character| !is_dangerous(character)), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(json), "the meaning stays");
            let mut table = Table::new(&["ID", "X"]);
            assert_eq!(table.rows(vec![row(&[hostile, hostile])]).lines().count(), 2);
            assert!(facts(&json!({ hostile: hostile })).trim_end_matches('\n').chars().all(|character| !is_dangerous(character)));
        }
    }

    #[test]
    fn json_stays_json_whatever_stands_between_its_values() {
        let json = "{\t\"a\\\\\":\r\n[1e400,\t\"x\\\"\u{1b}\\\\\"\t],\"\u{9b}\":\t2}\n";
        let safe = safe_json(json);
        assert_eq!(safe, "{ \"a\\\\\": \n[1e400, \"x\\\"\\u001b\\\\\" ],\"\\u009b\": 2}\n");
        let shown = members(r#"{"metadata":{"n":1e400},"id":"r","memberCount":3}"#).expect("JSON");
        assert_eq!(shown, json!({"metadata": "{\"n\":1e400}", "id": "r", "memberCount": 3}));
    }

    #[test]
    fn facts_are_aligned_and_in_words() {
        let stats = json!({"totalConnections": 12, "avgLatency": 1.23456, "websocket": {"isHealthy": true, "rooms": ["a", "b"]}, "none": null,
            "empty": {}, "clientID": "x"});
        let expected = "avg latency            1.23\nclient id              x\nempty                  {}\nnone                   -\n\
                        total connections      12\nwebsocket: is healthy  true\nwebsocket: rooms       a, b\n";
        assert_eq!(facts(&stats), expected);
    }
}
