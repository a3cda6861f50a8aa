// SPDX-License-Identifier: GPL-2.0

//! Who knows what devices wrote to.

/// Where the dirty pages of a mapping are known from.
///
/// Pages that drivers pin, or write to by themselves, are in the log in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// From drivers alone: no device writes to pages that are not pinned for it.
    Pins,
    /// From the dirty bits of the IOMMUs as well.
    Hardware,
    /// From nobody: every page may be dirty.
    Unknown,
}

/// A group of devices that reaches the mapping through an IOMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// The IOMMU records in its page table what the devices write to.
    pub tracked: bool,
    /// The devices write only to pages that their driver has pinned.
    pub pinned: bool,
}

impl Source {
    /// Decides from all groups that reach the mapping.
    ///
    /// Each of them is asked: one that nobody watches makes every page suspect, however many are
    /// watched.
    pub fn of(groups: impl IntoIterator<Item = Reach>) -> Self {
        groups
            .into_iter()
            .fold(Self::Pins, |all, group| match (all, group) {
                (_, Reach { tracked: true, .. }) if all != Self::Unknown => Self::Hardware,
                (
                    _,
                    Reach {
                        tracked: false,
                        pinned: false,
                    },
                ) => Self::Unknown,
                _ => all,
            })
    }
}
