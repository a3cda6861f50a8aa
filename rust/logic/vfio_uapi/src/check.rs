// SPDX-License-Identifier: GPL-2.0

//! Checks that several requests have in common.

use crate::Refusal;
use iova_space::{
    IovaRange,
    PageSizes,
    RangeError, //
};

/// Checks that the user knows a structure of `needed` bytes.
pub(crate) fn check_argsz(asked: u32, needed: usize) -> Result<(), Refusal> {
    // The sizes of the structures are two digits long.
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    if asked < needed {
        return Err(Refusal::Argsz { asked, needed });
    }
    Ok(())
}

/// Checks that all flags are `allowed`.
pub(crate) fn check_flags(asked: u32, allowed: u32) -> Result<(), Refusal> {
    if asked & !allowed != 0 {
        return Err(Refusal::UnknownFlags { asked, allowed });
    }
    Ok(())
}

/// Checks that an address or a size is a multiple of the smallest page size.
pub(crate) fn check_aligned(value: u64, sizes: PageSizes) -> Result<(), Refusal> {
    if !sizes.aligned(value) {
        return Err(Refusal::Misaligned {
            value,
            page: sizes.smallest(),
        });
    }
    Ok(())
}

/// Makes a range of an address and a size in a request.
pub(crate) fn iova_range(iova: u64, size: u64) -> Result<IovaRange, Refusal> {
    IovaRange::from_len(iova, size).map_err(|error| match error {
        RangeError::Empty => Refusal::EmptyRange { iova },
        RangeError::Wraps => Refusal::IovaWraps { iova, size },
    })
}
