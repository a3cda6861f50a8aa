// SPDX-License-Identifier: GPL-2.0

//! Where things lie in the address space of every process of a sequence.
//!
//! Addresses are fixed, so that a sequence means the same wherever it is replayed, and far from
//! what the program itself needs.

use harness::vfio::PAGE;

/// Memory that sequences map for devices, change and lose.
pub(crate) const ARENA: u64 = 0x10_0000_0000;
/// Its pages at the beginning: eight zones of different memory.
pub(crate) const ARENA_PAGES: u32 = ZONE * 8;
/// Pages of a zone.
pub(crate) const ZONE: u32 = 64;
/// Bytes from [`ARENA`] on in which there never is anything else.
pub(crate) const ARENA_SPAN: u64 = 1 << 30;

/// Memory shared by all processes of a sequence, by its page in the shared file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) addr: u64,
    pub(crate) pages: u64,
    pub(crate) first_page: u64,
    pub(crate) writable: bool,
}

impl Window {
    pub(crate) const fn len(self) -> u64 {
        self.pages * PAGE
    }

    pub(crate) const fn end(self) -> u64 {
        self.addr + self.len()
    }
}

/// Arguments of ioctls. Nothing is mapped behind it.
pub(crate) const ARG: Window = Window {
    addr: 0xf_0000_0000,
    pages: 1,
    first_page: 0,
    writable: true,
};

/// The same memory, for reading only.
pub(crate) const ARG_READ_ONLY: Window = Window {
    addr: 0xf_0001_0000,
    writable: false,
    ..ARG
};

/// Dirty bitmaps. Nothing is mapped behind it.
pub(crate) const BITMAP: Window = Window {
    addr: 0xf_0002_0000,
    pages: 2,
    first_page: 1,
    writable: true,
};

/// What drivers and the CPU copy.
pub(crate) const DATA: Window = Window {
    addr: 0xf_0003_0000,
    pages: 4,
    first_page: 3,
    writable: true,
};

/// Arguments of system calls that are not tested themselves.
pub(crate) const SCRATCH: Window = Window {
    addr: 0xf_0004_0000,
    pages: 1,
    first_page: 7,
    writable: true,
};

/// All of them.
pub(crate) const WINDOWS: [Window; 5] = [ARG, ARG_READ_ONLY, BITMAP, DATA, SCRATCH];
/// Bytes of the shared file.
pub(crate) const SHARED_LEN: u64 = 8 * PAGE;

/// An address of the kernel.
pub(crate) const KERNEL: u64 = 0xffff_8880_0000_1000;

/// Address of a page of the arena.
pub(crate) fn arena(page: u32) -> u64 {
    ARENA + u64::from(page) * PAGE
}
