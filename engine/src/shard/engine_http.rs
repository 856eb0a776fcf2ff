//! HTTP requests of Engine.IO, on the shard whose socket they came by: the protocol's order of checks, bodies, and what an answer carries beside
//! a session's words (CORS, gzip, cookie). After it the connection stays for the next request, whatever that is for, if the client
//! wants that. What a session makes of a request is the business of `polling`.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::links::{Link, Polled, Probe, State};
use super::parcel::{Call, Parcel, Poll, Requester};
use super::polling::{HTML, JSON, TEXT};
use super::{Command, Shard};
use crate::fault::Refusal;
use crate::frame::Frame;
use crate::ids::{LinkKey, Sid};
use crate::limits::{BODIES_BYTES_MAX, GZIP_BYTES_MIN, KEEP_ALIVE_MS, UPGRADE_MS};
use crate::shard::frozen::FrozenState;
use crate::time::Now;
use crate::wire::body::{Body, BodyFault, gzip};
use crate::wire::http::{self, Framing, Request, Response};
use crate::wire::{eio, eio3, ws};

/// What became of a request for the Engine.IO path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Engine {
    /// It opens a session.
    Handshake,
    /// It is for a file of the client, which the control plane has.
    File,
    /// Its head is done with: what follows is its body, the next request, or a WebSocket's.
    Taken,
    /// The connection, with all that was read of it, is another shard's.
    Moved,
}

/// How a request wants to be answered.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    origin: Option<Box<str>>,
    /// True exactly when the connection may stay.
    persists: bool,
    gzip: bool,
    /// True exactly when it asked for the head alone.
    without_body: bool,
    /// True exactly when the answer opens a session.
    greets: bool,
    /// True exactly when the request speaks Engine.IO 3.
    is_old: bool,
}

/// A POST whose body is being read.
#[derive(Debug)]
pub(crate) struct Post {
    sid: Sid,
    reply: Reply,
    body: Body,
    is_binary: bool,
    held: Held,
    pub(crate) deadline_ms: u64,
}

impl Post {
    /// As plain data.
    pub(super) fn freeze(&self) -> FrozenState {
        let Post { sid, reply, body, is_binary, deadline_ms, .. } = self;
        FrozenState::Body { sid: *sid, reply: reply.clone(), body: body.clone(), is_binary: *is_binary, deadline_ms: *deadline_ms }
    }

    /// The opposite of [`Self::freeze`]; `total` is what all bodies of the shard take.
    pub(super) fn thaw(sid: Sid, reply: Reply, body: Body, is_binary: bool, deadline_ms: u64, total: &Rc<Cell<usize>>) -> Post {
        let mut held = Held { total: total.clone(), bytes: 0 };
        let _ = held.grow(body.len(), usize::MAX);
        Post { sid, reply, body, is_binary, held, deadline_ms }
    }

    /// Bytes of its body that are here.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.bytes
    }
}

/// A share of the bytes that unfinished bodies may take; dropping it gives it back.
#[derive(Debug)]
struct Held {
    total: Rc<Cell<usize>>,
    bytes: usize,
}

