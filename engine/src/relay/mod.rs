//! The relay: what this host and the others tell each other through Redis. It is right of the shards, which know nothing of it.

pub mod format;
