// SPDX-License-Identifier: GPL-2.0

//! Goes through the plan.

use std::fs::{
    self,
    File, //
};
use std::io::ErrorKind;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};

use anyhow::{
    bail,
    ensure,
    Context,
    Result, //
};
use nix::sys::utsname::uname;

use crate::kernel::{
    self,
    Log, //
};
use crate::plan::{
    Driver,
    Module,
    Need,
    Phase,
    Plan,
    Test, //
};
use crate::program;
use crate::transcript::{
    End,
    Event,
    Transcript, //
};

/// What the life of the driver is called among the tests.
const MODULE: &str = "module";

pub(crate) struct Runner<'a> {
    plan: &'a Plan,
    transcript: Transcript,
    log: Log,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Result<Self> {
        Ok(Self {
            plan,
            transcript: Transcript::open(&plan.transcript)?,
            log: Log::open()?,
        })
    }

    pub(crate) fn run(mut self) -> Result<()> {
        match self.phases() {
            Ok(()) => self.transcript.say(&Event::End)?,
            Err(trouble) => self.transcript.say(&Event::Trouble {
                text: &format!("{trouble:#}"),
            })?,
        }
        self.transcript.drain()
    }

    fn phases(&mut self) -> Result<()> {
        let uptime = fs::read_to_string("/proc/uptime")?;
        self.transcript.say(&Event::Start {
            release: &uname()?.release().to_string_lossy(),
            uptime: uptime
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .context("/proc/uptime")?,
        })?;
        ensure!(!self.plan.leaks, "there is no kmemleak on this machine");
        for module in &self.plan.modules {
            kernel::require(module)?;
        }
        self.tell_log("boot")?;
        for phase in &self.plan.phases {
            match &phase.driver {
                Some(driver) => self.with_driver(phase, driver)?,
                None => self.tests(phase, None)?,
            }
        }
        Ok(())
    }

    /// The tests of a phase between loading and unloading its driver, which is a test, too.
    fn with_driver(&mut self, phase: &Phase, driver: &Driver) -> Result<()> {
        let began = Instant::now();
        for path in &driver.below {
            kernel::require(&Module {
                path: path.clone(),
                parameters: String::new(),
            })?;
        }
        let loads = kernel::load(&driver.path, &driver.parameters);
        let mut checks = vec![("loads", loads)];
        if loads.is_ok() {
            self.tests(phase, Some(driver))?;
            checks.push(("unloads", kernel::unload(&driver.name)));
        }

        self.transcript.say(&Event::Begin {
            phase: &phase.name,
            test: MODULE,
        })?;
        let mut text = format!("KTAP version 1\n1..{}\n", checks.len());
        for (number, (what, outcome)) in checks.iter().enumerate() {
            let number = number + 1;
            text += &match outcome {
                Ok(()) => format!("ok {number} {what}\n"),
                Err(errno) => format!("# {errno}\nnot ok {number} {what}\n"),
            };
        }
        self.transcript.say(&Event::Output {
            phase: &phase.name,
            test: MODULE,
            text: &text,
        })?;
        self.tell_log(MODULE)?;
        self.done(&phase.name, MODULE, began, End::Status(0))
    }

    fn tests(&mut self, phase: &Phase, driver: Option<&Driver>) -> Result<()> {
        for test in &phase.tests {
            let began = Instant::now();
            self.transcript.say(&Event::Begin {
                phase: &phase.name,
                test: &test.name,
            })?;
            let end = self
                .test(&phase.name, test, driver)
                .unwrap_or_else(|trouble| End::Trouble(format!("{trouble:#}")));
            self.tell_log(&test.name)?;
            self.done(&phase.name, &test.name, began, end)?;
        }
        Ok(())
    }

    fn test(&mut self, phase: &str, test: &Test, driver: Option<&Driver>) -> Result<End> {
        for need in &test.needs {
            if let Some(missing) = missing(need)? {
                return Ok(End::Skip(missing));
            }
        }
        let settings = Settings::make(test)?;
        let transcript = &mut self.transcript;
        let end = program::run(
            &test.command,
            &test.env,
            Duration::from_secs(test.limit),
            |text| {
                transcript.say(&Event::Output {
                    phase,
                    test: &test.name,
                    text,
                })
            },
        )?;
        settings.restore()?;
        if let Some(driver) = driver {
            for rival in &driver.rivals {
                ensure!(!kernel::loaded(rival), "{rival} is loaded too");
            }
            ensure!(
                kernel::loaded(&driver.name),
                "{} is not loaded after the test",
                driver.name
            );
        }
        Ok(end)
    }

    fn tell_log(&mut self, test: &str) -> Result<()> {
        let text = self.log.news()?;
        if text.is_empty() {
            return Ok(());
        }
        self.transcript.say(&Event::Kernel { test, text: &text })
    }

    fn done(&mut self, phase: &str, test: &str, began: Instant, end: End) -> Result<()> {
        self.transcript.say(&Event::Done {
            phase,
            test,
            seconds: began.elapsed().as_secs_f64(),
            end,
        })
    }
}

/// What is missing of a need, by name.
fn missing(need: &Need) -> Result<Option<String>> {
    for module in &need.modules {
        kernel::require(module)?;
    }
    let Some(path) = &need.open else {
        return Ok(None);
    };
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Ok(None),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            Ok(Some(format!("{}: {}: {e}", need.name, path.display())))
        }
        Err(e) => bail!("{}: {}: {e}", need.name, path.display()),
    }
}

/// What was in files of the kernel before a test.
struct Settings(Vec<(PathBuf, String)>);

impl Settings {
    fn make(test: &Test) -> Result<Self> {
        let mut before = Vec::new();
        for (path, value) in &test.settings {
            let name = || path.display().to_string();
            before.push((path.clone(), fs::read_to_string(path).with_context(name)?));
            write(path, value)?;
        }
        Ok(Self(before))
    }

    fn restore(self) -> Result<()> {
        for (path, value) in self.0.iter().rev() {
            write(path, value.trim_end())?;
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
