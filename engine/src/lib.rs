//! The engine: holds a host's WebSocket and Socket.IO connections on one io_uring runtime per core and moves their messages.
//!
//! [`start`] takes a complete [`config::Config`] and returns an [`Engine`] to ask and stop, and the stream of [`Notice`]s: answers to
//! questions, and connections of the public port that speak plain HTTP and belong to whoever serves that.
//! The way through the code is told in `ARCHITECTURE.md`.

pub mod auth;
pub mod config;
pub mod fault;
pub mod ids;
pub mod json;
pub mod limits;
pub mod stats;
pub mod wire;
