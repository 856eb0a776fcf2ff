//! What only the test profiles do: an Engine.IO server without Socket.IO above it, which sends every message back, and greetings that
//! come late. No configuration leads here.

use super::Shard;
use crate::frame::{Frame, Packet};
use crate::ids::ConnId;
use crate::time::Now;

/// How long the greeting of a connection waits, in milliseconds. The suites listen for one message at a time: of two that arrive in one
/// read, as ours do, they never see the second.
const GREETING_LATE_MS: u64 = 20;

impl Shard {
    /// Sends an Engine.IO message back as it came; false where Socket.IO is spoken.
    pub(super) fn echoes(&mut self, now: Now, slot: u32, packet: Packet<'_>) -> bool {
        if !self.world.config.socket_io.raw_echo {
            return false;
        }
        let frame = match packet {
            Packet::Text(text) => Frame::control_text(text),
            Packet::Binary(bytes) => Frame::control_binary(bytes),
        };
        self.push(now, slot, frame);
        true
    }

    /// Greets a connection in a write of its own.
    pub(super) fn greet_later(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let (id, link, at_ms) = (self.conn_id(slot, conn), conn.link, now.ms() + GREETING_LATE_MS);
        self.late.push((at_ms, id));
        self.arm(link, at_ms);
    }

    /// Greets those whose time has come, and sees to it that the others' will.
    pub(super) fn greet_late(&mut self, now: Now) {
        for (at_ms, id) in std::mem::take(&mut self.late) {
            let Some(link) = self.link_of(id) else { continue };
            if at_ms <= now.ms() {
                self.consult(now, id.slot, |dialect, cx, _, acts| dialect.opened(cx, "", acts));
            } else {
                self.late.push((at_ms, id));
                self.arm(link, at_ms);
            }
        }
    }

    fn link_of(&self, id: ConnId) -> Option<u32> {
        self.conns.get(id.slot).filter(|conn| conn.generation == id.generation).map(|conn| conn.link)
    }
}
