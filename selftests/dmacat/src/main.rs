// SPDX-License-Identifier: GPL-2.0

//! Runs in a guest: cat for block devices, with nothing between the device and this process's own
//! memory, and with a look at where in the guest's physical memory that is.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Write, //
};
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

use anyhow::{
    ensure,
    Context,
    Result, //
};
use clap::Parser;

/// Read a part of a block device by direct I/O and write it to standard output.
///
/// Says on standard error how much of the memory that the device wrote to lies at or above an
/// address.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The block device.
    device: PathBuf,

    /// Where to begin, in KiB.
    #[arg(long, value_name = "KIB", default_value_t = 0)]
    offset: u64,

    /// How much to read, in KiB.
    #[arg(long, value_name = "KIB")]
    length: u64,

    /// How much to read at once, in KiB; everything if not given.
    #[arg(long, value_name = "KIB")]
    step: Option<u64>,

    /// Have the device write what was read to this place, in KiB.
    #[arg(long, value_name = "KIB")]
    copy_to: Option<u64>,

    /// Count memory from this physical address on.
    #[arg(long, value_name = "ADDRESS", default_value = "0", value_parser = hexadecimal)]
    above: u64,
}

const KIB: u64 = 1 << 10;
const PAGE: usize = 4096;

fn main() -> Result<()> {
    let args = Args::parse();
    let length = usize::try_from(args.length * KIB)?;
    let step = usize::try_from(args.step.map_or(args.length, |step| step) * KIB)?;
    ensure!(length != 0 && step != 0, "there is nothing to read");

    // One page more than needed, to begin at a page.
    let mut memory = vec![0; length + PAGE];
    let begin = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[begin..begin + length];

    let device = OpenOptions::new()
        .read(true)
        .write(args.copy_to.is_some())
        .custom_flags(libc::O_DIRECT)
        .open(&args.device)
        .with_context(|| args.device.display().to_string())?;
    for (chunk, offset) in buffer.chunks_mut(step).zip(offsets(args.offset, step)) {
        device.read_exact_at(chunk, offset).context("read")?;
    }
    if let Some(place) = args.copy_to {
        for (chunk, offset) in buffer.chunks(step).zip(offsets(place, step)) {
            device.write_all_at(chunk, offset).context("write")?;
        }
        device.sync_all().context("flush")?;
    }
    let (above, all) = pages_above(Path::new("/proc/self/pagemap"), buffer, args.above)?;
    eprintln!("{above} of {all} pages above");
    io::stdout().write_all(buffer).context("standard output")
}

/// Where on the device the chunks of a buffer are, in bytes.
fn offsets(kib: u64, step: usize) -> impl Iterator<Item = u64> {
    (kib * KIB..).step_by(step)
}

/// How many of the pages that `buffer` occupies lie at or above `floor`, and of how many.
fn pages_above(pagemap: &Path, buffer: &[u8], floor: u64) -> Result<(usize, usize)> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;

    let map = File::open(pagemap).with_context(|| pagemap.display().to_string())?;
    let pages = buffer.len() / PAGE;
    let mut entries = vec![0; pages * size_of::<u64>()];
    let first = buffer.as_ptr().addr() / PAGE;
    map.read_exact_at(&mut entries, (first * size_of::<u64>()) as u64)
        .context("the page map")?;
    let mut above = 0;
    for entry in entries.chunks_exact(size_of::<u64>()) {
        let entry = u64::from_ne_bytes(entry.try_into()?);
        ensure!(entry & PRESENT != 0, "a page that was read to is not there");
        // Who may not see frames sees zeroes.
        ensure!(
            entry & FRAME != 0,
            "frame numbers are hidden; is this root?"
        );
        above += usize::from((entry & FRAME) * PAGE as u64 >= floor);
    }
    Ok((above, pages))
}

fn hexadecimal(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
}
