// SPDX-License-Identifier: GPL-2.0

//! Carries out a sequence and records what the driver answers.

use std::fs::{
    self,
    File, //
};
use std::io::Write;
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    RawFd, //
};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{
    ensure,
    Context,
    Result, //
};
use harness::soft;
use harness::vfio::{
    Command,
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    PAGE, //
};
use nix::errno::Errno;
use nix::{
    request_code_read,
    request_code_readwrite,
    request_code_write, //
};

use crate::layout::{
    arena,
    Window,
    ARENA,
    ARENA_PAGES,
    ARENA_SPAN,
    ARG,
    ARG_READ_ONLY,
    BITMAP,
    DATA,
    KERNEL,
    SCRATCH,
    SHARED_LEN,
    WINDOWS,
    ZONE, //
};
use crate::model::{
    self,
    Container,
    Mapping, //
};
use crate::op::{
    Bitmap,
    Kind,
    Op,
    Place,
    Sequence,
    Step,
    Unit,
    Who,
    UNITS, //
};
use crate::record::{
    Bits,
    Changes,
    Outcome,
    Record,
    View, //
};
use crate::sys::{
    Actor,
    Call, //
};

/// Mappings that C does not get through page by page in a second, in bytes.
const HUGE: u64 = 1 << 30;

/// Containers a sequence can have open at a time.
pub(crate) const SLOTS: usize = 2;
/// Bytes around an argument that are looked at.
const ARG_LEN: usize = 256;
/// Bytes of dirty bitmaps which a sequence may make the kernel keep.
const LOG_BYTES: u64 = 4 << 20;

const EMULATED: u8 = 0xee;
pub(crate) const PIN: libc::Ioctl = request_code_readwrite!(EMULATED, 0, 24) as libc::Ioctl;
pub(crate) const UNPIN: libc::Ioctl = request_code_write!(EMULATED, 1, 24) as libc::Ioctl;
pub(crate) const RW: libc::Ioctl = request_code_write!(EMULATED, 2, 24) as libc::Ioctl;
const FILL: libc::Ioctl = request_code_write!(EMULATED, 3, 16) as libc::Ioctl;
pub(crate) const COUNTERS: libc::Ioctl = request_code_read!(EMULATED, 4, 32) as libc::Ioctl;

/// A device of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) device: String,
    pub(crate) group: u32,
}

/// What all sequences on this machine share.
#[derive(Debug)]
pub(crate) struct Machine {
    units: [Option<Found>; UNITS.len()],
    /// Behind the windows.
    shared: File,
    /// Behind shared memory of the arena.
    object: File,
    /// A file on a disk.
    program: File,
    /// Zeroes without end.
    zero: File,
    vmstat: File,
    refresh: File,
    parent: Actor,
    capabilities: [u32; 6],
    /// Pages pinned when it was last looked.
    pins: i64,
}

/// An open container.
#[derive(Debug, Clone, Copy)]
struct Slot {
    fd: RawFd,
    /// Index of its model.
    container: usize,
    /// A child has it too.
    inherited: bool,
}

/// An open group.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    fd: Option<RawFd>,
    device: Option<RawFd>,
    container: Option<usize>,
    /// Calls of dma_unmap when the device was opened.
    unmaps: u64,
    /// The device's memory is mapped, which keeps it open.
    mapped: bool,
    inherited: bool,
}

/// A sequence that is being carried out.
struct Run<'m> {
    machine: &'m mut Machine,
    parameters: &'m Path,
    /// The driver has GET_BITMAP_NOCLEAR and CLEAR_BITMAP.
    manual_clear: bool,
    child: Option<Actor>,
    slots: [Option<Slot>; SLOTS],
    groups: [Group; UNITS.len()],
    containers: Vec<Container>,
    /// Processes begun so far.
    processes: u32,
    changed_parameters: bool,
    pins: i64,
    /// Pages charged to the parent and to the child when it was last looked.
    locked: [u32; 2],
}

impl Window {
    /// Copies bytes in.
    pub(crate) fn put(self, offset: u64, bytes: &[u8]) {
        assert!(self.writable && offset + bytes.len() as u64 <= self.len());
        let to = std::ptr::with_exposed_provenance_mut::<u8>((self.addr + offset) as usize);
        // SAFETY: The range is within the window, which `Machine::new` has mapped and no
        // reference points to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies bytes out.
    pub(crate) fn get(self, offset: u64, len: usize) -> Vec<u8> {
        assert!(offset + len as u64 <= self.len());
        let mut bytes = vec![0; len];
        let from = std::ptr::with_exposed_provenance::<u8>((self.addr + offset) as usize);
        // SAFETY: As in `put`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        bytes
    }

    fn put_words(self, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.put(0, &bytes);
    }

    fn words<const N: usize>(self) -> [u64; N] {
        let bytes = self.get(0, 8 * N);
        std::array::from_fn(|n| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * n..8 * (n + 1)]);
            u64::from_ne_bytes(word)
        })
    }

    fn mmap(self, shared: &File) -> Call {
        let prot = if self.writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        mmap(
            self.addr,
            self.len(),
            prot,
            libc::MAP_SHARED,
            Some(shared),
            self.first_page * PAGE,
        )
    }
}

/// The call that maps something at a fixed address.
fn mmap(addr: u64, len: u64, prot: i32, flags: i32, file: Option<&File>, offset: u64) -> Call {
    Call::new(
        libc::SYS_mmap,
        [
            addr,
            len,
            prot as u64,
            (flags | libc::MAP_FIXED) as u64,
            file.map_or(u64::MAX, |file| file.as_raw_fd() as u64),
            offset,
        ],
    )
}

