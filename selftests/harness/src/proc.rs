// SPDX-License-Identifier: GPL-2.0

//! Counters of the kernel, and changes to this process.

use std::fmt::Display;
use std::fs::{
    self,
    File, //
};
use std::io::{
    Read,
    Write, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{
    setrlimit,
    Resource, //
};
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::{
    fork,
    pipe2,
    setuid,
    ForkResult,
    Pid,
    Uid, //
};

use crate::check::{
    Stop,
    Verdict, //
};

/// Bytes of locked memory charged to this process.
#[track_caller]
pub fn locked() -> Verdict<u64> {
    locked_by("self")
}

#[track_caller]
fn locked_by(process: impl Display) -> Verdict<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path)?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .ok_or_else(|| Stop::fail(format_args!("{path} has no VmLck")))?;
    Ok(kib * 1024)
}

/// Pages pinned and not yet released, system-wide, if this kernel counts them.
pub fn pinned_pages() -> Option<i64> {
    // Each CPU keeps small counts to itself until asked.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    let counter = |name| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().parse::<i64>().ok()
    };
    Some(counter("nr_foll_pin_acquired")? - counter("nr_foll_pin_released")?)
}

/// Counts the pages that were pinned since some moment.
#[derive(Debug)]
pub struct PinCount(i64);

impl PinCount {
    /// Begins to count.
    #[track_caller]
    pub fn begin() -> Verdict<Self> {
        pinned_pages()
            .map(PinCount)
            .ok_or_else(|| Stop::skip("nr_foll_pin_acquired in /proc/vmstat"))
    }

    /// Fails unless `want` more pages are pinned than at the beginning. Others may pin some for a
    /// moment, so a wrong count only counts if it stays.
    #[track_caller]
    pub fn expect(&self, want: i64) -> Verdict {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let Some(now) = pinned_pages() else {
                return Err(Stop::fail("/proc/vmstat has lost its pin counters"));
            };
            let got = now - self.0;
            if got == want {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Stop::fail(format_args!(
                    "pages pinned meanwhile: expected {want}, got {got}"
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Gives up root, and allows `limit` bytes of locked memory.
#[track_caller]
pub fn become_limited(limit: u64) -> Verdict {
    setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit)?;
    if Uid::effective().is_root() {
        setuid(Uid::from_raw(65534))?;
    }
    Ok(())
}

/// A pipe whose ends do not survive exec: first the end to read from.
pub fn pipe() -> Result<(File, File), Errno> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

/// A process forked by a test, with a pipe for what it finds.
pub struct Child {
    pid: Pid,
    verdict: File,
}

impl Child {
    /// Forks; `body` runs in the child, which ends when it returns.
    #[track_caller]
    pub fn run(body: impl FnOnce() -> Verdict) -> Verdict<Self> {
        let (reader, mut writer) = pipe()?;
        // SAFETY: This process has one thread; the child may do what the parent may.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Child {
                pid: child,
                verdict: reader,
            }),
            ForkResult::Child => {
                drop(reader);
                let text = match body() {
                    Ok(()) => "P".to_owned(),
                    Err(Stop::Skip(why)) => format!("S{why}"),
                    Err(Stop::Fail(why)) => format!("F{why}"),
                };
                let _ = writer.write_all(text.as_bytes());
                drop(writer);
                // SAFETY: Nothing of the parent's may be torn down by the child.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Bytes the child has locked.
    #[track_caller]
    pub fn locked(&self) -> Verdict<u64> {
        locked_by(self.pid)
    }

    /// Waits for the child and takes its verdict over.
    #[track_caller]
    pub fn join(mut self) -> Verdict {
        let mut text = String::new();
        self.verdict.read_to_string(&mut text)?;
        let status = loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        match (text.split_at_checked(1), status) {
            (Some(("P", _)), WaitStatus::Exited(_, 0)) => Ok(()),
            (Some(("S", why)), _) => Err(Stop::skip(why)),
            (Some(("F", why)), _) => Err(Stop::Fail(why.to_owned())),
            _ => Err(Stop::fail(format_args!("the child ended with {status:?}"))),
        }
    }

    /// Kills the child and waits until all it had is closed.
    #[track_caller]
    pub fn kill(self) -> Verdict {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL)?;
        waitpid(self.pid, None)?;
        Ok(())
    }
}
