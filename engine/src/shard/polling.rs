//! Engine.IO long-polling: a session without a socket of its own. Its link holds connections and outbox like any other; the HTTP requests
//! that read and write it come to any shard and travel to the session's as parcels, because its id names that shard. Each request is a
//! connection of its own here (`Connection: close`). A WebSocket that asks for a session is moved to the session's shard and takes its place.

use std::net::SocketAddr;

use super::links::{Heartbeat, Inbox, Link, Polling, State};
use super::parcel::{Parcel, Poll, Requester};
use super::rate::{Rate, Verdict};
use super::{Command, Shard, outbox};
use crate::fault::{CloseReason, Refusal};
use crate::frame::Frame;
use crate::ids::{LinkKey, Sid};
use crate::limits::{LINKS_PER_SHARD_MAX, POLLING_GRACE_MS, UPGRADE_MS};
use crate::time::Now;
use crate::wire::eio;
use crate::wire::http::{self, Request};
use crate::wire::ws::{self, Message};

/// What became of a request for the Engine.IO path.
pub(super) enum Engine {
    /// It opens a session.
    Handshake,
    /// Its body is not all there.
    Wait,
    /// It was answered, sent on or moved.
    Taken,
    /// It is a WebSocket that takes over a session.
    Probing,
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=UTF-8";
const HTML: &str = "text/html";

impl Shard {
    /// Looks at a request for the Engine.IO path, in the protocol's order of checks. `bytes` is all that was read, `head` the head's length.
    pub(super) fn read_engine_io(&mut self, now: Now, key: LinkKey, request: &Request<'_>, bytes: &[u8], head: usize) -> Engine {
        let refuse = |shard: &mut Shard, code| shard.refuse_engine_io(now, key.slot, request, code);
        if request.method == "OPTIONS" {
            return self.preflight(now, key.slot, request);
        }
        let is_websocket = request.wants_websocket();
        match request.query_value("transport").as_deref() {
            Some("polling" | "websocket") => {}
            _ => return refuse(self, 0),
        }
        let Some(sid) = request.query_value("sid") else {
            return match (request.method, request.query_value("EIO").as_deref(), request.query_value("transport").as_deref()) {
                ("GET", Some("4"), Some("websocket")) if is_websocket => Engine::Handshake,
                ("GET", Some("4"), Some("polling")) if !is_websocket => Engine::Handshake,
                ("GET", Some("4"), _) => refuse(self, 3),
                ("GET", _, _) => refuse(self, 5),
                _ => refuse(self, 2),
            };
        };
        let shards = self.world.config.shards.len();
        let Some(sid) = Sid::parse(&sid).filter(|sid| usize::from(sid.shard().0) < shards) else { return refuse(self, 1) };
        if is_websocket {
            return self.probe(now, key, request, sid, bytes);
        }
        if request.query_value("transport").as_deref() != Some("polling") {
            return refuse(self, 3);
        }
        if sid.shard() == self.id && self.session(sid).is_none() {
            // Told before its body is waited for.
            return refuse(self, 1);
        }
        let (post, fatal) = match request.method {
            "GET" => (None, None),
            "POST" => match self.body(request, &bytes[head..]) {
                Body::Incomplete => return Engine::Wait,
                Body::Text(text) => (Some(text), None),
                Body::Bad(status) => (None, Some(status)),
            },
            _ => return refuse(self, 3),
        };
        let origin = request.header("origin").map(Into::into);
        let socket_io = &self.world.config.socket_io;
        // A poll is answered by the next heartbeat at the latest.
        let deadline_ms = now.ms() + socket_io.ping_interval_ms + socket_io.ping_timeout_ms + UPGRADE_MS;
        if let Some(link) = self.links.get_mut(key.slot) {
            link.state = State::Polled { sid, origin, deadline_ms };
        }
        self.arm(key.slot, deadline_ms);
        self.post(Parcel::Poll(Box::new(Poll { sid, from: Requester { shard: self.id, link: key }, post, fatal })));
        Engine::Taken
    }

    fn body(&self, request: &Request<'_>, bytes: &[u8]) -> Body {
        let length = request.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let is_binary = request.header("content-type").is_some_and(|kind| kind.starts_with("application/octet-stream"));
        match length {
            _ if is_binary => Body::Bad(400),
            None => Body::Bad(400),
            Some(length) if length > self.world.config.limits.message_bytes => Body::Bad(413),
            Some(length) if bytes.len() < length => Body::Incomplete,
            Some(length) => match std::str::from_utf8(&bytes[..length]) {
                Ok(text) => Body::Text(text.to_owned()),
                Err(_) => Body::Bad(400),
            },
        }
    }

