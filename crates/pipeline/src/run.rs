//! The whole way: statistics, model, self-check, evaluation, card, reports, and the directory's final name.

use std::path::{Path, PathBuf};
use std::time::Instant;

use zeropoint_evaluator::report::{Gate, Metric, Report, Timing};
use zeropoint_formats::staged::StagedDir;
use zeropoint_formats::write_file_atomically;
use zeropoint_models::Model;
use zeropoint_observer::StatisticsFile;
use zeropoint_runtime::QuantizedModel;

use crate::check::{layer_errors, self_check, simulate};
use crate::deploy::{MODEL_DIR, deploy, output_bytes};
use crate::evaluate::{gates, measure};
use crate::events::{Cancel, Event, Events, Stage};
use crate::header::expect_file;
use crate::report::{Findings, build, card};
use crate::statistics::{CacheDir, Origin, collect};
use crate::system::{free_disk, peak_memory};
use crate::{PipelineError, Prepared, convert};

/// The file that says a directory was written by us and may be replaced with `--force`.
pub(crate) const MARKER: &str = ".zeropoint";

/// How a run treats what is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// Replace an output directory that an earlier run wrote.
    pub force: bool,
    /// Where statistics are kept between runs.
    pub cache: CacheDir,
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

/// Does everything that a config asks for and leaves a complete run directory, or nothing.
pub fn run(
    prepared: &Prepared,
    options: &RunOptions,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<RunOutcome, PipelineError> {
    produce(prepared, options, None, true, events, cancel)
}

/// As [`run`], with statistics from a file instead of an observing pass, and without evaluation.
pub fn quantize(
    prepared: &Prepared,
    statistics: &Path,
    options: &RunOptions,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<RunOutcome, PipelineError> {
    produce(prepared, options, Some(statistics), false, events, cancel)
}

fn produce(
    prepared: &Prepared,
    options: &RunOptions,
    statistics: Option<&Path>,
    evaluate: bool,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<RunOutcome, PipelineError> {
    for warning in &prepared.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    statistics.map_or(Ok(()), expect_file)?;
    let target = PathBuf::from(prepared.config.output_dir());
    let at_output = |error: PipelineError| error.named_by(&prepared.config, &["output.dir"], "the output");
    check_disk(prepared, &target).map_err(at_output)?;
    let staged = StagedDir::create(&target, MARKER, options.force).map_err(|e| at_output(e.into()))?;
    check_inputs(prepared, &target, options, statistics).map_err(at_output)?;
    write(&staged.path().join("config.toml"), prepared.config.to_toml())?;

    let mut timing =
        Timing { threads: u32::try_from(rayon::current_num_threads()).ok(), ..Timing::default() };
    let clock = Instant::now();
    events.event(Event::Started(Stage::Load));
    let checkpoint = prepared.directory.checkpoint();
    let weights = checkpoint.content_fingerprint()?;
    let origin = Origin::of(prepared, weights)?;
    let given = statistics.map(|path| given_statistics(path, origin)).transpose()?;
    let float = Model::load(&prepared.directory)?;
    timing.load_s = clock.elapsed().as_secs_f64();
    tracing::info!(seconds = timing.load_s, "float model loaded");

    let clock = Instant::now();
    let (statistics, observed) = match given {
        Some(file) => (file, false),
        None => collect(prepared, origin, &float, &options.cache, events, cancel)?,
    };
    statistics.save(staged.path().join("statistics.safetensors"))?;
    timing.calibrate_s = clock.elapsed().as_secs_f64();
    tracing::info!(seconds = timing.calibrate_s, observed, "statistics ready");

    let clock = Instant::now();
    events.event(Event::Started(Stage::Quantize));
    let model_dir = staged.path().join(MODEL_DIR);
    std::fs::create_dir(&model_dir)
        .map_err(|source| PipelineError::Io { path: model_dir.clone(), source })?;
    let deployed = deploy(prepared, &statistics, float.isa(), &model_dir, events, cancel)?;
    events.event(Event::Started(Stage::SelfCheck));
    let written = QuantizedModel::load(&model_dir, convert::task(prepared.config.model.task))?;
    let simulated = simulate(prepared, &float, &deployed)?;
    let self_check = self_check(prepared, &simulated, &written, &deployed)?;
    let errors = layer_errors(prepared, &float, &simulated, &deployed)?;
    drop(simulated);
    timing.quantize_s = clock.elapsed().as_secs_f64();
    tracing::info!(seconds = timing.quantize_s, linears = deployed.len(), "model written and checked");

    let clock = Instant::now();
    let (metrics, gates): (Vec<Metric>, Vec<Gate>) = if evaluate {
        let metrics = measure(prepared, &float, &written, events, cancel)?;
        let gates = gates(prepared, &metrics);
        (metrics, gates)
    } else {
        (Vec::new(), Vec::new())
    };
    timing.evaluate_s = clock.elapsed().as_secs_f64();
    tracing::info!(seconds = timing.evaluate_s, metrics = metrics.len(), "evaluated");
    timing.peak_rss_bytes = peak_memory();

    events.event(Event::Started(Stage::Publish));
    let findings = Findings {
        weights,
        statistics: &statistics,
        observed,
        deployed: &deployed,
        output: written.directory().checkpoint(),
        errors,
        self_check,
        metrics,
        gates,
        timing,
    };
    let report = build(prepared, findings);
    write(&model_dir.join("README.md"), report.to_model_card(card(prepared)))?;
    write(&staged.path().join("report.json"), report.to_json())?;
    write(&staged.path().join("report.md"), report.to_markdown())?;
    if cancel.is_requested() {
        return Err(PipelineError::Cancelled);
    }
    let dir = staged.publish()?;
    debug_assert_eq!(dir.file_name(), target.file_name());
    Ok(RunOutcome { dir: target, report })
}

fn write(path: &Path, text: String) -> Result<(), PipelineError> {
    Ok(write_file_atomically(path, text)?)
}

fn given_statistics(path: &Path, origin: Origin) -> Result<StatisticsFile, PipelineError> {
    let file = StatisticsFile::load(path)?;
    origin.check(&file, path)?;
    Ok(file)
}

/// The output, statistics and reports fit on the disk; a little more is asked for than the weights alone take.
fn check_disk(prepared: &Prepared, target: &Path) -> Result<(), PipelineError> {
    const REPORTS: u64 = 16 << 20;
    let needed = output_bytes(prepared).saturating_add(REPORTS);
    match free_disk(target) {
        Some(available) if available < needed => {
            Err(PipelineError::DiskSpace { path: target.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
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
