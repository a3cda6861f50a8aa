// SPDX-License-Identifier: GPL-2.0

//! GET_INFO.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::info::{
    Header,
    Info,
    Migration,
    Raw,
    FIXED, //
};
use harness::memory::Memory;
use harness::tests;
use harness::vfio::{
    Command,
    PAGE,
    READ,
    RW, //
};
use nix::errno::Errno;
use vfio_bindings::bindings::vfio;

use super::IOVA;

tests! {
    "info.argsz_short", "an argument without room for the page sizes is refused" => argsz_short;
    "info.argsz_steps", "each size gets what fits, and no byte more" => argsz_steps;
    "info.fault", "a bad address is EFAULT, for the fixed part and for capabilities" => fault;
    "info.chain", "three capabilities in order, with versions and offsets" => chain;
    "info.page_sizes", "base pages are supported" => page_sizes;
    "info.migration", "contents of the migration capability" => migration;
    "info.dma_avail", "the budget falls and rises with mappings" => dma_avail;
    "info.iova_ranges", "ranges ascend, do not touch, and leave reserved regions out" => iova_ranges;
    "info.reserved", "reserved regions, the MSI window among them, cannot be mapped" => reserved;
}

/// Smallest argument the kernel takes.
const LEAST: u32 = 16;
const ALL_FLAGS: u32 = vfio::VFIO_IOMMU_INFO_PGSIZES | vfio::VFIO_IOMMU_INFO_CAPS;

fn argsz_short(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    for argsz in [0, 8, LEAST - 1] {
        let refused = session.container.get_info(Raw::new(argsz).words());
        expect_errno(format_args!("argsz {argsz}"), refused, Errno::EINVAL)?;
    }
    Ok(())
}

fn argsz_steps(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let session = env.open(model)?;
        let needed = session.info()?.argsz;
        expect("the capabilities take room", needed > FIXED)?;

        for argsz in [LEAST, 20, FIXED, FIXED + 8, needed - 1, needed, needed + 40] {
            let mut raw = Raw::new(argsz);
            session.container.get_info(raw.words())?;
            let fits = argsz >= needed;

            let told = |what| format!("{what} with argsz {argsz} of {needed}");
            expect_eq(told("flags"), raw.flags(), ALL_FLAGS)?;
            expect_eq(
                told("argsz"),
                raw.argsz(),
                if fits { argsz } else { needed },
            )?;
            expect(told("page sizes"), raw.pgsizes() & PAGE != 0)?;
            if argsz >= 20 {
                let want = if fits { FIXED } else { 0 };
                expect_eq(told("cap_offset"), raw.cap_offset(), want)?;
            }
            let end = if fits { needed } else { argsz.min(FIXED) };
            expect_eq(
                told("first byte written behind the end"),
                raw.touched_behind(end),
                None,
            )?;
        }
    }
    Ok(())
}

fn fault(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    // SAFETY: Nothing lives at address 0.
    let refused = unsafe { session.container.raw(Command::GET_INFO, 0) };
    expect_errno("null pointer", refused, Errno::EFAULT)?;

    // The fixed part ends where the accessible page ends; the capabilities would come behind.
    let memory = Memory::anon(2 * PAGE)?;
    memory.protect(PAGE, PAGE, libc::PROT_NONE)?;
    let offset = PAGE - u64::from(FIXED);
    memory.put(offset, &4096u32.to_ne_bytes());
    let arg = (memory.vaddr() + offset) as usize;
    // SAFETY: The kernel may write up to the end of the first page, and cannot write behind.
    let refused = unsafe { session.container.raw(Command::GET_INFO, arg) };
    expect_errno(
        "no access to the place of the capabilities",
        refused,
        Errno::EFAULT,
    )
}

fn chain(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let session = env.open(model)?;
        let info = session.info()?;
        let header = |id, offset, next| Header {
            offset,
            id,
            version: 1,
            next,
        };
        let want = [
            header(vfio::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 24, 56),
            header(vfio::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 56, 72),
            header(vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 72, 0),
        ];
        expect_eq("capabilities", &info.chain[..], &want[..])?;
        expect_eq("flags", info.flags, ALL_FLAGS)?;
        expect_eq("argsz", info.argsz as usize, 72 + 16 + 16 * info.iova.len())?;
    }
    Ok(())
}

