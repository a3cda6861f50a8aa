// SPDX-License-Identifier: GPL-2.0

//! The errno values that decisions made in the logic crates can lead to.

/// An errno, named and not numbered: numbers differ between architectures.
///
/// Only what the logic crates and the driver's own rules can answer is listed. Errors that come
/// from the memory manager or the IOMMU pass through the driver unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Errno {
    /// `EINVAL`: the request makes no sense, or not in this state.
    Inval,
    /// `EOVERFLOW`: a range ends beyond the last 64-bit address.
    Overflow,
    /// `EEXIST`: the range overlaps a mapping.
    Exist,
    /// `ENOENT`: there is no mapping in the range.
    NoEnt,
    /// `ENOSPC`: the container has no mapping left to give.
    NoSpc,
    /// `EBUSY`: some mapping has no valid user address at present.
    Busy,
    /// `EPERM`: the mapping does not allow the access.
    Perm,
    /// `EACCES`: the operation exists for type1 v2 containers only.
    Acces,
    /// `EFAULT`: user memory is not accessible.
    Fault,
}
