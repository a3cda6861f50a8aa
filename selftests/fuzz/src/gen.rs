// SPDX-License-Identifier: GPL-2.0

//! Makes sequences out of random numbers: valid, nearly valid and hostile ones.
//!
//! The generator does not know what a driver will answer. It remembers what it has asked for, so
//! that later calls hit what is there, or miss it by a page or a byte.

use harness::vfio::PAGE;
use rand::rngs::ChaCha8Rng;
use rand::seq::{
    IndexedRandom,
    SliceRandom, //
};
use rand::{
    Rng,
    RngExt,
    SeedableRng, //
};

use crate::exec::SLOTS;
use crate::layout::{
    arena,
    ARENA_PAGES,
    BITMAP,
    KERNEL,
    ZONE, //
};
use crate::op::{
    Bitmap,
    Kind,
    Op,
    Place,
    Sequence,
    Step,
    Unit,
    Who, //
};

const MIB: u64 = 1 << 20;
const V1: u64 = 1;
const V2: u64 = 3;

/// Pages of the window of addresses in which most ranges of a sequence lie.
const SPAN: u64 = 192;

/// Where ranges lie that every IOMMU can translate, or nearly.
const BASES: [u64; 10] = [
    0,
    0,
    16 * MIB,
    16 * MIB,
    1 << 30,
    (1 << 32) - SPAN / 2 * PAGE,
    // Where software IOMMUs have reserved something.
    (256 << 20) - SPAN / 2 * PAGE,
    0x4000_0000 - SPAN / 2 * PAGE,
    0xfee0_0000 - SPAN / 2 * PAGE,
    // Where the narrow one ends.
    (1 << 39) - SPAN / 2 * PAGE,
];

/// Where others end, and the last addresses of all.
const HIGH_BASES: [u64; 3] = [
    (1 << 48) - SPAN / 2 * PAGE,
    0u64.wrapping_sub(SPAN * PAGE),
    0u64.wrapping_sub(SPAN / 2 * PAGE),
];

/// What the machine offers to sequences.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) units: Vec<Unit>,
}

/// A range that was mapped.
#[derive(Debug, Clone, Copy)]
struct Range {
    iova: u64,
    size: u64,
    /// Its user address was taken away.
    invalid: bool,
}

impl Range {
    fn last(self) -> u64 {
        self.iova.wrapping_add(self.size.wrapping_sub(1))
    }
}

/// A sequence in the making.
struct Maker<'a> {
    random: ChaCha8Rng,
    offer: &'a Offer,
    steps: Vec<Step>,
    /// What is mapped by container, if all went as it should.
    ranges: [Vec<Range>; SLOTS],
    /// What drivers have pinned, as `(device, iova, pages)`.
    pins: Vec<(Unit, u64, u32)>,
    /// Where most ranges of this sequence lie.
    base: u64,
    /// Devices this sequence uses.
    units: Vec<Unit>,
    /// Whether there is a second container.
    two: bool,
    /// Whether there are processes.
    processes: bool,
    /// Whether limits are set.
    limits: bool,
    /// Whether tracking of dirty pages is what this is about.
    dirty: bool,
    /// How many calls of a hundred are wrong on purpose.
    malice: u32,
    /// Whether the next call is wrong on purpose.
    wicked: bool,
    who: Who,
}

/// Makes the sequence with a number.
pub(crate) fn sequence(seed: u64, index: u64, offer: &Offer) -> Sequence {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(index);
    let mut maker = Maker::new(random, offer);
    maker.begin();
    let len = match maker.random.random_range(0..10u32) {
        0..3 => maker.random.random_range(5..20),
        3..8 => maker.random.random_range(20..70),
        _ => maker.random.random_range(70..160u32),
    };
    for _ in 0..len {
        maker.next();
    }
    Sequence {
        seed,
        index,
        steps: maker.steps,
    }
}

