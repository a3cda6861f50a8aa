// SPDX-License-Identifier: GPL-2.0

//! What KVM has to do about its MMU and its requests when a register has changed.

use crate::register::{
    cr0,
    cr4,
    efer, //
};

/// Things to do, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Effects(u32);

impl Effects {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Drop the roots and compute the MMU's role anew.
    pub const RESET_MMU: Self = Self(1 << 0);
    /// Compute the MMU's role anew; the roots stay.
    pub const INIT_MMU: Self = Self(1 << 1);
    /// Drop all roots, previous ones too.
    pub const UNLOAD_MMU: Self = Self(1 << 2);
    /// Flush what the guest believes to be its TLB, of all contexts.
    pub const FLUSH_GUEST: Self = Self(1 << 3);
    /// Flush the TLB of the current context.
    pub const FLUSH_CURRENT: Self = Self(1 << 4);
    /// Look for page faults that were completed while paging was off.
    pub const ASYNC_PF: Self = Self(1 << 5);

    /// As bits, for C.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This, if there is a reason.
    const fn when(self, reason: bool) -> Self {
        if reason {
            self
        } else {
            Self::NONE
        }
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The bits that a guest's paging mode is made of.
const CR0_ROLE: u64 = cr0::PG | cr0::WP;
const CR4_ROLE: u64 = cr4::PSE | cr4::PAE | cr4::LA57 | cr4::SMEP | cr4::SMAP | cr4::PKE;
const EFER_ROLE: u64 = efer::LME | efer::NX;

/// After a write to CR0. `tdp`: the guest's page tables are not shadowed.
pub(crate) const fn of_cr0(old: u64, new: u64, tdp: bool) -> Effects {
    let changed = old ^ new;
    let paging = new & cr0::PG != 0;
    if changed == cr0::WP && (!paging || tdp) {
        // The roots do not depend on WP, and without paging nothing does.
        return Effects::INIT_MMU.when(paging);
    }
    let toggled = changed & cr0::PG != 0;
    Effects::FLUSH_GUEST
        .when(toggled && !paging)
        .and(Effects::ASYNC_PF.when(toggled && paging))
        .and(Effects::RESET_MMU.when(changed & CR0_ROLE != 0))
}

/// After a write to CR4.
pub(crate) const fn of_cr4(old: u64, new: u64, tdp: bool) -> Effects {
    let changed = old ^ new;
    let (rises, falls) = (changed & new, changed & old);
    // Disabling PCIDs and toggling global pages flushes all contexts, the others the current one.
    let all = changed & cr4::PGE != 0 || falls & cr4::PCIDE != 0;
    let current = changed & cr4::PAE != 0 || rises & cr4::SMEP != 0;
    Effects::RESET_MMU
        .when(changed & CR4_ROLE != 0)
        // With NOFLUSH the guest could come back to a root from before it used PCIDs.
        .and(Effects::UNLOAD_MMU.when(!tdp && rises & cr4::PCIDE != 0))
        .and(Effects::FLUSH_GUEST.when(all))
        .and(Effects::FLUSH_CURRENT.when(current && !all))
}

/// After a write to EFER.
pub(crate) const fn of_efer(old: u64, new: u64) -> Effects {
    Effects::RESET_MMU.when((old ^ new) & EFER_ROLE != 0)
}

/// After user space has set the registers, which may be to those of another guest altogether.
pub(crate) const fn of_set(changed: bool) -> Effects {
    Effects::RESET_MMU.and(Effects::FLUSH_GUEST).when(changed)
}
