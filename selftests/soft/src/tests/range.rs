// SPDX-License-Identifier: GPL-2.0

//! Addresses that can be mapped: apertures, reserved regions, and the very last byte.

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
use harness::memory::{
    Memory,
    MIB, //
};
use harness::proc::{
    locked,
    PinCount, //
};
use harness::soft::{
    self,
    filled,
    Fault,
    Session, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    expect_domains,
    expect_done,
    expect_same,
    expect_unmapped,
    ranges,
    IOVA, //
};

tests! {
    "range.reserved", "what is reserved is neither listed nor mapped; what is relaxable is both" => reserved;
    "range.reserved_joins", "a group joins unless something is mapped where it has a reserved region" => reserved_joins;
    "range.reserved_both", "regions of all groups count, and go with their group" => reserved_both;
    "range.narrow", "no more address bits than the IOMMU has" => narrow;
    "range.narrow_joins", "a narrower IOMMU joins unless something is mapped beyond" => narrow_joins;
    "range.wide", "all 64 bits of addresses" => wide;
    "range.last_byte", "a mapping that ends with the last byte" => last_byte;
    "range.last_byte_two", "... in two page tables" => last_byte_two;
    "range.last_byte_joins", "... of which one joins later" => last_byte_joins;
}

/// What tests know of the module's reserved regions, by the place of the device.
const RESERVED: [&[(u64, u64, &str)]; 2] = [
    &[
        (0x1000_0000, 0x10ff_ffff, "reserved"),
        (0x2000_0000, 0x201f_ffff, "direct-relaxable"),
        (0xfee0_0000, 0xfeef_ffff, "msi"),
    ],
    &[
        (0x0800_0000, 0x080f_ffff, "msi"),
        (0x4000_3000, 0x4000_6fff, "reserved"),
    ],
];

const LAST: u64 = (1 << 48) - 1;

/// The valid ranges when these devices are in the container.
fn without(devices: &[usize]) -> Vec<(u64, u64)> {
    let mut holes: Vec<_> = devices
        .iter()
        .flat_map(|place| RESERVED[*place])
        .filter(|(.., kind)| *kind != "direct-relaxable")
        .collect();
    holes.sort_unstable();
    let mut first = 0;
    let mut valid = Vec::new();
    for (start, end, _) in holes {
        valid.push((first, start - 1));
        first = end + 1;
    }
    valid.push((first, LAST));
    valid
}

fn reserved(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * PAGE)?;
    for (place, regions) in RESERVED.iter().enumerate() {
        let device = soft::device("reserved", place)?;
        let known: Vec<_> = device
            .reserved()?
            .into_iter()
            .map(|(first, last, kind)| (first, last, kind.to_string()))
            .collect();
        let told: Vec<_> = regions
            .iter()
            .map(|(first, last, kind)| (*first, *last, kind.to_string()))
            .collect();
        expect_eq("regions in sysfs", known, told)?;

        for model in Model::BOTH {
            let session = Session::with(env, model, &[("reserved", place)])?;
            let (container, engine) = (&session.container, session.engine());
            expect_eq("valid ranges", ranges(&session)?, without(&[place]))?;
            let map = |iova, len| container.map(iova, memory.vaddr(), len, RW);
            for (first, last, kind) in *regions {
                let (before, behind) = (first - PAGE, last + 1);
                if *kind == "direct-relaxable" {
                    map(*first, 4 * PAGE)?;
                    expect_done("fill", engine.fill(*first, PAGE, 1, 1)?, PAGE)?;
                    container.unmap(*first, 4 * PAGE, 0)?;
                    continue;
                }
                for (iova, len) in [
                    (*first, PAGE),
                    (*first, 4 * PAGE),
                    (behind - PAGE, PAGE),
                    (before, 2 * PAGE),
                    (behind - PAGE, 2 * PAGE),
                ] {
                    let what = format_args!("{len:#x} bytes at {iova:#x}");
                    expect_errno(what, map(iova, len), Errno::EINVAL)?;
                }
                for iova in [before, behind] {
                    map(iova, PAGE)?;
                    expect_done("fill", engine.fill(iova, PAGE, 2, 1)?, PAGE)?;
                    expect_eq("fault", engine.probe(*first)?, Some(Fault::Absent))?;
                    container.unmap(iova, PAGE, 0)?;
                }
            }
            expect_unmapped(&session)?;
        }
    }
    Ok(())
}

