// SPDX-License-Identifier: GPL-2.0

//! The life of a DMA mapping, from an empty container to an empty container.
//!
//! Read from top to bottom: [`main`] is the whole story, the functions below it are one ioctl
//! each.

use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process;
use std::ptr;

use anyhow::{
    ensure,
    Context,
    Result, //
};
use clap::Parser;
use type1_status::host::{
    Host,
    C_DRIVER, //
};
use vfio_bindings::bindings::vfio;

// The ioctls used here, counted from the first. The header has them as C macros, which bindings
// do not carry over.
const SET_IOMMU: u32 = 2;
const GROUP_SET_CONTAINER: u32 = 4;
const IOMMU_GET_INFO: u32 = 12;
const IOMMU_MAP_DMA: u32 = 13;
const IOMMU_UNMAP_DMA: u32 = 14;

/// Map memory for DMA through a VFIO type1 container, and show what happens.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI function bound to vfio-pci, for example 0000:00:03.0.
    device: String,

    /// Bytes to map.
    #[arg(long, default_value_t = 2 << 20)]
    size: u64,

    /// Address at which the device is to see the memory.
    #[arg(long, default_value_t = 16 << 20)]
    iova: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();

    // The IOMMU cannot tell all devices apart: what it can is a group, and a group is what a
    // process gets.
    let link = Path::new("/sys/bus/pci/devices")
        .join(&args.device)
        .join("iommu_group");
    let number = fs::read_link(&link).with_context(|| link.display().to_string())?;
    let number = number.file_name().context("no group number")?;
    let group = open(&Path::new("/dev/vfio").join(number))?;

    // A container is one DMA address space, for one group or for several.
    let container = open(Path::new("/dev/vfio/vfio"))?;
    let fd = container.as_raw_fd();
    ioctl(&group, GROUP_SET_CONTAINER, &raw const fd as usize)
        .context("VFIO_GROUP_SET_CONTAINER")?;

    // Only now does the kernel choose a driver: the one loaded last that offers this model.
    let model = vfio::VFIO_TYPE1v2_IOMMU as usize;
    ioctl(&container, SET_IOMMU, model).context("VFIO_SET_IOMMU")?;
    println!("served by {}", serving_driver()?);
    print_info(&container)?;

    let vaddr = anonymous_memory(args.size)?;
    map(&container, vaddr, args.iova, args.size)?;
    println!(
        "mapped {:#x} bytes at {:#x} to IOVA {:#x}",
        args.size, vaddr, args.iova
    );
    println!("locked memory now: {}", locked()?);

    let bytes = unmap(&container, args.iova, args.size)?;
    println!(
        "unmapped {bytes:#x} bytes, locked memory now: {}",
        locked()?
    );
    ensure!(bytes == args.size, "not all has been unmapped");
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// Issues a VFIO ioctl.
fn ioctl(file: &File, number: u32, arg: usize) -> io::Result<i32> {
    let request = u32::from(vfio::VFIO_TYPE) << 8 | (vfio::VFIO_BASE + number);
    // SAFETY: Each caller passes the number or the structure its ioctl takes; structures say how
    // long they are.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(request), arg) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ret)
}

/// Which of the drivers has taken the container on.
fn serving_driver() -> Result<String> {
    let report = Host::default().report()?.unwrap_or_default();
    let ours = report.owned_by(process::id()).next();
    Ok(match ours {
        Some(container) => format!("{}, container {}", container.driver, container.id),
        None => format!("{C_DRIVER}, as no other driver lists this process"),
    })
}

/// Prints what the IOMMU can do and which addresses it offers.
fn print_info(container: &File) -> Result<()> {
    let fixed = size_of::<vfio::vfio_iommu_type1_info>();

    // Asked with room for the fixed part, the kernel says how much all of it takes.
    let mut answer = vec![0u32; fixed / 4];
    for _ in 0..2 {
        answer[0] = 4 * answer.len() as u32;
        ioctl(container, IOMMU_GET_INFO, answer.as_mut_ptr() as usize)
            .context("VFIO_IOMMU_GET_INFO")?;
        answer.resize(answer[0] as usize / 4, 0);
    }
    let wide = |at: usize| u64::from(answer[at / 4]) | u64::from(answer[at / 4 + 1]) << 32;
    println!("page sizes {:#x}", wide(8));

    // Capabilities form a list: id and version, then the offset of the next.
    let mut at = answer[4] as usize;
    while at != 0 {
        let body = at + 8;
        match answer[at / 4] & 0xffff {
            vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                for n in 0..answer[body / 4] as usize {
                    let range = body + 8 + 16 * n;
                    println!("usable IOVA {:#x}-{:#x}", wide(range), wide(range + 8));
                }
            }
            vfio::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION => {
                println!("dirty bitmaps up to {:#x} bytes", wide(body + 16));
            }
            vfio::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                println!("room for {} mappings", answer[body / 4]);
            }
            other => println!("capability {other}"),
        }
        at = answer[at / 4 + 1] as usize;
    }
    Ok(())
}

/// New memory of this process, for as long as it lives.
fn anonymous_memory(size: u64) -> Result<u64> {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: The kernel picks a place where nothing is.
    let start = unsafe { libc::mmap(ptr::null_mut(), size as usize, prot, flags, -1, 0) };
    ensure!(start != libc::MAP_FAILED, io::Error::last_os_error());
    Ok(start.expose_provenance() as u64)
}

/// Pins the memory and enters it into the IOMMU's page table.
fn map(container: &File, vaddr: u64, iova: u64, size: u64) -> Result<()> {
    let arg = vfio::vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio::vfio_iommu_type1_dma_map>() as u32,
        flags: vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr,
        iova,
        size,
    };
    ioctl(container, IOMMU_MAP_DMA, &raw const arg as usize).context("VFIO_IOMMU_MAP_DMA")?;
    Ok(())
}

/// Takes the range away from the device, and returns how many bytes were mapped there.
fn unmap(container: &File, iova: u64, size: u64) -> Result<u64> {
    let mut arg = vfio::vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio::vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size,
        ..Default::default()
    };
    ioctl(container, IOMMU_UNMAP_DMA, &raw mut arg as usize).context("VFIO_IOMMU_UNMAP_DMA")?;
    Ok(arg.size)
}

/// What the kernel charges this process for pinned memory.
fn locked() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    Ok(line
        .context("no VmLck in /proc/self/status")?
        .trim()
        .to_owned())
}
