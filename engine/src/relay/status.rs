//! What is told of the connection to Redis: that it is there, that it is not and why, and what Redis refuses. It decides what is a change worth
//! telling, so that neither attempts to connect nor a connection that comes and goes fill anybody's log. It has no clock and sends nothing.

use std::collections::VecDeque;
use std::fmt;

use super::request::Reply;
use crate::limits::{RELAY_REASON_CHARS_MAX, RELAY_REASONS_MAX, RELAY_REFUSAL_AGAIN_MS, RELAY_STATES_EVERY_MS};

/// How the relay does ([`crate::Notice::Relay`]). No text of it repeats a password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RelayState {
    /// Redis is reached: messages pass between hosts.
    Up,
    /// It is not, and is tried again until it is. What is said here meanwhile stays on this host, or waits.
    Down {
        /// Why, for people.
        reason: String,
    },
    /// It is reached, and refuses something for want of permission, of memory, or because it is too old.
    Refused {
        /// Its words.
        reason: String,
    },
}

/// First words of refusals that an operator can do something about; all others have been reckoned with by whoever asked.
const OPERATORS: [&str; 6] = ["NOPERM", "NOAUTH", "OOM", "READONLY", "MISCONF", "ERR"];

/// The words of a refusal that an operator should see.
pub(super) fn complaint(reply: &Reply) -> Option<&str> {
    let text = reply.error()?;
    let code = text.split(' ').next().unwrap_or_default();
    // Of the nameless errors only the one of an old Redis.
    (OPERATORS.contains(&code) && (code != "ERR" || text.starts_with("ERR unknown command"))).then_some(text)
}

/// What has been told, and what is to be.
#[derive(Default, Debug)]
pub(super) struct Status {
    /// How it is now; `None` before the first attempt has come to an end.
    now: Option<RelayState>,
    told: Option<RelayState>,
    /// When that was, monotonic milliseconds.
    told_ms: Option<u64>,
    /// Reasons that were told since it was up last.
    reasons: Vec<String>,
    /// Refusals that wait to be told.
    refusals: VecDeque<String>,
    /// Those that were told lately, and when.
    refused: VecDeque<(u64, String)>,
}

impl Status {
    pub(super) fn up(&mut self) {
        self.now = Some(RelayState::Up);
    }

    pub(super) fn down(&mut self, reason: impl fmt::Display) {
        let reason = short(&reason.to_string());
        let is_new = !self.reasons.contains(&reason) && self.reasons.len() < RELAY_REASONS_MAX;
        // The first reason counts whatever it is; another one only when that has been told, and if it has not been itself.
        if !matches!(self.now, Some(RelayState::Down { .. })) || (is_new && self.now == self.told) {
            self.now = Some(RelayState::Down { reason });
        }
    }

    /// Redis refused something at that time, with these words.
    pub(super) fn refused(&mut self, now_ms: u64, text: &str) {
        self.refused.retain(|(told_ms, _)| now_ms.saturating_sub(*told_ms) < RELAY_REFUSAL_AGAIN_MS);
        let text = short(text);
        if self.refused.len() < RELAY_REASONS_MAX && self.refused.iter().all(|(_, told)| *told != text) {
            self.refused.push_back((now_ms, text.clone()));
            self.refusals.push_back(text);
        }
    }

    /// What is to be told at that time. It comes again until [`Self::told`] says that it was.
    #[must_use]
    pub(super) fn poll(&self, now_ms: u64) -> Option<RelayState> {
        let is_time = self.told_ms.is_none_or(|told_ms| now_ms.saturating_sub(told_ms) >= RELAY_STATES_EVERY_MS);
        let state = self.now.as_ref().filter(|now| is_time && self.told.as_ref() != Some(*now));
        // A refusal is of a connection that was told.
        state.cloned().or_else(|| self.refusals.front().map(|reason| RelayState::Refused { reason: reason.clone() }))
    }

    /// That this was told at that time.
    pub(super) fn told(&mut self, now_ms: u64, state: RelayState) {
        match &state {
            RelayState::Up => self.reasons.clear(),
            RelayState::Down { reason } => self.reasons.push(reason.clone()),
            RelayState::Refused { .. } => {
                self.refusals.pop_front();
                return;
            }
        }
        (self.told, self.told_ms) = (Some(state), Some(now_ms));
    }
}

