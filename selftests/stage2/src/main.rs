// SPDX-License-Identifier: GPL-2.0

//! Checks how KVM maps device memory into a guest on arm64, one KTAP line per test.

// On other architectures there are the rules, and their tests.
#![cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]

#[cfg(target_arch = "aarch64")]
mod bar;
mod dump;
#[cfg(target_arch = "aarch64")]
mod fixture;
#[cfg(target_arch = "aarch64")]
mod guest;
mod level;
#[cfg(target_arch = "aarch64")]
mod measure;
mod provider;
#[cfg(target_arch = "aarch64")]
mod rig;
#[cfg(target_arch = "aarch64")]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::cli::Options;
use harness::env::Driver;

/// Check how KVM maps the memory of devices into a guest.
///
/// A guest of a few instructions reads and writes BARs. What the page table looks like then is read
/// from the kernel's dump of it, faults are counted by a tracepoint, and what was written on one
/// side is read on the other. What is expected follows one rule for the C code and for the Rust
/// module; they differ in the largest block they make, 2 MiB and 1 GiB.
///
/// Needs KVM on arm64 with PTDUMP_STAGE2_DEBUGFS, and PCI devices bound to vfio-pci whose BAR 2 is
/// memory, which QEMU's ivshmem-plain is: of 64 KiB, 4 MiB, 1 GiB and 4 GiB, that of 4 MiB behind a
/// port; for some tests the test-only module vrs_stage2 of selftests/kmod. Tests without their device
/// or without the module are skipped. Prints KTAP; exits with 0 if nothing failed, 1 if a
/// test failed, 4 if all were skipped.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI function whose BAR 2 is memory; may be given several times.
    #[arg(long, value_name = "BDF")]
    device: Vec<String>,

    /// Fail unless this code maps device memory: C as long as kvm_arm64_rs is not loaded.
    #[arg(long, value_name = "DRIVER")]
    provider: Option<Driver>,

    /// File of kvm_arm64_rs, for tests that unload it and load it again.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,

    /// Instead of testing, measure what it costs a guest to touch all of the largest BAR.
    #[arg(long, conflicts_with = "filter")]
    measure: bool,

    /// With --measure, print JSON.
    #[arg(long, requires = "measure")]
    json: bool,

    #[command(flatten)]
    options: Options,
}

#[cfg(target_arch = "aarch64")]
fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let env = args.options.env(args.device);
    if !args.options.lists() {
        provider::expect(args.provider)?;
    }
    if args.measure {
        return measure::run(&env, args.json);
    }
    tests::set_module(args.module);
    args.options.carry_out(&env, tests::all(), &[])
}

#[cfg(not(target_arch = "aarch64"))]
fn main() -> Result<ExitCode> {
    const KSFT_SKIP: u8 = 4;
    let _ = Args::parse();
    println!("KTAP version 1\n1..0 # SKIP this is about arm64");
    Ok(ExitCode::from(KSFT_SKIP))
}
