// SPDX-License-Identifier: GPL-2.0

//! How large bitmaps are.

/// Bits in a word.
pub(crate) const WORD_BITS: u64 = 64;

/// The largest number of pages that a mapping can have a dirty bitmap for.
///
/// C counterpart: `DIRTY_BITMAP_PAGES_MAX`.
pub const PAGES_MAX: u64 = i32::MAX as u64;

/// The size in bytes of the largest bitmap that user space may ask for.
///
/// It is that of [`PAGES_MAX`] pages, rounded up to a word.
///
/// C counterpart: `DIRTY_BITMAP_SIZE_MAX`.
pub const BITMAP_BYTES_MAX: u64 = 1 << 28;

/// Returns the size in bytes of a bitmap for `pages` pages, in whole words.
///
/// [`None`] above [`BITMAP_BYTES_MAX`].
///
/// C counterpart: `DIRTY_BITMAP_BYTES()`.
pub const fn bitmap_bytes(pages: u64) -> Option<u64> {
    match pages.div_ceil(WORD_BITS).checked_mul(8) {
        Some(bytes) if bytes <= BITMAP_BYTES_MAX => Some(bytes),
        _ => None,
    }
}

/// Returns the number of words that the bits of a mapping of `pages` pages need.
///
/// [`None`] above [`PAGES_MAX`], where the C driver answers `EINVAL`.
pub const fn words_for(pages: u64) -> Option<usize> {
    if pages > PAGES_MAX {
        return None;
    }
    // Not truncated, PAGES_MAX fits a `usize`.
    Some(pages.div_ceil(WORD_BITS) as usize)
}
