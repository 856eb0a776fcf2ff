//! A client as its user's program would be: what it knows is what it has heard. It remembers all of that, for the oracles.

use std::collections::BTreeSet;

use super::plan::ROOMS;
use super::talk::Talk;

/// Where a client is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At {
    /// The host's place in the fleet, and its number.
    pub(super) slot: usize,
    pub(super) number: u32,
    /// The client's number on that host.
    pub(super) client: usize,
}

/// How a stay in a room has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It has not.
    Open,
    /// By the client's wish.
    Left,
    /// With its connection.
    Cut,
}

/// One stay in a room, as the client saw it.
#[derive(Debug)]
pub(super) struct Stay {
    pub(super) room: usize,
    pub(super) heard: Vec<u32>,
    /// Hosts on which it was, each with the number of messages heard before.
    pub(super) hosts: Vec<(u32, usize)>,
    /// Everything said by anybody after this step is meant for it; `u64::MAX` where the client does not know since when it is in.
    pub(super) since: u64,
    pub(super) past: Option<Vec<u32>>,
    /// True exactly when it has asked to leave.
    pub(super) leaves: bool,
    /// True exactly when it has asked to leave and then to enter again, and the connection broke before it was told that it is in: answers are not
    /// repeated to who comes back, so it may have been out for a while and does not know it.
    pub(super) may_have_been_out: bool,
    /// True exactly when it went on once with what its host found in Redis: what was missed then comes in the order of the stream.
    pub(super) is_restored: bool,
    pub(super) end: End,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) talk: Talk,
    pub(super) user: usize,
    pub(super) is_witness: bool,
    pub(super) at: Option<At>,
    /// True exactly when the server has let it in.
    pub(super) is_in: bool,
    pub(super) pid: String,
    pub(super) sid: String,
    pub(super) offset: String,
    /// Finished stays and open ones.
    pub(super) stays: Vec<Stay>,
    /// By room: the open one.
    pub(super) open: [Option<usize>; ROOMS],
    /// Asked for, and not answered.
    pub(super) entering: [bool; ROOMS],
    /// What was asked for before the connection broke, and of which host: nobody knows what became of it.
    pub(super) in_doubt: [Option<u32>; ROOMS],
    /// True exactly when it has come back last to what its host found in Redis.
    is_restored: bool,
    /// Heard before the server has said whether it goes on with what it had.
    pub(super) early: Vec<(usize, u32)>,
    pub(super) is_slow: bool,
    /// Said over this connection, and refused.
    pub(super) said: Vec<u32>,
    pub(super) refused: usize,
    pub(super) recovered: u64,
    pub(super) moved: u64,
    /// Who is there by what it was told, by room.
    pub(super) present: [BTreeSet<String>; ROOMS],
    /// A witness's, by room: questions of its host without an answer when it asked to enter.
    pub(super) unanswered: [u64; ROOMS],
    /// True exactly when its host may have shown it those of its own only, because Redis did not answer in time.
    pub(super) is_shown_in_part: [bool; ROOMS],
}

impl Client {
    pub(super) fn new(talk: Talk, user: usize, is_witness: bool) -> Client {
        Client {
            talk,
            user,
            is_witness,
            at: None,
            is_in: false,
            pid: String::new(),
            sid: String::new(),
            offset: String::new(),
            stays: Vec::new(),
            open: [None; ROOMS],
            entering: [false; ROOMS],
            in_doubt: [None; ROOMS],
            is_restored: false,
            early: Vec::new(),
            is_slow: false,
            said: Vec::new(),
            refused: 0,
            recovered: 0,
            moved: 0,
            present: Default::default(),
            unanswered: [0; ROOMS],
            is_shown_in_part: [false; ROOMS],
        }
    }

    pub(super) fn stay(&mut self, room: usize) -> Option<&mut Stay> {
        self.open[room].map(|index| &mut self.stays[index])
    }

    pub(super) fn is_inside(&self, room: usize) -> bool {
        self.open[room].is_some_and(|index| !self.stays[index].leaves)
    }

    pub(super) fn begin(&mut self, room: usize, since: u64, past: Option<Vec<u32>>) {
        let number = self.at.expect("whoever enters is connected").number;
        self.open[room] = Some(self.stays.len());
        let hosts = vec![(number, 0)];
        let (heard, leaves, may_have_been_out, is_restored) = (Vec::new(), false, false, false);
        self.stays.push(Stay { room, heard, hosts, since, past, leaves, may_have_been_out, is_restored, end: End::Open });
    }

    pub(super) fn end(&mut self, room: usize, end: End) {
        if let Some(index) = self.open[room].take() {
            self.stays[index].end = end;
        }
    }

    fn end_all(&mut self) {
        (0..ROOMS).for_each(|room| self.end(room, End::Cut));
        self.in_doubt = [None; ROOMS];
    }

    /// Its transport is gone. Where it can come back, it does not know yet what becomes of it.
    pub(super) fn lose_transport(&mut self) {
        let asked = self.at.map(|at| at.number);
        (self.at, self.is_in, self.is_slow) = (None, false, false);
        self.early.clear();
        self.said.clear();
        self.refused = 0;
        for room in 0..ROOMS {
            if !std::mem::take(&mut self.entering[room]) {
                continue;
            }
            self.in_doubt[room] = asked;
            if let Some(stay) = self.stay(room) {
                stay.may_have_been_out |= stay.leaves;
            }
        }
        if self.pid.is_empty() {
            self.end_all();
        }
    }

    /// The server has let it in; true when it goes on with what it had. `is_restored`: if so, with what was in Redis.
    pub(super) fn let_in(&mut self, sid: String, pid: String, is_restored: bool) -> bool {
        let is_back = !pid.is_empty() && pid == self.pid;
        assert!(!is_back || sid == self.sid, "it came back with another id");
        (self.sid, self.pid, self.is_in) = (sid, pid, true);
        if !is_back {
            assert!(self.early.is_empty(), "it starts anew and has heard {:?}", self.early);
            self.end_all();
            return false;
        }
        self.recovered += 1;
        self.is_restored = is_restored;
        let number = self.at.expect("it is connected").number;
        let mut has_moved = false;
        for index in self.open.into_iter().flatten() {
            let stay = &mut self.stays[index];
            stay.is_restored |= is_restored;
            if stay.hosts.last().is_some_and(|(last, _)| *last != number) {
                stay.hosts.push((number, stay.heard.len()));
                has_moved = true;
            }
        }
        self.moved += u64::from(has_moved);
        true
    }

    /// A message of a room. False when the client is not in it. `is_missed`: said before it came back.
    #[must_use]
    pub(super) fn take(&mut self, room: usize, number: u32, is_missed: bool) -> bool {
        if self.open[room].is_none()
            && let Some(asked) = self.in_doubt[room]
        {
            // It is in after all, since nobody knows when; and where it had asked before it came here.
            self.begin(room, u64::MAX, None);
            let is_restored = self.is_restored;
            if let Some(stay) = self.stay(room) {
                stay.is_restored = is_restored;
                if stay.hosts[0].0 != asked {
                    stay.hosts.insert(0, (asked, 0));
                }
            }
        }
        let Some(stay) = self.stay(room) else { return false };
        // It hears what is said now, so the second of its wishes was fulfilled as well.
        stay.leaves &= is_missed || !stay.may_have_been_out;
        stay.heard.push(number);
        true
    }
}
