//! The plan of a run with its sizes, memory and time, without reading a weight.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde::Serialize;
use zeropoint_calibrator::BatchPlan;
use zeropoint_formats::staged::StagedDir;
use zeropoint_models::ModelError;
use zeropoint_quantizer::Decision;

use crate::deploy::{DENSE_WEIGHTS, dense_files, planned_output};
use crate::identity::Identity;
use crate::journal::Journal;
use crate::log_prob_cache::LogProbCache;
use crate::run::{MARKER, RunOptions};
use crate::statistics::{CacheDir, is_likely_cached};
use crate::system::free_disk;
use crate::tables::{own_bytes, own_files};
use crate::{PipelineError, Prepared, bench, disk, memory};

/// One Linear of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedLayer {
    /// Module path.
    pub path: String,
    /// `[outputs, inputs]`.
    pub shape: [usize; 2],
    /// Its weight scheme, or `None` when it stays float.
    pub weights: Option<String>,
    /// Its activation scheme.
    pub activations: Option<String>,
    /// Why it stays float.
    pub reason: Option<String>,
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DryRun {
    /// The model.
    pub model: String,
    /// Its architecture.
    pub architecture: String,
    /// The scheme.
    pub scheme: String,
    /// Every Linear.
    pub layers: Vec<PlannedLayer>,
    /// Calibration samples that would be run.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// How many of them the factors of transforms are chosen from, where any are.
    pub transform_samples: Option<usize>,
    /// Observing passes, one for factors over these alone. A run takes none when its cache has the statistics already, which only the weights tell.
    pub passes: usize,
    /// Whether the cache holds statistics of these texts for a model with these sites. They are used if it is the same
    /// model, which only its weights tell.
    pub cached: bool,
    /// Evaluation tasks with their samples.
    pub tasks: Vec<(String, usize)>,
    /// Combinations of threads, batch and tokens whose latency is measured; 0 when the config does not ask for it.
    pub latency: usize,
    /// Bytes of the source's weight files.
    pub original_bytes: u64,
    /// Bytes of the output's weight files, exactly.
    pub quantized_bytes: u64,
    /// The output's weight files with their exact sizes.
    pub files: Vec<(String, u64)>,
    /// Bytes that the run needs on the disk of the output, rounded up.
    pub disk_bytes: u64,
    /// Bytes of the log-probabilities of a decoder's original that the run would keep in its cache; 0 where it keeps none.
    pub log_probability_bytes: u64,
    /// Bytes that are free where the output goes, where the system tells.
    pub disk_free_bytes: Option<u64>,
    /// Estimated peak memory in bytes.
    pub memory_bytes: u64,
    /// Estimated seconds, from a short measurement of this machine.
    pub seconds: f64,
    /// Where the output would go.
    pub output: String,
    /// What an interrupted run has left there.
    pub interrupted: Option<InterruptedRun>,
    /// What works but should be known.
    pub warnings: Vec<String>,
}

/// What an interrupted run has left, and what would become of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InterruptedRun {
    /// Its partial directory.
    pub partial: PathBuf,
    /// What would come next, such as `calibration, batch 65 of 188`; `None` when it cannot be continued.
    pub next: Option<String>,
    /// Why it cannot be continued, as the run would say.
    pub difference: Option<String>,
}

/// Plans a run and estimates what it takes. Writes nothing and reads no weights.
pub fn dry_run(prepared: &Prepared, options: &RunOptions) -> Result<DryRun, PipelineError> {
    let output = prepared.config.output_dir();
    let mut warnings = prepared.warnings.clone();
    if let Err(error) = StagedDir::check(&output, MARKER, options.force) {
        warnings.push(format!("a run would be refused: {error}"));
    }
    let interrupted = match StagedDir::interrupted(&output, MARKER)? {
        Some(partial) if !options.restart => {
            let (next, difference) = match Journal::look(&partial, &Identity::of(prepared, None, None)?)? {
                Ok(done) => (Some(done.next(prepared.tasks.len(), prepared.config.report.latency)), None),
                Err(difference) => (None, Some(difference)),
            };
            Some(InterruptedRun { partial, next, difference })
        }
        _ => None,
    };
    let spec = prepared.graph().spec();
    let evaluation = disk::evaluation_batches(prepared)?;
    let latency =
        if prepared.config.report.latency { bench::combinations(&prepared.directory)? } else { Vec::new() };
    let shapes: Vec<[usize; 2]> = latency.iter().map(|&[_, batch, tokens]| [batch, tokens]).collect();
    let passes = disk::Passes { observes: true, evaluation: &evaluation };
    let planned = planned_output(prepared);
    let used = if prepared.is_sequential() { &prepared.calibration.plan } else { prepared.last_pass() };
    let dense = dense_files(prepared, prepared.directory.path())?;
    let dense = dense.iter().map(|(folder, file)| (format!("{folder}/{DENSE_WEIGHTS}"), file.file_bytes()));
    let dense: Vec<(String, u64)> = dense.collect();
    let own = own_files(prepared);
    let dense_bytes: u64 = dense.iter().map(|(_, bytes)| bytes).sum();
    let layers = prepared.plan.linears.iter().map(|plan| {
        let linear = &spec.linears[plan.linear];
        let (weights, activations, reason) = match &plan.decision {
            Decision::Quantize(scheme) => {
                (Some(scheme.scheme.weights.to_string()), Some(scheme.scheme.activations_in_words()), None)
            }
            Decision::Keep { reason } => (None, None, Some(reason.clone())),
        };
        let shape = [linear.outputs, linear.inputs];
        PlannedLayer { path: plan.path.clone(), shape, weights, activations, reason }
    });
    Ok(DryRun {
        model: prepared.directory.name().to_owned(),
        architecture: spec.architecture.clone(),
        scheme: prepared.scheme_name(),
        layers: layers.collect(),
        samples: used.samples(),
        tokens: prepared.calibration.tokens_in(used),
        transform_samples: prepared.factor_plan.as_ref().map(BatchPlan::samples),
        passes: prepared.observing_passes(),
        cached: is_likely_cached(prepared, &options.cache),
        tasks: prepared.tasks.iter().map(|task| (task.name.clone(), task.data.len())).collect(),
        latency: latency.len(),
        original_bytes: prepared.directory.checkpoint().weight_bytes() + dense_bytes,
        quantized_bytes: planned.weight_bytes() + dense_bytes + own_bytes(prepared),
        files: planned.files.into_iter().chain(dense).chain(own).collect(),
        disk_bytes: disk::needed(prepared, options.memory, &passes)?,
        log_probability_bytes: log_probability_bytes(prepared, &options.cache, &evaluation)?,
        disk_free_bytes: free_disk(Path::new(&output)),
        memory_bytes: memory::peak(prepared, options.memory, &evaluation, &shapes),
        seconds: seconds(prepared, &evaluation, &latency)?,
        output,
        interrupted,
        warnings,
    })
}

