// SPDX-License-Identifier: GPL-2.0

//! Devices behind the software IOMMUs of vrs_iommu.ko, which do DMA on request.

use std::fmt::{
    self,
    Display, //
};
use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::{
    request_code_none,
    request_code_read,
    request_code_readwrite,
    request_code_write, //
};

use crate::check::{
    missing_or_fail,
    Stop,
    Sys,
    Verdict, //
};
use crate::env::{
    reserved_regions,
    Env,
    Model, //
};
use crate::vfio::{
    Container,
    Device,
    Group, //
};

/// Name of the module and of its devices up to the dot.
pub const MODULE: &str = "vrs_iommu";

/// What the module counts, a line for each unit.
pub const UNITS: &str = "/sys/kernel/debug/vrs_iommu/units";

/// Agents of a device that do DMA, each with an IOTLB of its own.
pub const ENGINES: u32 = 8;

/// Bytes one request can ask for.
pub const DMA_MAX: u64 = 4 << 30;

/// Bytes of memory each device has.
pub const REGION: u64 = 4 << 20;

/// The kernel's `IOMMU_READ` and `IOMMU_WRITE`, as [`Leaf::prot`] has them.
pub const PROT_READ: u32 = 1;
/// See [`PROT_READ`].
pub const PROT_WRITE: u32 = 2;

/// [`Leaf::flags`]: mapped with `IOMMU_CACHE`.
pub const LEAF_CACHE: u32 = 1 << 0;
/// [`Leaf::flags`]: written to.
pub const LEAF_DIRTY: u32 = 1 << 1;
/// [`Leaf::flags`]: there is memory behind it, and the tag is of it.
pub const LEAF_MEMORY: u32 = 1 << 2;

/// What DMA does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// Writes what [`word`] says.
    Fill,
    /// Reads from the second range, writes to the first.
    Copy,
    /// Writes as `Fill`, but only eight bytes of each 4 KiB.
    Touch,
    /// Reads, and sums up as [`checksum`].
    Checksum,
    /// Writes as `Fill`; in the background no two pieces write the same.
    Churn,
}

/// What `Op::Fill` writes to an address that is a multiple of eight, little endian.
pub fn word(seed: u64, iova: u64) -> u64 {
    seed.wrapping_add((iova / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What `Op::Fill` writes to a range.
pub fn filled(seed: u64, iova: u64, len: u64) -> Vec<u8> {
    (0..len)
        .map(|offset| iova.wrapping_add(offset))
        .map(|at| word(seed, at).to_le_bytes()[(at % 8) as usize])
        .collect()
}

/// What `Op::Checksum` finds in memory like this.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().zip(1..).fold(0u64, |sum, (byte, place)| {
        sum.wrapping_add((u64::from(*byte) + 1).wrapping_mul(place))
    })
}

/// Why DMA did not reach memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device has no page table.
    Blocked,
    /// The page table does not translate that many address bits.
    Width,
    /// Nothing is mapped.
    Absent,
    /// What is mapped may not be read.
    NoRead,
    /// What is mapped may not be written.
    NoWrite,
    /// What is mapped is no memory.
    NoMemory,
}

impl Fault {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Fault::Blocked,
            2 => Fault::Width,
            3 => Fault::Absent,
            4 => Fault::NoRead,
            5 => Fault::NoWrite,
            6 => Fault::NoMemory,
            _ => return None,
        })
    }
}

/// `struct vrs_iommu_dma`: what to do, and what came of it.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct RawDma {
    /// [`Op`]
    pub op: u32,
    /// Kernel threads; 0 is the calling task.
    pub threads: u32,
    /// First byte.
    pub iova: u64,
    /// First byte to copy from.
    pub iova2: u64,
    /// Bytes.
    pub len: u64,
    /// What to fill with.
    pub seed: u64,
    /// Bytes done.
    pub done: u64,
    /// Sum of what was read.
    pub sum: u64,
    /// Where it faulted, if it did.
    pub fault_iova: u64,
    /// Why; 0 if it did not.
    pub fault: u32,
    /// Nothing.
    pub reserved: u32,
}

impl RawDma {
    /// Asks for something to be done to a range.
    pub fn new(op: Op, iova: u64, len: u64, threads: u32) -> Self {
        RawDma {
            op: op as u32,
            threads,
            iova,
            len,
            ..RawDma::default()
        }
    }
}

