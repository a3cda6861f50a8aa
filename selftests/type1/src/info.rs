// SPDX-License-Identifier: GPL-2.0

//! GET_INFO and its chain of capabilities.

use std::mem::{
    offset_of,
    size_of, //
};

use vfio_bindings::bindings::vfio;

use crate::check::{
    expect,
    expect_eq,
    Verdict, //
};
use crate::vfio::{
    argsz,
    Container, //
};

/// Bytes of the fixed part.
pub(crate) const FIXED: u32 = argsz::<vfio::vfio_iommu_type1_info>();

/// A buffer for GET_INFO, filled with a pattern behind its size field.
#[derive(Debug, Clone)]
pub(crate) struct Raw(Vec<u64>);

/// What the kernel has not written still has this value.
pub(crate) const UNTOUCHED: u8 = 0xa5;

/// A capability as it lies in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) offset: u32,
    pub(crate) id: u32,
    pub(crate) version: u32,
    pub(crate) next: u32,
}

/// The whole answer, decoded.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) flags: u32,
    pub(crate) argsz: u32,
    pub(crate) pgsizes: u64,
    pub(crate) chain: Vec<Header>,
    /// First and last byte of each usable range.
    pub(crate) iova: Vec<(u64, u64)>,
    pub(crate) dma_avail: u32,
    pub(crate) migration: Migration,
}

/// The migration capability.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Migration {
    pub(crate) flags: u32,
    pub(crate) pgsizes: u64,
    pub(crate) max_bitmap: u64,
}

impl Raw {
    /// A buffer that tells the kernel it has `argsz` bytes, and has a few more.
    pub(crate) fn new(argsz: u32) -> Self {
        let words = (argsz as usize).max(FIXED as usize).div_ceil(8) + 8;
        let mut raw = Raw(vec![u64::from_ne_bytes([UNTOUCHED; 8]); words]);
        raw.0[0] = raw.0[0] & !0xffff_ffff | u64::from(argsz);
        raw
    }

    pub(crate) fn words(&mut self) -> &mut [u64] {
        &mut self.0
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[(at + i) / 8].to_ne_bytes()[(at + i) % 8])
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.bytes(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(at))
    }

    pub(crate) fn argsz(&self) -> u32 {
        self.u32(offset_of!(vfio::vfio_iommu_type1_info, argsz))
    }

    pub(crate) fn flags(&self) -> u32 {
        self.u32(offset_of!(vfio::vfio_iommu_type1_info, flags))
    }

    pub(crate) fn pgsizes(&self) -> u64 {
        self.u64(offset_of!(vfio::vfio_iommu_type1_info, iova_pgsizes))
    }

    pub(crate) fn cap_offset(&self) -> u32 {
        self.u32(offset_of!(vfio::vfio_iommu_type1_info, cap_offset))
    }

    /// Offset of the first byte at or behind `from` that the kernel has written.
    pub(crate) fn touched_behind(&self, from: u32) -> Option<usize> {
        let len = self.0.len() * size_of::<u64>();
        (from as usize..len).find(|&at| self.bytes::<1>(at) != [UNTOUCHED])
    }
}

impl Info {
    /// Asks for the size, then for everything.
    #[track_caller]
    pub(crate) fn read(container: &Container) -> Verdict<Self> {
        let mut probe = Raw::new(FIXED);
        container.get_info(probe.words())?;
        let mut raw = Raw::new(probe.argsz());
        container.get_info(raw.words())?;
        Info::decode(&raw)
    }

    #[track_caller]
    pub(crate) fn decode(raw: &Raw) -> Verdict<Self> {
        type IovaCap = vfio::vfio_iommu_type1_info_cap_iova_range;
        type MigrationCap = vfio::vfio_iommu_type1_info_cap_migration;
        type AvailCap = vfio::vfio_iommu_type1_info_dma_avail;

        let mut info = Info {
            flags: raw.flags(),
            argsz: raw.argsz(),
            pgsizes: raw.pgsizes(),
            chain: Vec::new(),
            iova: Vec::new(),
            dma_avail: 0,
            migration: Migration::default(),
        };

        let mut offset = raw.cap_offset();
        while offset != 0 {
            let behind = info
                .chain
                .last()
                .map_or(FIXED, |cap: &Header| cap.offset + 8);
            expect(
                format_args!("capability at {offset:#x} lies behind the last and in the buffer"),
                offset >= behind && offset + 8 <= info.argsz,
            )?;
            expect_eq(
                format_args!("alignment of capability at {offset:#x}"),
                offset % 8,
                0,
            )?;

            let at = offset as usize;
            let header = Header {
                offset,
                id: u32::from(raw.u16(at)),
                version: u32::from(raw.u16(at + 2)),
                next: raw.u32(at + 4),
            };
            match header.id {
                vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let count = raw.u32(at + offset_of!(IovaCap, nr_iovas)) as usize;
                    let ranges = at + offset_of!(IovaCap, iova_ranges);
                    expect_eq("reserved", raw.u32(at + offset_of!(IovaCap, reserved)), 0)?;
                    expect(
                        format_args!("{count} IOVA ranges lie in the buffer"),
                        ranges + 16 * count <= info.argsz as usize,
                    )?;
                    info.iova = (0..count)
                        .map(|i| (raw.u64(ranges + 16 * i), raw.u64(ranges + 16 * i + 8)))
                        .collect();
                }
                vfio::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION => {
                    info.migration = Migration {
                        flags: raw.u32(at + offset_of!(MigrationCap, flags)),
                        pgsizes: raw.u64(at + offset_of!(MigrationCap, pgsize_bitmap)),
                        max_bitmap: raw.u64(at + offset_of!(MigrationCap, max_dirty_bitmap_size)),
                    };
                    let padding = raw.u32(at + offset_of!(MigrationCap, flags) + 4);
                    expect_eq("padding of the migration capability", padding, 0)?;
                }
                vfio::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                    info.dma_avail = raw.u32(at + offset_of!(AvailCap, avail));
                }
                _ => {}
            }
            info.chain.push(header);
            offset = header.next;
        }
        Ok(info)
    }
}
