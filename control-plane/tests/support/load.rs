//! A steady load on several hosts: clients in rooms that reach over all of them, each message numbered, and a book of who got what, from
//! which it can be told afterwards what was lost, doubled or out of order, here and between hosts.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::raw::{TEXT, frame, upgrade};
use super::{PATIENCE, token};

/// What is loaded, and how much.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The hosts' public addresses.
    pub(crate) hosts: Vec<SocketAddr>,
    /// Clients on each of them.
    pub(crate) clients_per_host: usize,
    /// Rooms; client number N of every host is in room N modulo this.
    pub(crate) rooms: usize,
    /// How often the first member on each host says something in each room.
    pub(crate) every: Duration,
}

/// A message: sender and number.
type Message = (usize, u64);

/// One client's part of the book.
#[derive(Default)]
struct Heard {
    /// How often each message came.
    times: HashMap<Message, u32>,
    /// The last number of each sender.
    last: HashMap<usize, u64>,
    misordered: u64,
    /// When each came, and how long it took.
    latencies: Vec<(Message, Duration)>,
    is_cut: bool,
}

/// What is under way.
pub(crate) struct Load {
    plan: Plan,
    began: Instant,
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<Vec<Heard>>>,
    /// By sender, when each message was sent.
    sent: Arc<Mutex<Vec<Vec<Instant>>>>,
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Book {
    /// Messages sent.
    pub(crate) sent: u64,
    /// Deliveries that were due on the sender's own host, and those that did not come.
    pub(crate) local: u64,
    pub(crate) local_lost: u64,
    /// The same between hosts.
    pub(crate) cross: u64,
    pub(crate) cross_lost: u64,
    pub(crate) doubled: u64,
    pub(crate) misordered: u64,
    /// Connections that ended.
    pub(crate) cut: u64,
    /// The slowest delivery on the sender's own host.
    pub(crate) local_latency_max: Duration,
    /// Messages that somebody on another host did not get: sender, number, and when it was sent after the beginning.
    pub(crate) missed: Vec<(usize, u64, Duration)>,
    /// Deliveries between hosts: when sent after the beginning, and how long it took.
    pub(crate) cross_latencies: Vec<(Duration, Duration)>,
}

struct Socket {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Load {
    /// Connects everybody, lets them enter, and begins.
    pub(crate) fn start(plan: Plan) -> Load {
        let senders = plan.hosts.len() * plan.rooms;
        let sent = Arc::new(Mutex::new(vec![Vec::new(); senders]));
        let stop = Arc::<AtomicBool>::default();
        let mut all = Vec::new();
        for (host, address) in plan.hosts.iter().enumerate() {
            all.push((0..plan.clients_per_host).map(|number| enter(*address, host, number, number % plan.rooms)).collect::<Vec<_>>());
        }
        let began = Instant::now();
        let mut readers = Vec::new();
        for (host, sockets) in all.into_iter().enumerate() {
            let (plan, sent, stop) = (plan.clone(), sent.clone(), stop.clone());
            readers.push(std::thread::spawn(move || run(host, sockets, &plan, &sent, &stop)));
        }
        Load { plan, began, stop, readers, sent }
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Stops sending, waits until everything has come (or for `patience`), and closes the book.
    pub(crate) fn finish(self) -> Book {
        self.stop.store(true, Ordering::Relaxed);
        let heard: Vec<Vec<Heard>> = self.readers.into_iter().map(|reader| reader.join().expect("a reader does not panic")).collect();
        let sent = self.sent.lock().expect("nobody panicked").clone();
        let mut book = Book { sent: sent.iter().map(|times| times.len() as u64).sum(), ..Book::default() };
        for (host, clients) in heard.iter().enumerate() {
            for (number, client) in clients.iter().enumerate() {
                book.cut += u64::from(client.is_cut);
                book.misordered += client.misordered;
                book.doubled += client.times.values().map(|times| u64::from(*times) - 1).sum::<u64>();
                for from in 0..self.plan.hosts.len() {
                    let sender = from * self.plan.rooms + number % self.plan.rooms;
                    for (at, when) in sent[sender].iter().enumerate() {
                        let message = (sender, at as u64 + 1);
                        let came = client.times.contains_key(&message) || client.is_cut;
                        if from == host {
                            book.local += 1;
                            book.local_lost += u64::from(!came);
                        } else {
                            book.cross += 1;
                            book.cross_lost += u64::from(!came);
                            if !came {
                                book.missed.push((sender, message.1, when.duration_since(self.began)));
                            }
                        }
                    }
                }
                for ((sender, at), latency) in &client.latencies {
                    let when = sent[*sender][*at as usize - 1].duration_since(self.began);
                    if sender / self.plan.rooms == host {
                        book.local_latency_max = book.local_latency_max.max(*latency);
                    } else {
                        book.cross_latencies.push((when, *latency));
                    }
                }
            }
        }
        book.missed.sort_unstable();
        book.missed.dedup();
        book
    }
}

impl Book {
    /// After this time (since the beginning) nothing that was said was missed between hosts, or took longer than `latency`.
    pub(crate) fn whole_after(&self, latency: Duration) -> Duration {
        let missed = self.missed.iter().map(|(_, _, when)| *when);
        let late = self.cross_latencies.iter().filter(|(_, took)| *took > latency).map(|(when, _)| *when);
        missed.chain(late).max().unwrap_or_default()
    }

