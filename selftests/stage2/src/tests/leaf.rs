// SPDX-License-Identifier: GPL-2.0

//! Descriptors: memory type, shareability, permissions, each bit of them.
//!
//! What is expected does not depend on who maps, but for the size of a leaf. So what passes on C and
//! on Rust is the same bits on both.

use std::arch::asm;

use harness::check::{
    expect_eq,
    expect_errno,
    Verdict, //
};
use harness::env::Env;
use harness::memory::{
    Memory,
    GIB,
    MIB, //
};
use harness::tests;
use harness::vfio::PAGE;
use nix::errno::Errno;

use crate::bar::Bar;
use crate::fixture::{
    Descriptor,
    Fixture, //
};
use crate::guest::{
    Answer,
    Ask,
    Cpu,
    Slot,
    Vm, //
};
use crate::level::Level;
use crate::provider;
use crate::rig::IPA;

const M2: u64 = 2 * MIB;
const SIZE: u64 = 4 * GIB;
const MEM_READONLY: u32 = kvm_bindings::KVM_MEM_READONLY;

tests! {
    "leaf.vfio", "what VFIO maps is Normal, not cacheable, in leaves of each size" => vfio;
    "leaf.read_only", "it is read-only where process or slot are, and writable once they are" => read_only;
    "leaf.resource", "what says nothing of Normal memory is Device-nGnRE, however the process has it" => resource;
    "leaf.first_write", "what is read-only until somebody writes is no part of a writable block" => first_write;
    "leaf.cacheable", "what is cacheable is Normal and executable, if the processor keeps it coherent" => cacheable;
}

/// Memory type of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memtype {
    DeviceNGnRE,
    NormalUncached,
    NormalWriteBack,
}

impl Memtype {
    /// `MemAttr[3:0]`, by Arm ARM D8.6.5 (FEAT_S2FWB disabled: outer and inner attributes, each of
    /// two bits) and D8.6.6 (enabled: bit 2 set and bit 1 clear leave uncached to the guest, 0b110
    /// forces write-back).
    fn bits(self, fwb: bool) -> u64 {
        match (self, fwb) {
            (Memtype::DeviceNGnRE, _) => 0b0001,
            (Memtype::NormalUncached, _) => 0b0101,
            (Memtype::NormalWriteBack, false) => 0b1111,
            (Memtype::NormalWriteBack, true) => 0b0110,
        }
    }
}

/// `HCR_EL2.FWB`: memory types of stage 2 have other numbers, and may override the guest's.
const HCR_FWB: u64 = 1 << 46;

/// `VTCR_EL2.DS`: physical addresses have 52 bits, and leaves no shareability, which is SH0 then.
const VTCR_DS: u64 = 1 << 32;
const VTCR_SH0: u32 = 12;

/// In a descriptor, `S2AP[1]`: the guest may write.
const WRITE: u64 = 1 << 7;

/// Of a field of two bits for shareability.
const INNER_SHAREABLE: u64 = 0b11;

/// A guest with one slot.
struct Guest {
    fixture: Fixture,
    // Before the VM, so that the guest ends first.
    cpu: Cpu,
    vm: Vm,
    slot: Slot,
}

impl Guest {
    /// With all of `memory` in its slot, at `ipa`.
    #[track_caller]
    fn new(memory: &Memory, flags: u32, ipa: u64) -> Verdict<Self> {
        let fixture = Fixture::open(false)?;
        let vm = Vm::new()?;
        let cpu = vm.cpu(0)?;
        let slot = Slot {
            flags,
            ..Slot::all(memory, ipa)
        };
        vm.set_slot(&slot)?;
        Ok(Guest {
            fixture,
            cpu,
            vm,
            slot,
        })
    }

    /// Has the guest read the word at `at` of its slot.
    #[track_caller]
    fn read(&mut self, at: u64, want: u64) -> Verdict {
        let got = self.cpu.ask(Ask::Read(self.slot.ipa + at))?;
        expect_eq("the guest reads", got, Answer::Done(want))
    }

    /// Has the guest write to the word at `at` of its slot.
    #[track_caller]
    fn write(&mut self, at: u64, word: u64) -> Verdict {
        let ipa = self.slot.ipa + at;
        let got = self.cpu.ask(Ask::Write(ipa, word))?;
        expect_eq("the guest writes", got, Answer::Done(ipa))
    }

