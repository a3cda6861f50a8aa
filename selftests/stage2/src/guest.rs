// SPDX-License-Identifier: GPL-2.0

//! A guest that does nothing but access memory, one routine at a time.
//!
//! Its MMU is off, so that its addresses are guest-physical ones. What is asked of it, and what it
//! answers, is in registers: no memory is shared that caches could be in the way of.

use std::arch::global_asm;
use std::fs;
use std::ops::Range;
use std::os::fd::{
    AsRawFd,
    BorrowedFd, //
};
use std::path::PathBuf;
use std::process;

use harness::check::{
    missing_or_fail,
    Stop,
    Sys,
    SysError,
    Verdict, //
};
use harness::memory::Memory;
use harness::trace::Events;
use harness::vfio::PAGE;
use kvm_bindings::{
    kvm_userspace_memory_region,
    kvm_vcpu_init,
    KVM_REG_ARM64,
    KVM_REG_ARM64_SYSREG,
    KVM_REG_ARM_CORE,
    KVM_REG_SIZE_U64, //
};
use kvm_ioctls::{
    Kvm,
    VcpuExit,
    VcpuFd,
    VmFd, //
};
use nix::errno::Errno;

use crate::dump::{
    self,
    Run, //
};

/// Bits of guest-physical addresses.
pub(crate) const IPA_BITS: u32 = 40;

/// Guest-physical addresses of the guest's own memory. Slots of tests lie above.
pub(crate) const OWN: Range<u64> = 0..2 * PAGE;

/// Where there is no memory: a write there is an answer, eight bytes higher it is an exception.
const DOORBELL: u64 = 0x0900_0000;
const EXCEPTION: u64 = DOORBELL + 8;

// Registers: x0 to x6 are the routine's, its arguments and its answer among them; x8 is the
// doorbell, x9 the next routine.
global_asm!(
    ".pushsection .rodata.vrs_guest, \"a\"",
    ".balign 4096",
    // The vectors: whatever happens, its syndrome is told.
    "vrs_guest_start:",
    ".rept 16",
    ".balign 128",
    "mrs x0, esr_el1",
    "str x0, [x8, #8]",
    "br x9",
    ".endr",
    ".balign 2048",
    "vrs_guest_read:",
    "ldr x0, [x0]",
    "b 1f",
    "vrs_guest_write:",
    "str x1, [x0]",
    "b 1f",
    "vrs_guest_jump:",
    "br x0",
    // From x0 to x1 in steps of x2: adds what is there.
    "vrs_guest_sum:",
    "mov x3, #0",
    "2: ldr x4, [x0]",
    "add x3, x3, x4",
    "add x0, x0, x2",
    "cmp x0, x1",
    "b.lo 2b",
    "mov x0, x3",
    "b 1f",
    // From x0 to x1 in steps of x2: writes the address plus x3.
    "vrs_guest_fill:",
    "3: add x4, x0, x3",
    "str x4, [x0]",
    "add x0, x0, x2",
    "cmp x0, x1",
    "b.lo 3b",
    "b 1f",
    // x3 times: adds one to the word that lies at x0 plus a random number below 1 << x1, shifted
    // left by x2. The numbers come from x4, which is not 0 (Marsaglia's xorshift64).
    "vrs_guest_count:",
    "mov x5, #1",
    "lsl x1, x5, x1",
    "sub x1, x1, #1",
    "4: eor x4, x4, x4, lsl #13",
    "eor x4, x4, x4, lsr #7",
    "eor x4, x4, x4, lsl #17",
    "and x5, x1, x4, lsr #20",
    "lsl x5, x5, x2",
    "ldr x6, [x0, x5]",
    "add x6, x6, #1",
    "str x6, [x0, x5]",
    "subs x3, x3, #1",
    "b.ne 4b",
    "mov x0, x4",
    "1: str x0, [x8]",
    "br x9",
    "vrs_guest_end:",
    ".popsection",
);

extern "C" {
    static vrs_guest_start: u8;
    static vrs_guest_read: u8;
    static vrs_guest_write: u8;
    static vrs_guest_jump: u8;
    static vrs_guest_sum: u8;
    static vrs_guest_fill: u8;
    static vrs_guest_count: u8;
    static vrs_guest_end: u8;
}

/// What the guest can be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// The word at an address.
    Read(u64),
    /// To write a word to an address.
    Write(u64, u64),
    /// To go on at an address.
    Jump(u64),
    /// The sum of words, one in so many bytes.
    Sum(Span, u64),
    /// To write to words, one in so many bytes, their addresses and a number.
    Fill(Span, u64, u64),
    /// To add one to words so often.
    Count(Count),
}

/// First address, and the first behind.
pub(crate) type Span = (u64, u64);

/// Where [`Ask::Count`] counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    /// Address of the first word.
    pub(crate) base: u64,
    /// There are two to so many words.
    pub(crate) bits: u64,
    /// They are two to so many bytes apart.
    pub(crate) shift: u64,
    /// How often.
    pub(crate) times: u64,
    /// Not 0. The answer is the next one.
    pub(crate) seed: u64,
}

