// SPDX-License-Identifier: GPL-2.0

//! Containers and mappings whose process forks, executes, ends or is killed.

use std::mem::ManuallyDrop;
use std::os::fd::{
    BorrowedFd,
    RawFd, //
};
use std::os::unix::process::CommandExt;
use std::process::{
    Command,
    ExitCode, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use harness::check::{
    expect,
    expect_eq,
    Stop,
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
    pipe,
    Child, //
};
use harness::tests;
use harness::vfio::{
    Container,
    PAGE,
    RW, //
};
use nix::fcntl::{
    fcntl,
    FcntlArg,
    FdFlag, //
};

use super::IOVA;

tests! {
    "process.fork", "a child which inherits a container and ends changes nothing" => fork;
    "process.unmapped_by_child", "whoever unmaps, the process which mapped is credited" => unmapped_by_child;
    "process.mapped_by_child", "mappings outlive the process which made them" => mapped_by_child;
    "process.killed", "what a killed process had is free at once" => killed;
    "process.killed_mapping", "a process killed while it maps leaves nothing, or all, of the mapping" => killed_mapping;
    "process.exec", "exec leaves mappings and credits nobody for them" => exec;
}

const SIZE: u64 = 32 * PAGE;

fn fork(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;

    Child::run(|| expect_eq("locked memory of the child", locked()?, 0))?.join()?;

    expect_eq("locked memory of the parent", locked()?, before + SIZE)?;
    expect_eq("bytes unmapped", session.container.unmap_all()?, SIZE)?;
    expect_eq("locked memory of the parent", locked()?, before)
}

fn unmapped_by_child(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;

    Child::run(|| {
        expect_eq(
            "bytes unmapped",
            session.container.unmap(IOVA, SIZE, 0)?,
            SIZE,
        )?;
        expect_eq("locked memory of the child", locked()?, 0)
    })?
    .join()?;

    expect_eq("locked memory of the parent", locked()?, before)
}

fn mapped_by_child(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;

    Child::run(|| {
        session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
        expect_eq("locked memory of the child", locked()?, SIZE)
    })?
    .join()?;

    expect_eq("locked memory of the parent", locked()?, before)?;
    expect_eq(
        "bytes unmapped",
        session.container.unmap(IOVA, SIZE, 0)?,
        SIZE,
    )?;
    expect_eq("locked memory of the parent", locked()?, before)
}

fn killed(env: &Env) -> Verdict {
    let memory = Memory::anon(SIZE)?;
    for _ in 0..3 {
        let (mut ready, mut tell) = pipe()?;
        let child = Child::run(|| {
            let session = env.open(Model::V2)?;
            for n in 0..16 {
                session
                    .container
                    .map(IOVA + n * SIZE, memory.vaddr(), SIZE, RW)?;
            }
            std::io::Write::write_all(&mut tell, b"x")?;
            loop {
                nix::unistd::pause();
            }
        })?;
        drop(tell);
        let mut byte = [0];
        if std::io::Read::read_exact(&mut ready, &mut byte).is_err() {
            child.join()?;
            return Err(Stop::fail("the child has ended without a word"));
        }
        child.kill()?;

        let session = env.open(Model::V2)?;
        session.container.map(IOVA, memory.vaddr(), SIZE, RW)?;
    }
    Ok(())
}

fn killed_mapping(env: &Env) -> Verdict {
    const LARGE: u64 = 512 * MIB;
    // Below are reserved regions of some IOMMUs.
    const AT: u64 = 1024 * MIB;
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;
    for _ in 0..3 {
        let child = Child::run(|| {
            let large = Memory::unpopulated(LARGE)?;
            session.container.map(AT, large.vaddr(), LARGE, RW)?;
            loop {
                nix::unistd::pause();
            }
        })?;
        // The first charge comes when the first pages are pinned.
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.locked()? == 0 {
            if Instant::now() > deadline {
                child.kill()?;
                return Err(Stop::fail("the child has not locked a page in 60 s"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        child.kill()?;

        let left = session.container.unmap_all()?;
        expect(
            format_args!("none or all of {LARGE:#x} bytes left, not {left:#x}"),
            left == 0 || left == LARGE,
        )?;
        session.expect_free(AT, memory.vaddr(), SIZE)?;
    }
    expect_eq("locked memory", locked()?, before)
}

fn exec(env: &Env) -> Verdict {
    let session = env.open(Model::V2)?;
    let memory = Memory::anon(SIZE)?;
    let before = locked()?;

    let fd = session.container.as_raw_fd();
    let vaddr = memory.vaddr();
    let map_and_keep_open = move || {
        // SAFETY: The session has the descriptor open, and this handle does not close it.
        let container = ManuallyDrop::new(unsafe { Container::from_raw(fd) });
        container.map(IOVA, vaddr, SIZE, RW).map_err(|e| e.errno)?;
        // SAFETY: As above.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    let mut program = Command::new("/proc/self/exe");
    program.arg("--after-exec").arg(fd.to_string());
    // SAFETY: Between fork and exec the closure may do what it likes: there is one thread.
    unsafe { program.pre_exec(map_and_keep_open) };

    let output = program.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    expect_eq("the program behind exec", said.trim(), "ok")?;
    expect_eq("bytes left to unmap", session.container.unmap_all()?, 0)?;
    expect_eq("locked memory of the parent", locked()?, before)
}

/// What the program does that took the place of a process with a mapping.
pub(crate) fn after_exec(fd: RawFd) -> ExitCode {
    let check = || -> Verdict {
        // SAFETY: The program before exec has left the descriptor for us.
        let container = unsafe { Container::from_raw(fd) };
        expect_eq("locked memory after exec", locked()?, 0)?;
        expect_eq("bytes unmapped", container.unmap(IOVA, SIZE, 0)?, SIZE)?;
        expect_eq("locked memory after unmap", locked()?, 0)
    };
    match check() {
        Ok(()) => println!("ok"),
        Err(stop) => println!("{stop}"),
    }
    ExitCode::SUCCESS
}
