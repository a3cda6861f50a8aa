// SPDX-License-Identifier: GPL-2.0

//! The special registers of vCPUs whose state is protected.
//!
//! A module implements [`Keeper`] and registers it with a [`Registration`]. KVM then asks it about
//! each of these vCPUs, and goes on by itself for all others.
//!
//! C header: `arch/x86/include/asm/kvm_sregs_provider.h`.

use core::marker::PhantomData;
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    prelude::*, //
};
use kvm_x86_bindings::{
    self as bindings,
    kvm_sregs,
    kvm_sregs_host,
    kvm_sregs_limits,
    kvm_sregs_model,
    kvm_sregs_provider,
    kvm_vcpu, //
};
use sregs::{
    infer_lma,
    Asked,
    Effects,
    GeneralProtection,
    Limits,
    Machine,
    Model,
    Refusal,
    Trap,
    Updates, //
};
use vrs_bindings::param;

param! {
    /// Whether user space may update the registers.
    may_update: bool = bindings::vrs_sregs_updates
}

/// What module parameter `sregs_updates` says at the moment.
pub fn updates() -> Updates {
    if may_update() {
        Updates::Applied
    } else {
        Updates::Ignored
    }
}

/// What decides about the registers.
///
/// All functions run in the context of the vCPU's ioctl, with the vCPU loaded and its mutex held.
pub trait Keeper: 'static {
    /// User space sets the registers.
    ///
    /// # Errors
    ///
    /// Any; nothing has been changed then.
    fn set(vcpu: &mut Vcpu<'_>, asked: &Asked) -> Result;

    /// The guest has written `value` to a register.
    fn trap(vcpu: &mut Vcpu<'_>, trap: Trap, value: u64) -> Result<(), GeneralProtection>;
}

/// A vCPU whose state is protected, while KVM calls for it.
///
/// # Invariants
///
/// `vcpu` is loaded and stays so for `'a`; nobody else changes its registers meanwhile. `host` is
/// KVM's table, all of whose functions are there.
pub struct Vcpu<'a> {
    vcpu: *mut kvm_vcpu,
    host: &'a kvm_sregs_host,
    // Calls for a vCPU exclude each other.
    _exclusive: PhantomData<&'a mut kvm_vcpu>,
}

/// Calls a function of KVM's table for the vCPU.
macro_rules! host {
    ($self:ident.$function:ident($($argument:expr),*)) => {{
        // SAFETY: By the type invariant it is there.
        let function = unsafe { $self.host.$function.unwrap_unchecked() };
        // SAFETY: By the type invariant the vCPU is loaded, which is all that the functions of the
        // table require; what is passed by reference is valid for the call.
        unsafe { function($self.vcpu, $($argument),*) }
    }};
}

impl<'a> Vcpu<'a> {
    /// # Safety
    ///
    /// `vcpu` is loaded and its mutex held for `'a`; `host` is KVM's table and valid for `'a`.
    unsafe fn from_raw(host: *const kvm_sregs_host, vcpu: *mut kvm_vcpu) -> Self {
        // INVARIANT: By the requirement of this function; KVM's table is complete.
        Self {
            vcpu,
            // SAFETY: By the requirement of this function.
            host: unsafe { &*host },
            _exclusive: PhantomData,
        }
    }

    /// The registers as KVM believes them to be.
    pub fn model(&self) -> Model {
        let mut model = kvm_sregs_model::default();
        host!(self.get(&mut model));
        Model {
            cr0: model.cr0,
            cr4: model.cr4,
            cr8: model.cr8,
            efer: model.efer,
            apic_base: model.apic_base,
        }
    }

    fn raw_limits(&self) -> kvm_sregs_limits {
        let mut limits = kvm_sregs_limits::default();
        host!(self.limits(&mut limits));
        limits
    }

    /// What can be asked for, if CR0 and CR4 are to be what is asked.
    pub fn limits(&self, asked: &Asked) -> Limits {
        let limits = self.raw_limits();
        Limits {
            cr3_reserved: limits.cr3_reserved,
            cr4_reserved: limits.cr4_reserved,
            efer_reserved: limits.efer_reserved,
            apic_base_reserved: limits.apic_base_reserved,
            vendor_allows: host!(self.vendor_allows(asked.cr0, asked.cr4)),
        }
    }

