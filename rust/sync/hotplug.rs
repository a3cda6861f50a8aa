// SPDX-License-Identifier: GPL-2.0

//! CPUs that go offline.
//!
//! C header: [`include/linux/cpuhotplug.h`](srctree/include/linux/cpuhotplug.h)

use crate::PossibleCpu;
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    prelude::*, //
};
use vrs_bindings::{
    vrs_cpu_dead_register,
    vrs_cpu_dead_unregister, //
};

/// Who has something to do when a CPU is gone.
pub trait CpuDead: 'static {
    /// The CPU is offline: it runs nothing and takes no interrupts. It may also have failed to come
    /// online.
    ///
    /// # Context
    ///
    /// May sleep. CPUs neither come nor go meanwhile.
    fn dead(cpu: PossibleCpu);
}

/// Calls [`CpuDead::dead`] until dropped.
///
/// # Invariants
///
/// `state` was registered for `T`.
pub struct OnCpuDead<T: CpuDead> {
    state: c_int,
    _calls: PhantomData<fn(T)>,
}

impl<T: CpuDead> OnCpuDead<T> {
    /// Has `T` called for CPUs that go offline from now on; `name` is what
    /// `/sys/devices/system/cpu/hotplug/states` shows.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if too many have asked for that.
    ///
    /// # Context
    ///
    /// May sleep, until CPUs neither come nor go.
    pub fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: Both the name and the function stay; dropping this ends the calls, before the module
        // goes.
        let state = unsafe { vrs_cpu_dead_register(name.as_char_ptr(), Some(Self::call)) };
        to_result(state)?;
        // INVARIANT: As was just done.
        Ok(Self {
            state,
            _calls: PhantomData,
        })
    }

    /// # Safety
    ///
    /// Called by the kernel, for a possible CPU.
    unsafe extern "C" fn call(cpu: c_uint) -> c_int {
        // SAFETY: By the requirement of this function.
        T::dead(unsafe { PossibleCpu::new_unchecked(cpu) });
        0
    }
}

impl<T: CpuDead> Drop for OnCpuDead<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. It does not run any more when this returns.
        unsafe { vrs_cpu_dead_unregister(self.state) };
    }
}
