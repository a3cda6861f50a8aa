// SPDX-License-Identifier: GPL-2.0

//! The order of the checks, against lists of conditions.
//!
//! A model is the list of all conditions of the C driver in its order; the first one that holds
//! decides. Requests are drawn such that several hold at once.

use iova_space::PageSizes;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use vfio_uapi::*;

const PAGE: u64 = 4096;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 5000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x3b71),
        ..ProptestConfig::default()
    }
}

fn x86() -> PageSizes {
    PageSizes::new(1 << 12 | 1 << 21 | 1 << 30).expect("not empty")
}

/// The first condition that holds decides.
fn first(conditions: &[(bool, Errno)]) -> Result<(), Errno> {
    match conditions.iter().find(|(holds, _)| *holds) {
        Some(&(_, errno)) => Err(errno),
        None => Ok(()),
    }
}

/// Whether the range ends beyond 2^64. To be asked of sizes that are not 0.
fn wraps(start: u64, size: u64) -> bool {
    u128::from(start) + u128::from(size) > 1 << 64
}

fn misaligned(value: u64) -> bool {
    value % PAGE != 0
}

fn argsz() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(48u32), 2 => 0..64u32, 1 => any::<u32>()]
}

fn flags() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..8u32, 1 => 0..16u32, 1 => any::<u32>()]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..8u64).prop_map(|page| page * PAGE),
        2 => (0..8u64).prop_map(|page| (page * PAGE).wrapping_neg()),
        1 => Just(0u64),
        1 => 0..0x8000u64,
        1 => any::<u64>(),
    ]
}

fn bitmap_pgsize() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(PAGE), 2 => (0..64u32).prop_map(|shift| 1 << shift), 1 => any::<u64>()]
}

fn bitmap_size() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..24u64,
        2 => (0..3u64).prop_map(|by| (1 << 28) + 1 - by),
        1 => any::<u64>()
    ]
}

fn bytes<const N: usize>(words: &[&[u8]]) -> [u8; N] {
    words.concat().try_into().expect("fields add up")
}

