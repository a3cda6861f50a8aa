// SPDX-License-Identifier: GPL-2.0

//! The kernel's fault injection, as far as this program uses it.
//!
//! `fail-nth` of a task counts down at each place where one of the three kinds of fault could
//! happen, and makes it happen where it reaches zero; so one sweep over n meets all of them. For
//! as long as `make-it-fail` of the task is set, what comes after that place fails too, up to a
//! number of times that each kind has. That is what an allocation with a fallback needs.

use std::fmt::{
    self,
    Display, //
};
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    Read,
    Write, //
};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use harness::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::proc::pipe;
use libc::c_long;
use nix::errno::Errno;
use nix::sys::signal::{
    signal,
    SigHandler,
    Signal, //
};
use nix::sys::wait::waitpid;
use nix::unistd::{
    fork,
    setsid,
    ForkResult,
    Pid, //
};

const DEBUGFS: &str = "/sys/kernel/debug";

/// Kinds of fault, by the name of their folder in debugfs, with what is needed to meet all of
/// their places.
const KINDS: [(&str, &[(&str, &str)]); 3] = [
    (
        "failslab",
        &[("ignore-gfp-wait", "N"), ("cache-filter", "N")],
    ),
    (
        "fail_page_alloc",
        &[
            ("ignore-gfp-wait", "N"),
            ("ignore-gfp-highmem", "N"),
            ("min-order", "0"),
        ],
    ),
    ("fail_usercopy", &[]),
];

/// For all kinds. Only tasks that ask for it are met, so the order does not matter to others.
const COMMON: [(&str, &str); 6] = [
    ("task-filter", "Y"),
    ("times", "0"),
    ("space", "0"),
    ("interval", "1"),
    ("verbose", "0"),
    ("probability", "100"),
];

/// How often each kind may fail after the first fault, at most.
const BURST: u32 = 16;

fn file_of(kind: usize, name: &str) -> PathBuf {
    PathBuf::from(DEBUGFS).join(KINDS[kind].0).join(name)
}

/// Fault injection set up, and as it was before once this is dropped.
///
/// The one that puts it back is a process of its own, so it happens however this one ends.
pub(crate) struct Settings {
    janitor: Pid,
    // Its end tells the janitor to work.
    lifeline: Option<File>,
}

impl Settings {
    /// Sets it up, and the other files as given.
    ///
    /// To be called before this process has other threads.
    pub(crate) fn apply(others: &[(PathBuf, &'static str)]) -> Verdict<Self> {
        let mut wanted: Vec<(PathBuf, &str)> = (0..KINDS.len())
            .flat_map(|kind| {
                let names = COMMON.iter().chain(KINDS[kind].1);
                names.map(move |(name, value)| (file_of(kind, name), *value))
            })
            .collect();
        wanted.extend_from_slice(others);
        let mut before = Vec::new();
        for (path, _) in &wanted {
            let text = fs::read_to_string(path).map_err(|e| missing_or_fail(path, e))?;
            before.push((path.clone(), text.trim().to_owned()));
        }

        let (mut reader, writer) = pipe()?;
        // SAFETY: This process has one thread.
        let janitor = match unsafe { fork() }? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(writer);
                janitor(&mut reader, &before);
                // SAFETY: Nothing of the parent's may be torn down here.
                unsafe { libc::_exit(0) }
            }
        };
        let this = Settings {
            janitor,
            lifeline: Some(writer),
        };
        for (path, value) in &wanted {
            fs::write(path, value).map_err(|e| missing_or_fail(path, e))?;
        }
        Ok(this)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = waitpid(self.janitor, None);
    }
}

/// Waits for the end of all who have the other end of the pipe, then restores.
fn janitor(lifeline: &mut File, before: &[(PathBuf, String)]) {
    // What ends the test early must not end this.
    let _ = setsid();
    for ending in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: To ignore a signal runs no code.
        let _ = unsafe { signal(ending, SigHandler::SigIgn) };
    }
    // Who reads the test's output waits for all who could write to it.
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            // SAFETY: The standard descriptors of this process are nobody's else.
            unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), fd) };
        }
    }
    let _ = lifeline.read_to_end(&mut Vec::new());
    // The probability comes last, so it goes first.
    for (path, value) in before.iter().rev() {
        let _ = fs::write(path, value);
    }
}

/// Whether only one place fails or what comes after it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One.
    Single,
    /// The first one and up to [`BURST`] of each kind.
    Burst,
}

