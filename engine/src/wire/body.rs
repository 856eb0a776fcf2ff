//! Request bodies as they come, in whatever pieces: by their length, or in the chunks of HTTP/1.1. What could be read in two ways is a fault,
//! and everything is bounded: the data, and what chunks and trailers cost beyond it. Trailers are read and mean nothing here. Also gzip,
//! for bodies that go the other way.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use serde::{Deserialize, Serialize};

use super::http::Framing;

/// What is wrong with a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyFault {
    /// Its framing makes no sense.
    Malformed,
    /// Too much of it.
    TooBig,
}

/// A body that is being read. Its debug form shows no data.
#[derive(Clone, Serialize, Deserialize)]
pub struct Body {
    data: Vec<u8>,
    data_max: usize,
    /// Bytes that chunk sizes, line ends and trailers may still take.
    framing_left: usize,
    part: Part,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Part {
    /// So many bytes, and no more.
    Sized {
        left: usize,
    },
    /// The hexadecimal size of a chunk.
    Size {
        value: usize,
        digits: u8,
    },
    /// What a client may add to the size, up to the end of the line.
    Extension {
        value: usize,
    },
    /// The line feed after the size.
    SizeEnd {
        value: usize,
    },
    /// A chunk's data.
    Data {
        left: usize,
    },
    /// CR LF after the data.
    DataEnd {
        is_half: bool,
    },
    /// A line of the trailers; an empty one is the last.
    Trailer {
        is_empty: bool,
    },
    /// The line feed after that.
    TrailerEnd {
        is_last: bool,
    },
    Done,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("bytes", &self.data.len()).field("part", &self.part).finish_non_exhaustive()
    }
}

impl Body {
    /// A body of at most `data_max` bytes, and `framing_max` for what chunks cost beyond that.
    pub fn new(framing: Framing, data_max: usize, framing_max: usize) -> Result<Body, BodyFault> {
        let part = match framing {
            Framing::None | Framing::Sized(0) => Part::Done,
            Framing::Sized(length) if length > data_max => return Err(BodyFault::TooBig),
            Framing::Sized(left) => Part::Sized { left },
            Framing::Chunked => Part::Size { value: 0, digits: 0 },
            Framing::Unclear => return Err(BodyFault::Malformed),
        };
        Ok(Body { data: Vec::new(), data_max, framing_left: framing_max, part })
    }

    /// True exactly when all of it is there.
    pub fn is_done(&self) -> bool {
        self.part == Part::Done
    }

    /// Bytes of data so far.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True exactly when there is no data yet.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The data.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Takes what belongs to the body and returns how much that was; less than all only when it is done.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, BodyFault> {
        let mut used = 0;
        while used < bytes.len() && self.part != Part::Done {
            used += match self.part {
                Part::Sized { left } | Part::Data { left } => self.take_data(&bytes[used..], left),
                part => {
                    self.framing_left = self.framing_left.checked_sub(1).ok_or(BodyFault::TooBig)?;
                    self.part = self.after(part, bytes[used])?;
                    1
                }
            };
        }
        Ok(used)
    }

    fn take_data(&mut self, bytes: &[u8], left: usize) -> usize {
        let count = left.min(bytes.len());
        self.data.extend_from_slice(&bytes[..count]);
        self.part = match (self.part, left - count) {
            (Part::Sized { .. }, 0) => Part::Done,
            (Part::Sized { .. }, left) => Part::Sized { left },
            (_, 0) => Part::DataEnd { is_half: false },
            (_, left) => Part::Data { left },
        };
        count
    }

    /// What follows one byte of framing.
    fn after(&self, part: Part, byte: u8) -> Result<Part, BodyFault> {
        let is_text = byte == b'\t' || (b' '..0x7f).contains(&byte) || byte >= 0x80;
        Ok(match (part, byte) {
            (Part::Size { value, digits }, byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).ok_or(BodyFault::Malformed)? as usize;
                // More than fifteen digits are a size nobody means, and do not fit.
                if digits >= 15 {
                    return Err(BodyFault::Malformed);
                }
                let value = value * 16 + digit;
                if value > self.data_max - self.data.len() {
                    return Err(BodyFault::TooBig);
                }
                Part::Size { value, digits: digits + 1 }
            }
            (Part::Size { value, digits: 1.. } | Part::Extension { value }, b'\r') => Part::SizeEnd { value },
            (Part::Size { value, digits: 1.. }, b';' | b' ' | b'\t') => Part::Extension { value },
            (Part::Extension { value }, _) if is_text => Part::Extension { value },
            (Part::SizeEnd { value: 0 }, b'\n') => Part::Trailer { is_empty: true },
            (Part::SizeEnd { value }, b'\n') => Part::Data { left: value },
            (Part::DataEnd { is_half: false }, b'\r') => Part::DataEnd { is_half: true },
            (Part::DataEnd { is_half: true }, b'\n') => Part::Size { value: 0, digits: 0 },
            (Part::Trailer { is_empty }, b'\r') => Part::TrailerEnd { is_last: is_empty },
            (Part::Trailer { .. }, _) if is_text => Part::Trailer { is_empty: false },
            (Part::TrailerEnd { is_last: true }, b'\n') => Part::Done,
            (Part::TrailerEnd { is_last: false }, b'\n') => Part::Trailer { is_empty: true },
            _ => return Err(BodyFault::Malformed),
        })
    }
}

