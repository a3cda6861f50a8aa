// SPDX-License-Identifier: GPL-2.0

//! The tests, by what the virtual CPU does.

mod device;
mod halt;
mod ipi;
mod run;

use harness::runner::Test;

/// All of them, in the order they run in.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [run::TESTS, halt::TESTS, ipi::TESTS, device::TESTS]
        .into_iter()
        .flatten()
        .copied()
}
