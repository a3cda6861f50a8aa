// SPDX-License-Identifier: GPL-2.0

//! The decisions against the manuals' sentences, for all combinations of the bits they name.
//!
//! What is here follows the text of AMD's Architecture Programmer's Manual (APM), volume 2, and of
//! Documentation/virt/kvm/api.rst, not the code under test: one predicate for each sentence, and a
//! processor that keeps LMA as the manual tells it, event by event.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sregs::register::{apic_base, cr0, cr4, efer};
use sregs::{
    infer_lma,
    Asked,
    Effects,
    Fate,
    Field,
    Ioctl,
    Limits,
    Machine,
    Model,
    Refusal,
    Trap,
    Updates, //
};
use std::collections::{BTreeSet, HashSet};

const PHYSICAL_BITS: u32 = 40;
const LIMITS: Limits = Limits {
    cr3_reserved: !((1 << PHYSICAL_BITS) - 1),
    cr4_reserved: !(cr4::PSE
        | cr4::PAE
        | cr4::PGE
        | cr4::LA57
        | cr4::PCIDE
        | cr4::SMEP
        | cr4::SMAP
        | cr4::PKE),
    efer_reserved: !(efer::SCE | efer::LME | efer::LMA | efer::NX | efer::SVME),
    apic_base_reserved: !((1 << PHYSICAL_BITS) - 1) | 0x2ff,
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

/// A sentence that `Asked` breaks, and where it stands.
type Sentence = (&'static str, fn(&Asked) -> bool);

fn bit(value: u64, bit: u32) -> bool {
    value >> bit & 1 == 1
}

/// Each line names bits by their numbers, so that a wrong constant does not agree with itself.
const SENTENCES: &[Sentence] = &[
    (
        "APM, CR0 register: bits 63:32 of CR0 are reserved and must be zero",
        |a| a.cr0 > u64::from(u32::MAX),
    ),
    (
        "APM, CR0 register: NW set with CD clear is an invalid combination",
        |a| bit(a.cr0, 29) && !bit(a.cr0, 30),
    ),
    (
        "APM, CR0 register: software must not enable paging while protected mode is disabled",
        |a| bit(a.cr0, 31) && !bit(a.cr0, 0),
    ),
    (
        "APM, activating long mode: long mode cannot be activated while PAE is disabled",
        |a| bit(a.efer, 8) && bit(a.cr0, 31) && !bit(a.cr4, 5),
    ),
    (
        "APM, EFER: LMA shows that long mode is active, that is LME and PG are both set",
        |a| bit(a.efer, 10) != (bit(a.efer, 8) && bit(a.cr0, 31)),
    ),
    (
        "APM, code-segment descriptors: outside long mode the L bit of a code segment is reserved",
        |a| a.cs_l && !(bit(a.efer, 8) && bit(a.cr0, 31)),
    ),
    (
        "APM, CR3 register: bits of the base in CR3 beyond the physical address size must be zero",
        |a| bit(a.efer, 8) && bit(a.cr0, 31) && a.cr3 >> PHYSICAL_BITS != 0,
    ),
    ("APM, CR4 register: reserved bits of CR4 must be zero", |a| {
        let known = [4, 5, 7, 12, 17, 20, 21, 22];
        (0..64).any(|n| bit(a.cr4, n) && !known.contains(&n))
    }),
    ("APM, EFER: reserved bits of EFER must be zero", |a| {
        let known = [0, 8, 10, 11, 12];
        (0..64).any(|n| bit(a.efer, n) && !known.contains(&n))
    }),
    (
        "APM, x2APIC mode: x2APIC mode with the APIC disabled is invalid; bits 7:0 and 9 are reserved",
        |a| {
            let reserved = a.apic_base & 0xff != 0 || bit(a.apic_base, 9);
            let beyond = a.apic_base >> PHYSICAL_BITS != 0;
            let invalid = bit(a.apic_base, 10) && !bit(a.apic_base, 11);
            a.apic_base != RESET.apic_base && (reserved || beyond || invalid)
        },
    ),
    ("api.rst, KVM_SET_SREGS2: the only flag is for PDPTEs", |a| {
        a.flags >> 1 != 0
    }),
    (
        "PDPTEs are in the guest's memory, which is encrypted",
        |a| bit(a.flags, 0),
    ),
];

/// All values that `bits` can have together.
fn combinations(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0..1u32 << bits.len()).map(|chosen| {
        let on = |(index, _): &(usize, &u64)| chosen >> index & 1 == 1;
        bits.iter().enumerate().filter(on).map(|(_, bit)| bit).sum()
    })
}

const CR0: &[u64] = &[
    cr0::PE,
    cr0::PG,
    cr0::NW,
    cr0::CD,
    cr0::WP,
    1 << 32,
    1 << 63,
];
const CR4: &[u64] = &[cr4::PAE, cr4::PGE, 1 << 3, 1 << 40];
const EFER: &[u64] = &[efer::LME, efer::LMA, efer::NX, efer::SVME, 1 << 9];

/// Everything that user space can ask of the bits above: half a million requests.
fn requests() -> impl Iterator<Item = Asked> {
    let rest = [(false, 0), (true, 0), (false, 1), (false, 2), (true, 3)];
    combinations(CR0).flat_map(move |cr0| {
        combinations(CR4).flat_map(move |cr4| {
            combinations(EFER).flat_map(move |efer| {
                rest.into_iter().flat_map(move |(cs_l, flags)| {
                    [0x1000, 1 << PHYSICAL_BITS].map(|cr3| Asked {
                        cr0,
                        cr3,
                        cr4,
                        cr8: 5,
                        efer,
                        apic_base: RESET.apic_base,
                        cs_l,
                        flags,
                    })
                })
            })
        })
    })
}

fn broken(asked: &Asked) -> Vec<&'static str> {
    let broken = SENTENCES.iter().filter(|(_, breaks)| breaks(asked));
    broken.map(|(sentence, _)| *sentence).collect()
}

