//! Latency and throughput of a quantised model on the INT8 runtime, beside its float original on candle.

mod phases;

use std::time::{Duration, Instant};

use zeropoint_calibrator::dataset::Sample;
use zeropoint_core::Rng;
use zeropoint_evaluator::report::{Engine, Latency, LatencyRow};
use zeropoint_kernels::KvPrecision;
use zeropoint_models::{
    EmbeddingRole, ImagePixels, Model, ModelDirectory, ModelError, ModelInput, ModelSpec, PackedBatch, Task,
    TokenSequence,
};
use zeropoint_runtime::QuantizedModel;

use crate::PipelineError;
use crate::encode::batches;
use crate::events::{Cancel, Event, Events};
use crate::system::processor;

/// What is measured: every combination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchRequest {
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Samples in a batch.
    pub batches: Vec<usize>,
    /// Tokens of each sample, specials included; `None` for 32 and 128. Models of images have their own number.
    pub tokens: Option<Vec<usize>>,
    /// New tokens behind each sample of a decoder, of which one at a time is continued: prefill and decode are measured in place
    /// of passes over whole batches, and `batches` is not used.
    pub generate: Option<usize>,
    /// How keys and values are held there; `None` as attention multiplies them.
    pub kv_cache: Option<KvPrecision>,
    /// Measured passes of each engine and combination; `None` for about a second's worth, from 5 to 101.
    pub runs: Option<usize>,
}

/// One thread and as many as this thread's pool has; one sample and 32.
impl Default for BenchRequest {
    fn default() -> Self {
        let all = rayon::current_num_threads().min(MOST_THREADS);
        let threads = if all == 1 { vec![1] } else { vec![1, all] };
        Self { threads, batches: vec![1, 32], tokens: None, generate: None, kv_cache: None, runs: None }
    }
}

/// Most threads that are measured.
const MOST_THREADS: usize = 1024;
/// Most tokens of a batch: 4 GiB of f32 at width 1024, which nobody means.
const MOST_TOKENS: usize = 1 << 20;

