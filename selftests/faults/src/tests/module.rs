// SPDX-License-Identifier: GPL-2.0

//! The driver's module is loaded.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::OnceLock;

use harness::check::{
    expect,
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::env::{
    Driver,
    Env,
    Model, //
};
use nix::errno::Errno;
use nix::kmod::{
    delete_module,
    finit_module,
    DeleteModuleFlags,
    ModuleInitFlags, //
};

use super::table;
use crate::call::Call;
use crate::rig::{
    Rig,
    EMULATED, //
};
use crate::sweep::{
    Sweep,
    Trial, //
};

table! {
    "module.load", "finit_module" => load;
}

static MODULE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Says what the command line says about the driver's module.
pub(crate) fn set_module(path: Option<PathBuf>) {
    let _ = MODULE.set(path);
}

/// The module, loaded again in the end.
struct Unloaded<'a> {
    path: &'a Path,
    name: String,
}

impl Unloaded<'_> {
    fn unload(&self) -> Result<(), Errno> {
        let name = std::ffi::CString::new(&*self.name).map_err(|_| Errno::EINVAL)?;
        delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
    }
}

impl Drop for Unloaded<'_> {
    fn drop(&mut self) {
        if let Ok(file) = File::open(self.path) {
            let _ = finit_module(&file, c"", ModuleInitFlags::empty());
        }
    }
}

fn load(env: &Env) -> Verdict {
    let Some(Some(path)) = MODULE.get() else {
        return Err(Stop::skip("the driver's module (--module)"));
    };
    let file = File::open(path).map_err(|e| missing_or_fail(path, e))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let module = Unloaded {
        path,
        name: stem.replace('-', "_"),
    };
    module.unload()?;

    let sysfs = Path::new("/sys/module").join(&module.name);
    let debugfs = Path::new("/sys/kernel/debug").join(&module.name);
    let prepare = || {
        // Somebody may still hold a module that was refused.
        for left in [&sysfs, &debugfs] {
            expect(format_args!("{} is gone", left.display()), !left.exists())?;
        }
        Ok(Trial {
            call: Call::load_module(file.as_raw_fd()),
            rig: Rig::default(),
        })
    };
    Sweep::new(env, prepare)
        .verify(|_, _| {
            let rig = Rig::bare(env, EMULATED)?;
            rig.container()?.set_iommu(Model::V2.number())?;
            // Files in debugfs are optional.
            if env.expected == Some(Driver::Rust) && env.host.report_path().exists() {
                env.check_driver(Model::V2, None)?;
            }
            drop(rig);
            Ok(module.unload()?)
        })
        .run()
}
