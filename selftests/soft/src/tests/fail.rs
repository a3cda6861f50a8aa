// SPDX-License-Identifier: GPL-2.0

//! The IOMMU fails in the middle: all is as before, and works the next time.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::info::Info;
use harness::memory::{
    Memory,
    MIB, //
};
use harness::proc::{
    locked,
    PinCount, //
};
use harness::soft::{
    self,
    filled,
    Engine,
    Fault,
    Session,
    What, //
};
use harness::tests;
use harness::vfio::{
    Container,
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    expect_domains,
    expect_done,
    expect_same,
    expect_unmapped,
    IOVA, //
};

tests! {
    "fail.map", "mapping fails anywhere: nothing stays mapped, pinned or charged" => map;
    "fail.map_two", "... in the second of two page tables" => map_two;
    "fail.map_errno", "the IOMMU's error is the answer" => map_errno;
    "fail.first", "the first group cannot be attached" => first;
    "fail.joins", "a group cannot join: the others go on" => joins;
    "fail.joins_shared", "a group that cannot share a page table gets its own" => joins_shared;
    "fail.unmap", "the IOMMU does not unmap at the first try" => unmap;
    "fail.unmap_many", "... of many mappings" => unmap_many;
    "rust.unmap_two", "... in the second of two page tables" => unmap_two;
    "fail.unmap_short", "the IOMMU unmaps less than it was asked to" => unmap_short;
    "fail.close", "... while the container goes" => close;
}

const LEN: u64 = 48 * PAGE;

/// Arms `what` for the first call, the second and so on until `attempt`, which answers whether it
/// succeeded, is not hit any more. How often it failed.
#[track_caller]
fn sweep(control: &Engine, what: What, mut attempt: impl FnMut() -> Verdict<bool>) -> Verdict<u64> {
    let mut hits = 0;
    for nth in 1..10_000 {
        let before = control.stats()?.failed;
        control.fail_with(what, nth, Errno::ENOMEM)?;
        let succeeded = attempt()?;
        let hit = control.stats()?.failed - before;
        control.fail(what, 0)?;
        if hit == 0 {
            expect(format_args!("succeeds without {what:?} failing"), succeeded)?;
            return Ok(hits);
        }
        hits += hit;
    }
    expect("the sweep ends", false).map(|()| hits)
}

#[track_caller]
fn maps_or_rolls_back(session: &Session, control: &Engine) -> Verdict {
    let memory = Memory::scattered(LEN)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let avail = Info::read(&session.container)?.dma_avail;
    // Neighbours must survive. The second half needs a table that none of them needs.
    let first = (1 << 30) - LEN / 2;
    let beside = Memory::anon(2 * PAGE)?;
    let container = &session.container;
    container.map(first - PAGE, beside.vaddr(), PAGE, RW)?;
    container.map(first + 4 * MIB, beside.vaddr() + PAGE, PAGE, RW)?;

    // Tables stay: when they are made is the first time only.
    for (what, least) in [(What::Table, 1), (What::Map, 20), (What::Leaf, 48)] {
        let hits = sweep(control, what, || {
            let mapped = container.map(first, memory.vaddr(), LEN, RW);
            let succeeded = mapped.is_ok();
            if succeeded {
                expect_same(session, LEN + 2 * PAGE)?;
                for engine in &session.engines {
                    expect_done("fill", engine.fill(first, LEN, 1, 2)?, LEN)?;
                }
                let bytes = filled(1, first, LEN);
                expect("memory", memory.get(0, LEN) == bytes)?;
                expect_eq("unmapped", container.unmap(first, LEN, 0)?, LEN)?;
            } else {
                expect_errno("injected", mapped, Errno::ENOMEM)?;
                expect_eq("unmapped", container.unmap(first, LEN, 0)?, 0)?;
            }
            expect_same(session, 2 * PAGE)?;
            for engine in &session.engines {
                let fault = engine.fill(first, LEN, 2, 2)?;
                expect_eq("bytes done", fault.done, 0)?;
            }
            expect_eq("locked memory", locked()?, before + 2 * PAGE)?;
            pins.expect(2)?;
            let left = Info::read(container)?.dma_avail;
            expect_eq("mappings left", left, avail - 2)?;
            Ok(succeeded)
        })?;
        expect(format_args!("{what:?} failed {hits} times"), hits >= least)?;
    }
    expect_eq("bytes unmapped", container.unmap_all()?, 2 * PAGE)?;
    expect_unmapped(session)
}

