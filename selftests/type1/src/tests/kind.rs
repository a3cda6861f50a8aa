// SPDX-License-Identifier: GPL-2.0

//! Every kind of memory, and what is charged for it.

use std::fs::File;
use std::io::Write;

use harness::check::{
    expect,
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::edu::enable_memory;
use harness::env::{
    Env,
    Model,
    Session, //
};
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::proc::locked;
use harness::tests;
use harness::trace::{
    Piece,
    Watch, //
};
use harness::vfio::{
    Device,
    Region,
    PAGE,
    READ,
    RW, //
};
use vfio_bindings::bindings::vfio;

use super::IOVA;

tests! {
    "kind.anon", "base pages" => anon;
    "kind.anon_unpopulated", "mapping populates" => anon_unpopulated;
    "kind.thp", "transparent huge pages, whole and in part" => thp;
    "kind.hugetlb_2m", "reserved 2 MiB pages, whole and in part" => hugetlb_2m;
    "kind.hugetlb_1g", "a reserved 1 GiB page, whole and in part" => hugetlb_1g;
    "kind.memfd", "shared memory" => memfd;
    "kind.file", "a shared file on tmpfs" => file;
    "kind.private_file", "a private file mapping, for reading" => private_file;
    "kind.zero_page", "memory that was only read, for reading" => zero_page;
    "kind.bar", "a device region of the device itself is mapped and not charged" => bar;
    "kind.bar_neighbour", "one mapping over memory and a device region" => bar_neighbour;
    "kind.alias", "memory mapped twice is charged twice" => alias;
    "kind.sum", "the charge is the sum of all mappings" => sum;
    "kind.unmapped_memory", "memory may go away from the process before it is unmapped" => unmapped_memory;
    "kind.pieces", "what is contiguous is given to the IOMMU at once, or page by page if told so" => pieces;
    "kind.leaf_sizes", "large pages become large entries of the IOMMU where they fit" => leaf_sizes;
    "kind.leaf_disabled", "disable_hugepages keeps all entries small" => leaf_disabled;
    "kind.close", "closing releases every charge" => close;
}

/// Maps and unmaps `size` bytes at `offset` in both models; each byte must be charged.
#[track_caller]
fn expect_charged(env: &Env, memory: &Memory, offset: u64, size: u64, flags: u32) -> Verdict {
    for model in Model::BOTH {
        let session = env.open(model)?;
        let before = locked()?;
        // Same distance from a large page as the memory, so that the IOMMU may use one.
        let large = if memory.len() >= GIB { GIB } else { 2 * MIB };
        let iova = IOVA.next_multiple_of(large) + memory.vaddr() % large + offset;

        session
            .container
            .map(iova, memory.vaddr() + offset, size, flags)?;
        expect_eq("locked memory", locked()?, before + size)?;
        expect_eq(
            "bytes unmapped",
            session.container.unmap(iova, size, 0)?,
            size,
        )?;
        expect_eq("locked memory after unmap", locked()?, before)?;

        // At a place where no large page fits.
        let iova = iova + PAGE;
        session
            .container
            .map(iova, memory.vaddr() + offset, size, flags)?;
        expect_eq("locked memory", locked()?, before + size)?;
        expect_eq(
            "bytes unmapped",
            session.container.unmap(iova, size, 0)?,
            size,
        )?;
        expect_eq("locked memory after unmap", locked()?, before)?;
    }
    Ok(())
}

#[track_caller]
fn expect_whole_and_parts(env: &Env, memory: &Memory, page: u64) -> Verdict {
    let len = memory.len();
    expect_charged(env, memory, 0, len, RW)?;
    expect_charged(env, memory, 0, PAGE, RW)?;
    expect_charged(env, memory, page / 2, 3 * PAGE, RW)?;
    expect_charged(env, memory, PAGE, page - 2 * PAGE, RW)?;
    expect_charged(env, memory, len - PAGE, PAGE, RW)
}

fn anon(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    expect_charged(env, &memory, 0, PAGE, RW)?;
    expect_charged(env, &memory, 5 * PAGE, 7 * PAGE, RW)?;
    expect_charged(env, &memory, 0, memory.len(), RW)?;
    expect_charged(env, &memory, 0, memory.len(), READ)
}

fn anon_unpopulated(env: &Env) -> Verdict {
    let memory = Memory::unpopulated(4 * MIB)?;
    expect_charged(env, &memory, 0, memory.len(), RW)?;
    expect_eq("contents", memory.get(0, PAGE), vec![0; PAGE as usize])
}

fn thp(env: &Env) -> Verdict {
    expect_whole_and_parts(env, &Memory::thp(8 * MIB)?, 2 * MIB)
}

fn hugetlb_2m(env: &Env) -> Verdict {
    expect_whole_and_parts(env, &Memory::hugetlb(4 * MIB, 2 * MIB)?, 2 * MIB)
}

fn hugetlb_1g(env: &Env) -> Verdict {
    expect_whole_and_parts(env, &Memory::hugetlb(GIB, GIB)?, GIB)
}

fn memfd(env: &Env) -> Verdict {
    let memory = Memory::shared(&Memory::memfd(4 * MIB)?)?;
    expect_charged(env, &memory, 0, memory.len(), RW)?;
    expect_charged(env, &memory, 3 * PAGE, PAGE, RW)
}

/// A new file without a name on a tmpfs.
#[track_caller]
fn tmpfs_file(len: u64) -> Verdict<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let tmpfs: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
            (kind == "tmpfs").then_some(place)
        })
        .collect();
    let place = ["/dev/shm", "/tmp", "/run"]
        .into_iter()
        .find(|place| tmpfs.contains(place))
        .ok_or_else(|| Stop::skip("a tmpfs on /dev/shm, /tmp or /run"))?;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(place)
        .map_err(|e| missing_or_fail(place, e))?;
    file.set_len(len)?;
    Ok(file)
}

