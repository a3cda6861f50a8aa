// SPDX-License-Identifier: GPL-2.0

//! What the VMM's page table proves.

use crate::{
    Block,
    Bound,
    Plan,
    Span, //
};
use core::ops::ControlFlow;

/// An entry of the VMM's page table that is not a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Where it begins.
    pub hva: u64,
    /// Bytes it stands for, a power of two, also if it maps nothing.
    pub size: u64,
    /// What it maps to.
    pub pa: u64,
    /// Index of its memory attributes.
    pub attr: u8,
    /// Whether it maps anything.
    pub present: bool,
    /// Whether the VMM may write.
    pub writable: bool,
}

/// The VMM's page table.
pub trait HostTable {
    /// Calls `visit` with each leaf that has an address in `span`, in order, until it breaks.
    ///
    /// # Errors
    ///
    /// If not all of `span` could be visited, and `visit` did not break.
    fn walk(
        &self,
        span: Span,
        visit: &mut dyn FnMut(&Leaf) -> ControlFlow<()>,
    ) -> Result<(), Unreadable>;
}

/// The page table does not reach to some address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

/// The leaf of the page that faulted is not what was found behind the page.
///
/// The fault is to be replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale;

/// What all leaves of a block must have in common with the one of its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pattern {
    /// Physical less virtual address.
    distance: u64,
    attr: u8,
    writable: bool,
    /// No other leaf will do.
    alone: bool,
}

impl Pattern {
    /// Whether `leaf` may be part of `block`.
    fn admit(&self, leaf: &Leaf, block: Block) -> Result<(), Bound> {
        if !leaf.present {
            Err(Bound::Missing)
        } else if self.alone && leaf.size < block.size() {
            Err(Bound::Mixed)
        } else if leaf.pa.wrapping_sub(leaf.hva) != self.distance {
            Err(Bound::Elsewhere)
        } else if leaf.attr != self.attr {
            Err(Bound::Attributes)
        } else if self.writable && !leaf.writable {
            Err(Bound::ReadOnly)
        } else {
            Ok(())
        }
    }
}

/// Proves blocks of a plan from the VMM's page table.
#[derive(Clone, Copy, Debug)]
pub struct Prover<'a, T> {
    table: &'a T,
    pattern: Pattern,
    leaves: u32,
}

/// What is known about a block before its missing leaves are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prospect {
    /// All leaves are there and fit.
    Proven,
    /// Nothing that is there is against it, but so many leaves are missing, by the sizes of the
    /// entries that are empty now.
    Missing(u32),
    /// It cannot be proven.
    Never(Bound),
}

impl<'a, T: HostTable> Prover<'a, T> {
    /// Looks at the leaf of the plan's page.
    ///
    /// `writable` tells whether the mapping is to be so. With `mixed` a block has to be within one
    /// leaf, as next to it there may be ordinary memory. No more than `leaves` leaves are looked at
    /// for one block.
    ///
    /// # Errors
    ///
    /// [`Stale`] if that leaf is missing, maps something else or is not writable.
    pub fn new(
        table: &'a T,
        plan: &Plan,
        writable: bool,
        mixed: bool,
        leaves: u32,
    ) -> Result<Self, Stale> {
        let page = plan.page();
        let mut found = None;
        let walked = table.walk(page.hvas(), &mut |leaf| {
            found = Some(*leaf);
            ControlFlow::Break(())
        });
        let leaf = match (walked, found) {
            (Ok(()), Some(leaf)) => leaf,
            _ => return Err(Stale),
        };
        let pattern = Pattern {
            distance: page.pa().wrapping_sub(page.hva()),
            attr: leaf.attr,
            writable,
            alone: mixed,
        };
        pattern.admit(&leaf, page).map_err(|_| Stale)?;
        Ok(Self {
            table,
            pattern,
            leaves,
        })
    }

    /// The largest block of `plan` whose every leaf is present, continues the page's in physical
    /// memory, has its attributes, and is writable if the mapping is to be; and why no larger one.
    pub fn largest(&self, plan: &Plan) -> (Block, Bound) {
        let mut largest = plan.page();
        for block in plan.larger() {
            match self.prove(block) {
                Ok(()) => largest = block,
                Err(bound) => return (largest, bound),
            }
        }
        (largest, plan.bound())
    }

