//! A secret that cannot be shown by accident: `Debug` and `Display` never print it, only [`Secret::reveal`] gives the bytes.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

/// Bytes of a secret's file: a path that names something else by mistake (a log, a device) must not fill the memory.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Random bytes of a generated secret: as many as HS256's hash has.
const GENERATED_BYTES: usize = 32;

/// A token secret or the admin token; never empty.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFault {
    /// Nothing, or nothing but a newline.
    #[error("must not be empty")]
    Empty,
    /// A file beyond the bound.
    #[error("the file is larger than {FILE_BYTES_MAX} bytes")]
    Oversize,
    /// The file could not be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(io::Error),
}

impl Secret {
    /// These very bytes.
    pub fn new(bytes: &[u8]) -> Result<Secret, SecretFault> {
        if bytes.is_empty() { Err(SecretFault::Empty) } else { Ok(Secret(bytes.into())) }
    }

    /// A file's content without the one newline that editors and `echo` put behind it.
    pub fn read(path: &Path) -> Result<Secret, SecretFault> {
        let mut content = Vec::new();
        let file = File::open(path).map_err(SecretFault::Unreadable)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(SecretFault::Unreadable)?;
        if content.len() as u64 > FILE_BYTES_MAX {
            return Err(SecretFault::Oversize);
        }
        let line = content.strip_suffix(b"\n").unwrap_or(&content);
        Secret::new(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// A new one from the secure random source, in characters that fit a header and a shell.
    pub fn generated() -> Secret {
        Secret(URL_SAFE_NO_PAD.encode(rand::random::<[u8; GENERATED_BYTES]>()).into_bytes().into())
    }

    /// One that is made of this one for a purpose, in the same characters: always the same, and none of them tells another.
    pub fn derived(&self, purpose: &str) -> Secret {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), purpose.as_bytes());
        Secret(URL_SAFE_NO_PAD.encode(tag).into_bytes().into())
    }

    /// The bytes. Whoever calls this must not log them.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// True exactly when `given` is the secret. Takes the same time however much of it is right; only the length can be measured.
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::scratch::Scratch;

    #[test]
    fn it_is_never_shown() {
        let secret = Secret::new(b"hunter2").expect("not empty");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "(hidden) (hidden) Some((hidden))");
        assert!(secret.matches(b"hunter2") && !secret.matches(b"hunter3") && !secret.matches(b""));
    }

    #[test]
    fn a_file_loses_one_newline() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"s", Some(b"s")),
            (b"s\n", Some(b"s")),
            (b"s\r\n", Some(b"s")),
            (b"s\n\n", Some(b"s\n")),
            (b" s ", Some(b" s ")),
            (b"\xff\0\n", Some(b"\xff\0")),
            (b"", None),
            (b"\n", None),
        ];
        for (content, expected) in cases {
            let file = Scratch::file(content);
            let read = Secret::read(file.path());
            assert_eq!(read.as_ref().ok().map(Secret::reveal), expected, "{content:?} gave {read:?}");
        }
        assert!(matches!(Secret::read(Path::new("/nonexistent/secret")), Err(SecretFault::Unreadable(_))));
        assert!(matches!(Secret::read(Path::new("/dev/zero")), Err(SecretFault::Oversize)));
    }

    #[test]
    fn generated_ones_differ() {
        let (one, other) = (Secret::generated(), Secret::generated());
        assert!(one.reveal().len() == 43 && !one.matches(other.reveal()));
        assert!(one.derived("a").reveal().len() == 43 && one.derived("a").matches(one.derived("a").reveal()));
        let others = [one.clone(), one.derived("b"), other.derived("a")];
        assert!(others.iter().all(|other| !other.matches(one.derived("a").reveal())));
    }
}
