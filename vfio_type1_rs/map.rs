// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_MAP_DMA`.

use crate::{
    container::{
        Container,
        SpaceGuard, //
    },
    dirty::DirtyLog,
    mapping::{
        Mapping,
        State, //
    },
    refusal::Cause,
    space::Space,
    topology::Topology, //
};
use iommu::Access;
use iova_space::IovaRange;
use kernel::{
    mm::MmWithUser,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef, //
};
use mm::{
    Filled,
    Owner,
    PinnedRun,
    Pinner, //
};
use pin_plan::Budget;
use vfio_uapi::MapRequest;

impl Container {
    pub(crate) fn map(&self, request: &MapRequest) -> Result<(), Cause> {
        let topology = self.topology.read();
        request.check_alignment(topology.page_sizes())?;

        let iova = request.iova();
        let mut space = self.open_space()?;
        self.settle(&mut space, iova);

        let &MapRequest::Map { vaddr, prot, .. } = request else {
            return self.update_vaddr(&mut space, iova, request.vaddr());
        };
        self.check_free(&space, &topology, iova)?;

        let access = Access {
            read: prot.read,
            write: prot.write,
        };
        let mapping = Mapping::new(iova, vaddr, access, Owner::current()?)?;
        space.insert(mapping.clone())?;
        drop(space);

        let mut result = if topology.iommu.is_empty() {
            Ok(())
        } else {
            mapping.populate(&mut mapping.state.lock(), &topology)
        };

        let mut space = self.space.lock();
        if result.is_ok() && space.tracking {
            result = DirtyLog::new(&mapping).map(|log| mapping.state.lock().dirty = Some(log));
        }
        if result.is_err() {
            // The range stays taken until nothing is left of the mapping.
            drop(space);
            mapping.retire(&mut mapping.state.lock(), &topology);
            space = self.space.lock();
            space.remove(iova);
        } else {
            space.settle(iova);
        }
        self.unlock_settled(space);
        result
    }

    /// Whether a new mapping may be made, in the order in which the C driver asks.
    fn check_free(&self, space: &Space, topology: &Topology, iova: IovaRange) -> Result<(), Cause> {
        if let Some(mapped) = space.first_mapped(iova) {
            return Err(Cause::Overlap {
                asked: iova,
                mapped,
            });
        }
        if space.available() == 0 {
            return Err(Cause::EntryLimit {
                limit: self.entry_limit,
            });
        }
        if !topology.allows(iova) {
            return Err(Cause::Outside {
                asked: iova,
                nearest: topology.nearest(iova),
            });
        }
        Ok(())
    }

    /// Gives a mapping whose user address was invalidated a new one, maybe in another process.
    fn update_vaddr(
        &self,
        space: &mut SpaceGuard<'_>,
        iova: IovaRange,
        vaddr: u64,
    ) -> Result<(), Cause> {
        let entry = space
            .first_in(iova)
            .ok_or(Cause::NoMapping { asked: iova })?;
        if !entry.vaddr_invalid() || entry.mapping.iova() != iova {
            return Err(Cause::NotInvalidated {
                asked: iova,
                mapped: entry.mapping.iova(),
            });
        }

        let mapping = entry.mapping.clone();
        let mut state = mapping.state.lock();
        if !state.locked.owner().is_current_mm() {
            state.locked.transfer(Owner::current()?)?;
        }
        state.vaddr = vaddr;
        space.set_vaddr_invalid(iova, false);
        Ok(())
    }
}

impl Mapping {
    /// Pins the memory behind the mapping and maps it in all domains.
    ///
    /// On error part of it is mapped, which [`Mapping::unmap`] undoes.
    pub(crate) fn populate(&self, state: &mut State, topology: &Topology) -> Result<(), Cause> {
        let mapped = topology.iommu.begin(self.iova().first(), self.access());
        state.mapped = Some(mapped);
        let mut runs = Runs::new(self, state)?;

        while let Some(run) = runs.next(state)? {
            let Some(mapped) = &mut state.mapped else {
                return Err(Cause::Other(EINVAL));
            };
            let iova = self.iova().first() + mapped.size();
            topology
                .iommu
                .map_next(mapped, run, topology.page_sizes().bitmap())
                .map_err(|error| Cause::Iommu { iova, error })?;
        }
        Ok(())
    }
}

