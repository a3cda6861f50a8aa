// SPDX-License-Identifier: GPL-2.0

//! The plan, as `scripts/vkr/selftests.py` makes it.
//!
//! A field that is not known here is an error: a test must not pass for lack of what it asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Loaded first, in this order.
    pub(crate) modules: Vec<Module>,
    pub(crate) phases: Vec<Phase>,
    /// The device that the host listens to.
    pub(crate) transcript: PathBuf,
    pub(crate) leaks: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Module {
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) parameters: String,
}

/// Tests that run with the same driver, or without any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) driver: Option<Driver>,
    pub(crate) tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Driver {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) parameters: String,
    /// Modules it stands on.
    pub(crate) below: Vec<PathBuf>,
    /// Modules that would do its work if they were there.
    pub(crate) rivals: Vec<String>,
    #[serde(rename = "of")]
    _of: String,
    #[serde(rename = "as")]
    _as: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    pub(crate) needs: Vec<Need>,
    /// Seconds.
    pub(crate) limit: u64,
    pub(crate) env: BTreeMap<String, String>,
    /// Files of the kernel, and what to write to them meanwhile.
    pub(crate) settings: BTreeMap<PathBuf, String>,
    #[serde(rename = "containers")]
    _containers: bool,
}

/// What a test is skipped without.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Need {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) modules: Vec<Module>,
    pub(crate) open: Option<PathBuf>,
}
