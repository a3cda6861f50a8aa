// SPDX-License-Identifier: GPL-2.0

//! What it costs a guest to touch all of a large BAR.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{
    anyhow,
    Result, //
};
use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::env::{
    Driver,
    Env, //
};
use harness::memory::{
    GIB,
    MIB, //
};
use harness::vfio::{
    PAGE,
    RW, //
};
use serde::Serialize;

use crate::bar::Bar;
use crate::guest::{
    self,
    Answer,
    Ask,
    Cpu,
    Slot,
    Vm, //
};
use crate::level::Level;
use crate::provider;
use crate::rig::IPA;

const SIZE: u64 = 4 * GIB;

/// One way of touching a BAR.
#[derive(Debug, Serialize)]
struct Figures {
    /// Whether the BAR was mapped for DMA of a device before, and so by the process.
    mapped_for_dma: bool,
    /// The guest reads one word in so many bytes.
    step: u64,
    /// Stage-2 faults.
    faults: u64,
    /// Leaves of 4 KiB, 2 MiB and 1 GiB.
    leaves: [u64; 3],
    /// From the first word to the last.
    nanoseconds: u64,
    /// The same once more, without faults.
    nanoseconds_again: u64,
}

/// All that is measured.
#[derive(Debug, Serialize)]
struct Report {
    /// `c` or `rust`
    provider: &'static str,
    /// Bytes of the BAR.
    bytes: u64,
    runs: Vec<Figures>,
}

/// Measures, and prints the figures: as KTAP, with a result for each run that says whether there
/// was one fault for each of the largest blocks and no other; or as JSON.
pub(crate) fn run(env: &Env, json: bool) -> Result<ExitCode> {
    let mut runs = Vec::new();
    for mapped_for_dma in [false, true] {
        for step in [2 * MIB, PAGE] {
            runs.push(measure(env, mapped_for_dma, step).map_err(|stop| anyhow!("{stop}"))?);
        }
    }
    let report = Report {
        provider: match provider::current() {
            Driver::C => "c",
            Driver::Rust => "rust",
        },
        bytes: SIZE,
        runs,
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = SIZE / provider::largest().size();
    println!("KTAP version 1\n1..{}", report.runs.len());
    for (number, run) in (1..).zip(&report.runs) {
        let good = run.faults == wanted && run.leaves.iter().sum::<u64>() == wanted;
        println!("# {}", serde_json::to_string(run)?);
        println!(
            "{} {number} cost.{}{}K",
            if good { "ok" } else { "not ok" },
            if run.mapped_for_dma { "dma." } else { "" },
            run.step >> 10
        );
    }
    let good = report.runs.iter().all(|run| run.faults == wanted);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure(env: &Env, mapped_for_dma: bool, step: u64) -> Verdict<Figures> {
    let bar = Bar::open(env, SIZE)?;
    let memory = bar.map(0, SIZE, 0)?;
    if mapped_for_dma {
        let container = &bar.session.container;
        container.map(1 << 36, memory.vaddr(), SIZE, RW)?;
    }
    let vm = Vm::new()?;
    let mut cpu = vm.cpu(0)?;
    vm.set_slot(&Slot::all(&memory, IPA))?;
    // What is not about the BAR is over before it counts.
    cpu.ask(Ask::Read(0))?;
    let events = guest::faults()?;
    let nanoseconds = touch(&mut cpu, step)?;
    let faults = events.take()?.len() as u64;
    let nanoseconds_again = touch(&mut cpu, step)?;
    expect_eq("faults of the second pass", events.take()?.len(), 0)?;
    let mapped = vm.mapped()?;
    let leaves = [Level::Page, Level::Block2M, Level::Block1G].map(|level| {
        let runs = mapped.iter().filter(|run| run.level == level);
        runs.map(|run| (run.range.end - run.range.start) / level.size())
            .sum()
    });
    Ok(Figures {
        mapped_for_dma,
        step,
        faults,
        leaves,
        nanoseconds,
        nanoseconds_again,
    })
}

/// Has the guest read all of the BAR; returns how long it took.
fn touch(cpu: &mut Cpu, step: u64) -> Verdict<u64> {
    cpu.prepare(Ask::Sum((IPA, IPA + SIZE), step))?;
    let began = Instant::now();
    let answer = cpu.go_on()?;
    let took = began.elapsed();
    expect_eq("the sum is told", matches!(answer, Answer::Done(_)), true)?;
    Ok(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
}
