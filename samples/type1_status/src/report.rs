// SPDX-License-Identifier: GPL-2.0

//! The debugfs file `vfio_type1_rs/containers`.
//!
//! One block per container: a header line, then one indented line per fact. Lines this parser
//! does not know are kept verbatim in [`Container::other`], so that an older tool still shows
//! what a newer driver has to say.

use std::str::FromStr;

use serde::Serialize;
use thiserror::Error;

/// A line of the report which does not read as documented.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line}: {what}: {text:?}")]
pub struct ParseError {
    line: usize,
    what: &'static str,
    text: String,
}

/// All containers which the driver serves.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Report {
    /// In the order of the file.
    pub containers: Vec<Container>,
}

/// One container.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Number given by the driver, unique while it is loaded.
    pub id: u64,
    /// Module which serves the container.
    pub driver: String,
    /// `type1` or `type1v2`.
    pub model: String,
    /// Process which chose the IOMMU model.
    pub owner: Option<Owner>,
    /// Page sizes every domain of the container supports, as printed.
    pub page_sizes: Vec<String>,
    /// Budget of DMA mappings.
    pub entries: Option<Entries>,
    /// State of dirty tracking, as printed.
    pub dirty_tracking: String,
    /// IOMMU domains.
    pub domains: Vec<Domain>,
    /// Usable IOVA.
    pub iova: Vec<Range>,
    /// DMA mappings, ascending by IOVA.
    pub mappings: Vec<Mapping>,
    /// Lines unknown to this version of the parser.
    pub other: Vec<String>,
}

/// A process, as it was when it set the container up.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// Command name; may contain blanks and brackets.
    pub comm: String,
    /// Process number in the initial PID namespace.
    pub pid: u32,
}

/// Use of `dma_entry_limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Entries {
    /// Mappings that exist.
    pub used: u64,
    /// Mappings that may still be added.
    pub left: u64,
}

/// An IOMMU domain.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Domain {
    /// IOMMU groups attached to it.
    pub groups: Vec<u32>,
    /// Properties, as printed.
    pub properties: String,
}

/// An IOVA range; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First byte.
    pub first: u64,
    /// Last byte.
    pub last: u64,
}

/// A DMA mapping.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// Where the device sees it.
    pub iova: Range,
    /// `r-`, `-w` or `rw`.
    pub prot: String,
    /// Where the process has it; absent while a live update has invalidated the address.
    pub vaddr: Option<u64>,
    /// Bytes.
    pub size: u64,
    /// Pages held, in units of the CPU's base page.
    pub pinned_pages: Option<u64>,
    /// How the IOMMU page table holds it.
    pub iopte: Vec<Leaves>,
    /// Words unknown to this version of the parser, such as a state.
    pub notes: Vec<String>,
}

/// Page-table entries of one size.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Leaves {
    /// Bytes one entry covers, as printed (`4K`, `2M`, `1G`).
    pub size: String,
    /// How many.
    pub count: u64,
}

impl Report {
    /// The containers which process `pid` set up.
    pub fn owned_by(&self, pid: u32) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .filter(move |c| c.owner.as_ref().is_some_and(|owner| owner.pid == pid))
    }
}

impl FromStr for Report {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut report = Report::default();

        for (index, raw) in text.lines().enumerate() {
            let fail = |what| ParseError {
                line: index + 1,
                what,
                text: raw.to_owned(),
            };
            let line = raw.trim();

            if line.is_empty() {
                continue;
            }
            if let Some(id) = raw.strip_prefix("container ") {
                report.containers.push(Container {
                    id: id
                        .trim()
                        .parse()
                        .map_err(|_| fail("bad container number"))?,
                    ..Container::default()
                });
                continue;
            }
            let container = report
                .containers
                .last_mut()
                .ok_or_else(|| fail("no container was named before this line"))?;
            container.take(line).map_err(fail)?;
        }
        Ok(report)
    }
}

impl Container {
    /// Takes one indented line in.
    fn take(&mut self, line: &str) -> Result<(), &'static str> {
        if let Some(rest) = line.strip_prefix("mapping ") {
            self.mappings.push(Mapping::parse(rest)?);
        } else if let Some(rest) = line.strip_prefix("iova ") {
            self.iova.push(Range::parse(rest).ok_or("bad IOVA range")?);
        } else if let Some(rest) = line.strip_prefix("domain ") {
            self.domains.push(Domain::parse(rest)?);
        } else {
            match line.split_once(": ") {
                Some(("driver", value)) => self.driver = value.to_owned(),
                Some(("model", value)) => self.model = value.to_owned(),
                Some(("owner", value)) => self.owner = Some(Owner::parse(value)?),
                Some(("page sizes", value)) => {
                    self.page_sizes = value.split_whitespace().map(str::to_owned).collect();
                }
                Some(("dma entries", value)) => self.entries = Some(Entries::parse(value)?),
                Some(("dirty tracking", value)) => self.dirty_tracking = value.to_owned(),
                _ => self.other.push(line.to_owned()),
            }
        }
        Ok(())
    }
}

