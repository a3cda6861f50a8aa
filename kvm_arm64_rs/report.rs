// SPDX-License-Identifier: GPL-2.0

//! What root sees in `/sys/kernel/debug/kvm_arm64_rs/stats`.
//!
//! A name and a number in each line, since the module was loaded:
//!
//! - `level N SIZE`: mappings made at level N of stage 2.
//! - `bound WHY`: of these, how many were no larger because of WHY, see [`Bound`].
//! - `filled`: entries of VMMs' page tables that were filled to make a larger block.
//! - `replayed`: faults that the guest takes again, because something changed meanwhile.
//! - `declined`: faults on memory, which KVM handles.
//! - `refused WHY`: faults that could not be resolved.

use core::fmt;
use kernel::{
    debugfs,
    fmt as kfmt,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};
use kvm::stage2;
use stage2_map::{
    Bound,
    Granule,
    Refusal, //
};

/// Level of pages.
const LAST_LEVEL: u32 = 3;

struct Count(Atomic<u64>);

impl Default for Count {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Count {
    fn add(&self, number: u64) {
        self.0.fetch_add(number, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What has happened since the module was loaded.
#[derive(Default)]
pub(crate) struct Counts {
    // By the number of levels above pages.
    levels: [Count; 3],
    bounds: [Count; Bound::ALL.len()],
    filled: Count,
    replayed: Count,
    declined: Count,
    incoherent: Count,
    exec: Count,
}

impl Counts {
    pub(crate) fn mapped(&self, granule: Granule, size: u64, bound: Bound) {
        let level = granule.level_of(size).unwrap_or(0);
        if let Some(count) = self.levels.get(level as usize) {
            count.add(1);
        }
        if let Some(count) = self.bounds.get(bound as usize) {
            count.add(1);
        }
    }

    pub(crate) fn filled(&self, number: u32) {
        if number != 0 {
            self.filled.add(u64::from(number));
        }
    }

    pub(crate) fn replayed(&self) {
        self.replayed.add(1);
    }

    pub(crate) fn declined(&self) {
        self.declined.add(1);
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        match refusal {
            Refusal::Incoherent => self.incoherent.add(1),
            Refusal::ExecUncached => self.exec.add(1),
        }
    }
}

/// The file `stats`.
pub(crate) struct Stats(pub(crate) Arc<Counts>);

impl debugfs::Writer for Stats {
    fn write(&self, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
        let Self(counts) = self;
        for (above, count) in (0..LAST_LEVEL).zip(&counts.levels) {
            if let Some(size) = stage2::granule().and_then(|granule| granule.size(above)) {
                let level = LAST_LEVEL.saturating_sub(above);
                writeln!(f, "level {level} {size:#x} {}", count.get())?;
            }
        }
        for (bound, count) in Bound::ALL.iter().zip(&counts.bounds) {
            writeln!(f, "bound {} {}", bound.name(), count.get())?;
        }
        writeln!(f, "filled {}", counts.filled.get())?;
        writeln!(f, "replayed {}", counts.replayed.get())?;
        writeln!(f, "declined {}", counts.declined.get())?;
        writeln!(f, "refused incoherent {}", counts.incoherent.get())?;
        writeln!(f, "refused exec {}", counts.exec.get())
    }
}
