// SPDX-License-Identifier: GPL-2.0

//! KVM's model of the special registers of a guest whose state is protected.
//!
//! The registers of an SEV-ES guest are encrypted once it runs. KVM keeps a model of CR0, CR4, CR8,
//! EFER and the APIC base: the processor traps after each write of the guest, and user space may set
//! them, for a guest that has come from another machine. Here is what user space may set, what a
//! write means for the model, and what KVM has to do about its MMU then.
//!
//! "APM" is AMD's Architecture Programmer's Manual, volume 2.

#![cfg_attr(not(MODULE), no_std)]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

mod check;
mod contract;
mod effects;
pub mod register;
mod update;

pub use check::{
    Asked,
    Limits,
    Refusal,
    PDPTRS_VALID, //
};
pub use contract::{
    Fate,
    Field,
    Ioctl, //
};
pub use effects::Effects;
pub use register::{
    infer_lma,
    Model, //
};
pub use update::{
    GeneralProtection,
    Machine,
    Trap,
    Updates, //
};

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(sregs))]
mod tests {
    use super::register::{
        apic_base,
        cr0,
        cr4,
        efer, //
    };
    use super::*;

    const LIMITS: Limits = Limits {
        cr3_reserved: 0xffff_0000_0000_0000,
        cr4_reserved: !0x00ff_ffff,
        efer_reserved: !(efer::SCE | efer::LME | efer::LMA | efer::NX | efer::SVME),
        apic_base_reserved: 0xffff_0000_0000_02ff,
        vendor_allows: true,
    };
    const MACHINE: Machine = Machine {
        efer_reserved: LIMITS.efer_reserved,
        tdp: true,
    };
    const RESET: Model = Model {
        cr0: cr0::CD | cr0::NW | cr0::ET,
        cr4: 0,
        cr8: 0,
        efer: 0,
        apic_base: 0xfee0_0900,
    };
    const LONG_MODE: Asked = Asked {
        cr0: cr0::PG | cr0::PE | cr0::ET,
        cr3: 0x1000,
        cr4: cr4::PAE,
        cr8: 3,
        efer: efer::LME | efer::LMA | efer::NX,
        apic_base: 0xfee0_0900,
        cs_l: true,
        flags: 0,
    };

    fn refusal(asked: &Asked) -> Option<Refusal> {
        RESET.set_sregs(asked, &LIMITS, Updates::Applied).err()
    }

    #[test]
    fn a_guest_that_comes_in_long_mode() {
        let set = RESET.set_sregs(&LONG_MODE, &LIMITS, Updates::Applied);
        let expected = Model {
            cr0: LONG_MODE.cr0,
            cr4: LONG_MODE.cr4,
            cr8: 3,
            efer: LONG_MODE.efer,
            apic_base: LONG_MODE.apic_base,
        };
        let effects = Effects::RESET_MMU.and(Effects::FLUSH_GUEST);
        assert_eq!(set, Ok((expected, effects)));
        // Once more: nothing is left to do.
        let again = expected.set_sregs(&LONG_MODE, &LIMITS, Updates::Applied);
        assert_eq!(again, Ok((expected, Effects::NONE)));
    }

    #[test]
    fn updates_can_be_turned_off_but_for_the_apic() {
        let asked = Asked {
            apic_base: 0xfee0_0800,
            ..LONG_MODE
        };
        let expected = Model {
            apic_base: 0xfee0_0800,
            ..RESET
        };
        let set = RESET.set_sregs(&asked, &LIMITS, Updates::Ignored);
        assert_eq!(set, Ok((expected, Effects::NONE)));
        let invalid = Asked {
            cr4: 0,
            ..LONG_MODE
        };
        let set = RESET.set_sregs(&invalid, &LIMITS, Updates::Ignored);
        assert_eq!(set, Err(Refusal::LongModeWithoutPae));
    }

