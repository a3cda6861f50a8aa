// SPDX-License-Identifier: GPL-2.0

//! The rule for what a guest's access to device memory is mapped with.
//!
//! It is the same for the C code and for the Rust module, up to the largest block either of them
//! makes: the largest one that is at the same place in guest-physical, in virtual and in physical
//! memory, and inside of what is mapped to all of them by one memory slot and one mapping of the
//! process.

use std::ops::Range;

/// What a leaf of the page table maps, with pages of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// 4 KiB
    Page,
    /// 2 MiB
    Block2M,
    /// 1 GiB
    Block1G,
}

impl Level {
    /// All of them, the largest first.
    const DESCENDING: [Level; 3] = [Level::Block1G, Level::Block2M, Level::Page];

    /// Bytes mapped.
    pub(crate) const fn size(self) -> u64 {
        match self {
            Level::Page => 4 << 10,
            Level::Block2M => 2 << 20,
            Level::Block1G => 1 << 30,
        }
    }

    /// The architecture's number of it.
    pub(crate) const fn number(self) -> i32 {
        match self {
            Level::Block1G => 1,
            Level::Block2M => 2,
            Level::Page => 3,
        }
    }

    /// By the architecture's number of it.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Level::Block1G),
            2 => Some(Level::Block2M),
            3 => Some(Level::Page),
            _ => None,
        }
    }
}

/// How an address gets from the guest to the device.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// Virtual addresses of the memory slot.
    pub(crate) slot: Range<u64>,
    /// Guest-physical address of its first byte.
    pub(crate) ipa: u64,
    /// Virtual addresses of the mapping of the process.
    pub(crate) vma: Range<u64>,
    /// Physical address of its first byte.
    pub(crate) pa: u64,
}

impl Path {
    /// What an access to `hva` is mapped with, and the virtual address at which that begins.
    pub(crate) fn block(&self, hva: u64, largest: Level) -> (u64, Level) {
        let fits = |level: &Level| {
            let size = level.size();
            let start = hva / size * size;
            let inside = |range: &Range<u64>| range.start <= start && start + size <= range.end;
            *level <= largest
                && inside(&self.slot)
                && inside(&self.vma)
                && (self.slot.start ^ self.ipa) % size == 0
                && (self.vma.start ^ self.pa) % size == 0
        };
        let mut levels = Level::DESCENDING.into_iter();
        let level = levels.find(fits).unwrap_or(Level::Page);
        (hva / level.size() * level.size(), level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M2: u64 = Level::Block2M.size();
    const G1: u64 = Level::Block1G.size();

    fn path(hva: u64, len: u64, ipa: u64, pa: u64) -> Path {
        Path {
            slot: hva..hva + len,
            ipa,
            vma: hva..hva + len,
            pa,
        }
    }

    #[test]
    fn as_large_as_allowed() {
        let path = path(8 * G1, 4 * G1, 16 * G1, 512 * G1);
        let at = 9 * G1 + 5 * M2 + 4096;
        assert_eq!(path.block(at, Level::Block1G), (9 * G1, Level::Block1G));
        assert_eq!(
            path.block(at, Level::Block2M),
            (9 * G1 + 5 * M2, Level::Block2M)
        );
        assert_eq!(path.block(at, Level::Page), (at, Level::Page));
    }

    #[test]
    fn at_the_same_place_everywhere() {
        let at = 9 * G1;
        // A page away, in guest-physical or in physical memory.
        for (ipa, pa) in [(16 * G1 + 4096, 512 * G1), (16 * G1, 512 * G1 + 4096)] {
            let path = path(8 * G1, 4 * G1, ipa, pa);
            assert_eq!(path.block(at, Level::Block1G), (at, Level::Page));
        }
        // A block away.
        let path = path(8 * G1, 4 * G1, 16 * G1 + M2, 512 * G1);
        assert_eq!(path.block(at, Level::Block1G), (at, Level::Block2M));
    }

    #[test]
    fn inside() {
        // The first and the last block are cut off, by the slot or by the mapping.
        let whole = 8 * M2..12 * M2;
        let cut = 8 * M2 + 4096..12 * M2 - 4096;
        for (slot, vma) in [(whole.clone(), cut.clone()), (cut.clone(), whole.clone())] {
            let path = Path {
                ipa: slot.start + 64 * G1,
                pa: vma.start + 128 * G1,
                slot,
                vma,
            };
            for (block, level) in [
                (8, Level::Page),
                (9, Level::Block2M),
                (10, Level::Block2M),
                (11, Level::Page),
            ] {
                let at = block * M2 + 8192;
                assert_eq!(path.block(at, Level::Block1G).1, level, "block {block}");
            }
        }
    }
}
