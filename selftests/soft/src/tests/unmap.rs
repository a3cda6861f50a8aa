// SPDX-License-Identifier: GPL-2.0

//! When UNMAP_DMA returns, no device reaches the memory any more.

use harness::check::{
    expect,
    expect_eq,
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
    pipe,
    Child,
    PinCount, //
};
use harness::soft::{
    self,
    filled,
    Fault,
    Op,
    Session,
    ENGINES, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    READ,
    RW, //
};

use super::{
    expect_done,
    expect_unmapped,
    pages,
    wait_pieces,
    IOVA, //
};

tests! {
    "unmap.at_once", "what the device used a moment ago faults" => at_once;
    "unmap.neighbours", "what is mapped beside it does not" => neighbours;
    "unmap.replaced", "other memory at the same address is what the device sees" => replaced;
    "unmap.narrowed", "the same memory, now read only, is not written to" => narrowed;
    "unmap.running", "DMA that goes on meanwhile changes nothing afterwards" => running;
    "unmap.running_all", "... with unmap-all" => running_all;
    "unmap.running_close", "... when the device is closed" => running_close;
    "unmap.many", "many mappings go at once as each would by itself" => many;
    "rust.flushes", "for many mappings the IOTLB is flushed a few times" => flushes;
    "unmap.v1", "v1 unmaps whole mappings, or none" => v1;
    "unmap.killed", "a process killed with DMA under way leaves nothing behind" => killed;
}

/// Containers with one page table, and with two.
const SETS: [&[(&str, usize)]; 3] = [
    &[("plain", 0)],
    &[("plain", 0), ("plain", 1)],
    &[("small", 0), ("foreign", 0)],
];

fn at_once(env: &Env) -> Verdict {
    // Each engine gets a page.
    let len = u64::from(ENGINES) * PAGE;
    let memory = Memory::anon(len)?;
    for set in SETS {
        let session = Session::with(env, Model::V2, set)?;
        for round in 0..20 {
            session.container.map(IOVA, memory.vaddr(), len, RW)?;
            for engine in &session.engines {
                expect_done("fill", engine.fill(IOVA, len, round, ENGINES)?, len)?;
                expect_done("read", engine.checksum(IOVA, len, ENGINES)?, len)?;
            }
            session.container.unmap(IOVA, len, 0)?;
            for engine in &session.engines {
                let done = engine.fill(IOVA, len, 99, ENGINES)?;
                expect_eq("fault", done.fault, Some((Fault::Absent, IOVA)))?;
                expect_eq("bytes done", done.done, 0)?;
                let done = engine.checksum(IOVA, len, ENGINES)?;
                expect_eq("bytes done", done.done, 0)?;
            }
            expect_unmapped(&session)?;
            let bytes = filled(round, IOVA, len);
            expect("memory", memory.get(0, len) == bytes)?;
        }
    }
    Ok(())
}

fn neighbours(env: &Env) -> Verdict {
    let memory = Memory::anon(16 * PAGE)?;
    for set in SETS {
        let session = Session::with(env, Model::V2, set)?;
        for page in pages(memory.len()) {
            session
                .container
                .map(IOVA + page, memory.vaddr() + page, PAGE, RW)?;
        }
        for (n, page) in pages(memory.len()).enumerate() {
            for engine in &session.engines {
                engine.fill(IOVA, memory.len(), n as u64, ENGINES)?;
            }
            session.container.unmap(IOVA + page, PAGE, 0)?;
            for engine in &session.engines {
                for other in pages(memory.len()) {
                    let want = (other <= page).then_some(Fault::Absent);
                    let at = IOVA + other;
                    expect_eq(format_args!("{at:#x}"), engine.probe(at)?, want)?;
                }
            }
        }
    }
    Ok(())
}