fn file(env: &Env) -> Verdict {
    let memory = Memory::shared(&tmpfs_file(MIB)?)?;
    expect_charged(env, &memory, 0, memory.len(), RW)?;
    expect_charged(env, &memory, 0, memory.len(), READ)
}

fn private_file(env: &Env) -> Verdict {
    let mut file = tmpfs_file(0)?;
    file.write_all(&[0x33; 16 * PAGE as usize])?;
    let memory = Memory::private_file(&file, 16 * PAGE)?;
    expect_charged(env, &memory, 0, memory.len(), READ)?;
    expect_eq("contents", memory.get(0, PAGE), vec![0x33; PAGE as usize])
}

fn zero_page(env: &Env) -> Verdict {
    let memory = Memory::unpopulated(2 * MIB)?;
    for offset in (0..memory.len()).step_by(PAGE as usize) {
        expect_eq("contents", memory.read::<u8>(offset), 0)?;
    }
    expect_charged(env, &memory, 0, 16 * PAGE, READ)?;
    expect_charged(env, &memory, 0, memory.len(), READ)?;
    expect_eq("contents", memory.get(0, PAGE), vec![0; PAGE as usize])
}

/// Opens the session's device and finds a region that can be mapped.
#[track_caller]
fn mappable_region(session: &Session<'_>) -> Verdict<(Device, Region)> {
    let device = session.device()?;
    enable_memory(&device)?;
    for index in vfio::VFIO_PCI_BAR0_REGION_INDEX..vfio::VFIO_PCI_CONFIG_REGION_INDEX {
        let region = device.region(index)?;
        if region.flags & vfio::VFIO_REGION_INFO_FLAG_MMAP != 0 && region.size >= 2 * PAGE {
            return Ok((device, region));
        }
    }
    Err(Stop::skip(format_args!(
        "a BAR of {} that can be mapped and has two pages",
        session.pci.bdf
    )))
}

fn bar(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let session = env.open(model)?;
        let (device, region) = mappable_region(&session)?;
        let memory = Memory::region(&device, region)?;
        let before = locked()?;
        let cases = [
            (0, region.size),
            (0, PAGE),
            (PAGE, region.size - PAGE),
            (region.size - PAGE, PAGE),
        ];

        for (offset, size) in cases {
            for flags in [RW, READ] {
                session
                    .container
                    .map(IOVA, memory.vaddr() + offset, size, flags)?;
                expect_eq("locked memory", locked()?, before)?;
                expect_eq(
                    "bytes unmapped",
                    session.container.unmap(IOVA, size, 0)?,
                    size,
                )?;
                expect_eq("locked memory after unmap", locked()?, before)?;
            }
        }
    }
    Ok(())
}

fn bar_neighbour(env: &Env) -> Verdict {
    const BEFORE: u64 = 16 * PAGE;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let (device, region) = mappable_region(&session)?;
        let (head, _tail) = Memory::anon_then_region(BEFORE, &device, region)?;
        let before = locked()?;
        let size = BEFORE + region.size;

        session.container.map(IOVA, head.vaddr(), size, RW)?;
        expect_eq("locked memory", locked()?, before + BEFORE)?;
        expect_eq(
            "bytes unmapped",
            session.container.unmap(IOVA, size, 0)?,
            size,
        )?;
        expect_eq("locked memory after unmap", locked()?, before)?;
    }
    Ok(())
}

fn alias(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(8 * PAGE)?;
    let before = locked()?;
    for n in 1..=3 {
        session
            .container
            .map(IOVA * n, memory.vaddr(), memory.len(), RW)?;
        expect_eq("locked memory", locked()?, before + n * memory.len())?;
    }
    session.container.unmap(IOVA, memory.len(), 0)?;
    expect_eq("locked memory", locked()?, before + 2 * memory.len())
}

fn sum(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(64 * PAGE)?;
    let before = locked()?;
    let parts: Vec<(u64, u64)> = (0..8).map(|n| (n * 8 * PAGE, (n + 1) * PAGE)).collect();

    let mut want = before;
    for &(offset, size) in &parts {
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, size, RW)?;
        want += size;
        expect_eq("locked memory after a map", locked()?, want)?;
    }
    for &(offset, size) in parts.iter().rev() {
        session.container.unmap(IOVA + offset, size, 0)?;
        want -= size;
        expect_eq("locked memory after an unmap", locked()?, want)?;
    }
    Ok(())
}