impl Held {
    /// Holds `bytes` now; false when all together are then more than `bytes_max`.
    fn grow(&mut self, bytes: usize, bytes_max: usize) -> bool {
        self.total.set(self.total.get() + bytes - self.bytes);
        self.bytes = bytes;
        self.total.get() <= bytes_max
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}

/// The files of the client that may be asked for below the path.
const CLIENT_FILES: [&str; 4] = ["socket.io.js", "socket.io.min.js", "socket.io.esm.min.js", "socket.io.msgpack.min.js"];

type Headers = Vec<(&'static str, String)>;

impl Reply {
    /// To a request that is answered before its body, if any, is read: what follows the head cannot be told from the next request then.
    fn to(request: &Request<'_>) -> Reply {
        Reply {
            origin: request.header("origin").map(Into::into),
            persists: request.persists() && request.is_bodiless(),
            gzip: request.accepts_gzip(),
            without_body: request.method == "HEAD",
            greets: false,
            is_old: version(request) == 3,
        }
    }
}

impl Shard {
    /// Looks at a request for the Engine.IO path, in the protocol's order of checks. `bytes` is all that was read, `head` the head's length.
    pub(super) fn read_engine_io(&mut self, now: Now, key: LinkKey, request: &Request<'_>, bytes: &[u8], head: usize) -> Engine {
        let refuse = |shard: &mut Shard, code| shard.refuse_engine_io(now, key.slot, request, code);
        if self.world.config.socket_io.bundle && is_client_file(request) {
            return Engine::File;
        }
        if request.method == "OPTIONS" && self.is_shared_with_others() {
            return self.preflight(now, key.slot, request);
        }
        let is_websocket = request.wants_websocket();
        let transport = request.query_value("transport");
        let Some(transport @ ("polling" | "websocket")) = transport.as_deref() else { return refuse(self, 0) };
        let Some(sid) = request.query_value("sid") else {
            let is_spoken = version(request) == 4 || self.world.config.serves_eio3();
            return match request.method {
                "GET" if self.is_strange(request) => refuse(self, 4),
                "GET" if !is_spoken => refuse(self, 5),
                "GET" if is_websocket == (transport == "websocket") => Engine::Handshake,
                "GET" => refuse(self, 3),
                _ => refuse(self, 2),
            };
        };
        let Some(sid) = Sid::parse(&sid) else { return refuse(self, 1) };
        if is_websocket {
            return self.probe(now, key, request, sid, bytes);
        }
        if transport != "polling" {
            return refuse(self, 3);
        }
        if self.shard_of_session(sid) == self.id
            && let Err(code) = self.session(sid)
        {
            // Told before its body is waited for.
            return refuse(self, code);
        }
        let call = match request.method {
            "GET" => Call::Listen,
            "POST" => return self.begin_post(now, key, request, sid, bytes.len() > head),
            _ => Call::Unknown,
        };
        self.ask_session(now, key, sid, Reply::to(request), call);
        Engine::Taken
    }

    /// A WebSocket asks for a session: it goes to the session's shard, and there is answered.
    fn probe(&mut self, now: Now, key: LinkKey, request: &Request<'_>, sid: Sid, bytes: &[u8]) -> Engine {
        if self.is_strange(request) {
            return self.refuse_engine_io(now, key.slot, request, 4);
        }
        let owner = self.shard_of_session(sid);
        if owner != self.id {
            let Some(link) = self.links.get_mut(key.slot) else { return Engine::Taken };
            // From here on its bytes are the other shard's.
            link.waiting += 1;
            let peer = link.peer.into();
            self.commands.push_back(Command::Move { link: key, peer, to: owner, read: bytes.to_vec(), luggage: None });
            return Engine::Moved;
        }
        let session = self.session(sid);
        let accept = match (session, request.websocket_key()) {
            (Err(1), _) => return self.refuse_engine_io(now, key.slot, request, 1),
            (_, Err(_)) => return self.refuse_engine_io(now, key.slot, request, 3),
            (_, Ok(accept)) => accept,
        };
        let headers = self.cross_origin(request.header("origin"));
        let response = http::switching_protocols(accept, request.first_protocol(), &pairs(&headers));
        self.push(now, key.slot, Frame::encoded(response));
        match session.ok().and_then(|slot| self.free_session(slot)) {
            Some(session) => {
                if let Some(polling) = self.links.get_mut(session.slot).and_then(|link| link.polling.as_mut()) {
                    polling.probers += 1;
                }
                let deadline_ms = now.ms() + UPGRADE_MS;
                if let Some(link) = self.links.get_mut(key.slot) {
                    link.state = State::Probe(Box::new(Probe { session, deadline_ms }));
                }
                self.arm(key.slot, deadline_ms);
            }
            // Another has it, or is about to. As in Node it learns that as a WebSocket.
            None => self.say_goodbye(now, key.slot, Some(ws::empty_close_frame()), false),
        }
        Engine::Taken
    }

    /// Passes a request on to its session, whose answer the connection waits for.
    fn ask_session(&mut self, now: Now, key: LinkKey, sid: Sid, reply: Reply, call: Call) {
        let socket_io = &self.world.config.socket_io;
        // A poll is answered by the next heartbeat at the latest.
        let deadline_ms = now.ms() + socket_io.ping_interval_ms + socket_io.ping_timeout_ms + UPGRADE_MS;
        let from = self.await_session(key, sid, reply, deadline_ms);
        self.post(Parcel::Poll(Box::new(Poll { sid, from, call })));
    }

    /// The connection waits for a session's answer, which must bear this address.
    pub(super) fn await_session(&mut self, key: LinkKey, sid: Sid, reply: Reply, deadline_ms: u64) -> Requester {
        self.requests = self.requests.wrapping_add(1);
        let number = self.requests;
        if let Some(link) = self.links.get_mut(key.slot) {
            link.state = State::Polled(Box::new(Polled { sid, number, reply, deadline_ms }));
        }
        self.arm(key.slot, deadline_ms);
        Requester { shard: self.id, link: key, number }
    }

    fn begin_post(&mut self, now: Now, key: LinkKey, request: &Request<'_>, sid: Sid, is_sent: bool) -> Engine {
        let limits = &self.world.config.limits;
        let is_binary = request.header("content-type").is_some_and(|kind| kind.starts_with("application/octet-stream"));
        // Proxies cut bodies into chunks of a kilobyte or more, each of which costs some ten bytes.
        let framing_max = limits.head_bytes + limits.message_bytes / 64;
        let is_old = version(request) == 3 && self.world.config.serves_eio3();
        let body = match request.framing() {
            _ if is_binary && !is_old => Err(BodyFault::Malformed),
            Framing::None => Err(BodyFault::Malformed),
            framing => Body::new(framing, limits.message_bytes, framing_max),
        };
        let body = match body {
            Ok(body) => body,
            Err(fault) => {
                self.ask_session(now, key, sid, Reply::to(request), Call::Fatal(status_of(fault)));
                return Engine::Taken;
            }
        };
        let reply = Reply { persists: request.persists(), ..Reply::to(request) };
        // A client that needs longer than a pong may take has lost its session anyway.
        let deadline_ms = now.ms() + self.world.config.socket_io.ping_timeout_ms;
        if body.is_done() {
            self.finish_post(now, key, sid, reply, body, is_binary);
            return Engine::Taken;
        }
        let held = Held { total: self.bodies.clone(), bytes: 0 };
        if let Some(link) = self.links.get_mut(key.slot) {
            link.state = State::Body(Box::new(Post { sid, reply, body, is_binary, held, deadline_ms }));
        }
        self.arm(key.slot, deadline_ms);
        if request.expects_continue() && !is_sent {
            self.push(now, key.slot, Frame::encoded(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()));
        }
        Engine::Taken
    }

    /// Bytes of a body: how many belong to it. All of them, when it cannot be read on.
    pub(super) fn read_body(&mut self, now: Now, key: LinkKey, bytes: &[u8]) -> usize {
        let bytes_max = BODIES_BYTES_MAX.max(self.world.config.limits.message_bytes);
        let Some(Link { state: State::Body(post), .. }) = self.links.get_mut(key.slot) else { return bytes.len() };
        let fed = post.body.feed(bytes);
        // One that is complete is held no longer, so those who dawdle do not keep out those who come in one piece.
        if !post.body.is_done() && !post.held.grow(post.body.len(), bytes_max) {
            self.refuse_http(now, key.slot, Refusal::Full, 503, None);
            return bytes.len();
        }
        if fed == Ok(bytes.len()) && !post.body.is_done() {
            return bytes.len();
        }
        let Some(Link { state, .. }) = self.links.get_mut(key.slot) else { return bytes.len() };
        // Overwritten by the wait for the answer at once.
        let taken = std::mem::replace(state, State::Closing { deadline_ms: u64::MAX, peer_done: false, impatient: false });
        let State::Body(post) = taken else { return bytes.len() };
        let Post { sid, mut reply, body, is_binary, .. } = *post;
        match fed {
            Ok(used) => {
                self.finish_post(now, key, sid, reply, body, is_binary);
                used
            }
            Err(fault) => {
                // Where the next request begins nobody knows now.
                reply.persists = false;
                self.ask_session(now, key, sid, reply, Call::Fatal(status_of(fault)));
                bytes.len()
            }
        }
    }

    fn finish_post(&mut self, now: Now, key: LinkKey, sid: Sid, reply: Reply, body: Body, is_binary: bool) {
        let data = body.into_data();
        let said = match reply.is_old && self.world.config.serves_eio3() {
            true if is_binary => eio3::read_binary(&data).ok(),
            true => std::str::from_utf8(&data).ok().and_then(|text| eio3::read_text(text).ok()),
            false => String::from_utf8(data).ok(),
        };
        let call = said.map_or(Call::Fatal(400), Call::Say);
        self.ask_session(now, key, sid, reply, call);
    }

    /// True exactly when pages of other origins may read answers at all.
    fn is_shared_with_others(&self) -> bool {
        self.world.config.any_origin || !self.world.config.origins.is_empty()
    }

    /// True exactly when it comes from a page of an origin that is not allowed, and that is a reason to refuse it.
    fn is_strange(&self, request: &Request<'_>) -> bool {
        let config = &self.world.config;
        let is_allowed = |origin: Option<&str>| origin.is_some_and(|origin| config.origins.iter().any(|listed| listed == origin));
        config.socket_io.strict_origin && !config.any_origin && request.headers("origin").any(|origin| !is_allowed(origin))
    }

    fn refuse_engine_io(&mut self, now: Now, slot: u32, request: &Request<'_>, code: u8) -> Engine {
        let (status, refusal) = if code == 4 { (403, Refusal::Origin) } else { (400, Refusal::BadRequest) };
        self.stats.unrouted().refused[refusal.index()].add(1);
        if request.wants_websocket() {
            let text = eio::error(code).split('"').nth(5).unwrap_or_default();
            let headers = self.cross_origin(request.header("origin"));
            self.answer_http(now, slot, http::response(status, HTML, &pairs(&headers), text));
        } else {
            self.reply_http(now, slot, &Reply::to(request), (status, JSON, eio::error(code)), Vec::new());
        }
        Engine::Taken
    }

    /// Refuses a request as the door does; the connection closes. Of an Engine.IO request its `origin` may read that.
    pub(super) fn refuse_http(&mut self, now: Now, slot: u32, refusal: Refusal, status: u16, origin: Option<&str>) {
        self.stats.unrouted().refused[refusal.index()].add(1);
        let headers = self.cross_origin(origin);
        self.answer_http(now, slot, http::response(status, "text/plain", &pairs(&headers), refusal.label()));
    }

    /// What lets a page of another origin read the answer. As in Node, a list makes answers differ by origin even where none is given.
    pub(super) fn cross_origin(&self, origin: Option<&str>) -> Headers {
        let config = &self.world.config;
        let mut headers = Vec::new();
        let is_listed = origin.is_some_and(|origin| config.origins.iter().any(|listed| listed == origin));
        match origin.filter(|_| is_listed) {
            Some(origin) => headers.push(("Access-Control-Allow-Origin", origin.to_owned())),
            None if config.any_origin => headers.push(("Access-Control-Allow-Origin", "*".to_owned())),
            None => {}
        }
        if !config.origins.is_empty() {
            headers.push(("Vary", "Origin".to_owned()));
            // With `*` browsers would take it for an error.
            if is_listed || !config.any_origin {
                headers.push(("Access-Control-Allow-Credentials", "true".to_owned()));
            }
        }
        headers
    }

    fn preflight(&mut self, now: Now, slot: u32, request: &Request<'_>) -> Engine {
        let mut extra = vec![("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE".to_owned())];
        extra.push(("Vary", "Access-Control-Request-Headers".to_owned()));
        if let Some(wanted) = request.header("access-control-request-headers") {
            extra.push(("Access-Control-Allow-Headers", wanted.to_owned()));
        }
        self.reply_http(now, slot, &Reply::to(request), (204, "", ""), extra);
        Engine::Taken
    }

    /// Opens a long-polling session on this shard for a client of this address; the session answers the handshake.
    pub(super) fn open_polling(&mut self, now: Now, key: LinkKey, request: &Request<'_>, client: SocketAddr) {
        let socket = self.new_socket(now, request);
        let session = if self.world.addresses.enter() { self.new_session(now, client, socket) } else { None };
        let Some(slot) = session else {
            self.world.addresses.leave();
            return self.refuse_http(now, key.slot, Refusal::Full, 503, request.header("origin"));
        };
        let sid = self.id_of_session(slot);
        let ticket = self.links.get_mut(key.slot).and_then(|link| link.ticket.take());
        let from = self.await_session(key, sid, Reply { greets: true, ..Reply::to(request) }, u64::MAX);
        if let Some(Link { polling: Some(polling), ticket: kept, .. }) = self.links.get_mut(slot) {
            // The session holds the address's place from now on, not the request.
            *kept = ticket;
            polling.sid = sid;
            polling.poll = Some(from);
        }
        self.greet_socket_io(now, slot, sid.text().as_str(), &["websocket"]);
        self.expect_namespace(now, slot);
        self.join_main(now, slot);
    }

    /// The answer of a session for a request that came here.
    pub(super) fn send_poll_answer(&mut self, now: Now, to: Requester, status: u16, (kind, body): &(&'static str, String)) {
        let Some(Link { state: State::Polled(polled), .. }) = self.links.get_mut_of(to.link.slot, to.link.generation) else { return };
        if polled.number != to.number {
            return;
        }
        let (sid, reply) = (polled.sid, std::mem::take(&mut polled.reply));
        let translated = (reply.is_old && *kind == TEXT && self.world.config.serves_eio3()).then(|| eio3::write(body));
        let body = translated.as_ref().unwrap_or(body);
        let mut extra = Vec::new();
        if status == 200 {
            extra.push(("Cache-Control", "no-store".to_owned()));
        }
        if let Some(name) = self.world.config.socket_io.cookie.as_ref().filter(|_| reply.greets) {
            extra.push(("Set-Cookie", format!("{name}={}; Path=/; HttpOnly; SameSite=Lax", sid.text().as_str())));
        }
        self.reply_http(now, to.link.slot, &reply, (status, kind, body), extra);
        // What was said is in this answer and nowhere else: a slow line gets as long as a heartbeat would give it.
        let socket_io = &self.world.config.socket_io;
        let patience_ms = now.ms() + socket_io.ping_interval_ms + socket_io.ping_timeout_ms;
        if let Some(Link { state: State::Closing { deadline_ms, .. }, .. }) = self.links.get_mut_of(to.link.slot, to.link.generation) {
            *deadline_ms = patience_ms;
        }
    }

    /// Answers a request; after that the connection waits for the next one, or closes, as the answer says.
    fn reply_http(&mut self, now: Now, slot: u32, reply: &Reply, (status, kind, body): (u16, &str, &str), mut extra: Headers) {
        extra.extend(self.cross_origin(reply.origin.as_deref()));
        let may_shrink = kind == TEXT && body.len() >= GZIP_BYTES_MIN;
        let packed = (may_shrink && reply.gzip).then(|| gzip(body.as_bytes()));
        if packed.is_some() {
            extra.push(("Content-Encoding", "gzip".to_owned()));
        }
        if may_shrink {
            extra.push(("Vary", "Accept-Encoding".to_owned()));
        }
        join_vary(&mut extra);
        let stays = reply.persists && self.drain.is_none() && self.may_stay(slot);
        let response = Response {
            status,
            content_type: kind,
            body: packed.as_deref().unwrap_or(body.as_bytes()),
            keep_alive_s: stays.then_some(KEEP_ALIVE_MS / 1_000),
            without_body: reply.without_body,
        };
        let bytes = response.bytes(&pairs(&extra));
        if !stays {
            return self.answer_http(now, slot, bytes);
        }
        let deadline_ms = now.ms() + KEEP_ALIVE_MS;
        if let Some(link) = self.links.get_mut(slot) {
            link.state = State::Head { deadline_ms, idle: true, welcome: true };
        }
        self.arm(slot, deadline_ms);
        self.push(now, slot, Frame::encoded(bytes));
    }

    /// Whether the connection has a place of its own at its address, or gets one. Those of proxies are as many as clients need. While
    /// there are more than the process may hold nobody stays: what came too much would be let in by its second request.
    fn may_stay(&mut self, slot: u32) -> bool {
        if self.world.addresses.is_overfull() {
            return false;
        }
        let Some(link) = self.links.get_mut(slot) else { return false };
        if link.ticket.is_none() && !self.world.config.trusted_proxies.contains(&link.peer.ip.to_canonical()) {
            link.ticket = self.world.addresses.stay(link.peer.ip);
            return link.ticket.is_some();
        }
        true
    }

    /// Something of the next request is here, so from now on its head is waited for and no longer for its coming.
    pub(super) fn begin_head(&mut self, now: Now, slot: u32) {
        let begun_ms = now.ms() + self.world.config.limits.handshake_ms;
        if let Some(Link { state: State::Head { deadline_ms, idle: idle @ true, .. }, .. }) = self.links.get_mut(slot) {
            (*idle, *deadline_ms) = (false, begun_ms);
            self.arm(slot, begun_ms);
        }
    }
}

/// The version of Engine.IO that a request speaks; as in Node whatever does not say 4 is 3.
pub(super) fn version(request: &Request<'_>) -> u8 {
    if request.query_value("EIO").as_deref() == Some("4") { 4 } else { 3 }
}

fn is_client_file(request: &Request<'_>) -> bool {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    matches!(request.method, "GET" | "HEAD")
        && !request.wants_websocket()
        && CLIENT_FILES.contains(&name.strip_suffix(".map").unwrap_or(name))
}

fn status_of(fault: BodyFault) -> u16 {
    match fault {
        BodyFault::Malformed => 400,
        BodyFault::TooBig => 413,
    }
}

/// Makes one header of all that say what the answer depends on; caches must not have to.
fn join_vary(headers: &mut Headers) {
    let mut names: Vec<String> = headers.extract_if(.., |(name, _)| *name == "Vary").map(|(_, value)| value).collect();
    if names.is_empty() {
        return;
    }
    // Origin first, as Node has it.
    names.sort_by_key(|name| name != "Origin");
    headers.push(("Vary", names.join(", ")));
}

pub(super) fn pairs<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}
