//! How many connections and handshakes come from one address, for all shards together. A fixed table of atomic counters hashed with a
//! secret key: no lock, no growth; two addresses that share a counter share a bound, which nobody outside can arrange.

use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::fault::Refusal;
use crate::limits::{Limits, TURNED_AWAY_MAX};

/// Counters of the table; 16 times the connections that fit into a descriptor table of a usual size.
const COUNTERS: usize = 1 << 16;
/// Calls over plain HTTP that count as one handshake: each is answered and over, and behind one address may be a whole office.
const CALLS_PER_HANDSHAKE: u64 = 10;
/// The window of the handshake rate, milliseconds (contract).
const WINDOW_MS: u64 = 10_000;

/// The process's doorman.
#[derive(Debug)]
pub struct Addresses {
    hasher: foldhash::quality::FixedState,
    open: Box<[AtomicU32]>,
    /// Window number in the upper half, handshakes in the lower.
    handshakes: Box<[AtomicU64]>,
    /// The same of calls over plain HTTP.
    calls: Box<[AtomicU64]>,
    /// Connections of the process.
    total: AtomicUsize,
    total_max: usize,
    per_address_max: u32,
    handshakes_max: u32,
}

/// A counted connection; give it back with [`Addresses::close`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u16);

const _: () = assert!(COUNTERS <= 1 << 16);

impl Addresses {
    /// `total_max`: connections the process may hold.
    pub fn new(limits: &Limits, total_max: usize) -> Addresses {
        Addresses::seeded(limits, total_max, foldhash::quality::RandomState::default().hash_one(()))
    }

    /// The same with a secret that goes on over a reload, and with it the places of the counters.
    pub fn seeded(limits: &Limits, total_max: usize, seed: u64) -> Addresses {
        Addresses {
            hasher: foldhash::quality::FixedState::with_seed(seed),
            open: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(),
            handshakes: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            calls: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            total: AtomicUsize::new(0),
            total_max,
            per_address_max: limits.connections_per_address,
            handshakes_max: limits.handshakes_per_address,
        }
    }

    /// Counts one more connection of the process; false when it holds as many as it may. Either way [`Self::leave`] takes it back.
    pub fn enter(&self) -> bool {
        self.total.fetch_add(1, Relaxed) < self.total_max
    }

    /// True exactly when so many are beyond what the process may hold that no more of them are heard before they are turned away.
    pub fn is_flooded(&self) -> bool {
        self.total.load(Relaxed) >= self.total_max.saturating_add(TURNED_AWAY_MAX.min(self.total_max.div_ceil(8)))
    }

    /// True exactly when the process holds more connections than it may: those that are being turned away.
    pub fn is_overfull(&self) -> bool {
        self.total.load(Relaxed) > self.total_max
    }

    /// A connection of the process has gone.
    pub fn leave(&self) {
        self.total.fetch_sub(1, Relaxed);
    }

    /// The counter of an address. An IPv6 customer owns a /64, so that is what is bounded.
    fn index(&self, address: IpAddr) -> usize {
        let hash = match address.to_canonical() {
            IpAddr::V4(v4) => self.hasher.hash_one(v4.octets()),
            IpAddr::V6(v6) => self.hasher.hash_one(&v6.octets()[..8]),
        };
        hash as usize % COUNTERS
    }

    /// Counts a handshake from an address and the connection it may become.
    pub fn open(&self, address: IpAddr, now_ms: u64) -> Result<Ticket, Refusal> {
        let index = self.index(address);
        self.admit(index, &self.handshakes[index], u64::from(self.handshakes_max), now_ms)
    }

    /// Counts a call over plain HTTP from an address and its connection.
    pub fn call(&self, address: IpAddr, now_ms: u64) -> Result<Ticket, Refusal> {
        let index = self.index(address);
        self.admit(index, &self.calls[index], u64::from(self.handshakes_max) * CALLS_PER_HANDSHAKE, now_ms)
    }

    fn admit(&self, index: usize, counter: &AtomicU64, most: u64, now_ms: u64) -> Result<Ticket, Refusal> {
        let window = now_ms / WINDOW_MS;
        let seen = counter.load(Relaxed);
        let next = if seen >> 32 == window & 0xffff_ffff { seen + 1 } else { (window & 0xffff_ffff) << 32 | 1 };
        // Two shards may lose one count to each other here; the bound is against floods, not an account.
        counter.store(next, Relaxed);
        if next & 0xffff_ffff > most {
            return Err(Refusal::AddressLimit);
        }
        if self.open[index].fetch_add(1, Relaxed) >= self.per_address_max {
            self.open[index].fetch_sub(1, Relaxed);
            return Err(Refusal::AddressLimit);
        }
        Ok(Ticket(index as u16))
    }