#[test]
fn refused_is_what_breaks_a_sentence() {
    let (mut taken, mut refused) = (0, 0);
    for asked in requests() {
        let broken = broken(&asked);
        for updates in [Updates::Applied, Updates::Ignored] {
            let set = RESET.set_sregs(&asked, &LIMITS, updates);
            assert_eq!(set.is_err(), !broken.is_empty(), "{asked:x?} {broken:#?}");
            let Ok((model, _)) = set else { continue };
            let expected = match updates {
                Updates::Applied => Model {
                    cr0: asked.cr0,
                    cr4: asked.cr4,
                    cr8: asked.cr8,
                    // All but SVME, bit 12.
                    efer: asked.efer & !0x1000,
                    apic_base: asked.apic_base,
                },
                Updates::Ignored => RESET,
            };
            assert_eq!(model, expected, "{asked:x?}");
        }
        if broken.is_empty() {
            taken += 1;
        } else {
            refused += 1;
        }
    }
    // Both happen, or else nothing was compared.
    assert!(taken > 500 && refused > 500_000, "{taken} {refused}");
}

#[test]
fn each_sentence_and_each_reason_is_met_alone() {
    let mut alone = BTreeSet::new();
    let mut reasons = HashSet::new();
    let apic = [0, 0x400, 0x801, 0xa00, 1 << PHYSICAL_BITS, 0xfee0_0c00].map(|apic_base| Asked {
        cr0: cr0::ET,
        apic_base,
        ..Asked::default()
    });
    for asked in requests().chain(apic) {
        if let [sentence] = broken(&asked)[..] {
            alone.insert(sentence);
        }
        let set = RESET.set_sregs(&asked, &LIMITS, Updates::Applied);
        assert_eq!(set.is_err(), !broken(&asked).is_empty(), "{asked:x?}");
        reasons.extend(set.err().map(Refusal::reason));
    }
    assert_eq!(alone.len(), SENTENCES.len(), "{alone:#?}");
    // The vendor's is not about bits.
    assert_eq!(reasons.len(), Refusal::ALL.len() - 1, "{reasons:#?}");
}

