// SPDX-License-Identifier: GPL-2.0

//! Posted interrupts of KVM/VMX.
//!
//! A [`Provider`] that is [registered](Registration) has KVM's vCPUs wait, and be woken, as the crate
//! `posted_intr` says. Here are the wakeup lists it needs: one for each CPU, of the vCPUs that halted
//! there.
//!
//! # Locks
//!
//! [`Lists`] has a raw spinlock for each CPU, taken with interrupts disabled:
//!
//! - by a vCPU that halts, for the CPU it halts on. The scheduler holds its locks then, and the
//!   handler takes those inside this one to wake a task. It is no deadlock, as the handler cannot
//!   interrupt a CPU that has interrupts disabled, but lockdep has to be told by a subclass.
//! - by a vCPU that is loaded, for the CPU it halted on, which may be another one. That is to exclude
//!   both of the others.
//! - by the handler of the wakeup vector, for its own CPU.
//!
//! Nothing but the scheduler's locks is taken inside.
//!
//! C header: `arch/x86/include/asm/kvm_pi_provider.h`.

use core::{
    arch::asm,
    cell::{
        Cell,
        UnsafeCell, //
    },
    marker::PhantomData,
    ptr, //
};
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    interrupt::LocalInterruptDisabled,
    jump_label::static_branch_unlikely,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
    types::Opaque,
    ThisModule, //
};
use kvm_x86_bindings as c;
use posted_intr::{
    Descriptor,
    Leaving,
    Ndst,
    Wakeup,
    Word, //
};
use sync::{
    new_raw_spinlock,
    CpuDead,
    OnCpuDead,
    PerCpu,
    PossibleCpu,
    RawSpinLock, //
};

const _: () = {
    assert!(posted_intr::RUNNING as u32 == c::VRS_POSTED_INTR_VECTOR);
    assert!(posted_intr::WAKEUP as u32 == c::VRS_POSTED_INTR_WAKEUP_VECTOR);
    assert!(size_of::<Descriptor<Shared>>() == size_of::<c::pi_desc>());
};

/// A word that devices, the guest's CPU and KVM's C code write to as well.
///
/// The kernel crate's atomics are calls of C functions each, which take longer than the accesses.
#[repr(transparent)]
pub struct Shared(UnsafeCell<u64>);

// SAFETY: All accesses are single instructions on an aligned word.
unsafe impl Sync for Shared {}

/// Expands to a locked instruction on one bit of a word; the value is the bit before.
macro_rules! locked_bit {
    ($instruction:literal, $word:expr, $bit:expr) => {{
        let was: u8;
        // SAFETY: The word is valid, as there is a reference to it, and may be written to, as it is
        // an `UnsafeCell`.
        unsafe {
            asm!(
                concat!("lock ", $instruction, " qword ptr [{word}], {bit}"),
                "setc {was}",
                word = in(reg) $word.0.get(),
                bit = in(reg) u64::from($bit & 63),
                was = out(reg_byte) was,
                options(nostack),
            )
        };
        was != 0
    }};
}

// Locked instructions are full barriers (Intel SDM, volume 3, "Locked Instructions and Memory
// Ordering"), and the compiler takes each `asm!` for one.
impl Word for Shared {
    #[inline(always)]
    fn bits(&self) -> u64 {
        // SAFETY: The word is valid. A volatile read of an aligned word is READ_ONCE().
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn set(&self, bit: u32) -> bool {
        locked_bit!("bts", self, bit)
    }

    #[inline(always)]
    fn clear(&self, bit: u32) -> bool {
        locked_bit!("btr", self, bit)
    }

    #[inline(always)]
    fn swap(&self, bits: u64) -> u64 {
        let mut bits = bits;
        // SAFETY: As in `locked_bit!`.
        unsafe {
            asm!(
                "xchg qword ptr [{word}], {bits}",
                word = in(reg) self.0.get(),
                bits = inout(reg) bits,
                options(nostack, preserves_flags),
            )
        };
        bits
    }

    #[inline(always)]
    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        let now: u64;
        // SAFETY: As in `locked_bit!`.
        unsafe {
            asm!(
                "lock cmpxchg qword ptr [{word}], {new}",
                word = in(reg) self.0.get(),
                new = in(reg) new,
                inout("rax") old => now,
                options(nostack),
            )
        };
        if now == old {
            Ok(())
        } else {
            Err(now)
        }
    }
}

