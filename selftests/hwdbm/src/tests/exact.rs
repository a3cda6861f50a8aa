// SPDX-License-Identifier: GPL-2.0

//! Pages of 4 KiB each, of which exactly those are dirty that the device wrote to.

use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use harness::memory::Memory;
use harness::tests;
use harness::vfio::PAGE;
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};

use crate::log::{
    Iommufd,
    Log,
    Pages,
    Type1, //
};
use crate::rig::{
    Rig,
    IOVA, //
};

tests! {
    "iommufd.quiet", "what nobody, the processor or the device wrote before is clean" => quiet::<Iommufd>;
    "iommufd.each", "each page that is written to gets dirty, and no other" => each::<Iommufd>;
    "iommufd.read", "reading leaves a page clean, and a later write does not escape" => read::<Iommufd>;
    "iommufd.again", "a page that was cleaned gets dirty again" => again::<Iommufd>;
    "iommufd.look", "looking leaves dirty pages dirty" => look::<Iommufd>;
    "iommufd.across", "a write over a page border makes both pages dirty" => across::<Iommufd>;
    "iommufd.apart", "cleaning one range leaves others dirty" => apart::<Iommufd>;
    "iommufd.mapped", "memory mapped meanwhile is tracked, and what was unmapped is forgotten" => mapped::<Iommufd>;
    "iommufd.stopped", "what is written while tracking is off is never reported" => stopped::<Iommufd>;
    "iommufd.random", "any order of reads, writes and cleanings" => random::<Iommufd>;

    "type1.quiet", "what nobody, the processor or the device wrote before is clean" => quiet::<Type1>;
    "type1.each", "each page that is written to gets dirty, and no other" => each::<Type1>;
    "type1.read", "reading leaves a page clean, and a later write does not escape" => read::<Type1>;
    "type1.again", "a page that was cleaned gets dirty again" => again::<Type1>;
    "type1.look", "looking leaves dirty pages dirty" => look::<Type1>;
    "type1.across", "a write over a page border makes both pages dirty" => across::<Type1>;
    "type1.apart", "cleaning one range leaves others dirty" => apart::<Type1>;
    "type1.mapped", "memory mapped meanwhile is tracked, and what was unmapped is forgotten" => mapped::<Type1>;
    "type1.stopped", "what is written while tracking is off is never reported" => stopped::<Type1>;
    "type1.random", "any order of reads, writes and cleanings" => random::<Type1>;
}

/// What is mapped at once, which is a word of a bitmap.
pub(super) const LEN: u64 = 64 * PAGE;

/// A rig with memory of which each page has an entry of its own in the page table.
#[track_caller]
pub(super) fn set_up<L: Log>(env: &Env, len: u64) -> Verdict<(Rig<L>, Memory)> {
    let rig = Rig::<L>::open(env)?;
    let memory = Memory::scattered(len)?;
    for offset in (0..len).step_by(LEN as usize) {
        rig.log.map(IOVA + offset, memory.vaddr() + offset, LEN)?;
    }
    Ok((rig, memory))
}

fn quiet<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.write(&memory, IOVA, 3 * PAGE, PAGE)?;
    rig.log.start()?;
    rig.expect_dirty(IOVA, LEN, [])?;
    memory.fill(0x77);
    rig.expect_dirty(IOVA, LEN, [])?;
    // Before, the IOMMU had no reason to look at the page table again.
    rig.write(&memory, IOVA, 3 * PAGE, PAGE)?;
    rig.expect_cleaned(IOVA, LEN, [3])
}

fn each<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    let mut want = Pages::new();
    // The first, the last, and all in between once, neither upwards nor downwards.
    for page in (0..64).map(|n| n * 23 % 64) {
        rig.write(&memory, IOVA, page * PAGE, PAGE)?;
        want.insert(page);
        expect_eq(
            "dirty pages",
            rig.log.pages(IOVA, LEN, false)?,
            want.clone(),
        )?;
    }
    expect_eq("dirty pages", rig.log.pages(IOVA, LEN, true)?, want)?;
    rig.expect_cleaned(IOVA, LEN, [])
}

fn read<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    for page in [0, 31, 63] {
        memory.put(page * PAGE, &[page as u8; PAGE as usize]);
        rig.read(&memory, IOVA, page * PAGE, PAGE)?;
        rig.expect_dirty(IOVA, LEN, [])?;
        // The IOMMU may have cached that the page can be written to, too.
        rig.write(&memory, IOVA, page * PAGE, 1)?;
        rig.expect_cleaned(IOVA, LEN, [page])?;
        rig.read(&memory, IOVA, page * PAGE, PAGE)?;
        rig.expect_dirty(IOVA, LEN, [])?;
    }
    Ok(())
}