fn memfd(len: u64) -> Result<File> {
    // SAFETY: The name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: The kernel has just opened it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// The devices of this machine, by their number in [`UNITS`].
pub(crate) fn find_units() -> Result<[Option<Found>; UNITS.len()]> {
    let mut units = [const { None }; UNITS.len()];
    let Ok(entries) = fs::read_dir("/sys/class/vfio-dev") else {
        return Ok(units);
    };
    for entry in entries {
        let path = fs::canonicalize(entry?.path().join("device"))?;
        let Some(device) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let unit = fs::read_to_string(path.join("unit")).unwrap_or_else(|_| device.to_owned());
        let Some(index) = UNITS.iter().position(|name| *name == unit.trim()) else {
            continue;
        };
        let group = fs::read_link(path.join("iommu_group"))?;
        let group = group
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
            .with_context(|| format!("{}: no group number", path.display()))?;
        units[index] = Some(Found {
            device: device.to_owned(),
            group,
        });
    }
    Ok(units)
}

impl Machine {
    pub(crate) fn new() -> Result<Self> {
        let mut machine = Machine {
            units: find_units()?,
            shared: memfd(SHARED_LEN)?,
            object: memfd(u64::from(ARENA_PAGES) * PAGE)?,
            program: File::open("/proc/self/exe")?,
            zero: File::open("/dev/zero")?,
            vmstat: File::open("/proc/vmstat")?,
            refresh: File::options()
                .write(true)
                .open("/proc/sys/vm/stat_refresh")?,
            parent: Actor::own()?,
            capabilities: [0; 6],
            pins: 0,
        };
        machine.map_windows()?;
        machine.capabilities = machine.read_capabilities()?;
        machine.pins = machine.pinned()?;
        Ok(machine)
    }

    /// Devices that are there.
    pub(crate) fn units(&self) -> Vec<Unit> {
        (0..UNITS.len())
            .filter(|index| self.units[*index].is_some())
            .map(|index| Unit(index as u8))
            .collect()
    }

    fn map_windows(&mut self) -> Result<()> {
        for window in WINDOWS {
            // SAFETY: Nothing else lies at these addresses.
            let ret = unsafe { self.parent.call(window.mmap(&self.shared)) }?;
            ensure!(
                ret as u64 == window.addr,
                "mmap at {:#x}: {ret}",
                window.addr
            );
        }
        Ok(())
    }

    fn read_capabilities(&mut self) -> Result<[u32; 6]> {
        const VERSION_3: u32 = 0x2008_0522;
        SCRATCH.put(0, &u64::from(VERSION_3).to_ne_bytes());
        let call = Call::new(libc::SYS_capget, [SCRATCH.addr, SCRATCH.addr + 8]);
        // SAFETY: The kernel writes 24 bytes of the window.
        let ret = unsafe { self.parent.call(call) }?;
        ensure!(ret == 0, "capget: {ret}");
        let bytes = SCRATCH.get(8, 24);
        Ok(std::array::from_fn(|n| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[4 * n..4 * (n + 1)]);
            u32::from_ne_bytes(word)
        }))
    }

    /// Pages pinned and not yet released in the whole system.
    fn pinned(&mut self) -> Result<i64> {
        // Each CPU keeps a part of the counts to itself until told to add it up.
        self.refresh.write_all(b"1")?;
        let mut text = [0; 16384];
        let len = self.vmstat.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..len])?;
        let counter = |name: &str| -> Result<i64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                .with_context(|| format!("/proc/vmstat has no {name}"))
        };
        Ok(counter("nr_foll_pin_acquired")? - counter("nr_foll_pin_released")?)
    }

    /// Carries out a sequence with the driver that is loaded: one record for each step, and one
    /// for what is left when all is closed.
    pub(crate) fn run(&mut self, sequence: &Sequence, parameters: &Path) -> Result<Vec<Record>> {
        let pins = self.pins;
        let mut run = Run {
            machine: self,
            parameters,
            manual_clear: parameters.join("dirty_granule").exists(),
            child: None,
            slots: [None; SLOTS],
            groups: [Group::default(); UNITS.len()],
            containers: Vec::new(),
            processes: 1,
            changed_parameters: false,
            pins,
            locked: [0; 2],
        };
        run.prepare()?;
        let mut records = Vec::with_capacity(sequence.steps.len() + 1);
        for step in &sequence.steps {
            records.push(run.step(step).with_context(|| step.to_string())?);
        }
        records.push(run.finish()?);
        Ok(records)
    }
}

