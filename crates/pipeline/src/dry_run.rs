//! The plan of a run with its sizes, memory and time, without reading a weight.

use std::time::Instant;

use candle_core::{Device, Tensor};
use serde::Serialize;
use zeropoint_models::{ModelError, TokenSequence};
use zeropoint_quantizer::Decision;

use crate::deploy::output_bytes;
use crate::{PipelineError, Prepared};

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
    /// Observing passes over them. A run takes none when its cache has the statistics already, which only the weights tell.
    pub passes: usize,
    /// Evaluation tasks with their samples.
    pub tasks: Vec<(String, usize)>,
    /// Bytes of the source's weight files.
    pub original_bytes: u64,
    /// Bytes of the output's weight files.
    pub quantized_bytes: u64,
    /// Estimated peak memory in bytes.
    pub memory_bytes: u64,
    /// Estimated seconds, from a short measurement of this machine.
    pub seconds: f64,
    /// Where the output would go.
    pub output: String,
    /// What works but should be known.
    pub warnings: Vec<String>,
}

/// Plans a run and estimates what it takes.
pub fn dry_run(prepared: &Prepared) -> Result<DryRun, PipelineError> {
    let spec = prepared.directory.spec();
    let layers = prepared.plan.linears.iter().map(|plan| {
        let linear = &spec.linears[plan.linear];
        let (weights, activations, reason) = match &plan.decision {
            Decision::Quantize(scheme) => {
                (Some(scheme.scheme.weights.to_string()), Some(scheme.scheme.activations.to_string()), None)
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
        samples: prepared.calibration.sequences.len(),
        tokens: prepared.calibration.tokens(),
        passes: 1,
        tasks: prepared.tasks.iter().map(|task| (task.name.clone(), task.samples.len())).collect(),
        original_bytes: prepared.directory.checkpoint().weight_bytes(),
        quantized_bytes: output_bytes(prepared),
        memory_bytes: memory(prepared),
        seconds: seconds(prepared)?,
        output: prepared.config.output_dir(),
        warnings: prepared.warnings.clone(),
    })
}

/// Memory at the peak, the self-check: the float model, the simulated Linears, the INT8 model with its own tables, the
/// quantised weights, and the activations of the largest batch.
fn memory(prepared: &Prepared) -> u64 {
    const PROGRAM: usize = 40 << 20;
    let spec = prepared.directory.spec();
    let linears: usize = spec.linears.iter().filter(|l| l.site.is_some()).map(|l| l.weights() * 4).sum();
    let quantized: usize =
        prepared.plan.quantized().map(|(plan, _)| spec.linears[plan.linear].weights()).sum();
    let tables: usize = spec.tables().map(|table| table.rows * table.width * 4).sum();
    let tower = &spec.towers[0];
    let widest = spec.linears.iter().map(|linear| linear.outputs).max().unwrap_or(0);
    let batch = prepared.calibration.plan.batches().iter().map(|batch| {
        let lengths = batch.iter().map(|&i| prepared.calibration.sequences[i].len());
        let heads = tower.blocks.first().map_or(0, |block| block.attention.heads);
        let scores: usize = lengths.clone().map(|n| n * n * heads).max().unwrap_or(0);
        (lengths.sum::<usize>() * (widest * 2 + tower.hidden * 6) + scores * rayon::current_num_threads()) * 4
    });
    // Float and simulated Linears; the quantised values once as stored and once packed; tables of both models.
    (PROGRAM + 2 * linears + 2 * quantized + 2 * tables + batch.max().unwrap_or(0)) as u64
}

/// Float operations of a forward pass over some sequences: two for each weight and token, and attention's two products.
fn operations<'a>(prepared: &Prepared, sequences: impl Iterator<Item = &'a TokenSequence>) -> f64 {
    let spec = prepared.directory.spec();
    let weights: usize =
        spec.linears.iter().filter(|l| l.site.is_some()).map(zeropoint_models::LinearSpec::weights).sum();
    let tower = &spec.towers[0];
    sequences
        .map(|sequence| {
            let n = sequence.len() as f64;
            2.0 * n * weights as f64 + 4.0 * n * n * (tower.hidden * tower.blocks.len()) as f64
        })
        .sum()
}

/// Time: the float work at the pace of a short measured product. Evaluation runs the float and the INT8 model.
fn seconds(prepared: &Prepared) -> Result<f64, PipelineError> {
    /// Share of the time in matrix products; the rest is norms, softmax, activations and observing.
    const PRODUCT_SHARE: f64 = 0.6;
    /// The INT8 model takes about a third of the float one's time.
    const BOTH_MODELS: f64 = 1.35;
    let calibration = operations(prepared, prepared.calibration.sequences.iter());
    let mut evaluation = 0.0;
    for task in &prepared.tasks {
        let texts: Vec<(&str, Option<&str>)> =
            task.samples.iter().map(|s| (s.text_a.as_str(), s.text_b.as_deref())).collect();
        evaluation += operations(prepared, prepared.tokenizer.encode_all(&texts)?.iter());
    }
    let pace = operations_per_second().map_err(ModelError::from)?;
    let read = prepared.directory.checkpoint().weight_bytes() as f64 / 1e9;
    Ok(read + (calibration + evaluation * BOTH_MODELS) / (pace * PRODUCT_SHARE))
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
