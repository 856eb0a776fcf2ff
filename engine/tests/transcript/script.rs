//! The lines of a transcript. It reads them; it runs nothing.

/// One line with what it means.
pub(crate) struct Line<'a> {
    /// Counting from 1.
    pub(crate) number: usize,
    pub(crate) meaning: Meaning<'a>,
}

pub(crate) enum Meaning<'a> {
    /// A comment, an empty line, or a header that belongs to the line before.
    Nothing,
    /// Something happens: everything received before it must have been expected.
    Deed(Deed<'a>),
    /// Somebody has received something.
    Expect(Expect<'a>),
}

pub(crate) enum Deed<'a> {
    /// `endpoint`, `shards`, `limits`, `origins`, `proxies`, `leeway`, `socket.io`: how the host is set up.
    Setting {
        word: &'a str,
        rest: &'a str,
    },
    /// A client's request, with the headers of the lines after it.
    Connects {
        who: &'a str,
        rest: &'a str,
        headers: Vec<&'a str>,
    },
    /// A plain HTTP request.
    Requests {
        who: &'a str,
        rest: &'a str,
        headers: Vec<&'a str>,
    },
    /// A TCP connection, and nothing said yet.
    Opens {
        who: &'a str,
        rest: &'a str,
    },
    Says {
        who: &'a str,
        what: &'a str,
    },
    /// How much the client's socket takes.
    Reads {
        who: &'a str,
        what: &'a str,
    },
    HangsUp {
        who: &'a str,
    },
    Passes {
        ms: u64,
    },
    Kicks {
        whom: &'a str,
    },
    Asks {
        what: &'a str,
    },
    Emits {
        what: &'a str,
    },
    /// The back end puts a user into a room, or takes him out.
    Grants {
        what: &'a str,
        is_member: bool,
    },
    Drain {
        ms: u64,
    },
}

pub(crate) struct Expect<'a> {
    /// `admin` for answers to the back end.
    pub(crate) who: &'a str,
    pub(crate) what: Wanted<'a>,
    /// How often in a row.
    pub(crate) times: usize,
}

/// What a client has received.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// A text message.
    Text(&'a str),
    /// Anything else, in the words of a line: `ping`, `closed 1001`.
    Other(&'a str),
}

const SETTINGS: [&str; 7] = ["endpoint", "shards", "limits", "origins", "proxies", "leeway", "socket.io"];

pub(crate) fn read(text: &str) -> Result<Vec<Line<'_>>, String> {
    let raw: Vec<&str> = text.lines().collect();
    let mut lines = Vec::new();
    for (index, line) in raw.iter().enumerate() {
        let headers = raw[index + 1..].iter().take_while(|next| next.starts_with("  ")).map(|header| header.trim()).collect();
        let meaning = read_line(line, headers).map_err(|what| format!("{}: {what}: {line}", index + 1))?;
        lines.push(Line { number: index + 1, meaning });
    }
    Ok(lines)
}

fn read_line<'a>(line: &'a str, headers: Vec<&'a str>) -> Result<Meaning<'a>, &'static str> {
    if line.trim().is_empty() || line.starts_with('#') || line.starts_with("  ") {
        return Ok(Meaning::Nothing);
    }
    if let Some(time) = line.strip_prefix('+') {
        return Ok(Meaning::Deed(Deed::Passes { ms: milliseconds(time).ok_or("not a time")? }));
    }
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if let Some(who) = word.strip_suffix('>') {
        return Ok(Meaning::Deed(Deed::Says { who, what: rest }));
    }
    if word.ends_with('<') {
        let (who, what) = line.split_at(word.len() - 1);
        let (times, what) = repetition(what).unwrap_or((1, what.strip_prefix("< ").unwrap_or_default()));
        return Ok(Meaning::Expect(Expect { who, what: Wanted::Text(what), times }));
    }
    if SETTINGS.contains(&word) {
        return Ok(Meaning::Deed(Deed::Setting { word, rest }));
    }
    let (verb, tail) = rest.split_once(' ').unwrap_or((rest, ""));
    let deed = match (word, verb) {
        ("drain", _) => Deed::Drain { ms: milliseconds(rest).ok_or("not a time")? },
        ("admin", "kicks") => Deed::Kicks { whom: tail },
        ("admin", "asks") => Deed::Asks { what: tail },
        ("admin", "emits") => Deed::Emits { what: tail },
        ("admin", "grants") => Deed::Grants { what: tail, is_member: true },
        ("admin", "revokes") => Deed::Grants { what: tail, is_member: false },
        ("admin", "gets") => return Ok(Meaning::Expect(Expect { who: word, what: Wanted::Other(rest), times: 1 })),
        (who, "connects") => Deed::Connects { who, rest: tail, headers },
        (who, "requests") => Deed::Requests { who, rest: tail, headers },
        (who, "opens") => Deed::Opens { who, rest: tail },
        (who, "reads") => Deed::Reads { who, what: tail },
        (who, "hangs") => Deed::HangsUp { who },
        (_, "silent") => return Ok(Meaning::Nothing),
        (who, "ping" | "pong" | "closed" | "reset" | "ends" | "http" | "handed") => {
            return Ok(Meaning::Expect(Expect { who, what: Wanted::Other(rest), times: 1 }));
        }
        _ => return Err("not understood"),
    };
    Ok(Meaning::Deed(deed))
}

/// The number of `< 5 times text`.
fn repetition(what: &str) -> Option<(usize, &str)> {
    let (times, text) = what.strip_prefix("< ")?.split_once(" times ")?;
    Some((times.parse().ok()?, text))
}

/// `10s` or `500ms`.
pub(crate) fn milliseconds(text: &str) -> Option<u64> {
    match text.strip_suffix("ms") {
        Some(number) => number.parse().ok(),
        None => text.strip_suffix('s')?.parse::<u64>().ok().map(|seconds| seconds * 1_000),
    }
}
