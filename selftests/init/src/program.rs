// SPDX-License-Identifier: GPL-2.0

//! Runs the program of a test.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{
    Command,
    ExitStatus,
    Stdio, //
};
use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    Context,
    Result, //
};
use nix::errno::Errno;
use nix::poll::{
    poll,
    PollFd,
    PollFlags,
    PollTimeout, //
};
use nix::sys::signal::{
    kill,
    Signal, //
};
use nix::sys::wait::{
    waitpid,
    WaitPidFlag,
    WaitStatus, //
};
use nix::unistd::{
    pipe,
    Pid, //
};

use crate::transcript::End;

/// Passes what it prints to `output` and ends it, with all it started, after `limit`.
pub(crate) fn run(
    words: &[String],
    env: &BTreeMap<String, String>,
    limit: Duration,
    mut output: impl FnMut(&str) -> Result<()>,
) -> Result<End> {
    let (reader, writer) = pipe()?;
    let (name, arguments) = words.split_first().context("a command without words")?;
    let mut child = {
        let mut command = Command::new(name);
        command
            .args(arguments)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        // With it go our own ends for writing.
        command.spawn().with_context(|| name.clone())?
    };

    let deadline = Instant::now() + limit;
    let mut reader = File::from(reader);
    let mut chunk = [0; 1 << 14];
    let late = loop {
        if !readable(&reader, deadline)? {
            break true;
        }
        match reader.read(&mut chunk)? {
            0 => break false,
            length => output(&String::from_utf8_lossy(&chunk[..length]))?,
        }
    };
    // Only the init may take all processes and all children for its own.
    let is_init = Pid::this() == Pid::from_raw(1);
    if late && is_init {
        kill(Pid::from_raw(-1), Signal::SIGKILL)?;
    } else if late {
        child.kill()?;
    }
    let status = child.wait()?;
    if is_init {
        reap()?;
    }
    Ok(if late {
        End::Late(limit.as_secs())
    } else {
        End::Status(number(status))
    })
}

/// False if the deadline comes first.
fn readable(reader: &File, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Orphans become children of the init.
fn reap() -> Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            other => other?,
        };
    }
}

fn number(status: ExitStatus) -> i32 {
    status
        .code()
        .or(status.signal().map(|signal| -signal))
        .unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> (End, String) {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        let mut text = String::new();
        let end = run(&words, &BTreeMap::new(), Duration::from_secs(60), |more| {
            text += more;
            Ok(())
        });
        (end.unwrap(), text)
    }

    #[test]
    fn output_and_status() {
        let (end, text) = shell("echo out; echo err >&2; exit 3");
        assert!(matches!(end, End::Status(3)), "{end:?}");
        assert_eq!(text, "out\nerr\n");
    }

    #[test]
    fn signal_is_negative() {
        let (end, _) = shell("kill -9 $$");
        assert!(matches!(end, End::Status(-9)), "{end:?}");
    }
}
