// SPDX-License-Identifier: GPL-2.0

//! Runs sequences on both drivers and finds out where they differ.

use std::collections::BTreeMap;

use anyhow::{
    Context,
    Result, //
};

use crate::driver::{
    Driver,
    Log, //
};
use crate::exec::Machine;
use crate::op::Sequence;
use crate::record::{
    compare,
    Masked,
    Outcome,
    Record, //
};

/// What one driver made of a sequence.
#[derive(Debug)]
pub(crate) struct Trace {
    /// One for each step, and one for the end.
    pub(crate) records: Vec<Record>,
    /// What the kernel complained about.
    pub(crate) complaints: Vec<String>,
}

/// What is wrong with a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The drivers differ at a step, or at the end.
    Difference { at: usize, what: &'static str },
    /// The kernel complained.
    Complaint { driver: &'static str, text: String },
    /// Something was not given back, by either driver.
    Leftover { driver: &'static str },
}

impl Finding {
    /// Whether a smaller sequence shows the same.
    pub(crate) fn resembles(&self, other: &Finding) -> bool {
        match (self, other) {
            (Finding::Difference { what, .. }, Finding::Difference { what: other, .. }) => {
                what == other
            }
            (Finding::Complaint { driver, .. }, Finding::Complaint { driver: other, .. })
            | (Finding::Leftover { driver }, Finding::Leftover { driver: other }) => {
                driver == other
            }
            _ => false,
        }
    }
}

/// Both drivers, and the machine they run on.
pub(crate) struct Bench {
    pub(crate) machine: Machine,
    drivers: [Driver; 2],
    log: Log,
}

/// What both drivers made of a sequence.
pub(crate) type Pair = [Trace; 2];

impl Bench {
    pub(crate) fn new(machine: Machine, drivers: [Driver; 2]) -> Result<Self> {
        Ok(Bench {
            machine,
            drivers,
            log: Log::open()?,
        })
    }

    /// Runs all sequences on one driver, then on the other.
    pub(crate) fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Pair>> {
        let [first, second] = [0, 1].map(|index| self.run_one(index, sequences));
        let pairs = first?.into_iter().zip(second?);
        Ok(pairs.map(|(c, rust)| [c, rust]).collect())
    }

    fn run_one(&mut self, index: usize, sequences: &[Sequence]) -> Result<Vec<Trace>> {
        let driver = &self.drivers[index];
        let loaded = driver.load()?;
        let parameters = loaded.parameters();
        let mut traces = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let records = self.machine.run(sequence, &parameters).with_context(|| {
                let Sequence { seed, index, .. } = sequence;
                format!("sequence {index} of seed {seed} on {}", driver.label)
            })?;
            traces.push(Trace {
                records,
                complaints: self.log.complaints()?,
            });
        }
        loaded.unload()?;
        Ok(traces)
    }

    /// What is wrong with a sequence, if anything is.
    pub(crate) fn judge(
        &self,
        sequence: &Sequence,
        pair: &Pair,
        masked: &mut Masked,
    ) -> Option<Finding> {
        for (driver, trace) in self.drivers.iter().zip(pair) {
            if let Some(text) = trace.complaints.first() {
                return Some(Finding::Complaint {
                    driver: driver.label,
                    text: text.clone(),
                });
            }
        }
        let [c, rust] = pair.each_ref().map(|trace| &trace.records);
        for (at, (c, rust)) in c.iter().zip(rust).enumerate() {
            if let Some(what) = compare(sequence.steps.get(at), c, rust, masked) {
                return Some(Finding::Difference { at, what });
            }
        }
        // Pages locked or pinned when all is closed.
        for (driver, trace) in self.drivers.iter().zip(pair) {
            let end = trace.records.last()?;
            if end.locked != [0; 2] || end.data != [0] {
                return Some(Finding::Leftover {
                    driver: driver.label,
                });
            }
        }
        None
    }
}

/// How often each call had each result.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    /// Calls that were made, on each driver.
    pub(crate) calls: u64,
    pub(crate) sequences: u64,
    pub(crate) results: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Steps that were left out, and why.
    pub(crate) skipped: BTreeMap<&'static str, u64>,
    /// Differences that are intended.
    pub(crate) masked: Masked,
}

impl Statistics {
    /// Counts what a driver made of a sequence.
    pub(crate) fn count(&mut self, sequence: &Sequence, records: &[Record]) {
        self.sequences += 1;
        for (step, record) in sequence.steps.iter().zip(records) {
            let result = match record.outcome {
                Outcome::Skipped(why) => {
                    *self.skipped.entry(why).or_default() += 1;
                    continue;
                }
                Outcome::Done(_) => "ok".to_owned(),
                Outcome::Refused(errno) => format!("{errno:?}"),
            };
            if let Some(call) = step.op.call() {
                self.calls += 1;
                *self
                    .results
                    .entry(call)
                    .or_default()
                    .entry(result)
                    .or_default() += 1;
            }
        }
    }

    /// Whether a call had a result.
    pub(crate) fn reached(&self, call: &str, result: &str) -> bool {
        self.results
            .get(call)
            .is_some_and(|results| results.contains_key(result))
    }
}