impl<'a> Maker<'a> {
    fn new(mut random: ChaCha8Rng, offer: &'a Offer) -> Self {
        let units = pick_units(&mut random, offer);
        let limited = units
            .iter()
            .any(|unit| !unit.emulated() && unit.kind() != "wide");
        let base = if limited && !random.random_ratio(1, 20) {
            choose(&mut random, &BASES)
        } else {
            choose(
                &mut random,
                &[&BASES[..], &HIGH_BASES, &HIGH_BASES].concat(),
            )
        };
        let two = units.len() > 1 && random.random_ratio(1, 4);
        let processes = random.random_ratio(1, 8);
        let limits = random.random_ratio(1, 4);
        let dirty = random.random_ratio(1, 3);
        let malice = *[0, 5, 10, 10, 25, 60].choose(&mut random).unwrap_or(&10);
        Maker {
            units,
            random,
            offer,
            steps: Vec::new(),
            ranges: [const { Vec::new() }; SLOTS],
            pins: Vec::new(),
            base,
            two,
            processes,
            limits,
            dirty,
            malice,
            wicked: false,
            who: Who::Parent,
        }
    }

    fn push(&mut self, op: Op) {
        self.steps.push(Step { who: self.who, op });
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    /// Whether to be malicious about the next argument.
    fn evil(&mut self) -> bool {
        self.wicked && self.one_in(3)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.random_range(0..from.len())]
    }

    /// The usual way from nothing to a container in which something can be mapped; now and then
    /// with a step missing, or in another order.
    fn begin(&mut self) {
        if self.limits && self.one_in(2) {
            let limit = self.pick(&[0, 1, 2, 3, 5, 8, u32::MAX]);
            self.push(Op::EntryLimit { limit });
        }
        if self.limits && self.one_in(2) {
            self.memlock();
            self.push(Op::IpcLock { on: false });
        }
        if self.one_in(12) {
            self.push(Op::HugePages { on: false });
        }
        let model = match self.random.random_range(0..20u32) {
            0..3 => V1,
            3 if self.malice > 0 => self.hostile_model(),
            _ => V2,
        };
        let containers = if self.two { 2 } else { 1 };
        for c in 0..containers {
            self.push(Op::Open { c });
        }
        let units = self.units.clone();
        for (n, unit) in units.iter().copied().enumerate() {
            let c = u8::from(self.two && n % 2 == 1);
            let late = n >= usize::from(containers) && self.one_in(2);
            if !self.one_in(40) {
                self.push(Op::OpenGroup { unit });
            }
            if !late && !self.one_in(40) {
                self.push(Op::SetContainer { unit, c });
            }
        }
        for c in 0..containers {
            if !self.one_in(40) {
                self.push(Op::SetIommu { c, model });
            }
        }
        for unit in units {
            if !self.one_in(10) {
                self.push(Op::OpenDevice { unit });
            }
        }
        if self.processes && !self.one_in(4) {
            self.push(Op::Fork);
        }
    }

    fn hostile_model(&mut self) -> u64 {
        self.pick(&[
            0,
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            0xffff_ffff,
            u64::MAX,
            1 << 32 | 3,
        ])
    }

    fn next(&mut self) {
        self.who = Who::Parent;
        if self.processes && self.one_in(2) {
            self.who = Who::Child;
        }
        self.wicked = self.random.random_ratio(self.malice, 100);
        match self.random.random_range(0..100u32) {
            0..30 => self.map(),
            30..48 => self.unmap(),
            48..58 => {
                if self.dirty {
                    self.dirty();
                } else {
                    self.map();
                }
            }
            58..75 => self.driver(),
            75..79 => self.ask(),
            79..90 => self.memory(),
            90..97 => self.groups(),
            _ => self.scene(),
        }
    }

    fn container(&mut self) -> u8 {
        if self.two {
            self.random.random_range(0..2)
        } else {
            u8::from(self.malice > 0 && self.one_in(200))
        }
    }

    fn unit(&mut self) -> Unit {
        if self.one_in(60) {
            let units = &self.offer.units;
            return *units.choose(&mut self.random).unwrap_or(&Unit(0));
        }
        *self.units.choose(&mut self.random).unwrap_or(&Unit(0))
    }

