//! Clients of Engine.IO 3 (`socket.io-client` 1 and 2), where an endpoint serves them: they are in the main namespace from the start, ping
//! instead of being pinged, carry their auth in queries, and make their ids themselves out of the session's.

use std::fmt;

use super::Shard;
use super::links::{Heartbeat, Link, State};
use super::rate::Verdict;
use crate::frame::Frame;
use crate::ids::{EndpointId, Sid};
use crate::json::{Scratch, Value};
use crate::time::Now;
use crate::wire::{eio3, sio};

/// What a link of such a client has. Its debug form does not show the query, in which a token may be.
#[derive(Default)]
pub(crate) struct Old {
    /// The session's id, which its connection in the main namespace will have.
    promised: Option<Sid>,
    /// Query of the CONNECT that is being looked at.
    pub(super) query: Box<str>,
}

impl fmt::Debug for Old {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Old").field("promised", &self.promised).field("query_bytes", &self.query.len()).finish()
    }
}

impl Old {
    /// One that was promised this id.
    pub(super) fn promised(promised: Option<Sid>) -> Old {
        Old { promised, ..Old::default() }
    }

    /// The id that was promised, if it was not given yet.
    pub(super) fn promise(&self) -> Option<Sid> {
        self.promised
    }

    /// Takes the query off a namespace.
    pub(super) fn split_query<'a>(&mut self, namespace: &'a str) -> &'a str {
        let (name, query) = namespace.split_once('?').unwrap_or((namespace, ""));
        self.query = query.into();
        name
    }
}

impl Shard {
    /// True exactly when the link's client speaks Engine.IO 3.
    pub(super) fn is_old(&self, slot: u32) -> bool {
        matches!(self.links.get(slot), Some(Link { state: State::SocketIo(socket), .. }) if socket.rare().old.is_some())
    }

    /// The id that a session is greeted with. An old client takes it for its own id, so its connection must have it.
    pub(super) fn id_of_session(&mut self, slot: u32) -> Sid {
        if !self.is_old(slot) {
            return self.session_id(slot);
        }
        let sid = Sid::new(self.id, self.conns.next_slot(), self.random_id());
        if let Some(link) = self.links.get_mut(slot) {
            if link.polling.is_some() {
                // It names the connection's slot, not the link's.
                link.guest = Some(Box::new(sid));
                self.guests.insert(sid, slot);
            }
            if let State::SocketIo(socket) = &mut link.state {
                socket.rare_mut().old = Some(Old { promised: Some(sid), ..Old::default() });
            }
        }
        sid
    }

    /// The id that the link's next connection was told to have, if its place is still free.
    pub(super) fn promised_id(&mut self, slot: u32) -> Option<Sid> {
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot) else { return None };
        socket.rare_if_any()?.old.as_mut()?.promised.take().filter(|sid| sid.slot() == self.conns.next_slot())
    }

    /// An old client is in the main namespace without asking; where that is not served to it, in name only.
    pub(super) fn join_main(&mut self, now: Now, slot: u32) {
        if !self.is_old(slot) {
            return;
        }
        let is_served =
            self.endpoint_of_namespace("/").is_some_and(|EndpointId(index)| self.world.config.endpoints[usize::from(index)].eio3);
        if is_served {
            self.take_packet(now, slot, "40");
        } else {
            self.push(now, slot, Frame::control_text(&sio::connect_old("/")));
        }
    }

    /// Answers its ping; it has as long as it was told for the next one.
    pub(super) fn answer_old_ping(&mut self, now: Now, slot: u32, data: &str) {
        let socket_io = &self.world.config.socket_io;
        let at_ms = now.ms() + socket_io.ping_interval_ms + socket_io.ping_timeout_ms;
        if let Some(link) = self.links.get_mut(slot) {
            link.heartbeat = Heartbeat { at_ms, awaiting: true, sent_ns: now.ns, ..Heartbeat::NEVER };
        }
        self.arm_next(now, slot);
        // Under the same bound as messages; one too many is not answered.
        if self.rate(now, slot) == Verdict::Within {
            self.push(now, slot, Frame::control_text(&format!("3{data}")));
        }
    }

    /// Refuses a CONNECT. Old clients get the error's data alone, or its message.
    pub(super) fn refuse_namespace(&mut self, now: Now, slot: u32, namespace: &str, error: &str) {
        let mut scratch = Scratch::default();
        let told = match scratch.parse(error) {
            Ok(error) if self.is_old(slot) => {
                let error = error.root();
                error.get("data").or_else(|| error.get("message")).map_or("null", Value::raw).to_owned()
            }
            _ => error.to_owned(),
        };
        self.push(now, slot, Frame::control_text(&sio::connect_error(namespace, &told)));
    }

    /// The data of a binary message, without what the client's protocol puts before it; `None` when that is missing.
    pub(super) fn unmarked(&self, slot: u32, bytes: &[u8]) -> Option<Vec<u8>> {
        let data = if self.is_old(slot) { bytes.strip_prefix(&[eio3::MESSAGE])? } else { bytes };
        Some(data.to_vec())
    }
}
