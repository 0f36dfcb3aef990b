//! Several runs of one model as accuracy against size: which of them no other one beats.
//!
//! A [`Comparison`] takes one metric of every report. Runs of different models are refused; a run that did not measure
//! the metric, or measured it on other samples, stays in the table with the reason and out of the frontier.

mod chart;
mod frontier;
mod output;

pub use frontier::frontier;
pub use output::Table;

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use zeropoint_core::Fingerprint;

use crate::report::{Engine, LatencyRow, Metric, Phase, Report, number};
use crate::svg::plain;

/// The version of `compare.json` that this crate writes.
pub const COMPARE_SCHEMA: u32 = 1;

/// The original's value is the same number in every run up to the instruction set it was computed with: below this
/// relative difference two are taken for one.
const SAME_ORIGINAL: f64 = 1e-4;

/// A run to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it is called: its directory.
    pub name: String,
    /// Its report.
    pub report: Report,
}

/// A metric of a task, as `TASK.METRIC`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MetricName {
    /// The task.
    pub task: String,
    /// The metric.
    pub name: String,
}

impl MetricName {
    /// Reads `TASK.METRIC`; the task may hold dots, the metric does not.
    pub fn parse(text: &str) -> Option<Self> {
        let (task, name) = text.rsplit_once('.')?;
        (!task.is_empty() && !name.is_empty()).then(|| Self { task: task.to_owned(), name: name.to_owned() })
    }

    fn of(metric: &Metric) -> Self {
        Self { task: metric.task.clone(), name: metric.name.clone() }
    }

    fn find<'a>(&self, report: &'a Report) -> Option<&'a Metric> {
        report.metrics.iter().find(|metric| metric.task == self.task && metric.name == self.name)
    }
}

impl fmt::Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", plain(&self.task), plain(&self.name))
    }
}

/// Why runs cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// No run was given.
    #[error("there is no run to compare; give run directories")]
    NoRuns,
    /// One name stands for two runs.
    #[error("`{name}` is given twice; give every run once")]
    Twice {
        /// The name.
        name: String,
    },
    /// Runs of different models.
    #[error(
        "`{first}` and `{other}` quantise different models ({first_model} and {other_model}); accuracy against size \
         can be compared between runs of one model only"
    )]
    Models {
        /// The first run.
        first: String,
        /// Its model.
        first_model: String,
        /// The run that differs.
        other: String,
        /// Its model.
        other_model: String,
    },
    /// No run has measured the metric.
    #[error("no run has measured `{metric}`; measured are: {}", list(.known))]
    Unknown {
        /// What was asked for.
        metric: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No run has measured anything.
    #[error(
        "none of these runs has measured a metric; `zeropoint run` measures, `zeropoint quantize` does not"
    )]
    NoMetrics,
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Runs side by side, the smallest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// [`COMPARE_SCHEMA`].
    pub schema: u32,
    /// What is compared.
    pub metric: ComparedMetric,
    /// The model that all of them quantise.
    pub model: ComparedModel,
    /// Whose latency is compared; `None` where no run has measured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<ComparedLatency>,
    /// The original, which every run is held against.
    pub original: Reference,
    /// The runs by size, equal sizes by loss and name.
    pub runs: Vec<Row>,
}

/// The metric that is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComparedMetric {
    /// The task.
    pub task: String,
    /// The metric.
    pub name: String,
    /// Which direction is good.
    pub higher_is_better: bool,
    /// Whether the original's value is an ideal and not a measurement.
    pub ideal: bool,
    /// Samples measured.
    pub samples: u64,
}

/// The combination whose latency is compared: of those that the first run with any has measured, the one with most threads, the
/// smallest batch and the longest texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComparedLatency {
    /// Threads.
    pub threads: u64,
    /// Samples in the batch.
    pub batch: u64,
    /// Tokens of each.
    pub tokens: u64,
    /// Of a decoder, the reading of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
}

impl ComparedLatency {
    fn of(runs: &[Run]) -> Option<Self> {
        let rows = &runs.iter().find_map(|run| run.report.latency.as_ref())?.rows;
        let texts = rows.iter().filter(|row| row.texts.is_none() && row.phase != Some(Phase::Decode));
        let longest = texts.max_by_key(|row| (row.threads, std::cmp::Reverse(row.batch), row.tokens))?;
        Some(Self {
            threads: longest.threads,
            batch: longest.batch,
            tokens: longest.tokens?,
            phase: longest.phase,
        })
    }

