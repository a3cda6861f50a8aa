// SPDX-License-Identifier: GPL-2.0

//! Stage-2 faults on device memory, of KVM/arm64.
//!
//! A [`DeviceMapper`] gets each fault on a `VM_PFNMAP` or `VM_MIXEDMAP` VMA while it is
//! [registered](Registration), and maps with what comes with the [`Fault`].
//!
//! # Why a block stays true
//!
//! A block repeats what the VMM's page table says about many pages, of which a fault is about one.
//! Whoever changes an entry of that page table tells KVM first, by an MMU notifier: KVM takes
//! `mmu_lock` for writing, counts, drops the stage-2 mappings that contain the page, and counts
//! again behind the change. [`Fault::lock`] takes the lock for reading and compares: nothing is
//! being changed then and nothing was since the VMA was looked up. So what [`HostLeaves`] shows
//! under [`Locked`] is true, and whoever wants to change any of it afterwards has the block dropped
//! as a whole, as it contains the page in question.
//!
//! C header: `arch/arm64/include/asm/kvm_s2_device.h`.

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::ControlFlow,
    ptr, //
};
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    types::NotThreadSafe, //
};
use kvm_arm64_bindings as c;
use stage2_map::{
    Attributes,
    Block,
    Granule,
    HostTable,
    Leaf,
    Limits,
    Memory,
    Origin,
    Page,
    Span,
    Unreadable, //
};
use vrs_bindings::param;

/// Maps device memory into guests.
pub trait DeviceMapper: Send + Sync + 'static {
    /// Handles a fault of a vCPU, in the context of its thread.
    ///
    /// # Errors
    ///
    /// `EAGAIN` has the guest try again, `ENOEXEC` gives it an abort; others end `KVM_RUN`.
    ///
    /// # Context
    ///
    /// May sleep. Several vCPUs, of several VMs, come at once.
    fn fault(&self, fault: &Fault<'_>) -> Result<Handled>;
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// The guest goes on.
    Done,
    /// KVM is to handle it.
    Declined,
}

/// A mapper with the table KVM calls it by.
#[repr(C)]
struct Registered<T> {
    // First, so that a pointer to it is one to the whole.
    ops: c::kvm_s2_device_ops,
    mapper: T,
}

/// A mapper that KVM calls, until dropped.
///
/// VMs may be running when it begins and when it ends. What was mapped stays, and is handled by KVM
/// like its own.
///
/// # Invariants
///
/// KVM has the address of the table.
pub struct Registration<T: DeviceMapper>(KBox<Registered<T>>);

impl<T: DeviceMapper> Registration<T> {
    /// Registers a mapper.
    ///
    /// # Errors
    ///
    /// `EBUSY` if there is another, `ENODEV` without KVM, `EOPNOTSUPP` if stage 2 belongs to the
    /// protected hypervisor, `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn new(mapper: T) -> Result<Self> {
        let registered = KBox::new(
            Registered {
                ops: c::kvm_s2_device_ops {
                    fault: Some(fault::<T>),
                },
                mapper,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The table is on the heap and stays until it is unregistered.
        to_result(unsafe { c::kvm_s2_device_register(&registered.ops) })?;
        // INVARIANT: It just got it.
        Ok(Self(registered))
    }
}

impl<T: DeviceMapper> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. No vCPU is in the mapper when this returns.
        unsafe { c::kvm_s2_device_unregister(&self.0.ops) };
    }
}

/// # Safety
///
/// `ops` is that of a [`Registered`], `fault` and `kvm` are valid, all until this returns.
unsafe extern "C" fn fault<T: DeviceMapper>(
    ops: *const c::kvm_s2_device_ops,
    fault: *const c::kvm_s2_device_fault,
    kvm: *const c::kvm_s2_device_kvm,
) -> c_int {
    // SAFETY: By the requirements of this function; the table is at the beginning. Mappers are
    // shared between threads.
    let registered = unsafe { &*ops.cast::<Registered<T>>() };
    // SAFETY: By the requirements of this function.
    let fault = unsafe {
        Fault {
            raw: &*fault,
            kvm: &*kvm,
            _task: NotThreadSafe,
        }
    };
    from_result(|| {
        registered
            .mapper
            .fault(&fault)
            .map(|handled| match handled {
                Handled::Done => 0,
                Handled::Declined => c::KVM_S2_DEVICE_DECLINED as c_int,
            })
    })
}

/// A stage-2 fault on a VMA that maps device memory.
///
/// # Invariants
///
/// Both are valid and KVM's, for the vCPU whose thread this is.
pub struct Fault<'a> {
    raw: &'a c::kvm_s2_device_fault,
    kvm: &'a c::kvm_s2_device_kvm,
    // The VMM's address space is that of the thread.
    _task: NotThreadSafe,
}

