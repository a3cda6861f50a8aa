// SPDX-License-Identifier: GPL-2.0

//! What is asked of the kernel.

use std::env;
use std::ffi::CString;
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    ErrorKind,
    Read, //
};
use std::os::unix::fs::{
    symlink,
    OpenOptionsExt, //
};
use std::path::Path;

use anyhow::{
    bail,
    Context,
    Result, //
};
use nix::errno::Errno;
use nix::kmod::{
    delete_module,
    finit_module,
    DeleteModuleFlags,
    ModuleInitFlags, //
};
use nix::mount::{
    mount,
    MsFlags, //
};
use nix::sys::reboot::{
    reboot,
    RebootMode, //
};

use crate::plan::Module;

/// Makes the initramfs a place where programs can run.
pub(crate) fn prepare() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
        ("tmpfs", "/run"),
        ("tmpfs", "/dev/shm"),
    ] {
        fs::create_dir_all(target).context(target)?;
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .context(target)?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link).context(link)?;
    }
    for (name, value) in [("PATH", "/bin"), ("HOME", "/run"), ("TMPDIR", "/run")] {
        env::set_var(name, value);
    }
    Ok(env::set_current_dir("/run")?)
}

/// Does not return.
pub(crate) fn power_off() -> ! {
    let refused = reboot(RebootMode::RB_POWER_OFF);
    panic!("power-off is refused: {refused:?}")
}

pub(crate) fn load(path: &Path, parameters: &str) -> Result<(), Errno> {
    let file = File::open(path).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    let parameters = CString::new(parameters).map_err(|_| Errno::EINVAL)?;
    finit_module(file, &parameters, ModuleInitFlags::empty())
}

/// Loads a module unless it is there already.
pub(crate) fn require(module: &Module) -> Result<()> {
    match load(&module.path, &module.parameters) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => bail!("{} does not load: {errno}", module.path.display()),
    }
}

pub(crate) fn unload(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
}

pub(crate) fn loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("holders").is_dir()
}

/// What the kernel has logged since the last look.
pub(crate) struct Log(File);

impl Log {
    pub(crate) fn open() -> Result<Self> {
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        Ok(Self(log))
    }

    pub(crate) fn news(&mut self) -> Result<String> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => lines.extend(line(&String::from_utf8_lossy(&record[..length]))),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(lines.join("\n")),
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                    lines.push("(kernel messages were lost here)".to_owned());
                }
                Err(e) => return Err(e).context("/dev/kmsg"),
            }
        }
    }
}

/// A record as dmesg shows it: `priority,number,microseconds,flags;text`, further lines are data.
fn line(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let microseconds: u64 = head.split(',').nth(2)?.parse().ok()?;
    let text = text.lines().next().unwrap_or_default();
    Some(format!(
        "[{:5}.{:06}] {text}",
        microseconds / 1_000_000,
        microseconds % 1_000_000
    ))
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn record_becomes_line() {
        assert_eq!(
            line("6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n").as_deref(),
            Some("[    5.140900] NET: Registered")
        );
        assert_eq!(line("no record"), None);
    }
}
