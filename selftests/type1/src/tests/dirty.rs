// SPDX-License-Identifier: GPL-2.0

//! Dirty page tracking.
//!
//! A device behind an IOMMU without dirty bits may have written anywhere, so every page of a
//! mapping is reported dirty, every time.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::{
    Driver,
    Env,
    Model,
    Session, //
};
use harness::memory::Memory;
use harness::tests;
use harness::vfio::{
    argsz,
    dirty_get_arg,
    unmap_dirty_arg,
    Command,
    DirtyGet,
    UnmapDirty,
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW,
    UNMAP_ALL,
    UNMAP_DIRTY,
    UNMAP_VADDR, //
};
use nix::errno::Errno;

use super::IOVA;

tests! {
    "dirty.v1", "type1 has no dirty tracking, whatever the argument" => v1;
    "dirty.argument", "short or unreadable arguments and unknown flags are refused" => argument;
    "dirty.one_flag", "exactly one action at a time" => one_flag;
    "dirty.start_stop", "starting and stopping twice is no error" => start_stop;
    "dirty.get_while_off", "there is no bitmap while tracking is off" => get_while_off;
    "dirty.all_set", "all pages of a mapping are dirty, each time" => all_set;
    "dirty.get_range", "misaligned, empty and wrapping ranges are refused" => get_range;
    "dirty.get_bitmap", "bitmaps of a wrong size, page size or place are refused" => get_bitmap;
    "dirty.bisect", "the range of a bitmap cuts no mapping" => bisect;
    "dirty.shared_word", "mappings whose pages share a word of the bitmap" => shared_word;
    "dirty.holes", "words without a mapping are left alone" => holes;
    "dirty.map_while_on", "mappings made while tracking is on are tracked" => map_while_on;
    "dirty.while_invalid", "tracking goes on while an address is invalid" => while_invalid;
    "dirty.unmap", "unmapping returns the bitmap" => unmap;
    "dirty.unmap_many", "unmapping several mappings returns one bitmap" => unmap_many;
    "dirty.unmap_refused", "wrong flags, sizes and bitmaps are refused and unmap nothing" => unmap_refused;
    "dirty.unmap_fault", "a bad bitmap address stops at the mapping it is met for" => unmap_fault;
    "dirty.large", "the bitmap of a large mapping" => large;
}

/// A container with tracking on.
#[track_caller]
fn tracking(env: &Env) -> Verdict<Session<'_>> {
    let session = env.open(Model::V2)?;
    session.container.dirty(DIRTY_START)?;
    Ok(session)
}

/// Whether a page is set in a bitmap.
fn is_set(words: &[u64], page: u64) -> bool {
    words[(page / 64) as usize] >> (page % 64) & 1 == 1
}

/// Fails unless exactly the pages of `ranges` (first, count) are set.
#[track_caller]
fn expect_pages(words: &[u64], ranges: &[(u64, u64)]) -> Verdict {
    for page in 0..words.len() as u64 * 64 {
        let want = ranges
            .iter()
            .any(|&(first, count)| (first..first + count).contains(&page));
        expect_eq(
            format_args!("dirty bit of page {page}"),
            is_set(words, page),
            want,
        )?;
    }
    Ok(())
}

/// Fails unless `count` pages from `first` are set, whatever the others are.
///
/// The API says nothing of bits between mappings, and the C driver leaves some behind when a
/// bitmap is read again from another start.
#[track_caller]
fn expect_set(words: &[u64], first: u64, count: u64) -> Verdict {
    for page in first..first + count {
        expect(format_args!("page {page} is dirty"), is_set(words, page))?;
    }
    Ok(())
}

fn v1(env: &Env) -> Verdict {
    let session = env.open(Model::V1)?;
    for flags in [DIRTY_START, DIRTY_STOP, DIRTY_GET, 0, 1 << 31] {
        expect_errno("type1", session.container.dirty(flags), Errno::EACCES)?;
    }
    expect_errno(
        "short argument",
        session.container.dirty_with(0, 0),
        Errno::EACCES,
    )?;
    // SAFETY: Nothing lives at address 0.
    let refused = unsafe { session.container.raw(Command::DIRTY_PAGES, 0) };
    expect_errno("null pointer", refused, Errno::EACCES)?;

    // So a bitmap cannot be had by unmapping either.
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    let mut word = [0];
    // SAFETY: The bitmap is `word`.
    let refused = unsafe {
        session
            .container
            .unmap_dirty(&mut unmap_dirty_arg(IOVA, PAGE, &mut word))
    };
    expect_errno("unmap with bitmap", refused, Errno::EINVAL)
}

