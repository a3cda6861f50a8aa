// SPDX-License-Identifier: GPL-2.0

//! What `vrs_stage2.ko` sees and does: descriptors of stage 2, mappings that VFIO does not make, and
//! threads that are held.

use std::fmt::{
    self,
    Display, //
};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use harness::check::{
    missing_or_fail,
    Verdict, //
};
use harness::memory::Memory;

use crate::guest::Cpu;

/// Structures and requests of `selftests/kmod/vrs_stage2.h`.
mod raw {
    #[repr(C)]
    pub(super) struct Leaf {
        pub(super) ipa: u64,
        pub(super) vcpu: i32,
        pub(super) level: i32,
        pub(super) descriptor: u64,
        pub(super) hcr_el2: u64,
        pub(super) vtcr_el2: u64,
    }

    #[repr(C)]
    pub(super) struct Range {
        pub(super) first: u64,
        pub(super) last: u64,
    }

    nix::ioctl_readwrite!(leaf, 0xeb, 0, Leaf);
    nix::ioctl_write_ptr!(hold_unmap, 0xeb, 1, Range);
    nix::ioctl_none!(hold_fault, 0xeb, 2);
    nix::ioctl_none!(wait, 0xeb, 3);
    nix::ioctl_none!(release, 0xeb, 4);
}

const FIXTURE: &str = "/dev/vrs_stage2";

/// An entry of a stage-2 page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// As the processor reads it.
    pub(crate) bits: u64,
    /// The level it was found at.
    pub(crate) level: i32,
    /// `HCR_EL2` of the processor.
    pub(crate) hcr_el2: u64,
    /// `VTCR_EL2`, which says how to read it.
    pub(crate) vtcr_el2: u64,
}

impl Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} at level {}", self.bits, self.level)
    }
}

/// An open fixture, which can hold one thread.
pub(crate) struct Fixture(File);

impl Fixture {
    /// Opens it. What is mapped by it is cacheable or not.
    #[track_caller]
    pub(crate) fn open(cacheable: bool) -> Verdict<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(if cacheable { 0 } else { libc::O_SYNC })
            .open(FIXTURE)
            .map_err(|error| missing_or_fail(FIXTURE, error))?;
        Ok(Fixture(file))
    }

    /// The file, whose offsets are physical addresses.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// Maps physical addresses once they are accessed, writable once they are written to.
    #[track_caller]
    pub(crate) fn map(&self, pa: u64, len: u64, align: u64) -> Verdict<Memory> {
        Memory::file_part(&self.0, (pa, len), (align, pa % align))
    }

    /// What there is for an address of a guest.
    #[track_caller]
    pub(crate) fn descriptor(&self, cpu: &Cpu, ipa: u64) -> Verdict<Descriptor> {
        let mut leaf = raw::Leaf {
            ipa,
            vcpu: cpu.file().as_raw_fd(),
            level: 0,
            descriptor: 0,
            hcr_el2: 0,
            vtcr_el2: 0,
        };
        // SAFETY: The module reads and writes the structure, whose size the number says.
        unsafe { raw::leaf(self.0.as_raw_fd(), &raw mut leaf) }?;
        Ok(Descriptor {
            bits: leaf.descriptor,
            level: leaf.level,
            hcr_el2: leaf.hcr_el2,
            vtcr_el2: leaf.vtcr_el2,
        })
    }

    /// Will hold whoever takes away what is mapped there, between KVM's hearing of it and the
    /// page table's change. The VM has to be made after this.
    #[track_caller]
    pub(crate) fn hold_unmap(&self, memory: &Memory) -> Verdict {
        let range = raw::Range {
            first: memory.vaddr(),
            last: memory.vaddr() + memory.len() - 1,
        };
        // SAFETY: The module reads the structure, whose size the number says.
        unsafe { raw::hold_unmap(self.0.as_raw_fd(), &raw const range) }?;
        Ok(())
    }

    /// Will hold whoever has a page of a mapping of this file faulted in.
    #[track_caller]
    pub(crate) fn hold_fault(&self) -> Verdict {
        // SAFETY: It takes nothing.
        unsafe { raw::hold_fault(self.0.as_raw_fd()) }?;
        Ok(())
    }

    /// Waits until a thread is held.
    #[track_caller]
    pub(crate) fn wait(&self) -> Verdict {
        // SAFETY: It takes nothing.
        unsafe { raw::wait(self.0.as_raw_fd()) }?;
        Ok(())
    }

    /// Lets the thread go on.
    #[track_caller]
    pub(crate) fn release(&self) -> Verdict {
        // SAFETY: It takes nothing.
        unsafe { raw::release(self.0.as_raw_fd()) }?;
        Ok(())
    }
}
