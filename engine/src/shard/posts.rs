//! What is said in a room by somebody who need not be connected, and what becomes of it later: the back end's and the REST calls' way to a
//! room's history and order. The room's home does it and answers; the other shards say that it is not theirs.

use std::sync::Arc;

use super::Shard;
use super::history::{Found, Past, Range, Reading, Recall, Record};
use super::parcel::{Answer, NotAuthor, Origin, Parcel, Post, Publish, Question, Revision, Standing};
use crate::dialect::{EnterFault, Revised};
use crate::event::{Event, EventType, What};
use crate::ids::Room;
use crate::time::Now;

impl Shard {
    /// Keeps a message and tells the room's members, if the room is at home here. A room that nobody is in is made for it.
    pub(super) fn post_in_room(&mut self, now: Now, post: &Post) -> Option<Result<(), EnterFault>> {
        if self.home_of(&post.room) != self.id {
            return None;
        }
        if let Err(fault) = self.homes.ensure(&post.room, now.unix_ms, &self.stats) {
            return Some(Err(fault));
        }
        let Post { room, frame, keep } = post.clone();
        if self.wants(EventType::Message) {
            let (user, what) = (Some(keep.author.clone()), What::Message { message: keep.text.clone() });
            let (endpoint, name) = (room.endpoint, Some(room.name.clone()));
            self.tell_event(Event { endpoint, connection: None, user, room: name, unix_ms: now.unix_ms, what });
        }
        let hidden_from = keep.hidden_from.clone();
        self.home_publish(now, Publish { room, frame, except: None, hidden_from, keep: Some(keep), read_ns: now.ns, origin: Origin::HERE });
        Some(Ok(()))
    }

    /// Changes a message that is found by its id. Answered when the store has looked for it.
    pub(super) fn revise(&mut self, now: Now, ask: u64, revision: Arc<Revision>) {
        match self.homes.history().find(revision.endpoint, revision.id, now.unix_ms) {
            Reading::Now(found) => self.revise_found(now, ask, &revision, found),
            Reading::Later(ticket) => {
                let (endpoint, id) = (revision.endpoint, revision.id);
                let parcel = Parcel::Ask { ask, question: Question::Revise(revision) };
                self.set_aside(now, ticket, parcel, Room::everybody(endpoint), Recall::Found(id));
            }
        }
    }

    /// The store has looked for a message that is to be changed.
    pub(super) fn revise_found(&mut self, now: Now, ask: u64, revision: &Revision, found: Option<Found>) {
        // A store that all shards share finds it for each of them.
        let found = found.filter(|found| self.home_of(&found.room) == self.id);
        let outcome = found.and_then(|found| self.revise_here(now, revision, &found));
        self.answers.push_back((ask, Answer::Revised(outcome)));
    }

    fn revise_here(&mut self, now: Now, revision: &Revision, found: &Found) -> Option<Result<Standing, NotAuthor>> {
        let Revision { endpoint, id, by, change } = revision;
        if found.kept.author != by.user {
            return Some(Err(NotAuthor));
        }
        let name = found.room.name.clone();
        let Some(change) = change else { return Some(Ok(Standing { room: name, text: Some(found.kept.text.clone()) })) };
        let dialect = self.dialect(*endpoint);
        let Revised { text, frame } = dialect.revised(&found.room, *id, &found.kept.text, change, &mut self.scratch)?;
        match &text {
            Some(text) => self.homes.history().edit(&found.room, *id, text.clone(), &self.stats),
            None => self.homes.history().remove(&found.room, *id, &self.stats),
        }
        let hidden_from = (!by.blocked.is_empty()).then(|| by.clone());
        let room = found.room.clone();
        let mut publish = Publish { room, frame, except: None, hidden_from, keep: None, read_ns: now.ns, origin: Origin::HERE };
        let record = text.clone().map_or(Record::Remove { id: *id }, |text| Record::Edit { id: *id, text });
        self.tell_other_hosts_with(now, &publish, None, Some(record));
        // They have been told.
        publish.origin = Origin::Elsewhere;
        self.home_publish(now, publish);
        if text.is_none() {
            // It may have been the last that held the room.
            self.homes.tidy(&found.room, &self.stats);
        }
        Some(Ok(Standing { room: name, text }))
    }

    /// A part of what a room keeps, if it is at home here. Answered when the store has looked.
    pub(super) fn tell_past(&mut self, now: Now, ask: u64, room: Room, range: Range) {
        if self.home_of(&room) != self.id {
            return self.answers.push_back((ask, Answer::Past(None)));
        }
        match self.homes.history().read(&room, range, now.unix_ms) {
            Reading::Now(past) => self.told_past(ask, past),
            Reading::Later(ticket) => {
                let parcel = Parcel::Ask { ask, question: Question::Past { room: room.clone(), range } };
                self.set_aside(now, ticket, parcel, room, Recall::Past(range));
            }
        }
    }

    /// The store has looked for a part of what a room keeps.
    pub(super) fn told_past(&mut self, ask: u64, past: Past) {
        self.answers.push_back((ask, Answer::Past(Some(past))));
    }
}