    /// A device whose driver pins pages, if this sequence has one; else any.
    fn pinning_unit(&mut self) -> Unit {
        let deaf = self.one_in(20);
        let emulated: Vec<_> = self
            .units
            .iter()
            .copied()
            .filter(|unit| unit.emulated() && (deaf || !unit.name().ends_with("deaf")))
            .collect();
        if emulated.is_empty() || self.one_in(30) {
            return self.unit();
        }
        self.pick(&emulated)
    }

    fn place(&mut self, size: u16) -> Place {
        if !self.evil() || !self.one_in(4) {
            return Place::Memory;
        }
        match self.random.random_range(0..8u32) {
            0..2 => Place::ReadOnly,
            2..6 => Place::Edge(self.random.random_range(0..size + 4)),
            6 => Place::Null,
            _ => Place::Kernel,
        }
    }

    fn argsz(&mut self, right: u32) -> u32 {
        if !self.evil() {
            return right;
        }
        let near = self.random.random_range(0..right + 24);
        self.pick(&[0, 8, 16, right - 1, right + 1, near, near, 4096, u32::MAX])
    }

    fn flags(&mut self, right: u32) -> u32 {
        if !self.evil() {
            return right;
        }
        let bit = 1 << self.random.random_range(0..32u32);
        let low = self.random.random_range(0..16);
        self.pick(&[0, low, low, low, right ^ bit, u32::MAX])
    }

    /// A small number of pages, in bytes.
    fn length(&mut self) -> u64 {
        let pages = match self.random.random_range(0..12u32) {
            0..4 => 1,
            4..9 => self.random.random_range(1..9),
            9..11 => self.random.random_range(9..34),
            _ => self.random.random_range(34..130),
        };
        pages * PAGE
    }

    /// An address near those of this sequence.
    fn address(&mut self) -> u64 {
        if self.evil() {
            let odd = self.pick(&[1, 8, 0x7ff, 0x800, 0xfff]);
            let any = self.random.next_u64();
            return self.pick(&[
                0,
                1,
                PAGE,
                u64::MAX,
                u64::MAX - PAGE + 1,
                u64::MAX - 2 * PAGE + 1,
                1 << 63,
                (1 << 63) - PAGE,
                1 << 48,
                self.base.wrapping_add(odd),
                any,
                any & !(PAGE - 1),
            ]);
        }
        let page = self.random.random_range(0..SPAN);
        self.base.wrapping_add(page * PAGE)
    }

    /// A range that has to do with one that was asked for, or not.
    fn range(&mut self, c: u8) -> (u64, u64) {
        let known = self.known(c);
        let Some(Range { iova, size, .. }) = known.filter(|_| !self.one_in(6)) else {
            let size = if self.evil() {
                self.hostile_size()
            } else {
                self.length()
            };
            return (self.address(), size);
        };
        let page = PAGE;
        match self.random.random_range(0..20u32) {
            0..10 => (iova, size),
            10 => (iova, size.wrapping_add(page)),
            11 => (iova, size.wrapping_sub(page)),
            12 => (iova.wrapping_sub(page), size.wrapping_add(page)),
            13 => (iova.wrapping_add(page), size.wrapping_sub(page)),
            14 => (iova.wrapping_sub(page), size.wrapping_add(2 * page)),
            15 => (iova.wrapping_add(size), self.length()),
            16 => {
                let len = self.length();
                (iova.wrapping_sub(len), len)
            }
            17 => (self.base, SPAN * page),
            18 => {
                // From here to the last address of all.
                (iova, 0u64.wrapping_sub(iova))
            }
            _ if self.evil() => {
                let odd = self.pick(&[1, 0x800, u64::MAX, 0u64.wrapping_sub(0x800)]);
                if self.one_in(2) {
                    (iova.wrapping_add(odd), size)
                } else {
                    (iova, size.wrapping_add(odd))
                }
            }
            _ => (iova, page),
        }
    }

    /// A range where nothing is mapped, if one is found soon.
    fn free_range(&mut self, c: u8) -> (u64, u64) {
        let mut range = (self.address(), self.length());
        for _ in 0..4 {
            let last = range.0.saturating_add(range.1 - 1);
            if self.overlapping(c, range.0, last) == 0 {
                break;
            }
            range = (self.address(), self.length());
        }
        range
    }

