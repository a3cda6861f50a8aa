// SPDX-License-Identifier: GPL-2.0

//! Groups that come and go: which page table they use, and what it maps.

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::env::{
    Driver,
    Env,
    Model, //
};
use harness::info::Info;
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
    Op,
    Session, //
};
use harness::tests;
use harness::vfio::{
    Container,
    PAGE,
    READ,
    RW, //
};
use vfio_bindings::bindings::vfio;

use super::{
    expect_domains,
    expect_done,
    expect_same,
    expect_unmapped,
    wait_pieces,
    IOVA, //
};

tests! {
    "domain.shared", "groups of one IOMMU share a page table" => shared;
    "domain.narrower", "an IOMMU shares the page table of one that can less, not more" => narrower;
    "domain.newest", "a group that could share several page tables gets the newest" => newest;
    "domain.own", "other page sizes, other drivers, other coherency: a page table of its own" => own;
    "domain.joins", "a group that joins later finds all mappings" => joins;
    "domain.joins_running", "... while others do DMA" => joins_running;
    "domain.first_leaves", "the first group leaves: mappings and pins stay" => first_leaves;
    "domain.leaves", "a group that left reaches nothing" => leaves;
    "domain.last", "with the last group go the mappings" => last;
    "domain.back", "a group that comes back finds what was mapped meanwhile" => back;
    "domain.coherency", "a container is as coherent as its least coherent group" => coherency;
    "domain.freed", "nothing is left of a container" => freed;
}

fn shared(env: &Env) -> Verdict {
    for unit in ["plain", "small", "noncoherent", "wide"] {
        let mut session = Session::open(env, unit)?;
        expect_domains(1)?;
        session.add(unit, 1)??;
        expect_domains(1)?;
        session.remove(0)?;
        expect_domains(1)?;
        session.add(unit, 0)??;
        expect_domains(1)?;
        session.remove(0)?;
        session.remove(0)?;
        expect_domains(0)?;
    }
    Ok(())
}

fn narrower(env: &Env) -> Verdict {
    let rust = env.expected == Some(Driver::Rust);
    for (first, second, domains) in [
        ("small", "plain", 1),
        ("plain", "small", 2),
        ("narrow", "plain", 1),
        ("plain", "narrow", 2),
        ("plain", "wide", 1),
        ("wide", "plain", 2),
        ("big", "plain", 1),
        ("plain", "big", 2),
        // An IOMMU that can track dirty pages has a page table of its own, with which it does.
        ("plain", "dirty", if rust { 2 } else { 1 }),
        ("dirty", "plain", if rust { 2 } else { 1 }),
    ] {
        let session = Session::with(env, Model::V2, &[(first, 0), (second, 0)])?;
        let what = format_args!("domains of {first} and {second}");
        expect_eq(what, soft::alive()?.0, domains)?;
        drop(session);
        // What is in the container before it has a model is attached last to first.
        let container = Container::open()?;
        let mut groups = Vec::new();
        for unit in [second, first] {
            let group = soft::device(unit, 0)?.open_group()?;
            group.set_container(&container)?;
            groups.push(group);
        }
        container.set_iommu(Model::V2.number())?;
        expect_eq(what, soft::alive()?.0, domains)?;
    }
    Ok(())
}

fn newest(env: &Env) -> Verdict {
    let devices = [("plain", 0), ("narrow", 0), ("plain", 1)];
    let mut session = Session::with(env, Model::V2, &devices)?;
    expect_domains(2)?;
    drop(session.engines.remove(1));
    session.groups[1].unset_container()?;
    // The third group keeps the page table alive that it shared with the narrow one.
    expect_domains(2)?;
    let info = Info::read(&session.container)?;
    let last = info.iova.last().map(|(_, last)| *last);
    expect_eq("last address", last, Some((1 << 39) - 1))
}

fn own(env: &Env) -> Verdict {
    let memory = Memory::anon(MIB)?;
    let devices = [
        ("plain", 0),
        ("small", 0),
        ("foreign", 0),
        ("noncoherent", 0),
        ("plain", 1),
        ("foreign", 1),
        ("noncoherent", 1),
        ("small", 1),
    ];
    let session = Session::with(env, Model::V2, &devices)?;
    expect_domains(4)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    expect_same(&session, memory.len())?;
    for (n, engine) in session.engines.iter().enumerate() {
        let done = engine.fill(IOVA, memory.len(), n as u64, 2)?;
        expect_done("fill", done, memory.len())?;
        let bytes = filled(n as u64, IOVA, memory.len());
        expect("memory", memory.get(0, memory.len()) == bytes)?;
    }
    session.container.unmap_all()?;
    expect_unmapped(&session)
}