    /// The median time of an engine, in milliseconds, where a report has it.
    fn find(&self, report: &Report, engine: Engine) -> Option<f64> {
        let is_it = |row: &&LatencyRow| {
            row.engine == engine
                && (row.threads, row.batch, row.tokens, row.phase)
                    == (self.threads, self.batch, Some(self.tokens), self.phase)
        };
        report.latency.as_ref()?.rows.iter().find(is_it).map(|row| row.median_ms).filter(|ms| ms.is_finite())
    }
}

/// The model that is quantised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComparedModel {
    /// As the first run names it.
    pub source: String,
    /// Its architecture.
    pub architecture: String,
    /// Of its weights and config.
    pub fingerprint: Fingerprint,
}

/// The original as a point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reference {
    /// Bytes of its weight files.
    pub bytes: u64,
    /// Its value; for a fidelity metric the ideal.
    #[serde(with = "number")]
    pub value: f64,
    /// Whether no run is both as small and as good, and better in one.
    pub frontier: bool,
    /// Its median time in milliseconds, by the first run that has measured it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
}

/// A run as a point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What it is called.
    pub run: String,
    /// Its scheme.
    pub scheme: String,
    /// Bytes of its weight files.
    pub bytes: u64,
    /// How many times smaller than the original.
    #[serde(with = "number")]
    pub ratio: f64,
    /// Its value; `None` when it cannot be compared.
    pub value: Option<f64>,
    /// How much worse than the original: negative for a gain.
    pub loss: Option<f64>,
    /// Standard error of `loss`, where known.
    pub stderr: Option<f64>,
    /// Whether no other run and not the original is both as small and as good, and better in one.
    pub frontier: bool,
    /// Why it cannot be compared.
    pub excluded: Option<String>,
    /// Whether its gates were met; `None` when it has none.
    pub gates_met: Option<bool>,
    /// The lowest output SQNR of its layers, where measured.
    pub lowest_output_sqnr_db: Option<f64>,
    /// Its median time in milliseconds, where measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
}

impl Comparison {
    /// Compares runs on a metric: the one given, or the first metric against an original that most of the runs have
    /// measured, or else the first fidelity metric.
    pub fn new(runs: &[Run], metric: Option<&MetricName>) -> Result<Self, CompareError> {
        let first = runs.first().ok_or(CompareError::NoRuns)?;
        let mut names = BTreeSet::new();
        for run in runs {
            if !names.insert(&run.name) {
                return Err(CompareError::Twice { name: plain(&run.name) });
            }
            if run.report.model.fingerprint != first.report.model.fingerprint {
                return Err(CompareError::Models {
                    first: plain(&first.name),
                    first_model: plain(&first.report.model.source),
                    other: plain(&run.name),
                    other_model: plain(&run.report.model.source),
                });
            }
        }
        let metric = match metric {
            Some(metric) => metric.clone(),
            None => default_metric(runs).ok_or(CompareError::NoMetrics)?,
        };
        let standard = standard(runs, &metric).ok_or_else(|| unknown(runs, &metric))?;
        let latency = ComparedLatency::of(runs);
        let of_engine =
            |report: &Report, engine| latency.as_ref().and_then(|found| found.find(report, engine));
        let with_latency = |run: &Run| Row {
            latency_ms: of_engine(&run.report, Engine::Int8),
            ..row(run, &metric, standard)
        };
        let mut rows: Vec<Row> = runs.iter().map(with_latency).collect();
        rows.sort_by(|a, b| {
            let loss = |row: &Row| row.loss.unwrap_or(f64::INFINITY);
            a.bytes.cmp(&b.bytes).then(loss(a).total_cmp(&loss(b))).then_with(|| a.run.cmp(&b.run))
        });
        let original = first.report.size.original_bytes;
        let points: Vec<(u64, Option<f64>)> =
            rows.iter().map(|row| (row.bytes, row.loss)).chain([(original, Some(0.0))]).collect();
        let mut on = frontier(&points);
        let original_on = on.pop().unwrap_or(false);
        for (row, on) in rows.iter_mut().zip(on) {
            row.frontier = on;
        }
        Ok(Self {
            schema: COMPARE_SCHEMA,
            metric: ComparedMetric {
                task: metric.task,
                name: metric.name,
                higher_is_better: standard.higher_is_better,
                ideal: standard.ideal,
                samples: standard.samples,
            },
            model: ComparedModel {
                source: first.report.model.source.clone(),
                architecture: first.report.model.architecture.clone(),
                fingerprint: first.report.model.fingerprint,
            },
            original: Reference {
                bytes: original,
                value: standard.original,
                frontier: original_on,
                latency_ms: runs.iter().find_map(|run| of_engine(&run.report, Engine::F32)),
            },
            latency,
            runs: rows,
        })
    }
}