impl Fault<'_> {
    /// The page, of which `pa` was found.
    pub fn page(&self, pa: u64) -> Page {
        Page {
            ipa: self.raw.ipa,
            hva: self.raw.hva as u64,
            pa,
        }
    }

    /// What no mapping may go beyond; [`None`] if that leaves nothing.
    pub fn limits(&self) -> Option<Limits> {
        Some(Limits {
            slot: Span::until(self.raw.slot_start as u64, self.raw.slot_end as u64)?,
            vma: Span::until(self.raw.vma_start as u64, self.raw.vma_end as u64)?,
            max_size: self.raw.max_size,
        })
    }

    /// How the VMM has the memory.
    pub fn origin(&self) -> Origin {
        Origin {
            cacheable: self.raw.cacheable,
            can_cache: self.raw.can_cache,
            may_be_normal: self.raw.may_be_normal,
        }
    }

    /// Whether the guest fetched an instruction.
    pub fn is_exec(&self) -> bool {
        self.raw.exec
    }

    /// Whether the guest's own stage 2, if it has one, lets it write.
    pub fn may_write(&self) -> bool {
        self.raw.may_write
    }

    /// Whether permission to execute needs no cache maintenance.
    pub fn exec_is_free(&self) -> bool {
        self.raw.exec_is_free
    }

    /// Whether the VMA may map ordinary pages as well.
    pub fn is_mixed(&self) -> bool {
        self.raw.mixed
    }

    /// Gets what is behind the page, as an access of the VMM would; [`None`] if the guest is to go
    /// on as things are.
    ///
    /// # Errors
    ///
    /// `EFAULT` if an access of the VMM would fail, too.
    ///
    /// # Context
    ///
    /// May sleep; runs fault handlers.
    pub fn fault_in(&self) -> Result<Option<FaultPage<'_>>> {
        let mut page = c::kvm_s2_device_page::default();
        let fault_in = self.kvm.faultin.ok_or(EINVAL)?;
        // SAFETY: The function is KVM's, by the type invariants, as is the fault.
        match unsafe { fault_in(self.raw, &mut page) } {
            // INVARIANT: Only with 0 there is something to release.
            0 => Ok(Some(FaultPage { fault: self, page })),
            error => to_result(error.min(0)).map(|()| None),
        }
    }

    /// The VMM's page table, which may change while it is looked at.
    pub fn host_leaves(&self) -> HostLeaves<'_> {
        HostLeaves(self)
    }

    /// Takes the lock under which the VMM's page table stays as it is; [`None`] if anything about
    /// it has changed since the fault, which is then to be replayed.
    ///
    /// # Context
    ///
    /// Takes `mmu_lock` for reading: a spinning lock.
    pub fn lock(&self) -> Option<Locked<'_>> {
        let lock = self.kvm.lock?;
        // SAFETY: As in `fault_in()`.
        let taken = unsafe { lock(self.raw) };
        // INVARIANT: It says whether it has taken the lock. Without it there must not be a value
        // at all, not even for a moment: dropping it unlocks.
        taken.then(|| Locked {
            fault: self,
            _here: PhantomData,
        })
    }
}

/// What is behind the page that faulted.
///
/// # Invariants
///
/// KVM has filled it, and it was not released.
pub struct FaultPage<'a> {
    fault: &'a Fault<'a>,
    page: c::kvm_s2_device_page,
}

impl FaultPage<'_> {
    /// Physical address.
    pub fn pa(&self) -> u64 {
        self.page.pfn << PAGE_SHIFT
    }

    /// Whether the VMM and the memory slot let the guest write.
    pub fn is_writable(&self) -> bool {
        self.page.writable
    }

    /// Whether the kernel does not use it as memory.
    ///
    /// C: `pfn_is_map_memory()`.
    pub fn is_device(&self) -> bool {
        // SAFETY: Any frame number may be asked for.
        !unsafe { c::vrs_kvm_is_memory(self.page.pfn) }
    }

    /// Releases the page as one that is mapped now, by a mapping of `size` bytes.
    pub fn mapped(self, _locked: &Locked<'_>, size: u64, writable: bool) {
        ManuallyDrop::new(self).release(size, writable);
    }

    fn release(&self, size: u64, writable: bool) {
        if let Some(release) = self.fault.kvm.release {
            // SAFETY: By the type invariants of both; the callers give it up.
            unsafe { release(self.fault.raw, &self.page, size, writable) };
        }
    }
}

impl Drop for FaultPage<'_> {
    fn drop(&mut self) {
        self.release(0, false);
    }
}

/// `mmu_lock`, held for reading, with nothing being invalidated.
///
/// # Invariants
///
/// The lock was taken by this thread and is released once, on drop.
pub struct Locked<'a> {
    fault: &'a Fault<'a>,
    _here: PhantomData<*mut ()>,
}

