// SPDX-License-Identifier: GPL-2.0

//! What only the Rust module has: parameters, and what it tells of its mappings.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use harness::check::{
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::env::{
    Env,
    Parameter, //
};
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::tests;
use harness::trace::Events;
use harness::vfio::PAGE;

use crate::bar::Bar;
use crate::guest::{
    self,
    Answer,
    Ask,
    Cpu,
    Slot,
    Vm, //
};
use crate::level::Level;
use crate::provider::MODULE;
use crate::rig::IPA;

const M2: u64 = 2 * MIB;
const SIZE: u64 = 4 * GIB;
/// Leaves of 2 MiB in a block of 1 GiB.
const LEAVES: u64 = GIB / M2;

tests! {
    "rust.prefault", "as many leaves of the process are filled as the parameter allows, or none" => prefault;
    "rust.upgrade", "blocks get larger once the process has the leaves for it" => upgrade;
    "rust.max_leaves", "no more leaves are looked at than the parameter allows" => max_leaves;
    "rust.trace", "each mapping is traced, with its address, memory type and what it was bound by" => trace;
    "rust.stats", "debugfs counts mappings by level, bound and leaves filled" => stats;
}

/// A guest with all of a BAR at `ipa`.
struct Guest {
    vm: Vm,
    cpu: Cpu,
    memory: Memory,
    ipa: u64,
}

impl Guest {
    #[track_caller]
    fn new(bar: &Bar<'_>, ipa: u64) -> Verdict<Self> {
        let memory = bar.map(0, SIZE, 0)?;
        let vm = Vm::new()?;
        let mut cpu = vm.cpu(0)?;
        vm.set_slot(&Slot::all(&memory, ipa))?;
        // Of what is not the BAR's nothing counts.
        cpu.ask(Ask::Read(0))?;
        Ok(Guest {
            vm,
            cpu,
            memory,
            ipa,
        })
    }

    /// Has the guest read a word, which another mapping has written.
    #[track_caller]
    fn read(&mut self, bar: &Bar<'_>, at: u64) -> Verdict {
        bar.window.write(at, at + 1);
        let got = self.cpu.ask(Ask::Read(self.ipa + at))?;
        expect_eq("the guest reads", got, Answer::Done(at + 1))
    }

    /// Checks the one leaf there is around a place.
    #[track_caller]
    fn expect_one(&self, at: u64, level: Level) -> Verdict {
        let mapped = self.vm.mapped()?.into_iter();
        let got: Vec<_> = mapped.map(|run| (run.range, run.level)).collect();
        let start = self.ipa + at / level.size() * level.size();
        expect_eq("mapped", got, vec![(start..start + level.size(), level)])
    }
}

fn prefault(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let parameter = Parameter::of(MODULE, "prefault")?;
    // The fault itself fills one.
    for (budget, level) in [
        (0, Level::Block2M),
        (LEAVES - 2, Level::Block2M),
        (LEAVES - 1, Level::Block1G),
        (u64::from(u32::MAX), Level::Block1G),
    ] {
        parameter.set(&budget.to_string())?;
        let mut guest = Guest::new(&bar, IPA)?;
        guest.read(&bar, GIB + 5 * M2)?;
        guest.expect_one(GIB + 5 * M2, level)?;
    }
    Ok(())
}

fn upgrade(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let parameter = Parameter::of(MODULE, "prefault")?;
    parameter.set("0")?;
    let mut guest = Guest::new(&bar, IPA)?;
    for block in 0..4 {
        guest.read(&bar, block * M2)?;
    }
    let small = |count| (IPA..IPA + count * M2, Level::Block2M);
    let levels = |guest: &Guest| -> Verdict<Vec<_>> {
        let mapped = guest.vm.mapped()?.into_iter();
        Ok(mapped.map(|run| (run.range, run.level)).collect())
    };
    expect_eq("mapped", levels(&guest)?, vec![small(4)])?;
    // All but the last leaf.
    for at in (0..GIB - M2).step_by(M2 as usize) {
        guest.memory.read::<u64>(at);
    }
    guest.read(&bar, 4 * M2)?;
    expect_eq("mapped", levels(&guest)?, vec![small(5)])?;
    guest.memory.read::<u64>(GIB - M2);
    let faults = guest::faults()?;
    guest.read(&bar, 4 * M2 + 8)?;
    expect_eq("faults where it is mapped", faults.take()?.len(), 0)?;
    guest.read(&bar, 5 * M2)?;
    guest.expect_one(0, Level::Block1G)?;
    for block in 0..LEAVES {
        guest.read(&bar, block * M2 + PAGE)?;
    }
    expect_eq("faults", faults.take()?.len(), 1)
}

