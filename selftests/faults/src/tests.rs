// SPDX-License-Identifier: GPL-2.0

//! The tests, one file per subject.

mod attach;
mod container;
mod dirty;
mod external;
mod map;
mod module;
mod process;
mod report;
mod unmap;

use std::os::fd::{
    FromRawFd,
    OwnedFd, //
};

use harness::runner::Test;

pub(crate) use module::set_module;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [
        container::TESTS,
        map::TESTS,
        unmap::TESTS,
        dirty::TESTS,
        attach::TESTS,
        external::TESTS,
        process::TESTS,
        report::TESTS,
        module::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Where tests map unless the place matters.
const IOVA: u64 = 16 << 20;

/// Makes the table of a file from lines `name, "what is made to fail" => body;`.
macro_rules! table {
    ($($name:literal, $about:literal => $body:expr;)*) => {
        pub(super) const TESTS: &[harness::runner::Test] = &[$(
            harness::runner::Test { name: $name, about: $about, body: $body },
        )*];
    };
}
use table;

/// Takes a descriptor over that a call of this process has just returned.
fn owned(fd: i64) -> OwnedFd {
    // SAFETY: The kernel has just opened it, for us alone.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
