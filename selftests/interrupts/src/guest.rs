// SPDX-License-Identifier: GPL-2.0

//! The guest: what it executes, where in its memory things are, and how it talks to us.

use std::arch::global_asm;
use std::mem::offset_of;
use std::slice;
use std::sync::atomic::{
    AtomicU32,
    AtomicU64,
    Ordering, //
};

use kvm_bindings::{
    kvm_regs,
    kvm_segment,
    kvm_sregs, //
};

/// All of its memory, identity-mapped.
pub(crate) const MEMORY: usize = 2 << 20;

const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const GDT: usize = 0x4000;
const TSS: usize = 0x4800;
const IDT: usize = 0x5000;
const CODE: usize = 0x8000;
const MAILBOXES: usize = 0xC000;
/// Of the first virtual CPU; the others follow.
const SHARED: usize = 0x10000;
const STACK: usize = 0x40000;
const STACK_SIZE: usize = 0x1000;
const SHARED_SIZE: usize = 0x2000;

/// Ports whose use ends the guest.
pub(crate) const PORT_STOPPED: u16 = 0x10;
pub(crate) const PORT_TRAPPED: u16 = 0x11;

/// Vectors that tests send.
pub(crate) const VECTORS: std::ops::RangeInclusive<u8> = 0x20..=0xFD;
/// Makes a guest look at its orders, and is not counted by anyone.
pub(crate) const KICK: u8 = 0xFE;

/// What a virtual CPU does between interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Mode {
    /// Reads this order, again and again.
    Spin = 0,
    /// Halts.
    Halt = 1,
    /// Masks interrupts, for most of the time.
    Mask = 2,
    /// Ends.
    Stop = 3,
    /// Masks interrupts all the time.
    Deaf = 4,
}

/// A page or two of its memory that a virtual CPU shares with us.
#[repr(C, align(4096))]
pub(crate) struct Shared {
    /// A [`Mode`].
    mode: AtomicU32,
    /// Whether its APIC is on.
    ready: AtomicU32,
    /// Whether interrupts are masked just now.
    masked: AtomicU32,
    /// Interrupts that came nevertheless.
    violations: AtomicU64,
    /// How often it was about to halt.
    halts: AtomicU64,
    /// Written to the interrupt command register by so many interrupts.
    forward: AtomicU64,
    turns: AtomicU64,
    /// Interrupts of each vector,
    counts: [AtomicU64; 256],
    /// and when the last of them came.
    stamps: [AtomicU64; 256],
}

const _: () = assert!(size_of::<Shared>() <= SHARED_SIZE);

/// `struct vrs_bypass_mailbox` of `selftests/kmod/vrs_bypass.h`, of which each vector has one,
/// whatever virtual CPU it interrupts.
#[derive(Debug)]
#[repr(C, align(32))]
pub(crate) struct Mailbox {
    posted: AtomicU64,
    seen: AtomicU64,
    stamp: AtomicU64,
    _unused: AtomicU64,
}

const _: () = assert!(size_of::<Mailbox>() == 32 && MAILBOXES + 256 * 32 <= SHARED);