impl Display for RawDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RawDma {
            op,
            threads,
            iova,
            iova2,
            len,
            ..
        } = self;
        write!(
            f,
            "op {op}, {threads} threads, iova {iova:#x}, iova2 {iova2:#x}, {len:#x} bytes"
        )
    }
}

/// What came of DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dma {
    /// Bytes done before the first fault of each thread.
    pub done: u64,
    /// Sum of what was read, by `Op::Checksum`.
    pub sum: u64,
    /// The fault at the lowest offset, and its address.
    pub fault: Option<(Fault, u64)>,
}

/// What background DMA did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Background {
    /// Pieces begun.
    pub pieces: u64,
    /// Pieces that ended in a fault.
    pub faults: u64,
    /// One of the faults.
    pub fault: Option<(Fault, u64)>,
}

/// `struct vrs_iommu_stopped`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct RawStopped {
    pieces: u64,
    faults: u64,
    fault_iova: u64,
    fault: u32,
    reserved: u32,
}

/// An entry of the page table that maps memory.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// First address it maps.
    pub iova: u64,
    /// Where to.
    pub phys: u64,
    /// Bytes.
    pub size: u64,
    /// [`PROT_READ`], [`PROT_WRITE`]
    pub prot: u32,
    /// `LEAF_*`
    pub flags: u32,
    /// The first eight bytes of the memory behind it.
    pub tag: u64,
}

/// `struct vrs_iommu_walk`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct RawWalk {
    /// Where to begin.
    pub iova: u64,
    /// Address of an array of [`Leaf`].
    pub leaves: u64,
    /// Its length.
    pub count: u32,
    /// Nothing.
    pub reserved: u32,
}

/// What can be made fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum What {
    /// A call of `map_pages`.
    Map,
    /// A leaf; what the same call mapped before it stays.
    Leaf,
    /// Memory for a table.
    Table,
    /// Allocation of a domain.
    Alloc,
    /// A device is attached to a page table.
    Attach,
    /// A call of `unmap_pages`, which unmaps nothing.
    Unmap,
    /// The same, but it unmaps its first leaf.
    UnmapShort,
    /// A dirty bit: the leaf stays clean, and the IOTLB believes it dirty.
    Dirty,
}

impl What {
    /// All of them.
    pub const ALL: [What; 8] = [
        What::Map,
        What::Leaf,
        What::Table,
        What::Alloc,
        What::Attach,
        What::Unmap,
        What::UnmapShort,
        What::Dirty,
    ];
}

/// `struct vrs_iommu_fail`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct RawFail {
    /// [`What`]
    pub what: u32,
    /// Which call from now on; 0 is none.
    pub nth: u32,
    /// A positive errno; 0 is ENOMEM.
    pub error: u32,
    /// Nothing.
    pub reserved: u32,
}

/// Counts of one unit.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Domains there are.
    pub domains: u64,
    /// Tables of their page tables, roots included.
    pub tables: u64,
    /// Leaves of 4 KiB there are.
    pub leaves_4k: u64,
    /// Leaves of 2 MiB there are.
    pub leaves_2m: u64,
    /// Leaves of 1 GiB there are.
    pub leaves_1g: u64,
    /// Calls of `map_pages` ever.
    pub maps: u64,
    /// Calls of `unmap_pages` ever.
    pub unmaps: u64,
    /// IOTLB flushes ever.
    pub flushes: u64,
    /// Attachments of devices to page tables ever.
    pub attaches: u64,
    /// DMA faults ever.
    pub faults: u64,
    /// Injected failures that happened.
    pub failed: u64,
}

const MAGIC: u8 = 0xef;

/// Request numbers, for callers with arguments that the methods of [`Soft`] would not make.
pub mod code {
    use super::*;

