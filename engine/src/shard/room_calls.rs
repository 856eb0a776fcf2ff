//! What the back end asks of rooms: to make, show, list and end them, to move connections, to say something and to read what was said. Every
//! shard is asked; the room's home answers, or for a connection its shard, when what was asked for has happened. The others say that it is
//! no business of theirs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Shard;
use super::history::{Kept, Past, Range, Reading, Recall};
use super::home::NAMESPACE;
use super::parcel::{Answer, Origin, Parcel, Publish, Question};
use crate::dialect::{self, BackEndMessage, Emission, EnterFault, Keep};
use crate::event::{Event, EventType, What};
use crate::fault::CloseReason;
use crate::frame::Mark;
use crate::ids::{EndpointId, Room, Sid};
use crate::limits::{LIST_MEMBERS_SHOWN_MAX, MESSAGES_SHOWN_BYTES_MAX, ROOM_MEMBERS_SHOWN_MAX};
use crate::time::Now;
use crate::wire::sio::Offset;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RoomCall {
    /// Make a room: [`RoomAnswer::Room`].
    Create(Arc<NewRoom>),
    /// How is it, and who is in: [`RoomAnswer::Room`] from the home, [`RoomAnswer::Members`] from the others.
    Show {
        /// The room.
        room: Room,
    },
    /// How is it, and how much of it is kept: [`RoomAnswer::Stats`].
    Stats {
        /// The room.
        room: Room,
    },
    /// Rooms at home on each shard in the order of their names: [`RoomAnswer::Rooms`].
    List {
        /// Of this endpoint.
        endpoint: EndpointId,
        /// Of this namespace only.
        namespace: Option<String>,
        /// After this name.
        after: Option<String>,
        /// At most so many from each shard.
        limit: usize,
    },
    /// Who is in, on each shard: [`RoomAnswer::Members`].
    Members {
        /// In each of these.
        rooms: Arc<[Room]>,
    },
    /// End a room; its members are taken out of it, and users whom the back end put there enter no more: [`RoomAnswer::Done`].
    Delete {
        /// The room.
        room: Room,
    },
    /// Put a connection in: [`RoomAnswer::Done`], when the room's home has let it in.
    Enter {
        /// The room.
        room: Room,
        /// The connection.
        connection: Sid,
    },
    /// Take a connection out: [`RoomAnswer::Done`], when the room's home has counted it out.
    Leave {
        /// The room.
        room: Room,
        /// The connection.
        connection: Sid,
    },
    /// Say something: [`RoomAnswer::Said`].
    Say(Arc<Saying>),
    /// What was said: [`RoomAnswer::Messages`].
    Messages {
        /// The room.
        room: Room,
        /// The newest that are passed over.
        skip: usize,
        /// At most so many.
        limit: usize,
    },
}

/// A room to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewRoom {
    /// Its id is the room's name.
    pub room: Room,
    /// Its name for people.
    pub name: String,
    /// An attribute to list rooms by.
    pub namespace: Option<String>,
    /// By whom.
    pub created_by: Option<String>,
    /// A JSON object.
    pub metadata: String,
}

impl NewRoom {
    pub(crate) fn bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.room.name.len() + self.name.len() + self.metadata.len() + optional(&self.namespace) + optional(&self.created_by)
    }
}

/// Something that the back end says in a room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saying {
    /// Where.
    pub room: Room,
    /// What.
    pub message: BackEndMessage,
    /// A random number, by which connections that can be recovered find it again.
    pub offset: Offset,
}

/// One shard's answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum RoomAnswer {
    /// Not its business.
    Elsewhere,
    /// It does not happen.
    Refused(RoomFault),
    /// It has happened.
    Done,
    /// A room, and of its members those on this shard.
    Room(Box<RoomInfo>, Vec<Sid>),
    /// See [`RoomCall::Members`]: a list for each room.
    Members(Vec<Vec<Sid>>),
    /// A room, and the number of messages that are kept of it.
    Stats(Box<RoomInfo>, usize),
    /// See [`RoomCall::List`].
    Rooms {
        /// In the order of their ids.
        rooms: Vec<RoomInfo>,
        /// Rooms beyond this one were not looked at; `None` where the list is as long as was asked for, or ends.
        until: Option<String>,
    },
    /// The message as it was kept, JSON.
    Said(Arc<str>),
    /// Messages, newest first, JSON.
    Messages(Vec<Arc<str>>),
}

