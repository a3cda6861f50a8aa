// SPDX-License-Identifier: GPL-2.0

//! How a test says what it found.

use std::fmt::{
    Debug,
    Display, //
};
use std::fs;
use std::io;
use std::panic::Location;
use std::path::Path;

use nix::errno::Errno;
use thiserror::Error;

/// Why a test ended before its last line.
#[derive(Debug, Error)]
pub enum Stop {
    /// Something the test needs is not on this machine.
    #[error("{0}")]
    Skip(String),
    /// The kernel did something else than the test expects.
    #[error("{0}")]
    Fail(String),
}

/// Result of a test or of a step of one.
pub type Verdict<T = ()> = Result<T, Stop>;

/// A refused system call.
#[derive(Debug, Error)]
#[error("{call}: {errno}")]
pub struct SysError {
    /// The call with its arguments.
    pub call: String,
    /// The kernel's answer.
    pub errno: Errno,
}

/// Result of a system call.
pub type Sys<T = ()> = Result<T, SysError>;

impl Stop {
    /// A failure at the caller's line.
    #[track_caller]
    pub fn fail(what: impl Display) -> Self {
        let at = Location::caller();
        Stop::Fail(format!("{}:{}: {what}", at.file(), at.line()))
    }

    /// A missing thing, by name.
    pub fn skip(what: impl Display) -> Self {
        Stop::Skip(what.to_string())
    }
}

impl From<SysError> for Stop {
    #[track_caller]
    fn from(error: SysError) -> Self {
        Stop::fail(format_args!(
            "{}: expected success, got {:?}",
            error.call, error.errno
        ))
    }
}

impl From<io::Error> for Stop {
    #[track_caller]
    fn from(error: io::Error) -> Self {
        Stop::fail(format_args!("expected success, got {error}"))
    }
}

impl From<Errno> for Stop {
    #[track_caller]
    fn from(errno: Errno) -> Self {
        Stop::fail(format_args!("expected success, got {errno:?}"))
    }
}

impl From<anyhow::Error> for Stop {
    #[track_caller]
    fn from(error: anyhow::Error) -> Self {
        Stop::fail(format_args!("{error:#}"))
    }
}

/// Reads a file the test cannot do without: absent or forbidden means skip, naming it.
#[track_caller]
pub(crate) fn read_needed(path: &Path) -> Verdict<String> {
    fs::read_to_string(path).map_err(|e| missing_or_fail(path, e))
}

/// Applies the rule for things which may be absent: ENOENT and EACCES skip, all else fails.
#[track_caller]
pub fn missing_or_fail(what: impl AsRef<Path>, error: io::Error) -> Stop {
    let what = what.as_ref().display();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::EACCES) => Stop::skip(format_args!("{what}: {error}")),
        _ => Stop::fail(format_args!("{what}: {error}")),
    }
}

/// Fails unless `ok`.
#[track_caller]
pub fn expect(what: impl Display, ok: bool) -> Verdict {
    if ok {
        Ok(())
    } else {
        Err(Stop::fail(format_args!("{what}: this does not hold")))
    }
}

/// Fails unless `got` is `want`.
#[track_caller]
pub fn expect_eq<T: PartialEq + Debug>(what: impl Display, got: T, want: T) -> Verdict {
    if got == want {
        Ok(())
    } else {
        Err(Stop::fail(format_args!(
            "{what}: expected {want:#x?}, got {got:#x?}"
        )))
    }
}

/// Fails unless the call was refused with `want`.
#[track_caller]
pub fn expect_errno<T: Debug>(why: impl Display, got: Sys<T>, want: Errno) -> Verdict {
    match got {
        Err(error) if error.errno == want => Ok(()),
        Err(error) => Err(Stop::fail(format_args!(
            "{why}: {}: expected {want:?}, got {:?}",
            error.call, error.errno
        ))),
        Ok(value) => Err(Stop::fail(format_args!(
            "{why}: expected {want:?}, got success ({value:#x?})"
        ))),
    }
}
