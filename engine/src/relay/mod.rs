//! The relay: one thread a host, which passes on to other hosts what is said here, and back. What it knows and decides is in [`core`], without
//! connection, clock or thread; [`thread`] has those; [`link`] alone knows the client library of Redis; [`format`] the bytes of others.

mod channels;
mod consults;
mod core;
pub mod format;
pub(crate) mod guard;
mod history;
pub(crate) mod lane;
pub mod link;
mod presence;
pub mod request;
mod rooms;
mod socketio;
mod thread;
mod waiting;

pub(crate) use thread::{Setup, address_of, live};