impl Locked<'_> {
    /// Maps a block, or if that is what is there already, gives it more permissions.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if someone else has just done so, `ENOMEM`.
    pub fn map(&self, block: Block, attributes: Attributes) -> Result {
        let map = self.fault.kvm.map.ok_or(EINVAL)?;
        let mapping = c::kvm_s2_device_mapping {
            ipa: block.ipa(),
            pa: block.pa(),
            size: block.size(),
            prot: prot(attributes),
        };
        // SAFETY: By the type invariants of the fault, and the lock is held.
        to_result(unsafe { map(self.fault.raw, &mapping) })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(unlock) = self.fault.kvm.unlock {
            // SAFETY: By the type invariant.
            unsafe { unlock(self.fault.raw) };
        }
    }
}

fn prot(attributes: Attributes) -> u64 {
    let memory = match attributes.memory {
        Memory::Device => c::kvm_pgtable_prot_KVM_PGTABLE_PROT_DEVICE,
        Memory::NormalUncached => c::kvm_pgtable_prot_KVM_PGTABLE_PROT_NORMAL_NC,
        Memory::Normal => 0,
    };
    let when = |allowed, bits| if allowed { bits } else { 0 };
    (memory
        | c::kvm_pgtable_prot_KVM_PGTABLE_PROT_R
        | when(attributes.write, c::kvm_pgtable_prot_KVM_PGTABLE_PROT_W)
        | when(attributes.exec, c::kvm_pgtable_prot_KVM_PGTABLE_PROT_X)) as u64
}

/// The leaves of the VMM's page table.
///
/// What they show holds under [`Locked`], and else for no time at all.
#[derive(Clone, Copy)]
pub struct HostLeaves<'a>(&'a Fault<'a>);

impl HostTable for HostLeaves<'_> {
    fn walk(
        &self,
        span: Span,
        visit: &mut dyn FnMut(&Leaf) -> ControlFlow<()>,
    ) -> Result<(), Unreadable> {
        let end = span.last().checked_add(1).ok_or(Unreadable)?;
        let walk = self.0.kvm.walk.ok_or(Unreadable)?;
        let mut visit = visit;
        // SAFETY: By the type invariants of the fault. `see` is given what it requires.
        let ret = unsafe {
            walk(
                self.0.raw,
                span.first(),
                end,
                Some(see),
                (&raw mut visit).cast(),
            )
        };
        // A visitor that has seen enough ends it with a positive number.
        if ret < 0 {
            return Err(Unreadable);
        }
        Ok(())
    }
}

/// # Safety
///
/// `arg` points to a `&mut dyn FnMut(&Leaf) -> ControlFlow<()>` that nobody else uses, and `leaf`
/// is valid.
unsafe extern "C" fn see(arg: *mut c_void, leaf: *const c::kvm_s2_device_leaf) -> c_int {
    // SAFETY: By the requirements of this function.
    let visit = unsafe { &mut *arg.cast::<&mut dyn FnMut(&Leaf) -> ControlFlow<()>>() };
    // SAFETY: By the requirements of this function.
    let leaf = unsafe { ptr::read(leaf) };
    let leaf = Leaf {
        hva: leaf.hva,
        size: leaf.size,
        pa: leaf.pa,
        attr: leaf.attr,
        present: leaf.present,
        writable: leaf.writable,
    };
    match visit(&leaf) {
        ControlFlow::Continue(()) => 0,
        ControlFlow::Break(()) => 1,
    }
}

/// The granule of this kernel, whose stage 2 has pages of the same size.
pub fn granule() -> Option<Granule> {
    Granule::new(PAGE_SHIFT as u32)
}

/// Whether a line about a refused fault may be logged now; at most ten in five seconds.
pub fn may_log() -> bool {
    // SAFETY: It only counts.
    unsafe { c::vrs_kvm_may_log() }
}

param! {
    /// Most leaves of the VMM's page table that one fault has filled.
    pub prefault: u32 = c::vrs_prefault
}

param! {
    /// Most leaves of the VMM's page table that are looked at for one block.
    pub max_leaves: u32 = c::vrs_max_leaves
}

/// Tells whoever traces `kvm_arm64_rs:device_map`.
pub fn trace_map(block: Block, attributes: Attributes, bound: stage2_map::Bound, filled: u32) {
    // SAFETY: No pointers, and no precondition.
    unsafe {
        c::vrs_trace_device_map(
            block.ipa(),
            block.hva(),
            block.pa(),
            block.size(),
            attributes.memory as u8,
            attributes.write,
            attributes.exec,
            bound as u8,
            filled,
        );
    }
}
