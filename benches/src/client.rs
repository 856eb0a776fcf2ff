//! One connection: its socket, its state from the TCP handshake to the room, and the ledger of what it heard. It is told when the
//! socket is ready and what time it is; which connections exist and who sends next is the worker's business.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::dialect::{Dialect, Heard};
use crate::frame;
use crate::histogram::Histogram;
use crate::net::Readiness;
use crate::token;
use crate::verify::{BROADCASTER, Ledger, MARK_LENGTH, Mark};

/// Free space offered to each read. A broadcast's frames of one turn fit many times over.
const READ_BYTES: usize = 64 * 1024;
/// A handshake answer longer than this is none.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A connection that the server does not read is not written to beyond this.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// What all connections of a run have in common.
pub(crate) struct Setup {
    pub(crate) dialect: Dialect,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) secret: Vec<u8>,
    /// Makes names of this run unlike those of any other against the same server.
    pub(crate) nonce: u32,
    /// Users of the run, given out in turn: neighbours in a room are different ones.
    pub(crate) users: u32,
    /// Seconds since 1970 at the start.
    pub(crate) started: u64,
    /// Fills a message's content up to the asked length.
    pub(crate) filler: Vec<u8>,
    pub(crate) echo: bool,
}

impl Setup {
    pub(crate) fn room_name(&self, room: u32) -> String {
        format!("b{:08x}-r{room:06}", self.nonce)
    }

    fn token(&self, connection: u32, room: &str) -> String {
        let user = format!("b{:08x}-u{:06}", self.nonce, connection % self.users);
        token::mint(&self.secret, &user, room, self.started)
    }

    pub(crate) fn filler_of(payload_bytes: usize) -> Vec<u8> {
        vec![b'x'; payload_bytes.saturating_sub(MARK_LENGTH)]
    }
}