    #[track_caller]
    fn descriptor(&self, at: u64) -> Verdict<Descriptor> {
        self.fixture.descriptor(&self.cpu, self.slot.ipa + at)
    }

    /// Checks all that is in the descriptor for `at`, behind which is `pa`.
    #[track_caller]
    fn expect(&self, at: u64, pa: u64, want: &Want) -> Verdict {
        let got = self.descriptor(at)?;
        println!("# {want:?}: {got}, FWB {}", fwb(got));
        expect_eq("level", got.level, want.level.number())?;
        let mut bits = want.bits(pa, fwb(got));
        if got.vtcr_el2 & VTCR_DS == 0 {
            bits |= INNER_SHAREABLE << 8;
        } else {
            let sh0 = got.vtcr_el2 >> VTCR_SH0 & 0b11;
            expect_eq("shareability", sh0, INNER_SHAREABLE)?;
        }
        expect_eq(
            format_args!("the descriptor of {want:?}"),
            format_args!("{:#018x}", got.bits).to_string(),
            format_args!("{bits:#018x}").to_string(),
        )
    }
}

fn fwb(descriptor: Descriptor) -> bool {
    descriptor.hcr_el2 & HCR_FWB != 0
}

/// What a descriptor should say.
#[derive(Debug, Clone, Copy)]
struct Want {
    level: Level,
    memtype: Memtype,
    write: bool,
    exec: bool,
}

impl Want {
    /// All but shareability.
    fn bits(&self, pa: u64, fwb: bool) -> u64 {
        const VALID: u64 = 1 << 0;
        // Of the last level: not reserved.
        const PAGE_NOT_BLOCK: u64 = 1 << 1;
        const READ: u64 = 1 << 6;
        const ACCESSED: u64 = 1 << 10;
        const EXECUTE_NEVER: u64 = 0b10 << 53;
        let when = |holds, bits| if holds { bits } else { 0 };
        let size = self.level.size();
        VALID
            | when(self.level == Level::Page, PAGE_NOT_BLOCK)
            | self.memtype.bits(fwb) << 2
            | READ
            | when(self.write, WRITE)
            | ACCESSED
            | (pa / size * size)
            | when(!self.exec, EXECUTE_NEVER)
    }
}

/// The three sizes of leaves, smallest first, by how much guest and process are apart.
fn sizes() -> [(u64, Level); 3] {
    [
        (PAGE, Level::Page),
        (M2, Level::Block2M),
        (0, provider::largest()),
    ]
}

fn vfio(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let memory = bar.map(0, SIZE, 0)?;
    for (off, level) in sizes() {
        let mut guest = Guest::new(&memory, 0, IPA + off)?;
        for at in [GIB + 3 * M2 + 5 * PAGE, SIZE - PAGE] {
            bar.window.write(at, at + 1);
            guest.read(at, at + 1)?;
            let want = Want {
                level,
                memtype: Memtype::NormalUncached,
                write: true,
                exec: false,
            };
            guest.expect(at, bar.base + at, &want)?;
        }
    }
    Ok(())
}

fn read_only(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let at = GIB + 3 * M2 + 5 * PAGE;
    bar.window.write(at, at + 1);
    for (off, level) in sizes() {
        let want = Want {
            level,
            memtype: Memtype::NormalUncached,
            write: false,
            exec: false,
        };
        let pa = bar.base + at;

        // By the process.
        let memory = bar.map(0, SIZE, 0)?;
        memory.protect(0, SIZE, libc::PROT_READ)?;
        let mut guest = Guest::new(&memory, 0, IPA + off)?;
        guest.read(at, at + 1)?;
        guest.expect(at, pa, &want)?;
        memory.protect(0, SIZE, libc::PROT_READ | libc::PROT_WRITE)?;
        guest.read(at, at + 1)?;
        let writable = Want {
            write: true,
            ..want
        };
        guest.expect(at, pa, &writable)?;

        // By the slot.
        let mut guest = Guest::new(&memory, MEM_READONLY, IPA + off)?;
        guest.read(at, at + 1)?;
        guest.expect(at, pa, &want)?;
    }
    Ok(())
}

