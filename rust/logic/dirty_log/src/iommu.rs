// SPDX-License-Identifier: GPL-2.0

//! The log and the IOMMU's dirty bits: the steps that lose no write.
//!
//! A device that writes to a page first has the IOMMU mark the page table entry as dirty, unless
//! the IOTLB says that it is. So:
//!
//! 1. What the IOMMU marked goes into the log at the moment it is taken from the IOMMU, for an
//!    entry may stand for more pages than were asked for ([`sync`], [`sync_runs`]).
//! 2. The IOTLB is flushed before the user hears of any page: from then on the next write marks
//!    the entry again. The flush is the caller's, once for many pages.
//! 3. Only then pages are dropped from the log ([`forget`]), and the user copies them after that.
//!
//! A write before 2. is in what the user copies; one after it is marked.

use crate::bits::{
    BitsMut,
    Run, //
};

/// The dirty bits that an IOMMU keeps about a mapping.
pub trait DirtyBits {
    /// Why they cannot be read.
    type Error;

    /// Calls `found` for what is dirty among the pages of `run`, and makes it clean.
    ///
    /// What is found may reach beyond `run`, as far as one page table entry does.
    fn take(&mut self, run: Run, found: &mut dyn FnMut(Run)) -> Result<(), Self::Error>;
}

/// Moves what the IOMMU knows of all pages into the log.
pub fn sync<I: DirtyBits>(log: &mut BitsMut<'_>, iommu: &mut I) -> Result<(), I::Error> {
    let all = Run {
        first: 0,
        count: log.pages(),
    };
    sync_runs(log, iommu, [all])
}

/// Moves what the IOMMU knows of some pages into the log.
pub fn sync_runs<I: DirtyBits>(
    log: &mut BitsMut<'_>,
    iommu: &mut I,
    runs: impl IntoIterator<Item = Run>,
) -> Result<(), I::Error> {
    runs.into_iter()
        .try_for_each(|run| iommu.take(run, &mut |found| log.set(found.first, found.count)))
}

/// Takes pages out of the log.
pub fn forget(log: &mut BitsMut<'_>, runs: impl IntoIterator<Item = Run>) {
    for run in runs {
        log.clear(run.first, run.count);
    }
}
