// SPDX-License-Identifier: GPL-2.0

//! Devices without and with an IOMMU in one container.

use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread;

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Stop,
    Verdict, //
};
use harness::emulated::{
    Emulated,
    Session,
    Via,
    Which,
    PIN_RW, //
};
use harness::env::{
    Driver,
    Env,
    Model, //
};
use harness::info::Info;
use harness::memory::Memory;
use harness::proc::{
    become_limited,
    locked, //
};
use harness::tests;
use harness::vfio::{
    Container,
    Group,
    DIRTY_START,
    PAGE,
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
    "iommu.joins", "an IOMMU that joins pins everything, one that leaves keeps the driver's pins" => joins;
    "iommu.first", "with an IOMMU, pinning charges nothing twice" => first;
    "iommu.unmap", "unmapping asks the device and releases both kinds of pins" => unmap;
    "iommu.stays", "mappings stay while one group of either kind is there" => stays;
    "iommu.dirty", "everything is dirty until the IOMMU has left" => dirty;
    "iommu.dirty_left", "a group that leaves while tracking is on leaves everything dirty" => dirty_left;
    "iommu.info", "GET_INFO knows valid ranges once an IOMMU has joined" => info;
    "iommu.vaddr", "user addresses can be updated once the last driver has left" => vaddr;
    "iommu.reserved", "an IOMMU cannot join if a mapping is where it must not map" => reserved;
    "iommu.aperture", "an IOMMU joins only if it can reach the mapping of the last page" => aperture;
    "iommu.missing", "an IOMMU cannot join if memory is missing" => missing;
    "iommu.device_memory", "memory of a device, which has no struct page, is refused" => device_memory;
    "iommu.threads", "an IOMMU joins and leaves while drivers pin and copy" => threads;
    "iommu.limit", "an IOMMU cannot join if it would exceed RLIMIT_MEMLOCK" => limit;
}

const PAGES: u64 = 32;
const SIZE: u64 = PAGES * PAGE;

/// The group of the PCI function, not in a container.
#[track_caller]
fn pci_group(env: &Env) -> Verdict<Group> {
    Group::open(env.first()?.group()?)
}

/// Fails unless `pages` more than `before` bytes are locked.
#[track_caller]
fn expect_locked(before: u64, pages: u64) -> Verdict {
    expect_eq("locked memory", locked()?, before + pages * PAGE)
}

fn joins(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let group = pci_group(env)?;
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(2 * SIZE)?;
    let before = locked()?;
    for n in 0..2 {
        session
            .container
            .map(IOVA + n * SIZE, memory.vaddr() + n * SIZE, SIZE, RW)?;
    }
    device.pinned(IOVA, 2)?;
    device.pinned(IOVA + SIZE + 5 * PAGE, 3)?;
    expect_locked(before, 5)?;

    for _ in 0..2 {
        group.set_container(&session.container)?;
        expect_locked(before, 2 * PAGES)?;
        pins.expect(2 * PAGES as i64 + 5)?;
        device.pinned(IOVA + 10 * PAGE, 4)?;
        expect_locked(before, 2 * PAGES)?;
        pins.expect(2 * PAGES as i64 + 9)?;
        device.unpin(IOVA + 12 * PAGE, 2)?;
        expect_locked(before, 2 * PAGES)?;

        group.unset_container()?;
        expect_locked(before, 7)?;
        pins.expect(7)?;
        device.unpin(IOVA + 10 * PAGE, 2)?;
        expect_locked(before, 5)?;
    }
    device.fill(IOVA, 0x42)?;
    expect_eq("byte of page 0", memory.read::<u8>(0), 0x42)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, 2 * SIZE)?;
    expect_locked(before, 0)?;
    pins.expect(0)
}

/// A container in which the IOMMU comes first.
fn iommu_first(env: &Env) -> Verdict<(Group, Session)> {
    let group = pci_group(env)?;
    let container = Container::open()?;
    group.set_container(&container)?;
    container.set_iommu(Model::V2.number())?;
    env.check_driver(Model::V2, None)?;
    let mut session = Session {
        devices: Vec::new(),
        groups: Vec::new(),
        container,
    };
    session.add(Which::First)?;
    Ok((group, session))
}

