// SPDX-License-Identifier: GPL-2.0

//! The devices of vrs_emulated.ko, and containers with them.

use std::fs;
use std::os::fd::{
    AsRawFd,
    OwnedFd,
    RawFd, //
};
use std::path::{
    Path,
    PathBuf, //
};

use crate::check::{
    expect_eq,
    missing_or_fail,
    Stop,
    Sys,
    SysError,
    Verdict, //
};
use crate::env::{
    Env,
    Model, //
};
use crate::vfio::{
    Container,
    Device,
    Group, //
};
use nix::errno::Errno;
use nix::{
    request_code_none,
    request_code_read,
    request_code_readwrite,
    request_code_write, //
};

/// Name of the module and of its devices up to the dot.
const MODULE: &str = "vrs_emulated";

/// The kernel's `IOMMU_READ`.
pub const PIN_READ: u32 = 1;
/// The kernel's `IOMMU_WRITE`.
pub const PIN_WRITE: u32 = 2;
/// Both.
pub const PIN_RW: u32 = PIN_READ | PIN_WRITE;

/// Pages one call may pin.
pub const PIN_MAX: u32 = 512;

/// `struct vrs_emulated_pin`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct RawPin {
    /// First byte.
    pub iova: u64,
    /// Number of pages.
    pub npages: u32,
    /// `PIN_*`
    pub prot: u32,
    /// Page pointers left after an error.
    pub stale: u32,
    /// Nothing.
    pub reserved: u32,
}

/// `struct vrs_emulated_rw`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct RawRw {
    /// First byte.
    pub iova: u64,
    /// Address of the data.
    pub data: u64,
    /// Bytes.
    pub len: u32,
    /// `RW_*`
    pub flags: u32,
}

/// `struct vrs_emulated_fill`
#[repr(C)]
struct Fill {
    iova: u64,
    byte: u32,
    reserved: u32,
}

/// `struct vrs_emulated_counters`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Calls of dma_unmap since the module was loaded.
    pub unmaps: u64,
    /// Those that were ignored.
    pub refused: u64,
    /// Pages pinned now.
    pub pages: u64,
    /// How often all together.
    pub users: u64,
}

const MAGIC: u8 = 0xee;
const FILL: libc::Ioctl = request_code_write!(MAGIC, 3, size_of::<Fill>()) as libc::Ioctl;
const COUNTERS: libc::Ioctl = request_code_read!(MAGIC, 4, size_of::<Counters>()) as libc::Ioctl;
const STUBBORN: libc::Ioctl = request_code_none!(MAGIC, 5) as libc::Ioctl;

/// To user memory, not from it.
pub const RW_WRITE: u32 = 1 << 0;
/// By a kernel thread.
pub const RW_KTHREAD: u32 = 1 << 1;

/// Request numbers, for callers with arguments of their own.
pub mod code {
    use super::*;

    /// Takes a [`RawPin`].
    pub const PIN: libc::Ioctl =
        request_code_readwrite!(MAGIC, 0, size_of::<RawPin>()) as libc::Ioctl;
    /// Takes a [`RawPin`].
    pub const UNPIN: libc::Ioctl =
        request_code_write!(MAGIC, 1, size_of::<RawPin>()) as libc::Ioctl;
    /// Takes a [`RawRw`].
    pub const RW: libc::Ioctl = request_code_write!(MAGIC, 2, size_of::<RawRw>()) as libc::Ioctl;
}

/// Who copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The task that calls ioctl.
    Task,
    /// A kernel thread, which has no memory of its own.
    Kthread,
}

impl Via {
    /// Both of them.
    pub const BOTH: [Via; 2] = [Via::Task, Via::Kthread];

    fn flags(self) -> u32 {
        match self {
            Via::Task => 0,
            Via::Kthread => RW_KTHREAD,
        }
    }
}

/// Which device of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The first one.
    First,
    /// The second one.
    Second,
    /// It has no dma_unmap callback.
    Deaf,
}

impl Which {
    /// What VFIO_GROUP_GET_DEVICE_FD takes.
    pub fn name(self) -> String {
        let suffix = match self {
            Which::First => "0",
            Which::Second => "1",
            Which::Deaf => "deaf",
        };
        format!("{MODULE}.{suffix}")
    }

    /// The number of its group.
    #[track_caller]
    pub fn group(self) -> Verdict<u32> {
        let class = Path::new("/sys/class/vfio-dev");
        let entries = fs::read_dir(class).map_err(|e| missing_or_fail(class, e))?;
        for entry in entries {
            let device = entry?.path().join("device");
            // A device may go while the list is read.
            let Ok(target) = fs::canonicalize(&device) else {
                continue;
            };
            if target.file_name().is_some_and(|name| *name == *self.name()) {
                return group_of(&device);
            }
        }
        Err(Stop::skip(format_args!(
            "device {} (module {MODULE})",
            self.name()
        )))
    }
}

#[track_caller]
fn group_of(device: &Path) -> Verdict<u32> {
    let link: PathBuf = device.join("iommu_group");
    fs::read_link(&link)?
        .file_name()
        .and_then(|name| name.to_str()?.parse().ok())
        .ok_or_else(|| Stop::fail(format_args!("{}: no group number", link.display())))
}

/// An open device of the module.
#[derive(Debug)]
pub struct Emulated(Device);

impl Emulated {
    /// Opens the device of a group that is in a container.
    pub fn open(group: &Group, which: Which) -> Sys<Self> {
        group.device(&which.name()).map(Emulated)
    }

