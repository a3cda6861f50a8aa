// SPDX-License-Identifier: GPL-2.0

//! Copies memory while a device writes to it, as live migration does.
//!
//! [`migrate`](migrate::migrate) is what a VMM would do.

#![forbid(unsafe_code)]

mod bitmap;
mod check;
mod cost;
mod device;
mod guest;
mod migrate;
mod plot;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{
    ensure,
    Result, //
};
use clap::{
    Parser,
    Subcommand, //
};
use harness::cli::Options;
use harness::env::{
    Env,
    Pci, //
};
use harness::memory::MIB;
use harness::vfio::PAGE;
use indicatif::{
    ProgressBar,
    ProgressStyle, //
};

use bitmap::WORD;
use device::Load;
use guest::Guest;
use migrate::Plan;
use plot::Series;
use report::Migration;

/// Copy memory while a device writes to it, as live migration does, and compare.
///
/// Maps memory through a VFIO type1 container, starts to track dirty pages, and copies in rounds:
/// first everything, then what became dirty meanwhile, until that is little or the rounds are used
/// up. Then it stops the device, copies the rest, and compares the copy with the memory. The device
/// is one of selftests/kmod/vrs_iommu.ko, behind an IOMMU made of software that can track.
///
/// Exits with 0 if the copy equals the memory, converged or not, and with 1 if not.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    args: Args,

    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Draw the rounds, too.
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,

    /// Take a PCI function bound to vfio-pci, for example 0000:00:03.0, which is left alone: it
    /// writes nothing. Shows whether its IOMMU tracks, and what that costs.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "lose_bit")]
    device: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Draw the rounds of several migrations.
    Plot {
        /// What --json printed, or a test that ran `dirty_log check`.
        #[arg(required = true)]
        results: Vec<PathBuf>,

        /// The picture.
        #[arg(short, long, value_name = "SVG")]
        output: PathBuf,
    },
    /// Measure the calls, by the IOMMU's pages and by how many of them are dirty.
    ///
    /// With ordinary memory, mapped by as large pages as it happens to allow unless the driver's
    /// parameter disable_hugepages is Y, and with a device's frames in a row, mapped by pages of
    /// 2 MiB. Each time is the shortest of some.
    Cost {
        /// Memory in MiB.
        #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(4..))]
        memory: u64,

        /// Map ordinary memory so many times, at different addresses.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        times: u64,

        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Check what comes of it with each driver, and print KTAP.
    Check {
        #[command(flatten)]
        options: Options,
    },
}

#[derive(clap::Args)]
struct Args {
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    memory: u64,

    /// Mappings the memory is in.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=256))]
    mappings: u64,

    /// Pages, at random places, that the device writes to for each hundred that are copied.
    #[arg(long, value_name = "PAGES", default_value_t = 40)]
    writes: u64,

    /// Part of the memory these places are in.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100))]
    working_set: u64,

    /// Pages the device writes to without a pause.
    #[arg(long, value_name = "PAGES", default_value_t = 32)]
    hot: u64,

    /// What the link to the other side carries, in MiB/s; 0 for as much as there is.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    bandwidth: u64,

    /// Stop the device when no more of the memory is dirty.
    #[arg(long, value_name = "PERCENT", default_value_t = 1)]
    enough: u64,

    /// Stop the device after so many rounds at the latest.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Pages to clear by one call, right before they are copied; a multiple of 64.
    #[arg(long, value_name = "PAGES", default_value_t = 64, value_parser = window)]
    window: u64,

    /// Do not use VFIO_DIRTY_LOG_MANUAL_CLEAR even if the driver has it.
    #[arg(long)]
    no_manual_clear: bool,

    /// Have the IOMMU lose the dirty bit of the device's last write, to see the copy differ.
    #[arg(long)]
    lose_bit: bool,

    /// Where random numbers begin.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

fn window(text: &str) -> Result<u64> {
    let pages: u64 = text.parse()?;
    ensure!(
        pages > 0 && pages % WORD as u64 == 0,
        "it must be a multiple of {WORD}"
    );
    Ok(pages)
}

impl Args {
    fn pages(&self) -> u64 {
        self.memory * MIB / PAGE
    }

    fn load(&self) -> Load {
        Load {
            write_percent: self.writes,
            working_set: self.working_set,
            hot_pages: self.hot,
            seed: self.seed,
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            manual_clear: !self.no_manual_clear,
            window: self.window,
            enough: self.enough,
            rounds: self.rounds.into(),
            bandwidth: (self.bandwidth > 0).then_some(self.bandwidth * MIB),
            lose: self.lose_bit,
        }
    }
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        None => run(cli),
        Some(Command::Plot { results, output }) => {
            plot::write(&plot::read(&results)?, &output)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Cost {
            memory,
            times,
            json,
        }) => {
            let progress = ProgressBar::new(0);
            let costs = cost::measure(&Env::default(), memory * MIB, times, &progress)?;
            progress.finish_and_clear();
            match json {
                true => println!("{}", serde_json::to_string_pretty(&costs)?),
                false => cost::print(&costs),
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Check { options }) => {
            options.carry_out(&options.env(None), check::all(), &[])
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let args = &cli.args;
    let pci = cli.device.map(|bdf| Pci { bdf });
    let mut guest = Guest::new(&Env::default(), pci.as_ref(), args.pages(), args.mappings)?;

    let progress = ProgressBar::new(0);
    progress.set_style(ProgressStyle::with_template(
        "{wide_bar} {human_pos} of {human_len} pages",
    )?);
    if !cli.json {
        println!("{}", Migration::header());
    }
    let show = |found: &Migration| {
        if !cli.json {
            progress.suspend(|| println!("{}", found.line(found.rounds.len() - 1)));
        }
    };
    let found = migrate::migrate(&mut guest, args.load(), &args.plan(), &progress, show)?;
    progress.finish_and_clear();

    if cli.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("{}", found.summary());
    }
    let equal = found.differing_pages == 0;
    if let Some(path) = &cli.plot {
        plot::write(&[Series::new(found)], path)?;
    }
    Ok(match equal {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn windows_are_words() {
        assert_eq!(window("128").ok(), Some(128));
        for wrong in ["0", "63", "100", "-64", "x"] {
            assert!(window(wrong).is_err(), "{wrong}");
        }
    }
}
