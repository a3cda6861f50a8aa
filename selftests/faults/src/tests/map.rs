// SPDX-License-Identifier: GPL-2.0

//! MAP_DMA.

use harness::check::{
    expect_eq,
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
use harness::proc::Child;
use harness::vfio::{
    map_arg,
    Command,
    DIRTY_START,
    MAP_VADDR,
    PAGE,
    RW,
    UNMAP_VADDR, //
};
use nix::errno::Errno;

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
    Sweep,
    Trial, //
};

table! {
    "emulated.map", "MAP_DMA of memory that is not pinned" => |env| map(env, EMULATED, &Memory::anon(8 * PAGE)?, false);
    "emulated.map_tracked", "MAP_DMA while dirty pages are tracked" => |env| map_large_tracked(env, EMULATED);
    "soft.map_page", "MAP_DMA of a page" => |env| map(env, SOFT, &Memory::anon(PAGE)?, false);
    "soft.map_batches", "MAP_DMA of a batch of pages and memory that is not there yet" => |env| untouched(env, SOFT, &Memory::anon(BATCH + TAIL)?, BATCH);
    "soft.map_untouched", "MAP_DMA of memory that pinning has to make" => |env| untouched(env, SOFT, &Memory::unpopulated(TAIL)?, 0);
    "soft.map_2m", "MAP_DMA of 2 MiB" => |env| map(env, SOFT, &Memory::anon(2 * MIB)?, false);
    "soft.map_shared", "MAP_DMA of shared memory" => |env| map(env, SOFT, &Memory::shared(&Memory::memfd(16 * PAGE)?)?, false);
    "soft.map_shared_untouched", "MAP_DMA of shared memory that pinning has to make" => |env| untouched(env, SOFT, &Memory::shared(&Memory::memfd(TAIL)?)?, 0);
    "soft.map_tracked", "MAP_DMA while dirty pages are tracked" => |env| map(env, SOFT, &Memory::anon(16 * PAGE)?, true);
    "soft.map_two", "MAP_DMA in two domains" => |env| map(env, TWO_SOFT, &Memory::anon(16 * PAGE)?, false);
    "soft.map_mixed", "MAP_DMA with a group of either kind" => |env| map(env, MIXED, &Memory::anon(16 * PAGE)?, false);
    "soft.map_vaddr", "MAP_DMA with VADDR, by another process" => |env| vaddr(env, SOFT);
    "pci.map", "MAP_DMA of pages" => |env| map(env, PCI, &Memory::anon(16 * PAGE)?, false);
    "pci.map_untouched", "MAP_DMA of memory that pinning has to make" => |env| untouched(env, PCI, &Memory::unpopulated(TAIL)?, 0);
}

/// What is pinned at once.
const BATCH: u64 = 512 * PAGE;
/// What comes behind it.
const TAIL: u64 = 16 * PAGE;

/// A container, and a call that maps all of `memory`.
fn trial(env: &Env, places: Places, memory: &Memory) -> Verdict<Trial> {
    let rig = Rig::open(env, places, Model::V2)?;
    let arg = map_arg(IOVA, memory.vaddr(), memory.len(), RW);
    // SAFETY: It is the argument of this ioctl; the memory outlives the sweep.
    let call = unsafe { Call::vfio(rig.fd()?, Command::MAP_DMA, arg) };
    Ok(Trial { call, rig })
}

fn map(env: &Env, places: Places, memory: &Memory, tracked: bool) -> Verdict {
    Sweep::new(env, || {
        let trial = trial(env, places, memory)?;
        if tracked {
            trial.rig.container()?.dirty(DIRTY_START)?;
        }
        Ok(trial)
    })
    .cheap(places != PCI && memory.len() <= TAIL)
    .run()
}

/// A log too large for consecutive pages.
fn map_large_tracked(env: &Env, places: Places) -> Verdict {
    const SIZE: u64 = 160 << 30;
    let memory = Memory::anon(PAGE)?;
    Sweep::new(env, || {
        let rig = Rig::open(env, places, Model::V2)?;
        rig.container()?.dirty(DIRTY_START)?;
        // Nobody looks at the memory until it is pinned.
        let arg = map_arg(IOVA, memory.vaddr(), SIZE, RW);
        // SAFETY: It is the argument of this ioctl.
        let call = unsafe { Call::vfio(rig.fd()?, Command::MAP_DMA, arg) };
        Ok(Trial { call, rig })
    })
    .run()
}

/// Only the first `touched` bytes of the memory are there.
fn untouched(env: &Env, places: Places, memory: &Memory, touched: u64) -> Verdict {
    Sweep::new(env, || {
        memory.forget(touched, memory.len() - touched)?;
        trial(env, places, memory)
    })
    .run()
}

/// The mapping moves from a child's memory to this process's.
fn vaddr(env: &Env, places: Places) -> Verdict {
    const SIZE: u64 = 16 * PAGE;
    let memory = Memory::shared(&Memory::memfd(SIZE)?)?;
    let prepare = || {
        let rig = Rig::open(env, places, Model::V2)?;
        let container = rig.container()?;
        Child::run(|| Ok(container.map(IOVA, memory.vaddr(), SIZE, RW)?))?.join()?;
        expect_eq("bytes", container.unmap(IOVA, SIZE, UNMAP_VADDR)?, SIZE)?;
        let arg = map_arg(IOVA, memory.vaddr(), SIZE, MAP_VADDR);
        // SAFETY: It is the argument of this ioctl; the memory outlives the sweep.
        let call = unsafe { Call::vfio(rig.fd()?, Command::MAP_DMA, arg) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare).errnos(&[Errno::EFAULT]).run()
}
