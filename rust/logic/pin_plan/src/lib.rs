// SPDX-License-Identifier: GPL-2.0

//! Arithmetic of page pinning.
//!
//! What a leaf of a PFN mapping offers, what an IOMMU makes of a contiguous run, and whether the
//! memory-lock limit admits it. Sizes and addresses are in bytes,
//! page frame numbers (PFNs) and counts in CPU pages.

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

mod budget;
mod leaf;
mod pfnmap;

pub use budget::{
    Budget,
    OverLimit, //
};
pub use leaf::{
    leaves,
    Leaf,
    LeafCounts, //
};
pub use pfnmap::pfnmap_run;

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(pin_plan))]
#[cfg_attr(vrs_kunit, allow(clippy::arithmetic_side_effects))]
mod tests {
    use super::*;

    const K4: u64 = 1 << 12;
    const M2: u64 = 1 << 21;
    const G1: u64 = 1 << 30;
    const X86: u64 = K4 | M2 | G1;

    /// Whether an x86 IOMMU cuts the run as `expected`.
    fn cut(iova: u64, phys: u64, len: u64, expected: &[(u64, u64)]) -> bool {
        leaves(X86, iova, phys, len).eq(expected.iter().map(|&(size, count)| Leaf { size, count }))
    }

    #[test]
    fn leaves_grow_and_shrink_with_alignment() {
        assert!(cut(0, 0, K4, &[(K4, 1)]));
        assert!(cut(0, G1, G1, &[(G1, 1)]));
        assert!(cut(0, G1, G1 - K4, &[(M2, 511), (K4, 511)]));
        assert!(cut(
            M2 - K4,
            G1 + M2 - K4,
            G1 + M2,
            &[(K4, 1), (M2, 512), (K4, 511)]
        ));
        assert!(cut(
            G1 - K4,
            G1 - K4,
            2 * G1 + M2 + 2 * K4,
            &[(K4, 1), (G1, 2), (M2, 1), (K4, 1)]
        ));
    }

    #[test]
    fn leaves_of_addresses_that_differ_in_offset() {
        assert!(cut(0, K4, G1, &[(K4, G1 / K4)]));
        assert!(cut(M2, 0, 4 * G1, &[(M2, 2048)]));
        assert!(cut(M2, 2 * M2, M2 + K4, &[(M2, 1), (K4, 1)]));
    }

    #[test]
    fn leaves_up_to_the_last_address() {
        let top = G1.wrapping_neg();
        assert!(cut(top, top, G1, &[(G1, 1)]));
        assert!(cut(top - K4, top - K4, G1 + K4, &[(K4, 1), (G1, 1)]));
        assert!(leaves(1 << 63, 0, 0, u64::MAX).eq([Leaf {
            size: 1 << 63,
            count: 1
        }]));
        assert!(leaves(1, 0, 0, u64::MAX).eq([Leaf {
            size: 1,
            count: u64::MAX
        }]));
    }

    #[test]
    fn leaves_end_where_no_size_fits() {
        assert!(cut(0, 0, 0, &[]));
        assert!(cut(0x800, 0, K4, &[]));
        assert!(cut(0, 0, K4 - 1, &[]));
        assert!(cut(0, 0, K4 + 1, &[(K4, 1)]));
        assert_eq!(leaves(0, 0, 0, K4).count(), 0);
    }

    #[test]
    fn counts_add_up() {
        let mut counts = LeafCounts::default();
        assert!(counts.is_empty());
        counts.add_run(X86, M2 - K4, M2 - K4, M2 + 2 * K4);
        assert!(counts.iter().eq([(K4, 2), (M2, 1)]));
        let one = counts;
        counts.merge(&one);
        assert!(counts.iter().eq([(K4, 4), (M2, 2)]));
        counts.subtract(&one);
        assert!(counts == one);
        counts.subtract(&one);
        assert!(counts.is_empty());
        counts.subtract(&one);
        assert!(counts.is_empty());
    }

    #[test]
    fn budget_in_whole_pages() {
        let budget = Budget::from_bytes((64 << 10) + 4095, 12);
        assert_eq!(budget, Budget::from_pages(16, 12));
        assert_eq!(budget.admits(0, 16), Ok(()));
        assert_eq!(budget.admits(16, 0), Ok(()));
        assert_eq!(
            budget.admits(10, 7),
            Err(OverLimit {
                limit: 16,
                locked: 10,
                asked: 7,
                page_shift: 12
            })
        );
        assert!(budget.admits(u64::MAX, 1).is_err());
        assert!(budget.admits(1, u64::MAX).is_err());
    }

    #[test]
    fn budget_without_a_limit() {
        assert_eq!(Budget::from_bytes(u64::MAX, 12), Budget::UNLIMITED);
        assert_eq!(Budget::UNLIMITED.admits(u64::MAX, u64::MAX), Ok(()));
        assert!(Budget::from_bytes(0, 12).admits(0, 1).is_err());
        assert!(Budget::from_bytes(u64::MAX - 1, 12)
            .admits(1 << 52, 0)
            .is_err());
    }

    #[test]
    fn room_left_under_the_limit() {
        let available = |locked, asked| {
            Budget::from_pages(16, 12)
                .admits(locked, asked)
                .map_err(|over| over.available())
        };
        assert_eq!(available(10, 7), Err(6));
        assert_eq!(available(17, 0), Err(0));
    }

    #[test]
    fn pages_to_the_end_of_a_leaf() {
        let m2_mask = !(M2 - 1);
        assert_eq!(pfnmap_run(0x200, m2_mask, 12, u64::MAX), 512);
        assert_eq!(pfnmap_run(0x2ff, m2_mask, 12, u64::MAX), 257);
        assert_eq!(pfnmap_run(0x3ff, m2_mask, 12, u64::MAX), 1);
        assert_eq!(pfnmap_run(0x200, m2_mask, 12, 10), 10);
        assert_eq!(pfnmap_run(0x201, !(K4 - 1), 12, 10), 1);
        assert_eq!(pfnmap_run(0, 0, 0, u64::MAX), u64::MAX);
        assert_eq!(pfnmap_run(5, 0, 64, u64::MAX), 1);
        assert_eq!(pfnmap_run(u64::MAX, m2_mask, 12, u64::MAX), 1);
    }
}
