//! Who had to hear what, and in which order. On each host a witness in each room hears everything: what the others on that host have heard must be
//! a whole stretch of that, and what a witness has heard of another host must be what that host's own witness has, in its order.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::client::{Client, End, Stay};
use super::plan::ROOMS;
use super::talk::Talk;
use super::world::{Fate, Said, World, place};
use crate::config::RelayMode;
use crate::fault::RelayDrop;

/// Where each message stands in the order of the host where it was said.
type Places = HashMap<u32, usize>;

impl World {
    /// Everything that was heard, once nothing is under way any more.
    pub(super) fn judge_words(&self) {
        let places: Vec<Places> = (0..self.records.len()).map(|number| self.places_of(number as u32)).collect();
        self.judge_orders(&places);
        for (who, client) in self.clients.iter().enumerate().filter(|(_, client)| !client.is_witness) {
            for stay in &client.stays {
                match stay.hosts[..] {
                    [(number, _)] if !stay.is_restored => self.judge_stay(who, client, stay, number),
                    _ => self.judge_moved_stay(who, client, stay, &places),
                }
                if let Some(past) = &stay.past {
                    let heard: HashSet<u32> = stay.heard.iter().copied().collect();
                    let twice = past.iter().find(|number| heard.contains(number));
                    assert!(twice.is_none(), "client {who} was shown {twice:?} of the past, and has heard it");
                }
            }
            self.judge_own_words(who, client);
        }
    }

    fn places_of(&self, number: u32) -> Places {
        let mut places = Places::new();
        for order in &self.records[number as usize].orders {
            for (index, id) in order.iter().filter(|id| self.said[**id as usize].origin == number).enumerate() {
                assert!(places.insert(*id, index).is_none(), "host {number}: {id} was heard twice where it was said");
            }
        }
        places
    }

    /// By host: each message once, and those of each other host as they were there.
    fn judge_orders(&self, places: &[Places]) {
        for (number, record) in self.records.iter().enumerate() {
            for (index, order) in record.orders.iter().enumerate() {
                let mut known = HashSet::new();
                let twice = order.iter().find(|id| !known.insert(**id));
                assert!(twice.is_none(), "host {number}, room {index}: {twice:?} twice");
                let mut by_origin: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
                for id in order {
                    by_origin.entry(self.said[*id as usize].origin).or_default().push(*id);
                }
                for (origin, heard) in by_origin {
                    self.judge_speakers(number, &heard);
                    if origin as usize != number {
                        self.judge_heard_of(number, index, origin, &heard, &places[origin as usize]);
                    }
                }
            }
        }
    }

    /// What each client has said over one connection stays in its order.
    fn judge_speakers(&self, number: usize, heard: &[u32]) {
        let mut last: HashMap<(usize, usize), u32> = HashMap::new();
        for id in heard {
            let Said { by, over, .. } = self.said[*id as usize];
            let before = last.insert((by, over), *id);
            assert!(before.is_none_or(|before| before < *id), "host {number}: {id} of client {by} was overtaken by {before:?}");
        }
    }

    /// What one host has heard of another: in the other's order, and without a hole but what was counted.
    fn judge_heard_of(&self, number: usize, index: usize, origin: u32, heard: &[u32], places: &Places) {
        let missed = self.gaps(heard, places, &|| format!("host {number} of host {origin} in room {index}"), origin);
        let is_over = self.records[number].fate != Fate::Alive || self.records[origin as usize].fate != Fate::Alive;
        let all = self.records[origin as usize].orders[index].iter().filter(|id| self.said[**id as usize].origin == origin).count();
        let last = heard.iter().rev().find_map(|id| places.get(id));
        let unheard = if is_over { 0 } else { last.map_or(0, |last| all - 1 - last) };
        let missed = missed + unheard;
        if missed == 0 {
            return;
        }
        assert!(
            self.may_miss(number as u32, origin, index, missed as u64),
            "host {number} has missed {missed} messages of host {origin} in room {index} ({unheard} at the end), of which {:?} were counted there and {:?} here: {:?}",
            self.counted(origin),
            self.counted(number as u32),
            self.plan
        );
    }

