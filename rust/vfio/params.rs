// SPDX-License-Identifier: GPL-2.0

//! Module parameters of the type1 driver, which root may change at any time.
//!
//! C: `vfio_type1_rs/params.c`.

use kernel::prelude::*;

/// Reads a parameter that C may be writing.
macro_rules! param {
    ($(#[$doc:meta])* $name:ident: $type:ty = $c:ident) => {
        $(#[$doc])*
        pub fn $name() -> $type {
            // SAFETY: The variable lives as long as the module. C stores it whole, so that a
            // volatile load sees the old or the new value.
            unsafe { (&raw const vrs_bindings::$c).read_volatile() }
        }
    };
}

param! {
    /// Whether devices without interrupt remapping may be used.
    allow_unsafe_interrupts: bool = vrs_allow_unsafe_interrupts
}

param! {
    /// Whether memory is mapped page by page.
    disable_hugepages: bool = vrs_disable_hugepages
}

param! {
    /// Maximum number of mappings of a container that is opened now.
    dma_entry_limit: u32 = vrs_dma_entry_limit
}

param! {
    /// Largest page in bytes of an IOMMU that tracks dirty pages, for a container that is opened
    /// now; 0 for no limit.
    dirty_granule: c_ulong = vrs_dirty_granule
}
