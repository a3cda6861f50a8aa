// SPDX-License-Identifier: GPL-2.0

//! IOMMU groups.

use core::ptr::{
    self,
    NonNull, //
};
use iova_space::IovaRange;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};

/// The smallest set of devices that the IOMMU can isolate from others.
///
/// C: `struct iommu_group`. Two references are equal if they refer to the same group.
#[repr(transparent)]
pub struct Group(Opaque<bindings::iommu_group>);

// SAFETY: The reference count may be dropped on any thread.
unsafe impl Send for Group {}
// SAFETY: The C API locks the group where needed.
unsafe impl Sync for Group {}

// SAFETY: An `iommu_group` is counted by these functions.
unsafe impl AlwaysRefCounted for Group {
    fn inc_ref(&self) {
        // SAFETY: The group is valid. The returned pointer is the same.
        unsafe { bindings::iommu_group_ref_get(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference.
        unsafe { bindings::iommu_group_put(obj.cast().as_ptr()) };
    }
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for Group {}

impl Group {
    /// Borrows a group from C.
    ///
    /// # Safety
    ///
    /// `group` points at a group that stays valid for `'a`.
    pub unsafe fn from_raw<'a>(group: *mut bindings::iommu_group) -> &'a Self {
        // SAFETY: By the requirement above; the layout is the same.
        unsafe { &*group.cast() }
    }

    /// The C group.
    pub fn as_raw(&self) -> *mut bindings::iommu_group {
        self.0.get()
    }

    /// The group's number in `/sys/kernel/iommu_groups`.
    pub fn id(&self) -> c_int {
        // SAFETY: The group is valid.
        unsafe { bindings::iommu_group_id(self.as_raw()) }
    }

    /// Whether no device of the group can raise an interrupt that is not its own.
    pub fn has_isolated_msi(&self) -> bool {
        // SAFETY: The group is valid.
        unsafe { bindings::iommu_group_has_isolated_msi(self.as_raw()) }
    }

    /// Whether the IOMMU can record what any device of the group writes to.
    pub(crate) fn can_track(&self) -> bool {
        /// # Safety
        ///
        /// `dev` is a valid device.
        unsafe extern "C" fn cannot(dev: *mut bindings::device, _: *mut c_void) -> c_int {
            let cap = bindings::iommu_cap_IOMMU_CAP_DIRTY_TRACKING;
            // SAFETY: By the requirement of this function.
            c_int::from(!unsafe { bindings::device_iommu_capable(dev, cap) })
        }

        // SAFETY: The group is valid; the callback expects nothing but a device, and ends the walk
        // with the first that cannot.
        unsafe {
            bindings::iommu_group_for_each_dev(self.as_raw(), ptr::null_mut(), Some(cannot)) == 0
        }
    }

    /// Ranges that devices of the group cannot use for DMA, or that must stay as they are.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn reserved_regions(&self) -> Result<KVec<Reserved>> {
        let mut head = bindings::list_head::default();
        let list = &raw mut head;
        // SAFETY: A list head on the stack that does not move until it is empty again.
        unsafe {
            (*list).next = list;
            (*list).prev = list;
        }
        // SAFETY: The group is valid, the list is initialised.
        let ret = unsafe { bindings::iommu_get_group_resv_regions(self.as_raw(), list) };

        let mut regions = KVec::new();
        let mut result = to_result(ret);
        // SAFETY: The list holds regions allocated for this caller, also after an error; each is
        // read, unlinked by going on to the next, and freed.
        unsafe {
            let mut entry = (*list).next;
            while entry != list {
                let region = kernel::container_of!(entry, bindings::iommu_resv_region, list);
                entry = (*entry).next;
                if let (Ok(()), Some(found)) = (result, Reserved::new(&*region)) {
                    result = regions.push(found, GFP_KERNEL).map_err(Error::from);
                }
                bindings::kfree(region.cast());
            }
        }
        result.map(|()| regions)
    }

    /// A counted reference.
    pub fn to_aref(&self) -> ARef<Self> {
        self.into()
    }
}

/// A reserved range of IOVAs.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// First and last address.
    pub range: IovaRange,
    /// Why it is reserved.
    pub kind: ReservedKind,
}

/// Why a range is reserved; C: `enum iommu_resv_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservedKind {
    /// Firmware wants it mapped one to one.
    Direct,
    /// As `Direct`, but a device that is given to a user can do without.
    DirectRelaxable,
    /// Not translated, for instance because of peer-to-peer windows.
    Reserved,
    /// Where hardware takes writes for interrupts.
    Msi,
    /// Where the kernel chooses to map interrupt doorbells.
    SoftwareMsi,
}

impl Reserved {
    fn new(region: &bindings::iommu_resv_region) -> Option<Self> {
        let kind = match region.type_ {
            bindings::iommu_resv_type_IOMMU_RESV_DIRECT => ReservedKind::Direct,
            bindings::iommu_resv_type_IOMMU_RESV_DIRECT_RELAXABLE => ReservedKind::DirectRelaxable,
            bindings::iommu_resv_type_IOMMU_RESV_MSI => ReservedKind::Msi,
            bindings::iommu_resv_type_IOMMU_RESV_SW_MSI => ReservedKind::SoftwareMsi,
            _ => ReservedKind::Reserved,
        };
        let range = IovaRange::from_len(region.start, region.length as u64).ok()?;
        Some(Self { range, kind })
    }
}
