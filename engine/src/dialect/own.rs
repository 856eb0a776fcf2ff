//! A dialect of the program that embeds the engine, as a configuration names it.

use std::fmt;

use super::Dialect;

/// A dialect of the embedding program, and over what it is spoken. Name and transport are what it is known by: two of the same are equal.
///
/// The dialect lives as long as the process. One without state is simply `&Shout`, of `struct Shout;`; what it shares with the rest of
/// the program it holds behind locks or atomics, because every shard asks the one value, each on its own thread. A dialect that waits
/// for a lock holds up all connections of a shard.
///
/// ```
/// use engine::config::{Endpoint, OwnDialect};
/// use engine::dialect::{Act, Cx, Dialect, Said};
/// use engine::json::Scratch;
///
/// struct Echo;
///
/// impl Dialect for Echo {
///     fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
///         if let Said::Text(text) = said {
///             acts.push(Act::Send(cx.text(text)));
///         }
///     }
/// }
///
/// let endpoint = Endpoint::new("echo", OwnDialect::plain("echo", &Echo), "/echo");
/// assert!(!endpoint.dialect.is_socket_io());
/// ```
#[derive(Clone, Copy)]
pub struct OwnDialect {
    name: &'static str,
    is_socket_io: bool,
    dialect: &'static dyn Dialect,
}

impl OwnDialect {
    /// A dialect over plain WebSocket; its endpoints are bound to request paths.
    pub const fn plain(name: &'static str, dialect: &'static dyn Dialect) -> OwnDialect {
        OwnDialect { name, is_socket_io: false, dialect }
    }

    /// A dialect over Socket.IO; its endpoints are bound to namespaces.
    pub const fn socket_io(name: &'static str, dialect: &'static dyn Dialect) -> OwnDialect {
        OwnDialect { name, is_socket_io: true, dialect }
    }

    /// The word for it in configuration and metrics.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// True exactly when it is spoken over Socket.IO.
    pub const fn is_socket_io(&self) -> bool {
        self.is_socket_io
    }

    /// The dialect itself.
    pub const fn dialect(&self) -> &'static dyn Dialect {
        self.dialect
    }
}

impl PartialEq for OwnDialect {
    fn eq(&self, other: &OwnDialect) -> bool {
        (self.name, self.is_socket_io) == (other.name, other.is_socket_io)
    }
}

impl Eq for OwnDialect {}

impl fmt::Debug for OwnDialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnDialect").field("name", &self.name).field("is_socket_io", &self.is_socket_io).finish_non_exhaustive()
    }
}
