// SPDX-License-Identifier: GPL-2.0

//! VFIO files and their ioctls, with nothing between the caller and the kernel.
//!
//! The wrappers add names and errors but no policy: a test can put any value in any field.
//!
//! Mapping memory for DMA hands it to a device. The functions here are safe to call because no
//! device of these tests does DMA by itself: bus mastering is off until [`Device::enable`] turns
//! it on, which tests do for devices only that access nothing but what they are told to.

use std::fmt::Display;
use std::fs::{
    File,
    OpenOptions, //
};
use std::mem;
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    OwnedFd,
    RawFd, //
};
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};

use nix::errno::Errno;
use nix::request_code_none;
use nix::sys::eventfd::EventFd;
use vfio_bindings::bindings::vfio;

use crate::check::{
    missing_or_fail,
    Stop,
    Sys,
    SysError,
    Verdict, //
};

/// Base page size, which is also the smallest IOVA page on the machines tested.
pub const PAGE: u64 = 4096;

/// The device may read the memory.
pub const READ: u32 = vfio::VFIO_DMA_MAP_FLAG_READ;
/// The device may write the memory.
pub const WRITE: u32 = vfio::VFIO_DMA_MAP_FLAG_WRITE;
/// The device may read and write the memory.
pub const RW: u32 = READ | WRITE;
/// MAP_DMA gives new addresses to a mapping that has lost them.
pub const MAP_VADDR: u32 = vfio::VFIO_DMA_MAP_FLAG_VADDR;
/// UNMAP_DMA also reports dirty pages.
pub const UNMAP_DIRTY: u32 = vfio::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
/// UNMAP_DMA takes all mappings away.
pub const UNMAP_ALL: u32 = vfio::VFIO_DMA_UNMAP_FLAG_ALL;
/// UNMAP_DMA takes only the addresses away.
pub const UNMAP_VADDR: u32 = vfio::VFIO_DMA_UNMAP_FLAG_VADDR;
/// DIRTY_PAGES starts tracking.
pub const DIRTY_START: u32 = vfio::VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
/// DIRTY_PAGES stops tracking.
pub const DIRTY_STOP: u32 = vfio::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
/// DIRTY_PAGES reports the dirty pages of a range.
pub const DIRTY_GET: u32 = vfio::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
/// DIRTY_PAGES reports the dirty pages of a range, which stay dirty. Not in mainline's header.
pub const DIRTY_GET_NOCLEAR: u32 = 1 << 3;
/// DIRTY_PAGES takes the pages of a bitmap as clean. Not in mainline's header.
pub const DIRTY_CLEAR: u32 = 1 << 4;
/// CHECK_EXTENSION says whether there are the two. Not in mainline's header.
pub const DIRTY_LOG_MANUAL_CLEAR: u32 = 11;

/// An ioctl, by its offset from VFIO_BASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command(pub u8);

macro_rules! commands {
    ($($id:ident = $offset:literal, $name:literal;)*) => {
        impl Command {
            $(
                #[doc = concat!("`", $name, "`")]
                pub const $id: Self = Command($offset);
            )*

            fn name(self) -> String {
                match self {
                    $(Self::$id => $name.into(),)*
                    Command(n) => format!("VFIO ioctl {n}"),
                }
            }
        }
    };
}
commands! {
    GET_API_VERSION = 0, "VFIO_GET_API_VERSION";
    CHECK_EXTENSION = 1, "VFIO_CHECK_EXTENSION";
    SET_IOMMU = 2, "VFIO_SET_IOMMU";
    GROUP_SET_CONTAINER = 4, "VFIO_GROUP_SET_CONTAINER";
    GROUP_UNSET_CONTAINER = 5, "VFIO_GROUP_UNSET_CONTAINER";
    GROUP_GET_DEVICE_FD = 6, "VFIO_GROUP_GET_DEVICE_FD";
    DEVICE_GET_REGION_INFO = 8, "VFIO_DEVICE_GET_REGION_INFO";
    DEVICE_SET_IRQS = 10, "VFIO_DEVICE_SET_IRQS";
    DEVICE_RESET = 11, "VFIO_DEVICE_RESET";
    GET_INFO = 12, "VFIO_IOMMU_GET_INFO";
    MAP_DMA = 13, "VFIO_IOMMU_MAP_DMA";
    UNMAP_DMA = 14, "VFIO_IOMMU_UNMAP_DMA";
    ENABLE = 15, "VFIO_IOMMU_ENABLE";
    DISABLE = 16, "VFIO_IOMMU_DISABLE";
    DIRTY_PAGES = 17, "VFIO_IOMMU_DIRTY_PAGES";
}

