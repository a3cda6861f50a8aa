// SPDX-License-Identifier: GPL-2.0

//! What a process has in its page table, and which addresses are memory.

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Has the page table of the calling process filled at `vaddr`, as an access would.
///
/// # Errors
///
/// `EFAULT` where nothing is mapped or the access is not allowed, and where the fault handler
/// gives a signal to who accesses it; `ENODEV` in a kernel thread.
///
/// # Context
///
/// May sleep; takes the `mmap_lock` of the process for reading.
///
/// C: `fixup_user_fault()`.
pub fn fault_in(vaddr: u64, write: bool) -> Result {
    let task = kernel::current!();
    let mm = task.mm().ok_or(ENODEV)?;
    let flags = if write {
        bindings::fault_flag_FAULT_FLAG_WRITE
    } else {
        0
    };
    let mut unlocked = false;

    let _guard = mm.mmap_read_lock();
    // SAFETY: The mmap lock is held; it is held again on return if it was dropped meanwhile.
    to_result(unsafe {
        bindings::fixup_user_fault(mm.as_raw(), vaddr as usize, flags, &mut unlocked)
    })
}

/// Whether any of `size` bytes from the physical address `start` is memory the kernel uses.
///
/// C: `region_intersects()` with `IORESOURCE_SYSTEM_RAM`.
pub fn has_memory(start: u64, size: u64) -> bool {
    // SAFETY: Any range may be asked for.
    let found = unsafe {
        bindings::region_intersects(
            start,
            size as usize,
            bindings::IORESOURCE_SYSTEM_RAM as usize,
            bindings::IORES_DESC_NONE as usize,
        )
    };
    found != bindings::REGION_DISJOINT as c_int
}