fn many(env: &Env) -> Verdict {
    // Mappings of one page and, now and then, of many, with gaps.
    const LARGE: u64 = 600 * PAGE;
    let sizes = (0..200).map(|n| if n % 70 == 69 { LARGE } else { PAGE });
    let memory = Memory::scattered(sizes.clone().sum())?;
    for set in SETS {
        let pins = PinCount::begin()?;
        let before = locked()?;
        let session = Session::with(env, Model::V2, set)?;
        let mut end = IOVA;
        let mut done = 0;
        let mut starts = Vec::new();
        for size in sizes.clone() {
            session
                .container
                .map(end, memory.vaddr() + done, size, RW)?;
            starts.push(end);
            done += size;
            end += size + PAGE;
        }
        pins.expect((done / PAGE) as i64)?;
        for engine in &session.engines {
            for &start in &starts {
                expect_done("fill", engine.fill(start, PAGE, 1, 1)?, PAGE)?;
            }
        }

        // What is left when the range ends in the midst is what would be left one by one.
        let cut = starts[130];
        let left = sizes.clone().skip(130).sum::<u64>() / PAGE;
        let unmapped = session.container.unmap(IOVA, cut - IOVA, 0)?;
        expect_eq("bytes unmapped", unmapped, done - left * PAGE)?;
        pins.expect(left as i64)?;
        for engine in &session.engines {
            for &start in &starts {
                let want = (start < cut).then_some(Fault::Absent);
                expect_eq(format_args!("{start:#x}"), engine.probe(start)?, want)?;
            }
        }
        let unmapped = session.container.unmap(cut, end - cut, 0)?;
        expect_eq("bytes unmapped", unmapped, left * PAGE)?;
        expect_unmapped(&session)?;
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
    }
    Ok(())
}

fn flushes(env: &Env) -> Verdict {
    env.need_rust()?;
    const COUNT: u64 = 320;
    let memory = Memory::scattered(COUNT * PAGE)?;
    let session = Session::open(env, "plain")?;
    for page in pages(memory.len()) {
        session
            .container
            .map(IOVA + page, memory.vaddr() + page, PAGE, RW)?;
    }
    let before = session.engine().stats()?.flushes;
    let unmapped = session.container.unmap(IOVA, memory.len(), 0)?;
    expect_eq("bytes unmapped", unmapped, memory.len())?;
    let flushes = session.engine().stats()?.flushes - before;
    expect(
        format_args!("{flushes} flushes for {COUNT} mappings"),
        (1..=COUNT / 16).contains(&flushes),
    )
}

fn replaced(env: &Env) -> Verdict {
    let len = u64::from(ENGINES) * PAGE;
    let (one, other) = (Memory::anon(len)?, Memory::anon(len)?);
    for set in SETS {
        let session = Session::with(env, Model::V2, set)?;
        one.fill(0x11);
        for round in 0..10 {
            session.container.map(IOVA, one.vaddr(), len, RW)?;
            for engine in &session.engines {
                expect_done("fill", engine.fill(IOVA, len, 7, ENGINES)?, len)?;
            }
            session.container.unmap(IOVA, len, 0)?;
            session.container.map(IOVA, other.vaddr(), len, RW)?;
            for engine in &session.engines {
                other.fill(0x22);
                let seed = 100 + round;
                expect_done("fill", engine.fill(IOVA, len, seed, ENGINES)?, len)?;
                let bytes = filled(seed, IOVA, len);
                expect("memory mapped now", other.get(0, len) == bytes)?;
            }
            session.container.unmap(IOVA, len, 0)?;
            let bytes = filled(7, IOVA, len);
            expect("memory mapped before", one.get(0, len) == bytes)?;
        }
    }
    Ok(())
}

fn narrowed(env: &Env) -> Verdict {
    let len = u64::from(ENGINES) * PAGE;
    let memory = Memory::anon(len)?;
    for set in SETS {
        let session = Session::with(env, Model::V2, set)?;
        session.container.map(IOVA, memory.vaddr(), len, RW)?;
        for engine in &session.engines {
            expect_done("fill", engine.fill(IOVA, len, 7, ENGINES)?, len)?;
        }
        session.container.unmap(IOVA, len, 0)?;
        session.container.map(IOVA, memory.vaddr(), len, READ)?;
        for engine in &session.engines {
            let refused = engine.fill(IOVA, len, 8, ENGINES)?;
            expect_eq("fault", refused.fault, Some((Fault::NoWrite, IOVA)))?;
            expect_eq("bytes done", refused.done, 0)?;
            expect_done("read", engine.checksum(IOVA, len, ENGINES)?, len)?;
        }
        expect("memory", memory.get(0, len) == filled(7, IOVA, len))?;
    }
    Ok(())
}

