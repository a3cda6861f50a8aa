// SPDX-License-Identifier: GPL-2.0

//! Entries of page tables: as large as alignment and IOMMU allow.

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
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::proc::{
    locked,
    PinCount, //
};
use harness::soft::{
    filled,
    Leaf,
    Session,
    LEAF_MEMORY,
    REGION, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    expect_done,
    expect_same,
    expect_unmapped,
    page_sizes,
    ranges,
    runs,
    IOVA, //
};

tests! {
    "leaf.anon", "base pages: leaves are as large as they can be, and lead to the memory" => anon;
    "leaf.region", "consecutive frames: 2 MiB where the IOMMU can, 4 KiB where it cannot" => region;
    "leaf.offset", "alignment of both addresses decides" => offset;
    "leaf.info", "GET_INFO tells the page sizes of each IOMMU" => info;
    "leaf.common", "GET_INFO tells the page sizes that all IOMMUs have" => common;
    "leaf.big", "with an IOMMU without 4 KiB pages go its page sizes" => big_leaves;
    "huge.leaf_2m", "huge pages of 2 MiB" => leaf_2m;
    "huge.leaf_1g", "huge pages of 1 GiB" => leaf_1g;
    "rust.big", "an IOMMU without 4 KiB pages maps whole large pages only" => big;
    "rust.big_joins", "it joins only where it can map what is mapped" => big_joins;
    "rust.no_common_size", "an IOMMU that shares no page size cannot join" => no_common_size;
}

const ALL: u64 = PAGE | (2 * MIB) | GIB;

/// The leaves that map a range when each is as large as it can be.
fn largest(run: &Leaf, sizes: u64) -> Vec<(u64, u64)> {
    let mut leaves = Vec::new();
    let mut done = 0;
    while done < run.size {
        let (iova, phys) = (run.iova + done, run.phys + done);
        let fits = |size: &u64| (iova | phys) % size == 0 && run.size - done >= *size;
        let size = [GIB, 2 * MIB, PAGE]
            .into_iter()
            .filter(|size| sizes & size != 0)
            .find(fits)
            .unwrap_or(PAGE);
        leaves.push((iova, size));
        done += size;
    }
    leaves
}

/// Checks the sizes of all leaves, and that each has the memory that belongs there.
#[track_caller]
fn expect_largest(leaves: &[Leaf], sizes: u64, iova: u64, memory: &Memory) -> Verdict {
    let want: Vec<_> = runs(leaves)
        .iter()
        .flat_map(|run| largest(run, sizes))
        .collect();
    let got: Vec<_> = leaves.iter().map(|leaf| (leaf.iova, leaf.size)).collect();
    expect_eq("leaves", got, want)?;
    let mapped: u64 = leaves.iter().map(|leaf| leaf.size).sum();
    expect_eq("bytes mapped", mapped, memory.len())?;
    for leaf in leaves {
        let at = format_args!("memory behind the leaf for {:#x}", leaf.iova);
        expect_eq(at, leaf.flags & LEAF_MEMORY, LEAF_MEMORY)?;
        expect_eq(at, leaf.tag, memory.read(leaf.iova - iova))?;
    }
    Ok(())
}

/// Gives each word of the memory a value of its own.
fn number(memory: &Memory) {
    memory.put(0, &filled(11, 0, memory.len()));
}

/// The memory of a device, which needs be open no longer.
#[track_caller]
fn device_memory(env: &Env) -> Verdict<Memory> {
    let session = Session::with(env, Model::V2, &[("foreign", 1)])?;
    let device = &session.engine().0;
    let memory = Memory::region(device, device.region(0)?)?;
    number(&memory);
    Ok(memory)
}

fn anon(env: &Env) -> Verdict {
    let memory = Memory::anon(8 * MIB)?;
    number(&memory);
    for (unit, sizes) in [("plain", ALL), ("small", PAGE), ("noncoherent", ALL)] {
        let session = Session::open(env, unit)?;
        for iova in [IOVA, IOVA + MIB, IOVA + PAGE] {
            session
                .container
                .map(iova, memory.vaddr(), memory.len(), RW)?;
            expect_largest(&session.engine().walk()?, sizes, iova, &memory)?;
            session.container.unmap(iova, memory.len(), 0)?;
            expect_unmapped(&session)?;
        }
    }
    Ok(())
}

