//! Whether every message arrived once and in order. A message carries a `Mark` (who, which, when); each receiver keeps a `Ledger` of
//! what it heard, and at the end the ledgers are settled against what was sent. Knows nothing of sockets or dialects.

use std::ops::Range;

/// What begins a mark. Neither names nor server-made ids contain it.
const SIGN: &[u8; 2] = b"@@";
/// The sender of what is said to everybody: no connection, but the back end.
pub(crate) const BROADCASTER: u32 = u32::MAX;
/// Bytes of a written mark.
pub(crate) const MARK_LENGTH: usize = 2 + 8 + 8 + 16;

/// The identity of one sent message, written as fixed-width hexadecimal so that it survives any JSON encoder unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Number of the connection that sent it, among all of the run.
    pub(crate) sender: u32,
    /// Counts the sender's messages from 0.
    pub(crate) sequence: u32,
    /// When it was due, in nanoseconds of the run's clock.
    pub(crate) stamp: u64,
}

impl Mark {
    pub(crate) fn write(self) -> [u8; MARK_LENGTH] {
        let mut bytes = [0; MARK_LENGTH];
        bytes[..2].copy_from_slice(SIGN);
        write_hex(u64::from(self.sender), &mut bytes[2..10]);
        write_hex(u64::from(self.sequence), &mut bytes[10..18]);
        write_hex(self.stamp, &mut bytes[18..]);
        bytes
    }

    /// The mark inside `text`, looked for first where the last one was: the messages of a run are all alike.
    pub(crate) fn find(text: &[u8], hint: &mut usize) -> Option<Self> {
        if text.get(*hint..*hint + 2) != Some(SIGN) {
            *hint = memchr::memmem::find(text, SIGN)?;
        }
        let bytes = text.get(*hint..*hint + MARK_LENGTH)?;
        Some(Self { sender: read_hex(&bytes[2..10])? as u32, sequence: read_hex(&bytes[10..18])? as u32, stamp: read_hex(&bytes[18..])? })
    }
}

/// What one receiver heard from all senders of its room, in arrival order.
#[derive(Default)]
pub(crate) struct Ledger {
    heard: Vec<Heard>,
    /// What was said to everybody.
    broadcasts: Heard,
    /// A hash of every arrival in turn: equal between two members exactly when they heard the same in the same order.
    pub(crate) order: u64,
    pub(crate) doubled: u64,
    pub(crate) misordered: u64,
    /// Messages of senders that are not in the receiver's room.
    pub(crate) foreign: u64,
}

impl Ledger {
    pub(crate) fn new(senders: u32) -> Self {
        Self { heard: (0..senders).map(|_| Heard::default()).collect(), ..Self::default() }
    }

    /// Notes one arrival; `sender` counts from 0 within the room.
    pub(crate) fn note(&mut self, sender: u32, sequence: u32) {
        let Some(heard) = self.heard.get_mut(sender as usize) else {
            self.foreign += 1;
            return;
        };
        self.order = (self.order.rotate_left(5) ^ (u64::from(sender) << 32 | u64::from(sequence))).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let arrival = heard.note(sequence);
        self.count(arrival);
    }

    /// Notes one message to everybody. It has no place in the room's order.
    pub(crate) fn note_broadcast(&mut self, sequence: u32) {
        let arrival = self.broadcasts.note(sequence);
        self.count(arrival);
    }

    fn count(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::InOrder => {}
            Arrival::Late => self.misordered += 1,
            Arrival::Again => self.doubled += 1,
        }
    }

    /// How many of the `sent` messages of a sender (from 0 within the room) have not arrived.
    pub(crate) fn lost(&self, sender: u32, sent: u32) -> u64 {
        self.heard.get(sender as usize).map_or(u64::from(sent), |heard| heard.lost(sent))
    }

    /// How many of the `sent` messages to everybody have not arrived.
    pub(crate) fn lost_broadcasts(&self, sent: u32) -> u64 {
        self.broadcasts.lost(sent)
    }
}

#[derive(Clone, Copy)]
enum Arrival {
    InOrder,
    /// It filled a gap: a later message of the same sender came before it.
    Late,
    Again,
}

/// What has arrived of one sender: everything below `next` except the gaps.
#[derive(Default)]
struct Heard {
    next: u32,
    gaps: Vec<Range<u32>>,
}

impl Heard {
    fn note(&mut self, sequence: u32) -> Arrival {
        if sequence >= self.next {
            if sequence > self.next {
                self.gaps.push(self.next..sequence);
            }
            self.next = sequence.saturating_add(1);
            return Arrival::InOrder;
        }
        let Some(at) = self.gaps.iter().position(|gap| gap.contains(&sequence)) else { return Arrival::Again };
        let gap = self.gaps.swap_remove(at);
        self.gaps.extend([gap.start..sequence, sequence + 1..gap.end].into_iter().filter(|rest| !rest.is_empty()));
        Arrival::Late
    }

    fn lost(&self, sent: u32) -> u64 {
        let inside: u64 = self.gaps.iter().map(|gap| gap.len() as u64).sum();
        inside + u64::from(sent.saturating_sub(self.next))
    }
}

