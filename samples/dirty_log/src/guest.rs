// SPDX-License-Identifier: GPL-2.0

//! What is migrated: memory, mapped for a device.

use std::process;

use anyhow::{
    Context,
    Result, //
};
use harness::env::{
    Env,
    Model,
    Pci, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::soft::{
    self,
    Engine, //
};
use harness::vfio::{
    Container,
    Group,
    PAGE,
    RW, //
};
use type1_status::host::{
    C_DRIVER,
    RUST_DRIVER, //
};

use crate::bitmap::Bitmap;

/// The kind of software IOMMU that can track what devices write.
const TRACKING: &str = "dirty";

/// Where the first mapping is.
const IOVA: u64 = 16 * MIB;

/// Between mappings, as there are holes between a guest's memory regions.
const HOLE: u64 = 2 * MIB;

/// Memory that a device can reach, and the copy of it.
pub(crate) struct Mapping {
    /// Where the device sees it.
    pub(crate) iova: u64,
    /// The memory.
    pub(crate) memory: Memory,
    /// What has still to be copied.
    pub(crate) dirty: Bitmap,
    /// The copy.
    pub(crate) copy: Vec<u8>,
}

impl Mapping {
    /// How many pages it has.
    pub(crate) fn pages(&self) -> u64 {
        self.memory.len() / PAGE
    }

    /// How many pages differ from their copies.
    pub(crate) fn differing(&self) -> u64 {
        let mut page = [0; PAGE as usize];
        let copies = self.copy.chunks(page.len()).zip(0u64..);
        let differs = |(copy, number): &(&[u8], u64)| {
            self.memory.get_into(number * PAGE, &mut page);
            *copy != page
        };
        copies.filter(differs).count() as u64
    }
}

/// A container with a device and mappings.
pub(crate) struct Guest {
    /// The mappings.
    pub(crate) mappings: Vec<Mapping>,
    /// The device, if it is one that does DMA on request.
    pub(crate) engine: Option<Engine>,
    /// The device's group, which must be closed after it.
    _group: Group,
    /// The container.
    pub(crate) container: Container,
    /// The driver that serves the container.
    pub(crate) driver: &'static str,
}

impl Guest {
    /// Opens a device, a PCI function or else that of a software IOMMU, and maps memory for it:
    /// `pages` in so many mappings.
    pub(crate) fn new(env: &Env, pci: Option<&Pci>, pages: u64, mappings: u64) -> Result<Self> {
        let soft = match pci {
            None => Some(soft::device(TRACKING, 0).context(
                "there is no IOMMU made of software; `scripts/dev check uml --test dirty-log` \
                 runs all this where there is one, --device takes a PCI function",
            )?),
            Some(_) => None,
        };
        let number = match (&soft, pci) {
            (Some(soft), _) => soft.group,
            (None, Some(pci)) => pci.group().context("bind the function to vfio-pci first")?,
            (None, None) => unreachable!("it is the one or the other"),
        };

        let container = Container::open()?;
        let group = Group::open(number).with_context(|| {
            format!("group {number} is not free: each of its devices needs a driver of VFIO, and nobody else may use them")
        })?;
        group.set_container(&container)?;
        container.set_iommu(Model::V2.number()).context(
            "no driver takes the group; where interrupts are not isolated (EPERM), the driver's \
             parameter allow_unsafe_interrupts has to be Y",
        )?;
        env.check_driver(Model::V2, Some(number))?;
        let engine = match &soft {
            Some(soft) => Some(soft.open(&group)?),
            None => None,
        };

        let mut guest = Guest {
            mappings: Vec::new(),
            engine,
            _group: group,
            driver: serving(env)?,
            container,
        };
        guest.map(pages, mappings)?;
        Ok(guest)
    }

    fn map(&mut self, pages: u64, mappings: u64) -> Result<()> {
        let mut iova = IOVA;
        for n in 0..mappings {
            let pages = pages * (n + 1) / mappings - pages * n / mappings;
            let memory = Memory::unpopulated(pages * PAGE)?;
            memory.fill(0x5a);
            self.container
                .map(iova, memory.vaddr(), memory.len(), RW)
                .context("memory that devices reach is pinned, and needs room in `ulimit -l`")?;
            let next = (iova + memory.len()).next_multiple_of(HOLE) + HOLE;
            self.mappings.push(Mapping {
                iova,
                dirty: Bitmap::new(pages as usize),
                copy: vec![0; memory.len() as usize],
                memory,
            });
            iova = next;
        }
        Ok(())
    }

    /// All pages of all mappings.
    pub(crate) fn pages(&self) -> u64 {
        self.mappings.iter().map(Mapping::pages).sum()
    }

    /// How many entries of 4 KiB, 2 MiB and 1 GiB the IOMMU's page table has, if it tells.
    pub(crate) fn leaves(&self) -> Result<Option<[u64; 3]>> {
        let Some(engine) = &self.engine else {
            return Ok(None);
        };
        let stats = engine.stats()?;
        Ok(Some([stats.leaves_4k, stats.leaves_2m, stats.leaves_1g]))
    }
}

/// The driver that serves this process: only one of the two lists its containers.
fn serving(env: &Env) -> Result<&'static str> {
    let report = env.host.report()?.unwrap_or_default();
    let ours = report.owned_by(process::id()).next().is_some();
    Ok(if ours { RUST_DRIVER } else { C_DRIVER })
}