    fn hostile_size(&mut self) -> u64 {
        let to_the_end = 0u64.wrapping_sub(self.base);
        self.pick(&[
            0,
            1,
            0x800,
            PAGE + 1,
            1 << 30,
            1 << 39,
            1 << 43,
            (1 << 43) - PAGE,
            1 << 48,
            1 << 63,
            0u64.wrapping_sub(PAGE),
            u64::MAX,
            to_the_end,
            to_the_end.wrapping_add(PAGE),
        ])
    }

    fn vaddr(&mut self) -> u64 {
        if self.evil() {
            let odd = self.pick(&[1, 0x800]);
            return self.pick(&[
                0,
                arena(0) + odd,
                arena(ARENA_PAGES),
                arena(ARENA_PAGES - 1),
                u64::MAX,
                u64::MAX - PAGE + 1,
                KERNEL & !(PAGE - 1),
                1 << 47,
            ]);
        }
        // Mostly memory that can be pinned.
        let page = match self.random.random_range(0..10u32) {
            0..7 => self.random.random_range(0..4 * ZONE),
            _ => self.random.random_range(0..ARENA_PAGES),
        };
        arena(page)
    }

    fn map(&mut self) {
        let c = self.container();
        let invalid = self.ranges[usize::from(c)]
            .iter()
            .any(|range| range.invalid);
        if self.one_in(if invalid { 2 } else { 40 }) {
            return self.update_vaddr(c);
        }
        let (iova, mut size) = if self.one_in(5) {
            self.range(c)
        } else {
            self.free_range(c)
        };
        let vaddr = self.vaddr();
        if self.evil() && self.one_in(3) {
            size = self.hostile_size();
        }
        let prot = self.pick(&[3, 3, 3, 3, 1, 1, 2]);
        let flags = self.flags(prot);
        let argsz = self.argsz(32);
        let place = self.place(32);
        self.push(Op::Map {
            c,
            argsz,
            flags,
            vaddr,
            iova,
            size,
            place,
        });
        let range = Range {
            iova,
            size,
            invalid: false,
        };
        let aligned = (iova | vaddr | size) % PAGE == 0;
        let wraps = size == 0 || range.last() < iova;
        if aligned && !wraps && flags == prot && self.overlapping(c, iova, range.last()) == 0 {
            self.ranges[usize::from(c)].push(range);
        }
    }

    /// A range that is mapped.
    fn known(&mut self, c: u8) -> Option<Range> {
        self.ranges[usize::from(c)]
            .choose(&mut self.random)
            .copied()
    }

    /// How many ranges have an address in one.
    fn overlapping(&self, c: u8, first: u64, last: u64) -> usize {
        let overlaps = |range: &&Range| range.iova <= last && range.last() >= first;
        self.ranges[usize::from(c)].iter().filter(overlaps).count()
    }

    fn update_vaddr(&mut self, c: u8) {
        let (mut iova, mut size) = self.range(c);
        let invalid = self.ranges[usize::from(c)]
            .iter_mut()
            .find(|range| range.invalid);
        if let Some(range) = invalid.filter(|_| self.random.random_ratio(5, 6)) {
            (iova, size) = (range.iova, range.size);
            range.invalid = false;
        }
        let vaddr = self.vaddr();
        let flags = self.flags(4);
        let place = self.place(32);
        self.push(Op::Map {
            c,
            argsz: 32,
            flags,
            vaddr,
            iova,
            size,
            place,
        });
    }

    fn unmap(&mut self) {
        let c = self.container();
        let (mut iova, mut size) = self.range(c);
        let right = match self.random.random_range(0..20u32) {
            0 => 2,
            1..3 => 4,
            3 => 6,
            4..8 if self.dirty => 1,
            _ => 0,
        };
        if right & 2 != 0 && !self.evil() {
            (iova, size) = (0, 0);
        }
        let flags = self.flags(right);
        let bitmap = (flags & 1 != 0).then(|| self.bitmap(size));
        let argsz = self.argsz(if flags & 1 != 0 { 48 } else { 24 });
        let place = self.place(if flags & 1 != 0 { 48 } else { 24 });
        if place == Place::Memory {
            self.unmapped(c, flags, iova, size);
        }
        self.push(Op::Unmap {
            c,
            argsz,
            flags,
            iova,
            size,
            bitmap,
            place,
        });
    }

