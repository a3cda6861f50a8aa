// SPDX-License-Identifier: GPL-2.0

//! The options and exit codes which all test programs share.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{
    ensure,
    Result, //
};
use clap::Args;
use regex::Regex;

use crate::env::{
    Driver,
    Env,
    Pci, //
};
use crate::runner::{
    self,
    Test, //
};

/// What kselftest runners take for "nothing could be tested".
const KSFT_SKIP: u8 = 4;

/// The options, to be flattened into those of a program.
#[derive(Debug, Args)]
pub struct Options {
    /// Fail each test whose container is served by another driver.
    #[arg(long, value_name = "DRIVER")]
    pub expect_driver: Option<Driver>,

    /// Run only tests whose name matches; may be given several times.
    #[arg(long, value_name = "REGEX")]
    filter: Vec<Regex>,

    /// List the tests and exit.
    #[arg(long)]
    list: bool,

    /// Give each test this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,

    /// Give each test so many times that, where the kernel or the processor is slow.
    #[arg(long, value_name = "TIMES", env = "TEST_PATIENCE", default_value_t = 1)]
    patience: u64,
}

impl Options {
    /// The machine under test, with these functions bound to vfio-pci, by their addresses.
    pub fn env(&self, devices: impl IntoIterator<Item = String>) -> Env {
        Env {
            devices: devices.into_iter().map(|bdf| Pci { bdf }).collect(),
            expected: self.expect_driver,
            ..Env::default()
        }
    }

    /// Whether the tests are only to be listed.
    pub fn lists(&self) -> bool {
        self.list
    }

    /// Lists those of `tests` that are chosen, and the names and meanings `behind` them; or runs
    /// them in `env`.
    ///
    /// # Errors
    ///
    /// If there is nothing to run, or no process to run it in.
    pub fn carry_out(
        &self,
        env: &Env,
        tests: impl IntoIterator<Item = Test>,
        behind: &[(&str, &str)],
    ) -> Result<ExitCode> {
        let all: Vec<Test> = tests.into_iter().collect();
        let chosen: Vec<Test> = all.iter().copied().filter(|t| self.chooses(t)).collect();
        if self.list {
            let names = chosen.iter().map(|test| (test.name, test.about));
            let widest = all.iter().map(|test| test.name.len()).max().unwrap_or(0);
            let column = widest + 2;
            for (name, about) in names.chain(behind.iter().copied()) {
                println!("{name:<column$} {about}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        ensure!(
            !chosen.is_empty(),
            "no test matches; --list shows their names"
        );

        let totals = runner::run(
            env,
            &chosen,
            Duration::from_secs(self.timeout * self.patience),
        )?;
        Ok(match (totals.fail, totals.pass) {
            (0, 0) => ExitCode::from(KSFT_SKIP),
            (0, _) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }

    fn chooses(&self, test: &Test) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|re| re.is_match(test.name))
    }
}
