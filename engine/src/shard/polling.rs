//! Engine.IO long-polling: a session without a socket of its own. Its link holds connections and outbox like any other; the HTTP requests
//! that read and write it come to any shard (`engine_http`) and travel to the session's as parcels, because its id names that shard. A WebSocket
//! that asks for a session is moved to the session's shard and takes its place.

use std::net::SocketAddr;

use super::Shard;
use super::links::{Heartbeat, Inbox, Link, Polling, State};
use super::parcel::{Call, Parcel, Poll, Requester};
use super::rate::{Rate, Verdict};
use crate::fault::CloseReason;
use crate::frame::Frame;
use crate::ids::{LinkKey, Sid};
use crate::limits::{LINKS_PER_SHARD_MAX, POLLING_GRACE_MS};
use crate::time::Now;
use crate::wire::eio;
use crate::wire::ws::{self, Message};

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";
pub(super) const HTML: &str = "text/html";

impl Shard {
    /// A session of a client of this address; it has no id yet.
    pub(super) fn new_session(&mut self, now: Now, peer: SocketAddr, socket: super::links::SocketIoLink) -> Option<u32> {
        let rate = Rate::new(&self.world.config.limits, now.ms());
        let polling = Polling {
            sid: self.session_id(0),
            poll: None,
            answered: None,
            inbox: Inbox::default(),
            probe: None,
            probers: 0,
            held: None,
            is_over: false,
        };
        let inserted = self.links.insert(LINKS_PER_SHARD_MAX, |_, generation| Link {
            state: State::SocketIo(Box::new(socket)),
            polling: Some(Box::new(polling)),
            ..Link::new(generation, peer, rate)
        });
        inserted.map(|(slot, _)| slot)
    }

    /// The session of an id, if it lives here; else the protocol's error: 3 when a WebSocket has taken it over, 1 when there is none.
    pub(super) fn session(&self, sid: Sid) -> Result<u32, u8> {
        let slot = self.guests.get(&sid).copied().unwrap_or(sid.slot());
        let polling = self.links.get(slot).and_then(|link| link.polling.as_ref());
        if polling.is_some_and(|polling| polling.sid == sid && !polling.is_over) {
            return Ok(slot);
        }
        let lives_on = self.upgraded.get(sid).is_some_and(|link| {
            self.links.holds(link.slot, link.generation)
                && self.links.get(link.slot).is_some_and(|link| matches!(link.state, State::SocketIo(_)))
        });
        Err(if lives_on { 3 } else { 1 })
    }

    /// The session, if a WebSocket may take it over: none has probed yet, and it is not being told goodbye.
    pub(super) fn free_session(&self, slot: u32) -> Option<LinkKey> {
        let link = self.links.get(slot)?;
        let is_free = link.polling.as_ref().is_some_and(|polling| polling.probe.is_none());
        (is_free && matches!(link.state, State::SocketIo(_))).then_some(LinkKey { slot, generation: link.generation })
    }

    /// A request for a session of this shard.
    pub(super) fn take_poll(&mut self, now: Now, request: Poll) {
        if self.moved_away.contains_key(&request.sid) {
            return self.post(Parcel::Poll(Box::new(request)));
        }
        let Poll { sid, from, call } = request;
        let slot = match self.session(sid) {
            Ok(slot) => slot,
            Err(code) => return self.respond(from, 400, JSON, eio::error(code).to_owned()),
        };
        if self.is_silent(now, slot) {
            // The tick that ends it is on its way.
            self.respond(from, 400, JSON, eio::error(1).to_owned());
            return self.lose(now, slot, CloseReason::Heartbeat);
        }
        match call {
            Call::Listen => self.wait_with_poll(now, slot, from),
            Call::Say(body) => self.take_post(now, slot, from, body),
            Call::Unknown => self.respond(from, 400, JSON, eio::error(3).to_owned()),
            Call::Fatal(status) => {
                let reason = if status == 413 { CloseReason::Oversize } else { CloseReason::Protocol };
                self.respond(from, status, HTML, String::new());
                self.lose(now, slot, reason);
            }
        }
    }

