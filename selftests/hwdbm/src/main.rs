// SPDX-License-Identifier: GPL-2.0

//! Checks dirty tracking by an IOMMU that sets dirty bits, one KTAP line per test.

mod log;
mod rig;
mod tests;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;
use harness::env::{
    Env,
    Pci, //
};

/// Check that the pages a device wrote to are reported dirty, and no others.
///
/// The tests named iommufd.* need no type1 driver: they show that the IOMMU, and Linux's driver of
/// it, know what was written. The tests named type1.* ask the same of VFIO type1, and c.* what its C
/// driver makes of it.
///
/// Needs QEMU's edu device, bound to vfio-pci, behind an IOMMU that sets dirty bits; without one
/// all tests are skipped. Prints KTAP; exits with 0 if nothing failed, 1 if a test failed, 4 if all
/// were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// QEMU's edu device, with an address mask of 64 bits.
    #[arg(long, value_name = "BDF")]
    edu: Option<String>,

    /// PCI function in another IOMMU group, for the tests with two groups.
    #[arg(long, value_name = "BDF")]
    device: Vec<String>,

    #[command(flatten)]
    options: Options,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let pci = |bdf| Pci { bdf };
    let env = Env {
        devices: args.device.into_iter().map(pci).collect(),
        edu: args.edu.map(pci),
        expected: args.options.expect_driver,
        ..Env::default()
    };
    args.options.carry_out(&env, tests::all(), &[])
}
