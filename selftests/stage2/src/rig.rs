// SPDX-License-Identifier: GPL-2.0

//! A guest with a BAR, and what must be mapped to it.
//!
//! The rig foresees what each access and each change does to the stage-2 page table, and which
//! accesses fault. [`Rig::check`] compares that with what the kernel says.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use harness::check::{
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::Driver;
use harness::memory::Memory;
use harness::trace::Events;
use nix::errno::Errno;

use crate::bar::Bar;
use crate::dump::{
    merge,
    Run, //
};
use crate::guest::{
    self,
    Answer,
    Ask,
    Cpu,
    Slot,
    Vm, //
};
use crate::level::{
    Level,
    Path, //
};
use crate::provider;

/// Guest-physical address of the first slot of most tests.
pub(crate) const IPA: u64 = 64 << 30;

/// What the process may do at some of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read and write.
    Full,
    /// Read.
    Read,
    /// Neither, though there is a mapping.
    None,
    /// There is no mapping.
    Hole,
}

impl Access {
    fn allows(self, write: bool) -> bool {
        match self {
            Access::Full => true,
            Access::Read => !write,
            Access::None | Access::Hole => false,
        }
    }
}

/// A mapping of the process, cut where something was changed: such are never joined again.
#[derive(Debug, Clone)]
struct Part {
    range: Range<u64>,
    /// Where in the BAR it begins.
    offset: u64,
    access: Access,
}

/// Addresses of a process that lead to a BAR.
pub(crate) struct Window<'a> {
    pub(crate) bar: &'a Bar<'a>,
    pub(crate) memory: Memory,
    parts: Vec<Part>,
}

impl<'a> Window<'a> {
    /// Maps `len` bytes from `offset` on; see [`Bar::map`] for `skew`.
    #[track_caller]
    pub(crate) fn new(bar: &'a Bar<'a>, offset: u64, len: u64, skew: u64) -> Verdict<Self> {
        let memory = bar.map(offset, len, skew)?;
        let parts = vec![Part {
            range: memory.vaddr()..memory.vaddr() + len,
            offset,
            access: Access::Full,
        }];
        Ok(Window { bar, memory, parts })
    }

    /// Says that there is nothing behind the first `len` bytes any more.
    pub(crate) fn shorten(&mut self, len: u64) {
        let end = self.memory.vaddr() + len;
        let inside = self.cut(&(self.memory.vaddr()..end));
        self.parts.truncate(inside.end);
    }

    fn part(&self, hva: u64) -> Option<&Part> {
        self.parts.iter().find(|part| part.range.contains(&hva))
    }

    /// Cuts parts at the ends of a range and returns the indices of those inside.
    fn cut(&mut self, range: &Range<u64>) -> Range<usize> {
        for at in [range.start, range.end] {
            let inside = |part: &Part| part.range.start < at && at < part.range.end;
            if let Some(index) = self.parts.iter().position(inside) {
                let part = &mut self.parts[index];
                let mut tail = part.clone();
                tail.offset += at - part.range.start;
                tail.range.start = at;
                part.range.end = at;
                self.parts.insert(index + 1, tail);
            }
        }
        let begin = self.parts.partition_point(|p| p.range.start < range.start);
        let end = self.parts.partition_point(|p| p.range.start < range.end);
        begin..end
    }

    /// Makes `len` bytes at `at` accessible in another way; returns what was not already, as
    /// virtual addresses.
    #[track_caller]
    pub(crate) fn change(&mut self, at: u64, len: u64, access: Access) -> Verdict<Vec<Range<u64>>> {
        let write = libc::PROT_READ | libc::PROT_WRITE;
        match access {
            Access::Hole => self.memory.take_away(at, len)?,
            Access::Full => self.memory.protect(at, len, write)?,
            Access::Read => self.memory.protect(at, len, libc::PROT_READ)?,
            Access::None => self.memory.protect(at, len, libc::PROT_NONE)?,
        }
        let start = self.memory.vaddr() + at;
        let range = start..start + len;
        let others = self.parts.iter().filter(|part| part.access != access);
        let changed: Vec<_> = others
            .map(|part| part.range.start.max(range.start)..part.range.end.min(range.end))
            .filter(|range| !range.is_empty())
            .collect();
        for range in &changed {
            let inside = self.cut(range);
            for part in &mut self.parts[inside] {
                part.access = access;
            }
        }
        Ok(changed)
    }