    #[test]
    fn each_reason_to_refuse() {
        let none = Asked {
            cr0: cr0::ET,
            apic_base: RESET.apic_base,
            ..Asked::default()
        };
        let long = LONG_MODE;
        let with = |change: fn(&mut Asked), mut asked: Asked| {
            change(&mut asked);
            refusal(&asked)
        };
        assert_eq!(refusal(&none), None);
        assert_eq!(refusal(&long), None);
        type Row = (Asked, fn(&mut Asked), Refusal);
        let table: [Row; 14] = [
            (none, |a| a.flags = 2, Refusal::UnknownFlag),
            (none, |a| a.flags = PDPTRS_VALID, Refusal::PdptrsOfProtected),
            (long, |a| a.cr4 = 0, Refusal::LongModeWithoutPae),
            (long, |a| a.efer = efer::LME, Refusal::LongModeWithoutLma),
            (long, |a| a.cr3 = 1 << 48, Refusal::Cr3Reserved),
            (none, |a| a.efer = efer::LMA, Refusal::LmaOutsideLongMode),
            (none, |a| a.cs_l = true, Refusal::CodeOutsideLongMode),
            (none, |a| a.cr4 = 1 << 24, Refusal::Cr4Reserved),
            (none, |a| a.cr0 = 1 << 32, Refusal::Cr0High),
            (none, |a| a.cr0 = cr0::NW, Refusal::NwWithoutCd),
            (none, |a| a.cr0 = cr0::PG, Refusal::PagingWithoutProtection),
            (none, |a| a.efer = 1 << 63, Refusal::EferReserved),
            (none, |a| a.apic_base |= 1, Refusal::ApicBaseReserved),
            (none, |a| a.apic_base = apic_base::EXTD, Refusal::ApicMode),
        ];
        for (from, change, reason) in table {
            assert_eq!(with(change, from), Some(reason));
        }
        let limits = Limits {
            vendor_allows: false,
            ..LIMITS
        };
        let set = RESET.set_sregs(&none, &limits, Updates::Applied);
        assert_eq!(set, Err(Refusal::Vendor));
    }

    #[test]
    fn an_address_in_cr3_counts_in_long_mode_only() {
        let asked = Asked {
            cr0: cr0::ET,
            cr3: u64::MAX,
            apic_base: RESET.apic_base,
            ..Asked::default()
        };
        assert_eq!(refusal(&asked), None);
    }

    #[test]
    fn an_apic_base_that_stays_is_not_looked_at() {
        let model = Model {
            apic_base: u64::MAX,
            ..RESET
        };
        let asked = Asked {
            apic_base: u64::MAX,
            ..LONG_MODE
        };
        assert!(model.set_sregs(&asked, &LIMITS, Updates::Applied).is_ok());
    }

    #[test]
    fn a_priority_that_does_not_exist_is_dropped() {
        let asked = Asked {
            cr8: 16,
            ..LONG_MODE
        };
        let set = RESET.set_sregs(&asked, &LIMITS, Updates::Applied);
        assert_eq!(set.map(|(model, _)| model.cr8), Ok(0));
        assert_eq!(RESET.trap(Trap::Cr8, 16, &MACHINE), Err(GeneralProtection));
        let trapped = RESET.trap(Trap::Cr8, 15, &MACHINE);
        assert_eq!(trapped.map(|(model, _)| model.cr8), Ok(15));
    }

    #[test]
    fn the_way_into_long_mode_and_out() {
        let write = |model: Model, trap, value| model.trap(trap, value, &MACHINE).ok();
        let steps = [
            (Trap::Cr4, cr4::PAE, false),
            (Trap::Efer, efer::LME | efer::SVME, false),
            (Trap::Cr0, cr0::PE | cr0::PG, true),
            (Trap::Cr0, cr0::PE | cr0::PG | cr0::TS, true),
            (Trap::Efer, efer::LME | efer::NX, true),
            (Trap::Cr0, cr0::PE, false),
            (Trap::Efer, 0, false),
        ];
        let mut model = RESET;
        for (trap, value, long) in steps {
            let trapped = write(model, trap, value);
            assert!(trapped.is_some());
            if let Some((next, _)) = trapped {
                let active = next.efer & efer::LMA != 0;
                assert_eq!(active, long);
                assert_eq!(next.efer & efer::SVME, 0);
                model = next;
            }
        }
    }

