// SPDX-License-Identifier: GPL-2.0

//! Why mappings are no larger.

/// What keeps a mapping from being one level larger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// There is no larger size.
    Largest,
    /// Logging of dirty pages, a guest's own stage 2, or the page table.
    Limit,
    /// Guest, VMM and machine have it at different offsets in the block.
    Offset,
    /// The block sticks out of the memory slot.
    Slot,
    /// The block sticks out of the VMA.
    Vma,
    /// Some of the block is memory of the kernel.
    Memory,
    /// The VMA may map ordinary pages, and the block is more than one leaf.
    Mixed,
    /// The VMM's page table does not map some of it.
    Missing,
    /// The VMM's page table maps some of it to elsewhere.
    Elsewhere,
    /// Some of it has other memory attributes.
    Attributes,
    /// Some of it is read-only.
    ReadOnly,
    /// More leaves than may be looked at.
    Budget,
}

impl Bound {
    /// All there are; a bound's number is its place.
    pub const ALL: [Self; 12] = [
        Self::Largest,
        Self::Limit,
        Self::Offset,
        Self::Slot,
        Self::Vma,
        Self::Memory,
        Self::Mixed,
        Self::Missing,
        Self::Elsewhere,
        Self::Attributes,
        Self::ReadOnly,
        Self::Budget,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Largest => "largest",
            Self::Limit => "limit",
            Self::Offset => "offset",
            Self::Slot => "slot",
            Self::Vma => "vma",
            Self::Memory => "memory",
            Self::Mixed => "mixed",
            Self::Missing => "missing",
            Self::Elsewhere => "elsewhere",
            Self::Attributes => "attributes",
            Self::ReadOnly => "read-only",
            Self::Budget => "budget",
        }
    }
}
