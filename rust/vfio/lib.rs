// SPDX-License-Identifier: GPL-2.0

//! The interface between the VFIO container core and a driver that maps user memory.
//!
//! A driver implements [`Container`] and registers it with a [`Registration`]; the core then asks it
//! whether it supports what a user wants and opens a container on it.
//!
//! C header: `drivers/vfio/vfio.h` (`struct vfio_iommu_driver_ops`).
//!
//! # Unsafe code
//!
//! C calls in through function pointers, with pointers that it owns.

mod container;
mod device;
mod params;
mod registration;

pub use container::{
    Buffer,
    Container,
    GroupKind,
    PageArray, //
};
pub use device::Devices;
pub use params::{
    allow_unsafe_interrupts,
    dirty_granule,
    disable_hugepages,
    dma_entry_limit, //
};
pub use registration::{
    Registration,
    Registry,
    Slot, //
};

/// Whether a message about a refused request may be logged now: ten every five seconds.
pub fn may_log_refusal() -> bool {
    // SAFETY: No precondition.
    unsafe { vrs_bindings::vrs_vfio_may_log_refusal() }
}
