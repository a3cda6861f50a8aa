// SPDX-License-Identifier: GPL-2.0

//! Virtual machines with one vCPU, and the fixture that protects it.

use std::fs::{
    self,
    File, //
};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use harness::check::{
    missing_or_fail,
    Stop,
    Verdict, //
};
use kvm_bindings::{
    kvm_sregs,
    kvm_sregs2,
    KVM_MAX_CPUID_ENTRIES, //
};
use kvm_ioctls::{
    Kvm,
    VcpuFd,
    VmFd, //
};
use nix::errno::Errno;
use sregs::{
    Ioctl,
    Model,
    Trap, //
};

/// Structures and requests of `selftests/kmod/vrs_protected.h`.
mod fixture {
    #[repr(C)]
    pub(super) struct Protect {
        pub(super) vcpu: i32,
        pub(super) flags: u32,
        pub(super) svm_invoke_exit_handler: u64,
        pub(super) vcpu_load: u64,
        pub(super) vcpu_put: u64,
    }

    pub(super) const SEALED: u32 = 1;

    #[repr(C)]
    pub(super) struct Exit {
        pub(super) exit_code: u64,
        pub(super) exit_info_1: u64,
        pub(super) result: i32,
        pub(super) exception: i32,
    }

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct State {
        pub(super) requests: u64,
        pub(super) cpu_role: u64,
        pub(super) flush_guest: u32,
        pub(super) flush_current: u32,
        pub(super) async_pf: u32,
        pub(super) tdp: u32,
    }

    nix::ioctl_write_ptr!(protect, 0xed, 0, Protect);
    nix::ioctl_readwrite!(trap, 0xed, 1, Exit);
    nix::ioctl_read!(state, 0xed, 2, State);
}

/// The calls that kvm-ioctls does not have.
mod kvm {
    use kvm_bindings::{kvm_sregs2, KVMIO};

    nix::ioctl_read!(get_sregs2, KVMIO, 0xcc, kvm_sregs2);
    nix::ioctl_write_ptr!(set_sregs2, KVMIO, 0xcd, kvm_sregs2);
}

const FIXTURE: &str = "/dev/vrs_protected";

/// A virtual machine with one vCPU in reset, that has all KVM supports.
pub(crate) struct Machine {
    pub(crate) vcpu: VcpuFd,
    _vm: VmFd,
}

/// Whether there is a local APIC in the kernel, which CR8 is a part of then.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apic {
    Kernel,
    None,
}

impl Machine {
    pub(crate) fn new(apic: Apic) -> Verdict<Self> {
        let kvm = Kvm::new().map_err(|e| missing_or_fail("/dev/kvm", errno(e).into()))?;
        let vm = kvm.create_vm().map_err(errno)?;
        if apic == Apic::Kernel {
            vm.create_irq_chip().map_err(errno)?;
        }
        let vcpu = vm.create_vcpu(0).map_err(errno)?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(errno)?;
        vcpu.set_cpuid2(&cpuid).map_err(errno)?;
        Ok(Self { vcpu, _vm: vm })
    }

    /// All of the registers.
    pub(crate) fn get(&self) -> Verdict<kvm_sregs> {
        Ok(self.vcpu.get_sregs().map_err(errno)?)
    }

    /// KVM_GET_SREGS2.
    pub(crate) fn get2(&self) -> Result<kvm_sregs2, Errno> {
        let mut sregs = kvm_sregs2::default();
        // SAFETY: KVM fills the structure, which is as large as the request's number says.
        unsafe { kvm::get_sregs2(self.vcpu.as_raw_fd(), &raw mut sregs) }?;
        Ok(sregs)
    }

    /// Sets them by either call. What only KVM_SET_SREGS2 has is zero.
    pub(crate) fn set(&self, ioctl: Ioctl, sregs: &kvm_sregs) -> Result<(), Errno> {
        match ioctl {
            Ioctl::SetSregs => self.vcpu.set_sregs(sregs).map_err(errno),
            Ioctl::SetSregs2 => self.set2(&as_sregs2(sregs)),
        }
    }

    /// KVM_SET_SREGS2.
    pub(crate) fn set2(&self, sregs: &kvm_sregs2) -> Result<(), Errno> {
        // SAFETY: KVM reads the structure, which is as large as the request's number says.
        unsafe { kvm::set_sregs2(self.vcpu.as_raw_fd(), sregs) }?;
        Ok(())
    }

    /// What KVM believes the registers to be, by both calls.
    pub(crate) fn model(&self) -> Verdict<Model> {
        let (one, two) = (self.get()?, self.get2()?);
        let models = [
            (one.cr0, one.cr4, one.cr8, one.efer, one.apic_base),
            (two.cr0, two.cr4, two.cr8, two.efer, two.apic_base),
        ];
        if models[0] != models[1] {
            return Err(Stop::fail(format_args!(
                "KVM_GET_SREGS and KVM_GET_SREGS2 differ: {models:x?}"
            )));
        }
        let (cr0, cr4, cr8, efer, apic_base) = models[0];
        Ok(Model {
            cr0,
            cr4,
            cr8,
            efer,
            apic_base,
        })
    }

