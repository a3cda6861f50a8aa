// SPDX-License-Identifier: GPL-2.0

//! Compares what Rust believes of C structures with what C says.
//!
//! bindgen can get a layout wrong without a word: it drops the alignment of an empty structure, and
//! with `CONFIG_SCHEDSTATS=n` there is one in the middle of `task_struct`, so that every field
//! behind it is read from the wrong place. A build with such bindings must not succeed.

use crate::*;
use core::mem::offset_of;
use kernel::bindings;

macro_rules! same {
    ($($c:ident == $rust:expr),* $(,)?) => {
        $(const _: () = assert!(
            $c as usize == $rust,
            concat!(
                "the kernel's Rust bindings have another layout than C (", stringify!($c),
                "): enable CONFIG_SCHEDSTATS in the kernel and rebuild it",
            ),
        );)*
    };
}

same! {
    VRS_OFFSET_TASK_MM == offset_of!(bindings::task_struct, mm),
    VRS_OFFSET_TASK_PID == offset_of!(bindings::task_struct, pid),
    VRS_OFFSET_TASK_GROUP_LEADER == offset_of!(bindings::task_struct, group_leader),
    VRS_OFFSET_MM_LOCKED_VM == offset_of!(bindings::mm_struct, __bindgen_anon_1.locked_vm),
    VRS_OFFSET_VMA_VM_FLAGS == offset_of!(bindings::vm_area_struct, __bindgen_anon_2.vm_flags),
    VRS_OFFSET_DOMAIN_PGSIZE_BITMAP == offset_of!(bindings::iommu_domain, pgsize_bitmap),
    VRS_OFFSET_DOMAIN_GEOMETRY == offset_of!(bindings::iommu_domain, geometry),
    VRS_SIZE_IOTLB_GATHER == size_of::<bindings::iommu_iotlb_gather>(),
    VRS_SIZE_RESV_REGION == size_of::<bindings::iommu_resv_region>(),
    VRS_SIZE_FOLLOW_PFNMAP_ARGS == size_of::<bindings::follow_pfnmap_args>(),
    VRS_SIZE_MUTEX == size_of::<bindings::mutex>(),
    VRS_SIZE_RAW_SPINLOCK == size_of::<bindings::raw_spinlock_t>(),
    VRS_SIZE_RWSEM == size_of::<bindings::rw_semaphore>(),
    VRS_SIZE_DRIVER_OPS == size_of::<vfio_iommu_driver_ops>(),
}