/// Compresses a body, at the fastest level: the shard's other clients wait meanwhile, and text loses most of its bulk to any level.
pub fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    // Writing to a vector cannot fail; an empty result would be noticed by every client at once.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    /// The data and the bytes used, whole and in all pairs of pieces: they must say the same.
    fn read(framing: Framing, text: &[u8]) -> Result<Option<(Vec<u8>, usize)>, BodyFault> {
        let read_in = |pieces: &[&[u8]]| {
            let mut body = Body::new(framing, 20, 60)?;
            let mut used = 0;
            for piece in pieces {
                used += body.feed(piece)?;
            }
            Ok(body.is_done().then(|| (body.into_data(), used)))
        };
        let whole = read_in(&[text]);
        for cut in 0..=text.len() {
            assert_eq!(read_in(&[&text[..cut], &text[cut..]]), whole, "cut at {cut} of {:?}", String::from_utf8_lossy(text));
        }
        whole
    }

    fn good(framing: Framing, text: &str, data: &str, used: usize) {
        assert_eq!(read(framing, text.as_bytes()), Ok(Some((data.as_bytes().to_vec(), used))), "{text:?}");
    }

    #[test]
    fn bodies_end_where_they_say() {
        good(Framing::Sized(3), "abcGET /", "abc", 3);
        good(Framing::Sized(0), "GET /", "", 0);
        good(Framing::None, "GET /", "", 0);
        good(Framing::Chunked, "3\r\nabc\r\n02;x=\"y\"\r\nde\r\n0\r\n\r\nGET /", "abcde", 27);
        good(Framing::Chunked, "0\r\nA: b\r\nC: \u{e9}\r\n\r\n", "", 18);
        good(Framing::Chunked, "A \r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", 36);
        for part in ["3\r\nab", "3\r\nabc\r\n", "0\r\n", "0\r\nA: b\r\n", ""] {
            assert_eq!(read(Framing::Chunked, part.as_bytes()), Ok(None), "{part:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_a_fault() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            ";\r\n",
            "1\nab",
            "1\r\r",
            "1\r\nab",
            "1\r\na\n0\r\n\r\n",
            "1\r\na\r\r",
            "1;\n",
            "1;\u{0}\r\n",
            "0\r\n\n",
            "0\r\nA\n",
            "0\r\nA\r\r",
            "0000000000000001\r\n",
            "1 \u{7f}\r\n",
        ] {
            assert_eq!(read(Framing::Chunked, text.as_bytes()), Err(BodyFault::Malformed), "{text:?}");
        }
        assert_eq!(read(Framing::Unclear, b""), Err(BodyFault::Malformed));
    }

    #[test]
    fn everything_is_bounded() {
        good(Framing::Sized(20), "01234567890123456789", "01234567890123456789", 20);
        assert_eq!(read(Framing::Sized(21), b""), Err(BodyFault::TooBig));
        for text in ["15\r\n", "ffffff", "a\r\n0123456789\r\nb\r\n"] {
            assert_eq!(read(Framing::Chunked, text.as_bytes()), Err(BodyFault::TooBig), "{text:?}");
        }
        let crumbs = "1\r\na\r\n".repeat(20);
        assert_eq!(read(Framing::Chunked, crumbs.as_bytes()), Err(BodyFault::TooBig), "more framing than data");
        let trailers = format!("0\r\n{}", "A: b\r\n".repeat(20));
        assert_eq!(read(Framing::Chunked, trailers.as_bytes()), Err(BodyFault::TooBig));
    }

    #[test]
    fn gzip_comes_back() {
        for text in ["", "x", &"long ".repeat(10_000)] {
            let mut back = String::new();
            flate2::read::GzDecoder::new(&*gzip(text.as_bytes())).read_to_string(&mut back).expect("gzip");
            assert_eq!(back, text);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(Framing::Chunked, &bytes);
        }

        #[test]
        fn near_misses_do_not_panic(text in "[0-3a]{0,2}[;\\r]?\r?\n?[a-c]{0,3}\r?\n?0\r\n[a:]{0,3}\r\n") {
            let _ = read(Framing::Chunked, text.as_bytes());
        }
    }
}