    /// What a write of the guest depends on.
    pub fn machine(&self) -> Machine {
        let limits = self.raw_limits();
        Machine {
            efer_reserved: limits.efer_reserved,
            tdp: limits.tdp,
        }
    }

    /// Makes the registers `new`, and does what that requires.
    ///
    /// # Errors
    ///
    /// `EINVAL` if KVM does not take the APIC base, in which case nothing has been changed; `ENOMEM`.
    pub fn store(&mut self, new: &Model, effects: Effects) -> Result {
        let old = self.model();
        to_result(host!(self.set_apic_base(new.apic_base)))?;
        if new.cr4 != old.cr4 {
            host!(self.set_cr4(new.cr4));
        }
        if new.cr0 != old.cr0 {
            host!(self.set_cr0(new.cr0));
        }
        self.store_efer(new.efer)?;
        if new.cr8 != old.cr8 {
            host!(self.set_cr8(new.cr8));
        }
        self.apply(effects);
        Ok(())
    }

    /// Stores the one register that the guest has written, and does what that requires.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn store_one(&mut self, trap: Trap, new: &Model, effects: Effects) -> Result {
        match trap {
            Trap::Cr0 => host!(self.set_cr0(new.cr0)),
            Trap::Cr4 => host!(self.set_cr4(new.cr4)),
            Trap::Cr8 => host!(self.set_cr8(new.cr8)),
            Trap::Efer => (),
        }
        self.store_efer(new.efer)?;
        self.apply(effects);
        Ok(())
    }

    /// After CR0, with which KVM stores an EFER that it asks for.
    fn store_efer(&mut self, efer: u64) -> Result {
        if self.model().efer == efer {
            return Ok(());
        }
        to_result(host!(self.set_efer(efer)))
    }

    /// Tells the tracepoint `sregs_set` what became of a request.
    pub fn trace_set(&self, asked: &Asked, outcome: Result<Updates, Refusal>) {
        let outcome = match outcome {
            Ok(Updates::Applied) => 0,
            Ok(Updates::Ignored) => 1,
            Err(refusal) => 2 + refusal as u8,
        };
        // SAFETY: By the type invariant the vCPU is valid.
        unsafe {
            bindings::vrs_trace_sregs_set(
                self.vcpu,
                asked.cr0,
                asked.cr4,
                asked.cr8,
                asked.efer,
                asked.apic_base,
                outcome,
            )
        };
    }

    /// Tells the tracepoint `sregs_trap` what became of a write.
    pub fn trace_trap(&self, trap: Trap, value: u64, effects: Result<Effects, GeneralProtection>) {
        let efer = self.model().efer;
        let bits = effects.map_or(0, Effects::bits);
        // SAFETY: By the type invariant the vCPU is valid.
        unsafe {
            bindings::vrs_trace_sregs_trap(
                self.vcpu,
                trap as u8,
                value,
                efer,
                effects.is_err(),
                bits,
            )
        };
    }

    fn apply(&mut self, effects: Effects) {
        if effects != Effects::NONE {
            host!(self.apply(effects.bits()));
        }
    }
}

// What is to be done goes to C as bits.
const _: () = {
    assert!(Effects::RESET_MMU.bits() == bindings::VRS_KVM_SREGS_RESET_MMU);
    assert!(Effects::INIT_MMU.bits() == bindings::VRS_KVM_SREGS_INIT_MMU);
    assert!(Effects::UNLOAD_MMU.bits() == bindings::VRS_KVM_SREGS_UNLOAD_MMU);
    assert!(Effects::FLUSH_GUEST.bits() == bindings::VRS_KVM_SREGS_FLUSH_GUEST);
    assert!(Effects::FLUSH_CURRENT.bits() == bindings::VRS_KVM_SREGS_FLUSH_CURRENT);
    assert!(Effects::ASYNC_PF.bits() == bindings::VRS_KVM_SREGS_ASYNC_PF);
};

/// A [`Keeper`] that KVM asks, until dropped.
///
/// VMs pin the module, so the drop runs with none.
pub struct Registration<K: Keeper> {
    provider: KBox<kvm_sregs_provider>,
    _keeper: PhantomData<K>,
}

