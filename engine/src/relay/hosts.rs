//! The other hosts of our own kind: whose leases live, and what is asked of them and by them. It has the keys and channels of that; what a
//! question means is [`super::fleet`]'s.
//!
//! | name (after the prefix) | is |
//! |---|---|
//! | `:host:HOST` | a host's lease: what it says of itself, until it expires |
//! | `:hosts` | set: all that have or had a lease |
//! | `:emit:ID` | which host has sent the back end's emit of this id |
//! | `#ask#`, `#answer#HOST#` | channels of questions and answers |
//! | `#host#` | channel on which a host says that it has come (its id: the others look at the leases), and its beats |

use std::collections::VecDeque;
use std::sync::Arc;

use super::beats::Beats;
use super::core::looking::{blocked_key, members_key};
use super::fleet::{Channel, Fleet, HostAnswers, Output, Seen};
use super::frozen::FrozenBeats;
use super::handle::{Claim, FleetPort, Order, ToRelay};
use super::request::{Call, Reply, Request};
use super::words::{Hello, HostId, Wish};
use crate::Notice;
use crate::config::Relay;
use crate::shard::parcel::{Answer, Question};
use crate::time::Now;

/// Milliseconds between two looks at questions that have waited long enough.
const LOOK_EVERY_MS: u64 = 50;
/// Looks at the leases in the time of one.
const LOOKS: u64 = 3;

/// What a request of this file was for.
#[derive(Debug)]
pub(crate) enum HostTag {
    /// Who has or had a lease.
    Members,
    /// The leases of these.
    Leases,
    /// An emit's id was claimed, for whoever waits for the answer.
    Claimed(tokio::sync::oneshot::Sender<Claim>),
    /// Whether somebody is a member, for whoever waits for the answer.
    Member(tokio::sync::oneshot::Sender<bool>),
    /// Whom somebody has blocked, for whoever waits for the answer.
    Blocked(tokio::sync::oneshot::Sender<Vec<String>>),
    /// Nothing follows from the answer.
    Said,
}

/// What is to be done outside.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Redis is asked.
    Request(HostTag, Request),
    /// All shards are asked.
    Put(u64, Question),
    /// The program is told.
    Notice(Notice),
    /// A host has answered what the relay itself has asked, or will not.
    Told(u64, HostAnswers),
}

/// What the relay itself asks has numbers with this bit.
pub(crate) const OWN_ASK: u64 = 1 << 62;

/// See the module.
pub(crate) struct Hosts {
    fleet: Fleet,
    port: FleetPort,
    prefix: String,
    lease_ms: u64,
    ask_channel: String,
    answer_channel: String,
    host_channel: String,
    beats: Beats,
    missed: u64,
    leases_ms: u64,
    look_ms: u64,
    outcomes: VecDeque<Outcome>,
}

impl Hosts {
    pub(crate) fn new(own: Hello, port: FleetPort, settings: &Relay) -> Hosts {
        let prefix = settings.prefix.clone();
        Hosts {
            ask_channel: format!("{prefix}#ask#"),
            answer_channel: format!("{prefix}#answer#{}#", own.host),
            host_channel: format!("{prefix}#host#"),
            beats: Beats::default(),
            missed: 0,
            fleet: Fleet::new(own),
            port,
            prefix,
            lease_ms: settings.lease_ms,
            leases_ms: u64::MAX,
            look_ms: u64::MAX,
            outcomes: VecDeque::new(),
        }
    }

    /// Leases of the other hosts and when they were seen, for after a reload.
    pub(crate) fn freeze(&self) -> Vec<(String, u64)> {
        self.fleet.others().iter().map(|seen| (seen.hello.text(), seen.seen_unix_ms)).collect()
    }

    /// This host's id.
    pub(crate) fn own(&self) -> &HostId {
        &self.fleet.hello().host
    }

    /// What was told and heard, likewise.
    pub(crate) fn frozen_beats(&self) -> FrozenBeats {
        self.beats.freeze()
    }

    /// They are known at once, and are asked as soon as they can be.
    pub(crate) fn thaw(&mut self, hosts: Vec<(String, u64)>, beats: Beats) {
        let seen = hosts.into_iter().filter_map(|(text, seen_unix_ms)| Some(Seen { hello: Hello::parse(&text)?, seen_unix_ms }));
        self.fleet.saw_hosts(seen);
        self.port.set_hosts(self.fleet.others());
        self.beats = beats;
    }