    /// Maps `len` bytes of the BAR from `from` on to `at`.
    #[track_caller]
    pub(crate) fn remap(&mut self, at: u64, len: u64, from: u64) -> Verdict {
        let start = self.memory.vaddr() + at;
        let inside = self.cut(&(start..start + len));
        self.memory
            .put_region(at, len, &self.bar.device, self.bar.region, from)?;
        let whole = Part {
            range: start..start + len,
            offset: from,
            access: Access::Full,
        };
        self.parts.splice(inside, [whole]);
        Ok(())
    }
}

/// A leaf of the stage-2 page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaf {
    level: Level,
    writable: bool,
}

/// A guest with a BAR.
pub(crate) struct Rig<'a> {
    pub(crate) vm: Vm,
    pub(crate) cpu: Cpu,
    pub(crate) window: Window<'a>,
    slots: Vec<Slot>,
    /// By guest-physical address.
    leaves: BTreeMap<u64, Leaf>,
    faults: u64,
    events: Events,
    fresh: Cell<u64>,
}

impl<'a> Rig<'a> {
    /// A guest without a slot.
    #[track_caller]
    pub(crate) fn new(window: Window<'a>) -> Verdict<Self> {
        let vm = Vm::new()?;
        let mut cpu = vm.cpu(0)?;
        // All that is not about the BAR is over before it counts.
        expect_eq("an answer", cpu.ask(Ask::Read(0))?, first_word())?;
        Ok(Rig {
            vm,
            cpu,
            window,
            slots: Vec::new(),
            leaves: BTreeMap::new(),
            faults: 0,
            events: guest::faults()?,
            fresh: Cell::new(0x0123_4567_89ab_cdef),
        })
    }

    /// A guest with all of a window in one slot, at `ipa`.
    #[track_caller]
    pub(crate) fn with_slot(window: Window<'a>, ipa: u64) -> Verdict<Self> {
        let len = window.memory.len();
        let mut rig = Rig::new(window)?;
        rig.add(1, ipa, 0, len)?;
        Ok(rig)
    }

    /// A slot for `len` bytes at `at` of the window.
    pub(crate) fn slot(&self, id: u32, ipa: u64, at: u64, len: u64) -> Slot {
        Slot {
            id,
            flags: 0,
            ipa,
            hva: self.window.memory.vaddr() + at,
            size: len,
        }
    }

    /// Adds a slot for `len` bytes at `at` of the window.
    #[track_caller]
    pub(crate) fn add(&mut self, id: u32, ipa: u64, at: u64, len: u64) -> Verdict {
        let slot = self.slot(id, ipa, at, len);
        self.vm.set_slot(&slot)?;
        self.slots.push(slot);
        Ok(())
    }

    /// Deletes a slot.
    #[track_caller]
    pub(crate) fn delete(&mut self, id: u32) -> Verdict {
        let index = self.index(id)?;
        let slot = self.slots.remove(index);
        self.forget_ipa(slot.ipa..slot.ipa + slot.size);
        self.vm.set_slot(&Slot { size: 0, ..slot })?;
        Ok(())
    }

    /// Moves a slot.
    #[track_caller]
    pub(crate) fn move_to(&mut self, id: u32, ipa: u64) -> Verdict {
        let index = self.index(id)?;
        let slot = self.slots[index].clone();
        self.forget_ipa(slot.ipa..slot.ipa + slot.size);
        let moved = Slot { ipa, ..slot };
        self.vm.set_slot(&moved)?;
        self.slots[index] = moved;
        Ok(())
    }

