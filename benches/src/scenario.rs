//! The four scenarios, reduced to what they differ in: how many rooms of how many members, who sends, and how many copies of a
//! message must arrive. A `Plan` is plain arithmetic on connection numbers; it opens nothing.

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Open connections, join, then leave them idle.
    Connect,
    /// One sender, everybody hears.
    FanOut,
    /// Many small rooms, everybody sends in turn.
    Rooms,
    /// Everybody asks the server and hears its answer alone.
    Echo,
}

impl Scenario {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "connect" => Some(Self::Connect),
            "fan-out" => Some(Self::FanOut),
            "rooms" => Some(Self::Rooms),
            "echo" => Some(Self::Echo),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FanOut => "fan-out",
            Self::Rooms => "rooms",
            Self::Echo => "echo",
        }
    }

    /// Unanswered messages allowed at once under `--rate max`: enough to keep a server busy, few enough that the latency measured is its
    /// own and not that of our queue.
    pub(crate) fn default_window(self) -> u64 {
        match self {
            Self::Connect | Self::FanOut => 8,
            Self::Rooms | Self::Echo => 256,
        }
    }
}

/// Connections in rooms, numbered room by room: room `r` holds the connections from `r * members` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) rooms: u32,
    pub(crate) members: u32,
    /// How many of a room's members send.
    pub(crate) senders: u32,
    pub(crate) workers: u32,
}

impl Plan {
    /// The plan of a scenario; numbers not given take the scenario's own. Connections are rounded down to full rooms.
    pub(crate) fn new(scenario: Scenario, connections: Option<u32>, rooms: Option<u32>, workers: u32) -> Self {
        let (rooms, connections) = match scenario {
            Scenario::Connect => {
                let connections = connections.unwrap_or(5_000);
                (rooms.unwrap_or(connections.div_ceil(10)), connections)
            }
            Scenario::FanOut => (1, connections.unwrap_or(1_000)),
            Scenario::Rooms => {
                let rooms = rooms.unwrap_or(1_000);
                (rooms, connections.unwrap_or(rooms.saturating_mul(10)))
            }
            // A room each: whatever the echo does reaches nobody else.
            Scenario::Echo => (connections.unwrap_or(1_000), connections.unwrap_or(1_000)),
        };
        let members = connections.checked_div(rooms).unwrap_or(0);
        let senders = if scenario == Scenario::FanOut { 1 } else { members };
        Self { scenario, rooms, members, senders, workers }
    }

    pub(crate) fn connections(&self) -> u32 {
        self.rooms * self.members
    }

    /// How many connections hear one message, the sender's included.
    pub(crate) fn copies(&self) -> u32 {
        if self.scenario == Scenario::Echo { 1 } else { self.members }
    }

    pub(crate) fn room_of(&self, connection: u32) -> u32 {
        connection / self.members
    }

    /// The first connection of a room.
    pub(crate) fn first_of(&self, room: u32) -> u32 {
        room * self.members
    }

    pub(crate) fn is_sender(&self, connection: u32) -> bool {
        connection % self.members < self.senders
    }

    /// True exactly when the members of one room live on several workers, so that none of them alone knows what was delivered.
    pub(crate) fn splits_rooms(&self) -> bool {
        self.rooms < self.workers
    }

    /// The worker thread that drives a connection: whole rooms stay together where there are enough of them.
    pub(crate) fn worker_of(&self, connection: u32) -> u32 {
        if self.splits_rooms() { connection % self.workers } else { self.room_of(connection) % self.workers }
    }

    pub(crate) fn connections_of(&self, worker: u32) -> Vec<u32> {
        (0..self.connections()).filter(|connection| self.worker_of(*connection) == worker).collect()
    }

    /// Share of all senders that a worker drives.
    pub(crate) fn share_of(&self, senders: usize) -> f64 {
        senders as f64 / f64::from(self.rooms * self.senders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_readme() {
        let shape = |scenario| {
            let plan = Plan::new(scenario, None, None, 1);
            (plan.rooms, plan.members, plan.senders, plan.copies())
        };
        assert_eq!(shape(Scenario::Connect), (500, 10, 10, 10));
        assert_eq!(shape(Scenario::FanOut), (1, 1_000, 1, 1_000));
        assert_eq!(shape(Scenario::Rooms), (1_000, 10, 10, 10));
        assert_eq!(shape(Scenario::Echo), (1_000, 1, 1, 1));
    }

    #[test]
    fn every_connection_has_one_worker_and_small_rooms_stay_whole() {
        for workers in 1..4 {
            let plan = Plan::new(Scenario::Rooms, Some(60), Some(6), workers);
            let all: usize = (0..workers).map(|worker| plan.connections_of(worker).len()).sum();
            assert_eq!(all, 60);
            assert!((0..60).all(|c| plan.worker_of(c) == plan.worker_of(plan.first_of(plan.room_of(c)))));
        }
        let split = Plan::new(Scenario::FanOut, Some(10), None, 2);
        assert!(split.splits_rooms() && split.worker_of(0) == 0 && split.worker_of(1) == 1);
    }
}