impl Mode {
    /// Both of them.
    pub(crate) const BOTH: [Mode; 2] = [Mode::Single, Mode::Burst];
}

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Single => "one fault",
            Mode::Burst => "all at once",
        })
    }
}

/// How often what kind of fault happened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Allocations of objects.
    pub(crate) slab: u32,
    /// Allocations of pages.
    pub(crate) page: u32,
    /// Copies from or to user memory.
    pub(crate) copy: u32,
}

impl Faults {
    /// Whether there was one.
    pub(crate) fn any(self) -> bool {
        self.slab + self.page + self.copy != 0
    }
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.slab += other.slab;
        self.page += other.page;
        self.copy += other.copy;
    }
}

/// The controls of the thread that made it.
pub(crate) struct Injector {
    nth: File,
    make: File,
    times: [File; KINDS.len()],
}

impl Injector {
    /// Opens the controls of this thread.
    pub(crate) fn new() -> Verdict<Self> {
        let open = |path: PathBuf| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|e| missing_or_fail(&path, e))
        };
        Ok(Injector {
            nth: open("/proc/thread-self/fail-nth".into())?,
            make: open("/proc/thread-self/make-it-fail".into())?,
            times: [
                open(file_of(0, "times"))?,
                open(file_of(1, "times"))?,
                open(file_of(2, "times"))?,
            ],
        })
    }

    /// Lets each kind fail again.
    pub(crate) fn refill(&self) -> Verdict {
        // Not by pwrite(), which attributes of debugfs refuse.
        for mut times in &self.times {
            times.write_all(BURST.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// What failed since [`Injector::refill`].
    pub(crate) fn count(&self) -> Verdict<Faults> {
        let mut used = [0; KINDS.len()];
        for (kind, used) in used.iter_mut().enumerate() {
            let text = fs::read_to_string(file_of(kind, "times"))?;
            let left: u32 = text.trim().parse().map_err(Stop::fail)?;
            *used = BURST.saturating_sub(left);
        }
        let [slab, page, copy] = used;
        Ok(Faults { slab, page, copy })
    }

    /// From here on faults are counted down. The next system call is the one to be tested.
    pub(crate) fn arm(&self, mode: Mode, nth: u32) -> Verdict {
        self.refill()?;
        if mode == Mode::Burst {
            // Counting far from the end keeps this thread's own calls whole.
            self.nth.write_all_at(b"1000000000", 0)?;
            self.make.write_all_at(b"1", 0)?;
        }
        self.nth.write_all_at(nth.to_string().as_bytes(), 0)?;
        Ok(())
    }

    /// Ends that, and tells what failed meanwhile.
    fn disarm(&self) -> Verdict<Faults> {
        let own = self.switch_off()?;
        let mut faults = self.count()?;
        faults.copy = faults.copy.saturating_sub(own);
        Ok(faults)
    }

    /// Switches off, which may meet faults itself: their number.
    fn switch_off(&self) -> Verdict<u32> {
        // These copy from user memory, which fails while there are faults left to happen.
        let mut own = 0;
        for file in [&self.make, &self.nth] {
            while let Err(error) = file.write_at(b"0", 0) {
                own += 1;
                if error.raw_os_error() != Some(libc::EFAULT) || own > 2 * BURST {
                    return Err(Stop::fail(format_args!(
                        "fault injection stays on: {error}"
                    )));
                }
            }
        }
        Ok(own)
    }

    /// Runs one system call whose `nth` possible fault happens.
    pub(crate) fn strike(
        &self,
        mode: Mode,
        nth: u32,
        call: impl FnOnce() -> c_long,
    ) -> Verdict<(Result<i64, Errno>, Faults)> {
        self.arm(mode, nth)?;
        let value = call();
        let errno = Errno::last();
        let faults = self.disarm()?;
        let result = if value == -1 { Err(errno) } else { Ok(value) };
        Ok((result, faults))
    }

    /// The same with one fault, without counting.
    pub(crate) fn strike_again(
        &self,
        nth: u32,
        call: impl FnOnce() -> c_long,
    ) -> Verdict<Result<i64, Errno>> {
        self.nth.write_all_at(nth.to_string().as_bytes(), 0)?;
        let value = call();
        let errno = Errno::last();
        self.switch_off()?;
        Ok(if value == -1 { Err(errno) } else { Ok(value) })
    }
}