/// Bytes in the cache of log-probabilities for the tasks that compare next tokens, those of the same texts once.
fn log_probability_bytes(
    prepared: &Prepared,
    cache: &CacheDir,
    evaluation: &[Vec<Vec<usize>>],
) -> Result<u64, PipelineError> {
    let spec = prepared.directory.spec();
    let Some(cache) = cache.path().map(LogProbCache::at) else { return Ok(0) };
    let (mut seen, mut bytes) = (BTreeSet::new(), 0u64);
    for (task, batches) in prepared.tasks.iter().zip(evaluation) {
        if task.compares_next_tokens(spec) && seen.insert(task.token_ids(spec, &prepared.inputs)?) {
            let rows: Vec<usize> = batches.iter().map(|lengths| lengths.iter().sum()).collect();
            bytes += cache.planned_bytes(&rows, spec.output_columns());
        }
    }
    Ok(bytes.min(cache.limit()))
}

/// Float operations of a forward pass over inputs of so many rows: two for each weight and row, and attention's two
/// products. A text counts as rows of the tower for images where a model has both. `weights` are those of a row.
fn operations(prepared: &Prepared, weights: usize, rows: impl Iterator<Item = usize>) -> f64 {
    let tower = &prepared.directory.spec().towers[0];
    rows.map(|n| {
        let n = n as f64;
        2.0 * n * weights as f64 + 4.0 * n * n * (tower.hidden * tower.blocks.len()) as f64
    })
    .sum()
}

/// Time: the float work at the pace of a short measured product. Evaluation and latency run the float and the INT8 model.
fn seconds(
    prepared: &Prepared,
    evaluation: &[Vec<Vec<usize>>],
    latency: &[[usize; 3]],
) -> Result<f64, PipelineError> {
    /// Share of the time in matrix products; the rest is norms, softmax, activations and observing.
    const PRODUCT_SHARE: f64 = 0.6;
    /// The INT8 model takes about a third of the float one's time.
    const BOTH_MODELS: f64 = 1.35;
    /// GPTQ runs the float model, takes second moments, and runs the integers behind.
    const GPTQ: f64 = 2.0;
    let spec = prepared.directory.spec();
    let (weights, observed) =
        (spec.weights_per_row(&spec.towers[0]), spec.weights_per_observed_row(&spec.towers[0]));
    let set = &prepared.calibration;
    let pass = |plan: &BatchPlan| {
        let rows = plan.batches().iter().flatten().map(|&i| set.inputs[i].rows(spec));
        operations(prepared, observed, rows)
    };
    let mut calibration = match prepared.observing_passes() {
        0 => 0.0,
        1 => pass(prepared.first_pass()),
        _ => pass(prepared.first_pass()) + pass(prepared.last_pass()),
    };
    if prepared.is_sequential() {
        calibration += GPTQ * pass(&set.plan);
    }
    let evaluation: f64 =
        evaluation.iter().map(|task| operations(prepared, weights, task.iter().flatten().copied())).sum();
    let pace = operations_per_second().map_err(ModelError::from)? * PRODUCT_SHARE;
    let combination = |&[threads, batch, tokens]: &[usize; 3]| {
        let share = threads as f64 / rayon::current_num_threads() as f64;
        let pass = operations(prepared, weights, std::iter::repeat_n(tokens, batch)) / (pace * share);
        (1 + bench::passes(pass)) as f64 * pass * BOTH_MODELS
    };
    let latency: f64 = latency.iter().map(combination).sum();
    let read = prepared.directory.checkpoint().weight_bytes() as f64 / 1e9;
    Ok(read + (calibration + evaluation * BOTH_MODELS) / pace + latency)
}

fn operations_per_second() -> candle_core::Result<f64> {
    const ROWS: usize = 256;
    const WIDTH: usize = 512;
    const REPEATS: usize = 8;
    let a = Tensor::zeros((ROWS, WIDTH), candle_core::DType::F32, &Device::Cpu)?;
    let b = Tensor::zeros((WIDTH, WIDTH), candle_core::DType::F32, &Device::Cpu)?;
    a.matmul(&b)?;
    let clock = Instant::now();
    for _ in 0..REPEATS {
        a.matmul(&b)?;
    }
    Ok((2 * ROWS * WIDTH * WIDTH * REPEATS) as f64 / clock.elapsed().as_secs_f64().max(1e-6))
}
