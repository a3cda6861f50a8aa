// SPDX-License-Identifier: GPL-2.0

//! Checks what drivers of mediated devices get from VFIO type1, one KTAP line per test.

mod tests;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;

/// Check what drivers of mediated devices get from VFIO type1.
///
/// Needs the module vrs_emulated, whose devices pin and copy user memory on request. Whatever is
/// missing turns the tests that need it into skips which name it. Prints KTAP; exits with 0 if
/// nothing failed, 1 if a test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI function bound to vfio-pci, in an IOMMU group of its own, to put into the same
    /// container, for example 0000:00:03.0.
    #[arg(long, value_name = "BDF")]
    device: Option<String>,

    #[command(flatten)]
    options: Options,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let env = args.options.env(args.device);
    args.options.carry_out(&env, tests::all(), &[])
}
