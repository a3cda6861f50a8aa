// SPDX-License-Identifier: GPL-2.0

//! Several groups in one container.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Sys,
    Verdict, //
};
use harness::env::{
    interrupts_isolated,
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
    Group,
    DIRTY_START,
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::IOVA;

tests! {
    "group.attach_mapped", "a second group joins a container with mappings, and leaves it" => attach_mapped;
    "group.first_leaves", "mappings stay while any group stays" => first_leaves;
    "group.before_model", "both groups are there before the model is set" => before_model;
    "group.twice", "a group is in one container, once" => twice;
    "group.ranges", "usable ranges leave out what either group reserves" => ranges;
    "group.unsafe_interrupts", "where interrupts are not isolated, a group needs allow_unsafe_interrupts" => unsafe_interrupts;
    "group.dirty", "a group that leaves leaves its pages dirty" => dirty;
}

const SIZE: u64 = 4 * MIB;

/// Memory of two kinds side by side in IOVA: base pages, and whatever the kernel gives.
#[track_caller]
fn memory() -> Verdict<[Memory; 2]> {
    Ok([Memory::anon(SIZE)?, Memory::unpopulated(SIZE)?])
}

fn attach_mapped(env: &Env) -> Verdict {
    let second = env.second()?;
    let memory = memory()?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let before = locked()?;
        for (n, part) in memory.iter().enumerate() {
            session
                .container
                .map(IOVA + n as u64 * SIZE, part.vaddr(), SIZE, RW)?;
        }
        let avail = session.info()?.dma_avail;

        for _ in 0..3 {
            let group = Group::open(second.group()?)?;
            group.set_container(&session.container)?;
            session.check_driver(model)?;
            expect_eq(
                "locked memory with two groups",
                locked()?,
                before + 2 * SIZE,
            )?;
            expect_eq("budget with two groups", session.info()?.dma_avail, avail)?;
            // Opening the device shows that the group is usable.
            drop(group.device(&second.bdf)?);
            drop(group);
            expect_eq(
                "locked memory, one group left",
                locked()?,
                before + 2 * SIZE,
            )?;
        }
        expect_eq("bytes unmapped", session.container.unmap_all()?, 2 * SIZE)?;
        expect_eq("locked memory", locked()?, before)?;
    }
    Ok(())
}

fn first_leaves(env: &Env) -> Verdict {
    let second = env.second()?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    let session = env.open(Model::V2)?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;

    let group = Group::open(second.group()?)?;
    group.set_container(&session.container)?;
    session.group.unset_container()?;
    expect_eq("locked memory, first group gone", locked()?, before + SIZE)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, SIZE, 0)?,
        SIZE,
    )?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;

    session.group.set_container(&session.container)?;
    group.unset_container()?;
    expect_eq("locked memory, second group gone", locked()?, before + SIZE)?;
    session.group.unset_container()?;
    expect_eq("locked memory, no group left", locked()?, before)
}

fn before_model(env: &Env) -> Verdict {
    let second = env.second()?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    for model in Model::BOTH {
        let session = env.open_bare(env.first()?)?;
        let group = Group::open(second.group()?)?;
        group.set_container(&session.container)?;
        session.container.set_iommu(model.number())?;
        session.check_driver(model)?;
        session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
        expect_eq("locked memory", locked()?, before + SIZE)?;
        drop(session);
        expect_eq(
            "locked memory, first group closed",
            locked()?,
            before + SIZE,
        )?;
        drop(group);
        expect_eq("locked memory, both closed", locked()?, before)?;
    }
    Ok(())
}

fn twice(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let again = session.group.set_container(&session.container);
    expect_errno("same container", again, Errno::EINVAL)?;
    let other = harness::vfio::Container::open()?;
    expect_errno(
        "another container",
        session.group.set_container(&other),
        Errno::EINVAL,
    )
}

fn ranges(env: &Env) -> Verdict {
    let second = env.second()?;
    let session = env.open(Model::V2)?;
    let alone = session.info()?.iova;

    let group = Group::open(second.group()?)?;
    group.set_container(&session.container)?;
    let together = session.info()?.iova;
    for pci in [&session.pci, second] {
        for (start, end) in pci.reserved()? {
            for &(first, last) in &together {
                expect(
                    format_args!("{first:#x}-{last:#x} leaves out {start:#x}-{end:#x}"),
                    last < start || end < first,
                )?;
            }
        }
    }
    drop(group);
    expect_eq(
        "usable ranges after the second group has left",
        session.info()?.iova,
        alone,
    )
}

#[track_caller]
fn expect_attached_if(isolated: bool, attached: Sys<()>) -> Verdict {
    if isolated {
        Ok(attached?)
    } else {
        expect_errno("interrupts are not isolated", attached, Errno::EPERM)
    }
}

fn unsafe_interrupts(env: &Env) -> Verdict {
    let second = env.second()?;
    let isolated = interrupts_isolated()?;
    let parameter = env.parameter("allow_unsafe_interrupts")?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    for model in Model::BOTH {
        parameter.set("N")?;
        let bare = env.open_bare(env.first()?)?;
        expect_attached_if(isolated, bare.container.set_iommu(model.number()))?;
        // It matters when a group is attached, not afterwards.
        parameter.set("Y")?;
        if !isolated {
            bare.container.set_iommu(model.number())?;
        }
        bare.check_driver(model)?;
        parameter.set("N")?;
        bare.container.map(IOVA, memory.vaddr(), SIZE, RW)?;

        let group = Group::open(second.group()?)?;
        expect_attached_if(isolated, group.set_container(&bare.container))?;
        expect_eq("locked memory", locked()?, before + SIZE)?;
        if !isolated {
            parameter.set("Y")?;
            group.set_container(&bare.container)?;
        }
        drop(group.device(&second.bdf)?);
        expect_eq("bytes unmapped", bare.container.unmap_all()?, SIZE)?;
    }
    Ok(())
}

fn dirty(env: &Env) -> Verdict {
    let second = env.second()?;
    let memory = Memory::anon(64 * PAGE)?;
    let session = env.open(Model::V2)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    session.container.dirty(DIRTY_START)?;

    let group = Group::open(second.group()?)?;
    group.set_container(&session.container)?;
    drop(group);
    let mut words = [0];
    session
        .container
        .dirty_get(IOVA, memory.len(), &mut words)?;
    expect_eq("bitmap", words, [u64::MAX])
}
