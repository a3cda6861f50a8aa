// SPDX-License-Identifier: GPL-2.0

//! Any registers, against what the `sregs` crate says of them.

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use kvm_bindings::kvm_sregs;
use nix::errno::Errno;
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
    Asked,
    Ioctl,
    Limits,
    Model, //
};

use crate::module;
use crate::vcpu::{
    Apic,
    Machine, //
};

harness::tests! {
    "requests.random", "any registers are refused or taken as the rules say" => random;
    "requests.order", "a refused call changes nothing, not even the APIC" => order;
}

/// Finds out by trying single bits what the vCPU does not have.
fn limits(machine: &Machine) -> Verdict<Limits> {
    let base = machine.get()?;
    let reserved = |alter: fn(&mut kvm_sregs, u64), base: kvm_sregs| {
        (0..64)
            .map(|n| 1 << n)
            .filter(|bit| {
                let mut asked = base;
                alter(&mut asked, *bit);
                machine.set(Ioctl::SetSregs, &asked).is_err()
            })
            .sum::<u64>()
    };
    let long = kvm_sregs {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..base
    };
    let limits = Limits {
        cr3_reserved: reserved(|s, bit| s.cr3 = bit, long),
        cr4_reserved: reserved(|s, bit| s.cr4 = bit, base),
        // LMA alone is refused for another reason.
        efer_reserved: reserved(|s, bit| s.efer = bit, base) & !efer::LMA,
        // On top of an APIC that is on, so that x2APIC mode is not refused for another reason.
        apic_base_reserved: reserved(|s, bit| s.apic_base = bit | 1 << 11, base),
        vendor_allows: true,
    };
    machine.set(Ioctl::SetSregs, &base)?;
    Ok(limits)
}

/// Bits that rules are about, with some that no vCPU has.
const CR0: &[u64] = &[
    cr0::PE,
    cr0::PG,
    cr0::NW,
    cr0::CD,
    cr0::WP,
    cr0::TS,
    cr0::ET,
    1 << 40,
];
const CR4: &[u64] = &[cr4::PAE, cr4::PGE, cr4::PSE, cr4::SMEP, cr4::LA57, 1 << 62];
const EFER: &[u64] = &[
    efer::LME,
    efer::LMA,
    efer::NX,
    efer::SCE,
    efer::SVME,
    1 << 2,
];

/// Each of `usual` with a good chance, the last, which is not valid, with a small one.
fn some(rng: &mut ChaCha8Rng, usual: &[u64]) -> u64 {
    let (invalid, valid) = usual.split_last().expect("not empty");
    let valid = valid.iter().filter(|_| rng.random_bool(0.5)).sum::<u64>();
    valid | if rng.random_bool(0.03) { *invalid } else { 0 }
}

/// A request that is valid about every other time.
fn request(rng: &mut ChaCha8Rng, model: &Model) -> Asked {
    let mut asked = Asked {
        cr0: some(rng, CR0),
        cr3: if rng.random_bool(0.05) {
            rng.random()
        } else {
            0x2000
        },
        cr4: some(rng, CR4),
        cr8: rng.random_range(0..20),
        efer: some(rng, EFER),
        apic_base: match rng.random_range(0..10) {
            0 => 0xfee0_0000 | rng.random_range(0..0x1000),
            1 => 0xfee0_0800,
            2 => 0xfee0_0000,
            _ => model.apic_base,
        },
        cs_l: rng.random_bool(0.2),
        flags: 0,
    };
    if rng.random_bool(0.7) {
        // Mend what would be refused nearly always.
        asked.cr0 |= if asked.cr0 & cr0::PG != 0 { cr0::PE } else { 0 };
        asked.cr0 |= if asked.cr0 & cr0::NW != 0 { cr0::CD } else { 0 };
        if asked.cr0 & cr0::PG != 0 && asked.efer & efer::LME != 0 {
            asked.cr4 |= cr4::PAE;
            asked.efer |= efer::LMA;
        } else {
            asked.efer &= !efer::LMA;
            asked.cs_l = false;
        }
    }
    asked
}

fn random(_: &Env) -> Verdict {
    const ROUNDS: u32 = 4000;
    for &updates in module::policies() {
        module::set_policy(updates)?;
        let machine = Machine::new(Apic::Kernel)?;
        let protection = machine.protect()?;
        let limits = limits(&machine)?;
        let mut rng = ChaCha8Rng::seed_from_u64(0x5e5);
        let (mut taken, mut refused) = (0, 0);
        for round in 0..ROUNDS {
            let before = machine.model()?;
            let asked = request(&mut rng, &before);
            let ioctl = if rng.random() {
                Ioctl::SetSregs
            } else {
                Ioctl::SetSregs2
            };
            let mut sregs = kvm_sregs {
                cr0: asked.cr0,
                cr3: asked.cr3,
                cr4: asked.cr4,
                cr8: asked.cr8,
                efer: asked.efer,
                apic_base: asked.apic_base,
                ..kvm_sregs::default()
            };
            sregs.cs.l = asked.cs_l.into();
            protection.pending()?;
            let answer = machine.set(ioctl, &sregs);
            let what = format!("{updates:?} round {round}: {asked:x?} of {before:x?}");
            match before.set_sregs(&asked, &limits, updates) {
                Ok((model, effects)) => {
                    taken += 1;
                    expect_eq(&what, answer, Ok(()))?;
                    expect_eq(&what, machine.model()?, model)?;
                    let flush = effects.contains(sregs::Effects::FLUSH_GUEST);
                    expect_eq(&what, protection.pending()?.flush_guest, flush)?;
                }
                Err(_) => {
                    refused += 1;
                    expect_eq(&what, answer, Err(Errno::EINVAL))?;
                    expect_eq(&what, machine.model()?, before)?;
                }
            }
        }
        expect(
            format_args!("taken {taken}, refused {refused}"),
            taken > ROUNDS / 5 && refused > ROUNDS / 5,
        )?;
    }
    Ok(())
}

fn order(_: &Env) -> Verdict {
    let machine = Machine::new(Apic::Kernel)?;
    let _protection = machine.protect()?;
    let before = machine.model()?;
    let base = machine.get()?;
    // Valid but for one thing each: the APIC's base is looked at last, and set first.
    let moved = kvm_sregs {
        apic_base: 0xfed0_0900,
        cr8: 5,
        ..base
    };
    let wrong = [
        kvm_sregs {
            cr0: cr0::NW,
            ..moved
        },
        kvm_sregs {
            cr4: 1 << 63,
            ..moved
        },
        kvm_sregs {
            efer: 1 << 63,
            ..moved
        },
        kvm_sregs {
            apic_base: 0xfed0_0901,
            cr0: cr0::PE,
            ..moved
        },
    ];
    for asked in wrong {
        for ioctl in [Ioctl::SetSregs, Ioctl::SetSregs2] {
            expect_eq("refused", machine.set(ioctl, &asked), Err(Errno::EINVAL))?;
            expect_eq("the model", machine.model()?, before)?;
        }
    }
    Ok(())
}
