// SPDX-License-Identifier: GPL-2.0

//! Plans and proofs against definitions that look at one page after the other.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use stage2_map::{
    attributes,
    Access,
    Bound,
    Fill,
    Granule,
    HostTable,
    Leaf,
    Limits,
    Memory,
    Origin,
    Page,
    Plan,
    Prospect,
    Prover,
    Span,
    Unreadable, //
};
use std::cell::RefCell;
use std::ops::{
    ControlFlow,
    Range, //
};

/// Pages of 32 bytes and tables of four entries, so that a whole table has 16 pages.
const PAGE: u64 = 32;
const SIZES: [u64; 3] = [PAGE, 4 * PAGE, 16 * PAGE];
const TABLES: usize = 3;
const PAGES: usize = 16 * TABLES;

fn granule() -> Granule {
    Granule::with_levels(5, 3).unwrap()
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x52),
        ..ProptestConfig::default()
    }
}

/// What the VMM has in one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapped {
    pa: u64,
    attr: u8,
    writable: bool,
}

/// The VMM's page table: for each page what it maps to, and the size of its leaf.
#[derive(Clone, Debug)]
struct Table {
    pages: RefCell<Vec<Option<Mapped>>>,
    sizes: Vec<u64>,
    visits: RefCell<u32>,
}

impl Table {
    fn new(pages: Vec<Option<Mapped>>, sizes: Vec<u64>) -> Self {
        Self {
            pages: pages.into(),
            sizes,
            visits: 0.into(),
        }
    }

    /// All pages, contiguous from `pa`, by themselves.
    fn even(pa: u64) -> Self {
        let page = |number| Mapped {
            pa: pa + number as u64 * PAGE,
            attr: 1,
            writable: true,
        };
        Self::new(
            (0..PAGES).map(|number| Some(page(number))).collect(),
            vec![PAGE; PAGES],
        )
    }

    fn page(&self, hva: u64) -> Option<Mapped> {
        self.pages
            .borrow()
            .get((hva / PAGE) as usize)
            .copied()
            .flatten()
    }
}

impl HostTable for Table {
    fn walk(
        &self,
        span: Span,
        visit: &mut dyn FnMut(&Leaf) -> ControlFlow<()>,
    ) -> Result<(), Unreadable> {
        let mut hva = span.first();
        while hva <= span.last() {
            let &size = self.sizes.get((hva / PAGE) as usize).ok_or(Unreadable)?;
            hva -= hva % size;
            let mapped = self.page(hva);
            *self.visits.borrow_mut() += 1;
            let leaf = Leaf {
                hva,
                size,
                pa: mapped.map_or(0, |mapped| mapped.pa),
                attr: mapped.map_or(0, |mapped| mapped.attr),
                present: mapped.is_some(),
                writable: mapped.is_some_and(|mapped| mapped.writable),
            };
            if visit(&leaf).is_break() {
                break;
            }
            hva += size;
        }
        Ok(())
    }
}

/// All there is to decide on.
#[derive(Clone, Debug)]
struct Case {
    table: Table,
    page: Page,
    slot: Range<u64>,
    vma: Range<u64>,
    max_size: u64,
    ram: Range<u64>,
    writable: bool,
}

impl Case {
    fn plan(&self) -> Plan {
        let limits = Limits {
            slot: Span::until(self.slot.start, self.slot.end).unwrap(),
            vma: Span::until(self.vma.start, self.vma.end).unwrap(),
            max_size: self.max_size,
        };
        Plan::new(granule(), self.page, &limits, |block| {
            self.ram.is_empty()
                || block.pas().last() < self.ram.start
                || block.pas().first() >= self.ram.end
        })
        .unwrap()
    }

    /// The size decided on; [`None`] if the fault is to be replayed.
    fn size(&self, mixed: bool) -> Option<(u64, Bound)> {
        let plan = self.plan();
        let prover = Prover::new(&self.table, &plan, self.writable, mixed, u32::MAX).ok()?;
        let (block, bound) = prover.largest(&plan);
        let around = |address| address - address % block.size();
        assert_eq!(block.ipa(), around(self.page.ipa));
        assert_eq!(block.hva(), around(self.page.hva));
        assert_eq!(block.pa(), around(self.page.pa));
        Some((block.size(), bound))
    }