impl Ask {
    /// Guest-physical address of the routine, and its arguments.
    fn registers(self) -> (u64, [u64; 5]) {
        let address = |symbol: *const u8| {
            let start = &raw const vrs_guest_start;
            OWN.start + (symbol.addr() - start.addr()) as u64
        };
        let (symbol, arguments) = match self {
            Ask::Read(at) => (&raw const vrs_guest_read, [at, 0, 0, 0, 0]),
            Ask::Write(at, word) => (&raw const vrs_guest_write, [at, word, 0, 0, 0]),
            Ask::Jump(at) => (&raw const vrs_guest_jump, [at, 0, 0, 0, 0]),
            Ask::Sum((start, end), step) => (&raw const vrs_guest_sum, [start, end, step, 0, 0]),
            Ask::Fill((start, end), step, plus) => {
                (&raw const vrs_guest_fill, [start, end, step, plus, 0])
            }
            Ask::Count(c) => (
                &raw const vrs_guest_count,
                [c.base, c.bits, c.shift, c.times, c.seed],
            ),
        };
        (address(symbol), arguments)
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The routine came to its end.
    Done(u64),
    /// The guest took an exception, with this syndrome (`ESR_EL1`).
    Exception(u64),
    /// The access goes to the process, as one to a device that it emulates.
    Emulated(u64),
    /// `KVM_RUN` failed, and would try the same instruction again.
    Refused(Errno),
}

/// Records the stage-2 faults of guests, apart from their answers, which are some, too.
#[track_caller]
pub(crate) fn faults() -> Verdict<Events> {
    let answer = DOORBELL / PAGE * PAGE;
    Events::record("kvm/kvm_guest_fault", &format!("ipa != {answer:#x}"))
}

/// An access that goes to the process.
pub(crate) enum Emulated<'a> {
    /// The guest wants a word.
    Read(&'a mut u64),
    /// The guest writes a word.
    Write(u64),
}

/// A virtual machine with its own memory, and so far nothing else.
pub(crate) struct Vm {
    fd: VmFd,
    // Behind the VM, so that it goes after it.
    _own: Memory,
}

/// A memory slot of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its number, above 0.
    pub(crate) id: u32,
    /// `KVM_MEM_*`
    pub(crate) flags: u32,
    /// Guest-physical address.
    pub(crate) ipa: u64,
    /// Virtual address.
    pub(crate) hva: u64,
    /// Bytes; none deletes the slot.
    pub(crate) size: u64,
}

impl Slot {
    /// The first one, with all of a mapping.
    pub(crate) fn all(memory: &Memory, ipa: u64) -> Self {
        Slot {
            id: 1,
            flags: 0,
            ipa,
            hva: memory.vaddr(),
            size: memory.len(),
        }
    }
}

impl Vm {
    /// Makes one.
    #[track_caller]
    pub(crate) fn new() -> Verdict<Self> {
        let kvm = Kvm::new().map_err(|error| {
            missing_or_fail("/dev/kvm", std::io::Error::from_raw_os_error(error.errno()))
        })?;
        let fd = kvm.create_vm_with_ipa_size(IPA_BITS).map_err(failed)?;
        let own = Memory::anon(OWN.end - OWN.start)?;
        // SAFETY: The symbols enclose what the macro above made, which is never written to.
        let code = unsafe {
            let start = &raw const vrs_guest_start;
            let len = (&raw const vrs_guest_end).addr() - start.addr();
            std::slice::from_raw_parts(start, len)
        };
        own.put(0, code);
        let hva = own.vaddr();
        let vm = Vm { fd, _own: own };
        vm.set_slot(&Slot {
            id: 0,
            flags: 0,
            ipa: OWN.start,
            hva,
            size: OWN.end - OWN.start,
        })?;
        Ok(vm)
    }

    /// `KVM_SET_USER_MEMORY_REGION`
    pub(crate) fn set_slot(&self, slot: &Slot) -> Sys {
        let region = kvm_userspace_memory_region {
            slot: slot.id,
            flags: slot.flags,
            guest_phys_addr: slot.ipa,
            memory_size: slot.size,
            userspace_addr: slot.hva,
        };
        // SAFETY: What the guest can reach is memory that no reference of this program points
        // to: its own, and mappings that are only ever accessed through raw pointers.
        let done = unsafe { self.fd.set_user_memory_region(region) };
        done.map_err(|error| SysError {
            call: format!("KVM_SET_USER_MEMORY_REGION({slot:x?})"),
            errno: Errno::from_raw(error.errno()),
        })
    }

    /// Adds a processor.
    #[track_caller]
    pub(crate) fn cpu(&self, number: u64) -> Verdict<Cpu> {
        let fd = self.fd.create_vcpu(number).map_err(failed)?;
        let mut init = kvm_vcpu_init::default();
        self.fd.get_preferred_target(&mut init).map_err(failed)?;
        fd.vcpu_init(&init).map_err(failed)?;
        let cpu = Cpu { fd, waits: false };
        cpu.set(VBAR_EL1, OWN.start)?;
        cpu.set(x(8), DOORBELL)?;
        Ok(cpu)
    }

