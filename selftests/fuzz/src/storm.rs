// SPDX-License-Identifier: GPL-2.0

//! The mode in which several threads and processes use one container at once.
//!
//! What a call answers then depends on what others are doing, so nothing is compared. It is checked
//! that only such errors come back as the call can have, that the container works afterwards, that
//! all is given back in the end, and that the kernel has nothing to complain about.

use std::fs;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    bail,
    ensure,
    Context,
    Result, //
};
use clap::Args;
use harness::env::Driver;
use harness::proc;
use harness::soft;
use harness::vfio::{
    Command,
    PAGE, //
};
use nix::errno::Errno;
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::{
    fork,
    ForkResult, //
};
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};

use crate::driver::{
    self,
    Log, //
};
use crate::exec::{
    find_units,
    Found,
    COUNTERS,
    PIN,
    RW,
    UNPIN, //
};
use crate::layout::{
    arena,
    ARENA,
    ARENA_PAGES,
    ARENA_SPAN, //
};
use crate::op::{
    Unit,
    UNITS, //
};

#[derive(Args)]
pub(crate) struct Options {
    /// The driver that is loaded. From C is kept what it does not survive: drivers of devices that
    /// pin pages while others unmap.
    #[arg(long, value_name = "DRIVER")]
    expect_driver: Driver,

    /// What random numbers begin with.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Rounds, each with a container of its own.
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    rounds: u64,

    /// Seconds a round takes.
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    seconds: u64,

    /// Threads in each of the two processes.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    threads: u64,
}

/// The window of IOVAs in which all lies; half of it is where the next process begins.
const BASE: u64 = 16 << 20;
const SPAN: u64 = 96;

/// A call that any thread may make at any time.
struct Scene<'a> {
    container: RawFd,
    /// Devices that stay open: one whose driver pins pages, and one behind an IOMMU.
    emulated: RawFd,
    soft: RawFd,
    found: &'a [Option<Found>; UNITS.len()],
    gentle: bool,
    calls: &'a AtomicU64,
}

/// A device which one thread moves in and out of the container.
struct Mover {
    unit: Unit,
    group: RawFd,
    device: Option<RawFd>,
    member: bool,
}

/// Issues an ioctl: its value, or its errno as a negative number.
fn ioctl<T>(fd: RawFd, code: libc::Ioctl, arg: &mut T) -> i64 {
    // SAFETY: The kernel reads and writes `T`, as the code says. What is mapped for devices is the
    // arena, which no reference points to.
    let ret = unsafe { libc::ioctl(fd, code, std::ptr::from_mut(arg)) };
    Errno::result(ret).map_or_else(|errno| -i64::from(errno as i32), i64::from)
}

fn vfio<T>(fd: RawFd, command: Command, arg: &mut T) -> i64 {
    ioctl(fd, command.code(), arg)
}

/// Fails unless a call did what it should, or was refused for one of the reasons it can have.
fn expect(call: &str, ret: i64, allowed: &[Errno]) -> Result<bool> {
    if ret >= 0 {
        return Ok(true);
    }
    let errno = Errno::from_raw(-ret as i32);
    ensure!(
        allowed.contains(&errno),
        "{call}: {errno:?} is not to be expected"
    );
    Ok(false)
}

fn open(path: &str) -> Result<RawFd> {
    use std::os::fd::IntoRawFd;
    let file = fs::File::options().read(true).write(true).open(path);
    Ok(file.with_context(|| path.to_owned())?.into_raw_fd())
}

fn close(fd: RawFd) {
    // SAFETY: The caller owns the descriptor and does not use it any more.
    unsafe { libc::close(fd) };
}

impl Found {
    fn open_group(&self) -> Result<RawFd> {
        open(&format!("/dev/vfio/{}", self.group))
    }

