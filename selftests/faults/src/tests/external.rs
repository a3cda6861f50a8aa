// SPDX-License-Identifier: GPL-2.0

//! What drivers of mediated devices do: pin pages and copy data.

use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::emulated::{
    code,
    RawPin,
    RawRw,
    PIN_RW,
    RW_WRITE, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::vfio::{
    DIRTY_START,
    PAGE,
    RW, //
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
    MIXED, //
};
use crate::sweep::{
    Effect,
    Sweep,
    Trial, //
};

table! {
    "emulated.pin", "vfio_pin_pages() of one page" => |env| pin(env, EMULATED, 1, false);
    "emulated.pin_many", "vfio_pin_pages() of pages of which some are pinned" => |env| pin(env, EMULATED, 12, false);
    "emulated.pin_untouched", "vfio_pin_pages() of memory that pinning has to make" => |env| pin(env, EMULATED, 6, true);
    "emulated.unpin", "vfio_unpin_pages()" => unpin;
    "emulated.read", "vfio_dma_rw(), reading from two mappings" => |env| copy(env, false, false);
    "emulated.write", "vfio_dma_rw(), writing to two mappings" => |env| copy(env, true, false);
    "emulated.write_untouched", "vfio_dma_rw(), writing to memory that is not there yet" => |env| copy(env, true, true);
    "soft.pin", "vfio_pin_pages() beside an IOMMU" => |env| pin(env, MIXED, 12, false);
}

const SIZE: u64 = 8 * PAGE;

/// A container with two mappings in a row that are tracked; 2 pages in the middle are pinned.
fn rig(env: &Env, places: Places, memory: &Memory) -> Verdict<Rig> {
    let rig = Rig::open(env, places, Model::V2)?;
    for at in [0, SIZE] {
        rig.container()?
            .map(IOVA + at, memory.vaddr() + at, SIZE, RW)?;
    }
    rig.container()?.dirty(DIRTY_START)?;
    rig.device()?.pinned(IOVA + SIZE - PAGE, 2)?;
    Ok(rig)
}

fn pin(env: &Env, places: Places, npages: u32, untouched: bool) -> Verdict {
    let memory = if untouched {
        Memory::unpopulated(2 * SIZE)?
    } else {
        Memory::anon(2 * SIZE)?
    };
    let prepare = || {
        if untouched {
            memory.forget(0, memory.len())?;
        }
        let rig = rig(env, places, &memory)?;
        let arg = RawPin {
            iova: IOVA + PAGE,
            npages,
            prot: PIN_RW,
            ..RawPin::default()
        };
        // SAFETY: It is the argument of this ioctl.
        let call = unsafe { Call::ioctl(rig.device()?.as_raw_fd(), code::PIN, arg) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .cheap(npages == 1)
        // The device keeps what it pinned if it cannot tell.
        .effect(Effect::Lost)
        .verify(|_, pinned| expect_eq("pages pinned", pinned, npages.into()))
        .run()
}

fn unpin(env: &Env) -> Verdict {
    let memory = Memory::anon(2 * SIZE)?;
    let prepare = || {
        let rig = rig(env, EMULATED, &memory)?;
        let arg = RawPin {
            iova: IOVA + SIZE - PAGE,
            npages: 2,
            ..RawPin::default()
        };
        // SAFETY: It is the argument of this ioctl.
        let call = unsafe { Call::ioctl(rig.device()?.as_raw_fd(), code::UNPIN, arg) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare).errnos(&[Errno::EFAULT]).run()
}

/// The argument with the data it points to.
#[repr(C)]
struct WithData {
    arg: RawRw,
    data: Box<[u8]>,
}

fn copy(env: &Env, write: bool, untouched: bool) -> Verdict {
    const LEN: usize = 4 * PAGE as usize;
    let memory = Memory::unpopulated(2 * SIZE)?;
    let at = SIZE - 2 * PAGE;
    let prepare = || {
        memory.forget(0, memory.len())?;
        let rig = rig(env, EMULATED, &memory)?;
        if !untouched {
            memory.fill(0x5a);
        }
        let mut data = vec![0xa5u8; LEN].into_boxed_slice();
        let arg = RawRw {
            iova: IOVA + at,
            data: data.as_mut_ptr().expose_provenance() as u64,
            len: LEN as u32,
            flags: if write { RW_WRITE } else { 0 },
        };
        let arg = WithData { arg, data };
        // SAFETY: It begins with the argument of this ioctl, whose data lie behind it.
        let call = unsafe { Call::ioctl(rig.device()?.as_raw_fd(), code::RW, arg) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .verify(|trial, _| {
            let data = &trial.call.arg::<WithData>().data;
            let want = if write { 0xa5 } else { 0x5a };
            expect_eq("the data", data.iter().all(|byte| *byte == want), true)?;
            expect_eq("the memory", memory.get(at, LEN as u64) == **data, true)
        })
        .run()
}
