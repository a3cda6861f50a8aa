// SPDX-License-Identifier: GPL-2.0

//! What came of a migration, for people and for programs.

use std::time::Duration;

use serde::{
    Deserialize,
    Serialize, //
};

/// How the client learns which pages are dirty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// GET_BITMAP, which clears all it reports.
    Get,
    /// GET_BITMAP_NOCLEAR, then CLEAR_BITMAP for what is copied next.
    ManualClear,
}

/// A pass over the memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Pages to be copied in it.
    pub(crate) dirty_pages: u64,
    /// What asking for them took; nothing in the first round, which copies all there is.
    pub(crate) get_ns: u64,
    /// What clearing them took.
    pub(crate) clear_ns: u64,
    /// How many calls that were.
    pub(crate) clear_calls: u64,
    /// All of the round after asking.
    pub(crate) round_ns: u64,
    /// Whether the device was stopped for it.
    pub(crate) stopped: bool,
}

/// A migration from its first page to the comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Migration {
    /// The type1 driver that served it.
    pub(crate) driver: String,
    /// How dirty pages were asked for.
    pub(crate) mode: Mode,
    /// Bytes of a page.
    pub(crate) page: u64,
    /// Pages of memory.
    pub(crate) pages: u64,
    /// Mappings they are in.
    pub(crate) mappings: usize,
    /// Entries of the IOMMU's page table, by their sizes, if it tells.
    pub(crate) leaves: Option<[u64; 3]>,
    /// Random pages the device wrote to per hundred that were copied.
    pub(crate) write_percent: u64,
    /// Pages it wrote to without a pause.
    pub(crate) hot_pages: u64,
    /// Pages cleared by one call.
    pub(crate) window: u64,
    /// What starting to track took.
    pub(crate) start_ns: u64,
    /// The rounds.
    pub(crate) rounds: Vec<Round>,
    /// Whether little enough was dirty in the end for the device to be stopped.
    pub(crate) converged: bool,
    /// How long the device was stopped.
    pub(crate) downtime_ns: u64,
    /// Writes of the device while it was copied.
    pub(crate) device_writes: u64,
    /// Pages that differ in the end. None may.
    pub(crate) differing_pages: u64,
}

impl Migration {
    /// Pages copied, each as often as it was.
    pub(crate) fn copied_pages(&self) -> u64 {
        self.rounds.iter().map(|round| round.dirty_pages).sum()
    }

    /// The table's first line.
    pub(crate) fn header() -> String {
        format!(
            "{:>5} {:>9} {:>7} {:>9} {:>16} {:>9} {:>9} {:>6}",
            "round", "dirty", "of all", "GET", "CLEAR", "copied", "rate", "left"
        )
    }

    /// A line of the table.
    pub(crate) fn line(&self, number: usize) -> String {
        let round = &self.rounds[number];
        let bytes = round.dirty_pages * self.page;
        let get = match number {
            0 => "-".into(),
            _ => time(round.get_ns),
        };
        let clear = match round.clear_calls {
            0 => "-".into(),
            calls => format!("{} / {calls}", time(round.clear_ns)),
        };
        // What there is to copy compared to the round before: below 100 % it converges.
        let left = match number.checked_sub(1).map(|before| &self.rounds[before]) {
            Some(before) => percent(round.dirty_pages, before.dirty_pages),
            None => "-".into(),
        };
        let rate = (u128::from(bytes) * 1_000_000_000 / u128::from(round.round_ns.max(1))) >> 20;
        format!(
            "{:>5} {:>9} {:>7} {:>9} {:>16} {:>9} {:>9} {:>6}{}",
            number + 1,
            round.dirty_pages,
            percent(round.dirty_pages, self.pages),
            get,
            clear,
            mebibytes(bytes),
            format!("{rate} MiB/s"),
            left,
            if round.stopped { "  stopped" } else { "" }
        )
    }

    /// What to know of the whole.
    pub(crate) fn summary(&self) -> String {
        let copied = self.copied_pages();
        let outcome = if self.converged {
            format!(
                "converged after {} rounds: the device was stopped for {}",
                self.rounds.len(),
                time(self.downtime_ns)
            )
        } else {
            format!(
                "did not converge in {} rounds: the device was stopped all the same, for {}",
                self.rounds.len(),
                time(self.downtime_ns)
            )
        };
        let everything = self
            .rounds
            .iter()
            .all(|round| round.dirty_pages == self.pages);
        let why = if self.converged || !everything {
            ""
        } else {
            "\nevery page was dirty in each round: this driver or its IOMMU does not tell what a \
             device writes to"
        };
        let equal = match self.differing_pages {
            0 => "the copy equals the memory".into(),
            pages => format!("THE COPY DIFFERS in {pages} pages: writes of the device were lost"),
        };
        format!(
            "{outcome}{why}\ncopied {} for {} of memory ({}), while the device wrote {} times\n\
             {equal}",
            mebibytes(copied * self.page),
            mebibytes(self.pages * self.page),
            percent(copied, self.pages),
            self.device_writes
        )
    }
}

/// A part of a whole, to a tenth of a percent.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn mebibytes(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// A time, short.
pub(crate) fn time(nanoseconds: u64) -> String {
    format!("{:.1?}", Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths() {
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "0.0 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100.0 %");
        assert_eq!(mebibytes(3 << 19), "1.5 MiB");
        assert_eq!(time(1_250_000), "1.2ms");
    }
}
