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
pub const FIXED: u32 = argsz::<vfio::vfio_iommu_type1_info>();

/// A buffer for GET_INFO, filled with a pattern behind its size field.
#[derive(Debug, Clone)]
pub struct Raw(Vec<u64>);

/// What the kernel has not written still has this value.
pub const UNTOUCHED: u8 = 0xa5;

/// A capability as it lies in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where it begins.
    pub offset: u32,
    /// What it is.
    pub id: u32,
    /// Version of its layout.
    pub version: u32,
    /// Where the next one begins, 0 if there is none.
    pub next: u32,
}

/// The whole answer, decoded.
#[derive(Debug)]
pub struct Info {
    /// `VFIO_IOMMU_INFO_*`
    pub flags: u32,
    /// The size the answer has, or would have.
    pub argsz: u32,
    /// Bitmap of the page sizes that can be mapped.
    pub pgsizes: u64,
    /// The capabilities, in their order.
    pub chain: Vec<Header>,
    /// First and last byte of each usable range.
    pub iova: Vec<(u64, u64)>,
    /// How many more mappings can be made.
    pub dma_avail: u32,
    /// What the migration capability says.
    pub migration: Migration,
}

/// The migration capability.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// None are defined.
    pub flags: u32,
    /// Bitmap of the page sizes that can be tracked.
    pub pgsizes: u64,
    /// Largest size of a bitmap, in bytes.
    pub max_bitmap: u64,
}

impl Raw {
    /// A buffer that tells the kernel it has `argsz` bytes, and has a few more.
    pub fn new(argsz: u32) -> Self {
        let words = (argsz as usize).max(FIXED as usize).div_ceil(8) + 8;
        let mut raw = Raw(vec![u64::from_ne_bytes([UNTOUCHED; 8]); words]);
        raw.0[0] = raw.0[0] & !0xffff_ffff | u64::from(argsz);
        raw
    }

    /// A buffer that GET_INFO has filled.
    pub fn from_words(words: &[u64]) -> Self {
        Raw(words.to_vec())
    }

    /// The buffer, as GET_INFO takes it.
    pub fn words(&mut self) -> &mut [u64] {
        &mut self.0
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[(at + i) / 8].to_ne_bytes()[(at + i) % 8])
    }

    /// Two bytes at an offset.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.bytes(at))
    }

    /// Four bytes at an offset.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    /// Eight bytes at an offset.
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(at))
    }

    /// The size field.
    pub fn argsz(&self) -> u32 {
        self.u32(offset_of!(vfio::vfio_iommu_type1_info, argsz))
    }

    /// The flags field.
    pub fn flags(&self) -> u32 {
        self.u32(offset_of!(vfio::vfio_iommu_type1_info, flags))
    }

    /// The bitmap of page sizes.
    pub fn pgsizes(&self) -> u64 {
        self.u64(offset_of!(vfio::vfio_iommu_type1_info, iova_pgsizes))
    }

    /// Where the first capability begins, 0 if there is none.
    pub fn cap_offset(&self) -> u32 {
        self.u32(offset_of!(vfio::vfio_iommu_type1_info, cap_offset))
    }

    /// Offset of the first byte at or behind `from` that the kernel has written.
    pub fn touched_behind(&self, from: u32) -> Option<usize> {
        let len = self.0.len() * size_of::<u64>();
        (from as usize..len).find(|&at| self.bytes::<1>(at) != [UNTOUCHED])
    }
}

impl Info {
    /// Asks for the size, then for everything.
    #[track_caller]
    pub fn read(container: &Container) -> Verdict<Self> {
        let mut probe = Raw::new(FIXED);
        container.get_info(probe.words())?;
        let mut raw = Raw::new(probe.argsz());
        container.get_info(raw.words())?;
        Info::decode(&raw)
    }

    #[track_caller]
    /// Decodes an answer that has all its capabilities.
    pub fn decode(raw: &Raw) -> Verdict<Self> {
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