fn argument(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    for argsz in [0, 4, 7] {
        for flags in [DIRTY_START, DIRTY_STOP, DIRTY_GET] {
            let refused = session.container.dirty_with(argsz, flags);
            expect_errno("argsz too small", refused, Errno::EINVAL)?;
        }
    }
    // Bits 3 and 4 are free for extensions of the API; all above have no meaning anywhere.
    for bit in 5..32 {
        for flags in [1 << bit, DIRTY_START | 1 << bit] {
            expect_errno(
                "unknown flag",
                session.container.dirty(flags),
                Errno::EINVAL,
            )?;
        }
    }
    // Either unknown, or without its range.
    for flags in [DIRTY_GET_NOCLEAR, DIRTY_CLEAR, DIRTY_START | DIRTY_CLEAR] {
        let refused = session.container.dirty(flags);
        expect_errno("of the extension", refused, Errno::EINVAL)?;
    }
    // SAFETY: Nothing lives at address 0.
    let refused = unsafe { session.container.raw(Command::DIRTY_PAGES, 0) };
    expect_errno("null pointer", refused, Errno::EFAULT)?;

    session.container.dirty(DIRTY_START)?;
    for short in [8, 16, argsz::<DirtyGet>() - 1] {
        let refused = session.container.dirty_with(short, DIRTY_GET);
        expect_errno("no room for the range", refused, Errno::EINVAL)?;
    }
    Ok(())
}

fn one_flag(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    for flags in [
        0,
        DIRTY_START | DIRTY_STOP,
        DIRTY_START | DIRTY_GET,
        DIRTY_STOP | DIRTY_GET,
        DIRTY_START | DIRTY_STOP | DIRTY_GET,
    ] {
        expect_errno(
            "not one action",
            session.container.dirty(flags),
            Errno::EINVAL,
        )?;
    }
    // None of these has started anything.
    let refused = session.container.dirty_get(IOVA, PAGE, &mut [0]);
    expect_errno("tracking is off", refused, Errno::EINVAL)
}

fn start_stop(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(PAGE)?;
    session.container.dirty(DIRTY_STOP)?;
    for _ in 0..3 {
        session.container.dirty(DIRTY_START)?;
        session.container.dirty(DIRTY_START)?;
        session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
        session.container.dirty(DIRTY_START)?;
        let mut word = [0];
        session.container.dirty_get(IOVA, PAGE, &mut word)?;
        expect_eq("bitmap", word, [1])?;
        session.container.dirty(DIRTY_STOP)?;
        session.container.dirty(DIRTY_STOP)?;
        session.container.unmap(IOVA, PAGE, 0)?;
    }
    Ok(())
}

fn get_while_off(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    let mut word = [7];

    let refused = session.container.dirty_get(IOVA, PAGE, &mut word);
    expect_errno("never started", refused, Errno::EINVAL)?;
    session.container.dirty(DIRTY_START)?;
    session.container.dirty(DIRTY_STOP)?;
    let refused = session.container.dirty_get(IOVA, PAGE, &mut word);
    expect_errno("stopped", refused, Errno::EINVAL)?;
    expect_eq("bitmap after refused reads", word, [7])
}

fn all_set(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(200 * PAGE)?;
    for pages in [1, 63, 64, 65, 128, 200] {
        session
            .container
            .map(IOVA, memory.vaddr(), pages * PAGE, RW)?;
        session.container.dirty(DIRTY_START)?;
        for round in 0..3 {
            let mut words = [0; 4];
            session
                .container
                .dirty_get(IOVA, pages * PAGE, &mut words)?;
            expect_pages(&words, &[(0, pages)])?;
            expect(
                format_args!("{pages} pages, round {round}"),
                is_set(&words, pages - 1),
            )?;
        }
        session.container.dirty(DIRTY_STOP)?;
        session.container.unmap(IOVA, pages * PAGE, 0)?;
    }
    Ok(())
}

