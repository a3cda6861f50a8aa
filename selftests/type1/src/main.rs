// SPDX-License-Identifier: GPL-2.0

//! Checks the VFIO type1 user API of a running kernel, one KTAP line per test.

mod check;
mod edu;
mod env;
mod info;
mod memory;
mod proc;
mod runner;
mod tests;
mod vfio;

use std::os::fd::RawFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{
    ensure,
    Result, //
};
use clap::Parser;
use regex::Regex;
use type1_status::host::Host;

use crate::env::{
    Driver,
    Env,
    Pci, //
};
use crate::runner::Test;

/// What kselftest runners take for "nothing could be tested".
const KSFT_SKIP: u8 = 4;

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

    /// Fail each test whose container is served by another driver.
    #[arg(long, value_name = "DRIVER")]
    expect_driver: Option<Driver>,

    /// Run only tests whose name matches; may be given several times.
    #[arg(long, value_name = "REGEX")]
    filter: Vec<Regex>,

    /// List the tests and exit.
    #[arg(long)]
    list: bool,

    /// Give each test this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,

    /// Continue a test behind exec, on this container.
    #[arg(long, value_name = "FD", hide = true)]
    after_exec: Option<RawFd>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();

    if let Some(fd) = args.after_exec {
        return Ok(tests::process::after_exec(fd));
    }

    let chosen: Vec<Test> = tests::all()
        .filter(|test| {
            args.filter.is_empty() || args.filter.iter().any(|re| re.is_match(test.name))
        })
        .collect();
    if args.list {
        let names = chosen.iter().map(|test| (test.name, test.about));
        for (name, about) in names.chain([runner::BALANCE]) {
            println!("{name:<30} {about}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        !chosen.is_empty(),
        "no test matches; --list shows their names"
    );

    let pci = |bdf: &String| Pci { bdf: bdf.clone() };
    let env = Env {
        devices: args.devices.iter().map(pci).collect(),
        edu: args.edu.as_ref().map(pci),
        edu_is_second: !args.group_noedu,
        expected: args.expect_driver,
        host: Host::default(),
    };
    let totals = runner::run(&env, &chosen, Duration::from_secs(args.timeout))?;

    Ok(match (totals.fail, totals.pass) {
        (0, 0) => ExitCode::from(KSFT_SKIP),
        (0, _) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