/// Measures forward passes over random tokens (or pixels), which cost what others do.
///
/// Both engines get the same batches and take turns within a combination, so that whatever else the machine does meets both.
/// Each has one pass before that is not counted. Tokenising is not measured.
///
/// # Errors
///
/// A number that the model or the machine cannot serve, an original that is not the quantised model's, and what a pass fails
/// with.
pub fn bench(
    quantized: &QuantizedModel,
    original: Option<&ModelDirectory>,
    request: &BenchRequest,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Latency, PipelineError> {
    let cases = all_cases(quantized.directory(), request)?;
    let float =
        original.map(|directory| load_original(directory, quantized.directory().spec())).transpose()?;
    measure(quantized, float.as_ref(), request, &cases, events, cancel)
}

/// As [`bench()`], with passes over all of these samples in place of single batches: sorted by length, tokenised before.
/// `request.tokens` is not used.
pub fn bench_texts(
    quantized: &QuantizedModel,
    original: Option<&ModelDirectory>,
    samples: &[Sample],
    request: &BenchRequest,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Latency, PipelineError> {
    check(request)?;
    let of_batch = |&batch: &usize| -> Result<Case, PipelineError> {
        let (batches, rows) = batches(quantized, samples, batch)?;
        Ok(Case { batch, tokens: None, texts: Some(samples.len()), rows, work: Work::Batches(batches) })
    };
    let cases = request.batches.iter().map(of_batch).collect::<Result<Vec<_>, _>>()?;
    let float =
        original.map(|directory| load_original(directory, quantized.directory().spec())).transpose()?;
    measure(quantized, float.as_ref(), request, &cases, events, cancel)
}

/// What is measured with each number of threads.
struct Case {
    /// Samples in a batch.
    batch: usize,
    /// Tokens of each, where they are of one length.
    tokens: Option<usize>,
    /// Samples of a file.
    texts: Option<usize>,
    /// Rows of a pass.
    rows: usize,
    work: Work,
}

enum Work {
    /// A prompt and its continuation.
    Phases(phases::Case),
    /// Random samples, made when their turn comes.
    Random,
    Batches(Vec<PackedBatch>),
}

/// What a report has: [`BenchRequest::default`], with the original.
pub(crate) fn latency(
    quantized: &QuantizedModel,
    original: &Model,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Latency, PipelineError> {
    let request = for_report(quantized.directory());
    let cases = all_cases(quantized.directory(), &request)?;
    measure(quantized, Some(original), &request, &cases, events, cancel)
}

/// [`BenchRequest::default`], and what a decoder is for.
fn for_report(directory: &ModelDirectory) -> BenchRequest {
    let most = directory.spec().text().map_or(0, |(_, text)| text.max_positions);
    let is_decoder = directory.spec().head().task() == Task::CausalLm;
    let decoder = is_decoder.then(|| (vec![128.min(most / 2)], 32.min(most / 4)));
    match decoder {
        Some((tokens, new_tokens)) => {
            BenchRequest { tokens: Some(tokens), generate: Some(new_tokens), ..BenchRequest::default() }
        }
        None => BenchRequest::default(),
    }
}

/// The combinations that [`latency`] measures of a model, as threads, batch and tokens.
pub(crate) fn combinations(directory: &ModelDirectory) -> Result<Vec<[usize; 3]>, PipelineError> {
    let request = for_report(directory);
    let shapes = match request.generate {
        None => shapes(directory, &request)?,
        // Both phases.
        Some(_) => vec![[1, 128]; 2],
    };
    let of_threads = |&threads: &usize| shapes.iter().map(move |&[batch, tokens]| [threads, batch, tokens]);
    Ok(request.threads.iter().flat_map(of_threads).collect())
}

fn measure(
    quantized: &QuantizedModel,
    original: Option<&Model>,
    request: &BenchRequest,
    cases: &[Case],
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Latency, PipelineError> {
    let mut engines: Vec<(Engine, &Model)> = vec![(Engine::Int8, quantized.model())];
    engines.extend(original.map(|model| (Engine::F32, model)));

    let total = request.threads.len() * cases.len();
    let mut rows = Vec::with_capacity(total * engines.len());
    let mut done = 0;
    for &threads in &request.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|error| {
            PipelineError::Io { path: "threads".into(), source: std::io::Error::other(error) }
        })?;
        for case in cases {
            if let Work::Phases(case) = &case.work {
                let found = pool.install(|| phases::rows(quantized, &engines, case, request.runs, cancel))?;
                rows.extend(found);
                done += 1;
                events.event(Event::Benched { done, total });
                continue;
            }
            let random;
            let work = match (&case.work, case.tokens) {
                (Work::Batches(batches), _) => batches.as_slice(),
                (_, tokens) => {
                    random = [inputs(quantized.directory().spec(), case.batch, tokens.unwrap_or_default())?];
                    &random
                }
            };
            let pass = &mut |model: &Model| pass(model, work, cancel);
            let times = pool.install(|| alternate(&engines, request.runs, pass))?;
            let row = |((engine, _), times): (&(Engine, &Model), Vec<Duration>)| {
                let [q1, median, q3] = quartiles(&times).map(|time| time.as_secs_f64());
                LatencyRow {
                    engine: *engine,
                    isa: quantized.model().isa().to_string(),
                    threads: threads as u64,
                    batch: case.batch as u64,
                    tokens: case.tokens.map(|tokens| tokens as u64),
                    phase: None,
                    new_tokens: None,
                    texts: case.texts.map(|texts| texts as u64),
                    median_ms: median * 1e3,
                    q1_ms: q1 * 1e3,
                    q3_ms: q3 * 1e3,
                    tokens_per_s: case.rows as f64 / median,
                    texts_per_s: case.texts.map(|texts| texts as f64 / median),
                    runs: times.len() as u64,
                }
            };
            rows.extend(engines.iter().zip(times).map(row));
            done += 1;
            events.event(Event::Benched { done, total });
        }
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Latency { processor: processor(), processors: processors as u64, rows })
}

fn refused(option: &'static str, reason: String) -> PipelineError {
    PipelineError::Option { option, reason }
}

/// What is measured: batches, or phases.
fn all_cases(directory: &ModelDirectory, request: &BenchRequest) -> Result<Vec<Case>, PipelineError> {
    let Some(new_tokens) = request.generate else { return cases(directory, request) };
    check(request)?;
    let of_phases = |case| Case { batch: 1, tokens: None, texts: None, rows: 0, work: Work::Phases(case) };
    Ok(phases::cases(directory, request, new_tokens)?.into_iter().map(of_phases).collect())
}

/// The batches that are measured.
fn cases(directory: &ModelDirectory, request: &BenchRequest) -> Result<Vec<Case>, PipelineError> {
    let case = |[batch, tokens]: [usize; 2]| Case {
        batch,
        tokens: Some(tokens),
        texts: None,
        rows: batch * tokens,
        work: Work::Random,
    };
    Ok(shapes(directory, request)?.into_iter().map(case).collect())
}

/// The same as samples and their tokens.
fn shapes(directory: &ModelDirectory, request: &BenchRequest) -> Result<Vec<[usize; 2]>, PipelineError> {
    check(request)?;
    let lengths = lengths(directory.spec(), directory.max_tokens(), request)?;
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let most = MOST_TOKENS / longest.max(1);
    if let Some(bad) = request.batches.iter().find(|&&batch| batch > most) {
        return Err(refused(
            "--batch",
            format!("{bad} is not from 1 to {most}, the most with {longest} tokens each"),
        ));
    }
    let of_batch = |&batch: &usize| lengths.iter().map(move |&tokens| [batch, tokens]);
    Ok(request.batches.iter().flat_map(of_batch).collect())
}

/// Rows of a sample, for each that is measured.
fn lengths(spec: &ModelSpec, most: usize, request: &BenchRequest) -> Result<Vec<usize>, PipelineError> {
    const DEFAULT: [usize; 2] = [32, 128];
    const LEAST: usize = 2;
    match (&request.tokens, spec.text(), spec.image()) {
        (Some(tokens), Some(_), _) => match tokens.iter().find(|&&tokens| tokens < LEAST || tokens > most) {
            Some(bad) => Err(refused(
                "--tokens",
                format!("{bad} is not from {LEAST} to {most}, which this model takes"),
            )),
            None => Ok(tokens.clone()),
        },
        (None, Some(_), _) => {
            let mut lengths: Vec<usize> = DEFAULT.into_iter().map(|length| length.min(most)).collect();
            lengths.dedup();
            Ok(lengths)
        }
        (Some(_), None, Some((_, image))) => Err(refused(
            "--tokens",
            format!("this model takes images, of which each has {} rows; leave the option out", image.rows()),
        )),
        (None, None, Some((_, image))) => Ok(vec![image.rows()]),
        (_, None, None) => Ok(Vec::new()),
    }
}

fn check(request: &BenchRequest) -> Result<(), PipelineError> {
    if let Some(bad) = request.threads.iter().find(|&&threads| threads == 0 || threads > MOST_THREADS) {
        return Err(refused("--threads", format!("{bad} is not from 1 to {MOST_THREADS}")));
    }
    if request.batches.contains(&0) {
        return Err(refused("--batch", "0 is not at least 1".to_owned()));
    }
    if request.runs == Some(0) {
        return Err(refused("--runs", "0 is not at least 1".to_owned()));
    }
    Ok(())
}

/// The float model, which must have the quantised one's Linears.
fn load_original(directory: &ModelDirectory, quantized: &ModelSpec) -> Result<Model, PipelineError> {
    let original = directory.spec();
    let shapes = |spec: &ModelSpec| -> Vec<(String, usize, usize)> {
        spec.linears.iter().map(|linear| (linear.path.clone(), linear.outputs, linear.inputs)).collect()
    };
    if directory.quantization_config().is_some() {
        return Err(refused(
            "--against",
            format!("{} is quantised; give its original", directory.path().display()),
        ));
    }
    if original.architecture != quantized.architecture || shapes(original) != shapes(quantized) {
        let reason = format!(
            "{} is not the original of this model: it has other Linears; give the one that the model was made of",
            directory.path().display()
        );
        return Err(refused("--against", reason));
    }
    Ok(Model::load(directory)?)
}

/// A batch of random samples of one length.
fn inputs(spec: &ModelSpec, batch: usize, tokens: usize) -> Result<PackedBatch, ModelError> {
    let mut rng = Rng::new(1);
    let samples: Vec<ModelInput> = match (spec.text(), spec.image()) {
        (Some((_, text)), _) => {
            let word = text.tables.iter().find(|table| table.role == EmbeddingRole::Word);
            let vocabulary = word.map_or(1, |table| table.rows) as u64;
            let sample = |_| TokenSequence {
                ids: (0..tokens).map(|_| rng.below(vocabulary) as u32).collect(),
                type_ids: vec![0; tokens],
                prompt: 0,
            };
            (0..batch).map(sample).map(ModelInput::Tokens).collect()
        }
        (None, Some((_, image))) => {
            let [height, width] = image.image_size;
            let shape = [image.channels, height, width];
            let values = shape.iter().product();
            let sample =
                |_| ImagePixels { values: (0..values).map(|_| rng.uniform() as f32).collect(), shape };
            (0..batch).map(sample).map(ModelInput::Image).collect()
        }
        (None, None) => Vec::new(),
    };
    PackedBatch::new(&samples)
}

/// The time of one pass over these batches.
fn pass(model: &Model, batches: &[PackedBatch], cancel: &Cancel) -> Result<Duration, PipelineError> {
    let clock = Instant::now();
    for batch in batches {
        if cancel.is_requested() {
            return Err(PipelineError::Cancelled);
        }
        std::hint::black_box(model.forward(batch)?);
    }
    Ok(clock.elapsed())
}

/// Times of a pass of one engine, in parts.
trait Times {
    fn seconds(&self) -> f64;
}

impl Times for Duration {
    fn seconds(&self) -> f64 {
        self.as_secs_f64()
    }
}

impl Times for [Duration; 2] {
    fn seconds(&self) -> f64 {
        self.iter().sum::<Duration>().as_secs_f64()
    }
}

/// The times of each engine, which take turns.
fn alternate<T: Times>(
    engines: &[(Engine, &Model)],
    runs: Option<usize>,
    time: &mut (dyn FnMut(&Model) -> Result<T, PipelineError> + Send),
) -> Result<Vec<Vec<T>>, PipelineError> {
    let mut slowest = 0.0f64;
    for (_, model) in engines {
        slowest = slowest.max(time(model)?.seconds());
    }
    let runs = runs.unwrap_or_else(|| passes(slowest));
    let mut times: Vec<Vec<T>> = engines.iter().map(|_| Vec::with_capacity(runs)).collect();
    for run in 0..runs {
        // Each goes first as often as last.
        for turn in 0..engines.len() {
            let engine = if run % 2 == 0 { turn } else { engines.len() - 1 - turn };
            times[engine].push(time(engines[engine].1)?);
        }
    }
    Ok(times)
}

/// Passes for about a second's worth, by the seconds of the slowest engine.
pub(crate) fn passes(slowest: f64) -> usize {
    const SECOND: f64 = 1.0;
    ((SECOND / slowest.max(1e-9)) as usize).clamp(5, 101)
}

/// Quartiles of at least one time, each of them a measured one.
fn quartiles(times: &[Duration]) -> [Duration; 3] {
    let mut times = times.to_vec();
    times.sort_unstable();
    let last = times.len() - 1;
    [last / 4, last / 2, (3 * last).div_ceil(4)].map(|at| times[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_filled_within_limits() {
        assert_eq!([0.0, 0.001, 0.05, 0.19, 0.21, 60.0].map(passes), [101, 101, 20, 5, 5, 5]);
    }

    #[test]
    fn quartiles_are_measured_times() {
        let of = |times: &[u64]| {
            quartiles(&times.iter().map(|&ms| Duration::from_millis(ms)).collect::<Vec<_>>())
                .map(|time| time.as_millis())
        };
        assert_eq!(of(&[5]), [5, 5, 5]);
        assert_eq!(of(&[9, 1, 5]), [1, 5, 9]);
        assert_eq!(of(&[5, 1, 4, 2, 3]), [2, 3, 4]);
        assert_eq!(of(&[8, 7, 6, 5, 4, 3, 2, 1, 0]), [2, 4, 6]);
    }
}
