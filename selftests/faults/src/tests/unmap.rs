// SPDX-License-Identifier: GPL-2.0

//! UNMAP_DMA.

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
    unmap_arg,
    unmap_dirty_arg,
    Command,
    UnmapDirty,
    DIRTY_START,
    PAGE,
    RW,
    UNMAP_ALL,
    UNMAP_VADDR, //
};
use nix::errno::Errno;
use vfio_bindings::bindings::vfio::vfio_iommu_type1_dma_unmap;

use super::{
    table,
    IOVA, //
};
use crate::call::Call;
use crate::rig::{
    Places,
    Rig,
    EMULATED,
    MIXED,
    PCI,
    SOFT,
    TWO_SOFT, //
};
use crate::sweep::{
    Effect,
    Sweep,
    Trial, //
};

table! {
    "emulated.unmap", "UNMAP_DMA of memory that is not pinned" => |env| unmap(env, EMULATED, One);
    "emulated.unmap_pinned", "UNMAP_DMA of pages that a driver has pinned" => pinned;
    "emulated.unmap_dirty", "UNMAP_DMA with GET_DIRTY_BITMAP" => |env| dirty(env, EMULATED, 1);
    "rust.unmap_dirty_joined", "UNMAP_DMA with GET_DIRTY_BITMAP of mappings that share a word of it" => |env| dirty(env, EMULATED, COUNT);
    "soft.unmap", "UNMAP_DMA" => |env| unmap(env, SOFT, One);
    "soft.unmap_many", "UNMAP_DMA of several mappings" => |env| unmap(env, SOFT, Many);
    "soft.unmap_all", "UNMAP_DMA with ALL" => |env| unmap(env, SOFT, All);
    "soft.unmap_vaddr", "UNMAP_DMA with VADDR" => |env| unmap(env, SOFT, Vaddr);
    "soft.unmap_two", "UNMAP_DMA in two domains" => |env| unmap(env, TWO_SOFT, Many);
    "soft.unmap_mixed", "UNMAP_DMA with a group of either kind" => |env| unmap(env, MIXED, Many);
    "soft.unmap_dirty", "UNMAP_DMA with GET_DIRTY_BITMAP" => |env| dirty(env, SOFT, 1);
    "rust.unmap_dirty_mapped", "UNMAP_DMA with GET_DIRTY_BITMAP of mappings in an IOMMU" => |env| dirty(env, SOFT, COUNT);
    "pci.unmap", "UNMAP_DMA of several mappings" => |env| unmap(env, PCI, Many);
}

/// What is taken away of three mappings.
#[derive(Clone, Copy)]
enum Part {
    One,
    Many,
    All,
    Vaddr,
}
use Part::*;

const SIZE: u64 = 16 * PAGE;
const COUNT: u64 = 3;

/// A container with [`COUNT`] mappings in a row, of memory that is not.
fn rig(env: &Env, places: Places, memory: &Memory) -> Verdict<Rig> {
    let rig = Rig::open(env, places, Model::V2)?;
    for n in 0..COUNT {
        let vaddr = memory.vaddr() + (COUNT - 1 - n) * SIZE;
        rig.container()?.map(IOVA + n * SIZE, vaddr, SIZE, RW)?;
    }
    Ok(rig)
}

fn unmap(env: &Env, places: Places, part: Part) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    let parts = || match part {
        One => (unmap_arg(IOVA, SIZE, 0), SIZE),
        Many => (unmap_arg(IOVA, COUNT * SIZE, 0), COUNT * SIZE),
        All => (unmap_arg(0, 0, UNMAP_ALL), COUNT * SIZE),
        Vaddr => (unmap_arg(IOVA, COUNT * SIZE, UNMAP_VADDR), COUNT * SIZE),
    };
    let (_, bytes) = parts();
    let effect = match part {
        // What has no address any more cannot lose it.
        Vaddr => Effect::Hidden(Errno::EINVAL),
        _ => Effect::Lost,
    };
    let prepare = || {
        let rig = rig(env, places, &memory)?;
        let (arg, _) = parts();
        // SAFETY: It is the argument of this ioctl.
        let call = unsafe { Call::vfio(rig.fd()?, Command::UNMAP_DMA, arg) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .errnos(&[Errno::EFAULT])
        .effect(effect)
        .verify(|trial, _| {
            let arg = trial.call.arg::<vfio_iommu_type1_dma_unmap>();
            expect_eq("bytes unmapped", arg.size, bytes)
        })
        .run()
}

fn pinned(env: &Env) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    let prepare = || {
        let rig = rig(env, EMULATED, &memory)?;
        for n in 0..COUNT {
            rig.device()?.pinned(IOVA + n * SIZE, 4)?;
        }
        let arg = unmap_arg(IOVA, COUNT * SIZE, 0);
        // SAFETY: It is the argument of this ioctl.
        let call = unsafe { Call::vfio(rig.fd()?, Command::UNMAP_DMA, arg) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .errnos(&[Errno::EFAULT])
        .effect(Effect::Lost)
        .verify(|trial, _| {
            let arg = trial.call.arg::<vfio_iommu_type1_dma_unmap>();
            expect_eq("bytes unmapped", arg.size, COUNT * SIZE)
        })
        .run()
}

/// The argument with the bitmap it points to.
#[repr(C)]
struct WithBitmap {
    arg: UnmapDirty,
    words: Box<[u64; 1]>,
}

/// The bitmap is good also if the call was refused, and made again for what was left.
fn dirty(env: &Env, places: Places, count: u64) -> Verdict {
    let emulated = places == EMULATED;
    let memory = Memory::anon(COUNT * SIZE)?;
    let prepare = || {
        let rig = rig(env, places, &memory)?;
        rig.container()?.dirty(DIRTY_START)?;
        if emulated {
            for n in 0..COUNT {
                let iova = IOVA + n * SIZE + n * PAGE;
                rig.device()?.pinned(iova, 2)?;
                rig.device()?.unpin(iova, 2)?;
            }
        }
        let mut words = Box::new([0]);
        let arg = unmap_dirty_arg(IOVA, count * SIZE, &mut *words);
        let arg = WithBitmap { arg, words };
        // SAFETY: It begins with the argument of this ioctl, whose bitmap lies behind it.
        let call = unsafe { Call::vfio(rig.fd()?, Command::UNMAP_DMA, arg) };
        Ok(Trial { call, rig })
    };
    // What was pinned stays dirty.
    let each = |n: u64| if emulated { 3 << n } else { 0xffff };
    let want = (0..count).map(|n| each(n) << (16 * n)).sum::<u64>();
    Sweep::new(env, prepare)
        .errnos(&[Errno::EFAULT])
        .effect(Effect::Steps(count as u32))
        .verify(|trial, _| {
            let arg = trial.call.arg::<WithBitmap>();
            expect_eq("dirty pages", arg.words[0], want)
        })
        .run()
}