    /// Whether the leaf of one page may be in the same mapping as the faulting page's.
    fn fits(&self, hva: u64) -> bool {
        let (Some(own), Some(mapped)) = (self.table.page(self.page.hva), self.table.page(hva))
        else {
            return false;
        };
        let expected = (self.page.pa + hva).wrapping_sub(self.page.hva);
        mapped.pa == expected && mapped.attr == own.attr && (mapped.writable || !self.writable)
    }

    /// The largest size that no page speaks against, by definition.
    fn naive(&self) -> Option<u64> {
        if !self.fits(self.page.hva) {
            return None;
        }
        let Page { ipa, hva, pa } = self.page;
        SIZES
            .into_iter()
            .rev()
            .filter(|&size| size == PAGE || size <= self.max_size)
            .filter(|&size| ipa % size == hva % size && pa % size == hva % size)
            .find(|&size| {
                let start = hva - hva % size;
                let first_pa = pa - pa % size;
                (0..size / PAGE).all(|number| {
                    let hva = start + number * PAGE;
                    let pa = first_pa + number * PAGE;
                    size == PAGE
                        || self.slot.contains(&hva)
                            && self.vma.contains(&hva)
                            && !self.ram.contains(&pa)
                            && self.fits(hva)
                })
            })
    }

    fn check(&self) {
        let expected = self.naive();
        assert_eq!(
            self.size(false).map(|(size, _)| size),
            expected,
            "{self:#x?}"
        );
    }
}

fn pages(range: Range<u64>) -> Range<u64> {
    range.start * PAGE..range.end * PAGE
}

/// A case in which nothing but the granule limits the size.
fn free(fault: u64) -> Case {
    let whole = pages(0..PAGES as u64);
    Case {
        table: Table::even(0x10000),
        page: Page {
            ipa: 0x40000 + fault * PAGE,
            hva: fault * PAGE,
            pa: 0x10000 + fault * PAGE,
        },
        slot: whole.clone(),
        vma: whole,
        max_size: u64::MAX,
        ram: 0..0,
        writable: true,
    }
}

/// Every slot and every VMA around every page.
#[test]
fn slots_and_vmas_exhaustively() {
    let end = PAGES as u64;
    for fault in 0..end {
        for first in 0..=fault {
            for last in fault..end {
                for max_size in [0, PAGE, SIZES[1], SIZES[2] - 1, SIZES[2]] {
                    let mut case = free(fault);
                    case.max_size = max_size;
                    case.slot = pages(first..last + 1);
                    case.check();
                    case.vma = std::mem::replace(&mut case.slot, pages(0..end));
                    case.check();
                }
            }
        }
    }
}

/// Every pair of distances between the three addresses.
#[test]
fn offsets_exhaustively() {
    for fault in 0..16 {
        for ipa in 0..32 {
            for pa in 0..32 {
                let mut case = free(fault);
                case.table = Table::even(0x10000 + pa * PAGE);
                case.page.pa += pa * PAGE;
                case.page.ipa += ipa * PAGE;
                case.check();
            }
        }
    }
}

/// Every set of missing pages, of pages that are elsewhere, and of read-only ones.
#[test]
fn odd_pages_exhaustively() {
    for odd in 0u32..1 << 16 {
        // All faulting pages of a table of 16 see the same sets, turned around.
        for fault in [0, 6, 15] {
            for kind in 0..3 {
                let case = free(fault);
                {
                    let mut pages = case.table.pages.borrow_mut();
                    for number in (0..16).filter(|number| odd >> number & 1 != 0) {
                        match (kind, &mut pages[number]) {
                            (0, page) => *page = None,
                            (1, Some(page)) => page.pa += 16 * PAGE,
                            (_, Some(page)) => page.writable = false,
                            (_, None) => (),
                        }
                    }
                }
                case.check();
            }
        }
    }
}

/// Every place of ordinary memory in the block.
#[test]
fn memory_exhaustively() {
    for fault in 0..16 {
        for first in 0..18 {
            for end in first..18 {
                let mut case = free(fault);
                let base = 0x10000;
                case.ram = base + first * PAGE..base + end * PAGE;
                // The page itself is known to be device memory.
                if !case.ram.contains(&case.page.pa) {
                    case.check();
                }
            }
        }
    }
}

