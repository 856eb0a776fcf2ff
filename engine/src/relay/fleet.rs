//! Who asked whom what: the questions of this host that other hosts answer, and those of other hosts that the shards here answer. It owns the
//! bookkeeping of both, has no socket and no clock (times are monotonic milliseconds that are passed in), and what it wants done is taken from
//! [`Fleet::poll_output`].
//!
//!     own order   -> Publish on the ask channel   -> the others' handle_ask -> Put / Note there
//!     their shards' answers -> handle_shard_answer -> Publish on our answer channel -> handle_answered -> Told
//!
//! A host that was expected to answer is told of exactly once for each question: when its answer is complete, when its lease is gone, when
//! the relay is down, or when the time is over. So nobody has to wait who could know better.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::handle::Order;
use super::words::{Answered, Ask, Cannot, Fault, Hello, HostId, Wish, answer_text};
use crate::limits::{FLEET_ANSWERS_BYTES_MAX, FLEET_ASKS_MAX, FLEET_ERRANDS_MAX, FLEET_MARGIN_MS, FLEET_PART_BYTES};
use crate::shard::parcel::{Answer, Question};

/// The first number that other hosts' questions have here. Bit 63 tells them from this host's own; bit 30 keeps the acknowledgement ids that clients
/// see, which are the lower 31 bits, apart from those of this host's own for a billion questions.
pub const FIRST_ERRAND: u64 = 1 << 63 | 1 << 30;

/// What one other host answered.
#[derive(Clone, Debug)]
pub struct HostAnswers {
    /// The host.
    pub host: HostId,
    /// One per shard that answered, or the one of its program.
    pub answers: Vec<Answer>,
    /// True exactly when nothing is missing in it.
    pub is_whole: bool,
}

/// A host that lives by its lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What it says of itself.
    pub hello: Hello,
    /// When its lease was last seen, milliseconds since 1970.
    pub seen_unix_ms: u64,
}

/// Where a text goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Channel {
    /// `{prefix}#ask#`: all hosts.
    Ask,
    /// `{prefix}#answer#{host}#`: this host.
    Answer(HostId),
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// A text is to be published.
    Publish {
        /// Where.
        channel: Channel,
        /// What, JSON.
        text: String,
    },
    /// A question of another host is to be put to the shards here, under this number; then [`Fleet::put`] is called, and
    /// [`Fleet::handle_shard_answer`] with each answer.
    Put {
        /// The number.
        ask: u64,
        /// What is asked.
        question: Question,
    },
    /// A question of another host's program for the program here ([`crate::Notice::Note`]); then [`Fleet::handle_reply`] is called.
    Note {
        /// The number.
        ask: u64,
        /// What it says.
        text: Arc<str>,
    },
    /// A host has answered, or will not ([`crate::Notice::HostAnswer`]).
    Told {
        /// The asker's number.
        ask: u64,
        /// What it answered.
        answers: HostAnswers,
    },
}

/// What went wrong, since the start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Own questions that were not asked because too many were under way, or one too long.
    pub unasked: u64,
    /// Questions of others that were refused because too many were under way.
    pub refused: u64,
    /// Questions of others that this host does not understand.
    pub not_understood: u64,
    /// Texts that are none of the words, or too long.
    pub malformed: u64,
    /// Answers that came when nobody waited for them any more.
    pub late: u64,
    /// Answers of shards that were too long to be sent, or that brought more than may be kept.
    pub too_long: u64,
    /// Hosts that were expected to answer and did not in time.
    pub silent: u64,
}

/// A question of this host.
#[derive(Debug)]
struct Own {
    deadline_ms: u64,
    /// What has come of each host that has not answered to its end.
    waiting: BTreeMap<HostId, Part>,
    bytes: usize,
}

#[derive(Default, Debug)]
struct Part {
    answers: Vec<Answer>,
    is_short: bool,
}

