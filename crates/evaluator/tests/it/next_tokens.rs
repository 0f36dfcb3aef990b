//! Tasks of decoders: what they count, and that every pass hands all of its batches over at once.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use zeropoint_calibrator::Inputs;
use zeropoint_calibrator::dataset::{Choices, Sample};
use zeropoint_core::Rng;
use zeropoint_evaluator::log_probabilities::RowCode;
use zeropoint_evaluator::metrics::next_token::NextToken;
use zeropoint_evaluator::report::Metric;
use zeropoint_evaluator::tasks::{
    BatchOutputs, Forward, Models, Options, Task, TaskData, Windows, names, run_task,
};
use zeropoint_kernels::Isa;
use zeropoint_models::{
    Model, ModelDirectory, ModelError, ModelSpec, Outputs, PackedBatch, SourceRef, Task as ModelTask,
    TokenSequence,
};

const TEXT: &str = "the river is on fire\n\nit was a cold night for the model\r\n";

fn open(fixture: &str) -> ModelDirectory {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
    ModelDirectory::open(&SourceRef::Directory(path), ModelTask::Auto).expect("it is a model")
}

/// Two models of one vocabulary that have nothing else in common, and the tokens of a text.
struct Scene {
    original: Model,
    quantized: Model,
    inputs: Inputs,
    ids: Vec<u32>,
    before: Vec<u32>,
}

impl Scene {
    fn new() -> Self {
        let directory = open("llama-causal");
        let inputs = Inputs::of(&directory, None).expect("a tokenizer");
        let tokenizer = inputs.tokenizer().expect("a tokenizer");
        Self {
            ids: tokenizer.token_ids(&TEXT.repeat(4)).expect("a text"),
            before: tokenizer.specials_around().expect("a tokenizer").0,
            original: Model::load(&directory).expect("it loads"),
            quantized: Model::load(&open("mistral-causal")).expect("it loads"),
            inputs,
        }
    }

    fn measure(&self, data: TaskData, original: &dyn Forward, quantized: &dyn Forward) -> Vec<Metric> {
        let activation = open("llama-causal").score_activation().expect("a config");
        let models = Models { original, quantized, inputs: &self.inputs, activation };
        let options = Options { batch_size: 3, resamples: 100, seed: 5 };
        let task = Task { name: "task".to_owned(), data };
        run_task(&task, &models, options, &mut |_, _| ControlFlow::Continue(())).expect("it is measured")
    }

    /// The probabilities of both models for the token after each of a sequence.
    fn probabilities(&self, ids: &[u32]) -> Vec<(Vec<f64>, Vec<f64>)> {
        let sequence = TokenSequence { ids: ids.to_vec(), type_ids: vec![0; ids.len()], prompt: 0 };
        let batch = PackedBatch::new([&sequence]).expect("a sequence");
        let of = |model: &Model| -> Vec<Vec<f64>> {
            let softmax = |row: &[f32]| {
                let all: Vec<f64> = row.iter().map(|logit| f64::from(*logit).exp()).collect();
                let sum: f64 = all.iter().sum();
                all.into_iter().map(|value| value / sum).collect()
            };
            model.forward(&batch).expect("it runs").rows().map(softmax).collect()
        };
        of(&self.original).into_iter().zip(of(&self.quantized)).collect()
    }
}

fn value(metrics: &[Metric], name: &str) -> f64 {
    metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}")).quantized
}

