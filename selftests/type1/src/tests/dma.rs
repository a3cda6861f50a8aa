// SPDX-License-Identifier: GPL-2.0

//! What the device really reaches, with QEMU's edu device.

use std::collections::BTreeSet;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread;

use harness::check::{
    expect_eq,
    expect_errno,
    Stop,
    Verdict, //
};
use harness::edu::{
    enable_memory,
    Engine,
    REACH, //
};
use harness::env::{
    Env,
    Model,
    Session, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::proc::{
    locked,
    Child, //
};
use harness::tests;
use harness::vfio::{
    Container,
    Group,
    MAP_VADDR,
    PAGE,
    READ,
    RW,
    UNMAP_VADDR, //
};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use vfio_bindings::bindings::vfio;

use super::IOVA;

tests! {
    "dma.copy", "the device copies memory to memory, over page borders" => copy;
    "dma.kinds", "the device reaches each kind of memory where it was mapped" => kinds;
    "dma.after_unmap", "unmapped memory is out of reach" => after_unmap;
    "dma.read_only", "memory mapped for reading is not written" => read_only;
    "dma.after_fork", "the device and the parent still share memory after a fork" => after_fork;
    "dma.after_move", "a live update keeps the device's view" => after_move;
    "dma.second_group", "a group which joins reaches earlier mappings" => second_group;
    "dma.two_containers", "a group which moves between containers sees those of the one it is in" => two_containers;
    "dma.hot", "a group which joins and leaves reaches what stays mapped while others map and unmap" => hot;
    "dma.peer", "the device reaches a region of another device" => peer;
    "dma.interrupt", "interrupts, which the device writes like data, arrive whatever is mapped" => interrupt;
    "dma.interrupt_second_group", "a group which joins has its interrupts, each time" => interrupt_second_group;
}

/// Bytes which differ from page to page and from call to call.
fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[track_caller]
fn engine(env: &Env, model: Model) -> Verdict<(Session<'_>, Engine)> {
    let session = env.open_with(env.edu()?, model)?;
    let engine = Engine::open(session.device()?)?;
    Ok((session, engine))
}

/// Compares bytes without printing thousands of them.
#[track_caller]
fn expect_bytes(what: &str, got: &[u8], want: &[u8]) -> Verdict {
    let differs = got.iter().zip(want).position(|(g, w)| g != w);
    match differs {
        None => expect_eq(what, got.len(), want.len()),
        Some(at) => expect_eq(format_args!("{what}: byte {at}"), got[at], want[at]),
    }
}

fn copy(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let (session, engine) = engine(env, model)?;
        let from = Memory::anon(4 * PAGE)?;
        let to = Memory::anon(4 * PAGE)?;
        let (from_iova, to_iova) = (IOVA, REACH - to.len());
        session
            .container
            .map(from_iova, from.vaddr(), from.len(), READ)?;
        session.container.map(to_iova, to.vaddr(), to.len(), RW)?;

        // The last case lies across a page border on both sides, at different offsets.
        for (n, (source, target, count)) in [
            (0, 0, PAGE),
            (8, 3 * PAGE + 16, 100),
            (PAGE / 2, PAGE + 24, PAGE),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = pattern(n as u64 + 1, count);
            from.put(source, &bytes);
            to.fill(0xee);
            engine.fetch(from_iova + source, count)?;
            engine.store(to_iova + target, count)?;

            let mut want = vec![0xee; to.len() as usize];
            want[target as usize..][..count as usize].copy_from_slice(&bytes);
            expect_bytes("target", &to.get(0, to.len()), &want)?;
        }
    }
    Ok(())
}