/// Several mappings of different kinds; their bytes.
#[track_caller]
fn map_some(session: &Session, memory: &Memory) -> Verdict<u64> {
    let quarter = memory.len() / 4;
    for (n, flags) in [(0, RW), (1, READ), (2, RW)] {
        let offset = n * quarter;
        // With holes between them.
        let iova = IOVA + 3 * offset;
        let vaddr = memory.vaddr() + offset;
        session.container.map(iova, vaddr, quarter, flags)?;
    }
    Ok(3 * quarter)
}

fn joins(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    for unit in ["plain", "small", "foreign", "noncoherent"] {
        let mut session = Session::open(env, "plain")?;
        let bytes = map_some(&session, &memory)?;
        expect_eq("locked memory", locked()?, before + bytes)?;
        pins.expect((bytes / PAGE) as i64)?;
        session.add(unit, 1)??;
        expect_eq("locked memory", locked()?, before + bytes)?;
        pins.expect((bytes / PAGE) as i64)?;
        expect_same(&session, bytes)?;
        let engine = &session.engines[1];
        expect_done("fill", engine.fill(IOVA, MIB, 3, 1)?, MIB)?;
        expect("memory", memory.get(0, MIB) == filled(3, IOVA, MIB))?;
        let read_only = IOVA + 3 * MIB;
        let refused = engine.fill(read_only, PAGE, 3, 1)?.fault;
        expect_eq("fault", refused, Some((Fault::NoWrite, read_only)))?;
    }
    Ok(())
}

fn joins_running(env: &Env) -> Verdict {
    let memory = Memory::anon(MIB)?;
    let len = memory.len();
    let mut session = Session::open(env, "plain")?;
    session.container.map(IOVA, memory.vaddr(), len, RW)?;
    expect_done("fill", session.engine().fill(IOVA, len, 9, 1)?, len)?;
    session.engine().start(Op::Fill, IOVA, len, 9, 2)?;
    for _ in 0..10 {
        for unit in ["plain", "small", "noncoherent"] {
            session.add(unit, 1)??;
            expect_done("read", session.engines[1].checksum(IOVA, len, 1)?, len)?;
            session.remove(1)?;
        }
    }
    wait_pieces(session.engine(), 100)?;
    let did = session.engine().stop()?;
    expect_eq("faults", (did.faults, did.fault), (0, None))?;
    expect("memory", memory.get(0, len) == filled(9, IOVA, len))
}

fn first_leaves(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    for unit in ["plain", "small", "foreign", "noncoherent"] {
        let mut session = Session::with(env, Model::V2, &[("plain", 0), (unit, 1)])?;
        let bytes = map_some(&session, &memory)?;
        let mapped = session.engines[1].walk()?;
        session.remove(0)?;
        expect_domains(1)?;
        expect_eq("locked memory", locked()?, before + bytes)?;
        pins.expect((bytes / PAGE) as i64)?;
        expect_eq("leaves", session.engine().walk()?, mapped)?;
        expect_done("fill", session.engine().fill(IOVA, MIB, 3, 1)?, MIB)?;
        expect("memory", memory.get(0, MIB) == filled(3, IOVA, MIB))?;

        expect_eq("unmapped", session.container.unmap_all()?, bytes)?;
        expect_unmapped(&session)?;
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
    }
    Ok(())
}

fn leaves(env: &Env) -> Verdict {
    let memory = Memory::anon(MIB)?;
    let elsewhere = Memory::anon(PAGE)?;
    for unit in ["plain", "small", "foreign"] {
        let mut session = Session::with(env, Model::V2, &[("plain", 0), (unit, 1)])?;
        session
            .container
            .map(IOVA, memory.vaddr(), memory.len(), RW)?;
        let engine = &session.engines[1];
        expect_done("fill", engine.fill(IOVA, MIB, 3, 8)?, MIB)?;
        session.remove(1)?;

        // In a container of its own it sees that one's mappings only.
        let other = Session::with(env, Model::V2, &[(unit, 1)])?;
        let engine = other.engine();
        expect_unmapped(&other)?;
        expect_eq("bytes done", engine.fill(IOVA, MIB, 4, 8)?.done, 0)?;
        other.container.map(IOVA, elsewhere.vaddr(), PAGE, RW)?;
        expect_eq("bytes done", engine.fill(IOVA, MIB, 4, 8)?.done, PAGE)?;
        expect("memory", memory.get(0, MIB) == filled(3, IOVA, MIB))?;
    }
    Ok(())
}

