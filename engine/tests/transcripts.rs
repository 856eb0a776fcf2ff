//! Runs every dialogue under `tests/transcripts` against a host without sockets. A file is read by people who know no Rust; how it
//! is written is told in `tests/transcripts/README.md`.
//!
//! `URINGCAST_BLESS=1` writes what really came into the files; `TRANSCRIPT=part-of-a-path` runs only some of them.

mod host;
mod transcript;

use std::fs;
use std::path::{Path, PathBuf};

use transcript::play;

/// Of one transcript; what follows the first is often its consequence.
const FAILURES_SHOWN: usize = 5;

#[test]
fn every_transcript() {
    play_all(false);
}

/// What clients say and hear is the same when the process is replaced after each of their deeds.
#[test]
fn every_transcript_with_reloads() {
    play_all(true);
}

fn play_all(reloads: bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let only = std::env::var("TRANSCRIPT").unwrap_or_default();
    let bless = std::env::var_os("URINGCAST_BLESS").is_some() && !reloads;
    let mut files = files_under(&root);
    files.retain(|file| file.to_string_lossy().contains(&only));
    assert!(!files.is_empty(), "no transcript has {only} in its path");
    let mut failures = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("a readable transcript");
        let name = file.strip_prefix(&root).unwrap_or(file).display().to_string();
        let played = play::run(&name, &text, reloads);
        if bless && played.blessed != text {
            fs::write(file, played.blessed).expect("a writable transcript");
        }
        if let Some(first) = played.failures.get(..played.failures.len().min(FAILURES_SHOWN)).filter(|first| !first.is_empty()) {
            failures.push(format!("{}\n  {} differences in all", first.join("\n"), played.failures.len()));
        }
    }
    assert!(failures.is_empty(), "{} of {} transcripts differ\n\n{}", failures.len(), files.len(), failures.join("\n"));
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of transcripts") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The runner itself: what is wrong in a transcript is found, with its place.
mod runner {
    use super::play;

    const HEAD: &str = "endpoint collab /ws auth=none membership=open\na connects /ws?documentId=d&clientID=c\n";
    const CONNECTED: &str = r#"a< {"type":"connected","clientID":"c","documentId":"d"}"#;

    fn failures(tail: &str) -> Vec<String> {
        play::run("t", &format!("{HEAD}{tail}"), false).failures
    }

    #[test]
    fn a_true_transcript_passes() {
        assert_eq!(failures(&format!("{CONNECTED}\na> x\na< {{\"type\":\"error\",\"message\":\"Invalid message format\"}}\n")), [""; 0]);
    }

    #[test]
    fn a_missing_a_surplus_and_a_wrong_frame_are_found() {
        assert_eq!(failures("").len(), 1, "the greeting was not expected");
        assert_eq!(failures(&format!("{CONNECTED}\n{CONNECTED}\n")).len(), 1, "there is only one greeting");
        let wrong = failures(&CONNECTED.replace('d', "e"));
        assert!(wrong[0].starts_with("t:3:"), "{wrong:?}");
    }

    #[test]
    fn blessing_writes_what_came() {
        let blessed = play::run("t", &format!("{HEAD}a< wrong\na> x\n"), false).blessed;
        let told = r#"a< {"type":"error","message":"Invalid message format"}"#;
        assert_eq!(blessed, format!("{HEAD}{CONNECTED}\na> x\n{told}\n"));
    }
}
