// SPDX-License-Identifier: GPL-2.0

//! Copies to and from the memory of a process that need not be current.

use crate::Owner;
use kernel::{
    bindings,
    mm::MmWithUser,
    prelude::*,
    sync::aref::ARef,
    types::NotThreadSafe,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Whether `[addr, addr + size)` lies in the part of the address space that user memory can have.
///
/// C: `access_ok()`.
pub fn user_range_ok(addr: u64, size: u64) -> bool {
    // SAFETY: The pointer is compared, never followed.
    unsafe { vrs_bindings::vrs_access_ok(addr as *const c_void, size as c_ulong) }
}

/// The memory of an [`Owner`], open for copying.
///
/// A user task reaches only its own address space; a kernel thread adopts the owner's while the
/// window is open.
///
/// # Invariants
///
/// `current->mm` is the owner's and stays it until the window is dropped, on this thread.
pub struct UserWindow {
    mm: ARef<MmWithUser>,
    adopted: bool,
    _not_send: NotThreadSafe,
}

impl UserWindow {
    /// Opens the owner's memory.
    ///
    /// # Errors
    ///
    /// `EPERM` if the process is gone, `EFAULT` if the caller is another process.
    ///
    /// # Context
    ///
    /// Process context.
    pub fn open(owner: &Owner) -> Result<Self> {
        let mm = owner.user_mm().ok_or(EPERM)?;
        let adopted = kernel::current!().mm().is_none();

        if adopted {
            // SAFETY: This is a kernel thread without an address space, and `mm` has users.
            unsafe { bindings::kthread_use_mm(mm.as_raw()) };
        } else if !owner.is_current_mm() {
            return Err(EFAULT);
        }
        // INVARIANT: Adopted above, or found to be the caller's own.
        Ok(Self {
            mm,
            adopted,
            _not_send: NotThreadSafe,
        })
    }

    /// Copies `data` to `vaddr`.
    ///
    /// # Errors
    ///
    /// `EFAULT` if part of the range cannot be written.
    pub fn write(&self, vaddr: usize, data: &[u8]) -> Result {
        UserSlice::new(UserPtr::from_addr(vaddr), data.len())
            .writer()
            .write_slice(data)
    }

    /// Copies from `vaddr` to `data`.
    ///
    /// # Errors
    ///
    /// `EFAULT` if part of the range cannot be read.
    pub fn read(&self, vaddr: usize, data: &mut [u8]) -> Result {
        UserSlice::new(UserPtr::from_addr(vaddr), data.len())
            .reader()
            .read_slice(data)
    }
}

impl Drop for UserWindow {
    fn drop(&mut self) {
        if self.adopted {
            // SAFETY: By the type invariant this thread adopted `mm` in `open`.
            unsafe { bindings::kthread_unuse_mm(self.mm.as_raw()) };
        }
    }
}
