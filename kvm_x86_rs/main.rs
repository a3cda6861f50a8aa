// SPDX-License-Identifier: GPL-2.0

//! Parts of KVM on x86 whose C had years of subtle bugs.

#![forbid(unsafe_code)]

use kernel::prelude::*;

module! {
    type: KvmX86,
    name: "kvm_x86_rs",
    authors: ["vfio-kvm-rs maintainers"],
    description: "Parts of KVM for x86, in Rust",
    license: "GPL v2",
}

/// The loaded module.
struct KvmX86;

impl kernel::Module for KvmX86 {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
