//! What the client of a WebSocket is to hear should the process end without a word, from whoever is there then.

use super::Shard;
use super::links::State;
use crate::ids::LinkKey;
use crate::wire::ws;

/// Such a goodbye. Its number lies beside a copy of the socket; another version may find numbers that it does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Farewell {
    /// Nothing: it has had its goodbye.
    None = 0,
    /// A close frame with code 1012, "service restart".
    Restart = 1,
    /// A close frame without a code, as Engine.IO ends its transports.
    Empty = 2,
}

impl Farewell {
    /// That of a number. What is not known is closed without a word.
    pub(crate) fn of(number: u8) -> Farewell {
        match number {
            1 => Farewell::Restart,
            2 => Farewell::Empty,
            _ => Farewell::None,
        }
    }

    /// Its bytes.
    pub(crate) fn frame(self) -> Vec<u8> {
        match self {
            Farewell::None => Vec::new(),
            Farewell::Restart => ws::close_frame(1012, ""),
            Farewell::Empty => ws::empty_close_frame(),
        }
    }
}

impl Shard {
    /// What the link's client is to hear; `None` while it is no WebSocket, or when it has had its goodbye.
    pub(crate) fn farewell(&self, key: LinkKey) -> Option<Farewell> {
        let link = self.links.get(key.slot).filter(|link| link.generation == key.generation)?;
        match &link.state {
            // Until its rooms have let it in nothing is said, not even that it is a WebSocket.
            State::Plain { conn } => self.conns.get(*conn).filter(|conn| conn.opening.is_none()).map(|_| Farewell::Restart),
            State::SocketIo(_) => Some(Farewell::Empty),
            _ => None,
        }
    }
}
