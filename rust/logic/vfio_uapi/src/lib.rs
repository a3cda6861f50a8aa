// SPDX-License-Identifier: GPL-2.0

//! The user-space interface of a VFIO type1 container, decoded and checked.
//!
//! Arguments arrive as bytes copied from user space, in native byte order, and leave as typed
//! requests or as a [`Refusal`]. The checks are in the order of the C driver, hence of several
//! mistakes in one argument the same one decides about the errno. What a check needs to know about
//! the container (page sizes, whether tracking is on) is passed in; how to find a mapping, to copy
//! from user space or to allocate is none of this crate's business.
//!
//! 32-bit hosts are out of scope: every 64-bit field fits the native word, so that the `EOVERFLOW`
//! of a truncated field does not exist here. Compat ioctls need no translation, the structures have
//! the same layout for 32-bit user space.
//!
//! C header: `include/uapi/linux/vfio.h`, C counterpart: `drivers/vfio/vfio_iommu_type1.c`.

#![cfg_attr(not(MODULE), no_std)]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

#[macro_use]
mod layout;

mod bitmap;
mod check;
mod consts;
mod dirty;
mod info;
mod map;
mod model;
mod pin;
mod refusal;
mod unmap;

pub use bitmap::{
    BitmapArg,
    BITMAP_BYTES_MAX, //
};
pub use consts::{
    capability,
    dirty_flag,
    extension,
    info_flag,
    ioctl,
    map_flag,
    unmap_flag, //
};
pub use dirty::{
    DirtyOp,
    DirtyRange,
    RangeOp, //
};
pub use info::{
    caps_len,
    dma_avail_cap,
    iova_range_cap_header,
    iova_range_entry,
    migration_cap,
    write_caps,
    CapsInput,
    InfoHeader,
    InfoReply, //
};
pub use iova_space::Errno;
pub use map::{
    MapRequest,
    Prot, //
};
pub use model::Model;
pub use pin::page_range_args;
pub use refusal::Refusal;
pub use unmap::UnmapHeader;

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(vfio_uapi))]
mod tests {
    use super::*;
    use iova_space::{
        IovaRange,
        PageSizes, //
    };

    const TOP: u64 = 0xffff_ffff_ffff_f000;

    /// The page sizes of a VT-d second stage.
    fn x86() -> PageSizes {
        PageSizes::new((1 << 12) | (1 << 21) | (1 << 30)).unwrap_or(PageSizes::cpu_page(4096))
    }

