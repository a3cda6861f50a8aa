// SPDX-License-Identifier: GPL-2.0

//! Live migration of memory, as far as the kernel has a part in it.
//!
//! [`migrate`] is the whole story. The one thing to get right is the order: ask which pages are
//! dirty, have some of them taken as clean, and only then copy those. A page copied before it is
//! taken as clean may be written to in between, and nobody would know.

use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    Context,
    Result, //
};
use harness::soft::{
    Engine,
    What, //
};
use harness::vfio::{
    Container,
    DIRTY_CLEAR,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    DIRTY_LOG_MANUAL_CLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE, //
};
use indicatif::ProgressBar;

use crate::bitmap::WORD;
use crate::device::{
    write_page,
    Device,
    Load, //
};
use crate::guest::{
    Guest,
    Mapping, //
};
use crate::report::{
    Migration,
    Mode,
    Round, //
};

/// How a client goes about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Whether to use CLEAR_BITMAP if the driver has it.
    pub(crate) manual_clear: bool,
    /// Pages to clear and copy at a time; a multiple of [`WORD`].
    pub(crate) window: u64,
    /// The device is stopped when no more of its memory is dirty, in percent.
    pub(crate) enough: u64,
    /// Or after so many rounds.
    pub(crate) rounds: usize,
    /// What the link carries, in bytes per second.
    pub(crate) bandwidth: Option<u64>,
    /// Has the IOMMU lose the dirty bit of a last write.
    pub(crate) lose: bool,
}

/// Copies a guest's memory while its device writes to it, and compares.
///
/// # Errors
///
/// If the kernel refuses something, or the device's DMA does not reach the memory. That the copy
/// is not equal is in the result.
pub(crate) fn migrate(
    guest: &mut Guest,
    load: Load,
    plan: &Plan,
    progress: &ProgressBar,
    mut after_round: impl FnMut(&Migration),
) -> Result<Migration> {
    let pages = guest.pages();
    let enough = pages * plan.enough / 100;
    let leaves = guest.leaves()?;
    let (container, engine) = (&guest.container, guest.engine.as_ref());
    let mappings = &mut guest.mappings;

    // That there is the extension says nothing of the IOMMU: if that does not track, everything
    // is dirty, also after it was taken as clean.
    let manual = plan.manual_clear && has_manual_clear(container)?;
    let mode = match manual {
        true => Mode::ManualClear,
        false => Mode::Get,
    };
    let began = Instant::now();
    container
        .dirty(DIRTY_START)
        .context("the kernel cannot track dirty pages")?;
    let mut found = Migration {
        driver: guest.driver.into(),
        mode,
        page: PAGE,
        pages,
        mappings: mappings.len(),
        leaves,
        write_percent: load.write_percent,
        hot_pages: load.hot_pages,
        window: plan.window,
        start_ns: nanoseconds(began.elapsed()),
        rounds: Vec::new(),
        converged: false,
        downtime_ns: 0,
        device_writes: 0,
        differing_pages: 0,
    };

    // Nothing was copied yet, so all there is counts as dirty, whatever the kernel would say.
    for mapping in mappings.iter_mut() {
        mapping.dirty.set_all();
    }
    let mut copier = Copier {
        container,
        mode,
        plan,
        progress,
    };
    let mut device = match engine {
        Some(engine) => Some(Device::start(engine, mappings, load)?),
        None => None,
    };
    let mut asking = Duration::ZERO;
    while !found.converged && found.rounds.len() < plan.rounds {
        let round = copier.round(mappings, asking, device.as_mut())?;
        found.rounds.push(round);
        after_round(&found);
        asking = copier.ask(mappings)?;
        found.converged = dirty(mappings) <= enough;
    }

    let stopping = Instant::now();
    if let Some(device) = device {
        found.device_writes = device.stop()?;
    }
    // What it wrote since the last answer.
    asking += copier.ask(mappings)?;
    if let (true, Some(engine)) = (plan.lose, engine) {
        lose_write(engine, &mappings[0])?;
        copier.ask(mappings)?;
    }
    let mut round = copier.round(mappings, asking, None)?;
    round.stopped = true;
    found.downtime_ns = nanoseconds(stopping.elapsed());
    found.rounds.push(round);
    after_round(&found);
    container.dirty(DIRTY_STOP)?;

    found.differing_pages = mappings.iter().map(Mapping::differing).sum();
    Ok(found)
}

