// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_UNMAP_DMA`.

use crate::{
    container::{
        Container,
        SpaceGuard, //
    },
    mapping::Mapping,
    refusal::Cause,
    space::{
        Claimed,
        Space, //
    },
    topology::Topology, //
};
use core::mem;
use iova_space::IovaRange;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use vfio_uapi::{
    BitmapArg,
    Model,
    UnmapHeader, //
};

/// How often drivers are asked to unpin the pages of one mapping.
const NOTIFY_TRIES: u32 = 10;

/// What to do with the next mappings of a range that is unmapped.
enum Step {
    /// There is none.
    Done,
    /// Those in the batch are marked busy: unmap them.
    Remove,
    /// Drivers have pages of the next one pinned.
    Notify(Arc<Mapping>),
}

/// Why a mapping does not get into a batch.
enum Apart {
    /// The batch is full, or the mapping begins before the range, which ends it in v1.
    End,
    /// Drivers have pages of it pinned.
    Pinned(Arc<Mapping>),
}

/// Mappings that are unmapped together: `space` is locked once to mark all of them busy and once to
/// remove them, and the IOTLB is flushed once.
///
/// There are few, because who waits for one of them waits for all.
struct Batch {
    mappings: [Option<Arc<Mapping>>; Self::LEN],
    len: usize,
    most: usize,
    pages: u64,
}

impl Batch {
    const LEN: usize = 16;
    /// Unmapping more pages than that takes so long that a flush for each mapping does not matter.
    const PAGES: u64 = 512;

    fn new(most: usize) -> Self {
        Self {
            mappings: [const { None }; Self::LEN],
            len: 0,
            most,
            pages: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a mapping; whether there was room. There is for the first, whatever its size.
    fn push(&mut self, mapping: &Arc<Mapping>) -> bool {
        let pages = self.pages.saturating_add(mapping.pages());
        if self.len >= self.most || self.len > 0 && pages > Self::PAGES {
            return false;
        }
        let Some(place) = self.mappings.get_mut(self.len) else {
            return false;
        };
        *place = Some(mapping.clone());
        self.len += 1;
        self.pages = pages;
        true
    }

    fn iter(&self) -> impl Iterator<Item = &Mapping> {
        let mappings = self.mappings.iter().take(self.len);
        mappings.filter_map(|mapping| mapping.as_deref())
    }

    /// Takes all out again.
    fn drain(&mut self) -> impl Iterator<Item = Arc<Mapping>> + '_ {
        let len = mem::take(&mut self.len);
        self.pages = 0;
        let mappings = self.mappings.iter_mut().take(len);
        mappings.filter_map(Option::take)
    }
}

impl Container {
    /// Unmaps, or invalidates user addresses; the number of bytes that was done to.
    pub(crate) fn unmap(
        &self,
        request: &UnmapHeader,
        bitmap: Option<&BitmapArg>,
    ) -> Result<u64, Cause> {
        if request.invalidates_vaddr() {
            return self.invalidate_vaddrs(request);
        }

        // Between the report of dirty pages and the flush no more time is to pass than must.
        let most = if bitmap.is_some() { 1 } else { Batch::LEN };
        // As in C the sum wraps: without an IOMMU mappings can fill all 64 bits of addresses.
        let mut unmapped: u64 = 0;
        let mut pinned: Option<(Arc<Mapping>, u32)> = None;
        let mut batch = Batch::new(most);
        let mut progress = Progress::Start;
        loop {
            let topology = self.topology.read();
            let range = request.range(topology.page_sizes())?;
            match self.next_to_unmap(request, bitmap, range, &progress, &topology, &mut batch)? {
                Step::Done => return Ok(unmapped),
                Step::Remove => {
                    self.remove(&batch, range, bitmap, &topology)?;
                    let mut rest = None;
                    for mapping in batch.drain() {
                        unmapped = unmapped.wrapping_add(mapping.size());
                        rest = range.behind(mapping.iova());
                    }
                    match rest {
                        Some(rest) => progress = Progress::Rest(rest),
                        None => return Ok(unmapped),
                    }
                }
                Step::Notify(mapping) => {
                    let iova = mapping.iova();
                    let tries = match pinned {
                        Some((before, tries)) if Arc::ptr_eq(&before, &mapping) => tries + 1,
                        _ => 1,
                    };
                    if tries > NOTIFY_TRIES {
                        return Err(Cause::StillPinned { mapped: iova });
                    }
                    pinned = Some((mapping, tries));
                    // The drivers call back to unpin.
                    drop(topology);
                    self.devices.notify_unmap(iova);
                    progress = Progress::Start;
                }
            }
        }
    }

