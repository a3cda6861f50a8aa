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
/// - No two mappings overlap; each is stored under its first IOVA.
/// - `invalid_vaddrs` is the number of entries with `vaddr_invalid`.
/// - `available` plus the number of entries is what the container was opened with.
pub(crate) struct Space {
    mappings: RBTree<u64, Entry>,
    available: u32,
    invalid_vaddrs: u32,
    /// Dirty pages are being tracked: a new mapping gets a log.
    pub(crate) tracking: bool,
    /// The user is gone.
    pub(crate) closed: bool,
}

/// A mapping in its place.
pub(crate) struct Entry {
    pub(crate) mapping: Arc<Mapping>,
    /// Being filled or emptied by a task that does not hold the lock meanwhile. Whoever meets the
    /// mapping waits until it is settled, and looks again.
    pub(crate) busy: bool,
    vaddr_invalid: bool,
}

impl Entry {
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

    /// The lowest mapping that has an address in `range`.
    pub(crate) fn first_in(&self, range: IovaRange) -> Option<&Entry> {
        let overlapping = |entry: &&Entry| entry.mapping.iova().overlaps(range);
        let at_or_after = self.mappings.cursor_lower_bound(&range.first());

        let before = match &at_or_after {
            Some(cursor) => cursor.peek_prev().map(|(_, entry)| entry),
            None => return self.last().filter(overlapping),
        };
        if let Some(entry) = before.filter(overlapping) {
            // The borrow of the cursor does not live as long as that of the tree.
            return self.mappings.get(&entry.mapping.iova().first());
        }
        let first = *at_or_after?.current().0;
        self.mappings.get(&first).filter(overlapping)
    }

    /// The mapping at an address.
    pub(crate) fn at(&self, iova: u64) -> Option<&Entry> {
        self.first_in(IovaRange::new(iova, iova)?)
    }

    /// Whether a mapping in `range` is busy.
    pub(crate) fn any_busy(&self, range: IovaRange) -> bool {
        self.in_range(range).any(|entry| entry.busy)
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

    fn last(&self) -> Option<&Entry> {
        let first = *self.mappings.cursor_back()?.current().0;
        self.mappings.get(&first)
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
        let first = entry.mapping.iova().first();
        self.mappings
            .try_create_and_insert(first, entry, GFP_KERNEL)?;
        self.available = available;
        Ok(())
    }

    /// Removes the mapping that begins at `first`.
    pub(crate) fn remove(&mut self, first: u64) -> Option<Entry> {
        let entry = self.mappings.remove(&first)?;
        self.available += 1;
        if entry.vaddr_invalid {
            self.invalid_vaddrs -= 1;
        }
        Some(entry)
    }

    /// Removes the lowest mapping.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let first = *self.mappings.cursor_front()?.current().0;
        self.remove(first)
    }

    /// Marks the mapping that begins at `first` as being worked on, or as settled.
    pub(crate) fn set_busy(&mut self, first: u64, busy: bool) {
        if let Some(entry) = self.mappings.get_mut(&first) {
            entry.busy = busy;
        }
    }

    /// Marks the user address of the mapping that begins at `first` as invalid, or as valid.
    pub(crate) fn set_vaddr_invalid(&mut self, first: u64, invalid: bool) {
        if let Some(entry) = self.mappings.get_mut(&first) {
            match (entry.vaddr_invalid, invalid) {
                (false, true) => self.invalid_vaddrs += 1,
                (true, false) => self.invalid_vaddrs -= 1,
                _ => {}
            }
            entry.vaddr_invalid = invalid;
        }
    }
}
