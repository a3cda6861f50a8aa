// SPDX-License-Identifier: GPL-2.0

//! The dirty bits of one mapping.

use crate::{
    place::Placed,
    size::{
        words_for,
        WORD_BITS, //
    },
};
use core::num::NonZeroU64;

/// Read access to the dirty bits of one mapping.
///
/// What the words hold behind the last page is not looked at.
///
/// # Invariants
///
/// `words` has a bit for each of `pages` pages.
#[derive(Clone, Copy, Debug)]
pub struct Bits<'a> {
    words: &'a [u64],
    pages: u64,
}

impl<'a> Bits<'a> {
    /// Looks at `words` as one bit for each of `pages` pages; spare words are ignored.
    ///
    /// [`None`] if there are too few words or more than [`PAGES_MAX`](crate::PAGES_MAX) pages.
    pub fn new(words: &'a [u64], pages: u64) -> Option<Self> {
        let words = words.get(..words_for(pages)?)?;
        // INVARIANT: That many words are needed, and it got them.
        Some(Self { words, pages })
    }

    /// Looks at `words` as one bit for each of at most `pages` pages.
    pub(crate) fn clamped(words: &'a [u64], pages: u64) -> Self {
        let room = u64::try_from(words.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(WORD_BITS);
        // INVARIANT: Not more pages than bits.
        Self {
            words,
            pages: pages.min(room),
        }
    }

    /// Returns the number of pages.
    pub fn pages(self) -> u64 {
        self.pages
    }

    /// Returns whether page number `page` is dirty; a page behind the last one never is.
    pub fn is_set(self, page: u64) -> bool {
        let index = page / WORD_BITS;
        self.word(index) & mask_in(index, page, page.saturating_add(1)) != 0
    }

    /// Returns the number of dirty pages.
    pub fn count_ones(self) -> u64 {
        self.word_numbers()
            .map(|index| u64::from(self.word(index).count_ones()))
            .fold(0, u64::saturating_add)
    }

    /// Returns the runs of dirty pages, ascending and as long as possible.
    pub fn iter_runs(self) -> impl Iterator<Item = Run> + Clone + 'a {
        self.iter_runs_in(0, self.pages)
    }

    /// Returns what of the runs is among the `count` pages from page number `first`.
    pub fn iter_runs_in(self, first: u64, count: u64) -> impl Iterator<Item = Run> + Clone + 'a {
        let end = first.saturating_add(count).min(self.pages);
        let mut at = first;
        core::iter::from_fn(move || {
            let first = self.find(at, true).filter(|&first| first < end)?;
            at = self.find(first, false).unwrap_or(end).min(end);
            Some(Run {
                first,
                count: at.saturating_sub(first),
            })
        })
    }

    /// Returns the words that these bits contribute to a user's bitmap, see
    /// [`place()`](crate::place()).
    pub fn place(self, bit_offset: u64) -> impl Iterator<Item = Placed> + Clone + 'a {
        let first_word = bit_offset / WORD_BITS;
        let shift = bit_offset % WORD_BITS;
        let end = shift.saturating_add(self.pages);
        let words = if self.pages == 0 {
            0
        } else {
            end.div_ceil(WORD_BITS)
        };
        (0..words).map(move |number| {
            // The lowest bits are those that had no room in the word before.
            let carried = mask_in(0, 0, shift);
            let before = number.checked_sub(1).map_or(0, |before| self.word(before));
            let here = self.word(number);
            Placed {
                index: first_word.saturating_add(number),
                value: (rotate(before, shift) & carried) | (rotate(here, shift) & !carried),
                mask: mask_in(number, shift, end),
            }
        })
    }

    /// Returns word number `index` without anything behind the last page.
    #[inline]
    fn word(self, index: u64) -> u64 {
        let word = usize::try_from(index)
            .ok()
            .and_then(|index| self.words.get(index));
        word.map_or(0, |word| word & mask_in(index, 0, self.pages))
    }

    /// Returns the numbers of the words in use.
    fn word_numbers(self) -> core::ops::Range<u64> {
        0..self.pages.div_ceil(WORD_BITS)
    }

    /// Returns the first page from `from` on that is dirty, or clean if `dirty` is not set.
    fn find(self, from: u64, dirty: bool) -> Option<u64> {
        let invert = if dirty { 0 } else { u64::MAX };
        (from / WORD_BITS..self.word_numbers().end).find_map(|index| {
            let found = (self.word(index) ^ invert) & mask_in(index, from, self.pages);
            let bit = u64::from(found.trailing_zeros());
            (found != 0).then(|| index.saturating_mul(WORD_BITS).saturating_add(bit))
        })
    }
}

