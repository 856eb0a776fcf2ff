//! Tells on stderr what is being done and how long the rest will take: a bar on a terminal, a line per run elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The progress of a comparison, in units of expected time.
pub(crate) struct Progress {
    /// Hidden where stderr is no terminal.
    bar: ProgressBar,
    is_terminal: bool,
    started: Instant,
    done: Duration,
    total: Duration,
}

impl Progress {
    /// `total` is what all runs are expected to take.
    pub(crate) fn start(total: Duration) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total.as_millis() as u64), target);
        // A template of ours that is wrong only costs the bar its looks.
        let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Self { bar, is_terminal, started: Instant::now(), done: Duration::ZERO, total }
    }

    /// A run begins.
    pub(crate) fn begin(&self, what: &str) {
        self.bar.set_message(format!("{what}, {} left", in_words(self.left())));
    }

    /// A run that was expected to take `expected` has ended as told.
    pub(crate) fn end(&mut self, expected: Duration, told: &str) {
        self.done += expected;
        self.bar.set_position(self.done.as_millis() as u64);
        if self.is_terminal {
            self.bar.println(told);
        } else {
            let percent = 100 * self.done.as_millis() / self.total.as_millis().max(1);
            eprintln!("[{percent:>3} %, {} left] {told}", in_words(self.left()));
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn left(&self) -> Duration {
        left(self.started.elapsed(), self.done, self.total)
    }
}

/// What the rest takes when it takes as much longer than expected as what is done did.
fn left(elapsed: Duration, done: Duration, total: Duration) -> Duration {
    let rest = total.saturating_sub(done);
    if done.is_zero() { rest } else { rest.mul_f64(elapsed.as_secs_f64() / done.as_secs_f64()) }
}

/// A length of time as a person would say it.
pub(crate) fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_what_was_done() {
        let seconds = Duration::from_secs;
        assert_eq!(left(seconds(5), seconds(0), seconds(100)), seconds(100));
        assert_eq!(left(seconds(20), seconds(10), seconds(100)), seconds(180));
        assert_eq!(left(seconds(20), seconds(100), seconds(100)), seconds(0));
        assert_eq!((in_words(seconds(89)), in_words(seconds(100))), ("89 s".into(), "2 min".into()));
    }
}
