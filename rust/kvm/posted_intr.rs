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
//! - by whoever asks what has happened, or takes the place of a CPU that is no more, for any.
//!
//! Nothing but the scheduler's locks is taken inside.
//!
//! C header: `arch/x86/include/asm/kvm_pi_provider.h`.

use core::{
    arch::asm,
    cell::UnsafeCell,
    marker::PhantomData,
    ptr, //
};
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    jump_label::static_branch_unlikely,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full, //
    },
    types::Opaque,
    ThisModule, //
};
use kvm_x86_bindings as c;
use posted_intr::{
    Descriptor,
    Ndst,
    Wakeup,
    Word, //
};
use sync::{
    assume_irqs_disabled,
    c_per_cpu,
    c_this_cpu,
    new_raw_spinlock,
    Count,
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

// Locked instructions are full barriers (Intel SDM, volume 3, "Locked Instructions and Memory
// Ordering"), and the compiler takes each `asm!` for one.
impl Word for Shared {
    #[inline(always)]
    fn bits(&self) -> u64 {
        // SAFETY: The word is valid. A volatile read of an aligned word is READ_ONCE().
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn set<const BIT: u32>(&self) {
        // SAFETY: The word is valid, as there is a reference to it, and may be written to, as it is
        // an `UnsafeCell`.
        unsafe {
            asm!(
                "lock bts qword ptr [{word}], {bit}",
                word = in(reg) self.0.get(),
                bit = const BIT,
                options(nostack),
            )
        };
    }

    #[inline(always)]
    fn test_and_set(&self, bit: u32) -> bool {
        // The operand may reach beyond the word.
        let bit = u64::from(bit & 63);
        let was: u8;
        // SAFETY: As above.
        unsafe {
            asm!(
                "lock bts qword ptr [{word}], {bit}",
                "setc {was}",
                word = in(reg) self.0.get(),
                bit = in(reg) bit,
                was = out(reg_byte) was,
                options(nostack),
            )
        };
        was != 0
    }

    #[inline(always)]
    fn test_and_clear<const BIT: u32>(&self) -> bool {
        let was: u8;
        // SAFETY: As above.
        unsafe {
            asm!(
                "lock btr qword ptr [{word}], {bit}",
                "setc {was}",
                word = in(reg) self.0.get(),
                bit = const BIT,
                was = out(reg_byte) was,
                options(nostack),
            )
        };
        was != 0
    }

    #[inline(always)]
    fn set_byte<const SHIFT: u32>(&self, byte: u8) {
        const { assert!(SHIFT % 8 == 0 && SHIFT < 64) };
        // SAFETY: As above, and the byte is one of the word. An exchange is a locked instruction, and
        // excludes those on the whole word.
        unsafe {
            asm!(
                "xchg byte ptr [{word} + {offset}], {byte}",
                word = in(reg) self.0.get(),
                offset = const SHIFT / 8,
                byte = inout(reg_byte) byte => _,
                options(nostack, preserves_flags),
            )
        };
    }

    #[inline(always)]
    fn swap(&self, bits: u64) -> u64 {
        let mut bits = bits;
        // SAFETY: As in `set`.
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
        // SAFETY: As in `set`.
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

    /// Wakes it, as KVM does for any event.
    #[inline(always)]
    fn wake_up(&self) {
        // SAFETY: Both are KVM's, and as there is a vCPU there is a VM.
        unsafe { (*REGISTERED.wake_up.get())(self.0.get()) };
    }
}

/// A VM.
pub struct Vm<'a> {
    kvm: *mut c::kvm,
    _during_call: PhantomData<&'a ()>,
}

impl Vm<'_> {
    /// Has all its vCPUs that are halted leave their CPUs once more.
    pub fn unblock(&self) {
        // SAFETY: Both are KVM's, and the VM is valid while this is.
        unsafe { (*REGISTERED.unblock.get())(self.kvm) };
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
#[derive(Clone, Copy, Debug, Default)]
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
/// The pointers of their list entries point to vCPUs, not to entries.
///
/// # Invariants
///
/// `first` is null or a vCPU that KVM has told us of, and so is `next` of each; `prev` is the one
/// before, and null for the first.
struct List {
    first: *mut c::kvm_pi_vcpu,
}

// SAFETY: What is on it are vCPUs, which any thread may look at under the lock.
unsafe impl Send for List {}

impl List {
    const fn new() -> Self {
        // INVARIANT: There is no vCPU.
        Self {
            first: ptr::null_mut(),
        }
    }

    /// # Safety
    ///
    /// The vCPU is on no list, and will be removed before it goes.
    #[inline(always)]
    unsafe fn insert(&mut self, vcpu: &Vcpu) {
        let vcpu = vcpu.0.get();
        // SAFETY: The vCPU is valid, and so is the first one by the type invariant. The lock of
        // this list, which there is a mutable reference to, protects the entries of both.
        unsafe {
            (*vcpu).wakeup_list.prev = ptr::null_mut();
            (*vcpu).wakeup_list.next = self.first.cast();
            if !self.first.is_null() {
                (*self.first).wakeup_list.prev = vcpu.cast();
            }
        }
        // INVARIANT: The new first one has none before it.
        self.first = vcpu;
    }

    /// # Safety
    ///
    /// The vCPU is on this list.
    #[inline(always)]
    unsafe fn remove(&mut self, vcpu: &Vcpu) {
        let vcpu = vcpu.0.get();
        // SAFETY: By the type invariant all on the list are valid, and by the requirement of this
        // function this one and its neighbours are on it.
        unsafe {
            let next: *mut c::kvm_pi_vcpu = (*vcpu).wakeup_list.next.cast();
            let prev: *mut c::kvm_pi_vcpu = (*vcpu).wakeup_list.prev.cast();
            if !next.is_null() {
                (*next).wakeup_list.prev = prev.cast();
            }
            if prev.is_null() {
                // INVARIANT: The next one has none before it now.
                self.first = next;
            } else {
                (*prev).wakeup_list.next = next.cast();
            }
        }
    }

    /// Calls `found` for each vCPU.
    #[inline(always)]
    fn for_each(&self, mut found: impl FnMut(&Vcpu)) {
        if self.first.is_null() {
            return;
        }
        // SAFETY: By the type invariant.
        let mut rest = unsafe {
            found(Vcpu::from_raw(self.first));
            (*self.first).wakeup_list.next
        };
        // Most often it was the only one.
        while !rest.is_null() {
            let vcpu: *mut c::kvm_pi_vcpu = rest.cast();
            // SAFETY: By the type invariant.
            unsafe {
                rest = (*vcpu).wakeup_list.next;
                found(Vcpu::from_raw(vcpu));
            }
        }
    }
}

/// What each CPU has.
///
/// The numbers of those who wait and waited, and how many have been woken, are changed by the owner of
/// the list's lock; the others by the CPU itself, with interrupts disabled.
#[pin_data]
#[repr(C)]
struct Cpu {
    #[pin]
    list: RawSpinLock<List>,
    waiting: Count,
    /// Who waited, and does not any more.
    returned: Count,
    notified_themselves: Count,
    notifications: Count,
    woken: Count,
    stranded: Count,
    id: PossibleCpu,
}

impl Cpu {
    fn new(id: PossibleCpu) -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_raw_spinlock!(List::new(), "kvm::posted_intr::Lists"),
            waiting: Count::new(),
            returned: Count::new(),
            notified_themselves: Count::new(),
            notifications: Count::new(),
            woken: Count::new(),
            stranded: Count::new(),
            id,
        })
    }

    fn counts(&self) -> Counts {
        let list = self.list.lock_irqsave();
        let (waiting, returned) = (self.waiting.get(), self.returned.get());
        drop(list);
        Counts {
            waiting,
            waited: waiting.wrapping_add(returned),
            notified_themselves: self.notified_themselves.get(),
            notifications: self.notifications.get(),
            woken: self.woken.get(),
            stranded: self.stranded.get(),
        }
    }

    /// The wakeup vector has arrived at this CPU.
    ///
    /// # Safety
    ///
    /// This is the CPU, and has interrupts disabled.
    #[inline(always)]
    unsafe fn notified(&self) {
        self.notifications.add(1);
        if wakeup_is_traced() {
            // SAFETY: By the requirement of this function.
            unsafe { self.wake_traced() };
        // Only this CPU adds to its list, and not now: if nobody waits the lock is of no use.
        } else if self.waiting.get() != 0 {
            // SAFETY: By the requirement of this function.
            unsafe { self.wake() };
        }
    }

    /// Wakes those that were notified.
    ///
    /// # Safety
    ///
    /// Interrupts are disabled.
    #[inline(always)]
    unsafe fn wake(&self) {
        // SAFETY: By the requirement of this function.
        let irqs = unsafe { assume_irqs_disabled() };
        self.list.lock(irqs).for_each(|vcpu| {
            if posted_intr::to_be_woken(vcpu.descriptor()) {
                vcpu.wake_up();
                self.woken.add(1);
            }
        });
    }

    /// # Safety
    ///
    /// As [`wake`](Self::wake).
    #[cold]
    unsafe fn wake_traced(&self) {
        let (waiting, before) = (self.waiting.get(), self.woken.get());
        // SAFETY: By the requirement of this function.
        unsafe { self.wake() };
        self.trace(waiting, self.woken.get().wrapping_sub(before));
    }

    /// Wakes all, as the CPU has gone offline.
    fn wake_stranded(&self) {
        let list = self.list.lock_irqsave();
        let (waiting, before) = (self.waiting.get(), self.stranded.get());
        list.for_each(|vcpu| {
            vcpu.wake_up();
            self.stranded.add(1);
        });
        drop(list);
        if wakeup_is_traced() {
            self.trace(waiting, self.stranded.get().wrapping_sub(before));
        }
    }

    fn trace(&self, waiting: u64, woken: u64) {
        // SAFETY: No precondition.
        unsafe { c::vrs_trace_pi_wakeup(self.id.as_u32(), waiting, woken) };
    }
}

