//! How close the quantised model's outputs are to the original's.

/// Cosine of the angle between two vectors, in `[-1, 1]`, accumulated in f64; equal vectors give exactly 1.
///
/// Two zero vectors agree (1), a zero vector and another do not (0). NaN when the lengths differ or a value is not
/// finite.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        dot += x * y;
        aa += x * x;
        bb += y * y;
    }
    if !(aa + bb).is_finite() {
        return f64::NAN;
    }
    match (aa == 0.0, bb == 0.0) {
        (true, true) => 1.0,
        (true, false) | (false, true) => 0.0,
        // f32 inputs leave so much room in f64 that the product can neither overflow nor vanish.
        (false, false) => (dot / (aa * bb).sqrt()).clamp(-1.0, 1.0),
    }
}

/// Mean, minimum and first percentile of a set of similarities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// The smallest value.
    pub min: f64,
    /// The first percentile, see [`percentile`].
    pub p1: f64,
}

/// Summarises values; `None` when there are none or one is NaN.
pub fn summarize(values: &[f64]) -> Option<Summary> {
    let min = values.iter().copied().reduce(f64::min)?;
    let p1 = percentile(values, 1.0)?;
    Some(Summary { mean: values.iter().sum::<f64>() / values.len() as f64, min, p1 })
}

/// The `percent`-th percentile of values, with the linear interpolation that `numpy.percentile` uses by default.
///
/// `None` when there are no values, one is NaN, or `percent` is outside `[0, 100]`.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) || !(0.0..=100.0).contains(&percent) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let position = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let (low, high) = (sorted[below], sorted[position.ceil() as usize]);
    let fraction = position - below as f64;
    Some(if low == high { low } else { low + (high - low) * fraction })
}

/// Index of the largest value, the first of equals; `None` when there are no values or one is NaN.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = (0, *logits.first()?);
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if logit > best.1 {
            best = (index, logit);
        }
    }
    Some(best.0)
}

/// The fraction of rows whose largest logit has the same index on both sides.
///
/// `None` when there are no rows, the numbers of rows or of logits in a row differ, a row is empty, or a logit is NaN.
pub fn top1_agreement<R: AsRef<[f32]>>(a_logits: &[R], b_logits: &[R]) -> Option<f64> {
    if a_logits.is_empty() || a_logits.len() != b_logits.len() {
        return None;
    }
    let mut agreed = 0usize;
    for (a, b) in a_logits.iter().zip(b_logits) {
        let (a, b) = (a.as_ref(), b.as_ref());
        if a.len() != b.len() {
            return None;
        }
        agreed += usize::from(argmax(a)? == argmax(b)?);
    }
    Some(agreed as f64 / a_logits.len() as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cosine_of_zero_vectors_is_defined() {
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, -0.0]), 1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 0.0]), 0.0);
        assert_eq!(cosine(&[], &[]), 1.0);
        assert_eq!(cosine(&[1.0, 2.0], &[2.0, 4.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[f32::MAX, 0.0], &[-f32::MAX, 0.0]), -1.0);
        assert_eq!(cosine(&[f32::from_bits(1)], &[f32::MAX]), 1.0);
        assert!(cosine(&[1.0], &[1.0, 1.0]).is_nan());
        assert!(cosine(&[f32::NAN], &[1.0]).is_nan());
        assert!(cosine(&[f32::INFINITY], &[f32::INFINITY]).is_nan());
    }

    #[test]
    fn percentiles_interpolate_as_numpy() {
        let values: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        for (percent, expected) in [(0.0, 0.0), (1.0, 0.1), (50.0, 5.0), (99.0, 9.9), (100.0, 10.0)] {
            assert!((percentile(&values, percent).expect("defined") - expected).abs() < 1e-12);
        }
        assert_eq!(percentile(&[3.0], 1.0), Some(3.0));
        assert_eq!(percentile(&[], 1.0), None);
        assert_eq!(percentile(&[1.0, f64::NAN], 1.0), None);
        assert_eq!(percentile(&[1.0], 100.5), None);
        assert_eq!(summarize(&[0.5, 1.0]), Some(Summary { mean: 0.75, min: 0.5, p1: 0.505 }));
        assert_eq!(summarize(&[]), None);
        assert_eq!(summarize(&[f64::NAN]), None);
    }

    #[test]
    fn top1_takes_the_first_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY]), Some(0));
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[1.0, f32::NAN]), None);
        assert_eq!(top1_agreement(&[[0.0, 1.0], [1.0, 0.0]], &[[0.2, 0.9], [0.1, 0.2]]), Some(0.5));
        assert_eq!(top1_agreement::<[f32; 2]>(&[], &[]), None);
        assert_eq!(top1_agreement(&[vec![1.0]], &[vec![1.0, 2.0]]), None);
        assert_eq!(top1_agreement(&[vec![1.0]], &[vec![1.0], vec![2.0]]), None);
    }

    proptest! {
        #[test]
        fn cosine_ignores_positive_scale(
            rows in prop::collection::vec((-10.0f32..10.0, -10.0f32..10.0), 1..50),
            shift in 0..20i32,
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let scaled: Vec<f32> = a.iter().map(|v| v * 2f32.powi(shift)).collect();
            prop_assert!((cosine(&a, &b) - cosine(&scaled, &b)).abs() < 1e-12);
            prop_assert_eq!(cosine(&a, &b), cosine(&b, &a));
            prop_assert_eq!(cosine(&a, &a), 1.0);
        }

        #[test]
        fn percentiles_lie_within_the_values_and_rise(
            values in prop::collection::vec(-1e6..1e6f64, 1..40), p in 0.0..=50.0f64, q in 50.0..=100.0f64,
        ) {
            let (low, high) = (percentile(&values, p).expect("some"), percentile(&values, q).expect("some"));
            prop_assert!(low <= high);
            prop_assert!(percentile(&values, 0.0).expect("some") <= low);
            prop_assert!(high <= percentile(&values, 100.0).expect("some"));
        }
    }
}