// SAFETY: The table is not changed while registered, and KVM locks what it does with it.
unsafe impl<K: Keeper> Send for Registration<K> {}
// SAFETY: As above; there are no methods that change anything.
unsafe impl<K: Keeper> Sync for Registration<K> {}

impl<K: Keeper> Registration<K> {
    /// Registers `K` on behalf of `module`.
    ///
    /// # Errors
    ///
    /// `EBUSY` if there is a VM, or another provider; `ENOMEM`.
    pub fn new(module: &'static ThisModule) -> Result<Self> {
        let table = kvm_sregs_provider {
            owner: module.as_ptr(),
            set_sregs: Some(Self::set_sregs),
            get_sregs: Some(Self::get_sregs),
            infer_efer: Some(Self::infer_efer),
            trap: Some(Self::trap),
        };
        let provider = KBox::new(table, GFP_KERNEL)?;
        // SAFETY: The table is on the heap and stays there until it is unregistered.
        to_result(unsafe { bindings::kvm_register_sregs_provider(&*provider) })?;
        Ok(Self {
            provider,
            _keeper: PhantomData,
        })
    }

    /// # Safety
    ///
    /// Called by KVM: `vcpu` is loaded, and its mutex held; `sregs` is valid.
    unsafe extern "C" fn set_sregs(
        host: *const kvm_sregs_host,
        vcpu: *mut kvm_vcpu,
        sregs: *const kvm_sregs,
        flags: u64,
    ) -> c_int {
        from_result(|| {
            // SAFETY: By the requirement of this function. What follows `apic_base` is not that of
            // struct kvm_sregs if it is KVM_SET_SREGS2, but is as large.
            let sregs = unsafe { &*sregs };
            let asked = Asked {
                cr0: sregs.cr0,
                cr3: sregs.cr3,
                cr4: sregs.cr4,
                cr8: sregs.cr8,
                efer: sregs.efer,
                apic_base: sregs.apic_base,
                cs_l: sregs.cs.l != 0,
                flags,
            };
            // SAFETY: By the requirement of this function.
            K::set(&mut unsafe { Vcpu::from_raw(host, vcpu) }, &asked)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by KVM: `vcpu` is loaded, and its mutex held; `sregs` is valid and for us to write.
    unsafe extern "C" fn get_sregs(
        host: *const kvm_sregs_host,
        vcpu: *mut kvm_vcpu,
        sregs: *mut kvm_sregs,
    ) {
        // SAFETY: By the requirement of this function.
        let model = unsafe { Vcpu::from_raw(host, vcpu) }.model();
        // SAFETY: As above.
        let sregs = unsafe { &mut *sregs };
        sregs.cr0 = model.cr0;
        sregs.cr4 = model.cr4;
        sregs.cr8 = model.cr8;
        sregs.efer = model.efer;
        sregs.apic_base = model.apic_base;
    }

    extern "C" fn infer_efer(efer: u64, cr0: u64, cr4: u64) -> u64 {
        infer_lma(efer, cr0, cr4)
    }

    /// # Safety
    ///
    /// Called by KVM: `vcpu` is loaded, and its mutex held.
    unsafe extern "C" fn trap(
        host: *const kvm_sregs_host,
        vcpu: *mut kvm_vcpu,
        reg: c_uint,
        value: u64,
    ) -> c_int {
        let trap = match reg {
            bindings::KVM_SREGS_CR0 => Trap::Cr0,
            bindings::KVM_SREGS_CR4 => Trap::Cr4,
            bindings::KVM_SREGS_CR8 => Trap::Cr8,
            bindings::KVM_SREGS_EFER => Trap::Efer,
            // Not among the traps that KVM enables.
            _ => return 1,
        };
        // SAFETY: By the requirement of this function.
        let mut vcpu = unsafe { Vcpu::from_raw(host, vcpu) };
        K::trap(&mut vcpu, trap, value).is_err().into()
    }
}

impl<K: Keeper> Drop for Registration<K> {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`. No function of the table runs any more on return.
        unsafe { bindings::kvm_unregister_sregs_provider(&*self.provider) };
    }
}
