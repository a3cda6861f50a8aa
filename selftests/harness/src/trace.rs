// SPDX-License-Identifier: GPL-2.0

//! What a driver asks of the IOMMU, as the kernel's tracepoints tell it.

use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::process;

use crate::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};

/// A contiguous range that was mapped with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where the device sees it.
    pub iova: u64,
    /// Where it lies in memory.
    pub phys: u64,
    /// Bytes.
    pub size: u64,
}

/// Watches what this process has mapped in IOMMUs, until dropped.
#[derive(Debug)]
pub struct Watch {
    instance: PathBuf,
}

impl Watch {
    /// Begins to watch.
    #[track_caller]
    pub fn begin() -> Verdict<Self> {
        let instances = Path::new("/sys/kernel/tracing/instances");
        let instance = instances.join(format!("vrs-{}", process::id()));
        fs::create_dir(&instance).map_err(|e| missing_or_fail(&instance, e))?;
        let watch = Watch { instance };
        watch.write("set_event_pid", &process::id().to_string())?;
        watch.write("events/iommu/map/enable", "1")?;
        Ok(watch)
    }

    /// What was mapped since the last look.
    #[track_caller]
    pub fn mapped(&self) -> Verdict<Vec<Piece>> {
        let path = self.instance.join("trace");
        let text = fs::read_to_string(&path).map_err(|e| missing_or_fail(&path, e))?;
        let pieces = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| parse(line).ok_or_else(|| Stop::fail(format_args!("{line:?}: no event"))))
            .collect();
        self.write("trace", "")?;
        pieces
    }

    #[track_caller]
    fn write(&self, name: &str, value: &str) -> Verdict {
        let path = self.instance.join(name);
        fs::write(&path, value).map_err(|e| missing_or_fail(&path, e))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // rmdir takes an instance with all that is in it.
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Reads a line such as `type1-42 [000] ..... 1.5: map: IOMMU: iova=0x1000 - 0x2000 paddr=0x3000
/// size=4096`.
fn parse(line: &str) -> Option<Piece> {
    let after = |key: &str| line.split_once(key)?.1.split_whitespace().next();
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some(Piece {
        iova: hex(after(" map: IOMMU: iova=")?)?,
        phys: hex(after(" paddr=")?)?,
        size: after(" size=")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel() {
        let line = "           type1-217     [001] .....    12.345678: map: IOMMU: \
                    iova=0x0000000001000000 - 0x0000000001200000 paddr=0x0000000045600000 \
                    size=2097152";
        let piece = Piece {
            iova: 0x0100_0000,
            phys: 0x4560_0000,
            size: 2 << 20,
        };
        assert_eq!(parse(line), Some(piece));
    }

    #[test]
    fn other_lines() {
        for line in [
            "type1-1 [000] ..... 1.0: unmap: IOMMU: iova=0x0 - 0x1000 size=4096 unmapped_size=4096",
            "CPU:0 [LOST 12 EVENTS]",
            "",
        ] {
            assert_eq!(parse(line), None);
        }
    }
}
