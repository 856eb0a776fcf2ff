//! What a shard says to other hosts, and what other hosts say to it: the shard's side of the relay. It knows no Redis and no wire format.
//!
//! Everything is local first: a room's home numbers and casts at once, and hands the same frame to the relay. What comes from another host
//! goes to the room's home here, which numbers and casts it as its own, and never hands it on.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use rand::RngExt as _;

use super::Shard;
use super::consult::Consult;
use super::emits::NOBODY;
use super::handover::{Found, Session, Wanted};
use super::history::{Kept, Record};
use super::inquiry::Inquiry;
use super::parcel::{Answer, Arrival, Origin, Publish, Target};
use super::peers::Told;
use super::room_calls::NewRoom;
use crate::auth::Identity;
use crate::dialect::{Keep, Overheard, Remark, Revised};
use crate::frame::Frame;
use crate::ids::{EndpointId, MessageId, Room, Sid};
use crate::limits::OUTWARD_BYTES_MAX;
use crate::time::Now;

/// Questions that the relay puts to the shards have numbers with this bit; their answers are the relay's.
pub const RELAY_ASK: u64 = 1 << 63;

/// Those of them that other Socket.IO servers ask have this in their upper byte: an emit of theirs is answered bit by bit
/// ([`super::peers::Told`]) and not with one answer at its end.
pub const PEER_ASK: u64 = RELAY_ASK | 1 << 56;

/// True exactly when the question is one of another Socket.IO server's.
pub fn is_of_peer(ask: u64) -> bool {
    ask >> 56 == PEER_ASK >> 56
}

/// Something for the relay.
#[derive(Debug)]
pub enum Outward {
    /// Other hosts' clients get it too.
    Publish(Box<Published>),
    /// What a room keeps changes, and nobody else is told.
    Record {
        /// The room.
        room: Room,
        /// The change.
        record: Box<Record>,
    },
    /// The back end has made a room: hosts that come later are to know. [`super::parcel::Parcel::Registered`] says when they will.
    Made(Box<Made>),
    /// A room has ended by the back end's will: all that is kept of it goes, and what was made of it. Confirmed likewise.
    Forget {
        /// The room.
        room: Room,
    },
    /// So many rooms were gone through, as [`super::parcel::Roll::Call`] wanted; it goes on after this one, if there are more.
    Called {
        /// The last of them.
        after: Option<Room>,
    },
    /// A room's home asks, and goes on when [`super::parcel::Parcel::Consulted`] has come.
    Consult(Box<Consult>),
    /// A connection waits for what stands in Redis: [`super::parcel::Parcel::Ruled`] brings it.
    Inquiry {
        /// The shard's number for it.
        number: u64,
        /// Of the kind [`super::inquiry::About::Join`] or [`super::inquiry::About::Blocked`].
        inquiry: Box<Inquiry>,
    },
    /// The answer to a question of the relay's.
    Answer {
        /// Its number.
        ask: u64,
        /// This shard's answer.
        answer: Answer,
    },
    /// A tide has come by here: whatever was handed over before this was so before it.
    Tide {
        /// Its number.
        number: u64,
    },
    /// A connection broke off, and may come back on another host.
    Session(Box<Session>),
    /// Somebody comes back who is not here, or who may be elsewhere as well. Answered by [`super::parcel::Parcel::Fetched`].
    Fetch {
        /// The shard's number for it.
        ask: u64,
        /// The endpoint.
        endpoint: EndpointId,
        /// The secret.
        pid: Sid,
        /// True exactly when it is away here.
        is_away: bool,
    },
    /// What was fetched is not wanted after all.
    PutBack(Box<Found>),
    /// A connection is in its rooms again and lacks what it has missed. Answered by [`super::parcel::Parcel::Missed`].
    Wanted(Box<Wanted>),
    /// Sessions in these rooms that have broken off by now must not be taken up.
    Revoke {
        /// The endpoint.
        endpoint: EndpointId,
        /// Names of rooms.
        rooms: Vec<Arc<str>>,
    },
    /// The answer to what another Socket.IO server wants to know, or a part of it.
    Told {
        /// The question's number.
        ask: u64,
        /// What it is told.
        told: Told,
    },
    /// From a room's home: it has its first member on this host, or has lost its last.
    Inhabited {
        /// The room.
        room: Room,
        /// True exactly when there is somebody in it now.
        is_inhabited: bool,
    },
}

/// A room that the back end has made.
#[derive(Clone, Debug)]
pub struct Made {
    /// What it said of it.
    pub new: NewRoom,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// False exactly when this was told before, but perhaps to a Redis that has lost it.
    pub is_news: bool,
}

