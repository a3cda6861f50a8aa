// SPDX-License-Identifier: GPL-2.0

//! Layouts and numbers against an independent translation of the UAPI header.

use core::mem::{
    offset_of,
    size_of, //
};
use iova_space::IovaRange;
use vfio_bindings::bindings::vfio::*;
use vfio_uapi::*;

/// Bytes of a structure, with fields put where the C compiler has them.
struct Raw<const N: usize>([u8; N]);

impl<const N: usize> Raw<N> {
    fn new() -> Self {
        // Whatever is not put must not matter.
        Self([0xa5; N])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes(bytes[offset..offset + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

#[test]
fn numbers() {
    assert_eq!(ioctl::TYPE, u32::from(VFIO_TYPE));
    assert_eq!(ioctl::BASE, VFIO_BASE);
    assert_eq!(extension::TYPE1, VFIO_TYPE1_IOMMU.into());
    assert_eq!(extension::TYPE1V2, VFIO_TYPE1v2_IOMMU.into());
    assert_eq!(extension::DMA_CC, VFIO_DMA_CC_IOMMU.into());
    assert_eq!(extension::UNMAP_ALL, VFIO_UNMAP_ALL.into());
    assert_eq!(extension::UPDATE_VADDR, VFIO_UPDATE_VADDR.into());
    assert_eq!(info_flag::PGSIZES, VFIO_IOMMU_INFO_PGSIZES);
    assert_eq!(info_flag::CAPS, VFIO_IOMMU_INFO_CAPS);
    assert_eq!(map_flag::READ, VFIO_DMA_MAP_FLAG_READ);
    assert_eq!(map_flag::WRITE, VFIO_DMA_MAP_FLAG_WRITE);
    assert_eq!(map_flag::VADDR, VFIO_DMA_MAP_FLAG_VADDR);
    assert_eq!(
        unmap_flag::GET_DIRTY_BITMAP,
        VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
    );
    assert_eq!(unmap_flag::ALL, VFIO_DMA_UNMAP_FLAG_ALL);
    assert_eq!(unmap_flag::VADDR, VFIO_DMA_UNMAP_FLAG_VADDR);
    assert_eq!(dirty_flag::START, VFIO_IOMMU_DIRTY_PAGES_FLAG_START);
    assert_eq!(dirty_flag::STOP, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP);
    assert_eq!(
        dirty_flag::GET_BITMAP,
        VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
    );
}

#[test]
fn sizes() {
    assert_eq!(MapRequest::SIZE, size_of::<vfio_iommu_type1_dma_map>());
    assert_eq!(UnmapHeader::SIZE, size_of::<vfio_iommu_type1_dma_unmap>());
    assert_eq!(BitmapArg::SIZE, size_of::<vfio_bitmap>());
    assert_eq!(DirtyOp::SIZE, size_of::<vfio_iommu_type1_dirty_bitmap>());
    assert_eq!(
        DirtyRange::SIZE,
        size_of::<vfio_iommu_type1_dirty_bitmap_get>()
    );
    assert_eq!(InfoHeader::SIZE, size_of::<vfio_iommu_type1_info>());
    assert_eq!(
        InfoHeader::MIN,
        offset_of!(vfio_iommu_type1_info, cap_offset)
    );
}

#[test]
fn map() {
    type C = vfio_iommu_type1_dma_map;
    let raw = Raw::new()
        .u32(offset_of!(C, argsz), 32)
        .u32(offset_of!(C, flags), VFIO_DMA_MAP_FLAG_WRITE)
        .u64(offset_of!(C, vaddr), 0x7f00_1234_5000)
        .u64(offset_of!(C, iova), 0x1_0000_0000)
        .u64(offset_of!(C, size), 0x3000);
    assert_eq!(
        MapRequest::decode(&raw.0),
        Ok(MapRequest::Map {
            iova: IovaRange::new(0x1_0000_0000, 0x1_0000_2fff).expect("sorted"),
            vaddr: 0x7f00_1234_5000,
            prot: Prot {
                read: false,
                write: true
            },
        })
    );
}

#[test]
fn unmap() {
    type C = vfio_iommu_type1_dma_unmap;
    let raw = Raw::new()
        .u32(offset_of!(C, argsz), 48)
        .u32(offset_of!(C, flags), VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP)
        .u64(offset_of!(C, iova), 0x1_0000_0000)
        .u64(offset_of!(C, size), 0x3000);
    let header = UnmapHeader::decode(&raw.0).expect("well formed");
    assert!(header.wants_bitmap() && !header.all() && !header.invalidates_vaddr());
    assert_eq!(header.size(), 0x3000);
    let back = raw.u64(offset_of!(C, size), 0x2000);
    assert_eq!(header.encode(0x2000), back.0);
}

#[test]
fn bitmap() {
    type C = vfio_bitmap;
    let raw = Raw::new()
        .u64(offset_of!(C, pgsize), 0x1000)
        .u64(offset_of!(C, size), 8)
        .u64(offset_of!(C, data), 0x7f00_1234_5678);
    assert_eq!(
        BitmapArg::decode(&raw.0),
        BitmapArg {
            pgsize: 0x1000,
            size: 8,
            data: 0x7f00_1234_5678
        }
    );
}

#[test]
fn dirty() {
    type C = vfio_iommu_type1_dirty_bitmap;
    let raw = Raw::new()
        .u32(offset_of!(C, argsz), 48)
        .u32(offset_of!(C, flags), VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP);
    assert_eq!(DirtyOp::decode(&raw.0), Ok(DirtyOp::Range(RangeOp::Get)));

    type Get = vfio_iommu_type1_dirty_bitmap_get;
    let bitmap = offset_of!(Get, bitmap);
    let raw = Raw::new()
        .u64(offset_of!(Get, iova), 0x1_0000_0000)
        .u64(offset_of!(Get, size), 0x3000)
        .u64(bitmap + offset_of!(vfio_bitmap, pgsize), 0x1000)
        .u64(bitmap + offset_of!(vfio_bitmap, size), 8)
        .u64(bitmap + offset_of!(vfio_bitmap, data), 0x7f00_1234_5678);
    assert_eq!(
        DirtyRange::decode(&raw.0),
        Ok(DirtyRange {
            iova: IovaRange::new(0x1_0000_0000, 0x1_0000_2fff).expect("sorted"),
            bitmap: BitmapArg {
                pgsize: 0x1000,
                size: 8,
                data: 0x7f00_1234_5678
            },
        })
    );
}

#[test]
fn info() {
    type C = vfio_iommu_type1_info;
    let raw = Raw::new().u32(offset_of!(C, argsz), 200);
    let reply = InfoHeader::decode(&raw.0)
        .expect("long enough")
        .reply(0x4020_1000, 80);
    assert_eq!(u32_at(&reply.bytes, offset_of!(C, argsz)), 200);
    assert_eq!(u32_at(&reply.bytes, offset_of!(C, flags)), 3);
    assert_eq!(
        u64_at(&reply.bytes, offset_of!(C, iova_pgsizes)),
        0x4020_1000
    );
    assert_eq!(u32_at(&reply.bytes, offset_of!(C, cap_offset)), 24);
    assert_eq!(u32_at(&reply.bytes, offset_of!(C, pad)), 0);
}

/// Walks the chain as a user does, from `cap_offset` on, and gives id and offset of each.
fn walk(info: &[u8]) -> Vec<(u16, usize)> {
    let mut found = Vec::new();
    let mut offset = u32_at(info, offset_of!(vfio_iommu_type1_info, cap_offset));
    while offset != 0 {
        let at = offset as usize;
        assert_eq!(at % 8, 0, "capabilities are aligned");
        assert_eq!(
            u16_at(info, at + offset_of!(vfio_info_cap_header, version)),
            1
        );
        found.push((u16_at(info, at + offset_of!(vfio_info_cap_header, id)), at));
        offset = u32_at(info, at + offset_of!(vfio_info_cap_header, next));
    }
    found
}

/// The info structure and its chain, as a user with enough room sees them.
fn info_with_caps(ranges: &[IovaRange]) -> Vec<u8> {
    let len = caps_len(ranges.len()).expect("a short chain");
    let raw = Raw::new().u32(0, 24 + len);
    let reply = InfoHeader::decode(&raw.0)
        .expect("long enough")
        .reply(1 << 12, len);
    assert!(reply.copy_caps);
    let mut info = reply.head().to_vec();
    let caps = CapsInput {
        smallest_page: 0x1000,
        dma_avail: 65535,
        ranges: ranges.iter().copied(),
    };
    write_caps(&caps, |bytes| {
        info.extend_from_slice(bytes);
        Ok::<(), ()>(())
    })
    .expect("put never fails");
    assert_eq!(info.len(), 24 + len as usize);
    info
}

#[test]
fn chain_of_a_container_with_an_iommu() {
    let ranges = [
        IovaRange::new(0, 0xfedf_ffff).expect("sorted"),
        IovaRange::new(0xfef0_0000, u64::MAX).expect("sorted"),
    ];
    let info = info_with_caps(&ranges);
    let chain = walk(&info);
    let ids: Vec<_> = chain.iter().map(|&(id, _)| u32::from(id)).collect();
    assert_eq!(
        ids,
        [
            VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
        ]
    );

    type Migration = vfio_iommu_type1_info_cap_migration;
    let at = chain[0].1;
    assert_eq!(u32_at(&info, at + offset_of!(Migration, flags)), 0);
    assert_eq!(
        u64_at(&info, at + offset_of!(Migration, pgsize_bitmap)),
        0x1000
    );
    assert_eq!(
        u64_at(&info, at + offset_of!(Migration, max_dirty_bitmap_size)),
        1 << 28
    );

    type Avail = vfio_iommu_type1_info_dma_avail;
    let at = chain[1].1;
    assert_eq!(u32_at(&info, at + offset_of!(Avail, avail)), 65535);

    type Range = vfio_iommu_type1_info_cap_iova_range;
    let at = chain[2].1;
    assert_eq!(u32_at(&info, at + offset_of!(Range, nr_iovas)), 2);
    assert_eq!(u32_at(&info, at + offset_of!(Range, reserved)), 0);
    for (number, range) in ranges.iter().enumerate() {
        let entry = at + offset_of!(Range, iova_ranges) + number * size_of::<vfio_iova_range>();
        assert_eq!(
            u64_at(&info, entry + offset_of!(vfio_iova_range, start)),
            range.first()
        );
        assert_eq!(
            u64_at(&info, entry + offset_of!(vfio_iova_range, end)),
            range.last()
        );
    }
}

#[test]
fn chain_of_a_container_without_an_iommu() {
    let ids: Vec<_> = walk(&info_with_caps(&[]))
        .iter()
        .map(|&(id, _)| id)
        .collect();
    assert_eq!(ids, [capability::MIGRATION, capability::DMA_AVAIL]);
}

/// What mainline's header does not have is in ours.
#[test]
fn manual_clear() {
    let header = include_str!("../../../../Documentation/uapi/vfio_dirty_log.h");
    let define = |name: &str| {
        let value = header
            .lines()
            .filter_map(|line| line.strip_prefix("#define "))
            .filter_map(|line| line.split_once(|c: char| c.is_whitespace()))
            .find(|(defined, _)| *defined == name)
            .map(|(_, value)| value.trim().trim_matches(['(', ')']));
        let mut numbers = value.expect(name).split(" << ").map(|number| {
            let number: u32 = number.parse().expect("a number or a shift");
            number
        });
        let first = numbers.next().expect("a number");
        numbers.fold(first, |value, shift| value << shift)
    };
    let flag = |name: &str| define(&format!("VFIO_IOMMU_DIRTY_PAGES_FLAG_{name}"));
    assert_eq!(flag("GET_BITMAP_NOCLEAR"), dirty_flag::GET_BITMAP_NOCLEAR);
    assert_eq!(flag("CLEAR_BITMAP"), dirty_flag::CLEAR_BITMAP);
    assert_eq!(
        u64::from(define("VFIO_DIRTY_LOG_MANUAL_CLEAR")),
        extension::DIRTY_LOG_MANUAL_CLEAR
    );
}
