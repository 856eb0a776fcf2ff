//! The relay: what connects this host with the others, by way of Redis.

mod cluster;
mod guard;
pub mod link;
pub mod request;
mod slots;
