//! Questions of rooms' homes: when they go out, what Redis is asked for them, and how they end. And the channels that are listened to only
//! while somebody is in a room here: whoever comes first is in when they are heard.

use std::collections::BTreeMap;

use super::super::consults::{Asked, Concluded};
use super::super::fleet::HostAnswers;
use super::super::hosts::OWN_ASK;
use super::super::request::{Call, Kind, Reply, Request};
use super::super::streams::Streams;
use super::super::waiting::Entries;
use super::{Core, Listening, Tag};
use crate::fault::RelayDrop;
use crate::ids::{ShardId, Sid};
use crate::limits::{CONSULT_MS, FLEET_MARGIN_MS};
use crate::shard::consult::{Consult, Findings};
use crate::shard::history::Recall;
use crate::shard::parcel::{Answer, Parcel, Question};
use crate::shard::recollection::Recollection;
use crate::time::Now;

/// A channel that is not heard yet.
#[derive(Default, Debug)]
pub(super) struct Hearing {
    /// Confirmations to come: a room may be left and entered again before Redis has answered.
    confirmations: u32,
    waiting: Vec<(ShardId, Box<Consult>)>,
}

/// Names of rooms that may be other hosts' connections.
#[derive(Default, Debug)]
pub(super) struct Named {
    asks: BTreeMap<u64, NamedAsk>,
    next: u64,
}

#[derive(Debug)]
struct NamedAsk {
    shard: ShardId,
    consult: Box<Consult>,
    /// That have not answered.
    hosts: usize,
    is_whole: bool,
    is_theirs: bool,
}

impl Hearing {
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Named {
    /// Number of the last question.
    pub(super) fn last(&self) -> u64 {
        self.next
    }

    /// After a reload: an answer to a question of before is none to one of now.
    pub(super) fn go_on_from(&mut self, number: u64) {
        self.next = number;
    }

    /// True exactly when nobody is asked.
    pub(super) fn is_idle(&self) -> bool {
        self.asks.is_empty()
    }
}

impl Core {
    /// A room's home asks. What has changed is true from now on, whether Redis can be told now or not.
    pub(super) fn consult(&mut self, now: Now, shard: ShardId, mut consult: Box<Consult>) {
        if let Some(connection) = consult.connection {
            return self.ask_whose(now, shard, consult, connection);
        }
        self.presence.note(&consult);
        if consult.step.as_ref().is_some_and(|step| step.announcement.is_some()) {
            self.asked += 1;
            consult.number = self.asked;
            self.unannounced.insert(consult.number);
        }
        let channel = self.listen_for(&consult);
        if !self.is_up {
            return self.answer_unknown(now, shard, consult);
        }
        if let Some(Recall::Found(id)) = consult.recall {
            return self.search(shard, consult, id);
        }
        match channel.and_then(|channel| self.hearings.get_mut(&channel)) {
            Some(hearing) => hearing.waiting.push((shard, consult)),
            None => self.consults.push(shard, consult, self.waiting.place(), self.last_entries()),
        }
    }

    /// Asks the other hosts whether they have a connection.
    fn ask_whose(&mut self, now: Now, shard: ShardId, consult: Box<Consult>, connection: Sid) {
        if !self.is_up {
            return self.answer(shard, &consult, Findings::default());
        }
        self.named.next += 1;
        let (ask, question) = (self.named.next, Question::Connection { id: connection });
        let hosts = self.hosts.ask_own(now, ask, question, CONSULT_MS - FLEET_MARGIN_MS);
        let named = NamedAsk { shard, consult, hosts, is_whole: true, is_theirs: false };
        self.named.asks.insert(ask | OWN_ASK, named);
        self.answer_named(ask | OWN_ASK);
        self.take_outcomes();
    }

    /// Another host has said whether it has a connection, or will not.
    pub(super) fn told_whose(&mut self, ask: u64, answers: &HostAnswers) {
        let Some(named) = self.named.asks.get_mut(&ask) else { return };
        let has = |answer: &Answer| matches!(answer, Answer::Connections(found) if !found.is_empty());
        named.hosts = named.hosts.saturating_sub(1);
        named.is_whole &= answers.is_whole;
        named.is_theirs |= answers.answers.iter().any(has);
        self.answer_named(ask);
    }