fn get_range(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(2 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 2 * PAGE, RW)?;
    let get = |iova, size| session.container.dirty_get(iova, size, &mut [0; 8]);

    for off in [1, PAGE / 2, PAGE - 1] {
        expect_errno("misaligned IOVA", get(IOVA + off, 2 * PAGE), Errno::EINVAL)?;
        expect_errno("misaligned size", get(IOVA, PAGE + off), Errno::EINVAL)?;
        expect_errno("less than a page", get(IOVA, off), Errno::EINVAL)?;
    }
    expect_errno("size 0", get(IOVA, 0), Errno::EINVAL)?;
    let wraps = get(PAGE.wrapping_neg(), 2 * PAGE);
    expect_errno("range wraps", wraps, Errno::EOVERFLOW)?;
    expect_errno("range wraps", get(IOVA, u64::MAX), Errno::EOVERFLOW)?;

    // Up to the last address there is, which is no wrap.
    let mut words = [7];
    session
        .container
        .dirty_get(PAGE.wrapping_neg(), PAGE, &mut words)?;
    expect_eq("bitmap of a range without mappings", words, [7])
}

fn get_bitmap(env: &Env) -> Verdict {
    const PAGES: u64 = 128;
    let session = tracking(env)?;
    let memory = Memory::anon(PAGES * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let mut words = [0u64; 4];
    let good = |words: &mut [u64]| dirty_get_arg(IOVA, PAGES * PAGE, words);
    // SAFETY: All bitmaps below are within `words`, or in no memory of this process.
    let get = |arg| unsafe { session.container.dirty_get_with(arg) };

    for size in [0, 8, 15] {
        let mut arg = good(&mut words);
        arg.range.bitmap.size = size;
        expect_errno(
            format_args!("{size} bytes for 128 pages"),
            get(arg),
            Errno::EINVAL,
        )?;
    }
    let mut arg = good(&mut words);
    arg.range.bitmap.size = (1 << 28) + 8;
    expect_errno("larger than the largest bitmap", get(arg), Errno::EINVAL)?;

    // No page size at all is an error on every driver, but the C driver gets there by shifting
    // by an undefined count.
    let none = (env.expected == Some(Driver::Rust)).then_some(0);
    for pgsize in [1, PAGE / 2, PAGE + 1, 2 * PAGE, 2 << 20, 1 << 63]
        .into_iter()
        .chain(none)
    {
        let mut arg = good(&mut words);
        arg.range.bitmap.pgsize = pgsize;
        expect_errno(
            format_args!("page size {pgsize:#x}"),
            get(arg),
            Errno::EINVAL,
        )?;
    }
    for address in [1 << 63, usize::MAX - 7] {
        let mut arg = good(&mut words);
        arg.range.bitmap.data = std::ptr::without_provenance_mut(address);
        expect_errno("kernel address", get(arg), Errno::EINVAL)?;
    }
    let mut arg = good(&mut words);
    arg.range.bitmap.data = std::ptr::null_mut();
    expect_errno("no memory there", get(arg), Errno::EFAULT)?;
    expect_eq("bitmap after refused reads", words, [0; 4])?;

    let mut arg = good(&mut words);
    arg.range.bitmap.size = PAGES / 8;
    get(arg)?;
    expect_eq(
        "bitmap of exactly the right size",
        words,
        [u64::MAX, u64::MAX, 0, 0],
    )
}

fn bisect(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(8 * PAGE)?;
    session
        .container
        .map(IOVA + 8 * PAGE, memory.vaddr(), 8 * PAGE, RW)?;
    let get = |first: u64, pages: u64, words: &mut [u64]| {
        session
            .container
            .dirty_get(IOVA + first * PAGE, pages * PAGE, words)
    };

    for (first, pages) in [(8, 1), (8, 7), (9, 7), (10, 2), (0, 9), (12, 8), (15, 1)] {
        let why = format!("{pages} pages at {first} cut the mapping");
        expect_errno(why, get(first, pages, &mut [0; 1]), Errno::EINVAL)?;
    }
    for (first, pages) in [(8, 8), (0, 16), (8, 24), (0, 40)] {
        let mut words = [0];
        get(first, pages, &mut words)?;
        expect_set(&words, 8 - first, 8)?;
    }
    Ok(())
}

fn shared_word(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(128 * PAGE)?;
    // Pages of the range: two and two in the first word, the last of them over into the second.
    let parts = [(0, 3), (3, 17), (20, 1), (30, 60)];
    for (first, pages) in parts {
        let offset = first * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, pages * PAGE, RW)?;
    }

    let mut words = [0; 2];
    session.container.dirty_get(IOVA, 128 * PAGE, &mut words)?;
    expect_pages(&words, &parts)?;
    // Again, and relative to other starts.
    for start in [0, 3, 20, 30] {
        let mut words = [0; 2];
        session
            .container
            .dirty_get(IOVA + start * PAGE, (128 - start) * PAGE, &mut words)?;
        for (first, pages) in parts.into_iter().filter(|part| part.0 >= start) {
            expect_set(&words, first - start, pages)?;
        }
    }
    Ok(())
}