fn kinds(env: &Env) -> Verdict {
    let (session, engine) = engine(env, Model::V2)?;
    let file = Memory::memfd(4 * MIB)?;
    let all = [
        Memory::anon(4 * MIB)?,
        Memory::thp(4 * MIB)?,
        Memory::shared(&file)?,
        Memory::hugetlb(4 * MIB, 2 * MIB)?,
    ];
    for (n, memory) in all.iter().enumerate() {
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        for page in [0, 1, 511, 512, 1023] {
            let offset = page * PAGE;
            let bytes = pattern(page + 1000 * n as u64, PAGE);
            memory.put(offset, &bytes);
            engine.fetch(IOVA + offset, PAGE)?;
            memory.put(offset, &[0; PAGE as usize]);
            engine.store(IOVA + offset, PAGE)?;
            expect_bytes("page", &memory.get(offset, PAGE), &bytes)?;
        }
        session.container.unmap(IOVA, memory.len(), 0)?;
    }
    Ok(())
}

fn after_unmap(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let (session, engine) = engine(env, model)?;
        let from = Memory::anon(PAGE)?;
        let to = Memory::anon(PAGE)?;
        let bytes = pattern(7, PAGE);
        from.put(0, &bytes);
        session.container.map(IOVA, from.vaddr(), PAGE, READ)?;
        session.container.map(2 * IOVA, to.vaddr(), PAGE, RW)?;
        // Once through, so that the IOMMU has the translation at hand.
        engine.fetch(IOVA, PAGE)?;
        engine.store(2 * IOVA, PAGE)?;
        expect_bytes("target while mapped", &to.get(0, PAGE), &bytes)?;

        to.fill(0x77);
        session.container.unmap(2 * IOVA, PAGE, 0)?;
        engine.store(2 * IOVA, PAGE)?;
        expect_bytes(
            "target after unmap",
            &to.get(0, PAGE),
            &[0x77; PAGE as usize],
        )?;

        let other = Memory::anon(PAGE)?;
        session.container.map(2 * IOVA, other.vaddr(), PAGE, RW)?;
        engine.fetch(IOVA, PAGE)?;
        engine.store(2 * IOVA, PAGE)?;
        expect_bytes("old target", &to.get(0, PAGE), &[0x77; PAGE as usize])?;
        expect_bytes("new target", &other.get(0, PAGE), &bytes)?;
    }
    Ok(())
}

fn read_only(env: &Env) -> Verdict {
    let (session, engine) = engine(env, Model::V2)?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, READ)?;
    memory.fill(0x11);
    engine.fetch(IOVA, PAGE)?;
    memory.fill(0x22);
    engine.store(IOVA, PAGE)?;
    expect_bytes(
        "memory mapped for reading",
        &memory.get(0, PAGE),
        &[0x22; PAGE as usize],
    )
}

