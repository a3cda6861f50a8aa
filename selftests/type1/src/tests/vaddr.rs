// SPDX-License-Identifier: GPL-2.0

//! Moving mappings to another address or process, as a live update does.

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::proc::{
    become_limited,
    locked,
    Child, //
};
use harness::tests;
use harness::vfio::{
    Group,
    MAP_VADDR,
    PAGE,
    RW,
    UNMAP_ALL,
    UNMAP_VADDR, //
};
use nix::errno::Errno;

use super::IOVA;

tests! {
    "vaddr.move", "a mapping is moved to another address" => move_within;
    "vaddr.refused", "only an invalidated mapping is moved, and only as a whole" => refused;
    "vaddr.twice", "invalidating twice is refused and undone" => twice;
    "vaddr.all", "all mappings are invalidated at once" => all;
    "vaddr.unmap_while_invalid", "an invalidated mapping can be unmapped" => unmap_while_invalid;
    "vaddr.map_while_invalid", "other mappings can be made meanwhile" => map_while_invalid;
    "vaddr.close_while_invalid", "closing releases invalidated mappings" => close_while_invalid;
    "vaddr.attach_while_invalid", "no group is attached meanwhile" => attach_while_invalid;
    "vaddr.other_process", "the charge moves to the process which takes over" => other_process;
    "vaddr.other_process_limit", "the limit of the process which takes over holds" => other_process_limit;
}

const SIZE: u64 = 16 * PAGE;

fn move_within(env: &Env) -> Verdict {
    let file = Memory::memfd(SIZE)?;
    let old = Memory::shared(&file)?;
    let new = Memory::shared(&file)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let before = locked()?;
        session.container.map(IOVA, old.vaddr(), SIZE, RW)?;

        let invalidated = session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;
        expect_eq("bytes invalidated", invalidated, SIZE)?;
        expect_eq("locked memory while invalid", locked()?, before + SIZE)?;
        session.container.map(IOVA, new.vaddr(), SIZE, MAP_VADDR)?;
        expect_eq("locked memory after the move", locked()?, before + SIZE)?;

        expect_eq(
            "bytes unmapped",
            session.container.unmap(IOVA, SIZE, 0)?,
            SIZE,
        )?;
        expect_eq("locked memory after unmap", locked()?, before)?;
    }
    Ok(())
}

fn refused(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(2 * SIZE)?;
    let vaddr = memory.vaddr();
    let update = |iova, size| session.container.map(iova, vaddr, size, MAP_VADDR);

    expect_errno("no mapping", update(IOVA, SIZE), Errno::ENOENT)?;
    session.container.map(IOVA, vaddr, SIZE, RW)?;
    expect_errno("not invalidated", update(IOVA, SIZE), Errno::EINVAL)?;

    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;
    for (iova, size, why) in [
        (IOVA, SIZE - PAGE, "shorter"),
        (IOVA, SIZE + PAGE, "longer"),
        (IOVA + PAGE, SIZE - PAGE, "starts later"),
        (IOVA - PAGE, SIZE + PAGE, "starts earlier"),
        (IOVA + PAGE, SIZE, "shifted"),
    ] {
        expect_errno(why, update(iova, size), Errno::EINVAL)?;
    }
    expect_errno("beside it", update(IOVA + SIZE, SIZE), Errno::ENOENT)?;
    let misaligned = session.container.map(IOVA, vaddr + 1, SIZE, MAP_VADDR);
    expect_errno("misaligned address", misaligned, Errno::EINVAL)?;

    update(IOVA, SIZE)?;
    expect_errno(
        "not invalidated any more",
        update(IOVA, SIZE),
        Errno::EINVAL,
    )
}

fn twice(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(3 * SIZE)?;
    let place = |n: u64| (IOVA + n * SIZE, memory.vaddr() + n * SIZE);
    for n in 0..3 {
        let (iova, vaddr) = place(n);
        session.container.map(iova, vaddr, SIZE, RW)?;
    }
    let update = |n| {
        let (iova, vaddr) = place(n);
        session.container.map(iova, vaddr, SIZE, MAP_VADDR)
    };

    session.container.unmap(place(1).0, SIZE, UNMAP_VADDR)?;
    for flags in [UNMAP_VADDR, UNMAP_VADDR | UNMAP_ALL] {
        let range = if flags & UNMAP_ALL == 0 {
            (IOVA, 3 * SIZE)
        } else {
            (0, 0)
        };
        let again = session.container.unmap(range.0, range.1, flags);
        expect_errno("one of them is invalid already", again, Errno::EINVAL)?;
        expect_errno("the one before is valid again", update(0), Errno::EINVAL)?;
        expect_errno("the one behind is still valid", update(2), Errno::EINVAL)?;
    }
    update(1)?;
    expect_errno("and now this one is valid", update(1), Errno::EINVAL)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, 3 * SIZE)
}

