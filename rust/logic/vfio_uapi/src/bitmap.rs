// SPDX-License-Identifier: GPL-2.0

//! The description of a bitmap in user memory.

use crate::Refusal;
use iova_space::PageSizes;

/// Size of the largest bitmap that user space may ask for, in bytes.
///
/// Also reported in the migration capability.
///
/// C counterpart: `DIRTY_BITMAP_SIZE_MAX`.
pub const BITMAP_BYTES_MAX: u64 = 1 << 28;

/// A bitmap in user memory, `struct vfio_bitmap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BitmapArg {
    /// Bytes per bit.
    pub pgsize: u64,
    /// Size of the bitmap in bytes.
    pub size: u64,
    /// User address of the bitmap.
    pub data: u64,
}

impl BitmapArg {
    /// Size of the description in bytes.
    pub const SIZE: usize = 24;

    /// Decodes the description; every content can be decoded.
    pub fn decode(raw: &[u8; Self::SIZE]) -> Self {
        unpack!(*raw => pgsize: u64, size: u64, data: u64);
        Self { pgsize, size, data }
    }

    /// Returns how many bits stand for `bytes`; none if the page size makes no sense.
    pub fn bits(&self, bytes: u64) -> u64 {
        bytes.checked_div(self.pgsize).unwrap_or(0)
    }

    /// Returns the refusal, with `EINVAL`, of a bitmap that is not in user memory.
    ///
    /// Where user memory is only the caller knows. It looks before
    /// [`check_capacity`](Self::check_capacity).
    pub const fn outside_user_memory(&self) -> Refusal {
        Refusal::BitmapPointer {
            data: self.data,
            size: self.size,
        }
    }

    /// Checks that the bitmap has room for a range of `range_bytes` and is not too large.
    ///
    /// `EINVAL` for a page size that is no power of two, a range below a page, and a size outside
    /// the limits. The C driver takes a page size of 0, with an undefined result, and leaves others
    /// to the comparison with the container's page size, which has the same errno.
    ///
    /// C counterpart: `verify_bitmap_size()`.
    pub fn check_capacity(&self, range_bytes: u64) -> Result<(), Refusal> {
        if !self.pgsize.is_power_of_two() {
            return Err(Refusal::BitmapPageSize { asked: self.pgsize });
        }
        let pages = range_bytes
            .checked_shr(self.pgsize.trailing_zeros())
            .unwrap_or(0);
        if pages == 0 {
            return Err(Refusal::BitmapCoversNothing {
                range: range_bytes,
                page: self.pgsize,
            });
        }
        let needed = pages.div_ceil(64).saturating_mul(8);
        if self.size < needed || self.size > BITMAP_BYTES_MAX {
            return Err(Refusal::BitmapSize {
                asked: self.size,
                needed,
            });
        }
        Ok(())
    }

    /// Checks that a bit stands for a page of the smallest size, `EINVAL` if not.
    pub fn check_page_size(&self, sizes: PageSizes) -> Result<(), Refusal> {
        if self.pgsize != sizes.smallest() {
            return Err(Refusal::BitmapPageSizeDiffers {
                asked: self.pgsize,
                page: sizes.smallest(),
            });
        }
        Ok(())
    }
}