/// The dirty bits of one mapping.
///
/// # Invariants
///
/// - `words` has exactly the words that `pages` bits need.
/// - The bits behind the last page are zero.
#[derive(Debug)]
pub struct BitsMut<'a> {
    words: &'a mut [u64],
    pages: u64,
}

impl<'a> BitsMut<'a> {
    /// Takes `words` as one bit for each of `pages` pages and clears the bits behind the last one.
    ///
    /// Spare words are left alone. [`None`] if there are too few words or more than
    /// [`PAGES_MAX`](crate::PAGES_MAX) pages.
    pub fn new(words: &'a mut [u64], pages: u64) -> Option<Self> {
        let words = words.get_mut(..words_for(pages)?)?;
        if pages % WORD_BITS != 0 {
            if let Some(last) = words.last_mut() {
                *last &= mask_in(pages / WORD_BITS, 0, pages);
            }
        }
        // INVARIANT: That many words are needed, and the end of the last one was just cleared.
        Some(Self { words, pages })
    }

    /// Returns read access.
    pub fn as_bits(&self) -> Bits<'_> {
        // INVARIANT: By the type invariants there is a bit for each page.
        Bits {
            words: self.words,
            pages: self.pages,
        }
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Marks all pages dirty.
    pub fn set_all(&mut self) {
        self.set(0, self.pages);
    }

    /// Marks all pages clean.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// Marks `count` pages from page number `first` dirty, as far as they exist.
    pub fn set(&mut self, first: u64, count: u64) {
        // INVARIANT: No mask has bits behind the last page.
        self.for_each_word(first, count, |word, mask| *word |= mask);
    }

    /// Marks `count` pages from page number `first` clean, as far as they exist.
    pub fn clear(&mut self, first: u64, count: u64) {
        self.for_each_word(first, count, |word, mask| *word &= !mask);
    }

    /// Marks every page dirty that has a dirty one in `fine`, which has `fine_per_page` times as
    /// many pages.
    pub fn merge_finer(&mut self, fine: Bits<'_>, fine_per_page: NonZeroU64) {
        for run in fine.iter_runs() {
            let first = run.first / fine_per_page;
            let last = run.last() / fine_per_page;
            self.set(first, last.saturating_sub(first).saturating_add(1));
        }
    }

    /// Returns whether page number `page` is dirty; a page behind the last one never is.
    pub fn is_set(&self, page: u64) -> bool {
        self.as_bits().is_set(page)
    }

    /// Returns the number of dirty pages.
    pub fn count_ones(&self) -> u64 {
        self.as_bits().count_ones()
    }

    /// Returns the runs of dirty pages, ascending and as long as possible.
    pub fn iter_runs(&self) -> impl Iterator<Item = Run> + Clone + '_ {
        self.as_bits().iter_runs()
    }

    /// Calls `change` with each word of a run of pages and the bits of the run in it.
    fn for_each_word(&mut self, first: u64, count: u64, change: impl Fn(&mut u64, u64)) {
        let end = first.saturating_add(count).min(self.pages);
        if first >= end {
            return;
        }
        // Both fit, being numbers of words of a slice.
        let from = (first / WORD_BITS) as usize;
        let to = end.div_ceil(WORD_BITS) as usize;
        if let Some(words) = self.words.get_mut(from..to) {
            for (index, word) in (first / WORD_BITS..).zip(words) {
                change(word, mask_in(index, first, end));
            }
        }
    }
}

/// Pages in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Number of the first page in the mapping.
    pub first: u64,
    /// Number of pages, at least 1.
    pub count: u64,
}

impl Run {
    /// Returns the number of the last page.
    pub fn last(self) -> u64 {
        self.first.saturating_add(self.count.saturating_sub(1))
    }

    /// Returns the same pages when a page is `fine_per_page` smaller ones; [`None`] if their
    /// numbers would be too large.
    pub fn finer(self, fine_per_page: NonZeroU64) -> Option<Self> {
        Some(Self {
            first: self.first.checked_mul(fine_per_page.get())?,
            count: self.count.checked_mul(fine_per_page.get())?,
        })
    }
}

/// Returns the bits of word number `index` that are in `first..end` when counted over all words.
#[inline]
fn mask_in(index: u64, first: u64, end: u64) -> u64 {
    let start = index.saturating_mul(WORD_BITS);
    below(end.saturating_sub(start)) & !below(first.saturating_sub(start))
}

/// Returns the word in which all bits below `end` are set.
#[inline]
fn below(end: u64) -> u64 {
    u32::try_from(end)
        .ok()
        .and_then(|end| u64::MAX.checked_shl(end))
        .map_or(u64::MAX, |from_end| !from_end)
}

/// Rotates `word` left by `by` bits.
#[inline]
fn rotate(word: u64, by: u64) -> u64 {
    // Only the lowest six bits of the distance count.
    word.rotate_left((by % WORD_BITS) as u32)
}
