//! The relay: what connects this host with the others, by way of Redis.

pub mod guard;
pub mod link;
pub mod request;
