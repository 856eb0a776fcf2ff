//! Questions to a running engine and what its shards, and the other hosts of its fleet, answer, gathered: for the threads of the program that embeds it,
//! blocking or as a future of any runtime. It owns the questions under way, and knows of a question and of an answer nothing but the number. Its one lock is
//! held for a few instructions, and no shard ever takes it.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::ids::ShardId;
use crate::relay::fleet::HostAnswers;
use crate::relay::handle::Others;
use crate::relay::words::{HostId, Wish};
use crate::shard::parcel::{Answer, ConnectionInfo, Emitted, Question};
use crate::{Engine, Notice, Notices};

/// Questions under way: as many as there are [`Asked`]s, which those who ask hold. One thread of the program runs [`Self::run`]; any number
/// of others ask.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use engine::config::{Config, DialectKind, Endpoint};
/// use engine::{Calls, Notice, Question};
///
/// let rooms = Endpoint::new("rooms", DialectKind::Rooms, "/");
/// let (engine, notices) = engine::start(Config::new(([127, 0, 0, 1], 0), 2, vec![rooms]))?;
/// let calls = Arc::new(Calls::default());
/// let (told, drained) = std::sync::mpsc::channel();
/// let taker = std::thread::spawn({
///     let calls = calls.clone();
///     move || {
///         calls.run(&notices, |notice| match notice {
///             Notice::Drained { shard } => drop(told.send(shard)),
///             // Plain HTTP on the public port; the drop of the socket closes it.
///             Notice::Handover(_) => {}
///             other => unreachable!("kept by run: {other:?}"),
///         })
///     }
/// });
///
/// let everybody = Question::Connections { endpoint: None, user: None, room: None, after: None, limit: 100 };
/// let gathered = calls.ask(&engine, &everybody).within(Duration::from_secs(1));
/// assert_eq!((gathered.missing, gathered.connections().len()), (0, 0));
///
/// engine.drain(Duration::from_secs(1));
/// for _ in 0..engine.stats().len() {
///     drained.recv().expect("each shard tells once");
/// }
/// engine.join();
/// taker.join().expect("it does not panic")?; // no shard was lost
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default, Debug)]
pub struct Calls {
    waiting: Mutex<HashMap<u64, Gathering>>,
    next: AtomicU64,
}

/// One question whose answers are being gathered.
#[derive(Debug)]
struct Gathering {
    gathered: Gathered,
    /// Other hosts that have not been told of; `None` until it is known how many are asked.
    hosts: Option<usize>,
    /// Woken when nothing is missing any more.
    waker: Option<Waker>,
}

impl Gathering {
    fn is_done(&self) -> bool {
        self.gathered.missing == 0 && self.hosts.is_some_and(|hosts| self.gathered.hosts.len() >= hosts)
    }
}

/// A thread of the engine has ended although nobody stopped it; see [`Notice::ShardLost`] and [`Notice::RelayLost`].
#[derive(Debug, thiserror::Error)]
pub enum EngineLost {
    /// A shard's.
    #[error("shard {} ended by itself: {reason}", .shard.0)]
    Shard {
        /// The shard.
        shard: ShardId,
        /// What it ended with.
        reason: io::Error,
    },
    /// The relay's.
    #[error("the relay ended by itself: {reason}")]
    Relay {
        /// What it ended with.
        reason: io::Error,
    },
}

impl Calls {
    /// Takes the engine's notices until it is gone: gives answers to those who wait for them and everything else to `rest`, which must not
    /// wait for anything, an answer least of all. `drop` is a good `rest` for who does not care: it closes plain HTTP connections and
    /// refuses what the back end is asked ([`Notice::Inquiry`]).
    ///
    /// # Errors
    /// When a thread of the engine is lost. It returns at once then; nobody gets an answer any more.
    pub fn run(&self, notices: &Notices, mut rest: impl FnMut(Notice)) -> Result<(), EngineLost> {
        for notice in notices {
            match notice {
                Notice::Answer { ask, answer, .. } => self.deliver(ask, answer),
                Notice::HostAnswer { ask, answers } => self.deliver_host(ask, answers),
                Notice::ShardLost { shard, reason } => return Err(EngineLost::Shard { shard, reason }),
                Notice::RelayLost { reason } => return Err(EngineLost::Relay { reason }),
                other => rest(other),
            }
        }
        Ok(())
    }

