// SPDX-License-Identifier: GPL-2.0

//! Arguments of the calls that emulated devices make.

use crate::{
    check::iova_range,
    Refusal, //
};
use iova_space::IovaRange;

/// Returns the device addresses of `npage` pages of `page_size` bytes from `iova`.
///
/// `EINVAL` unless at least one page is asked for, `EOVERFLOW` if the range wraps.
///
/// C counterpart: the checks of `vfio_iommu_type1_pin_pages()`.
pub fn page_range_args(iova: u64, npage: i32, page_size: u64) -> Result<IovaRange, Refusal> {
    let pages = match u64::try_from(npage) {
        Ok(pages) if pages != 0 => pages,
        _ => return Err(Refusal::PageCount { asked: npage }),
    };
    let size = pages.checked_mul(page_size).ok_or(Refusal::IovaWraps {
        iova,
        size: u64::MAX,
    })?;
    iova_range(iova, size)
}
