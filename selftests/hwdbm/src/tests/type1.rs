// SPDX-License-Identifier: GPL-2.0

//! What only VFIO type1 has.

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::Env;
use harness::tests;
use harness::vfio::{
    unmap_dirty_arg,
    Group,
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    PAGE, //
};
use nix::errno::Errno;

use super::exact::{
    set_up,
    LEN, //
};
use crate::log::{
    pages_of,
    Log,
    Pages,
    Type1, //
};
use crate::rig::IOVA;

tests! {
    "type1.clear", "pages are cleared one by one, and get dirty again" => clear;
    "type1.unmap", "unmapping tells what was written" => unmap;
    "type1.second_group", "another group comes and goes, and nothing is lost" => second_group;
    "c.all", "the C driver reports every page, each time, and clears none" => all;
}

fn clear(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<Type1>(env, LEN)?;
    let container = &rig.log.container;
    rig.log.start()?;
    for page in [0, 1, 62, 63] {
        rig.write(&memory, IOVA, page * PAGE, PAGE)?;
    }
    rig.expect_dirty(IOVA, LEN, [0, 1, 62, 63])?;
    // A later write to a page that is cleared is cleared too, one to another is not.
    rig.write(&memory, IOVA, PAGE, 1)?;
    rig.write(&memory, IOVA, 30 * PAGE, 1)?;
    container.dirty_range(DIRTY_CLEAR, IOVA, LEN, &mut [1 << 1 | 1 << 63])?;
    rig.expect_dirty(IOVA, LEN, [0, 30, 62])?;
    rig.write(&memory, IOVA, 63 * PAGE, 1)?;
    rig.expect_dirty(IOVA, LEN, [0, 30, 62, 63])?;
    // The range may cut the mapping.
    container.dirty_range(DIRTY_CLEAR, IOVA + 62 * PAGE, PAGE, &mut [1])?;
    rig.expect_cleaned(IOVA, LEN, [0, 30, 63])?;
    rig.expect_dirty(IOVA, LEN, [])
}

fn unmap(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<Type1>(env, 2 * LEN)?;
    rig.log.start()?;
    rig.write(&memory, IOVA, 4 * PAGE, PAGE)?;
    rig.expect_dirty(IOVA, 2 * LEN, [4])?;
    rig.write(&memory, IOVA, 6 * PAGE - 1, 2)?;
    rig.write(&memory, IOVA, 64 * PAGE, 1)?;
    let mut word = [0];
    // SAFETY: The bitmap is `word`.
    unsafe {
        rig.log
            .container
            .unmap_dirty(&mut unmap_dirty_arg(IOVA, LEN, &mut word))
    }?;
    expect_eq("dirty pages", pages_of(&word), Pages::from([4, 5, 6]))?;
    rig.expect_cleaned(IOVA, 2 * LEN, [64])
}

fn second_group(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<Type1>(env, LEN)?;
    rig.log.start()?;
    rig.write(&memory, IOVA, 2 * PAGE, PAGE)?;
    let group = Group::open(env.first()?.group()?)?;
    group.set_container(&rig.log.container)?;
    rig.write(&memory, IOVA, 3 * PAGE, PAGE)?;
    rig.expect_dirty(IOVA, LEN, [2, 3])?;
    group.unset_container()?;
    rig.write(&memory, IOVA, 4 * PAGE, PAGE)?;
    rig.expect_cleaned(IOVA, LEN, [2, 3, 4])
}

fn all(env: &Env) -> Verdict {
    let (rig, memory) = set_up::<Type1>(env, LEN)?;
    let container = &rig.log.container;
    rig.log.start()?;
    let every: Pages = (0..64).collect();
    for _ in 0..2 {
        rig.write(&memory, IOVA, 2 * PAGE, PAGE)?;
        let mut word = [0];
        container.dirty_range(DIRTY_GET, IOVA, LEN, &mut word)?;
        expect_eq("dirty pages", pages_of(&word), every.clone())?;
    }
    for flags in [DIRTY_GET_NOCLEAR, DIRTY_CLEAR] {
        let refused = container.dirty_range(flags, IOVA, LEN, &mut [0]);
        expect_errno("unknown to C", refused, Errno::EINVAL)?;
    }
    Ok(())
}