/// What handles posted interrupts.
pub trait Provider: Send + Sync + 'static {
    /// The wakeup lists.
    fn lists(&self) -> &Lists;

    /// The first device that can post has come to a VM, whose vCPUs may have halted without
    /// expecting that.
    ///
    /// # Context
    ///
    /// Interrupts are disabled.
    fn start_bypass(&self, vm: Vm<'_>);

    /// A device's interrupt is to be posted to a vCPU as the vector given, or to go to the host.
    ///
    /// # Errors
    ///
    /// Any; nothing has been changed then.
    ///
    /// # Context
    ///
    /// Interrupts are disabled.
    fn update_irte(&self, irq: HostIrq<'_>, target: Option<(&Vcpu, u8)>) -> Result;
}

/// The posted interrupts of a vCPU.
#[repr(transparent)]
pub struct Vcpu(Opaque<c::kvm_pi_vcpu>);

impl Vcpu {
    /// # Safety
    ///
    /// `vcpu` is KVM's, and valid for `'a`.
    #[inline(always)]
    unsafe fn from_raw<'a>(vcpu: *mut c::kvm_pi_vcpu) -> &'a Self {
        // SAFETY: By the requirement of this function; the type is transparent.
        unsafe { &*vcpu.cast() }
    }

    /// The descriptor.
    #[inline(always)]
    pub fn descriptor(&self) -> &Descriptor<Shared> {
        // SAFETY: It is the first field. It has the layout of C's, and nobody has a reference that
        // would forbid to write to it.
        unsafe { &*self.0.get().cast() }
    }

    #[inline(always)]
    fn entry(&self) -> *mut bindings::list_head {
        // SAFETY: The vCPU is valid.
        unsafe { &raw mut (*self.0.get()).wakeup_list }
    }
}

/// A VM.
pub struct Vm<'a> {
    kvm: *mut c::kvm,
    host: &'a c::kvm_pi_host,
}

impl Vm<'_> {
    /// Has all its vCPUs that are halted leave their CPUs once more.
    pub fn unblock(&self) {
        if let Some(unblock) = self.host.unblock {
            // SAFETY: Both are KVM's, and valid while this is.
            unsafe { unblock(self.kvm) };
        }
    }
}

/// An interrupt of the host, which KVM changes the IOMMU's table for.
pub struct HostIrq<'a> {
    irq: u32,
    _during_call: PhantomData<&'a ()>,
}

impl HostIrq<'_> {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.irq
    }

    /// Has the device post it to a vCPU.
    ///
    /// # Errors
    ///
    /// `ENOSYS` if the interrupt is of no IOMMU that can.
    pub fn post(&self, vcpu: &Vcpu, vector: u8) -> Result {
        let mut data = c::intel_iommu_pi_data {
            // SAFETY: vCPUs are in the direct mapping.
            pi_desc_addr: unsafe { c::vrs_kvm_phys(vcpu.0.get().cast()) },
            vector: u32::from(vector),
        };
        let error = self.set_affinity((&raw mut data).cast());
        // SAFETY: No precondition.
        unsafe { c::vrs_trace_pi_irte(self.irq, data.pi_desc_addr, data.vector, error) };
        to_result(error)
    }

    /// Has it come to the host as before.
    ///
    /// # Errors
    ///
    /// As [`post`](Self::post).
    pub fn remap(&self) -> Result {
        let error = self.set_affinity(ptr::null_mut());
        // SAFETY: No precondition.
        unsafe { c::vrs_trace_pi_irte(self.irq, 0, 0, error) };
        to_result(error)
    }

    fn set_affinity(&self, data: *mut c_void) -> c_int {
        // SAFETY: Any number may be asked for; the data is what Intel's IOMMU, the only one below
        // VMX, expects. KVM calls for the vCPU's end before the descriptor goes.
        unsafe { bindings::irq_set_vcpu_affinity(self.irq, data) }
    }
}

