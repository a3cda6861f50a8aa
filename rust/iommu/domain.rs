// SPDX-License-Identifier: GPL-2.0

//! I/O page tables and the groups attached to them.

use crate::{
    Access,
    Group, //
};
use core::ptr::{
    self,
    NonNull, //
};
use iova_space::IovaRange;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::aref::ARef, //
};

/// An I/O page table that no device uses unless a group is attached.
///
/// # Invariants
///
/// `ptr` is a paging domain owned by this object.
struct Table {
    ptr: NonNull<bindings::iommu_domain>,
}

impl Table {
    fn alloc_for(group: &Group) -> Result<Self> {
        /// # Safety
        ///
        /// `dev` is a valid device, `out` points at a pointer to a domain.
        unsafe extern "C" fn alloc(dev: *mut bindings::device, out: *mut c_void) -> c_int {
            // SAFETY: By the requirements of this function.
            unsafe {
                *out.cast::<*mut bindings::iommu_domain>() =
                    bindings::iommu_paging_domain_alloc_flags(dev, 0);
            }
            1
        }

        let mut domain: *mut bindings::iommu_domain = ptr::null_mut();
        // SAFETY: The callback stores a domain or an error through the pointer it is given, and
        // stops at the first device.
        unsafe {
            bindings::iommu_group_for_each_dev(
                group.as_raw(),
                (&raw mut domain).cast(),
                Some(alloc),
            )
        };
        let domain = from_err_ptr(domain)?;
        // INVARIANT: A domain just allocated is ours.
        Ok(Self {
            ptr: NonNull::new(domain).ok_or(ENODEV)?,
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: Ours by the type invariant, and no group is attached any more.
        unsafe { bindings::iommu_domain_free(self.ptr.as_ptr()) };
    }
}

/// An I/O page table with the groups attached to it.
///
/// Groups are detached and the table is freed on drop. Whether something is mapped is the business
/// of [`AddressSpace`](crate::AddressSpace).
///
/// # Invariants
///
/// `groups` are attached to `table`, and nobody else attaches or detaches them.
pub struct Domain {
    groups: KVec<ARef<Group>>,
    table: Table,
    coherent: bool,
}

// SAFETY: The domain is owned, and the C API may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: Mapping, unmapping and look-up of disjoint ranges may run concurrently.
unsafe impl Sync for Domain {}

impl Domain {
    /// Allocates a domain that suits the group and attaches it.
    ///
    /// # Errors
    ///
    /// `ENODEV` for an empty group, `ENOMEM`, and what the IOMMU driver says.
    pub fn new(group: &Group) -> Result<Self> {
        let mut groups = KVec::with_capacity(1, GFP_KERNEL)?;
        let table = Table::alloc_for(group)?;
        attach(&table, group)?;
        // INVARIANT: Attached; room was made above, so this cannot fail.
        groups.push(group.to_aref(), GFP_KERNEL)?;
        Ok(Self {
            groups,
            table,
            coherent: false,
        })
    }

    /// Makes the IOMMU refuse or ignore DMA that bypasses the caches, if it can.
    pub fn enforce_coherency(&mut self) {
        // SAFETY: The domain is valid.
        self.coherent = unsafe { vrs_bindings::vrs_enforce_cache_coherency(self.as_raw()) };
    }

    /// Whether all DMA is coherent with the CPU caches.
    pub fn is_coherent(&self) -> bool {
        self.coherent
    }

    /// The groups attached.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().map(|group| &**group)
    }

    /// Whether the group is attached here.
    pub fn has_group(&self, group: &Group) -> bool {
        self.groups().any(|g| g == group)
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.groups.is_empty()
    }

    /// Page sizes, as a bitmap.
    pub fn page_sizes(&self) -> u64 {
        // SAFETY: The domain is valid; the field does not change after allocation.
        unsafe { (*self.as_raw()).pgsize_bitmap as u64 }
    }

    /// The addresses that can be translated.
    pub fn aperture(&self) -> IovaRange {
        // SAFETY: The domain is valid; the field does not change after allocation.
        let geometry = unsafe { (*self.as_raw()).geometry };
        IovaRange::new(geometry.aperture_start, geometry.aperture_end).unwrap_or(IovaRange::ALL)
    }

    /// Reserves the window in which the kernel maps interrupt doorbells.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. That the architecture needs no window is not an error.
    pub fn set_msi_window(&self, base: u64) -> Result {
        // SAFETY: The domain is valid and was allocated by a driver, unmanaged by the DMA API.
        match to_result(unsafe { vrs_bindings::vrs_set_msi_window(self.as_raw(), base) }) {
            Err(error) if error == ENODEV => Ok(()),
            result => result,
        }
    }

    /// The C domain.
    pub fn as_raw(&self) -> *mut bindings::iommu_domain {
        self.table.ptr.as_ptr()
    }

    /// Whether a group of `other` could be attached here instead.
    pub(crate) fn resembles(&self, other: &Self) -> bool {
        // SAFETY: Both domains are valid.
        let same_ops = unsafe { (*self.as_raw()).ops == (*other.as_raw()).ops };
        same_ops && self.coherent == other.coherent
    }

    /// Moves the only group of `other` here. On error all is as before, or, if the IOMMU would
    /// not take the group back either, `other` has no group.
    pub(crate) fn adopt(&mut self, other: &mut Self) -> Result {
        let Some(group) = other.groups.pop() else {
            return Err(EINVAL);
        };
        let reserved = self.groups.reserve(1, GFP_KERNEL);
        detach(&other.table, &group);
        let joined = match reserved {
            Ok(()) => attach(&self.table, &group),
            Err(error) => Err(error.into()),
        };
        match joined {
            // INVARIANT: Attached; room was made above, so this cannot fail.
            Ok(()) => self.groups.push(group, GFP_KERNEL).map_err(Error::from),
            Err(error) => {
                attach(&other.table, &group)?;
                // INVARIANT: Attached again, into the place it was popped from.
                other.groups.push(group, GFP_KERNEL)?;
                Err(error)
            }
        }
    }

    /// Detaches one group; tells whether none is left.
    pub(crate) fn remove_group(&mut self, group: &Group) -> bool {
        if let Some(index) = self.groups.iter().position(|g| **g == *group) {
            if let Ok(group) = self.groups.remove(index) {
                detach(&self.table, &group);
            }
        }
        self.groups.is_empty()
    }

    pub(crate) fn phys(&self, iova: u64) -> Option<u64> {
        // SAFETY: The domain is valid.
        match unsafe { bindings::iommu_iova_to_phys(self.as_raw(), iova) } {
            0 => None,
            phys => Some(phys),
        }
    }

    /// # Safety
    ///
    /// The frames stay with the user until the range is unmapped and the IOTLB is synced.
    pub(crate) unsafe fn map(&self, iova: u64, phys: u64, size: u64, access: Access) -> Result {
        let mut prot = bindings::IOMMU_CACHE;
        if access.read {
            prot |= bindings::IOMMU_READ;
        }
        if access.write {
            prot |= bindings::IOMMU_WRITE;
        }
        // SAFETY: The domain is valid; the caller answers for the frames.
        to_result(unsafe {
            bindings::iommu_map(
                self.as_raw(),
                iova as c_ulong,
                phys,
                size as usize,
                prot as c_int,
                bindings::GFP_KERNEL_ACCOUNT,
            )
        })
    }

    /// Unmaps and syncs; whether nothing of the range is mapped any more.
    #[must_use = "what is still mapped must stay pinned"]
    pub(crate) fn unmap(&self, iova: u64, size: u64) -> bool {
        let mut done = 0;
        let mut tried = false;
        while done < size {
            // SAFETY: The domain is valid. Removing a translation takes nothing from anyone.
            let unmapped = unsafe {
                bindings::iommu_unmap(
                    self.as_raw(),
                    (iova + done) as c_ulong,
                    (size - done) as usize,
                )
            };
            if unmapped == 0 {
                if tried {
                    return false;
                }
                tried = true;
            } else {
                tried = false;
                done += unmapped as u64;
            }
        }
        true
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        for group in &self.groups {
            detach(&self.table, group);
        }
    }
}

fn attach(table: &Table, group: &Group) -> Result {
    // SAFETY: Both are valid.
    to_result(unsafe { bindings::iommu_attach_group(table.ptr.as_ptr(), group.as_raw()) })
}

fn detach(table: &Table, group: &Group) {
    // SAFETY: Both are valid, and the group is attached to the domain.
    unsafe { bindings::iommu_detach_group(table.ptr.as_ptr(), group.as_raw()) };
}

/// IOTLB entries that became stale and are not yet flushed.
///
/// # Invariants
///
/// `gather` was initialised in place and has not moved since: it holds a list head.
pub(crate) struct Gather<'a> {
    domain: &'a Domain,
    gather: bindings::iommu_iotlb_gather,
    pending: bool,
}

