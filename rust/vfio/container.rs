// SPDX-License-Identifier: GPL-2.0

//! What a driver of VFIO containers implements.

use crate::{
    Devices,
    Slot, //
};
use iommu::{
    Domain,
    Group, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::Arc, //
};
use mm::PinnedRun;

/// How the devices of a group reach memory; C: `enum vfio_group_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupKind {
    /// Through an IOMMU.
    Iommu,
    /// Only through a driver that pins pages with `vfio_pin_pages()`.
    Emulated,
    /// Without any translation; never seen by a driver of this kind.
    NoIommu,
}

/// A container served by the driver.
///
/// All methods run in process context and may sleep. C: `struct vfio_iommu_driver_ops`.
pub trait Container: Send + Sync + Sized + 'static {
    /// The driver's name.
    const NAME: &'static CStr;

    /// Where the driver's registration is found.
    fn slot() -> &'static Slot<Self>;

    /// Opens a container of the kind a user asked for with `VFIO_SET_IOMMU`.
    fn open(kind: usize, devices: Arc<Devices>) -> Result<Arc<Self>>;

    /// The user is gone: detaches all groups and gives everything back.
    ///
    /// Calls that are still running on other threads may follow and must find an empty container.
    fn close(&self);

    /// `VFIO_CHECK_EXTENSION`, also before a container is opened.
    fn check_extension(this: Option<&Self>, extension: usize) -> isize;

    /// Any other ioctl on the container.
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize>;

    /// A group joins.
    fn attach_group(&self, group: &Group, kind: GroupKind) -> Result;

    /// A group leaves.
    fn detach_group(&self, group: &Group);

    /// Pins pages for a driver; how many were pinned, which is all of them.
    fn pin_pages(&self, group: &Group, iova: u64, access: i32, pages: &mut PageArray<'_>)
        -> Result;

    /// Unpins `count` pages.
    fn unpin_pages(&self, iova: u64, count: i32);

    /// Copies to or from a user's memory for a driver.
    fn dma_rw(&self, iova: u64, buffer: Buffer<'_>) -> Result;

    /// Calls `f` with the domain to which the group is attached.
    fn with_domain_of<R>(&self, group: &Group, f: impl FnOnce(Option<&Domain>) -> R) -> R;
}

/// Where a driver wants data from a user's memory, or has data for it.
pub enum Buffer<'a> {
    /// To be filled from the user's memory.
    Read(&'a mut [u8]),
    /// To be written to the user's memory.
    Write(&'a [u8]),
}

impl Buffer<'_> {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Read(data) => data.len(),
            Self::Write(data) => data.len(),
        }
    }

    /// Whether there is nothing to copy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a driver wants the pages that are pinned for it.
///
/// # Invariants
///
/// `count` is what the driver asked for; if positive, `pages` is writable for so many pointers.
pub struct PageArray<'a> {
    pages: *mut *mut bindings::page,
    count: i32,
    _owner: core::marker::PhantomData<&'a mut [*mut bindings::page]>,
}

impl PageArray<'_> {
    /// # Safety
    ///
    /// If `count` is positive, `pages` is writable for so many pointers while the result lives.
    pub(crate) unsafe fn from_raw(pages: *mut *mut bindings::page, count: i32) -> Self {
        // INVARIANT: By the requirement above.
        Self {
            pages,
            count,
            _owner: core::marker::PhantomData,
        }
    }

    /// Number of pages asked for, which may be nonsense.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// Stores the page of a run at an index, or clears the place; whether the index is within
    /// bounds and the run has a page.
    pub fn set(&mut self, index: usize, run: Option<&PinnedRun>) -> bool {
        let page = match run.map(PinnedRun::first_page) {
            Some(Some(page)) => page,
            Some(None) => return false,
            None => core::ptr::null_mut(),
        };
        if !usize::try_from(self.count).is_ok_and(|count| index < count) {
            return false;
        }
        // SAFETY: By the type invariant, as the index is below `count`.
        unsafe { *self.pages.add(index) = page };
        true
    }
}