fn short(text: &str) -> String {
    text.chars().take(RELAY_REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(status: &mut Status, now_ms: u64) -> Option<RelayState> {
        let state = status.poll(now_ms)?;
        status.told(now_ms, state.clone());
        Some(state)
    }

    fn down(reason: &str) -> Option<RelayState> {
        Some(RelayState::Down { reason: reason.to_owned() })
    }

    #[test]
    fn an_outage_is_told_once_with_each_of_its_reasons() {
        let mut status = Status::default();
        assert_eq!(status.poll(0), None, "nothing has been tried");
        for (now_ms, reason, expected) in [
            (0, "refused", down("refused")),
            (100, "refused", None),
            (200, "wrong password", None),
            (1_000, "wrong password", down("wrong password")),
            (2_000, "refused", None),
            (5_000, "wrong password", None),
        ] {
            status.down(reason);
            assert_eq!(take(&mut status, now_ms), expected, "{now_ms}");
        }
        status.up();
        assert_eq!((take(&mut status, 6_000), take(&mut status, 7_000)), (Some(RelayState::Up), None));
        status.down("refused");
        assert_eq!(take(&mut status, 8_000), down("refused"), "another outage");
        for number in 0..100 {
            status.down(number);
            let _ = take(&mut status, 10_000 + number * 1_000);
        }
        assert_eq!(status.reasons.len(), RELAY_REASONS_MAX);
    }

    #[test]
    fn what_comes_and_goes_is_told_once_a_second_as_it_is() {
        let mut status = Status::default();
        status.up();
        assert_eq!(take(&mut status, 0), Some(RelayState::Up));
        status.down("closed");
        assert_eq!(take(&mut status, 10), None);
        status.up();
        assert_eq!(take(&mut status, 1_000), None, "it is as it was told");
        status.down("closed");
        assert_eq!(take(&mut status, 1_100), down("closed"));
        status.up();
        assert_eq!(take(&mut status, 2_100), Some(RelayState::Up));
        status.down("closed");
        status.down("refused");
        assert_eq!((take(&mut status, 2_200), take(&mut status, 3_100)), (None, down("closed")), "how it began");
        // Somebody has no place for it: it comes again.
        status.up();
        assert_eq!((status.poll(4_100), status.poll(4_200)), (Some(RelayState::Up), Some(RelayState::Up)));
    }

    #[test]
    fn refusals_are_told_once_in_a_while_and_not_without_bound() {
        let mut status = Status::default();
        let refused = |text: &str| Some(RelayState::Refused { reason: text.to_owned() });
        status.up();
        for text in ["NOPERM a", "NOPERM b", "NOPERM a"] {
            status.refused(0, text);
        }
        let told = [take(&mut status, 0), take(&mut status, 0), take(&mut status, 0), take(&mut status, 0)];
        assert_eq!(told, [Some(RelayState::Up), refused("NOPERM a"), refused("NOPERM b"), None]);
        status.refused(RELAY_REFUSAL_AGAIN_MS, "NOPERM a");
        assert_eq!(take(&mut status, RELAY_REFUSAL_AGAIN_MS), refused("NOPERM a"));
        for number in 0..100 {
            status.refused(RELAY_REFUSAL_AGAIN_MS + 1, &format!("NOPERM {number}"));
        }
        assert_eq!(status.refusals.len(), RELAY_REASONS_MAX - 1);
        status.refused(9 * RELAY_REFUSAL_AGAIN_MS, &"x".repeat(100_000));
        assert_eq!(status.refused.back().map(|(_, text)| text.len()), Some(RELAY_REASON_CHARS_MAX));
    }

    #[test]
    fn only_what_an_operator_can_mend_is_told() {
        let error = |text: &str| Reply::Error(text.to_owned());
        for text in ["NOPERM this user has no permissions", "OOM command not allowed", "ERR unknown command 'SPUBLISH', with args"] {
            assert_eq!(complaint(&error(text)), Some(text));
        }
        for other in [error("NOSCRIPT no matching script"), error("ERR value is not an integer"), error(""), Reply::Nil] {
            assert_eq!(complaint(&other), None, "{other:?}");
        }
    }
}
