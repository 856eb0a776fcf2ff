//! The architecture's absences, read from the source as text: who may import whom, and which words belong to one file alone. What
//! `ARCHITECTURE.md` says under "What does not know what" is what is checked here; a failure prints file and line of every offence.
//!
//! Comments, texts and the unit tests at the bottom of a file do not count: what is told or tried there ties nothing together.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms, each with the rooms that it must not import. Files directly in `src` that are no room are words that all rooms share.
const ROOMS: [(&str, &[&str]); 8] = [
    ("wire", &["dialect", "shard", "mesh", "relay", "driver", "calls", "reload"]),
    ("dialect", &["shard", "mesh", "relay", "driver", "calls", "reload"]),
    ("shard", &["mesh", "relay", "driver", "calls", "reload"]),
    ("mesh", &["dialect", "relay", "driver", "calls", "reload"]),
    ("relay", &["driver", "calls", "reload"]),
    // It has the clock of the shards, and their lanes, which carry sockets as well.
    ("relay/thread", &[]),
    ("relay/format", &["dialect", "shard", "mesh", "relay", "driver", "calls", "reload"]),
    ("shared", &["dialect", "shard", "mesh", "relay", "driver", "calls", "reload"]),
];

/// Words, and where alone they may stand: a file, or a folder with its slash.
const WORDS: [(&[&str], &[&str]); 17] = [
    (&["monoio", "io_uring", "io_uring_06", "UdpSocket", "SystemTime"], &["driver/"]),
    // The relay's thread has a runtime and sockets of its own, all in one file.
    (&["TcpStream", "UnixStream"], &["driver/", "relay/link.rs"]),
    (&["redis::", "tokio_rustls"], &["relay/link.rs"]),
    // The front door binds the listeners and takes the zero of the monotonic clock.
    (&["TcpListener", "OwnedFd"], &["driver/", "lib.rs", "reload.rs"]),
    (&["socket2"], &["driver/", "lib.rs", "relay/link.rs"]),
    (&["Instant"], &["driver/", "lib.rs", "calls.rs", "reload.rs", "relay/thread.rs"]),
    (&["rand::random"], &["lib.rs"]),
    // What threads of the embedding program wait with; no shard does.
    (&["std::thread"], &["lib.rs", "calls.rs", "reload.rs", "driver/farewell.rs"]),
    (&["rand::rng", "SysRng", "OsRng", "thread_rng"], &[]),
    (&["jsonwebtoken"], &["auth/"]),
    // TLS to Redis is told to use the cryptography that tokens are verified with.
    (&["aws_lc_rs"], &["auth/", "relay/link.rs"]),
    (
        &[".await", "async"],
        &["driver/", "relay/link.rs", "relay/cluster.rs", "relay/lane.rs", "relay/reader.rs", "relay/thread.rs", "relay/thread/"],
    ),
    (&["Mutex"], &["calls.rs"]),
    (&["RwLock", "Condvar"], &[]),
    (&["unsafe"], &["driver/sys.rs", "driver/poller.rs"]),
    // `std::fs::File` is how the eventfd of a lane is held; nothing opens one.
    (&["std::env", "env!", "File::open", "File::create", "File::options", "OpenOptions", "fs::read", "fs::write"], &[]),
    (&["println!", "eprintln!", "print!", "eprint!", "log", "tracing"], &[]),
];

#[test]
fn the_engine_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 30, "only {} files under {}", files.len(), root.display());
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is readable text");
        let name = file.strip_prefix(&root).expect("it was found under the root").display().to_string();
        found.extend(offences(&name, &text).into_iter().map(|(line, what)| format!("engine/src/{name}:{line}: {what}")));
    }
    assert!(found.is_empty(), "{} offences\n{}", found.len(), found.join("\n"));
}