fn resource(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let (first, len) = (GIB, 2 * M2);
    let at = M2 + 5 * PAGE;
    bar.window.write(first + at, at + 1);
    // Write-combining is what the process has there by `resource2_wc` and by VFIO, too.
    for suffix in ["", "_wc"] {
        let file = bar.resource(suffix)?;
        // Mapped as a whole at once, in pages.
        let memory = Memory::file_part(&file, (first, len), (M2, (bar.base + first) % M2))?;
        let page = Level::Page;
        for (off, level) in [(PAGE, page), (0, provider::from_pages())] {
            let mut guest = Guest::new(&memory, 0, IPA + off)?;
            guest.read(at, at + 1)?;
            let want = Want {
                level,
                memtype: Memtype::DeviceNGnRE,
                write: true,
                exec: false,
            };
            guest.expect(at, bar.base + first + at, &want)?;
        }
    }
    Ok(())
}

/// The owner of a VMA is asked before a page is first written to, as that of a file may have to
/// make room. KVM does not ask, so the guest may write where the process did, and nowhere else.
fn first_write(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let first = GIB;
    let maker = Fixture::open(false)?;
    let memory = maker.map(bar.base + first, M2, M2)?;
    let mut guest = Guest::new(&memory, 0, IPA)?;
    let (written, beside) = (5 * PAGE, 6 * PAGE);
    bar.window.write(first + beside, 42u64);
    let want = Want {
        level: provider::from_pages(),
        memtype: Memtype::DeviceNGnRE,
        write: false,
        exec: false,
    };
    guest.read(beside, 42)?;
    guest.expect(beside, bar.base + first + beside, &want)?;

    memory.write(written, 0u64);
    guest.write(written, 43)?;
    let page = Want {
        level: Level::Page,
        write: true,
        ..want
    };
    guest.expect(written, bar.base + first + written, &page)?;
    let other = guest.descriptor(beside)?;
    expect_eq("writable beside", other.bits & WRITE, 0)?;
    let got = guest.cpu.ask(Ask::Write(IPA + beside, 44))?;
    expect_eq(
        "the guest writes beside",
        got,
        Answer::Refused(Errno::EFAULT),
    )?;

    for at in (0..M2).step_by(PAGE as usize) {
        memory.write(at, at);
    }
    guest.write(beside, 44)?;
    let whole = Want {
        write: true,
        ..want
    };
    guest.expect(beside, bar.base + first + beside, &whole)
}

/// `CTR_EL0.DIC`: what was written as data can be executed right away.
fn dic() -> bool {
    let ctr: u64;
    // SAFETY: Linux lets processes read it, or emulates that.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    ctr >> 29 & 1 != 0
}

fn cacheable(env: &Env) -> Verdict {
    let bar = Bar::open(env, SIZE)?;
    let first = GIB + 5 * PAGE;
    bar.window.write(first, 42u64);
    let maker = Fixture::open(true)?;
    let memory = maker.map(bar.base + first, PAGE, PAGE)?;
    // Whether it can be is seen at a mapping that cannot be wrong.
    let plain = bar.map(0, SIZE, 0)?;
    let mut other = Guest::new(&plain, 0, IPA)?;
    other.read(first, 42)?;
    if fwb(other.descriptor(first)?) && dic() {
        let mut guest = Guest::new(&memory, 0, IPA)?;
        guest.read(0, 42)?;
        memory.write(0, 42u64);
        guest.write(0, 43)?;
        let want = Want {
            level: Level::Page,
            memtype: Memtype::NormalWriteBack,
            write: true,
            exec: true,
        };
        return guest.expect(0, bar.base + first, &want);
    }
    println!("# the processor does not keep cacheable device memory coherent");
    let slot = Slot {
        id: 2,
        ..Slot::all(&memory, IPA + 2 * SIZE)
    };
    expect_errno("a slot", other.vm.set_slot(&slot), Errno::EINVAL)?;
    // What gets there later is met by the fault.
    memory.take_away(0, PAGE)?;
    other.vm.set_slot(&slot)?;
    memory.put_file(0, PAGE, maker.file(), bar.base + first)?;
    let got = other.cpu.ask(Ask::Read(slot.ipa))?;
    expect_eq("the guest reads", got, Answer::Refused(Errno::EFAULT))?;
    let got = other.fixture.descriptor(&other.cpu, slot.ipa)?;
    expect_eq("valid", got.bits & 1, 0)
}
