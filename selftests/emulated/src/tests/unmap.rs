// SPDX-License-Identifier: GPL-2.0

//! UNMAP_DMA of what drivers have pinned.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::emulated::{
    Session,
    Which,
    PIN_READ, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::proc::locked;
use harness::tests;
use harness::vfio::{
    DIRTY_START,
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    PinCount,
    IOVA, //
};

tests! {
    "unmap.asks", "the device is asked to unpin, once for each mapping with pins" => asks;
    "unmap.asks_all_devices", "all devices are asked" => asks_all_devices;
    "unmap.cut", "a range that cuts a mapping asks nobody" => cut;
    "unmap.close", "closing a device unpins, and leaves the mappings" => close;
    "rust.stubborn", "a device that keeps its pins keeps the mapping (EBUSY)" => stubborn;
    "rust.stubborn_all", "unmap-all stops at the mapping whose pins are kept" => stubborn_all;
}

fn asks(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(32 * PAGE)?;
    let before = locked()?;
    for n in 0..4 {
        let offset = n * 8 * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, 8 * PAGE, RW)?;
    }
    // Mappings 0 and 2.
    device.pinned(IOVA, 3)?;
    device.pinned(IOVA, 2)?;
    device.pinned(IOVA + 17 * PAGE, 5)?;
    expect_eq("locked memory", locked()?, before + 8 * PAGE)?;
    pins.expect(8)?;
    let asked = device.counters()?.unmaps;

    let unmapped = session.container.unmap(IOVA + 8 * PAGE, 8 * PAGE, 0)?;
    expect_eq("bytes unmapped", unmapped, 8 * PAGE)?;
    expect_eq("calls of dma_unmap", device.counters()?.unmaps, asked)?;
    expect_eq("pages pinned", device.counters()?.pages, 8)?;

    let unmapped = session.container.unmap(IOVA, 8 * PAGE, 0)?;
    expect_eq("bytes unmapped", unmapped, 8 * PAGE)?;
    expect_eq("calls of dma_unmap", device.counters()?.unmaps, asked + 1)?;
    expect_eq("locked memory", locked()?, before + 5 * PAGE)?;
    pins.expect(5)?;
    expect_errno("unmapped", device.pin(IOVA, 1, PIN_READ)?, Errno::EINVAL)?;

    expect_eq("bytes unmapped", session.container.unmap_all()?, 16 * PAGE)?;
    expect_eq("calls of dma_unmap", device.counters()?.unmaps, asked + 2)?;
    expect_eq("pages pinned", device.counters()?.pages, 0)?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)
}

fn asks_all_devices(env: &Env) -> Verdict {
    let session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(4 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let mut asked = Vec::new();
    for device in &session.devices {
        asked.push(device.counters()?.unmaps);
        device.pinned(IOVA, 4)?;
    }
    expect_eq("locked memory", locked()?, before + 4 * PAGE)?;

    session.container.unmap(IOVA, memory.len(), 0)?;
    for (device, asked) in session.devices.iter().zip(asked) {
        let counters = device.counters()?;
        expect_eq("calls of dma_unmap", counters.unmaps, asked + 1)?;
        expect_eq("pages pinned", counters.pages, 0)?;
    }
    expect_eq("locked memory", locked()?, before)
}

fn cut(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(8 * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    device.pinned(IOVA, 8)?;
    let before = device.counters()?;
    for (first, pages) in [(0, 7), (1, 7), (3, 1), (4, 8)] {
        let refused = session
            .container
            .unmap(IOVA + first * PAGE, pages * PAGE, 0);
        let why = format!("{pages} pages from {first} cut the mapping");
        expect_errno(why, refused, Errno::EINVAL)?;
    }
    expect_eq("counters", device.counters()?, before)
}

fn close(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let mut session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(8 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    session.devices[0].pinned(IOVA, 2)?;
    session.devices[1].pinned(IOVA, 5)?;
    session.devices[1].pinned(IOVA, 1)?;
    expect_eq("locked memory", locked()?, before + 5 * PAGE)?;

    session.devices.pop();
    expect_eq("locked memory", locked()?, before + 2 * PAGE)?;
    pins.expect(2)?;
    session.devices.pop();
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, 8 * PAGE)
}

fn stubborn(env: &Env) -> Verdict {
    // The C driver gives up on such a device with BUG().
    env.need_rust()?;
    let session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let (bad, good) = (&session.devices[0], &session.devices[1]);
    let memory = Memory::anon(16 * PAGE)?;
    let before = locked()?;
    for n in 0..2 {
        let offset = n * 8 * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, 8 * PAGE, RW)?;
    }
    bad.pinned(IOVA, 3)?;
    good.pinned(IOVA, 8)?;
    good.pinned(IOVA + 8 * PAGE, 8)?;
    bad.stubborn(true)?;

    for _ in 0..2 {
        let refused = session.container.unmap(IOVA, 8 * PAGE, 0);
        expect_errno("three pages stay pinned", refused, Errno::EBUSY)?;
        expect_eq("pages of the stubborn device", bad.counters()?.pages, 3)?;
        expect_eq("pages of the other device", good.counters()?.pages, 8)?;
        expect_eq("locked memory", locked()?, before + 11 * PAGE)?;
    }
    expect("it was asked", bad.counters()?.refused > 0)?;

    // The mapping goes on to work, and so does the other one.
    good.pinned(IOVA + 4 * PAGE, 1)?;
    bad.fill(IOVA, 0x66)?;
    expect_eq("byte of page 0", memory.read::<u8>(0), 0x66)?;
    let unmapped = session.container.unmap(IOVA + 8 * PAGE, 8 * PAGE, 0)?;
    expect_eq("bytes of the other mapping", unmapped, 8 * PAGE)?;

    session.container.dirty(DIRTY_START)?;
    let mut words = [0];
    let mut arg = harness::vfio::unmap_dirty_arg(IOVA, 8 * PAGE, &mut words);
    // SAFETY: The bitmap is `words`.
    let refused = unsafe { session.container.unmap_dirty(&mut arg) };
    expect_errno("with a bitmap", refused, Errno::EBUSY)?;

    bad.stubborn(false)?;
    let unmapped = session.container.unmap(IOVA, 8 * PAGE, 0)?;
    expect_eq("bytes unmapped", unmapped, 8 * PAGE)?;
    expect_eq("locked memory", locked()?, before)
}

fn stubborn_all(env: &Env) -> Verdict {
    env.need_rust()?;
    let mut session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(12 * PAGE)?;
    let before = locked()?;
    for n in 0..3 {
        let offset = n * 4 * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, 4 * PAGE, RW)?;
    }
    session.device().pinned(IOVA + 4 * PAGE, 1)?;
    session.device().stubborn(true)?;
    let refused = session.container.unmap_all();
    expect_errno("the second mapping stays", refused, Errno::EBUSY)?;
    expect_eq("locked memory", locked()?, before + PAGE)?;

    // A device that is closed unpins, however stubborn.
    session.devices.clear();
    expect_eq("locked memory", locked()?, before)?;
    expect_eq(
        "bytes left to unmap",
        session.container.unmap_all()?,
        8 * PAGE,
    )
}