    /// Remembers what an unmap will do if all is as it should be.
    fn unmapped(&mut self, c: u8, flags: u32, iova: u64, size: u64) {
        let (first, last) = if flags & 2 != 0 {
            (0, u64::MAX)
        } else {
            (iova, iova.saturating_add(size.saturating_sub(1)))
        };
        let inside = |range: &Range| range.iova >= first && range.last() <= last;
        let ranges = &mut self.ranges[usize::from(c)];
        if flags & 4 == 0 {
            ranges.retain(|range| !inside(range));
            self.pins
                .retain(|(_, iova, _)| *iova < first || *iova > last);
        } else if !self.units.iter().any(|unit| unit.emulated()) {
            let inside = ranges.iter_mut().filter(|range| inside(range));
            inside.for_each(|range| range.invalid = true);
        }
    }

    fn bitmap(&mut self, size: u64) -> Bitmap {
        let mut bitmap = Bitmap {
            pgsize: PAGE,
            size: (size / PAGE).div_ceil(64).saturating_mul(8),
            data: BITMAP.addr + 8 * self.random.random_range(0..16u64),
            fill: if self.one_in(8) { 0xff } else { 0 },
        };
        if self.evil() {
            bitmap.pgsize = self.pick(&[0, 1, 0x800, 0x1800, 2 * PAGE, 2 * MIB, 1 << 63, u64::MAX]);
        }
        if self.evil() {
            let right = bitmap.size;
            bitmap.size = self.pick(&[
                0,
                1,
                right.wrapping_sub(1),
                right.wrapping_add(8),
                1 << 28,
                (1 << 28) + 1,
                u64::MAX,
            ]);
        }
        if self.evil() {
            bitmap.data = self.pick(&[
                0,
                BITMAP.addr + 3,
                BITMAP.end() - 8,
                BITMAP.end() - 4,
                BITMAP.end(),
                KERNEL,
                u64::MAX,
                u64::MAX - 7,
            ]);
        }
        bitmap
    }

    fn dirty(&mut self) {
        let c = self.container();
        let right = match self.random.random_range(0..12u32) {
            0..4 => 1,
            4 => 2,
            10 => 8,
            11 => 16,
            _ => 4,
        };
        let flags = self.flags(right);
        let (iova, size) = self.range(c);
        let bitmap = (flags & 28 != 0 || self.one_in(10)).then(|| self.bitmap(size));
        let size_of = if bitmap.is_some() { 48 } else { 8 };
        let argsz = self.argsz(size_of);
        let place = self.place(size_of as u16);
        self.push(Op::Dirty {
            c,
            argsz,
            flags,
            iova,
            size,
            bitmap,
            place,
        });
    }

    /// An address within a range that was asked for, mostly.
    fn inside(&mut self, c: u8) -> u64 {
        let known = self.known(c);
        match known.filter(|_| !self.one_in(10)) {
            Some(Range { iova, size, .. }) => {
                let pages = (size / PAGE).clamp(1, 256);
                let first = self.one_in(3);
                let page = self.random.random_range(0..pages);
                iova.wrapping_add(if first { 0 } else { page * PAGE })
            }
            None => self.address(),
        }
    }

    /// The container which a device was put into at first.
    fn home(&self, unit: Unit) -> u8 {
        let place = self.units.iter().position(|other| *other == unit);
        u8::from(self.two && place.is_some_and(|place| place % 2 == 1))
    }

    /// Pages a driver has pinned, if it has.
    fn pinned(&mut self) -> Option<(Unit, u64, u32)> {
        let pin = self.pins.choose(&mut self.random).copied();
        pin.filter(|_| !self.one_in(6))
    }

