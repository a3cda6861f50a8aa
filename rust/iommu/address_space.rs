// SPDX-License-Identifier: GPL-2.0

//! Domains that share their translations, and the pins behind them.

use crate::{
    domain::Gather,
    leaves::{
        Leaves,
        Translation, //
    },
    Access,
    Domain,
    Group, //
};
use iova_space::IovaRange;
use kernel::{
    alloc::kvec::PushError,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use mm::PinnedRun;
use pin_plan::LeafCounts;

const PAGE: u64 = PAGE_SIZE as u64;

/// All I/O page tables of one user, each with the same translations.
///
/// The page tables are the record of what is pinned: [`AddressSpace::map_next`] stores a run's pins
/// there and [`Unmapper::unmap`] finds them again, so no list of pages is kept besides. What is
/// mapped is known by [`Mapped`] tokens, each for a range that no other token covers.
///
/// Mapping and unmapping of different tokens may run concurrently; adding and removing domains
/// needs `&mut self`.
///
/// # Invariants
///
/// - Every translation belongs to one token of this space, and is the same in all `domains`.
/// - Each translated frame that is not reserved has a pin, owned by the translation in the first
///   domain.
/// - `domains` has room for one more.
pub struct AddressSpace {
    id: u64,
    domains: KVec<Domain>,
}

/// A range of I/O virtual addresses that an [`AddressSpace`] translates.
///
/// A token can only be used up by the space that issued it; dropping it would leave the pages
/// pinned.
///
/// # Invariants
///
/// The space `space` translates `[first, first + size)`, through this token alone. `pinned` of the
/// frames are pinned, the others are reserved.
#[must_use = "the range stays mapped and its pages pinned until it is given to `unmap`"]
pub struct Mapped {
    space: u64,
    first: u64,
    size: u64,
    pinned: u64,
    access: Access,
    leaves: Leaves,
}

impl Mapped {
    /// Number of bytes mapped so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of pages pinned; frames of a device's memory are mapped without.
    pub fn pinned(&self) -> u64 {
        self.pinned
    }

    /// The addresses mapped so far.
    pub(crate) fn range(&self) -> Option<IovaRange> {
        IovaRange::from_len(self.first, self.size).ok()
    }

    /// How many translations of which size the IOMMU was given to make.
    pub fn leaves(&self) -> LeafCounts {
        self.leaves.counts()
    }
}

/// What [`Unmapper::unmap`] did.
#[derive(Clone, Copy, Default)]
pub struct Unmapped {
    /// Pages that are unpinned, once the IOTLB is flushed.
    pub pages: u64,
    /// Bytes the IOMMU driver would not unmap; their pages stay pinned.
    pub stuck: u64,
}

/// Copies tokens to a domain that is being added; see [`AddressSpace::insert`].
pub struct Copier<'a> {
    space: &'a AddressSpace,
    target: &'a Domain,
}

