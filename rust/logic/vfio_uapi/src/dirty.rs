// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_DIRTY_PAGES`.

use crate::{
    check::{
        check_aligned,
        check_argsz,
        check_flags,
        iova_range, //
    },
    dirty_flag,
    BitmapArg,
    Refusal, //
};
use iova_space::{
    IovaRange,
    PageSizes, //
};

/// What to do about dirty pages, `struct vfio_iommu_type1_dirty_bitmap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyOp {
    /// Start to log.
    Start,
    /// Stop to log.
    Stop,
    /// Something about the pages of a range. A [`DirtyRange`] follows in user memory.
    Range(RangeOp),
}

/// What to do about the dirty pages of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeOp {
    /// Report them, and take them as clean from now on.
    Get,
    /// Report them only.
    GetNoClear,
    /// Take those as clean whose bits are set in the user's bitmap.
    Clear,
}

impl DirtyOp {
    /// Size of the fixed part in bytes.
    pub const SIZE: usize = 8;
    /// Size of the fixed part and of the [`DirtyRange`] in bytes.
    const SIZE_WITH_RANGE: usize = 48;

    /// Decodes the fixed part.
    ///
    /// `EINVAL` for a short `argsz`, an unknown flag, none or several flags, and for an `argsz`
    /// without room for the [`DirtyRange`] that is needed. A v1 container refuses before it even
    /// reads the argument, see [`Model::require_v2`](crate::Model::require_v2).
    pub fn decode(raw: &[u8; Self::SIZE]) -> Result<Self, Refusal> {
        unpack!(*raw => argsz: u32, flags: u32);

        check_argsz(argsz, Self::SIZE)?;
        check_flags(flags, dirty_flag::ALLOWED)?;
        let op = match flags {
            dirty_flag::START => return Ok(Self::Start),
            dirty_flag::STOP => return Ok(Self::Stop),
            dirty_flag::GET_BITMAP => RangeOp::Get,
            dirty_flag::GET_BITMAP_NOCLEAR => RangeOp::GetNoClear,
            dirty_flag::CLEAR_BITMAP => RangeOp::Clear,
            asked => return Err(Refusal::DirtyFlags { asked }),
        };
        check_argsz(argsz, Self::SIZE_WITH_RANGE)?;
        Ok(Self::Range(op))
    }
}

/// Which pages, and a bitmap for them, `struct vfio_iommu_type1_dirty_bitmap_get`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyRange {
    /// The device addresses.
    pub iova: IovaRange,
    /// The user's bitmap. Bit 0 is the page at the beginning of `iova`.
    pub bitmap: BitmapArg,
}

impl DirtyRange {
    /// Size of the description in bytes.
    pub const SIZE: usize = 40;

    /// Decodes the description. `EINVAL` for an empty range, `EOVERFLOW` for one that wraps.
    pub fn decode(raw: &[u8; Self::SIZE]) -> Result<Self, Refusal> {
        unpack!(*raw => iova: u64, size: u64, pgsize: u64, bitmap_size: u64, data: u64);
        Ok(Self {
            iova: iova_range(iova, size)?,
            bitmap: BitmapArg {
                pgsize,
                size: bitmap_size,
                data,
            },
        })
    }

    /// Checks that the bitmap has room for the range, see [`BitmapArg::check_capacity`].
    pub fn check_capacity(&self) -> Result<(), Refusal> {
        self.bitmap.check_capacity(self.bytes())
    }

    /// Checks, under the container's lock, page size and alignment; `EINVAL` if wrong.
    pub fn check_pages(&self, sizes: PageSizes) -> Result<(), Refusal> {
        self.bitmap.check_page_size(sizes)?;
        check_aligned(self.iova.first(), sizes)?;
        check_aligned(self.bytes(), sizes)
    }

    /// Returns the size of the range. User space cannot express 2^64 bytes.
    fn bytes(&self) -> u64 {
        self.iova.size().unwrap_or(0)
    }
}