    /// Has `judge` hear of each leaf of `block` whether it may be part of it, until it breaks with
    /// what is against the block.
    fn judge(
        &self,
        block: Block,
        mut judge: impl FnMut(Result<(), Bound>) -> ControlFlow<Bound>,
    ) -> Result<(), Bound> {
        let mut left = self.leaves;
        let mut against = None;
        let walked = self.table.walk(block.hvas(), &mut |leaf| {
            let admitted = match left.checked_sub(1) {
                Some(rest) => {
                    left = rest;
                    self.pattern.admit(leaf, block)
                }
                None => Err(Bound::Budget),
            };
            match judge(admitted) {
                ControlFlow::Continue(()) => ControlFlow::Continue(()),
                ControlFlow::Break(bound) => {
                    against = Some(bound);
                    ControlFlow::Break(())
                }
            }
        });
        match (against, walked) {
            (Some(bound), _) => Err(bound),
            (None, Err(Unreadable)) => Err(Bound::Missing),
            (None, Ok(())) => Ok(()),
        }
    }

    fn prove(&self, block: Block) -> Result<(), Bound> {
        self.judge(block, |admitted| match admitted {
            Ok(()) => ControlFlow::Continue(()),
            Err(bound) => ControlFlow::Break(bound),
        })
    }

    /// Looks at the leaves of `block`, to see whether it pays to have those filled that are missing.
    ///
    /// What this says holds for no time at all, unlike [`Prover::largest`] under KVM's lock.
    pub fn prospect(&self, block: Block) -> Prospect {
        let mut missing = 0u32;
        let judged = self.judge(block, |admitted| match admitted {
            Ok(()) => ControlFlow::Continue(()),
            Err(Bound::Missing) if !self.pattern.alone => {
                missing = missing.saturating_add(1);
                ControlFlow::Continue(())
            }
            Err(bound) => ControlFlow::Break(bound),
        });
        match (judged, missing) {
            (Err(bound), _) => Prospect::Never(bound),
            (Ok(()), 0) => Prospect::Proven,
            (Ok(()), missing) => Prospect::Missing(missing),
        }
    }

    /// Has missing leaves filled, at most `budget` of them, where that makes a block of `plan`.
    ///
    /// Begins no block that it could not finish, as far as can be seen. Returns how many it had
    /// filled.
    pub fn populate(&self, plan: &Plan, budget: u32, fill: &mut dyn Fill) -> u32 {
        let mut left = budget;
        for block in plan.larger() {
            let there = match self.prospect(block) {
                Prospect::Proven => true,
                Prospect::Missing(leaves) if leaves <= left => self.fill(block, &mut left, fill),
                Prospect::Missing(_) | Prospect::Never(_) => false,
            };
            if !there {
                break;
            }
        }
        budget.saturating_sub(left)
    }

    /// Whether all leaves of the block are there in the end.
    fn fill(&self, block: Block, left: &mut u32, fill: &mut dyn Fill) -> bool {
        let mut rest = Some(block.hvas());
        let mut filled: Option<Leaf> = None;
        while let Some(span) = rest {
            let mut first = None;
            let mut missing = None;
            let walked = self.table.walk(span, &mut |leaf| {
                first = first.or(Some(*leaf));
                match self.pattern.admit(leaf, block) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(bound) => {
                        missing = Some((*leaf, bound));
                        ControlFlow::Break(())
                    }
                }
            });
            // What was just filled has to be there, and as large as what was empty: else there
            // are more leaves than were counted.
            let as_counted = match (filled, first) {
                (Some(empty), Some(leaf)) => leaf.present && leaf.size >= empty.size,
                (None, _) => true,
                (Some(_), None) => false,
            };
            let leaf = match (walked, missing) {
                _ if !as_counted => return false,
                (Ok(()), None) => return true,
                (Ok(()), Some((leaf, Bound::Missing))) => leaf,
                _ => return false,
            };
            let hva = leaf.hva.max(span.first());
            let Some(less) = left.checked_sub(1) else {
                return false;
            };
            if !fill.fill(hva) {
                return false;
            }
            *left = less;
            filled = Some(leaf);
            rest = Span::new(hva, span.last());
        }
        true
    }
}

/// Something that can have the kernel fill a missing leaf, as an access of the VMM would.
pub trait Fill {
    /// Fills the leaf of `hva`; returns whether it could.
    fn fill(&mut self, hva: u64) -> bool;
}
