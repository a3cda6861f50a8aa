// SPDX-License-Identifier: GPL-2.0

//! A device that goes on writing while its memory is copied.
//!
//! It writes to so many random pages for each that is copied, so that what a migration comes to
//! does not depend on how fast the machine is or what else it does. Beside that it writes to a hot
//! spot, a queue say, as fast as it can, whatever the client is doing meanwhile.

use anyhow::{
    ensure,
    Result, //
};
use harness::soft::{
    Engine,
    Op, //
};
use harness::vfio::PAGE;
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};

use crate::guest::Mapping;

/// What a device does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Writes to random pages for each hundred pages copied.
    pub(crate) write_percent: u64,
    /// Part of the memory that they go to, in percent.
    pub(crate) working_set: u64,
    /// Pages of the hot spot.
    pub(crate) hot_pages: u64,
    /// Where random numbers begin.
    pub(crate) seed: u64,
}

/// A running device.
pub(crate) struct Device<'a> {
    engine: &'a Engine,
    /// Address and pages of each mapping.
    places: Vec<(u64, u64)>,
    load: Load,
    random: ChaCha8Rng,
    /// Bytes are others for each write: one of the same bytes would not be missed.
    seed: u64,
    /// Hundredths of pages that may be written.
    due: u64,
    written: u64,
}

impl<'a> Device<'a> {
    /// Lets a device run.
    ///
    /// # Errors
    ///
    /// If it does already.
    pub(crate) fn start(engine: &'a Engine, mappings: &[Mapping], load: Load) -> Result<Self> {
        if let (Some(last), 1..) = (mappings.last(), load.hot_pages) {
            let len = load.hot_pages.min(last.pages()) * PAGE;
            engine.start(Op::Churn, last.iova, len, load.seed ^ 1 << 63, 1)?;
        }
        Ok(Device {
            engine,
            places: mappings.iter().map(|m| (m.iova, m.pages())).collect(),
            load,
            random: ChaCha8Rng::seed_from_u64(load.seed),
            seed: load.seed,
            due: 0,
            written: 0,
        })
    }

    /// Lets it write what it writes while so many pages are copied.
    ///
    /// # Errors
    ///
    /// If its DMA did not reach the memory.
    pub(crate) fn keep_pace(&mut self, copied: u64) -> Result<()> {
        self.due += copied * self.load.write_percent;
        while self.due >= 100 {
            self.due -= 100;
            self.write_somewhere()?;
        }
        Ok(())
    }

    /// Stops it; how often it wrote.
    ///
    /// # Errors
    ///
    /// If its DMA did not reach the memory.
    pub(crate) fn stop(self) -> Result<u64> {
        if self.load.hot_pages == 0 {
            return Ok(self.written);
        }
        let done = self.engine.stop()?;
        ensure!(
            done.faults == 0,
            "DMA of the device faulted: {:?}",
            done.fault
        );
        Ok(self.written + done.pieces)
    }

    fn write_somewhere(&mut self) -> Result<()> {
        let (iova, pages) = self.places[self.random.random_range(0..self.places.len())];
        let within = (pages * self.load.working_set / 100).max(1);
        let page = iova + self.random.random_range(0..within) * PAGE;
        self.seed += 1;
        write_page(self.engine, page, self.seed)?;
        self.written += 1;
        Ok(())
    }
}

/// Has a device write to a page.
///
/// # Errors
///
/// If its DMA did not reach the memory.
pub(crate) fn write_page(engine: &Engine, iova: u64, seed: u64) -> Result<()> {
    let done = engine.touch(iova, PAGE, seed, 0)?;
    ensure!(
        done.fault.is_none(),
        "DMA of the device faulted: {:?}",
        done.fault
    );
    Ok(())
}