    /// Asks all shards and, where the question concerns them ([`Question::scope`]), the other hosts of the fleet. Questions reach each of them
    /// in the order in which they were asked.
    pub fn ask(&self, engine: &Engine, question: &Question) -> Asked<'_> {
        // Whom it did not reach does not answer.
        self.begin_with_hosts(engine.stats().len(), |ask| engine.ask(ask, question).others)
    }

    /// Asks nobody but other hosts: all, or this one.
    pub fn ask_hosts(&self, engine: &Engine, wish: Wish, to: Option<&HostId>) -> Asked<'_> {
        self.begin_with_hosts(0, |ask| engine.fleet().map(|fleet| fleet.ask(ask, wish, to)).unwrap_or_default())
    }

    /// The same where somebody else puts the question to so many shards, under the number that is given to him.
    pub fn begin(&self, shards: usize, put: impl FnOnce(u64)) -> Asked<'_> {
        self.begin_with_hosts(shards, |ask| {
            put(ask);
            Others::default()
        })
    }

    /// Of a process that was reloaded so often: what other hosts answer late to what it asked before is no answer to what it asks now.
    pub fn of_generation(generation: u64) -> Calls {
        Calls { next: AtomicU64::new((generation & 0xff_ffff) << 32), ..Calls::default() }
    }

    /// The same where he also puts it to other hosts, and says to how many.
    pub fn begin_with_hosts(&self, shards: usize, put: impl FnOnce(u64) -> Others) -> Asked<'_> {
        let ask = self.next.fetch_add(1, Relaxed);
        let gathered = Gathered { answers: Vec::with_capacity(shards), missing: shards, ..Gathered::default() };
        self.lock().insert(ask, Gathering { gathered, hosts: None, waker: None });
        let asked = Asked { calls: self, ask, shards };
        let Others { asked: hosts, unasked } = put(ask);
        if let Some(question) = self.lock().get_mut(&ask) {
            question.hosts = Some(hosts);
            question.gathered.hosts_missing = hosts + unasked;
            // Some may have answered already.
            let whole = question.gathered.hosts.iter().filter(|host| host.is_whole).count();
            question.gathered.hosts_missing -= whole.min(hosts);
        }
        asked
    }

    /// Takes one shard's answer. One that nobody waits for any more is dropped.
    pub fn deliver(&self, ask: u64, answer: Answer) {
        self.take(ask, |gathered, _| {
            gathered.answers.push(answer);
            gathered.missing = gathered.missing.saturating_sub(1);
        });
    }

    /// Takes another host's answers, or that there will be none.
    pub fn deliver_host(&self, ask: u64, answers: HostAnswers) {
        self.take(ask, |gathered, is_known| {
            if is_known && answers.is_whole {
                gathered.hosts_missing = gathered.hosts_missing.saturating_sub(1);
            }
            gathered.hosts.push(answers);
        });
    }

    fn take(&self, ask: u64, add: impl FnOnce(&mut Gathered, bool)) {
        let waker = {
            let mut waiting = self.lock();
            let Some(question) = waiting.get_mut(&ask) else { return };
            add(&mut question.gathered, question.hosts.is_some());
            let is_done = question.is_done();
            question.waker.take_if(|_| is_done)
        };
        // Without the lock: a waker is somebody else's code.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// True exactly when no question is under way.
    pub fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Gathering>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that has been asked. As a future it is ready when all have answered, for which whoever awaits it needs a deadline:
/// what has come by then is [`Self::gathered`]. Dropped, it is forgotten, and answers that still come are too.
#[must_use]
#[derive(Debug)]
pub struct Asked<'a> {
    calls: &'a Calls,
    ask: u64,
    shards: usize,
}

