// SPDX-License-Identifier: GPL-2.0

//! Memory slots: which leaves they are mapped with.

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    GIB,
    MIB, //
};
use harness::tests;
use harness::vfio::{
    PAGE,
    RW, //
};
use nix::errno::Errno;

use crate::bar::Bar;
use crate::guest::{
    Answer,
    Ask,
    Slot,
    Vm,
    IPA_BITS, //
};
use crate::level::Level;
use crate::provider;
use crate::rig::{
    Rig,
    Window,
    IPA, //
};

const M2: u64 = 2 * MIB;
const MEM_LOG_DIRTY_PAGES: u32 = kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
const MEM_READONLY: u32 = kvm_bindings::KVM_MEM_READONLY;

tests! {
    "slot.lazy", "making a slot maps nothing" => lazy;
    "slot.64K", "pages, where the BAR is smaller than a block" => whole_64k;
    "slot.4M", "blocks of 2 MiB" => whole_4m;
    "slot.1G", "the largest block the code makes, over a BAR of that size" => whole_1g;
    "slot.4G", "the largest block the code makes, over a larger BAR" => whole_4g;
    "slot.every_block", "one fault for each block of a BAR, however it is touched" => every_block;
    "slot.touched", "the same where the process itself has touched the BAR" => touched;
    "slot.dma", "the same where the BAR is mapped for DMA of another device" => dma;
    "slot.page_off", "pages, where guest and process disagree by a page" => page_off;
    "slot.block_off", "2 MiB, where guest and process disagree by such a block" => block_off;
    "slot.process_off", "pages, where process and device disagree by a page" => process_off;
    "slot.process_block_off", "2 MiB, where process and device disagree by such a block" => process_block_off;
    "slot.partial", "pages and smaller blocks, where a slot begins or ends within a block" => partial;
    "slot.part", "a slot over a part of what the process has mapped" => part;
    "slot.beyond", "a slot over more than the process has mapped" => beyond;
    "slot.several", "several slots over the same and over different parts" => several;
    "slot.delete", "nothing is mapped any more once a slot is deleted" => delete;
    "slot.move", "a slot that is moved is mapped at its new place only" => moved;
    "slot.read_only", "a guest that writes to a slot it may only read is left to the process" => read_only;
    "slot.dirty_log", "the dirty pages of device memory cannot be logged" => dirty_log;
    "slot.logged", "pages, and each that was written is logged, where a BAR got into a slot that logs" => logged;
    "slot.ipa_limit", "no slot reaches beyond the guest's address space" => ipa_limit;
}

/// A guest with all of a BAR at `IPA`.
#[track_caller]
fn whole<'a>(bar: &'a Bar<'a>) -> Verdict<Rig<'a>> {
    Rig::with_slot(Window::new(bar, 0, bar.region.size, 0)?, IPA)
}

fn lazy(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = whole(&bar)?;
    expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])?;
    rig.check()
}

/// Accesses the first and the last word of a BAR, and some in between, and again.
fn samples(env: &Env, size: u64, level: Level) -> Verdict {
    let bar = Bar::open(env, size)?;
    let mut rig = whole(&bar)?;
    let mid = IPA + size / 2;
    for ipa in [
        IPA + size - 8,
        IPA,
        mid,
        mid - 8,
        IPA + size / 4 + PAGE,
        mid + 8,
    ] {
        rig.access(ipa)?;
        rig.check()?;
    }
    // The rig's rule is one thing, this line another.
    let biggest = rig.vm.mapped()?.into_iter().map(|run| run.level).max();
    expect_eq("the largest leaf", biggest, Some(level))
}

fn whole_64k(env: &Env) -> Verdict {
    samples(env, 64 << 10, Level::Page)
}

fn whole_4m(env: &Env) -> Verdict {
    samples(env, 4 * MIB, Level::Block2M)
}

fn whole_1g(env: &Env) -> Verdict {
    samples(env, GIB, provider::largest())
}

fn whole_4g(env: &Env) -> Verdict {
    samples(env, 4 * GIB, provider::largest())
}