/// Ends access by `end` while devices write as fast as they can.
#[track_caller]
fn while_running(env: &Env, end: impl Fn(&Session, u64) -> Verdict) -> Verdict {
    // Few enough that the IOTLBs keep all of them.
    let len = 16 * PAGE;
    let pins = PinCount::begin()?;
    let before = locked()?;
    for set in SETS {
        let memory = Memory::anon(len)?;
        let session = Session::with(env, Model::V2, set)?;
        session.container.map(IOVA, memory.vaddr(), len, RW)?;
        for engine in &session.engines {
            engine.start(Op::Fill, IOVA, len, 5, 2)?;
        }
        for _ in 0..5 {
            for engine in &session.engines {
                wait_pieces(engine, 200)?;
            }
            end(&session, len)?;
            memory.fill(0x77);
            for engine in &session.engines {
                let faults = engine.peek()?.faults;
                let now = wait_pieces(engine, 200)?;
                expect("DMA faults", now.faults > faults)?;
            }
            let quiet = memory.get(0, len) == vec![0x77; len as usize];
            expect("memory stays as it is", quiet)?;
            expect_eq("locked memory", locked()?, before)?;
            pins.expect(0)?;

            session.container.map(IOVA, memory.vaddr(), len, RW)?;
            for engine in &session.engines {
                expect_done("fill", engine.fill(IOVA, len, 5, 0)?, len)?;
            }
            expect("memory", memory.get(0, len) == filled(5, IOVA, len))?;
        }
        for engine in &session.engines {
            let faults = engine.stop()?.fault;
            let (fault, at) = faults.unwrap_or((Fault::Blocked, 0));
            expect_eq("fault", fault, Fault::Absent)?;
            expect("where it faulted", (IOVA..IOVA + len).contains(&at))?;
        }
    }
    Ok(())
}

fn running(env: &Env) -> Verdict {
    while_running(env, |session, len| {
        let unmapped = session.container.unmap(IOVA, len, 0)?;
        expect_eq("bytes unmapped", unmapped, len)
    })
}

fn running_all(env: &Env) -> Verdict {
    while_running(env, |session, len| {
        expect_eq("bytes unmapped", session.container.unmap_all()?, len)
    })
}

fn running_close(env: &Env) -> Verdict {
    let len = 16 * PAGE;
    let memory = Memory::anon(len)?;
    let mut session = Session::with(env, Model::V2, &[("plain", 0), ("small", 0)])?;
    session.container.map(IOVA, memory.vaddr(), len, RW)?;
    for place in [1, 0] {
        let engine = &session.engines[place];
        engine.start(Op::Fill, IOVA, len, 5, ENGINES)?;
        wait_pieces(engine, 100)?;
        session.engines.pop();
        memory.fill(0x77);
        // The other device goes on to do what it is told, which takes a moment.
        if let Some(engine) = session.engines.first() {
            expect_done("read", engine.checksum(IOVA, len, 1)?, len)?;
        } else {
            session.container.unmap(IOVA, len, 0)?;
        }
        let quiet = memory.get(0, len) == vec![0x77; len as usize];
        expect("memory stays as it is", quiet)?;
    }
    Ok(())
}

fn v1(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let len = memory.len();
    let session = Session::with(env, Model::V1, &[("plain", 0)])?;
    let (container, engine) = (&session.container, session.engine());
    container.map(IOVA, memory.vaddr(), len, RW)?;
    expect_done("fill", engine.fill(IOVA, len, 1, 1)?, len)?;

    // It begins within the mapping.
    let unmapped = container.unmap(IOVA + PAGE, PAGE, 0)?;
    expect_eq("bytes unmapped", unmapped, 0)?;
    expect_done("fill", engine.fill(IOVA, len, 2, 1)?, len)?;
    // It ends within the mapping.
    let unmapped = container.unmap(IOVA, PAGE, 0)?;
    expect_eq("bytes unmapped", unmapped, len)?;
    for page in pages(len) {
        expect_eq("fault", engine.probe(IOVA + page)?, Some(Fault::Absent))?;
    }
    expect_unmapped(&session)
}

fn killed(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let (mut ready, ready_in_child) = pipe()?;
    let child = Child::run(|| {
        use std::io::Write;

        let memory = Memory::anon(4 * MIB)?;
        let session = Session::with(env, Model::V2, &[("plain", 0), ("small", 0)])?;
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        for engine in &session.engines {
            engine.start(Op::Copy, IOVA, memory.len(), 0, 2)?;
            wait_pieces(engine, 100)?;
        }
        (&ready_in_child).write_all(b"r")?;
        loop {
            session.engine().fill(IOVA, memory.len(), 1, ENGINES)?;
        }
    })?;
    drop(ready_in_child);
    std::io::Read::read_exact(&mut ready, &mut [0])?;
    expect_eq("domains", soft::alive()?.0, 2)?;
    child.kill()?;
    expect_eq("domains and tables", soft::alive()?, (0, 0))?;
    pins.expect(0)
}
