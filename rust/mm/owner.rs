// SPDX-License-Identifier: GPL-2.0

//! The process on whose behalf memory is pinned.

use core::fmt;
use kernel::{
    bindings,
    mm::{
        Mm,
        MmWithUser, //
    },
    prelude::*,
    sync::aref::ARef,
    task::Task, //
};

/// The process a mapping was made by: whose memory it is, and who pays for locking it.
///
/// Holds the thread group leader, so that the limit asked later is that of the process and not of
/// a thread long gone, and the address space as a grabbed `mm_struct`, which neither keeps the
/// process alive nor lets another one be charged after `exec()`.
pub struct Owner {
    leader: ARef<Task>,
    mm: ARef<Mm>,
    may_exceed: bool,
}

impl Owner {
    /// The calling process.
    ///
    /// Whether it may exceed its memory lock limit (`CAP_IPC_LOCK`) is decided now, for good.
    ///
    /// # Errors
    ///
    /// `ENODEV` in a kernel thread, which has no memory of its own.
    pub fn current() -> Result<Self> {
        let task = kernel::current!();
        let mm: &MmWithUser = task.mm().ok_or(ENODEV)?;

        Ok(Self {
            leader: ARef::from(task.group_leader()),
            mm: ARef::from(&**mm),
            // SAFETY: Asking for a capability of the current task has no precondition.
            may_exceed: unsafe { bindings::capable(bindings::CAP_IPC_LOCK as c_int) },
        })
    }

    /// Whether the calling task runs in this owner's address space.
    pub fn is_current_mm(&self) -> bool {
        is_current(&self.mm)
    }

    /// The address space for as long as the result lives, or `None` if the process is gone.
    pub fn user_mm(&self) -> Option<ARef<MmWithUser>> {
        self.mm.mmget_not_zero()
    }

    /// Whether the owner had `CAP_IPC_LOCK` and is not bound by `RLIMIT_MEMLOCK`.
    pub fn may_exceed(&self) -> bool {
        self.may_exceed
    }

    /// The owner's `RLIMIT_MEMLOCK` in bytes, as it is now.
    pub fn memlock_limit(&self) -> u64 {
        // SAFETY: The task is valid, `self` holds a reference to it.
        unsafe { vrs_bindings::vrs_memlock_limit(self.leader.as_ptr()) as u64 }
    }

    /// The pages the owner has locked now, all reasons together.
    pub fn locked_pages(&self) -> u64 {
        // SAFETY: The address space is valid. The value may change meanwhile, as it may right
        // after.
        unsafe {
            (&raw const (*self.mm.as_raw()).__bindgen_anon_1.locked_vm).read_volatile() as u64
        }
    }

    /// The process's name and id, for messages.
    pub fn comm(&self) -> Comm {
        Comm::of(&self.leader)
    }

    pub(crate) fn leader(&self) -> &Task {
        &self.leader
    }
}

/// Whether the calling task runs in this address space.
pub(crate) fn is_current(mm: &Mm) -> bool {
    kernel::current!()
        .mm()
        .is_some_and(|current| current.as_raw() == mm.as_raw())
}

/// A process's name and id, printed as `name (pid N)`.
#[derive(Clone, Copy)]
pub struct Comm {
    name: [u8; bindings::TASK_COMM_LEN as usize],
    pid: i32,
}

impl Comm {
    /// Of the calling process.
    pub fn current() -> Self {
        Self::of(kernel::current!().group_leader())
    }

    fn of(leader: &Task) -> Self {
        let mut name = [0; bindings::TASK_COMM_LEN as usize];
        // SAFETY: The task is valid, and `name` is writable for its length.
        unsafe {
            vrs_bindings::vrs_task_comm(leader.as_ptr(), name.as_mut_ptr().cast(), name.len())
        };
        Self {
            name,
            pid: leader.pid(),
        }
    }
}

impl kernel::fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.name.iter().take_while(|&&byte| byte != 0) {
            let printable = byte.is_ascii_graphic() || byte == b' ';
            fmt::Write::write_char(f, if printable { char::from(byte) } else { '?' })?;
        }
        write!(f, " (pid {})", self.pid)
    }
}
