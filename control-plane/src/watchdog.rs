//! systemd's watchdog (sd_watchdog_enabled(3)): says that the process lives, as long as every thread of the engine does. One that hangs is the
//! end of all that is said to it, and only a restart helps; so then nothing is said any more, and systemd restarts us.

use std::time::{Duration, Instant};

use engine::Worker;

use crate::lifecycle;
use crate::log;

/// The shortest silence that is not normal: an idle thread of the engine turns once a second.
const SILENCE_MIN: Duration = Duration::from_secs(2);

/// What is left of a watchdog: when it is to be fed next. A hang as long as its time is always survived, one and a half times as long never.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of systemd's time, as sd_watchdog_enabled(3) advises.
    every: Duration,
    next: Instant,
    /// True exactly when the last look was at a thread that hangs.
    hangs: bool,
}

impl Watchdog {
    /// The watchdog of this process, if systemd watches it.
    pub fn of_environment() -> Option<Watchdog> {
        let time = time(|name| std::env::var(name).ok(), std::process::id())?;
        Some(Watchdog { every: time / 2, next: Instant::now(), hangs: false })
    }

    /// To be called more often than it need be fed. `silence` says which thread has not turned for longest.
    pub fn look(&mut self, silence: impl FnOnce() -> (Worker, Duration)) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let (worker, silence) = silence();
        let hangs = silence > self.every.max(SILENCE_MIN);
        if !hangs {
            lifecycle::notify("WATCHDOG=1");
            self.next = now + self.every;
        }
        if std::mem::replace(&mut self.hangs, hangs) == hangs {
            return;
        }
        if hangs {
            let seconds = silence.as_secs_f32();
            log::error(format_args!("{worker} has not turned for {seconds:.1} s: unless it does, systemd's watchdog ends this process"));
        } else {
            log::warning("all threads turn again");
        }
    }
}

/// How long systemd waits for a word; `None` where it does not wait for this process.
fn time(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == own.to_string());
    let us = variable("WATCHDOG_USEC").filter(|_| is_ours)?.parse().ok().filter(|us| *us > 0)?;
    Some(Duration::from_micros(us))
}

#[cfg(test)]
mod tests {
    use engine::ids::ShardId;

    use super::*;

    #[test]
    fn only_this_process_is_watched() {
        let asked = |pid: Option<&str>, us: &str| {
            let variable = |name: &str| if name == "WATCHDOG_USEC" { Some(us.to_owned()) } else { pid.map(str::to_owned) };
            time(variable, 17)
        };
        assert_eq!(asked(Some("17"), "3000000"), Some(Duration::from_secs(3)));
        assert_eq!(asked(None, "3000000"), Some(Duration::from_secs(3)));
        assert_eq!(asked(Some("18"), "3000000"), None, "a parent's");
        assert_eq!((asked(None, "0"), asked(None, "soon")), (None, None));
        assert_eq!(time(|_| None, 17), None);
    }

    #[test]
    fn a_thread_that_hangs_is_not_spoken_for() {
        let hour = Duration::from_secs(3_600);
        let mut watchdog = Watchdog { every: hour, next: Instant::now(), hangs: false };
        watchdog.look(|| (Worker::Relay, hour * 2));
        assert!(watchdog.hangs && watchdog.next <= Instant::now(), "it looks again at once");
        watchdog.look(|| (Worker::Shard(ShardId(0)), Duration::from_secs(1)));
        assert!(!watchdog.hangs && watchdog.next > Instant::now() + hour / 2);
        watchdog.look(|| unreachable!("it was fed"));
    }
}
