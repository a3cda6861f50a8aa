// SPDX-License-Identifier: GPL-2.0

//! Registration with the container core, and the way from its callbacks to containers.

use crate::{
    Buffer,
    Container,
    Devices,
    GroupKind,
    PageArray, //
};
use core::{
    ptr::{
        self,
        NonNull, //
    },
    slice, //
};
use iommu::Group;
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    ffi::c_longlong,
    new_spinlock,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        SpinLock, //
    }, //
};
use vrs_bindings::{
    vfio_device,
    vfio_group_type,
    vfio_iommu_driver_ops, //
};

/// A container with what this crate keeps for it.
struct Served<T> {
    container: Arc<T>,
    devices: Arc<Devices>,
}

/// All open containers of a driver.
///
/// The core hands a container to the driver as a `void *` that it may still pass in after it had
/// the container released, because an ioctl on the container's file does not exclude the release by
/// another thread. So the pointer given out is a number, used once and never again, and each call
/// looks up what it stands for.
#[pin_data]
pub struct Registry<T: Container> {
    #[pin]
    open: SpinLock<RBTree<usize, Arc<Served<T>>>>,
    last_id: Atomic<usize>,
}

impl<T: Container> Registry<T> {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            open <- new_spinlock!(RBTree::new(), "vfio::Registry::open"),
            last_id: Atomic::new(0),
        })
    }

    /// Number of containers opened since the driver was loaded.
    pub fn served(&self) -> usize {
        self.last_id.load(Relaxed)
    }

    /// Calls `f` with each open container and its number, oldest first, until it returns an error.
    pub fn for_each<E>(&self, mut f: impl FnMut(usize, &T) -> Result<(), E>) -> Result<(), E> {
        let mut next = 1;
        loop {
            let (id, served) = {
                let open = self.open.lock();
                let Some(cursor) = open.cursor_lower_bound(&next) else {
                    return Ok(());
                };
                let (&id, served) = cursor.current();
                (id, served.clone())
            };
            f(id, &served.container)?;
            next = id + 1;
        }
    }

    fn get(&self, id: usize) -> Option<Arc<Served<T>>> {
        self.open.lock().get(&id).cloned()
    }

    fn insert(&self, container: Arc<T>, devices: Arc<Devices>) -> Result<usize> {
        let served = Arc::new(Served { container, devices }, GFP_KERNEL)?;
        let id = self.last_id.fetch_add(1, Relaxed) + 1;
        let node = RBTreeNode::new(id, served, GFP_KERNEL)?;
        self.open.lock().insert(node);
        Ok(id)
    }

    fn remove(&self, id: usize) -> Option<Arc<Served<T>>> {
        let node = self.open.lock().remove_node(&id);
        node.map(|node| node.to_key_value().1)
    }
}

/// The place where a driver's callbacks find its containers; one `static` per driver.
///
/// # Invariants
///
/// Null, or a registry that outlives the registration with the core.
pub struct Slot<T: Container>(Atomic<*const Registry<T>>);

impl<T: Container> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Container> Slot<T> {
    /// Empty, until the driver is registered.
    pub const fn new() -> Self {
        Self(Atomic::new(ptr::null()))
    }

    fn registry(&self) -> Option<&Registry<T>> {
        // SAFETY: By the type invariant. The core does not call back once the driver is
        // unregistered, which happens before the slot is cleared.
        unsafe { self.0.load(Acquire).as_ref() }
    }
}

/// A driver registered with the container core, until dropped.
///
/// The core pins the module while a container is open, so the drop runs with none.
pub struct Registration<T: Container> {
    ops: KBox<vfio_iommu_driver_ops>,
    registry: Arc<Registry<T>>,
}

// SAFETY: The function table is not changed while registered, and the core locks its list.
unsafe impl<T: Container> Send for Registration<T> {}
// SAFETY: As above; there are no methods that change anything.
unsafe impl<T: Container> Sync for Registration<T> {}