    fn driver(&mut self) {
        let unit = self.pinning_unit();
        if !unit.emulated() {
            return self.dma(unit);
        }
        let c = self.home(unit);
        let iova = self.inside(c);
        match self.random.random_range(0..20u32) {
            0..8 => {
                let mut pages = self.pick(&[1, 1, 1, 2, 3, 5, 8]);
                let here = |range: &&Range| range.iova <= iova && range.last() >= iova;
                let range = self.ranges[usize::from(c)].iter().find(here);
                if let Some(left) = range.map(|range| (range.last() - iova) / PAGE + 1) {
                    // Seldom beyond the end.
                    if !self.one_in(8) {
                        pages = pages.min(left.min(8) as u32);
                    }
                }
                if self.evil() {
                    pages =
                        self.pick(&[0, 1, 64, 511, 512, 513, i32::MAX as u32, 1 << 31, u32::MAX]);
                }
                let mut prot = self.pick(&[3, 3, 1, 2]);
                if self.evil() {
                    prot = self.pick(&[0, 4, 7, 8, 1 << 31, u32::MAX]);
                }
                let iova = if self.evil() { iova | 0x10 } else { iova };
                if pages < 9 {
                    self.pins.push((unit, iova, pages));
                }
                self.push(Op::Pin {
                    unit,
                    iova,
                    pages,
                    prot,
                });
            }
            8..12 => {
                let some = self.random.random_range(1..5);
                let (unit, iova, mut pages) = self.pinned().unwrap_or((unit, iova, some));
                if self.evil() {
                    pages = self.pick(&[0, 64, 512, 513, u32::MAX]);
                }
                self.push(Op::Unpin { unit, iova, pages });
            }
            12..18 => {
                let len = match self.random.random_range(0..10u32) {
                    0..5 => self.random.random_range(1..200),
                    5..9 => self.random.random_range(1..4 * 4096),
                    _ => self.pick(&[0, 1, 4096, 4097, 8192]),
                };
                let offset = self.random.random_range(0..PAGE);
                let (write, kthread) = (self.one_in(2), self.one_in(4));
                let byte = self.random.random_range(1..=255);
                self.push(Op::Rw {
                    unit,
                    iova: iova.wrapping_add(offset),
                    len,
                    write,
                    kthread,
                    byte,
                });
            }
            _ => {
                let byte = self.random.random_range(1..=255);
                let (unit, iova, _) = self.pinned().unwrap_or((unit, iova, 0));
                self.push(Op::Fill { unit, iova, byte });
            }
        }
    }

    fn dma(&mut self, unit: Unit) {
        let c = self.home(unit);
        let iova = self.inside(c);
        let len = self.length();
        let write = self.one_in(2);
        let seed = self.random.next_u64();
        self.push(Op::Dma {
            unit,
            iova,
            len,
            write,
            seed,
        });
    }

    fn ask(&mut self) {
        let c = self.container();
        match self.random.random_range(0..10u32) {
            0..4 => {
                let right = self.pick(&[16, 24, 72, 88, 104, 120, 4096]);
                let argsz = if self.one_in(3) {
                    self.random.random_range(0..160)
                } else {
                    self.argsz(right)
                };
                let place = self.place(100);
                self.push(Op::GetInfo { c, argsz, place });
            }
            4..7 => {
                let extension = if self.evil() {
                    self.hostile_model()
                } else {
                    self.random.random_range(0..13)
                };
                self.push(Op::CheckExtension { c, extension });
            }
            7 => self.push(Op::ApiVersion { c }),
            8 => {
                let model = self.hostile_model();
                self.push(Op::SetIommu { c, model });
            }
            _ => {
                // Calls of this type that type1 has no answer to, and such that are not VFIO's.
                const KNOWN: [u32; 7] = [0, 1, 2, 12, 13, 14, 17];
                let number = self.random.random_range(0..40u32);
                let number = if KNOWN.contains(&number) { 20 } else { number };
                let size = self.pick(&[0, 0, 0, 0xc020_0000, 0x8010_0000]);
                let cmd = size | u32::from(b';') << 8 | (100 + number);
                let arg = self.random.next_u64();
                self.push(Op::Unknown { c, cmd, arg });
            }
        }
    }

