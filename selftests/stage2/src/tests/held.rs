// SPDX-License-Identifier: GPL-2.0

//! Moments that are too short to be met: the fixture holds a thread there.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

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

use super::{
    joined,
    module, //
};
use crate::bar::Bar;
use crate::fixture::Fixture;
use crate::guest::{
    self,
    Answer,
    Ask,
    Slot,
    Vm, //
};
use crate::provider::MODULE;
use crate::rig::IPA;

/// Of the PCI command register: the device answers to memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;

const M2: u64 = 2 * MIB;
const SIZE: u64 = 4 * GIB;

tests! {
    "held.unmap", "a guest gets nothing of what is just being taken away" => unmap;
    "held.replace", "what was replaced while a guest faulted is mapped as what it was replaced by" => replace;
    "held.unload", "unloading waits for a processor that is in a fault" => unload;
}

/// The device stops to answer, for which the kernel empties page tables: KVM has been told, they
/// are not empty yet.
fn unmap(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let len = 4 * M2;
    let memory = bar.map(GIB, len, 0)?;
    let fixture = Fixture::open(false)?;
    fixture.hold_unmap(&memory)?;
    let vm = Vm::new()?;
    let mut cpu = vm.cpu(0)?;
    vm.set_slot(&Slot::all(&memory, IPA))?;
    bar.window.write(GIB, 42u64);
    // Nothing has to be filled after this, which would wait for the device.
    for at in (0..len).step_by(M2 as usize) {
        memory.read::<u64>(at);
    }
    let got = cpu.ask(Ask::Read(IPA))?;
    expect_eq("the guest reads", got, Answer::Done(42))?;

    let events = guest::faults()?;
    let (held, answer) = thread::scope(|scope| -> Verdict<_> {
        let (device, cpu) = (&bar.device, &mut cpu);
        let change = scope.spawn(move || device.disable(COMMAND_MEMORY));
        let held = || -> Verdict<_> {
            fixture.wait()?;
            expect_eq("mapped in stage 2", vm.mapped()?, vec![])?;
            let reads = scope.spawn(move || cpu.ask(Ask::Read(IPA)));
            // It faults again and again, or got what it must not get.
            let mut faults = 0;
            while faults < 3 && !reads.is_finished() {
                faults += events.take()?.len();
                thread::yield_now();
            }
            Ok(reads)
        };
        let reads = held();
        let mapped = vm.mapped();
        let released = fixture.release();
        let answer = reads.and_then(joined);
        joined(change).and(released)?;
        Ok((mapped?, answer?))
    })?;
    expect_eq("mapped in stage 2 in between", held, vec![])?;
    expect_eq("the guest", answer, Answer::Refused(Errno::EFAULT))?;
    expect_eq("mapped in stage 2", vm.mapped()?, vec![])?;
    bar.device.enable(COMMAND_MEMORY)?;
    let got = cpu.ask(Ask::Read(IPA))?;
    expect_eq("the guest reads", got, Answer::Done(42))
}

/// The process maps the same part of the BAR anew, from a file that lets guests choose the memory
/// type, after KVM has looked at the mapping that does not, and before it has the page.
fn replace(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let maker = Fixture::open(false)?;
    let memory = maker.map(bar.base + GIB, PAGE, PAGE)?;
    let vm = Vm::new()?;
    let mut cpu = vm.cpu(0)?;
    vm.set_slot(&Slot::all(&memory, IPA))?;
    bar.window.write(GIB, 42u64);

    maker.hold_fault()?;
    let answer = thread::scope(|scope| -> Verdict<_> {
        let cpu = &mut cpu;
        let reads = scope.spawn(move || cpu.ask(Ask::Read(IPA)));
        let replaced = maker
            .wait()
            .and_then(|()| memory.put_region(0, PAGE, &bar.device, bar.region, GIB));
        // The page is there when KVM looks for it.
        let filled = replaced.map(|()| memory.read::<u64>(0));
        let released = maker.release();
        let answer = joined(reads);
        expect_eq("the process reads", filled?, 42)?;
        released?;
        answer
    })?;
    expect_eq("the guest reads", answer, Answer::Done(42))?;
    let got = maker.descriptor(&cpu, IPA)?;
    expect_eq(
        "MemAttr, that of Normal memory",
        got.bits >> 2 & 0xf,
        0b0101,
    )
}

/// How long a thread is watched that should not get any farther.
const A_WHILE: Duration = Duration::from_secs(1);

/// A page is asked for in the middle of a fault, and who has it takes its time.
fn unload(env: &Env) -> Verdict {
    let module = module()?;
    let bar = Bar::open(env, SIZE)?;
    bar.window.write(GIB, 42u64);
    let fixture = Fixture::open(false)?;
    let memory = fixture.map(bar.base + GIB, PAGE, PAGE)?;
    let vm = Vm::new()?;
    let mut cpu = vm.cpu(0)?;
    vm.set_slot(&Slot::all(&memory, IPA))?;
    let state = PathBuf::from(format!("/sys/module/{MODULE}/initstate"));
    let is_going = || fs::read_to_string(&state).is_ok_and(|state| state.trim() == "going");
    expect_eq("it is loaded, and stays", is_going(), false)?;

    fixture.hold_fault()?;
    let (early, answer) = thread::scope(|scope| -> Verdict<_> {
        let cpu = &mut cpu;
        let reads = scope.spawn(move || cpu.ask(Ask::Read(IPA)));
        let held = fixture.wait();
        let unloads = scope.spawn(|| Ok(module.unload()?));
        while !is_going() && !unloads.is_finished() {
            thread::yield_now();
        }
        let since = Instant::now();
        while !unloads.is_finished() && since.elapsed() < A_WHILE {
            thread::yield_now();
        }
        let early = unloads.is_finished();
        let released = fixture.release();
        let answer = joined(reads);
        let unloaded = joined(unloads);
        held.and(released).and(unloaded)?;
        Ok((early, answer?))
    })?;
    module.load()?;
    expect("the module stayed as long as a processor was in it", !early)?;
    expect_eq("the guest reads", answer, Answer::Done(42))
}
