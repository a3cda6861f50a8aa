// SPDX-License-Identifier: GPL-2.0

//! Writes of the guest to CR0, CR4, CR8 and EFER, through KVM's exit handlers.

use std::collections::BTreeMap;

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use harness::runner::Test;
use kvm_bindings::kvm_sregs;
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};
use sregs::register::{
    cr0,
    cr4,
    efer, //
};
use sregs::{
    Effects,
    Ioctl,
    Machine as Has,
    Model,
    Trap,
    Updates, //
};

use crate::module;
use crate::vcpu::{
    Apic,
    Machine,
    Outcome, //
};

harness::tests! {
    "traps.long-mode", "the model enters long mode and leaves it with the guest" => long_mode;
    "traps.faults", "what a processor refuses is a general protection fault" => faults;
    "traps.random", "any writes leave the model, the flushes and the paging mode the rules ask for" => random;
    "traps.migrated", "a guest that came in long mode is known to be in it, if user space says so" => migrated;
}

/// About the module alone.
pub(super) const MODULE_TESTS: &[Test] = &[
    Test {
        name: "traps.counted",
        about: "the module counts each",
        body: counted,
    },
    Test {
        name: "traps.nonsense",
        about: "no writes and no registers of user space, however wrong, end the VM",
        body: nonsense,
    },
];

fn long_mode(_: &Env) -> Verdict {
    let machine = Machine::new(Apic::Kernel)?;
    let protection = machine.protect()?;
    // What a kernel does on its way up, through a kexec into 32-bit code, and up again.
    let up = [
        (Trap::Cr0, cr0::PE | cr0::ET, false),
        (Trap::Cr4, cr4::PAE, false),
        (Trap::Efer, efer::LME | efer::SVME, false),
        (Trap::Cr0, cr0::PE | cr0::ET | cr0::PG | cr0::WP, true),
        (
            Trap::Efer,
            efer::LME | efer::LMA | efer::NX | efer::SCE | efer::SVME,
            true,
        ),
        (Trap::Cr4, cr4::PAE | cr4::PGE, true),
        (
            Trap::Cr0,
            cr0::PE | cr0::ET | cr0::PG | cr0::WP | cr0::TS,
            true,
        ),
    ];
    let down = [
        (Trap::Cr0, cr0::PE | cr0::ET, false),
        (Trap::Efer, efer::SVME, false),
        (Trap::Cr4, 0, false),
        // Paging without long mode.
        (Trap::Cr0, cr0::PE | cr0::ET | cr0::PG, false),
        (Trap::Cr0, cr0::ET, false),
    ];
    for (trap, value, long) in up.iter().chain(&down).chain(&up) {
        expect_eq("the write", protection.trap(*trap, *value)?, Outcome::Done)?;
        let model = machine.model()?;
        let what = format!("{trap:?} = {value:#x}");
        expect_eq(&what, model.efer & efer::LMA != 0, *long)?;
        let (got, written) = match trap {
            Trap::Cr0 => (model.cr0, *value),
            Trap::Cr4 => (model.cr4, *value),
            Trap::Cr8 => (model.cr8, *value),
            Trap::Efer => (model.efer & !efer::LMA, value & !(efer::LMA | efer::SVME)),
        };
        expect_eq(&what, got, written)?;
    }
    Ok(())
}

fn faults(_: &Env) -> Verdict {
    let machine = Machine::new(Apic::Kernel)?;
    let protection = machine.protect()?;
    let refused = |trap, value| -> Verdict {
        let before = machine.model()?;
        let what = format!("{trap:?} = {value:#x}");
        expect_eq(
            &what,
            protection.trap(trap, value)?,
            Outcome::GeneralProtection,
        )?;
        expect_eq(&what, machine.model()?, before)
    };
    refused(Trap::Cr8, 16)?;
    refused(Trap::Cr8, u64::MAX)?;
    refused(Trap::Efer, 1 << 1)?;
    refused(Trap::Efer, 1 << 63)?;
    expect_eq(
        "paging",
        protection.trap(Trap::Cr0, cr0::PE | cr0::PG)?,
        Outcome::Done,
    )?;
    refused(Trap::Efer, efer::LME)?;
    expect_eq("CR8", protection.trap(Trap::Cr8, 15)?, Outcome::Done)?;
    expect_eq("CR8", machine.model()?.cr8, 15)
}

/// EFER bits that KVM does not let this vCPU have, found out one by one.
fn efer_reserved(machine: &Machine) -> Verdict<u64> {
    let protection = machine.protect()?;
    let mut reserved = 0;
    for bit in (0..64).map(|n| 1 << n) {
        if protection.trap(Trap::Efer, bit)? == Outcome::GeneralProtection {
            reserved |= bit;
        }
    }
    expect_eq("a new EFER", protection.trap(Trap::Efer, 0)?, Outcome::Done)?;
    Ok(reserved)
}

