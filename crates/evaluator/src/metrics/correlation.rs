//! Correlation coefficients of Pearson and Spearman.

/// Pearson's correlation coefficient, in `[-1, 1]`.
///
/// `None` when the lengths differ, fewer than two values are given, one side is constant, or a value is not finite.
/// Two passes in f64 with a corrected mean; each side is first scaled by an exact power of two, so that no square
/// leaves the range of f64.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() {
        return None;
    }
    let (x, y) = (Centred::new(x)?, Centred::new(y)?);
    let covariance: f64 = x.iter().zip(y.iter()).map(|(a, b)| a * b).sum();
    Some((covariance / (x.squares() * y.squares()).sqrt()).clamp(-1.0, 1.0))
}

/// Spearman's rank correlation, in `[-1, 1]`: Pearson's coefficient of the [`ranks`].
///
/// `None` in the same cases as [`pearson`]; infinities have a rank and are allowed here, NaN is not.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() {
        return None;
    }
    pearson(&ranks(x)?, &ranks(y)?)
}

/// The rank of every value, from 1, with the mean of their ranks for values that are equal (`0.0 == -0.0`).
///
/// `None` when a value is NaN, which has no rank.
pub fn ranks(values: &[f64]) -> Option<Vec<f64>> {
    let mut order = Vec::with_capacity(values.len());
    for (index, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        order.push((value + 0.0, index)); // adding 0.0 turns -0.0 into 0.0, so that total_cmp sees a tie
    }
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for ties in order.chunk_by(|a, b| a.0 == b.0) {
        // The ranks below + 1 ..= below + ties have this mean.
        let rank = below as f64 + (ties.len() + 1) as f64 / 2.0;
        for &(_, index) in ties {
            ranks[index] = rank;
        }
        below += ties.len();
    }
    Some(ranks)
}

/// One side of a correlation with its mean taken off on the fly.
struct Centred<'a> {
    values: &'a [f64],
    /// An exact power of two.
    factor: f64,
    /// Mean of the scaled values.
    mean: f64,
}

impl<'a> Centred<'a> {
    fn new(values: &'a [f64]) -> Option<Self> {
        let first = *values.first()?;
        let mut absmax = 0.0f64;
        let mut constant = true;
        for &value in values {
            if !value.is_finite() {
                return None;
            }
            absmax = absmax.max(value.abs());
            constant &= value == first;
        }
        if constant {
            return None;
        }
        // 2^-e for an absmax of m * 2^e, from its biased exponent; the result brings every value into [-4, 4].
        let factor = f64::from_bits((2046 - (absmax.to_bits() >> 52)).max(1) << 52);
        let mut centred = Self { values, factor, mean: 0.0 };
        // The second round takes off what rounding left in the first.
        for _ in 0..2 {
            centred.mean += centred.iter().sum::<f64>() / values.len() as f64;
        }
        Some(centred)
    }

    fn iter(&self) -> impl Iterator<Item = f64> {
        self.values.iter().map(|value| value * self.factor - self.mean)
    }

    fn squares(&self) -> f64 {
        self.iter().map(|d| d * d).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(actual: Option<f64>, expected: f64) -> bool {
        actual.is_some_and(|actual| (actual - expected).abs() < 1e-12)
    }

    #[test]
    fn known_values() {
        // scipy.stats 1.17: pearsonr and spearmanr.
        let x = [1.0, 2.0, 2.0, 4.0, 7.5, -3.0];
        let y = [0.5, 0.5, 3.0, 2.0, 9.0, 0.0];
        assert!(close(pearson(&x, &y), 0.843_035_850_867_827_3), "{:?}", pearson(&x, &y));
        assert!(close(spearman(&x, &y), 0.867_647_058_823_529_4), "{:?}", spearman(&x, &y));
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), Some(vec![4.0, 1.0, 4.0, 2.0, 4.0]));
        assert_eq!(ranks(&[0.0, -0.0, 1.0]), Some(vec![1.5, 1.5, 3.0]));
        assert_eq!(ranks(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn what_has_no_value_is_none() {
        for (x, y) in [
            (&[][..], &[][..]),
            (&[1.0], &[2.0]),
            (&[1.0, 2.0], &[1.0, 2.0, 3.0]),
            (&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]),
            (&[1.0, 2.0, 3.0], &[-0.0, 0.0, 0.0]),
            (&[1.0, f64::NAN], &[1.0, 2.0]),
        ] {
            assert_eq!(pearson(x, y), None, "{x:?} {y:?}");
            assert_eq!(spearman(x, y), None, "{x:?} {y:?}");
        }
        assert_eq!(pearson(&[1.0, f64::INFINITY], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0, f64::INFINITY], &[1.0, 2.0]), Some(1.0));
    }

    #[test]
    fn extreme_magnitudes_and_offsets_keep_their_digits() {
        let y = [1.0, 2.0, 4.0, 8.0];
        let expected = pearson(&y, &[1.0, 3.0, 2.0, 7.0]).expect("defined");
        for factor in [1e300, 1e-300, 1e-315, 2f64.powi(-400), 2f64.powi(399), 1.0] {
            let x = [1.0, 3.0, 2.0, 7.0].map(|v| v * factor);
            let actual = pearson(&x, &y).expect("defined");
            assert!((actual - expected).abs() < 1e-8, "{factor}: {actual} {expected}");
        }
        let offset = [1.0, 3.0, 2.0, 7.0].map(|v| v + 1e12);
        assert!(close(pearson(&offset, &y), expected));
        assert!(close(pearson(&[f64::MAX, f64::MIN], &[1.0, 0.0]), 1.0));
    }

    fn pairs() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
        prop::collection::vec((-1e3..1e3f64, (-5..5i32).prop_map(f64::from)), 2..60)
            .prop_map(|rows| rows.into_iter().unzip())
    }

    proptest! {
        #[test]
        fn correlations_are_symmetric_and_bounded((x, y) in pairs()) {
            for metric in [pearson, spearman] {
                prop_assert_eq!(metric(&x, &y), metric(&y, &x));
                if let Some(r) = metric(&x, &y) {
                    prop_assert!((-1.0..=1.0).contains(&r));
                    let turned: Vec<f64> = y.iter().map(|v| -v).collect();
                    prop_assert!(close(metric(&x, &turned), -r));
                }
            }
        }

        #[test]
        fn pearson_ignores_scale_and_offset((x, y) in pairs(), a in 0.1..10.0f64, b in -100.0..100.0f64) {
            let moved: Vec<f64> = x.iter().map(|v| a * v + b).collect();
            if let Some(r) = pearson(&x, &y) {
                prop_assert!(pearson(&moved, &y).is_some_and(|m| (m - r).abs() < 1e-8));
            }
        }

        #[test]
        fn spearman_sees_only_the_order((x, y) in pairs()) {
            let stretched: Vec<f64> = y.iter().map(|v| v.powi(3)).collect();
            prop_assert_eq!(spearman(&x, &y), spearman(&x, &stretched));
        }

        #[test]
        fn ranks_sum_to_the_triangle_number((_, y) in pairs()) {
            let n = y.len() as f64;
            prop_assert_eq!(ranks(&y).expect("no NaN").iter().sum::<f64>(), n * (n + 1.0) / 2.0);
        }
    }
}
