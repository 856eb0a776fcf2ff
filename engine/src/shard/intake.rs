//! From bytes to meaning: a link's bytes become a request head, WebSocket messages, and what a dialect or Socket.IO makes of them.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::engine_http::{Engine, pairs};
use super::lean::Seldom;
use super::links::{Asking, Conn, Opening, Stage, State, Visitor};
use super::membership::Seats;
use super::rate::Verdict;
use super::socket_io::without_token;
use super::{Command, Shard};
use crate::auth::{AuthFault, Identity, SessionCookie, Verifier};
use crate::config::{AuthMode, Endpoint};
use crate::dialect::{Hello, Profile, Said};
use crate::fault::{CloseReason, Refusal};
use crate::frame::Frame;
use crate::ids::{EndpointId, LinkKey, SID_RANDOM_BYTES, Sid};
use crate::limits::IDENTIFY_MS;
use crate::time::Now;
use crate::wire::http::{self, Head, Request};
use crate::wire::ws::{self, Message, Step, WsFault};

/// Chunks of one session cookie. The libraries cut at about 3.9 kB, and a token has at most [`crate::limits::TOKEN_BYTES_MAX`].
const COOKIE_CHUNKS_MAX: usize = 8;

/// What one look at a link's bytes came to.
enum Look {
    /// So many were consumed; there may be more to do.
    Consumed(usize),
    /// Nothing can be done before more bytes or an answer come.
    Wait,
    /// The link's bytes belong to somebody else now.
    Gone,
}

impl Shard {
    /// Bytes read from a link's socket; unmasked in place.
    pub fn handle_bytes(&mut self, now: Now, key: LinkKey, bytes: &mut [u8]) {
        self.read_ns = now.ns;
        let Some(link) = self.links.get_mut_of(key.slot, key.generation) else { return };
        if matches!(link.state, State::Closing { .. }) {
            return;
        }
        if link.partial.is_empty() {
            let used = self.consume(now, key, bytes);
            self.keep_partial(key, &bytes[used..]);
        } else {
            // A message in pieces: the copy buys one contiguous slice for the parsers.
            link.partial.list().extend_from_slice(bytes);
            self.consume_partial(now, key);
        }
        self.settle(now);
    }

    /// The link no longer waits: goes on with what was read meanwhile.
    pub fn handle_resume(&mut self, now: Now, key: LinkKey) {
        self.read_ns = now.ns;
        if let Some(link) = self.links.get_mut_of(key.slot, key.generation) {
            link.resuming = false;
        }
        self.consume_partial(now, key);
        self.excuse(now, key);
        self.settle(now);
    }

    pub(super) fn consume_partial(&mut self, now: Now, key: LinkKey) {
        self.drain_inbox(now, key.slot);
        let Some(link) = self.links.get_mut_of(key.slot, key.generation) else { return };
        let mut partial = link.partial.take();
        let used = self.consume(now, key, &mut partial);
        if used < partial.len() {
            partial.drain(..used);
            if let Some(link) = self.links.get_mut_of(key.slot, key.generation) {
                link.partial = partial.into();
            }
        }
    }

    fn keep_partial(&mut self, key: LinkKey, rest: &[u8]) {
        if let Some(link) = self.links.get_mut_of(key.slot, key.generation)
            && !rest.is_empty()
        {
            link.partial.list().extend_from_slice(rest);
        }
    }

