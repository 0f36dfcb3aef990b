//! Distributions from logits, and how far two of them are apart.
//!
//! All in f64 with the largest logit taken off first, so that no finite logit overflows.

use super::fidelity::argmax;

/// The largest logit and the logarithm of the sum of all exponentials relative to it. NaN where a logit is.
fn log_sum(logits: &[f32]) -> (f64, f64) {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |best, &logit| best.max(f64::from(logit)));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    (largest, sum.ln())
}

/// Softmax: probabilities that sum to 1. Empty for no logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let (largest, log_sum) = log_sum(logits);
    logits.iter().map(|&logit| (f64::from(logit) - largest - log_sum).exp()).collect()
}

/// The logistic function, `1 / (1 + exp(-logit))`.
pub fn sigmoid(logit: f32) -> f64 {
    let x = f64::from(logit);
    // The exponential of a negative number never overflows.
    let tail = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + tail) } else { tail / (1.0 + tail) }
}

/// `-ln softmax(logits)[class]`, in nats: the cross entropy against one right class.
///
/// `None` when there is no such class.
pub fn negative_log_likelihood(logits: &[f32], class: usize) -> Option<f64> {
    let logit = f64::from(*logits.get(class)?);
    let (largest, log_sum) = log_sum(logits);
    Some(log_sum + largest - logit)
}

/// The Kullback-Leibler divergence `sum p ln(p / q)` in nats of the softmaxes `p` of the first logits and `q` of the
/// second. 0 where they are equal, otherwise positive.
///
/// Source: S. Kullback, R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22, 1951. NaN
/// when the lengths differ or a logit is NaN; 0 for no logits.
pub fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    if p_logits.len() != q_logits.len() {
        return f64::NAN;
    }
    let ((p_largest, p_sum), (q_largest, q_sum)) = (log_sum(p_logits), log_sum(q_logits));
    let terms = p_logits.iter().zip(q_logits).map(|(&p, &q)| {
        let p = f64::from(p) - p_largest - p_sum;
        let q = f64::from(q) - q_largest - q_sum;
        p.exp() * (p - q)
    });
    let sum: f64 = terms.sum();
    // Rounding can leave equal distributions a hair below 0; NaN stays what it is.
    if sum < 0.0 { 0.0 } else { sum }
}

/// As [`kl_divergence`] for labels that are each right or wrong on their own: the mean over the labels of the divergence
/// of two Bernoulli distributions with the sigmoids of the logits.
pub fn bernoulli_kl(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    if p_logits.len() != q_logits.len() {
        return f64::NAN;
    }
    // A sigmoid is the softmax over the logit and 0.
    let sum: f64 = p_logits.iter().zip(q_logits).map(|(&p, &q)| kl_divergence(&[p, 0.0], &[q, 0.0])).sum();
    sum / p_logits.len().max(1) as f64
}

/// The indices of the `count` largest logits, largest first, the first of equals first. NaN is never among them.
pub fn largest(logits: &[f32], count: usize) -> Vec<usize> {
    if count == 1 {
        return argmax(logits).into_iter().collect();
    }
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| !logits[i].is_nan()).collect();
    let by_size = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if count < order.len() && count > 0 {
        order.select_nth_unstable_by(count - 1, by_size);
    }
    order.truncate(count);
    order.sort_unstable_by(by_size);
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definitions, without any care for overflow.
    fn naive_softmax(logits: &[f32]) -> Vec<f64> {
        let all: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        let sum: f64 = all.iter().sum();
        all.iter().map(|e| e / sum).collect()
    }

    fn logits(max: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-20f32..20.0, 1..max)
    }

    #[test]
    fn extreme_logits_have_a_value() {
        assert_eq!(softmax(&[f32::MAX, 0.0]), [1.0, 0.0]);
        assert_eq!(sigmoid(f32::MAX), 1.0);
        assert_eq!(sigmoid(f32::MIN), 0.0);
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(negative_log_likelihood(&[0.0; 4], 2), Some(4f64.ln()));
        assert_eq!(negative_log_likelihood(&[0.0; 4], 4), None);
        assert_eq!(kl_divergence(&[1e30, 0.0], &[1e30, 0.0]), 0.0);
        assert!(kl_divergence(&[1.0], &[1.0, 2.0]).is_nan());
        assert!(kl_divergence(&[f32::NAN, 1.0], &[0.0, 1.0]).is_nan());
        assert_eq!(kl_divergence(&[], &[]), 0.0);
        assert_eq!(largest(&[1.0, 3.0, f32::NAN, 3.0, 2.0], 3), [1, 3, 4]);
        assert_eq!(largest(&[1.0], 5), [0]);
        assert_eq!(largest(&[1.0, 2.0], 0), [] as [usize; 0]);
    }

    #[test]
    fn the_divergence_of_two_coins_is_known() {
        // p = 3/4, q = 1/2: 3/4 ln 3/2 + 1/4 ln 1/2.
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let logit = 3f32.ln();
        assert!((kl_divergence(&[logit, 0.0], &[0.0, 0.0]) - expected).abs() < 1e-7);
        assert!((bernoulli_kl(&[logit, 0.0], &[0.0, 0.0]) - expected / 2.0).abs() < 1e-7);
    }

    proptest! {
        #[test]
        fn the_functions_are_their_definitions(p in logits(12), seed in 0usize..1000) {
            let q: Vec<f32> = p.iter().enumerate().map(|(i, l)| l + ((i * 7 + seed) % 5) as f32 - 2.0).collect();
            let (naive_p, naive_q) = (naive_softmax(&p), naive_softmax(&q));
            for (found, expected) in softmax(&p).iter().zip(&naive_p) {
                prop_assert!((found - expected).abs() < 1e-12);
            }
            let expected: f64 = naive_p.iter().zip(&naive_q).map(|(p, q)| p * (p / q).ln()).sum();
            prop_assert!((kl_divergence(&p, &q) - expected).abs() < 1e-9);
            prop_assert!(kl_divergence(&p, &q) >= 0.0);
            prop_assert!(kl_divergence(&p, &p) == 0.0);
            let class = seed % p.len();
            let nll = negative_log_likelihood(&p, class).unwrap();
            prop_assert!((nll + naive_p[class].ln()).abs() < 1e-9);
        }

        #[test]
        fn the_largest_are_the_head_of_a_stable_sort(values in prop::collection::vec(-3i8..3, 0..40), count in 0usize..10) {
            let logits: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(count);
            prop_assert_eq!(largest(&logits, count), order);
        }
    }
}
