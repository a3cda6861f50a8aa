// SPDX-License-Identifier: GPL-2.0

//! Bitmaps against vectors of `bool`.

use dirty_log::{
    place,
    windows,
    words_for,
    Bits,
    BitsMut,
    Run, //
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::num::NonZeroU64;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0xd127),
        ..ProptestConfig::default()
    }
}

/// Words with a bit for each page, and nothing behind the last one.
fn words_of(pages: &[bool]) -> Vec<u64> {
    let mut words = vec![0; pages.len().div_ceil(64)];
    for (page, &dirty) in pages.iter().enumerate() {
        words[page / 64] |= u64::from(dirty) << (page % 64);
    }
    words
}

fn bit(words: &[u64], number: usize) -> bool {
    words[number / 64] >> (number % 64) & 1 == 1
}

/// Dirty pages in runs, as devices leave them, or at random.
fn pages(most: usize) -> impl Strategy<Value = Vec<bool>> {
    prop_oneof![
        prop::collection::vec(any::<bool>(), 0..most),
        prop::collection::vec((any::<bool>(), 1..100usize), 0..6).prop_map(move |runs| {
            let mut pages: Vec<_> = runs
                .into_iter()
                .flat_map(|(dirty, count)| vec![dirty; count])
                .collect();
            pages.truncate(most);
            pages
        }),
    ]
}