/// Whether there are GET_BITMAP_NOCLEAR and CLEAR_BITMAP.
pub(crate) fn has_manual_clear(container: &Container) -> Result<bool> {
    Ok(container.check_extension(DIRTY_LOG_MANUAL_CLEAR as usize)? > 0)
}

/// Has the device write to a page that is clean, and the IOMMU not tell.
fn lose_write(engine: &Engine, mapping: &Mapping) -> Result<()> {
    let page = mapping.dirty.first_clear().unwrap_or(0) as u64;
    engine.fail(What::Dirty, 1)?;
    write_page(engine, mapping.iova + page * PAGE, u64::MAX / 2)?;
    engine.fail(What::Dirty, 0)?;
    Ok(())
}

/// Pages that have still to be copied.
fn dirty(mappings: &[Mapping]) -> u64 {
    mappings.iter().map(|mapping| mapping.dirty.count()).sum()
}

struct Copier<'a> {
    container: &'a Container,
    mode: Mode,
    plan: &'a Plan,
    progress: &'a ProgressBar,
}

impl Copier<'_> {
    /// Asks the kernel which pages became dirty.
    fn ask(&mut self, mappings: &mut [Mapping]) -> Result<Duration> {
        let flag = match self.mode {
            Mode::Get => DIRTY_GET,
            Mode::ManualClear => DIRTY_GET_NOCLEAR,
        };
        let began = Instant::now();
        for mapping in mappings {
            let (iova, len) = (mapping.iova, mapping.memory.len());
            let ask = |words: &mut [u64]| self.container.dirty_range(flag, iova, len, words);
            mapping.dirty.add(ask)?;
        }
        Ok(began.elapsed())
    }

    /// Copies all that is dirty, while the device runs or without it.
    fn round(
        &mut self,
        mappings: &mut [Mapping],
        asking: Duration,
        mut device: Option<&mut Device<'_>>,
    ) -> Result<Round> {
        let mut round = Round {
            dirty_pages: dirty(mappings),
            get_ns: nanoseconds(asking),
            ..Round::default()
        };
        let mut began = Instant::now();
        let mut sent = 0;
        self.progress.set_length(round.dirty_pages);
        self.progress.set_position(0);
        for mapping in mappings {
            let words = self.plan.window as usize / WORD;
            for window in mapping.dirty.windows(words) {
                if self.mode == Mode::ManualClear {
                    let clearing = Instant::now();
                    let iova = mapping.iova + window.first as u64 * PAGE;
                    let len = window.pages as u64 * PAGE;
                    let mut bits = window.words.to_vec();
                    self.container
                        .dirty_range(DIRTY_CLEAR, iova, len, &mut bits)?;
                    round.clear_ns += nanoseconds(clearing.elapsed());
                    round.clear_calls += 1;
                }
                if let Some(device) = &mut device {
                    // Where a write would be lost if the order were another. The client need not
                    // wait for it.
                    let writing = Instant::now();
                    device.keep_pace(window.count())?;
                    began += writing.elapsed();
                }
                for run in window.runs() {
                    let bytes = run.start * PAGE as usize..run.end * PAGE as usize;
                    let from = bytes.start as u64;
                    mapping.memory.get_into(from, &mut mapping.copy[bytes]);
                    sent += run.len() as u64;
                }
                self.progress.set_position(sent);
                self.carry(began, sent * PAGE);
            }
            mapping.dirty.clear_all();
        }
        round.round_ns = nanoseconds(began.elapsed());
        Ok(round)
    }

    /// Waits until a link would have carried so much.
    fn carry(&self, began: Instant, bytes: u64) {
        if let Some(bandwidth) = self.plan.bandwidth {
            let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth.max(1));
            let due = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
}

/// A time as results have it.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
