// SPDX-License-Identifier: GPL-2.0

//! The devices themselves, without type1: what other tests rely on.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::Env;
use harness::iommufd::{
    attach,
    Id,
    Iommufd,
    NO_CLEAR, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::soft::{
    self,
    filled,
    Engine,
    Fault,
    Op,
    RawDma,
    What,
    DMA_MAX,
    ENGINES,
    LEAF_DIRTY, //
};
use harness::tests;
use harness::vfio::PAGE;
use nix::errno::Errno;

use super::{
    expect_done,
    pages,
    wait_pieces,
    IOVA, //
};

tests! {
    "fixture.blocked", "a device without a page table reaches nothing" => blocked;
    "fixture.works", "a device reaches what iommufd maps" => works;
    "fixture.tracking", "writes make leaves dirty, while that is tracked" => tracking;
    "fixture.refused", "senseless requests are refused" => refused;
    "fixture.freed", "nothing is left" => freed;
    "bitmap.dirty", "iommufd finds the pages that were written to, once" => dirty;
    "bitmap.running", "... and loses none that is written to meanwhile" => running;
}

const LEN: u64 = 128 * PAGE;

/// Opens a device of a unit for an iommufd context, attached to nothing.
#[track_caller]
fn bind(iommufd: &Iommufd, unit: &'static str, index: usize) -> Verdict<(Engine, Id)> {
    let engine = soft::device(unit, index)?.open_node()?;
    let id = iommufd.bind(&engine.0)?;
    Ok((engine, id))
}

/// A device of the unit that tracks, with `memory` mapped at `IOVA`.
struct Tracked {
    engine: Engine,
    table: Id,
    iommufd: Iommufd,
}

#[track_caller]
fn tracked(memory: &Memory) -> Verdict<Tracked> {
    let iommufd = Iommufd::open()?;
    let (engine, device) = bind(&iommufd, "dirty", 0)?;
    let ioas = iommufd.ioas()?;
    let table = iommufd.tracking_table(device, ioas)?;
    attach(&engine.0, table)?;
    iommufd.map(ioas, IOVA, memory.vaddr(), memory.len())?;
    Ok(Tracked {
        engine,
        table,
        iommufd,
    })
}

fn blocked(_: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    let iommufd = Iommufd::open()?;
    let (engine, _) = bind(&iommufd, "plain", 0)?;
    let ioas = iommufd.ioas()?;
    iommufd.map(ioas, IOVA, memory.vaddr(), PAGE)?;
    expect_eq("fault", engine.probe(IOVA)?, Some(Fault::Blocked))?;
    expect_errno("no page table", engine.walk(), Errno::ENOENT)?;
    attach(&engine.0, ioas)?;
    expect_done("fill", engine.fill(IOVA, PAGE, 1, 1)?, PAGE)?;
    expect_eq("leaves", engine.walk()?.len(), 1)
}

fn works(_: &Env) -> Verdict {
    let memory = Memory::anon(MIB)?;
    for unit in ["plain", "small", "noncoherent", "wide", "foreign"] {
        let iommufd = Iommufd::open()?;
        let (engine, _) = bind(&iommufd, unit, 1)?;
        let ioas = iommufd.ioas()?;
        attach(&engine.0, ioas)?;
        iommufd.map(ioas, IOVA, memory.vaddr(), MIB)?;
        expect_done("fill", engine.fill(IOVA, MIB, 5, ENGINES)?, MIB)?;
        expect("memory", memory.get(0, MIB) == filled(5, IOVA, MIB))?;
        iommufd.unmap(ioas, IOVA, MIB)?;
        expect_eq("bytes done", engine.fill(IOVA, MIB, 6, ENGINES)?.done, 0)?;
        expect_eq("leaves", engine.walk()?.len(), 0)?;
    }
    Ok(())
}

/// Pages whose leaf is dirty.
#[track_caller]
fn dirty_leaves(engine: &Engine) -> Verdict<Vec<u64>> {
    let leaves = engine.walk()?;
    let dirty = leaves.iter().filter(|leaf| leaf.flags & LEAF_DIRTY != 0);
    Ok(dirty.map(|leaf| leaf.iova).collect())
}

fn tracking(_: &Env) -> Verdict {
    // Not in one piece, so that each page has a leaf.
    let memory = Memory::scattered(LEN)?;
    let Tracked {
        engine,
        table,
        iommufd,
    } = tracked(&memory)?;
    let none: Vec<u64> = Vec::new();
    expect_done("fill", engine.fill(IOVA, LEN, 1, ENGINES)?, LEN)?;
    expect_eq("dirty leaves", dirty_leaves(&engine)?, none.clone())?;

    iommufd.track(table, true)?;
    expect_eq("dirty leaves", dirty_leaves(&engine)?, none.clone())?;
    expect_done("read", engine.checksum(IOVA, LEN, ENGINES)?, LEN)?;
    expect_eq("dirty leaves", dirty_leaves(&engine)?, none.clone())?;
    let mut want = Vec::new();
    for page in pages(LEN).step_by(3) {
        expect_done("fill", engine.fill(IOVA + page + 8, 1, 2, 1)?, 1)?;
        want.push(IOVA + page);
        expect_eq("dirty leaves", dirty_leaves(&engine)?, want.clone())?;
    }

    // What was written to before tracking began again is clean.
    iommufd.track(table, false)?;
    iommufd.track(table, true)?;
    expect_eq("dirty leaves", dirty_leaves(&engine)?, none)?;
    expect_done("fill", engine.fill(IOVA, PAGE, 2, 1)?, PAGE)?;
    expect_eq("dirty leaves", dirty_leaves(&engine)?, vec![IOVA])
}

fn dirty(_: &Env) -> Verdict {
    let memory = Memory::scattered(LEN)?;
    let Tracked {
        engine,
        table,
        iommufd,
    } = tracked(&memory)?;
    iommufd.track(table, true)?;
    let ask = |flags| -> Verdict<Vec<u64>> {
        let mut bits = [0; (LEN / PAGE / 64) as usize];
        iommufd.dirty(table, flags, IOVA, PAGE, &mut bits)?;
        let set = |n: &u64| bits[(n / 64) as usize] & (1 << (n % 64)) != 0;
        Ok((0..LEN / PAGE).filter(set).collect())
    };
    for round in 0..8 {
        expect_eq("dirty pages", ask(0)?, Vec::new())?;
        let want: Vec<u64> = (0..LEN / PAGE).filter(|n| n % 8 == round).collect();
        // All in the IOTLBs, some of them for writing.
        expect_done("read", engine.checksum(IOVA, LEN, 1)?, LEN)?;
        for n in &want {
            expect_done("fill", engine.fill(IOVA + n * PAGE, 8, round, 1)?, 8)?;
        }
        expect_eq("dirty pages", ask(NO_CLEAR)?, want.clone())?;
        expect_eq("dirty pages, asked again", ask(0)?, want.clone())?;
        expect_eq("dirty pages, asked once more", ask(0)?, Vec::new())?;
        // The same once more: what the IOTLBs know must not hide it.
        for n in &want {
            expect_done("fill", engine.fill(IOVA + n * PAGE, 8, round, 1)?, 8)?;
        }
        expect_eq("dirty pages of the second time", ask(0)?, want)?;
    }
    Ok(())
}

fn running(_: &Env) -> Verdict {
    let memory = Memory::scattered(LEN)?;
    memory.fill(0);
    let Tracked {
        engine,
        table,
        iommufd,
    } = tracked(&memory)?;
    iommufd.track(table, true)?;
    let mut seen = memory.get(0, LEN);
    let mut bits = [0; (LEN / PAGE / 64) as usize];
    for round in 1..20 {
        engine.start(Op::Fill, IOVA, LEN, round, 2)?;
        wait_pieces(&engine, 50)?;
        iommufd.dirty(table, 0, IOVA, PAGE, &mut bits)?;
        wait_pieces(&engine, 50)?;
        engine.stop()?;
        iommufd.dirty(table, 0, IOVA, PAGE, &mut bits)?;
        // Bits of both times are here: each page that changed must have one.
        let now = memory.get(0, LEN);
        for n in 0..LEN / PAGE {
            let page = (n * PAGE) as usize..((n + 1) * PAGE) as usize;
            let marked = bits[(n / 64) as usize] & (1 << (n % 64)) != 0;
            let changed = now[page.clone()] != seen[page];
            expect(format_args!("page {n} is dirty"), marked || !changed)?;
        }
        seen = now;
        bits = Default::default();
    }
    Ok(())
}

fn refused(_: &Env) -> Verdict {
    let iommufd = Iommufd::open()?;
    let (engine, _) = bind(&iommufd, "plain", 0)?;
    let good = RawDma {
        op: Op::Checksum as u32,
        iova: IOVA,
        len: PAGE,
        ..RawDma::default()
    };
    for (what, want, bad) in [
        ("no such operation", Errno::EINVAL, RawDma { op: 5, ..good }),
        ("nothing", Errno::EINVAL, RawDma { len: 0, ..good }),
        (
            "no engine",
            Errno::EINVAL,
            RawDma {
                threads: ENGINES + 1,
                ..good
            },
        ),
        (
            "a reserved field",
            Errno::EINVAL,
            RawDma {
                reserved: 1,
                ..good
            },
        ),
        (
            "too much",
            Errno::E2BIG,
            RawDma {
                len: DMA_MAX + 1,
                ..good
            },
        ),
        (
            "too much",
            Errno::E2BIG,
            RawDma {
                len: u64::MAX,
                ..good
            },
        ),
        (
            "over the end",
            Errno::EINVAL,
            RawDma {
                iova: u64::MAX,
                ..good
            },
        ),
        (
            "over the end of the source",
            Errno::EINVAL,
            RawDma {
                op: Op::Copy as u32,
                iova2: u64::MAX - PAGE + 2,
                ..good
            },
        ),
        (
            "pages that are none",
            Errno::EINVAL,
            RawDma {
                op: Op::Touch as u32,
                iova: IOVA + 8,
                ..good
            },
        ),
    ] {
        expect_errno(what, engine.dma_with(&mut { bad }), want)?;
        let mut bad = RawDma {
            threads: bad.threads.max(1),
            ..bad
        };
        expect_errno(what, engine.start_with(&mut bad), want)?;
    }
    expect_errno("no engine", engine.start_with(&mut { good }), Errno::EINVAL)?;
    expect_errno("not started", engine.stop(), Errno::ENOENT)?;
    expect_errno("not started", engine.peek(), Errno::ENOENT)?;

    engine.start(Op::Copy, IOVA, MIB, 0, ENGINES)?;
    let again = engine.start(Op::Copy, IOVA, MIB, 0, 1);
    expect_errno("started before", again, Errno::EBUSY)?;
    let did = wait_pieces(&engine, 10)?;
    expect("no more faults than pieces", did.faults <= did.pieces)?;
    let (fault, _) = engine.stop()?.fault.unwrap_or((Fault::Absent, 0));
    expect_eq("fault", fault, Fault::Blocked)?;

    for what in What::ALL {
        engine.fail(what, u32::MAX / 2)?;
        engine.fail(what, 0)?;
        let more = engine.fail(what, u32::MAX);
        expect_errno("too many", more, Errno::EINVAL)?;
    }
    expect_eq("leaves asked for", engine.walk_into(0, &mut [])?, 0)
}

fn freed(_: &Env) -> Verdict {
    expect_eq("domains and tables", soft::alive()?, (0, 0))
}
