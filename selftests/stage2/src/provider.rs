// SPDX-License-Identifier: GPL-2.0

//! Which code maps device memory.

use std::path::Path;

use anyhow::{
    bail,
    Result, //
};
use harness::env::Driver;

use crate::level::Level;

/// The Rust module.
pub(crate) const MODULE: &str = "kvm_arm64_rs";

/// The code in charge.
pub(crate) fn current() -> Driver {
    if Path::new("/sys/module")
        .join(MODULE)
        .join("holders")
        .exists()
    {
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

/// What it makes of 2 MiB which the process has in pages.
pub(crate) fn from_pages() -> Level {
    match current() {
        Driver::C => Level::Page,
        Driver::Rust => Level::Block2M,
    }
}

/// Fails unless the code in charge is the expected one.
pub(crate) fn expect(wanted: Option<Driver>) -> Result<()> {
    match (wanted, current()) {
        (Some(Driver::Rust), Driver::C) => {
            bail!("{MODULE} is not loaded: insmod it")
        }
        (Some(Driver::C), Driver::Rust) => bail!("{MODULE} is loaded: rmmod it"),
        _ => Ok(()),
    }
}
