// SPDX-License-Identifier: GPL-2.0

//! Pinning arithmetic against loops over single leaves and pages.

use pin_plan::{
    leaves,
    pfnmap_run,
    Budget,
    Leaf,
    LeafCounts, //
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x1eaf),
        ..ProptestConfig::default()
    }
}

/// Cuts a run leaf by leaf: each time the largest size that divides both addresses and fits.
fn one_by_one(page_sizes: u64, mut iova: u64, mut phys: u64, mut len: u64) -> Vec<u64> {
    let sizes = || (0..64).map(|shift| 1u64 << shift);
    let mut cut = Vec::new();
    while let Some(size) = sizes()
        .filter(|size| page_sizes & size != 0 && *size <= len)
        .filter(|size| iova % size == 0 && phys % size == 0)
        .max()
    {
        cut.push(size);
        iova = iova.wrapping_add(size);
        phys = phys.wrapping_add(size);
        len -= size;
    }
    cut
}

/// Joins neighbours of equal size.
fn joined(cut: &[u64]) -> Vec<Leaf> {
    let runs = cut.chunk_by(|a, b| a == b);
    runs.map(|run| Leaf {
        size: run[0],
        count: run.len() as u64,
    })
    .collect()
}

/// Page sizes close enough to each other for the loop: 1, 4, 32, ... or any below 1024.
fn page_sizes() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1 | 1 << 2 | 1 << 5 | 1 << 9), 1..1u64 << 10]
}

/// A run; half of them with addresses that differ by a multiple of a large size.
fn run() -> impl Strategy<Value = (u64, u64, u64)> {
    let base = prop_oneof![Just(0u64), Just(u64::MAX - 0x3fff)];
    let difference = prop_oneof![
        0..64u64,
        (0..12u32).prop_map(|shift| 1 << shift),
        Just(0u64)
    ];
    (base, 0..0x2000u64, difference, 0..0x800u64).prop_map(|(base, offset, difference, len)| {
        (base + offset, base + offset + difference, len)
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn leaves_are_those_cut_one_by_one(page_sizes in page_sizes(), (iova, phys, len) in run()) {
        let got: Vec<_> = leaves(page_sizes, iova, phys, len).collect();
        prop_assert_eq!(&got, &joined(&one_by_one(page_sizes, iova, phys, len)));
        prop_assert!(got.len() as u32 <= 2 * page_sizes.count_ones());
    }

    #[test]
    fn leaves_cover_runs_of_whole_pages(
        iova in 0..1u64 << 40,
        phys in 0..1u64 << 40,
        pages in 0..1u64 << 24,
    ) {
        let x86 = 1 << 12 | 1 << 21 | 1 << 30;
        let len = pages << 12;
        let covered: u64 = leaves(x86, iova << 12, phys << 12, len)
            .map(|leaf| leaf.size * leaf.count)
            .sum();
        prop_assert_eq!(covered, len);
    }

    #[test]
    fn any_input_ends(
        page_sizes in any::<u64>(),
        iova in any::<u64>(),
        phys in any::<u64>(),
        len in any::<u64>(),
    ) {
        let mut covered = 0u128;
        for (steps, leaf) in leaves(page_sizes, iova, phys, len).enumerate() {
            prop_assert!(steps < 128);
            prop_assert!(leaf.count > 0 && page_sizes & leaf.size != 0);
            covered += u128::from(leaf.size) * u128::from(leaf.count);
        }
        prop_assert!(covered <= u128::from(len));
    }

    #[test]
    fn counts_are_those_of_all_runs(
        page_sizes in page_sizes(),
        runs in prop::collection::vec((run(), any::<bool>()), 0..4),
    ) {
        let mut counts = LeafCounts::default();
        let mut gone = LeafCounts::default();
        let mut model = BTreeMap::new();
        for ((iova, phys, len), stays) in runs {
            counts.add_run(page_sizes, iova, phys, len);
            if !stays {
                gone.add_run(page_sizes, iova, phys, len);
                continue;
            }
            for size in one_by_one(page_sizes, iova, phys, len) {
                *model.entry(size).or_insert(0) += 1;
            }
        }
        counts.subtract(&gone);
        prop_assert!(counts.iter().eq(model.iter().map(|(&size, &count)| (size, count))));
        prop_assert_eq!(counts.is_empty(), model.is_empty());

        let mut both = counts;
        both.merge(&gone);
        both.subtract(&counts);
        prop_assert_eq!(both, gone);
    }

    #[test]
    fn pfnmap_run_counts_pages_to_the_leaf_boundary(
        pfn in 0..1u64 << 40,
        order in 0..12u32,
        most in prop_oneof![0..5000u64, any::<u64>()],
    ) {
        let addr_mask = !((1u64 << (order + 12)) - 1);
        let boundary = (pfn..).skip(1).find(|pfn| pfn % (1 << order) == 0);
        let to_boundary = boundary.expect("every leaf ends") - pfn;
        prop_assert_eq!(pfnmap_run(pfn, addr_mask, 12, most), to_boundary.min(most));
    }

    #[test]
    fn budget_is_exact_in_wider_arithmetic(
        limit in any::<u64>(),
        locked in any::<u64>(),
        more in any::<u64>(),
    ) {
        let admitted = Budget::from_pages(limit, 12).admits(locked, more);
        let total = u128::from(locked) + u128::from(more);
        prop_assert_eq!(admitted.is_ok(), total <= u128::from(limit));
    }
}

#[test]
fn a_terabyte_takes_few_steps() {
    let x86 = 1 << 12 | 1 << 21 | 1 << 30;
    let start = (1 << 30) - (1 << 12);
    assert_eq!(leaves(x86, start, start, 1 << 40).count(), 4);
}

#[test]
fn over_limit_reads_as_a_sentence() {
    let over = |page_shift| {
        Budget::from_pages(16, page_shift)
            .admits(10, 7)
            .map_err(|over| over.to_string())
    };
    assert_eq!(
        over(12),
        Err("28 KiB more are to be locked, 24 KiB of the RLIMIT_MEMLOCK of 64 KiB are left".into())
    );
    assert_eq!(
        over(9),
        Err("4 KiB more are to be locked, 3 KiB of the RLIMIT_MEMLOCK of 8 KiB are left".into())
    );
    let huge = Budget::from_pages(u64::MAX, 63).admits(u64::MAX, 1);
    assert!(huge
        .map_err(|over| over.to_string())
        .is_err_and(|text| text.contains("18446744073709551615 KiB")));
}

#[test]
fn counts_show_what_occurs() {
    let mut counts = LeafCounts::default();
    counts.add_run(1 << 12, 0, 0, 3 << 12);
    assert_eq!(format!("{counts:?}"), "{4096: 3}");
}
