// SPDX-License-Identifier: GPL-2.0

//! QEMU's teaching device, a DMA engine with a buffer of one page.

use std::os::fd::AsFd;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use nix::poll::{
    poll,
    PollFd,
    PollFlags, //
};
use nix::sys::eventfd::EventFd;
use vfio_bindings::bindings::vfio;

use crate::check::{
    expect_eq,
    Stop,
    Verdict, //
};
use crate::memory::Memory;
use crate::vfio::{
    Device,
    PAGE, //
};

const PCI_COMMAND_MEMORY: u16 = 1 << 1;
const PCI_COMMAND_MASTER: u16 = 1 << 2;

const IDENTITY: u64 = 0x00;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_TARGET: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

const RUN: u64 = 1 << 0;
const TO_MEMORY: u64 = 1 << 1;

/// Where the device's buffer lies in its own address space.
const BUFFER: u64 = 0x40000;

/// IOVA any engine can reach: by default it drives 28 address bits.
pub const REACH: u64 = 1 << 28;

/// An edu device with bus mastering on.
pub struct Engine {
    registers: Memory,
    device: Device,
    reach: u64,
}

impl Engine {
    /// Turns on the device's memory decoding and bus mastering.
    #[track_caller]
    pub fn open(device: Device) -> Verdict<Self> {
        device.enable(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)?;
        let registers = Memory::region(&device, device.region(vfio::VFIO_PCI_BAR0_REGION_INDEX)?)?;
        let engine = Engine {
            registers,
            device,
            reach: REACH,
        };
        let identity: u32 = engine.registers.read(IDENTITY);
        expect_eq("edu identity", identity & 0xff, 0xed)?;
        Ok(engine)
    }

    /// The same, said to drive all address bits.
    pub fn wide(self) -> Self {
        Engine {
            reach: u64::MAX,
            ..self
        }
    }

    /// Reads memory at `iova` into the device's buffer.
    #[track_caller]
    pub fn fetch(&self, iova: u64, count: u64) -> Verdict {
        self.transfer(iova, BUFFER, count, 0)
    }

    /// Writes the device's buffer to memory at `iova`.
    #[track_caller]
    pub fn store(&self, iova: u64, count: u64) -> Verdict {
        self.transfer(BUFFER, iova, count, TO_MEMORY)
    }

    /// Has its interrupt signal the eventfd.
    pub fn signal(&self, event: &EventFd) -> Verdict {
        Ok(self.device.signal(event)?)
    }

    /// Raises an interrupt and waits for it; returns how often the eventfd was signalled.
    #[track_caller]
    pub fn interrupt(&self, event: &EventFd) -> Verdict<u64> {
        self.registers.write(RAISE, 1u32);
        let mut waiting = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, 30_000u16)? == 0 {
            return Err(Stop::fail("no interrupt of edu has come in 30 s"));
        }
        self.registers.write(ACKNOWLEDGE, 1u32);
        Ok(event.read()?)
    }

    #[track_caller]
    fn transfer(&self, source: u64, target: u64, count: u64, direction: u64) -> Verdict {
        assert!(count <= PAGE && source.max(target) < self.reach);
        self.registers.write(DMA_SOURCE, source);
        self.registers.write(DMA_TARGET, target);
        self.registers.write(DMA_COUNT, count);
        self.registers.write(DMA_COMMAND, RUN | direction);

        let deadline = Instant::now() + Duration::from_secs(30);
        while self.registers.read::<u64>(DMA_COMMAND) & RUN != 0 {
            if Instant::now() > deadline {
                return Err(Stop::fail("edu has not ended its DMA in 30 s"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Turns on the memory decoding of any PCI device, so that its regions can be accessed.
#[track_caller]
pub fn enable_memory(device: &Device) -> Verdict {
    device.enable(PCI_COMMAND_MEMORY)
}