fn holes(env: &Env) -> Verdict {
    const UNTOUCHED: u64 = 0x1234_5678_9abc_def0;
    let session = tracking(env)?;
    let memory = Memory::anon(64 * PAGE)?;
    session
        .container
        .map(IOVA + 128 * PAGE, memory.vaddr(), 64 * PAGE, RW)?;

    let mut words = [UNTOUCHED; 5];
    session.container.dirty_get(IOVA, 320 * PAGE, &mut words)?;
    let want = [UNTOUCHED, UNTOUCHED, u64::MAX, UNTOUCHED, UNTOUCHED];
    expect_eq("bitmap", words, want)
}

fn map_while_on(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(16 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 8 * PAGE, RW)?;
    session.container.dirty(DIRTY_START)?;
    session
        .container
        .map(IOVA + 8 * PAGE, memory.vaddr() + 8 * PAGE, 8 * PAGE, RW)?;

    let mut words = [0];
    session.container.dirty_get(IOVA, 16 * PAGE, &mut words)?;
    expect_pages(&words, &[(0, 16)])
}

fn while_invalid(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(8 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), 8 * PAGE, RW)?;
    session.container.unmap(IOVA, 8 * PAGE, UNMAP_VADDR)?;

    let mut words = [0];
    session.container.dirty_get(IOVA, 8 * PAGE, &mut words)?;
    expect_pages(&words, &[(0, 8)])?;
    session.container.dirty(DIRTY_STOP)?;
    session.container.dirty(DIRTY_START)?;
    let mut words = [0];
    session.container.dirty_get(IOVA, 8 * PAGE, &mut words)?;
    expect_pages(&words, &[(0, 8)])
}

fn unmap(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(100 * PAGE)?;
    for pages in [1, 64, 65, 100] {
        session
            .container
            .map(IOVA, memory.vaddr(), pages * PAGE, RW)?;
        let mut words = [0; 2];
        let mut arg = unmap_dirty_arg(IOVA, pages * PAGE, &mut words);
        // SAFETY: The bitmap is `words`.
        unsafe { session.container.unmap_dirty(&mut arg) }?;
        expect_eq("bytes unmapped", arg.unmap.size, pages * PAGE)?;
        expect_pages(&words, &[(0, pages)])?;
        session.expect_free(IOVA, memory.vaddr(), memory.len())?;
    }

    let mut words = [7];
    let mut arg = unmap_dirty_arg(IOVA, PAGE, &mut words);
    // SAFETY: The bitmap is `words`.
    unsafe { session.container.unmap_dirty(&mut arg) }?;
    expect_eq("bytes unmapped where nothing was", arg.unmap.size, 0)?;
    expect_eq("bitmap of nothing", words, [7])
}

fn unmap_many(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(128 * PAGE)?;
    let parts = [(1, 2), (3, 10), (40, 30), (100, 28)];
    for (first, pages) in parts {
        let offset = first * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, pages * PAGE, RW)?;
    }
    let mut words = [0; 2];
    let mut arg = unmap_dirty_arg(IOVA, 128 * PAGE, &mut words);
    // SAFETY: The bitmap is `words`.
    unsafe { session.container.unmap_dirty(&mut arg) }?;
    expect_eq("bytes unmapped", arg.unmap.size, 70 * PAGE)?;
    expect_pages(&words, &parts)
}