impl Asked<'_> {
    /// Blocks until all shards have answered, at most so long. A shard that lives answers within milliseconds, but an emit for which
    /// acknowledgements are wanted only when the last has come or [`crate::Emit::ack_ms`] is over: wait a second longer than that.
    pub fn within(mut self, wait: Duration) -> Gathered {
        let deadline = Instant::now().checked_add(wait);
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        while Pin::new(&mut self).poll(&mut cx).is_pending() {
            // A time beyond all clocks is no deadline.
            let Some(deadline) = deadline else {
                std::thread::park();
                continue;
            };
            match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => break,
                left => std::thread::park_timeout(left),
            }
        }
        self.gathered()
    }

    /// How many shards have answered until now, here and on other hosts.
    pub fn answered(&self) -> usize {
        self.calls.lock().get(&self.ask).map_or(0, |question| question.gathered.all().count())
    }

    /// What has been answered until now.
    pub fn gathered(self) -> Gathered {
        let question = self.calls.lock().remove(&self.ask);
        question.map_or(Gathered { missing: self.shards, ..Gathered::default() }, |it| it.gathered)
    }
}

impl Future for Asked<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.calls.lock().get_mut(&self.ask).filter(|question| !question.is_done()) {
            Some(question) => {
                question.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.calls.lock().remove(&self.ask);
    }
}

/// Wakes a thread that blocks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What was answered in time.
#[must_use]
#[derive(Default, Debug)]
pub struct Gathered {
    /// One per shard of this host that answered, in the order of their coming.
    pub answers: Vec<Answer>,
    /// Shards of this host that did not; what they would have said is not in the sums.
    pub missing: usize,
    /// One per other host that was told of, in the order of their coming.
    pub hosts: Vec<HostAnswers>,
    /// Other hosts that live and of which something is missing in the sums. An answer is whole exactly when both are 0.
    pub hosts_missing: usize,
}

impl Gathered {
    /// The answers of all shards, this host's first.
    pub fn all(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().chain(self.hosts.iter().flat_map(|host| &host.answers))
    }

    /// The same, to be kept.
    pub fn into_all(self) -> impl Iterator<Item = Answer> {
        self.answers.into_iter().chain(self.hosts.into_iter().flat_map(|host| host.answers))
    }

    /// The connections of [`Question::Connections`] and [`Question::Connection`], in the order of their ids' texts. Each shard has given up
    /// to `limit` of its own: the first `limit` of these are a page, and the last id of a page is `after` of the next.
    pub fn connections(self) -> Vec<ConnectionInfo> {
        let lists = self.into_all().filter_map(|answer| if let Answer::Connections(list) = answer { Some(list) } else { None });
        let mut found: Vec<ConnectionInfo> = lists.flatten().collect();
        found.sort_unstable_by_key(|info| info.id.text());
        found
    }

    /// How many connections [`Question::CloseConnection`], [`Question::CloseUser`] and [`Question::Disconnect`] have ended.
    pub fn closed(&self) -> u64 {
        self.all().map(|answer| if let Answer::Closed(count) = answer { *count } else { 0 }).sum()
    }

