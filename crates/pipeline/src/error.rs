//! Every way a run can fail, as one sentence and a hint.

use std::io::ErrorKind;
use std::path::PathBuf;

use thiserror::Error;
use zeropoint_calibrator::dataset::{DatasetError, Problem};
use zeropoint_evaluator::compare::CompareError;
use zeropoint_evaluator::report::ReportError;
use zeropoint_evaluator::tasks::TaskError;
use zeropoint_formats::FormatError;
#[cfg(feature = "hub")]
use zeropoint_hub::HubError;
use zeropoint_models::ModelError;
use zeropoint_observer::StatisticsFileError;
use zeropoint_quantizer::{PatternError, PlanError, TransformError};
use zeropoint_runtime::RuntimeError;

use crate::config::{Config, ConfigError, Excerpt};
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
    /// The transforms.
    #[error(transparent)]
    Transform(#[from] TransformError),
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
    /// The hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(HubError),
    /// A source that is neither here nor, as far as can be told, on the hub.
    #[cfg(feature = "hub")]
    #[error("`{id}` is no directory here, and {hub}")]
    NoModel {
        /// `model.source`.
        id: String,
        /// What came of asking the hub.
        hub: HubError,
    },
    /// Something of the hub in a build that fetches nothing.
    #[error("`{what}` is not on this machine, and this build fetches nothing from the hub")]
    NoHub {
        /// The model or data file.
        what: String,
    },
    /// A model of which only the headers were fetched is to be run.
    #[error(
        "only the headers of the weights were fetched, which is enough for a plan and not to run the model"
    )]
    HeadersOnly,
    /// A directory that cannot be pushed.
    #[error("{path}: {reason}")]
    NotPushable {
        /// The directory.
        path: PathBuf,
        /// Why, what is expected.
        reason: String,
    },
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
    /// Texts in sequences for a model that takes texts as they are.
    #[error(
        "`calibration.sequences` is \"{sequences}\", which is for decoder language models, and {architecture} is none; \
         \"truncated\" is for all models"
    )]
    Sequences {
        /// What was asked for.
        sequences: &'static str,
        /// The model's architecture.
        architecture: String,
    },
    /// A conversation that the model's chat template makes no text of.
    #[error("{place}: {error}")]
    Conversation {
        /// `file:line`.
        place: String,
        /// Why.
        error: ModelError,
    },
    /// Data that were other ones when they were read again.
    #[error("{origin}: the data changed while they were read; run again when they are complete")]
    DataChanged {
        /// The data files.
        origin: String,
    },
    /// Calibration data that never reach a part of the model.
    #[error(
        "{origin}: there are no {missing} in it, and {architecture} takes {missing}; what reads them would stay unobserved"
    )]
    EmptyTower {
        /// The data files.
        origin: String,
        /// The model's architecture.
        architecture: String,
        /// `texts` or `images`.
        missing: &'static str,
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
        /// Why.
        reason: String,
    },
    /// `--force` would remove something that the run reads.
    #[error("{output}: replacing it would remove {input}, which is read here")]
    InputInside {
        /// The output directory.
        output: PathBuf,
        /// The model, data, statistics or cache.
        input: PathBuf,
    },
    /// Runs that cannot be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// A directory without a report.
    #[error("{path}: this is not a run directory: it has no report.json")]
    NotARun {
        /// The directory given.
        path: PathBuf,
    },
    /// A report that cannot be read.
    #[error("{path}: {source}")]
    Report {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReportError,
    },
    /// A report larger than any that a run writes.
    #[error("{path}: the file has {bytes} bytes, and a report has at most {limit}")]
    ReportSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        limit: u64,
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
    /// Something that the command line names does not exist.
    #[error("{path}: there is no such {what}")]
    Absent {
        /// As it is named.
        path: PathBuf,
        /// `statistics file`, `quantised model directory`, ...
        what: &'static str,
    },
    /// A file that would be replaced.
    #[error("{path}: {what} is there already")]
    Exists {
        /// The output as it is named.
        path: PathBuf,
        /// What is there: `a file`, `a directory`.
        what: &'static str,
    },
    /// An option of the command line that asks for what cannot be.
    #[error("{option}: {reason}")]
    Option {
        /// The option, such as `--tokens`.
        option: &'static str,
        /// What is wrong, what is allowed.
        reason: String,
    },
    /// The user asked to stop.
    #[error("stopped as asked; no file was written")]
    Cancelled,
    /// What a key of the config names, or asks for, is at fault.
    #[error("{error}")]
    Named {
        /// The dotted path of the key, as `--set` takes it.
        key: String,
        /// Where it is written.
        excerpt: Box<Excerpt>,
        /// What is wrong.
        error: Box<PipelineError>,
    },
    /// One of several runs cannot be made as it is asked for.
    #[error("run `{run}`: {source}")]
    OfRun {
        /// What it is called.
        run: String,
        /// What is wrong.
        source: Box<PipelineError>,
    },
    /// An interrupted run lies where this one would work, and it is not this one.
    #[error("{partial} holds an interrupted run that cannot be continued: {difference}")]
    OtherRun {
        /// The partial directory.
        partial: PathBuf,
        /// What is other now.
        difference: String,
    },
    /// A run that was stopped, by its user, its disk or its file system, and can be continued.
    #[error("{}; what is done so far is kept in {partial}", without_advice(source))]
    Interrupted {
        /// The partial directory.
        partial: PathBuf,
        /// Bytes that a full disk is short of.
        missing: Option<u64>,
        /// What stopped it.
        source: Box<PipelineError>,
    },
}

