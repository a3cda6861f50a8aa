// SPDX-License-Identifier: GPL-2.0

//! The tests, one file per subject.

mod dirty;
mod dma;
mod domain;
mod fail;
mod fixture;
mod leaf;
mod load;
mod migrate;
mod range;
mod unmap;

use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use harness::check::{
    expect_eq,
    Stop,
    Verdict, //
};
use harness::info::Info;
use harness::runner::Test;
use harness::soft::{
    self,
    Background,
    Dma,
    Engine,
    Leaf,
    Session, //
};
use harness::vfio::PAGE;

/// All tests, in the order they run.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    [
        fixture::TESTS,
        dma::TESTS,
        leaf::TESTS,
        unmap::TESTS,
        domain::TESTS,
        range::TESTS,
        fail::TESTS,
        load::TESTS,
        dirty::TESTS,
        migrate::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Where tests map unless the place matters: a multiple of all page sizes but 1 GiB.
const IOVA: u64 = 16 << 20;

/// Fails unless all bytes were done.
#[track_caller]
fn expect_done(what: &str, dma: Dma, len: u64) -> Verdict {
    expect_eq(format_args!("{what}: fault"), dma.fault, None)?;
    expect_eq(format_args!("{what}: bytes done"), dma.done, len)
}

/// Fails unless there are so many domains of all units together.
#[track_caller]
fn expect_domains(want: u64) -> Verdict {
    expect_eq("domains", soft::alive()?.0, want)
}

/// Fails unless no page table maps anything.
#[track_caller]
fn expect_unmapped(session: &Session) -> Verdict {
    for engine in &session.engines {
        expect_eq("leaves", engine.walk()?, Vec::new())?;
    }
    Ok(())
}

/// The page sizes of a container.
#[track_caller]
fn page_sizes(session: &Session) -> Verdict<u64> {
    Ok(Info::read(&session.container)?.pgsizes)
}

/// The valid ranges of a container.
#[track_caller]
fn ranges(session: &Session) -> Verdict<Vec<(u64, u64)>> {
    Ok(Info::read(&session.container)?.iova)
}

/// What leaves map, whatever their sizes: ranges of consecutive addresses on both sides.
fn runs(leaves: &[Leaf]) -> Vec<Leaf> {
    let mut runs: Vec<Leaf> = Vec::new();
    for leaf in leaves {
        let follows = |run: &Leaf| {
            run.iova + run.size == leaf.iova
                && run.phys + run.size == leaf.phys
                && run.prot == leaf.prot
        };
        match runs.last_mut().filter(|run| follows(run)) {
            Some(run) => run.size += leaf.size,
            None => runs.push(*leaf),
        }
    }
    runs
}

/// Fails unless `bytes` are mapped one by one to the same memory, in all page tables.
#[track_caller]
fn expect_same(session: &Session, bytes: u64) -> Verdict {
    let first = runs(&session.engine().walk()?);
    let mapped: u64 = first.iter().map(|run| run.size).sum();
    expect_eq("bytes mapped", mapped, bytes)?;
    for engine in &session.engines {
        // The tags of runs are those of their first leaf, wherever the others begin.
        expect_eq("what is mapped", runs(&engine.walk()?), first.clone())?;
    }
    Ok(())
}

/// Waits until background DMA has gone on for a while; what it did so far.
#[track_caller]
fn wait_pieces(engine: &Engine, more: u64) -> Verdict<Background> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let before = engine.peek()?.pieces;
    loop {
        let now = engine.peek()?;
        if now.pieces >= before + more {
            return Ok(now);
        }
        if Instant::now() > deadline {
            return Err(Stop::fail(format_args!(
                "background DMA: expected {more} pieces, got {}",
                now.pieces - before
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Pages in `len` bytes.
fn pages(len: u64) -> impl Iterator<Item = u64> {
    (0..len).step_by(PAGE as usize)
}
