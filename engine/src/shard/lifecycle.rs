//! How links and connections begin and end. What time does to them is the business of `deadlines`.

use std::sync::Arc;

use rand::RngExt as _;

use super::deadlines::PLAIN_PING_MS;
use super::lean::Seldom;
use super::links::{Conn, Heartbeat, Link, Stage, State};
use super::parcel::Enter;
use super::recovery::NO_LINK;
use super::{Command, Shard};
use crate::auth::Identity;
use crate::config::DialectKind;
use crate::dialect::{EnterFault, Refused};
use crate::event::What;
use crate::fault::{CloseReason, DropReason};
use crate::frame::Frame;
use crate::ids::{LinkKey, Room, SidText};
use crate::time::Now;
use crate::wire::{eio, http, sio, ws};

impl Shard {
    /// The peer ended its direction, or the socket failed.
    pub fn handle_end(&mut self, now: Now, key: LinkKey) {
        if !self.links.holds(key.slot, key.generation) {
            return;
        }
        self.lose(now, key.slot, CloseReason::Transport);
        self.settle(now);
    }

    /// Slots of the connections of a link.
    pub(super) fn conns_of(&self, slot: u32) -> Vec<u32> {
        match self.links.get(slot).map(|link| &link.state) {
            Some(State::Plain { conn }) => vec![*conn],
            Some(State::SocketIo(socket)) => socket.conns.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Puts a connection into the table and asks the user's home to let it in; the link waits for that.
    pub(super) fn open_conn(&mut self, now: Now, slot: u32, make: impl FnOnce(u32, u32) -> Conn) -> Option<u32> {
        let (conn_slot, generation) = self.conns.insert(crate::limits::LINKS_PER_SHARD_MAX, make)?;
        let conn = self.conns.get(conn_slot)?;
        debug_assert!(conn.generation == generation && conn.link == slot);
        let endpoint = conn.endpoint;
        // Old clients do not know how to come back.
        let recovery = if self.is_old(slot) { None } else { self.new_recovery(endpoint, conn_slot) };
        let conn = self.conns.get_mut(conn_slot)?;
        conn.recovery = recovery;
        self.forget_claims(conn_slot);
        let conn = self.conns.get(conn_slot)?;
        let is_unknown = matches!(conn.stage, Stage::Unknown { .. });
        let is_asked = conn.opening.as_ref().is_some_and(|opening| opening.asking.is_some());
        self.counters(endpoint).connections.add(1);
        if self.links.get(slot).is_some_and(Link::is_polling) {
            self.counters(endpoint).polling.add(1);
            if let Some(conn) = self.conns.get_mut(conn_slot) {
                conn.is_polling = true;
            }
        }
        if is_unknown {
            self.let_in_unknown(conn_slot);
        } else if is_asked {
            self.inquire_caller(now, conn_slot);
        } else {
            self.ask_user_home(now, conn_slot, None);
        }
        Some(conn_slot)
    }

    /// Asks the user's home to let a connection in.
    pub(super) fn ask_user_home(&mut self, now: Now, slot: u32, note: Option<Box<str>>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let enter = Enter {
            conn: self.conn_id(slot, conn),
            room: Room::user(conn.endpoint, &conn.profile.user),
            presence: conn.profile.user.clone(),
            again: false,
            create: true,
            members_max: self.world.config.limits.connections_per_user,
            announce: self.presence_news(&self.context(now, conn), true),
            history: 0,
            online: false,
            note,
        };
        self.ask_home(slot, enter, false);
    }

    /// The user's home has answered: the connection is open, or refused.
    pub(super) fn admitted(&mut self, now: Now, slot: u32, outcome: Result<(), EnterFault>) {
        let Some(conn) = self.conns.get(slot) else { return };
        if outcome.is_err() && conn.opening.is_some() {
            let refused = self.dialect(conn.endpoint).too_many(now);
            return self.turn_away(now, slot, refused);
        }
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let Some(opening) = conn.opening.take() else { return };
        let (link, endpoint, sid) = (conn.link, conn.endpoint, conn.sid);
        let everybody = Room::everybody(endpoint);
        if conn.is_authenticated() {
            self.membership.join(&everybody, slot, link, &mut conn.seats);
            self.note_stay(slot, &everybody);
            self.counters(endpoint).authenticated.add(1);
        }
        let pid = self.conns.get(slot).and_then(|conn| conn.recovery.as_ref()).map(|recovery| recovery.pid());
        self.counters(endpoint).accepted.add(1);
        self.tell(now, slot, None, What::Connection);
        match opening.response {
            Some(response) => {
                if let Some(link) = self.links.get_mut(link) {
                    link.heartbeat = Heartbeat::starting(now.ms() + PLAIN_PING_MS);
                    link.corked = true;
                }
                self.push(now, link, Frame::encoded(response));
            }
            None => {
                let namespace = &self.world.config.endpoints[usize::from(endpoint.0)].bind;
                let connected = match self.is_old(link) {
                    true => sio::connect_old(namespace),
                    false => sio::connect(namespace, sid.text().as_str(), pid.map(|pid| pid.text()).as_ref().map(SidText::as_str)),
                };
                self.push(now, link, Frame::control_text(&connected));
            }
        }
        self.arm_next(now, link);
        if self.world.config.endpoints[usize::from(endpoint.0)].dialect == DialectKind::Echo {
            return self.greet_later(now, slot);
        }
        self.consult(now, slot, |dialect, cx, _, acts| dialect.opened(cx, &opening.query, acts));
    }

    /// Takes a connection that is not open yet out of the table and refuses it.
    pub(super) fn turn_away(&mut self, now: Now, slot: u32, refused: Refused) {
        let Some(id) = self.conns.get(slot).map(|conn| self.conn_id(slot, conn)) else { return };
        let Some(mut conn) = self.conns.remove(slot) else { return };
        let (link, endpoint) = (conn.link, conn.endpoint);
        let response = conn.opening.take().and_then(|opening| opening.response);
        self.counters(endpoint).connections.sub(1);
        self.unlist(&conn, slot);
        self.keep_ghost(id, conn);
        self.refuse(now, link, endpoint, refused, response);
    }

    /// Refuses a connection that is not in the table (any more). `response` is the upgrade's answer where it was not given yet.
    pub(super) fn refuse(&mut self, now: Now, link: u32, endpoint: crate::ids::EndpointId, refused: Refused, response: Option<Vec<u8>>) {
        // Who has no answer to give speaks Socket.IO.
        let refused = match (refused, &response) {
            (Refused::Http { body, refusal, .. }, None) => Refused::Connect { data: body, refusal },
            (Refused::Connect { data, refusal }, Some(_)) => Refused::Http { status: 403, body: data, refusal },
            (fitting, _) => fitting,
        };
        match refused {
            Refused::Http { status, body, refusal } => {
                self.counters(endpoint).refused[refusal.index()].add(1);
                self.answer_http(now, link, http::response(status, "application/json", &[], &body));
            }
            Refused::Close { first, reason } => {
                let refusal = match reason {
                    CloseReason::UserLimit => crate::fault::Refusal::UserLimit,
                    CloseReason::BadHandshake => crate::fault::Refusal::BadRequest,
                    _ => crate::fault::Refusal::Unauthorized,
                };
                self.counters(endpoint).refused[refusal.index()].add(1);
                if let Some(response) = response {
                    self.push(now, link, Frame::encoded(response));
                }
                if let Some(first) = first {
                    self.push(now, link, Frame::control_text(&first));
                }
                let goodbye = reason.close_frame().map(|(code, text)| ws::close_frame(code, text));
                self.say_goodbye(now, link, goodbye, false);
            }
            Refused::Connect { data, refusal } => {
                self.counters(endpoint).refused[refusal.index()].add(1);
                let namespace = self.world.config.endpoints[usize::from(endpoint.0)].bind.clone();
                self.refuse_namespace(now, link, &namespace, &data);
                self.expect_namespace(now, link);
            }
        }
    }

    /// Sends an HTTP answer and closes.
    pub(super) fn answer_http(&mut self, now: Now, link: u32, response: Vec<u8>) {
        self.push(now, link, Frame::encoded(response));
        self.say_goodbye(now, link, None, false);
    }

    /// Ends one connection by the server's will. `text` replaces the reason's own in a close frame.
    pub(super) fn disconnect(&mut self, now: Now, slot: u32, reason: CloseReason, text: Option<&str>) {
        let Some(conn) = self.conns.get(slot) else { return };
        let link = conn.link;
        if link == NO_LINK {
            return self.give_up(slot);
        }
        let is_open = conn.opening.is_none();
        let last_word = self.dialect(conn.endpoint).last_word(&self.context(now, conn), reason);
        match self.links.get(link).map(|link| &link.state) {
            Some(State::SocketIo(socket)) => {
                let last = socket.conns.len() == 1;
                let namespace = &self.world.config.endpoints[usize::from(conn.endpoint.0)].bind;
                let goodbye = Frame::control_text(&sio::disconnect(namespace));
                if let Some(last_word) = last_word.filter(|_| is_open) {
                    self.push(now, link, last_word);
                }
                self.push(now, link, goodbye);
                self.end_conn(now, slot, reason);
                if last || !is_open {
                    self.close_link(now, link, reason, Some(ws::empty_close_frame()));
                }
            }
            // Not upgraded yet: there is no WebSocket to close.
            _ if !is_open => self.lose(now, link, reason),
            _ => {
                let goodbye = reason.close_frame().map(|(code, own)| ws::close_frame(code, text.unwrap_or(own)));
                self.close_link(now, link, reason, goodbye);
            }
        }
    }

    /// Ends a link and all its connections, saying `goodbye` first.
    pub(super) fn close_link(&mut self, now: Now, slot: u32, reason: CloseReason, goodbye: Option<Vec<u8>>) {
        for conn in self.conns_of(slot) {
            self.end_conn(now, conn, reason);
        }
        self.say_goodbye(now, slot, goodbye, matches!(reason, CloseReason::Client));
    }

    /// The transport is gone: ends everything on it without a word.
    pub(super) fn lose(&mut self, now: Now, slot: u32, reason: CloseReason) {
        for conn in self.conns_of(slot) {
            self.end_conn(now, conn, reason);
        }
        self.leave_session(now, slot);
        self.finish(slot, matches!(reason, CloseReason::Heartbeat));
    }

    /// A peer reads slower than its messages come: what was not begun is dropped, it is told so if its socket takes that, then reset.
    pub(super) fn too_slow(&mut self, now: Now, slot: u32) {
        let Some(link) = self.links.get(slot) else { return };
        if link.is_polling() {
            // Its next request is told that there is no such session.
            return self.lose(now, slot, CloseReason::SlowReader);
        }
        if matches!(link.state, State::Closing { .. } | State::Head { .. }) {
            return self.finish(slot, true);
        }
        for conn in self.conns_of(slot) {
            self.end_conn(now, conn, CloseReason::SlowReader);
        }
        self.drop_unsent(slot, true);
        let goodbye = CloseReason::SlowReader.close_frame().map(|(code, text)| ws::close_frame(code, text));
        self.say_goodbye(now, slot, goodbye, false);
        if let Some(Link { state: State::Closing { impatient, .. }, outbox, .. }) = self.links.get_mut(slot) {
            // One try: what the socket does not take now is not waited for.
            (*impatient, outbox.blocked) = (true, false);
        }
        self.mark_dirty(slot);
    }

    /// Queues the last bytes of a link; when they are written, or the peer has had its time, the socket is closed.
    pub(super) fn say_goodbye(&mut self, now: Now, slot: u32, goodbye: Option<Vec<u8>>, peer_done: bool) {
        if self.links.get(slot).is_some_and(Link::is_polling) {
            return self.end_polling(now, slot, peer_done);
        }
        if matches!(self.links.get(slot).map(|link| &link.state), Some(State::Probe(_))) {
            self.leave_session(now, slot);
        }
        if let Some(goodbye) = goodbye {
            self.push_shared(slot, std::rc::Rc::new(Frame::encoded(goodbye)));
        }
        let deadline_ms = now.ms() + self.world.config.limits.close_ms;
        let Some(link) = self.links.get_mut(slot) else { return };
        if matches!(link.state, State::Closing { .. }) {
            return;
        }
        link.state = State::Closing { deadline_ms, peer_done, impatient: false };
        link.corked = false;
        link.heartbeat = Heartbeat::NEVER;
        link.partial = Seldom::new();
        link.decoder = ws::Decoder::default();
        let key = LinkKey { slot, generation: link.generation };
        if link.outbox.is_empty() {
            let command = if peer_done { Command::Close { link: key, reset: false } } else { Command::HalfClose(key) };
            self.commands.push_back(command);
        } else if !link.outbox.blocked {
            self.mark_dirty(slot);
        }
        self.arm(slot, deadline_ms);
    }

    /// Closes the socket now.
    pub(super) fn finish(&mut self, slot: u32, reset: bool) {
        self.drop_unsent(slot, false);
        if let Some(link) = self.links.get_mut(slot) {
            let key = LinkKey { slot, generation: link.generation };
            // Nothing more is armed, read or written for it until the driver has taken the command.
            link.state = State::Closing { deadline_ms: u64::MAX, peer_done: true, impatient: false };
            link.heartbeat = Heartbeat::NEVER;
            self.commands.push_back(Command::Close { link: key, reset });
        }
    }

    /// The driver has taken the socket's last command.
    pub(super) fn forget(&mut self, key: LinkKey) {
        if !self.links.holds(key.slot, key.generation) {
            return;
        }
        debug_assert!(self.conns_of(key.slot).is_empty(), "a link is forgotten after its connections");
        self.upgraded.forget(key);
        // Its time may have been over after it was given away: what it was told then reaches nobody.
        self.drop_unsent(key.slot, false);
        if let Some(link) = self.links.remove(key.slot) {
            self.world.addresses.leave();
            if let Some(ticket) = link.ticket {
                self.world.addresses.close(ticket);
            }
            self.leave_guesthouse(link.guest.as_deref().copied());
        }
    }

    /// Forgets what waits to be written, counting the messages; `keep_begun` keeps the rest of a frame that is partly on the wire.
    fn drop_unsent(&mut self, slot: u32, keep_begun: bool) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let before = link.outbox.bytes();
        let stats = &self.stats;
        let count = |frame: &Frame| {
            if let Some(endpoint) = frame.endpoint() {
                stats.endpoints[usize::from(endpoint.0)].dropped[DropReason::Unsent.index()].add(1);
            }
        };
        if keep_begun {
            link.outbox.truncate(count);
        } else {
            link.outbox.abandon(count);
        }
        stats.outbox_bytes.sub((before - link.outbox.bytes()) as u64);
    }

    /// Ends a connection, or keeps it away if its client may come back.
    pub(super) fn end_conn(&mut self, now: Now, slot: u32, reason: CloseReason) {
        if self.conns.get(slot).is_some_and(|conn| conn.link == NO_LINK) {
            // Its last words have just shown it to be a slow reader, which might come back.
            return self.give_up(slot);
        }
        self.sign_off(now, slot, reason, reason.told());
        if !self.keep_away(now, slot, reason) {
            self.remove_conn(now, slot);
        }
    }

    /// The client takes its leave of one namespace, and will not come back.
    pub(super) fn end_by_client(&mut self, now: Now, slot: u32) {
        self.sign_off(now, slot, CloseReason::Client, "client namespace disconnect");
        self.remove_conn(now, slot);
    }

    /// A connection that ends types no longer, is counted and told of.
    fn sign_off(&mut self, now: Now, slot: u32, reason: CloseReason, told: &'static str) {
        let typing = self.conns.get_mut(slot).map(|conn| conn.typing.take()).unwrap_or_default();
        for typing in typing {
            self.tell_typing_stopped(now, slot, &typing.room);
        }
        if self.conns.get(slot).is_some_and(|conn| conn.opening.is_none()) {
            self.tell_of_rooms(now, slot, &What::RoomLeave);
            self.tell(now, slot, None, What::Disconnect { reason: told });
        }
        let Some(conn) = self.conns.get(slot) else { return };
        let endpoint = conn.endpoint;
        let counters = self.counters(endpoint);
        counters.connections.sub(1);
        if conn.opening.is_none() {
            counters.closed[reason.index()].add(1);
        }
        if conn.is_authenticated() {
            counters.authenticated.sub(1);
        }
    }

    /// Takes a connection out of everything it is in.
    pub(super) fn remove_conn(&mut self, now: Now, slot: u32) {
        let rooms = self.rooms_of(slot);
        while let Some(last) = self.conns.get(slot).and_then(|conn| conn.seats.len().checked_sub(1)) {
            self.vacate(slot, last);
        }
        let leaving = self.conns.get_mut(slot).and_then(|conn| conn.leaving.take());
        for room in rooms.into_iter().filter(|room| leaving.as_deref() != Some(room)) {
            self.send_leave(now, slot, room, true, None);
        }
        let Some(id) = self.conns.get(slot).map(|conn| self.conn_id(slot, conn)) else { return };
        let Some(mut conn) = self.conns.remove(slot) else { return };
        for ack in conn.acks.take() {
            self.acknowledged(ack, None);
        }
        self.unlist(&conn, slot);
        self.forget_stranger(&conn);
        let recovery = conn.recovery.take();
        self.keep_ghost(id, conn);
        self.dismiss(now, recovery);
    }

    /// Takes a connection off its link.
    fn unlist(&mut self, conn: &Conn, slot: u32) {
        if conn.is_polling {
            self.counters(conn.endpoint).polling.sub(1);
        }
        self.unwait(conn.link, conn.waiting);
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(conn.link) {
            socket.conns.remove(slot);
        }
    }

    /// A Socket.IO link without a namespace has so long to join one.
    pub(super) fn expect_namespace(&mut self, now: Now, slot: u32) {
        let deadline_ms = now.ms() + self.world.config.socket_io.connect_timeout_ms;
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot)
            && socket.conns.is_empty()
        {
            socket.connect_deadline_ms = socket.connect_deadline_ms.min(deadline_ms);
            self.arm(slot, deadline_ms);
        }
    }