fn again<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    for n in 0..6 {
        rig.write(&memory, IOVA, 7 * PAGE + n, 1)?;
        rig.expect_cleaned(IOVA, LEN, [7])?;
        rig.expect_cleaned(IOVA, LEN, [])?;
    }
    rig.write(&memory, IOVA, 7 * PAGE, PAGE)?;
    rig.write(&memory, IOVA, 7 * PAGE, PAGE)?;
    rig.expect_cleaned(IOVA, LEN, [7])
}

fn look<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    rig.write(&memory, IOVA, 40 * PAGE, PAGE)?;
    rig.expect_dirty(IOVA, LEN, [40])?;
    rig.expect_dirty(IOVA, LEN, [40])?;
    rig.write(&memory, IOVA, 41 * PAGE, PAGE)?;
    rig.expect_dirty(IOVA, LEN, [40, 41])?;
    rig.expect_cleaned(IOVA, LEN, [40, 41])?;
    rig.expect_dirty(IOVA, LEN, [])
}

fn across<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    rig.write(&memory, IOVA, 10 * PAGE - 1, 2)?;
    rig.expect_cleaned(IOVA, LEN, [9, 10])?;
    rig.write(&memory, IOVA, 20 * PAGE + 8, PAGE)?;
    rig.expect_cleaned(IOVA, LEN, [20, 21])?;
    rig.write(&memory, IOVA, 31 * PAGE - 1, 1)?;
    rig.expect_cleaned(IOVA, LEN, [30])
}

fn apart<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, 3 * LEN)?;
    rig.log.start()?;
    for page in [5, 64, 127, 128] {
        rig.write(&memory, IOVA, page * PAGE, 100)?;
    }
    rig.expect_cleaned(IOVA + LEN, LEN, [0, 63])?;
    rig.expect_dirty(IOVA, 3 * LEN, [5, 128])?;
    rig.write(&memory, IOVA, 64 * PAGE, 100)?;
    rig.expect_cleaned(IOVA, LEN, [5])?;
    rig.expect_cleaned(IOVA, 3 * LEN, [64, 128])?;
    rig.expect_cleaned(IOVA, 3 * LEN, [])
}

fn mapped<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    let other = Memory::scattered(LEN)?;
    let there = IOVA + LEN;
    rig.log.map(there, other.vaddr(), LEN)?;
    rig.expect_dirty(IOVA, 2 * LEN, [])?;
    rig.write(&other, there, 2 * PAGE, PAGE)?;
    rig.write(&memory, IOVA, 2 * PAGE, PAGE)?;
    rig.expect_dirty(IOVA, 2 * LEN, [2, 66])?;

    rig.log.unmap(there, LEN)?;
    rig.log.map(there, other.vaddr(), LEN)?;
    rig.expect_dirty(IOVA, 2 * LEN, [2])?;
    rig.write(&other, there, 3 * PAGE, PAGE)?;
    rig.expect_cleaned(IOVA, 2 * LEN, [2, 67])
}

fn stopped<L: Log>(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<L>(env, LEN)?;
    rig.log.start()?;
    rig.write(&memory, IOVA, 0, PAGE)?;
    rig.log.stop()?;
    rig.write(&memory, IOVA, PAGE, PAGE)?;
    rig.log.start()?;
    rig.expect_dirty(IOVA, LEN, [])?;
    rig.write(&memory, IOVA, PAGE, PAGE)?;
    rig.expect_cleaned(IOVA, LEN, [1])
}

fn random<L: Log>(env: &Env) -> Verdict {
    const PARTS: u64 = 4;
    let (rig, memory) = set_up::<L>(env, PARTS * LEN)?;
    rig.log.start()?;
    let mut random = ChaCha8Rng::seed_from_u64(0x5ad5);
    let mut dirty = Pages::new();
    for step in 0..80 {
        let at = random.random_range(0..memory.len() - PAGE);
        let count = random.random_range(1..=PAGE);
        match random.random_range(0..8) {
            0 => rig.read(&memory, IOVA, at, count)?,
            1..5 => {
                rig.write(&memory, IOVA, at, count)?;
                dirty.extend(at / PAGE..=(at + count - 1) / PAGE);
            }
            kind => {
                let first = random.random_range(0..PARTS);
                let parts = random.random_range(1..=PARTS - first);
                let (start, len) = (first * LEN, parts * LEN);
                let there = |page: &u64| (start..start + len).contains(&(page * PAGE));
                let want: Pages = dirty.iter().copied().filter(there).collect();
                let clean = kind > 5;
                let got = rig.log.pages(IOVA + start, len, clean)?;
                let got: Pages = got.into_iter().map(|page| page + start / PAGE).collect();
                expect_eq(format_args!("dirty pages at step {step}"), got, want)?;
                if clean {
                    dirty.retain(|page| !there(page));
                }
            }
        }
    }
    let got = rig.log.pages(IOVA, memory.len(), true)?;
    expect_eq("dirty pages at the end", got, dirty)
}