    /// What is listened to.
    pub(crate) fn channels(&self) -> [&str; 3] {
        [&self.ask_channel, &self.answer_channel, &self.host_channel]
    }

    /// Other hosts that live.
    pub(crate) fn count(&self) -> usize {
        self.fleet.others().len()
    }

    /// Redis is there.
    pub(crate) fn connected(&mut self, now: Now) {
        self.leases_ms = now.ms();
        self.look_ms = now.ms();
    }

    /// Redis is not.
    pub(crate) fn lost(&mut self) {
        self.leases_ms = u64::MAX;
        self.fleet.lost();
        self.port.set_hosts(Vec::new());
        self.take_outputs();
    }

    /// True exactly when the channel is one of these, and then it was read.
    pub(crate) fn heard(&mut self, now: Now, channel: &str, payload: &[u8]) -> bool {
        if channel == self.host_channel {
            let text = std::str::from_utf8(payload).unwrap_or_default();
            if !text.contains(' ') {
                // Many may come at once: one look is enough for them.
                self.leases_ms = self.leases_ms.min(now.ms() + LOOK_EVERY_MS);
            } else if !text.starts_with(self.fleet.hello().host.as_str()) {
                self.missed += self.beats.beat(text);
            }
            return true;
        }
        let is_ask = channel == self.ask_channel;
        if !is_ask && channel != self.answer_channel {
            return false;
        }
        // What is not even text is none of the words.
        let text = std::str::from_utf8(payload).unwrap_or_default();
        if is_ask {
            self.fleet.handle_ask(now.ms(), text);
        } else {
            self.fleet.handle_answered(text);
        }
        self.take_outputs();
        true
    }

    /// The program here wants something; `None` when it has gone.
    pub(crate) fn ordered(&mut self, now: Now, order: ToRelay) {
        match order {
            ToRelay::Ask(order) => self.fleet.ask(now.ms(), order),
            ToRelay::Reply { ask, text } => self.fleet.handle_reply(ask, text),
            ToRelay::Claim { id, age_ms, answer } => {
                let call =
                    Call::new("SET").arg(self.emit_key(&id)).arg(self.fleet.hello().host.as_str()).arg("NX").arg("PX").number(age_ms);
                self.outcomes.push_back(Outcome::Request(HostTag::Claimed(answer), call.into()));
            }
            ToRelay::Member { room, user, answer } => {
                let call = Call::new("SISMEMBER").arg(members_key(&room)).arg(&*user);
                self.outcomes.push_back(Outcome::Request(HostTag::Member(answer), call.into()));
            }
            ToRelay::Blocked { user, answer } => {
                let call = Call::new("SMEMBERS").arg(blocked_key(&user));
                self.outcomes.push_back(Outcome::Request(HostTag::Blocked(answer), call.into()));
            }
            ToRelay::Release { id } => {
                let call = Call::new("DEL").arg(self.emit_key(&id));
                self.outcomes.push_back(Outcome::Request(HostTag::Said, call.into()));
            }
        }
        self.take_outputs();
    }

    /// Asks all other hosts' shards something of our own; how many hosts.
    pub(crate) fn ask_own(&mut self, now: Now, ask: u64, question: Question, wait_ms: u64) -> usize {
        let expected: Arc<[HostId]> = self.fleet.others().into_iter().map(|seen| seen.hello.host).collect();
        let hosts = expected.len();
        if hosts > 0 {
            self.fleet
                .ask(now.ms(), Order { ask: ask | OWN_ASK, wish: Wish::Shards(question), to: None, expected, has_peers: false, wait_ms });
            self.look_ms = self.look_ms.min(now.ms() + LOOK_EVERY_MS);
        }
        hosts
    }

    fn emit_key(&self, id: &Arc<str>) -> String {
        format!("{}:emit:{id}", self.prefix)
    }

    /// All shards were asked what another host wanted.
    pub(crate) fn put(&mut self, ask: u64, shards: usize) {
        self.fleet.put(ask, shards);
        self.take_outputs();
    }

    /// A shard has answered what another host wanted.
    pub(crate) fn answered(&mut self, ask: u64, answer: Answer) {
        self.fleet.handle_shard_answer(ask, answer);
        self.take_outputs();
    }