/// All APIC bases that differ in the mode and in one more bit.
#[test]
fn apic_bases() {
    for mode in [
        0,
        apic_base::EXTD,
        apic_base::EN,
        apic_base::EN | apic_base::EXTD,
    ] {
        for other in 0..64 {
            let asked = Asked {
                cr0: cr0::ET,
                apic_base: mode | 1 << other,
                ..Asked::default()
            };
            let set = RESET.set_sregs(&asked, &LIMITS, Updates::Ignored);
            assert_eq!(set.is_err(), !broken(&asked).is_empty(), "{asked:x?}");
            if let Ok((model, _)) = set {
                assert_eq!(model.apic_base, asked.apic_base);
            }
        }
    }
}

/// A processor, told by the APM on long mode: what software writes, and what comes of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Processor {
    pe: bool,
    pg: bool,
    pae: bool,
    lme: bool,
    lma: bool,
    nx: bool,
}

impl Processor {
    const RESET: Self = Self {
        pe: false,
        pg: false,
        pae: false,
        lme: false,
        lma: false,
        nx: false,
    };

    /// A write to CR0; `None` if it faults.
    fn write_cr0(mut self, pe: bool, pg: bool) -> Option<Self> {
        if pg && !pe {
            return None;
        }
        if pg && !self.pg && self.lme {
            // "The processor activates long mode when software enables paging with LME set."
            if !self.pae {
                return None;
            }
            self.lma = true;
        }
        if !pg && self.pg {
            // "Disabling paging deactivates it."
            self.lma = false;
        }
        (self.pe, self.pg) = (pe, pg);
        Some(self)
    }

    fn write_cr4(mut self, pae: bool) -> Option<Self> {
        if self.lma && !pae {
            return None;
        }
        self.pae = pae;
        Some(self)
    }

    /// A write to EFER; LMA is read-only.
    fn write_efer(mut self, lme: bool, nx: bool) -> Option<Self> {
        if self.pg && lme != self.lme {
            return None;
        }
        (self.lme, self.nx) = (lme, nx);
        Some(self)
    }

    fn cr0(self) -> u64 {
        u64::from(self.pe) * cr0::PE + u64::from(self.pg) * cr0::PG
    }

    fn cr4(self) -> u64 {
        u64::from(self.pae) * cr4::PAE
    }

    fn efer(self) -> u64 {
        let (lme, lma) = (u64::from(self.lme), u64::from(self.lma));
        lme * efer::LME + lma * efer::LMA + u64::from(self.nx) * efer::NX
    }

    fn model(self) -> Model {
        Model {
            cr0: self.cr0(),
            cr4: self.cr4(),
            efer: self.efer(),
            ..RESET
        }
    }
}

const BOOL: [bool; 2] = [false, true];

/// In all states that a processor can reach, after all writes: the model has its registers.
#[test]
fn the_model_follows_the_processor() {
    let mut seen = HashSet::from([Processor::RESET]);
    let mut todo = vec![Processor::RESET];
    let mut long = 0;
    while let Some(cpu) = todo.pop() {
        let mut step = |next: Option<Processor>, trap, value| {
            let Some(next) = next else { return };
            let model = cpu
                .model()
                .trap(trap, value, &MACHINE)
                .map(|(model, _)| model);
            assert_eq!(model, Ok(next.model()), "{cpu:?} {trap:?} {value:#x}");
            if seen.insert(next) {
                todo.push(next);
            }
        };
        for (a, b) in BOOL.into_iter().flat_map(|a| BOOL.map(|b| (a, b))) {
            let written = Processor {
                pe: a,
                pg: b,
                ..cpu
            };
            step(cpu.write_cr0(a, b), Trap::Cr0, written.cr0());
            let written = Processor {
                lme: a,
                nx: b,
                ..cpu
            };
            // The trap may show LMA or not, and always shows SVME.
            for lma in BOOL {
                let shown = Processor { lma, ..written }.efer() | efer::SVME;
                step(cpu.write_efer(a, b), Trap::Efer, shown);
            }
            step(cpu.write_cr4(a), Trap::Cr4, u64::from(a) * cr4::PAE);
        }
        long += u32::from(cpu.lma);
    }
    assert!(seen.len() >= 20 && long >= 2, "{} {long}", seen.len());
}

