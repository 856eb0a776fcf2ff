//! What the relay's scripts do, without Lua: each says at its place what it is for.

use super::{Fake, Value, Words, number};
use crate::relay::request::{Call, Reply};
use crate::relay::{append, history, presence};

/// A script's keys and arguments.
struct Given<'a> {
    keys: Vec<&'a [u8]>,
    args: Vec<&'a [u8]>,
}

impl<'a> Given<'a> {
    fn of(call: &'a Call) -> Given<'a> {
        let keys = number(call.word(2)) as usize;
        Given { keys: (3..3 + keys).map(|at| call.word(at)).collect(), args: call.words().skip(3 + keys).collect() }
    }

    fn key(&self, at: usize) -> Option<&'a [u8]> {
        self.keys.get(at).copied()
    }

    fn number(&self, at: usize) -> u64 {
        number(self.args[at])
    }
}

impl Fake {
    pub(super) fn eval(&mut self, call: &Call) -> Reply {
        let given = Given::of(call);
        let script = std::str::from_utf8(call.word(1)).expect("scripts are text");
        if script == append::SCRIPT {
            return self.add_numbered(&given);
        }
        if script == presence::COME {
            return Reply::Int(self.come(&given));
        }
        if script == presence::GO {
            return Reply::Int(self.go(&given));
        }
        if script == presence::STRIKE_OFF {
            return Reply::Int(self.strike_off(&given));
        }
        if script == history::APPEND {
            return Reply::Int(self.keep(&given));
        }
        if script == history::CHANGE {
            return Reply::Int(self.change(&given));
        }
        if script == history::READ {
            return self.recall(&given);
        }
        panic!("this Redis does not know the script {script}");
    }

    fn hosts_of(&self, key: &[u8], presence: &[u8]) -> Vec<Vec<u8>> {
        let listed = self.hash(key).and_then(|hash| hash.get(presence)).map_or(&[][..], Vec::as_slice);
        listed.split(|byte| *byte == b',').filter(|host| !host.is_empty()).map(<[u8]>::to_vec).collect()
    }

    fn say(&mut self, given: &Given<'_>) {
        if !given.args[3].is_empty() {
            let verb = std::str::from_utf8(given.args[8]).expect("a command's name");
            self.call(&Call::new(verb).arg(given.args[3]).arg(given.args[4]));
        }
    }

    fn come(&mut self, given: &Given<'_>) -> i64 {
        let (host, presence) = (given.args[0], given.args[1]);
        let others: Vec<Vec<u8>> = self.hosts_of(given.keys[0], presence).into_iter().filter(|other| other != host).collect();
        let is_first = others.is_empty();
        let hosts = std::iter::once(host.to_vec()).chain(others).collect::<Vec<_>>().join(&b',');
        self.hash_mut(given.keys[0]).insert(presence.to_vec(), hosts);
        if let Some(at) = given.key(2) {
            self.set_mut(at).insert(given.args[2].to_vec());
            if self.live(given.keys[3]).is_none() {
                self.set_mut(given.keys[4]).insert(host.to_vec());
            }
        }
        if let Some(online) = given.key(5) {
            self.set_mut(online).insert(presence.to_vec());
        }
        if is_first {
            self.say(given);
        }
        i64::from(is_first)
    }

    fn leave_index(&mut self, given: &Given<'_>) {
        if let Some(at) = given.key(2) {
            self.set_mut(at).remove(given.args[2]);
            self.tidy(at);
        }
    }

    fn go(&mut self, given: &Given<'_>) -> i64 {
        let (host, presence) = (given.args[0], given.args[1]);
        let hosts = self.hosts_of(given.keys[0], presence);
        let others: Vec<Vec<u8>> = hosts.iter().filter(|other| *other != host).cloned().collect();
        if given.args[7] == b"strict" {
            if given.key(3).is_some_and(|lease| self.live(lease).is_some()) {
                return -1;
            }
            if others.len() == hosts.len() {
                self.leave_index(given);
                return -1;
            }
        }
        let is_last = others.is_empty();
        if is_last {
            self.hash_mut(given.keys[0]).remove(presence);
            self.tidy(given.keys[0]);
            if let Some(online) = given.key(5) {
                self.set_mut(online).remove(presence);
                self.tidy(online);
            }
            if !given.args[5].is_empty() {
                self.call(&Call::new("SET").arg(given.keys[1]).arg(given.args[5]).arg("PX").arg(given.args[6]));
            }
            self.say(given);
        } else {
            self.hash_mut(given.keys[0]).insert(presence.to_vec(), others.join(&b','));
        }
        self.leave_index(given);
        i64::from(is_last)
    }

    fn strike_off(&mut self, given: &Given<'_>) -> i64 {
        if self.live(given.keys[0]).is_some() {
            return 0;
        }
        let is_struck = self.set_mut(given.keys[1]).remove(given.args[0]);
        self.tidy(given.keys[1]);
        i64::from(is_struck)
    }

