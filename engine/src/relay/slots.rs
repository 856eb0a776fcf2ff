//! Where in a Redis cluster a command belongs: a key's slot, the masters that have the slots, and what a node says when it is the wrong one.
//! It knows no connection. The facts are those of the Redis cluster specification.

use super::request::{Call, Reply};

/// Slots of every cluster.
const SLOTS: u16 = 16_384;

/// A node's host and port.
pub(super) type NodeAddress = (String, u16);

/// Which node a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The master of a slot.
    Slot(u16),
    /// Anybody.
    Any,
    /// Every master, and the answers are put together.
    All,
}

/// The slot of a key or of a sharded channel: of the part between the first braces, if there is one.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tagged = key.iter().position(|byte| *byte == b'{').and_then(|start| {
        let rest = &key[start + 1..];
        rest.iter().position(|byte| *byte == b'}').filter(|length| *length > 0).map(|length| &rest[..length])
    });
    crc16(tagged.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    })
}

/// Where a command belongs, by where its first key stands.
pub(super) fn route(call: &Call) -> Route {
    let is = |at: usize, text: &str| call.word(at).eq_ignore_ascii_case(text.as_bytes());
    let name = call.word(0).to_ascii_uppercase();
    match name.as_slice() {
        b"PUBLISH" | b"PING" | b"ECHO" | b"TIME" | b"INFO" | b"CLUSTER" | b"CONFIG" | b"CLIENT" | b"ACL" => Route::Any,
        b"PUBSUB" | b"SCRIPT" | b"FUNCTION" => Route::All,
        b"EVAL" | b"EVALSHA" | b"EVAL_RO" | b"EVALSHA_RO" | b"FCALL" | b"FCALL_RO" => {
            if is(2, "0") {
                Route::Any
            } else {
                Route::Slot(slot(call.word(3)))
            }
        }
        b"XREAD" | b"XREADGROUP" => match (1..call.words().len()).find(|at| is(*at, "STREAMS")) {
            Some(at) => Route::Slot(slot(call.word(at + 1))),
            None => Route::Any,
        },
        b"XINFO" | b"XGROUP" | b"OBJECT" | b"MEMORY" => Route::Slot(slot(call.word(2))),
        _ if call.words().len() < 2 => Route::Any,
        _ => Route::Slot(slot(call.word(1))),
    }
}

/// Puts together what all masters answered: counts are added, lists of name and count (`PUBSUB NUMSUB`) name by name, other lists joined; of
/// everything else, and of refusals, one stands for all.
pub(super) fn together(answers: Vec<Reply>) -> Reply {
    let mut answers = answers.into_iter();
    let Some(mut sum) = answers.next() else { return Reply::Nil };
    for answer in answers {
        match (&mut sum, answer) {
            (Reply::Error(_), _) => {}
            (_, refusal @ Reply::Error(_)) => sum = refusal,
            (Reply::Int(sum), Reply::Int(more)) => *sum = sum.saturating_add(more),
            (Reply::List(sum), Reply::List(more)) => {
                let is_counts = sum.len() == more.len()
                    && sum.iter().zip(&more).skip(1).step_by(2).any(|pair| matches!(pair, (Reply::Int(_), Reply::Int(_))));
                if is_counts {
                    for (sum, more) in sum.iter_mut().zip(more) {
                        if let (Reply::Int(sum), Reply::Int(more)) = (sum, more) {
                            *sum = sum.saturating_add(more);
                        }
                    }
                } else {
                    sum.extend(more);
                }
            }
            _ => {}
        }
    }
    sum
}

/// Who has which slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    /// First slot, last slot, and the index of their master.
    ranges: Vec<(u16, u16, usize)>,
    masters: Vec<NodeAddress>,
}

impl Slots {
    /// Of the answer to `CLUSTER SLOTS`; `asked` is who gave it, who may not know its own name. `None` when it is no such answer, or nobody has a slot.
    pub(super) fn of(answer: &Reply, asked: &str) -> Option<Self> {
        let mut found = Vec::new();
        for range in answer.list() {
            let [start, end, master, ..] = range.list() else { return None };
            let [host, port, ..] = master.list() else { return None };
            let host = host.text().filter(|host| !host.is_empty()).unwrap_or(asked).to_owned();
            let address = (host, u16::try_from(port.int()?).ok()?);
            let [start, end] = [start, end].map(|slot| slot.int().and_then(|slot| u16::try_from(slot).ok()));
            found.push((start?, end?, address));
        }
        // Nodes tell the same in orders of their own.
        found.sort_unstable();
        let mut slots = Self::default();
        for (start, end, address) in found {
            let known = slots.masters.iter().position(|master| *master == address);
            let master = known.unwrap_or_else(|| {
                slots.masters.push(address);
                slots.masters.len() - 1
            });
            slots.ranges.push((start, end, master));
        }
        (!slots.ranges.is_empty()).then_some(slots)
    }

    /// The master of a slot; `None` while nobody has it.
    pub(super) fn owner(&self, slot: u16) -> Option<&NodeAddress> {
        let after = self.ranges.partition_point(|(start, ..)| *start <= slot);
        let (_, end, master) = self.ranges[..after].last()?;
        (slot <= *end).then(|| &self.masters[*master])
    }