    #[track_caller]
    fn index(&self, id: u32) -> Verdict<usize> {
        let mut slots = self.slots.iter();
        slots
            .position(|slot| slot.id == id)
            .ok_or_else(|| Stop::fail(format_args!("no slot {id}")))
    }

    /// Makes `len` bytes at `at` of the window accessible in another way.
    #[track_caller]
    pub(crate) fn change(&mut self, at: u64, len: u64, access: Access) -> Verdict {
        for range in self.window.change(at, len, access)? {
            self.forget_hva(range);
        }
        Ok(())
    }

    /// Maps `len` bytes of the BAR from `from` on to `at` of the window.
    #[track_caller]
    pub(crate) fn remap(&mut self, at: u64, len: u64, from: u64) -> Verdict {
        self.window.remap(at, len, from)?;
        self.forget_window(at, len);
        Ok(())
    }

    /// Expects `len` bytes at `at` of the window to be mapped no more.
    pub(crate) fn forget_window(&mut self, at: u64, len: u64) {
        let start = self.window.memory.vaddr() + at;
        self.forget_hva(start..start + len);
    }

    fn forget_hva(&mut self, range: Range<u64>) {
        let overlap = |slot: &Slot| {
            let begin = range.start.max(slot.hva);
            let end = range.end.min(slot.hva + slot.size);
            (begin < end).then(|| begin - slot.hva + slot.ipa..end - slot.hva + slot.ipa)
        };
        let gone: Vec<_> = self.slots.iter().filter_map(overlap).collect();
        for range in gone {
            self.forget_ipa(range);
        }
    }

    /// A leaf goes as a whole.
    fn forget_ipa(&mut self, range: Range<u64>) {
        self.leaves
            .retain(|&at, leaf| at + leaf.level.size() <= range.start || at >= range.end);
    }

    /// The virtual address behind a guest-physical one, and the slot.
    #[track_caller]
    fn hva(&self, ipa: u64) -> Verdict<(u64, &Slot)> {
        let mut slots = self.slots.iter();
        let slot = slots
            .find(|slot| (slot.ipa..slot.ipa + slot.size).contains(&ipa))
            .ok_or_else(|| Stop::fail(format_args!("{ipa:#x} is in no slot")))?;
        Ok((ipa - slot.ipa + slot.hva, slot))
    }

    /// Foresees what an access faults and maps; returns where in the BAR it arrives, or that it
    /// is refused.
    #[track_caller]
    fn foresee(&mut self, ipa: u64, write: bool) -> Verdict<Option<u64>> {
        let (hva, slot) = self.hva(ipa)?;
        let part = self.window.part(hva);
        let access = part.map_or(Access::Hole, |part| part.access);
        let covering = self.leaves.range(..=ipa).next_back();
        let mapped = covering
            .filter(|(at, leaf)| ipa - **at < leaf.level.size())
            .is_some_and(|(_, leaf)| leaf.writable || !write);
        let Some(part) = part.filter(|_| access.allows(write)) else {
            self.faults += 1;
            return Ok(None);
        };
        let arrives = hva - part.range.start + part.offset;
        if !mapped {
            let path = Path {
                slot: slot.hva..slot.hva + slot.size,
                ipa: slot.ipa,
                vma: part.range.clone(),
                pa: self.window.bar.base + part.offset,
            };
            let (start, level) = path.block(hva, provider::largest());
            let start = start - slot.hva + slot.ipa;
            let leaf = Leaf {
                level,
                writable: access == Access::Full,
            };
            self.forget_ipa(start..start + level.size());
            self.leaves.insert(start, leaf);
            self.faults += 1;
        }
        Ok(Some(arrives))
    }

    /// Expects so many faults which the rig cannot foresee.
    pub(crate) fn uncounted(&mut self, faults: u64) {
        self.faults += faults;
    }

