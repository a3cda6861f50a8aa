// SPDX-License-Identifier: GPL-2.0

//! Checks what drivers of mediated devices get from VFIO type1, one KTAP line per test.

/// Modules of type1, which uses more of each than is used here.
macro_rules! shared {
    ($($name:ident = $path:literal;)*) => {
        $(
            #[allow(dead_code)]
            #[path = $path]
            mod $name;
        )*
    };
}
shared! {
    check = "../../type1/src/check.rs";
    env = "../../type1/src/env.rs";
    info = "../../type1/src/info.rs";
    memory = "../../type1/src/memory.rs";
    proc = "../../type1/src/proc.rs";
    runner = "../../type1/src/runner.rs";
    vfio = "../../type1/src/vfio.rs";
}

mod fixture;
mod tests;

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
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();

    let chosen: Vec<Test> = tests::all()
        .filter(|test| {
            args.filter.is_empty() || args.filter.iter().any(|re| re.is_match(test.name))
        })
        .collect();
    if args.list {
        for test in &chosen {
            println!("{:<24} {}", test.name, test.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        !chosen.is_empty(),
        "no test matches; --list shows their names"
    );

    let env = Env {
        devices: args.device.map(|bdf| Pci { bdf }).into_iter().collect(),
        edu: None,
        edu_is_second: false,
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