/// Why something does not happen to a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum RoomFault {
    /// There is no such room.
    #[error("no such room")]
    NoRoom,
    /// There is no such connection on this endpoint.
    #[error("no such connection")]
    NoConnection,
    /// The connection has not said yet who it is.
    #[error("the connection has not authenticated yet")]
    Unproven,
    /// There is one of this id.
    #[error("there is a room of this id")]
    Exists,
    /// The id is that of a live connection.
    #[error("the id is a connection's")]
    IsConnection,
    /// The host keeps as many rooms, or as many bytes of what was said of them, as it may.
    #[error("the host keeps as many rooms as it may")]
    Full,
    /// The endpoint's connections are in the one room that they asked for.
    #[error("the endpoint's connections stay in the room they asked for")]
    Bound,
}

impl From<EnterFault> for RoomFault {
    fn from(fault: EnterFault) -> RoomFault {
        match fault {
            EnterFault::NoRoom => RoomFault::NoRoom,
            EnterFault::IsConnection => RoomFault::IsConnection,
            // The others are not asked of what the back end wants.
            EnterFault::Full | EnterFault::TooMany | EnterFault::UserLimit | EnterFault::Refused => RoomFault::Full,
        }
    }
}

/// A room as the back end sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoomInfo {
    /// Its id.
    pub id: Arc<str>,
    /// Its name for people.
    pub name: String,
    /// An attribute to list rooms by.
    pub namespace: String,
    /// By whom it was made.
    pub created_by: Option<String>,
    /// A JSON object.
    pub metadata: String,
    /// Since when it is there, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When somebody last came, went or said something, milliseconds since 1970.
    pub active_unix_ms: u64,
    /// Connections in it.
    pub members: u32,
}

impl RoomCall {
    /// The room whose home answers.
    fn room(&self) -> Option<&Room> {
        match self {
            RoomCall::Create(new) => Some(&new.room),
            RoomCall::Say(saying) => Some(&saying.room),
            RoomCall::Stats { room } | RoomCall::Delete { room } | RoomCall::Messages { room, .. } => Some(room),
            RoomCall::Show { .. } | RoomCall::List { .. } | RoomCall::Members { .. } => None,
            RoomCall::Enter { .. } | RoomCall::Leave { .. } => None,
        }
    }
}

impl Shard {
    /// The answer, if it can be given at once.
    pub(super) fn room_call(&mut self, now: Now, ask: u64, call: &RoomCall) -> Option<Answer> {
        if let RoomCall::Delete { room } = call {
            // Whether there is such a room now or not: users may have been put there who are not connected.
            self.grants.forget(room);
        }
        if call.room().is_some_and(|room| self.home_of(room) != self.id) {
            return Some(Answer::Room(RoomAnswer::Elsewhere));
        }
        let answer = match call {
            RoomCall::Create(new) => self.create_room(now, ask, new),
            RoomCall::Show { room } => self.show_room(room),
            RoomCall::List { endpoint, namespace, after, limit } => {
                let listed = self.homes.list(*endpoint, namespace.as_deref(), after.as_deref(), *limit);
                RoomAnswer::Rooms { rooms: listed.rooms, until: listed.until }
            }
            RoomCall::Members { rooms } => {
                let mut left = LIST_MEMBERS_SHOWN_MAX;
                let members = rooms.iter().map(|room| {
                    let members = self.sids_in(room, left);
                    left -= members.len();
                    members
                });
                RoomAnswer::Members(members.collect())
            }
            RoomCall::Delete { room } => {
                self.unregister(ask, room);
                return self.end_room(ask, room);
            }
            RoomCall::Enter { room, connection } => return self.move_in(now, ask, room, *connection),
            RoomCall::Leave { room, connection } => return self.move_out(now, ask, room, *connection),
            RoomCall::Say(saying) => self.say_in_room(now, saying),
            RoomCall::Stats { room } => {
                let is_here = self.homes.has(room);
                // Of a room that is not here nothing is known but what is kept of it, from the first message to the last.
                let range = if is_here { Range::Newest { skip: 0, limit: 0, bytes_max: 0 } } else { Range::ALL };
                return self.consult_history(now, ask, call, room, range);
            }
            RoomCall::Messages { room, skip, limit } => {
                // So that one message always fits, however it is wrapped: an answer without any is the end.
                let bytes_max = MESSAGES_SHOWN_BYTES_MAX.max(8 * self.world.config.limits.message_bytes);
                let range = Range::Newest { skip: *skip, limit: *limit, bytes_max };
                return self.consult_history(now, ask, call, room, range);
            }
        };
        Some(Answer::Room(answer))
    }