fn every_block(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let mut rig = whole(&bar)?;
    for block in (0..GIB / M2).rev() {
        // Another page of each.
        rig.access(IPA + block * M2 + block * PAGE % M2)?;
    }
    rig.check()?;
    rig.expect_levels(&[(IPA..IPA + GIB, provider::largest())])?;
    // No fault any more.
    let sum = rig.cpu.ask(Ask::Sum((IPA, IPA + GIB), M2))?;
    let words = (0..GIB / M2).map(|block| rig.window.bar.window.read::<u64>(block * M2));
    let want = words.fold(0, u64::wrapping_add);
    expect_eq("sum of the words the guest reads", sum, Answer::Done(want))?;
    rig.cpu.ask(Ask::Fill((IPA, IPA + GIB), M2, 42))?;
    for at in (0..GIB).step_by(M2 as usize) {
        let word = rig.window.bar.window.read::<u64>(at);
        expect_eq("a word the guest wrote", word, IPA + at + 42)?;
    }
    rig.check()
}

fn touched(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = whole(&bar)?;
    for at in (0..4 * GIB).step_by(M2 as usize) {
        rig.window.memory.write(at, at);
    }
    fill(&mut rig, 4 * GIB)
}

fn dma(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = whole(&bar)?;
    let hva = rig.window.memory.vaddr();
    bar.session.container.map(1 << 36, hva, 4 * GIB, RW)?;
    fill(&mut rig, 4 * GIB)?;
    bar.session.container.unmap(1 << 36, 4 * GIB, 0)?;
    // What the device was given is no concern of the guest's.
    rig.check()
}

/// Accesses each 2 MiB of a slot at `IPA`, all of which the process has populated.
#[track_caller]
fn fill(rig: &mut Rig<'_>, size: u64) -> Verdict {
    for ipa in (IPA..IPA + size).step_by(M2 as usize) {
        rig.access(ipa + 8)?;
    }
    rig.check()?;
    rig.expect_levels(&[(IPA..IPA + size, provider::largest())])
}

/// Accesses words all over a slot of a BAR of 4 GiB.
#[track_caller]
fn scattered(rig: &mut Rig<'_>, ipa: u64, size: u64, level: Level) -> Verdict {
    for step in 0..40 {
        rig.access(ipa + (size / 41 * step + step * PAGE) / 8 * 8)?;
    }
    rig.check()?;
    let biggest = rig.vm.mapped()?.into_iter().map(|run| run.level).max();
    expect_eq("the largest leaf", biggest, Some(level))
}

/// Guest and process disagree by `off` bytes.
fn disagree(env: &Env, guest: u64, process: u64, level: Level) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let window = Window::new(&bar, 0, 4 * GIB, process)?;
    let mut rig = Rig::with_slot(window, IPA + guest)?;
    scattered(&mut rig, IPA + guest, 4 * GIB, level)
}

fn page_off(env: &Env) -> Verdict {
    disagree(env, PAGE, 0, Level::Page)
}

fn block_off(env: &Env) -> Verdict {
    disagree(env, M2, 0, Level::Block2M)
}

fn process_off(env: &Env) -> Verdict {
    // Guest and device agree, and so do guest and process.
    disagree(env, 0, PAGE, Level::Page)?;
    disagree(env, PAGE, PAGE, Level::Page)
}

fn process_block_off(env: &Env) -> Verdict {
    disagree(env, 0, M2, Level::Block2M)?;
    disagree(env, M2, M2, Level::Block2M)
}

fn partial(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    // From within a block of each size to within another.
    let (first, last) = (M2 / 2 + PAGE, 2 * GIB + M2 + 3 * PAGE);
    let window = Window::new(&bar, first, last - first, 0)?;
    let mut rig = Rig::with_slot(window, IPA + first)?;
    for at in [
        first,
        M2 - 8,
        M2,
        GIB - 8,
        GIB + 5 * PAGE,
        2 * GIB - 8,
        2 * GIB,
        2 * GIB + M2,
        last - 8,
    ] {
        rig.access(IPA + at)?;
        rig.check()?;
    }
    let page = |at: u64| {
        (
            IPA + at / PAGE * PAGE..IPA + at / PAGE * PAGE + PAGE,
            Level::Page,
        )
    };
    let block = |at: u64| (IPA + at..IPA + at + M2, Level::Block2M);
    let mut want = vec![page(first), page(M2 - 8), block(M2), block(GIB - M2)];
    match provider::largest() {
        Level::Block1G => want.push((IPA + GIB..IPA + 2 * GIB, Level::Block1G)),
        _ => want.extend([block(GIB), block(2 * GIB - M2)]),
    }
    want.extend([block(2 * GIB), page(2 * GIB + M2), page(last - 8)]);
    rig.expect_levels(&joined(want))
}