#[inline(always)]
fn wakeup_is_traced() -> bool {
    // SAFETY: The key is C's.
    unsafe { static_branch_unlikely!(c::__tracepoint_pi_wakeup, bindings::tracepoint, key) }
}

/// The wakeup lists of all CPUs.
pub struct Lists(PerCpu<Cpu>);

/// lockdep's subclass of those who take a list's lock within the scheduler.
const SCHED_OUT: u32 = 1;

impl Lists {
    /// Creates them, empty.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self(PerCpu::new(Cpu::new)?))
    }

    /// What has happened, by CPU.
    pub fn counts(&self) -> impl Iterator<Item = (PossibleCpu, Counts)> + '_ {
        PossibleCpu::all().map(|id| (id, self.0.get(id).counts()))
    }
}

/// Wakes the vCPUs that wait on a CPU that goes offline, as notifications are still sent there.
///
/// A vCPU that is woken is loaded on another CPU, and has notifications sent there if it halts again.
struct Stranded;

impl CpuDead for Stranded {
    fn dead(cpu: PossibleCpu) {
        // SAFETY: `Registration` has this called only while a provider is registered.
        unsafe { REGISTERED.cpu(cpu.as_u32() as c_int) }.wake_stranded();
    }
}

/// A vCPU that halts on `cpu`, or did so.
struct Halting<'a> {
    vcpu: &'a Vcpu,
    cpu: &'a Cpu,
}

