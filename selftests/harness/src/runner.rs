// SPDX-License-Identifier: GPL-2.0

//! Runs each test in a process of its own and prints KTAP.

use std::io::{
    self,
    Read,
    Write, //
};
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    OwnedFd, //
};
use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{
    killpg,
    Signal, //
};
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::{
    fork,
    setpgid,
    ForkResult,
    Pid, //
};

use crate::check::{
    expect_eq,
    Stop,
    Verdict, //
};
use crate::env::Env;
use crate::proc::{
    self,
    PinCount, //
};

/// A named check.
#[derive(Clone, Copy)]
pub struct Test {
    /// Stable, unique; the part before the dot names the subject.
    pub name: &'static str,
    /// What must hold.
    pub about: &'static str,
    /// Runs in a process of its own.
    pub body: fn(&Env) -> Verdict,
}

/// Makes the table of a file, `TESTS`, from lines `name, "what must hold" => function;`.
#[macro_export]
macro_rules! tests {
    ($($name:literal, $about:literal => $body:path;)*) => {
        pub(super) const TESTS: &[$crate::runner::Test] = &[$(
            $crate::runner::Test { name: $name, about: $about, body: $body },
        )*];
    };
}

/// Name and meaning of the check behind the last test, which no filter leaves out.
pub const BALANCE: (&str, &str) = ("pins.balanced", "as many pages are released as were pinned");

/// Bytes of the longest explanation.
const LONGEST: usize = 16 << 10;

/// Counts of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) pass: usize,
    pub(crate) fail: usize,
    pub(crate) skip: usize,
}

/// Runs `tests` in order, then checks that nothing stayed pinned.
pub(crate) fn run(env: &Env, tests: &[Test], limit: Duration) -> io::Result<Totals> {
    let mut totals = Totals::default();
    let pins = PinCount::begin();

    println!("KTAP version 1");
    println!("1..{}", tests.len() + 1);
    for (index, test) in tests.iter().enumerate() {
        let verdict = run_one(env, test, limit)?;
        totals.print(index + 1, test.name, verdict);
    }
    let verdict = pins.and_then(|pins| pins.expect(0));
    totals.print(tests.len() + 1, BALANCE.0, verdict);

    println!(
        "# Totals: pass:{} fail:{} xfail:0 xpass:0 skip:{} error:0",
        totals.pass, totals.fail, totals.skip
    );
    Ok(totals)
}

impl Totals {
    fn print(&mut self, number: usize, name: &str, verdict: Verdict) {
        match verdict {
            Ok(()) => {
                self.pass += 1;
                println!("ok {number} {name}");
            }
            Err(Stop::Skip(what)) => {
                self.skip += 1;
                println!("ok {number} {name} # SKIP not on this machine: {what}");
            }
            Err(Stop::Fail(why)) => {
                self.fail += 1;
                for line in why.lines() {
                    println!("# {line}");
                }
                println!("not ok {number} {name}");
            }
        }
        // A reader on a serial line wants to see the last test before a hang.
        let _ = io::stdout().flush();
    }
}

/// Runs one test, with the checks that hold for all of them.
fn run_one(env: &Env, test: &Test, limit: Duration) -> io::Result<Verdict> {
    let pins = PinCount::begin();
    let verdict = in_child(|| guarded(env, test), limit)?;
    Ok(verdict.and_then(|()| pins.map_or(Ok(()), |pins| pins.expect(0))))
}

/// The body of a test, with what it may not leave behind.
fn guarded(env: &Env, test: &Test) -> Verdict {
    let before = proc::locked()?;
    (test.body)(env)?;
    expect_eq("locked memory after the test", proc::locked()?, before)
}

/// Runs `body` in a forked process and in its own process group, for at most `limit`.
fn in_child(body: impl FnOnce() -> Verdict, limit: Duration) -> io::Result<Verdict> {
    let (mut reader, mut writer) = proc::pipe()?;
    io::stdout().flush()?;

    // SAFETY: This process has one thread, so the child may do all that the parent may.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(reader);
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            let verdict = catch_unwind(AssertUnwindSafe(body))
                .unwrap_or_else(|_| Err(Stop::Fail("panicked, see standard error".into())));
            let mut text = match verdict {
                Ok(()) => "P".to_owned(),
                Err(Stop::Skip(what)) => format!("S{what}"),
                Err(Stop::Fail(why)) => format!("F{why}"),
            };
            // It must fit into the pipe, which nobody reads yet.
            if text.len() > LONGEST {
                let end = (0..=LONGEST).rfind(|&at| text.is_char_boundary(at));
                text.truncate(end.unwrap_or(0));
            }
            let _ = writer.write_all(text.as_bytes());
            // SAFETY: Buffers and handlers belong to the parent.
            unsafe { libc::_exit(0) }
        }
    };
    drop(writer);

    let timed_out = !ends_within(child, limit)?;
    // Whatever a failed test has left running would keep the group busy.
    let _ = killpg(child, Signal::SIGKILL);
    let status = waitpid(child, None)?;

    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(match (text.split_at_checked(1), status) {
        _ if timed_out => Err(Stop::Fail(format!("not done after {} s", limit.as_secs()))),
        (Some(("P", _)), WaitStatus::Exited(_, 0)) => Ok(()),
        (Some(("S", what)), _) => Err(Stop::Skip(what.to_owned())),
        (Some(("F", why)), _) => Err(Stop::Fail(why.to_owned())),
        _ => Err(Stop::Fail(format!(
            "the test process ended with {status:?}"
        ))),
    })
}

/// Waits for a process to end, without reaping it.
fn ends_within(pid: Pid, limit: Duration) -> io::Result<bool> {
    // SAFETY: The call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: The kernel has just opened it; descriptors are ints.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    loop {
        // SAFETY: One structure, which outlives the call.
        match Errno::result(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
            Err(Errno::EINTR) => {}
            other => return Ok(other? > 0),
        }
    }
}