impl Run<'_> {
    /// Makes a call that is not tested itself.
    fn own(&mut self, who: Who, call: Call) -> Result<i64> {
        let actor = match (who, &mut self.child) {
            (Who::Parent, _) => &mut self.machine.parent,
            (Who::Child, child) => child.as_mut().context("there is no child")?,
        };
        // SAFETY: All calls here name only memory of the windows and of the arena. What drivers
        // copy to user memory goes there too: `Container::reaches_only_arena` was asked before.
        unsafe { actor.call(call) }
    }

    fn ioctl(&mut self, who: Who, fd: RawFd, cmd: libc::Ioctl, arg: u64) -> Result<i64> {
        self.own(who, Call::new(libc::SYS_ioctl, [fd as u64, cmd, arg]))
    }

    fn vfio(&mut self, who: Who, fd: RawFd, command: Command, arg: u64) -> Result<i64> {
        self.ioctl(who, fd, command.code(), arg)
    }

    fn close(&mut self, fd: RawFd) -> Result<()> {
        let ret = self.own(Who::Parent, Call::new(libc::SYS_close, [fd as u64]))?;
        ensure!(ret == 0, "close: {ret}");
        Ok(())
    }

    /// The arena as every sequence finds it.
    fn prepare(&mut self) -> Result<()> {
        const KINDS: [Option<Kind>; 8] = [
            Some(Kind::Anon),
            Some(Kind::FilePrivate),
            Some(Kind::Shared),
            Some(Kind::FilePrivate),
            Some(Kind::AnonRo),
            Some(Kind::SharedRo),
            Some(Kind::NoAccess),
            None,
        ];
        for (zone, kind) in (0..).zip(KINDS) {
            if let Some(kind) = kind {
                let ret = self.mmap(Who::Parent, zone * ZONE, ZONE, kind)?;
                ensure!(ret.is_done(), "mmap of {kind:?}: {ret}");
            }
        }
        Ok(())
    }

    /// Takes all away, and says what is left.
    fn finish(mut self) -> Result<Record> {
        if let Some(child) = self.child.take() {
            child.end()?;
        }
        let unmap = Call::new(libc::SYS_munmap, [ARENA, ARENA_SPAN]);
        self.own(Who::Parent, unmap)?;
        for index in 0..UNITS.len() {
            let group = self.groups[index];
            for fd in [group.device, group.fd].into_iter().flatten() {
                self.close(fd)?;
            }
        }
        for slot in self.slots.into_iter().flatten() {
            self.close(slot.fd)?;
        }
        self.memlock(Who::Parent, libc::RLIM_INFINITY)?;
        self.ipc_lock(Who::Parent, true)?;
        if self.changed_parameters {
            self.parameter("dma_entry_limit", "65535")?;
            self.parameter("disable_hugepages", "0")?;
        }
        self.machine.object.set_len(0)?;
        self.machine.object.set_len(u64::from(ARENA_PAGES) * PAGE)?;

        let mut record = Record::new(Outcome::Done(0));
        record.locked[0] = self.machine.parent.locked()?;
        // What this sequence has left is not the next one's fault.
        self.machine.pins = self.machine.pinned()?;
        record.data = vec![(self.machine.pins - self.pins) as u64];
        Ok(record)
    }

    fn step(&mut self, step: &Step) -> Result<Record> {
        if let Some(why) = self.pointless(step).or_else(|| self.hazard(step)) {
            return Ok(Record::new(Outcome::Skipped(why)));
        }
        let mut record = Record::new(Outcome::Done(0));
        self.carry_out(step, &mut record)?;
        // Drivers may refuse that with errors of which one alone would be a reason to look.
        let look = record.outside;
        if look || charges(&step.op, record.outcome) {
            self.locked = self.read_locked()?;
        }
        record.locked = self.locked;
        if look || changes_translations(&step.op, record.outcome) {
            record.views = self.views()?;
        }
        Ok(record)
    }

    fn read_locked(&self) -> Result<[u32; 2]> {
        let child = self.child.as_ref().map_or(Ok(0), Actor::locked)?;
        Ok([self.machine.parent.locked()?, child])
    }

    fn slot(&self, c: u8) -> Option<Slot> {
        self.slots.get(usize::from(c)).copied().flatten()
    }

    fn group(&self, unit: Unit) -> &Group {
        &self.groups[usize::from(unit.0)]
    }

    fn group_mut(&mut self, unit: Unit) -> &mut Group {
        &mut self.groups[usize::from(unit.0)]
    }

    /// The model of the container behind a slot.
    fn container(&self, c: u8) -> Option<&Container> {
        self.slot(c).map(|slot| &self.containers[slot.container])
    }

    /// The model of the container that a device is in.
    fn container_of(&self, unit: Unit) -> Option<&Container> {
        self.group(unit)
            .container
            .map(|index| &self.containers[index])
    }

    /// Why there is nothing to do: what the step works on is not there.
    fn pointless(&self, step: &Step) -> Option<&'static str> {
        let child = step.who == Who::Child;
        if child && self.child.is_none() {
            return Some("there is no child");
        }
        match &step.op {
            Op::Open { c } => self.slot(*c).map(|_| "the slot is taken"),
            Op::Close { c } => match self.slot(*c) {
                None => Some("not open"),
                Some(_) if self.child.is_some() => Some("a child has it open too"),
                Some(_) => None,
            },
            Op::ApiVersion { c }
            | Op::CheckExtension { c, .. }
            | Op::SetIommu { c, .. }
            | Op::GetInfo { c, .. }
            | Op::Map { c, .. }
            | Op::Unmap { c, .. }
            | Op::Dirty { c, .. }
            | Op::Unknown { c, .. } => match self.slot(*c) {
                None => Some("not open"),
                Some(slot) if child && !slot.inherited => Some("the child does not have it"),
                Some(_) => None,
            },
            Op::OpenGroup { unit } => {
                if self.machine.units[usize::from(unit.0)].is_none() {
                    Some("there is no such device")
                } else {
                    self.group(*unit).fd.map(|_| "open already")
                }
            }
            Op::CloseGroup { unit }
            | Op::SetContainer { unit, .. }
            | Op::UnsetContainer { unit }
            | Op::OpenDevice { unit } => {
                let group = self.group(*unit);
                let closes = matches!(step.op, Op::CloseGroup { .. });
                if group.fd.is_none() {
                    Some("not open")
                } else if child && !group.inherited {
                    Some("the child does not have it")
                } else if closes && self.child.is_some() {
                    Some("a child has it open too")
                } else if closes && group.device.is_some() {
                    Some("its device is open")
                } else {
                    match &step.op {
                        Op::SetContainer { c, .. } if self.slot(*c).is_none() => Some("not open"),
                        Op::SetContainer { c, .. }
                            if child && self.slot(*c).is_some_and(|slot| !slot.inherited) =>
                        {
                            Some("the child does not have it")
                        }
                        Op::OpenDevice { .. } => group.device.map(|_| "open already"),
                        _ => None,
                    }
                }
            }
            Op::CloseDevice { unit }
            | Op::Pin { unit, .. }
            | Op::Unpin { unit, .. }
            | Op::Rw { unit, .. }
            | Op::Fill { unit, .. }
            | Op::Dma { unit, .. } => {
                let group = self.group(*unit);
                let closes = matches!(step.op, Op::CloseDevice { .. });
                if group.device.is_none() {
                    Some("not open")
                } else if child && !group.inherited {
                    Some("the child does not have it")
                } else if closes && self.child.is_some() {
                    Some("a child has it open too")
                } else if closes && group.mapped {
                    Some("its memory is mapped")
                } else {
                    let wrong = match step.op {
                        Op::CloseDevice { .. } => false,
                        Op::Dma { .. } => unit.emulated(),
                        _ => !unit.emulated(),
                    };
                    wrong.then_some("not for this kind of device")
                }
            }
            Op::Fork => self.child.as_ref().map(|_| "there is a child"),
            Op::Exec | Op::Exit if self.child.is_none() => Some("there is no child"),
            _ => None,
        }
    }

    /// Why the step must not be done: the C driver does not survive it, or does what is intended
    /// to be different here, or this program would not survive it. See uapi-parity.md.
    fn hazard(&self, step: &Step) -> Option<&'static str> {
        let joins = |container: &Container, unit: Unit| {
            if unit.emulated() {
                return None;
            }
            let owner = self.owner(step.who);
            if !container.has_iommu()
                && container
                    .mappings
                    .values()
                    .any(|mapping| mapping.owner != owner)
            {
                // C pins the memory of whoever attaches.
                Some("memory of another process when an IOMMU joins")
            } else if !container.has_iommu()
                && container
                    .mappings
                    .iter()
                    .any(|(first, mapping)| mapping.last - first >= HUGE)
            {
                // If the IOMMU cannot join, C looks for each page of all mappings, for hours.
                Some("huge mappings when an IOMMU joins")
            } else if container
                .mappings
                .values()
                .any(|m| !model::is_arena(m.vaddr, 1))
            {
                Some("memory of this program")
            } else {
                None
            }
        };
        match &step.op {
            Op::SetContainer { unit, c } => {
                let container = self.container(*c)?;
                if container.mixes_dirty(*unit) {
                    return Some("page tables that C shares");
                }
                joins(container, *unit)
            }
            Op::SetIommu { c, .. } => {
                let container = self.container(*c)?;
                let units = container.units.iter();
                units.copied().find_map(|unit| joins(container, unit))
            }
            Op::Map { c, size, vaddr, .. } => {
                let container = self.container(*c)?;
                if container.has_iommu() && !model::is_arena(*vaddr, 1) {
                    return Some("memory of this program");
                }
                let bytes = container.log_bytes() + model::log_bytes(size.wrapping_sub(1));
                (container.tracking && bytes > LOG_BYTES).then_some("too much memory for logs")
            }
            Op::Dirty { c, flags: 1, .. } => {
                (self.container(*c)?.log_bytes() > LOG_BYTES).then_some("too much memory for logs")
            }
            Op::Rw {
                unit, iova, len, ..
            } => {
                let container = self.container_of(*unit)?;
                (!container.reaches_only_arena(*iova, u64::from(*len)))
                    .then_some("memory of this program")
            }
            Op::Pin {
                unit, iova, pages, ..
            } => {
                let container = self.container_of(*unit)?;
                // More than 512 are refused before any is looked at.
                (*pages <= 512 && !container.reaches_only_arena(*iova, u64::from(*pages) * PAGE))
                    .then_some("memory of this program")
            }
            Op::Fill { unit, iova, .. } => {
                let container = self.container_of(*unit)?;
                let page = iova & !(PAGE - 1);
                let mapping = container.mappings.range(..=page).next_back()?;
                // A device that writes what it may only read is not a device.
                (!mapping.1.writable).then_some("memory that devices may only read")
            }
            _ => None,
        }
    }

    /// The number of a process.
    fn owner(&self, who: Who) -> u32 {
        match who {
            Who::Parent => 0,
            Who::Child => self.processes - 1,
        }
    }

    fn carry_out(&mut self, step: &Step, record: &mut Record) -> Result<()> {
        let who = step.who;
        let outcome = match &step.op {
            Op::Open { c } => self.open(*c)?,
            Op::Close { c } => {
                if let Some(slot) = self.slots[usize::from(*c)].take() {
                    self.close(slot.fd)?;
                }
                Outcome::Done(0)
            }
            Op::OpenGroup { unit } => self.open_group(*unit)?,
            Op::CloseGroup { unit } => {
                if let Some(fd) = self.group_mut(*unit).fd.take() {
                    self.close(fd)?;
                }
                self.left(*unit);
                Outcome::Done(0)
            }
            Op::SetContainer { unit, c } => self.set_container(who, *unit, *c, record)?,
            Op::UnsetContainer { unit } => {
                let outcome = self.group_call(who, *unit, Command::GROUP_UNSET_CONTAINER, 0)?;
                if outcome.is_done() {
                    self.left(*unit);
                }
                outcome
            }
            Op::OpenDevice { unit } => self.open_device(*unit)?,
            Op::CloseDevice { unit } => {
                if let Some(fd) = self.group_mut(*unit).device.take() {
                    self.close(fd)?;
                }
                Outcome::Done(0)
            }

            Op::ApiVersion { c } => self.command(who, *c, Command::GET_API_VERSION, 0)?,
            Op::CheckExtension { c, extension } => {
                self.command(who, *c, Command::CHECK_EXTENSION, *extension)?
            }
            Op::SetIommu { c, model } => {
                let outcome = self.command(who, *c, Command::SET_IOMMU, *model)?;
                if outcome.is_done() {
                    self.model(*c).version = Some(if *model == 1 { 1 } else { 2 });
                }
                outcome
            }
            Op::Unknown { c, cmd, arg } => {
                let slot = self.slot(*c).context("no container")?;
                Outcome::from_raw(self.ioctl(who, slot.fd, (*cmd).into(), *arg)?)
            }
            Op::GetInfo { c, argsz, place } => {
                let bytes = argsz.to_ne_bytes();
                self.structure(who, *c, Command::GET_INFO, &bytes, *place, record)?
            }
            Op::Map { .. } => self.map(step, record)?,
            Op::Unmap { .. } => self.unmap(step, record)?,
            Op::Dirty { .. } => self.dirty(step, record)?,

            Op::Pin { .. } | Op::Unpin { .. } | Op::Rw { .. } | Op::Fill { .. } => {
                self.driver(step, record)?
            }
            Op::Dma { .. } => self.dma(step, record)?,

            Op::Mmap { page, pages, kind } => self.mmap(who, *page, *pages, *kind)?,
            Op::Munmap { page, pages } => {
                self.arena_call(who, libc::SYS_munmap, *page, *pages, 0)?
            }
            Op::Mprotect { page, pages, prot } => {
                self.arena_call(who, libc::SYS_mprotect, *page, *pages, u64::from(prot & 3))?
            }
            Op::Discard { page, pages } => {
                let advice = libc::MADV_DONTNEED as u64;
                self.arena_call(who, libc::SYS_madvise, *page, *pages, advice)?
            }
            Op::Touch { page, byte } => {
                DATA.put(0, &[*byte; 64]);
                self.copy_page(who, libc::SYS_pread64, *page, DATA)?
            }
            Op::Peek { page } => {
                SCRATCH.put(0, &[0; 64]);
                let outcome = self.copy_page(who, libc::SYS_pwrite64, *page, SCRATCH)?;
                record.data = SCRATCH.words::<8>().to_vec();
                outcome
            }

            Op::Memlock { bytes } => Outcome::from_raw(self.memlock(who, *bytes)?),
            Op::IpcLock { on } => Outcome::from_raw(self.ipc_lock(who, *on)?),
            Op::Fork => {
                self.child = Some(Actor::fork()?);
                self.processes += 1;
                for slot in self.slots.iter_mut().flatten() {
                    slot.inherited = true;
                }
                for group in &mut self.groups {
                    group.inherited = group.fd.is_some() || group.device.is_some();
                }
                Outcome::Done(0)
            }
            Op::Exec => self.exec()?,
            Op::Exit => {
                if let Some(child) = self.child.take() {
                    child.end()?;
                }
                self.forget_child();
                Outcome::Done(0)
            }

            Op::EntryLimit { limit } => self.parameter("dma_entry_limit", &limit.to_string())?,
            Op::HugePages { on } => {
                self.parameter("disable_hugepages", if *on { "0" } else { "1" })?
            }
            Op::CountPins => Outcome::Done(self.machine.pinned()? - self.pins),
        };
        record.outcome = outcome;
        Ok(())
    }

    // Files.

    fn open(&mut self, c: u8) -> Result<Outcome> {
        SCRATCH.put(0, b"/dev/vfio/vfio\0");
        let fd = self.open_file()?;
        if let Outcome::Done(fd) = fd {
            self.containers.push(Container::default());
            self.slots[usize::from(c)] = Some(Slot {
                fd: fd as RawFd,
                container: self.containers.len() - 1,
                inherited: false,
            });
            return Ok(Outcome::Done(0));
        }
        Ok(fd)
    }

    /// Opens the file whose name is in the scratch window.
    fn open_file(&mut self) -> Result<Outcome> {
        let flags = (libc::O_RDWR | libc::O_CLOEXEC) as u64;
        let at = libc::AT_FDCWD as u64;
        let call = Call::new(libc::SYS_openat, [at, SCRATCH.addr, flags, 0]);
        Ok(Outcome::from_raw(self.own(Who::Parent, call)?))
    }

    fn open_group(&mut self, unit: Unit) -> Result<Outcome> {
        let found = &self.machine.units[usize::from(unit.0)];
        let number = found.as_ref().context("no such device")?.group;
        SCRATCH.put(0, format!("/dev/vfio/{number}\0").as_bytes());
        let fd = self.open_file()?;
        if let Outcome::Done(fd) = fd {
            *self.group_mut(unit) = Group {
                fd: Some(fd as RawFd),
                ..Group::default()
            };
            return Ok(Outcome::Done(0));
        }
        Ok(fd)
    }

    fn group_call(&mut self, who: Who, unit: Unit, command: Command, arg: u64) -> Result<Outcome> {
        let fd = self.group(unit).fd.context("no group")?;
        Ok(Outcome::from_raw(self.vfio(who, fd, command, arg)?))
    }

    fn set_container(
        &mut self,
        who: Who,
        unit: Unit,
        c: u8,
        record: &mut Record,
    ) -> Result<Outcome> {
        let slot = self.slot(c).context("no container")?;
        let container = &self.containers[slot.container];
        record.outside = !unit.emulated() && !container.has_iommu() && container.outside(unit);
        SCRATCH.put(0, &slot.fd.to_ne_bytes());
        let command = Command::GROUP_SET_CONTAINER;
        let outcome = self.group_call(who, unit, command, SCRATCH.addr)?;
        if outcome.is_done() {
            self.group_mut(unit).container = Some(slot.container);
            let container = &mut self.containers[slot.container];
            container.units.push(unit);
            container.tells_dirty |= unit.kind() == "dirty";
        }
        Ok(outcome)
    }

    /// A group is in no container any more.
    fn left(&mut self, unit: Unit) {
        if let Some(index) = self.group_mut(unit).container.take() {
            let container = &mut self.containers[index];
            container.units.retain(|other| *other != unit);
            if container.units.is_empty() {
                container.released();
            }
        }
    }

    fn open_device(&mut self, unit: Unit) -> Result<Outcome> {
        let found = self.machine.units[usize::from(unit.0)].as_ref();
        let name = format!("{}\0", found.context("no such device")?.device);
        SCRATCH.put(0, name.as_bytes());
        let command = Command::GROUP_GET_DEVICE_FD;
        let outcome = self.group_call(Who::Parent, unit, command, SCRATCH.addr)?;
        if let Outcome::Done(fd) = outcome {
            let group = self.group_mut(unit);
            group.device = Some(fd as RawFd);
            (group.inherited, group.mapped) = (false, false);
            if unit.emulated() {
                self.group_mut(unit).unmaps = 0;
                let [unmaps, ..] = self.counters(unit)?;
                self.group_mut(unit).unmaps = unmaps;
            }
            return Ok(Outcome::Done(0));
        }
        Ok(outcome)
    }

    // The container.

    fn model(&mut self, c: u8) -> &mut Container {
        let index = self.slots[usize::from(c)].map_or(0, |slot| slot.container);
        &mut self.containers[index]
    }

    fn command(&mut self, who: Who, c: u8, command: Command, arg: u64) -> Result<Outcome> {
        let slot = self.slot(c).context("no container")?;
        Ok(Outcome::from_raw(self.vfio(who, slot.fd, command, arg)?))
    }

    /// Issues an ioctl that takes a structure, and records what became of it.
    fn structure(
        &mut self,
        who: Who,
        c: u8,
        command: Command,
        bytes: &[u8],
        place: Place,
        record: &mut Record,
    ) -> Result<Outcome> {
        const PATTERN: u8 = 0xa5;
        let mut before = [PATTERN; ARG_LEN];
        before[..bytes.len()].copy_from_slice(bytes);
        let (offset, len, arg) = match place {
            Place::Memory => (0, ARG_LEN, ARG.addr),
            Place::ReadOnly => (0, ARG_LEN, ARG_READ_ONLY.addr),
            Place::Edge(n) => {
                let len = usize::from(n).min(ARG_LEN);
                let offset = ARG.len() - len as u64;
                (offset, len, ARG.addr + offset)
            }
            Place::Null => (0, 0, 0),
            Place::Kernel => (0, 0, KERNEL),
        };
        ARG.put(offset, &before[..len]);
        let outcome = self.command(who, c, command, arg)?;
        record.argument = Changes::between(&before[..len], &ARG.get(offset, len));
        Ok(outcome)
    }

    /// The same with a bitmap, which is recorded as well.
    fn with_bitmap(
        &mut self,
        bitmap: Option<&Bitmap>,
        range: Option<(u64, u64)>,
        c: u8,
        record: &mut Record,
        call: impl FnOnce(&mut Self, &mut Record) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let Some(bitmap) = bitmap else {
            return call(self, record);
        };
        let before = vec![bitmap.fill; BITMAP.len() as usize];
        BITMAP.put(0, &before);
        let unsure =
            range.map(|(first, last)| self.model(c).unsure_bits(first, last, bitmap.fill == 0));
        let outcome = call(self, record)?;

        let mut bits = Bits {
            fill: bitmap.fill,
            told: self.model(c).tells_dirty,
            changes: Changes::between(&before, &BITMAP.get(0, before.len())),
            ..Bits::default()
        };
        // Where the bitmap begins in the window, if it does.
        if let Some(start) = bitmap.data.checked_sub(BITMAP.addr) {
            for bit in unsure
                .into_iter()
                .flatten()
                .flat_map(|(first, end)| first..end)
            {
                let at = start.saturating_add(bit / 8);
                if at < BITMAP.len() {
                    *bits.unsure.entry(at as u16).or_default() |= 1 << (bit % 8);
                }
            }
        }
        record.bitmap = Some(bits);
        Ok(outcome)
    }

    fn map(&mut self, step: &Step, record: &mut Record) -> Result<Outcome> {
        let Op::Map {
            c,
            argsz,
            flags,
            vaddr,
            iova,
            size,
            place,
        } = step.op
        else {
            return Ok(Outcome::Skipped("not a map"));
        };
        let bytes = argument(argsz, flags, [vaddr, iova, size]);
        let outcome = self.structure(step.who, c, Command::MAP_DMA, &bytes, place, record)?;
        if outcome.is_done() {
            let owner = self.owner(step.who);
            let mappings = &mut self.model(c).mappings;
            if flags & 4 != 0 {
                if let Some(mapping) = mappings.get_mut(&iova) {
                    (mapping.vaddr, mapping.owner) = (vaddr, owner);
                }
            } else {
                mappings.insert(
                    iova,
                    Mapping {
                        last: iova.wrapping_add(size.wrapping_sub(1)),
                        vaddr,
                        writable: flags & 2 != 0,
                        owner,
                        shifted: false,
                    },
                );
            }
        }
        Ok(outcome)
    }

    fn unmap(&mut self, step: &Step, record: &mut Record) -> Result<Outcome> {
        let Op::Unmap {
            c,
            argsz,
            flags,
            iova,
            size,
            ref bitmap,
            place,
        } = step.op
        else {
            return Ok(Outcome::Skipped("not an unmap"));
        };
        let words = [iova, size].into_iter().chain(described(bitmap.as_ref()));
        let bytes = argument(argsz, flags, words);

        let last = iova.wrapping_add(size.wrapping_sub(1));
        let (first, last) = if flags & 2 != 0 {
            (0, u64::MAX)
        } else {
            (iova, last)
        };
        let wants_bits = flags & 7 == 1;
        let range = (wants_bits && first <= last).then_some((first, last));
        let outcome = self.with_bitmap(bitmap.as_ref(), range, c, record, |run, record| {
            run.structure(step.who, c, Command::UNMAP_DMA, &bytes, place, record)
        })?;

        let refused_late = outcome == Outcome::Refused(Errno::EFAULT);
        if outcome.is_done() || (refused_late && place == Place::ReadOnly && !wants_bits) {
            if flags & 4 == 0 {
                self.model(c).unmapped(first, last);
            }
        } else if refused_late && wants_bits {
            // Some mappings may be gone; of those that are left C may have spoiled the log.
            self.start_over(c, true, record)?;
        }
        self.record_counters(c, record)?;
        Ok(outcome)
    }

    fn dirty(&mut self, step: &Step, record: &mut Record) -> Result<Outcome> {
        let Op::Dirty {
            c,
            argsz,
            flags,
            iova,
            size,
            ref bitmap,
            place,
        } = step.op
        else {
            return Ok(Outcome::Skipped("not about dirty pages"));
        };
        // Without these two another is asked that has the same checks; afterwards all begins anew.
        let manual = matches!(flags, DIRTY_GET_NOCLEAR | DIRTY_CLEAR);
        let sent = if manual && !self.manual_clear {
            DIRTY_GET
        } else {
            flags
        };
        let words = [iova, size].into_iter().chain(described(bitmap.as_ref()));
        let bytes = argument(argsz, sent, words);

        let last = iova.checked_add(size.wrapping_sub(1));
        let range = last
            .filter(|_| matches!(flags, DIRTY_GET | DIRTY_GET_NOCLEAR))
            .map(|last| (iova, last));
        if let Some(slot) = self.slot(c).filter(|_| manual) {
            record.cuts = last.is_some_and(|last| self.containers[slot.container].cuts(iova, last));
        }
        let outcome = self.with_bitmap(bitmap.as_ref(), range, c, record, |run, record| {
            run.structure(step.who, c, Command::DIRTY_PAGES, &bytes, place, record)
        })?;

        if manual && !matches!(outcome, Outcome::Skipped(_)) {
            if flags == DIRTY_CLEAR {
                record.bitmap = None;
            }
            self.start_over(c, false, record)?;
            return Ok(outcome);
        }
        match (flags, outcome) {
            (1, Outcome::Done(_)) => self.model(c).tracking = true,
            (2, Outcome::Done(_)) => self.model(c).stopped(),
            (4, Outcome::Done(_)) => {
                if let Some((first, last)) = range {
                    self.model(c).reported(first, last);
                }
            }
            // C leaves the log shifted of the mapping it could not report.
            (4, Outcome::Refused(Errno::EFAULT)) => self.start_over(c, false, record)?,
            _ => {}
        }
        Ok(outcome)
    }

    /// Stops tracking, and unmaps all, after a failure which may have left drivers in different
    /// states.
    fn start_over(&mut self, c: u8, unmap: bool, record: &mut Record) -> Result<()> {
        let mut call = |run: &mut Self, command, bytes: &[u8]| -> Result<()> {
            SCRATCH.put(0, bytes);
            let slot = run.slot(c).context("no container")?;
            let ret = run.vfio(Who::Parent, slot.fd, command, SCRATCH.addr)?;
            record.data.push(ret as u64);
            Ok(())
        };
        if unmap {
            call(self, Command::UNMAP_DMA, &argument(24, 2, [0, 0]))?;
            self.model(c).mappings.clear();
        }
        call(self, Command::DIRTY_PAGES, &argument(8, 2, []))?;
        self.model(c).stopped();
        Ok(())
    }

    // Drivers of emulated devices.

    fn driver(&mut self, step: &Step, record: &mut Record) -> Result<Outcome> {
        let mut words = Vec::with_capacity(3);
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (unit, cmd) = match step.op {
            Op::Pin {
                unit,
                iova,
                pages,
                prot,
            } => {
                words.extend([iova, pair(pages, prot), 0]);
                (unit, PIN)
            }
            Op::Unpin { unit, iova, pages } => {
                words.extend([iova, pair(pages, 0), 0]);
                (unit, UNPIN)
            }
            Op::Rw {
                unit,
                iova,
                len,
                write,
                kthread,
                byte,
            } => {
                let flags = u32::from(write) | u32::from(kthread) << 1;
                let fill = vec![byte; (u64::from(len).min(DATA.len())) as usize];
                DATA.put(0, &fill);
                words.extend([iova, DATA.addr, pair(len, flags)]);
                (unit, RW)
            }
            Op::Fill { unit, iova, byte } => {
                words.extend([iova, u64::from(byte)]);
                (unit, FILL)
            }
            _ => return Ok(Outcome::Skipped("not for a driver")),
        };
        SCRATCH.put_words(&words);
        let fd = self.group(unit).device.context("no device")?;
        let outcome = Outcome::from_raw(self.ioctl(step.who, fd, cmd, SCRATCH.addr)?);
        match step.op {
            Op::Pin { .. } => {
                // Pointers to pages that a failed call has left.
                let [_, _, stale] = SCRATCH.words();
                record.data.push(stale & 0xffff_ffff);
            }
            Op::Rw {
                write: false, len, ..
            } if outcome.is_done() => {
                let len = (u64::from(len).min(DATA.len())) as usize;
                record.data.push(digest(&DATA.get(0, len)));
            }
            _ => {}
        }
        if !matches!(step.op, Op::Rw { .. }) {
            let counters = self.counters(unit)?;
            record.data.extend(counters);
        }
        Ok(outcome)
    }

    /// Calls of dma_unmap since the device was opened, calls ignored, pages and users of pins.
    fn counters(&mut self, unit: Unit) -> Result<[u64; 4]> {
        let group = *self.group(unit);
        let fd = group.device.context("no device")?;
        let ret = self.ioctl(Who::Parent, fd, COUNTERS, SCRATCH.addr)?;
        ensure!(ret == 0, "counters: {ret}");
        let [unmaps, refused, pages, users] = SCRATCH.words();
        Ok([unmaps - group.unmaps, refused, pages, users])
    }

    /// Records the counters of all emulated devices of a container.
    fn record_counters(&mut self, c: u8, record: &mut Record) -> Result<()> {
        let Some(slot) = self.slot(c) else {
            return Ok(());
        };
        for index in 0..UNITS.len() {
            let (unit, group) = (Unit(index as u8), self.groups[index]);
            if unit.emulated() && group.device.is_some() && group.container == Some(slot.container)
            {
                let counters = self.counters(unit)?;
                record.data.extend(counters);
            }
        }
        Ok(())
    }

    // Devices behind software IOMMUs.

    fn dma(&mut self, step: &Step, record: &mut Record) -> Result<Outcome> {
        let Op::Dma {
            unit,
            iova,
            len,
            write,
            seed,
        } = step.op
        else {
            return Ok(Outcome::Skipped("no DMA"));
        };
        let op = if write {
            soft::Op::Fill
        } else {
            soft::Op::Checksum
        };
        // `struct vrs_iommu_dma`, carried out by the calling task.
        let words = [op as u64, iova, 0, len, seed, 0, 0, 0, 0];
        SCRATCH.put_words(&words);
        let fd = self.group(unit).device.context("no device")?;
        let ret = self.ioctl(step.who, fd, soft::code::DMA, SCRATCH.addr)?;
        let after: [u64; 9] = SCRATCH.words();
        record.data.extend(&after[5..]);
        Ok(Outcome::from_raw(ret))
    }

    /// What the IOMMUs translate for all devices that are open.
    fn views(&mut self) -> Result<Vec<Vec<View>>> {
        let mut views = Vec::new();
        for index in 0..UNITS.len() {
            let Some(fd) = self.groups[index].device else {
                continue;
            };
            if !Unit(index as u8).emulated() {
                views.push(self.view(fd)?);
            }
        }
        Ok(views)
    }

    /// What the IOMMU in front of a device translates.
    fn view(&mut self, fd: RawFd) -> Result<Vec<View>> {
        const LEAF: u64 = size_of::<soft::Leaf>() as u64;
        let room = DATA.len() / LEAF;
        let mut view: Vec<View> = Vec::new();
        let mut next = Some(0u64);
        while let Some(iova) = next {
            SCRATCH.put_words(&[iova, DATA.addr, room]);
            let found = self.ioctl(Who::Parent, fd, soft::code::WALK, SCRATCH.addr)?;
            ensure!(found >= 0, "WALK: {found}");
            let found = found as u64;
            let bytes = DATA.get(0, (found * LEAF) as usize);
            next = None;
            for leaf in bytes.chunks_exact(LEAF as usize) {
                let word = |n: usize| {
                    let mut word = [0; 8];
                    word.copy_from_slice(&leaf[8 * n..8 * (n + 1)]);
                    u64::from_ne_bytes(word)
                };
                let (iova, size, prot, tag) = (word(0), word(2), word(3), word(4));
                add_leaf(&mut view, iova, size, prot, tag);
                next = iova.checked_add(size);
            }
            next = next.filter(|_| found == room);
        }
        Ok(view)
    }

    // Memory.

    fn mmap(&mut self, who: Who, page: u32, pages: u32, kind: Kind) -> Result<Outcome> {
        use libc::{
            MAP_ANONYMOUS,
            MAP_PRIVATE,
            MAP_SHARED,
            PROT_NONE,
            PROT_READ,
            PROT_WRITE, //
        };
        let (page, pages) = clamp(page, pages);
        let (addr, len) = (arena(page), u64::from(pages) * PAGE);
        let (object, program) = (&self.machine.object, &self.machine.program);
        let offset = u64::from(page) * PAGE;
        let anonymous = MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let both = PROT_READ | PROT_WRITE;
        let call = match kind {
            Kind::Anon => mmap(addr, len, both, anonymous, None, 0),
            Kind::AnonRo => mmap(addr, len, PROT_READ, anonymous, None, 0),
            Kind::NoAccess => mmap(addr, len, PROT_NONE, anonymous, None, 0),
            Kind::Shared => mmap(addr, len, both, MAP_SHARED, Some(object), offset),
            Kind::SharedRo => mmap(addr, len, PROT_READ, MAP_SHARED, Some(object), offset),
            // Every page of the program is another one.
            Kind::FilePrivate => mmap(addr, len, both, MAP_PRIVATE, Some(program), offset),
            Kind::FileRo => mmap(addr, len, PROT_READ, MAP_SHARED, Some(program), offset),
            Kind::DeviceMemory => {
                let open = |unit: &Unit| !unit.emulated() && self.group(*unit).device.is_some();
                let found = (0..UNITS.len() as u8).map(Unit).find(open);
                let Some((unit, fd)) = found.zip(found.and_then(|u| self.group(u).device)) else {
                    return Ok(Outcome::Skipped("no device with memory is open"));
                };
                self.group_mut(unit).mapped = true;
                let mut call = mmap(addr, len, both, MAP_SHARED, None, offset);
                call.args[4] = fd as u64;
                call
            }
        };
        let ret = self.own(who, call)?;
        if ret as u64 != addr {
            return Ok(Outcome::from_raw(ret));
        }
        if kind == Kind::DeviceMemory {
            // It has what the last sequence left there.
            let fd = self.machine.zero.as_raw_fd() as u64;
            self.own(who, Call::new(libc::SYS_read, [fd, addr, len]))?;
        }
        Ok(Outcome::Done(0))
    }

    fn arena_call(
        &mut self,
        who: Who,
        number: i64,
        page: u32,
        pages: u32,
        arg: u64,
    ) -> Result<Outcome> {
        let (page, pages) = clamp(page, pages);
        let args = [arena(page), u64::from(pages) * PAGE, arg];
        Ok(Outcome::from_raw(self.own(who, Call::new(number, args))?))
    }

    /// Copies 64 bytes between a page of the arena and a window, through the window's file: what
    /// the process may not do is refused.
    fn copy_page(&mut self, who: Who, number: i64, page: u32, window: Window) -> Result<Outcome> {
        let (page, _) = clamp(page, 1);
        let fd = self.machine.shared.as_raw_fd() as u64;
        let args = [fd, arena(page), 64, window.first_page * PAGE];
        Ok(Outcome::from_raw(self.own(who, Call::new(number, args))?))
    }

    // Processes.

    fn memlock(&mut self, who: Who, bytes: u64) -> Result<i64> {
        SCRATCH.put(0, &bytes.to_ne_bytes());
        SCRATCH.put(8, &libc::RLIM_INFINITY.to_ne_bytes());
        let resource = u64::from(libc::RLIMIT_MEMLOCK);
        self.own(
            who,
            Call::new(libc::SYS_setrlimit, [resource, SCRATCH.addr]),
        )
    }

    fn ipc_lock(&mut self, who: Who, on: bool) -> Result<i64> {
        const CAP_IPC_LOCK: u32 = 14;
        let mut words = self.machine.capabilities;
        if !on {
            words[0] &= !(1 << CAP_IPC_LOCK);
        }
        const VERSION_3: u32 = 0x2008_0522;
        SCRATCH.put(0, &u64::from(VERSION_3).to_ne_bytes());
        for (n, word) in (0..).zip(words) {
            SCRATCH.put(8 + 4 * n, &word.to_ne_bytes());
        }
        self.own(
            who,
            Call::new(libc::SYS_capset, [SCRATCH.addr, SCRATCH.addr + 8]),
        )
    }

    fn exec(&mut self) -> Result<Outcome> {
        let mut keep = vec![
            self.machine.shared.as_raw_fd(),
            self.machine.object.as_raw_fd(),
            self.machine.program.as_raw_fd(),
            self.machine.zero.as_raw_fd(),
        ];
        keep.extend(
            self.slots
                .iter()
                .flatten()
                .filter(|s| s.inherited)
                .map(|s| s.fd),
        );
        for group in self.groups.iter().filter(|group| group.inherited) {
            keep.extend([group.fd, group.device].into_iter().flatten());
        }
        let child = self.child.as_mut().context("there is no child")?;
        child.exec(&keep)?;
        self.processes += 1;
        for window in WINDOWS {
            let call = window.mmap(&self.machine.shared);
            self.own(Who::Child, call)?;
        }
        Ok(Outcome::Done(0))
    }

    fn forget_child(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.inherited = false;
        }
        for group in &mut self.groups {
            group.inherited = false;
        }
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<Outcome> {
        self.changed_parameters = true;
        let path = self.parameters.join(name);
        fs::write(&path, value).with_context(|| path.display().to_string())?;
        Ok(Outcome::Done(0))
    }
}

