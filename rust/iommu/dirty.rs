// SPDX-License-Identifier: GPL-2.0

//! What the IOMMU recorded about writes of devices.

use crate::{
    domain::Gather,
    AddressSpace,
    Domain,
    Mapped, //
};
use iova_space::IovaRange;
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Bytes that are read at a time: a quarter of a million page table entries at most.
const CHUNK: u64 = 1 << 30;

/// What happens to dirty bits that are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// They are cleared, so that the next write is found again.
    Clear,
    /// They stay.
    Keep,
}

/// Reads the dirty bits of one domain; see [`AddressSpace::read_dirty`].
pub struct DirtyReader<'a, 'b> {
    space: &'a AddressSpace,
    gather: &'a mut Gather<'b>,
    reading: Reading,
}

impl AddressSpace {
    /// Calls `each` with a reader of every domain that tracks dirty pages and that `of` picks.
    ///
    /// Before it returns, also with an error, the IOTLB forgets entries that were dirty: a write
    /// from then on is recorded again.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn read_dirty<E>(
        &self,
        of: impl Fn(&Domain) -> bool,
        reading: Reading,
        mut each: impl FnMut(&mut DirtyReader<'_, '_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.domains()
            .filter(|domain| domain.can_track() && of(domain))
            .try_for_each(|domain| {
                Gather::scope(domain, |gather| {
                    each(&mut DirtyReader {
                        space: self,
                        gather,
                        reading,
                    })
                })
            })
    }
}

impl DirtyReader<'_, '_> {
    /// Calls `found`, which must not sleep, for every dirty entry that has an address in the part
    /// of `range` the token covers.
    ///
    /// An entry is found as a whole, also what of it is outside of `range`.
    ///
    /// # Errors
    ///
    /// `EINTR` if the task is killed, `EINVAL` for a token of another space, and what the IOMMU
    /// driver says. What was found before counts: it may have been cleared.
    ///
    /// # Context
    ///
    /// May sleep. No entry of the token is changed meanwhile by anyone but devices, as that needs
    /// the token.
    pub fn read(
        &mut self,
        mapped: &Mapped,
        range: IovaRange,
        found: &mut dyn FnMut(IovaRange),
    ) -> Result {
        self.space.check(mapped)?;
        let mut rest = mapped.range().and_then(|mapped| mapped.intersect(range));
        while let Some(range) = rest {
            let last = range.last().min(range.first() | (CHUNK - 1));
            let chunk = IovaRange::new(range.first(), last).unwrap_or(range);
            self.read_chunk(chunk, found)?;
            rest = range.behind(chunk);
            mm::cond_resched();
            if mm::fatal_signal_pending() {
                return Err(EINTR);
            }
        }
        Ok(())
    }

    fn read_chunk(&mut self, range: IovaRange, found: &mut dyn FnMut(IovaRange)) -> Result {
        let domain = self.gather.domain();
        let read = domain
            .dirty_ops()
            .and_then(|ops| ops.read_and_clear_dirty)
            .ok_or(EOPNOTSUPP)?;
        let size = range.size().ok_or(EOVERFLOW)?;
        let (flags, gather) = match self.reading {
            Reading::Clear => (0, self.gather.note()),
            Reading::Keep => (bindings::IOMMU_DIRTY_NO_CLEAR, core::ptr::null_mut()),
        };
        let mut recorder = Recorder {
            dirty: bindings::iommu_dirty_bitmap {
                bitmap: core::ptr::null_mut(),
                gather,
                record: Some(record),
            },
            found,
        };
        // SAFETY: The domain is valid, and the function is its driver's. The entries of the range
        // belong to a token that is borrowed, so that nobody takes out page tables below them.
        // `recorder` is what `record` needs; it and the gather live until the function returns,
        // and drivers use the gather only when they clear.
        to_result(unsafe {
            read(
                domain.as_raw(),
                range.first() as c_ulong,
                size as usize,
                flags as c_ulong,
                (&raw mut recorder).cast(),
            )
        })
    }
}

/// Takes what an IOMMU driver finds.
///
/// The C part comes first, so that a pointer to it is one to the whole.
#[repr(C)]
struct Recorder<'a> {
    dirty: bindings::iommu_dirty_bitmap,
    found: &'a mut dyn FnMut(IovaRange),
}

/// # Safety
///
/// `dirty` points to a valid [`Recorder`] that nobody else uses meanwhile.
unsafe extern "C" fn record(
    dirty: *mut bindings::iommu_dirty_bitmap,
    iova: c_ulong,
    length: c_ulong,
) {
    // SAFETY: By the requirements of this function.
    let recorder = unsafe { &mut *dirty.cast::<Recorder<'_>>() };
    if let Ok(range) = IovaRange::from_len(iova as u64, length as u64) {
        (recorder.found)(range);
    }
}
