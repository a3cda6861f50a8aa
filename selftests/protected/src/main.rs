// SPDX-License-Identifier: GPL-2.0

//! Checks what KVM does about the special registers of vCPUs whose state is protected, one KTAP
//! line per test.
//!
//! SVM is x86: elsewhere the program is only there to be compiled with the others.

#[cfg(target_arch = "x86_64")]
mod module;
#[cfg(target_arch = "x86_64")]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vcpu;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;

/// Check the special registers of vCPUs whose state is protected, as that of an SEV-ES guest is.
///
/// Needs the test-only module vrs_protected, which stands in for the hardware, and kvm-amd. Prints
/// KTAP; exits with 0 if nothing failed, 1 if a test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Load this kvm_x86_rs.ko for the tests; without it they are about KVM itself.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
}

#[cfg(target_arch = "x86_64")]
fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let env = args.options.env(None);
    let tests = tests::all(args.module.is_some());
    if args.options.lists() {
        return args.options.carry_out(&env, tests, &[]);
    }
    vcpu::find_symbols();
    let _loaded = module::begin(args.module)?;
    args.options.carry_out(&env, tests, &[])
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> Result<ExitCode> {
    let Args { module, options } = Args::parse();
    anyhow::ensure!(options.lists() && module.is_none(), "there is no SVM here");
    Ok(ExitCode::SUCCESS)
}
