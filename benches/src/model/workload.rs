//! What is asked of the servers and what they run on, in few numbers; and the sizes of rooms, which decide how many hear a message.

/// How many members rooms have: sizes from 2 to a largest, rooms of size k being proportional to k to the power of minus `exponent`.
#[derive(Clone, Debug)]
pub(crate) struct RoomSizes {
    /// Size, and the share of rooms that have it.
    shares: Vec<(f64, f64)>,
}

impl RoomSizes {
    pub(crate) fn zipf(exponent: f64, largest: u32) -> Self {
        Self::of((2..=largest.max(2)).map(|size| (f64::from(size), f64::from(size).powf(-exponent))).collect())
    }

    pub(crate) fn all_of(size: u32) -> Self {
        Self::of(vec![(f64::from(size), 1.0)])
    }

    fn of(weights: Vec<(f64, f64)>) -> Self {
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        Self { shares: weights.into_iter().map(|(size, weight)| (size, weight / sum)).collect() }
    }

    /// Members of a room in the mean.
    pub(crate) fn mean(&self) -> f64 {
        self.shares.iter().map(|(size, share)| size * share).sum()
    }

    /// The mean of `value` over messages, each said by somebody taken at random: a large room has more who speak.
    pub(crate) fn per_message(&self, value: impl Fn(f64) -> f64) -> f64 {
        self.shares.iter().map(|(size, share)| size * share * value(*size)).sum::<f64>() / self.mean()
    }

    /// Room sizes and how much of all talk is in rooms up to each, for drawing.
    pub(crate) fn talk(&self) -> Vec<(f64, u32)> {
        let mut up_to = 0.0;
        let mean = self.mean();
        let step = |(size, share): &(f64, f64)| {
            up_to += size * share / mean;
            (up_to, *size as u32)
        };
        self.shares.iter().map(step).collect()
    }
}

/// Hosts that the members of a room of `size` are on, in the mean, where each is on any of `hosts`.
pub(crate) fn hosts_of(size: f64, hosts: f64) -> f64 {
    hosts * (1.0 - (1.0 - 1.0 / hosts).powf(size))
}

/// What the clients do.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) says: &'static str,
    pub(crate) connections: f64,
    /// True exactly when clients speak Socket.IO.
    pub(crate) socket_io: bool,
    /// Share of the users who say something now and then.
    pub(crate) active: f64,
    /// Messages of each of these per minute.
    pub(crate) messages_per_minute: f64,
    pub(crate) rooms: RoomSizes,
    pub(crate) payload_bytes: f64,
    /// Messages to everybody per minute.
    pub(crate) broadcasts_per_minute: f64,
    pub(crate) ping_seconds: f64,
    /// How long a connection lasts.
    pub(crate) session_minutes: f64,
    /// True exactly when everybody is told of everybody's coming and going, as in dialect rooms.
    pub(crate) told_to_all: bool,
    /// Share of clients that read nothing, until their heartbeat is missed.
    pub(crate) slow: f64,
}

/// What waits at most for a client that reads nothing: `limits.outbox_bytes`, and the socket's own buffer before it.
pub(crate) const WAITING_BYTES_MAX: f64 = 1_000_000.0 + 4_194_304.0;
/// How long it is waited for such a client: the interval of heartbeats and as long again for the answer.
pub(crate) const WAITING_SECONDS: f64 = 60.0;

impl Workload {
    /// Nearly silent clients that hear an alert now and then.
    pub(crate) fn alerts(connections: f64) -> Self {
        Self {
            name: "alerts",
            says: "one message to everybody a minute, nobody speaks",
            connections,
            socket_io: false,
            active: 0.0,
            messages_per_minute: 0.0,
            rooms: RoomSizes::all_of(2),
            payload_bytes: 128.0,
            broadcasts_per_minute: 1.0,
            ping_seconds: 30.0,
            session_minutes: 30.0,
            told_to_all: false,
            slow: 0.0,
        }
    }

