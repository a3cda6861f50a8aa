// SPDX-License-Identifier: GPL-2.0

//! What a sequence has made of containers so far, as far as one must know it to leave alone what
//! the C driver does not survive, and to know which differences are intended.

use std::collections::BTreeMap;

use harness::vfio::PAGE;

use crate::layout::{
    ARENA,
    ARENA_SPAN, //
};
use crate::op::Unit;

/// A mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) last: u64,
    pub(crate) vaddr: u64,
    pub(crate) writable: bool,
    /// The process whose memory it is, by its number in the order of their beginnings.
    pub(crate) owner: u32,
    /// C has shifted its log: see `unsure` in `record.rs`.
    pub(crate) shifted: bool,
}

/// A container.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// 1 or 2, while a driver serves it.
    pub(crate) version: Option<u8>,
    pub(crate) units: Vec<Unit>,
    pub(crate) tracking: bool,
    /// A device was here whose IOMMU tells what it wrote to.
    pub(crate) tells_dirty: bool,
    pub(crate) mappings: BTreeMap<u64, Mapping>,
}

/// What a domain behind an IOMMU can address.
fn last_address(unit: Unit) -> u64 {
    match unit.kind() {
        "narrow" => (1 << 39) - 1,
        "wide" => u64::MAX,
        _ => (1 << 48) - 1,
    }
}

impl Container {
    /// Whether there is a device behind an IOMMU.
    pub(crate) fn has_iommu(&self) -> bool {
        self.units.iter().any(|unit| !unit.emulated())
    }

    /// Whether a device behind an IOMMU cannot address all mappings.
    pub(crate) fn outside(&self, more: Unit) -> bool {
        let last = last_address(more);
        self.mappings.values().any(|mapping| mapping.last > last)
    }

    /// Whether `more` would share a page table with C only, or with Rust only.
    ///
    /// A page table that is shared stays with the first group's limits after that has left.
    pub(crate) fn mixes_dirty(&self, more: Unit) -> bool {
        let tells = |unit: Unit| unit.kind() == "dirty";
        let mut iommus = self.units.iter().filter(|unit| !unit.emulated());
        !more.emulated() && iommus.any(|unit| tells(*unit) != tells(more))
    }

    /// Whether a range cuts a mapping in two.
    pub(crate) fn cuts(&self, first: u64, last: u64) -> bool {
        let inside = self.within(first, last);
        let cut = |start: &u64| *start < first || self.mappings[start].last > last;
        inside.iter().any(cut)
    }

    /// The first address of each mapping in a range.
    fn within(&self, first: u64, last: u64) -> Vec<u64> {
        self.mappings
            .iter()
            .filter(|(start, mapping)| **start <= last && mapping.last >= first)
            .map(|(start, _)| *start)
            .collect()
    }

    /// UNMAP_DMA has succeeded.
    pub(crate) fn unmapped(&mut self, first: u64, last: u64) {
        let inside = self.within(first, last);
        if self.version == Some(1) && inside.first().is_some_and(|start| *start < first) {
            return;
        }
        for start in inside {
            self.mappings.remove(&start);
        }
    }

    /// A driver no longer serves it.
    pub(crate) fn released(&mut self) {
        self.version = None;
        self.tracking = false;
        self.tells_dirty = false;
        self.mappings.clear();
    }

    /// Bytes of bitmaps that START would make the kernel allocate.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.mappings
            .iter()
            .map(|(start, mapping)| log_bytes(mapping.last - start))
            .sum()
    }

    /// DIRTY_PAGES has reported a range: where C's log is shifted from now on.
    pub(crate) fn reported(&mut self, first: u64, last: u64) {
        for (start, mapping) in &mut self.mappings {
            if *start >= first && mapping.last <= last && (start - first) / PAGE % 64 != 0 {
                mapping.shifted = true;
            }
        }
    }

    /// Forgets what was reported: logs begin anew.
    pub(crate) fn stopped(&mut self) {
        self.tracking = false;
        for mapping in self.mappings.values_mut() {
            mapping.shifted = false;
        }
    }

    /// Bits of the user's bitmap that C may set although no page is dirty, as `(first, behind)`.
    ///
    /// Those are the rest of the word in which a mapping ends whose log C has shifted, as it does
    /// for a mapping that does not begin at a multiple of 64 pages of a range: the log then keeps
    /// bits behind its end. If the user's bitmap was not empty before, all bits of a word that a
    /// mapping fills in part are unsure: C takes the word over or overwrites it.
    pub(crate) fn unsure_bits(&self, first: u64, last: u64, empty: bool) -> Vec<(u64, u64)> {
        let mut unsure = Vec::new();
        for start in self.within(first, last) {
            let mapping = &self.mappings[&start];
            let Some(begin) = start.checked_sub(first).map(|bytes| bytes / PAGE) else {
                continue;
            };
            let end = (mapping.last - first) / PAGE + 1;
            if !empty && begin % 64 != 0 {
                unsure.push((begin / 64 * 64, begin.next_multiple_of(64)));
            }
            if end % 64 != 0 {
                if !empty {
                    unsure.push((end / 64 * 64, end.next_multiple_of(64)));
                } else if mapping.shifted {
                    unsure.push((end, end.next_multiple_of(64)));
                }
            }
        }
        unsure
    }

    /// Whether memory that `[iova, iova + len)` is mapped to is the arena's, or nobody's.
    pub(crate) fn reaches_only_arena(&self, iova: u64, len: u64) -> bool {
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            let Some((start, mapping)) = self
                .mappings
                .range(..=at)
                .next_back()
                .filter(|(_, mapping)| mapping.last >= at)
            else {
                return true;
            };
            let size = left.min((mapping.last - at).saturating_add(1));
            if !is_arena(mapping.vaddr.wrapping_add(at - start), size) {
                return false;
            }
            at = at.wrapping_add(size);
            left -= size;
        }
        true
    }
}

/// Bytes of a bitmap for a mapping of so many bytes and one; C refuses more than 2^31 - 1 pages.
pub(crate) fn log_bytes(last_offset: u64) -> u64 {
    let pages = last_offset / PAGE + 1;
    if pages < 1 << 31 {
        pages / 8
    } else {
        0
    }
}

/// Whether addresses are in the arena or where no user memory can be.
pub(crate) fn is_arena(vaddr: u64, len: u64) -> bool {
    const FIRST_BYTES: u64 = 64 << 10;
    const KERNEL_HALF: u64 = 1 << 47;
    let Some(last) = len.checked_sub(1).and_then(|rest| vaddr.checked_add(rest)) else {
        return false;
    };
    last < FIRST_BYTES || vaddr >= KERNEL_HALF || (vaddr >= ARENA && last < ARENA + ARENA_SPAN)
}
