// SPDX-License-Identifier: GPL-2.0

//! Makes each allocation and each copy of VFIO type1 fail once, and looks at what is left.

mod call;
mod inject;
mod rig;
mod slab;
mod sweep;
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{
    anyhow,
    Result, //
};
use clap::Parser;
use harness::cli::Options;
use type1_status::host::{
    C_DRIVER,
    RUST_DRIVER, //
};

use inject::Settings;

/// Make each allocation and each copy of VFIO type1 fail once, and look at what is left.
///
/// Each test is about one system call. It is made again and again, each time in a container of its
/// own, and each time the kernel's fault injection makes it fail one place further on, until it
/// meets none: first one fault at a time, then that and what comes after it. A refused call must
/// give an errno that fits and leave everything as it was, a successful one must have done all
/// of it; the call must then work, and nothing may stay behind in the end. Lines of the output
/// that begin with # say how many faults of which kind were met, and what the calls ended with.
///
/// Needs root, and a kernel with FAILSLAB, FAIL_PAGE_ALLOC, FAULT_INJECTION_USERCOPY and
/// FAULT_INJECTION_DEBUG_FS; only tasks of this program fail. The modules vrs_emulated and
/// vrs_iommu provide devices. Whatever is missing turns the tests that need it into skips which
/// name it. Prints KTAP; exits with 0 if nothing failed, 1 if a test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI function bound to vfio-pci, in an IOMMU group of its own, for the tests pci.*, for
    /// example 0000:00:03.0.
    #[arg(long, value_name = "BDF")]
    device: Option<String>,

    /// File of the driver's module, for the tests module.*, which unload and load it.
    #[arg(long, value_name = "KO")]
    module: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let env = args.options.env(args.device);
    tests::set_module(args.module);
    let _settings = if args.options.lists() {
        None
    } else {
        Some(settings()?)
    };
    args.options.carry_out(&env, tests::all(), &[])
}

/// Sets up fault injection, and the driver for devices that send no interrupts.
fn settings() -> Result<Settings> {
    let parameters = [C_DRIVER, RUST_DRIVER]
        .map(|driver| format!("/sys/module/{driver}/parameters/allow_unsafe_interrupts"))
        .map(PathBuf::from);
    let there: Vec<_> = parameters
        .into_iter()
        .filter(|path| path.exists())
        .map(|path| (path, "Y"))
        .collect();
    Settings::apply(&there).map_err(|stop| anyhow!("{stop}"))
}
