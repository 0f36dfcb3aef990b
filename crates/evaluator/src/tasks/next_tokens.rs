//! Decoder language models: perplexity, and how near the distributions of each next token are to the original's.

use rayon::prelude::*;
use zeropoint_models::TokenSequence;

use super::run::{Output, Run, ratio};
use super::windows::{Counting, Windows};
use super::{TaskError, names};
use crate::metrics::next_token::NextToken;
use crate::metrics::quantile::GroupedValues;
use crate::report::Metric;

pub(super) const PERPLEXITY: &[&str] = &[names::PERPLEXITY, names::KL_MEAN, names::TOP1_AGREEMENT];

pub(super) const FIDELITY: &[&str] = &[
    names::KL_MEAN,
    names::KL_P99,
    names::KL_P999,
    names::TOP1_AGREEMENT,
    names::PROBABILITY_CHANGE,
    names::PROBABILITY_CHANGE_RMS,
    names::COSINE_MEAN,
    names::COSINE_MIN,
];

/// Fewest tokens beyond a percentile for which it has a standard error, as the first percentile has it of 300 samples.
const FEWEST_BEYOND: f64 = 3.0;

/// What is kept of a window or text: sums over the tokens that count, and each one's divergence.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    tokens: f64,
    /// Of the original and of the quantised model, in nats.
    losses: (f64, f64),
    /// Of each token, in nats.
    kl: Vec<f32>,
    kl_sum: f64,
    agreed: f64,
    change: f64,
    squared_change: f64,
    cosine: f64,
    lowest_cosine: f64,
}

/// Perplexity, and the two measures of fidelity that say most.
pub(super) fn perplexity(run: &mut Run<'_>, windows: &Windows) -> Result<Vec<Metric>, TaskError> {
    let told = told(run, &windows.sequences(), windows.counting)?;
    let losses: Vec<_> =
        told.iter().map(|row| ((row.losses.0, row.tokens), (row.losses.1, row.tokens))).collect();
    let perplexity =
        run.compared((names::PERPLEXITY, false), &losses, |rows| ratio(rows, |row| *row).map(f64::exp));
    Ok(vec![perplexity, kl_mean(run, &told), top1_agreement(run, &told)])
}

/// How near the quantised model is to the original, token by token.
pub(super) fn fidelity(
    run: &mut Run<'_>,
    sequences: &[TokenSequence],
    counting: Counting,
) -> Result<Vec<Metric>, TaskError> {
    let told = told(run, sequences, counting)?;
    let per_token = |of: fn(&Told) -> f64| move |rows: &[&Told]| ratio(rows, |row| (of(row), row.tokens));
    let lowest = |rows: &[&Told]| rows.iter().map(|row| row.lowest_cosine).reduce(f64::min);
    let change = run.against_ideal(names::PROBABILITY_CHANGE, 0.0, &told, per_token(|row| row.change));
    let rms = per_token(|row| row.squared_change);
    Ok(vec![
        kl_mean(run, &told),
        kl_percentile(run, &told, names::KL_P99, 99.0),
        kl_percentile(run, &told, names::KL_P999, 99.9),
        top1_agreement(run, &told),
        Metric { higher_is_better: true, ..change },
        run.against_ideal(names::PROBABILITY_CHANGE_RMS, 0.0, &told, |rows| rms(rows).map(f64::sqrt)),
        run.against_ideal(names::COSINE_MEAN, 1.0, &told, per_token(|row| row.cosine)),
        run.extreme_against_ideal(names::COSINE_MIN, 1.0, &told, lowest),
    ])
}

fn kl_mean(run: &Run<'_>, told: &[Told]) -> Metric {
    run.against_ideal(names::KL_MEAN, 0.0, told, |rows| ratio(rows, |row| (row.kl_sum, row.tokens)))
}

fn top1_agreement(run: &Run<'_>, told: &[Told]) -> Metric {
    run.against_ideal(names::TOP1_AGREEMENT, 1.0, told, |rows| ratio(rows, |row| (row.agreed, row.tokens)))
}

