// SPDX-License-Identifier: GPL-2.0

//! Dirty tracking by the IOMMU: exactly what devices wrote to, whoever comes and goes.

use std::fs;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

use harness::check::{
    expect,
    expect_eq,
    expect_errno,
    Stop,
    Verdict, //
};
use harness::emulated::{
    Emulated,
    Via,
    Which, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::{
    Memory,
    MIB, //
};
use harness::soft::{
    Engine,
    Session,
    What, //
};
use harness::tests;
use harness::vfio::{
    dirty_get_arg,
    unmap_dirty_arg,
    Container,
    DirtyGet,
    Group,
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    DIRTY_LOG_MANUAL_CLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW, //
};
use nix::errno::Errno;

use super::{
    expect_done,
    IOVA, //
};

tests! {
    "dirty.extension", "the extension is known to a container with a model" => extension;
    "dirty.argument", "both flags have the checks of GET_BITMAP" => argument;
    "dirty.v1", "type1 has neither" => v1;
    "dirty.far", "a range of many gigabytes, most of it holes" => far;
    "big.far", "terabytes, and the largest bitmap there may be" => farther;
    "big.charged", "the log is charged to the memory cgroup of who starts" => charged;
    "dirty.exact", "what a device wrote to is dirty, once, and nothing else" => exact;
    "dirty.reads", "what a device reads is not dirty" => reads;
    "dirty.no_clear", "a bitmap that is not to be cleared comes again" => no_clear;
    "dirty.clear", "pages are cleared one by one" => clear;
    "dirty.clear_late", "a write between the bitmap and its clearing is cleared too" => clear_late;
    "dirty.clear_part", "a clearing may cut mappings and cover holes" => clear_part;
    "dirty.clear_fault", "a clearing that fails loses nothing" => clear_fault;
    "dirty.get_fault", "a bitmap that cannot be written loses nothing" => get_fault;
    "dirty.again", "what the IOTLB knows hides no later write" => again;
    "dirty.flushes", "the IOTLB is flushed once for a request, however much was dirty" => flushes;
    "dirty.before", "what was written before tracking began is not dirty" => before;
    "dirty.map", "a mapping made meanwhile is tracked" => map;
    "dirty.unmap", "unmapping tells what was written" => unmap;
    "dirty.large", "a large page of the IOMMU is dirty as a whole, and cleared in parts" => large;
    "dirty.granule", "the IOMMU's pages can be limited in size" => granule;
    "dirty.two", "two devices that share a page table" => two;
    "dirty.joins", "a device that joins is tracked" => joins;
    "dirty.untracked", "with an IOMMU that does not track every page is dirty" => untracked;
    "dirty.untracked_leaves", "... and once more when it leaves" => untracked_leaves;
    "dirty.leaves", "a device that leaves takes no dirty page with it" => leaves;
    "dirty.driver", "pages that drivers pin or write to are dirty as well" => driver;
    "dirty.narrowed", "a driver begins to pin: all pages are dirty once more" => narrowed;
    "dirty.tracked_pins", "... but not if its IOMMU tracks" => tracked_pins;
    "dirty.report", "debugfs says who knows what is dirty" => report;
    "dirty.injected", "a dirty bit that is lost is missed by these tests" => injected;
}

const PAGES: u64 = 128;
const LEN: u64 = PAGES * PAGE;

/// A container that tracks, with memory in which each page has an entry of its own.
struct Tracked {
    session: Session,
    memory: Memory,
}

#[track_caller]
fn tracked(env: &Env, devices: &[(&'static str, usize)]) -> Verdict<Tracked> {
    let session = Session::with(env, Model::V2, devices)?;
    let memory = Memory::scattered(LEN)?;
    session.container.map(IOVA, memory.vaddr(), LEN, RW)?;
    session.container.dirty(DIRTY_START)?;
    Ok(Tracked { session, memory })
}

impl Tracked {
    fn container(&self) -> &Container {
        &self.session.container
    }

    #[track_caller]
    fn dirty(&self, flags: u32) -> Verdict<Vec<u64>> {
        dirty_pages(self.container(), flags, IOVA, PAGES)
    }

    #[track_caller]
    fn expect(&self, what: &str, flags: u32, want: &[u64]) -> Verdict {
        expect_eq(what, self.dirty(flags)?, want.to_vec())
    }

    #[track_caller]
    fn write(&self, pages: &[u64]) -> Verdict {
        write(self.session.engine(), pages)
    }
}

/// Has a device write to some bytes of pages.
#[track_caller]
fn write(engine: &Engine, pages: &[u64]) -> Verdict {
    for page in pages {
        expect_done("fill", engine.fill(IOVA + page * PAGE + 8, 3, *page, 1)?, 3)?;
    }
    Ok(())
}

/// The numbers of pages whose bits are set.
fn numbers(words: &[u64]) -> Vec<u64> {
    let set = |n: &u64| words[(n / 64) as usize] >> (n % 64) & 1 == 1;
    (0..words.len() as u64 * 64).filter(set).collect()
}

/// The bitmap of some pages.
fn bitmap(numbers: &[u64], pages: u64) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    for n in numbers {
        words[(n / 64) as usize] |= 1 << (n % 64);
    }
    words
}

#[track_caller]
fn dirty_pages(container: &Container, flags: u32, iova: u64, pages: u64) -> Verdict<Vec<u64>> {
    let mut words = bitmap(&[], pages);
    container.dirty_range(flags, iova, pages * PAGE, &mut words)?;
    Ok(numbers(&words))
}

#[track_caller]
fn clear_pages(container: &Container, iova: u64, numbers: &[u64], pages: u64) -> Verdict {
    let mut words = bitmap(numbers, pages);
    let asked = words.clone();
    container.dirty_range(DIRTY_CLEAR, iova, pages * PAGE, &mut words)?;
    expect_eq("the user's bitmap", words, asked)
}

/// All pages there are.
fn all() -> Vec<u64> {
    (0..PAGES).collect()
}

fn extension(env: &Env) -> Verdict {
    let none = Container::open()?;
    let number = DIRTY_LOG_MANUAL_CLEAR as usize;
    expect_eq("without a model", none.check_extension(number)?, 0)?;
    let session = Session::open(env, "plain")?;
    let container = &session.container;
    expect_eq("with a model", container.check_extension(number)?, 1)?;
    // Asking has no effect.
    let mut words = [0];
    expect_errno(
        "tracking is off",
        container.dirty_range(DIRTY_GET_NOCLEAR, IOVA, PAGE, &mut words),
        Errno::EINVAL,
    )
}

const MANUAL: [u32; 2] = [DIRTY_GET_NOCLEAR, DIRTY_CLEAR];

fn argument(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let container = tracked.container();
    tracked.write(&all())?;
    let mut words = bitmap(&[], PAGES);
    let memory = Memory::anon(2 * PAGE)?;
    for flags in MANUAL {
        let good = |words: &mut [u64]| {
            let mut arg = dirty_get_arg(IOVA, LEN, words);
            arg.head.flags = flags;
            arg
        };
        let mut refused = |what: &str, want, change: &dyn Fn(&mut DirtyGet)| {
            let mut arg = good(&mut words);
            change(&mut arg);
            let what = format!("flag {flags:#x}: {what}");
            // SAFETY: Bitmaps are within `words`, or in no memory of this process.
            expect_errno(what, unsafe { container.dirty_get_with(arg) }, want)
        };
        for other in [
            DIRTY_START,
            DIRTY_STOP,
            DIRTY_GET,
            DIRTY_CLEAR ^ DIRTY_GET_NOCLEAR ^ flags,
        ] {
            refused("another flag", Errno::EINVAL, &|arg| {
                arg.head.flags |= other
            })?;
        }
        for argsz in [0, 7, 8, 47] {
            refused("argsz", Errno::EINVAL, &|arg| arg.head.argsz = argsz)?;
        }
        refused("size 0", Errno::EINVAL, &|arg| arg.range.size = 0)?;
        refused("wraps", Errno::EOVERFLOW, &|arg| arg.range.size = u64::MAX)?;
        refused("misaligned IOVA", Errno::EINVAL, &|arg| arg.range.iova += 8)?;
        refused("misaligned size", Errno::EINVAL, &|arg| arg.range.size -= 8)?;
        refused("less than a page", Errno::EINVAL, &|arg| arg.range.size = 8)?;
        for pgsize in [0, 1, PAGE / 2, PAGE + 1, 2 * PAGE, 1 << 63] {
            refused("page size", Errno::EINVAL, &|arg| {
                arg.range.bitmap.pgsize = pgsize
            })?;
        }
        for size in [0, 8, 15, (1 << 28) + 8] {
            refused("bitmap size", Errno::EINVAL, &|arg| {
                arg.range.bitmap.size = size
            })?;
        }
        for address in [1 << 63, usize::MAX - 7] {
            refused("kernel memory", Errno::EINVAL, &|arg| {
                arg.range.bitmap.data = std::ptr::without_provenance_mut(address);
            })?;
        }
        refused("no memory", Errno::EFAULT, &|arg| {
            arg.range.bitmap.data = std::ptr::null_mut();
        })?;
        // At any address, and larger than needed.
        let mut arg = good(&mut words);
        arg.range.bitmap.size = PAGE;
        let odd = memory.vaddr() as usize + 3;
        arg.range.bitmap.data = std::ptr::with_exposed_provenance_mut(odd);
        // SAFETY: The memory is the test's own.
        unsafe { container.dirty_get_with(arg) }?;
    }
    tracked.expect("cleared by the last one", DIRTY_GET, &[])?;
    container.dirty(DIRTY_STOP)?;
    for flags in MANUAL {
        let off = container.dirty_range(flags, IOVA, LEN, &mut words);
        expect_errno("tracking is off", off, Errno::EINVAL)?;
    }
    Ok(())
}

fn v1(env: &Env) -> Verdict {
    let session = Session::with(env, Model::V1, &[("dirty", 0)])?;
    for flags in MANUAL {
        let refused = session.container.dirty_range(flags, IOVA, PAGE, &mut [0]);
        expect_errno("type1", refused, Errno::EACCES)?;
    }
    Ok(())
}

fn far(env: &Env) -> Verdict {
    across(env, 64 << 30)
}

fn farther(env: &Env) -> Verdict {
    across(env, 8 << 40)
}

#[track_caller]
fn across(env: &Env, span: u64) -> Verdict {
    let session = Session::open(env, "dirty")?;
    let container = &session.container;
    let memory = Memory::scattered(8 * PAGE)?;
    // As far apart as the bitmap reaches, and one behind it.
    let places = [0, span / 8 * 3 + 5 * PAGE, span - 9 * PAGE, span + PAGE];
    for at in places {
        container.map(IOVA + at, memory.vaddr(), 8 * PAGE, RW)?;
    }
    container.dirty(DIRTY_START)?;
    for at in places {
        expect_done("fill", session.engine().fill(IOVA + at + PAGE, 1, 1, 1)?, 1)?;
    }
    let size = span - PAGE;
    let mut words = vec![0; (size / PAGE).div_ceil(64) as usize];
    let want: Vec<u64> = places[..3].iter().map(|at| at / PAGE + 1).collect();
    let found = |words: &[u64]| -> Vec<u64> {
        let set = (0u64..).zip(words).filter(|(_, word)| **word != 0);
        set.map(|(index, word)| index * 64 + u64::from(word.trailing_zeros()))
            .collect()
    };
    container.dirty_range(DIRTY_GET_NOCLEAR, IOVA, size, &mut words)?;
    expect_eq("dirty", found(&words), want)?;
    words.fill(u64::MAX);
    container.dirty_range(DIRTY_CLEAR, IOVA, size, &mut words)?;
    words.fill(0);
    container.dirty_get(IOVA, size, &mut words)?;
    expect_eq("cleared", found(&words), Vec::new())?;
    let behind = dirty_pages(container, DIRTY_GET, IOVA + span + PAGE, 8)?;
    expect_eq("behind", behind, vec![1])
}

/// A memory cgroup which this process is in.
struct Cgroup(PathBuf);

impl Cgroup {
    const ROOT: &str = "/sys/fs/cgroup";

    #[track_caller]
    fn join() -> Verdict<Self> {
        let root = Path::new(Self::ROOT);
        if !root.exists() {
            return Err(Stop::skip("memory cgroups (CONFIG_MEMCG)"));
        }
        if !root.join("cgroup.procs").exists() {
            let (target, kind) = (c"/sys/fs/cgroup".as_ptr(), c"cgroup2".as_ptr());
            // SAFETY: The strings end with zeroes; there is no data.
            let ret = unsafe { libc::mount(kind, target, kind, 0, std::ptr::null()) };
            Errno::result(ret).map_err(|error| Stop::fail(format_args!("cgroup2: {error}")))?;
        }
        fs::write(root.join("cgroup.subtree_control"), "+memory")?;
        let path = root.join(format!("soft.{}", std::process::id()));
        fs::create_dir(&path)?;
        let this = Self(path);
        this.enter(&this.0)?;
        Ok(this)
    }

    fn enter(&self, path: &Path) -> io::Result<()> {
        fs::write(path.join("cgroup.procs"), std::process::id().to_string())
    }

    /// Bytes charged to it.
    #[track_caller]
    fn charged(&self) -> Verdict<u64> {
        let text = fs::read_to_string(self.0.join("memory.current"))?;
        text.trim().parse().map_err(Stop::fail)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let left = self.enter(Path::new(Self::ROOT));
        left.and_then(|()| fs::remove_dir(&self.0))
            .expect("nobody else is in the cgroup");
    }
}

fn charged(env: &Env) -> Verdict {
    // 32 MiB of log for each TiB, if no memory has to be pinned for it.
    const SIZE: u64 = 1 << 40;
    const LOG: u64 = SIZE / PAGE / 8;
    let cgroup = Cgroup::join()?;
    let container = Container::open()?;
    let group = Group::open(Which::First.group()?)?;
    group.set_container(&container)?;
    container.set_iommu(Model::V2.number())?;
    env.check_driver(Model::V2, None)?;
    container.map(0, PAGE, SIZE, RW)?;
    let before = cgroup.charged()?;
    container.dirty(DIRTY_START)?;
    let during = cgroup.charged()?;
    container.dirty(DIRTY_STOP)?;
    let grown = during.saturating_sub(before);
    expect(
        format_args!("{grown} bytes charged for a log of {LOG}"),
        // Some pages are charged ahead of their use.
        (LOG - LOG / 8..LOG + LOG / 8).contains(&grown),
    )
}

fn exact(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    tracked.expect("at first", DIRTY_GET, &[])?;
    for stride in [1, 2, 63, 64, 65] {
        let pages: Vec<u64> = (stride / 2..PAGES).step_by(stride as usize).collect();
        tracked.write(&pages)?;
        tracked.expect("written", DIRTY_GET, &pages)?;
        tracked.expect("asked again", DIRTY_GET, &[])?;
    }
    for page in 0..PAGES {
        tracked.write(&[page])?;
        tracked.expect("one page", DIRTY_GET, &[page])?;
    }
    Ok(())
}

fn reads(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let sum = tracked.session.engine().checksum(IOVA, LEN, 4)?;
    expect_done("checksum", sum, LEN)?;
    tracked.expect("read", DIRTY_GET, &[])?;
    // Entries that are cached for reading.
    tracked.write(&[3, 77])?;
    tracked.expect("written", DIRTY_GET, &[3, 77])
}

fn no_clear(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    tracked.write(&[5, 64])?;
    tracked.expect("first", DIRTY_GET_NOCLEAR, &[5, 64])?;
    tracked.expect("second", DIRTY_GET_NOCLEAR, &[5, 64])?;
    tracked.write(&[6])?;
    tracked.expect("third", DIRTY_GET_NOCLEAR, &[5, 6, 64])?;
    tracked.expect("cleared", DIRTY_GET, &[5, 6, 64])?;
    tracked.expect("after that", DIRTY_GET_NOCLEAR, &[])
}

fn clear(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let container = tracked.container();
    tracked.write(&all())?;
    tracked.expect("written", DIRTY_GET_NOCLEAR, &all())?;
    let mut left = all();
    for gone in [vec![0], vec![127], vec![62, 63, 64, 65], vec![], vec![9, 9]] {
        clear_pages(container, IOVA, &gone, PAGES)?;
        left.retain(|page| !gone.contains(page));
        tracked.expect("left", DIRTY_GET_NOCLEAR, &left)?;
    }
    tracked.write(&[127])?;
    left.push(127);
    tracked.expect("written again", DIRTY_GET_NOCLEAR, &left)?;
    clear_pages(container, IOVA, &all(), PAGES)?;
    tracked.expect("all cleared", DIRTY_GET_NOCLEAR, &[])
}

fn clear_late(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    tracked.write(&[7])?;
    tracked.expect("written", DIRTY_GET_NOCLEAR, &[7])?;
    tracked.write(&[7, 8])?;
    clear_pages(tracked.container(), IOVA, &[7], PAGES)?;
    tracked.expect("left", DIRTY_GET, &[8])?;
    tracked.write(&[7])?;
    tracked.expect("written again", DIRTY_GET, &[7])
}

fn clear_part(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let container = tracked.container();
    // A hole of 2 pages, then another mapping.
    let second = Memory::scattered(3 * PAGE)?;
    container.map(IOVA + LEN + 2 * PAGE, second.vaddr(), 3 * PAGE, RW)?;
    let span = PAGES + 10;
    let written: Vec<u64> = (0..PAGES).chain([PAGES + 2, PAGES + 4]).collect();
    tracked.write(&written)?;

    let ask = |flags| dirty_pages(container, flags, IOVA, span);
    expect_eq("written", ask(DIRTY_GET_NOCLEAR)?, written.clone())?;
    // From the middle of the first mapping into the second.
    let first = 100;
    let pages = PAGES + 4 - first;
    let everything: Vec<u64> = (0..pages).collect();
    clear_pages(container, IOVA + first * PAGE, &everything, pages)?;
    let left: Vec<u64> = (0..first).chain([PAGES + 4]).collect();
    expect_eq("left", ask(DIRTY_GET_NOCLEAR)?, left.clone())?;
    // The range of a bitmap still has to have whole mappings.
    let mut words = bitmap(&[], pages);
    for flags in [DIRTY_GET, DIRTY_GET_NOCLEAR] {
        let iova = IOVA + first * PAGE;
        let cut = container.dirty_range(flags, iova, pages * PAGE, &mut words);
        expect_errno("a mapping is cut", cut, Errno::EINVAL)?;
    }
    // Inside of one mapping, and where there is none.
    clear_pages(container, IOVA + 10 * PAGE, &[0, 2], 3)?;
    clear_pages(container, IOVA + LEN, &[0, 1], 2)?;
    let left: Vec<u64> = left.into_iter().filter(|n| ![10, 12].contains(n)).collect();
    expect_eq("left in the end", ask(DIRTY_GET)?, left)
}

/// Memory of which only the first page is there.
#[track_caller]
fn cut_off() -> Verdict<Memory> {
    let mut memory = Memory::anon(2 * PAGE)?;
    memory.truncate(PAGE);
    Ok(memory)
}

/// An argument for a bitmap of `pages` pages whose last words cannot be reached.
fn unreachable(memory: &Memory, flags: u32, pages: u64) -> DirtyGet {
    let mut arg = dirty_get_arg(IOVA, pages * PAGE, &mut []);
    let first = memory.vaddr() + PAGE - 8;
    arg.head.flags = flags;
    arg.range.bitmap.size = pages.div_ceil(64) * 8;
    arg.range.bitmap.data = std::ptr::with_exposed_provenance_mut(first as usize);
    arg
}

fn clear_fault(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let memory = cut_off()?;
    memory.fill(0xff);
    tracked.write(&[1, 2, 100])?;
    tracked.expect("written", DIRTY_GET_NOCLEAR, &[1, 2, 100])?;
    let arg = unreachable(&memory, DIRTY_CLEAR, PAGES);
    // SAFETY: Only memory of this test can be reached.
    let failed = unsafe { tracked.container().dirty_get_with(arg) };
    expect_errno("half a bitmap", failed, Errno::EFAULT)?;
    let left = tracked.dirty(DIRTY_GET)?;
    expect(
        "nothing is lost",
        [1, 2, 100].iter().all(|page| left.contains(page)),
    )?;
    tracked.expect("after that", DIRTY_GET, &[])
}

fn get_fault(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    // The words of two mappings: only those of the first can be written.
    let second = Memory::scattered(64 * PAGE)?;
    let container = tracked.container();
    container.map(IOVA + LEN, second.vaddr(), 64 * PAGE, RW)?;
    let memory = cut_off()?;
    for (round, flags) in [DIRTY_GET, DIRTY_GET_NOCLEAR, DIRTY_GET]
        .into_iter()
        .enumerate()
    {
        let written = [3, 70 + round as u64, 130];
        tracked.write(&written)?;
        let mut arg = unreachable(&memory, flags, PAGES + 64);
        arg.range.bitmap.data = arg.range.bitmap.data.wrapping_byte_sub(8);
        // SAFETY: Only memory of this test can be reached.
        let failed = unsafe { container.dirty_get_with(arg) };
        expect_errno("a part of a bitmap", failed, Errno::EFAULT)?;
        let left = dirty_pages(container, DIRTY_GET, IOVA, PAGES + 64)?;
        expect_eq("all of it", left, written.to_vec())?;
    }
    Ok(())
}

fn again(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    for round in 0..20 {
        let pages: Vec<u64> = (round % 7..PAGES).step_by(7).collect();
        tracked.write(&pages)?;
        if round % 2 == 0 {
            tracked.expect("written", DIRTY_GET, &pages)?;
        } else {
            tracked.expect("written", DIRTY_GET_NOCLEAR, &pages)?;
            clear_pages(tracked.container(), IOVA, &pages, PAGES)?;
        }
        tracked.write(&pages)?;
        tracked.expect("written again", DIRTY_GET, &pages)?;
    }
    Ok(())
}

fn flushes(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0), ("dirty", 1)])?;
    let container = tracked.container();
    let second = Memory::scattered(64 * PAGE)?;
    container.map(IOVA + 2 * LEN, second.vaddr(), 64 * PAGE, RW)?;
    let span = 3 * PAGES;
    let every_third: Vec<u64> = (0..span).step_by(3).collect();
    let count = |work: &dyn Fn() -> Verdict| -> Verdict<u64> {
        tracked.write(&all())?;
        let before = tracked.session.engine().stats()?.flushes;
        work()?;
        Ok(tracked.session.engine().stats()?.flushes - before)
    };
    for flags in [DIRTY_GET, DIRTY_GET_NOCLEAR] {
        let ask = || dirty_pages(container, flags, IOVA, span).map(drop);
        expect_eq(format_args!("flag {flags:#x}"), count(&ask)?, 1)?;
    }
    let clear = || clear_pages(container, IOVA, &every_third, span);
    expect_eq("clear", count(&clear)?, 1)?;
    // Nothing of a mapping that goes is cleared.
    let ask = || {
        let mut words = bitmap(&[], 64);
        let mut arg = unmap_dirty_arg(IOVA + 2 * LEN, 64 * PAGE, &mut words);
        // SAFETY: The descriptor names `words` and no more.
        unsafe { container.unmap_dirty(&mut arg) }?;
        Ok(())
    };
    let with_bitmap = count(&ask)?;
    container.map(IOVA + 2 * LEN, second.vaddr(), 64 * PAGE, RW)?;
    let without = count(&|| Ok(container.unmap(IOVA + 2 * LEN, 64 * PAGE, 0).map(drop)?))?;
    expect_eq("unmap with and without a bitmap", with_bitmap, without)
}

