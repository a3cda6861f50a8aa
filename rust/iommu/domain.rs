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
use iova_space::{
    IovaRange,
    PageSizes, //
};
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
    /// A page table with which the IOMMU can record what devices write to.
    ///
    /// `EOPNOTSUPP` if it cannot.
    fn alloc_tracked(group: &Group) -> Result<Self> {
        // Not all IOMMU drivers refuse what their hardware lacks: with arm-smmu-v3 DMA would fail.
        if !group.can_track() {
            return Err(EOPNOTSUPP);
        }
        Self::alloc_for::<{ bindings::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING }>(
            group,
        )
    }

    fn alloc_for<const FLAGS: u32>(group: &Group) -> Result<Self> {
        /// # Safety
        ///
        /// `dev` is a valid device, `out` points at a pointer to a domain.
        unsafe extern "C" fn alloc<const FLAGS: u32>(
            dev: *mut bindings::device,
            out: *mut c_void,
        ) -> c_int {
            // SAFETY: By the requirements of this function.
            unsafe {
                *out.cast::<*mut bindings::iommu_domain>() =
                    bindings::iommu_paging_domain_alloc_flags(dev, FLAGS);
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
                Some(alloc::<FLAGS>),
            )
        };
        let domain = from_err_ptr(domain)?;
        // INVARIANT: A domain just allocated is ours.
        Ok(Self {
            ptr: NonNull::new(domain).ok_or(ENODEV)?,
        })
    }

    /// Makes the IOMMU use no page larger than `largest` bytes, if it has one that small.
    fn limit_page_size(&mut self, largest: u64) {
        // SAFETY: The domain is ours, and nothing is mapped yet. The IOMMU core and the drivers
        // pick from the sizes named here, so that fewer of them are as good.
        let sizes = unsafe { &mut (*self.ptr.as_ptr()).pgsize_bitmap };
        if let Some(all) = PageSizes::new(*sizes as u64) {
            *sizes = all.up_to(largest).bitmap() as c_ulong;
        }
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
    tracking: bool,
}

// SAFETY: The domain is owned, and the C API may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: Mapping, unmapping and look-up of disjoint ranges may run concurrently.
unsafe impl Sync for Domain {}

impl Domain {
    /// Allocates a domain that suits the group and attaches it.
    ///
    /// If the IOMMU can track dirty pages, the domain can, and has no page larger than
    /// `largest_tracked` bytes: whole pages of the IOMMU are found dirty.
    ///
    /// # Errors
    ///
    /// `ENODEV` for an empty group, `ENOMEM`, and what the IOMMU driver says.
    pub fn new(group: &Group, largest_tracked: u64) -> Result<Self> {
        let tracked = Table::alloc_tracked(group).and_then(|mut table| {
            table.limit_page_size(largest_tracked);
            Self::with_table(table, group)
        });
        match tracked {
            // The IOMMU cannot, or not that of each of the group's devices.
            Err(error) if error == EOPNOTSUPP || error == EINVAL => {
                Self::with_table(Table::alloc_for::<0>(group)?, group)
            }
            result => result,
        }
    }

    fn with_table(table: Table, group: &Group) -> Result<Self> {
        let mut groups = KVec::with_capacity(1, GFP_KERNEL)?;
        attach(&table, group)?;
        // INVARIANT: Attached; room was made above, so this cannot fail.
        groups.push(group.to_aref(), GFP_KERNEL)?;
        Ok(Self {
            groups,
            table,
            coherent: false,
            tracking: false,
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

    /// Whether the IOMMU is able to record what devices write to.
    pub fn can_track(&self) -> bool {
        self.dirty_ops().is_some()
    }

    /// Whether it does.
    pub fn is_tracking(&self) -> bool {
        self.tracking
    }

    /// Begins or ends to have the IOMMU record what devices write to.
    ///
    /// What it recorded before stays; see [`AddressSpace::read_dirty`](crate::AddressSpace).
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if it cannot, and what the IOMMU driver says.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn set_tracking(&mut self, on: bool) -> Result {
        if on == self.tracking {
            return Ok(());
        }
        let switch = self
            .dirty_ops()
            .and_then(|ops| ops.set_dirty_tracking)
            .ok_or(EOPNOTSUPP)?;
        // SAFETY: The domain is valid, and the function is its driver's.
        to_result(unsafe { switch(self.as_raw(), on) })?;
        self.tracking = on;
        Ok(())
    }

    pub(crate) fn dirty_ops(&self) -> Option<&bindings::iommu_dirty_ops> {
        // SAFETY: The domain is valid. The field does not change after allocation, and what it
        // points to lives as long as the driver of the devices attached.
        unsafe { (*self.as_raw()).dirty_ops.as_ref() }
    }

    /// The groups attached.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().map(|group| &**group)
    }

    /// Whether the group is attached here.
    pub fn has_group(&self, group: &Group) -> bool {
        self.groups().any(|g| g == group)
    }

    /// Whether no group is attached.
    pub fn is_unused(&self) -> bool {
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
        let (ours, theirs) = unsafe { (&*self.as_raw(), &*other.as_raw()) };
        ours.ops == theirs.ops
            && ours.dirty_ops == theirs.dirty_ops
            && self.coherent == other.coherent
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

    /// Detaches one group.
    pub(crate) fn remove_group(&mut self, group: &Group) {
        if let Some(index) = self.groups.iter().position(|g| **g == *group) {
            if let Ok(group) = self.groups.remove(index) {
                detach(&self.table, &group);
            }
        }
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
        let mut failed = false;
        while done < size {
            // SAFETY: The domain is valid. Removing a translation takes nothing from anyone.
            let unmapped = unsafe {
                bindings::iommu_unmap(
                    self.as_raw(),
                    (iova + done) as c_ulong,
                    (size - done) as usize,
                )
            };
            if unmapped == 0 && failed {
                return false;
            }
            failed = unmapped == 0;
            done += unmapped as u64;
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

impl<'a> Gather<'a> {
    /// Runs `work`, then flushes what it made stale.
    pub(crate) fn scope<R>(domain: &'a Domain, work: impl FnOnce(&mut Self) -> R) -> R {
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

    pub(crate) fn domain(&self) -> &'a Domain {
        self.domain
    }

    /// Where the domain's driver notes the entries it changes, which are flushed in the end.
    pub(crate) fn note(&mut self) -> *mut bindings::iommu_iotlb_gather {
        self.pending = true;
        &raw mut self.gather
    }

    /// Flushes; on return no device goes by entries that were changed through this gather.
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
