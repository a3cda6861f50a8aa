// SPDX-License-Identifier: GPL-2.0

//! What the calls cost, by the IOMMU's pages and by how many of them are dirty.

use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    ensure,
    Result, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::soft::{
    Engine,
    Session,
    DMA_MAX, //
};
use harness::vfio::{
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW, //
};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::bitmap::WORD;
use crate::device::write_page;
use crate::migrate::{
    has_manual_clear,
    nanoseconds, //
};
use crate::report::time;

/// Each time is the shortest of so many: others disturb, nobody helps.
const REPEAT: usize = 5;

/// The parts of the memory that are made dirty: one page of so many, or none.
const DIRTY_ONE_OF: [u64; 4] = [0, 128, 2, 1];

const IOVA: u64 = 1 << 30;
const GIB: u64 = 1 << 30;

/// What was measured with one kind of memory.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    /// What was mapped.
    memory: &'static str,
    /// Bytes mapped.
    bytes: u64,
    /// Entries of the IOMMU's page table, by their sizes.
    leaves: [u64; 3],
    /// What starting to track took.
    start_ns: u64,
    /// Asking, by how much was dirty.
    gets: Vec<Get>,
    /// Asking without clearing when all is in the log already.
    noclear_ns: Option<u64>,
    /// Clearing a word's pages, all dirty.
    clear_ns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Get {
    /// Pages reported.
    dirty_pages: u64,
    ns: u64,
}

/// Measures with ordinary memory of `memory` bytes, mapped `times` times, and with frames in a row.
///
/// # Errors
///
/// If there are no software IOMMUs, or the kernel refuses something.
pub(crate) fn measure(
    env: &Env,
    memory: u64,
    times: u64,
    progress: &ProgressBar,
) -> Result<Vec<Cost>> {
    progress.set_length(2 * REPEAT as u64);
    let session = || Session::with(env, Model::V2, &[("dirty", 0), ("dirty", 1)]);

    let anonymous = Memory::unpopulated(memory)?;
    anonymous.fill(0x5a);
    let mut costs = vec![one("ordinary", &session()?, &anonymous, times, progress)?];
    drop(anonymous);

    let session = session()?;
    let region = Memory::region(&session.engines[1].0, session.engines[1].0.region(0)?)?;
    let times = memory / region.len();
    costs.push(one("frames in a row", &session, &region, times, progress)?);
    Ok(costs)
}

fn one(
    name: &'static str,
    session: &Session,
    memory: &Memory,
    times: u64,
    progress: &ProgressBar,
) -> Result<Cost> {
    let (container, engine) = (&session.container, session.engine());
    for n in 0..times {
        let iova = IOVA + n * memory.len();
        container.map(iova, memory.vaddr(), memory.len(), RW)?;
    }
    let bytes = times * memory.len();
    let stats = engine.stats()?;
    let manual = has_manual_clear(container)?;
    let mut words = vec![0; (bytes / PAGE).div_ceil(64) as usize];
    let mut seed = 0;

    let mut cost = Cost {
        memory: name,
        bytes,
        leaves: [stats.leaves_4k, stats.leaves_2m, stats.leaves_1g],
        start_ns: u64::MAX,
        gets: Vec::new(),
        noclear_ns: None,
        clear_ns: None,
    };
    for repeat in 0..REPEAT {
        let start = timed(|| Ok(container.dirty(DIRTY_START)?))?;
        cost.start_ns = cost.start_ns.min(start);
        for (place, one_of) in DIRTY_ONE_OF.into_iter().enumerate() {
            seed += 1;
            make_dirty(engine, bytes, one_of, seed)?;
            words.fill(0);
            let ns = timed(|| Ok(container.dirty_range(DIRTY_GET, IOVA, bytes, &mut words)?))?;
            let dirty_pages = words.iter().map(|word| u64::from(word.count_ones())).sum();
            if repeat == 0 {
                cost.gets.push(Get { dirty_pages, ns });
            }
            let get = &mut cost.gets[place];
            ensure!(
                get.dirty_pages == dirty_pages,
                "{dirty_pages} pages are dirty, it was {} before",
                get.dirty_pages
            );
            get.ns = get.ns.min(ns);
        }
        if manual {
            make_dirty(engine, bytes, 1, seed)?;
            let ask = |words: &mut [u64]| -> Result<u64> {
                words.fill(0);
                timed(|| Ok(container.dirty_range(DIRTY_GET_NOCLEAR, IOVA, bytes, words)?))
            };
            ask(&mut words)?;
            let noclear = ask(&mut words)?;
            cost.noclear_ns = Some(cost.noclear_ns.unwrap_or(u64::MAX).min(noclear));
            for (window, word) in words.chunks_mut(1).zip(0u64..) {
                let len = WORD as u64 * PAGE;
                let iova = IOVA + word * len;
                let clear = timed(|| Ok(container.dirty_range(DIRTY_CLEAR, iova, len, window)?))?;
                cost.clear_ns = Some(cost.clear_ns.unwrap_or(u64::MAX).min(clear));
            }
        }
        container.dirty(DIRTY_STOP)?;
        progress.inc(1);
    }
    Ok(cost)
}

/// Has the device write to the first of so many pages each, or to none.
fn make_dirty(engine: &Engine, bytes: u64, one_of: u64, seed: u64) -> Result<()> {
    if one_of == 1 {
        for from in (0..bytes).step_by(DMA_MAX as usize) {
            let len = DMA_MAX.min(bytes - from);
            let done = engine.touch(IOVA + from, len, seed, 1)?;
            ensure!(done.fault.is_none(), "DMA faulted: {:?}", done.fault);
        }
        return Ok(());
    }
    let stride = one_of * PAGE;
    let places = (0..bytes).step_by(stride.max(1) as usize);
    for offset in places.take_while(|_| stride > 0) {
        write_page(engine, IOVA + offset, seed)?;
    }
    Ok(())
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<u64> {
    let began = Instant::now();
    call()?;
    let took: Duration = began.elapsed();
    Ok(nanoseconds(took))
}

/// A line for each.
pub(crate) fn print(costs: &[Cost]) {
    for cost in costs {
        let [small, large, huge] = cost.leaves;
        println!(
            "{}, {} MiB mapped, by {small} x 4K, {large} x 2M, {huge} x 1G:",
            cost.memory,
            cost.bytes / MIB
        );
        let row = |what: &str, ns: u64| {
            let per_gib = u128::from(ns) * u128::from(GIB) / u128::from(cost.bytes);
            let per_gib = u64::try_from(per_gib).unwrap_or(u64::MAX);
            println!("  {what:<40} {:>10}  {:>10} / GiB", time(ns), time(per_gib));
        };
        row("START", cost.start_ns);
        for get in &cost.gets {
            row(&format!("GET, {} pages dirty", get.dirty_pages), get.ns);
        }
        if let Some(ns) = cost.noclear_ns {
            row("NOCLEAR, all pages in the log", ns);
        }
        if let Some(ns) = cost.clear_ns {
            println!("  {:<40} {:>10}", "CLEAR of 64 pages, all dirty", time(ns));
        }
    }
}
