// SPDX-License-Identifier: GPL-2.0

//! IOVA ranges and page sizes of a VFIO type1 container.
//!
//! Everything here is arithmetic on 64-bit device addresses, without allocation and without any
//! kernel type. Ranges are kept as first and last address, so that a range may end at the very
//! last address. 32-bit hosts are out of scope: a `dma_addr_t`, a `size_t` and a user pointer are
//! taken to be 64 bits wide.

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

mod errno;
mod page_sizes;
mod range;
mod valid;

pub use errno::Errno;
pub use page_sizes::PageSizes;
pub use range::{
    IovaRange,
    RangeError, //
};
pub use valid::valid_ranges;

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(iova_space))]
mod tests {
    use super::*;

    /// A range that the test knows to be well formed.
    fn r(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first, last).unwrap_or(IovaRange::ALL)
    }

    /// Page sizes that the test knows not to be empty.
    fn sizes(bitmap: u64) -> PageSizes {
        PageSizes::new(bitmap).unwrap_or(PageSizes::cpu_page(1))
    }

    /// Whether the sweep of `aperture` without `holes` gives exactly `expected`.
    fn sweep_is(aperture: IovaRange, holes: &[IovaRange], expected: &[IovaRange]) -> bool {
        let mut left = expected.iter();
        let all_as_expected = valid_ranges(aperture, holes.iter().copied(), |got| {
            if left.next() == Some(&got) {
                Ok(())
            } else {
                Err(got)
            }
        });
        all_as_expected.is_ok() && left.next().is_none()
    }

    #[test]
    fn rest_behind_what_is_done() {
        let range = |first, last| IovaRange::new(first, last);
        let all = IovaRange::ALL;
        assert_eq!(
            range(0, 9).and_then(|done| all.behind(done)),
            range(10, u64::MAX)
        );
        assert_eq!(all.behind(all), None);
        let upper = range(100, 199).unwrap_or(all);
        assert_eq!(
            range(50, 149).and_then(|done| upper.behind(done)),
            range(150, 199)
        );
        assert_eq!(range(50, 199).and_then(|done| upper.behind(done)), None);
        assert_eq!(range(50, 250).and_then(|done| upper.behind(done)), None);
    }

    #[test]
    fn range_needs_first_not_after_last() {
        assert_eq!(IovaRange::new(5, 4), None);
        assert!(IovaRange::new(5, 5).is_some());
        assert_eq!(r(0, u64::MAX), IovaRange::ALL);
    }

    #[test]
    fn from_len_at_the_top() {
        assert_eq!(IovaRange::from_len(0x1000, 0), Err(RangeError::Empty));
        assert_eq!(IovaRange::from_len(u64::MAX, 1), Ok(r(u64::MAX, u64::MAX)));
        assert_eq!(IovaRange::from_len(u64::MAX, 2), Err(RangeError::Wraps));
        assert_eq!(
            IovaRange::from_len(0xffff_ffff_ffff_f000, 0x1000),
            Ok(r(0xffff_ffff_ffff_f000, u64::MAX))
        );
        assert_eq!(
            IovaRange::from_len(0xffff_ffff_ffff_f000, 0x1001),
            Err(RangeError::Wraps)
        );
        assert_eq!(IovaRange::from_len(0, u64::MAX), Ok(r(0, u64::MAX - 1)));
    }

    #[test]
    fn range_errors_have_the_errno_of_the_c_driver() {
        assert_eq!(RangeError::Empty.errno(), Errno::Inval);
        assert_eq!(RangeError::Wraps.errno(), Errno::Overflow);
    }

    #[test]
    fn size_and_pages() {
        assert_eq!(IovaRange::ALL.size(), None);
        assert_eq!(r(1, u64::MAX).size(), Some(u64::MAX));
        assert_eq!(r(0x1000, 0x2fff).size(), Some(0x2000));
        assert_eq!(r(0x1000, 0x2fff).pages(12), 2);
        assert_eq!(IovaRange::ALL.pages(12), 1 << 52);
        assert_eq!(IovaRange::ALL.pages(0), u64::MAX);
        assert_eq!(IovaRange::ALL.pages(64), 1);
    }

    #[test]
    fn relations_of_ranges() {
        let a = r(0x1000, 0x1fff);
        assert!(IovaRange::ALL.contains(a));
        assert!(a.contains(a));
        assert!(!a.contains(r(0x1000, 0x2000)));
        assert!(a.contains_addr(0x1000));
        assert!(a.contains_addr(0x1fff));
        assert!(!a.contains_addr(0x2000));
        assert!(!a.contains_addr(0xfff));
        assert!(a.overlaps(r(0x1fff, 0x3000)));
        assert!(!a.overlaps(r(0x2000, 0x3000)));
        assert_eq!(a.intersect(r(0x1800, 0x3000)), Some(r(0x1800, 0x1fff)));
        assert_eq!(a.intersect(r(0x2000, 0x3000)), None);
    }

    #[test]
    fn exclude_leaves_what_is_outside_the_hole() {
        let a = r(0x1000, 0x1fff);
        assert!(a
            .exclude(r(0x1400, 0x17ff))
            .eq([r(0x1000, 0x13ff), r(0x1800, 0x1fff)]));
        assert!(a.exclude(r(0, 0x17ff)).eq([r(0x1800, 0x1fff)]));
        assert!(a.exclude(r(0x1800, u64::MAX)).eq([r(0x1000, 0x17ff)]));
        assert!(a.exclude(IovaRange::ALL).eq([]));
        assert!(a.exclude(r(0, 0xfff)).eq([a]));
        assert!(IovaRange::ALL.exclude(r(0, 0)).eq([r(1, u64::MAX)]));
        assert!(IovaRange::ALL
            .exclude(r(u64::MAX, u64::MAX))
            .eq([r(0, u64::MAX - 1)]));
    }

    #[test]
    fn sweep_around_an_msi_window() {
        let msi = r(0xfee0_0000, 0xfeef_ffff);
        let aperture = r(0, (1 << 48) - 1);
        assert!(sweep_is(
            aperture,
            &[msi],
            &[r(0, 0xfedf_ffff), r(0xfef0_0000, (1 << 48) - 1)]
        ));
    }

    #[test]
    fn sweep_without_holes_and_without_room() {
        assert!(sweep_is(IovaRange::ALL, &[], &[IovaRange::ALL]));
        assert!(sweep_is(IovaRange::ALL, &[IovaRange::ALL], &[]));
        assert!(sweep_is(r(8, 15), &[r(12, u64::MAX), r(0, 11)], &[]));
    }

    #[test]
    fn sweep_takes_unsorted_nested_and_adjacent_holes() {
        let holes = [r(60, 69), r(20, 29), r(22, 24), r(30, 39), r(0, 4)];
        assert!(sweep_is(
            r(0, 99),
            &holes,
            &[r(5, 19), r(40, 59), r(70, 99)]
        ));
    }

    #[test]
    fn sweep_stops_at_the_first_refusal() {
        let mut emitted = 0u32;
        let result = valid_ranges(r(0, 99), [r(10, 19), r(30, 39)].into_iter(), |range| {
            emitted = emitted.saturating_add(1);
            if range.first() == 20 {
                Err("full")
            } else {
                Ok(())
            }
        });
        assert_eq!(result, Err("full"));
        assert_eq!(emitted, 2);
    }

    #[test]
    fn cpu_page_stands_for_all_larger_sizes() {
        let host = PageSizes::cpu_page(4096);
        assert_eq!(host.bitmap(), !0xfff);
        assert_eq!(host.smallest(), 4096);
        assert_eq!(host.smallest_shift(), 12);
        assert_eq!(PageSizes::cpu_page(0x1_0000).bitmap(), !0xffff);
    }

    #[test]
    fn common_sizes_of_domains() {
        let (k4, m2, g1) = (1 << 12, 1 << 21, 1 << 30);
        let common = PageSizes::common([k4 | m2 | g1, k4 | m2].into_iter(), 4096);
        assert_eq!(common, PageSizes::new(k4 | m2));
        assert_eq!(
            PageSizes::common([].into_iter(), 4096),
            Some(PageSizes::cpu_page(4096))
        );
        assert_eq!(PageSizes::common([k4, m2].into_iter(), 4096), None);
    }

    #[test]
    fn sizes_below_the_cpu_page_become_the_cpu_page() {
        let (k4, k64) = (1 << 12, 1 << 16);
        let m2 = 1 << 21;
        assert_eq!(
            PageSizes::common([k4 | m2].into_iter(), k64),
            PageSizes::new(k64 | m2)
        );
        assert_eq!(PageSizes::common([m2].into_iter(), k64), PageSizes::new(m2));
    }

    #[test]
    fn aligned_means_multiple_of_the_smallest() {
        let iommu = sizes((1 << 12) | (1 << 21));
        assert!(iommu.aligned(0));
        assert!(iommu.aligned(0x3000));
        assert!(!iommu.aligned(0x3001));
        assert!(!iommu.aligned(0x800));
        assert_eq!(PageSizes::new(0), None);
    }

    #[test]
    fn sizes_up_to_a_limit() {
        let x86 = sizes(1 << 30 | 1 << 21 | 1 << 12);
        assert_eq!(x86.up_to(u64::MAX), x86);
        assert_eq!(x86.up_to(1 << 30), x86);
        assert_eq!(x86.up_to((1 << 30) - 1), sizes(1 << 21 | 1 << 12));
        assert_eq!(x86.up_to(1 << 12), sizes(1 << 12));
        assert_eq!(x86.up_to(1), sizes(1 << 12));
        assert_eq!(x86.up_to(0), sizes(1 << 12));
        assert_eq!(sizes(1 << 63).up_to(u64::MAX), sizes(1 << 63));
    }

    #[test]
    fn largest_fitting_size() {
        let iommu = sizes((1 << 12) | (1 << 21) | (1 << 30));
        assert_eq!(iommu.largest_fitting(0, 0, 1 << 30), Some(1 << 30));
        assert_eq!(iommu.largest_fitting(0, 0, (1 << 30) - 1), Some(1 << 21));
        assert_eq!(
            iommu.largest_fitting(1 << 21, 1 << 30, 1 << 40),
            Some(1 << 21)
        );
        assert_eq!(
            iommu.largest_fitting(1 << 21, 1 << 12, 1 << 40),
            Some(1 << 12)
        );
        assert_eq!(iommu.largest_fitting(0, 0, 0xfff), None);
        assert_eq!(iommu.largest_fitting(0, 0, 0), None);
        assert_eq!(iommu.largest_fitting(0x800, 0, 0x1000), None);
        assert_eq!(
            sizes(1 << 63).largest_fitting(0, 0, u64::MAX),
            Some(1 << 63)
        );
    }
}
