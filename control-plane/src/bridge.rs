//! Between the engine's threads and the control plane's: one thread takes the engine's notices and passes each to whom it belongs: the
//! pieces of an answer to the request that waits for them, connections that speak plain HTTP to the server's queue, questions to the back
//! end to those who ask it, changes of the relay to the log, ends of drains to the main thread. What it does never waits, so that a slow HTTP client cannot hold up the engine's notices.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
pub use engine::Gathered;
use engine::auth::{AuthFault, Identity};
use engine::config::Endpoint;
use engine::event::EventTypes;
use engine::ids::ShardId;
use engine::relay::handle::FleetHandle;
use engine::relay::words::HostId;
use engine::stats::{RelayStats, ShardStats};
use engine::{Answer, Calls, Engine, EngineLost, Handover, Notice, Notices, Question, Reached, RelayState, Wish};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::hooks::Queue;

/// How long a question may take before what has come is the answer. A healthy shard turns thousands of times in it.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Handed-over connections waiting for the HTTP server; as many as it serves at once, so that nobody waits longer than one request.
pub const HANDOVERS_MAX: usize = 1024;

/// What a connection hears for which there is no place in the queue.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";

/// What the control plane needs of a running engine; a trait, so that its HTTP side can be tested without one.
pub trait Host: Send + Sync {
    /// What is served, in the configuration's order.
    fn endpoints(&self) -> &[Endpoint];
    /// Counters, one per shard.
    fn stats(&self) -> &[Arc<ShardStats>];
    /// Puts a question to every shard; each answers with one [`Notice::Answer`] that carries `ask`. Where it concerns the fleet, other
    /// hosts are asked as well. Who took it.
    fn ask(&self, ask: u64, question: Question) -> Reached;
    /// The way to other hosts; `None` where there is no relay.
    fn fleet(&self) -> Option<&FleetHandle>;
    /// True exactly when new connections are let in.
    fn accepting(&self) -> bool;
    /// True exactly when the shard turned within the last two seconds.
    fn is_responsive(&self, shard: usize) -> bool;
    /// What the relay counts; `None` where this host is alone.
    fn relay_stats(&self) -> Option<&RelayStats>;
    /// True exactly when the relay turned within the last two seconds, or there is none.
    fn is_relay_responsive(&self) -> bool;
    /// The kernel interface in use.
    fn io_name(&self) -> &'static str;
    /// From now on events of these types are told, and no others.
    fn want_events(&self, types: EventTypes);
    /// Whom a token of a client names.
    fn verify(&self, token: &str) -> Result<Identity, AuthFault>;
}

impl Host for Engine {
    fn endpoints(&self) -> &[Endpoint] {
        Engine::endpoints(self)
    }
    fn stats(&self) -> &[Arc<ShardStats>] {
        Engine::stats(self)
    }
    fn ask(&self, ask: u64, question: Question) -> Reached {
        Engine::ask(self, ask, &question)
    }
    fn fleet(&self) -> Option<&FleetHandle> {
        Engine::fleet(self)
    }
    fn accepting(&self) -> bool {
        Engine::accepting(self)
    }
    fn is_responsive(&self, shard: usize) -> bool {
        Engine::is_responsive(self, shard)
    }
    fn relay_stats(&self) -> Option<&RelayStats> {
        Engine::relay_stats(self)
    }
    fn is_relay_responsive(&self) -> bool {
        Engine::is_relay_responsive(self)
    }
    fn io_name(&self) -> &'static str {
        Engine::io_name(self)
    }
    fn want_events(&self, types: EventTypes) {
        Engine::want_events(self, types);
    }
    fn verify(&self, token: &str) -> Result<Identity, AuthFault> {
        Engine::verify(self, token, crate::http::unix_ms())
    }
}

/// Questions under way. As many as there are requests being served, which the server bounds.
#[derive(Default)]
pub struct Pending(Calls);

impl Pending {
    /// See [`Calls::of_generation`].
    pub fn of_generation(generation: u64) -> Pending {
        Pending(Calls::of_generation(generation))
    }

