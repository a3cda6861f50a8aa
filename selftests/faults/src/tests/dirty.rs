// SPDX-License-Identifier: GPL-2.0

//! DIRTY_PAGES.

use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::vfio::{
    argsz,
    dirty_get_arg,
    Command,
    DirtyGet,
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW, //
};
use nix::errno::Errno;
use vfio_bindings::bindings::vfio::vfio_iommu_type1_dirty_bitmap;

use super::{
    table,
    IOVA, //
};
use crate::call::Call;
use crate::rig::{
    Places,
    Rig,
    EMULATED,
    SOFT,
    TRACKED, //
};
use crate::sweep::{
    Sweep,
    Trial, //
};

table! {
    "emulated.dirty_start", "DIRTY_PAGES, START with several mappings" => |env| start(env, EMULATED);
    "emulated.dirty_start_large", "DIRTY_PAGES, START with mappings of many gigabytes" => start_large;
    "emulated.dirty_get", "DIRTY_PAGES, GET_BITMAP of one mapping" => |env| get(env, EMULATED, DIRTY_GET, 1);
    "emulated.dirty_stop", "DIRTY_PAGES, STOP" => |env| stop(env, EMULATED);
    "rust.dirty_get_joined", "DIRTY_PAGES, GET_BITMAP of mappings that share a word of it" => |env| get(env, EMULATED, DIRTY_GET, 2);
    "rust.dirty_start_tracked", "DIRTY_PAGES, START with an IOMMU that tracks" => |env| start(env, TRACKED);
    "rust.dirty_stop_tracked", "DIRTY_PAGES, STOP with an IOMMU that tracks" => |env| stop(env, TRACKED);
    "rust.dirty_get_tracked", "DIRTY_PAGES, GET_BITMAP with an IOMMU that tracks" => |env| get(env, TRACKED, DIRTY_GET, 2);
    "rust.dirty_no_clear", "DIRTY_PAGES, GET_BITMAP_NOCLEAR" => |env| get(env, TRACKED, DIRTY_GET_NOCLEAR, 2);
    "rust.dirty_clear", "DIRTY_PAGES, CLEAR_BITMAP" => |env| get(env, TRACKED, DIRTY_CLEAR, 2);
    "soft.dirty_start", "DIRTY_PAGES, START with several mappings" => |env| start(env, SOFT);
    "soft.dirty_stop", "DIRTY_PAGES, STOP" => |env| stop(env, SOFT);
}

const SIZE: u64 = 8 * PAGE;
const COUNT: u64 = 4;

/// A container with several mappings in a row.
fn rig(env: &Env, places: Places, memory: &Memory) -> Verdict<Rig> {
    let rig = Rig::open(env, places, Model::V2)?;
    for n in 0..COUNT {
        let at = n * SIZE;
        rig.container()?
            .map(IOVA + at, memory.vaddr() + at, SIZE, RW)?;
    }
    Ok(rig)
}

/// A call of DIRTY_PAGES with a bare header.
fn header(rig: &Rig, flags: u32) -> Verdict<Call> {
    let arg = vfio_iommu_type1_dirty_bitmap {
        argsz: argsz::<vfio_iommu_type1_dirty_bitmap>(),
        flags,
        ..Default::default()
    };
    // SAFETY: It is the argument of this ioctl with these flags.
    Ok(unsafe { Call::vfio(rig.fd()?, Command::DIRTY_PAGES, arg) })
}

fn start(env: &Env, places: Places) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    Sweep::new(env, || {
        let rig = rig(env, places, &memory)?;
        let call = header(&rig, DIRTY_START)?;
        Ok(Trial { call, rig })
    })
    .cheap(true)
    .run()
}

/// Logs too large for consecutive pages.
fn start_large(env: &Env) -> Verdict {
    const SIZE: u64 = 160 << 30;
    let memory = Memory::anon(PAGE)?;
    Sweep::new(env, || {
        let rig = Rig::open(env, EMULATED, Model::V2)?;
        for n in 0..2 {
            // Nobody looks at the memory until it is pinned.
            rig.container()?
                .map(IOVA + n * SIZE, memory.vaddr(), SIZE, RW)?;
        }
        let call = header(&rig, DIRTY_START)?;
        Ok(Trial { call, rig })
    })
    .run()
}

fn stop(env: &Env, places: Places) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    Sweep::new(env, || {
        let rig = rig(env, places, &memory)?;
        rig.container()?.dirty(DIRTY_START)?;
        let call = header(&rig, DIRTY_STOP)?;
        Ok(Trial { call, rig })
    })
    .errnos(&[Errno::EFAULT])
    .run()
}

/// The argument with the bitmap it points to.
#[repr(C)]
struct WithBitmap {
    arg: DirtyGet,
    words: Box<[u64; 1]>,
}

/// What a refused call did not tell is told by the next. A bitmap that is read stays as it is.
fn get(env: &Env, places: Places, flags: u32, mappings: u64) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    let prepare = || {
        let rig = rig(env, places, &memory)?;
        rig.container()?.dirty(DIRTY_START)?;
        for n in 0..mappings {
            rig.device()?.pinned(IOVA + n * SIZE + (n + 1) * PAGE, 2)?;
        }
        let mut words = Box::new([0]);
        let mut arg = dirty_get_arg(IOVA, mappings * SIZE, &mut *words);
        arg.head.flags = flags;
        let arg = WithBitmap { arg, words };
        // SAFETY: It begins with the argument of this ioctl, whose bitmap lies behind it.
        let call = unsafe { Call::vfio(rig.fd()?, Command::DIRTY_PAGES, arg) };
        Ok(Trial { call, rig })
    };
    let want = match flags {
        DIRTY_CLEAR => 0,
        _ => (0..mappings).map(|n| 3 << (8 * n + n + 1)).sum::<u64>(),
    };
    Sweep::new(env, prepare)
        .errnos(&[Errno::EFAULT])
        .verify(|trial, _| {
            let arg = trial.call.arg::<WithBitmap>();
            expect_eq("dirty pages", arg.words[0], want)
        })
        .run()
}
