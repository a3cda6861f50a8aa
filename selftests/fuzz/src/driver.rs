// SPDX-License-Identifier: GPL-2.0

//! The drivers under test, of which one is loaded at a time, and what the kernel says meanwhile.

use std::fs::File;
use std::io::{
    ErrorKind,
    Read, //
};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    bail,
    ensure,
    Context,
    Result, //
};
use nix::errno::Errno;
use regex::Regex;

/// A driver as a file to be loaded.
#[derive(Debug)]
pub(crate) struct Driver {
    /// How reports call it.
    pub(crate) label: &'static str,
    path: PathBuf,
    module: String,
}

/// A driver that is loaded, until [`Loaded::unload`].
#[derive(Debug)]
pub(crate) struct Loaded<'a>(&'a Driver);

impl Driver {
    pub(crate) fn new(label: &'static str, path: &Path) -> Result<Self> {
        let module = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".ko"))
            .with_context(|| format!("{} is no module: it must end with .ko", path.display()))?
            .replace('-', "_");
        let driver = Driver {
            label,
            path: path.to_owned(),
            module,
        };
        ensure!(
            !driver.sysfs().exists(),
            "{} is loaded: unload it, this program loads it when it is due",
            driver.module
        );
        Ok(driver)
    }

    fn sysfs(&self) -> PathBuf {
        Path::new("/sys/module").join(&self.module)
    }

    /// Loads the driver.
    pub(crate) fn load(&self) -> Result<Loaded<'_>> {
        let file = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        // Software IOMMUs isolate no interrupts.
        let parameters = c"allow_unsafe_interrupts=1";
        // SAFETY: The kernel reads a string that ends with a zero.
        let ret = unsafe {
            let fd = file.as_raw_fd();
            libc::syscall(libc::SYS_finit_module, fd, parameters.as_ptr(), 0)
        };
        Errno::result(ret).with_context(|| format!("{} does not load", self.path.display()))?;
        Ok(Loaded(self))
    }
}

impl Loaded<'_> {
    /// Where its parameters are.
    pub(crate) fn parameters(&self) -> PathBuf {
        self.0.sysfs().join("parameters")
    }

    /// Unloads the driver, which nothing uses any more.
    pub(crate) fn unload(self) -> Result<()> {
        let name = std::ffi::CString::new(self.0.module.as_str())?;
        // What a process leaves behind the kernel may close a moment after it is gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            // SAFETY: The kernel reads a string that ends with a zero.
            let ret =
                unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
            match Errno::result(ret) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN | Errno::EBUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => bail!("{} does not unload: {error}", self.0.module),
            }
        }
    }
}

/// The kernel's log from now on.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    complaint: Regex,
}

impl Log {
    pub(crate) fn open() -> Result<Self> {
        let path = "/dev/kmsg";
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .context(path)?;
        let mut log = Log {
            file,
            complaint: Regex::new(
                r"BUG:|WARNING:|Oops|general protection fault|unable to handle|KASAN:|UBSAN:|KFENCE:|possible (recursive|circular) locking|suspicious RCU|refcount_t:|sleeping function|pages unpinned",
            )?,
        };
        log.complaints()?;
        Ok(log)
    }

    /// What the kernel has said since the last call that is reason to worry.
    pub(crate) fn complaints(&mut self) -> Result<Vec<String>> {
        let mut record = [0; 8192];
        let mut found = Vec::new();
        loop {
            match self.file.read(&mut record) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    let line = text.split_once(';').map_or(&*text, |(_, text)| text);
                    if self.complaint.is_match(line) {
                        found.push(line.lines().next().unwrap_or_default().to_owned());
                    }
                }
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (ErrorKind::WouldBlock, _) => return Ok(found),
                    // Lines were lost: what comes next is the oldest still there.
                    (_, Some(libc::EPIPE)) => {}
                    _ => return Err(error).context("/dev/kmsg"),
                },
            }
        }
    }
}

/// The kernel keeps quiet on the console, which is slow, but not in its log.
pub(crate) fn quiet_console() -> Result<()> {
    std::fs::write("/proc/sys/kernel/printk", "1").context("/proc/sys/kernel/printk")
}
