//! Bytes to meaning's doorstep and back: the codecs of the protocols that clients speak. Everything here is a pure function or a small state
//! machine over borrowed bytes; it knows no socket, no clock, no connection and no dialect.
//!
//! A plain WebSocket connection passes [`http`], then [`ws`]; a Socket.IO one has [`eio`] and [`sio`] inside its WebSocket text messages, or in
//! the bodies of requests, which [`body`] reads.

pub mod body;
pub mod eio;
pub mod http;
pub mod sio;
pub mod ws;
