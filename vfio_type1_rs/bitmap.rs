// SPDX-License-Identifier: GPL-2.0

//! The bitmap of dirty pages that the user has, a few words at a time.

use core::{
    mem,
    num::NonZeroU64, //
};
use dirty_log::{
    Placed,
    Run,
    Window, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use vfio_uapi::BitmapArg;

/// Words that are copied at a time.
pub(crate) const ROOM: usize = 64;

/// Runs of pages of a mapping, as a part of the user's bitmap has them.
#[derive(Clone, Copy)]
pub(crate) struct PageRuns<'a> {
    pub(crate) window: Window,
    pub(crate) words: &'a [u64],
    pub(crate) first_bit: u64,
    pub(crate) first_page: u64,
    pub(crate) pages_per_bit: NonZeroU64,
}

impl<'a> PageRuns<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = Run> + 'a {
        self.window.runs(self.words).filter_map(move |run| {
            let pages = Run {
                first: run.first - self.first_bit,
                ..run
            }
            .finer(self.pages_per_bit)?;
            Some(Run {
                first: pages.first.checked_add(self.first_page)?,
                ..pages
            })
        })
    }
}

/// How many pages a bit of the user's stands for.
pub(crate) fn pages_per_bit(bitmap: &BitmapArg) -> NonZeroU64 {
    NonZeroU64::new(bitmap.pgsize / PAGE_SIZE as u64).unwrap_or(NonZeroU64::MIN)
}

/// The user's bitmap, read through windows.
pub(crate) struct UserBits<'a>(pub(crate) &'a BitmapArg);

impl UserBits<'_> {
    /// Fills the first words with those of a window.
    pub(crate) fn read(&self, window: &Window, words: &mut [u64; ROOM]) -> Result {
        breathe()?;
        let mut reader = user_words(self.0.data, window.index, window.len)?.reader();
        for word in words.iter_mut().take(window.len) {
            *word = reader.read()?;
        }
        Ok(())
    }
}

/// Lets others run, or ends what takes long if nobody waits for it any more.
fn breathe() -> Result {
    mm::cond_resched();
    if mm::fatal_signal_pending() {
        return Err(EINTR);
    }
    Ok(())
}

/// `len` words of the user's bitmap at `data`, from word number `index` on.
fn user_words(data: u64, index: u64, len: usize) -> Result<UserSlice> {
    let addr = index
        .checked_mul(size_of::<u64>() as u64)
        .and_then(|offset| data.checked_add(offset))
        .ok_or(EFAULT)?;
    Ok(UserSlice::new(
        UserPtr::from_addr(addr as usize),
        len * size_of::<u64>(),
    ))
}

/// The user's bitmap, written in pieces.
pub(crate) struct UserWords {
    data: u64,
    /// Where `words` begin in the user's bitmap.
    index: u64,
    words: [u64; ROOM],
    len: usize,
}

impl UserWords {
    pub(crate) fn new(bitmap: &BitmapArg) -> Self {
        Self {
            data: bitmap.data,
            index: 0,
            words: [0; ROOM],
            len: 0,
        }
    }

    /// Appends a word; the user's own bits stay in one that the mapping fills only partly.
    pub(crate) fn put(&mut self, placed: &Placed) -> Result {
        if self.len == ROOM {
            self.flush()?;
        }
        if self.len == 0 {
            self.index = placed.index;
        }
        let value = if placed.is_whole() {
            placed.value
        } else {
            let user = user_words(self.data, placed.index, 1)?.reader().read()?;
            placed.merge(user)
        };
        if let Some(word) = self.words.get_mut(self.len) {
            *word = value;
            self.len += 1;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result {
        let len = mem::replace(&mut self.len, 0);
        if len == 0 {
            return Ok(());
        }
        breathe()?;
        let mut writer = user_words(self.data, self.index, len)?.writer();
        self.words
            .iter()
            .take(len)
            .try_for_each(|word| writer.write(word))
    }
}
