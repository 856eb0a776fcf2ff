//! The reliable mode: what is said to other hosts goes into streams, each entry once ([`super::append`]), and what others have said is read on
//! from where one was ([`super::read`]). So nothing is lost or doubled while Redis or a host is away, as far as the streams reach.
//!
//! | stream | holds | fields |
//! |---|---|---|
//! | `KEY` (`socket.io`) | events of Socket.IO endpoints, as `@socket.io/redis-streams-adapter` 0.3 has them | `uid nsp type data` of the adapter; ours also `o`, the offset, `b`, whom its author has blocked, `h`, its host, and `n`, that host's number; or `gap`, `h` and `n` alone: something of that host found no place here |
//! | `PREFIX:{KEY}:plain` | texts of other endpoints; the same are published as well, for other programs | `channel`, `text`, `h`, `n` |
//! | `PREFIX:{KEY}:n:HOST` | a host's last number in the first of them; with `:plain` in the second | |
//!
//! The braces put them all where the first is in a cluster. An adapter's id that begins with `~` is of what uringcast hosts have been told in another way.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use super::append::{Appender, GAP};
use super::channels::Heard;
use super::core::{Core, Tag};
use super::format::Message;
use super::frozen::{FrozenAppender, FrozenReader};
use super::read::{Entry, Reader};
use super::request::{Call, Lost, Reply, Request};
use super::socketio::{ENTRY, TOLD};
use super::waiting::Entries;
use crate::auth::Details;
use crate::config::Relay;
use crate::fault::RelayDrop;
use crate::limits::HELD_BACK_BYTES_MAX;
use crate::shard::parcel::{Arrival, Emit};
use crate::time::Now;
use crate::wire::sio::{EntryId, Offset};

