//! Tasks: original and quantised model on the same batches, their metrics, and the standard error of each loss.

use std::ops::ControlFlow;

use thiserror::Error;
use zeropoint_calibrator::BatchPlan;
use zeropoint_calibrator::dataset::{DatasetError, Sample, require_labels, require_pairs, require_scores};
use zeropoint_models::{HeadOutput, Model, ModelError, PackedBatch, TokenSequence, Tokenizer};

use crate::bootstrap::paired_standard_error;
use crate::metrics::classification::{accuracy, macro_f1};
use crate::metrics::correlation::{pearson, spearman};
use crate::metrics::fidelity::{argmax, cosine, percentile};
use crate::report::Metric;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Correlation of the cosine of two sentence vectors with a graded similarity.
    Sts,
    /// Accuracy and macro F1 against labels.
    Classification,
    /// Agreement with the original model; needs no gold.
    Fidelity,
}

/// A task and its data.
#[derive(Debug, Clone)]
pub struct Task {
    /// As the config names it.
    pub name: String,
    /// What is measured.
    pub kind: TaskKind,
    /// The samples, at least one.
    pub samples: Vec<Sample>,
}

/// How tasks are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Bootstrap resamples for a standard error.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// Why a task cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The model has another head than the task needs.
    #[error("task `{task}`: {kind} needs {needs}, and {architecture} as loaded gives {gives}")]
    Head {
        /// The task.
        task: String,
        /// Its kind.
        kind: &'static str,
        /// What it needs.
        needs: &'static str,
        /// The architecture.
        architecture: String,
        /// What the model gives.
        gives: &'static str,
    },
    /// A label that the model does not have.
    #[error("{origin}:{line}: label `{label}` is not one of the model's {count} labels: {known}")]
    Label {
        /// The file.
        origin: String,
        /// Its line.
        line: usize,
        /// The label.
        label: String,
        /// How many the model has.
        count: usize,
        /// The first of them.
        known: String,
    },
    /// The data.
    #[error("task `{task}`: {source}")]
    Data {
        /// The task.
        task: String,
        /// What is wrong.
        source: DatasetError,
    },
    /// A model gave NaN or infinity.
    #[error("task `{task}`: the {which} model gave an output that is not finite for sample {sample}")]
    NotFinite {
        /// The task.
        task: String,
        /// `original` or `quantized`.
        which: &'static str,
        /// Index of the sequence.
        sample: usize,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Running a model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl Task {
    /// Checks that the task fits the model and its data hold what it needs; before any long work.
    pub fn check(&self, model: &zeropoint_models::ModelSpec) -> Result<(), TaskError> {
        let wrong_head = |kind, needs, gives| TaskError::Head {
            task: self.name.clone(),
            kind,
            needs,
            architecture: model.architecture.clone(),
            gives,
        };
        let data = |source| TaskError::Data { task: self.name.clone(), source };
        match (self.kind, &model.head().output) {
            (TaskKind::Sts, HeadOutput::Embedding { .. }) => {
                require_pairs(&self.samples).map_err(data)?;
                require_scores(&self.samples).map(drop).map_err(data)
            }
            (TaskKind::Classification, HeadOutput::Classification { labels, .. }) => {
                self.classes(labels).map(drop)
            }
            (TaskKind::Fidelity, _) => Ok(()),
            (TaskKind::Sts, output) => {
                Err(wrong_head("sts", "sentence vectors (task `embedding`)", gives(output)))
            }
            (TaskKind::Classification, output) => {
                Err(wrong_head("classification", "a classifier (task `classification`)", gives(output)))
            }
        }
    }

    /// Class indices of the samples: all labels are names of the model's, or all are indices into them.
    fn classes(&self, labels: &[String]) -> Result<Vec<usize>, TaskError> {
        let named = require_labels(&self.samples)
            .map_err(|source| TaskError::Data { task: self.name.clone(), source })?;
        let by_name = |label: &str| labels.iter().position(|known| known == label);
        let by_index = |label: &str| label.parse().ok().filter(|index: &usize| *index < labels.len());
        let all = |of: &dyn Fn(&str) -> Option<usize>| {
            named.iter().map(|label| of(label)).collect::<Option<Vec<_>>>()
        };
        if let Some(classes) = all(&by_name).or_else(|| all(&by_index)) {
            return Ok(classes);
        }
        // Best shown is a label that is neither; in a mixture, the first that is no name.
        let neither = |label: &&str| by_name(label).is_none() && by_index(label).is_none();
        let at = named
            .iter()
            .position(neither)
            .or_else(|| named.iter().position(|label| by_name(label).is_none()));
        let at = at.unwrap_or(0);
        let (sample, label) = (&self.samples[at], named[at]);
        Err(TaskError::Label {
            origin: sample.file.to_string(),
            line: sample.line,
            label: label.to_owned(),
            count: labels.len(),
            known: first_few(labels),
        })
    }
}

/// What a head gives, in words.
fn gives(output: &HeadOutput) -> &'static str {
    match output {
        HeadOutput::Embedding { .. } => "sentence vectors",
        HeadOutput::Classification { .. } => "class logits",
        HeadOutput::TokenClassification { .. } => "class logits for each token",
        HeadOutput::MaskedLm => "logits over the vocabulary for each token",
        HeadOutput::QuestionAnswering => "the logits of an answer's start and end",
    }
}

