// SPDX-License-Identifier: GPL-2.0

//! Ranges and page sizes against models that look at every address.

use iova_space::{
    valid_ranges,
    IovaRange,
    PageSizes,
    RangeError, //
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Addresses of the models: small enough to look at each one.
const SPACE: u64 = 64;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x10fa),
        ..ProptestConfig::default()
    }
}

/// A range at either end of the address space: the models see `addr - base` below [`SPACE`].
fn range(base: u64) -> impl Strategy<Value = IovaRange> {
    (0..SPACE, 0..SPACE)
        .prop_map(move |(a, b)| IovaRange::new(base + a.min(b), base + a.max(b)).expect("sorted"))
}

fn base() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX - SPACE + 1)]
}

fn addresses(base: u64) -> impl Iterator<Item = u64> {
    (0..SPACE).map(move |offset| base + offset)
}

/// Addresses where a range begins, ends or comes close to a power of two.
fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64u32, -2i64..3).prop_map(|(shift, by)| (1u64 << shift).wrapping_add_signed(by)),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn sweep_covers_exactly_what_no_hole_covers(
        (base, aperture, holes) in base().prop_flat_map(|base| {
            (Just(base), range(base), prop::collection::vec(range(base), 0..8))
        })
    ) {
        let mut valid = Vec::new();
        valid_ranges(aperture, holes.iter().copied(), |range| {
            valid.push(range);
            Ok::<(), ()>(())
        })
        .expect("emit never fails");

        for addr in addresses(base) {
            let expected = aperture.contains_addr(addr)
                && !holes.iter().any(|hole| hole.contains_addr(addr));
            let got = valid.iter().filter(|range| range.contains_addr(addr)).count();
            prop_assert_eq!(got, usize::from(expected), "at {:#x} of {:?}", addr, valid);
        }
        for pair in valid.windows(2) {
            // As large as possible: something lies between.
            prop_assert!(pair[0].last() + 1 < pair[1].first(), "{:?}", valid);
        }
    }

    #[test]
    fn exclude_agrees_with_the_sweep(
        (range, hole) in base().prop_flat_map(|base| (range(base), range(base)))
    ) {
        let mut swept = Vec::new();
        valid_ranges(range, core::iter::once(hole), |range| {
            swept.push(range);
            Ok::<(), ()>(())
        })
        .expect("emit never fails");
        prop_assert_eq!(range.exclude(hole).collect::<Vec<_>>(), swept);
    }

    #[test]
    fn relations_are_those_of_sets(
        (base, a, b) in base().prop_flat_map(|base| (Just(base), range(base), range(base)))
    ) {
        let both = |addr: &u64| a.contains_addr(*addr) && b.contains_addr(*addr);
        prop_assert_eq!(a.overlaps(b), addresses(base).any(|addr| both(&addr)));
        prop_assert_eq!(
            a.contains(b),
            addresses(base).all(|addr| !b.contains_addr(addr) || a.contains_addr(addr))
        );
        let common: Vec<_> = addresses(base).filter(both).collect();
        let expected = common
            .first()
            .zip(common.last())
            .and_then(|(&first, &last)| IovaRange::new(first, last));
        prop_assert_eq!(a.intersect(b), expected);
        prop_assert_eq!(
            a.size(),
            Some(addresses(base).filter(|&addr| a.contains_addr(addr)).count() as u64)
        );
    }

    #[test]
    fn from_len_is_exact_in_wider_arithmetic(first in interesting(), len in interesting()) {
        let end = u128::from(first) + u128::from(len);
        let expected = if len == 0 {
            Err(RangeError::Empty)
        } else if end > 1 << 64 {
            Err(RangeError::Wraps)
        } else {
            Ok((first, (end - 1) as u64))
        };
        let got = IovaRange::from_len(first, len);
        prop_assert_eq!(got.map(|range| (range.first(), range.last())), expected);
        if let Ok(range) = got {
            prop_assert_eq!(range.size(), Some(len));
        }
    }

    #[test]
    fn pages_of_aligned_ranges(shift in 0..64u32, a in any::<u64>(), b in any::<u64>()) {
        let (a, b) = (a.min(b) >> shift, a.max(b) >> shift);
        let last = ((u128::from(b) + 1) << shift) - 1;
        let range = IovaRange::new(a << shift, last as u64).expect("sorted");
        let pages = u128::from(b) - u128::from(a) + 1;
        prop_assert_eq!(u128::from(range.pages(shift)), pages.min(u64::MAX.into()));
    }

    #[test]
    fn common_sizes_divide_what_every_domain_maps(
        domains in prop::collection::vec(any::<u64>(), 0..4),
        page_shift in prop_oneof![Just(12u32), Just(14), Just(16)],
    ) {
        let page = 1u64 << page_shift;
        let has = |shift: u32| domains.iter().all(|sizes| sizes >> shift & 1 == 1);
        let expected = (0..64).filter(|&shift| {
            has(shift) && shift >= page_shift || shift == page_shift && (0..page_shift).any(has)
        });
        let expected = expected.fold(0, |bitmap, shift| bitmap | 1u64 << shift);
        let got = PageSizes::common(domains.iter().copied(), page);
        prop_assert_eq!(got.map_or(0, PageSizes::bitmap), expected);
    }

    #[test]
    fn smallest_and_alignment(bitmap in 1u64.., value in interesting()) {
        let sizes = PageSizes::new(bitmap).expect("not 0");
        let smallest = (0..64).map(|shift| 1u64 << shift).find(|size| bitmap & size != 0);
        prop_assert_eq!(Some(sizes.smallest()), smallest);
        prop_assert_eq!(1u64 << sizes.smallest_shift(), sizes.smallest());
        prop_assert_eq!(sizes.aligned(value), value % sizes.smallest() == 0);
    }

    #[test]
    fn largest_fitting_is_the_largest_that_fits(
        bitmap in 1u64..,
        iova in interesting(),
        phys in interesting(),
        len in interesting(),
    ) {
        let sizes = PageSizes::new(bitmap).expect("not 0");
        let expected = (0..64)
            .map(|shift| 1u64 << shift)
            .filter(|size| bitmap & size != 0 && *size <= len)
            .filter(|size| iova % size == 0 && phys % size == 0)
            .max();
        prop_assert_eq!(sizes.largest_fitting(iova, phys, len), expected);
    }
}

#[test]
fn errors_and_ranges_read_as_sentences() {
    let range = IovaRange::from_len(0x1000, 0x1000).expect("a page");
    assert_eq!(range.to_string(), "0x1000-0x1fff");
    assert_eq!(IovaRange::ALL.to_string(), "0x0-0xffffffffffffffff");
    assert_eq!(
        RangeError::Empty.to_string(),
        "a range of no bytes was asked for, at least one is needed"
    );
    assert_eq!(
        RangeError::Wraps.to_string(),
        "a range beyond 0xffffffffffffffff was asked for"
    );
}
