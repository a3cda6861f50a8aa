// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_UNMAP_DMA`.

use crate::{
    check::{
        check_aligned,
        check_argsz,
        check_flags,
        iova_range, //
    },
    unmap_flag,
    BitmapArg,
    Refusal, //
};
use iova_space::{
    IovaRange,
    PageSizes, //
};

/// The fixed part of a request to unmap, `struct vfio_iommu_type1_dma_unmap`.
///
/// A [`BitmapArg`] follows in user memory if [`UnmapHeader::wants_bitmap`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnmapHeader {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

impl UnmapHeader {
    /// Size of the fixed part in bytes.
    pub const SIZE: usize = 24;
    /// Size of the fixed part and of the description of the bitmap in bytes.
    const SIZE_WITH_BITMAP: usize = 48;

    /// Decodes the fixed part.
    ///
    /// `EINVAL` for a short `argsz` or an unknown flag, for a bitmap together with ALL or VADDR, and
    /// for an `argsz` without room for the [`BitmapArg`] that is needed. The range is left to
    /// [`UnmapHeader::range`], as the C driver looks at it after the bitmap and under its lock.
    pub fn decode(raw: &[u8; Self::SIZE]) -> Result<Self, Refusal> {
        unpack!(*raw => argsz: u32, flags: u32, iova: u64, size: u64);
        let header = Self {
            argsz,
            flags,
            iova,
            size,
        };

        check_argsz(argsz, Self::SIZE)?;
        check_flags(flags, unmap_flag::ALLOWED)?;
        if header.wants_bitmap() {
            if header.all() || header.invalidates_vaddr() {
                return Err(Refusal::UnmapFlags { asked: flags });
            }
            check_argsz(argsz, Self::SIZE_WITH_BITMAP)?;
        }
        Ok(header)
    }

    /// Returns whether the dirty pages of what is unmapped are asked for.
    pub fn wants_bitmap(&self) -> bool {
        self.flags & unmap_flag::GET_DIRTY_BITMAP != 0
    }

    /// Returns whether everything is to be unmapped.
    pub fn all(&self) -> bool {
        self.flags & unmap_flag::ALL != 0
    }

    /// Returns whether the mappings stay and only their user addresses become invalid.
    pub fn invalidates_vaddr(&self) -> bool {
        self.flags & unmap_flag::VADDR != 0
    }

    /// Returns the device addresses in question; to be called under the container's lock.
    ///
    /// `EINVAL` if misaligned, if ALL comes with an address or a size, if the size is 0;
    /// `EOVERFLOW` if the range wraps.
    pub fn range(&self, sizes: PageSizes) -> Result<IovaRange, Refusal> {
        check_aligned(self.iova, sizes)?;
        if self.all() {
            return match (self.iova, self.size) {
                (0, 0) => Ok(IovaRange::ALL),
                (iova, size) => Err(Refusal::AllWithRange { iova, size }),
            };
        }
        check_aligned(self.size, sizes)?;
        iova_range(self.iova, self.size)
    }

    /// Checks the bitmap against the state of the container, after [`UnmapHeader::range`].
    ///
    /// `EINVAL` if dirty tracking is off or the page size is not the smallest one. Nothing to check
    /// without [`UnmapHeader::wants_bitmap`].
    pub fn check_bitmap(
        &self,
        bitmap: &BitmapArg,
        tracking: bool,
        sizes: PageSizes,
    ) -> Result<(), Refusal> {
        if !self.wants_bitmap() {
            return Ok(());
        }
        if !tracking {
            return Err(Refusal::TrackingOff);
        }
        bitmap.check_page_size(sizes)
    }

    /// Returns the size in the request, in bytes. 0 for ALL.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the fixed part as it goes back to user space, `unmapped` bytes in place of the size.
    pub fn encode(&self, unmapped: u64) -> [u8; Self::SIZE] {
        let Self {
            argsz, flags, iova, ..
        } = *self;
        pack!(argsz: u32, flags: u32, iova: u64, unmapped: u64)
    }
}
