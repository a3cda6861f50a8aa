// SPDX-License-Identifier: GPL-2.0

//! What a driver answered, and the rules by which two answers are the same.

use std::collections::BTreeMap;
use std::fmt;

use nix::errno::Errno;

use crate::op::{
    Op,
    Step, //
};

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The value returned.
    Done(i64),
    /// The error returned.
    Refused(Errno),
    /// Nothing was asked, and why.
    Skipped(&'static str),
}

impl Outcome {
    /// From a value, or an errno as a negative number.
    pub(crate) fn from_raw(ret: i64) -> Self {
        match i32::try_from(-ret) {
            Ok(errno @ 1..) => Outcome::Refused(Errno::from_raw(errno)),
            _ => Outcome::Done(ret),
        }
    }

    pub(crate) fn is_done(self) -> bool {
        matches!(self, Outcome::Done(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(value) => write!(f, "{value}"),
            Outcome::Refused(errno) => write!(f, "{errno:?}"),
            Outcome::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

/// Bytes that are not what they were before, by their offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes(pub(crate) Vec<(u16, u8)>);

impl Changes {
    /// Compares memory before and after.
    pub(crate) fn between(before: &[u8], after: &[u8]) -> Self {
        let pairs = before.iter().zip(after).enumerate();
        Changes(
            pairs
                .filter(|(_, (before, after))| before != after)
                .map(|(at, (_, after))| (at as u16, *after))
                .collect(),
        )
    }

    fn get(&self, at: u16) -> Option<u8> {
        let index = self.0.binary_search_by_key(&at, |(at, _)| *at).ok()?;
        Some(self.0[index].1)
    }

    /// Offsets that are in one of two.
    fn offsets<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u16> + 'a {
        let only_other = other.0.iter().filter(|(at, _)| self.get(*at).is_none());
        self.0.iter().chain(only_other).map(|(at, _)| *at)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "as before");
        }
        let mut next = None;
        for (at, byte) in &self.0 {
            if next != Some(*at) {
                let gap = if next.is_some() { " " } else { "" };
                write!(f, "{gap}+{at:#x}:")?;
            }
            write!(f, "{byte:02x}")?;
            next = at.checked_add(1);
        }
        Ok(())
    }
}

/// The user's dirty bitmap after a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    /// What every byte was before.
    pub(crate) fill: u8,
    /// What the call changed.
    pub(crate) changes: Changes,
    /// Bits which C may set although no page is dirty, see [`compare`].
    pub(crate) unsure: BTreeMap<u16, u8>,
    /// The IOMMU tells Rust what is dirty; with C it is everything.
    pub(crate) told: bool,
}

impl Bits {
    fn at(&self, at: u16) -> u8 {
        self.changes.get(at).unwrap_or(self.fill)
    }
}

/// Pages an IOMMU translates: consecutive ones with the same rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) iova: u64,
    pub(crate) pages: u64,
    pub(crate) prot: u32,
    pub(crate) flags: u32,
    /// Digest of what is at the beginning of each page; nothing if there is a larger leaf, of which
    /// one sees the first page only.
    pub(crate) content: Option<u64>,
}

impl View {
    /// How large leaves are depends on what memory the kernel had.
    fn same(&self, other: &View) -> bool {
        let key = |view: &View| (view.iova, view.pages, view.prot, view.flags);
        let contents = self.content.zip(other.content);
        key(self) == key(other) && contents.is_none_or(|(one, other)| one == other)
    }
}

/// Everything a step left behind that a user can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) outcome: Outcome,
    /// Pages charged to the parent and to the child.
    pub(crate) locked: [u32; 2],
    /// What became of the argument.
    pub(crate) argument: Changes,
    pub(crate) bitmap: Option<Bits>,
    /// Anything else: bytes copied, counters of devices, results of what was done to go on.
    pub(crate) data: Vec<u64>,
    /// What IOMMUs translate.
    pub(crate) views: Vec<Vec<View>>,
    /// Mappings that an IOMMU which joins cannot address.
    pub(crate) outside: bool,
    /// The range cuts a mapping in two.
    pub(crate) cuts: bool,
}

