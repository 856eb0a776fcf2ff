//! What connections take of the kernel's memory: slab caches, pages of TCP's buffers, and what is left of the machine. All of it counts
//! for the whole machine. On loopback both ends of a connection are here; which end a cache serves is known of some by what they are for.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Map, Value, json};

/// Caches of which each end of a connection has its own objects, in the same number.
const OF_BOTH_ENDS: [&str; 6] = ["TCP", "sock_inode_cache", "filp", "dentry", "lsm_inode_cache", "lsm_file_cache"];
/// Caches that only the server uses here: a multishot poll per connection, and the poll entry that hangs in the socket's queue.
const OF_SERVER: [&str; 2] = ["io_kiocb", "tcp_request_sock"];
/// A cache that grew by less than this per connection did so for other reasons: bytes.
const NOTABLE: f64 = 4.0;
const PAGE_BYTES: f64 = 4096.0;

/// The kernel's memory at one moment.
pub(super) struct Kernel {
    /// Each slab cache: objects in use, and the bytes of one.
    caches: BTreeMap<String, (f64, f64)>,
    /// Bytes, by the names of /proc/meminfo.
    meminfo: BTreeMap<String, f64>,
    tcp_bytes: f64,
    sockets: f64,
}

impl Kernel {
    pub(super) fn read() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let sockstat = read("/proc/net/sockstat");
        Self {
            caches: caches(&read("/proc/slabinfo")),
            meminfo: meminfo(&read("/proc/meminfo")),
            tcp_bytes: word_after(&sockstat, "TCP:", "mem") * PAGE_BYTES,
            sockets: word_after(&sockstat, "TCP:", "inuse"),
        }
    }

    /// How much it grew since `earlier`, in bytes per connection of `count`.
    pub(super) fn since(&self, earlier: &Self, count: f64) -> Value {
        let per = |bytes: f64| (bytes / count).round();
        let mut notable = Map::new();
        let mut server_side = 0.0;
        for (name, (objects, size)) in &self.caches {
            let new = (objects - earlier.caches.get(name).map_or(0.0, |(objects, _)| *objects)) / count;
            if new * size < NOTABLE {
                continue;
            }
            notable.insert(name.clone(), json!((new * size).round()));
            // Files that somebody opened meanwhile are in the same caches as sockets; a socket has one object of each.
            if OF_BOTH_ENDS.contains(&name.as_str()) {
                server_side += (new / 2.0).min(1.0) * size;
            } else if OF_SERVER.contains(&name.as_str()) {
                server_side += new.min(1.0) * size;
            }
        }
        let of_machine = |name: &str| {
            let at = |kernel: &Self| kernel.meminfo.get(name).copied().unwrap_or(0.0);
            per(at(self) - at(earlier))
        };
        json!({
            "tcp_sockets": self.sockets - earlier.sockets,
            "tcp_buffer_bytes": per(self.tcp_bytes - earlier.tcp_bytes),
            "slab_bytes": of_machine("Slab"),
            "available_bytes_lost": -of_machine("MemAvailable"),
            "page_table_bytes": of_machine("PageTables"),
            "percpu_bytes": of_machine("Percpu"),
            "slab_bytes_server_side": server_side.round(),
            "caches": notable,
        })
    }
}

fn caches(slabinfo: &str) -> BTreeMap<String, (f64, f64)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let numbers: Vec<f64> = words.take(3).filter_map(|word| word.parse().ok()).collect();
        let [used, _all, size] = *numbers else { return None };
        Some((name, (used, size)))
    };
    slabinfo.lines().filter_map(row).collect()
}

fn meminfo(text: &str) -> BTreeMap<String, f64> {
    let row = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0))
    };
    text.lines().filter_map(row).collect()
}

/// The number behind a word of the line that begins with `line`, 0 where there is none.
fn word_after(text: &str, line: &str, word: &str) -> f64 {
    let found = text.lines().find(|found| found.starts_with(line)).unwrap_or_default();
    let mut words = found.split_whitespace().skip_while(|found| *found != word);
    words.nth(1).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_read_and_set_against_earlier_ones() {
        let slabinfo = "slabinfo - version: 2.1\n# name <active_objs> ...\nTCP 20 30 2500 13 8 : tunables\nio_kiocb 10 16 256 16 1 : x\ndentry 90 99 192 1 1 : x\nodd 1 2\n";
        let now = Kernel { caches: caches(slabinfo), meminfo: meminfo("Slab: 100 kB\n"), tcp_bytes: 0.0, sockets: 21.0 };
        let before = Kernel { caches: BTreeMap::new(), meminfo: meminfo("Slab: 40 kB\n"), tcp_bytes: 0.0, sockets: 1.0 };
        let grown = now.since(&before, 10.0);
        assert_eq!(grown["caches"], json!({ "TCP": 5_000.0, "io_kiocb": 256.0, "dentry": 1_728.0 }));
        assert_eq!(grown["slab_bytes_server_side"], 2_500.0 + 256.0 + 192.0);
        assert_eq!((&grown["slab_bytes"], &grown["tcp_sockets"]), (&json!(6_144.0), &json!(20.0)));
    }

    #[test]
    fn sockstat_is_read_by_its_words() {
        assert_eq!(word_after("sockets: used 17\nTCP: inuse 2 orphan 0 mem 111\n", "TCP:", "mem"), 111.0);
        assert_eq!(word_after("nothing", "TCP:", "mem"), 0.0);
    }
}
