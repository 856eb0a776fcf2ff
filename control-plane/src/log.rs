//! One short line per event on standard error. Under systemd each line begins with its priority as sd-daemon(3) writes it, so that the
//! journal can filter; on a terminal it does not. No line carries a token, a message or anything else that belongs to a user.
//!
//! A thread of its own writes them: standard error may be a pipe that nobody reads any more, or a disk that hangs, and neither HTTP nor a stop
//! waits for those. What finds no place is counted, and the next line that is written is followed by the count.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

/// Lines that wait to be written: more than a bad minute brings.
const LINES_WAITING_MAX: usize = 1_024;
/// How long the end of the process waits for the last lines.
const LAST_LINES_WAIT: Duration = Duration::from_millis(500);

static QUEUED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

/// Something is broken and somebody has to act.
pub fn error(text: impl Display) {
    line(3, &text);
}

/// Something works less well than it should.
pub fn warning(text: impl Display) {
    line(4, &text);
}

/// What an operator expects to find afterwards.
pub fn info(text: impl Display) {
    line(6, &text);
}

/// Waits until everything is written, for a moment at most: before the process ends, or becomes another.
pub fn flush() {
    let end = Instant::now() + LAST_LINES_WAIT;
    while WRITTEN.load(Relaxed) < QUEUED.load(Relaxed) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn line(priority: u8, text: &dyn Display) {
    static JOURNAL: OnceLock<bool> = OnceLock::new();
    static LINES: OnceLock<Option<Sender<String>>> = OnceLock::new();
    let journal = *JOURNAL.get_or_init(|| std::env::var_os("JOURNAL_STREAM").is_some());
    let text = formatted(journal, priority, text);
    // Where no thread can be had the process is about to end for want of others.
    let Some(lines) = LINES.get_or_init(start_writer) else { return write(&text) };
    let count = if lines.try_send(text).is_ok() { &QUEUED } else { &LOST };
    count.fetch_add(1, Relaxed);
}

fn start_writer() -> Option<Sender<String>> {
    let (lines, queue) = crossbeam_channel::bounded(LINES_WAITING_MAX);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&queue)).ok()?;
    Some(lines)
}

fn write_all(lines: &Receiver<String>) {
    for line in lines {
        write(&line);
        WRITTEN.fetch_add(1, Relaxed);
        let lost = LOST.swap(0, Relaxed);
        if lost > 0 {
            warning(format_args!("{lost} lines of this log found no place"));
        }
    }
}

/// Who reads standard error may have gone; logging is no reason to stop.
fn write(line: &str) {
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Text with a line break in it stays one line: a name from outside must not be able to forge a second one.
fn formatted(journal: bool, priority: u8, text: &dyn Display) -> String {
    let text = text.to_string().replace(|character: char| character.is_control(), " ");
    if journal { format!("<{priority}>{text}\n") } else { format!("uringcast: {text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(formatted(true, 6, &"a\n<0>b"), "<6>a <0>b\n");
        assert_eq!(formatted(false, 6, &"plain"), "uringcast: plain\n");
    }
}
