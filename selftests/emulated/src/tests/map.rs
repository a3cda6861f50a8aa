// SPDX-License-Identifier: GPL-2.0

//! Mappings of a container without an IOMMU: promises that cost nothing until somebody pins.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::emulated::Session;
use harness::env::{
    Env,
    Model, //
};
use harness::info::Info;
use harness::memory::Memory;
use harness::proc::locked;
use harness::tests;
use harness::vfio::{
    DIRTY_START,
    MAP_VADDR,
    PAGE,
    READ,
    RW,
    UNMAP_VADDR, //
};
use nix::errno::Errno;
use vfio_bindings::bindings::vfio;

use super::{
    PinCount,
    IOVA, //
};

tests! {
    "map.info", "GET_INFO knows no valid ranges, and all page sizes" => info;
    "map.unpinned", "mapping neither pins nor charges" => unpinned;
    "map.nothing", "memory need not be there before somebody pins it" => nothing;
    "map.huge", "terabytes can be mapped, up to the last page" => huge;
    "map.wrap", "the sum of sizes of all of the address space wraps to 0" => wrap;
    "map.untrackable", "a mapping too large for a dirty bitmap refuses tracking" => untrackable;
    "map.vaddr", "no user address can be updated while a driver may use it" => vaddr;
}

const TIB: u64 = 1 << 40;

fn info(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let session = Session::open(env, model)?;
        let info = Info::read(&session.container)?;
        let ids: Vec<_> = info.chain.iter().map(|cap| cap.id).collect();
        expect(
            format_args!("no valid ranges among capabilities {ids:?}"),
            !ids.contains(&vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
        )?;
        expect(
            format_args!("budget among capabilities {ids:?}"),
            ids.contains(&vfio::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL),
        )?;
        expect_eq("page sizes", info.pgsizes, !(PAGE - 1))?;
        let coherent = vfio::VFIO_DMA_CC_IOMMU as usize;
        expect_eq(
            "extension DMA_CC",
            session.container.check_extension(coherent)?,
            1,
        )?;
    }
    Ok(())
}

fn unpinned(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(32 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, memory.len(), 0)?,
        memory.len(),
    )?;
    let counters = session.device().counters()?;
    expect_eq("pages the device has pinned", counters.pages, 0)
}

fn nothing(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let mut memory = Memory::anon(2 * PAGE)?;
    let gone = memory.vaddr() + PAGE;
    memory.truncate(PAGE);
    session.container.map(IOVA, gone, PAGE, RW)?;
    expect_errno(
        "no memory there",
        session.device().pin(IOVA, 1, READ)?,
        Errno::EFAULT,
    )?;

    // It can come later.
    session
        .container
        .map(IOVA + PAGE, memory.vaddr(), PAGE, RW)?;
    session.device().pinned(IOVA + PAGE, 1)
}

fn huge(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(2 * PAGE)?;
    let before = locked()?;

    // Addresses beyond all user memory are as good as any.
    session.container.map(0, 0, 8 * TIB, RW)?;
    session
        .container
        .map(1 << 63, PAGE, (1 << 63) - PAGE, READ)?;
    session
        .container
        .map(PAGE.wrapping_neg(), memory.vaddr(), PAGE, RW)?;
    session.container.map(16 * TIB, memory.vaddr(), PAGE, RW)?;
    expect_eq("locked memory", locked()?, before)?;

    session.device().pinned(PAGE.wrapping_neg(), 1)?;
    expect_errno(
        "behind the last address",
        session.device().pin(PAGE.wrapping_neg(), 2, READ)?,
        Errno::EOVERFLOW,
    )?;
    session.device().fill(PAGE.wrapping_neg(), 0x11)?;
    expect_eq("byte of the last page", memory.read::<u8>(0), 0x11)?;
    expect_errno(
        "in the middle of nothing",
        session.device().pin(4 * TIB, 1, READ)?,
        Errno::EFAULT,
    )?;

    let all = 8 * TIB + (1 << 63) + PAGE;
    expect_eq("bytes unmapped", session.container.unmap_all()?, all)?;
    expect_eq("locked memory", locked()?, before)
}

fn wrap(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    session.container.map(0, 0, 1 << 63, RW)?;
    session.container.map(1 << 63, 0, 1 << 63, RW)?;
    expect_errno(
        "overlap",
        session.container.map(TIB, 0, PAGE, RW),
        Errno::EEXIST,
    )?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, 0)?;
    session.container.map(TIB, 0, PAGE, RW)?;
    Ok(())
}

fn untrackable(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    session.container.map(0, 0, PAGE, RW)?;
    session.container.map(TIB, 0, 16 * TIB, RW)?;
    expect_errno(
        "more pages than a bitmap can have",
        session.container.dirty(DIRTY_START),
        Errno::EINVAL,
    )?;
    expect_errno(
        "tracking is off",
        session.container.dirty_get(0, PAGE, &mut [0]),
        Errno::EINVAL,
    )?;

    session.container.unmap(TIB, 16 * TIB, 0)?;
    session.container.dirty(DIRTY_START)?;
    expect_errno(
        "more pages than a bitmap can have, while tracking is on",
        session.container.map(TIB, 0, 16 * TIB, RW),
        Errno::EINVAL,
    )?;
    session.container.map(TIB, 0, 4 * TIB, RW)?;
    Ok(())
}

fn vaddr(env: &Env) -> Verdict {
    const UPDATE_VADDR: usize = vfio::VFIO_UPDATE_VADDR as usize;
    let session = Session::open(env, Model::V2)?;
    let container = &session.container;
    expect_eq(
        "extension UPDATE_VADDR",
        container.check_extension(UPDATE_VADDR)?,
        0,
    )?;
    let memory = Memory::anon(PAGE)?;
    let refused = container.unmap(IOVA, PAGE, UNMAP_VADDR);
    expect_errno("nothing mapped", refused, Errno::EBUSY)?;
    container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    let refused = container.unmap(IOVA, PAGE, UNMAP_VADDR);
    expect_errno("one mapping", refused, Errno::EBUSY)?;
    // Before the range is looked at.
    let refused = container.unmap(IOVA + 1, 1, UNMAP_VADDR);
    expect_errno("misaligned", refused, Errno::EBUSY)?;
    let refused = container.map(IOVA, memory.vaddr(), PAGE, MAP_VADDR);
    expect_errno("a valid address", refused, Errno::EINVAL)?;
    session.device().pinned(IOVA, 1)
}
