// SPDX-License-Identifier: GPL-2.0

//! MAP_DMA: what it refuses, and that a refusal changes nothing.

use harness::check::{
    expect_eq,
    expect_errno,
    Stop,
    Verdict, //
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
    locked,
    Child, //
};
use harness::tests;
use harness::vfio::{
    map_arg,
    Command,
    MAP_VADDR,
    PAGE,
    READ,
    RW,
    WRITE, //
};
use nix::errno::Errno;

use super::IOVA;

tests! {
    "map.argument", "short or unreadable arguments and unknown flags are refused" => argument;
    "map.protection", "either a protection or the address update, never both or none" => protection;
    "map.size_zero", "nothing cannot be mapped" => size_zero;
    "map.wrap", "ranges must not wrap around" => wrap;
    "map.misaligned", "IOVA, address and size are page aligned" => misaligned;
    "map.overlap", "no byte is mapped twice; neighbours may touch" => overlap;
    "map.outside", "mappings lie inside one usable range" => outside;
    "map.last_page", "the last usable page can be mapped" => last_page;
    "map.bad_address", "no access to the memory is EFAULT" => bad_address;
    "map.hole", "a range with a hole is mapped not at all" => hole;
    "map.read_only", "read-only memory is mapped for reading only" => read_only;
    "map.memlock", "RLIMIT_MEMLOCK holds without CAP_IPC_LOCK, to the page" => memlock;
    "map.entry_limit", "dma_entry_limit holds" => entry_limit;
    "map.entry_limit_at_open", "dma_entry_limit is read when the container is set up" => entry_limit_at_open;
    "map.disable_hugepages", "disable_hugepages changes no result" => disable_hugepages;
}

/// A size no machine has memory for, so that a wrong check shows.
const HUGE: u64 = 1 << 62;

fn argument(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let good = map_arg(IOVA, memory.vaddr(), PAGE, RW);

        for argsz in [0, 24, good.argsz - 1] {
            let mut arg = good;
            arg.argsz = argsz;
            expect_errno(
                "argsz too small",
                session.container.map_with(arg),
                Errno::EINVAL,
            )?;
        }
        for bit in 3..32 {
            let mut arg = good;
            arg.flags |= 1 << bit;
            expect_errno(
                "unknown flag",
                session.container.map_with(arg),
                Errno::EINVAL,
            )?;
        }
        // SAFETY: Nothing lives at address 0.
        let refused = unsafe { session.container.raw(Command::MAP_DMA, 0) };
        expect_errno("null pointer", refused, Errno::EFAULT)?;

        let mut longer = good;
        longer.argsz += 32;
        session.container.map_with(longer)?;
    }
    Ok(())
}

fn protection(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        for flags in [0, MAP_VADDR | READ, MAP_VADDR | WRITE, MAP_VADDR | RW] {
            let refused = session.container.map(IOVA, memory.vaddr(), PAGE, flags);
            expect_errno("protection", refused, Errno::EINVAL)?;
        }
        for flags in [READ, WRITE, RW] {
            session.container.map(IOVA, memory.vaddr(), PAGE, flags)?;
            session.container.unmap(IOVA, PAGE, 0)?;
        }
    }
    Ok(())
}

fn size_zero(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(PAGE)?;
    for (iova, vaddr) in [(IOVA, memory.vaddr()), (0, 0), (u64::MAX, u64::MAX)] {
        let refused = session.container.map(iova, vaddr, 0, RW);
        expect_errno("size 0", refused, Errno::EINVAL)?;
    }
    Ok(())
}

fn wrap(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let vaddr = Memory::anon(2 * PAGE)?.vaddr();
    let top = PAGE.wrapping_neg();

    let cases = [
        (top, vaddr, 2 * PAGE, "IOVA wraps"),
        (PAGE, vaddr, u64::MAX, "IOVA wraps by one byte"),
        (IOVA, top, 2 * PAGE, "address wraps"),
        (
            0,
            PAGE,
            0u64.wrapping_sub(PAGE) + 1,
            "address wraps by one byte",
        ),
    ];
    for (iova, at, size, why) in cases {
        let refused = session.container.map(iova, at, size, RW);
        expect_errno(why, refused, Errno::EOVERFLOW)?;
        // Looked at before the protection and the alignment.
        let refused = session.container.map(iova + 1, at, size, 0);
        expect_errno(
            format_args!("{why}, with other errors"),
            refused,
            Errno::EOVERFLOW,
        )?;
    }
    Ok(())
}

