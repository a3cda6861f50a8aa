// SPDX-License-Identifier: GPL-2.0

//! Why a request fails: the errno for the user and a sentence for the log.

use core::fmt;
use iova_space::{
    Errno,
    IovaRange, //
};
use kernel::prelude::*;
use mm::Comm;
use pin_plan::OverLimit;
use vfio_uapi::Refusal;

/// A request that fails, and what there is to know about it.
pub(crate) enum Cause {
    /// The request itself makes no sense.
    Request(Refusal),
    /// A mapping is there already.
    Overlap { asked: IovaRange, mapped: IovaRange },
    /// The range is not one that devices can use.
    Outside {
        asked: IovaRange,
        nearest: Option<IovaRange>,
    },
    /// No more mappings are allowed.
    EntryLimit { limit: u32 },
    /// A range would cut a mapping in two.
    Bisects { asked: IovaRange, mapped: IovaRange },
    /// There is no such mapping to be changed.
    NoMapping { asked: IovaRange },
    /// The mapping's user address is still valid, or the range is not the mapping's.
    NotInvalidated { asked: IovaRange, mapped: IovaRange },
    /// The mapping's user address is invalid already.
    AlreadyInvalidated { mapped: IovaRange },
    /// Mediated devices pin pages and could not while user addresses change.
    Emulated,
    /// A driver does not unpin although it was asked.
    StillPinned { mapped: IovaRange },
    /// The user may not lock so much memory.
    Locked { limit: OverLimit, owner: Comm },
    /// Memory could not be pinned.
    Pin { vaddr: u64, done: u64, error: Error },
    /// The IOMMU driver would not map.
    Iommu { iova: u64, error: Error },
    /// A device of the group could forge interrupts.
    UnsafeInterrupts { group: i32 },
    /// Too large for a dirty bitmap.
    TooLargeToTrack { mapped: IovaRange },
    /// Nothing more to say.
    Other(Error),
}

impl Cause {
    /// What the user gets.
    pub(crate) fn errno(&self) -> Error {
        match self {
            Self::Request(refusal) => errno(refusal.errno()),
            Self::Overlap { .. } => EEXIST,
            Self::EntryLimit { .. } => ENOSPC,
            Self::NoMapping { .. } => ENOENT,
            Self::Outside { .. }
            | Self::Bisects { .. }
            | Self::NotInvalidated { .. }
            | Self::AlreadyInvalidated { .. }
            | Self::TooLargeToTrack { .. } => EINVAL,
            Self::Emulated | Self::StillPinned { .. } => EBUSY,
            Self::Locked { .. } => ENOMEM,
            Self::UnsafeInterrupts { .. } => EPERM,
            Self::Pin { error, .. } | Self::Iommu { error, .. } | Self::Other(error) => *error,
        }
    }

    /// Logs the refusal, at a limited rate.
    pub(crate) fn log(&self, request: &str) {
        if vfio::may_log_refusal() {
            pr_notice!("{} {} refused: {}\n", Comm::current(), request, self);
        }
    }
}

/// The kernel's error for a name that the logic crates use.
pub(crate) fn errno(name: Errno) -> Error {
    match name {
        Errno::Inval => EINVAL,
        Errno::Overflow => EOVERFLOW,
        Errno::Exist => EEXIST,
        Errno::NoEnt => ENOENT,
        Errno::NoSpc => ENOSPC,
        Errno::Busy => EBUSY,
        Errno::Perm => EPERM,
        Errno::Acces => EACCES,
        Errno::Fault => EFAULT,
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        Self::Request(refusal)
    }
}

impl From<Error> for Cause {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<kernel::alloc::AllocError> for Cause {
    fn from(_: kernel::alloc::AllocError) -> Self {
        Self::Other(ENOMEM)
    }
}

/// Lets the kernel print what the logic crates can only show to `core`.
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: fmt::Display> kernel::fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl kernel::fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(refusal) => write!(f, "{refusal}"),
            Self::Overlap { asked, mapped } => write!(f, "{asked} overlaps the mapping {mapped}"),
            Self::Outside {
                asked,
                nearest: Some(nearest),
            } => write!(
                f,
                "{asked} is not within what the devices can address, nearest is {nearest}"
            ),
            Self::Outside { asked, .. } => {
                write!(f, "{asked} is not within what the devices can address")
            }
            Self::EntryLimit { limit } => write!(
                f,
                "the container has its {limit} mappings, see module parameter dma_entry_limit"
            ),
            Self::Bisects { asked, mapped } => write!(f, "{asked} bisects the mapping {mapped}"),
            Self::NoMapping { asked } => write!(f, "there is no mapping in {asked}"),
            Self::NotInvalidated { asked, mapped } => write!(
                f,
                "{asked} is not a mapping with an invalid user address, there is {mapped}"
            ),
            Self::AlreadyInvalidated { mapped } => {
                write!(
                    f,
                    "the user address of the mapping {mapped} is invalid already"
                )
            }
            Self::Emulated => write!(f, "a mediated device pins pages"),
            Self::StillPinned { mapped } => {
                write!(
                    f,
                    "a device driver keeps pages of the mapping {mapped} pinned"
                )
            }
            Self::Locked { limit, owner } => write!(f, "memory of {owner}: {limit}"),
            Self::Pin { vaddr, done, error } => write!(
                f,
                "cannot pin user address {vaddr:#x}, {done} bytes into the mapping: {error:?}"
            ),
            Self::Iommu { iova, error } => write!(f, "the IOMMU cannot map {iova:#x}: {error:?}"),
            Self::UnsafeInterrupts { group } => write!(
                f,
                "group {group} has no interrupt remapping, so a device could forge interrupts; \
                 module parameter allow_unsafe_interrupts lets it be used all the same"
            ),
            Self::TooLargeToTrack { mapped } => {
                write!(
                    f,
                    "the mapping {mapped} has more pages than a dirty bitmap can have bits"
                )
            }
            Self::Other(error) => write!(f, "{error:?}"),
        }
    }
}
