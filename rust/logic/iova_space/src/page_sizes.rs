// SPDX-License-Identifier: GPL-2.0

//! Page sizes of IOMMU domains.

use core::num::NonZeroU64;

/// The page sizes that an IOMMU, or every domain of a container, can map.
///
/// A bitmap in the manner of `iommu_domain::pgsize_bitmap`: bit `n` stands for pages of `1 << n`
/// bytes. There is always at least one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageSizes(NonZeroU64);

impl PageSizes {
    /// Takes a bitmap of page sizes, [`None`] if there is no size in it.
    pub const fn new(bitmap: u64) -> Option<Self> {
        match NonZeroU64::new(bitmap) {
            Some(bitmap) => Some(Self(bitmap)),
            None => None,
        }
    }

    /// Returns all sizes from `page_size` up, what a container offers before it has a domain.
    ///
    /// This is `PAGE_MASK` read as a bitmap. `page_size` is the CPU's page size in bytes, a power
    /// of two; of any other number the lowest bit counts, and 0 is taken as 1.
    pub const fn cpu_page(page_size: u64) -> Self {
        // For a power of two the two's complement is the mask of all bits from it up.
        match NonZeroU64::new(lowest_bit(page_size).wrapping_neg()) {
            Some(mask) => Self(mask),
            None => Self(NonZeroU64::MAX),
        }
    }

    /// Returns the sizes that all `domains` have, as the container offers them to user space.
    ///
    /// Sizes below the CPU's page size `page_size` are hidden; in their place the CPU's page size
    /// is offered, which the IOMMU builds from several of its own pages. Pinning has the same
    /// granularity. Without domains the result is [`PageSizes::cpu_page`].
    ///
    /// Returns [`None`] if the domains have no size in common.
    ///
    /// C counterpart: `vfio_update_pgsize_bitmap()`.
    pub fn common(domains: impl Iterator<Item = u64>, page_size: u64) -> Option<Self> {
        let all = domains.fold(u64::MAX, |common, sizes| common & sizes);
        let page_mask = Self::cpu_page(page_size).bitmap();
        let offered = if all & !page_mask != 0 {
            (all & page_mask) | lowest_bit(page_mask)
        } else {
            all
        };
        Self::new(offered)
    }

    /// Returns the bitmap, which is never 0.
    pub const fn bitmap(self) -> u64 {
        self.0.get()
    }

    /// Returns the smallest page size in bytes, the unit of all ranges and of dirty bitmaps.
    pub const fn smallest(self) -> u64 {
        lowest_bit(self.bitmap())
    }

    /// Returns the binary logarithm of the smallest page size.
    pub const fn smallest_shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// Returns the sizes of at most `largest` bytes, or the smallest one if all are larger.
    pub const fn up_to(self, largest: u64) -> Self {
        let not_above = match u64::MAX.checked_shr(largest.leading_zeros()) {
            Some(mask) => mask,
            None => 0,
        };
        match NonZeroU64::new((self.bitmap() & not_above) | self.smallest()) {
            Some(bitmap) => Self(bitmap),
            None => self,
        }
    }

    /// Returns whether `value`, an address or a size in bytes, is a multiple of the smallest size.
    pub const fn aligned(self, value: u64) -> bool {
        value & self.smallest().wrapping_sub(1) == 0
    }

    /// Returns the largest size that can map the beginning of a run of `len` bytes.
    ///
    /// It is not larger than `len` and divides both `iova` and `phys`. [`None`] if no size fits.
    /// This is the choice that `iommu_map()` makes.
    ///
    /// C counterpart: `iommu_pgsize()`.
    pub fn largest_fitting(self, iova: u64, phys: u64, len: u64) -> Option<u64> {
        let not_above_len = u64::MAX.checked_shr(len.leading_zeros())?;
        let merged = iova | phys;
        // All bits up to the lowest one set; all 64 if the addresses are 0.
        let dividing = merged ^ merged.wrapping_sub(1);
        let fitting = self.bitmap() & not_above_len & dividing;
        TOP_BIT.checked_shr(fitting.leading_zeros())
    }
}

const TOP_BIT: u64 = 1 << 63;

/// Returns the lowest bit set in `value`, 0 if there is none.
const fn lowest_bit(value: u64) -> u64 {
    value & value.wrapping_neg()
}
