// SPDX-License-Identifier: GPL-2.0

//! Processes with mappings fork and end.

use std::io;
use std::io::Write;

use harness::check::{
    expect,
    Stop,
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
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::{
    fork,
    ForkResult,
    Pid, //
};

use super::{
    table,
    IOVA, //
};
use crate::call::Call;
use crate::inject::{
    Faults,
    Injector,
    Mode, //
};
use crate::rig::{
    Ground,
    Places,
    Rig,
    EMULATED,
    SOFT, //
};
use crate::sweep::{
    same,
    Sweep,
    Trial, //
};

table! {
    "soft.fork", "fork of a process with mapped pages" => |env| forks(env, SOFT);
    "emulated.exit", "end of a process with pinned pages" => |env| exits(env, EMULATED);
    "soft.exit", "end of a process with mapped pages" => |env| exits(env, SOFT);
}

const SIZE: u64 = 8 * PAGE;

fn rig(env: &Env, places: Places, memory: &Memory) -> Verdict<Rig> {
    let rig = Rig::open(env, places, Model::V2)?;
    rig.container()?.map(IOVA, memory.vaddr(), SIZE, RW)?;
    if let Some(device) = rig.emulated.first() {
        device.pinned(IOVA, 4)?;
    }
    Ok(rig)
}

fn forks(env: &Env, places: Places) -> Verdict {
    let memory = Memory::anon(SIZE)?;
    let prepare = || {
        Ok(Trial {
            call: Call::fork(),
            rig: rig(env, places, &memory)?,
        })
    };
    Sweep::new(env, prepare)
        .errnos(&[Errno::ENOMEM])
        .one_at_a_time()
        .verify(|_, pid| {
            waitpid(Pid::from_raw(pid as i32), None)?;
            Ok(())
        })
        .run()
}

/// Nothing can refuse the end of a process, and nothing may stay behind it.
fn exits(env: &Env, places: Places) -> Verdict {
    let ours = Injector::new()?;
    for mode in Mode::BOTH {
        let (mut all, mut calls) = (Faults::default(), 0);
        let mut nth = 0;
        loop {
            nth += 1;
            let ground = Ground::now()?;
            ends(env, places, mode, nth)?;
            let faults = ours.count()?;
            same("when the process has ended", &ground, Ground::now)?;
            if !faults.any() {
                break;
            }
            all += faults;
            calls += 1;
        }
        let Faults { slab, page, copy } = all;
        println!("# {mode}: {calls} ends met {slab} slab, {page} page, {copy} copy faults");
        let _ = io::stdout().flush();
        expect(format_args!("{mode}: any fault was met"), calls > 0)?;
    }
    Ok(())
}

/// A process ends with a fault ahead.
fn ends(env: &Env, places: Places, mode: Mode, nth: u32) -> Verdict {
    // SAFETY: This process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            status => Err(Stop::fail(format_args!(
                "the process ended with {status:?}"
            ))),
        },
        ForkResult::Child => {
            let armed = || -> Verdict<(Memory, Rig)> {
                let memory = Memory::anon(SIZE)?;
                let rig = rig(env, places, &memory)?;
                Injector::new()?.arm(mode, nth)?;
                Ok((memory, rig))
            };
            let result = armed();
            // SAFETY: The kernel is to tear all down, which is what this is about.
            unsafe { libc::_exit(result.is_err().into()) }
        }
    }
}
