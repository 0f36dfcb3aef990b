//! Choosing the range of a weight from the weight itself.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeropoint_core::{QuantParams, WeightBits, quantize_weight};

use crate::ObserveError;
use crate::range::check_percentile;

/// How the symmetric range of a weight, one row (output channel) or a whole tensor, is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum WeightObserver {
    /// The largest magnitude: nothing saturates.
    #[default]
    MinMax,
    /// The percentile of the magnitudes, so that `100 - percentile` per cent of the weights saturate. Between two ranks
    /// it is interpolated, as `torch.quantile` and `numpy.percentile` do: of the 384 weights of a row 99.9 leaves out
    /// less than one.
    ///
    /// The percentile of activations (Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
    /// Empirical Evaluation", 2020) applied to a row.
    Percentile {
        /// From 50 to 100 (which is [`WeightObserver::MinMax`]).
        percentile: f64,
    },
    /// The absolute maximum of least squared error after quantising and dequantising, found by search.
    ///
    /// The criterion is that of Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference"
    /// (2019), and Nagel et al., "A White Paper on Neural Network Quantization" (2021), section 3.1, for each row.
    Mse,
}

impl fmt::Display for WeightObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile { percentile } => write!(f, "percentile {percentile}"),
            Self::Mse => f.write_str("mse"),
        }
    }
}

impl WeightObserver {
    /// Whether the settings are allowed.
    pub fn validate(&self) -> Result<(), ObserveError> {
        match *self {
            Self::Percentile { percentile } => check_percentile(percentile),
            Self::MinMax | Self::Mse => Ok(()),
        }
    }

    /// The absolute maximum to pass to [`QuantParams::weight_scale`] for these weights.
    ///
    /// [`Mse`](Self::Mse) is never worse than [`MinMax`](Self::MinMax) by the squared error after rounding, and never larger. It is
    /// 0 for no weights or all zeros. A NaN or infinite weight makes it not finite, which [`QuantParams::weight_scale`]
    /// refuses. A percentile that is not allowed counts as the nearest one that is.
    pub fn absmax(self, weights: &[f32], bits: WeightBits) -> f32 {
        // Among magnitudes the order of the bits is the order of the values, with infinity and NaN on top.
        let largest = weights.iter().fold(0, |max, w| ((w.to_bits() & 0x7fff_ffff) as i32).max(max));
        let absmax = f32::from_bits(largest as u32);
        match self {
            Self::Mse if absmax.is_finite() && absmax > 0.0 => clip(weights, absmax, bits),
            Self::Percentile { percentile } if absmax.is_finite() => magnitude_at(weights, percentile),
            _ => absmax,
        }
    }
}

/// The percentile of the magnitudes of finite weights, linear between ranks; 0 of none.
fn magnitude_at(weights: &[f32], percentile: f64) -> f32 {
    let Some(last) = weights.len().checked_sub(1) else { return 0.0 };
    let rank = percentile.clamp(50.0, 100.0) / 100.0 * last as f64;
    let mut magnitudes: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
    let (_, lower, above) = magnitudes.select_nth_unstable_by(rank as usize, f32::total_cmp);
    let lower = f64::from(*lower);
    let upper = above.iter().copied().min_by(f32::total_cmp).map_or(lower, f64::from);
    (lower + rank.fract() * (upper - lower)) as f32
}

/// Fractions of the absolute maximum are tried from 1 down to 1/16 by 1/128, and around the best of them by 1/1024.
const COARSE: i32 = 128;
const COARSE_LAST: i32 = COARSE / 16;
const FINE: i32 = 1024;
/// How often to ask whether going on makes sense: the answer costs about half an evaluation.
const STOP_INTERVAL: i32 = 4;