/// What a room's home has cast here.
#[derive(Debug)]
pub struct Published {
    /// The room.
    pub room: Room,
    /// The connection that is meant if it is another host's, besides the room.
    pub addressee: Option<Sid>,
    /// What its members hear.
    pub frame: Frame,
    /// The one connection that does not get it.
    pub except: Option<Sid>,
    /// Whose `blocked` users do not get it.
    pub hidden_from: Option<Arc<Identity>>,
    /// When it was cast, milliseconds since 1970.
    pub unix_ms: u64,
    /// What it changes of what the room keeps, which is done at the same moment.
    pub record: Option<Record>,
}

impl Outward {
    /// Bytes of messages it holds on to.
    pub fn bytes(&self) -> usize {
        128 + match self {
            Outward::Publish(published) => {
                published.frame.bytes().len() + published.record.as_ref().map_or(0, |record| size_of::<Record>() + record.bytes())
            }
            Outward::Record { record, .. } => size_of::<Record>() + record.bytes(),
            Outward::Made(made) => made.new.bytes(),
            Outward::Forget { room } => room.name.len(),
            Outward::Called { .. } => 0,
            Outward::Told { told, .. } => told.bytes(),
            Outward::Consult(consult) => consult.bytes(),
            Outward::Session(session) => session.bytes(),
            Outward::PutBack(found) => found.raw.len() + found.session.bytes(),
            Outward::Wanted(wanted) => (wanted.names.len() + wanted.events.len()) * 32,
            Outward::Answer { .. }
            | Outward::Tide { .. }
            | Outward::Fetch { .. }
            | Outward::Revoke { .. }
            | Outward::Inhabited { .. }
            | Outward::Inquiry { .. } => 0,
        }
    }
}

/// What waits for the relay to take it.
#[derive(Default, Debug)]
pub(super) struct Outwards {
    queue: VecDeque<Outward>,
    bytes: usize,
}

impl Shard {
    /// Hands a publication to the relay, if it was made here and there is one; false when nobody else hears of it.
    pub(super) fn tell_other_hosts(&mut self, now: Now, publish: &Publish, addressee: Option<Sid>) -> bool {
        if self.world.config.relay.is_none() {
            return false;
        }
        let record = publish.keep.as_ref().map(|keep| Record::append(keep, now.unix_ms, false));
        self.tell_other_hosts_with(now, publish, addressee, record)
    }

    /// The same with what it changes of what the room keeps.
    pub(super) fn tell_other_hosts_with(&mut self, now: Now, publish: &Publish, addressee: Option<Sid>, record: Option<Record>) -> bool {
        let Origin::Here { except } = publish.origin else { return false };
        if self.world.config.relay.is_none() || publish.frame.endpoint().is_none() {
            return false;
        }
        let mut record = record.filter(|_| publish.room.is_public());
        if let Some(record) = &mut record {
            if let Record::Append { kept: Kept { id: id @ None, .. }, .. } = record {
                // Only to be told from others: who reads while it is on its way must not get it twice.
                *id = Some(MessageId::from_u128(self.entropy.borrow_mut().random()));
            }
            self.homes.history().handed_on(&publish.room, record);
        }
        let (room, frame, hidden_from) = (publish.room.clone(), publish.frame.clone(), publish.hidden_from.clone());
        let published = Published { room, addressee, frame, except, hidden_from, unix_ms: now.unix_ms, record };
        self.send_out(Outward::Publish(Box::new(published)));
        true
    }

    /// Hands on what several hosts have heard and one is to keep, or what they all make of it alike.
    pub(super) fn record(&mut self, room: &Room, record: Record) {
        if self.world.config.relay.is_none() || !room.is_public() {
            return;
        }
        self.homes.history().handed_on(room, &record);
        self.send_out(Outward::Record { room: room.clone(), record: Box::new(record) });
    }

    /// Queues something for the relay. Beyond its bound, which only a relay that takes nothing any more lets it reach, the newest is dropped and counted.
    pub(super) fn send_out(&mut self, outward: Outward) {
        // Whoever waits for an answer uses the other.
        let _ = self.try_send_out(outward);
    }

    /// The same; false for what was dropped.
    pub(super) fn try_send_out(&mut self, outward: Outward) -> bool {
        if self.outwards.bytes >= OUTWARD_BYTES_MAX {
            self.stats.outward_dropped.add(1);
            return false;
        }
        self.outwards.bytes += outward.bytes();
        self.outwards.queue.push_back(outward);
        true
    }