impl Wakeup for Halting<'_> {
    #[inline(always)]
    fn enlist(&self) {
        // SAFETY: This is for a vCPU that blocks and is not preempted, for which KVM calls in the
        // scheduler, with interrupts disabled.
        let irqs = unsafe { assume_irqs_disabled() };
        let mut list = self.cpu.list.lock_nested::<SCHED_OUT>(irqs);
        // SAFETY: `wait` does this for a vCPU that is loaded, which is on no list, and says so in NV.
        // KVM loads each vCPU once more before it goes, and `load` has it removed then.
        unsafe { list.insert(self.vcpu) };
        self.cpu.waiting.add(1);
    }

    #[inline(always)]
    fn delist(&self) {
        let mut list = self.cpu.list.lock_irqsave_also_nested::<SCHED_OUT>();
        // SAFETY: `load` does this for a vCPU that `wait` had inserted, on the CPU it left, which is
        // this one.
        unsafe { list.remove(self.vcpu) };
        self.cpu.waiting.decrement();
        self.cpu.returned.add(1);
    }

    #[inline(always)]
    fn notify_self(&self) {
        self.cpu.notified_themselves.add(1);
        // SAFETY: Interrupts are disabled, so this is the CPU; see `enlist`.
        unsafe { c::vrs_kvm_notify_self() };
    }
}

