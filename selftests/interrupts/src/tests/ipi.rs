// SPDX-License-Identifier: GPL-2.0

//! Interrupts that virtual CPUs send each other.

use harness::check::{
    expect,
    Stop,
    Verdict, //
};
use harness::env::Env;
use harness::tests;

use crate::guest::Mode;
use crate::machine::{
    move_to,
    processors,
    Machine, //
};
use crate::settings;

tests! {
    "ipi.run", "two virtual CPUs that run interrupt each other in turn" => run;
    "ipi.halt", "and wake each other in turn" => halt;
    "ipi.move", "also while both are moved around" => moved;
}

const VECTOR: u8 = 0x51;

fn run(_: &Env) -> Verdict {
    turns(Mode::Spin, false)
}

fn halt(_: &Env) -> Verdict {
    turns(Mode::Halt, false)
}

fn moved(_: &Env) -> Verdict {
    turns(Mode::Halt, true)
}

/// Each interrupt has its virtual CPU send one to the other: the first that is lost ends it.
fn turns(mode: Mode, moves: bool) -> Verdict {
    let (ours, rounds) = (processors()?, settings().rounds);
    if moves && ours.len() < 2 {
        return Err(Stop::skip("a second processor"));
    }
    let mut machine = Machine::start(2)?;
    for cpu in [0, 1] {
        // Fixed, physical, asserted.
        let command = (1 - cpu as u64) << 32 | 1 << 14 | u64::from(VECTOR);
        machine.shared(cpu).forward(command, rounds);
        machine.shared(cpu).order(mode);
        machine.expect(cpu, VECTOR, rounds);
    }
    machine.send(0, VECTOR)?;
    let mut place = 0;
    for count in 1..=rounds {
        let goes_on = machine.wait(0, || Ok(machine.shared(0).count(VECTOR) > count))?;
        expect(format_args!("interrupt {count} comes back"), goes_on)?;
        if moves {
            place += 1;
            move_to(machine.cpus[place % 2].thread, ours[place / 2 % 2])?;
        }
    }
    machine.stop()
}
