// SPDX-License-Identifier: GPL-2.0

//! The machine under test: devices, drivers, and containers set up on them.

use std::fs;
use std::io::{
    self,
    Write, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::process;

use clap::ValueEnum;
use type1_status::host::{
    Host,
    C_DRIVER,
    RUST_DRIVER, //
};
use vfio_bindings::bindings::vfio;

use crate::check::{
    expect,
    expect_eq,
    missing_or_fail,
    read_needed,
    Stop,
    Sys,
    Verdict, //
};
use crate::info::Info;
use crate::vfio::{
    Container,
    Device,
    Group,
    PAGE,
    READ, //
};

/// The driver which has to serve every container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// vfio_iommu_type1
    C,
    /// vfio_type1_rs
    Rust,
}

/// The two interfaces of type1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// `VFIO_TYPE1_IOMMU`
    V1,
    /// `VFIO_TYPE1v2_IOMMU`
    V2,
}

impl Model {
    /// Both of them.
    pub const BOTH: [Model; 2] = [Model::V1, Model::V2];

    /// What SET_IOMMU takes.
    pub fn number(self) -> u32 {
        match self {
            Model::V1 => vfio::VFIO_TYPE1_IOMMU,
            Model::V2 => vfio::VFIO_TYPE1v2_IOMMU,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Model::V1 => "type1",
            Model::V2 => "type1v2",
        }
    }
}

/// A PCI function bound to vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pci {
    /// Its address, for example 0000:00:03.0.
    pub bdf: String,
}

impl Pci {
    fn sysfs(&self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(&self.bdf)
    }

    /// The number of its IOMMU group.
    #[track_caller]
    pub fn group(&self) -> Verdict<u32> {
        let link = self.sysfs().join("iommu_group");
        let target = fs::read_link(&link).map_err(|e| missing_or_fail(&link, e))?;
        target
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
            .ok_or_else(|| Stop::fail(format_args!("{}: no group number", link.display())))
    }

    /// Its node below `/dev/vfio/devices`, which it has if the kernel was built to give it one.
    #[track_caller]
    pub fn node(&self) -> Verdict<String> {
        let folder = self.sysfs().join("vfio-dev");
        let entries = fs::read_dir(&folder).map_err(|e| missing_or_fail(&folder, e))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names
            .collect::<io::Result<Vec<_>>>()?
            .pop()
            .ok_or_else(|| Stop::fail(format_args!("{}: empty", folder.display())))
    }

    /// Whether it is the device with these IDs.
    #[track_caller]
    pub fn is(&self, vendor: u16, device: u16) -> Verdict<bool> {
        for (name, want) in [("vendor", vendor), ("device", device)] {
            let path = self.sysfs().join(name);
            let got = fs::read_to_string(&path).map_err(|e| missing_or_fail(&path, e))?;
            if got.trim() != format!("{want:#06x}") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the IOMMU in front of the device can force DMA to be coherent, if it tells.
    pub fn iommu_snoops(&self) -> Option<bool> {
        const ECAP_SNOOP_CONTROL: u64 = 1 << 7;
        let iommu = fs::canonicalize(self.sysfs().join("iommu")).ok()?;
        if let Ok(ecap) = fs::read_to_string(iommu.join("intel-iommu/ecap")) {
            let ecap = u64::from_str_radix(ecap.trim().trim_start_matches("0x"), 16).ok()?;
            return Some(ecap & ECAP_SNOOP_CONTROL != 0);
        }
        // The kernel always sets the bit for it in AMD's page tables; virtio has none.
        if iommu.join("amd-iommu").exists() {
            return Some(true);
        }
        let of_virtio = |path: &Path| {
            path.parent()
                .and_then(Path::parent)
                .and_then(Path::file_name)
                .is_some_and(|name| name.to_string_lossy().starts_with("virtio"))
        };
        of_virtio(&iommu).then_some(false)
    }

    /// Size of the IOMMU page-table entry which maps `iova` for the device, 0 if none does.
    ///
    /// Intel's is the one driver that shows its page tables.
    #[track_caller]
    pub fn leaf(&self, iova: u64) -> Verdict<u64> {
        let folder = Path::new("/sys/kernel/debug/iommu/intel");
        if !folder.exists() {
            return Err(Stop::skip(format_args!(
                "an IOMMU whose page table can be seen, in {}",
                folder.display()
            )));
        }
        let path = folder.join(&self.bdf).join("domain_translation_struct");
        let wanted = format!("{:#015x}", iova / PAGE);
        let text = read_needed(&path)?;
        let entries = text
            .lines()
            .filter_map(|line| line.split_once('|'))
            .find(|(page, _)| page.trim() == wanted)
            .map(|(_, entries)| entries.split_whitespace().count());
        // The line shows the path from the root: each level below the third divides by 512.
        match entries {
            None => Ok(0),
            Some(5) => Ok(PAGE),
            Some(4) => Ok(PAGE << 9),
            Some(3) => Ok(PAGE << 18),
            Some(n) => Err(Stop::fail(format_args!(
                "{}: {n} entries for {iova:#x}",
                path.display()
            ))),
        }
    }

    /// IOVA the group must not use: first byte and last byte of each region.
    #[track_caller]
    pub fn reserved(&self) -> Verdict<Vec<(u64, u64)>> {
        let regions = reserved_regions(self.group()?)?.into_iter();
        Ok(regions
            .filter(|(.., kind)| kind != "direct-relaxable")
            .map(|(first, last, _)| (first, last))
            .collect())
    }
}

/// First byte, last byte and kind of each range that sysfs says is reserved for a group.
#[track_caller]
pub(crate) fn reserved_regions(group: u32) -> Verdict<Vec<(u64, u64, String)>> {
    let path = format!("/sys/kernel/iommu_groups/{group}/reserved_regions");
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let text = read_needed(Path::new(&path))?;
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let first = words.next().and_then(hex);
            let last = words.next().and_then(hex);
            match (first, last, words.next()) {
                (Some(first), Some(last), Some(kind)) => Ok((first, last, kind.into())),
                _ => Err(Stop::fail(format_args!("{path}: {line:?} is not a region"))),
            }
        })
        .collect()
}