/// How much has happened on a CPU.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// vCPUs that wait there now.
    pub waiting: u64,
    /// vCPUs that have waited there.
    pub waited: u64,
    /// Of these, those that found an interrupt just before they slept.
    pub notified_themselves: u64,
    /// Notifications that have arrived.
    pub notifications: u64,
    /// vCPUs that were woken by them.
    pub woken: u64,
    /// vCPUs that were woken because the CPU had gone offline.
    pub stranded: u64,
}

/// The vCPUs that wait on a CPU.
///
/// # Invariants
///
/// `first` is null or the list entry of a vCPU that KVM has told us of; `next` of the last entry and
/// `prev` of the first are null.
struct Waiting {
    first: *mut bindings::list_head,
    counts: Counts,
}

// SAFETY: The entries are those of vCPUs, which any thread may look at under the lock.
unsafe impl Send for Waiting {}

impl Waiting {
    const fn new() -> Self {
        // INVARIANT: There is no entry.
        Self {
            first: ptr::null_mut(),
            counts: Counts {
                waiting: 0,
                waited: 0,
                notified_themselves: 0,
                notifications: 0,
                woken: 0,
                stranded: 0,
            },
        }
    }

    /// # Safety
    ///
    /// The vCPU is on no list, and will be removed before it goes.
    #[inline(always)]
    unsafe fn insert(&mut self, vcpu: &Vcpu) {
        let entry = vcpu.entry();
        // SAFETY: The vCPU is valid, and so is the first entry by the type invariant. The lock of
        // this list, which there is a mutable reference to, protects both entries.
        unsafe {
            (*entry).prev = ptr::null_mut();
            (*entry).next = self.first;
            if !self.first.is_null() {
                (*self.first).prev = entry;
            }
        }
        // INVARIANT: The new first entry has no previous one.
        self.first = entry;
        self.counts.waiting = self.counts.waiting.wrapping_add(1);
        self.counts.waited = self.counts.waited.wrapping_add(1);
    }

    /// # Safety
    ///
    /// The vCPU is on this list.
    #[inline(always)]
    unsafe fn remove(&mut self, vcpu: &Vcpu) {
        let entry = vcpu.entry();
        // SAFETY: By the type invariant all entries of the list are valid, and by the requirement
        // of this function this one and its neighbours are on it.
        unsafe {
            let (next, prev) = ((*entry).next, (*entry).prev);
            if !next.is_null() {
                (*next).prev = prev;
            }
            if prev.is_null() {
                // INVARIANT: The next one has no previous one now.
                self.first = next;
            } else {
                (*prev).next = next;
            }
        }
        self.counts.waiting = self.counts.waiting.wrapping_sub(1);
    }

    /// Wakes the vCPUs for which `to_be_woken`, which is what it returns. This is the list of `cpu`.
    #[inline(always)]
    fn wake(
        &self,
        cpu: PossibleCpu,
        host: &c::kvm_pi_host,
        to_be_woken: impl Fn(&Descriptor<Shared>) -> bool,
    ) -> u64 {
        let mut woken = 0u64;
        self.for_each(|vcpu| {
            if to_be_woken(vcpu.descriptor()) {
                if let Some(wake_up) = host.wake_up {
                    // SAFETY: Both are KVM's. This neither sleeps nor comes back here.
                    unsafe { wake_up(vcpu.0.get()) };
                }
                woken = woken.wrapping_add(1);
            }
        });
        // SAFETY: The key is C's.
        if unsafe { static_branch_unlikely!(c::__tracepoint_pi_wakeup, bindings::tracepoint, key) }
        {
            // SAFETY: No precondition.
            unsafe { c::vrs_trace_pi_wakeup(cpu.as_u32(), self.counts.waiting, woken) };
        }
        woken
    }

