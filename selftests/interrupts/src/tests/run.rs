// SPDX-License-Identifier: GPL-2.0

//! Interrupts of a virtual CPU that runs.

use std::fs;
use std::hint;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use harness::check::{
    expect,
    Stop,
    Verdict, //
};
use harness::env::Env;
use harness::tests;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{
    RngExt,
    SeedableRng, //
};

use crate::guest::{
    Mode,
    VECTORS, //
};
use crate::machine::{
    move_to,
    now,
    processors,
    Machine, //
};
use crate::samples::Samples;
use crate::settings;

tests! {
    "run.msi", "each of many interrupts arrives, one at a time" => msi;
    "run.burst", "so do up to sixteen at once" => burst;
    "run.irqfd", "and those sent by writing to an eventfd" => irqfd;
    "run.masked", "an interrupt waits while the guest masks it, and not longer" => masked;
    "run.deaf", "a guest that masks interrupts leaves its processor to the host's" => deaf;
    "run.posted", "with posted interrupts, they do not make the guest exit" => posted;
}

pub(super) fn random() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(settings().seed)
}

/// Lets some time pass, most often very little.
pub(super) fn dawdle(random: &mut impl RngExt) {
    let longest = 1u32 << random.random_range(0..12);
    for _ in 0..random.random_range(0..longest) {
        hint::spin_loop();
    }
}

/// Sends one interrupt, and waits until it has arrived.
pub(super) fn one(machine: &mut Machine, vector: u8, samples: &mut Samples) -> Verdict {
    let sent = now();
    machine.send(0, vector)?;
    machine.arrives(0, vector)?;
    samples.push(machine.shared(0).stamp(vector).saturating_sub(sent));
    Ok(())
}

fn start(mode: Mode) -> Verdict<Machine> {
    let machine = Machine::start(1)?;
    machine.shared(0).order(mode);
    Ok(machine)
}

fn msi(_: &Env) -> Verdict {
    let (mut machine, mut random, mut samples) = (start(Mode::Spin)?, random(), Samples::default());
    for _ in 0..settings().rounds {
        one(&mut machine, random.random_range(VECTORS), &mut samples)?;
    }
    machine.stop()?;
    samples.report("run.msi")
}

fn burst(_: &Env) -> Verdict {
    let (mut machine, mut random) = (start(Mode::Spin)?, random());
    let mut all: Vec<u8> = VECTORS.collect();
    for _ in 0..settings().rounds / 4 {
        let count = random.random_range(1..=16);
        let (vectors, _) = all.partial_shuffle(&mut random, count);
        for vector in vectors.iter() {
            machine.send(0, *vector)?;
        }
        for vector in vectors.iter() {
            machine.arrives(0, *vector)?;
        }
    }
    machine.stop()
}

fn irqfd(_: &Env) -> Verdict {
    let (mut machine, mut random, mut samples) = (start(Mode::Spin)?, random(), Samples::default());
    machine.make_irqfds(&VECTORS.step_by(16).collect::<Vec<_>>())?;
    for _ in 0..settings().rounds {
        let index = random.random_range(0..VECTORS.step_by(16).count());
        let sent = now();
        let vector = machine.send_by_irqfd(index)?;
        machine.arrives(0, vector)?;
        samples.push(machine.shared(0).stamp(vector).saturating_sub(sent));
    }
    machine.stop()?;
    samples.report("run.irqfd")
}

fn masked(_: &Env) -> Verdict {
    let (mut machine, mut random, mut samples) = (start(Mode::Mask)?, random(), Samples::default());
    for _ in 0..settings().rounds {
        dawdle(&mut random);
        one(&mut machine, random.random_range(VECTORS), &mut samples)?;
    }
    machine.stop()
}

fn deaf(_: &Env) -> Verdict {
    const SLEEPS: u32 = 20;
    const LIMIT: Duration = Duration::from_secs(10);
    let machine = start(Mode::Deaf)?;
    // From now on we run here only if an interrupt of the host ends the guest's turn.
    move_to(machine.cpus[0].thread, processors()?[0])?;
    let begun = Instant::now();
    for _ in 0..SLEEPS {
        thread::sleep(Duration::from_millis(1));
        let took = begun.elapsed();
        if took > LIMIT {
            return Err(Stop::Fail(format!(
                "the processor was not free for {took:?}"
            )));
        }
    }
    machine.stop()
}

fn posted(_: &Env) -> Verdict {
    const APICV: &str = "/sys/module/kvm_intel/parameters/enable_apicv";
    if fs::read_to_string(APICV).ok().as_deref().map(str::trim) != Some("Y") {
        return Err(Stop::skip("posted interrupts"));
    }
    let (mut machine, mut random, mut samples) = (start(Mode::Spin)?, random(), Samples::default());
    one(&mut machine, random.random_range(VECTORS), &mut samples)?;
    let before = machine.cpus[0].stats.get("exits")?;
    for _ in 0..settings().rounds {
        one(&mut machine, random.random_range(VECTORS), &mut samples)?;
    }
    // There is also the timer of the machine itself.
    let exits = machine.cpus[0].stats.get("exits")? - before;
    println!("# {exits} exits during {} interrupts", settings().rounds);
    expect("few exits", exits < settings().rounds / 4)?;
    machine.stop()
}
