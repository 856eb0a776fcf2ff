//! Socket.IO on a link: one transport, one connection per joined namespace. What a packet may do to the transport follows the Node
//! server: what it closes for is closed for, what it tolerates is tolerated.

use std::borrow::Cow;

use super::Shard;
use super::intake::new_conn;
use super::links::{Heartbeat, Link, Opening, SocketIoLink, State};
use super::parcel::Answer;
use super::rate::Verdict;
use crate::auth::AuthFault;
use crate::dialect::{BadOutgoing, Hello, Outgoing, Said};
use crate::fault::{CloseReason, DropReason, Refusal};
use crate::frame::Frame;
use crate::ids::{EndpointId, Sid};
use crate::json::{Doc, Scratch, Value};
use crate::limits::{NAMESPACES_PER_LINK_MAX, PENDING_ACKS_MAX};
use crate::time::Now;
use crate::wire::http::{self, Request};
use crate::wire::{eio, sio, ws};

/// Events that only the library itself emits.
const RESERVED_EVENTS: [&str; 6] = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// The packet closes the transport.
struct Refuse;

impl Shard {
    /// A WebSocket request for the Engine.IO path.
    pub(super) fn open_socket_io(&mut self, now: Now, slot: u32, request: &Request<'_>, response: Vec<u8>) {
        let wrong = match (request.query_value("transport").as_deref(), request.query_value("sid"), request.query_value("EIO").as_deref()) {
            (Some("websocket"), _, Some("4")) => None,
            (Some("websocket"), _, _) => Some("Unsupported protocol version"),
            (Some("polling"), _, _) => Some("Bad request"),
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
        let sid = self.session_id(slot);
        self.greet_socket_io(now, slot, sid.text().as_str(), &[]);
        self.expect_namespace(now, slot);
    }

    pub(super) fn new_socket(&self, now: Now, request: &Request<'_>) -> SocketIoLink {
        SocketIoLink {
            conns: Vec::new(),
            connect_deadline_ms: u64::MAX,
            attachments_to_skip: 0,
            has_tried: false,
            token: self.token_of_request(now, request),
            cookie: self.token_of_cookie(now, request),
            query: without_token(request.query),
        }
    }

    /// A text message of a Socket.IO link.
    pub(super) fn take_packet(&mut self, now: Now, slot: u32, text: &str) {
        let taken = match eio::parse(text) {
            Some(eio::Packet::Message(rest)) => self.take_message_packet(now, slot, rest, text.len()),
            Some(eio::Packet::Pong(_)) => {
                self.pong(now, slot);
                Ok(())
            }
            // They mean something only elsewhere in a session's life; the Node server ignores them here.
            Some(eio::Packet::Open | eio::Packet::Upgrade | eio::Packet::Noop) => Ok(()),
            Some(eio::Packet::Close) => {
                self.close_link(now, slot, CloseReason::Client, Some(ws::empty_close_frame()));
                Ok(())
            }
            Some(eio::Packet::Ping(_)) | None => Err(Refuse),
        };
        if taken.is_err() {
            self.close_link(now, slot, CloseReason::Protocol, Some(ws::empty_close_frame()));
        }
    }

    /// A binary message of a Socket.IO link.
    pub(super) fn take_attachment(&mut self, now: Now, slot: u32) {
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot)
            && socket.attachments_to_skip > 0
        {
            socket.attachments_to_skip -= 1;
            return;
        }
        self.close_link(now, slot, CloseReason::Protocol, Some(ws::empty_close_frame()));
    }