/// Whether a processor lets a write through, so that it traps afterwards.
///
/// Without this, KVM's own code would come to a long mode without PAE, take it for a bug of its
/// own, and end the VM.
fn passes(trap: Trap, value: u64, model: &Model) -> bool {
    let paging = model.cr0 & cr0::PG != 0;
    let long = model.efer & efer::LMA != 0;
    match trap {
        Trap::Cr0 => {
            let needs = |bit, other| value & bit == 0 || value & other != 0;
            let enters = !paging && value & cr0::PG != 0 && model.efer & efer::LME != 0;
            needs(cr0::PG, cr0::PE)
                && needs(cr0::NW, cr0::CD)
                && !(enters && model.cr4 & cr4::PAE == 0)
        }
        Trap::Cr4 => {
            let moves = (value ^ model.cr4) & cr4::LA57 != 0;
            !long || value & cr4::PAE != 0 && !moves
        }
        // KVM checks these two once more.
        Trap::Cr8 | Trap::Efer => true,
    }
}

fn random(_: &Env) -> Verdict {
    const ROUNDS: u32 = 4000;
    const CR0: [u64; 7] = [
        cr0::PE,
        cr0::PG,
        cr0::WP,
        cr0::TS,
        cr0::CD,
        cr0::NW,
        cr0::ET,
    ];
    const CR4: [u64; 8] = [
        cr4::PSE,
        cr4::PAE,
        cr4::PGE,
        cr4::LA57,
        cr4::SMEP,
        cr4::SMAP,
        cr4::PKE,
        cr4::PCIDE,
    ];
    const EFER: [u64; 6] = [
        efer::SCE,
        efer::LME,
        efer::LMA,
        efer::NX,
        efer::SVME,
        1 << 5,
    ];

    let machine = Machine::new(Apic::Kernel)?;
    let efer_reserved = efer_reserved(&machine)?;
    let protection = machine.protect()?;
    let first = protection.pending()?;
    let has = Has {
        efer_reserved,
        tdp: first.tdp,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0x7a9);
    let (mut done, mut faulted, mut flushes) = (0, 0, 0);
    let mut role = first.role;
    let mut modes = BTreeMap::new();

    for round in 0..ROUNDS {
        let before = machine.model()?;
        // Mostly one bit more or less, as guests do; else anything of these.
        let (trap, bits, old) = match rng.random_range(0..10) {
            0..4 => (Trap::Cr0, &CR0[..], before.cr0),
            4..7 => (Trap::Cr4, &CR4[..], before.cr4),
            7..9 => (Trap::Efer, &EFER[..], before.efer),
            _ => (Trap::Cr8, &[][..], before.cr8),
        };
        let value = if bits.is_empty() {
            rng.random_range(0..20)
        } else if rng.random_bool(0.7) {
            old ^ bits[rng.random_range(0..bits.len())]
        } else {
            bits.iter().filter(|_| rng.random()).sum()
        };

        if !passes(trap, value, &before) {
            continue;
        }
        let outcome = protection.trap(trap, value)?;
        let (after, pending) = (machine.model()?, protection.pending()?);
        let what = format!("round {round}: {trap:?} = {value:#x} of {before:x?}");
        match before.trap(trap, value, &has) {
            Ok((model, effects)) => {
                done += 1;
                expect_eq(&what, outcome, Outcome::Done)?;
                expect_eq(&what, after, model)?;
                let flushed = (pending.flush_guest, pending.flush_current);
                let flush = (
                    effects.contains(Effects::FLUSH_GUEST),
                    effects.contains(Effects::FLUSH_CURRENT),
                );
                expect_eq(format_args!("flushes, {what}"), flushed, flush)?;
                flushes += u32::from(flush.0 || flush.1);
                expect_eq(
                    format_args!("async #PF is off, {what}"),
                    pending.async_pf,
                    false,
                )?;
                // KVM computes the paging mode anew if asked to, and else leaves it alone.
                let resets =
                    effects.contains(Effects::RESET_MMU) || effects.contains(Effects::INIT_MMU);
                if !resets {
                    expect_eq(format_args!("paging mode, {what}"), pending.role, role)?;
                }
            }
            Err(_) => {
                faulted += 1;
                expect_eq(&what, outcome, Outcome::GeneralProtection)?;
                expect_eq(&what, after, before)?;
                expect_eq(format_args!("paging mode, {what}"), pending.role, role)?;
            }
        }
        role = pending.role;
        // The same registers have the same paging mode, by whatever way they came to be.
        let paging = after.cr0 & cr0::PG != 0;
        let key = (
            after.cr0 & (cr0::PG | if paging { cr0::WP } else { 0 }),
            if paging {
                after.cr4 & (cr4::PSE | cr4::PAE | cr4::LA57 | cr4::SMEP | cr4::SMAP | cr4::PKE)
            } else {
                0
            },
            after.efer & if paging { efer::LMA | efer::NX } else { 0 },
        );
        let known = *modes.entry(key).or_insert(role);
        expect_eq(format_args!("paging mode of {key:x?}, {what}"), role, known)?;
    }
    let mut roles: Vec<_> = modes.values().collect();
    roles.sort_unstable();
    roles.dedup();
    println!(
        "# {done} writes done, {faulted} faulted, {flushes} flushes, {} paging modes for {} registers",
        roles.len(),
        modes.len()
    );
    expect(
        "enough of all of them",
        done > ROUNDS / 3 && faulted > 50 && flushes > 200 && roles.len() > 20,
    )
}

