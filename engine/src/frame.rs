//! A message as it goes out: encoded once, shared by reference count however many receive it.

use std::sync::Arc;

use crate::ids::EndpointId;
use crate::wire::ws;

/// Bytes of one whole unfragmented WebSocket frame, header included. Server frames are not masked, so every receiver gets the same bytes.
#[derive(Clone, Debug)]
pub struct Frame(Arc<Body>);

#[derive(Debug)]
struct Body {
    bytes: Box<[u8]>,
    header: u8,
    /// The endpoint whose message this is; `None` for control frames, which the message counters leave out.
    endpoint: Option<EndpointId>,
}

impl Frame {
    /// A text message of an endpoint.
    pub fn text(endpoint: EndpointId, payload: &str) -> Frame {
        Frame::new(1, payload.as_bytes(), Some(endpoint))
    }

    /// A text frame that is no message: Engine.IO handshake and heartbeat, Socket.IO connect and disconnect.
    pub fn control_text(payload: &str) -> Frame {
        Frame::new(1, payload.as_bytes(), None)
    }

    /// A WebSocket control frame, or anything else that is already encoded whole (an HTTP answer).
    pub fn encoded(bytes: Vec<u8>) -> Frame {
        Frame(Arc::new(Body { bytes: bytes.into(), header: 0, endpoint: None }))
    }

    fn new(opcode: u8, payload: &[u8], endpoint: Option<EndpointId>) -> Frame {
        let (header, header_len) = ws::header(opcode, payload.len());
        // The one copy of an outgoing message: it buys a frame that all receivers can share.
        let mut bytes = Vec::with_capacity(header_len + payload.len());
        bytes.extend_from_slice(&header[..header_len]);
        bytes.extend_from_slice(payload);
        Frame(Arc::new(Body { bytes: bytes.into(), header: header_len as u8, endpoint }))
    }

    /// What is written to the socket.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The payload without the WebSocket header.
    pub fn payload(&self) -> &[u8] {
        &self.0.bytes[usize::from(self.0.header)..]
    }

    /// The text of a text frame; `None` for what is encoded for one transport only.
    pub fn text_payload(&self) -> Option<&str> {
        if self.0.header == 0 { None } else { std::str::from_utf8(self.payload()).ok() }
    }

    /// The endpoint whose message this is, if it is a message.
    pub fn endpoint(&self) -> Option<EndpointId> {
        self.0.endpoint
    }
}