fn write_hex(mut value: u64, out: &mut [u8]) {
    for byte in out.iter_mut().rev() {
        *byte = b"0123456789abcdef"[(value & 0xF) as usize];
        value >>= 4;
    }
}

/// The number that so many groups of eight lower-case digits are.
fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.as_chunks().0.iter().try_fold(0, |value, eight| Some(value << 32 | u64::from(read_eight(*eight)?)))
}

/// All eight at once: with a branch a digit, marks would be what the generator does most.
fn read_eight(digits: [u8; 8]) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_be_bytes(digits);
    // Of the allowed characters only letters have bit 6.
    let letters = (text >> 6) & ONES;
    let nibbles = (text & (0x0F * ONES)) + 9 * letters;
    let are_nibbles = nibbles & (0xF0 * ONES) == 0;
    let are_as_big_as_they_look = ((nibbles + 6 * ONES) >> 4) & ONES == letters;
    let are_so_written = nibbles + (b'0' as u64 * ONES) + ((b'a' - b'0' - 10) as u64 * letters) == text;
    if !(are_nibbles && are_as_big_as_they_look && are_so_written) {
        return None;
    }
    let bytes = (nibbles | nibbles >> 4) & 0x00FF_00FF_00FF_00FF;
    let pairs = (bytes | bytes >> 8) & 0x0000_FFFF_0000_FFFF;
    Some((pairs | pairs >> 16) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_read_as_they_are_written() {
        for value in [0, 1, 0x0123_4567, 0x89AB_CDEF, u32::MAX, 0xA0B0_C0D0, 0x0A0B_0C0D].map(u64::from) {
            let mut written = [0; 16];
            write_hex(value << 32 | 0x99, &mut written);
            assert_eq!(read_hex(&written), Some(value << 32 | 0x99));
        }
        for place in 0..8 {
            for byte in 0..=u8::MAX {
                let mut digits = *b"0a9f5c7e";
                digits[place] = byte;
                assert_eq!(read_hex(&digits).is_some(), matches!(byte, b'0'..=b'9' | b'a'..=b'f'), "{digits:?}");
            }
        }
    }

    fn ledger_of(sequences: &[u32]) -> Ledger {
        let mut ledger = Ledger::new(1);
        sequences.iter().for_each(|sequence| ledger.note(0, *sequence));
        ledger
    }

    #[test]
    fn a_mark_survives_its_text_wherever_it_stands() {
        let mark = Mark { sender: 7, sequence: 0xFFFF_FFFF, stamp: 123_456_789_012 };
        let mut text = b"{\"content\":\"".to_vec();
        text.extend(mark.write());
        text.extend(b"xxx\"}");
        let mut hint = 0;
        assert_eq!(Mark::find(&text, &mut hint), Some(mark));
        assert_eq!(hint, 12);
        text.insert(0, b' ');
        assert_eq!(Mark::find(&text, &mut hint), Some(mark));
        assert_eq!(Mark::find(&text[..30], &mut hint), None);
        assert_eq!(Mark::find(b"nothing", &mut hint), None);
    }

    #[test]
    fn all_in_order_is_clean() {
        let ledger = ledger_of(&[0, 1, 2, 3]);
        assert_eq!((ledger.lost(0, 4), ledger.doubled, ledger.misordered, ledger.foreign), (0, 0, 0, 0));
    }

    #[test]
    fn lost_doubled_and_late_are_told_apart() {
        let dropped = ledger_of(&[0, 2, 5]);
        assert_eq!((dropped.lost(0, 8), dropped.doubled, dropped.misordered), (5, 0, 0));
        let doubled = ledger_of(&[0, 0, 1, 2, 1]);
        assert_eq!((doubled.lost(0, 3), doubled.doubled, doubled.misordered), (0, 2, 0));
        let swapped = ledger_of(&[1, 0, 4, 3, 2, 3]);
        assert_eq!((swapped.lost(0, 5), swapped.doubled, swapped.misordered), (0, 1, 3));
    }

    #[test]
    fn a_gap_of_any_size_costs_one_range() {
        let ledger = ledger_of(&[u32::MAX - 1, 9]);
        assert_eq!((ledger.heard[0].gaps.len(), ledger.misordered), (2, 1));
        assert_eq!(ledger.lost(0, u32::MAX - 1), u64::from(u32::MAX) - 2);
    }

    #[test]
    fn what_is_said_to_everybody_is_counted_apart() {
        let mut ledger = Ledger::new(1);
        ledger.note(0, 0);
        let order = ledger.order;
        [0, 2, 2].into_iter().for_each(|sequence| ledger.note_broadcast(sequence));
        assert_eq!((ledger.lost_broadcasts(4), ledger.doubled, ledger.foreign), (2, 1, 0));
        assert_eq!((ledger.lost(0, 1), ledger.order), (0, order));
    }

    #[test]
    fn a_stranger_is_foreign_and_two_orders_differ() {
        let mut ledger = Ledger::new(2);
        ledger.note(2, 0);
        assert_eq!((ledger.foreign, ledger.order), (1, 0));
        let mut other = Ledger::new(2);
        ledger.note(0, 0);
        ledger.note(1, 0);
        other.note(1, 0);
        other.note(0, 0);
        assert_ne!(ledger.order, other.order);
    }
}
