// SPDX-License-Identifier: GPL-2.0

//! Which code maps device memory.

use std::path::Path;

use anyhow::{
    bail,
    Result, //
};
use harness::env::Driver;

use crate::level::Level;

/// The Rust module's folder of sysfs, there while it is loaded.
const MODULE: &str = "/sys/module/kvm_arm64_rs/holders";

/// The code in charge.
pub(crate) fn current() -> Driver {
    if Path::new(MODULE).exists() {
        Driver::Rust
    } else {
        Driver::C
    }
}

/// The largest block it makes.
pub(crate) fn largest() -> Level {
    match current() {
        Driver::C => Level::Block2M,
        Driver::Rust => Level::Block1G,
    }
}

/// Fails unless the code in charge is the expected one.
pub(crate) fn expect(wanted: Option<Driver>) -> Result<()> {
    match (wanted, current()) {
        (Some(Driver::Rust), Driver::C) => {
            bail!("kvm_arm64_rs is not loaded: modprobe or insmod it")
        }
        (Some(Driver::C), Driver::Rust) => bail!("kvm_arm64_rs is loaded: rmmod it"),
        _ => Ok(()),
    }
}
