// SPDX-License-Identifier: GPL-2.0

//! What the Rust driver tells in debugfs.

use std::fs::File;
use std::os::fd::AsRawFd;

use harness::check::{
    expect,
    missing_or_fail,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::vfio::{
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    owned,
    table,
    IOVA, //
};
use crate::call::{
    Call,
    Text, //
};
use crate::rig::{
    Rig,
    EMULATED, //
};
use crate::sweep::{
    Sweep,
    Trial, //
};

table! {
    "rust.report_open", "open of vfio_type1_rs/containers" => open;
    "rust.report_read", "read of vfio_type1_rs/containers" => read;
}

const FILE: &std::ffi::CStr = c"/sys/kernel/debug/vfio_type1_rs/containers";

fn open(env: &Env) -> Verdict {
    let prepare = || {
        Ok(Trial {
            call: Call::open_to_read(FILE),
            rig: Rig::open(env, EMULATED, Model::V2)?,
        })
    };
    Sweep::new(env, prepare)
        .errnos(&[Errno::ENOMEM])
        .verify(|trial, fd| {
            trial.rig.opened.push(owned(fd));
            Ok(())
        })
        .run()
}

/// Long enough for several pages, so that the buffer has to grow.
fn read(env: &Env) -> Verdict {
    const COUNT: u64 = 100;
    let memory = Memory::anon(PAGE)?;
    let prepare = || {
        let mut rig = Rig::open(env, EMULATED, Model::V2)?;
        for n in 0..COUNT {
            rig.container()?
                .map(IOVA + n * PAGE, memory.vaddr(), PAGE, RW)?;
        }
        let path = env.host.report_path();
        let file = File::open(&path).map_err(|e| missing_or_fail(&path, e))?;
        let call = Call::read(file.as_raw_fd());
        rig.opened.push(file.into());
        Ok(Trial { call, rig })
    };
    Sweep::new(env, prepare)
        .verify(|trial, len| {
            let text = String::from_utf8_lossy(&trial.call.arg::<Text>()[..len as usize]);
            let owner = format!("(pid {})", std::process::id());
            expect("the report is about this process", text.contains(&owner))?;
            expect("it goes on", len == size_of::<Text>() as i64)
        })
        .run()
}
