//! Which of the back end's questions concern this host alone, and which all hosts of a fleet. It knows no other host: whoever puts a question
//! looks here where to put it.

use super::parcel::Question;
use super::room_calls::RoomCall;

/// Whom a question concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All hosts: whoever has such connections or rooms has to answer.
    Fleet,
    /// This host.
    Local,
    /// This host, and where it has no such thing *one* other host that has: to have it done on several would do it twice.
    LocalThenFleet,
}

impl Question {
    /// Whom it concerns.
    pub fn scope(&self) -> Scope {
        match self {
            // Connections are each on one host.
            Question::Connections { .. } | Question::Connection { .. } | Question::CloseConnection { .. } => Scope::Fleet,
            Question::CloseUser { .. } | Question::CloseInactive { .. } | Question::Disconnect { .. } | Question::Emit(_) => Scope::Fleet,
            // A user's connections are anywhere, and those to come as well: each host remembers it.
            Question::Grant { .. } | Question::Revoke { .. } => Scope::Fleet,
            // What is said in a room travels from its home here to the other hosts' like a client's message, and every host's home keeps
            // what it hears.
            Question::Post(_) | Question::Past { .. } => Scope::Local,
            // The home here tells the others of it as well, so one is enough; but it may know nothing of the message or the room.
            Question::Revise(_) | Question::Room(RoomCall::Say(_)) => Scope::LocalThenFleet,
            // Records of rooms are on every host, their members and what is kept where there are some.
            Question::Room(_) => Scope::Fleet,
        }
    }

    /// True exactly when it is something to Socket.IO servers of other programs in the fleet as well: they have connections, which are told
    /// something, put into rooms and taken out, and disconnected.
    pub fn concerns_peers(&self) -> bool {
        match self {
            Question::Emit(_) | Question::Disconnect { .. } | Question::CloseUser { .. } | Question::CloseConnection { .. } => true,
            Question::Grant { .. } | Question::Revoke { .. } => true,
            Question::Room(call) => matches!(call, RoomCall::Enter { .. } | RoomCall::Leave { .. } | RoomCall::Delete { .. }),
            _ => false,
        }
    }

    /// Milliseconds that shards may take to answer, beyond what an answer takes anyway.
    pub fn wait_ms(&self) -> u64 {
        if let Question::Emit(emit) = self { emit.ack_ms.unwrap_or(0) } else { 0 }
    }
}
