// SPDX-License-Identifier: GPL-2.0

//! The fields of struct kvm_sregs and struct kvm_sregs2, and what becomes of each.

use crate::update::Updates;

/// The two ways to set the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ioctl {
    /// KVM_SET_SREGS.
    SetSregs,
    /// KVM_SET_SREGS2.
    SetSregs2,
}

/// A field, or fields that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The L bit of the code segment.
    CodeSegmentL,
    /// All else of the code segment, and the data, task and LDT segments.
    Segments,
    /// Base and limit of the GDT and the IDT.
    Tables,
    /// Control register 0.
    Cr0,
    /// Control register 2.
    Cr2,
    /// Control register 3.
    Cr3,
    /// Control register 4.
    Cr4,
    /// Control register 8.
    Cr8,
    /// Extended feature enable register.
    Efer,
    /// The MSR with the address of the local APIC.
    ApicBase,
    /// The interrupt to be delivered, of KVM_SET_SREGS.
    InterruptBitmap,
    /// The flags of KVM_SET_SREGS2.
    Flags,
    /// The PDPTEs of KVM_SET_SREGS2.
    Pdptrs,
}

/// What becomes of a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Refused if it is invalid, else taken over.
    Taken,
    /// Refused if it is invalid, else without effect.
    Checked,
    /// Without effect, whatever it is.
    Ignored,
    /// Refused unless it is zero.
    Refused,
    /// Not in this structure.
    Absent,
}

impl Field {
    /// All there are.
    pub const ALL: [Self; 13] = [
        Self::CodeSegmentL,
        Self::Segments,
        Self::Tables,
        Self::Cr0,
        Self::Cr2,
        Self::Cr3,
        Self::Cr4,
        Self::Cr8,
        Self::Efer,
        Self::ApicBase,
        Self::InterruptBitmap,
        Self::Flags,
        Self::Pdptrs,
    ];

    /// What becomes of it if the vCPU's state is protected.
    ///
    /// That is for virtual machines whose type does not say that state is protected, those of
    /// KVM_SEV_ES_INIT. All others refuse both calls as a whole.
    #[must_use]
    pub const fn fate(self, ioctl: Ioctl, updates: Updates) -> Fate {
        let applied = matches!(updates, Updates::Applied);
        match (self, ioctl) {
            (Self::CodeSegmentL | Self::Cr3, _) => Fate::Checked,
            (Self::Segments | Self::Tables | Self::Cr2, _) => Fate::Ignored,
            (Self::Cr0 | Self::Cr4 | Self::Efer, _) if applied => Fate::Taken,
            (Self::Cr0 | Self::Cr4 | Self::Efer, _) => Fate::Checked,
            // An invalid priority is not taken over, nor refused.
            (Self::Cr8, _) if applied => Fate::Taken,
            (Self::Cr8, _) => Fate::Ignored,
            (Self::ApicBase, _) => Fate::Taken,
            (Self::InterruptBitmap, Ioctl::SetSregs) => Fate::Taken,
            (Self::Flags, Ioctl::SetSregs2) => Fate::Refused,
            (Self::Pdptrs, Ioctl::SetSregs2) => Fate::Ignored,
            (Self::InterruptBitmap, Ioctl::SetSregs2)
            | (Self::Flags | Self::Pdptrs, Ioctl::SetSregs) => Fate::Absent,
        }
    }
}
