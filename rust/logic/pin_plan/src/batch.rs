// SPDX-License-Identifier: GPL-2.0

//! Batches of pages.

/// Returns how many pages the next call to the memory manager should ask for.
///
/// `remaining` pages are still to be pinned, `capacity` is the room for page pointers. With
/// `single`, the driver's `disable_hugepages`, pages are pinned one by one. 0 if nothing remains or
/// there is no room.
pub fn next_batch(remaining: u64, capacity: u64, single: bool) -> u64 {
    let most = if single { 1 } else { u64::MAX };
    remaining.min(capacity).min(most)
}

/// Returns how many PFNs from the first one on follow each other.
///
/// At least 1, unless `pfns` is empty.
pub fn contiguous_prefix(pfns: &[u64]) -> usize {
    let Some(&first) = pfns.first() else {
        return 0;
    };
    let mut expected = Some(first);
    pfns.iter()
        .take_while(|&&pfn| {
            let fits = expected == Some(pfn);
            expected = pfn.checked_add(1);
            fits
        })
        .count()
}

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
