// SPDX-License-Identifier: GPL-2.0

//! Checks what VFIO type1 makes of IOMMUs that differ, one KTAP line per test.

mod tests;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;

/// Check what VFIO type1 makes of IOMMUs that differ in page sizes, coherency and width.
///
/// Needs the module vrs_iommu, whose devices sit behind IOMMUs made of software and do DMA on
/// request. Whatever is missing turns the tests that need it into skips which name it. Prints KTAP;
/// exits with 0 if nothing failed, 1 if a test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let env = args.options.env(None);
    args.options.carry_out(&env, tests::all(), &[])
}
