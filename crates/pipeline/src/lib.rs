//! The whole way from a config to a run directory: typed config, stages, cache, self-check, gates and reports.
//!
//! [`run`] does what `zeropoint run` does; the stages are there one by one as well. Nothing here prints or parses
//! arguments: progress comes as [`Event`]s, failure as a [`PipelineError`] with a hint, and a [`Cancel`] stops the work
//! at the next batch or layer. A run that was interrupted, in whatever way, is gone on with by the next one.

mod auto;
mod bench;
mod blame;
mod cadence;
mod check;
mod compare;
pub mod config;
mod convert;
mod deploy;
mod disk;
mod distribution;
mod dry_run;
mod embed;
mod encode;
mod error;
mod evaluate;
mod events;
mod experts;
mod graph;
mod header;
mod identity;
mod init;
mod inspect;
mod journal;
mod kept;
mod log_prob_cache;
mod memory;
mod merge;
mod modality;
mod original;
mod prepare;
#[cfg(feature = "hub")]
mod push;
mod report;
mod run;
mod samples;
mod sensitivity;
mod sequence;
mod show;
mod sources;
mod stages;
mod statistics;
mod streamed;
mod strength;
mod sweep;
mod system;
mod tables;
mod written;

pub use auto::{AutoOutcome, AutoRequest, Budget, Candidate, Prefer, Try, auto};
pub use bench::{BenchRequest, bench, bench_texts};
pub use check::LayerErrors;
pub use compare::{COMPARE_MARKER, compare, write_comparison};
pub use deploy::MODEL_DIR;
pub use dry_run::{DryRun, InterruptedRun, PlannedLayer, dry_run};
pub use embed::embed;
pub use encode::{EncodeOptions, Encoded, Filling, LabelledToken, Record, encode, read_texts};
pub use error::PipelineError;
pub use evaluate::{EvaluateOptions, evaluate};
pub use events::{Cancel, Event, Events, Stage};
pub use header::{ShardHeader, StatisticsHeader};
pub use init::{SCHEMA_FILE, starter, write_starter};
pub use inspect::{InspectedImage, InspectedLinear, Inspection, inspect};
pub use memory::Memory;
pub use merge::{MergeError, merge_statistics};
pub use prepare::Prepared;
#[cfg(feature = "hub")]
pub use push::{PushOutcome, PushPlan, PushRequest, plan_push, push};
pub use run::{RunOptions, RunOutcome, check_output, quantize, run};
pub use show::{ShownSite, ShownStatistics, show_statistics};
pub use sources::{LocalFile, LocalModel, Sources};
pub use statistics::{CacheDir, CalibrateOptions, calibrate};
pub use sweep::{PreparedSweep, SweepOutcome};
pub use zeropoint_calibrator::Shard;
