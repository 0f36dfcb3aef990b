//! A sweep: many schemes of one model, made one after the other and compared.

use std::path::PathBuf;

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::compare::{Comparison, MetricName};
use zeropoint_evaluator::report::Report;

use crate::auto::check_metric;
use crate::compare::{compare, write_comparison};
use crate::config::{COMPARISON, Config};
use crate::events::{Cancel, Event, Events};
use crate::identity::{Identity, model_weights};
use crate::kept::KeptOutputs;
use crate::run::{Inputs, MARKER, RunOptions, RunOutcome, check_output, produce};
use crate::sources::Sources;
use crate::statistics::KeptCache;
use crate::{PipelineError, Prepared};

/// A sweep that is ready to start: every scheme planned, all data read.
pub struct PreparedSweep {
    /// The directory of the runs.
    pub dir: PathBuf,
    /// Each run with its name.
    pub runs: Vec<(String, Prepared)>,
    /// The reports of those that are there already.
    finished: Vec<Option<Report>>,
}

/// What a sweep made.
pub struct SweepOutcome {
    /// Every run.
    pub runs: Vec<RunOutcome>,
    /// All of them on one metric; `None` where nothing was measured.
    pub comparison: Option<Comparison>,
    /// Where that lies.
    pub dir: PathBuf,
}

impl PreparedSweep {
    /// Plans every scheme of the `[sweep]` of a config, each as a run in a directory of its own in `output.dir`.
    ///
    /// # Errors
    ///
    /// A config without a sweep, and those of [`Prepared::with_sources`] for any of its schemes.
    pub fn new(config: &Config, force: bool, sources: &Sources<'_>) -> Result<Self, PipelineError> {
        let points = config.sweep.points();
        if points.is_empty() {
            let reason = "the config has no `[sweep]`; give one, or a file of it with --grid".to_owned();
            return Err(PipelineError::Option { option: "sweep", reason });
        }
        let dir = PathBuf::from(config.output_dir());
        if dir.join(MARKER).is_file() {
            let reason =
                format!("{} is a run, and a sweep writes several: give another --out", dir.display());
            return Err(PipelineError::Option { option: "--out", reason });
        }
        let mut model = None;
        let mut finished_runs = Vec::new();
        let mut prepare = |run: crate::config::SweepRun| {
            let target = dir.join(&run.name);
            let named = |source| PipelineError::OfRun { run: run.name.clone(), source: Box::new(source) };
            let config =
                config.with_changes(&run.set, &target.to_string_lossy()).map_err(|e| named(e.into()))?;
            let prepared = Prepared::with_sources(config, sources).map_err(named)?;
            let finished = if force { None } else { finished(&prepared, &mut model)? };
            if finished.is_none() {
                check_output(&prepared.config, force)?;
            }
            finished_runs.push(finished);
            Ok((run.name, prepared))
        };
        let runs = points.into_iter().map(&mut prepare).collect::<Result<_, PipelineError>>()?;
        Ok(Self { dir: dir.clone(), runs, finished: finished_runs })
    }

    /// Makes every run that is not there yet, measures the original once, and compares all on `metric` or the one that they have.
    ///
    /// Statistics of each graph, and what the original gives, are found once: in the cache and in memory.
    pub fn run(
        &self,
        options: &RunOptions,
        metric: Option<&MetricName>,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Result<SweepOutcome, PipelineError> {
        if let (Some(metric), Some((_, prepared))) = (metric, self.runs.first()) {
            check_metric(prepared, metric)?;
        }
        let kept = KeptOutputs::new(options.memory.0);
        let cache = KeptCache::new(&options.cache)?;
        let options = &RunOptions { cache: cache.dir.clone(), ..options.clone() };
        let mut outcomes = Vec::new();
        for (index, ((name, prepared), finished)) in self.runs.iter().zip(&self.finished).enumerate() {
            let total = self.runs.len();
            events.event(Event::Run { name: name.clone(), index: index + 1, total });
            if let Some(report) = finished.clone() {
                events.event(Event::RunReused { name: name.clone() });
                outcomes.push(RunOutcome { dir: PathBuf::from(prepared.config.output_dir()), report });
                continue;
            }
            let inputs = Inputs { statistics: None, kept: Some(&kept) };
            outcomes.push(produce(prepared, options, inputs, events, cancel)?);
        }
        let dirs: Vec<PathBuf> = outcomes.iter().map(|outcome| outcome.dir.clone()).collect();
        let measured = outcomes.iter().any(|outcome| !outcome.report.metrics.is_empty());
        let comparison = measured.then(|| compare(&dirs, metric)).transpose()?;
        let dir = self.dir.join(COMPARISON);
        if let Some(comparison) = &comparison {
            write_comparison(comparison, &dir)?;
        }
        Ok(SweepOutcome { runs: outcomes, comparison, dir })
    }
}

/// The report of a run that was made before: of this very config, version, model and data, and measured. `model` is the fingerprint of
/// the model, once one was asked for.
fn finished(prepared: &Prepared, model: &mut Option<Fingerprint>) -> Result<Option<Report>, PipelineError> {
    let dir = PathBuf::from(prepared.config.output_dir());
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let (Some(config), Some(report)) = (text("config.toml"), text("report.json")) else { return Ok(None) };
    let Ok(report) = Report::from_json(&report) else { return Ok(None) };
    let same = config == prepared.config.to_toml()
        && report.zeropoint.version == env!("CARGO_PKG_VERSION")
        && report.calibration.fingerprint == Some(prepared.calibration.fingerprint())
        && (prepared.tasks.is_empty() || !report.metrics.is_empty());
    if !same {
        return Ok(None);
    }
    let model = match model {
        Some(model) => *model,
        None => *model.insert(Identity::of(prepared, Some(model_weights(prepared)?), None)?.model(None)),
    };
    Ok((report.model.fingerprint == model).then_some(report))
}