/// Page tables whose leaves have all sizes, mostly contiguous.
fn table() -> impl Strategy<Value = Table> {
    let entry = || prop_oneof![8 => Just(0u8), 1 => Just(1u8), 1 => Just(2u8), 1 => Just(3u8), 1 => Just(4u8)];
    let shape = prop_oneof![Just(0u8), Just(1u8), Just(2u8)];
    let tables = proptest::collection::vec(
        (shape, proptest::collection::vec(entry(), 16), 0..4u64),
        TABLES,
    );
    tables.prop_map(|tables| {
        let mut all = Vec::new();
        let mut sizes = Vec::new();
        for (shape, entries, offset) in tables {
            let size = SIZES[shape as usize];
            for number in 0..16u64 {
                // All pages of a leaf are alike.
                let leaf = number * PAGE / size;
                let odd = entries[leaf as usize];
                let hva = all.len() as u64 * PAGE;
                // Leaves map to multiples of their size.
                let away = offset * u64::from(offset == 1) * SIZES[2];
                all.push((odd != 1).then_some(Mapped {
                    pa: 0x10000 + hva + away + if odd == 2 { 16 * PAGE } else { 0 },
                    attr: u8::from(odd == 3),
                    writable: odd != 4,
                }));
                sizes.push(size);
            }
        }
        Table::new(all, sizes)
    })
}

fn case() -> impl Strategy<Value = Case> {
    let count = PAGES as u64;
    let edges = (0..count, 0..count, 0..count, 0..count, 0..count);
    let distance = prop_oneof![4 => Just(0u64), 1 => Just(SIZES[1]), 1 => Just(SIZES[0])];
    let max_size = prop_oneof![3 => Just(u64::MAX), 1 => Just(SIZES[1]), 1 => Just(SIZES[0])];
    let rest = (
        distance,
        max_size,
        any::<bool>(),
        any::<bool>(),
        0..PAGES as u64,
    );
    (table(), edges, rest).prop_map(
        move |(table, (fault, a, b, c, d), (distance, max_size, writable, narrow, ram))| {
            let hva = fault * PAGE;
            let around = move |x: u64, y: u64| {
                if narrow {
                    pages(x.min(fault)..y.max(fault) + 1)
                } else {
                    pages(0..count)
                }
            };
            let pa = table.page(hva).map_or(0x10000 + hva, |mapped| mapped.pa);
            let ram_pa = 0x10000 + ram * PAGE;
            Case {
                page: Page {
                    ipa: 0x40000 + hva + distance,
                    hva,
                    pa,
                },
                slot: around(a, b),
                vma: around(c, d),
                max_size,
                ram: if narrow && ram_pa != pa {
                    ram_pa..ram_pa + PAGE
                } else {
                    0..0
                },
                writable,
                table,
            }
        },
    )
}

/// Fills missing leaves as `after` has them, if it has.
struct Filler<'a> {
    table: &'a Table,
    after: &'a [Option<Mapped>],
    calls: u32,
}

impl Fill for Filler<'_> {
    fn fill(&mut self, hva: u64) -> bool {
        self.calls += 1;
        let size = self.table.sizes[(hva / PAGE) as usize];
        let first = (hva - hva % size) / PAGE;
        let mut pages = self.table.pages.borrow_mut();
        for number in first..first + size / PAGE {
            pages[number as usize] = self.after[number as usize];
        }
        pages[first as usize].is_some()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn decides_what_the_definition_does(case in case()) {
        prop_assert_eq!(case.size(false).map(|(size, _)| size), case.naive());
    }

    /// A larger mapping than one leaf is never made where ordinary memory may be next to it.
    #[test]
    fn mixed_stays_within_a_leaf(case in case()) {
        let leaf = case.table.sizes[(case.page.hva / PAGE) as usize];
        if let Some((size, _)) = case.size(true) {
            prop_assert!(size <= leaf);
            prop_assert!(size <= case.naive().unwrap());
        }
    }

    #[test]
    fn looks_at_no_more_than_its_budget(case in case(), budget in 0..40u32) {
        let plan = case.plan();
        if let Ok(prover) = Prover::new(&case.table, &plan, case.writable, false, budget) {
            *case.table.visits.borrow_mut() = 0;
            let (block, bound) = prover.largest(&plan);
            // One more is seen for each block, to be refused.
            prop_assert!(*case.table.visits.borrow() <= 2 * (budget + 1));
            if bound != Bound::Budget {
                prop_assert_eq!(Some(block.size()), case.naive());
            }
        }
    }

    /// Filling is bounded, and if it may fill enough the block is what it would have been with
    /// everything there.
    #[test]
    fn populates_what_pays(case in case(), budget in 0..20u32) {
        let after = case.table.pages.borrow().clone();
        let wanted = case.naive();
        // What is missing at first: everything but the page itself that a bit of its number says.
        let mut missing = 0;
        {
            let mut pages = case.table.pages.borrow_mut();
            for (number, page) in pages.iter_mut().enumerate() {
                let size = case.table.sizes[number] / PAGE;
                let leaf = number as u64 / size;
                let own = case.page.hva / PAGE / size == leaf;
                if !own && leaf % 3 == 0 && page.is_some() {
                    *page = None;
                    missing += u32::from(number as u64 % size == 0);
                }
            }
        }
        let plan = case.plan();
        if let Ok(prover) = Prover::new(&case.table, &plan, case.writable, false, u32::MAX) {
            let mut filler = Filler { table: &case.table, after: &after, calls: 0 };
            let filled = prover.populate(&plan, budget, &mut filler);
            prop_assert!(filled <= budget);
            prop_assert!(filler.calls <= budget);
            let size = prover.largest(&plan).0.size();
            prop_assert!(Some(size) <= wanted);
            if missing <= budget {
                prop_assert_eq!(Some(size), wanted);
            }
            // Nothing is begun that cannot be finished, as far as can be seen.
            for block in plan.larger() {
                if let Prospect::Never(_) = prover.prospect(block) {
                    let before = filler.calls;
                    prover.populate(&plan, 100, &mut filler);
                    prop_assert!(filler.calls - before <= 100);
                }
            }
        }
    }
}

