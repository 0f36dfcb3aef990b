//! Tasks of models that take images: classes, zero-shot labels, and fidelity, with images decoded some batches at a time.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Read as _;

use zeropoint_calibrator::BatchPlan;
use zeropoint_calibrator::dataset::{Sample, require_images, require_labels};
use zeropoint_core::FingerprintBuilder;
use zeropoint_models::{HeadOutput, MAX_IMAGE_BYTES, ModelError, ModelSpec, PackedBatch, Problem};

use super::fidelity;
use super::labels::{Written, label_indices};
use super::run::{Output, Run, mean};
use super::{Forward, TaskError, names};
use crate::metrics::classification::{accuracy, macro_f1};
use crate::metrics::fidelity::{argmax, cosine};
use crate::report::Metric;

/// How many of the likeliest classes `top5_accuracy` looks at; it says nothing of a model with no more classes than that.
const TOP: usize = 5;
/// What stands for the label in a template.
const PLACE: &str = "{label}";

/// What is measured on images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageTask {
    /// Accuracy and macro F1 against labels.
    Classification,
    /// Agreement with the original model; needs no gold. Of a model with two towers, texts may stand among the images.
    Fidelity,
    /// Accuracy of the label whose sentences are nearest to the image (Radford et al. 2021, "Learning Transferable Visual
    /// Models From Natural Language Supervision", section 3.1).
    ZeroShot {
        /// The labels to choose from; without any, those of the samples in alphabetical order.
        labels: Vec<String>,
        /// Sentences with `{label}` in the place of the label; their vectors are averaged.
        templates: Vec<String>,
    },
}

impl ImageTask {
    /// The kind as configs name it, and the outputs it needs.
    pub(super) fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Classification => ("classification", "a classifier with one label an image"),
            Self::Fidelity => ("fidelity", "any output"),
            Self::ZeroShot { .. } => {
                ("zero-shot", "vectors of images and of texts in one space, as CLIP has them")
            }
        }
    }

    /// The names of the metrics on a model, if it has any.
    pub(super) fn metrics(&self, samples: &[Sample], model: &ModelSpec) -> Option<&'static [&'static str]> {
        let head = &model.head().output;
        match (self, head) {
            (Self::Fidelity, head) => Some(fidelity::metrics(head)),
            (Self::Classification, HeadOutput::Classification { labels, problem: Problem::SingleLabel }) => {
                const ALL: &[&str] = &[names::ACCURACY, names::MACRO_F1, names::TOP5_ACCURACY];
                Some(if labels.len() > TOP { ALL } else { &ALL[..2] })
            }
            (Self::ZeroShot { .. }, _) if model.text().is_some() && model.image().is_some() => {
                const ALL: &[&str] = &[names::ACCURACY, names::TOP5_ACCURACY];
                Some(if self.labels(samples).len() > TOP { ALL } else { &ALL[..1] })
            }
            _ => None,
        }
    }

    /// Checks that the samples hold what is needed.
    pub(super) fn check(&self, task: &str, samples: &[Sample], head: &HeadOutput) -> Result<(), TaskError> {
        match (self, head) {
            (Self::Fidelity, _) => return Ok(()),
            (Self::Classification, HeadOutput::Classification { labels, .. }) => gold(task, samples, labels)?,
            _ => gold(task, samples, &self.labels(samples))?,
        };
        let data = |source| TaskError::Data { task: task.to_owned(), source };
        require_images(samples).map(drop).map_err(data)
    }

    /// Identifies what is measured on, the content of image files included.
    pub(super) fn fingerprint(&self, samples: &[Sample], builder: &mut FingerprintBuilder) {
        builder.field("task", format!("{self:?}"));
        for sample in samples {
            let Some(path) = sample.image.as_deref() else {
                builder.field("text", "");
                continue;
            };
            let mut bytes = Vec::new();
            // What cannot be read is said where the image is needed.
            let read = File::open(path).and_then(|file| file.take(MAX_IMAGE_BYTES).read_to_end(&mut bytes));
            builder.field(if read.is_ok() { "image" } else { "unreadable" }, bytes);
        }
    }

    /// The labels that a zero-shot task chooses from.
    fn labels(&self, samples: &[Sample]) -> Vec<String> {
        match self {
            Self::ZeroShot { labels, .. } if !labels.is_empty() => labels.clone(),
            _ => {
                let mut labels: Vec<String> =
                    samples.iter().filter_map(|sample| sample.label.clone()).collect();
                labels.sort();
                labels.dedup();
                labels
            }
        }
    }
}

fn gold(task: &str, samples: &[Sample], labels: &[String]) -> Result<Vec<usize>, TaskError> {
    let named =
        require_labels(samples).map_err(|source| TaskError::Data { task: task.to_owned(), source })?;
    let places = samples.iter().map(|sample| (&*sample.file, sample.line));
    let written: Vec<Written<'_>> = named.into_iter().zip(places).collect();
    label_indices(task, &written, labels)
}