impl Command {
    /// The request number.
    pub fn code(self) -> libc::Ioctl {
        let base = vfio::VFIO_BASE as u8;
        request_code_none!(vfio::VFIO_TYPE, base + self.0) as libc::Ioctl
    }
}

/// Issues an ioctl whose argument is a number, or an address.
///
/// # Safety
///
/// If the kernel takes `arg` for an address, nothing may live there, or what lives there may be
/// read and written by the ioctl: the structure `command` takes, as long as its own size field
/// says.
unsafe fn ioctl(fd: &OwnedFd, command: Command, arg: usize, detail: &str) -> Sys<i32> {
    // SAFETY: The descriptor is open; the caller vouches for the argument.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), command.code(), arg) };
    Errno::result(ret).map_err(|errno| SysError {
        call: format!("{}{detail}", command.name()),
        errno,
    })
}

/// Address of `value`, as an ioctl argument.
fn address<T>(value: &mut T) -> usize {
    std::ptr::from_mut(value).expose_provenance()
}

/// UNMAP_DMA with room for a bitmap descriptor.
#[repr(C)]
#[derive(Debug)]
pub struct UnmapDirty {
    /// The plain argument.
    pub unmap: vfio::vfio_iommu_type1_dma_unmap,
    /// Where the bitmap goes.
    pub bitmap: vfio::vfio_bitmap,
}

/// DIRTY_PAGES with the argument of GET_BITMAP.
#[repr(C)]
#[derive(Debug)]
pub struct DirtyGet {
    /// The header.
    pub head: vfio::vfio_iommu_type1_dirty_bitmap,
    /// The range, and where its bitmap goes.
    pub range: vfio::vfio_iommu_type1_dirty_bitmap_get,
}

/// Size of `T` as it goes into a size field.
pub const fn argsz<T>() -> u32 {
    mem::size_of::<T>() as u32
}

/// A well-formed MAP_DMA argument.
pub fn map_arg(iova: u64, vaddr: u64, size: u64, flags: u32) -> vfio::vfio_iommu_type1_dma_map {
    vfio::vfio_iommu_type1_dma_map {
        argsz: argsz::<vfio::vfio_iommu_type1_dma_map>(),
        flags,
        vaddr,
        iova,
        size,
    }
}

/// A well-formed UNMAP_DMA argument.
pub fn unmap_arg(iova: u64, size: u64, flags: u32) -> vfio::vfio_iommu_type1_dma_unmap {
    vfio::vfio_iommu_type1_dma_unmap {
        argsz: argsz::<vfio::vfio_iommu_type1_dma_unmap>(),
        flags,
        iova,
        size,
        ..Default::default()
    }
}

/// Describes `words` as a dirty bitmap of base pages.
fn bitmap_arg(words: &mut [u64]) -> vfio::vfio_bitmap {
    vfio::vfio_bitmap {
        pgsize: PAGE,
        size: mem::size_of_val(words) as u64,
        data: words.as_mut_ptr(),
    }
}

/// A well-formed GET_BITMAP argument.
pub fn dirty_get_arg(iova: u64, size: u64, words: &mut [u64]) -> DirtyGet {
    DirtyGet {
        head: vfio::vfio_iommu_type1_dirty_bitmap {
            argsz: argsz::<DirtyGet>(),
            flags: DIRTY_GET,
            ..Default::default()
        },
        range: vfio::vfio_iommu_type1_dirty_bitmap_get {
            iova,
            size,
            bitmap: bitmap_arg(words),
        },
    }
}

/// An UNMAP_DMA argument that asks for the dirty bitmap.
pub fn unmap_dirty_arg(iova: u64, size: u64, words: &mut [u64]) -> UnmapDirty {
    let mut arg = UnmapDirty {
        unmap: unmap_arg(iova, size, UNMAP_DIRTY),
        bitmap: bitmap_arg(words),
    };
    arg.unmap.argsz = argsz::<UnmapDirty>();
    arg
}

/// `/dev/vfio/vfio`.
#[derive(Debug)]
pub struct Container(OwnedFd);

impl Container {
    /// Opens a new container.
    #[track_caller]
    pub fn open() -> Verdict<Self> {
        open_node(Path::new("/dev/vfio/vfio")).map(Container)
    }