    /// Takes a [`RawDma`].
    pub const DMA: libc::Ioctl =
        request_code_readwrite!(MAGIC, 0, size_of::<RawDma>()) as libc::Ioctl;
    /// Takes a [`RawDma`].
    pub const START: libc::Ioctl =
        request_code_write!(MAGIC, 1, size_of::<RawDma>()) as libc::Ioctl;
    /// Fills in 32 bytes.
    pub const STOP: libc::Ioctl =
        request_code_read!(MAGIC, 2, size_of::<RawStopped>()) as libc::Ioctl;
    /// Fills in 32 bytes.
    pub const PEEK: libc::Ioctl =
        request_code_read!(MAGIC, 3, size_of::<RawStopped>()) as libc::Ioctl;
    /// Takes a [`RawWalk`].
    pub const WALK: libc::Ioctl =
        request_code_write!(MAGIC, 4, size_of::<RawWalk>()) as libc::Ioctl;
    /// Takes a [`RawFail`].
    pub const FAIL: libc::Ioctl =
        request_code_write!(MAGIC, 5, size_of::<RawFail>()) as libc::Ioctl;
    /// Fills in [`Stats`].
    pub const STATS: libc::Ioctl = request_code_read!(MAGIC, 6, size_of::<Stats>()) as libc::Ioctl;
    /// Takes an address.
    pub const PIN: libc::Ioctl = request_code_write!(MAGIC, 7, size_of::<u64>()) as libc::Ioctl;
    /// Takes nothing.
    pub const UNPIN: libc::Ioctl = request_code_none!(MAGIC, 8) as libc::Ioctl;
}

/// A device of the module, by its unit and place there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soft {
    /// The kind of IOMMU it is behind.
    pub unit: &'static str,
    /// What VFIO_GROUP_GET_DEVICE_FD takes.
    pub name: String,
    /// Its own node below `/dev/vfio/devices`.
    pub node: String,
    /// The number of its group.
    pub group: u32,
}

impl Display for Soft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, group {})", self.name, self.unit, self.group)
    }
}

/// Finds a device; skips the test if there is none.
#[track_caller]
pub fn device(unit: &'static str, index: usize) -> Verdict<Soft> {
    let class = Path::new("/sys/class/vfio-dev");
    let entries = fs::read_dir(class).map_err(|e| missing_or_fail(class, e))?;
    let wanted = format!("{unit} {index}");
    for entry in entries {
        let entry = entry?;
        let device = entry.path().join("device");
        // A device may go while the list is read, and others have no such file.
        let found = fs::read_to_string(device.join("unit"));
        if !found.is_ok_and(|found| found.trim() == wanted) {
            continue;
        }
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into());
        let group: Option<String> = name(&fs::read_link(device.join("iommu_group"))?);
        let group = group.and_then(|group| group.parse().ok());
        let (Some(name), Some(group)) = (name(&fs::canonicalize(&device)?), group) else {
            return Err(Stop::fail(format_args!("{}: no group", device.display())));
        };
        let node = entry.file_name().to_string_lossy().into();
        return Ok(Soft {
            unit,
            name,
            node,
            group,
        });
    }
    Err(Stop::skip(format_args!(
        "device {wanted} (module {MODULE})"
    )))
}

impl Soft {
    /// Opens its group.
    #[track_caller]
    pub fn open_group(&self) -> Verdict<Group> {
        Group::open(self.group)
    }

    /// Opens it without its group, to be bound to an iommufd context.
    #[track_caller]
    pub fn open_node(&self) -> Verdict<Engine> {
        Device::open(&self.node).map(Engine)
    }

    /// Opens it; its group must be in a container.
    pub fn open(&self, group: &Group) -> Sys<Engine> {
        group.device(&self.name).map(Engine)
    }

    /// First byte, last byte and kind of each range that sysfs says is reserved.
    #[track_caller]
    pub fn reserved(&self) -> Verdict<Vec<(u64, u64, String)>> {
        reserved_regions(self.group)
    }
}

/// An open device, which does DMA.
#[derive(Debug)]
pub struct Engine(pub Device);

impl Engine {
    /// Issues an ioctl whose argument is a structure.
    fn call<T>(&self, code: libc::Ioctl, arg: &mut T, call: impl Display) -> Sys<i32> {
        // SAFETY: The module reads and writes `T`, and what `T` points to is the caller's.
        unsafe { self.0.call(code, arg, call) }
    }

    /// Does DMA with whatever arguments. Faults are no errors.
    pub fn dma_with(&self, arg: &mut RawDma) -> Sys {
        let asked = *arg;
        self.call(code::DMA, arg, format_args!("dma({asked})"))
            .map(drop)
    }

