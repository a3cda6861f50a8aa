// SPDX-License-Identifier: GPL-2.0

//! Processors that run while something changes.

use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};
use std::thread::{
    self,
    ScopedJoinHandle, //
};

use harness::check::{
    expect,
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::tests;
use harness::vfio::PAGE;
use nix::errno::Errno;
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};

use super::{
    joined,
    module, //
};
use crate::bar::Bar;
use crate::guest::{
    Answer,
    Ask,
    Count,
    Cpu,
    Emulated,
    Slot,
    Vm, //
};
use crate::rig::{
    Access,
    Window,
    IPA, //
};

const M2: u64 = 2 * MIB;

tests! {
    "running.unmap", "a guest that accesses a BAR without a pause loses pieces of it, and gets them back" => unmap;
    "running.slots", "the same with slots that are deleted and made" => slots;
    "running.storm", "four processors count, their mappings come and go, and no count is lost" => storm;
    "running.module", "the same while the Rust module is loaded and unloaded" => load_unload;
}

/// Counts words, each processor its own ones, all over a BAR of 4 GiB.
const SIZE: u64 = 4 * GIB;
/// Two to so many places, two to so many bytes apart, with a word for each processor.
const BITS: u64 = 12;
const SHIFT: u64 = 20;
/// How often at a time.
const TIMES: u64 = 500;

/// What processors share with those who disturb them.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// What was taken away may not come back.
    broken: AtomicBool,
    refused: AtomicU64,
    laps: AtomicU64,
}

impl Shared {
    /// Waits until a processor has counted for a while, or has given up.
    fn wait(&self) {
        let before = self.laps.load(Ordering::Relaxed);
        while self.laps.load(Ordering::Relaxed) < before + 2 && !self.stop.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    }

    /// Counts until told to stop, or tells others; returns how often.
    fn count(&self, cpu: Cpu, number: u64, words: &Memory) -> Verdict<u64> {
        let counted = self.count_on(cpu, number, words);
        if counted.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        counted
    }

    fn count_on(&self, mut cpu: Cpu, number: u64, words: &Memory) -> Verdict<u64> {
        // What is in no slot just now is a device that this process emulates, by the BAR.
        let emulate = |address, access: Emulated<'_>| match access {
            Emulated::Read(word) => *word = words.read(address - IPA),
            Emulated::Write(word) => words.write(address - IPA, word),
        };
        let mut seed = 0x9e37_79b9_7f4a_7c15 ^ number;
        let mut counted = 0;
        while !self.stop.load(Ordering::Relaxed) {
            cpu.prepare(Ask::Count(Count {
                base: IPA + number * 8,
                bits: BITS,
                shift: SHIFT,
                times: TIMES,
                seed,
            }))?;
            loop {
                match cpu.go_on_with(emulate)? {
                    Answer::Done(next) => {
                        seed = next;
                        break;
                    }
                    // What was taken away comes back.
                    Answer::Refused(Errno::EFAULT) | Answer::Emulated(_) => {
                        if self.broken.load(Ordering::Relaxed) {
                            return Err(Stop::fail("who disturbed it has given up"));
                        }
                        self.refused.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                    }
                    other => return Err(Stop::fail(format_args!("{other:x?}"))),
                }
            }
            counted += TIMES;
            self.laps.fetch_add(1, Ordering::Relaxed);
        }
        Ok(counted)
    }
}

/// Runs `cpus` processors that count while `disturb` does what it does, then checks the counts.
#[track_caller]
fn disturbed(
    env: &Env,
    cpus: u64,
    disturb: impl FnOnce(&Vm, &mut Window<'_>, &Shared) -> Verdict,
) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let mut window = Window::new(&bar, 0, SIZE, 0)?;
    let places = || (0..1u64 << BITS).map(|n| n << SHIFT);
    for place in places() {
        for number in 0..cpus {
            bar.window.write(place + number * 8, 0u64);
        }
    }
    let vm = Vm::new()?;
    vm.set_slot(&Slot::all(&window.memory, IPA))?;
    let processors: Vec<Cpu> = (0..cpus).map(|n| vm.cpu(n)).collect::<Verdict<_>>()?;
    let shared = Shared::default();
    let counted: Vec<u64> = thread::scope(|scope| {
        let threads: Vec<ScopedJoinHandle<'_, Verdict<u64>>> = (0..)
            .zip(processors)
            .map(|(number, cpu)| {
                scope.spawn({
                    let (shared, words) = (&shared, &bar.window);
                    move || shared.count(cpu, number, words)
                })
            })
            .collect();
        let disturbed = disturb(&vm, &mut window, &shared);
        shared.broken.store(disturbed.is_err(), Ordering::Relaxed);
        shared.stop.store(true, Ordering::Relaxed);
        let counted: Verdict<Vec<u64>> = threads.into_iter().map(joined).collect();
        disturbed.and(counted)
    })?;
    println!(
        "# counted {counted:?}, refused {}",
        shared.refused.load(Ordering::Relaxed)
    );
    for (number, &counted) in (0..).zip(&counted) {
        let found: u64 = places()
            .map(|place| bar.window.read::<u64>(place + number * 8))
            .sum();
        expect_eq(format_args!("count of processor {number}"), found, counted)?;
        expect("it ran", counted > 0)?;
    }
    Ok(())
}