fn map(env: &Env) -> Verdict {
    for unit in ["plain", "small"] {
        let session = Session::open(env, unit)?;
        maps_or_rolls_back(&session, session.engine())?;
    }
    Ok(())
}

fn map_two(env: &Env) -> Verdict {
    // Either may be mapped first.
    for control in 0..2 {
        let devices = [("plain", 0), ("foreign", 0)];
        let session = Session::with(env, Model::V2, &devices)?;
        maps_or_rolls_back(&session, &session.engines[control])?;
    }
    Ok(())
}

fn map_errno(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    let session = Session::open(env, "plain")?;
    for errno in [Errno::ENOSPC, Errno::EINVAL, Errno::EIO, Errno::EBUSY] {
        session.engine().fail_with(What::Map, 1, errno)?;
        let refused = session.container.map(IOVA, memory.vaddr(), PAGE, RW);
        expect_errno("injected", refused, errno)?;
        expect_unmapped(&session)?;
    }
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    Ok(())
}

fn first(env: &Env) -> Verdict {
    let other = Session::with(env, Model::V2, &[("plain", 1)])?;
    let control = other.engine();
    let memory = Memory::anon(PAGE)?;
    for what in [What::Alloc, What::Table, What::Attach] {
        for errno in [Errno::ENOMEM, Errno::EBUSY, Errno::EINVAL] {
            control.fail_with(what, 1, errno)?;
            let device = soft::device("plain", 0)?;
            let group = device.open_group()?;
            let container = Container::open()?;
            group.set_container(&container)?;
            let refused = container.set_iommu(Model::V2.number());
            // Memory for a table is only ever short.
            let want = if what == What::Table {
                Errno::ENOMEM
            } else {
                errno
            };
            expect_errno(format_args!("{what:?}"), refused, want)?;
            expect_domains(1)?;

            container.set_iommu(Model::V2.number())?;
            expect_domains(2)?;
            container.map(IOVA, memory.vaddr(), PAGE, RW)?;
            let engine = device.open(&group)?;
            expect_done("fill", engine.fill(IOVA, PAGE, 1, 1)?, PAGE)?;
        }
    }
    expect_domains(1)
}

fn joins(env: &Env) -> Verdict {
    let other = Session::with(env, Model::V2, &[("small", 1)])?;
    let control = other.engine();
    let memory = Memory::scattered(LEN)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let mut session = Session::open(env, "plain")?;
    let half = LEN / 2;
    let (low, high) = (IOVA, IOVA + (2 << 30));
    session.container.map(low, memory.vaddr(), half, RW)?;
    session
        .container
        .map(high, memory.vaddr() + half, half, RW)?;

    for (what, least) in [
        (What::Alloc, 1),
        (What::Attach, 1),
        (What::Table, 5),
        (What::Map, 20),
        (What::Leaf, 48),
    ] {
        let hits = sweep(control, what, || {
            let joined = session.add("small", 0)?;
            let succeeded = joined.is_ok();
            if succeeded {
                expect_same(&session, LEN)?;
                session.remove(1)?;
            } else {
                expect_errno("injected", joined, Errno::ENOMEM)?;
            }
            expect_domains(2)?;
            expect_same(&session, LEN)?;
            let engine = session.engine();
            expect_done("fill", engine.fill(low, half, 1, 1)?, half)?;
            expect_done("fill", engine.fill(high, half, 1, 1)?, half)?;
            expect_eq("locked memory", locked()?, before + LEN)?;
            pins.expect((LEN / PAGE) as i64)?;
            Ok(succeeded)
        })?;
        expect(format_args!("{what:?} failed {hits} times"), hits >= least)?;
    }
    session.add("small", 0)??;
    expect_same(&session, LEN)
}