/// Every metric that some run has measured, in order of appearance.
fn measured(runs: &[Run]) -> Vec<(MetricName, bool, usize)> {
    let mut known: Vec<(MetricName, bool, usize)> = Vec::new();
    for metric in runs.iter().flat_map(|run| &run.report.metrics) {
        let name = MetricName::of(metric);
        match known.iter_mut().find(|(other, _, _)| *other == name) {
            Some((_, _, runs)) => *runs += 1,
            None => known.push((name, metric.ideal, 1)),
        }
    }
    known
}

fn default_metric(runs: &[Run]) -> Option<MetricName> {
    let known = measured(runs);
    let best_of = |ideal: bool| {
        known
            .iter()
            .filter(|metric| metric.1 == ideal)
            .reduce(|best, next| if next.2 > best.2 { next } else { best })
    };
    best_of(false).or_else(|| best_of(true)).map(|metric| metric.0.clone())
}

fn unknown(runs: &[Run], metric: &MetricName) -> CompareError {
    let known: Vec<String> = measured(runs).iter().map(|(name, _, _)| name.to_string()).collect();
    if known.is_empty() {
        return CompareError::NoMetrics;
    }
    CompareError::Unknown { metric: metric.to_string(), known }
}

/// The measurement that most runs agree with; of those that do, one on the data that most of them name.
fn standard<'a>(runs: &'a [Run], metric: &MetricName) -> Option<&'a Metric> {
    let found: Vec<&Metric> = runs.iter().filter_map(|run| metric.find(&run.report)).collect();
    let alike = |one: &Metric, other: &Metric| difference_in_value(one, other).is_none();
    let standard = agreed(&found, alike)?;
    // Data that are not named contradict none, and so cannot decide which are right.
    let named = found.into_iter().filter(|other| other.data.is_some() && alike(standard, other));
    agreed(&named.collect::<Vec<_>>(), |one, other| one.data == other.data).or(Some(standard))
}

/// The one that most agree with, the first of equals.
fn agreed<'a>(found: &[&'a Metric], agree: impl Fn(&Metric, &Metric) -> bool) -> Option<&'a Metric> {
    let agreeing = |one: &Metric| found.iter().filter(|other| agree(one, other)).count();
    found.iter().copied().reduce(|best, next| if agreeing(next) > agreeing(best) { next } else { best })
}

/// Why two measurements of a metric are not of the same thing.
fn difference(standard: &Metric, other: &Metric) -> Option<String> {
    difference_in_value(standard, other).or_else(|| {
        // Fidelity metrics give every original the ideal; and reports of earlier releases do not name their data.
        let (known, found) = (standard.data?, other.data?);
        (known != found)
            .then(|| format!("measured on other data: fingerprint {}, not {}", found.short(), known.short()))
    })
}

/// As [`difference`], by what was measured on the original alone.
fn difference_in_value(standard: &Metric, other: &Metric) -> Option<String> {
    if other.higher_is_better != standard.higher_is_better || other.ideal != standard.ideal {
        return Some("measured as another kind of metric".to_owned());
    }
    if other.samples != standard.samples {
        return Some(format!("measured on {} samples, not {}", other.samples, standard.samples));
    }
    let (a, b) = (standard.original, other.original);
    let same = (a - b).abs() <= SAME_ORIGINAL * a.abs().max(b.abs()) || (a.is_nan() && b.is_nan());
    (!same).then(|| format!("measured on other data: the original has {b:.4} there, not {a:.4}"))
}

fn row(run: &Run, name: &MetricName, standard: &Metric) -> Row {
    let report = &run.report;
    let (metric, excluded) = match name.find(report) {
        None => (None, Some("not measured".to_owned())),
        Some(metric) => match difference(standard, metric) {
            Some(reason) => (None, Some(reason)),
            None if !(metric.loss().is_finite() && metric.quantized.is_finite()) => {
                (None, Some("has no value".to_owned()))
            }
            None => (Some(metric), None),
        },
    };
    let sqnr = report.layers.iter().filter_map(|layer| layer.output_sqnr_db).filter(|db| db.is_finite());
    Row {
        run: run.name.clone(),
        scheme: report.settings.scheme.clone(),
        bytes: report.size.quantized_bytes,
        ratio: report.size.ratio,
        value: metric.map(|metric| metric.quantized),
        loss: metric.map(Metric::loss),
        stderr: metric.map(|metric| metric.stderr).filter(|stderr| stderr.is_finite()),
        frontier: false,
        excluded,
        gates_met: (!report.gates.is_empty()).then(|| report.gates.iter().all(|gate| gate.passed)),
        lowest_output_sqnr_db: sqnr.reduce(f64::min),
        latency_ms: None,
    }
}
