// SPDX-License-Identifier: GPL-2.0

//! A device whose BAR is memory, and mappings of that.

use std::fs::{
    self,
    File, //
};
use std::path::PathBuf;

use harness::check::{
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::env::{
    Env,
    Model,
    Pci,
    Session, //
};
use harness::memory::{
    Memory,
    GIB, //
};
use harness::vfio::{
    Device,
    Region, //
};

/// QEMU's shared memory is in this BAR.
const NUMBER: u32 = 2;

/// Of an open device.
pub(crate) struct Bar<'a> {
    // The device is closed before its group.
    pub(crate) device: Device,
    pub(crate) session: Session<'a>,
    pub(crate) region: Region,
    bdf: String,
    /// Its physical address.
    pub(crate) base: u64,
    /// All of it, mapped apart from what guests get.
    pub(crate) window: Memory,
}

impl<'a> Bar<'a> {
    /// Opens the file by which the kernel itself gives the BAR to whoever may: `resource2`, or
    /// `resource2_wc` for write-combining.
    #[track_caller]
    pub(crate) fn resource(&self, suffix: &str) -> Verdict<File> {
        let path = PathBuf::from(format!(
            "/sys/bus/pci/devices/{}/resource{NUMBER}{suffix}",
            self.bdf
        ));
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| missing_or_fail(&path, e))
    }

    /// Opens the device with a BAR of `size` bytes.
    #[track_caller]
    pub(crate) fn open(env: &'a Env, size: u64) -> Verdict<Self> {
        for pci in &env.devices {
            let (base, len) = place(pci)?;
            if len == size {
                let session = env.open_with(pci, Model::V2)?;
                let device = session.device()?;
                let region = device.region(NUMBER)?;
                expect_eq("bytes of the region", region.size, size)?;
                let window = Memory::region_part(&device, region, (0, size), (GIB, base % GIB))?;
                return Ok(Bar {
                    device,
                    session,
                    region,
                    bdf: pci.bdf.clone(),
                    base,
                    window,
                });
            }
        }
        Err(Stop::skip(format_args!(
            "a PCI device with {size:#x} bytes of memory in BAR {NUMBER} (--device)"
        )))
    }

    /// Maps `len` bytes from `offset` on, `skew` bytes off the place at which virtual and physical
    /// addresses would be the same modulo 1 GiB.
    #[track_caller]
    pub(crate) fn map(&self, offset: u64, len: u64, skew: u64) -> Verdict<Memory> {
        let place = (self.base + offset + skew) % GIB;
        Memory::region_part(&self.device, self.region, (offset, len), (GIB, place))
    }
}

/// Physical address and bytes of the BAR of a device.
#[track_caller]
fn place(pci: &Pci) -> Verdict<(u64, u64)> {
    let path = PathBuf::from(format!("/sys/bus/pci/devices/{}/resource", pci.bdf));
    let text = fs::read_to_string(&path).map_err(|e| missing_or_fail(&path, e))?;
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let found = text.lines().nth(NUMBER as usize).and_then(|line| {
        let mut words = line.split_whitespace();
        Some((hex(words.next()?)?, hex(words.next()?)?))
    });
    match found {
        Some((0, 0)) => Ok((0, 0)),
        Some((first, last)) if first <= last => Ok((first, last - first + 1)),
        _ => Err(Stop::fail(format_args!("{}: {text:?}", path.display()))),
    }
}
