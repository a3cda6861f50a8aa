// SPDX-License-Identifier: GPL-2.0

//! Memory is copied while devices write to it and groups and mappings come and go: in the end the
//! copy must be right.

use std::time::Instant;

use harness::check::{
    expect,
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::{
    Env,
    Model, //
};
use harness::memory::Memory;
use harness::soft::{
    Op,
    Session,
    What, //
};
use harness::tests;
use harness::vfio::{
    unmap_dirty_arg,
    DIRTY_CLEAR,
    DIRTY_GET_NOCLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW, //
};
use rand::rngs::ChaCha8Rng;
use rand::{
    RngExt,
    SeedableRng, //
};

use super::{
    expect_done,
    wait_pieces,
    IOVA, //
};

tests! {
    "migrate.manual", "a copy is right after rounds of NOCLEAR, CLEAR, copy" => manual;
    "migrate.atomic", "... and after rounds of GET, copy" => atomic;
    "migrate.storm", "... and while mappings and groups come and go" => storm;
    "migrate.lost", "a single lost dirty bit makes the copy wrong" => lost;
}

const ROUNDS: u64 = 1000;
const SLOTS: u64 = 6;
/// A mapping has fewer pages than its slot, so that there are holes.
const SLOT_PAGES: u64 = 128;
const SPAN: u64 = SLOTS * SLOT_PAGES * PAGE;
/// After so many rounds all is compared.
const EPOCH: u64 = 20;

/// A mapping and what was copied of its memory.
struct Slot {
    iova: u64,
    memory: Memory,
    image: Vec<u8>,
    mapped: bool,
}

impl Slot {
    fn pages(&self) -> u64 {
        self.memory.len() / PAGE
    }

    /// Copies a page; whether that was of any use.
    fn copy(&mut self, page: u64) -> bool {
        let now = self.memory.get(page * PAGE, PAGE);
        let old = &mut self.image[(page * PAGE) as usize..][..PAGE as usize];
        let useful = *old != now[..];
        old.copy_from_slice(&now);
        useful
    }

    /// The pages that differ from their copies.
    fn wrong(&self) -> Vec<u64> {
        let now = self.memory.get(0, self.memory.len());
        let pages = now
            .chunks(PAGE as usize)
            .zip(self.image.chunks(PAGE as usize));
        let wrong = (0..).zip(pages).filter(|(_, (now, image))| now != image);
        wrong.map(|(page, _)| page).collect()
    }
}

/// What is done in a round, out of a hundred.
struct Mix {
    manual: u32,
    atomic: u32,
    map: u32,
    tracked_group: u32,
    untracked_group: u32,
    restart: u32,
}

#[derive(Default)]
struct Counts {
    reported: u64,
    useless: u64,
    maps: u64,
    groups: u64,
    restarts: u64,
}

struct Migration {
    session: Session,
    /// What the session's devices are.
    devices: Vec<(&'static str, usize)>,
    slots: Vec<Slot>,
    random: ChaCha8Rng,
    /// What the device that starts next writes first; no other comes as far.
    content: u64,
    counts: Counts,
}

impl Migration {
    #[track_caller]
    fn begin(env: &Env, seed: u64) -> Verdict<Self> {
        let devices = vec![("dirty", 0)];
        let session = Session::with(env, Model::V2, &devices)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut slots = Vec::new();
        for n in 0..SLOTS {
            let pages = random.random_range(1..SLOT_PAGES / 7) * 7 + random.random_range(1..7);
            let memory = Memory::scattered(pages * PAGE)?;
            let iova = IOVA + n * SLOT_PAGES * PAGE;
            session
                .container
                .map(iova, memory.vaddr(), memory.len(), RW)?;
            slots.push(Slot {
                iova,
                image: vec![0; memory.len() as usize],
                memory,
                mapped: true,
            });
        }
        let mut this = Self {
            session,
            devices,
            slots,
            random,
            content: seed,
            counts: Counts::default(),
        };
        this.session.container.dirty(DIRTY_START)?;
        this.copy_all();
        this.resume()?;
        Ok(this)
    }

    /// Lets all devices write, each what was not written before.
    #[track_caller]
    fn resume(&mut self) -> Verdict {
        for engine in &self.session.engines {
            self.content += 1 << 32;
            engine.start(Op::Churn, IOVA, SPAN, self.content, 1)?;
        }
        Ok(())
    }

    #[track_caller]
    fn pause(&mut self) -> Verdict {
        for engine in &self.session.engines {
            engine.stop()?;
        }
        Ok(())
    }

    fn copy_all(&mut self) {
        for slot in &mut self.slots {
            slot.image = slot.memory.get(0, slot.memory.len());
        }
    }

    /// Copies what a bitmap says; its bit 0 is the slot's page `first`.
    fn copy(&mut self, slot: usize, first: u64, words: &[u64]) {
        let slot = &mut self.slots[slot];
        for (index, word) in (0u64..).zip(words) {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                let page = first + index * 64 + bit;
                if page < slot.pages() {
                    self.counts.reported += 1;
                    self.counts.useless += u64::from(!slot.copy(page));
                }
            }
        }
    }

    fn any_slot(&mut self) -> usize {
        self.random.random_range(0..SLOTS) as usize
    }

    /// Asks, clears some of what was dirty, and copies that.
    #[track_caller]
    fn manual(&mut self) -> Verdict {
        let at = self.any_slot();
        let Slot { iova, mapped, .. } = self.slots[at];
        if !mapped {
            return Ok(());
        }
        let pages = self.slots[at].pages();
        let container = &self.session.container;
        let mut words = vec![0; pages.div_ceil(64) as usize];
        container.dirty_range(DIRTY_GET_NOCLEAR, iova, pages * PAGE, &mut words)?;
        let first = self.random.random_range(0..pages);
        let count = self.random.random_range(1..=pages - first);
        let mut part = vec![0; count.div_ceil(64) as usize];
        for page in first..first + count {
            let set = words[(page / 64) as usize] >> (page % 64) & 1;
            part[((page - first) / 64) as usize] |= set << ((page - first) % 64);
        }
        let asked = part.clone();
        container.dirty_range(DIRTY_CLEAR, iova + first * PAGE, count * PAGE, &mut part)?;
        self.copy(at, first, &asked);
        Ok(())
    }

    /// Asks for one mapping or all, and copies.
    #[track_caller]
    fn atomic(&mut self) -> Verdict {
        if self.random.random_ratio(1, 4) {
            return self.atomic_all();
        }
        let at = self.any_slot();
        let mut words = [0; 2];
        let len = self.slots[at].memory.len();
        let iova = self.slots[at].iova;
        let container = &self.session.container;
        container.dirty_get(iova, len, &mut words[..len.div_ceil(64 * PAGE) as usize])?;
        self.copy(at, 0, &words);
        Ok(())
    }

    #[track_caller]
    fn atomic_all(&mut self) -> Verdict {
        let per_slot = (SLOT_PAGES / 64) as usize;
        let mut words = vec![0; SLOTS as usize * per_slot];
        self.session.container.dirty_get(IOVA, SPAN, &mut words)?;
        for (at, words) in words.chunks(per_slot).enumerate() {
            self.copy(at, 0, words);
        }
        Ok(())
    }

    /// Unmaps with a bitmap, or maps again.
    #[track_caller]
    fn map(&mut self) -> Verdict {
        self.counts.maps += 1;
        let at = self.any_slot();
        let Slot { iova, mapped, .. } = self.slots[at];
        let (vaddr, len) = (self.slots[at].memory.vaddr(), self.slots[at].memory.len());
        if !mapped {
            self.session.container.map(iova, vaddr, len, RW)?;
            let slot = &mut self.slots[at];
            slot.mapped = true;
            slot.image = slot.memory.get(0, len);
            return Ok(());
        }
        // What is written between the report and the end of the mapping is not reported.
        self.pause()?;
        let mut words = vec![0; len.div_ceil(64 * PAGE) as usize];
        let mut arg = unmap_dirty_arg(iova, len, &mut words);
        // SAFETY: The descriptor names `words` and no more.
        unsafe { self.session.container.unmap_dirty(&mut arg) }?;
        expect_eq("bytes unmapped", arg.unmap.size, len)?;
        self.slots[at].mapped = false;
        self.copy(at, 0, &words);
        expect_eq("wrong after unmapping", self.slots[at].wrong(), Vec::new())?;
        self.resume()
    }

    /// A group joins, or leaves if it is there.
    #[track_caller]
    fn group(&mut self, unit: &'static str, index: usize) -> Verdict {
        self.counts.groups += 1;
        match self
            .devices
            .iter()
            .position(|device| *device == (unit, index))
        {
            Some(place) => {
                self.devices.remove(place);
                self.session.remove(place)?;
            }
            None => {
                self.session.add(unit, index)??;
                self.devices.push((unit, index));
                self.content += 1 << 32;
                let engine = &self.session.engines[self.devices.len() - 1];
                engine.start(Op::Churn, IOVA, SPAN, self.content, 1)?;
            }
        }
        Ok(())
    }

    #[track_caller]
    fn restart(&mut self) -> Verdict {
        self.counts.restarts += 1;
        self.session.container.dirty(DIRTY_STOP)?;
        self.session.container.dirty(DIRTY_START)?;
        self.copy_all();
        Ok(())
    }

    #[track_caller]
    fn round(&mut self, mix: &Mix) -> Verdict {
        let mut dice = self.random.random_range(0..100u32);
        let mut falls = |share: u32| {
            let yes = dice < share;
            dice = dice.wrapping_sub(share);
            yes
        };
        if falls(mix.manual) {
            self.manual()
        } else if falls(mix.atomic) {
            self.atomic()
        } else if falls(mix.map) {
            self.map()
        } else if falls(mix.tracked_group) {
            self.group("dirty", 1)
        } else if falls(mix.untracked_group) {
            self.group("plain", 0)
        } else if falls(mix.restart) {
            self.restart()
        } else {
            Ok(())
        }
    }

    /// Copies what is left while no device writes, and finds the pages that are wrong, by slot.
    #[track_caller]
    fn wrong(&mut self) -> Verdict<Vec<(usize, u64)>> {
        self.atomic_all()?;
        let slots = self.slots.iter().enumerate();
        Ok(slots
            .flat_map(|(at, slot)| slot.wrong().into_iter().map(move |page| (at, page)))
            .collect())
    }
}

#[track_caller]
fn migrate(env: &Env, mix: &Mix) -> Verdict {
    let started = Instant::now();
    let mut migration = Migration::begin(env, 0x5eed)?;
    for round in 1..=ROUNDS {
        wait_pieces(migration.session.engine(), 2)?;
        migration.round(mix)?;
        if round % EPOCH == 0 {
            migration.pause()?;
            let wrong = migration.wrong()?;
            if !wrong.is_empty() {
                return Err(Stop::fail(format_args!(
                    "after round {round}: wrong (slot, page): {wrong:?}"
                )));
            }
            migration.resume()?;
        }
    }
    migration.pause()?;
    let Counts {
        reported,
        useless,
        maps,
        groups,
        restarts,
    } = migration.counts;
    println!(
        "# {ROUNDS} rounds in {:.1} s, seed 0x5eed: {reported} pages reported, {useless} of them unchanged; \
         {maps} maps and unmaps, {groups} joins and leaves, {restarts} restarts",
        started.elapsed().as_secs_f64()
    );
    expect("pages were dirty", reported > ROUNDS)
}

fn manual(env: &Env) -> Verdict {
    migrate(
        env,
        &Mix {
            manual: 100,
            atomic: 0,
            map: 0,
            tracked_group: 0,
            untracked_group: 0,
            restart: 0,
        },
    )
}

fn atomic(env: &Env) -> Verdict {
    migrate(
        env,
        &Mix {
            manual: 0,
            atomic: 100,
            map: 0,
            tracked_group: 0,
            untracked_group: 0,
            restart: 0,
        },
    )
}

fn storm(env: &Env) -> Verdict {
    migrate(
        env,
        &Mix {
            manual: 40,
            atomic: 25,
            map: 15,
            tracked_group: 10,
            untracked_group: 4,
            restart: 3,
        },
    )
}

/// The same, but one dirty bit goes missing after each comparison.
fn lost(env: &Env) -> Verdict {
    const TIMES: u64 = 20;
    let mut migration = Migration::begin(env, 0xbad)?;
    for time in 0..TIMES {
        for _ in 0..EPOCH {
            wait_pieces(migration.session.engine(), 1)?;
            migration.manual()?;
        }
        migration.pause()?;
        expect_eq("wrong", migration.wrong()?, Vec::new())?;
        let at = migration.any_slot();
        let page = migration
            .random
            .random_range(0..migration.slots[at].pages());
        let engine = migration.session.engine();
        engine.fail(What::Dirty, 1)?;
        let iova = migration.slots[at].iova + page * PAGE;
        expect_done("fill", engine.fill(iova, PAGE, !time, 1)?, PAGE)?;
        expect_eq("wrong", migration.wrong()?, vec![(at, page)])?;
        migration.copy_all();
        migration.resume()?;
    }
    migration.pause()
}