/// Joins neighbours of the same level.
fn joined(leaves: Vec<(std::ops::Range<u64>, Level)>) -> Vec<(std::ops::Range<u64>, Level)> {
    let mut joined: Vec<(std::ops::Range<u64>, Level)> = Vec::new();
    for (range, level) in leaves {
        match joined.last_mut() {
            Some(last) if last.0.end == range.start && last.1 == level => last.0.end = range.end,
            _ => joined.push((range, level)),
        }
    }
    joined
}

fn part(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = Rig::new(Window::new(&bar, 0, 4 * GIB, 0)?)?;
    let (first, size) = (GIB - 3 * M2, GIB + 6 * M2);
    rig.add(1, IPA + first, first, size)?;
    for at in [
        first,
        GIB - 8,
        GIB,
        GIB + M2 * 7,
        2 * GIB - 8,
        2 * GIB,
        first + size - 8,
    ] {
        rig.access(IPA + at)?;
    }
    rig.check()?;
    // Beside the slot there is nothing, though the process has mapped it.
    for ipa in [IPA + first - 8, IPA + first + size] {
        let got = rig.cpu.ask(Ask::Read(ipa))?;
        expect_eq(
            "the guest reads beside the slot",
            got,
            Answer::Emulated(ipa),
        )?;
    }
    expect_eq("mapped", rig.vm.mapped()?.is_empty(), false)
}

fn beyond(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut window = Window::new(&bar, 0, 2 * GIB, 0)?;
    let len = GIB + M2 + PAGE;
    window.memory.truncate(len);
    window.shorten(len);
    let mut rig = Rig::new(window)?;
    rig.add(1, IPA, 0, 2 * GIB)?;
    for at in [0, GIB, GIB + M2 - 8, GIB + M2, len - 8, len, 2 * GIB - 8] {
        rig.read(IPA + at)?;
        rig.write(IPA + at)?;
    }
    rig.check()
}

fn several(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = Rig::new(Window::new(&bar, 0, 4 * GIB, 0)?)?;
    // Two that meet within a block, one that agrees with no one, one that is another's alias.
    let meet = GIB + M2 / 2;
    rig.add(1, IPA, 0, meet)?;
    rig.add(2, IPA + meet, meet, 2 * GIB - meet)?;
    rig.add(3, IPA + 8 * GIB + PAGE, GIB, GIB)?;
    rig.add(4, IPA + 16 * GIB, 0, 2 * GIB)?;
    for at in [0, GIB - 8, GIB, meet - 8, meet, GIB + M2, 2 * GIB - 8] {
        rig.access(IPA + at)?;
        rig.access(IPA + 16 * GIB + at)?;
        if at >= GIB {
            rig.access(IPA + 8 * GIB + PAGE + at - GIB)?;
        }
    }
    rig.check()?;
    rig.delete(2)?;
    rig.check()?;
    rig.access(IPA + 16 * GIB + meet)?;
    rig.access(IPA + GIB + 8)?;
    rig.check()
}

fn delete(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let mut rig = whole(&bar)?;
    for _ in 0..2 {
        rig.access(IPA)?;
        rig.access(IPA + GIB - 8)?;
        rig.check()?;
        rig.delete(1)?;
        expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])?;
        rig.check()?;
        rig.add(1, IPA, 0, GIB)?;
        expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])?;
    }
    rig.access(IPA + GIB / 2)?;
    rig.check()
}

fn moved(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let mut rig = whole(&bar)?;
    // To where it is as well aligned, less well, and back.
    for (from, to) in [
        (IPA, IPA + 4 * GIB),
        (IPA + 4 * GIB, IPA + 8 * GIB + PAGE),
        (IPA + 8 * GIB + PAGE, IPA + M2),
        (IPA + M2, IPA),
    ] {
        for at in [0, GIB / 2, GIB - 8] {
            rig.access(from + at)?;
        }
        rig.check()?;
        rig.move_to(1, to)?;
        expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])?;
        if to.abs_diff(from) > GIB {
            let got = rig.cpu.ask(Ask::Read(from))?;
            expect_eq("the guest reads where it was", got, Answer::Emulated(from))?;
            rig.uncounted(1);
        }
    }
    rig.access(IPA)?;
    rig.check()
}

