// SPDX-License-Identifier: GPL-2.0

//! Who handles posted interrupts, and what it says of that.

use std::fs;
use std::path::Path;

use harness::check::{
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::module::Module;
use harness::trace::Events;

use crate::device::{
    Counts,
    Device, //
};
use crate::settings;

const REPORT: &str = "/sys/kernel/debug/kvm_x86_rs/posted_intr";

/// What kvm_x86_rs has counted, of all CPUs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Report {
    pub(crate) waiting: u64,
    pub(crate) waited: u64,
    pub(crate) notified_themselves: u64,
    pub(crate) notifications: u64,
    pub(crate) woken: u64,
    pub(crate) stranded: u64,
    pub(crate) bypass: u64,
    pub(crate) posted: u64,
    pub(crate) remapped: u64,
    pub(crate) refused: u64,
}

impl Report {
    /// None if it is KVM itself that handles posted interrupts.
    pub(crate) fn read() -> Verdict<Option<Self>> {
        let loaded = Path::new(REPORT).exists();
        if let Some(module) = &settings().module {
            let wanted = module.file_stem().is_some_and(|name| name == "kvm_x86_rs");
            expect_eq("kvm_x86_rs is loaded", loaded, wanted)?;
        }
        if !loaded {
            return Ok(None);
        }
        let text = fs::read_to_string(REPORT).map_err(|error| missing_or_fail(REPORT, error))?;
        Self::parse(&text)
            .map(Some)
            .ok_or_else(|| Stop::fail(format_args!("{REPORT} is not understood:\n{text}")))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut report = Self::default();
        for line in text.lines() {
            // `cpu 0 waiting 1 ...`, `bypass 1`, `irte posted 2 ...`
            let mut words = line.split_whitespace().peekable();
            match *words.peek()? {
                "cpu" => drop((words.next(), words.next())),
                "irte" => drop(words.next()),
                _ => {}
            }
            while let Some(name) = words.next() {
                let count = words.next()?.parse::<u64>().ok()?;
                let sum = match name {
                    "waiting" => &mut report.waiting,
                    "waited" => &mut report.waited,
                    "notified-themselves" => &mut report.notified_themselves,
                    "notifications" => &mut report.notifications,
                    "woken" => &mut report.woken,
                    "stranded" => &mut report.stranded,
                    "bypass" => &mut report.bypass,
                    "posted" => &mut report.posted,
                    "remapped" => &mut report.remapped,
                    "refused" => &mut report.refused,
                    _ => continue,
                };
                *sum += count;
            }
        }
        Some(report)
    }
}

/// What KVM and the provider do during a test.
pub(crate) struct Watch {
    before: Option<Report>,
    /// Redirected interrupts.
    events: Events,
}

impl Watch {
    pub(crate) fn begin() -> Verdict<Self> {
        Ok(Self {
            before: Report::read()?,
            events: Events::record_all("kvm/kvm_pi_irte_update")?,
        })
    }

    /// How much more the provider has counted since; none if it is KVM itself. No vCPU may wait
    /// any more, and KVM, the provider and the IOMMU must agree on what these devices' interrupts
    /// were redirected to.
    #[track_caller]
    pub(crate) fn end(self, devices: &[&Device]) -> Verdict<Option<Report>> {
        let mut total = Counts::default();
        for device in devices {
            let counts = device.counts()?;
            total.set += counts.set;
            total.cleared += counts.cleared;
            total.refused += counts.refused;
        }
        let events = self.events.take()?;
        let (set, cleared): (Vec<_>, Vec<_>) = events
            .iter()
            .partition(|line| line.contains("PI is enabled"));
        expect_eq(
            "KVM traces",
            (set.len() as u64, cleared.len() as u64),
            (total.set, total.cleared),
        )?;
        let (Some(before), Some(after)) = (self.before, Report::read()?) else {
            return Ok(None);
        };
        expect_eq("vCPUs on wakeup lists", after.waiting, 0)?;
        let more = Report {
            waiting: 0,
            waited: after.waited - before.waited,
            notified_themselves: after.notified_themselves - before.notified_themselves,
            notifications: after.notifications - before.notifications,
            woken: after.woken - before.woken,
            stranded: after.stranded - before.stranded,
            bypass: after.bypass - before.bypass,
            posted: after.posted - before.posted,
            remapped: after.remapped - before.remapped,
            refused: after.refused - before.refused,
        };
        println!("# {more:?}");
        expect_eq(
            "the module redirects",
            (more.posted, more.remapped, more.refused),
            (total.set, total.cleared, total.refused),
        )?;
        Ok(Some(more))
    }
}

/// Unloads the module that handles posted interrupts and loads it again.
pub(crate) fn reload() -> Verdict {
    let path = settings()
        .module
        .as_deref()
        .ok_or_else(|| Stop::skip("--module"))?;
    let module = Module::open(path)?;
    module.unload()?;
    Ok(module.load()?)
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn report() {
        let text =
            "cpu 0 waiting 1 waited 20 notified-themselves 3 notifications 40 woken 5 stranded 2 new 6\n\
                    cpu 1 waiting 0 waited 2 notified-themselves 0 notifications 4 woken 1 stranded 0\n\
                    bypass 7\nirte posted 8 remapped 9 refused 10\n";
        let report = Report::parse(text).unwrap();
        assert_eq!((report.waiting, report.waited, report.woken), (1, 22, 6));
        assert_eq!(report.stranded, 2);
        assert_eq!((report.bypass, report.posted, report.refused), (7, 8, 10));
        assert!(Report::parse("bypass many\n").is_none());
    }
}
