// SPDX-License-Identifier: GPL-2.0

//! Which fields are taken, checked, ignored or refused: one by one, through the ioctls.

use harness::check::{
    expect,
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::Env;
use kvm_bindings::{
    kvm_sregs,
    kvm_sregs2,
    kvm_vcpu_events,
    KVM_SYNC_X86_SREGS, //
};
use kvm_ioctls::SyncReg;
use nix::errno::Errno;
use sregs::register::{
    cr0,
    cr4,
    efer, //
};
use sregs::{
    Fate,
    Field,
    Ioctl,
    Model,
    Updates,
    PDPTRS_VALID, //
};

use crate::module;
use crate::vcpu::{
    as_sregs2,
    Apic,
    Machine,
    Protection, //
};

harness::tests! {
    "contract.fields", "each field is taken, checked, ignored or refused" => fields;
    "contract.hidden", "registers that are encrypted stay as they were" => hidden;
    "contract.flags", "KVM_SET_SREGS2 takes neither PDPTEs nor unknown flags" => flags;
    "contract.interrupt", "KVM_SET_SREGS injects an interrupt, KVM_SET_SREGS2 does not" => interrupt;
    "contract.priority", "CR8 is the APIC's, or the vCPU's own without one" => priority;
    "contract.sync", "registers that KVM_RUN takes over are treated alike" => sync;
    "contract.sealed", "a VM whose type says that state is protected refuses all calls" => sealed;
    "contract.others", "a vCPU that is not protected keeps being KVM's alone" => others;
}

const IOCTLS: [Ioctl; 2] = [Ioctl::SetSregs, Ioctl::SetSregs2];

/// A change of one field, and whether it is valid.
type Change = (bool, fn(&mut kvm_sregs));

/// Examples for each field. Long mode is on.
fn changes(field: Field) -> &'static [Change] {
    match field {
        Field::CodeSegmentL => &[
            (true, |s| s.cs.l = 1),
            (false, |s| {
                // Outside of long mode.
                s.cs.l = 1;
                s.cr0 = cr0::PE;
                s.efer = 0;
            }),
        ],
        Field::Segments => &[
            (true, |s| s.cs.base = 0x1234_5000),
            (true, |s| s.ds.selector = 0xffff),
            (true, |s| s.es.limit = 1),
            (true, |s| s.fs.base = u64::MAX),
            (true, |s| s.gs.type_ = 0xff),
            (true, |s| s.ss.dpl = 3),
            (true, |s| s.tr.present = 0),
            (true, |s| s.ldt.unusable = 0),
        ],
        Field::Tables => &[
            (true, |s| s.gdt.base = 0x7000),
            (true, |s| s.gdt.limit = 0x17),
            (true, |s| s.idt.base = 0x8000),
            (true, |s| s.idt.limit = 0x1f),
        ],
        Field::Cr0 => &[
            (true, |s| s.cr0 |= cr0::TS),
            (true, |s| s.cr0 |= cr0::WP),
            (true, |s| s.cr0 |= cr0::CD | cr0::NW),
            (false, |s| s.cr0 |= cr0::NW),
            (false, |s| s.cr0 &= !cr0::PE),
            (false, |s| s.cr0 |= 1 << 32),
            (false, |s| s.cr0 &= !cr0::PG),
        ],
        Field::Cr2 => &[(true, |s| s.cr2 = 0xdead_beef)],
        Field::Cr3 => &[
            (true, |s| s.cr3 = 0x9000),
            (false, |s| s.cr3 = 1 << 62),
            (false, |s| s.cr3 = u64::MAX),
        ],
        Field::Cr4 => &[
            (true, |s| s.cr4 |= cr4::PGE),
            (true, |s| s.cr4 |= cr4::SMEP),
            (false, |s| s.cr4 &= !cr4::PAE),
            (false, |s| s.cr4 |= 1 << 63),
        ],
        Field::Cr8 => &[(true, |s| s.cr8 = 9), (true, |s| s.cr8 = 15)],
        Field::Efer => &[
            (true, |s| s.efer |= efer::NX),
            (true, |s| s.efer |= efer::SCE),
            (false, |s| s.efer |= 1 << 1),
            (false, |s| s.efer &= !efer::LMA),
            (false, |s| s.efer &= !efer::LME),
        ],
        Field::ApicBase => &[
            // Only the boot processor's bit, then x2APIC mode, then off.
            (true, |s| s.apic_base ^= 1 << 8),
            (true, |s| s.apic_base |= 1 << 10),
            (true, |s| s.apic_base &= !(1 << 11)),
            (false, |s| s.apic_base |= 1),
            (false, |s| s.apic_base |= 1 << 9),
            (false, |s| s.apic_base = 0xfee0_0400),
            (false, |s| s.apic_base |= 1 << 62),
        ],
        // On their own below.
        Field::InterruptBitmap | Field::Flags | Field::Pdptrs => &[],
    }
}

/// A guest in long mode.
fn long_mode(sregs: kvm_sregs) -> kvm_sregs {
    kvm_sregs {
        cr0: cr0::PE | cr0::PG | cr0::ET,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..sregs
    }
}

