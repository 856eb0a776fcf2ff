//! What time does to links and connections: heartbeats, deadlines, expiring tokens, ending typing states, draining.

use std::sync::Arc;

use super::Shard;
use super::links::{Heartbeat, Link, Stage, State};
use crate::config::SocketIo;
use crate::dialect::Publication;
use crate::fault::CloseReason;
use crate::frame::Frame;
use crate::ids::{ConnId, LinkKey};
use crate::limits::{RESUME_GRACE_MS, STALL_MS, TICK_MS};
use crate::time::Now;
use crate::wire::{http, ws};

/// Milliseconds between WebSocket pings to plain connections (contract).
pub(super) const PLAIN_PING_MS: u64 = 30_000;
/// Ticks in the shorter half of a Socket.IO heartbeat, at least.
const TICKS_PER_HEARTBEAT: u64 = 16;
/// Milliseconds between looks at the empty rooms.
const SWEEP_MS: u64 = 1_000;

/// The width of a shard's clock tick in milliseconds: a small part of a heartbeat, so that its lateness is none that a client minds.
pub(super) fn tick_ms(socket_io: &SocketIo) -> u64 {
    (socket_io.ping_interval_ms.min(socket_io.ping_timeout_ms) / TICKS_PER_HEARTBEAT).clamp(1, TICK_MS)
}

/// Closing everybody, spread over a time.
#[derive(Debug)]
pub(super) struct Drain {
    started_ms: u64,
    over_ms: u64,
    /// Links there were at its start.
    links: usize,
    closed: usize,
    /// Where in the table the search for the next link to close goes on.
    next: u32,
}

impl Drain {
    pub(super) fn new(now: Now, over_ms: u64, links: usize) -> Drain {
        Drain { started_ms: now.ms(), over_ms, links, closed: 0, next: 0 }
    }

    /// How many links should be closed by now.
    fn due(&self, now: Now) -> usize {
        let elapsed = now.ms().saturating_sub(self.started_ms);
        if elapsed >= self.over_ms { usize::MAX } else { (self.links as u64 * elapsed / self.over_ms) as usize }
    }
}

impl Shard {
    /// Everything that time brings: call it when [`Self::poll_timeout`] says so, or more often.
    pub fn handle_timeouts(&mut self, now: Now) {
        if now.ms() > self.timed_ms + STALL_MS {
            // Answers that came in time may lie in sockets unread.
            self.patient_until_ms = now.ms() + RESUME_GRACE_MS;
        }
        self.timed_ms = now.ms();
        let mut alarms = std::mem::take(&mut self.alarms);
        self.wheel.expire(now.ms(), &mut alarms);
        for alarm in alarms.drain(..) {
            // One that was overtaken by an earlier one rings for nothing; if it counted, each would bring forth another for ever.
            if let Some(link) = self.links.get_mut_of(alarm.slot, alarm.generation).filter(|link| link.alarm_ms == alarm.at_ms) {
                link.alarm_ms = u64::MAX;
                self.look_at_deadlines(now, alarm.slot);
            }
        }
        self.alarms = alarms;
        self.end_hold(now);
        self.open_door(now);
        self.look_at_memory(now);
        if now.ms() >= self.swept_ms + SWEEP_MS {
            self.swept_ms = now.ms();
            self.sweep_memory(now);
            self.homes.sweep(now.unix_ms, &self.stats);
            self.receipts.sweep(now.unix_ms);
        }
        self.end_waiting(now, now.ms());
        self.drain_some(now);
        self.settle(now);
    }

    /// Goes on without the answers that should have come by then.
    pub(super) fn end_waiting(&mut self, now: Now, until_ms: u64) {
        self.end_waiting_emits(until_ms);
        self.end_waiting_inquiries(now, until_ms);
        self.end_waiting_consults(now, until_ms);
    }

