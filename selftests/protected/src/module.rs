// SPDX-License-Identifier: GPL-2.0

//! The module under test, if there is one.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{
    self,
    File, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::OnceLock;

use anyhow::Context;
use harness::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};
use nix::errno::Errno;
use nix::kmod::{
    delete_module,
    finit_module,
    DeleteModuleFlags,
    ModuleInitFlags, //
};
use sregs::Updates;

const NAME: &CStr = c"kvm_x86_rs";
const UPDATES: &str = "/sys/module/kvm_x86_rs/parameters/sregs_updates";
const COUNTS: &str = "/sys/kernel/debug/kvm_x86_rs/sregs";

static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Unloads the module when all tests are done.
pub(crate) struct Loaded(());

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(errno) = unload() {
            eprintln!("kvm_x86_rs does not unload: {errno}");
        }
    }
}

/// Loads the module, if the tests are about one.
pub(crate) fn begin(file: Option<PathBuf>) -> anyhow::Result<Option<Loaded>> {
    let file = FILE.get_or_init(|| file);
    let Some(path) = file else { return Ok(None) };
    load_file(path).with_context(|| format!("{} does not load", path.display()))?;
    Ok(Some(Loaded(())))
}

/// Whether the tests are about the module.
pub(crate) fn is_tested() -> bool {
    file().is_some()
}

fn file() -> Option<&'static Path> {
    FILE.get().and_then(Option::as_deref)
}

fn load_file(path: &Path) -> anyhow::Result<()> {
    finit_module(File::open(path)?, c"", ModuleInitFlags::empty())?;
    Ok(())
}

/// Loads it again.
pub(crate) fn load() -> Verdict<Result<(), Errno>> {
    let path = file().ok_or_else(|| Stop::skip("kvm_x86_rs"))?;
    let file = File::open(path).map_err(|error| missing_or_fail(path, error))?;
    Ok(finit_module(file, c"", ModuleInitFlags::empty()))
}

/// Unloads it, unless somebody uses it.
pub(crate) fn unload() -> Result<(), Errno> {
    delete_module(NAME, DeleteModuleFlags::O_NONBLOCK)
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