    /// Adopts a descriptor inherited from the program this one was before exec.
    ///
    /// # Safety
    ///
    /// The descriptor is an open container and nobody else's.
    pub unsafe fn from_raw(fd: RawFd) -> Self {
        // SAFETY: The caller hands over the descriptor.
        Container(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The descriptor, which stays owned here.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Issues `command` with any argument.
    ///
    /// # Safety
    ///
    /// If the kernel takes `arg` for an address, nothing may live there, or what lives there may be
    /// read and written by the ioctl: the structure `command` takes, as long as its own size field
    /// says.
    pub unsafe fn raw(&self, command: Command, arg: usize) -> Sys<i32> {
        // SAFETY: Same contract.
        unsafe { ioctl(&self.0, command, arg, &format!("({arg:#x})")) }
    }

    /// GET_API_VERSION
    pub fn api_version(&self) -> Sys<i32> {
        // SAFETY: The ioctl takes no argument.
        unsafe { ioctl(&self.0, Command::GET_API_VERSION, 0, "") }
    }

    /// CHECK_EXTENSION
    pub fn check_extension(&self, extension: usize) -> Sys<i32> {
        let detail = format!("({extension:#x})");
        // SAFETY: The argument is a number.
        unsafe { ioctl(&self.0, Command::CHECK_EXTENSION, extension, &detail) }
    }

    /// SET_IOMMU
    pub fn set_iommu(&self, model: u32) -> Sys {
        let detail = format!("({model})");
        // SAFETY: The argument is a number.
        unsafe { ioctl(&self.0, Command::SET_IOMMU, model as usize, &detail) }.map(drop)
    }

    /// Calls GET_INFO on a buffer which starts with a `vfio_iommu_type1_info`.
    ///
    /// # Panics
    ///
    /// If the buffer is shorter than it tells the kernel.
    pub fn get_info(&self, buffer: &mut [u64]) -> Sys {
        let said = buffer[0] as u32;
        assert!(said as usize <= mem::size_of_val(buffer));

        let arg = buffer.as_mut_ptr().expose_provenance();
        let detail = format!("(argsz {said})");
        // SAFETY: The kernel writes at most as much as the buffer's first field says.
        unsafe { ioctl(&self.0, Command::GET_INFO, arg, &detail) }.map(drop)
    }

    /// MAP_DMA with a well-formed argument.
    pub fn map(&self, iova: u64, vaddr: u64, size: u64, flags: u32) -> Sys {
        self.map_with(map_arg(iova, vaddr, size, flags))
    }

    /// MAP_DMA
    pub fn map_with(&self, mut arg: vfio::vfio_iommu_type1_dma_map) -> Sys {
        let detail = format!(
            "(argsz {}, flags {:#x}, vaddr {:#x}, iova {:#x}, size {:#x})",
            arg.argsz, arg.flags, arg.vaddr, arg.iova, arg.size
        );
        // SAFETY: The ioctl reads the structure and writes nothing. See the module's first lines
        // for the memory it makes visible to the device.
        unsafe { ioctl(&self.0, Command::MAP_DMA, address(&mut arg), &detail) }.map(drop)
    }

    /// Unmaps, and returns the bytes unmapped.
    pub fn unmap(&self, iova: u64, size: u64, flags: u32) -> Sys<u64> {
        let mut arg = unmap_arg(iova, size, flags);
        self.unmap_with(&mut arg)?;
        Ok(arg.size)
    }

    /// Unmaps everything, and returns the bytes unmapped.
    pub fn unmap_all(&self) -> Sys<u64> {
        self.unmap(0, 0, UNMAP_ALL)
    }

    /// Unmaps with an argument that has no bitmap behind it.
    pub fn unmap_with(&self, arg: &mut vfio::vfio_iommu_type1_dma_unmap) -> Sys {
        let detail = format!(
            "(argsz {}, flags {:#x}, iova {:#x}, size {:#x})",
            arg.argsz, arg.flags, arg.iova, arg.size
        );
        // The kernel reads past this structure if its size field and flags say so.
        assert!(arg.argsz <= argsz::<vfio::vfio_iommu_type1_dma_unmap>());
        // SAFETY: The structure is as long as it says, and the kernel writes no more than it.
        unsafe { ioctl(&self.0, Command::UNMAP_DMA, address(arg), &detail) }.map(drop)
    }

    /// Unmaps with a bitmap argument.
    ///
    /// # Safety
    ///
    /// What the bitmap descriptor names may be written, or is not mapped.
    pub unsafe fn unmap_dirty(&self, arg: &mut UnmapDirty) -> Sys {
        let detail = format!(
            "(argsz {}, flags {:#x}, iova {:#x}, size {:#x}, {:x?})",
            arg.unmap.argsz, arg.unmap.flags, arg.unmap.iova, arg.unmap.size, arg.bitmap
        );
        assert!(arg.unmap.argsz <= argsz::<UnmapDirty>());
        // SAFETY: The structure is as long as it says; the caller vouches for the bitmap.
        unsafe { ioctl(&self.0, Command::UNMAP_DMA, address(arg), &detail) }.map(drop)
    }

    /// DIRTY_PAGES with a bare header.
    pub fn dirty(&self, flags: u32) -> Sys {
        self.dirty_with(argsz::<vfio::vfio_iommu_type1_dirty_bitmap>(), flags)
    }

    /// DIRTY_PAGES with a header which may lie about its size.
    pub fn dirty_with(&self, argsz: u32, flags: u32) -> Sys {
        let range = DIRTY_GET | DIRTY_GET_NOCLEAR | DIRTY_CLEAR;
        assert!(flags & range == 0 || argsz <= self::argsz::<DirtyGet>());
        let mut arg = dirty_get_arg(0, 0, &mut []);
        arg.head.argsz = argsz;
        arg.head.flags = flags;
        let detail = format!("(argsz {argsz}, flags {flags:#x})");
        // SAFETY: The kernel reads at most the whole structure, and its bitmap has no bytes.
        unsafe { ioctl(&self.0, Command::DIRTY_PAGES, address(&mut arg), &detail) }.map(drop)
    }

    /// Reads the dirty bitmap of a range into `words`.
    pub fn dirty_get(&self, iova: u64, size: u64, words: &mut [u64]) -> Sys {
        self.dirty_range(DIRTY_GET, iova, size, words)
    }

    /// DIRTY_PAGES with a range and its bitmap.
    pub fn dirty_range(&self, flags: u32, iova: u64, size: u64, words: &mut [u64]) -> Sys {
        let mut arg = dirty_get_arg(iova, size, words);
        arg.head.flags = flags;
        // SAFETY: The descriptor names `words` and no more.
        unsafe { self.dirty_get_with(arg) }
    }

    /// DIRTY_PAGES with the argument of GET_BITMAP.
    ///
    /// # Safety
    ///
    /// What the bitmap descriptor names may be written, or is not mapped.
    pub unsafe fn dirty_get_with(&self, mut arg: DirtyGet) -> Sys {
        let detail = format!(
            "(argsz {}, flags {:#x}, {:x?})",
            arg.head.argsz, arg.head.flags, arg.range
        );
        assert!(arg.head.argsz <= argsz::<DirtyGet>());
        // SAFETY: The structure is as long as it says; the caller vouches for the bitmap.
        unsafe { ioctl(&self.0, Command::DIRTY_PAGES, address(&mut arg), &detail) }.map(drop)
    }
}

impl From<Container> for OwnedFd {
    fn from(container: Container) -> Self {
        container.0
    }
}

/// `/dev/vfio/N`.
#[derive(Debug)]
pub struct Group(OwnedFd);

impl Group {
    /// Opens a group; it can be open only once.
    #[track_caller]
    pub fn open(number: u32) -> Verdict<Self> {
        open_node(&PathBuf::from(format!("/dev/vfio/{number}"))).map(Group)
    }

    /// The descriptor, which stays owned here.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Puts the group into a container.
    pub fn set_container(&self, container: &Container) -> Sys {
        let mut fd = container.as_raw_fd();
        // SAFETY: The ioctl reads an int.
        unsafe { ioctl(&self.0, Command::GROUP_SET_CONTAINER, address(&mut fd), "") }.map(drop)
    }

    /// Takes the group out of its container.
    pub fn unset_container(&self) -> Sys {
        // SAFETY: The ioctl takes no argument.
        unsafe { ioctl(&self.0, Command::GROUP_UNSET_CONTAINER, 0, "") }.map(drop)
    }

    /// Opens a device of the group by its name.
    pub fn device(&self, bdf: &str) -> Sys<Device> {
        let name = std::ffi::CString::new(bdf).unwrap_or_default();
        let detail = format!("({bdf})");
        let arg = name.as_ptr().expose_provenance();
        // SAFETY: The ioctl reads a string that ends with a zero.
        let fd = unsafe { ioctl(&self.0, Command::GROUP_GET_DEVICE_FD, arg, &detail) }?;
        // SAFETY: The kernel has just opened this descriptor for us.
        Ok(Device(unsafe { File::from_raw_fd(fd) }))
    }
}

impl From<Group> for OwnedFd {
    fn from(group: Group) -> Self {
        group.0
    }
}

/// An open device.
#[derive(Debug)]
pub struct Device(File);

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.0.into()
    }
}