fn clip(weights: &[f32], absmax: f32, bits: WeightBits) -> f32 {
    let steps = Steps::new(weights, absmax, bits);
    let mut best = (1.0, steps.squared_error(1.0));
    let mut keep_better = |fraction: f32| {
        let error = steps.squared_error(fraction);
        if error < best.1 {
            best = (fraction, error);
        }
        best
    };
    for i in (COARSE_LAST..COARSE).rev() {
        let fraction = i as f32 / COARSE as f32;
        let (_, least) = keep_better(fraction);
        // Saturation alone only grows from here, so once it exceeds the least error nothing better follows.
        if i % STOP_INTERVAL == 0 && steps.squared_saturation(fraction) >= least {
            break;
        }
    }
    let centre = (keep_better(1.0).0 * FINE as f32) as i32;
    for i in (centre - FINE / COARSE + 1..centre + FINE / COARSE).filter(|&i| i <= FINE) {
        keep_better(i as f32 / FINE as f32);
    }

    // The search multiplies by reciprocals of fractions; the specification has the last word.
    let clipped = (f64::from(absmax) * f64::from(best.0)) as f32;
    let error = |absmax| squared_error(weights, absmax, bits);
    if best.0 < 1.0 && error(clipped) < error(absmax) { clipped } else { absmax }
}

/// Sum of the squared errors of weights rounded by the specification under that absolute maximum; infinite where it gives no scale.
fn squared_error(weights: &[f32], absmax: f32, bits: WeightBits) -> f64 {
    let Ok(scale) = QuantParams::weight_scale(absmax, bits) else { return f64::INFINITY };
    let error = |w: &f32| f64::from(w - f32::from(quantize_weight(*w, scale, bits)) * scale).powi(2);
    weights.iter().map(error).sum()
}

/// Independent sums, so that the compiler may use vector registers of any width and the result is the same for all.
const LANES: usize = 16;
/// Values summed in f32 before the sum goes on in f64.
const BLOCK: usize = 64 * LANES;

/// Weights in units of the min-max scale, in INT8 from -127.5 to 127.5, padded with zeros (which have no error) to whole lanes.
/// A fraction `f` of the absolute maximum has the scale `f` in this unit.
struct Steps {
    values: Vec<f32>,
    /// The smallest and the largest integer.
    range: (f32, f32),
}

impl Steps {
    fn new(weights: &[f32], absmax: f32, bits: WeightBits) -> Self {
        let mut values = Vec::with_capacity(weights.len().next_multiple_of(LANES));
        // Divided before multiplying: the scale of the absolute maximum may not be a normal number.
        values.extend(weights.iter().map(|w| w / absmax * bits.half_range()));
        values.resize(values.len().next_multiple_of(LANES), 0.0);
        let (low, high) = bits.range();
        Self { values, range: (f32::from(low), f32::from(high)) }
    }

    /// Sum of `(x - x')^2` at scale `f`.
    fn squared_error(&self, f: f32) -> f64 {
        let (reciprocal, (low, high)) = (1.0 / f, self.range);
        self.sum_of_squares(|x| {
            let q = clamp(x * reciprocal, low, high);
            x - round_ties_even(q) * f
        })
    }

    /// Sum of `(x - x')^2` at scale `f` over what saturates, rounding aside: a lower bound of the error there and at
    /// every smaller scale.
    fn squared_saturation(&self, f: f32) -> f64 {
        let (low, high) = (self.range.0 * f, self.range.1 * f);
        self.sum_of_squares(|x| x - clamp(x, low, high))
    }

