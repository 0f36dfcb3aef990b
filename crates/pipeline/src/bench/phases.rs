//! The two phases of a text's continuation: tokens that go through together, and tokens that go through one by one.

use std::time::{Duration, Instant};

use zeropoint_core::Rng;
use zeropoint_evaluator::report::{Engine, LatencyRow, Phase};
use zeropoint_kernels::KvPrecision;
use zeropoint_models::{Model, ModelDirectory, Task};
use zeropoint_runtime::{QuantizedModel, Sampler, Sampling};

use super::{alternate, lengths, quartiles, refused};
use crate::PipelineError;
use crate::bench::BenchRequest;
use crate::events::Cancel;

/// What is measured with each number of threads.
pub(super) struct Case {
    prompt: Vec<u32>,
    new_tokens: usize,
    kv_cache: Option<KvPrecision>,
}

/// Prompts of random tokens, each with so many new ones behind it.
pub(super) fn cases(
    directory: &ModelDirectory,
    request: &BenchRequest,
    new_tokens: usize,
) -> Result<Vec<Case>, PipelineError> {
    let spec = directory.spec();
    if spec.head().task() != Task::CausalLm {
        let reason = format!("{} does not continue texts; leave it out", spec.architecture);
        return Err(refused("--generate", reason));
    }
    let most = spec.text().map_or(0, |(_, text)| text.max_positions);
    if new_tokens == 0 || new_tokens >= most {
        let reason =
            format!("{new_tokens} is not from 1 to {}, which this model makes at most", most.max(1) - 1);
        return Err(refused("--generate", reason));
    }
    let vocabulary = spec.tables().next().map_or(1, |table| table.rows) as u64;
    let prompt = |length| {
        let mut rng = Rng::new(1);
        (0..length).map(|_| rng.below(vocabulary) as u32).collect()
    };
    let lengths = lengths(spec, most - new_tokens, request)?;
    let kv_cache = request.kv_cache;
    Ok(lengths.into_iter().map(|length| Case { prompt: prompt(length), new_tokens, kv_cache }).collect())
}

/// The rows of a case on the pool of this thread: prefill of each engine, then decode of each.
pub(super) fn rows(
    quantized: &QuantizedModel,
    engines: &[(Engine, &Model)],
    case: &Case,
    runs: Option<usize>,
    cancel: &Cancel,
) -> Result<Vec<LatencyRow>, PipelineError> {
    let times = alternate(engines, runs, &mut |model| run(model, case, cancel))?;
    let threads = rayon::current_num_threads() as u64;
    let row = |engine: Engine, phase: Phase, times: Vec<Duration>| {
        let [q1, median, q3] = quartiles(&times).map(|time| time.as_secs_f64());
        let tokens = if phase == Phase::Prefill { case.prompt.len() } else { case.new_tokens };
        LatencyRow {
            engine,
            isa: quantized.model().isa().to_string(),
            threads,
            batch: 1,
            tokens: Some(case.prompt.len() as u64),
            phase: Some(phase),
            new_tokens: (phase == Phase::Decode).then_some(case.new_tokens as u64),
            texts: None,
            median_ms: median * 1e3,
            q1_ms: q1 * 1e3,
            q3_ms: q3 * 1e3,
            tokens_per_s: tokens as f64 / median,
            texts_per_s: None,
            runs: times.len() as u64,
        }
    };
    let mut rows = Vec::with_capacity(2 * engines.len());
    for phase in [Phase::Prefill, Phase::Decode] {
        for ((engine, _), times) in engines.iter().zip(&times) {
            let of_phase =
                |[prefill, decode]: &[Duration; 2]| if phase == Phase::Prefill { *prefill } else { *decode };
            rows.push(row(*engine, phase, times.iter().map(of_phase).collect()));
        }
    }
    Ok(rows)
}

/// The times of both phases. The first new token is the prompt's; each of the measured steps makes the one after it, chosen as
/// the most probable.
fn run(model: &Model, case: &Case, cancel: &Cancel) -> Result<[Duration; 2], PipelineError> {
    let mut sampler =
        Sampler::new(Sampling::default()).map_err(|error| refused("--generate", error.to_string()))?;
    let mut choose =
        |logits: &[f32]| sampler.choose(logits).map_err(|error| refused("--generate", error.to_string()));
    let clock = Instant::now();
    let mut cache = match case.kv_cache {
        None => model.new_cache()?,
        Some(precision) => model.new_cache_in(precision)?,
    };
    let logits = model.extend(&case.prompt, &mut cache, 1)?.values;
    let mut token = choose(&logits)?;
    let prefill = clock.elapsed();
    let clock = Instant::now();
    for _ in 0..case.new_tokens {
        if cancel.is_requested() {
            return Err(PipelineError::Cancelled);
        }
        let logits = model.extend(&[token], &mut cache, 1)?.values;
        token = choose(&logits)?;
    }
    std::hint::black_box(token);
    Ok([prefill, clock.elapsed()])
}