    /// How many messages of a host are missing between those that were heard of it, whose order must be its own.
    fn gaps(&self, heard: &[u32], places: &Places, whose: &dyn Fn() -> String, origin: u32) -> usize {
        let (mut last, mut missed) = (None::<usize>, 0);
        let mut is_behind = false;
        for id in heard {
            let Some(at) = places.get(id) else {
                // It has ended before its own witness could hear it.
                assert!(self.records[origin as usize].fate != Fate::Alive, "{}: {id} was not heard where it was said", whose());
                is_behind = true;
                continue;
            };
            assert!(!is_behind, "{}: {id} came behind what was said later", whose());
            if let Some(last) = last {
                assert!(*at > last, "{}: {id} was reordered", whose());
                missed += at - last - 1;
            }
            last = Some(*at);
        }
        missed
    }

    /// True exactly when it was counted that so many messages of one host were not heard on another.
    fn may_miss(&self, number: u32, origin: u32, index: usize, missed: u64) -> bool {
        // No beat counts what is said on plain channels, because not every host listens to each: nor does whoever speaks know who would, were his link to Redis there.
        let is_plain = index / ROOMS == Talk::Community.index();
        let has_gaps = !self.plan.faults.spares_redis() || self.plan.faults.reloads;
        if self.plan.mode == RelayMode::PubSub && is_plain && has_gaps {
            return true;
        }
        let dropped = |number: u32, reasons: &[RelayDrop]| -> u64 {
            let stats = &self.relay_stats[number as usize];
            reasons.iter().map(|reason| stats.dropped[reason.index()].read()).sum()
        };
        let here = [RelayDrop::Missed, RelayDrop::Flood, RelayDrop::Unheard];
        match self.plan.mode {
            RelayMode::Streams => missed <= dropped(origin, &[RelayDrop::Overflow]),
            RelayMode::PubSub => missed <= dropped(origin, RelayDrop::ALL) + dropped(number, &here),
        }
    }

    /// What a host's relay has counted as not passed on, or not heard.
    fn counted(&self, number: u32) -> Vec<(RelayDrop, u64)> {
        let dropped = &self.relay_stats[number as usize].dropped;
        RelayDrop::ALL.iter().map(|reason| (*reason, dropped[reason.index()].read())).filter(|(_, count)| *count > 0).collect()
    }

    /// A stay on one host: a whole stretch of what its witness has heard.
    fn judge_stay(&self, who: usize, client: &Client, stay: &Stay, number: u32) {
        let record = &self.records[number as usize];
        let order = &record.orders[place(client.talk, stay.room)];
        let what = || format!("client {who} in {:?} r{} on host {number}", client.talk, stay.room);
        let has_ended = record.fate != Fate::Alive;
        let is_whole = stay.end == End::Open && client.is_in && !stay.leaves && !has_ended;
        let first = match stay.heard.first().map(|id| order.iter().position(|other| other == id)) {
            Some(Some(first)) => Some(first),
            Some(None) => {
                assert!(has_ended, "{}: {} was not heard by the witness", what(), stay.heard[0]);
                return;
            }
            None => None,
        };
        if let Some(first) = first {
            let differs = |heard: &[u32], first: usize| heard.iter().zip(&order[first..]).position(|(heard, expected)| heard != expected);
            let (mut heard, mut first) = (&stay.heard[..], first);
            // Who may have been out once may have two stretches.
            if stay.may_have_been_out
                && let Some(at) = differs(heard, first)
                && let Some(again) = order.iter().position(|id| *id == heard[at]).filter(|again| *again > first + at)
            {
                (heard, first) = (&heard[at..], again);
            }
            let length = heard.len().min(order.len() - first);
            let wrong = differs(heard, first);
            assert!(
                wrong.is_none() && (length == heard.len() || has_ended),
                "{}: a gap, a double or another order at {wrong:?}:\n{heard:?}\n{:?}\nof the stay {:?}, counted {:?}",
                what(),
                &order[first..first + length],
                (stay.since, stay.may_have_been_out),
                self.counted(number)
            );
            if is_whole {
                assert_eq!(first + heard.len(), order.len(), "{} missed the end", what());
            }
        }
        // Whatever was said after it knew that it was in is for it; unless it was out before that was said.
        let due = order.iter().position(|id| self.said[*id as usize].step > stay.since);
        if let (Some(due), true) = (due, (is_whole || first.is_some()) && !stay.may_have_been_out) {
            assert!(first.is_some_and(|first| first <= due), "{} missed {}: {stay:?}", what(), order[due]);
        }
    }

