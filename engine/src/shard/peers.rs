//! What other Socket.IO servers of the fleet want to know of the connections of a shard, and have done to them. It knows neither their
//! words nor the way by which they ask: the relay puts an [`Inspection`] to every shard and gets what each has [`Told`].

use std::collections::HashMap;
use std::sync::Arc;

use super::Shard;
use super::links::{Conn, State};
use super::outward::Outward;
use super::parcel::{Answer, ConnectionInfo, Selection};
use crate::fault::DropReason;
use crate::ids::{EndpointId, Room};
use crate::limits::{PEER_ERRANDS_MAX, PEER_MOVES_MAX, PEER_NAMES_BYTES_MAX, PEER_SOCKETS_MAX};
use crate::time::Now;

/// What is asked of every shard.
#[derive(Debug)]
pub enum Inspection {
    /// Who is meant: [`Told::Sockets`].
    Sockets(Selection),
    /// Which rooms have members, those of single connections too: [`Told::Rooms`].
    Rooms(EndpointId),
    /// Put connections into rooms or take them out, as the back end does; answered with [`Answer::Granted`] when it has happened.
    Move {
        /// Which connections.
        who: Selection,
        /// Names of the rooms, of the form that names have.
        rooms: Vec<Arc<str>>,
        /// True exactly when they enter.
        is_in: bool,
    },
}

