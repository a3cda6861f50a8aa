// SPDX-License-Identifier: GPL-2.0

//! The tests, one file per subject.

mod container;
mod dirty;
mod dma;
mod group;
mod info;
mod kind;
mod load;
mod map;
pub(crate) mod process;
mod unmap;
mod vaddr;

use harness::runner::Test;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [
        container::TESTS,
        info::TESTS,
        map::TESTS,
        kind::TESTS,
        unmap::TESTS,
        vaddr::TESTS,
        dirty::TESTS,
        process::TESTS,
        group::TESTS,
        dma::TESTS,
        load::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Where tests map unless the place matters: free on every machine, and in reach of edu.
const IOVA: u64 = 16 << 20;