    /// Small rooms, a tenth of the users speaks.
    pub(crate) fn chat(connections: f64) -> Self {
        Self {
            name: "chat",
            says: "a tenth of the users says 2 messages a minute; rooms of 2 to 1,000, most small (k^-2.5)",
            active: 0.1,
            messages_per_minute: 2.0,
            rooms: RoomSizes::zipf(2.5, 1_000),
            broadcasts_per_minute: 0.0,
            ..Self::alerts(connections)
        }
    }

    /// The same, louder.
    pub(crate) fn busy(connections: f64) -> Self {
        Self {
            name: "busy",
            says: "the same, but half of the users says 6 a minute",
            active: 0.5,
            messages_per_minute: 6.0,
            ..Self::chat(connections)
        }
    }

    /// Chat where presence goes to everybody.
    pub(crate) fn told(connections: f64) -> Self {
        Self {
            name: "told",
            says: "chat over Socket.IO, a user each, and everybody is told of everybody's coming and going (`rooms`)",
            socket_io: true,
            told_to_all: true,
            ping_seconds: 25.0,
            ..Self::chat(connections)
        }
    }

    pub(crate) fn all(connections: f64) -> Vec<Self> {
        vec![Self::alerts(connections), Self::chat(connections), Self::busy(connections), Self::told(connections)]
    }

    /// Messages per second, of all users together.
    pub(crate) fn messages(&self) -> f64 {
        self.connections * self.active * self.messages_per_minute / 60.0
    }

    /// Connections that end, and as many that begin, per second.
    pub(crate) fn turnover(&self) -> f64 {
        self.connections / (self.session_minutes * 60.0)
    }
}

/// One host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) cores: f64,
    pub(crate) memory_bytes: f64,
    pub(crate) nic_bits: f64,
    /// Packets per second in one direction that network card and kernel take beside the work counted per delivery.
    pub(crate) nic_packets: f64,
    /// Descriptors of the process: `fs.nr_open` is 1,048,576 unless raised.
    pub(crate) descriptors: f64,
    /// `net.netfilter.nf_conntrack_max`: 262,144 unless raised, where connections are tracked at all.
    pub(crate) tracked: f64,
}

impl Machine {
    /// A usual one, as the distribution left it.
    pub(crate) const USUAL: Self =
        Self { cores: 8.0, memory_bytes: 32e9, nic_bits: 10e9, nic_packets: 5e6, descriptors: 1_048_576.0, tracked: 262_144.0 };
    /// A large one, set up for this.
    pub(crate) const LARGE: Self =
        Self { cores: 64.0, memory_bytes: 256e9, nic_bits: 25e9, nic_packets: 20e6, descriptors: 16e6, tracked: 16e6 };
}

/// Several hosts and the Redis that joins them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub(crate) hosts: f64,
    pub(crate) way: Way,
    /// Redis nodes that share the work, one core each.
    pub(crate) redis_nodes: f64,
    pub(crate) redis_nic_bits: f64,
}

/// How a message gets from host to host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One channel that every host listens to: Socket.IO's classic adapter. One node carries it, however many there are.
    Everyone,
    /// A channel per room, which only hosts with members listen to: community's channels, Socket.IO's sharded adapter.
    WhoHasIt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_rooms_are_small_and_most_talk_is_in_large_ones() {
        let sizes = RoomSizes::zipf(2.5, 1_000);
        assert!((4.0..5.0).contains(&sizes.mean()), "{}", sizes.mean());
        let heard = sizes.per_message(|size| size);
        assert!((35.0..45.0).contains(&heard), "{heard}");
        let talk = sizes.talk();
        assert!(talk.is_sorted() && talk.last().is_some_and(|(up_to, size)| (up_to - 1.0).abs() < 1e-9 && *size == 1_000));
        assert_eq!(RoomSizes::all_of(10).per_message(|size| size), 10.0);
    }

    #[test]
    fn members_spread_over_hosts() {
        assert_eq!(hosts_of(1.0, 8.0), 1.0);
        assert!((hosts_of(2.0, 8.0) - 1.875).abs() < 1e-9);
        assert!(hosts_of(1e4, 8.0) > 7.99 && hosts_of(5.0, 1.0) == 1.0);
    }
}