    fn refuse_engine_io(&mut self, now: Now, slot: u32, request: &Request<'_>, code: u8) -> Engine {
        self.stats.unrouted().refused[Refusal::BadRequest.index()].add(1);
        if request.wants_websocket() {
            let text = eio::error(code).split('"').nth(5).unwrap_or_default();
            self.answer_http(now, slot, http::response(400, HTML, &[], text));
        } else {
            let headers = self.cross_origin(request.header("origin"));
            self.answer_http(now, slot, http::response(400, JSON, &pairs(&headers), eio::error(code)));
        }
        Engine::Taken
    }

    /// What lets a page of another origin read the answer.
    fn cross_origin(&self, origin: Option<&str>) -> Vec<(&'static str, String)> {
        let config = &self.world.config;
        match origin {
            Some(origin) if config.origins.iter().any(|listed| listed == origin) => vec![
                ("Access-Control-Allow-Origin", origin.to_owned()),
                ("Vary", "Origin".to_owned()),
                ("Access-Control-Allow-Credentials", "true".to_owned()),
            ],
            Some(_) if config.any_origin => vec![("Access-Control-Allow-Origin", "*".to_owned())],
            _ => Vec::new(),
        }
    }

    fn preflight(&mut self, now: Now, slot: u32, request: &Request<'_>) -> Engine {
        let mut headers = self.cross_origin(request.header("origin"));
        if !headers.is_empty() {
            headers.push(("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE".to_owned()));
            if let Some(wanted) = request.header("access-control-request-headers") {
                headers.push(("Access-Control-Allow-Headers", wanted.to_owned()));
            }
        }
        self.answer_http(now, slot, http::response(204, HTML, &pairs(&headers), ""));
        Engine::Taken
    }

    /// Opens a long-polling session on this shard and answers its handshake.
    pub(super) fn open_polling(&mut self, now: Now, key: LinkKey, request: &Request<'_>) {
        let socket = self.new_socket(now, request);
        let Some(peer) = self.links.get(key.slot).map(|link| link.peer) else { return };
        let session = if self.world.addresses.enter() { self.new_session(now, peer, socket) } else { None };
        let Some(slot) = session else {
            self.world.addresses.leave();
            return self.answer_http(now, key.slot, http::response(503, HTML, &[], ""));
        };
        let sid = self.session_id(slot);
        let ticket = self.links.get_mut(key.slot).and_then(|link| link.ticket.take());
        if let Some(Link { polling: Some(polling), ticket: kept, .. }) = self.links.get_mut(slot) {
            // The session holds the address's place from now on, not the request.
            *kept = ticket;
            polling.sid = sid;
            polling.poll = Some(Requester { shard: self.id, link: key });
        }
        let origin = request.header("origin").map(Into::into);
        if let Some(link) = self.links.get_mut(key.slot) {
            link.state = State::Polled { sid, origin, deadline_ms: u64::MAX };
        }
        self.greet_socket_io(now, slot, sid.text().as_str(), &["websocket"]);
        self.expect_namespace(now, slot);
    }

    fn new_session(&mut self, now: Now, peer: SocketAddr, socket: super::links::SocketIoLink) -> Option<u32> {
        let rate = Rate::new(&self.world.config.limits, now.ms());
        let polling = Polling { sid: self.session_id(0), poll: None, answered: None, inbox: Inbox::default(), probe: None, is_over: false };
        let inserted = self.links.insert(LINKS_PER_SHARD_MAX, |_, generation| Link {
            generation,
            state: State::SocketIo(Box::new(socket)),
            peer,
            ticket: None,
            outbox: outbox::Outbox::default(),
            partial: Vec::new(),
            decoder: ws::Decoder::default(),
            waiting: 0,
            corked: false,
            alarm_ms: u64::MAX,
            rate,
            heartbeat: Heartbeat::NEVER,
            polling: Some(Box::new(polling)),
        });
        inserted.map(|(slot, _)| slot)
    }

    /// The session of an id, if it lives here.
    fn session(&self, sid: Sid) -> Option<u32> {
        let polling = self.links.get(sid.slot())?.polling.as_ref()?;
        (polling.sid == sid && !polling.is_over).then_some(sid.slot())
    }

