// SPDX-License-Identifier: GPL-2.0

//! As much of `/dev/iommu` as is needed to see devices work without type1.

use std::fs::{
    File,
    OpenOptions, //
};
use std::mem;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::request_code_none;
use vfio_bindings::bindings::vfio;

use crate::check::{
    missing_or_fail,
    Sys,
    SysError,
    Verdict, //
};
use crate::vfio::{
    argsz,
    Device, //
};

/// Commands, by their numbers.
const IOAS_ALLOC: u8 = 0x81;
const IOAS_MAP: u8 = 0x85;
const IOAS_UNMAP: u8 = 0x86;
const HWPT_ALLOC: u8 = 0x89;
const HWPT_SET_DIRTY_TRACKING: u8 = 0x8b;
const HWPT_GET_DIRTY_BITMAP: u8 = 0x8c;

/// Fixed address, writable, readable.
const MAP_FLAGS: u32 = 7;
/// Dirty tracking.
const ALLOC_FLAGS: u32 = 2;
/// Leave the bits as they are.
pub const NO_CLEAR: u32 = 1;

const BIND_IOMMUFD: u8 = 18;
const ATTACH_IOMMUFD_PT: u8 = 19;

/// Object of an iommufd context.
pub type Id = u32;

/// `struct iommu_ioas_alloc`
#[repr(C)]
#[derive(Default)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    id: u32,
}

/// `struct iommu_ioas_map`
#[repr(C)]
#[derive(Default)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas: u32,
    reserved: u32,
    vaddr: u64,
    len: u64,
    iova: u64,
}

/// `struct iommu_ioas_unmap`
#[repr(C)]
#[derive(Default)]
struct IoasUnmap {
    size: u32,
    ioas: u32,
    iova: u64,
    len: u64,
}

/// `struct iommu_hwpt_alloc`
#[repr(C)]
#[derive(Default)]
struct HwptAlloc {
    size: u32,
    flags: u32,
    device: u32,
    ioas: u32,
    id: u32,
    reserved: u32,
    data_type: u32,
    data_len: u32,
    data: u64,
    fault: u32,
    reserved2: u32,
}

/// `struct iommu_hwpt_set_dirty_tracking`
#[repr(C)]
#[derive(Default)]
struct SetDirty {
    size: u32,
    flags: u32,
    hwpt: u32,
    reserved: u32,
}

/// `struct iommu_hwpt_get_dirty_bitmap`
#[repr(C)]
#[derive(Default)]
struct GetDirty {
    size: u32,
    hwpt: u32,
    flags: u32,
    reserved: u32,
    iova: u64,
    len: u64,
    page: u64,
    data: u64,
}

/// An open `/dev/iommu`.
#[derive(Debug)]
pub struct Iommufd(File);

impl Iommufd {
    /// Opens it.
    #[track_caller]
    pub fn open() -> Verdict<Self> {
        let path = "/dev/iommu";
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map(Iommufd).map_err(|e| missing_or_fail(path, e))
    }

    /// Issues an ioctl whose argument is a structure.
    fn call<T>(&self, number: u8, arg: &mut T, call: &str) -> Sys {
        let code = request_code_none!(b';', number) as libc::Ioctl;
        // SAFETY: The kernel reads and writes `T`, and what `T` points to is the caller's.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), code, &raw mut *arg) };
        Errno::result(ret).map(drop).map_err(|errno| SysError {
            call: call.into(),
            errno,
        })
    }

    /// Gives a device to this context, attached to nothing.
    pub fn bind(&self, device: &Device) -> Sys<Id> {
        let mut arg = vfio::vfio_device_bind_iommufd {
            argsz: argsz::<vfio::vfio_device_bind_iommufd>(),
            iommufd: self.0.as_raw_fd(),
            ..Default::default()
        };
        let number = vfio::VFIO_BASE as u8 + BIND_IOMMUFD;
        let code = request_code_none!(vfio::VFIO_TYPE, number) as libc::Ioctl;
        // SAFETY: The kernel reads and writes the structure, which points to nothing.
        unsafe { device.call(code, &mut arg, "bind") }?;
        Ok(arg.out_devid)
    }

    /// A new address space.
    pub fn ioas(&self) -> Sys<Id> {
        let mut arg = IoasAlloc {
            size: argsz::<IoasAlloc>(),
            ..Default::default()
        };
        self.call(IOAS_ALLOC, &mut arg, "ioas_alloc")?;
        Ok(arg.id)
    }

    /// Maps memory of this process, to be read and written.
    pub fn map(&self, ioas: Id, iova: u64, vaddr: u64, len: u64) -> Sys {
        let mut arg = IoasMap {
            size: argsz::<IoasMap>(),
            flags: MAP_FLAGS,
            ioas,
            vaddr,
            len,
            iova,
            ..Default::default()
        };
        self.call(IOAS_MAP, &mut arg, "ioas_map")
    }

    /// Unmaps.
    pub fn unmap(&self, ioas: Id, iova: u64, len: u64) -> Sys {
        let mut arg = IoasUnmap {
            size: argsz::<IoasUnmap>(),
            ioas,
            iova,
            len,
        };
        self.call(IOAS_UNMAP, &mut arg, "ioas_unmap")
    }

    /// A page table for a device that can track what is written.
    pub fn tracking_table(&self, device: Id, ioas: Id) -> Sys<Id> {
        let mut arg = HwptAlloc {
            size: argsz::<HwptAlloc>(),
            flags: ALLOC_FLAGS,
            device,
            ioas,
            ..Default::default()
        };
        self.call(HWPT_ALLOC, &mut arg, "hwpt_alloc")?;
        Ok(arg.id)
    }

    /// Has the IOMMU track what is written, or not.
    pub fn track(&self, hwpt: Id, on: bool) -> Sys {
        let mut arg = SetDirty {
            size: argsz::<SetDirty>(),
            flags: u32::from(on),
            hwpt,
            ..Default::default()
        };
        self.call(HWPT_SET_DIRTY_TRACKING, &mut arg, "set_dirty_tracking")
    }

    /// Sets the bits of pages that were written to.
    pub fn dirty(&self, hwpt: Id, flags: u32, iova: u64, page: u64, bits: &mut [u64]) -> Sys {
        let mut arg = GetDirty {
            size: argsz::<GetDirty>(),
            hwpt,
            flags,
            iova,
            len: mem::size_of_val(bits) as u64 * 8 * page,
            page,
            data: bits.as_mut_ptr().expose_provenance() as u64,
            ..Default::default()
        };
        self.call(HWPT_GET_DIRTY_BITMAP, &mut arg, "get_dirty_bitmap")
    }
}

/// Attaches a device to an address space or a page table.
pub fn attach(device: &Device, id: Id) -> Sys {
    let mut arg = vfio::vfio_device_attach_iommufd_pt {
        argsz: argsz::<vfio::vfio_device_attach_iommufd_pt>(),
        pt_id: id,
        ..Default::default()
    };
    let number = vfio::VFIO_BASE as u8 + ATTACH_IOMMUFD_PT;
    let code = request_code_none!(vfio::VFIO_TYPE, number) as libc::Ioctl;
    // SAFETY: As in `Iommufd::bind`.
    unsafe { device.call(code, &mut arg, "attach") }.map(drop)
}
