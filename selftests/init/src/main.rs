// SPDX-License-Identifier: GPL-2.0

//! The first and only program of a machine that has nothing but a kernel, and an initramfs made
//! for one plan of tests.
//!
//! It does what `scripts/guest/runner.py` does where there is a Python, and says what happens in
//! the same lines of JSON.

mod kernel;
mod plan;
mod program;
mod runner;
mod transcript;

use std::fs;
use std::process;

use anyhow::{
    bail,
    Context,
    Result, //
};

use crate::runner::Runner;

/// Where the host puts the plan.
const PLAN: &str = "/plan.json";

fn main() -> Result<()> {
    if process::id() != 1 {
        bail!("this is the init of a test machine: scripts/dev check vmx boots one with it");
    }
    let outcome = run();
    // The transcript is what the host reads. Where there is none, the console has to do.
    if let Err(trouble) = &outcome {
        eprintln!("init: {trouble:#}");
    }
    kernel::power_off()
}

fn run() -> Result<()> {
    kernel::prepare()?;
    let text = fs::read_to_string(PLAN).context(PLAN)?;
    let plan = serde_json::from_str(&text).context(PLAN)?;
    Runner::new(&plan)?.run()
}