fn reserved_joins(env: &Env) -> Verdict {
    let memory = Memory::anon(2 * PAGE)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let all = vec![(0, LAST)];
    for (place, regions) in RESERVED.iter().enumerate() {
        let mut session = Session::open(env, "plain")?;
        for (first, last, kind) in *regions {
            for iova in [first - PAGE, *last - PAGE + 1] {
                session.container.map(iova, memory.vaddr(), 2 * PAGE, RW)?;
                if *kind == "direct-relaxable" {
                    session.add("reserved", place)??;
                    session.remove(1)?;
                } else {
                    let refused = session.add("reserved", place)?;
                    let what = format_args!("{iova:#x} is mapped");
                    expect_errno(what, refused, Errno::EINVAL)?;
                }
                expect_eq("valid ranges", ranges(&session)?, all.clone())?;
                expect_domains(1)?;
                expect_same(&session, 2 * PAGE)?;
                let done = session.engine().fill(iova, 2 * PAGE, 1, 2)?;
                expect_done("fill", done, 2 * PAGE)?;
                session.container.unmap(iova, 2 * PAGE, 0)?;
            }
        }
        session.add("reserved", place)??;
        expect_eq("valid ranges", ranges(&session)?, without(&[place]))?;
        session.remove(1)?;
        expect_eq("valid ranges", ranges(&session)?, all.clone())?;
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
    }
    Ok(())
}

fn reserved_both(env: &Env) -> Verdict {
    let devices = [("reserved", 0), ("plain", 0), ("reserved", 1)];
    let mut session = Session::with(env, Model::V2, &devices)?;
    expect_eq("valid ranges", ranges(&session)?, without(&[0, 1]))?;
    session.remove(0)?;
    expect_eq("valid ranges", ranges(&session)?, without(&[1]))?;
    session.add("reserved", 0)??;
    expect_eq("valid ranges", ranges(&session)?, without(&[0, 1]))?;
    session.remove(1)?;
    expect_eq("valid ranges", ranges(&session)?, without(&[0]))
}

fn narrow(env: &Env) -> Verdict {
    const END: u64 = 1 << 39;
    let memory = Memory::anon(2 * PAGE)?;
    for model in Model::BOTH {
        let session = Session::with(env, model, &[("narrow", 0)])?;
        let (container, engine) = (&session.container, session.engine());
        expect_eq("valid ranges", ranges(&session)?, vec![(0, END - 1)])?;
        for (iova, len) in [
            (END, PAGE),
            (END - PAGE, 2 * PAGE),
            (1 << 47, PAGE),
            (1 << 63, PAGE),
            (u64::MAX - PAGE + 1, PAGE),
        ] {
            let refused = container.map(iova, memory.vaddr(), len, RW);
            let what = format_args!("{len:#x} bytes at {iova:#x}");
            expect_errno(what, refused, Errno::EINVAL)?;
        }
        container.map(END - 2 * PAGE, memory.vaddr(), 2 * PAGE, RW)?;
        let done = engine.fill(END - 2 * PAGE, 2 * PAGE, 1, 2)?;
        expect_done("fill", done, 2 * PAGE)?;
        expect_eq("fault", engine.probe(END)?, Some(Fault::Width))?;
        let unmapped = container.unmap(END - 2 * PAGE, 2 * PAGE, 0)?;
        expect_eq("bytes unmapped", unmapped, 2 * PAGE)?;
        expect_unmapped(&session)?;
    }
    Ok(())
}

fn narrow_joins(env: &Env) -> Verdict {
    const END: u64 = 1 << 39;
    let memory = Memory::anon(2 * PAGE)?;
    let mut session = Session::open(env, "plain")?;
    for iova in [END - PAGE, END, LAST - PAGE + 1] {
        let len = if iova < END { 2 * PAGE } else { PAGE };
        session.container.map(iova, memory.vaddr(), len, RW)?;
        let refused = session.add("narrow", 0)?;
        let what = format_args!("{len:#x} bytes at {iova:#x} are mapped");
        expect_errno(what, refused, Errno::EINVAL)?;
        expect_domains(1)?;
        expect_eq("valid ranges", ranges(&session)?, vec![(0, LAST)])?;
        expect_done("fill", session.engine().fill(iova, len, 1, 1)?, len)?;
        session.container.unmap(iova, len, 0)?;
    }

    session
        .container
        .map(END - PAGE, memory.vaddr(), PAGE, RW)?;
    session.add("narrow", 0)??;
    expect_eq("valid ranges", ranges(&session)?, vec![(0, END - 1)])?;
    expect_same(&session, PAGE)?;
    let refused = session.container.map(END, memory.vaddr(), PAGE, RW);
    expect_errno("beyond the narrower one", refused, Errno::EINVAL)?;
    session.remove(1)?;
    expect_eq("valid ranges", ranges(&session)?, vec![(0, LAST)])?;
    session.container.map(END, memory.vaddr(), PAGE, RW)?;
    expect_done("fill", session.engine().fill(END, PAGE, 1, 1)?, PAGE)
}