impl<T: Container> Registration<T> {
    /// Registers `T` on behalf of `module`.
    ///
    /// # Errors
    ///
    /// `EBUSY` if `T` is registered already, `ENOMEM`.
    pub fn new(module: &'static ThisModule) -> Result<Self> {
        let registry = Arc::pin_init(Registry::new(), GFP_KERNEL)?;
        let ops = KBox::new(Callbacks::<T>::table(module), GFP_KERNEL)?;

        T::slot()
            .0
            .cmpxchg(ptr::null(), &*registry, Release)
            .map_err(|_| EBUSY)?;
        // INVARIANT: The slot's registry is kept by `this`, which unregisters before it goes.
        // SAFETY: The table is on the heap and stays until it is unregistered.
        let ret = to_result(unsafe { vrs_bindings::vfio_register_iommu_driver(&*ops) });
        if let Err(error) = ret {
            T::slot().0.store(ptr::null(), Release);
            return Err(error);
        }
        Ok(Self { ops, registry })
    }

    /// The driver's containers.
    pub fn registry(&self) -> &Arc<Registry<T>> {
        &self.registry
    }
}

impl<T: Container> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`.
        unsafe { vrs_bindings::vfio_unregister_iommu_driver(&*self.ops) };
        T::slot().0.store(ptr::null(), Release);
    }
}

/// The functions that C calls.
///
/// The core calls them between registration and unregistration, with `data` from `open`. A group is
/// one that the core holds; a device is registered when it is opened and unregistered when it is
/// closed; buffers and page arrays are those of the callers of `vfio_pin_pages()` and
/// `vfio_dma_rw()`.
struct Callbacks<T>(core::marker::PhantomData<T>);

impl<T: Container> Callbacks<T> {
    fn table(module: &'static ThisModule) -> vfio_iommu_driver_ops {
        vfio_iommu_driver_ops {
            name: T::NAME.as_char_ptr().cast_mut(),
            owner: module.as_ptr(),
            open: Some(Self::open),
            release: Some(Self::release),
            ioctl: Some(Self::ioctl),
            attach_group: Some(Self::attach_group),
            detach_group: Some(Self::detach_group),
            pin_pages: Some(Self::pin_pages),
            unpin_pages: Some(Self::unpin_pages),
            register_device: Some(Self::register_device),
            unregister_device: Some(Self::unregister_device),
            dma_rw: Some(Self::dma_rw),
            group_iommu_domain: Some(Self::group_iommu_domain),
        }
    }

    fn served(data: *mut c_void) -> Result<Arc<Served<T>>> {
        T::slot()
            .registry()
            .and_then(|registry| registry.get(data.addr()))
            .ok_or(EINVAL)
    }

    extern "C" fn open(kind: c_ulong) -> *mut c_void {
        let open = || {
            let registry = T::slot().registry().ok_or(ENODEV)?;
            let devices = Arc::pin_init(Devices::new(), GFP_KERNEL)?;
            let container = T::open(kind, devices.clone())?;
            registry.insert(container, devices)
        };
        match open() {
            Ok(id) => ptr::without_provenance_mut(id),
            Err(error) => error.to_ptr(),
        }
    }

    extern "C" fn release(data: *mut c_void) {
        let removed = T::slot()
            .registry()
            .and_then(|registry| registry.remove(data.addr()));
        if let Some(served) = removed {
            served.container.close();
        }
    }

    extern "C" fn ioctl(data: *mut c_void, cmd: c_uint, arg: c_ulong) -> c_long {
        // Asked without a container before one is opened.
        const CHECK_EXTENSION: u32 = kernel::ioctl::_IO(b';' as u32, 101);

        let served = if data.is_null() {
            None
        } else {
            match Self::served(data) {
                Ok(served) => Some(served),
                Err(error) => return error.to_errno() as c_long,
            }
        };
        let container = served.as_ref().map(|served| &*served.container);
        match (cmd, container) {
            (CHECK_EXTENSION, container) => T::check_extension(container, arg),
            (cmd, Some(container)) => match container.ioctl(cmd, arg) {
                Ok(value) => value,
                Err(error) => error.to_errno() as c_long,
            },
            (_, None) => ENOTTY.to_errno() as c_long,
        }
    }

    /// # Safety
    ///
    /// `group` is valid during the call.
    unsafe extern "C" fn attach_group(
        data: *mut c_void,
        group: *mut bindings::iommu_group,
        kind: vfio_group_type,
    ) -> c_int {
        from_result(|| {
            let kind = match kind {
                vfio_group_type::VFIO_IOMMU => GroupKind::Iommu,
                vfio_group_type::VFIO_EMULATED_IOMMU => GroupKind::Emulated,
                _ => GroupKind::NoIommu,
            };
            // SAFETY: By the requirement of this function.
            let group = unsafe { Group::from_raw(group) };
            Self::served(data)?.container.attach_group(group, kind)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `group` is valid during the call.
    unsafe extern "C" fn detach_group(data: *mut c_void, group: *mut bindings::iommu_group) {
        if let Ok(served) = Self::served(data) {
            // SAFETY: By the requirement of this function.
            served
                .container
                .detach_group(unsafe { Group::from_raw(group) });
        }
    }

    /// # Safety
    ///
    /// `group` is valid during the call; `pages` is null or has room for `npage` pointers.
    unsafe extern "C" fn pin_pages(
        data: *mut c_void,
        group: *mut bindings::iommu_group,
        iova: bindings::dma_addr_t,
        npage: c_int,
        prot: c_int,
        pages: *mut *mut bindings::page,
    ) -> c_int {
        from_result(|| {
            if pages.is_null() {
                return Err(EINVAL);
            }
            // SAFETY: By the requirement of this function.
            let mut pages = unsafe { PageArray::from_raw(pages, npage) };
            // SAFETY: By the requirement of this function.
            let group = unsafe { Group::from_raw(group) };
            Self::served(data)?
                .container
                .pin_pages(group, iova, prot, &mut pages)?;
            Ok(npage)
        })
    }

    extern "C" fn unpin_pages(data: *mut c_void, iova: bindings::dma_addr_t, npage: c_int) {
        if let Ok(served) = Self::served(data) {
            served.container.unpin_pages(iova, npage);
        }
    }

    /// # Safety
    ///
    /// `device` is valid, and stays so until it is unregistered; it is on no list.
    unsafe extern "C" fn register_device(data: *mut c_void, device: *mut vfio_device) {
        if let Ok(served) = Self::served(data) {
            // SAFETY: By the requirement of this function.
            unsafe { served.devices.add(device) };
        }
    }

    /// # Safety
    ///
    /// `device` was registered with this container and has not been unregistered.
    unsafe extern "C" fn unregister_device(data: *mut c_void, device: *mut vfio_device) {
        if let Ok(served) = Self::served(data) {
            // SAFETY: By the requirement of this function.
            unsafe { served.devices.remove(device) };
        }
    }

    /// # Safety
    ///
    /// `buffer` is null or valid for `count` bytes, for reading if `write`, else for writing.
    unsafe extern "C" fn dma_rw(
        data: *mut c_void,
        iova: bindings::dma_addr_t,
        buffer: *mut c_void,
        count: usize,
        write: bool,
    ) -> c_int {
        from_result(|| {
            let Some(buffer) = NonNull::new(buffer.cast::<u8>()) else {
                return Err(EINVAL);
            };
            let buffer = if write {
                // SAFETY: By the requirement of this function.
                Buffer::Write(unsafe { slice::from_raw_parts(buffer.as_ptr(), count) })
            } else {
                // SAFETY: As above, to be written to, by nobody else meanwhile.
                Buffer::Read(unsafe { slice::from_raw_parts_mut(buffer.as_ptr(), count) })
            };
            Self::served(data)?.container.dma_rw(iova, buffer)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `group` is null or valid during the call.
    unsafe extern "C" fn group_iommu_domain(
        data: *mut c_void,
        group: *mut bindings::iommu_group,
    ) -> *mut bindings::iommu_domain {
        if group.is_null() {
            return EINVAL.to_ptr();
        }
        match Self::served(data) {
            Ok(served) => {
                // SAFETY: By the requirement of this function.
                let group = unsafe { Group::from_raw(group) };
                served.container.with_domain_of(group, |domain| {
                    domain.map_or_else(|| ENODEV.to_ptr(), |domain| domain.as_raw())
                })
            }
            Err(error) => error.to_ptr(),
        }
    }
}

// The core passes `long` and `size_t` where Rust has `isize` and `usize`.
const _: () = assert!(size_of::<c_longlong>() == size_of::<isize>());
