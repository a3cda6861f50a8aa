// SPDX-License-Identifier: GPL-2.0

//! Large entries of the page table, which have one dirty bit for all their pages.

use harness::check::{
    expect,
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::tests;
use harness::vfio::{
    DIRTY_CLEAR,
    PAGE, //
};

use crate::log::{
    Iommufd,
    Log,
    Pages,
    Type1, //
};
use crate::rig::Rig;

tests! {
    "iommufd.leaf_2m", "a 2 MiB entry is dirty and clean as a whole" => leaf_2m::<Iommufd>;
    "iommufd.leaf_1g", "a 1 GiB entry is dirty and clean as a whole" => leaf_1g::<Iommufd>;

    "type1.leaf_2m", "a 2 MiB entry is dirty and clean as a whole" => leaf_2m::<Type1>;
    "type1.leaf_1g", "a 1 GiB entry is dirty and clean as a whole" => leaf_1g::<Type1>;
    "type1.leaf_clear", "... but cleared page by page" => leaf_clear;
    "type1.leaf_limit", "... and as small as the operator wants" => leaf_limit;
}

/// Where large memory is mapped: every size divides it.
const HIGH: u64 = GIB;

/// Two neighbouring entries of `size` bytes, of which the device writes to one.
#[track_caller]
fn leaves<L: Log>(env: &Env, size: u64) -> Verdict {
    let rig = Rig::<L>::open(env)?;
    let len = 2 * size;
    let memory = Memory::hugetlb(len, size)?;
    rig.log.map(HIGH, memory.vaddr(), len)?;
    for offset in [0, size] {
        let leaf = env.edu()?.leaf(HIGH + offset)?;
        expect_eq("size of the page-table entry", leaf, size)?;
    }
    rig.log.start()?;
    // Which of the two is dirty, as a whole.
    let dirty = |clean| -> Verdict<[bool; 2]> {
        let words = rig.log.words(HIGH, len, clean)?;
        let (first, second) = words.split_at(words.len() / 2);
        let whole = |words: &[u64]| -> Verdict<bool> {
            expect_eq(
                "words that differ",
                words.iter().position(|w| *w != words[0]),
                None,
            )?;
            expect("all bits are the same", [0, u64::MAX].contains(&words[0]))?;
            Ok(words[0] != 0)
        };
        Ok([whole(first)?, whole(second)?])
    };
    expect_eq("at first", dirty(false)?, [false, false])?;
    for (at, clean) in [(size, false), (2 * size - 1, true), (size + 5 * PAGE, true)] {
        rig.read(&memory, HIGH, 0, PAGE)?;
        rig.write(&memory, HIGH, at, 1)?;
        expect_eq("written", dirty(clean)?, [false, true])?;
        expect_eq("cleaned", dirty(false)?, [false, !clean])?;
    }
    rig.write(&memory, HIGH, size - 1, 2)?;
    expect_eq("over the border", dirty(true)?, [true, true])
}

fn leaf_2m<L: Log>(env: &Env) -> Verdict {
    leaves::<L>(env, 2 * MIB)
}

fn leaf_1g<L: Log>(env: &Env) -> Verdict {
    leaves::<L>(env, GIB)
}

/// Clears pages of a range.
#[track_caller]
fn clear(rig: &Rig<Type1>, iova: u64, len: u64, pages: &[u64]) -> Verdict {
    let mut words = vec![0u64; (len / PAGE).div_ceil(64) as usize];
    for page in pages {
        words[(page / 64) as usize] |= 1 << (page % 64);
    }
    let container = &rig.log.container;
    Ok(container.dirty_range(DIRTY_CLEAR, iova, len, &mut words)?)
}

fn leaf_clear(env: &Env) -> Verdict {
    let rig = Rig::<Type1>::open(env)?;
    let size = 2 * MIB;
    let memory = Memory::hugetlb(size, size)?;
    rig.log.map(HIGH, memory.vaddr(), size)?;
    expect_eq("entry", env.edu()?.leaf(HIGH)?, size)?;
    rig.log.start()?;
    rig.write(&memory, HIGH, 100 * PAGE, PAGE)?;
    let mut left: Pages = (0..512).collect();
    for gone in [0, 100, 511] {
        clear(&rig, HIGH, size, &[gone])?;
        left.remove(&gone);
        let got = rig.log.pages(HIGH, size, false)?;
        expect_eq("dirty pages", got, left.clone())?;
    }
    // The entry was cleaned: a write to the page alone, or to another, is seen again.
    rig.write(&memory, HIGH, 100 * PAGE, PAGE)?;
    let all: Pages = (0..512).collect();
    expect_eq("dirty pages", rig.log.pages(HIGH, size, true)?, all)?;
    rig.expect_dirty(HIGH, size, [])
}

fn leaf_limit(env: &Env) -> Verdict {
    let limit = env.parameter("dirty_granule")?;
    limit.set("4096")?;
    let rig = Rig::<Type1>::open(env)?;
    drop(limit);
    let size = 2 * MIB;
    let memory = Memory::hugetlb(size, size)?;
    rig.log.map(HIGH, memory.vaddr(), size)?;
    expect_eq("entry", env.edu()?.leaf(HIGH)?, PAGE)?;
    rig.log.start()?;
    rig.write(&memory, HIGH, 300 * PAGE, PAGE)?;
    rig.expect_cleaned(HIGH, size, [300])
}
