// SPDX-License-Identifier: GPL-2.0

//! Devices whose drivers pin pages through VFIO.
//!
//! C header: [`include/linux/vfio.h`](srctree/include/linux/vfio.h).

use iova_space::IovaRange;
use kernel::{
    bindings,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    },
    types::Opaque, //
};

/// A list of `struct vfio_device`, linked through the devices so that adding one cannot fail.
///
/// # Invariants
///
/// An initialised list whose entries are devices that are valid until they are removed.
#[pin_data]
struct List {
    #[pin]
    head: Opaque<bindings::list_head>,
}

// SAFETY: The list may be used from any thread, one at a time.
unsafe impl Send for List {}

impl List {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes and pinned.
            head <- Opaque::ffi_init(|slot| unsafe {
                vrs_bindings::vrs_vfio_device_list_init(slot)
            }),
        })
    }
}

/// The devices of a container whose drivers pin pages, and so must hear of unmapping.
///
/// Lock order: the inner mutex comes before all locks of the container, because a driver that hears
/// of unmapping calls back to unpin.
#[pin_data]
pub struct Devices {
    #[pin]
    list: Mutex<List>,
    count: Atomic<usize>,
}

impl Devices {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(List::new(), "vfio::Devices::list"),
            count: Atomic::new(0),
        })
    }

    /// Whether no device would hear.
    pub fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    /// Asks all drivers to unpin what they have in `range`.
    ///
    /// # Context
    ///
    /// May sleep. The drivers call [`Container::unpin_pages`](crate::Container::unpin_pages), so
    /// the caller must not hold a lock that it takes.
    pub fn notify_unmap(&self, range: IovaRange) {
        let list = self.list.lock();
        let size = range.size().unwrap_or(u64::MAX);
        // SAFETY: By the type invariant of the list, and it is locked.
        unsafe { vrs_bindings::vrs_vfio_devices_unmap(list.head.get(), range.first(), size) };
    }

    /// # Safety
    ///
    /// `device` is valid until it is removed, and is on no list.
    pub(crate) unsafe fn add(&self, device: *mut vrs_bindings::vfio_device) {
        // SAFETY: The device is valid.
        if !unsafe { vrs_bindings::vrs_vfio_device_wants_unmap(device) } {
            return;
        }
        let list = self.list.lock();
        // SAFETY: By the requirement above, and the list is locked.
        unsafe { vrs_bindings::vrs_vfio_device_list_add(list.head.get(), device) };
        self.count.fetch_add(1, Relaxed);
    }

    /// # Safety
    ///
    /// `device` was added and not yet removed.
    pub(crate) unsafe fn remove(&self, device: *mut vrs_bindings::vfio_device) {
        // SAFETY: The device is valid.
        if !unsafe { vrs_bindings::vrs_vfio_device_wants_unmap(device) } {
            return;
        }
        let _list = self.list.lock();
        // SAFETY: By the requirement above, and the list is locked.
        unsafe { vrs_bindings::vrs_vfio_device_list_del(device) };
        self.count.fetch_sub(1, Relaxed);
    }
}