/// NDST of a CPU.
///
/// # Safety
///
/// The CPU is possible.
#[inline(always)]
unsafe fn ndst(cpu: c_int) -> Ndst {
    // SAFETY: By the requirement of this function.
    let cpu = unsafe { PossibleCpu::new_unchecked(cpu as u32) };
    // SAFETY: It is a per-CPU variable, and written to before the CPU comes online for the first
    // time.
    let id = unsafe { c_per_cpu(&raw const c::x86_cpu_to_apicid, cpu).read() };
    #[cfg(CONFIG_X86_X2APIC)]
    // SAFETY: C writes to it before there are VMs.
    if unsafe { (&raw const c::x2apic_mode).read() } != 0 {
        return Ndst::x2apic(id);
    }
    Ndst::xapic(id)
}

/// What KVM's calls need, as it passes nothing that belongs to the provider.
///
/// `cpus` and `provider` are written before KVM is given the functions and after it has given them up,
/// and read by them only. Between lies a lock of KVM's, and code that is patched on all CPUs.
///
/// What KVM offers is written while there is no VM, before the lock that the first one takes, and used
/// while there is one.
struct Registered {
    taken: Atomic<i32>,
    /// As that of [`Lists`].
    cpus: UnsafeCell<*const Cpu>,
    provider: UnsafeCell<*const c_void>,
    wake_up: UnsafeCell<unsafe extern "C" fn(*mut c::kvm_pi_vcpu)>,
    unblock: UnsafeCell<unsafe extern "C" fn(*mut c::kvm)>,
}

// SAFETY: As described above, who reads does not race with who writes.
unsafe impl Sync for Registered {}

static REGISTERED: Registered = Registered {
    taken: Atomic::new(0),
    cpus: UnsafeCell::new(ptr::null()),
    provider: UnsafeCell::new(ptr::null()),
    wake_up: UnsafeCell::new(nothing),
    unblock: UnsafeCell::new(nothing),
};

/// What KVM offers before it offers anything.
extern "C" fn nothing<T>(_: *mut T) {}

impl Registered {
    /// # Safety
    ///
    /// A provider is registered, and stays so for `'a`; the CPU is possible.
    #[inline(always)]
    unsafe fn cpu<'a>(&self, cpu: c_int) -> &'a Cpu {
        // SAFETY: By the requirement of this function all possible CPUs have their `Cpu`, and this
        // one is.
        unsafe { &*c_per_cpu(*self.cpus.get(), PossibleCpu::new_unchecked(cpu as u32)) }
    }

