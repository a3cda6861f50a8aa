// SPDX-License-Identifier: GPL-2.0

//! Why a request is refused.

use crate::{
    Errno,
    BITMAP_BYTES_MAX, //
};
use core::fmt;

/// What is wrong with a request, with the numbers needed to see it.
///
/// Sizes and addresses are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The structure is shorter than the request needs.
    Argsz {
        /// Size in the request.
        asked: u32,
        /// Smallest size that would do.
        needed: u32,
    },
    /// A flag is not known.
    UnknownFlags {
        /// Flags in the request.
        asked: u32,
        /// All flags of this request.
        allowed: u32,
    },
    /// A range has no bytes.
    EmptyRange {
        /// First device address.
        iova: u64,
    },
    /// A range of device addresses ends beyond the last one.
    IovaWraps {
        /// First device address.
        iova: u64,
        /// Size of the range.
        size: u64,
    },
    /// A range of user addresses ends beyond the last one.
    VaddrWraps {
        /// First user address.
        vaddr: u64,
        /// Size of the range.
        size: u64,
    },
    /// Neither reading nor writing nor a new user address is asked for, or both kinds at once.
    MapFlags {
        /// Flags in the request.
        asked: u32,
    },
    /// An address or a size is not a multiple of the smallest page size.
    Misaligned {
        /// The address or the size.
        value: u64,
        /// The smallest page size.
        page: u64,
    },
    /// A bitmap is asked for while unmapping everything or invalidating user addresses.
    UnmapFlags {
        /// Flags in the request.
        asked: u32,
    },
    /// Everything is to be unmapped, but a range is given.
    AllWithRange {
        /// First device address in the request.
        iova: u64,
        /// Size in the request.
        size: u64,
    },
    /// None or more than one of start, stop and get is asked for.
    DirtyFlags {
        /// Flags in the request.
        asked: u32,
    },
    /// The user's bitmap is not in user memory.
    BitmapPointer {
        /// User address of the bitmap.
        data: u64,
        /// Size of the bitmap.
        size: u64,
    },
    /// The page size of a bitmap is not a power of two.
    BitmapPageSize {
        /// The page size in the request.
        asked: u64,
    },
    /// The page size of a bitmap is not the smallest of the container.
    BitmapPageSizeDiffers {
        /// The page size in the request.
        asked: u64,
        /// The only one allowed.
        page: u64,
    },
    /// The range of a bitmap is smaller than a page.
    BitmapCoversNothing {
        /// Size of the range.
        range: u64,
        /// The page size of the bitmap.
        page: u64,
    },
    /// A bitmap is too small for its range, or larger than any may be.
    BitmapSize {
        /// Size of the bitmap.
        asked: u64,
        /// Smallest size that would do.
        needed: u64,
    },
    /// A bitmap is asked for while dirty tracking is off.
    TrackingOff,
    /// The container is of type1 v1.
    V1Container,
    /// The number of pages to pin is not positive.
    PageCount {
        /// The number of pages asked for.
        asked: i32,
    },
}

impl Refusal {
    /// Returns what the C driver answers in this case.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::IovaWraps { .. } | Self::VaddrWraps { .. } => Errno::Overflow,
            Self::V1Container => Errno::Acces,
            Self::Argsz { .. }
            | Self::UnknownFlags { .. }
            | Self::EmptyRange { .. }
            | Self::MapFlags { .. }
            | Self::Misaligned { .. }
            | Self::UnmapFlags { .. }
            | Self::AllWithRange { .. }
            | Self::DirtyFlags { .. }
            | Self::BitmapPointer { .. }
            | Self::BitmapPageSize { .. }
            | Self::BitmapPageSizeDiffers { .. }
            | Self::BitmapCoversNothing { .. }
            | Self::BitmapSize { .. }
            | Self::TrackingOff
            | Self::PageCount { .. } => Errno::Inval,
        }
    }
}

/// Writes one sentence: what was asked for and what is allowed.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Argsz { asked, needed } => {
                write!(f, "argsz is {asked}, at least {needed} is needed")
            }
            Self::UnknownFlags { asked, allowed } => {
                write!(f, "flags are {asked:#x}, only {allowed:#x} are known")
            }
            Self::EmptyRange { iova } => {
                write!(
                    f,
                    "the range at IOVA {iova:#x} has size 0, at least a page is needed"
                )
            }
            Self::IovaWraps { iova, size } => write!(
                f,
                "{size:#x} bytes at IOVA {iova:#x} end beyond the last 64-bit address"
            ),
            Self::VaddrWraps { vaddr, size } => write!(
                f,
                "{size:#x} bytes at user address {vaddr:#x} end beyond the last 64-bit address"
            ),
            Self::MapFlags { asked } => write!(
                f,
                "flags are {asked:#x}, either READ and/or WRITE (0x3) or VADDR (0x4) is allowed"
            ),
            Self::Misaligned { value, page } => {
                write!(f, "{value:#x} is not a multiple of the page size {page:#x}")
            }
            Self::UnmapFlags { asked } => write!(
                f,
                "flags are {asked:#x}, GET_DIRTY_BITMAP (0x1) goes with neither ALL nor VADDR"
            ),
            Self::AllWithRange { iova, size } => write!(
                f,
                "{size:#x} bytes at IOVA {iova:#x} are asked for, ALL needs both to be 0"
            ),
            Self::DirtyFlags { asked } => write!(
                f,
                "flags are {asked:#x}, exactly one of START (0x1), STOP (0x2), GET_BITMAP (0x4), \
                 GET_BITMAP_NOCLEAR (0x8) and CLEAR_BITMAP (0x10) is allowed"
            ),
            Self::BitmapPointer { data, size } => write!(
                f,
                "the bitmap of {size:#x} bytes at {data:#x} is outside user memory"
            ),
            Self::BitmapPageSize { asked } => write!(
                f,
                "the page size of the bitmap is {asked:#x}, a power of two is needed"
            ),
            Self::BitmapPageSizeDiffers { asked, page } => write!(
                f,
                "the page size of the bitmap is {asked:#x}, only {page:#x} is allowed"
            ),
            Self::BitmapCoversNothing { range, page } => write!(
                f,
                "the bitmap is for {range:#x} bytes, at least a page of {page:#x} is needed"
            ),
            Self::BitmapSize { asked, needed } => write!(
                f,
                "the bitmap has {asked:#x} bytes, from {needed:#x} to {BITMAP_BYTES_MAX:#x} are \
                 allowed"
            ),
            Self::TrackingOff => {
                f.write_str("a dirty bitmap is asked for, tracking must be started first")
            }
            Self::V1Container => {
                f.write_str("the container is type1 v1, only type1 v2 has this operation")
            }
            Self::PageCount { asked } => {
                write!(f, "{asked} pages are to be pinned, at least 1 is needed")
            }
        }
    }
}
