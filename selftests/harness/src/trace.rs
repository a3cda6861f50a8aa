// SPDX-License-Identifier: GPL-2.0

//! What a driver asks of the IOMMU, as the kernel's tracepoints tell it.

use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::process;

use nix::unistd::gettid;

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

/// One event of the kernel, recorded when a thread of a process causes it, until dropped.
#[derive(Debug)]
pub struct Events {
    instance: PathBuf,
}

impl Events {
    /// Begins to record what this thread causes, and those it starts from now on, if it passes a
    /// filter of the kernel's, of which `0` is none.
    #[track_caller]
    pub fn record(event: &str, filter: &str) -> Verdict<Self> {
        let events = Self::instance(event)?;
        events.write("options/event-fork", "1")?;
        events.write("set_event_pid", &gettid().to_string())?;
        events.write(&format!("events/{event}/filter"), filter)?;
        events.write(&format!("events/{event}/enable"), "1")?;
        Ok(events)
    }

    /// Begins to record what anybody causes, on a machine where nobody else does.
    #[track_caller]
    pub fn record_all(event: &str) -> Verdict<Self> {
        let events = Self::instance(event)?;
        // They may be many.
        events.write("buffer_size_kb", "16384")?;
        events.write(&format!("events/{event}/enable"), "1")?;
        Ok(events)
    }

    #[track_caller]
    fn instance(event: &str) -> Verdict<Self> {
        let instances = Path::new("/sys/kernel/tracing/instances");
        let name = format!("vrs-{}-{}", process::id(), event.replace('/', "-"));
        let instance = instances.join(name);
        fs::create_dir(&instance).map_err(|e| missing_or_fail(&instance, e))?;
        Ok(Events { instance })
    }

    /// The lines recorded since the last look.
    #[track_caller]
    pub fn take(&self) -> Verdict<Vec<String>> {
        let path = self.instance.join("trace");
        let text = fs::read_to_string(&path).map_err(|e| missing_or_fail(&path, e))?;
        self.write("trace", "")?;
        if !complete(&text) {
            return Err(Stop::fail(format_args!(
                "{}: events were lost",
                path.display()
            )));
        }
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(lines.map(str::to_owned).collect())
    }

    #[track_caller]
    fn write(&self, name: &str, value: &str) -> Verdict {
        let path = self.instance.join(name);
        fs::write(&path, value).map_err(|e| missing_or_fail(&path, e))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // rmdir takes an instance with all that is in it.
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Watches what this process has mapped in IOMMUs, until dropped.
#[derive(Debug)]
pub struct Watch(Events);

impl Watch {
    /// Begins to watch.
    #[track_caller]
    pub fn begin() -> Verdict<Self> {
        Events::record("iommu/map", "0").map(Watch)
    }

    /// What was mapped since the last look.
    #[track_caller]
    pub fn mapped(&self) -> Verdict<Vec<Piece>> {
        let lines = self.0.take()?;
        let pieces = lines.iter();
        pieces
            .map(|line| parse(line).ok_or_else(|| Stop::fail(format_args!("{line:?}: no event"))))
            .collect()
    }
}

/// Whether all that was written to the buffer is still there: `# entries-in-buffer/entries-written:
/// 3/3   #P:2`.
fn complete(text: &str) -> bool {
    let counts = text.lines().find_map(|line| {
        let rest = line.strip_prefix("# entries-in-buffer/entries-written: ")?;
        rest.split_whitespace().next()?.split_once('/')
    });
    counts.is_some_and(|(there, written)| there == written)
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
    fn headers_of_the_kernel() {
        let header = |counts| {
            format!("# tracer: nop\n#\n# entries-in-buffer/entries-written: {counts}   #P:2\n#\n")
        };
        assert!(complete(&header("0/0")));
        assert!(complete(&header("12/12")));
        assert!(!complete(&header("12/13")));
        assert!(!complete("# tracer: nop\n"));
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
