// SPDX-License-Identifier: GPL-2.0

//! Memory types and permissions of a mapping.

/// Memory type of a stage-2 leaf, which the guest's own may only make stricter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Device-nGnRE.
    Device,
    /// Normal non-cacheable: the guest chooses between that and any Device type.
    NormalUncached,
    /// Normal write-back, kept coherent by the CPUs.
    Normal,
}

/// How the VMM has the memory, and what the CPUs can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The VMA is cacheable.
    pub cacheable: bool,
    /// FEAT_S2FWB and CTR_EL0.DIC: cacheable device memory needs no cache maintenance, for which
    /// the kernel has no address of it.
    pub can_cache: bool,
    /// The VMA's owner vouches that Normal memory does no harm (`VM_ALLOW_ANY_UNCACHED`).
    pub may_be_normal: bool,
}

/// What the guest did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It fetched an instruction.
    pub exec: bool,
    /// The VMM may write there, and so does the memory slot.
    pub writable: bool,
    /// So does the guest's own stage 2, if it has one.
    pub may_write: bool,
    /// Permission to execute needs no cache maintenance.
    pub exec_is_free: bool,
}

/// How to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Memory type.
    pub memory: Memory,
    /// Permission to write.
    pub write: bool,
    /// Permission to execute.
    pub exec: bool,
}

/// Why a fault cannot be resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Cacheable device memory the CPUs do not keep coherent. `EFAULT`.
    Incoherent,
    /// Instructions from memory that is not cacheable. `ENOEXEC`, an abort in the guest.
    ExecUncached,
}

/// Decides how device memory is mapped.
///
/// # Errors
///
/// See [`Refusal`].
///
/// C counterpart: `kvm_s2_fault_pin_pfn()` and `kvm_s2_fault_compute_prot()`.
pub fn attributes(origin: Origin, access: Access) -> Result<Attributes, Refusal> {
    let memory = match origin {
        Origin {
            cacheable: true,
            can_cache: false,
            ..
        } => return Err(Refusal::Incoherent),
        Origin {
            cacheable: true, ..
        } => Memory::Normal,
        Origin {
            may_be_normal: true,
            ..
        } => Memory::NormalUncached,
        Origin { .. } => Memory::Device,
    };
    if access.exec && memory != Memory::Normal {
        return Err(Refusal::ExecUncached);
    }
    Ok(Attributes {
        memory,
        write: access.writable && access.may_write,
        exec: access.exec || (access.exec_is_free && memory == Memory::Normal),
    })
}
