// SPDX-License-Identifier: GPL-2.0

//! Parts of KVM on x86 whose C had years of subtle bugs.
//!
//! - [`posted_intr`]: interrupts that devices and other vCPUs post on VMX.
//! - [`sregs`]: special registers of vCPUs whose state is protected.
//!
//! The module has them while it is loaded, for all VMs. It can be loaded, and unloaded, while there
//! is none.

#![forbid(unsafe_code)]

use kernel::{
    debugfs,
    prelude::*, //
};
use kvm::{
    posted_intr::Registration,
    sregs::Registration as SregsRegistration, //
};

mod posted_intr;
mod sregs;

use posted_intr::{
    PostedInterrupts,
    Report, //
};
use sregs::{
    Report as SregsReport,
    Sregs, //
};

module! {
    type: KvmX86,
    name: "kvm_x86_rs",
    authors: ["vfio-kvm-rs maintainers"],
    description: "Parts of KVM for x86, in Rust",
    license: "GPL v2",
}

/// The loaded module.
#[pin_data]
struct KvmX86 {
    #[pin]
    posted_intr: debugfs::File<Report>,
    #[pin]
    sregs: debugfs::File<SregsReport>,
    _dir: debugfs::Dir,
    _posted_intr: Registration<PostedInterrupts>,
    _sregs: SregsRegistration<Sregs>,
}

impl kernel::InPlaceModule for KvmX86 {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let (registration, report) = PostedInterrupts::register(module)?;
            let sregs_registration = SregsRegistration::new(module)?;
            let dir = debugfs::Dir::new(c"kvm_x86_rs");

            Ok(try_pin_init!(Self {
                posted_intr <- dir.read_only_file(c"posted_intr", report),
                sregs <- dir.read_only_file(c"sregs", SregsReport),
                _dir: dir,
                _posted_intr: registration,
                _sregs: sregs_registration,
            }? Error))
        })
    }
}