pub(super) fn measure(
    run: &mut Run<'_>,
    task: &ImageTask,
    samples: &[Sample],
) -> Result<Vec<Metric>, TaskError> {
    let spec = run.models.original.spec();
    let head = &spec.head().output;
    match task {
        ImageTask::Fidelity => {
            let rows = both(run, samples, |_, a, b| fidelity::nearness_of(head, a, b))?;
            Ok(fidelity::report(run, head, &rows))
        }
        ImageTask::Classification => {
            let labels = spec.head().labels();
            let gold = gold(run.task, samples, labels)?;
            let answer = |i: usize, output: Output<'_>| Answer::of(output.values, gold[i]);
            let rows = both(run, samples, |i, a, b| (answer(i, a), answer(i, b)))?;
            let f1 = run.compared((names::MACRO_F1, true), &rows, |rows| {
                let (best, gold): (Vec<usize>, Vec<usize>) =
                    rows.iter().map(|answer| (answer.best, answer.gold)).unzip();
                macro_f1(&best, &gold, labels.len())
            });
            let mut metrics = accuracies(run, &rows, labels.len());
            metrics.insert(1, f1);
            Ok(metrics)
        }
        ImageTask::ZeroShot { templates, .. } => {
            let labels = task.labels(samples);
            let gold = gold(run.task, samples, &labels)?;
            let original = label_vectors(run, run.models.original, &labels, templates)?;
            let quantized = label_vectors(run, run.models.quantized, &labels, templates)?;
            // The factor that makes logits of cosines is positive and changes no order.
            let answer = |i: usize, image: Output<'_>, vectors: &[Vec<f32>]| {
                let near: Vec<f32> =
                    vectors.iter().map(|vector| cosine(image.values, vector) as f32).collect();
                Answer::of(&near, gold[i])
            };
            let rows = both(run, samples, |i, a, b| (answer(i, a, &original), answer(i, b, &quantized)))?;
            Ok(accuracies(run, &rows, labels.len()))
        }
    }
}

/// What a model answered for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    best: usize,
    gold: usize,
    /// How many classes are likelier than the gold one; of equals the first counts as likelier.
    above: usize,
}

impl Answer {
    fn of(scores: &[f32], gold: usize) -> Self {
        let above = scores.iter().enumerate().filter(|(i, score)| match score.total_cmp(&scores[gold]) {
            Ordering::Greater => true,
            Ordering::Equal => *i < gold,
            Ordering::Less => false,
        });
        Self { best: argmax(scores).unwrap_or(0), gold, above: above.count() }
    }
}

/// Accuracy and, where there are enough classes, the share of images whose gold class is among the likeliest.
fn accuracies(run: &Run<'_>, rows: &[(Answer, Answer)], classes: usize) -> Vec<Metric> {
    let first = run.compared((names::ACCURACY, true), rows, |rows| {
        let (best, gold): (Vec<usize>, Vec<usize>) =
            rows.iter().map(|answer| (answer.best, answer.gold)).unzip();
        accuracy(&best, &gold)
    });
    let top = (classes > TOP).then(|| {
        run.compared((names::TOP5_ACCURACY, true), rows, |rows| {
            mean(rows, |answer| f64::from(u8::from(answer.above < TOP)))
        })
    });
    [first].into_iter().chain(top).collect()
}

/// Most values of pixels that are decoded at once: 256 MiB in f32.
const MOST_PIXEL_VALUES: usize = 64 << 20;

/// Runs both models over the samples and keeps of each what `keep` makes of the two outputs, in their order. All texts go
/// through the models together, and images in parts whose pixels take little memory.
fn both<T>(
    run: &mut Run<'_>,
    samples: &[Sample],
    keep: impl Fn(usize, Output<'_>, Output<'_>) -> T,
) -> Result<Vec<T>, TaskError> {
    let (images, texts): (Vec<usize>, Vec<usize>) =
        (0..samples.len()).partition(|&i| samples[i].image.is_some());
    let inputs = run.models.inputs;
    let size = run.options.batch_size.max(1);
    let image = run.models.original.spec().image();
    let values = image.map_or(1, |(_, image)| image.channels * image.image_size.iter().product::<usize>());
    let chosen = |indices: &[usize]| indices.iter().map(|&i| &samples[i]).collect::<Vec<_>>();
    let mut kept: Vec<(usize, T)> = Vec::with_capacity(samples.len());
    let mut pass = |groups: &[&[usize]], batches: &[PackedBatch]| {
        run.over(batches, |run, at, original, quantized| {
            run.check_finite(groups[at], original, quantized)?;
            let output = |values, columns| Output { values, columns };
            for (&i, (a, b)) in groups[at].iter().zip(original.samples().zip(quantized.samples())) {
                kept.push((i, keep(i, output(a, original.columns), output(b, quantized.columns))));
            }
            run.progressed(kept.len(), samples.len())
        })
    };
    let tokens = inputs.encode(&chosen(&texts))?;
    let plan = BatchPlan::new(&tokens, size);
    let batches =
        plan.batches().iter().map(|indices| PackedBatch::new(indices.iter().map(|&at| &tokens[at])));
    let batches: Vec<PackedBatch> = batches.collect::<Result<_, _>>()?;
    let groups: Vec<Vec<usize>> =
        plan.batches().iter().map(|indices| indices.iter().map(|&at| texts[at]).collect()).collect();
    pass(&groups.iter().map(Vec::as_slice).collect::<Vec<_>>(), &batches)?;
    let batches_at_once = (MOST_PIXEL_VALUES / (values * size).max(1)).max(1);
    for part in images.chunks(size * batches_at_once) {
        let groups: Vec<&[usize]> = part.chunks(size).collect();
        let batch = |indices: &&[usize]| -> Result<PackedBatch, ModelError> {
            PackedBatch::new(&inputs.encode(&chosen(indices))?)
        };
        pass(&groups, &groups.iter().map(batch).collect::<Result<Vec<_>, _>>()?)?;
    }
    kept.sort_by_key(|(i, _)| *i);
    Ok(kept.into_iter().map(|(_, value)| value).collect())
}