    /// Asks all shards and waits for their answers, at most [`ANSWER_WAIT`].
    pub async fn ask(&self, host: &dyn Host, question: Question) -> Gathered {
        self.begin(host, question).answers(Duration::ZERO).await
    }

    /// Asks all shards, and other hosts where it concerns them. Questions reach each of them in the order in which they were begun.
    pub fn begin(&self, host: &dyn Host, question: Question) -> Asked<'_> {
        let mut reached = 0;
        let asked = self.0.begin_with_hosts(host.stats().len(), |ask| {
            let Reached { shards, others } = host.ask(ask, question);
            reached = shards + others.asked;
            others
        });
        Asked { asked, reached }
    }

    /// Asks nobody but other hosts, all or this one, and waits for their answers, at most [`ANSWER_WAIT`].
    pub async fn ask_hosts(&self, host: &dyn Host, wish: Wish, to: Option<&HostId>) -> Gathered {
        let asked = self.0.begin_with_hosts(0, |ask| host.fleet().map(|fleet| fleet.ask(ask, wish, to)).unwrap_or_default());
        Asked { asked, reached: 0 }.answers(Duration::ZERO).await
    }

    /// Takes another host's answers.
    #[cfg(test)]
    pub(crate) fn deliver_host(&self, ask: u64, answers: engine::relay::fleet::HostAnswers) {
        self.0.deliver_host(ask, answers);
    }

    /// Takes one shard's answer. One that nobody waits for any more is dropped.
    pub fn deliver(&self, ask: u64, answer: Answer) {
        self.0.deliver(ask, answer);
    }
}

/// A question that has been asked. Dropped, it is forgotten: a request that is cancelled half-way leaves nothing behind.
pub struct Asked<'a> {
    asked: engine::Asked<'a>,
    reached: usize,
}

impl Asked<'_> {
    /// Waits for the answers, at most [`ANSWER_WAIT`] longer than the shards themselves wait for something.
    pub async fn answers(mut self, shards_wait: Duration) -> Gathered {
        self.wait(Instant::now() + ANSWER_WAIT + shards_wait).await;
        self.gathered()
    }

    /// Waits for the answers, at most until then. What has come by then is kept, and more may come.
    pub async fn wait(&mut self, until: Instant) {
        let _ = tokio::time::timeout_at(until, &mut self.asked).await;
    }

    /// True exactly when no shard has answered yet.
    pub fn is_unanswered(&self) -> bool {
        self.asked.answered() == 0
    }

    /// True exactly when a shard, here or anywhere, took the question: it does what is asked, sooner or later, whether somebody waits for that or not.
    pub fn is_taken(&self) -> bool {
        self.reached > 0
    }

    /// What has been answered until now.
    pub fn gathered(self) -> Gathered {
        self.asked.gathered()
    }
}

/// Passes notices on, and has `answer` called with what other hosts' control planes ask, until the engine is gone, or one of its shards is: the process ends then, and the result says why.
#[expect(clippy::needless_pass_by_value, reason = "the thread owns its ends of the channels; their drop tells the others")]
pub fn run(
    notices: Notices,
    pending: Arc<Pending>,
    handovers: mpsc::Sender<Handover>,
    hooks: Option<Queue>,
    relay: mpsc::Sender<RelayState>,
    drained: Sender<ShardId>,
    answer: impl Fn(u64, &str),
) -> Result<(), EngineLost> {
    pending.0.run(&notices, |notice| match notice {
        Notice::Inquiry(inquiry) => match &hooks {
            Some(hooks) => hooks.put(inquiry),
            // Dropped, it is refused.
            None => drop(inquiry),
        },
        Notice::Handover(handover) => pass_on(&handovers, handover),
        // There is more room than the engine tells in a minute.
        Notice::Relay(state) => drop(relay.try_send(state)),
        // The main thread has room for one from each shard, and there are no more.
        Notice::Drained { shard } => drop(drained.try_send(shard)),
        Notice::Note { ask, text } => answer(ask, &text),
        Notice::Answer { .. } | Notice::HostAnswer { .. } | Notice::ShardLost { .. } | Notice::RelayLost { .. } => {}
    })
}