/// The conditions under which `verify_bitmap_size()` refuses, for a page size that is a power of 2.
fn capacity_refused(range: u64, pgsize: u64, size: u64) -> bool {
    if !pgsize.is_power_of_two() {
        return true;
    }
    let pages = u128::from(range / pgsize);
    let needed = pages.div_ceil(64) * 8;
    pages == 0 || size == 0 || size > 1 << 28 || u128::from(size) < needed
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn map(
        argsz in argsz(),
        flags in flags(),
        vaddr in address(),
        iova in address(),
        size in address(),
    ) {
        let raw = bytes(&[
            &argsz.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &vaddr.to_ne_bytes(),
            &iova.to_ne_bytes(),
            &size.to_ne_bytes(),
        ]);
        let got = MapRequest::decode(&raw)
            .and_then(|request| request.check_alignment(x86()))
            .map_err(|refusal| refusal.errno());
        let set_vaddr = flags & 4 != 0;
        let prot = flags & 3 != 0;
        prop_assert_eq!(got, first(&[
            (argsz < 32, Errno::Inval),
            (flags & !7 != 0, Errno::Inval),
            (size == 0, Errno::Inval),
            (wraps(iova, size), Errno::Overflow),
            (wraps(vaddr, size), Errno::Overflow),
            (prot == set_vaddr, Errno::Inval),
            (misaligned(size) || misaligned(iova) || misaligned(vaddr), Errno::Inval),
        ]));
    }

    #[test]
    fn unmap(
        argsz in argsz(),
        flags in flags(),
        iova in address(),
        size in address(),
        pgsize in bitmap_pgsize(),
        bitmap_size in bitmap_size(),
        tracking in any::<bool>(),
    ) {
        let raw = bytes(&[
            &argsz.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &iova.to_ne_bytes(),
            &size.to_ne_bytes(),
        ]);
        let bitmap = BitmapArg { pgsize, size: bitmap_size, data: 0 };
        let got = UnmapHeader::decode(&raw).and_then(|header| {
            if header.wants_bitmap() {
                bitmap.check_capacity(header.size())?;
            }
            let range = header.range(x86())?;
            header.check_bitmap(&bitmap, tracking, x86())?;
            Ok((range.first(), range.last()))
        });
        let (get, all) = (flags & 1 != 0, flags & 2 != 0);
        let expected = first(&[
            (argsz < 24, Errno::Inval),
            (flags & !7 != 0, Errno::Inval),
            (get && flags & 6 != 0, Errno::Inval),
            (get && argsz < 48, Errno::Inval),
            (get && capacity_refused(size, pgsize, bitmap_size), Errno::Inval),
            (misaligned(iova), Errno::Inval),
            (all && (iova != 0 || size != 0), Errno::Inval),
            (!all && (size == 0 || misaligned(size)), Errno::Inval),
            (!all && wraps(iova, size), Errno::Overflow),
            (get && (!tracking || pgsize != PAGE), Errno::Inval),
        ]);
        let last = if all { u64::MAX } else { iova.wrapping_add(size).wrapping_sub(1) };
        prop_assert_eq!(
            got.map_err(|refusal| refusal.errno()),
            expected.map(|()| (iova, last))
        );
    }

    #[test]
    fn dirty(
        argsz in argsz(),
        flags in flags(),
        iova in address(),
        size in address(),
        pgsize in bitmap_pgsize(),
        bitmap_size in bitmap_size(),
    ) {
        let op = DirtyOp::decode(&bytes(&[&argsz.to_ne_bytes(), &flags.to_ne_bytes()]));
        let about_range = matches!(flags, 4 | 8 | 16);
        let expected = first(&[
            (argsz < 8, Errno::Inval),
            (flags & !31 != 0, Errno::Inval),
            (flags.count_ones() != 1, Errno::Inval),
            (about_range && argsz < 48, Errno::Inval),
        ]);
        prop_assert_eq!(op.map(|_| ()).map_err(|refusal| refusal.errno()), expected);

        let raw = bytes(&[
            &iova.to_ne_bytes(),
            &size.to_ne_bytes(),
            &pgsize.to_ne_bytes(),
            &bitmap_size.to_ne_bytes(),
            &0u64.to_ne_bytes(),
        ]);
        let got = DirtyRange::decode(&raw).and_then(|range| {
            range.check_capacity()?;
            range.check_pages(x86())
        });
        prop_assert_eq!(got.map_err(|refusal| refusal.errno()), first(&[
            (size == 0, Errno::Inval),
            (wraps(iova, size), Errno::Overflow),
            (capacity_refused(size, pgsize, bitmap_size), Errno::Inval),
            (pgsize != PAGE, Errno::Inval),
            (misaligned(iova), Errno::Inval),
            (misaligned(size), Errno::Inval),
        ]));
    }

    #[test]
    fn pin(iova in address(), npage in prop_oneof![-2..8i32, any::<i32>()]) {
        let got = page_range_args(iova, npage, PAGE);
        let size = npage.max(0) as u64 * PAGE;
        let expected = first(&[
            (npage <= 0, Errno::Inval),
            (wraps(iova, size), Errno::Overflow),
        ]);
        prop_assert_eq!(
            got.map(|range| (range.first(), range.size())).map_err(|refusal| refusal.errno()),
            expected.map(|()| (iova, Some(size)))
        );
    }

    #[test]
    fn info(argsz in prop_oneof![0..200u32, any::<u32>()], ranges in 0..6usize) {
        let raw = bytes(&[&argsz.to_ne_bytes(), &[0; 12]]);
        let caps = caps_len(ranges).expect("a short chain");
        let got = InfoHeader::decode(&raw).map(|header| header.reply(!0xfff, caps));
        prop_assert_eq!(got.is_err(), argsz < 16);
        if let Ok(reply) = got {
            let fits = argsz >= 24 + caps;
            prop_assert_eq!(reply.copy_caps, fits);
            prop_assert_eq!(reply.len, argsz.min(24) as usize);
            prop_assert_eq!(reply.bytes, bytes(&[
                &argsz.max(24 + caps).to_ne_bytes(),
                &3u32.to_ne_bytes(),
                &(!0xfffu64).to_ne_bytes(),
                &if fits { 24u32 } else { 0 }.to_ne_bytes(),
                &[0; 4],
            ]));
        }
    }

    /// A bitmap that `dirty_log` fills must be one that is accepted, no byte more is asked for.
    #[test]
    fn capacity_is_what_the_bits_need(pages in prop_oneof![0..500u64, 0x7fff_ff00..0x8000_0100u64]) {
        let accepts = |size| {
            let bitmap = BitmapArg { pgsize: PAGE, size, data: 0 };
            bitmap.check_capacity(pages * PAGE).is_ok()
        };
        match dirty_log::bitmap_bytes(pages) {
            Some(bytes @ 1..) => prop_assert!(accepts(bytes) && !accepts(bytes - 1)),
            Some(0) => prop_assert!(!accepts(8)),
            None => prop_assert!(!accepts(BITMAP_BYTES_MAX)),
        }
        prop_assert_eq!(BITMAP_BYTES_MAX, dirty_log::BITMAP_BYTES_MAX);
    }
}