    /// A request for a session of this shard.
    pub(super) fn take_poll(&mut self, now: Now, request: Poll) {
        let Poll { sid, from, post, fatal } = request;
        let Some(slot) = self.session(sid) else { return self.respond(from, 400, JSON, eio::error(1).to_owned()) };
        if let Some(status) = fatal {
            let reason = if status == 413 { CloseReason::Oversize } else { CloseReason::Protocol };
            self.respond(from, status, HTML, String::new());
            return self.lose(now, slot, reason);
        }
        if self.is_silent(now, slot) {
            // The tick that ends it is on its way.
            self.respond(from, 400, JSON, eio::error(1).to_owned());
            return self.lose(now, slot, CloseReason::Heartbeat);
        }
        match post {
            Some(body) => self.take_post(now, slot, from, body),
            None => self.wait_with_poll(now, slot, from),
        }
    }

    fn take_post(&mut self, now: Now, slot: u32, from: Requester, body: String) {
        let bytes_max = self.world.config.limits.message_bytes;
        let Some(Link { polling: Some(polling), state, .. }) = self.links.get_mut(slot) else { return };
        if matches!(state, State::Closing { .. }) {
            // Whoever is told goodbye is not listened to any more.
            return self.respond(from, 200, HTML, "ok".to_owned());
        }
        if polling.inbox.bytes() + body.len() > bytes_max {
            // It goes on talking while an answer is due, more than one message may hold.
            self.respond(from, 400, HTML, String::new());
            return self.lose(now, slot, CloseReason::Oversize);
        }
        polling.inbox.push(body);
        self.respond(from, 200, HTML, "ok".to_owned());
        self.drain_inbox(now, slot);
    }

    fn wait_with_poll(&mut self, now: Now, slot: u32, from: Requester) {
        let Some(polling) = self.links.get_mut(slot).and_then(|link| link.polling.as_mut()) else { return };
        if let Some(first) = polling.poll.take() {
            // Two at a time are a fault that ends the session, as in Node.
            self.respond(first, 200, TEXT, "1".to_owned());
            self.respond(from, 400, HTML, String::new());
            return self.lose(now, slot, CloseReason::Protocol);
        }
        polling.poll = Some(from);
        self.polls.push(slot);
    }

    /// The requester of a poll is gone: so is the client.
    pub(super) fn poll_aborted(&mut self, now: Now, sid: Sid, from: Requester) {
        let Some(slot) = self.session(sid) else { return };
        let polling = self.links.get_mut(slot).and_then(|link| link.polling.as_mut());
        // One that was answered is aborted only if the answer came too late: what it said is lost.
        if polling.is_some_and(|polling| polling.poll.take_if(|poll| *poll == from).is_some() || polling.answered == Some(from)) {
            self.lose(now, slot, CloseReason::Transport);
        }
    }

    /// Answers the poll that waits, if there is something to say.
    pub(super) fn answer_poll(&mut self, slot: u32) {
        let body_max = self.world.config.limits.message_bytes;
        let Some(Link { polling: Some(polling), outbox, state, .. }) = self.links.get_mut(slot) else { return };
        let Some(poll) = polling.poll else { return };
        let is_closing = matches!(state, State::Closing { .. });
        if polling.probe.is_some() && !is_closing {
            // What is said goes to the WebSocket, once it has taken over.
            polling.poll = None;
            return self.respond(poll, 200, TEXT, "6".to_owned());
        }
        let stats = &self.stats;
        let (mut texts, taken) = outbox.take_payload(body_max, |frame| {
            if let Some(endpoint) = frame.endpoint() {
                let counters = &stats.endpoints[usize::from(endpoint.0)];
                counters.delivered.add(1);
                counters.delivered_bytes.add(frame.payload().len() as u64);
            }
        });
        stats.outbox_bytes.sub(taken as u64);
        if outbox.is_over(self.world.config.limits.outbox_bytes) {
            self.slow.push(slot);
        }
        if is_closing {
            if !texts.is_empty() {
                texts.push(eio::SEPARATOR);
            }
            texts.push('1');
        }
        if texts.is_empty() {
            return;
        }
        polling.answered = polling.poll.take();
        self.respond(poll, 200, TEXT, texts);
        if is_closing {
            self.finish(slot, false);
        }
    }

