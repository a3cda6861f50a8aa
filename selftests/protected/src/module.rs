// SPDX-License-Identifier: GPL-2.0

//! The module under test, if there is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Context;
use harness::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::module::Module;
use sregs::Updates;

const UPDATES: &str = "/sys/module/kvm_x86_rs/parameters/sregs_updates";
const COUNTS: &str = "/sys/kernel/debug/kvm_x86_rs/sregs";

static MODULE: OnceLock<Option<Module>> = OnceLock::new();

/// Unloads the module when all tests are done.
pub(crate) struct Loaded(&'static Module);

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(errno) = self.0.unload() {
            eprintln!("{} does not unload: {errno}", self.0.name());
        }
    }
}

/// Loads the module, if the tests are about one.
pub(crate) fn begin(file: Option<PathBuf>) -> anyhow::Result<Option<Loaded>> {
    let module = file.as_deref().map(Module::open).transpose()?;
    let Some(module) = MODULE.get_or_init(|| module) else {
        return Ok(None);
    };
    module
        .load()
        .with_context(|| format!("{} does not load", module.name()))?;
    Ok(Some(Loaded(module)))
}

/// Whether the tests are about the module.
pub(crate) fn is_tested() -> bool {
    matches!(MODULE.get(), Some(Some(_)))
}

/// The module, if the tests are about it.
pub(crate) fn get() -> Verdict<&'static Module> {
    let module = MODULE.get().and_then(Option::as_ref);
    module.ok_or_else(|| Stop::skip("kvm_x86_rs"))
}

/// The ways to treat what user space sets that there are to test.
pub(crate) fn policies() -> &'static [Updates] {
    if is_tested() {
        &[Updates::Applied, Updates::Ignored]
    } else {
        &[Updates::Ignored]
    }
}

/// Has user space's registers treated this way.
pub(crate) fn set_policy(updates: Updates) -> Verdict {
    if is_tested() {
        let value = if updates == Updates::Applied {
            "Y"
        } else {
            "N"
        };
        fs::write(UPDATES, value).map_err(|error| missing_or_fail(UPDATES, error))?;
    }
    Ok(())
}

/// What the module has counted, by name.
pub(crate) fn counts() -> Verdict<BTreeMap<String, u64>> {
    let text = fs::read_to_string(COUNTS).map_err(|error| missing_or_fail(COUNTS, error))?;
    text.lines()
        .map(|line| {
            let (name, count) = line.split_once(": ")?;
            Some((name.to_owned(), count.parse().ok()?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Stop::fail(format_args!("{COUNTS} is not understood:\n{text}")))
}