    fn answer_named(&mut self, ask: u64) {
        let is_done = self.named.asks.get(&ask).is_some_and(|named| named.hosts == 0);
        if !is_done {
            return;
        }
        let Some(NamedAsk { shard, consult, is_whole, is_theirs, .. }) = self.named.asks.remove(&ask) else { return };
        let is_connection = (is_theirs || is_whole).then_some(is_theirs);
        self.answer(shard, &consult, Findings { is_connection, ..Findings::default() });
    }

    /// What nobody was asked: the other hosts hear of it as of any message.
    fn answer_unknown(&mut self, now: Now, shard: ShardId, mut consult: Box<Consult>) {
        if let Some(published) = consult.step.as_mut().and_then(|step| step.announcement.take()) {
            self.publish(now, &published);
        }
        self.answer(shard, &consult, Findings::default());
    }

    pub(super) fn answer(&mut self, shard: ShardId, consult: &Consult, findings: Findings) {
        self.unannounced.remove(&consult.number);
        if let Some(ticket) = consult.ticket {
            self.parcels.push_back((shard, Parcel::Consulted { ticket, findings: Box::new(findings) }));
        }
    }

    /// The next questions as one request.
    pub(super) fn next_consults(&mut self, now: Now) -> Option<(Tag, Request)> {
        let (waiting, streams) = (&self.waiting, &self.streams);
        let has_passed = |after| streams.as_ref().is_none_or(|streams| streams.has_passed(after));
        let mut asked = self.consults.take(|place, after| waiting.has_passed(place) && has_passed(after));
        if asked.is_empty() {
            return None;
        }
        let mut calls = Vec::new();
        for Asked { consult, calls: count, .. } in &mut asked {
            let composed = self.compose(consult, now.unix_ms);
            *count = composed.len();
            calls.extend(composed);
        }
        let number = self.consults.sent(now.ms(), asked);
        let mark = self.consults.mark(number);
        let is_atomic = !mark.is_empty();
        calls.extend(mark);
        Some((Tag::Consulted(number), Request { calls, is_atomic }))
    }

    /// What Redis is asked for one question. Whose part is whose, [`Self::findings`] knows.
    fn compose(&mut self, consult: &Consult, unix_ms: u64) -> Vec<Call> {
        let told = consult.step.as_ref().and_then(|step| step.announcement.as_ref()).filter(|_| self.presence.tells_itself());
        let post = told.and_then(|published| self.post_of(published));
        let mut calls = self.presence.calls(consult, post.as_ref());
        if let Some(Recall::Past(range)) = consult.recall {
            calls.push(self.store.read(&consult.room, range, unix_ms));
        }
        calls
    }

    /// What Redis has answered to [`Self::compose`].
    fn findings(&mut self, consult: &Consult, replies: &[Reply], unix_ms: u64) -> Findings {
        let findings = self.presence.findings(consult, replies);
        let recollection = consult.recall.and(replies.last()).and_then(|reply| self.read(reply, unix_ms)).map(Recollection::Told);
        Findings { recollection, ..findings }
    }

    /// Numbers of our last entries, behind which something has its place.
    pub(super) fn last_entries(&self) -> Entries {
        self.streams.as_ref().map(Streams::last).unwrap_or_default()
    }

    /// Whatever has been answered goes to who asked, and then what was held back meanwhile.
    pub(in crate::relay) fn conclude(&mut self, now: Now) {
        loop {
            if let Some(streams) = &self.streams {
                let taken = streams.taken();
                self.consults.set_heard(taken.is_some());
                self.consults.reach(taken.unwrap_or_default());
            }
            while let Some(Concluded { asked, replies }) = self.consults.next_concluded() {
                let mut from = 0;
                for Asked { shard, mut consult, calls } in asked {
                    let own = replies.as_ref().and_then(|replies| replies.get(from..from + calls));
                    from += calls;
                    let findings = own.map(|replies| self.findings(&consult, replies, now.unix_ms)).unwrap_or_default();
                    if let Some(step) = consult.step.as_deref() {
                        self.follow(&consult.room, &step.presence, step.comes, findings.is_only);
                    }
                    let told = consult.step.as_mut().and_then(|step| step.announcement.take());
                    match told {
                        // Redis could not do it in the same breath.
                        Some(published) if !self.presence.tells_itself() && findings.is_only != Some(false) => {
                            self.publish(now, &published);
                        }
                        Some(_) if own.is_none() => self.drop_message(RelayDrop::Unconfirmed, 1),
                        _ => {}
                    }
                    self.answer(shard, &consult, findings);
                }
            }
            if self.take_next_entry(now) {
                continue;
            }
            if self.looking.holds_back() {
                return;
            }
            let Some(push) = self.consults.next_held_back() else { return };
            self.take_push(now, push);
        }
    }