/// What stopped a run, without saying that nothing is left.
fn without_advice(error: &PipelineError) -> String {
    match error {
        PipelineError::Cancelled => "stopped as asked".to_owned(),
        other => other.to_string(),
    }
}

impl PipelineError {
    /// What the operating system said, if it was the system that refused something.
    fn io(&self) -> Option<&std::io::Error> {
        fn of_format(error: &FormatError) -> Option<&std::io::Error> {
            match error {
                FormatError::Io { reason, .. } => Some(reason),
                _ => None,
            }
        }
        fn of_model(error: &ModelError) -> Option<&std::io::Error> {
            match error {
                ModelError::Io { source, .. } => Some(source),
                ModelError::Format(error) => of_format(error),
                _ => None,
            }
        }
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Format(error)
            | Self::Statistics(StatisticsFileError::Format(error))
            | Self::Runtime(RuntimeError::Format(error)) => of_format(error),
            Self::Model(error)
            | Self::Runtime(RuntimeError::Model(error))
            | Self::Task(TaskError::Model(error)) => of_model(error),
            Self::Interrupted { source, .. } => source.io(),
            _ => None,
        }
    }

    /// Whether the same run may succeed later: it was stopped, or the system refused something.
    pub(crate) fn is_resumable(&self) -> bool {
        matches!(self, Self::Cancelled) || self.io().is_some()
    }

    pub(crate) fn is_full_disk(&self) -> bool {
        self.io()
            .is_some_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }

    /// The index of a transform that cannot be made.
    pub(crate) fn impossible_transform(&self) -> Option<usize> {
        match self {
            Self::Transform(TransformError::Impossible { place, .. }) => {
                place.strip_prefix("quantization.transforms.")?.parse().ok()
            }
            Self::Named { error, .. } => error.impossible_transform(),
            _ => None,
        }
    }

    /// The sizes of groups that would do, where those asked for do not come out even.
    pub(crate) fn group_sizes(&self) -> Option<&[usize]> {
        match self {
            Self::Plan(PlanError::Groups { sizes, .. }) => Some(sizes),
            Self::Named { error, .. } => error.group_sizes(),
            _ => None,
        }
    }

    /// What to do about it, where that is not in the sentence itself.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Config(error) => return error.hint().map(str::to_owned),
            Self::Named { error, .. } => return error.hint(),
            Self::OfRun { source, .. } => return source.hint(),
            Self::Interrupted { missing: Some(missing), .. } => {
                return Some(format!(
                    "about {missing} bytes more are needed there: free them, and the same command goes on from there"
                ));
            }
            Self::Interrupted { missing: None, .. } => {
                "the same command goes on from there; with `--restart` it begins anew"
            }
            Self::OtherRun { .. } => {
                "put back what has changed to go on with it, discard it with `--restart`, or write elsewhere with \
                 `--out DIR`"
            }
            #[cfg(feature = "hub")]
            Self::Hub(error) | Self::NoModel { hub: error, .. } => return error.hint(),
            Self::NoHub { .. } => "download it and give its path, or build with the feature `hub`",
            Self::AlreadyQuantized { .. } => "start from the float model that it was made from",
            Self::NoSamples { .. } => "add texts to the file, or name another one in `calibration.data`",
            Self::EmptyTower { missing: "images", .. } => {
                "name a folder of images (`\"photos/\"`), or a csv or jsonl file with a column `image`, in `calibration.data`"
            }
            Self::EmptyTower { .. } => "name a file of texts too in `calibration.data`",
            Self::ForeignStatistics { .. } => {
                "calibrate again with this config, its keys in `[calibration]` included: `zeropoint calibrate CONFIG --out FILE`"
            }
            Self::LoneShard { .. } => {
                "merge all shards first: `zeropoint statistics merge FILE... --out FILE`"
            }
            Self::Merge(error) => return error.hint(),
            Self::SelfCheck { .. } => "this is a fault of zeropoint: please report it with the config",
            Self::DiskSpace { .. } => "free some space, or give another place with --out",
            Self::OtherModel { .. } => "give the `model/` directory of a run of this config",
            Self::NotARun { .. } => "give the directories that `zeropoint run` wrote, such as runs/NAME",
            Self::ReportSize { .. } => "make the run again, or leave it out",
            Self::Compare(CompareError::Unknown { .. }) => "name one of them with --metric TASK.METRIC",
            Self::Layer { .. } => "check the source model, or add the layer to `quantization.ignore`",
            Self::Model(ModelError::Architecture { .. } | ModelError::Config { .. }) => {
                "docs/families.md says what is supported"
            }
            Self::Absent { .. } | Self::Model(ModelError::NotFound { .. }) => {
                "a relative path starts at the current directory"
            }
            Self::Plan(PlanError::NoMatch { nearest, .. })
            | Self::Transform(TransformError::Pattern(PlanError::NoMatch { nearest, .. })) => {
                return Some(format!(
                    "the nearest names are {nearest}; `zeropoint inspect MODEL` lists every one"
                ));
            }
            Self::Transform(TransformError::Impossible { .. }) => {
                "leave it out; `{ kind = \"online-rotation\" }` with `output.formats = [\"zeropoint\"]` is exact in every model"
            }
            Self::Transform(TransformError::Layer { .. }) => {
                "take such Linears out of `layers`, or leave `layers` out: what cannot be smoothed is passed over then"
            }
            Self::Plan(PlanError::Groups { .. }) => {
                "write `quantization.weights.group_size`, or in an override of these layers `weights.group_size`"
            }
            Self::Plan(PlanError::OnlyIgnored { .. }) => "`ignore = []` leaves no Linear float",
            Self::Plan(PlanError::NeverObserved { .. }) => "`model.task` decides what the model runs",
            Self::Plan(PlanError::Nothing { .. }) => {
                "a Linear is quantised when neither `ignore` nor an override with the scheme \"none\" matches it"
            }
            Self::Model(ModelError::Task { .. }) => "`task = \"auto\"` reads it from the model's files",
            Self::Model(ModelError::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => {
                "`zeropoint inspect DIRECTORY` says whether a model is supported"
            }
            Self::Task(TaskError::Head { .. }) => {
                "remove the task, or choose a kind that fits; `fidelity` fits every model"
            }
            Self::Task(TaskError::Label { .. }) => {
                "labels are the names in the model's config.json, or all of them indices into these"
            }
            Self::Gate { .. } => "gate a metric that it has",
            Self::Exists { .. } => "`--force` replaces a file, `--out FILE` writes another one",
            Self::InputInside { .. } => {
                "give another output with `--out`, or with `output.dir` in the config"
            }
            Self::Data(DatasetError { problem: Problem::MissingField { .. }, .. }) => {
                "say which field holds what, as in `{ path = \"FILE\", text = \"NAME\" }`"
            }
            Self::Data(DatasetError { problem: Problem::NoSuchColumn { .. }, .. }) => {
                "give the number of a column that is there, or the name of one when the first row names them"
            }
            Self::Task(TaskError::Data {
                source: DatasetError { problem: Problem::Required { .. }, .. },
                ..
            }) => {
                "add it to the file, or say which field holds it, as in `{ path = \"FILE\", label = \"NAME\" }`"
            }
            Self::Format(FormatError::Exists { .. }) => {
                "`--force` replaces what an earlier run wrote, `--out DIR` writes elsewhere"
            }
            Self::Data(DatasetError { problem: Problem::Io(error), .. })
                if error.kind() == ErrorKind::NotFound =>
            {
                "a relative path starts at the current directory"
            }
            // Of a folder, the sentence says what belongs into it.
            Self::Data(DatasetError {
                problem:
                    Problem::Io(_)
                    | Problem::NoImages
                    | Problem::NotAnImage { .. }
                    | Problem::HalfLabelled
                    | Problem::NestedFolder { .. }
                    | Problem::NameNotUnicode { .. },
                ..
            }) => return None,
            Self::Data(_) | Self::Task(TaskError::Data { .. }) => {
                "mend the file: no line is left out silently"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the user asked to stop.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Interrupted { source, .. } | Self::OfRun { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }

    /// Whether the config or the command line is to be changed, exit code 2: it contradicts itself, names something that
    /// does not exist, or asks for something that what it names does not have. What is there and damaged, or not supported,
    /// is no such mistake.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Interrupted { source, .. } | Self::OfRun { source, .. } => source.is_usage(),
            Self::Config(_)
            | Self::Plan(_)
            | Self::Transform(_)
            | Self::Pattern(_)
            | Self::Gate { .. }
            | Self::EmptyTower { .. }
            | Self::Sequences { .. }
            | Self::Compare(_)
            | Self::NotARun { .. }
            | Self::InputInside { .. }
            | Self::Option { .. }
            | Self::Absent { .. }
            | Self::Task(TaskError::Head { .. }) => true,
            Self::Named { error, .. } => error.is_usage(),
            #[cfg(feature = "hub")]
            Self::Hub(error) | Self::NoModel { hub: error, .. } => matches!(
                error,
                HubError::Id { .. }
                    | HubError::RevisionName { .. }
                    | HubError::DataRef { .. }
                    | HubError::Endpoint { .. }
                    | HubError::NotFound { .. }
                    | HubError::Revision { .. }
                    | HubError::File { .. }
            ),
            Self::NoHub { .. } | Self::NotPushable { .. } => true,
            Self::Model(error) | Self::Runtime(RuntimeError::Model(error)) => match error {
                ModelError::Isa(_)
                | ModelError::Prompt { .. }
                | ModelError::NotFound { .. }
                | ModelError::HubId { .. }
                | ModelError::NoChatTemplate { .. }
                | ModelError::Task { .. } => true,
                ModelError::Io { source, .. } => source.kind() == ErrorKind::NotADirectory,
                _ => false,
            },
            Self::Conversation { error, .. } => matches!(error, ModelError::NoChatTemplate { .. }),
            Self::Data(error) | Self::Task(TaskError::Data { source: error, .. }) => does_not_fit(error),
            _ => false,
        }
    }

    /// Where in the config, or in which argument, the mistake is or the thing at fault is named.
    pub fn excerpt(&self) -> Option<&Excerpt> {
        match self {
            Self::Config(error) => error.excerpt(),
            Self::Named { excerpt, .. } => Some(excerpt),
            _ => None,
        }
    }

    /// The dotted path of the config key that is wrong, or names what is at fault.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Config(error) => error.key(),
            Self::Named { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The same error, pointing at the first of `keys` that is written in `config`, with `label` at the place. An error
    /// that points somewhere already keeps its place.
    #[must_use]
    pub(crate) fn named_by<K: AsRef<str>>(self, config: &Config, keys: &[K], label: &str) -> Self {
        if self.excerpt().is_some() {
            return self;
        }
        let written = |key: &K| Some((key.as_ref().to_owned(), config.excerpt(key.as_ref(), label)?));
        match keys.iter().find_map(written) {
            Some((key, excerpt)) => Self::Named { key, excerpt: Box::new(excerpt), error: Box::new(self) },
            None => self,
        }
    }
}

/// Whether a data file is not there, or has not the columns or fields that are asked of it.
fn does_not_fit(error: &DatasetError) -> bool {
    match &error.problem {
        Problem::Io(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        problem => matches!(
            problem,
            Problem::UnknownFormat
                | Problem::MissingField { .. }
                | Problem::ColumnInJson { .. }
                | Problem::ColumnInParquet { .. }
                | Problem::NoSuchColumn { .. }
                | Problem::NameWithoutHeader { .. }
                | Problem::UnknownColumns { .. }
                | Problem::Delimiter { .. }
                | Problem::Required { .. }
        ),
    }
}

#[cfg(feature = "hub")]
impl From<HubError> for PipelineError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Cancelled => Self::Cancelled,
            error => Self::Hub(error),
        }
    }
}
