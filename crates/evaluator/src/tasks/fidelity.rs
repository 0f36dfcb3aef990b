//! Fidelity: the quantised model's outputs against the original's; needs no gold.

use zeropoint_models::{HeadOutput, Problem, TokenSequence};

use super::run::{Output, Run, mean};
use super::windows::Counting;
use super::{TaskError, names, next_tokens};
use crate::metrics::correlation::{pearson, spearman};
use crate::metrics::fidelity::{argmax, cosine, percentile};
use crate::metrics::logits::{bernoulli_kl, kl_divergence};
use crate::report::Metric;

/// Fewest samples for which the first percentile has a standard error. It lies between the third and the fourth lowest
/// of so many; of fewer it is made of the lowest two or three and no less an extreme than the minimum.
const FEWEST_FOR_P01: usize = 300;

/// What outputs are, as far as comparing two of them is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A direction in space.
    Vector,
    /// One number.
    Score,
    /// Rows of logits, each a distribution over its columns.
    Distributions,
    /// A row of logits, each a distribution over yes and no.
    YesOrNo,
    /// Two columns of logits, each a distribution over the rows.
    Span,
}

impl Kind {
    fn of(head: &HeadOutput) -> Self {
        match head {
            HeadOutput::Classification { labels, .. } if labels.len() == 1 => Self::Score,
            HeadOutput::Embedding { .. }
            | HeadOutput::Classification { problem: Problem::Regression, .. } => Self::Vector,
            HeadOutput::Classification { problem: Problem::MultiLabel, .. } => Self::YesOrNo,
            HeadOutput::Classification { problem: Problem::SingleLabel, .. }
            | HeadOutput::TokenClassification { .. }
            | HeadOutput::MaskedLm
            | HeadOutput::CausalLm => Self::Distributions,
            HeadOutput::QuestionAnswering => Self::Span,
        }
    }
}

/// The names of the metrics for a head.
pub(super) fn metrics(head: &HeadOutput) -> &'static [&'static str] {
    if *head == HeadOutput::CausalLm {
        return next_tokens::FIDELITY;
    }
    match Kind::of(head) {
        Kind::Vector => &[names::COSINE_MEAN, names::COSINE_MIN, names::COSINE_P01],
        Kind::Score => &[names::PEARSON, names::SPEARMAN, names::DIFFERENCE_MEAN],
        _ => {
            &[names::COSINE_MEAN, names::COSINE_MIN, names::COSINE_P01, names::TOP1_AGREEMENT, names::KL_MEAN]
        }
    }
}

/// What is kept of a sample's two outputs.
pub(super) struct Nearness {
    cosine: f64,
    /// Share of distributions with the same likeliest entry.
    top1: f64,
    /// Mean divergence over the distributions, in nats.
    kl: f64,
    /// The outputs, where they are one number.
    scores: (f64, f64),
}

pub(super) fn measure(run: &mut Run<'_>, sequences: &[TokenSequence]) -> Result<Vec<Metric>, TaskError> {
    let head = &run.models.original.spec().head().output;
    if *head == HeadOutput::CausalLm {
        return next_tokens::fidelity(run, sequences, Counting::EveryToken);
    }
    let kind = Kind::of(head);
    let sequences: Vec<&TokenSequence> = sequences.iter().collect();
    let rows = run.both(&sequences, |_, original, quantized| nearness(kind, original, quantized))?;
    Ok(report(run, head, &rows))
}

/// The metrics of a head for how near the outputs of each sample are.
pub(super) fn report(run: &Run<'_>, head: &HeadOutput, rows: &[Nearness]) -> Vec<Metric> {
    let kind = Kind::of(head);
    if kind == Kind::Score {
        let correlation = |of: fn(&[f64], &[f64]) -> Option<f64>| {
            move |rows: &[&Nearness]| {
                let (original, quantized): (Vec<f64>, Vec<f64>) = rows.iter().map(|row| row.scores).unzip();
                of(&original, &quantized)
            }
        };
        return vec![
            run.against_ideal(names::PEARSON, 1.0, rows, correlation(pearson)),
            run.against_ideal(names::SPEARMAN, 1.0, rows, correlation(spearman)),
            run.against_ideal(names::DIFFERENCE_MEAN, 0.0, rows, |rows| {
                mean(rows, |row| (row.scores.1 - row.scores.0).abs())
            }),
        ];
    }
    let cosines = |rows: &[&Nearness]| rows.iter().map(|row| row.cosine).collect::<Vec<_>>();
    let lowest = |rows: &[&Nearness]| cosines(rows).into_iter().reduce(f64::min);
    let p01 = |rows: &[&Nearness]| percentile(&cosines(rows), 1.0);
    let mut metrics = vec![
        run.against_ideal(names::COSINE_MEAN, 1.0, rows, |rows| mean(rows, |row| row.cosine)),
        run.extreme_against_ideal(names::COSINE_MIN, 1.0, rows, lowest),
        if rows.len() < FEWEST_FOR_P01 {
            run.extreme_against_ideal(names::COSINE_P01, 1.0, rows, p01)
        } else {
            run.against_ideal(names::COSINE_P01, 1.0, rows, p01)
        },
    ];
    if kind != Kind::Vector {
        metrics.push(run.against_ideal(names::TOP1_AGREEMENT, 1.0, rows, |rows| mean(rows, |row| row.top1)));
        metrics.push(run.against_ideal(names::KL_MEAN, 0.0, rows, |rows| mean(rows, |row| row.kl)));
    }
    metrics
}

