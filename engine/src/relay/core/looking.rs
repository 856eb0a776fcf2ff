//! Sets that the back end keeps in Redis and a message or a connection waits for: who is a member of a room, and whom a user has blocked. What
//! another program says on a channel is not for those whom its author has blocked; until that is known, everything after it waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::request::{Call, Reply, Request};
use super::{Core, Tag};
use crate::auth::{Details, Identity};
use crate::ids::ShardId;
use crate::limits::{BLOCKLIST_MS, BLOCKLISTS_MAX, CONSULT_MS};
use crate::shard::inquiry::{About, Inquiry, Ruling};
use crate::shard::parcel::{Arrival, Parcel};
use crate::shard::recent::Recent;
use crate::time::Now;

/// What was looked for.
#[derive(Debug)]
pub(crate) enum Look {
    /// For a shard's inquiry, by our number.
    Inquiry(u64),
    /// Whom the author has blocked of the message that everything waits for.
    Author,
}

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Looking {
    /// Inquiries under way, in the order in which they were asked: who, his number, until when; and whether they are of members.
    inquiries: BTreeMap<u64, (ShardId, u64, u64, bool)>,
    next: u64,
    authors: Recent<String, (u64, Option<Arc<Identity>>)>,
    /// A message that waits for its author's list, and until when, monotonic milliseconds.
    held: Option<(Box<Arrival>, String, u64)>,
}

impl Looking {
    /// When something is given up, monotonic milliseconds.
    pub(super) fn next_ms(&self) -> u64 {
        let first = self.inquiries.values().next().map(|(_, _, until_ms, _)| *until_ms);
        first.into_iter().chain(self.held.as_ref().map(|(_, _, until_ms)| *until_ms)).min().unwrap_or(u64::MAX)
    }

    /// True exactly when something is looked for.
    pub(super) fn is_asked(&self) -> bool {
        self.held.is_some() || !self.inquiries.is_empty()
    }

    /// True exactly when what other hosts say has to wait.
    pub(super) fn holds_back(&self) -> bool {
        self.held.is_some()
    }
}

/// Where a user's blocked users are.
pub(crate) fn blocked_key(user: &str) -> String {
    format!("user:{user}:blocked")
}

/// Where a room's members are.
pub(crate) fn members_key(room: &str) -> String {
    format!("{room}:members")
}

impl Core {
    /// A connection waits for what stands in Redis.
    pub(super) fn look_for(&mut self, now: Now, shard: ShardId, number: u64, inquiry: &Inquiry) {
        let (calls, is_join) = match &inquiry.about {
            About::Join { user, rooms, .. } => {
                (rooms.iter().map(|room| Call::new("SISMEMBER").arg(members_key(room)).arg(&**user)).collect(), true)
            }
            About::Blocked { user } => (vec![Call::new("SMEMBERS").arg(blocked_key(user))], false),
            About::Connect(_) | About::Publish(_) => (Vec::new(), false),
        };
        if !self.is_up || calls.is_empty() {
            return self.rule(shard, number, Ruling::Unavailable);
        }
        self.looking.next += 1;
        let own = self.looking.next;
        self.looking.inquiries.insert(own, (shard, number, now.ms() + CONSULT_MS, is_join));
        self.requests.push_back((Tag::Looked(Look::Inquiry(own)), Request::several(calls)));
    }

    fn rule(&mut self, shard: ShardId, number: u64, ruling: Ruling) {
        self.parcels.push_back((shard, Parcel::Ruled { number, ruling: Box::new(ruling) }));
    }

    /// Something was said by a program that does not know whom its author has blocked.
    pub(super) fn arrive_of(&mut self, now: Now, author: String, mut arrival: Box<Arrival>) {
        let known = self.looking.authors.get(&author).filter(|(until_ms, _)| now.ms() < *until_ms);
        if let Some((_, blocked)) = known {
            arrival.hidden_from.clone_from(blocked);
            return self.arrive(*arrival);
        }
        if !self.is_up {
            self.stats.blocklists_unknown.add(1);
            return self.arrive(*arrival);
        }
        let call = Call::new("SMEMBERS").arg(blocked_key(&author));
        self.requests.push_back((Tag::Looked(Look::Author), call.into()));
        self.looking.held = Some((arrival, author, now.ms() + CONSULT_MS));
    }

    /// It was looked for.
    pub(super) fn looked(&mut self, now: Now, look: &Look, replies: Option<&[Reply]>) {
        match look {
            Look::Inquiry(own) => {
                let Some((shard, number, _, is_join)) = self.looking.inquiries.remove(own) else { return };
                match replies.and_then(|replies| replies.first()).filter(|reply| !is_join && reply.error().is_none()) {
                    Some(found) => self.parcels.push_back((shard, Parcel::Blocked { number, blocked: texts(found) })),
                    None => self.rule(shard, number, if is_join { ruling(replies.unwrap_or_default()) } else { Ruling::Unavailable }),
                }
            }
            Look::Author => {
                let found = replies.and_then(|replies| replies.first()).filter(|reply| reply.error().is_none());
                self.let_arrive(now, found);
                self.conclude(now);
            }
        }
    }

    /// What everything waits for goes on, with what was found.
    fn let_arrive(&mut self, now: Now, found: Option<&Reply>) {
        let Some((mut arrival, author, _)) = self.looking.held.take() else { return };
        let Some(found) = found else {
            self.stats.blocklists_unknown.add(1);
            return self.arrive(*arrival);
        };
        let blocked = texts(found);
        let hidden_from =
            (!blocked.is_empty()).then(|| Arc::new(Details { user: author.as_str().into(), blocked, ..Details::default() }.into()));
        self.looking.authors.insert(author, (now.ms() + BLOCKLIST_MS, hidden_from.clone()));
        if self.looking.authors.len() > BLOCKLISTS_MAX {
            self.looking.authors.pop_oldest_if(|_| true);
        }
        arrival.hidden_from = hidden_from;
        self.arrive(*arrival);
    }

    /// Gives up what has waited too long, or everything.
    pub(super) fn end_looks(&mut self, now: Now, is_over: bool) {
        while let Some(first) = self.looking.inquiries.first_entry().filter(|first| is_over || first.get().2 <= now.ms()) {
            let (shard, number, ..) = first.remove();
            self.rule(shard, number, Ruling::Unavailable);
        }
        if self.looking.held.as_ref().is_some_and(|(_, _, until_ms)| is_over || *until_ms <= now.ms()) {
            self.let_arrive(now, None);
        }
    }
}

/// Members of a set.
fn texts(set: &Reply) -> Vec<String> {
    set.list().iter().filter_map(Reply::text).map(str::to_owned).collect()
}

/// What follows from what was found: all rooms or none.
fn ruling(replies: &[Reply]) -> Ruling {
    if replies.is_empty() || replies.iter().any(|reply| reply.error().is_some()) {
        return Ruling::Unavailable;
    }
    if replies.iter().all(|reply| reply.int() == Some(1)) { Ruling::allowed() } else { Ruling::refused() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_all_rooms_is_let_in_and_an_error_is_no_answer() {
        assert!(matches!(ruling(&[Reply::Int(1), Reply::Int(1)]), Ruling::Allowed(_)));
        assert!(matches!(ruling(&[Reply::Int(1), Reply::Int(0)]), Ruling::Refused(None)));
        assert!(matches!(ruling(&[Reply::Int(1), Reply::Error("WRONGTYPE".into())]), Ruling::Unavailable));
        assert!(matches!(ruling(&[]), Ruling::Unavailable));
    }
}