fn max_leaves(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let parameter = Parameter::of(MODULE, "max_leaves")?;
    for (budget, level) in [
        (0, Level::Block2M),
        (LEAVES - 1, Level::Block2M),
        (LEAVES, Level::Block1G),
    ] {
        parameter.set(&budget.to_string())?;
        let mut guest = Guest::new(&bar, IPA)?;
        for at in (0..SIZE).step_by(M2 as usize) {
            guest.memory.read::<u64>(at);
        }
        guest.read(&bar, 2 * GIB)?;
        guest.expect_one(2 * GIB, level)?;
    }
    Ok(())
}

fn trace(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let at = GIB + 3 * M2 + 7 * PAGE;
    for (off, level, bound) in [
        (0, Level::Block1G, "largest"),
        (M2, Level::Block2M, "offset"),
        (PAGE, Level::Page, "offset"),
    ] {
        let mut guest = Guest::new(&bar, IPA + off)?;
        let events = Events::record("kvm_arm64_rs/device_map", "0")?;
        guest.read(&bar, at)?;
        guest.read(&bar, at + 8)?;
        let lines = events.take()?;
        expect_eq("events", lines.len(), 1)?;
        let fields: BTreeMap<&str, &str> = lines
            .iter()
            .flat_map(|line| line.split_whitespace())
            .filter_map(|word| word.split_once('='))
            .collect();
        let place = at / level.size() * level.size();
        for (name, want) in [
            ("ipa", format!("{:#x}", IPA + off + place)),
            ("hva", format!("{:#x}", guest.memory.vaddr() + place)),
            ("pa", format!("{:#x}", bar.base + place)),
            ("size", format!("{:#x}", level.size())),
            // VFIO lets guests choose the memory type.
            ("memory", "normal-nc".to_owned()),
            ("prot", "rw-".to_owned()),
            ("bound", bound.to_owned()),
        ] {
            expect_eq(name, fields.get(name).copied(), Some(want.as_str()))?;
        }
        let filled = if level == Level::Block1G {
            LEAVES - 1
        } else {
            0
        };
        let filled = filled.to_string();
        expect_eq(
            "prefaulted",
            fields.get("prefaulted").copied(),
            Some(filled.as_str()),
        )?;
    }
    Ok(())
}

/// What debugfs says, by the words before the number.
#[track_caller]
fn counts() -> Verdict<BTreeMap<String, u64>> {
    let path = Path::new("/sys/kernel/debug").join(MODULE).join("stats");
    let text = fs::read_to_string(&path).map_err(|e| missing_or_fail(&path, e))?;
    let line = |line: &str| {
        let (name, number) = line.rsplit_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.lines()
        .map(|text| line(text).ok_or_else(|| Stop::fail(format_args!("{text:?}"))))
        .collect()
}

fn stats(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let before = counts()?;
    let mut aligned = Guest::new(&bar, IPA)?;
    for at in (0..SIZE).step_by(M2 as usize) {
        aligned.read(&bar, at)?;
    }
    let mut block_off = Guest::new(&bar, IPA + M2)?;
    for at in (0..20 * M2).step_by(M2 as usize) {
        block_off.read(&bar, at)?;
    }
    let mut page_off = Guest::new(&bar, IPA + PAGE)?;
    for at in (0..7 * M2).step_by(M2 as usize) {
        page_off.read(&bar, at)?;
    }
    let after = counts()?;
    expect_eq("names", before.keys().eq(after.keys()), true)?;
    let grown: Vec<(&str, u64)> = after
        .iter()
        .map(|(name, count)| (name.as_str(), count - before[name]))
        .filter(|&(_, count)| count != 0)
        .collect();
    let want = [
        ("bound largest", SIZE / GIB),
        ("bound offset", 20 + 7),
        ("filled", SIZE / GIB * (LEAVES - 1)),
        ("level 1 0x40000000", SIZE / GIB),
        ("level 2 0x200000", 20),
        ("level 3 0x1000", 7),
    ];
    expect_eq("counted", grown.as_slice(), want.as_slice())
}