    /// # Safety
    ///
    /// A provider is registered, and stays so for `'a`; this stays on its CPU as long.
    #[inline(always)]
    unsafe fn here<'a>(&self) -> &'a Cpu {
        // SAFETY: By the requirement of this function.
        unsafe { &*c_this_cpu(*self.cpus.get()) }
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
                bind: Some(bind),
                vcpu_load: Some(vcpu_load),
                vcpu_put: Some(vcpu_put),
                vcpu_block: Some(vcpu_block),
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
            *REGISTERED.cpus.get() = provider.lists().0.as_ptr();
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
/// There is no VM; `host` is KVM's, and its functions may be called while there is one.
unsafe extern "C" fn bind(host: *const c::kvm_pi_host) {
    // SAFETY: By the requirement of this function it is valid, and nobody reads what is written.
    unsafe {
        *REGISTERED.wake_up.get() = (*host).wake_up.unwrap_or(nothing);
        *REGISTERED.unblock.get() = (*host).unblock.unwrap_or(nothing);
    }
}

/// # Safety
///
/// A provider is registered; `pi` is a vCPU of KVM's, which is loaded on `cpu`, where this runs, and
/// was put on `prev` the last time, unless that is negative.
unsafe extern "C" fn vcpu_load(pi: *mut c::kvm_pi_vcpu, prev: c_int, cpu: c_int) {
    // SAFETY: By the requirement of this function.
    let vcpu = unsafe { Vcpu::from_raw(pi) };
    posted_intr::load(
        vcpu.descriptor(),
        prev != cpu,
        // SAFETY: As above; as it waited, it was on a CPU.
        || unsafe {
            if prev == cpu {
                vcpu_load_waited(vcpu);
            } else {
                vcpu_load_waited_elsewhere(vcpu, prev, cpu);
            }
        },
        // SAFETY: The CPU is possible.
        || posted_intr::load_moved(vcpu.descriptor(), unsafe { ndst(cpu) }),
    );
}

/// A vCPU that waited on this CPU. Not inlined, so that the other ways need no stack.
///
/// # Safety
///
/// A provider is registered, and preemption is disabled.
#[inline(never)]
unsafe fn vcpu_load_waited(vcpu: &Vcpu) {
    // SAFETY: By the requirement of this function.
    let here = unsafe { REGISTERED.here() };
    posted_intr::load_waited(vcpu.descriptor(), &Halting { vcpu, cpu: here });
}

/// A vCPU that waited on `prev`.
///
/// # Safety
///
/// A provider is registered; both are possible.
#[inline(never)]
unsafe fn vcpu_load_waited_elsewhere(vcpu: &Vcpu, prev: c_int, cpu: c_int) {
    // SAFETY: By the requirement of this function.
    let there = unsafe { REGISTERED.cpu(prev) };
    posted_intr::load_waited_elsewhere(
        vcpu.descriptor(),
        // SAFETY: By the requirement of this function.
        || unsafe { ndst(cpu) },
        &Halting { vcpu, cpu: there },
    );
}

/// # Safety
///
/// `pi` is a vCPU of KVM's, loaded on this CPU.
unsafe extern "C" fn vcpu_put(pi: *mut c::kvm_pi_vcpu) {
    // SAFETY: By the requirement of this function.
    posted_intr::put(unsafe { Vcpu::from_raw(pi) }.descriptor());
}

/// # Safety
///
/// A provider is registered; `pi` is a vCPU of KVM's, loaded on this CPU, which has interrupts
/// disabled.
unsafe extern "C" fn vcpu_block(pi: *mut c::kvm_pi_vcpu) {
    // SAFETY: By the requirement of this function.
    let vcpu = unsafe { Vcpu::from_raw(pi) };
    // SAFETY: As above.
    let here = unsafe { REGISTERED.here() };
    let halting = Halting { vcpu, cpu: here };
    let notified = posted_intr::wait(vcpu.descriptor(), &halting);
    // SAFETY: The key is C's.
    if unsafe { static_branch_unlikely!(c::__tracepoint_pi_wait, bindings::tracepoint, key) } {
        // SAFETY: No precondition.
        unsafe { c::vrs_trace_pi_wait(here.id.as_u32(), notified) };
    }
}

/// # Safety
///
/// A provider is registered; this runs in the handler of an interrupt.
unsafe extern "C" fn wakeup() {
    // SAFETY: By the requirement of this function.
    unsafe { REGISTERED.here().notified() };
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
/// A `T` is registered; `kvm` is KVM's.
unsafe extern "C" fn start_bypass<T: Provider>(kvm: *mut c::kvm) {
    // SAFETY: By the requirement of this function.
    let provider = unsafe { REGISTERED.provider::<T>() };
    provider.start_bypass(Vm {
        kvm,
        _during_call: PhantomData,
    });
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
