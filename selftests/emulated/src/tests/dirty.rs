// SPDX-License-Identifier: GPL-2.0

//! Dirty pages of devices that reach memory through their drivers only.

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::emulated::{
    Session,
    Via, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::tests;
use harness::vfio::{
    unmap_dirty_arg,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    READ,
    RW, //
};

use nix::errno::Errno;

use super::IOVA;

tests! {
    "dirty.pinned", "what is pinned is dirty, each time, and once more when unpinned" => pinned;
    "dirty.written", "what a driver writes is dirty, once" => written;
    "dirty.restart", "starting again forgets what was dirty" => restart;
    "dirty.map_while_on", "a new mapping is clean until somebody pins" => map_while_on;
    "dirty.two_mappings", "each mapping has its own log" => two_mappings;
    "dirty.unmap", "unmapping reports what was pinned until then" => unmap;
    "dirty.unmap_refused", "what could not be reported stays mapped, and in use" => unmap_refused;
}

const PAGES: u64 = 100;

/// A container with one mapping of 100 pages.
fn mapped(env: &Env) -> Verdict<(Session, Memory)> {
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(PAGES * PAGE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    Ok((session, memory))
}

/// The pages that are set.
fn set_in(words: &[u64]) -> Vec<u64> {
    (0..words.len() as u64 * 64)
        .filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 == 1)
        .collect()
}

#[track_caller]
fn expect_dirty(session: &Session, want: &[u64]) -> Verdict {
    let mut words = [0; 2];
    session
        .container
        .dirty_get(IOVA, PAGES * PAGE, &mut words)?;
    expect_eq("dirty pages", set_in(&words), want.to_vec())
}

fn pinned(env: &Env) -> Verdict {
    let (session, _memory) = mapped(env)?;
    let device = session.device();
    device.pinned(IOVA + PAGE, 1)?;
    device.pinned(IOVA + 70 * PAGE, 3)?;
    session.container.dirty(DIRTY_START)?;
    for _ in 0..3 {
        expect_dirty(&session, &[1, 70, 71, 72])?;
    }

    device.pinned(IOVA + 99 * PAGE, 1)?;
    expect_dirty(&session, &[1, 70, 71, 72, 99])?;
    // They may have been written to until now, and again no more.
    device.unpin(IOVA + 71 * PAGE, 2)?;
    expect_dirty(&session, &[1, 70, 71, 72, 99])?;
    expect_dirty(&session, &[1, 70, 99])?;

    // Pinned and unpinned in between.
    device.pinned(IOVA + 10 * PAGE, 2)?;
    device.unpin(IOVA + 10 * PAGE, 2)?;
    expect_dirty(&session, &[1, 10, 11, 70, 99])?;
    expect_dirty(&session, &[1, 70, 99])?;

    // One of two users lets go.
    device.pinned(IOVA + 70 * PAGE, 1)?;
    device.unpin(IOVA + 70 * PAGE, 1)?;
    expect_dirty(&session, &[1, 70, 99])?;
    expect_dirty(&session, &[1, 70, 99])
}

fn written(env: &Env) -> Verdict {
    let (session, _memory) = mapped(env)?;
    let device = session.device();
    session.container.dirty(DIRTY_START)?;
    expect_dirty(&session, &[])?;
    for via in Via::BOTH {
        device.write(IOVA + 3 * PAGE, &[1], via)?;
        device.write(IOVA + 65 * PAGE - 1, &[1; 2], via)?;
        device.write(IOVA + 80 * PAGE + 5, &vec![1; 2 * PAGE as usize], via)?;
        expect_dirty(&session, &[3, 64, 65, 80, 81, 82])?;
        expect_dirty(&session, &[])?;

        device.read(IOVA, 8 * PAGE as u32, via)?;
        expect_dirty(&session, &[])?;
    }

    device.pinned(IOVA + 50 * PAGE, 1)?;
    device.write(IOVA + 49 * PAGE, &vec![1; 2 * PAGE as usize], Via::Task)?;
    expect_dirty(&session, &[49, 50])?;
    expect_dirty(&session, &[50])
}

fn restart(env: &Env) -> Verdict {
    let (session, _memory) = mapped(env)?;
    let device = session.device();
    session.container.dirty(DIRTY_START)?;
    device.write(IOVA, &[1], Via::Task)?;
    device.pinned(IOVA + 2 * PAGE, 2)?;
    device.unpin(IOVA + 2 * PAGE, 1)?;
    // No change while tracking is on.
    session.container.dirty(DIRTY_START)?;
    expect_dirty(&session, &[0, 2, 3])?;

    device.write(IOVA, &[1], Via::Task)?;
    session.container.dirty(DIRTY_STOP)?;
    device.write(IOVA + PAGE, &[1], Via::Task)?;
    device.pinned(IOVA + 5 * PAGE, 1)?;
    session.container.dirty(DIRTY_START)?;
    expect_dirty(&session, &[3, 5])
}

fn map_while_on(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(PAGES * PAGE)?;
    session.container.dirty(DIRTY_START)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    expect_dirty(&session, &[])?;
    device.pin(IOVA + 63 * PAGE, 2, READ)??;
    expect_dirty(&session, &[63, 64])
}

fn two_mappings(env: &Env) -> Verdict {
    let session = Session::open(env, Model::V2)?;
    let device = session.device();
    let memory = Memory::anon(PAGES * PAGE)?;
    // The border is in the middle of a word.
    for (first, pages) in [(0, 40), (40, 60)] {
        let offset = first * PAGE;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, pages * PAGE, RW)?;
    }
    session.container.dirty(DIRTY_START)?;
    device.pinned(IOVA + 38 * PAGE, 4)?;
    device.write(IOVA + 90 * PAGE, &[1], Via::Kthread)?;
    expect_dirty(&session, &[38, 39, 40, 41, 90])?;

    let mut word = [0];
    session
        .container
        .dirty_get(IOVA + 40 * PAGE, 60 * PAGE, &mut word)?;
    expect_eq(
        "dirty pages of the second mapping",
        set_in(&word),
        vec![0, 1],
    )
}