impl Copier<'_> {
    /// Gives the new domain the translations of the token, without more pins.
    ///
    /// # Errors
    ///
    /// What the IOMMU driver says, or `EINVAL` if the token is of another space.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn copy(&mut self, mapped: &Mapped) -> Result {
        self.space.check(mapped)?;
        let Some(source) = self.space.domains.first() else {
            return Ok(());
        };
        for run in Runs::new(source, mapped) {
            // SAFETY: The frames are pinned for the translation in `source`. Nothing is unmapped
            // while the space is borrowed; afterwards the target is one of its domains, or is
            // dropped, which detaches its groups.
            unsafe {
                self.target
                    .map(run.iova, run.phys, run.size, mapped.access)?
            };
            mm::cond_resched();
        }
        Ok(())
    }
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl AddressSpace {
    /// A space without domains, in which nothing can be mapped yet.
    pub fn new() -> Self {
        static NEXT: Atomic<u64> = Atomic::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            domains: KVec::new(),
        }
    }

    /// The domains, in no particular order.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> + Clone {
        self.domains.iter()
    }

    /// Whether there is no domain.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// Has all domains that can begin, or end, to track dirty pages; calls `failed` for each that
    /// does not.
    pub fn set_tracking(&mut self, on: bool, mut failed: impl FnMut(Error)) {
        for domain in self.domains.iter_mut().filter(|domain| domain.can_track()) {
            if let Err(error) = domain.set_tracking(on) {
                failed(error);
            }
        }
    }

    /// The domain to which the group is attached.
    pub fn domain_of(&self, group: &Group) -> Option<&Domain> {
        self.domains().find(|domain| domain.has_group(group))
    }

    /// Attaches the group of `candidate` to a domain that is here already, if one takes it.
    ///
    /// Of several the newest is taken, as in C. It can be seen: a domain stays as long as it has a
    /// group, and with it its aperture.
    ///
    /// `None` means that it did and the candidate is gone; otherwise the candidate comes back, for
    /// [`AddressSpace::insert`].
    ///
    /// # Errors
    ///
    /// If the group could be attached neither to one of the domains nor again to the candidate.
    pub fn join(&mut self, mut candidate: Domain) -> Result<Option<Domain>> {
        for domain in self.domains.iter_mut().rev() {
            if !domain.resembles(&candidate) {
                continue;
            }
            match domain.adopt(&mut candidate) {
                Ok(()) => return Ok(None),
                Err(error) if candidate.is_unused() => return Err(error),
                Err(_) => continue,
            }
        }
        Ok(Some(candidate))
    }

    /// Adds a domain, after `copy` gave it the translations of all tokens.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or what `copy` returns; the domain is then dropped.
    pub fn insert(
        &mut self,
        domain: Domain,
        copy: impl FnOnce(&mut Copier<'_>) -> Result,
    ) -> Result {
        self.domains.reserve(1, GFP_KERNEL)?;
        copy(&mut Copier {
            space: self,
            target: &domain,
        })?;
        self.domains.push(domain, GFP_KERNEL).map_err(Error::from)
    }

    /// Detaches a group from its domain, which may then have none.
    pub fn detach(&mut self, group: &Group) {
        if let Some(domain) = self.domains.iter_mut().find(|d| d.has_group(group)) {
            domain.remove_group(group);
        }
    }

    /// Drops a domain without groups, unless it is the last.
    ///
    /// Returns whether the last domain has no group: then nothing reaches the memory, and the
    /// caller unmaps all tokens before [`AddressSpace::clear`].
    pub fn drop_unused(&mut self) -> bool {
        let Some(index) = self.domains().position(Domain::is_unused) else {
            return false;
        };
        if self.domains.len() > 1 {
            // INVARIANT: If this was the first domain, the next one has the same translations and
            // answers for the pins from now on.
            drop(self.domains.remove(index));
            return false;
        }
        true
    }

    /// Drops all domains. Tokens that were not unmapped leave their pages pinned for ever.
    pub fn clear(&mut self) {
        self.domains.clear();
    }

    /// A token for the range beginning at `first`, of which nothing is mapped yet.
    pub fn begin(&self, first: u64, access: Access) -> Mapped {
        // INVARIANT: An empty range.
        Mapped {
            space: self.id,
            first,
            size: 0,
            pinned: 0,
            access,
            leaves: Leaves::NONE,
        }
    }

    /// Maps a run right after what the token has, in all domains, and takes over its pins.
    ///
    /// # Errors
    ///
    /// What the IOMMU driver says; the run is then unpinned and the token is as before. `EINVAL`
    /// if there is no domain, or the token is of another space. `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn map_next(&self, mapped: &mut Mapped, run: PinnedRun, page_sizes: u64) -> Result {
        self.check(mapped)?;
        let (phys, size) = (run.phys(), run.size());
        let iova = mapped.first.checked_add(mapped.size).ok_or(EOVERFLOW)?;
        let translation = Translation {
            page_sizes,
            iova: IovaRange::from_len(iova, size).map_err(|_| EOVERFLOW)?,
            phys,
        };
        if self.is_empty() {
            return Err(EINVAL);
        }
        let leaves = mapped.leaves.prepare(translation)?;

        for (done, domain) in self.domains.iter().enumerate() {
            // SAFETY: The run keeps its frames until they are handed to the token below, or all
            // domains that have them are unmapped.
            if let Err(error) = unsafe { domain.map(iova, phys, size, mapped.access) } {
                let mut clean = true;
                for domain in self.domains.iter().take(done) {
                    clean &= domain.unmap(iova, size);
                }
                if !clean {
                    // Rather lose the memory than give it away while a device reaches it.
                    let _ = run.into_frames();
                }
                return Err(error);
            }
        }

        // INVARIANT: All domains have the translation, and it owns the pins now.
        let (_, pages, reserved) = run.into_frames();
        mapped.pinned += if reserved { 0 } else { pages };
        mapped.size += size;
        mapped.leaves.add(translation, leaves);
        Ok(())
    }

    /// Unmaps the tokens that `work` hands out, of `pages` pages altogether, and unpins their pages
    /// once no device can reach them: at the latest before this returns.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn unmap<R>(&self, pages: u64, work: impl FnOnce(&mut Unmapper<'_, '_>) -> R) -> R {
        let Some(first) = self.domains.first() else {
            // Without a domain no token has anything mapped.
            return work(&mut Unmapper::new(self, None, 0));
        };
        Gather::scope(first, |gather| {
            work(&mut Unmapper::new(self, Some(gather), pages))
        })
    }

    pub(crate) fn check(&self, mapped: &Mapped) -> Result {
        if mapped.space == self.id {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }
}