#[test]
fn fidelity_is_over_tokens_and_not_over_texts() {
    let scene = Scene::new();
    // A long window and a short one: every token counts the same.
    let tokens = vec![scene.ids[..40].to_vec(), scene.ids[40..45].to_vec()];
    let windows = Windows { tokens: tokens.clone(), ..Windows::default() };
    let metrics = scene.measure(TaskData::WindowFidelity(windows), &scene.original, &scene.quantized);
    let (mut kl, mut changes, mut agreed) = (Vec::new(), Vec::new(), 0.0);
    for ids in &tokens {
        let rows = scene.probabilities(ids);
        for ((p, q), &next) in rows.iter().zip(&ids[1..]) {
            kl.push(p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
            changes.push(q[next as usize] - p[next as usize]);
            let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            agreed += f64::from(best(p) == best(q));
        }
    }
    let count = kl.len() as f64;
    assert_eq!(kl.len(), 39 + 4);
    let near = |name: &str, expected: f64| {
        let found = value(&metrics, name);
        assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{name}: {found}, not {expected}");
    };
    near(names::KL_MEAN, kl.iter().sum::<f64>() / count);
    near(names::TOP1_AGREEMENT, agreed / count);
    near(names::PROBABILITY_CHANGE, changes.iter().sum::<f64>() / count);
    near(names::PROBABILITY_CHANGE_RMS, (changes.iter().map(|c| c * c).sum::<f64>() / count).sqrt());
    kl.sort_by(f64::total_cmp);
    let at = |percent: f64| {
        let position = percent / 100.0 * (count - 1.0);
        let (low, high) = (kl[position as usize], kl[position.ceil() as usize]);
        low + (high - low) * position.fract()
    };
    near(names::KL_P99, at(99.0));
    near(names::KL_P999, at(99.9));
    // Of 43 tokens none lies beyond the percentiles, and of an extreme nothing is known.
    for metric in &metrics {
        let is_extreme = [names::KL_P99, names::KL_P999, names::COSINE_MIN].contains(&metric.name.as_str());
        assert_eq!(metric.stderr.is_nan(), is_extreme, "{metric:?}");
        assert!(metric.ideal && metric.samples == 2, "{metric:?}");
    }
    // A model against itself loses nothing.
    let windows = Windows { tokens, ..Windows::default() };
    let same = scene.measure(TaskData::WindowFidelity(windows), &scene.original, &scene.original);
    assert!(same.iter().all(|metric| metric.delta == 0.0), "{same:?}");
}

/// What `transformers` says in float32, counted as llama.cpp counts.
#[test]
fn perplexity_counts_as_llama_cpp_does() {
    let scene = Scene::new();
    assert_eq!(scene.before, [1], "the tokenizer puts one token before a text");
    let windows = Windows::llama_cpp(&scene.before, &scene.ids, 16, usize::MAX);
    assert_eq!(windows.tokens.len(), 7);
    let metrics = scene.measure(TaskData::Perplexity(windows), &scene.original, &scene.original);
    let expected = 214.949_062_687_275_22;
    assert!((metrics[0].original / expected - 1.0).abs() < 1e-5, "{metrics:?}");
}

#[test]
fn texts_without_a_second_token_are_refused() {
    let scene = Scene::new();
    let windows = Windows { tokens: vec![vec![5], vec![6]], ..Windows::default() };
    let activation = open("llama-causal").score_activation().expect("a config");
    let models =
        Models { original: &scene.original, quantized: &scene.original, inputs: &scene.inputs, activation };
    let task = Task { name: "short".to_owned(), data: TaskData::Perplexity(windows) };
    let options = Options { batch_size: 3, resamples: 100, seed: 5 };
    let error = run_task(&task, &models, options, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.to_string(), "task `short`: every text has fewer than two tokens; a text is expected");
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn sixteen_bits_keep_the_divergence_of_a_real_model() {
    let models = std::env::var("ZEROPOINT_MODELS").expect("a directory with models");
    let source = SourceRef::Directory(Path::new(&models).join("smollm2"));
    let directory = ModelDirectory::open(&source, ModelTask::Auto).unwrap();
    let (model, tokenizer) = (Model::load(&directory).expect("it loads"), directory.tokenizer(None).unwrap());
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../calibration-data/general-en.jsonl");
    let ids = tokenizer.token_ids(&std::fs::read_to_string(text).unwrap()).unwrap();
    let (mut rng, mut rows) = (Rng::new(1), 0.0);
    let (mut divergence, mut change, mut loss_change) = (0.0, 0.0, 0.0);
    for window in Windows::new(&ids, 128, 128, 3).tokens {
        let sequence = TokenSequence { type_ids: vec![0; window.len()], ids: window.clone(), prompt: 0 };
        let outputs = model.forward(&PackedBatch::new([&sequence]).expect("a sequence")).unwrap();
        let code = RowCode::new(outputs.columns);
        for (logits, &next) in outputs.rows().zip(&window[1..]) {
            // Another model: the same logits with the noise of a coarse quantisation.
            let other: Vec<f32> = logits.iter().map(|logit| logit + (rng.normal() * 0.4) as f32).collect();
            let (mut bytes, mut coded) = (Vec::new(), vec![0.0; logits.len()]);
            code.encode(logits, Some(next as usize), &mut bytes);
            code.decode(&bytes, &mut coded).unwrap();
            let exact = NextToken::compare(logits, &other, next as usize).unwrap();
            let found = NextToken::compare(&coded, &other, next as usize).unwrap();
            assert!((found.kl - exact.kl).abs() < 1e-5, "{found:?} {exact:?}");
            assert_eq!(found.same_top, exact.same_top);
            divergence += exact.kl;
            change += found.kl - exact.kl;
            loss_change += found.losses.0 - exact.losses.0;
            rows += 1.0;
        }
    }
    assert!(divergence / rows > 0.01, "{divergence}");
    assert!((change / rows).abs() < 1e-6, "{change:e} over {rows} rows");
    assert!((loss_change / rows).abs() < 1e-6, "{loss_change:e} over {rows} rows");
}

/// A model that is only asked for all batches of a pass together.
struct Whole<'a> {
    model: &'a Model,
    passes: AtomicUsize,
}

impl Forward for Whole<'_> {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn isa(&self) -> Isa {
        self.model.isa()
    }

    fn forward(&self, _batch: &PackedBatch) -> Result<Outputs, ModelError> {
        Err(ModelError::Sample { reason: "one batch alone".to_owned() })
    }

    fn forward_all<'a>(&'a self, batches: &'a [PackedBatch]) -> BatchOutputs<'a> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        Box::new(batches.iter().map(|batch| self.model.forward(batch)))
    }
}

#[test]
fn a_task_is_one_pass_over_all_batches() {
    let scene = Scene::new();
    let windows = || Windows::new(&scene.ids, 8, 8, usize::MAX);
    let sample = |text: &str| Sample { text_a: text.to_owned(), ..Sample::default() };
    let question = Choices {
        context: "the river is".to_owned(),
        choices: [" on fire", " a model", " cold"].map(str::to_owned).to_vec(),
        answer: 1,
        ..Choices::default()
    };
    let tasks = [
        TaskData::Perplexity(windows()),
        TaskData::WindowFidelity(windows()),
        TaskData::Fidelity(TEXT.split(' ').map(sample).collect()),
        TaskData::MultipleChoice(vec![question; 4]),
    ];
    for data in tasks {
        let [original, quantized] =
            [&scene.original, &scene.quantized].map(|model| Whole { model, passes: AtomicUsize::new(0) });
        let found = scene.measure(data.clone(), &original, &quantized);
        let plain = scene.measure(data, &scene.original, &scene.quantized);
        assert_eq!([&original, &quantized].map(|model| model.passes.load(Ordering::Relaxed)), [1, 1]);
        // Metrics without a standard error are NaN there, which is not equal to itself.
        assert_eq!(format!("{found:?}"), format!("{plain:?}"));
    }
}