    /// Nobody can be asked: what waits for an answer gets none, in the order in which it was asked.
    pub(in crate::relay) fn end_consults(&mut self, now: Now) {
        let (sent, unsent) = self.consults.end();
        let told = sent.iter().filter(|asked| asked.consult.step.as_ref().is_some_and(|step| step.announcement.is_some())).count();
        // They may have been delivered or not: to send them again could deliver them twice.
        // Where Redis does not tell them itself, they were not.
        let tells_itself = self.presence.tells_itself();
        self.drop_message(RelayDrop::Unconfirmed, if tells_itself { told as u64 } else { 0 });
        for Asked { shard, consult, .. } in sent {
            if tells_itself {
                self.answer(shard, &consult, Findings::default());
            } else {
                self.answer_unknown(now, shard, consult);
            }
        }
        for NamedAsk { shard, consult, .. } in std::mem::take(&mut self.named.asks).into_values() {
            self.answer(shard, &consult, Findings::default());
        }
        let unheard = std::mem::take(&mut self.hearings).into_values().flat_map(|hearing| hearing.waiting);
        let unsent: Vec<_> = unsent.into_iter().map(|asked| (asked.shard, asked.consult)).chain(unheard).collect();
        if unsent.iter().any(|(_, consult)| consult.step.is_some()) {
            // Who has gone is still there for Redis: a host that takes its leave now leaves its index to the others.
            self.keeping.doubt();
        }
        for (shard, consult) in unsent {
            self.answer_unknown(now, shard, consult);
        }
    }

    /// Listens to the room's own channel while somebody is in; the channel, where it has one.
    fn listen_for(&mut self, consult: &Consult) -> Option<String> {
        consult.step.as_ref()?;
        let channel = self.channels.channel_of(&consult.room)?;
        let key = (Kind::Channel, channel.clone());
        let is_wanted = self.presence.has(&consult.room);
        if is_wanted == self.listened.contains(&key) {
            return Some(channel);
        }
        if is_wanted {
            self.listened.insert(key);
        } else {
            self.listened.remove(&key);
        }
        self.stats.subscriptions.set(self.listened.len() as u64);
        // Without a connection it is listened to as soon as there is one.
        if self.is_connected {
            self.listenings.push_back(Listening { kind: Kind::Channel, names: vec![channel.clone()], is_on: is_wanted });
            if is_wanted {
                self.hearings.entry(channel.clone()).or_default().confirmations += 1;
            }
        }
        Some(channel)
    }

    /// A new connection: all rooms' channels are asked for anew.
    pub(super) fn expect_all_rooms(&mut self) {
        let rooms = self.presence.rooms().filter_map(|room| self.channels.channel_of(room));
        self.hearings = rooms.map(|channel| (channel, Hearing { confirmations: 1, waiting: Vec::new() })).collect();
    }

    /// What is published under a name is heard from here on, as far as it ever will.
    pub(super) fn hear_name(&mut self, name: &[u8]) {
        if self.consults.channel().is_some_and(|channel| channel.as_bytes() == name) {
            return self.consults.set_heard(true);
        }
        let Some(channel) = std::str::from_utf8(name).ok() else { return };
        let Some(hearing) = self.hearings.get_mut(channel) else { return };
        hearing.confirmations = hearing.confirmations.saturating_sub(1);
        if hearing.confirmations == 0 {
            let (place, after) = (self.waiting.place(), self.last_entries());
            for (shard, consult) in self.hearings.remove(channel).into_iter().flat_map(|hearing| hearing.waiting) {
                self.consults.push(shard, consult, place, after);
            }
        }
    }

    /// What is published under a name may be missed for now. How much nobody knows, so it counts as one message; of the classic form's
    /// broadcasts beats tell. What stands in a stream is not missed.
    pub(super) fn miss_name(&mut self, kind: Kind, name: &[u8]) {
        if self.consults.channel().is_some_and(|channel| channel.as_bytes() == name) {
            self.consults.set_heard(false);
        }
        let is_served = std::str::from_utf8(name).is_ok_and(|name| self.channels.serves(name));
        if self.streams.is_none() && (kind == Kind::Sharded || is_served) {
            self.drop_message(RelayDrop::Missed, 1);
        }
    }
}
