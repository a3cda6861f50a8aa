// SPDX-License-Identifier: GPL-2.0

//! The container itself: extensions, models, who may call what when.

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
use harness::memory::Memory;
use harness::proc::locked;
use harness::tests;
use harness::vfio::{
    Command,
    Container,
    Group,
    DIRTY_START,
    PAGE,
    RW, //
};
use nix::errno::Errno;
use vfio_bindings::bindings::vfio;

use super::IOVA;

tests! {
    "container.api_version", "the API has version 0" => api_version;
    "container.extensions_unset", "CHECK_EXTENSION of a container without a model" => extensions_unset;
    "container.extensions_type1", "CHECK_EXTENSION of a type1 container" => extensions_v1;
    "container.extensions_type1v2", "CHECK_EXTENSION of a type1v2 container" => extensions_v2;
    "container.needs_group", "SET_IOMMU is refused while there is no group" => needs_group;
    "container.needs_model", "no type1 ioctl works before SET_IOMMU" => needs_model;
    "container.set_iommu", "unknown models are refused, and a model is set once" => set_iommu;
    "container.unknown_ioctl", "ioctls of other IOMMU drivers are refused" => unknown_ioctl;
    "container.unset", "taking the last group away drops mappings and model" => unset;
    "container.close_first", "mappings live until the group is closed" => close_first;
    "container.reopen", "a closed group can be used again at once" => reopen;
}

/// Numbers no type1 driver may say yes to: sPAPR, EEH, nesting, no-IOMMU, and far beyond.
const NOT_TYPE1: [usize; 9] = [
    0,
    vfio::VFIO_SPAPR_TCE_IOMMU as usize,
    vfio::VFIO_EEH as usize,
    6,
    vfio::VFIO_SPAPR_TCE_v2_IOMMU as usize,
    0xffff,
    0xffff_ffff,
    1 << 32 | 1,
    usize::MAX,
];

fn api_version(_: &Env) -> Verdict {
    let container = Container::open()?;
    expect_eq("API version", container.api_version()?, 0)
}

#[track_caller]
fn expect_extensions(container: &Container, table: &[(u32, i32)]) -> Verdict {
    for &(extension, want) in table {
        let got = container.check_extension(extension as usize)?;
        expect_eq(format_args!("CHECK_EXTENSION({extension})"), got, want)?;
    }
    for extension in NOT_TYPE1 {
        let got = container.check_extension(extension)?;
        expect_eq(format_args!("CHECK_EXTENSION({extension:#x})"), got, 0)?;
    }
    Ok(())
}

fn extensions_unset(_: &Env) -> Verdict {
    expect_extensions(
        &Container::open()?,
        &[
            (vfio::VFIO_TYPE1_IOMMU, 1),
            (vfio::VFIO_TYPE1v2_IOMMU, 1),
            (vfio::VFIO_UNMAP_ALL, 1),
            // These two depend on what is in the container.
            (vfio::VFIO_DMA_CC_IOMMU, 0),
            (vfio::VFIO_UPDATE_VADDR, 0),
        ],
    )
}

fn extensions_set(env: &Env, model: Model) -> Verdict {
    let session = env.open(model)?;
    expect_extensions(
        &session.container,
        &[
            (vfio::VFIO_TYPE1_IOMMU, 1),
            (vfio::VFIO_TYPE1v2_IOMMU, 1),
            (vfio::VFIO_UNMAP_ALL, 1),
            (vfio::VFIO_UPDATE_VADDR, 1),
            (vfio::VFIO_NOIOMMU_IOMMU, 0),
        ],
    )?;

    let extension = vfio::VFIO_DMA_CC_IOMMU as usize;
    let coherent = session.container.check_extension(extension)?;
    match session.pci.iommu_snoops() {
        Some(snoops) => expect_eq("CHECK_EXTENSION(DMA_CC)", coherent, i32::from(snoops)),
        None => expect(
            format_args!("CHECK_EXTENSION(DMA_CC) is 0 or 1, not {coherent}"),
            matches!(coherent, 0 | 1),
        ),
    }
}

fn extensions_v1(env: &Env) -> Verdict {
    extensions_set(env, Model::V1)
}

fn extensions_v2(env: &Env) -> Verdict {
    extensions_set(env, Model::V2)
}

fn needs_group(_: &Env) -> Verdict {
    let container = Container::open()?;
    for model in Model::BOTH {
        let refused = container.set_iommu(model.number());
        expect_errno("container without a group", refused, Errno::EINVAL)?;
    }
    Ok(())
}

/// Fails unless every type1 ioctl is refused with EINVAL, as by a container without a driver.
#[track_caller]
fn expect_no_driver(container: &Container, why: &str, memory: &Memory) -> Verdict {
    let mut info = harness::info::Raw::new(harness::info::FIXED);
    expect_errno(why, container.get_info(info.words()), Errno::EINVAL)?;
    let mapped = container.map(IOVA, memory.vaddr(), PAGE, RW);
    expect_errno(why, mapped, Errno::EINVAL)?;
    expect_errno(why, container.unmap(IOVA, PAGE, 0), Errno::EINVAL)?;
    expect_errno(why, container.dirty(DIRTY_START), Errno::EINVAL)
}

fn needs_model(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    expect_no_driver(&Container::open()?, "container without a group", &memory)?;
    let session = env.open_bare(env.first()?)?;
    expect_no_driver(&session.container, "container without a model", &memory)
}

fn set_iommu(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let session = env.open_bare(env.first()?)?;
        for other in [0, vfio::VFIO_SPAPR_TCE_IOMMU, 6, 99] {
            let refused = session.container.set_iommu(other);
            expect_errno("model nobody serves", refused, Errno::ENODEV)?;
        }
        session.container.set_iommu(model.number())?;
        session.check_driver(model)?;
        for again in Model::BOTH {
            let refused = session.container.set_iommu(again.number());
            expect_errno("model is set already", refused, Errno::EINVAL)?;
        }
    }
    Ok(())
}

fn unknown_ioctl(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let session = env.open(model)?;
        for command in [
            Command::ENABLE,
            Command::DISABLE,
            Command(18),
            Command(20),
            Command(99),
        ] {
            // SAFETY: Nothing lives at address 0.
            let refused = unsafe { session.container.raw(command, 0) };
            expect_errno("not a type1 ioctl", refused, Errno::ENOTTY)?;
        }
    }
    Ok(())
}

fn unset(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let before = locked()?;

    for model in Model::BOTH {
        let session = env.open(model)?;
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        expect_eq("locked memory", locked()?, before + memory.len())?;

        session.group.unset_container()?;
        expect_eq("locked memory without groups", locked()?, before)?;
        expect_no_driver(&session.container, "the last group has left", &memory)?;

        session.group.set_container(&session.container)?;
        session.container.set_iommu(model.number())?;
        session.check_driver(model)?;
        session.expect_free(IOVA, memory.vaddr(), memory.len())?;
    }
    Ok(())
}

fn close_first(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let before = locked()?;
    let session = env.open(Model::V2)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;

    let harness::env::Session {
        group, container, ..
    } = session;
    drop(container);
    expect_eq(
        "locked memory, container file closed",
        locked()?,
        before + memory.len(),
    )?;
    drop(group);
    expect_eq("locked memory, group file closed", locked()?, before)
}

fn reopen(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    let number = env.first()?.group()?;
    for _ in 0..8 {
        let session = env.open(Model::V2)?;
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        drop(session);
        drop(Group::open(number)?);
    }
    Ok(())
}