/// Where a region lies in a device file.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// `VFIO_REGION_INFO_FLAG_*`
    pub flags: u32,
    /// Its bytes.
    pub size: u64,
    /// Offset of its first byte in the file.
    pub offset: u64,
}

impl Device {
    /// Opens a device by its own node below `/dev/vfio/devices`.
    #[track_caller]
    pub fn open(node: &str) -> Verdict<Self> {
        let path = Path::new("/dev/vfio/devices").join(node);
        Ok(Device(open_node(&path)?.into()))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Issues an ioctl whose argument is a structure; a failure refers to it as `call`.
    ///
    /// # Safety
    ///
    /// The ioctl reads and writes no more than `arg` and what `arg` points to, and the latter is
    /// the caller's.
    pub(crate) unsafe fn call<T>(
        &self,
        code: libc::Ioctl,
        arg: &mut T,
        call: impl Display,
    ) -> Sys<i32> {
        // SAFETY: The descriptor is open; the caller vouches for the argument.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), code, &raw mut *arg) };
        Errno::result(ret).map_err(|errno| SysError {
            call: call.to_string(),
            errno,
        })
    }

    /// Asks where a region lies.
    pub fn region(&self, index: u32) -> Sys<Region> {
        let mut info = vfio::vfio_region_info {
            argsz: argsz::<vfio::vfio_region_info>(),
            index,
            ..Default::default()
        };
        let command = Command::DEVICE_GET_REGION_INFO;
        let call = format_args!("{}({index})", command.name());
        // SAFETY: The kernel writes at most the structure, whose size it is told.
        unsafe { self.call(command.code(), &mut info, call) }?;
        Ok(Region {
            flags: info.flags,
            size: info.size,
            offset: info.offset,
        })
    }

    /// Has the first message-signalled interrupt of the device signal an eventfd.
    pub fn signal(&self, event: &EventFd) -> Sys {
        #[repr(C)]
        struct Arg {
            set: vfio::vfio_irq_set,
            eventfd: RawFd,
        }
        let mut arg = Arg {
            set: vfio::vfio_irq_set {
                argsz: argsz::<Arg>(),
                flags: vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
                index: vfio::VFIO_PCI_MSI_IRQ_INDEX,
                start: 0,
                count: 1,
                ..Default::default()
            },
            eventfd: event.as_raw_fd(),
        };
        let command = Command::DEVICE_SET_IRQS;
        let call = format_args!("{}(MSI 0)", command.name());
        // SAFETY: The kernel reads the structure and one descriptor behind it.
        unsafe { self.call(command.code(), &mut arg, call) }.map(drop)
    }

    /// DEVICE_RESET
    pub fn reset(&self) -> Sys {
        let command = Command::DEVICE_RESET;
        // SAFETY: The ioctl takes no argument: it neither reads nor writes this.
        unsafe { self.call(command.code(), &mut (), command.name()) }.map(drop)
    }

    /// Sets bits in the PCI command register.
    pub fn enable(&self, bits: u16) -> Verdict {
        self.change_command(|word| word | bits)
    }

    /// Clears bits in the PCI command register.
    pub fn disable(&self, bits: u16) -> Verdict {
        self.change_command(|word| word & !bits)
    }

    fn change_command(&self, change: impl Fn(u16) -> u16) -> Verdict {
        const COMMAND: u64 = 4;
        let config = self.region(vfio::VFIO_PCI_CONFIG_REGION_INDEX)?.offset;
        let mut word = [0; 2];
        self.0.read_exact_at(&mut word, config + COMMAND)?;
        let word = change(u16::from_le_bytes(word)).to_le_bytes();
        self.0.write_all_at(&word, config + COMMAND)?;
        Ok(())
    }
}

/// Opens a node below `/dev/vfio`, close-on-exec.
#[track_caller]
fn open_node(path: &Path) -> Verdict<OwnedFd> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err::<_, Stop>(missing_or_fail(path, error)),
    }
}
