// SPDX-License-Identifier: GPL-2.0

//! Which blocks there can be around a page.

use crate::Bound;

/// Sizes of the leaves of a stage-2 page table.
///
/// Arm ARM, D8.2 "Translation process": a table of 8-byte descriptors fills one page, so each level
/// stands for `page_shift - 3` more bits. KVM makes blocks at level 2, with 4K pages at level 1 too.
///
/// # Invariants
///
/// The shifts of all sizes are below 63.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule {
    page_shift: u32,
    table_bits: u32,
    levels: u32,
}

/// Page shift of the granule that has level 1 blocks without 52-bit addresses.
const SHIFT_4K: u32 = 12;
/// Binary logarithm of the size of a descriptor.
const DESCRIPTOR_SHIFT: u32 = 3;

impl Granule {
    /// The granule of pages of `1 << page_shift` bytes, [`None`] if there is no such architecture.
    pub const fn new(page_shift: u32) -> Option<Self> {
        let levels = if page_shift == SHIFT_4K { 3 } else { 2 };
        Self::with_levels(page_shift, levels)
    }

    /// A granule with leaves at the last `levels` levels.
    pub const fn with_levels(page_shift: u32, levels: u32) -> Option<Self> {
        if page_shift > 16 || levels == 0 || levels > 3 {
            return None;
        }
        // INVARIANT: At most 16 + 2 * 13.
        match page_shift.checked_sub(DESCRIPTOR_SHIFT) {
            Some(table_bits) if table_bits != 0 => Some(Self {
                page_shift,
                table_bits,
                levels,
            }),
            _ => None,
        }
    }

    /// Size of the smallest leaf in bytes.
    pub const fn page_size(self) -> u64 {
        1 << self.page_shift
    }

    /// Size of the leaves `above` levels above pages, [`None`] if there are none.
    pub fn size(self, above: u32) -> Option<u64> {
        let shift = self
            .table_bits
            .checked_mul(above)?
            .checked_add(self.page_shift)?;
        (above < self.levels).then_some(1u64.checked_shl(shift)?)
    }

    /// How many levels above pages leaves of `size` bytes are.
    pub fn level_of(self, size: u64) -> Option<u32> {
        (0..self.levels).find(|&above| self.size(above) == Some(size))
    }
}

/// Addresses of bytes, from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// The span from `first` to `last`, [`None`] if that is before it.
    pub fn new(first: u64, last: u64) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The span from `start` up to and without `end`, [`None`] if it is empty.
    pub fn until(start: u64, end: u64) -> Option<Self> {
        Self::new(start, end.checked_sub(1)?)
    }

    /// The span of `size` bytes, [`None`] if it is empty or leaves the address space.
    pub fn sized(first: u64, size: u64) -> Option<Self> {
        let last = first.checked_add(size.checked_sub(1)?)?;
        Some(Self { first, last })
    }

    /// The first address.
    pub fn first(self) -> u64 {
        self.first
    }

    /// The last address.
    pub fn last(self) -> u64 {
        self.last
    }

    /// Whether all of `other` is in this span.
    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

/// The page that faulted: where it is for the guest, for the VMM and in the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// Intermediate physical address, of the stage 2 that is mapped.
    pub ipa: u64,
    /// Virtual address in the VMM.
    pub hva: u64,
    /// Physical address.
    pub pa: u64,
}

/// What no mapping may go beyond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The memory slot, as addresses in the VMM.
    pub slot: Span,
    /// The VMA.
    pub vma: Span,
    /// Size in bytes: of pages if dirty pages are logged, of what a guest's own stage 2 maps.
    pub max_size: u64,
}

/// A leaf of stage 2.
///
/// # Invariants
///
/// `size` is one of the granule's, all three addresses are multiples of it, and none of the ends
/// is beyond the last address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    ipa: u64,
    hva: u64,
    pa: u64,
    size: u64,
}

impl Block {
    /// The block of `size` bytes around a page.
    ///
    /// # Errors
    ///
    /// [`Bound::Offset`] if the three addresses are not at the same offset in such a block.
    fn around(page: Page, size: u64) -> Result<Self, Bound> {
        let offset = size.checked_sub(1).ok_or(Bound::Offset)?;
        if (page.ipa ^ page.hva) & offset != 0 || (page.ipa ^ page.pa) & offset != 0 {
            return Err(Bound::Offset);
        }
        // INVARIANT: Clearing the offset aligns, and nothing aligned to a power of two is less than
        // that below the end.
        Ok(Self {
            ipa: page.ipa & !offset,
            hva: page.hva & !offset,
            pa: page.pa & !offset,
            size,
        })
    }

    /// Where the guest has it.
    pub fn ipa(self) -> u64 {
        self.ipa
    }

    /// Where the VMM has it.
    pub fn hva(self) -> u64 {
        self.hva
    }

    /// What it maps to.
    pub fn pa(self) -> u64 {
        self.pa
    }

    /// Its size in bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// The addresses in the VMM.
    pub fn hvas(self) -> Span {
        self.span(self.hva)
    }

    /// The addresses in the machine.
    pub fn pas(self) -> Span {
        self.span(self.pa)
    }

    fn span(self, first: u64) -> Span {
        // By the type invariants nothing is cut off.
        let last = first.saturating_add(self.size.saturating_sub(1));
        Span { first, last }
    }
}

/// The blocks that could be mapped, as far as limits go: each contains the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    page: Block,
    larger: [Option<Block>; 2],
    bound: Bound,
}

impl Plan {
    /// Finds the blocks around `page`, all of which `is_device` is asked about but the page.
    ///
    /// Sizes nest, so the first that does not fit ends it: no larger one would.
    ///
    /// # Errors
    ///
    /// [`Bound::Offset`] if the addresses are not those of a page.
    ///
    /// C counterpart: `fault_supports_stage2_huge_mapping()`.
    pub fn new(
        granule: Granule,
        page: Page,
        limits: &Limits,
        mut is_device: impl FnMut(Block) -> bool,
    ) -> Result<Self, Bound> {
        let mut plan = Self {
            page: Block::around(page, granule.page_size())?,
            larger: [None; 2],
            bound: Bound::Largest,
        };
        for (above, place) in (1..).zip(plan.larger.iter_mut()) {
            let Some(size) = granule.size(above) else {
                break;
            };
            match Self::admit(page, size, limits, &mut is_device) {
                Ok(block) => *place = Some(block),
                Err(bound) => {
                    plan.bound = bound;
                    break;
                }
            }
        }
        Ok(plan)
    }

    fn admit(
        page: Page,
        size: u64,
        limits: &Limits,
        is_device: &mut impl FnMut(Block) -> bool,
    ) -> Result<Block, Bound> {
        if size > limits.max_size {
            return Err(Bound::Limit);
        }
        let block = Block::around(page, size)?;
        if !limits.slot.contains(block.hvas()) {
            return Err(Bound::Slot);
        }
        if !limits.vma.contains(block.hvas()) {
            return Err(Bound::Vma);
        }
        if !is_device(block) {
            return Err(Bound::Memory);
        }
        Ok(block)
    }

    /// The page itself, which needs no proof beyond its own leaf.
    pub fn page(&self) -> Block {
        self.page
    }

    /// The larger blocks, in ascending order.
    pub fn larger(&self) -> impl Iterator<Item = Block> + Clone + '_ {
        self.larger.iter().map_while(|&block| block)
    }

    /// What kept a still larger block from the plan.
    pub fn bound(&self) -> Bound {
        self.bound
    }
}
