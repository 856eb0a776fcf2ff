//! A message as it goes out: encoded once, shared by reference count however many receive it.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::ids::{EndpointId, UserId};
use crate::wire::sio::Offset;
use crate::wire::{eio3, ws};

/// Bytes of one whole unfragmented WebSocket frame, header included. Server frames are not masked, so every receiver gets the same bytes.
#[derive(Clone, Debug)]
pub struct Frame(Arc<Body>);

#[derive(Debug)]
struct Body {
    bytes: Vec<u8>,
    /// Bytes of the first WebSocket header; 0 for what is encoded whole.
    header: u8,
    /// The endpoint whose message this is; `None` for control frames, which the message counters leave out.
    endpoint: Option<EndpointId>,
    mark: Mark,
    has_attachments: bool,
    receipt: Option<Box<Receipt>>,
}

/// A frame as plain data, for the process that this one becomes at a reload.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct FrozenFrame {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    header: u8,
    pub(crate) endpoint: Option<u8>,
    mark: Mark,
    has_attachments: bool,
    receipt: Option<Receipt>,
}

impl FrozenFrame {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Somebody wants to know who got a message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The message's id.
    pub message: Arc<str>,
    /// Who is told.
    pub to: UserId,
}

/// What delivery has to know of an event.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// True exactly when it is rather dropped than made to wait.
    pub volatile: bool,
    /// The offset that it ends with, where connections can be recovered.
    pub offset: Option<Offset>,
}

/// One Engine.IO packet as polling and older clients need it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message: an attachment of the text before it.
    Binary(&'a [u8]),
}

impl Frame {
    /// A text message of an endpoint.
    pub fn text(endpoint: EndpointId, payload: &str) -> Frame {
        Frame::event(endpoint, payload, &[], Mark::default())
    }

    /// A Socket.IO packet of an endpoint with the attachments that follow it: one frame each, always together.
    pub fn event(endpoint: EndpointId, text: &str, attachments: &[Vec<u8>], mark: Mark) -> Frame {
        Frame::new(text.len(), |out| out.push_str(text), attachments, Some(endpoint), mark)
    }

    /// The same of a text of about so many bytes that `write` appends: it is encoded where it stays.
    pub fn written(endpoint: EndpointId, bytes: usize, write: impl FnOnce(&mut String), attachments: &[Vec<u8>], mark: Mark) -> Frame {
        Frame::new(bytes, write, attachments, Some(endpoint), mark)
    }

    /// A binary message of an endpoint of plain WebSocket.
    pub fn binary(endpoint: EndpointId, payload: &[u8]) -> Frame {
        Frame::of_binary(payload, Some(endpoint))
    }

    /// A text frame that is no message: Engine.IO handshake and heartbeat, Socket.IO connect and disconnect.
    pub fn control_text(payload: &str) -> Frame {
        Frame::new(payload.len(), |out| out.push_str(payload), &[], None, Mark::default())
    }

    /// A binary frame that belongs to no text and is no message of an endpoint.
    pub fn control_binary(payload: &[u8]) -> Frame {
        Frame::of_binary(payload, None)
    }

    fn of_binary(payload: &[u8], endpoint: Option<EndpointId>) -> Frame {
        let (header, header_len) = ws::header(2, payload.len());
        let bytes = [&header[..header_len], payload].concat();
        Frame(Arc::new(Body { header: header_len as u8, endpoint, ..Body::of(bytes) }))
    }

    /// A WebSocket control frame, or anything else that is already encoded whole (an HTTP answer).
    pub fn encoded(bytes: Vec<u8>) -> Frame {
        Frame(Arc::new(Body::of(bytes)))
    }

    fn new(text_bytes: usize, write: impl FnOnce(&mut String), attachments: &[Vec<u8>], endpoint: Option<EndpointId>, mark: Mark) -> Frame {
        /// Room for the longest header: how long it is, is known when the text is there.
        const ROOM: &str = match str::from_utf8(&[0; ws::HEADER_BYTES_MAX]) {
            Ok(room) => room,
            Err(_) => unreachable!(),
        };
        let attached: usize = attachments.iter().map(|data| data.len() + ws::HEADER_BYTES_MAX).sum();
        let mut text = String::with_capacity(ROOM.len() + text_bytes + attached);
        text.push_str(ROOM);
        write(&mut text);
        let mut bytes = text.into_bytes();
        let (header, header_len) = ws::header(1, bytes.len() - ROOM.len());
        let start = ROOM.len() - header_len;
        bytes[start..ROOM.len()].copy_from_slice(&header[..header_len]);
        // A move of a few bytes back, and every receiver finds the frame where its bytes begin.
        bytes.drain(..start);
        for attachment in attachments {
            let (header, header_len) = ws::header(2, attachment.len());
            bytes.extend_from_slice(&header[..header_len]);
            bytes.extend_from_slice(attachment);
        }
        let (header, has_attachments) = (header_len as u8, !attachments.is_empty());
        Frame(Arc::new(Body { header, endpoint, mark, has_attachments, ..Body::of(bytes) }))
    }