    #[test]
    fn no_long_mode_without_pae() {
        let unknown = Model {
            efer: efer::LME,
            ..RESET
        };
        let written = |model: Model, trap, value| {
            let trapped = model.trap(trap, value, &MACHINE);
            trapped.map_or(model, |(model, _)| model)
        };
        let paging = written(unknown, Trap::Cr0, cr0::PE | cr0::PG);
        assert_eq!(paging.efer, efer::LME);
        let known = written(paging, Trap::Cr4, cr4::PAE);
        assert_eq!(known.efer, efer::LME | efer::LMA);
        let lost = written(known, Trap::Cr4, 0);
        assert_eq!(lost.efer, efer::LME);
    }

    #[test]
    fn long_mode_is_not_switched_while_paging() {
        let model = Model {
            cr0: cr0::PE | cr0::PG,
            ..RESET
        };
        let trapped = model.trap(Trap::Efer, efer::LME, &MACHINE);
        assert_eq!(trapped, Err(GeneralProtection));
        let trapped = RESET.trap(Trap::Efer, 1 << 63, &MACHINE);
        assert_eq!(trapped, Err(GeneralProtection));
    }

    #[test]
    fn paging_on_and_off() {
        let effects = |old, new, tdp| {
            let model = Model { cr0: old, ..RESET };
            let machine = Machine { tdp, ..MACHINE };
            model
                .trap(Trap::Cr0, new, &machine)
                .map(|(_, effects)| effects)
        };
        let paging = cr0::PE | cr0::PG;
        let on = Effects::ASYNC_PF.and(Effects::RESET_MMU);
        let off = Effects::FLUSH_GUEST.and(Effects::RESET_MMU);
        assert_eq!(effects(cr0::PE, paging, true), Ok(on));
        assert_eq!(effects(paging, cr0::PE, true), Ok(off));
        assert_eq!(effects(paging, paging | cr0::TS, true), Ok(Effects::NONE));
        let protect = |tdp| effects(paging, paging | cr0::WP, tdp);
        assert_eq!(protect(true), Ok(Effects::INIT_MMU));
        assert_eq!(protect(false), Ok(Effects::RESET_MMU));
        assert_eq!(
            effects(cr0::PE, cr0::PE | cr0::WP, false),
            Ok(Effects::NONE)
        );
    }

    #[test]
    fn flushes_by_cr4() {
        let effects = |old, new, tdp| {
            let model = Model { cr4: old, ..RESET };
            let machine = Machine { tdp, ..MACHINE };
            model
                .trap(Trap::Cr4, new, &machine)
                .map(|(_, effects)| effects)
        };
        let reset = |flush| Ok(Effects::RESET_MMU.and(flush));
        assert_eq!(effects(0, cr4::PGE, true), Ok(Effects::FLUSH_GUEST));
        assert_eq!(effects(cr4::PCIDE, 0, true), Ok(Effects::FLUSH_GUEST));
        assert_eq!(effects(0, cr4::PCIDE, true), Ok(Effects::NONE));
        assert_eq!(effects(0, cr4::PCIDE, false), Ok(Effects::UNLOAD_MMU));
        assert_eq!(effects(0, cr4::PAE, true), reset(Effects::FLUSH_CURRENT));
        assert_eq!(effects(0, cr4::SMEP, true), reset(Effects::FLUSH_CURRENT));
        assert_eq!(effects(cr4::SMEP, 0, true), reset(Effects::NONE));
        let both = effects(0, cr4::PAE | cr4::PGE, true);
        assert_eq!(both, reset(Effects::FLUSH_GUEST));
    }

    #[test]
    fn the_contract_by_field() {
        let fate = |field: Field, updates| {
            [Ioctl::SetSregs, Ioctl::SetSregs2].map(|ioctl| field.fate(ioctl, updates))
        };
        for field in [Field::Cr0, Field::Cr4, Field::Efer] {
            assert_eq!(fate(field, Updates::Applied), [Fate::Taken; 2]);
            assert_eq!(fate(field, Updates::Ignored), [Fate::Checked; 2]);
        }
        assert_eq!(fate(Field::Cr8, Updates::Ignored), [Fate::Ignored; 2]);
        for updates in [Updates::Applied, Updates::Ignored] {
            assert_eq!(fate(Field::ApicBase, updates), [Fate::Taken; 2]);
            assert_eq!(
                fate(Field::InterruptBitmap, updates),
                [Fate::Taken, Fate::Absent]
            );
            assert_eq!(fate(Field::Flags, updates), [Fate::Absent, Fate::Refused]);
        }
    }
}
