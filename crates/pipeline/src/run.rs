//! The whole way: statistics, model, self-check, evaluation, card, reports, and the directory's final name.

use std::path::{Path, PathBuf};

use zeropoint_evaluator::report::Report;
use zeropoint_formats::staged::StagedDir;

use crate::config::Config;
use crate::disk;
use crate::events::{Cancel, Event, Events};
use crate::header::expect_file;
use crate::journal::JOURNAL;
use crate::kept::KeptOutputs;
use crate::memory::Memory;
use crate::stages::{Progress, Work};
use crate::statistics::CacheDir;
use crate::{PipelineError, Prepared};

/// The file that says a directory was written by us and may be replaced with `--force`.
pub(crate) const MARKER: &str = ".zeropoint";

/// How a run treats what is there already.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunOptions {
    /// Replace an output directory that an earlier run wrote.
    pub force: bool,
    /// Begin anew instead of going on with what an interrupted run has left.
    pub restart: bool,
    /// Where statistics and the original's log-probabilities are kept between runs.
    pub cache: CacheDir,
    /// What may be in memory.
    pub memory: Memory,
}

/// What a run made.
#[derive(Debug, Clone)]
pub struct RunOutcome {
    /// The run directory.
    pub dir: PathBuf,
    /// Its report.
    pub report: Report,
}

impl RunOutcome {
    /// Whether every gate was kept.
    pub fn gates_passed(&self) -> bool {
        self.report.gates.iter().all(|gate| gate.passed)
    }
}

/// Does everything that a config asks for and leaves a complete run directory.
///
/// It works in `NAME.partial`, beside the directory that it makes. A run that is stopped, killed, or out of disk leaves
/// that with a journal, and the same run goes on from there, to the bytes that it would have made in one go. A run
/// whose inputs are at fault leaves nothing, and so does one that was stopped before it had done anything.
pub fn run(
    prepared: &Prepared,
    options: &RunOptions,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<RunOutcome, PipelineError> {
    produce(prepared, options, Inputs::default(), events, cancel)
}

/// As [`run`], with statistics from a file instead of an observing pass, and without evaluation.
pub fn quantize(
    prepared: &Prepared,
    statistics: &Path,
    options: &RunOptions,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<RunOutcome, PipelineError> {
    produce(prepared, options, Inputs { statistics: Some(statistics), kept: None }, events, cancel)
}

/// Whether a run of this config may write its output, by what stands there now: asked before a model is fetched or data
/// are read, and once more by the run itself. Touches nothing.
pub fn check_output(config: &Config, force: bool) -> Result<(), PipelineError> {
    StagedDir::check(config.output_dir(), MARKER, force)
        .map_err(|error| PipelineError::from(error).named_by(config, &["output.dir"], "the output"))
}

/// What a run is given beside its config.
#[derive(Clone, Copy, Default)]
pub(crate) struct Inputs<'a> {
    /// Statistics in place of an observing pass; then nothing is evaluated.
    pub(crate) statistics: Option<&'a Path>,
    /// What other runs have kept of the original.
    pub(crate) kept: Option<&'a KeptOutputs>,
}

pub(crate) fn produce(
    prepared: &Prepared,
    options: &RunOptions,
    Inputs { statistics, kept }: Inputs<'_>,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<RunOutcome, PipelineError> {
    prepared.model.check_whole()?;
    for warning in &prepared.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    statistics.map_or(Ok(()), expect_file)?;
    let target = PathBuf::from(prepared.config.output_dir());
    let at_output = |error: PipelineError| error.named_by(&prepared.config, &["output.dir"], "the output");
    let left = StagedDir::interrupted(&target, MARKER).map_err(|e| at_output(e.into()))?;
    // Before anything is removed.
    check_inputs(prepared, &target, options, statistics).map_err(at_output)?;
    if let Some(left) = &left {
        check_inputs(prepared, left, options, statistics).map_err(at_output)?;
    }
    disk::check(prepared, (options.memory, statistics.is_some()), &target, left.as_deref())
        .map_err(at_output)?;
    let staged = if options.restart {
        StagedDir::create(&target, MARKER, options.force)
    } else {
        StagedDir::resume(&target, MARKER, options.force)
    };
    let mut staged = staged.map_err(|e| at_output(e.into()))?;
    let work = Work { prepared, options, statistics, kept, events, cancel, dir: staged.path().to_owned() };
    let mut progress = Progress::Unknown;
    let report = match work.run(&staged, &mut progress) {
        Ok(report) => report,
        Err(error) => {
            let resumable = error.is_resumable();
            return Err(match progress {
                Progress::Something if resumable => {
                    staged.keep(true);
                    interrupted(prepared, (options, statistics.is_some()), error, staged.path().to_owned())
                }
                // The same inputs would fail again, and others are another run.
                Progress::Something | Progress::Nothing => {
                    staged.keep(false);
                    error
                }
                Progress::Unknown => error,
            });
        }
    };
    // What is complete is not lost when its name cannot be had.
    staged.keep(true);
    let partial = staged.path().to_owned();
    if let Err(error) = staged.publish_without(JOURNAL) {
        return Err(interrupted(prepared, (options, statistics.is_some()), error.into(), partial));
    }
    Ok(RunOutcome { dir: target, report })
}

/// The error of a run that can be continued, with what a full disk is short of.
fn interrupted(
    prepared: &Prepared,
    (options, is_given): (&RunOptions, bool),
    error: PipelineError,
    partial: PathBuf,
) -> PipelineError {
    let needed = error.is_full_disk().then(|| disk::needed_by(prepared, options.memory, is_given).ok());
    let missing = needed.flatten().map(|needed| needed.saturating_sub(disk::used(&partial)));
    PipelineError::Interrupted { partial, missing, source: Box::new(error) }
}

/// Nothing that the run reads may lie in a directory that it replaces.
fn check_inputs(
    prepared: &Prepared,
    target: &Path,
    options: &RunOptions,
    statistics: Option<&Path>,
) -> Result<(), PipelineError> {
    let Ok(output) = target.canonicalize() else { return Ok(()) };
    let config = &prepared.config;
    let tasks = config.evaluation.tasks.iter().filter_map(|task| task.data.as_ref());
    let data = config.calibration.data.iter().chain(tasks).map(|source| Path::new(&source.path));
    let cache = match &options.cache {
        CacheDir::At(dir) => Some(dir.as_path()),
        _ => None,
    };
    let inputs = data.chain([prepared.directory.path()]).chain(statistics).chain(cache);
    for input in inputs {
        if input.canonicalize().is_ok_and(|real| real.starts_with(&output)) {
            return Err(PipelineError::InputInside { output: target.to_owned(), input: input.to_owned() });
        }
    }
    Ok(())
}