fn differing(old: &Model, new: &Model) -> Vec<Field> {
    let all = [
        (Field::Cr0, old.cr0 != new.cr0),
        (Field::Cr4, old.cr4 != new.cr4),
        (Field::Cr8, old.cr8 != new.cr8),
        (Field::Efer, old.efer != new.efer),
        (Field::ApicBase, old.apic_base != new.apic_base),
    ];
    let some = all.into_iter().filter(|(_, differs)| *differs);
    some.map(|(field, _)| field).collect()
}

fn fields(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        for ioctl in IOCTLS {
            let machine = Machine::new(Apic::Kernel)?;
            let protection = machine.protect()?;
            let base = long_mode(machine.get()?);
            for field in Field::ALL {
                let fate = field.fate(ioctl, updates);
                for (number, (valid, alter)) in changes(field).iter().enumerate() {
                    let what = format!("{updates:?} {ioctl:?} {field:?} {number}");
                    machine.set(ioctl, &base)?;
                    let mut asked = base;
                    alter(&mut asked);
                    one_field(
                        &what,
                        &machine,
                        &protection,
                        ioctl,
                        field,
                        fate,
                        *valid,
                        &asked,
                    )?;
                }
            }
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn one_field(
    what: &str,
    machine: &Machine,
    protection: &Protection,
    ioctl: Ioctl,
    field: Field,
    fate: Fate,
    valid: bool,
    asked: &kvm_sregs,
) -> Verdict {
    let before = machine.model()?;
    protection.pending()?;
    let answer = machine.set(ioctl, asked);
    let after = machine.model()?;
    let changed = differing(&before, &after);

    match (fate, valid) {
        (Fate::Taken, true) => {
            expect_eq(what, answer, Ok(()))?;
            expect_eq(what, changed, vec![field])?;
            let (got, asked) = match field {
                Field::Cr0 => (after.cr0, asked.cr0),
                Field::Cr4 => (after.cr4, asked.cr4),
                Field::Cr8 => (after.cr8, asked.cr8),
                Field::Efer => (after.efer, asked.efer),
                _ => (after.apic_base, asked.apic_base),
            };
            expect_eq(what, got, asked)?;
            let resets = matches!(field, Field::Cr0 | Field::Cr4 | Field::Efer);
            expect_eq(what, protection.pending()?.flush_guest, resets)
        }
        (Fate::Checked | Fate::Ignored, true) => {
            expect_eq(what, answer, Ok(()))?;
            expect_eq(what, changed, vec![])?;
            expect_eq(what, protection.pending()?.flush_guest, false)
        }
        (Fate::Taken | Fate::Checked | Fate::Refused, false) => {
            expect_eq(what, answer, Err(Errno::EINVAL))?;
            expect_eq(what, changed, vec![])
        }
        (Fate::Ignored, false) => {
            expect_eq(what, answer, Ok(()))?;
            expect_eq(what, changed, vec![])
        }
        (fate, _) => Err(Stop::fail(format_args!("{what}: {fate:?}"))),
    }
}

fn hidden(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        for ioctl in IOCTLS {
            let machine = Machine::new(Apic::Kernel)?;
            let before = machine.get()?;
            {
                let _protection = machine.protect()?;
                // They cannot be read, either.
                let shown = machine.get()?;
                let nothing = kvm_sregs {
                    cr0: shown.cr0,
                    cr4: shown.cr4,
                    cr8: shown.cr8,
                    efer: shown.efer,
                    apic_base: shown.apic_base,
                    ..kvm_sregs::default()
                };
                expect_eq("what is shown", shown, nothing)?;
                let mut asked = long_mode(before);
                asked.cr2 = 0x5555;
                asked.cs.base = 0x6000;
                asked.tr.limit = 0x123;
                asked.gdt.base = 0x7000;
                asked.idt.limit = 0x77;
                machine.set(ioctl, &asked)?;
            }
            // An ordinary vCPU again, with what it had.
            let after = machine.get()?;
            let expected = kvm_sregs {
                cr0: after.cr0,
                cr4: after.cr4,
                cr8: after.cr8,
                efer: after.efer,
                ..before
            };
            expect_eq(format_args!("{updates:?} {ioctl:?}"), after, expected)?;
        }
    }
    Ok(())
}

fn flags(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        let machine = Machine::new(Apic::Kernel)?;
        let _protection = machine.protect()?;
        let base = as_sregs2(&machine.get()?);
        let before = machine.model()?;
        let pae = kvm_sregs2 {
            cr0: cr0::PE | cr0::PG,
            cr4: cr4::PAE,
            ..base
        };
        for (flags, sregs) in [
            (PDPTRS_VALID, base),
            (PDPTRS_VALID, pae),
            (2, base),
            (1 << 63, base),
        ] {
            let answer = machine.set2(&kvm_sregs2 { flags, ..sregs });
            expect_eq(format_args!("flags {flags:#x}"), answer, Err(Errno::EINVAL))?;
            expect_eq("the model", machine.model()?, before)?;
        }
        let pdptrs = [u64::MAX; 4];
        let answer = machine.set2(&kvm_sregs2 { pdptrs, ..base });
        expect_eq("PDPTEs without the flag", answer, Ok(()))?;
        let shown = machine.get2()?;
        expect_eq("flags and PDPTEs", (shown.flags, shown.pdptrs), (0, [0; 4]))?;
    }
    Ok(())
}

