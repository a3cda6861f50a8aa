// SPDX-License-Identifier: GPL-2.0

//! The tests: what holds for each interface, and what is peculiar to one.

mod exact;
mod leaf;
mod type1;

use harness::runner::Test;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [exact::TESTS, leaf::TESTS, type1::TESTS]
        .into_iter()
        .flatten()
        .copied()
}