fn before(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    tracked.write(&[1, 2])?;
    tracked.container().dirty(DIRTY_STOP)?;
    tracked.write(&[3])?;
    tracked.container().dirty(DIRTY_START)?;
    tracked.expect("at first", DIRTY_GET, &[])?;
    tracked.write(&[2])?;
    // Starting what goes on changes nothing.
    tracked.container().dirty(DIRTY_START)?;
    tracked.expect("written", DIRTY_GET, &[2])
}

fn map(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let memory = Memory::scattered(64 * PAGE)?;
    let container = tracked.container();
    container.map(IOVA + LEN, memory.vaddr(), 64 * PAGE, RW)?;
    let ask = || dirty_pages(container, DIRTY_GET, IOVA, PAGES + 64);
    expect_eq("at first", ask()?, vec![])?;
    tracked.write(&[5, PAGES + 9])?;
    expect_eq("written", ask()?, vec![5, PAGES + 9])?;
    // In the place of one that was dirty.
    tracked.write(&[5, PAGES + 9])?;
    container.unmap(IOVA + LEN, 64 * PAGE, 0)?;
    container.map(IOVA + LEN, memory.vaddr(), 64 * PAGE, RW)?;
    expect_eq("mapped anew", ask()?, vec![5])
}

fn unmap(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let container = tracked.container();
    let mut words = bitmap(&[], PAGES);
    let mut ask = |want: &[u64]| -> Verdict {
        words.fill(0);
        let mut arg = unmap_dirty_arg(IOVA, LEN, &mut words);
        // SAFETY: The descriptor names `words` and no more.
        unsafe { container.unmap_dirty(&mut arg) }?;
        expect_eq("bytes unmapped", arg.unmap.size, LEN)?;
        expect_eq("dirty", numbers(&words), want.to_vec())
    };
    tracked.write(&[0, 127])?;
    tracked.expect("seen", DIRTY_GET_NOCLEAR, &[0, 127])?;
    tracked.write(&[1])?;
    ask(&[0, 1, 127])?;
    container.map(IOVA, tracked.memory.vaddr(), LEN, RW)?;
    ask(&[])
}

