//! The loss of hidden tokens is what the model's own logits say, token by token.

use std::ops::ControlFlow;
use std::path::Path;

use zeropoint_calibrator::Inputs;
use zeropoint_calibrator::dataset::Sample;
use zeropoint_core::Rng;
use zeropoint_evaluator::tasks::{Models, Options, Task, TaskData, run_task};
use zeropoint_models::{Model, ModelDirectory, PackedBatch, SourceRef, Task as ModelTask, TextPart};

const TEXTS: [&str; 4] = [
    "the river is on fire",
    "it was there that the model was found, and it was not wrong",
    "models",
    "there was a night when the river said to all the models that each of them can be smaller, but not by much, for what \
     is lost in the rounding is lost from the model and it was not there to be found and not there to be lost again",
];

#[test]
fn the_loss_is_the_mean_over_hidden_tokens_alone() {
    for name in ["bert-mlm", "roberta-mlm"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        let directory = ModelDirectory::open(&SourceRef::Directory(path), ModelTask::Auto).unwrap();
        let (model, inputs) = (Model::load(&directory).unwrap(), Inputs::of(&directory, None).unwrap());
        let sample = |text: &str| Sample { text_a: text.to_owned(), ..Sample::default() };
        let task = Task {
            name: "task".to_owned(),
            data: TaskData::MaskedLm(TEXTS.into_iter().map(sample).collect()),
        };
        let options = Options { batch_size: 3, resamples: 100, seed: 5 };
        // Both models are the same one: nothing can be lost.
        let models = Models {
            original: &model,
            quantized: &model,
            inputs: &inputs,
            activation: directory.score_activation().unwrap(),
        };
        let metrics = run_task(&task, &models, options, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert!(metrics.iter().all(|metric| metric.delta == 0.0 && metric.stderr == 0.0), "{metrics:?}");

        let tokenizer = inputs.tokenizer().unwrap();
        let mask = tokenizer.mask_token().unwrap().id;
        let (mut loss, mut right, mut places) = (0.0, 0, 0);
        for (i, text) in TEXTS.iter().enumerate() {
            let tokens = tokenizer.align(text, None).unwrap();
            let all = tokens.part(TextPart::First);
            let kept = all.len().min(tokenizer.max_length() - tokens.around());
            let mut sequence = tokenizer.encode(text, None).unwrap();
            assert_eq!(sequence.len(), kept + tokens.around(), "cut as the tokenizer cuts");
            let hidden = Rng::new(5 + i as u64).sample(kept, ((kept as f64 * 0.15).round() as usize).max(1));
            assert!(i != 3 || hidden.len() > 5);
            let gold: Vec<(usize, u32)> =
                hidden.into_iter().map(|at| (all.start + at, sequence.ids[all.start + at])).collect();
            for (at, _) in &gold {
                sequence.ids[*at] = mask;
            }
            let outputs = model.forward(&PackedBatch::new(&[sequence]).unwrap()).unwrap();
            let rows: Vec<&[f32]> = outputs.rows().collect();
            for (at, token) in gold {
                let exponentials: Vec<f64> = rows[at].iter().map(|logit| f64::from(*logit).exp()).collect();
                let own = exponentials[token as usize];
                loss -= (own / exponentials.iter().sum::<f64>()).ln();
                right += usize::from(exponentials.iter().all(|other| *other <= own));
                places += 1;
            }
        }
        // A sequence among others may differ in the last bits of its sums.
        assert!((metrics[0].original - loss / f64::from(places)).abs() < 1e-5, "{name}: {metrics:?}, {loss}");
        assert!((metrics[1].original - right as f64 / f64::from(places)).abs() < 1e-9, "{name}");
        assert!(!metrics[0].higher_is_better && metrics[1].higher_is_better);
    }
}

#[test]
fn a_task_can_be_stopped_after_any_batch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/bert-mlm");
    let directory = ModelDirectory::open(&SourceRef::Directory(path), ModelTask::Auto).unwrap();
    let (model, inputs) = (Model::load(&directory).unwrap(), Inputs::of(&directory, None).unwrap());
    let sample = |text: &str| Sample { text_a: text.to_owned(), ..Sample::default() };
    let task =
        Task { name: "task".to_owned(), data: TaskData::Fidelity(TEXTS.into_iter().map(sample).collect()) };
    let activation = directory.score_activation().unwrap();
    let models = Models { original: &model, quantized: &model, inputs: &inputs, activation };
    let options = Options { batch_size: 1, resamples: 100, seed: 5 };
    let mut batches = 0;
    let stopped = run_task(&task, &models, options, &mut |done, total| {
        batches += 1;
        assert_eq!((done, total), (batches, 4));
        if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((stopped.unwrap_err().to_string().as_str(), batches), ("cancelled", 2));
}
