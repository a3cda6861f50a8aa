// SPDX-License-Identifier: GPL-2.0

//! Containers come to be.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::info::{
    Info,
    Raw, //
};
use harness::vfio::Command;
use nix::errno::Errno;

use super::{
    owned,
    table, //
};
use crate::call::Call;
use crate::rig::{
    Places,
    Rig,
    EMULATED,
    MIXED,
    PCI,
    SOFT,
    TWO_EMULATED,
    TWO_SOFT, //
};
use crate::sweep::{
    Sweep,
    Trial, //
};

table! {
    "emulated.open", "open /dev/vfio/vfio" => open;
    "emulated.set_iommu_v1", "SET_IOMMU, type1" => |env| set_iommu(env, EMULATED, Model::V1);
    "emulated.set_iommu_v2", "SET_IOMMU, type1v2" => |env| set_iommu(env, EMULATED, Model::V2);
    "emulated.set_iommu_two", "SET_IOMMU with two groups" => |env| set_iommu(env, TWO_EMULATED, Model::V2);
    "soft.set_iommu_v1", "SET_IOMMU, type1" => |env| set_iommu(env, SOFT, Model::V1);
    "soft.set_iommu_v2", "SET_IOMMU, type1v2" => |env| set_iommu(env, SOFT, Model::V2);
    "soft.set_iommu_two", "SET_IOMMU with two IOMMUs" => |env| set_iommu(env, TWO_SOFT, Model::V2);
    "soft.set_iommu_mixed", "SET_IOMMU with a group of either kind" => |env| set_iommu(env, MIXED, Model::V2);
    "pci.set_iommu", "SET_IOMMU" => |env| set_iommu(env, PCI, Model::V2);
    "emulated.info", "GET_INFO with capabilities" => |env| info(env, EMULATED);
    "rust.info", "GET_INFO with IOVA ranges" => |env| info(env, SOFT);
    "emulated.device_open", "GROUP_GET_DEVICE_FD" => |env| device_open(env, EMULATED);
    "soft.device_open", "GROUP_GET_DEVICE_FD" => |env| device_open(env, SOFT);
}

fn open(env: &Env) -> Verdict {
    let prepare = || {
        Ok(Trial {
            call: Call::open(c"/dev/vfio/vfio"),
            rig: Rig::default(),
        })
    };
    Sweep::new(env, prepare)
        .cheap(true)
        .errnos(&[Errno::ENOMEM])
        .verify(|trial, fd| {
            trial.rig.opened.push(owned(fd));
            Ok(())
        })
        .run()
}

fn set_iommu(env: &Env, places: Places, model: Model) -> Verdict {
    let prepare = || {
        let rig = Rig::bare(env, places)?;
        Ok(Trial {
            call: Call::number(rig.fd()?, Command::SET_IOMMU, model.number()),
            rig,
        })
    };
    let sweep = Sweep::new(env, prepare)
        .errnos(&[Errno::ENOMEM])
        .verify(|_, _| env.check_driver(model, None));
    if places == PCI {
        sweep.holes_may_hide().run()
    } else {
        sweep.cheap(true).run()
    }
}

fn info(env: &Env, places: Places) -> Verdict {
    // More than there is to say.
    type Words = [u64; 128];
    const BYTES: u64 = size_of::<Words>() as u64;

    let prepare = || {
        let rig = Rig::open(env, places, Model::V2)?;
        let mut words: Words = [0; 128];
        words[0] = BYTES;
        // SAFETY: The first field says how much of it may be written.
        let call = unsafe { Call::vfio(rig.fd()?, Command::GET_INFO, words) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .cheap(true)
        .verify(|trial, _| {
            let got = Info::decode(&Raw::from_words(trial.call.arg::<Words>()))?;
            let want = Info::read(trial.rig.container()?)?;
            expect_eq("IOVA ranges", &got.iova, &want.iova)?;
            expect_eq("mappings that can be made", got.dma_avail, want.dma_avail)?;
            expect_eq("migration", &got.migration, &want.migration)?;
            expect_eq("page sizes", got.pgsizes, want.pgsizes)?;
            expect_eq("capabilities", &got.chain, &want.chain)
        })
        .run()
}

fn device_open(env: &Env, places: Places) -> Verdict {
    let place = places[0];
    let name = place.name(env)?;
    let prepare = || {
        let rig = Rig::bare(env, places)?;
        rig.container()?.set_iommu(Model::V2.number())?;
        let mut text = [0u8; 64];
        text[..name.len()].copy_from_slice(name.as_bytes());
        let group = rig.groups[0].as_raw_fd();
        // SAFETY: The ioctl reads a string that ends with a zero.
        let call = unsafe { Call::vfio(group, Command::GROUP_GET_DEVICE_FD, text) };
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .cheap(true)
        .verify(|trial, fd| {
            expect("a descriptor", fd >= 0)?;
            trial.rig.opened.push(owned(fd));
            let rig = &trial.rig;
            // An open device holds its group in the container.
            let refused = rig.groups[0].unset_container();
            expect_errno("the device is open", refused, Errno::EBUSY)
        })
        .run()
}