    /// The session ends by the server's will: the next poll is told what was still to be said, and that it was the last.
    pub(super) fn end_polling(&mut self, now: Now, slot: u32, peer_done: bool) {
        if peer_done {
            let poll = self.links.get_mut(slot).and_then(|link| link.polling.as_mut()).and_then(|polling| polling.poll.take());
            if let Some(poll) = poll {
                self.respond(poll, 200, TEXT, "6".to_owned());
            }
            return self.finish(slot, false);
        }
        // A server that stops does not wait that long for a poll.
        let grace_ms = if self.drain.is_some() { self.world.config.limits.close_ms } else { POLLING_GRACE_MS };
        let deadline_ms = now.ms() + grace_ms;
        let Some(link) = self.links.get_mut(slot) else { return };
        if matches!(link.state, State::Closing { .. }) {
            return;
        }
        link.state = State::Closing { deadline_ms, peer_done: false, impatient: false };
        link.heartbeat = Heartbeat::NEVER;
        if let Some(polling) = &mut link.polling {
            polling.inbox = Inbox::default();
        }
        self.polls.push(slot);
        self.arm(slot, deadline_ms);
    }

    /// A link ends that a session counts on, or that is one.
    pub(super) fn leave_session(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let key = LinkKey { slot, generation: link.generation };
        match &link.state {
            State::Polled { sid, .. } => {
                let (sid, from) = (*sid, Requester { shard: self.id, link: key });
                self.post(Parcel::PollAborted { sid, from });
            }
            State::Probe { session, .. } => {
                let session = *session;
                if let Some(Link { polling: Some(polling), .. }) = self.links.get_mut_of(session.slot, session.generation)
                    && polling.probe == Some(key)
                {
                    polling.probe = None;
                    self.polls.push(session.slot);
                }
            }
            _ => {
                if let Some(poll) = link.polling.as_mut().and_then(|polling| polling.poll.take()) {
                    self.respond(poll, 200, TEXT, "1".to_owned());
                }
            }
        }
    }

    fn respond(&mut self, to: Requester, status: u16, kind: &'static str, body: String) {
        self.post(Parcel::PollAnswer { to, status, content: (kind, body) });
    }

