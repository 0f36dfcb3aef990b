//! Both models over the same batches, and metrics of what is kept of their outputs.

use std::ops::ControlFlow;

use rayon::prelude::*;
use zeropoint_calibrator::BatchPlan;
use zeropoint_models::{HeadOutput, ModelError, ModelSpec, Outputs, PackedBatch, TokenSequence};

use super::{BatchOutputs, Models, Options, TaskError};
use crate::bootstrap::paired_standard_error;
use crate::report::Metric;

/// Most values that the outputs of one batch may have, at the head's width and the longest sequence: 256 MiB in f32.
const MOST_VALUES: usize = 64 << 20;

/// The batches, of at most `batch_size`, in which sequences of these lengths are run: fewer at a time where each token has a row of
/// logits over a vocabulary.
pub fn batch_plan(spec: &ModelSpec, lengths: &[usize], batch_size: usize) -> BatchPlan {
    let widest = match spec.head().output {
        HeadOutput::MaskedLm | HeadOutput::CausalLm => spec.output_columns(),
        _ => 1,
    };
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let fits = (MOST_VALUES / (widest * longest).max(1)).max(1);
    BatchPlan::of_lengths(lengths, batch_size.min(fits))
}

/// A task being run.
pub(super) struct Run<'a> {
    pub(super) task: &'a str,
    pub(super) models: &'a Models<'a>,
    pub(super) options: Options,
    pub(super) progress: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
}

/// What a model gave for one sequence: one row, or one a token.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) values: &'a [f32],
    pub(super) columns: usize,
}

impl<'a> Output<'a> {
    pub(super) fn rows(self) -> impl ExactSizeIterator<Item = &'a [f32]> {
        self.values.chunks_exact(self.columns.max(1))
    }

    pub(super) fn row(self, index: usize) -> &'a [f32] {
        &self.values[index * self.columns..(index + 1) * self.columns]
    }
}