/// A piece of a token whose frames are consecutive.
struct Run {
    iova: u64,
    phys: u64,
    size: u64,
}

/// Walks a domain's page table over a token and yields it as runs.
///
/// The walk looks one page past a run, so what was yielded may be unmapped meanwhile.
struct Runs<'a> {
    domain: &'a Domain,
    next: u64,
    left: u64,
}

impl<'a> Runs<'a> {
    fn new(domain: &'a Domain, mapped: &Mapped) -> Self {
        Self {
            domain,
            next: mapped.first,
            left: mapped.size,
        }
    }

    fn skip(&mut self, size: u64) {
        // The range may end with the last address there is.
        self.next = self.next.wrapping_add(size);
        self.left -= size;
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let phys = loop {
            if self.left == 0 {
                return None;
            }
            match self.domain.phys(self.next) {
                Some(phys) => break phys,
                None => self.skip(PAGE.min(self.left)),
            }
        };

        let iova = self.next;
        let mut size = PAGE.min(self.left);
        while size < self.left && self.domain.phys(iova + size) == Some(phys + size) {
            size += PAGE.min(self.left - size);
        }
        self.skip(size);
        Some(Run { iova, phys, size })
    }
}

/// Unmaps tokens; see [`AddressSpace::unmap`].
///
/// # Invariants
///
/// - `gather` is of the first domain of `space`.
/// - No domain but the first translates to a frame in `waiting` or `last`, nor does the first once
///   `gather` was flushed. These pins are given back after that only.
pub struct Unmapper<'a, 'b> {
    space: &'a AddressSpace,
    gather: Option<&'a mut Gather<'b>>,
    waiting: KVec<PinnedRun>,
    last: Option<PinnedRun>,
}

/// Which frames of a token are pinned.
#[derive(Clone, Copy)]
enum Pins {
    All,
    Some,
    None,
}

impl Pins {
    fn of(mapped: &Mapped) -> Self {
        match mapped.pinned {
            0 => Self::None,
            pinned if pinned == mapped.size / PAGE => Self::All,
            _ => Self::Some,
        }
    }
}