    fn dma(&self, mut arg: RawDma) -> Sys<Dma> {
        self.dma_with(&mut arg)?;
        Ok(Dma {
            done: arg.done,
            sum: arg.sum,
            fault: Fault::from_raw(arg.fault).map(|fault| (fault, arg.fault_iova)),
        })
    }

    /// Fills a range, by `threads` kernel threads.
    pub fn fill(&self, iova: u64, len: u64, seed: u64, threads: u32) -> Sys<Dma> {
        let arg = RawDma::new(Op::Fill, iova, len, threads);
        self.dma(RawDma { seed, ..arg })
    }

    /// Writes eight bytes to each page of a range.
    pub fn touch(&self, iova: u64, len: u64, seed: u64, threads: u32) -> Sys<Dma> {
        let arg = RawDma::new(Op::Touch, iova, len, threads);
        self.dma(RawDma { seed, ..arg })
    }

    /// Copies a range to another.
    pub fn copy(&self, from: u64, to: u64, len: u64, threads: u32) -> Sys<Dma> {
        let arg = RawDma::new(Op::Copy, to, len, threads);
        self.dma(RawDma { iova2: from, ..arg })
    }

    /// Reads a range and sums it up.
    pub fn checksum(&self, iova: u64, len: u64, threads: u32) -> Sys<Dma> {
        self.dma(RawDma::new(Op::Checksum, iova, len, threads))
    }

    /// Reads a word or part of it, to see whether it can be reached.
    pub fn probe(&self, iova: u64) -> Sys<Option<Fault>> {
        let found = self.checksum(iova, 8 - iova % 8, 0)?;
        Ok(found.fault.map(|(fault, _)| fault))
    }

    /// Starts DMA in the background, within one range.
    pub fn start(&self, op: Op, iova: u64, len: u64, seed: u64, threads: u32) -> Sys {
        self.start_with(&mut RawDma {
            iova2: iova,
            seed,
            ..RawDma::new(op, iova, len, threads)
        })
    }

    /// Starts DMA in the background with whatever arguments.
    pub fn start_with(&self, arg: &mut RawDma) -> Sys {
        let asked = *arg;
        self.call(code::START, arg, format_args!("start({asked})"))
            .map(drop)
    }

    /// Ends DMA in the background.
    pub fn stop(&self) -> Sys<Background> {
        self.background(code::STOP, "stop()")
    }

    /// Tells what DMA in the background did so far.
    pub fn peek(&self) -> Sys<Background> {
        self.background(code::PEEK, "peek()")
    }

    fn background(&self, code: libc::Ioctl, call: &str) -> Sys<Background> {
        let mut raw = RawStopped::default();
        self.call(code, &mut raw, call)?;
        Ok(Background {
            pieces: raw.pieces,
            faults: raw.faults,
            fault: Fault::from_raw(raw.fault).map(|fault| (fault, raw.fault_iova)),
        })
    }

    /// Up to `leaves.len()` leaves, beginning with the one that has `iova`; their number.
    pub fn walk_into(&self, iova: u64, leaves: &mut [Leaf]) -> Sys<usize> {
        let mut arg = RawWalk {
            iova,
            leaves: leaves.as_mut_ptr().expose_provenance() as u64,
            count: leaves.len() as u32,
            reserved: 0,
        };
        let call = format_args!("walk(iova {iova:#x}, {} leaves)", leaves.len());
        Ok(self.call(code::WALK, &mut arg, call)? as usize)
    }

    /// All leaves of the page table the device uses.
    pub fn walk(&self) -> Sys<Vec<Leaf>> {
        let mut all = Vec::new();
        let mut part = vec![Leaf::default(); 1024];
        let mut next = Some(0);
        while let Some(iova) = next {
            let found = self.walk_into(iova, &mut part)?;
            all.extend_from_slice(&part[..found]);
            next = part[..found]
                .last()
                .and_then(|leaf| leaf.iova.checked_add(leaf.size));
        }
        Ok(all)
    }

    /// Makes the `nth` call of a kind fail with ENOMEM; 0 takes that back.
    pub fn fail(&self, what: What, nth: u32) -> Sys {
        self.fail_with(what, nth, Errno::UnknownErrno)
    }