/// A rule that never bites is no rule.
#[test]
fn every_rule_bites() {
    let bites = |file: &str, line: &str| {
        let found = offences(file, &format!("//! A file.\n\n{line}\n"));
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3], "{file}: {line} gives {found:?}");
    };
    bites("wire/ws.rs", "use crate::shard::Shard;");
    bites("dialect/rooms.rs", "use crate::{ids::Room, shard::parcel::{Enter, Leave}};");
    bites("dialect/mod.rs", "use super::shard::Shard;");
    bites("shard/home.rs", "fn f() { super::super::driver::run(); }");
    bites("shard/home.rs", "use crate::Notice;");
    bites("relay/core/asking.rs", "use super::super::super::driver::run;");
    bites("mesh.rs", "use crate::shard::Shard;");
    bites("wire/sio.rs", "use crate::relay::format;");
    bites("shard/mod.rs", "use crate::relay::format;");
    bites("mesh.rs", "use crate::relay::format;");
    bites("config.rs", "use crate::relay::format;");
    bites("relay/mod.rs", "use crate::driver::run;");
    bites("relay/format/classic.rs", "use crate::shard::parcel::Parcel;");
    bites("relay/format/mod.rs", "use crate::dialect::Act;");
    bites("frame.rs", "use crate::dialect::Act;");
    bites("frame.rs", "use crate::dialect::OwnDialect;");
    bites("config.rs", "use crate::dialect::Act;");
    bites("shard/mod.rs", "let now = std::time::Instant::now();");
    bites("wire/http.rs", "use jsonwebtoken::decode;");
    bites("shard/mod.rs", "other.await");
    bites("lib.rs", "static TABLE: Mutex<u8> = Mutex::new(0);");
    bites("shard/mod.rs", "use crate::calls::Calls;");
    bites("calls.rs", "let address: TcpListener;");
    bites("driver/mod.rs", "unsafe { close(fd) };");
    bites("config.rs", "let path = std::env::var(name);");
    bites("config.rs", "let file = std::fs::File::open(path);");
    bites("dialect/collab.rs", "println!(\"here\");");

    let fits = |file: &str, line: &str| assert_eq!(offences(file, &format!("//! A file.\n\n{line}\n")), [], "{file}: {line}");
    fits("shard/mod.rs", "let text = \"unsafe \\\" Mutex\"; // crate::driver");
    fits("wire/ws.rs", "let quote = '\"'; let life: &'a str = r#\"a \" Mutex\"#; /* unsafe */");
    fits("shard/mod.rs", "use crate::{dialect::{self, Act}, wire::ws};\n\n#[cfg(test)]\nmod tests { use crate::driver::run; }");
    fits("mesh.rs", "use crate::shard::parcel::Parcel;");
    fits("relay/mod.rs", "use crate::{mesh::Port, shard::parcel::Parcel};");
    fits("relay/format/fields.rs", "use crate::{json::Value, wire::sio};");
    fits("config.rs", "pub use crate::dialect::OwnDialect;");
    fits("driver/mod.rs", "let unsafe_code = ready.readable(false).await;");
    assert_eq!(offences("ids.rs", "use std::fmt;\n"), [(1, "begins without a `//!` paragraph".into())]);
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a source folder is readable") {
        let path = entry.expect("its entries too").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Line and description of everything in a file that the rules forbid.
fn offences(file: &str, text: &str) -> Vec<(usize, String)> {
    let code = blanked(without_tests(text));
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push((0, "begins without a `//!` paragraph".to_owned()));
    }
    imports(file, &code, &mut found);
    words(file, &code, &mut found);
    let mut found: Vec<_> = found.into_iter().map(|(at, what)| (code[..at].matches('\n').count() + 1, what)).collect();
    found.sort();
    found.dedup();
    found
}

