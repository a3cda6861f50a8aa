// SPDX-License-Identifier: GPL-2.0

//! The bits of special registers that decisions depend on.

/// Control register 0.
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type, always 1.
    pub const ET: u64 = 1 << 4;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// Must be zero.
    pub const HIGH: u64 = 0xffff_ffff_0000_0000;
}

/// Control register 4.
pub mod cr4 {
    /// Page size extensions.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// 57-bit linear addresses.
    pub const LA57: u64 = 1 << 12;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys.
    pub const PKE: u64 = 1 << 22;
}

/// Control register 8.
pub mod cr8 {
    /// Must be zero: the task priority has four bits.
    pub const RESERVED: u64 = !0xf;
}

/// Extended feature enable register.
pub mod efer {
    /// System call extensions.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NX: u64 = 1 << 11;
    /// Secure virtual machine enable.
    pub const SVME: u64 = 1 << 12;
}

/// The MSR with the address of the local APIC.
pub mod apic_base {
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    /// Enabled.
    pub const EN: u64 = 1 << 11;
}

/// The registers of a vCPU whose state is protected, as KVM believes them to be.
///
/// The guest's own are encrypted. KVM sees what the guest writes to them by way of write traps,
/// and by those alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Model {
    /// Control register 0.
    pub cr0: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Control register 8, the task priority.
    pub cr8: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Where the local APIC is, and its mode.
    pub apic_base: u64,
}

/// EFER with LMA as the processor has it, which makes it from EFER.LME and CR0.PG.
///
/// A guest that enables paging with LME set enters long mode without writing EFER, so no trap of
/// EFER tells of it.
///
/// No processor has both of them without CR4.PAE. A model that does is wrong, be it that nobody
/// told KVM of the guest's PAE, or that user space told what was not so. KVM's MMU takes long mode
/// without PAE for a bug of its own and ends the VM, so such a model is not in long mode.
#[must_use]
pub const fn infer_lma(efer: u64, cr0: u64, cr4: u64) -> u64 {
    if efer & efer::LME != 0 && cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 {
        efer | efer::LMA
    } else {
        efer & !efer::LMA
    }
}
