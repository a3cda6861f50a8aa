// SPDX-License-Identifier: GPL-2.0

//! How many translations of which size there are, for reports.

use iova_space::IovaRange;
use kernel::prelude::*;
use pin_plan::{
    leaves,
    Leaf,
    LeafCounts, //
};

/// The leaves of a token, by size.
///
/// There may be many tokens, most of which have leaves of one size: only the others have a table.
pub(crate) enum Leaves {
    /// All of one size; none, if the count is 0.
    Same(Leaf),
    Mixed(KBox<LeafCounts>),
}

/// Consecutive frames at an IOVA, for an IOMMU with these page sizes.
#[derive(Clone, Copy)]
pub(crate) struct Translation {
    pub(crate) page_sizes: u64,
    pub(crate) iova: IovaRange,
    pub(crate) phys: u64,
}

impl Translation {
    fn len(self) -> u64 {
        self.iova.size().unwrap_or(u64::MAX)
    }

    fn leaves(self) -> impl Iterator<Item = Leaf> {
        leaves(self.page_sizes, self.iova.first(), self.phys, self.len())
    }

    fn count_in(self, counts: &mut LeafCounts) {
        counts.add_run(self.page_sizes, self.iova.first(), self.phys, self.len());
    }
}

/// What [`Leaves::prepare`] made.
pub(crate) struct Prepared(Option<Leaves>);

impl Leaves {
    pub(crate) const NONE: Self = Self::Same(Leaf { size: 0, count: 0 });

    /// Gets ready to add the leaves of a translation.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, with leaves of several sizes.
    pub(crate) fn prepare(&self, added: Translation) -> Result<Prepared> {
        let Self::Same(before) = *self else {
            return Ok(Prepared(None));
        };
        let mut same = before;
        for leaf in added.leaves() {
            if same.count == 0 {
                same = leaf;
            } else if same.size == leaf.size {
                same.count = same.count.saturating_add(leaf.count);
            } else {
                let mut counts = KBox::new(LeafCounts::default(), GFP_KERNEL)?;
                counts.add(before);
                added.count_in(&mut counts);
                return Ok(Prepared(Some(Self::Mixed(counts))));
            }
        }
        Ok(Prepared(Some(Self::Same(same))))
    }

    /// Adds what was prepared for this translation.
    pub(crate) fn add(&mut self, added: Translation, prepared: Prepared) {
        match (prepared.0, &mut *self) {
            (Some(sum), _) => *self = sum,
            (None, Self::Mixed(counts)) => added.count_in(counts),
            (None, Self::Same(_)) => {}
        }
    }

    /// All of them.
    pub(crate) fn counts(&self) -> LeafCounts {
        match self {
            Self::Same(leaf) => {
                let mut counts = LeafCounts::default();
                counts.add(*leaf);
                counts
            }
            Self::Mixed(counts) => **counts,
        }
    }
}
