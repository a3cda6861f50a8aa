// SPDX-License-Identifier: GPL-2.0

//! The kernel's dump of a stage-2 page table, `stage2_page_tables` in the VM's folder of debugfs.
//!
//! It merges neighbours of the same level and the same permissions into one line, and shows no
//! physical addresses.

use std::ops::Range;

use crate::level::Level;

/// A line: addresses that are mapped alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Guest-physical addresses.
    pub(crate) range: Range<u64>,
    /// The level of the leaves.
    pub(crate) level: Level,
    /// Whether the guest may write.
    pub(crate) writable: bool,
}

/// What is mapped; the error is the line that cannot be read.
pub(crate) fn parse(text: &str) -> Result<Vec<Run>, String> {
    let lines = text.lines().filter(|line| line.starts_with("0x"));
    lines
        .filter_map(|line| parse_line(line).ok_or_else(|| line.to_owned()).transpose())
        .collect()
}

/// A line such as `0x0000000040000000-0x0000000040200000           2M 2   R W PXNUXN AF BLK`; the
/// inner `None` is a line about what is not mapped.
fn parse_line(line: &str) -> Option<Option<Run>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let range = hex(start)?..hex(end)?;
    let _size = words.next()?;
    let number: u32 = words.next()?.parse().ok()?;
    let flags: Vec<&str> = words.collect();
    if flags.is_empty() || flags.contains(&"F") {
        return Some(None);
    }
    let level = Level::from_number(number)?;
    // What the level says, the kind of the entry has to say, too.
    if flags.contains(&"BLK") != (level != Level::Page) {
        return None;
    }
    let whole = range.start % level.size() == 0 && range.end % level.size() == 0;
    if !whole || range.is_empty() || !flags.contains(&"AF") || !flags.contains(&"R") {
        return None;
    }
    Some(Some(Run {
        range,
        level,
        writable: flags.contains(&"W"),
    }))
}

/// Joins neighbours which are mapped alike, and were not joined for a difference of no interest.
pub(crate) fn merge(runs: impl IntoIterator<Item = Run>) -> Vec<Run> {
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last)
                if last.range.end == run.range.start
                    && (last.level, last.writable) == (run.level, run.writable) =>
            {
                last.range.end = run.range.end;
            }
            _ => merged.push(run),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
---[ Guest IPA ]---
0x0000000000000000-0x0000000000004000          16K 3   R W px ux  AF    \u{20}
0x0000000000004000-0x0000000000200000        2032K 3
0x0000000000200000-0x0000000001000000          14M 2
0x0000001000000000-0x0000001000400000           4M 2   R W PXNUXN AF BLK
0x0000001000400000-0x0000001000600000           2M 2   R   PXNUXN AF BLK
0x0000001040000000-0x0000001080000000           1G 1   R W PXNUXN AF BLK
0x0000001080000000-0x0000010000000000         958G 1
";

    fn run(range: Range<u64>, level: Level, writable: bool) -> Run {
        Run {
            range,
            level,
            writable,
        }
    }

    #[test]
    fn lines_of_the_kernel() {
        let want = vec![
            run(0..0x4000, Level::Page, true),
            run(0x10_0000_0000..0x10_0040_0000, Level::Block2M, true),
            run(0x10_0040_0000..0x10_0060_0000, Level::Block2M, false),
            run(0x10_4000_0000..0x10_8000_0000, Level::Block1G, true),
        ];
        assert_eq!(parse(DUMP), Ok(want));
    }

    #[test]
    fn an_entry_that_is_not_valid() {
        let line = "0x0000000000000000-0x0000000000001000           4K 3 F        AF    ";
        assert_eq!(parse(line), Ok(vec![]));
    }

    #[test]
    fn lines_that_make_no_sense() {
        for line in [
            // A page that calls itself a block, a block that does not.
            "0x0000000000000000-0x0000000000001000           4K 3   R W px ux  AF BLK",
            "0x0000000000000000-0x0000000000200000           2M 2   R W px ux  AF    ",
            // Half a block.
            "0x0000000000000000-0x0000000000100000           1M 2   R W px ux  AF BLK",
            "0x0000000000000000-0x0000000000001000           4K 7   R W px ux  AF    ",
            "0x0000000000000000           4K 3   R W px ux  AF    ",
            "0x0000000000000000-0x0000000000001000           4K 3   R W px ux        ",
        ] {
            assert_eq!(parse(line), Err(line.to_owned()));
        }
    }

    #[test]
    fn neighbours() {
        let page = |n: u64, writable| run(n << 12..(n + 1) << 12, Level::Page, writable);
        let merged = merge([page(0, true), page(1, true), page(2, false), page(4, false)]);
        let want = [
            run(0..2 << 12, Level::Page, true),
            page(2, false),
            page(4, false),
        ];
        assert_eq!(merged, want);
    }
}