    /// Handles what is complete in `bytes` and returns how much that was; everything, when the link has ended.
    fn consume(&mut self, now: Now, key: LinkKey, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let Some(link) = self.links.get_mut_of(key.slot, key.generation) else { return bytes.len() };
            let look = match link.state {
                _ if link.waiting > 0 => Look::Wait,
                _ if link.is_answering() => Look::Wait,
                State::Head { welcome, .. } => self.read_head(now, key, welcome, &bytes[used..]),
                State::Body(_) => Look::Consumed(self.read_body(now, key, &bytes[used..])),
                State::Plain { .. } | State::SocketIo(_) | State::Probe(_) => self.read_frame(now, key, &mut bytes[used..]),
                State::Closing { .. } | State::Polled(_) => Look::Gone,
            };
            match look {
                Look::Consumed(n) => used += n,
                Look::Wait => return used,
                Look::Gone => return bytes.len(),
            }
        }
        used
    }

    fn read_frame(&mut self, now: Now, key: LinkKey, bytes: &mut [u8]) -> Look {
        let Some(link) = self.links.get_mut(key.slot) else { return Look::Gone };
        // Taken out so that a message may borrow it while the shard works on it.
        let mut decoder = std::mem::take(&mut link.decoder);
        let look = match decoder.next(bytes, self.world.config.limits.message_bytes) {
            Ok(Step::Incomplete) => Look::Wait,
            Ok(Step::Consumed { bytes, message }) => {
                if let Some(message) = message {
                    self.take_message(now, key.slot, message);
                    // Lets go of a message that was assembled from fragments: an idle link owns no buffer.
                    let _ = decoder.next(&mut [], 0);
                }
                Look::Consumed(bytes)
            }
            Err(fault) => {
                let reason = match fault {
                    WsFault::Protocol => CloseReason::Protocol,
                    WsFault::Utf8 => CloseReason::Utf8,
                    WsFault::TooBig => CloseReason::Oversize,
                };
                let goodbye = reason.close_frame().map(|(code, text)| ws::close_frame(code, text));
                self.close_link(now, key.slot, reason, goodbye);
                return Look::Gone;
            }
        };
        if let Some(link) = self.links.get_mut_of(key.slot, key.generation)
            && !matches!(link.state, State::Closing { .. })
        {
            link.decoder = decoder;
        }
        look
    }

    fn take_message(&mut self, now: Now, slot: u32, message: Message<'_>) {
        if let Some(State::Probe(probe)) = self.links.get(slot).map(|link| &link.state) {
            return self.take_probe(now, slot, probe.session, message);
        }
        let plain = match self.links.get(slot).map(|link| &link.state) {
            Some(State::Plain { conn }) => Some(*conn),
            _ => None,
        };
        match (message, plain) {
            (Message::Text(text), Some(conn)) => self.hear(now, slot, conn, Said::Text(text), text.len()),
            (Message::Binary(bytes), Some(conn)) => self.hear(now, slot, conn, Said::Binary(bytes), bytes.len()),
            (Message::Text(text), None) => self.take_packet(now, slot, text),
            // The copy buys a buffer that outlives the read: the rest of the packet may come later.
            (Message::Binary(bytes), None) => {
                let attachment = self.unmarked(slot, bytes);
                self.take_attachment(now, slot, attachment);
            }
            (Message::Ping(payload), _) => {
                // Pings cost as much as messages, so they are under the same bound; one too many is not answered.
                if self.rate(now, slot) == Verdict::Within {
                    self.push(now, slot, Frame::encoded(ws::frame(10, payload)));
                }
            }
            (Message::Pong(_), Some(_)) => self.pong(now, slot),
            (Message::Pong(_), None) => {}
            (Message::Close { code, .. }, _) => {
                let echo = code.map_or_else(ws::empty_close_frame, |code| ws::close_frame(code, ""));
                self.close_link(now, slot, CloseReason::Client, Some(echo));
            }
        }
    }

    /// A message within the rate.
    pub(super) fn hear_within(&mut self, now: Now, conn: u32, said: Said<'_>) {
        let Some(endpoint) = self.conns.get(conn).map(|conn| conn.endpoint) else { return };
        if self.world.config.endpoints[usize::from(endpoint.0)].publish_hook {
            self.hear_and_ask(now, conn, said);
        } else {
            self.consult(now, conn, |dialect, cx, scratch, acts| dialect.message(cx, said, scratch, acts));
        }
    }

    /// One message of a connection: counted, held against the rate, and given to its dialect.
    pub(super) fn hear(&mut self, now: Now, link: u32, conn: u32, said: Said<'_>, bytes: usize) {
        let Some(heard) = self.conns.get_mut(conn) else { return };
        let endpoint = heard.endpoint;
        self.heard_before = heard.heard_tenths;
        heard.note_life(now);
        self.counters(endpoint).received.add(1);
        self.counters(endpoint).received_bytes.add(bytes as u64);
        match self.rate(now, link) {
            Verdict::Within if self.hides(endpoint) => self.hear_and_look_up(now, conn, said),
            Verdict::Within => self.hear_within(now, conn, said),
            verdict => {
                self.counters(endpoint).rate_limited.add(1);
                self.counters(endpoint).dropped[crate::fault::DropReason::Rate.index()].add(1);
                self.consult(now, conn, |dialect, cx, _, acts| dialect.over_rate(cx, said, acts));
                if verdict == Verdict::Enough {
                    self.disconnect(now, conn, CloseReason::Rate, None);
                }
            }
        }
    }

    pub(super) fn rate(&mut self, now: Now, slot: u32) -> Verdict {
        let limits = &self.world.config.limits;
        self.links.get_mut(slot).map_or(Verdict::Over, |link| link.rate.take(limits, now.ms()))
    }

    fn read_head(&mut self, now: Now, key: LinkKey, welcome: bool, bytes: &[u8]) -> Look {
        match http::parse(bytes, self.world.config.limits.head_bytes) {
            Head::Incomplete => {
                self.begin_head(now, key.slot);
                Look::Wait
            }
            Head::Bad { status } => {
                self.refuse_unrouted(now, key.slot, Refusal::BadRequest, status, "");
                Look::Gone
            }
            Head::Complete { bytes: head, request } => {
                let is_engine_io = request.path.starts_with(&*self.world.config.socket_io.path);
                let engine = is_engine_io.then(|| self.read_engine_io(now, key, &request, bytes, head));
                match engine {
                    Some(Engine::Taken) => return Look::Consumed(head),
                    Some(Engine::Moved) => return Look::Gone,
                    Some(Engine::Handshake | Engine::File) | None => {}
                }
                let is_call = !request.wants_websocket() && engine != Some(Engine::Handshake);
                let entering = self.door.admits(key).then(|| self.links.get(key.slot).map(|link| link.peer.into())).flatten();
                let client = match entering.map_or_else(|| self.let_in(now, key.slot, welcome, is_call, &request), Ok) {
                    Ok(client) => client,
                    Err((refusal, status)) if is_call => {
                        self.refuse_call(now, key.slot, refusal, status);
                        return Look::Gone;
                    }
                    Err((refusal, status)) => {
                        let origin = request.header("origin").filter(|_| is_engine_io);
                        self.refuse_http(now, key.slot, refusal, status, origin);
                        return Look::Gone;
                    }
                };
                if request.wants_websocket() {
                    if let Some(link) = self.links.get_mut(key.slot) {
                        link.peer = client.into();
                    }
                    // Socket.IO comes in by its CONNECT, which says whether it goes on with what it had.
                    if entering.is_none() && !is_engine_io && !self.enters_by_head(now, key) {
                        return if self.links.get(key.slot).is_some_and(|link| link.waiting > 0) { Look::Wait } else { Look::Gone };
                    }
                    self.upgrade(now, key.slot, &request);
                } else if engine == Some(Engine::Handshake) {
                    self.open_polling(now, key, &request, client);
                } else {
                    self.hand_over(key, client, bytes);
                    return Look::Gone;
                }
                Look::Consumed(head)
            }
        }
    }

    /// Counts the handshake, or the call over plain HTTP, against the bounds of process and address, and says whose it is: the next one that comes from a proxy over the
    /// same connection may be somebody else's.
    fn let_in(&mut self, now: Now, slot: u32, welcome: bool, is_call: bool, request: &Request<'_>) -> Result<SocketAddr, (Refusal, u16)> {
        if self.drain.is_some() {
            return Err((Refusal::Stopping, 503));
        }
        if !welcome {
            return Err((Refusal::Full, 503));
        }
        let Some(link) = self.links.get_mut(slot) else { return Err((Refusal::Full, 503)) };
        let is_proxy = self.world.config.trusted_proxies.contains(&link.peer.ip.to_canonical());
        let behind = forwarded_for(request, &self.world.config.trusted_proxies).filter(|_| is_proxy);
        let client = behind.map_or(link.peer.into(), |client| SocketAddr::new(client, 0));
        let addresses = &self.world.addresses;
        let ticket = if is_call { addresses.call(client.ip(), now.ms()) } else { addresses.open(client.ip(), now.ms()) };
        let ticket = ticket.map_err(|refusal| (refusal, 429))?;
        // The one it stayed with after an earlier request is given back.
        if let Some(old) = link.ticket.replace(ticket) {
            self.world.addresses.close(old);
        }
        Ok(client)
    }

    /// In the form of those who would have answered.
    fn refuse_call(&mut self, now: Now, slot: u32, refusal: Refusal, status: u16) {
        self.stats.unrouted().refused[refusal.index()].add(1);
        let body = match status {
            429 => r#"{"success":false,"error":{"code":"RATE_LIMIT_EXCEEDED","message":"Too many requests from this address"}}"#,
            _ => r#"{"success":false,"error":{"code":"UNAVAILABLE","message":"Try again later"}}"#,
        };
        self.answer_http(now, slot, http::response(status, "application/json", &[("Retry-After", "10")], body));
    }

    fn refuse_unrouted(&mut self, now: Now, slot: u32, refusal: Refusal, status: u16, body: &str) {
        self.stats.unrouted().refused[refusal.index()].add(1);
        self.answer_http(now, slot, http::response(status, "text/plain", &[], body));
    }

    fn hand_over(&mut self, key: LinkKey, peer: SocketAddr, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(key.slot) else { return };
        // From here on its bytes are the HTTP server's: nothing more is read or looked at until the driver has taken the socket.
        link.waiting += 1;
        self.stats.handed_over.add(1);
        self.commands.push_back(Command::HandOver { link: key, peer, read: bytes.to_vec() });
    }

    fn upgrade(&mut self, now: Now, slot: u32, request: &Request<'_>) {
        let world = self.world.clone();
        let config = &world.config;
        let is_socket_io = request.path.starts_with(&*config.socket_io.path);
        let plain = config.endpoints.iter().position(|endpoint| !endpoint.dialect.is_socket_io() && endpoint.bind == request.path);
        if !is_socket_io && plain.is_none() {
            return self.refuse_unrouted(now, slot, Refusal::BadRequest, 404, "Not Found");
        }
        let key = match request.websocket_key() {
            Ok(key) => key,
            Err(status) => return self.refuse_unrouted(now, slot, Refusal::BadRequest, status, "Bad WebSocket handshake"),
        };
        match plain {
            Some(index) if !is_socket_io => {
                // Plain endpoints have no subprotocols.
                let response = http::switching_protocols(key, None, &[]);
                self.open_plain(now, slot, EndpointId(index as u8), request, response);
            }
            _ => {
                let headers = self.cross_origin(request.header("origin"));
                let response = http::switching_protocols(key, request.first_protocol(), &pairs(&headers));
                self.open_socket_io(now, slot, request, response);
            }
        }
    }

    fn open_plain(&mut self, now: Now, slot: u32, endpoint_id: EndpointId, request: &Request<'_>, response: Vec<u8>) {
        let world = self.world.clone();
        let endpoint = &world.config.endpoints[usize::from(endpoint_id.0)];
        let mut token = self.token_of_request(now, request);
        if token == Err(AuthFault::Missing) && endpoint.cookies {
            token = self.token_of_cookie(now, request);
        }
        // The id must be known to say who it is, and the slot to make the id.
        let random = self.random_id();
        let sid = Sid::new(self.id, self.conns.next_slot(), random);
        let query = without_token(request.query).into_string();
        let asking = self.asking(endpoint_id, &token, None, || Visitor::of(request));
        let admitted = match &asking {
            Some(_) => Ok(Profile::named(sid.text().as_str())),
            None => self.dialect(endpoint_id).admit(&Hello { now, endpoint, sid, query: request.query, auth: None, token }),
        };
        let profile = match admitted {
            Ok(profile) => profile,
            Err(refused) => return self.refuse(now, slot, endpoint_id, refused, Some(response)),
        };
        let opening = Opening { response: Some(response), query, asking };
        let opened = self.open_conn(now, slot, |_, generation| new_conn(generation, slot, endpoint_id, sid, profile, opening, now));
        match (opened, self.links.get_mut(slot)) {
            (Some(conn), Some(link)) => link.state = State::Plain { conn },
            _ => self.refuse_unrouted(now, slot, Refusal::Full, 503, "full"),
        }
    }

    /// The token of the `Authorization` header, else of the query.
    pub(super) fn token_of_request(&self, now: Now, request: &Request<'_>) -> Result<Arc<Identity>, AuthFault> {
        match request.bearer().map(Cow::Borrowed).or_else(|| request.query_value("token")) {
            Some(token) => self.verify(now, &token),
            None => Err(AuthFault::Missing),
        }
    }

    /// The token of the session cookie. Against cross-site hijacking it counts only from an origin that is listed by name, or where the
    /// browser says that page and server are of one: it names no origin then, except on WebSockets.
    pub(super) fn token_of_cookie(&self, now: Now, request: &Request<'_>) -> Result<Arc<Identity>, AuthFault> {
        let counts = match request.headers("origin").next() {
            Some(origin) => origin.is_some_and(|origin| self.world.config.origins.iter().any(|allowed| allowed == origin)),
            None => request.header("sec-fetch-site") == Some("same-origin") && !request.wants_websocket(),
        };
        let mut said = Err(AuthFault::Missing);
        if counts {
            // A site that moves from one library to the other leaves the old cookies behind, so the first that is good counts.
            for cookie in SessionCookie::ALL {
                let Some(value) = session_cookie(request, cookie.name()) else { continue };
                let verified = self.verifier().and_then(|verifier| verifier.verify_cookie(cookie, &value, now.unix_ms));
                if verified.is_ok() {
                    return verified.map(Arc::new);
                }
                // Of several bad ones, that a session is over is what a client can do something about.
                if said != Err(AuthFault::Expired) {
                    said = verified.map(Arc::new);
                }
            }
        }
        said
    }

    pub(super) fn verify(&self, now: Now, token: &str) -> Result<Arc<Identity>, AuthFault> {
        self.verifier()?.verify(token, now.unix_ms).map(Arc::new)
    }

    fn verifier(&self) -> Result<&Verifier, AuthFault> {
        self.world.config.verifier.as_ref().ok_or(AuthFault::Invalid)
    }

    /// What is kept of a client's handshake while the back end is asked about it; `None` where it is not, or where its token is bad.
    pub(super) fn asking(
        &self,
        endpoint: EndpointId,
        token: &Result<Arc<Identity>, AuthFault>,
        auth: Option<&str>,
        visitor: impl FnOnce() -> Visitor,
    ) -> Option<Box<Asking>> {
        if !self.asks_callers(endpoint) {
            return None;
        }
        // Where no token is asked for none counts, a bad one neither.
        let is_open = self.world.config.endpoints[usize::from(endpoint.0)].auth == AuthMode::None;
        let token = if is_open { Err(AuthFault::Missing) } else { token.clone() };
        let auth = auth.filter(|_| is_open).map(Box::from);
        (!matches!(token, Err(AuthFault::Invalid | AuthFault::Expired))).then(|| Box::new(Asking { token, auth, visitor: visitor() }))
    }

    pub(super) fn random_id(&self) -> [u8; SID_RANDOM_BYTES] {
        rand::RngExt::random(&mut *self.entropy.borrow_mut())
    }

    pub(super) fn endpoint_of_namespace(&self, namespace: &str) -> Option<EndpointId> {
        let is_it = |endpoint: &Endpoint| endpoint.dialect.is_socket_io() && endpoint.bind == namespace;
        self.world.config.endpoints.iter().position(is_it).map(|index| EndpointId(index as u8))
    }
}

