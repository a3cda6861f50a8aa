// SPDX-License-Identifier: GPL-2.0

//! Dirty bitmaps of DMA mappings and their placement in a user's bitmap.
//!
//! A mapping has one bit per page, bit 0 for its first page, in words of 64 bits that the caller
//! owns. User space asks for the bits of a range with many mappings, none of which need begin at a
//! word of the user's bitmap. Here the words for the user are computed from the mapping's words one
//! by one: nothing is shifted in place, and no bit behind the mapping's last page gets out.
//!
//! Bits are numbered as the kernel's `bitmap_*()` functions number them on a 64-bit machine: bit
//! `n` is bit `n % 64` of word `n / 64`.

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

mod bits;
mod iommu;
mod place;
mod size;
mod source;
mod window;

pub use bits::{
    Bits,
    BitsMut,
    Run, //
};
pub use iommu::{
    forget,
    sync,
    sync_runs,
    DirtyBits, //
};
pub use place::{
    place,
    Placed, //
};
pub use size::{
    bitmap_bytes,
    words_for,
    BITMAP_BYTES_MAX,
    PAGES_MAX, //
};
pub use source::{
    Reach,
    Source, //
};
pub use window::{
    windows,
    Window, //
};

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(dirty_log))]
mod tests {
    use super::*;
    use core::num::NonZeroU64;

    const ONES: u64 = u64::MAX;

