//! Deadlines of one shard: a hashed timing wheel. It knows slots and times, not what is due; the owner looks and re-arms.

const SLOTS: usize = 1024;

/// An armed deadline of a table slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Alarm {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    /// What it was armed for; it rings at the first tick that is not before.
    pub(crate) at_ms: u64,
}

/// Alarms hashed by tick. With the usual tick one turn of the wheel is 65 s; an alarm further away stays in its slot until its turn has come.
#[derive(Debug)]
pub(crate) struct Wheel {
    slots: Vec<Vec<Alarm>>,
    tick_ms: u64,
    /// One bit per slot: whether it holds any alarm.
    occupied: [u64; SLOTS / 64],
    /// The next tick to be looked at.
    next: u64,
}

impl Wheel {
    pub(crate) fn new(now_ms: u64, tick_ms: u64) -> Wheel {
        Wheel { slots: vec![Vec::new(); SLOTS], tick_ms, occupied: [0; SLOTS / 64], next: now_ms / tick_ms }
    }

    /// How late an alarm may ring, in milliseconds.
    pub(crate) fn tick_ms(&self) -> u64 {
        self.tick_ms
    }

    /// Rings for the slot at the first tick that is not before `at_ms`.
    pub(crate) fn arm(&mut self, slot: u32, generation: u32, at_ms: u64) {
        let tick = at_ms.div_ceil(self.tick_ms).max(self.next);
        let index = tick as usize % SLOTS;
        self.slots[index].push(Alarm { slot, generation, at_ms });
        self.occupied[index / 64] |= 1 << (index % 64);
    }

    /// Moves everything due at `now_ms` into `due`.
    pub(crate) fn expire(&mut self, now_ms: u64, due: &mut Vec<Alarm>) {
        let tick_ms = self.tick_ms;
        let last = now_ms / tick_ms;
        // After a long sleep one turn of the wheel sees every slot.
        let first = self.next.max((last + 1).saturating_sub(SLOTS as u64));
        for tick in first..=last {
            let index = tick as usize % SLOTS;
            if self.occupied[index / 64] & (1 << (index % 64)) == 0 {
                continue;
            }
            let alarms = &mut self.slots[index];
            due.extend(alarms.extract_if(.., |alarm| alarm.at_ms.div_ceil(tick_ms) <= last));
            if alarms.is_empty() {
                // Many connections that came at once leave no place behind that is for as many.
                *alarms = Vec::new();
                self.occupied[index / 64] &= !(1 << (index % 64));
            }
        }
        self.next = self.next.max(last + 1);
    }

    #[cfg(test)]
    pub(crate) fn armed(&self) -> usize {
        self.slots.iter().map(Vec::len).sum()
    }

    /// Milliseconds of the clock at which the next occupied slot comes up; `None` when nothing is armed.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        const WORDS: usize = SLOTS / 64;
        let first = self.next as usize % SLOTS;
        let upper = !0_u64 << (first % 64);
        // The word of the next tick is looked at twice: what is ahead in it at first, what is a turn away at last.
        (0..=WORDS).find_map(|ahead| {
            let word = (first / 64 + ahead) % WORDS;
            let ticks_of_turn = match ahead {
                0 => upper,
                WORDS => !upper,
                _ => !0,
            };
            let bits = self.occupied[word] & ticks_of_turn;
            let index = word * 64 + bits.trailing_zeros() as usize;
            let ticks = (index + SLOTS - first) % SLOTS;
            (bits != 0).then(|| (self.next + ticks as u64) * self.tick_ms)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TICK_MS;

    #[test]
    fn alarms_ring_once_and_never_early() {
        let mut wheel = Wheel::new(1_000, TICK_MS);
        for (slot, at) in [(1, 1_000), (2, 1_200), (3, 1_000 + 200_000), (4, 0)] {
            wheel.arm(slot, 0, at);
        }
        let mut rung = Vec::new();
        let mut now = 1_000;
        while now < 300_000 {
            let mut due = Vec::new();
            wheel.expire(now, &mut due);
            rung.extend(due.iter().map(|alarm| (alarm.slot, now)));
            now += 50;
        }
        let at = |slot| rung.iter().filter(|(s, _)| *s == slot).map(|(_, at)| *at).collect::<Vec<_>>();
        assert_eq!(rung.len(), 4);
        assert!((1_200..1_400).contains(&at(2)[0]), "{:?}", at(2));
        assert!((201_000..201_200).contains(&at(3)[0]), "{:?}", at(3));
        assert_eq!(wheel.next_ms(), None);
    }

    #[test]
    fn the_next_alarm_is_found_wherever_the_wheel_stands() {
        for now in (0..3_000).step_by(7) {
            for ahead in [1, 2, 63, 64, 65, 500, SLOTS as u64 - 1, SLOTS as u64] {
                let mut wheel = Wheel::new(0, 1);
                wheel.expire(now, &mut Vec::new());
                wheel.arm(0, 0, now + ahead);
                assert_eq!(wheel.next_ms(), Some(now + ahead), "{ahead} after {now}");
                wheel.arm(0, 0, now + 1);
                assert_eq!(wheel.next_ms(), Some(now + 1));
            }
        }
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let mut wheel = Wheel::new(0, TICK_MS);
        for slot in 0..3_000 {
            wheel.arm(slot, 0, u64::from(slot) * 100);
        }
        let mut due = Vec::new();
        wheel.expire(10_000_000, &mut due);
        assert_eq!(due.len(), 3_000);
    }
}
