// SPDX-License-Identifier: GPL-2.0

//! Containers to make fail, and all that can be seen of them.

use std::fs;
use std::os::fd::{
    OwnedFd,
    RawFd, //
};

use harness::check::{
    Stop,
    Verdict, //
};
use harness::emulated::{
    self,
    Emulated,
    Which, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::info::Info;
use harness::proc;
use harness::soft;
use harness::vfio::{
    Container,
    Group,
    PAGE, //
};

/// Where a container has a group from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A device that reaches memory only through its driver.
    Emulated(Which),
    /// A device behind a software IOMMU: unit and number.
    Soft(&'static str, usize),
    /// The PCI function of the command line.
    Pci,
}

/// The groups a container is made with.
pub(crate) type Places = &'static [Place];

/// One device without an IOMMU.
pub(crate) const EMULATED: Places = &[Place::Emulated(Which::First)];
/// Two of them.
pub(crate) const TWO_EMULATED: Places = &[
    Place::Emulated(Which::First),
    Place::Emulated(Which::Second),
];
/// One device behind a software IOMMU.
pub(crate) const SOFT: Places = &[Place::Soft("plain", 0)];
/// One of either, the one behind an IOMMU that tracks what it writes to.
pub(crate) const TRACKED: Places = &[Place::Soft("dirty", 0), Place::Emulated(Which::First)];
/// Two domains, of different kinds.
pub(crate) const TWO_SOFT: Places = &[Place::Soft("plain", 0), Place::Soft("noncoherent", 0)];
/// One of either.
pub(crate) const MIXED: Places = &[Place::Soft("plain", 0), Place::Emulated(Which::First)];
/// Hardware, or what QEMU thinks it is.
pub(crate) const PCI: Places = &[Place::Pci];

impl Place {
    /// Opens the group.
    #[track_caller]
    pub(crate) fn group(self, env: &Env) -> Verdict<Group> {
        match self {
            Place::Emulated(which) => Group::open(which.group()?),
            Place::Soft(unit, index) => soft::device(unit, index)?.open_group(),
            Place::Pci => Group::open(env.first()?.group()?),
        }
    }

    /// The name of the device.
    #[track_caller]
    pub(crate) fn name(self, env: &Env) -> Verdict<String> {
        Ok(match self {
            Place::Emulated(which) => which.name(),
            Place::Soft(unit, index) => soft::device(unit, index)?.name,
            Place::Pci => env.first()?.bdf.clone(),
        })
    }
}

/// A container with groups. Dropping it closes devices first, then groups.
#[derive(Default)]
pub(crate) struct Rig {
    /// Devices whose driver pins pages.
    pub(crate) emulated: Vec<Emulated>,
    /// The groups, in the order of the places.
    pub(crate) groups: Vec<Group>,
    /// The container, unless the call closes it.
    pub(crate) container: Option<Container>,
    /// What the call opened.
    pub(crate) opened: Vec<OwnedFd>,
}

impl Rig {
    /// A container with groups and no IOMMU model.
    #[track_caller]
    pub(crate) fn bare(env: &Env, places: Places) -> Verdict<Self> {
        let mut rig = Rig {
            container: Some(Container::open()?),
            ..Rig::default()
        };
        for place in places {
            rig.join(env, *place)?;
        }
        Ok(rig)
    }

    /// A container that is ready to map, with its emulated devices open.
    #[track_caller]
    pub(crate) fn open(env: &Env, places: Places, model: Model) -> Verdict<Self> {
        let mut rig = Rig::bare(env, places)?;
        rig.container()?.set_iommu(model.number())?;
        env.check_driver(model, None)?;
        for (place, group) in places.iter().zip(&rig.groups) {
            if let Place::Emulated(which) = place {
                rig.emulated.push(Emulated::open(group, *which)?);
            }
        }
        Ok(rig)
    }

    /// Adds a group.
    #[track_caller]
    pub(crate) fn join(&mut self, env: &Env, place: Place) -> Verdict {
        let group = place.group(env)?;
        group.set_container(self.container()?)?;
        self.groups.push(group);
        Ok(())
    }

    /// The container.
    #[track_caller]
    pub(crate) fn container(&self) -> Verdict<&Container> {
        let container = self.container.as_ref();
        container.ok_or_else(|| Stop::fail("the container is closed"))
    }

    /// Its descriptor.
    #[track_caller]
    pub(crate) fn fd(&self) -> Verdict<RawFd> {
        Ok(self.container()?.as_raw_fd())
    }

    /// The first device whose driver pins pages.
    #[track_caller]
    pub(crate) fn device(&self) -> Verdict<&Emulated> {
        let device = self.emulated.first();
        device.ok_or_else(|| Stop::fail("no emulated device is open"))
    }

    /// All that can be seen from here.
    #[track_caller]
    pub(crate) fn view(&self, env: &Env) -> Verdict<View> {
        let mut view = View {
            ground: Ground::now()?,
            ..View::default()
        };
        if let Some(container) = &self.container {
            // EINVAL as long as there is no IOMMU model.
            if let Ok(info) = Info::read(container) {
                view.pgsizes = info.pgsizes;
                view.iova = info.iova;
                view.avail = info.dma_avail;
                view.model = true;
            }
            // Nothing is mapped there, so that nothing is forgotten.
            view.tracking = container.dirty_get(1 << 40, PAGE, &mut [0]).is_ok();
        }
        for device in &self.emulated {
            let emulated::Counters { pages, users, .. } = device.counters()?;
            view.pages += pages;
            view.users += users;
        }
        view.report = report(env)?;
        Ok(view)
    }
}

/// What can be seen of a container, and around it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) ground: Ground,
    model: bool,
    pgsizes: u64,
    iova: Vec<(u64, u64)>,
    /// Mappings that may still be made.
    pub(crate) avail: u32,
    tracking: bool,
    /// Pages that drivers have pinned, and how often all together.
    pages: u64,
    users: u64,
    /// What the driver itself says of this process's containers, if it does.
    report: String,
}

