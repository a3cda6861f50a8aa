// SPDX-License-Identifier: GPL-2.0

//! Special registers of vCPUs whose state is protected.
//!
//! The `sregs` crate decides, here it is done, counted and told.

use ::sregs::{
    Asked,
    GeneralProtection,
    Trap,
    Updates, //
};
use core::fmt;
use kernel::{
    debugfs,
    fmt as kfmt,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use kvm::sregs::{
    Keeper,
    Vcpu, //
};

/// What has happened since the module was loaded.
struct Counts {
    set: Atomic<usize>,
    ignored: Atomic<usize>,
    refused: Atomic<usize>,
    cr0: Atomic<usize>,
    cr4: Atomic<usize>,
    cr8: Atomic<usize>,
    efer: Atomic<usize>,
    faults: Atomic<usize>,
}

static COUNTS: Counts = Counts {
    set: Atomic::new(0),
    ignored: Atomic::new(0),
    refused: Atomic::new(0),
    cr0: Atomic::new(0),
    cr4: Atomic::new(0),
    cr8: Atomic::new(0),
    efer: Atomic::new(0),
    faults: Atomic::new(0),
};

fn count(counter: &Atomic<usize>) {
    counter.fetch_add(1, Relaxed);
}

/// The file `sregs`.
pub(crate) struct Report;

impl debugfs::Writer for Report {
    fn write(&self, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("set", &COUNTS.set),
            ("ignored", &COUNTS.ignored),
            ("refused", &COUNTS.refused),
            ("cr0 traps", &COUNTS.cr0),
            ("cr4 traps", &COUNTS.cr4),
            ("cr8 traps", &COUNTS.cr8),
            ("efer traps", &COUNTS.efer),
            ("faults", &COUNTS.faults),
        ];
        for (name, count) in counts {
            writeln!(f, "{name}: {}", count.load(Relaxed))?;
        }
        Ok(())
    }
}

/// Keeps them by the rules of the `sregs` crate.
pub(crate) struct Sregs;

impl Keeper for Sregs {
    fn set(vcpu: &mut Vcpu<'_>, asked: &Asked) -> Result {
        let updates = kvm::sregs::updates();
        let outcome = vcpu.model().set_sregs(asked, &vcpu.limits(asked), updates);
        vcpu.trace_set(asked, outcome.map(|_| updates));
        let Ok((new, effects)) = outcome else {
            count(&COUNTS.refused);
            return Err(EINVAL);
        };
        vcpu.store(&new, effects)?;
        count(match updates {
            Updates::Applied => &COUNTS.set,
            Updates::Ignored => &COUNTS.ignored,
        });
        Ok(())
    }

    fn trap(vcpu: &mut Vcpu<'_>, trap: Trap, value: u64) -> Result<(), GeneralProtection> {
        count(match trap {
            Trap::Cr0 => &COUNTS.cr0,
            Trap::Cr4 => &COUNTS.cr4,
            Trap::Cr8 => &COUNTS.cr8,
            Trap::Efer => &COUNTS.efer,
        });
        let trapped = vcpu
            .model()
            .trap(trap, value, &vcpu.machine())
            .and_then(|(new, effects)| {
                let stored = vcpu.store_one(trap, &new, effects);
                stored.map(|()| effects).map_err(|_| GeneralProtection)
            });
        vcpu.trace_trap(trap, value, trapped);
        if trapped.is_err() {
            count(&COUNTS.faults);
        }
        trapped.map(|_| ())
    }
}
