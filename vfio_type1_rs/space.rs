// SPDX-License-Identifier: GPL-2.0

//! The mappings of a container, by IOVA.

use crate::mapping::Mapping;
use iova_space::IovaRange;
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::Arc, //
};

/// What a container knows about its mappings as a whole.
///
/// # Invariants
///
/// - No two mappings overlap; each is stored under its last IOVA, so that the lowest mapping with an
///   address at or above another is found in one descent.
/// - `invalid_vaddrs` is the number of entries with `vaddr_invalid`, `busy` of those with `busy`.
/// - `available` plus the number of entries is what the container was opened with.
pub(crate) struct Space {
    mappings: RBTree<u64, Entry>,
    available: u32,
    invalid_vaddrs: u32,
    busy: u32,
    /// Tasks that wait until mappings are settled.
    pub(crate) waiting: u32,
    /// Dirty pages are being tracked: a new mapping gets a log.
    pub(crate) tracking: bool,
    /// The user is gone.
    pub(crate) closed: bool,
}

/// How far [`Space::claim`] came.
pub(crate) enum Claimed<R> {
    /// To the end.
    All,
    /// To this mapping, which is busy.
    Busy(IovaRange),
    /// To one that was refused, for this reason.
    Refused(R),
}

/// A mapping in its place.
pub(crate) struct Entry {
    pub(crate) mapping: Arc<Mapping>,
    busy: bool,
    vaddr_invalid: bool,
}

impl Entry {
    /// Being filled or emptied by a task that does not hold the lock meanwhile. Whoever meets the
    /// mapping waits until it is settled, and looks again.
    pub(crate) fn busy(&self) -> bool {
        self.busy
    }

    pub(crate) fn vaddr_invalid(&self) -> bool {
        self.vaddr_invalid
    }
}

impl Space {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            mappings: RBTree::new(),
            available: limit,
            invalid_vaddrs: 0,
            busy: 0,
            waiting: 0,
            tracking: false,
            closed: false,
        }
    }

    /// How many more mappings there may be.
    pub(crate) fn available(&self) -> u32 {
        self.available
    }

    /// Number of mappings.
    pub(crate) fn len(&self) -> usize {
        self.mappings.iter().count()
    }

    /// Whether some mapping has no valid user address.
    pub(crate) fn has_invalid_vaddr(&self) -> bool {
        self.invalid_vaddrs != 0
    }

    /// All mappings, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.mappings.values()
    }

    /// What the lowest mapping covers that has an address in `range`.
    pub(crate) fn first_mapped(&self, range: IovaRange) -> Option<IovaRange> {
        let cursor = self.mappings.cursor_lower_bound(&range.first())?;
        let (_, entry) = cursor.current();
        Some(entry.mapping.iova()).filter(|iova| iova.overlaps(range))
    }

    /// The lowest mapping that has an address in `range`.
    pub(crate) fn first_in(&self, range: IovaRange) -> Option<&Entry> {
        // The borrow of a cursor does not live as long as that of the tree.
        self.mappings.get(&self.first_mapped(range)?.last())
    }

    /// The mapping at an address.
    pub(crate) fn at(&self, iova: u64) -> Option<&Entry> {
        self.first_in(IovaRange::new(iova, iova)?)
    }

    /// Whether a mapping in `range` is busy.
    pub(crate) fn any_busy(&self, range: IovaRange) -> bool {
        self.busy != 0 && self.in_range(range).any(|entry| entry.busy)
    }

    /// The mappings that have an address in `range`, ascending.
    pub(crate) fn in_range(&self, range: IovaRange) -> impl Iterator<Item = &Entry> {
        let mut rest = Some(range);
        core::iter::from_fn(move || {
            let entry = self.first_in(rest?)?;
            rest = range.behind(entry.mapping.iova());
            Some(entry)
        })
    }

    /// Adds a busy mapping, which overlaps none.
    pub(crate) fn insert(&mut self, mapping: Arc<Mapping>) -> Result {
        let Some(available) = self.available.checked_sub(1) else {
            return Err(ENOSPC);
        };
        let entry = Entry {
            mapping,
            busy: true,
            vaddr_invalid: false,
        };
        let last = entry.mapping.iova().last();
        self.mappings
            .try_create_and_insert(last, entry, GFP_KERNEL)?;
        self.available = available;
        self.busy += 1;
        Ok(())
    }

    /// Removes the mapping of `iova`.
    pub(crate) fn remove(&mut self, iova: IovaRange) -> Option<Entry> {
        let entry = self.mappings.remove(&iova.last())?;
        self.available += 1;
        self.busy -= u32::from(entry.busy);
        self.invalid_vaddrs -= u32::from(entry.vaddr_invalid);
        Some(entry)
    }

    /// Removes the lowest mapping.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let iova = self.iter().next()?.mapping.iova();
        self.remove(iova)
    }

    /// Marks mappings that have an address in `range` as being worked on, from low to high, until
    /// one is busy already or `refuse` says why not; that reason.
    pub(crate) fn claim<R>(
        &mut self,
        range: IovaRange,
        mut refuse: impl FnMut(&Arc<Mapping>) -> Option<R>,
    ) -> Claimed<R> {
        let mut next = self.mappings.cursor_lower_bound_mut(&range.first());
        while let Some(mut cursor) = next {
            let (_, entry) = cursor.current_mut();
            let iova = entry.mapping.iova();
            if !iova.overlaps(range) {
                break;
            }
            if entry.busy {
                return Claimed::Busy(iova);
            }
            if let Some(reason) = refuse(&entry.mapping) {
                return Claimed::Refused(reason);
            }
            entry.busy = true;
            self.busy += 1;
            next = cursor.move_next();
        }
        Claimed::All
    }

    /// Marks the mapping of `iova` as settled.
    pub(crate) fn settle(&mut self, iova: IovaRange) {
        if let Some(entry) = self.mappings.get_mut(&iova.last()) {
            self.busy -= u32::from(entry.busy);
            entry.busy = false;
        }
    }

    /// Marks the user address of the mapping of `iova` as invalid, or as valid.
    pub(crate) fn set_vaddr_invalid(&mut self, iova: IovaRange, invalid: bool) {
        if let Some(entry) = self.mappings.get_mut(&iova.last()) {
            match (entry.vaddr_invalid, invalid) {
                (false, true) => self.invalid_vaddrs += 1,
                (true, false) => self.invalid_vaddrs -= 1,
                _ => {}
            }
            entry.vaddr_invalid = invalid;
        }
    }
}
