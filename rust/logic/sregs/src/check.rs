// SPDX-License-Identifier: GPL-2.0

//! What KVM_SET_SREGS and KVM_SET_SREGS2 refuse.

use crate::register::{
    apic_base,
    cr0,
    cr4,
    efer,
    Model, //
};
use core::fmt;

/// KVM_SREGS2_FLAGS_PDPTRS_VALID: the four PDPTEs of PAE paging are given.
pub const PDPTRS_VALID: u64 = 1 << 0;

/// What user space asks the registers to be, of what is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Control register 8.
    pub cr8: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// The MSR with the address of the local APIC.
    pub apic_base: u64,
    /// The L bit of the code segment: its code is 64-bit code.
    pub cs_l: bool,
    /// The flags of KVM_SET_SREGS2; none for KVM_SET_SREGS.
    pub flags: u64,
}

/// What the vCPU's CPUID, KVM and its vendor module leave to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bits that a guest physical address in CR3 cannot have.
    pub cr3_reserved: u64,
    /// Bits of CR4 that KVM or the vCPU does not have.
    pub cr4_reserved: u64,
    /// Bits of EFER that KVM or the vCPU does not have.
    pub efer_reserved: u64,
    /// Bits of the APIC base that the vCPU does not have.
    pub apic_base_reserved: u64,
    /// The vendor module has nothing against these CR0 and CR4.
    pub vendor_allows: bool,
}

/// Why registers cannot be set so. All of them are EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// A flag that KVM_SET_SREGS2 does not have.
    UnknownFlag,
    /// PDPTEs for a guest whose memory, which holds them, is encrypted.
    PdptrsOfProtected,
    /// Long mode without PAE.
    LongModeWithoutPae,
    /// Paging with LME set, but LMA is not.
    LongModeWithoutLma,
    /// A page table of long mode beyond the guest's physical addresses.
    Cr3Reserved,
    /// LMA set, but not both of LME and paging.
    LmaOutsideLongMode,
    /// A code segment of 64-bit code outside long mode.
    CodeOutsideLongMode,
    /// CR4 bits that the vCPU does not have.
    Cr4Reserved,
    /// Bits of the upper half of CR0.
    Cr0High,
    /// CR0.NW without CR0.CD.
    NwWithoutCd,
    /// Paging outside protected mode.
    PagingWithoutProtection,
    /// The vendor module does not support this.
    Vendor,
    /// EFER bits that the vCPU does not have.
    EferReserved,
    /// APIC base bits that the vCPU does not have.
    ApicBaseReserved,
    /// x2APIC mode of an APIC that is off.
    ApicMode,
}

impl Refusal {
    /// The errno of all refusals, EINVAL, as a positive number.
    pub const ERRNO: i32 = 22;

    /// All there are.
    pub const ALL: [Self; 15] = [
        Self::UnknownFlag,
        Self::PdptrsOfProtected,
        Self::LongModeWithoutPae,
        Self::LongModeWithoutLma,
        Self::Cr3Reserved,
        Self::LmaOutsideLongMode,
        Self::CodeOutsideLongMode,
        Self::Cr4Reserved,
        Self::Cr0High,
        Self::NwWithoutCd,
        Self::PagingWithoutProtection,
        Self::Vendor,
        Self::EferReserved,
        Self::ApicBaseReserved,
        Self::ApicMode,
    ];

    /// The reason in words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::UnknownFlag => "unknown flag",
            Self::PdptrsOfProtected => "PDPTEs of a protected guest",
            Self::LongModeWithoutPae => "long mode without CR4.PAE",
            Self::LongModeWithoutLma => "long mode without EFER.LMA",
            Self::Cr3Reserved => "CR3 beyond the guest's addresses",
            Self::LmaOutsideLongMode => "EFER.LMA outside long mode",
            Self::CodeOutsideLongMode => "CS.L outside long mode",
            Self::Cr4Reserved => "reserved bit of CR4",
            Self::Cr0High => "upper half of CR0",
            Self::NwWithoutCd => "CR0.NW without CR0.CD",
            Self::PagingWithoutProtection => "CR0.PG without CR0.PE",
            Self::Vendor => "not supported by the vendor module",
            Self::EferReserved => "reserved bit of EFER",
            Self::ApicBaseReserved => "reserved bit of the APIC base",
            Self::ApicMode => "x2APIC mode with the APIC off",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// Refuses with the first reason in the order of the C code, whose errno is the same for all.
pub(crate) fn check(model: &Model, asked: &Asked, limits: &Limits) -> Result<(), Refusal> {
    let refuse_if = |wrong, refusal| if wrong { Err(refusal) } else { Ok(()) };

    refuse_if(asked.flags & !PDPTRS_VALID != 0, Refusal::UnknownFlag)?;
    refuse_if(asked.flags & PDPTRS_VALID != 0, Refusal::PdptrsOfProtected)?;

    let lma = asked.efer & efer::LMA != 0;
    if asked.efer & efer::LME != 0 && asked.cr0 & cr0::PG != 0 {
        refuse_if(asked.cr4 & cr4::PAE == 0, Refusal::LongModeWithoutPae)?;
        refuse_if(!lma, Refusal::LongModeWithoutLma)?;
        refuse_if(asked.cr3 & limits.cr3_reserved != 0, Refusal::Cr3Reserved)?;
    } else {
        refuse_if(lma, Refusal::LmaOutsideLongMode)?;
        refuse_if(asked.cs_l, Refusal::CodeOutsideLongMode)?;
    }

    refuse_if(asked.cr4 & limits.cr4_reserved != 0, Refusal::Cr4Reserved)?;
    refuse_if(asked.cr0 & cr0::HIGH != 0, Refusal::Cr0High)?;
    refuse_if(
        asked.cr0 & (cr0::NW | cr0::CD) == cr0::NW,
        Refusal::NwWithoutCd,
    )?;
    refuse_if(
        asked.cr0 & (cr0::PG | cr0::PE) == cr0::PG,
        Refusal::PagingWithoutProtection,
    )?;
    refuse_if(!limits.vendor_allows, Refusal::Vendor)?;
    refuse_if(
        asked.efer & limits.efer_reserved != 0,
        Refusal::EferReserved,
    )?;

    if asked.apic_base == model.apic_base {
        // As it is, it may even have bits that the vCPU's CPUID has lost since.
        return Ok(());
    }
    refuse_if(
        asked.apic_base & limits.apic_base_reserved != 0,
        Refusal::ApicBaseReserved,
    )?;
    refuse_if(
        asked.apic_base & (apic_base::EN | apic_base::EXTD) == apic_base::EXTD,
        Refusal::ApicMode,
    )
}
