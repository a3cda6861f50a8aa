// SPDX-License-Identifier: GPL-2.0

//! Data goes where it is mapped, and nowhere else.

use std::fs::{
    self,
    File, //
};
use std::io::Write;
use std::path::PathBuf;
use std::process;

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::soft::{
    checksum,
    filled,
    Fault,
    Session,
    ENGINES,
    LEAF_CACHE,
    PROT_READ,
    PROT_WRITE, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    READ,
    RW,
    WRITE, //
};

use super::{
    expect_done,
    IOVA, //
};

tests! {
    "dma.anon", "a device reads and writes anonymous memory" => anon;
    "dma.memfd", "... shared memory" => memfd;
    "dma.file", "... a file's page cache, read only" => file;
    "huge.thp", "... transparent huge pages" => thp;
    "huge.hugetlb_2m", "... huge pages of 2 MiB" => hugetlb_2m;
    "huge.hugetlb_1g", "... huge pages of 1 GiB" => hugetlb_1g;
    "dma.region", "... the memory of another device" => region;
    "dma.unaligned", "ranges begin and end anywhere" => unaligned;
    "dma.read_only", "what is mapped for reading is not written to" => read_only;
    "dma.write_only", "what is mapped for writing is not read" => write_only;
    "dma.hole", "DMA ends where nothing is mapped" => hole;
    "dma.cached", "all mappings are made cache coherent" => cached;
}

/// Fills, sums up and copies within `memory`, which is mapped whole at `IOVA`.
#[track_caller]
fn works(session: &Session, memory: &Memory) -> Verdict {
    let engine = session.engine();
    let len = memory.len();
    for (seed, threads) in [(1, 0), (2, 1), (3, ENGINES)] {
        let done = engine.fill(IOVA, len, seed, threads)?;
        expect_done("fill", done, len)?;
        let bytes = memory.get(0, len);
        expect(
            format_args!("memory is as it was filled by {threads} threads"),
            bytes == filled(seed, IOVA, len),
        )?;
        let read = engine.checksum(IOVA, len, threads)?;
        expect_done("checksum", read, len)?;
        expect_eq("checksum", read.sum, checksum(&bytes))?;
    }

    let half = len / 2;
    let copied = engine.copy(IOVA, IOVA + half, half, ENGINES)?;
    expect_done("copy", copied, half)?;
    expect(
        "the second half is a copy of the first",
        memory.get(half, half) == filled(3, IOVA, half),
    )?;
    let touched = engine.touch(IOVA, len, 4, 2)?;
    expect_done("touch", touched, len)?;
    for page in (0..len).step_by(PAGE as usize) {
        let want = filled(4, IOVA + page, 8);
        expect_eq("first bytes of a page", memory.get(page, 8), want)?;
    }
    let first = memory.get(8, PAGE - 8);
    expect("others", first == filled(3, IOVA + 8, PAGE - 8))
}

#[track_caller]
fn works_mapped(env: &Env, memory: &Memory) -> Verdict {
    for unit in ["plain", "small", "noncoherent", "wide"] {
        let session = Session::open(env, unit)?;
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        works(&session, memory)?;
    }
    Ok(())
}

fn anon(env: &Env) -> Verdict {
    works_mapped(env, &Memory::anon(MIB)?)
}

fn memfd(env: &Env) -> Verdict {
    works_mapped(env, &Memory::shared(&Memory::memfd(MIB)?)?)
}

fn thp(env: &Env) -> Verdict {
    works_mapped(env, &Memory::thp(4 * MIB)?)
}

fn hugetlb_2m(env: &Env) -> Verdict {
    works_mapped(env, &Memory::hugetlb(4 * MIB, 2 * MIB)?)
}

/// A file that is gone when dropped.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn file(env: &Env) -> Verdict {
    let len = 16 * PAGE;
    let path = std::env::temp_dir().join(format!("soft-{}", process::id()));
    let mut scratch = Scratch {
        file: File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)?,
        path,
    };
    let content = filled(5, 0, len);
    scratch.file.write_all(&content)?;

    let memory = Memory::private_file(&scratch.file, len)?;
    let session = Session::open(env, "plain")?;
    session.container.map(IOVA, memory.vaddr(), len, READ)?;
    let read = session.engine().checksum(IOVA, len, 2)?;
    expect_done("checksum", read, len)?;
    expect_eq("checksum", read.sum, checksum(&content))?;
    let refused = session.engine().fill(IOVA, len, 6, 0)?;
    expect_eq("fault", refused.fault, Some((Fault::NoWrite, IOVA)))?;
    expect("the file is as before", memory.get(0, len) == content)
}

fn hugetlb_1g(env: &Env) -> Verdict {
    const PLACES: [u64; 4] = [0, 512 * MIB - 8, GIB - PAGE, 3 * MIB];
    let memory = Memory::hugetlb(GIB, GIB)?;
    let session = Session::open(env, "plain")?;
    session.container.map(GIB, memory.vaddr(), GIB, RW)?;
    for offset in PLACES {
        let done = session.engine().fill(GIB + offset, 8, 9, 1)?;
        expect_done("fill", done, 8)?;
        let want = filled(9, GIB + offset, 8);
        expect_eq("bytes", memory.get(offset, 8), want)?;
    }
    Ok(())
}

fn region(env: &Env) -> Verdict {
    let other = Session::open(env, "foreign")?;
    let device = &other.engine().0;
    let memory = Memory::region(device, device.region(0)?)?;
    memory.fill(0x5a);
    works_mapped(env, &memory)
}