fn after_fork(env: &Env) -> Verdict {
    let (session, engine) = engine(env, Model::V2)?;
    let memory = Memory::anon(2 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;

    Child::run(|| {
        memory.fill(0x99);
        Ok(())
    })?
    .join()?;

    let bytes = pattern(9, PAGE);
    memory.put(0, &bytes);
    engine.fetch(IOVA, PAGE)?;
    engine.store(IOVA + PAGE, PAGE)?;
    expect_bytes("memory of the parent", &memory.get(PAGE, PAGE), &bytes)
}

fn after_move(env: &Env) -> Verdict {
    let (session, engine) = engine(env, Model::V2)?;
    let file = Memory::memfd(2 * PAGE)?;
    let old = Memory::shared(&file)?;
    let new = Memory::shared(&file)?;
    session.container.map(IOVA, old.vaddr(), 2 * PAGE, RW)?;
    session.container.unmap(IOVA, 2 * PAGE, UNMAP_VADDR)?;

    // The device goes on while the address is invalid.
    let bytes = pattern(11, PAGE);
    new.put(0, &bytes);
    engine.fetch(IOVA, PAGE)?;
    session
        .container
        .map(IOVA, new.vaddr(), 2 * PAGE, MAP_VADDR)?;
    drop(old);
    engine.store(IOVA + PAGE, PAGE)?;
    expect_bytes("memory at its new address", &new.get(PAGE, PAGE), &bytes)
}

/// A container with the other device, and the group of edu, which is in none.
#[track_caller]
fn apart(env: &Env) -> Verdict<(Session<'_>, Group)> {
    let edu = env.edu()?.group()?;
    if edu == env.first()?.group()? {
        return Err(Stop::skip(
            "a PCI device in another IOMMU group than edu (--device)",
        ));
    }
    Ok((env.open(Model::V2)?, Group::open(edu)?))
}

fn second_group(env: &Env) -> Verdict {
    let (session, group) = apart(env)?;
    let memory = Memory::anon(2 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;

    group.set_container(&session.container)?;
    let engine = Engine::open(group.device(&env.edu()?.bdf)?)?;
    let bytes = pattern(13, PAGE);
    memory.put(0, &bytes);
    engine.fetch(IOVA, PAGE)?;
    engine.store(IOVA + PAGE, PAGE)?;
    expect_bytes("memory mapped earlier", &memory.get(PAGE, PAGE), &bytes)
}

fn two_containers(env: &Env) -> Verdict {
    let (session, group) = apart(env)?;
    let bdf = &env.edu()?.bdf;
    let memory = [Memory::anon(2 * PAGE)?, Memory::anon(2 * PAGE)?];
    session
        .container
        .map(IOVA, memory[0].vaddr(), 2 * PAGE, RW)?;

    let other = Container::open()?;
    let before = locked()?;
    for round in 0..3 {
        for (n, container) in [&session.container, &other].into_iter().enumerate() {
            group.set_container(container)?;
            if n == 1 {
                // The last group to leave took model and mappings with it.
                container.set_iommu(Model::V2.number())?;
                container.map(IOVA, memory[1].vaddr(), 2 * PAGE, RW)?;
                expect_eq("locked memory", locked()?, before + 2 * PAGE)?;
            }
            let engine = Engine::open(group.device(bdf)?)?;
            let bytes = pattern(20 + 2 * round + n as u64, PAGE);
            memory[n].put(0, &bytes);
            memory[1 - n].fill(0x5c);
            engine.fetch(IOVA, PAGE)?;
            engine.store(IOVA + PAGE, PAGE)?;
            expect_bytes("memory", &memory[n].get(PAGE, PAGE), &bytes)?;
            expect_bytes(
                "memory of the other container",
                &memory[1 - n].get(0, 2 * PAGE),
                &[0x5c; 2 * PAGE as usize],
            )?;

            expect_errno(
                "leaving with a device open",
                group.unset_container(),
                Errno::EBUSY,
            )?;
            drop(engine);
            group.unset_container()?;
            expect_eq("locked memory", locked()?, before)?;
        }
    }
    Ok(())
}

fn hot(env: &Env) -> Verdict {
    const ROUNDS: u64 = 12;
    const STEP: u64 = 16 * PAGE;
    let (session, group) = apart(env)?;
    let bdf = &env.edu()?.bdf;
    let memory = Memory::anon(2 * PAGE)?;
    let busy = Memory::anon(STEP)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let others: Vec<_> = (1..=2)
            .map(|n| {
                let (session, busy, done) = (&session, &busy, &done);
                scope.spawn(move || {
                    let iova = IOVA + n * STEP;
                    while !done.load(Ordering::Relaxed) {
                        session.container.map(iova, busy.vaddr(), STEP, RW)?;
                        expect_eq(
                            "bytes unmapped",
                            session.container.unmap(iova, STEP, 0)?,
                            STEP,
                        )?;
                    }
                    Ok(())
                })
            })
            .collect();

        let rounds = || {
            for round in 0..ROUNDS {
                group.set_container(&session.container)?;
                let engine = Engine::open(group.device(bdf)?)?;
                let bytes = pattern(40 + round, PAGE);
                memory.put(0, &bytes);
                engine.fetch(IOVA, PAGE)?;
                engine.store(IOVA + PAGE, PAGE)?;
                expect_bytes("memory", &memory.get(PAGE, PAGE), &bytes)?;
                drop(engine);
                group.unset_container()?;
            }
            Ok(())
        };
        let verdict = rounds();
        done.store(true, Ordering::Relaxed);
        let mut verdicts = vec![verdict];
        verdicts.extend(others.into_iter().map(|other| match other.join() {
            Ok(verdict) => verdict,
            Err(_) => Err(Stop::fail("a thread panicked")),
        }));
        verdicts.into_iter().collect::<Verdict>()
    })?;
    expect_eq("locked memory", locked()?, before + 2 * PAGE)
}