impl Run<'_> {
    /// Runs both models over the sequences and keeps of each what `keep` makes of the original's and the quantised model's
    /// output, in the order of the sequences. Outputs live as long as their batch: those of a vocabulary head over all
    /// samples would take gigabytes.
    pub(super) fn both<T: Send>(
        &mut self,
        sequences: &[&TokenSequence],
        keep: impl Fn(usize, Output<'_>, Output<'_>) -> T + Sync,
    ) -> Result<Vec<T>, TaskError> {
        let mut kept: Vec<Option<T>> = sequences.iter().map(|_| None).collect();
        let plan = self.plan(sequences);
        let batches = plan.batches().iter();
        let batches: Vec<PackedBatch> = batches
            .map(|indices| PackedBatch::new(indices.iter().map(|&i| sequences[i])))
            .collect::<Result<_, _>>()?;
        let mut done = 0;
        self.over(&batches, |run, at, original, quantized| {
            let indices = &plan.batches()[at];
            run.check_finite(indices, original, quantized)?;
            let pairs: Vec<_> = original.samples().zip(quantized.samples()).collect();
            let output = |values, columns| Output { values, columns };
            let of_batch: Vec<T> = pairs
                .par_iter()
                .zip(indices)
                .map(|((a, b), &i)| keep(i, output(a, original.columns), output(b, quantized.columns)))
                .collect();
            for (&i, value) in indices.iter().zip(of_batch) {
                kept[i] = Some(value);
            }
            done += indices.len();
            run.progressed(done, sequences.len())
        })?;
        let kept: Option<Vec<T>> = kept.into_iter().collect();
        kept.ok_or_else(|| {
            ModelError::Sample { reason: "a batch plan left a sequence out".to_owned() }.into()
        })
    }

    /// Runs both models over all batches and shows `each` the outputs of each batch, with its place in the list.
    pub(super) fn over(
        &mut self,
        batches: &[PackedBatch],
        mut each: impl FnMut(&mut Self, usize, &Outputs, &Outputs) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let models = self.models;
        let mut originals = models.original.forward_all(batches);
        let mut quantized = models.quantized.forward_all(batches);
        for at in 0..batches.len() {
            let original = next(&mut originals, at)?;
            let quantized = next(&mut quantized, at)?;
            each(self, at, &original, &quantized)?;
        }
        Ok(())
    }

    /// Refuses outputs that are not finite; `indices` are the samples of the batch.
    pub(super) fn check_finite(
        &self,
        indices: &[usize],
        original: &Outputs,
        quantized: &Outputs,
    ) -> Result<(), TaskError> {
        for (which, outputs) in [("original", original), ("quantized", quantized)] {
            let broken = outputs.samples().position(|values| values.iter().any(|value| !value.is_finite()));
            if let Some(at) = broken {
                let task = self.task.to_owned();
                return Err(TaskError::NotFinite { task, which, sample: indices[at] });
            }
        }
        Ok(())
    }

    /// Says how many of the samples are done; an error when the caller wants no more.
    pub(super) fn progressed(&mut self, done: usize, of: usize) -> Result<(), TaskError> {
        if (self.progress)(done, of).is_break() { Err(TaskError::Cancelled) } else { Ok(()) }
    }

    fn plan(&self, sequences: &[&TokenSequence]) -> BatchPlan {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        batch_plan(self.models.original.spec(), &lengths, self.options.batch_size)
    }

    /// A metric of both models with the standard error of its loss. `rows` holds for each sample what was kept of the
    /// original and of the quantised model; `of` makes one number of one model's.
    pub(super) fn compared<T: Sync>(
        &self,
        (name, higher_is_better): (&str, bool),
        rows: &[(T, T)],
        of: impl Fn(&[&T]) -> Option<f64> + Sync,
    ) -> Metric {
        let originals = |chosen: &[usize]| of(&chosen.iter().map(|&row| &rows[row].0).collect::<Vec<_>>());
        let quantized = |chosen: &[usize]| of(&chosen.iter().map(|&row| &rows[row].1).collect::<Vec<_>>());
        let all: Vec<usize> = (0..rows.len()).collect();
        let stderr = self.standard_error(rows.len(), |chosen| Some(quantized(chosen)? - originals(chosen)?));
        let (original, quantized) = (originals(&all), quantized(&all));
        self.metric(name, higher_is_better, [original, quantized], stderr, rows.len())
    }

    /// A metric of how near the quantised model is to the original, whose best value is `ideal`.
    pub(super) fn against_ideal<T: Sync>(
        &self,
        name: &str,
        ideal: f64,
        rows: &[T],
        of: impl Fn(&[&T]) -> Option<f64> + Sync,
    ) -> Metric {
        let value = |chosen: &[usize]| of(&chosen.iter().map(|&row| &rows[row]).collect::<Vec<_>>());
        let stderr = self.standard_error(rows.len(), value);
        Metric { stderr, ..self.extreme_against_ideal(name, ideal, rows, &of) }
    }

    /// As [`Run::against_ideal`], with a standard error that is not known.
    ///
    /// Of an extreme the bootstrap tells none: no resample holds anything beyond the most extreme sample, and 63 % of
    /// them hold that very one, so that their spread says how far apart the outermost samples are and nothing of others
    /// (Efron and Tibshirani 1993, section 7.4).
    pub(super) fn extreme_against_ideal<T>(
        &self,
        name: &str,
        ideal: f64,
        rows: &[T],
        of: impl Fn(&[&T]) -> Option<f64>,
    ) -> Metric {
        let value = of(&rows.iter().collect::<Vec<_>>());
        let metric = self.metric(name, ideal > 0.0, [Some(ideal), value], f64::NAN, rows.len());
        Metric { ideal: true, ..metric }
    }

    /// As [`Run::against_ideal`], of what `of` makes of the groups that are chosen out of `groups`; an extreme has no standard
    /// error.
    pub(super) fn grouped_against_ideal(
        &self,
        name: &str,
        ideal: f64,
        groups: usize,
        is_extreme: bool,
        of: impl Fn(&[usize]) -> Option<f64> + Sync,
    ) -> Metric {
        let value = of(&(0..groups).collect::<Vec<_>>());
        let stderr = if is_extreme { f64::NAN } else { self.standard_error(groups, of) };
        let metric = self.metric(name, ideal > 0.0, [Some(ideal), value], stderr, groups);
        Metric { ideal: true, ..metric }
    }

    fn standard_error(&self, n: usize, of: impl Fn(&[usize]) -> Option<f64> + Sync) -> f64 {
        paired_standard_error(n, self.options.resamples, self.options.seed, of)
    }

    fn metric(
        &self,
        name: &str,
        higher_is_better: bool,
        values: [Option<f64>; 2],
        stderr: f64,
        samples: usize,
    ) -> Metric {
        let [original, quantized] = values.map(|value| value.unwrap_or(f64::NAN));
        Metric {
            task: self.task.to_owned(),
            name: name.to_owned(),
            original,
            quantized,
            delta: quantized - original,
            stderr,
            higher_is_better,
            samples: samples as u64,
            data: None,
            ideal: false,
        }
    }
}

/// The outputs of the batch that is due.
pub(super) fn next(outputs: &mut BatchOutputs<'_>, batch: usize) -> Result<Outputs, ModelError> {
    let missing = || ModelError::Sample { reason: format!("the model gave no output for batch {batch}") };
    outputs.next().ok_or_else(missing)?
}

/// The mean of a value of each sample; `None` without samples.
pub(super) fn mean<T>(rows: &[&T], of: impl Fn(&T) -> f64) -> Option<f64> {
    (!rows.is_empty()).then(|| rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64)
}

/// The sum of one value over the sum of another; `None` when the latter is 0.
pub(super) fn ratio<T>(rows: &[&T], of: impl Fn(&T) -> (f64, f64)) -> Option<f64> {
    let (above, below) = rows.iter().map(|row| of(row)).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    (below != 0.0).then(|| above / below)
}