impl Mailbox {
    /// Whether the guest has seen all that was posted.
    pub(crate) fn is_seen(&self) -> bool {
        self.seen.load(Ordering::SeqCst) == self.posted.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Shared {
    pub(crate) fn order(&self, mode: Mode) {
        self.mode.store(mode as u32, Ordering::SeqCst);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn forward(&self, command: u64, turns: u64) {
        self.forward.store(command, Ordering::SeqCst);
        self.turns.store(turns, Ordering::SeqCst);
    }

    pub(crate) fn count(&self, vector: u8) -> u64 {
        self.counts[usize::from(vector)].load(Ordering::SeqCst)
    }

    pub(crate) fn stamp(&self, vector: u8) -> u64 {
        self.stamps[usize::from(vector)].load(Ordering::SeqCst)
    }

    pub(crate) fn violations(&self) -> u64 {
        self.violations.load(Ordering::SeqCst)
    }

    pub(crate) fn halts(&self) -> u64 {
        self.halts.load(Ordering::SeqCst)
    }
}

// What it executes, with its `Shared` in R15 and the mailboxes in R14. An interrupt's vector is on the stack where it is
// counted: each of 256 entries of 16 bytes pushes its own.
global_asm!(
    r#"
    .pushsection .rodata.interrupts_guest, "a"
    .balign 16
    .globl interrupts_guest
interrupts_guest:
    mov     ecx, 0x80f              // Spurious interrupts have vector 0xff, and the APIC is on.
    xor     edx, edx
    mov     eax, 0x1ff
    wrmsr
    mov     dword ptr [r15 + {ready}], 1
    sti
2:  mov     eax, [r15 + {mode}]
    cmp     eax, 1
    je      3f
    cmp     eax, 2
    je      4f
    cmp     eax, 3
    je      6f
    cmp     eax, 4
    je      7f
    jmp     2b

3:  inc     qword ptr [r15 + {halts}]
    hlt
    jmp     2b

4:  cli
    mov     dword ptr [r15 + {masked}], 1
    mov     ecx, 500
5:  dec     ecx
    jnz     5b
    mov     dword ptr [r15 + {masked}], 0
    sti
    nop
    jmp     2b

6:  cli
    out     {stopped}, al
    jmp     6b

7:  cli
8:  cmp     dword ptr [r15 + {mode}], 4
    je      8b
    sti
    jmp     2b

interrupts_guest_trap:
    pop     rax
    out     {trapped}, al
    hlt

interrupts_guest_count:
    push    rax
    push    rcx
    push    rdx
    mov     rcx, [rsp + 24]
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    mov     [r15 + {stamps} + rcx * 8], rax
    inc     qword ptr [r15 + {counts} + rcx * 8]
    shl     rcx, 5
    mov     [r14 + rcx + {stamp}], rax
    mov     rax, [r14 + rcx + {posted}]
    mov     [r14 + rcx + {seen}], rax
    cmp     dword ptr [r15 + {masked}], 0
    je      2f
    inc     qword ptr [r15 + {violations}]
2:  xor     eax, eax                // End of interrupt.
    xor     edx, edx
    mov     ecx, 0x80b
    wrmsr
    cmp     qword ptr [r15 + {turns}], 0
    je      3f
    dec     qword ptr [r15 + {turns}]
    mov     eax, [r15 + {forward}]
    mov     edx, [r15 + {forward} + 4]
    mov     ecx, 0x830
    wrmsr
3:  pop     rdx
    pop     rcx
    pop     rax
    add     rsp, 8
    iretq

    .balign 16
    .globl interrupts_guest_vectors
interrupts_guest_vectors:
    .set    vector, 0
    .rept   256
    .balign 16
    .byte   0x68                    // push, with four bytes in any case
    .long   vector
    .if     vector < 32
    jmp     interrupts_guest_trap
    .else
    jmp     interrupts_guest_count
    .endif
    .set    vector, vector + 1
    .endr
    .balign 16
    .globl interrupts_guest_end
interrupts_guest_end:
    .popsection
"#,
    mode = const offset_of!(Shared, mode),
    ready = const offset_of!(Shared, ready),
    masked = const offset_of!(Shared, masked),
    violations = const offset_of!(Shared, violations),
    halts = const offset_of!(Shared, halts),
    forward = const offset_of!(Shared, forward),
    turns = const offset_of!(Shared, turns),
    posted = const offset_of!(Mailbox, posted),
    seen = const offset_of!(Mailbox, seen),
    stamp = const offset_of!(Mailbox, stamp),
    counts = const offset_of!(Shared, counts),
    stamps = const offset_of!(Shared, stamps),
    stopped = const PORT_STOPPED,
    trapped = const PORT_TRAPPED,
);

extern "C" {
    static interrupts_guest: u8;
    static interrupts_guest_vectors: u8;
    static interrupts_guest_end: u8;
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const interrupts_guest, &raw const interrupts_guest_end);
    // SAFETY: Both are in the same section, in this order; nothing writes to it.
    unsafe { slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Puts tables and code into the memory of a guest that has not started yet.
pub(crate) fn lay_out(memory: &mut [u8]) {
    let mut put = |at: usize, words: &[u64]| {
        for (index, word) in words.iter().enumerate() {
            memory[at + index * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
    };
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    put(PML4, &[PDPT as u64 | PRESENT_WRITABLE]);
    put(PDPT, &[PD as u64 | PRESENT_WRITABLE]);
    put(PD, &[PRESENT_WRITABLE | LARGE]);
    // Nothing, 64-bit code, data.
    put(GDT, &[0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]);
    let vectors = (&raw const interrupts_guest_vectors).addr();
    let first = CODE + (vectors - (&raw const interrupts_guest).addr());
    for vector in 0..256 {
        let entry = (first + vector * 16) as u64;
        // Present, an interrupt gate, to the code segment.
        let gate = (entry & 0xFFFF) | 8 << 16 | 0x8E << 40 | (entry >> 16 & 0xFFFF) << 48;
        put(IDT + vector * 16, &[gate, entry >> 32]);
    }
    memory[CODE..MAILBOXES][..code().len()].copy_from_slice(code());
}

/// Where in the guest's memory its `Shared` is.
pub(crate) fn shared(cpu: usize) -> usize {
    SHARED + cpu * SHARED_SIZE
}

/// Where in the guest's memory the [`Mailbox`] of a vector is.
pub(crate) fn mailbox(vector: u8) -> usize {
    MAILBOXES + usize::from(vector) * size_of::<Mailbox>()
}

/// The registers a virtual CPU starts with.
pub(crate) fn regs(cpu: usize) -> kvm_regs {
    kvm_regs {
        rip: CODE as u64,
        rsp: (STACK + (cpu + 1) * STACK_SIZE) as u64,
        r14: MAILBOXES as u64,
        r15: shared(cpu) as u64,
        rflags: 2,
        ..Default::default()
    }
}

/// Changes what a virtual CPU has after its creation to 64-bit mode and an x2APIC.
pub(crate) fn set_sregs(sregs: &mut kvm_sregs) {
    const CR0_PE_ET_NE_WP_PG: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    const APIC_X2APIC_ENABLED: u64 = 1 << 10 | 1 << 11;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    sregs.tr = kvm_segment {
        base: TSS as u64,
        limit: 0x67,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.ldt.unusable = 1;
    (sregs.gdt.base, sregs.gdt.limit) = (GDT as u64, 23);
    (sregs.idt.base, sregs.idt.limit) = (IDT as u64, 4095);
    sregs.cr0 = CR0_PE_ET_NE_WP_PG;
    sregs.cr3 = PML4 as u64;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    sregs.apic_base |= APIC_X2APIC_ENABLED;
}
