//! One short line per event on standard error. Under systemd each line begins with its priority as sd-daemon(3) writes it, so that the
//! journal can filter; on a terminal it does not. No line carries a token, a message or anything else that belongs to a user.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;

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

/// Writes one line. Who reads standard error may have gone; logging is no reason to stop.
fn line(priority: u8, text: &dyn Display) {
    static JOURNAL: OnceLock<bool> = OnceLock::new();
    let journal = *JOURNAL.get_or_init(|| std::env::var_os("JOURNAL_STREAM").is_some());
    let _ = std::io::stderr().lock().write_all(formatted(journal, priority, text).as_bytes());
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