fn unmap_refused(env: &Env) -> Verdict {
    const PAGES: u64 = 128;
    let session = tracking(env)?;
    let memory = Memory::anon(PAGES * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let mut words = [0u64; 4];
    let good = |words: &mut [u64]| unmap_dirty_arg(IOVA, PAGES * PAGE, words);
    let refused = |why: String, mut arg: UnmapDirty, want| {
        // SAFETY: All bitmaps below are within `words`, or in no memory of this process.
        let got = unsafe { session.container.unmap_dirty(&mut arg) };
        expect_errno(why, got, want)
    };

    for flags in [UNMAP_DIRTY | UNMAP_ALL, UNMAP_DIRTY | UNMAP_VADDR] {
        let mut arg = good(&mut words);
        arg.unmap.flags = flags;
        refused(format!("flags {flags}"), arg, Errno::EINVAL)?;
    }
    for short in [24, 40, argsz::<UnmapDirty>() - 1] {
        let mut arg = good(&mut words);
        arg.unmap.argsz = short;
        refused(format!("argsz {short}"), arg, Errno::EINVAL)?;
    }
    for size in [0, 8, 15, (1 << 28) + 8] {
        let mut arg = good(&mut words);
        arg.bitmap.size = size;
        refused(format!("bitmap of {size} bytes"), arg, Errno::EINVAL)?;
    }
    let none = (env.expected == Some(Driver::Rust)).then_some(0);
    for pgsize in [PAGE / 2, 2 * PAGE, 2 << 20].into_iter().chain(none) {
        let mut arg = good(&mut words);
        arg.bitmap.pgsize = pgsize;
        refused(format!("page size {pgsize:#x}"), arg, Errno::EINVAL)?;
    }
    let mut arg = good(&mut words);
    arg.bitmap.data = std::ptr::without_provenance_mut(1 << 63);
    refused("kernel address".into(), arg, Errno::EINVAL)?;
    let mut arg = good(&mut words);
    arg.unmap.size = PAGE * (PAGES - 1);
    refused("the range cuts the mapping".into(), arg, Errno::EINVAL)?;

    session.container.dirty(DIRTY_STOP)?;
    refused("tracking is off".into(), good(&mut words), Errno::EINVAL)?;
    expect_eq(
        "bytes still mapped",
        session.container.unmap_all()?,
        PAGES * PAGE,
    )?;
    expect_eq("bitmap after refused unmaps", words, [0; 4])
}

fn unmap_fault(env: &Env) -> Verdict {
    let session = tracking(env)?;
    let memory = Memory::anon(128 * PAGE)?;
    for n in 0..2 {
        let offset = n * 64 * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, 64 * PAGE, RW)?;
    }
    // The word of the first mapping ends a page, the word of the second would start another.
    let bitmap = Memory::anon(2 * PAGE)?;
    bitmap.fill(0);
    bitmap.protect(PAGE, PAGE, libc::PROT_NONE)?;

    let mut arg = unmap_dirty_arg(IOVA, 128 * PAGE, &mut []);
    arg.bitmap.size = 16;
    let place = bitmap.vaddr() + PAGE - 8;
    arg.bitmap.data = std::ptr::with_exposed_provenance_mut(place as usize);
    // SAFETY: The first word is memory of `bitmap`, the second cannot be written.
    let refused = unsafe { session.container.unmap_dirty(&mut arg) };
    expect_errno("no access to the second word", refused, Errno::EFAULT)?;
    expect_eq("size field after an error", arg.unmap.size, 128 * PAGE)?;
    expect_eq(
        "word of the first mapping",
        bitmap.read::<u64>(PAGE - 8),
        u64::MAX,
    )?;

    session.expect_free(IOVA, memory.vaddr(), 64 * PAGE)?;
    expect_eq(
        "bytes still mapped",
        session.container.unmap_all()?,
        64 * PAGE,
    )
}

fn large(env: &Env) -> Verdict {
    const PAGES: u64 = 64 << 8;
    let session = tracking(env)?;
    let memory = Memory::unpopulated(PAGES * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let mut words = vec![0; PAGES as usize / 64 + 1];
    session
        .container
        .dirty_get(IOVA, memory.len(), &mut words)?;
    expect_pages(&words, &[(0, PAGES)])
}