    /// A stay that went on elsewhere, or with what was in Redis, where streams have an order of their own and not what was dropped before it came
    /// to them: of each host nothing twice, nothing missing in between, as far as it knows to have been in.
    fn judge_moved_stay(&self, who: usize, client: &Client, stay: &Stay, places: &[Places]) {
        let what = || format!("client {who} in {:?} r{} on hosts {:?}", client.talk, stay.room, stay.hosts);
        let mut known = HashSet::new();
        let twice = stay.heard.iter().find(|id| !known.insert(**id));
        assert!(twice.is_none(), "{}: {twice:?} twice", what());
        let mut by_origin: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for id in &stay.heard {
            by_origin.entry(self.said[*id as usize].origin).or_default().push(*id);
        }
        for (origin, heard) in by_origin {
            let missed = self.gaps(&heard, &places[origin as usize], &what, origin);
            if missed > 0 && !stay.may_have_been_out {
                self.judge_missed(client.talk, stay, origin, &what);
            }
            assert!(
                missed == 0 || stay.may_have_been_out || self.may_miss(origin, origin, place(client.talk, stay.room), missed as u64),
                "{}: {missed} messages of host {origin} are missing",
                what()
            );
        }
        // It is where a witness hears what it has to hear.
        let &(number, _) = stay.hosts.last().expect("it was somewhere");
        let is_whole = stay.end == End::Open && client.is_in && !stay.leaves && self.records[number as usize].fate == Fate::Alive;
        let order = &self.records[number as usize].orders[place(client.talk, stay.room)];
        if is_whole && let Some(last) = order.last() {
            assert!(known.contains(last), "{} missed the last words: {:?}", what(), &stay.heard[stay.heard.len().saturating_sub(9)..]);
        }
    }

    /// What a moved stay has missed, and was counted: none of it was heard on all hosts where it was meanwhile. What comes first after a move it may have
    /// missed on the host before.
    fn judge_missed(&self, talk: Talk, stay: &Stay, origin: u32, what: &dyn Fn() -> String) {
        let place = place(talk, stay.room);
        let said = |order: &[u32]| order.iter().copied().filter(|id| self.said[*id as usize].origin == origin).collect::<Vec<_>>();
        let order = said(&self.records[origin as usize].orders[place]);
        let host_at = |index: usize| stay.hosts.partition_point(|(_, since)| *since <= index) - 1;
        let mut last = None::<(usize, usize)>;
        for (index, id) in stay.heard.iter().enumerate().filter(|(_, id)| self.said[**id as usize].origin == origin) {
            let Some(at) = order.iter().position(|other| other == id) else { continue };
            if let Some((before, last_index)) = last {
                let hosts = &stay.hosts[host_at(last_index).saturating_sub(1)..=host_at(index)];
                let is_heard = |id: &u32| hosts.iter().all(|(host, _)| self.records[*host as usize].orders[place].contains(id));
                let missed = order[before + 1..at].iter().find(|id| is_heard(id));
                assert!(missed.is_none(), "{}: {missed:?} of host {origin} is missing, and was heard wherever it could be", what());
            }
            last = Some((at, index));
        }
    }

    /// Who is still connected as he was when he said something has heard of it, or was refused.
    fn judge_own_words(&self, who: usize, client: &Client) {
        let Some(at) = client.at.filter(|_| client.is_in) else { return };
        let record = &self.records[at.number as usize];
        if record.fate != Fate::Alive {
            return;
        }
        let orders: Vec<HashSet<u32>> =
            Talk::ALL.iter().flat_map(|talk| (0..ROOMS).map(|room| record.orders[place(*talk, room)].iter().copied().collect())).collect();
        let heard = client.said.iter().filter(|id| orders[self.said[**id as usize].place].contains(id)).count();
        // What it asked for else may have been refused as well.
        assert!(heard + client.refused >= client.said.len(), "client {who}: neither heard nor refused");
    }
}
