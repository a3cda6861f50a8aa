// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_DIRTY_PAGES`: which pages devices may have written to.
//!
//! The log belongs to a mapping. Pages that drivers pin, or write to through
//! [`Container::copy_for_driver`], are marked at once. What devices write to through an IOMMU is
//! found out when somebody asks, see [`Source`]: from the IOMMU's dirty bits if every domain that
//! needs it has them; else every page that is mapped counts as dirty.
//!
//! Bits of the IOMMU move into the log the moment they are read, and leave it when the user was
//! told of all, or with `CLEAR_BITMAP`; see the crate `dirty_log` for why no write is lost. Where one can
//! not know, pages are reported once too often rather than never.

use crate::{
    bitmap::{
        pages_per_bit,
        PageRuns,
        UserBits,
        UserWords,
        ROOM, //
    },
    container::{
        Container,
        SpaceGuard, //
    },
    mapping::{
        Mapping,
        State, //
    },
    refusal::Cause,
    space::{
        Entry,
        Space, //
    },
    topology::Topology,
    unmap::check_whole, //
};
use core::{
    mem,
    num::NonZeroU64, //
};
use dirty_log::{
    forget,
    sync,
    sync_runs,
    windows,
    words_for,
    Bits,
    BitsMut,
    DirtyBits,
    Run,
    Source, //
};
use iommu::{
    DirtyReader,
    Domain,
    Mapped,
    Reading, //
};
use iova_space::IovaRange;
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use vfio_uapi::{
    BitmapArg,
    DirtyRange,
    RangeOp, //
};

const PAGE: u64 = PAGE_SIZE as u64;

/// One bit for each page of a mapping.
///
/// # Invariants
///
/// `words` has a bit for each of `pages` pages.
pub(crate) struct DirtyLog {
    words: KVVec<u64>,
    pages: u64,
    /// Something was marked since the log was reported.
    marked: bool,
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
                .map(|words| Self {
                    words,
                    pages,
                    marked: false,
                })
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
        let Some(last) = size
            .checked_sub(1)
            .and_then(|rest| offset.checked_add(rest))
        else {
            return;
        };
        let (first, last) = (offset / PAGE, last / PAGE);
        self.marked = true;
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
    fn coarser(&self, pages_per_bit: NonZeroU64) -> Result<Self, Cause> {
        let pages = self.pages.div_ceil(pages_per_bit.get());
        let mut coarse = Self::with_pages(pages).ok_or(Cause::Other(EINVAL))??;
        if let (Some(fine), Some(mut bits)) = (self.bits(), coarse.bits_mut()) {
            bits.merge_finer(fine, pages_per_bit);
        }
        Ok(coarse)
    }
}

impl Container {
    /// Begins to track, or goes on.
    pub(crate) fn start_dirty(&self) -> Result<(), Cause> {
        // Nothing is being mapped meanwhile, so that all mappings begin together.
        let mut topology = self.topology.write();
        let mut space = self.open_space()?;
        if space.tracking {
            return Ok(());
        }
        for entry in space.iter() {
            match DirtyLog::new(&entry.mapping) {
                Ok(log) => entry.mapping.state.lock().begin_log(&entry.mapping, log),
                Err(cause) => {
                    space.drop_logs();
                    return Err(cause);
                }
            }
        }
        // What was written before does not count. Should it not be cleared it will be reported,
        // which does no harm.
        let _ = topology.iommu.read_dirty(
            |_| true,
            Reading::Clear,
            |reader| {
                space
                    .iter()
                    .try_for_each(|entry| match &entry.mapping.state.lock().mapped {
                        Some(mapped) => reader.read(mapped, entry.mapping.iova(), &mut |_| ()),
                        None => Ok(()),
                    })
            },
        );
        topology.iommu.set_tracking(true, warn_untracked);
        space.tracking = true;
        Ok(())
    }

    /// Ends tracking and forgets what was found.
    pub(crate) fn stop_dirty(&self) -> Result<(), Cause> {
        let mut topology = self.topology.write();
        let mut space = self.open_space()?;
        if mem::replace(&mut space.tracking, false) {
            topology.iommu.set_tracking(false, |error| {
                pr_warn!("an IOMMU goes on to track dirty pages: {error:?}\n");
            });
            space.drop_logs();
        }
        Ok(())
    }

    /// Reports the dirty pages of a range, or takes them as clean, or both.
    pub(crate) fn dirty_range(&self, op: RangeOp, request: &DirtyRange) -> Result<(), Cause> {
        let topology = self.topology.read();
        request.check_pages(topology.page_sizes())?;

        let mut space = self.open_space()?;
        if !space.tracking {
            return Err(vfio_uapi::Refusal::TrackingOff.into());
        }
        self.settle(&mut space, request.iova);
        match op {
            RangeOp::Get => {
                report(&space, &topology, request)?;
                // Only when the user has all of it.
                for entry in space.in_range(request.iova) {
                    let mapping = &entry.mapping;
                    mapping.state.lock().restart_log(mapping);
                }
                Ok(())
            }
            RangeOp::GetNoClear => report(&space, &topology, request),
            RangeOp::Clear => clear(&space, &topology, request),
        }
    }
}

