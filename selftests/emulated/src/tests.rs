// SPDX-License-Identifier: GPL-2.0

//! The tests, one file per subject.

mod dirty;
mod group;
mod iommu;
mod load;
mod map;
mod pin;
mod process;
mod rw;
mod unmap;

pub(crate) use harness::proc::PinCount;
use harness::runner::Test;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [
        map::TESTS,
        pin::TESTS,
        unmap::TESTS,
        rw::TESTS,
        dirty::TESTS,
        process::TESTS,
        group::TESTS,
        load::TESTS,
        iommu::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Where tests map unless the place matters.
const IOVA: u64 = 16 << 20;
