// SPDX-License-Identifier: GPL-2.0

//! What a sequence is made of: calls with all their arguments.
//!
//! A sequence says everything about itself. It can be written to a file, read back, and replayed on
//! any machine that has the devices it names.

use std::fmt;

use serde::{
    Deserialize,
    Serialize, //
};

/// Devices a sequence can use, by the names VFIO knows them by.
///
/// The first lets its driver pin pages, and so does the second; the third has no callback for
/// unmapping and may not pin. The others are behind software IOMMUs, see `selftests/kmod`; those
/// whose smallest page is larger than the CPU's are left out: with them the C driver prints a
/// warning, with stack, at every call.
pub(crate) const UNITS: [&str; 14] = [
    "vrs_emulated.0",
    "vrs_emulated.1",
    "vrs_emulated.deaf",
    "plain 0",
    "plain 1",
    "small 0",
    "noncoherent 0",
    "dirty 0",
    "dirty 1",
    "reserved 0",
    "reserved 1",
    "narrow 0",
    "wide 0",
    "foreign 0",
];

/// A device, and the group which it is alone in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Unit(pub(crate) u8);

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        UNITS[usize::from(self.0)]
    }

    /// Whether there is no IOMMU in front of it.
    pub(crate) fn emulated(self) -> bool {
        self.name().starts_with("vrs_emulated")
    }

    /// What kind of IOMMU is in front of it.
    pub(crate) fn kind(self) -> &'static str {
        self.name().split(' ').next().unwrap_or_default()
    }
}

impl From<Unit> for String {
    fn from(unit: Unit) -> Self {
        unit.name().to_owned()
    }
}

impl TryFrom<String> for Unit {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        UNITS
            .iter()
            .position(|known| *known == name)
            .map(|index| Unit(index as u8))
            .ok_or_else(|| format!("there is no device {name}, but: {}", UNITS.join(", ")))
    }
}

/// Who makes a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Who {
    /// The process that runs the sequence.
    #[default]
    Parent,
    /// The process it has forked.
    Child,
}

/// Where the argument of an ioctl lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    /// In ordinary memory.
    #[default]
    Memory,
    /// In memory that can be read only.
    ReadOnly,
    /// So that only its first bytes are mapped.
    Edge(u16),
    /// At address 0.
    Null,
    /// Where the kernel lives.
    Kernel,
}

/// What backs a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Private anonymous memory.
    Anon,
    /// The same, for reading only.
    AnonRo,
    /// The same, without access.
    NoAccess,
    /// Shared memory.
    Shared,
    /// Shared memory, for reading only.
    SharedRo,
    /// A private mapping of a file on a disk.
    FilePrivate,
    /// A shared mapping of a file on a disk, for reading only.
    FileRo,
    /// The memory of a device behind a software IOMMU.
    DeviceMemory,
}

/// A user bitmap, as it is described to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bitmap {
    pub(crate) pgsize: u64,
    pub(crate) size: u64,
    /// Its address.
    pub(crate) data: u64,
    /// What the user's buffer is filled with before.
    pub(crate) fill: u8,
}

/// A call, or a change to what calls work on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Op {
    // Files.
    Open {
        c: u8,
    },
    Close {
        c: u8,
    },
    OpenGroup {
        unit: Unit,
    },
    CloseGroup {
        unit: Unit,
    },
    SetContainer {
        unit: Unit,
        c: u8,
    },
    UnsetContainer {
        unit: Unit,
    },
    OpenDevice {
        unit: Unit,
    },
    CloseDevice {
        unit: Unit,
    },

    // The container.
    ApiVersion {
        c: u8,
    },
    CheckExtension {
        c: u8,
        extension: u64,
    },
    SetIommu {
        c: u8,
        model: u64,
    },
    GetInfo {
        c: u8,
        argsz: u32,
        place: Place,
    },
    Map {
        c: u8,
        argsz: u32,
        flags: u32,
        vaddr: u64,
        iova: u64,
        size: u64,
        place: Place,
    },
    Unmap {
        c: u8,
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
        bitmap: Option<Bitmap>,
        place: Place,
    },
    Dirty {
        c: u8,
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
        bitmap: Option<Bitmap>,
        place: Place,
    },
    Unknown {
        c: u8,
        cmd: u32,
        arg: u64,
    },

    // Drivers of emulated devices.
    Pin {
        unit: Unit,
        iova: u64,
        pages: u32,
        prot: u32,
    },
    Unpin {
        unit: Unit,
        iova: u64,
        pages: u32,
    },
    Rw {
        unit: Unit,
        iova: u64,
        len: u32,
        write: bool,
        kthread: bool,
        byte: u8,
    },
    Fill {
        unit: Unit,
        iova: u64,
        byte: u8,
    },

    // Devices behind software IOMMUs.
    Dma {
        unit: Unit,
        iova: u64,
        len: u64,
        write: bool,
        seed: u64,
    },

    // Memory: pages of the arena.
    Mmap {
        page: u32,
        pages: u32,
        kind: Kind,
    },
    Munmap {
        page: u32,
        pages: u32,
    },
    Mprotect {
        page: u32,
        pages: u32,
        prot: u8,
    },
    Discard {
        page: u32,
        pages: u32,
    },
    Touch {
        page: u32,
        byte: u8,
    },
    Peek {
        page: u32,
    },

    // Processes and limits.
    Memlock {
        bytes: u64,
    },
    IpcLock {
        on: bool,
    },
    Fork,
    Exec,
    Exit,

    // Parameters of the driver.
    EntryLimit {
        limit: u32,
    },
    HugePages {
        on: bool,
    },

    /// Adds up the pages pinned in the whole system.
    CountPins,
}

