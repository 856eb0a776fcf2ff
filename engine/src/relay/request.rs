//! The words between the relay's core and its link to Redis: what is asked ([`Request`]), what is answered ([`Reply`]), and what Redis
//! says by itself ([`Push`]). It knows no connection and no client library, so that a Redis of a test can speak it too.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One command, as the words of its line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The words, one after the other.
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Call {
    /// A command of that name, still without arguments.
    pub fn new(name: &str) -> Self {
        Self { bytes: name.as_bytes().to_vec(), ends: vec![name.len()] }
    }

    /// With one argument more.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<[u8]>) -> Self {
        self.push(word);
        self
    }

    /// With a number as one argument more.
    #[must_use]
    pub fn number(self, value: impl Into<i128>) -> Self {
        self.arg(value.into().to_string())
    }

    /// Adds an argument.
    pub fn push(&mut self, word: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(word.as_ref());
        self.ends.push(self.bytes.len());
    }

    /// Its words, the name first.
    pub fn words(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.ends.len()).map(|at| self.word(at))
    }

    /// The word at `at`, the name being 0; empty where there is none.
    pub fn word(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends.get(at - 1).copied().unwrap_or(self.bytes.len()) };
        let end = self.ends.get(at).copied().unwrap_or(self.bytes.len());
        &self.bytes[start..end]
    }

    /// Bytes of its words.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// As an operator would type it.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.words().map(String::from_utf8_lossy).collect();
        write!(f, "Call({})", words.join(" "))
    }
}

/// Commands that are sent in one write and answered together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked, in order.
    pub calls: Vec<Call>,
    /// True exactly when they stand between `MULTI` and `EXEC`: nothing of others comes between them, and either all or none are done.
    pub is_atomic: bool,
}

impl Request {
    /// One command.
    pub fn one(call: Call) -> Self {
        Self { calls: vec![call], is_atomic: false }
    }

    /// Several commands in one write; those of others may come between them.
    pub fn several(calls: Vec<Call>) -> Self {
        Self { calls, is_atomic: false }
    }

    /// Several commands in one transaction.
    pub fn atomic(calls: Vec<Call>) -> Self {
        Self { calls, is_atomic: true }
    }

    /// Bytes of all words.
    pub fn bytes(&self) -> usize {
        self.calls.iter().map(Call::bytes).sum()
    }
}

impl From<Call> for Request {
    fn from(call: Call) -> Self {
        Self::one(call)
    }
}

/// What Redis answers a command, in the shapes of RESP2: a hash, a set or a stream's entries are lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing there.
    Nil,
    /// A number.
    Int(i64),
    /// A value.
    Bytes(Vec<u8>),
    /// A status, such as `OK`.
    Text(String),
    /// Several.
    List(Vec<Reply>),
    /// A refusal: its code in capitals, then what it says to humans.
    Error(String),
}

impl Reply {
    /// The number it is, also where Redis writes it as a text.
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bytes(_) | Self::Text(_) => self.text()?.parse().ok(),
            _ => None,
        }
    }

    /// The bytes of a value or a status.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Text(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// The text of a value or a status, if it is one.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// The parts of a list; none of anything else.
    pub fn list(&self) -> &[Reply] {
        match self {
            Self::List(parts) => parts,
            _ => &[],
        }
    }

    /// What was said with a refusal.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Error(text) => Some(text),
            _ => None,
        }
    }

    /// True exactly when it is a refusal that begins with this code.
    pub fn is_error(&self, code: &str) -> bool {
        self.error().is_some_and(|text| text.split(' ').next() == Some(code))
    }
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The connection went; whether Redis has done it nobody knows.
    #[error("the connection to Redis was lost")]
    Connection,
    /// Too much waits for answers already; it was not sent.
    #[error("too much waits for Redis")]
    Full,
}

/// Why a subscription is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// The connection went.
    #[error("the connection to Redis was lost")]
    Lost,
    /// Redis refuses it, in its words.
    #[error("Redis refuses the subscription: {0}")]
    Refused(String),
}

/// What a subscription names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A channel that every node of a cluster knows (`PUBLISH`).
    Channel,
    /// All such channels that match.
    Pattern,
    /// A channel that lives where its slot does (`SPUBLISH`).
    Sharded,
}

/// What Redis says by itself, and what happens to the link, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// Somebody has published.
    Message {
        /// How it was subscribed.
        kind: Kind,
        /// Where to.
        channel: Vec<u8>,
        /// The pattern it was heard by, where it was by one.
        pattern: Option<Vec<u8>>,
        /// What.
        payload: Vec<u8>,
    },
    /// From here on messages of this name are heard.
    Subscribed {
        /// What the name is.
        kind: Kind,
        /// The name.
        name: Vec<u8>,
    },
    /// From here on they are not.
    Unsubscribed {
        /// What the name is.
        kind: Kind,
        /// The name.
        name: Vec<u8>,
    },
    /// A node of the cluster was lost, or slots have moved: messages of these names may be missing from here until they are told as
    /// [`Push::Subscribed`] again, which happens without being asked for.
    Interrupted {
        /// What the names are.
        kind: Kind,
        /// The names.
        names: Vec<Vec<u8>>,
    },
    /// In a cluster a node has slots that another had, or is back: what it did not get or did not keep is gone, and what was under way is lost.
    Replaced,
    /// Redis does not answer, but the connection is still there; what was asked may still be done.
    Silent,
    /// It answers again.
    Answering,
    /// The link is over; nothing comes after this, and all that was asked is lost.
    Gone(Ended),
}

/// Why a link is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Redis or the network closed the connection.
    #[error("Redis closed the connection")]
    Closed,
    /// It did not answer for [`crate::limits::REDIS_LOST_MS`].
    #[error("Redis did not answer")]
    Silent,
    /// More was published than was taken, beyond [`crate::limits::REDIS_PUSHES_BYTES_MAX`].
    #[error("more was published than could be taken")]
    Flooded,
    /// It said what no Redis says, or more than [`crate::limits::REDIS_REPLY_BYTES_MAX`] at once.
    #[error("Redis said what is not understood, or too much at once")]
    Misspoken,
    /// It is not the master any more.
    #[error("the master is another one now")]
    Moved,
}