    fn create_room(&mut self, now: Now, ask: u64, new: &NewRoom) -> RoomAnswer {
        if Sid::parse(&new.room.name).is_some_and(|sid| self.find(sid).is_some()) {
            return RoomAnswer::Refused(RoomFault::IsConnection);
        }
        match self.homes.establish(new, now.unix_ms, &self.stats) {
            Ok(()) => {
                self.register(now, ask, new);
                self.show_room(&new.room)
            }
            Err(fault) => RoomAnswer::Refused(fault),
        }
    }

    fn show_room(&self, room: &Room) -> RoomAnswer {
        let members = self.sids_in(room, ROOM_MEMBERS_SHOWN_MAX);
        if self.home_of(room) != self.id {
            return RoomAnswer::Members(vec![members]);
        }
        match self.homes.info(room) {
            Some(info) => RoomAnswer::Room(Box::new(info), members),
            None => RoomAnswer::Refused(RoomFault::NoRoom),
        }
    }

    /// Connections here that are in a room.
    fn sids_in(&self, room: &Room, limit: usize) -> Vec<Sid> {
        let members = self.membership.find(room).map_or(&[][..], |slot| self.membership.members(slot));
        let conns = members.iter().filter_map(|member| self.conns.get(member.conn)).filter(|conn| conn.is_here());
        conns.map(|conn| conn.sid).take(limit).collect()
    }

    pub(super) fn end_room(&mut self, ask: u64, room: &Room) -> Option<Answer> {
        let Some(shards) = self.homes.end(room, ask, &self.stats) else {
            return Some(Answer::Room(RoomAnswer::Refused(RoomFault::NoRoom)));
        };
        for shard in shards {
            self.post_to(shard, Parcel::Dissolve { room: room.clone() });
        }
        self.answer_ended_rooms();
        None
    }

    /// A room has ended: its members here leave it, all at the same moment, so that nobody is left to hear of it.
    pub(super) fn dissolve(&mut self, now: Now, room: &Room) {
        let Some(found) = self.membership.find(room) else { return };
        let slots: Vec<u32> = self.membership.members(found).iter().map(|member| member.conn).collect();
        for slot in slots {
            if self.conns.get(slot).is_some_and(|conn| !conn.is_here()) {
                // What it may hear is no longer what it was: when it comes back it starts anew.
                self.give_up(slot);
            } else if self.dialect(room.endpoint).is_bound_to_room() {
                self.disconnect(now, slot, CloseReason::Admin, None);
            } else {
                self.expel(now, slot, room, None);
            }
        }
    }

    /// Answers those who wanted rooms to end that have.
    pub(super) fn answer_ended_rooms(&mut self) {
        while let Some(ask) = self.homes.next_ended() {
            self.answers.push_back((ask, Answer::Room(RoomAnswer::Done)));
        }
    }

    /// The connection of an id, if it is one that the back end can put into rooms.
    fn movable(&self, room: &Room, id: Sid) -> Result<u32, RoomAnswer> {
        if self.shard_of_past(id) != self.id {
            return Err(RoomAnswer::Elsewhere);
        }
        let slot = self.find(id).ok_or(RoomAnswer::Refused(RoomFault::NoConnection))?;
        match self.conns.get(slot).filter(|conn| conn.endpoint == room.endpoint && conn.is_here()) {
            None => Err(RoomAnswer::Refused(RoomFault::NoConnection)),
            Some(conn) if !conn.is_authenticated() => Err(RoomAnswer::Refused(RoomFault::Unproven)),
            Some(_) => Ok(slot),
        }
    }

    fn move_in(&mut self, now: Now, ask: u64, room: &Room, id: Sid) -> Option<Answer> {
        let slot = match self.movable(room, id) {
            Ok(_) if self.dialect(room.endpoint).is_bound_to_room() => return Some(Answer::Room(RoomAnswer::Refused(RoomFault::Bound))),
            Ok(slot) => slot,
            Err(answer) => return Some(Answer::Room(answer)),
        };
        self.enter_granted(now, slot, room);
        let conn = self.conns.get_mut(slot)?;
        match conn.awaits(room) {
            Some(waited) => {
                conn.entering[waited].asks.push(ask);
                None
            }
            // It is in.
            None => Some(Answer::Room(RoomAnswer::Done)),
        }
    }