fn region(env: &Env) -> Verdict {
    let memory = device_memory(env)?;
    let before = locked()?;
    for (unit, sizes, leaf) in [
        ("plain", ALL, 2 * MIB),
        ("small", PAGE, PAGE),
        ("wide", ALL, 2 * MIB),
    ] {
        let session = Session::open(env, unit)?;
        session.container.map(IOVA, memory.vaddr(), REGION, RW)?;
        let leaves = session.engine().walk()?;
        expect_largest(&leaves, sizes, IOVA, &memory)?;
        expect("sizes", leaves.iter().all(|found| found.size == leaf))?;
        expect_eq("memory of devices is not charged", locked()?, before)?;
        let done = session.engine().fill(IOVA, REGION, 3, 1)?;
        expect_done("fill", done, REGION)?;
        expect("bytes", memory.get(0, REGION) == filled(3, IOVA, REGION))?;
        session.container.unmap(IOVA, REGION, 0)?;
        expect_unmapped(&session)?;
    }
    Ok(())
}

fn offset(env: &Env) -> Verdict {
    let memory = device_memory(env)?;
    let session = Session::open(env, "plain")?;
    // Offset into the memory, address, bytes; how many leaves of 4K and of 2M.
    for (offset, iova, len, small, large) in [
        (0, IOVA, 4 * MIB, 0, 2),
        (0, IOVA + PAGE, 4 * MIB, 1024, 0),
        (0, IOVA + MIB, 4 * MIB, 1024, 0),
        (MIB, IOVA + MIB, 2 * MIB, 512, 0),
        (MIB, IOVA + MIB, 3 * MIB, 256, 1),
        (0, IOVA, 3 * MIB, 256, 1),
        (PAGE, IOVA + PAGE, 4 * MIB - 2 * PAGE, 1022, 0),
        (2 * MIB, IOVA, 2 * MIB, 0, 1),
    ] {
        let vaddr = memory.vaddr() + offset;
        session.container.map(iova, vaddr, len, RW)?;
        let leaves = session.engine().walk()?;
        let count = |size| leaves.iter().filter(|leaf| leaf.size == size).count();
        let what = format_args!("leaves of 4K and 2M for {len:#x} bytes at {iova:#x}");
        expect_eq(what, (count(PAGE), count(2 * MIB)), (small, large))?;
        let mapped: u64 = leaves.iter().map(|leaf| leaf.size).sum();
        expect_eq("bytes mapped", mapped, len)?;
        for leaf in leaves {
            let want = memory.read(leaf.iova - iova + offset);
            expect_eq("memory behind a leaf", leaf.tag, want)?;
        }
        expect_eq("unmapped", session.container.unmap(iova, len, 0)?, len)?;
        expect_unmapped(&session)?;
    }
    Ok(())
}

fn info(env: &Env) -> Verdict {
    for (unit, sizes, bits) in [
        ("plain", ALL, 48),
        ("small", PAGE, 48),
        ("big", ALL - PAGE, 48),
        ("noncoherent", ALL, 48),
        ("narrow", ALL, 39),
        ("wide", ALL, 64),
    ] {
        for model in Model::BOTH {
            let session = Session::with(env, model, &[(unit, 0)])?;
            let what = format_args!("page sizes of {unit}");
            expect_eq(what, page_sizes(&session)?, sizes)?;
            let want = vec![(0, u64::MAX >> (64 - bits))];
            expect_eq(format_args!("ranges of {unit}"), ranges(&session)?, want)?;
        }
    }
    Ok(())
}

fn common(env: &Env) -> Verdict {
    for (first, second, sizes) in [
        ("plain", "small", PAGE),
        ("small", "plain", PAGE),
        ("plain", "big", ALL - PAGE),
        ("big", "plain", ALL - PAGE),
        ("plain", "foreign", ALL),
        ("foreign", "noncoherent", ALL),
    ] {
        let session = Session::with(env, Model::V2, &[(first, 0), (second, 0)])?;
        let what = format_args!("page sizes of {first} and {second}");
        expect_eq(what, page_sizes(&session)?, sizes)?;
    }

    // Each page table has leaves as large as its own IOMMU can.
    let memory = device_memory(env)?;
    let session = Session::with(env, Model::V2, &[("plain", 0), ("small", 0)])?;
    session.container.map(IOVA, memory.vaddr(), REGION, RW)?;
    for (engine, sizes) in session.engines.iter().zip([ALL, PAGE]) {
        expect_largest(&engine.walk()?, sizes, IOVA, &memory)?;
    }
    expect_same(&session, REGION)?;
    session.container.unmap(IOVA, REGION, 0)?;
    expect_unmapped(&session)
}