    /// A word that was never used before.
    fn fresh(&self) -> u64 {
        let next = self
            .fresh
            .get()
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.fresh.set(next);
        next
    }

    /// Has the guest read a word.
    ///
    /// The C code does not notice that the process may not read: it maps a page all the same, or
    /// has the guest try again for ever if the page could be a part of a block. It is not asked.
    #[track_caller]
    pub(crate) fn read(&mut self, ipa: u64) -> Verdict {
        let (hva, _) = self.hva(ipa)?;
        let forbidden = self.window.part(hva).map(|part| part.access) == Some(Access::None);
        if forbidden && provider::current() == Driver::C {
            return Ok(());
        }
        let arrives = self.foresee(ipa, false)?;
        let word = self.fresh();
        if let Some(at) = arrives {
            self.window.bar.window.write(at, word);
        }
        let want = arrives.map_or(Answer::Refused(Errno::EFAULT), |_| Answer::Done(word));
        let got = self.cpu.ask(Ask::Read(ipa))?;
        expect_eq(format_args!("the guest reads {ipa:#x}"), got, want)
    }

    /// Has the guest write a word.
    #[track_caller]
    pub(crate) fn write(&mut self, ipa: u64) -> Verdict {
        let arrives = self.foresee(ipa, true)?;
        let word = self.fresh();
        let got = self.cpu.ask(Ask::Write(ipa, word))?;
        let what = format!("the guest writes {ipa:#x}");
        match arrives {
            // The answer to a write is its address.
            Some(at) => {
                expect_eq(&what, got, Answer::Done(ipa))?;
                expect_eq(what, self.window.bar.window.read::<u64>(at), word)
            }
            None => expect_eq(what, got, Answer::Refused(Errno::EFAULT)),
        }
    }

    /// Has the guest read and write a word.
    #[track_caller]
    pub(crate) fn access(&mut self, ipa: u64) -> Verdict {
        self.read(ipa)?;
        self.write(ipa)
    }

    /// What should be mapped.
    fn expected(&self) -> Vec<Run> {
        merge(self.leaves.iter().map(|(&at, leaf)| Run {
            range: at..at + leaf.level.size(),
            level: leaf.level,
            writable: leaf.writable,
        }))
    }

    /// Takes it that the kernel has unmapped more than it had to.
    #[track_caller]
    pub(crate) fn settle(&mut self) -> Verdict {
        let mapped = self.vm.mapped()?;
        self.leaves.retain(|&at, leaf| {
            mapped.iter().any(|run| {
                run.range.contains(&at) && (run.level, run.writable) == (leaf.level, leaf.writable)
            })
        });
        Ok(())
    }

    /// Checks what is mapped, and how often the guest faulted since the last check.
    #[track_caller]
    pub(crate) fn check(&mut self) -> Verdict {
        expect_eq("mapped in stage 2", self.vm.mapped()?, self.expected())?;
        let lines = self.events.take()?;
        let want = std::mem::take(&mut self.faults);
        if lines.len() as u64 != want {
            let text = lines.join("\n");
            return Err(Stop::fail(format_args!(
                "stage-2 faults: expected {want}, got {}\n{text}",
                lines.len()
            )));
        }
        Ok(())
    }

    /// Expects leaves of just these levels, whatever the rule says.
    #[track_caller]
    pub(crate) fn expect_levels(&self, want: &[(Range<u64>, Level)]) -> Verdict {
        let got: Vec<_> = self.vm.mapped()?;
        let got: Vec<_> = got.into_iter().map(|run| (run.range, run.level)).collect();
        expect_eq("mapped in stage 2", got.as_slice(), want)
    }
}

/// The answer to reading the first word of the guest's own memory, its first instructions.
fn first_word() -> Answer {
    // mrs x0, esr_el1; str x0, [x8, #8]
    Answer::Done(0xf900_0500_d538_5200)
}
