//! Who comes in, and when: handshakes are admitted at a bounded rate, so that a storm of clients that come back (a network that was gone, a host
//! that has ended) leaves those that are connected their share of the core. Clients that go on with what they had come first; the others wait in
//! order, and those for whom there is no place are told to come again. It knows links by key only; what is done with them is the shard's.

use std::collections::VecDeque;

use super::links::{Link, State};
use super::{Command, Shard};
use crate::fault::Refusal;
use crate::ids::LinkKey;
use crate::limits::{ADMITTED_PER_TURN, DOOR_BURST_PER_SECOND, DOOR_PACKET_BYTES_MAX, DOOR_WAIT_MS, Limits};
use crate::time::Now;
use crate::wire::{http, ws};

/// What a handshake may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
enum Verdict {
    In,
    Wait,
    Full,
}

/// Who waits.
#[derive(Debug)]
enum Waiting {
    /// A WebSocket whose request head is read again.
    Head(LinkKey),
    /// A CONNECT of Socket.IO, as an Engine.IO packet.
    Connect(LinkKey, Box<str>),
}

/// The door of one shard.
pub(super) struct Door {
    /// Nanoseconds between two admissions; 0: everybody is let in at once.
    interval_ns: u64,
    /// By how many nanoseconds admissions may be ahead of the rate.
    burst_ns: u64,
    /// When the next would have its turn, had all come at the rate.
    due_ns: u64,
    /// Those who go on with what they had, and the others.
    resuming: VecDeque<Waiting>,
    fresh: VecDeque<Waiting>,
    /// Places in each of the two.
    waiting_max: usize,
    /// Bytes of packets that wait.
    packet_bytes: usize,
    /// Whose turn it is: its head is being read for the second time.
    entering: Option<LinkKey>,
}

impl Door {
    pub(super) fn new(limits: &Limits) -> Door {
        let rate = u64::from(limits.handshakes_per_second);
        Door {
            interval_ns: 1_000_000_000_u64.checked_div(rate).unwrap_or(0),
            burst_ns: 1_000_000_000 / DOOR_BURST_PER_SECOND,
            due_ns: 0,
            resuming: VecDeque::new(),
            fresh: VecDeque::new(),
            waiting_max: (rate * DOOR_WAIT_MS / 1_000).max(1) as usize,
            packet_bytes: 0,
            entering: None,
        }
    }

    /// Bytes of packets that wait; heads are their links' own.
    pub(super) fn bytes(&self) -> usize {
        self.packet_bytes
    }

    pub(super) fn len(&self) -> usize {
        self.resuming.len() + self.fresh.len()
    }

    /// True exactly when it is this link's turn.
    pub(super) fn admits(&self, key: LinkKey) -> bool {
        self.entering == Some(key)
    }

    /// Counts what cannot wait: the token in a handshake of Socket.IO, which is looked at before its CONNECT comes. However many there are, the
    /// door is closed for no longer than a burst takes.
    pub(super) fn note_token(&mut self, now_ns: u64) {
        self.charge(now_ns);
        self.due_ns = self.due_ns.min(now_ns + 2 * self.burst_ns);
    }

    fn charge(&mut self, now_ns: u64) {
        self.due_ns = self.due_ns.max(now_ns) + self.interval_ns;
    }

    fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns <= now_ns + self.burst_ns
    }

    fn ask(&mut self, now_ns: u64, resumes: bool, packet_bytes: usize, who: impl FnOnce() -> Waiting) -> Verdict {
        let before = if resumes { self.resuming.len() } else { self.len() };
        if self.interval_ns == 0 || (before == 0 && self.is_due(now_ns)) {
            self.charge(now_ns);
            return Verdict::In;
        }
        let queue = if resumes { &mut self.resuming } else { &mut self.fresh };
        if queue.len() >= self.waiting_max || packet_bytes > DOOR_PACKET_BYTES_MAX {
            return Verdict::Full;
        }
        self.packet_bytes += packet_bytes;
        queue.push_back(who());
        Verdict::Wait
    }

    fn next(&mut self) -> Option<Waiting> {
        let next = self.resuming.pop_front().or_else(|| self.fresh.pop_front())?;
        if let Waiting::Connect(_, packet) = &next {
            self.packet_bytes -= packet.len();
        }
        Some(next)
    }

    /// Who waits as plain data, in order: whether he resumes, the slot of his link, and his CONNECT if it is one of Socket.IO. Who has gone is
    /// left out: his slot may be another's by now.
    pub(super) fn freeze(&self, is_there: impl Fn(LinkKey) -> bool) -> Vec<(bool, u32, Option<Box<str>>)> {
        let of = |resumes: bool, waiting: &Waiting| match waiting {
            Waiting::Head(key) => is_there(*key).then_some((resumes, key.slot, None)),
            Waiting::Connect(key, packet) => is_there(*key).then(|| (resumes, key.slot, Some(packet.clone()))),
        };
        let fresh = self.fresh.iter().filter_map(|waiting| of(false, waiting));
        self.resuming.iter().filter_map(|waiting| of(true, waiting)).chain(fresh).collect()
    }

    /// One waits who waited before the process was reloaded.
    pub(super) fn thaw(&mut self, resumes: bool, key: LinkKey, packet: Option<Box<str>>) {
        self.packet_bytes += packet.as_ref().map_or(0, |packet| packet.len());
        let waiting = packet.map_or(Waiting::Head(key), |packet| Waiting::Connect(key, packet));
        if resumes { self.resuming.push_back(waiting) } else { self.fresh.push_back(waiting) }
    }

    /// When the next one may come in, milliseconds; `None` while nobody waits.
    pub(super) fn next_ms(&self) -> Option<u64> {
        (self.len() > 0).then(|| self.due_ns.saturating_sub(self.burst_ns).div_ceil(1_000_000))
    }
}

impl Shard {
    /// Whether the handshake of a plain WebSocket goes on; if not, it waits or was told to come again.
    pub(super) fn enters_by_head(&mut self, now: Now, key: LinkKey) -> bool {
        let verdict = self.door.ask(now.ns, false, 0, || Waiting::Head(key));
        match verdict {
            Verdict::In => {}
            Verdict::Wait => self.wait_at_door(key.slot),
            Verdict::Full => {
                self.stats.unrouted().refused[Refusal::Busy.index()].add(1);
                let after_s = self.come_again_s().to_string();
                let response = http::response(503, "text/plain", &[("Retry-After", &after_s)], Refusal::Busy.label());
                self.answer_http(now, key.slot, response);
            }
        }
        verdict == Verdict::In
    }

    /// Whether a CONNECT of Socket.IO goes on, `packet` without Engine.IO's type. One that finds no place is closed by its transport: clients
    /// come again by themselves then, after a while that grows, and would not after a CONNECT_ERROR.
    pub(super) fn enters_by_packet(&mut self, now: Now, slot: u32, resumes: bool, packet: &str) -> bool {
        let Some(link) = self.links.get_mut(slot) else { return false };
        let key = LinkKey { slot, generation: link.generation };
        let State::SocketIo(socket) = &mut link.state else { return false };
        if socket.has_entered {
            return true;
        }
        let verdict = self.door.ask(now.ns, resumes, packet.len() + 1, || Waiting::Connect(key, format!("4{packet}").into()));
        match verdict {
            Verdict::In => socket.has_entered = true,
            Verdict::Wait => self.wait_at_door(slot),
            Verdict::Full => {
                self.stats.unrouted().refused[Refusal::Busy.index()].add(1);
                self.say_goodbye(now, slot, Some(ws::empty_close_frame()), false);
            }
        }
        verdict == Verdict::In
    }

    fn wait_at_door(&mut self, slot: u32) {
        if let Some(link) = self.links.get_mut(slot) {
            link.waiting += 1;
        }
        self.stats.handshakes_delayed.add(1);
        self.stats.handshakes_waiting.set(self.door.len() as u64);
    }

    /// Seconds after which those who wait now are in, and up to as many again, so that not all come at one moment.
    fn come_again_s(&self) -> u64 {
        let wait_s = 1 + DOOR_WAIT_MS / 1_000;
        wait_s + rand::RngExt::random_range(&mut *self.entropy.borrow_mut(), 0..=wait_s)
    }

