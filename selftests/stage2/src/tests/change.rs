// SPDX-License-Identifier: GPL-2.0

//! The process changes its mappings of a BAR: stage 2 follows, and maps nothing the process does
//! not.

use harness::check::{
    expect_eq,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    GIB,
    MIB, //
};
use harness::tests;
use harness::vfio::PAGE;
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};

use crate::bar::Bar;
use crate::rig::{
    Access,
    Rig,
    Window,
    IPA, //
};

const M2: u64 = 2 * MIB;

tests! {
    "change.unmap_page", "a page is unmapped in the middle of a block" => unmap_page;
    "change.unmap_block", "2 MiB are unmapped in the middle of what is mapped" => unmap_block;
    "change.unmap_all", "all is unmapped" => unmap_all;
    "change.no_access", "a page, a block and all get inaccessible, and accessible again" => no_access;
    "change.read_only", "a page, a block and all get read-only, and writable again" => read_only;
    "change.from_read_only", "what the guest met read-only gets writable" => from_read_only;
    "change.put_back", "what was unmapped is mapped again, the same or another part of the BAR" => put_back;
    "change.whole_again", "one new mapping in place of many makes large blocks again" => whole_again;
    "change.random", "changes and accesses in random order" => random;
}

/// A guest with all of a BAR at `IPA`, with what it has accessed around the middle.
#[track_caller]
fn set_up<'a>(bar: &'a Bar<'a>) -> Verdict<Rig<'a>> {
    let size = bar.region.size;
    let mut rig = Rig::with_slot(Window::new(bar, 0, size, 0)?, IPA)?;
    around(&mut rig)?;
    rig.check()?;
    Ok(rig)
}

/// Accesses words around the middle of the slot, and at its ends.
#[track_caller]
fn around(rig: &mut Rig<'_>) -> Verdict {
    let size = rig.window.bar.region.size;
    let mid = size / 2;
    for at in [
        mid,
        mid + PAGE,
        mid + 2 * PAGE,
        mid - 8,
        mid + M2,
        mid - M2,
        mid + 2 * M2,
        0,
        size - 8,
    ] {
        rig.access(IPA + at)?;
    }
    Ok(())
}

/// Changes a piece in some way, with checks before and after the guest comes by again.
#[track_caller]
fn change(rig: &mut Rig<'_>, at: u64, len: u64, access: Access) -> Verdict {
    rig.change(at, len, access)?;
    rig.check()?;
    around(rig)?;
    rig.check()
}

fn unmap_page(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let mut rig = set_up(&bar)?;
    change(&mut rig, GIB / 2 + PAGE, PAGE, Access::Hole)
}

fn unmap_block(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = set_up(&bar)?;
    change(&mut rig, 2 * GIB + M2, M2, Access::Hole)
}

fn unmap_all(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    let mut rig = set_up(&bar)?;
    change(&mut rig, 0, GIB, Access::Hole)?;
    expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])
}

/// The pieces of a BAR that tests change: a page, a block, pages over the end of a block, all.
fn pieces(size: u64) -> [(u64, u64); 4] {
    let mid = size / 2;
    [
        (mid + PAGE, PAGE),
        (mid + M2, M2),
        (mid + 2 * M2 - 4 * PAGE, 8 * PAGE),
        (0, size),
    ]
}

fn back_and_forth(env: &Env, access: Access) -> Verdict {
    for size in [GIB, 4 * GIB] {
        let bar = Bar::open(env, size)?;
        for (at, len) in pieces(size) {
            let mut rig = set_up(&bar)?;
            change(&mut rig, at, len, access)?;
            change(&mut rig, at, len, Access::Full)?;
        }
    }
    Ok(())
}

fn no_access(env: &Env) -> Verdict {
    back_and_forth(env, Access::None)
}

fn read_only(env: &Env) -> Verdict {
    back_and_forth(env, Access::Read)
}

fn from_read_only(env: &Env) -> Verdict {
    let bar = Bar::open(env, GIB)?;
    for (at, len) in pieces(GIB) {
        let mut rig = Rig::with_slot(Window::new(&bar, 0, GIB, 0)?, IPA)?;
        rig.change(at, len, Access::Read)?;
        around(&mut rig)?;
        rig.check()?;
        change(&mut rig, at, len, Access::Full)?;
    }
    Ok(())
}

fn put_back(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    for (at, len) in pieces(2 * GIB) {
        // The same part, one that is a page off, a block off, a large block off.
        for from in [at, at + PAGE, at + M2, at + GIB] {
            let mut rig = Rig::with_slot(Window::new(&bar, 0, 2 * GIB, 0)?, IPA)?;
            let places = [0, at, at + len - 8, GIB, GIB + M2, GIB + PAGE, 2 * GIB - 8];
            for place in places {
                rig.access(IPA + place)?;
            }
            rig.check()?;
            rig.change(at, len, Access::Hole)?;
            rig.check()?;
            rig.remap(at, len, from)?;
            rig.check()?;
            for place in places {
                rig.access(IPA + place)?;
            }
            rig.check()?;
            // Over what is there, without a hole between.
            rig.remap(at, len, at)?;
            rig.check()?;
            for place in places {
                rig.access(IPA + place)?;
            }
            rig.check()?;
        }
    }
    Ok(())
}

fn whole_again(env: &Env) -> Verdict {
    let bar = Bar::open(env, 4 * GIB)?;
    let mut rig = set_up(&bar)?;
    for at in (0..4 * GIB).step_by((GIB / 4) as usize) {
        change(&mut rig, at + PAGE, PAGE, Access::None)?;
    }
    rig.remap(0, 4 * GIB, 0)?;
    expect_eq("mapped in stage 2", rig.vm.mapped()?, vec![])?;
    for at in (0..4 * GIB).step_by((GIB / 4) as usize) {
        rig.access(IPA + at + PAGE)?;
    }
    rig.check()
}

fn random(env: &Env) -> Verdict {
    const ROUNDS: u32 = 400;
    let size = 4 * GIB;
    let bar = Bar::open(env, size)?;
    let mut rig = Rig::with_slot(Window::new(&bar, 0, size, 0)?, IPA)?;
    let mut random = ChaCha8Rng::seed_from_u64(0x5261_6e64);
    for round in 0..ROUNDS {
        // Close to each other, or they would seldom meet.
        let at = match random.random_range(0..4) {
            0 => random.random_range(0..size / GIB) * GIB,
            1 => random.random_range(0..4) * M2 + GIB,
            _ => random.random_range(0..6) * M2 + random.random_range(0..4) * PAGE,
        };
        let len = match random.random_range(0..8) {
            0 => GIB,
            1..4 => M2,
            _ => random.random_range(1..5) * PAGE,
        };
        let len = len.min(size - at);
        match random.random_range(0..12) {
            0 => rig.change(at, len, Access::None)?,
            1 => rig.change(at, len, Access::Read)?,
            2 => {
                rig.change(at, len, Access::Hole)?;
                rig.settle()?;
                rig.check()?;
                // It stays no hole: a change of access wants mappings everywhere.
                rig.access(IPA + at)?;
                rig.remap(at, len, at)?;
            }
            3 => {
                let from = random.random_range(0..=(size - len) / PAGE) * PAGE;
                rig.remap(at, len, from)?;
            }
            4 if round % 5 == 0 => rig.remap(0, size, 0)?,
            4 | 5 => rig.remap(at, len, at)?,
            6 => rig.change(at, len, Access::Full)?,
            _ => rig.access(IPA + at + random.random_range(0..PAGE / 8) * 8)?,
        }
        rig.settle()?;
        rig.check()?;
    }
    Ok(())
}
