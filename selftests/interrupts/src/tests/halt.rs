// SPDX-License-Identifier: GPL-2.0

//! Interrupts of a virtual CPU that halts after each, on one processor or on two.

use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};
use std::thread;

use harness::check::{
    expect,
    Stop,
    Verdict, //
};
use harness::env::Env;
use harness::tests;
use nix::sched::sched_yield;
use rand::RngExt;

use super::run::{
    dawdle,
    one,
    random, //
};
use crate::guest::{
    Mode,
    VECTORS, //
};
use crate::machine::{
    move_to,
    processors,
    Machine, //
};
use crate::samples::Samples;
use crate::settings;

tests! {
    "halt.asleep", "an interrupt wakes a virtual CPU that sleeps" => asleep;
    "halt.race", "and one that is about to, at whatever moment" => race;
    "move.run", "interrupts arrive while the virtual CPU is moved around" => move_run;
    "move.halt", "and wake it where it has been moved to" => move_halt;
}

/// Waits until KVM has put a virtual CPU to sleep.
pub(super) fn wait_for_sleep(machine: &Machine, cpu: usize) -> Verdict {
    let asleep = machine.wait(cpu, || Ok(machine.cpus[cpu].stats.get("blocking")? == 1))?;
    expect("the virtual CPU goes to sleep", asleep)
}

fn asleep(_: &Env) -> Verdict {
    let (mut machine, mut random, mut samples) = (Machine::start(1)?, random(), Samples::default());
    machine.shared(0).order(Mode::Halt);
    let wakeups = |machine: &Machine| machine.cpus[0].stats.get("halt_wakeup");
    let before = wakeups(&machine)?;
    for _ in 0..settings().rounds {
        wait_for_sleep(&machine, 0)?;
        one(&mut machine, random.random_range(VECTORS), &mut samples)?;
    }
    // An interrupt may find it between being seen asleep and being so.
    let wakeups = wakeups(&machine)? - before;
    println!("# {wakeups} wakeups for {} interrupts", settings().rounds);
    expect("most interrupts woke it", wakeups > settings().rounds / 2)?;
    machine.stop()?;
    samples.report("halt.asleep")
}

fn race(_: &Env) -> Verdict {
    let (mut machine, mut random, mut samples) = (Machine::start(1)?, random(), Samples::default());
    machine.shared(0).order(Mode::Halt);
    for _ in 0..settings().rounds {
        dawdle(&mut random);
        one(&mut machine, random.random_range(VECTORS), &mut samples)?;
    }
    println!("# it was about to halt {} times", machine.shared(0).halts());
    machine.stop()?;
    samples.report("halt.race")
}

fn move_run(_: &Env) -> Verdict {
    moving("move.run", Mode::Spin)
}

fn move_halt(_: &Env) -> Verdict {
    moving("move.halt", Mode::Halt)
}

/// Sends interrupts while another thread moves the virtual CPU from processor to processor.
fn moving(test: &str, mode: Mode) -> Verdict {
    let ours = processors()?;
    if ours.len() < 2 {
        return Err(Stop::skip("a second processor"));
    }
    let (mut machine, mut random, mut samples) = (Machine::start(1)?, random(), Samples::default());
    machine.shared(0).order(mode);
    let moved = machine.cpus[0].thread;
    let (done, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = settings().rounds;
    let (sent, mover) = thread::scope(|scope| {
        let mover = scope.spawn(|| -> Verdict {
            while !done.load(Ordering::Relaxed) {
                for place in ours {
                    move_to(moved, *place)?;
                    moves.fetch_add(1, Ordering::Relaxed);
                    sched_yield()?;
                }
            }
            Ok(())
        });
        let sent = (0u64..).try_for_each(|round| {
            if mover.is_finished() || round >= rounds && moves.load(Ordering::Relaxed) >= rounds / 4
            {
                return Err(None);
            }
            dawdle(&mut random);
            one(&mut machine, random.random_range(VECTORS), &mut samples).map_err(Some)
        });
        done.store(true, Ordering::Relaxed);
        (sent, mover.join())
    });
    mover.map_err(|_| Stop::fail("the thread that moves has panicked"))??;
    if let Err(Some(stop)) = sent {
        return Err(stop);
    }
    println!("# moved {} times", moves.into_inner());
    machine.stop()?;
    samples.report(test)
}