    /// Whether `change`, done to the bits of `pages` pages, leaves the words `expected`.
    fn after(
        words: &mut [u64],
        pages: u64,
        change: impl FnOnce(&mut BitsMut<'_>),
        expected: &[u64],
    ) -> bool {
        let Some(mut bits) = BitsMut::new(words, pages) else {
            return false;
        };
        change(&mut bits);
        words == expected
    }

    #[test]
    fn sizes_at_the_limits() {
        assert_eq!(PAGES_MAX, 0x7fff_ffff);
        assert_eq!(bitmap_bytes(0), Some(0));
        assert_eq!(bitmap_bytes(1), Some(8));
        assert_eq!(bitmap_bytes(64), Some(8));
        assert_eq!(bitmap_bytes(65), Some(16));
        assert_eq!(bitmap_bytes(PAGES_MAX), Some(BITMAP_BYTES_MAX));
        assert_eq!(bitmap_bytes(1 << 31), Some(BITMAP_BYTES_MAX));
        assert_eq!(bitmap_bytes((1 << 31) + 1), None);
        assert_eq!(bitmap_bytes(u64::MAX), None);
        assert_eq!(words_for(0), Some(0));
        assert_eq!(words_for(65), Some(2));
        assert_eq!(words_for(PAGES_MAX), Some(1 << 25));
        assert_eq!(words_for(PAGES_MAX + 1), None);
    }

    #[test]
    fn bits_need_enough_words() {
        assert!(Bits::new(&[0], 64).is_some());
        assert!(Bits::new(&[0], 65).is_none());
        assert!(Bits::new(&[], 0).is_some());
        assert!(Bits::new(&[0; 4], u64::MAX).is_none());
        assert!(BitsMut::new(&mut [0], 65).is_none());
    }

    #[test]
    fn stale_bits_behind_the_last_page_do_not_count() {
        let stale = [ONES, ONES];
        let bits = Bits::new(&stale, 66);
        assert_eq!(bits.map(|bits| bits.count_ones()), Some(66));
        assert_eq!(bits.map(|bits| bits.is_set(65)), Some(true));
        assert_eq!(bits.map(|bits| bits.is_set(66)), Some(false));
        assert_eq!(bits.map(|bits| bits.is_set(u64::MAX)), Some(false));
        assert!(place(&stale, 66, 0).all(|placed| placed.value == placed.mask));
    }

    #[test]
    fn taking_words_clears_what_is_behind_the_last_page() {
        assert!(after(&mut [ONES, ONES, ONES], 66, |_| (), &[ONES, 3, ONES]));
        assert!(after(&mut [ONES, ONES], 64, |_| (), &[ONES, ONES]));
        assert!(after(&mut [ONES, ONES], 128, |_| (), &[ONES, ONES]));
        assert!(after(&mut [ONES], 1, |_| (), &[1]));
    }

    #[test]
    fn set_and_clear_all() {
        assert!(after(&mut [0; 2], 65, |bits| bits.set_all(), &[ONES, 1]));
        assert!(after(&mut [ONES; 2], 65, |bits| bits.clear_all(), &[0, 0]));
        assert!(after(
            &mut [0; 2],
            128,
            |bits| bits.set_all(),
            &[ONES, ONES]
        ));
        assert!(after(&mut [], 0, |bits| bits.set_all(), &[]));
    }

    #[test]
    fn set_and_clear_runs() {
        let set = |first, count| move |bits: &mut BitsMut<'_>| bits.set(first, count);
        let clear = |first, count| move |bits: &mut BitsMut<'_>| bits.clear(first, count);
        assert!(after(&mut [0; 2], 100, set(0, 1), &[1, 0]));
        assert!(after(&mut [0; 2], 100, set(63, 2), &[1 << 63, 1]));
        assert!(after(&mut [0; 2], 100, set(64, 0), &[0, 0]));
        assert!(after(&mut [0; 2], 66, set(65, 99), &[0, 2]));
        assert!(after(&mut [0; 2], 66, set(66, 1), &[0, 0]));
        assert!(after(&mut [0; 2], 66, set(u64::MAX, u64::MAX), &[0, 0]));
        assert!(after(&mut [0; 2], 66, set(1, u64::MAX), &[ONES - 1, 3]));
        assert!(after(
            &mut [0; 3],
            192,
            set(60, 72),
            &[0xf << 60, ONES, 0xf]
        ));
        assert!(after(&mut [ONES; 2], 128, clear(1, 126), &[1, 1 << 63]));
        assert!(after(&mut [ONES; 2], 128, clear(64, u64::MAX), &[ONES, 0]));
    }

    #[test]
    fn runs_of_dirty_pages() {
        let run = |first, count| Run { first, count };
        let words = [(1 << 63) | 0b110, 1, 0, 1 << 5];
        let bits = Bits::new(&words, 198);
        assert!(
            bits.is_some_and(|bits| { bits.iter_runs().eq([run(1, 2), run(63, 2), run(197, 1)]) })
        );
        assert_eq!(bits.map(|bits| bits.count_ones()), Some(5));
        assert!(Bits::new(&words, 197).is_some_and(|bits| bits.iter_runs().count() == 2));
        assert!(Bits::new(&[ONES; 2], 100).is_some_and(|bits| bits.iter_runs().eq([run(0, 100)])));
        assert!(Bits::new(&[0; 2], 100).is_some_and(|bits| bits.iter_runs().count() == 0));
        assert!(Bits::new(&[], 0).is_some_and(|bits| bits.iter_runs().count() == 0));
    }

    #[test]
    fn runs_in_a_part() {
        let run = |first, count| Run { first, count };
        let words = [(1 << 63) | 0b110, 1];
        let in_part = |first, count, expected: &[Run]| {
            Bits::new(&words, 100)
                .is_some_and(|bits| bits.iter_runs_in(first, count).eq(expected.iter().copied()))
        };
        assert!(in_part(0, 100, &[run(1, 2), run(63, 2)]));
        assert!(in_part(2, 62, &[run(2, 1), run(63, 1)]));
        assert!(in_part(64, u64::MAX, &[run(64, 1)]));
        assert!(in_part(3, 60, &[]));
        assert!(in_part(1, 0, &[]));
        assert!(in_part(100, 1, &[]));
        assert!(in_part(u64::MAX, u64::MAX, &[]));
    }

    #[test]
    fn pages_of_another_size() {
        let eight = NonZeroU64::new(8).unwrap_or(NonZeroU64::MIN);
        let run = Run { first: 3, count: 2 };
        assert_eq!(run.last(), 4);
        assert_eq!(
            run.finer(eight),
            Some(Run {
                first: 24,
                count: 16
            })
        );
        assert_eq!(
            Run {
                first: 1 << 61,
                count: 1
            }
            .finer(eight),
            None
        );
        let fine = [1 << 7 | 1 << 16, 1 << 63];
        assert!(after(
            &mut [0b10000],
            16,
            |bits| {
                if let Some(fine) = Bits::new(&fine, 128) {
                    bits.merge_finer(fine, eight);
                }
            },
            &[1 << 15 | 0b10101]
        ));
    }

    #[test]
    fn windows_on_a_long_bitmap() {
        let run = |first, count| Run { first, count };
        let shown = |bits, room| windows(bits, room).map(|window| (window.index, window.len));
        assert!(shown(run(0, 64), 4).eq([(0, 1)]));
        assert!(shown(run(63, 2), 4).eq([(0, 2)]));
        assert!(shown(run(63, 2), 1).eq([(0, 1), (1, 1)]));
        assert!(shown(run(130, 190), 2).eq([(2, 2), (4, 1)]));
        assert!(shown(run(5, 0), 2).eq([]));
        assert!(shown(run(5, 5), 0).eq([]));
        assert!(shown(run(u64::MAX - 1, 9), 2).eq([(u64::MAX / 64, 1)]));
        let mut found = windows(run(66, 60), 8).flat_map(|window| window.runs(&[ONES]));
        assert_eq!(found.next(), Some(run(66, 60)));
        assert_eq!(found.next(), None);
        let mut found = windows(run(66, 60), 8).flat_map(|window| window.runs(&[]));
        assert_eq!(found.next(), None);
    }

    #[test]
    fn one_unwatched_group_makes_all_pages_suspect() {
        let reach = |tracked, pinned| Reach { tracked, pinned };
        let (tracked, pins, unwatched) =
            (reach(true, false), reach(false, true), reach(false, false));
        assert_eq!(Source::of([]), Source::Pins);
        assert_eq!(Source::of([pins, pins]), Source::Pins);
        assert_eq!(Source::of([tracked]), Source::Hardware);
        assert_eq!(Source::of([reach(true, true)]), Source::Hardware);
        assert_eq!(Source::of([pins, tracked, pins]), Source::Hardware);
        assert_eq!(Source::of([unwatched]), Source::Unknown);
        assert_eq!(Source::of([unwatched, tracked]), Source::Unknown);
        assert_eq!(Source::of([tracked, unwatched]), Source::Unknown);
        assert_eq!(Source::of([pins, unwatched, pins]), Source::Unknown);
    }

    /// Dirty entries of an IOMMU, in pages.
    struct Entries([Option<Run>; 3]);

    impl DirtyBits for Entries {
        type Error = ();

        fn take(&mut self, run: Run, found: &mut dyn FnMut(Run)) -> Result<(), ()> {
            for entry in &mut self.0 {
                let inside = |entry: &Run| entry.first <= run.last() && run.first <= entry.last();
                if let Some(entry) = entry.take_if(|entry| inside(entry)) {
                    found(entry);
                }
            }
            Ok(())
        }
    }

    #[test]
    fn clearing_a_page_keeps_the_others_of_its_entry() {
        let run = |first, count| Run { first, count };
        let mut entries = Entries([Some(run(0, 8)), Some(run(8, 8)), Some(run(16, 1))]);
        let one = [run(3, 1)];
        assert!(after(
            &mut [0],
            32,
            |log| {
                assert_eq!(sync_runs(log, &mut entries, one), Ok(()));
                forget(log, one);
            },
            &[0xff & !(1 << 3)]
        ));
        assert_eq!(entries.0, [None, Some(run(8, 8)), Some(run(16, 1))]);
        assert!(after(
            &mut [0],
            16,
            |log| assert_eq!(sync(log, &mut entries), Ok(())),
            &[0xff00]
        ));
        assert_eq!(entries.0, [None, None, Some(run(16, 1))]);
    }

    #[test]
    fn place_at_a_word() {
        let placed = |index, value, mask| Placed { index, value, mask };
        assert!(place(&[5, 1], 65, 128).eq([placed(2, 5, ONES), placed(3, 1, 1)]));
        assert!(place(&[5], 64, 0).eq([placed(0, 5, ONES)]));
        assert!(place(&[], 0, 77).eq([]));
    }

    #[test]
    fn place_inside_a_word() {
        let placed = |index, value, mask| Placed { index, value, mask };
        assert!(place(&[0b101], 3, 61).eq([placed(0, 0b101 << 61, 0b111 << 61)]));
        assert!(place(&[0b101], 3, 62).eq([placed(0, 1 << 62, 3 << 62), placed(1, 1, 1)]));
        assert!(place(&[ONES, 1], 65, 63).eq([placed(0, 1 << 63, 1 << 63), placed(1, ONES, ONES),]));
        assert!(place(&[ONES, 3], 66, 63).eq([
            placed(0, 1 << 63, 1 << 63),
            placed(1, ONES, ONES),
            placed(2, 1, 1),
        ]));
    }

    #[test]
    fn place_far_from_the_start() {
        let offset = (1u64 << 40) + 1;
        assert!(place(&[1], 1, offset).eq([Placed {
            index: 1 << 34,
            value: 2,
            mask: 2
        }]));
        assert_eq!(place(&[1], 64, u64::MAX).count(), 2);
    }

    #[test]
    fn merge_keeps_the_neighbours() {
        let placed = Placed {
            index: 0,
            value: 0b0100,
            mask: 0b0110,
        };
        assert_eq!(placed.merge(0b1011), 0b1101);
        assert!(!placed.is_whole());
        let whole = Placed {
            index: 0,
            value: 0,
            mask: ONES,
        };
        assert!(whole.is_whole());
        assert_eq!(whole.merge(ONES), 0);
    }

    #[test]
    fn neighbours_share_a_word_in_any_order() {
        let merge = |user: &mut u64, words: &[u64], pages, offset| {
            for placed in place(words, pages, offset) {
                *user = placed.merge(*user);
            }
        };
        let mut user = 0;
        merge(&mut user, &[0b01], 2, 10);
        merge(&mut user, &[0b11], 2, 12);
        assert_eq!(user, 0b1101 << 10);
        let mut user = 0;
        merge(&mut user, &[0b11], 2, 12);
        merge(&mut user, &[0b01], 2, 10);
        assert_eq!(user, 0b1101 << 10);
    }
}