/// What a worker's connections count together.
pub(crate) struct Tally {
    /// From when a message was due to when it arrived, for those due in the measured window.
    pub(crate) latency: Histogram,
    /// From the TCP SYN to the room.
    pub(crate) opening: Histogram,
    pub(crate) frames: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
    pub(crate) first_refusal: Option<String>,
    /// Messages due in this range are recorded.
    pub(crate) window: (u64, u64),
    hint: usize,
    /// The buffer into which every connection of the worker reads, parsed in place.
    buffer: Vec<u8>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: Histogram::new(),
            opening: Histogram::new(),
            frames: 0,
            delivered: 0,
            refused: 0,
            first_refusal: None,
            window: (u64::MAX, u64::MAX),
            hint: 0,
            buffer: vec![0; 4 * READ_BYTES],
        }
    }

    fn deliver(&mut self, stamp: u64, now: u64) {
        self.delivered += 1;
        if (self.window.0..self.window.1).contains(&stamp) {
            self.latency.record(now.saturating_sub(stamp));
        }
    }

    fn refuse(&mut self, text: &[u8]) {
        self.refused += 1;
        self.first_refusal.get_or_insert_with(|| abridged(text));
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The kernel says so: reset, refused, no descriptors.
    Socket(io::Error),
    /// The server ended the stream without a close frame.
    Hangup,
    /// The server sent a close frame, with this code.
    Closed(u16),
    /// The upgrade was not granted: the status line.
    Upgrade(String),
    /// Joining was refused: what the server said.
    Refused(String),
    /// The server broke the WebSocket protocol.
    Protocol(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => write!(f, "socket error: {error}"),
            Self::Hangup => write!(f, "the server hung up"),
            Self::Closed(code) => write!(f, "the server closed with code {code}"),
            Self::Upgrade(status) => write!(f, "no upgrade: {status}"),
            Self::Refused(text) => write!(f, "refused: {text}"),
            Self::Protocol(text) => write!(f, "{text}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Upgrading,
    Greeting,
    Joining,
    Joined,
}

/// One connection of the run.
pub(crate) struct Client {
    /// Its number among all of the run, and that of its room's first member.
    pub(crate) number: u32,
    first_of_room: u32,
    room: String,
    /// `None` once it ended.
    socket: Option<TcpStream>,
    stage: Stage,
    /// The beginning of a frame whose rest is still to come.
    leftover: Vec<u8>,
    unsent: Vec<u8>,
    opened_at: u64,
    /// Messages sent, which is also the next sequence.
    pub(crate) sent: u32,
    pub(crate) ledger: Ledger,
    /// Echo only: questions without an answer, with the time each was due.
    unanswered: VecDeque<(u32, u64)>,
}

impl Client {
    pub(crate) fn new(number: u32, first_of_room: u32, room: String, senders: u32, socket: TcpStream, now: u64) -> Self {
        Self {
            number,
            first_of_room,
            room,
            socket: Some(socket),
            stage: Stage::Connecting,
            leftover: Vec::new(),
            unsent: Vec::new(),
            opened_at: now,
            sent: 0,
            ledger: Ledger::new(senders),
            unanswered: VecDeque::new(),
        }
    }

    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.stage == Stage::Joined
    }

    /// True exactly when the socket must be watched for writing.
    pub(crate) fn wants_to_write(&self) -> bool {
        self.stage == Stage::Connecting || !self.unsent.is_empty()
    }

    /// True exactly when a message may be sent now.
    pub(crate) fn can_send(&self) -> bool {
        self.socket.is_some() && self.has_joined() && self.unsent.len() < UNSENT_BYTES_MAX
    }

    pub(crate) fn end(&mut self) {
        self.socket = None;
        self.unsent = Vec::new();
    }

    /// Sends the next message, which was due at `stamp`.
    pub(crate) fn send(&mut self, setup: &Setup, stamp: u64) -> Result<(), Fault> {
        let sequence = self.sent;
        self.sent += 1;
        if setup.echo {
            self.unanswered.push_back((sequence, stamp));
            setup.dialect.echo(&self.room, sequence, &mut self.unsent);
        } else {
            let mark = Mark { sender: self.number, sequence, stamp };
            setup.dialect.message(&self.room, mark, &setup.filler, &mut self.unsent);
        }
        self.flush()
    }

    /// Does what the socket is ready for.
    pub(crate) fn handle(&mut self, ready: Readiness, setup: &Setup, tally: &mut Tally, now: u64) -> Result<(), Fault> {
        if ready.writable && self.stage == Stage::Connecting {
            self.begin_upgrade(setup)?;
        }
        if ready.readable {
            self.read(setup, tally, now)?;
        }
        self.flush()
    }

    fn begin_upgrade(&mut self, setup: &Setup) -> Result<(), Fault> {
        let refused = self.socket.as_ref().and_then(|socket| socket.take_error().transpose());
        if let Some(error) = refused {
            return Err(Fault::Socket(error.unwrap_or_else(|error| error)));
        }
        let token = if setup.dialect == Dialect::Community { setup.token(self.number, &self.room) } else { String::new() };
        self.unsent.extend_from_slice(setup.dialect.upgrade(&setup.host, &setup.path, &token).as_bytes());
        self.stage = Stage::Upgrading;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let Some(socket) = self.socket.as_mut() else { return Ok(()) };
        if self.unsent.is_empty() || self.stage == Stage::Connecting {
            return Ok(());
        }
        match socket.write(&self.unsent) {
            Ok(written) => drop(self.unsent.drain(..written)),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(Fault::Socket(error)),
        }
        Ok(())
    }

    /// One read into the shared buffer behind what was left over, then everything whole is taken in place.
    fn read(&mut self, setup: &Setup, tally: &mut Tally, now: u64) -> Result<(), Fault> {
        let Some(socket) = self.socket.as_mut() else { return Ok(()) };
        let mut buffer = std::mem::take(&mut tally.buffer);
        let kept = self.leftover.len();
        if buffer.len() < kept + READ_BYTES {
            buffer.resize(kept + READ_BYTES, 0);
        }
        buffer[..kept].copy_from_slice(&self.leftover);
        let outcome = match socket.read(&mut buffer[kept..]) {
            Ok(0) => Err(Fault::Hangup),
            Ok(count) => self.take_all(&buffer[..kept + count], setup, tally, now),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(Fault::Socket(error)),
        };
        tally.buffer = buffer;
        outcome
    }

    fn take_all(&mut self, bytes: &[u8], setup: &Setup, tally: &mut Tally, now: u64) -> Result<(), Fault> {
        let mut rest = bytes;
        while let Some(length) = self.take_one(rest, setup, tally, now)? {
            rest = &rest[length..];
        }
        self.leftover.clear();
        self.leftover.extend_from_slice(rest);
        Ok(())
    }

    /// Takes the handshake answer or one frame off the front and tells how long it was, `None` while it is incomplete.
    fn take_one(&mut self, bytes: &[u8], setup: &Setup, tally: &mut Tally, now: u64) -> Result<Option<usize>, Fault> {
        if self.stage == Stage::Upgrading {
            return self.take_head(bytes);
        }
        let Some(frame) = frame::parse(bytes).map_err(Fault::Protocol)? else { return Ok(None) };
        tally.frames += 1;
        match frame.opcode {
            frame::TEXT => self.take_text(frame.payload, setup, tally, now)?,
            frame::PING => frame::append(frame::PONG, &[frame.payload], &mut self.unsent),
            frame::CLOSE => return Err(Fault::Closed(frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)))),
            _ => {}
        }
        Ok(Some(frame.length))
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let status = || abridged(bytes.split(|byte| *byte == b'\r').next().unwrap_or_default());
        let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
            return if bytes.len() > HEAD_BYTES_MAX { Err(Fault::Upgrade(status())) } else { Ok(None) };
        };
        if !bytes.starts_with(b"HTTP/1.1 101") {
            return Err(Fault::Upgrade(status()));
        }
        self.stage = Stage::Greeting;
        Ok(Some(end + 4))
    }

    fn take_text(&mut self, text: &[u8], setup: &Setup, tally: &mut Tally, now: u64) -> Result<(), Fault> {
        match (setup.dialect.hear(text, &mut tally.hint), self.stage) {
            (Heard::Message(mark), _) if mark.sender == BROADCASTER => {
                self.ledger.note_broadcast(mark.sequence);
                tally.deliver(mark.stamp, now);
            }
            (Heard::Message(mark), _) => {
                // A stranger's number wraps to one that no room has, and is counted as foreign.
                self.ledger.note(mark.sender.wrapping_sub(self.first_of_room), mark.sequence);
                tally.deliver(mark.stamp, now);
            }
            (Heard::Reply(number), Stage::Joined) => self.take_reply(number, tally, now),
            (Heard::Identify, Stage::Greeting) => Dialect::identify(&setup.token(self.number, &self.room), &mut self.unsent),
            (Heard::Welcome, Stage::Greeting) => {
                setup.dialect.join(&self.room, &mut self.unsent);
                self.stage = Stage::Joining;
            }
            (Heard::Joined, Stage::Joining) => {
                self.stage = Stage::Joined;
                tally.opening.record(now.saturating_sub(self.opened_at));
            }
            (Heard::Heartbeat, _) => Dialect::heartbeat(&mut self.unsent),
            (Heard::Refused, Stage::Joined) => tally.refuse(text),
            (Heard::Refused, _) => return Err(Fault::Refused(abridged(text))),
            _ => {}
        }
        Ok(())
    }

    /// An answer without a number is taken for the oldest question; one without a question has come twice.
    fn take_reply(&mut self, number: Option<u32>, tally: &mut Tally, now: u64) {
        let sequence = number.or(self.unanswered.front().map(|question| question.0));
        let at = sequence.and_then(|sequence| self.unanswered.iter().position(|question| question.0 == sequence));
        match at.and_then(|at| self.unanswered.remove(at)) {
            Some((sequence, stamp)) => {
                self.ledger.note(0, sequence);
                tally.deliver(stamp, now);
            }
            None => self.ledger.doubled += 1,
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Enough of a text of the server to recognise it in a message of ours.
fn abridged(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned()
}