    fn take_post(&mut self, now: Now, slot: u32, from: Requester, body: String) {
        let bytes_max = self.world.config.limits.message_bytes;
        let Some(Link { polling: Some(polling), state, .. }) = self.links.get_mut(slot) else { return };
        if matches!(state, State::Closing { .. }) {
            // Whoever is told goodbye is not listened to any more, but he may take his leave before he has heard all of it.
            let is_leaving = body.split(eio::SEPARATOR).any(|packet| packet == "1");
            self.respond(from, 200, HTML, "ok".to_owned());
            if is_leaving {
                self.end_polling(now, slot, true);
            }
            return;
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
        if self.moved_away.contains_key(&sid) {
            return self.post(Parcel::PollAborted { sid, from });
        }
        let Ok(slot) = self.session(sid) else { return };
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
        // The last word has an answer of its own, as in Node: the client drops what it has not yet looked at when it reads it.
        let is_last = is_closing && texts.is_empty();
        if is_last {
            texts.push('1');
        }
        if texts.is_empty() {
            return;
        }
        polling.answered = polling.poll.take();
        self.respond(poll, 200, TEXT, texts);
        if is_last {
            self.finish(slot, false);
        }
    }

    /// Answers the poll that waits, also when there is nothing to say: its client polls again.
    pub(super) fn answer_with_nothing(&mut self, slot: u32) {
        self.answer_poll(slot);
        let poll = self.links.get_mut(slot).and_then(|link| link.polling.as_mut()).and_then(|polling| polling.poll.take());
        if let Some(poll) = poll {
            self.respond(poll, 200, TEXT, "6".to_owned());
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
    pub(super) fn leave_session(&mut self, now: Now, slot: u32) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let key = LinkKey { slot, generation: link.generation };
        match &link.state {
            State::Polled(polled) => {
                let (sid, from) = (polled.sid, Requester { shard: self.id, link: key, number: polled.number });
                self.post(Parcel::PollAborted { sid, from });
            }
            State::Probe(probe) => {
                let session = probe.session;
                if let Some(Link { polling: Some(polling), .. }) = self.links.get_mut_of(session.slot, session.generation) {
                    polling.probers -= 1;
                    if polling.probe == Some(key) {
                        polling.probe = None;
                        self.polls.push(session.slot);
                    }
                    self.go_on_after_upgrade(now, session.slot);
                }
            }
            _ => {
                if let Some(poll) = link.polling.as_mut().and_then(|polling| polling.poll.take()) {
                    self.respond(poll, 200, TEXT, "1".to_owned());
                }
            }
        }
    }

    /// There is no session for this request any more.
    pub(super) fn respond_gone(&mut self, to: Requester) {
        self.respond(to, 400, JSON, eio::error(1).to_owned());
    }

    fn respond(&mut self, to: Requester, status: u16, kind: &'static str, body: String) {
        self.post(Parcel::PollAnswer { to, status, content: (kind, body) });
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
        let before = old.outbox.bytes();
        let frames = old.outbox.take_frames();
        let (peer, ticket, guest, mut polling) = (old.peer, old.ticket.take(), old.guest.take(), old.polling.take());
        if let Some(poll) = polling.as_mut().and_then(|polling| polling.poll.take()) {
            self.respond(poll, 200, TEXT, "6".to_owned());
        }
        if let Some(polling) = &mut polling {
            polling.is_over = true;
        }
        let mut own_ticket = None;
        if let Some(link) = self.links.get_mut(slot) {
            (link.state, link.heartbeat, link.rate, link.peer) = (state, heartbeat, rate, peer);
            link.guest = guest;
            // The session's place at its address is enough for both.
            own_ticket = std::mem::replace(&mut link.ticket, ticket);
            if let Some(polling) = &polling {
                self.upgraded.add(polling.sid, LinkKey { slot, generation: link.generation });
            }
            link.waiting += waiting;
            link.polling = polling;
            let own = link.outbox.bytes();
            let is_old = matches!(&link.state, State::SocketIo(socket) if socket.rare().old.is_some());
            for frame in frames.into_iter().filter(|frame| !frame.is_encoded()) {
                let is_marked = is_old && frame.has_attachments();
                let frame = if is_marked { std::rc::Rc::new(frame.marked()) } else { frame };
                link.outbox.push(frame, &mut self.spares);
            }
            // Marked they are longer, and some may have been left out.
            self.stats.outbox_bytes.add((link.outbox.bytes() - own) as u64);
            self.stats.outbox_bytes.sub(before as u64);
        }
        if let Some(own) = own_ticket {
            self.world.addresses.close(own);
        }
        for conn in self.conns_of(slot) {
            let Some(conn) = self.conns.get_mut(conn) else { continue };
            conn.link = slot;
            if std::mem::take(&mut conn.is_polling) {
                self.stats.endpoints[usize::from(conn.endpoint.0)].polling.sub(1);
            }
            for seat in conn.seats.iter() {
                self.membership.relink(*seat, slot);
            }
        }
        self.finish(session, false);
        self.take_challenge_over(slot);
        self.mark_dirty(slot);
        self.arm_next(now, slot);
        self.go_on_after_upgrade(now, slot);
        self.drain_inbox(now, slot);
    }
}