    fn take_message_packet(&mut self, now: Now, slot: u32, text: &str, bytes: usize) -> Result<(), Refuse> {
        let packet = sio::parse(text).map_err(|_| Refuse)?;
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get(slot) else { return Ok(()) };
        if socket.attachments_to_skip > 0 {
            return Err(Refuse);
        }
        let joined = socket.conns.iter().copied().find(|conn| self.is_in_namespace(*conn, packet.namespace));
        let mut scratch = std::mem::take(&mut self.packets);
        let taken = match (packet.kind, joined) {
            // Each costs the verification of a token, so those beyond the first are under the rate of messages.
            (sio::Kind::Connect, None) if self.tried_before(slot) && self.rate(now, slot) != Verdict::Within => Err(Refuse),
            (sio::Kind::Connect, None) => self.connect(now, slot, &packet, &mut scratch),
            (sio::Kind::Connect, Some(_)) | (_, None) | (sio::Kind::ConnectError, _) => Err(Refuse),
            (sio::Kind::Disconnect, Some(conn)) => self.leave_namespace(now, slot, conn, packet.payload),
            (sio::Kind::Event, Some(conn)) => self.take_event(now, slot, conn, &packet, &mut scratch, bytes),
            // Acknowledgements over the rate are not looked at, like pings.
            (sio::Kind::Ack, Some(_)) if self.rate(now, slot) != Verdict::Within => Ok(()),
            (sio::Kind::Ack, Some(conn)) => self.take_ack(conn, &packet, &mut scratch),
            (sio::Kind::BinaryEvent | sio::Kind::BinaryAck, Some(conn)) => {
                self.skip_attachments(slot, conn, packet.attachments);
                Ok(())
            }
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

    fn is_in_namespace(&self, conn: u32, namespace: &str) -> bool {
        self.conns.get(conn).is_some_and(|conn| self.world.config.endpoints[usize::from(conn.endpoint.0)].bind == namespace)
    }

    fn connect(&mut self, now: Now, slot: u32, packet: &sio::Packet<'_>, scratch: &mut Scratch) -> Result<(), Refuse> {
        let auth = if packet.payload.is_empty() { None } else { Some(scratch.parse(packet.payload).map_err(|_| Refuse)?) };
        if auth.as_ref().is_some_and(|auth| !auth.root().is_object()) {
            return Err(Refuse);
        }
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get(slot) else { return Ok(()) };
        let too_many = socket.conns.len() >= NAMESPACES_PER_LINK_MAX;
        let Some(endpoint_id) = self.endpoint_of_namespace(packet.namespace).filter(|_| !too_many) else {
            self.stats.unrouted().refused[Refusal::Namespace.index()].add(1);
            let error = sio::connect_error(packet.namespace, r#"{"message":"Invalid namespace"}"#);
            self.push(now, slot, Frame::control_text(&error));
            return Ok(());
        };
        let world = self.world.clone();
        let endpoint = &world.config.endpoints[usize::from(endpoint_id.0)];
        let token = match auth.as_ref().and_then(|auth| auth.root().get("token")).filter(|token| !token.is_null()) {
            Some(token) => token.as_str().map_or(Err(AuthFault::Invalid), |token| self.verify(now, token)),
            None => {
                let from_request = fresh(&socket.token, now);
                let cookies = from_request == Err(AuthFault::Missing) && endpoint.cookies;
                if cookies { fresh(&socket.cookie, now) } else { from_request }
            }
        };
        let sid = Sid::new(self.id, self.conns.next_slot(), self.random_id());
        let query = socket.query.to_string();
        let auth = auth.as_ref().map(Doc::root);
        match self.dialect(endpoint_id).admit(&Hello { now, endpoint, sid, query: &query, auth, token }) {
            Err(refused) => self.refuse(now, slot, endpoint_id, refused, None),
            Ok(profile) => {
                let opening = Opening { response: None, query };
                let opened = self.open_conn(now, slot, |_, generation| new_conn(generation, slot, endpoint_id, sid, profile, opening, now));
                if let (Some(conn), Some(Link { state: State::SocketIo(socket), .. })) = (opened, self.links.get_mut(slot)) {
                    socket.conns.push(conn);
                    socket.connect_deadline_ms = u64::MAX;
                }
            }
        }
        Ok(())
    }

    fn leave_namespace(&mut self, now: Now, slot: u32, conn: u32, payload: &str) -> Result<(), Refuse> {
        if !payload.is_empty() {
            return Err(Refuse);
        }
        self.end_conn(now, conn, CloseReason::Client);
        self.expect_namespace(now, slot);
        Ok(())
    }

    fn take_event(
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
        let first = args.items().next().ok_or(Refuse)?;
        let name = event_name(first).ok_or(Refuse)?;
        // As the client wrote it: its number may be larger than any of ours.
        let ack = (!packet.id_text.is_empty()).then_some(packet.id_text);
        self.hear(now, slot, conn, Said::Event { name, args, ack }, bytes);
        Ok(())
    }

    fn take_ack(&mut self, conn: u32, packet: &sio::Packet<'_>, scratch: &mut Scratch) -> Result<(), Refuse> {
        let doc = scratch.parse(packet.payload).map_err(|_| Refuse)?;
        if !doc.root().is_array() {
            return Err(Refuse);
        }
        let (Some(id), Some(conn)) = (packet.id, self.conns.get_mut(conn)) else { return Ok(()) };
        // An id nobody waits for is no fault: it may have been answered twice.
        if let Some(waited) = conn.acks.pending.iter().position(|(pending, _)| *pending == id) {
            let (_, ask) = conn.acks.pending.swap_remove(waited);
            self.answers.push_back((ask, Answer::Acknowledged(Some(packet.payload.to_owned()))));
        }
        Ok(())
    }

    /// Binary events have no listener in any dialect of today: they are dropped whole, and counted.
    fn skip_attachments(&mut self, slot: u32, conn: u32, attachments: usize) {
        if let Some(endpoint) = self.conns.get(conn).map(|conn| conn.endpoint) {
            self.counters(endpoint).dropped[DropReason::Invalid.index()].add(1);
        }
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot) {
            socket.attachments_to_skip = attachments;
        }
    }

    /// Emits an event to one connection and remembers who waits for the acknowledgement; false when it cannot.
    pub(super) fn emit_with_ack(&mut self, now: Now, id: Sid, event: &str, args: &str, ask: u64) -> bool {
        let Some(slot) = self.find(id) else { return false };
        let Some(endpoint) = self.conns.get(slot).map(|conn| conn.endpoint) else { return false };
        let Ok(Outgoing { args: changed, receipt }) = self.outgoing(now, endpoint, event, args) else { return false };
        let Some(conn) = self.conns.get_mut(slot) else { return false };
        let bound = &self.world.config.endpoints[usize::from(endpoint.0)];
        if !bound.dialect.is_socket_io() || conn.acks.pending.len() >= PENDING_ACKS_MAX {
            return false;
        }
        let wire_id = conn.acks.next;
        conn.acks.next += 1;
        conn.acks.pending.push((wire_id, ask));
        let (link, user) = (conn.link, conn.profile.user.clone());
        let text = sio::event(&bound.bind, Some(wire_id), event, changed.as_deref().unwrap_or(args));
        self.note_sent(endpoint, receipt.as_ref(), vec![user]);
        self.push(now, link, Frame::text(endpoint, &text));
        true
    }

    /// What an event of the back end is when it goes out: its dialect's say in it.
    pub(super) fn outgoing(&mut self, now: Now, endpoint: EndpointId, event: &str, args: &str) -> Result<Outgoing, BadOutgoing> {
        let dialect = self.dialect(endpoint);
        dialect.outgoing(now, event, args, &mut self.scratch)
    }
}

/// The name of an event: a string that is not the library's own, or a number as its text.
fn event_name<'a>(first: Value<'a>) -> Option<&'a str> {
    match first.as_str() {
        Some(name) => (!RESERVED_EVENTS.contains(&name)).then_some(name),
        None => first.as_f64().map(|_| first.raw()),
    }
}

/// What the token of the handshake is worth now: it may have expired since.
fn fresh(
    token: &Result<std::sync::Arc<crate::auth::Identity>, AuthFault>,
    now: Now,
) -> Result<std::sync::Arc<crate::auth::Identity>, AuthFault> {
    let identity = token.as_ref().map_err(|fault| *fault)?;
    if identity.expires_unix_ms.is_some_and(|at| at <= now.unix_ms) {
        return Err(AuthFault::Expired);
    }
    Ok(identity.clone())
}

/// The query without tokens, which are verified and dropped.
pub(super) fn without_token(query: &str) -> Box<str> {
    let is_token = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        // Decoded, so that no spelling of the name keeps a token.
        http::query_value(pair, "token").is_some() || Cow::Borrowed(name) == "token"
    };
    query.split('&').filter(|pair| !is_token(pair)).collect::<Vec<_>>().join("&").into()
}
