// SPDX-License-Identifier: GPL-2.0

//! `vfio_dma_rw()`, by a user's task and by kernel threads.

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
use harness::memory::{
    Memory,
    MIB, //
};
use harness::proc::{
    locked,
    Child, //
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
    "rw.copies", "bytes get where they belong, across mappings and at any offset" => copies;
    "rw.large", "a mebibyte at once" => large;
    "rw.free", "copying neither pins nor charges" => free;
    "rw.hole", "copying stops at a hole" => hole;
    "rw.wraps", "the first address follows the last one" => wraps;
    "rw.prot", "the device may read and write what the mapping allows" => prot;
    "rw.fault", "missing and read-only memory" => fault;
    "rw.models", "copying needs neither type1v2 nor dma_unmap" => models;
    "rw.other_process", "another process cannot copy, its kernel threads can" => other_process;
}

/// Bytes that differ from their neighbours.
fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn copies(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(8 * PAGE)?;
    // Pages 4 to 7 come first.
    let part = 4 * PAGE;
    for n in 0..2 {
        let vaddr = memory.vaddr() + (1 - n) * part;
        session.container.map(IOVA + n * part, vaddr, part, RW)?;
    }

    for via in Via::BOTH {
        memory.fill(0x5a);
        let data = pattern(3 * PAGE + 123);
        let offset = 2 * PAGE + 77;
        device.write(IOVA + offset, &data, via)?;

        let here = (part - offset) as usize;
        let there = data.len() as u64 - here as u64;
        expect_eq(
            "bytes in the first mapping",
            memory.get(part + offset, here as u64),
            data[..here].to_vec(),
        )?;
        expect_eq(
            "bytes in the second mapping",
            memory.get(0, there),
            data[here..].to_vec(),
        )?;
        expect_eq("byte before", memory.read::<u8>(part + offset - 1), 0x5a)?;
        expect_eq("byte behind", memory.read::<u8>(there), 0x5a)?;

        let read = device.read(IOVA + offset, data.len() as u32, via)?;
        expect_eq("bytes read", read, data)?;
        for at in [0, part - 1, part, 2 * part - 1] {
            device.write(IOVA + at, &[at as u8 ^ 0x99], via)?;
            let got = memory.read::<u8>((at + part) % (2 * part));
            expect_eq(format_args!("byte at {at:#x}"), got, at as u8 ^ 0x99)?;
        }
    }
    Ok(())
}

fn large(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(2 * MIB)?;
    // As many mappings as there are pages.
    for page in 0..memory.len() / PAGE {
        let offset = page * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, PAGE, RW)?;
    }
    let data = pattern(MIB);
    for (via, offset) in [(Via::Task, 1), (Via::Kthread, MIB - 1)] {
        session.device().write(IOVA + offset, &data, via)?;
        expect_eq(
            "memory equals what was written",
            memory.get(offset, MIB) == data,
            true,
        )?;
        let read = session.device().read(IOVA + offset, MIB as u32, via)?;
        expect_eq("what was read equals what was written", read == data, true)?;
    }
    Ok(())
}