    /// Redis has answered; `None`: it will not.
    pub(crate) fn replied(&mut self, now: Now, tag: HostTag, replies: Option<&[Reply]>) {
        match tag {
            HostTag::Members => {
                let members = replies.and_then(|replies| replies.last()).map_or(&[][..], Reply::list);
                let calls: Vec<Call> = members
                    .iter()
                    .filter_map(Reply::text)
                    .map(|host| Call::new("GET").arg(format!("{}:host:{host}", self.prefix)))
                    .collect();
                if !calls.is_empty() {
                    self.outcomes.push_back(Outcome::Request(HostTag::Leases, Request::several(calls)));
                }
            }
            HostTag::Leases => {
                let Some(replies) = replies else { return };
                let hellos = replies.iter().filter_map(|reply| Hello::parse(reply.text()?));
                self.fleet.saw_hosts(hellos.map(|hello| Seen { hello, seen_unix_ms: now.unix_ms }));
                self.port.set_hosts(self.fleet.others());
                self.take_outputs();
            }
            HostTag::Claimed(answer) => {
                let claim = match replies {
                    Some([Reply::Nil]) => Claim::Taken,
                    Some([reply]) if reply.error().is_none() => Claim::Fresh,
                    _ => Claim::Unknown,
                };
                // Who asked may have given up.
                let _ = answer.send(claim);
            }
            HostTag::Member(answer) => {
                if let Some(is_member) = replies.and_then(|replies| replies.first()).and_then(Reply::int) {
                    // Who asked may have given up.
                    let _ = answer.send(is_member == 1);
                }
            }
            HostTag::Blocked(answer) => {
                if let Some(found) = replies.and_then(|replies| replies.first()).filter(|reply| reply.error().is_none()) {
                    // Who asked may have given up.
                    let _ = answer.send(found.list().iter().filter_map(Reply::text).map(str::to_owned).collect());
                }
            }
            HostTag::Said => {}
        }
    }

    /// This host has its lease now: the others are told, so that they need not wait until they look.
    pub(crate) fn announce(&mut self) {
        let call = Call::new("PUBLISH").arg(&self.host_channel).arg(self.fleet.hello().host.as_str());
        self.outcomes.push_back(Outcome::Request(HostTag::Said, call.into()));
    }

    /// What this host has sent, and heard of others.
    pub(crate) fn beats(&mut self) -> &mut Beats {
        &mut self.beats
    }

    /// Broadcasts of others that were missed, since the last call.
    pub(crate) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// This host's beat, to be published at this place among its words.
    pub(crate) fn beat<'u>(&self, uids: impl Iterator<Item = &'u str>) -> Call {
        Call::new("PUBLISH").arg(&self.host_channel).arg(self.beats.text(self.fleet.hello().host.as_str(), uids))
    }

    /// What is due.
    pub(crate) fn handle_timeouts(&mut self, now: Now) {
        if self.leases_ms <= now.ms() {
            self.leases_ms = now.ms() + self.lease_ms / LOOKS;
            let members = Call::new("SMEMBERS").arg(format!("{}:hosts", self.prefix));
            self.outcomes.push_back(Outcome::Request(HostTag::Members, members.into()));
        }
        if self.look_ms <= now.ms() {
            self.look_ms = now.ms() + LOOK_EVERY_MS;
            self.fleet.handle_timeouts(now.ms());
            self.take_outputs();
        }
    }

    /// When [`Self::handle_timeouts`] has something to do next, monotonic milliseconds.
    pub(crate) fn next_ms(&self) -> u64 {
        self.leases_ms.min(if self.fleet.is_idle() { u64::MAX } else { self.look_ms })
    }

    /// What is to be done outside.
    pub(crate) fn poll(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// The next order of the program; never, when it has gone.
    pub(crate) fn port(&mut self) -> &mut FleetPort {
        &mut self.port
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.fleet.poll_output() {
            self.outcomes.push_back(match output {
                Output::Publish { channel, text } => {
                    let channel = match channel {
                        Channel::Ask => self.ask_channel.clone(),
                        Channel::Answer(host) => format!("{}#answer#{host}#", self.prefix),
                    };
                    Outcome::Request(HostTag::Said, Call::new("PUBLISH").arg(channel).arg(text).into())
                }
                Output::Put { ask, question } => Outcome::Put(ask, question),
                Output::Note { ask, text } => Outcome::Notice(Notice::Note { ask, text }),
                Output::Told { ask, answers } if ask & OWN_ASK != 0 => Outcome::Told(ask, answers),
                Output::Told { ask, answers } => Outcome::Notice(Notice::HostAnswer { ask, answers }),
            });
        }
    }
}