/// Index of the stream of Socket.IO endpoints.
pub(super) const EVENTS: usize = 0;
/// Index of the other endpoints' stream.
pub(super) const PLAIN: usize = 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    host: String,
    appenders: [Appender; 2],
    reader: Reader,
    /// By stream: what was read and has to wait, with [`super::consults::Consults::last_sent`] of that moment.
    held: [VecDeque<(Entry, u64)>; 2],
    held_bytes: usize,
    /// By stream: the last entry that waits no longer.
    taken: [Option<EntryId>; 2],
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
        Streams { host: host.to_owned(), appenders, reader, held: Default::default(), held_bytes: 0, taken: [None; 2] }
    }

    /// The streams' keys.
    pub(super) fn keys(&self) -> [String; 2] {
        self.appenders.each_ref().map(|appender| appender.stream().to_owned())
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

    /// True exactly when the next entry of a stream finds no place.
    pub(super) fn is_choked(&self, stream: usize) -> bool {
        self.appenders[stream].is_choked()
    }

    /// Numbers of the last of our entries.
    pub(super) fn last(&self) -> Entries {
        self.appenders.each_ref().map(Appender::last)
    }

    /// True exactly when what Redis is sent from now on comes after these entries of ours.
    pub(super) fn has_passed(&self, entries: Entries) -> bool {
        self.appenders.iter().zip(entries).all(|(appender, number)| appender.has_passed(number))
    }

    /// Number of the last of our events that was taken back.
    pub(super) fn read_back(&self) -> u64 {
        let number = |(entry, _): &(Entry, u64)| entry.text("n").filter(|_| entry.text("h") == Some(&self.host))?.parse::<u64>().ok();
        let held = self.held[EVENTS].iter().find_map(number);
        held.map_or_else(|| self.reader.number(EVENTS, &self.host), |number| number.saturating_sub(1))
    }

    /// Up to where events were taken; `None` before the past was.
    pub(super) fn cursor(&self) -> Option<EntryId> {
        let read = self.reader.cursor(EVENTS)?;
        if self.held[EVENTS].is_empty() { Some(read) } else { self.taken[EVENTS] }
    }

    /// Up to where all was taken, by stream; `None` before the past was.
    pub(super) fn taken(&self) -> Option<[EntryId; 2]> {
        let of = |stream: usize| {
            let read = self.reader.cursor(stream)?;
            Some(if self.held[stream].is_empty() { read } else { self.taken[stream].unwrap_or_default() })
        };
        Some([of(EVENTS)?, of(PLAIN)?])
    }

    /// Entries were read; false when too much waits.
    #[must_use]
    fn hold(&mut self, entries: Vec<Entry>, sent: u64) -> bool {
        for entry in entries {
            self.held_bytes += entry.bytes();
            self.held[entry.stream].push_back((entry, sent));
        }
        self.held_bytes <= HELD_BACK_BYTES_MAX
    }

    /// The next entry that waits no longer.
    fn next_held(&mut self, lets_pass: impl Fn(usize, EntryId, u64) -> bool) -> Option<Entry> {
        for (stream, held) in self.held.iter_mut().enumerate() {
            if let Some((entry, _)) = held.pop_front_if(|(entry, sent)| lets_pass(stream, entry.id, *sent)) {
                self.held_bytes -= entry.bytes();
                self.taken[stream] = Some(entry.id);
                return Some(entry);
            }
        }
        None
    }

    /// What goes on after a reload, when nothing that was read has to wait any more.
    pub(super) fn freeze(&self) -> (Vec<FrozenAppender>, Vec<FrozenReader>) {
        (self.appenders.iter().map(Appender::freeze).collect(), self.reader.freeze())
    }

    pub(super) fn thaw(&mut self, appenders: Vec<FrozenAppender>, readers: Vec<FrozenReader>) {
        self.appenders.iter_mut().zip(appenders).for_each(|(appender, frozen)| appender.thaw(frozen));
        self.reader.thaw(readers);
    }

    /// True exactly when nothing that was read has to wait.
    pub(super) fn has_taken_all(&self) -> bool {
        self.held.iter().all(VecDeque::is_empty)
    }

    pub(super) fn handle_connected(&mut self) {
        self.appenders.iter_mut().for_each(Appender::handle_connected);
    }

    /// What Redis has is not known any more, though the connection goes on.
    pub(super) fn handle_replaced(&mut self) {
        self.appenders.iter_mut().for_each(Appender::handle_replaced);
    }

    /// Forgets what is kept for too long.
    pub(super) fn handle_timeouts(&mut self, now: Now) {
        self.appenders.iter_mut().for_each(|appender| appender.forget(now.ms()));
    }

    /// When something is due; what is to be added is not while there is no connection (`is_up`).
    pub(super) fn poll_timeout(&self, is_up: bool) -> u64 {
        let appended = self.appenders.iter().filter(|_| is_up).map(Appender::retry_ms).min();
        appended.unwrap_or(u64::MAX).min(self.reader.retry_ms())
    }

    /// The next request to add entries, none beyond these.
    pub(super) fn poll_append(&mut self, now: Now, until: Entries) -> Option<(Tag, Request)> {
        let mut appenders = self.appenders.iter_mut().zip(until).enumerate();
        let calls = appenders.find_map(|(stream, (appender, until))| Some((stream, appender.poll(now.ms(), until)?)));
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
    /// channel of plain endpoints, which is published as well. What is done besides is done at the same moment.
    pub(super) fn append(&mut self, call: &Call, besides: &[Call]) -> bool {
        let Some(streams) = &mut self.streams else { return false };
        let words: Vec<Cow<'_, str>> = call.words().map(String::from_utf8_lossy).collect();
        let host = streams.host.clone();
        let has_place = match words.as_slice() {
            [verb, _, fields @ ..] if verb == ENTRY => {
                let fields = fields.chunks_exact(2).map(|pair| (&*pair[0], &*pair[1]));
                streams.appenders[EVENTS].push(fields.chain([("h", &*host)]), besides)
            }
            [verb, channel, text] if verb == "PUBLISH" && self.channels.serves(channel) => {
                streams.appenders[PLAIN].push([("channel", &**channel), ("text", &**text), ("h", &*host)], besides)
            }
            _ => return false,
        };
        if !has_place {
            self.overflow(if words[0] == ENTRY { EVENTS } else { PLAIN });
        }
        true
    }

    /// Something finds no place in a stream.
    pub(super) fn overflow(&mut self, stream: usize) {
        self.drop_message(RelayDrop::Overflow, 1);
        self.mark_gap(stream);
    }

    /// Something is not in a stream that should be. Whoever would go on with what that has must know of it.
    pub(super) fn mark_gap(&mut self, stream: usize) {
        if let Some(streams) = self.streams.as_mut().filter(|_| stream == EVENTS) {
            streams.appenders[EVENTS].mark_gap(&streams.host);
        }
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
        self.drop_message(RelayDrop::Refused, confirmed.failed);
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

    /// It goes on, but what Redis has may be less than it was.
    pub(crate) fn handle_reader_replaced(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.reader.handle_replaced();
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
        if let Some((gap, sessions)) = batch.gap.zip(self.sessions.as_mut()) {
            sessions.journal.note_gap(gap);
        }
        if let Some(streams) = &mut self.streams
            && !streams.hold(batch.entries, self.consults.last_sent())
        {
            self.consults.let_all_pass();
        }
        self.conclude(now);
        self.go_on_with_sessions(now);
    }

    /// Takes the next entry that has to wait for no answer; false when there is none.
    pub(super) fn take_next_entry(&mut self, now: Now) -> bool {
        let consults = &self.consults;
        let entry = self.streams.as_mut().and_then(|streams| streams.next_held(|stream, id, sent| consults.lets_pass(stream, id, sent)));
        if let Some(entry) = &entry {
            self.take_entry(now, entry);
        }
        entry.is_some()
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
        if entry.text(GAP).is_some() {
            // Whoever reads has noted it.
            return Heard::Known;
        }
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
        let hidden_from = blocked.map(|blocked| Arc::new(Details { blocked, ..Details::default() }.into()));
        let arrival = Arc::new(Arrival { hidden_from, ..arrival });
        self.note_event(entry.id, arrival.clone());
        if !is_known {
            self.stats.received.add(1);
            self.arrive(arrival);
        }
        Heard::Known
    }
}