    /// What became of [`Question::Emit`].
    pub fn emitted(self) -> Emitted {
        let here = self.into_all().filter_map(|answer| if let Answer::Emitted(here) = answer { Some(here) } else { None });
        here.fold(Emitted::default(), |mut sum, here| {
            sum.recipients += here.recipients;
            sum.acks += here.acks;
            sum.answers.extend(here.answers);
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far more than any wait of these tests needs.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn an_answer_is_whole_when_every_shard_spoke_and_partial_after_the_wait() {
        let calls = Calls::default();
        std::thread::scope(|scope| {
            let asked = calls.begin(2, |ask| {
                scope.spawn({
                    let calls = &calls;
                    move || (1..=2).for_each(|count| calls.deliver(ask, Answer::Closed(count)))
                });
            });
            let gathered = asked.within(PATIENCE);
            assert_eq!((gathered.missing, gathered.closed()), (0, 3));
        });
        let gathered = calls.begin(2, |ask| calls.deliver(ask, Answer::Closed(7))).within(Duration::from_millis(20));
        assert_eq!((gathered.missing, gathered.closed()), (1, 7));
        assert!(calls.is_idle(), "nothing is left behind");
    }

    #[test]
    fn a_dropped_question_and_a_late_answer_leave_nothing_behind() {
        let calls = Calls::default();
        drop(calls.begin(1, |_| {}));
        assert!(calls.is_idle());
        calls.deliver(0, Answer::Closed(1));
        assert!(calls.is_idle());
        assert_eq!(calls.begin(1, |ask| assert_eq!(ask, 1, "a number is used once")).gathered().missing, 1);
    }

    #[test]
    fn answers_find_who_asked_and_the_rest_is_passed_on_until_a_shard_is_lost() {
        let calls = Calls::default();
        let (notices, told) = crossbeam_channel::unbounded();
        let (first, second) = (calls.begin(1, |_| {}), calls.begin(1, |_| {}));
        let answer = |ask, count| Notice::Answer { ask, shard: ShardId(0), answer: Answer::Closed(count) };
        for notice in [answer(1, 11), Notice::Drained { shard: ShardId(0) }, answer(0, 10), answer(9, 1)] {
            notices.send(notice).expect("open");
        }
        notices.send(Notice::ShardLost { shard: ShardId(3), reason: io::Error::other("no memory") }).expect("open");
        let mut rest = Vec::new();
        let lost = calls.run(&told, |notice| rest.push(notice)).expect_err("a shard is lost");
        assert_eq!(lost.to_string(), "shard 3 ended by itself: no memory");
        assert!(matches!(rest[..], [Notice::Drained { shard: ShardId(0) }]), "{rest:?}");
        assert_eq!((first.gathered().closed(), second.within(PATIENCE).closed()), (10, 11));
        drop(notices);
        assert!(calls.run(&told, drop).is_ok(), "the engine is gone");
    }

    #[test]
    fn sums_are_over_all_shards() {
        let emitted = |recipients, acks, answer: &str| Answer::Emitted(Emitted { recipients, acks, answers: vec![answer.into()] });
        let host = |number, answers, is_whole| HostAnswers { host: HostId::new(number), answers, is_whole };
        let hosts = vec![host(7, vec![emitted(1, 1, "[3]"), emitted(0, 0, "[4]")], true), host(8, Vec::new(), false)];
        let gathered = Gathered { answers: vec![emitted(2, 1, "[1]"), emitted(3, 3, "[2]")], missing: 0, hosts, hosts_missing: 1 };
        let sum = gathered.emitted();
        assert_eq!((sum.recipients, sum.acks, sum.answers), (6, 5, ["[1]", "[2]", "[3]", "[4]"].map(str::to_owned).into()));
    }

    #[test]
    fn other_hosts_are_waited_for_and_missing_where_they_say_nothing() {
        let calls = Calls::default();
        let told = |number, is_whole| HostAnswers { host: HostId::new(number), answers: vec![Answer::Closed(number)], is_whole };
        let others = |asked, unasked| Others { asked, unasked };
        // One is told of before it is known how many are asked.
        let asked = calls.begin_with_hosts(1, |ask| {
            calls.deliver(ask, Answer::Closed(100));
            calls.deliver_host(ask, told(1, true));
            others(2, 0)
        });
        let gathered = asked.within(Duration::from_millis(20));
        assert_eq!((gathered.closed(), gathered.missing, gathered.hosts_missing), (101, 0, 1));
        let gathered = std::thread::scope(|scope| {
            let asked = calls.begin_with_hosts(0, |ask| {
                scope.spawn({
                    let calls = &calls;
                    move || [told(1, true), told(2, false)].map(|host| calls.deliver_host(ask, host))
                });
                others(2, 1)
            });
            asked.within(PATIENCE)
        });
        assert_eq!((gathered.closed(), gathered.hosts.len()), (3, 2), "who does not answer in whole is told of and waited for no longer");
        assert_eq!(gathered.hosts_missing, 2, "one that has not said all, and one that could not be asked");
        assert!(calls.begin_with_hosts(0, |_| others(0, 0)).within(PATIENCE).hosts.is_empty());
        assert!(calls.is_idle());
    }
}
