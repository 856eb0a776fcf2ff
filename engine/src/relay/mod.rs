//! The relay: one thread a host, which passes on to other hosts what is said here, and back. What it knows and decides is in [`core`], without
//! connection, clock or thread; [`thread`] has those; [`link`] alone knows the client library of Redis; [`format`] the bytes of others.
//!
//! What hosts of our own kind ask each other goes another way: [`words`] is what they say, [`fleet`] keeps track of who asked whom what, and
//! [`handle`] is how the program that the engine is embedded in reaches it. None of these three has a connection or a clock either.
#![allow(rustdoc::private_intra_doc_links, reason = "nothing of the relay is for other programs; it is public for tests only")]

mod append;
mod beats;
mod channels;
mod cluster;
mod consults;
mod core;
#[cfg(test)]
mod fake;
pub mod fleet;
pub mod format;
mod frozen;
mod guard;
pub mod handle;
mod history;
#[cfg(test)]
#[path = "../../tests/host/mod.rs"]
mod host;
mod hosts;
mod journal;
pub(crate) mod lane;
pub mod link;
mod peers;
mod presence;
mod read;
mod reader;
pub mod request;
mod rooms;
mod sessions;
#[cfg(test)]
mod simulation;
mod slots;
mod socketio;
mod status;
mod streams;
mod thread;
mod waiting;
pub mod words;

pub(crate) use frozen::FrozenRelay;
pub use status::RelayState;
pub(crate) use thread::{Report, Resting, Setup, address_of, live};
