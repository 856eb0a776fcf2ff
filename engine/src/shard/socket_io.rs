//! Socket.IO on a link: one transport, one connection per joined namespace. What a packet may do to the transport follows the Node
//! server: what it closes for is closed for, what it tolerates is tolerated.

use std::sync::Arc;

use super::Shard;
use super::emits;
use super::engine_http::version;
use super::handover::Restored;
use super::intake::new_conn;
use super::links::{Heartbeat, Link, Opening, SocketIoLink, State, Visitor};
use super::old_clients::Old;
use super::outward::{Outward, is_of_peer};
use super::peers::Told;
use super::rate::Verdict;
use super::recovery::{Comeback, Verdict as ComebackVerdict, last_heard};
use crate::auth::{AuthFault, Identity};
use crate::dialect::{Hello, Profile, Refused, Said};
use crate::fault::{CloseReason, RecoveryFault, Refusal};
use crate::frame::{Frame, Packet};
use crate::ids::{EndpointId, Sid};
use crate::json::{Doc, Scratch, Value};
use crate::limits::NAMESPACES_PER_LINK_MAX;
use crate::time::Now;
use crate::wire::http::{self, Request};
use crate::wire::{eio, sio, ws};

/// What became of a token.
type Token = Result<Arc<Identity>, AuthFault>;

/// The packet closes the transport.
pub(super) struct Refuse;

impl Shard {
    /// A WebSocket request for the Engine.IO path.
    pub(super) fn open_socket_io(&mut self, now: Now, slot: u32, request: &Request<'_>, response: Vec<u8>) {
        let is_spoken = version(request) == 4 || self.world.config.serves_eio3();
        let wrong = match request.query_value("transport").as_deref() {
            Some("websocket") if is_spoken => None,
            Some("websocket") => Some("Unsupported protocol version"),
            Some("polling") => Some("Bad request"),
            _ => Some("Transport unknown"),
        };
        if let Some(message) = wrong {
            self.stats.unrouted().refused[Refusal::BadRequest.index()].add(1);
            return self.answer_http(now, slot, http::response(400, "text/html", &[], message));
        }
        let socket = self.new_socket(now, request);
        if let Some(link) = self.links.get_mut(slot) {
            link.state = State::SocketIo(Box::new(socket));
            link.heartbeat = Heartbeat::NEVER;
        }
        self.push(now, slot, Frame::encoded(response));
        let sid = self.id_of_session(slot);
        self.greet_socket_io(now, slot, sid.text().as_str(), &[]);
        self.expect_namespace(now, slot);
        self.join_main(now, slot);
    }

    pub(super) fn new_socket(&mut self, now: Now, request: &Request<'_>) -> SocketIoLink {
        let asks_callers = self.world.config.asks_callers_of_socket_io();
        // Claims are kept for them only who are told.
        let of_link = |token: Result<Arc<Identity>, AuthFault>| if asks_callers { token } else { token.map(Identity::without_claims) };
        let mut socket = SocketIoLink::new(self.shared_query(&without_token(request.query)));
        let (token, cookie) = (of_link(self.token_of_request(now, request)), of_link(self.token_of_cookie(now, request)));
        if [&token, &cookie].into_iter().any(|token| *token != Err(AuthFault::Missing)) {
            self.door.note_token(now.ns);
            (socket.rare_mut().token, socket.rare_mut().cookie) = (token, cookie);
        }
        if version(request) == 3 {
            socket.rare_mut().old = Some(Old::default());
        }
        if asks_callers {
            socket.rare_mut().visitor = Some(Box::new(Visitor::of(request)));
        }
        socket
    }

    /// A query, as the last link has it if that has the same: nearly all clients of a program do.
    fn shared_query(&mut self, query: &str) -> Arc<str> {
        if *self.last_query != *query {
            self.last_query = query.into();
        }
        self.last_query.clone()
    }

