// SPDX-License-Identifier: GPL-2.0

//! Posted interrupts, and what root sees of them in `/sys/kernel/debug/kvm_x86_rs/posted_intr`.
//!
//! A name and numbers in each line, since the module was loaded:
//!
//! - `cpu N`: vCPUs that wait on CPU N now; that have waited there; of these, those that notified
//!   themselves of an interrupt that came while they fell asleep; notifications that arrived at
//!   the CPU; vCPUs that these woke; vCPUs that were woken because the CPU went offline. A vCPU that
//!   others woke was woken by no notification.
//! - `bypass`: VMs to which a device came that can post.
//! - `irte`: interrupts of devices that were made to be posted, and to come to the host again; and
//!   refused changes of either kind.

use core::fmt;
use kernel::{
    debugfs,
    fmt as kfmt,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};
use kvm::posted_intr::{
    HostIrq,
    Lists,
    Provider,
    Registration,
    Vcpu,
    Vm, //
};

/// What there is of it, shared with who reports.
pub(crate) struct State {
    lists: Lists,
    bypasses: Atomic<u64>,
    posted: Atomic<u64>,
    remapped: Atomic<u64>,
    refused: Atomic<u64>,
}

/// The provider.
pub(crate) struct PostedInterrupts(Arc<State>);

impl PostedInterrupts {
    /// Takes posted interrupts over.
    ///
    /// # Errors
    ///
    /// `EBUSY` if another module has, or while there are VMs; `ENOMEM`.
    pub(crate) fn register(module: &'static ThisModule) -> Result<(Registration<Self>, Report)> {
        let state = Arc::new(
            State {
                lists: Lists::new()?,
                bypasses: Atomic::new(0),
                posted: Atomic::new(0),
                remapped: Atomic::new(0),
                refused: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        let registration = Registration::new(module, Self(state.clone()))?;
        Ok((registration, Report(state)))
    }
}

impl Provider for PostedInterrupts {
    fn lists(&self) -> &Lists {
        &self.0.lists
    }

    fn start_bypass(&self, vm: Vm<'_>) {
        self.0.bypasses.fetch_add(1, Relaxed);
        // Those that halted before wait for nobody but KVM.
        vm.unblock();
    }

    fn update_irte(&self, irq: HostIrq<'_>, target: Option<(&Vcpu, u8)>) -> Result {
        let (result, count) = match target {
            Some((vcpu, vector)) => (irq.post(vcpu, vector), &self.0.posted),
            // No device may go on to post what the guest has redirected, or given up.
            None => (irq.remap(), &self.0.remapped),
        };
        let count = if result.is_ok() {
            count
        } else {
            &self.0.refused
        };
        count.fetch_add(1, Relaxed);
        result
    }
}

/// The file `posted_intr`.
pub(crate) struct Report(Arc<State>);

impl debugfs::Writer for Report {
    fn write(&self, f: &mut kfmt::Formatter<'_>) -> fmt::Result {
        let Self(state) = self;
        for (cpu, counts) in state.lists.counts() {
            writeln!(
                f,
                "cpu {} waiting {} waited {} notified-themselves {} notifications {} woken {} stranded {}",
                cpu.as_u32(),
                counts.waiting,
                counts.waited,
                counts.notified_themselves,
                counts.notifications,
                counts.woken,
                counts.stranded,
            )?;
        }
        writeln!(f, "bypass {}", state.bypasses.load(Relaxed))?;
        writeln!(
            f,
            "irte posted {} remapped {} refused {}",
            state.posted.load(Relaxed),
            state.remapped.load(Relaxed),
            state.refused.load(Relaxed),
        )
    }
}
