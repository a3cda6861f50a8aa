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
use std::thread::ScopedJoinHandle;

use harness::check::{
    Stop,
    Verdict, //
};
use harness::module::Module;
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

/// What came out of a thread.
#[track_caller]
fn joined<T>(thread: ScopedJoinHandle<'_, Verdict<T>>) -> Verdict<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Stop::fail("panicked")))
}

static MODULE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Says where the Rust module is.
pub(crate) fn set_module(file: Option<PathBuf>) {
    MODULE.get_or_init(|| file);
}

/// The Rust module, to be unloaded and loaded again; the test is skipped if nobody has said where it is.
fn module() -> Verdict<Module> {
    let file = MODULE.get().and_then(Option::as_ref);
    Module::open(file.ok_or_else(|| Stop::skip("the Rust module (--module)"))?)
}
