// SPDX-License-Identifier: GPL-2.0

//! What procfs, sysfs and debugfs of a machine say about VFIO.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

use anyhow::{
    Context,
    Result, //
};
use serde::Serialize;

use crate::report::Report;

/// Module name of the Rust driver.
pub const RUST_DRIVER: &str = "vfio_type1_rs";
/// Module name of the C driver.
pub const C_DRIVER: &str = "vfio_iommu_type1";

/// Where the pseudo file systems are mounted.
#[derive(Debug, Clone)]
pub struct Host {
    proc: PathBuf,
    sys: PathBuf,
}

/// Everything known about the type1 containers of a machine.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The two drivers, loaded or not.
    pub drivers: Vec<Driver>,
    /// Containers of the Rust driver, or why they cannot be listed.
    pub containers: Listing,
    /// Contents of the Rust driver's `served` file.
    pub served: Option<String>,
    /// Processes with VFIO files open.
    pub users: Vec<User>,
}

/// The Rust driver's report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Listing {
    /// Read and understood.
    Known(Report),
    /// The file is not there or may not be read.
    Unknown(String),
}

/// A container driver module.
#[derive(Debug, Serialize)]
pub struct Driver {
    /// Module name.
    pub name: &'static str,
    /// Whether the kernel has it, as a module or built in.
    pub loaded: bool,
    /// References held; absent if it is not loaded or built in.
    pub references: Option<u64>,
    /// Its `dma_entry_limit`.
    pub dma_entry_limit: Option<u64>,
}

/// A process with VFIO files open.
#[derive(Debug, Serialize)]
pub struct User {
    /// Process number.
    pub pid: u32,
    /// Command name.
    pub comm: String,
    /// Open container files.
    pub containers: usize,
    /// Names of open group files below `/dev/vfio`.
    pub groups: BTreeSet<String>,
    /// Open device files.
    pub devices: usize,
    /// Memory counted against the limit, in bytes.
    pub locked: Option<u64>,
    /// RLIMIT_MEMLOCK in bytes; absent if unlimited or unreadable.
    pub lock_limit: Option<u64>,
}

impl Default for Host {
    fn default() -> Self {
        Host::at(Path::new("/"))
    }
}

impl Host {
    /// A machine whose root directory is `root`.
    pub fn at(root: &Path) -> Self {
        Host {
            proc: root.join("proc"),
            sys: root.join("sys"),
        }
    }

    /// Path of the Rust driver's report.
    pub fn report_path(&self) -> PathBuf {
        self.debug_file("containers")
    }

    fn debug_file(&self, name: &str) -> PathBuf {
        self.sys.join("kernel/debug").join(RUST_DRIVER).join(name)
    }

    /// Reads the Rust driver's report.
    ///
    /// `Ok(None)` if there is no such file, that is, if the driver is not loaded or debugfs is
    /// not mounted.
    pub fn report(&self) -> Result<Option<Report>> {
        let path = self.report_path();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| path.display().to_string())?,
        };
        let report = text
            .parse()
            .with_context(|| format!("{} is not understood", path.display()))?;
        Ok(Some(report))
    }

    /// Whether debugfs is mounted where this program looks for it.
    pub fn has_debugfs(&self) -> bool {
        fs::read_dir(self.sys.join("kernel/debug")).is_ok_and(|mut dir| dir.next().is_some())
    }

    /// What is known about one driver.
    pub fn driver(&self, name: &'static str) -> Driver {
        let module = self.sys.join("module").join(name);
        Driver {
            name,
            loaded: module.exists(),
            references: number(&module.join("refcnt")),
            dma_entry_limit: number(&module.join("parameters/dma_entry_limit")),
        }
    }

    /// Gathers everything.
    pub fn status(&self) -> Result<Status> {
        let containers = match self.report() {
            Ok(Some(report)) => Listing::Known(report),
            Ok(None) if !self.has_debugfs() => Listing::Unknown(
                "debugfs is not mounted; try: mount -t debugfs none /sys/kernel/debug".into(),
            ),
            Ok(None) => Listing::Unknown(format!("{RUST_DRIVER} is not loaded")),
            Err(e) => Listing::Unknown(format!("{e:#}")),
        };
        Ok(Status {
            drivers: vec![self.driver(RUST_DRIVER), self.driver(C_DRIVER)],
            containers,
            served: fs::read_to_string(self.debug_file("served"))
                .ok()
                .map(|text| text.trim().to_owned()),
            users: self.users()?,
        })
    }

    /// Processes which have a VFIO file open, as far as the caller may look.
    pub fn users(&self) -> Result<Vec<User>> {
        let entries = fs::read_dir(&self.proc).with_context(|| self.proc.display().to_string())?;
        let mut users: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                User::read(entry.file_name().to_str()?.parse().ok()?, &entry.path())
            })
            .collect();
        users.sort_by_key(|user| user.pid);
        Ok(users)
    }
}

