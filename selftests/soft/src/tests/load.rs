// SPDX-License-Identifier: GPL-2.0

//! Many threads map, let devices do DMA, check and unmap, all at once.

use std::thread;

use harness::check::{
    expect,
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::proc::{
    locked,
    PinCount, //
};
use harness::soft::{
    filled,
    Op,
    Session, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    RW, //
};

use super::{
    expect_done,
    expect_same,
    expect_unmapped,
    wait_pieces,
    IOVA, //
};

tests! {
    "load.storm", "threads map, do DMA and unmap beside each other" => storm;
    "load.storm_two", "... in two page tables" => storm_two;
    "load.groups", "... while groups come and go" => groups;
}

const THREADS: u64 = 4;
const SPAN: u64 = MIB;
/// Where DMA goes on in the background: beside all threads.
const QUIET: u64 = IOVA + THREADS * SPAN;

/// Runs `work` in several threads.
#[track_caller]
fn in_threads(work: impl Fn(u64) -> Verdict + Sync) -> Verdict {
    let work = &work;
    let verdicts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for verdict in verdicts {
        verdict.map_err(|_| Stop::fail("a thread panicked"))??;
    }
    Ok(())
}

/// Maps a part of the thread's range, lets all devices write to it, and unmaps it.
#[track_caller]
fn round(session: &Session, memory: &Memory, thread: u64, round: u64) -> Verdict {
    let offset = thread * SPAN + round * 7 % 8 * PAGE;
    let size = (1 + (round * 13 + thread) % 64) * PAGE;
    let iova = IOVA + offset;
    let container = &session.container;
    container.map(iova, memory.vaddr() + offset, size, RW)?;
    for (n, engine) in session.engines.iter().enumerate() {
        let seed = round << 8 | n as u64;
        let threads = (round % 3) as u32;
        expect_done("fill", engine.fill(iova, size, seed, threads)?, size)?;
        let bytes = filled(seed, iova, size);
        expect("memory", memory.get(offset, size) == bytes)?;
    }
    expect_eq("bytes unmapped", container.unmap(iova, size, 0)?, size)?;
    for engine in &session.engines {
        expect_eq("bytes done", engine.fill(iova, size, 1, 2)?.done, 0)?;
    }
    Ok(())
}

#[track_caller]
fn storm_with(env: &Env, devices: &[(&'static str, usize)], rounds: u64) -> Verdict {
    let pins = PinCount::begin()?;
    let memory = Memory::anon(THREADS * SPAN)?;
    let quiet = Memory::anon(MIB)?;
    let before = locked()?;
    let session = Session::with(env, Model::V2, devices)?;
    session.container.map(QUIET, quiet.vaddr(), MIB, RW)?;
    for engine in &session.engines {
        engine.start(Op::Fill, QUIET, MIB, 77, 1)?;
    }

    in_threads(|thread| (0..rounds).try_for_each(|n| round(&session, &memory, thread, n)))?;
    for engine in &session.engines {
        wait_pieces(engine, 10)?;
        let did = engine.stop()?;
        expect_eq(
            "faults in the background",
            (did.faults, did.fault),
            (0, None),
        )?;
        expect_done("fill", engine.fill(QUIET, MIB, 77, 1)?, MIB)?;
    }
    let bytes = filled(77, QUIET, MIB);
    expect("memory in the background", quiet.get(0, MIB) == bytes)?;
    expect_same(&session, MIB)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, MIB)?;
    expect_unmapped(&session)?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)
}

fn storm(env: &Env) -> Verdict {
    storm_with(env, &[("plain", 0)], 20)?;
    storm_with(env, &[("small", 0)], 20)
}

fn storm_two(env: &Env) -> Verdict {
    storm_with(env, &[("plain", 0), ("foreign", 1)], 20)
}

fn groups(env: &Env) -> Verdict {
    let memory = Memory::anon(THREADS * SPAN)?;
    let quiet = Memory::anon(MIB)?;
    let session = Session::open(env, "plain")?;
    session.container.map(QUIET, quiet.vaddr(), MIB, RW)?;
    let guests = [
        ("plain", 1),
        ("small", 0),
        ("foreign", 0),
        ("noncoherent", 0),
    ];
    in_threads(|thread| {
        let (unit, index) = guests[thread as usize];
        for n in 0..30 {
            round(&session, &memory, thread, n)?;
            // One device for each thread, beside the one all share.
            let device = harness::soft::device(unit, index)?;
            let group = device.open_group()?;
            group.set_container(&session.container)?;
            let engine = device.open(&group)?;
            let iova = QUIET + thread * 64 * PAGE;
            let len = 64 * PAGE;
            expect_done("fill", engine.fill(iova, len, n, 2)?, len)?;
            let bytes = filled(n, iova, len);
            let offset = iova - QUIET;
            expect("memory", quiet.get(offset, len) == bytes)?;
            drop(engine);
            group.unset_container()?;
        }
        Ok(())
    })?;
    expect_same(&session, MIB)
}
