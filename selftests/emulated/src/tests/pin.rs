// SPDX-License-Identifier: GPL-2.0

//! `vfio_pin_pages()` and `vfio_unpin_pages()`.

use std::fs;

use harness::check::{
    expect_eq,
    expect_errno,
    Stop,
    Verdict, //
};
use harness::emulated::{
    Session,
    Via,
    Which,
    PIN_MAX,
    PIN_READ,
    PIN_RW,
    PIN_WRITE, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::proc::{
    become_limited,
    locked, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    READ,
    RW,
    WRITE, //
};
use nix::errno::Errno;

use super::{
    PinCount,
    IOVA, //
};

tests! {
    "pin.charged", "each page is charged once, however often it is pinned" => charged;
    "pin.counted", "each page is pinned once, until its last user lets go" => counted;
    "pin.content", "what the device writes to a page is in user memory" => content;
    "pin.across", "one call pins pages of several mappings" => across;
    "pin.range", "empty, too long and wrapping ranges, and holes, are refused" => range;
    "pin.prot", "the device may do what the mapping allows" => prot;
    "pin.memory_prot", "memory that cannot be written is refused to a writable mapping" => memory_prot;
    "pin.v1", "type1 has no pinning" => v1;
    "pin.deaf", "a device that does not hear of unmapping may not pin" => deaf;
    "pin.limit", "RLIMIT_MEMLOCK counts pinned pages" => limit;
    "pin.limit_partly", "a call that exceeds the limit pins nothing" => limit_partly;
    "pin.fault_partly", "a call that meets missing memory pins nothing, and keeps older pins" => fault_partly;
    "pin.thp", "a part of a huge page" => thp;
    "pin.untouched", "memory nobody has touched" => untouched;
    "pin.special", "an empty mapping of page frames is refused" => special;
}

fn charged(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(16 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let expect_locked = |pages| expect_eq("locked memory", locked()?, before + pages * PAGE);

    device.pinned(IOVA, 4)?;
    expect_locked(4)?;
    device.pinned(IOVA, 4)?;
    expect_locked(4)?;
    device.pinned(IOVA + 2 * PAGE, 4)?;
    expect_locked(6)?;
    let counters = device.counters()?;
    expect_eq("pins", (counters.pages, counters.users), (6, 12))?;

    device.unpin(IOVA, 6)?;
    expect_locked(4)?;
    device.unpin(IOVA, 4)?;
    expect_locked(2)?;
    device.unpin(IOVA + 2 * PAGE, 2)?;
    expect_locked(0)?;
    expect_errno("not pinned any more", device.unpin(IOVA, 1), Errno::ENOENT)
}

fn counted(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(16 * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;

    for device in &session.devices {
        for _ in 0..3 {
            device.pinned(IOVA, 8)?;
        }
    }
    pins.expect(8)?;
    for n in 0..5 {
        session.devices[n % 2].unpin(IOVA, 8)?;
        pins.expect(8)?;
    }
    session.devices[1].unpin(IOVA, 7)?;
    pins.expect(1)?;
    session.devices[1].unpin(IOVA + 7 * PAGE, 1)?;
    pins.expect(0)
}

fn content(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(8 * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    device.pinned(IOVA + PAGE, 6)?;

    for page in 1..7 {
        device.fill(IOVA + page * PAGE, 0x80 + page as u8)?;
    }
    for page in 0..8 {
        let want = match page {
            1..=6 => 0x80 + page as u8,
            _ => 0x5a,
        };
        let got = memory.get(page * PAGE, PAGE);
        expect_eq(format_args!("page {page}"), got, vec![want; PAGE as usize])?;
    }
    expect_errno(
        "a page that is not pinned",
        device.fill(IOVA, 0),
        Errno::ENOENT,
    )
}

fn across(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(u64::from(PIN_MAX) * PAGE)?;
    let before = locked()?;
    // Mappings of 128 pages, in the opposite order in memory.
    let part = memory.len() / 4;
    for n in 0..4 {
        let vaddr = memory.vaddr() + (3 - n) * part;
        session.container.map(IOVA + n * part, vaddr, part, RW)?;
    }

    device.pinned(IOVA, PIN_MAX)?;
    expect_eq("locked memory", locked()?, before + memory.len())?;
    device.fill(IOVA + part, 0x77)?;
    expect_eq("first byte of part 2", memory.read::<u8>(2 * part), 0x77)?;

    // The device loses what it has in one mapping only.
    session.container.unmap(IOVA + part, part, 0)?;
    expect_eq("locked memory", locked()?, before + 3 * part)?;
    let counters = device.counters()?;
    expect_eq("pages pinned", counters.pages, 3 * part / PAGE)
}

fn range(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(1024 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let hole = IOVA + 2048 * PAGE;
    session
        .container
        .map(hole + PAGE, memory.vaddr(), PAGE, RW)?;
    let end = IOVA + memory.len();

    let refused = [
        ("no pages", IOVA, 0, Errno::EINVAL),
        ("too many pages", IOVA, PIN_MAX + 1, Errno::E2BIG),
        ("before the mapping", IOVA - PAGE, 1, Errno::EINVAL),
        ("from before the mapping", IOVA - PAGE, 2, Errno::EINVAL),
        ("behind the mapping", end, 1, Errno::EINVAL),
        (
            "over the end of the mapping",
            end - 3 * PAGE,
            4,
            Errno::EINVAL,
        ),
        ("into a hole", hole + PAGE, 2, Errno::EINVAL),
        (
            "over the last address",
            PAGE.wrapping_neg(),
            2,
            Errno::EOVERFLOW,
        ),
    ];
    for (why, iova, npages, want) in refused {
        expect_errno(why, device.pin(iova, npages, PIN_RW)?, want)?;
        expect_eq("locked memory", locked()?, before)?;
    }
    let counters = device.counters()?;
    expect_eq("pages pinned", counters.pages, 0)?;
    device.pinned(end - u64::from(PIN_MAX) * PAGE, PIN_MAX)
}

fn prot(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(PAGE)?;
    for (n, flags) in [READ, WRITE, RW].into_iter().enumerate() {
        let iova = IOVA + n as u64 * PAGE;
        session.container.map(iova, memory.vaddr(), PAGE, flags)?;
        // The flags of MAP_DMA and those of pinning have the same values.
        for prot in [0, PIN_READ, PIN_WRITE, PIN_RW] {
            let got = device.pin(iova, 1, prot)?;
            if prot & !flags == 0 {
                got?;
            } else {
                let why = format!("mapped {flags}, pinned {prot}");
                expect_errno(why, got, Errno::EPERM)?;
            }
        }
        // Rights that no mapping grants.
        for prot in [4, PIN_RW | 4, 1 << 31, u32::MAX] {
            let why = format!("mapped {flags}, pinned {prot:#x}");
            expect_errno(why, device.pin(iova, 1, prot)?, Errno::EPERM)?;
        }
    }

    // Also for a page that is pinned already, and in the midst of others.
    expect_errno(
        "the first page is not writable",
        device.pin(IOVA, 3, PIN_WRITE)?,
        Errno::EPERM,
    )?;
    let before = device.counters()?;
    expect_errno(
        "the second page is not readable",
        device.pin(IOVA, 3, PIN_READ)?,
        Errno::EPERM,
    )?;
    expect_eq("counters", device.counters()?, before)
}

fn memory_prot(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(2 * PAGE)?;
    memory.protect(0, PAGE, libc::PROT_READ)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    session
        .container
        .map(IOVA + PAGE, memory.vaddr(), PAGE, READ)?;

    for prot in [PIN_READ, PIN_RW] {
        expect_errno(
            format_args!("writable mapping of read-only memory, prot {prot}"),
            device.pin(IOVA, 1, prot)?,
            Errno::EFAULT,
        )?;
    }
    device.pin(IOVA + PAGE, 1, PIN_READ)??;
    Ok(())
}

fn v1(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V1)?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    for (iova, npages) in [(IOVA, 1), (0, 1), (PAGE.wrapping_neg(), 2)] {
        expect_errno(
            "type1",
            session.device().pin(iova, npages, PIN_READ)?,
            Errno::EACCES,
        )?;
    }
    Ok(())
}

fn deaf(env: &Env) -> Verdict {
    let session = Session::with(env, Model::V2, &[Which::Deaf, Which::First])?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    expect_errno(
        "no dma_unmap",
        session.device().pin(IOVA, 1, PIN_READ)?,
        Errno::EINVAL,
    )?;
    session.devices[1].pinned(IOVA, 1)?;
    session.container.unmap(IOVA, PAGE, 0)?;
    expect_eq(
        "calls of what is not there",
        session.device().counters()?.unmaps,
        0,
    )
}

fn limit(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(8 * PAGE)?;
    become_limited(4 * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;

    for page in 0..4 {
        device.pinned(IOVA + page * PAGE, 1)?;
    }
    let fifth = || device.pin(IOVA + 4 * PAGE, 1, PIN_RW);
    expect_errno("the fifth page", fifth()?, Errno::ENOMEM)?;
    expect_eq("locked memory", locked()?, 4 * PAGE)?;
    // What is charged already costs nothing.
    device.pinned(IOVA, 4)?;
    device.unpin(IOVA, 4)?;
    expect_errno("still the fifth page", fifth()?, Errno::ENOMEM)?;

    device.unpin(IOVA, 1)?;
    fifth()??;
    session.container.unmap_all()?;
    expect_eq("locked memory", locked()?, 0)
}

fn limit_partly(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(8 * PAGE)?;
    become_limited(4 * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    device.pinned(IOVA + PAGE, 2)?;

    expect_errno(
        "three more pages",
        device.pin(IOVA, 5, PIN_RW)?,
        Errno::ENOMEM,
    )?;
    expect_eq("locked memory", locked()?, 2 * PAGE)?;
    pins.expect(2)?;
    device.pinned(IOVA, 4)?;
    expect_eq("locked memory", locked()?, 4 * PAGE)
}

fn fault_partly(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let mut memory = Memory::anon(8 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    memory.truncate(6 * PAGE);
    device.pinned(IOVA + 2 * PAGE, 2)?;

    for first in [0, 2, 3, 6] {
        let npages = 8 - first;
        expect_errno(
            format_args!("pages {first} to 8, of which 6 are there"),
            device.pin(IOVA + u64::from(first) * PAGE, npages, PIN_RW)?,
            Errno::EFAULT,
        )?;
        expect_eq("locked memory", locked()?, before + 2 * PAGE)?;
        pins.expect(2)?;
    }
    device.unpin(IOVA + 2 * PAGE, 2)?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)
}

fn thp(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::thp(2 * MIB)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    device.pinned(IOVA + 100 * PAGE, 3)?;
    expect_eq("locked memory", locked()?, before + 3 * PAGE)?;
    device.fill(IOVA + 101 * PAGE, 0x33)?;
    expect_eq(
        "page 101",
        memory.get(101 * PAGE, PAGE),
        vec![0x33; PAGE as usize],
    )?;
    expect_eq("page 102", memory.read::<u8>(102 * PAGE), 0x5a)
}

fn untouched(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::unpopulated(4 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    device.pinned(IOVA, 4)?;
    expect_eq("locked memory", locked()?, before + 4 * PAGE)?;
    device.fill(IOVA + PAGE, 0x44)?;
    expect_eq("byte of page 1", memory.read::<u8>(PAGE), 0x44)?;
    memory.write(2 * PAGE, 0x55u8);
    let got = device.read(IOVA + 2 * PAGE, 1, Via::Task)?;
    expect_eq("byte of page 2", got, vec![0x55])
}

fn special(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let pages = maps
        .lines()
        .find(|line| line.ends_with("[vvar_vclock]"))
        .and_then(|line| u64::from_str_radix(line.split_once('-')?.0, 16).ok())
        .ok_or_else(|| Stop::skip("[vvar_vclock] in /proc/self/maps"))?;
    let before = locked()?;
    session.container.map(IOVA, pages, PAGE, READ)?;
    expect_errno(
        "clock pages of a hypervisor, which are not there",
        session.device().pin(IOVA, 1, PIN_READ)?,
        Errno::EFAULT,
    )?;
    expect_eq("locked memory", locked()?, before)
}
