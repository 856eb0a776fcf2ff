//! Who asked whom what: the questions of this host that other hosts answer, and those of other hosts that the shards here answer. It owns the
//! bookkeeping of both, has no socket and no clock (times are monotonic milliseconds that are passed in), and what it wants done is taken from
//! [`Fleet::poll_output`].
//!
//! ```text
//! own order   -> Publish on the ask channel   -> the others' handle_ask -> Put / Note there
//! their shards' answers -> handle_shard_answer -> Publish on our answer channel -> handle_answered -> Told
//! ```
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
        let Order { ask, wish, to, expected, wait_ms, has_peers: _ } = order;
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::ids::{EndpointId, ShardId, Sid};
    use crate::limits::FLEET_ANSWER_MS;
    use crate::shard::parcel::{ConnectionInfo, Emit, Emitted, Selection, Target};
    use crate::shard::room_calls::{RoomAnswer, RoomCall};

    /// A host and what it was asked to do but with texts, which are delivered.
    struct Host {
        fleet: Fleet,
        todo: Vec<Output>,
    }

    fn hello(number: u64, endpoints: &[&str]) -> Hello {
        Hello::new(HostId::new(number), 2, "0.1.0", endpoints.iter().map(|name| (*name).to_owned()))
    }

    /// Hosts of two shards each that know each other; their endpoints are not in the same order.
    fn hosts(endpoints: &[&[&str]]) -> Vec<Host> {
        let hellos: Vec<Hello> = endpoints.iter().zip(1..).map(|(names, number)| hello(number, names)).collect();
        let seen: Vec<Seen> = hellos.iter().map(|hello| Seen { hello: hello.clone(), seen_unix_ms: 1 }).collect();
        let host = |own| {
            let mut fleet = Fleet::new(own);
            fleet.saw_hosts(seen.clone());
            Host { fleet, todo: Vec::new() }
        };
        hellos.into_iter().map(host).collect()
    }

    /// Delivers texts until there are none.
    fn settle(hosts: &mut [Host], now_ms: u64) {
        loop {
            let mut texts = Vec::new();
            for host in hosts.iter_mut() {
                while let Some(output) = host.fleet.poll_output() {
                    match output {
                        Output::Publish { channel, text } => texts.push((channel, text)),
                        other => host.todo.push(other),
                    }
                }
            }
            if texts.is_empty() {
                return;
            }
            for (channel, text) in texts {
                for host in hosts.iter_mut() {
                    match &channel {
                        Channel::Ask => host.fleet.handle_ask(now_ms, &text),
                        Channel::Answer(to) if *to == host.fleet.own.host => host.fleet.handle_answered(&text),
                        Channel::Answer(_) => {}
                    }
                }
            }
        }
    }

    fn ask(host: &mut Host, number: u64, wish: Wish, to: Option<HostId>) {
        let expected = host.fleet.others.keys().filter(|id| to.as_ref().is_none_or(|to| to == *id)).cloned().collect();
        let wait_ms = FLEET_ANSWER_MS + wish.wait_ms();
        host.fleet.ask(0, Order { ask: number, wish, to, expected, has_peers: false, wait_ms });
    }

    fn put(host: &mut Host) -> (u64, Question) {
        let Some(Output::Put { ask, question }) = host.todo.pop() else { panic!("{:?}", host.todo) };
        assert!(host.todo.is_empty(), "{:?}", host.todo);
        host.fleet.put(ask, 2);
        (ask, question)
    }

    fn told(host: &mut Host) -> (u64, HostAnswers) {
        let Some(Output::Told { ask, answers }) = host.todo.pop() else { panic!("{:?}", host.todo) };
        (ask, answers)
    }

    fn closed(count: u64) -> Answer {
        Answer::Closed(count)
    }

    fn close(user: &str, endpoint: Option<u8>) -> Wish {
        Wish::Shards(Question::CloseUser { endpoint: endpoint.map(EndpointId), user: user.into(), reason: None })
    }

    #[test]
    fn what_one_asks_the_others_answer_shard_by_shard() {
        let mut hosts = hosts(&[&["a", "b"], &["b", "a"], &["a"]]);
        ask(&mut hosts[0], 7, close("al\"ice\u{1}", Some(1)), None);
        settle(&mut hosts, 0);
        let (number, question) = put(&mut hosts[1]);
        assert_eq!(number, FIRST_ERRAND);
        let Question::CloseUser { endpoint, user, .. } = question else { panic!("{question:?}") };
        assert_eq!((endpoint, user.as_str()), (Some(EndpointId(0)), "al\"ice\u{1}"), "by name");
        assert!(hosts[2].todo.is_empty(), "it has no such endpoint");
        hosts[1].fleet.handle_shard_answer(number, closed(3));
        settle(&mut hosts, 10);
        // Who has no such endpoint has nothing, and that is whole.
        let (ask, answers) = told(&mut hosts[0]);
        assert_eq!((ask, answers.host, answers.is_whole, answers.answers.len()), (7, HostId::new(3), true, 0));
        assert!(hosts[0].todo.is_empty(), "one shard is silent yet");
        hosts[1].fleet.handle_shard_answer(number, closed(4));
        settle(&mut hosts, 20);
        let (_, answers) = told(&mut hosts[0]);
        assert!(matches!(answers.answers[..], [Answer::Closed(3), Answer::Closed(4)]) && answers.is_whole, "{answers:?}");
        assert!(hosts.iter().all(|host| host.fleet.is_idle() && host.fleet.counts() == Counts::default()));
    }

    #[test]
    fn who_is_silent_is_told_of_once_with_what_came() {
        let mut hosts = hosts(&[&["a"], &["a"]]);
        ask(&mut hosts[0], 7, close("a", None), None);
        settle(&mut hosts, 0);
        let (number, _) = put(&mut hosts[1]);
        hosts[1].fleet.handle_shard_answer(number, closed(3));
        hosts[1].fleet.handle_timeouts(FLEET_ANSWER_MS - FLEET_MARGIN_MS - 1);
        settle(&mut hosts, 0);
        assert!(hosts[0].todo.is_empty());
        hosts[1].fleet.handle_timeouts(FLEET_ANSWER_MS - FLEET_MARGIN_MS);
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert!(matches!(answers.answers[..], [Answer::Closed(3)]) && !answers.is_whole, "{answers:?}");
        hosts[1].fleet.handle_shard_answer(number, closed(4));
        assert_eq!(hosts[1].fleet.counts().late, 1);

        // Nobody is there at all: the asker's own time.
        ask(&mut hosts[0], 8, close("a", None), None);
        while hosts[0].fleet.poll_output().is_some() {}
        hosts[0].fleet.handle_timeouts(FLEET_ANSWER_MS - 1);
        assert!(hosts[0].fleet.poll_output().is_none());
        hosts[0].fleet.handle_timeouts(FLEET_ANSWER_MS);
        settle(&mut hosts, 0);
        let (ask, answers) = told(&mut hosts[0]);
        assert_eq!((ask, answers.is_whole, hosts[0].fleet.counts().silent), (8, false, 1));
        assert!(hosts[0].fleet.is_idle());
    }

    #[test]
    fn a_host_that_is_gone_and_a_relay_that_is_down_are_not_waited_for() {
        let mut hosts = hosts(&[&["a"], &["a"], &["a"]]);
        ask(&mut hosts[0], 7, close("a", None), None);
        let third = hosts[0].fleet.others().into_iter().filter(|seen| seen.hello.host == HostId::new(3)).collect::<Vec<_>>();
        hosts[0].fleet.saw_hosts(third.clone());
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert_eq!((answers.host, answers.is_whole), (HostId::new(2), false));
        hosts[0].fleet.lost();
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert_eq!((answers.host, answers.is_whole), (HostId::new(3), false));
        assert!(hosts[0].fleet.others().is_empty() && hosts[0].fleet.is_idle());
        // An order that was under way to the relay meanwhile.
        let order = Order { ask: 9, wish: close("a", None), to: None, expected: [HostId::new(3)].into(), has_peers: false, wait_ms: 1 };
        hosts[0].fleet.ask(0, order);
        let mut outputs = std::iter::from_fn(|| hosts[0].fleet.poll_output());
        assert!(outputs.any(|output| matches!(output, Output::Told { ask: 9, .. })));
    }

    #[test]
    fn programs_talk_and_one_host_can_be_asked_alone() {
        let mut hosts = hosts(&[&["a"], &["a"], &["a"]]);
        ask(&mut hosts[0], 7, Wish::Program("{\"x\":1}".into()), Some(HostId::new(3)));
        settle(&mut hosts, 0);
        assert!(hosts[1].todo.is_empty());
        let Some(Output::Note { ask, text }) = hosts[2].todo.pop() else { panic!("{:?}", hosts[2].todo) };
        assert_eq!(&*text, "{\"x\":1}");
        hosts[2].fleet.handle_reply(ask, "yes".into());
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert!(matches!(&answers.answers[..], [Answer::Program(text)] if &**text == "yes"), "{answers:?}");
    }

    #[test]
    fn what_a_newer_host_says_is_answered_and_counted() {
        let mut hosts = hosts(&[&["a"], &["a"]]);
        let envelope = |wish: &str| {
            format!(r#"{{"v":2,"host":"0000000000000001","number":5,"wait_ms":1000,"endpoints":["a"],"new":[1],"wish":{wish}}}"#)
        };
        let expected =
            Order { ask: 5, wish: close("a", None), to: None, expected: [HostId::new(2)].into(), has_peers: false, wait_ms: 1_000 };
        hosts[0].fleet.ask(0, expected);
        while hosts[0].fleet.poll_output().is_some() {}
        hosts[1].fleet.handle_ask(0, &envelope(r#"{"Shards":{"Levitate":{"height":3}}}"#));
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert_eq!((answers.is_whole, answers.answers.len(), hosts[1].fleet.counts().not_understood), (false, 0, 1));

        // What is only added is passed over, and so is a reason that nobody knows yet.
        hosts[1].fleet.handle_ask(0, &envelope(r#"{"Shards":{"Connection":{"id":"AAAAAAAAAAAAAAAAAAAA","colour":"red"}}}"#));
        let outputs: Vec<_> = std::iter::from_fn(|| hosts[1].fleet.poll_output()).collect();
        assert!(matches!(outputs[..], [Output::Put { question: Question::Connection { .. }, .. }]), "{outputs:?}");
        let order = Order { ask: 5, wish: close("a", None), to: None, expected: [HostId::new(2)].into(), has_peers: false, wait_ms: 1_000 };
        hosts[0].fleet.ask(0, order);
        while hosts[0].fleet.poll_output().is_some() {}
        let answered =
            r#"{"v":2,"host":"0000000000000002","number":5,"cannot":"Asleep","endpoints":["a"],"answers":[{"Floats":1},{"Closed":2}]}"#;
        hosts[0].fleet.handle_answered(answered);
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert!(matches!(answers.answers[..], [Answer::Closed(2)]) && !answers.is_whole, "{answers:?}");

        let before = hosts[1].fleet.counts().malformed;
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let bad = ["", "null", "{}", "{\"v\":1}", "\u{0}", &deep, &envelope("1").replace("0000000000000001", "nobody")];
        for text in bad {
            hosts[1].fleet.handle_ask(0, text);
            hosts[1].fleet.handle_answered(text);
        }
        assert_eq!(hosts[1].fleet.counts().malformed, before + 2 * bad.len() as u64);
        hosts[1].fleet.handle_ask(0, &envelope(&deep));
        assert_eq!(hosts[1].fleet.counts().not_understood, 2, "nested deeper than anything is read");
    }

    #[test]
    fn what_would_be_spliced_into_messages_must_be_json() {
        let mut hosts = hosts(&[&["a"], &["a"]]);
        let text = |change: &str| {
            let revise = format!(
                r#"{{"endpoint":0,"id":"00000000-0000-7000-8000-000000000000","by":"u","blocked":["z","b"],"change":{{"Edit":{change}}}}}"#
            );
            format!(
                r#"{{"v":1,"host":"0000000000000001","number":5,"wait_ms":1,"endpoints":["a"],"wish":{{"Shards":{{"Revise":{revise}}}}}}}"#
            )
        };
        hosts[1].fleet.handle_ask(0, &text(r#""\"x\"},{""#));
        assert!(matches!(hosts[1].fleet.poll_output(), Some(Output::Publish { .. })));
        assert_eq!(hosts[1].fleet.counts().not_understood, 1);
        hosts[1].fleet.handle_ask(0, &text(r#""\"x\"""#));
        let Some(Output::Put { question: Question::Revise(revision), .. }) = hosts[1].fleet.poll_output() else { panic!("it is sound") };
        assert!(revision.by.has_blocked("b") && revision.by.has_blocked("z") && !revision.by.has_blocked("x"));
    }

    #[test]
    fn bounds_hold_and_are_counted() {
        let mut hosts = hosts(&[&["a"], &["a"]]);
        let emit = |args: String| {
            let to = Selection::of(EndpointId(0), vec![Target::all()]);
            let emit = Emit { ack_ms: Some(5), ..Emit::new(to, "e", &args, u64::MAX, 0) };
            Wish::Shards(Question::Emit(Arc::new(emit)))
        };
        ask(&mut hosts[0], 1, emit("x".repeat(crate::limits::FLEET_ASK_BYTES_MAX)), None);
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert_eq!((answers.is_whole, hosts[0].fleet.counts().unasked), (false, 1));

        ask(&mut hosts[0], 2, emit("1".to_owned()), None);
        settle(&mut hosts, 0);
        let (number, question) = put(&mut hosts[1]);
        assert!(
            matches!(&question, Question::Emit(emit) if emit.offset == u64::MAX.into() && emit.args == "1" && emit.is_elsewhere),
            "{question:?}"
        );
        // Acknowledgements that are too long are counted all the same; what is only long comes in parts.
        let long = || vec!["x".repeat(crate::limits::FLEET_ANSWER_BYTES_MAX)];
        hosts[1].fleet.handle_shard_answer(number, Answer::Emitted(Emitted { recipients: 3, acks: 2, answers: long() }));
        let half = vec!["x".repeat(FLEET_PART_BYTES)];
        hosts[1].fleet.handle_shard_answer(number, Answer::Emitted(Emitted { recipients: 1, acks: 1, answers: half }));
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        let acks: Vec<_> =
            answers.answers.iter().map(|it| if let Answer::Emitted(it) = it { (it.acks, it.answers.len()) } else { (0, 0) }).collect();
        assert_eq!((acks, answers.is_whole), (vec![(2, 0), (1, 1)], true));

        // Of a page of large messages as many go as fit, and one always.
        let room = || crate::ids::Room::named(EndpointId(0), "r");
        ask(&mut hosts[0], 3, Wish::Shards(Question::Room(RoomCall::Messages { room: room(), skip: 0, limit: 5 })), None);
        settle(&mut hosts, 0);
        let (number, _) = put(&mut hosts[1]);
        let large: Arc<str> = "x".repeat(crate::limits::FLEET_MESSAGES_BYTES_MAX + 1).into();
        hosts[1].fleet.handle_shard_answer(number, Answer::Room(RoomAnswer::Messages(vec![large.clone(), large])));
        hosts[1].fleet.handle_shard_answer(number, Answer::Room(RoomAnswer::Elsewhere));
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        assert!(matches!(&answers.answers[0], Answer::Room(RoomAnswer::Messages(messages)) if messages.len() == 1));

        for number in 0..FLEET_ASKS_MAX as u64 {
            ask(&mut hosts[0], 1_000 + number, close("a", None), None);
        }
        ask(&mut hosts[0], 10, close("a", None), None);
        assert_eq!((hosts[0].fleet.asks.len(), hosts[0].fleet.counts().unasked), (FLEET_ASKS_MAX, 2));
        hosts[0].fleet.handle_timeouts(FLEET_ANSWER_MS);
        assert!(hosts[0].fleet.is_idle());
        for number in 0..=FLEET_ERRANDS_MAX as u64 {
            let text = Ask::text(&hello(1, &["a"]), number, 1_000, None, &close("a", None)).expect("short");
            hosts[1].fleet.handle_ask(0, &text);
        }
        assert_eq!((hosts[1].fleet.errands.len(), hosts[1].fleet.counts().refused), (FLEET_ERRANDS_MAX, 1));
    }

    #[test]
    fn connections_keep_all_that_is_known_of_them() {
        let mut hosts = hosts(&[&["a", "b"], &["x", "b"]]);
        ask(&mut hosts[0], 1, Wish::Shards(Question::Connection { id: Sid::new(ShardId(0), 1, [1; 11]) }), None);
        settle(&mut hosts, 0);
        let (number, _) = put(&mut hosts[1]);
        let info = |endpoint| ConnectionInfo {
            id: Sid::new(ShardId(9), 1, [1; 11]),
            endpoint: EndpointId(endpoint),
            user: "u\u{7f}é".into(),
            username: Some("\"".into()),
            email: None,
            client_id: Some("c".into()),
            connected_unix_ms: 1_704_067_200_000,
            rooms: vec!["r".into()],
            metadata: Some(r#"{"n":1e400}"#.into()),
            address: SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 5)),
            transport: "polling",
        };
        hosts[1].fleet.handle_shard_answer(number, Answer::Connections(vec![info(1), info(0)]));
        hosts[1].fleet.handle_shard_answer(number, Answer::Connections(Vec::new()));
        settle(&mut hosts, 0);
        let (_, answers) = told(&mut hosts[0]);
        let Answer::Connections(list) = &answers.answers[0] else { panic!("{answers:?}") };
        assert_eq!(format!("{:?}", list[0]), format!("{:?}", info(1)));
        assert_eq!(list[1].endpoint, EndpointId::UNKNOWN, "it stays in the list");
    }
}
