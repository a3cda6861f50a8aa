// SPDX-License-Identifier: GPL-2.0

//! User memory as DMA drivers need it: pinned, accounted, and reachable from another process.
//!
//! The kernel crate's [`kernel::mm`] has address spaces and VMAs; this crate adds what it lacks:
//! [`Pinner`] and [`PinnedRun`] for `pin_user_pages_remote()` and PFN mappings, [`LockedVm`] for
//! `RLIMIT_MEMLOCK`, [`UserWindow`] to copy to and from a process that need not be current, and
//! [`fault_in`] for memory that nobody has touched yet.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h).
//!
//! # Unsafe code
//!
//! Wraps GUP, PFN mapping look-up, locked memory accounting and `kthread_use_mm()`.

mod locked;
mod owner;
mod pin;
mod resident;
mod window;

pub use locked::LockedVm;
pub use owner::{
    Comm,
    Owner, //
};
pub use pin::{
    frame_is_reserved,
    Filled,
    PinnedRun,
    Pinner, //
};
pub use resident::{
    fault_in,
    has_memory, //
};
pub use window::{
    user_range_ok,
    UserWindow, //
};

/// Gives up the CPU if something else should run.
///
/// # Context
///
/// May sleep.
pub fn cond_resched() {
    // SAFETY: No precondition beyond a context that may sleep; debug kernels check that one.
    unsafe { vrs_bindings::vrs_cond_resched() };
}

/// Whether the task is being killed, so that nobody waits for what it does.
pub fn fatal_signal_pending() -> bool {
    // SAFETY: It looks at the current task only.
    unsafe { vrs_bindings::vrs_fatal_signal_pending() }
}
