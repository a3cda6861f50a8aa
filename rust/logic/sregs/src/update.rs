// SPDX-License-Identifier: GPL-2.0

//! How the model changes.

use crate::check::{
    check,
    Asked,
    Limits,
    Refusal, //
};
use crate::effects::{
    self,
    Effects, //
};
use crate::register::{
    cr0,
    cr8,
    efer,
    infer_lma,
    Model, //
};

/// What becomes of registers that user space sets for a vCPU whose state is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Updates {
    /// They update the model: it is right from the start for a guest that was migrated.
    Applied,
    /// They are checked and forgotten, as Linux 7.3 does.
    Ignored,
}

/// A register that the guest has written, and which trapped afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// Control register 0.
    Cr0,
    /// Control register 4.
    Cr4,
    /// Control register 8.
    Cr8,
    /// Extended feature enable register.
    Efer,
}

/// The guest wrote what a processor refuses: it gets a general protection fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// What of the machine a write to a register depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Bits of EFER that KVM or the vCPU does not have.
    pub efer_reserved: u64,
    /// Two-dimensional paging: the guest's page tables are not shadowed.
    pub tdp: bool,
}

impl Model {
    /// KVM_SET_SREGS and KVM_SET_SREGS2: the model afterwards, and what is to be done.
    ///
    /// Nothing has changed if it is refused. `updates` makes no difference to what is refused.
    pub fn set_sregs(
        &self,
        asked: &Asked,
        limits: &Limits,
        updates: Updates,
    ) -> Result<(Self, Effects), Refusal> {
        check(self, asked, limits)?;
        let mut new = Self {
            apic_base: asked.apic_base,
            ..*self
        };
        if updates == Updates::Ignored {
            return Ok((new, Effects::NONE));
        }
        // Hardware sets SVME in an encrypted EFER whatever the guest does, and the trap hides it.
        new.efer = asked.efer & !efer::SVME;
        new.cr0 = asked.cr0;
        new.cr4 = asked.cr4;
        if asked.cr8 & cr8::RESERVED == 0 {
            new.cr8 = asked.cr8;
        }
        let changed = (new.cr0, new.cr4, new.efer) != (self.cr0, self.cr4, self.efer);
        Ok((new, effects::of_set(changed)))
    }

    /// The guest has written `value`: the model afterwards, and what is to be done.
    ///
    /// The hardware has checked CR0 and CR4 before it stored them. EFER is checked here too,
    /// because the guest may have bits that its CPUID does not show.
    pub fn trap(
        &self,
        trap: Trap,
        value: u64,
        machine: &Machine,
    ) -> Result<(Self, Effects), GeneralProtection> {
        let mut new = *self;
        let effects = match trap {
            Trap::Cr0 => {
                new.cr0 = value;
                new.efer = infer_lma(self.efer, value, self.cr4);
                effects::of_cr0(self.cr0, value, machine.tdp)
            }
            Trap::Cr4 => {
                new.cr4 = value;
                new.efer = infer_lma(self.efer, self.cr0, value);
                effects::of_cr4(self.cr4, value, machine.tdp)
            }
            Trap::Cr8 => {
                if value & cr8::RESERVED != 0 {
                    return Err(GeneralProtection);
                }
                new.cr8 = value;
                Effects::NONE
            }
            Trap::Efer => {
                let value = value & !efer::SVME;
                let switches = (value ^ self.efer) & efer::LME != 0;
                if value & machine.efer_reserved != 0 || switches && self.cr0 & cr0::PG != 0 {
                    return Err(GeneralProtection);
                }
                new.efer = infer_lma(value, self.cr0, self.cr4);
                effects::of_efer(self.efer, new.efer)
            }
        };
        Ok((new, effects))
    }
}
