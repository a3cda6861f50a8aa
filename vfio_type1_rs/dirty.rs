// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_DIRTY_PAGES`: which pages devices may have written to.
//!
//! The log belongs to a mapping. What is in it follows a policy that depends on the groups: if a
//! group reaches memory through the IOMMU and none of its drivers pins pages, every page that the
//! IOMMU maps counts as dirty whenever somebody asks; else only pages that drivers pinned or wrote
//! through [`Container::copy_for_driver`] do.

use crate::{
    container::Container,
    mapping::{
        Mapping,
        State, //
    },
    refusal::Cause,
    topology::Topology,
    unmap::check_whole, //
};
use core::mem;
use dirty_log::{
    words_for,
    Bits,
    BitsMut,
    Placed, //
};
use iova_space::IovaRange;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use vfio_uapi::{
    BitmapArg,
    DirtyRange, //
};

/// One bit for each page of a mapping.
///
/// # Invariants
///
/// `words` has a bit for each of `pages` pages.
pub(crate) struct DirtyLog {
    words: KVVec<u64>,
    pages: u64,
}

impl DirtyLog {
    /// A log for a mapping, with nothing marked.
    pub(crate) fn new(mapping: &Mapping) -> Result<Self, Cause> {
        Self::with_pages(mapping.pages()).ok_or(Cause::TooLargeToTrack {
            mapped: mapping.iova(),
        })?
    }

    /// `None` if there are too many pages.
    fn with_pages(pages: u64) -> Option<Result<Self, Cause>> {
        let count = words_for(pages)?;
        let words = KVVec::from_elem(0, count, GFP_KERNEL_ACCOUNT);
        // INVARIANT: That many words were asked for.
        Some(
            words
                .map(|words| Self { words, pages })
                .map_err(|_| Cause::Other(ENOMEM)),
        )
    }

    fn bits(&self) -> Option<Bits<'_>> {
        Bits::new(&self.words, self.pages)
    }

    fn bits_mut(&mut self) -> Option<BitsMut<'_>> {
        BitsMut::new(&mut self.words, self.pages)
    }

    /// Marks the pages that have a byte of `[offset, offset + size)`.
    pub(crate) fn mark(&mut self, offset: u64, size: u64) {
        let page = PAGE_SIZE as u64;
        let Some(last) = size
            .checked_sub(1)
            .and_then(|rest| offset.checked_add(rest))
        else {
            return;
        };
        let (first, last) = (offset / page, last / page);
        if let Some(mut bits) = self.bits_mut() {
            bits.set(first, last - first + 1);
        }
    }

    /// Marks all pages.
    pub(crate) fn mark_all(&mut self) {
        if let Some(mut bits) = self.bits_mut() {
            bits.set_all();
        }
    }

    fn clear(&mut self) {
        if let Some(mut bits) = self.bits_mut() {
            bits.clear_all();
        }
    }

    /// The same with a bit for each `pages_per_bit` pages.
    fn coarser(&self, pages_per_bit: u64) -> Result<Self, Cause> {
        let mut coarse =
            Self::with_pages(self.pages.div_ceil(pages_per_bit)).ok_or(Cause::Other(EINVAL))??;
        if let (Some(fine), Some(mut bits)) = (self.bits(), coarse.bits_mut()) {
            for run in fine.iter_runs() {
                let first = run.first / pages_per_bit;
                let last = (run.first + run.count - 1) / pages_per_bit;
                bits.set(first, last - first + 1);
            }
        }
        Ok(coarse)
    }
}

impl Container {
    /// Begins to track, or goes on.
    pub(crate) fn start_dirty(&self) -> Result<(), Cause> {
        let _topology = self.topology.read();
        let mut space = self.open_space()?;
        self.settle(&mut space, IovaRange::ALL);
        if space.tracking {
            return Ok(());
        }
        for entry in space.iter() {
            match DirtyLog::new(&entry.mapping) {
                Ok(log) => entry.mapping.state.lock().begin_log(&entry.mapping, log),
                Err(cause) => {
                    for entry in space.iter() {
                        entry.mapping.state.lock().dirty = None;
                    }
                    return Err(cause);
                }
            }
        }
        space.tracking = true;
        Ok(())
    }

