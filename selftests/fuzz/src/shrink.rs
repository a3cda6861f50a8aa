// SPDX-License-Identifier: GPL-2.0

//! Makes a sequence that shows something as small as it can be.
//!
//! First whole steps go, in ever smaller pieces, then values become simpler. All candidates of a
//! round run together, because loading drivers takes longer than most sequences.

use anyhow::Result;
use serde_json::Value;

use crate::op::{
    Sequence,
    Step, //
};
use crate::record::Masked;
use crate::replay::{
    Bench,
    Finding, //
};

/// Rounds after which values are simple enough.
const ROUNDS: usize = 40;
/// Candidates that are tried in one go.
const TOGETHER: usize = 64;

/// The smallest sequence found that shows what `finding` says, and what it shows.
pub(crate) fn shrink(
    bench: &mut Bench,
    sequence: &Sequence,
    finding: &Finding,
) -> Result<(Sequence, Finding)> {
    let mut best = (sequence.clone(), finding.clone());
    if let Finding::Difference { at, .. } = finding {
        best.0.steps.truncate(at + 1);
    }

    let mut chunk = best.0.steps.len().div_ceil(2).max(1);
    loop {
        let starts = (0..best.0.steps.len()).step_by(chunk);
        let candidates = starts.map(|start| without(&best.0, start, chunk)).collect();
        match first_like(bench, candidates, finding)? {
            Some(better) => best = better,
            None if chunk > 1 => chunk = chunk.div_ceil(2),
            None => break,
        }
        chunk = chunk.min(best.0.steps.len().max(1));
    }

    for _ in 0..ROUNDS {
        match first_like(bench, simpler(&best.0), finding)? {
            Some(better) => best = better,
            None => break,
        }
    }
    Ok(best)
}

fn without(sequence: &Sequence, start: usize, count: usize) -> Sequence {
    let mut shorter = sequence.clone();
    let end = (start + count).min(shorter.steps.len());
    shorter.steps.drain(start..end);
    shorter
}

/// The first candidate that shows the same.
fn first_like(
    bench: &mut Bench,
    candidates: Vec<Sequence>,
    finding: &Finding,
) -> Result<Option<(Sequence, Finding)>> {
    for some in candidates.chunks(TOGETHER) {
        let pairs = bench.run(some)?;
        for (sequence, pair) in some.iter().zip(&pairs) {
            let found = bench.judge(sequence, pair, &mut Masked::new());
            if let Some(found) = found.filter(|found| found.resembles(finding)) {
                return Ok(Some((sequence.clone(), found)));
            }
        }
    }
    Ok(None)
}

/// Sequences in which one value is simpler.
fn simpler(sequence: &Sequence) -> Vec<Sequence> {
    let mut all = Vec::new();
    for (at, step) in sequence.steps.iter().enumerate() {
        let Ok(value) = serde_json::to_value(step) else {
            continue;
        };
        for value in simpler_values(&value) {
            // What is no step any more was no simpler step.
            if let Ok(step) = serde_json::from_value::<Step>(value) {
                let mut candidate = sequence.clone();
                candidate.steps[at] = step;
                all.push(candidate);
            }
        }
    }
    all
}

fn simpler_values(value: &Value) -> Vec<Value> {
    match value {
        Value::Number(number) => number.as_u64().map_or_else(Vec::new, |number| {
            let page = 0x1000;
            let fewer = [
                0,
                1,
                page,
                (number / 2) & !(page - 1),
                number & !(page - 1),
                number.saturating_sub(page),
                number / 2,
            ];
            let mut fewer: Vec<_> = fewer.into_iter().filter(|new| *new < number).collect();
            fewer.sort_unstable();
            fewer.dedup();
            fewer.into_iter().map(Value::from).collect()
        }),
        Value::Bool(true) => vec![Value::Bool(false)],
        Value::Object(fields) => {
            let mut all = Vec::new();
            for (name, field) in fields {
                let simple = match (name.as_str(), field.as_str()) {
                    ("who", Some("child")) => vec![Value::from("parent")],
                    ("place", Some("memory")) => Vec::new(),
                    ("place", _) => vec![Value::from("memory")],
                    ("kind", Some(kind)) if kind != "anon" => vec![Value::from("anon")],
                    _ => simpler_values(field),
                };
                for simple in simple {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), simple);
                    all.push(Value::Object(fields));
                }
            }
            all
        }
        _ => Vec::new(),
    }
}
