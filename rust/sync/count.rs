// SPDX-License-Identifier: GPL-2.0

//! Numbers that are cheap to change.

use core::cell::UnsafeCell;

/// A number that one CPU at a time changes, while any may look at it.
///
/// It is for counts that the owner of a lock keeps, or a CPU with interrupts disabled for itself: a
/// locked instruction would cost more than what is counted. If two change it at once, one change is
/// lost, no more.
///
/// C: `READ_ONCE()`, `WRITE_ONCE()` in `include/asm-generic/rwonce.h`.
#[derive(Default)]
pub struct Count(UnsafeCell<u64>);

// SAFETY: All accesses are volatile, and single instructions on an aligned word.
unsafe impl Sync for Count {}

impl Count {
    /// Zero.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// The number.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        // SAFETY: It is valid, as there is a reference to it.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn set(&self, number: u64) {
        // SAFETY: It is valid, and may be written to, as it is an `UnsafeCell`.
        unsafe { self.0.get().write_volatile(number) };
    }

    /// Adds to it.
    #[inline(always)]
    pub fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    /// Subtracts one.
    #[inline(always)]
    pub fn decrement(&self) {
        self.set(self.get().wrapping_sub(1));
    }
}