    /// The slowest delivery between hosts of what was said after `after`.
    pub(crate) fn cross_latency_max(&self, after: Duration) -> Duration {
        self.cross_latencies.iter().filter(|(when, _)| *when >= after).map(|(_, took)| *took).max().unwrap_or_default()
    }
}

/// A client of the Socket.IO rooms endpoint in its room.
fn enter(address: SocketAddr, host: usize, number: usize, room: usize) -> Socket {
    let mut stream = TcpStream::connect(address).expect("the host listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a valid time");
    stream.write_all(upgrade("/socket.io/?EIO=4&transport=websocket").as_bytes()).expect("it reads");
    let mut socket = Socket { stream, unread: Vec::new() };
    socket.until("\r\n\r\n");
    let connect = format!(r#"40{{"token":"{}"}}"#, token(&format!("h{host}c{number}")));
    socket.say(&connect);
    socket.until("40{\"sid\"");
    socket.say(&format!(r#"420["room:join",{{"roomId":"load{room}"}}]"#));
    socket.until("430[{\"success\":true");
    socket.stream.set_nonblocking(true).expect("a TCP socket");
    socket
}

impl Socket {
    fn say(&mut self, text: &str) {
        // A full socket buffer would be the server's fault: it takes hundreds of kilobytes.
        let _ = self.stream.write_all(&frame(TEXT, text.as_bytes()));
    }

    /// Reads until these words have come, and forgets everything up to there.
    fn until(&mut self, words: &str) {
        let mut part = [0; 4096];
        loop {
            if let Some(at) = find(&self.unread, words.as_bytes()) {
                self.unread.drain(..at);
                let rest = self.unread.iter().position(|byte| *byte == b'\n').filter(|_| words.ends_with('\n'));
                if let Some(rest) = rest {
                    self.unread.drain(..rest + 3);
                } else {
                    self.unread.clear();
                }
                return;
            }
            let length = self.stream.read(&mut part).expect("an answer comes");
            assert!(length > 0, "the host closed while {words:?} was awaited; it said {:?}", String::from_utf8_lossy(&self.unread));
            self.unread.extend_from_slice(&part[..length]);
        }
    }

    /// The next whole frame's payload.
    fn next(&mut self) -> Option<Vec<u8>> {
        let [_, second, rest @ ..] = self.unread.as_slice() else { return None };
        let (start, length) = match second & 0x7f {
            126 => (4, usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?))),
            127 => (10, u64::from_be_bytes(rest.get(..8)?.try_into().ok()?) as usize),
            short => (2, usize::from(short)),
        };
        let payload = self.unread.get(start..start + length)?.to_vec();
        self.unread.drain(..start + length);
        Some(payload)
    }
}

fn find(bytes: &[u8], words: &[u8]) -> Option<usize> {
    bytes.windows(words.len()).position(|window| window == words)
}

/// One host's clients: sends what is due and reads what comes, until told to stop and nothing has come for a while.
fn run(host: usize, mut sockets: Vec<Socket>, plan: &Plan, sent: &Mutex<Vec<Vec<Instant>>>, stop: &AtomicBool) -> Vec<Heard> {
    /// So long nothing may come until all has.
    const QUIET: Duration = Duration::from_secs(3);
    let mut heard: Vec<Heard> = sockets.iter().map(|_| Heard::default()).collect();
    let began = Instant::now();
    let (mut round, mut last_came) = (0_u32, Instant::now());
    let mut part = vec![0; 64 * 1024];
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        if stopped && last_came.elapsed() > QUIET {
            return heard;
        }
        if !stopped && began.elapsed() >= plan.every * round {
            round += 1;
            for room in 0..plan.rooms.min(sockets.len()) {
                // What is said to a host that is gone is said to nobody.
                if heard[room].is_cut {
                    continue;
                }
                let sender = host * plan.rooms + room;
                let number = {
                    let mut sent = sent.lock().expect("nobody panics");
                    sent[sender].push(Instant::now());
                    sent[sender].len()
                };
                sockets[room].say(&format!(r#"42["message",{{"roomId":"load{room}","content":"<{sender}:{number}>"}}]"#));
            }
        }
        let ready: Vec<usize> = {
            let mut fds: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(&socket.stream, PollFlags::IN)).collect();
            let wait = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            let _ = poll(&mut fds, Some(&wait));
            fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(at, _)| at).collect()
        };
        for at in ready {
            let (socket, heard) = (&mut sockets[at], &mut heard[at]);
            if heard.is_cut {
                continue;
            }
            match socket.stream.read(&mut part) {
                Ok(0) => heard.is_cut = true,
                Ok(length) => socket.unread.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => heard.is_cut = true,
            }
            while let Some(payload) = socket.next() {
                if payload == b"2" {
                    socket.say("3");
                } else if let Some(message) = message_of(&payload) {
                    last_came = Instant::now();
                    note(heard, message, sent);
                }
            }
        }
        if heard.iter().all(|heard| heard.is_cut) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The sender and number in a message.
fn message_of(payload: &[u8]) -> Option<Message> {
    let start = find(payload, b"\"content\":\"<")? + "\"content\":\"<".len();
    let text = std::str::from_utf8(payload.get(start..)?).ok()?;
    let (sender, rest) = text.split_once(':')?;
    Some((sender.parse().ok()?, rest.split_once('>')?.0.parse().ok()?))
}

fn note(heard: &mut Heard, message: Message, sent: &Mutex<Vec<Vec<Instant>>>) {
    let times = heard.times.entry(message).or_insert(0);
    *times += 1;
    if *times > 1 {
        return;
    }
    let last = heard.last.entry(message.0).or_insert(0);
    if message.1 < *last {
        heard.misordered += 1;
    }
    *last = (*last).max(message.1);
    let when = sent.lock().expect("nobody panics")[message.0][message.1 as usize - 1];
    heard.latencies.push((message, when.elapsed()));
}