/// Frames of a device in a row, which large pages map.
#[track_caller]
fn region(session: &Session, other: usize) -> Verdict<Memory> {
    Memory::region(
        &session.engines[other].0,
        session.engines[other].0.region(0)?,
    )
}

const LARGE: u64 = 2 * MIB;

fn large(env: &Env) -> Verdict {
    let session = Session::with(env, Model::V2, &[("dirty", 0), ("dirty", 1)])?;
    let memory = region(&session, 1)?;
    let container = &session.container;
    let pages = memory.len() / PAGE;
    container.map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let leaves = session.engine().walk()?;
    expect("large pages", leaves.iter().all(|leaf| leaf.size == LARGE))?;
    container.dirty(DIRTY_START)?;

    let ask = |flags| dirty_pages(container, flags, IOVA, pages);
    let of = |range: std::ops::Range<u64>| range.collect::<Vec<u64>>();
    write(session.engine(), &[700])?;
    expect_eq("one large page", ask(DIRTY_GET_NOCLEAR)?, of(512..1024))?;
    clear_pages(container, IOVA, &[600], pages)?;
    let mut left = of(512..1024);
    left.retain(|page| *page != 600);
    expect_eq("without the one", ask(DIRTY_GET_NOCLEAR)?, left)?;
    // A clearing inside of what is dirty and was not asked for yet.
    write(session.engine(), &[3])?;
    clear_pages(container, IOVA, &[1], 2)?;
    let mut left = ask(DIRTY_GET)?;
    left.retain(|page| *page < 512);
    let mut want = of(0..512);
    want.retain(|page| *page != 1);
    expect_eq("the others of the large page", left, want)?;
    expect_eq("in the end", ask(DIRTY_GET)?, vec![])?;
    write(session.engine(), &[1])?;
    expect_eq("again", ask(DIRTY_GET)?, of(0..512))
}

