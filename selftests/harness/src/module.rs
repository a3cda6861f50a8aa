// SPDX-License-Identifier: GPL-2.0

//! Kernel modules that tests load and unload.

use std::borrow::Cow;
use std::ffi::CString;
use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{
    delete_module,
    finit_module,
    DeleteModuleFlags,
    ModuleInitFlags, //
};

use crate::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};

/// A module whose file is open.
pub struct Module {
    file: File,
    name: CString,
}

impl Module {
    /// Opens the file, by which the module is called.
    ///
    /// # Errors
    ///
    /// The test is skipped if there is no such file.
    #[track_caller]
    pub fn open(path: &Path) -> Verdict<Self> {
        let file = File::open(path).map_err(|error| missing_or_fail(path, error))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = CString::new(stem.replace('-', "_")).map_err(Stop::fail)?;
        Ok(Self { file, name })
    }

    /// Its file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the kernel calls it.
    pub fn name(&self) -> Cow<'_, str> {
        self.name.to_string_lossy()
    }

    /// Loads it, without parameters.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn load(&self) -> Result<(), Errno> {
        finit_module(&self.file, c"", ModuleInitFlags::empty())
    }

    /// Unloads it, unless somebody uses it.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn unload(&self) -> Result<(), Errno> {
        delete_module(&self.name, DeleteModuleFlags::O_NONBLOCK)
    }
}
