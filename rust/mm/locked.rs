// SPDX-License-Identifier: GPL-2.0

//! Accounting of locked memory.

use crate::Owner;
use core::mem;
use kernel::{
    bindings,
    error::to_result,
    mm::MmWithUser,
    prelude::*, //
};

/// Pages charged to a process's locked memory (`VmLck`, limited by `RLIMIT_MEMLOCK`).
///
/// What was charged is given back when this is dropped. A process that is gone is not charged any
/// more, its memory went with it.
///
/// C: `__account_locked_vm()`. Lock order: takes the owner's `mmap_lock` for writing.
///
/// # Invariants
///
/// `pages` pages of the owner's `locked_vm` were added through this object and not yet removed.
pub struct LockedVm {
    owner: Owner,
    pages: u64,
}

impl LockedVm {
    /// Nothing charged yet.
    pub fn new(owner: Owner) -> Self {
        // INVARIANT: Nothing was added.
        Self { owner, pages: 0 }
    }

    /// Who pays.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Number of pages charged.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Charges `pages` more.
    ///
    /// # Errors
    ///
    /// `ENOMEM` over the limit, `EINTR` if the caller is being killed, `ESRCH` if the owner is gone.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn charge(&mut self, pages: u64) -> Result {
        if pages == 0 {
            return Ok(());
        }
        let total = self.pages.checked_add(pages).ok_or(EOVERFLOW)?;
        let mm = self.owner.user_mm().ok_or(ESRCH)?;
        add(&self.owner, &mm, pages)?;
        // INVARIANT: `pages` were just added.
        self.pages = total;
        Ok(())
    }

    /// Gives back `pages`, or all there are if fewer.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn uncharge(&mut self, pages: u64) {
        let pages = pages.min(self.pages);
        if pages == 0 {
            return;
        }
        if let Some(mm) = self.owner.user_mm() {
            remove(&self.owner, &mm, pages);
        }
        // INVARIANT: `pages` were just removed, or went with the process.
        self.pages -= pages;
    }

    /// Moves the whole charge to another process.
    ///
    /// Nothing changes if the new owner's limit does not allow it.
    ///
    /// # Errors
    ///
    /// As [`LockedVm::charge`], for the new owner.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn transfer(&mut self, to: Owner) -> Result {
        let pages = self.pages;
        let mut moved = Self::new(to);
        moved.charge(pages)?;
        // The old charge is dropped here, after the new one stands.
        drop(mem::replace(self, moved));
        Ok(())
    }
}

impl Drop for LockedVm {
    fn drop(&mut self) {
        self.uncharge(self.pages);
    }
}

fn add(owner: &Owner, mm: &MmWithUser, pages: u64) -> Result {
    // SAFETY: `mm` is valid; the lock is released below.
    to_result(unsafe { vrs_bindings::vrs_mmap_write_lock_killable(mm.as_raw()) })?;
    // SAFETY: `mm` is locked for writing, the task is valid.
    let ret = unsafe {
        bindings::__account_locked_vm(
            mm.as_raw(),
            pages as c_ulong,
            true,
            owner.leader().as_ptr(),
            owner.may_exceed(),
        )
    };
    // SAFETY: Locked above.
    unsafe { vrs_bindings::vrs_mmap_write_unlock(mm.as_raw()) };
    to_result(ret)
}

/// Removing must not fail when the caller is being killed, or the charge would stay for ever on a
/// process that lives on; so the lock is taken uninterruptibly.
fn remove(owner: &Owner, mm: &MmWithUser, pages: u64) {
    // SAFETY: `mm` is valid and locked for writing around the call, the task is valid. Removing
    // cannot fail.
    unsafe {
        vrs_bindings::vrs_mmap_write_lock(mm.as_raw());
        bindings::__account_locked_vm(
            mm.as_raw(),
            pages as c_ulong,
            false,
            owner.leader().as_ptr(),
            owner.may_exceed(),
        );
        vrs_bindings::vrs_mmap_write_unlock(mm.as_raw());
    }
}