fn misaligned(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let vaddr = Memory::anon(4 * PAGE)?.vaddr();
    for off in [1, 8, 512, PAGE / 2, PAGE - 1] {
        for (iova, at, size) in [
            (IOVA + off, vaddr, PAGE),
            (IOVA, vaddr + off, PAGE),
            (IOVA, vaddr, PAGE + off),
            (IOVA, vaddr, off),
            (IOVA + off, vaddr + off, PAGE),
        ] {
            let refused = session.container.map(iova, at, size, RW);
            expect_errno("misaligned", refused, Errno::EINVAL)?;
        }
    }
    Ok(())
}

fn overlap(env: &Env) -> Verdict {
    let memory = Memory::anon(8 * PAGE)?;
    let vaddr = memory.vaddr();

    for model in Model::BOTH {
        let session = env.open(model)?;
        let map = |first: u64, pages: u64| {
            session
                .container
                .map(IOVA + first * PAGE, vaddr, pages * PAGE, RW)
        };
        map(4, 4)?;
        let before = locked()?;
        for (first, pages, why) in [
            (4, 4, "the same range"),
            (4, 1, "its first page"),
            (7, 1, "its last page"),
            (5, 2, "its middle"),
            (3, 2, "over its start"),
            (7, 2, "over its end"),
            (0, 12, "all around it"),
        ] {
            expect_errno(why, map(first, pages), Errno::EEXIST)?;
        }
        // Looked at before the memory.
        let refused = session.container.map(IOVA + 4 * PAGE, 0, PAGE, RW);
        expect_errno("overlap, with a bad address", refused, Errno::EEXIST)?;
        expect_eq("locked memory after refused maps", locked()?, before)?;

        map(3, 1)?;
        map(8, 1)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, 6 * PAGE)?;
    }
    Ok(())
}

fn outside(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(4 * PAGE)?;
    let map = |iova, size| session.container.map(iova, memory.vaddr(), size, READ);

    for (_, last) in session.info()?.iova {
        if let Some(behind) = last.checked_add(1) {
            expect_errno("behind a usable range", map(behind, PAGE), Errno::EINVAL)?;
            let over = map(behind - PAGE, 2 * PAGE);
            expect_errno("over the end of a usable range", over, Errno::EINVAL)?;
        }
    }
    // Looked at before the memory.
    let refused = session.container.map(0, PAGE, HUGE, READ);
    expect_errno("larger than any range", refused, Errno::EINVAL)
}

fn last_page(env: &Env) -> Verdict {
    let memory = Memory::anon(2 * PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let iova = session.last_page()?;

        session.container.map(iova, memory.vaddr(), PAGE, RW)?;
        let refused = session.container.map(iova, memory.vaddr(), PAGE, RW);
        expect_errno("mapped already", refused, Errno::EEXIST)?;
        expect_eq(
            "bytes unmapped",
            session.container.unmap(iova, PAGE, 0)?,
            PAGE,
        )?;

        session
            .container
            .map(iova - PAGE, memory.vaddr(), 2 * PAGE, RW)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, 2 * PAGE)?;

        // A range may end with the last address there is.
        session.container.map(iova, memory.vaddr(), PAGE, RW)?;
        let to_the_end = iova.wrapping_neg();
        let unmapped = session.container.unmap(iova, to_the_end, 0)?;
        expect_eq("bytes unmapped to the very end", unmapped, PAGE)?;
    }
    Ok(())
}

fn bad_address(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    let inaccessible = Memory::anon(4 * PAGE)?;
    inaccessible.protect(0, 4 * PAGE, libc::PROT_NONE)?;
    let gone = Memory::anon(4 * PAGE)?.vaddr();

    for model in Model::BOTH {
        let session = env.open(model)?;
        let before = locked()?;
        for (vaddr, why) in [
            (0, "address 0"),
            (gone, "no memory there"),
            (inaccessible.vaddr(), "memory without access"),
            (1 << 63, "a kernel address"),
        ] {
            for flags in [READ, WRITE, RW] {
                let refused = session.container.map(IOVA, vaddr, 4 * PAGE, flags);
                expect_errno(why, refused, Errno::EFAULT)?;
            }
        }
        expect_eq("locked memory", locked()?, before)?;
        session.expect_free(IOVA, memory.vaddr(), memory.len())?;
    }
    Ok(())
}

fn hole(env: &Env) -> Verdict {
    // Enough pages that several batches have gone through before the hole is met.
    let memory = Memory::anon(8 * MIB)?;
    let whole = Memory::anon(8 * MIB)?;
    let before = locked()?;
    for hole in [0, PAGE, 4 * MIB, 4 * MIB + 3 * PAGE, 8 * MIB - PAGE] {
        let session = env.open(Model::V2)?;
        memory.protect(hole, PAGE, libc::PROT_NONE)?;
        let refused = session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW);
        expect_errno(format_args!("hole at {hole:#x}"), refused, Errno::EFAULT)?;
        expect_eq("locked memory", locked()?, before)?;
        memory.protect(hole, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;

        session.expect_free(IOVA, whole.vaddr(), whole.len())?;
        session.expect_free(IOVA, memory.vaddr(), memory.len())?;
    }
    Ok(())
}

