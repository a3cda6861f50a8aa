// SPDX-License-Identifier: GPL-2.0

//! One mapping: a range of IOVAs backed by the memory of a process.

use crate::{
    dirty::DirtyLog,
    refusal::Shown,
    topology::Topology, //
};
use iommu::{
    Access,
    Mapped,
    Unmapper, //
};
use iova_space::IovaRange;
use kernel::{
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    rbtree::RBTree,
    sync::{
        Arc,
        Mutex, //
    }, //
};
use mm::{
    LockedVm,
    Owner,
    PinnedRun, //
};

/// What `VFIO_IOMMU_MAP_DMA` made.
#[pin_data]
pub(crate) struct Mapping {
    iova: IovaRange,
    access: Access,
    #[pin]
    pub(crate) state: Mutex<State>,
}

/// What changes about a mapping.
pub(crate) struct State {
    /// Not being unmapped. Whoever got hold of the mapping before asks this first.
    pub(crate) live: bool,
    pub(crate) vaddr: u64,
    /// The pages charged to the owner, which are the ones pinned.
    pub(crate) locked: LockedVm,
    /// The translation, if the container has an IOMMU.
    pub(crate) mapped: Option<Mapped>,
    /// Pages pinned for drivers, by IOVA.
    pub(crate) pins: RBTree<u64, ExternalPin>,
    /// The pages written to, while that is tracked.
    pub(crate) dirty: Option<DirtyLog>,
}

/// A page pinned for drivers, as often as they asked.
pub(crate) struct ExternalPin {
    pub(crate) page: PinnedRun,
    pub(crate) users: u64,
}

impl Mapping {
    pub(crate) fn new(
        iova: IovaRange,
        vaddr: u64,
        access: Access,
        owner: Owner,
    ) -> Result<Arc<Self>> {
        let init = pin_init!(Self {
            iova,
            access,
            state <- new_mutex!(
                State {
                    live: true,
                    vaddr,
                    locked: LockedVm::new(owner),
                    mapped: None,
                    pins: RBTree::new(),
                    dirty: None,
                },
                "vfio_type1_rs::Mapping::state"
            ),
        });
        Arc::pin_init(init, GFP_KERNEL_ACCOUNT)
    }

    pub(crate) fn iova(&self) -> IovaRange {
        self.iova
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.iova.size().unwrap_or(u64::MAX)
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.iova.pages(PAGE_SIZE.trailing_zeros())
    }

    /// Takes the mapping out of use: nobody who still has it finds anything in it.
    pub(crate) fn retire(&self, state: &mut State, topology: &Topology) {
        state.live = false;
        self.unmap(state, topology);
        state.dirty = None;
    }

    /// Removes the translation and unpins what it pinned; pages that drivers pin stay, and stay
    /// charged.
    pub(crate) fn unmap(&self, state: &mut State, topology: &Topology) {
        topology
            .iommu
            .unmap(self.pages(), |unmapper| self.untranslate(state, unmapper));
        state.uncharge();
    }

    /// Removes the translation. What it pinned is unpinned some time before the unmapper is gone,
    /// and to be uncharged after that.
    pub(crate) fn untranslate(&self, state: &mut State, unmapper: &mut Unmapper<'_, '_>) {
        let Some(mapped) = state.mapped.take() else {
            return;
        };
        let pinned = mapped.pinned();
        let unmapped = unmapper.unmap(mapped);
        if unmapped.stuck != 0 || unmapped.pages != pinned {
            pr_err!(
                "mapping {}: {} of {} pages unpinned, the IOMMU keeps {} bytes\n",
                Shown(self.iova),
                unmapped.pages,
                pinned,
                unmapped.stuck
            );
        }
    }
}

impl State {
    /// Gives back the charge for all pages that drivers do not pin.
    pub(crate) fn uncharge(&mut self) {
        let kept = self.pinned_for_drivers();
        self.locked
            .uncharge(self.locked.pages().saturating_sub(kept));
    }

    /// Pages that drivers pin and that count as locked.
    pub(crate) fn pinned_for_drivers(&self) -> u64 {
        let counted = self.pins.values().filter(|pin| !pin.page.is_reserved());
        counted.count() as u64
    }

    /// How many pages of `[iova, iova + pages)` drivers pin already.
    pub(crate) fn pinned_in(&self, iova: u64, pages: u64) -> u64 {
        if self.pins.is_empty() {
            return 0;
        }
        let size = pages.saturating_mul(PAGE_SIZE as u64);
        let Ok(range) = IovaRange::from_len(iova, size) else {
            return 0;
        };
        let inside = self.pins.keys().filter(|&&iova| range.contains_addr(iova));
        inside.count() as u64
    }
}