    /// Ends tracking and forgets what was found.
    pub(crate) fn stop_dirty(&self) -> Result<(), Cause> {
        let _topology = self.topology.read();
        let mut space = self.open_space()?;
        self.settle(&mut space, IovaRange::ALL);
        if mem::replace(&mut space.tracking, false) {
            for entry in space.iter() {
                entry.mapping.state.lock().dirty = None;
            }
        }
        Ok(())
    }

    /// Reports the dirty pages of a range to the user, and forgets them.
    pub(crate) fn get_dirty(&self, request: &DirtyRange) -> Result<(), Cause> {
        let topology = self.topology.read();
        request.check_pages(topology.page_sizes())?;

        let range = request.iova;
        let mut space = self.open_space()?;
        if !space.tracking {
            return Err(vfio_uapi::Refusal::TrackingOff.into());
        }
        self.settle(&mut space, range);
        check_whole(&space, range)?;

        for entry in space.in_range(range) {
            let mapping = &entry.mapping;
            let mut state = mapping.state.lock();
            mapping.report_dirty(&mut state, range.first(), &request.bitmap, &topology)?;
            state.restart_log(mapping);
        }
        Ok(())
    }
}

impl Mapping {
    /// Writes the mapping's bits into the user's bitmap, whose first bit stands for `base`.
    pub(crate) fn report_dirty(
        &self,
        state: &mut State,
        base: u64,
        bitmap: &BitmapArg,
        topology: &Topology,
    ) -> Result<(), Cause> {
        let everything = state.mapped.is_some() && topology.any_page_may_be_dirty();
        let Some(log) = &mut state.dirty else {
            return Ok(());
        };
        if everything {
            log.mark_all();
        }

        let offset = (self.iova().first() - base) / bitmap.pgsize;
        let coarse;
        let log = match bitmap.pgsize / PAGE_SIZE as u64 {
            0 | 1 => &*log,
            pages => {
                coarse = log.coarser(pages)?;
                &coarse
            }
        };
        if let Some(bits) = log.bits() {
            let mut words = UserWords::new(bitmap);
            for placed in bits.place(offset) {
                words.put(&placed)?;
            }
            words.flush()?;
        }
        Ok(())
    }
}

impl State {
    /// Starts with a log in which pages are marked that drivers have pinned.
    fn begin_log(&mut self, mapping: &Mapping, log: DirtyLog) {
        self.dirty = Some(log);
        self.restart_log(mapping);
    }

    /// Forgets what is marked, except what drivers may go on writing to.
    fn restart_log(&mut self, mapping: &Mapping) {
        if let Some(log) = &mut self.dirty {
            log.clear();
            for iova in self.pins.keys() {
                log.mark(iova - mapping.iova().first(), PAGE_SIZE as u64);
            }
        }
    }
}

/// The user's bitmap, written in pieces.
struct UserWords {
    data: u64,
    /// Where `words` begin in the user's bitmap.
    index: u64,
    words: [u64; Self::LEN],
    len: usize,
}

impl UserWords {
    const LEN: usize = 64;

    fn new(bitmap: &BitmapArg) -> Self {
        Self {
            data: bitmap.data,
            index: 0,
            words: [0; Self::LEN],
            len: 0,
        }
    }

    /// Appends a word; the user's own bits stay in one that the mapping fills only partly.
    fn put(&mut self, placed: &Placed) -> Result {
        if self.len == Self::LEN {
            self.flush()?;
        }
        if self.len == 0 {
            self.index = placed.index;
        }
        let value = if placed.is_whole() {
            placed.value
        } else {
            let mut bytes = [0; size_of::<u64>()];
            self.slice(placed.index, bytes.len())?
                .reader()
                .read_slice(&mut bytes)?;
            placed.merge(u64::from_ne_bytes(bytes))
        };
        if let Some(word) = self.words.get_mut(self.len) {
            *word = value;
            self.len += 1;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result {
        let len = mem::replace(&mut self.len, 0);
        if len == 0 {
            return Ok(());
        }
        mm::cond_resched();
        let mut writer = self.slice(self.index, len * size_of::<u64>())?.writer();
        self.words
            .iter()
            .take(len)
            .try_for_each(|word| writer.write(word))
    }

    fn slice(&self, index: u64, len: usize) -> Result<UserSlice> {
        let addr = index
            .checked_mul(size_of::<u64>() as u64)
            .and_then(|offset| self.data.checked_add(offset))
            .ok_or(EFAULT)?;
        Ok(UserSlice::new(UserPtr::from_addr(addr as usize), len))
    }
}