fn joins_shared(env: &Env) -> Verdict {
    let memory = Memory::anon(MIB)?;
    let other = Session::with(env, Model::V2, &[("plain", 1)])?;
    let mut session = Session::open(env, "small")?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    // First its own page table, then the one that is there: plain agrees with small.
    for (nth, domains) in [(0, 2), (2, 3)] {
        other.engine().fail_with(What::Attach, nth, Errno::ENODEV)?;
        session.add("plain", 0)??;
        expect_domains(domains)?;
        expect_same(&session, memory.len())?;
        let engine = &session.engines[1];
        let done = engine.fill(IOVA, memory.len(), 1, 2)?;
        expect_done("fill", done, memory.len())?;
        session.remove(1)?;
        expect_domains(2)?;
    }
    Ok(())
}

#[track_caller]
fn unmaps_in_the_end(session: &Session, control: &Engine, mappings: u64) -> Verdict<u64> {
    let memory = Memory::scattered(LEN)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let container = &session.container;
    sweep(control, What::Unmap, || {
        let size = LEN / mappings;
        for at in (0..LEN).step_by(size as usize) {
            container.map(IOVA + at, memory.vaddr() + at, size, RW)?;
        }
        for engine in &session.engines {
            expect_done("fill", engine.fill(IOVA, LEN, 1, 2)?, LEN)?;
        }
        expect_eq("bytes unmapped", container.unmap(IOVA, LEN, 0)?, LEN)?;
        expect_unmapped(session)?;
        for engine in &session.engines {
            expect_eq("bytes done", engine.fill(IOVA, LEN, 2, 2)?.done, 0)?;
        }
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
        Ok(true)
    })
}

fn unmap(env: &Env) -> Verdict {
    let session = Session::open(env, "plain")?;
    let hits = unmaps_in_the_end(&session, session.engine(), 1)?;
    expect(format_args!("it failed {hits} times"), hits >= 20)
}

fn unmap_many(env: &Env) -> Verdict {
    let session = Session::open(env, "plain")?;
    let mappings = LEN / PAGE;
    let hits = unmaps_in_the_end(&session, session.engine(), mappings)?;
    expect(format_args!("it failed {hits} times"), hits >= mappings)
}

fn unmap_two(env: &Env) -> Verdict {
    // The C driver unpins what the second one still maps, and the device writes to it.
    env.need_rust()?;
    let devices = [("plain", 0), ("foreign", 0)];
    let session = Session::with(env, Model::V2, &devices)?;
    for control in &session.engines {
        let hits = unmaps_in_the_end(&session, control, 1)?;
        expect(format_args!("it failed {hits} times"), hits >= 1)?;
    }
    Ok(())
}

fn unmap_short(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let before = locked()?;
    let session = Session::open(env, "plain")?;
    let other = Session::with(env, Model::V2, &[("foreign", 1)])?;
    let device = &other.engine().0;
    let region = Memory::region(device, device.region(0)?)?;
    let anon = Memory::anon(4 * MIB)?;
    let (container, engine) = (&session.container, session.engine());
    for memory in [&region, &anon] {
        // A page off the alignment of large leaves: many leaves in a run.
        for iova in [IOVA, IOVA + PAGE] {
            let len = memory.len();
            for nth in 1..4 {
                container.map(iova, memory.vaddr(), len, RW)?;
                expect_done("fill", engine.fill(iova, len, 1, 8)?, len)?;
                engine.fail(What::UnmapShort, nth)?;
                expect_eq("bytes unmapped", container.unmap(iova, len, 0)?, len)?;
                engine.fail(What::UnmapShort, 0)?;
                engine.fail(What::Unmap, 0)?;
                expect_unmapped(&session)?;
                let fault = engine.fill(iova, len, 2, 8)?;
                expect_eq("fault", fault.fault, Some((Fault::Absent, iova)))?;
                expect_eq("bytes done", fault.done, 0)?;
                expect_eq("locked memory", locked()?, before)?;
                pins.expect(0)?;
            }
        }
    }
    expect("it failed", engine.stats()?.failed > 0)
}

fn close(env: &Env) -> Verdict {
    let memory = Memory::scattered(LEN)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let other = Session::with(env, Model::V2, &[("plain", 1)])?;
    for nth in [1, 2, LEN / PAGE] {
        let session = Session::open(env, "plain")?;
        session.container.map(IOVA, memory.vaddr(), LEN, RW)?;
        other.engine().fail(What::Unmap, nth as u32)?;
        drop(session);
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
        expect_domains(1)?;
    }
    Ok(())
}