    fn open_device(&self, group: RawFd) -> i64 {
        let mut name = format!("{}\0", self.device).into_bytes();
        vfio(group, Command::GROUP_GET_DEVICE_FD, &mut name[0])
    }
}

/// Changes a part of the arena: what is mapped by others there may be pinned at this moment.
fn arena_call(random: &mut ChaCha8Rng) {
    let page = random.random_range(0..ARENA_PAGES);
    let pages = random.random_range(1..17).min(ARENA_PAGES - page);
    let addr = std::ptr::with_exposed_provenance_mut::<libc::c_void>(arena(page) as usize);
    let len = (u64::from(pages) * PAGE) as usize;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: The range is the arena's, which no reference points to.
    unsafe {
        match random.random_range(0..6u32) {
            0 => {
                libc::munmap(addr, len);
            }
            1 => {
                libc::mprotect(addr, len, libc::PROT_READ);
            }
            2 => {
                libc::madvise(addr, len, libc::MADV_DONTNEED);
            }
            _ => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                libc::mmap(addr, len, both, flags, -1, 0);
            }
        }
    }
}

impl Scene<'_> {
    /// One random call.
    fn call(&self, random: &mut ChaCha8Rng) -> Result<()> {
        use Errno::*;
        let iova = BASE + random.random_range(0..SPAN) * PAGE;
        let size = random.random_range(1..9u64) * PAGE;
        self.calls.fetch_add(1, Ordering::Relaxed);
        match random.random_range(0..100u32) {
            0..35 => {
                let vaddr = arena(random.random_range(0..ARENA_PAGES - 8));
                let prot = if random.random_ratio(3, 4) { 3 } else { 1 };
                let mut arg = [32 | prot << 32, vaddr, iova, size];
                let ret = vfio(self.container, Command::MAP_DMA, &mut arg);
                expect("MAP_DMA", ret, &[EEXIST, EFAULT, EINVAL, ENOSPC])?;
            }
            35..65 => {
                // As a whole what was asked for above, mostly.
                let (flags, iova, size) = match random.random_range(0..12u32) {
                    0 => (2u64, 0, 0),
                    1 => (4, iova, size),
                    2..5 => (0, BASE, SPAN / 2 * PAGE),
                    5 => (0, BASE, 2 * SPAN * PAGE),
                    _ => (0, iova, size),
                };
                let mut arg = [24 | flags << 32, iova, size];
                let ret = vfio(self.container, Command::UNMAP_DMA, &mut arg);
                expect("UNMAP_DMA", ret, &[EINVAL, EBUSY])?;
            }
            65..70 => {
                let mut words = [0u64; 8];
                let data = std::ptr::from_mut(&mut words).expose_provenance() as u64;
                let size = SPAN * PAGE;
                let (argsz, flags) = match random.random_range(0..5u32) {
                    0 => (8, 1u64),
                    1 => (8, 2),
                    _ => (48, 4),
                };
                let mut arg = [argsz | flags << 32, BASE, size, PAGE, 64, data];
                let ret = vfio(self.container, Command::DIRTY_PAGES, &mut arg);
                expect("DIRTY_PAGES", ret, &[EINVAL])?;
            }
            70..73 => {
                let mut arg = [0u64; 64];
                arg[0] = 512;
                let ret = vfio(self.container, Command::GET_INFO, &mut arg);
                expect("GET_INFO", ret, &[])?;
            }
            73..76 => {
                // SAFETY: The argument is a number.
                let ret = unsafe {
                    let extension = random.random_range(0..13usize);
                    libc::ioctl(self.container, Command::CHECK_EXTENSION.code(), extension)
                };
                ensure!(matches!(ret, 0 | 1), "CHECK_EXTENSION: {ret}");
            }
            76..84 => self.driver(self.emulated, random)?,
            84..90 => {
                let op = if random.random_ratio(1, 2) { 0 } else { 3 };
                let mut arg = [op, iova, 0, size, random.random(), 0, 0, 0, 0];
                let ret = ioctl(self.soft, soft::code::DMA, &mut arg);
                expect("DMA", ret, &[])?;
            }
            _ => arena_call(random),
        }
        Ok(())
    }

    /// What the driver of an emulated device may do.
    fn driver(&self, device: RawFd, random: &mut ChaCha8Rng) -> Result<()> {
        use Errno::*;
        let iova = BASE + random.random_range(0..SPAN) * PAGE;
        let pages = random.random_range(1..5u64);
        match random.random_range(0..6u32) {
            0..2 if !self.gentle => {
                let mut arg = [iova, pages | 1 << 32, 0];
                let ret = ioctl(device, PIN, &mut arg);
                expect("pin", ret, &[EINVAL, EPERM, EFAULT, ENODEV])?;
            }
            2 if !self.gentle => {
                let ret = ioctl(device, UNPIN, &mut [iova, pages, 0]);
                expect("unpin", ret, &[ENOENT])?;
            }
            _ => {
                let mut data = [0x77u8; 3000];
                let data = std::ptr::from_mut(&mut data).expose_provenance() as u64;
                let flags = random.random_range(0..4u64);
                let mut arg = [iova + 17, data, 3000 | flags << 32];
                let ret = ioctl(device, RW, &mut arg);
                expect("dma_rw", ret, &[EINVAL, EPERM, EFAULT])?;
            }
        }
        Ok(())
    }

    /// Moves a device one step on its way in and out.
    fn step(&self, mover: &mut Mover, random: &mut ChaCha8Rng) -> Result<()> {
        use Errno::*;
        let found = self.found[usize::from(mover.unit.0)].as_ref();
        let found = found.context("no such device")?;
        match (mover.member, mover.device) {
            (false, _) => {
                let mut fd = self.container;
                let ret = vfio(mover.group, Command::GROUP_SET_CONTAINER, &mut fd);
                // Mappings may be where it cannot reach, or have no address.
                mover.member = expect("SET_CONTAINER", ret, &[EINVAL, EBUSY])?;
            }
            (true, None) if random.random_ratio(1, 2) => {
                let ret = found.open_device(mover.group);
                expect("GET_DEVICE_FD", ret, &[])?;
                mover.device = Some(ret as RawFd);
            }
            (true, None) => {
                let ret = vfio(mover.group, Command::GROUP_UNSET_CONTAINER, &mut 0);
                expect("UNSET_CONTAINER", ret, &[])?;
                mover.member = false;
            }
            (true, Some(device)) if random.random_ratio(3, 4) => {
                if mover.unit.emulated() {
                    self.driver(device, random)?;
                }
            }
            (true, Some(device)) => {
                close(device);
                mover.device = None;
            }
        }
        Ok(())
    }

    /// Calls until the time is up; the movers are this thread's alone.
    fn work(&self, seed: u64, stream: u64, movers: &mut [Mover], until: Instant) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        while Instant::now() < until {
            for _ in 0..16 {
                self.call(&mut random)?;
            }
            for mover in &mut *movers {
                self.step(mover, &mut random)?;
            }
        }
        Ok(())
    }

    /// Runs all threads of a process; `movers` are shared out among them.
    fn process(&self, options: &Options, first: u64, movers: Vec<Mover>) -> Result<Vec<Mover>> {
        let until = Instant::now() + Duration::from_secs(options.seconds);
        let mut shares: Vec<Vec<Mover>> = (0..options.threads).map(|_| Vec::new()).collect();
        for (n, mover) in movers.into_iter().enumerate() {
            let share = n % shares.len();
            shares[share].push(mover);
        }
        let results: Vec<Result<()>> = thread::scope(|scope| {
            let threads: Vec<_> = (first..)
                .zip(&mut shares)
                .map(|(stream, share)| {
                    scope.spawn(move || self.work(options.seed, stream, share, until))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
                .collect()
        });
        results.into_iter().collect::<Result<()>>()?;
        Ok(shares.into_iter().flatten().collect())
    }

    /// Whether the container does what it should when nobody else uses it.
    fn works(&self) -> Result<()> {
        let unmap = |flags: u64, iova, size| -> Result<u64> {
            let mut arg = [24 | flags << 32, iova, size];
            let ret = vfio(self.container, Command::UNMAP_DMA, &mut arg);
            ensure!(ret == 0, "UNMAP_DMA afterwards: {ret}");
            Ok(arg[2])
        };
        vfio(self.container, Command::DIRTY_PAGES, &mut [8 | 2u64 << 32]);
        unmap(2, 0, 0)?;
        ensure!(
            unmap(2, 0, 0)? == 0,
            "something was left after all was unmapped"
        );
        let page = ARENA_PAGES - 1;
        map_arena(page, 1)?;
        let mut arg = [32 | 3u64 << 32, arena(page), BASE, PAGE];
        let ret = vfio(self.container, Command::MAP_DMA, &mut arg);
        ensure!(ret == 0, "MAP_DMA afterwards: {ret}");

        // Written by a device, read by the driver of another one.
        let seed = 0x1234_5678;
        let mut arg = [0, BASE, 0, PAGE, seed, 0, 0, 0, 0];
        let ret = ioctl(self.soft, soft::code::DMA, &mut arg);
        ensure!(
            ret == 0 && arg[5] == PAGE,
            "DMA afterwards: {ret}, {} bytes",
            arg[5]
        );
        let mut data = vec![0u8; PAGE as usize];
        let mut arg = [BASE, data.as_mut_ptr().expose_provenance() as u64, PAGE];
        let ret = ioctl(self.emulated, RW, &mut arg);
        ensure!(ret == 0, "dma_rw afterwards: {ret}");
        ensure!(
            data == soft::filled(seed, BASE, PAGE),
            "dma_rw afterwards: other bytes"
        );
        ensure!(
            unmap(0, BASE, PAGE)? == PAGE,
            "UNMAP_DMA afterwards: another size"
        );

        let mut counters = [0u64; 4];
        let ret = ioctl(self.emulated, COUNTERS, &mut counters);
        ensure!(ret == 0, "counters: {ret}");
        ensure!(
            counters[2..] == [0, 0],
            "pins are left of memory that was unmapped"
        );
        Ok(())
    }
}

/// Anonymous memory in the arena.
fn map_arena(page: u32, pages: u32) -> Result<()> {
    let addr = std::ptr::with_exposed_provenance_mut::<libc::c_void>(arena(page) as usize);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: The range is the arena's, which no reference points to.
    let ret = unsafe { libc::mmap(addr, (u64::from(pages) * PAGE) as usize, prot, flags, -1, 0) };
    ensure!(ret == addr, "mmap of the arena: {}", Errno::last());
    Ok(())
}

fn unmap_arena() {
    let addr = std::ptr::with_exposed_provenance_mut::<libc::c_void>(ARENA as usize);
    // SAFETY: As in `map_arena`.
    unsafe { libc::munmap(addr, ARENA_SPAN as usize) };
}

/// Domains that software IOMMUs have.
fn domains() -> Result<u64> {
    let text = fs::read_to_string(soft::UNITS).context(soft::UNITS)?;
    let counts = text.lines().map(|line| {
        let rest = line.split_once("domains ").map(|(_, rest)| rest)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    counts
        .map(|count| count.with_context(|| format!("{}: no domains in {text:?}", soft::UNITS)))
        .sum()
}

/// A container, two processes with threads, and what is left of it all.
fn round(options: &Options, number: u64, calls: &AtomicU64) -> Result<()> {
    let found = find_units()?;
    let (pinned, domains_before) = (proc::pinned_pages(), domains()?);
    map_arena(0, ARENA_PAGES)?;

    let container = open("/dev/vfio/vfio")?;
    let mut stay = Vec::new();
    for name in ["vrs_emulated.0", "plain 0"] {
        let unit = Unit::try_from(name.to_owned()).map_err(anyhow::Error::msg)?;
        let found = found[usize::from(unit.0)].as_ref();
        let found = found.with_context(|| format!("there is no device {name}"))?;
        let group = found.open_group()?;
        let ret = vfio(group, Command::GROUP_SET_CONTAINER, &mut { container });
        ensure!(ret == 0, "{name}: SET_CONTAINER: {ret}");
        stay.push((found, group));
    }
    // SAFETY: The argument is a number.
    let ret = unsafe { libc::ioctl(container, Command::SET_IOMMU.code(), 3) };
    ensure!(ret == 0, "SET_IOMMU: {}", Errno::last());
    let mut devices = Vec::new();
    for (found, group) in &stay {
        let fd = found.open_device(*group);
        ensure!(fd >= 0, "{}: GET_DEVICE_FD: {fd}", found.device);
        devices.push(fd as RawFd);
    }
    let mut movers = Vec::new();
    for index in 0..UNITS.len() {
        let unit = Unit(index as u8);
        let stays = |(other, _): &(&Found, RawFd)| {
            found[index]
                .as_ref()
                .is_some_and(|found| found.group == other.group)
        };
        if let Some(found) = found[index].as_ref().filter(|_| !stay.iter().any(stays)) {
            let group = found.open_group()?;
            movers.push(Mover {
                unit,
                group,
                device: None,
                member: false,
            });
        }
    }
    let scene = Scene {
        container,
        emulated: devices[0],
        soft: devices[1],
        found: &found,
        gentle: options.expect_driver == Driver::C,
        calls,
    };

    let stream = number * 2 * options.threads;
    // SAFETY: This process has no other thread at this point.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Groups are the parent's to move.
            let result = scene.process(options, stream + options.threads, Vec::new());
            if let Err(error) = &result {
                println!("# child: {error:#}");
            }
            // SAFETY: Buffers and handlers belong to the parent.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
    };
    let movers = scene.process(options, stream, movers);
    let status = waitpid(child, None)?;
    let movers = movers?;
    ensure!(
        status == WaitStatus::Exited(child, 0),
        "the child ended with {status:?}"
    );

    for mover in movers {
        if let Some(device) = mover.device {
            close(device);
        }
        close(mover.group);
    }
    scene.works()?;
    for device in devices {
        close(device);
    }
    for (_, group) in stay {
        close(group);
    }
    close(container);
    unmap_arena();

    let locked = proc::locked().map_err(anyhow::Error::msg)?;
    ensure!(locked == 0, "{locked} bytes are locked when all is closed");
    let (left, domains_left) = (proc::pinned_pages(), domains()?);
    ensure!(
        left == pinned,
        "pages pinned: {pinned:?} before, {left:?} after"
    );
    ensure!(
        domains_left == domains_before,
        "{domains_left} domains are left"
    );
    Ok(())
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    driver::quiet_console()?;
    let mut log = Log::open()?;
    println!("KTAP version 1");
    println!("1..{}", options.rounds);
    let mut failed = false;
    for number in 0..options.rounds {
        let calls = AtomicU64::new(0);
        let result = round(options, number, &calls).and_then(|()| {
            let complaints = log.complaints()?;
            ensure!(
                complaints.is_empty(),
                "kernel log: {}",
                complaints.join("; ")
            );
            Ok(())
        });
        let verdict = match &result {
            Ok(()) => "ok",
            Err(error) => {
                failed = true;
                println!("# {error:#}");
                "not ok"
            }
        };
        let calls = calls.into_inner();
        println!("# {calls} calls of the first process");
        println!("{verdict} {} storm.round{number}", number + 1);
    }
    Ok(ExitCode::from(u8::from(failed)))
}