fn first(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let (_group, session) = iommu_first(env)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    expect_locked(before, PAGES)?;
    device.pinned(IOVA + PAGE, 8)?;
    device.pinned(IOVA + PAGE, 8)?;
    expect_locked(before, PAGES)?;
    pins.expect(PAGES as i64 + 8)?;
    device.fill(IOVA + 8 * PAGE, 0x43)?;
    expect_eq("byte of page 8", memory.read::<u8>(8 * PAGE), 0x43)?;
    for via in Via::BOTH {
        device.write(IOVA, &[9; 4], via)?;
    }
    device.unpin(IOVA + PAGE, 8)?;
    device.unpin(IOVA + PAGE, 8)?;
    expect_locked(before, PAGES)?;
    pins.expect(PAGES as i64)
}

fn unmap(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let (_group, session) = iommu_first(env)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    device.pinned(IOVA, PAGES as u32)?;
    let asked = device.counters()?.unmaps;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)?;
    let counters = device.counters()?;
    expect_eq("calls of dma_unmap", counters.unmaps, asked + 1)?;
    expect_eq("pages pinned", counters.pages, 0)?;
    expect_locked(before, 0)?;
    pins.expect(0)
}

fn stays(env: &Env) -> Verdict {
    let (group, mut session) = iommu_first(env)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.device().pinned(IOVA, 3)?;

    session.devices.clear();
    session.groups.clear();
    expect_locked(before, PAGES)?;
    session.add(Which::Second)?;
    group.unset_container()?;
    expect_locked(before, 0)?;
    session.device().pinned(IOVA, 3)?;
    expect_locked(before, 3)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)
}

/// The dirty pages of the first mapping, as bits.
#[track_caller]
fn dirty_pages(container: &Container) -> Verdict<u64> {
    let mut word = [0];
    container.dirty_get(IOVA, SIZE, &mut word)?;
    Ok(word[0])
}

#[track_caller]
fn expect_scopes(container: &Container, device: &Emulated, iommu: bool) -> Verdict {
    device.write(IOVA + 9 * PAGE, &[1], Via::Task)?;
    let (once, then) = if iommu {
        ((1 << PAGES) - 1, (1 << PAGES) - 1)
    } else {
        (1 << 9 | 0b11, 0b11)
    };
    expect_eq("dirty pages", dirty_pages(container)?, once)?;
    expect_eq("dirty pages, again", dirty_pages(container)?, then)
}

fn dirty(env: &Env) -> Verdict {
    let (group, session) = iommu_first(env)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    device.pinned(IOVA, 2)?;
    session.container.dirty(DIRTY_START)?;
    expect_scopes(&session.container, device, true)?;

    group.unset_container()?;
    let all = dirty_pages(&session.container)?;
    expect_eq("what the group may have left", all, (1 << PAGES) - 1)?;
    expect_scopes(&session.container, device, false)?;

    group.set_container(&session.container)?;
    expect_scopes(&session.container, device, true)
}

fn dirty_left(env: &Env) -> Verdict {
    let (group, session) = iommu_first(env)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    device.pinned(IOVA, 2)?;
    // Nobody tracks while this group is there.
    group.unset_container()?;
    session.container.dirty(DIRTY_START)?;
    expect_scopes(&session.container, device, false)?;

    // Now somebody does, but does not ask.
    group.set_container(&session.container)?;
    group.unset_container()?;
    let all = dirty_pages(&session.container)?;
    expect_eq("what the group may have left", all, (1 << PAGES) - 1)?;
    expect_scopes(&session.container, device, false)
}