    /// Calls `found` for each vCPU.
    #[inline(always)]
    fn for_each(&self, mut found: impl FnMut(&Vcpu)) {
        let mut entry = self.first;
        while !entry.is_null() {
            // SAFETY: The entry of a vCPU, by the type invariant, is a field of it.
            let vcpu = unsafe { kernel::container_of!(entry, c::kvm_pi_vcpu, wakeup_list) };
            // SAFETY: As it is on the list, which is locked, it is there.
            found(unsafe { Vcpu::from_raw(vcpu) });
            // SAFETY: By the type invariant.
            entry = unsafe { (*entry).next };
        }
    }
}

/// What each CPU has.
#[pin_data]
struct Cpu {
    #[pin]
    waiting: RawSpinLock<Waiting>,
    notified_themselves: Atomic<u64>,
}

impl Cpu {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            waiting <- new_raw_spinlock!(Waiting::new(), "kvm::posted_intr::Lists"),
            notified_themselves: Atomic::new(0),
        })
    }
}

/// The wakeup lists of all CPUs.
pub struct Lists {
    cpus: PerCpu<Cpu>,
    /// A CPU whose vCPUs are to be woken, as it is offline, plus one; or 0.
    gone: Atomic<u32>,
}

/// lockdep's subclass of those who take a list's lock within the scheduler.
const SCHED_OUT: u32 = 1;

impl Lists {
    /// Creates them, empty.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self {
            cpus: PerCpu::new(|_| Cpu::new())?,
            gone: Atomic::new(0),
        })
    }

    /// What has happened, by CPU.
    pub fn counts(&self) -> impl Iterator<Item = (PossibleCpu, Counts)> + '_ {
        PossibleCpu::all().map(|id| {
            let cpu = self.cpus.get(id);
            let counts = cpu.waiting.lock_irqsave().counts;
            let notified_themselves = cpu.notified_themselves.load(Relaxed);
            (
                id,
                Counts {
                    notified_themselves,
                    ..counts
                },
            )
        })
    }

    /// The wakeup vector has arrived at `cpu`, this CPU.
    fn notified(&self, cpu: PossibleCpu, irqs: &LocalInterruptDisabled, host: &c::kvm_pi_host) {
        let mut waiting = self.cpus.get(cpu).waiting.lock(irqs);
        let woken = waiting.wake(cpu, host, posted_intr::to_be_woken);
        waiting.counts.notifications = waiting.counts.notifications.wrapping_add(1);
        waiting.counts.woken = waiting.counts.woken.wrapping_add(woken);
        drop(waiting);

        if self.gone.load(Relaxed) != 0 {
            self.wake_stranded(irqs, host);
        }
    }

    /// Wakes all who wait on a CPU that has gone, wherever they are notified from now on.
    #[cold]
    fn wake_stranded(&self, irqs: &LocalInterruptDisabled, host: &c::kvm_pi_host) {
        let Some(cpu) = self.gone.xchg(0, Full).checked_sub(1) else {
            return;
        };
        // SAFETY: The CPU was online once.
        let cpu = unsafe { PossibleCpu::new_unchecked(cpu) };
        let mut waiting = self.cpus.get(cpu).waiting.lock(irqs);
        let woken = waiting.wake(cpu, host, |_| true);
        waiting.counts.stranded = waiting.counts.stranded.wrapping_add(woken);
    }
}

/// Wakes the vCPUs that wait on a CPU that goes offline, as notifications are still sent there.
///
/// A vCPU that is woken is loaded on another CPU, and has notifications sent there if it halts again.
struct Stranded;

impl CpuDead for Stranded {
    fn dead(cpu: PossibleCpu) {
        // SAFETY: `Registration` has this called only while a provider is registered.
        let lists = unsafe { REGISTERED.lists() };
        // Only KVM can wake a vCPU, and it has told how to nobody but the handler.
        lists.gone.store(cpu.as_u32().wrapping_add(1), Relaxed);
        // SAFETY: The handler is this provider's, or ignores the vector.
        unsafe { c::vrs_kvm_notify_this_cpu() };
    }
}

/// A vCPU that halts on `cpu`, or did so.
struct Halting<'a> {
    lists: &'a Lists,
    vcpu: &'a Vcpu,
    cpu: PossibleCpu,
    notified: Cell<bool>,
}

