// SPDX-License-Identifier: GPL-2.0

//! The tests, one file per subject.

mod contract;
mod registration;
mod requests;
mod traps;

use harness::runner::Test;

/// All tests, in the order they run; some are about the module only.
pub(crate) fn all(module: bool) -> impl Iterator<Item = Test> {
    let always = [contract::TESTS, requests::TESTS, traps::TESTS];
    let more = [traps::MODULE_TESTS, registration::TESTS];
    always
        .into_iter()
        .chain(more.into_iter().filter(move |_| module))
        .flatten()
        .copied()
}