/// Whether a call may have changed what IOMMUs translate.
fn changes_translations(op: &Op, outcome: Outcome) -> bool {
    match op {
        Op::Map { .. } | Op::Unmap { .. } | Op::SetContainer { .. } => charges(op, outcome),
        Op::OpenDevice { .. } | Op::UnsetContainer { .. } | Op::CloseGroup { .. } => true,
        _ => false,
    }
}

/// Whether a call may have changed who pays for how many pages. To look takes as long as the call:
/// what a refused one did wrong shows at the next look.
fn charges(op: &Op, outcome: Outcome) -> bool {
    match op {
        Op::Map { .. }
        | Op::Unmap { .. }
        | Op::Pin { .. }
        | Op::Unpin { .. }
        | Op::SetContainer { .. }
        | Op::UnsetContainer { .. }
        | Op::SetIommu { .. } => {
            outcome.is_done()
                || matches!(
                    outcome,
                    Outcome::Refused(Errno::EFAULT | Errno::ENOMEM | Errno::EIO)
                )
        }
        Op::CloseDevice { .. } | Op::CloseGroup { .. } => true,
        Op::Fork | Op::Exec | Op::Exit => true,
        _ => false,
    }
}

/// A structure as type1 takes it: its size and flags, then words.
fn argument(argsz: u32, flags: u32, words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let header = [argsz, flags].into_iter().flat_map(u32::to_ne_bytes);
    let words = words.into_iter().flat_map(u64::to_ne_bytes);
    header.chain(words).collect()
}

