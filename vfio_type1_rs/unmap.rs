// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_UNMAP_DMA`.

use crate::{
    container::{
        Container,
        SpaceGuard, //
    },
    mapping::Mapping,
    refusal::Cause,
    space::Space,
    topology::Topology, //
};
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

/// What to do with the next mapping of a range that is unmapped.
enum Step {
    /// There is none.
    Done,
    /// It is marked busy: unmap it.
    Remove(Arc<Mapping>),
    /// Drivers have pages of it pinned.
    Notify(Arc<Mapping>),
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

        // As in C the sum wraps: without an IOMMU mappings can fill all 64 bits of addresses.
        let mut unmapped: u64 = 0;
        let mut pinned: Option<(Arc<Mapping>, u32)> = None;
        let mut progress = Progress::Start;
        loop {
            let topology = self.topology.read();
            let range = request.range(topology.page_sizes())?;
            match self.next_to_unmap(request, bitmap, range, &mut progress, &topology)? {
                Step::Done => return Ok(unmapped),
                Step::Remove(mapping) => {
                    self.remove(&mapping, range, bitmap, &topology)?;
                    unmapped = unmapped.wrapping_add(mapping.size());
                    progress = Progress::behind(mapping.iova(), range);
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

    fn next_to_unmap(
        &self,
        request: &UnmapHeader,
        bitmap: Option<&BitmapArg>,
        range: IovaRange,
        progress: &mut Progress,
        topology: &Topology,
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
            Progress::End => return Ok(Step::Done),
        };

        let mapping = loop {
            let Some(entry) = space.first_in(rest) else {
                return Ok(Step::Done);
            };
            let mapping = entry.mapping.clone();
            if !entry.busy {
                break mapping;
            }
            self.settle(&mut space, mapping.iova());
        };
        if self.model == Model::V1 && mapping.iova().first() < range.first() {
            return Ok(Step::Done);
        }

        let mut state = mapping.state.lock();
        if !state.pins.is_empty() {
            drop(state);
            return Ok(Step::Notify(mapping));
        }
        state.live = false;
        drop(state);
        space.set_busy(mapping.iova().first(), true);
        Ok(Step::Remove(mapping))
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

    /// Unmaps a busy mapping and removes it, after telling what was dirty.
    fn remove(
        &self,
        mapping: &Mapping,
        range: IovaRange,
        bitmap: Option<&BitmapArg>,
        topology: &Topology,
    ) -> Result<(), Cause> {
        let first = mapping.iova().first();
        let mut state = mapping.state.lock();
        if let Some(bitmap) = bitmap {
            if let Err(cause) =
                mapping.report_last_dirty(&mut state, range.first(), bitmap, topology)
            {
                state.live = true;
                drop(state);
                self.space.lock().set_busy(first, false);
                self.notify_settled();
                return Err(cause);
            }
        }
        mapping.retire(&mut state, topology);
        drop(state);

        let entry = self.space.lock().remove(first);
        self.notify_settled();
        drop(entry);
        Ok(())
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
            space.set_vaddr_invalid(iova.first(), true);
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
    /// Completely.
    End,
}

impl Progress {
    fn behind(done: IovaRange, range: IovaRange) -> Self {
        range.behind(done).map_or(Self::End, Self::Rest)
    }
}

/// Whether the range has whole mappings only.
pub(crate) fn check_whole(space: &Space, range: IovaRange) -> Result<(), Cause> {
    for edge in [range.first(), range.last()] {
        if let Some(entry) = space.at(edge) {
            let mapped = entry.mapping.iova();
            if !range.contains(mapped) {
                return Err(Cause::Bisects {
                    asked: range,
                    mapped,
                });
            }
        }
    }
    Ok(())
}
