// SPDX-License-Identifier: GPL-2.0

//! UNMAP_DMA in both models.

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::{
    Env,
    Model,
    Session, //
};
use harness::memory::Memory;
use harness::proc::locked;
use harness::tests;
use harness::vfio::{
    unmap_arg,
    Command,
    PAGE,
    RW,
    UNMAP_ALL,
    UNMAP_VADDR, //
};
use nix::errno::Errno;

use super::IOVA;

tests! {
    "unmap.argument", "short or unreadable arguments and unknown flags are refused" => argument;
    "unmap.range", "misaligned, empty and wrapping ranges are refused" => range;
    "unmap.all_with_range", "unmap-all takes no range" => all_with_range;
    "unmap.nothing", "where nothing is, nothing is unmapped, and that is no error" => nothing;
    "unmap.v2_bisect", "type1v2 cuts no mapping" => v2_bisect;
    "unmap.v2_many", "type1v2 unmaps all mappings of a range, holes or not" => v2_many;
    "unmap.v2_wider", "type1v2 takes ranges wider than the mappings" => v2_wider;
    "unmap.all", "unmap-all unmaps all, in both models" => all;
    "unmap.v1_inside", "type1 ignores a range which starts inside a mapping" => v1_inside;
    "unmap.v1_first_byte", "type1 unmaps a mapping whole if its first page is named" => v1_first_byte;
    "unmap.v1_two", "type1 unmaps each mapping whose start is in the range" => v1_two;
    "unmap.v1_start_inside_two", "type1 stops at a mapping it would have to cut" => v1_start_inside_two;
    "unmap.again", "unmapped IOVA can be mapped again, with other sizes" => again;
}

fn argument(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;

        for argsz in [0, 16, 23] {
            let mut arg = unmap_arg(IOVA, PAGE, 0);
            arg.argsz = argsz;
            let refused = session.container.unmap_with(&mut arg);
            expect_errno("argsz too small", refused, Errno::EINVAL)?;
        }
        for bit in 3..32 {
            let refused = session.container.unmap(IOVA, PAGE, 1 << bit);
            expect_errno("unknown flag", refused, Errno::EINVAL)?;
        }
        // SAFETY: Nothing lives at address 0.
        let refused = unsafe { session.container.raw(Command::UNMAP_DMA, 0) };
        expect_errno("null pointer", refused, Errno::EFAULT)?;

        expect_eq(
            "bytes unmapped",
            session.container.unmap(IOVA, PAGE, 0)?,
            PAGE,
        )?;
    }
    Ok(())
}

fn range(env: &Env) -> Verdict {
    let memory = Memory::anon(2 * PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;
        let unmap = |iova, size| session.container.unmap(iova, size, 0);

        for off in [1, PAGE / 2, PAGE - 1] {
            expect_errno("misaligned IOVA", unmap(IOVA + off, PAGE), Errno::EINVAL)?;
            expect_errno("misaligned size", unmap(IOVA, PAGE + off), Errno::EINVAL)?;
        }
        expect_errno("size 0", unmap(IOVA, 0), Errno::EINVAL)?;
        expect_errno("size 0 at 0", unmap(0, 0), Errno::EINVAL)?;
        let wraps = unmap(IOVA, IOVA.wrapping_neg() + PAGE);
        expect_errno("range wraps", wraps, Errno::EOVERFLOW)?;
        let wraps = unmap(PAGE.wrapping_neg(), 2 * PAGE);
        expect_errno("range wraps", wraps, Errno::EOVERFLOW)?;

        expect_eq("bytes unmapped", unmap(IOVA, 2 * PAGE)?, 2 * PAGE)?;
    }
    Ok(())
}

fn all_with_range(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
        for flags in [UNMAP_ALL, UNMAP_ALL | UNMAP_VADDR] {
            for (iova, size) in [
                (IOVA, 0),
                (0, PAGE),
                (IOVA, PAGE),
                (0, 0u64.wrapping_sub(PAGE)),
            ] {
                let refused = session.container.unmap(iova, size, flags);
                expect_errno("unmap-all with a range", refused, Errno::EINVAL)?;
            }
        }
        expect_eq("bytes unmapped", session.container.unmap_all()?, PAGE)?;
    }
    Ok(())
}

fn nothing(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        expect_eq("bytes unmapped", session.container.unmap(IOVA, PAGE, 0)?, 0)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, 0)?;
        expect_eq(
            "bytes invalidated",
            session.container.unmap(IOVA, PAGE, UNMAP_VADDR)?,
            0,
        )?;

        session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
        for iova in [IOVA - PAGE, IOVA + PAGE] {
            expect_eq("bytes unmapped", session.container.unmap(iova, PAGE, 0)?, 0)?;
        }
        expect_eq("bytes unmapped", session.container.unmap_all()?, PAGE)?;
    }
    Ok(())
}

/// Maps eight pages at page 8 and eight at page 24 of the test's IOVA.
#[track_caller]
fn two_mappings(session: &Session<'_>, memory: &Memory) -> Verdict {
    session
        .container
        .map(IOVA + 8 * PAGE, memory.vaddr(), 8 * PAGE, RW)?;
    session
        .container
        .map(IOVA + 24 * PAGE, memory.vaddr() + 8 * PAGE, 8 * PAGE, RW)?;
    Ok(())
}

/// Unmaps by page numbers, and returns pages.
#[track_caller]
fn unmap_pages(session: &Session<'_>, first: u64, pages: u64) -> Verdict<u64> {
    Ok(session
        .container
        .unmap(IOVA + first * PAGE, pages * PAGE, 0)?
        / PAGE)
}

