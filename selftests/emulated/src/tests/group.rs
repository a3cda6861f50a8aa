// SPDX-License-Identifier: GPL-2.0

//! Several groups without an IOMMU.

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::emulated::{
    Session,
    Via,
    Which, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::proc::locked;
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
    "group.leaves", "mappings and pins stay when one of two groups leaves" => leaves;
    "group.joins", "a group that joins later finds the mappings" => joins;
    "group.last", "with the last group go the mappings" => last;
}

const SIZE: u64 = 8 * PAGE;

fn leaves(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let mut session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.devices[0].pinned(IOVA, 3)?;
    session.devices[1].pinned(IOVA + PAGE, 4)?;

    session.devices.pop();
    let group = session.groups.pop();
    if let Some(group) = group {
        group.unset_container()?;
    }
    expect_eq("locked memory", locked()?, before + 3 * PAGE)?;
    pins.expect(3)?;
    session.device().pinned(IOVA + 7 * PAGE, 1)?;
    session.device().write(IOVA, &[1; 8], Via::Task)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)?;
    expect_eq("locked memory", locked()?, before)
}

fn joins(env: &Env) -> Verdict {
    let mut session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.device().pinned(IOVA, 3)?;
    session.add(Which::Second)?;
    session.devices[1].pinned(IOVA, 4)?;
    expect_eq("locked memory", locked()?, before + 4 * PAGE)?;

    // The one that made the container leaves.
    session.devices.remove(0);
    session.groups.remove(0);
    expect_eq("locked memory", locked()?, before + 4 * PAGE)?;
    session.device().unpin(IOVA, 4)?;
    expect_eq("locked memory", locked()?, before)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)
}

fn last(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let mut session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.device().pinned(IOVA, 8)?;

    expect_errno(
        "a device is open",
        session.groups[0].unset_container(),
        Errno::EBUSY,
    )?;
    session.devices.clear();
    session.groups[0].unset_container()?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)?;
    expect_errno(
        "no driver any more",
        session.container.unmap_all(),
        Errno::EINVAL,
    )?;

    session.groups[0].set_container(&session.container)?;
    session.container.set_iommu(Model::V2.number())?;
    env.check_driver(Model::V2, None)?;
    expect_eq("bytes mapped", session.container.unmap_all()?, 0)
}