impl Wakeup for Halting<'_> {
    #[inline(always)]
    fn enlist(&self) {
        // SAFETY: This is for a vCPU that blocks and is not preempted, for which KVM calls in the
        // scheduler, with interrupts disabled.
        let irqs = unsafe { LocalInterruptDisabled::assume_disabled() };
        let mut waiting = self
            .lists
            .cpus
            .get(self.cpu)
            .waiting
            .lock_nested::<SCHED_OUT>(irqs);
        // SAFETY: `put` does this for a vCPU that is loaded, which is on no list, and says so in NV.
        // KVM loads each vCPU once more before it goes, and `load` has it removed then.
        unsafe { waiting.insert(self.vcpu) };
    }

    #[inline(always)]
    fn delist(&self) {
        let list = &self.lists.cpus.get(self.cpu).waiting;
        let mut waiting = list.lock_irqsave_also_nested::<SCHED_OUT>();
        // SAFETY: `load` does this for a vCPU that `put` had inserted, on the CPU it left, which is
        // this one.
        unsafe { waiting.remove(self.vcpu) };
    }

    #[inline(always)]
    fn notify_self(&self) {
        let cpu = self.lists.cpus.get(self.cpu);
        cpu.notified_themselves.fetch_add(1, Relaxed);
        self.notified.set(true);
        // SAFETY: Interrupts are disabled, so this is the CPU; see `enlist`.
        unsafe { c::vrs_kvm_notify_self() };
    }
}

/// NDST of a CPU.
#[inline(always)]
fn ndst(cpu: PossibleCpu) -> Ndst {
    // SAFETY: The CPU is possible.
    let id = unsafe { c::vrs_kvm_apic_id(cpu.as_u32()) };
    // SAFETY: No precondition.
    if unsafe { c::vrs_kvm_x2apic() } {
        Ndst::x2apic(id)
    } else {
        Ndst::xapic(id)
    }
}

/// The registered provider, as KVM passes none to the functions it calls.
///
/// Written before KVM is given the functions and after it has given them up, and read by them only.
/// Between lies a lock of KVM's, and code that is patched on all CPUs.
struct Registered {
    taken: Atomic<i32>,
    lists: UnsafeCell<*const Lists>,
    provider: UnsafeCell<*const c_void>,
}

// SAFETY: As described above, who reads the pointers does not race with who writes them.
unsafe impl Sync for Registered {}

static REGISTERED: Registered = Registered {
    taken: Atomic::new(0),
    lists: UnsafeCell::new(ptr::null()),
    provider: UnsafeCell::new(ptr::null()),
};

impl Registered {
    /// # Safety
    ///
    /// A provider is registered, and stays so for `'a`.
    #[inline(always)]
    unsafe fn lists<'a>(&self) -> &'a Lists {
        // SAFETY: By the requirement of this function.
        unsafe { &**self.lists.get() }
    }

    /// # Safety
    ///
    /// A provider of type `T` is registered, and stays so for `'a`.
    unsafe fn provider<'a, T>(&self) -> &'a T {
        // SAFETY: By the requirement of this function.
        unsafe { &*(*self.provider.get()).cast() }
    }
}

/// Functions that KVM calls, until dropped.
///
/// # Invariants
///
/// KVM has the address of the table, and [`REGISTERED`] that of the provider.
struct Functions<T: Provider> {
    ops: KBox<c::kvm_pi_provider>,
    _provider: KBox<T>,
}

// SAFETY: The table is KVM's until this is dropped; providers can be sent.
unsafe impl<T: Provider> Send for Functions<T> {}
// SAFETY: It shares nothing.
unsafe impl<T: Provider> Sync for Functions<T> {}

