// SPDX-License-Identifier: GPL-2.0

//! Objects in the kernel's slab caches.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use harness::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};

const FILE: &str = "/proc/slabinfo";

/// How many objects of which cache are in use, or kept ready for use by a CPU.
pub(crate) type Objects = HashMap<String, u64>;

/// Whether many objects of a cache mean a leak. With KASAN they are in use until well after they
/// were freed; and kernels that watch themselves have no time for calls by the thousand.
pub(crate) fn tells() -> bool {
    !Path::new("/proc/lockdep_stats").exists()
}

/// Counts them.
#[track_caller]
pub(crate) fn objects() -> Verdict<Objects> {
    let text = fs::read_to_string(FILE).map_err(|e| missing_or_fail(Path::new(FILE), e))?;
    let mut objects = Objects::new();
    // Two lines say what the columns are.
    for line in text.lines().skip(2) {
        let mut words = line.split_whitespace();
        let name = words.next().map(str::to_owned);
        let count = words.next().and_then(|count| count.parse().ok());
        let (Some(name), Some(count)) = (name, count) else {
            return Err(Stop::fail(format_args!("{FILE}: {line:?}")));
        };
        objects.insert(name, count);
    }
    Ok(objects)
}

/// Fails if there are `many` more objects of a cache than `before`. Some are freed only after a
/// grace period, so a growth only counts if it stays.
#[track_caller]
pub(crate) fn settled(before: &Objects, many: u64) -> Verdict {
    const TRIES: u32 = 100;
    let grown = || -> Verdict<Vec<String>> {
        Ok(objects()?
            .iter()
            .filter_map(|(name, count)| {
                let growth = count.saturating_sub(before.get(name).copied().unwrap_or(0));
                (growth >= many).then(|| format!("{name} has {growth} objects more"))
            })
            .collect())
    };
    for _ in 0..TRIES {
        if grown()?.is_empty() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(Stop::fail(grown()?.join(", ")))
}
