// SPDX-License-Identifier: GPL-2.0

//! Leaves of PFN mappings.

/// Returns how many pages from `pfn` on the page-table leaf of a PFNMAP mapping covers.
///
/// `addr_mask` is the mask of the leaf in bytes as `follow_pfnmap_start()` reports it, such as
/// `!0x1f_ffff` for 2 MiB, and `page_shift` the binary logarithm of the CPU's page size. The result
/// is at most `max_pages`.
///
/// C counterpart: `vaddr_get_pfns()`.
pub fn pfnmap_run(pfn: u64, addr_mask: u64, page_shift: u32, max_pages: u64) -> u64 {
    let in_leaf = (!addr_mask).checked_shr(page_shift).unwrap_or(0);
    let last_pfn = pfn | in_leaf;
    last_pfn
        .saturating_sub(pfn)
        .saturating_add(1)
        .min(max_pages)
}