/// A module parameter that is put back.
struct Parameter(&'static str, String);

impl Parameter {
    #[track_caller]
    fn set(path: &'static str, value: &str) -> Verdict<Self> {
        let old = fs::read_to_string(path)?;
        fs::write(path, value)?;
        Ok(Self(path, old))
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).expect("the parameter could be written before");
    }
}

fn granule(env: &Env) -> Verdict {
    const PATH: &str = "/sys/module/vfio_type1_rs/parameters/dirty_granule";
    for (limit, size) in [
        (4096, PAGE),
        (MIB, PAGE),
        (LARGE, LARGE),
        (0, LARGE),
        (1, PAGE),
    ] {
        let parameter = Parameter::set(PATH, &limit.to_string())?;
        let session = Session::with(env, Model::V2, &[("dirty", 0), ("dirty", 1)])?;
        // It counts when the container is opened.
        drop(parameter);
        let memory = region(&session, 1)?;
        let container = &session.container;
        container.map(IOVA, memory.vaddr(), memory.len(), RW)?;
        let leaves = session.engine().walk()?;
        let what = format_args!("pages with a limit of {limit}");
        expect(what, leaves.iter().all(|leaf| leaf.size == size))?;
        container.dirty(DIRTY_START)?;
        write(session.engine(), &[700])?;
        let got = dirty_pages(container, DIRTY_GET, IOVA, memory.len() / PAGE)?;
        expect_eq(what, got.len() as u64, size / PAGE)?;
        expect("the page", got.contains(&700))?;
    }
    // An IOMMU that does not track is not limited.
    let parameter = Parameter::set(PATH, "4096")?;
    let session = Session::with(env, Model::V2, &[("plain", 0), ("dirty", 1)])?;
    drop(parameter);
    let memory = region(&session, 1)?;
    session
        .container
        .map(IOVA, memory.vaddr(), memory.len(), RW)?;
    let sizes = |n: usize| -> Verdict<u64> { Ok(session.engines[n].walk()?[0].size) };
    expect_eq("page of the one", sizes(0)?, LARGE)?;
    expect_eq("page of the other", sizes(1)?, PAGE)
}