/// Whether interrupt messages of devices can be told apart, and are, so that none can raise
/// another's: what the kernel asks for by `iommu_group_has_isolated_msi()`.
#[track_caller]
pub fn interrupts_isolated() -> Verdict<bool> {
    let folder = Path::new("/sys/kernel/irq");
    for entry in fs::read_dir(folder).map_err(|e| missing_or_fail(folder, e))? {
        let chip = fs::read_to_string(entry?.path().join("chip_name")).unwrap_or_default();
        // Interrupt remapping of x86, the translation service of Arm.
        if chip.starts_with("IR-") || chip.starts_with("ITS-") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the command line says about the machine.
#[derive(Debug, Default)]
pub struct Env {
    /// Functions to test with, of which the first serves most tests.
    pub devices: Vec<Pci>,
    /// QEMU's teaching device.
    pub edu: Option<Pci>,
    /// Whether the teaching device may serve as the second device.
    pub edu_is_second: bool,
    /// The driver which has to serve every container.
    pub expected: Option<Driver>,
    /// Where the kernel tells about its containers.
    pub host: Host,
}

impl Env {
    /// The device most tests use.
    #[track_caller]
    pub fn first(&self) -> Verdict<&Pci> {
        self.devices
            .first()
            .ok_or_else(|| Stop::skip("a PCI device (--device)"))
    }

    /// A device in another group.
    #[track_caller]
    pub fn second(&self) -> Verdict<&Pci> {
        let first = self.first()?.group()?;
        let edu = self.edu.iter().filter(|_| self.edu_is_second);
        for pci in self.devices.iter().chain(edu) {
            if pci.group()? != first {
                return Ok(pci);
            }
        }
        Err(Stop::skip(
            "a PCI device in a second IOMMU group (--device)",
        ))
    }

    /// QEMU's teaching device.
    #[track_caller]
    pub fn edu(&self) -> Verdict<&Pci> {
        self.edu
            .as_ref()
            .ok_or_else(|| Stop::skip("an edu device (--edu)"))
    }

    /// Skips what the C driver does not survive; see Documentation/uapi-parity.md.
    #[track_caller]
    pub fn need_rust(&self) -> Verdict {
        match self.expected {
            Some(Driver::Rust) => Ok(()),
            _ => Err(Stop::skip(
                "a driver that survives this (--expect-driver rust)",
            )),
        }
    }

    /// A container with the first device's group.
    #[track_caller]
    pub fn open(&self, model: Model) -> Verdict<Session<'_>> {
        self.open_with(self.first()?, model)
    }

    /// A container with one group, ready to map.
    #[track_caller]
    pub fn open_with(&self, pci: &Pci, model: Model) -> Verdict<Session<'_>> {
        let session = self.open_bare(pci)?;
        session.container.set_iommu(model.number())?;
        session.check_driver(model)?;
        Ok(session)
    }

    /// A container with one group, and no IOMMU model yet.
    #[track_caller]
    pub fn open_bare(&self, pci: &Pci) -> Verdict<Session<'_>> {
        let container = Container::open()?;
        let group = Group::open(pci.group()?)?;
        group.set_container(&container)?;
        Ok(Session {
            env: self,
            pci: pci.clone(),
            group,
            container,
        })
    }

    /// Checks which driver serves the container of this process. The Rust driver has to list it
    /// with `group`, if there is one behind an IOMMU.
    #[track_caller]
    pub fn check_driver(&self, model: Model, group: Option<u32>) -> Verdict {
        let Some(expected) = self.expected else {
            return Ok(());
        };
        let path = self.host.report_path();
        let report = self.host.report()?;
        let pid = process::id();

        match expected {
            Driver::Rust => {
                let report = report.ok_or_else(|| {
                    Stop::fail(format_args!(
                        "{}: not there, so {RUST_DRIVER} cannot be seen to serve this container",
                        path.display()
                    ))
                })?;
                let served = report.owned_by(pid).any(|container| {
                    container.driver == RUST_DRIVER
                        && container.model == model.name()
                        && group.is_none_or(|group| {
                            container.domains.iter().any(|d| d.groups.contains(&group))
                        })
                });
                let with = group.map_or_else(String::new, |group| {
                    format!(" with group {group}, served by {RUST_DRIVER}")
                });
                expect(
                    format_args!(
                        "{}: a {} container of pid {pid}{with}",
                        path.display(),
                        model.name()
                    ),
                    served,
                )
            }
            Driver::C => {
                let listed = report.is_some_and(|report| report.owned_by(pid).next().is_some());
                expect(
                    format_args!("{}: no container of pid {pid}", path.display()),
                    !listed,
                )?;
                let references = self.host.driver(C_DRIVER).references;
                expect(
                    format_args!("module {C_DRIVER} in use (references: {references:?})"),
                    references.is_some_and(|n| n >= 1),
                )
            }
        }
    }

    /// The driver which serves the containers opened here: the expected one, or else the one
    /// found out by looking.
    #[track_caller]
    fn serving(&self) -> Verdict<Driver> {
        if let Some(driver) = self.expected {
            return Ok(driver);
        }
        let _session = self.open(Model::V2)?;
        let ours = self
            .host
            .report()?
            .is_some_and(|report| report.owned_by(process::id()).next().is_some());
        Ok(if ours { Driver::Rust } else { Driver::C })
    }

    /// A parameter of the serving driver's module.
    #[track_caller]
    pub fn parameter(&self, name: &str) -> Verdict<Parameter> {
        let module = match self.serving()? {
            Driver::C => C_DRIVER,
            Driver::Rust => RUST_DRIVER,
        };
        Parameter::of(module, name)
    }
}