    /// A text message of a Socket.IO link.
    pub(super) fn take_packet(&mut self, now: Now, slot: u32, text: &str) {
        let taken = match eio::parse(text) {
            Some(eio::Packet::Message(_)) if self.echoes(now, slot, Packet::Text(text)) => Ok(()),
            Some(eio::Packet::Message(rest)) => self.take_message_packet(now, slot, rest, text.len()),
            Some(eio::Packet::Ping(data)) if self.is_old(slot) => {
                self.answer_old_ping(now, slot, data);
                Ok(())
            }
            Some(eio::Packet::Pong(_)) if !self.is_old(slot) => {
                self.pong(now, slot);
                Ok(())
            }
            // They mean something only elsewhere in a session's life; the Node server ignores them here.
            Some(eio::Packet::Open | eio::Packet::Upgrade | eio::Packet::Noop) => Ok(()),
            Some(eio::Packet::Close) => {
                self.close_link(now, slot, CloseReason::Client, Some(ws::empty_close_frame()));
                Ok(())
            }
            Some(eio::Packet::Ping(_) | eio::Packet::Pong(_)) | None if self.links.get(slot).is_some_and(Link::is_polling) => {
                // Not even Engine.IO: as in Node the session is gone at once, and no later poll is told goodbye.
                self.lose(now, slot, CloseReason::Protocol);
                Ok(())
            }
            Some(eio::Packet::Ping(_) | eio::Packet::Pong(_)) | None => Err(Refuse),
        };
        if taken.is_err() {
            self.close_link(now, slot, CloseReason::Protocol, Some(ws::empty_close_frame()));
        }
    }