    /// What is to go to the relay, all at once; the driver takes it at the end of a turn.
    pub fn poll_outward(&mut self) -> Option<VecDeque<Outward>> {
        // They are not said into a full queue: one that is lost would be wrong for as long as the room lasts.
        while self.outwards.bytes < OUTWARD_BYTES_MAX
            && let Some((room, is_inhabited)) = self.homes.next_inhabited()
        {
            self.send_out(Outward::Inhabited { room, is_inhabited });
        }
        if self.outwards.queue.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut self.outwards).queue)
    }

    /// Takes back what could not be passed on; nothing has happened since it was given.
    pub fn restore_outward(&mut self, queue: VecDeque<Outward>) {
        self.outwards = Outwards { bytes: queue.iter().map(Outward::bytes).sum(), queue };
    }

    /// True exactly when something waits for the relay.
    pub fn has_outward(&self) -> bool {
        !self.outwards.queue.is_empty()
    }

    /// Something from another host, for connections here. What has a place in a room's order comes to the room's home only.
    pub(super) fn arrive_from_elsewhere(&mut self, now: Now, arrival: &Arc<Arrival>) {
        let emit = &arrival.emit;
        if usize::from(emit.to.endpoint.0) >= self.world.config.endpoints.len() {
            return;
        }
        let Some(frame) = self.frame_of_arrival(arrival) else { return };
        let Some(room) = arrival.room() else { return self.deliver_emit(now, NOBODY, emit, frame, false) };
        let (except, hidden_from, keep) = (None, arrival.hidden_from.clone(), self.overhear(now, &room, arrival));
        self.home_publish(now, Publish { room, frame, except, hidden_from, keep, read_ns: now.ns, origin: Origin::Elsewhere });
    }

    /// What a room here keeps of what another host has said in it. That host has handed it on to the store that all share; what another program has said
    /// is handed on by all who hear it, and kept once.
    fn overhear(&mut self, now: Now, room: &Room, arrival: &Arrival) -> Option<Keep> {
        if !room.is_public() || !self.homes.has(room) {
            return None;
        }
        let emit = &arrival.emit;
        let said = match &arrival.text {
            Some(text) => Overheard::Text(text),
            None => Overheard::Event { name: &emit.event, args: &emit.args, attachments: &emit.attachments },
        };
        let dialect = self.dialect(room.endpoint);
        let world = self.world.clone();
        let endpoint = &world.config.endpoints[usize::from(room.endpoint.0)];
        match dialect.overheard(room, endpoint, said, &mut self.scratch)? {
            Remark::Keep(keep) => {
                let id = keep.id.or_else(|| arrival.is_foreign.then(|| id_of_text(&keep.text)));
                let keep = Keep { id, hidden_from: arrival.hidden_from.clone(), ..keep };
                if arrival.is_foreign {
                    self.record(room, Record::append(&keep, now.unix_ms, true));
                }
                Some(keep)
            }
            Remark::Change { id, change } => {
                let text = self.homes.history().remembered(room, id)?;
                let Revised { text, .. } = dialect.revised(room, id, &text, &change, &mut self.scratch)?;
                let record = match text {
                    Some(text) => Record::Edit { id, text },
                    None => Record::Remove { id },
                };
                match &record {
                    Record::Edit { text, .. } => self.homes.history().edit(room, id, text.clone(), &self.stats),
                    _ => self.homes.history().remove(room, id, &self.stats),
                }
                if arrival.is_foreign {
                    // Whoever remembers the message writes the same.
                    self.record(room, record);
                }
                None
            }
        }
    }

    pub(super) fn frame_of_arrival(&mut self, arrival: &Arrival) -> Option<Frame> {
        let emit = &arrival.emit;
        match &arrival.text {
            Some(text) => Some(Frame::text(emit.to.endpoint, text)),
            None => self.frame_of(NOBODY, emit).map(|(frame, _)| frame),
        }
    }
}

impl Arrival {
    /// The one room in whose order it has its place; `None` where it is for several, or not for all of one.
    pub fn room(&self) -> Option<Room> {
        let to = &self.emit.to;
        match (&to.targets[..], &to.except[..]) {
            ([Target::Room(name)], []) => Some(Room { endpoint: to.endpoint, name: name.clone() }),
            _ => None,
        }
    }
}

