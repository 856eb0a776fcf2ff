//! A Socket.IO packet with binary arguments while it comes in: its text, then one message for each attachment. A link has at most one, and
//! it holds no more than one message may. It knows neither transport nor connection; which of them is meant the text says when all is there.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Shard;
use super::links::{Link, State};
use super::socket_io::Refuse;
use crate::fault::CloseReason;
use crate::frame::Packet;
use crate::time::Now;
use crate::wire::{sio, ws};

/// A packet and what has come of it. Its debug form shows nothing of what was sent.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Assembly {
    /// The Socket.IO packet, without Engine.IO's type.
    text: String,
    attachments: Vec<Vec<u8>>,
    /// Attachments still to come, at least 1.
    missing: usize,
    /// Bytes of all its messages so far.
    bytes: usize,
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembly").field("bytes", &self.bytes).field("missing", &self.missing).finish_non_exhaustive()
    }
}

impl Assembly {
    /// Bytes of all its messages so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Shard {
    /// Begins a packet that so many attachments follow. `bytes` is the length of its message.
    pub(super) fn begin_assembly(&mut self, slot: u32, text: &str, attachments: usize, bytes: usize) {
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot) {
            let assembly = Assembly { text: text.to_owned(), attachments: Vec::with_capacity(attachments), missing: attachments, bytes };
            socket.assembly = Some(Box::new(assembly));
        }
    }

    /// A binary message of a Socket.IO link; `None` for one that was said to be binary and cannot be read.
    pub(super) fn take_attachment(&mut self, now: Now, slot: u32, attachment: Option<Vec<u8>>) {
        if attachment.as_ref().is_some_and(|bytes| self.echoes(now, slot, Packet::Binary(bytes))) {
            return;
        }
        if let Err(reason) = self.add_attachment(now, slot, attachment) {
            let code = reason.close_frame().filter(|_| reason == CloseReason::Oversize);
            let goodbye = code.map_or_else(ws::empty_close_frame, |(code, text)| ws::close_frame(code, text));
            self.close_link(now, slot, reason, Some(goodbye));
        }
    }

    fn add_attachment(&mut self, now: Now, slot: u32, attachment: Option<Vec<u8>>) -> Result<(), CloseReason> {
        let bytes_max = self.world.config.limits.message_bytes;
        let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot) else { return Ok(()) };
        let (Some(attachment), Some(mut assembly)) = (attachment, socket.assembly.take()) else { return Err(CloseReason::Protocol) };
        assembly.bytes += attachment.len();
        assembly.missing -= 1;
        assembly.attachments.push(attachment);
        if assembly.bytes > bytes_max {
            return Err(CloseReason::Oversize);
        }
        if assembly.missing > 0 {
            socket.assembly = Some(assembly);
            return Ok(());
        }
        self.take_assembled(now, slot, *assembly).map_err(|Refuse| CloseReason::Protocol)
    }

    /// Everything is there: from here on the packet is one message like any other.
    fn take_assembled(&mut self, now: Now, slot: u32, assembly: Assembly) -> Result<(), Refuse> {
        let Assembly { text, attachments, bytes, .. } = assembly;
        let packet = sio::parse(&text).map_err(|_| Refuse)?;
        // The server may have taken the client out of the namespace meanwhile: then this was on its way already, and is for nobody.
        let Some(conn) = self.joined(slot, packet.namespace) else { return Ok(()) };
        let mut scratch = std::mem::take(&mut self.packets);
        self.attachments = attachments;
        let taken = match packet.kind {
            sio::Kind::BinaryAck => self.take_ack(now, slot, conn, &packet, &mut scratch),
            _ => self.take_event(now, slot, conn, &packet, &mut scratch, bytes),
        };
        self.attachments = Vec::new();
        self.packets = scratch;
        taken
    }
}
