// SPDX-License-Identifier: GPL-2.0

//! Groups come and go.

use crate::{
    container::Container,
    dirty::warn_untracked,
    refusal::Cause,
    space::Space,
    topology::{
        Member,
        Topology, //
    }, //
};
use dirty_log::Reach;
use iommu::{
    Domain,
    Group,
    Reserved,
    ReservedKind, //
};
use iova_space::IovaRange;
use kernel::prelude::*;
use vfio::GroupKind;

impl Container {
    /// Adds a group. If it brings a new domain, everything is mapped there too; if that is the
    /// first one, the memory is pinned now.
    pub(crate) fn attach(&self, group: &Group, kind: GroupKind) -> Result<(), Cause> {
        let mut topology = self.topology.write();
        let space = self.open_space()?;

        if space.has_invalid_vaddr() {
            return Err(Cause::Other(EBUSY));
        }
        if topology.member(group).is_some() || kind == GroupKind::NoIommu {
            return Err(Cause::Other(EINVAL));
        }
        topology.members.reserve(1, GFP_KERNEL)?;
        if kind == GroupKind::Emulated {
            topology.members.push(Member::emulated(group), GFP_KERNEL)?;
            return Ok(());
        }

        let mut domain = Domain::new(group, self.largest_tracked)?;
        let reserved = group.reserved_regions()?;
        let valid = check_ranges(&topology, &space, &domain, &reserved)?;
        if !topology.shares_page_size(&domain) {
            return Err(Cause::Other(EINVAL));
        }
        if !vfio::allow_unsafe_interrupts() && !group.has_isolated_msi() {
            return Err(Cause::UnsafeInterrupts { group: group.id() });
        }
        domain.enforce_coherency();
        if let Some(base) = software_msi_window(&reserved) {
            domain.set_msi_window(base)?;
        }

        let first = topology.iommu.is_empty();
        if let Some(mut domain) = topology.iommu.join(domain)? {
            if space.tracking && domain.can_track() {
                // Before there is anything to write to.
                domain.set_tracking(true).unwrap_or_else(warn_untracked);
            }
            topology.iommu.insert(domain, |copier| {
                for entry in space.iter() {
                    if let Some(mapped) = &entry.mapping.state.lock().mapped {
                        copier.copy(mapped)?;
                    }
                }
                Ok(())
            })?;
        }
        topology.update_page_sizes();
        if first {
            if let Err(cause) = populate_all(&topology, &space) {
                unmap_all(&topology, &space);
                topology.iommu.clear();
                topology.update_page_sizes();
                return Err(cause);
            }
        }

        topology
            .members
            .push(Member::iommu(group, reserved), GFP_KERNEL)?;
        topology.set_valid(valid);
        Ok(())
    }

    /// Removes a group. With the last group of an IOMMU goes its access to the memory, with the
    /// last group of all go the mappings.
    pub(crate) fn detach(&self, group: &Group) {
        let mut topology = self.topology.write();
        let mut space = self.space.lock();

        let Some(index) = topology.members.iter().position(|m| *m.group == *group) else {
            return;
        };
        let Ok(member) = topology.members.remove(index) else {
            return;
        };
        let reach = topology.reach(&member);

        topology.iommu.detach(group);
        if space.tracking {
            // No device of the group writes any more; what it wrote must not go with its domain.
            match reach {
                Reach { tracked: true, .. } => space.rescue_dirty(&topology, Domain::is_unused),
                Reach { pinned: false, .. } => space.mark_all_dirty(),
                _ => {}
            }
        }
        let last_of_iommu = topology.iommu.drop_unused();
        if topology.members.is_empty() {
            remove_all(&topology, &mut space);
        } else if last_of_iommu {
            unmap_all(&topology, &space);
        }
        if last_of_iommu {
            topology.iommu.clear();
        }
        if member.emulated {
            return;
        }

        topology.update_page_sizes();
        let aperture = topology.aperture().unwrap_or(IovaRange::ALL);
        match topology.valid_with(aperture, &[]) {
            Ok(valid) if !valid.is_empty() => topology.set_valid(valid),
            // What was valid for more groups is valid for fewer.
            _ => {}
        }
    }

    /// Removes all groups, and all mappings with them; nothing is accepted any more.
    pub(crate) fn detach_all(&self) {
        let mut topology = self.topology.write();
        let mut space = self.space.lock();
        space.closed = true;
        remove_all(&topology, &mut space);
        topology.iommu.clear();
        topology.members.clear();
    }
}

/// The valid ranges with the new group, unless mappings are outside of them.
fn check_ranges(
    topology: &Topology,
    space: &Space,
    domain: &Domain,
    reserved: &[Reserved],
) -> Result<KVec<IovaRange>, Cause> {
    let aperture = topology
        .aperture()
        .and_then(|all| all.intersect(domain.aperture()))
        .ok_or(Cause::Other(EINVAL))?;
    let valid = topology.valid_with(aperture, reserved)?;
    if valid.is_empty() {
        return Err(Cause::Other(EINVAL));
    }
    for entry in space.iter() {
        let iova = entry.mapping.iova();
        if !valid.iter().any(|range| range.contains(iova)) {
            return Err(Cause::Outside {
                asked: iova,
                nearest: None,
            });
        }
    }
    Ok(valid)
}

/// Where to map interrupt doorbells, unless the hardware has a place of its own.
fn software_msi_window(reserved: &[Reserved]) -> Option<u64> {
    if reserved.iter().any(|r| r.kind == ReservedKind::Msi) {
        return None;
    }
    let window = reserved
        .iter()
        .find(|r| r.kind == ReservedKind::SoftwareMsi);
    window.map(|r| r.range.first())
}

fn populate_all(topology: &Topology, space: &Space) -> Result<(), Cause> {
    space.iter().try_for_each(|entry| {
        let mapping = &entry.mapping;
        mapping.populate(&mut mapping.state.lock(), topology)
    })
}

fn unmap_all(topology: &Topology, space: &Space) {
    for entry in space.iter() {
        entry
            .mapping
            .unmap(&mut entry.mapping.state.lock(), topology);
    }
}

fn remove_all(topology: &Topology, space: &mut Space) {
    while let Some(entry) = space.pop() {
        entry
            .mapping
            .retire(&mut entry.mapping.state.lock(), topology);
    }
}