/// The vector of each label: the sum of those of its sentences, which all have length 1.
fn label_vectors(
    run: &Run<'_>,
    model: &dyn Forward,
    labels: &[String],
    templates: &[String],
) -> Result<Vec<Vec<f32>>, TaskError> {
    let sentences: Vec<Sample> = labels
        .iter()
        .flat_map(|label| templates.iter().map(|template| template.replace(PLACE, label)))
        .map(|text_a| Sample { text_a, ..Sample::default() })
        .collect();
    let tokens = run.models.inputs.encode(&sentences.iter().collect::<Vec<_>>())?;
    let mut vectors = vec![Vec::new(); tokens.len()];
    let plan = BatchPlan::new(&tokens, run.options.batch_size);
    let batches = plan.batches().iter().map(|indices| PackedBatch::new(indices.iter().map(|&i| &tokens[i])));
    let batches: Vec<PackedBatch> = batches.collect::<Result<_, _>>()?;
    for (indices, outputs) in plan.batches().iter().zip(model.forward_all(&batches)) {
        let outputs = outputs?;
        for (&i, vector) in indices.iter().zip(outputs.samples()) {
            if vector.iter().any(|value| !value.is_finite()) {
                let reason = format!("the vector of \"{}\" is not finite", sentences[i].text_a);
                return Err(ModelError::Sample { reason }.into());
            }
            vectors[i] = vector.to_vec();
        }
    }
    let sum = |group: &[Vec<f32>]| {
        let mut sum = vec![0f32; group[0].len()];
        for vector in group {
            sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    Ok(vectors.chunks_exact(templates.len().max(1)).map(sum).collect())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tasks::TaskData;

    #[test]
    fn images_count_by_their_content_wherever_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let sample = |image: Option<&PathBuf>| Sample { image: image.cloned(), ..Sample::default() };
        let of = |images: [Option<&PathBuf>; 2]| {
            TaskData::Images(ImageTask::Fidelity, images.map(sample).to_vec()).fingerprint()
        };
        let (one, same, other) = (file("a.png", b"a"), file("b.png", b"a"), file("c.png", b"c"));
        assert_eq!(of([Some(&one), None]), of([Some(&same), None]));
        assert_ne!(of([Some(&one), None]), of([Some(&other), None]));
        assert_ne!(of([Some(&one), None]), of([None, Some(&one)]));
    }

    #[test]
    fn the_rank_of_the_gold_class_counts_the_first_of_equals_as_likelier() {
        let scores = [0.5, 0.9, 0.5, 0.1];
        for (gold, above) in [(0, 1), (1, 0), (2, 2), (3, 3)] {
            assert_eq!(Answer::of(&scores, gold), Answer { best: 1, gold, above });
        }
        // What is best has none above it, whichever of equals that is.
        assert_eq!(Answer::of(&[0.5, 0.5], argmax(&[0.5, 0.5]).unwrap()).above, 0);
    }

    #[test]
    fn labels_are_those_of_the_data_unless_they_are_given() {
        let sample = |label: &str| Sample { label: Some(label.to_owned()), ..Sample::default() };
        let samples = ["dog", "cat", "dog"].map(sample);
        let labels = |given: &[&str]| {
            let labels = given.iter().map(|label| (*label).to_owned()).collect();
            ImageTask::ZeroShot { labels, templates: Vec::new() }.labels(&samples)
        };
        assert_eq!(labels(&[]), ["cat", "dog"]);
        assert_eq!(labels(&["dog", "owl", "cat"]), ["dog", "owl", "cat"]);
    }
}