fn two(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0), ("dirty", 1)])?;
    tracked.write(&[1, 2])?;
    write(&tracked.session.engines[1], &[2, 3])?;
    tracked.expect("written", DIRTY_GET, &[1, 2, 3])?;
    write(&tracked.session.engines[1], &[1])?;
    tracked.expect("written again", DIRTY_GET, &[1])
}

fn joins(env: &Env) -> Verdict {
    let mut tracked = tracked(env, &[("dirty", 0)])?;
    tracked.write(&[1])?;
    tracked.session.add("dirty", 1)??;
    write(&tracked.session.engines[1], &[2])?;
    tracked.expect("written", DIRTY_GET, &[1, 2])?;
    write(&tracked.session.engines[1], &[2])?;
    tracked.session.remove(1)?;
    tracked.expect("written before it left", DIRTY_GET, &[2])
}

fn untracked(env: &Env) -> Verdict {
    for devices in [[("plain", 0), ("dirty", 0)], [("dirty", 0), ("plain", 0)]] {
        let tracked = tracked(env, &devices)?;
        tracked.expect("at first", DIRTY_GET, &all())?;
        tracked.expect("again", DIRTY_GET_NOCLEAR, &all())?;
        clear_pages(tracked.container(), IOVA, &all(), PAGES)?;
        tracked.expect("cleared in vain", DIRTY_GET, &all())?;
    }
    Ok(())
}

