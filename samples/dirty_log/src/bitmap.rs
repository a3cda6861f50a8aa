// SPDX-License-Identifier: GPL-2.0

//! Which pages of a mapping have still to be copied.

use std::ops::Range;

/// Pages in a word of a bitmap.
pub(crate) const WORD: usize = 64;

/// A bit for each page of a mapping, the first page in the lowest bit of the first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    pages: usize,
}

impl Bitmap {
    /// No page.
    pub(crate) fn new(pages: usize) -> Self {
        Bitmap {
            words: vec![0; pages.div_ceil(WORD)],
            pages,
        }
    }

    /// Adds all pages.
    pub(crate) fn set_all(&mut self) {
        self.words.fill(u64::MAX);
        self.cut();
    }

    /// Takes away the bits behind the last page.
    fn cut(&mut self) {
        if let (Some(last), rest @ 1..) = (self.words.last_mut(), self.pages % WORD) {
            *last &= (1 << rest) - 1;
        }
    }

    /// Removes all pages.
    pub(crate) fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// Has the kernel fill in words, and adds the pages they stand for.
    ///
    /// # Errors
    ///
    /// What `fill` fails with.
    pub(crate) fn add<E>(
        &mut self,
        fill: impl FnOnce(&mut [u64]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Not into our own words: what a driver does to bits that are set already, or that are
        // behind the last page, is not said anywhere.
        let mut found = vec![0; self.words.len()];
        fill(&mut found)?;
        for (word, more) in self.words.iter_mut().zip(found) {
            *word |= more;
        }
        self.cut();
        Ok(())
    }

    /// How many pages there are in it.
    pub(crate) fn count(&self) -> u64 {
        count(&self.words)
    }

    /// The first page that is not in it.
    pub(crate) fn first_clear(&self) -> Option<usize> {
        (0..self.pages).find(|page| self.words[page / WORD] >> (page % WORD) & 1 == 0)
    }

    /// Those windows of so many words, the last one maybe shorter, that have a page.
    pub(crate) fn windows(&self, words: usize) -> impl Iterator<Item = Window<'_>> {
        let chunks = self.words.chunks(words).enumerate();
        chunks
            .map(move |(number, chunk)| {
                let first = number * words * WORD;
                Window {
                    first,
                    pages: (chunk.len() * WORD).min(self.pages - first),
                    words: chunk,
                }
            })
            .filter(|window| window.words.iter().any(|word| *word != 0))
    }
}

/// A part of a bitmap that begins with a word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window<'a> {
    /// The page of the first bit.
    pub(crate) first: usize,
    /// How many pages it is about.
    pub(crate) pages: usize,
    /// Their bits.
    pub(crate) words: &'a [u64],
}

impl Window<'_> {
    /// How many pages there are in it.
    pub(crate) fn count(&self) -> u64 {
        count(self.words)
    }

    /// The pages in it, in runs as long as can be; numbers count from the bitmap's first page.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            at = self.next(first, false).unwrap_or(self.pages);
            Some(self.first + first..self.first + at)
        })
    }

    /// The next page from `from` on that is in it, or is not.
    fn next(&self, from: usize, wanted: bool) -> Option<usize> {
        (from..self.pages)
            .find(|page| (self.words[page / WORD] >> (page % WORD) & 1 == 1) == wanted)
    }
}

fn count(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pages: usize, set: &[usize]) -> Bitmap {
        let mut bitmap = Bitmap::new(pages);
        for page in set {
            bitmap.words[page / WORD] |= 1 << (page % WORD);
        }
        bitmap
    }

    #[test]
    fn all_pages_and_no_bit_behind_them() {
        for pages in [0, 1, 63, 64, 65, 128, 130] {
            let mut bitmap = Bitmap::new(pages);
            bitmap.set_all();
            assert_eq!(bitmap.count(), pages as u64);
            assert_eq!(bitmap.first_clear(), None);
            bitmap.clear_all();
            assert_eq!(bitmap, Bitmap::new(pages));
        }
    }

    #[test]
    fn windows_without_a_page_are_left_out() {
        let bitmap = with(300, &[5, 299]);
        let found: Vec<_> = bitmap.windows(2).map(|w| (w.first, w.pages)).collect();
        assert_eq!(found, [(0, 128), (256, 44)]);
        assert_eq!(Bitmap::new(300).windows(1).count(), 0);
    }

    #[test]
    fn runs_cross_words_but_not_windows() {
        let set: Vec<usize> = (60..140).chain([141, 199]).collect();
        let bitmap = with(200, &set);
        let runs = |words| -> Vec<_> {
            let windows: Vec<_> = bitmap.windows(words).collect();
            windows
                .iter()
                .flat_map(|w| w.runs().collect::<Vec<_>>())
                .collect()
        };
        assert_eq!(runs(4), [60..140, 141..142, 199..200]);
        assert_eq!(runs(1), [60..64, 64..128, 128..140, 141..142, 199..200]);
        let pages: usize = runs(2).iter().map(|run| run.len()).sum();
        assert_eq!(pages as u64, bitmap.count());
    }

    #[test]
    fn what_was_found_is_added() {
        let mut bitmap = with(70, &[0, 69]);
        let filled: Result<(), ()> = bitmap.add(|words| {
            assert_eq!(words, [0, 0]);
            words.copy_from_slice(&[2, u64::MAX << 5]);
            Ok(())
        });
        assert_eq!(filled, Ok(()));
        assert_eq!(bitmap, with(70, &[0, 1, 69]));
        assert_eq!(bitmap.first_clear(), Some(2));
        assert_eq!(bitmap.add(|_| Err(1)), Err(1));
    }
}