/// What a processor refuses of EFER, which is checked again, is refused.
#[test]
fn an_efer_that_the_processor_refuses_is_refused() {
    for (pg, lme) in BOOL.into_iter().flat_map(|a| BOOL.map(|b| (a, b))) {
        let cpu = Processor {
            pe: true,
            pg,
            pae: true,
            lme,
            lma: pg && lme,
            nx: false,
        };
        for wanted in BOOL {
            let trapped = cpu
                .model()
                .trap(Trap::Efer, u64::from(wanted) * efer::LME, &MACHINE);
            assert_eq!(trapped.is_ok(), cpu.write_efer(wanted, false).is_some());
        }
        for reserved in (0..64)
            .map(|n| 1 << n)
            .filter(|bit| bit & LIMITS.efer_reserved != 0)
        {
            let kept = u64::from(lme) * efer::LME;
            assert!(cpu
                .model()
                .trap(Trap::Efer, kept | reserved, &MACHINE)
                .is_err());
        }
    }
}

/// A user that sets what KVM_GET_SREGS gave has changed nothing.
#[test]
fn what_was_read_can_be_set() {
    for (pe, pg) in [(false, false), (true, false), (true, true)] {
        for (pae, lme) in BOOL.into_iter().flat_map(|a| BOOL.map(|b| (a, b))) {
            if pg && lme && !pae {
                continue;
            }
            let cpu = Processor {
                pe,
                pg,
                pae,
                lme,
                lma: pg && lme,
                nx: true,
            };
            let model = Model {
                cr8: 7,
                ..cpu.model()
            };
            let asked = Asked {
                cr0: model.cr0,
                cr4: model.cr4,
                cr8: model.cr8,
                efer: model.efer,
                apic_base: model.apic_base,
                ..Asked::default()
            };
            let set = model.set_sregs(&asked, &LIMITS, Updates::Applied);
            assert_eq!(set, Ok((model, Effects::NONE)));
        }
    }
}

/// The MMU rules, as KVM's comments tell them: a sentence each, with bit numbers.
fn expected_cr0(old: u64, new: u64, tdp: bool) -> BTreeSet<&'static str> {
    let (was, is) = (bit(old, 31), bit(new, 31));
    let wp = bit(old, 16) != bit(new, 16);
    let mut all = BTreeSet::new();
    // WP matters to the roots of shadow page tables only, and to nothing without paging.
    let only_wp = old ^ new == 1 << 16;
    if was && !is {
        all.insert("flush guest");
    }
    if !was && is {
        all.insert("async pf");
    }
    if was != is || wp && !only_wp || only_wp && is && !tdp {
        all.insert("reset");
    }
    if only_wp && is && tdp {
        all.insert("init");
    }
    all
}

fn expected_cr4(old: u64, new: u64, tdp: bool) -> BTreeSet<&'static str> {
    let toggled = |n| bit(old, n) != bit(new, n);
    let set = |n| !bit(old, n) && bit(new, n);
    let mut all = BTreeSet::new();
    if [4, 5, 12, 20, 21, 22].into_iter().any(toggled) {
        all.insert("reset");
    }
    if set(17) && !tdp {
        all.insert("unload");
    }
    if toggled(7) || bit(old, 17) && !bit(new, 17) {
        all.insert("flush guest");
    } else if toggled(5) || set(20) {
        all.insert("flush current");
    }
    all
}

