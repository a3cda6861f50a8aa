// SPDX-License-Identifier: GPL-2.0

//! `VFIO_IOMMU_MAP_DMA`.

use crate::{
    check::{
        check_aligned,
        check_argsz,
        check_flags,
        iova_range, //
    },
    map_flag,
    Refusal, //
};
use iova_space::{
    IovaRange,
    PageSizes, //
};

/// What a device may do with a mapping.
///
/// Not both `false` in a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Prot {
    /// The device may read the memory.
    pub read: bool,
    /// The device may write the memory.
    pub write: bool,
}

/// A request to map memory, `struct vfio_iommu_type1_dma_map`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapRequest {
    /// Map user memory for the devices.
    Map {
        /// Where the devices will see it.
        iova: IovaRange,
        /// The user address of the first byte.
        vaddr: u64,
        /// What the devices may do.
        prot: Prot,
    },
    /// Give an existing mapping with an invalidated user address a new one.
    SetVaddr {
        /// The mapping, exactly.
        iova: IovaRange,
        /// The user address of the first byte.
        vaddr: u64,
    },
}

impl MapRequest {
    /// Size of the argument in bytes.
    pub const SIZE: usize = 32;

    /// Decodes the argument, with all checks that do not depend on the container.
    ///
    /// `EINVAL` for a short `argsz` or an unknown flag, then for an empty range; `EOVERFLOW` if the
    /// device or the user addresses wrap; `EINVAL` for a combination of flags without a meaning.
    pub fn decode(raw: &[u8; Self::SIZE]) -> Result<Self, Refusal> {
        unpack!(*raw => argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64);

        check_argsz(argsz, Self::SIZE)?;
        check_flags(flags, map_flag::ALLOWED)?;

        let iova = iova_range(iova, size)?;
        if vaddr.checked_add(size.wrapping_sub(1)).is_none() {
            return Err(Refusal::VaddrWraps { vaddr, size });
        }

        let prot = Prot {
            read: flags & map_flag::READ != 0,
            write: flags & map_flag::WRITE != 0,
        };
        match (prot.read || prot.write, flags & map_flag::VADDR != 0) {
            (true, false) => Ok(Self::Map { iova, vaddr, prot }),
            (false, true) => Ok(Self::SetVaddr { iova, vaddr }),
            (true, true) | (false, false) => Err(Refusal::MapFlags { asked: flags }),
        }
    }

    /// Checks, under the container's lock, that addresses and size are multiples of the page size.
    pub fn check_alignment(&self, sizes: PageSizes) -> Result<(), Refusal> {
        // All 2^64 bytes are a multiple of any page size.
        let size = self.iova().size().unwrap_or(0);
        check_aligned(size, sizes)?;
        check_aligned(self.iova().first(), sizes)?;
        check_aligned(self.vaddr(), sizes)
    }

    /// Returns the device addresses.
    pub fn iova(&self) -> IovaRange {
        match *self {
            Self::Map { iova, .. } | Self::SetVaddr { iova, .. } => iova,
        }
    }

    /// Returns the user address of the first byte.
    pub fn vaddr(&self) -> u64 {
        match *self {
            Self::Map { vaddr, .. } | Self::SetVaddr { vaddr, .. } => vaddr,
        }
    }
}
