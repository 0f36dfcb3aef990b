//! Perplexity of a text, and how near the distributions of the next token are to the original's on it.

use zeropoint_models::TokenSequence;

use super::run::{Output, Run, ratio};
use super::{TaskError, names};
use crate::metrics::fidelity::argmax;
use crate::metrics::logits::{kl_divergence, negative_log_likelihood};
use crate::report::Metric;

pub(super) const METRICS: &[&str] = &[names::PERPLEXITY, names::KL_MEAN, names::TOP1_AGREEMENT];

/// Windows of `window` tokens of a text, each begun `stride` tokens after the one before, at most `most`. Tokens at the end
/// that fill no window are left out; a text of fewer is one window.
pub fn windows(ids: &[u32], window: usize, stride: usize, most: usize) -> Vec<Vec<u32>> {
    if ids.len() <= window {
        return vec![ids.to_vec()];
    }
    ids.windows(window).step_by(stride.max(1)).take(most).map(<[u32]>::to_vec).collect()
}

pub(super) fn sequences(windows: &[Vec<u32>]) -> Vec<TokenSequence> {
    let sequence =
        |ids: &Vec<u32>| TokenSequence { ids: ids.clone(), type_ids: vec![0; ids.len()], prompt: 0 };
    windows.iter().map(sequence).collect()
}

/// Sums over the tokens of a window that others stand before.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Told {
    loss: f64,
    tokens: f64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Nearness {
    kl: f64,
    agreed: f64,
    tokens: f64,
}

pub(super) fn measure(run: &mut Run<'_>, windows: &[Vec<u32>]) -> Result<Vec<Metric>, TaskError> {
    let sequences = sequences(windows);
    let sequences: Vec<&TokenSequence> = sequences.iter().collect();
    let kept = run.both(&sequences, |i, a, b| of_window(&windows[i], a, b))?;
    let (told, near): (Vec<(Told, Told)>, Vec<Nearness>) = kept.into_iter().unzip();
    Ok(vec![
        run.compared((names::PERPLEXITY, false), &told, |rows| {
            ratio(rows, |row| (row.loss, row.tokens)).map(f64::exp)
        }),
        run.against_ideal(names::KL_MEAN, 0.0, &near, |rows| ratio(rows, |row| (row.kl, row.tokens))),
        run.against_ideal(names::TOP1_AGREEMENT, 1.0, &near, |rows| {
            ratio(rows, |row| (row.agreed, row.tokens))
        }),
    ])
}

/// The row of a token is about the one after it: that of the last is about nothing.
fn of_window(ids: &[u32], original: Output<'_>, quantized: Output<'_>) -> ((Told, Told), Nearness) {
    let (mut told, mut near) = ((Told::default(), Told::default()), Nearness::default());
    for ((a, b), &next) in original.rows().zip(quantized.rows()).zip(&ids[1..]) {
        for (told, logits) in [(&mut told.0, a), (&mut told.1, b)] {
            told.loss += negative_log_likelihood(logits, next as usize).unwrap_or(f64::NAN);
            told.tokens += 1.0;
        }
        near.kl += kl_divergence(a, b);
        near.agreed += f64::from(argmax(a) == argmax(b));
        near.tokens += 1.0;
    }
    (told, near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_and_begin_at_every_stride() {
        let ids: Vec<u32> = (0..10).collect();
        assert_eq!(windows(&ids, 4, 4, 9), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(windows(&ids, 4, 3, 9), [vec![0, 1, 2, 3], vec![3, 4, 5, 6], vec![6, 7, 8, 9]]);
        assert_eq!(windows(&ids, 4, 4, 1), [vec![0, 1, 2, 3]]);
        assert_eq!(windows(&ids, 20, 20, 9), [ids]);
    }

    #[test]
    fn a_row_is_about_the_token_after_it() {
        // Three tokens, two in the vocabulary: the last row is about none.
        let a = [0.0, 0.0, 1.0, 0.0, 9.0, 9.0];
        let b = [0.0, 1.0, 1.0, 0.0, -9.0, 9.0];
        let output = |values| Output { values, columns: 2 };
        let ((original, quantized), near) = of_window(&[0, 1, 0], output(&a), output(&b));
        let e = 1f64.exp();
        let expected = [2f64.ln() - (e / (e + 1.0)).ln(), -2.0 * (e / (e + 1.0)).ln()];
        assert!((original.loss - expected[0]).abs() < 1e-7 && original.tokens == 2.0, "{original:?}");
        assert!((quantized.loss - expected[1]).abs() < 1e-7, "{quantized:?}");
        assert_eq!((near.agreed, near.tokens), (1.0, 2.0));
        assert!((near.kl - kl_divergence(&a[..2], &b[..2])).abs() < 1e-12);
    }
}
