// SPDX-License-Identifier: GPL-2.0

//! Many mappings, and many threads.

use std::thread;

use harness::check::{
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
use harness::proc::locked;
use harness::tests;
use harness::vfio::{
    PAGE,
    READ,
    RW, //
};

use super::IOVA;

tests! {
    "load.many", "five thousand mappings at once" => many;
    "load.order", "mappings made and removed in no particular order" => order;
    "load.threads", "threads map and unmap beside each other" => threads;
    "load.threads_same", "threads contend for the same range" => threads_same;
}

fn many(env: &Env) -> Verdict {
    const COUNT: u64 = 5000;
    let memory = Memory::anon(64 * PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let before = locked()?;
        let avail = session.info()?.dma_avail;
        for n in 0..COUNT {
            let vaddr = memory.vaddr() + n % 64 * PAGE;
            session.container.map(IOVA + n * PAGE, vaddr, PAGE, RW)?;
        }
        expect_eq("locked memory", locked()?, before + COUNT * PAGE)?;
        let left = session.info()?.dma_avail;
        expect_eq("budget", u64::from(left), u64::from(avail) - COUNT)?;
        expect_eq(
            "bytes unmapped",
            session.container.unmap_all()?,
            COUNT * PAGE,
        )?;
        expect_eq("locked memory after unmap-all", locked()?, before)?;
        expect_eq("budget after unmap-all", session.info()?.dma_avail, avail)?;
    }
    Ok(())
}

fn order(env: &Env) -> Verdict {
    // A prime and a generator of its group: each place comes once, scattered.
    const PLACES: u64 = 257;
    const STEP: u64 = 3;
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(4 * PAGE)?;
    let before = locked()?;
    let scattered = |step: u64| {
        (1..PLACES).scan(1, move |place, _| {
            *place = *place * step % PLACES;
            Some(IOVA + *place * 8 * PAGE)
        })
    };
    let size = |iova: u64| (1 + iova / PAGE / 8 % 4) * PAGE;

    for iova in scattered(STEP) {
        session
            .container
            .map(iova, memory.vaddr(), size(iova), RW)?;
    }
    for iova in scattered(STEP * STEP * STEP) {
        let unmapped = session.container.unmap(iova, size(iova), 0)?;
        expect_eq("bytes unmapped", unmapped, size(iova))?;
    }
    expect_eq("locked memory", locked()?, before)
}

fn threads(env: &Env) -> Verdict {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 100;
    const SPAN: u64 = MIB;
    let memory = Memory::anon(THREADS * SPAN)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let container = &session.container;
        let before = locked()?;

        let work = |thread: u64| -> Verdict {
            let (iova, vaddr) = (IOVA + thread * SPAN, memory.vaddr() + thread * SPAN);
            for round in 0..ROUNDS {
                let size = (1 + (round * 7 + thread) % 32) * PAGE;
                let offset = round % 8 * PAGE;
                container.map(iova + offset, vaddr + offset, size, RW)?;
                let unmapped = container.unmap(iova + offset, size, 0)?;
                expect_eq("bytes unmapped", unmapped, size)?;
            }
            // Left for the unmap-all below.
            container.map(iova, vaddr, SPAN, READ)?;
            Ok(())
        };
        let verdicts: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        for verdict in verdicts {
            verdict.map_err(|_| Stop::fail("a thread panicked"))??;
        }

        expect_eq("locked memory", locked()?, before + memory.len())?;
        expect_eq(
            "bytes unmapped",
            session.container.unmap_all()?,
            memory.len(),
        )?;
        expect_eq("locked memory after unmap-all", locked()?, before)?;
    }
    Ok(())
}

fn threads_same(env: &Env) -> Verdict {
    use nix::errno::Errno;

    const THREADS: u64 = 4;
    const ROUNDS: u64 = 200;
    let memory = Memory::anon(16 * PAGE)?;
    let session = env.open(Model::V2)?;
    let container = &session.container;
    let before = locked()?;

    // Returns the bytes mapped less the bytes unmapped by this thread.
    let work = || -> Verdict<i64> {
        let mut balance = 0;
        for _ in 0..ROUNDS {
            match container.map(IOVA, memory.vaddr(), memory.len(), RW) {
                Ok(()) => balance += memory.len() as i64,
                Err(error) if error.errno == Errno::EEXIST => {}
                Err(error) => return Err(error.into()),
            }
            balance -= container.unmap(IOVA, memory.len(), 0)? as i64;
        }
        Ok(balance)
    };
    let balances: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut sum = 0;
    for balance in balances {
        sum += balance.map_err(|_| Stop::fail("a thread panicked"))??;
    }
    let left = session.container.unmap_all()?;
    expect_eq("bytes mapped less bytes unmapped", sum, left as i64)?;
    expect_eq("locked memory", locked()?, before)
}