/// Checks that nothing is mapped of `len` bytes at `at` of a slot at `IPA`.
#[track_caller]
fn expect_gone(vm: &Vm, at: u64, len: u64) -> Verdict {
    let (start, end) = (IPA + at, IPA + at + len);
    let mapped = vm.mapped()?.into_iter();
    let left: Vec<_> = mapped
        .filter(|run| run.range.start < end && start < run.range.end)
        .collect();
    expect_eq(
        format_args!("mapped of {len:#x} bytes at {at:#x}"),
        left,
        vec![],
    )
}

/// A piece of the BAR with some of the places in it.
fn piece(random: &mut ChaCha8Rng) -> (u64, u64) {
    let at = random.random_range(0..SIZE / M2 - 16) * M2;
    match random.random_range(0..8) {
        0 => (at / GIB * GIB, GIB),
        1 | 2 => (at, PAGE),
        3 => (at + M2 - PAGE, 2 * PAGE),
        4 | 5 => (at, M2),
        _ => (at, 16 * M2),
    }
}

fn unmap(env: &Env) -> Verdict {
    disturbed(env, 1, |vm, window, shared| {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for access in [Access::Hole, Access::None].into_iter().cycle().take(60) {
            let (at, len) = piece(&mut random);
            window.change(at, len, access)?;
            if access == Access::None {
                expect_gone(vm, at, len)?;
            } // Reading what is mapped takes memory, which might come to lie in the hole.
            window.remap(at, len, at)?;
            shared.wait();
        }
        window.remap(0, SIZE, 0)
    })
}

fn slots(env: &Env) -> Verdict {
    disturbed(env, 2, |vm, window, _| {
        let slot = Slot::all(&window.memory, IPA);
        for _ in 0..40 {
            vm.set_slot(&Slot {
                size: 0,
                ..slot.clone()
            })?;
            expect_gone(vm, 0, SIZE)?;
            vm.set_slot(&slot)?;
        }
        Ok(())
    })
}

/// Takes pieces away and puts them back; some get read-only, some another mapping right away.
#[track_caller]
fn disturb(window: &mut Window<'_>, vm: &Vm, rounds: u32) -> Verdict {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for round in 0..rounds {
        let (at, len) = piece(&mut random);
        match random.random_range(0..4) {
            0 => {}
            1 => drop(window.change(at, len, Access::Read)?),
            _ => {
                window.change(at, len, Access::None)?;
                expect_gone(vm, at, len)?;
            }
        }
        window.remap(at, len, at)?;
        if round % 16 == 15 {
            window.remap(0, SIZE, 0)?;
        }
    }
    window.remap(0, SIZE, 0)
}

fn storm(env: &Env) -> Verdict {
    disturbed(env, 4, |vm, window, _| disturb(window, vm, 200))
}

fn load_unload(env: &Env) -> Verdict {
    let module = module()?;
    disturbed(env, 4, |vm, window, shared| {
        let loads = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reload = || -> Verdict {
                while !done.load(Ordering::Relaxed) && !shared.stop.load(Ordering::Relaxed) {
                    module.unload()?;
                    module.load()?;
                    loads.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            let reloads = scope.spawn(reload);
            let disturbed = disturb(window, vm, 200);
            done.store(true, Ordering::Relaxed);
            disturbed.and(joined(reloads))
        })?;
        let loads = loads.into_inner();
        println!("# the module was loaded {loads} times");
        expect("the module was loaded again and again", loads > 2)
    })
}
