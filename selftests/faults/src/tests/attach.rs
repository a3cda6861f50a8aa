// SPDX-License-Identifier: GPL-2.0

//! Groups join and leave a container with mappings.

use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::emulated::Which;
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::vfio::{
    Command,
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
    Place,
    Places,
    Rig,
    EMULATED,
    MIXED,
    SOFT,
    TWO_SOFT, //
};
use crate::sweep::{
    Sweep,
    Trial, //
};

table! {
    "emulated.join", "SET_CONTAINER of a second group" => |env| join(env, EMULATED, Place::Emulated(Which::Second));
    "soft.join_equal", "SET_CONTAINER of a group behind an equal IOMMU" => |env| join(env, SOFT, Place::Soft("plain", 1));
    "soft.join_other", "SET_CONTAINER of a group behind another IOMMU" => |env| join(env, SOFT, Place::Soft("noncoherent", 0));
    "soft.join_small", "SET_CONTAINER of a group behind an IOMMU with small pages" => |env| join(env, SOFT, Place::Soft("small", 0));
    "soft.join_reserved", "SET_CONTAINER of a group with reserved regions" => |env| join(env, SOFT, Place::Soft("reserved", 0));
    "soft.join_narrow", "SET_CONTAINER of a group behind a narrow IOMMU" => |env| join(env, SOFT, Place::Soft("narrow", 0));
    "soft.join_emulated", "SET_CONTAINER of an emulated group beside an IOMMU" => |env| join(env, SOFT, Place::Emulated(Which::First));
    "soft.join_first", "SET_CONTAINER of the first group behind an IOMMU, where all is pinned" => |env| join(env, EMULATED, Place::Soft("plain", 0));
    "pci.join_first", "SET_CONTAINER of the first group behind an IOMMU, where all is pinned" => |env| join(env, EMULATED, Place::Pci);
    "soft.leave_equal", "UNSET_CONTAINER of one of two groups of a domain" => |env| leave(env, TWO_EQUAL, 0, How::Unset);
    "soft.leave_first", "UNSET_CONTAINER of the only group of the first domain" => |env| leave(env, TWO_SOFT, 0, How::Unset);
    "soft.leave_second", "UNSET_CONTAINER of the only group of the second domain" => |env| leave(env, TWO_SOFT, 1, How::Unset);
    "soft.leave_reserved", "UNSET_CONTAINER of a group with reserved regions" => |env| leave(env, WITH_RESERVED, 1, How::Unset);
    "soft.leave_iommu", "UNSET_CONTAINER of the last group behind an IOMMU" => |env| leave(env, MIXED, 0, How::Unset);
    "soft.leave_last", "UNSET_CONTAINER of the last group" => |env| leave(env, SOFT, 0, How::Unset);
    "soft.close_last", "the last group is closed" => |env| leave(env, SOFT, 0, How::Close);
    "soft.close_group", "the last group is closed, after its container" => |env| leave(env, SOFT, 0, How::CloseBoth);
}

const TWO_EQUAL: Places = &[Place::Soft("plain", 0), Place::Soft("plain", 1)];
const WITH_RESERVED: Places = &[Place::Soft("plain", 0), Place::Soft("reserved", 0)];

const SIZE: u64 = 12 * PAGE;
const COUNT: u64 = 3;
/// Pages of the first mapping that a driver pins.
const PINNED: u64 = 2;

enum How {
    Unset,
    Close,
    /// The container's descriptor goes first; then it is the group that holds it.
    CloseBoth,
}

/// A container with mappings, all of them tracked, and pages of one pinned if a driver can.
fn rig(env: &Env, places: Places, memory: &Memory) -> Verdict<Rig> {
    let rig = Rig::open(env, places, Model::V2)?;
    for n in 0..COUNT {
        let at = n * SIZE;
        // Not in a row, for neither side is to merge them.
        rig.container()?
            .map(IOVA + 2 * at, memory.vaddr() + at, SIZE, RW)?;
    }
    rig.container()?.dirty(DIRTY_START)?;
    if let Some(device) = rig.emulated.first() {
        device.pinned(IOVA, PINNED as u32)?;
    }
    Ok(rig)
}

fn join(env: &Env, places: Places, place: Place) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    let prepare = || {
        let mut rig = rig(env, places, &memory)?;
        let group = place.group(env)?;
        // SAFETY: The ioctl reads an int.
        let call =
            unsafe { Call::vfio(group.as_raw_fd(), Command::GROUP_SET_CONTAINER, rig.fd()?) };
        rig.groups.push(group);
        Ok(Trial { call, rig })
    };
    let sweep = Sweep::new(env, prepare)
        .errnos(&[Errno::ENOMEM])
        .domains_may_differ()
        .verify(|trial, _| {
            let unmapped = trial.rig.container()?.unmap(IOVA, SIZE, 0)?;
            expect_eq("bytes unmapped", unmapped, SIZE)?;
            let container = trial.rig.container()?;
            Ok(container.map(IOVA, memory.vaddr(), SIZE, RW)?)
        });
    if place == Place::Pci {
        // The way back takes memory, too, with Intel's driver, and the kernel warns if there is none.
        sweep.holes_may_hide().one_at_a_time().run()
    } else {
        sweep.cheap(true).run()
    }
}

/// Leaving cannot be refused.
fn leave(env: &Env, places: Places, index: usize, how: How) -> Verdict {
    let memory = Memory::anon(COUNT * SIZE)?;
    let prepare = || {
        let mut rig = rig(env, places, &memory)?;
        if matches!(places[index], Place::Emulated(_)) {
            // An open device holds its group in the container.
            rig.emulated.remove(index);
        }
        let call = match how {
            How::Unset => {
                let group = rig.groups[index].as_raw_fd();
                Call::number(group, Command::GROUP_UNSET_CONTAINER, 0)
            }
            How::Close => Call::close(rig.groups.remove(index).into()),
            How::CloseBoth => {
                rig.container = None;
                Call::close(rig.groups.remove(index).into())
            }
        };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare).errnos(&[]).ranges_may_stay().run()
}