    /// What tells it from all others that live: clones of a frame are one.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// As plain data.
    pub(crate) fn freeze(&self) -> FrozenFrame {
        let Body { bytes, header, endpoint, mark, has_attachments, receipt } = &*self.0;
        let (bytes, endpoint, receipt) = (bytes.to_vec(), endpoint.map(|endpoint| endpoint.0), receipt.as_deref().cloned());
        FrozenFrame { bytes, header: *header, endpoint, mark: *mark, has_attachments: *has_attachments, receipt }
    }

    /// The opposite of [`Self::freeze`]; `endpoint` is its endpoint now.
    pub(crate) fn thaw(frozen: FrozenFrame, endpoint: Option<EndpointId>) -> Frame {
        let FrozenFrame { bytes, header, mark, has_attachments, receipt, .. } = frozen;
        Frame(Arc::new(Body { bytes, header, endpoint, mark, has_attachments, receipt: receipt.map(Box::new) }))
    }

    /// The same with the type byte before each attachment, for a WebSocket of Engine.IO 3. A copy each: old clients are few.
    pub fn marked(&self) -> Frame {
        let (mut text, mut attachments) = ("", Vec::new());
        for packet in self.packets() {
            match packet {
                Packet::Text(own) => text = own,
                Packet::Binary(data) => attachments.push([&[eio3::MESSAGE], data].concat()),
            }
        }
        Frame::new(text.len(), |out| out.push_str(text), &attachments, self.0.endpoint, self.0.mark)
    }

    /// True exactly when attachments follow its text.
    pub fn has_attachments(&self) -> bool {
        self.0.has_attachments
    }

    /// The same, and whoever delivers it remembers who got it. For a frame that nobody else has yet: one that is shared stays as it is.
    #[must_use]
    pub fn with_receipt(mut self, receipt: Receipt) -> Frame {
        if let Some(body) = Arc::get_mut(&mut self.0) {
            body.receipt = Some(Box::new(receipt));
        }
        self
    }

    /// Who wants to know who got it.
    pub fn receipt(&self) -> Option<&Receipt> {
        self.0.receipt.as_deref()
    }

    /// What is written to a WebSocket.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// What counts as its size: everything but the first WebSocket header.
    pub fn payload(&self) -> &[u8] {
        &self.0.bytes[usize::from(self.0.header)..]
    }

    /// Its Engine.IO packets; none for what is encoded for one transport only.
    pub fn packets(&self) -> impl Iterator<Item = Packet<'_>> {
        let mut rest = if self.is_encoded() { &[][..] } else { self.bytes() };
        std::iter::from_fn(move || {
            let (is_text, payload, after) = ws::split_own(rest)?;
            rest = after;
            Some(if is_text { Packet::Text(std::str::from_utf8(payload).unwrap_or_default()) } else { Packet::Binary(payload) })
        })
    }

    /// True exactly when it is encoded for one transport only.
    pub fn is_encoded(&self) -> bool {
        self.0.header == 0
    }

    /// The endpoint whose message this is, if it is a message.
    pub fn endpoint(&self) -> Option<EndpointId> {
        self.0.endpoint
    }

    /// What delivery has to know of it.
    pub fn mark(&self) -> Mark {
        self.0.mark
    }
}

impl Body {
    /// What is encoded whole.
    fn of(bytes: Vec<u8>) -> Body {
        Body { bytes, header: 0, endpoint: None, mark: Mark::default(), has_attachments: false, receipt: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_and_its_attachments_are_one_frame_and_come_apart_again() {
        let attachments = [vec![], vec![1; 125], vec![2; 126], vec![3; 70_000]];
        let frame = Frame::event(EndpointId(0), "text", &attachments, Mark::default());
        let packets: Vec<Packet<'_>> = frame.packets().collect();
        assert_eq!(packets[0], Packet::Text("text"));
        assert_eq!(packets[1..], attachments.each_ref().map(|data| Packet::Binary(data)));
        assert_eq!(Frame::encoded(vec![0x81, 0]).packets().count(), 0);
    }
}
