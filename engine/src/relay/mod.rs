//! What joins this host to others.
//!
//! [`words`] is what hosts say to each other, [`fleet`] keeps track of who asked whom what, and [`handle`] is how the program that the engine is
//! embedded in reaches it. None of them has a socket or a clock.

pub mod fleet;
pub mod handle;
pub mod words;