fn free(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::unpopulated(64 * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    for via in Via::BOTH {
        let data = pattern(memory.len());
        session.device().write(IOVA, &data, via)?;
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
    }
    Ok(())
}

fn hole(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    for via in Via::BOTH {
        memory.fill(0x5a);
        expect_errno("nothing", device.read(IOVA, 0, via), Errno::EINVAL)?;
        for iova in [0, IOVA - 1, IOVA + PAGE, u64::MAX] {
            let refused = device.read(iova, 1, via);
            expect_errno("nothing mapped", refused, Errno::EINVAL)?;
        }
        let refused = device.read(IOVA + PAGE - 8, 16, via);
        expect_errno("over the end", refused, Errno::EINVAL)?;
        let refused = device.write(IOVA + PAGE - 8, &[1; 16], via);
        expect_errno("over the end", refused, Errno::EINVAL)?;
        // What came before the hole is written.
        expect_eq("last bytes", memory.get(PAGE - 8, 8), vec![1; 8])?;
        let refused = device.write(IOVA - 8, &[2; 16], via);
        expect_errno("over the beginning", refused, Errno::EINVAL)?;
        expect_eq("first bytes", memory.get(0, 8), vec![0x5a; 8])?;
    }
    Ok(())
}

fn wraps(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(2 * PAGE)?;
    let last = PAGE.wrapping_neg();
    session.container.map(last, memory.vaddr(), PAGE, RW)?;

    let (start, data) = (last + PAGE / 2, pattern(PAGE));
    for via in Via::BOTH {
        expect_errno(
            "nothing is mapped at 0",
            device.read(start, PAGE as u32, via),
            Errno::EINVAL,
        )?;
    }
    session.container.map(0, memory.vaddr() + PAGE, PAGE, RW)?;
    for via in Via::BOTH {
        memory.fill(0);
        device.write(start, &data, via)?;
        expect_eq("memory", memory.get(PAGE / 2, PAGE), data.clone())?;
        expect_eq(
            "bytes read",
            device.read(start, PAGE as u32, via)?,
            data.clone(),
        )?;
    }
    Ok(())
}

fn prot(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(PAGE)?;
    for flags in [READ, WRITE, RW] {
        session.container.map(IOVA, memory.vaddr(), PAGE, flags)?;
        for via in Via::BOTH {
            memory.fill(0x5a);
            let read = device.read(IOVA, 8, via);
            let write = device.write(IOVA, &[1; 8], via);
            // Who may not read may not write either.
            match flags {
                READ => {
                    expect_eq("bytes read", read?, vec![0x5a; 8])?;
                    expect_errno("read-only", write, Errno::EPERM)?;
                }
                WRITE => {
                    expect_errno("write-only", read, Errno::EPERM)?;
                    expect_errno("write-only", write, Errno::EPERM)?;
                }
                _ => {
                    read?;
                    write?;
                    expect_eq("bytes written", memory.get(0, 8), vec![1; 8])?;
                    continue;
                }
            }
            expect_eq("memory", memory.get(0, PAGE), vec![0x5a; PAGE as usize])?;
        }
        session.container.unmap(IOVA, PAGE, 0)?;
    }
    Ok(())
}

fn fault(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let mut memory = Memory::anon(3 * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    // An address that no process has.
    let nowhere = IOVA + 4 * PAGE;
    session.container.map(nowhere, 1 << 63, PAGE, RW)?;
    memory.protect(PAGE, PAGE, libc::PROT_READ)?;
    memory.truncate(2 * PAGE);
    for via in Via::BOTH {
        let bytes = [3; 16];
        device.read(IOVA + PAGE - 8, 16, via)?;
        let refused = device.write(IOVA + PAGE, &bytes, via);
        expect_errno("read-only memory", refused, Errno::EFAULT)?;
        let refused = device.write(IOVA + PAGE - 8, &bytes, via);
        expect_errno("over to read-only memory", refused, Errno::EFAULT)?;
        let refused = device.read(IOVA + 2 * PAGE - 8, 16, via);
        expect_errno("over to no memory", refused, Errno::EFAULT)?;
        let refused = device.read(nowhere, 16, via);
        expect_errno("a kernel address", refused, Errno::EFAULT)?;
        let refused = device.write(nowhere, &bytes, via);
        expect_errno("a kernel address", refused, Errno::EFAULT)?;
        device.write(IOVA + PAGE - 16, &bytes, via)?;
    }
    Ok(())
}

fn models(env: &Env) -> Verdict {
    for model in Model::BOTH {
        for which in [Which::First, Which::Deaf] {
            let session = Session::with(env, model, &[which])?;
            let memory = Memory::anon(PAGE)?;
            session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
            for via in Via::BOTH {
                session.device().write(IOVA + 5, &[7; 9], via)?;
                let read = session.device().read(IOVA + 4, 11, via)?;
                expect_eq("first byte", read[0], read[10])?;
                expect_eq("others", &read[1..10], &[7; 9])?;
                memory.fill(0x5a);
            }
        }
    }
    Ok(())
}

fn other_process(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    Child::run(|| {
        // The child's own copy is not what the device sees.
        memory.fill(0x11);
        let refused = session.device().read(IOVA, 8, Via::Task);
        expect_errno("read by a child", refused, Errno::EFAULT)?;
        let refused = session.device().write(IOVA, &[1; 8], Via::Task);
        expect_errno("written by a child", refused, Errno::EFAULT)?;

        let read = session.device().read(IOVA, 8, Via::Kthread)?;
        expect_eq("memory of the parent", read, vec![0x5a; 8])?;
        session.device().write(IOVA, &[2; 8], Via::Kthread)?;
        expect_eq("memory of the child", memory.get(0, 8), vec![0x11; 8])
    })?
    .join()?;
    expect_eq("memory of the parent", memory.get(0, 8), vec![2; 8])
}