fn v2_bisect(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(16 * PAGE)?;
    two_mappings(&session, &memory)?;
    let before = locked()?;

    for (first, pages, why) in [
        (8, 1, "first page"),
        (8, 7, "all but the last page"),
        (9, 7, "all but the first page"),
        (15, 1, "last page"),
        (10, 2, "middle"),
        (0, 9, "from before into it"),
        (12, 12, "from inside to behind"),
        (8, 17, "one whole and a page of the next"),
        (15, 17, "a page and the next whole"),
        (12, 16, "from one into the other"),
    ] {
        for flags in [0, UNMAP_VADDR] {
            let (iova, size) = (IOVA + first * PAGE, pages * PAGE);
            let refused = session.container.unmap(iova, size, flags);
            expect_errno(why, refused, Errno::EINVAL)?;
        }
    }
    expect_eq("locked memory after refused unmaps", locked()?, before)?;
    expect_eq("pages unmapped", unmap_pages(&session, 8, 8)?, 8)?;
    expect_eq("pages unmapped", unmap_pages(&session, 24, 8)?, 8)
}

fn v2_many(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(16 * PAGE)?;
    let before = locked()?;
    for n in 0..16 {
        let iova = IOVA + (n + n / 4) * PAGE;
        session
            .container
            .map(iova, memory.vaddr() + n * PAGE, PAGE, RW)?;
    }
    expect_eq("pages unmapped", unmap_pages(&session, 2, 10)?, 8)?;
    expect_eq("locked memory", locked()?, before + 8 * PAGE)?;
    expect_eq("pages unmapped", unmap_pages(&session, 0, 20)?, 8)?;
    expect_eq("locked memory", locked()?, before)
}

fn v2_wider(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(16 * PAGE)?;
    two_mappings(&session, &memory)?;
    expect_eq("pages unmapped", unmap_pages(&session, 0, 20)?, 8)?;
    expect_eq("pages unmapped", unmap_pages(&session, 17, 1 << 20)?, 8)?;

    two_mappings(&session, &memory)?;
    let everything = 0u64.wrapping_sub(PAGE);
    let unmapped = session.container.unmap(PAGE, everything, 0)?;
    expect_eq("bytes unmapped up to the very end", unmapped, 16 * PAGE)
}

fn all(env: &Env) -> Verdict {
    let memory = Memory::anon(16 * PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let before = locked()?;
        two_mappings(&session, &memory)?;
        session
            .container
            .map(session.last_page()?, memory.vaddr(), PAGE, RW)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, 17 * PAGE)?;
        expect_eq("locked memory", locked()?, before)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, 0)?;
    }
    Ok(())
}

fn v1_inside(env: &Env) -> Verdict {
    let session = env.open(Model::V1)?;
    let memory = Memory::anon(16 * PAGE)?;
    two_mappings(&session, &memory)?;
    let before = locked()?;

    for (first, pages) in [(9, 1), (9, 7), (15, 1), (9, 4), (12, 8)] {
        let unmapped = unmap_pages(&session, first, pages)?;
        expect_eq(
            format_args!("pages unmapped of {pages} at {first}"),
            unmapped,
            0,
        )?;
    }
    expect_eq("locked memory", locked()?, before)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, 16 * PAGE)
}

fn v1_first_byte(env: &Env) -> Verdict {
    let memory = Memory::anon(16 * PAGE)?;
    for (first, pages) in [(8, 1), (8, 7), (8, 8), (0, 9), (7, 2), (0, 12)] {
        let session = env.open(Model::V1)?;
        two_mappings(&session, &memory)?;
        let before = locked()?;
        let unmapped = unmap_pages(&session, first, pages)?;
        expect_eq(
            format_args!("pages unmapped by {pages} at {first}"),
            unmapped,
            8,
        )?;
        expect_eq("locked memory", locked()?, before - 8 * PAGE)?;
        expect_eq("bytes unmapped", session.container.unmap_all()?, 8 * PAGE)?;
    }
    Ok(())
}

fn v1_two(env: &Env) -> Verdict {
    let memory = Memory::anon(16 * PAGE)?;
    for (first, pages) in [(8, 17), (8, 24), (0, 25), (0, 40)] {
        let session = env.open(Model::V1)?;
        two_mappings(&session, &memory)?;
        let unmapped = unmap_pages(&session, first, pages)?;
        expect_eq(
            format_args!("pages unmapped by {pages} at {first}"),
            unmapped,
            16,
        )?;
    }
    Ok(())
}

fn v1_start_inside_two(env: &Env) -> Verdict {
    let session = env.open(Model::V1)?;
    let memory = Memory::anon(16 * PAGE)?;
    two_mappings(&session, &memory)?;
    for (first, pages) in [(9, 23), (15, 17), (12, 16)] {
        let unmapped = unmap_pages(&session, first, pages)?;
        expect_eq(
            format_args!("pages unmapped by {pages} at {first}"),
            unmapped,
            0,
        )?;
    }
    expect_eq("bytes unmapped", session.container.unmap_all()?, 16 * PAGE)
}

fn again(env: &Env) -> Verdict {
    let memory = Memory::anon(64 * PAGE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        for pages in [1, 64, 3, 33, 64, 2] {
            for n in 0..64 / pages {
                let offset = n * pages * PAGE;
                let vaddr = memory.vaddr() + offset;
                session
                    .container
                    .map(IOVA + offset, vaddr, pages * PAGE, RW)?;
            }
            let want = 64 / pages * pages;
            expect_eq("pages unmapped", unmap_pages(&session, 0, 64)?, want)?;
        }
    }
    Ok(())
}