impl<T: Provider> Functions<T> {
    fn register(module: &'static ThisModule, provider: T) -> Result<Self> {
        let provider = KBox::new(provider, GFP_KERNEL)?;
        let ops = KBox::new(
            c::kvm_pi_provider {
                owner: module.as_ptr(),
                vcpu_load: Some(vcpu_load),
                vcpu_put: Some(vcpu_put),
                wakeup: Some(wakeup),
                has_pending: Some(has_pending),
                pre_restore: Some(pre_restore),
                start_bypass: Some(start_bypass::<T>),
                update_irte: Some(update_irte::<T>),
            },
            GFP_KERNEL,
        )?;

        if REGISTERED.taken.cmpxchg(0, 1, Full).is_err() {
            return Err(EBUSY);
        }
        // SAFETY: As nobody else has taken it, none of our functions is registered.
        unsafe {
            *REGISTERED.lists.get() = provider.lists();
            *REGISTERED.provider.get() = (&raw const *provider).cast();
        }
        // SAFETY: The table is on the heap and stays until it is unregistered, and so does the
        // provider.
        let result = to_result(unsafe { c::kvm_register_pi_provider(&*ops) });
        if let Err(error) = result {
            REGISTERED.taken.xchg(0, Full);
            return Err(error);
        }
        // INVARIANT: As was just done.
        Ok(Self {
            ops,
            _provider: provider,
        })
    }
}

impl<T: Provider> Drop for Functions<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. None of the functions runs when this returns.
        unsafe { c::kvm_unregister_pi_provider(&*self.ops) };
        REGISTERED.taken.xchg(0, Full);
    }
}

/// A provider that KVM calls, until dropped.
///
/// # Invariants
///
/// `_stranded` is dropped before the functions, which it needs to be registered.
pub struct Registration<T: Provider> {
    _stranded: OnCpuDead<Stranded>,
    _functions: Functions<T>,
}

impl<T: Provider> Registration<T> {
    /// Registers a provider.
    ///
    /// # Errors
    ///
    /// `EBUSY` if there is another, or any VM; `ENOMEM`; `ENOSPC` if too many look for CPUs that go
    /// offline.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn new(module: &'static ThisModule, provider: T) -> Result<Self> {
        let functions = Functions::register(module, provider)?;
        // INVARIANT: Fields are dropped in the order of their declaration.
        Ok(Self {
            _stranded: OnCpuDead::new(c"kvm_x86_rs:posted_intr")?,
            _functions: functions,
        })
    }
}

/// # Safety
///
/// A provider is registered; `pi` is a vCPU of KVM's, which is loaded on `cpu`, where this runs, and
/// was put on `prev` the last time, unless that is negative.
unsafe extern "C" fn vcpu_load(pi: *mut c::kvm_pi_vcpu, prev: c_int, cpu: c_int) {
    // SAFETY: By the requirement of this function.
    let vcpu = unsafe { Vcpu::from_raw(pi) };
    posted_intr::load(vcpu.descriptor(), prev != cpu, || {
        // SAFETY: As above.
        unsafe { vcpu_load_anew(vcpu, prev, cpu) }
    });
}

/// Not inlined, so that the short way needs no stack.
///
/// # Safety
///
/// As [`vcpu_load`].
#[inline(never)]
unsafe fn vcpu_load_anew(vcpu: &Vcpu, prev: c_int, cpu: c_int) {
    // SAFETY: A CPU that a vCPU is or was on is possible.
    let here = unsafe { PossibleCpu::new_unchecked(cpu as u32) };
    let last = if prev < 0 {
        here
    } else {
        // SAFETY: As above.
        unsafe { PossibleCpu::new_unchecked(prev as u32) }
    };
    let halted = Halting {
        // SAFETY: By the requirement of this function.
        lists: unsafe { REGISTERED.lists() },
        vcpu,
        cpu: last,
        notified: Cell::new(false),
    };
    posted_intr::load_anew(vcpu.descriptor(), || ndst(here), &halted);
}

