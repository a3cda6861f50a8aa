// SPDX-License-Identifier: GPL-2.0

//! A container: what `VFIO_SET_IOMMU` makes of an open `/dev/vfio/vfio`.
//!
//! Locks are taken in this order:
//!
//! 1. `devices`: the list of devices that hear of unmapping.
//! 2. `topology`: groups and domains. For reading while mappings change, for writing while groups
//!    come and go, and while dirty tracking is switched.
//! 3. `space`: the mappings and the counters about them.
//! 4. `Mapping::state`: one mapping's pins and log; of two mappings never both.
//! 5. `mmap_lock` of the mapping process, taken by what pins, accounts and copies.
//!
//! Pinning and mapping is done without `space`: the mapping is marked busy, so that others wait on
//! `settled` when they meet it, and only they.

use crate::{
    refusal::Cause,
    space::Space,
    topology::Topology, //
};
use iommu::{
    Domain,
    Group, //
};
use iova_space::IovaRange;
use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc,
        CondVar,
        Mutex, //
    }, //
};
use mm::Comm;
use sync::{
    new_rwsem,
    RwSem, //
};
use vfio::{
    Buffer,
    Devices,
    GroupKind,
    PageArray,
    Slot, //
};
use vfio_uapi::Model;

/// A container served by this driver.
#[pin_data]
pub(crate) struct Container {
    pub(crate) model: Model,
    /// Mappings it may have.
    pub(crate) entry_limit: u32,
    /// Largest page in bytes of an IOMMU that tracks dirty pages.
    pub(crate) largest_tracked: u64,
    pub(crate) opener: Comm,
    pub(crate) devices: Arc<Devices>,
    #[pin]
    pub(crate) topology: RwSem<Topology>,
    #[pin]
    pub(crate) space: Mutex<Space>,
    #[pin]
    settled: CondVar,
}

/// The locked mappings of a container.
pub(crate) type SpaceGuard<'a> = Guard<'a, Space, MutexBackend>;

impl Container {
    fn new(model: Model, devices: Arc<Devices>) -> Result<Arc<Self>> {
        let limit = vfio::dma_entry_limit();
        let init = pin_init!(Self {
            model,
            entry_limit: limit,
            largest_tracked: match vfio::dirty_granule() as u64 {
                0 => u64::MAX,
                granule => granule,
            },
            opener: Comm::current(),
            devices,
            topology <- new_rwsem!(Topology::new(), "vfio_type1_rs::Container::topology"),
            space <- new_mutex!(Space::new(limit), "vfio_type1_rs::Container::space"),
            settled <- new_condvar!("vfio_type1_rs::Container::settled"),
        });
        Arc::pin_init(init, GFP_KERNEL_ACCOUNT)
    }

    /// Locks the mappings of a container that is still in use.
    pub(crate) fn open_space(&self) -> Result<SpaceGuard<'_>, Cause> {
        let space = self.space.lock();
        if space.closed {
            // What the core says of a container without a driver.
            return Err(Cause::Other(EINVAL));
        }
        Ok(space)
    }

    /// Waits until no mapping in `range` is busy. The lock is dropped meanwhile, so all that was
    /// known before is to be asked again.
    pub(crate) fn settle(&self, space: &mut SpaceGuard<'_>, range: IovaRange) {
        while space.any_busy(range) {
            space.waiting += 1;
            self.settled.wait(space);
            space.waiting -= 1;
        }
    }

    /// Unlocks, and lets those go on who wait for a mapping that is not busy any more, or is gone.
    pub(crate) fn unlock_settled(&self, space: SpaceGuard<'_>) {
        let waited_for = space.waiting != 0;
        drop(space);
        if waited_for {
            self.settled.notify_all();
        }
    }
}

static SLOT: Slot<Container> = Slot::new();

impl vfio::Container for Container {
    const NAME: &'static CStr = c"vfio-type1-rs";

    fn slot() -> &'static Slot<Self> {
        &SLOT
    }

    fn open(kind: usize, devices: Arc<Devices>) -> Result<Arc<Self>> {
        let model = Model::from_extension(kind as u64).ok_or(EINVAL)?;
        Self::new(model, devices)
    }

    fn close(&self) {
        self.detach_all();
    }

    fn check_extension(this: Option<&Self>, extension: usize) -> isize {
        crate::ioctl::check_extension(this, extension as u64)
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        crate::ioctl::dispatch(self, cmd, arg)
    }

    fn attach_group(&self, group: &Group, kind: GroupKind) -> Result {
        self.attach(group, kind).map_err(|cause| {
            cause.log("adding a group");
            cause.errno()
        })
    }

    fn detach_group(&self, group: &Group) {
        self.detach(group);
    }

    fn pin_pages(
        &self,
        group: &Group,
        iova: u64,
        access: i32,
        pages: &mut PageArray<'_>,
    ) -> Result {
        self.pin_for_driver(group, iova, access, pages)
            .map_err(|cause| {
                cause.log("vfio_pin_pages");
                cause.errno()
            })
    }

    fn unpin_pages(&self, iova: u64, count: i32) {
        self.unpin_for_driver(iova, count);
    }

    fn dma_rw(&self, iova: u64, buffer: Buffer<'_>) -> Result {
        self.copy_for_driver(iova, buffer)
    }

    fn with_domain_of<R>(&self, group: &Group, f: impl FnOnce(Option<&Domain>) -> R) -> R {
        f(self.topology.read().iommu.domain_of(group))
    }
}
