// SPDX-License-Identifier: GPL-2.0

//! The descriptor, as hardware lays it out.

/// A word of a descriptor, shared with other CPUs and with devices.
///
/// [`bits`](Self::bits) is a single access that promises no order. All others are atomic even for
/// an IOMMU, and full barriers: what comes before them in program order is seen by everybody before
/// what comes after. A locked instruction of x86 is both.
pub trait Word {
    /// Reads the word.
    fn bits(&self) -> u64;

    /// Sets bit `BIT`.
    fn set<const BIT: u32>(&self);

    /// Sets bit `bit` and says whether it was set.
    fn test_and_set(&self, bit: u32) -> bool;

    /// Clears bit `BIT` and says whether it was set.
    fn test_and_clear<const BIT: u32>(&self) -> bool;

    /// Replaces the eight bits above bit `SHIFT`, a multiple of eight.
    fn set_byte<const SHIFT: u32>(&self, byte: u8);

    /// Replaces the whole word and returns what it was.
    fn swap(&self, bits: u64) -> u64;

    /// Replaces the word if it still is `old`; if not, returns what it is.
    fn replace(&self, old: u64, new: u64) -> Result<(), u64>;
}

/// Where a notification goes: the field NDST, whose format depends on the mode of the APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ndst(u32);

impl Ndst {
    /// A CPU whose APIC is in xAPIC mode: the identifier is 8 bits wide, in bits 15:8.
    pub const fn xapic(id: u32) -> Self {
        Self((id << 8) & 0xff00)
    }

    /// A CPU whose APIC is in x2APIC mode.
    pub const fn x2apic(id: u32) -> Self {
        Self(id)
    }

    /// The field as it stands in the descriptor.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

const ON: u32 = 0;
const SN: u32 = 1;
const NV_SHIFT: u32 = 16;
const NDST_SHIFT: u32 = 32;

/// The control word: ON, SN, NV and NDST, which are always written together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control(u64);

impl Control {
    /// A control word from its bits.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Outstanding notification: somebody was notified and nobody has looked yet. While it is set
    /// nobody is notified again.
    pub const fn on(self) -> bool {
        self.0 & (1 << ON) != 0
    }

    /// Suppress notification: requests are recorded, nobody is notified.
    pub const fn sn(self) -> bool {
        self.0 & (1 << SN) != 0
    }

    /// Notification vector.
    pub const fn nv(self) -> u8 {
        (self.0 >> NV_SHIFT) as u8
    }

    /// Notification destination.
    pub const fn ndst(self) -> Ndst {
        Ndst((self.0 >> NDST_SHIFT) as u32)
    }

    /// The same with a notification outstanding.
    pub const fn with_on(self) -> Self {
        Self(self.0 | (1 << ON))
    }

    /// The same with notifications not suppressed.
    pub const fn without_sn(self) -> Self {
        Self(self.0 & !(1 << SN))
    }

    /// The same with another vector.
    pub const fn with_nv(self, nv: u8) -> Self {
        Self(self.0 & !(0xff << NV_SHIFT) | ((nv as u64) << NV_SHIFT))
    }

    /// The same with another destination.
    pub const fn with_ndst(self, ndst: Ndst) -> Self {
        Self(self.0 & !(0xffff_ffff << NDST_SHIFT) | ((ndst.0 as u64) << NDST_SHIFT))
    }
}

/// Number of words that hold the requests, one bit for each of 256 vectors.
pub const PIR_WORDS: usize = 4;

/// A posted-interrupt descriptor.
///
/// Intel SDM, volume 3, "Posted-Interrupt Processing"; Intel VT-d specification, "Posted Interrupt
/// Descriptor". Every access is atomic on its own; the order of accesses is what this crate is
/// about.
#[repr(C, align(64))]
pub struct Descriptor<W> {
    pir: [W; PIR_WORDS],
    control: W,
    reserved: [W; 3],
}

impl<W> Descriptor<W> {
    /// A descriptor of eight words, the first four of which are requests and the fifth is control.
    pub const fn new(pir: [W; PIR_WORDS], control: W, reserved: [W; 3]) -> Self {
        Self {
            pir,
            control,
            reserved,
        }
    }
}

impl<W: Word> Descriptor<W> {
    /// Reads the control word.
    pub fn control(&self) -> Control {
        Control(self.control.bits())
    }

    /// Is any interrupt requested?
    pub fn any_requested(&self) -> bool {
        self.pir.iter().any(|word| word.bits() != 0)
    }

    /// Requests the interrupt `vector` and says whether it was requested already.
    pub fn request(&self, vector: u8) -> bool {
        match self.pir.get(usize::from(vector >> 6)) {
            Some(word) => word.test_and_set(u32::from(vector & 63)),
            // Two bits index four words.
            None => false,
        }
    }

    /// Takes all requests out, word by word.
    pub fn take_requests(&self) -> [u64; PIR_WORDS] {
        let mut taken = [0; PIR_WORDS];
        for (word, taken) in self.pir.iter().zip(&mut taken) {
            // Most words are empty, and reading one leaves its cache line shared.
            if word.bits() != 0 {
                *taken = word.swap(0);
            }
        }
        taken
    }

    /// Sets ON.
    pub fn set_on(&self) {
        self.control.set::<ON>();
    }

    /// Sets ON and says whether it was set.
    pub fn test_and_set_on(&self) -> bool {
        self.control.test_and_set(ON)
    }

    /// Clears ON and says whether it was set.
    pub fn clear_on(&self) -> bool {
        self.control.test_and_clear::<ON>()
    }

    /// Sets SN.
    pub fn set_sn(&self) {
        self.control.set::<SN>();
    }

    /// Clears SN and says whether it was set.
    pub fn clear_sn(&self) -> bool {
        self.control.test_and_clear::<SN>()
    }

    /// Changes NV, and nothing else.
    pub fn set_nv(&self, nv: u8) {
        self.control.set_byte::<NV_SHIFT>(nv);
    }

    /// Changes the control word in one piece, and returns what it was.
    ///
    /// Devices and other CPUs set ON at any time, so a change is made to what the word is at that
    /// moment, or not at all.
    pub fn update(&self, change: impl Fn(Control) -> Control) -> Control {
        let mut old = self.control();
        loop {
            match self.replace(old, change(old)) {
                Ok(()) => return old,
                Err(now) => old = now,
            }
        }
    }

    /// Replaces the control word if it still is `old`; if not, returns what it is.
    pub fn replace(&self, old: Control, new: Control) -> Result<(), Control> {
        self.control.replace(old.0, new.0).map_err(Control)
    }
}
