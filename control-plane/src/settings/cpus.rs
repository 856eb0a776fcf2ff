//! Which CPUs this process may run on, and which shard runs on which of them. Read from procfs, which knows the affinity mask
//! without a system call that needs `unsafe`.

use engine::limits::SHARDS_MAX;

/// CPUs of the affinity mask in ascending order; empty where the kernel does not say.
pub(crate) fn allowed() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    parse(list.trim()).unwrap_or_default()
}

/// Reads the kernel's form: `0-3,8,10-11`.
fn parse(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

/// The CPU of each shard. Without a wish there is one shard per CPU; with more shards than CPUs some share one.
pub(crate) fn of_shards(wish: Option<usize>, pin: bool, cpus: &[usize]) -> Vec<Option<usize>> {
    let known = if cpus.is_empty() { std::thread::available_parallelism().map_or(1, usize::from) } else { cpus.len() };
    let shards = wish.unwrap_or(known).clamp(1, SHARDS_MAX);
    (0..shards).map(|shard| cpus.get(shard % known).copied().filter(|_| pin)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        assert_eq!(parse("0-3,8,10-11"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse("5"), Some(vec![5]));
        for bad in ["", "a", "1-", "1,,2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(!allowed().is_empty(), "every Linux process may run somewhere");
    }

    #[test]
    fn shards_go_round_the_cpus() {
        assert_eq!(of_shards(None, true, &[2, 5]), [Some(2), Some(5)]);
        assert_eq!(of_shards(Some(3), true, &[2, 5]), [Some(2), Some(5), Some(2)]);
        assert_eq!(of_shards(Some(2), false, &[2, 5]), [None, None]);
        assert_eq!(of_shards(Some(2), true, &[]), [None, None], "nothing to pin to");
        let many: Vec<usize> = (0..1_000).collect();
        assert_eq!(of_shards(None, true, &many).len(), SHARDS_MAX);
    }
}