fn unaligned(env: &Env) -> Verdict {
    let memory = Memory::anon(8 * PAGE)?;
    let session = Session::open(env, "plain")?;
    let engine = session.engine();
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let ends = [0, 1, 7, 8, 9, PAGE - 1, PAGE, PAGE + 3, 3 * PAGE - 8];
    for first in ends {
        for len in ends.into_iter().filter(|len| *len > 0) {
            memory.fill(0x5a);
            expect_done("fill", engine.fill(IOVA + first, len, first, 3)?, len)?;
            let mut want = vec![0x5a; memory.len() as usize];
            let bytes = filled(first, IOVA + first, len);
            want[first as usize..(first + len) as usize].copy_from_slice(&bytes);
            let what = format_args!("memory filled from {first:#x}, {len:#x} bytes");
            expect(what, memory.get(0, memory.len()) == want)?;
            let sum = engine.checksum(IOVA + first, len, 2)?.sum;
            expect_eq("checksum", sum, checksum(&bytes))?;
        }
    }
    Ok(())
}

fn read_only(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let len = memory.len();
    for unit in ["plain", "small"] {
        let session = Session::open(env, unit)?;
        let engine = session.engine();
        session.container.map(IOVA, memory.vaddr(), len, READ)?;
        let sum = checksum(&vec![0x5a; len as usize]);
        // Read first, then written to, then the other way round.
        for round in 0..2 {
            let read = engine.checksum(IOVA, len, 1)?;
            expect_done("checksum", read, len)?;
            expect_eq("checksum", read.sum, sum)?;
            let first = IOVA + (3 - round) * PAGE;
            let refused = engine.fill(first, 8, 1, 1)?;
            expect_eq("fault", refused.fault, Some((Fault::NoWrite, first)))?;
            expect_eq("bytes done", refused.done, 0)?;
        }
        let refused = engine.copy(IOVA, IOVA + PAGE, PAGE, 1)?.fault;
        expect_eq("fault", refused, Some((Fault::NoWrite, IOVA + PAGE)))?;
        let leaves = engine.walk()?;
        expect("leaves", leaves.iter().all(|leaf| leaf.prot == PROT_READ))?;
    }
    expect("memory", memory.get(0, len) == vec![0x5a; len as usize])
}

fn write_only(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let session = Session::open(env, "plain")?;
    let engine = session.engine();
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), WRITE)?;
    expect_done("fill", engine.fill(IOVA, memory.len(), 1, 1)?, memory.len())?;
    let refused = engine.checksum(IOVA + 5, 8, 1)?.fault;
    expect_eq("fault", refused, Some((Fault::NoRead, IOVA + 5)))?;
    let refused = engine.copy(IOVA + PAGE, IOVA, 8, 1)?.fault;
    expect_eq("fault", refused, Some((Fault::NoRead, IOVA + PAGE)))?;
    let leaves = engine.walk()?;
    expect("leaves", leaves.iter().all(|leaf| leaf.prot == PROT_WRITE))?;
    expect(
        "memory",
        memory.get(0, memory.len()) == filled(1, IOVA, memory.len()),
    )
}

fn hole(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let session = Session::open(env, "plain")?;
    let engine = session.engine();
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;
    let behind = IOVA + 3 * PAGE;
    session
        .container
        .map(behind, memory.vaddr() + 2 * PAGE, 2 * PAGE, RW)?;

    for threads in 0..2 {
        let done = engine.fill(IOVA + 8, 4 * PAGE, 1, threads)?;
        let hole = IOVA + 2 * PAGE;
        expect_eq("fault", done.fault, Some((Fault::Absent, hole)))?;
        expect_eq("bytes done", done.done, 2 * PAGE - 8)?;
    }
    // One thread ends in the hole, the other begins behind it.
    let done = engine.fill(IOVA, 5 * PAGE, 2, 5)?;
    let hole = IOVA + 2 * PAGE;
    expect_eq("fault", done.fault, Some((Fault::Absent, hole)))?;
    expect_eq("bytes done", done.done, 4 * PAGE)?;
    let want = [filled(2, IOVA, 2 * PAGE), filled(2, behind, 2 * PAGE)].concat();
    expect("memory", memory.get(0, memory.len()) == want)?;

    for (iova, want) in [
        (0, Fault::Absent),
        (IOVA - 1, Fault::Absent),
        (behind + 2 * PAGE, Fault::Absent),
        ((1 << 48) - 8, Fault::Absent),
        (1 << 48, Fault::Width),
        (u64::MAX, Fault::Width),
    ] {
        expect_eq(
            format_args!("reading {iova:#x}"),
            engine.probe(iova)?,
            Some(want),
        )?;
    }
    Ok(())
}

fn cached(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    for unit in ["plain", "noncoherent"] {
        let session = Session::open(env, unit)?;
        for (n, flags) in [(0, READ), (1, WRITE), (2, RW)] {
            let offset = n * PAGE;
            session
                .container
                .map(IOVA + 2 * offset, memory.vaddr() + offset, PAGE, flags)?;
        }
        let leaves = session.engine().walk()?;
        expect_eq("leaves", leaves.len(), 3)?;
        for leaf in leaves {
            expect_eq("flags of a leaf", leaf.flags & LEAF_CACHE, LEAF_CACHE)?;
        }
    }
    Ok(())
}
