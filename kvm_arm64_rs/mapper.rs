// SPDX-License-Identifier: GPL-2.0

//! Faults.
//!
//! # Locking
//!
//! `mmap_lock` of the VMM and what its fault handlers take (`vfio_pci_core_device::memory_lock`)
//! come first and are released again; `mmu_lock` comes last. Nothing is allocated and nothing
//! sleeps under it: the pages for page tables were put aside by KVM. See
//! Documentation/locking.md.

use crate::report::Counts;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use kvm::stage2::{
    self,
    DeviceMapper,
    Fault,
    FaultPage,
    Handled, //
};
use stage2_map::{
    attributes,
    Access,
    Attributes,
    Fill,
    Granule,
    Page,
    Plan,
    Prover,
    Refusal, //
};

/// Maps device memory into guests, in blocks as large as can be proven.
pub(crate) struct Mapper {
    granule: Granule,
    counts: Arc<Counts>,
}

impl Mapper {
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the kernel's pages have a size that the architecture does not know.
    pub(crate) fn new(counts: Arc<Counts>) -> Result<Self> {
        Ok(Self {
            granule: stage2::granule().ok_or(EOPNOTSUPP)?,
            counts,
        })
    }

    fn map(&self, fault: &Fault<'_>, page: FaultPage<'_>, attributes: Attributes) -> Result {
        let limits = fault.limits().ok_or(EFAULT)?;
        let place = fault.page(page.pa());
        let plan = Plan::new(self.granule, place, &limits, |block| {
            !mm::has_memory(block.pa(), block.size())
        })
        .map_err(|_| EFAULT)?;

        let leaves = fault.host_leaves();
        let prover = || {
            let budget = stage2::max_leaves().max(1);
            Prover::new(&leaves, &plan, attributes.write, fault.is_mixed(), budget)
        };
        // What the VMM took all access from (`PROT_NONE`) is in its page table still, and KVM finds
        // it there. The guest must not get farther than the VMM, nor try for ever.
        let stale = |_| match mm::fault_in(place.hva, attributes.write) {
            Ok(()) => EAGAIN,
            Err(_) => EFAULT,
        };
        let mut touch = Touch(attributes.write);
        let filled = prover()
            .map_err(stale)?
            .populate(&plan, stage2::prefault(), &mut touch);
        self.counts.filled(filled);

        let locked = fault.lock().ok_or(EAGAIN)?;
        let (block, bound) = prover().map_err(|_| EAGAIN)?.largest(&plan);
        locked.map(block, attributes)?;
        page.mapped(&locked, block.size(), attributes.write);
        drop(locked);

        self.counts.mapped(self.granule, block.size(), bound);
        stage2::trace_map(block, attributes, bound, filled);
        Ok(())
    }

    fn refuse(&self, fault: &Fault<'_>, pa: u64, refusal: Refusal) -> Error {
        self.counts.refused(refusal);
        let Page { ipa, hva, pa } = fault.page(pa);
        let (why, error) = match refusal {
            Refusal::Incoherent => (
                "the VMM has this device memory cacheable, which takes FEAT_S2FWB and CTR_EL0.DIC",
                EFAULT,
            ),
            Refusal::ExecUncached => ("nothing is executed from uncached device memory", ENOEXEC),
        };
        if stage2::may_log() {
            pr_warn!("fault at IPA {ipa:#x}, PA {pa:#x}, VMM {hva:#x} refused: {why}\n");
        }
        error
    }
}

impl DeviceMapper for Mapper {
    fn fault(&self, fault: &Fault<'_>) -> Result<Handled> {
        let Some(page) = fault.fault_in()? else {
            return Ok(Handled::Done);
        };
        if !page.is_device() {
            self.counts.declined();
            return Ok(Handled::Declined);
        }
        let access = Access {
            exec: fault.is_exec(),
            writable: page.is_writable(),
            may_write: fault.may_write(),
            exec_is_free: fault.exec_is_free(),
        };
        let attributes = attributes(fault.origin(), access)
            .map_err(|refusal| self.refuse(fault, page.pa(), refusal))?;
        self.map(fault, page, attributes).inspect_err(|&error| {
            if error == EAGAIN {
                self.counts.replayed();
            }
        })?;
        Ok(Handled::Done)
    }
}

/// Touches memory of the VMM on its behalf.
struct Touch(bool);

impl Fill for Touch {
    fn fill(&mut self, hva: u64) -> bool {
        mm::cond_resched();
        !mm::fatal_signal_pending() && mm::fault_in(hva, self.0).is_ok()
    }
}