/// The words that describe a bitmap in such a structure.
fn described(bitmap: Option<&Bitmap>) -> impl Iterator<Item = u64> {
    let words = bitmap.map(|bitmap| [bitmap.pgsize, bitmap.size, bitmap.data]);
    words.into_iter().flatten()
}

/// Adds a leaf to what was found so far; `rights` has flags in its upper half.
fn add_leaf(view: &mut Vec<View>, iova: u64, size: u64, rights: u64, tag: u64) {
    let (prot, flags) = (rights as u32, (rights >> 32) as u32 & !soft::LEAF_DIRTY);
    let pages = size / PAGE;
    let mix = |content: u64| {
        let small = pages == 1;
        small.then(|| (content ^ tag).wrapping_mul(0x100_0000_01b3).rotate_left(5))
    };
    if let Some(last) = view.last_mut() {
        let follows = last.iova.checked_add(last.pages * PAGE) == Some(iova);
        if follows && (last.prot, last.flags) == (prot, flags) {
            last.pages += pages;
            last.content = last.content.and_then(mix);
            return;
        }
    }
    view.push(View {
        iova,
        pages,
        prot,
        flags,
        content: mix(0),
    });
}

/// Pages within the arena.
fn clamp(page: u32, pages: u32) -> (u32, u32) {
    let page = page % ARENA_PAGES;
    (page, pages.clamp(1, ARENA_PAGES - page))
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