impl Owner {
    fn parse(value: &str) -> Result<Self, &'static str> {
        // A command name may itself look like "x (pid 1)": the last one counts.
        let (comm, pid) = value.rsplit_once(" (pid ").ok_or("owner without pid")?;
        let pid = pid.strip_suffix(')').and_then(|pid| pid.parse().ok());
        Ok(Owner {
            comm: comm.to_owned(),
            pid: pid.ok_or("bad pid")?,
        })
    }
}

impl Entries {
    fn parse(value: &str) -> Result<Self, &'static str> {
        let count = |text: &str, unit| text.strip_suffix(unit)?.trim_end().parse().ok();
        value
            .split_once(", ")
            .and_then(|(used, left)| {
                Some(Entries {
                    used: count(used, "used")?,
                    left: count(left, "left")?,
                })
            })
            .ok_or("bad entry counts")
    }
}

impl Domain {
    fn parse(rest: &str) -> Result<Self, &'static str> {
        let (_, value) = rest.split_once(": ").ok_or("domain without groups")?;
        let (groups, properties) = match value.split_once('(') {
            Some((groups, properties)) => (groups, properties.trim_end_matches(')')),
            None => (value, ""),
        };
        let groups = groups
            .split([' ', ','])
            .filter(|word| !word.is_empty() && !word.starts_with("group"))
            .map(|word| word.parse().map_err(|_| "bad group number"))
            .collect::<Result<_, _>>()?;
        Ok(Domain {
            groups,
            properties: properties.to_owned(),
        })
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.trim().split_once('-')?;
        Some(Range {
            first: hex(first)?,
            last: hex(last)?,
        })
    }
}

impl Mapping {
    fn parse(rest: &str) -> Result<Self, &'static str> {
        let mut words = rest.split_whitespace();
        let iova = words.next().and_then(Range::parse).ok_or("bad range")?;
        let prot = words.next().ok_or("mapping without protection")?.to_owned();
        let mut mapping = Mapping {
            iova,
            prot,
            vaddr: None,
            size: iova.last.wrapping_sub(iova.first).wrapping_add(1),
            pinned_pages: None,
            iopte: Vec::new(),
            notes: Vec::new(),
        };

        while let Some(key) = words.next() {
            let mut number = || words.next().and_then(|word| word.parse().ok());
            match key {
                "vaddr" => mapping.vaddr = words.next().and_then(hex),
                "size" => mapping.size = number().ok_or("bad size")?,
                "pinned" => mapping.pinned_pages = Some(number().ok_or("bad page count")?),
                "iopte" => {
                    mapping.iopte = Leaves::parse(&words.by_ref().collect::<Vec<_>>().join(" "))?;
                }
                "pages" => {}
                other => mapping.notes.push(other.to_owned()),
            }
        }
        Ok(mapping)
    }
}

impl Leaves {
    fn parse(text: &str) -> Result<Vec<Self>, &'static str> {
        let words: Vec<_> = text
            .split([' ', ','])
            .filter(|word| !word.is_empty())
            .collect();
        words
            .chunks(3)
            .map(|leaf| match leaf {
                [size, "x", count] => Ok(Leaves {
                    size: (*size).to_owned(),
                    count: count.parse().map_err(|_| "bad number of entries")?,
                }),
                // The driver cannot always tell, and then prints one word.
                _ => Err("bad page-table entries"),
            })
            .collect::<Result<_, _>>()
            .or_else(|why| {
                if words.len() == 1 {
                    Ok(vec![])
                } else {
                    Err(why)
                }
            })
    }
}

