//! Watches over what comes from Redis before it is parsed: a state machine over RESP's heads that refuses a value with more bytes or
//! parts, or deeper, than any real answer has. It keeps nothing of the bytes, and knows neither connection nor meaning.
//!
//! The parser behind it buffers a value until it is complete, whatever size its head promises, so somebody has to look at the head.

use crate::limits::{REDIS_DEPTH_MAX, REDIS_LINE_BYTES_MAX, REDIS_PARTS_MAX, REDIS_REPLY_BYTES_MAX};

/// What no real Redis sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hostile;

/// Where in a value the bytes have come to.
#[derive(Debug, Default)]
pub(super) struct Guard {
    state: State,
    /// Values still to come at each level; empty between two values.
    open: Vec<u64>,
    /// Bytes of the value that is not complete yet.
    bytes: usize,
    /// Its parts, all levels together.
    parts: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// The next byte says what comes.
    #[default]
    Type,
    /// In a head's number: what it is of, its sign and digits so far, how long it is.
    Count { of: u8, is_negative: bool, value: u64, length: usize },
    /// In a line that ends with a line feed.
    Line { length: usize },
    /// In a value's bytes with their end of line.
    Bulk { left: u64 },
}

impl Guard {
    /// Goes over what has come next.
    ///
    /// # Errors
    ///
    /// When it is too much; the connection is of no use then.
    pub(super) fn check(&mut self, bytes: &[u8]) -> Result<(), Hostile> {
        let mut at = 0;
        while at < bytes.len() {
            let taken = match self.state {
                State::Bulk { left } => {
                    let taken = left.min((bytes.len() - at) as u64);
                    self.state = State::Bulk { left: left - taken };
                    if taken == left {
                        self.value_ends();
                    }
                    taken as usize
                }
                State::Line { length } => match bytes[at..].iter().position(|byte| *byte == b'\n') {
                    Some(end) if length + end <= REDIS_LINE_BYTES_MAX => {
                        self.value_ends();
                        end + 1
                    }
                    None if length + bytes.len() - at <= REDIS_LINE_BYTES_MAX => {
                        self.state = State::Line { length: length + bytes.len() - at };
                        bytes.len() - at
                    }
                    _ => return Err(Hostile),
                },
                State::Type => {
                    self.begins(bytes[at])?;
                    1
                }
                State::Count { of, is_negative, value, length } => {
                    self.counts(bytes[at], of, is_negative, value, length)?;
                    1
                }
            };
            at += taken;
            // A value that has just ended is counted no more.
            if !matches!(self.state, State::Type) || !self.open.is_empty() {
                self.bytes += taken;
                if self.bytes > REDIS_REPLY_BYTES_MAX {
                    return Err(Hostile);
                }
            }
        }
        Ok(())
    }

    fn begins(&mut self, of: u8) -> Result<(), Hostile> {
        self.state = match of {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => State::Line { length: 0 },
            b'$' | b'!' | b'=' | b'*' | b'~' | b'>' | b'%' | b'|' => State::Count { of, is_negative: false, value: 0, length: 0 },
            _ => return Err(Hostile),
        };
        Ok(())
    }

    fn counts(&mut self, byte: u8, of: u8, is_negative: bool, value: u64, length: usize) -> Result<(), Hostile> {
        match byte {
            b'-' if length == 0 => self.state = State::Count { of, is_negative: true, value, length: 1 },
            b'0'..=b'9' if length < 12 => {
                let value = value * 10 + u64::from(byte - b'0');
                self.state = State::Count { of, is_negative, value, length: length + 1 };
            }
            b'\r' => {}
            b'\n' if is_negative => match (of, value) {
                // RESP2's nothing.
                (b'$' | b'*', 1) => self.value_ends(),
                _ => return Err(Hostile),
            },
            b'\n' if matches!(of, b'$' | b'!' | b'=') => {
                if value > REDIS_REPLY_BYTES_MAX as u64 {
                    return Err(Hostile);
                }
                self.state = State::Bulk { left: value + 2 };
            }
            b'\n' => {
                let parts = match of {
                    b'%' => value * 2,
                    // An attribute stands before the value that it belongs to.
                    b'|' => value * 2 + 1,
                    _ => value,
                };
                self.parts += parts;
                if self.parts > REDIS_PARTS_MAX || self.open.len() >= REDIS_DEPTH_MAX {
                    return Err(Hostile);
                }
                self.state = State::Type;
                if parts == 0 {
                    self.value_ends();
                } else {
                    self.open.push(parts);
                }
            }
            _ => return Err(Hostile),
        }
        Ok(())
    }

    /// A value is complete, and with it those whose last part it was.
    fn value_ends(&mut self) {
        self.state = State::Type;
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.open.pop();
        }
        (self.bytes, self.parts) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All at once and byte by byte say the same.
    fn said(bytes: &[u8]) -> Result<(), Hostile> {
        let whole = Guard::default().check(bytes);
        let mut guard = Guard::default();
        let split = bytes.chunks(1).try_for_each(|byte| guard.check(byte));
        assert_eq!(whole, split);
        if whole.is_ok() {
            assert_eq!((guard.open.len(), guard.bytes, guard.parts), (0, 0, 0), "{:?}", String::from_utf8_lossy(bytes));
        }
        whole
    }

    #[test]
    fn what_redis_says_goes_through() {
        for text in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":-5\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "$0\r\n\r\n",
            "$5\r\na\r\nbc\r\n",
            "*0\r\n",
            "*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
            ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n",
            "%1\r\n+a\r\n*0\r\n",
            "|1\r\n+ttl\r\n:3\r\n+OK\r\n",
            "~1\r\n_\r\n",
            ",1.5\r\n#t\r\n(123\r\n=7\r\ntxt:abc\r\n!5\r\nERR x\r\n",
        ] {
            assert_eq!(said(text.as_bytes()), Ok(()), "{text:?}");
        }
    }

    #[test]
    fn what_nobody_says_does_not() {
        let deep = "*1\r\n".repeat(REDIS_DEPTH_MAX + 1);
        let mut long = vec![b'+'];
        long.resize(REDIS_LINE_BYTES_MAX + 3, b'a');
        let wide = format!("*{}\r\n", REDIS_PARTS_MAX + 1);
        let large = format!("${}\r\n", REDIS_REPLY_BYTES_MAX + 1);
        for bytes in [
            deep.as_bytes(),
            &long,
            wide.as_bytes(),
            large.as_bytes(),
            b"HTTP/1.1 400 Bad Request\r\n",
            b"$-2\r\n",
            b"!-1\r\n",
            b"%-1\r\n",
            b"$99999999999999999999\r\n",
            b"*9223372036854775807\r\n",
            b"$5x\r\n",
        ] {
            assert_eq!(said(bytes), Err(Hostile), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
    }

    #[test]
    fn many_small_parts_are_too_much_together() {
        let mut guard = Guard::default();
        let mut text = String::from("*1000\r\n");
        text.push_str(&format!("*{}\r\n", REDIS_PARTS_MAX - 1_000));
        assert_eq!(guard.check(text.as_bytes()), Ok(()));
        assert_eq!(guard.check(b"*1\r\n"), Err(Hostile));
    }
}
