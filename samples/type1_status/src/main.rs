// SPDX-License-Identifier: GPL-2.0

//! Shows which driver serves which VFIO type1 container.

#![forbid(unsafe_code)]

use std::io::{
    self,
    Write, //
};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use type1_status::host::{
    Driver,
    Host,
    Listing,
    Status,
    User,
    C_DRIVER,
    RUST_DRIVER, //
};
use type1_status::report::Container;

/// Show which driver serves which VFIO type1 container, and what it has mapped.
///
/// Two drivers can be loaded at once, and the kernel falls back from one to the other without a
/// word. Run as root to see all processes and debugfs.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,

    /// Repeat every SECONDS (2 if not given) until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<f64>,

    /// Print at most N mappings of each container; 0 prints all.
    #[arg(long, value_name = "N", default_value_t = 16)]
    mappings: usize,

    /// Look for proc and sys below this directory.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let host = Host::at(&args.root);
    let period = args
        .watch
        .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.1)))
        .transpose()?;

    loop {
        let mut out = Vec::new();
        let status = host.status()?;
        if args.json {
            serde_json::to_writer_pretty(&mut out, &status)?;
            writeln!(out)?;
        } else {
            if period.is_some() {
                // Home and clear: redraw in place.
                write!(out, "\x1b[H\x1b[2J")?;
            }
            print(&mut out, &status, args.mappings)?;
        }
        match io::stdout().write_all(&out) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }

        match period {
            Some(period) => thread::sleep(period),
            None => return Ok(()),
        }
    }
}

fn print(out: &mut impl Write, status: &Status, most: usize) -> Result<()> {
    writeln!(out, "DRIVERS")?;
    for driver in &status.drivers {
        print_driver(out, driver)?;
    }
    if let Some(served) = &status.served {
        writeln!(out, "  served since load: {}", served.replace('\n', ", "))?;
    }

    writeln!(out, "\nCONTAINERS")?;
    match &status.containers {
        Listing::Known(report) => {
            if report.containers.is_empty() {
                writeln!(out, "  none on {RUST_DRIVER}")?;
            }
            for container in &report.containers {
                print_container(out, container, &status.users, most)?;
            }
        }
        Listing::Unknown(why) => writeln!(out, "  none known: {why}")?,
    }
    for user in status.users.iter().filter(|user| user.containers > 0) {
        if !is_owner(status, user.pid) {
            writeln!(
                out,
                "  {} (pid {})  {}",
                user.comm,
                user.pid,
                guess(status, user)
            )?;
            print_limit(out, user)?;
        }
    }

    writeln!(out, "\nPROCESSES")?;
    for user in &status.users {
        let groups: Vec<_> = user.groups.iter().map(String::as_str).collect();
        writeln!(
            out,
            "  {} (pid {}): {} container, groups [{}], {} device files",
            user.comm,
            user.pid,
            user.containers,
            groups.join(" "),
            user.devices
        )?;
    }
    if status.users.is_empty() {
        writeln!(out, "  none with a VFIO file open")?;
    }
    Ok(())
}

fn print_driver(out: &mut impl Write, driver: &Driver) -> Result<()> {
    let state = match (driver.loaded, driver.references) {
        (false, _) => "not loaded".to_owned(),
        (true, None) => "built in".to_owned(),
        (true, Some(0)) => "loaded, idle".to_owned(),
        (true, Some(n)) => format!("loaded, {n} in use"),
    };
    write!(out, "  {:<17} {state}", driver.name)?;
    if let Some(limit) = driver.dma_entry_limit {
        write!(out, ", dma_entry_limit {limit}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn print_container(
    out: &mut impl Write,
    container: &Container,
    users: &[User],
    most: usize,
) -> Result<()> {
    let owner = container.owner.as_ref().map_or("no owner".to_owned(), |o| {
        format!("{} (pid {})", o.comm, o.pid)
    });
    writeln!(
        out,
        "  {owner}  container {} on {} ({})",
        container.id, container.driver, container.model
    )?;

    for domain in &container.domains {
        let groups: Vec<_> = domain.groups.iter().map(u32::to_string).collect();
        writeln!(
            out,
            "    domain: groups {} ({})",
            groups.join(" "),
            domain.properties
        )?;
    }
    writeln!(
        out,
        "    page sizes {}, dirty tracking {}",
        container.page_sizes.join(" "),
        container.dirty_tracking
    )?;
    if let Some(entries) = container.entries {
        let all = entries.used + entries.left;
        writeln!(out, "    mappings {} of {all}", entries.used)?;
    }
    if let Some(owner) = &container.owner {
        if let Some(user) = users.iter().find(|user| user.pid == owner.pid) {
            print_limit(out, user)?;
        }
    }
    for range in &container.iova {
        writeln!(out, "    iova {:#018x}-{:#018x}", range.first, range.last)?;
    }

    let shown = if most == 0 { usize::MAX } else { most };
    for mapping in container.mappings.iter().take(shown) {
        let leaves: Vec<_> = mapping
            .iopte
            .iter()
            .map(|leaf| format!("{} x {}", leaf.size, leaf.count))
            .collect();
        let pinned = mapping.pinned_pages.map(|n| format!("pinned {n}"));
        let details: Vec<_> = pinned
            .into_iter()
            .chain([leaves.join(", ")])
            .chain(mapping.notes.iter().cloned())
            .filter(|text| !text.is_empty())
            .collect();
        writeln!(
            out,
            "    map  {:#018x}-{:#018x} {} {:>9}  {}",
            mapping.iova.first,
            mapping.iova.last,
            mapping.prot,
            human(mapping.size),
            details.join("  ")
        )?;
    }
    let hidden = container.mappings.len().saturating_sub(shown);
    if hidden > 0 {
        writeln!(out, "    ... and {hidden} more (--mappings 0 shows all)")?;
    }
    for line in &container.other {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

fn print_limit(out: &mut impl Write, user: &User) -> Result<()> {
    let limit = user.lock_limit.map_or("unlimited".to_owned(), human);
    let locked = user.locked.map_or("?".to_owned(), human);
    writeln!(out, "    locked memory {locked}, RLIMIT_MEMLOCK {limit}")?;
    Ok(())
}

fn is_owner(status: &Status, pid: u32) -> bool {
    matches!(&status.containers, Listing::Known(report) if report.owned_by(pid).next().is_some())
}

/// What can be said of a process which the Rust driver does not know.
///
/// A container file may be shared by several processes, or have no IOMMU model yet, so only the
/// reference count of the C driver gives a hint.
fn guess(status: &Status, user: &User) -> &'static str {
    let c_in_use = status
        .drivers
        .iter()
        .any(|driver| driver.name == C_DRIVER && driver.loaded && driver.references != Some(0));

    match (&status.containers, c_in_use) {
        _ if user.groups.is_empty() && user.devices == 0 => "container with no group",
        (Listing::Known(_), true) => "not a container of vfio_type1_rs: vfio_iommu_type1 (C)",
        (Listing::Known(_), false) => "shares another process's container, or has set no model",
        (Listing::Unknown(_), true) => "vfio_iommu_type1 (C)",
        (Listing::Unknown(_), false) => "no driver seen in use",
    }
}

/// A byte count in the largest unit that keeps it readable.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    let scaled = bytes >> (10 * unit);

    if bytes & ((1 << (10 * unit)) - 1) == 0 {
        format!("{scaled} {}", UNITS[unit as usize])
    } else {
        let tenths = (u128::from(bytes) * 10) >> (10 * unit);
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (655_360, "640 KiB"),
            (2 << 20, "2 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