fn names(effects: Effects) -> BTreeSet<&'static str> {
    let all = [
        (Effects::RESET_MMU, "reset"),
        (Effects::INIT_MMU, "init"),
        (Effects::UNLOAD_MMU, "unload"),
        (Effects::FLUSH_GUEST, "flush guest"),
        (Effects::FLUSH_CURRENT, "flush current"),
        (Effects::ASYNC_PF, "async pf"),
    ];
    let some = all
        .into_iter()
        .filter(|(effect, _)| effects.contains(*effect));
    some.map(|(_, name)| name).collect()
}

#[test]
fn the_mmu_after_all_changes_of_cr0() {
    let bits = [cr0::PE, cr0::PG, cr0::WP, cr0::TS, cr0::CD, cr0::NW];
    for (old, new) in combinations(&bits).flat_map(|a| combinations(&bits).map(move |b| (a, b))) {
        for tdp in BOOL {
            let model = Model { cr0: old, ..RESET };
            let (_, effects) = model
                .trap(Trap::Cr0, new, &Machine { tdp, ..MACHINE })
                .unwrap();
            assert_eq!(
                names(effects),
                expected_cr0(old, new, tdp),
                "{old:#x} {new:#x}"
            );
        }
    }
}

#[test]
fn the_mmu_after_all_changes_of_cr4() {
    let bits = [
        cr4::PSE,
        cr4::PAE,
        cr4::PGE,
        cr4::LA57,
        cr4::PCIDE,
        cr4::SMEP,
        cr4::SMAP,
        cr4::PKE,
        1 << 9,
    ];
    for (old, new) in combinations(&bits).flat_map(|a| combinations(&bits).map(move |b| (a, b))) {
        for tdp in BOOL {
            let model = Model { cr4: old, ..RESET };
            let (_, effects) = model
                .trap(Trap::Cr4, new, &Machine { tdp, ..MACHINE })
                .unwrap();
            assert_eq!(
                names(effects),
                expected_cr4(old, new, tdp),
                "{old:#x} {new:#x}"
            );
        }
    }
}

#[test]
fn the_mmu_after_all_changes_of_efer() {
    let bits = [efer::SCE, efer::LME, efer::NX];
    for (old, new) in combinations(&bits).flat_map(|a| combinations(&bits).map(move |b| (a, b))) {
        let model = Model {
            efer: old,
            cr0: cr0::PE,
            ..RESET
        };
        let (_, effects) = model.trap(Trap::Efer, new, &MACHINE).unwrap();
        let reset = bit(old, 8) != bit(new, 8) || bit(old, 11) != bit(new, 11);
        assert_eq!(
            names(effects),
            reset.then_some("reset").into_iter().collect()
        );
    }
}

/// Which parts of the model differ.
fn changed(old: &Model, new: &Model) -> Vec<Field> {
    let all = [
        (Field::Cr0, old.cr0 != new.cr0),
        (Field::Cr4, old.cr4 != new.cr4),
        (Field::Cr8, old.cr8 != new.cr8),
        (Field::Efer, old.efer != new.efer),
        (Field::ApicBase, old.apic_base != new.apic_base),
    ];
    let some = all.into_iter().filter(|(_, changed)| *changed);
    some.map(|(field, _)| field).collect()
}

/// A valid and an invalid value of each field, on top of a request that is valid.
fn examples(field: Field) -> Option<(Asked, Asked)> {
    let base = Asked {
        cr0: RESET.cr0,
        apic_base: RESET.apic_base,
        ..Asked::default()
    };
    let long = Asked {
        cr0: cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..base
    };
    Some(match field {
        Field::CodeSegmentL => (Asked { cs_l: true, ..long }, Asked { cs_l: true, ..base }),
        Field::Cr0 => (
            Asked {
                cr0: cr0::PE,
                ..base
            },
            Asked {
                cr0: cr0::NW,
                ..base
            },
        ),
        Field::Cr3 => (
            Asked {
                cr3: 0x2000,
                ..long
            },
            Asked {
                cr3: u64::MAX,
                ..long
            },
        ),
        Field::Cr4 => (
            Asked {
                cr4: cr4::PGE,
                ..base
            },
            Asked {
                cr4: 1 << 63,
                ..base
            },
        ),
        Field::Cr8 => (Asked { cr8: 9, ..base }, Asked { cr8: 99, ..base }),
        Field::Efer => (
            Asked {
                efer: efer::NX,
                ..base
            },
            Asked {
                efer: 1 << 1,
                ..base
            },
        ),
        Field::ApicBase => (
            Asked {
                apic_base: 0xfed0_0800,
                ..base
            },
            Asked {
                apic_base: 0xfed0_0400,
                ..base
            },
        ),
        Field::Flags => (base, Asked { flags: 1, ..base }),
        // Not among what is asked at all: without effect by construction, or left to C.
        Field::Segments | Field::Tables | Field::Cr2 | Field::InterruptBitmap | Field::Pdptrs => {
            return None
        }
    })
}

