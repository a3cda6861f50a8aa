// SPDX-License-Identifier: GPL-2.0

//! A device that is watched while it reads and writes.

use std::cell::RefCell;

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::edu::Engine;
use harness::env::Env;
use harness::memory::Memory;
use harness::vfio::PAGE;

use crate::log::{
    Log,
    Pages, //
};

/// Where tests map what they watch: in reach of every edu device.
pub(crate) const IOVA: u64 = 64 << 20;

/// Where the rig maps two pages of its own: what goes into the device, and what comes out.
const SOURCE: u64 = 16 << 20;
const PROOF: u64 = SOURCE + PAGE;

/// A page full of bytes of which no two neighbours are the same, and none is 0 or 0xee.
fn pattern() -> Vec<u8> {
    (0..PAGE).map(|n| (n % 199) as u8 + 1).collect()
}

/// An edu device, the memory it reaches, and what the kernel says of it.
pub(crate) struct Rig<L> {
    /// What the kernel says.
    pub(crate) log: L,
    engine: Engine,
    /// What is in the device.
    buffer: RefCell<Vec<u8>>,
    own: Memory,
}

impl<L: Log> Rig<L> {
    /// Opens the device, and gives it something to write.
    #[track_caller]
    pub(crate) fn open(env: &Env) -> Verdict<Self> {
        let (log, engine) = L::open(env)?;
        let own = Memory::anon(2 * PAGE)?;
        log.map(SOURCE, own.vaddr(), 2 * PAGE)?;
        own.put(0, &pattern());
        let engine = engine.wide();
        engine.fetch(SOURCE, PAGE)?;
        Ok(Rig {
            log,
            engine,
            buffer: RefCell::new(pattern()),
            own,
        })
    }

    /// Has the device write `count` bytes `at` an offset in `memory`, which lies at `iova`, and
    /// checks that it did.
    #[track_caller]
    pub(crate) fn write(&self, memory: &Memory, iova: u64, at: u64, count: u64) -> Verdict {
        memory.put(at, &vec![0xee; count as usize]);
        self.engine.store(iova + at, count)?;
        let got = memory.get(at, count);
        let same = got == self.buffer.borrow()[..count as usize];
        expect(format_args!("{count:#x} bytes at {at:#x}: written"), same)
    }

    /// Has the device read, and checks that it did.
    #[track_caller]
    pub(crate) fn read(&self, memory: &Memory, iova: u64, at: u64, count: u64) -> Verdict {
        self.engine.fetch(iova + at, count)?;
        let bytes = memory.get(at, count);
        self.buffer.borrow_mut()[..count as usize].copy_from_slice(&bytes);
        self.own.put(PAGE, &vec![0xee; count as usize]);
        self.engine.store(PROOF, count)?;
        let same = self.own.get(PAGE, count) == bytes;
        expect(format_args!("{count:#x} bytes at {at:#x}: read"), same)
    }

    /// Checks which pages of a range are dirty; they stay so.
    #[track_caller]
    pub(crate) fn expect_dirty<const N: usize>(
        &self,
        iova: u64,
        len: u64,
        want: [u64; N],
    ) -> Verdict {
        let got = self.log.pages(iova, len, false)?;
        expect_eq("dirty pages", got, Pages::from(want))
    }

    /// Checks which pages of a range are dirty; they are clean then.
    #[track_caller]
    pub(crate) fn expect_cleaned<const N: usize>(
        &self,
        iova: u64,
        len: u64,
        want: [u64; N],
    ) -> Verdict {
        let got = self.log.pages(iova, len, true)?;
        expect_eq("dirty pages, which get clean", got, Pages::from(want))
    }
}