fn last(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    let pins = PinCount::begin()?;
    let before = locked()?;
    let mut session = Session::with(env, Model::V2, &[("plain", 0), ("small", 0)])?;
    map_some(&session, &memory)?;
    session.remove(1)?;
    session.remove(0)?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)?;
    expect_eq("domains and tables", soft::alive()?, (0, 0))
}

fn back(env: &Env) -> Verdict {
    let memory = Memory::anon(4 * MIB)?;
    let mut session = Session::with(env, Model::V2, &[("plain", 0), ("small", 0)])?;
    for round in 0..8 {
        let offset = round % 4 * MIB;
        session
            .container
            .map(IOVA + offset, memory.vaddr() + offset, MIB, RW)?;
        session.remove(1)?;
        if round >= 2 {
            session
                .container
                .unmap(IOVA + (round - 2) % 4 * MIB, MIB, 0)?;
        }
        session.add("small", 0)??;
        let mapped = if round == 0 { MIB } else { 2 * MIB };
        expect_same(&session, mapped)?;
        let (engine, iova) = (&session.engines[1], IOVA + offset);
        expect_done("fill", engine.fill(iova, MIB, round, 1)?, MIB)?;
        let bytes = filled(round, iova, MIB);
        expect("memory", memory.get(offset, MIB) == bytes)?;
        let gone = engine.probe(IOVA + (round + 2) % 4 * MIB)?;
        expect_eq("fault", gone, Some(Fault::Absent))?;
    }
    Ok(())
}

fn coherency(env: &Env) -> Verdict {
    let coherent = |session: &Session| -> Verdict<bool> {
        let extension = vfio::VFIO_DMA_CC_IOMMU as usize;
        Ok(session.container.check_extension(extension)? == 1)
    };
    for (unit, want) in [
        ("plain", true),
        ("small", true),
        ("foreign", true),
        ("noncoherent", false),
    ] {
        let what = format_args!("{unit} is coherent");
        expect_eq(what, coherent(&Session::open(env, unit)?)?, want)?;
    }

    let mut session = Session::open(env, "plain")?;
    session.add("noncoherent", 0)??;
    expect_eq("coherent", coherent(&session)?, false)?;
    expect_domains(2)?;
    session.add("noncoherent", 1)??;
    session.add("plain", 1)??;
    expect_domains(2)?;
    session.remove(1)?;
    expect_eq("coherent", coherent(&session)?, false)?;
    session.remove(1)?;
    expect_eq("coherent", coherent(&session)?, true)?;
    expect_domains(1)?;

    // The other way round; what can be coherent is, in its own page table.
    let mut session = {
        drop(session);
        Session::open(env, "noncoherent")?
    };
    session.add("plain", 0)??;
    expect_eq("coherent", coherent(&session)?, false)?;
    expect_domains(2)?;
    session.remove(0)?;
    expect_eq("coherent", coherent(&session)?, true)?;
    expect_domains(1)
}

fn freed(env: &Env) -> Verdict {
    let pins = PinCount::begin()?;
    let before = locked()?;
    let memory = Memory::anon(4 * MIB)?;
    for model in Model::BOTH {
        let devices = [("plain", 0), ("small", 0), ("noncoherent", 0), ("wide", 0)];
        let session = Session::with(env, model, &devices)?;
        for n in 0..64 {
            // Far from each other, so that each needs tables of its own.
            let (iova, offset) = (IOVA + (n << 32), n * (64 << 10));
            let vaddr = memory.vaddr() + offset;
            session.container.map(iova, vaddr, 64 << 10, RW)?;
        }
        expect_same(&session, memory.len())?;
        expect("tables", soft::alive()?.1 > 4 * 64)?;
        drop(session);
        expect_eq("domains and tables", soft::alive()?, (0, 0))?;
        expect_eq("locked memory", locked()?, before)?;
        pins.expect(0)?;
    }
    Ok(())
}