    /// `KVM_GET_DIRTY_LOG`: numbers of the pages of a slot that were written since the last time.
    #[track_caller]
    pub(crate) fn dirty(&self, slot: &Slot) -> Verdict<Vec<u64>> {
        let words = self
            .fd
            .get_dirty_log(slot.id, slot.size as usize)
            .map_err(failed)?;
        let pages = (0..).zip(words).flat_map(|(number, word)| {
            let set = move |bit: &u64| word >> bit & 1 != 0;
            (0..64).filter(set).map(move |bit: u64| number * 64 + bit)
        });
        Ok(pages.collect())
    }

    /// What the stage-2 page table maps, apart from the guest's own memory.
    #[track_caller]
    pub(crate) fn mapped(&self) -> Verdict<Vec<Run>> {
        let folder = format!("{}-{}", process::id(), self.fd.as_raw_fd());
        let path = PathBuf::from("/sys/kernel/debug/kvm")
            .join(folder)
            .join("stage2_page_tables");
        let text = fs::read_to_string(&path).map_err(|e| missing_or_fail(&path, e))?;
        let runs = dump::parse(&text)
            .map_err(|line| Stop::fail(format_args!("{}: {line:?}", path.display())))?;
        Ok(dump::merge(
            runs.into_iter().filter(|run| run.range.start >= OWN.end),
        ))
    }
}

/// A processor of the guest.
pub(crate) struct Cpu {
    fd: VcpuFd,
    /// Whether the last routine came to its end, so that the next one is in x9.
    waits: bool,
}

const U64: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64;
/// Core registers are numbered by their place in `struct kvm_regs`, in words of 32 bits.
const PC: u64 = U64 | KVM_REG_ARM_CORE as u64 | (32 * 8 / 4);
const VBAR_EL1: u64 = U64 | KVM_REG_ARM64_SYSREG as u64 | (3 << 14) | (12 << 7);

const fn x(number: u64) -> u64 {
    U64 | KVM_REG_ARM_CORE as u64 | (number * 8 / 4)
}

impl Cpu {
    /// The file KVM has for it.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: It stays open as long as the processor is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }
    }

    /// Asks something and waits for the answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, what: Ask) -> Verdict<Answer> {
        self.prepare(what)?;
        self.go_on()
    }

    /// Asks something that is answered once the guest goes on.
    #[track_caller]
    pub(crate) fn prepare(&mut self, what: Ask) -> Verdict {
        let (routine, arguments) = what.registers();
        for (number, value) in (0..).zip(arguments) {
            self.set(x(number), value)?;
        }
        // Leaving the doorbell alters the program counter.
        self.set(if self.waits { x(9) } else { PC }, routine)
    }

    /// Runs the guest, after what was refused for instance.
    #[track_caller]
    pub(crate) fn go_on(&mut self) -> Verdict<Answer> {
        self.go_on_with(|_, _| {})
    }

    /// The same, with someone to answer what is not memory.
    #[track_caller]
    pub(crate) fn go_on_with(
        &mut self,
        mut emulate: impl FnMut(u64, Emulated<'_>),
    ) -> Verdict<Answer> {
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let answer = match self.fd.run() {
            Ok(VcpuExit::MmioWrite(DOORBELL, bytes)) => Answer::Done(word(bytes)),
            Ok(VcpuExit::MmioWrite(EXCEPTION, bytes)) => Answer::Exception(word(bytes)),
            Ok(VcpuExit::MmioWrite(address, bytes)) => {
                emulate(address, Emulated::Write(word(bytes)));
                Answer::Emulated(address)
            }
            Ok(VcpuExit::MmioRead(address, bytes)) => {
                let mut word = 0;
                emulate(address, Emulated::Read(&mut word));
                bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
                Answer::Emulated(address)
            }
            Ok(other) => return Err(Stop::fail(format_args!("KVM_RUN: {other:?}"))),
            Err(error) => Answer::Refused(Errno::from_raw(error.errno())),
        };
        self.waits = matches!(answer, Answer::Done(_) | Answer::Exception(_));
        if let Answer::Emulated(_) = answer {
            // The instruction is over only at the next run, which must not get farther.
            self.fd.set_kvm_immediate_exit(1);
            let interrupted = self.fd.run().map(drop);
            self.fd.set_kvm_immediate_exit(0);
            if interrupted.map_err(|error| error.errno()) != Err(libc::EINTR) {
                return Err(Stop::fail("KVM_RUN came back without being interrupted"));
            }
        }
        Ok(answer)
    }

    #[track_caller]
    fn set(&self, register: u64, value: u64) -> Verdict {
        self.fd
            .set_one_reg(register, &value.to_le_bytes())
            .map_err(failed)?;
        Ok(())
    }
}

#[track_caller]
fn failed(error: kvm_ioctls::Error) -> Stop {
    Stop::fail(format_args!(
        "expected success, got {:?}",
        Errno::from_raw(error.errno())
    ))
}