    /// A range that the test knows to be well formed.
    fn r(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first, last).unwrap_or(IovaRange::ALL)
    }

    fn map(argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64) -> Result<MapRequest, Errno> {
        MapRequest::decode(&pack!(argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64))
            .map_err(|refusal| refusal.errno())
    }

    fn unmap(argsz: u32, flags: u32, iova: u64, size: u64) -> Result<UnmapHeader, Errno> {
        UnmapHeader::decode(&pack!(argsz: u32, flags: u32, iova: u64, size: u64))
            .map_err(|refusal| refusal.errno())
    }

    fn unmap_range(flags: u32, iova: u64, size: u64) -> Result<IovaRange, Errno> {
        unmap(24, flags, iova, size)?
            .range(x86())
            .map_err(|refusal| refusal.errno())
    }

    fn dirty(argsz: u32, flags: u32) -> Result<DirtyOp, Errno> {
        DirtyOp::decode(&pack!(argsz: u32, flags: u32)).map_err(|refusal| refusal.errno())
    }

    fn bitmap(pgsize: u64, size: u64) -> BitmapArg {
        BitmapArg {
            pgsize,
            size,
            data: 0x7000_0000,
        }
    }

    fn capacity(pgsize: u64, size: u64, range: u64) -> Result<(), Errno> {
        bitmap(pgsize, size)
            .check_capacity(range)
            .map_err(|refusal| refusal.errno())
    }

    #[test]
    fn commands_are_those_of_the_header() {
        assert_eq!(ioctl::GET_API_VERSION, 0x3b64);
        assert_eq!(ioctl::CHECK_EXTENSION, 0x3b65);
        assert_eq!(ioctl::SET_IOMMU, 0x3b66);
        assert_eq!(ioctl::GET_INFO, 0x3b70);
        assert_eq!(ioctl::MAP_DMA, 0x3b71);
        assert_eq!(ioctl::UNMAP_DMA, 0x3b72);
        assert_eq!(ioctl::DIRTY_PAGES, 0x3b75);
    }

    #[test]
    fn models() {
        assert_eq!(Model::from_extension(1), Some(Model::V1));
        assert_eq!(Model::from_extension(3), Some(Model::V2));
        assert_eq!(Model::from_extension(6), Some(Model::V2));
        assert_eq!(Model::from_extension(0), None);
        assert_eq!(Model::from_extension(8), None);
        assert_eq!(Model::V1.require_v2(), Err(Refusal::V1Container));
        assert_eq!(Refusal::V1Container.errno(), Errno::Acces);
        assert_eq!(Model::V2.require_v2(), Ok(()));
    }

    #[test]
    fn map_of_the_usual_kind() {
        let request = map(32, map_flag::READ | map_flag::WRITE, 0x5000, 0x1000, 0x2000);
        assert_eq!(
            request,
            Ok(MapRequest::Map {
                iova: r(0x1000, 0x2fff),
                vaddr: 0x5000,
                prot: Prot {
                    read: true,
                    write: true
                },
            })
        );
        assert_eq!(
            map(64, map_flag::VADDR, 0x5000, 0x1000, 0x2000),
            Ok(MapRequest::SetVaddr {
                iova: r(0x1000, 0x2fff),
                vaddr: 0x5000
            })
        );
    }

    #[test]
    fn map_up_to_the_last_address() {
        assert!(map(32, map_flag::READ, 0x1000, TOP, 0x1000).is_ok());
        assert!(map(32, map_flag::READ, TOP, 0x1000, 0x1000).is_ok());
        assert_eq!(
            map(32, map_flag::READ, 0, TOP, 0x2000),
            Err(Errno::Overflow)
        );
        assert_eq!(
            map(32, map_flag::READ, TOP, 0, 0x2000),
            Err(Errno::Overflow)
        );
    }

    #[test]
    fn map_checks_in_the_order_of_c() {
        // Each request has every later mistake too.
        assert_eq!(map(31, 0x10, TOP, TOP, 0), Err(Errno::Inval));
        assert_eq!(map(32, 0x10, TOP, TOP, u64::MAX), Err(Errno::Inval));
        assert_eq!(map(32, 0, TOP, TOP, 0), Err(Errno::Inval));
        assert_eq!(map(32, 0, TOP, TOP, u64::MAX), Err(Errno::Overflow));
        assert_eq!(map(32, 0, TOP, 1, 0x1001), Err(Errno::Overflow));
        assert_eq!(map(32, 0, 1, 1, 1), Err(Errno::Inval));
        assert_eq!(map(32, 5, 1, 1, 1), Err(Errno::Inval));
    }

    #[test]
    fn map_alignment() {
        let checked = |vaddr, iova, size| {
            map(32, map_flag::READ, vaddr, iova, size).map(|request| request.check_alignment(x86()))
        };
        let page = 0x1000;
        assert_eq!(checked(0, 0, page), Ok(Ok(())));
        for (vaddr, iova, size, value) in [
            (0x800, 0, page, 0x800),
            (0, 0x801, page, 0x801),
            (0, 0, 0x1802, 0x1802),
        ] {
            assert_eq!(
                checked(vaddr, iova, size),
                Ok(Err(Refusal::Misaligned { value, page }))
            );
        }
    }

    #[test]
    fn unmap_header() {
        let header = unmap(24, 0, 0x1000, 0x2000);
        assert_eq!(header.map(|header| header.wants_bitmap()), Ok(false));
        assert_eq!(header.map(|header| header.size()), Ok(0x2000));
        assert_eq!(unmap(23, 0, 0, 0), Err(Errno::Inval));
        assert_eq!(unmap(24, 8, 0, 0), Err(Errno::Inval));
        assert_eq!(unmap(47, 1, 0, 0), Err(Errno::Inval));
        assert!(unmap(48, 1, 0, 0).is_ok());
        assert_eq!(unmap(48, 1 | 2, 0, 0), Err(Errno::Inval));
        assert_eq!(unmap(48, 1 | 4, 0, 0), Err(Errno::Inval));
        assert!(unmap(24, 2 | 4, 0, 0).is_ok());
    }

    #[test]
    fn unmap_header_goes_back_with_the_size_unmapped() {
        let (argsz, flags, iova, size) = (40u32, 4u32, 0x1000u64, 0x2000u64);
        let sent = pack!(argsz: u32, flags: u32, iova: u64, size: u64);
        let unmapped = 0x7000u64;
        let back = pack!(argsz: u32, flags: u32, iova: u64, unmapped: u64);
        assert_eq!(
            UnmapHeader::decode(&sent).map(|header| header.encode(unmapped)),
            Ok(back)
        );
        assert_eq!(
            UnmapHeader::decode(&sent).map(|header| header.encode(size)),
            Ok(sent)
        );
    }

    #[test]
    fn unmap_ranges() {
        let all = unmap_flag::ALL;
        assert_eq!(unmap_range(0, 0x1000, 0x1000), Ok(r(0x1000, 0x1fff)));
        assert_eq!(unmap_range(0, TOP, 0x1000), Ok(r(TOP, u64::MAX)));
        assert_eq!(unmap_range(0, 0, TOP), Ok(r(0, TOP - 1)));
        assert_eq!(unmap_range(0, TOP, 0x2000), Err(Errno::Overflow));
        assert_eq!(unmap_range(0, 0x800, 0x1000), Err(Errno::Inval));
        assert_eq!(unmap_range(0, 0x1000, 0x800), Err(Errno::Inval));
        assert_eq!(unmap_range(0, TOP, TOP + 1), Err(Errno::Inval));
        assert_eq!(unmap_range(0, 0x1000, 0), Err(Errno::Inval));
        assert_eq!(unmap_range(all, 0, 0), Ok(IovaRange::ALL));
        assert_eq!(unmap_range(all, 0x1000, 0), Err(Errno::Inval));
        assert_eq!(unmap_range(all, 0, 0x1000), Err(Errno::Inval));
        assert_eq!(
            unmap_range(all | unmap_flag::VADDR, 0, 0),
            Ok(IovaRange::ALL)
        );
    }

    #[test]
    fn unmap_bitmap_needs_tracking_and_the_smallest_page() {
        let smallest = bitmap(0x1000, 8);
        let check = |flags, bitmap: BitmapArg, tracking| {
            unmap(48, flags, 0, 0x1000)
                .map(|header| header.check_bitmap(&bitmap, tracking, x86()).is_ok())
        };
        assert_eq!(check(1, smallest, true), Ok(true));
        assert_eq!(check(1, smallest, false), Ok(false));
        assert_eq!(check(1, bitmap(0x20_0000, 8), true), Ok(false));
        assert_eq!(check(0, bitmap(0, 0), false), Ok(true));
    }

    #[test]
    fn bitmap_capacity() {
        assert_eq!(capacity(0x1000, 8, 0x1000), Ok(()));
        assert_eq!(capacity(0x1000, 7, 0x1000), Err(Errno::Inval));
        assert_eq!(capacity(0x1000, 8, 64 << 12), Ok(()));
        assert_eq!(capacity(0x1000, 8, 65 << 12), Err(Errno::Inval));
        assert_eq!(capacity(0x1000, 16, 65 << 12), Ok(()));
        assert_eq!(capacity(0x1000, 8, 0xfff), Err(Errno::Inval));
        assert_eq!(capacity(0x1000, 0, 0x1000), Err(Errno::Inval));
        assert_eq!(capacity(0x1000, BITMAP_BYTES_MAX, 0x1000), Ok(()));
        assert_eq!(
            capacity(0x1000, BITMAP_BYTES_MAX + 1, 0x1000),
            Err(Errno::Inval)
        );
    }

    #[test]
    fn bitmap_capacity_at_the_limits() {
        // One page more than a mapping can track still fits into the words.
        assert_eq!(capacity(1, BITMAP_BYTES_MAX, 1 << 31), Ok(()));
        assert_eq!(
            capacity(1, BITMAP_BYTES_MAX, (1 << 31) + 1),
            Err(Errno::Inval)
        );
        assert_eq!(capacity(1, BITMAP_BYTES_MAX, u64::MAX), Err(Errno::Inval));
        assert_eq!(capacity(1 << 63, 8, u64::MAX), Ok(()));
        assert_eq!(capacity(0, 8, 0x1000), Err(Errno::Inval));
        assert_eq!(capacity(0x1800, 8, 0x3000), Err(Errno::Inval));
    }

    #[test]
    fn dirty_takes_exactly_one_flag() {
        assert_eq!(dirty(8, 1), Ok(DirtyOp::Start));
        assert_eq!(dirty(8, 2), Ok(DirtyOp::Stop));
        for (flag, op) in [
            (4, RangeOp::Get),
            (8, RangeOp::GetNoClear),
            (16, RangeOp::Clear),
        ] {
            assert_eq!(dirty(48, flag), Ok(DirtyOp::Range(op)));
            assert_eq!(dirty(47, flag), Err(Errno::Inval));
        }
        for flags in [0, 3, 5, 6, 7, 9, 12, 20, 24, 31, 32, 1 << 31] {
            assert_eq!(dirty(48, flags), Err(Errno::Inval));
        }
        assert_eq!(dirty(7, 1), Err(Errno::Inval));
    }

    #[test]
    fn dirty_range() {
        let decode = |iova: u64, size: u64| {
            let (pgsize, bytes, data) = (0x1000, 8, 0x7000_0000);
            DirtyRange::decode(&pack!(iova: u64, size: u64, pgsize: u64, bytes: u64, data: u64))
                .map_err(|refusal| refusal.errno())
        };
        assert_eq!(
            decode(TOP, 0x1000),
            Ok(DirtyRange {
                iova: r(TOP, u64::MAX),
                bitmap: bitmap(0x1000, 8)
            })
        );
        assert_eq!(decode(TOP, 0x1001), Err(Errno::Overflow));
        assert_eq!(decode(TOP, 0), Err(Errno::Inval));
    }

    #[test]
    fn dirty_range_against_the_page_sizes() {
        let check = |first, last, pgsize| {
            let range = DirtyRange {
                iova: r(first, last),
                bitmap: bitmap(pgsize, 8),
            };
            range.check_capacity().and(range.check_pages(x86())).is_ok()
        };
        assert!(check(0x1000, 0x4_0fff, 0x1000));
        assert!(!check(0x1000, 0x4_1fff, 0x1000));
        assert!(!check(0x800, 0x17ff, 0x1000));
        assert!(!check(0x1000, 0x1800, 0x1000));
        assert!(!check(0, 0x1f_ffff, 0x20_0000));
    }

    /// What the user reads for `argsz`, with a chain of 64 bytes.
    fn reply(argsz: u32) -> Result<InfoReply, Errno> {
        let (flags, pgsizes) = (u32::MAX, u64::MAX);
        InfoHeader::decode(&pack!(argsz: u32, flags: u32, pgsizes: u64))
            .map(|header| header.reply(x86().bitmap(), 64))
            .map_err(|refusal| refusal.errno())
    }

    #[test]
    fn info_needs_room_for_the_page_sizes() {
        assert_eq!(reply(15), Err(Errno::Inval));
        assert_eq!(reply(16).map(|reply| reply.len), Ok(16));
        assert_eq!(reply(16).map(|reply| reply.head().len()), Ok(16));
        assert_eq!(reply(20).map(|reply| reply.len), Ok(20));
        assert_eq!(reply(88).map(|reply| reply.len), Ok(24));
        assert_eq!(reply(u32::MAX).map(|reply| reply.len), Ok(24));
    }

    #[test]
    fn info_tells_how_much_room_the_chain_needs() {
        let pgsizes = x86().bitmap();
        let answer = |argsz: u32, cap_offset: u32| {
            let (flags, pad) = (3, 0);
            pack!(argsz: u32, flags: u32, pgsizes: u64, cap_offset: u32, pad: u32)
        };
        assert_eq!(reply(87).map(|reply| reply.bytes), Ok(answer(88, 0)));
        assert_eq!(reply(87).map(|reply| reply.copy_caps), Ok(false));
        assert_eq!(reply(88).map(|reply| reply.bytes), Ok(answer(88, 24)));
        assert_eq!(reply(100).map(|reply| reply.bytes), Ok(answer(100, 24)));
        assert_eq!(reply(100).map(|reply| reply.copy_caps), Ok(true));
    }

    #[test]
    fn info_without_a_chain_does_not_announce_one() {
        let (argsz, flags, pgsizes) = (64u32, 0u32, 0u64);
        let header = InfoHeader::decode(&pack!(argsz: u32, flags: u32, pgsizes: u64));
        let (flags, cap_offset, pad) = (info_flag::PGSIZES, 0, 0);
        assert_eq!(
            header.map(|header| header.reply(pgsizes, 0)),
            Ok(InfoReply {
                bytes: pack!(argsz: u32, flags: u32, pgsizes: u64, cap_offset: u32, pad: u32),
                len: 24,
                copy_caps: false,
            })
        );
    }

    #[test]
    fn info_with_a_chain_too_long_to_express() {
        let (argsz, flags, pgsizes) = (u32::MAX, 0u32, 0u64);
        let header = InfoHeader::decode(&pack!(argsz: u32, flags: u32, pgsizes: u64));
        assert_eq!(
            header.map(|header| header.reply(0, u32::MAX).copy_caps),
            Ok(false)
        );
    }

    #[test]
    fn length_of_the_chain() {
        assert_eq!(caps_len(0), Some(48));
        assert_eq!(caps_len(1), Some(80));
        assert_eq!(caps_len(3), Some(112));
        assert_eq!(caps_len(usize::MAX), None);
        assert_eq!(caps_len(u32::MAX as usize / 16), None);
    }

    #[test]
    fn chain_is_as_long_as_announced() {
        let ranges = [r(0, 0xfedf_ffff), r(0xfef0_0000, u64::MAX)];
        for count in 0..=ranges.len() {
            let mut written = 0u32;
            let info = CapsInput {
                smallest_page: 4096,
                dma_avail: 7,
                ranges: ranges.iter().copied().take(count),
            };
            let result = write_caps(&info, |bytes| {
                written = written.saturating_add(bytes.len() as u32);
                Ok::<(), ()>(())
            });
            assert_eq!(result, Ok(()));
            assert_eq!(Some(written), caps_len(count));
        }
    }

    #[test]
    fn chain_stops_when_the_buffer_is_full() {
        let info = CapsInput {
            smallest_page: 4096,
            dma_avail: 7,
            ranges: [r(0, 1), r(4, 5)].into_iter(),
        };
        for room in 0..5usize {
            let mut calls = 0usize;
            let result = write_caps(&info, |_| {
                if calls == room {
                    return Err(room);
                }
                calls = calls.saturating_add(1);
                Ok(())
            });
            assert_eq!(result, Err(room));
            assert_eq!(calls, room);
        }
    }

    #[test]
    fn pinned_ranges() {
        let range =
            |iova, npage| page_range_args(iova, npage, 4096).map_err(|refusal| refusal.errno());
        assert_eq!(range(0x1000, 2), Ok(r(0x1000, 0x2fff)));
        assert_eq!(range(TOP, 1), Ok(r(TOP, u64::MAX)));
        assert_eq!(range(TOP, 2), Err(Errno::Overflow));
        assert_eq!(range(0, 0), Err(Errno::Inval));
        assert_eq!(range(0, -1), Err(Errno::Inval));
        assert_eq!(range(TOP, i32::MIN), Err(Errno::Inval));
        assert_eq!(
            page_range_args(0, i32::MAX, u64::MAX).map_err(|refusal| refusal.errno()),
            Err(Errno::Overflow)
        );
    }
}
