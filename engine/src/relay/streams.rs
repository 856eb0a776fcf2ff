//! The reliable mode: what is said to other hosts goes into streams, each entry once ([`super::append`]), and what others have said is read on
//! from where one was ([`super::read`]). So nothing is lost or doubled while Redis or a host is away, as far as the streams reach.
//!
//! | stream | holds | fields |
//! |---|---|---|
//! | `KEY` (`socket.io`) | events of Socket.IO endpoints, as `@socket.io/redis-streams-adapter` 0.3 has them | `uid nsp type data` of the adapter; ours also `o`, the offset, and `n`, its host's number |
//! | `PREFIX:{KEY}:plain` | texts of other endpoints; the same are published as well, for other programs | `uid`, `channel`, `text`, `n` |
//! | `PREFIX:{KEY}:n:HOST` | a host's last number in the first of them; with `:plain` in the second | |
//!
//! The braces put them all where the first is in a cluster. An adapter's id is here the host's, in all namespaces; one that begins with `~` is of
//! what uringcast hosts have been told in another way.

use std::sync::Arc;

use super::append::Appender;
use super::channels::Heard;
use super::core::{Core, Tag};
use super::format::Message;
use super::handle::Order;
use super::read::{Entry, Reader};
use super::request::{Lost, Reply, Request};
use super::socketio::{Post, TOLD};
use super::words::Wish;
use crate::config::Relay;
use crate::fault::RelayDrop;
use crate::shard::outward::Published;
use crate::shard::parcel::Question;
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
    /// Puts a publication into the stream of its endpoint. Programs that know no stream hear of it as ever.
    pub(super) fn append(&mut self, now: Now, published: &Published) {
        match self.push_entry(published) {
            None => self.drop_message(RelayDrop::Unspeakable, 1),
            Some(has_place) => {
                self.drop_message(RelayDrop::Overflow, u64::from(!has_place));
                let endpoint = &self.world.config.endpoints[usize::from(published.room.endpoint.0)];
                let post = if endpoint.dialect.is_socket_io() { None } else { self.channels.publication(published) };
                post.into_iter().for_each(|post| self.post(now, &post));
            }
        }
    }

    /// Whether there was place for it; `None` where it has no form in a stream.
    fn push_entry(&mut self, published: &Published) -> Option<bool> {
        let streams = self.streams.as_mut()?;
        let endpoint = &self.world.config.endpoints[usize::from(published.room.endpoint.0)];
        if endpoint.dialect.is_socket_io() {
            let fields = self.socket_io.entry(published, &streams.host)?;
            let offset = published.frame.mark().offset.map(|offset| ("o", offset.text()));
            let fields = fields.iter().chain(&offset).map(|(field, value)| (*field, &**value));
            Some(streams.appenders[EVENTS].push(fields))
        } else {
            let Post { channel, payload } = self.channels.publication(published)?;
            let text = std::str::from_utf8(&payload).ok()?;
            Some(streams.appenders[PLAIN].push([("uid", &*streams.host), ("channel", &*channel), ("text", text)]))
        }
    }

    /// Redis has answered a request to add entries, or never will.
    pub(super) fn handle_appended(&mut self, now: Now, stream: usize, replies: Result<Vec<Reply>, Lost>) {
        let Some(streams) = &mut self.streams else { return };
        let first = replies.as_ref().map(|replies| replies.first().unwrap_or(&Reply::Nil)).map_err(|lost| *lost);
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

    /// What the program asks of all hosts, and is an event for clients: other servers are told by the stream.
    pub(super) fn append_order(&mut self, order: &Order) {
        let (Wish::Shards(Question::Emit(emit)), None, Some(streams)) = (&order.wish, &order.to, &mut self.streams) else { return };
        // What is to be acknowledged is no entry, and who is present as something only our own hosts know.
        if emit.ack_ms.is_some() || emit.is_elsewhere {
            return;
        }
        let Some(fields) = self.socket_io.told(emit, &format!("{TOLD}{}", streams.host)) else { return };
        let offset = emit.offset.text();
        let fields = fields.iter().map(|(field, value)| (*field, &**value)).chain([("o", &*offset)]);
        let has_place = streams.appenders[EVENTS].push(fields);
        self.drop_message(RelayDrop::Overflow, u64::from(!has_place));
    }

    fn take_entry(&mut self, now: Now, entry: &Entry) {
        let uid = entry.text("uid").unwrap_or_default();
        let is_own = self.streams.as_ref().is_some_and(|streams| uid == streams.host);
        if entry.stream == PLAIN && (is_own || entry.is_past) {
            return;
        }
        let is_known = is_own || entry.is_past || uid.starts_with(TOLD);
        let heard = if entry.stream == PLAIN { self.heard_of_plain(now, entry) } else { self.heard_of_events(now, entry, is_known) };
        self.take_heard(heard);
    }

    fn heard_of_plain(&mut self, now: Now, entry: &Entry) -> Heard {
        let (Some(channel), Some(text)) = (entry.text("channel"), entry.text("text")) else { return Heard::Malformed };
        // An endpoint that is not served here is no fault.
        self.channels.heard(channel, text.as_bytes(), true, 0, now.unix_ms).unwrap_or(Heard::Known)
    }

    /// `is_known`: clients here have heard it already.
    fn heard_of_events(&mut self, now: Now, entry: &Entry, is_known: bool) -> Heard {
        if is_known && self.sessions.is_none() {
            return Heard::Known;
        }
        let fields = entry.fields.iter().map(|(field, value)| (&**field, &**value));
        let (endpoint, envelope) = match self.socket_io.read(fields) {
            None => return Heard::Known,
            Some((_, Err(_))) => return Heard::Malformed,
            Some((endpoint, Ok(envelope))) => (endpoint, envelope),
        };
        let offset = entry.text("o").and_then(Offset::parse).unwrap_or(Offset::Entry(entry.id));
        if is_known && !matches!(envelope.message, Message::Broadcast { request: None, .. }) {
            return Heard::Known;
        }
        match self.heard_of_envelope(now, endpoint, envelope, offset) {
            Heard::Arrival(arrival) if self.sessions.is_some() => {
                let arrival = Arc::new(*arrival);
                self.note_event(entry.id, arrival.clone());
                if !is_known {
                    self.stats.received.add(1);
                    self.arrive(arrival);
                }
                Heard::Known
            }
            heard => heard,
        }
    }
}