fn unmap(env: &Env) -> Verdict {
    let (session, _memory) = mapped(env)?;
    let device = session.device();
    session.container.dirty(DIRTY_START)?;
    device.pinned(IOVA + 7 * PAGE, 2)?;
    device.write(IOVA + 77 * PAGE, &[1], Via::Task)?;

    let mut words = [0; 2];
    let mut arg = unmap_dirty_arg(IOVA, PAGES * PAGE, &mut words);
    // SAFETY: The bitmap is `words`.
    unsafe { session.container.unmap_dirty(&mut arg) }?;
    expect_eq("bytes unmapped", arg.unmap.size, PAGES * PAGE)?;
    expect_eq("pages pinned", device.counters()?.pages, 0)?;
    expect_eq("dirty pages", set_in(&words), vec![7, 8, 77])
}

fn unmap_refused(env: &Env) -> Verdict {
    let (session, memory) = mapped(env)?;
    let device = session.device();
    session.container.dirty(DIRTY_START)?;
    device.write(IOVA + 7 * PAGE, &[1], Via::Task)?;

    let gone = Memory::anon(PAGE)?;
    let mut arg = unmap_dirty_arg(IOVA, PAGES * PAGE, &mut [0; 2]);
    arg.bitmap.data = gone.vaddr() as *mut u64;
    drop(gone);
    // SAFETY: Nothing is mapped where the bitmap is to be.
    let refused = unsafe { session.container.unmap_dirty(&mut arg) };
    expect_errno("a bitmap that is not there", refused, Errno::EFAULT)?;

    device.pinned(IOVA + 8 * PAGE, 1)?;
    device.unpin(IOVA + 8 * PAGE, 1)?;
    device.write(IOVA + 9 * PAGE, &[0x5b], Via::Task)?;
    expect_eq("written", memory.get(9 * PAGE, 1), vec![0x5b])?;
    let unmapped = session.container.unmap(IOVA, PAGES * PAGE, 0)?;
    expect_eq("bytes unmapped", unmapped, PAGES * PAGE)
}
