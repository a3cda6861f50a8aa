// SPDX-License-Identifier: GPL-2.0

//! Pinned user memory.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h) (`pin_user_pages_remote()`,
//! `follow_pfnmap_start()`), [`Documentation/core-api/pin_user_pages.rst`].
//!
//! [`Documentation/core-api/pin_user_pages.rst`]: srctree/Documentation/core-api/pin_user_pages.rst

use crate::owner::is_current;
use core::{
    mem::ManuallyDrop,
    ptr, //
};
use kernel::{
    bindings,
    error::to_result,
    mm::{
        virt,
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};
use pin_plan::pfnmap_run;

/// Consecutive page frames that a device may use while this exists.
///
/// Either pages pinned for long-term DMA, or frames that have no reference count to hold: memory
/// of a device, or the zero page. Pinned pages are unpinned on drop, and marked dirty if the device
/// could write to them.
///
/// # Invariants
///
/// - `count` is not 0, and `first + count` does not overflow.
/// - If `!reserved`, each of the frames has a `struct page` and this object owns one `FOLL_PIN`
///   reference to it.
pub struct PinnedRun {
    first: u64,
    count: u64,
    reserved: bool,
    dirty: bool,
}

impl PinnedRun {
    /// Takes over frames from wherever [`PinnedRun::into_frames`] left them.
    ///
    /// # Safety
    ///
    /// `count` is not 0. Unless `reserved`, the caller passes one `FOLL_PIN` reference on each of
    /// the pages.
    pub unsafe fn from_frames(first: u64, count: u64, reserved: bool, dirty: bool) -> Self {
        // INVARIANT: By the requirements above.
        Self {
            first,
            count,
            reserved,
            dirty,
        }
    }

    /// Gives the frames and their pins away: `(first, count, reserved)`.
    pub fn into_frames(self) -> (u64, u64, bool) {
        let this = ManuallyDrop::new(self);
        (this.first, this.count, this.reserved)
    }

    /// Physical address of the first byte.
    pub fn phys(&self) -> u64 {
        self.first * PAGE_SIZE as u64
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.count
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.count * PAGE_SIZE as u64
    }

    /// Whether these frames are not pages that were locked for the user.
    pub fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Whether the frames have `struct page`s.
    pub fn has_pages(&self) -> bool {
        // SAFETY: Any frame number may be asked for.
        unsafe { vrs_bindings::vrs_pfn_has_page(self.first as c_ulong) }
    }

    /// The first page, if it has one.
    ///
    /// The pointer is good while the run exists.
    pub fn first_page(&self) -> Option<*mut bindings::page> {
        self.has_pages()
            // SAFETY: The frame has a page, as just found.
            .then(|| unsafe { vrs_bindings::vrs_pfn_to_page(self.first as c_ulong) })
    }

    /// Appends `next` if it continues this run, else hands it back.
    pub fn extend(&mut self, next: Self) -> Result<(), Self> {
        let continues = self.first.checked_add(self.count) == Some(next.first)
            && self.reserved == next.reserved
            && self.dirty == next.dirty;
        match self.count.checked_add(next.count) {
            Some(count) if continues => {
                // INVARIANT: The pins of `next`, which follow ours, are ours now.
                self.count = count;
                let _ = next.into_frames();
                Ok(())
            }
            _ => Err(next),
        }
    }
}

impl Drop for PinnedRun {
    fn drop(&mut self) {
        if self.reserved {
            return;
        }
        // SAFETY: By the type invariant all frames have pages, on each of which this object owns
        // a pin that it gives back here.
        unsafe {
            bindings::unpin_user_page_range_dirty_lock(
                vrs_bindings::vrs_pfn_to_page(self.first as c_ulong),
                self.count as c_ulong,
                self.dirty,
            )
        };
    }
}

/// What [`Pinner::fill`] found at an address.
pub enum Filled {
    /// So many pages, now waiting in the pinner.
    Pages(u64),
    /// Frames of a PFN mapping, which are not pinned.
    Frames(PinnedRun),
}

/// Pins user memory in batches and hands it out as [`PinnedRun`]s.
///
/// Pages that were pinned but not taken are unpinned on drop.
///
/// # Invariants
///
/// `pages[next..]` are page pointers on each of which this object owns one `FOLL_PIN` reference,
/// taken for writing if `write`.
pub struct Pinner {
    pages: KVec<*mut bindings::page>,
    next: usize,
    capacity: usize,
    write: bool,
    /// Pages may be had without the mmap lock, as far as is known.
    fast: bool,
}

// SAFETY: The pointers are owned references to pages, which any thread may release.
unsafe impl Send for Pinner {}

impl Pinner {
    /// Pages that one call of GUP gets at most: what fits a page of pointers.
    pub const BATCH: usize = PAGE_SIZE / size_of::<*mut bindings::page>();

    /// A pinner for memory that the device reads, or also writes, and that has no more than `most`
    /// pages.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if not even room for one pointer can be had. With less memory than for a whole
    /// batch it goes page by page.
    pub fn new(write: bool, most: u64) -> Result<Self> {
        let mut capacity = most.clamp(1, Self::BATCH as u64) as usize;
        let pages = match KVec::with_capacity(capacity, GFP_KERNEL | __GFP_NOWARN) {
            Ok(pages) => pages,
            Err(_) => {
                capacity = 1;
                KVec::with_capacity(capacity, GFP_KERNEL)?
            }
        };
        // INVARIANT: No pages yet.
        Ok(Self {
            pages,
            next: 0,
            capacity,
            write,
            fast: true,
        })
    }

    /// Number of pages a call of [`Pinner::fill`] can get.
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Whether all pages have been taken.
    pub fn is_empty(&self) -> bool {
        self.next >= self.pages.len()
    }

    /// Pins up to `want` pages from `vaddr` on, after unpinning what was not taken.
    ///
    /// A PFN mapping yields as many frames as its page table proves consecutive, not limited by the
    /// capacity.
    ///
    /// # Errors
    ///
    /// `EFAULT` and what else GUP or the fault handler of a PFN mapping say.
    ///
    /// # Context
    ///
    /// May sleep; takes the `mmap_lock` of `mm` for reading, unless it is the current process' and the
    /// pages are there.
    pub fn fill(&mut self, mm: &MmWithUser, vaddr: usize, want: u64) -> Result<Filled> {
        self.release();

        let mut flags = bindings::FOLL_LONGTERM;
        if self.write {
            flags |= bindings::FOLL_WRITE;
        }

        let most = want.min(self.capacity());
        if self.fast && is_current(mm) {
            // SAFETY: The vector is empty and has room for `capacity` pointers.
            let got = unsafe {
                bindings::pin_user_pages_fast(vaddr, most as c_int, flags, self.pages.as_mut_ptr())
            };
            if got > 0 {
                return Ok(self.filled(got as usize));
            }
            // What is wrong, and whether it is a PFN mapping, is found out below.
            self.fast = false;
        }

        let guard = mm.mmap_read_lock();
        // SAFETY: The mmap lock is held and stays so, as `locked` is null. The vector is empty and
        // has room for `capacity` pointers.
        let got = unsafe {
            bindings::pin_user_pages_remote(
                mm.as_raw(),
                vaddr,
                most as c_ulong,
                flags,
                self.pages.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        if got > 0 {
            self.fast = true;
            return Ok(self.filled(got as usize));
        }
        let error = if got == 0 {
            EFAULT
        } else {
            Error::from_errno(got as c_int)
        };

        // SAFETY: `mm` is valid.
        let vaddr = unsafe { vrs_bindings::vrs_untagged_addr_remote(mm.as_raw(), vaddr) };
        loop {
            let Some(vma) = guard.vma_lookup(vaddr) else {
                return Err(error);
            };
            if vma.flags() & virt::flags::PFNMAP == 0 {
                return Err(error);
            }
            match follow(mm, vma, vaddr, want, self.write)? {
                Some(run) => return Ok(Filled::Frames(run)),
                // The fault handler dropped the lock: the VMA may be another now.
                None => continue,
            }
        }
    }

    /// GUP has just stored so many pages.
    fn filled(&mut self, pages: usize) -> Filled {
        // INVARIANT: They are pinned.
        // SAFETY: They are within the capacity, and written.
        unsafe { self.pages.inc_len(pages) };
        Filled::Pages(pages as u64)
    }

    /// The next pages that are physically consecutive, if any are left.
    pub fn take_run(&mut self) -> Option<PinnedRun> {
        let rest = self.pages.get(self.next..)?;
        if rest.is_empty() {
            return None;
        }
        let mut frame = 0;
        let mut reserved = false;
        // SAFETY: `rest` is a non-empty array of pointers to pages that are pinned.
        let count = unsafe {
            vrs_bindings::vrs_page_run(
                rest.as_ptr().cast_mut(),
                rest.len(),
                &mut frame,
                &mut reserved,
            )
        };
        // INVARIANT: The pins on these pages pass to the run.
        self.next += count;
        Some(PinnedRun {
            first: frame as u64,
            count: count as u64,
            reserved,
            dirty: self.write,
        })
    }

    fn release(&mut self) {
        while let Some(run) = self.take_run() {
            drop(run);
        }
        self.pages.clear();
        self.next = 0;
    }
}

impl Drop for Pinner {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether a frame has no page, or one that is not counted: device memory, or the zero page.
pub fn frame_is_reserved(frame: u64) -> bool {
    // SAFETY: Any frame number may be asked for.
    unsafe { vrs_bindings::vrs_pfn_is_reserved(frame as c_ulong) }
}

/// Looks up what a PFN mapping has at `vaddr`, faulting it in if it is not there yet.
///
/// `None` asks the caller to start over with the VMA, as the mmap lock was dropped meanwhile.
fn follow(
    mm: &MmWithUser,
    vma: &virt::VmaRef,
    vaddr: usize,
    want: u64,
    write: bool,
) -> Result<Option<PinnedRun>> {
    let mut args = bindings::follow_pfnmap_args {
        vma: vma.as_ptr(),
        address: vaddr,
        ..Default::default()
    };

    // SAFETY: The VMA is kept by the mmap lock, which the caller holds.
    if unsafe { bindings::follow_pfnmap_start(&mut args) } != 0 {
        let mut flags = bindings::fault_flag_FAULT_FLAG_REMOTE;
        if write {
            flags |= bindings::fault_flag_FAULT_FLAG_WRITE;
        }
        let mut unlocked = false;
        // SAFETY: The caller holds the mmap lock of `mm`; it is held again on return.
        let ret = unsafe { bindings::fixup_user_fault(mm.as_raw(), vaddr, flags, &mut unlocked) };
        if unlocked {
            return Ok(None);
        }
        to_result(ret)?;
        // SAFETY: As above, and the lock was not dropped.
        to_result(unsafe { bindings::follow_pfnmap_start(&mut args) })?;
    }

    let (frame, mask, writable) = (args.pfn as u64, args.addr_mask as u64, args.writable);
    // SAFETY: Started successfully, and what was found is copied.
    unsafe { bindings::follow_pfnmap_end(&mut args) };

    if !frame_is_reserved(frame) || (write && !writable) {
        return Err(EFAULT);
    }
    // INVARIANT: Reserved frames own no pins.
    Ok(Some(PinnedRun {
        first: frame,
        count: pfnmap_run(frame, mask, PAGE_SIZE.trailing_zeros(), want).max(1),
        reserved: true,
        dirty: write,
    }))
}