    /// True exactly when the shard was told to drain and its last link is gone.
    pub fn is_drained(&self) -> bool {
        self.drain.is_some() && self.links.len() == 0
    }

    /// True exactly when the shard was told to drain.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    fn look_at_deadlines(&mut self, now: Now, slot: u32) {
        self.greet_late(now);
        let Some(link) = self.links.get(slot) else { return };
        let ms = now.ms();
        if ms < self.patient_until_ms && !link.is_only_asked(ms) {
            return self.arm(slot, self.patient_until_ms);
        }
        match &link.state {
            // Nothing was begun, so nothing is said; an answer that was not taken in that time is not taken any more.
            State::Head { deadline_ms, idle: true, .. } if *deadline_ms <= ms => return self.finish(slot, !link.outbox.is_empty()),
            State::Head { deadline_ms, .. } if *deadline_ms <= ms => return self.head_timeout(now, slot),
            State::Body(post) if post.deadline_ms <= ms => return self.head_timeout(now, slot),
            State::Probe(probe) if probe.deadline_ms <= ms => return self.lose(now, slot, CloseReason::Transport),
            State::Polled(polled) if polled.deadline_ms <= ms => return self.lose(now, slot, CloseReason::Transport),
            State::Closing { deadline_ms, .. } if *deadline_ms <= ms => return self.finish(slot, true),
            State::SocketIo(socket) if socket.connect_deadline_ms <= ms => {
                return self.close_link(now, slot, CloseReason::ConnectTimeout, Some(ws::empty_close_frame()));
            }
            _ => {}
        }
        if link.heartbeat.at_ms <= ms {
            self.beat(now, slot);
        }
        for conn in self.conns_of(slot) {
            if self.challenge_deadline(conn) <= ms && self.links.get(slot).is_some_and(Link::is_held) {
                // Its answer may lie behind what is held, so it counts as alive; if it is not, its heartbeat finds out.
                self.refuse_challenger(now, conn);
            } else if self.challenge_deadline(conn) <= ms {
                // Nobody is at the other end: with one connection all of the link go, and those of its client come back each for itself.
                return self.lose(now, slot, CloseReason::Transport);
            }
            self.end_typing(now, conn);
            self.forget_late_acks(now, conn);
            if self.conns.get(conn).and_then(|conn| conn.profile.expires_unix_ms()).is_some_and(|at| at <= now.unix_ms) {
                self.disconnect(now, conn, CloseReason::TokenExpired, None);
            }
            if self.conns.get(conn).is_some_and(|conn| matches!(conn.stage, Stage::Unknown { until_ms } if until_ms <= ms)) {
                self.disconnect(now, conn, CloseReason::AuthTimeout, None);
            }
        }
        self.arm_next(now, slot);
    }

    /// Arms the link's earliest deadline.
    pub(super) fn arm_next(&mut self, now: Now, slot: u32) {
        let Some(link) = self.links.get(slot) else { return };
        let of_state = match &link.state {
            State::Head { deadline_ms, .. } | State::Closing { deadline_ms, .. } => *deadline_ms,
            State::Polled(polled) => polled.deadline_ms,
            State::Probe(probe) => probe.deadline_ms,
            State::SocketIo(socket) => socket.connect_deadline_ms,
            State::Body(post) => post.deadline_ms,
            State::Plain { .. } => u64::MAX,
        };
        let mut next = of_state.min(link.heartbeat.at_ms);
        for slot_of in self.conns_of(slot) {
            let Some(conn) = self.conns.get(slot_of) else { continue };
            next = next.min(self.challenge_deadline(slot_of));
            let typing = conn.typing.iter().map(|typing| typing.until_ms).min();
            // The token expires by the wall clock; the alarm is set by the other, and set again if they drifted apart.
            let expiry = conn.profile.expires_unix_ms().map(|at| now.ms() + at.saturating_sub(now.unix_ms));
            let identified = if let Stage::Unknown { until_ms } = conn.stage { until_ms } else { u64::MAX };
            next = next.min(typing.unwrap_or(u64::MAX)).min(expiry.unwrap_or(u64::MAX)).min(identified);
        }
        if next < u64::MAX {
            self.arm(slot, next);
        }
    }

    pub(super) fn beat(&mut self, now: Now, slot: u32) {
        let socket_io = &self.world.config.socket_io;
        let Some(link) = self.links.get_mut(slot) else { return };
        let (wait_ms, ping) = match link.state {
            State::SocketIo(_) => (socket_io.ping_timeout_ms, Frame::control_text("2")),
            _ => (PLAIN_PING_MS, Frame::encoded(ws::frame(9, b""))),
        };
        if link.heartbeat.awaiting && link.is_held() && link.is_excused(now) {
            // Its answer may lie behind what is held. It is asked again all the same: a client of Socket.IO expects that, and where
            // nobody is at the other end, the kernel finds out.
            link.heartbeat.at_ms = now.ms() + wait_ms;
            if matches!(&link.state, State::SocketIo(socket) if socket.rare().old.is_some()) {
                return;
            }
            link.heartbeat.more = link.heartbeat.more.saturating_add(1);
            return self.push(now, slot, ping);
        }
        if link.heartbeat.awaiting {
            // Whoever does not answer is cut: there is nobody to say goodbye to.
            return self.lose(now, slot, CloseReason::Heartbeat);
        }
        // Counted from when the ping was due, so that a late tick gives no more time than the greeting promised.
        let at_ms = (link.heartbeat.at_ms.min(now.ms()) + wait_ms).max((now.ms() + wait_ms).saturating_sub(self.wheel.tick_ms()));
        link.heartbeat = Heartbeat { at_ms, awaiting: true, sent_ns: now.ns, more: 0, owed: link.heartbeat.owed };
        self.note_ping(slot);
        self.push(now, slot, ping);
    }

    /// True exactly when the peer should have answered a heartbeat by now.
    pub(super) fn is_silent(&self, now: Now, slot: u32) -> bool {
        let is_late = |link: &&Link| link.heartbeat.awaiting && link.heartbeat.at_ms <= now.ms();
        self.links.get(slot).filter(is_late).is_some_and(|link| !link.is_held() || !link.is_excused(now))
    }

    /// A link that was held is heard again: what its peer has said meanwhile is still to be read, an answer to a heartbeat perhaps.
    pub(super) fn excuse(&mut self, now: Now, key: LinkKey) {
        let Some(link) = self.links.get_mut_of(key.slot, key.generation).filter(|link| link.is_excused(now)) else { return };
        link.heartbeat.at_ms = link.heartbeat.at_ms.max(now.ms() + RESUME_GRACE_MS);
    }

    /// The peer answered a heartbeat.
    pub(super) fn pong(&mut self, now: Now, slot: u32) {
        let interval_ms = self.world.config.socket_io.ping_interval_ms;
        let Some(link) = self.links.get_mut(slot) else { return };
        let is_plain = !matches!(link.state, State::SocketIo(_));
        if link.heartbeat.owed > 0 {
            link.heartbeat.owed -= 1;
            return;
        }
        if !link.heartbeat.awaiting {
            return;
        }
        let more = std::mem::take(&mut link.heartbeat.more);
        // A WebSocket may answer the last of several pings only (RFC 6455 5.5.3), Engine.IO answers each.
        link.heartbeat.owed = if is_plain { 0 } else { more };
        link.heartbeat.awaiting = false;
        let round_trip_us = now.ns.saturating_sub(link.heartbeat.sent_ns) / 1_000;
        let is_socket_io = matches!(link.state, State::SocketIo(_));
        if is_socket_io {
            link.heartbeat.at_ms = now.ms() + interval_ms;
        }
        self.stats.round_trips.add(1);
        self.stats.round_trip_us.add(round_trip_us);
        for conn in self.conns_of(slot) {
            let Some(endpoint) = self.conns.get(conn).map(|conn| conn.endpoint) else { continue };
            self.counters(endpoint).round_trips.add(1);
            self.counters(endpoint).round_trip_us.add(round_trip_us);
        }
        if is_socket_io {
            self.note_pong(now, slot);
            self.arm_next(now, slot);
        }
    }

    fn end_typing(&mut self, now: Now, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if conn.typing.is_empty() {
            return;
        }
        let typing = conn.typing.list();
        let over: Vec<Arc<str>> = typing.extract_if(.., |typing| typing.until_ms <= now.ms()).map(|typing| typing.room).collect();
        conn.typing.tidy();
        for room in over {
            self.tell_typing_stopped(now, slot, &room);
        }
    }

    /// Ends the typing state in a room that is being left.
    pub(super) fn stop_typing_in(&mut self, now: Now, slot: u32, room: &str) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let before = conn.typing.len();
        conn.typing.retain(|typing| *typing.room != *room);
        if conn.typing.len() < before {
            self.tell_typing_stopped(now, slot, room);
        }
    }

    pub(super) fn tell_typing_stopped(&mut self, now: Now, slot: u32, room: &str) {
        let Some(conn) = self.conns.get(slot) else { return };
        let stopped = self.dialect(conn.endpoint).typing_stopped(&self.context(now, conn), room);
        let (endpoint, id): (_, ConnId) = (conn.endpoint, self.conn_id(slot, conn));
        let hidden_from = self.hidden_from(slot);
        if let Some((frame, to_self)) = stopped {
            self.publish(
                endpoint,
                id,
                Publication { room: room.into(), frame, to_self, keep: None, hidden_from, told: None, submission: None },
            );
        }
    }

    fn drain_some(&mut self, now: Now) {
        let Some(mut drain) = self.drain.take() else { return };
        let due = drain.due(now);
        if due == usize::MAX {
            // The time is over: whoever is left, or came meanwhile.
            drain.next = 0;
        }
        while drain.closed < due {
            let Some(slot) = self.links.next_from(drain.next) else { break };
            drain.next = slot + 1;
            match self.links.get(slot).map(|link| (&link.state, link.is_polling())) {
                // A session in its grace has had its goodbye.
                Some((State::Closing { .. }, true)) => self.finish(slot, false),
                // A request is answered by its session's end.
                Some((State::Closing { .. } | State::Polled(_), false)) => {}
                // It has nothing to hear, unless an answer is still being written.
                Some((State::Head { idle: true, .. }, _)) => self.say_goodbye(now, slot, None, false),
                _ => {
                    drain.closed += 1;
                    self.send_away(now, slot);
                }
            }
        }
        self.drain = Some(drain);
    }

    /// The server stops: says so in the link's own language.
    fn send_away(&mut self, now: Now, slot: u32) {
        let entering = |conn: &u32| self.conns.get(*conn).is_some_and(|conn| conn.opening.is_some());
        let goodbye = match self.links.get(slot).map(|link| &link.state) {
            Some(State::Head { .. } | State::Body(_)) => http::response(503, "text/plain", &[], ""),
            Some(State::Plain { conn }) if entering(conn) => http::response(503, "text/plain", &[], ""),
            Some(State::SocketIo(_)) => ws::empty_close_frame(),
            _ => ws::close_frame(1001, ""),
        };
        self.close_link(now, slot, CloseReason::Shutdown, Some(goodbye));
    }

    /// The request head did not come in time.
    fn head_timeout(&mut self, now: Now, slot: u32) {
        self.stats.unrouted().refused[crate::fault::Refusal::Timeout.index()].add(1);
        self.answer_http(now, slot, http::response(408, "text/plain", &[], ""));
    }

    /// Alarms that are armed, those that were overtaken included.
    #[cfg(test)]
    pub(super) fn armed(&self) -> usize {
        self.wheel.armed()
    }
}
