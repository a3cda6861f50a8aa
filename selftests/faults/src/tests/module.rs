// SPDX-License-Identifier: GPL-2.0

//! The driver's module is loaded.

use std::os::fd::AsRawFd;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::OnceLock;

use harness::check::{
    expect,
    Stop,
    Verdict, //
};
use harness::env::{
    Driver,
    Env,
    Model, //
};
use harness::module::Module;

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

/// The module is loaded again in the end.
struct Unloaded<'a>(&'a Module);

impl Drop for Unloaded<'_> {
    fn drop(&mut self) {
        let _ = self.0.load();
    }
}

fn load(env: &Env) -> Verdict {
    let Some(Some(path)) = MODULE.get() else {
        return Err(Stop::skip("the driver's module (--module)"));
    };
    let module = Module::open(path)?;
    let _again = Unloaded(&module);
    module.unload()?;

    let sysfs = Path::new("/sys/module").join(&*module.name());
    let debugfs = Path::new("/sys/kernel/debug").join(&*module.name());
    let prepare = || {
        // Somebody may still hold a module that was refused.
        for left in [&sysfs, &debugfs] {
            expect(format_args!("{} is gone", left.display()), !left.exists())?;
        }
        Ok(Trial {
            call: Call::load_module(module.file().as_raw_fd()),
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