fn read_only(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let rig = Rig::new(Window::new(&bar, 0, GIB, 0)?)?;
    let slot = Slot {
        flags: MEM_READONLY,
        ..rig.slot(1, IPA, 0, GIB)
    };
    rig.vm.set_slot(&slot)?;
    let mut cpu = rig.cpu;
    for at in [0, M2, GIB - 8] {
        bar.window.write(at, at + 1);
        let got = cpu.ask(Ask::Read(IPA + at))?;
        expect_eq("the guest reads", got, Answer::Done(at + 1))?;
        let got = cpu.ask(Ask::Write(IPA + at, 0))?;
        expect_eq("the guest writes", got, Answer::Emulated(IPA + at))?;
        expect_eq("what is there", bar.window.read::<u64>(at), at + 1)?;
    }
    Ok(())
}

fn dirty_log(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let mut rig = Rig::new(Window::new(&bar, 0, GIB, 0)?)?;
    let plain = rig.slot(1, IPA, 0, GIB);
    let logged = Slot {
        flags: MEM_LOG_DIRTY_PAGES,
        ..plain.clone()
    };
    expect_errno("a slot", rig.vm.set_slot(&logged), Errno::EINVAL)?;
    rig.add(1, IPA, 0, GIB)?;
    rig.access(IPA)?;
    expect_errno("the same slot", rig.vm.set_slot(&logged), Errno::EINVAL)?;
    // It goes on as it was.
    rig.access(IPA + 8)?;
    rig.access(IPA + GIB - 8)?;
    rig.check()
}

/// The flag is refused only if there is device memory when it is set.
fn logged(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let rig = Rig::new(Window::new(&bar, 0, GIB, 0)?)?;
    let memory = &rig.window.memory;
    memory.take_away(0, GIB)?;
    let slot = Slot {
        flags: MEM_LOG_DIRTY_PAGES,
        ..rig.slot(1, IPA, 0, GIB)
    };
    rig.vm.set_slot(&slot)?;
    memory.put_region(0, GIB, &bar.device, bar.region, 0)?;
    let mut cpu = rig.cpu;
    let mut write = |at: u64| {
        let got = cpu.ask(Ask::Write(IPA + at, at + 1))?;
        expect("the guest writes", matches!(got, Answer::Done(_)))?;
        expect_eq("what is there", bar.window.read::<u64>(at), at + 1)
    };
    let pages = [5 * PAGE, 7 * PAGE, M2, GIB / 2, GIB - PAGE];
    for at in pages {
        write(at)?;
    }
    let leaf = |at: u64| (IPA + at..IPA + at + PAGE, Level::Page);
    let mapped = rig.vm.mapped()?.into_iter();
    let got: Vec<_> = mapped.map(|run| (run.range, run.level)).collect();
    expect_eq("mapped", got, joined(pages.map(leaf).into()))?;
    let numbers = |pages: &[u64]| -> Vec<u64> { pages.iter().map(|at| at / PAGE).collect() };
    expect_eq("dirty", rig.vm.dirty(&slot)?, numbers(&pages))?;
    expect_eq("dirty again", rig.vm.dirty(&slot)?, vec![])?;
    // What was logged is logged anew.
    for at in [M2 + 8, 6 * PAGE] {
        write(at)?;
    }
    expect_eq("dirty", rig.vm.dirty(&slot)?, numbers(&[6 * PAGE, M2]))?;
    // Without logging there are blocks again.
    rig.vm.set_slot(&Slot { flags: 0, ..slot })?;
    write(M2 * 3)?;
    let biggest = rig.vm.mapped()?.into_iter().map(|run| run.level).max();
    expect_eq("the largest leaf", biggest, Some(provider::largest()))
}

fn ipa_limit(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let window = Window::new(&bar, 0, GIB, 0)?;
    let vm = Vm::new()?;
    let limit = 1 << IPA_BITS;
    for ipa in [limit - GIB + PAGE, limit, limit + GIB] {
        expect_errno(
            "a slot",
            vm.set_slot(&Slot::all(&window.memory, ipa)),
            Errno::EFAULT,
        )?;
    }
    let mut rig = Rig::with_slot(window, limit - GIB)?;
    rig.access(limit - 8)?;
    rig.access(limit - GIB)?;
    rig.check()?;
    expect_errno(
        "a move",
        rig.vm.set_slot(&rig.slot(1, limit, 0, GIB)),
        Errno::EFAULT,
    )?;
    // It stays where it is, but the guest has to fault again.
    rig.forget_window(0, GIB);
    rig.access(limit - 16)?;
    rig.check()
}
