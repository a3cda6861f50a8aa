// SPDX-License-Identifier: GPL-2.0

//! How device memory gets into a guest's stage 2: how large a mapping may be, and with which
//! attributes.
//!
//! A stage-2 mapping repeats what the VMM's own page table says, so it may be as large as that
//! proves and no larger. [`Plan`] finds the blocks that alignment, memory slot and VMA allow;
//! [`Prover`] looks for the largest of them whose every leaf in the VMM's page table is there and
//! continues the others. Nothing is concluded from a VMA's size or file offset: what a driver maps
//! behind it need be neither contiguous nor complete.
//!
//! Sizes and addresses are in bytes.

#![cfg_attr(not(MODULE), no_std)]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

mod attributes;
mod block;
mod bound;
mod host;

pub use attributes::{
    attributes,
    Access,
    Attributes,
    Memory,
    Origin,
    Refusal, //
};
pub use block::{
    Block,
    Granule,
    Limits,
    Page,
    Plan,
    Span, //
};
pub use bound::Bound;
pub use host::{
    Fill,
    HostTable,
    Leaf,
    Prospect,
    Prover,
    Stale,
    Unreadable, //
};

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(stage2_map))]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use core::ops::ControlFlow;

    const K4: u64 = 1 << 12;
    const M2: u64 = 1 << 21;
    const G1: u64 = 1 << 30;
    const PA: u64 = 1 << 40;
    const HVA: u64 = 1 << 36;
    const IPA: u64 = 1 << 34;

    /// A page table that maps from HVA to PA in leaves of one size, but for one leaf.
    struct Even {
        size: u64,
        odd: Option<Leaf>,
    }

    impl HostTable for Even {
        fn walk(
            &self,
            span: Span,
            visit: &mut dyn FnMut(&Leaf) -> ControlFlow<()>,
        ) -> Result<(), Unreadable> {
            let mut hva = span.first() & !(self.size - 1);
            while hva <= span.last() {
                let leaf = match self.odd {
                    Some(odd) if odd.hva == hva => odd,
                    _ => Leaf {
                        hva,
                        size: self.size,
                        pa: hva - HVA + PA,
                        attr: 3,
                        present: true,
                        writable: true,
                    },
                };
                if visit(&leaf).is_break() {
                    break;
                }
                hva += self.size;
            }
            Ok(())
        }
    }

    fn plan(offset: u64, size: u64, max_size: u64) -> Option<Plan> {
        let page = Page {
            ipa: IPA + offset,
            hva: HVA + offset,
            pa: PA + offset,
        };
        let span = Span::sized(HVA, size)?;
        let limits = Limits {
            slot: span,
            vma: span,
            max_size,
        };
        Plan::new(Granule::new(12)?, page, &limits, |_| true).ok()
    }

    fn largest(table: &Even, plan: Option<Plan>) -> Option<(u64, Bound)> {
        let plan = plan?;
        let prover = Prover::new(table, &plan, true, false, u32::MAX).ok()?;
        let (block, bound) = prover.largest(&plan);
        Some((block.size(), bound))
    }

    #[test]
    fn sizes_of_the_architecture() {
        let sizes = |page_shift| {
            let granule = Granule::new(page_shift);
            [0, 1, 2, 3].map(|above| granule.and_then(|granule| granule.size(above)))
        };
        assert_eq!(sizes(12), [Some(K4), Some(M2), Some(G1), None]);
        assert_eq!(sizes(14), [Some(1 << 14), Some(32 << 20), None, None]);
        assert_eq!(sizes(16), [Some(1 << 16), Some(512 << 20), None, None]);
        assert_eq!(Granule::new(17), None);
        assert_eq!(Granule::new(3), None);
        assert_eq!(Granule::new(12).and_then(|g| g.level_of(M2)), Some(1));
        assert_eq!(Granule::new(14).and_then(|g| g.level_of(M2)), None);
    }

    #[test]
    fn blocks_from_leaves_of_each_size() {
        for size in [K4, M2, G1] {
            let table = Even { size, odd: None };
            let at = |offset, bytes| largest(&table, plan(offset, bytes, G1));
            assert_eq!(at(5 * K4, 4 * G1), Some((G1, Bound::Largest)));
            assert_eq!(at(G1 - K4, G1), Some((G1, Bound::Largest)));
            assert_eq!(at(0, G1 - K4), Some((M2, Bound::Slot)));
            assert_eq!(at(G1 - M2, G1 - K4), Some((K4, Bound::Slot)));
            let limited = |max| largest(&table, plan(0, G1, max));
            assert_eq!(limited(M2), Some((M2, Bound::Limit)));
            assert_eq!(limited(K4), Some((K4, Bound::Limit)));
        }
    }

    #[test]
    fn one_odd_leaf_is_enough() {
        let good = Leaf {
            hva: HVA + M2,
            size: M2,
            pa: PA + M2,
            attr: 3,
            present: true,
            writable: true,
        };
        let with = |odd| {
            let table = Even {
                size: M2,
                odd: Some(odd),
            };
            largest(&table, plan(0, G1, G1))
        };
        assert_eq!(with(good), Some((G1, Bound::Largest)));
        let gone = Leaf {
            present: false,
            ..good
        };
        assert_eq!(with(gone), Some((M2, Bound::Missing)));
        let moved = Leaf {
            pa: PA + 2 * M2,
            ..good
        };
        assert_eq!(with(moved), Some((M2, Bound::Elsewhere)));
        let other = Leaf { attr: 4, ..good };
        assert_eq!(with(other), Some((M2, Bound::Attributes)));
        let fixed = Leaf {
            writable: false,
            ..good
        };
        assert_eq!(with(fixed), Some((M2, Bound::ReadOnly)));
    }

    #[test]
    fn offsets_have_to_agree() {
        let span = Span::sized(HVA, 4 * G1);
        let at = |ipa, pa| {
            let page = Page {
                ipa: IPA + ipa,
                hva: HVA,
                pa: PA + pa,
            };
            let limits = Limits {
                slot: span?,
                vma: span?,
                max_size: G1,
            };
            let plan = Plan::new(Granule::new(12)?, page, &limits, |_| true).ok()?;
            Some((plan.larger().last().map(Block::size), plan.bound()))
        };
        assert_eq!(at(0, 0), Some((Some(G1), Bound::Largest)));
        assert_eq!(at(M2, 0), Some((Some(M2), Bound::Offset)));
        assert_eq!(at(0, M2), Some((Some(M2), Bound::Offset)));
        assert_eq!(at(K4, K4), Some((None, Bound::Offset)));
        assert_eq!(at(0x800, 0), None);
    }

    #[test]
    fn the_page_has_to_be_as_it_was_found() {
        let odd = |change: fn(&mut Leaf)| {
            let mut leaf = Leaf {
                hva: HVA,
                size: K4,
                pa: PA,
                attr: 3,
                present: true,
                writable: true,
            };
            change(&mut leaf);
            let table = Even {
                size: K4,
                odd: Some(leaf),
            };
            largest(&table, plan(0, M2, G1))
        };
        assert_eq!(odd(|_| ()), Some((M2, Bound::Slot)));
        assert_eq!(odd(|leaf| leaf.present = false), None);
        assert_eq!(odd(|leaf| leaf.pa += K4), None);
        assert_eq!(odd(|leaf| leaf.writable = false), None);
    }

    #[test]
    fn looks_at_no_more_leaves_than_it_may() {
        let table = Even {
            size: K4,
            odd: None,
        };
        let with = |leaves| {
            let plan = plan(0, 2 * G1, G1)?;
            let prover = Prover::new(&table, &plan, true, false, leaves).ok()?;
            Some(prover.largest(&plan).1)
        };
        assert_eq!(with(511), Some(Bound::Budget));
        assert_eq!(with(1 << 18), Some(Bound::Largest));
        assert_eq!(with((1 << 18) - 1), Some(Bound::Budget));
    }

    #[test]
    fn memory_type_follows_the_vma() {
        let access = Access {
            exec: false,
            writable: true,
            may_write: true,
            exec_is_free: true,
        };
        let with = |cacheable, can_cache, may_be_normal| {
            let origin = Origin {
                cacheable,
                can_cache,
                may_be_normal,
            };
            attributes(origin, access).map(|found| (found.memory, found.exec))
        };
        for any in [false, true] {
            assert_eq!(with(true, false, any), Err(Refusal::Incoherent));
            assert_eq!(with(true, true, any), Ok((Memory::Normal, true)));
            assert_eq!(with(false, any, false), Ok((Memory::Device, false)));
            assert_eq!(with(false, any, true), Ok((Memory::NormalUncached, false)));
        }
    }
}
