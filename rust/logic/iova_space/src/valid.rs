// SPDX-License-Identifier: GPL-2.0

//! Apertures with holes.

use crate::IovaRange;

/// Calls `emit` with every part of `aperture` outside all `holes`, in ascending order.
///
/// The parts are disjoint and as large as possible. `holes` may come in any order, may overlap each
/// other and may reach beyond the aperture. Nothing is allocated, instead `holes` is walked again
/// for each hole that counts: reserved regions are few.
///
/// Stops at the first error of `emit` and returns it.
///
/// C counterparts: `vfio_iommu_aper_resize()` and `vfio_iommu_resv_exclude()`.
pub fn valid_ranges<E>(
    aperture: IovaRange,
    holes: impl Iterator<Item = IovaRange> + Clone,
    mut emit: impl FnMut(IovaRange) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = Some(aperture);
    while let Some(todo) = rest {
        let at = todo.first();
        let done_up_to = match holes.clone().find(|hole| hole.contains_addr(at)) {
            Some(hole) => hole.last(),
            None => {
                // No hole begins at `at`, hence there is an address before each of these.
                let before_next = holes
                    .clone()
                    .filter(|hole| hole.first() > at)
                    .filter_map(|hole| hole.first().checked_sub(1))
                    .min();
                let last = before_next.map_or(todo.last(), |last| last.min(todo.last()));
                if let Some(valid) = IovaRange::new(at, last) {
                    emit(valid)?;
                }
                last
            }
        };
        rest = done_up_to
            .checked_add(1)
            .and_then(|next| IovaRange::new(next, todo.last()));
    }
    Ok(())
}
