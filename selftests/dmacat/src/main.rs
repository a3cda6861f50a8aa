// SPDX-License-Identifier: GPL-2.0

//! Runs in a guest: cat for block devices, with nothing between the device and this process's own
//! memory, and with a look at where in the guest's physical memory that is.
//!
//! No page is transferred next to the one that follows it in physical memory. How many pieces a
//! transfer has, and so what the guest's driver needs for it, does not depend on what memory there was.

use std::cmp::Reverse;
use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    self,
    BufWriter,
    IoSlice,
    IoSliceMut,
    Read,
    Seek,
    SeekFrom,
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
/// What `readv()` takes at once.
const MOST_PAGES: usize = 1024;

fn main() -> Result<()> {
    let args = Args::parse();
    let length = usize::try_from(args.length * KIB)?;
    let step = usize::try_from(args.step.map_or(args.length, |step| step) * KIB)?;
    ensure!(length != 0 && step != 0, "there is nothing to read");
    ensure!(
        length % PAGE == 0 && step % PAGE == 0,
        "only whole pages of {PAGE} bytes can be read"
    );
    let step = (step / PAGE).min(MOST_PAGES);

    // One page more than needed, to begin at a page.
    let mut memory = vec![0; length + PAGE];
    let begin = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[begin..begin + length];
    // Now it is there.
    buffer.fill(0xff);
    let frames = frames(Path::new("/proc/self/pagemap"), buffer)?;
    let mut pages: Vec<_> = frames
        .iter()
        .copied()
        .zip(buffer.chunks_mut(PAGE))
        .collect();
    for chunk in pages.chunks_mut(step) {
        chunk.sort_by_key(|(frame, _)| Reverse(*frame));
    }

    let mut device = OpenOptions::new()
        .read(true)
        .write(args.copy_to.is_some())
        .custom_flags(libc::O_DIRECT)
        .open(&args.device)
        .with_context(|| args.device.display().to_string())?;
    device.seek(SeekFrom::Start(args.offset * KIB))?;
    for chunk in pages.chunks_mut(step) {
        let mut parts: Vec<_> = chunk
            .iter_mut()
            .map(|(_, page)| IoSliceMut::new(page))
            .collect();
        whole("read", parts.len(), device.read_vectored(&mut parts))?;
    }
    if let Some(place) = args.copy_to {
        device.seek(SeekFrom::Start(place * KIB))?;
        for chunk in pages.chunks(step) {
            let parts: Vec<_> = chunk.iter().map(|(_, page)| IoSlice::new(page)).collect();
            whole("write", parts.len(), device.write_vectored(&parts))?;
        }
        device.sync_all().context("flush")?;
    }

    let above = frames
        .iter()
        .filter(|frame| **frame * PAGE as u64 >= args.above)
        .count();
    eprintln!("{above} of {} pages above", frames.len());
    let mut out = BufWriter::new(io::stdout().lock());
    for (_, page) in &pages {
        out.write_all(page).context("standard output")?;
    }
    out.flush().context("standard output")
}

/// A transfer must have been of all its pages.
fn whole(what: &'static str, pages: usize, result: io::Result<usize>) -> Result<()> {
    let bytes = result.context(what)?;
    ensure!(
        bytes == pages * PAGE,
        "{what}: {bytes} bytes instead of {pages} pages"
    );
    Ok(())
}

/// The numbers of the physical pages that `buffer` occupies.
fn frames(pagemap: &Path, buffer: &[u8]) -> Result<Vec<u64>> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;

    let map = File::open(pagemap).with_context(|| pagemap.display().to_string())?;
    let mut entries = vec![0; buffer.len() / PAGE * size_of::<u64>()];
    let first = buffer.as_ptr().addr() / PAGE;
    map.read_exact_at(&mut entries, (first * size_of::<u64>()) as u64)
        .context("the page map")?;
    let frame = |entry: &[u8]| {
        let entry = u64::from_ne_bytes(entry.try_into()?);
        ensure!(entry & PRESENT != 0, "a page to read to is not there");
        // Who may not see frames sees zeroes.
        ensure!(
            entry & FRAME != 0,
            "frame numbers are hidden; is this root?"
        );
        Ok(entry & FRAME)
    };
    entries.chunks_exact(size_of::<u64>()).map(frame).collect()
}

fn hexadecimal(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
}