/// A module parameter, put back when dropped.
pub struct Parameter {
    path: PathBuf,
    before: String,
}

impl Parameter {
    /// A parameter of a module that is loaded.
    #[track_caller]
    pub fn of(module: &str, name: &str) -> Verdict<Self> {
        let path = PathBuf::from(format!("/sys/module/{module}/parameters/{name}"));
        // The parameters are part of the interface: a driver without them is wrong, not absent.
        expect(format_args!("{} is there", path.display()), path.exists())?;
        let before = read_needed(&path)?;
        Ok(Parameter { path, before })
    }

    #[track_caller]
    /// Sets it.
    pub fn set(&self, value: &str) -> Verdict {
        fs::OpenOptions::new()
            .write(true)
            .open(&self.path)
            .map_err(|e| missing_or_fail(&self.path, e))?
            .write_all(value.as_bytes())?;
        Ok(())
    }

    /// The value it had, and gets back.
    pub fn original(&self) -> &str {
        self.before.trim()
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

/// A container with a group. Dropping it closes the group first.
#[derive(Debug)]
pub struct Session<'a> {
    env: &'a Env,
    /// The function whose group it is.
    pub pci: Pci,
    /// The group.
    pub group: Group,
    /// The container.
    pub container: Container,
}

impl Session<'_> {
    /// Checks which driver serves this container.
    #[track_caller]
    pub fn check_driver(&self, model: Model) -> Verdict {
        self.env.check_driver(model, Some(self.pci.group()?))
    }

    /// Opens the device of the group.
    pub fn device(&self) -> Sys<Device> {
        self.group.device(&self.pci.bdf)
    }

    /// Reads GET_INFO with all its capabilities.
    #[track_caller]
    pub fn info(&self) -> Verdict<Info> {
        Info::read(&self.container)
    }

    /// Fails unless the IOVA range is free: maps and unmaps it.
    #[track_caller]
    pub fn expect_free(&self, iova: u64, vaddr: u64, size: u64) -> Verdict {
        self.container.map(iova, vaddr, size, READ)?;
        let unmapped = self.container.unmap(iova, size, 0)?;
        expect_eq("bytes unmapped", unmapped, size)
    }

    /// The last page of the highest usable IOVA range.
    #[track_caller]
    pub fn last_page(&self) -> Verdict<u64> {
        let info = self.info()?;
        let last = info
            .iova
            .last()
            .ok_or_else(|| Stop::fail("GET_INFO lists no IOVA range"))?;
        Ok(last.1 - (PAGE - 1))
    }
}