impl<'a, 'b> Unmapper<'a, 'b> {
    /// Runs kept back per flush, as flushing may mean a round trip to the IOMMU.
    const MOST: u64 = 512;

    fn new(space: &'a AddressSpace, gather: Option<&'a mut Gather<'b>>, pages: u64) -> Self {
        // One has its place in `last`.
        let room = pages.clamp(1, Self::MOST) as usize - 1;
        // Without memory every run is flushed by itself: unmapping cannot fail.
        let waiting = KVec::with_capacity(room, GFP_KERNEL | __GFP_NOWARN).unwrap_or_default();
        // INVARIANT: Nothing waits.
        Self {
            space,
            gather,
            waiting,
            last: None,
        }
    }

    /// Unmaps a token from all domains.
    pub fn unmap(&mut self, mapped: Mapped) -> Unmapped {
        let mut total = Unmapped::default();
        if self.space.check(&mapped).is_err() || mapped.size == 0 {
            return total;
        }
        let Some((first, others)) = self.space.domains.split_first() else {
            return total;
        };

        let mut pins = Pins::of(&mapped);
        for domain in others {
            if !domain.unmap(mapped.first, mapped.size) {
                // A device may still reach any of it: none of the pins is given back.
                pins = Pins::None;
                total.stuck = mapped.size;
            }
            mm::cond_resched();
        }

        for run in Runs::new(first, &mapped) {
            let mut done = 0;
            while done < run.size {
                let (iova, left) = (run.iova + done, run.size - done);
                let mut size = self.unmap_unflushed(iova, left);
                if size == 0 {
                    // Once more, with nothing else under way.
                    self.flush();
                    size = self.unmap_unflushed(iova, left);
                }
                if size == 0 {
                    total.stuck = mapped.size.min(total.stuck + left);
                    break;
                }
                let size = size.min(left);
                let (frame, count) = ((run.phys + done) / PAGE, size / PAGE);
                total.pages += self.keep_back(frame, count, pins, mapped.access.write);
                done += size;
            }
        }
        total
    }

    fn unmap_unflushed(&mut self, iova: u64, size: u64) -> u64 {
        match &mut self.gather {
            Some(gather) => gather.unmap(iova, size),
            None => 0,
        }
    }

    /// Takes over the pins of frames that were just unmapped; the number of pages pinned.
    fn keep_back(&mut self, first: u64, count: u64, pins: Pins, dirty: bool) -> u64 {
        match pins {
            Pins::All => {
                // SAFETY: Each of the frames has its pin, which was the token's.
                self.push(unsafe { PinnedRun::from_frames(first, count, false, dirty) });
                count
            }
            Pins::Some => {
                let pinned = (first..first + count).filter(|&frame| !mm::frame_is_reserved(frame));
                let mut pages = 0;
                for frame in pinned {
                    // SAFETY: Frames that are not reserved have their pins, which were the token's.
                    self.push(unsafe { PinnedRun::from_frames(frame, 1, false, dirty) });
                    pages += 1;
                }
                pages
            }
            Pins::None => 0,
        }
    }

    fn push(&mut self, run: PinnedRun) {
        let run = match &mut self.last {
            Some(last) => match last.extend(run) {
                Ok(()) => return,
                Err(run) => run,
            },
            None => run,
        };
        let Some(before) = self.last.replace(run) else {
            return;
        };
        if let Err(PushError(before)) = self.waiting.push_within_capacity(before) {
            self.flush();
            drop(before);
        }
    }

    /// Flushes the IOTLB, and unpins what waited for that.
    fn flush(&mut self) {
        if let Some(gather) = &mut self.gather {
            gather.sync();
        }
        self.waiting.clear();
        self.last = None;
        mm::cond_resched();
    }
}

impl Drop for Unmapper<'_, '_> {
    fn drop(&mut self) {
        self.flush();
    }
}
