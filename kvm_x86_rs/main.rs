// SPDX-License-Identifier: GPL-2.0

//! Parts of KVM on x86 whose C had years of subtle bugs.
//!
//! - [`posted_intr`]: interrupts that devices and other vCPUs post on VMX.
//!
//! The module has them while it is loaded, for all VMs. It can be loaded, and unloaded, while there
//! is none.

#![forbid(unsafe_code)]

use ::kvm::posted_intr::Registration;
use kernel::{
    debugfs,
    prelude::*, //
};

mod posted_intr;

use posted_intr::{
    PostedInterrupts,
    Report, //
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
    _dir: debugfs::Dir,
    _posted_intr: Registration<PostedInterrupts>,
}

impl kernel::InPlaceModule for KvmX86 {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let (registration, report) = PostedInterrupts::register(module)?;
            let dir = debugfs::Dir::new(c"kvm_x86_rs");

            Ok(try_pin_init!(Self {
                posted_intr <- dir.read_only_file(c"posted_intr", report),
                _dir: dir,
                _posted_intr: registration,
            }? Error))
        })
    }
}