fn page_sizes(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let sizes = env.open(model)?.info()?.pgsizes;
        expect_eq("smallest page size", sizes & sizes.wrapping_neg(), PAGE)?;
    }
    Ok(())
}

fn migration(env: &Env) -> Verdict {
    for model in Model::BOTH {
        let want = Migration {
            flags: 0,
            pgsizes: PAGE,
            max_bitmap: 1 << 28,
        };
        expect_eq(
            "migration capability",
            env.open(model)?.info()?.migration,
            want,
        )?;
    }
    Ok(())
}

fn dma_avail(env: &Env) -> Verdict {
    const COUNT: u32 = 5;
    let limit = env.parameter("dma_entry_limit")?;
    let limit: u32 = limit
        .original()
        .parse()
        .map_err(harness::check::Stop::fail)?;
    let memory = Memory::anon(PAGE)?;

    for model in Model::BOTH {
        let session = env.open(model)?;
        let avail = || session.info().map(|info| info.dma_avail);
        expect_eq("budget of a new container", avail()?, limit)?;

        for n in 0..COUNT {
            let iova = IOVA + 2 * PAGE * u64::from(n);
            session.container.map(iova, memory.vaddr(), PAGE, RW)?;
            expect_eq("budget after a map", avail()?, limit - n - 1)?;
        }
        let refused = session.container.map(IOVA, memory.vaddr(), PAGE, RW);
        expect_errno("overlap", refused, Errno::EEXIST)?;
        let refused = session.container.map(0, 0, PAGE, RW);
        expect_errno("no memory there", refused, Errno::EFAULT)?;
        expect_eq("budget after refused maps", avail()?, limit - COUNT)?;

        session.container.unmap(IOVA, PAGE, 0)?;
        expect_eq("budget after an unmap", avail()?, limit - COUNT + 1)?;
        session.container.unmap_all()?;
        expect_eq("budget after unmap-all", avail()?, limit)?;
    }
    Ok(())
}

#[track_caller]
fn expect_usable(info: &Info, reserved: &[(u64, u64)]) -> Verdict {
    expect("there is a usable range", !info.iova.is_empty())?;
    for &(first, last) in &info.iova {
        expect(
            format_args!("{first:#x}-{last:#x} is a range"),
            first <= last,
        )?;
        for &(start, end) in reserved {
            expect(
                format_args!("{first:#x}-{last:#x} leaves out {start:#x}-{end:#x}"),
                last < start || end < first,
            )?;
        }
    }
    for pair in info.iova.windows(2) {
        let ((_, last), (first, _)) = (pair[0], pair[1]);
        expect(
            format_args!("a gap between {last:#x} and {first:#x}"),
            last < first && first - last > 1,
        )?;
        // Only what is reserved may be missing.
        let missing = (last + 1, first - 1);
        expect(
            format_args!("{:#x}-{:#x} is left out for a reason", missing.0, missing.1),
            reserved.iter().any(|&(start, _)| start == missing.0)
                && reserved.iter().any(|&(_, end)| end == missing.1),
        )?;
    }
    Ok(())
}

fn iova_ranges(env: &Env) -> Verdict {
    let reserved = env.first()?.reserved()?;
    for model in Model::BOTH {
        expect_usable(&env.open(model)?.info()?, &reserved)?;
    }
    Ok(())
}

fn reserved(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(4 * PAGE)?;
    let vaddr = memory.vaddr();
    let map = |iova, size| session.container.map(iova, vaddr, size, READ);

    let top = session.last_page()?;
    for (first, last) in session.pci.reserved()? {
        for iova in [first, last & !(PAGE - 1)] {
            expect_errno("inside a reserved region", map(iova, PAGE), Errno::EINVAL)?;
        }
        if first >= 2 * PAGE && first <= top {
            let over_start = map(first - PAGE, 2 * PAGE);
            expect_errno(
                "over the start of a reserved region",
                over_start,
                Errno::EINVAL,
            )?;
            session.expect_free(first - PAGE, vaddr, PAGE)?;
        }
        if last < top {
            let over_end = map(last + 1 - PAGE, 2 * PAGE);
            expect_errno("over the end of a reserved region", over_end, Errno::EINVAL)?;
            session.expect_free(last + 1, vaddr, PAGE)?;
        }
    }
    Ok(())
}