/// What a shard tells of it.
#[derive(Debug)]
pub enum Told {
    /// Connections.
    Sockets {
        /// At most [`PEER_SOCKETS_MAX`].
        sockets: Vec<Socket>,
        /// How many there are beside those.
        left_out: u64,
    },
    /// Names of rooms.
    Rooms {
        /// At most [`PEER_NAMES_BYTES_MAX`] bytes of them.
        names: Vec<Arc<str>>,
        /// How many there are beside those.
        left_out: u64,
    },
    /// So many connections get an emit, and may acknowledge it.
    Recipients(u64),
    /// One of them has.
    Ack {
        /// What it says, a JSON array.
        json: String,
        /// Binary data that placeholders in it number.
        attachments: Vec<Vec<u8>>,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Socket {
    /// What the admin API tells of it.
    pub info: ConnectionInfo,
    /// Query of its request, without a token.
    pub query: Box<str>,
}

impl Told {
    /// Bytes of messages it holds on to.
    pub fn bytes(&self) -> usize {
        match self {
            Told::Sockets { sockets, .. } => sockets.iter().map(Socket::bytes).sum(),
            Told::Rooms { names, .. } => names.iter().map(|name| name.len()).sum(),
            Told::Recipients(_) => 0,
            Told::Ack { json, attachments } => json.len() + attachments.iter().map(Vec::len).sum::<usize>(),
        }
    }
}

impl Socket {
    fn bytes(&self) -> usize {
        let ConnectionInfo { rooms, metadata, .. } = &self.info;
        let named = rooms.iter().map(String::len).sum::<usize>() + metadata.as_ref().map_or(0, String::len);
        size_of::<Socket>() + named + self.query.len()
    }
}

impl Shard {
    /// Another server wants something.
    pub(super) fn inspect(&mut self, now: Now, ask: u64, inspection: &Inspection) {
        let told = match inspection {
            Inspection::Sockets(who) => self.sockets(who),
            Inspection::Rooms(endpoint) => self.inhabited_rooms(*endpoint),
            Inspection::Move { who, rooms, is_in } => return self.move_selected(now, ask, who, rooms, *is_in),
        };
        self.send_out(Outward::Told { ask, told });
    }

    fn sockets(&self, who: &Selection) -> Told {
        let meant = self.selected(who);
        let known = meant.iter().filter_map(|slot| self.conns.get(*slot)).filter(|conn| conn.is_here() && conn.is_authenticated());
        let mut left_out = 0;
        let mut sockets = Vec::new();
        for conn in known {
            if sockets.len() < PEER_SOCKETS_MAX {
                sockets.push(Socket { info: self.info(conn), query: self.query_of(conn) });
            } else {
                left_out += 1;
            }
        }
        Told::Sockets { sockets, left_out }
    }

    fn query_of(&self, conn: &Conn) -> Box<str> {
        match self.links.get(conn.link).map(|link| &link.state) {
            Some(State::SocketIo(socket)) => (*socket.query).into(),
            _ => Box::default(),
        }
    }

    fn inhabited_rooms(&self, endpoint: EndpointId) -> Told {
        let named = self.membership.names(endpoint).filter(|room| room.is_public() || room.is_user()).map(|room| room.name.clone());
        let conns = self.conns.iter().map(|(_, conn)| conn).filter(|conn| conn.endpoint == endpoint);
        let own = conns.filter(|conn| conn.is_here() && conn.is_authenticated()).map(|conn| Arc::from(conn.sid.text().as_str()));
        let (mut names, mut bytes, mut left_out) = (Vec::new(), 0, 0);
        for name in named.chain(own) {
            bytes += name.len();
            if bytes <= PEER_NAMES_BYTES_MAX {
                names.push(name);
            } else {
                left_out += 1;
            }
        }
        Told::Rooms { names, left_out }
    }

    /// Connections enter rooms, or leave them, one by one; when all have, that is the answer.
    fn move_selected(&mut self, now: Now, ask: u64, who: &Selection, rooms: &[Arc<str>], is_in: bool) {
        let endpoint = who.endpoint;
        let is_bound = self.dialect(endpoint).is_bound_to_room();
        let (mut count, mut missing, mut left) = (0, 0, PEER_MOVES_MAX);
        for slot in self.selected(who) {
            let Some(conn) = self.conns.get(slot).filter(|_| !is_bound) else { continue };
            if !conn.is_here() {
                // What it may hear is no longer what it was: when it comes back it starts anew.
                self.give_up(slot);
                continue;
            }
            if !conn.is_authenticated() {
                continue;
            }
            count += 1;
            for name in rooms {
                if left == 0 {
                    self.counters(endpoint).dropped[DropReason::NoRoom.index()].add(1);
                    continue;
                }
                left -= 1;
                missing += usize::from(self.move_one(now, ask, slot, &Room { endpoint, name: name.clone() }, is_in));
            }
        }
        if missing == 0 {
            return self.answers.push_back((ask, Answer::Granted(Some(Ok(count)))));
        }
        // Where so many wait that nobody waits for them any more, those who asked have given up long ago.
        if self.moves.0.len() >= PEER_ERRANDS_MAX {
            self.moves.0.clear();
        }
        self.moves.0.insert(ask, Moving { missing, count });
    }

    /// True when it is told later that it has happened.
    fn move_one(&mut self, now: Now, ask: u64, slot: u32, room: &Room, is_in: bool) -> bool {
        if is_in {
            self.enter_granted(now, slot, room);
            let Some(conn) = self.conns.get_mut(slot) else { return false };
            let Some(waited) = conn.awaits(room) else { return false };
            conn.entering[waited].asks.push(ask);
            return true;
        }
        let is_there = self.conns.get(slot).is_some_and(|conn| self.seat_of(conn, room).is_some() || conn.awaits(room).is_some());
        if is_there {
            self.expel(now, slot, room, Some(ask));
        }
        is_there
    }

    /// One connection is in a room, or out of it, that another server has moved.
    pub(super) fn has_moved(&mut self, ask: u64) {
        let Some(moving) = self.moves.0.get_mut(&ask) else { return };
        moving.missing = moving.missing.saturating_sub(1);
        if moving.missing == 0 {
            let answer = Answer::Granted(Some(Ok(moving.count)));
            self.moves.0.remove(&ask);
            self.send_out(Outward::Answer { ask, answer });
        }
    }
}

/// Requests of other servers by which connections here are moved, by their numbers.
#[derive(Default, Debug)]
pub(super) struct Moves(HashMap<u64, Moving>);

#[derive(Debug)]
struct Moving {
    /// Entries and exits that have not happened yet.
    missing: usize,
    /// Connections.
    count: u32,
}
