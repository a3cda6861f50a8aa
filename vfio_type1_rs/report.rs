// SPDX-License-Identifier: GPL-2.0

//! What root sees in `/sys/kernel/debug/vfio_type1_rs`.
//!
//! - `served`: number of containers opened on this driver since it was loaded. The container core
//!   goes on to another driver without a word if one refuses, so this tells who got it.
//! - `containers`: the containers that are open, and their mappings.

use crate::{
    container::Container,
    space::Entry, //
};
use core::fmt;
use dirty_log::Source;
use kernel::{
    debugfs,
    fmt as kfmt,
    sync::Arc, //
};
use pin_plan::LeafCounts;
use vfio::Registry;
use vfio_uapi::Model;

/// The file `containers`.
pub(crate) struct Containers(pub(crate) Arc<Registry<Container>>);

/// The file `served`.
pub(crate) struct Served(pub(crate) Arc<Registry<Container>>);

impl debugfs::Writer for Containers {
    fn write(&self, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
        self.0.for_each(|number, container| {
            writeln!(f, "container {number}")?;
            describe(container, f)
        })
    }
}

impl debugfs::Writer for Served {
    fn write(&self, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.served())
    }
}

fn describe(container: &Container, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
    let topology = container.topology.read();
    let space = container.space.lock();

    writeln!(f, "\tdriver: vfio_type1_rs")?;
    writeln!(
        f,
        "\tmodel: {}",
        match container.model {
            Model::V1 => "type1",
            Model::V2 => "type1v2",
        }
    )?;
    writeln!(f, "\towner: {}", container.opener)?;
    write!(f, "\tpage sizes:")?;
    let sizes = topology.page_sizes().bitmap();
    for shift in (0..u64::BITS).filter(|shift| sizes >> shift & 1 != 0) {
        write!(f, " {}", Size(1 << shift))?;
    }
    writeln!(
        f,
        "\n\tdma entries: {} used, {} left",
        space.len(),
        space.available()
    )?;
    let tracking = match (space.tracking, topology.dirty_source()) {
        (false, _) => "off",
        (true, Source::Pins) => "pinned pages",
        (true, Source::Hardware) => "hardware",
        (true, Source::Unknown) => "every page",
    };
    writeln!(f, "\tdirty tracking: {tracking}")?;
    for (number, domain) in topology.iommu.domains().enumerate() {
        write!(f, "\tdomain {number}: groups")?;
        for group in domain.groups() {
            write!(f, " {}", group.id())?;
        }
        let coherent = if domain.is_coherent() {
            "coherent"
        } else {
            "not coherent"
        };
        let tracks = match (domain.can_track(), domain.is_tracking()) {
            (false, _) => "",
            (true, false) => ", can track dirty pages",
            (true, true) => ", tracks dirty pages",
        };
        writeln!(f, " ({coherent}{tracks})")?;
    }
    for member in topology.members.iter().filter(|member| member.emulated) {
        writeln!(f, "\temulated: group {}", member.group.id())?;
    }
    for range in topology.valid() {
        writeln!(f, "\tiova {range}")?;
    }
    for entry in space.iter() {
        describe_mapping(entry, f)?;
    }
    Ok(())
}

fn describe_mapping(entry: &Entry, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
    let mapping = &entry.mapping;
    let access = mapping.access();
    write!(
        f,
        "\tmapping {} {}{}",
        mapping.iova(),
        if access.read { 'r' } else { '-' },
        if access.write { 'w' } else { '-' },
    )?;
    if entry.busy() {
        // Its lock may be held for long.
        return writeln!(f, " size {} busy", mapping.size());
    }

    let state = mapping.state.lock();
    if entry.vaddr_invalid() {
        write!(f, " vaddr invalid")?;
    } else {
        write!(f, " vaddr {:#018x}", state.vaddr)?;
    }
    let pinned = match &state.mapped {
        Some(mapped) => mapped.pinned(),
        None => state.pinned_for_drivers(),
    };
    write!(f, " size {} pinned {} pages", mapping.size(), pinned)?;
    if let Some(mapped) = &state.mapped {
        write!(f, " iopte {}", Leaves(&mapped.leaves()))?;
    }
    writeln!(f)
}

/// Translations by size.
struct Leaves<'a>(&'a LeafCounts);

impl fmt::Display for Leaves<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (size, count)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} x {count}", Size(size))?;
        }
        Ok(())
    }
}

/// A power of two, with a binary unit.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
        let shift = self.0.checked_ilog2().unwrap_or(0);
        let unit = UNITS.get((shift / 10) as usize).unwrap_or(&"?");
        write!(f, "{}{unit}", 1u64 << (shift % 10))
    }
}