    /// Lets in whose turn it is.
    pub(super) fn open_door(&mut self, now: Now) {
        if self.door.len() == 0 {
            return;
        }
        let mut admitted = 0;
        while admitted < ADMITTED_PER_TURN && self.door.is_due(now.ns) {
            let Some(next) = self.door.next() else { break };
            let (Waiting::Head(key) | Waiting::Connect(key, _)) = next;
            // Who has gone meanwhile, or is being told goodbye, takes nobody's turn.
            let Some(link) = self.links.get_mut_of(key.slot, key.generation) else { continue };
            if matches!(link.state, State::Closing { .. }) {
                continue;
            }
            self.door.charge(now.ns);
            admitted += 1;
            match next {
                Waiting::Head(_) => self.enter_by_head(now, key),
                Waiting::Connect(_, packet) => self.enter_by_packet(now, key.slot, &packet),
            }
        }
        self.stats.handshakes_waiting.set(self.door.len() as u64);
    }

    fn enter_by_head(&mut self, now: Now, key: LinkKey) {
        if let Some(link) = self.links.get_mut(key.slot) {
            link.waiting -= 1;
        }
        self.door.entering = Some(key);
        self.consume_partial(now, key);
        self.door.entering = None;
        // What came meanwhile lies in the socket, of which nothing tells again.
        self.commands.push_back(Command::Resume(key));
    }

    fn enter_by_packet(&mut self, now: Now, slot: u32, packet: &str) {
        if let Some(Link { state: State::SocketIo(socket), .. }) = self.links.get_mut(slot) {
            socket.has_entered = true;
        }
        self.take_packet(now, slot, packet);
        self.unwait(slot, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(slot: u32) -> Waiting {
        Waiting::Head(LinkKey { slot, generation: 1 })
    }

    #[test]
    fn who_resumes_is_first_and_the_places_are_counted() {
        let mut door = Door::new(&Limits { handshakes_per_second: 2, ..Limits::default() });
        let now_ns = 10_000_000_000;
        assert_eq!(door.ask(now_ns, false, 0, || head(0)), Verdict::In, "one was saved up");
        for slot in 1..=4 {
            assert_eq!(door.ask(now_ns, false, 0, || head(slot)), Verdict::Wait);
        }
        assert_eq!(door.ask(now_ns, false, 0, || head(5)), Verdict::Full, "two seconds' worth wait");
        assert_eq!(door.ask(now_ns, true, 3, || Waiting::Connect(LinkKey { slot: 6, generation: 1 }, "40x".into())), Verdict::Wait);
        assert_eq!((door.len(), door.bytes()), (5, 3));
        assert!(matches!(door.next(), Some(Waiting::Connect(..))));
        assert!(matches!(door.next(), Some(Waiting::Head(LinkKey { slot: 1, .. }))));
        assert_eq!(door.bytes(), 0);
    }

    #[test]
    fn whoever_has_gone_leaves_his_place_to_nobody_over_a_reload() {
        let mut door = Door::new(&Limits { handshakes_per_second: 2, ..Limits::default() });
        let connect = |slot, generation| Waiting::Connect(LinkKey { slot, generation }, "40x".into());
        let _ = door.ask(10_000_000_000, false, 0, || head(0));
        for (resumes, slot, generation) in [(false, 7, 1), (true, 8, 1), (false, 7, 2), (true, 8, 2)] {
            assert_eq!(door.ask(10_000_000_000, resumes, 3, || connect(slot, generation)), Verdict::Wait);
        }
        let frozen = door.freeze(|key| key.generation == 2);
        assert_eq!(frozen.iter().map(|(resumes, slot, _)| (*resumes, *slot)).collect::<Vec<_>>(), [(true, 8), (false, 7)]);
    }

    #[test]
    fn a_packet_that_is_too_long_to_wait_does_not() {
        let mut door = Door::new(&Limits { handshakes_per_second: 1, ..Limits::default() });
        assert_eq!(door.ask(1_000_000_000, true, usize::MAX, || head(0)), Verdict::In, "but where nobody waits it comes in");
        assert_eq!(door.ask(1_000_000_000, true, DOOR_PACKET_BYTES_MAX + 1, || head(0)), Verdict::Full);
    }

    #[test]
    fn without_a_rate_everybody_comes_in() {
        let mut door = Door::new(&Limits { handshakes_per_second: 0, ..Limits::default() });
        assert!((0..100_000).all(|_| door.ask(0, false, 0, || head(0)) == Verdict::In));
    }
}