impl Op {
    /// The name under which results are counted: a call with a result, not a change of the scene.
    pub(crate) fn call(&self) -> Option<&'static str> {
        Some(match self {
            Op::SetContainer { .. } => "GROUP_SET_CONTAINER",
            Op::UnsetContainer { .. } => "GROUP_UNSET_CONTAINER",
            Op::OpenDevice { .. } => "GROUP_GET_DEVICE_FD",
            Op::ApiVersion { .. } => "GET_API_VERSION",
            Op::CheckExtension { .. } => "CHECK_EXTENSION",
            Op::SetIommu { .. } => "SET_IOMMU",
            Op::GetInfo { .. } => "IOMMU_GET_INFO",
            Op::Map { flags, .. } if flags & 4 != 0 => "IOMMU_MAP_DMA vaddr",
            Op::Map { .. } => "IOMMU_MAP_DMA",
            Op::Unmap { flags, .. } => match flags & 7 {
                1 => "IOMMU_UNMAP_DMA dirty",
                2 => "IOMMU_UNMAP_DMA all",
                4 | 6 => "IOMMU_UNMAP_DMA vaddr",
                _ => "IOMMU_UNMAP_DMA",
            },
            Op::Dirty { flags, .. } => match flags {
                1 => "IOMMU_DIRTY_PAGES start",
                2 => "IOMMU_DIRTY_PAGES stop",
                4 => "IOMMU_DIRTY_PAGES get",
                8 => "IOMMU_DIRTY_PAGES get, no clear",
                16 => "IOMMU_DIRTY_PAGES clear",
                _ => "IOMMU_DIRTY_PAGES",
            },
            Op::Unknown { .. } => "unknown ioctl",
            Op::Pin { .. } => "vfio_pin_pages",
            Op::Unpin { .. } => "vfio_unpin_pages",
            Op::Rw { write: true, .. } => "vfio_dma_rw write",
            Op::Rw { .. } => "vfio_dma_rw read",
            Op::Fill { .. } => "device: fill",
            Op::Dma { write: true, .. } => "device: DMA write",
            Op::Dma { .. } => "device: DMA read",
            _ => return None,
        })
    }
}

/// A call and who makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    #[serde(default)]
    pub(crate) who: Who,
    #[serde(flatten)]
    pub(crate) op: Op,
}

impl From<Op> for Step {
    fn from(op: Op) -> Self {
        Step {
            who: Who::Parent,
            op,
        }
    }
}

/// What is replayed as a whole, from nothing to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    /// What it was made from.
    pub(crate) seed: u64,
    pub(crate) index: u64,
    pub(crate) steps: Vec<Step>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Memory => Ok(()),
            Place::ReadOnly => write!(f, ", argument read-only"),
            Place::Edge(n) => write!(f, ", argument ends after {n} bytes"),
            Place::Null => write!(f, ", argument at 0"),
            Place::Kernel => write!(f, ", argument in the kernel"),
        }
    }
}