    fn move_out(&mut self, now: Now, ask: u64, room: &Room, id: Sid) -> Option<Answer> {
        let slot = match self.movable(room, id) {
            Ok(slot) => slot,
            Err(answer) => return Some(Answer::Room(answer)),
        };
        let conn = self.conns.get(slot)?;
        let is_in = self.seat_of(conn, room).is_some();
        if is_in && self.dialect(room.endpoint).is_bound_to_room() {
            self.disconnect(now, slot, CloseReason::Admin, None);
            return Some(Answer::Room(RoomAnswer::Done));
        }
        self.expel(now, slot, room, Some(ask));
        None
    }

    fn say_in_room(&mut self, now: Now, saying: &Saying) -> RoomAnswer {
        let Saying { room, message, offset } = saying;
        let world = self.world.clone();
        let endpoint = &world.config.endpoints[usize::from(room.endpoint.0)];
        // Whoever asked was told before if the dialect refuses it.
        let composed = self.dialect(room.endpoint).back_end_message(&room.name, message);
        let Some(composed) = composed.ok().filter(|_| self.homes.info(room).is_some()) else {
            return RoomAnswer::Refused(RoomFault::NoRoom);
        };
        let mark = Mark { volatile: false, offset: (endpoint.recovery_ms > 0).then_some(*offset) };
        let said = Emission { event: composed.event, args: &composed.argument, attachments: &[], ack: None, mark };
        let frame = dialect::emission(room.endpoint, endpoint, &said, &mut self.scratch);
        let text: Arc<str> = composed.argument.into();
        let keep = Keep {
            id: Some(message.id),
            by_id: composed.by_id,
            author: message.user.clone(),
            text: text.clone(),
            hidden_from: None,
            messages_max: composed.messages_max,
        };
        if self.wants(EventType::Message) {
            let what = What::Message { message: text.clone() };
            let (endpoint, user, unix_ms) = (room.endpoint, Some(message.user.clone()), now.unix_ms);
            self.tell_event(Event { endpoint, connection: None, user, room: Some(room.name.clone()), unix_ms, what });
        }
        let (room, keep) = (room.clone(), Some(keep));
        self.home_publish(now, Publish { room, frame, except: None, hidden_from: None, keep, read_ns: now.ns, origin: Origin::HERE });
        RoomAnswer::Said(text)
    }

    /// Answers what needs a room's past, when that has come.
    fn consult_history(&mut self, now: Now, ask: u64, call: &RoomCall, room: &Room, range: Range) -> Option<Answer> {
        match self.homes.history().read(room, range, now.unix_ms) {
            Reading::Now(past) => self.room_call_with(call, past),
            Reading::Later(ticket) => {
                let parcel = Parcel::Ask { ask, question: Question::Room(call.clone()) };
                self.set_aside(now, ticket, parcel, room.clone(), Recall::Past(range));
                None
            }
        }
    }

    /// The answer to what needed a room's past.
    pub(super) fn room_call_with(&self, call: &RoomCall, past: Past) -> Option<Answer> {
        let room = call.room()?;
        // Nobody has been in it on this host, and others keep what was said.
        let elsewhere = || (past.total > 0).then(|| told_of(room, &past));
        let info = self.homes.info(room).or_else(elsewhere);
        Some(Answer::Room(match (call, info) {
            (_, None) => RoomAnswer::Refused(RoomFault::NoRoom),
            (RoomCall::Messages { .. }, Some(_)) => {
                let mut texts = past.texts();
                texts.reverse();
                RoomAnswer::Messages(texts)
            }
            (_, Some(info)) => RoomAnswer::Stats(Box::new(info), past.total),
        }))
    }
}

/// What is known of a room by no more than what is kept of it.
fn told_of(room: &Room, past: &Past) -> RoomInfo {
    let unix_ms = |kept: Option<&Kept>| kept.map_or(0, |kept| kept.unix_ms);
    RoomInfo {
        id: room.name.clone(),
        name: room.name.to_string(),
        namespace: NAMESPACE.to_owned(),
        created_by: None,
        metadata: "{}".to_owned(),
        created_unix_ms: unix_ms(past.kept.first()),
        active_unix_ms: unix_ms(past.kept.last()),
        members: 0,
    }
}
