//! Fidelity of a model to itself: nothing is lost, extremes have no standard error, and the metrics name their data.

use std::ops::ControlFlow;
use std::path::Path;

use zeropoint_calibrator::Inputs;
use zeropoint_calibrator::dataset::Sample;
use zeropoint_evaluator::report::Metric;
use zeropoint_evaluator::tasks::{Models, Options, Task, TaskData, names, run_task};
use zeropoint_models::{Model, ModelDirectory, SourceRef, Task as ModelTask};

/// The metrics of a fixture against itself on so many texts, and the task.
fn measured(fixture: &str, texts: usize) -> (Vec<Metric>, Task) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
    let directory =
        ModelDirectory::open(&SourceRef::Directory(path), ModelTask::Auto).expect("it works on a fixture");
    let (model, inputs) = (
        Model::load(&directory).expect("it works on a fixture"),
        Inputs::of(&directory, None).expect("it works on a fixture"),
    );
    let words = ["the river", "is on fire", "it was there", "a night"];
    let sample =
        |i: usize| Sample { text_a: format!("{} {}", words[i % 4], words[i / 4 % 4]), ..Sample::default() };
    let task = Task { name: "task".to_owned(), data: TaskData::Fidelity((0..texts).map(sample).collect()) };
    let activation = directory.score_activation().expect("it works on a fixture");
    let models = Models { original: &model, quantized: &model, inputs: &inputs, activation };
    let options = Options { batch_size: 64, resamples: 20, seed: 5 };
    let metrics = run_task(&task, &models, options, &mut |_, _| ControlFlow::Continue(()))
        .expect("it works on a fixture");
    (metrics, task)
}

#[test]
fn an_extreme_has_no_standard_error() {
    for fixture in ["bert-mean", "bert-classifier-bf16"] {
        for (texts, p01_has_one) in [(1, false), (299, false), (300, true)] {
            let (metrics, _) = measured(fixture, texts);
            for metric in &metrics {
                let known = match metric.name.as_str() {
                    names::COSINE_MIN => false,
                    names::COSINE_P01 => p01_has_one,
                    // Every resample of one text is that text.
                    _ => texts > 1,
                };
                let about = format!("{fixture}, {texts} texts: {metric:?}");
                assert_eq!(metric.stderr.is_nan(), !known, "{about}");
                assert!(!known || metric.stderr == 0.0, "{about}");
                assert_eq!(
                    (metric.delta, metric.samples, metric.ideal),
                    (0.0, texts as u64, true),
                    "{about}"
                );
            }
            let p01 = metrics.iter().filter(|metric| metric.name == names::COSINE_P01).count();
            assert_eq!(p01, 1, "{fixture}");
        }
    }
}

#[test]
fn metrics_name_their_data() {
    let (metrics, task) = measured("bert-mean", 5);
    assert!(metrics.iter().all(|metric| metric.data == Some(task.data.fingerprint())), "{metrics:?}");
    assert_ne!(metrics[0].data, measured("bert-mean", 6).0[0].data);
}
