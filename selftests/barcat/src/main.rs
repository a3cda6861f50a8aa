// SPDX-License-Identifier: GPL-2.0

//! Runs in a guest and outside of it: writes to a BAR, and tells whether it holds what someone else
//! wrote.

use std::fs::OpenOptions;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::ptr::NonNull;

use anyhow::{
    bail,
    ensure,
    Context,
    Result, //
};
use clap::{
    Parser,
    ValueEnum, //
};
use nix::sys::mman::{
    mmap,
    munmap,
    MapFlags,
    ProtFlags, //
};

/// Write to the memory of a PCI device, or compare it.
///
/// One word of 8 bytes is written at each step. It depends on its place and on the seed, so that a
/// word in the wrong place is noticed.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// What to do.
    action: Action,

    /// A resource of a PCI device in sysfs.
    resource: PathBuf,

    /// What the words depend on.
    #[arg(long)]
    seed: u64,

    /// Bytes from one word to the next.
    #[arg(long, default_value_t = 4096)]
    step: usize,
}

#[derive(ValueEnum, Clone, Copy)]
enum Action {
    /// Write all words.
    Fill,
    /// Compare all words.
    Check,
}

/// A BAR in this process.
struct Bar {
    start: NonNull<u64>,
    size: usize,
}

impl Bar {
    fn map(args: &Args) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&args.resource)
            .with_context(|| args.resource.display().to_string())?;
        let size = usize::try_from(file.metadata()?.len())?;
        let length = NonZeroUsize::new(size).context("the resource is empty")?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping takes nothing away.
        let start = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, &file, 0) }
            .with_context(|| format!("mmap of {}", args.resource.display()))?;
        Ok(Self {
            start: start.cast(),
            size,
        })
    }

    /// The places of words, each with what belongs there.
    fn words(&self, args: &Args) -> impl Iterator<Item = (usize, *mut u64, u64)> {
        let (start, seed) = (self.start, args.seed);
        (0..self.size).step_by(args.step).map(move |offset| {
            // SAFETY: The mapping is larger than any of the offsets, which are multiples of 8.
            let place = unsafe { start.byte_add(offset) };
            (offset, place.as_ptr(), mix(seed ^ offset as u64))
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: Nobody has a pointer into it any more.
        let _ = unsafe { munmap(self.start.cast(), self.size) };
    }
}

/// Spreads the bits of a number over all others: the end of SplitMix64.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.step != 0 && args.step % 8 == 0, "words are 8 bytes");
    let bar = Bar::map(&args)?;

    let mut words = 0;
    for (offset, place, wanted) in bar.words(&args) {
        match args.action {
            // SAFETY: Within the mapping and aligned; a device may change it, hence volatile.
            Action::Fill => unsafe { place.write_volatile(wanted) },
            Action::Check => {
                // SAFETY: As above.
                let found = unsafe { place.read_volatile() };
                if found != wanted {
                    bail!("at {offset:#x}: got {found:#x}, wanted {wanted:#x}");
                }
            }
        }
        words += 1;
    }
    let done = match args.action {
        Action::Fill => "written",
        Action::Check => "as wanted",
    };
    writeln!(std::io::stdout(), "{words} words {done}")?;
    Ok(())
}
