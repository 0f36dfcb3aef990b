//! How fast the quantised model is beside its original, on the machine that it was measured on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::number;

/// Measurements of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The processor, where the system tells.
    #[serde(default)]
    pub processor: Option<String>,
    /// Threads that the machine runs at once.
    pub processors: u64,
    /// By threads, batch and tokens (or one file of texts) in the order asked for, INT8 before f32.
    pub rows: Vec<LatencyRow>,
}

/// One engine in one combination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyRow {
    /// Who computed.
    pub engine: Engine,
    /// The instruction set of our kernels.
    pub isa: String,
    /// Threads.
    pub threads: u64,
    /// Samples in the batch.
    pub batch: u64,
    /// Tokens, or rows of an image, of each sample; `None` where each has its own.
    pub tokens: Option<u64>,
    /// Of a decoder that continues texts: what the time is of; `None` where it is of forward passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Tokens that are made one by one behind those `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_tokens: Option<u64>,
    /// Texts of a file that are run, in batches; `None` where a single batch is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<u64>,
    /// Median time of a forward pass over the batch, or over all texts, or of a phase, in milliseconds.
    #[serde(with = "number")]
    pub median_ms: f64,
    /// First quartile of that time.
    #[serde(with = "number")]
    pub q1_ms: f64,
    /// Third quartile.
    #[serde(with = "number")]
    pub q3_ms: f64,
    /// Tokens of the batch, or of all texts, or of a phase, over the median time.
    #[serde(with = "number")]
    pub tokens_per_s: f64,
    /// Texts of the file over the median time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts_per_s: Option<f64>,
    /// Measured passes.
    pub runs: u64,
}

/// A part of a text's continuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The tokens of the prompt go through together and leave keys and values.
    Prefill,
    /// New tokens go through one by one.
    Decode,
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The quantised model on the INT8 runtime.
    Int8,
    /// The float original.
    F32,
}

/// What the templates show of it.
#[derive(Serialize)]
pub(super) struct LatencyView<'a> {
    processor: Option<&'a str>,
    processors: u64,
    /// One program has one.
    isa: Option<&'a str>,
    rows: Vec<Comparison>,
}

/// Both engines in one combination.
#[derive(Serialize)]
struct Comparison {
    batch: u64,
    tokens: Option<u64>,
    phase: Option<Phase>,
    new_tokens: Option<u64>,
    threads: u64,
    float: String,
    int8: String,
    faster: String,
}

/// The median times of both engines beside each other, by batch, tokens and threads, with their numbers put as `number`
/// says; one that was not measured is NaN to it.
pub(super) fn view(latency: &Latency, number: fn(f64) -> String) -> LatencyView<'_> {
    type Place = (u64, Option<u64>, Option<Phase>, Option<u64>, u64);
    let mut medians: BTreeMap<Place, [f64; 2]> = BTreeMap::new();
    for row in &latency.rows {
        let of_both = medians
            .entry((row.batch, row.tokens, row.phase, row.new_tokens, row.threads))
            .or_insert([f64::NAN; 2]);
        of_both[usize::from(row.engine == Engine::Int8)] = row.median_ms;
    }
    let rows =
        medians.into_iter().map(|((batch, tokens, phase, new_tokens, threads), [float, int8])| Comparison {
            batch,
            tokens,
            phase,
            new_tokens,
            threads,
            float: number(float),
            int8: number(int8),
            faster: number(float / int8),
        });
    LatencyView {
        processor: latency.processor.as_deref(),
        processors: latency.processors,
        isa: latency.rows.first().map(|row| row.isa.as_str()),
        rows: rows.collect(),
    }
}