    fn take_message_packet(&mut self, now: Now, slot: u32, text: &str, bytes: usize) -> Result<(), Refuse> {
        let mut packet = sio::parse(text).map_err(|_| Refuse)?;
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot) else { return Ok(()) };
        if socket.assembly.is_some() {
            return Err(Refuse);
        }
        let old = socket.rare_if_any().and_then(|rare| rare.old.as_mut());
        if let Some(old) = old.filter(|_| packet.kind == sio::Kind::Connect) {
            packet.namespace = old.split_query(packet.namespace);
        }
        let joined = self.joined(slot, packet.namespace);
        let mut scratch = std::mem::take(&mut self.packets);
        let taken = match (packet.kind, joined) {
            // Each costs the verification of a token, so those beyond the first are under the rate of messages.
            (sio::Kind::Connect, None) if self.tried_before(slot) && self.rate(now, slot) != Verdict::Within => Err(Refuse),
            (sio::Kind::Connect, None) => self.connect(now, slot, text, &packet, &mut scratch),
            (sio::Kind::Connect, Some(_)) | (_, None) | (sio::Kind::ConnectError, _) => Err(Refuse),
            (sio::Kind::Disconnect, Some(conn)) => self.leave_namespace(now, slot, conn, packet.payload),
            (sio::Kind::Event, Some(conn)) => self.take_event(now, slot, conn, &packet, &mut scratch, bytes),
            (sio::Kind::Ack, Some(conn)) => self.take_ack(now, slot, conn, &packet, &mut scratch),
            // Looked at now, as in Node, so that what can never be heard is not waited for; and again when all is there.
            (sio::Kind::BinaryEvent | sio::Kind::BinaryAck, Some(_)) => fits(&packet, &mut scratch).map(|()| {
                self.begin_assembly(slot, text, packet.attachments, bytes);
            }),
        };
        self.packets = scratch;
        taken
    }

    /// Whether the link has asked for a namespace before; from now on it has.
    fn tried_before(&mut self, slot: u32) -> bool {
        match self.links.get_mut(slot) {
            Some(Link { state: State::SocketIo(socket), .. }) => std::mem::replace(&mut socket.has_tried, true),
            _ => false,
        }
    }

    /// The link's connection in a namespace.
    pub(super) fn joined(&self, slot: u32, namespace: &str) -> Option<u32> {
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get(slot) else { return None };
        socket.conns.iter().copied().find(|conn| self.is_in_namespace(*conn, namespace))
    }

    fn is_in_namespace(&self, conn: u32, namespace: &str) -> bool {
        self.conns.get(conn).is_some_and(|conn| self.world.config.endpoints[usize::from(conn.endpoint.0)].bind == namespace)
    }

    fn connect(&mut self, now: Now, slot: u32, text: &str, packet: &sio::Packet<'_>, scratch: &mut Scratch) -> Result<(), Refuse> {
        let auth = if packet.payload.is_empty() { None } else { Some(scratch.parse(packet.payload).map_err(|_| Refuse)?) };
        let auth = auth.as_ref().map(Doc::root);
        if auth.is_some_and(|auth| !auth.is_object()) {
            return Err(Refuse);
        }
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get(slot) else { return Ok(()) };
        let too_many = socket.conns.len() >= NAMESPACES_PER_LINK_MAX;
        let is_old = socket.rare().old.is_some();
        let serves = |endpoint: &EndpointId| !too_many && (!is_old || self.world.config.endpoints[usize::from(endpoint.0)].eio3);
        let Some(endpoint) = self.endpoint_of_namespace(packet.namespace).filter(serves) else {
            self.stats.unrouted().refused[Refusal::Namespace.index()].add(1);
            self.refuse_namespace(now, slot, packet.namespace, r#"{"message":"Invalid namespace"}"#);
            return Ok(());
        };
        let comeback = Comeback::asked(auth).filter(|_| !is_old && self.remembers(endpoint));
        if !self.enters_by_packet(now, slot, comeback.is_some(), text) {
            return Ok(());
        }
        if let Some(comeback) = comeback {
            let packet = format!("4{text}");
            match self.may_come_back(now, slot, endpoint, &comeback, &packet) {
                ComebackVerdict::Granted { conn, from } if self.come_back(now, slot, endpoint, auth, conn, from) => return Ok(()),
                ComebackVerdict::Wait | ComebackVerdict::Moving => return Ok(()),
                ComebackVerdict::Restore(found) => {
                    if self.restore(now, slot, endpoint, auth, &comeback, found, &packet) == Restored::Done {
                        return Ok(());
                    }
                }
                ComebackVerdict::Granted { .. } | ComebackVerdict::Refused => {}
            }
        }
        let sid = self.promised_id(slot).unwrap_or_else(|| self.next_id(slot));
        let (token, query) = self.presented(now, slot, endpoint, auth);
        let asking = self.asking(endpoint, &token, auth.map(Value::raw), || self.visitor_of(slot));
        let admitted = match &asking {
            Some(_) => Ok(Profile::named(sid.text().as_str())),
            None => self.admit(now, endpoint, sid, &query, auth, token),
        };
        match admitted {
            Err(refused) => self.refuse(now, slot, endpoint, refused, None),
            Ok(profile) => {
                let opening = Opening { response: None, query, asking };
                let opened = self.open_conn(now, slot, |_, generation| new_conn(generation, slot, endpoint, sid, profile, opening, now));
                let recovery = opened.and_then(|conn| self.conns.get_mut(conn)?.recovery.as_mut());
                if let (Some(recovery), Some(offset)) = (recovery, last_heard(auth)) {
                    recovery.bring(offset);
                }
                if let (Some(conn), Some(Link { state: State::SocketIo(socket), .. })) = (opened, self.links.get_mut(slot)) {
                    socket.conns.push(conn);
                    socket.connect_deadline_ms = u64::MAX;
                }
            }
        }
        Ok(())
    }

    /// Who a client would be under this id.
    pub(super) fn admit(
        &self,
        now: Now,
        endpoint_id: EndpointId,
        sid: Sid,
        query: &str,
        auth: Option<Value<'_>>,
        token: Token,
    ) -> Result<Profile, Refused> {
        let endpoint = &self.world.config.endpoints[usize::from(endpoint_id.0)];
        self.dialect(endpoint_id).admit(&Hello { now, endpoint, sid, query, auth, token })
    }

    /// What the request of a link says of its client's program.
    fn visitor_of(&self, slot: u32) -> Visitor {
        match self.links.get(slot).map(|link| &link.state) {
            Some(State::SocketIo(socket)) => socket.rare().visitor.as_deref().cloned().unwrap_or_default(),
            _ => Visitor::default(),
        }
    }

    /// What became of the token that the client of a link has brought, and the query of its request.
    pub(super) fn presented(&self, now: Now, slot: u32, endpoint_id: EndpointId, auth: Option<Value<'_>>) -> (Token, String) {
        let endpoint = &self.world.config.endpoints[usize::from(endpoint_id.0)];
        let socket = match self.links.get(slot).map(|link| &link.state) {
            Some(State::SocketIo(socket)) => Some(socket),
            _ => None,
        };
        let asked = socket.and_then(|socket| socket.rare().old.as_ref()).map_or("", |old| &old.query);
        let token = match (auth.and_then(|auth| auth.get("token")).filter(|token| !token.is_null()), socket) {
            (Some(token), _) => token.as_str().map_or(Err(AuthFault::Invalid), |token| self.verify(now, token)),
            (None, Some(_)) if http::query_value(asked, "token").is_some() => {
                self.verify(now, &http::query_value(asked, "token").unwrap_or_default())
            }
            (None, Some(socket)) => {
                let from_request = fresh(&socket.rare().token, now);
                let cookies = from_request == Err(AuthFault::Missing) && endpoint.cookies;
                if cookies { fresh(&socket.rare().cookie, now) } else { from_request }
            }
            (None, None) => Err(AuthFault::Missing),
        };
        let mut query = without_token(asked).into_string();
        if let Some(socket) = socket.filter(|socket| !socket.query.is_empty()) {
            query.push_str(if query.is_empty() { "" } else { "&" });
            query.push_str(&socket.query);
        }
        (token, query)
    }

    /// Takes a connection up again for its client, who must still be the same user; false when he starts anew.
    fn come_back(&mut self, now: Now, slot: u32, endpoint: EndpointId, auth: Option<Value<'_>>, conn: u32, from: u64) -> bool {
        let Some((sid, old)) = self.conns.get(conn).map(|conn| (conn.sid, conn.profile.clone())) else { return false };
        let (token, query) = self.presented(now, slot, endpoint, auth);
        let ruled = self.ruled_comeback(now, conn, &token);
        let profile = match ruled.map_or_else(|| self.admit(now, endpoint, sid, &query, auth, token), Ok) {
            // Where clients prove who they are after connecting, one that brings nothing new is who he was, for as long as that counts.
            Ok(profile) if profile.unproven == Some(Err(AuthFault::Missing)) && !old.has_expired(now) => old,
            Ok(profile) if profile.user == old.user && !matches!(profile.unproven, Some(Err(_))) => Profile { unproven: None, ..profile },
            Ok(_) => {
                // The past belongs to somebody else, who may still come for it.
                self.refuse_comeback(endpoint, RecoveryFault::OtherUser);
                return false;
            }
            Err(refused) => {
                self.refuse(now, slot, endpoint, refused, None);
                return true;
            }
        };
        let is_up = self.take_up(now, slot, conn, from, profile).is_some();
        if !is_up {
            self.give_up(conn);
            self.refuse_comeback(endpoint, RecoveryFault::TooMuch);
        }
        is_up
    }

    fn leave_namespace(&mut self, now: Now, slot: u32, conn: u32, payload: &str) -> Result<(), Refuse> {
        if !payload.is_empty() {
            return Err(Refuse);
        }
        self.end_by_client(now, conn);
        self.expect_namespace(now, slot);
        Ok(())
    }

    /// An event, whole. Its binary arguments, if it has any, are [`Shard::attachments`].
    pub(super) fn take_event(
        &mut self,
        now: Now,
        slot: u32,
        conn: u32,
        packet: &sio::Packet<'_>,
        scratch: &mut Scratch,
        bytes: usize,
    ) -> Result<(), Refuse> {
        if packet.payload.is_empty() {
            // It says nothing, but counts.
            let _ = self.rate(now, slot);
            return Ok(());
        }
        let doc = scratch.parse(packet.payload).map_err(|_| Refuse)?;
        let args = doc.root();
        let name = args.items().next().and_then(event_name).ok_or(Refuse)?;
        self.check_placeholders(args)?;
        // As the client wrote it: its number may be larger than any of ours.
        let ack = (!packet.id_text.is_empty()).then_some(packet.id_text);
        self.hear(now, slot, conn, Said::Event { name, args, ack }, bytes);
        Ok(())
    }

    /// An acknowledgement, whole, as [`Self::take_event`] takes an event.
    pub(super) fn take_ack(
        &mut self,
        now: Now,
        slot: u32,
        conn: u32,
        packet: &sio::Packet<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), Refuse> {
        if self.rate(now, slot) != Verdict::Within {
            // Not looked at, like a ping.
            return Ok(());
        }
        let doc = scratch.parse(packet.payload).map_err(|_| Refuse)?;
        if !doc.root().is_array() {
            return Err(Refuse);
        }
        self.check_placeholders(doc.root())?;
        let (Some(id), Some(conn)) = (packet.id, self.conns.get_mut(conn)) else { return Ok(()) };
        conn.note_life(now);
        // An id nobody waits for is no fault: it may have been answered twice, or too late.
        if let Some(waited) = conn.acks.iter().position(|ack| emits::wire_id(ack.ask) == id) {
            let ack = conn.acks.swap_remove(waited);
            if is_of_peer(ack.ask) {
                let told = Told::Ack { json: packet.payload.to_owned(), attachments: self.attachments.clone() };
                self.send_out(Outward::Told { ask: ack.ask, told });
                return Ok(());
            }
            let answer =
                if self.attachments.is_empty() { packet.payload.to_owned() } else { sio::spelled_out(doc.root(), &self.attachments) };
            self.acknowledged(ack, Some(answer));
        }
        Ok(())
    }

    /// Refuses a packet with attachments that names one which is not there. Without any, what looks like a placeholder is data.
    pub(super) fn check_placeholders(&self, args: Value<'_>) -> Result<(), Refuse> {
        let fit = self.attachments.is_empty() || sio::placeholders_fit(args, self.attachments.len());
        if fit { Ok(()) } else { Err(Refuse) }
    }
}

