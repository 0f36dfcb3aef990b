//! Calibration: data sets read, sampled, batched by length, and run through the f32 model while observers watch.
//!
//! Where `zeropoint-observer` knows what to remember of an activation and `zeropoint-models` how to make one, this crate
//! knows which samples to show and in which order. It never chooses a scheme: one pass serves every scheme on the same
//! graph.

pub mod dataset;
mod inputs;
mod plan;
mod run;
mod sequences;
mod shard;

pub use inputs::{Inputs, encode_texts};
pub use plan::{BatchPlan, CalibrationSet, choose_samples};
pub use run::{
    Begun, Calibrated, CalibrationProgress, Observed, Room, calibrate, calibrate_batches, calibrate_from,
    graph_fingerprint,
};
pub use sequences::{DrawnSequences, SequenceDraw, Sequences};
pub use shard::{Shard, ShardError};
