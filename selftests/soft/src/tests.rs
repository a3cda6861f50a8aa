// SPDX-License-Identifier: GPL-2.0

//! The tests, one file per subject.

mod dma;

use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::runner::Test;
use harness::soft::Dma;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [
        dma::TESTS, //
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Where tests map unless the place matters: a multiple of all page sizes but 1 GiB.
const IOVA: u64 = 16 << 20;

/// Fails unless all bytes were done.
#[track_caller]
fn expect_done(what: &str, dma: Dma, len: u64) -> Verdict {
    expect_eq(format_args!("{what}: fault"), dma.fault, None)?;
    expect_eq(format_args!("{what}: bytes done"), dma.done, len)
}
