// SPDX-License-Identifier: GPL-2.0

//! The device: it is reset, it stops to answer, it is no place for instructions.

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    GIB,
    MIB, //
};
use harness::tests;
use harness::vfio::PAGE;
use nix::errno::Errno;

use crate::bar::Bar;
use crate::guest::{
    Answer,
    Ask, //
};
use crate::rig::{
    Rig,
    Window,
    IPA, //
};

/// Of the PCI command register: the device answers to memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;

/// What the device is filled with when it should be executed: `ret`, twice, after which a guest
/// would be lost, and a wrong answer.
const RETURN: u64 = 0xd65f_03c0_d65f_03c0;

tests! {
    "device.reset", "a reset unmaps, and the guest maps again" => reset;
    "device.memory_off", "a device that does not answer is not mapped, until it does" => memory_off;
    "device.exec", "the guest cannot execute from a BAR, mapped or not" => exec;
    "device.close", "a guest outlives its VFIO files" => close;
}

fn reset(env: &Env) -> Verdict {
    let size = 4 * MIB;
    let bar = Bar::open(env, size)?;
    let mut rig = Rig::with_slot(Window::new(&bar, 0, size, 0)?, IPA)?;
    for _ in 0..2 {
        for at in [0, size / 2, size - 8] {
            rig.access(IPA + at)?;
        }
        rig.check()?;
        bar.device.reset()?;
        rig.forget_window(0, size);
        rig.check()?;
        expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])?;
    }
    Ok(())
}

fn memory_off(env: &Env) -> Verdict {
    for size in [64 << 10, 4 * MIB, 4 * GIB] {
        let bar = Bar::open(env, size)?;
        let mut rig = Rig::with_slot(Window::new(&bar, 0, size, 0)?, IPA)?;
        let places = [0, size / 2, size - 8];
        for _ in 0..2 {
            for at in places {
                rig.access(IPA + at)?;
            }
            rig.check()?;
            bar.device.disable(COMMAND_MEMORY)?;
            rig.forget_window(0, size);
            rig.check()?;
            for at in places {
                for ask in [Ask::Read(IPA + at), Ask::Write(IPA + at, 0)] {
                    let got = rig.cpu.ask(ask)?;
                    expect_eq("the guest", got, Answer::Refused(Errno::EFAULT))?;
                    rig.uncounted(1);
                }
            }
            rig.check()?;
            bar.device.enable(COMMAND_MEMORY)?;
        }
        for at in places {
            rig.access(IPA + at)?;
        }
        rig.check()?;
    }
    Ok(())
}

fn exec(env: &Env) -> Verdict {
    for size in [64 << 10, 4 * GIB] {
        let bar = Bar::open(env, size)?;
        let mut rig = Rig::with_slot(Window::new(&bar, 0, size, 0)?, IPA)?;
        for at in [0, size / 2, size - PAGE] {
            bar.window.write(at, RETURN);
            jump(&mut rig, IPA + at)?;
            // The same where it is mapped.
            rig.access(IPA + at + 8)?;
            jump(&mut rig, IPA + at)?;
        }
        rig.check()?;
    }
    Ok(())
}

/// Has the guest jump to a BAR, and expects it to learn of an external abort.
#[track_caller]
fn jump(rig: &mut Rig<'_>, to: u64) -> Verdict {
    const INSTRUCTION_ABORT: u64 = 0x21;
    const EXTERNAL: u64 = 0x10;
    let got = rig.cpu.ask(Ask::Jump(to))?;
    rig.uncounted(1);
    let refused = match got {
        Answer::Exception(esr) => esr >> 26 == INSTRUCTION_ABORT && esr & 0x3f == EXTERNAL,
        _ => false,
    };
    expect(format_args!("{got:x?}: an external abort"), refused)
}

fn close(env: &Env) -> Verdict {
    let size = 4 * GIB;
    let bar = Bar::open(env, size)?;
    let memory = bar.map(0, size, 0)?;
    let vm = crate::guest::Vm::new()?;
    let mut cpu = vm.cpu(0)?;
    vm.set_slot(&crate::guest::Slot {
        id: 1,
        flags: 0,
        ipa: IPA,
        hva: memory.vaddr(),
        size,
    })?;
    bar.window.write(GIB, 1u64);
    expect_eq(
        "the guest reads",
        cpu.ask(Ask::Read(IPA + GIB))?,
        Answer::Done(1),
    )?;
    // Mappings keep the device open, so it answers still.
    drop(bar);
    for at in [GIB, 3 * GIB] {
        memory.write(at, at);
        expect_eq(
            "the guest reads",
            cpu.ask(Ask::Read(IPA + at))?,
            Answer::Done(at),
        )?;
    }
    drop(memory);
    expect_eq("mapped in stage 2", vm.mapped()?, vec![])?;
    let got = cpu.ask(Ask::Read(IPA + GIB))?;
    expect_eq("the guest reads", got, Answer::Refused(Errno::EFAULT))
}
