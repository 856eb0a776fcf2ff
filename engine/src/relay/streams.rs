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

use super::append::Appender;
use super::channels::Heard;
use super::core::{Core, Tag};
use super::read::{Entry, Reader};
use super::request::{Lost, Reply, Request};
use super::socketio::{Post, TOLD};
use crate::config::Relay;
use crate::fault::RelayDrop;
use crate::shard::outward::Published;
use crate::time::Now;
use crate::wire::sio::Offset;

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
        match self.appended(published) {
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
    fn appended(&mut self, published: &Published) -> Option<bool> {
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
        for entry in batch.entries {
            self.take_entry(now, &entry);
        }
    }

    fn take_entry(&mut self, now: Now, entry: &Entry) {
        let uid = entry.text("uid").unwrap_or_default();
        let is_own = self.streams.as_ref().is_some_and(|streams| uid == streams.host);
        if is_own || entry.is_past {
            return;
        }
        let heard = if entry.stream == PLAIN { self.heard_of_plain(now, entry) } else { self.heard_of_events(now, entry) };
        self.take_heard(heard);
    }

    fn heard_of_plain(&mut self, now: Now, entry: &Entry) -> Heard {
        let (Some(channel), Some(text)) = (entry.text("channel"), entry.text("text")) else { return Heard::Malformed };
        // An endpoint that is not served here is no fault.
        self.channels.heard(channel, text.as_bytes(), true, 0, now.unix_ms).unwrap_or(Heard::Known)
    }

    fn heard_of_events(&mut self, now: Now, entry: &Entry) -> Heard {
        let fields = entry.fields.iter().map(|(field, value)| (&**field, &**value));
        let (endpoint, envelope) = match self.socket_io.read(fields) {
            None => return Heard::Known,
            Some((_, Err(_))) => return Heard::Malformed,
            Some((endpoint, Ok(envelope))) => (endpoint, envelope),
        };
        if envelope.uid.starts_with(TOLD) {
            return Heard::Known;
        }
        let offset = entry.text("o").and_then(Offset::parse).unwrap_or(Offset::Entry(entry.id));
        self.heard_of_envelope(now, endpoint, envelope, offset)
    }
}