fn untracked_leaves(env: &Env) -> Verdict {
    let mut tracked = tracked(env, &[("dirty", 0)])?;
    tracked.write(&[1])?;
    tracked.session.add("plain", 0)??;
    write(&tracked.session.engines[1], &[2])?;
    tracked.expect("with it", DIRTY_GET, &all())?;
    tracked.write(&[3])?;
    write(&tracked.session.engines[1], &[4])?;
    tracked.session.remove(1)?;
    tracked.expect("once more", DIRTY_GET, &all())?;
    tracked.expect("without it", DIRTY_GET, &[])?;
    tracked.write(&[5])?;
    tracked.expect("written", DIRTY_GET, &[5])
}

fn leaves(env: &Env) -> Verdict {
    let mut tracked = tracked(env, &[("dirty", 0)])?;
    // It keeps the mappings alive, and pins what it needs.
    let group = Group::open(Which::First.group()?)?;
    group.set_container(tracked.container())?;
    tracked.write(&[1, 127])?;
    tracked.expect("seen", DIRTY_GET_NOCLEAR, &[1, 127])?;
    tracked.write(&[64])?;
    tracked.session.remove(0)?;
    tracked.expect("when it left", DIRTY_GET, &[1, 64, 127])?;
    tracked.expect("after that", DIRTY_GET, &[])?;
    tracked.session.add("dirty", 1)??;
    tracked.expect("another one", DIRTY_GET, &[])?;
    tracked.write(&[9])?;
    tracked.expect("written by it", DIRTY_GET, &[9])
}

