// SPDX-License-Identifier: GPL-2.0

//! Devices that pin and users who unmap, at once.

use std::sync::Barrier;
use std::thread;

use harness::check::{
    expect_eq,
    Stop,
    SysError,
    Verdict, //
};
use harness::emulated::{
    Emulated,
    Session,
    Via,
    Which,
    PIN_RW, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::proc::locked;
use harness::tests;
use harness::vfio::{
    Container,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    PinCount,
    IOVA, //
};

tests! {
    "rust.apart", "threads with mappings of their own pin, copy and unmap" => apart;
    "load.same", "threads pin and copy what others unmap" => same;
    "rust.devices", "a device is opened and closed while others unmap" => devices;
    "load.many_pins", "a mapping with sixteen thousand pinned pages" => many_pins;
}

const PAGES: u64 = 16;
const SPAN: u64 = PAGES * PAGE;

/// Takes errors for success which a race with unmapping explains.
fn unless_unmapped<T>(result: Result<T, SysError>) -> Verdict {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::EINVAL => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn join<T>(threads: Vec<thread::ScopedJoinHandle<'_, Verdict<T>>>) -> Verdict {
    // All of them, or a panic in one would be lost behind a failure in another.
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
    for result in results {
        result.map_err(|_| Stop::fail("a thread panicked"))??;
    }
    Ok(())
}

fn apart(env: &Env) -> Verdict {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 100;
    // The C driver asks drivers to unpin with one of its mutexes held, and takes that one with
    // the other held when somebody else unmaps: two who unmap pinned pages wait for each other.
    env.need_rust()?;
    let pins = PinCount::begin()?;
    let session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(THREADS * SPAN)?;
    let before = locked()?;

    let work = |container: &Container, device: &Emulated, thread: u64| -> Verdict {
        let (iova, vaddr) = (IOVA + thread * SPAN, memory.vaddr() + thread * SPAN);
        for round in 0..ROUNDS {
            container.map(iova, vaddr, SPAN, RW)?;
            let first = round % 8;
            device.pinned(iova + first * PAGE, 8)?;
            device.pinned(iova, 4)?;
            let mark = (round + thread) as u8;
            device.fill(iova + 2 * PAGE, mark)?;
            let read = device.read(iova + 2 * PAGE, 16, Via::BOTH[round as usize % 2])?;
            expect_eq("bytes read", read, vec![mark; 16])?;
            if round % 3 == 0 {
                device.unpin(iova, 4)?;
            }
            expect_eq("bytes unmapped", container.unmap(iova, SPAN, 0)?, SPAN)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads = (0..THREADS)
            .map(|n| {
                let device = &session.devices[n as usize % 2];
                let (container, work) = (&session.container, &work);
                scope.spawn(move || work(container, device, n))
            })
            .collect();
        join(threads)
    })?;

    for device in &session.devices {
        let counters = device.counters()?;
        expect_eq("pins left", (counters.pages, counters.users), (0, 0))?;
    }
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)
}

fn same(env: &Env) -> Verdict {
    const ROUNDS: u64 = 60;
    // Less than the tries the C driver gives drivers before it gives up: a thread that pins
    // again and again could win each time.
    const PINS: u64 = 2;
    let pins = PinCount::begin()?;
    let session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    let memory = Memory::anon(2 * SPAN)?;
    let before = locked()?;
    let container = &session.container;
    let turn = Barrier::new(6);

    // Threads go through all rounds even after a failure, or the others would wait for ever.
    let rounds = |body: &dyn Fn(u64) -> Verdict| -> Verdict {
        let mut verdict = Ok(());
        for round in 0..ROUNDS {
            turn.wait();
            if verdict.is_ok() {
                verdict = body(round);
            }
        }
        verdict
    };
    let pin = |device: &Emulated, thread: u64| {
        rounds(&|round| {
            for n in 0..PINS {
                let iova = IOVA + (round + 5 * thread + 3 * n) % (2 * PAGES - 8) * PAGE;
                unless_unmapped(device.pin(iova, 8, PIN_RW)?)?;
            }
            Ok(())
        })
    };
    let copy = |device: &Emulated, via: Via| {
        rounds(&|round| {
            for n in 0..16 {
                let iova = IOVA + (round + n) % PAGES * PAGE + 7;
                unless_unmapped(device.read(iova, SPAN as u32, via))?;
                unless_unmapped(device.write(iova, &[n as u8; 100], via))?;
            }
            Ok(())
        })
    };
    let unmap = || {
        rounds(&|round| {
            let half = round % 2 * SPAN;
            container.unmap(IOVA + half, SPAN, 0)?;
            container.map(IOVA + half, memory.vaddr() + half, SPAN, RW)?;
            container.unmap_all()?;
            for half in [0, SPAN] {
                container.map(IOVA + half, memory.vaddr() + half, SPAN, RW)?;
            }
            Ok(())
        })
    };
    let track = || {
        rounds(&|_| {
            container.dirty(DIRTY_START)?;
            unless_unmapped(container.dirty_get(IOVA, 2 * SPAN, &mut [0]))?;
            container.dirty(DIRTY_STOP)?;
            Ok(())
        })
    };

    for half in [0, SPAN] {
        container.map(IOVA + half, memory.vaddr() + half, SPAN, RW)?;
    }
    let [first, second] = &session.devices[..] else {
        return Err(Stop::fail("two devices"));
    };
    thread::scope(|scope| {
        join(vec![
            scope.spawn(|| pin(first, 0)),
            scope.spawn(|| pin(second, 1)),
            scope.spawn(|| copy(first, Via::Task)),
            scope.spawn(|| copy(second, Via::Kthread)),
            scope.spawn(unmap),
            scope.spawn(track),
        ])
    })?;

    expect_eq("bytes unmapped", container.unmap_all()?, 2 * SPAN)?;
    for device in &session.devices {
        let counters = device.counters()?;
        expect_eq("pins left", (counters.pages, counters.users), (0, 0))?;
    }
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)
}

