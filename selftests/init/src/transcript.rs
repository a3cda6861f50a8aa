// SPDX-License-Identifier: GPL-2.0

//! What the host is told, one JSON object a line.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io::Write;
use std::mem;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{
    Context,
    Result, //
};
use nix::sys::termios::tcdrain;
use nix::{
    ioctl_read_bad,
    ioctl_write_ptr_bad, //
};
use serde::Serialize;

/// One line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    Start {
        release: &'a str,
        uptime: f64,
    },
    Begin {
        phase: &'a str,
        test: &'a str,
    },
    Output {
        phase: &'a str,
        test: &'a str,
        text: &'a str,
    },
    Kernel {
        test: &'a str,
        text: &'a str,
    },
    Done {
        phase: &'a str,
        test: &'a str,
        seconds: f64,
        #[serde(flatten)]
        end: End,
    },
    Trouble {
        text: &'a str,
    },
    End,
}

/// How a test ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum End {
    /// By itself: the exit status, or a signal as a negative number.
    Status(i32),
    /// For lack of something it needs.
    Skip(String),
    /// Because this machine does not do what it should.
    Trouble(String),
    /// By us, after so many seconds.
    Late(u64),
}

pub(crate) struct Transcript {
    port: File,
}

impl Transcript {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let port = OpenOptions::new()
            .write(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        make_raw(&port).with_context(|| path.display().to_string())?;
        Ok(Self { port })
    }

    pub(crate) fn say(&mut self, event: &Event<'_>) -> Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.port.write_all(&line).context("the transcript")
    }

    /// Waits until the host has it all.
    pub(crate) fn drain(&self) -> Result<()> {
        Ok(tcdrain(&self.port)?)
    }
}

ioctl_read_bad!(tcgets2, libc::TCGETS2, libc::termios2);
ioctl_write_ptr_bad!(tcsets2, libc::TCSETS2, libc::termios2);

/// Neither an echo nor carriage returns, and as fast as it goes.
fn make_raw(port: &File) -> nix::Result<()> {
    // SAFETY: All zeroes are a value of it.
    let mut settings: libc::termios2 = unsafe { mem::zeroed() };
    // SAFETY: The kernel writes one structure, which is ours.
    unsafe { tcgets2(port.as_raw_fd(), &raw mut settings) }?;
    settings.c_iflag = 0;
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    settings.c_cflag = (settings.c_cflag & !libc::CBAUD) | libc::B115200;
    // SAFETY: The kernel reads one structure.
    unsafe { tcsets2(port.as_raw_fd(), &raw const settings) }?;
    Ok(())
}