/// Queues a connection for the HTTP server, or turns it away.
fn pass_on(handovers: &mpsc::Sender<Handover>, handover: Handover) {
    if let Err(mpsc::error::TrySendError::Full(handover)) = handovers.try_send(handover) {
        let mut stream = TcpStream::from(handover.fd);
        // A fresh socket's send buffer takes these bytes; should it not, the peer gets none of them and we do not wait.
        if stream.set_nonblocking(true).is_ok() {
            let _ = stream.write_all(BUSY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::net::TcpListener;

    use super::*;
    use crate::http::testing::FakeHost;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn an_answer_is_complete_when_every_shard_spoke_and_partial_after_a_second() {
        let pending = Arc::new(Pending::default());
        let host = FakeHost::new(2).answering(&pending, |shard, _| Some(Answer::Closed(shard as u64 + 1)));
        let all = pending.ask(&host, anything()).await;
        assert_eq!((all.answers.len(), all.missing), (2, 0));

        let host = FakeHost::new(2).answering(&pending, |shard, _| (shard == 1).then_some(Answer::Closed(7)));
        let before = tokio::time::Instant::now();
        let some = pending.ask(&host, anything()).await;
        assert_eq!((some.answers.len(), some.missing), (1, 1));
        assert_eq!(before.elapsed(), ANSWER_WAIT);
        assert!(pending.0.is_idle(), "nothing is left behind");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_cancelled_question_and_a_late_answer_leave_nothing_behind() {
        let pending = Pending::default();
        let host = FakeHost::new(1);
        let asked = tokio::time::timeout(Duration::from_millis(10), pending.ask(&host, anything())).await;
        assert!(asked.is_err() && pending.0.is_idle());
        pending.deliver(0, Answer::Closed(1));
        assert!(pending.0.is_idle());
    }

    #[test]
    fn notices_reach_whom_they_belong_to_and_a_full_queue_answers_503() {
        let (notices, from_engine) = crossbeam_channel::unbounded();
        let (drained, at_main) = crossbeam_channel::bounded(1);
        let (handovers, mut at_server) = mpsc::channel(1);
        let (relay, mut at_log) = mpsc::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(listener.local_addr().expect("bound")).expect("a listener"));
            let (stream, peer) = listener.accept().expect("a client");
            notices.send(Notice::Handover(Handover { fd: stream.into(), peer, read: b"GET".to_vec() })).expect("open");
        }
        notices.send(Notice::Drained { shard: ShardId(0) }).expect("open");
        notices.send(Notice::Relay(RelayState::Up)).expect("open");
        drop(notices);
        assert!(run(from_engine, Arc::new(Pending::default()), handovers, None, relay, drained, |_, _| {}).is_ok());

        assert_eq!(at_server.blocking_recv().map(|it| it.read), Some(b"GET".to_vec()));
        assert!(at_server.blocking_recv().is_none());
        let mut heard = Vec::new();
        clients[1].read_to_end(&mut heard).expect("closed politely");
        assert_eq!(heard, BUSY);
        assert_eq!(at_main.recv(), Ok(ShardId(0)));
        assert_eq!(at_log.blocking_recv(), Some(RelayState::Up));
    }

    #[test]
    fn the_loss_of_a_shard_ends_the_bridge_although_the_others_live() {
        let (notices, from_engine) = crossbeam_channel::unbounded();
        let (drained, at_main) = crossbeam_channel::bounded(1);
        let (handovers, _at_server) = mpsc::channel(1);
        notices.send(Notice::ShardLost { shard: ShardId(1), reason: io::Error::other("no memory") }).expect("open");
        let lost = run(from_engine, Arc::new(Pending::default()), handovers, None, mpsc::channel(1).0, drained, |_, _| {});
        assert_eq!(lost.expect_err("a shard is lost").to_string(), "shard 1 ended by itself: no memory");
        assert!(at_main.recv().is_err(), "the main thread sees the end");
    }

    fn anything() -> Question {
        Question::CloseUser { endpoint: None, user: "alice".into(), reason: None }
    }
}