impl Record {
    pub(crate) fn new(outcome: Outcome) -> Self {
        Record {
            outcome,
            locked: [0; 2],
            argument: Changes::default(),
            bitmap: None,
            data: Vec::new(),
            views: Vec::new(),
            outside: false,
            cuts: false,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; VmLck {:?} pages", self.outcome, self.locked)?;
        if !self.argument.0.is_empty() {
            write!(f, "; argument {}", self.argument)?;
        }
        if let Some(bits) = &self.bitmap {
            write!(f, "; bitmap {}", bits.changes)?;
        }
        if !self.data.is_empty() {
            write!(f, "; data {:x?}", self.data)?;
        }
        for view in &self.views {
            write!(f, "; IOMMU [")?;
            for run in view {
                write!(
                    f,
                    " {:#x}+{} prot {} flags {:x} content {:x?}",
                    run.iova, run.pages, run.prot, run.flags, run.content
                )?;
            }
            write!(f, " ]")?;
        }
        Ok(())
    }
}

/// Differences that Documentation/uapi-parity.md lists, and how often they were met.
pub(crate) type Masked = BTreeMap<&'static str, u64>;

/// What is different, if anything is that should not be.
pub(crate) fn compare(
    step: Option<&Step>,
    c: &Record,
    rust: &Record,
    masked: &mut Masked,
) -> Option<&'static str> {
    if c.outcome != rust.outcome {
        match intended(step, c, rust) {
            Some(why) => *masked.entry(why).or_default() += 1,
            None => return Some("result"),
        }
    }
    if c.locked != rust.locked {
        return Some("locked memory");
    }
    if c.argument != rust.argument {
        return Some("argument");
    }
    match (&c.bitmap, &rust.bitmap) {
        (None, None) => {}
        // How far it was written to before the fault.
        (Some(one), Some(other)) if c.outcome == Outcome::Refused(Errno::EFAULT) => {
            if one.changes != other.changes {
                *masked
                    .entry("bitmap that could not be written")
                    .or_default() += 1;
            }
        }
        (Some(c), Some(rust)) => match bitmaps_differ(c, rust) {
            Difference::None => {}
            Difference::Intended => *masked.entry("bits behind a mapping").or_default() += 1,
            Difference::Told => {
                *masked
                    .entry("pages that the IOMMU knows are clean")
                    .or_default() += 1
            }
            Difference::Real => return Some("bitmap"),
        },
        _ => return Some("bitmap"),
    }
    if c.data != rust.data {
        return Some("data");
    }
    let same = |c: &[View], rust: &[View]| {
        c.len() == rust.len() && c.iter().zip(rust).all(|(c, rust)| c.same(rust))
    };
    let views = || c.views.iter().zip(&rust.views);
    if c.views.len() != rust.views.len() || !views().all(|(c, rust)| same(c, rust)) {
        return Some("the IOMMU's view");
    }
    None
}

/// Results that may differ.
fn intended(step: Option<&Step>, c: &Record, rust: &Record) -> Option<&'static str> {
    use Outcome::Refused;
    match (&step?.op, c.outcome, rust.outcome) {
        // C looks at the range before it looks at the page size.
        (
            Op::Unmap {
                flags: 1,
                iova,
                size,
                bitmap: Some(bitmap),
                ..
            },
            Refused(Errno::EOVERFLOW),
            Refused(Errno::EINVAL),
        ) if !bitmap.pgsize.is_power_of_two()
            && size
                .checked_sub(1)
                .is_some_and(|rest| iova.checked_add(rest).is_none()) =>
        {
            Some("page size that is no power of two, and a range that wraps")
        }
        // C finds out when the IOMMU driver refuses to map, with ERANGE here, and pins before that,
        // which fails if memory is missing or the limit is reached.
        (
            Op::SetContainer { .. },
            Refused(Errno::ERANGE | Errno::EFAULT | Errno::ENOMEM),
            Refused(Errno::EINVAL),
        ) if rust.outside => Some("mapping that an IOMMU which joins cannot address"),
        (
            Op::CheckExtension {
                extension: MANUAL_CLEAR,
                ..
            },
            Outcome::Done(0),
            Outcome::Done(1),
        ) => Some("VFIO_DIRTY_LOG_MANUAL_CLEAR"),
        // GET_BITMAP in the place of CLEAR_BITMAP cuts no mapping and writes where that reads.
        (
            Op::Dirty {
                flags: CLEAR_BITMAP,
                ..
            },
            Refused(Errno::EINVAL | Errno::EFAULT),
            Outcome::Done(_) | Refused(Errno::EFAULT),
        ) if rust.cuts || c.outcome == Refused(Errno::EFAULT) => {
            Some("CLEAR_BITMAP where GET_BITMAP is refused")
        }
        _ => None,
    }
}

const MANUAL_CLEAR: u64 = harness::vfio::DIRTY_LOG_MANUAL_CLEAR as u64;
const CLEAR_BITMAP: u32 = harness::vfio::DIRTY_CLEAR;

enum Difference {
    None,
    Intended,
    Told,
    Real,
}

/// C overwrites bits that belong to no mapping, with zeroes or with what an earlier report left in
/// its buffer, and so may show pages as dirty that are not.
fn bitmaps_differ(c: &Bits, rust: &Bits) -> Difference {
    let mut difference = Difference::None;
    for at in c.changes.offsets(&rust.changes) {
        let (c_byte, rust_byte) = (c.at(at), rust.at(at));
        if c_byte == rust_byte {
            continue;
        }
        let unsure = c.unsure.get(&at).copied().unwrap_or(0);
        let lost = rust_byte & !c_byte;
        if c.told && lost & !unsure == 0 {
            difference = Difference::Told;
            continue;
        }
        if (c_byte ^ rust_byte) & !unsure != 0 || (c.fill == 0 && lost != 0) {
            return Difference::Real;
        }
        difference = Difference::Intended;
    }
    difference
}