fn big(env: &Env) -> Verdict {
    // The C driver does the same, with a warning in the log for each call.
    env.need_rust()?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let session = Session::open(env, "big")?;
    let scattered = Memory::scattered(4 * MIB)?;
    let map = |iova, vaddr, len| session.container.map(iova, vaddr, len, RW);
    for (iova, vaddr, len) in [
        (IOVA, scattered.vaddr(), PAGE),
        (IOVA, scattered.vaddr(), 2 * MIB - PAGE),
        (IOVA + PAGE, scattered.vaddr(), 2 * MIB),
        (IOVA, scattered.vaddr() + PAGE, 2 * MIB),
    ] {
        let refused = map(iova, vaddr, len);
        expect_errno("not a multiple of 2 MiB", refused, Errno::EINVAL)?;
    }
    // Asked in the right way, but of memory that is not in one piece.
    let refused = map(IOVA, scattered.vaddr(), 4 * MIB);
    expect_errno("scattered frames", refused, Errno::EINVAL)?;
    expect_unmapped(&session)?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)?;

    let memory = device_memory(env)?;
    map(IOVA, memory.vaddr(), REGION)?;
    let leaves = session.engine().walk()?;
    expect_largest(&leaves, ALL - PAGE, IOVA, &memory)?;
    let done = session.engine().fill(IOVA, REGION, 3, 1)?;
    expect_done("fill", done, REGION)?;
    let refused = session.container.unmap(IOVA, PAGE, 0);
    expect_errno("not a multiple of 2 MiB", refused, Errno::EINVAL)?;
    let unmapped = session.container.unmap(IOVA, REGION, 0)?;
    expect_eq("unmapped", unmapped, REGION)
}

fn big_joins(env: &Env) -> Verdict {
    env.need_rust()?;
    let memory = device_memory(env)?;
    let base = Memory::scattered(PAGE)?;
    let mut session = Session::open(env, "plain")?;
    session.container.map(IOVA, memory.vaddr(), REGION, RW)?;
    let small = IOVA + REGION;
    session.container.map(small, base.vaddr(), PAGE, RW)?;

    let refused = session.add("big", 0)?;
    expect_errno("a page of 4 KiB is mapped", refused, Errno::EINVAL)?;
    expect_eq("page sizes", page_sizes(&session)?, ALL)?;
    expect_same(&session, REGION + PAGE)?;
    let done = session.engine().fill(IOVA, REGION + PAGE, 1, 1)?;
    expect_done("fill", done, REGION + PAGE)?;

    session.container.unmap(small, PAGE, 0)?;
    session.add("big", 0)??;
    expect_eq("page sizes", page_sizes(&session)?, ALL - PAGE)?;
    expect_same(&session, REGION)?;
    let refused = session.container.map(small, base.vaddr(), PAGE, RW);
    expect_errno("4 KiB", refused, Errno::EINVAL)?;
    for engine in &session.engines {
        expect_done("fill", engine.fill(IOVA, REGION, 2, 1)?, REGION)?;
    }
    Ok(())
}

fn big_leaves(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    let mut session = Session::with(env, Model::V2, &[("plain", 0), ("big", 0)])?;
    expect_eq("page sizes", page_sizes(&session)?, ALL - PAGE)?;
    session.remove(1)?;
    expect_eq("page sizes", page_sizes(&session)?, ALL)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    expect_done("fill", session.engine().fill(IOVA, PAGE, 1, 1)?, PAGE)
}

#[track_caller]
fn huge(env: &Env, memory: &Memory, iova: u64, page: u64) -> Verdict {
    for (unit, sizes) in [("plain", ALL), ("small", PAGE)] {
        let session = Session::open(env, unit)?;
        session
            .container
            .map(iova, memory.vaddr(), memory.len(), RW)?;
        let leaves = session.engine().walk()?;
        expect_largest(&leaves, sizes, iova, memory)?;
        let want = if sizes == PAGE { PAGE } else { page };
        expect("sizes", leaves.iter().all(|leaf| leaf.size >= want))?;
        session.container.unmap(iova, memory.len(), 0)?;
        expect_unmapped(&session)?;
    }
    Ok(())
}

fn leaf_2m(env: &Env) -> Verdict {
    let memory = Memory::hugetlb(4 * MIB, 2 * MIB)?;
    number(&memory);
    huge(env, &memory, IOVA, 2 * MIB)
}

fn leaf_1g(env: &Env) -> Verdict {
    huge(env, &Memory::hugetlb(GIB, GIB)?, GIB, GIB)
}

fn no_common_size(env: &Env) -> Verdict {
    // The C driver computes the lowest bit of zero.
    env.need_rust()?;
    let memory = Memory::anon(PAGE)?;
    let mut session = Session::open(env, "small")?;
    let refused = session.add("big", 0)?;
    expect_errno("no page size in common", refused, Errno::EINVAL)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    expect_done("fill", session.engine().fill(IOVA, PAGE, 1, 1)?, PAGE)
}