    /// The answer of a session for a request that came here.
    pub(super) fn send_poll_answer(&mut self, now: Now, link: LinkKey, status: u16, (kind, body): &(&'static str, String)) {
        let Some(Link { state: State::Polled { origin, .. }, .. }) = self.links.get_mut_of(link.slot, link.generation) else { return };
        let origin = origin.take();
        let mut headers = self.cross_origin(origin.as_deref());
        if *kind == TEXT {
            headers.push(("Cache-Control", "no-store".to_owned()));
        }
        self.answer_http(now, link.slot, http::response(status, kind, &pairs(&headers), body));
        // What was said is in this answer and nowhere else: a slow line gets as long as a heartbeat would give it.
        let socket_io = &self.world.config.socket_io;
        let patience_ms = now.ms() + socket_io.ping_interval_ms + socket_io.ping_timeout_ms;
        if let Some(Link { state: State::Closing { deadline_ms, .. }, .. }) = self.links.get_mut_of(link.slot, link.generation) {
            *deadline_ms = patience_ms;
        }
    }

    /// Handles the packets of POSTs, one after the other, as far as no answer must come first.
    pub(super) fn drain_inbox(&mut self, now: Now, slot: u32) {
        loop {
            let Some(Link { polling: Some(polling), waiting, state, .. }) = self.links.get_mut(slot) else { return };
            if *waiting > 0 || matches!(state, State::Closing { .. }) {
                return;
            }
            let Some(packet) = polling.inbox.next() else { break };
            // Messages are held against the rate where they are heard, their attachments with them; everything else here, or a body of a
            // million nothings were free.
            if !packet.starts_with(['4', 'b']) && self.rate(now, slot) != Verdict::Within {
                continue;
            }
            if packet.starts_with('b') {
                self.take_attachment(now, slot, eio::attachment(&packet));
            } else {
                self.take_packet(now, slot, &packet);
            }
        }
        if let Some(link) = self.links.get_mut(slot)
            && link.polling.as_ref().is_some_and(|polling| polling.is_over)
        {
            link.polling = None;
        }
    }

    /// A WebSocket asks for a session: it goes to the session's shard, and there is answered.
    fn probe(&mut self, now: Now, key: LinkKey, request: &Request<'_>, sid: Sid, bytes: &[u8]) -> Engine {
        if sid.shard() != self.id {
            let Some(link) = self.links.get_mut(key.slot) else { return Engine::Taken };
            // From here on its bytes are the other shard's.
            link.waiting += 1;
            let peer = link.peer;
            self.commands.push_back(Command::Move { link: key, peer, to: sid.shard(), read: bytes.to_vec() });
            return Engine::Taken;
        }
        let session = self.session(sid).and_then(|slot| {
            let link = self.links.get(slot)?;
            let is_free = link.polling.as_ref().is_some_and(|polling| polling.probe.is_none());
            (is_free && matches!(link.state, State::SocketIo(_))).then_some(LinkKey { slot, generation: link.generation })
        });
        let Ok(accept) = request.websocket_key() else { return self.refuse_engine_io(now, key.slot, request, 3) };
        let response = http::switching_protocols(accept, request.first_protocol(), &[]);
        let Some(session) = session else {
            // It went, or has a WebSocket already, which is not remembered here; of the latter Node tells in this way.
            self.push(now, key.slot, Frame::encoded(response));
            self.close_link(now, key.slot, CloseReason::Protocol, Some(ws::empty_close_frame()));
            return Engine::Taken;
        };
        let deadline_ms = now.ms() + UPGRADE_MS;
        if let Some(link) = self.links.get_mut(key.slot) {
            link.state = State::Probe { session, deadline_ms };
        }
        self.arm(key.slot, deadline_ms);
        self.push(now, key.slot, Frame::encoded(response));
        Engine::Probing
    }

    /// What a WebSocket says that wants to take over a session: `2probe`, then `5`.
    pub(super) fn take_probe(&mut self, now: Now, slot: u32, session: LinkKey, message: Message<'_>) {
        let Some(key) = self.links.get(slot).map(|link| LinkKey { slot, generation: link.generation }) else { return };
        let polling = match self.links.get_mut_of(session.slot, session.generation) {
            // A session that is being told goodbye is not taken over.
            Some(Link { state: State::SocketIo(_), polling, .. }) => polling.as_mut(),
            _ => None,
        };
        match (message, polling) {
            (Message::Text("2probe"), Some(polling)) if polling.probe.is_none() => {
                polling.probe = Some(key);
                self.polls.push(session.slot);
                self.push(now, slot, Frame::control_text("3probe"));
            }
            (Message::Text("5"), Some(polling)) if polling.probe == Some(key) => self.take_over(now, slot, session.slot),
            (Message::Ping(payload), Some(_)) => {
                if self.rate(now, slot) == Verdict::Within {
                    self.push(now, slot, Frame::encoded(ws::frame(10, payload)));
                }
            }
            (Message::Pong(_), Some(_)) => {}
            _ => self.close_link(now, slot, CloseReason::Protocol, Some(ws::empty_close_frame())),
        }
    }

    /// The WebSocket takes the session's place: connections, queue, heartbeat, and whatever waits.
    fn take_over(&mut self, now: Now, slot: u32, session: u32) {
        let Some(old) = self.links.get_mut(session) else { return };
        let over = State::Closing { deadline_ms: u64::MAX, peer_done: true, impatient: false };
        let state = std::mem::replace(&mut old.state, over);
        let (heartbeat, rate, waiting) = (old.heartbeat, old.rate, std::mem::take(&mut old.waiting));
        let frames = old.outbox.take_frames();
        let (peer, ticket, mut polling) = (old.peer, old.ticket.take(), old.polling.take());
        if let Some(poll) = polling.as_mut().and_then(|polling| polling.poll.take()) {
            self.respond(poll, 200, TEXT, "6".to_owned());
        }
        if let Some(polling) = &mut polling {
            polling.is_over = true;
        }
        if let Some(link) = self.links.get_mut(slot) {
            (link.state, link.heartbeat, link.rate, link.peer, link.ticket) = (state, heartbeat, rate, peer, ticket);
            link.waiting += waiting;
            link.polling = polling;
            for frame in frames.into_iter().filter(|frame| !frame.is_encoded()) {
                link.outbox.push(frame);
            }
        }
        for conn in self.conns_of(slot) {
            let Some(conn) = self.conns.get_mut(conn) else { continue };
            conn.link = slot;
            if std::mem::take(&mut conn.is_polling) {
                self.stats.endpoints[usize::from(conn.endpoint.0)].polling.sub(1);
            }
            for seat in &conn.seats {
                self.membership.relink(*seat, slot);
            }
        }
        self.finish(session, false);
        self.mark_dirty(slot);
        self.arm_next(now, slot);
        self.drain_inbox(now, slot);
    }
}

enum Body {
    Incomplete,
    Text(String),
    /// The session ends with this status.
    Bad(u16),
}

fn pairs<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}
