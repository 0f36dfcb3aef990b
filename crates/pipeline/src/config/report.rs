//! `[report]`: what a report has beyond what every run finds out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[report]`: what a report has beyond what every run finds out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Report {
    /// Whether a run measures the latency and throughput of the quantised model and of its original on this machine: with one
    /// thread and with all, batches of 1 and 32 samples, 32 and 128 tokens.
    pub latency: bool,
    /// Whether a run quantises each group of Linears alone, those that read one activation, and measures what that costs the outputs
    /// of the model, on the beginnings of a few calibration samples. Kept in the cache.
    pub sensitivity: bool,
}