/// # Safety
///
/// A provider is registered; `pi` is a vCPU of KVM's, loaded on `cpu`, where this runs, with
/// interrupts disabled if the flags say that it blocks and is not preempted.
unsafe extern "C" fn vcpu_put(pi: *mut c::kvm_pi_vcpu, cpu: c_int, flags: c_uint) {
    // SAFETY: By the requirement of this function.
    let vcpu = unsafe { Vcpu::from_raw(pi) };
    let is = |flag| flags & flag != 0;
    let leaving = Leaving {
        from_ipis: is(c::VRS_KVM_PI_PUT_FROM_IPIS),
        from_devices: is(c::VRS_KVM_PI_PUT_FROM_DEVICES),
        preempted: is(c::VRS_KVM_PI_PUT_PREEMPTED),
        blocking: is(c::VRS_KVM_PI_PUT_BLOCKING),
        irqs_allowed: is(c::VRS_KVM_PI_PUT_IRQS_ALLOWED),
    };
    posted_intr::put(vcpu.descriptor(), leaving, || {
        // SAFETY: As above; interrupts are disabled, as it waits.
        unsafe { vcpu_wait(vcpu, cpu) }
    });
}

/// Not inlined, so that the other ways need no stack.
///
/// # Safety
///
/// As [`vcpu_put`], with interrupts disabled.
#[inline(never)]
unsafe fn vcpu_wait(vcpu: &Vcpu, cpu: c_int) {
    let halting = Halting {
        // SAFETY: By the requirement of this function.
        lists: unsafe { REGISTERED.lists() },
        vcpu,
        // SAFETY: This CPU is possible.
        cpu: unsafe { PossibleCpu::new_unchecked(cpu as u32) },
        notified: Cell::new(false),
    };
    posted_intr::wait(vcpu.descriptor(), &halting);
    // SAFETY: The key is C's.
    if unsafe { static_branch_unlikely!(c::__tracepoint_pi_wait, bindings::tracepoint, key) } {
        // SAFETY: No precondition.
        unsafe { c::vrs_trace_pi_wait(halting.cpu.as_u32(), halting.notified.get()) };
    }
}

/// # Safety
///
/// A provider is registered; this runs in the handler of an interrupt on `cpu`; `host` is KVM's.
unsafe extern "C" fn wakeup(host: *const c::kvm_pi_host, cpu: c_int) {
    // SAFETY: By the requirement of this function.
    let (lists, host, irqs, cpu) = unsafe {
        (
            REGISTERED.lists(),
            &*host,
            LocalInterruptDisabled::assume_disabled(),
            PossibleCpu::new_unchecked(cpu as u32),
        )
    };
    lists.notified(cpu, irqs, host);
}

/// # Safety
///
/// `pi` is a vCPU of KVM's.
unsafe extern "C" fn has_pending(pi: *mut c::kvm_pi_vcpu) -> bool {
    // SAFETY: By the requirement of this function.
    posted_intr::pending(unsafe { Vcpu::from_raw(pi) }.descriptor())
}

/// # Safety
///
/// `pi` is a vCPU of KVM's.
unsafe extern "C" fn pre_restore(pi: *mut c::kvm_pi_vcpu) {
    // SAFETY: By the requirement of this function.
    posted_intr::pre_restore(unsafe { Vcpu::from_raw(pi) }.descriptor());
}

/// # Safety
///
/// A `T` is registered; `host` is KVM's, and so is `kvm`.
unsafe extern "C" fn start_bypass<T: Provider>(host: *const c::kvm_pi_host, kvm: *mut c::kvm) {
    // SAFETY: By the requirement of this function.
    let (provider, host) = unsafe { (REGISTERED.provider::<T>(), &*host) };
    provider.start_bypass(Vm { kvm, host });
}

/// # Safety
///
/// A `T` is registered; `pi` is null or a vCPU of KVM's.
unsafe extern "C" fn update_irte<T: Provider>(
    pi: *mut c::kvm_pi_vcpu,
    host_irq: c_uint,
    vector: u32,
) -> c_int {
    // SAFETY: By the requirement of this function.
    let provider = unsafe { REGISTERED.provider::<T>() };
    let irq = HostIrq {
        irq: host_irq,
        _during_call: PhantomData,
    };
    from_result(|| {
        let target = if pi.is_null() {
            None
        } else {
            let vector = u8::try_from(vector).map_err(|_| EINVAL)?;
            // SAFETY: By the requirement of this function.
            Some((unsafe { Vcpu::from_raw(pi) }, vector))
        };
        provider.update_irte(irq, target).map(|()| 0)
    })
}
