//! The reliable mode: what is said to other hosts goes into streams, each entry once ([`super::append`]), and what others have said is read on
//! from where one was ([`super::read`]). So nothing is lost or doubled while Redis or a host is away, as far as the streams reach.
//!
//! | stream | holds | fields |
//! |---|---|---|
//! | `KEY` (`socket.io`) | events of Socket.IO endpoints, as `@socket.io/redis-streams-adapter` 0.3 has them | `uid nsp type data` of the adapter; ours also `o`, the offset, `b`, whom its author has blocked, `h`, its host, and `n`, that host's number |
//! | `PREFIX:{KEY}:plain` | texts of other endpoints; the same are published as well, for other programs | `channel`, `text`, `h`, `n` |
//! | `PREFIX:{KEY}:n:HOST` | a host's last number in the first of them; with `:plain` in the second | |
//!
//! The braces put them all where the first is in a cluster. An adapter's id that begins with `~` is of what uringcast hosts have been told in another way.

use std::borrow::Cow;
use std::sync::Arc;

use super::append::Appender;
use super::channels::Heard;
use super::core::{Core, Tag};
use super::format::Message;
use super::read::{Entry, Reader};
use super::request::{Call, Lost, Reply, Request};
use super::socketio::{ENTRY, TOLD};
use crate::auth::Identity;
use crate::config::Relay;
use crate::fault::RelayDrop;
use crate::shard::parcel::{Arrival, Emit};
use crate::time::Now;
use crate::wire::sio::{EntryId, Offset};

/// Index of the stream of Socket.IO endpoints.
pub(super) const EVENTS: usize = 0;
/// Index of the other endpoints' stream.
const PLAIN: usize = 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    host: String,
    appenders: [Appender; 2],
    reader: Reader,
}

impl Streams {
    /// `host` is this host's id.
    pub(super) fn new(settings: &Relay, host: &str) -> Streams {
        let Relay { prefix, socket_io_key: key, stream_entries, buffer_bytes, .. } = settings;
        let plain = format!("{prefix}:{{{key}}}:plain");
        let numbers = format!("{prefix}:{{{key}}}:n:{host}");
        let reader = Reader::new(vec![key.clone(), plain.clone()]);
        let appender = |stream: String, numbers: String| Appender::new(stream, numbers, *stream_entries, *buffer_bytes);
        let appenders = [appender(key.clone(), numbers.clone()), appender(plain, format!("{numbers}:plain"))];
        Streams { host: host.to_owned(), appenders, reader }
    }

    /// A stream's key.
    pub(super) fn key(&self, stream: usize) -> &str {
        self.appenders[stream].stream()
    }

    /// Number of the last of our entries of a stream.
    pub(super) fn appended(&self, stream: usize) -> u64 {
        self.appenders[stream].last()
    }

    /// Number of the last of our entries of a stream that Redis has confirmed.
    pub(super) fn confirmed(&self, stream: usize) -> u64 {
        self.appenders[stream].confirmed()
    }

    /// Number of the last of our events that was read back.
    pub(super) fn read_back(&self) -> u64 {
        self.reader.number(EVENTS, &self.host)
    }

    /// Up to where events were read; `None` before the past was.
    pub(super) fn cursor(&self) -> Option<EntryId> {
        self.reader.cursor()
    }

    pub(super) fn handle_connected(&mut self) {
        self.appenders.iter_mut().for_each(Appender::handle_connected);
    }

    /// Forgets what is kept for too long.
    pub(super) fn handle_timeouts(&mut self, now: Now) {
        self.appenders.iter_mut().for_each(|appender| appender.forget(now.ms()));
    }

    pub(super) fn poll_timeout(&self) -> u64 {
        self.appenders.iter().map(Appender::retry_ms).min().unwrap_or(u64::MAX).min(self.reader.retry_ms())
    }

    pub(super) fn poll_append(&mut self, now: Now) -> Option<(Tag, Request)> {
        let calls = self.appenders.iter_mut().enumerate().find_map(|(stream, appender)| Some((stream, appender.poll(now.ms())?)));
        calls.map(|(stream, call)| (Tag::Appended(stream), call.into()))
    }

    /// Entries that Redis has not confirmed, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let [one, other] = self.appenders.each_ref().map(Appender::waiting);
        (one.0 + other.0, one.1 + other.1)
    }
}

impl Core {
    /// Puts what is to be told other hosts into a stream, if it is something that goes there: an entry for the stream of events, or a text for a
    /// channel of plain endpoints, which is published as well.
    pub(super) fn append(&mut self, call: &Call) -> bool {
        let Some(streams) = &mut self.streams else { return false };
        let words: Vec<Cow<'_, str>> = call.words().map(String::from_utf8_lossy).collect();
        let host = streams.host.clone();
        let has_place = match words.as_slice() {
            [verb, _, fields @ ..] if verb == ENTRY => {
                let fields = fields.chunks_exact(2).map(|pair| (&*pair[0], &*pair[1]));
                streams.appenders[EVENTS].push(fields.chain([("h", &*host)]))
            }
            [verb, channel, text] if verb == "PUBLISH" && self.channels.serves(channel) => {
                streams.appenders[PLAIN].push([("channel", &**channel), ("text", &**text), ("h", &*host)])
            }
            _ => return false,
        };
        self.drop_message(RelayDrop::Overflow, u64::from(!has_place));
        true
    }