impl User {
    fn read(pid: u32, dir: &Path) -> Option<Self> {
        let (mut containers, mut devices) = (0, 0);
        let mut groups = BTreeSet::new();

        for fd in fs::read_dir(dir.join("fd")).ok()?.flatten() {
            let Ok(target) = fs::read_link(fd.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            match target.strip_prefix("/dev/vfio/") {
                Some("vfio") => containers += 1,
                Some(device) if device.starts_with("devices/") => devices += 1,
                Some(group) => {
                    groups.insert(group.to_owned());
                }
                None if target == "anon_inode:[vfio-device]" => devices += 1,
                None => {}
            }
        }
        if containers + devices + groups.len() == 0 {
            return None;
        }

        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        let limits = fs::read_to_string(dir.join("limits")).unwrap_or_default();
        let locked_kib = field(&status, "VmLck:").and_then(|kib| kib.parse::<u64>().ok());
        Some(User {
            pid,
            comm: field(&status, "Name:").unwrap_or("?").to_owned(),
            containers,
            groups,
            devices,
            locked: locked_kib.map(|kib| kib * 1024),
            lock_limit: field(&limits, "Max locked memory").and_then(|soft| soft.parse().ok()),
        })
    }
}

/// The first word behind `key`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))?
        .split_whitespace()
        .next()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory that looks like a root, removed when the test is over.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("type1_status-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("proc")).unwrap();
            fs::create_dir_all(path.join("sys")).unwrap();
            Root(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn open(&self, pid: u32, fd: u32, target: &str) {
            let dir = self.0.join(format!("proc/{pid}/fd"));
            fs::create_dir_all(&dir).unwrap();
            symlink(target, dir.join(fd.to_string())).unwrap();
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_machine_without_vfio() {
        let root = Root::new("none");
        let status = Host::at(&root.0).status().unwrap();

        assert!(status.drivers.iter().all(|driver| !driver.loaded));
        assert!(status.users.is_empty());
        assert!(matches!(&status.containers, Listing::Unknown(why) if why.contains("debugfs")));
    }

    #[test]
    fn debugfs_without_the_driver() {
        let root = Root::new("debugfs");
        root.write("sys/kernel/debug/other", "");

        let status = Host::at(&root.0).status().unwrap();
        assert!(matches!(&status.containers, Listing::Unknown(why) if why.contains("not loaded")));
    }

    #[test]
    fn both_drivers_and_a_user() {
        let root = Root::new("both");
        root.write("sys/kernel/debug/vfio_type1_rs/containers", "container 1\n");
        root.write("sys/kernel/debug/vfio_type1_rs/served", "5\n");
        root.write("sys/module/vfio_type1_rs/refcnt", "1\n");
        root.write(
            "sys/module/vfio_type1_rs/parameters/dma_entry_limit",
            "65535\n",
        );
        root.write("sys/module/vfio_iommu_type1/refcnt", "0\n");
        root.write("proc/42/status", "Name:\tqemu\nVmLck:\t    640 kB\n");
        root.write(
            "proc/42/limits",
            "Max locked memory         8388608              8388608              bytes\n",
        );
        root.open(42, 0, "/dev/null");
        root.open(42, 3, "/dev/vfio/vfio");
        root.open(42, 4, "/dev/vfio/7");
        root.open(42, 5, "anon_inode:[vfio-device]");
        root.open(43, 0, "/dev/null");

        let status = Host::at(&root.0).status().unwrap();
        assert_eq!(status.drivers[0].references, Some(1));
        assert_eq!(status.drivers[0].dma_entry_limit, Some(65535));
        assert_eq!(status.drivers[1].references, Some(0));
        assert_eq!(status.served.as_deref(), Some("5"));
        assert!(matches!(&status.containers, Listing::Known(r) if r.containers.len() == 1));

        let [user] = &status.users[..] else {
            panic!("one user expected: {:?}", status.users);
        };
        assert_eq!((user.pid, &*user.comm), (42, "qemu"));
        assert_eq!((user.containers, user.devices), (1, 1));
        assert_eq!(user.groups, BTreeSet::from(["7".to_owned()]));
        assert_eq!(user.locked, Some(640 * 1024));
        assert_eq!(user.lock_limit, Some(8 << 20));
    }

    #[test]
    fn a_report_that_is_not_understood_is_not_an_empty_one() {
        let root = Root::new("bad");
        root.write(
            "sys/kernel/debug/vfio_type1_rs/containers",
            "container one\n",
        );

        let status = Host::at(&root.0).status().unwrap();
        assert!(matches!(&status.containers, Listing::Unknown(why) if why.contains("line 1")));
    }
}