/// Refuses the text of a binary packet whose JSON is none that a packet of its type may have.
fn fits(packet: &sio::Packet<'_>, scratch: &mut Scratch) -> Result<(), Refuse> {
    if packet.payload.is_empty() {
        return Ok(());
    }
    let doc = scratch.parse(packet.payload).map_err(|_| Refuse)?;
    let fits = match packet.kind {
        sio::Kind::BinaryAck => doc.root().is_array(),
        _ => doc.root().items().next().and_then(event_name).is_some(),
    };
    if fits { Ok(()) } else { Err(Refuse) }
}

/// The name of an event: a string that is not the library's own, or a number as its text.
fn event_name<'a>(first: Value<'a>) -> Option<&'a str> {
    match first.as_str() {
        Some(name) => (!sio::RESERVED_EVENTS.contains(&name)).then_some(name),
        None => first.as_f64().map(|_| first.raw()),
    }
}

/// What the token of the handshake is worth now: it may have expired since.
fn fresh(token: &Token, now: Now) -> Token {
    let identity = token.as_ref().map_err(|fault| *fault)?;
    if identity.expires_unix_ms().is_some_and(|at| at <= now.unix_ms) {
        return Err(AuthFault::Expired);
    }
    Ok(identity.clone())
}

/// The query without tokens, which are verified and dropped.
pub(super) fn without_token(query: &str) -> Box<str> {
    let mut kept = String::with_capacity(query.len());
    // Decoded, so that no spelling of the name keeps a token.
    for (at, pair) in query.split('&').filter(|pair| http::query_name(pair).as_deref() != Some("token")).enumerate() {
        kept.push_str(if at == 0 { "" } else { "&" });
        kept.push_str(pair);
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_keeps_a_token() {
        let token = ["token=a.b.c", "tok%65n=a.b.c", "token", "token=%ff", "%74oken=%ff"];
        for token in token {
            assert_eq!(&*without_token(token), "");
            assert_eq!(&*without_token(&format!("a=1&{token}&&b=%ff&{token}")), "a=1&&b=%ff");
        }
        assert_eq!(&*without_token("&tokens=1&TOKEN=2&=token&"), "&tokens=1&TOKEN=2&=token&");
    }
}