/// A percentile over the divergences of all tokens; of a resample of windows, over those of its windows.
fn kl_percentile(run: &Run<'_>, told: &[Told], name: &str, percent: f64) -> Metric {
    let values = GroupedValues::new(told.iter().map(|row| row.kl.as_slice()));
    let of = |chosen: &[usize]| values.as_ref()?.percentile(chosen, percent);
    let tokens: f64 = told.iter().map(|row| row.tokens).sum();
    let is_extreme = tokens * (100.0 - percent) / 100.0 < FEWEST_BEYOND - 1e-9;
    run.grouped_against_ideal(name, 0.0, told.len(), is_extreme, of)
}

fn told(run: &mut Run<'_>, sequences: &[TokenSequence], counting: Counting) -> Result<Vec<Told>, TaskError> {
    let sequences: Vec<&TokenSequence> = sequences.iter().collect();
    let told = run.both(&sequences, |i, original, quantized| {
        let ids = &sequences[i].ids;
        of_rows(ids, counting.first_row(ids.len()), original, quantized)
    })?;
    if told.iter().all(|row| row.tokens == 0.0) {
        return Err(TaskError::ShortText { task: run.task.to_owned(), origin: "every text".to_owned() });
    }
    Ok(told)
}

/// The row of a token is about the one after it: that of the last is about nothing.
fn of_rows(ids: &[u32], first: usize, original: Output<'_>, quantized: Output<'_>) -> Told {
    let rows: Vec<usize> = (first..ids.len().saturating_sub(1)).collect();
    let compare =
        |&row: &usize| NextToken::compare(original.row(row), quantized.row(row), ids[row + 1] as usize);
    // Both models have the same vocabulary, so every row has a comparison.
    let found: Vec<NextToken> = rows.par_iter().filter_map(compare).collect();
    let sum = |of: fn(&NextToken) -> f64| found.iter().map(of).sum::<f64>();
    Told {
        tokens: found.len() as f64,
        losses: (sum(|token| token.losses.0), sum(|token| token.losses.1)),
        kl: found.iter().map(|token| token.kl as f32).collect(),
        kl_sum: sum(|token| token.kl),
        agreed: sum(|token| f64::from(token.same_top)),
        change: sum(NextToken::probability_change),
        squared_change: sum(|token| token.probability_change().powi(2)),
        cosine: sum(|token| token.cosine),
        lowest_cosine: found.iter().map(|token| token.cosine).fold(f64::INFINITY, f64::min),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_about_the_token_after_it() {
        // Three tokens, two in the vocabulary: the last row is about none.
        let a = [0.0, 0.0, 1.0, 0.0, 9.0, 9.0];
        let b = [0.0, 1.0, 1.0, 0.0, -9.0, 9.0];
        let output = |values| Output { values, columns: 2 };
        let told = of_rows(&[0, 1, 0], 0, output(&a), output(&b));
        let e = 1f64.exp();
        let (half, most) = (0.5, e / (e + 1.0));
        assert_eq!((told.tokens, told.agreed, told.kl.len()), (2.0, 1.0, 2));
        assert!((told.losses.0 - (-f64::ln(half) - f64::ln(most))).abs() < 1e-7, "{told:?}");
        assert!((told.losses.1 + 2.0 * f64::ln(most)).abs() < 1e-7, "{told:?}");
        // 1/2 ln (1/2) / (1 - most) + 1/2 ln (1/2) / most.
        let kl = 0.5 * (half / (1.0 - most)).ln() + 0.5 * (half / most).ln();
        assert!((told.kl_sum - kl).abs() < 1e-7 && told.kl[1] == 0.0, "{told:?}");
        assert!((told.change - (most - half)).abs() < 1e-7, "{told:?}");
        assert!((told.squared_change - (most - half).powi(2)).abs() < 1e-7, "{told:?}");
        // A constant row has no direction, and the second rows are the same.
        assert_eq!((told.cosine, told.lowest_cosine), (1.0, 0.0));
        let second = of_rows(&[0, 1, 0], 1, output(&a), output(&b));
        assert_eq!((second.tokens, second.kl.as_slice()), (1.0, [0.0].as_slice()));
        assert_eq!(of_rows(&[0], 0, output(&a[..2]), output(&b[..2])).tokens, 0.0);
    }
}