#[test]
fn refusals_say_what_was_asked_and_what_is_allowed() {
    let bitmap = BitmapArg {
        pgsize: 0x2000,
        size: 9,
        data: 0x7000,
    };
    for (refusal, text) in [
        (
            Refusal::Argsz {
                asked: 20,
                needed: 24,
            },
            "argsz is 20, at least 24 is needed",
        ),
        (
            Refusal::UnknownFlags {
                asked: 0x18,
                allowed: 0x7,
            },
            "flags are 0x18, only 0x7 are known",
        ),
        (
            Refusal::EmptyRange { iova: 0x1000 },
            "the range at IOVA 0x1000 has size 0, at least a page is needed",
        ),
        (
            Refusal::IovaWraps {
                iova: 0x1000,
                size: u64::MAX,
            },
            "0xffffffffffffffff bytes at IOVA 0x1000 end beyond the last 64-bit address",
        ),
        (
            Refusal::VaddrWraps {
                vaddr: 0x1000,
                size: u64::MAX,
            },
            "0xffffffffffffffff bytes at user address 0x1000 end beyond the last 64-bit address",
        ),
        (
            Refusal::MapFlags { asked: 0x5 },
            "flags are 0x5, either READ and/or WRITE (0x3) or VADDR (0x4) is allowed",
        ),
        (
            Refusal::Misaligned {
                value: 0x800,
                page: 0x1000,
            },
            "0x800 is not a multiple of the page size 0x1000",
        ),
        (
            Refusal::UnmapFlags { asked: 0x3 },
            "flags are 0x3, GET_DIRTY_BITMAP (0x1) goes with neither ALL nor VADDR",
        ),
        (
            Refusal::AllWithRange {
                iova: 0x1000,
                size: 0x2000,
            },
            "0x2000 bytes at IOVA 0x1000 are asked for, ALL needs both to be 0",
        ),
        (
            Refusal::DirtyFlags { asked: 0x6 },
            "flags are 0x6, exactly one of START (0x1), STOP (0x2), GET_BITMAP (0x4), \
             GET_BITMAP_NOCLEAR (0x8) and CLEAR_BITMAP (0x10) is allowed",
        ),
        (
            bitmap.outside_user_memory(),
            "the bitmap of 0x9 bytes at 0x7000 is outside user memory",
        ),
        (
            Refusal::BitmapPageSize { asked: 0 },
            "the page size of the bitmap is 0x0, a power of two is needed",
        ),
        (
            Refusal::BitmapPageSizeDiffers {
                asked: 0x2000,
                page: 0x1000,
            },
            "the page size of the bitmap is 0x2000, only 0x1000 is allowed",
        ),
        (
            Refusal::BitmapCoversNothing {
                range: 0xfff,
                page: 0x1000,
            },
            "the bitmap is for 0xfff bytes, at least a page of 0x1000 is needed",
        ),
        (
            Refusal::BitmapSize {
                asked: 9,
                needed: 16,
            },
            "the bitmap has 0x9 bytes, from 0x10 to 0x10000000 are allowed",
        ),
        (
            Refusal::TrackingOff,
            "a dirty bitmap is asked for, tracking must be started first",
        ),
        (
            Refusal::V1Container,
            "the container is type1 v1, only type1 v2 has this operation",
        ),
        (
            Refusal::PageCount { asked: -1 },
            "-1 pages are to be pinned, at least 1 is needed",
        ),
    ] {
        assert_eq!(refusal.to_string(), text);
    }
}
