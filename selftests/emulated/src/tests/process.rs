// SPDX-License-Identifier: GPL-2.0

//! Pages of a process other than the one that pins, and of one that is gone.

use std::io::{
    Read,
    Write, //
};

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::emulated::{
    Session,
    Via,
    PIN_RW, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::proc::{
    locked,
    pipe,
    Child, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    PinCount,
    IOVA, //
};

tests! {
    "process.charged", "whoever pins, the process that mapped is charged" => charged;
    "process.gone", "memory of a process that has ended can neither be pinned nor copied" => gone;
    "process.gone_pinned", "pages stay pinned beyond the end of their process" => gone_pinned;
    "process.killed", "what a killed process had is free at once" => killed;
}

const SIZE: u64 = 8 * PAGE;

fn charged(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;

    Child::run(|| {
        device.pinned(IOVA, 4)?;
        device.fill(IOVA, 0x21)?;
        expect_eq("memory of the child", memory.read::<u8>(0), 0x5a)?;
        expect_eq("locked memory of the child", locked()?, 0)
    })?
    .join()?;
    expect_eq("memory of the parent", memory.read::<u8>(0), 0x21)?;
    expect_eq("locked memory of the parent", locked()?, before + 4 * PAGE)?;

    Child::run(|| Ok(device.unpin(IOVA, 4)?))?.join()?;
    expect_eq("locked memory of the parent", locked()?, before)
}

fn gone(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    Child::run(|| Ok(session.container.map(IOVA, memory.vaddr(), SIZE, RW)?))?.join()?;

    let before = locked()?;
    expect_errno(
        "the process has ended",
        device.pin(IOVA, 1, PIN_RW)?,
        Errno::ENODEV,
    )?;
    for via in Via::BOTH {
        let refused = device.read(IOVA, 8, via);
        expect_errno("the process has ended", refused, Errno::EPERM)?;
        let refused = device.write(IOVA, &[0; 8], via);
        expect_errno("the process has ended", refused, Errno::EPERM)?;
    }
    expect_eq("memory", memory.read::<u8>(0), 0x5a)?;
    expect_eq("locked memory", locked()?, before)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)
}

fn gone_pinned(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let before = locked()?;
    Child::run(|| {
        let memory = Memory::anon(SIZE)?;
        session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
        device.pinned(IOVA, 4)?;
        expect_eq("locked memory of the child", locked()?, 4 * PAGE)
    })?
    .join()?;

    pins.expect(4)?;
    device.fill(IOVA, 1)?;
    // A page that is pinned needs no process to be pinned again.
    device.pinned(IOVA, 4)?;
    expect_errno(
        "a page that is not",
        device.pin(IOVA + 3 * PAGE, 2, PIN_RW)?,
        Errno::ENODEV,
    )?;
    device.unpin(IOVA, 4)?;
    pins.expect(4)?;
    device.unpin(IOVA, 2)?;
    pins.expect(2)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)?;
    pins.expect(0)?;
    expect_eq("locked memory", locked()?, before)
}

fn killed(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    for _ in 0..3 {
        let (mut ready, mut tell) = pipe()?;
        let child = Child::run(|| {
            let session = Session::open(env, Model::V2)?;
            let memory = Memory::anon(SIZE)?;
            for n in 0..4 {
                let iova = IOVA + n * SIZE;
                session.container.map(iova, memory.vaddr(), SIZE, RW)?;
                session.device().pinned(iova, 8)?;
            }
            tell.write_all(b"x")?;
            loop {
                nix::unistd::pause();
            }
        })?;
        drop(tell);
        if ready.read_exact(&mut [0]).is_err() {
            return child.join();
        }
        pins.expect(32)?;
        child.kill()?;
        pins.expect(0)?;
    }
    Ok(())
}