fn migrated(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        let machine = Machine::new(Apic::Kernel)?;
        let protection = machine.protect()?;
        // On the machine it came from, the guest was in long mode.
        let there = kvm_sregs {
            cr0: cr0::PE | cr0::PG | cr0::ET | cr0::WP,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA | efer::NX,
            ..machine.get()?
        };
        machine.set(Ioctl::SetSregs, &there)?;
        // Here it goes on, and some day sets TS.
        expect_eq(
            "TS",
            protection.trap(Trap::Cr0, there.cr0 | cr0::TS)?,
            Outcome::Done,
        )?;
        let model = machine.model()?;
        let known = updates == Updates::Applied;
        let long = model.efer & efer::LMA != 0;
        expect_eq(format_args!("{updates:?}: long mode is known"), long, known)?;
        let pae = model.cr4 & cr4::PAE != 0;
        expect_eq(format_args!("{updates:?}: PAE is known"), pae, known)?;
    }
    Ok(())
}

fn counted(_: &Env) -> Verdict {
    let machine = Machine::new(Apic::Kernel)?;
    let protection = machine.protect()?;
    let base = machine.get()?;
    let before = module::counts()?;
    module::set_policy(Updates::Applied)?;
    for value in [0, 1, 2] {
        protection.trap(Trap::Cr8, value)?;
    }
    protection.trap(Trap::Cr8, 99)?;
    protection.trap(Trap::Cr0, cr0::PE)?;
    protection.trap(Trap::Cr4, 0)?;
    protection.trap(Trap::Efer, 1 << 63)?;
    machine.set(Ioctl::SetSregs, &base)?;
    let wrong = kvm_sregs {
        cr0: 1 << 32,
        ..base
    };
    expect("refused", machine.set(Ioctl::SetSregs, &wrong).is_err())?;
    module::set_policy(Updates::Ignored)?;
    machine.set(Ioctl::SetSregs2, &base)?;
    machine.set(Ioctl::SetSregs2, &base)?;
    module::set_policy(Updates::Applied)?;
    let after = module::counts()?;
    let grown: Vec<_> = after
        .iter()
        .map(|(name, count)| (name.as_str(), count - before.get(name).unwrap_or(&0)))
        .collect();
    let expected = [
        ("cr0 traps", 1),
        ("cr4 traps", 1),
        ("cr8 traps", 4),
        ("efer traps", 1),
        ("faults", 2),
        ("ignored", 2),
        ("refused", 1),
        ("set", 1),
    ];
    expect_eq("counts", grown, expected.to_vec())
}

fn nonsense(_: &Env) -> Verdict {
    module::set_policy(Updates::Applied)?;
    let machine = Machine::new(Apic::Kernel)?;
    let protection = machine.protect()?;
    let base = machine.get()?;
    let long = kvm_sregs {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..base
    };
    // User space says long mode, and the guest goes on in reset; and the other way round.
    for (sregs, trap, value) in [
        (&long, Trap::Cr4, 0),
        (&base, Trap::Efer, efer::LME | efer::LMA),
        (&base, Trap::Cr0, cr0::PG),
    ] {
        machine.set(Ioctl::SetSregs, sregs)?;
        protection.trap(Trap::Efer, efer::LME)?;
        protection.trap(trap, value)?;
        protection.trap(Trap::Cr0, cr0::PE | cr0::PG)?;
        let model = machine.model()?;
        let long = model.efer & efer::LMA != 0;
        expect(
            format_args!("long mode has PAE: {model:x?}"),
            !long || model.cr4 & cr4::PAE != 0,
        )?;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0x0dd);
    let mut modes = [0, 0];
    for _ in 0..2000 {
        let trap = [Trap::Cr0, Trap::Cr4, Trap::Cr8, Trap::Efer][rng.random_range(0..4)];
        let any: u64 = rng.random();
        // Sparse ones, too, or EFER would always fault.
        let value = if rng.random() {
            any
        } else {
            any & rng.random::<u64>() & 0x8001_0d21
        };
        protection.trap(trap, value)?;
        let model = machine.model()?;
        let long = model.efer & efer::LMA != 0;
        modes[usize::from(long)] += 1;
        expect(
            format_args!("long mode has PAE: {model:x?}"),
            !long || model.cr4 & cr4::PAE != 0,
        )?;
    }
    println!("# {} writes left in long mode, {} not", modes[1], modes[0]);
    expect("both", modes[0] > 20 && modes[1] > 20)
}
