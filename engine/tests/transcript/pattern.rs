//! Placeholders of a transcript's texts: `<sid>`, `<uuid7>`, `<time>` and their named forms `<sid:a>`, `<x*100>`, `<token sub=alice>`.
//! It compares and fills in texts; it knows no connection.

use std::collections::HashMap;

use serde_json::Value;

use crate::host;

/// What named placeholders stood for, `sid:a` to its text.
pub(crate) type Captured = HashMap<String, String>;

/// One piece of a text.
enum Piece<'a> {
    Text(&'a str),
    /// The inside of the angle brackets.
    Hole(&'a str),
}

/// The kinds of placeholder that stand for something the server made.
const MADE: [&str; 3] = ["sid", "uuid7", "time"];

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    let mut from = 0;
    while let Some(start) = rest[from..].find('<').map(|at| from + at) {
        let inside = &rest[start + 1..];
        match hole_end(inside) {
            Some(end) => {
                pieces.push(Piece::Text(&rest[..start]));
                pieces.push(Piece::Hole(&inside[..end]));
                rest = &inside[end + 1..];
                from = 0;
            }
            None => from = start + 1,
        }
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// Where a placeholder ends; `None` when the bracket is just a bracket.
fn hole_end(inside: &str) -> Option<usize> {
    if inside.starts_with("anyorder ") {
        return inside.find("]>").map(|at| at + 1);
    }
    let end = inside.find('>')?;
    let word = &inside[..end];
    let kind = word.split([':', ' ', '*']).next()?;
    (MADE.contains(&kind) || kind == "token" || repeated(word).is_some()).then_some(end)
}

/// `x*100`: a character and how often.
fn repeated(word: &str) -> Option<String> {
    let (text, times) = word.split_once('*').filter(|(text, _)| text.chars().count() == 1)?;
    times.parse().ok().map(|times| text.repeat(times))
}

/// Fills in what is sent: tokens, repetitions and what was captured.
pub(crate) fn fill(text: &str, captured: &Captured, unix_ms: u64) -> Result<String, String> {
    let mut filled = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Hole(hole) => match hole.strip_prefix("token ") {
                Some(claims) => filled.push_str(&token(claims.split_whitespace(), unix_ms)?),
                None => match repeated(hole).or_else(|| captured.get(hole).cloned()) {
                    Some(text) => filled.push_str(&text),
                    None => return Err(format!("<{hole}> is not known yet")),
                },
            },
        }
    }
    Ok(filled)
}

/// Compares; what named placeholders stood for is captured.
pub(crate) fn matches(pattern: &str, actual: &str, captured: &mut Captured) -> bool {
    let mut seen = Captured::new();
    let mut rest = actual;
    for piece in pieces(pattern) {
        let length = match piece {
            Piece::Text(text) => rest.starts_with(text).then_some(text.len()),
            Piece::Hole(hole) => hole_length(hole, rest, captured, &mut seen),
        };
        let Some(length) = length else { return false };
        rest = &rest[length..];
    }
    if rest.is_empty() {
        captured.extend(seen);
    }
    rest.is_empty()
}

/// How much of `rest` the placeholder stands for.
fn hole_length(hole: &str, rest: &str, captured: &Captured, seen: &mut Captured) -> Option<usize> {
    if let Some(list) = hole.strip_prefix("anyorder ") {
        return same_members(list, rest);
    }
    if let Some(text) = repeated(hole) {
        return rest.starts_with(&text).then_some(text.len());
    }
    let kind = hole.split(':').next()?;
    let length = match kind {
        "sid" => 20,
        "uuid7" => 36,
        _ => 24,
    };
    let text = rest.get(..length)?;
    if let Some(known) = captured.get(hole).or_else(|| seen.get(hole)) {
        return (known == text).then_some(length);
    }
    let fits = match kind {
        "sid" => text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'),
        "uuid7" => uuid::Uuid::parse_str(text).is_ok_and(|id| id.get_version_num() == 7),
        _ => is_time(text),
    };
    if fits && hole.contains(':') {
        seen.insert(hole.into(), text.into());
    }
    fits.then_some(length)
}

/// `2024-01-01T00:00:00.000Z`.
fn is_time(text: &str) -> bool {
    text.bytes().zip(b"0000-00-00T00:00:00.000Z").all(|(byte, shape)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == *shape })
}

/// Length of the JSON list that begins `rest`, if it has just the members of `list`.
fn same_members(list: &str, rest: &str) -> Option<usize> {
    let sorted = |list: Value| {
        let mut members: Vec<String> = list.as_array()?.iter().map(Value::to_string).collect();
        members.sort();
        Some(members)
    };
    let wanted = sorted(serde_json::from_str(list).ok()?)?;
    let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let actual = sorted(stream.next()?.ok()?)?;
    (wanted == actual).then(|| stream.byte_offset())
}

/// A token of claims like `sub=alice rooms=a,b exp=+10s`; values with commas, and those of the list claims, are lists.
pub(crate) fn token<'a>(claims: impl Iterator<Item = &'a str>, unix_ms: u64) -> Result<String, String> {
    let mut object = serde_json::Map::new();
    for claim in claims {
        let (name, value) = claim.split_once('=').ok_or_else(|| format!("a claim is name=value: {claim}"))?;
        let value = match name {
            "rooms" | "groups" | "documents" | "blocked" => value.split(',').filter(|id| !id.is_empty()).collect(),
            "exp" | "nbf" => date(value, unix_ms).ok_or_else(|| format!("not a time: {value}"))?,
            _ => Value::from(value),
        };
        object.insert(name.into(), value);
    }
    Ok(host::token(&Value::Object(object)))
}

/// `+10s` or `-10s` from now, as seconds since 1970.
fn date(value: &str, unix_ms: u64) -> Option<Value> {
    let seconds: i64 = value.strip_suffix('s')?.parse().ok()?;
    Some(Value::from(unix_ms as i64 / 1_000 + seconds))
}

/// Puts placeholders where the server's own inventions stand, for blessing.
pub(crate) fn generalise(text: &str, captured: &Captured) -> String {
    let mut general = text.to_owned();
    for (hole, value) in captured {
        general = general.replace(value, &format!("<{hole}>"));
    }
    let mut at = 0;
    while let Some(quote) = general[at..].find('"').map(|found| at + found + 1) {
        let inside = &general[quote..];
        let made = if inside.get(..24).is_some_and(is_time) {
            Some(("<time>", 24))
        } else if inside.get(..36).is_some_and(|text| uuid::Uuid::parse_str(text).is_ok()) {
            Some(("<uuid7>", 36))
        } else if general[..quote].ends_with(r#""sid":""#) {
            inside.find('"').map(|end| ("<sid>", end))
        } else {
            None
        };
        if let Some((hole, length)) = made.filter(|_| !inside.starts_with('<')) {
            general.replace_range(quote..quote + length, hole);
        }
        at = quote;
    }
    general
}