fn info(env: &Env) -> Verdict {
    let group = pci_group(env)?;
    let session = Session::open(env, Model::V2)?;
    let has_ranges = || -> Verdict<bool> {
        let info = Info::read(&session.container)?;
        let id = vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE;
        Ok(info.chain.iter().any(|cap| cap.id == id))
    };
    expect_eq("valid ranges before", has_ranges()?, false)?;
    group.set_container(&session.container)?;
    expect_eq("valid ranges", has_ranges()?, true)?;
    // Interrupts have a place somewhere, if the aperture has no end.
    let first = Info::read(&session.container)?.iova[0];
    let behind = first.1.checked_add(1);
    let behind = behind.ok_or_else(|| Stop::skip("an IOVA that is not valid"))?;
    let outside = session.container.map(behind, 0, PAGE, RW);
    expect_errno("behind a valid range", outside, Errno::EINVAL)
}

fn vaddr(env: &Env) -> Verdict {
    const UPDATE_VADDR: usize = vfio::VFIO_UPDATE_VADDR as usize;
    let (_group, mut session) = iommu_first(env)?;
    let memory = Memory::anon(SIZE)?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    let supported = |session: &Session| session.container.check_extension(UPDATE_VADDR);
    expect_eq("extension UPDATE_VADDR", supported(&session)?, 0)?;
    let refused = session.container.unmap(IOVA, SIZE, UNMAP_VADDR);
    expect_errno("a driver may pin", refused, Errno::EBUSY)?;

    session.devices.clear();
    session.groups.clear();
    expect_eq("extension UPDATE_VADDR", supported(&session)?, 1)?;
    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;
    Ok(())
}

fn reserved(env: &Env) -> Verdict {
    let group = pci_group(env)?;
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    let reserved = env.first()?.reserved()?;
    if reserved.is_empty() {
        return Err(Stop::skip("a group with reserved regions (--device)"));
    }
    for (first, _) in reserved {
        let iova = first & !(PAGE - 1);
        session.container.map(iova, memory.vaddr(), PAGE, RW)?;
        expect_errno(
            format_args!("mapping at {iova:#x}"),
            group.set_container(&session.container),
            Errno::EINVAL,
        )?;
        expect_locked(before, 0)?;
        session.device().pinned(iova, 1)?;
        expect_locked(before, 1)?;
        session.container.unmap(iova, PAGE, 0)?;
    }
    group.set_container(&session.container)?;
    expect_locked(before, PAGES)
}

/// Whether the IOMMU translates all addresses up to the last one.
#[track_caller]
fn reaches_the_end(group: &Group) -> Verdict<bool> {
    let container = Container::open()?;
    group.set_container(&container)?;
    container.set_iommu(Model::V2.number())?;
    let ranges = Info::read(&container)?.iova;
    group.unset_container()?;
    Ok(ranges.last().is_some_and(|range| range.1 == u64::MAX))
}

fn aperture(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let group = pci_group(env)?;
    let reached = reaches_the_end(&group)?;
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    let last = PAGE.wrapping_neg();
    session.container.map(last, memory.vaddr(), PAGE, RW)?;

    let join = || group.set_container(&session.container);
    if reached {
        join()?;
        expect_locked(before, PAGES + 1)?;
        group.unset_container()?;
    } else if env.expected == Some(Driver::Rust) {
        expect_errno("the last page", join(), Errno::EINVAL)?;
    } else if cfg!(target_arch = "aarch64") {
        // The C driver leaves it to the IOMMU's, and the SMMU's dumps its stack into the log.
    } else if join().is_ok() {
        // Virtio's does not notice.
        group.unset_container()?;
    }
    expect_locked(before, 0)?;
    pins.expect(0)?;
    session.device().pinned(last, 1)?;
    session.container.unmap(last, PAGE, 0)?;
    group.set_container(&session.container)?;
    expect_locked(before, PAGES)
}