fn unmapped_memory(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let before = locked()?;
    let mut memory = Memory::anon(16 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 16 * PAGE, RW)?;

    memory.truncate(4 * PAGE);
    expect_eq("locked memory", locked()?, before + 16 * PAGE)?;
    drop(memory);
    expect_eq("locked memory", locked()?, before + 16 * PAGE)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, 16 * PAGE, 0)?,
        16 * PAGE,
    )?;
    expect_eq("locked memory after unmap", locked()?, before)
}

fn close(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    let before = locked()?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        for n in 0..4 {
            let offset = n * MIB;
            session
                .container
                .map(IOVA + 2 * offset, memory.vaddr() + offset, MIB, RW)?;
        }
        expect_eq("locked memory", locked()?, before + memory.len())?;
        drop(session);
        expect_eq("locked memory after close", locked()?, before)?;
    }
    Ok(())
}

/// Maps all of `memory` and returns what the IOMMU was given, after checking that it adds up.
#[track_caller]
fn map_pieces(session: &Session<'_>, watch: &Watch, memory: &Memory) -> Verdict<Vec<Piece>> {
    watch.mapped()?;
    session
        .container
        .map(GIB, memory.vaddr(), memory.len(), RW)?;
    let pieces = watch.mapped()?;

    let mut next = GIB;
    for piece in &pieces {
        expect_eq("where the next piece begins", piece.iova, next)?;
        next += piece.size;
    }
    expect_eq("where the last piece ends", next, GIB + memory.len())?;
    let unmapped = session.container.unmap(GIB, memory.len(), 0)?;
    expect_eq("bytes unmapped", unmapped, memory.len())?;
    Ok(pieces)
}

fn pieces(env: &Env) -> Verdict {
    let parameter = env.parameter("disable_hugepages")?;
    let watch = Watch::begin()?;
    let anon = Memory::anon(4 * MIB)?;
    let thp = Memory::thp(2 * MIB)?;
    let small = Memory::hugetlb(2 * MIB, 2 * MIB)?;
    let large = Memory::hugetlb(GIB, GIB)?;

    for model in Model::BOTH {
        let session = env.open(model)?;
        for memory in [&thp, &small, &large] {
            let pieces = map_pieces(&session, &watch, memory)?;
            expect_eq("number of pieces", pieces.len(), 1)?;
        }
        for pair in map_pieces(&session, &watch, &anon)?.windows(2) {
            expect(
                format_args!("{:#x?} and {:#x?} are apart in memory", pair[0], pair[1]),
                pair[0].phys + pair[0].size != pair[1].phys,
            )?;
        }

        parameter.set("Y")?;
        for memory in [&anon, &thp, &small] {
            let pieces = map_pieces(&session, &watch, memory)?;
            let large = pieces.iter().find(|piece| piece.size != PAGE);
            expect_eq("a piece that is not one page", large, None)?;
        }
        parameter.set(parameter.original())?;
    }
    Ok(())
}

/// Maps all of `memory` and compares the size of the entry that maps its first page.
#[track_caller]
fn expect_leaf(session: &Session<'_>, iova: u64, memory: &Memory, want: u64) -> Verdict {
    session
        .container
        .map(iova, memory.vaddr(), memory.len(), RW)?;
    expect_eq(
        format_args!("entry at {iova:#x}"),
        session.pci.leaf(iova)?,
        want,
    )?;
    session.container.unmap(iova, memory.len(), 0)?;
    expect_eq(
        format_args!("entry at {iova:#x} after unmap"),
        session.pci.leaf(iova)?,
        0,
    )
}

fn leaf_sizes(env: &Env) -> Verdict {
    let thp = Memory::thp(2 * MIB)?;
    let small = Memory::hugetlb(2 * MIB, 2 * MIB)?;
    let large = Memory::hugetlb(GIB, GIB)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let sizes = session.info()?.pgsizes;
        let or_less = |size, less| if sizes & size == 0 { less } else { size };
        let two = or_less(2 * MIB, PAGE);

        expect_leaf(&session, GIB, &thp, two)?;
        expect_leaf(&session, GIB, &small, two)?;
        expect_leaf(&session, GIB, &large, or_less(GIB, two))?;
        expect_leaf(&session, GIB + 2 * MIB, &large, two)?;
        for memory in [&thp, &small, &large] {
            expect_leaf(&session, GIB + PAGE, memory, PAGE)?;
        }
    }
    Ok(())
}

fn leaf_disabled(env: &Env) -> Verdict {
    let parameter = env.parameter("disable_hugepages")?;
    let memory = Memory::thp(2 * MIB)?;
    let session = env.open(Model::V2)?;
    let two = session.info()?.pgsizes & (2 * MIB);

    parameter.set("Y")?;
    expect_leaf(&session, GIB, &memory, PAGE)?;
    // Read at each map, not when the container is set up.
    parameter.set("N")?;
    expect_leaf(&session, GIB, &memory, two.max(PAGE))
}
