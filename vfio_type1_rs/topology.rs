// SPDX-License-Identifier: GPL-2.0

//! The groups of a container, and what their IOMMUs can do together.

use core::iter;
use dirty_log::{
    Reach,
    Source, //
};
use iommu::{
    AddressSpace,
    Domain,
    Group,
    Reserved,
    ReservedKind, //
};
use iova_space::{
    valid_ranges,
    IovaRange,
    PageSizes, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    }, //
};

/// A group that is a member of the container.
pub(crate) struct Member {
    pub(crate) group: ARef<Group>,
    pub(crate) emulated: bool,
    /// Its devices dirty only pages that are pinned through the driver.
    pinned_scope: Atomic<bool>,
    reserved: KVec<Reserved>,
}

impl Member {
    /// A group whose devices reach memory through an IOMMU.
    pub(crate) fn iommu(group: &Group, reserved: KVec<Reserved>) -> Self {
        Self {
            group: group.to_aref(),
            emulated: false,
            pinned_scope: Atomic::new(false),
            reserved,
        }
    }

    /// A group whose devices reach memory only through their driver.
    pub(crate) fn emulated(group: &Group) -> Self {
        Self {
            group: group.to_aref(),
            emulated: true,
            pinned_scope: Atomic::new(true),
            reserved: KVec::new(),
        }
    }

    pub(crate) fn has_pinned_scope(&self) -> bool {
        self.pinned_scope.load(Relaxed)
    }

    /// Its driver pins pages, so that nothing else can become dirty.
    pub(crate) fn set_pinned_scope(&self) {
        self.pinned_scope.store(true, Relaxed);
    }
}

/// Groups and domains.
pub(crate) struct Topology {
    pub(crate) members: KVec<Member>,
    pub(crate) iommu: AddressSpace,
    page_sizes: PageSizes,
    valid: Option<KVec<IovaRange>>,
}

impl Topology {
    pub(crate) fn new() -> Self {
        Self {
            members: KVec::new(),
            iommu: AddressSpace::new(),
            page_sizes: PageSizes::cpu_page(PAGE_SIZE as u64),
            valid: None,
        }
    }

    /// Page sizes that all domains can map.
    pub(crate) fn page_sizes(&self) -> PageSizes {
        self.page_sizes
    }

    /// The ranges that all devices can address, ascending. None before an IOMMU is there to limit
    /// them.
    pub(crate) fn valid(&self) -> &[IovaRange] {
        self.valid.as_deref().unwrap_or(&[])
    }

    /// Whether all devices can address all of `range`.
    pub(crate) fn allows(&self, range: IovaRange) -> bool {
        match &self.valid {
            Some(valid) => valid.iter().any(|allowed| allowed.contains(range)),
            None => true,
        }
    }

    /// The valid range next to `range`.
    pub(crate) fn nearest(&self, range: IovaRange) -> Option<IovaRange> {
        let distance = |valid: &IovaRange| {
            let above = valid.first().saturating_sub(range.last());
            let below = range.first().saturating_sub(valid.last());
            above.max(below)
        };
        self.valid().iter().copied().min_by_key(distance)
    }

    pub(crate) fn member(&self, group: &Group) -> Option<&Member> {
        self.members.iter().find(|member| *member.group == *group)
    }

    /// Whether a mediated device is here.
    pub(crate) fn has_emulated(&self) -> bool {
        self.members.iter().any(|member| member.emulated)
    }

    /// Where the dirty pages of what the IOMMU maps are known from.
    pub(crate) fn dirty_source(&self) -> Source {
        Source::of(self.members.iter().map(|member| self.reach(member)))
    }

    /// What there is to know about the writes of a member's devices.
    pub(crate) fn reach(&self, member: &Member) -> Reach {
        Reach {
            tracked: self
                .iommu
                .domain_of(&member.group)
                .is_some_and(Domain::is_tracking),
            pinned: member.has_pinned_scope(),
        }
    }

    /// Whether there is a page size that `domain` and all others can map.
    pub(crate) fn shares_page_size(&self, domain: &Domain) -> bool {
        let sizes = Iterator::chain(self.iommu.domains(), iter::once(domain));
        PageSizes::common(sizes.map(Domain::page_sizes), PAGE_SIZE as u64).is_some()
    }

    /// The addresses that all domains translate.
    pub(crate) fn aperture(&self) -> Option<IovaRange> {
        self.iommu
            .domains()
            .try_fold(IovaRange::ALL, |all, domain| {
                all.intersect(domain.aperture())
            })
    }

    /// Ranges within `aperture` that neither the members nor a group with `more` reserved forbid.
    pub(crate) fn valid_with(
        &self,
        aperture: IovaRange,
        more: &[Reserved],
    ) -> Result<KVec<IovaRange>> {
        let members = self.members.iter().flat_map(|member| &*member.reserved);
        let holes = Iterator::chain(members, more)
            .filter(|reserved| reserved.kind != ReservedKind::DirectRelaxable)
            .map(|reserved| reserved.range);

        let mut valid = KVec::new();
        valid_ranges(aperture, holes, |range| valid.push(range, GFP_KERNEL))?;
        Ok(valid)
    }

    /// Takes a new list of valid ranges.
    pub(crate) fn set_valid(&mut self, valid: KVec<IovaRange>) {
        self.valid = Some(valid);
    }

    /// Finds out what page sizes the domains now have in common.
    pub(crate) fn update_page_sizes(&mut self) {
        let sizes = self.iommu.domains().map(Domain::page_sizes);
        self.page_sizes = PageSizes::common(sizes, PAGE_SIZE as u64)
            .unwrap_or(PageSizes::cpu_page(PAGE_SIZE as u64));
    }
}