impl View {
    /// The same with the ranges of `after`, if it has those of `before`.
    pub(crate) fn with_ranges_of(mut self, before: &View, after: &View) -> Self {
        if self.iova == before.iova {
            self.iova.clone_from(&after.iova);
        }
        self
    }

    /// The same with the ranges of `after`, if all of those are there, with what is between them.
    pub(crate) fn with_holes_of(mut self, after: &View) -> Self {
        let is_there = |(first, last): &(u64, u64)| {
            let mut ranges = self.iova.iter();
            ranges.any(|(from, to)| from <= first && last <= to)
        };
        if after.iova.iter().all(is_there) {
            self.iova.clone_from(&after.iova);
        }
        self
    }

    /// The same with the number of domains of `after`, if it has more, each with all mappings.
    pub(crate) fn with_domains_of(mut self, after: &View) -> Self {
        let (now, want) = (&mut self.ground, &after.ground);
        if now.domains > want.domains && now.mapped * want.domains == want.mapped * now.domains {
            now.domains = want.domains;
            now.mapped = want.mapped;
            self.report.clone_from(&after.report);
        }
        self
    }

    /// Whether this is `done` of `all` equal steps on the way from `before` to `after`.
    pub(crate) fn is_between(&self, before: &View, after: &View, done: u32, all: u32) -> bool {
        let step = |from: i64, to: i64| from + (to - from) / i64::from(all) * i64::from(done);
        let unsigned = |from: u64, to: u64| step(from as i64, to as i64) as u64;
        let (from, to) = (&before.ground, &after.ground);
        let expected = View {
            ground: Ground {
                locked: unsigned(from.locked, to.locked),
                pinned: step(from.pinned, to.pinned),
                mapped: unsigned(from.mapped, to.mapped),
                ..from.clone()
            },
            avail: step(before.avail.into(), after.avail.into()) as u32,
            pages: unsigned(before.pages, after.pages),
            users: unsigned(before.users, after.users),
            report: self.report.clone(),
            ..before.clone()
        };
        *self == expected
    }
}

/// What can be seen without a container.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Ground {
    /// Bytes charged to this process.
    pub(crate) locked: u64,
    /// Pages pinned, by whomever.
    pub(crate) pinned: i64,
    /// Domains of the software IOMMUs, and bytes they translate.
    domains: u64,
    mapped: u64,
}

impl Ground {
    /// As it is now.
    #[track_caller]
    pub(crate) fn now() -> Verdict<Self> {
        let pinned = proc::pinned_pages()
            .ok_or_else(|| Stop::skip("nr_foll_pin_acquired in /proc/vmstat"))?;
        let mut ground = Ground {
            locked: proc::locked()?,
            pinned,
            ..Ground::default()
        };
        // Without the module there is nothing to count.
        for line in fs::read_to_string(soft::UNITS).unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                let (sum, unit) = match word {
                    "domains" => (&mut ground.domains, 1),
                    "leaves_4k" => (&mut ground.mapped, 4 << 10),
                    "leaves_2m" => (&mut ground.mapped, 2 << 20),
                    "leaves_1g" => (&mut ground.mapped, 1 << 30),
                    _ => continue,
                };
                let count = words.next().and_then(|count| count.parse::<u64>().ok());
                let count = count.ok_or_else(|| Stop::fail(format_args!("{line:?}: no number")))?;
                *sum += count * unit;
            }
        }
        Ok(ground)
    }
}

/// The Rust driver's report about this process's containers, without what may differ from one
/// container to its like: its number, and sizes of translations, which depend on where memory
/// happens to lie.
#[track_caller]
fn report(env: &Env) -> Verdict<String> {
    let Ok(text) = fs::read_to_string(env.host.report_path()) else {
        return Ok(String::new());
    };
    let owner = format!("(pid {})", std::process::id());
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with("container ") {
            blocks.push(String::new());
        } else if line.trim_start().starts_with("iova ") {
            // GET_INFO tells.
        } else if let Some(block) = blocks.last_mut() {
            block.push_str(line.split(" iopte ").next().unwrap_or(line));
            block.push('\n');
        }
    }
    blocks.retain(|block| block.contains(&owner));
    Ok(blocks.concat())
}
