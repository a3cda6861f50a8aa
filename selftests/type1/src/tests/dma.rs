// SPDX-License-Identifier: GPL-2.0

//! What the device really reaches, with QEMU's edu device.

use harness::check::{
    expect_eq,
    Stop,
    Verdict, //
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
use harness::proc::Child;
use harness::tests;
use harness::vfio::{
    Group,
    MAP_VADDR,
    PAGE,
    READ,
    RW,
    UNMAP_VADDR, //
};

use super::IOVA;
use crate::edu::{
    Engine,
    REACH, //
};

tests! {
    "dma.copy", "the device copies memory to memory, over page borders" => copy;
    "dma.kinds", "the device reaches each kind of memory where it was mapped" => kinds;
    "dma.after_unmap", "unmapped memory is out of reach" => after_unmap;
    "dma.read_only", "memory mapped for reading is not written" => read_only;
    "dma.after_fork", "the device and the parent still share memory after a fork" => after_fork;
    "dma.after_move", "a live update keeps the device's view" => after_move;
    "dma.second_group", "a group which joins reaches earlier mappings" => second_group;
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

fn second_group(env: &Env) -> Verdict {
    let edu = env.edu()?;
    let first = env.first()?;
    if edu.group()? == first.group()? {
        return Err(Stop::skip(
            "a PCI device in another IOMMU group than edu (--device)",
        ));
    }
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(2 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;

    let group = Group::open(edu.group()?)?;
    group.set_container(&session.container)?;
    let engine = Engine::open(group.device(&edu.bdf)?)?;
    let bytes = pattern(13, PAGE);
    memory.put(0, &bytes);
    engine.fetch(IOVA, PAGE)?;
    engine.store(IOVA + PAGE, PAGE)?;
    expect_bytes("memory mapped earlier", &memory.get(PAGE, PAGE), &bytes)
}