    /// All masters that have slots.
    pub(super) fn masters(&self) -> &[NodeAddress] {
        &self.masters
    }
}

/// What a node answers that does not have the slot, or not quite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// Another has it from now on.
    Moved(NodeAddress),
    /// Another has this key already.
    Ask(NodeAddress),
    /// In a moment.
    Again,
}

impl Redirect {
    /// Of a refusal, if it is one of these: what it was for has not been done. `asked` is who said it.
    pub(super) fn of(reply: &Reply, asked: &str) -> Option<Self> {
        let mut words = reply.error()?.split(' ');
        let code = words.next()?;
        let mut address = || {
            let (host, port) = words.nth(1)?.rsplit_once(':')?;
            Some((if host.is_empty() { asked } else { host }.to_owned(), port.parse().ok()?))
        };
        match code {
            "MOVED" => address().map(Self::Moved),
            "ASK" => address().map(Self::Ask),
            // A master that has become a replica, a cluster in the middle of replacing one, a node that starts.
            "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" | "READONLY" => Some(Self::Again),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Call {
        let mut words = line.split(' ');
        words.by_ref().take(1).map(Call::new).next().map(|call| words.fold(call, Call::arg)).expect("a name")
    }

    fn bytes(text: &str) -> Reply {
        Reply::Bytes(text.as_bytes().to_vec())
    }

    #[test]
    fn slots_of_keys() {
        // Of the specification, and what `CLUSTER KEYSLOT` of a Redis 7 says.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, expected) in [("foo", 12_182), ("bar", 5_061), ("{foo}bar", 12_182), ("a{foo}{bar}", 12_182), ("", 0)] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(slot(b"a{}b"), crc16(b"a{}b") % SLOTS, "empty braces do not count");
        assert_eq!(slot(b"a{b"), crc16(b"a{b") % SLOTS);
    }

    #[test]
    fn routes_of_commands() {
        let foo = Route::Slot(12_182);
        for (line, expected) in [
            ("GET foo", foo),
            ("spublish foo x", foo),
            ("EVALSHA 0123 2 foo bar", foo),
            ("EVAL script 0", Route::Any),
            ("XREAD COUNT 5 STREAMS foo 0", foo),
            ("XADD foo * a b", foo),
            ("PUBLISH bar x", Route::Any),
            ("PING", Route::Any),
            ("PUBSUB NUMSUB a", Route::All),
            ("SCRIPT LOAD x", Route::All),
        ] {
            assert_eq!(route(&call(line)), expected, "{line}");
        }
    }

    #[test]
    fn answers_of_all_are_put_together() {
        let list = |parts: &[Reply]| Reply::List(parts.to_vec());
        let counts = |a, b| list(&[bytes("a"), Reply::Int(a), bytes("b"), Reply::Int(b)]);
        assert_eq!(together(vec![counts(1, 2), counts(0, 5)]), counts(1, 7));
        assert_eq!(together(vec![list(&[bytes("a")]), list(&[bytes("b")])]), list(&[bytes("a"), bytes("b")]));
        assert_eq!(together(vec![Reply::Int(1), Reply::Int(2)]), Reply::Int(3));
        assert_eq!(together(vec![bytes("sha"), bytes("sha")]), bytes("sha"));
        let refusal = Reply::Error("NOPERM no".to_owned());
        assert_eq!(together(vec![Reply::Int(1), refusal.clone(), Reply::Int(2)]), refusal);
    }

    #[test]
    fn owners_of_slots() {
        let node = |host: &str, port| Reply::List(vec![bytes(host), Reply::Int(port), bytes("id")]);
        let range = |start, end, master| Reply::List(vec![Reply::Int(start), Reply::Int(end), master, node("r", 9)]);
        let answer = Reply::List(vec![range(8_192, 16_383, node("b", 2)), range(0, 5_000, node("", 1)), range(5_002, 8_191, node("b", 2))]);
        let slots = Slots::of(&answer, "asked").expect("an answer");
        assert_eq!(slots.owner(0), Some(&("asked".to_owned(), 1)));
        assert_eq!(slots.owner(5_000), slots.owner(0));
        assert_eq!(slots.owner(5_001), None);
        assert_eq!(slots.owner(16_383), Some(&("b".to_owned(), 2)));
        assert_eq!(slots.masters().len(), 2);
        assert_eq!(Slots::of(&Reply::Error("ERR no cluster".to_owned()), "x"), None);
        assert_eq!(Slots::of(&Reply::List(vec![Reply::Int(1)]), "x"), None);
    }

    #[test]
    fn redirects() {
        let of = |text: &str| Redirect::of(&Reply::Error(text.to_owned()), "me");
        assert_eq!(of("MOVED 12182 10.0.0.1:7000"), Some(Redirect::Moved(("10.0.0.1".to_owned(), 7000))));
        assert_eq!(of("MOVED 12182 :7000"), Some(Redirect::Moved(("me".to_owned(), 7000))));
        assert_eq!(of("ASK 1 ::1:7000"), Some(Redirect::Ask(("::1".to_owned(), 7000))));
        assert_eq!(of("TRYAGAIN later"), Some(Redirect::Again));
        assert_eq!(of("MOVED"), None);
        assert_eq!(of("ERR no"), None);
        assert_eq!(Redirect::of(&Reply::Int(1), "me"), None);
    }
}
