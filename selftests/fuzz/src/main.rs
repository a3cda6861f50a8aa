// SPDX-License-Identifier: GPL-2.0

//! Replays random sequences of VFIO type1 calls on both drivers and compares what they answer.

mod compare;
mod driver;
mod exec;
mod gen;
mod layout;
mod model;
mod op;
mod record;
mod replay;
mod shrink;
mod storm;
mod sys;

use std::env;
use std::process::ExitCode;

use anyhow::{
    Context,
    Result, //
};
use clap::{
    Parser,
    Subcommand, //
};

/// Find out by random calls whether two drivers of VFIO type1 can be told apart.
///
/// Runs inside a test machine: it loads and unloads drivers. Prints KTAP; exits with 0 if nothing
/// was found, 1 if something was.
#[derive(Parser)]
#[command(name = "fuzz", version)]
struct Args {
    #[command(subcommand)]
    command: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Run the same sequences on both drivers, one at a time, and compare.
    Compare(compare::Options),
    /// Use one container from several threads and processes at once, with the driver that is
    /// loaded.
    Storm(storm::Options),
}

fn main() -> Result<ExitCode> {
    let mut words = env::args().skip(1);
    if words.next().as_deref() == Some(sys::SERVE) {
        let mut fd = || words.next()?.parse().ok();
        let (requests, replies) = fd().zip(fd()).context("serve REQUESTS REPLIES")?;
        // SAFETY: `Actor::exec` passes pipes that are open, and nothing else has them.
        unsafe { sys::serve_after_exec(requests, replies) }?;
        return Ok(ExitCode::SUCCESS);
    }
    match Args::parse().command {
        Mode::Compare(options) => compare::main(&options),
        Mode::Storm(options) => storm::main(&options),
    }
}
