//! The goodbye of a process that had no time for one. What it kept of its WebSockets ([`crate::config::Config::keep_sockets`]) is taken out of the queues that have outlived it;
//! each client hears a close frame, at a bounded rate, because all of them come back at once. What it was in the middle of saying is not known here: where that was a frame, the
//! goodbye is only more of it, and the client ends the connection for a wrong one.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::sys;
use crate::limits::{FAREWELL_ANSWER_MS, FAREWELL_LOOK_MS, FAREWELL_UNREAD_BYTES_MAX, FAREWELLS_PER_SECOND, KEPT_PER_MESSAGE};
use crate::shard::farewell::Farewell;

/// How long it sleeps between two looks.
const TICK: Duration = Duration::from_millis(5);

/// What a shard of a process that is gone has left: the end of its queue.
#[derive(Debug)]
pub struct Left(socket2::Socket);

impl Left {
    /// The one that was passed to this process by its number, which is used up with it.
    ///
    /// # Errors
    /// When it is no such queue.
    pub fn numbered(fd: RawFd) -> io::Result<Left> {
        sys::inherit_queue(fd).map(Left)
    }

    /// The one of another process, or another end of this one's.
    pub fn of(end: OwnedFd) -> Left {
        Left(end.into())
    }
}

/// How many connections of the former process have heard of its end.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Farewells {
    /// They were told.
    pub told: u64,
    /// They were closed without a word: their client had left, or read so slowly that there was no place for one.
    pub untold: u64,
}

/// Says goodbye on everything in these queues, and returns when all of it is closed: in about a second where it is little. It waits, so it needs a thread of its own. The queues
/// must be nobody else's any more.
pub fn say_farewell(left: Vec<Left>) -> Farewells {
    let mut parting = Parting { left: left.into(), ..Parting::default() };
    let began = Instant::now();
    let (mut last, mut owed) = (began, 0.0);
    loop {
        let now = Instant::now();
        owed += rate(now - began) * (now - last).as_secs_f64();
        last = now;
        while owed >= 1.0 && parting.tell_next(now) {
            owed -= 1.0;
        }
        // What nobody was there for is not made up for in a burst.
        owed = owed.min(1.0);
        parting.let_go(now);
        if parting.is_over() {
            return parting.said;
        }
        std::thread::sleep(TICK);
    }
}

/// Goodbyes a second, so long after the first.
fn rate(elapsed: Duration) -> f64 {
    let doublings = (elapsed.as_secs() / 2).min(20);
    (FAREWELLS_PER_SECOND << doublings) as f64
}

/// The goodbyes under way.
#[derive(Default)]
struct Parting {
    left: VecDeque<Left>,
    /// Taken out of the queue and not told yet: one message at most.
    waiting: VecDeque<(TcpStream, Farewell)>,
    /// Told, and when they are looked at first.
    told: VecDeque<(Instant, TcpStream)>,
    /// Looked at, and when they are closed whatever they say.
    slow: VecDeque<(Instant, TcpStream)>,
    said: Farewells,
}

impl Parting {
    fn is_over(&self) -> bool {
        self.left.is_empty() && self.waiting.is_empty() && self.told.is_empty() && self.slow.is_empty()
    }

    /// Tells one; false when there is none.
    fn tell_next(&mut self, now: Instant) -> bool {
        while self.waiting.is_empty() {
            if self.left.is_empty() {
                return false;
            }
            self.take_message();
        }
        let Some((stream, farewell)) = self.waiting.pop_front() else { return false };
        let frame = farewell.frame();
        // One that takes a part of it only is closed with that part.
        let is_told = !frame.is_empty() && matches!((&stream).write(&frame), Ok(written) if written == frame.len());
        if is_told {
            self.said.told += 1;
            let _ = stream.shutdown(Shutdown::Write);
            self.told.push_back((now + Duration::from_millis(FAREWELL_LOOK_MS), stream));
        } else {
            self.said.untold += 1;
        }
        true
    }

    /// Takes the next message out of the first queue, or the queue when it has none.
    fn take_message(&mut self) {
        let Some(left) = self.left.front() else { return };
        let (mut words, mut descriptors) = ([0; KEPT_PER_MESSAGE], Vec::new());
        match sys::receive_with(left.0.as_raw_fd(), &mut words, &mut descriptors) {
            Ok(count) if count > 0 => {
                // For those beyond there was no descriptor, and the kernel has closed them.
                self.said.untold += count.saturating_sub(descriptors.len()) as u64;
                let words = words[..count].iter().copied().map(Farewell::of);
                self.waiting.extend(descriptors.into_iter().map(TcpStream::from).zip(words));
            }
            _ => drop(self.left.pop_front()),
        }
    }

    /// Closes those who have answered, and those who have had the time to.
    fn let_go(&mut self, now: Instant) {
        while let Some((_, stream)) = self.told.pop_front_if(|(due, _)| *due <= now) {
            if !has_ended(&stream) {
                self.slow.push_back((now + Duration::from_millis(FAREWELL_ANSWER_MS - FAREWELL_LOOK_MS), stream));
            }
        }
        while let Some((_, stream)) = self.slow.pop_front_if(|(due, _)| *due <= now) {
            has_ended(&stream);
        }
    }
}

/// Reads what its client has said, so that closing is no reset; true exactly when that was all.
fn has_ended(mut stream: &TcpStream) -> bool {
    let (mut buffer, mut read) = ([0; 16 * 1024], 0);
    while read < FAREWELL_UNREAD_BYTES_MAX {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => read += count,
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
            Err(fault) => return fault.kind() != io::ErrorKind::WouldBlock,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Both ends of a connection; the first is non-blocking, as a shard's are.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (server, _) = listener.accept().expect("there is one");
        server.set_nonblocking(true).expect("a socket");
        (server, client)
    }

    /// What is said where these are left with these numbers beside them.
    fn say(left: Vec<(TcpStream, u8)>) -> Farewells {
        let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        far.set_nonblocking(true).expect("a socket");
        let words: Vec<u8> = left.iter().map(|(_, word)| *word).collect();
        let sockets: Vec<RawFd> = left.iter().map(|(stream, _)| stream.as_raw_fd()).collect();
        sys::send_with(near.as_raw_fd(), &words, &sockets).expect("there is place");
        drop((near, left));
        say_farewell(vec![Left(far)])
    }

    #[test]
    fn what_is_not_known_is_closed_without_a_word() {
        let ((server, mut client), (known, mut heard)) = (connection(), connection());
        assert_eq!(say(vec![(server, 99), (known, Farewell::Restart as u8)]), Farewells { told: 1, untold: 1 });
        let mut said = Vec::new();
        assert_eq!(client.read_to_end(&mut said).ok(), Some(0));
        heard.read_to_end(&mut said).expect("an end without a reset");
        assert_eq!(said, [0x88, 2, 0x03, 0xf4]);
    }

    #[test]
    fn who_has_no_place_for_a_goodbye_is_waited_for_by_nobody() {
        let (mut server, _client) = connection();
        while server.write(&[0; 64 * 1024]).is_ok() {}
        assert_eq!(say(vec![(server, Farewell::Empty as u8)]), Farewells { told: 0, untold: 1 });
    }

    #[test]
    fn a_million_is_told_within_fifteen_seconds() {
        assert_eq!(rate(Duration::ZERO), FAREWELLS_PER_SECOND as f64);
        let told: f64 = (0..15).map(|second| rate(Duration::from_secs(second))).sum();
        assert!(told > 1e6, "{told}");
        assert!(rate(Duration::MAX).is_finite());
    }
}
