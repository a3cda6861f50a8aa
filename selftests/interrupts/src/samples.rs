// SPDX-License-Identifier: GPL-2.0

//! How long interrupts took, in cycles of the time stamp counter.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;

use harness::check::Verdict;
use serde::Serialize;

use crate::settings;

#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<u64>);

#[derive(Serialize)]
struct Record<'a> {
    test: &'a str,
    unit: &'static str,
    /// How many took how long. On an emulator most take the same.
    taken: BTreeMap<u64, usize>,
}

impl Samples {
    pub(crate) fn push(&mut self, cycles: u64) {
        self.0.push(cycles);
    }

    /// Those of another, too.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Prints what is usual, and keeps all if asked to.
    pub(crate) fn report(mut self, test: &str) -> Verdict {
        if let Some(path) = &settings().json {
            let mut record = Record {
                test,
                unit: "TSC cycles",
                taken: BTreeMap::new(),
            };
            for cycles in &self.0 {
                *record.taken.entry(*cycles).or_default() += 1;
            }
            let mut line = serde_json::to_vec(&record).map_err(anyhow::Error::from)?;
            line.push(b'\n');
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)?
                .write_all(&line)?;
        }
        self.0.sort_unstable();
        let at = |percent: usize| {
            self.0
                .get((self.0.len() * percent / 100).min(self.0.len() - 1))
        };
        if let (Some(half), Some(most), Some(all)) = (at(50), at(99), self.0.last()) {
            println!(
                "# {} interrupts, cycles: median {half}, 99 % within {most}, all within {all}",
                self.0.len()
            );
        }
        Ok(())
    }
}