fn driver(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let group = Group::open(Which::First.group()?)?;
    group.set_container(tracked.container())?;
    let emulated = Emulated::open(&group, Which::First)?;
    tracked.expect("at first", DIRTY_GET, &[])?;
    emulated.pinned(IOVA + 5 * PAGE, 1)?;
    emulated.write(IOVA + 6 * PAGE, &[1], Via::Task)?;
    tracked.write(&[7])?;
    tracked.expect("all of it", DIRTY_GET_NOCLEAR, &[5, 6, 7])?;
    clear_pages(tracked.container(), IOVA, &all(), PAGES)?;
    tracked.expect("pinned pages stay dirty", DIRTY_GET, &[5])?;
    emulated.unpin(IOVA + 5 * PAGE, 1)?;
    tracked.expect("unpinned since", DIRTY_GET, &[5])?;
    tracked.expect("in the end", DIRTY_GET, &[])
}

fn narrowed(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("plain", 0)])?;
    let engine = tracked.session.engine();
    tracked.expect("at first", DIRTY_GET, &all())?;
    tracked.write(&[1])?;
    engine.pin(IOVA + 3 * PAGE)?;
    tracked.expect("what was written before", DIRTY_GET, &all())?;
    tracked.expect("the pinned page", DIRTY_GET, &[3])?;
    engine.unpin()?;
    tracked.expect("while it was pinned", DIRTY_GET, &[3])?;
    tracked.expect("in the end", DIRTY_GET, &[])
}