    /// What the program asks of all hosts, and is an event for clients: other servers are told by the stream.
    pub(super) fn tell_stream(&mut self, now: Now, emit: &Emit) {
        // What is to be acknowledged is asked for, and is no entry.
        if self.streams.is_none() || emit.ack_ms.is_some() || emit.is_elsewhere {
            return;
        }
        if let Some(post) = self.socket_io.told(emit) {
            self.enqueue(now, post.call());
        }
    }

    /// Redis has answered a request to add entries, or never will.
    pub(super) fn handle_appended(&mut self, now: Now, stream: usize, replies: Result<&[Reply], Lost>) {
        let Some(streams) = &mut self.streams else { return };
        let first = replies.map(|replies| replies.first().unwrap_or(&Reply::Nil));
        let confirmed = streams.appenders[stream].handle_reply(now.ms(), first);
        self.stats.published.add(confirmed.entries);
        self.stats.refusals.add(u64::from(confirmed.is_refused));
        self.stats.gaps.add(u64::from(confirmed.has_hole));
    }

    /// The connection for reading is new.
    pub(crate) fn handle_reader_connected(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.reader.handle_connected();
        }
    }

    /// The connection for reading is gone. What was under way comes back with [`Self::handle_read`].
    pub(crate) fn handle_reader_lost(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.reader.handle_lost();
        }
    }

    /// The next request for the connection for reading; one at a time.
    pub(crate) fn poll_read(&mut self, now: Now) -> Option<Request> {
        self.streams.as_mut()?.reader.poll(now.ms())
    }

    /// What Redis has answered to [`Self::poll_read`].
    pub(crate) fn handle_read(&mut self, now: Now, replies: Result<Vec<Reply>, Lost>) {
        let Some(streams) = &mut self.streams else { return };
        let batch = streams.reader.handle_reply(now.ms(), replies);
        self.stats.read.add(batch.entries.len() as u64);
        self.stats.gaps.add(batch.missing);
        self.stats.doubles.add(batch.doubles);
        if let Some(floor) = batch.floor
            && let Some(sessions) = &mut self.sessions
        {
            sessions.journal.begin(floor);
        }
        for entry in batch.entries {
            self.take_entry(now, &entry);
        }
        self.go_on_with_sessions(now);
    }

    fn take_entry(&mut self, now: Now, entry: &Entry) {
        let heard = if entry.stream == PLAIN { self.heard_of_plain(now, entry) } else { self.heard_of_events(now, entry) };
        self.take_heard(now, heard);
    }

    fn heard_of_plain(&mut self, now: Now, entry: &Entry) -> Heard {
        if entry.is_past {
            return Heard::Known;
        }
        let (Some(channel), Some(text)) = (entry.text("channel"), entry.text("text")) else { return Heard::Malformed };
        // An endpoint that is not served here is no fault.
        self.channels.heard(channel, text.as_bytes(), true, 0, now.unix_ms).unwrap_or(Heard::Known)
    }

    fn heard_of_events(&mut self, now: Now, entry: &Entry) -> Heard {
        let fields = entry.fields.iter().map(|(field, value)| (&**field, &**value));
        let (endpoint, envelope) = match self.socket_io.read_entry(fields) {
            None => return Heard::Known,
            Some((_, Err(_))) => return Heard::Malformed,
            Some((endpoint, Ok(envelope))) => (endpoint, envelope),
        };
        // Clients here have heard it already.
        let is_known = entry.is_past || envelope.uid.starts_with(TOLD) || self.socket_io.is_ours(endpoint, &envelope.uid);
        let offset = entry.text("o").and_then(Offset::parse).unwrap_or(Offset::Entry(entry.id));
        let Message::Broadcast { packet, options, request: None } = envelope.message else {
            return if is_known { Heard::Known } else { self.take_envelope(now, endpoint, envelope, offset, false) };
        };
        if is_known && self.sessions.is_none() {
            return Heard::Known;
        }
        let Some(arrival) = self.socket_io.arrival(endpoint, &envelope.uid, packet, &options, offset, now.unix_ms) else {
            return Heard::Malformed;
        };
        let blocked = entry.text("b").and_then(|list| serde_json::from_str::<Vec<String>>(list).ok());
        let hidden_from = blocked.map(|mut blocked| {
            blocked.sort_unstable();
            Arc::new(Identity { blocked, ..Identity::default() })
        });
        let arrival = Arc::new(Arrival { hidden_from, ..arrival });
        self.note_event(entry.id, arrival.clone());
        if !is_known {
            self.stats.received.add(1);
            self.arrive(arrival);
        }
        Heard::Known
    }
}
