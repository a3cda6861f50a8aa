// SPDX-License-Identifier: GPL-2.0

//! What drivers of mediated devices do with user memory: they pin pages and copy data.

use crate::{
    container::Container,
    map::charge,
    mapping::{
        ExternalPin,
        Mapping,
        State, //
    },
    refusal::{
        Cause,
        Shown, //
    },
    topology::{
        Member,
        Topology, //
    }, //
};
use iommu::{
    Access,
    Group, //
};
use iova_space::IovaRange;
use kernel::{
    page::PAGE_SIZE,
    pr_err_once,
    pr_warn_once,
    prelude::*,
    rbtree::RBTreeNode,
    sync::Arc, //
};
use mm::{
    Filled,
    PinnedRun,
    Pinner,
    UserWindow, //
};
use vfio::{
    Buffer,
    PageArray, //
};
use vfio_uapi::{
    page_range_args,
    Model,
    Refusal, //
};

/// `IOMMU_READ` and `IOMMU_WRITE`.
const READ: i32 = 1;
const WRITE: i32 = 2;

impl Container {
    /// `vfio_pin_pages()`: all pages, or none and an error.
    pub(crate) fn pin_for_driver(
        &self,
        group: &Group,
        iova: u64,
        access: i32,
        pages: &mut PageArray<'_>,
    ) -> Result<(), Cause> {
        let topology = self.topology.read();
        self.model.require_v2()?;
        let range = page_range_args(iova, pages.count(), PAGE_SIZE as u64)?;
        if self.open_space()?.has_invalid_vaddr() {
            pr_warn_once!("vfio_pin_pages() while user addresses are invalid\n");
            return Err(Cause::Other(EBUSY));
        }
        if self.devices.is_empty() {
            return Err(Cause::Other(EINVAL));
        }

        let count = range.pages(PAGE_SIZE.trailing_zeros());
        for done in 0..count {
            let iova = range.first() + done * PAGE_SIZE as u64;
            let pinned = self.pin_one(&topology, iova, access, done as usize, pages);
            if let Err(cause) = pinned {
                for index in 0..=done {
                    pages.set(index as usize, None);
                }
                self.unpin_range(&topology, range.first(), done);
                return Err(cause);
            }
        }
        if let Some(member) = topology.member(group) {
            if !member.has_pinned_scope() {
                self.narrow_scope(&topology, member)?;
            }
        }
        Ok(())
    }

    /// From now on the group's devices write to pinned pages only. What they wrote to before, when
    /// every page counted as dirty, must still be reported.
    fn narrow_scope(&self, topology: &Topology, member: &Member) -> Result<(), Cause> {
        let mut space = self.open_space()?;
        self.settle(&mut space, IovaRange::ALL);
        if space.tracking && !topology.reach(member).tracked {
            space.mark_all_dirty();
        }
        member.set_pinned_scope();
        Ok(())
    }

    fn pin_one(
        &self,
        topology: &Topology,
        iova: u64,
        access: i32,
        index: usize,
        pages: &mut PageArray<'_>,
    ) -> Result<(), Cause> {
        let mapping = self.mapping_at(iova).ok_or(Cause::Other(EINVAL))?;
        let Access { read, write } = mapping.access();
        let allowed = if read { READ } else { 0 } | if write { WRITE } else { 0 };
        if access & !allowed != 0 {
            return Err(Cause::Other(EPERM));
        }

        let mut state = mapping.state.lock();
        if !state.live {
            return Err(Cause::Other(EINVAL));
        }
        if let Some(pin) = state.pins.get_mut(&iova) {
            pin.users = pin.users.checked_add(1).ok_or(Cause::Other(EOVERFLOW))?;
            pages.set(index, Some(&pin.page));
            return Ok(());
        }

        let page = mapping.pin_page(&state, iova)?;
        if !pages.set(index, Some(&page)) {
            return Err(Cause::Other(EINVAL));
        }
        let counts = topology.iommu.is_empty() && !page.is_reserved();
        let pin = ExternalPin { page, users: 1 };
        let node = RBTreeNode::new(iova, pin, GFP_KERNEL)?;
        if counts {
            charge(&mut state, 1)?;
        }
        state.pins.insert(node);
        if let Some(log) = &mut state.dirty {
            log.mark(iova - mapping.iova().first(), PAGE_SIZE as u64);
        }
        Ok(())
    }