/// Reads a number with a `0x` prefix.
fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "\
container 1
\tdriver: vfio_type1_rs
\tmodel: type1v2
\towner: qemu-system-x86 (pid 123)
\tpage sizes: 4K 2M 1G
\tdma entries: 4 used, 65531 left
\tdirty tracking: off
\tdomain 0: groups 3 (coherent)
\tiova 0x0000000000000000-0x00000000fedfffff
\tiova 0x00000000fef00000-0xffffffffffffffff
\tmapping 0x0000000000000000-0x000000000009ffff rw vaddr 0x00007f0000000000 size 655360 pinned 160 pages iopte 4K x 160
";

    fn one() -> Container {
        ONE.parse::<Report>().unwrap().containers.pop().unwrap()
    }

    #[test]
    fn empty_file_is_an_empty_report() {
        assert_eq!("".parse::<Report>().unwrap(), Report::default());
        assert_eq!("\n".parse::<Report>().unwrap(), Report::default());
    }

    #[test]
    fn every_documented_line_is_understood() {
        let c = one();

        assert_eq!(
            (c.id, &*c.driver, &*c.model),
            (1, "vfio_type1_rs", "type1v2")
        );
        assert_eq!(
            c.owner,
            Some(Owner {
                comm: "qemu-system-x86".into(),
                pid: 123
            })
        );
        assert_eq!(c.page_sizes, ["4K", "2M", "1G"]);
        assert_eq!(
            c.entries,
            Some(Entries {
                used: 4,
                left: 65531
            })
        );
        assert_eq!(c.dirty_tracking, "off");
        assert_eq!(
            c.domains,
            [Domain {
                groups: vec![3],
                properties: "coherent".into()
            }]
        );
        assert_eq!(c.iova.len(), 2);
        assert_eq!(c.iova[1].last, u64::MAX);
        assert_eq!(
            c.mappings,
            [Mapping {
                iova: Range {
                    first: 0,
                    last: 0x9ffff
                },
                prot: "rw".into(),
                vaddr: Some(0x7f00_0000_0000),
                size: 655_360,
                pinned_pages: Some(160),
                iopte: vec![Leaves {
                    size: "4K".into(),
                    count: 160
                }],
                notes: vec![],
            }]
        );
        assert!(c.other.is_empty());
    }

    #[test]
    fn blocks_do_not_leak_into_each_other() {
        let report: Report = format!("{ONE}container 7\n\tmodel: type1\n")
            .parse()
            .unwrap();

        assert_eq!(report.containers.len(), 2);
        assert_eq!(report.containers[1].id, 7);
        assert_eq!(report.containers[1].model, "type1");
        assert!(report.containers[1].mappings.is_empty());
        assert_eq!(report.owned_by(123).count(), 1);
        assert_eq!(report.owned_by(7).count(), 0);
    }

    #[test]
    fn a_command_name_may_look_like_an_owner() {
        let owner = Owner::parse("a (pid 1) (pid 22)").unwrap();

        assert_eq!((&*owner.comm, owner.pid), ("a (pid 1)", 22));
        assert!(Owner::parse("a").is_err());
        assert!(Owner::parse("a (pid x)").is_err());
    }

    #[test]
    fn several_groups_and_leaf_sizes() {
        let domain = Domain::parse("1: groups 3, 4 12 (not coherent)").unwrap();
        assert_eq!(domain.groups, [3, 4, 12]);
        assert_eq!(domain.properties, "not coherent");

        let leaves = Leaves::parse("4K x 8, 2M x 3 1G x 1").unwrap();
        assert_eq!(leaves.len(), 3);
        assert_eq!((&*leaves[1].size, leaves[1].count), ("2M", 3));
        assert_eq!(Leaves::parse("unknown").unwrap(), []);
        assert!(Leaves::parse("4K x").is_err());
    }

    #[test]
    fn an_invalidated_address_is_no_address() {
        let mapping = Mapping::parse("0x1000-0x1fff r- vaddr invalid pinned 1 pages").unwrap();

        assert_eq!(mapping.vaddr, None);
        assert_eq!(mapping.size, 0x1000);
        assert_eq!(mapping.pinned_pages, Some(1));
    }

    #[test]
    fn a_mapping_in_the_making_has_a_state() {
        let mapping = Mapping::parse("0x1000-0x1fff rw size 4096 busy").unwrap();

        assert_eq!(mapping.notes, ["busy"]);
        assert_eq!((mapping.size, mapping.pinned_pages), (4096, None));
    }

    #[test]
    fn unknown_facts_are_kept() {
        let report: Report = "container 1\n\tcolour: blue\n\tnew fact\n".parse().unwrap();

        assert_eq!(report.containers[0].other, ["colour: blue", "new fact"]);
    }

    #[test]
    fn errors_name_the_line() {
        let error = "container 1\n\tiova 0x0\n".parse::<Report>().unwrap_err();
        assert_eq!(error.to_string(), r#"line 2: bad IOVA range: "\tiova 0x0""#);

        for bad in [
            "\tmodel: type1\n",
            "container x\n",
            "container 1\n\tdma entries: 4\n",
            "container 1\n\tmapping 0x0-0xfff\n",
            "container 1\n\tmapping 0x0-0xfff rw size many\n",
        ] {
            assert!(bad.parse::<Report>().is_err(), "{bad:?} was accepted");
        }
    }
}
