// SPDX-License-Identifier: GPL-2.0

//! The mode that compares.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    Context,
    Result, //
};
use clap::Args;
use nix::sched::{
    sched_setaffinity,
    CpuSet, //
};
use nix::unistd::Pid;

use crate::driver::{
    self,
    Driver, //
};
use crate::exec::Machine;
use crate::gen::{
    self,
    Offer, //
};
use crate::op::Sequence;
use crate::record::Masked;
use crate::replay::{
    Bench,
    Finding,
    Pair,
    Statistics, //
};
use crate::shrink::shrink;

/// Steps that run on one driver before the other is loaded.
const BATCH: usize = 20_000;

/// Results that a run of some length reaches. If one is missing, the generator has lost its aim, and
/// that nothing was found says less than it seems.
const REACHED: [(&str, &[&str]); 24] = [
    ("GROUP_SET_CONTAINER", &["ok", "EINVAL", "EBUSY"]),
    ("GROUP_UNSET_CONTAINER", &["ok", "EINVAL", "EBUSY"]),
    ("GROUP_GET_DEVICE_FD", &["ok", "EINVAL"]),
    ("GET_API_VERSION", &["ok"]),
    ("CHECK_EXTENSION", &["ok"]),
    ("SET_IOMMU", &["ok", "EINVAL", "ENODEV"]),
    ("IOMMU_GET_INFO", &["ok", "EINVAL", "EFAULT"]),
    (
        "IOMMU_MAP_DMA",
        &[
            "ok",
            "EINVAL",
            "EEXIST",
            "EFAULT",
            "ENOMEM",
            "ENOSPC",
            "EOVERFLOW",
        ],
    ),
    (
        "IOMMU_MAP_DMA vaddr",
        &["ok", "EINVAL", "EFAULT", "ENOENT", "EOVERFLOW"],
    ),
    ("IOMMU_UNMAP_DMA", &["ok", "EINVAL", "EFAULT", "EOVERFLOW"]),
    ("IOMMU_UNMAP_DMA all", &["ok", "EINVAL", "EFAULT"]),
    (
        "IOMMU_UNMAP_DMA dirty",
        &["ok", "EINVAL", "EFAULT", "EOVERFLOW"],
    ),
    (
        "IOMMU_UNMAP_DMA vaddr",
        &["ok", "EINVAL", "EBUSY", "EFAULT"],
    ),
    ("IOMMU_DIRTY_PAGES", &["EACCES", "EINVAL", "EFAULT"]),
    ("IOMMU_DIRTY_PAGES start", &["ok", "EACCES", "EINVAL"]),
    ("IOMMU_DIRTY_PAGES stop", &["ok", "EACCES", "EINVAL"]),
    (
        "IOMMU_DIRTY_PAGES get",
        &["ok", "EACCES", "EINVAL", "EFAULT", "EOVERFLOW"],
    ),
    (
        "IOMMU_DIRTY_PAGES get, no clear",
        &["ok", "EACCES", "EINVAL"],
    ),
    ("IOMMU_DIRTY_PAGES clear", &["ok", "EACCES", "EINVAL"]),
    ("unknown ioctl", &["ENOTTY", "EINVAL"]),
    (
        "vfio_pin_pages",
        &[
            "ok",
            "E2BIG",
            "EACCES",
            "EFAULT",
            "EINVAL",
            "EOVERFLOW",
            "EPERM",
        ],
    ),
    ("vfio_unpin_pages", &["ok"]),
    ("vfio_dma_rw read", &["ok", "EFAULT", "EINVAL", "EPERM"]),
    ("vfio_dma_rw write", &["ok", "EFAULT", "EINVAL", "EPERM"]),
];

/// Calls after which all of that has been reached.
const ENOUGH: u64 = 50_000;

/// The seed unless another is given.
const SEED: u64 = 1;

#[derive(Args)]
pub(crate) struct Options {
    /// The C driver: vfio_iommu_type1.ko.
    #[arg(long, value_name = "FILE")]
    c: PathBuf,

    /// The Rust driver: vfio_type1_rs.ko.
    #[arg(long, value_name = "FILE")]
    rust: PathBuf,

    /// What random numbers begin with; the same seed gives the same sequences.
    #[arg(long, value_name = "NUMBER", default_value_t = SEED)]
    seed: u64,

    /// Go on until each driver has answered so many calls.
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000)]
    ops: u64,

    /// Stop after so many minutes all the same.
    #[arg(long, value_name = "NUMBER")]
    minutes: Option<u64>,

    /// Begin with this sequence of the seed.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    first: u64,

    /// Stop after so many findings, each of which is made as small as can be.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    findings: usize,

    /// Run one sequence from a file, which a finding has printed.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let drivers = [
        Driver::new("C", &options.c)?,
        Driver::new("Rust", &options.rust)?,
    ];
    driver::quiet_console()?;
    one_cpu()?;
    let mut bench = Bench::new(Machine::new()?, drivers)?;

    println!("KTAP version 1");
    if let Some(path) = &options.replay {
        return replay(&mut bench, path);
    }
    println!("1..2");
    let offer = Offer {
        units: bench.machine.units(),
    };
    let names: Vec<_> = offer.units.iter().map(|unit| unit.name()).collect();
    println!("# seed {}, devices: {}", options.seed, names.join(", "));

    let began = Instant::now();
    let deadline = options.minutes.map(|n| began + Duration::from_secs(60 * n));
    let mut statistics = Statistics::default();
    let mut findings = 0;
    let mut next = options.first;
    while statistics.calls < options.ops
        && findings < options.findings
        && deadline.is_none_or(|deadline| Instant::now() < deadline)
    {
        let batch = make_batch(options.seed, &mut next, &offer);
        let pairs = bench.run(&batch)?;
        for (sequence, pair) in batch.iter().zip(&pairs) {
            statistics.count(sequence, &pair[0].records);
            let finding = bench.judge(sequence, pair, &mut statistics.masked);
            if let Some(finding) = finding {
                findings += 1;
                report(&mut bench, sequence, pair, &finding)?;
                if findings == options.findings {
                    break;
                }
            }
        }
        progress(&statistics, began);
    }

    summary(&statistics, began);
    println!("# {findings} findings");
    let same = findings == 0;
    println!("{} 1 compare.same", if same { "ok" } else { "not ok" });
    let reached = reached(&statistics, findings);
    Ok(ExitCode::from(u8::from(!same || !reached)))
}