fn interrupt(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        for ioctl in IOCTLS {
            let machine = Machine::new(Apic::Kernel)?;
            let _protection = machine.protect()?;
            let mut asked = machine.get()?;
            asked.interrupt_bitmap[1] = 1 << 5;
            // A refused call injects nothing.
            let mut wrong = asked;
            wrong.cr0 = 1 << 32;
            expect_eq("refused", machine.set(ioctl, &wrong), Err(Errno::EINVAL))?;
            expect_eq("after a refusal", machine.interrupt()?, None)?;
            machine.set(ioctl, &asked)?;
            let injected = Field::InterruptBitmap.fate(ioctl, updates) == Fate::Taken;
            expect_eq(
                format_args!("{updates:?} {ioctl:?}"),
                machine.interrupt()?,
                injected.then_some(69),
            )?;
            expect_eq("what is shown", machine.get()?.interrupt_bitmap, [0; 4])?;
            let none = kvm_vcpu_events::default();
            machine
                .vcpu
                .set_vcpu_events(&none)
                .map_err(crate::vcpu::errno)?;
        }
    }
    Ok(())
}

fn priority(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        for apic in [Apic::Kernel, Apic::None] {
            let machine = Machine::new(apic)?;
            let _protection = machine.protect()?;
            let base = machine.get()?;
            for (cr8, exists) in [(7, true), (16, false), (u64::MAX, false), (3, true)] {
                let before = machine.model()?.cr8;
                machine.set(Ioctl::SetSregs, &kvm_sregs { cr8, ..base })?;
                let taken = exists && updates == Updates::Applied;
                let expected = if taken { cr8 } else { before };
                expect_eq(
                    format_args!("CR8 = {cr8:#x}"),
                    machine.model()?.cr8,
                    expected,
                )?;
            }
        }
    }
    Ok(())
}

fn sync(_: &Env) -> Verdict {
    for &updates in module::policies() {
        module::set_policy(updates)?;
        let mut machine = Machine::new(Apic::Kernel)?;
        let _protection = machine.protect()?;
        let before = machine.model()?;
        let asked = long_mode(machine.get()?);
        let run = |machine: &mut Machine, sregs| {
            machine.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
            machine.vcpu.sync_regs_mut().sregs = sregs;
            // Takes over the registers and comes back without entering the guest.
            machine.vcpu.set_kvm_immediate_exit(1);
            let answer = machine.vcpu.run().map(|_| ()).map_err(crate::vcpu::errno);
            let dirty = machine.vcpu.get_kvm_run().kvm_dirty_regs;
            (answer, dirty & u64::from(KVM_SYNC_X86_SREGS) != 0)
        };
        let wrong = kvm_sregs { cr4: 0, ..asked };
        let refused = run(&mut machine, wrong);
        expect_eq("refused", refused, (Err(Errno::EINVAL), true))?;
        expect_eq("after a refusal", machine.model()?, before)?;
        let taken = run(&mut machine, asked);
        expect_eq("taken over", taken, (Err(Errno::EINTR), false))?;
        let after = machine.model()?;
        let expected = match updates {
            Updates::Applied => Model {
                cr0: asked.cr0,
                cr4: asked.cr4,
                efer: asked.efer,
                ..before
            },
            Updates::Ignored => before,
        };
        expect_eq(format_args!("{updates:?}"), after, expected)?;
    }
    Ok(())
}

fn sealed(_: &Env) -> Verdict {
    let machine = Machine::new(Apic::Kernel)?;
    let before = machine.get()?;
    {
        let _protection = machine.seal()?;
        for ioctl in IOCTLS {
            expect_eq("set", machine.set(ioctl, &before), Err(Errno::EINVAL))?;
        }
        expect("KVM_GET_SREGS is refused", machine.get().is_err())?;
        expect_eq("get", machine.get2().map(|_| ()), Err(Errno::EINVAL))?;
    }
    expect_eq("afterwards", machine.get()?, before)
}

fn others(_: &Env) -> Verdict {
    let counts = || {
        if module::is_tested() {
            module::counts().map(Some)
        } else {
            Ok(None)
        }
    };
    let before = counts()?;
    let machine = Machine::new(Apic::Kernel)?;
    let mut asked = long_mode(machine.get()?);
    asked.cs.l = 1;
    asked.cs.db = 0;
    asked.cr2 = 0x1234;
    for ioctl in IOCTLS {
        machine.set(ioctl, &asked)?;
        expect_eq("set and got", machine.get()?, asked)?;
        let wrong = kvm_sregs { cr4: 0, ..asked };
        expect_eq("refused", machine.set(ioctl, &wrong), Err(Errno::EINVAL))?;
    }
    expect_eq("what the module counted", counts()?, before)
}
