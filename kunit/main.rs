// SPDX-License-Identifier: GPL-2.0

//! The logic crates' tests as KUnit suites: loading the module runs them.

#![forbid(unsafe_code)]

use kernel::prelude::*;

module! {
    type: Suites,
    name: "vrs_kunit",
    authors: ["vfio-kvm-rs maintainers"],
    description: "KUnit suites of the logic crates",
    license: "GPL v2",
}

struct Suites;

impl kernel::Module for Suites {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