fn device_memory(env: &Env) -> Verdict {
    /// Memory space in the PCI command register.
    const MEMORY_SPACE: u16 = 1 << 1;
    let pci = env.first()?;
    let other = Container::open()?;
    let group = pci_group(env)?;
    group.set_container(&other)?;
    other.set_iommu(Model::V2.number())?;
    let pci = group.device(&pci.bdf)?;
    pci.enable(MEMORY_SPACE)?;
    let region = pci.region(vfio::VFIO_PCI_BAR0_REGION_INDEX)?;
    if region.size == 0 || region.flags & vfio::VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Err(Stop::skip("a BAR 0 that can be mapped (--device)"));
    }
    let bar = Memory::region(&pci, region)?;

    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(2 * PAGE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;
    let there = IOVA + 2 * PAGE;
    session.container.map(there, bar.vaddr(), PAGE, RW)?;
    for (iova, npages) in [(there, 1), (there - 2 * PAGE, 3)] {
        let refused = device.pin(iova, npages, PIN_RW)?;
        expect_errno("no struct page", refused, Errno::EINVAL)?;
        expect_locked(before, 0)?;
    }
    Ok(())
}

fn missing(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let group = pci_group(env)?;
    let session = Session::open(env, Model::V2)?;
    let mut memory = Memory::anon(2 * SIZE)?;
    let before = locked()?;
    for n in 0..2 {
        session
            .container
            .map(IOVA + n * SIZE, memory.vaddr() + n * SIZE, SIZE, RW)?;
    }
    memory.truncate(SIZE + SIZE / 2);
    session.device().pinned(IOVA, 1)?;

    for _ in 0..2 {
        let refused = group.set_container(&session.container);
        expect_errno("half of a mapping", refused, Errno::EFAULT)?;
        expect_locked(before, 1)?;
        pins.expect(1)?;
    }
    session.device().pinned(IOVA + SIZE, 1)?;
    session.container.unmap(IOVA + SIZE, SIZE, 0)?;
    group.set_container(&session.container)?;
    expect_locked(before, PAGES)
}

fn threads(env: &Env) -> Verdict {
    const ROUNDS: u32 = 20;
    let pins = PinCount::begin()?;
    let group = pci_group(env)?;
    let session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    let done = AtomicBool::new(false);

    let work = |device: &Emulated, via: Via| -> Verdict {
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            let iova = IOVA + round % (PAGES - 8) * PAGE;
            device.pinned(iova, 8)?;
            device.read(iova, 8 * PAGE as u32, via)?;
            device.write(iova + PAGE, &[1; 100], via)?;
            device.unpin(iova, 8)?;
            round += 1;
        }
        Ok(())
    };
    let come_and_go = || -> Verdict {
        for _ in 0..ROUNDS {
            group.set_container(&session.container)?;
            expect_locked(before, PAGES)?;
            group.unset_container()?;
        }
        Ok(())
    };
    let verdicts = thread::scope(|scope| {
        let (done, work) = (&done, &work);
        let workers: Vec<_> = session
            .devices
            .iter()
            .zip(Via::BOTH)
            .map(|(device, via)| scope.spawn(move || work(device, via)))
            .collect();
        let verdict = come_and_go();
        done.store(true, Ordering::Relaxed);
        let mut verdicts: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        verdicts.push(Ok(verdict));
        verdicts
    });
    for verdict in verdicts {
        verdict.map_err(|_| Stop::fail("a thread panicked"))??;
    }
    expect_locked(before, 0)?;
    pins.expect(0)
}

fn limit(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let group = pci_group(env)?;
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(SIZE)?;
    become_limited(8 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    device.pinned(IOVA, 3)?;

    for _ in 0..2 {
        let refused = group.set_container(&session.container);
        expect_errno("32 pages of 8", refused, Errno::ENOMEM)?;
        expect_locked(0, 3)?;
        pins.expect(3)?;
    }
    device.pinned(IOVA, 8)?;
    expect_locked(0, 8)?;
    let refused = device.pin(IOVA + 8 * PAGE, 1, PIN_RW)?;
    expect_errno("the ninth page", refused, Errno::ENOMEM)?;
    session.container.unmap_all()?;
    session.container.map(IOVA, memory.vaddr(), 8 * PAGE, RW)?;
    group.set_container(&session.container)?;
    expect_locked(0, 8)?;
    device.pinned(IOVA, 8)?;
    expect("the limit is reached", locked()? == 8 * PAGE)
}