fn imports(file: &str, code: &str, found: &mut Vec<(usize, String)>) {
    let room = room_of(file);
    // The front door, the calls beside it and the driver are the rightmost: they may know everything.
    let Some((_, forbidden)) = ROOMS.iter().find(|(name, _)| *name == room) else { return };
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| stands_alone(code, *at, "crate")) {
        for path in heads(&code[at + "crate::".len()..]) {
            let first = path.split("::").next().unwrap_or_default();
            // An endpoint may be bound to a dialect of the embedding program, and is data that all rooms share.
            if file == "config.rs" && path == "dialect::OwnDialect" {
                continue;
            }
            if ["relay", "relay/thread"].contains(&room) && path == "Notice" {
                continue;
            }
            if forbidden.contains(&first) {
                found.push((at, format!("{room} imports {path}")));
            } else if first.starts_with(char::is_uppercase) || first == "start" {
                found.push((at, format!("{room} imports the front door's {first}")));
            } else if room == "mesh" && first == "shard" && !path.starts_with("shard::parcel") {
                found.push((at, format!("mesh knows of the shard only the parcel, not {path}")));
            }
        }
    }
    // Where `super` is the whole crate it would go around the rule above.
    let above = file.matches('/').count() - usize::from(file.ends_with("/mod.rs"));
    let around = &*"super::".repeat(above + 1);
    found.extend(code.match_indices(around).map(|(at, _)| (at, format!("{around} reaches the crate's root: write crate::"))));
}

fn room_of(file: &str) -> &str {
    for room in ["relay/format", "relay/thread"] {
        if file.starts_with(room) {
            return room;
        }
    }
    match file.split(['/', '.']).next() {
        Some(room @ ("wire" | "dialect" | "shard" | "mesh" | "relay" | "driver" | "lib" | "calls" | "reload")) => room,
        _ => "shared",
    }
}

/// The paths that a use tree begins with: `a::b::c` gives itself, `{a::{b, c}, d}` gives `a` and `d`.
fn heads(tree: &str) -> Vec<String> {
    let is_path = |c: &char| c.is_alphanumeric() || *c == '_' || *c == ':';
    let Some(group) = tree.strip_prefix('{') else { return vec![tree.chars().take_while(is_path).collect()] };
    let (mut heads, mut depth) = (vec![String::new()], 0);
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(String::new()),
            _ if depth == 0 && is_path(&c) => heads.last_mut().expect("never empty").push(c),
            _ => {}
        }
    }
    heads
}

fn words(file: &str, code: &str, found: &mut Vec<(usize, String)>) {
    let is_home = |home: &&str| if home.ends_with('/') { file.starts_with(*home) } else { file == *home };
    for (words, homes) in WORDS.iter().filter(|(_, homes)| !homes.iter().any(is_home)) {
        for word in *words {
            let places = code.match_indices(word).map(|(at, _)| at).filter(|at| stands_alone(code, *at, word));
            let only = if homes.is_empty() { "nowhere in the engine".to_owned() } else { format!("only in {}", homes.join(" and ")) };
            found.extend(places.map(|at| (at, format!("`{word}` stands {only}"))));
        }
    }
}

/// True exactly when the word is not a part of a longer one.
fn stands_alone(code: &str, at: usize, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let before = word.starts_with('.') || !code[..at].ends_with(part);
    before && (word.ends_with('!') || !code[at + word.len()..].starts_with(part))
}

/// The file without the unit tests at its bottom.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests").map_or(text, |at| &text[..=at])
}

/// The code with comments and the insides of texts and characters as spaces; every line stays where it is.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// Where the comment, text or character that begins at `at` ends; `at` itself when none begins there.
fn skipped(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let until = |mark: &[char], from: usize| {
        let end = rest[from.min(rest.len())..].windows(mark.len()).position(|window| window == mark);
        at + end.map_or(rest.len(), |end| from + end + mark.len())
    };
    let is_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match rest {
        ['/', '/', ..] => until(&['\n'], 2) - 1,
        ['/', '*', ..] => until(&['*', '/'], 2),
        ['r', '"' | '#', ..] if !is_word || chars[at - 1] == 'b' => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) != Some(&'"') {
                return at;
            }
            let mark: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            until(&mark, hashes + 2)
        }
        ['"', ..] => {
            let mut end = 1;
            while end < rest.len() && rest[end] != '"' {
                end += if rest[end] == '\\' { 2 } else { 1 };
            }
            (at + end + 1).min(chars.len())
        }
        ['\'', '\\', ..] => until(&['\''], 3),
        ['\'', _, '\'', ..] => at + 3,
        _ => at,
    }
}