    /// The number of the interrupt that KVM is about to inject.
    pub(crate) fn interrupt(&self) -> Verdict<Option<u8>> {
        let events = self.vcpu.get_vcpu_events().map_err(errno)?;
        let interrupt = events.interrupt;
        Ok((interrupt.injected != 0).then_some(interrupt.nr))
    }

    /// Protects the vCPU until the result is dropped.
    pub(crate) fn protect(&self) -> Verdict<Protection> {
        Protection::new(&self.vcpu, 0)
    }

    /// The same, in a VM whose type says that state is protected.
    pub(crate) fn seal(&self) -> Verdict<Protection> {
        Protection::new(&self.vcpu, fixture::SEALED)
    }
}

/// The errno of a refused call.
pub(crate) fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw(error.errno())
}

/// The same registers for KVM_SET_SREGS2.
pub(crate) fn as_sregs2(sregs: &kvm_sregs) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: sregs.cs,
        ds: sregs.ds,
        es: sregs.es,
        fs: sregs.fs,
        gs: sregs.gs,
        ss: sregs.ss,
        tr: sregs.tr,
        ldt: sregs.ldt,
        gdt: sregs.gdt,
        idt: sregs.idt,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        flags: 0,
        pdptrs: [0; 4],
    }
}

/// What the guest gets from a write that trapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    GeneralProtection,
}

/// What KVM has still to do before it enters the guest, and its idea of the paging mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub(crate) flush_guest: bool,
    pub(crate) flush_current: bool,
    pub(crate) async_pf: bool,
    pub(crate) role: u64,
    pub(crate) tdp: bool,
}

/// A vCPU whose state KVM believes to be protected.
pub(crate) struct Protection(File);

impl Protection {
    fn new(vcpu: &VcpuFd, flags: u32) -> Verdict<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(FIXTURE)
            .map_err(|error| missing_or_fail(FIXTURE, error))?;
        let [svm_invoke_exit_handler, vcpu_load, vcpu_put] = symbols()?;
        let protect = fixture::Protect {
            vcpu: vcpu.as_raw_fd(),
            flags,
            svm_invoke_exit_handler,
            vcpu_load,
            vcpu_put,
        };
        // SAFETY: The module reads the structure, which is as large as the request's number says.
        unsafe { fixture::protect(file.as_raw_fd(), &raw const protect) }?;
        Ok(Self(file))
    }

    /// The guest writes `value` to a register.
    pub(crate) fn trap(&self, trap: Trap, value: u64) -> Verdict<Outcome> {
        // SVM_EXIT_*_WRITE_TRAP
        let exit_code = match trap {
            Trap::Efer => 0x8f,
            Trap::Cr0 => 0x90,
            Trap::Cr4 => 0x94,
            Trap::Cr8 => 0x98,
        };
        let mut exit = fixture::Exit {
            exit_code,
            exit_info_1: value,
            result: 0,
            exception: 0,
        };
        // SAFETY: The module reads and writes the structure, whose size the number says.
        unsafe { fixture::trap(self.0.as_raw_fd(), &raw mut exit) }?;
        match (exit.result, exit.exception) {
            (1, -1) => Ok(Outcome::Done),
            (1, 13) => Ok(Outcome::GeneralProtection),
            other => Err(Stop::fail(format_args!(
                "{trap:?} = {value:#x}: the handler's result and exception are {other:?}"
            ))),
        }
    }

    /// What has been asked for since the last time.
    pub(crate) fn pending(&self) -> Verdict<Pending> {
        let mut state = fixture::State::default();
        // SAFETY: The module fills the structure, which is as large as the request's number says.
        unsafe { fixture::state(self.0.as_raw_fd(), &raw mut state) }?;
        let asked = |bit: u32| state.requests >> bit & 1 == 1;
        Ok(Pending {
            flush_guest: asked(state.flush_guest),
            flush_current: asked(state.flush_current),
            async_pf: asked(state.async_pf),
            role: state.cpu_role,
            tdp: state.tdp != 0,
        })
    }
}

/// Where KVM's own functions are that the fixture calls.
static SYMBOLS: OnceLock<Option<[u64; 3]>> = OnceLock::new();

/// Looks for them, before modules come and go: the list skips some then.
pub(crate) fn find_symbols() {
    SYMBOLS.get_or_init(|| {
        let text = fs::read_to_string("/proc/kallsyms").ok()?;
        let find = |wanted: &str| {
            let found = text.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                (words.nth(1)? == wanted).then_some(address)
            });
            found.filter(|address| *address != 0)
        };
        Some([
            find("svm_invoke_exit_handler")?,
            find("vcpu_load")?,
            find("vcpu_put")?,
        ])
    });
}

fn symbols() -> Verdict<[u64; 3]> {
    let known = SYMBOLS.get().copied().flatten();
    known.ok_or_else(|| Stop::skip("symbols of kvm-amd in /proc/kallsyms"))
}