    /// The descriptor, which stays owned here.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.file().as_raw_fd()
    }

    /// Issues an ioctl whose argument is a structure.
    fn call<T>(&self, code: libc::Ioctl, arg: &mut T, call: String) -> Sys<i32> {
        // SAFETY: The module reads and writes `T`, and what `T` points to is the caller's.
        unsafe { self.0.call(code, arg, call) }
    }

    /// Pins all pages or none; fails the test if pointers to pages are left of a failure.
    #[track_caller]
    pub fn pin(&self, iova: u64, npages: u32, prot: u32) -> Verdict<Sys> {
        let mut arg = RawPin {
            iova,
            npages,
            prot,
            stale: 0,
            reserved: 0,
        };
        let call = format!("pin(iova {iova:#x}, {npages} pages, prot {prot})");
        let result = self.call(code::PIN, &mut arg, call);
        if let Ok(pinned) = result {
            expect_eq("pages pinned", pinned, npages as i32)?;
        }
        expect_eq("page pointers left after an error", arg.stale, 0)?;
        Ok(result.map(drop))
    }

    /// Pins pages that can be pinned.
    #[track_caller]
    pub fn pinned(&self, iova: u64, npages: u32) -> Verdict {
        Ok(self.pin(iova, npages, PIN_RW)??)
    }

    /// Unpins pages, all of which are pinned.
    pub fn unpin(&self, iova: u64, npages: u32) -> Sys {
        let mut arg = RawPin {
            iova,
            npages,
            prot: 0,
            stale: 0,
            reserved: 0,
        };
        let call = format!("unpin(iova {iova:#x}, {npages} pages)");
        self.call(code::UNPIN, &mut arg, call).map(drop)
    }

    /// Reads user memory as the device's driver would.
    pub fn read(&self, iova: u64, len: u32, via: Via) -> Sys<Vec<u8>> {
        let mut data = vec![0; len as usize];
        let mut arg = RawRw {
            iova,
            data: data.as_mut_ptr().expose_provenance() as u64,
            len,
            flags: via.flags(),
        };
        let call = format!("read(iova {iova:#x}, {len} bytes, {via:?})");
        self.call(code::RW, &mut arg, call)?;
        Ok(data)
    }

    /// Writes user memory as the device's driver would.
    pub fn write(&self, iova: u64, data: &[u8], via: Via) -> Sys {
        let mut arg = RawRw {
            iova,
            data: data.as_ptr().expose_provenance() as u64,
            len: data.len() as u32,
            flags: via.flags() | RW_WRITE,
        };
        let call = format!("write(iova {iova:#x}, {} bytes, {via:?})", data.len());
        self.call(code::RW, &mut arg, call).map(drop)
    }

    /// Fills a pinned page through its struct page.
    pub fn fill(&self, iova: u64, byte: u8) -> Sys {
        let mut arg = Fill {
            iova,
            byte: u32::from(byte),
            reserved: 0,
        };
        self.call(FILL, &mut arg, format!("fill(iova {iova:#x})"))
            .map(drop)
    }

    /// What is pinned, and what the device was told.
    pub fn counters(&self) -> Sys<Counters> {
        let mut counters = Counters::default();
        self.call(COUNTERS, &mut counters, "counters()".into())?;
        Ok(counters)
    }

    /// Whether to ignore dma_unmap from now on. The C driver answers that with BUG().
    pub fn stubborn(&self, yes: bool) -> Sys {
        // SAFETY: The argument is a number.
        let ret = unsafe { libc::ioctl(self.0.file().as_raw_fd(), STUBBORN, usize::from(yes)) };
        Errno::result(ret).map(drop).map_err(|errno| SysError {
            call: format!("stubborn({yes})"),
            errno,
        })
    }
}

impl From<Emulated> for OwnedFd {
    fn from(device: Emulated) -> Self {
        device.0.into()
    }
}

/// A container with devices of the module. Dropping it closes the devices first.
#[derive(Debug)]
pub struct Session {
    /// Its open devices.
    pub devices: Vec<Emulated>,
    /// Their groups, in the same order.
    pub groups: Vec<Group>,
    /// The container.
    pub container: Container,
}

impl Session {
    /// A container with one device.
    #[track_caller]
    pub fn open(env: &Env, model: Model) -> Verdict<Self> {
        Session::with(env, model, &[Which::First])
    }

    /// A container with several devices.
    #[track_caller]
    pub fn with(env: &Env, model: Model, devices: &[Which]) -> Verdict<Self> {
        let container = Container::open()?;
        let mut groups = Vec::new();
        for device in devices {
            let group = Group::open(device.group()?)?;
            group.set_container(&container)?;
            groups.push(group);
        }
        container.set_iommu(model.number())?;
        env.check_driver(model, None)?;

        let mut session = Session {
            devices: Vec::new(),
            groups,
            container,
        };
        for (which, group) in devices.iter().zip(&session.groups) {
            session.devices.push(Emulated::open(group, *which)?);
        }
        Ok(session)
    }

    /// Adds a device to a container that has an IOMMU model.
    #[track_caller]
    pub fn add(&mut self, which: Which) -> Verdict {
        let group = Group::open(which.group()?)?;
        group.set_container(&self.container)?;
        self.devices.push(Emulated::open(&group, which)?);
        self.groups.push(group);
        Ok(())
    }

    /// The first device.
    pub fn device(&self) -> &Emulated {
        &self.devices[0]
    }
}
