// SPDX-License-Identifier: GPL-2.0

//! The rounds of migrations as a picture.

use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

use anyhow::{
    anyhow,
    ensure,
    Context,
    Result, //
};
use plotters::prelude::*;
use type1_status::host::C_DRIVER;

use crate::report::{
    Migration,
    Mode, //
};

/// In pixels.
const SIZE: (u32, u32) = (760, 340);

/// Of letters.
const FONT: u32 = 18;

/// Colours that can be read on white and on black, as the background is not ours.
const TEXT: RGBColor = RGBColor(0x80, 0x86, 0x8e);
const COLOURS: [RGBColor; 4] = [
    RGBColor(0xdb, 0x5c, 0x3c),
    RGBColor(0x2f, 0x87, 0xe0),
    RGBColor(0xc2, 0x8a, 0x16),
    RGBColor(0x9a, 0x62, 0xd8),
];

/// The axis of pages counts thousandths of all.
const ALL: u64 = 1000;

/// A migration with its name in the picture.
pub(crate) struct Series {
    name: String,
    migration: Migration,
}

impl Series {
    /// Named after its driver and how it asked.
    pub(crate) fn new(migration: Migration) -> Self {
        let language = if migration.driver == C_DRIVER {
            " (C)"
        } else {
            ""
        };
        let mode = match migration.mode {
            Mode::Get => "GET_BITMAP",
            Mode::ManualClear => "manual clear",
        };
        let name = format!("{}{language}, {mode}", migration.driver);
        Series { name, migration }
    }

    /// What is copied tells how much a migration costs, however many its rounds are.
    fn label(&self) -> String {
        let migration = &self.migration;
        let copied = 100 * migration.copied_pages() / migration.pages.max(1);
        let end = match migration.converged {
            true => "",
            false => ", gave up",
        };
        format!("{}: {copied} % copied{end}", self.name)
    }

    fn points(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let pages = self.migration.pages.max(1);
        let share = move |dirty| dirty * ALL / pages;
        let rounds = self.migration.rounds.iter().zip(1..);
        rounds.map(move |(round, number)| (number, share(round.dirty_pages)))
    }
}

/// What files of results have: each the output of `--json`, or of a test that printed it. A driver
/// that was asked in the same way before is left out.
///
/// # Errors
///
/// If a file cannot be read or has none.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let found = parse(&text);
        ensure!(
            !found.is_empty(),
            "{}: no migration in it; write one by `dirty_log --json > FILE`",
            file.display()
        );
        for series in found.into_iter().map(Series::new) {
            if all.iter().all(|other| other.name != series.name) {
                all.push(series);
            }
        }
    }
    Ok(all)
}

fn parse(text: &str) -> Vec<Migration> {
    let whole = serde_json::from_str(text).ok();
    let lines = text.lines().map(|line| line.trim_start_matches("# "));
    let lines = lines.filter_map(|line| serde_json::from_str(line).ok());
    whole.map_or_else(|| lines.collect(), |one| vec![one])
}

/// Writes a picture.
///
/// # Errors
///
/// If the file cannot be written.
pub(crate) fn write(series: &[Series], path: &Path) -> Result<()> {
    let mut svg = String::new();
    draw(series, &mut svg).map_err(|why| anyhow!("{why}"))?;
    // Nothing says that a file ends with a newline; editors do.
    fs::write(path, format!("{}\n", svg.trim_end())).with_context(|| path.display().to_string())
}

fn draw(series: &[Series], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let rounds = series.iter().map(|s| s.migration.rounds.len()).max();
    let rounds = u32::try_from(rounds.unwrap_or(1))?.max(2);
    let font = |size: u32| ("sans-serif", size).into_font().color(&TEXT);

    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(1..rounds, 0..ALL)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(TEXT.mix(0.25))
        .axis_style(TEXT)
        .x_labels(rounds as usize)
        .y_labels(6)
        .x_label_formatter(&|round| round.to_string())
        .y_label_formatter(&|share| format!("{} %", share * 100 / ALL))
        .x_desc("round")
        .y_desc("pages to copy")
        .label_style(font(FONT))
        .axis_desc_style(font(FONT))
        .draw()?;

    for (number, one) in series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let line = colour.stroke_width(3);
        chart
            .draw_series(LineSeries::new(one.points(), line))?
            .label(one.label())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], line));
        chart.draw_series(one.points().map(|at| Circle::new(at, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::Coordinate(150, 50))
        .label_font(font(FONT))
        .legend_area_size(30)
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use type1_status::host::RUST_DRIVER;

    use super::*;
    use crate::report::Round;

    fn migration(driver: &str, mode: Mode, dirty: &[u64]) -> Migration {
        let round = |dirty_pages: &u64| Round {
            dirty_pages: *dirty_pages,
            ..Round::default()
        };
        Migration {
            driver: driver.into(),
            mode,
            page: 4096,
            pages: 200,
            mappings: 1,
            leaves: None,
            write_percent: 10,
            hot_pages: 1,
            window: 64,
            start_ns: 1,
            rounds: dirty.iter().map(round).collect(),
            converged: dirty.last() < Some(&100),
            downtime_ns: 1,
            device_writes: 1,
            differing_pages: 0,
        }
    }

    #[test]
    fn what_was_printed_is_found_again() {
        let one = migration(C_DRIVER, Mode::Get, &[200, 200]);
        let two = migration(RUST_DRIVER, Mode::ManualClear, &[200, 1]);
        let lines = |found: Vec<Migration>| -> Vec<_> {
            let series = found.into_iter().map(Series::new);
            series
                .map(|s| (s.name.clone(), s.points().collect::<Vec<_>>()))
                .collect()
        };
        let pretty = serde_json::to_string_pretty(&one).expect("it is plain data");
        assert_eq!(
            lines(parse(&pretty)),
            [(
                "vfio_iommu_type1 (C), GET_BITMAP".into(),
                vec![(1, 1000), (2, 1000)]
            )]
        );
        let ktap = format!(
            "KTAP version 1\n1..1\n# {}\n# {{}}\n# {}\nok 1 x\n",
            serde_json::to_string(&one).expect("it is plain data"),
            serde_json::to_string(&two).expect("it is plain data")
        );
        assert_eq!(
            lines(parse(&ktap))[1],
            (
                "vfio_type1_rs, manual clear".into(),
                vec![(1, 1000), (2, 5)]
            )
        );
        assert_eq!(parse("{}").len(), 0);
    }

    #[test]
    fn the_picture_names_each() {
        let series = [
            Series::new(migration(C_DRIVER, Mode::Get, &[200; 5])),
            Series::new(migration(RUST_DRIVER, Mode::Get, &[200, 20, 2])),
        ];
        let mut svg = String::new();
        draw(&series, &mut svg).expect("memory can be written to");
        for text in [
            "(C), GET_BITMAP: 500 % copied, gave up",
            "_rs, GET_BITMAP: 111 % copied",
            "100 %",
        ] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 8);
    }
}