/// Without enough of a budget for a block none of it is filled.
#[test]
fn begins_nothing_it_could_not_finish() {
    let case = free(0);
    let after = case.table.pages.borrow().clone();
    case.table.pages.borrow_mut()[4..16].fill(None);
    let plan = case.plan();
    let prover = Prover::new(&case.table, &plan, true, false, u32::MAX).unwrap();
    for (budget, filled) in [(11, 0), (12, 12)] {
        let mut filler = Filler {
            table: &case.table,
            after: &after,
            calls: 0,
        };
        assert_eq!(prover.populate(&plan, budget, &mut filler), filled);
        assert_eq!(filler.calls, filled);
    }
    assert_eq!(prover.largest(&plan).0.size(), SIZES[2]);
}

/// A fill that changes nothing, or makes smaller leaves than were empty, ends it.
#[test]
fn gives_up_when_filling_does_not_help() {
    struct Nothing(u32);
    impl Fill for Nothing {
        fn fill(&mut self, _: u64) -> bool {
            self.0 += 1;
            true
        }
    }
    let case = free(0);
    case.table.pages.borrow_mut()[3] = None;
    let plan = case.plan();
    let prover = Prover::new(&case.table, &plan, true, false, u32::MAX).unwrap();
    let mut nothing = Nothing(0);
    assert_eq!(prover.populate(&plan, 16, &mut nothing), 1);
    assert_eq!(nothing.0, 1);
}

/// All combinations of what the memory type and permissions depend on, by the sentences of the
/// rules.
#[test]
fn attributes_exhaustively() {
    for bits in 0..1 << 7 {
        let bit = |number: u32| bits >> number & 1 != 0;
        let origin = Origin {
            cacheable: bit(0),
            can_cache: bit(1),
            may_be_normal: bit(2),
        };
        let access = Access {
            exec: bit(3),
            writable: bit(4),
            may_write: bit(5),
            exec_is_free: bit(6),
        };
        match attributes(origin, access) {
            Ok(found) => {
                assert!(!origin.cacheable || origin.can_cache);
                assert_eq!(found.memory == Memory::Normal, origin.cacheable);
                let uncached = !origin.cacheable && origin.may_be_normal;
                assert_eq!(found.memory == Memory::NormalUncached, uncached);
                assert_eq!(found.write, access.writable && access.may_write);
                // Nothing is executed from memory that is not cached.
                assert!(!found.exec || origin.cacheable);
                assert!(!access.exec || found.exec);
            }
            Err(refusal) => {
                use stage2_map::Refusal::*;
                let expected = if origin.cacheable {
                    Incoherent
                } else {
                    ExecUncached
                };
                assert_eq!(refusal, expected);
                assert!(expected != ExecUncached || access.exec);
                assert!(expected != Incoherent || !origin.can_cache);
            }
        }
    }
}

#[test]
fn names_are_different() {
    let mut names: Vec<_> = Bound::ALL.iter().map(|bound| bound.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Bound::ALL.len());
    for (number, bound) in Bound::ALL.into_iter().enumerate() {
        assert_eq!(bound as usize, number);
    }
}