pub(super) fn new_conn(generation: u32, link: u32, endpoint: EndpointId, sid: Sid, profile: Profile, opening: Opening, now: Now) -> Conn {
    Conn {
        generation,
        link,
        endpoint,
        sid,
        connected_unix_ms: now.unix_ms,
        heard_tenths: now.tenths(),
        seats: Seats::new(),
        is_polling: false,
        waiting: 0,
        stage: if profile.unproven.is_some() { Stage::Unknown { until_ms: now.ms() + IDENTIFY_MS } } else { Stage::Known },
        profile,
        entering: Seldom::new(),
        leaving: None,
        opening: Some(Box::new(opening)),
        typing: Seldom::new(),
        acks: Seldom::new(),
        asked_rooms: 0,
        ruled: None,
        recovery: None,
    }
}

/// The cookie of this name, or what its chunks `NAME.0`, `NAME.1`... are together.
fn session_cookie<'b>(request: &Request<'b>, name: &str) -> Option<Cow<'b, str>> {
    if let Some(whole) = request.cookie(name).filter(|whole| !whole.is_empty()) {
        return Some(Cow::Borrowed(whole));
    }
    let chunks: String = (0..COOKIE_CHUNKS_MAX).map_while(|chunk| request.cookie(&format!("{name}.{chunk}"))).collect();
    (!chunks.is_empty()).then_some(Cow::Owned(chunks))
}