/// A question of another host.
#[derive(Debug)]
struct Errand {
    host: HostId,
    number: u64,
    deadline_ms: u64,
    /// Answers that may still come.
    pending: usize,
    /// Answers that will not.
    missing: usize,
    answers: Vec<Box<RawValue>>,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Fleet {
    own: Hello,
    others: BTreeMap<HostId, Seen>,
    asks: HashMap<u64, Own>,
    errands: HashMap<u64, Errand>,
    next: u64,
    outputs: VecDeque<Output>,
    counts: Counts,
}

impl Fleet {
    /// A host that knows no other yet.
    pub fn new(own: Hello) -> Fleet {
        Fleet {
            own,
            others: BTreeMap::new(),
            asks: HashMap::new(),
            errands: HashMap::new(),
            next: FIRST_ERRAND,
            outputs: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// What this host says of itself: the text of its lease.
    pub fn hello(&self) -> &Hello {
        &self.own
    }

    /// The other hosts that live, by id; what [`super::handle::FleetPort::set_hosts`] is to be given.
    pub fn others(&self) -> Vec<Seen> {
        self.others.values().cloned().collect()
    }

    /// What went wrong, since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is to be done next.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// True exactly when nobody waits for anything, so that [`Self::handle_timeouts`] need not be called.
    pub fn is_idle(&self) -> bool {
        self.asks.is_empty() && self.errands.is_empty()
    }

    /// All leases there are now. Whoever is no longer among them answers nothing any more.
    pub fn saw_hosts(&mut self, seen: impl IntoIterator<Item = Seen>) {
        self.others =
            seen.into_iter().filter(|seen| seen.hello.host != self.own.host).map(|seen| (seen.hello.host.clone(), seen)).collect();
        self.give_up();
    }

    /// The relay has lost its way to the others: nobody answers any more, and nobody is asked until hosts are seen again.
    pub fn lost(&mut self) {
        self.others.clear();
        self.give_up();
        // Those who asked have lost theirs too, or will ask anew.
        self.errands.clear();
    }

    /// This host's program asks others.
    pub fn ask(&mut self, now_ms: u64, order: Order) {
        let Order { ask, wish, to, expected, wait_ms } = order;
        let is_full = self.asks.len() >= FLEET_ASKS_MAX || self.asks.contains_key(&ask);
        let text = if is_full { Err(Fault::TooLong) } else { Ask::text(&self.own, ask, wait_ms, to, &wish) };
        let Ok(text) = text else {
            self.counts.unasked += 1;
            for host in expected.iter() {
                self.tell(ask, host.clone(), Part { is_short: true, ..Part::default() });
            }
            return;
        };
        // Also where nobody is expected: hosts that have just come do what it says.
        self.outputs.push_back(Output::Publish { channel: Channel::Ask, text });
        let (here, gone): (Vec<_>, Vec<_>) = expected.iter().cloned().partition(|host| self.others.contains_key(host));
        for host in gone {
            self.tell(ask, host, Part { is_short: true, ..Part::default() });
        }
        if !here.is_empty() {
            let waiting = here.into_iter().map(|host| (host, Part::default())).collect();
            self.asks.insert(ask, Own { deadline_ms: now_ms.saturating_add(wait_ms), waiting, bytes: 0 });
        }
    }

    /// A text came on the ask channel.
    pub fn handle_ask(&mut self, now_ms: u64, text: &str) {
        let Ok(ask) = Ask::parse(text) else {
            self.counts.malformed += 1;
            return;
        };
        // What this host asked comes to itself as well.
        if ask.host == self.own.host || ask.to.as_ref().is_some_and(|to| *to != self.own.host) {
            return;
        }
        let wish = match ask.wish(&self.own) {
            Ok(Some(wish)) => wish,
            Ok(None) => return self.answer_at_once(&ask, None),
            Err(_) => {
                self.counts.not_understood += 1;
                return self.answer_at_once(&ask, Some(Cannot::Understand));
            }
        };
        if self.errands.len() >= FLEET_ERRANDS_MAX {
            self.counts.refused += 1;
            return self.answer_at_once(&ask, Some(Cannot::Busy));
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1) | 1 << 63;
        let pending = if matches!(wish, Wish::Program(_)) { 1 } else { self.own.shards };
        let deadline_ms = now_ms.saturating_add(ask.wait_ms.saturating_sub(FLEET_MARGIN_MS));
        let errand = Errand { host: ask.host, number: ask.number, deadline_ms, pending, missing: 0, answers: Vec::new(), bytes: 0 };
        self.errands.insert(number, errand);
        self.outputs.push_back(match wish {
            Wish::Shards(question) => Output::Put { ask: number, question },
            Wish::Program(text) => Output::Note { ask: number, text },
        });
    }

    /// So many shards have taken a question that was to be put. Those that have not will not answer.
    pub fn put(&mut self, ask: u64, shards: usize) {
        let Some(errand) = self.errands.get_mut(&ask) else { return };
        let missed = self.own.shards.saturating_sub(shards).min(errand.pending);
        errand.pending -= missed;
        errand.missing += missed;
        self.finish_errand(ask);
    }

    /// A shard here has answered another host's question.
    pub fn handle_shard_answer(&mut self, ask: u64, mut answer: Answer) {
        let Some(errand) = self.errands.get_mut(&ask) else {
            self.counts.late += 1;
            return;
        };
        errand.pending = errand.pending.saturating_sub(1);
        match answer_text(&mut answer) {
            Ok(text) => {
                if !errand.answers.is_empty() && errand.bytes + text.get().len() > FLEET_PART_BYTES {
                    self.publish_part(ask, true);
                }
                if let Some(errand) = self.errands.get_mut(&ask) {
                    errand.bytes += text.get().len();
                    errand.answers.push(text);
                }
            }
            Err(_) => {
                errand.missing += 1;
                self.counts.too_long += 1;
            }
        }
        self.finish_errand(ask);
    }

    /// The program here has answered another host's program.
    pub fn handle_reply(&mut self, ask: u64, text: Arc<str>) {
        self.handle_shard_answer(ask, Answer::Program(text));
    }

    /// A text came on this host's answer channel.
    pub fn handle_answered(&mut self, text: &str) {
        let Ok(answered) = Answered::parse(text) else {
            self.counts.malformed += 1;
            return;
        };
        let Some(own) = self.asks.get_mut(&answered.number) else {
            self.counts.late += 1;
            return;
        };
        let Some(part) = own.waiting.get_mut(&answered.host) else {
            self.counts.late += 1;
            return;
        };
        part.is_short |= answered.missing > 0 || answered.cannot.is_some();
        for raw in &answered.answers {
            own.bytes += raw.get().len();
            if own.bytes > FLEET_ANSWERS_BYTES_MAX {
                part.is_short = true;
                self.counts.too_long += 1;
                continue;
            }
            match answered.answer(raw, &self.own) {
                Ok(answer) => part.answers.push(answer),
                Err(_) => {
                    part.is_short = true;
                    self.counts.not_understood += 1;
                }
            }
        }
        if answered.more {
            return;
        }
        let part = own.waiting.remove(&answered.host).unwrap_or_default();
        if own.waiting.is_empty() {
            self.asks.remove(&answered.number);
        }
        self.tell(answered.number, answered.host, part);
    }

    /// Ends what has waited long enough. It looks at all there is, so that it is called every 50 ms or so and not for each deadline.
    pub fn handle_timeouts(&mut self, now_ms: u64) {
        let over: Vec<u64> = self.errands.iter().filter(|(_, errand)| errand.deadline_ms <= now_ms).map(|(ask, _)| *ask).collect();
        for ask in over {
            if let Some(errand) = self.errands.get_mut(&ask) {
                errand.missing += std::mem::take(&mut errand.pending);
            }
            self.finish_errand(ask);
        }
        let over: Vec<u64> = self.asks.iter().filter(|(_, own)| own.deadline_ms <= now_ms).map(|(ask, _)| *ask).collect();
        for ask in over {
            let Some(own) = self.asks.remove(&ask) else { continue };
            for (host, part) in own.waiting {
                self.counts.silent += 1;
                self.tell(ask, host, Part { is_short: true, ..part });
            }
        }
    }

    /// Hosts that live no more will not answer.
    fn give_up(&mut self) {
        let (others, mut told) = (&self.others, Vec::new());
        self.asks.retain(|ask, own| {
            let gone: Vec<HostId> = own.waiting.keys().filter(|host| !others.contains_key(host)).cloned().collect();
            for host in gone {
                let part = own.waiting.remove(&host).unwrap_or_default();
                told.push((*ask, host, Part { is_short: true, ..part }));
            }
            !own.waiting.is_empty()
        });
        for (ask, host, part) in told {
            self.counts.silent += 1;
            self.tell(ask, host, part);
        }
    }

    fn tell(&mut self, ask: u64, host: HostId, part: Part) {
        let answers = HostAnswers { host, answers: part.answers, is_whole: !part.is_short };
        self.outputs.push_back(Output::Told { ask, answers });
    }

    /// Nothing, and why.
    fn answer_at_once(&mut self, ask: &Ask, cannot: Option<Cannot>) {
        let (own, host) = (&self.own, ask.host.clone());
        let answered = Answered {
            v: own.v,
            host: own.host.clone(),
            number: ask.number,
            more: false,
            missing: 0,
            cannot,
            endpoints: own.endpoints.clone(),
            answers: Vec::new(),
        };
        self.outputs.push_back(Output::Publish { channel: Channel::Answer(host), text: answered.text() });
    }

    /// Sends the last part, if nothing more comes.
    fn finish_errand(&mut self, ask: u64) {
        if self.errands.get(&ask).is_some_and(|errand| errand.pending == 0) {
            self.publish_part(ask, false);
            self.errands.remove(&ask);
        }
    }

    fn publish_part(&mut self, ask: u64, more: bool) {
        let Some(errand) = self.errands.get_mut(&ask) else { return };
        errand.bytes = 0;
        let answered = Answered {
            v: self.own.v,
            host: self.own.host.clone(),
            number: errand.number,
            more,
            missing: if more { 0 } else { errand.missing },
            cannot: None,
            endpoints: self.own.endpoints.clone(),
            answers: std::mem::take(&mut errand.answers),
        };
        let channel = Channel::Answer(errand.host.clone());
        self.outputs.push_back(Output::Publish { channel, text: answered.text() });
    }
}