#[test]
fn the_contract_is_what_happens() {
    for field in Field::ALL {
        for updates in [Updates::Applied, Updates::Ignored] {
            let Some((valid, invalid)) = examples(field) else {
                continue;
            };
            let fate = field.fate(Ioctl::SetSregs2, updates);
            let (model, _) = RESET.set_sregs(&valid, &LIMITS, updates).unwrap();
            let took = changed(&RESET, &model).contains(&field);
            assert_eq!(took, fate == Fate::Taken, "{field:?} {updates:?}");
            let refused = RESET.set_sregs(&invalid, &LIMITS, updates).is_err();
            let refuses = matches!(fate, Fate::Taken | Fate::Checked | Fate::Refused);
            // A priority that does not exist is dropped, as it is for other guests.
            assert_eq!(
                refused,
                refuses && field != Field::Cr8,
                "{field:?} {updates:?}"
            );
        }
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5e5),
        ..ProptestConfig::default()
    }
}

/// Any value, with a bias to few bits.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64u32).prop_map(|n| 1 << n),
        prop::collection::vec(prop_oneof![0..24u32, 29..33u32], 0..6)
            .prop_map(|bits| bits.into_iter().fold(0, |all, n| all | 1 << n)),
    ]
}

fn trap() -> impl Strategy<Value = Trap> {
    prop_oneof![
        Just(Trap::Cr0),
        Just(Trap::Cr4),
        Just(Trap::Cr8),
        Just(Trap::Efer)
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_request_is_refused_by_the_sentences(
        (cr0, cr3, cr4, cr8) in (value(), value(), value(), value()),
        (efer, apic_base, cs_l, flags) in (value(), value(), any::<bool>(), 0..4u64),
    ) {
        let asked = Asked { cr0, cr3, cr4, cr8, efer, apic_base, cs_l, flags };
        let set = RESET.set_sregs(&asked, &LIMITS, Updates::Applied);
        prop_assert_eq!(set.is_err(), !broken(&asked).is_empty());
    }

    /// After any writes, even such as no processor lets through, LMA is what LME and PG say, never
    /// without PAE, and SVME does not show. A write changes its register, and LMA at most.
    #[test]
    fn lma_stays_true(writes in prop::collection::vec((trap(), value()), 1..30)) {
        let mut model = RESET;
        for (trap, value) in writes {
            let Ok((new, _)) = model.trap(trap, value, &MACHINE) else { continue };
            let untouched: Vec<_> = changed(&model, &new);
            let own = match trap {
                Trap::Cr0 => Field::Cr0,
                Trap::Cr4 => Field::Cr4,
                Trap::Cr8 => Field::Cr8,
                Trap::Efer => Field::Efer,
            };
            for field in untouched {
                let lma = matches!(trap, Trap::Cr0 | Trap::Cr4) && field == Field::Efer;
                prop_assert!(field == own || lma && model.efer ^ new.efer == efer::LMA);
            }
            let active = bit(new.efer, 8) && bit(new.cr0, 31) && bit(new.cr4, 5);
            prop_assert_eq!(bit(new.efer, 10), active);
            prop_assert_eq!(infer_lma(new.efer, new.cr0, new.cr4), new.efer);
            prop_assert!(!bit(new.efer, 12));
            model = new;
        }
    }
}
