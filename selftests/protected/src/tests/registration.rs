// SPDX-License-Identifier: GPL-2.0

//! The module comes and goes only while there is no VM.

use std::thread;

use harness::check::{
    expect,
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::Env;
use nix::errno::Errno;

use crate::module;
use crate::vcpu::{
    Apic,
    Machine, //
};

harness::tests! {
    "registration.busy", "with a VM the module neither loads nor unloads" => busy;
    "registration.often", "it loads and unloads beside VMs that come and go" => often;
}

fn busy(_: &Env) -> Verdict {
    let module = module::get()?;
    let machine = Machine::new(Apic::Kernel)?;
    expect_eq("unload with a VM", module.unload(), Err(Errno::EAGAIN))?;
    drop(machine);
    expect_eq("unload", module.unload(), Ok(()))?;

    // A VM of before: KVM keeps the registers of its vCPUs to the end.
    let machine = Machine::new(Apic::Kernel)?;
    expect_eq("load with a VM", module.load(), Err(Errno::EBUSY))?;
    let protection = machine.protect()?;
    expect("the VM works on", machine.model().is_ok())?;
    drop(protection);
    drop(machine);
    expect_eq("load", module.load(), Ok(()))
}

fn often(_: &Env) -> Verdict {
    const ROUNDS: u32 = 20;
    let module = module::get()?;
    let vms = thread::spawn(|| -> Verdict<u32> {
        let mut created = 0;
        for _ in 0..2 * ROUNDS {
            let machine = Machine::new(Apic::None)?;
            let protection = machine.protect()?;
            machine.model()?;
            drop(protection);
            created += 1;
        }
        Ok(created)
    });
    let (mut unloaded, mut refused) = (0, 0);
    while !vms.is_finished() || unloaded < ROUNDS {
        match module.unload() {
            Ok(()) => unloaded += 1,
            Err(Errno::EAGAIN) => continue,
            Err(errno) => return Err(Stop::fail(format_args!("unload: {errno}"))),
        }
        while let Err(errno) = module.load() {
            expect_eq("load", errno, Errno::EBUSY)?;
            refused += 1;
        }
    }
    let created = vms.join().map_err(|_| Stop::fail("panicked"))??;
    println!("# {created} VMs; unloaded {unloaded} times, refused to load {refused} times");
    Ok(())
}
