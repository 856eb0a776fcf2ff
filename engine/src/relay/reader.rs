//! The relay's connection for reading streams, on which Redis answers when there is something to read: made, kept and made again here. What is
//! asked and what is read, [`super::core`] knows.

use std::future::pending;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::mpsc;

use super::link::{Address, Backoff, Link, LinkFault, Pushes};
use super::request::{Lost, Push, Reply, Request};

/// What happens to it.
pub(super) enum Happening {
    Connected,
    Lost,
    /// It goes on, but what Redis has may be less than it was.
    Replaced,
    /// The answer to what was asked.
    Replied(Result<Vec<Reply>, Lost>),
}

type Attempt = Result<(Link, Pushes), LinkFault>;
type Answered = Result<Vec<Reply>, Lost>;

/// See the module. It subscribes to nothing, so that other servers, which count subscribers, count this host once.
pub(super) struct Reader {
    address: Address,
    link: Option<(Link, Pushes)>,
    backoff: Backoff,
    random: StdRng,
    attempts: (mpsc::Sender<Attempt>, mpsc::Receiver<Attempt>),
    replies: (mpsc::UnboundedSender<Answered>, mpsc::UnboundedReceiver<Answered>),
}

impl Reader {
    /// `random` is for the time between attempts.
    pub(super) fn new(address: Address, random: [u8; 32]) -> Reader {
        let random = StdRng::from_seed(random);
        Reader { address, link: None, backoff: Backoff::default(), random, attempts: mpsc::channel(1), replies: mpsc::unbounded_channel() }
    }

    /// Connects after so long.
    pub(super) fn connect_after(&mut self, wait: Duration) {
        let (address, attempts) = (self.address.clone(), self.attempts.0.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            // Whoever would take it has ended with the thread.
            let _ = attempts.send(Link::connect(&address).await).await;
        });
    }

    /// Asks; the answer happens next.
    pub(super) fn ask(&self, request: &Request) {
        let replies = self.replies.0.clone();
        let Some((link, _)) = &self.link else {
            // Whoever would take it has ended with the thread.
            return drop(replies.send(Err(Lost::Connection)));
        };
        let answer = link.send(request);
        tokio::spawn(async move { drop(replies.send(answer.await)) });
    }

    /// What happens next. Dropped while it waits, nothing is lost.
    pub(super) async fn next(&mut self) -> Happening {
        loop {
            let push = async {
                match &mut self.link {
                    Some((_, pushes)) => pushes.next().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                Some(replies) = self.replies.1.recv() => return Happening::Replied(replies),
                Some(attempt) = self.attempts.1.recv() => match attempt {
                    Ok(link) => {
                        self.link = Some(link);
                        self.backoff.reset();
                        return Happening::Connected;
                    }
                    Err(_) => self.connect_soon(),
                },
                push = push => match push {
                    None | Some(Push::Gone(_)) => {
                        self.link = None;
                        self.connect_soon();
                        return Happening::Lost;
                    }
                    Some(Push::Replaced) => return Happening::Replaced,
                    Some(_) => {}
                },
            }
        }
    }

    fn connect_soon(&mut self) {
        let wait_ms = self.backoff.next_ms(self.random.next_u64());
        self.connect_after(Duration::from_millis(wait_ms));
    }
}
