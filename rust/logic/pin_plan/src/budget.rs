// SPDX-License-Identifier: GPL-2.0

//! The memory-lock limit.

use core::fmt;

/// How much memory a process may lock, its `RLIMIT_MEMLOCK`.
///
/// Only arithmetic: reading the limit, and the counter that it applies to, is up to the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// [`None`] without a limit.
    limit_pages: Option<u64>,
    page_shift: u32,
}

impl Budget {
    /// No limit, as for a process with `CAP_IPC_LOCK`.
    pub const UNLIMITED: Self = Self {
        limit_pages: None,
        page_shift: 0,
    };

    /// Takes a limit in bytes, of which whole pages of `1 << page_shift` bytes count.
    ///
    /// `RLIM_INFINITY`, which is [`u64::MAX`], means that there is no limit.
    pub const fn from_bytes(limit: u64, page_shift: u32) -> Self {
        if limit == u64::MAX {
            return Self::UNLIMITED;
        }
        let pages = match limit.checked_shr(page_shift) {
            Some(pages) => pages,
            None => 0,
        };
        Self::from_pages(pages, page_shift)
    }

    /// Takes a limit in pages of `1 << page_shift` bytes.
    pub const fn from_pages(limit: u64, page_shift: u32) -> Self {
        Self {
            limit_pages: Some(limit),
            page_shift,
        }
    }

    /// Checks whether `more` pages may be locked when `locked_now` pages are.
    pub const fn admits(&self, locked_now: u64, more: u64) -> Result<(), OverLimit> {
        let Some(limit) = self.limit_pages else {
            return Ok(());
        };
        match locked_now.checked_add(more) {
            Some(total) if total <= limit => Ok(()),
            _ => Err(OverLimit {
                limit,
                locked: locked_now,
                asked: more,
                page_shift: self.page_shift,
            }),
        }
    }
}

/// Locking pages would exceed the memory-lock limit. The C driver answers `ENOMEM`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverLimit {
    /// The limit in pages.
    pub limit: u64,
    /// Pages locked already.
    pub locked: u64,
    /// Pages asked for on top.
    pub asked: u64,
    /// Binary logarithm of the page size.
    pub page_shift: u32,
}

impl OverLimit {
    /// Returns how many pages could still be locked.
    pub const fn available(&self) -> u64 {
        self.limit.saturating_sub(self.locked)
    }

    /// Returns the size of `pages` pages in KiB, rounded up and saturating.
    const fn kib(&self, pages: u64) -> u64 {
        let kib = match self.page_shift.checked_sub(KIB_SHIFT) {
            Some(shift) => match 1u64.checked_shl(shift) {
                Some(kib_per_page) => pages.checked_mul(kib_per_page),
                None => None,
            },
            None => match 1u64.checked_shl(KIB_SHIFT.wrapping_sub(self.page_shift)) {
                Some(pages_per_kib) => Some(pages.div_ceil(pages_per_kib)),
                None => None,
            },
        };
        match kib {
            Some(kib) => kib,
            None => u64::MAX,
        }
    }
}

/// Binary logarithm of a KiB.
const KIB_SHIFT: u32 = 10;

/// Writes one sentence: what is needed, what is left and what the limit is, in KiB.
impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB more are to be locked, {} KiB of the RLIMIT_MEMLOCK of {} KiB are left",
            self.kib(self.asked),
            self.kib(self.available()),
            self.kib(self.limit)
        )
    }
}