fn wide(env: &Env) -> Verdict {
    let memory = Memory::anon(PAGE)?;
    let session = Session::open(env, "wide")?;
    let engine = session.engine();
    let places: Vec<u64> = (12..64).map(|bit| 1 << bit).collect();
    for iova in &places {
        session.container.map(*iova, memory.vaddr(), PAGE, RW)?;
        expect_done("fill", engine.fill(*iova, PAGE, *iova, 1)?, PAGE)?;
        let bytes = filled(*iova, *iova, PAGE);
        expect("memory", memory.get(0, PAGE) == bytes)?;
    }
    expect_same(&session, places.len() as u64 * PAGE)?;
    for iova in &places {
        expect_eq("unmapped", session.container.unmap(*iova, PAGE, 0)?, PAGE)?;
        expect_eq("fault", engine.probe(*iova)?, Some(Fault::Absent))?;
    }
    expect_unmapped(&session)
}

/// Ranges that end with the last byte of all.
const ENDS: [u64; 4] = [PAGE, 3 * PAGE, 2 * MIB, 4 * MIB];

#[track_caller]
fn works_at_the_end(session: &Session) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    for (n, len) in ENDS.into_iter().enumerate() {
        let iova = 0u64.wrapping_sub(len);
        session.container.map(iova, memory.vaddr(), len, RW)?;
        expect_same(session, len)?;
        for engine in &session.engines {
            expect_done("fill", engine.fill(iova, len, 7, 4)?, len)?;
            expect("memory", memory.get(0, len) == filled(7, iova, len))?;
            let read = engine.checksum(u64::MAX, 1, 1)?;
            expect_done("last byte", read, 1)?;
        }
        let refused = session.container.map(0, memory.vaddr(), PAGE, RW);
        expect("the first page is not in the way", refused.is_ok())?;
        session.container.unmap(0, PAGE, 0)?;
        let unmapped = if n % 2 == 0 {
            session.container.unmap(iova, len, 0)?
        } else {
            session.container.unmap_all()?
        };
        expect_eq("bytes unmapped", unmapped, len)?;
        for engine in &session.engines {
            let fault = engine.checksum(u64::MAX, 1, 1)?.fault;
            expect_eq("fault", fault, Some((Fault::Absent, u64::MAX)))?;
        }
        expect_unmapped(session)?;
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
    }
    Ok(())
}

fn last_byte(env: &Env) -> Verdict {
    for model in Model::BOTH {
        works_at_the_end(&Session::with(env, model, &[("wide", 0)])?)?;
    }
    Ok(())
}

fn last_byte_two(env: &Env) -> Verdict {
    // In the same page table and, as the module has no other IOMMU as wide, after one has left.
    let devices = [("wide", 0), ("wide", 1), ("plain", 0)];
    let mut session = Session::with(env, Model::V2, &devices)?;
    session.remove(2)?;
    expect_eq("valid ranges", ranges(&session)?, vec![(0, u64::MAX)])?;
    works_at_the_end(&session)
}

fn last_byte_joins(env: &Env) -> Verdict {
    let memory = Memory::anon(2 * PAGE)?;
    let iova = 0u64.wrapping_sub(2 * PAGE);
    let mut session = Session::open(env, "wide")?;
    session.container.map(iova, memory.vaddr(), 2 * PAGE, RW)?;
    let refused = session.add("plain", 0)?;
    expect_errno("mapped beyond its aperture", refused, Errno::EINVAL)?;
    session.add("wide", 1)??;
    expect_same(&session, 2 * PAGE)?;
    session.remove(0)?;
    let done = session.engine().fill(iova, 2 * PAGE, 1, 2)?;
    expect_done("fill", done, 2 * PAGE)?;
    let unmapped = session.container.unmap_all()?;
    expect_eq("bytes unmapped", unmapped, 2 * PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    session.add("plain", 0)??;
    expect_same(&session, PAGE)
}