fn all(env: &Env) -> Verdict {
    let memory = Memory::anon(2 * SIZE)?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        let place = |n: u64| (IOVA + 2 * n * SIZE, memory.vaddr() + n * SIZE);
        for n in 0..2 {
            let (iova, vaddr) = place(n);
            session.container.map(iova, vaddr, SIZE, RW)?;
        }
        let invalidated = session.container.unmap(0, 0, UNMAP_ALL | UNMAP_VADDR)?;
        expect_eq("bytes invalidated", invalidated, 2 * SIZE)?;
        for n in 0..2 {
            let (iova, vaddr) = place(n);
            session.container.map(iova, vaddr, SIZE, MAP_VADDR)?;
        }
        // Over a hole, and counted in bytes of mappings.
        let invalidated = session.container.unmap(IOVA, 4 * SIZE, UNMAP_VADDR)?;
        expect_eq("bytes invalidated", invalidated, 2 * SIZE)?;
    }
    Ok(())
}

fn unmap_while_invalid(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;

    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, SIZE, 0)?,
        SIZE,
    )?;
    expect_eq("locked memory", locked()?, before)?;
    let update = session.container.map(IOVA, memory.vaddr(), SIZE, MAP_VADDR);
    expect_errno("nothing left to move", update, Errno::ENOENT)?;
    session.expect_free(IOVA, memory.vaddr(), SIZE)
}

fn map_while_invalid(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(2 * SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;

    session
        .container
        .map(IOVA + SIZE, memory.vaddr() + SIZE, SIZE, RW)?;
    expect_eq("locked memory", locked()?, before + 2 * SIZE)?;
    let overlap = session.container.map(IOVA, memory.vaddr(), SIZE, RW);
    expect_errno("over the invalid one", overlap, Errno::EEXIST)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA + SIZE, SIZE, 0)?,
        SIZE,
    )?;
    session
        .container
        .map(IOVA, memory.vaddr(), SIZE, MAP_VADDR)?;
    Ok(())
}

fn close_while_invalid(env: &Env) -> Verdict {
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    for model in Model::BOTH {
        let session = env.open(model)?;
        session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
        session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;
        drop(session);
        expect_eq("locked memory after close", locked()?, before)?;
    }
    Ok(())
}

fn attach_while_invalid(env: &Env) -> Verdict {
    let second = env.second()?.group()?;
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;

    let group = Group::open(second)?;
    let attach = group.set_container(&session.container);
    expect_errno("an address is invalid", attach, Errno::EBUSY)?;
    session
        .container
        .map(IOVA, memory.vaddr(), SIZE, MAP_VADDR)?;
    group.set_container(&session.container)?;
    group.unset_container()?;

    // Unmapping ends the invalid state as well.
    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;
    session.container.unmap(IOVA, SIZE, 0)?;
    group.set_container(&session.container)?;
    Ok(())
}

fn other_process(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::shared(&Memory::memfd(SIZE)?)?;
    let before = locked()?;

    // One taken over and unmapped by the child, one by the parent after the child is gone.
    for unmapped_by_child in [true, false] {
        session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
        session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;
        expect_eq("locked memory of the parent", locked()?, before + SIZE)?;

        Child::run(|| {
            expect_eq("locked memory of the child", locked()?, 0)?;
            session
                .container
                .map(IOVA, memory.vaddr(), SIZE, MAP_VADDR)?;
            expect_eq("locked memory of the child, taken over", locked()?, SIZE)?;
            if unmapped_by_child {
                let unmapped = session.container.unmap(IOVA, SIZE, 0)?;
                expect_eq("bytes unmapped", unmapped, SIZE)?;
                expect_eq("locked memory of the child", locked()?, 0)?;
            }
            Ok(())
        })?
        .join()?;

        expect_eq(
            "locked memory of the parent, handed over",
            locked()?,
            before,
        )?;
        let want = if unmapped_by_child { 0 } else { SIZE };
        expect_eq("bytes unmapped", session.container.unmap_all()?, want)?;
        expect_eq("locked memory of the parent", locked()?, before)?;
    }
    Ok(())
}

fn other_process_limit(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::shared(&Memory::memfd(SIZE)?)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    session.container.unmap(IOVA, SIZE, UNMAP_VADDR)?;

    Child::run(|| {
        become_limited(SIZE - PAGE)?;
        let taken = session.container.map(IOVA, memory.vaddr(), SIZE, MAP_VADDR);
        expect_errno("more than the child's limit", taken, Errno::ENOMEM)?;
        expect_eq("locked memory of the child", locked()?, 0)
    })?
    .join()?;

    expect_eq("locked memory of the parent", locked()?, before + SIZE)?;
    session
        .container
        .map(IOVA, memory.vaddr(), SIZE, MAP_VADDR)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)
}
