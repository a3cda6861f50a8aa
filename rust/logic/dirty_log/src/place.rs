// SPDX-License-Identifier: GPL-2.0

//! Bits of a mapping in a user's bitmap.

use crate::Bits;

/// Returns the words that a mapping contributes to a user's bitmap.
///
/// `words` are the mapping's bits, one for each of `pages` pages; its first page is bit
/// `bit_offset` of the user's bitmap. Each word of the user's bitmap that has a bit of the mapping
/// comes once, in ascending order. Neighbouring mappings may share a word, hence a word that does
/// not belong to the mapping as a whole is to be merged with what the user has.
///
/// Pages that `words` has no bits for are left out.
///
/// C counterpart: `update_user_bitmap()`.
pub fn place<'a>(
    words: &'a [u64],
    pages: u64,
    bit_offset: u64,
) -> impl Iterator<Item = Placed> + Clone + 'a {
    Bits::clamped(words, pages).place(bit_offset)
}

/// A word of a user's bitmap.
///
/// # Invariants
///
/// `value` has no bit that `mask` does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Number of the word in the user's bitmap.
    pub index: u64,
    /// The mapping's dirty pages.
    pub value: u64,
    /// The mapping's pages, dirty or not.
    pub mask: u64,
}

impl Placed {
    /// Returns the new word, given the one that the user has.
    pub fn merge(&self, user: u64) -> u64 {
        (user & !self.mask) | self.value
    }

    /// Returns whether all bits belong to the mapping, so that the user's word does not matter.
    pub fn is_whole(&self) -> bool {
        self.mask == u64::MAX
    }
}
