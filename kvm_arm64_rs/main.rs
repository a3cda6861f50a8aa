// SPDX-License-Identifier: GPL-2.0

//! How KVM/arm64 maps device memory into guests.
//!
//! Takes over the stage-2 faults on what a `VM_PFNMAP` or `VM_MIXEDMAP` VMA maps, such as the BARs
//! of a VFIO device, and maps the largest block that the VMM's page table proves: 1 GiB where C
//! stops at 2 MiB, as it goes by the size of one leaf, and arm64 has none of 1 GiB for devices.
//!
//! - [`mapper`]: what happens on a fault.
//! - [`report`]: what root sees in debugfs.
//!
//! The module may be loaded and unloaded while VMs run. What it mapped stays mapped.

#![forbid(unsafe_code)]

use kernel::{
    debugfs,
    prelude::*,
    sync::Arc, //
};
use kvm::stage2::Registration;

mod mapper;
mod report;

use mapper::Mapper;
use report::{
    Counts,
    Stats, //
};

module! {
    type: KvmArm64,
    name: "kvm_arm64_rs",
    authors: ["vfio-kvm-rs maintainers"],
    description: "Stage-2 mapper of KVM for device memory, in Rust",
    license: "GPL v2",
}

/// The loaded module.
#[pin_data]
struct KvmArm64 {
    #[pin]
    stats: debugfs::File<Stats>,
    _dir: debugfs::Dir,
    _registration: Registration<Mapper>,
}

impl kernel::InPlaceModule for KvmArm64 {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let counts = Arc::new(Counts::default(), GFP_KERNEL)?;
            let registration = Registration::new(Mapper::new(counts.clone())?)?;
            let dir = debugfs::Dir::new(c"kvm_arm64_rs");

            Ok(try_pin_init!(Self {
                stats <- dir.read_only_file(c"stats", Stats(counts)),
                _dir: dir,
                _registration: registration,
            }? Error))
        })
    }
}