    /// Fills the batch with mappings that nobody works on or has pinned, from low to high.
    fn next_to_unmap(
        &self,
        request: &UnmapHeader,
        bitmap: Option<&BitmapArg>,
        range: IovaRange,
        progress: &Progress,
        topology: &Topology,
        batch: &mut Batch,
    ) -> Result<Step, Cause> {
        let mut space = self.open_space()?;
        if let Some(bitmap) = bitmap {
            request.check_bitmap(bitmap, space.tracking, topology.page_sizes())?;
        }
        let rest = match *progress {
            Progress::Start => {
                self.settle_whole(&mut space, request, range)?;
                range
            }
            Progress::Rest(rest) => rest,
        };

        loop {
            let claimed = space.claim(rest, |mapping| {
                if self.model == Model::V1 && mapping.iova().first() < range.first() {
                    return Some(Apart::End);
                }
                let mut state = mapping.state.lock();
                if !state.pins.is_empty() {
                    return Some(Apart::Pinned(mapping.clone()));
                }
                if !batch.push(mapping) {
                    return Some(Apart::End);
                }
                state.live = false;
                None
            });
            if !batch.is_empty() {
                return Ok(Step::Remove);
            }
            match claimed {
                Claimed::All | Claimed::Refused(Apart::End) => return Ok(Step::Done),
                Claimed::Refused(Apart::Pinned(mapping)) => return Ok(Step::Notify(mapping)),
                Claimed::Busy(iova) => self.settle(&mut space, iova),
            }
        }
    }

    /// Waits for what goes on in the range, and checks that no mapping would be cut in two: v2
    /// unmaps only what was mapped as a whole.
    fn settle_whole(
        &self,
        space: &mut SpaceGuard<'_>,
        request: &UnmapHeader,
        range: IovaRange,
    ) -> Result<(), Cause> {
        self.settle(space, range);
        if self.model == Model::V1 || request.all() {
            return Ok(());
        }
        check_whole(space, range)
    }

    /// Unmaps busy mappings and removes them, after telling what was dirty.
    fn remove(
        &self,
        batch: &Batch,
        range: IovaRange,
        bitmap: Option<&BitmapArg>,
        topology: &Topology,
    ) -> Result<(), Cause> {
        if let Some(bitmap) = bitmap {
            let reported = batch.iter().try_for_each(|mapping| {
                let state = &mut mapping.state.lock();
                mapping.report_last_dirty(state, range.first(), bitmap, topology)
            });
            if let Err(cause) = reported {
                self.put_back(batch);
                return Err(cause);
            }
        }

        topology.iommu.unmap(batch.pages, |unmapper| {
            for mapping in batch.iter() {
                mapping.untranslate(&mut mapping.state.lock(), unmapper);
            }
        });
        for mapping in batch.iter() {
            let mut state = mapping.state.lock();
            state.uncharge();
            state.dirty = None;
        }

        let mut space = self.space.lock();
        for mapping in batch.iter() {
            space.remove(mapping.iova());
        }
        self.unlock_settled(space);
        Ok(())
    }

    /// Leaves the mappings of a batch as they were.
    fn put_back(&self, batch: &Batch) {
        let mut space = self.space.lock();
        for mapping in batch.iter() {
            mapping.state.lock().live = true;
            space.settle(mapping.iova());
        }
        self.unlock_settled(space);
    }

    /// Makes the user addresses of all mappings in the range invalid, or of none.
    fn invalidate_vaddrs(&self, request: &UnmapHeader) -> Result<u64, Cause> {
        let topology = self.topology.read();
        if topology.has_emulated() {
            return Err(Cause::Emulated);
        }
        let range = request.range(topology.page_sizes())?;
        let mut space = self.open_space()?;
        self.settle_whole(&mut space, request, range)?;

        // v1 leaves alone a mapping that begins before the range.
        let starts_inside = |iova: IovaRange| {
            self.model == Model::V2 || request.all() || range.first() <= iova.first()
        };
        if space
            .first_in(range)
            .is_some_and(|entry| !starts_inside(entry.mapping.iova()))
        {
            return Ok(0);
        }
        if let Some(entry) = space.in_range(range).find(|entry| entry.vaddr_invalid()) {
            return Err(Cause::AlreadyInvalidated {
                mapped: entry.mapping.iova(),
            });
        }

        let mut size: u64 = 0;
        let mut rest = Some(range);
        while let Some(entry) = rest.and_then(|rest| space.first_in(rest)) {
            let iova = entry.mapping.iova();
            space.set_vaddr_invalid(iova, true);
            size = size.wrapping_add(iova.size().unwrap_or(0));
            rest = range.behind(iova);
        }
        Ok(size)
    }
}

/// How far a range has been dealt with, from low to high.
enum Progress {
    /// Not at all, or what was found does not hold any more.
    Start,
    /// Up to this rest.
    Rest(IovaRange),
}

/// Whether the range has whole mappings only.
pub(crate) fn check_whole(space: &Space, range: IovaRange) -> Result<(), Cause> {
    let at = |edge| space.first_mapped(IovaRange::new(edge, edge)?);
    let first = at(range.first());
    let last = match first {
        // As often as not it is one mapping that is unmapped.
        Some(first) if first.contains_addr(range.last()) => None,
        _ => at(range.last()),
    };
    let cut = |mapped: &IovaRange| !range.contains(*mapped);
    match first.filter(cut).or(last.filter(cut)) {
        Some(mapped) => Err(Cause::Bisects {
            asked: range,
            mapped,
        }),
        None => Ok(()),
    }
}