    /// A fresh token: its expiry and claims count from now on.
    pub(super) fn refresh(&mut self, now: Now, slot: u32, identity: Arc<Identity>) {
        let identity = self.refreshed(slot, identity);
        if let Some(conn) = self.conns.get_mut(slot) {
            conn.profile.renew(identity);
            let link = conn.link;
            self.tell(now, slot, None, What::Authenticated);
            self.arm_next(now, link);
        }
    }

    /// The first packet of a Socket.IO link.
    pub(super) fn greet_socket_io(&mut self, now: Now, slot: u32, sid: &str, upgrades: &[&str]) {
        let config = &self.world.config;
        let (interval, timeout) = (config.socket_io.ping_interval_ms, config.socket_io.ping_timeout_ms);
        let open = eio::open_packet(sid, upgrades, interval, timeout, config.limits.message_bytes);
        if let Some(link) = self.links.get_mut(slot) {
            link.heartbeat = match &link.state {
                // It pings, not we.
                State::SocketIo(socket) if socket.rare().old.is_some() => {
                    Heartbeat { at_ms: now.ms() + interval + timeout, awaiting: true, sent_ns: now.ns, ..Heartbeat::NEVER }
                }
                _ => Heartbeat::starting(now.ms() + interval),
            };
        }
        self.push(now, slot, Frame::control_text(&open));
        self.arm_next(now, slot);
    }

    /// An id for the next connection of a Socket.IO link. All of a link's lead to one shard, also when there are more or fewer some day.
    pub(super) fn next_id(&self, slot: u32) -> crate::ids::Sid {
        let first = self.conns_of(slot).first().and_then(|conn| self.conns.get(*conn));
        let shard = first.map_or(self.id, |conn| conn.sid.shard());
        crate::ids::Sid::new(shard, self.conns.next_slot(), self.random_id())
    }

    /// A random engine session id: it is no connection's public id.
    pub(super) fn session_id(&self, slot: u32) -> crate::ids::Sid {
        crate::ids::Sid::new(self.id, slot, self.entropy.borrow_mut().random())
    }
}