/// An entry of the multicast table of an 82576: memory, as long as no packet comes.
const IGB_MTA: u64 = 0x53fc;

fn peer(env: &Env) -> Verdict {
    let (session, group) = apart(env)?;
    let device = session.device()?;
    if !session.pci.is(0x8086, 0x10c9)? {
        return Err(Stop::skip("an igb (--device)"));
    }
    enable_memory(&device)?;
    let bar = Memory::region(&device, device.region(vfio::VFIO_PCI_BAR0_REGION_INDEX)?)?;
    let memory = Memory::anon(PAGE)?;
    let page = IGB_MTA & !(PAGE - 1);
    let (bar_iova, iova) = (2 * IOVA + page, IOVA);
    session
        .container
        .map(bar_iova, bar.vaddr() + page, PAGE, RW)?;
    session.container.map(iova, memory.vaddr(), PAGE, RW)?;
    group.set_container(&session.container)?;
    let engine = Engine::open(group.device(&env.edu()?.bdf)?)?;

    for value in [0x1234_5678_u32, 0xffff_ffff, 0x0bad_cafe] {
        // There and back, and the processor sees it in between.
        memory.write(0, value);
        engine.fetch(iova, 4)?;
        engine.store(bar_iova + IGB_MTA - page, 4)?;
        expect_eq("register", bar.read::<u32>(IGB_MTA), value)?;

        bar.write(IGB_MTA, !value);
        engine.fetch(bar_iova + IGB_MTA - page, 4)?;
        engine.store(iova, 4)?;
        expect_eq("memory", memory.read::<u32>(0), !value)?;
    }

    session.container.unmap(bar_iova, PAGE, 0)?;
    engine.store(bar_iova + IGB_MTA - page, 4)?;
    expect_eq(
        "register after unmap",
        bar.read::<u32>(IGB_MTA),
        !0x0bad_cafe,
    )
}

#[track_caller]
fn expect_interrupt(engine: &Engine, event: &EventFd, when: &str) -> Verdict {
    expect_eq(
        format_args!("interrupts that came {when}"),
        engine.interrupt(event)?,
        1,
    )
}

fn interrupt(env: &Env) -> Verdict {
    let event = EventFd::new()?;
    let memory = Memory::anon(PAGE)?;
    for model in Model::BOTH {
        let (session, engine) = engine(env, model)?;
        engine.signal(&event)?;
        expect_interrupt(&engine, &event, "with nothing mapped")?;

        // Up to all borders: the kernel's place must be behind one of them.
        for (first, last) in session.info()?.iova {
            for iova in BTreeSet::from([first, last - (PAGE - 1)]) {
                session.container.map(iova, memory.vaddr(), PAGE, RW)?;
            }
        }
        expect_interrupt(&engine, &event, "with memory mapped")?;
        engine.signal(&event)?;
        expect_interrupt(&engine, &event, "after setting it up again")?;
        session.container.unmap_all()?;
        expect_interrupt(&engine, &event, "with all unmapped")?;
    }
    Ok(())
}

fn interrupt_second_group(env: &Env) -> Verdict {
    let (session, group) = apart(env)?;
    let event = EventFd::new()?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    for _ in 0..3 {
        group.set_container(&session.container)?;
        let engine = Engine::open(group.device(&env.edu()?.bdf)?)?;
        engine.signal(&event)?;
        expect_interrupt(&engine, &event, "in a container that has a group")?;
        drop(engine);
        group.unset_container()?;
    }
    Ok(())
}