fn tracked_pins(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let engine = tracked.session.engine();
    tracked.write(&[1])?;
    engine.pin(IOVA + 3 * PAGE)?;
    tracked.expect("written and pinned", DIRTY_GET, &[1, 3])?;
    tracked.write(&[2])?;
    tracked.expect("the same again", DIRTY_GET, &[2, 3])?;
    // Unmapping takes the pin back.
    tracked.container().unmap(IOVA, LEN, 0)?;
    expect_errno("nothing is pinned", engine.unpin(), Errno::ENOENT)
}

fn report(env: &Env) -> Verdict {
    let shown = |what: &str, wanted: &[&str]| -> Verdict {
        let text = fs::read_to_string(env.host.report_path())?;
        let owner = format!("(pid {})\n", std::process::id());
        let own = text.split("container ").find(|part| part.contains(&owner));
        for line in wanted {
            let has = own.is_some_and(|own| own.contains(line));
            expect(format_args!("{what}: {line:?} in {own:?}"), has)?;
        }
        Ok(())
    };
    let mut session = Session::open(env, "dirty")?;
    shown(
        "off",
        &["dirty tracking: off\n", "can track dirty pages)\n"],
    )?;
    session.container.dirty(DIRTY_START)?;
    shown(
        "on",
        &["dirty tracking: hardware\n", ", tracks dirty pages)\n"],
    )?;
    session.add("plain", 0)??;
    shown(
        "with another",
        &["dirty tracking: every page\n", "(coherent)\n"],
    )?;
    session.engines[1].pin(IOVA).expect_err("nothing is mapped");
    session.remove(0)?;
    let memory = Memory::anon(PAGE)?;
    session.container.map(IOVA, memory.vaddr(), PAGE, RW)?;
    session.engine().pin(IOVA)?;
    shown("pinned", &["dirty tracking: pinned pages\n"])
}

fn injected(env: &Env) -> Verdict {
    let tracked = tracked(env, &[("dirty", 0)])?;
    let engine = tracked.session.engine();
    let before = engine.stats()?.failed;
    engine.fail(What::Dirty, 2)?;
    tracked.write(&[1, 2, 3])?;
    tracked.expect("written", DIRTY_GET, &[1, 3])?;
    expect_eq("lost bits", engine.stats()?.failed - before, 1)
}