    /// `vfio_unpin_pages()`.
    pub(crate) fn unpin_for_driver(&self, iova: u64, count: i32) {
        let topology = self.topology.read();
        match page_range_args(iova, count, PAGE_SIZE as u64) {
            Ok(range) if self.model == Model::V2 => {
                let pages = range.pages(PAGE_SIZE.trailing_zeros());
                self.unpin_range(&topology, iova, pages);
            }
            Ok(_) => pr_err_once!("vfio_unpin_pages(): {}\n", Shown(Refusal::V1Container)),
            Err(refusal) => pr_err_once!("vfio_unpin_pages(): {}\n", Shown(refusal)),
        }
    }

    fn unpin_range(&self, topology: &Topology, first: u64, pages: u64) {
        for page in 0..pages {
            let iova = first + page * PAGE_SIZE as u64;
            let Some(mapping) = self.mapping_at(iova) else {
                pr_err_once!("vfio_unpin_pages(): nothing is mapped at {:#x}\n", iova);
                return;
            };
            mapping.state.lock().unpin(topology, iova);
        }
    }

    /// `vfio_dma_rw()`.
    pub(crate) fn copy_for_driver(&self, iova: u64, mut buffer: Buffer<'_>) -> Result {
        let _topology = self.topology.read();
        if self
            .open_space()
            .map_err(|cause| cause.errno())?
            .has_invalid_vaddr()
        {
            pr_warn_once!("vfio_dma_rw() while user addresses are invalid\n");
            return Err(EBUSY);
        }

        let mut done: usize = 0;
        while done < buffer.len() {
            // As in C, address 0 follows the last one.
            let at = iova.wrapping_add(done as u64);
            let mapping = self.mapping_at(at).ok_or(EINVAL)?;
            done += mapping.copy(at, &mut buffer, done)?;
        }
        Ok(())
    }

    /// The settled mapping at an address.
    fn mapping_at(&self, iova: u64) -> Option<Arc<Mapping>> {
        let mut space = self.open_space().ok()?;
        loop {
            let entry = space.at(iova)?;
            let mapping = entry.mapping.clone();
            if !entry.busy() {
                return Some(mapping);
            }
            self.settle(&mut space, mapping.iova());
        }
    }
}

impl Mapping {
    fn user_address(&self, state: &State, iova: u64) -> u64 {
        state.vaddr.wrapping_add(iova - self.iova().first())
    }

    fn pin_page(&self, state: &State, iova: u64) -> Result<PinnedRun, Cause> {
        let mm = state.locked.owner().user_mm().ok_or(ENODEV)?;
        let vaddr = self.user_address(state, iova);
        let mut pinner = Pinner::new(self.access().write, 1)?;
        let filled = pinner
            .fill(&mm, vaddr as usize, 1)
            .map_err(|error| Cause::Pin {
                vaddr,
                done: iova - self.iova().first(),
                error,
            })?;
        match filled {
            Filled::Pages(_) => pinner.take_run().ok_or(Cause::Other(EFAULT)),
            Filled::Frames(frames) => Ok(frames),
        }
    }

    /// Copies what of the buffer, from `done` on, lies in this mapping; the number of bytes.
    fn copy(&self, iova: u64, buffer: &mut Buffer<'_>, done: usize) -> Result<usize> {
        let access = self.access();
        let forbidden = match buffer {
            Buffer::Write(_) => !access.write || !access.read,
            Buffer::Read(_) => !access.read,
        };
        if forbidden {
            return Err(EPERM);
        }

        let mut state = self.state.lock();
        if !state.live {
            return Err(EINVAL);
        }
        let room = usize::try_from(self.iova().last() - iova).unwrap_or(usize::MAX);
        let size = (buffer.len() - done).min(room.saturating_add(1));
        let range = done..done + size;
        let vaddr = self.user_address(&state, iova) as usize;

        let window = UserWindow::open(state.locked.owner())?;
        match buffer {
            Buffer::Read(data) => window.read(vaddr, data.get_mut(range).ok_or(EINVAL)?)?,
            Buffer::Write(data) => window.write(vaddr, data.get(range).ok_or(EINVAL)?)?,
        }
        drop(window);

        if let (Buffer::Write(_), Some(log)) = (buffer, &mut state.dirty) {
            log.mark(iova - self.iova().first(), size as u64);
        }
        Ok(size)
    }
}

impl State {
    /// Takes back one use of a page by a driver.
    fn unpin(&mut self, topology: &Topology, iova: u64) {
        let Some(pin) = self.pins.get_mut(&iova) else {
            return;
        };
        pin.users -= 1;
        if pin.users != 0 {
            return;
        }
        if let Some(pin) = self.pins.remove(&iova) {
            if topology.iommu.is_empty() && !pin.page.is_reserved() {
                self.locked.uncharge(1);
            }
        }
    }
}
