//! Every way a run can fail, as one sentence and a hint.

use std::io::ErrorKind;
use std::path::PathBuf;

use thiserror::Error;
use zeropoint_calibrator::dataset::{DatasetError, Problem};
use zeropoint_evaluator::tasks::TaskError;
use zeropoint_formats::FormatError;
use zeropoint_models::ModelError;
use zeropoint_observer::StatisticsFileError;
use zeropoint_quantizer::{PatternError, PlanError};
use zeropoint_runtime::RuntimeError;

use crate::config::ConfigError;
use crate::merge::MergeError;

/// Why a run or one of its stages failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A pattern of the plan.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A data file.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// A task.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A weight file or directory.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A statistics file.
    #[error(transparent)]
    Statistics(#[from] StatisticsFileError),
    /// Files that are not the shards of one calibration set.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The written model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The source is quantised already.
    #[error("{path}: the model is quantised already (config.json has `quantization_config`)")]
    AlreadyQuantized {
        /// Its directory.
        path: PathBuf,
    },
    /// No calibration text.
    #[error("{origin}: there is no calibration text in it; at least one sample is needed")]
    NoSamples {
        /// The data files.
        origin: String,
    },
    /// Statistics that were made from something else.
    #[error(
        "{path}: these statistics belong to another {what} (the file says {found}, this run has {expected})"
    )]
    ForeignStatistics {
        /// The file.
        path: PathBuf,
        /// `model`, `calibration data` or `machine and version`.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Statistics of a part of the calibration set where those of the whole are needed.
    #[error(
        "{path}: these are the statistics of shard {shard} alone, and the whole calibration set is needed"
    )]
    LoneShard {
        /// The file.
        path: PathBuf,
        /// Which shard of how many.
        shard: String,
    },
    /// A Linear that cannot be quantised.
    #[error("Linear `{path}`: {reason}")]
    Layer {
        /// Its module path.
        path: String,
        /// Why.
        reason: String,
    },
    /// What was written does not compute what was planned.
    #[error(
        "the written model disagrees with the simulation of the plan: relative deviation {deviation:.1e}, cosine \
         {cosine:.6} on calibration sample {sample}; at most {limit:.0e} is allowed; nothing was published"
    )]
    SelfCheck {
        /// Length of the difference over the length of the output, the largest found.
        deviation: f64,
        /// The cosine there.
        cosine: f64,
        /// The sample it was found on, counted from 0 among those chosen.
        sample: usize,
        /// The largest deviation allowed.
        limit: f64,
    },
    /// A gate that can never be held.
    #[error("evaluation.gate: task `{task}` has no metric `{metric}` here: {reason}")]
    Gate {
        /// The task.
        task: String,
        /// The metric.
        metric: String,
        /// Why, and what to use.
        reason: String,
    },
    /// `--force` would remove something that the run reads.
    #[error("{output}: replacing it would remove {input}, which is read here; choose another output")]
    InputInside {
        /// The output directory.
        output: PathBuf,
        /// The model, data, statistics or cache.
        input: PathBuf,
    },
    /// The original and the quantised directory are different models.
    #[error("{path}: this is not a quantised form of the model in the config: {reason}")]
    OtherModel {
        /// The directory given.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The disk would run full.
    #[error("{path}: the output needs {needed} bytes and the disk has {available} free")]
    DiskSpace {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user asked to stop.
    #[error("stopped as asked; nothing was written")]
    Cancelled,
}

impl PipelineError {
    /// What to do about it, where that is not in the sentence itself.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Config(error) => return error.hint().map(str::to_owned),
            Self::AlreadyQuantized { .. } => "start from the float model that it was made from",
            Self::NoSamples { .. } => "add texts to the file, or name another one in `calibration.data`",
            Self::ForeignStatistics { .. } => {
                "calibrate again with this config: `zeropoint calibrate CONFIG --out FILE`"
            }
            Self::LoneShard { .. } => {
                "merge all shards first: `zeropoint statistics merge FILE... --out FILE`"
            }
            Self::Merge(error) => return error.hint(),
            Self::SelfCheck { .. } => "this is a fault of zeropoint: please report it with the config",
            Self::DiskSpace { .. } => "free some space, or give another place with --out",
            Self::OtherModel { .. } => "give the `model/` directory of a run of this config",
            Self::Layer { .. } => "check the source model, or add the layer to `quantization.ignore`",
            Self::Model(ModelError::Architecture { .. }) => "`zeropoint run --help` lists what is supported",
            Self::Format(FormatError::Exists { .. }) => {
                "`--force` replaces what an earlier run wrote, `--out DIR` writes elsewhere"
            }
            Self::Data(DatasetError { problem: Problem::Io(error), .. })
                if error.kind() == ErrorKind::NotFound =>
            {
                "a relative path starts at the current directory"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the user's input is at fault in a way that the config or command line shows: exit code 2.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Plan(_)
                | Self::Pattern(_)
                | Self::Gate { .. }
                | Self::Model(ModelError::Isa(_))
        )
    }
}