    #[inline]
    fn sum_of_squares(&self, f: impl Fn(f32) -> f32) -> f64 {
        let mut sum = 0.0;
        for block in self.values.chunks(BLOCK) {
            let mut lanes = [0f32; LANES];
            for x in block.chunks_exact(LANES) {
                for (lane, &x) in lanes.iter_mut().zip(x) {
                    let y = f(x);
                    *lane += y * y;
                }
            }
            sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
        sum
    }
}

/// `x.clamp(low, high)` for numbers, written as the two vector instructions it is: `f32::clamp` also keeps NaN.
#[inline]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// `x.round_ties_even()` for |x| <= 2^22, without the function call it is where the baseline has no instruction:
/// at 1.5 * 2^23 the neighbouring f32 are 1 apart, so the addition itself rounds.
#[inline]
fn round_ties_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;
    use zeropoint_core::WeightBits::{Eight, Four};

    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..count).map(|_| rng.normal() as f32 * 0.04).collect()
    }

    fn error(weights: &[f32], absmax: f32, bits: WeightBits) -> f64 {
        squared_error(weights, absmax, bits) / weights.len() as f64
    }

    #[test]
    fn rounding_and_clamping_are_the_specified_ones() {
        for i in -1024..=1024 {
            let x = i as f32 / 8.0;
            assert_eq!(round_ties_even(x), x.round_ties_even());
            assert_eq!(clamp(x, -128.0, 127.0), x.clamp(-128.0, 127.0));
        }
    }

    #[test]
    fn the_search_minimises_the_error_of_the_specification() {
        let row = normal(3000, 6);
        let absmax = WeightObserver::MinMax.absmax(&row, Eight);
        let steps = Steps::new(&row, absmax, Eight);
        let unit = f64::from(absmax) / 127.5;
        let mut saturation = 0.0;
        for fraction in [1.0, 0.9, 0.5, 0.1] {
            let specified = error(&row, absmax * fraction, Eight) * row.len() as f64 / (unit * unit);
            let found = steps.squared_error(fraction);
            assert!((found / specified - 1.0).abs() < 1e-4, "{fraction}: {found} against {specified}");
            let lower_bound = steps.squared_saturation(fraction);
            assert!((saturation..found).contains(&lower_bound), "{fraction}");
            saturation = lower_bound;
        }
    }

    #[test]
    fn weights_too_small_for_a_scale_are_not_clipped() {
        let mut row = normal(5000, 7);
        row[3] = 1.0;
        assert!(WeightObserver::Mse.absmax(&row, Eight) < 1.0);
        // Below the smallest scale every weight becomes 0, and no range is better than another.
        let unit = crate::histogram::power_of_two(-125) as f32;
        let tiny: Vec<f32> = row.iter().map(|w| w * unit).collect();
        assert_eq!(WeightObserver::Mse.absmax(&tiny, Eight), unit);
    }

    #[test]
    fn mse_is_near_the_best_of_a_brute_search() {
        let mut outlier = normal(768, 2);
        outlier[5] = 0.5;
        let mut long = normal(20_000, 3); // several blocks and a ragged end
        long.push(0.4);
        let cubes: Vec<f32> = normal(384, 4).iter().map(|w| w * w * w).collect();
        for (name, row) in
            [("normal", normal(384, 1)), ("outlier", outlier), ("long", long), ("cubes", cubes)]
        {
            for bits in [Eight, Four] {
                let widest = WeightObserver::MinMax.absmax(&row, bits);
                let best = (1..=2000).map(|i| error(&row, widest * i as f32 / 2000.0, bits));
                let best = best.fold(f64::INFINITY, f64::min);
                let chosen = error(&row, WeightObserver::Mse.absmax(&row, bits), bits);
                // 2%: the ripples of a short row's error are finer than the first grid.
                assert!(chosen <= 1.02 * best, "{name}, {bits}: {chosen:e} against {best:e}");
            }
        }
    }

    #[test]
    fn an_outlier_among_many_is_clipped() {
        let mut row = normal(100_000, 5);
        row[17] = 2.0; // 50 standard deviations
        let absmax = WeightObserver::Mse.absmax(&row, Eight);
        assert!(absmax < 1.5, "{absmax}");
        assert!(error(&row, absmax, Eight) < 0.8 * error(&row, 2.0, Eight));
    }

    #[test]
    fn weights_without_a_range_and_weights_without_a_number() {
        for observer in
            [WeightObserver::MinMax, WeightObserver::Mse, WeightObserver::Percentile { percentile: 100.0 }]
        {
            for (row, expected) in [(&[][..], 0.0), (&[0.0, -0.0][..], 0.0), (&[0.0, 3.0][..], 3.0)] {
                assert_eq!(observer.absmax(row, Eight), expected, "{observer}");
            }
            assert_eq!(observer.absmax(&[1.0, f32::NEG_INFINITY], Eight), f32::INFINITY);
            assert!(observer.absmax(&[f32::NAN, f32::INFINITY, 1.0], Eight).is_nan());
            assert!(QuantParams::symmetric(observer.absmax(&[1.0, f32::NAN], Eight)).is_err());
        }
    }

    #[test]
    fn percentiles_interpolate_between_the_sorted_magnitudes() {
        // numpy.percentile(numpy.abs([...]), p)
        let row = [3.0, -1.0, 4.0, -1.5, 9.0, 2.6];
        for (percentile, expected) in
            [(100.0, 9.0), (90.0, 6.5), (80.0, 4.0), (99.0, 8.75), (60.0, 3.0), (51.0, 2.82)]
        {
            let found = WeightObserver::Percentile { percentile }.absmax(&row, Eight);
            assert!((found - expected).abs() < 0.01, "{percentile}: {found}");
        }
        assert_eq!(WeightObserver::Percentile { percentile: 99.0 }.absmax(&[-7.0], Eight), 7.0);
    }

    #[test]
    fn settings_are_checked_and_shown() {
        for percentile in [49.9, 100.5, f64::NAN] {
            assert!(WeightObserver::Percentile { percentile }.validate().is_err(), "{percentile}");
        }
        let percentile = WeightObserver::Percentile { percentile: 99.9 };
        assert_eq!((percentile.validate(), percentile.to_string().as_str()), (Ok(()), "percentile 99.9"));
        assert_eq!(serde_json::to_string(&percentile).unwrap(), r#"{"kind":"percentile","percentile":99.9}"#);
        assert_eq!(serde_json::to_string(&WeightObserver::Mse).unwrap(), r#"{"kind":"mse"}"#);
    }

    proptest! {
        #[test]
        fn percentiles_leave_out_what_they_say_and_scale_with_the_weights(
            row in prop::collection::vec(-1f32..1.0, 1..80), percentile in 50f64..100.0, exponent in -20i32..20,
        ) {
            let observer = WeightObserver::Percentile { percentile };
            let chosen = observer.absmax(&row, Eight);
            let above = row.iter().filter(|w| w.abs() > chosen).count() as f64;
            let allowed = (1.0 - percentile / 100.0) * (row.len() - 1) as f64;
            prop_assert!(above <= allowed.ceil() && chosen <= WeightObserver::MinMax.absmax(&row, Eight));
            let unit = crate::histogram::power_of_two(exponent) as f32;
            let scaled: Vec<f32> = row.iter().rev().map(|w| w * unit).collect();
            prop_assert_eq!(observer.absmax(&scaled, Eight), chosen * unit);
        }

        #[test]
        fn mse_is_never_worse_and_never_wider_than_min_max(
            row in prop::collection::vec(-1f32..1.0, 1..80), power in 1i32..7, exponent in -140i32..127,
        ) {
            let unit = crate::histogram::power_of_two(exponent) as f32;
            let row: Vec<f32> = row.iter().map(|w| w.powi(power) * unit).collect();
            let (widest, chosen) = (WeightObserver::MinMax.absmax(&row, Eight), WeightObserver::Mse.absmax(&row, Eight));
            prop_assert!((0.0..=widest).contains(&chosen));
            prop_assert!(error(&row, chosen, Eight) <= error(&row, widest, Eight));
        }

        #[test]
        fn a_power_of_two_scales_the_choice_and_nothing_else(
            row in prop::collection::vec(-1f32..1.0, 1..80), exponent in -20i32..20,
        ) {
            let unit = crate::histogram::power_of_two(exponent) as f32;
            let scaled: Vec<f32> = row.iter().map(|w| w * unit).collect();
            prop_assert_eq!(WeightObserver::Mse.absmax(&scaled, Eight), WeightObserver::Mse.absmax(&row, Eight) * unit);
        }
    }
}