impl Space {
    fn drop_logs(&self) {
        for entry in self.iter() {
            entry.mapping.state.lock().dirty = None;
        }
    }

    /// Marks all pages of all mappings: nobody knows any more what was written to.
    pub(crate) fn mark_all_dirty(&self) {
        for entry in self.iter() {
            if let Some(log) = &mut entry.mapping.state.lock().dirty {
                log.mark_all();
            }
        }
    }

    /// Moves what domains recorded into the logs, because they will not be asked again. Having no
    /// answer all pages are marked.
    pub(crate) fn rescue_dirty(&self, topology: &Topology, of: impl Fn(&Domain) -> bool) {
        let rescued = topology.iommu.read_dirty(
            |domain| domain.is_tracking() && of(domain),
            Reading::Keep,
            |reader| sync_range(self, IovaRange::ALL, reader),
        );
        if rescued.is_err() {
            self.mark_all_dirty();
        }
    }
}

impl Entry {
    /// Marks the pages of the mapping that have an address in `range`.
    fn mark_dirty(&self, range: IovaRange) {
        let mut state = self.mapping.state.lock();
        let bits = state.dirty.as_mut().and_then(DirtyLog::bits_mut);
        if let (Some(run), Some(mut bits)) = (self.mapping.run_of(range), bits) {
            bits.set(run.first, run.count);
        }
    }
}

/// Says that a domain does not track dirty pages although it can.
pub(crate) fn warn_untracked(error: Error) {
    pr_warn!("an IOMMU does not track dirty pages, so all count as dirty: {error:?}\n");
}

/// Reports the dirty pages of a range.
fn report(space: &SpaceGuard<'_>, topology: &Topology, request: &DirtyRange) -> Result<(), Cause> {
    let range = request.iova;
    check_whole(space, range)?;
    let source = topology.dirty_source();
    if source == Source::Hardware {
        topology
            .iommu
            .read_dirty(Domain::is_tracking, Reading::Clear, |reader| {
                sync_range(space, range, reader)
            })?;
    }
    space.in_range(range).try_for_each(|entry| {
        let mapping = &entry.mapping;
        mapping.report_dirty(
            &mut mapping.state.lock(),
            range.first(),
            &request.bitmap,
            source,
        )
    })
}

/// Takes the pages as clean whose bits the user has set.
fn clear(space: &SpaceGuard<'_>, topology: &Topology, request: &DirtyRange) -> Result<(), Cause> {
    if topology.dirty_source() == Source::Hardware {
        topology
            .iommu
            .read_dirty(Domain::is_tracking, Reading::Clear, |reader| {
                for_cleared(space, request, |mapping, state, runs| {
                    mapping.sync_runs(state, reader, runs)
                })
            })?;
    }
    let cleared = for_cleared(space, request, |_, state, runs| {
        if let Some(mut bits) = state.dirty.as_mut().and_then(DirtyLog::bits_mut) {
            forget(&mut bits, runs.iter());
        }
        Ok(())
    });
    for entry in space.in_range(request.iova) {
        let mapping = &entry.mapping;
        mapping.state.lock().mark_pinned(mapping);
        if cleared.is_err() {
            // The user cannot know how far it got, and must not miss a page for that.
            entry.mark_dirty(request.iova);
        }
    }
    cleared
}

/// Calls `each` for the pages of each mapping whose bits the user has set, some at a time.
///
/// The range may begin and end within mappings, and have holes.
fn for_cleared(
    space: &Space,
    request: &DirtyRange,
    mut each: impl FnMut(&Mapping, &mut State, PageRuns<'_>) -> Result<(), Cause>,
) -> Result<(), Cause> {
    let user = UserBits(&request.bitmap);
    let pages_per_bit = pages_per_bit(&request.bitmap);
    for entry in space.in_range(request.iova) {
        let mapping = &entry.mapping;
        let Some(part) = mapping.iova().intersect(request.iova) else {
            continue;
        };
        let bits = Run {
            first: request.bitmap.bits(part.first() - request.iova.first()),
            count: request.bitmap.bits(part.size().unwrap_or(0)),
        };
        let first_page = (part.first() - mapping.iova().first()) / PAGE;

        let mut state = mapping.state.lock();
        let mut words = [0; ROOM];
        for window in windows(bits, words.len()) {
            user.read(&window, &mut words)?;
            let runs = PageRuns {
                window,
                words: &words,
                first_bit: bits.first,
                first_page,
                pages_per_bit,
            };
            each(mapping, &mut state, runs)?;
        }
    }
    Ok(())
}

/// Moves what a domain recorded about the mappings of a range into their logs.
fn sync_range(
    space: &Space,
    range: IovaRange,
    reader: &mut DirtyReader<'_, '_>,
) -> Result<(), Cause> {
    space.in_range(range).try_for_each(|entry| {
        let mapping = &entry.mapping;
        mapping.sync(&mut mapping.state.lock(), reader)
    })
}

/// What the IOMMU knows of a mapping.
struct Recorded<'a, 'b, 'c> {
    mapping: &'a Mapping,
    mapped: &'a Mapped,
    reader: &'a mut DirtyReader<'b, 'c>,
}