fn devices(env: &Env) -> Verdict {
    const ROUNDS: u64 = 200;
    // Registering a device takes the C driver's two mutexes in the order in which unmapping with
    // pins does not.
    env.need_rust()?;
    let pins = PinCount::begin()?;
    let mut session = Session::with(env, Model::V2, &[Which::First, Which::Second])?;
    session.devices.pop();
    let memory = Memory::anon(2 * SPAN)?;
    let before = locked()?;
    let container = &session.container;
    container.map(IOVA + SPAN, memory.vaddr() + SPAN, SPAN, RW)?;

    let unmap = || -> Verdict {
        for _ in 0..ROUNDS {
            container.map(IOVA, memory.vaddr(), SPAN, RW)?;
            session.device().pinned(IOVA, 4)?;
            expect_eq("bytes unmapped", container.unmap(IOVA, SPAN, 0)?, SPAN)?;
        }
        Ok(())
    };
    let open = || -> Verdict {
        for _ in 0..ROUNDS {
            let device = Emulated::open(&session.groups[1], Which::Second)?;
            device.pinned(IOVA + SPAN, 4)?;
            unless_unmapped(device.pin(IOVA, 4, PIN_RW)?)?;
        }
        Ok(())
    };
    thread::scope(|scope| join(vec![scope.spawn(unmap), scope.spawn(open)]))?;

    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)?;
    expect_eq("bytes unmapped", container.unmap_all()?, SPAN)
}

fn many_pins(env: &Env) -> Verdict {
    const MANY: u64 = 16 << 10;
    let pins = PinCount::begin()?;
    let session = Session::open(env, Model::V2)?;
    let memory = Memory::anon(MANY * PAGE)?;
    let before = locked()?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    for n in 0..MANY / 512 {
        session.device().pinned(IOVA + n * 512 * PAGE, 512)?;
    }
    expect_eq("locked memory", locked()?, before + memory.len())?;
    pins.expect(MANY as i64)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, memory.len(), 0)?,
        memory.len(),
    )?;
    expect_eq("locked memory", locked()?, before)?;
    pins.expect(0)
}
