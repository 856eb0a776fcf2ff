//! Clients take in what they were sent, answer what wants an answer, and remember the rest.

use super::client::{At, End};
use super::plan::ROOMS;
use super::site::Site;
use super::talk::{Heard, Talk};
use super::world::{Fate, World, place};
use crate::relay::host::Got;

impl World {
    /// Everybody on a host takes in what was sent to it.
    pub(super) fn listen(&mut self, slot: usize) {
        loop {
            let mut has_heard = false;
            for who in 0..self.clients.len() {
                if self.clients[who].at.is_some_and(|at| at.slot == slot) {
                    has_heard |= self.listen_to(who);
                }
            }
            if !has_heard {
                return;
            }
        }
    }

    pub(super) fn listen_to(&mut self, who: usize) -> bool {
        let Some(at) = self.clients[who].at else { return false };
        let Some(site) = self.slots[at.slot].as_mut().filter(|site| site.number == at.number) else { return false };
        if site.host.clients[at.client].got.is_empty() {
            return false;
        }
        let mut has_ended = false;
        for got in site.host.take(at.client) {
            match got {
                Got::Text(text) => has_ended |= !self.hear(who, at, &text),
                Got::Ping => {
                    if let Some(site) = &mut self.slots[at.slot] {
                        site.host.frame(at.client, 10, b"");
                    }
                }
                // Community greets whoever is let in, and has nothing to come back to.
                Got::Http(101, _) => {
                    if self.clients[who].talk == Talk::Community {
                        self.clients[who].is_in = true;
                    }
                }
                Got::Close(..) | Got::End(_) | Got::Http(..) => has_ended = true,
                Got::Pong | Got::Binary(_) => {}
            }
        }
        if has_ended {
            self.lose(who, at);
        }
        if let Some(site) = self.slots[at.slot].as_mut().filter(|site| site.number == at.number) {
            let shard = site.host.clients[at.client].shard;
            site.collect_shard(shard);
        }
        true
    }

    /// The server has ended a connection.
    fn lose(&mut self, who: usize, at: At) {
        if let Some(site) = self.slots[at.slot].as_mut().filter(|site| site.number == at.number) {
            site.host.hang_up(at.client);
            let is_expected = site.drains_until_ms.is_some();
            assert!(
                !self.clients[who].is_witness || is_expected || !self.clients[who].is_in,
                "a witness of host {} was cut: {:?}",
                at.number,
                site.host.clients[at.client].got
            );
        }
        self.clients[who].lose_transport();
    }

    /// False when it was a goodbye.
    fn hear(&mut self, who: usize, at: At, text: &str) -> bool {
        let step = self.step;
        let client = &mut self.clients[who];
        let talk = client.talk;
        if talk.counts(text) {
            self.records[at.number as usize].delivered[talk.index()] += 1;
        }
        if let Some(offset) = talk.offset(text) {
            client.offset.clear();
            client.offset.push_str(offset);
        }
        let heard = talk.hear(text);
        let goes_on = !matches!(heard, Heard::Goodbye);
        self.trace.note_heard(who, &heard);
        match heard {
            Heard::Message { room, number } => {
                self.counts.heard += 1;
                let said = self.said.get(number as usize).copied();
                let is_right = said.is_some_and(|said| said.place == place(talk, room));
                assert!(is_right, "client {who} has heard {number} in r{room}, which was said as {said:?}");
                if client.is_witness {
                    self.records[at.number as usize].orders[place(talk, room)].push(number);
                }
                if !client.is_in {
                    client.early.push((room, number));
                } else {
                    assert!(client.take(room, number, false), "client {who} is not in {talk:?} r{room} and has heard {number}");
                }
            }
            Heard::Entered { room, past, online } => {
                client.entering[room] = false;
                client.in_doubt[room] = None;
                if client.open[room].is_some_and(|index| client.stays[index].leaves) {
                    client.end(room, End::Cut);
                }
                if client.open[room].is_none() {
                    client.begin(room, step, past);
                }
                if let Some(online) = online {
                    client.present[room] = online.into_iter().collect();
                    let unanswered = self.slots[at.slot].as_ref().map_or(0, Site::unanswered);
                    client.is_shown_in_part[room] = client.unanswered[room] != unanswered;
                }
            }
            Heard::Left { room } => {
                client.end(room, End::Left);
                client.in_doubt[room] = None;
            }
            Heard::Came { room, user } => {
                client.present[room].insert(user);
            }
            Heard::Went { room, user } => {
                client.present[room].remove(&user);
            }
            Heard::Connected { sid, pid } => {
                let early = std::mem::take(&mut client.early);
                let is_new = pid.is_empty() || client.pid != pid;
                assert!(!is_new || early.is_empty(), "client {who} starts anew and has heard {early:?}");
                let is_restored = self.redis.taken.remove(format!("sio:session:{pid}").as_bytes());
                if client.let_in(sid, pid, is_restored) {
                    for (room, number) in early {
                        assert!(client.take(room, number, true), "client {who} was not in {talk:?} r{room} and has heard {number}");
                    }
                    self.counts.recovered += 1;
                }
            }
            Heard::Refused => client.refused += 1,
            Heard::Ping => {
                if let Some(site) = &mut self.slots[at.slot] {
                    site.host.say(at.client, "3");
                }
            }
            Heard::Goodbye | Heard::Other => {}
        }
        if self.clients[who].is_witness && self.clients[who].is_in {
            // It wants to hear everything.
            for room in 0..ROOMS {
                let client = &self.clients[who];
                if client.open[room].is_none() && !client.entering[room] && self.records[at.number as usize].fate == Fate::Alive {
                    let text = talk.enter(room);
                    self.clients[who].entering[room] = true;
                    if let Some(site) = &mut self.slots[at.slot] {
                        self.clients[who].unanswered[room] = site.unanswered();
                        site.host.say(at.client, &text);
                    }
                }
            }
        }
        goes_on
    }
}
