// SPDX-License-Identifier: GPL-2.0

//! Numbers of the interface.

/// Commands of `ioctl(2)`.
pub mod ioctl {
    /// `VFIO_TYPE`, the byte that all VFIO commands carry.
    pub const TYPE: u32 = b';' as u32;
    /// `VFIO_BASE`, the number of the first VFIO command.
    pub const BASE: u32 = 100;

    /// `_IO(VFIO_TYPE, VFIO_BASE + nr)`: VFIO puts neither size nor direction into a command.
    const fn io(nr: u32) -> u32 {
        (TYPE << 8) | BASE.wrapping_add(nr)
    }

    /// `VFIO_GET_API_VERSION`, answered by the container core.
    pub const GET_API_VERSION: u32 = io(0);
    /// `VFIO_CHECK_EXTENSION`.
    pub const CHECK_EXTENSION: u32 = io(1);
    /// `VFIO_SET_IOMMU`, answered by the container core.
    pub const SET_IOMMU: u32 = io(2);
    /// `VFIO_IOMMU_GET_INFO`.
    pub const GET_INFO: u32 = io(12);
    /// `VFIO_IOMMU_MAP_DMA`.
    pub const MAP_DMA: u32 = io(13);
    /// `VFIO_IOMMU_UNMAP_DMA`.
    pub const UNMAP_DMA: u32 = io(14);
    /// `VFIO_IOMMU_DIRTY_PAGES`.
    pub const DIRTY_PAGES: u32 = io(17);
}

/// Arguments of `VFIO_CHECK_EXTENSION`; some name an IOMMU model too.
pub mod extension {
    /// `VFIO_TYPE1_IOMMU`.
    pub const TYPE1: u64 = 1;
    /// `VFIO_TYPE1v2_IOMMU`.
    pub const TYPE1V2: u64 = 3;
    /// `VFIO_DMA_CC_IOMMU`: all DMA is cache coherent.
    pub const DMA_CC: u64 = 4;
    /// `__VFIO_RESERVED_TYPE1_NESTING_IOMMU`.
    pub const TYPE1_NESTING: u64 = 6;
    /// `VFIO_UNMAP_ALL`.
    pub const UNMAP_ALL: u64 = 9;
    /// `VFIO_UPDATE_VADDR`.
    pub const UPDATE_VADDR: u64 = 10;
    /// `VFIO_DIRTY_LOG_MANUAL_CLEAR`: dirty pages can be reported without being cleared, and
    /// cleared one by one. Not in mainline's header; the number is that of the series of May 2021.
    pub const DIRTY_LOG_MANUAL_CLEAR: u64 = 11;
}

/// Flags of `struct vfio_iommu_type1_info`.
pub mod info_flag {
    /// `VFIO_IOMMU_INFO_PGSIZES`.
    pub const PGSIZES: u32 = 1 << 0;
    /// `VFIO_IOMMU_INFO_CAPS`.
    pub const CAPS: u32 = 1 << 1;
}

/// Ids of the capabilities behind `struct vfio_iommu_type1_info`.
pub mod capability {
    /// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`.
    pub const IOVA_RANGE: u16 = 1;
    /// `VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`.
    pub const MIGRATION: u16 = 2;
    /// `VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`.
    pub const DMA_AVAIL: u16 = 3;
}

/// Flags of `struct vfio_iommu_type1_dma_map`.
pub mod map_flag {
    /// `VFIO_DMA_MAP_FLAG_READ`: the device may read.
    pub const READ: u32 = 1 << 0;
    /// `VFIO_DMA_MAP_FLAG_WRITE`: the device may write.
    pub const WRITE: u32 = 1 << 1;
    /// `VFIO_DMA_MAP_FLAG_VADDR`: give an existing mapping a new user address.
    pub const VADDR: u32 = 1 << 2;
    /// All flags.
    pub const ALLOWED: u32 = READ | WRITE | VADDR;
}

/// Flags of `struct vfio_iommu_type1_dma_unmap`.
pub mod unmap_flag {
    /// `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`.
    pub const GET_DIRTY_BITMAP: u32 = 1 << 0;
    /// `VFIO_DMA_UNMAP_FLAG_ALL`: unmap everything.
    pub const ALL: u32 = 1 << 1;
    /// `VFIO_DMA_UNMAP_FLAG_VADDR`: keep the mapping and invalidate its user address.
    pub const VADDR: u32 = 1 << 2;
    /// All flags.
    pub const ALLOWED: u32 = GET_DIRTY_BITMAP | ALL | VADDR;
}

/// Flags of `struct vfio_iommu_type1_dirty_bitmap`.
pub mod dirty_flag {
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_START`.
    pub const START: u32 = 1 << 0;
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP`.
    pub const STOP: u32 = 1 << 1;
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`.
    pub const GET_BITMAP: u32 = 1 << 2;
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR`, see
    /// [`DIRTY_LOG_MANUAL_CLEAR`](super::extension::DIRTY_LOG_MANUAL_CLEAR).
    pub const GET_BITMAP_NOCLEAR: u32 = 1 << 3;
    /// `VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP`, see
    /// [`DIRTY_LOG_MANUAL_CLEAR`](super::extension::DIRTY_LOG_MANUAL_CLEAR).
    pub const CLEAR_BITMAP: u32 = 1 << 4;
    /// All flags.
    pub const ALLOWED: u32 = START | STOP | GET_BITMAP | GET_BITMAP_NOCLEAR | CLEAR_BITMAP;
}
