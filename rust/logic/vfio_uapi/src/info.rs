// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_GET_INFO` and its chain of capabilities.

use crate::{
    capability,
    check::check_argsz,
    info_flag,
    Refusal,
    BITMAP_BYTES_MAX, //
};
use iova_space::IovaRange;

/// Size of `struct vfio_iommu_type1_info` in bytes, where the capabilities begin.
const INFO_LEN: u32 = 24;
/// Size of `struct vfio_iommu_type1_info_cap_migration`.
const MIGRATION_LEN: u32 = 32;
/// Size of `struct vfio_iommu_type1_info_dma_avail`, rounded up to the alignment of capabilities.
const DMA_AVAIL_LEN: u32 = 16;
/// Size of `struct vfio_iommu_type1_info_cap_iova_range` without its ranges.
const IOVA_RANGE_LEN: u32 = 16;
/// Size of `struct vfio_iova_range`.
const RANGE_LEN: u32 = 16;

/// Where the second and the third capability begin, from the start of the info structure.
const DMA_AVAIL_OFFSET: u32 = INFO_LEN + MIGRATION_LEN;
const IOVA_RANGE_OFFSET: u32 = DMA_AVAIL_OFFSET + DMA_AVAIL_LEN;

/// The version of all capabilities.
const VERSION: u16 = 1;

/// The first part of `struct vfio_iommu_type1_info`, as far as user space fills it in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InfoHeader {
    argsz: u32,
}

impl InfoHeader {
    /// Size of the part that every user has, in bytes.
    pub const MIN: usize = 16;
    /// Size of the whole structure, in bytes.
    pub const SIZE: usize = INFO_LEN as usize;

    /// Decodes the part that every user has. `EINVAL` for an `argsz` below [`InfoHeader::MIN`].
    pub fn decode(raw: &[u8; Self::MIN]) -> Result<Self, Refusal> {
        // The other fields are for the answer only.
        unpack!(*raw => argsz: u32, _flags: u32, _pgsizes: u64);
        check_argsz(argsz, Self::MIN)?;
        Ok(Self { argsz })
    }

    /// Returns the number of bytes that the user has room for.
    pub fn argsz(&self) -> u32 {
        self.argsz
    }

    /// Returns the answer, given the bitmap of page sizes and a chain of `caps_len` bytes.
    ///
    /// Without room for the chain it is not copied; `argsz` then tells how much room is needed, and
    /// there is no error.
    pub fn reply(&self, pgsizes: u64, caps_len: u32) -> InfoReply {
        let mut argsz = self.argsz;
        let mut flags = info_flag::PGSIZES;
        let mut cap_offset = 0;
        if caps_len != 0 {
            flags |= info_flag::CAPS;
            match INFO_LEN.checked_add(caps_len) {
                Some(needed) if needed <= argsz => cap_offset = INFO_LEN,
                needed => argsz = needed.unwrap_or(u32::MAX),
            }
        }
        let pad = 0;
        InfoReply {
            bytes: pack!(argsz: u32, flags: u32, pgsizes: u64, cap_offset: u32, pad: u32),
            len: usize::try_from(self.argsz).map_or(Self::SIZE, |argsz| argsz.min(Self::SIZE)),
            copy_caps: cap_offset != 0,
        }
    }
}

/// The answer to `VFIO_IOMMU_GET_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InfoReply {
    /// `struct vfio_iommu_type1_info`.
    pub bytes: [u8; InfoHeader::SIZE],
    /// How many of `bytes` the user has room for.
    pub len: usize,
    /// Whether the chain of capabilities goes right behind `bytes`.
    pub copy_caps: bool,
}

impl InfoReply {
    /// Returns the part of the structure that the user has room for.
    pub fn head(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// What the capabilities tell.
#[derive(Clone, Copy, Debug)]
pub struct CapsInput<I> {
    /// The smallest page size in bytes, the only one that dirty tracking offers.
    pub smallest_page: u64,
    /// How many more mappings the container can have.
    pub dma_avail: u32,
    /// The device addresses that can be mapped, ascending. None in a container without an IOMMU.
    pub ranges: I,
}

/// Returns the size in bytes of a chain that lists `ranges` valid ranges.
///
/// [`None`] if user space could not express it together with the info structure.
pub fn caps_len(ranges: usize) -> Option<u32> {
    let fixed = MIGRATION_LEN.checked_add(DMA_AVAIL_LEN)?;
    if ranges == 0 {
        return Some(fixed);
    }
    let len = u32::try_from(ranges)
        .ok()?
        .checked_mul(RANGE_LEN)?
        .checked_add(IOVA_RANGE_LEN)?
        .checked_add(fixed)?;
    len.checked_add(INFO_LEN).map(|_| len)
}

/// Writes the chain of capabilities through `put`, piece by piece.
///
/// The order is that of the C driver: migration, available mappings, valid ranges; the latter is
/// left out if there is none. Offsets count from the start of the info structure that precedes the
/// chain. [`caps_len`] tells the total, which a caller has to look at first: of more ranges than it
/// accepts the count would not be right.
///
/// Stops at the first error of `put` and returns it.
pub fn write_caps<E>(
    info: &CapsInput<impl Iterator<Item = IovaRange> + Clone>,
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let count = u32::try_from(info.ranges.clone().count()).unwrap_or(u32::MAX);
    let last_offset = if count == 0 { 0 } else { IOVA_RANGE_OFFSET };

    put(&migration_cap(DMA_AVAIL_OFFSET, info.smallest_page))?;
    put(&dma_avail_cap(last_offset, info.dma_avail))?;
    if count != 0 {
        put(&iova_range_cap_header(0, count))?;
        info.ranges
            .clone()
            .try_for_each(|range| put(&iova_range_entry(range)))?;
    }
    Ok(())
}

/// Encodes `struct vfio_iommu_type1_info_cap_migration`.
pub fn migration_cap(next: u32, smallest_page: u64) -> [u8; MIGRATION_LEN as usize] {
    let (id, version) = (capability::MIGRATION, VERSION);
    let (flags, pad) = (0, 0);
    let max = BITMAP_BYTES_MAX;
    pack!(
        id: u16, version: u16, next: u32,
        flags: u32, pad: u32, smallest_page: u64, max: u64
    )
}

/// Encodes `struct vfio_iommu_type1_info_dma_avail` and the padding behind it.
pub fn dma_avail_cap(next: u32, avail: u32) -> [u8; DMA_AVAIL_LEN as usize] {
    let (id, version) = (capability::DMA_AVAIL, VERSION);
    let pad = 0;
    pack!(id: u16, version: u16, next: u32, avail: u32, pad: u32)
}

/// Encodes `struct vfio_iommu_type1_info_cap_iova_range`, which `count` entries follow.
pub fn iova_range_cap_header(next: u32, count: u32) -> [u8; IOVA_RANGE_LEN as usize] {
    let (id, version) = (capability::IOVA_RANGE, VERSION);
    let reserved = 0;
    pack!(id: u16, version: u16, next: u32, count: u32, reserved: u32)
}

/// Encodes `struct vfio_iova_range`.
pub fn iova_range_entry(range: IovaRange) -> [u8; RANGE_LEN as usize] {
    let (first, last) = (range.first(), range.last());
    pack!(first: u64, last: u64)
}