/// Keeps this process and its children on one CPU: they only ever wait for each other, and to wake
/// another CPU for it costs User-Mode Linux more than all else.
fn one_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    Ok(())
}

/// Says whether calls had all the results they can have, as far as they are to be expected.
fn reached(statistics: &Statistics, findings: usize) -> bool {
    if statistics.calls < ENOUGH || findings != 0 {
        println!("ok 2 compare.reached # SKIP fewer than {ENOUGH} calls");
        return true;
    }
    let wanted = REACHED
        .iter()
        .flat_map(|(call, results)| results.iter().map(move |result| (*call, *result)));
    let missing: Vec<_> = wanted
        .filter(|(call, result)| !statistics.reached(call, result))
        .map(|(call, result)| format!("{call} {result}"))
        .collect();
    if missing.is_empty() {
        println!("ok 2 compare.reached");
    } else {
        println!("# never seen: {}", missing.join(", "));
        println!("not ok 2 compare.reached");
    }
    missing.is_empty()
}

fn make_batch(seed: u64, next: &mut u64, offer: &Offer) -> Vec<Sequence> {
    let mut batch = Vec::new();
    let mut steps = 0;
    while steps < BATCH {
        let sequence = gen::sequence(seed, *next, offer);
        *next += 1;
        steps += sequence.steps.len();
        batch.push(sequence);
    }
    batch
}

fn replay(bench: &mut Bench, path: &PathBuf) -> Result<ExitCode> {
    println!("1..1");
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let sequence: Sequence =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let pairs = bench.run(std::slice::from_ref(&sequence))?;
    let pair = &pairs[0];
    let finding = bench.judge(&sequence, pair, &mut Masked::new());
    print_steps(&sequence, pair, finding.as_ref());
    let verdict = if finding.is_none() { "ok" } else { "not ok" };
    println!("{verdict} 1 compare.replay");
    Ok(ExitCode::from(u8::from(finding.is_some())))
}

/// Makes a finding small and prints it.
fn report(bench: &mut Bench, sequence: &Sequence, pair: &Pair, finding: &Finding) -> Result<()> {
    println!(
        "# sequence {} of seed {}: {finding:?}",
        sequence.index, sequence.seed
    );
    // Not all that was found in a long run happens again in a short one.
    let again = bench.run(std::slice::from_ref(sequence))?;
    let repeats = bench
        .judge(sequence, &again[0], &mut Masked::new())
        .is_some_and(|found| found.resembles(finding));
    if !repeats {
        println!("# it did not happen again when run alone; all steps:");
        print_steps(sequence, pair, Some(finding));
        return Ok(());
    }
    let (small, found) = shrink(bench, sequence, finding)?;
    let pairs = bench.run(std::slice::from_ref(&small))?;
    print_steps(&small, &pairs[0], Some(&found));
    println!("# {}", serde_json::to_string(&small)?);
    Ok(())
}

fn print_steps(sequence: &Sequence, pair: &Pair, finding: Option<&Finding>) {
    let [c, rust] = pair.each_ref().map(|trace| &trace.records);
    let ends = sequence.steps.iter().map(ToString::to_string);
    let names = ends.chain(["all closed".to_owned()]);
    for (at, (name, (c, rust))) in names.zip(c.iter().zip(rust)).enumerate() {
        let here = matches!(finding, Some(Finding::Difference { at: there, .. }) if *there == at);
        println!("# {}{at:3} {name}", if here { ">" } else { " " });
        if c == rust && !here {
            println!("#        both: {c}");
        } else {
            println!("#        C:    {c}");
            println!("#        Rust: {rust}");
        }
    }
    match finding {
        Some(Finding::Difference { what, .. }) => println!("# different: {what}"),
        Some(Finding::Complaint { driver, text }) => println!("# kernel log, {driver}: {text}"),
        Some(Finding::Leftover { driver }) => {
            println!("# {driver}: locked or pinned pages are left when all is closed");
        }
        None => println!("# no difference"),
    }
}

fn rate(count: u64, began: Instant) -> u128 {
    u128::from(count) * 1000 / began.elapsed().as_millis().max(1)
}

fn progress(statistics: &Statistics, began: Instant) {
    println!(
        "# {} calls on each driver, {} sequences, {} s, {} calls/s with both drivers",
        statistics.calls,
        statistics.sequences,
        began.elapsed().as_secs(),
        rate(2 * statistics.calls, began)
    );
}

fn summary(statistics: &Statistics, began: Instant) {
    progress(statistics, began);
    for (call, results) in &statistics.results {
        let results: Vec<_> = results
            .iter()
            .map(|(result, count)| format!("{result} {count}"))
            .collect();
        println!("# {call}: {}", results.join(", "));
    }
    let list = |title: &str, counts: &Masked| {
        for (why, count) in counts {
            println!("# {title}: {why}: {count}");
        }
    };
    list("not asked", &statistics.skipped);
    list("intended difference", &statistics.masked);
}
