// SPDX-License-Identifier: GPL-2.0

//! Ranges of device addresses.

use crate::Errno;
use core::fmt;

/// A non-empty range of device addresses (IOVAs), given by its first and its last byte.
///
/// The last address is part of the range, hence a range may end at [`u64::MAX`] and the whole
/// address space is a range too.
///
/// # Invariants
///
/// `first <= last`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// All 2^64 addresses.
    // INVARIANT: 0 is not larger than any number.
    pub const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// Creates the range of all bytes from `first` up to and including `last`.
    ///
    /// Returns [`None`] if `last` lies before `first`.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first <= last {
            // INVARIANT: Just checked.
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// Creates the range of `len` bytes from `first`, the form in which user space names ranges.
    pub const fn from_len(first: u64, len: u64) -> Result<Self, RangeError> {
        let Some(behind_first) = len.checked_sub(1) else {
            return Err(RangeError::Empty);
        };
        match first.checked_add(behind_first) {
            // INVARIANT: The sum of unsigned numbers is not less than either.
            Some(last) => Ok(Self { first, last }),
            None => Err(RangeError::Wraps),
        }
    }

    /// Returns the first address.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// Returns the last address, which belongs to the range.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Returns the distance from the first to the last address, in bytes.
    const fn span(self) -> u64 {
        // By the type invariant this cannot wrap.
        self.last.wrapping_sub(self.first)
    }

    /// Returns the number of bytes, or [`None`] for [`IovaRange::ALL`] with its 2^64 bytes.
    pub const fn size(self) -> Option<u64> {
        self.span().checked_add(1)
    }

    /// Returns the number of pages of `1 << page_shift` bytes.
    ///
    /// The range should begin and end at page boundaries, otherwise the last part of a page counts
    /// as a page. The result saturates: one-byte pages of [`IovaRange::ALL`] are [`u64::MAX`].
    pub const fn pages(self, page_shift: u32) -> u64 {
        match self.span().checked_shr(page_shift) {
            Some(behind_first) => behind_first.saturating_add(1),
            None => 1,
        }
    }

    /// Returns whether all of `other` lies in this range.
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Returns whether `addr` lies in this range.
    pub const fn contains_addr(self, addr: u64) -> bool {
        self.first <= addr && addr <= self.last
    }

    /// Returns whether the two ranges have an address in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns the addresses that both ranges have.
    pub const fn intersect(self, other: Self) -> Option<Self> {
        let first = if self.first > other.first {
            self.first
        } else {
            other.first
        };
        let last = if self.last < other.last {
            self.last
        } else {
            other.last
        };
        Self::new(first, last)
    }

    /// Returns the part of this range above the last address of `done`, if there is any.
    ///
    /// `done` begins at or before this range, as when a range is worked through upwards.
    pub const fn behind(self, done: Self) -> Option<Self> {
        match done.last.checked_add(1) {
            Some(next) => Self::new(next, self.last),
            None => None,
        }
    }

    /// Returns what is left of this range without `hole`: at most two ranges, in ascending order.
    pub fn exclude(self, hole: Self) -> impl Iterator<Item = Self> + Clone {
        let (below, above) = if self.overlaps(hole) {
            (
                hole.first
                    .checked_sub(1)
                    .and_then(|last| Self::new(self.first, last)),
                hole.last
                    .checked_add(1)
                    .and_then(|first| Self::new(first, self.last)),
            )
        } else {
            (Some(self), None)
        };
        below.into_iter().chain(above)
    }
}

/// Writes the first and the last address, such as `0x1000-0x1fff`.
impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)
    }
}

/// Why a first address and a length make no [`IovaRange`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeError {
    /// The length is zero.
    Empty,
    /// The range would end beyond the last 64-bit address.
    Wraps,
}

impl RangeError {
    /// Returns what the C driver answers to such a range.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Empty => Errno::Inval,
            Self::Wraps => Errno::Overflow,
        }
    }
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a range of no bytes was asked for, at least one is needed",
            Self::Wraps => "a range beyond 0xffffffffffffffff was asked for",
        })
    }
}