    fn add_numbered(&mut self, given: &Given<'_>) -> Reply {
        let (stream, key) = (given.keys[0], given.keys[1]);
        let (mut next, is_forced, entries_max) = (given.number(0), given.args[1] == b"1", given.number(2) as usize);
        let last = self.text(key).map_or(0, number);
        if last + 1 < next && !is_forced {
            return Reply::List(vec![Reply::Int(last as i64), Reply::Int(0)]);
        }
        let (mut top, mut at) = (last, 4);
        while at < given.args.len() {
            let parts = given.number(at);
            at += 1;
            for part in 0..parts {
                let words: Words = given.args[at + 1..=at + given.number(at) as usize].iter().map(|word| word.to_vec()).collect();
                at += 1 + words.len();
                if next <= last {
                    continue;
                }
                if part > 0 {
                    let name = String::from_utf8_lossy(&words[0]).into_owned();
                    self.call(&words[1..].iter().fold(Call::new(&name), |call, word| call.arg(word)));
                    continue;
                }
                self.append(stream, words);
                // As the real one with `~`, which takes away whole nodes.
                let entries = &mut self.stream_mut(stream).entries;
                if entries.len() > entries_max + 100 {
                    entries.drain(..entries.len() - entries_max);
                }
                top = next;
            }
            next += 1;
        }
        top = top.max(next - 1);
        if top > last {
            let kept_ms = given.args[3];
            self.call(&Call::new("SET").arg(key).arg(top.to_string()).arg("PX").arg(kept_ms));
        }
        Reply::List(vec![Reply::Int(top as i64), Reply::Int(0)])
    }

    fn keep(&mut self, given: &Given<'_>) -> i64 {
        if let Some(kept) = given.key(1)
            && self.call(&Call::new("SET").arg(kept).arg("1").arg("NX").arg("PX").arg(given.args[3])) == Reply::Nil
        {
            return 0;
        }
        let (entries_max, age_ms, stream) = (given.number(0) as usize, given.number(1), given.keys[0]);
        let names = [&b"id"[..], b"by", b"at", b"text", b"hidden"];
        let words = names.iter().zip(&given.args[4..9]).flat_map(|(name, value)| [name.to_vec(), value.to_vec()]).collect();
        let id = self.append(stream, words);
        let entries = &mut self.stream_mut(stream).entries;
        entries.drain(..entries.len().saturating_sub(entries_max));
        while entries.front().is_some_and(|(first, _)| first.ms + age_ms < id.ms) {
            entries.pop_front();
        }
        self.expire(stream, age_ms);
        1
    }

    fn change(&mut self, given: &Given<'_>) -> i64 {
        let (stream, edits, id, what) = (given.keys[0], given.keys[1], given.args[0], given.args[1]);
        if self.hash(edits).and_then(|hash| hash.get(id)).is_some_and(|known| known == b"r") {
            return 0;
        }
        self.hash_mut(edits).insert(id.to_vec(), what.to_vec());
        self.expire(edits, given.number(2));
        if what == b"r" {
            self.stream_mut(stream).entries.retain(|(_, words)| words[1] != id);
        }
        1
    }

    fn recall(&mut self, given: &Given<'_>) -> Reply {
        let (stream, edits) = (given.keys[0], given.keys[1]);
        let (mut skip, mut limit, mut bytes, before) = (given.number(1), given.number(2), given.number(3) as usize, given.args[4]);
        let mut out = vec![Reply::Int(0), Reply::Int(1), Reply::Bytes(Vec::new()), Reply::Int(0)];
        if !matches!(self.live(stream), Some(Value::Stream(_))) {
            return Reply::List(out);
        }
        let since_ms = given.number(0);
        let entries = &mut self.stream_mut(stream).entries;
        while entries.front().is_some_and(|(first, _)| first.ms < since_ms) {
            entries.pop_front();
        }
        let (changed, stream) = (self.hash(edits), self.stream(stream).expect("it was just there"));
        out[0] = Reply::Int(stream.entries.len() as i64);
        out[1] = Reply::Int(i64::from(stream.added == stream.entries.len()));
        if let Some((_, words)) = stream.entries.front() {
            out[2] = Reply::Bytes(words[5].clone());
        }
        let mut is_found = before.is_empty();
        for (_, words) in stream.entries.iter().rev() {
            if !is_found {
                is_found = words[1] == before;
                continue;
            }
            let change = changed.and_then(|changed| changed.get(&words[1]));
            if change.is_some_and(|change| change == b"r") {
                continue;
            }
            if skip > 0 {
                skip -= 1;
                continue;
            }
            let text = change.map_or(&words[7][..], |change| &change[1..]);
            if limit == 0 || text.len() > bytes {
                break;
            }
            (bytes, limit) = (bytes - text.len(), limit - 1);
            let shown = [&words[1][..], &words[3], &words[5], text, &words[9]];
            out.push(Reply::List(shown.map(|word| Reply::Bytes(word.to_vec())).to_vec()));
        }
        Reply::List(out)
    }
}
