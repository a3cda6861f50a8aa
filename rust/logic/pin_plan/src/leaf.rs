// SPDX-License-Identifier: GPL-2.0

//! Leaves of IOMMU page tables.

use core::fmt;

/// A number of page-table leaves of the same size, next to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Size of one leaf in bytes, a power of two.
    pub size: u64,
    /// Number of leaves, at least 1.
    pub count: u64,
}

/// Returns how an IOMMU cuts one contiguous run into leaves, in ascending order of addresses.
///
/// `page_sizes` has bit `n` set if there are leaves of `1 << n` bytes; the run is `len` bytes from
/// `iova` on the device's side and from `phys` on the memory's. At each step the largest size is
/// taken that divides both addresses and is not larger than the rest, which is what `iommu_map()`
/// does. Equal sizes come together, so that there are at most two steps per size whatever the
/// length is.
///
/// Ends early where no size fits: for a run whose addresses and length are multiples of the
/// smallest size, which is all that can be mapped, it covers the whole run.
///
/// C counterpart: `iommu_pgsize()`.
pub fn leaves(
    page_sizes: u64,
    iova: u64,
    phys: u64,
    len: u64,
) -> impl Iterator<Item = Leaf> + Clone {
    let mut rest = Run { iova, phys, len };
    core::iter::from_fn(move || {
        let leaf = rest.next_leaf(page_sizes)?;
        rest = rest.without(leaf);
        Some(leaf)
    })
}

/// What is still to be mapped.
#[derive(Clone, Copy)]
struct Run {
    iova: u64,
    phys: u64,
    len: u64,
}

impl Run {
    /// Returns the leaves of the size to begin with, up to where a larger one can take over.
    fn next_leaf(self, page_sizes: u64) -> Option<Leaf> {
        let merged = self.iova | self.phys;
        let not_above_len = u64::MAX.checked_shr(self.len.leading_zeros())?;
        // All bits up to the lowest one set; all 64 if the addresses are 0.
        let dividing = merged ^ merged.wrapping_sub(1);
        let fitting = page_sizes & not_above_len & dividing;
        let size = TOP_BIT.checked_shr(fitting.leading_zeros())?;

        let bytes = self.len_before_larger(page_sizes, size).unwrap_or(self.len);
        let count = bytes.checked_shr(size.trailing_zeros())?;
        Some(Leaf { size, count })
    }

    /// Returns the distance to where the next size above `size` fits, [`None`] if it never does.
    ///
    /// Larger sizes need not be looked at: where they fit, the next one fits too.
    fn len_before_larger(self, page_sizes: u64, size: u64) -> Option<u64> {
        let larger = page_sizes & !size & !size.wrapping_sub(1);
        let next = larger & larger.wrapping_neg();
        let offset_in_next = next.checked_sub(1)?;
        if (self.iova ^ self.phys) & offset_in_next != 0 {
            return None;
        }
        let before = self.iova.wrapping_neg() & offset_in_next;
        if before.checked_add(next)? > self.len {
            return None;
        }
        Some(before)
    }

    /// Returns what remains behind `leaf`.
    ///
    /// The addresses may wrap to 0 behind the last page there is, with nothing remaining.
    fn without(self, leaf: Leaf) -> Self {
        let done = leaf.size.wrapping_mul(leaf.count);
        Self {
            iova: self.iova.wrapping_add(done),
            phys: self.phys.wrapping_add(done),
            len: self.len.saturating_sub(done),
        }
    }
}

const TOP_BIT: u64 = 1 << 63;

/// Number of leaves of each size, for reports.
///
/// Every mapping has one, so counts are small: more than [`u32::MAX`] leaves of a size, which is 16
/// TiB of the smallest, are counted as so many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LeafCounts([u32; 64]);

impl LeafCounts {
    /// Adds the leaves of one contiguous run, see [`leaves`].
    pub fn add_run(&mut self, page_sizes: u64, iova: u64, phys: u64, len: u64) {
        for leaf in leaves(page_sizes, iova, phys, len) {
            self.add(leaf);
        }
    }

    /// Adds leaves of one size.
    pub fn add(&mut self, leaf: Leaf) {
        // Of a power of two the binary logarithm is below 64.
        if let Some(count) = self.0.get_mut(leaf.size.trailing_zeros() as usize) {
            *count = count.saturating_add(u32::try_from(leaf.count).unwrap_or(u32::MAX));
        }
    }

    /// Adds all that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    /// Takes away what `other` counted, at most all there is.
    pub fn subtract(&mut self, other: &Self) {
        for (count, less) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_sub(less);
        }
    }

    /// Returns the sizes in bytes that occur, ascending, each with its number of leaves.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + Clone + '_ {
        let sizes = (0..u64::BITS).filter_map(|shift| 1u64.checked_shl(shift));
        let counts = self.0.iter().map(|&count| u64::from(count));
        sizes.zip(counts).filter(|&(_, count)| count != 0)
    }

    /// Returns whether there are no leaves at all.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl Default for LeafCounts {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// Shows the sizes that occur.
impl fmt::Debug for LeafCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