/// An id that every host makes of the same text, for messages that have none. Two that are alike are one.
pub(super) fn id_of_text(text: &str) -> MessageId {
    let half = |seed| foldhash::quality::FixedState::with_seed(seed).hash_one(text);
    MessageId::from_u64_pair(half(1), half(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DialectKind, Endpoint};
    use crate::dialect::{self, Change};
    use crate::ids::EndpointId;
    use crate::json::Scratch;

    /// What a room named `room:r` keeps of it, in short.
    fn overheard(kind: DialectKind, said: Overheard<'_>) -> Option<String> {
        let endpoint = Endpoint { retain: 5, ..Endpoint::new("e", kind, "/e") };
        let remark = dialect::of(kind).overheard(&Room::named(EndpointId(0), "room:r"), &endpoint, said, &mut Scratch::default())?;
        Some(match remark {
            Remark::Keep(keep) => format!("{} {} {} {}", keep.id.is_some(), keep.by_id, keep.author, keep.text),
            Remark::Change { id, change: Change::Edit(content) } => format!("{id} {content}"),
            Remark::Change { id, change: Change::Remove } => format!("{id} gone"),
        })
    }

    const ID: &str = "01890000-0000-7000-8000-000000000001";

    #[test]
    fn what_is_kept_of_what_others_say_is_what_would_be_kept_of_clients() {
        let community = |text: &str| overheard(DialectKind::Community, Overheard::Text(&text.replace("ID", ID)));
        let payload = r#"{"id":"ID","content":"c","roomId":"r","authorId":"ann","n":1e+100}"#;
        let message = format!(r#"{{"type":"CHAT_MESSAGE","payload":{payload}}}"#);
        assert_eq!(community(&message), Some(format!("true true ann {}", payload.replace("ID", ID))));
        assert_eq!(community(&message.replace("ID\"", "x\"")).map(|kept| kept[..12].to_owned()), Some("false false ".to_owned()));
        assert_eq!(
            community(r#"{"type":"MESSAGE_EDIT","payload":{"messageId":"ID","content":"d","roomId":"r"}}"#),
            Some(format!("{ID} \"d\""))
        );
        assert_eq!(community(r#"{"type":"MESSAGE_DELETE","payload":{"messageId":"ID","roomId":"r"}}"#), Some(format!("{ID} gone")));
        for bad in [
            message.replace("\"r\"", "\"other\""),
            message.replace("\"c\"", "7"),
            message.replace("\"ann\"", "\"a\\n\""),
            message.replace("authorId", "author"),
            message.replace("CHAT_MESSAGE", "TYPING"),
            r#"{"type":"MESSAGE_EDIT","payload":{"messageId":"ID","roomId":"r"}}"#.to_owned(),
            r#"{"type":"MESSAGE_DELETE","payload":{"messageId":"1","roomId":"r"}}"#.to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(community(&bad), None, "{bad}");
        }
        let collab = |text| overheard(DialectKind::Collab, Overheard::Text(text));
        let update = r#"{"type":"update","documentId":"room:r","clientID":"c","update":-0}"#;
        assert_eq!(collab(update), Some(format!("false false c {update}")));
        assert_eq!(collab(r#"{"type":"steps","steps":[]}"#), Some(r#"false false  {"type":"steps","steps":[]}"#.to_owned()));
        assert_eq!(collab(r#"{"type":"awareness"}"#), None);
        let rooms = |name, args: &str, attachments: &[Vec<u8>]| {
            overheard(DialectKind::Rooms, Overheard::Event { name, args: &args.replace("ID", ID), attachments })
        };
        let said = r#"{"id":"ID","roomId":"room:r","userId":"bob","content":"c","metadata":{"_placeholder":true,"num":0}}"#;
        assert_eq!(rooms("message", said, &[]), Some(format!("true false bob {}", said.replace("ID", ID))));
        let spelled = rooms("message", said, &[vec![7]]).expect("a message");
        assert!(spelled.ends_with(r#""metadata":{"type":"Buffer","data":[7]}}"#), "{spelled}");
        for (name, args) in
            [("typing", said), ("message", "7"), ("message", r#"{"roomId":"other","userId":"b"}"#), ("message", r#"{"roomId":"room:r"}"#)]
        {
            assert_eq!(rooms(name, args, &[]), None, "{name} {args}");
        }
        assert_eq!(overheard(DialectKind::Notify, Overheard::Text(&message)), None);
    }

    #[test]
    fn all_hosts_give_a_text_the_same_id_and_others_another() {
        assert_eq!(id_of_text("a"), id_of_text("a"));
        assert!(id_of_text("a") != id_of_text("b") && id_of_text("") != MessageId::nil());
    }
}