/// The client behind trusted proxies: the last address of `X-Forwarded-For` that is none of them. Several lines are one list: a proxy
/// that adds a line of its own leaves above it whatever the client wrote.
fn forwarded_for(request: &Request<'_>, trusted: &[IpAddr]) -> Option<IpAddr> {
    // A line that cannot be read is one address that is none, and ends the search like any other.
    let lines = request.headers("x-forwarded-for").rev().map(Option::unwrap_or_default);
    let addresses = lines.flat_map(|line| line.rsplit(',')).map(|part| part.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical()));
    addresses.map_while(|address| address).find(|address| !trusted.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_wrote_above_the_proxys_line_does_not_count() {
        let trusted: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let cases: [(&[&str], Option<[u8; 4]>); 9] = [
            (&["1.2.3.4"], Some([1, 2, 3, 4])),
            (&["6.6.6.6", "1.2.3.4"], Some([1, 2, 3, 4])),
            (&["6.6.6.6, 1.2.3.4"], Some([1, 2, 3, 4])),
            (&["6.6.6.6", "1.2.3.4, 10.0.0.1", "10.0.0.2"], Some([1, 2, 3, 4])),
            (&["6.6.6.6, 1.2.3.4", "10.0.0.1,::ffff:10.0.0.2"], Some([1, 2, 3, 4])),
            (&["6.6.6.6", "nonsense, 10.0.0.1"], None),
            (&["6.6.6.6", ""], None),
            (&["10.0.0.1"], None),
            (&[], None),
        ];
        for (lines, client) in cases {
            let lines: String = lines.iter().map(|line| format!("X-Forwarded-For: {line}\r\n")).collect();
            let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
            let Head::Complete { request, .. } = http::parse(text.as_bytes(), text.len()) else { panic!("a whole head: {text}") };
            assert_eq!(forwarded_for(&request, &trusted), client.map(IpAddr::from), "{text}");
        }
    }
}
