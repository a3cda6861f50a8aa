// SPDX-License-Identifier: GPL-2.0

//! The same as a test: what must come out with each driver.

use clap::Parser;
use harness::check::{
    expect,
    expect_eq,
    Stop,
    Verdict, //
};
use harness::env::{
    Driver,
    Env, //
};
use harness::runner::Test;
use harness::soft;
use harness::tests;
use indicatif::ProgressBar;

use crate::guest::Guest;
use crate::migrate::{
    migrate,
    Plan, //
};
use crate::report::{
    Migration,
    Mode, //
};
use crate::{
    Args,
    Cli, //
};

tests! {
    "migrate.manual_clear", "by GET_BITMAP_NOCLEAR and CLEAR_BITMAP, or GET_BITMAP without them" => manual_clear;
    "migrate.get", "by GET_BITMAP" => get;
    "migrate.window", "with large windows and partly filled words" => window;
    "migrate.lost", "a dirty bit that the IOMMU loses makes the copy differ" => lost;
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = Test> {
    TESTS.iter().copied()
}

fn run_one(env: &Env, change: impl FnOnce(&mut Args)) -> Verdict<Migration> {
    soft::device("dirty", 0)?;
    let mut args = Cli::parse_from(["dirty_log"]).args;
    args.memory = 32;
    args.bandwidth = 0;
    change(&mut args);
    let plan: Plan = args.plan();
    let mut guest = Guest::new(env, None, args.pages(), args.mappings)?;
    let found = migrate(
        &mut guest,
        args.load(),
        &plan,
        &ProgressBar::hidden(),
        |_| (),
    )?;
    println!("# {}", Migration::header());
    for number in 0..found.rounds.len() {
        println!("# {}", found.line(number));
    }
    for line in found.summary().lines() {
        println!("# {line}");
    }
    println!("# {}", serde_json::to_string(&found).map_err(Stop::fail)?);
    Ok(found)
}

/// What each driver makes of it: Rust tells what was written to, C does not.
fn expect_outcome(env: &Env, found: &Migration) -> Verdict {
    expect_eq("pages that differ", found.differing_pages, 0)?;
    expect("the device wrote", found.device_writes > 0)?;
    match env.expected {
        Some(Driver::Rust) => {
            expect("it converges", found.converged)?;
            let early = &found.rounds[1];
            expect(
                "fewer pages are dirty than the device could write to",
                early.dirty_pages
                    <= found.rounds[0].dirty_pages * found.write_percent / 100 + found.hot_pages,
            )
        }
        Some(Driver::C) => {
            expect_eq("it converges", found.converged, false)?;
            for round in &found.rounds {
                expect_eq("dirty pages", round.dirty_pages, found.pages)?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

fn expect_mode(env: &Env, found: &Migration) -> Verdict {
    let want = match env.expected {
        Some(Driver::Rust) => Mode::ManualClear,
        Some(Driver::C) => Mode::Get,
        None => found.mode,
    };
    expect_eq("the way to ask", found.mode, want)
}

fn manual_clear(env: &Env) -> Verdict {
    let found = run_one(env, |_| ())?;
    expect_mode(env, &found)?;
    expect_outcome(env, &found)
}

fn get(env: &Env) -> Verdict {
    let found = run_one(env, |args| args.no_manual_clear = true)?;
    expect_eq("the way to ask", found.mode, Mode::Get)?;
    expect_outcome(env, &found)
}

fn window(env: &Env) -> Verdict {
    let found = run_one(env, |args| {
        args.memory = 17;
        args.mappings = 5;
        args.window = 512;
        args.working_set = 50;
        args.rounds = 3;
        args.enough = 50;
    })?;
    expect_mode(env, &found)?;
    expect_outcome(env, &found)
}

fn lost(env: &Env) -> Verdict {
    for no_manual_clear in [false, true] {
        let found = run_one(env, |args| {
            args.memory = 8;
            args.rounds = 2;
            args.no_manual_clear = no_manual_clear;
            args.lose_bit = true;
        })?;
        // To C each page is dirty, whatever the IOMMU says.
        let want = u64::from(env.expected != Some(Driver::C));
        expect_eq("pages that differ", found.differing_pages, want)?;
    }
    Ok(())
}
