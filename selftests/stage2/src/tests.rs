// SPDX-License-Identifier: GPL-2.0

//! The tests, by what they are about.

mod change;
mod device;
mod held;
mod leaf;
mod running;
mod rust;
mod slot;

use std::path::PathBuf;
use std::sync::OnceLock;

use harness::runner::Test;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    let tables = [
        slot::TESTS,
        change::TESTS,
        device::TESTS,
        leaf::TESTS,
        held::TESTS,
        running::TESTS,
        rust::TESTS,
    ];
    tables.into_iter().flatten().copied()
}

static MODULE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Says where the Rust module is.
pub(crate) fn set_module(file: Option<PathBuf>) {
    MODULE.get_or_init(|| file);
}

/// Where the Rust module is.
fn module() -> Option<&'static PathBuf> {
    MODULE.get()?.as_ref()
}