    /// Makes the `nth` call of a kind fail with an error of choice.
    pub fn fail_with(&self, what: What, nth: u32, error: Errno) -> Sys {
        let mut arg = RawFail {
            what: what as u32,
            nth,
            error: error as u32,
            reserved: 0,
        };
        self.call(code::FAIL, &mut arg, format_args!("fail({what:?}, {nth})"))
            .map(drop)
    }

    /// Has the driver pin a page.
    pub fn pin(&self, mut iova: u64) -> Sys {
        let call = format!("pin({iova:#x})");
        self.call(code::PIN, &mut iova, call).map(drop)
    }

    /// Has the driver unpin it.
    pub fn unpin(&self) -> Sys {
        self.call(code::UNPIN, &mut (), "unpin()").map(drop)
    }

    /// Counts of the device's unit.
    pub fn stats(&self) -> Sys<Stats> {
        let mut stats = Stats::default();
        self.call(code::STATS, &mut stats, "stats()")?;
        Ok(stats)
    }
}

/// A container with devices of the module. Dropping it closes the devices first.
#[derive(Debug)]
pub struct Session {
    /// The open devices, in the order in which they joined.
    pub engines: Vec<Engine>,
    /// Their groups.
    pub groups: Vec<Group>,
    /// The container.
    pub container: Container,
}

impl Session {
    /// A container with the first device of a unit.
    #[track_caller]
    pub fn open(env: &Env, unit: &'static str) -> Verdict<Self> {
        Session::with(env, Model::V2, &[(unit, 0)])
    }

    /// A container with several devices, by unit and place there, which join in that order.
    #[track_caller]
    pub fn with(env: &Env, model: Model, devices: &[(&'static str, usize)]) -> Verdict<Self> {
        let mut session = Session {
            engines: Vec::new(),
            groups: Vec::new(),
            container: Container::open()?,
        };
        for (n, (unit, index)) in devices.iter().enumerate() {
            let device = device(unit, *index)?;
            let group = device.open_group()?;
            group.set_container(&session.container)?;
            if n == 0 {
                session.container.set_iommu(model.number())?;
                env.check_driver(model, Some(device.group))?;
            }
            session.engines.push(device.open(&group)?);
            session.groups.push(group);
        }
        Ok(session)
    }

    /// Adds a device to a container that has an IOMMU model; the inner result is whether its
    /// group could join.
    #[track_caller]
    pub fn add(&mut self, unit: &'static str, index: usize) -> Verdict<Sys> {
        let device = device(unit, index)?;
        let group = device.open_group()?;
        if let Err(refused) = group.set_container(&self.container) {
            return Ok(Err(refused));
        }
        self.engines.push(device.open(&group)?);
        self.groups.push(group);
        Ok(Ok(()))
    }

    /// Takes a device and its group out.
    pub fn remove(&mut self, place: usize) -> Sys {
        drop(self.engines.remove(place));
        self.groups.remove(place).unset_container()
    }

    /// The first device.
    pub fn engine(&self) -> &Engine {
        &self.engines[0]
    }
}

/// Domains and tables of all units, to be read when no device is open.
#[track_caller]
pub fn alive() -> Verdict<(u64, u64)> {
    let text = fs::read_to_string(UNITS).map_err(|e| missing_or_fail(UNITS, e))?;
    let mut sums = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            let sum = match word {
                "domains" => &mut sums.0,
                "tables" => &mut sums.1,
                _ => continue,
            };
            let number = words.next().and_then(|number| number.parse::<u64>().ok());
            *sum += number.ok_or_else(|| {
                Stop::fail(format_args!(
                    "{UNITS}: no number behind {word:?} in {line:?}"
                ))
            })?;
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_filled_with_its_words() {
        let all = filled(7, 0x1000, 32);
        assert_eq!(all[8..16], word(7, 0x1008).to_le_bytes());
        assert_eq!(filled(7, 0x1003, 10), all[3..13]);
    }

    #[test]
    fn sums_tell_places() {
        assert_eq!(checksum(&[]), 0);
        assert_eq!(checksum(&[0, 0]), 3);
        assert_ne!(checksum(&[1, 2]), checksum(&[2, 1]));
    }
}