/// A change of the bits and its model.
#[derive(Clone, Copy, Debug)]
enum Change {
    SetAll,
    ClearAll,
    Set(u64, u64),
    Clear(u64, u64),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let number = || prop_oneof![8 => 0..300u64, 1 => any::<u64>()];
        prop_oneof![
            1 => Just(Self::SetAll),
            1 => Just(Self::ClearAll),
            6 => (number(), number()).prop_map(|(first, count)| Self::Set(first, count)),
            6 => (number(), number()).prop_map(|(first, count)| Self::Clear(first, count)),
        ]
    }

    fn apply(self, bits: &mut BitsMut<'_>) {
        match self {
            Self::SetAll => bits.set_all(),
            Self::ClearAll => bits.clear_all(),
            Self::Set(first, count) => bits.set(first, count),
            Self::Clear(first, count) => bits.clear(first, count),
        }
    }

    fn apply_to_model(self, pages: &mut [bool]) {
        let (first, count, dirty) = match self {
            Self::SetAll => (0, u64::MAX, true),
            Self::ClearAll => (0, u64::MAX, false),
            Self::Set(first, count) => (first, count, true),
            Self::Clear(first, count) => (first, count, false),
        };
        for (number, page) in (0u64..).zip(pages) {
            if number >= first && u128::from(number) < u128::from(first) + u128::from(count) {
                *page = dirty;
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn changes_are_those_of_the_model(
        mut model in pages(260),
        garbage in any::<u64>(),
        changes in prop::collection::vec(Change::any(), 0..12),
    ) {
        let count = model.len() as u64;
        let mut words = words_of(&model);
        if let (Some(last), 1..) = (words.last_mut(), model.len() % 64) {
            *last |= garbage << (model.len() % 64);
        }
        words.push(garbage);

        let mut bits = BitsMut::new(&mut words, count).expect("enough words");
        for change in changes {
            change.apply(&mut bits);
            change.apply_to_model(&mut model);
        }
        let dirty = model.iter().filter(|&&dirty| dirty).count();
        prop_assert_eq!(bits.count_ones(), dirty as u64);
        for page in 0..count + 70 {
            let expected = model.get(page as usize).copied().unwrap_or(false);
            prop_assert_eq!(bits.is_set(page), expected, "page {}", page);
        }

        // Neither stale bits in the last word nor a changed spare word.
        let mut expected = words_of(&model);
        expected.push(garbage);
        prop_assert_eq!(words, expected);
    }

    #[test]
    fn runs_give_back_the_pages(model in pages(400)) {
        let words = words_of(&model);
        let bits = Bits::new(&words, model.len() as u64).expect("enough words");
        let mut rebuilt = vec![false; model.len()];
        let mut clean_from = 0;
        for run in bits.iter_runs() {
            // As long as possible: there is a clean page before each run but the first.
            prop_assert!(run.count > 0 && (run.first > clean_from || run.first == 0));
            clean_from = run.first + run.count;
            rebuilt[run.first as usize..clean_from as usize].fill(true);
        }
        prop_assert_eq!(rebuilt, model);
    }

    #[test]
    fn runs_in_a_part_are_those_of_the_part(
        model in pages(300),
        first in 0..320u64,
        count in prop_oneof![0..320u64, Just(u64::MAX)],
    ) {
        let words = words_of(&model);
        let bits = Bits::new(&words, model.len() as u64).expect("enough words");
        let inside = |page: u64| page >= first && page - first < count;
        let mut rebuilt = vec![false; model.len()];
        for run in bits.iter_runs_in(first, count) {
            prop_assert!(run.count > 0 && inside(run.first) && inside(run.last()));
            rebuilt[run.first as usize..=run.last() as usize].fill(true);
        }
        let expected: Vec<_> = (0..).zip(&model).map(|(page, &set)| set && inside(page)).collect();
        prop_assert_eq!(rebuilt, expected);
    }

    /// A user's bitmap read through windows, from any bit to any other.
    #[test]
    fn windows_show_the_bits_asked_for(
        user in pages(700),
        first in 0..700u64,
        count in 0..700u64,
        room in 1..6usize,
    ) {
        let words = words_of(&user);
        let bits = Run { first, count };
        let mut rebuilt = vec![false; 2000];
        let mut behind = first;
        for window in windows(bits, room) {
            prop_assert!((1..=room).contains(&window.len));
            let index = window.index as usize;
            let copied: Vec<_> = (index..index + window.len)
                .map(|index| words.get(index).copied().unwrap_or(0))
                .collect();
            for run in window.runs(&copied) {
                prop_assert!(run.first >= behind, "ascending, each bit once");
                behind = run.first + run.count;
                rebuilt[run.first as usize..behind as usize].fill(true);
            }
        }
        for (number, &got) in (0u64..).zip(&rebuilt) {
            let asked = number >= first && number - first < count;
            let set = user.get(number as usize).copied().unwrap_or(false);
            prop_assert_eq!(got, asked && set, "bit {}", number);
        }
    }

    #[test]
    fn a_large_page_is_dirty_if_a_small_one_is(
        fine in pages(300),
        coarse in pages(80),
        ratio in 1..20u64,
    ) {
        let (fine_words, mut words) = (words_of(&fine), words_of(&coarse));
        let ratio = NonZeroU64::new(ratio).expect("from 1 on");
        let mut bits = BitsMut::new(&mut words, coarse.len() as u64).expect("enough words");
        bits.merge_finer(Bits::new(&fine_words, fine.len() as u64).expect("enough words"), ratio);
        for (number, &before) in (0u64..).zip(&coarse) {
            let run = Run { first: number, count: 1 }.finer(ratio).expect("small numbers");
            let of_it = fine.iter().skip(run.first as usize).take(run.count as usize);
            prop_assert_eq!(bits.is_set(number), before || of_it.clone().any(|&set| set));
        }
    }

    #[test]
    fn placed_bits_are_those_of_the_mapping(
        model in pages(200),
        garbage in any::<u64>(),
        offset in 0..300usize,
        user in any::<u64>(),
    ) {
        let mut words = words_of(&model);
        if let (Some(last), 1..) = (words.last_mut(), model.len() % 64) {
            *last |= garbage << (model.len() % 64);
        }
        let mut merged = vec![user; (offset + model.len()).div_ceil(64) + 1];
        let mut before = None;
        for placed in place(&words, model.len() as u64, offset as u64) {
            prop_assert!(before < Some(placed.index), "ascending, each word once");
            prop_assert!(placed.mask != 0);
            prop_assert_eq!(placed.value & !placed.mask, 0);
            prop_assert_eq!(placed.is_whole(), placed.mask.count_ones() == 64);
            before = Some(placed.index);
            let word = &mut merged[placed.index as usize];
            *word = placed.merge(*word);
        }
        for number in 0..merged.len() * 64 {
            let expected = number
                .checked_sub(offset)
                .and_then(|page| model.get(page).copied())
                .unwrap_or(user >> (number % 64) & 1 == 1);
            prop_assert_eq!(bit(&merged, number), expected, "bit {}", number);
        }
    }

    /// What a user gets for a range with several mappings, next to each other or with gaps.
    #[test]
    fn mappings_of_a_range_do_not_disturb_each_other(
        mappings in prop::collection::vec((0..90usize, pages(150)), 1..6),
        order in any::<prop::sample::Index>(),
    ) {
        let mut expected = Vec::new();
        let mut placements = Vec::new();
        for (gap, pages) in mappings {
            // Half of the gaps are none, so that neighbours share words.
            expected.extend(vec![false; gap.saturating_sub(45)]);
            placements.push((expected.len() as u64, pages.clone()));
            expected.extend(pages);
        }
        let start = order.index(placements.len());
        placements.rotate_left(start);

        let mut user = vec![0; expected.len().div_ceil(64)];
        for (offset, pages) in placements {
            for placed in place(&words_of(&pages), pages.len() as u64, offset) {
                let word = &mut user[placed.index as usize];
                *word = placed.merge(*word);
            }
        }
        prop_assert_eq!(user, words_of(&expected));
    }

    #[test]
    fn place_counts_words_from_any_offset(model in pages(150), offset in any::<u64>()) {
        let near: Vec<_> = place(&words_of(&model), model.len() as u64, offset % 64).collect();
        let far: Vec<_> = place(&words_of(&model), model.len() as u64, offset).collect();
        prop_assert_eq!(near.len(), far.len());
        for (near, far) in near.iter().zip(&far) {
            prop_assert_eq!(u128::from(far.index), u128::from(near.index + offset / 64));
            prop_assert_eq!((far.value, far.mask), (near.value, near.mask));
        }
    }
}

#[test]
fn words_are_those_of_the_model() {
    for pages in 0..200 {
        assert_eq!(
            words_for(pages as u64),
            Some(words_of(&vec![false; pages]).len())
        );
    }
}

#[test]
fn runs_across_a_large_mapping() {
    // 4 GiB of 4 KiB pages, a dirty page at either end and a run over a word boundary.
    let pages = 1u64 << 20;
    let mut words = vec![0; words_for(pages).expect("allowed")];
    let mut bits = BitsMut::new(&mut words, pages).expect("enough words");
    bits.set(0, 1);
    bits.set(6399, 130);
    bits.set(pages - 1, 1);
    let runs: Vec<_> = bits.iter_runs().map(|run| (run.first, run.count)).collect();
    assert_eq!(runs, [(0, 1), (6399, 130), (pages - 1, 1)]);
    assert_eq!(bits.count_ones(), 132);
}