impl fmt::Display for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bitmap {{ pgsize {:#x}, size {:#x}, data {:#x}, filled with {:#x} }}",
            self.pgsize, self.size, self.data, self.fill
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.who == Who::Child {
            write!(f, "child: ")?;
        }
        let bits = |f: &mut fmt::Formatter<'_>, bitmap: &Option<Bitmap>| match bitmap {
            Some(bitmap) => write!(f, ", {bitmap}"),
            None => Ok(()),
        };
        match &self.op {
            Op::Open { c } => write!(f, "open container {c}"),
            Op::Close { c } => write!(f, "close container {c}"),
            Op::OpenGroup { unit } => write!(f, "open group of {}", unit.name()),
            Op::CloseGroup { unit } => write!(f, "close group of {}", unit.name()),
            Op::SetContainer { unit, c } => {
                write!(f, "{}: GROUP_SET_CONTAINER(container {c})", unit.name())
            }
            Op::UnsetContainer { unit } => write!(f, "{}: GROUP_UNSET_CONTAINER", unit.name()),
            Op::OpenDevice { unit } => write!(f, "{}: GROUP_GET_DEVICE_FD", unit.name()),
            Op::CloseDevice { unit } => write!(f, "{}: close device", unit.name()),
            Op::ApiVersion { c } => write!(f, "{c}: GET_API_VERSION"),
            Op::CheckExtension { c, extension } => {
                write!(f, "{c}: CHECK_EXTENSION({extension:#x})")
            }
            Op::SetIommu { c, model } => write!(f, "{c}: SET_IOMMU({model:#x})"),
            Op::GetInfo { c, argsz, place } => write!(f, "{c}: GET_INFO(argsz {argsz}{place})"),
            Op::Map {
                c,
                argsz,
                flags,
                vaddr,
                iova,
                size,
                place,
            } => write!(
                f,
                "{c}: MAP_DMA(argsz {argsz}, flags {flags:#x}, vaddr {vaddr:#x}, iova {iova:#x}, \
                 size {size:#x}{place})"
            ),
            Op::Unmap {
                c,
                argsz,
                flags,
                iova,
                size,
                bitmap,
                place,
            } => {
                write!(
                    f,
                    "{c}: UNMAP_DMA(argsz {argsz}, flags {flags:#x}, iova {iova:#x}, size {size:#x}"
                )?;
                bits(f, bitmap)?;
                write!(f, "{place})")
            }
            Op::Dirty {
                c,
                argsz,
                flags,
                iova,
                size,
                bitmap,
                place,
            } => {
                write!(f, "{c}: DIRTY_PAGES(argsz {argsz}, flags {flags:#x}")?;
                if bitmap.is_some() {
                    write!(f, ", iova {iova:#x}, size {size:#x}")?;
                }
                bits(f, bitmap)?;
                write!(f, "{place})")
            }
            Op::Unknown { c, cmd, arg } => write!(f, "{c}: ioctl({cmd:#x}, {arg:#x})"),
            Op::Pin {
                unit,
                iova,
                pages,
                prot,
            } => write!(
                f,
                "{}: vfio_pin_pages(iova {iova:#x}, {} pages, prot {prot:#x})",
                unit.name(),
                *pages as i32
            ),
            Op::Unpin { unit, iova, pages } => write!(
                f,
                "{}: vfio_unpin_pages(iova {iova:#x}, {pages} pages)",
                unit.name()
            ),
            Op::Rw {
                unit,
                iova,
                len,
                write,
                kthread,
                byte,
            } => write!(
                f,
                "{}: vfio_dma_rw({} iova {iova:#x}, {len:#x} bytes{}{})",
                unit.name(),
                if *write { "write" } else { "read" },
                if *write {
                    format!(" of {byte:#x}")
                } else {
                    String::new()
                },
                if *kthread { ", by a kernel thread" } else { "" },
            ),
            Op::Fill { unit, iova, byte } => {
                write!(f, "{}: fill(iova {iova:#x}, {byte:#x})", unit.name())
            }
            Op::Dma {
                unit,
                iova,
                len,
                write,
                seed,
            } => write!(
                f,
                "{}: DMA({} iova {iova:#x}, {len:#x} bytes, seed {seed:#x})",
                unit.name(),
                if *write { "write" } else { "read" }
            ),
            Op::Mmap { page, pages, kind } => {
                write!(f, "mmap(arena page {page}, {pages} pages, {kind:?})")
            }
            Op::Munmap { page, pages } => write!(f, "munmap(arena page {page}, {pages} pages)"),
            Op::Mprotect { page, pages, prot } => {
                write!(f, "mprotect(arena page {page}, {pages} pages, prot {prot})")
            }
            Op::Discard { page, pages } => {
                write!(
                    f,
                    "madvise(arena page {page}, {pages} pages, MADV_DONTNEED)"
                )
            }
            Op::Touch { page, byte } => write!(f, "write {byte:#x} to arena page {page}"),
            Op::Peek { page } => write!(f, "read arena page {page}"),
            Op::Memlock { bytes } => write!(f, "setrlimit(RLIMIT_MEMLOCK, {bytes:#x})"),
            Op::IpcLock { on } => write!(f, "CAP_IPC_LOCK {}", if *on { "on" } else { "off" }),
            Op::Fork => write!(f, "fork"),
            Op::Exec => write!(f, "the child calls exec"),
            Op::Exit => write!(f, "the child exits"),
            Op::EntryLimit { limit } => write!(f, "dma_entry_limit = {limit}"),
            Op::HugePages { on } => write!(f, "disable_hugepages = {}", u8::from(!on)),
            Op::CountPins => write!(f, "count pinned pages"),
        }
    }
}
