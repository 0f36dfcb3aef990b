//! Two distributions over the token that follows, of the original and of the quantised model.

/// How the quantised model's distribution differs from the original's where the token that does follow is known.
///
/// Logits count up to a constant for the row: softmax does not see what is added to all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextToken {
    /// `-ln` of the right token's probability, of the original and of the quantised model, in nats.
    pub losses: (f64, f64),
    /// Kullback-Leibler divergence of the quantised model from the original, as
    /// [`kl_divergence`](super::logits::kl_divergence), in nats.
    pub kl: f64,
    /// Whether the likeliest token is the same; of equal logits the first counts.
    pub same_top: bool,
    /// Cosine between the two rows of logits, each less its mean over the vocabulary. As of
    /// [`cosine`](super::fidelity::cosine), two constant rows agree.
    pub cosine: f64,
}

impl NextToken {
    /// Compares two rows of logits where `next` is the token that follows. `None` when the rows have other lengths, or no
    /// such token. NaN where a logit is NaN.
    pub fn compare(original: &[f32], quantized: &[f32], next: usize) -> Option<Self> {
        if original.len() != quantized.len() || next >= original.len() {
            return None;
        }
        let (a, b) = (Row::of(original), Row::of(quantized));
        // Sums of exponentials relative to the largest logit, and of the original's times the difference of logits.
        let (mut sum_a, mut sum_b, mut difference) = (0.0, 0.0, 0.0);
        let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
        for (&x, &y) in original.iter().zip(quantized) {
            let (x, y) = (f64::from(x), f64::from(y));
            let (below_x, below_y) = (x - a.largest, y - b.largest);
            let weight = below_x.exp();
            sum_a += weight;
            sum_b += below_y.exp();
            difference += weight * (below_x - below_y);
            let (x, y) = (x - a.mean, y - b.mean);
            dot += x * y;
            aa += x * x;
            bb += y * y;
        }
        let (log_a, log_b) = (sum_a.ln(), sum_b.ln());
        let loss = |row: &Row, logits: &[f32], log: f64| log + row.largest - f64::from(logits[next]);
        let kl = difference / sum_a - log_a + log_b;
        Some(Self {
            losses: (loss(&a, original, log_a), loss(&b, quantized, log_b)),
            // Rounding can leave equal distributions a hair below 0; NaN stays what it is.
            kl: if kl < 0.0 { 0.0 } else { kl },
            same_top: a.top == b.top,
            cosine: match (aa == 0.0, bb == 0.0) {
                (true, true) => 1.0,
                (true, false) | (false, true) => 0.0,
                (false, false) => (dot / (aa * bb).sqrt()).clamp(-1.0, 1.0),
            },
        })
    }

    /// What the right token's probability has gained: that of the quantised model less that of the original.
    pub fn probability_change(&self) -> f64 {
        (-self.losses.1).exp() - (-self.losses.0).exp()
    }
}

/// Of a row of logits.
struct Row {
    largest: f64,
    /// Index of the largest, the first of equals.
    top: usize,
    mean: f64,
}

impl Row {
    fn of(logits: &[f32]) -> Self {
        let (mut largest, mut top, mut sum) = (f32::NEG_INFINITY, 0, 0.0);
        for (index, &logit) in logits.iter().enumerate() {
            if logit > largest {
                (largest, top) = (logit, index);
            }
            sum += f64::from(logit);
        }
        Self { largest: f64::from(largest), top, mean: sum / logits.len().max(1) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::fidelity::{argmax, cosine};
    use crate::metrics::logits::{kl_divergence, negative_log_likelihood};

    #[test]
    fn rows_that_do_not_belong_together_have_no_comparison() {
        assert_eq!(NextToken::compare(&[0.0, 1.0], &[0.0], 0), None);
        assert_eq!(NextToken::compare(&[0.0, 1.0], &[0.0, 1.0], 2), None);
        assert!(NextToken::compare(&[0.0, f32::NAN], &[0.0, 1.0], 0).unwrap().kl.is_nan());
    }

    #[test]
    fn the_right_tokens_probability_falls_from_three_quarters_to_a_half() {
        let found = NextToken::compare(&[3f32.ln(), 0.0], &[5.0, 5.0], 0).unwrap();
        assert!((found.probability_change() + 0.25).abs() < 1e-7, "{found:?}");
        assert!(found.same_top, "of equal logits the first is taken");
        assert_eq!(found.cosine, 0.0, "a constant row has no direction");
        assert_eq!(NextToken::compare(&[5.0, 5.0], &[1.0, 1.0], 0).unwrap().cosine, 1.0);
    }

    proptest! {
        #[test]
        fn a_comparison_is_its_definitions(
            rows in prop::collection::vec((-20f32..20.0, -20f32..20.0), 2..40), next in 0usize..40, shift in -8f32..8.0,
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let next = next % a.len();
            let found = NextToken::compare(&a, &b, next).unwrap();
            prop_assert!((found.kl - kl_divergence(&a, &b)).abs() < 1e-11 * (1.0 + found.kl));
            prop_assert!((found.losses.0 - negative_log_likelihood(&a, next).unwrap()).abs() < 1e-12);
            prop_assert!((found.losses.1 - negative_log_likelihood(&b, next).unwrap()).abs() < 1e-12);
            prop_assert_eq!(found.same_top, argmax(&a) == argmax(&b));
            let centred = |row: &[f32]| {
                let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len() as f64;
                row.iter().map(|v| (f64::from(*v) - mean) as f32).collect::<Vec<f32>>()
            };
            prop_assert!((found.cosine - cosine(&centred(&a), &centred(&b))).abs() < 1e-5);
            // What is added to all logits changes nothing but roundings.
            let shifted: Vec<f32> = b.iter().map(|v| v + shift).collect();
            let other = NextToken::compare(&a, &shifted, next).unwrap();
            prop_assert!((found.kl - other.kl).abs() < 1e-4 && (found.losses.1 - other.losses.1).abs() < 1e-4);
            let same = NextToken::compare(&a, &a, next).unwrap();
            prop_assert_eq!((same.kl, same.same_top, same.probability_change()), (0.0, true, 0.0));
            prop_assert!((same.cosine - 1.0).abs() < 1e-12);
        }
    }
}