    fn memory(&mut self) {
        let page = self.random.random_range(0..ARENA_PAGES);
        let pages = self.random.random_range(1..24);
        match self.random.random_range(0..20u32) {
            0..4 => {
                let kind = self.pick(&[
                    Kind::Anon,
                    Kind::Anon,
                    Kind::AnonRo,
                    Kind::NoAccess,
                    Kind::Shared,
                    Kind::SharedRo,
                    Kind::FilePrivate,
                    Kind::FileRo,
                    Kind::DeviceMemory,
                ]);
                self.push(Op::Mmap { page, pages, kind });
            }
            4..7 => self.push(Op::Munmap { page, pages }),
            7..10 => {
                let prot = self.random.random_range(0..4);
                self.push(Op::Mprotect { page, pages, prot });
            }
            10..12 => self.push(Op::Discard { page, pages }),
            12..16 => {
                let byte = self.random.random_range(1..=255);
                self.push(Op::Touch { page, byte });
            }
            _ => self.push(Op::Peek { page }),
        }
    }

    fn groups(&mut self) {
        let unit = self.unit();
        let c = self.container();
        match self.random.random_range(0..12u32) {
            0..2 => self.push(Op::OpenDevice { unit }),
            2 => self.push(Op::CloseDevice { unit }),
            3 => {
                self.push(Op::CloseDevice { unit });
                self.push(Op::UnsetContainer { unit });
            }
            4..7 => {
                self.push(Op::OpenGroup { unit });
                self.push(Op::SetContainer { unit, c });
                if self.one_in(2) {
                    self.push(Op::OpenDevice { unit });
                }
            }
            7 => self.push(Op::UnsetContainer { unit }),
            8 => self.push(Op::CloseGroup { unit }),
            9 => {
                let model = self.pick(&[V1, V2, V2]);
                self.push(Op::SetIommu { c, model });
            }
            10 => self.push(Op::SetContainer { unit, c }),
            _ => {
                // From one container to another.
                self.push(Op::CloseDevice { unit });
                self.push(Op::UnsetContainer { unit });
                self.push(Op::SetContainer { unit, c });
                self.push(Op::SetIommu { c, model: V2 });
                self.push(Op::OpenDevice { unit });
            }
        }
    }

    fn memlock(&mut self) {
        let pages = self.random.random_range(0..48u64);
        let odd = if self.one_in(4) { 0x800 } else { 0 };
        self.push(Op::Memlock {
            bytes: pages * PAGE + odd,
        });
    }

    fn scene(&mut self) {
        if self.one_in(3) {
            return self.push(Op::CountPins);
        }
        if self.limits && self.one_in(2) {
            if self.one_in(2) {
                self.memlock();
            }
            let on = self.one_in(3);
            return self.push(Op::IpcLock { on });
        }
        if self.processes {
            self.who = Who::Parent;
            return match self.random.random_range(0..8u32) {
                0..5 => self.push(Op::Fork),
                5 => self.push(Op::Exec),
                _ => self.push(Op::Exit),
            };
        }
        if self.one_in(8) {
            let c = self.container();
            self.push(Op::Close { c });
            return self.push(Op::Open { c });
        }
        self.ask();
    }
}

fn choose(random: &mut ChaCha8Rng, from: &[u64]) -> u64 {
    from[random.random_range(0..from.len())]
}

/// Some of the devices, most often few.
fn pick_units(random: &mut ChaCha8Rng, offer: &Offer) -> Vec<Unit> {
    let (emulated, iommu): (Vec<Unit>, Vec<Unit>) = offer
        .units
        .iter()
        .copied()
        .partition(|unit| unit.emulated());
    let (many_emulated, many_iommu) = match random.random_range(0..10u32) {
        0..3 => (2, 0),
        3 => (4, 0),
        4..6 => (0, 1),
        6 => (0, 3),
        7 => (1, 1),
        _ => (2, 2),
    };
    let mut units = Vec::new();
    for (from, many) in [(&iommu, many_iommu), (&emulated, many_emulated)] {
        for _ in 0..many {
            let unit = from.choose(random).copied();
            units.extend(unit.filter(|unit| !units.contains(unit)));
        }
    }
    if units.is_empty() {
        units.extend(offer.units.choose(random).copied());
    }
    // Those that come last may join late, when something is mapped.
    units.shuffle(random);
    units
}