impl Gather<'_> {
    /// Runs `work`, then flushes what it unmapped.
    pub(crate) fn scope<R>(domain: &Domain, work: impl FnOnce(&mut Gather<'_>) -> R) -> R {
        let mut gather = Gather {
            domain,
            gather: Default::default(),
            pending: false,
        };
        // INVARIANT: `gather` stays where it is until it is dropped; `work` gets a reference.
        // SAFETY: It is valid for writes.
        unsafe { vrs_bindings::vrs_iotlb_gather_init(&mut gather.gather) };
        work(&mut gather)
    }

    /// Unmaps without flushing; the number of bytes unmapped.
    pub(crate) fn unmap(&mut self, iova: u64, size: u64) -> u64 {
        self.pending = true;
        // SAFETY: The domain is valid, the gather is initialised and flushed before it goes.
        unsafe {
            bindings::iommu_unmap_fast(
                self.domain.as_raw(),
                iova as c_ulong,
                size as usize,
                &mut self.gather,
            ) as u64
        }
    }

    /// Flushes; on return no device reaches what was unmapped through this gather.
    pub(crate) fn sync(&mut self) {
        if self.pending {
            // SAFETY: The domain is valid, the gather is initialised; it is again afterwards.
            unsafe { vrs_bindings::vrs_iotlb_sync(self.domain.as_raw(), &mut self.gather) };
            self.pending = false;
        }
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.sync();
    }
}
