// SPDX-License-Identifier: GPL-2.0

//! Module parameters of the type1 driver, which root may change at any time.
//!
//! C: `vfio_type1_rs/params.c`.

use kernel::prelude::*;
use vrs_bindings::param;

param! {
    /// Whether devices without interrupt remapping may be used.
    pub allow_unsafe_interrupts: bool = vrs_bindings::vrs_allow_unsafe_interrupts
}

param! {
    /// Whether memory is mapped page by page.
    pub disable_hugepages: bool = vrs_bindings::vrs_disable_hugepages
}

param! {
    /// Maximum number of mappings of a container that is opened now.
    pub dma_entry_limit: u32 = vrs_bindings::vrs_dma_entry_limit
}

param! {
    /// Largest page in bytes of an IOMMU that tracks dirty pages, for a container that is opened
    /// now; 0 for no limit.
    pub dirty_granule: c_ulong = vrs_bindings::vrs_dirty_granule
}