    /// Counts a connection that stays after its HTTP answer. Only while half of the address's places are free: what merely stays must
    /// never keep newcomers out. `None`: it has to close.
    pub fn stay(&self, address: IpAddr) -> Option<Ticket> {
        let index = self.index(address);
        if self.open[index].fetch_add(1, Relaxed) >= self.per_address_max / 2 {
            self.open[index].fetch_sub(1, Relaxed);
            return None;
        }
        Some(Ticket(index as u16))
    }

    /// What has been counted lately, as plain data: handshakes and calls, each with the place of its counter.
    pub fn freeze(&self) -> [Vec<(u16, u64)>; 2] {
        [&self.handshakes, &self.calls].map(|counters| {
            let counted = counters.iter().enumerate().map(|(index, counter)| (index as u16, counter.load(Relaxed)));
            counted.filter(|(_, count)| *count > 0).collect()
        })
    }

    /// The opposite of [`Self::freeze`], with the same seed.
    pub fn thaw(&self, counted: &[Vec<(u16, u64)>; 2]) {
        for (counters, counted) in [&self.handshakes, &self.calls].into_iter().zip(counted) {
            for (index, count) in counted {
                counters[usize::from(*index)].store(*count, Relaxed);
            }
        }
    }

    /// Counts a connection that was counted before this process became what it is.
    pub fn reopen(&self, address: IpAddr) -> Ticket {
        let index = self.index(address);
        self.open[index].fetch_add(1, Relaxed);
        Ticket(index as u16)
    }

    /// The connection has gone.
    pub fn close(&self, ticket: Ticket) {
        self.open[usize::from(ticket.0)].fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_bounds() {
        let limits = Limits { connections_per_address: 2, handshakes_per_address: 4, ..Limits::default() };
        let doors = Addresses::new(&limits, 10);
        let (a, b): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let first = doors.open(a, 0).expect("1 of 2");
        doors.open(a, 0).expect("2 of 2");
        assert_eq!(doors.open(a, 0), Err(Refusal::AddressLimit));
        doors.open(b, 0).expect("another address");
        doors.close(first);
        doors.open(a, 0).expect("one has gone");
        assert_eq!(doors.open(a, 0), Err(Refusal::AddressLimit), "five handshakes in ten seconds");
        doors.close(first);
        doors.open(a, 10_000).expect("the next window");
    }

    #[test]
    fn calls_have_a_larger_bound_of_their_own() {
        let doors = Addresses::new(&Limits { handshakes_per_address: 2, ..Limits::default() }, 100);
        let address: IpAddr = [127, 0, 0, 1].into();
        for _ in 0..20 {
            doors.close(doors.call(address, 0).expect("20 in the window"));
        }
        assert_eq!(doors.call(address, 0), Err(Refusal::AddressLimit));
        doors.open(address, 0).expect("they are no handshakes");
        doors.call(address, 10_000).expect("the next window");
        let places = Addresses::new(&Limits { connections_per_address: 1, ..Limits::default() }, 100);
        places.call(address, 0).expect("a place");
        assert_eq!(places.open(address, 0), Err(Refusal::AddressLimit), "a call under way is a connection");
    }

    #[test]
    fn who_merely_stays_leaves_half_of_the_places() {
        let doors = Addresses::new(&Limits { connections_per_address: 4, ..Limits::default() }, 10);
        let address: IpAddr = [127, 0, 0, 1].into();
        let kept = [doors.stay(address), doors.stay(address)].map(|ticket| ticket.expect("half is free"));
        assert_eq!(doors.stay(address), None);
        let newcomers = [doors.open(address, 0), doors.open(address, 0)].map(|ticket| ticket.expect("the other half"));
        assert!(doors.open(address, 0).is_err());
        for ticket in kept.into_iter().chain(newcomers) {
            doors.close(ticket);
        }
        assert!(doors.stay(address).is_some());
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let doors = Addresses::new(&Limits { connections_per_address: 1, ..Limits::default() }, 10);
        doors.open("2001:db8::1".parse().expect("address"), 0).expect("first");
        assert!(doors.open("2001:db8::2".parse().expect("address"), 0).is_err());
        doors.open("2001:db8:0:1::1".parse().expect("address"), 0).expect("another network");
    }
}
