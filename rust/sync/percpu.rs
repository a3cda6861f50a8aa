// SPDX-License-Identifier: GPL-2.0

//! Memory of which each CPU has its own.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

#[cfg(CONFIG_SMP)]
use core::arch::asm;
use core::{
    marker::PhantomData,
    ptr::{
        drop_in_place,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    cpu::nr_cpu_ids,
    prelude::*, //
};
use vrs_bindings::{
    vrs_alloc_percpu,
    vrs_cpu_possible, //
};

/// The number of a CPU that the machine has or may get.
///
/// # Invariants
///
/// `cpu_possible()` is true for it, as it will be for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PossibleCpu(u32);

impl PossibleCpu {
    /// # Safety
    ///
    /// The CPU is possible; any that has ever run something is.
    #[inline(always)]
    pub const unsafe fn new_unchecked(cpu: u32) -> Self {
        // INVARIANT: By the requirement of this function.
        Self(cpu)
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..nr_cpu_ids())
            // SAFETY: Any number below `nr_cpu_ids` may be asked for.
            .filter(|cpu| unsafe { vrs_cpu_possible(*cpu) })
            // INVARIANT: Only those that are remain.
            .map(Self)
    }

    /// The number.
    #[inline(always)]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// Where a CPU has its own of a per-CPU variable of C.
///
/// C: `per_cpu_ptr()`.
#[inline(always)]
// It is not looked at what the pointer points to.
#[allow(clippy::pointers_in_nomem_asm_block)]
pub fn c_per_cpu<T>(variable: *const T, cpu: PossibleCpu) -> *const T {
    #[cfg(CONFIG_SMP)]
    {
        let offsets = (&raw const bindings::__per_cpu_offset).cast::<usize>();
        // SAFETY: The table has an entry for each possible CPU and does not change.
        let offset = unsafe { offsets.add(cpu.0 as usize).read() };
        let mut value = variable.wrapping_byte_add(offset);
        // As RELOC_HIDE(): LLVM would add offset and variable again for each field.
        // SAFETY: It does nothing.
        unsafe {
            asm!("/* {} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags))
        };
        value
    }
    #[cfg(not(CONFIG_SMP))]
    {
        let _ = cpu;
        variable
    }
}

/// Where this CPU has its own, whichever that is: the caller sees to it that it stays on the CPU.
///
/// C: `raw_cpu_ptr()`.
#[inline(always)]
pub fn c_this_cpu<T>(variable: *const T) -> *const T {
    #[cfg(all(CONFIG_SMP, CONFIG_X86))]
    {
        let mut value = variable;
        // SAFETY: It reads where this CPU's memory is, from there. It is not `pure`, as it may be
        // another CPU's the next time.
        unsafe {
            asm!(
                "add {value}, gs:[rip + {offset}]",
                value = inout(reg) value,
                offset = sym bindings::this_cpu_off,
                options(nostack, readonly),
            )
        };
        value
    }
    #[cfg(not(all(CONFIG_SMP, CONFIG_X86)))]
    {
        // SAFETY: No precondition.
        let cpu = unsafe { bindings::raw_smp_processor_id() };
        // INVARIANT: It runs this.
        c_per_cpu(variable, PossibleCpu(cpu))
    }
}

/// A value for each possible CPU, in that CPU's memory. Any CPU may look at any of them.
///
/// # Invariants
///
/// `values` was allocated for `T`, and all possible CPUs' are initialised.
pub struct PerCpu<T> {
    values: NonNull<T>,
    _owns: PhantomData<T>,
}

// SAFETY: Moving it moves the values, no more.
unsafe impl<T: Send> Send for PerCpu<T> {}
// SAFETY: It gives out references to the values, no more.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// Allocates the values and initialises each as `value` says.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn new<I: PinInit<T>>(value: impl Fn(PossibleCpu) -> I) -> Result<Self> {
        // SAFETY: No precondition.
        let values = unsafe { vrs_alloc_percpu(size_of::<T>(), align_of::<T>()) };
        let values = NonNull::new(values.cast::<T>()).ok_or(ENOMEM)?;
        for cpu in PossibleCpu::all() {
            let slot = Self::of(values, cpu).as_ptr();
            // SAFETY: The slot is as large as `T`, stays where it is, and is nobody else's yet.
            unsafe { pin_init::raw_init(slot, value(cpu)) };
        }
        // INVARIANT: As was just done.
        Ok(Self {
            values,
            _owns: PhantomData,
        })
    }

    #[inline(always)]
    fn of(values: NonNull<T>, cpu: PossibleCpu) -> NonNull<T> {
        // SAFETY: The memory of a CPU is not at address 0.
        unsafe { NonNull::new_unchecked(c_per_cpu(values.as_ptr(), cpu).cast_mut()) }
    }

    /// What [`c_per_cpu`] makes the address of a CPU's value of.
    pub fn as_ptr(&self) -> *const T {
        self.values.as_ptr()
    }

    /// The value of a CPU.
    #[inline(always)]
    pub fn get(&self, cpu: PossibleCpu) -> &T {
        // SAFETY: By the type invariant it is initialised.
        unsafe { Self::of(self.values, cpu).as_ref() }
    }
}

impl<T> Drop for PerCpu<T> {
    fn drop(&mut self) {
        for cpu in PossibleCpu::all() {
            // SAFETY: By the type invariant it is initialised, and nobody has it any more.
            unsafe { drop_in_place(Self::of(self.values, cpu).as_ptr()) };
        }
        // SAFETY: By the type invariant it was allocated, and this is the end of it.
        unsafe { bindings::free_percpu(self.values.as_ptr().cast()) };
    }
}
