// SPDX-License-Identifier: GPL-2.0

//! IOMMU domains that own the memory they map.
//!
//! - [`Group`]: devices the IOMMU cannot tell apart.
//! - [`Domain`]: an I/O page table with the groups attached to it.
//! - [`AddressSpace`]: the domains of one user, all with the same translations. It owns the pins of
//!   the pages it maps, and gives them back no earlier than no device can reach them.
//!
//! C header: [`include/linux/iommu.h`](srctree/include/linux/iommu.h).
//!
//! # Unsafe code
//!
//! Wraps the IOMMU API, and stores page pins in I/O page tables.

mod address_space;
mod dirty;
mod domain;
mod group;
mod leaves;

pub use address_space::{
    AddressSpace,
    Copier,
    Mapped,
    Unmapped,
    Unmapper, //
};
pub use dirty::{
    DirtyReader,
    Reading, //
};
pub use domain::Domain;
pub use group::{
    Group,
    Reserved,
    ReservedKind, //
};

/// What a device may do with mapped memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It may read.
    pub read: bool,
    /// It may write.
    pub write: bool,
}