impl DirtyBits for Recorded<'_, '_, '_> {
    type Error = Error;

    fn take(&mut self, run: Run, found: &mut dyn FnMut(Run)) -> Result {
        let Some(range) = self.mapping.range_of(run) else {
            return Ok(());
        };
        self.reader.read(self.mapped, range, &mut |range| {
            if let Some(run) = self.mapping.run_of(range) {
                found(run);
            }
        })
    }
}

impl Mapping {
    /// The addresses of pages, as far as there are such pages.
    fn range_of(&self, pages: Run) -> Option<IovaRange> {
        let offset = pages.first.checked_mul(PAGE)?;
        let size = pages.count.checked_mul(PAGE)?;
        let first = self.iova().first().checked_add(offset)?;
        let last = first.saturating_add(size.checked_sub(1)?);
        IovaRange::new(first, last)?.intersect(self.iova())
    }

    /// The pages that have an address in `range`.
    fn run_of(&self, range: IovaRange) -> Option<Run> {
        let inside = range.intersect(self.iova())?;
        let first = (inside.first() - self.iova().first()) / PAGE;
        let last = (inside.last() - self.iova().first()) / PAGE;
        Some(Run {
            first,
            count: last - first + 1,
        })
    }

    /// Moves what a domain recorded into the log.
    fn sync(&self, state: &mut State, reader: &mut DirtyReader<'_, '_>) -> Result<(), Cause> {
        self.with_recorded(state, reader, |log, recorded| sync(log, recorded))
    }

    /// Moves what a domain recorded about some pages into the log.
    fn sync_runs(
        &self,
        state: &mut State,
        reader: &mut DirtyReader<'_, '_>,
        runs: PageRuns<'_>,
    ) -> Result<(), Cause> {
        self.with_recorded(state, reader, |log, recorded| {
            sync_runs(log, recorded, runs.iter())
        })
    }

    fn with_recorded(
        &self,
        state: &mut State,
        reader: &mut DirtyReader<'_, '_>,
        work: impl FnOnce(&mut BitsMut<'_>, &mut Recorded<'_, '_, '_>) -> Result,
    ) -> Result<(), Cause> {
        let State {
            mapped: Some(mapped),
            dirty: Some(log),
            ..
        } = state
        else {
            return Ok(());
        };
        let Some(mut bits) = log.bits_mut() else {
            return Ok(());
        };
        let mut recorded = Recorded {
            mapping: self,
            mapped,
            reader,
        };
        match work(&mut bits, &mut recorded) {
            Err(error) if error == EINTR => Err(error.into()),
            Err(error) => {
                warn_untracked(error);
                bits.set_all();
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes the mapping's bits into the user's bitmap before it is unmapped.
    ///
    /// What devices write between that and the unmapping is not reported: the IOMMU API cannot
    /// take away the right to write before the translation. See Documentation/uapi/dirty-log.rst.
    pub(crate) fn report_last_dirty(
        &self,
        state: &mut State,
        base: u64,
        bitmap: &BitmapArg,
        topology: &Topology,
    ) -> Result<(), Cause> {
        let source = topology.dirty_source();
        if source == Source::Hardware {
            topology
                .iommu
                .read_dirty(Domain::is_tracking, Reading::Keep, |reader| {
                    self.sync(state, reader)
                })?;
        }
        self.report_dirty(state, base, bitmap, source)
    }

    /// Writes the mapping's bits into the user's bitmap, whose first bit stands for `base`.
    fn report_dirty(
        &self,
        state: &mut State,
        base: u64,
        bitmap: &BitmapArg,
        source: Source,
    ) -> Result<(), Cause> {
        let unknown = state.mapped.is_some() && source == Source::Unknown;
        let Some(log) = &mut state.dirty else {
            return Ok(());
        };
        if unknown {
            log.mark_all();
        }

        let offset = bitmap.bits(self.iova().first() - base);
        let coarse;
        let log = match pages_per_bit(bitmap) {
            NonZeroU64::MIN => &*log,
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
        if let Some(log) = &mut state.dirty {
            log.marked = false;
        }
        Ok(())
    }
}

impl State {
    /// Starts with a log in which pages are marked that drivers have pinned.
    fn begin_log(&mut self, mapping: &Mapping, log: DirtyLog) {
        self.dirty = Some(log);
        self.mark_pinned(mapping);
    }

    /// Forgets what was reported, except what drivers may go on writing to.
    fn restart_log(&mut self, mapping: &Mapping) {
        if let Some(log) = &mut self.dirty {
            if log.marked {
                // By a driver, since it was reported: all comes once more.
                return;
            }
            log.clear();
        }
        self.mark_pinned(mapping);
    }

    /// Marks what drivers may write to at any time.
    fn mark_pinned(&mut self, mapping: &Mapping) {
        if let Some(log) = &mut self.dirty {
            for iova in self.pins.keys() {
                log.mark(iova - mapping.iova().first(), PAGE);
            }
        }
    }
}