fn first_few(labels: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = labels.iter().take(SHOWN).map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    if labels.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

/// The two models under comparison, and the tokenizer they share.
pub struct Models<'a> {
    /// The float original.
    pub original: &'a Model,
    /// The quantised one.
    pub quantized: &'a Model,
    /// Texts to tokens.
    pub tokenizer: &'a Tokenizer,
}

/// Outputs of both models for a list of sequences, in its order.
struct Paired {
    original: Vec<Vec<f32>>,
    quantized: Vec<Vec<f32>>,
    /// Values in a row; a sample has one row, or one for each token.
    columns: usize,
}

/// Runs a task on both models. `progress` is called with sequences done and in all after each batch, and may stop it.
pub fn run_task(
    task: &Task,
    models: &Models<'_>,
    options: Options,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Vec<Metric>, TaskError> {
    task.check(models.original.spec())?;
    let mut encode = |texts: &[(&str, Option<&str>)]| -> Result<Paired, TaskError> {
        let sequences = models.tokenizer.encode_all(texts)?;
        run_both(task, models, &sequences, options.batch_size, progress)
    };
    match (task.kind, &models.original.spec().head().output) {
        (TaskKind::Sts, _) => {
            let data = |source| TaskError::Data { task: task.name.clone(), source };
            let gold = require_scores(&task.samples).map_err(data)?;
            let pairs = require_pairs(&task.samples).map_err(data)?;
            let texts: Vec<_> = pairs.into_iter().flat_map(|(a, b)| [(a, None), (b, None)]).collect();
            let outputs = encode(&texts)?;
            let cosines = |rows: &[Vec<f32>]| -> Vec<f64> {
                rows.chunks_exact(2).map(|pair| cosine(&pair[0], &pair[1])).collect()
            };
            Ok(sts_metrics(task, &gold, &cosines(&outputs.original), &cosines(&outputs.quantized), options))
        }
        (TaskKind::Classification, HeadOutput::Classification { labels, .. }) => {
            let gold = task.classes(labels)?;
            let outputs = encode(&texts_of(&task.samples))?;
            Ok(classification_metrics(task, &gold, labels.len(), &outputs, options))
        }
        (TaskKind::Classification, _) => Ok(Vec::new()),
        (TaskKind::Fidelity, head) => {
            let outputs = encode(&texts_of(&task.samples))?;
            let classes = match head {
                HeadOutput::Embedding { .. } | HeadOutput::QuestionAnswering => None,
                _ => Some(outputs.columns),
            };
            Ok(fidelity_metrics(task, classes, &outputs, options))
        }
    }
}

fn texts_of(samples: &[Sample]) -> Vec<(&str, Option<&str>)> {
    samples.iter().map(|sample| (sample.text_a.as_str(), sample.text_b.as_deref())).collect()
}

fn run_both(
    task: &Task,
    models: &Models<'_>,
    sequences: &[TokenSequence],
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Paired, TaskError> {
    let mut paired = Paired {
        original: vec![Vec::new(); sequences.len()],
        quantized: vec![Vec::new(); sequences.len()],
        columns: 1,
    };
    let mut done = 0;
    for indices in BatchPlan::new(sequences, batch_size).batches() {
        let batch = PackedBatch::new(indices.iter().map(|&i| &sequences[i]))?;
        let sides = [
            ("original", models.original, &mut paired.original),
            ("quantized", models.quantized, &mut paired.quantized),
        ];
        for (which, model, rows) in sides {
            let outputs = model.forward(&batch)?;
            paired.columns = outputs.columns;
            for (&i, row) in indices.iter().zip(outputs.samples()) {
                if row.iter().any(|value| !value.is_finite()) {
                    return Err(TaskError::NotFinite { task: task.name.clone(), which, sample: i });
                }
                rows[i] = row.to_vec();
            }
        }
        done += indices.len();
        if progress(done, sequences.len()).is_break() {
            return Err(TaskError::Cancelled);
        }
    }
    Ok(paired)
}

/// A metric of both models with the standard error of its loss.
fn compared(
    task: &Task,
    name: &str,
    options: Options,
    metric: impl Fn(bool, &[usize]) -> Option<f64> + Sync,
) -> Metric {
    let n = task.samples.len();
    let all: Vec<usize> = (0..n).collect();
    let (original, quantized) = (metric(false, &all), metric(true, &all));
    let stderr = paired_standard_error(n, options.resamples, options.seed, |rows| {
        Some(metric(true, rows)? - metric(false, rows)?)
    });
    let (original, quantized) = (original.unwrap_or(f64::NAN), quantized.unwrap_or(f64::NAN));
    Metric {
        task: task.name.clone(),
        name: name.to_owned(),
        original,
        quantized,
        delta: quantized - original,
        stderr,
        higher_is_better: true,
        samples: n as u64,
        ideal: false,
    }
}

fn sts_metrics(
    task: &Task,
    gold: &[f64],
    original: &[f64],
    quantized: &[f64],
    options: Options,
) -> Vec<Metric> {
    let correlation = |name: &str, of: fn(&[f64], &[f64]) -> Option<f64>| {
        compared(task, name, options, |is_quantized, rows| {
            let predicted = if is_quantized { quantized } else { original };
            let take = |values: &[f64]| rows.iter().map(|&row| values[row]).collect::<Vec<_>>();
            of(&take(gold), &take(predicted))
        })
    };
    vec![correlation("spearman", spearman), correlation("pearson", pearson)]
}

/// A metric of predictions against gold classes.
type Score<'a> = dyn Fn(&[usize], &[usize]) -> Option<f64> + Sync + 'a;

fn classification_metrics(
    task: &Task,
    gold: &[usize],
    classes: usize,
    outputs: &Paired,
    options: Options,
) -> Vec<Metric> {
    let predict = |rows: &[Vec<f32>]| rows.iter().map(|row| argmax(row).unwrap_or(0)).collect::<Vec<_>>();
    let (original, quantized) = (predict(&outputs.original), predict(&outputs.quantized));
    let score = |name: &str, of: &Score<'_>| {
        compared(task, name, options, |is_quantized, rows| {
            let predicted = if is_quantized { &quantized } else { &original };
            let take = |values: &[usize]| rows.iter().map(|&row| values[row]).collect::<Vec<_>>();
            of(&take(predicted), &take(gold))
        })
    };
    vec![
        score("accuracy", &|predicted, gold| accuracy(predicted, gold)),
        score("macro_f1", &|predicted, gold| macro_f1(predicted, gold, classes)),
    ]
}

fn fidelity_metrics(task: &Task, classes: Option<usize>, outputs: &Paired, options: Options) -> Vec<Metric> {
    let pairs = || outputs.original.iter().zip(&outputs.quantized);
    let cosines: Vec<f64> = pairs().map(|(a, b)| cosine(a, b)).collect();
    let against_ideal = |name: &str, values: &[f64], of: &(dyn Fn(&[f64]) -> Option<f64> + Sync)| {
        let metric = compared(task, name, options, |is_quantized, rows| {
            if !is_quantized {
                return Some(1.0);
            }
            of(&rows.iter().map(|&row| values[row]).collect::<Vec<_>>())
        });
        Metric { ideal: true, ..metric }
    };
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let mut metrics = vec![
        against_ideal("cosine_mean", &cosines, &mean),
        against_ideal("cosine_min", &cosines, &|values| values.iter().copied().reduce(f64::min)),
        against_ideal("cosine_p01", &cosines, &|values| percentile(values, 1.0)),
    ];
    if let Some(classes) = classes {
        let agreement = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            let rows = || a.chunks_exact(classes).zip(b.chunks_exact(classes));
            rows().filter(|(a, b)| argmax(a) == argmax(b)).count() as f64 / rows().count().max(1) as f64
        };
        let agree: Vec<f64> = pairs().map(agreement).collect();
        metrics.push(against_ideal("top1_agreement", &agree, &mean));
    }
    metrics
}