/// The memory behind a mapping as runs of consecutive frames, pinned and accounted.
///
/// Pages are charged as they are pinned, a batch at a time; what is charged and not mapped in the
/// end is given back with the mapping.
struct Runs {
    mm: ARef<MmWithUser>,
    pinner: Pinner,
    /// What was found behind the end of the last run.
    spare: Option<PinnedRun>,
    /// User address and IOVA of the next page to pin, and how many there are.
    vaddr: u64,
    iova: u64,
    left: u64,
    /// Bytes found so far.
    done: u64,
    single: bool,
}

impl Runs {
    fn new(mapping: &Mapping, state: &State) -> Result<Self, Cause> {
        let single = vfio::disable_hugepages();
        let pages = mapping.pages();
        let batch = if single { 1 } else { pages };
        Ok(Self {
            mm: state.locked.owner().user_mm().ok_or(ENODEV)?,
            pinner: Pinner::new(mapping.access().write, batch)?,
            spare: None,
            vaddr: state.vaddr,
            iova: mapping.iova().first(),
            left: pages,
            done: 0,
            single,
        })
    }

    /// The next run, as long as memory is consecutive.
    fn next(&mut self, state: &mut State) -> Result<Option<PinnedRun>, Cause> {
        let mut run = self.spare.take();
        while !(self.single && run.is_some()) {
            let Some(piece) = self.piece(state)? else {
                break;
            };
            match &mut run {
                None => run = Some(piece),
                Some(run) => {
                    if let Err(piece) = run.extend(piece) {
                        self.spare = Some(piece);
                        break;
                    }
                }
            }
        }
        Ok(run)
    }

    /// Consecutive frames, pinning more memory if none are left.
    fn piece(&mut self, state: &mut State) -> Result<Option<PinnedRun>, Cause> {
        loop {
            if let Some(piece) = self.pinner.take_run() {
                if piece.is_reserved() {
                    // The zero page, which nobody has to pay for.
                    state.locked.uncharge(piece.pages());
                }
                return Ok(Some(piece));
            }
            if self.left == 0 {
                return Ok(None);
            }

            mm::cond_resched();
            let want = if self.single { 1 } else { self.left };
            let filled = self
                .pinner
                .fill(&self.mm, self.vaddr as usize, want)
                .map_err(|error| Cause::Pin {
                    vaddr: self.vaddr,
                    done: self.done,
                    error,
                })?;
            match filled {
                Filled::Frames(frames) => {
                    self.advance(frames.pages());
                    return Ok(Some(frames));
                }
                Filled::Pages(pages) => {
                    charge(state, pages - state.pinned_in(self.iova, pages).min(pages))?;
                    self.advance(pages);
                }
            }
        }
    }

    fn advance(&mut self, pages: u64) {
        let size = pages * PAGE_SIZE as u64;
        // Either may end with the last address there is.
        self.vaddr = self.vaddr.wrapping_add(size);
        self.iova = self.iova.wrapping_add(size);
        self.done += size;
        self.left -= pages;
    }
}

/// Charges pages, and tells the numbers if the limit does not allow it.
pub(crate) fn charge(state: &mut State, pages: u64) -> Result<(), Cause> {
    state.locked.charge(pages).map_err(|error| {
        let owner = state.locked.owner();
        let budget = Budget::from_bytes(owner.memlock_limit(), PAGE_SIZE.trailing_zeros());
        match budget.admits(owner.locked_pages(), pages) {
            Err(limit) if error == ENOMEM => Cause::Locked {
                limit,
                owner: owner.comm(),
            },
            _ => Cause::Other(error),
        }
    })
}