/// How much worse one output of a head is than that of the original, as [`loss_unit`] counts it; `values` are the rows of a sample.
pub fn output_loss(head: &HeadOutput, original: &[f32], quantized: &[f32], columns: usize) -> f64 {
    let [original, quantized] = [original, quantized].map(|values| Output { values, columns });
    let near = nearness_of(head, original, quantized);
    match Kind::of(head) {
        Kind::Vector => 1.0 - near.cosine,
        Kind::Score => (near.scores.1 - near.scores.0).abs(),
        Kind::Distributions | Kind::YesOrNo | Kind::Span => near.kl,
    }
}

/// What [`output_loss`] counts in, in words.
pub fn loss_unit(head: &HeadOutput) -> &'static str {
    match Kind::of(head) {
        Kind::Vector => "1 - cosine",
        Kind::Score => "absolute difference of the score",
        Kind::Distributions | Kind::YesOrNo | Kind::Span => "nats",
    }
}

/// How near two outputs of a head are.
pub(super) fn nearness_of(head: &HeadOutput, original: Output<'_>, quantized: Output<'_>) -> Nearness {
    nearness(Kind::of(head), original, quantized)
}

fn nearness(kind: Kind, original: Output<'_>, quantized: Output<'_>) -> Nearness {
    let first = |output: Output<'_>| output.values.first().map_or(f64::NAN, |value| f64::from(*value));
    let mut nearness = Nearness {
        cosine: cosine(original.values, quantized.values),
        top1: f64::NAN,
        kl: f64::NAN,
        scores: (first(original), first(quantized)),
    };
    let over = |pairs: &[(&[f32], &[f32])], kl: fn(&[f32], &[f32]) -> f64| {
        let count = pairs.len().max(1) as f64;
        let agreed = pairs.iter().filter(|(a, b)| argmax(a) == argmax(b)).count();
        (agreed as f64 / count, pairs.iter().map(|(a, b)| kl(a, b)).sum::<f64>() / count)
    };
    let rows: Vec<_> = original.rows().zip(quantized.rows()).collect();
    (nearness.top1, nearness.kl) = match kind {
        Kind::Vector | Kind::Score => return nearness,
        Kind::Distributions => over(&rows, kl_divergence),
        Kind::YesOrNo => over(&rows, bernoulli_kl),
        Kind::Span => {
            let column = |output: Output<'_>, at: usize| output.rows().map(|row| row[at]).collect::<Vec<_>>();
            let [starts, ends] = [0, 1].map(|at| (column(original, at), column(quantized, at)));
            over(&[(&starts.0, &starts.1), (&ends.0, &ends.1)], kl_divergence)
        }
    };
    nearness
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(values: &[f32], columns: usize) -> Output<'_> {
        Output { values, columns }
    }

    #[test]
    fn distributions_run_along_rows_and_spans_along_columns() {
        // Two tokens, two columns.
        let (a, b) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 3.0, 1.0]);
        let by_row = nearness(Kind::Distributions, output(&a, 2), output(&b, 2));
        assert_eq!(by_row.top1, 0.5);
        assert!((by_row.kl - (kl_divergence(&[0.0, 1.0], &[3.0, 1.0]) / 2.0)).abs() < 1e-12);
        let by_column = nearness(Kind::Span, output(&a, 2), output(&b, 2));
        assert_eq!(by_column.top1, 0.5, "another start, the same end");
        assert!((by_column.kl - (kl_divergence(&[1.0, 0.0], &[1.0, 3.0]) / 2.0)).abs() < 1e-12);
        let labels = nearness(Kind::YesOrNo, output(&a[..2], 2), output(&b[2..], 2));
        assert!((labels.kl - bernoulli_kl(&[1.0, 0.0], &[3.0, 1.0])).abs() < 1e-12);
        let same = nearness(Kind::Distributions, output(&a, 2), output(&a, 2));
        assert_eq!((same.cosine, same.top1, same.kl), (1.0, 1.0, 0.0));
    }
}
