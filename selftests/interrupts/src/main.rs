// SPDX-License-Identifier: GPL-2.0

//! Checks that KVM delivers each interrupt to its guest, one KTAP line per test.
//!
//! The guest is for x86: elsewhere the program is only there to be compiled with the others.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
mod device;
#[cfg(target_arch = "x86_64")]
mod guest;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod provider;
#[cfg(target_arch = "x86_64")]
mod samples;
#[cfg(target_arch = "x86_64")]
mod stats;
#[cfg(target_arch = "x86_64")]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;

/// Check that KVM delivers each interrupt to its guest: once, and without another's help.
///
/// The guest is a few instructions of ours that count interrupts by vector. They are sent as MSIs
/// by ioctl and by irqfd, and as IPIs from another virtual CPU, to a virtual CPU that runs, that is
/// halted, or that is about to be, and which moves from processor to processor if there are two.
/// The device.* tests have interrupts posted as by an IOMMU, which the test-only module vrs_bypass
/// stands in for.
///
/// Needs /dev/kvm; without it all tests are skipped. Prints KTAP; exits with 0 if nothing failed, 1
/// if a test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    options: Options,

    #[command(flatten)]
    settings: Settings,
}

/// What all tests go by.
#[derive(Debug, clap::Args)]
struct Settings {
    /// Send so many interrupts, or bursts of them, in each test.
    #[arg(long, value_name = "COUNT", default_value_t = 5000)]
    rounds: u64,

    /// Take vectors and delays from this.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// The module that handles posted interrupts: kvm_x86_rs.ko, or kvm-intel.ko. It has to be
    /// loaded, and device.reload loads it again.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,

    /// Append how many interrupts took how long to this file, one JSON object for each test.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// Those of the command line.
fn settings() -> &'static Settings {
    SETTINGS.get().expect("main() sets them before any test")
}

#[cfg(target_arch = "x86_64")]
fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let _ = SETTINGS.set(args.settings);
    args.options
        .carry_out(&args.options.env([]), tests::all(), &[])
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> Result<ExitCode> {
    let args = Args::parse();
    anyhow::ensure!(args.options.lists(), "this is about KVM on x86");
    Ok(ExitCode::SUCCESS)
}
