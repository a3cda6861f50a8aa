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

use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use harness::check::{
    Stop,
    Verdict, //
};
use harness::env::{
    Driver,
    Env, //
};
use harness::proc;
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

/// Skips what the C driver does not survive; see Documentation/uapi-parity.md.
#[track_caller]
fn need_rust(env: &Env) -> Verdict {
    match env.expected {
        Some(Driver::Rust) => Ok(()),
        _ => Err(Stop::skip(
            "a driver that survives this (--expect-driver rust)",
        )),
    }
}

/// Counts the pages that this test has pinned.
struct PinCount(i64);

impl PinCount {
    fn begin() -> Verdict<Self> {
        Ok(PinCount(Self::now()?))
    }

    fn now() -> Verdict<i64> {
        proc::pinned_pages().ok_or_else(|| Stop::skip("nr_foll_pin_acquired in /proc/vmstat"))
    }

    /// Fails unless `want` more pages are pinned than at the beginning. Others may pin some for a
    /// moment, so a wrong count only counts if it stays.
    #[track_caller]
    fn expect(&self, want: i64) -> Verdict {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let got = Self::now()? - self.0;
            if got == want {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Stop::fail(format_args!(
                    "pages pinned: expected {want}, got {got}"
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
