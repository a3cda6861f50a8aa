// SPDX-License-Identifier: GPL-2.0

//! Checks the VFIO type1 user API of a running kernel, one KTAP line per test.

mod tests;

use std::os::fd::RawFd;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;
use harness::env::{
    Env,
    Pci, //
};
use harness::runner::BALANCE;

/// Check the VFIO type1 user API of the running kernel.
///
/// The devices must be bound to vfio-pci, each in an IOMMU group of its own. Whatever is missing
/// turns the tests that need it into skips which name it. Prints KTAP; exits with 0 if nothing
/// failed, 1 if a test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI function to test with, for example 0000:00:03.0; a second one adds the tests with two
    /// groups.
    #[arg(long = "device", value_name = "BDF")]
    devices: Vec<String>,

    /// QEMU's edu device, for tests with real DMA; also serves as the second device.
    #[arg(long, value_name = "BDF")]
    edu: Option<String>,

    /// Never use the edu device as the second device.
    #[arg(long)]
    group_noedu: bool,

    #[command(flatten)]
    options: Options,

    /// Continue a test behind exec, on this container.
    #[arg(long, value_name = "FD", hide = true)]
    after_exec: Option<RawFd>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();

    if let Some(fd) = args.after_exec {
        return Ok(tests::process::after_exec(fd));
    }

    let env = Env {
        edu: args.edu.map(|bdf| Pci { bdf }),
        edu_is_second: !args.group_noedu,
        ..args.options.env(args.devices)
    };
    args.options.carry_out(&env, tests::all(), &[BALANCE])
}