fn read_only(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(4 * PAGE)?;
    memory.protect(0, memory.len(), libc::PROT_READ)?;

    for flags in [WRITE, RW] {
        let refused = session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), flags);
        expect_errno("read-only memory", refused, Errno::EFAULT)?;
    }
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), READ)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, memory.len(), 0)?,
        memory.len(),
    )
}

fn memlock(env: &Env) -> Verdict {
    const LIMIT: u64 = 16 * PAGE;
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(MIB)?;

    Child::run(|| {
        become_limited(LIMIT)?;
        let map = |iova, size| session.container.map(iova, memory.vaddr(), size, RW);
        let before = locked()?;
        expect_eq("locked memory of a new process", before, 0)?;

        for size in [LIMIT + PAGE, MIB] {
            expect_errno("more than the limit", map(IOVA, size), Errno::ENOMEM)?;
            expect_eq("locked memory after a refused map", locked()?, 0)?;
        }
        map(IOVA, LIMIT)?;
        expect_eq("locked memory", locked()?, LIMIT)?;
        let one_more = map(IOVA + MIB, PAGE);
        expect_errno("one page more than the limit", one_more, Errno::ENOMEM)?;
        expect_eq("locked memory after a refused map", locked()?, LIMIT)?;

        session.container.unmap(IOVA, LIMIT, 0)?;
        map(IOVA, LIMIT - PAGE)?;
        map(IOVA + MIB, PAGE)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, LIMIT)?;
        expect_eq("locked memory after unmap-all", locked()?, 0)
    })?
    .join()?;

    // With CAP_IPC_LOCK the limit does not matter.
    if nix::unistd::Uid::effective().is_root() {
        Child::run(|| {
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, 0, 0)?;
            session.container.map(IOVA, memory.vaddr(), MIB, RW)?;
            expect_eq("locked memory", locked()?, MIB)?;
            session.container.unmap_all()?;
            Ok(())
        })?
        .join()?;
    }
    Ok(())
}

fn entry_limit(env: &Env) -> Verdict {
    const LIMIT: u64 = 3;
    let memory = Memory::anon(PAGE)?;
    let parameter = env.parameter("dma_entry_limit")?;
    for model in Model::BOTH {
        parameter.set(&LIMIT.to_string())?;
        let session = env.open(model)?;
        parameter.set(parameter.original())?;

        let map = |n| {
            session
                .container
                .map(IOVA + n * PAGE, memory.vaddr(), PAGE, RW)
        };
        for n in 0..LIMIT {
            map(n)?;
        }
        expect_eq("budget", session.info()?.dma_avail, 0)?;
        let before = locked()?;
        expect_errno("budget used up", map(LIMIT), Errno::ENOSPC)?;
        expect_errno("overlap comes first", map(0), Errno::EEXIST)?;
        let far = session.last_page()?.checked_add(PAGE);
        if let Some(behind) = far {
            let refused = session.container.map(behind, memory.vaddr(), PAGE, RW);
            expect_errno("budget comes before place", refused, Errno::ENOSPC)?;
        }
        expect_eq("locked memory", locked()?, before)?;

        session.container.unmap(IOVA, PAGE, 0)?;
        map(LIMIT)?;
        expect_errno("budget used up again", map(0), Errno::ENOSPC)?;
    }
    Ok(())
}

fn entry_limit_at_open(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    let parameter = env.parameter("dma_entry_limit")?;
    let limit: u32 = parameter.original().parse().map_err(Stop::fail)?;

    let session = env.open(Model::V2)?;
    parameter.set("1")?;
    expect_eq(
        "budget of the older container",
        session.info()?.dma_avail,
        limit,
    )?;
    for n in 0..4 {
        session
            .container
            .map(IOVA + n * PAGE, memory.vaddr(), PAGE, RW)?;
    }
    Ok(())
}

fn disable_hugepages(env: &Env) -> Verdict {
    let parameter = env.parameter("disable_hugepages")?;
    let memory = Memory::unpopulated(4 * MIB)?;
    memory.fill(1);
    let before = locked()?;
    for (value, model) in [("Y", Model::V1), ("Y", Model::V2), ("N", Model::V2)] {
        parameter.set(value)?;
        let session = env.open(model)?;
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        expect_eq("locked memory", locked()?, before + memory.len())?;
        let unmapped = session.container.unmap(IOVA, memory.len(), 0)?;
        expect_eq("bytes unmapped", unmapped, memory.len())?;
        expect_eq("locked memory after unmap", locked()?, before)?;
    }
    Ok(())
}
