// SPDX-License-Identifier: GPL-2.0

//! A long bitmap of the user, looked at through a short window.

use crate::{
    bits::{
        Bits,
        Run, //
    },
    size::WORD_BITS,
};

/// What of a user's bitmap fits into a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Number of the first word in the user's bitmap.
    pub index: u64,
    /// Number of words, at least 1.
    pub len: usize,
    /// The bits asked for, by their number in the user's bitmap.
    wanted: Run,
}

/// Returns the windows of at most `room` words that show `bits` of a user's bitmap, ascending.
///
/// There are none if there are no bits or no room.
pub fn windows(bits: Run, room: usize) -> impl Iterator<Item = Window> + Clone {
    let room_bits = u64::try_from(room)
        .unwrap_or(u64::MAX)
        .saturating_mul(WORD_BITS);
    let end = bits.first.saturating_add(bits.count);
    let mut at = bits.first;
    core::iter::from_fn(move || {
        if at >= end || room == 0 {
            return None;
        }
        let index = at / WORD_BITS;
        let next = index
            .saturating_mul(WORD_BITS)
            .saturating_add(room_bits)
            .min(end);
        let wanted = Run {
            first: at,
            count: next.saturating_sub(at),
        };
        at = next;
        let len = next.div_ceil(WORD_BITS).saturating_sub(index);
        Some(Window {
            index,
            // Not more than `room`.
            len: len as usize,
            wanted,
        })
    })
}

impl Window {
    /// Returns the runs of set bits among those asked for, by their number in the user's bitmap.
    ///
    /// `words` are the window's words; without enough of them there are no runs.
    pub fn runs(self, words: &[u64]) -> impl Iterator<Item = Run> + Clone + '_ {
        let base = self.index.saturating_mul(WORD_BITS);
        let pages = u64::try_from(self.len)
            .unwrap_or(u64::MAX)
            .saturating_mul(WORD_BITS);
        let first = self.wanted.first.saturating_sub(base);
        Bits::new(words, pages)
            .into_iter()
            .flat_map(move |bits| bits.iter_runs_in(first, self.wanted.count))
            .map(move |run| Run {
                first: run.first.saturating_add(base),
                ..run
            })
    }
}
