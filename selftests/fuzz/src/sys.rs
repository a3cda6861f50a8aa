// SPDX-License-Identifier: GPL-2.0

//! System calls by number, made by this process or by another one on its behalf.

use std::fs::File;
use std::io::{
    Read,
    Write, //
};
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    RawFd, //
};
use std::os::unix::fs::FileExt;

use anyhow::{
    bail,
    ensure,
    Context,
    Result, //
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::{
    fork,
    pipe2,
    ForkResult,
    Pid, //
};

/// A system call: its number and what it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) args: [u64; 6],
}

impl Call {
    pub(crate) fn new<const N: usize>(number: i64, args: [u64; N]) -> Self {
        let mut all = [0; 6];
        all[..N].copy_from_slice(&args);
        Call { number, args: all }
    }

    /// Makes the call: its value, or its errno as a negative number.
    ///
    /// # Safety
    ///
    /// What the call does to memory touches only memory of [`crate::layout`], which no reference
    /// points to.
    unsafe fn make(&self) -> i64 {
        let [a, b, c, d, e, f] = self.args;
        // SAFETY: The caller vouches for what the call does.
        let ret = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        if ret == -1 {
            -i64::from(Errno::last_raw())
        } else {
            ret
        }
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.number.to_ne_bytes());
        for (chunk, arg) in bytes[8..].chunks_exact_mut(8).zip(self.args) {
            chunk.copy_from_slice(&arg.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let word = |n: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * n..8 * (n + 1)]);
            u64::from_ne_bytes(word)
        };
        Call {
            number: word(0) as i64,
            args: std::array::from_fn(|n| word(n + 1)),
        }
    }

    const LEN: usize = 7 * 8;
}

/// A process that makes calls: this one, or a child that is told which.
#[derive(Debug)]
pub(crate) enum Actor {
    /// This process.
    Own { status: File },
    /// A child.
    Child {
        pid: Pid,
        status: File,
        requests: File,
        replies: File,
    },
}

impl Actor {
    /// This process.
    pub(crate) fn own() -> Result<Self> {
        let status = File::open("/proc/self/status").context("/proc/self/status")?;
        Ok(Actor::Own { status })
    }

    /// Makes a call: its value, or its errno as a negative number.
    ///
    /// # Safety
    ///
    /// As for [`Call::make`], in the process that makes it.
    pub(crate) unsafe fn call(&mut self, call: Call) -> Result<i64> {
        match self {
            // SAFETY: Same contract.
            Actor::Own { .. } => Ok(unsafe { call.make() }),
            Actor::Child {
                requests, replies, ..
            } => {
                let mut reply = [0; 8];
                requests
                    .write_all(&call.to_bytes())
                    .and_then(|()| replies.read_exact(&mut reply))
                    .with_context(|| format!("the child is gone, asked for {call:?}"))?;
                Ok(i64::from_ne_bytes(reply))
            }
        }
    }

    /// Pages of locked memory charged to the process.
    pub(crate) fn locked(&self) -> Result<u32> {
        let (Actor::Own { status } | Actor::Child { status, .. }) = self;
        let mut text = [0; 2048];
        let len = status.read_at(&mut text, 0)?;
        let key = b"VmLck:";
        let at = text[..len]
            .windows(key.len())
            .position(|window| window == key)
            .context("/proc/PID/status has no VmLck")?;
        let kib = text[at + key.len()..len]
            .iter()
            .skip_while(|byte| !byte.is_ascii_digit())
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0, |sum, byte| sum * 10 + u32::from(byte - b'0'));
        Ok(kib / 4)
    }

    /// Forks a child that waits for calls to make.
    pub(crate) fn fork() -> Result<Self> {
        let (request_reader, request_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (reply_reader, reply_writer) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: Whoever runs sequences has no other thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Actor::Child {
                pid: child,
                status: File::open(format!("/proc/{child}/status"))?,
                requests: request_writer.into(),
                replies: reply_reader.into(),
            }),
            ForkResult::Child => {
                drop(request_writer);
                drop(reply_reader);
                serve(request_reader.into(), reply_writer.into());
                // SAFETY: Buffers and handlers belong to the parent.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Lets the child become a new program that goes on to wait for calls, with `keep` open.
    pub(crate) fn exec(&mut self, keep: &[RawFd]) -> Result<()> {
        let Actor::Child {
            pid,
            status,
            requests,
            replies,
        } = self
        else {
            bail!("only a child calls exec");
        };
        let mut bytes = Call::new(EXEC, [keep.len() as u64]).to_bytes().to_vec();
        for fd in keep {
            bytes.extend_from_slice(&fd.to_ne_bytes());
        }
        requests.write_all(&bytes)?;
        let mut reply = [0; 8];
        replies.read_exact(&mut reply).context("exec failed")?;
        // The file of the old program shows the memory of the old one.
        *status = File::open(format!("/proc/{pid}/status"))?;
        Ok(())
    }

    /// Ends the child, and waits until all it had is closed.
    pub(crate) fn end(self) -> Result<()> {
        let Actor::Child {
            pid,
            requests,
            replies,
            ..
        } = self
        else {
            bail!("only a child can be ended");
        };
        drop(requests);
        drop(replies);
        let status = waitpid(pid, None)?;
        ensure!(
            status == WaitStatus::Exited(pid, 0),
            "the child ended with {status:?}"
        );
        Ok(())
    }
}

/// Not a system call, but what a child is told to do instead: the files to keep follow.
const EXEC: i64 = -1;

/// How the new program is told that it is one.
pub(crate) const SERVE: &str = "serve";

/// Makes calls until nobody asks any more.
pub(crate) fn serve(mut requests: File, mut replies: File) {
    let mut bytes = [0; Call::LEN];
    while requests.read_exact(&mut bytes).is_ok() {
        let call = Call::from_bytes(&bytes);
        if call.number == EXEC {
            let _ = exec_self(&mut requests, &replies, call.args[0]);
            return;
        }
        // SAFETY: The parent vouches for its calls.
        let ret = unsafe { call.make() };
        if replies.write_all(&ret.to_ne_bytes()).is_err() {
            return;
        }
    }
}

fn exec_self(requests: &mut File, replies: &File, keep: u64) -> Result<()> {
    let keep_open = |fd: RawFd| {
        // SAFETY: The call changes a flag of a descriptor.
        Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })
    };
    for _ in 0..keep {
        let mut fd = [0; 4];
        requests.read_exact(&mut fd)?;
        keep_open(RawFd::from_ne_bytes(fd))?;
    }
    let (requests, replies) = (requests.as_raw_fd(), replies.as_raw_fd());
    keep_open(requests)?;
    keep_open(replies)?;

    let words = [
        "fuzz".into(),
        SERVE.to_owned(),
        requests.to_string(),
        replies.to_string(),
    ];
    let words: Vec<_> = words
        .into_iter()
        .map(std::ffi::CString::new)
        .collect::<Result<_, _>>()?;
    nix::unistd::execv(c"/proc/self/exe", &words)?;
    Ok(())
}

/// Goes on where [`exec_self`] left: the new program.
///
/// # Safety
///
/// The descriptors are open and nobody else's.
pub(crate) unsafe fn serve_after_exec(requests: RawFd, replies: RawFd) -> Result<()> {
    // SAFETY: The caller hands them over.
    let (requests, mut replies) =
        unsafe { (File::from_raw_fd(requests), File::from_raw_fd(replies)) };
    replies.write_all(&0i64.to_ne_bytes())?;
    serve(requests, replies);
    Ok(())
}
